//! A cluster of engines on a perfect network, with disks that keep everything. Faults belong to the simulator.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use quorate_engine::cache::CacheEffect;
use quorate_engine::effect::{Effect, Input, NodeAsk, Now, Request, Side, TICK, Want};
use quorate_engine::engine::{Config, Counts, Engine};
use quorate_engine::journal::{Entry, File, Io, Meta, RESET, Recovered, Row};
use quorate_protocol::id::{Boot, ClusterId, GroupId, Identity, NodeId};
use quorate_protocol::op::{Expiry, Op, Set, When};
use quorate_protocol::peer::{SnapshotAt, SnapshotFrame, SnapshotPiece};
use quorate_protocol::reply::Reply;

/// What a node has on its disk.
#[derive(Default, Clone)]
pub(crate) struct Disk {
    pub(crate) rows: BTreeMap<GroupId, Row>,
    pub(crate) entries: BTreeMap<GroupId, Vec<Entry>>,
    pub(crate) files: BTreeMap<File, Vec<u8>>,
}

impl Disk {
    fn keep(&mut self, rows: Vec<(GroupId, Row)>, entries: Vec<Entry>) {
        self.rows.extend(rows);
        for entry in entries {
            let log = self.entries.entry(entry.group).or_default();
            if entry.kind == RESET {
                log.clear();
                continue;
            }
            let kept = log.partition_point(|kept| kept.index < entry.index);
            log.truncate(kept);
            log.push(entry);
        }
    }

    /// Takes away what the snapshots cover.
    pub(crate) fn compact(&mut self) {
        for (group, log) in &mut self.entries {
            let covered = self.rows.get(group).map_or(0, |row| row.snapshot.0);
            log.drain(..log.partition_point(|entry| entry.index <= covered));
        }
    }

    fn perform(&mut self, ios: Vec<Io>) {
        for io in ios {
            match io {
                Io::Write { file, offset, bytes } => {
                    let content = self.files.entry(file).or_default();
                    let (start, end) = (
                        usize::try_from(offset).expect("it fits the memory"),
                        usize::try_from(offset).expect("it fits the memory") + bytes.len(),
                    );
                    content.resize(content.len().max(end), 0);
                    content[start..end].copy_from_slice(&bytes);
                }
                Io::Remove { file } => drop(self.files.remove(&file)),
                Io::Create { .. } | Io::Sync { .. } => {}
            }
        }
    }

    /// Bytes of a snapshot file; none if it is not there.
    fn read(&self, at: SnapshotAt, length: u64) -> Option<Bytes> {
        let file = self.files.get(&File::Snapshot(at.group, at.index))?;
        let place = |offset: u64| usize::try_from(offset).expect("it fits the memory").min(file.len());
        Some(Bytes::copy_from_slice(&file[place(at.offset)..place(at.offset + length)]))
    }

    /// As a journal reads it back.
    pub(crate) fn recover(&self, meta: Meta) -> Recovered {
        let mut entries = self.entries.clone();
        let mut snapshots = BTreeMap::new();
        for (&group, row) in &self.rows {
            if let Some(log) = entries.get_mut(&group) {
                log.retain(|entry| entry.index > row.snapshot.0);
            }
            if row.snapshot.0 > 0 {
                let file = &self.files[&File::Snapshot(group, row.snapshot.0)];
                snapshots.insert(group, Bytes::from(file.clone()));
            }
        }
        Recovered { meta, rows: self.rows.clone(), snapshots, entries, damage: Vec::new() }
    }
}

/// A mapped file. As in a server, whoever drops the last part of a large one does not wait for the system.
struct Mapping(Vec<u8>);

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.0.len() > 1 << 20 {
            let bytes = std::mem::take(&mut self.0);
            std::thread::spawn(move || drop(bytes));
        }
    }
}

/// How long turns took, by the clock that the bench of pauses brings along.
pub(crate) struct Watch {
    pub(crate) clock: fn() -> u64,
    pub(crate) phase: &'static str,
    /// All turns, in their order: the phase, the node, what came in, and how long it took.
    pub(crate) turns: Vec<((&'static str, u64, String), u64)>,
}

impl Watch {
    fn note(&mut self, node: NodeId, what: String, began: u64) {
        let took = (self.clock)() - began;
        self.turns.push(((self.phase, node.0, what), took));
    }
}

/// What kinds of inputs a turn has taken.
fn kinds(inputs: &[Input]) -> String {
    let kind = |input: &Input| match input {
        Input::Tick => "tick",
        Input::Persisted(_) => "persisted",
        Input::BackgroundDone(_) => "background",
        Input::Snapshot { frame: SnapshotFrame::Piece(_), .. } => "piece",
        Input::Requests { .. } => "requests",
        Input::Raft { .. } => "raft",
        Input::Link { .. } => "link",
        _ => "other",
    };
    let kinds: BTreeSet<&str> = inputs.iter().map(kind).collect();
    kinds.into_iter().collect::<Vec<_>>().join("+")
}

type Steps = Option<(fn(&Counts) -> [u64; 2], [u64; 2])>;

fn end_turn(engine: &mut Engine, now: Now, steps: &mut Steps, fx: &mut Vec<Effect>) {
    let before = steps.as_ref().map(|(count, _)| count(&engine.counts()));
    engine.step(now, Input::EndOfTurn, fx);
    if let (Some((count, most)), Some(before)) = (steps, before) {
        let after = count(&engine.counts());
        (0..2).for_each(|n| most[n] = most[n].max(after[n] - before[n]));
    }
}

pub(crate) struct Town {
    pub(crate) now: Now,
    pub(crate) nodes: BTreeMap<NodeId, Engine>,
    pub(crate) disks: BTreeMap<NodeId, Disk>,
    /// Nobody hears them, and they hear nobody.
    pub(crate) cut_off: BTreeSet<NodeId>,
    pub(crate) log_floor: u64,
    /// See `Config`.
    pub(crate) store: (u64, bool),
    inbox: VecDeque<(NodeId, Input)>,
    pub(crate) replies: Vec<(NodeId, u64, u64, Reply)>,
    founders: Vec<(NodeId, String)>,
    boots: u64,
    /// Node → the next free request number on its connection.
    asked: BTreeMap<u64, u64>,
    /// Nodes whose snapshot files take nothing at present, and what waits for them.
    pub(crate) stuck: BTreeSet<NodeId>,
    waiting: Vec<(NodeId, u64, Vec<Io>)>,
    /// Nodes of whose commits nothing is heard at present, and the last of each.
    pub(crate) silent: BTreeSet<NodeId>,
    unheard: BTreeMap<NodeId, u64>,
    /// Raft messages of this kind are lost.
    pub(crate) lost: Option<u8>,
    /// Bytes of snapshots that were sent to a node.
    pub(crate) sent: BTreeMap<NodeId, usize>,
    /// Whether a node takes all that waits for it in one turn, as a server does.
    pub(crate) gathers: bool,
    pub(crate) watch: Option<Watch>,
    /// Until when a node's view would show a key, as it was told last.
    pub(crate) shown: BTreeMap<(NodeId, Bytes), u64>,
    /// Lines of the nodes' logs.
    pub(crate) logs: Vec<(NodeId, String)>,
    /// Steps that every node counts of its work, and the most that a turn has added to each.
    pub(crate) steps: Steps,
}

pub(crate) fn meta(node: u64, founders: &[(NodeId, String)]) -> Meta {
    Meta {
        cluster: ClusterId(1),
        node: NodeId(node),
        identity: Identity(u128::from(node)),
        boot: Boot(1),
        partitions: 16,
        founders: founders.to_vec(),
    }
}

impl Town {
    pub(crate) fn new(n: u64) -> Self {
        Self::with_floor(n, 64 << 20)
    }

    /// `log_floor`: see `Config`.
    pub(crate) fn with_floor(n: u64, log_floor: u64) -> Self {
        Self::with_bounds(n, log_floor, (u64::MAX, false))
    }

    /// `log_floor`, and what keys may take and whether they are evicted: see `Config`.
    pub(crate) fn with_bounds(n: u64, log_floor: u64, store: (u64, bool)) -> Self {
        let mut this = Self {
            store,
            now: Now { mono: 1_000_000, wall: 0 },
            nodes: BTreeMap::new(),
            disks: BTreeMap::new(),
            cut_off: BTreeSet::new(),
            log_floor,
            inbox: VecDeque::new(),
            replies: Vec::new(),
            founders: (1..=n).map(|id| (NodeId(id), format!("peer{id}"))).collect(),
            boots: 0,
            asked: BTreeMap::new(),
            stuck: BTreeSet::new(),
            waiting: Vec::new(),
            silent: BTreeSet::new(),
            unheard: BTreeMap::new(),
            lost: None,
            sent: BTreeMap::new(),
            gathers: false,
            watch: None,
            shown: BTreeMap::new(),
            logs: Vec::new(),
            steps: None,
        };
        (1..=n).for_each(|id| this.start(id));
        this
    }

    /// Starts a node, or starts it again, from what is on its disk.
    pub(crate) fn start(&mut self, id: u64) {
        let node = NodeId(id);
        self.boots += 1;
        self.inbox.retain(|(to, _)| *to != node);
        let meta = Meta { boot: Boot(self.boots), ..meta(id, &self.founders) };
        let recovered = self.disks.entry(node).or_default().recover(meta);
        let mut config = Config::new(7, format!("client{id}"));
        config.log_floor = self.log_floor;
        (config.store_memory, config.store_evicts) = self.store;
        self.nodes.insert(node, Engine::new(self.now, config, recovered));
        let others: Vec<NodeId> = self.nodes.keys().copied().filter(|other| *other != node).collect();
        for other in others {
            self.connect(node, other);
            self.connect(other, node);
        }
        self.inbox.push_back((node, Input::Connected { conn: 1, ordered: true }));
    }

    fn connect(&mut self, from: NodeId, to: NodeId) {
        for side in [Side::Opener, Side::Reached] {
            self.inbox.push_back((from, Input::LinkUp { peer: to, side }));
        }
    }

    fn send(&mut self, from: NodeId, to: NodeId, input: Input) {
        if !self.cut_off.contains(&from) && !self.cut_off.contains(&to) {
            self.inbox.push_back((to, input));
        }
    }

    fn step(&mut self, node: NodeId, input: Input) {
        let mut inputs = vec![input];
        if self.gathers {
            let (mine, others) = self.inbox.drain(..).partition(|(to, _)| *to == node);
            self.inbox = others;
            let mine: VecDeque<(NodeId, Input)> = mine;
            inputs.extend(mine.into_iter().map(|(_, input)| input));
        }
        let mut fx = Vec::new();
        let Some(engine) = self.nodes.get_mut(&node) else { return };
        let what = self.watch.as_ref().map(|_| kinds(&inputs));
        let mut began = self.watch.as_ref().map_or(0, |watch| (watch.clock)());
        for input in inputs {
            engine.step(self.now, input, &mut fx);
        }
        end_turn(engine, self.now, &mut self.steps, &mut fx);
        while engine.has_more() {
            if let (Some(watch), Some(what)) = (&mut self.watch, &what) {
                watch.note(node, what.clone(), began);
                began = (watch.clock)();
            }
            end_turn(engine, self.now, &mut self.steps, &mut fx);
        }
        if let (Some(watch), Some(what)) = (&mut self.watch, what) {
            watch.note(node, what, began);
        }
        fx.into_iter().for_each(|effect| self.perform(node, effect));
    }

    /// All snapshot files take what waits for them.
    pub(crate) fn unstick(&mut self) {
        self.stuck.clear();
        for (node, number, ios) in core::mem::take(&mut self.waiting) {
            self.perform(node, Effect::Background { number, ios });
        }
    }

    /// All commits are done.
    pub(crate) fn unsilence(&mut self) {
        self.silent.clear();
        let unheard = core::mem::take(&mut self.unheard);
        self.inbox.extend(unheard.into_iter().map(|(node, seq)| (node, Input::Persisted(seq))));
    }

    fn perform(&mut self, node: NodeId, effect: Effect) {
        let disk = self.disks.get_mut(&node).expect("every node has one");
        match effect {
            Effect::Persist(persist) => {
                disk.keep(persist.rows, persist.entries);
                if self.silent.contains(&node) {
                    self.unheard.insert(node, persist.seq);
                    return;
                }
                self.inbox.push_back((node, Input::Persisted(persist.seq)));
            }
            Effect::Background { number, ios } if self.stuck.contains(&node) => {
                self.waiting.push((node, number, ios));
            }
            Effect::Background { number, ios } => {
                disk.perform(ios);
                self.inbox.push_back((node, Input::BackgroundDone(number)));
            }
            Effect::SendPiece { to, at, length } => {
                let bytes = disk.read(at, length).unwrap_or_default();
                *self.sent.entry(to).or_default() += bytes.len();
                let frame = SnapshotFrame::Piece(SnapshotPiece { at, bytes });
                self.send(node, to, Input::Snapshot { from: node, frame });
            }
            Effect::ReadPiece { conn, request, at, length } => {
                let bytes = Ok(disk.read(at, length));
                self.inbox.push_back((node, Input::PieceRead { conn, request, bytes }));
            }
            Effect::Map { group, index } => {
                let file = disk.files.get(&File::Snapshot(group, index));
                let bytes = file.map(|file| Bytes::from_owner(Mapping(file.clone())));
                self.inbox.push_back((node, Input::Mapped { group, index, bytes }));
            }
            Effect::Stop(why) => panic!("{why}"),
            Effect::Snapshot { to, frame } => self.send(node, to, Input::Snapshot { from: node, frame }),
            Effect::Raft { to, mut frame } => {
                frame.messages.retain(|message| Some(message.kind) != self.lost);
                self.send(node, to, Input::Raft { from: node, frame });
            }
            Effect::Link { peer, side, frame } => {
                let other = if side == Side::Opener { Side::Reached } else { Side::Opener };
                self.send(node, peer, Input::Link { peer: node, side: other, frame });
            }
            Effect::Reply { conn, request, reply } => self.replies.push((node, conn, request, reply)),
            Effect::Cache(CacheEffect::Fill { key, until, .. }) => {
                self.shown.insert((node, key), until);
            }
            Effect::Push { .. }
            | Effect::Close { .. }
            | Effect::Members(_)
            | Effect::Cache(_)
            | Effect::Track(_) => {}
            Effect::Log(_, line) => self.logs.push((node, line)),
        }
    }

    pub(crate) fn run(&mut self, ticks: u64) {
        for _ in 0..ticks {
            while let Some((node, input)) = self.inbox.pop_front() {
                self.step(node, input);
            }
            self.now.mono += TICK;
            let ids: Vec<_> = self.nodes.keys().copied().collect();
            self.inbox.extend(ids.into_iter().map(|id| (id, Input::Tick)));
        }
    }

    /// Takes a few inputs only: whatever is going on stands in the middle of it.
    pub(crate) fn run_some(&mut self, inputs: usize) {
        for _ in 0..inputs {
            let Some((node, input)) = self.inbox.pop_front() else { break };
            self.step(node, input);
        }
    }

    /// Runs until something holds.
    pub(crate) fn run_until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        for _ in 0..5000 {
            if holds(self) {
                return;
            }
            self.run(1);
        }
        panic!("{what}: not after 100 seconds");
    }

    pub(crate) fn post(&mut self, node: u64, input: Input) {
        self.inbox.push_back((NodeId(node), input));
    }

    pub(crate) fn ask(&mut self, node: u64, first: u64, ops: Vec<Op>) {
        self.want(node, first, ops.into_iter().map(Want::Op).collect());
    }

    fn want(&mut self, node: u64, first: u64, wants: Vec<Want>) {
        let request = |(id, want)| Request { id, want, client: None, after: None };
        let requests = (first..).zip(wants).map(request).collect();
        self.inbox.push_back((NodeId(node), Input::Requests { conn: 1, requests }));
    }

    /// Asks a node something of its own, under the next free number, which it returns.
    pub(crate) fn ask_node(&mut self, node: u64, ask: NodeAsk) -> u64 {
        let next = self.asked.entry(node).or_insert(1);
        let id = *next;
        *next += 1;
        self.want(node, id, [Want::Node(ask)].into());
        id
    }

    /// The answer to a request, if it has come.
    pub(crate) fn answer(&self, node: u64, id: u64) -> Option<Reply> {
        let found = self.replies.iter().find(|reply| (reply.0, reply.2) == (NodeId(node), id));
        found.map(|(.., reply)| reply.clone())
    }

    /// Asks under the next free numbers; returns the first.
    pub(crate) fn ask_next(&mut self, node: u64, ops: Vec<Op>) -> u64 {
        let next = self.asked.entry(node).or_insert(1);
        let first = *next;
        *next += ops.len() as u64;
        self.ask(node, first, ops);
        first
    }

    pub(crate) fn replies_of(&self, node: u64) -> Vec<(u64, Reply)> {
        self.replies.iter().filter(|r| r.0 == NodeId(node)).map(|r| (r.2, r.3.clone())).collect()
    }

    /// Whether all replicas of all groups on these nodes have applied the same, and digests are equal.
    pub(crate) fn agree(&self, nodes: &[u64]) -> bool {
        let mut seen: BTreeMap<GroupId, (u64, u64)> = BTreeMap::new();
        nodes.iter().flat_map(|id| self.nodes[&NodeId(*id)].report()).all(|report| {
            let here = (report.applied, report.digest);
            *seen.entry(report.group).or_insert(here) == here
        })
    }

    pub(crate) fn engine(&self, node: u64) -> &Engine {
        &self.nodes[&NodeId(node)]
    }
}

pub(crate) fn set(key: &str, value: &str) -> Op {
    let (key, value) = (Bytes::copy_from_slice(key.as_bytes()), Bytes::copy_from_slice(value.as_bytes()));
    Op::Set(Set { key, value, when: When::Always, expiry: Expiry::Never, get: false })
}

pub(crate) fn get(key: &str) -> Op {
    Op::Get(Bytes::copy_from_slice(key.as_bytes()))
}
