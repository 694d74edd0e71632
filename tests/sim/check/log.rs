//! Properties: two logs with an entry of the same index and term are equal up to it (Raft §5.3, log matching); what
//! is applied once is applied everywhere, is durable on a majority, and is in the log of every later leader (§5.4,
//! leader completeness; architecture.md, invariant 1).
//!
//! The applied entries are the clients' evidence too: their commands are noted in the history.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate_engine::batch::Batch;
use quorate_engine::consensus::Role;
use quorate_engine::engine::GroupReport;
use quorate_engine::journal::{Entry, Recovered};
use quorate_protocol::id::{GroupId, Index, LogPos, Term};

use super::Verdict;
use super::journal::{Chain, Truth, chain};
use crate::sim::history::{History, Place};

#[derive(Debug, Clone)]
struct Row {
    term: Term,
    chain: Chain,
    data: Bytes,
}

/// One node's log of one group.
#[derive(Debug, Default)]
struct Log {
    rows: Vec<Row>,
    applied: Index,
    /// The last term in which it was checked as a leader's.
    led: Term,
}

/// See the top of the file.
#[derive(Debug)]
pub struct Logs {
    logs: Vec<BTreeMap<GroupId, Log>>,
    /// What some replica has applied.
    committed: BTreeMap<GroupId, Vec<(Term, Chain)>>,
    /// What every entry is, with all before it.
    known: BTreeMap<(GroupId, Index, Term), (Chain, usize)>,
    voters: BTreeMap<GroupId, Vec<usize>>,
}

impl Logs {
    /// Empty logs.
    #[must_use]
    pub fn new(nodes: usize, voters: BTreeMap<GroupId, Vec<usize>>) -> Self {
        let logs = (0..nodes).map(|_| BTreeMap::new()).collect();
        Self { logs, committed: BTreeMap::new(), known: BTreeMap::new(), voters }
    }

    /// A node writes entries.
    pub fn written(&mut self, node: usize, entries: &[Entry]) -> Verdict {
        for entry in entries {
            let log = self.logs[node].entry(entry.group).or_default();
            log.rows.truncate(place_of(entry.index));
            let chain = chain(log.rows.last().map_or(0, |row| row.chain), entry);
            log.rows.push(Row { term: entry.term, chain, data: entry.data.clone() });
            let (known, first) =
                *self.known.entry((entry.group, entry.index, entry.term)).or_insert((chain, node));
            if known != chain {
                return Err(format!(
                    "nodes {} and {} hold different logs up to entry {} of group {}, both of term {}",
                    first + 1,
                    node + 1,
                    entry.index,
                    entry.group.0,
                    entry.term
                ));
            }
        }
        Ok(())
    }

    /// A node begins with what it has read.
    pub fn restarted(&mut self, node: usize, recovered: &Recovered) {
        self.logs[node].clear();
        for (&group, entries) in &recovered.entries {
            let log = self.logs[node].entry(group).or_default();
            for entry in entries {
                let chain = chain(log.rows.last().map_or(0, |row| row.chain), entry);
                log.rows.push(Row { term: entry.term, chain, data: entry.data.clone() });
            }
        }
    }

    /// A leader's log holds all that was committed in earlier terms.
    pub fn leads(&mut self, node: usize, report: &GroupReport) -> Verdict {
        let log = self.logs[node].entry(report.group).or_default();
        if report.role != Role::Leader || log.led == report.term {
            return Ok(());
        }
        log.led = report.term;
        let committed = self.committed.entry(report.group).or_default();
        let earlier = committed.partition_point(|&(term, _)| term < report.term);
        if earlier == 0 || log.rows.get(earlier - 1).is_some_and(|row| row.chain == committed[earlier - 1].1)
        {
            return Ok(());
        }
        Err(format!(
            "node {} leads group {} in term {} without the committed entry {earlier}",
            node + 1,
            report.group.0,
            report.term
        ))
    }

    /// A node has applied some more.
    pub fn applied(
        &mut self,
        time: u64,
        node: usize,
        report: &GroupReport,
        disks: &[Truth],
        history: &mut History,
    ) -> Verdict {
        let group = report.group;
        let log = self.logs[node].entry(group).or_default();
        let committed = self.committed.entry(group).or_default();
        while log.applied < report.applied {
            log.applied += 1;
            let index = log.applied;
            let Some(row) = log.rows.get(place_of(index)) else {
                return Err(format!(
                    "node {} applied entry {index} of group {}, which it never wrote",
                    node + 1,
                    group.0
                ));
            };
            if let Some((_, chain)) = committed.get(place_of(index)) {
                if *chain != row.chain {
                    return Err(format!(
                        "node {} applied another entry {index} of group {} than was applied before",
                        node + 1,
                        group.0
                    ));
                }
                continue;
            }
            committed.push((row.term, row.chain));
            let voters = &self.voters[&group];
            let durable = voters.iter().filter(|&&voter| disks[voter].has(group, index, row.chain)).count();
            if durable * 2 <= voters.len() {
                return Err(format!(
                    "node {} applied entry {index} of group {}, which was durable on {durable} of {} voters",
                    node + 1,
                    group.0,
                    voters.len()
                ));
            }
            note(group, index, &row.data, time, history);
        }
        Ok(())
    }

    /// The committed length of each group's log.
    #[must_use]
    pub fn committed(&self) -> BTreeMap<GroupId, u64> {
        self.committed.iter().map(|(&group, log)| (group, log.len() as u64)).collect()
    }
}

fn note(group: GroupId, index: Index, data: &Bytes, time: u64, history: &mut History) {
    let Ok(batch) = Batch::read(data.clone()) else { return };
    let stamp = batch.stamp;
    for (offset, logged) in batch.placed() {
        let pos = LogPos { index, offset };
        history.applied(&logged, Place { group, pos, stamp, time });
    }
}

fn place_of(index: Index) -> usize {
    usize::try_from(index - 1).expect("logs are in memory")
}
