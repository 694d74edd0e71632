//! Queues: messages that are delivered at least once, to one consumer at a time, until they are settled.
//!
//! Charter: applies PUB, FETCH, ACK, NACK, SUB, UNSUB, QSET, the passing of time and the end of connections to
//! topics. `rows.rs` has the rows and a message's life, `index.rs` what is derived from them, `delivery.rs`
//! who gets which message, `letters.rs` what becomes of dead ones.
//!
//! Invariants:
//! - A message is in exactly one state of `rows.rs`, and leaves the partition by ACK, or as a dead letter that has
//!   arrived in another one.
//! - Whenever a command is done, no message is ready while somebody waits for one: whatever makes a message
//!   ready or a consumer hungry calls `serve`.
//! - A topic exists while it holds a message, remembers a publisher's id, is listened to or is set up.
//!
//! Subtlety: a message is settled by its newest delivery alone, also when that delivery's lease has ended and
//! nobody has received the message since: so a slow consumer spares everybody a delivery.

mod bodies;
mod closing;
mod delivery;
mod index;
mod letters;
mod rebase;
mod rows;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::id::{ConnId, GroupId};
use quorate_protocol::limits::{
    CONSUMERS_MAX, DEDUPE_MAX, DEDUPE_WINDOW, MAX_DELIVER, MESSAGE_LEASE, TOPIC_MESSAGES_MAX, TOPICS_MAX,
};
use quorate_protocol::op::{Ack, DEAD_LETTERS, Fetch, Nack, Pub, QSet, Receipt, Sub};
use quorate_protocol::reply::{Code, Reply};
use quorate_protocol::wire::Malformed;

use crate::keep::keep;
use crate::outcome::{Asker, Ctx, Outcome, Outcomes, answer};
use crate::portion::Portion;
use crate::table::{Rows, Table, load_row, take_row};
use crate::trash::Trash;
use bodies::Bodies;
pub use bodies::MAPPED_FROM;
use closing::Closing;
use index::{Index, Line, QUEUES_MAX, cost};
use letters::Place;
use rows::{Due, Lease, Message, MessageKey, Published, State, Subscription, Topic, TopicNumber, Waiter};

/// Deliberate bugs, for the tests of the checkers.
#[cfg(feature = "faults")]
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// A message is answered and not kept.
    pub lost_message: bool,
    /// An ACK is answered and not done.
    pub lost_ack: bool,
    /// A publisher's id is not looked at.
    pub dedupe_ignored: bool,
    /// An ACK counts whatever delivery it names.
    pub stale_ack: bool,
    /// A message whose lease ends is gone.
    pub no_redelivery: bool,
    /// What lies in a mapped file is taken for what was written.
    pub bodies_unchecked: bool,
}

/// See the top of the file.
pub struct Queues {
    place: Place,
    topics: Table<Bytes, Topic>,
    bodies: Bodies,
    messages: Table<MessageKey, Message>,
    waiters: Table<u64, Waiter>,
    subscriptions: Table<(TopicNumber, ConnId), Subscription>,
    published: Table<(TopicNumber, Bytes), Published>,
    /// One row: the last topic's number.
    last_topic: Table<u8, TopicNumber>,
    /// Connections that have ended and have too much to take it away at once: the last of a range of one node session,
    /// and where to go on.
    closing: Table<ConnId, Closing>,
    index: Index,
    /// Derived: what all messages cost, in bytes.
    bytes: u64,
    #[cfg(feature = "faults")]
    faults: Faults,
}

impl Queues {
    /// A partition, of so many, without topics.
    #[must_use]
    pub fn new(group: GroupId, partitions: u16) -> Self {
        let mut last_topic = Table::new(607);
        last_topic.insert(0, 0);
        Self {
            place: Place { group, partitions },
            topics: Table::new(601),
            bodies: Bodies::new(602),
            messages: Table::new(603),
            waiters: Table::new(604),
            subscriptions: Table::new(605),
            published: Table::new(606),
            last_topic,
            closing: Table::new(608),
            index: Index::default(),
            bytes: 0,
            #[cfg(feature = "faults")]
            faults: Faults::default(),
        }
    }

    /// Switches deliberate bugs on.
    #[cfg(feature = "faults")]
    pub fn set_faults(&mut self, faults: Faults) {
        self.bodies.set_unchecked(faults.bodies_unchecked);
        self.faults = faults;
    }

    /// The digest of all topics.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let parts = [
            self.topics.digest(),
            self.bodies.digest(),
            self.messages.digest(),
            self.waiters.digest(),
            self.subscriptions.digest(),
            self.published.digest(),
            self.last_topic.digest(),
            self.closing.digest(),
        ];
        parts.into_iter().fold(0, u64::wrapping_add)
    }

    /// The number of topics.
    #[must_use]
    pub fn len(&self) -> usize {
        self.topics.len()
    }

    /// Whether there is no topic.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.topics.is_empty()
    }

    /// What all messages cost, and the IDs that are remembered, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes + self.index.ids
    }

    /// The earliest group time at which something falls due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        if !self.closing.is_empty() {
            return Some(0);
        }
        self.index.due.first().map(|(time, _)| crate::time::over_at(*time))
    }

    /// PUB
    pub fn publish(&mut self, ctx: &Ctx, asker: &Asker, op: Pub, out: &mut Outcomes) {
        let known = self.number_of(&op.topic);
        if let Some(first) = self.first_of(known, op.dedupe.as_ref()) {
            return answer(out, *asker, Reply::int(first));
        }
        if let Err(full) = self.check_room(known, &op) {
            return answer(out, *asker, full);
        }
        let number = self.open_topic(&op.topic);
        let id = ctx.at.serial();
        if let Some(dedupe) = op.dedupe {
            let row = Published { message: id, until: ctx.time.saturating_add(DEDUPE_WINDOW) };
            let key = (number, keep(dedupe));
            self.index.add_published(&key, &row);
            self.published.insert(key, row);
        }
        let state =
            if op.delay == 0 { State::Ready } else { State::Delayed(ctx.time.saturating_add(op.delay)) };
        answer(out, *asker, Reply::int(id));
        #[cfg(feature = "faults")]
        if self.faults.lost_message {
            return self.close_if_idle(number);
        }
        self.put_message((number, id), op.body, Message { attempts: 0, before: 0, state });
        self.serve(ctx, number, out);
    }

    /// The message that a publisher's id named first, while that is remembered.
    fn first_of(&self, topic: Option<TopicNumber>, dedupe: Option<&Bytes>) -> Option<u64> {
        #[cfg(feature = "faults")]
        if self.faults.dedupe_ignored {
            return None;
        }
        Some(self.published.get(&(topic?, dedupe?.clone()))?.message)
    }

    fn check_room(&self, topic: Option<TopicNumber>, op: &Pub) -> Result<(), Reply> {
        let full = |text: String| Err(Reply::error(Code::QFull, text));
        let line = topic.map(|number| &self.index.lines[&number]);
        if line.is_none() && self.topics.len() >= TOPICS_MAX {
            return full(format!("this partition holds {TOPICS_MAX} topics; settle what is in some of them"));
        }
        if line.is_some_and(|line| line.messages() >= TOPIC_MESSAGES_MAX) {
            return full(format!("the topic holds {TOPIC_MESSAGES_MAX} messages; FETCH and ACK some first"));
        }
        if op.dedupe.is_some() && line.is_some_and(|line| line.published >= DEDUPE_MAX) {
            return full(format!("the topic remembers {DEDUPE_MAX} IDs; wait, or publish without ID"));
        }
        if self.bytes() + cost(op.body.len()) + op.dedupe.as_ref().map_or(0, |id| cost(id.len())) > QUEUES_MAX
        {
            return full(format!(
                "this partition's messages and IDs fill their {QUEUES_MAX} bytes; FETCH and ACK some, or wait until IDs are forgotten"
            ));
        }
        Ok(())
    }

    /// FETCH
    pub fn fetch(&mut self, ctx: &Ctx, asker: &Asker, op: Fetch, out: &mut Outcomes) {
        if let Some(number) = self.number_of(&op.topic)
            && let Some(messages) = self.take(ctx, number, asker, op.count, op.lease)
        {
            return answer(out, *asker, messages);
        }
        if op.block == 0 {
            return answer(out, *asker, Reply::Nil);
        }
        if let Err(full) = self.check_seat(&op.topic) {
            return answer(out, *asker, full);
        }
        let topic = self.open_topic(&op.topic);
        let deadline = ctx.time.saturating_add(op.block);
        let waiter = Waiter { topic, asker: *asker, count: op.count, lease: op.lease, deadline };
        let place = ctx.at.serial();
        self.index.add_waiter(place, &waiter);
        self.waiters.insert(place, waiter);
        out.push(Outcome::Waits { to: *asker });
    }

    /// Whether one more may wait for a topic's messages.
    fn check_seat(&self, topic: &Bytes) -> Result<(), Reply> {
        // Not -BUSY: that code promises that the command was never proposed, and it was.
        let full = |text: String| Err(Reply::error(Code::Err, text));
        match self.number_of(topic).map(|number| &self.index.lines[&number]) {
            None if self.topics.len() >= TOPICS_MAX => {
                full(format!("this partition holds {TOPICS_MAX} topics; settle what is in some of them"))
            }
            Some(line) if line.consumers() >= CONSUMERS_MAX => {
                full(format!("{CONSUMERS_MAX} consumers wait for this topic already; try again later"))
            }
            _ => Ok(()),
        }
    }

    /// ACK
    pub fn ack(&mut self, ctx: &Ctx, asker: &Asker, op: Ack, out: &mut Outcomes) {
        let Some(number) = self.number_of(&op.topic) else { return answer(out, *asker, Reply::Int(0)) };
        let settled = op.receipts.iter().filter(|receipt| self.settle((number, receipt.id), receipt)).count();
        answer(out, *asker, Reply::int(settled as u64));
        // A subscription may have room again.
        self.serve(ctx, number, out);
    }

    /// Settles a message if the receipt names its newest delivery.
    fn settle(&mut self, key: MessageKey, receipt: &Receipt) -> bool {
        let Some(message) = self.messages.get(&key) else { return false };
        if matches!(message.state, State::Leaving(_)) {
            // It is dead: its letter can be settled, where it arrives.
            return false;
        }
        let newest = message.attempts > message.before
            && receipt.attempt.is_none_or(|attempt| attempt == message.attempts);
        #[cfg(feature = "faults")]
        if self.faults.lost_ack {
            return newest;
        }
        #[cfg(feature = "faults")]
        let newest = newest || self.faults.stale_ack;
        if newest {
            self.remove_message(key);
        }
        newest
    }

    /// NACK
    pub fn nack(&mut self, ctx: &Ctx, asker: &Asker, op: Nack, out: &mut Outcomes) {
        let number = self.number_of(&op.topic);
        let key = number.map(|number| (number, op.receipt.id));
        let Some((key, lease, attempts)) = key.and_then(|key| self.lease_of(key)) else {
            return answer(out, *asker, Reply::Int(0));
        };
        match op.receipt.attempt {
            Some(attempt) if attempt != attempts => return answer(out, *asker, Reply::Int(0)),
            None if lease.conn != asker.conn => {
                let text = "another connection received this message; name the delivery, as id@attempt";
                return answer(out, *asker, Reply::error(Code::Err, text));
            }
            _ => {}
        }
        if op.dead && op.topic.ends_with(DEAD_LETTERS) {
            let text = "these are dead letters already; ACK the message, or NACK it without DEAD";
            return answer(out, *asker, Reply::error(Code::Err, text));
        }
        answer(out, *asker, Reply::Int(1));
        if op.dead {
            self.bury(ctx, key, out);
        } else {
            self.give_back(ctx, key, op.delay, out);
        }
        self.serve(ctx, key.0, out);
    }

    fn lease_of(&self, key: MessageKey) -> Option<(MessageKey, Lease, u32)> {
        let message = self.messages.get(&key)?;
        let State::Leased(lease) = &message.state else { return None };
        Some((key, lease.clone(), message.attempts))
    }

    /// SUB
    pub fn sub(&mut self, ctx: &Ctx, asker: &Asker, op: Sub, out: &mut Outcomes) {
        let known = self.number_of(&op.topic);
        let old = known.and_then(|number| self.subscriptions.get(&(number, asker.conn)));
        let turn = old.map_or(0, |row| row.turn);
        if old.is_none()
            && let Err(full) = self.check_seat(&op.topic)
        {
            return answer(out, *asker, full);
        }
        let number = self.open_topic(&op.topic);
        self.remove_subscription(number, asker.conn);
        let row = Subscription { prefetch: op.prefetch, lease: op.lease, turn };
        self.index.add_subscription(number, asker.conn, &row);
        self.subscriptions.insert((number, asker.conn), row);
        answer(out, *asker, Reply::OK);
        self.serve(ctx, number, out);
    }

    /// UNSUB
    pub fn unsub(&mut self, _ctx: &Ctx, asker: &Asker, topic: &Bytes, out: &mut Outcomes) {
        let number = self.number_of(topic);
        let was_there = number.is_some_and(|number| self.remove_subscription(number, asker.conn));
        if let Some(number) = number {
            self.close_if_idle(number);
        }
        answer(out, *asker, Reply::Int(i64::from(was_there)));
    }

    fn remove_subscription(&mut self, number: TopicNumber, conn: ConnId) -> bool {
        let was_there = self.subscriptions.remove(&(number, conn)).is_some();
        if was_there {
            self.index.drop_subscription(number, conn);
        }
        was_there
    }

    /// QSET
    pub fn qset(&mut self, _ctx: &Ctx, asker: &Asker, op: QSet, out: &mut Outcomes) {
        if self.number_of(&op.topic).is_none() && self.topics.len() >= TOPICS_MAX {
            let text = format!("this partition holds {TOPICS_MAX} topics; settle what is in some of them");
            return answer(out, *asker, Reply::error(Code::QFull, text));
        }
        let number = self.open_topic(&op.topic);
        // The default is the same as no setting, so that a topic can be reset and vanish again.
        let set = |value: Option<u64>, default: u64, old: Option<u64>| match value {
            None => old,
            Some(value) => Some(value).filter(|&value| value != default),
        };
        self.topics.change(&op.topic, |topic| {
            topic.lease = set(op.lease, MESSAGE_LEASE, topic.lease);
            let old = topic.max_deliver.map(u64::from);
            let max = set(op.max_deliver.map(u64::from), u64::from(MAX_DELIVER), old);
            topic.max_deliver = max.map(|max| u32::try_from(max).expect("it came from 32 bits"));
            if let Some(dlq) = op.dlq {
                let own = dlq.strip_suffix(DEAD_LETTERS) == Some(&op.topic[..]);
                topic.dlq = (!own).then(|| Bytes::copy_from_slice(&dlq));
            }
        });
        self.close_if_idle(number);
        answer(out, *asker, Reply::OK);
    }

    /// QINFO; nil when there is no such topic.
    #[must_use]
    pub fn info(&self, name: &Bytes) -> Reply {
        let Some(topic) = self.topics.get(name) else { return Reply::Nil };
        let line = &self.index.lines[&topic.number];
        let count = |n: usize| Reply::int(n as u64);
        // Dead letters have none of their own: they stay where they are.
        let default = || (!name.ends_with(DEAD_LETTERS)).then(|| [name, DEAD_LETTERS].concat().into());
        let dlq = topic.dlq.clone().or_else(default);
        let fields = [
            ("topic", Reply::Bulk(name.clone())),
            ("ready", count(line.ready.len())),
            ("delayed", count(line.delayed)),
            ("unacknowledged", count(line.leased)),
            ("leaving", count(line.leaving)),
            ("subscriptions", count(line.subscriptions)),
            ("waiting", count(line.waiters.len())),
            ("ids", count(line.published)),
            ("lease", Reply::int(topic.lease.unwrap_or(MESSAGE_LEASE))),
            ("maxdeliver", Reply::int(u64::from(topic.max_deliver.unwrap_or(MAX_DELIVER)))),
            ("dlq", dlq.map_or(Reply::Nil, Reply::Bulk)),
        ];
        Reply::Map(fields.into_iter().map(|(name, value)| (Reply::text(name), value)).collect())
    }

    /// Ends the leases, delays, waits and memories that group time has ended, as far as the portion goes.
    pub fn expire(&mut self, ctx: &Ctx, portion: &mut Portion, out: &mut Outcomes) {
        self.work_off(ctx, portion, out);
        while let Some((time, due)) = self.index.due.first() {
            if !crate::time::is_over(*time, ctx.time) || !portion.take(2) {
                break;
            }
            match due.clone() {
                Due::Message(key) => {
                    #[cfg(feature = "faults")]
                    if self.faults.no_redelivery {
                        self.remove_message(key);
                        continue;
                    }
                    self.give_back(ctx, key, 0, out);
                    self.serve(ctx, key.0, out);
                }
                Due::Waiter(place) => {
                    let waiter = self.remove_waiter(place);
                    answer(out, waiter.asker, Reply::Nil);
                    self.close_if_idle(waiter.topic);
                }
                Due::Published(key) => {
                    let row = self.published.remove(&key).expect("the index names rows");
                    self.index.drop_published(&key, &row);
                    self.close_if_idle(key.0);
                }
            }
        }
    }

    fn number_of(&self, topic: &Bytes) -> Option<TopicNumber> {
        self.topics.get(topic).map(|topic| topic.number)
    }

    /// The topic's number; a new one for a topic that is not there.
    fn open_topic(&mut self, name: &Bytes) -> TopicNumber {
        if let Some(number) = self.number_of(name) {
            return number;
        }
        let number = self.last_topic.change(&0, |number| {
            *number += 1;
            *number
        });
        let number = number.expect("the row exists from the beginning");
        let name = Bytes::copy_from_slice(name);
        self.topics.insert(name.clone(), Topic { number, lease: None, max_deliver: None, dlq: None });
        self.index.open(number, name);
        number
    }

    fn close_if_idle(&mut self, number: TopicNumber) {
        let Some(line) = self.index.lines.get(&number).filter(|line| line.is_idle()) else { return };
        let topic = self.topics.get(&line.name).expect("every line has a topic");
        if topic.lease.is_none() && topic.max_deliver.is_none() && topic.dlq.is_none() {
            let Line { name, .. } = self.index.lines.remove(&number).expect("it was just seen");
            self.topics.remove(&name);
        }
    }

    fn put_message(&mut self, key: MessageKey, body: Bytes, message: Message) {
        self.bytes += cost(body.len());
        self.index.add_message(key, &message, body.len());
        self.bodies.insert(key, body);
        self.messages.insert(key, message);
    }

    fn remove_message(&mut self, key: MessageKey) {
        let message = self.messages.remove(&key).expect("the caller has seen it");
        let size = self.bodies.remove(&key).expect("every message has a body");
        self.index.drop_message(key, &message, size);
        self.bytes -= cost(size);
    }

    fn change_message(&mut self, key: MessageKey, change: impl FnOnce(&mut Message)) {
        let size = self.bodies.size(&key).expect("every message has a body");
        let index = &mut self.index;
        let changed = self.messages.change(&key, |message| {
            index.drop_message(key, message, size);
            change(message);
            index.add_message(key, message, size);
        });
        changed.expect("the caller has seen it");
    }

    fn remove_waiter(&mut self, place: u64) -> Waiter {
        let waiter = self.waiters.remove(&place).expect("the index names rows");
        self.index.drop_waiter(place, &waiter);
        waiter
    }

    /// All tables, in the order in which a snapshot shows them: each before those that refer to it.
    pub fn tables(&mut self) -> Vec<&mut dyn Rows> {
        alloc::vec![
            &mut self.last_topic,
            &mut self.topics,
            &mut self.bodies,
            &mut self.messages,
            &mut self.waiters,
            &mut self.subscriptions,
            &mut self.published,
            &mut self.closing,
        ]
    }

    /// Takes a row of one of the tables from a snapshot.
    ///
    /// # Errors
    /// When it is none, or refers to something that is not there.
    pub fn load(&mut self, table: u64, input: &mut Bytes) -> Result<(), Malformed> {
        match table {
            n if n == self.last_topic.id() => load_row(&mut self.last_topic, input)?,
            n if n == self.topics.id() => {
                let (name, topic) = take_row::<Bytes, Topic>(input)?;
                let name = keep(name);
                self.index.open(topic.number, name.clone());
                self.topics.insert(name, topic);
            }
            n if n == self.bodies.id() => {
                self.bytes += cost(self.bodies.load(input)?);
            }
            n if n == self.messages.id() => {
                let (key, message) = take_row::<MessageKey, Message>(input)?;
                let size = self.bodies.size(&key).ok_or(Malformed("a message without a body"))?;
                self.check_topic(key.0)?;
                self.index.add_message(key, &message, size);
                self.messages.insert(key, message);
            }
            n if n == self.waiters.id() => {
                let (place, waiter) = take_row::<u64, Waiter>(input)?;
                self.check_topic(waiter.topic)?;
                self.index.add_waiter(place, &waiter);
                self.waiters.insert(place, waiter);
            }
            n if n == self.subscriptions.id() => {
                let (key, row) = take_row::<(TopicNumber, ConnId), Subscription>(input)?;
                self.check_topic(key.0)?;
                self.index.add_subscription(key.0, key.1, &row);
                self.subscriptions.insert(key, row);
            }
            n if n == self.published.id() => {
                let (key, row) = take_row::<(TopicNumber, Bytes), Published>(input)?;
                self.check_topic(key.0)?;
                let key = (key.0, keep(key.1));
                self.index.add_published(&key, &row);
                self.published.insert(key, row);
            }
            n if n == self.closing.id() => load_row(&mut self.closing, input)?,
            _ => return Err(Malformed("unknown table")),
        }
        Ok(())
    }

    /// Gives all rows away, to be dropped bit by bit.
    pub fn discard(self, trash: &mut Trash) {
        self.topics.discard(trash, |_| 0);
        self.bodies.discard(trash);
        self.messages.discard(trash, |_| 0);
        self.waiters.discard(trash, |_| 0);
        self.subscriptions.discard(trash, |_| 0);
        self.published.discard(trash, |_| 0);
        self.index.discard(trash);
    }

    fn check_topic(&self, number: TopicNumber) -> Result<(), Malformed> {
        if self.index.lines.contains_key(&number) { Ok(()) } else { Err(Malformed("a row of no topic")) }
    }

    /// The index as the rows say it is.
    #[cfg(test)]
    fn rebuilt(&self) -> Index {
        let mut index = Index::default();
        self.topics.iter().for_each(|(name, topic)| index.open(topic.number, name.clone()));
        let size = |key: &MessageKey| self.bodies.size(key).unwrap_or(0);
        self.messages.iter().for_each(|(key, message)| index.add_message(*key, message, size(key)));
        self.waiters.iter().for_each(|(&place, waiter)| index.add_waiter(place, waiter));
        self.subscriptions
            .iter()
            .for_each(|(&(number, conn), row)| index.add_subscription(number, conn, row));
        self.published.iter().for_each(|(key, row)| index.add_published(key, row));
        index
    }
}

#[cfg(test)]
mod tests;
