//! Property: what a node reads back is what it wrote: everything that was reported durable, then perhaps some of
//! what was on its way, in the order in which it was submitted; never anything else (design: journal and identity).
//!
//! Logs are compared by a hash that covers each entry and all before it. What a snapshot stands for is taken from what
//! was written before it; behind one that came from another node, from what that one wrote.

use std::collections::{BTreeMap, VecDeque};

use quorate_engine::journal::{Entry, Persist, RESET, Recovered, Row, Standing};
use quorate_protocol::id::{GroupId, Index, Term};

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

/// What one node has written.
#[derive(Debug, Default)]
pub struct Truth {
    logs: BTreeMap<GroupId, Chains>,
    rows: BTreeMap<GroupId, Row>,
    submitted: VecDeque<Persist>,
    /// What was durable before the disk was lost or damaged: it counted while it was there.
    former: BTreeMap<GroupId, Chains>,
    /// The chains behind which logs have begun anew.
    bases: BTreeMap<(GroupId, Index, Term), Chain>,
    /// What the present start has read; nothing relies on it before the start is done.
    read: Option<(BTreeMap<GroupId, Chains>, BTreeMap<GroupId, Row>)>,
}

impl Truth {
    /// A batch is handed to the journal. `chain_of` knows what other nodes have written.
    pub fn submitted(&mut self, batch: &Persist, chain_of: impl Fn(GroupId, Index, Term) -> Chain) {
        for entry in batch.entries.iter().filter(|entry| entry.kind == RESET && entry.index > 0) {
            let place = (entry.group, entry.index, entry.term);
            self.bases.insert(place, chain_of(entry.group, entry.index, entry.term));
        }
        self.submitted.push_back(batch.clone());
    }

    /// All batches up to this one are durable.
    pub fn durable(&mut self, seq: u64) {
        while self.submitted.front().is_some_and(|batch| batch.seq <= seq) {
            let batch = self.submitted.pop_front().expect("it was just seen");
            for (group, row) in batch.rows {
                if self.rows.get(&group).is_some_and(|before| is_another(before, &row)) {
                    self.logs.remove(&group);
                }
                self.rows.insert(group, row);
            }
            for entry in &batch.entries {
                put(self.logs.entry(entry.group).or_default(), entry, &self.bases);
            }
        }
    }

    /// The disk is empty.
    pub fn emptied(&mut self) {
        *self = Self { former: std::mem::take(&mut self.logs), ..Self::default() };
    }

    /// Whether an entry with everything before it is durable here, or was.
    #[must_use]
    pub fn has(&self, group: GroupId, index: Index, chain: Chain) -> bool {
        let place = usize::try_from(index - 1).expect("logs are in memory");
        let has = |logs: &BTreeMap<GroupId, Chains>| {
            logs.get(&group).and_then(|log| log.get(place)) == Some(&chain)
        };
        has(&self.logs) || has(&self.former)
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
        for (&group, _) in recovered.rows.iter().filter(|(_, row)| row.standing == Standing::Lost) {
            // Damage, for which there must be a reason: nothing is left to be compared.
            self.former.extend(self.logs.remove_entry(&group));
            self.rows.remove(&group);
            for batch in &mut self.submitted {
                batch.rows.retain(|(other, _)| *other != group);
                batch.entries.retain(|entry| entry.group != group);
            }
        }
        self.check_rows(recovered)?;
        let mut expected = self.logs.clone();
        let mut cuts = BTreeMap::new();
        for (&group, row) in &recovered.rows {
            if let Some(cut) = self.begin_of(group, row) {
                expected.remove(&group);
                cuts.insert(group, cut);
            }
            self.reach_snapshot(group, row, &mut expected, cuts.get(&group).copied());
        }
        let found = self.found(recovered, &expected);
        let ends =
            |log: Option<&Chains>| log.map_or((0, 0), |log| (log.len(), log.last().copied().unwrap_or(0)));
        let differing = |expected: &BTreeMap<GroupId, Chains>| {
            let groups = found.keys().chain(expected.keys());
            groups.copied().find(|group| ends(found.get(group)) != ends(expected.get(group)))
        };
        let counts = |at: (usize, usize), entry: &Entry| {
            let snapshot = recovered.rows.get(&entry.group).map_or(0, |row| row.snapshot.0);
            entry.index > snapshot && cuts.get(&entry.group).is_none_or(|cut| at >= *cut)
        };
        let mut late = places(&self.submitted).filter(|(at, entry)| counts(*at, entry));
        while let Some(group) = differing(&expected) {
            let Some((_, entry)) = late.next() else {
                let (has, should) = (ends(found.get(&group)).0, ends(expected.get(&group)).0);
                return Err(format!(
                    "the recovered log of group {} ({has} entries) is none that it wrote (it had {should} in the end)",
                    group.0
                ));
            };
            put(expected.entry(entry.group).or_default(), entry, &self.bases);
        }
        self.read = Some((expected, recovered.rows.clone()));
        Ok(())
    }

    /// The recovered logs, with what their snapshots stand for.
    fn found(
        &self,
        recovered: &Recovered,
        expected: &BTreeMap<GroupId, Chains>,
    ) -> BTreeMap<GroupId, Chains> {
        let mut found = BTreeMap::new();
        for (&group, row) in &recovered.rows {
            let known = expected.get(&group).cloned().unwrap_or_default();
            let snapshot = usize::try_from(row.snapshot.0).expect("logs are in memory");
            let mut log: Chains = known.into_iter().take(snapshot).collect();
            let entries = recovered.entries.get(&group).into_iter().flatten();
            entries.for_each(|entry| put(&mut log, entry, &self.bases));
            found.insert(group, log);
        }
        found
    }

    /// If the recovered row comes from a batch that was on its way and with which the log begins anew: from where on.
    fn begin_of(&self, group: GroupId, row: &Row) -> Option<(usize, usize)> {
        let mut before = self.rows.get(&group);
        let mut begin = None;
        for (number, batch) in self.submitted.iter().enumerate() {
            let Some((_, next)) = batch.rows.iter().rfind(|(other, _)| *other == group) else { continue };
            if before.is_some_and(|before| is_another(before, next)) {
                begin = Some((number, 0));
            }
            let reset = batch.entries.iter().rposition(|entry| entry.group == group && entry.kind == RESET);
            begin = reset.map(|at| (number, at)).or(begin);
            if next == row {
                return begin;
            }
            before = Some(next);
        }
        None
    }

    /// A snapshot stands for entries that need not have become durable.
    fn reach_snapshot(
        &self,
        group: GroupId,
        row: &Row,
        expected: &mut BTreeMap<GroupId, Chains>,
        cut: Option<(usize, usize)>,
    ) {
        let snapshot = usize::try_from(row.snapshot.0).expect("logs are in memory");
        let log = expected.entry(group).or_default();
        for (at, entry) in places(&self.submitted).filter(|(_, entry)| entry.group == group) {
            if log.len() < snapshot && cut.is_none_or(|cut| at >= cut) {
                put(log, entry, &self.bases);
            }
        }
        log.resize(log.len().max(snapshot), 0);
    }

    fn check_rows(&self, recovered: &Recovered) -> Verdict {
        for (group, row) in &self.rows {
            let mut later =
                self.submitted.iter().flat_map(|batch| &batch.rows).filter(|(other, _)| other == group);
            let found = recovered.rows.get(group).cloned().unwrap_or_default();
            if found != *row && !later.any(|(_, row)| *row == found) {
                return Err(format!("group {}: it had acted upon {row:?} and reads back {found:?}", group.0));
            }
        }
        Ok(())
    }
}

/// Whether a replica is another one than before.
fn is_another(before: &Row, row: &Row) -> bool {
    (before.incarnation, before.standing) != (row.incarnation, row.standing)
}

/// All entries of some batches with their places.
fn places(batches: &VecDeque<Persist>) -> impl Iterator<Item = ((usize, usize), &Entry)> {
    batches.iter().enumerate().flat_map(|(number, batch)| {
        batch.entries.iter().enumerate().map(move |(at, entry)| ((number, at), entry))
    })
}

/// Puts an entry into a log, in place of what is there and after it.
fn put(log: &mut Chains, entry: &Entry, bases: &BTreeMap<(GroupId, Index, Term), Chain>) {
    if entry.kind == RESET {
        log.clear();
        log.resize(usize::try_from(entry.index).expect("logs are in memory"), 0);
        if let Some(last) = log.last_mut() {
            *last = bases.get(&(entry.group, entry.index, entry.term)).copied().unwrap_or(0);
        }
        return;
    }
    log.truncate(usize::try_from(entry.index - 1).expect("logs are in memory"));
    let before = log.last().copied().unwrap_or(0);
    log.push(chain(before, entry));
}
