//! Writes on their way past the cache: a write is proposed when no other node can show what it replaces.
//!
//! Charter: lets work in. A write whose keys are cached elsewhere waits for the directory; what its connection sends
//! behind it waits with it; everybody else's work goes on. And the other direction: lines that go out with answers.
//!
//! Invariant: every write of keys that this leader proposes has closed them, once, and opens them when it is applied.
//! What waits here was never proposed.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::cache::{CacheWord, Grant};
use quorate_protocol::id::{NodeId, Replica};
use quorate_protocol::peer::Verdict;
use quorate_protocol::reply::Reply;

use super::room::Fits;
use super::{Group, Read};
use crate::batch::Logged;
use crate::cache::directory::{Directory, WriteId};
use crate::outcome::Asker;

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

impl Job {
    fn weight(&self) -> usize {
        match self {
            Self::Read(_) => 0,
            Self::Write { logged, .. } => logged.work.weight(),
        }
    }
}

/// Why a write that has waited goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GoOn {
    /// Nobody else can show its keys any more.
    IsClosed,
    /// There is room for it.
    HasRoom,
    /// There will be none.
    HasNone,
}

/// See the top of the file.
#[derive(Default)]
pub(super) struct Closing {
    pub(super) directory: Directory,
    /// Write → whose it is.
    held: BTreeMap<WriteId, Conn>,
    /// What waits, in each connection's order: the first is a write whose keys are closed, or for which there is no room.
    queues: BTreeMap<Conn, VecDeque<Job>>,
    waiting: usize,
    /// Bytes of the writes that wait.
    waiting_bytes: usize,
    /// The line that goes with the answer to the write that is being applied.
    written: Option<(Asker, Grant)>,
    /// Whom leadership is handed to once all leases have come back.
    heir: Option<Replica>,
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
        self.held.is_empty()
    }

    /// Whether some of it can go on.
    pub(super) fn has_ready(&self) -> bool {
        self.directory.has_ready()
    }

    /// Until when somebody may rely on a lease that was granted.
    pub(super) fn relied_on_until(&self) -> u64 {
        self.directory.relied_on_until()
    }
}

impl Group {
    /// Takes work of a connection, behind what of it waits already.
    pub(super) fn let_in(&mut self, now: u64, conn: Conn, job: Job) {
        if let Some(queue) = self.closing.queues.get_mut(&conn) {
            self.closing.waiting_bytes += job.weight();
            queue.push_back(job);
            self.closing.waiting += 1;
        } else {
            self.admit(now, conn, job);
        }
    }

    fn admit(&mut self, now: u64, conn: Conn, job: Job) {
        let Job::Write { sending, logged, gave_up } = job else {
            let Job::Read(read) = job else { return };
            return self.reads.push(read);
        };
        match self.fits(&logged) {
            Fits::Yes => {}
            Fits::Later => {
                self.room.waits(conn);
                return self.wait_first(conn, Job::Write { sending, logged, gave_up });
            }
            Fits::No => return self.refuse_for_room(&logged.asker, sending),
        }
        self.close_keys(now, conn, sending, logged, gave_up);
    }

    /// Closes what a write may change, and has it wait, or lets it in.
    fn close_keys(&mut self, now: u64, conn: Conn, sending: u32, logged: Logged, gave_up: u64) {
        let keys = logged.work.writes();
        let waits = if logged.work.writes_all() {
            self.closing.directory.close_all(now)
        } else if keys.is_empty() {
            None
        } else {
            self.closing.directory.close(now, &keys, conn.0, gave_up)
        };
        match waits {
            None => self.push_open(sending, logged),
            Some(write) => {
                self.closing.held.insert(write, conn);
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

    /// Takes up again what of a connection waits, from the write on that it waits for.
    pub(super) fn go_on(&mut self, now: u64, conn: Conn, how: GoOn) {
        let mut queue = self.closing.queues.remove(&conn).expect("its write waits");
        self.closing.waiting -= queue.len();
        self.closing.waiting_bytes -= queue.iter().map(Job::weight).sum::<usize>();
        let Some(Job::Write { sending, logged, gave_up }) = queue.pop_front() else {
            panic!("the first in a queue is the write that it waits for");
        };
        match how {
            GoOn::IsClosed => self.push_open(sending, logged),
            GoOn::HasRoom => self.close_keys(now, conn, sending, logged, gave_up),
            GoOn::HasNone => self.refuse_for_room(&logged.asker, sending),
        }
        while let Some(job) = queue.pop_front() {
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

    /// Lets the writes in whose keys nobody else can show any more, and what waits behind them.
    pub(super) fn let_ready_in(&mut self, now: u64) {
        for write in self.closing.directory.take_ready() {
            let conn = self.closing.held.remove(&write).expect("who waits is known");
            self.go_on(now, conn, GoOn::IsClosed);
        }
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
        for job in closing.queues.into_values().flatten() {
            let (asker, sending) = match job {
                Job::Read(read) => (read.asker, read.sending),
                Job::Write { sending, logged, .. } => (logged.asker, sending),
            };
            self.refuse(asker.conn, asker.request, sending, Verdict::Moved);
        }
    }

    /// A command that this leader has proposed is applied: its keys are open again. The node that gave up a line for it
    /// gets it back with the answer.
    pub(super) fn open_keys(&mut self, now: u64, asker: &Asker, keys: &[Bytes]) {
        self.closing.directory.written(now, Some(&asker.conn), keys);
        let owner = self.closing.directory.open(keys).filter(|owner| *owner == asker.conn.node);
        let (Some(owner), [key]) = (owner, keys) else { return };
        let Some((version, left)) = self.time_left(now, key).filter(|_| now < self.lease) else { return };
        if let Some(grant) = self.closing.directory.grant_written(now, owner, key) {
            self.closing.written = Some((*asker, Grant { version, left, ..grant }));
        }
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
        // What is left to it, less the part of a millisecond that has passed, and 1 % for clocks that run apart.
        let left = deadline.saturating_sub(self.clock?.read(now) + 1) * 990;
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
        let grant = self.closing.directory.grant(now, read.asker.conn.node, read.line, key, false)?;
        Some(Grant { version, left, ..grant })
    }

    /// Lets time pass for the directory.
    pub(super) fn tick_directory(&mut self, now: u64) {
        if self.clock.is_some() {
            self.closing.directory.tick(now);
        }
    }

    /// Begins to hand leadership over: no lease may be left that somebody relies on.
    pub(super) fn hand_to(&mut self, now: u64, heir: Option<Replica>) -> bool {
        let Some(heir) = heir.filter(|heir| self.is_close(*heir)) else { return false };
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
        if self.is_close(heir) && !self.consensus.is_handing_over() {
            self.lease = 0;
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
