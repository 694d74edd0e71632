//! GETV FILL: of all who miss a key one fills it, the others wait.
//!
//! Charter: the home's leader keeps who is to fill which key, and until when, and who waits. All of it is gone with its
//! term: who waits asks the next leader.
//!
//! ```text
//!            miss                     written                 ┌──────────── all who wait get the value, lead 0
//!   no entry ────▶ somebody leads ────────────▶ no entry ─────┘
//!                    │      ▲ lead 1
//!                    └──────┘ its time is over, or its connection, or its node: the first who waits leads
//! ```
//!
//! Invariants:
//! - Of a key one caller leads at a time. The next one does only when the time is over that the one before it had asked
//!   for, or its connection, or the link to its node.
//! - Who asks again under the same number is who it was before, unless its link was cut.
//! - Nobody leads by the word of a home that may be none any more: it has a lease, or asks in a round first.
//! - At its bounds it refuses with -BUSY: a lead more, or a nil to go on with, would let the herd through that this is to
//!   hold back.
//!
//! Subtlety: a link that is cut may stand again in a moment, and who led goes on filling then, beside the next. A node that is dead
//! looks just the same from here, and would have everybody wait for as long as its client had asked for.
//!
//! A value that is handed to waiters was written while they waited, so they read it then, whoever leads by now.

use alloc::borrow::ToOwned;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::id::NodeId;
use quorate_protocol::limits::{FILL_WAITERS_MAX, FILLS_MAX};
use quorate_protocol::op::{FillV, Op};
use quorate_protocol::peer::{Verdict, Work};
use quorate_protocol::reply::{Code, Reply};

use super::closing::Conn;
use super::{Group, Read};
use crate::outcome::Asker;

/// Keys that a tick passes on to the next who waits, at the most.
const PASSED_ON_AT_ONCE: usize = 1024;

/// Somebody who wants a key's value.
#[derive(Debug, Clone, Copy)]
struct Caller {
    asker: Asker,
    sending: u32,
    /// Microseconds that it has if it is to fill the key.
    time: u64,
}

impl Caller {
    fn conn(&self) -> Conn {
        (self.asker.conn.node, self.asker.conn.counter)
    }

    fn is(&self, other: &Self) -> bool {
        (self.conn(), self.asker.request) == (other.conn(), other.asker.request)
    }
}

/// A key that is to be filled.
#[derive(Debug)]
struct Fill {
    lead: Caller,
    /// When its time is over.
    until: u64,
    waiters: VecDeque<Caller>,
}

/// What becomes of a caller.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Leads,
    Waits,
    Busy,
}

/// See the top of the file.
#[derive(Debug, Default)]
pub(super) struct Fills {
    keys: BTreeMap<Bytes, Fill>,
    /// When whose time is over.
    ends: BTreeSet<(u64, Bytes)>,
    /// Connection → keys that it fills or waits for.
    conns: BTreeMap<Conn, BTreeSet<Bytes>>,
    waiting: usize,
    /// Callers that were looked at to find those who are gone.
    #[cfg(test)]
    looked_at: usize,
}

impl Fills {
    fn ask(&mut self, now: u64, key: &Bytes, caller: Caller) -> Place {
        let Some(fill) = self.keys.get_mut(key) else {
            if self.keys.len() >= FILLS_MAX {
                return Place::Busy;
            }
            self.lead(now, key.clone(), caller, VecDeque::new());
            return Place::Leads;
        };
        if fill.lead.is(&caller) {
            return Place::Leads;
        }
        if let Some(waiter) = fill.waiters.iter_mut().find(|waiter| waiter.is(&caller)) {
            waiter.sending = caller.sending;
            return Place::Waits;
        }
        if fill.waiters.len() >= FILL_WAITERS_MAX || self.waiting >= FILLS_MAX {
            return Place::Busy;
        }
        fill.waiters.push_back(caller);
        self.waiting += 1;
        self.conns.entry(caller.conn()).or_default().insert(key.clone());
        Place::Waits
    }

    fn lead(&mut self, now: u64, key: Bytes, lead: Caller, waiters: VecDeque<Caller>) {
        let until = now.saturating_add(lead.time);
        self.ends.insert((until, key.clone()));
        self.conns.entry(lead.conn()).or_default().insert(key.clone());
        self.keys.insert(key, Fill { lead, until, waiters });
    }

    /// A key is not to be filled any more; who has waited.
    fn end(&mut self, key: &Bytes) -> VecDeque<Caller> {
        let Some(fill) = self.keys.remove(key) else { return VecDeque::new() };
        self.ends.remove(&(fill.until, key.clone()));
        self.waiting -= fill.waiters.len();
        for caller in fill.waiters.iter().chain([&fill.lead]) {
            if let Some(keys) = self.conns.get_mut(&caller.conn()) {
                keys.remove(key);
                if keys.is_empty() {
                    self.conns.remove(&caller.conn());
                }
            }
        }
        fill.waiters
    }

    /// The time of who fills a key is over: the first who waits leads, if somebody does.
    fn pass_on(&mut self, now: u64, key: &Bytes) -> Option<Caller> {
        let mut waiters = self.end(key);
        let next = waiters.pop_front()?;
        self.waiting += waiters.len();
        for waiter in &waiters {
            self.conns.entry(waiter.conn()).or_default().insert(key.clone());
        }
        self.lead(now, key.clone(), next, waiters);
        Some(next)
    }

    /// The first key of which somebody's time is over.
    fn overdue(&self, now: u64) -> Option<Bytes> {
        self.ends.first().filter(|(until, _)| *until <= now).map(|(_, key)| key.clone())
    }

    /// Takes a connection out; the keys that it was to fill.
    fn close(&mut self, conn: Conn) -> Vec<Bytes> {
        let keys = self.conns.remove(&conn).unwrap_or_default();
        self.take_out(keys, |other| other == conn)
    }

    /// Takes all connections of a node out: who waits there asks again, if somebody is left. The keys that were to be filled from
    /// there.
    fn close_node(&mut self, node: NodeId) -> Vec<Bytes> {
        let of_node = (node, 0)..=(node, u64::MAX);
        let conns: Vec<Conn> = self.conns.range(of_node).map(|(conn, _)| *conn).collect();
        // Each key once, however many wait for it there.
        let keys: BTreeSet<Bytes> =
            conns.iter().filter_map(|conn| self.conns.remove(conn)).flatten().collect();
        self.take_out(keys, |conn| conn.0 == node)
    }

    /// Takes those out of some keys who are gone; the keys of which one of them leads.
    fn take_out(&mut self, keys: BTreeSet<Bytes>, is_gone: impl Fn(Conn) -> bool) -> Vec<Bytes> {
        let mut led = Vec::new();
        for key in keys {
            let Some(fill) = self.keys.get_mut(&key) else { continue };
            let before = fill.waiters.len();
            #[cfg(test)]
            {
                self.looked_at += before;
            }
            fill.waiters.retain(|waiter| !is_gone(waiter.conn()));
            self.waiting -= before - fill.waiters.len();
            if is_gone(fill.lead.conn()) {
                led.push(key);
            }
        }
        led
    }
}

impl Group {
    /// Keys that are to be filled, and callers that wait for it.
    #[must_use]
    pub fn fills(&self) -> [usize; 2] {
        [self.fills.keys.len(), self.fills.waiting]
    }

    /// If a read wants a key filled that does not exist, it is dealt with here; other reads come back.
    pub(super) fn wait_for_fill(&mut self, now: u64, read: Read) -> Option<Read> {
        let Work::Op(Op::FillV(FillV { key, ms })) = &read.work else { return Some(read) };
        if self.has_key(key) {
            return Some(read);
        }
        let caller = Caller { asker: read.asker, sending: read.sending, time: ms.saturating_mul(1000) };
        let place = self.fills.ask(now, key, caller);
        #[cfg(feature = "faults")]
        let place = if self.faults.cache.all_lead { Place::Leads } else { place };
        match place {
            Place::Leads => self.tell_lead(&caller),
            Place::Waits => {}
            Place::Busy => {
                let text = "as many wait for keys to be filled as may; ask again later";
                let busy = Verdict::Reply(Reply::error(Code::Busy, text.to_owned()));
                self.refuse(read.asker.conn, read.asker.request, read.sending, busy);
            }
        }
        None
    }

    fn has_key(&self, key: &Bytes) -> bool {
        self.state.line(key, self.time).is_some_and(|(version, _)| version > 0)
    }

    fn tell_lead(&mut self, caller: &Caller) {
        let reply = Reply::Array([Reply::Nil, Reply::Int(0), Reply::Int(1)].into());
        self.tell_answer(&caller.asker, Verdict::Reply(reply), None);
    }

    /// A write of keys that this leader has proposed is applied: who has waited for one of them gets its value.
    pub(super) fn filled(&mut self, keys: &[Bytes]) {
        for key in keys {
            if !self.fills.keys.contains_key(key) || !self.has_key(key) {
                continue;
            }
            let reply = self.state.read(self.time, &Work::Op(Op::GetV(key.clone())));
            for waiter in self.fills.end(key) {
                self.tell_answer(&waiter.asker, Verdict::Reply(reply.clone()), None);
            }
        }
    }

    /// Who fills a key has had its time. Without a lease it takes a round to know that the key is still missing: all who wait ask
    /// as if they had just come.
    fn pass_on(&mut self, now: u64, key: &Bytes) {
        if now < self.lease {
            if let Some(next) = self.fills.pass_on(now, key) {
                self.tell_lead(&next);
            }
            return;
        }
        for Caller { asker, sending, time } in self.fills.end(key) {
            let work = Work::Op(Op::FillV(FillV { key: key.clone(), ms: time / 1000 }));
            self.reads.push(Read { asker, sending, behind: false, recalled: false, line: 0, work });
        }
    }

    /// A connection is gone.
    pub(super) fn close_fills(&mut self, now: u64, conn: Conn) {
        for key in self.fills.close(conn) {
            self.pass_on(now, &key);
        }
    }

    /// The link to a node is cut.
    pub(super) fn close_fills_of(&mut self, now: u64, node: NodeId) {
        for key in self.fills.close_node(node) {
            self.pass_on(now, &key);
        }
    }

    /// Lets time pass.
    pub(super) fn tick_fills(&mut self, now: u64) {
        for _ in 0..PASSED_ON_AT_ONCE {
            let Some(key) = self.fills.overdue(now) else { return };
            self.pass_on(now, &key);
        }
    }

    /// Whoever waits asks the next leader.
    pub(super) fn give_up_fills(&mut self) {
        let fills = core::mem::take(&mut self.fills);
        for Caller { asker, sending, .. } in fills.keys.into_values().flat_map(|fill| fill.waiters) {
            self.refuse(asker.conn, asker.request, sending, Verdict::Moved);
        }
    }
}

#[cfg(test)]
mod tests {
    use quorate_protocol::id::ConnId;

    use super::*;

    fn caller(conn: u64, request: u64) -> Caller {
        let conn = ConnId { node: NodeId(1 + conn % 2), counter: conn, ..ConnId::default() };
        Caller { asker: Asker { conn, request, client: None }, sending: 1, time: 100 }
    }

    #[test]
    fn one_leads_at_a_time() {
        let (mut fills, key) = (Fills::default(), Bytes::from_static(b"k"));
        assert_eq!(fills.ask(10, &key, caller(1, 1)), Place::Leads);
        assert_eq!(fills.ask(11, &key, caller(2, 1)), Place::Waits);
        assert_eq!(fills.ask(11, &key, caller(1, 1)), Place::Leads, "it has not heard that it does");
        assert_eq!(fills.ask(12, &key, caller(2, 1)), Place::Waits, "it waits once, however often it asks");
        assert_eq!(fills.ask(12, &key, caller(1, 2)), Place::Waits, "another request of the same connection");
        assert_eq!(fills.ask(13, &key, caller(3, 1)), Place::Waits);
        assert_eq!((fills.waiting, fills.overdue(109)), (3, None));
        assert_eq!(fills.overdue(110), Some(key.clone()));
        assert!(fills.pass_on(110, &key).is_some_and(|next| next.is(&caller(2, 1))));
        assert_eq!(fills.overdue(209), None);
        assert_eq!(fills.close((NodeId(1), 2)), core::slice::from_ref(&key), "who leads has gone");
        assert!(fills.pass_on(120, &key).is_some_and(|next| next.is(&caller(1, 2))));
        assert!(fills.close((NodeId(2), 3)).is_empty(), "it has only waited");
        assert!(fills.pass_on(300, &key).is_none());
        assert_eq!((fills.waiting, fills.keys.len(), fills.ends.len()), (0, 0, 0));
        assert!(fills.conns.is_empty(), "nothing is left: {fills:?}");
    }

    #[test]
    fn a_node_that_is_cut_off_neither_waits_nor_leads() {
        let (mut fills, key, other) = (Fills::default(), Bytes::from_static(b"k"), Bytes::from_static(b"l"));
        fills.ask(10, &key, caller(1, 1));
        fills.ask(10, &key, caller(3, 1));
        fills.ask(10, &key, caller(2, 1));
        fills.ask(10, &other, caller(2, 2));
        fills.ask(10, &other, caller(1, 2));
        assert_eq!(fills.close_node(NodeId(2)), core::slice::from_ref(&key));
        assert_eq!(fills.waiting, 1, "of node 1");
        assert!(fills.pass_on(20, &key).is_some_and(|next| next.is(&caller(2, 1))), "it leads now");
        assert_eq!(fills.ask(21, &key, caller(1, 1)), Place::Waits, "it is back, and somebody else leads");
        assert_eq!(fills.end(&key).len(), 1);
        assert!(fills.end(&other).is_empty());
        assert!(fills.conns.is_empty() && fills.ends.is_empty() && fills.waiting == 0, "{fills:?}");
    }

    #[test]
    fn a_node_with_very_many_that_wait_is_cut_off_in_one_go() {
        let (mut fills, key) = (Fills::default(), Bytes::from_static(b"k"));
        assert_eq!(fills.ask(10, &key, caller(0, 1)), Place::Leads);
        (1..=FILL_WAITERS_MAX as u64).for_each(|n| _ = fills.ask(10, &key, caller(2 * n + 1, 1)));
        assert!(fills.close_node(NodeId(2)).is_empty());
        assert_eq!((fills.waiting, fills.looked_at), (0, FILL_WAITERS_MAX), "each once");
    }

    #[test]
    fn at_its_bounds_it_lets_nobody_through() {
        let (mut fills, key) = (Fills::default(), Bytes::from_static(b"k"));
        let ask = |fills: &mut Fills, n: usize| fills.ask(10, &key, caller(n as u64, 1));
        assert_eq!(ask(&mut fills, 0), Place::Leads);
        (1..=FILL_WAITERS_MAX).for_each(|n| assert_eq!(ask(&mut fills, n), Place::Waits));
        assert_eq!(ask(&mut fills, FILL_WAITERS_MAX + 1), Place::Busy);
        for n in 1..FILLS_MAX as u64 {
            assert_eq!(fills.ask(10, &Bytes::from(n.to_le_bytes().to_vec()), caller(9, n)), Place::Leads);
        }
        assert_eq!(fills.ask(10, &Bytes::from_static(b"more"), caller(9, 0)), Place::Busy);
        assert_eq!(fills.end(&key).len(), FILL_WAITERS_MAX);
        assert_eq!(fills.ask(10, &Bytes::from_static(b"more"), caller(9, 0)), Place::Leads);
    }
}
