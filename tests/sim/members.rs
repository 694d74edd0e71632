//! Nodes that join, leave, drain, and come back with an empty disk: what an operator does to a cluster.
//!
//! Charter: an operator's client asks for one change after the other, and does what belongs to it: starts the node that
//! was let in, stops and empties the one that was forgotten.
//!
//! Invariant: a node without a life is not started. It gets one from the cluster, by joining.

use std::collections::VecDeque;

use quorate_engine::members::MemberStanding;
use quorate_protocol::id::NodeId;
use quorate_protocol::op::{MemberAdd, MemberOp, Op};
use quorate_protocol::reply::Reply;

use super::history::Outcome;
use super::world::{Event, World};

/// How often the operator looks.
const LOOK: u64 = 150_000;

/// What the operator wants of a node, by its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Join(usize),
    Drain(usize),
    Remove(usize),
    Cancel(usize),
}

/// See the top of the file.
#[derive(Debug)]
pub struct Operator {
    client: usize,
    /// What is to be done, in order.
    steps: VecDeque<Step>,
    /// What was asked, as the operation of this number.
    asked: Option<(u64, Step)>,
}

impl Operator {
    /// An operator who asks as this client.
    #[must_use]
    pub fn new(client: usize) -> Self {
        Self { client, steps: VecDeque::new(), asked: None }
    }
}

impl World {
    /// Gets the operator to work.
    pub fn plan_members(&mut self) {
        if self.plan.membership || self.plan.wipes {
            self.schedule(1_500_000, Event::Operator);
        }
    }

    /// The operator looks what to do next.
    pub fn operate(&mut self) {
        self.empty_forgotten();
        if !self.resting && self.has_answer() {
            self.ask_next_step();
        }
        let next = self.time + LOOK;
        self.schedule(next, Event::Operator);
    }

    /// A node's machine is gone with its disk; another one takes its place under its name.
    pub fn wipe(&mut self, at: usize) {
        self.crash(at, true, false);
        self.note(at, &[60], || "loses its disk".into());
        self.empty(at);
        self.operator.steps.push_back(Step::Remove(at));
        self.operator.steps.push_back(Step::Join(at));
    }

    fn empty(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        node.disk.empty();
        node.directories += 1;
        node.member = None;
        self.checks.emptied(at);
    }

    /// Nodes that the cluster has forgotten are stopped, and their disks used for something else.
    fn empty_forgotten(&mut self) {
        for at in 0..self.nodes.len() {
            let id = self.nodes[at].id;
            let gone = |engine: &quorate_engine::engine::Engine| {
                engine.leads_system() && engine.standing_of(id) == Some(MemberStanding::Gone)
            };
            let forgotten = self.nodes.iter().filter_map(|node| node.engine.as_ref()).any(gone);
            if forgotten && self.nodes[at].member.is_some() {
                self.note(at, &[61], || "is forgotten".into());
                self.crash(at, false, false);
                self.empty(at);
            }
        }
    }

    /// Takes the answer to what was asked; false while there is none.
    fn has_answer(&mut self) -> bool {
        let Some((id, step)) = self.operator.asked else { return true };
        match self.checks.history.get(id).outcome.clone() {
            Outcome::Open => {
                let client = self.operator.client;
                if self.clients[client].conn.is_none() {
                    self.operator.asked = None;
                    self.operator.steps.push_front(step);
                }
                return false;
            }
            Outcome::Answered(reply) => self.step_done(step, &reply),
            Outcome::Refused(_) | Outcome::Unknown => self.operator.steps.push_front(step),
        }
        self.operator.asked = None;
        true
    }

    fn step_done(&mut self, step: Step, reply: &Reply) {
        match (step, reply) {
            (Step::Join(at), Reply::Int(life)) => {
                self.note(at, &[62], || format!("joins, life {life}"));
                if self.nodes[at].member.is_none() {
                    self.nodes[at].member = Some(u32::try_from(*life).expect("few lives"));
                    let soon = self.time + 1000;
                    self.schedule(soon, Event::Start { node: at });
                }
            }
            // It is not forgotten yet, or nobody else would be left: once more later.
            (Step::Join(_), _) => self.operator.steps.push_back(step),
            _ => {}
        }
    }

    fn ask_next_step(&mut self) {
        if self.operator.steps.is_empty() && self.plan.membership && self.fault_rng.chance(350) {
            let step = self.some_step();
            self.operator.steps.push_back(step);
        }
        let client = self.operator.client;
        if self.clients[client].conn.is_none() {
            return self.think(client);
        }
        let Some(step) = self.operator.steps.pop_front() else { return };
        let of = |at: usize| self.nodes[at].id;
        let op = match step {
            Step::Join(at) => {
                MemberOp::Join(MemberAdd { node: of(at), peer_address: format!("peer-{}:1", of(at).0) })
            }
            Step::Drain(at) => MemberOp::Drain(of(at)),
            Step::Remove(at) => MemberOp::Remove(of(at)),
            Step::Cancel(at) => MemberOp::Cancel(of(at)),
        };
        let id = self.checks.history.invoke(client, Op::Member(op), true, self.time);
        self.operator.asked = Some((id, step));
        self.ask(client, &[id]);
    }

    /// Three active nodes at least are left: with two, a damaged disk would take the majority.
    fn some_step(&mut self) -> Step {
        let at = self.fault_rng.index(self.nodes.len());
        if self.nodes[at].member.is_none() {
            return Step::Join(at);
        }
        let leader =
            self.nodes.iter().filter_map(|node| node.engine.as_ref()).find(|engine| engine.leads_system());
        let is_active = |node: &&super::node::Node| {
            leader.is_some_and(|leader| leader.standing_of(node.id) == Some(MemberStanding::Active))
        };
        let active = self.nodes.iter().filter(is_active).count();
        match self.fault_rng.below(4) {
            0 if active > 3 => Step::Remove(at),
            1 if active > 3 => Step::Drain(at),
            _ => Step::Cancel(at),
        }
    }
}

/// The first nodes have a life from the beginning.
#[must_use]
pub fn founders_life(id: NodeId, founders: u64) -> Option<u32> {
    (id.0 <= founders).then_some(0)
}
