//! The leases of nodes, as their home grants them and has them back.
//!
//! Charter: gives leases within the home's own, lets go what is over, and recalls all of them before the home gives leadership up.
//!
//! Invariants:
//! - A lease never goes beyond the home's own, and counts for less on its holder than here.
//! - A lease that a node does not name is not renewed: it has dropped what was granted under it. A lapsed one is never
//!   given again; epochs rise.
//! - Whoever owes an answer, to an invalidation or to news, gets no more time.

use alloc::vec::Vec;
use quorate_protocol::cache::{CacheWord, LeaseGranted, LeaseName, LeaseWanted, WISH};
use quorate_protocol::id::{Boot, NodeId};

use super::{Copy, Directory, Lease, Unanswered};
use crate::effect::TICK;

/// A lease that would be shorter is not granted; microseconds.
const SHORTEST: u64 = TICK;

impl Directory {
    /// Until when somebody may rely on a lease that was granted here.
    #[must_use]
    pub fn relied_on_until(&self) -> u64 {
        self.leases.values().map(|lease| lease.until).max().unwrap_or(0)
    }

    /// The epoch under which a read's node would keep the line; if the read wishes for a lease (`line`), the node gets one
    /// first. As `hear`.
    pub fn epoch_for(
        &mut self,
        now: u64,
        home_until: u64,
        (node, boot): (NodeId, Boot),
        line: u64,
    ) -> Option<u64> {
        if line & WISH == 0 {
            return Some(line);
        }
        let want = LeaseWanted { lease: self.name(0), boot, sent: line & !WISH, watch: false };
        self.wanted(now, home_until, node, want, false)
    }

    /// A node wants a lease; its epoch if it gets it. `says`: it says whether it wants to watch, too.
    pub(super) fn wanted(
        &mut self,
        now: u64,
        home_until: u64,
        from: NodeId,
        want: LeaseWanted,
        says: bool,
    ) -> Option<u64> {
        self.lapse(now);
        #[cfg(feature = "faults")]
        let home_until = if self.faults.beyond_home { home_until + 10 * TICK } else { home_until };
        let owes =
            self.unanswered.values().any(|open| open.node == from && now > open.said && !self.is_at_it(open))
                || self.watchers.owes(from, now);
        // Before it has given its lease back it must not get the same one again: grants that are late would fit.
        if self.recalling || self.is_recalled_from(from) || owes || home_until < now + SHORTEST {
            return None;
        }
        let known = self.leases.get(&from).filter(|lease| lease.boot == want.boot);
        let epoch = match known {
            Some(lease) if lease.epoch == want.lease.epoch => lease.epoch,
            // It has not heard of the lease that it was given, or has dropped it.
            Some(lease) if want.lease.epoch == 0 => lease.epoch,
            Some(_) => return None,
            None if self.leases.contains_key(&from) => return None,
            #[cfg(feature = "faults")]
            None if self.faults.lapsed_renewed && want.lease.epoch > 0 => want.lease.epoch,
            None if want.lease.epoch > 0 => return None,
            None => {
                self.next_epoch += 1;
                self.next_epoch
            }
        };
        self.leases.insert(from, Lease { boot: want.boot, epoch, until: home_until });
        let length = (home_until - now) / 100 * 99;
        let LeaseWanted { boot, sent, .. } = want;
        let watch = if says {
            self.watchers.wish(from, boot, epoch, sent, want.watch)
        } else {
            self.watchers.hears(from, epoch)
        };
        let granted = LeaseGranted { lease: self.name(epoch), boot, sent, length, watch };
        self.words.push((from, CacheWord::Lease(granted)));
        Some(epoch)
    }

    /// Forgets leases that are over, and lets the writes go on that waited for them.
    pub(super) fn lapse(&mut self, now: u64) {
        let over: Vec<NodeId> =
            self.leases.iter().filter(|(_, lease)| lease.until <= now).map(|(node, _)| *node).collect();
        for node in over {
            self.end(node);
        }
    }

    /// Whether a node would have answered already if the log here were faster.
    pub(super) fn is_at_it(&self, open: &Unanswered) -> bool {
        matches!(&open.word, CacheWord::Invalid(word) if self.is_brought(&word.keys))
    }

    /// A node's lease is over: what it holds is void.
    pub(super) fn end(&mut self, node: NodeId) {
        self.leases.remove(&node);
        self.forget_owner(node);
        self.watchers.end(node);
        let numbers: Vec<u64> =
            self.unanswered.iter().filter(|(_, open)| open.node == node).map(|(number, _)| *number).collect();
        for number in numbers {
            self.answered(number);
        }
    }

    pub(super) fn returned(&mut self, from: NodeId, epoch: u64) {
        if (self.recalling || self.is_recalled_from(from))
            && self.leases.get(&from).is_some_and(|lease| lease.epoch == epoch)
        {
            self.end(from);
        }
    }

    /// Whether a node is to give its lease back because of a write of all keys.
    pub(super) fn is_recalled_from(&self, node: NodeId) -> bool {
        self.unanswered.values().any(|open| open.node == node && is_recall(&open.word))
    }

    /// All leases are to come back.
    pub fn recall(&mut self, now: u64) {
        self.recalling = true;
        self.lapse(now);
        self.say_recall();
    }

    pub(super) fn say_recall(&mut self) {
        for (&node, lease) in &self.leases {
            let name = LeaseName { group: self.group, term: self.term, epoch: lease.epoch };
            self.words.push((node, CacheWord::Recall(name)));
        }
    }

    /// Whether nobody relies on a lease any more.
    #[must_use]
    pub fn is_recalled(&mut self, now: u64) -> bool {
        self.lapse(now);
        self.leases.is_empty()
    }

    /// Nothing comes of the recall: leases are granted again.
    pub fn resume(&mut self) {
        self.recalling = false;
    }

    pub(super) fn is_live(&self, copy: &Copy, now: u64) -> bool {
        self.leases.get(&copy.node).is_some_and(|lease| lease.epoch == copy.epoch && lease.until > now)
    }
}

fn is_recall(word: &CacheWord) -> bool {
    matches!(word, CacheWord::Recall(_) | CacheWord::Flush(_))
}
