//! What connections read without asking the engine: the lines of the node's cache.
//!
//! Charter: the engine's effects fill and purge it, on the engine's thread; connections look things up, each on its own
//! task. The simulator uses the same type.
//!
//! Invariants:
//! - A line is shown only while its generation is the group's present one, and the reader's clock, read after the
//!   request was understood, is before the ends of lease and line.
//! - When `apply` of a purge has returned, no lookup that begins later finds the line.
//! - The memory that lines take stays below the bound: the least recently used go first. What went is told to the engine,
//!   and so is what is too large for its part of the room: it pushes nothing else out.
//!
//! Subtlety: a lookup reads the lease's end before its generation, and a new lease writes them in the order: no end, new
//! generation, new end. So whoever reads a new end sees the new generation, and takes no line of an old one for valid.

use std::hash::{BuildHasherDefault, Hasher};

use bytes::Bytes;
use lru::LruCache;
use quorate_engine::effect::CacheEffect;
use quorate_protocol::id::GroupId;
use quorate_protocol::limits::{CACHE_MEMORY, PARTITIONS};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

// Not `crate::`: the tests compile this file with a `sync` of their own.
use super::sync::{AtomicU64, Mutex, Ordering};

/// Parts that are locked apart.
const SHARDS: usize = 64;
/// What a line costs beyond its key and value: two boxes, the table, the order.
const LINE_COST: usize = 160;

#[derive(Debug, Default)]
struct Lease {
    generation: AtomicU64,
    until: AtomicU64,
}

#[derive(Debug)]
struct Line {
    group: GroupId,
    generation: u64,
    until: u64,
    value: Option<Bytes>,
}

/// Hashes a key in one go.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }

    /// The length that stands before the bytes of a slice.
    fn write_usize(&mut self, length: usize) {
        self.0 ^= length as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[derive(Debug)]
struct Shard {
    lines: LruCache<Bytes, Line, BuildHasherDefault<KeyHasher>>,
    bytes: usize,
    hits: u64,
    misses: u64,
    evictions: u64,
    /// Group → a line of it was shown since that was taken last.
    shown: Vec<bool>,
}

/// How often lookups found something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Lookups that found a line.
    pub hits: u64,
    /// Lookups that did not.
    pub misses: u64,
    /// Lines that made room for others.
    pub evictions: u64,
    /// Lines that there are, valid or not.
    pub lines: usize,
    /// What they take; bytes.
    pub bytes: usize,
}

/// See the top of the file.
#[derive(Debug)]
pub struct View {
    leases: Vec<Lease>,
    shards: Vec<Mutex<Shard>>,
    shard_max: usize,
}

impl Default for View {
    fn default() -> Self {
        Self::new(PARTITIONS, CACHE_MEMORY)
    }
}

impl View {
    /// An empty view for a cluster of so many partitions, whose lines take so many bytes at the most.
    #[must_use]
    pub fn new(partitions: u16, max: usize) -> Self {
        let lines = || LruCache::unbounded_with_hasher(BuildHasherDefault::default());
        let groups = usize::from(partitions) + 1;
        let shown = || vec![false; groups];
        let shard = || Shard { lines: lines(), bytes: 0, hits: 0, misses: 0, evictions: 0, shown: shown() };
        Self {
            leases: (0..groups).map(|_| Lease::default()).collect(),
            shards: (0..SHARDS).map(|_| Mutex::new(shard())).collect(),
            shard_max: max / SHARDS,
        }
    }

    fn shard(&self, key: &[u8]) -> &Mutex<Shard> {
        // The table inside uses the lower bits of the same hash.
        let place = usize::try_from(xxh3_64(key) >> 58).expect("six bits");
        &self.shards[place]
    }

    /// The value of a key (none: it does not exist), if this node may show it at `now`, by its own clock.
    #[must_use]
    pub fn get(&self, key: &[u8], now: u64) -> Option<Option<Bytes>> {
        let mut shard = self.shard(key).lock();
        let found = self.look(&mut shard, key, now).cloned();
        *if found.is_some() { &mut shard.hits } else { &mut shard.misses } += 1;
        found
    }

    /// Hands the value of a key to `show`, if this node may show it; whether it was. A miss is not counted: `get` is
    /// asked next.
    pub fn show(&self, key: &[u8], now: u64, show: impl FnOnce(Option<&Bytes>)) -> bool {
        let mut shard = self.shard(key).lock();
        let Some(value) = self.look(&mut shard, key, now) else { return false };
        show(value.as_ref());
        shard.hits += 1;
        true
    }

    /// Counts a read that was not looked up, because it must not pass what was asked before it.
    pub fn miss(&self, key: &[u8]) {
        self.shard(key).lock().misses += 1;
    }

    /// Until when at the most this node may show a key with just this value, if it may at `now`. Counts for nothing else.
    #[must_use]
    pub fn shows(&self, key: &[u8], value: Option<&Bytes>, now: u64) -> Option<u64> {
        let shard = self.shard(key).lock();
        let line = shard.lines.peek(key).filter(|line| self.is_valid(line, now))?;
        (line.value.as_ref() == value).then_some(line.until)
    }

    /// Whether there is a line of a key, valid or not, with another value.
    #[must_use]
    pub fn holds_other(&self, key: &[u8], value: Option<&Bytes>) -> bool {
        self.shard(key).lock().lines.peek(key).is_some_and(|line| line.value.as_ref() != value)
    }

    /// The generation of a group's lines.
    #[must_use]
    pub fn generation(&self, group: GroupId) -> u64 {
        self.leases[group.slot()].generation.load(Ordering::Acquire)
    }

    /// For how many partitions it was made.
    #[must_use]
    pub fn partitions(&self) -> u16 {
        u16::try_from(self.leases.len() - 1).expect("limits.rs bounds the partitions")
    }

    fn is_valid(&self, line: &Line, now: u64) -> bool {
        let Some(lease) = self.leases.get(line.group.slot()) else { return false };
        // In this order: see the top of the file.
        let until = lease.until.load(Ordering::Acquire);
        let valid = lease.generation.load(Ordering::Acquire) == line.generation;
        valid && now < until && now < line.until
    }

    fn look<'a>(&self, shard: &'a mut Shard, key: &[u8], now: u64) -> Option<&'a Option<Bytes>> {
        let line = shard.lines.get(key)?;
        if !self.is_valid(line, now) {
            return None;
        }
        shard.shown[line.group.slot()] = true;
        Some(&line.value)
    }

    /// Does what the engine wants done. What made room for others is added to `evicted`.
    pub fn apply(&self, effect: CacheEffect, evicted: &mut Vec<(GroupId, Bytes)>) {
        match effect {
            CacheEffect::Lease { group, generation, until } => self.set_lease(group, generation, until),
            CacheEffect::Purge { keys, .. } => {
                for key in keys {
                    let mut shard = self.shard(&key).lock();
                    if let Some(line) = shard.lines.pop(&key) {
                        shard.bytes -= cost(&key, &line);
                    }
                }
            }
            CacheEffect::Fill { group, generation, key, value, until } => {
                self.fill(key, Line { group, generation, until, value }, evicted);
            }
        }
    }

    fn set_lease(&self, group: GroupId, generation: u64, until: u64) {
        let lease = &self.leases[group.slot()];
        if lease.generation.load(Ordering::Relaxed) != generation {
            lease.until.store(0, Ordering::Release);
            lease.generation.store(generation, Ordering::Release);
        }
        lease.until.store(until, Ordering::Release);
    }

    fn fill(&self, key: Bytes, line: Line, evicted: &mut Vec<(GroupId, Bytes)>) {
        let mut shard = self.shard(&key).lock();
        if let Some(old) = shard.lines.pop(&key) {
            shard.bytes -= cost(&key, &old);
        }
        if cost(&key, &line) > self.shard_max {
            return evicted.push((line.group, key));
        }
        shard.bytes += cost(&key, &line);
        shard.lines.push(key, line);
        while shard.bytes > self.shard_max
            && let Some((key, old)) = shard.lines.pop_lru()
        {
            shard.bytes -= cost(&key, &old);
            shard.evictions += 1;
            evicted.push((old.group, key));
        }
    }

    /// Groups of which lines were shown since it was asked last: their leases are worth being kept.
    pub fn take_shown(&self) -> Vec<GroupId> {
        let mut all = vec![false; self.leases.len()];
        for shard in &self.shards {
            for (all, shown) in all.iter_mut().zip(&mut shard.lock().shown) {
                *all |= std::mem::take(shown);
            }
        }
        (0..).zip(all).filter_map(|(slot, shown)| shown.then_some(GroupId(slot))).collect()
    }

    /// Of what was evicted, what has not come back since.
    pub fn keep_gone(&self, evicted: &mut Vec<(GroupId, Bytes)>) {
        evicted.retain(|(_, key)| !self.shard(key).lock().lines.contains(key));
    }

    /// What lines may take; bytes.
    #[must_use]
    pub fn max(&self) -> usize {
        self.shard_max * SHARDS
    }

    /// What has been counted.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for shard in &self.shards {
            let shard = shard.lock();
            counts.hits += shard.hits;
            counts.misses += shard.misses;
            counts.evictions += shard.evictions;
            counts.lines += shard.lines.len();
            counts.bytes += shard.bytes;
        }
        counts
    }
}

fn cost(key: &[u8], line: &Line) -> usize {
    LINE_COST + key.len() + line.value.as_ref().map_or(0, Bytes::len)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: GroupId = GroupId(1);

    fn fill(view: &View, key: &str, value: &str, generation: u64) -> Vec<(GroupId, Bytes)> {
        let mut evicted = Vec::new();
        let (key, value) = (Bytes::copy_from_slice(key.as_bytes()), Bytes::copy_from_slice(value.as_bytes()));
        let fill = CacheEffect::Fill { group: GROUP, generation, key, value: Some(value), until: u64::MAX };
        view.apply(fill, &mut evicted);
        evicted
    }

    fn lease(view: &View, generation: u64, until: u64) {
        view.apply(CacheEffect::Lease { group: GROUP, generation, until }, &mut Vec::new());
    }

    #[test]
    fn a_line_is_shown_within_its_lease_and_under_no_other() {
        let view = View::new(1, 1 << 20);
        fill(&view, "k", "v", 1);
        assert_eq!(view.get(b"k", 5), None, "there is no lease");
        lease(&view, 1, 10);
        assert_eq!(view.get(b"k", 9), Some(Some("v".into())));
        assert_eq!(view.get(b"k", 10), None, "it is over");
        lease(&view, 1, 20);
        assert_eq!(view.get(b"k", 10), Some(Some("v".into())), "it goes on");
        lease(&view, 2, 30);
        assert_eq!(view.get(b"k", 10), None, "another lease");
        fill(&view, "k", "w", 2);
        assert_eq!(view.get(b"k", 10), Some(Some("w".into())));
        view.apply(CacheEffect::Purge { group: GROUP, keys: vec!["k".into()] }, &mut Vec::new());
        assert_eq!(view.get(b"k", 10), None);
        assert_eq!((view.counts().hits, view.counts().misses, view.counts().bytes), (3, 4, 0));
    }

    #[test]
    fn what_is_too_large_pushes_nothing_out_and_is_named() {
        let view = View::new(1, SHARDS * 1000);
        lease(&view, 1, 10);
        let keys: Vec<String> = (0..SHARDS * 2).map(|n| n.to_string()).collect();
        keys.iter().for_each(|key| drop(fill(&view, key, "", 1)));
        let before = view.counts();
        let large = "v".repeat(1000);
        for key in &keys {
            let text = Bytes::copy_from_slice(key.as_bytes());
            assert_eq!(fill(&view, key, &large, 1), [(GROUP, text)]);
            assert_eq!(view.get(key.as_bytes(), 1), None, "the older value is gone");
        }
        assert_eq!((before.evictions, view.counts().evictions), (0, 0));
        assert_eq!((view.counts().lines, view.counts().bytes), (0, 0));
    }

    #[test]
    fn the_least_recently_used_make_room_and_are_named() {
        let view = View::new(1, SHARDS * 3 * (LINE_COST + 2));
        lease(&view, 1, 10);
        let same_shard: Vec<String> = (0..)
            .map(|n| char::from_u32(0x100 + n).expect("a letter").to_string())
            .filter(|key| xxh3_64(key.as_bytes()) >> 58 == 7)
            .take(4)
            .collect();
        for key in &same_shard[..3] {
            assert_eq!(fill(&view, key, "", 1), []);
        }
        assert!(view.get(same_shard[0].as_bytes(), 1).is_some());
        let evicted = fill(&view, &same_shard[3], "", 1);
        let second = Bytes::copy_from_slice(same_shard[1].as_bytes());
        assert_eq!(evicted, [(GROUP, second.clone())]);
        let mut gone = vec![(GROUP, second), (GROUP, Bytes::copy_from_slice(same_shard[0].as_bytes()))];
        view.keep_gone(&mut gone);
        assert_eq!(gone, evicted, "what came back has not gone");
        assert_eq!(view.counts().evictions, 1);
    }
}
