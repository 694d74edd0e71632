//! What is found by something else than its key. Derived from the rows, equal to what they say.
//!
//! Invariant: every row is added when it is put and dropped, as it was, before it changes or goes. The tests
//! compare the index with one that is built from the rows.

use alloc::collections::{BTreeMap, BTreeSet};
use bytes::Bytes;
use quorate_protocol::id::{ConnId, GroupId};
use quorate_protocol::limits::FETCH_BYTES_MAX;
#[cfg(not(test))]
pub(super) use quorate_protocol::limits::QUEUES_MAX;

use super::rows::{Due, Held, Message, MessageKey, Published, State, Subscription, TopicNumber, Waiter};
use crate::trash::Trash;

/// Little enough for a test to reach it.
#[cfg(test)]
pub(super) const QUEUES_MAX: u64 = 32 << 20;
/// What a message costs beyond its body, and an ID beyond its text.
const ROW_COST: u64 = 192;

/// What a body or an ID of that length costs.
pub(super) fn cost(length: usize) -> u64 {
    length as u64 + ROW_COST
}

/// A topic's rows, as they are needed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) name: Bytes,
    /// Ids of messages to be delivered; the oldest comes first, also when it comes back.
    pub(super) ready: BTreeSet<u64>,
    pub(super) delayed: usize,
    pub(super) leased: usize,
    pub(super) leaving: usize,
    /// Places of FETCHes that wait.
    pub(super) waiters: BTreeSet<u64>,
    pub(super) subscriptions: usize,
    /// Subscriptions with room for more: (unacknowledged, last turn, connection). The first is served next.
    pub(super) hungry: BTreeSet<(u32, u64, ConnId)>,
    pub(super) published: usize,
}

impl Line {
    pub(super) fn messages(&self) -> usize {
        self.ready.len() + self.delayed + self.leased + self.leaving
    }

    pub(super) fn consumers(&self) -> usize {
        self.waiters.len() + self.subscriptions
    }

    /// Whether nothing is in the topic and nobody listens to it.
    pub(super) fn is_idle(&self) -> bool {
        self.messages() + self.consumers() + self.published == 0
    }
}

/// What was pushed and is not settled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Pushed {
    messages: u32,
    bytes: usize,
}

/// A subscription, and what it has not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seat {
    row: Subscription,
    pushed: Pushed,
}

impl Seat {
    /// PREFETCH bounds the messages; their bytes are bounded too, so that pushes never cut who reads them.
    fn hunger(&self, conn: ConnId) -> Option<(u32, u64, ConnId)> {
        let Pushed { messages, bytes } = self.pushed;
        (messages < self.row.prefetch && bytes < FETCH_BYTES_MAX).then_some((messages, self.row.turn, conn))
    }
}

/// See the top of the file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    pub(super) lines: BTreeMap<TopicNumber, Line>,
    pub(super) due: BTreeSet<(u64, Due)>,
    /// What remembered IDs cost, in bytes.
    pub(super) ids: u64,
    pub(super) held: BTreeMap<ConnId, BTreeSet<Held>>,
    /// Messages that leave and have no place in the outbox yet, by the partition they go to.
    pub(super) unposted: BTreeSet<(GroupId, MessageKey)>,
    seats: BTreeMap<(TopicNumber, ConnId), Seat>,
    /// Messages pushed to a connection and not settled, whether it is still subscribed or not.
    pushed: BTreeMap<(TopicNumber, ConnId), Pushed>,
}

impl Index {
    pub(super) fn open(&mut self, number: TopicNumber, name: Bytes) {
        self.lines.insert(number, Line { name, ..Line::default() });
    }

    pub(super) fn line(&mut self, number: TopicNumber) -> &mut Line {
        self.lines.get_mut(&number).expect("every topic that has rows has a line")
    }

    /// `size`: the bytes of its body.
    pub(super) fn add_message(&mut self, key: MessageKey, message: &Message, size: usize) {
        let line = self.line(key.0);
        match &message.state {
            State::Ready => {
                line.ready.insert(key.1);
            }
            State::Delayed(until) => {
                line.delayed += 1;
                self.due.insert((*until, Due::Message(key)));
            }
            State::Leased(lease) => {
                line.leased += 1;
                self.due.insert((lease.until, Due::Message(key)));
                self.hold(lease.conn, Held::Lease(key));
                if lease.pushed {
                    self.count_pushed(key.0, lease.conn, |pushed| {
                        pushed.messages += 1;
                        pushed.bytes += size;
                    });
                }
            }
            State::Leaving(leaving) => {
                line.leaving += 1;
                if !leaving.posted {
                    self.unposted.insert((leaving.target, key));
                }
            }
        }
    }

    pub(super) fn drop_message(&mut self, key: MessageKey, message: &Message, size: usize) {
        let line = self.line(key.0);
        match &message.state {
            State::Ready => {
                line.ready.remove(&key.1);
            }
            State::Delayed(until) => {
                line.delayed -= 1;
                self.due.remove(&(*until, Due::Message(key)));
            }
            State::Leased(lease) => {
                line.leased -= 1;
                self.due.remove(&(lease.until, Due::Message(key)));
                self.let_go(lease.conn, Held::Lease(key));
                if lease.pushed {
                    self.count_pushed(key.0, lease.conn, |pushed| {
                        pushed.messages -= 1;
                        pushed.bytes -= size;
                    });
                }
            }
            State::Leaving(leaving) => {
                line.leaving -= 1;
                self.unposted.remove(&(leaving.target, key));
            }
        }
    }

    fn count_pushed(&mut self, number: TopicNumber, conn: ConnId, change: impl FnOnce(&mut Pushed)) {
        let entry = self.pushed.entry((number, conn)).or_default();
        change(entry);
        let pushed = *entry;
        if pushed.messages == 0 {
            self.pushed.remove(&(number, conn));
        }
        self.reseat(number, conn, |seat| seat.pushed = pushed);
    }

    /// Changes a subscription's seat, and its place among the hungry ones.
    fn reseat(&mut self, number: TopicNumber, conn: ConnId, change: impl FnOnce(&mut Seat)) {
        let Some(seat) = self.seats.get_mut(&(number, conn)) else { return };
        let hungry = &mut self.lines.get_mut(&number).expect("every topic that has rows has a line").hungry;
        if let Some(place) = seat.hunger(conn) {
            hungry.remove(&place);
        }
        change(seat);
        hungry.extend(seat.hunger(conn));
    }

    pub(super) fn add_subscription(&mut self, number: TopicNumber, conn: ConnId, row: &Subscription) {
        let pushed = self.pushed.get(&(number, conn)).copied().unwrap_or_default();
        let seat = Seat { row: row.clone(), pushed };
        let line = self.line(number);
        line.subscriptions += 1;
        line.hungry.extend(seat.hunger(conn));
        self.seats.insert((number, conn), seat);
        self.hold(conn, Held::Subscription(number));
    }

    pub(super) fn drop_subscription(&mut self, number: TopicNumber, conn: ConnId) {
        let seat = self.seats.remove(&(number, conn)).expect("every subscription has a seat");
        let line = self.line(number);
        line.subscriptions -= 1;
        if let Some(place) = seat.hunger(conn) {
            line.hungry.remove(&place);
        }
        self.let_go(conn, Held::Subscription(number));
    }

    /// A subscription was served at this place in the log.
    pub(super) fn served(&mut self, number: TopicNumber, conn: ConnId, turn: u64) {
        self.reseat(number, conn, |seat| seat.row.turn = turn);
    }

    pub(super) fn add_waiter(&mut self, place: u64, waiter: &Waiter) {
        self.line(waiter.topic).waiters.insert(place);
        self.due.insert((waiter.deadline, Due::Waiter(place)));
        self.hold(waiter.asker.conn, Held::Waiter(place));
    }

    pub(super) fn drop_waiter(&mut self, place: u64, waiter: &Waiter) {
        self.line(waiter.topic).waiters.remove(&place);
        self.due.remove(&(waiter.deadline, Due::Waiter(place)));
        self.let_go(waiter.asker.conn, Held::Waiter(place));
    }

    pub(super) fn add_published(&mut self, key: &(TopicNumber, Bytes), row: &Published) {
        self.line(key.0).published += 1;
        self.ids += cost(key.1.len());
        self.due.insert((row.until, Due::Published(key.clone())));
    }

    pub(super) fn drop_published(&mut self, key: &(TopicNumber, Bytes), row: &Published) {
        self.line(key.0).published -= 1;
        self.ids -= cost(key.1.len());
        self.due.remove(&(row.until, Due::Published(key.clone())));
    }

    /// Gives all rows away, to be dropped bit by bit.
    pub(super) fn discard(self, trash: &mut Trash) {
        let listed = |line: Line| {
            line.ready
                .into_iter()
                .map(|_| 0)
                .chain(line.waiters.into_iter().map(|_| 0))
                .chain(line.hungry.into_iter().map(|_| 0))
        };
        trash.throw(self.lines.into_values().flat_map(listed));
        trash.throw(self.due.into_iter().map(|_| 0));
        trash.throw(self.held.into_values().flatten().map(|_| 0));
        trash.throw(self.unposted.into_iter().map(|_| 0));
        trash.throw(self.seats.into_iter().map(|_| 0));
        trash.throw(self.pushed.into_iter().map(|_| 0));
    }

    fn hold(&mut self, conn: ConnId, held: Held) {
        self.held.entry(conn).or_default().insert(held);
    }

    fn let_go(&mut self, conn: ConnId, held: Held) {
        let all = self.held.get_mut(&conn).expect("what a connection holds is in the index");
        all.remove(&held);
        if all.is_empty() {
            self.held.remove(&conn);
        }
    }
}
