//! The end of connections: what they received and did not settle comes back, and they wait for nothing any more.
//!
//! Invariants:
//! - None of the connections that end together is served with what comes back of the others: first all of them cease to
//!   listen, then messages come back.
//! - What is too much at once goes on by portions, with every entry.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use quorate_protocol::id::{ConnId, NodeId, SessionId};
use quorate_protocol::reply::Reply;
use quorate_protocol::wire_struct;

use super::Queues;
use super::rows::Held;
use crate::outcome::{Ctx, Outcomes, answer};
use crate::portion::Portion;

/// What a message that comes back costs of a portion.
const COST: usize = 2;

wire_struct! {
    /// How far the end of connections is.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Closing {
        /// None of them listens any more: messages come back.
        pub deaf: bool,
        /// The counter of the first connection.
        pub first: u64,
        /// The counter of the connection to go on with.
        pub next: u64,
    }
}

impl Queues {
    /// A connection has ended: what it received and did not settle comes back.
    pub fn close(&mut self, ctx: &Ctx, conn: ConnId, out: &mut Outcomes) {
        self.close_up_to(ctx, conn, conn.counter, out);
    }

    /// The session of a node has ended, and with it all its connections.
    pub fn end_session(&mut self, ctx: &Ctx, node: NodeId, session: SessionId, out: &mut Outcomes) {
        self.close_up_to(ctx, ConnId { node, session, counter: u64::MAX }, 0, out);
    }

    /// Ends the connections of a session from a counter on. At once, unless it is much.
    fn close_up_to(&mut self, ctx: &Ctx, last: ConnId, first: u64, out: &mut Outcomes) {
        let closing = Closing { deaf: false, first, next: first };
        if let Some(rest) = self.close_some(ctx, last, closing, &mut Portion::of_command(), out) {
            self.closing.insert(last, rest);
        }
    }

    /// Goes on with what was too much at once.
    pub(super) fn work_off(&mut self, ctx: &Ctx, portion: &mut Portion, out: &mut Outcomes) {
        while portion.is_left()
            && let Some((&last, &closing)) = self.closing.first()
        {
            match self.close_some(ctx, last, closing, portion, out) {
                Some(rest) => _ = self.closing.insert(last, rest),
                None => _ = self.closing.remove(&last),
            }
        }
    }

    /// Takes a portion of what connections have away; returns where to go on.
    fn close_some(
        &mut self,
        ctx: &Ctx,
        last: ConnId,
        closing: Closing,
        portion: &mut Portion,
        out: &mut Outcomes,
    ) -> Option<Closing> {
        let mut topics = BTreeSet::new();
        let mut back = Vec::new();
        let rest = self.gather(last, closing, portion, &mut |queues, conn, held| match held {
            Held::Subscription(number) => {
                queues.remove_subscription(number, conn);
                topics.insert(number);
            }
            Held::Waiter(place) => {
                let waiter = queues.remove_waiter(place);
                topics.insert(waiter.topic);
                answer(out, waiter.asker, Reply::Nil);
            }
            Held::Lease(key) => {
                topics.insert(key.0);
                back.push(key);
            }
        });
        for key in back {
            self.give_back(ctx, key, 0, out);
        }
        for number in topics {
            self.serve(ctx, number, out);
        }
        rest
    }

    /// Shows what connections have, as far as the portion goes; returns where to go on. What it shows of those that
    /// still listen is to be taken away; leases may stay until it returns.
    fn gather(
        &mut self,
        last: ConnId,
        mut closing: Closing,
        portion: &mut Portion,
        show: &mut dyn FnMut(&mut Self, ConnId, Held),
    ) -> Option<Closing> {
        loop {
            let first = ConnId { counter: closing.next, ..last };
            let Some((&conn, _)) = self.index.held.range(first..=last).next() else {
                if closing.deaf {
                    return None;
                }
                closing = Closing { deaf: true, next: closing.first, ..closing };
                continue;
            };
            closing.next = conn.counter;
            if !portion.take(1) {
                return Some(closing);
            }
            // Leases are last in order.
            let mut after = None;
            while let Some(held) = self.next_held(conn, after)
                && (closing.deaf || !matches!(held, Held::Lease(_)))
            {
                if !portion.take(COST) {
                    return Some(closing);
                }
                show(self, conn, held);
                after = Some(held);
            }
            match conn.counter.checked_add(1).filter(|next| *next <= last.counter) {
                Some(next) => closing.next = next,
                None if closing.deaf => return None,
                None => closing = Closing { deaf: true, next: closing.first, ..closing },
            }
        }
    }

    fn next_held(&self, conn: ConnId, after: Option<Held>) -> Option<Held> {
        let held = self.index.held.get(&conn)?;
        match after {
            None => held.first().copied(),
            Some(after) => {
                held.range((core::ops::Bound::Excluded(after), core::ops::Bound::Unbounded)).next().copied()
            }
        }
    }
}
