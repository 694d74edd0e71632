//! Property: a group has at most one leader in a term (Raft §5.2, election safety).

use std::collections::BTreeMap;

use quorate_engine::consensus::Role;
use quorate_engine::engine::GroupReport;
use quorate_protocol::id::{GroupId, Term};

use super::Verdict;

/// Who has been seen to lead.
#[derive(Debug, Default)]
pub struct Leaders {
    seen: BTreeMap<(GroupId, Term), usize>,
    /// Group → when somebody was first seen to lead it in a new term.
    pub changes: BTreeMap<GroupId, Vec<u64>>,
}

impl Leaders {
    /// A node says what it is.
    pub fn saw(&mut self, time: u64, node: usize, report: &GroupReport) -> Verdict {
        if report.role != Role::Leader {
            return Ok(());
        }
        let first = *self.seen.entry((report.group, report.term)).or_insert_with(|| {
            self.changes.entry(report.group).or_default().push(time);
            node
        });
        if first == node {
            return Ok(());
        }
        Err(format!(
            "nodes {} and {} both led group {} in term {}",
            first + 1,
            node + 1,
            report.group.0,
            report.term
        ))
    }

    /// How many terms have had a leader.
    #[must_use]
    pub fn count(&self) -> usize {
        self.seen.len()
    }
}
