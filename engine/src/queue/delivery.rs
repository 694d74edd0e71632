//! Who gets which message, and what happens to one that comes back.
//!
//! Order: the ready message with the lowest id goes first, so a message that comes back stands where it stood.
//! Consumers take turns by (unacknowledged messages, last turn): a FETCH has none and its turn is when it
//! came; among subscriptions the one with the least to do is served, then the one that waited longest.

use alloc::vec::Vec;
use quorate_protocol::id::ConnId;
use quorate_protocol::limits::{FETCH_BYTES_MAX, MAX_DELIVER, MESSAGE_LEASE};
use quorate_protocol::op::DEAD_LETTERS;
use quorate_protocol::peer::Delivery;
use quorate_protocol::reply::Reply;

use super::Queues;
use super::rows::{Lease, MessageKey, State, Topic, TopicNumber};
use crate::outcome::{Asker, Ctx, Outcome, Outcomes, answer};

/// Who is served next.
enum Next {
    Waiter(u64),
    Subscription(ConnId),
}

impl Queues {
    /// Hands ready messages to whoever waits for them, as far as both go.
    pub(super) fn serve(&mut self, ctx: &Ctx, number: TopicNumber, out: &mut Outcomes) {
        while let Some(next) = self.next_served(number) {
            match next {
                Next::Waiter(place) => {
                    let waiter = self.remove_waiter(place);
                    let messages = self.take(ctx, number, &waiter.asker, waiter.count, waiter.lease);
                    answer(out, waiter.asker, messages.expect("a message is ready"));
                }
                Next::Subscription(conn) => self.push(ctx, number, conn, out),
            }
        }
        self.close_if_idle(number);
    }

    fn next_served(&self, number: TopicNumber) -> Option<Next> {
        let line = self.index.lines.get(&number).filter(|line| !line.ready.is_empty())?;
        match (line.waiters.first(), line.hungry.first()) {
            (Some(&place), Some(&(unacknowledged, turn, _))) if (0, place) < (unacknowledged, turn) => {
                Some(Next::Waiter(place))
            }
            (_, Some(&(.., conn))) => Some(Next::Subscription(conn)),
            (Some(&place), None) => Some(Next::Waiter(place)),
            (None, None) => None,
        }
    }

    /// Leases ready messages to a connection: `[[id, attempt, body], …]`; `None` when there are none.
    pub(super) fn take(
        &mut self,
        ctx: &Ctx,
        number: TopicNumber,
        asker: &Asker,
        count: u32,
        lease: Option<u64>,
    ) -> Option<Reply> {
        let until = ctx.time.saturating_add(lease.unwrap_or_else(|| self.lease_of_topic(number)));
        let mut messages = Vec::new();
        let mut bytes = 0;
        while messages.len() < count as usize {
            let Some(&id) = self.index.lines.get(&number).and_then(|line| line.ready.first()) else { break };
            let key = (number, id);
            bytes += self.bodies.size(&key).expect("every message has a body");
            if bytes > FETCH_BYTES_MAX && !messages.is_empty() {
                break;
            }
            // What a client session is answered is kept.
            let body = if asker.client.is_some() { self.bodies.copy(&key) } else { self.bodies.get(&key) };
            let body = body.expect("every message has a body");
            let attempt = self.lease(key, Lease { until, conn: asker.conn, pushed: false });
            let values = [Reply::int(id), Reply::int(u64::from(attempt)), Reply::Bulk(body)];
            messages.push(Reply::Array(values.into()));
        }
        (!messages.is_empty()).then_some(Reply::Array(messages))
    }

    fn push(&mut self, ctx: &Ctx, number: TopicNumber, conn: ConnId, out: &mut Outcomes) {
        let line = &self.index.lines[&number];
        let id = *line.ready.first().expect("a message is ready");
        let topic = line.name.clone();
        let turn = ctx.at.serial();
        let own = self.subscriptions.change(&(number, conn), |row| {
            row.turn = turn;
            row.lease
        });
        let own = own.expect("the index names rows");
        self.index.served(number, conn, turn);
        let until = ctx.time.saturating_add(own.unwrap_or_else(|| self.lease_of_topic(number)));
        let body = self.bodies.get(&(number, id)).expect("every message has a body");
        let attempt = self.lease((number, id), Lease { until, conn, pushed: true });
        out.push(Outcome::Push { to: conn, delivery: Delivery { topic, id, attempt, body } });
    }

    /// Puts a message into a consumer's hands and returns the number of the delivery.
    fn lease(&mut self, key: MessageKey, lease: Lease) -> u32 {
        let mut attempt = 0;
        self.change_message(key, |message| {
            assert!(message.state == State::Ready, "only a ready message is delivered");
            message.attempts = message.attempts.saturating_add(1);
            attempt = message.attempts;
            message.state = State::Leased(lease);
        });
        attempt
    }

    pub(super) fn topic(&self, number: TopicNumber) -> &Topic {
        let line = &self.index.lines[&number];
        self.topics.get(&line.name).expect("every line has a topic")
    }

    fn lease_of_topic(&self, number: TopicNumber) -> u64 {
        self.topic(number).lease.unwrap_or(MESSAGE_LEASE)
    }

    /// A delayed message is due, or a delivery has failed: the message is to be delivered again, after a
    /// delay, or becomes a dead letter. The caller serves the topic.
    pub(super) fn give_back(&mut self, ctx: &Ctx, key: MessageKey, delay: u64, out: &mut Outcomes) {
        let message = self.messages.get(&key).expect("the caller has seen it");
        let max = self.topic(key.0).max_deliver.unwrap_or(MAX_DELIVER);
        let failed = matches!(message.state, State::Leased(_)) && message.attempts - message.before >= max;
        if failed && !self.index.lines[&key.0].name.ends_with(DEAD_LETTERS) {
            return self.bury(ctx, key, out);
        }
        let state = if delay == 0 { State::Ready } else { State::Delayed(ctx.time.saturating_add(delay)) };
        self.change_message(key, |message| message.state = state);
    }
}
