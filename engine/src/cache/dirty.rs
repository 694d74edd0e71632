//! What a node has acknowledged of the lines that it owns, and has not brought to their home yet.
//!
//! Charter: keeps the newest value of each such key, how old its oldest unbrought write is, and what of it is on its way
//! to the home. Whether a line may be written, and what comes of an answer, is `holder/owning.rs`.
//!
//! Invariants:
//! - Of a key one value at a time is on its way. What is written meanwhile goes next; what lies between is never sent.
//! - Nothing is taken on while the oldest unbrought write of the key is `DIRTY_WINDOW` old, or beyond `DIRTY_BYTES_MAX`.
//! - What is unbrought leaves here only when the home has answered: it has it, or something newer.

#[cfg(feature = "faults")]
mod walk;

use alloc::collections::{BTreeMap, BTreeSet};
use bytes::Bytes;
use quorate_protocol::cache::LeaseName;
use quorate_protocol::id::{GroupId, NodeId};
use quorate_protocol::limits::{DIRTY_BYTES_MAX, DIRTY_WINDOW};
use quorate_protocol::op::Flush;

use crate::effect::TICK;

/// How long a write may wait for company; microseconds. With the tick that it takes to notice, half of `DIRTY_WINDOW` is
/// left for the way to the home and its commit.
const GATHER: u64 = 3 * TICK / 2;
/// How long to wait before what was refused is brought again; microseconds.
const AGAIN: u64 = 2 * TICK;
/// What an entry costs beyond its key and values; bytes.
const ENTRY_COST: usize = 256;

/// What is on its way to the home.
#[derive(Debug, Clone)]
struct Flying {
    id: u64,
    value: Bytes,
    /// When the oldest write in it was acknowledged.
    since: u64,
}

/// A key with unbrought writes.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) group: GroupId,
    /// The lease and the grant under which they were acknowledged.
    pub(super) lease: LeaseName,
    pub(super) number: u64,
    /// The view has no room for the line: the home is to be told when all is brought.
    pub(super) evicted: Option<NodeId>,
    /// The version with which they began.
    base: u64,
    /// The newest value.
    value: Bytes,
    /// When the oldest of what is not on its way was acknowledged; none: everything is.
    since: Option<u64>,
    flying: Option<Flying>,
}

impl Entry {
    fn cost(&self, key: &[u8]) -> usize {
        // As long as nothing was written behind it, it is the very value that is kept.
        let flying = self.flying.as_ref().filter(|_| self.since.is_some());
        let flying = flying.map_or(0, |flying| flying.value.len());
        ENTRY_COST + 2 * key.len() + self.value.len() + flying
    }

    fn oldest(&self) -> Option<u64> {
        self.flying.as_ref().map(|flying| flying.since).or(self.since)
    }
}

/// A line that is written by its owner: how it was granted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owned {
    pub(super) group: GroupId,
    pub(super) lease: LeaseName,
    pub(super) number: u64,
    pub(super) base: u64,
}

/// What came of bringing a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Brought {
    /// The key has this version now, and it is the owner's.
    As(u64),
    /// The key has this version, by something that the owner has brought before; what is on its way was not written.
    Behind(u64),
    /// The key has been written by somebody else.
    Overwritten,
    /// Nothing is known, or it was refused.
    NotYet,
}

/// What has been counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Writes that were acknowledged without asking the home.
    pub absorbed: u64,
    /// Values that were brought to homes.
    pub flushed: u64,
    /// Keys of which acknowledged writes were lost.
    pub lost: u64,
    /// Keys with unbrought writes, now.
    pub dirty: usize,
}

/// See the top of the file.
#[derive(Debug, Clone, Default)]
pub(super) struct Dirty {
    entries: BTreeMap<Bytes, Entry>,
    /// When what is not on its way is due.
    due: BTreeSet<(u64, Bytes)>,
    bytes: usize,
    next: u64,
    flushes: alloc::vec::Vec<(GroupId, u64, Flush)>,
    counts: Counts,
    #[cfg(feature = "faults")]
    pub(super) late: bool,
}

impl Dirty {
    pub(super) fn counts(&self) -> Counts {
        Counts { dirty: self.entries.len(), ..self.counts }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn has(&self, key: &Bytes) -> bool {
        self.entries.contains_key(key)
    }

    pub(super) fn get(&self, key: &Bytes) -> Option<&Entry> {
        self.entries.get(key)
    }

    pub(super) fn get_mut(&mut self, key: &Bytes) -> Option<&mut Entry> {
        self.entries.get_mut(key)
    }

    /// Whether there are unbrought writes of a key that were acknowledged under a grant of this lease before `number`.
    pub(super) fn has_under(&self, key: &Bytes, lease: LeaseName, number: u64) -> bool {
        self.entries.get(key).is_some_and(|entry| entry.lease == lease && entry.number < number)
    }

    pub(super) fn any_under(&self, lease: LeaseName) -> bool {
        !self.entries.is_empty() && self.entries.values().any(|entry| entry.lease == lease)
    }

    /// The keys of a group.
    pub(super) fn keys_of(&self, group: GroupId) -> alloc::vec::Vec<Bytes> {
        let of_group = self.entries.iter().filter(|(_, entry)| entry.group == group);
        of_group.map(|(key, _)| key.clone()).collect()
    }

    pub(super) fn keys(&self) -> alloc::vec::Vec<Bytes> {
        self.entries.keys().cloned().collect()
    }

    /// The newest value of a key with unbrought writes.
    pub(super) fn value(&self, key: &Bytes) -> Option<&Bytes> {
        self.entries.get(key).map(|entry| &entry.value)
    }

    /// Takes a write on; whether there is room for it. `owned`: how the line was granted, if it is clean.
    pub(super) fn take_on(&mut self, now: u64, key: &Bytes, value: &Bytes, owned: Owned) -> bool {
        let bytes = ENTRY_COST + 2 * key.len() + value.len();
        let before = self.entries.get(key);
        let too_old =
            before.and_then(Entry::oldest).is_some_and(|oldest| now >= oldest + DIRTY_WINDOW * 1000);
        #[cfg(feature = "faults")]
        let too_old = too_old && !self.late;
        let grows = bytes.saturating_sub(before.map_or(0, |entry| entry.value.len() + ENTRY_COST));
        if too_old || self.bytes + grows > DIRTY_BYTES_MAX {
            return false;
        }
        let Owned { group, lease, number, base } = owned;
        let fresh = || {
            let (value, since, flying) = (Bytes::new(), None, None);
            Entry { group, lease, number, evicted: None, base, value, since, flying }
        };
        let mut entry =
            self.entries.remove(key).inspect(|entry| self.bytes -= entry.cost(key)).unwrap_or_else(fresh);
        entry.value = value.clone();
        if entry.since.is_none() {
            entry.since = Some(now);
            if entry.flying.is_none() {
                self.due.insert((now + self.gather(), key.clone()));
            }
        }
        self.bytes += entry.cost(key);
        self.entries.insert(key.clone(), entry);
        self.counts.absorbed += 1;
        true
    }

    fn gather(&self) -> u64 {
        #[cfg(feature = "faults")]
        if self.late {
            return 20 * TICK;
        }
        GATHER
    }

    /// What was acknowledged of a key has been replaced by a later write of this node's: it is brought no more.
    pub(super) fn supersede(&mut self, key: &Bytes) {
        if let Some(entry) = self.entries.remove(key) {
            self.bytes -= entry.cost(key);
        }
    }

    /// Brings what is due.
    pub(super) fn bring_due(&mut self, now: u64) {
        while let Some((due, _)) = self.due.first() {
            if *due > now {
                break;
            }
            let Some((_, key)) = self.due.pop_first() else { break };
            self.bring(&key);
        }
    }

    /// Brings what there is of a key, unless some of it is on its way.
    pub(super) fn bring(&mut self, key: &Bytes) {
        let id = self.next + 1;
        let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.flying.is_none()) else { return };
        let Some(since) = entry.since.take() else { return };
        self.next = id;
        entry.flying = Some(Flying { id, value: entry.value.clone(), since });
        let flush = Flush { key: key.clone(), value: entry.value.clone(), base: entry.base };
        self.flushes.push((entry.group, id, flush));
    }

    pub(super) fn has_flushes(&self) -> bool {
        !self.flushes.is_empty()
    }

    pub(super) fn take_flushes(&mut self) -> alloc::vec::Vec<(GroupId, u64, Flush)> {
        core::mem::take(&mut self.flushes)
    }

    /// Whether a value that is on its way is the one of this number.
    pub(super) fn is_flying(&self, key: &Bytes, id: u64) -> bool {
        let flying = self.entries.get(key).and_then(|entry| entry.flying.as_ref());
        flying.is_some_and(|flying| flying.id == id)
    }

    /// What was on its way of a key is answered. What is left of the key is brought at once if it is `urgent`. The entry,
    /// if nothing is left of it.
    pub(super) fn answered(
        &mut self,
        now: u64,
        key: &Bytes,
        brought: Brought,
        urgent: bool,
    ) -> Option<Entry> {
        let mut entry = self.entries.remove(key)?;
        self.bytes -= entry.cost(key);
        let flying = entry.flying.take();
        match brought {
            Brought::As(version) => {
                entry.base = version;
                self.counts.flushed += 1;
            }
            Brought::Behind(version) => {
                entry.base = version;
                entry.since = flying.map(|flying| flying.since).or(entry.since);
            }
            Brought::Overwritten => {
                self.counts.lost += 1;
                return Some(entry);
            }
            // The newest value goes with the age of the oldest: one value for all of them.
            Brought::NotYet => entry.since = flying.map(|flying| flying.since).or(entry.since),
        }
        let Some(since) = entry.since else { return Some(entry) };
        let due = match brought {
            Brought::NotYet => now + AGAIN,
            Brought::Behind(_) => now,
            _ => since + self.gather(),
        };
        self.bytes += entry.cost(key);
        self.entries.insert(key.clone(), entry);
        if urgent && brought != Brought::NotYet {
            self.bring(key);
        } else {
            self.due.insert((due, key.clone()));
        }
        None
    }
}
