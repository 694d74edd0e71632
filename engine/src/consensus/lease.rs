//! The leader's lease: until when nobody else can lead, so that the leader may answer reads from what it has applied.
//!
//! ```text
//!  leader    sent s ─────┬──────────────── LEASE ───────────────▶ s + LEASE
//!                        ▼ heard                ▲ s comes back
//!  replica               ├────────── promise: ELECTION_TIMEOUT ──────────────▶ votes for nobody else
//! ```
//!
//! Every word of a leader (heartbeat, append) carries the time at which it was sent, by the leader's clock; every
//! answer carries the newest one that was heard. An answered `s` says: this replica's promise was made after `s`. The lease
//! is counted from the newest `s` that a quorum has answered, so nothing depends on how long answers travel, on
//! their order, or on which of them are lost.
//!
//! Invariants:
//! - A lease ends before the promises of a quorum do, though their clocks drift; see `LEASE`.
//! - In a joint configuration both quorums have answered. The old voters' promises still bind an election then, so a lease from
//!   before the change holds; but the change is not ended (`Leave`) before the new voters' promises cover every
//!   lease that was ever taken. A new incarnation has promised nothing, and is a replica of its own here.
//! - A leader that has begun to hand over takes no lease in that term any more: a forced campaign passes all promises,
//!   and may be on its way for long.
//!
//! Sources: Gray & Cheriton, "Leases", SOSP 1989; Ongaro, "Consensus: Bridging Theory and Practice", 2014, §6.4.1.

use alloc::vec::Vec;
use quorate_protocol::id::{Replica, Term};

use super::{Consensus, ELECTION_TIMEOUT, raw_id};
use crate::effect::TICK;

/// What a lease lasts: a promise less a tick, less 1 % for clocks that run apart; microseconds.
pub const LEASE: u64 = (ELECTION_TIMEOUT - TICK) / 100 * 99;

/// Deliberate bugs.
#[cfg(feature = "faults")]
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// A lease lasts three times as long.
    pub too_long: bool,
    /// It is counted from when an answer came.
    pub from_answer: bool,
    /// It is kept while leadership is handed over.
    pub kept_in_transfer: bool,
    /// A voter that starts again has promised nothing.
    pub promise_forgotten: bool,
}

/// See the top of the file.
#[derive(Debug, Default)]
pub(super) struct Lease {
    /// The term that the rest belongs to.
    term: Term,
    /// As a follower: the leader, and when its newest word that was heard was sent.
    heard: (u64, u64),
    /// As the leader: replica → when the newest word was sent that it has answered.
    answered: Vec<(u64, u64)>,
    /// As the leader: none is taken any more.
    given_up: bool,
    /// The end of the last lease that this replica took, in whatever term.
    until: u64,
    #[cfg(feature = "faults")]
    faults: Faults,
}

impl Lease {
    /// Turns to a term.
    fn turn_to(&mut self, term: Term) {
        if self.term != term {
            (self.term, self.heard, self.given_up) = (term, (0, 0), false);
            self.answered.clear();
        }
    }

    /// The leader of a term said something at `sent`, and was promised to be the only one for a while.
    pub(super) fn heard(&mut self, term: Term, leader: u64, sent: u64) {
        self.turn_to(term);
        let before = if self.heard.0 == leader { self.heard.1 } else { 0 };
        self.heard = (leader, before.max(sent));
    }

    /// What an answer to a leader carries; 0 is nothing.
    pub(super) fn echo(&self, term: Term, leader: u64) -> u64 {
        if (self.term, self.heard.0) == (term, leader) { self.heard.1 } else { 0 }
    }

    /// A replica has answered what this leader sent at `sent`.
    pub(super) fn answered(&mut self, term: Term, replica: u64, sent: u64) {
        self.turn_to(term);
        match self.answered.iter_mut().find(|(other, _)| *other == replica) {
            Some((_, before)) => *before = sent.max(*before),
            None => self.answered.push((replica, sent)),
        }
    }

    #[cfg(feature = "faults")]
    pub(super) fn is_counted_from_answer(&self) -> bool {
        self.faults.from_answer
    }

    /// When the newest word was sent that a replica has answered; 0 if it has answered none in this term.
    pub(super) fn answer_of(&self, replica: Replica) -> u64 {
        let id = raw_id(replica);
        self.answered.iter().find(|(other, _)| *other == id).map_or(0, |(_, sent)| *sent)
    }
}

impl Consensus {
    /// Takes the lease that the answers give, and says until when it is valid, by this node's clock: 0 when there is none.
    /// It counts for reads once an entry of the leader's own term is applied.
    pub fn take_lease(&mut self, now: u64) -> u64 {
        if !self.leads() {
            return 0;
        }
        let term = self.term();
        self.lease.turn_to(term);
        if self.lease.given_up {
            return 0;
        }
        let until = self.lease_end(now);
        if until <= now {
            return 0;
        }
        self.lease.until = self.lease.until.max(until);
        // Its own promise: whatever it becomes, it elects nobody while somebody may rely on the lease.
        self.promise_until = self.promise_until.max(until);
        until
    }

    fn lease_end(&self, now: u64) -> u64 {
        let quorum_of = |replicas: &[Replica]| {
            let mut answers: Vec<u64> = replicas
                .iter()
                .map(|replica| if *replica == self.me { now } else { self.lease.answer_of(*replica) })
                .collect();
            answers.sort_unstable();
            // As many as are needed for a majority have answered this or something newer.
            answers.len().checked_sub(answers.len() / 2 + 1).map_or(0, |at| answers[at])
        };
        let mut sent = quorum_of(&self.conf.voters);
        if self.conf.is_joint() {
            sent = sent.min(quorum_of(&self.conf.outgoing));
        }
        #[cfg(feature = "faults")]
        if self.lease.faults.too_long && sent > 0 {
            return sent + 3 * LEASE;
        }
        if sent == 0 { 0 } else { sent + LEASE }
    }

    /// Takes no lease in this term any more.
    pub fn give_lease_up(&mut self) {
        let term = self.term();
        self.lease.turn_to(term);
        self.lease.given_up = true;
        #[cfg(feature = "faults")]
        if self.lease.faults.kept_in_transfer {
            self.lease.given_up = false;
        }
    }

    /// Whether this term has no lease any more, though the leader leads on: handing over has failed.
    #[must_use]
    pub fn has_given_lease_up(&self) -> bool {
        self.leads() && self.lease.given_up && self.lease.term == self.term()
    }

    /// Whether a joint configuration may be left: no lease is left that the new voters have not promised to respect.
    #[must_use]
    pub fn may_leave(&self, now: u64) -> bool {
        now >= self.lease.until || self.lease_end(now) >= self.lease.until
    }

    /// Switches deliberate bugs on.
    #[cfg(feature = "faults")]
    pub fn set_lease_faults(&mut self, faults: &Faults) {
        self.lease.faults = faults.clone();
        if faults.promise_forgotten {
            self.promise_until = 0;
        }
    }
}
