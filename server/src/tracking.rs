//! What the node's clients keep of what they have read (CLIENT TRACKING), so that they are told what to drop.
//!
//! Charter: a table of key → connections, and the connections that track by prefix. Connections add to it, each on its own
//! task; the engine's effects take out of it, on the engine's thread. It hands out what is to be pushed to whom, and pushes
//! nothing itself. The simulator uses the same type.
//!
//! Invariants:
//! - A connection is in the table for a key only while the view has a line of it. A line goes before a write of its key is
//!   proposed anywhere, so nobody needs to be told of writes but through lines: an invalidation, an own write, an eviction, the
//!   end of the lease, the key's deadline.
//! - A value is looked for in the view *behind* its answer: the answer stands in the connection's output before `keep` is
//!   called, and `keep` enters the connection under the same lock under which it sees that the view shows just this value. If
//!   the line went before that, it is not seen, and the connection itself pushes right behind the answer. If it goes later, the
//!   entry is found, and the push comes through the outlet, so behind the answer too. No push is ever overtaken by the answer
//!   that it is about; that is all there is to it, wherever the answer came from (the view, this node, another).
//! - The view changes first, then the table (`apply`). So whoever looks between the two sees no line.
//! - Bounded: beyond `TRACKED_MAX` a partition's least recently read key is forgotten, and its readers are told so.
//!
//! Subtlety: an answer may have been on its way so long that the line in the view is of a later write. So not the line counts, but
//! that its value is the one that was answered. Between an invalidation and the write that it makes way for, reads come without a
//! line: a client may drop a key, read the old value once more, and be told at once to drop it again.
//!
//! What is left of connections that have gone stays until its key is written, or makes room: nobody is there to be told.

// By its path: the tests compile this file a second time, elsewhere.
#[path = "tracking/told.rs"]
mod told;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::BuildHasherDefault;

use bytes::Bytes;
use lru::LruCache;
use quorate_engine::effect::{CacheEffect, TrackEffect, Tracked};
use quorate_protocol::command::Tracks;
use quorate_protocol::id::GroupId;
use quorate_protocol::limits::{PARTITIONS, TRACKED_MAX};
use quorate_protocol::op::partition_of;

pub use told::Told;

// Not `crate::`: likewise.
use super::sync::{AtomicBool, Mutex, Ordering};
use super::view::{KeyHasher, View};

/// Keys of a partition that are named one by one when its lease ends; of more a client is told to drop everything.
const NAMED_MAX: usize = 128;
/// Entries of partitions whose lease is over that a tick takes apart.
const SWEPT_AT_ONCE: usize = 4096;

/// What a client is to drop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stale {
    /// What it has of these keys.
    Keys(Vec<Bytes>),
    /// All that it has.
    All,
}

/// Connections, and what they are to be told.
pub type Pushes = Vec<(u64, Stale)>;

/// Who has read a key.
#[derive(Debug)]
struct Entry {
    /// In order.
    readers: Vec<u64>,
    /// Until when what they have read holds at the most: the key's deadline.
    until: u64,
}

type Keys = LruCache<Bytes, Entry, BuildHasherDefault<KeyHasher>>;

/// The keys of a partition.
#[derive(Debug)]
struct Shard {
    keys: Keys,
    /// Of keys that have one.
    deadlines: BTreeSet<(u64, Bytes)>,
    /// Connection → keys that it has read.
    readers: BTreeMap<u64, usize>,
    /// The sum of those.
    pairs: usize,
}

impl Default for Shard {
    fn default() -> Self {
        let keys = LruCache::unbounded_with_hasher(BuildHasherDefault::default());
        Self { keys, deadlines: BTreeSet::new(), readers: BTreeMap::new(), pairs: 0 }
    }
}

impl Shard {
    fn add(&mut self, key: &Bytes, conn: u64, until: u64) {
        if self.keys.get(key).is_none() {
            // Copied: what was read from a client shares its memory with the read buffer.
            let entry = Entry { readers: Vec::new(), until: u64::MAX };
            self.keys.push(Bytes::copy_from_slice(key), entry);
        }
        let entry = self.keys.get_mut(key).expect("it is there now");
        if entry.until != until {
            self.deadlines.remove(&(entry.until, key.clone()));
            if until < u64::MAX {
                self.deadlines.insert((until, Bytes::copy_from_slice(key)));
            }
            entry.until = until;
        }
        if let Err(at) = entry.readers.binary_search(&conn) {
            entry.readers.insert(at, conn);
            self.pairs += 1;
            *self.readers.entry(conn).or_default() += 1;
        }
    }

    /// Forgets a key; who has read it.
    fn take(&mut self, key: &Bytes) -> Vec<u64> {
        let Some(entry) = self.keys.pop(key) else { return Vec::new() };
        self.forget(key, &entry);
        entry.readers
    }

    fn forget(&mut self, key: &Bytes, entry: &Entry) {
        if entry.until < u64::MAX {
            self.deadlines.remove(&(entry.until, key.clone()));
        }
        entry.readers.iter().for_each(|conn| self.leave(*conn));
    }

    /// A connection has one key less.
    fn leave(&mut self, conn: u64) {
        self.pairs -= 1;
        let left = self.readers.get_mut(&conn).expect("who has read a key is counted");
        *left -= 1;
        if *left == 0 {
            self.readers.remove(&conn);
        }
    }
}

/// The connections with tracking.
#[derive(Debug, Default)]
struct Clients {
    by_conn: BTreeMap<u64, Tracks>,
    tracked: Tracked,
}

/// See the top of the file.
#[derive(Debug)]
pub struct Tracking {
    partitions: u16,
    clients: Mutex<Clients>,
    /// Whether there are such connections, or were: most nodes never have one.
    used: AtomicBool,
    shards: Vec<Mutex<Shard>>,
    shard_max: usize,
    void: Mutex<Vec<Shard>>,
}

impl Default for Tracking {
    fn default() -> Self {
        Self::new(PARTITIONS, TRACKED_MAX)
    }
}

impl Tracking {
    /// An empty table for a cluster of so many partitions, that holds so many keys, each reader's apart.
    #[must_use]
    pub fn new(partitions: u16, max: usize) -> Self {
        Self {
            partitions,
            clients: Mutex::new(Clients::default()),
            used: AtomicBool::new(false),
            shards: (0..partitions).map(|_| Mutex::new(Shard::default())).collect(),
            shard_max: max / usize::from(partitions.max(1)),
            void: Mutex::new(Vec::new()),
        }
    }

    /// A connection tracks from now on, or in another way than before. `post` hears what the node needs for that, in the
    /// order in which it comes about.
    pub fn begin(&self, conn: u64, tracks: Tracks, post: impl FnOnce(Tracked)) {
        self.used.store(true, Ordering::Release);
        let mut clients = self.clients.lock();
        clients.by_conn.insert(conn, tracks);
        clients.settle(post);
    }

    /// A connection does not track any more, or is gone.
    pub fn end(&self, conn: u64, post: impl FnOnce(Tracked)) {
        let mut clients = self.clients.lock();
        if clients.by_conn.remove(&conn).is_some() {
            clients.settle(post);
        }
    }

    fn shard(&self, key: &[u8]) -> &Mutex<Shard> {
        self.shard_of(partition_of(key, self.partitions)).expect("a key's partition is one of the cluster's")
    }

    fn shard_of(&self, group: GroupId) -> Option<&Mutex<Shard>> {
        self.shards.get(group.slot().checked_sub(1)?)
    }

    /// A connection has been answered a key's value, and the answer stands in its output. Whether it will be told when that
    /// ends to hold; if not, it is to be told now. What else is to be told is added to `pushes`.
    #[must_use]
    pub fn keep(
        &self,
        view: &View,
        conn: u64,
        key: &Bytes,
        value: Option<&Bytes>,
        now: u64,
        pushes: &mut Pushes,
    ) -> bool {
        let mut shard = self.shard(key).lock();
        let Some(until) = view.shows(key, value, now) else { return false };
        shard.add(key, conn, until);
        while shard.pairs > self.shard_max
            && let Some((key, entry)) = shard.keys.pop_lru()
        {
            shard.forget(&key, &entry);
            pushes.extend(entry.readers.into_iter().map(|conn| (conn, Stale::Keys(vec![key.clone()]))));
        }
        true
    }

    /// Does what the engine wants done to the view, and finds out whom that concerns.
    pub fn apply(
        &self,
        view: &View,
        effect: CacheEffect,
        evicted: &mut Vec<(GroupId, Bytes)>,
        pushes: &mut Pushes,
    ) {
        // Looked at behind the change: a client that begins meanwhile is entered under the lock of what has changed.
        let used = || self.used.load(Ordering::Acquire);
        match effect {
            CacheEffect::Lease { group, generation, .. } => {
                let other = view.generation(group) != generation;
                view.apply(effect, evicted);
                // Whoever it is that reads: a lease is no lock, and `used` might be seen too late.
                if other {
                    self.end_group(group, pushes);
                }
            }
            CacheEffect::Purge { ref keys, .. } => {
                let keys = keys.clone();
                view.apply(effect, evicted);
                if used() {
                    self.end_keys(keys, pushes);
                }
            }
            CacheEffect::Fill { ref key, ref value, .. } => {
                // A write whose node keeps the line all along is seen by its new value only. Who began meanwhile is told
                // in any case.
                let replaced = (!used() || view.holds_other(key, value.as_ref())).then(|| key.clone());
                let before = evicted.len();
                view.apply(effect, evicted);
                if used() {
                    let gone = evicted[before..].iter().map(|(_, key)| key.clone());
                    self.end_keys(gone.chain(replaced), pushes);
                }
            }
        }
    }

    /// What the engine has to say to clients, besides what becomes of lines.
    pub fn told(&self, effect: TrackEffect, pushes: &mut Pushes) {
        match effect {
            TrackEffect::Writes { conn, keys } => self.own_write(conn, &keys),
            TrackEffect::Flushed { group } => {
                let Some(shard) = self.shard_of(group) else { return };
                let old = std::mem::take(&mut *shard.lock());
                pushes.extend(old.readers.keys().map(|conn| (*conn, Stale::All)));
                self.void.lock().push(old);
            }
            TrackEffect::Changed { keys } => self.changed(&keys, pushes),
            TrackEffect::Gap => {
                let clients = self.clients.lock();
                let all = clients.by_conn.iter().filter(|(_, tracks)| tracks.broadcast);
                pushes.extend(all.map(|(conn, _)| (*conn, Stale::All)));
            }
        }
    }

    /// Lets time pass.
    pub fn tick(&self, now: u64, pushes: &mut Pushes) {
        if !self.used.load(Ordering::Acquire) {
            return;
        }
        for shard in &self.shards {
            let mut shard = shard.lock();
            while let Some((until, _)) = shard.deadlines.first()
                && *until <= now
                && let Some((_, key)) = shard.deadlines.pop_first()
            {
                let readers = shard.take(&key);
                pushes.extend(readers.into_iter().map(|conn| (conn, Stale::Keys(vec![key.clone()]))));
            }
        }
        let mut void = self.void.lock();
        for _ in 0..SWEPT_AT_ONCE {
            let Some(shard) = void.last_mut() else { return };
            let _ = shard.deadlines.pop_first();
            if shard.keys.pop_lru().is_none() {
                void.pop();
            }
        }
    }

    fn end_keys(&self, keys: impl IntoIterator<Item = Bytes>, pushes: &mut Pushes) {
        let mut stale: BTreeMap<u64, Vec<Bytes>> = BTreeMap::new();
        for key in keys {
            for conn in self.shard(&key).lock().take(&key) {
                stale.entry(conn).or_default().push(key.clone());
            }
        }
        pushes.extend(stale.into_iter().map(|(conn, keys)| (conn, Stale::Keys(keys))));
    }

    fn end_group(&self, group: GroupId, pushes: &mut Pushes) {
        let Some(shard) = self.shard_of(group) else { return };
        let old = std::mem::take(&mut *shard.lock());
        if old.keys.len() > NAMED_MAX {
            pushes.extend(old.readers.keys().map(|conn| (*conn, Stale::All)));
        } else {
            let mut stale: BTreeMap<u64, Vec<Bytes>> = BTreeMap::new();
            for (key, entry) in &old.keys {
                for conn in &entry.readers {
                    stale.entry(*conn).or_default().push(key.clone());
                }
            }
            pushes.extend(stale.into_iter().map(|(conn, keys)| (conn, Stale::Keys(keys))));
        }
        if !old.keys.is_empty() {
            self.void.lock().push(old);
        }
    }

    /// A connection that does not want to be told of its own writes is not.
    fn own_write(&self, conn: u64, keys: &[Bytes]) {
        let quiet = |tracks: &Tracks| tracks.no_loop && !tracks.broadcast;
        if !self.clients.lock().by_conn.get(&conn).is_some_and(quiet) {
            return;
        }
        for key in keys {
            let mut shard = self.shard(key).lock();
            let Some(entry) = shard.keys.peek_mut(key) else { continue };
            let Ok(at) = entry.readers.binary_search(&conn) else { continue };
            entry.readers.remove(at);
            let last = entry.readers.is_empty();
            shard.leave(conn);
            if last {
                shard.take(key);
            }
        }
    }

    fn changed(&self, keys: &[(Bytes, u64)], pushes: &mut Pushes) {
        let clients = self.clients.lock();
        for (conn, tracks) in clients.by_conn.iter().filter(|(_, tracks)| tracks.broadcast) {
            let concerns = |key: &Bytes, by: u64| tracks.covers(key) && !(tracks.no_loop && by == *conn);
            let keys = keys.iter().filter(|(key, by)| concerns(key, *by)).map(|(key, _)| key.clone());
            let keys: Vec<Bytes> = keys.collect();
            if !keys.is_empty() {
                pushes.push((*conn, Stale::Keys(keys)));
            }
        }
    }
}

impl Clients {
    fn settle(&mut self, post: impl FnOnce(Tracked)) {
        let one = |tracks: &Tracks| if tracks.broadcast { Tracked::Everything } else { Tracked::Lines };
        let tracked = self.by_conn.values().map(one).max().unwrap_or_default();
        if self.tracked != tracked {
            self.tracked = tracked;
            post(tracked);
        }
    }
}

#[cfg(test)]
#[path = "tracking/tests.rs"]
mod tests;
