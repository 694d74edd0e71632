//! How much room commands need, and which keys can make some.
//!
//! Subtlety: rows lie in the order of their names' hashes, so any run of them is a fair sample.

use alloc::format;
use bytes::Bytes;
use quorate_protocol::limits::{STORE_ROW, VALUE_MAX};
use quorate_protocol::op::{FencedSet, MSet, Op, SetRange};
use quorate_protocol::peer::Work;

use super::write::parse_integer;
use super::{Name, Store, cost, is_seen};

/// A key that can go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The key.
    pub key: Bytes,
    /// Its version.
    pub version: u64,
    /// What it costs, in bytes.
    pub cost: u64,
    /// When somebody last looked at it here, in group time.
    pub touched: u64,
}

/// What a work's growth cannot exceed, without a look at what is there.
#[must_use]
pub fn most(work: &Work) -> u64 {
    let (bytes, rows) = work.needs();
    bytes as u64 + rows as u64 * STORE_ROW
}

impl Store {
    /// Bytes that the store would grow by if the command were applied now; what makes it smaller counts as nothing.
    #[must_use]
    pub fn growth_by(&self, op: &Op, time: u64) -> u64 {
        let to = |key: &Bytes, length: usize| {
            let old = self.peek(key, time).map_or(0, |value| cost(key, value));
            (cost(key, b"") + length as u64).saturating_sub(old)
        };
        let length = |key: &Bytes| self.peek(key, time).map_or(0, Bytes::len);
        match op {
            Op::Set(op) | Op::FencedSet(FencedSet { set: op, .. }) => to(&op.key, op.value.len()),
            Op::SetBack(op) => to(&op.key, op.value.len()),
            Op::MSet(MSet { pairs, .. }) => pairs.iter().map(|(key, value)| to(key, value.len())).sum(),
            Op::Incr(op) => {
                let old = self.peek(&op.key, time).map_or(Some(0), |value| parse_integer(value));
                let sum = old.and_then(|old| old.checked_add(op.by));
                // Otherwise it is refused, and nothing changes.
                sum.map_or(0, |sum| to(&op.key, format!("{sum}").len()))
            }
            Op::Append(op) => to(&op.key, length(&op.key) + op.value.len()),
            Op::SetRange(SetRange { value, .. }) if value.is_empty() => 0,
            Op::SetRange(SetRange { key, offset, value }) => {
                let end = usize::try_from(*offset).unwrap_or(VALUE_MAX).saturating_add(value.len());
                to(key, end.min(VALUE_MAX).max(length(key)))
            }
            // Each by itself: two commands on one key may count twice.
            Op::Multi(multi) => multi.commands.0.iter().map(|op| self.growth_by(op, time)).sum(),
            _ => 0,
        }
    }

    /// A key's value. Nobody has looked at it by that.
    fn peek(&self, key: &Bytes, time: u64) -> Option<&Bytes> {
        self.rows.get(&Name::of(key)).filter(|row| is_seen(row, time)).map(|row| &row.value)
    }

    /// Bytes that a key takes, if it has this version.
    #[must_use]
    pub fn cost_of(&self, key: &Bytes, version: u64) -> u64 {
        let row = self.rows.get(&Name::of(key)).filter(|row| row.version == version);
        row.map_or(0, |row| cost(key, &row.value))
    }

    /// Keys from a place among the hashes on, round to where they began, as many as `count`.
    pub fn sample(&self, from: u64, count: usize) -> impl Iterator<Item = Sample> {
        let from = Name { hash: from, key: Bytes::new() };
        let rows = self.rows.range(from.clone()..).chain(self.rows.range(..from));
        rows.take(count).map(|(name, row)| Sample {
            key: name.key.clone(),
            version: row.version,
            cost: cost(&name.key, &row.value),
            touched: row.touched.0.get(),
        })
    }

    /// Removes keys that still have these versions.
    pub fn evict(&mut self, lines: &[(Bytes, u64)]) {
        for (key, version) in lines {
            let same = self.rows.get(&Name::of(key)).is_some_and(|row| row.version == *version);
            if same && self.remove(key) {
                self.evicted += 1;
            }
        }
    }

    /// Keys that were evicted since the node started.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.evicted
    }
}
