//! What a directory or a holder is, as a row of numbers that says what each of them is compared with.
//!
//! Charter: for the model (`engine/tests/model`), which must know two states for the same when nothing can ever tell them apart: grants
//! that are all a hundred higher, times that are all an hour later, nodes that have changed their places. So this row has no
//! time but what is left or has passed, and no counter from which only new numbers come.
//!
//! Invariant: whatever a later step can depend on is in the row. The structures are taken apart with all their fields, so
//! that a new one does not compile until it is thought of here.

use alloc::vec::Vec;

use bytes::Bytes;
use quorate_protocol::cache::{CacheWord, LeaseName};
use quorate_protocol::id::NodeId;

/// What a number is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// With itself.
    Plain,
    /// Numbers of grants and invalidations that concern one node: with each other. The order counts.
    Number(u8),
    /// Epochs of one node's leases.
    Epoch(u8),
    /// Generations of one node's lines.
    Generation(u8),
    /// Writes that wait.
    Write,
    /// Values of keys, the newer the higher.
    Value,
    /// Versions of keys.
    Version,
    /// What one node brings of its lines, numbered by it.
    Flush(u8),
}

/// See the top of the file.
#[derive(Debug)]
pub struct Walk<'a> {
    /// The time that it is.
    pub now: u64,
    /// The nodes in the order in which they are to be looked at.
    pub order: &'a [NodeId],
    /// What was seen.
    pub row: Vec<(Kind, u64)>,
}

impl Walk<'_> {
    /// A node's place in the order; above all places if there is none.
    #[must_use]
    pub fn place(&self, node: Option<NodeId>) -> u8 {
        let at = node.and_then(|node| self.order.iter().position(|other| *other == node));
        u8::try_from(at.unwrap_or(self.order.len())).expect("few nodes")
    }

    /// A number that stands for itself.
    pub fn plain(&mut self, value: impl Into<u64>) {
        self.row.push((Kind::Plain, value.into()));
    }

    /// How many there are.
    pub fn count(&mut self, count: usize) {
        self.plain(count as u64);
    }

    /// A node.
    pub fn node(&mut self, node: Option<NodeId>) {
        let place = self.place(node);
        self.plain(place);
    }

    /// What is left until a time.
    pub fn left(&mut self, until: u64) {
        self.plain(until.saturating_sub(self.now));
    }

    /// What has passed since a time, above which it makes no difference.
    pub fn passed(&mut self, since: u64, enough: u64) {
        self.plain(self.now.saturating_sub(since).min(enough));
    }

    /// A number of one kind.
    pub fn one(&mut self, kind: Kind, value: u64) {
        self.row.push((kind, value));
    }

    /// A lease of the node at this place.
    pub fn lease(&mut self, place: u8, lease: &LeaseName) {
        self.plain(lease.term);
        self.one(Kind::Epoch(place), lease.epoch);
    }

    /// A word between the home and the node at this place, of which at most `enough` of its age counts.
    pub fn word(&mut self, place: u8, word: &CacheWord, enough: u64) {
        match word {
            CacheWord::Want(want) => {
                self.plain(1_u8);
                self.lease(place, &want.lease);
                self.passed(want.sent, enough);
            }
            CacheWord::Lease(granted) => {
                self.plain(2_u8);
                self.lease(place, &granted.lease);
                self.passed(granted.sent, enough);
                self.left(granted.sent + granted.length);
            }
            CacheWord::Invalid(invalid) => {
                self.plain(3_u8);
                self.lease(place, &invalid.lease);
                self.one(Kind::Number(place), invalid.number);
                self.count(invalid.keys.len());
                invalid.keys.iter().for_each(|key| self.bytes(key));
            }
            CacheWord::Purged(purged) => {
                self.plain(4_u8);
                self.lease(place, &purged.lease);
                self.one(Kind::Number(place), purged.number);
            }
            CacheWord::Evicted(evicted) => {
                self.plain(5_u8);
                self.lease(place, &evicted.lease);
                self.count(evicted.lines.len());
                for (key, number) in &evicted.lines {
                    self.bytes(key);
                    self.one(Kind::Number(place), *number);
                }
            }
            CacheWord::Recall(lease) => {
                self.plain(6_u8);
                self.lease(place, lease);
            }
            CacheWord::Flush(lease) => {
                self.plain(8_u8);
                self.lease(place, lease);
            }
            CacheWord::Changed(_) | CacheWord::Noted(_) => unreachable!("nobody watches in the model"),
            CacheWord::Returned(lease) => {
                self.plain(7_u8);
                self.lease(place, lease);
            }
        }
    }

    /// A value of the model's: a number.
    pub fn value(&mut self, value: Option<&Bytes>) {
        let number = value.and_then(|value| value[..].try_into().ok()).map_or(0, u64::from_le_bytes);
        self.one(Kind::Value, number);
    }

    /// A short key.
    pub fn bytes(&mut self, key: &[u8]) {
        let number = key.iter().fold(key.len() as u64, |number, byte| number << 8 | u64::from(*byte));
        self.plain(number);
    }
}
