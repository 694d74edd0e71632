//! The home's side: who holds which line of its group, who must drop it before a write, and what is closed.
//!
//! Charter: belongs to one leader in one term, and begins empty with it. It decides what is granted, whom an
//! invalidation goes to, and when a write may be proposed. What is written, and in which order, is the group's business.
//!
//! Invariants:
//! - A copy is known from its grant until its node says that it is gone, or the node's lease is over.
//! - A write waits for every other node that has a copy. The writer's own node has dropped its line before it sent the
//!   write, and names the grant that it dropped: if that is not the last one, another is on its way, and it is
//!   asked like any other.
//! - A node that owes an answer to an invalidation gets no more time, so no write waits longer than a lease lasts.
//!
//! The nodes' leases are the business of `leases`, lines that their holder writes by itself that of `owned`.
//!
//! Subtlety: there may be more copies in here than there are (an eviction that was lost), never fewer.

mod leases;
mod owned;
#[cfg(test)]
mod tests;
#[cfg(feature = "faults")]
mod walk;

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::cache::{CacheWord, Evicted, Grant, Invalidation, LeaseName, Purged};
use quorate_protocol::id::{Boot, ConnId, GroupId, NodeId, Term};
use quorate_protocol::limits::DIRECTORY_LINES_MAX;

use super::line::{Event, State};
use super::watch::Watchers;
use crate::effect::TICK;
use owned::{LookedAt, Owner};

/// How long an invalidation may be unanswered before it is said again; microseconds.
const SAY_AGAIN: u64 = 2 * TICK;
/// Void lines that a tick takes apart.
const SWEPT_AT_ONCE: usize = 4096;

/// A node's lease.
#[derive(Debug, Clone)]
struct Lease {
    boot: Boot,
    epoch: u64,
    /// Its end, by the home's clock, never before the holder's.
    until: u64,
}

/// A copy of a line.
#[derive(Debug, Clone, Copy)]
struct Copy {
    node: NodeId,
    epoch: u64,
    number: u64,
    state: State,
}

/// An invalidation that is not answered.
#[derive(Debug, Clone)]
struct Unanswered {
    node: NodeId,
    word: CacheWord,
    said: u64,
    /// Who waits for the answer.
    writes: Vec<WriteId>,
}

/// A key of which writes are on their way.
#[derive(Debug, Clone, Default)]
struct Closed {
    writes: u32,
    /// The node that wrote it last and gave its line up for that: it gets it back.
    owner: Option<NodeId>,
}

/// Something that waits for copies to be dropped.
pub type WriteId = u64;

/// Node → its epoch, and the keys that it is to drop.
type Drop = BTreeMap<NodeId, (u64, Vec<Bytes>)>;

/// See the top of the file.
#[derive(Debug, Clone, Default)]
pub struct Directory {
    group: GroupId,
    term: Term,
    next_epoch: u64,
    /// The last number that was given.
    number: u64,
    leases: BTreeMap<NodeId, Lease>,
    lines: BTreeMap<Bytes, Vec<Copy>>,
    /// Lines that their holder may write by itself.
    owned: BTreeMap<Bytes, Owner>,
    looked_at: LookedAt,
    /// Key → writes of it that are on their way.
    closed: BTreeMap<Bytes, Closed>,
    /// Writes of all keys that are on their way.
    all_closed: u32,
    /// Lines that are void, to be taken apart bit by bit.
    void: VecDeque<BTreeMap<Bytes, Vec<Copy>>>,
    next_write: WriteId,
    /// Write → how many invalidations it waits for.
    waiting: BTreeMap<WriteId, usize>,
    unanswered: BTreeMap<u64, Unanswered>,
    ready: Vec<WriteId>,
    /// All leases are to come back, and none is granted.
    recalling: bool,
    words: Vec<(NodeId, CacheWord)>,
    watchers: Watchers,
    /// Invalidations that were sent, each counted once.
    invalidations: u64,
    #[cfg(feature = "faults")]
    faults: super::Faults,
}

impl Directory {
    /// The directory of a leader that begins.
    #[must_use]
    pub fn new(group: GroupId, term: Term) -> Self {
        Self { group, term, ..Self::default() }
    }

    /// Switches deliberate bugs on.
    #[cfg(feature = "faults")]
    pub fn set_faults(&mut self, faults: &super::Faults) {
        self.faults = faults.clone();
    }

    fn name(&self, epoch: u64) -> LeaseName {
        LeaseName { group: self.group, term: self.term, epoch }
    }

    /// What is to be said to nodes.
    pub fn take_words(&mut self) -> Vec<(NodeId, CacheWord)> {
        let mut words = core::mem::take(&mut self.words);
        let (group, term) = (self.group, self.term);
        words.append(&mut self.watchers.take_words(|epoch| LeaseName { group, term, epoch }));
        words
    }

    /// A write of these keys is applied; `by`: whose it was, unless they went by themselves.
    pub fn written(&mut self, now: u64, by: Option<&ConnId>, keys: &[Bytes]) {
        self.watchers.changed(now, by, keys);
    }

    /// Writes that may be proposed now.
    pub fn take_ready(&mut self) -> Vec<WriteId> {
        core::mem::take(&mut self.ready)
    }

    /// Whether there are such.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Takes a node's word. `home_until`: the end of the home's own lease; 0 is none.
    pub fn hear(&mut self, now: u64, home_until: u64, from: NodeId, word: CacheWord) {
        match word {
            CacheWord::Want(want) if self.is_mine(want.lease) => {
                self.wanted(now, home_until, from, want, true);
            }
            CacheWord::Purged(purged) if self.is_mine(purged.lease) => self.purged(from, purged),
            CacheWord::Returned(lease) if self.is_mine(lease) => self.returned(from, lease.epoch),
            CacheWord::Evicted(evicted) if self.is_mine(evicted.lease) => self.evicted(from, evicted),
            CacheWord::Noted(noted) if self.is_mine(noted.lease) => self.watchers.noted(from, noted),
            _ => {}
        }
    }

    fn is_mine(&self, lease: LeaseName) -> bool {
        (lease.group, lease.term) == (self.group, self.term)
    }

    fn answered(&mut self, number: u64) {
        let Some(open) = self.unanswered.remove(&number) else { return };
        if let CacheWord::Invalid(word) = &open.word {
            self.given_back(number, &word.keys);
        }
        for write in open.writes {
            let left = self.waiting.get_mut(&write).expect("who waits is known");
            *left -= 1;
            if *left == 0 {
                self.waiting.remove(&write);
                self.ready.push(write);
            }
        }
    }

    fn purged(&mut self, from: NodeId, purged: Purged) {
        let answers = self
            .unanswered
            .get(&purged.number)
            .is_some_and(|open| open.node == from && is_invalidation(&open.word, &purged.lease));
        if answers {
            self.answered(purged.number);
        }
    }

    fn evicted(&mut self, from: NodeId, evicted: Evicted) {
        for (key, number) in evicted.lines {
            self.given_up(from, &key, number);
            let Some(copies) = self.lines.get_mut(&key) else { continue };
            copies.retain(|copy| (copy.node, copy.number) != (from, number));
            if copies.is_empty() {
                self.lines.remove(&key);
            }
        }
    }

    /// Grants the line of a key to the node that has written it, if that may be.
    pub fn grant_written(&mut self, now: u64, node: NodeId, key: &Bytes) -> Option<Grant> {
        let epoch = self.leases.get(&node)?.epoch;
        self.grant(now, node, epoch, key, true)
    }

    /// Grants the line of a key to a node that has read it, or written it, if that may be.
    pub fn grant(&mut self, now: u64, node: NodeId, epoch: u64, key: &Bytes, written: bool) -> Option<Grant> {
        #[cfg(feature = "faults")]
        let open = self.faults.left_open || !self.closed.contains_key(key);
        #[cfg(not(feature = "faults"))]
        let open = !self.closed.contains_key(key);
        let lease = self.leases.get(&node).filter(|lease| lease.epoch == epoch && lease.until > now)?;
        let lease = LeaseName { group: self.group, term: self.term, epoch: lease.epoch };
        let open = open && self.all_closed == 0;
        let full = self.lines.len() >= DIRECTORY_LINES_MAX && !self.lines.contains_key(key);
        if !open || self.recalling || full || self.is_owned(now, key) {
            return None;
        }
        let mut copies = self.lines.remove(key).unwrap_or_default();
        copies.retain(|copy| self.is_live(copy, now));
        let before = copies.iter().position(|copy| copy.node == node).map(|at| copies.swap_remove(at));
        for copy in &mut copies {
            copy.state = copy.state.after(Event::OtherReads).expect("a copy is not invalid");
        }
        let alone = copies.is_empty();
        let event = match (alone, written) {
            (true, true) => Event::Written,
            (true, false) => Event::ReadAlone,
            (false, _) => Event::ReadShared,
        };
        let state = before.map_or(State::Invalid, |copy| copy.state);
        let state = state.after(event).expect("every line can be read and written");
        self.number += 1;
        copies.push(Copy { node, epoch, number: self.number, state });
        copies.sort_unstable_by_key(|copy| copy.node);
        self.lines.insert(key.clone(), copies);
        Some(Grant { lease, number: self.number, version: 0, left: None, exclusive: alone, owned: false })
    }

    /// A write of these keys comes from a node that has given up the grant `gave_up` for it. Closes the keys. Whether it
    /// may be proposed at once; otherwise `take_ready` names it one day.
    pub fn close(&mut self, now: u64, keys: &[Bytes], writer: NodeId, gave_up: u64) -> Option<WriteId> {
        self.lapse(now);
        let mut drop = Drop::new();
        let mut again = self.all_closed > 0;
        // What owners were asked before, and have not answered.
        let mut late = BTreeSet::new();
        for key in keys {
            let closed = self.closed.entry(key.clone()).or_default();
            again |= closed.writes > 0;
            late.extend(self.owned.get(key).map(|owner| owner.recalled));
            closed.writes += 1;
            closed.owner = (keys.len() == 1 && gave_up > 0).then_some(writer);
            for copy in self.lines.remove(key).unwrap_or_default() {
                let gone = copy.node == writer && copy.number == gave_up && keys.len() == 1;
                #[cfg(feature = "faults")]
                let gone = gone || (self.faults.missed_invalidation && self.number.is_multiple_of(5));
                if gone {
                    self.given_up(copy.node, key, copy.number);
                }
                if !gone && self.is_live(&copy, now) {
                    drop.entry(copy.node).or_insert((copy.epoch, Vec::new())).1.push(key.clone());
                }
            }
        }
        let write = self.next_write + 1;
        let mut waits_for = 0;
        if again {
            // A copy that was to be dropped for an earlier write may still be there.
            let concerns = |open: &&mut Unanswered| match &open.word {
                CacheWord::Invalid(word) => word.keys.iter().any(|key| keys.contains(key)),
                _ => true,
            };
            for open in self.unanswered.values_mut().filter(concerns) {
                open.writes.push(write);
                waits_for += 1;
            }
        } else {
            for number in late {
                if let Some(open) = self.unanswered.get_mut(&number) {
                    open.writes.push(write);
                    waits_for += 1;
                }
            }
        }
        waits_for += self.invalidate(now, drop, Some(write));
        self.wait(write, waits_for)
    }

    /// Tells nodes to drop lines, and lets `write` wait for it; to how many it was said.
    fn invalidate(&mut self, now: u64, drop: Drop, write: Option<WriteId>) -> usize {
        let count = drop.len();
        for (node, (epoch, keys)) in drop {
            self.number += 1;
            for key in &keys {
                if let Some(owner) = self.owned.get_mut(key) {
                    owner.recalled = self.number;
                }
            }
            let word = Invalidation { lease: self.name(epoch), number: self.number, keys };
            let word = CacheWord::Invalid(word);
            self.invalidations += 1;
            self.words.push((node, word.clone()));
            let open = Unanswered { node, word, said: now, writes: write.into_iter().collect() };
            self.unanswered.insert(self.number, open);
        }
        count
    }

    fn wait(&mut self, write: WriteId, waits_for: usize) -> Option<WriteId> {
        if waits_for == 0 {
            return None;
        }
        self.next_write = write;
        self.waiting.insert(write, waits_for);
        Some(write)
    }

    /// A write of all keys is on its way: every node gives its lease back, and nothing is granted until it is applied. As
    /// `close`.
    ///
    /// Naming every line would take a word as long as the directory; a lease that is over needs none.
    pub fn close_all(&mut self, now: u64) -> Option<WriteId> {
        self.lapse(now);
        self.all_closed += 1;
        self.void.push_back(core::mem::take(&mut self.lines));
        let write = self.next_write + 1;
        for open in self.unanswered.values_mut() {
            open.writes.push(write);
        }
        let mut waits_for = self.unanswered.len();
        for (&node, lease) in &self.leases {
            self.number += 1;
            let word = CacheWord::Flush(LeaseName { group: self.group, term: self.term, epoch: lease.epoch });
            self.words.push((node, word.clone()));
            self.unanswered.insert(self.number, Unanswered { node, word, said: now, writes: [write].into() });
            waits_for += 1;
        }
        if waits_for == 0 {
            return None;
        }
        self.next_write = write;
        self.waiting.insert(write, waits_for);
        Some(write)
    }

    /// A write of all keys is applied.
    pub fn open_all(&mut self, now: u64) {
        self.all_closed -= 1;
        self.watchers.changed_all(now);
    }

    fn sweep(&mut self) {
        for _ in 0..SWEPT_AT_ONCE {
            let Some(lines) = self.void.front_mut() else { return };
            if lines.pop_first().is_none() {
                self.void.pop_front();
            }
        }
    }

    /// A write of these keys is applied. The node that gets the line of a single one back, if there is such.
    pub fn open(&mut self, keys: &[Bytes]) -> Option<NodeId> {
        let mut owner = None;
        for key in keys {
            let closed = self.closed.get_mut(key).expect("what is applied was closed");
            closed.writes -= 1;
            if closed.writes == 0 {
                owner = closed.owner;
                self.closed.remove(key);
            }
        }
        owner
    }

    /// Lets time pass.
    pub fn tick(&mut self, now: u64) {
        self.lapse(now);
        for open in self.unanswered.values_mut().filter(|open| now >= open.said + SAY_AGAIN) {
            open.said = now;
            self.words.push((open.node, open.word.clone()));
        }
        let (group, term) = (self.group, self.term);
        self.words.append(&mut self.watchers.tick(now, |epoch| LeaseName { group, term, epoch }));
        self.sweep();
        if self.recalling {
            self.say_recall();
        }
    }

    /// Who holds a line, in which state, in the order of the nodes.
    #[must_use]
    pub fn holders(&self, now: u64, key: &Bytes) -> Vec<(NodeId, State)> {
        let copies = self.lines.get(key).map(Vec::as_slice).unwrap_or_default();
        copies.iter().filter(|copy| self.is_live(copy, now)).map(|copy| (copy.node, copy.state)).collect()
    }

    /// Whether a key can go: no write of it is on its way.
    #[must_use]
    pub fn is_open(&self, key: &Bytes) -> bool {
        self.all_closed == 0 && !self.closed.contains_key(key)
    }

    /// Whether somebody holds the line of a key.
    #[must_use]
    pub fn is_held(&self, now: u64, key: &Bytes) -> bool {
        self.lines.get(key).is_some_and(|copies| copies.iter().any(|copy| self.is_live(copy, now)))
    }

    /// Invalidations that were sent.
    #[must_use]
    pub fn invalidations(&self) -> u64 {
        self.invalidations
    }

    /// Lines that somebody may hold.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether nobody holds a line.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }
}

fn is_invalidation(word: &CacheWord, under: &LeaseName) -> bool {
    matches!(word, CacheWord::Invalid(word) if word.lease == *under)
}
