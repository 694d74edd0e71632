//! One node: an engine, and the shell around it as the server builds it.
//!
//! Charter: a mailbox with an urgent lane and a work lane, turns (inputs, a tick if one is due, `EndOfTurn`, then all
//! effects in order), a journal that commits everything that waits in one plan, and starts and crashes. What
//! effects mean to the rest of the world is `world.rs`.
//!
//! Invariant: nothing of a life of the node is done in a later life: every event names the life it belongs to.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use quorate_engine::effect::{Input, TICK};
use quorate_engine::engine::Engine;
use quorate_engine::journal::{File, Io, Journal, Persist, Recovered, found, read_meta, recover};
use quorate_protocol::id::{GroupId, NodeId};
use quorate_protocol::limits::TRACKED_MAX;
use quorate_server::tracking::{Pushes, Tracking};
use quorate_server::view::View;

use super::background::Background;
use super::clock::Clock;
use super::disk::Disk;
use super::mapped::Maps;
use super::rng::Rng;
use super::world::{Event, World};

/// The pause after which a frontier vouches for what was committed; as in the server.
const IDLE: u64 = 10_000;

/// What a plan of the journal is done for.
pub enum Purpose {
    /// Batches up to this number.
    Batches(u64),
    /// A frontier.
    Frontier,
    /// The start of the node.
    Start(Box<Recovered>),
}

/// The journal's thread.
pub struct Keeper {
    journal: Journal,
    waiting: Vec<Persist>,
    plan: Vec<Io>,
    left: VecDeque<Io>,
    purpose: Option<Purpose>,
    commits: u64,
}

/// Whether a node runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It does not.
    Down,
    /// It makes its directory ready.
    Starting,
    /// It runs.
    Up,
    /// Its directory is damaged: it cannot prove any more that it has what it acknowledged.
    Ruined(String),
}

/// See the top of the file.
pub struct Node {
    /// Its name.
    pub id: NodeId,
    /// Rises with every start and crash.
    pub life: u64,
    /// Whether it runs.
    pub state: State,
    /// The engine, while it runs.
    pub engine: Option<Engine>,
    /// What its connections read without asking the engine.
    pub view: View,
    /// What its clients keep.
    pub tracking: Tracking,
    /// What the view has dropped and the engine has not heard of.
    pub evicted: Vec<(GroupId, Bytes)>,
    /// Its clock.
    pub clock: Clock,
    /// Its disk.
    pub disk: Disk,
    /// What it does on its disk beside the commits.
    pub background: Background,
    /// What it has mapped of it.
    pub maps: Maps,
    keeper: Option<Keeper>,
    urgent: Vec<Input>,
    work: Vec<Input>,
    turn_at: Option<u64>,
    /// Turns that it has taken, in all its lives.
    pub turns: u64,
    next_tick: u64,
    /// The life that it has as a member; none: it is not let in yet.
    pub member: Option<u32>,
    /// Rises with every data directory that it has had.
    pub directories: u64,
    /// Frozen until then.
    pub paused_until: u64,
    /// Its syncs are slow until then.
    pub slow_until: u64,
    /// Connections accepted in this life.
    pub accepted: u64,
    /// Connection counter → connection.
    pub conns: BTreeMap<u64, u64>,
    rng: Rng,
}

impl Node {
    /// A node with an empty disk that does not run yet.
    #[must_use]
    pub fn new(id: NodeId, seed: u64, member: Option<u32>) -> Self {
        let mut rng = Rng::new(seed, 100 + id.0);
        Self {
            id,
            life: 0,
            state: State::Down,
            engine: None,
            view: View::new(0, 0),
            tracking: Tracking::new(0, 0),
            evicted: Vec::new(),
            clock: Clock::new(&mut rng),
            disk: Disk::new(Rng::new(seed, 200 + id.0)),
            background: Background::new(Rng::new(seed, 300 + id.0)),
            maps: Maps::default(),
            keeper: None,
            urgent: Vec::new(),
            work: Vec::new(),
            turn_at: None,
            turns: 0,
            next_tick: 0,
            member,
            directories: 0,
            paused_until: 0,
            slow_until: 0,
            accepted: 0,
            conns: BTreeMap::new(),
            rng,
        }
    }

    /// Whether it runs.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.state == State::Up
    }

    /// How long its disk takes to sync.
    pub fn sync_latency(&mut self, time: u64) -> u64 {
        let rng = &mut self.rng;
        if time < self.slow_until {
            rng.between(5_000..80_000)
        } else if rng.chance(10) {
            rng.between(1_000..20_000)
        } else {
            rng.between(60..400)
        }
    }
}

impl World {
    /// Puts something into a node's mailbox.
    pub fn post(&mut self, at: usize, input: Input) {
        let time = self.time;
        let node = &mut self.nodes[at];
        if !node.is_up() {
            return;
        }
        if matches!(input, Input::Raft { .. } | Input::Persisted(_) | Input::BackgroundDone(_)) {
            node.urgent.push(input);
        } else {
            node.work.push(input);
        }
        let busy = if node.rng.chance(20) { 3_000 } else { 80 };
        let wake = time + 1 + node.rng.below(busy);
        self.schedule_turn(at, wake);
    }

    fn schedule_turn(&mut self, at: usize, wake: u64) {
        let node = &mut self.nodes[at];
        let wake = wake.max(node.paused_until);
        if node.turn_at.is_none_or(|other| wake < other) {
            node.turn_at = Some(wake);
            let life = node.life;
            self.schedule(wake, Event::Turn { node: at, life });
        }
    }

    /// A turn is due.
    pub fn turn(&mut self, at: usize, life: u64) {
        let time = self.time;
        let node = &mut self.nodes[at];
        if node.life != life || !node.is_up() || node.turn_at != Some(time) {
            return;
        }
        node.turn_at = None;
        if time < node.paused_until {
            let until = node.paused_until;
            return self.schedule_turn(at, until);
        }
        node.turns += 1;
        let now = node.clock.read(time);
        let mut inputs = Vec::new();
        if !node.evicted.is_empty() {
            inputs.push(Input::Evicted(std::mem::take(&mut node.evicted)));
        }
        inputs.append(&mut node.urgent);
        inputs.append(&mut node.work);
        let mut pushes = Pushes::new();
        if now.mono >= node.next_tick {
            node.tracking.tick(now.mono, &mut pushes);
            node.next_tick = (node.next_tick + TICK).max(now.mono);
            inputs.push(Input::Shown(node.view.take_shown()));
            inputs.push(Input::Tick);
        }
        inputs.push(Input::EndOfTurn);
        let next_tick = node.clock.when(node.next_tick);
        self.tell_stale(at, pushes);
        if let Some(effects) = self.step(at, now, inputs) {
            self.perform(at, effects);
            self.observe(at);
        }
        if self.nodes[at].life == life && self.nodes[at].is_up() {
            let has_more = self.nodes[at].engine.as_ref().is_some_and(Engine::has_more);
            self.schedule_turn(at, if has_more { time + 1 } else { next_tick.max(time + 1) });
        }
    }

    /// The engine's thread hands a batch to the journal's.
    pub fn submit(&mut self, at: usize, batch: Persist) {
        let keeper = self.nodes[at].keeper.as_mut().expect("a node that runs has a journal");
        keeper.waiting.push(batch);
        if keeper.purpose.is_none() {
            self.begin_commit(at);
        }
    }

    fn begin_commit(&mut self, at: usize) {
        let keeper = self.nodes[at].keeper.as_mut().expect("a node that runs has a journal");
        let batches = std::mem::take(&mut keeper.waiting);
        let last = batches.last().expect("the caller has seen one").seq;
        let mut plan = Vec::new();
        keeper.journal.plan(&batches, &mut plan);
        self.begin_plan(at, plan, Purpose::Batches(last));
    }

    fn begin_plan(&mut self, at: usize, plan: Vec<Io>, purpose: Purpose) {
        let keeper = self.nodes[at].keeper.as_mut().expect("a node that runs has a journal");
        keeper.left = plan.iter().cloned().collect();
        keeper.plan = plan;
        keeper.purpose = Some(purpose);
        self.advance_disk(at);
    }

    /// Does what needs no waiting, up to the next sync or the end of the plan.
    fn advance_disk(&mut self, at: usize) {
        let time = self.time;
        let node = &mut self.nodes[at];
        let keeper = node.keeper.as_mut().expect("a node that runs has a journal");
        while let Some(io) = keeper.left.front() {
            if matches!(io, Io::Sync { .. }) {
                let done = time + node.sync_latency(time);
                let life = node.life;
                return self.schedule(done, Event::Disk { node: at, life });
            }
            node.disk.perform(io);
            keeper.left.pop_front();
        }
        self.plan_done(at);
    }

    /// A sync is done.
    pub fn disk_done(&mut self, at: usize, life: u64) {
        let time = self.time;
        let node = &mut self.nodes[at];
        if node.life != life {
            return;
        }
        if time < node.paused_until {
            // The medium has it; the thread that waits for it is frozen.
            let until = node.paused_until;
            return self.schedule(until, Event::Disk { node: at, life });
        }
        let keeper = node.keeper.as_mut().expect("a node of this life has a journal");
        if let Some(io) = keeper.left.pop_front() {
            node.disk.perform(&io);
        }
        self.advance_disk(at);
    }

    fn plan_done(&mut self, at: usize) {
        let time = self.time;
        let node = &mut self.nodes[at];
        let life = node.life;
        let keeper = node.keeper.as_mut().expect("a node that runs has a journal");
        keeper.journal.done();
        match keeper.purpose.take().expect("a plan has a purpose") {
            Purpose::Batches(seq) => {
                node.disk.note_commit(&keeper.plan);
                self.checks.durable(at, seq);
                self.post(at, Input::Persisted(seq));
            }
            Purpose::Frontier => node.disk.note_vouched(),
            Purpose::Start(recovered) => {
                node.disk.note_vouched();
                return self.started(at, *recovered);
            }
        }
        let keeper = self.nodes[at].keeper.as_mut().expect("it was just seen");
        keeper.commits += 1;
        if !keeper.waiting.is_empty() {
            self.begin_commit(at);
        } else if keeper.journal.has_news() {
            let commit = keeper.commits;
            self.schedule(time + IDLE, Event::Idle { node: at, life, commit });
        }
    }

    /// The journal has had nothing to do for a while.
    pub fn idle(&mut self, at: usize, life: u64, commit: u64) {
        let node = &mut self.nodes[at];
        if node.life != life {
            return;
        }
        let keeper = node.keeper.as_mut().expect("a node of this life has a journal");
        if keeper.commits != commit || keeper.purpose.is_some() {
            return;
        }
        let mut plan = Vec::new();
        keeper.journal.idle(&mut plan);
        if !plan.is_empty() {
            self.begin_plan(at, plan, Purpose::Frontier);
        }
    }

    /// Starts a node: founds its directory if it is empty, reads it, makes it ready.
    pub fn start(&mut self, at: usize) {
        if self.nodes[at].state != State::Down {
            return;
        }
        let Some(life) = self.nodes[at].member else { return };
        let options = self.plan.journal_options();
        let founding = self.plan.meta(self.nodes[at].id, self.nodes[at].directories);
        let node = &mut self.nodes[at];
        node.life += 1;
        let mut contents = node.disk.contents();
        if matches!(read_meta(&contents), Ok(None)) {
            // Founding is repeated until both copies are synced: a crash in it leaves nothing that counts.
            let mut plan = Vec::new();
            found(&founding, life, &mut plan);
            plan.iter().for_each(|io| node.disk.perform(io));
            contents = node.disk.contents();
        }
        match recover(&contents, &options) {
            Ok((recovered, journal, plan)) => {
                node.state = State::Starting;
                node.keeper = Some(Keeper {
                    journal,
                    waiting: Vec::new(),
                    plan: Vec::new(),
                    left: VecDeque::new(),
                    purpose: None,
                    commits: 0,
                });
                if !recovered.damage.is_empty() {
                    let damage: Vec<String> = recovered.damage.iter().map(ToString::to_string).collect();
                    self.damaged(at, &damage.join("; "));
                }
                self.checks.recovered(self.time, at, &recovered);
                self.begin_plan(at, plan, Purpose::Start(Box::new(recovered)));
            }
            Err(damage) => {
                self.damaged(at, &damage.to_string());
                self.nodes[at].state = State::Ruined(damage.to_string());
            }
        }
    }

    /// A node has found damage in its directory, and must have a reason to.
    fn damaged(&mut self, at: usize, damage: &str) {
        self.note(at, &[30], || format!("finds damage: {damage}"));
        if !self.checks.may_be_ruined(at) {
            self.fail("journal", format!("node {} finds its undamaged directory damaged: {damage}", at + 1));
        }
    }

    fn started(&mut self, at: usize, mut recovered: Recovered) {
        let boot = recovered.meta.boot.0;
        self.checks.started(self.time, at, &recovered);
        let now = self.nodes[at].clock.read(self.time);
        let config = self.plan.config(self.nodes[at].id);
        let view = View::new(recovered.meta.partitions, self.plan.cache_memory);
        let tracking = Tracking::new(recovered.meta.partitions, TRACKED_MAX);
        self.nodes[at].maps.found(&mut recovered);
        let engine = self.guard(at, || Engine::new(now, config, recovered));
        let node = &mut self.nodes[at];
        node.view = view;
        node.tracking = tracking;
        node.evicted.clear();
        node.engine = engine;
        node.state = State::Up;
        node.next_tick = now.mono;
        node.turn_at = None;
        node.accepted = 0;
        self.note(at, &[31, boot], || format!("starts, boot {boot}"));
        self.schedule_turn(at, self.time + 1);
        self.dial_all(at);
    }

    /// Ends a node at once; `power` says whether its machine goes with it. Returns where a bit was flipped.
    pub fn crash(&mut self, at: usize, power: bool, flip: bool) -> Option<(File, usize)> {
        let time = self.time;
        let node = &mut self.nodes[at];
        if !matches!(node.state, State::Up | State::Starting) {
            return None;
        }
        node.life += 1;
        node.state = State::Down;
        node.engine = None;
        node.keeper = None;
        node.background.stop();
        node.maps.clear();
        node.urgent.clear();
        node.work.clear();
        node.turn_at = None;
        node.paused_until = 0;
        let mut flipped = None;
        if power {
            node.disk.lose_power();
            node.clock.reboot(time, &mut node.rng);
            flipped = if flip { node.disk.flip_bit() } else { None };
        }
        self.note(at, &[32, u64::from(power)], || {
            let how = if power { "is switched off" } else { "is killed" };
            flipped.map_or(how.into(), |(file, at)| format!("{how}, a bit of {} flips at {at}", file.path()))
        });
        self.drop_node(at, power);
        flipped
    }
}
