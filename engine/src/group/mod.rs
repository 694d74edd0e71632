//! One group on this node: its consensus, its state, and the work that waits between the two.
//!
//! Charter: takes work as the leader of a term, gathers what a turn brought into one entry, applies what is
//! committed, answers reads at a read index, and keeps group time moving. It knows where an answer goes
//! (`Told`), not how it gets there.
//!
//! Invariants:
//! - Work is taken only in the term that its `Forward` names. What is refused here was never proposed, and
//!   once something of a connection's run is refused, so is the rest of that run.
//! - Outcomes are told when the entry is applied: by the leader to everybody, by every other replica to its
//!   own node's connections (so that an answer outlives the leader that owed it).
//! - Entries that were in the log when the node started are applied in silence: whoever asked has been told, or its
//!   connection is gone, or it will hear that the outcome is in doubt. Pushes and notices are told by the leader in
//!   whose term the entry was proposed and by nobody else, so that none is told twice.
//! - A read is answered from a state at or after the commit index that a quorum confirmed after the read
//!   arrived, and, behind writes of its own connection, after everything that was proposed before it.

mod apply;
mod closing;
mod counted;
mod fills;
mod intake;
mod mapped;
mod reads;
mod replicas;
mod room;
mod snapshots;

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::id::{ConnId, GroupId, Index, NodeId, Replica, Term};
use quorate_protocol::limits::ENTRY_TARGET;
use quorate_protocol::peer::{Answer, Delivery, RaftMessage, Verdict, Work};
use quorate_protocol::wire::{Malformed, Wire};

use crate::batch::{Batch, Logged};
use crate::consensus::{Consensus, Role, SNAPSHOT, Setup};
use crate::effect::TICK;
use crate::journal::{COMMANDS, Conf, Entry, Hard, Meta, RESET, Row, Standing};
use crate::outbox::Outbox;
use crate::outcome::Asker;
use crate::snapshot::Loader;
use crate::state::State;
use crate::system::System;
use crate::time::GroupClock;
use crate::trash::Trash;
use closing::Closing;
pub use counted::Counted;
use fills::Fills;
use mapped::Mapped;
pub use room::Bound;
use room::{Growth, Room};
use snapshots::Files;
pub use snapshots::{PIECE, SnapshotReport, gone};

/// How long a read round may stay unanswered before it is asked again; microseconds.
const READ_RETRY: u64 = 5 * TICK;

/// Something for somebody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// An answer, for the gateway of `answer.conn.node`.
    Answer(Answer),
    /// A message, for a subscriber on that node.
    Push(ConnId, Delivery),
    /// A line for the log of this node.
    Notice(String),
}

struct Read {
    asker: Asker,
    sending: u32,
    behind: bool,
    /// It waited for the owner of a line, or stands behind one that did.
    recalled: bool,
    /// The epoch under which its node would keep the line; 0: it would not.
    line: u64,
    work: Work,
}

struct Round {
    asked: u64,
    /// Reads of the round wait for this index too.
    floor: Index,
    reads: Vec<Read>,
}

/// Where and when a replica comes into being.
#[derive(Debug, Clone, Copy)]
pub struct Birth {
    /// Seed of the election timeouts.
    pub seed: u64,
    /// The group.
    pub group: GroupId,
    /// Its place in elections; 0 goes first.
    pub rank: usize,
    /// Message bodies from this size on are taken from mapped snapshots.
    pub map_from: usize,
}

/// What a directory holds of a replica.
#[derive(Debug)]
pub struct Found {
    /// Its row.
    pub row: Row,
    /// Its snapshot file's bytes, mapped into memory if the shell can; empty without one.
    pub snapshot: Bytes,
    /// Its log behind the snapshot.
    pub entries: Vec<Entry>,
}

/// What a turn of a group has brought about.
#[derive(Debug, Default)]
pub struct Progress {
    /// Messages that may leave at once.
    pub messages: Vec<RaftMessage>,
    /// Messages that leave once this progress is durable.
    pub after_persist: Vec<RaftMessage>,
    /// The replica's row, if it has changed.
    pub row: Option<Row>,
    /// Entries to write.
    pub entries: Vec<Entry>,
    /// To be given to `persisted` once all of the above is durable; 0: nothing waits for it.
    pub number: u64,
    /// Bytes of the entries that were applied, as `APPLY_BYTES` counts them.
    pub applied_bytes: usize,
    /// The state was replaced by a snapshot: outcomes in between are not heard of here.
    pub skipped: bool,
}

/// Work that is proposed and not applied.
#[derive(Default)]
struct InFlight {
    entries: VecDeque<(Index, usize, usize, Growth)>,
    commands: usize,
    bytes: usize,
    growth: Growth,
}

/// See the top of the file.
pub struct Group {
    id: GroupId,
    me: NodeId,
    consensus: Consensus,
    state: State,
    /// What the disk knows of the replica besides its log, or will know when the next progress is durable.
    row: Row,
    /// `row` is to be written.
    changed: bool,
    /// The log is to begin anew in the journal, behind this index and term.
    reset: Option<(Index, Term)>,
    files: Files,
    mapped: Mapped,
    /// Message bodies from this size on are taken from mapped snapshots.
    map_from: usize,
    applied: Index,
    applied_term: Term,
    /// The last index that was found in the journal: what is applied up to it may have been told before.
    replayed: Index,
    /// Group time of the applied state.
    time: u64,
    /// The leader's clock; none while this node does not lead.
    clock: Option<GroupClock>,
    /// What the wall clock shows beyond `now`, in milliseconds.
    wall: i64,
    /// Since when it leads.
    led_since: u64,
    /// The last entry that it has proposed for what has ended by time.
    ending: Index,
    /// Until when nobody else can lead; 0 is unknown.
    lease: u64,
    /// The term and role that `clock` and the lists below belong to.
    term: Term,
    /// What the turn has gathered, with the sending of each.
    open: Vec<(u32, Logged)>,
    open_bytes: usize,
    open_growth: Growth,
    in_flight: InFlight,
    closing: Closing,
    room: Room,
    counted: Counted,
    fills: Fills,
    /// Why the node writes nothing for clients, if it is so.
    no_room: Option<&'static str>,
    reads: Vec<Read>,
    /// When a SNAPSHOT last had a read round here.
    saved_at: Option<u64>,
    rounds: BTreeMap<u64, Round>,
    ready_reads: BTreeMap<Index, Vec<Read>>,
    next_context: u64,
    /// Connection (node and counter, which is all of its name that never changes) → the run of which something
    /// was refused.
    refused: BTreeMap<(NodeId, u64), u64>,
    told: Vec<Told>,
    trash: Trash,
    #[cfg(feature = "faults")]
    faults: crate::engine::Faults,
}

impl Group {
    /// A group that goes on from what was recovered.
    ///
    /// # Errors
    /// When the snapshot that its row names is not one.
    pub fn recovered(now: u64, birth: Birth, found: Found, meta: &Meta) -> Result<Self, Malformed> {
        let Found { row, snapshot, entries } = found;
        let mut loaded = None;
        if row.snapshot.0 > 0 {
            let mut loader = Loader::new(birth.group, row.snapshot.0, meta);
            loader.leave_from(birth.map_from);
            loader.take(snapshot.clone());
            if !loader.work(&mut usize::MAX.clone())? {
                return Err(Malformed("a snapshot ends without its footer"));
            }
            loaded = Some(loader.into_state());
        }
        let setup = Setup {
            seed: birth.seed,
            me: Replica { node: meta.node, incarnation: row.incarnation },
            group: birth.group,
            rank: birth.rank,
            hard: row.hard,
            conf: row.conf.clone(),
            snapshot: row.snapshot,
            snapshot_conf: loaded.as_ref().map(|(header, _)| header.conf.clone()).unwrap_or_default(),
            entries,
            newborn: false,
        };
        let replayed = setup.entries.last().map_or(row.snapshot.0, |entry| entry.index);
        let has_entries = !setup.entries.is_empty();
        let mut this = Self::new(now, setup, row.clone(), meta);
        if let Some((header, state)) = loaded {
            (this.applied, this.applied_term, this.time) = (header.index, header.term, header.time);
            this.files.found(snapshot.len() as u64, &header);
            this.state = state;
            if this.state.may_be_mapped() {
                this.mapped = Mapped::found(header.index, snapshot.clone());
            }
        }
        this.state.set_map_from(birth.map_from);
        this.map_from = birth.map_from;
        this.replayed = replayed;
        this.files.has_entries(has_entries);
        this.changed = false;
        Ok(this)
    }

    /// A replica that begins with nothing: at the founding, or because a leader has made it one of the group.
    #[must_use]
    pub fn newborn(now: u64, birth: Birth, incarnation: u32, hard: Hard, conf: Conf, meta: &Meta) -> Self {
        let setup = Setup {
            seed: birth.seed,
            me: Replica { node: meta.node, incarnation },
            group: birth.group,
            rank: birth.rank,
            hard,
            conf: conf.clone(),
            snapshot: (0, 0),
            snapshot_conf: Conf::default(),
            entries: Vec::new(),
            newborn: true,
        };
        let row = Row { hard, incarnation, standing: Standing::Whole, conf, snapshot: (0, 0) };
        let mut this = Self::new(now, setup, row, meta);
        this.map_from = birth.map_from;
        this.state.set_map_from(birth.map_from);
        this.reset = (incarnation > 0).then_some((0, 0));
        this
    }

    fn new(now: u64, setup: Setup, row: Row, meta: &Meta) -> Self {
        Self {
            id: setup.group,
            me: meta.node,
            state: State::new(setup.group, meta),
            replayed: 0,
            consensus: Consensus::new(now, setup),
            row,
            changed: true,
            reset: None,
            files: Files::default(),
            mapped: Mapped::default(),
            map_from: usize::MAX,
            applied: 0,
            applied_term: 0,
            time: 0,
            clock: None,
            wall: 0,
            led_since: 0,
            ending: 0,
            lease: 0,
            term: 0,
            open: Vec::new(),
            open_bytes: 0,
            open_growth: 0,
            in_flight: InFlight::default(),
            closing: Closing::default(),
            room: Room::default(),
            counted: Counted::default(),
            fills: Fills::default(),
            no_room: None,
            reads: Vec::new(),
            saved_at: None,
            rounds: BTreeMap::new(),
            ready_reads: BTreeMap::new(),
            next_context: 1,
            refused: BTreeMap::new(),
            told: Vec::new(),
            trash: Trash::default(),
            #[cfg(feature = "faults")]
            faults: crate::engine::Faults::default(),
        }
    }

    /// Switches deliberate bugs on.
    #[cfg(feature = "faults")]
    pub fn set_faults(&mut self, faults: &crate::engine::Faults) {
        self.faults = faults.clone();
        self.consensus.set_lease_faults(&faults.leases);
        self.state.set_faults(faults);
    }

    /// Its consensus, to look at.
    #[must_use]
    pub fn consensus(&self) -> &Consensus {
        &self.consensus
    }

    /// The index that is applied.
    #[must_use]
    pub fn applied(&self) -> Index {
        self.applied
    }

    /// The term of the entry that was applied last.
    #[must_use]
    pub fn applied_term(&self) -> Term {
        self.applied_term
    }

    /// Whether everything that is applied from now on is told to this node's connections: nothing of it was in the log
    /// when the node started.
    #[must_use]
    pub fn tells(&self) -> bool {
        self.applied >= self.replayed
    }

    /// The digest of the applied state.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.state.digest()
    }

    /// What it has to tell other groups.
    #[must_use]
    pub fn outbox(&self) -> &Outbox {
        self.state.outbox()
    }

    /// The system group's state.
    #[must_use]
    pub fn system(&self) -> Option<&System> {
        if let State::System(system) = &self.state { Some(system) } else { None }
    }

    /// The system group's state, to be changed.
    pub fn system_mut(&mut self) -> Option<&mut System> {
        if let State::System(system) = &mut self.state { Some(system) } else { None }
    }

    /// Whether a message would have this replica write what clients have brought.
    #[must_use]
    pub fn would_write(&self, message: &RaftMessage) -> bool {
        message.kind == SNAPSHOT
            || message.entries.iter().any(|entry| entry.kind == COMMANDS && !entry.data.is_empty())
    }

    /// What there is to tell.
    pub fn take_told(&mut self) -> Vec<Told> {
        core::mem::take(&mut self.told)
    }

    /// Lets a tick pass; `beat`: one of those at which leaders send heartbeats.
    pub fn tick(&mut self, now: u64, beat: bool) {
        self.consensus.tick(now, beat);
        self.retry_reads(now);
        self.tick_directory(now);
        self.tick_fills(now);
        self.watch_transfers(now);
    }

    /// Takes a Raft message.
    pub fn receive(&mut self, now: u64, message: RaftMessage, meta: &Meta) {
        if message.kind == SNAPSHOT {
            self.offered(now, message, meta);
        } else {
            self.consensus.receive(now, message);
        }
    }

    /// A progress is durable.
    pub fn persisted(&mut self, number: u64) {
        self.consensus.persisted(number);
    }

    /// Proposes what the turn has gathered, and asks for a read round if there are reads.
    pub fn flush(&mut self, now: u64) {
        self.notice_role(now);
        self.renew_lease(now);
        self.go_on_handing_over(now);
        let Some(mut clock) = self.clock else { return };
        if self.consensus.is_handing_over() {
            // What has come waits: for the next leader, or for this one if nothing comes of it.
            return;
        }
        self.let_ready_in(now);
        self.make_room(now);
        let deadline = self.state.next_deadline();
        // What has ended and was too much for the last entries; one entry for that at a time.
        let has_rest = deadline.is_some_and(|deadline| deadline <= self.time) && self.applied >= self.ending;
        let due = has_rest || (self.open.is_empty() && clock.is_due(now, deadline));
        if due || !self.open.is_empty() {
            let stamp = clock.stamp(now);
            self.clock = Some(clock);
            if due {
                // An entry without commands carries the stamp alone, and brings more to its end than others.
                self.propose_entry(Batch::begin(stamp), &[], 0);
                self.ending = self.consensus.last_index();
            }
            if !self.open.is_empty() {
                self.propose(stamp);
            }
        }
        self.ask_read_round(now);
    }

    /// Tells it what the wall clock shows beyond the clock that `now` is read from, in milliseconds. Readings that differ
    /// by the last digit are rounded differently and mean the same.
    pub fn set_wall(&mut self, wall: i64) {
        if wall.abs_diff(self.wall) > 1 {
            self.wall = wall;
        }
    }

    /// What the wall clock shows at group time 0, in milliseconds since 1970.
    fn epoch(&self) -> i64 {
        self.wall.saturating_add(self.clock.map_or(0, |clock| clock.origin()))
    }

    fn propose(&mut self, stamp: u64) {
        let epoch = self.epoch();
        let open = core::mem::take(&mut self.open);
        self.open_bytes = 0;
        // Counted with the first of the entries, and so with all of them: they are proposed together.
        let mut growth = core::mem::take(&mut self.open_growth);
        #[cfg(feature = "faults")]
        if self.faults.honest_codes_broken && self.consensus.last_index().is_multiple_of(7) {
            for (sending, Logged { asker, .. }) in &open {
                let lie =
                    quorate_protocol::reply::Reply::error(quorate_protocol::reply::Code::TryAgain, "a lie");
                let lie = Verdict::Reply(lie);
                self.refuse(asker.conn, asker.request, *sending, lie);
            }
        }
        let mut entry = Batch::begin(stamp);
        let mut askers: Vec<Asker> = Vec::new();
        for (_, mut logged) in open {
            logged.work.set_epoch(epoch);
            logged.put(&mut entry);
            askers.push(logged.asker);
            if entry.len() >= ENTRY_TARGET {
                let growth = core::mem::take(&mut growth);
                self.propose_entry(core::mem::replace(&mut entry, Batch::begin(stamp)), &askers, growth);
                askers.clear();
            }
        }
        if !askers.is_empty() {
            self.propose_entry(entry, &askers, growth);
        }
    }

    fn propose_entry(&mut self, mut entry: Vec<u8>, askers: &[Asker], growth: Growth) {
        Batch::finish(&mut entry, u32::try_from(askers.len()).expect("ENTRY_TARGET bounds the commands"));
        let bytes = entry.len();
        let index = self.consensus.propose(entry);
        self.in_flight.entries.push_back((index, askers.len(), bytes, growth));
        self.in_flight.commands += askers.len();
        self.in_flight.bytes += bytes;
        self.in_flight.growth += growth;
    }

    /// Whether there is anything to flush or to work off.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.changed
            || self.consensus.has_progress()
            || !self.open.is_empty()
            || !self.reads.is_empty()
            || self.closing.has_ready()
    }

    /// Works off what consensus has brought about, and hands out what goes to disk and to peers.
    pub fn progress(&mut self, now: u64) -> Option<Progress> {
        let brought = self.consensus.progress(now);
        self.notice_role(now);
        let mut progress = Progress::default();
        let has_something = brought.is_some() || self.changed;
        if let Some(brought) = brought {
            self.changed |= brought.row;
            if let Some(at) = brought.installed {
                self.take_installed(at);
                progress.skipped = true;
            }
            self.rounds_answered(brought.reads);
            for entry in brought.committed {
                self.apply(now, entry);
            }
            self.renew_lease(now);
            self.answer_reads(now);
            progress.messages = brought.messages;
            progress.after_persist = brought.after_persist;
            progress.entries = brought.entries;
            progress.number = brought.number;
            progress.applied_bytes = brought.committed_bytes;
        }
        if core::mem::take(&mut self.changed) {
            self.row.hard = self.consensus.hard();
            self.row.conf.clone_from(self.consensus.conf());
            progress.row = Some(self.row.clone());
        }
        if let Some((index, term)) = self.reset.take() {
            let reset = Entry { group: self.id, term, index, kind: RESET, data: Bytes::new() };
            progress.entries.insert(0, reset);
        }
        has_something.then_some(progress)
    }

    /// Takes up, or gives up, what belongs to the leader of a term.
    fn notice_role(&mut self, now: u64) {
        let (leads, term) = (self.consensus.leads(), self.consensus.term());
        if self.clock.is_some() == leads && (!leads || self.term == term) {
            return;
        }
        self.give_up();
        self.term = term;
        if leads {
            self.led_since = now;
            self.counted.led += 1;
            self.ending = 0;
            // Stamps never fall along the log, which may be long: the newest is the highest.
            let in_log = self.consensus.data_after(self.applied).find_map(Batch::stamp_of);
            self.clock = Some(GroupClock::new(now, self.time.max(in_log.unwrap_or(0))));
            self.begin_directory();
        }
    }

    fn give_up(&mut self) {
        self.give_up_waiting();
        self.give_up_fills();
        (self.clock, self.lease) = (None, 0);
        self.refused.clear();
        self.in_flight = InFlight::default();
        (self.open_bytes, self.open_growth) = (0, 0);
        let open =
            core::mem::take(&mut self.open).into_iter().map(|(sending, logged)| (sending, logged.asker));
        let rounds = core::mem::take(&mut self.rounds).into_values().flat_map(|round| round.reads);
        let ready = core::mem::take(&mut self.ready_reads).into_values().flatten();
        let reads = core::mem::take(&mut self.reads).into_iter().chain(rounds).chain(ready);
        let given_up: Vec<_> = open.chain(reads.map(|read| (read.sending, read.asker))).collect();
        for (sending, asker) in given_up {
            self.refuse(asker.conn, asker.request, sending, Verdict::Moved);
        }
    }

    /// Whether this node leads, as far as work is concerned, and in which term.
    #[must_use]
    pub fn leading(&self) -> Option<Term> {
        self.clock.is_some().then_some(self.term)
    }

    /// The role, as a report shows it.
    #[must_use]
    pub fn role(&self) -> Role {
        match self.consensus.role() {
            Role::Follower if !self.consensus.counts() => Role::Learner,
            role => role,
        }
    }
}
