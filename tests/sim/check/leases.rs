//! Property: while somebody may rely on a leader's lease, nobody else leads the group in a later term
//! (engine/src/consensus/lease.rs).
//!
//! Subtlety: the lease is held against the world's time, as its node's own clock measures it. A node that is frozen or
//! killed has it until then, unless it has itself given it up before it handed over.

use std::collections::BTreeMap;

use quorate_engine::consensus::Role;
use quorate_engine::engine::GroupReport;
use quorate_protocol::id::{GroupId, Term};

use super::Verdict;

/// A lease as it was last seen.
#[derive(Debug, Clone, Copy)]
struct Held {
    term: Term,
    /// The world's time of its end.
    until: u64,
}

/// The leases that nodes have shown.
#[derive(Debug, Default)]
pub struct Leases {
    held: BTreeMap<(GroupId, usize), Held>,
    seen: u64,
}

impl Leases {
    /// A node says what it is; its lease ends at the world's time `until`.
    pub fn saw(&mut self, time: u64, node: usize, report: &GroupReport, until: u64) -> Verdict {
        let key = (report.group, node);
        if report.lease > 0 {
            self.seen += 1;
            self.held.insert(key, Held { term: report.term, until });
        } else if report.role == Role::Leader && self.held.get(&key).is_some_and(|h| h.term == report.term) {
            self.held.remove(&key);
        }
        if report.role != Role::Leader {
            return Ok(());
        }
        let of_group = self.held.range((report.group, 0)..=(report.group, usize::MAX));
        for (&(_, holder), held) in of_group {
            if holder != node && held.term < report.term && held.until > time {
                return Err(format!(
                    "node {} leads group {} in term {} while node {} may rely on its lease of term {} for {} us",
                    node + 1,
                    report.group.0,
                    report.term,
                    holder + 1,
                    held.term,
                    held.until - time
                ));
            }
        }
        Ok(())
    }

    /// How often a lease was seen.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.seen
    }
}
