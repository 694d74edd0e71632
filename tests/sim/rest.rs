//! The end of a run: everything is put right, what is under way comes to its end, and an auditor looks at what is left.
//!
//! Invariant: a cluster whose majority runs on a whole network serves again; whatever is left unanswered then is a
//! violation of its own.

use bytes::Bytes;
use quorate_protocol::limits::MANY_MAX;
use quorate_protocol::op::{Ack, DEAD_LETTERS, Expiry, Fetch, Op, Receipt};
use quorate_protocol::reply::Reply;

use super::history::Outcome;
use super::workload::{BACKS, COUNTERS, DEAD, FILLED, LOCKS, REGISTERS, TOPICS, message_of, name};
use super::world::World;

/// How long clients may take to come to their end.
const PATIENCE: u64 = 60_000_000;
/// After this, every lease, delay, wait and session of a dead node has ended.
const ALL_LEASES: u64 = 14_000_000;

impl World {
    /// Brings the world to rest and audits it; false when something was not as promised.
    pub fn come_to_rest(&mut self) -> bool {
        self.heal();
        let deadline = self.time + PATIENCE;
        while self.time < deadline && !self.clients.iter().all(super::client::Client::is_idle) {
            let next = self.time + 100_000;
            if !self.run_until(next) {
                return false;
            }
        }
        if !self.what_is_kept_is_current() {
            return false;
        }
        for at in 0..self.clients.len() {
            if !self.clients[at].is_idle() {
                let text = format!("client {at} has unanswered requests a minute after all was put right");
                self.fail("service comes back", text);
                return false;
            }
            self.disconnect(at);
        }
        let quiet = self.time + ALL_LEASES;
        self.run_until(quiet) && self.audit() && self.replicas_agree()
    }

    fn audit(&mut self) -> bool {
        let auditor = self.add_auditor();
        for register in 0..REGISTERS {
            if self.inquire(auditor, Op::Get(name("r", register))).is_none() {
                return false;
            }
        }
        for filled in 0..FILLED {
            if self.inquire(auditor, Op::Get(name("rf", filled))).is_none() {
                return false;
            }
        }
        for counter in 0..COUNTERS {
            if self.inquire(auditor, Op::Get(name("n", counter))).is_none() {
                return false;
            }
        }
        for back in 0..BACKS {
            if self.plan.backs > 0 && self.inquire(auditor, Op::Get(name("w", back))).is_none() {
                return false;
            }
        }
        let mortal = |record: &super::history::Record| match &record.op {
            Op::Set(set) if set.expiry != Expiry::Never && set.expiry != Expiry::Keep => {
                Some(set.key.clone())
            }
            _ => None,
        };
        let mortal: Vec<Bytes> = self.checks.history.records().iter().filter_map(mortal).collect();
        for keys in mortal.chunks(MANY_MAX) {
            if self.inquire(auditor, Op::Exists(keys.to_vec())).is_none() {
                return false;
            }
        }
        for lock in 0..LOCKS {
            if self.inquire(auditor, Op::LockInfo(name("l", lock))).is_none() {
                return false;
            }
        }
        self.empty_topics(auditor)
    }

    /// Receives and acknowledges all messages.
    pub fn empty_topics(&mut self, auditor: usize) -> bool {
        // What dies in a topic while it is emptied is found behind it.
        (0..TOPICS).map(|topic| name("q", topic)).chain([Bytes::from_static(DEAD)]).all(|topic| {
            let dead = [&topic[..], DEAD_LETTERS].concat();
            self.drain(auditor, &topic) && self.drain(auditor, &dead.into())
        })
    }

    /// Receives and acknowledges until there is nothing left.
    fn drain(&mut self, auditor: usize, topic: &Bytes) -> bool {
        loop {
            let fetch = Fetch { topic: topic.clone(), count: 64, block: 0, lease: Some(600_000) };
            let Some(reply) = self.inquire(auditor, Op::Fetch(fetch)) else { return false };
            let Reply::Array(messages) = reply else { return true };
            let receipt = |(id, attempt, _)| Receipt { id, attempt: Some(attempt) };
            let receipts = messages.iter().filter_map(message_of).map(receipt).collect();
            let ack = Ack { topic: topic.clone(), receipts };
            if self.inquire(auditor, Op::Ack(ack)).is_none() {
                return false;
            }
        }
    }

    /// Asks until there is an answer; none when something was not as promised.
    pub fn inquire(&mut self, auditor: usize, op: Op) -> Option<Reply> {
        for _ in 0..20 {
            if self.clients[auditor].conn.is_none() {
                self.think(auditor);
            }
            let id = self.checks.history.invoke(auditor, op.clone(), true, self.time);
            if self.clients[auditor].conn.is_some() {
                self.ask(auditor, &[id]);
            }
            for _ in 0..200 {
                if self.checks.history.get(id).outcome != Outcome::Open {
                    break;
                }
                let next = self.time + 50_000;
                if !self.run_until(next) {
                    return None;
                }
            }
            if let Some(reply) = self.checks.history.get(id).reply() {
                return Some(reply.clone());
            }
        }
        self.fail("service comes back", format!("{op:?} gets no answer after all was put right"));
        None
    }

    /// All replicas that run have applied all there is.
    fn replicas_agree(&mut self) -> bool {
        for _ in 0..100 {
            let next = self.time + 100_000;
            if !self.run_until(next) {
                return false;
            }
            let committed = self.checks.committed();
            let behind = self.nodes.iter().filter_map(|node| node.engine.as_ref()).any(|engine| {
                engine
                    .report()
                    .iter()
                    .any(|group| committed.get(&group.group).is_some_and(|&n| group.applied < n))
            });
            if !behind {
                return true;
            }
        }
        self.fail("service comes back", "replicas are still behind when all has been at rest".into());
        false
    }
}
