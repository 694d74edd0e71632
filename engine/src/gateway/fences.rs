//! Fenced writes on their way: none leaves without a watch of its lock in its partition, so that a partition which compares the lock's
//! tokens for the first time knows which are good.
//!
//! Invariant: a watch goes along for half as long as the system group keeps it at the least, counted from before it was asked
//! for. Then it is asked for again, so a partition always knows of a watch that is in use.

use alloc::collections::{BTreeMap, BTreeSet};
use bytes::Bytes;
use quorate_protocol::id::GroupId;
use quorate_protocol::limits::FENCES_KNOWN_MAX;
use quorate_protocol::op::Watch;
use quorate_protocol::peer::Work;
use quorate_protocol::reply::Reply;

use super::Gateway;
use super::slot::{Part, Slot};
use crate::keep::keep;

/// How long fenced writes are refused after the system group has refused a watch; microseconds.
const REFUSED_FOR: u64 = 1_000_000;

/// A lock, and a partition that compares its tokens.
pub type Fenced = (Bytes, GroupId);

/// What is known of locks in partitions.
#[derive(Debug, Default)]
pub(super) struct Fences {
    /// Until when it counts; in place of the watch, why there is none.
    known: BTreeMap<Fenced, (u64, Result<Watch, Reply>)>,
    /// Of what a watch is wanted.
    wanted: BTreeSet<Fenced>,
}

impl Fences {
    fn get(&self, now: u64, fenced: &Fenced) -> Option<&Result<Watch, Reply>> {
        self.known.get(fenced).filter(|(until, _)| now < *until).map(|(_, known)| known)
    }
}

/// The locks whose tokens a part of a request is compared with.
fn locks(part: &Part) -> impl Iterator<Item = Fenced> {
    let op = if let Work::Op(op) = &part.work { Some(op) } else { None };
    op.into_iter().flat_map(|op| op.fences()).map(|fence| (fence.lock.clone(), part.group))
}

impl Gateway {
    /// Why a fenced write cannot be sent, if the system group has said so.
    pub(super) fn fence_refusal(&self, now: u64, slot: &Slot) -> Option<Reply> {
        let refusal = |fenced: Fenced| self.fences.get(now, &fenced)?.as_ref().err().cloned();
        // What may have been executed already is not refused.
        slot.parts.iter().filter(|part| !part.maybe).flat_map(locks).find_map(refusal)
    }

    /// Whether all watches that a part needs are known; asks for those that are not.
    pub(super) fn has_watches(&mut self, now: u64, part: &Part) -> bool {
        let mut has_all = true;
        for fenced in locks(part) {
            if self.fences.get(now, &fenced).is_none() {
                self.fences.wanted.insert(fenced);
                has_all = false;
            }
        }
        has_all
    }

    /// Has the watches go along with a part.
    pub(super) fn add_watches(&self, part: &mut Part) {
        let group = part.group;
        let Work::Op(op) = &mut part.work else { return };
        for fence in op.fences_mut() {
            let known = self.fences.known.get(&(fence.lock.clone(), group));
            fence.watch = known.and_then(|(_, known)| known.as_ref().ok().copied());
        }
    }

    /// What watches are wanted of.
    pub fn take_unwatched(&mut self) -> BTreeSet<Fenced> {
        core::mem::take(&mut self.fences.wanted)
    }

    /// The system group has answered who asked for a watch at `asked`: with one that it keeps for so many milliseconds.
    pub fn set_watch(&mut self, asked: u64, fenced: Fenced, watch: Watch, lease: u64) {
        self.learn(asked, fenced, asked.saturating_add(lease.saturating_mul(500)), Ok(watch));
    }

    /// The system group has refused a watch.
    pub fn refuse_watch(&mut self, now: u64, fenced: Fenced, why: Reply) {
        self.learn(now, fenced, now + REFUSED_FOR, Err(why));
    }

    fn learn(&mut self, now: u64, fenced: Fenced, until: u64, watch: Result<Watch, Reply>) {
        let known = &mut self.fences.known;
        if known.len() >= FENCES_KNOWN_MAX {
            known.retain(|_, (until, _)| now < *until);
        }
        if known.len() >= FENCES_KNOWN_MAX {
            known.pop_first();
        }
        known.insert((keep(fenced.0), fenced.1), (until, watch));
        self.wake = true;
    }
}
