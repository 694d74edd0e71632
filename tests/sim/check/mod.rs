//! What must hold, checked while the world runs and when it has come to rest. One property in each file.
//!
//! Invariant: the first violation ends a run; what comes after it proves nothing.

pub mod deadlock;
pub mod digests;
pub mod expiry;
pub mod fences;
pub mod fills;
pub mod journal;
pub mod leaders;
pub mod leases;
pub mod locks;
pub mod log;
pub mod order;
pub mod outcome;
pub mod queues;
pub mod registers;
pub mod writeback;

use std::collections::BTreeMap;

use quorate_engine::engine::GroupReport;
use quorate_engine::journal::{Persist, Recovered};
use quorate_protocol::id::GroupId;
use quorate_protocol::op::{Home, partition_of, partition_of_topic};

use super::history::{History, Record};

/// A promise that was not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The property; see docs/simulation.md.
    pub property: &'static str,
    /// When it was seen, in microseconds of the world's time.
    pub time: u64,
    /// What was seen.
    pub text: String,
}

/// What a checker says: nothing, or what it saw.
pub type Verdict = Result<(), String>;

/// All checkers that look on while the world runs.
#[derive(Debug)]
pub struct Checks {
    /// What clients asked and were told.
    pub history: History,
    /// The first violation.
    pub violation: Option<Violation>,
    /// What subscribers received: when, topic, message, attempt, body.
    pub deliveries: Vec<queues::Pushed>,
    /// Connection → when it ended, at either end.
    pub conn_ends: BTreeMap<u64, u64>,
    /// Connection → when its node's link to another one was cut, as that one has it.
    cuts: BTreeMap<u64, Vec<u64>>,
    /// Reads that a node answered from its own memory.
    pub hits: u64,
    /// Nodes that stopped because their disk could not be trusted.
    pub stops: u64,
    /// Backups from which another cluster was restored.
    pub restored: u64,
    /// The cluster begins with a backup: its logs do not begin with entry 1, and what follows them entry by entry looks away.
    pub begins_late: bool,
    leaders: leaders::Leaders,
    leases: leases::Leases,
    log: log::Logs,
    digests: digests::Digests,
    journal: Vec<journal::Truth>,
    /// Nodes on whose disk a bit was flipped.
    flipped: Vec<bool>,
}

impl Checks {
    /// Checkers for a cluster.
    #[must_use]
    pub fn new(nodes: usize, voters: BTreeMap<GroupId, Vec<usize>>) -> Self {
        Self {
            history: History::default(),
            violation: None,
            deliveries: Vec::new(),
            conn_ends: BTreeMap::new(),
            cuts: BTreeMap::new(),
            hits: 0,
            stops: 0,
            restored: 0,
            begins_late: false,
            leaders: leaders::Leaders::default(),
            leases: leases::Leases::default(),
            log: log::Logs::new(nodes, voters),
            digests: digests::Digests::default(),
            journal: (0..nodes).map(|_| journal::Truth::default()).collect(),
            flipped: vec![false; nodes],
        }
    }

    /// Something is not as it was promised.
    pub fn fail(&mut self, property: &'static str, time: u64, text: String) {
        if self.violation.is_none() {
            self.violation = Some(Violation { property, time, text });
        }
    }

    fn judge(&mut self, property: &'static str, time: u64, verdict: Verdict) {
        if let Err(text) = verdict {
            self.fail(property, time, text);
        }
    }

    /// A node hands a batch to its journal.
    pub fn submitted(&mut self, time: u64, node: usize, batch: &Persist) {
        if self.begins_late {
            return;
        }
        let verdict = self.log.written(node, batch);
        self.judge("log matching", time, verdict);
        self.journal[node].submitted(batch, |group, index, term| self.log.chain_of(group, index, term));
    }

    /// A node's journal has everything up to a batch on stable storage.
    pub fn durable(&mut self, node: usize, seq: u64) {
        self.journal[node].durable(seq);
    }

    /// A node has read its directory.
    pub fn recovered(&mut self, time: u64, node: usize, recovered: &Recovered) {
        if self.begins_late {
            return;
        }
        let verdict = self.journal[node].recovered(recovered);
        self.judge("journal", time, verdict.map_err(|text| format!("node {}: {text}", node + 1)));
    }

    /// A node goes on from what it has read.
    pub fn started(&mut self, time: u64, node: usize, recovered: &Recovered) {
        if self.begins_late {
            return;
        }
        self.journal[node].started();
        let verdict = self.log.restarted(node, recovered);
        self.judge("log matching", time, verdict);
    }

    /// A connection has ended at one of its ends.
    pub fn conn_ended(&mut self, conn: u64, time: u64) {
        self.conn_ends.entry(conn).or_insert(time);
    }

    /// A link of the node of these connections was cut, as the other node has it.
    pub fn link_cut<'a>(&mut self, conns: impl Iterator<Item = &'a u64>, time: u64) {
        conns.for_each(|conn| self.cuts.entry(*conn).or_default().push(time));
    }

    /// A node has an empty disk.
    pub fn emptied(&mut self, node: usize) {
        self.journal[node].emptied();
    }

    /// A bit was flipped on a node's disk.
    pub fn flipped(&mut self, node: usize) {
        self.flipped[node] = true;
    }

    /// Whether a node has a reason to find its directory damaged.
    #[must_use]
    pub fn may_be_ruined(&self, node: usize) -> bool {
        self.flipped[node]
    }

    /// A node has ended a turn. `when` says when it will read a time of its own.
    pub fn observe(&mut self, time: u64, node: usize, reports: &[GroupReport], when: impl Fn(u64) -> u64) {
        for report in reports {
            let until = if report.lease > 0 { when(report.lease) } else { 0 };
            let verdict = self.leases.saw(time, node, report, until);
            self.judge("one leader within a lease", time, verdict);
            let verdict = self.leaders.saw(time, node, report);
            self.judge("one leader per term", time, verdict);
            let verdict = self.digests.saw(node, report);
            self.judge("equal digests", time, verdict);
            if self.begins_late {
                continue;
            }
            let verdict = self.log.leads(node, report);
            self.judge("one leader per term", time, verdict);
            let journal = &self.journal;
            let history = &mut self.history;
            let verdict = self.log.applied(time, node, report, journal, history);
            self.judge("committed never lost", time, verdict);
        }
    }

    /// The digest of a group's replicas at an entry, if one of them was seen there.
    #[must_use]
    pub fn digest_at(&self, group: GroupId, index: u64) -> Option<u64> {
        self.digests.at(group, index)
    }

    /// The committed length of each group's log.
    #[must_use]
    pub fn committed(&self) -> BTreeMap<GroupId, u64> {
        self.log.committed()
    }
}

impl Checks {
    /// Looks at the whole history once the world is at rest and `auditor` has seen what is left.
    /// `calm`: there were no faults.
    pub fn conclude(&mut self, time: u64, partitions: u16, auditor: usize, calm: bool) {
        let home = |record: &Record| match record.op.home() {
            Home::System => Some(GroupId::SYSTEM),
            Home::Key(name) => Some(partition_of(name, partitions)),
            Home::Topic(name) => Some(partition_of_topic(name, partitions)),
            Home::Together => record.op.keys().first().map(|key| partition_of(key, partitions)),
            Home::Each | Home::All | Home::Cursor(_) => None,
        };
        let history = &self.history;
        let holds = locks::holds(history, &self.conn_ends);
        let ends = fills::Ends { conns: &self.conn_ends, cuts: &self.cuts };
        let verdicts = [
            ("outcome", outcome::check(history)),
            ("connection order", order::check(history, home)),
            ("linearizable registers", registers::check(history, calm)),
            ("bounded loss of what is written back", writeback::check(history)),
            ("one fills at a time", fills::check(history, &ends, &self.leaders.changes, home)),
            ("expiry", expiry::check(history, auditor)),
            ("lock exclusion", locks::exclusion(&holds)),
            ("rising tokens", locks::tokens(history)),
            ("fenced writes", fences::check(history)),
            ("lock fairness", locks::fairness(history)),
            ("no orphaned locks", locks::infos(history, auditor)),
            ("deadlock", deadlock::check(history, &holds, &self.conn_ends)),
            ("queues", queues::check(history, &self.deliveries)),
        ];
        drop(holds);
        for (property, verdict) in verdicts {
            self.judge(property, time, verdict);
        }
    }
}
