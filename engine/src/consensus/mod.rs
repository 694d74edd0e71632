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
//! - **Changes of replicas**: a log holds at most one that is not applied, and an applied one is durable before
//!   anything behind the next is written (see `hold_back_changes`).
//! - Election timeouts are a pure function of (seed, node, group, term, role, rank), set after every step and
//!   tick, because raft draws its own from a thread-local generator (see `patience.rs`).
//! - Proposals are made by the leader only; a follower's raft never forwards one (asserted).

pub mod change;
mod entries;
pub mod lease;
mod log;
mod patience;
mod raw;

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::id::{GroupId, Index, NodeId, Replica, Term};
use quorate_protocol::peer::RaftMessage;
use quorate_protocol::wire::Wire;
use raft::eraftpb::{Message, MessageType};
use raft::{RawNode, ReadOnlyOption, StateRole};

use crate::journal::{CONFIGURATION, Conf, Entry, Hard};
use crate::trash::Trash;
use change::Change;
use lease::Lease;
use log::{Log, Taken, size_of_committed};
use patience::{ELECTION_TICKS, ELECTION_TICKS_MAX};
pub use patience::{ELECTION_TIMEOUT, HEARTBEAT_TICKS};
pub use raw::{SNAPSHOT, is_of_leader};
use raw::{from_raw, from_raw_entry, is_answer, raw_id, replica_of, to_raw};

/// Bytes of entries in one append message.
const APPEND_BYTES: u64 = 8 << 20;
/// Append messages on their way to one follower.
const APPENDS_IN_FLIGHT: usize = 64;
/// Bytes of committed entries that end a group's part of a turn, and that are handed out at once: a turn
/// applies less than twice as much, or one larger entry. After a restart a whole log is committed at once;
/// what all groups together apply in a turn must stay far below an election timeout.
pub const APPLY_BYTES: usize = 32 << 10;
/// Bytes of entries that a leader keeps for replicas that are about to need them, though a snapshot covers them.
const KEPT_BYTES: usize = 64 << 20;
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
    /// Follows a leader, and does not count for a majority yet: it is none of the voters, or the change that makes it
    /// one is not over.
    Learner,
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
            Self::Learner => "learner",
        }
    }
}

/// What a replica is made of.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Seed of the election timeouts.
    pub seed: u64,
    /// This replica.
    pub me: Replica,
    /// The group.
    pub group: GroupId,
    /// Its place in elections; 0 goes first.
    pub rank: usize,
    /// Term and vote as recovered.
    pub hard: Hard,
    /// The newest configuration that was applied.
    pub conf: Conf,
    /// Index and term of the snapshot that the log goes on from; 0 without one.
    pub snapshot: (Index, Term),
    /// The configuration at the snapshot.
    pub snapshot_conf: Conf,
    /// The log behind the snapshot as recovered, without holes.
    pub entries: Vec<Entry>,
    /// It has never promised anything: it need not wait before it takes part in elections.
    pub newborn: bool,
}

/// What a turn of a group has brought about.
#[derive(Debug, Default)]
pub struct Progress {
    /// Messages that may leave at once.
    pub messages: Vec<RaftMessage>,
    /// Messages that leave once this progress is durable.
    pub after_persist: Vec<RaftMessage>,
    /// Term, vote or configuration have changed.
    pub row: bool,
    /// The log begins anew behind a snapshot, of this index and term.
    pub installed: Option<(Index, Term)>,
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
    me: Replica,
    group: GroupId,
    seed: u64,
    ambition: patience::Ambition,
    promise_until: u64,
    /// Numbers of the progresses that carry a term or vote and are not durable yet.
    hard_on_its_way: VecDeque<u64>,
    hard: Hard,
    conf: Conf,
    /// The snapshot that raft has taken, until it is handed out.
    installing: Option<Taken>,
    /// A snapshot that is in place of the log and not durable yet: the progress that carries it, and its index. Until
    /// raft may be told that it is applied, an election would look for entries that are gone.
    settling: Option<(u64, Index)>,
    lease: Lease,
}

impl Consensus {
    /// A replica that goes on from what was recovered.
    ///
    /// # Panics
    /// When the recovered log has a hole: the journal has checked that it has none.
    #[must_use]
    pub fn new(now: u64, setup: Setup) -> Self {
        let config = raft::Config {
            id: raw_id(setup.me),
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
            applied: setup.snapshot.0,
            ..raft::Config::default()
        };
        let log = Log::new(&setup);
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&config, log, &logger).expect("the configuration is valid");
        let mut this = Self {
            raw,
            me: setup.me,
            group: setup.group,
            seed: setup.seed,
            ambition: patience::Ambition::of(setup.rank),
            promise_until: if setup.newborn { 0 } else { now + ELECTION_TIMEOUT },
            hard_on_its_way: VecDeque::new(),
            hard: setup.hard,
            conf: setup.conf,
            installing: None,
            settling: None,
            lease: Lease::default(),
        };
        this.set_timeout();
        if setup.newborn && setup.rank == 0 && this.conf.voters.contains(&this.me) {
            this.raw.campaign().expect("a fresh follower may campaign");
            this.set_timeout();
        }
        this
    }

    /// Takes a message of another replica. Messages that are not of this group's business are dropped; the offer of a
    /// snapshot is taken by `install`, when its bytes are there.
    pub fn receive(&mut self, now: u64, mut message: RaftMessage) {
        if message.to != self.me || message.group != self.group || message.kind == SNAPSHOT {
            return;
        }
        self.hold_back_changes(&mut message);
        let (from, term, sent) = (raw_id(message.from), message.term, message.sent);
        let answers = is_answer(message.kind);
        if let Some(raw) = to_raw(message) {
            self.step(now, raw, sent);
        }
        #[cfg(feature = "faults")]
        let sent = if self.lease.is_counted_from_answer() { now } else { sent };
        if answers && self.leads() && term == self.term() {
            self.lease.answered(term, from, sent.min(now));
        }
    }

    /// `sent`: when a leader sent it, by its own clock.
    fn step(&mut self, now: u64, raw: Message, sent: u64) {
        let kind = raw.get_msg_type();
        let asks_vote = matches!(kind, MessageType::MsgRequestVote | MessageType::MsgRequestPreVote);
        if asks_vote && now < self.promise_until && raw.context != FORCED {
            return;
        }
        if kind == MessageType::MsgTimeoutNow && self.settling.is_some() {
            return;
        }
        let (from, of_term) = (raw.from, raw.term);
        let of_leader =
            matches!(kind, MessageType::MsgHeartbeat | MessageType::MsgAppend | MessageType::MsgSnapshot);
        // Errors mean "not for me" (an unknown sender, a stale answer): nothing to be done about them.
        let _ = self.raw.step(raw);
        let term = self.term();
        if of_leader && self.raw.raft.leader_id == from && of_term == term {
            self.promise_until = self.promise_until.max(now + ELECTION_TIMEOUT);
            self.lease.heard(term, from, sent);
        }
        self.set_timeout();
    }

    /// Takes an append only up to the second change that is not applied here. So a log never holds more than one, and
    /// since what is applied is durable before what follows it is written, a restart falls back by one change at the
    /// most: whoever stands for election with an older configuration needs votes that have seen the newer one.
    fn hold_back_changes(&self, message: &mut RaftMessage) {
        let applied = self.conf.index;
        let first_new = message.index + 1;
        let open = self.raw.store().last_change();
        let mut seen = open.filter(|&index| index > applied && index < first_new);
        let fits = message.entries.iter().position(|entry| {
            let second = entry.kind == CONFIGURATION && entry.index > applied && seen.is_some();
            if entry.kind == CONFIGURATION && entry.index > applied {
                seen = Some(entry.index);
            }
            second
        });
        if let Some(fits) = fits {
            message.entries.truncate(fits);
        }
    }

    /// Takes a snapshot that a leader has offered and whose state is loaded. Whether it is put in place of the log;
    /// then the next progress says so.
    pub fn install(&mut self, now: u64, offer: RaftMessage, conf: Conf) -> bool {
        let at = (offer.index, offer.log_term);
        let taken = self.step_snapshot(now, offer, &conf);
        self.installing = taken.then_some(Taken { at, conf });
        taken
    }

    /// Tells the leader that what it offers is here already: it may have missed the word that it was taken.
    pub fn decline(&mut self, now: u64, offer: RaftMessage) {
        assert!(offer.index <= self.commit(), "what is declined is of no use");
        // Raft takes nothing whose configuration does not name this replica, and says how far it is.
        let taken = self.step_snapshot(now, offer, &Conf::default());
        assert!(!taken, "nothing is put in place of what is there");
    }

    fn step_snapshot(&mut self, now: u64, offer: RaftMessage, conf: &Conf) -> bool {
        let at = (offer.index, offer.log_term);
        let sent = offer.sent;
        let Some(mut raw) = to_raw(offer) else { return false };
        (raw.index, raw.log_term) = (0, 0);
        let metadata = raw.mut_snapshot().mut_metadata();
        (metadata.index, metadata.term) = at;
        metadata.set_conf_state(conf.to_raw());
        self.step(now, raw, sent);
        self.raw.snap().is_some_and(|snapshot| snapshot.get_metadata().index == at.0)
    }

    /// Appends an entry to the leader's log and returns its index.
    ///
    /// # Panics
    /// When this node does not lead or is handing over: raft would forward or drop the proposal by itself.
    pub fn propose(&mut self, data: Vec<u8>) -> Index {
        assert!(self.leads() && !self.is_handing_over(), "only a leader proposes");
        let before = self.last_index();
        self.raw.propose(Vec::new(), data).expect("a leader that is not handing over takes proposals");
        let index = self.last_index();
        assert!(index == before + 1, "a proposal adds exactly one entry");
        index
    }

    /// Whether a change of replicas may be proposed.
    #[must_use]
    pub fn may_change(&self) -> bool {
        self.leads() && !self.is_handing_over() && !self.raw.raft.has_pending_conf()
    }

    /// Proposes a change of replicas; `may_change` holds.
    pub fn propose_change(&mut self, change: &Change) {
        assert!(self.may_change(), "one change at a time");
        assert!(self.conf.is_joint() == (*change == Change::Leave), "a change is ended before the next");
        let before = self.last_index();
        self.raw
            .propose_conf_change(change.to_wire().to_vec(), change.steps(&self.conf))
            .expect("a leader that is not handing over takes proposals");
        let last = self.raw.raft.raft_log.last_index();
        assert!(last == before + 1 && self.raw.raft.has_pending_conf(), "raft has taken it for a change");
    }

    /// Begins to hand leadership over to another voter.
    pub fn transfer(&mut self, to: Replica) {
        self.give_lease_up();
        self.raw.transfer_leader(raw_id(to));
        self.set_timeout();
    }

    /// Whether leadership is being handed over: nothing can be proposed meanwhile.
    #[must_use]
    pub fn is_handing_over(&self) -> bool {
        self.raw.raft.lead_transferee.is_some()
    }

    /// As the leader sees it: how far a replica's log is known to be like this one's, if it was heard of lately. Raft's own
    /// mark for that is taken away from all at once whenever it checks its quorum, and says nothing then.
    #[must_use]
    pub fn matched(&self, now: u64, replica: Replica) -> Option<Index> {
        let progress = self.raw.raft.prs().get(raw_id(replica))?;
        let heard = replica == self.me || now < self.lease.answer_of(replica) + ELECTION_TIMEOUT;
        heard.then_some(progress.matched)
    }

    /// The replicas that were offered a snapshot and have not caught up.
    #[must_use]
    pub fn fetching(&self) -> Vec<Replica> {
        if !self.leads() {
            return Vec::new();
        }
        let fetching =
            |(_, progress): &(&u64, &raft::Progress)| progress.state == raft::ProgressState::Snapshot;
        self.raw.raft.prs().iter().filter(fetching).map(|(id, _)| replica_of(*id)).collect()
    }

    /// A replica that was offered a snapshot does not fetch it: it is offered again when it is heard of.
    pub fn offer_again(&mut self, replica: Replica) {
        self.raw.report_snapshot(raw_id(replica), raft::SnapshotStatus::Failure);
    }

    /// A snapshot of this replica's state is on stable storage and can be sent.
    pub fn offer(&mut self, at: (Index, Term), conf: Conf) {
        self.raw.mut_store().offer(Taken { at, conf });
        self.compact();
    }

    /// Whether a replica needs a newer snapshot than there is.
    #[must_use]
    pub fn wants_snapshot(&self) -> bool {
        self.raw.store().wanted.get()
    }

    /// The index of the snapshot that can be sent; 0 without one.
    #[must_use]
    pub fn offered(&self) -> Index {
        self.raw.store().taken().map_or(0, |taken| taken.at.0)
    }

    /// Lets go of entries that the snapshot covers. A leader keeps those that others are about to need, within bounds.
    pub fn compact(&mut self) {
        let Some(taken) = self.raw.store().taken() else { return };
        let mut upto = taken.at.0;
        if self.leads() && self.log_bytes() < KEPT_BYTES {
            for (&id, progress) in self.raw.raft.prs().iter() {
                let fetching = progress.state == raft::ProgressState::Snapshot;
                let has = if fetching { progress.pending_snapshot } else { progress.matched };
                if id != raw_id(self.me) && progress.recent_active {
                    upto = upto.min(has);
                }
            }
        }
        self.raw.mut_store().compact(upto);
    }

    /// Entries that were let go of, to be dropped bit by bit.
    pub fn trash(&mut self) -> &mut Trash {
        &mut self.raw.mut_store().trash
    }

    /// Lets go of all entries: the end of a replica.
    pub fn discard(mut self, trash: &mut Trash) {
        self.raw.mut_store().forget();
        trash.append(self.trash());
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
        if let Some((_, index)) = self.settling.take_if(|(carrier, _)| *carrier <= number) {
            self.raw.advance_apply_to(index);
        }
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
                progress.row = true;
                self.hard_on_its_way.push_back(progress.number);
            }
        }
        for message in ready.take_messages() {
            self.sort_out(now, message, true, &mut progress);
        }
        for message in ready.take_persisted_messages() {
            self.sort_out(now, message, false, &mut progress);
        }
        if !ready.snapshot().is_empty() {
            let taken = self.installing.take().expect("a snapshot comes from `install`");
            progress.installed = Some(taken.at);
            self.settling = Some((progress.number, taken.at.0));
            progress.row = true;
            self.conf = taken.conf.clone();
            self.raw.mut_store().restart(taken);
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
        self.apply_changes(&mut progress);
        if let Some(last) = progress.committed.last() {
            self.raw.advance_apply_to(last.index);
        }
        self.set_timeout();
        Some(progress)
    }

    /// Puts committed changes of replicas into effect. After a restart some are in effect already.
    fn apply_changes(&mut self, progress: &mut Progress) {
        for entry in progress.committed.iter().filter(|entry| entry.kind == CONFIGURATION) {
            if entry.index <= self.conf.index {
                continue;
            }
            let change = Change::read(&entry.data);
            let raw = self.raw.apply_conf_change(&change.steps(&self.conf)).expect("a committed change fits");
            self.conf = self.conf.after(entry.index, &change);
            assert!(self.conf.matches(&raw), "raft has made the same of the change");
            progress.row = true;
        }
        if self.leads() && !self.conf.voters.contains(&self.me) && !self.conf.outgoing.contains(&self.me) {
            // Removed by a change that an earlier leader has begun and this one has only ended.
            let term = self.term();
            self.raw.raft.become_follower(term, 0);
        }
    }

    /// Decides when a message may leave; campaigns that would break the promise never do.
    fn sort_out(&self, now: u64, message: Message, at_once: bool, progress: &mut Progress) {
        let kind = message.get_msg_type();
        assert!(kind != MessageType::MsgPropose, "no proposal leaves a follower");
        let campaign = matches!(kind, MessageType::MsgRequestVote | MessageType::MsgRequestPreVote);
        if campaign && (self.is_passive() || now < self.promise_until) && message.context != FORCED {
            return;
        }
        let harmless = kind == MessageType::MsgHeartbeatResponse && self.hard_on_its_way.is_empty();
        let Some(mut message) = from_raw(self.group, message) else { return };
        if is_of_leader(message.kind) {
            message.sent = now;
        } else if is_answer(message.kind) {
            message.sent = self.lease.echo(message.term, raw_id(message.to));
        }
        if at_once || harmless {
            progress.messages.push(message);
        } else {
            progress.after_persist.push(message);
        }
    }

    /// Whether this replica counts for a majority: it votes, and would if a change that is under way were over.
    #[must_use]
    pub fn counts(&self) -> bool {
        let Conf { voters, outgoing, .. } = &self.conf;
        voters.contains(&self.me) && (outgoing.is_empty() || outgoing.contains(&self.me))
    }

    /// This replica's role in elections: a learner is a follower there.
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
        (self.raw.raft.leader_id != 0).then(|| replica_of(self.raw.raft.leader_id).node)
    }

    /// This replica.
    #[must_use]
    pub fn me(&self) -> Replica {
        self.me
    }

    /// Its term and vote.
    #[must_use]
    pub fn hard(&self) -> Hard {
        self.hard
    }

    /// The newest configuration that is applied.
    #[must_use]
    pub fn conf(&self) -> &Conf {
        &self.conf
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
        self.raw.store().bytes()
    }

    /// The data of the entries after `index`, newest first, as far as they are in the log.
    pub fn data_after(&self, index: Index) -> impl Iterator<Item = &Bytes> {
        self.raw.store().data_after(index)
    }
}
