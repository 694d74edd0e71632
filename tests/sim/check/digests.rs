//! Property: replicas that have applied the same index hold the same state (architecture.md, invariant 7).

use std::collections::BTreeMap;

use quorate_engine::engine::GroupReport;
use quorate_protocol::id::{GroupId, Index};

use super::Verdict;

/// The digests seen at each index.
#[derive(Debug, Default)]
pub struct Digests(BTreeMap<GroupId, BTreeMap<Index, (u64, usize)>>);

impl Digests {
    /// The digest that replicas had there, if one of them was seen.
    #[must_use]
    pub fn at(&self, group: GroupId, index: Index) -> Option<u64> {
        self.0.get(&group)?.get(&index).map(|(digest, _)| *digest)
    }

    /// A node reports its state.
    pub fn saw(&mut self, node: usize, report: &GroupReport) -> Verdict {
        let group = self.0.entry(report.group).or_default();
        let (digest, first) = *group.entry(report.applied).or_insert((report.digest, node));
        if digest == report.digest {
            return Ok(());
        }
        Err(format!(
            "at index {} of group {} node {} has digest {digest:016x} and node {} has {:016x}",
            report.applied,
            report.group.0,
            first + 1,
            node + 1,
            report.digest
        ))
    }
}
