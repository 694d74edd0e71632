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

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use quorate_protocol::id::{ConnId, GroupId, Index, LogPos, NodeId, Term};
use quorate_protocol::limits::{ENTRY_TARGET, IN_FLIGHT_BYTES_MAX, IN_FLIGHT_MAX, LOG_MAX};
use quorate_protocol::peer::{Answer, Ask, Delivery, Forward, RaftMessage, Verdict, Work};
use quorate_protocol::reply::{Code, Reply};
use quorate_protocol::wire::Wire;

use crate::batch::{Batch, Logged};
use crate::consensus::{Consensus, Progress, Role, Setup};
use crate::effect::TICK;
use crate::journal::{COMMANDS, Entry, Meta};
use crate::memory::Admission;
use crate::outcome::{Asker, Ctx, Outcome, Outcomes};
use crate::partition::Partition;
use crate::system::System;
use crate::time::GroupClock;

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

/// What the state is made of.
enum State {
    System(Box<System>),
    Partition(Box<Partition>),
}

struct Read {
    asker: Asker,
    sending: u32,
    behind: bool,
    work: Work,
}

struct Round {
    asked: u64,
    /// Reads of the round wait for this index too.
    floor: Index,
    reads: Vec<Read>,
}

/// Work that is proposed and not applied.
#[derive(Default)]
struct InFlight {
    entries: VecDeque<(Index, usize, usize)>,
    commands: usize,
    bytes: usize,
}

/// See the top of the file.
pub struct Group {
    id: GroupId,
    me: NodeId,
    consensus: Consensus,
    state: State,
    applied: Index,
    /// The last index that was found in the journal: what is applied up to it may have been told before.
    replayed: Index,
    /// Group time of the applied state.
    time: u64,
    /// The leader's clock; none while this node does not lead.
    clock: Option<GroupClock>,
    /// The term and role that `clock` and the lists below belong to.
    term: Term,
    /// What the turn has gathered, with the sending of each.
    open: Vec<(u32, Logged)>,
    open_bytes: usize,
    in_flight: InFlight,
    /// The node's logs are full; see `limits::LOG_MAX`.
    log_full: bool,
    reads: Vec<Read>,
    rounds: BTreeMap<u64, Round>,
    ready_reads: BTreeMap<Index, Vec<Read>>,
    next_context: u64,
    /// Connection (node and counter, which is all of its name that never changes) → the run of which something
    /// was refused.
    refused: BTreeMap<(NodeId, u64), u64>,
    told: Vec<Told>,
    #[cfg(feature = "faults")]
    faults: crate::engine::Faults,
}

impl Group {
    /// A group that goes on from what was recovered.
    #[must_use]
    pub fn new(now: u64, setup: Setup, meta: &Meta) -> Self {
        let state = if setup.group == GroupId::SYSTEM {
            State::System(Box::new(System::new(meta)))
        } else {
            State::Partition(Box::default())
        };
        Self {
            id: setup.group,
            me: setup.me,
            replayed: setup.entries.last().map_or(0, |entry| entry.index),
            consensus: Consensus::new(now, setup),
            state,
            applied: 0,
            time: 0,
            clock: None,
            term: 0,
            open: Vec::new(),
            open_bytes: 0,
            in_flight: InFlight::default(),
            log_full: false,
            reads: Vec::new(),
            rounds: BTreeMap::new(),
            ready_reads: BTreeMap::new(),
            next_context: 1,
            refused: BTreeMap::new(),
            told: Vec::new(),
            #[cfg(feature = "faults")]
            faults: crate::engine::Faults::default(),
        }
    }

    /// Switches deliberate bugs on.
    #[cfg(feature = "faults")]
    pub fn set_faults(&mut self, faults: &crate::engine::Faults) {
        self.faults = faults.clone();
        match &mut self.state {
            State::System(system) => system.set_faults(faults),
            State::Partition(partition) => partition.set_faults(faults),
        }
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

    /// The digest of the applied state.
    #[must_use]
    pub fn digest(&self) -> u64 {
        match &self.state {
            State::System(system) => system.digest(),
            State::Partition(partition) => partition.digest(),
        }
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

    /// What there is to tell.
    pub fn take_told(&mut self) -> Vec<Told> {
        core::mem::take(&mut self.told)
    }

    /// Lets a tick pass.
    pub fn tick(&mut self, now: u64) {
        self.consensus.tick();
        self.retry_reads(now);
    }

    /// Takes a Raft message.
    pub fn receive(&mut self, now: u64, message: RaftMessage) {
        self.consensus.receive(now, message);
    }

    /// A progress is durable.
    pub fn persisted(&mut self, number: u64) {
        self.consensus.persisted(number);
    }

    /// Takes work from a connection, if this node leads in the very term that is named.
    pub fn accept(&mut self, forward: Forward) {
        let Forward { term, conn, run, asks, .. } = forward;
        for ask in asks {
            if self.clock.is_none() || self.term != term {
                self.refuse(conn, ask.request, ask.sending, Verdict::Moved);
            } else {
                self.accept_one(conn, run, ask);
            }
        }
    }

    fn accept_one(&mut self, conn: ConnId, run: u64, ask: Ask) {
        let asker = Asker { conn, request: ask.request, client: ask.client };
        let is_read = match &ask.work {
            Work::Op(op) => op.is_read(),
            Work::SeeClient(_) => true,
            _ => false,
        };
        let of_client = matches!(ask.work, Work::Op(_) | Work::OpenClient);
        if let Err(reply) = self.check(&asker, run, is_read, of_client) {
            self.refused.insert((conn.node, conn.counter), run);
            return self.refuse(conn, ask.request, ask.sending, Verdict::Reply(reply));
        }
        if let Work::CloseConn(gone) = &ask.work {
            self.refused.remove(&(gone.node, gone.counter));
        }
        if is_read {
            self.reads.push(Read { asker, sending: ask.sending, behind: ask.behind, work: ask.work });
            return;
        }
        self.open_bytes += ask.work.weight();
        self.open.push((ask.sending, Logged { asker, principal: ask.principal, work: ask.work }));
    }

    /// Refuses what is over a bound, and what stands behind something refused. A full log takes no more of
    /// clients, but what the nodes need to go on: sessions, closed connections, the outbox.
    fn check(&self, asker: &Asker, run: u64, is_read: bool, of_client: bool) -> Result<(), Reply> {
        let refused = self.refused.get(&(asker.conn.node, asker.conn.counter));
        #[cfg(feature = "faults")]
        let refused = refused.filter(|_| !self.faults.order_broken_behind_refusal);
        if refused.is_some_and(|&refused| run <= refused) {
            let text = "an earlier command of this connection to the same partition was refused; send them again in order";
            return Err(Reply::error(Code::TryAgain, text));
        }
        if self.in_flight.commands + self.open.len() + self.reads.len() >= self.in_flight_max()
            || self.in_flight.bytes + self.open_bytes >= IN_FLIGHT_BYTES_MAX
        {
            let text = format!("partition {} has too much work on its way; try again", self.id.0);
            return Err(Reply::error(Code::Busy, text));
        }
        if self.log_full && of_client && !is_read {
            let text = format!(
                "the leader of partition {} keeps {LOG_MAX} bytes of log and takes no more writes",
                self.id.0
            );
            return Err(Reply::error(Code::Busy, text));
        }
        Ok(())
    }

    /// Says whether the node has room for more of clients' commands in its logs.
    pub fn set_log_full(&mut self, full: bool) {
        self.log_full = full;
    }

    fn in_flight_max(&self) -> usize {
        #[cfg(feature = "faults")]
        if let Some(max) = self.faults.small_in_flight {
            return max;
        }
        IN_FLIGHT_MAX
    }

    /// Forgets what was refused to connections of a node whose link is gone.
    pub fn forget_node(&mut self, node: NodeId) {
        self.refused.retain(|(of, _), _| *of != node);
    }

    /// Proposes what the turn has gathered, and asks for a read round if there are reads.
    pub fn flush(&mut self, now: u64) {
        self.notice_role(now);
        let Some(mut clock) = self.clock else { return };
        let due = self.open.is_empty() && clock.is_due(now, self.next_deadline());
        if due || !self.open.is_empty() {
            let stamp = clock.stamp(now);
            self.clock = Some(clock);
            self.propose(stamp);
        }
        self.ask_read_round(now);
    }

    fn propose(&mut self, stamp: u64) {
        let open = core::mem::take(&mut self.open);
        self.open_bytes = 0;
        #[cfg(feature = "faults")]
        if self.faults.honest_codes_broken && self.next_context.is_multiple_of(7) {
            for (sending, Logged { asker, .. }) in &open {
                let lie = Verdict::Reply(Reply::error(Code::TryAgain, "a lie"));
                self.refuse(asker.conn, asker.request, *sending, lie);
            }
        }
        let mut entry = Batch::begin(stamp);
        let mut askers: Vec<Asker> = Vec::new();
        for (_, logged) in open {
            logged.put(&mut entry);
            askers.push(logged.asker);
            if entry.len() >= ENTRY_TARGET {
                self.propose_entry(core::mem::replace(&mut entry, Batch::begin(stamp)), &askers);
                askers.clear();
            }
        }
        // An entry without commands carries the stamp alone.
        self.propose_entry(entry, &askers);
    }

    fn propose_entry(&mut self, mut entry: Vec<u8>, askers: &[Asker]) {
        Batch::finish(&mut entry, u32::try_from(askers.len()).expect("ENTRY_TARGET bounds the commands"));
        let bytes = entry.len();
        let index = self.consensus.propose(entry);
        self.in_flight.entries.push_back((index, askers.len(), bytes));
        self.in_flight.commands += askers.len();
        self.in_flight.bytes += bytes;
    }

    fn ask_read_round(&mut self, now: u64) {
        if self.reads.is_empty() {
            return;
        }
        let reads = core::mem::take(&mut self.reads);
        #[cfg(feature = "faults")]
        if self.faults.stale_reads {
            self.ready_reads.entry(0).or_default().extend(reads);
            return self.answer_reads();
        }
        self.start_round(now, self.consensus.last_index(), reads);
    }

    fn start_round(&mut self, now: u64, floor: Index, reads: Vec<Read>) {
        let context = self.next_context;
        self.next_context += 1;
        self.consensus.read_index(context);
        self.rounds.insert(context, Round { asked: now, floor, reads });
    }

    /// Asks again when raft may have dropped or lost the newest round. The rounds before it stay: each is
    /// answered by its own answer or by any later one, so a slow network is waited for.
    fn retry_reads(&mut self, now: u64) {
        let Some((_, last)) = self.rounds.last_key_value() else { return };
        if now >= last.asked + READ_RETRY {
            self.start_round(now, last.floor, Vec::new());
        }
    }

    /// Whether there is anything to flush or to work off.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.consensus.has_progress() || !self.open.is_empty() || !self.reads.is_empty()
    }

    /// Works off what consensus has brought about, and hands out what goes to disk and to peers.
    pub fn progress(&mut self, now: u64) -> Option<Progress> {
        let progress = self.consensus.progress(now);
        self.notice_role(now);
        let mut progress = progress?;
        for (context, index) in core::mem::take(&mut progress.reads) {
            // What holds for a round holds for all that were asked before it.
            let later = self.rounds.split_off(&(context + 1));
            for round in core::mem::replace(&mut self.rounds, later).into_values() {
                for read in round.reads {
                    let at = if read.behind { index.max(round.floor) } else { index };
                    self.ready_reads.entry(at).or_default().push(read);
                }
            }
        }
        for entry in core::mem::take(&mut progress.committed) {
            self.apply(entry);
        }
        self.answer_reads();
        Some(progress)
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
            let in_log = self.consensus.data_after(self.applied).filter_map(Batch::stamp_of).max();
            self.clock = Some(GroupClock::new(now, self.time.max(in_log.unwrap_or(0))));
        }
    }

    fn give_up(&mut self) {
        self.clock = None;
        self.refused.clear();
        self.in_flight = InFlight::default();
        self.open_bytes = 0;
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

    fn apply(&mut self, entry: Entry) {
        assert!(entry.index == self.applied + 1, "entries are applied in order, without a gap");
        self.applied = entry.index;
        while self.in_flight.entries.front().is_some_and(|&(index, ..)| index <= entry.index) {
            let (_, commands, bytes) = self.in_flight.entries.pop_front().expect("it was just seen");
            self.in_flight.commands -= commands;
            self.in_flight.bytes -= bytes;
        }
        if entry.kind != COMMANDS {
            let (kind, index, group) = (entry.kind, entry.index, self.id.0);
            panic!("entry {index} of group {group} is of kind {kind}, which this release never writes");
        }
        if entry.data.is_empty() {
            // A new leader's first entry, which only marks its term.
            return;
        }
        let batch = match Batch::read(entry.data) {
            Ok(batch) => batch,
            Err(why) => panic!("entry {} of group {} cannot be applied: {why}", entry.index, self.id.0),
        };
        assert!(batch.stamp >= self.time, "group time never falls along the log");
        self.time = batch.stamp;
        let own = self.clock.is_some() && entry.term == self.term;
        let mut out = Outcomes::new();
        let ctx = |offset| Ctx { at: LogPos { index: entry.index, offset }, time: batch.stamp };
        match &mut self.state {
            State::System(system) => system.expire(&ctx(0), &mut out),
            State::Partition(partition) => partition.expire(&ctx(0), &mut out),
        }
        // Offset 0 is the passing of time; commands are counted from 1.
        for (offset, logged) in (1..).zip(batch.commands) {
            self.apply_one(&ctx(offset), logged, &mut out);
        }
        self.tell(out, own);
    }

    fn apply_one(&mut self, ctx: &Ctx, logged: Logged, out: &mut Outcomes) {
        let Logged { asker, work, .. } = logged;
        let memory = match &mut self.state {
            State::System(system) => &mut system.memory,
            State::Partition(partition) => &mut partition.memory,
        };
        let admission = memory.admit(&asker);
        #[cfg(feature = "faults")]
        let admission = if self.faults.resend_applied_twice { Admission::Execute } else { admission };
        match admission {
            Admission::Execute => match &mut self.state {
                State::System(system) => system.apply(ctx, &asker, work, out),
                State::Partition(partition) => partition.apply(ctx, &asker, work, out),
            },
            // Already settled: straight to the asker, not through the memory again.
            Admission::Answer(reply) => {
                self.tell_reply(asker, reply);
            }
            Admission::Waits => self.tell_verdict(asker, Verdict::Waits),
        }
    }

    /// `own`: the entry was proposed in the term that this node leads.
    fn tell(&mut self, out: Outcomes, own: bool) {
        for outcome in out {
            match outcome {
                Outcome::Reply { to, reply } => {
                    let to = match &mut self.state {
                        State::System(system) => system.memory.settle(to, &reply),
                        State::Partition(partition) => partition.memory.settle(to, &reply),
                    };
                    self.tell_reply(to, reply);
                }
                Outcome::Waits { to } => self.tell_verdict(to, Verdict::Waits),
                Outcome::Push { to, delivery } => {
                    if own {
                        self.told.push(Told::Push(to, delivery));
                    }
                }
                Outcome::Notice(line) => {
                    if own {
                        self.told.push(Told::Notice(line));
                    }
                }
            }
        }
    }

    fn tell_reply(&mut self, to: Asker, reply: Reply) {
        self.tell_verdict(to, Verdict::Reply(reply));
    }

    fn tell_verdict(&mut self, to: Asker, verdict: Verdict) {
        let concerns = self.clock.is_some() || to.conn.node == self.me;
        if concerns && self.applied > self.replayed {
            self.tell_answer(to.conn, to.request, verdict);
        }
    }

    fn tell_answer(&mut self, conn: ConnId, request: u64, verdict: Verdict) {
        self.refuse(conn, request, 0, verdict);
    }

    fn refuse(&mut self, conn: ConnId, request: u64, sending: u32, verdict: Verdict) {
        self.told.push(Told::Answer(Answer { conn, request, group: self.id, sending, verdict }));
    }

    fn answer_reads(&mut self) {
        while let Some(first) = self.ready_reads.first_entry() {
            if *first.key() > self.applied {
                break;
            }
            for Read { asker, work, .. } in first.remove() {
                let reply = match &self.state {
                    State::System(system) => system.read(self.time, &work),
                    State::Partition(partition) => partition.read(self.time, &work),
                };
                self.tell_answer(asker.conn, asker.request, Verdict::Reply(reply));
            }
        }
    }

    fn next_deadline(&self) -> Option<u64> {
        match &self.state {
            State::System(system) => system.next_deadline(),
            State::Partition(partition) => partition.next_deadline(),
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
        self.consensus.role()
    }
}
