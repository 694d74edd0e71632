//! Changes of a group's replicas: what the log says of them, and what they make of a configuration.
//!
//! Invariant: a configuration follows from the founding one and the log's changes alone, so all replicas agree.
//! A change names the replicas that are to be, not the steps; every one goes through a joint configuration, in which
//! old and new voters decide together, and is ended by `Leave`.
//!
//! Source: Ongaro, "Consensus: Bridging Theory and Practice", 2014, §4.3.

use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::id::{Index, Replica};
use quorate_protocol::wire::Wire;
use quorate_protocol::{wire_enum, wire_struct};
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState};

use super::raw::{raw_id, replica_of};
use crate::journal::Conf;

wire_struct! {
    /// The replicas that a group is to have.
    #[derive(Debug, Clone, PartialEq, Eq, Default)]
    pub struct Target {
        /// Those that vote.
        pub voters: Vec<Replica>,
        /// Those that only follow.
        pub learners: Vec<Replica>,
    }
}

wire_enum! {
    /// What an entry of the kind `CONFIGURATION` says.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum Change {
        /// The old voters of a joint configuration decide no more.
        Leave = 0,
        /// These replicas, from now on, jointly with the voters before.
        To(target: Target) = 1,
    }
}

impl Change {
    /// Reads an entry of this kind.
    ///
    /// # Panics
    /// When it is none: a node that cannot read its log must not guess.
    #[must_use]
    pub fn read(data: &Bytes) -> Self {
        Self::from_wire(data.clone())
            .expect("a change of configuration was written by this release or an older one")
    }

    /// The steps of the change, as raft takes them.
    pub(super) fn steps(&self, conf: &Conf) -> ConfChangeV2 {
        let mut change = ConfChangeV2::default();
        let Self::To(target) = self else { return change };
        let mut add = |kind: ConfChangeType, replica: &Replica| {
            let node_id = raw_id(*replica);
            change.changes.push(ConfChangeSingle {
                change_type: kind,
                node_id,
                ..ConfChangeSingle::default()
            });
        };
        let gone =
            |replica: &&Replica| !target.voters.contains(replica) && !target.learners.contains(replica);
        conf.voters
            .iter()
            .chain(&conf.learners)
            .filter(gone)
            .for_each(|r| add(ConfChangeType::RemoveNode, r));
        let new_voters = target.voters.iter().filter(|r| !conf.voters.contains(r));
        new_voters.for_each(|r| add(ConfChangeType::AddNode, r));
        let new_learners = target.learners.iter().filter(|r| !conf.learners.contains(r));
        new_learners.for_each(|r| add(ConfChangeType::AddLearnerNode, r));
        change.transition = ConfChangeTransition::Explicit;
        change
    }
}

/// Whether two lists name the same replicas.
fn same(a: &[Replica], b: &[Replica]) -> bool {
    a.len() == b.len() && a.iter().all(|replica| b.contains(replica))
}

impl Conf {
    /// The configuration of a founding.
    #[must_use]
    pub fn founding(voters: Vec<Replica>, learners: Vec<Replica>) -> Self {
        Self { index: 0, voters, outgoing: Vec::new(), learners, next: 1 }
    }

    /// Whether old and new voters decide together.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// All replicas, each once.
    #[must_use]
    pub fn replicas(&self) -> Vec<Replica> {
        let mut all: Vec<_> =
            self.voters.iter().chain(&self.outgoing).chain(&self.learners).copied().collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The configuration that a change at an index makes of this one.
    #[must_use]
    pub fn after(&self, index: Index, change: &Change) -> Self {
        let mut conf = Self { index, ..self.clone() };
        match change {
            Change::Leave => conf.outgoing.clear(),
            Change::To(target) => {
                conf.outgoing.clone_from(&self.voters);
                conf.voters.clone_from(&target.voters);
                conf.learners.clone_from(&target.learners);
                let highest = target.voters.iter().chain(&target.learners).map(Replica::serial).max();
                conf.next = conf.next.max(highest.unwrap_or(0) + 1);
            }
        }
        conf
    }

    pub(super) fn to_raw(&self) -> ConfState {
        let ids =
            |replicas: &[Replica]| replicas.iter().map(|replica| raw_id(*replica)).collect::<Vec<u64>>();
        let mut raw = ConfState::from((ids(&self.voters), ids(&self.learners)));
        raw.set_voters_outgoing(ids(&self.outgoing));
        raw
    }

    /// Whether raft's notion of the configuration is this one.
    pub(super) fn matches(&self, raw: &ConfState) -> bool {
        let of = |ids: &[u64]| ids.iter().map(|id| replica_of(*id)).collect::<Vec<Replica>>();
        same(&of(raw.get_voters()), &self.voters)
            && same(&of(raw.get_voters_outgoing()), &self.outgoing)
            && same(&of(raw.get_learners()), &self.learners)
            && raw.get_learners_next().is_empty()
    }
}
