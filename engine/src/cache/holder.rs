//! A node's side: the leases that it has from the homes of the groups, and the lines that it keeps under them.
//!
//! Charter: asks for leases when they are wanted, takes grants, obeys invalidations, and tells the read view what to do.
//! It knows which lines there are, not what is in them.
//!
//! Invariants:
//! - A lease is counted from when it was asked for, by this node's clock, so it ends here before it does at the home.
//! - Whatever the view holds is known here. An invalidation is answered behind the effect that purges the view.
//! - Before this node sends a write of a key, its own line is gone. It comes back with the answer at the earliest.
//! - No grant is taken that is older than the last invalidation of its key (`floors`).
//!
//! Lines that this node writes by itself are the business of `owning`.
//!
//! A lease goes on while its lines are read (`KEPT`). Reads from lines never come here: the view says which groups' it has shown.
//!
//! Subtlety: a lease that ends is a generation that ends: the view compares one number, and nobody visits the lines. What
//! is left of them here is taken apart in portions.

mod early;
mod floors;
mod owning;
#[cfg(feature = "faults")]
mod walk;

use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::cache::{
    CacheWord, Changed, Evicted, Grant, Invalidation, LeaseGranted, LeaseName, LeaseWanted, Noted, Purged,
    WISH,
};
use quorate_protocol::id::{Boot, GroupId, NodeId, Term};

use super::dirty::Dirty;
use super::line::{Event, State};
use super::lines::{Line, Lines};
use super::{CacheEffect, TrackEffect, Tracked};
use crate::effect::{Effect, Effects, Level, TICK};
use early::Early;
use floors::Floors;
use owning::Owed;
pub(super) use owning::Own;

/// A lease that has less left is asked for anew; microseconds.
const RENEW_BELOW: u64 = 6 * TICK;
/// A word that was not answered is said again after this; microseconds.
const SAY_AGAIN: u64 = 2 * TICK;
/// A lease goes on for so long after something was last read under it, if there are lines; microseconds. Whoever looks
/// every few seconds finds the line there, and a node that nobody asks any more soon costs nothing.
const KEPT: u64 = 10_000_000;
/// The same without lines: what was asked for may still bring one.
const KEPT_EMPTY: u64 = 3 * TICK;
/// Entries of void lines that a tick takes apart.
const SWEPT_AT_ONCE: usize = 4096;

/// A lease that this node has.
#[derive(Debug, Clone, Copy)]
struct Lease {
    epoch: u64,
    generation: u64,
    until: u64,
}

/// What this node has of one group.
#[derive(Debug, Clone, Default)]
struct Home {
    leader: Option<NodeId>,
    term: Term,
    lease: Option<Lease>,
    lines: Lines,
    /// When somebody last read a key of the group here, from a line or not, or wrote a line that is owned; 0: not yet.
    read: u64,
    /// When it last asked for the lease or its renewal, and when for the first time since it has had none; 0: not yet.
    asked: u64,
    since: u64,
    /// The home tells of every write, since a grant under the present lease.
    watched: bool,
    /// Its last invalidations.
    floors: Floors,
}

/// A line that has come with an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fill {
    /// The key.
    pub key: Bytes,
    /// Its value; none: it does not exist.
    pub value: Option<Bytes>,
    /// What was granted.
    pub grant: Grant,
    /// When it was asked for.
    pub asked: u64,
    /// It was written here, not read.
    pub written: bool,
}

/// See the top of the file.
#[derive(Debug, Clone)]
pub struct Holder {
    boot: Boot,
    homes: Vec<Home>,
    generation: u64,
    /// Evictions that no home has heard of.
    evicted: BTreeMap<(NodeId, LeaseName), Vec<(Bytes, u64)>>,
    void: VecDeque<Lines>,
    /// Lines that have come before their leases.
    early: Early,
    /// What was acknowledged here and not brought to its home.
    dirty: Dirty,
    /// What homes are to hear when that has changed.
    owed: Vec<Owed>,
    /// The node is about to stop.
    leaving: bool,
    /// Invalidations that were heard.
    invalidations: u64,
    words: Vec<(NodeId, CacheWord)>,
    effects: Effects,
    /// What is wanted for clients that keep values themselves, and since when.
    tracked: Tracked,
    tracked_since: u64,
    #[cfg(feature = "faults")]
    faults: super::Faults,
}

impl Home {
    /// Whether the lease is worth being renewed.
    fn is_read(&self, now: u64) -> bool {
        now <= self.read + if self.lines.is_empty() { KEPT_EMPTY } else { KEPT }
    }
}

fn group_of(slot: usize) -> GroupId {
    GroupId(u16::try_from(slot).expect("limits.rs bounds the partitions"))
}

impl Holder {
    /// The holder of a node that starts, in a cluster of so many partitions.
    #[must_use]
    pub fn new(boot: Boot, partitions: u16) -> Self {
        Self {
            boot,
            homes: (0..=partitions).map(|_| Home::default()).collect(),
            generation: 0,
            evicted: BTreeMap::new(),
            void: VecDeque::new(),
            early: Early::default(),
            dirty: Dirty::default(),
            owed: Vec::new(),
            leaving: false,
            invalidations: 0,
            words: Vec::new(),
            effects: Effects::new(),
            tracked: Tracked::Nothing,
            tracked_since: 0,
            #[cfg(feature = "faults")]
            faults: super::Faults::default(),
        }
    }

    /// Switches deliberate bugs on.
    #[cfg(feature = "faults")]
    pub fn set_faults(&mut self, faults: &super::Faults) {
        self.faults = faults.clone();
        self.dirty.late = faults.absorbed_late;
    }

    /// What is to be said to homes.
    pub fn take_words(&mut self) -> Vec<(NodeId, CacheWord)> {
        core::mem::take(&mut self.words)
    }

    /// What the shell is to do.
    pub fn take_effects(&mut self, fx: &mut Effects) {
        fx.append(&mut self.effects);
    }

    fn effect(&mut self, effect: CacheEffect) {
        self.effects.push(Effect::Cache(effect));
    }

    /// Where a group is led. Another term is another home.
    pub fn set_route(&mut self, group: GroupId, leader: Option<NodeId>, term: Term) {
        let home = &mut self.homes[group.slot()];
        if (home.leader, home.term) == (leader, term) {
            return;
        }
        if home.term != term {
            self.end(group);
            self.homes[group.slot()].floors.begin(term);
        }
        let home = &mut self.homes[group.slot()];
        (home.leader, home.term, home.asked) = (leader, term, 0);
    }

    /// The lease of a group is over, and with it all that was granted under it.
    fn end(&mut self, group: GroupId) {
        drop(self.early.take(group));
        let home = &mut self.homes[group.slot()];
        let lines = core::mem::take(&mut home.lines);
        (home.asked, home.since, home.watched) = (0, 0, false);
        if home.lease.take().is_some() {
            if self.tracked == Tracked::Everything {
                self.effects.push(Effect::Track(TrackEffect::Gap));
            }
            self.effects.push(Effect::Cache(CacheEffect::Lease { group, generation: 0, until: 0 }));
        }
        if !lines.is_empty() {
            let line = format!("{} lines of group {} have lapsed. State -> I", lines.len(), group.0);
            self.effects.push(Effect::Log(Level::Debug, line));
            self.void.push_back(lines);
        }
        self.bring_all(group);
    }

    /// The epoch under which a line of the group would be kept; 0 while there is no lease: one is asked for then.
    pub fn epoch(&mut self, now: u64, group: GroupId) -> u64 {
        let home = &mut self.homes[group.slot()];
        home.read = now;
        if let Some(lease) = home.lease.filter(|lease| now < lease.until) {
            return lease.epoch;
        }
        self.ask(now, group);
        0
    }

    /// What a read of one key of the group, which is about to leave, says of the line: the epoch, or without a lease a wish
    /// for it.
    pub fn wish(&mut self, now: u64, group: GroupId) -> u64 {
        let home = &mut self.homes[group.slot()];
        home.read = now;
        if let Some(lease) = home.lease.filter(|lease| now < lease.until) {
            return lease.epoch;
        }
        // What is granted is counted from here; a word of its own would say the same.
        if home.since == 0 {
            home.since = now;
        }
        WISH | now
    }

    /// Lines of these groups were read.
    pub fn shown(&mut self, now: u64, groups: &[GroupId]) {
        for group in groups {
            self.homes[group.slot()].read = now;
        }
    }

    fn ask(&mut self, now: u64, group: GroupId) {
        let home = &mut self.homes[group.slot()];
        let Some(leader) = home.leader.filter(|_| now >= home.asked + SAY_AGAIN) else { return };
        home.asked = now;
        if home.since == 0 {
            home.since = now;
        }
        let epoch = home.lease.map_or(0, |lease| lease.epoch);
        let lease = LeaseName { group, term: home.term, epoch };
        let watch = self.tracked == Tracked::Everything;
        self.words.push((leader, CacheWord::Want(LeaseWanted { lease, boot: self.boot, sent: now, watch })));
    }

    /// Takes a home's word.
    pub fn hear(&mut self, now: u64, from: NodeId, word: CacheWord) {
        match word {
            CacheWord::Lease(granted) => self.granted(now, &granted),
            CacheWord::Invalid(invalidation) => self.invalidated(from, invalidation),
            CacheWord::Recall(lease) => self.recalled(from, lease),
            CacheWord::Flush(lease) => {
                if self.tracked > Tracked::Nothing {
                    self.effects.push(Effect::Track(TrackEffect::Flushed { group: lease.group }));
                }
                self.recalled(from, lease);
            }
            CacheWord::Changed(changed) => self.changed(from, changed),
            _ => {}
        }
    }

    fn recalled(&mut self, from: NodeId, lease: LeaseName) {
        if self.homes.get(lease.group.slot()).is_some_and(|home| home.term == lease.term) {
            self.end(lease.group);
        }
        let word = CacheWord::Returned(lease);
        if self.dirty.any_under(lease) && !self.answers_at_once() {
            self.owe(from, word, lease, Vec::new());
        } else {
            self.words.push((from, word));
        }
    }

    /// What is wanted for clients that keep values themselves.
    pub fn track(&mut self, now: u64, tracked: Tracked) {
        if tracked == Tracked::Everything && self.tracked != tracked {
            self.tracked_since = now;
            self.homes.iter_mut().for_each(|home| home.watched = false);
        }
        self.tracked = tracked;
        if tracked > Tracked::Nothing {
            self.homes.iter_mut().for_each(|home| home.asked = 0);
            self.ask_for_tracked(now);
        }
    }

    /// Asks for what clients that keep values themselves need, where it is not had.
    fn ask_for_tracked(&mut self, now: u64) {
        // The system group has no keys.
        for slot in 1..self.homes.len() {
            let home = &self.homes[slot];
            let lacks = match self.tracked {
                Tracked::Nothing => false,
                Tracked::Lines => home.lease.is_none(),
                Tracked::Everything => home.lease.is_none() || !home.watched,
            };
            if lacks {
                self.ask(now, group_of(slot));
            }
        }
    }

    /// A connection is about to write keys: it need not be told why their lines go.
    pub fn writing(&mut self, conn: u64, keys: &[Bytes]) {
        if self.tracked > Tracked::Nothing && !keys.is_empty() {
            let keys = keys.to_vec();
            self.effects.push(Effect::Track(TrackEffect::Writes { conn, keys }));
        }
    }

    /// Keys were written. News of another lease are of no use: clients were told to forget everything when it ended.
    fn changed(&mut self, from: NodeId, changed: Changed) {
        let Changed { lease, number, keys } = changed;
        let Some(home) = self.homes.get(lease.group.slot()) else { return };
        if home.term != lease.term || home.lease.is_none_or(|own| own.epoch != lease.epoch) {
            return;
        }
        #[cfg(feature = "faults")]
        let missed = self.faults.news_missed;
        #[cfg(not(feature = "faults"))]
        let missed = false;
        if !missed {
            let effect = if keys.is_empty() { TrackEffect::Gap } else { TrackEffect::Changed { keys } };
            self.effects.push(Effect::Track(effect));
        }
        self.words.push((from, CacheWord::Noted(Noted { lease, number })));
    }

    /// A home tells of every write from now on; what was written before may have gone unheard.
    fn watched(&mut self, granted: &LeaseGranted) {
        let home = &mut self.homes[granted.lease.group.slot()];
        let begins = granted.watch && granted.sent >= self.tracked_since && !home.watched;
        if begins && self.tracked == Tracked::Everything {
            home.watched = true;
            self.effects.push(Effect::Track(TrackEffect::Gap));
        }
    }

    fn granted(&mut self, now: u64, granted: &LeaseGranted) {
        let group = granted.lease.group;
        let Some(home) = self.homes.get(group.slot()) else { return };
        let mine = (granted.boot, granted.lease.term) == (self.boot, home.term);
        // What was asked for before the last lease was over is of no use.
        if !mine || home.since == 0 || granted.sent < home.since || granted.sent > now {
            return;
        }
        let (epoch, until) = (granted.lease.epoch, granted.sent + granted.length);
        #[cfg(feature = "faults")]
        let now =
            if self.faults.lapsed_renewed { now.min(home.lease.map_or(now, |l| l.until - 1)) } else { now };
        let goes_on = home.lease.filter(|lease| lease.epoch == epoch && now < lease.until);
        if goes_on.is_some() {
            self.watched(granted);
        }
        if until <= now || goes_on.is_some_and(|lease| until <= lease.until) {
            return;
        }
        let Some(home) = self.homes.get(group.slot()) else { return };
        let since = home.since;
        let early = self.early.take(group);
        if goes_on.is_none() {
            self.end(group);
            self.generation += 1;
        }
        let generation = goes_on.map_or(self.generation, |lease| lease.generation);
        let home = &mut self.homes[group.slot()];
        (home.asked, home.since) = (0, since);
        home.lease = Some(Lease { epoch, generation, until });
        self.effect(CacheEffect::Lease { group, generation, until });
        self.watched(granted);
        for fill in early {
            self.fill(now, fill);
        }
    }

    fn invalidated(&mut self, from: NodeId, invalidation: Invalidation) {
        let Invalidation { lease, number, keys } = invalidation;
        let Some(home) = self.homes.get_mut(lease.group.slot()) else { return };
        self.invalidations += 1;
        let mut purged = Vec::new();
        let mut unbrought = Vec::new();
        for key in &keys {
            if self.dirty.has_under(key, lease, number) {
                unbrought.push(key.clone());
            }
            home.floors.raise(key, lease.term, number);
            // A line that was granted later is not meant.
            let line = home.lines.get(key).filter(|line| home.term == lease.term && line.number < number);
            if line.is_some() {
                home.lines.remove(key);
                let line = format!("Received INVAL for {}. State -> I", as_text(key));
                self.effects.push(Effect::Log(Level::Info, line));
                purged.push(key.clone());
            }
        }
        #[cfg(feature = "faults")]
        if self.faults.kept_line {
            purged.clear();
        }
        if !purged.is_empty() {
            self.effect(CacheEffect::Purge { group: lease.group, keys: purged });
        }
        let word = CacheWord::Purged(Purged { lease, number });
        if unbrought.is_empty() || self.answers_at_once() {
            self.words.push((from, word));
        } else {
            self.owe(from, word, lease, unbrought);
        }
    }

    /// Whether the deliberate bug is on that answers before anything is brought.
    fn answers_at_once(&self) -> bool {
        #[cfg(feature = "faults")]
        return self.faults.purged_unbrought;
        #[cfg(not(feature = "faults"))]
        return false;
    }

    /// A write of these keys is about to leave: drops the lines. Answers the grant that was given up, if it is of one key.
    /// A line with unbrought writes stays until the home asks for it: they come before this one.
    pub fn give_up(&mut self, group: GroupId, keys: &[Bytes]) -> u64 {
        #[cfg(feature = "faults")]
        if self.faults.own_line_kept {
            let lines = &self.homes[group.slot()].lines;
            return keys.first().and_then(|key| lines.get(key)).map_or(0, |line| line.number);
        }
        let home = &mut self.homes[group.slot()];
        let mut gone = Vec::new();
        let mut number = 0;
        for key in keys {
            let is_brought = |line: &Line| line.own.is_none() || !self.dirty.has(key);
            if home.lines.get(key).is_some_and(is_brought) {
                number = home.lines.remove(key).map_or(0, |line| line.number);
                gone.push(key.clone());
            }
        }
        if gone.is_empty() {
            return 0;
        }
        self.effect(CacheEffect::Purge { group, keys: gone });
        if keys.len() == 1 { number } else { 0 }
    }

    /// A line has come with an answer. Whether it is kept.
    pub fn fill(&mut self, now: u64, fill: Fill) -> bool {
        if self.is_early(now, &fill) {
            self.early.wait(now, fill);
            return false;
        }
        let Fill { key, value, grant, asked, written } = fill;
        let LeaseName { group, term, epoch } = grant.lease;
        let Some(home) = self.homes.get_mut(group.slot()) else { return false };
        let lease = home.lease.filter(|lease| lease.epoch == epoch && home.term == term && now < lease.until);
        let overtaken = home.floors.is_above(&key, term, grant.number);
        #[cfg(feature = "faults")]
        let overtaken = overtaken && !self.faults.late_fill;
        let older = home.lines.get(&key).is_some_and(|line| line.number > grant.number);
        let until = grant.left.map_or(u64::MAX, |left| asked.saturating_add(left));
        let Some(lease) = lease.filter(|_| !overtaken && !older && now < until) else { return false };
        let before = home.lines.get(&key).map_or(State::Invalid, |line| line.state);
        let event = match (grant.exclusive, written) {
            (true, true) => Event::Written,
            (true, false) => Event::ReadAlone,
            (false, _) => Event::ReadShared,
        };
        let state = before.after(event).expect("every line can be read and written");
        let line = format!("{}: State {} -> {}", as_text(&key), before.letter(), state.letter());
        self.effects.push(Effect::Log(Level::Debug, line));
        let own = grant.owned.then(|| Own::new(&grant, value.as_ref().map_or(0, Bytes::len)));
        if own.is_some() {
            self.dirty.supersede(&key);
        }
        home.lines.insert(key.clone(), Line { number: grant.number, state, own });
        self.effect(CacheEffect::Fill { group, generation: lease.generation, key, value, until });
        true
    }

    /// Whether a line has come before the lease under which it was granted: the two take different ways. A lease that comes under
    /// another name is none for it.
    fn is_early(&self, now: u64, fill: &Fill) -> bool {
        let LeaseName { group, term, .. } = fill.grant.lease;
        self.homes.get(group.slot()).is_some_and(|home| {
            let has = home.lease.is_some_and(|lease| now < lease.until);
            home.term == term && home.since > 0 && !has
        })
    }

    /// The view has dropped lines to make room.
    pub fn evicted(&mut self, lines: Vec<(GroupId, Bytes)>) {
        for (group, key) in lines {
            let home = &mut self.homes[group.slot()];
            let (Some(line), Some(leader), Some(lease)) = (home.lines.remove(&key), home.leader, home.lease)
            else {
                continue;
            };
            let name = LeaseName { group, term: home.term, epoch: lease.epoch };
            if self.dirty.has_under(&key, name, u64::MAX) {
                // The home hears of it when it has what was acknowledged.
                if let Some(entry) = self.dirty.get_mut(&key) {
                    entry.evicted = Some(leader);
                }
                self.dirty.bring(&key);
                continue;
            }
            self.evicted.entry((leader, name)).or_default().push((key, line.number));
        }
    }

    /// Lets time pass.
    pub fn tick(&mut self, now: u64) {
        for ((leader, lease), lines) in core::mem::take(&mut self.evicted) {
            self.words.push((leader, CacheWord::Evicted(Evicted { lease, lines })));
        }
        let tracked = self.tracked > Tracked::Nothing;
        for slot in 0..self.homes.len() {
            let group = group_of(slot);
            let home = &self.homes[slot];
            let left = home.lease.map(|lease| lease.until.saturating_sub(now));
            match left {
                #[cfg(feature = "faults")]
                Some(0) if self.faults.lapsed_renewed => self.ask(now, group),
                Some(0) => self.end(group),
                // Unless somebody needs it, it may end.
                Some(left) if left < RENEW_BELOW && (home.is_read(now) || tracked || self.owes(group)) => {
                    self.ask(now, group);
                }
                _ => {}
            }
        }
        self.early.forget_late(now);
        self.dirty.bring_due(now);
        self.ask_for_tracked(now);
        self.sweep();
    }

    fn sweep(&mut self) {
        for _ in 0..SWEPT_AT_ONCE {
            let Some(lines) = self.void.front_mut() else { return };
            if lines.pop_first().is_none() {
                self.void.pop_front();
            }
        }
    }

    /// Lines that are kept here.
    #[must_use]
    pub fn lines(&self) -> usize {
        self.homes.iter().map(|home| home.lines.len()).sum()
    }

    /// Lines that are kept here in a state.
    #[must_use]
    pub fn lines_in(&self, state: State) -> usize {
        self.homes.iter().map(|home| home.lines.in_state(state)).sum()
    }

    /// Invalidations that were heard.
    #[must_use]
    pub fn invalidations(&self) -> u64 {
        self.invalidations
    }
}

/// A key as a log line shows it: in ASCII, so that no key can look like the end of a line.
fn as_text(key: &[u8]) -> String {
    key.escape_ascii().to_string()
}
