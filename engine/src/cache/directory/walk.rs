//! The directory's row of numbers. See `cache/walk.rs`.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use bytes::Bytes;
use quorate_protocol::cache::CacheWord;
use quorate_protocol::id::NodeId;

use super::super::walk::{Kind, Walk};
use super::{Closed, Copy, Directory, Lease, SAY_AGAIN, Unanswered};

impl Directory {
    /// Adds what the directory is to the row.
    pub fn walk(&self, walk: &mut Walk<'_>) {
        let Self {
            group: _,
            term,
            // New epochs, grants and writes have numbers that nothing has had before.
            next_epoch: _,
            number: _,
            next_write: _,
            leases,
            lines,
            owned,
            looked_at,
            closed,
            all_closed,
            // It is only taken apart.
            void: _,
            waiting,
            unanswered,
            ready,
            recalling,
            words,
            watchers,
            // It is only shown.
            invalidations: _,
            faults: _,
        } = self;
        assert!(ready.is_empty() && words.is_empty(), "the model takes them at once");
        assert!(looked_at.0.is_empty(), "the model has nothing that looks at several keys");
        assert!(watchers.is_empty(), "the model has no clients that keep values themselves");
        walk.plain(*term);
        walk.plain(*all_closed);
        walk.plain(*recalling);
        for (place, node) in (0..).zip(walk.order) {
            walk.plain(leases.contains_key(node));
            if let Some(Lease { boot, epoch, until }) = leases.get(node) {
                walk.plain(boot.0);
                walk.one(Kind::Epoch(place), *epoch);
                walk.left(*until);
            }
        }
        walk_copies(lines, walk);
        walk.count(owned.len());
        for (key, owner) in owned {
            walk.bytes(key);
            owner.walk(walk);
        }
        walk.count(closed.len());
        for (key, Closed { writes, owner }) in closed {
            walk.bytes(key);
            walk.plain(*writes);
            walk.node(*owner);
        }
        walk.count(waiting.len());
        for (write, count) in waiting {
            walk.one(Kind::Write, *write);
            walk.count(*count);
        }
        let mut open: Vec<(&u64, &Unanswered)> = unanswered.iter().collect();
        open.sort_unstable_by_key(|(number, open)| (walk.place(Some(open.node)), **number));
        walk.count(open.len());
        for (number, Unanswered { node, word, said, writes }) in open {
            let place = walk.place(Some(*node));
            walk.plain(place);
            walk.one(Kind::Number(place), *number);
            walk.word(place, word, 0);
            walk.passed(*said, SAY_AGAIN);
            walk.count(writes.len());
            writes.iter().for_each(|write| walk.one(Kind::Write, *write));
        }
    }

    /// Whether a word of this term can do anything here, now or ever.
    #[must_use]
    pub fn heeds(&self, from: NodeId, word: &CacheWord) -> bool {
        match word {
            // An epoch that a node does not have is one that it will never have again.
            CacheWord::Want(want) => {
                let epoch = want.lease.epoch;
                epoch == 0
                    || self.faults.lapsed_renewed
                    || self.leases.get(&from).is_some_and(|lease| lease.epoch == epoch)
            }
            CacheWord::Purged(purged) => self.unanswered.contains_key(&purged.number),
            CacheWord::Evicted(evicted) => {
                let held = |number: u64| move |copy: &Copy| (copy.node, copy.number) == (from, number);
                let known =
                    |key, number| self.lines.get(key).is_some_and(|copies| copies.iter().any(held(number)));
                let owns = |key, number| {
                    self.owned.get(key).is_some_and(|owner| (owner.node, owner.number) == (from, number))
                };
                evicted.lines.iter().any(|(key, number)| known(key, *number) || owns(key, *number))
            }
            _ => true,
        }
    }

    /// Whether an invalidation is not answered.
    #[must_use]
    pub fn waits_for(&self, number: u64) -> bool {
        self.unanswered.contains_key(&number)
    }

    /// Whether a node has this lease.
    #[must_use]
    pub fn has_lease(&self, node: NodeId, epoch: u64) -> bool {
        self.leases.get(&node).is_some_and(|lease| lease.epoch == epoch)
    }
}

/// Who holds which lines.
fn walk_copies(lines: &BTreeMap<Bytes, Vec<Copy>>, walk: &mut Walk<'_>) {
    walk.count(lines.len());
    for (key, copies) in lines {
        walk.bytes(key);
        let mut copies: Vec<&Copy> = copies.iter().collect();
        copies.sort_unstable_by_key(|copy| (walk.place(Some(copy.node)), copy.number));
        walk.count(copies.len());
        for Copy { node, epoch, number, state } in copies {
            let place = walk.place(Some(*node));
            walk.plain(place);
            walk.one(Kind::Epoch(place), *epoch);
            walk.one(Kind::Number(place), *number);
            walk.plain(*state as u8);
        }
    }
}
