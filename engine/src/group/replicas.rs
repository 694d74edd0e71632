//! Which nodes a group lies on: its leader moves it towards what the ring wants, one change at a time.
//!
//! ```text
//!  a node is wanted           a learner has all that      the old voters
//!  and has no replica         was committed               are not needed
//!  ───────────────▶ learner ───────────────▶ voter (joint) ───────────▶ voter, others gone
//! ```
//!
//! Invariants:
//! - A replica that has lost what it acknowledged is removed first; its node gets a new incarnation afterwards.
//! - Nobody becomes a voter before its log is close to the leader's, so that a change does not cost the majority.
//! - A leader that is not wanted hands over before it is removed.

use alloc::vec::Vec;
use quorate_protocol::id::{NodeId, Replica};

use super::{Group, Told};
use crate::consensus::change::{Change, Target};
use crate::effect::TICK;
use crate::journal::{Conf, Row};
use crate::members::Targets;
use crate::trash::Trash;

/// Entries by which a learner's log may be behind the leader's when it becomes a voter.
const CLOSE: u64 = 256;
/// How long a leader leads before it makes way for the preferred one; microseconds.
const SETTLED: u64 = 100 * TICK;
/// The pause before leadership is handed over again that nobody has taken: nothing is proposed while that is tried.
const AGAIN: u64 = 5_000_000;

fn nodes(replicas: &[Replica]) -> impl Iterator<Item = NodeId> {
    replicas.iter().map(|replica| replica.node)
}

impl Group {
    /// Gives up what waits here, and tells it: the end of a replica.
    pub fn give_up_all(&mut self) -> Vec<Told> {
        self.give_up();
        self.take_told()
    }

    /// What the disk knows of the replica, or will know; the end of it.
    #[must_use]
    pub fn into_row(mut self, trash: &mut Trash) -> Row {
        let row = Row { hard: self.consensus.hard(), conf: self.consensus.conf().clone(), ..self.row };
        self.files.discard(trash);
        self.state.discard(trash);
        trash.append(&mut self.trash);
        self.consensus.discard(trash);
        row
    }

    /// A turn has ended: hands out what it has let go of, to be dropped bit by bit.
    pub fn throw_away(&mut self, trash: &mut Trash) {
        self.room.end_turn();
        self.closing.end_turn();
        self.state.throw_away(&mut self.trash);
        trash.append(&mut self.trash);
        trash.append(self.consensus.trash());
    }

    /// Makes the next step towards the targets. `lost` says whether a replica is known to have lost what it
    /// acknowledged, `life` which life a node is in. Whether a step was made.
    pub fn balance(
        &mut self,
        now: u64,
        targets: &Targets,
        lost: impl Fn(Replica) -> bool,
        life: impl Fn(NodeId) -> u32,
    ) -> bool {
        if self.leading().is_none() || self.is_handing_over() || !self.consensus.may_change() {
            return false;
        }
        let conf = self.consensus.conf();
        if conf.is_joint() && !conf.voters.contains(&self.consensus.me()) {
            let heirs = conf.voters.clone();
            let heir = heirs.into_iter().max_by_key(|replica| self.consensus.matched(now, *replica));
            return self.hand_to(now, heir);
        }
        let step = if self.consensus.conf().is_joint() {
            self.consensus.may_leave(now).then_some(Change::Leave)
        } else {
            self.next_step(now, targets, lost, life).map(Change::To)
        };
        let Some(step) = step else { return false };
        self.consensus.propose_change(&step);
        true
    }

    fn next_step(
        &self,
        now: u64,
        targets: &Targets,
        lost: impl Fn(Replica) -> bool,
        life: impl Fn(NodeId) -> u32,
    ) -> Option<Target> {
        let conf = self.consensus.conf();
        let me = self.consensus.me();
        let whole = |replicas: &[Replica]| -> Vec<Replica> {
            replicas.iter().copied().filter(|replica| *replica == me || !lost(*replica)).collect()
        };
        let (voters, learners) = (whole(&conf.voters), whole(&conf.learners));
        if 2 * voters.len() <= conf.voters.len() {
            // What most have lost is not for the rest to decide: the files may be put back as they were.
            return None;
        }
        if voters.len() < conf.voters.len() || learners.len() < conf.learners.len() {
            return Some(Target { voters, learners });
        }
        let held = |node: &NodeId| nodes(&voters).chain(nodes(&learners)).any(|other| other == *node);
        let missing: Vec<NodeId> =
            targets.voters.iter().chain(&targets.learners).copied().filter(|node| !held(node)).collect();
        if !missing.is_empty() {
            let new = missing.into_iter().map(|node| Replica::new(node, life(node), conf.next));
            return Some(Target { voters, learners: learners.into_iter().chain(new).collect() });
        }
        self.towards(now, targets, conf, me)
    }

    /// All wanted nodes have replicas: gives votes to those that have caught up, and drops who is not targets.
    fn towards(&self, now: u64, targets: &Targets, conf: &Conf, me: Replica) -> Option<Target> {
        let all = conf.voters.iter().chain(&conf.learners);
        let (mut voters, mut learners): (Vec<Replica>, Vec<Replica>) = (Vec::new(), Vec::new());
        for &replica in all.clone().filter(|replica| targets.voters.contains(&replica.node)) {
            if !conf.voters.contains(&replica) && !self.is_close(now, replica) {
                // Nothing is taken away before those that are to come have caught up.
                return None;
            }
            voters.push(replica);
        }
        if !voters.contains(&me) && conf.voters.contains(&me) {
            voters.push(me);
        }
        learners.extend(conf.learners.iter().filter(|replica| targets.learners.contains(&replica.node)));
        voters.sort_unstable();
        learners.sort_unstable();
        let sorted = |replicas: &[Replica]| {
            let mut replicas = replicas.to_vec();
            replicas.sort_unstable();
            replicas
        };
        let same = voters == sorted(&conf.voters) && learners == sorted(&conf.learners);
        (!same && !voters.is_empty()).then_some(Target { voters, learners })
    }

    pub(super) fn is_close(&self, now: u64, replica: Replica) -> bool {
        self.consensus
            .matched(now, replica)
            .is_some_and(|matched| matched + CLOSE >= self.consensus.last_index())
    }

    /// Hands leadership over to the first wanted voter, if that is another node which can take it. Whether it began.
    ///
    /// Who has tried in vain leads without a lease for the rest of its term: every read costs it a round, and no node caches what
    /// it has. So anybody else may have it then, who leads in a new term, with a lease, and makes way in its turn.
    pub fn make_way(&mut self, now: u64, targets: &Targets, reluctant: impl Fn(NodeId) -> bool) -> bool {
        let conf = self.consensus.conf();
        if self.leading().is_none()
            || now < self.led_since + SETTLED
            || conf.is_joint()
            || self.is_handing_over()
        {
            return false;
        }
        let has_failed = self.consensus.has_given_lease_up();
        if has_failed && self.closing.tried.is_some_and(|(_, since)| now < since + AGAIN) {
            return false;
        }
        let me = self.consensus.me();
        let able = |node: &&NodeId| !reluctant(**node);
        let wanted = targets.voters.iter().find(able).copied();
        let is_mine = wanted == Some(me.node) && conf.voters.contains(&me);
        let heir = conf.voters.iter().copied().find(|replica| Some(replica.node) == wanted && !is_mine);
        let failed = self.failed_heir();
        self.hand_to(now, heir.filter(|heir| Some(*heir) != failed))
            || (has_failed && self.hand_over(now, reluctant))
    }

    /// Who has not taken leadership in this term, though it was to.
    fn failed_heir(&self) -> Option<Replica> {
        self.closing.tried.filter(|_| self.consensus.has_given_lease_up()).map(|(heir, _)| heir)
    }

    /// Hands leadership over to whoever can take it best. Whether it began.
    pub fn hand_over(&mut self, now: u64, reluctant: impl Fn(NodeId) -> bool) -> bool {
        if self.leading().is_none() || self.is_handing_over() {
            return false;
        }
        let me = self.consensus.me();
        let others = self.consensus.conf().voters.iter().copied();
        let able = others.filter(|replica| *replica != me && !reluctant(replica.node));
        let heir = able.filter(|replica| self.is_close(now, *replica)).max_by_key(|replica| {
            (Some(*replica) != self.failed_heir(), self.consensus.matched(now, *replica))
        });
        self.hand_to(now, heir)
    }

    /// Whether anybody else could lead.
    #[must_use]
    pub fn has_heirs(&self) -> bool {
        self.consensus.conf().voters.len() > 1
    }

    /// Says which place this replica has in elections, and whether it stands for election at all.
    pub fn set_ambition(&mut self, rank: usize, passive: bool) {
        self.consensus.set_rank(rank);
        self.consensus.set_passive(passive);
    }
}
