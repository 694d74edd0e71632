//! Topics that go over into another cluster, where none of those who listened here is known.

use alloc::vec::Vec;
use quorate_protocol::id::ConnId;

use super::Queues;
use super::rows::{MessageKey, State, TopicNumber};

impl Queues {
    /// What was with a consumer is to be delivered again, under the next number; nobody waits or listens any more.
    /// Letters on their way to another partition keep their places in the outbox.
    pub fn rebase(&mut self) {
        let waiters: Vec<u64> = self.waiters.iter().map(|(&place, _)| place).collect();
        for place in waiters {
            self.remove_waiter(place);
        }
        let seats: Vec<(TopicNumber, ConnId)> = self.subscriptions.iter().map(|(&seat, _)| seat).collect();
        for (topic, conn) in seats {
            self.remove_subscription(topic, conn);
        }
        let leased = |state: &State| matches!(state, State::Leased(_));
        let messages = self.messages.iter().filter(|(_, message)| leased(&message.state));
        let messages: Vec<MessageKey> = messages.map(|(&key, _)| key).collect();
        for key in messages {
            self.change_message(key, |message| message.state = State::Ready);
        }
        let topics: Vec<TopicNumber> = self.index.lines.keys().copied().collect();
        topics.into_iter().for_each(|topic| self.close_if_idle(topic));
    }
}
