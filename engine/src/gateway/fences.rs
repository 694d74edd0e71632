//! Fenced writes on their way: none leaves without a watch of its lock in its partition, so that a partition which compares the lock's
//! tokens for the first time knows which are good.
//!
//! Invariants:
//! - A watch goes along for half as long as the system group keeps it at the least, counted from before it was asked for.
//!   Then it is asked for again, so a partition always knows of a watch that is in use.
//! - What was stale when nobody held the lock is stale for ever; so that is answered here. But what was sent in a client session may
//!   have been executed before, by way of another node: its partition knows, and is told what is stale.
//! - The floor of a lock that nobody holds is the next token of all. So one that is not below it was never given to anybody, if the
//!   question came behind the request: that is answered here too, or there would be no end of asking.

use alloc::collections::{BTreeMap, BTreeSet};
use bytes::Bytes;
use quorate_protocol::id::GroupId;
use quorate_protocol::limits::FENCES_KNOWN_MAX;
use quorate_protocol::op::{Fence, Watch};
use quorate_protocol::peer::Work;
use quorate_protocol::reply::Reply;

use super::Gateway;
use super::slot::{Part, Slot};
use crate::fence::{NO_WATCH, never_given, stale};
use crate::keep::keep;

/// How long fenced writes are refused after the system group has refused a watch; microseconds.
const REFUSED_FOR: u64 = 1_000_000;
/// How long it is remembered that nobody held a lock; microseconds.
const FREE_FOR: u64 = 60_000_000;

/// A lock, and a partition that compares its tokens.
pub type Fenced = (Bytes, GroupId);

/// What the system group has said of a lock.
#[derive(Debug)]
enum Known {
    /// The partition hears of its grants.
    Watched(Watch),
    /// Nobody held it: tokens below this one are stale, others were not given yet.
    Free {
        floor: u64,
        /// When that was asked.
        asked: u64,
    },
    /// There is no watch to be had.
    Refused(Reply),
}

/// What is known of locks in partitions.
#[derive(Debug, Default)]
pub(super) struct Fences {
    /// With the time until when it counts.
    known: BTreeMap<Fenced, (u64, Known)>,
    /// Of what a watch is wanted.
    wanted: BTreeSet<Fenced>,
}

impl Fences {
    fn get(&self, now: u64, fence: &Fence, group: GroupId) -> Option<&Known> {
        let known = self.known.get(&(fence.lock.clone(), group)).filter(|(until, _)| now < *until)?;
        Some(&known.1)
    }

    fn learn(&mut self, fenced: Fenced, until: u64, known: Known) {
        if self.known.len() >= FENCES_KNOWN_MAX {
            // All at once: a request that needs several must come to have them together.
            self.known.clear();
        }
        self.known.insert((keep(fenced.0), fenced.1), (until, known));
    }
}

/// The fences of a part of a request.
fn fences(part: &Part) -> impl Iterator<Item = &Fence> {
    let op = if let Work::Op(op) = &part.work { Some(op) } else { None };
    op.into_iter().flat_map(|op| op.fences())
}

/// Whether something was asked while the request was here: it waits, and did so then.
fn is_later(asked: u64, slot: &Slot) -> bool {
    slot.parked_since != 0 && asked >= slot.parked_since
}

impl Gateway {
    /// The refusal of a fenced write that need not be sent, or cannot be.
    pub(super) fn fence_refusal(&self, now: u64, slot: &Slot) -> Option<Reply> {
        // What may have been executed already is not refused.
        let parts = slot.parts.iter().filter(|part| !part.maybe);
        let is_new = slot.client.is_none();
        let mut all = parts.flat_map(|part| fences(part).map(|fence| (fence, part.group)));
        all.find_map(|(fence, group)| match self.fences.get(now, fence, group)? {
            Known::Refused(why) => Some(why.clone()),
            Known::Free { floor, .. } if is_new && fence.token < *floor => Some(stale(fence, *floor)),
            Known::Free { asked, .. } if is_new && is_later(*asked, slot) => Some(never_given(fence)),
            Known::Free { .. } | Known::Watched(_) => None,
        })
    }

    /// Whether all watches that a part of a request needs are known; asks for those that are not.
    pub(super) fn has_watches(&mut self, now: u64, slot: &Slot, part: &Part) -> bool {
        let mut has_all = true;
        for fence in fences(part) {
            let known = match self.fences.get(now, fence, part.group) {
                Some(Known::Watched(_) | Known::Refused(_)) => true,
                // It may have been granted since. One that is no good, and may have been executed, goes to hear what became of it.
                Some(Known::Free { floor, asked }) => fence.token < *floor || is_later(*asked, slot),
                None => false,
            };
            if !known {
                self.fences.wanted.insert((keep(fence.lock.clone()), part.group));
                has_all = false;
            }
        }
        has_all
    }

    /// Whether a part waits for what the system group has not said.
    pub(super) fn lacks_watch(&self, now: u64, part: &Part) -> bool {
        fences(part).any(|fence| self.fences.get(now, fence, part.group).is_none())
    }

    /// Has the watches go along with a part.
    pub(super) fn add_watches(&self, part: &mut Part) {
        let group = part.group;
        let Work::Op(op) = &mut part.work else { return };
        for fence in op.fences_mut() {
            let known = self.fences.known.get(&(fence.lock.clone(), group));
            fence.watch = match known {
                Some((_, Known::Watched(watch))) => Some(*watch),
                Some((_, Known::Free { floor, .. })) => Some(Watch { number: NO_WATCH, floor: *floor }),
                _ => None,
            };
        }
    }

    /// What watches are wanted of.
    pub fn take_unwatched(&mut self) -> BTreeSet<Fenced> {
        core::mem::take(&mut self.fences.wanted)
    }

    /// The system group has answered who asked at `asked`: with a watch that it keeps for so many milliseconds, or, if for none,
    /// that nobody holds the lock.
    pub fn set_watch(&mut self, asked: u64, fenced: Fenced, watch: Watch, lease: u64) {
        if lease == 0 {
            let known = Known::Free { floor: watch.floor, asked };
            self.fences.learn(fenced, asked.saturating_add(FREE_FOR), known);
        } else {
            let until = asked.saturating_add(lease.saturating_mul(500));
            self.fences.learn(fenced, until, Known::Watched(watch));
        }
        self.wake = true;
    }

    /// The system group has refused a watch.
    pub fn refuse_watch(&mut self, now: u64, fenced: Fenced, why: Reply) {
        self.fences.learn(fenced, now + REFUSED_FOR, Known::Refused(why));
        self.wake = true;
    }
}
