//! Property: what a node reads back is what it wrote: everything that was reported durable, then perhaps some of
//! what was on its way, in the order in which it was submitted; never anything else (design: journal and identity).
//!
//! Logs are compared by a hash that covers each entry and all before it.

use std::collections::{BTreeMap, VecDeque};

use quorate_engine::journal::{Entry, Persist, Recovered, Row};
use quorate_protocol::id::{GroupId, Index};

use super::Verdict;
use crate::sim::trace::hash_bytes;

/// A hash over a log up to an entry.
pub type Chain = u64;

/// The next link of a chain.
#[must_use]
pub fn chain(before: Chain, entry: &Entry) -> Chain {
    hash_bytes(before ^ entry.term.wrapping_mul(0x9e37_79b9) ^ u64::from(entry.kind), &entry.data)
}

/// A log as chains: place `i` is that of entry `i + 1`.
pub type Chains = Vec<Chain>;

/// Puts an entry into a log, in place of what is there and after it.
pub fn put(log: &mut Chains, entry: &Entry) {
    log.truncate(usize::try_from(entry.index - 1).expect("logs are in memory"));
    let before = log.last().copied().unwrap_or(0);
    log.push(chain(before, entry));
}

/// What one node has written.
#[derive(Debug, Default)]
pub struct Truth {
    logs: BTreeMap<GroupId, Chains>,
    rows: BTreeMap<GroupId, Row>,
    submitted: VecDeque<Persist>,
    /// What the present start has read; nothing relies on it before the start is done.
    read: Option<(BTreeMap<GroupId, Chains>, BTreeMap<GroupId, Row>)>,
}

impl Truth {
    /// A batch is handed to the journal.
    pub fn submitted(&mut self, batch: &Persist) {
        self.submitted.push_back(batch.clone());
    }

    /// All batches up to this one are durable.
    pub fn durable(&mut self, seq: u64) {
        while self.submitted.front().is_some_and(|batch| batch.seq <= seq) {
            let batch = self.submitted.pop_front().expect("it was just seen");
            self.rows.extend(batch.rows);
            for entry in &batch.entries {
                put(self.logs.entry(entry.group).or_default(), entry);
            }
        }
    }

    /// Whether an entry with everything before it is durable here.
    #[must_use]
    pub fn has(&self, group: GroupId, index: Index, chain: Chain) -> bool {
        let place = usize::try_from(index - 1).expect("logs are in memory");
        self.logs.get(&group).and_then(|log| log.get(place)) == Some(&chain)
    }

    /// The start is done: the node goes on from what it has read.
    pub fn started(&mut self) {
        if let Some((logs, hard)) = self.read.take() {
            (self.logs, self.rows) = (logs, hard);
            self.submitted.clear();
        }
    }

    /// The node has read its directory: compares.
    pub fn recovered(&mut self, recovered: &Recovered) -> Verdict {
        let mut found: BTreeMap<GroupId, Chains> = BTreeMap::new();
        for (&group, entries) in &recovered.entries {
            let log = found.entry(group).or_default();
            entries.iter().for_each(|entry| put(log, entry));
        }
        self.check_hard(recovered)?;
        let mut expected = self.logs.clone();
        let ends =
            |log: Option<&Chains>| log.map_or((0, 0), |log| (log.len(), log.last().copied().unwrap_or(0)));
        let differing = |expected: &BTreeMap<GroupId, Chains>| {
            let groups = found.keys().chain(expected.keys());
            groups.copied().find(|group| ends(found.get(group)) != ends(expected.get(group)))
        };
        let mut late = self.submitted.iter().flat_map(|batch| &batch.entries);
        while let Some(group) = differing(&expected) {
            let Some(entry) = late.next() else {
                let (has, should) = (ends(found.get(&group)).0, ends(expected.get(&group)).0);
                return Err(format!(
                    "the recovered log of group {} ({has} entries) is none that it wrote (it had {should} in the end)",
                    group.0
                ));
            };
            put(expected.entry(entry.group).or_default(), entry);
        }
        self.read = Some((expected, recovered.rows.clone()));
        Ok(())
    }

    fn check_hard(&self, recovered: &Recovered) -> Verdict {
        for (group, hard) in &self.rows {
            let mut later =
                self.submitted.iter().flat_map(|batch| &batch.rows).filter(|(other, _)| other == group);
            let found = recovered.rows.get(group).cloned().unwrap_or_default();
            if found != *hard && !later.any(|(_, hard)| *hard == found) {
                return Err(format!(
                    "group {}: it had acted upon {hard:?} and reads back {found:?}",
                    group.0
                ));
            }
        }
        Ok(())
    }
}
