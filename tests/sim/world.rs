//! The world: nodes, network, clients and faults around one clock, one event after the other.
//!
//! Charter: owns everything, keeps the events in order of (time, number), and gives the engines' effects their meaning.
//! It is a second shell around the engine, beside the server's driver.
//!
//! Invariant: nothing in here depends on anything but the seed and the settings: no threads, no clocks, no hash order.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::panic::{AssertUnwindSafe, catch_unwind};

use quorate_engine::effect::{Effect, Effects, Input, Now};
use quorate_protocol::id::{GroupId, Index, NodeId};
use quorate_protocol::peer::{LinkFrame, RaftFrame, SnapshotAt, SnapshotFrame};
use quorate_protocol::wire::Wire;

use super::background::Asked;
use super::backup::Backup;
use super::check::Checks;
use super::client::{Client, Conn, ForClient, ForServer};
use super::faults::Fault;
use super::members::{Operator, founders_life};
use super::network::Network;
use super::node::Node;
use super::plan::Plan;
use super::rng::Rng;
use super::saver::{self, Saver};
use super::trace::{Trace, hash_bytes};

/// Something that happens at its time.
pub enum Event {
    /// A node takes a turn.
    Turn { node: usize, life: u64 },
    /// A node's disk has synced.
    Disk { node: usize, life: u64 },
    /// A node's journal has paused.
    Idle { node: usize, life: u64, commit: u64 },
    /// A node starts.
    Start { node: usize },
    /// A Raft frame arrives.
    Raft { from: usize, to: usize, frame: Box<RaftFrame> },
    /// A frame of the snapshot lane arrives.
    Snapshot { from: usize, to: usize, frame: Box<SnapshotFrame> },
    /// A node's disk has gone on with what is done beside the commits.
    Background { node: usize, life: u64 },
    /// A node has read a piece of a snapshot file.
    Piece { node: usize, life: u64, to: Asked, at: SnapshotAt, length: u64 },
    /// A node has mapped a snapshot file.
    Map { node: usize, life: u64, group: GroupId, index: Index },
    /// The next frame of a link arrives at an end.
    LinkArrive { link: u64, end: usize },
    /// An end of a link notices that it is cut.
    LinkEnd { link: u64, end: usize },
    /// A node dials another.
    Dial { from: usize, to: usize, life: u64 },
    /// The dialling node hears that its link stands.
    LinkOpened { link: u64, life: u64 },
    /// Something of a client reaches its node.
    ToServer { conn: u64, what: ForServer },
    /// Something of a node reaches its client.
    ToClient { conn: u64, what: ForClient },
    /// A client looks what it wants next.
    Think { client: usize },
    /// A fault begins or ends.
    Fault(Fault),
    /// The operator looks what to do next.
    Operator,
    /// A node is told to take snapshots.
    Save,
    /// Somebody makes a backup.
    BackUp,
}

struct Scheduled {
    time: u64,
    number: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.time, self.number).cmp(&(other.time, other.number))
    }
}

/// See the top of the file.
pub struct World {
    /// Microseconds since the beginning.
    pub time: u64,
    /// What the seed has decided.
    pub plan: Plan,
    /// The nodes.
    pub nodes: Vec<Node>,
    /// The network between them.
    pub network: Network,
    /// The clients.
    pub clients: Vec<Client>,
    /// Client connections by number.
    pub conns: BTreeMap<u64, Conn>,
    /// The checkers.
    pub checks: Checks,
    /// What happened.
    pub trace: Trace,
    /// Chance of the faults.
    pub fault_rng: Rng,
    /// Chance of the clients.
    pub client_rng: Rng,
    /// Who changes the members.
    pub operator: Operator,
    /// Who makes backups.
    pub saver: Saver,
    /// The backup that is made, or was.
    pub backup: Option<Backup>,
    /// Whether clients and faults have been stopped.
    pub resting: bool,
    events: BinaryHeap<Reverse<Scheduled>>,
    next_event: u64,
}

impl World {
    /// A world before its beginning.
    #[must_use]
    pub fn new(plan: Plan, keep: usize) -> Self {
        let seed = plan.seed;
        let count = usize::try_from(plan.nodes + plan.spares).expect("few nodes");
        let mut world = Self {
            time: 0,
            nodes: (1..=plan.nodes + plan.spares)
                .map(|id| Node::new(NodeId(id), seed, founders_life(NodeId(id), plan.nodes)))
                .collect(),
            network: Network::new(count, seed),
            clients: Vec::new(),
            conns: BTreeMap::new(),
            checks: Checks::new(count, plan.voters().collect()),
            trace: Trace::new(keep),
            fault_rng: Rng::new(seed, 4),
            client_rng: Rng::new(seed, 5),
            operator: Operator::new(0),
            saver: Saver::new(Rng::new(seed, 6)),
            backup: None,
            resting: false,
            events: BinaryHeap::new(),
            next_event: 0,
            plan,
        };
        for node in 0..count {
            let at = world.fault_rng.below(300_000);
            world.schedule(at, Event::Start { node });
        }
        world.add_clients();
        world.add_back_clients();
        world.operator = Operator::new(world.add_auditor());
        world.plan_members();
        world.plan_saves();
        world.plan_backup();
        world.plan_faults();
        world
    }

    /// Puts an event in its place.
    pub fn schedule(&mut self, time: u64, event: Event) {
        self.next_event += 1;
        self.events.push(Reverse(Scheduled { time: time.max(self.time), number: self.next_event, event }));
    }

    /// Lets the world go on until a time; false when something was not as promised.
    pub fn run_until(&mut self, end: u64) -> bool {
        while self.checks.violation.is_none() {
            if self.events.peek().is_none_or(|Reverse(next)| next.time > end) {
                self.time = end;
                return true;
            }
            let Some(Reverse(next)) = self.events.pop() else { break };
            self.time = next.time;
            self.happen(next.event);
        }
        false
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Turn { node, life } => self.turn(node, life),
            Event::Disk { node, life } => self.disk_done(node, life),
            Event::Idle { node, life, commit } => self.idle(node, life, commit),
            Event::Start { node } => self.start(node),
            Event::Raft { from, to, frame } => self.hear_raft(from, to, *frame),
            Event::Snapshot { from, to, frame } => self.hear_snapshot(from, to, *frame),
            Event::Background { node, life } => self.background_goes_on(node, life),
            Event::Piece { node, life, to, at, length } => self.piece_read(node, life, to, at, length),
            Event::Map { node, life, group, index } => self.mapped(node, life, group, index),
            Event::LinkArrive { link, end } => self.link_arrives(link, end),
            Event::LinkEnd { link, end } => self.close_end(link, end),
            Event::Dial { from, to, life } => self.dial(from, to, life),
            Event::LinkOpened { link, life } => self.link_opened(link, life),
            Event::ToServer { conn, what } => self.to_server(conn, what),
            Event::ToClient { conn, what } => self.to_client(conn, what),
            Event::Think { client } => self.think(client),
            Event::Fault(fault) => self.fault(fault),
            Event::Operator => self.operate(),
            Event::Save => self.save(),
            Event::BackUp => self.back_up(),
        }
    }

    /// Something happened at a node.
    pub fn note(&mut self, at: usize, words: &[u64], text: impl FnOnce() -> String) {
        self.trace.count(self.time, &[at as u64]);
        self.trace.note(self.time, words, || format!("node {}: {}", at + 1, text()));
    }

    /// Something is not as promised.
    pub fn fail(&mut self, property: &'static str, text: String) {
        self.checks.fail(property, self.time, text);
    }

    /// Runs the engine's code; a failed assertion there is a violation.
    pub fn guard<R>(&mut self, at: usize, work: impl FnOnce() -> R) -> Option<R> {
        match catch_unwind(AssertUnwindSafe(work)) {
            Ok(result) => Some(result),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
                let text = text.unwrap_or_default();
                self.fail("no impossible state", format!("node {} stops: {text}", at + 1));
                None
            }
        }
    }

    /// Hands inputs to a node's engine.
    pub fn step(&mut self, at: usize, now: Now, inputs: Vec<Input>) -> Option<Effects> {
        let mut engine = self.nodes[at].engine.take().expect("a node that is up has an engine");
        let effects = self.guard(at, || {
            let mut effects = Effects::new();
            for input in inputs {
                engine.step(now, input, &mut effects);
            }
            effects
        });
        self.nodes[at].engine = Some(engine);
        effects
    }

    /// Performs a node's effects, in order.
    pub fn perform(&mut self, at: usize, effects: Effects) {
        for effect in effects {
            match effect {
                Effect::Persist(batch) => {
                    let entries = batch.entries.len() as u64;
                    self.note(at, &[1, batch.seq, entries], || {
                        let of = |entry: &quorate_engine::journal::Entry| {
                            format!("{}:{}@{}", entry.group.0, entry.index, entry.term)
                        };
                        let entries: Vec<String> = batch.entries.iter().map(of).collect();
                        format!("writes batch {} {:?} {}", batch.seq, batch.rows, entries.join(" "))
                    });
                    self.checks.submitted(self.time, at, &batch);
                    self.submit(at, batch);
                }
                Effect::Background { number, ios } => self.submit_background(at, number, ios),
                Effect::SendPiece { to, at: place, length } => {
                    self.read_piece(at, Asked::Node(place_of(to)), place, length);
                }
                Effect::ReadPiece { conn, request, at: place, length } => {
                    self.read_piece(at, Asked::Client(conn, request), place, length);
                }
                Effect::Map { group, index } => self.want_map(at, group, index),
                Effect::Stop(why) => self.stops(at, &why),
                Effect::Snapshot { to, frame } => {
                    self.trace.count(self.time, &[5, at as u64, to.0, hash_bytes(5, &frame.to_wire())]);
                    if let Some(heard) = self.as_read(frame) {
                        self.send_snapshot(at, place_of(to), heard);
                    }
                }
                Effect::Raft { to, frame } => {
                    self.trace.count(self.time, &[2, at as u64, to.0, hash_bytes(2, &frame.to_wire())]);
                    if let Some(heard) = self.as_read(frame) {
                        self.send_raft(at, place_of(to), heard);
                    }
                }
                Effect::Link { peer, side, frame } => {
                    let words = [3, peer.0, hash_bytes(3, &frame.to_wire())];
                    self.note(at, &words, || format!("to {} ({side:?}): {frame:?}", peer.0));
                    if let Some(heard) = self.as_read::<LinkFrame>(frame) {
                        self.send_link(at, place_of(peer), side, heard);
                    }
                }
                Effect::Reply { conn, reply, .. } if conn >= saver::FIRST => self.saved(at, conn, &reply),
                Effect::Reply { conn, request, reply } => self.replied(at, conn, request, reply),
                Effect::Push { conn, delivery } => self.pushed(at, conn, delivery),
                Effect::Close { conn, reason } => self.closed(at, conn, reason),
                Effect::Members(_) => {}
                Effect::Cache(effect) => {
                    self.note(at, &[6], || format!("{effect:?}"));
                    self.cache_effect(at, effect);
                }
                Effect::Track(effect) => {
                    self.note(at, &[8], || format!("{effect:?}"));
                    self.track_effect(at, effect);
                }
                Effect::Log(level, line) => {
                    self.note(at, &[4, line.len() as u64], || format!("{level:?}: {line}"))
                }
            }
        }
        let node = &mut self.nodes[at];
        node.view.keep_gone(&mut node.evicted);
    }

    /// A frame as its receiver reads it; that must be what was sent.
    fn as_read<T: Wire + PartialEq + std::fmt::Debug>(&mut self, frame: T) -> Option<T> {
        match T::from_wire(frame.to_wire()) {
            Ok(heard) if heard == frame => return Some(heard),
            other => self.fail("frames are read as written", format!("{frame:?} is read as {other:?}")),
        }
        None
    }

    /// Shows a node's state to the checkers.
    pub fn observe(&mut self, at: usize) {
        let Some(engine) = &self.nodes[at].engine else { return };
        let reports = engine.report();
        let clock = self.nodes[at].clock.clone();
        self.checks.observe(self.time, at, &reports, |mono| clock.when(mono));
    }

    /// A node is gone: its links and connections with it.
    pub fn drop_node(&mut self, at: usize, power: bool) {
        self.drop_links(at);
        self.drop_conns(at, power);
    }
}

/// A node's place in the world.
fn place_of(node: NodeId) -> usize {
    usize::try_from(node.0 - 1).expect("few nodes")
}
