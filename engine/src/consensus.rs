//! One Raft group on the `raft` crate. The crate's types stop here.
//!
//! Charter: turns ticks, messages and proposals into messages to send, entries to persist and entries to
//! apply. Knows nothing of what entries mean.
//!
//! Invariants:
//! - What depends on durability (votes, append acknowledgements) is in `Progress::after_persist` and leaves
//!   only after `persisted` of that progress. The exception, `HeartbeatResponse`, speaks of no entry and is
//!   held back only while a term or vote is on its way to the disk.
//! - **The promise** (design: time and authority): hearing from the current leader sets `promise_until` =
//!   now + `ELECTION_TIMEOUT`. Until then this node grants no vote or pre-vote and sends no campaign, whatever
//!   role or term raft has moved to. Only a forced transfer passes. A node that may have voted or
//!   acknowledged before starts with one election timeout; a brand-new directory is exempt.
//! - Election timeouts are a pure function of (seed, node, group, term, role), set after every step and
//!   tick, because raft draws its own from a thread-local generator.
//! - Proposals are made by the leader only; a follower's raft never forwards one (asserted).

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::id::{GroupId, Index, NodeId, Replica, Term};
use quorate_protocol::peer::{RaftEntry, RaftMessage};
use raft::eraftpb::{ConfState, Entry as RawEntry, EntryType, HardState, Message, MessageType, Snapshot};
use raft::storage::{GetEntriesContext, RaftState};
use raft::{RawNode, ReadOnlyOption, StateRole, Storage, StorageError};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::effect::TICK;
use crate::journal::{COMMANDS, CONFIGURATION, Entry, Hard};

/// Ticks between two heartbeats of a leader.
const HEARTBEAT_TICKS: usize = 2;
/// Ticks without a leader before a node may campaign; the shortest election timeout.
const ELECTION_TICKS: usize = 12;
/// The longest election timeout, exclusive.
const ELECTION_TICKS_MAX: usize = 24;
/// The shortest election timeout in microseconds; what a promise lasts.
pub const ELECTION_TIMEOUT: u64 = ELECTION_TICKS as u64 * TICK;
/// Bytes of entries in one append message.
const APPEND_BYTES: u64 = 8 << 20;
/// Append messages on their way to one follower.
const APPENDS_IN_FLIGHT: usize = 64;
/// Bytes of committed entries that end a group's part of a turn, and that are handed out at once: a turn
/// applies less than twice as much, or one larger entry. After a restart a whole log is committed at once;
/// what all groups together apply in a turn must stay far below an election timeout.
pub const APPLY_BYTES: usize = 128 << 10;
/// The context by which raft marks the campaign of a leadership transfer.
const FORCED: &[u8] = b"CampaignTransfer";

/// What a replica is in its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks whether it would win an election.
    PreCandidate,
    /// Stands for election.
    Candidate,
    /// Leads.
    Leader,
}

impl Role {
    /// The role as a word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Follower => "follower",
            Self::PreCandidate => "precandidate",
            Self::Candidate => "candidate",
            Self::Leader => "leader",
        }
    }
}

/// What a replica is made of.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Seed of the election timeouts.
    pub seed: u64,
    /// This node.
    pub me: NodeId,
    /// The group.
    pub group: GroupId,
    /// The voters; the first is preferred as leader.
    pub voters: Vec<NodeId>,
    /// Term and vote as recovered.
    pub hard: Hard,
    /// The log as recovered, from index 1 without holes.
    pub entries: Vec<Entry>,
}

/// What a turn of a group has brought about.
#[derive(Debug, Default)]
pub struct Progress {
    /// Messages that may leave at once.
    pub messages: Vec<RaftMessage>,
    /// Messages that leave once this progress is durable.
    pub after_persist: Vec<RaftMessage>,
    /// Term and vote, if they changed.
    pub hard: Option<Hard>,
    /// Entries to write.
    pub entries: Vec<Entry>,
    /// To be given to `persisted` once all of the above is durable.
    pub number: u64,
    /// Entries to apply, in order.
    pub committed: Vec<Entry>,
    /// Their bytes, as `APPLY_BYTES` counts them.
    pub committed_bytes: usize,
    /// Answered read rounds: the context, and the index that must be applied before reading.
    pub reads: Vec<(u64, Index)>,
}

/// See the top of the file.
pub struct Consensus {
    raw: RawNode<Log>,
    me: NodeId,
    group: GroupId,
    seed: u64,
    preferred: bool,
    promise_until: u64,
    /// Numbers of the progresses that carry a term or vote and are not durable yet.
    hard_on_its_way: VecDeque<u64>,
    hard: Hard,
}

impl Consensus {
    /// A replica that goes on from what was recovered.
    ///
    /// # Panics
    /// When the recovered log has a hole: the journal has checked that it has none.
    #[must_use]
    pub fn new(now: u64, setup: Setup) -> Self {
        let fresh = setup.hard == Hard::default() && setup.entries.is_empty();
        let config = raft::Config {
            id: setup.me.0,
            election_tick: ELECTION_TICKS,
            heartbeat_tick: HEARTBEAT_TICKS,
            max_size_per_msg: APPEND_BYTES,
            max_inflight_msgs: APPENDS_IN_FLIGHT,
            check_quorum: true,
            pre_vote: true,
            min_election_tick: ELECTION_TICKS,
            max_election_tick: ELECTION_TICKS_MAX,
            read_only_option: ReadOnlyOption::Safe,
            max_committed_size_per_ready: APPLY_BYTES as u64,
            ..raft::Config::default()
        };
        let preferred = setup.voters.first() == Some(&setup.me);
        let log = Log::new(&setup);
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&config, log, &logger).expect("the configuration is valid");
        let mut this = Self {
            raw,
            me: setup.me,
            group: setup.group,
            seed: setup.seed,
            preferred,
            promise_until: if fresh { 0 } else { now + ELECTION_TIMEOUT },
            hard_on_its_way: VecDeque::new(),
            hard: setup.hard,
        };
        this.set_timeout();
        if fresh && preferred {
            this.raw.campaign().expect("a fresh follower may campaign");
            this.set_timeout();
        }
        this
    }

    /// Lets a tick pass.
    pub fn tick(&mut self) {
        self.raw.tick();
        self.set_timeout();
    }

    /// Takes a message of another replica. Messages that are not of this group's business are dropped.
    pub fn receive(&mut self, now: u64, message: RaftMessage) {
        if message.to != self.me || message.group != self.group {
            return;
        }
        let Some(raw) = to_raw(message) else { return };
        let kind = raw.get_msg_type();
        let asks_vote = matches!(kind, MessageType::MsgRequestVote | MessageType::MsgRequestPreVote);
        if asks_vote && now < self.promise_until && raw.context != FORCED {
            return;
        }
        let from = raw.from;
        let of_leader = matches!(kind, MessageType::MsgHeartbeat | MessageType::MsgAppend);
        // Errors mean "not for me" (an unknown sender, a stale answer): nothing to be done about them.
        let _ = self.raw.step(raw);
        if of_leader && self.raw.raft.leader_id == from {
            self.promise_until = self.promise_until.max(now + ELECTION_TIMEOUT);
        }
        self.set_timeout();
    }

    /// Appends an entry to the leader's log and returns its index.
    ///
    /// # Panics
    /// When this node does not lead: raft would forward the proposal by itself.
    pub fn propose(&mut self, data: Vec<u8>) -> Index {
        assert!(self.leads(), "only a leader proposes");
        let before = self.last_index();
        self.raw.propose(Vec::new(), data).expect("a leader that is not handing over takes proposals");
        let index = self.last_index();
        assert!(index == before + 1, "a proposal adds exactly one entry");
        index
    }

    /// Starts a read round; it is answered in `Progress::reads`, or never (ask again with a new context).
    pub fn read_index(&mut self, context: u64) {
        self.raw.read_index(context.to_le_bytes().to_vec());
    }

    /// All of the progress up to `number` is durable.
    pub fn persisted(&mut self, number: u64) {
        while self.hard_on_its_way.front().is_some_and(|&n| n <= number) {
            self.hard_on_its_way.pop_front();
        }
        self.raw.on_persist_ready(number);
        self.set_timeout();
    }

    /// Whether `progress` has something.
    #[must_use]
    pub fn has_progress(&self) -> bool {
        self.raw.has_ready()
    }

    /// What there is to do; `None` when there is nothing.
    pub fn progress(&mut self, now: u64) -> Option<Progress> {
        if !self.raw.has_ready() {
            return None;
        }
        let mut ready = self.raw.ready();
        let mut progress = Progress { number: ready.number(), ..Progress::default() };
        if let Some(hs) = ready.hs() {
            let hard = Hard { term: hs.term, vote: replica_of(hs.vote) };
            if hard != self.hard {
                assert!(hard.term >= self.hard.term, "a term never falls");
                self.hard = hard;
                progress.hard = Some(hard);
                self.hard_on_its_way.push_back(progress.number);
            }
        }
        for message in ready.take_messages() {
            self.sort_out(now, message, true, &mut progress);
        }
        for message in ready.take_persisted_messages() {
            self.sort_out(now, message, false, &mut progress);
        }
        let entries = ready.take_entries();
        progress.entries.extend(entries.iter().map(|entry| from_raw_entry(self.group, entry)));
        self.raw.mut_store().append(entries);
        let committed = ready.take_committed_entries();
        progress.committed.extend(committed.iter().map(|entry| from_raw_entry(self.group, entry)));
        progress.committed_bytes = committed.iter().map(size_of_committed).sum();
        progress.reads.extend(ready.take_read_states().iter().filter_map(|state| {
            let context = state.request_ctx.as_slice().try_into().ok()?;
            Some((u64::from_le_bytes(context), state.index))
        }));
        self.raw.advance_append_async(ready);
        if let Some(last) = progress.committed.last() {
            self.raw.advance_apply_to(last.index);
        }
        self.set_timeout();
        Some(progress)
    }

    /// Decides when a message may leave; campaigns that would break the promise never do.
    fn sort_out(&self, now: u64, message: Message, at_once: bool, progress: &mut Progress) {
        let kind = message.get_msg_type();
        assert!(kind != MessageType::MsgPropose, "no proposal leaves a follower");
        let campaign = matches!(kind, MessageType::MsgRequestVote | MessageType::MsgRequestPreVote);
        if campaign && now < self.promise_until && message.context != FORCED {
            return;
        }
        let harmless = kind == MessageType::MsgHeartbeatResponse && self.hard_on_its_way.is_empty();
        let Some(message) = from_raw(self.group, message) else { return };
        if at_once || harmless {
            progress.messages.push(message);
        } else {
            progress.after_persist.push(message);
        }
    }

    fn set_timeout(&mut self) {
        let role = self.role() as u64;
        let mut key = [0; 32];
        for (at, part) in [self.me.0, u64::from(self.group.0), self.term(), role].into_iter().enumerate() {
            key[8 * at..8 * at + 8].copy_from_slice(&part.to_le_bytes());
        }
        let spread = (ELECTION_TICKS_MAX - ELECTION_TICKS - 1) as u64;
        let jitter = xxh3_64_with_seed(&key, self.seed) % spread;
        // The preferred node goes first while it follows; as a candidate it backs off like everybody.
        let ticks = if self.preferred && self.role() == Role::Follower { 0 } else { 1 + jitter };
        let ticks = ELECTION_TICKS + usize::try_from(ticks).expect("a small number");
        self.raw.raft.set_randomized_election_timeout(ticks);
    }

    /// This replica's role.
    #[must_use]
    pub fn role(&self) -> Role {
        match self.raw.raft.state {
            StateRole::Follower => Role::Follower,
            StateRole::PreCandidate => Role::PreCandidate,
            StateRole::Candidate => Role::Candidate,
            StateRole::Leader => Role::Leader,
        }
    }

    /// Whether this replica leads.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// The leader it knows of in its term.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        (self.raw.raft.leader_id != 0).then_some(NodeId(self.raw.raft.leader_id))
    }

    /// Its term.
    #[must_use]
    pub fn term(&self) -> Term {
        self.raw.raft.term
    }

    /// Its commit index.
    #[must_use]
    pub fn commit(&self) -> Index {
        self.raw.raft.raft_log.committed
    }

    /// The last index of its log.
    #[must_use]
    pub fn last_index(&self) -> Index {
        self.raw.raft.raft_log.last_index()
    }

    /// Bytes of the entries that it keeps.
    #[must_use]
    pub fn log_bytes(&self) -> usize {
        self.raw.store().bytes
    }

    /// The data of the entries after `index`, newest first, as far as they are in the log.
    pub fn data_after(&self, index: Index) -> impl Iterator<Item = &Bytes> {
        self.raw.store().entries.iter().rev().take_while(move |entry| entry.index > index).map(|e| &e.data)
    }
}

/// The log as raft reads it: everything that was handed to the journal, durable or not.
struct Log {
    /// Entry `i` has index `i + 1`.
    entries: Vec<RawEntry>,
    bytes: usize,
    hard: HardState,
    voters: ConfState,
}

impl Log {
    fn new(setup: &Setup) -> Self {
        let mut hard = HardState::default();
        hard.term = setup.hard.term;
        hard.vote = raw_id(setup.hard.vote);
        let voters: Vec<u64> = setup.voters.iter().map(|node| node.0).collect();
        let mut log =
            Self { entries: Vec::new(), bytes: 0, hard, voters: ConfState::from((voters, Vec::new())) };
        log.append(setup.entries.iter().map(to_raw_entry).collect());
        log
    }

    fn append(&mut self, entries: Vec<RawEntry>) {
        let Some(first) = entries.first() else { return };
        let keep = usize::try_from(first.index - 1).expect("the log is in memory");
        assert!(keep <= self.entries.len(), "the log has no holes");
        self.bytes -= self.entries.drain(keep..).map(|gone| size_of_entry(&gone)).sum::<usize>();
        self.bytes += entries.iter().map(size_of_entry).sum::<usize>();
        self.entries.extend(entries);
    }
}

/// What an entry takes of the memory, roughly.
fn size_of_entry(entry: &RawEntry) -> usize {
    size_of::<RawEntry>() + entry.data.len()
}

/// What an entry counts when raft cuts a slice of the log: the smallest are not free either.
fn size_of_committed(entry: &RawEntry) -> usize {
    32 + entry.data.len()
}

impl Storage for Log {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState { hard_state: self.hard.clone(), conf_state: self.voters.clone() })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<RawEntry>> {
        let place = |index: u64| usize::try_from(index - 1).expect("the log is in memory");
        let slice = &self.entries[place(low)..place(high)];
        let mut room = max_size.into().unwrap_or(u64::MAX);
        let fits = |entry: &&RawEntry| {
            let size = size_of_committed(entry) as u64;
            let first = entry.index == low;
            room = room.saturating_sub(size);
            first || room > 0
        };
        Ok(slice.iter().take_while(fits).cloned().collect())
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == 0 {
            return Ok(0);
        }
        let place = usize::try_from(index - 1).expect("the log is in memory");
        self.entries.get(place).map(|entry| entry.term).ok_or(StorageError::Unavailable.into())
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.entries.len() as u64)
    }

    fn snapshot(&self, _request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        // The log is whole from index 1, so no replica is ever too far behind for appends.
        Err(StorageError::SnapshotTemporarilyUnavailable.into())
    }
}

/// A replica as raft names it: the node below, its incarnation above.
fn raw_id(replica: Replica) -> u64 {
    assert!(replica.node.0 < 1 << 32, "limits.rs bounds the nodes' ids");
    replica.node.0 | u64::from(replica.incarnation) << 32
}

fn replica_of(raw: u64) -> Replica {
    let incarnation = u32::try_from(raw >> 32).expect("32 bits are left");
    Replica { node: NodeId(raw & u64::from(u32::MAX)), incarnation }
}

fn to_raw_entry(entry: &Entry) -> RawEntry {
    let mut raw = RawEntry::default();
    raw.set_entry_type(if entry.kind == COMMANDS {
        EntryType::EntryNormal
    } else {
        EntryType::EntryConfChangeV2
    });
    raw.term = entry.term;
    raw.index = entry.index;
    raw.data = entry.data.clone();
    raw
}

fn from_raw_entry(group: GroupId, raw: &RawEntry) -> Entry {
    let kind = if raw.get_entry_type() == EntryType::EntryNormal { COMMANDS } else { CONFIGURATION };
    Entry { group, term: raw.term, index: raw.index, kind, data: raw.data.clone() }
}

/// The kinds of message that travel between nodes, by number. Numbers are never reused.
const KINDS: [(u8, MessageType); 9] = [
    (1, MessageType::MsgAppend),
    (2, MessageType::MsgAppendResponse),
    (3, MessageType::MsgRequestVote),
    (4, MessageType::MsgRequestVoteResponse),
    (5, MessageType::MsgHeartbeat),
    (6, MessageType::MsgHeartbeatResponse),
    (7, MessageType::MsgTimeoutNow),
    (8, MessageType::MsgRequestPreVote),
    (9, MessageType::MsgRequestPreVoteResponse),
];

fn to_raw(message: RaftMessage) -> Option<Message> {
    let (_, kind) = *KINDS.iter().find(|(number, _)| *number == message.kind)?;
    let mut raw = Message::default();
    raw.set_msg_type(kind);
    raw.from = message.from.0;
    raw.to = message.to.0;
    raw.term = message.term;
    raw.log_term = message.log_term;
    raw.index = message.index;
    raw.commit = message.commit;
    raw.commit_term = message.commit_term;
    raw.reject = message.reject;
    raw.reject_hint = message.reject_hint;
    raw.request_snapshot = message.request_snapshot;
    raw.priority = message.priority;
    raw.context = message.context;
    for entry in message.entries {
        let RaftEntry { term, index, kind, data } = entry;
        raw.entries.push(to_raw_entry(&Entry { group: message.group, term, index, kind, data }));
    }
    Some(raw)
}

fn from_raw(group: GroupId, raw: Message) -> Option<RaftMessage> {
    let (kind, _) = *KINDS.iter().find(|(_, kind)| *kind == raw.get_msg_type())?;
    let entries = raw.entries.iter().map(|entry| {
        let Entry { term, index, kind, data, .. } = from_raw_entry(group, entry);
        RaftEntry { term, index, kind, data }
    });
    Some(RaftMessage {
        group,
        kind,
        from: NodeId(raw.from),
        to: NodeId(raw.to),
        term: raw.term,
        log_term: raw.log_term,
        index: raw.index,
        commit: raw.commit,
        commit_term: raw.commit_term,
        reject: raw.reject,
        reject_hint: raw.reject_hint,
        request_snapshot: raw.request_snapshot,
        priority: raw.priority,
        entries: entries.collect(),
        context: raw.context,
    })
}
