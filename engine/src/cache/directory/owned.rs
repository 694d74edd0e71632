//! Lines that their holder may write by itself (SET WRITEBACK), as their home knows them.
//!
//! Charter: grants them, has them back before anything else is done with their keys, and lets through what the owner
//! brings.
//!
//! Invariants:
//! - An owner is the only holder of its line, and nothing of the key is granted to others while it is one.
//! - An owner is one from its grant until it has answered the invalidation of its line, has given the line up in a write
//!   or an eviction, or its lease is over. Before it answers, it has brought what it acknowledged.
//! - What an owner brings (`Op::Flush`) does not wait for writes of the key that wait for that very owner. What comes
//!   of somebody who is no owner any more waits like every write.
//! - What looks at several keys together sees all of them as they are at one moment. From before it has them asked back until it
//!   is done nobody becomes the owner of one: an owner could go on writing one key, while others are seen as they become.
//!
//! Subtlety: owners are kept apart from the lines, since a write of all keys forgets those at once, while what owners
//! bring has still to pass.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::cache::Grant;
use quorate_protocol::id::NodeId;
use quorate_protocol::limits::OWNED_LINES_MAX;
use xxhash_rust::xxh3::xxh3_64;

use super::{Directory, WriteId};
#[cfg(feature = "faults")]
use crate::cache::walk::{Kind, Walk};

/// Keys whose lines are called back at once from a home that can write no more.
const DISOWNED_AT_ONCE: usize = 1024;

/// Who may write a line by itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner {
    pub(super) node: NodeId,
    pub(super) epoch: u64,
    /// Of its grant.
    pub(super) number: u64,
    /// The invalidation by which it is called back; 0: it is not.
    pub(super) recalled: u64,
    /// What it has brought and is on its way through the log.
    flushes: u32,
}

/// What is on its way that looks at several keys together: hash of a key → how many. Another key of the same hash gets no owner
/// meanwhile, and nothing worse.
#[derive(Debug, Clone, Default)]
pub(super) struct LookedAt(pub(super) BTreeMap<u64, u32>);

#[cfg(feature = "faults")]
impl Owner {
    /// Adds it to a row of numbers. See `cache/walk.rs`.
    pub(super) fn walk(self, walk: &mut Walk<'_>) {
        let Self { node, epoch, number, recalled, flushes } = self;
        let place = walk.place(Some(node));
        walk.plain(place);
        walk.one(Kind::Epoch(place), epoch);
        walk.one(Kind::Number(place), number);
        walk.one(Kind::Number(place), recalled);
        walk.plain(flushes);
    }
}

impl Directory {
    /// Something begins that looks at these keys together. What it changes itself is closed, and need not be named.
    pub fn looks(&mut self, keys: &[&Bytes]) {
        for key in keys {
            *self.looked_at.0.entry(xxh3_64(key)).or_default() += 1;
        }
    }

    /// It is done.
    pub fn looked(&mut self, keys: &[&Bytes]) {
        for key in keys {
            let hash = xxh3_64(key);
            let count = self.looked_at.0.get_mut(&hash).expect("what is done has begun");
            *count -= 1;
            if *count == 0 {
                self.looked_at.0.remove(&hash);
            }
        }
    }

    fn is_looked_at(&self, key: &Bytes) -> bool {
        !self.looked_at.0.is_empty() && self.looked_at.0.contains_key(&xxh3_64(key))
    }

    /// Whether there may be owners at all.
    #[must_use]
    pub fn has_owners(&self) -> bool {
        !self.owned.is_empty()
    }

    /// Who owns the line of a key.
    pub(super) fn owner(&self, now: u64, key: &Bytes) -> Option<Owner> {
        let lease = |owner: &&Owner| {
            let lease = self.leases.get(&owner.node);
            lease.is_some_and(|lease| lease.epoch == owner.epoch && lease.until > now)
        };
        self.owned.get(key).filter(lease).copied()
    }

    /// Whether a node owns the line of a key.
    #[must_use]
    pub fn owns(&self, now: u64, node: NodeId, key: &Bytes) -> bool {
        self.owner(now, key).is_some_and(|owner| owner.node == node)
    }

    /// The write of a key that has just been closed is one whose node wants to own the line.
    pub fn wants_to_own(&mut self, node: NodeId, key: &Bytes) {
        if let Some(closed) = self.closed.get_mut(key) {
            closed.owner = Some(node);
        }
    }

    /// Grants the line of a key to the node that has written it, as its own if that may be.
    pub fn grant_owned(&mut self, now: u64, node: NodeId, key: &Bytes) -> Option<Grant> {
        let grant = self.grant_written(now, node, key)?;
        if !grant.exclusive || self.is_looked_at(key) || self.owned.len() >= OWNED_LINES_MAX {
            return Some(grant);
        }
        let (epoch, number) = (grant.lease.epoch, grant.number);
        self.owned.insert(key.clone(), Owner { node, epoch, number, recalled: 0, flushes: 0 });
        Some(Grant { owned: true, ..grant })
    }

    /// Something of these keys is to be looked at: has their owners bring what they have, and give the lines back.
    /// None: there is no owner. Otherwise `take_ready` names it one day.
    pub fn recall_owned(&mut self, now: u64, keys: &[&Bytes]) -> Option<WriteId> {
        #[cfg(feature = "faults")]
        if self.faults.owned_read_open {
            return None;
        }
        self.lapse(now);
        let write = self.next_write + 1;
        let mut drop = BTreeMap::new();
        let mut waits_for = 0;
        for &key in keys {
            let Some(owner) = self.owner(now, key) else { continue };
            if let Some(open) = self.unanswered.get_mut(&owner.recalled) {
                if !open.writes.contains(&write) {
                    open.writes.push(write);
                    waits_for += 1;
                }
                continue;
            }
            self.forget_copies(key);
            let keys = &mut drop.entry(owner.node).or_insert((owner.epoch, Vec::new())).1;
            if !keys.contains(key) {
                keys.push(key.clone());
            }
        }
        waits_for += self.invalidate(now, drop, Some(write));
        self.wait(write, waits_for)
    }

    /// The owner's line is about to be called back: it is a copy no more.
    fn forget_copies(&mut self, key: &Bytes) {
        self.lines.remove(key);
    }

    /// Calls owned lines back, whoever may want them: the home is about to refuse writes.
    pub fn disown(&mut self, now: u64) {
        let free = |(key, owner): (&Bytes, &Owner)| (owner.recalled == 0).then(|| (key.clone(), *owner));
        let some: Vec<(Bytes, Owner)> = self.owned.iter().filter_map(free).take(DISOWNED_AT_ONCE).collect();
        let mut drop = BTreeMap::new();
        for (key, owner) in some {
            if self.owner(now, &key).is_some() {
                self.forget_copies(&key);
                drop.entry(owner.node).or_insert((owner.epoch, Vec::new())).1.push(key);
            }
        }
        self.invalidate(now, drop, None);
    }

    /// What a node brings of a key passes what waits for that node, if it is the line's owner. Whether it does; then the
    /// key is closed.
    pub fn close_flush(&mut self, now: u64, node: NodeId, key: &Bytes) -> bool {
        if !self.owns(now, node, key) {
            return false;
        }
        if let Some(owner) = self.owned.get_mut(key) {
            owner.flushes += 1;
        }
        self.closed.entry(key.clone()).or_default().writes += 1;
        true
    }

    /// What somebody has brought of a key is applied.
    pub fn open_flush(&mut self, node: NodeId, key: &Bytes) {
        self.open(core::slice::from_ref(key));
        if let Some(owner) = self.owned.get_mut(key).filter(|owner| owner.node == node) {
            owner.flushes = owner.flushes.saturating_sub(1);
        }
    }

    /// Whether an invalidation is unanswered only because what its node has brought is on its way through the log here:
    /// that is no reason to let its lease run out.
    pub(super) fn is_brought(&self, keys: &[Bytes]) -> bool {
        keys.iter().any(|key| self.owned.get(key).is_some_and(|owner| owner.flushes > 0))
    }

    /// An invalidation of these keys is answered, or its node's lease is over.
    pub(super) fn given_back(&mut self, number: u64, keys: &[Bytes]) {
        for key in keys {
            if self.owned.get(key).is_some_and(|owner| owner.recalled == number) {
                self.owned.remove(key);
            }
        }
    }

    /// A node has given up the grant of this number by itself.
    pub(super) fn given_up(&mut self, node: NodeId, key: &Bytes, number: u64) {
        if self.owned.get(key).is_some_and(|owner| (owner.node, owner.number) == (node, number)) {
            self.owned.remove(key);
        }
    }

    /// A node's lease is over.
    pub(super) fn forget_owner(&mut self, node: NodeId) {
        self.owned.retain(|_, owner| owner.node != node);
    }

    /// Whether a key's line is owned, as CACHEINFO shows it.
    #[must_use]
    pub fn is_owned(&self, now: u64, key: &Bytes) -> bool {
        self.owner(now, key).is_some()
    }
}
