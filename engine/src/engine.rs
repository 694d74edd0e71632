//! The engine: `step` is the only place that knows all subsystems.
//!
//! Charter: routes inputs to the gateway, the household and the groups, and what they bring about to the
//! shell. One turn: inputs are taken; at its end every group that they touched proposes and progresses until
//! nothing is left to do, and everything that goes to the disk leaves as one `Persist`. A group that has much
//! to apply, a whole log after a restart, does a part of it (`APPLY_BYTES`) and goes on in the next turn.
//!
//! Invariants:
//! - What waits for durability is kept with the number of its `Persist` and leaves in that order.
//! - A group that was given anything (work, a message, a tick, the disk's word) is in `awake` until it has
//!   nothing left to do, or in `behind` if the rest is for the next turn, which then comes at once. A tick
//!   wakes all, so no deadline waits longer than that.

mod counts;
mod demands;
#[cfg(feature = "faults")]
mod faults;
mod outgoing;
mod replicas;
mod snapshots;
mod view;

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use quorate_protocol::id::{GroupId, Index, NodeId, Term};
use quorate_protocol::limits::LOG_MAX;
use quorate_protocol::peer::{Answer, Forward, LinkFrame, RaftMessage};

use crate::consensus::{APPLY_BYTES, HEARTBEAT_TICKS, Role};
use crate::effect::{Effect, Effects, Input, Level, Now, Request, Side, Want};
use crate::gateway::Gateway;
use crate::group::{Birth, Bound, Group, Told};
use crate::household::{Household, Me};
use crate::journal::{Meta, Persist, Recovered};
use crate::queue::MAPPED_FROM;
use crate::ring::Ring;
use crate::system::System;
use crate::trash::Trash;
pub use counts::Counts;
use demands::Demands;
#[cfg(feature = "faults")]
pub use faults::Faults;
pub(crate) use replicas::founding;
use replicas::{Replicas, rank};
use snapshots::{Background, LOG_FLOOR};

/// How often a node tells all others which groups it leads; ticks.
const LEADING_TICKS: u64 = 6;

const _: () = assert!(LEADING_TICKS.is_multiple_of(HEARTBEAT_TICKS as u64), "it travels with heartbeats");

/// What a node is told once, when it starts.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Seed of everything that looks like chance (election timeouts).
    pub seed: u64,
    /// Where this node's clients connect, as it is to be told to others.
    pub client_address: String,
    /// Bytes of log that a node keeps, besides half as much as its snapshots, before it takes a new one.
    pub log_floor: u64,
    /// Message bodies from this size on are taken from snapshots that are mapped into memory.
    pub map_from: usize,
    /// Bytes that the keys of all partitions may take together, in equal shares.
    pub store_memory: u64,
    /// Keys that were not looked at for long make room for others, which are refused otherwise.
    pub store_evicts: bool,
    /// Deliberate bugs.
    #[cfg(feature = "faults")]
    pub faults: Faults,
}

impl Config {
    /// A node without deliberate bugs.
    #[must_use]
    pub fn new(seed: u64, client_address: String) -> Self {
        Self {
            seed,
            client_address,
            log_floor: LOG_FLOOR,
            map_from: MAPPED_FROM,
            store_memory: u64::MAX,
            store_evicts: false,
            #[cfg(feature = "faults")]
            faults: Faults::default(),
        }
    }
}

/// A group as a node sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupReport {
    /// The group.
    pub group: GroupId,
    /// The node's role in it.
    pub role: Role,
    /// The node's term.
    pub term: Term,
    /// The leader it knows of.
    pub leader: Option<NodeId>,
    /// Its commit index.
    pub commit: Index,
    /// Its applied index.
    pub applied: Index,
    /// Until when no other node can lead, by this node's clock; 0 if it does not know.
    pub lease: u64,
    /// The digest of the state at the applied index; equal on every replica at the same index.
    pub digest: u64,
    /// The index of its newest snapshot; 0 before there is one.
    pub snapshot: Index,
}

/// What leaves once a `Persist` is durable.
#[derive(Default)]
struct Withheld {
    seq: u64,
    since: u64,
    /// Of each replica (group and incarnation), up to which progress.
    numbers: Vec<(GroupId, u32, u64)>,
    messages: Vec<RaftMessage>,
}

/// One node's decisions. See `effect.rs` for the contract with its shell.
pub struct Engine {
    me: NodeId,
    meta: Meta,
    gateway: Gateway,
    household: Household,
    groups: BTreeMap<GroupId, Group>,
    replicas: Replicas,
    background: Background,
    demands: Demands,
    seed: u64,
    map_from: usize,
    /// It has found that it cannot trust its disk: it does nothing any more.
    stopped: bool,
    withheld: VecDeque<Withheld>,
    next_seq: u64,
    ticks: u64,
    /// Ticks since everybody was told what this node leads.
    untold_ticks: u64,
    /// The groups that this node leads; `leading_changed` until the others are told.
    leading: BTreeMap<GroupId, Term>,
    leading_changed: bool,
    /// Groups with something to do.
    awake: BTreeSet<GroupId>,
    /// Groups that have done their part of this turn and have more to do.
    behind: BTreeSet<GroupId>,
    /// Of the active members.
    ring: Ring,
    client_addresses: BTreeMap<NodeId, String>,
    answers: BTreeMap<NodeId, Vec<Answer>>,
    /// What replicas that are gone had still to tell.
    last_words: Vec<Told>,
    trash: Trash,
    /// What the wall clock shows beyond the clock that decides, in milliseconds: clients may name absolute times.
    wall: i64,
    /// What the keys of a partition may take.
    bound: Bound,
    /// Requests of clients since the node started.
    asked: u64,
    #[cfg(feature = "faults")]
    faults: Faults,
}

impl Engine {
    /// A node that goes on from what its data directory holds.
    #[must_use]
    pub fn new(now: Now, config: Config, recovered: Recovered) -> Self {
        let Recovered { meta, rows, mut snapshots, mut entries, .. } = recovered;
        let ring = Ring::new(meta.founders.iter().map(|(node, _)| *node));
        let mut replicas = Replicas::new(&meta);
        let mut groups = BTreeMap::new();
        let mut written = 0;
        for group in (0..=meta.partitions).map(GroupId) {
            let row = rows.get(&group).cloned();
            let entries = entries.remove(&group).unwrap_or_default();
            written += entries.iter().map(|entry| entry.data.len() as u64).sum::<u64>();
            let rank = rank(&ring.voters(group), meta.node);
            let birth = Birth { seed: config.seed, group, rank, map_from: config.map_from };
            let snapshot = snapshots.remove(&group).unwrap_or_default();
            #[cfg(feature = "faults")]
            let row = replicas::falsify(row, group, &meta, &config.faults);
            let born = replicas.revive(now.mono, birth, row, (snapshot, entries), &meta);
            groups.extend(born.map(|born| (group, born)));
        }
        #[cfg(feature = "faults")]
        for group in groups.values_mut() {
            group.set_faults(&config.faults);
        }
        let max = config.store_memory / u64::from(meta.partitions.max(1));
        let bound = Bound { max, evicts: config.store_evicts };
        groups.values_mut().for_each(|group| group.set_bound(bound));
        let mut gateway = Gateway::new(meta.node, meta.boot, meta.partitions);
        #[cfg(feature = "faults")]
        gateway.holder.set_faults(&config.faults.cache);
        groups.keys().for_each(|&group| gateway.hold_replica(group));
        let client_address = config.client_address;
        let me = Me {
            node: meta.node,
            identity: meta.identity,
            boot: meta.boot,
            client_address: client_address.clone(),
        };
        Self {
            me: meta.node,
            gateway,
            household: Household::new(me),
            groups,
            replicas,
            background: Background::new(config.log_floor, written),
            demands: Demands::default(),
            seed: config.seed,
            map_from: config.map_from,
            stopped: false,
            withheld: VecDeque::new(),
            next_seq: 1,
            ticks: 0,
            untold_ticks: 0,
            leading: BTreeMap::new(),
            leading_changed: false,
            awake: (0..=meta.partitions).map(GroupId).collect(),
            behind: BTreeSet::new(),
            ring,
            client_addresses: [(meta.node, client_address)].into(),
            answers: BTreeMap::new(),
            last_words: Vec::new(),
            trash: Trash::default(),
            wall: 0,
            bound,
            asked: 0,
            meta,
            #[cfg(feature = "faults")]
            faults: config.faults,
        }
    }

    /// Takes one input and adds what is to be done about it.
    pub fn step(&mut self, now: Now, input: Input, fx: &mut Effects) {
        if self.stopped {
            return;
        }
        let mono = now.mono;
        let millis = |time: u64| i64::try_from(time).unwrap_or(i64::MAX);
        self.wall = millis(now.wall) - millis(mono / 1000);
        match input {
            Input::Tick => self.tick(mono, fx),
            Input::EndOfTurn => {
                self.awake.append(&mut self.behind);
                self.background.begin_turn();
                self.end_turn(mono, &mut BTreeMap::new(), fx);
                let rests = self.groups.iter().filter(|(_, group)| group.has_rest()).map(|(&id, _)| id);
                self.behind.extend(rests);
                self.groups.values_mut().for_each(|group| group.throw_away(&mut self.trash));
                self.trash.dig();
                join_free_memory();
                self.stop_if_damaged(fx);
            }
            Input::Persisted(seq) => self.persisted(seq, fx),
            Input::BackgroundDone(number) => self.background_done(mono, number),
            Input::Mapped { group, index, bytes } => self.mapped(group, index, bytes),
            Input::PieceRead { conn, request, bytes } => self.piece_read(conn, request, bytes),
            Input::Removed => self.gateway.remove(),
            Input::Room(room) => self.replicas.room = room,
            Input::Resign => {
                self.replicas.resigning = true;
                self.gateway.holder.leave();
            }
            Input::Evicted(lines) => self.gateway.holder.evicted(lines),
            Input::Shown(groups) => self.gateway.holder.shown(mono, &groups),
            Input::Track(tracked) => self.gateway.holder.track(mono, tracked),
            Input::Snapshot { from, frame } => self.snapshot_frame(mono, from, frame, fx),
            Input::Connected { conn, ordered } => self.gateway.connected(conn, ordered),
            Input::Requests { conn, requests } => self.requests(mono, conn, requests),
            Input::Disconnected { conn } => {
                let gone = self.gateway.disconnected(conn);
                self.household.close(mono, gone, &mut self.gateway);
            }
            Input::Raft { from, frame } => self.raft(mono, from, frame),
            Input::LinkUp { peer, side: Side::Opener } => self.gateway.link_up(mono, peer),
            Input::LinkDown { peer, side: Side::Opener } => self.gateway.link_down(mono, peer),
            Input::LinkUp { peer, side: Side::Reached } | Input::LinkDown { peer, side: Side::Reached } => {
                self.answers.remove(&peer);
                self.groups.values_mut().for_each(|group| group.forget_node(mono, peer));
            }
            Input::Link { peer, side, frame } => self.link(mono, peer, side, frame),
        }
    }

    fn tick(&mut self, mono: u64, fx: &mut Effects) {
        self.ticks += 1;
        self.untold_ticks += 1;
        let full = self.no_room();
        let beat = self.ticks.is_multiple_of(HEARTBEAT_TICKS as u64);
        for group in self.groups.values_mut() {
            group.set_no_room(full);
            group.tick(mono, beat);
        }
        self.awake.extend(self.groups.keys());
        self.tend_replicas(mono);
        self.household.tick(mono, &mut self.gateway, fx);
        self.gateway.tick(mono);
    }

    /// Why nothing is written for clients, if it is so.
    fn no_room(&self) -> Option<&'static str> {
        let log_bytes: usize = self.groups.values().map(|group| group.consensus().log_bytes()).sum();
        if !self.replicas.room {
            return Some("the disk of the leader's node is full; free some space there");
        }
        (log_bytes >= LOG_MAX)
            .then_some("the leader's node keeps as much of its log as it may; wait for its next snapshots")
    }

    fn link(&mut self, mono: u64, peer: NodeId, side: Side, frame: LinkFrame) {
        match (side, frame) {
            (Side::Reached, LinkFrame::Forward(forward)) if forward.conn.node == peer => {
                self.accept(mono, forward)
            }
            (Side::Opener, LinkFrame::Answers(answers)) => {
                for answer in answers {
                    self.gateway.answered(mono, answer);
                }
            }
            (Side::Opener, LinkFrame::Pushes(pushes)) => {
                for (conn, delivery) in pushes {
                    self.gateway.pushed(conn, delivery);
                }
            }
            // A frame in the wrong direction is no work of ours.
            _ => {}
        }
    }

    fn accept(&mut self, mono: u64, forward: Forward) {
        if let Some(group) = self.groups.get_mut(&forward.group) {
            self.awake.insert(forward.group);
            group.accept(mono, forward);
        }
    }

    fn requests(&mut self, mono: u64, conn: u64, mut requests: Vec<Request>) {
        self.asked += requests.len() as u64;
        for request in &mut requests {
            if let Want::Node(ask) = &request.want
                && let Some(reply) = self.view(ask)
            {
                request.want = Want::Answered(reply);
            }
        }
        self.gateway.requests(mono, conn, requests);
    }

    fn persisted(&mut self, seq: u64, fx: &mut Effects) {
        self.demands.persisted(seq);
        while self.withheld.front().is_some_and(|withheld| withheld.seq <= seq) {
            let withheld = self.withheld.pop_front().expect("it was just seen");
            for (id, incarnation, number) in withheld.numbers {
                // A replica that is gone meanwhile has no use for it.
                let group = self.groups.get_mut(&id);
                if let Some(group) = group.filter(|group| group.consensus().me().incarnation == incarnation) {
                    group.persisted(number);
                    self.awake.insert(id);
                }
            }
            self.send_raft(withheld.messages, false, fx);
        }
    }

    /// `applied` counts the bytes that each group has applied in this turn.
    fn end_turn(&mut self, mono: u64, applied: &mut BTreeMap<GroupId, usize>, fx: &mut Effects) {
        let mut messages = Vec::new();
        let mut withheld = Withheld::default();
        let mut persist = Persist::default();
        let mut cache_words = BTreeMap::new();
        self.gateway.end_turn(mono);
        loop {
            self.gateway.send_flushes(mono);
            self.deliver_forwards(mono, fx);
            let mut busy = false;
            let awake = core::mem::take(&mut self.awake);
            for &id in &awake {
                let Some(group) = self.groups.get_mut(&id) else { continue };
                let applied = applied.entry(id).or_default();
                if *applied >= APPLY_BYTES {
                    if group.has_work() {
                        self.behind.insert(id);
                    }
                    continue;
                }
                group.set_wall(self.wall);
                group.flush(mono);
                while *applied < APPLY_BYTES
                    && let Some(progress) = group.progress(mono)
                {
                    busy = true;
                    *applied += progress.applied_bytes;
                    messages.extend(progress.messages);
                    withheld.messages.extend(progress.after_persist);
                    if progress.number > 0 {
                        withheld.numbers.push((id, group.consensus().me().incarnation, progress.number));
                    }
                    persist.rows.extend(progress.row.map(|row| (id, row)));
                    if !progress.entries.is_empty() {
                        group.note_written(self.background.written());
                        self.background.note_written(&progress.entries);
                    }
                    persist.entries.extend(progress.entries);
                    if progress.skipped {
                        self.gateway.skipped(id);
                    }
                }
            }
            busy |= self.tell(mono, &awake, fx);
            self.update_routes(mono, &awake, fx);
            self.run_household(mono, fx);
            self.gateway.end_turn(mono);
            busy |= self.tell_cache(mono, &mut cache_words) || self.gateway.holder.has_flushes();
            if !busy {
                break;
            }
            self.awake.extend(awake);
        }
        persist.rows.splice(0..0, self.replicas.take_rows());
        self.tend_demands(mono, &persist, fx);
        self.run_background(mono, fx);
        self.tell_notices(fx);
        self.deliver_answers(fx);
        // Lines are there before the answers that they came with: whoever is told a value can look whether it is held.
        self.gateway.holder.take_effects(fx);
        self.gateway.take_effects(fx);
        self.send_cache_words(cache_words, fx);
        let news = self.has_leading_news(fx);
        self.send_raft(messages, news, fx);
        withheld.since = mono;
        if self.make_durable(withheld, persist, fx) {
            self.end_turn(mono, applied, fx);
        }
    }

    /// Hands out what goes to the disk, and keeps what waits for it. Whether nothing waits, so that the groups can go
    /// on at once.
    fn make_durable(&mut self, mut withheld: Withheld, mut persist: Persist, fx: &mut Effects) -> bool {
        if withheld.numbers.is_empty() && persist.rows.is_empty() && persist.entries.is_empty() {
            return false;
        }
        let nothing_to_write = persist.rows.is_empty() && persist.entries.is_empty();
        withheld.seq = if nothing_to_write { self.next_seq - 1 } else { self.next_seq };
        let waits = !nothing_to_write || !self.withheld.is_empty();
        self.withheld.push_back(withheld);
        if !nothing_to_write {
            persist.seq = self.next_seq;
            self.next_seq += 1;
            fx.push(Effect::Persist(persist));
        }
        #[cfg(feature = "faults")]
        let waits = waits && !self.faults.reply_before_durable;
        if !waits {
            self.persisted(self.next_seq - 1, fx);
        }
        !waits
    }

    /// Brings forwarded work to the leaders: this node's own groups at once, others by link.
    fn deliver_forwards(&mut self, mono: u64, fx: &mut Effects) {
        // The line of a key is gone here before a write of it leaves.
        self.gateway.holder.take_effects(fx);
        for (to, forward) in self.gateway.take_forwards() {
            if to == self.me {
                self.accept(mono, forward);
            } else {
                fx.push(Effect::Link { peer: to, side: Side::Opener, frame: LinkFrame::Forward(forward) });
            }
        }
    }

    fn update_routes(&mut self, mono: u64, awake: &BTreeSet<GroupId>, fx: &mut Effects) {
        for &id in awake {
            let Some(group) = self.groups.get(&id) else { continue };
            let before = match group.leading() {
                Some(term) => self.leading.insert(id, term),
                None => self.leading.remove(&id),
            };
            self.leading_changed |= before != group.leading();
            let consensus = group.consensus();
            let term = consensus.term();
            let leader =
                if consensus.leads() { group.leading().map(|_| self.me) } else { consensus.leader() };
            self.gateway.set_route(mono, id, leader, term);
            self.gateway.set_applied(id, group.applied_term(), group.tells());
        }
        if let Some(members) =
            self.groups.get_mut(&GroupId::SYSTEM).and_then(Group::system_mut).and_then(System::take_members)
        {
            for member in members.iter().filter(|member| !member.client_address.is_empty()) {
                self.client_addresses.insert(member.node, member.client_address.clone());
            }
            self.members_changed(&members);
            fx.push(Effect::Members(members.into_vec()));
        }
    }

    fn run_household(&mut self, mono: u64, fx: &mut Effects) {
        for (errand, sent, reply) in self.gateway.take_finished() {
            self.household.finished(mono, errand, sent, &reply, &mut self.gateway, fx);
        }
        self.household.introduce(mono, &mut self.gateway);
        self.household.watch(mono, &mut self.gateway);
        for group in self.groups.values().filter(|group| group.leading().is_some()) {
            self.household.deliver(mono, group.outbox(), group.keeps_letters_until(), &mut self.gateway);
        }
    }

    /// Whether the others are to be told which groups this node leads.
    fn has_leading_news(&mut self, fx: &mut Effects) -> bool {
        let changed = core::mem::take(&mut self.leading_changed);
        if changed {
            fx.push(Effect::Log(Level::Info, leads_line(&self.leading)));
        }
        let due = self.untold_ticks >= LEADING_TICKS;
        if due {
            self.untold_ticks = 0;
        }
        changed || due
    }

    /// Whether there is more to do than fitted the turn that has just ended: the next turn is due at once,
    /// with whatever has come by then.
    #[must_use]
    pub fn has_more(&self) -> bool {
        let goes_on = |group: &Group| group.has_rows_to_load() || group.has_pass();
        let more = !self.behind.is_empty() || !self.trash.is_empty() || self.groups.values().any(goes_on);
        more && !self.stopped
    }

    /// Whether the node has nothing left to tell the groups (closed connections, and what it has acknowledged of lines
    /// that it owns): a node that stops waits for it a while.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let hands_over = |group: &Group| group.leading().is_some() && group.has_heirs();
        self.gateway.has_no_errand()
            && self.gateway.holder.is_clean()
            && !(self.replicas.resigning && self.groups.values().any(hands_over))
    }
}

/// Has the allocator join what was freed since the last turn. glibc's puts small pieces aside when they are freed, and joins
/// all of them when next a larger one is asked for: half a second of it, if a million rows went meanwhile.
fn join_free_memory() {
    core::hint::black_box(Vec::<u8>::with_capacity(2048));
}

/// What the log says when a node begins or ceases to lead groups.
fn leads_line(leading: &BTreeMap<GroupId, Term>) -> String {
    let groups: Vec<String> =
        leading.iter().map(|(group, term)| format!("{} (term {term})", group.0)).collect();
    if groups.is_empty() {
        "this node leads no group".into()
    } else {
        format!("this node leads groups {}", groups.join(", "))
    }
}
