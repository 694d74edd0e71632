//! Dead letters: where a message goes that nobody could settle.
//!
//! Invariants:
//! - A message that dies is moved, never dropped. If its dead letters lie in this partition, that is one step. If
//!   not, it is *leaving*: nobody gets or settles it, and it counts as what is in its topic, until the outbox says
//!   that it has arrived.
//! - Where a letter goes is decided when the message dies; a later QSET DLQ is for later ones.
//!
//! Subtlety: what dies by the passing of time, or with a connection, cannot be refused. So a message becomes leaving
//! whether the outbox has room or not, and those without a place in it follow, the oldest of a topic first, as soon
//! as there is one (`next_letter`).

use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::id::GroupId;
use quorate_protocol::op::{DEAD_LETTERS, Pub, partition_of_topic};
use quorate_protocol::peer::Letter;

use super::Queues;
use super::rows::{Leaving, Message, MessageKey, State};
use crate::outcome::{Ctx, Outcomes};

/// Which partition it is, and of how many: which topics lie elsewhere.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) group: GroupId,
    pub(super) partitions: u16,
}

impl Queues {
    /// Moves a message to its topic's dead letters: here under the same id, or out of the partition. No bound stands
    /// in its way: nothing grows by it here.
    pub(super) fn bury(&mut self, ctx: &Ctx, key: MessageKey, out: &mut Outcomes) {
        let topic = self.topic(key.0);
        let Some(dlq) = topic.dlq.clone() else {
            let name = Bytes::from([&self.index.lines[&key.0].name, DEAD_LETTERS].concat());
            return self.bury_here(ctx, key, &name, false, out);
        };
        let target = partition_of_topic(&dlq, self.place.partitions);
        if target == self.place.group {
            return self.bury_here(ctx, key, &dlq, true, out);
        }
        let leaving = Leaving { to: dlq, target, posted: false };
        self.change_message(key, |message| message.state = State::Leaving(leaving));
    }

    /// `counts_on`: the deliveries so far are remembered.
    fn bury_here(
        &mut self,
        ctx: &Ctx,
        key: MessageKey,
        letters: &Bytes,
        counts_on: bool,
        out: &mut Outcomes,
    ) {
        let attempts = self.messages.get(&key).filter(|_| counts_on).map_or(0, |message| message.attempts);
        let body = self.bodies.copy(&key).expect("every message has a body");
        self.remove_message(key);
        let letters = self.open_topic(letters);
        self.put_message((letters, key.1), body, Message { attempts, before: attempts, state: State::Ready });
        self.serve(ctx, letters, out);
    }

    /// Partitions for which there are letters without a place in the outbox.
    #[must_use]
    pub fn letters_for(&self) -> Vec<GroupId> {
        // By leaps: there may be as many letters as a partition holds messages.
        let mut targets = Vec::new();
        let mut from = GroupId(0);
        while let Some(&(target, _)) = self.index.unposted.range((from, (0, 0))..).next() {
            targets.push(target);
            from = GroupId(target.0 + 1);
        }
        targets
    }

    /// The next letter for a partition without a place in the outbox. Its body is to be weighed only: see `posted`.
    #[must_use]
    pub fn next_letter(&self, target: GroupId) -> Option<Letter> {
        let all = (target, (0, 0))..=(target, (u64::MAX, u64::MAX));
        let (_, key) = *self.index.unposted.range(all).next()?;
        let message = self.messages.get(&key).expect("the index names rows");
        let State::Leaving(leaving) = &message.state else { unreachable!("only leaving messages are there") };
        let body = self.bodies.unchecked(&key).expect("every message has a body");
        Some(Letter { topic: leaving.to.clone(), attempts: message.attempts, origin: key, body })
    }

    /// A letter gets its place in the outbox, with a body that is fit to be kept there.
    pub fn posted(&mut self, letter: &mut Letter) {
        letter.body = self.bodies.copy(&letter.origin).expect("every message has a body");
        self.change_message(letter.origin, |message| {
            if let State::Leaving(leaving) = &mut message.state {
                leaving.posted = true;
            }
        });
    }

    /// A letter has arrived: its message is gone from here.
    pub fn left(&mut self, letter: &Letter) {
        let key = letter.origin;
        let leaving = |message: &&Message| matches!(message.state, State::Leaving(_));
        if self.messages.get(&key).filter(leaving).is_some() {
            self.remove_message(key);
            self.close_if_idle(key.0);
        }
    }

    /// Puts a letter from another partition into its topic, under an id of its own; false when there is no room for it.
    pub fn receive(&mut self, ctx: &Ctx, letter: Letter, out: &mut Outcomes) -> bool {
        let Letter { topic, attempts, body, .. } = letter;
        let publish = Pub { topic, body, dedupe: None, delay: 0 };
        if self.check_room(self.number_of(&publish.topic), &publish).is_err() {
            return false;
        }
        let number = self.open_topic(&publish.topic);
        let message = Message { attempts, before: attempts, state: State::Ready };
        self.put_message((number, ctx.at.serial()), publish.body, message);
        self.serve(ctx, number, out);
        true
    }
}
