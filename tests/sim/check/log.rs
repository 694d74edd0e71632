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
use quorate_engine::journal::{Persist, RESET, Recovered, Standing};
use quorate_protocol::id::{GroupId, Index, LogPos, Replica, Term};

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
    /// Every configuration that some replica has applied, by the entry that made it.
    confs: BTreeMap<GroupId, BTreeMap<Index, Majorities>>,
}

/// The sets of nodes of each of which a majority has to have an entry: voters, and the voters before while a change is
/// under way.
type Majorities = Vec<Vec<usize>>;

impl Logs {
    /// Empty logs.
    #[must_use]
    pub fn new(nodes: usize, voters: BTreeMap<GroupId, Vec<usize>>) -> Self {
        let logs = (0..nodes).map(|_| BTreeMap::new()).collect();
        let confs = voters.into_iter().map(|(group, voters)| (group, [(0, vec![voters])].into())).collect();
        Self { logs, committed: BTreeMap::new(), known: BTreeMap::new(), confs }
    }

    /// A node hands a batch to its journal.
    pub fn written(&mut self, node: usize, batch: &Persist) -> Verdict {
        for (group, row) in &batch.rows {
            let places = |replicas: &[Replica]| -> Vec<usize> {
                replicas
                    .iter()
                    .map(|replica| usize::try_from(replica.node.0 - 1).expect("few nodes"))
                    .collect()
            };
            let mut majorities = vec![places(&row.conf.voters)];
            if row.conf.is_joint() {
                majorities.push(places(&row.conf.outgoing));
            }
            let known =
                self.confs.entry(*group).or_default().entry(row.conf.index).or_insert(majorities.clone());
            if *known != majorities {
                return Err(format!(
                    "replicas of group {} have made different configurations of entry {}",
                    group.0, row.conf.index
                ));
            }
            if row.standing != Standing::Whole {
                self.logs[node].remove(group);
            }
        }
        for entry in &batch.entries {
            if entry.kind == RESET {
                self.begin_anew(node, entry.group, (entry.index, entry.term))?;
                continue;
            }
            let log = self.logs[node].entry(entry.group).or_default();
            log.rows.truncate(place_of(entry.index));
            let chain = chain(log.rows.last().map_or(0, |row| row.chain), entry);
            log.rows.push(Row { term: entry.term, chain, data: entry.data.clone() });
            let (known, first) =
                *self.known.entry((entry.group, entry.index, entry.term)).or_insert((chain, node));
            // Who votes alone leads before its vote is durable, and may lead in the same term again after a crash; nobody
            // has seen what was lost.
            let alone = |confs: &BTreeMap<Index, Majorities>| {
                confs
                    .values()
                    .next_back()
                    .is_some_and(|majorities| majorities.iter().all(|voters| voters.len() == 1))
            };
            if known != chain && first == node && self.confs.get(&entry.group).is_some_and(alone) {
                self.known.insert((entry.group, entry.index, entry.term), (chain, node));
                continue;
            }
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

    /// A node's log begins anew behind a snapshot: of something that was applied before.
    fn begin_anew(&mut self, node: usize, group: GroupId, at: (Index, Term)) -> Verdict {
        let log = self.logs[node].entry(group).or_default();
        *log = Log { led: log.led, ..Log::default() };
        let committed = self.committed.entry(group).or_default();
        let snapshot = usize::try_from(at.0).expect("logs are in memory");
        if snapshot > committed.len() || (snapshot > 0 && committed[snapshot - 1].0 != at.1) {
            return Err(format!(
                "node {} begins group {} with a snapshot at {at:?}, which nobody has applied",
                node + 1,
                group.0
            ));
        }
        let rows = committed[..snapshot].iter();
        log.rows = rows.map(|&(term, chain)| Row { term, chain, data: Bytes::new() }).collect();
        Ok(())
    }

    /// The chain up to an entry that somebody has written.
    #[must_use]
    pub fn chain_of(&self, group: GroupId, index: Index, term: Term) -> Chain {
        self.known.get(&(group, index, term)).map_or(0, |&(chain, _)| chain)
    }

    /// A node begins with what it has read.
    pub fn restarted(&mut self, node: usize, recovered: &Recovered) -> Verdict {
        self.logs[node].clear();
        for (&group, row) in recovered.rows.iter().filter(|(_, row)| row.standing == Standing::Whole) {
            self.begin_anew(node, group, row.snapshot)?;
            let log = self.logs[node].entry(group).or_default();
            for entry in recovered.entries.get(&group).into_iter().flatten() {
                let chain = chain(log.rows.last().map_or(0, |row| row.chain), entry);
                log.rows.push(Row { term: entry.term, chain, data: entry.data.clone() });
            }
        }
        Ok(())
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
            // The leader counted by the newest configuration that it had applied: this one, or the one before.
            let confs = self.confs[&group].range(..=index).rev().take(2);
            let has = |voter: &&usize| disks[**voter].has(group, index, row.chain);
            let decided = |(_, majorities): (&Index, &Majorities)| {
                majorities.iter().all(|voters| voters.iter().filter(has).count() * 2 > voters.len())
            };
            if !confs.into_iter().any(decided) {
                return Err(format!(
                    "node {} applied entry {index} of group {}, which was durable on no majority of {:?}",
                    node + 1,
                    group.0,
                    self.confs[&group].range(..=index).next_back()
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
