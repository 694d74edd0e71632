//! What keeps a late grant from being taken: the last invalidations of a group's keys.
//!
//! Invariants:
//! - A grant that is older than the last invalidation of its key is below the floor.
//! - One group's floors say nothing of another's: terms and numbers belong to one home each.
//! - Bounded: keys share `FLOORS` places of a group. A grant that another key's invalidation voids meanwhile is only lost work.

use alloc::collections::BTreeMap;
use quorate_protocol::id::Term;
use xxhash_rust::xxh3::xxh3_64;

#[cfg(feature = "faults")]
use crate::cache::walk::{Kind, Walk};

/// Floors of a group. What is under way at one time to one node is less.
const FLOORS: u64 = 256;

/// Of one group.
#[derive(Debug, Clone, Default)]
pub(super) struct Floors(BTreeMap<u64, (Term, u64)>);

fn bucket(key: &[u8]) -> u64 {
    xxh3_64(key) % FLOORS
}

impl Floors {
    /// A key was invalidated.
    pub(super) fn raise(&mut self, key: &[u8], term: Term, number: u64) {
        let floor = self.0.entry(bucket(key)).or_default();
        *floor = (*floor).max((term, number));
    }

    /// Whether a grant of the key is older than what was invalidated.
    pub(super) fn is_above(&self, key: &[u8], term: Term, number: u64) -> bool {
        self.0.get(&bucket(key)).is_some_and(|floor| (term, number) < *floor)
    }

    /// Nothing that was granted before this term is taken any more.
    pub(super) fn begin(&mut self, term: Term) {
        self.0.retain(|_, (of, _)| *of >= term);
    }

    /// Whether an invalidation would change anything.
    #[cfg(feature = "faults")]
    pub(super) fn is_raised_by(&self, key: &[u8], term: Term, number: u64) -> bool {
        self.0.get(&bucket(key)).is_none_or(|floor| *floor < (term, number))
    }

    /// Adds them to the row of numbers of the node at this place. See `cache/walk.rs`.
    #[cfg(feature = "faults")]
    pub(super) fn walk(&self, walk: &mut Walk<'_>, place: u8) {
        walk.count(self.0.len());
        for (bucket, (term, number)) in &self.0 {
            walk.plain(*bucket);
            walk.plain(*term);
            walk.one(Kind::Number(place), *number);
        }
    }
}
