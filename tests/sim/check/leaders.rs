//! Property: a group has at most one leader in a term (Raft §5.2, election safety).

use std::collections::BTreeMap;

use quorate_engine::consensus::Role;
use quorate_engine::engine::GroupReport;
use quorate_protocol::id::{GroupId, Term};

use super::Verdict;

/// Who has been seen to lead.
#[derive(Debug, Default)]
pub struct Leaders(BTreeMap<(GroupId, Term), usize>);

impl Leaders {
    /// A node says what it is.
    pub fn saw(&mut self, node: usize, report: &GroupReport) -> Verdict {
        if report.role != Role::Leader {
            return Ok(());
        }
        let first = *self.0.entry((report.group, report.term)).or_insert(node);
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
        self.0.len()
    }
}
