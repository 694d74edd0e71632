//! A backup of the cluster while it works, and another cluster that begins with it.
//!
//! Charter: does what `quorate snapshot save` and `quorate-server restore` do, by the same rules (`backup::cut_too_early`,
//! `rebase`): nodes are told SNAPSHOT until there is a cut of every group, while clients go on and nodes fail; when all is
//! over, a cluster without faults is founded on the cuts.
//!
//! Properties:
//! - A cut is a state that the group's replicas had, at the entry that it names.
//! - What was acknowledged before the backup began is in it: a message that nobody can have settled by its end is found in
//!   one place, and only there, unless it was moved between two cuts; what was settled before is not found. An ID of a
//!   publisher is remembered. A dead letter of the new cluster arrives.
//! - The value of each key is one that it had between its beginning and its end: the register checker takes them for reads.
//! - Tokens, versions and ids go on behind all that the old cluster has given.
//!
//! Subtlety: a snapshot may be gone while it is copied, and is copied from its successor then. So a cut does not take all
//! groups of a node at once.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use quorate_engine::journal::{File, Io, found_with, is_sound};
use quorate_engine::rebase::{holds, rebase, row};
use quorate_engine::snapshot::{Loader, Writer, header_of};
use quorate_protocol::backup::{Crossing, arrived_from, cut_too_early};
use quorate_protocol::id::{Boot, GroupId, Index};
use quorate_protocol::op::{Ack, Expiry, Fetch, FillV, Lock, Nack, Op, Pub, QSet, Receipt, Set, When};
use quorate_protocol::reply::Reply;

use super::bugs::Bug;
use super::history::{Outcome, Record};
use super::workload::{COUNTERS, DEAD, FILLED, LOCKS, PAIR, REGISTERS, message_of, name};
use super::world::{Event, World};

/// How often groups may be cut anew.
const CUTS: usize = 10;
/// How long the new cluster is left alone at first: every delay and lease of a message has ended then.
const SETTLED: u64 = 14_000_000;
/// How long an ID is surely remembered, and the new cluster looked at.
const REMEMBERED: u64 = 60_000_000;
/// A message of the new cluster.
const PROBE: &[u8] = b"probe";
/// The property that is checked.
const PROPERTY: &str = "a backup holds what was acknowledged";

/// Each group's snapshot.
type Parts = BTreeMap<GroupId, (Index, Bytes)>;
/// How far letters had crossed by each group's cut.
type Crossings = BTreeMap<GroupId, Vec<Crossing>>;

/// See the top of the file.
#[derive(Debug)]
pub struct Backup {
    begun: u64,
    /// Groups that are to be copied yet.
    wanted: BTreeSet<GroupId>,
    parts: Parts,
    /// How often groups have been cut anew.
    pub cuts: usize,
    ended: Option<u64>,
}

impl World {
    /// A backup is made if it is planned.
    pub fn plan_backup(&mut self) {
        if let Some(at) = self.plan.backup {
            self.schedule(at, Event::BackUp);
        }
    }

    /// It begins, or goes on.
    pub fn back_up(&mut self) {
        let (begun, partitions) = (self.time, self.plan.partitions);
        let wanted = || (0..=partitions).map(GroupId).collect();
        let begin = || Backup { begun, wanted: wanted(), parts: Parts::new(), cuts: 0, ended: None };
        let backup = self.backup.get_or_insert_with(begin);
        if !self.resting && backup.ended.is_none() && backup.cuts <= CUTS {
            let cut = backup.cuts;
            self.ask_some_to_save(Some(cut));
            let next = self.time + self.saver.rng.between(20_000..400_000);
            self.schedule(next, Event::BackUp);
        }
    }

    /// Snapshots of these groups lie on a node's disk. They were asked for when groups had been cut anew so often.
    pub fn take_cuts(&mut self, at: usize, cut: usize, saved: &[(GroupId, Index)]) {
        let Some(backup) = self.backup.as_mut().filter(|backup| backup.cuts == cut) else { return };
        if backup.ended.is_some() {
            return;
        }
        for &(group, index) in saved {
            let file = self.nodes[at].disk.bytes(File::Snapshot(group, index)).map(Bytes::copy_from_slice);
            let Some(file) = file.filter(|file| is_sound(file, group, index)) else { continue };
            if self.saver.rng.chance(500) && backup.wanted.remove(&group) {
                backup.parts.insert(group, (index, file));
            }
        }
        if backup.wanted.is_empty() {
            let cuts = crossings(&backup.parts);
            if self.plan.bug != Some(Bug::CutTooEarly) {
                backup.wanted = cut_too_early(cuts.iter().map(|(group, known)| (*group, &known[..])));
            }
            backup.cuts += 1;
            backup.ended = backup.wanted.is_empty().then_some(self.time);
        }
    }

    /// Founds another cluster on the backup, if one was made, and looks whether it has what it is to have; false if not.
    pub fn restore(&mut self) -> bool {
        let Some(backup) = self.backup.take() else { return true };
        let Some(ended) = backup.ended else { return true };
        self.checks.restored += 1;
        let again = self.published_with_ids(backup.begun);
        let verdict = self.founded_on(&backup.parts).and_then(|mut other| {
            let looked = other.look_through(&again);
            let broken = other.checks.violation.take();
            broken.map_or(Ok(()), |broken| Err(format!("{}: {}", broken.property, broken.text)))?;
            assert!(looked, "a look that ends early has a reason");
            self.compare(&other, (backup.begun, ended))
        });
        if let Err(text) = verdict {
            self.fail(PROPERTY, text);
        }
        self.checks.violation.is_none()
    }

    fn founded_on(&self, parts: &Parts) -> Result<Self, String> {
        let mut other = Self::new(self.plan.of_another_cluster(), 0);
        other.checks.begins_late = true;
        let crossings =
            if self.plan.bug == Some(Bug::LettersNumberedAnew) { Crossings::new() } else { crossings(parts) };
        for at in 0..other.nodes.len() {
            let meta = other.plan.meta(other.nodes[at].id, 0);
            let meta = quorate_engine::journal::Meta { boot: Boot::before(0), ..meta };
            let (mut ios, mut rows) = (Vec::new(), Vec::new());
            for (&group, (index, file)) in parts.iter().filter(|(group, _)| holds(**group, &meta)) {
                let failed = |why: &str| format!("the snapshot of group {} cannot be read: {why}", group.0);
                let mut loader = Loader::new(group, *index, &meta);
                if !loader.feed(file).map_err(|why| failed(why.0))? {
                    return Err(failed("it ends early"));
                }
                let (header, state) = loader.into_state();
                let had = self.checks.digest_at(group, *index);
                if had.is_some_and(|had| had != state.digest()) {
                    return Err(format!(
                        "the cut of group {} is nothing that it was at entry {index}",
                        group.0
                    ));
                }
                let (header, mut state) =
                    rebase(&header, state, &meta, &arrived_from(group, &crossings)).map_err(failed)?;
                let mut writer = Writer::new(header.clone(), &mut state);
                let file = File::Snapshot(group, header.index);
                while let Some((offset, bytes)) = writer.slice(&mut state) {
                    ios.push(Io::Write { file, offset, bytes });
                }
                ios.push(Io::Sync { file });
                rows.push((group, row(&header)));
            }
            found_with(&meta, rows, &mut ios);
            ios.iter().for_each(|io| other.nodes[at].disk.perform(io));
        }
        Ok(other)
    }
}

fn crossings(parts: &Parts) -> Crossings {
    let of = |(&group, (index, file)): (&GroupId, &(Index, Bytes))| {
        let header = header_of(group, *index, file.clone()).expect("it was sound when it was copied");
        (group, header.crossings)
    };
    parts.iter().map(of).collect()
}

/// In the new cluster.
impl World {
    fn look_through(&mut self, again: &[(Pub, Reply)]) -> bool {
        let settled = self.time + SETTLED;
        if !self.run_until(settled) {
            return false;
        }
        self.resting = true;
        let auditor = self.add_auditor();
        keys().into_iter().all(|key| self.inquire(auditor, Op::Get(key)).is_some())
            && again.iter().all(|(op, id)| self.publish_again(auditor, op, id))
            && self.give_numbers(auditor)
            && self.send_letters(auditor)
            && self.empty_topics(auditor)
    }

    /// What was published with an ID before is still known by it.
    fn publish_again(&mut self, auditor: usize, op: &Pub, id: &Reply) -> bool {
        let Some(reply) = self.inquire(auditor, Op::Pub(op.clone())) else { return false };
        if reply != *id {
            self.fail("publishers' ids", format!("{op:?} was answered {id:?} and is answered {reply:?}"));
        }
        reply == *id
    }

    /// Tokens, versions and ids are asked for.
    fn give_numbers(&mut self, auditor: usize) -> bool {
        let lock = |n| Lock { name: name("l", n), shared: false, owner: None, ttl: 60_000, wait: 0 };
        let set = |n| {
            let (key, value) = (name("r", n), Bytes::from_static(PROBE));
            Op::Set(Set { key, value, when: When::Always, expiry: Expiry::Never, get: false })
        };
        let version = |n| Op::FillV(FillV { key: name("r", n), ms: 1000 });
        let locks = (0..LOCKS).map(|n| Op::Lock(lock(n)));
        let ops = locks.chain((0..REGISTERS).flat_map(|n| [set(n), version(n)]));
        ops.collect::<Vec<_>>().into_iter().all(|op| self.inquire(auditor, op).is_some())
    }

    /// All that is in the topic whose letters go elsewhere becomes dead letters.
    fn send_letters(&mut self, auditor: usize) -> bool {
        let topic = name("q", 0);
        let dlq = Some(Bytes::from_static(DEAD));
        let qset = QSet { topic: topic.clone(), lease: None, max_deliver: None, dlq };
        let body = Bytes::from_static(PROBE);
        let probe = Pub { topic: topic.clone(), body, dedupe: None, delay: 0 };
        if ![Op::QSet(qset), Op::Pub(probe)].into_iter().all(|op| self.inquire(auditor, op).is_some()) {
            return false;
        }
        loop {
            let fetch = Fetch { topic: topic.clone(), count: 64, block: 0, lease: Some(600_000) };
            let Some(reply) = self.inquire(auditor, Op::Fetch(fetch)) else { return false };
            let Reply::Array(messages) = reply else { break };
            for (id, attempt, _) in messages.iter().filter_map(message_of) {
                let receipt = Receipt { id, attempt: Some(attempt) };
                let nack = Nack { topic: topic.clone(), receipt, delay: 0, dead: true };
                if self.inquire(auditor, Op::Nack(nack)).is_none() {
                    return false;
                }
            }
        }
        let arrived = self.time + 2_000_000;
        self.run_until(arrived)
    }

    /// The values that keys had in the backup.
    fn values(&self) -> impl Iterator<Item = (&Op, &Reply)> {
        let answered =
            self.checks.history.records().iter().filter_map(|record| Some((record, record.reply()?)));
        answered
            .filter(|(record, _)| matches!(record.op, Op::Get(_)))
            .map(|(record, reply)| (&record.op, reply))
    }
}

fn keys() -> Vec<Bytes> {
    let kinds = [("r", REGISTERS), ("n", COUNTERS), ("rf", FILLED), ("rl", LOCKS)];
    let names = kinds.into_iter().flat_map(|(kind, count)| (0..count).map(move |n| name(kind, n)));
    names.chain(PAIR.map(Bytes::from)).collect()
}

/// In the old cluster, with what was found in the new one.
impl World {
    fn compare(&mut self, other: &Self, (begun, ended): (u64, u64)) -> Result<(), String> {
        self.numbers_go_on(other)?;
        self.messages_are_there(other, (begun, ended))?;
        for (op, reply) in other.values() {
            let id = self.checks.history.next_id();
            let outcome = Outcome::Answered(reply.clone());
            let read = Record { invoked: begun, ended, outcome, ..Record::new(id, usize::MAX, op.clone()) };
            self.checks.history.add(read);
        }
        Ok(())
    }

    /// The messages of the new cluster: each is in one place. One that was moved to the dead letters between two cuts is in
    /// its topic as well, and has become a dead letter there once more.
    fn found(&self) -> Result<BTreeSet<Bytes>, String> {
        let acked: BTreeSet<_> = self.acks().flat_map(|(_, op)| messages_of(op)).collect();
        let source = name("q", 0);
        let still = |(topic, _, body): &(Bytes, u64, Bytes)| *topic == source && body != PROBE;
        let still: BTreeSet<Bytes> = fetched(self).filter(still).map(|(.., body)| body).collect();
        let mut places: BTreeMap<Bytes, BTreeSet<Message>> = BTreeMap::new();
        for (topic, id, body) in fetched(self).filter(|(topic, id, _)| acked.contains(&(topic.clone(), *id)))
        {
            places.entry(body).or_default().insert((topic, id));
        }
        let most = |body: &Bytes| 1 + usize::from(still.contains(body));
        if let Some((body, places)) = places.iter().find(|(body, places)| places.len() > most(body)) {
            return Err(format!("{} is found as {places:?}", String::from_utf8_lossy(body)));
        }
        Ok(places.into_keys().collect())
    }

    fn acks(&self) -> impl Iterator<Item = (&Record, &Ack)> {
        let records = self.checks.history.records().iter();
        records.filter_map(|record| if let Op::Ack(op) = &record.op { Some((record, op)) } else { None })
    }

    /// Messages that were published with an ID shortly before a time, and what that was answered.
    fn published_with_ids(&self, begun: u64) -> Vec<(Pub, Reply)> {
        let records = self.checks.history.records().iter().rev();
        let recent = records.filter(|record| record.ended < begun && record.invoked + REMEMBERED > begun);
        let with_id = recent.filter_map(|record| match (&record.op, record.reply()) {
            (Op::Pub(op), Some(id @ Reply::Int(_))) if op.dedupe.is_some() => Some((op.clone(), id.clone())),
            _ => None,
        });
        with_id.take(5).collect()
    }

    fn messages_are_there(&self, other: &Self, (begun, ended): (u64, u64)) -> Result<(), String> {
        let found = other.found()?;
        if !found.contains(PROBE) {
            return Err("a dead letter of the new cluster is nowhere".to_owned());
        }
        let (mut settled, mut perhaps) = (BTreeSet::new(), BTreeSet::new());
        for (record, op) in self.acks() {
            if *record.reply().unwrap_or(&Reply::Nil) == Reply::int(op.receipts.len() as u64)
                && record.ended < begun
            {
                settled.extend(messages_of(op));
            }
            let never =
                record.reply() == Some(&Reply::Int(0)) || matches!(record.outcome, Outcome::Refused(_));
            if record.invoked <= ended && !never {
                perhaps.extend(messages_of(op));
            }
        }
        let pushed = self.checks.deliveries.iter();
        let pushed = pushed.map(|(_, topic, id, _, body)| (topic.clone(), *id, body.clone()));
        let seen: Vec<(Message, Bytes)> =
            fetched(self).chain(pushed).map(|(topic, id, body)| ((topic, id), body)).collect();
        let bodies = |all: &BTreeSet<Message>| -> BTreeSet<&Bytes> {
            seen.iter().filter(|(message, _)| all.contains(message)).map(|(_, body)| body).collect()
        };
        if let Some(body) = bodies(&settled).into_iter().find(|body| found.contains(*body)) {
            let name = String::from_utf8_lossy(body);
            return Err(format!("{name} was settled before the backup began, and is in it"));
        }
        let gone = bodies(&perhaps);
        for record in self.checks.history.records() {
            let Op::Pub(op) = &record.op else { continue };
            let before = record.succeeded() && record.ended < begun;
            if before && !gone.contains(&op.body) && !found.contains(&op.body) {
                return Err(format!("{}, and it is not in the backup that began then", record.story()));
            }
        }
        Ok(())
    }

    fn numbers_go_on(&self, other: &Self) -> Result<(), String> {
        let (mut old, mut new) = (BTreeMap::new(), BTreeMap::new());
        numbers(self).for_each(|(kind, number)| {
            _ = old.entry(kind).and_modify(|old: &mut u64| *old = number.max(*old)).or_insert(number)
        });
        numbers(other).for_each(|(kind, number)| {
            _ = new.entry(kind).and_modify(|new: &mut u64| *new = number.min(*new)).or_insert(number)
        });
        for (kind, number) in new {
            let highest = old.get(&kind).copied().unwrap_or(0);
            if number <= highest {
                return Err(format!("{kind}: {number} is given, and the old cluster has given {highest}"));
            }
        }
        Ok(())
    }
}

fn fetched(world: &World) -> impl Iterator<Item = (Bytes, u64, Bytes)> {
    let answered =
        world.checks.history.records().iter().filter_map(|record| match (&record.op, record.reply()) {
            (Op::Fetch(op), Some(Reply::Array(messages))) => Some((op.topic.clone(), messages)),
            _ => None,
        });
    answered.flat_map(|(topic, messages)| {
        messages.iter().filter_map(message_of).map(move |(id, _, body)| (topic.clone(), id, body))
    })
}

/// A message in a topic.
type Message = (Bytes, u64);

fn messages_of(ack: &Ack) -> impl Iterator<Item = Message> {
    ack.receipts.iter().map(|receipt| (ack.topic.clone(), receipt.id))
}

/// Every number that a cluster has given, with what kind it is of. An answer to an ID may be an older number.
fn numbers(world: &World) -> impl Iterator<Item = (String, u64)> {
    let history = &world.checks.history;
    let text = |name: &Bytes| String::from_utf8_lossy(name).into_owned();
    let versions = history.versions.iter();
    let versions = versions.map(move |(key, version)| (format!("version of {}", text(key)), *version));
    let told = history.records().iter().filter_map(move |record| {
        let (kind, number) = match (&record.op, record.reply()?) {
            (Op::Lock(_), Reply::Int(token)) => ("token".to_owned(), token),
            (Op::Pub(op), Reply::Int(id)) if op.dedupe.is_none() => {
                (format!("message of {}", text(&op.topic)), id)
            }
            (Op::FillV(op), Reply::Array(fields)) => match &fields[..] {
                [Reply::Bulk(_), Reply::Int(version), _] => {
                    (format!("version of {}", text(&op.key)), version)
                }
                _ => return None,
            },
            _ => return None,
        };
        Some((kind, u64::try_from(*number).expect("numbers are positive")))
    });
    versions.chain(told)
}
