//! Writes on their way past the cache: a write is proposed when no other node can show what it replaces.
//!
//! Charter: lets work in. A write whose keys are cached elsewhere waits for the directory; what its connection sends
//! behind it waits with it; everybody else's work goes on. And the other direction: lines that go out with answers.
//!
//! Invariants:
//! - Every write of keys that this leader proposes has closed them, once, and opens them when it is applied. What waits
//!   here was never proposed.
//! - Whatever depends on a key whose line is owned waits until the owner has brought what it acknowledged, also what comes
//!   from the owner's own node. What the owner brings waits for nothing.
//! - What looks at several keys says so to the directory before anything else, and that it is done when it is applied, answered
//!   or refused.
//! - A turn takes up `TAKEN_UP_AT_ONCE` of what has waited, at the most, and each of it once for every time that it was
//!   the first and had to wait: what waits behind it is not touched.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::cache::{CacheWord, Grant};
use quorate_protocol::id::{NodeId, Replica};
use quorate_protocol::limits::TAKEN_UP_AT_ONCE;
use quorate_protocol::op::Op;
use quorate_protocol::peer::{Verdict, Work};
use quorate_protocol::reply::Reply;

use super::room::Fits;
use super::{Group, Read};
use crate::batch::Logged;
use crate::cache::directory::{Directory, WriteId};
use crate::outcome::Asker;
use crate::time::over_at;

/// A connection, by what never changes of its name.
pub(super) type Conn = (NodeId, u64);

/// Work of one connection.
pub(super) enum Job {
    /// To be answered from the state.
    Read(Read),
    /// To be logged.
    Write {
        /// See `Ask::sending`.
        sending: u32,
        /// The command.
        logged: Logged,
        /// See `Ask::line`.
        gave_up: u64,
    },
}

/// The keys that work looks at together with others, and does not change.
fn looks_at(work: &Work) -> Vec<&Bytes> {
    let Work::Op(op) = work else { return Vec::new() };
    if op.key().is_some() {
        return Vec::new();
    }
    let mut keys = op.keys();
    if keys.len() < 2 {
        return Vec::new();
    }
    let writes = op.writes();
    let writes: BTreeSet<&Bytes> = writes.iter().collect();
    keys.retain(|key| !writes.contains(key));
    keys
}

impl Job {
    fn weight(&self) -> usize {
        match self {
            Self::Read(_) => 0,
            Self::Write { logged, .. } => logged.work.weight(),
        }
    }
}

/// Why something that has waited goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GoOn {
    /// Nobody else can show its keys any more.
    IsClosed,
    /// There is room for it.
    HasRoom,
    /// There will be none.
    HasNone,
    /// Owners have brought what they had of its keys.
    IsRecalled,
    /// It waited for nothing but what stood before it, of which a turn has taken up enough.
    IsNext,
}

/// See the top of the file.
#[derive(Default)]
pub(super) struct Closing {
    pub(super) directory: Directory,
    /// What waits for nodes → whose it is, and what follows.
    held: BTreeMap<WriteId, (Conn, GoOn)>,
    /// What waits, in each connection's order: the first waits for nodes or for room, or to be taken up.
    queues: BTreeMap<Conn, VecDeque<Job>>,
    /// Connections whose first waits for nothing but to be taken up.
    ready: VecDeque<(Conn, GoOn)>,
    /// What has waited and was taken up, in this turn and since the term began.
    taken_up: (usize, u64),
    waiting: usize,
    /// Bytes of the writes that wait.
    waiting_bytes: usize,
    /// Connection → its reads that waited for an owner and are not answered. Reads behind them must not overtake them.
    recalled: BTreeMap<Conn, u32>,
    /// The line that goes with the answer to the write that is being applied.
    written: Option<(Asker, Grant)>,
    /// Whom leadership is handed to once all leases have come back.
    heir: Option<Replica>,
    /// Who was to take leadership last, and since when.
    pub(super) tried: Option<(Replica, u64)>,
}

impl Closing {
    /// Work that waits.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Bytes of it.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// Whether no write waits until nodes have dropped its keys.
    pub(super) fn holds_none(&self) -> bool {
        self.held.is_empty() && self.ready.is_empty()
    }

    /// Whether some of it can go on.
    pub(super) fn has_ready(&self) -> bool {
        self.directory.has_ready() || !self.ready.is_empty()
    }

    /// A job leaves its queue.
    fn take_up(&mut self, job: &Job) {
        self.waiting -= 1;
        self.waiting_bytes -= job.weight();
        self.taken_up = (self.taken_up.0 + 1, self.taken_up.1 + 1);
    }

    /// Whether this turn takes up no more.
    pub(super) fn has_enough(&self) -> bool {
        self.taken_up.0 >= TAKEN_UP_AT_ONCE
    }

    /// What has waited and was taken up since the term began.
    pub(super) fn taken_up(&self) -> u64 {
        self.taken_up.1
    }

    /// A turn has ended.
    pub(super) fn end_turn(&mut self) {
        self.taken_up.0 = 0;
    }

    /// Until when somebody may rely on a lease that was granted.
    pub(super) fn relied_on_until(&self) -> u64 {
        self.directory.relied_on_until()
    }
}

impl Group {
    /// Takes work of a connection, behind what of it waits already.
    pub(super) fn let_in(&mut self, now: u64, conn: Conn, job: Job) {
        let job = match job {
            Job::Read(read) if self.closing.recalled.contains_key(&conn) => {
                Job::Read(self.set_behind(conn, read))
            }
            job => job,
        };
        if let Some(queue) = self.closing.queues.get_mut(&conn) {
            self.closing.waiting_bytes += job.weight();
            queue.push_back(job);
            self.closing.waiting += 1;
        } else {
            self.admit(now, conn, job);
        }
    }

    fn admit(&mut self, now: u64, conn: Conn, job: Job) {
        let work = match &job {
            Job::Read(read) => &read.work,
            Job::Write { logged, .. } => &logged.work,
        };
        self.closing.directory.looks(&looks_at(work));
        if self.closing.directory.has_owners() {
            // What it changes is asked back as it is closed.
            let writes = work.writes();
            let writes: BTreeSet<&Bytes> = writes.iter().collect();
            let mut names = if work.flushes().is_some() { Vec::new() } else { work.names() };
            names.retain(|name| !writes.contains(name));
            if let Some(id) = self.closing.directory.recall_owned(now, &names) {
                self.closing.held.insert(id, (conn, GoOn::IsRecalled));
                return self.wait_first(conn, job);
            }
        }
        match job {
            Job::Read(read) => self.reads.push(read),
            Job::Write { sending, logged, gave_up } => self.take_in(now, conn, sending, logged, gave_up),
        }
    }

    /// Lets a write in, as far as there is room.
    fn take_in(&mut self, now: u64, conn: Conn, sending: u32, logged: Logged, gave_up: u64) {
        match self.fits(&logged) {
            Fits::Yes => self.close_keys(now, conn, sending, logged, gave_up),
            Fits::Later => {
                self.room.waits(conn);
                self.wait_first(conn, Job::Write { sending, logged, gave_up });
            }
            Fits::No => self.refuse_let_in(&logged, sending),
        }
    }

    /// What looks at several keys together is over, or will never be done.
    pub(super) fn has_looked(&mut self, work: &Work) {
        self.closing.directory.looked(&looks_at(work));
    }

    /// There is no room for a write that was let in.
    fn refuse_let_in(&mut self, logged: &Logged, sending: u32) {
        self.has_looked(&logged.work);
        self.refuse_for_room(&logged.asker, sending);
    }

    /// Has a read wait for everything that is in the log: what an owner has brought may be, and its lease has run out
    /// meanwhile.
    fn set_behind(&mut self, conn: Conn, read: Read) -> Read {
        if !read.recalled {
            *self.closing.recalled.entry(conn).or_default() += 1;
        }
        Read { behind: true, recalled: true, ..read }
    }

    /// A read is answered that waited for an owner, or behind one that did.
    pub(super) fn recalled_answered(&mut self, conn: Conn) {
        if let Some(reads) = self.closing.recalled.get_mut(&conn) {
            *reads -= 1;
            if *reads == 0 {
                self.closing.recalled.remove(&conn);
            }
        }
    }

    /// Closes what a write may change, and has it wait, or lets it in.
    fn close_keys(&mut self, now: u64, conn: Conn, sending: u32, logged: Logged, gave_up: u64) {
        let directory = &mut self.closing.directory;
        let keys = logged.work.writes();
        let waits = if logged.work.writes_all() {
            directory.close_all(now)
        } else if keys.is_empty()
            || logged.work.flushes().is_some_and(|key| directory.close_flush(now, conn.0, key))
        {
            None
        } else {
            directory.close(now, &keys, conn.0, gave_up)
        };
        if let Work::Op(Op::SetBack(set)) = &logged.work {
            directory.wants_to_own(conn.0, &set.key);
        }
        match waits {
            None => self.push_open(sending, logged),
            Some(id) => {
                self.closing.held.insert(id, (conn, GoOn::IsClosed));
                self.wait_first(conn, Job::Write { sending, logged, gave_up });
            }
        }
    }

    /// Has a write wait; whatever else its connection brings waits behind it.
    fn wait_first(&mut self, conn: Conn, first: Job) {
        self.closing.waiting += 1;
        self.closing.waiting_bytes += first.weight();
        let before = self.closing.queues.insert(conn, [first].into());
        assert!(before.is_none(), "a connection waits for one write at a time");
    }

    /// The write that a connection waits for.
    pub(super) fn first_waiting(&self, conn: Conn) -> Option<&Logged> {
        match self.closing.queues.get(&conn)?.front()? {
            Job::Write { logged, .. } => Some(logged),
            Job::Read(_) => None,
        }
    }

    /// Takes up again what of a connection waits, from what it waits for on, until something of it has to wait again.
    pub(super) fn go_on(&mut self, now: u64, conn: Conn, how: GoOn) {
        let mut queue = self.closing.queues.remove(&conn).expect("its write waits");
        let first = queue.pop_front().expect("its first waits");
        self.closing.take_up(&first);
        match (first, how) {
            (job, GoOn::IsNext) => self.let_in(now, conn, job),
            (Job::Read(read), _) => {
                let read = self.set_behind(conn, read);
                self.reads.push(read);
            }
            (Job::Write { sending, logged, .. }, GoOn::IsClosed) => self.push_open(sending, logged),
            (Job::Write { sending, logged, gave_up }, GoOn::HasRoom) => {
                self.close_keys(now, conn, sending, logged, gave_up);
            }
            (Job::Write { sending, logged, .. }, GoOn::HasNone) => self.refuse_let_in(&logged, sending),
            (Job::Write { sending, logged, gave_up }, GoOn::IsRecalled) => {
                self.take_in(now, conn, sending, logged, gave_up);
            }
        }
        loop {
            if let Some(again) = self.closing.queues.get_mut(&conn) {
                // What was let in last has to wait; all others stay behind it.
                queue.push_front(again.pop_front().expect("it waits first"));
                *again = queue;
                return;
            }
            if !queue.is_empty() && self.closing.has_enough() {
                self.closing.queues.insert(conn, queue);
                self.closing.ready.push_back((conn, GoOn::IsNext));
                return;
            }
            let Some(job) = queue.pop_front() else { return };
            self.closing.take_up(&job);
            self.let_in(now, conn, job);
        }
    }

    fn push_open(&mut self, sending: u32, logged: Logged) {
        self.note_let_in(&logged.asker);
        #[cfg(feature = "faults")]
        if self.faults.full_lies && self.consensus.last_index().is_multiple_of(7) {
            self.refuse_for_room(&logged.asker, sending);
        }
        self.open_growth += self.growth_of(&logged.work);
        self.open_bytes += logged.work.weight();
        self.open.push((sending, logged));
    }

    /// Lets in what has waited long enough, and what waits behind it.
    pub(super) fn let_ready_in(&mut self, now: u64) {
        for id in self.closing.directory.take_ready() {
            let ready = self.closing.held.remove(&id).expect("who waits is known");
            self.closing.ready.push_back(ready);
        }
        while !self.closing.has_enough() {
            let Some((conn, how)) = self.closing.ready.pop_front() else { return };
            self.go_on(now, conn, how);
        }
    }

    /// Whether the turn has done as much as it may for what waits, and there may be a rest.
    #[must_use]
    pub fn has_rest(&self) -> bool {
        self.closing.has_enough() || self.room.has_looked_enough()
    }

    /// Begins with nothing, as a leader does.
    pub(super) fn begin_directory(&mut self) {
        assert!(self.closing.queues.is_empty(), "a leader that ends gives up what waits");
        self.closing = Closing { directory: Directory::new(self.id, self.term), ..Closing::default() };
        self.room.begin(u64::from(self.id.0) << 32 ^ self.term);
        #[cfg(feature = "faults")]
        self.closing.directory.set_faults(&self.faults.cache);
    }

    /// Refuses all that waits.
    pub(super) fn give_up_waiting(&mut self) {
        let closing = core::mem::take(&mut self.closing);
        self.room.give_up();
        self.counted.invalidations += closing.directory.invalidations();
        self.counted.taken_up += closing.taken_up();
        for job in closing.queues.into_values().flatten() {
            let (asker, sending) = match job {
                Job::Read(read) => (read.asker, read.sending),
                Job::Write { sending, logged, .. } => (logged.asker, sending),
            };
            self.refuse(asker.conn, asker.request, sending, Verdict::Moved);
        }
    }

    /// A command that this leader has proposed is applied: its keys are open again. The node that gave up a line for it
    /// gets it back with the answer, as its own if it `wants` so.
    pub(super) fn open_keys(&mut self, now: u64, asker: &Asker, keys: &[Bytes], wants: bool) {
        self.closing.directory.written(now, Some(&asker.conn), keys);
        let owner = self.closing.directory.open(keys).filter(|owner| *owner == asker.conn.node);
        let (Some(owner), [key]) = (owner, keys) else { return };
        let Some((version, left)) = self.time_left(now, key).filter(|_| now < self.lease) else { return };
        let lasts = self.state.line(key, self.time).is_some_and(|(_, deadline)| deadline.is_none());
        let directory = &mut self.closing.directory;
        // What the owner brings changes a value, and nothing else of a key.
        let grant = if wants && version > 0 && lasts {
            directory.grant_owned(now, owner, key)
        } else {
            directory.grant_written(now, owner, key)
        };
        if let Some(grant) = grant {
            self.closing.written = Some((*asker, Grant { version, left, ..grant }));
        }
    }

    /// What an owner has brought is applied. It keeps the line, or has given it up.
    pub(super) fn open_flushed(&mut self, now: u64, asker: &Asker, key: &Bytes) {
        self.closing.directory.written(now, Some(&asker.conn), core::slice::from_ref(key));
        self.closing.directory.open_flush(asker.conn.node, key);
    }

    /// A command that this leader has proposed, and that may have changed every key, is applied.
    pub(super) fn open_all(&mut self, now: u64) {
        self.closing.directory.open_all(now);
    }

    /// Keys have gone because their time had come.
    pub(super) fn tell_expired(&mut self, now: u64, keys: &[Bytes]) {
        self.closing.directory.written(now, None, keys);
    }

    /// The line that goes with the answer to a write.
    pub(super) fn grant_written(&mut self, to: &Asker) -> Option<Grant> {
        self.closing.written.take_if(|(asker, _)| asker == to).map(|(_, grant)| grant)
    }

    /// A key's version, and for how long its line can be granted.
    fn time_left(&self, now: u64, key: &Bytes) -> Option<(u64, Option<u64>)> {
        let (version, deadline) = self.state.line(key, self.time)?;
        let Some(deadline) = deadline else { return Some((version, self.room.line_life())) };
        // Until it is over, less the part of a millisecond that has passed, and 1 % for clocks that run apart.
        let left = over_at(deadline).saturating_sub(self.clock?.read(now) + 1) * 990;
        let left = self.room.line_life().map_or(left, |life| life.min(left));
        (left > 0).then_some((version, Some(left)))
    }

    /// CACHEINFO
    pub(super) fn cache_info(&self, now: u64, key: &Bytes) -> Reply {
        let version = self.state.line(key, self.time).map_or(0, |(version, _)| version);
        let holders = self.closing.directory.holders(now, key).into_iter();
        let holders = holders.map(|(node, state)| {
            Reply::Map(alloc::vec![
                (Reply::text("node"), Reply::int(node.0)),
                (Reply::text("state"), Reply::text(state.letter())),
            ])
        });
        Reply::Map(alloc::vec![
            (Reply::text("key"), Reply::Bulk(key.clone())),
            (Reply::text("partition"), Reply::int(u64::from(self.id.0))),
            (Reply::text("home"), Reply::int(self.me.0)),
            (Reply::text("version"), Reply::int(version)),
            (Reply::text("owned"), Reply::Int(i64::from(self.closing.directory.is_owned(now, key)))),
            (Reply::text("holders"), Reply::Array(holders.collect())),
        ])
    }

    /// Takes a word of the cache's protocol that is meant for a home.
    pub fn hear_cache(&mut self, now: u64, from: NodeId, word: CacheWord) {
        self.renew_lease(now);
        let lease = self.lease;
        self.closing.directory.hear(now, lease, from, word);
    }

    /// What the home has to say.
    pub fn take_cache_words(&mut self) -> Vec<(NodeId, CacheWord)> {
        self.closing.directory.take_words()
    }

    /// The line that goes with the answer to a read, if it is wanted and may be granted.
    pub(super) fn grant_for(&mut self, now: u64, read: &Read) -> Option<Grant> {
        if read.line == 0 || now >= self.lease {
            return None;
        }
        let key = read.work.line()?;
        let (version, left) = self.time_left(now, key)?;
        let (node, boot) = (read.asker.conn.node, read.asker.conn.boot());
        let epoch = self.closing.directory.epoch_for(now, self.lease, (node, boot), read.line)?;
        let grant = self.closing.directory.grant(now, node, epoch, key, false)?;
        Some(Grant { version, left, ..grant })
    }

    /// Lets time pass for the directory.
    pub(super) fn tick_directory(&mut self, now: u64) {
        if self.clock.is_some() {
            self.closing.directory.tick(now);
            if self.no_room.is_some() {
                // Nobody may go on acknowledging what this home has no room for.
                self.closing.directory.disown(now);
            }
        }
    }

    /// Begins to hand leadership over: no lease may be left that somebody relies on.
    pub(super) fn hand_to(&mut self, now: u64, heir: Option<Replica>) -> bool {
        let Some(heir) = heir.filter(|heir| self.is_close(now, *heir)) else { return false };
        self.closing.heir = Some(heir);
        self.closing.directory.recall(now);
        true
    }

    /// Whether leadership is being handed over.
    pub(super) fn is_handing_over(&self) -> bool {
        self.closing.heir.is_some() || self.consensus.is_handing_over()
    }

    /// Goes on with it, once all leases have come back.
    pub(super) fn go_on_handing_over(&mut self, now: u64) {
        let Some(heir) = self.closing.heir else { return };
        if !self.closing.directory.is_recalled(now) {
            return;
        }
        self.closing.heir = None;
        if self.is_close(now, heir) && !self.consensus.is_handing_over() {
            self.lease = 0;
            self.closing.tried = Some((heir, now));
            self.consensus.transfer(heir);
        } else {
            self.closing.directory.resume();
        }
    }

    /// The home's directory, to look at.
    #[must_use]
    pub fn directory(&self) -> &Directory {
        &self.closing.directory
    }
}
