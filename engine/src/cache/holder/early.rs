//! Lines that have come before the lease under which they were granted.
//!
//! Charter: a read of a node without a lease asks for one, and its answer brings the line. Answers come on links and leases
//! with the words of the cache, so either can be first. A line that is, waits here for a moment.
//!
//! Invariants:
//! - What waits is taken up, in its order, or dropped, when the group's next lease comes, and before any other line of the
//!   group is. So a line that has waited is as one whose link was slower: it overtakes none, and none overtakes it.
//! - When a lease ends, or the home changes, what waits is dropped.
//! - Bounded in number, bytes and time; what is dropped is only read again.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::id::GroupId;

use super::Fill;
#[cfg(feature = "faults")]
use crate::cache::walk::{Kind, Walk};
use crate::effect::TICK;

/// Lines that wait on a node.
const MOST: usize = 256;
/// What they may take; bytes.
const MOST_BYTES: usize = 4 << 20;
/// How long one waits at the most; microseconds. A lease that is still on its way then is nearly over.
const PATIENCE: u64 = 6 * TICK;

/// See the top of the file.
#[derive(Debug, Clone, Default)]
pub(super) struct Early {
    /// When it came, and what.
    fills: VecDeque<(u64, Fill)>,
    bytes: usize,
}

fn cost(fill: &Fill) -> usize {
    fill.key.len() + fill.value.as_ref().map_or(0, Bytes::len)
}

impl Early {
    /// A line waits, if there is room.
    pub(super) fn wait(&mut self, now: u64, fill: Fill) {
        if self.fills.len() < MOST && self.bytes + cost(&fill) <= MOST_BYTES {
            self.bytes += cost(&fill);
            self.fills.push_back((now, fill));
        }
    }

    /// What has waited for a lease of this group.
    pub(super) fn take(&mut self, group: GroupId) -> Vec<Fill> {
        if self.fills.is_empty() {
            return Vec::new();
        }
        let (taken, left): (VecDeque<_>, VecDeque<_>) = core::mem::take(&mut self.fills)
            .into_iter()
            .partition(|(_, fill)| fill.grant.lease.group == group);
        self.fills = left;
        self.bytes = self.fills.iter().map(|(_, fill)| cost(fill)).sum();
        taken.into_iter().map(|(_, fill)| fill).collect()
    }

    /// Drops what has waited for too long.
    pub(super) fn forget_late(&mut self, now: u64) {
        while let Some((since, fill)) = self.fills.front() {
            if now < since + PATIENCE {
                break;
            }
            self.bytes -= cost(fill);
            self.fills.pop_front();
        }
    }

    /// Adds what the node at this place has waiting to a row of numbers. See `cache/walk.rs`.
    #[cfg(feature = "faults")]
    pub(super) fn walk(&self, walk: &mut Walk<'_>, place: u8) {
        let Self { fills, bytes: _ } = self;
        walk.count(fills.len());
        for (since, Fill { key, value, grant, asked: _, written }) in fills {
            walk.passed(*since, PATIENCE);
            walk.bytes(key);
            walk.lease(place, &grant.lease);
            walk.one(Kind::Number(place), grant.number);
            walk.value(value.as_ref());
            walk.one(Kind::Version, grant.version);
            walk.plain(grant.exclusive);
            walk.plain(grant.owned);
            walk.plain(*written);
        }
    }
}
