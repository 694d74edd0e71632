//! Room for keys: what a partition's leader lets in, and what it makes room with.
//!
//! Charter: every partition has the same share of `store.max-memory`. Its leader counts what the keys take and what is
//! on its way, and lets nothing in that does not fit: it is refused with -OOM, or waits until keys that were not looked
//! at for long have been evicted, by commands in the log like any other.
//!
//! Invariants:
//! - What is refused with -OOM was never proposed.
//! - An eviction closes its keys as DEL does, and removes only the version that was chosen; a key of which a write is on
//!   its way, or for which room is being made, is not chosen.
//! - A turn chooses `EVICTED_AT_ONCE` keys at the most, and looks at `LOOKED_AT_ONCE` to find them; whoever needs more waits
//!   for the next, which comes when what was chosen is on the disk, or at once if too many were looked at.
//!
//! Subtlety: reads that nodes answer from lines of their own are not seen here. So while keys may be evicted, lines are
//! granted for `LINE_LIFE` only, and a key that somebody holds counts as looked at up to that much after its grant. An owner shows
//! its line as long after each of its writes, which come here, too.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::id::{ConnId, SessionId};
use quorate_protocol::limits::{EVICTED_AT_ONCE, LOOKED_AT_ONCE, STORE_MAX};
use quorate_protocol::peer::{Principal, Verdict, Work};
use quorate_protocol::reply::{Code, Reply};

use super::Group;
use super::closing::{Conn, GoOn, Job};
use crate::batch::Logged;
use crate::outcome::Asker;
use crate::store::Store;
use crate::store::room::{Sample, most};

/// Bytes that commands on their way add to the store, or take from it.
pub(super) type Growth = i64;

/// For how long a line is granted where keys may be evicted; microseconds.
const LINE_LIFE: u64 = 5_000_000;
/// Keys that are looked at for each that is evicted.
const SAMPLES: usize = 16;
/// Keys that are passed over, at the most, to find so many that can go.
const SAMPLES_MOST: usize = 256;
/// Keys that one command evicts.
const TOGETHER: usize = 16;
/// In whose name nodes evict: no connection has such a number. Keys that nobody holds, and others, which may have to wait.
const EVICTORS: [u64; 2] = [u64::MAX, u64::MAX - 1];

/// What a partition's keys may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// Bytes.
    pub max: u64,
    /// Keys that were not looked at for long make room for others.
    pub evicts: bool,
}

impl Default for Bound {
    fn default() -> Self {
        Self { max: STORE_MAX, evicts: false }
    }
}

/// Whether a write may be let in, as far as room is concerned.
pub(super) enum Fits {
    Yes,
    /// Once others have gone.
    Later,
    No,
}

/// See the top of the file.
#[derive(Debug, Default)]
pub(super) struct Room {
    bound: Bound,
    /// Connections whose next write waits for room, in the order in which they came.
    waiting: VecDeque<Conn>,
    /// Keys that were chosen in this turn.
    chosen: usize,
    /// Keys that were looked at, in this turn and since the node started.
    looked: (usize, u64),
    /// Where the next sample is taken.
    place: u64,
    /// Bytes of each command that is to evict keys which somebody holds yet, in their order, and their sum.
    promises: VecDeque<u64>,
    promised: u64,
    /// Writes that were refused since the node started.
    refused: u64,
}

impl Room {
    /// Begins with a leader's term.
    pub(super) fn begin(&mut self, seed: u64) {
        self.place = seed;
    }

    /// What waited is given up.
    pub(super) fn give_up(&mut self) {
        self.waiting.clear();
        self.promises.clear();
        self.promised = 0;
    }

    /// A turn has ended.
    pub(super) fn end_turn(&mut self) {
        (self.chosen, self.looked.0) = (0, 0);
    }

    /// Whether this turn looks at no more keys.
    pub(super) fn has_looked_enough(&self) -> bool {
        self.looked.0 >= LOOKED_AT_ONCE
    }

    /// Keys that were looked at since the node started.
    pub(super) fn looked_at(&self) -> u64 {
        self.looked.1
    }

    /// A connection's next write waits.
    pub(super) fn waits(&mut self, conn: Conn) {
        self.waiting.push_back(conn);
    }

    /// Writes that were refused since the node started.
    pub(super) fn refused(&self) -> u64 {
        self.refused
    }

    /// For how long a line is granted at the most; microseconds.
    pub(super) fn line_life(&self) -> Option<u64> {
        self.bound.evicts.then_some(LINE_LIFE)
    }

    /// Somewhere among the hashes; equal runs take equal samples (splitmix64).
    fn next_place(&mut self) -> u64 {
        self.place = self.place.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.place ^ (self.place >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}

fn signed(bytes: u64) -> Growth {
    Growth::try_from(bytes).unwrap_or(Growth::MAX)
}

impl Group {
    /// What its keys may take.
    pub fn set_bound(&mut self, bound: Bound) {
        self.room.bound = Bound { max: bound.max.min(STORE_MAX), ..bound };
    }

    /// What the keys take once all that is on its way is applied, about.
    fn claimed(&self, store: &Store) -> u64 {
        let claimed = signed(store.bytes()) + self.in_flight.growth + self.open_growth;
        u64::try_from(claimed).unwrap_or(0)
    }

    /// Whether a write may be let in.
    pub(super) fn fits(&mut self, logged: &Logged) -> Fits {
        let most = most(&logged.work);
        if most == 0 || self.has_heard(&logged.asker) {
            return Fits::Yes;
        }
        let Some(store) = self.state.store() else { return Fits::Yes };
        let (claimed, max) = (self.claimed(store), self.room.bound.max);
        if self.room.waiting.is_empty() && claimed + most <= max {
            return Fits::Yes;
        }
        let growth = self.growth(store, &logged.work);
        if growth == 0 || (self.room.waiting.is_empty() && claimed + growth <= max) {
            return Fits::Yes;
        }
        if self.room.bound.evicts && growth <= max { Fits::Later } else { Fits::No }
    }

    /// A request of a client session that came before is answered as it was then.
    fn has_heard(&mut self, asker: &Asker) -> bool {
        asker.client.as_ref().is_some_and(|seq| self.state.memory().has_heard(seq))
    }

    fn growth(&self, store: &Store, work: &Work) -> u64 {
        let Work::Op(op) = work else { return 0 };
        let directory = &self.closing.directory;
        if self.room.bound.evicts && !op.writes().iter().all(|key| directory.is_open(key)) {
            // What is there may be on its way out.
            return most(work);
        }
        store.growth_by(op, self.time)
    }

    /// By how much a command that is let in changes what the keys take, for all that is known now: looked up only where
    /// it matters.
    pub(super) fn growth_of(&mut self, work: &Work) -> Growth {
        let Some(store) = self.state.store() else { return 0 };
        if let Work::Evict(lines) = work {
            let frees = lines.iter().map(|(key, version)| store.cost_of(key, *version)).sum();
            return -signed(frees);
        }
        let most = most(work);
        let near = most > 0 && self.claimed(store) + most > self.room.bound.max;
        signed(if near { self.growth(store, work) } else { most })
    }

    pub(super) fn refuse_for_room(&mut self, asker: &Asker, sending: u32) {
        self.room.refused += 1;
        let text = format!(
            "command not allowed when used memory > 'maxmemory'. The keys of partition {} fill their {} bytes: delete \
             some, let them expire, or raise store-max-memory",
            self.id.0, self.room.bound.max
        );
        self.refuse(asker.conn, asker.request, sending, Verdict::Reply(Reply::error(Code::Oom, text)));
    }

    /// Lets in what there is room for, and evicts what others need.
    pub(super) fn make_room(&mut self, now: u64) {
        // Before all that former leaders have logged is applied, nobody knows what there is.
        if !self.room.bound.evicts || self.applied_term != self.term {
            return;
        }
        while !self.closing.has_enough() {
            let Some(store) = self.state.store() else { return };
            let claimed = self.claimed(store);
            let first = self.room.waiting.front().copied();
            let needs = first.and_then(|conn| self.first_waiting(conn));
            let needs = needs.map_or(0, |logged| self.growth(store, &logged.work));
            let fits = claimed + needs <= self.room.bound.max;
            match first {
                // What another write has made of its key may have made it small.
                Some(conn) if fits || needs == 0 => {
                    self.room.waiting.pop_front();
                    self.go_on(now, conn, GoOn::HasRoom);
                    continue;
                }
                None if fits => return,
                _ => {}
            }
            let wanted = (claimed + needs).saturating_sub(self.room.promised + self.room.bound.max);
            let left = EVICTED_AT_ONCE.saturating_sub(self.room.chosen);
            if wanted == 0 || left == 0 || self.room.has_looked_enough() {
                return;
            }
            let gone = self.evict_some(now, wanted, left);
            self.room.chosen += gone;
            let hopeless = gone == 0 && self.room.promised == 0 && self.is_quiet();
            match first {
                Some(conn) if hopeless => {
                    self.room.waiting.pop_front();
                    self.go_on(now, conn, GoOn::HasNone);
                }
                _ if gone == 0 => return,
                _ => {}
            }
        }
    }

    /// Whether nothing is on its way that may make room, or bring something that can be evicted.
    fn is_quiet(&self) -> bool {
        self.open.is_empty() && self.in_flight.commands == 0 && self.closing.holds_none()
    }

    /// Chooses keys that take so many bytes together, but no more than `count`, and sees to it that they go; how many.
    fn evict_some(&mut self, now: u64, wanted: u64, count: usize) -> usize {
        let mut chosen: Vec<(Sample, bool)> = Vec::new();
        let mut bytes = 0;
        let first = self.room.waiting.front().and_then(|conn| self.first_waiting(*conn));
        let mut spared = first.map_or(Vec::new(), |logged| logged.work.writes().into_owned());
        spared.sort_unstable();
        while chosen.len() < count && bytes < wanted && !self.room.has_looked_enough() {
            let place = self.room.next_place();
            let (one, looked) = self.oldest(now, place, &chosen, &spared);
            self.room.looked = (self.room.looked.0 + looked, self.room.looked.1 + looked as u64);
            let Some(one) = one else { break };
            bytes += one.0.cost;
            chosen.push(one);
        }
        let gone = chosen.len();
        let (held, free): (Vec<_>, Vec<_>) = chosen.into_iter().partition(|(_, held)| *held);
        for (kind, chosen) in [free, held].iter().enumerate() {
            chosen.chunks(TOGETHER).for_each(|together| self.evict(now, kind, together));
        }
        gone
    }

    /// Sees to it that keys go: of those that nobody holds, or of the others.
    fn evict(&mut self, now: u64, kind: usize, keys: &[(Sample, bool)]) {
        if kind == 1 {
            let bytes = keys.iter().map(|(sample, _)| sample.cost).sum();
            self.room.promises.push_back(bytes);
            self.room.promised += bytes;
        }
        let lines = keys.iter().map(|(sample, _)| (sample.key.clone(), sample.version)).collect();
        let conn = ConnId { node: self.me, session: SessionId(0), counter: EVICTORS[kind] };
        let asker = Asker { conn, request: 0, client: None };
        let logged = Logged { asker, principal: Principal::Node(self.me), work: Work::Evict(lines) };
        self.let_in(now, (self.me, EVICTORS[kind]), Job::Write { sending: 0, logged, gave_up: 0 });
    }

    /// Of a sample, but for keys that were chosen or are spared, the key that was not looked at for longest, and whether
    /// somebody holds its line; and how many keys were looked at.
    fn oldest(
        &self,
        now: u64,
        place: u64,
        chosen: &[(Sample, bool)],
        spared: &[Bytes],
    ) -> (Option<(Sample, bool)>, usize) {
        let directory = &self.closing.directory;
        let is_chosen = |sample: &Sample| chosen.iter().any(|(other, _)| other.key == sample.key);
        let free = |sample: &Sample| {
            directory.is_open(&sample.key) && !is_chosen(sample) && spared.binary_search(&sample.key).is_err()
        };
        let Some(store) = self.state.store() else { return (None, 0) };
        let mut looked = 0;
        let samples = store.sample(place, SAMPLES_MOST).inspect(|_| looked += 1).filter(free).take(SAMPLES);
        let seen = |sample: Sample| {
            // An owner that was asked has no line any more, and is waited for all the same.
            let held = directory.is_held(now, &sample.key) || directory.is_owned(now, &sample.key);
            let grace = if held { LINE_LIFE / 1000 } else { 0 };
            ((sample.touched + grace).min(self.time), sample, held)
        };
        let oldest = samples.map(seen).min_by_key(|(seen, ..)| *seen);
        (oldest.map(|(_, sample, held)| (sample, held)), looked)
    }

    /// A command is let in: if it evicts keys that somebody held, it is counted as one on its way from here on.
    pub(super) fn note_let_in(&mut self, asker: &Asker) {
        if (asker.conn.node, asker.conn.counter) == (self.me, EVICTORS[1]) {
            self.room.promised -= self.room.promises.pop_front().unwrap_or(0);
        }
    }
}
