//! Queues.

use std::time::Duration;

use bytes::Bytes;
use quorate_protocol::reply::Reply;

use crate::call::millis;
use crate::session::Again;
use crate::values::{Fields, bytes, done, flag, list, maybe, number, option, option_bytes, unexpected, yes};
use crate::{Client, Error};

/// How a message is published.
#[derive(Debug, Clone, Default)]
pub struct Publish {
    id: Option<Bytes>,
    delay: Option<Duration>,
}

impl Publish {
    /// The publisher's own id: the same one again within two minutes publishes nothing new. Not needed
    /// against resent requests, which the client session guards; it guards against a publisher that starts
    /// again and repeats itself.
    #[must_use]
    pub fn id(mut self, id: impl Into<Bytes>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Not to be delivered before this time has passed.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = Some(delay);
        self
    }
}

/// How messages are fetched.
#[derive(Debug, Clone, Default)]
pub struct Fetch {
    count: Option<u32>,
    block: Duration,
    lease: Option<Duration>,
}

impl Fetch {
    /// Messages at the most, 1 to 1024; 1 by default.
    #[must_use]
    pub fn count(mut self, messages: u32) -> Self {
        self.count = Some(messages);
        self
    }

    /// How long to wait for the first one; by default not at all.
    #[must_use]
    pub fn block(mut self, block: Duration) -> Self {
        self.block = block;
        self
    }

    /// How long the messages are leased; by default as the topic says (30 s).
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = Some(lease);
        self
    }
}

/// A delivered message. It is leased: acknowledge it in time ([`Client::ack`]), or it comes again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The topic that it was delivered from.
    pub topic: Bytes,
    /// Its id, rising along the topic.
    pub id: u64,
    /// Which delivery of it this is; 1 is the first.
    pub attempt: u32,
    /// What was published.
    pub body: Bytes,
}

impl Message {
    /// The delivery, as ACK and NACK name it: `id@attempt`.
    #[must_use]
    pub fn receipt(&self) -> Bytes {
        Bytes::from(format!("{}@{}", self.id, self.attempt))
    }
}

/// A topic's settings; what is none stays as it is.
#[derive(Debug, Clone, Default)]
pub struct TopicSettings {
    lease: Option<Duration>,
    max_deliver: Option<u32>,
    dlq: Option<Bytes>,
}

impl TopicSettings {
    /// The lease of a delivery that names none.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = Some(lease);
        self
    }

    /// Deliveries before a message is moved to the dead letters.
    #[must_use]
    pub fn max_deliver(mut self, deliveries: u32) -> Self {
        self.max_deliver = Some(deliveries);
        self
    }

    /// The topic that later dead letters are moved to; `topic.dlq` is the default.
    #[must_use]
    pub fn dead_letters(mut self, topic: impl Into<Bytes>) -> Self {
        self.dlq = Some(topic.into());
        self
    }
}

/// A topic as QINFO shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicInfo {
    /// Messages that can be delivered.
    pub ready: u64,
    /// Messages that wait for their time.
    pub delayed: u64,
    /// Messages that are delivered and not acknowledged.
    pub unacknowledged: u64,
    /// Dead messages that are on their way to a topic in another partition.
    pub leaving: u64,
    /// Subscriptions.
    pub subscriptions: u64,
    /// FETCHes that wait.
    pub waiting: u64,
    /// The lease of a delivery that names none.
    pub lease: Duration,
    /// Deliveries before a message becomes a dead letter.
    pub max_deliver: u64,
    /// Where its dead letters go; none for dead letters.
    pub dead_letters: Option<Bytes>,
}

impl Client {
    /// PUB: the message's id, once it is on stable storage on a majority.
    ///
    /// # Errors
    /// As every call.
    pub async fn publish(
        &self,
        topic: impl Into<Bytes>,
        body: impl Into<Bytes>,
        how: Publish,
    ) -> Result<u64, Error> {
        let mut args = vec![topic.into(), body.into()];
        option_bytes(&mut args, "ID", how.id);
        option(&mut args, "DELAY", how.delay.map(millis));
        number(self.ask("PUB", args, Again::InSession).await?)
    }

    /// FETCH: messages, leased to this connection; empty when there are none within the block.
    ///
    /// If the connection breaks before the answer, it is asked again: what was delivered to the old
    /// connection comes back, one attempt later.
    ///
    /// # Errors
    /// As every call.
    pub async fn fetch(&self, topic: impl Into<Bytes>, how: Fetch) -> Result<Vec<Message>, Error> {
        let topic = topic.into();
        let mut args = vec![topic.clone()];
        option(&mut args, "COUNT", how.count);
        option(&mut args, "BLOCK", (!how.block.is_zero()).then(|| millis(how.block)));
        option(&mut args, "LEASE", how.lease.map(millis));
        let reply = self.ask_waiting("FETCH", args, Again::Repeatable, how.block).await?;
        let messages = maybe(reply, |reply| list(reply, |row| message(&topic, row)))?;
        Ok(messages.unwrap_or_default())
    }

    /// ACK of one delivery: true when it is settled by this, false when it was gone or stale: somebody else
    /// has it, or had it.
    ///
    /// # Errors
    /// As every call.
    pub async fn ack(&self, message: &Message) -> Result<bool, Error> {
        Ok(self.ack_all(&message.topic, [message]).await? == 1)
    }

    /// ACK of up to 1024 deliveries of one topic: how many are settled by this.
    ///
    /// # Errors
    /// As every call.
    pub async fn ack_all<'a>(
        &self,
        topic: &Bytes,
        messages: impl IntoIterator<Item = &'a Message>,
    ) -> Result<u64, Error> {
        let mut args = vec![topic.clone()];
        args.extend(messages.into_iter().map(Message::receipt));
        number(self.ask("ACK", args, Again::InSession).await?)
    }

    /// NACK: gives a delivery back, to come again after a delay; false when it was gone or stale.
    ///
    /// # Errors
    /// As every call.
    pub async fn nack(&self, message: &Message, delay: Duration) -> Result<bool, Error> {
        let mut args = vec![message.topic.clone(), message.receipt()];
        option(&mut args, "DELAY", (!delay.is_zero()).then(|| millis(delay)));
        yes(self.ask("NACK", args, Again::InSession).await?)
    }

    /// NACK DEAD: moves a delivery to the dead letters; false when it was gone or stale.
    ///
    /// # Errors
    /// As every call.
    pub async fn reject(&self, message: &Message) -> Result<bool, Error> {
        let mut args = vec![message.topic.clone(), message.receipt()];
        flag(&mut args, "DEAD", true);
        yes(self.ask("NACK", args, Again::InSession).await?)
    }

    /// QSET: changes a topic's settings.
    ///
    /// # Errors
    /// As every call.
    pub async fn set_topic(&self, topic: impl Into<Bytes>, settings: TopicSettings) -> Result<(), Error> {
        let mut args = vec![topic.into()];
        option(&mut args, "LEASE", settings.lease.map(millis));
        option(&mut args, "MAXDELIVER", settings.max_deliver);
        option_bytes(&mut args, "DLQ", settings.dlq);
        done(self.ask("QSET", args, Again::InSession).await?)
    }

    /// QINFO: a topic's counts and settings, or none when there is no such topic.
    ///
    /// # Errors
    /// As every call.
    pub async fn topic_info(&self, topic: impl Into<Bytes>) -> Result<Option<TopicInfo>, Error> {
        let reply = self.ask("QINFO", vec![topic.into()], Again::Read).await?;
        maybe(reply, |reply| {
            let mut fields = Fields::of(reply)?;
            let mut count = |name| number(fields.take(name));
            Ok(TopicInfo {
                ready: count("ready")?,
                delayed: count("delayed")?,
                unacknowledged: count("unacknowledged")?,
                leaving: count("leaving")?,
                subscriptions: count("subscriptions")?,
                waiting: count("waiting")?,
                lease: Duration::from_millis(count("lease")?),
                max_deliver: count("maxdeliver")?,
                dead_letters: maybe(fields.take("dlq"), bytes)?,
            })
        })
    }
}

fn message(topic: &Bytes, row: Reply) -> Result<Message, Error> {
    let Reply::Array(values) = row else { return Err(unexpected(row)) };
    let Ok([id, attempt, body]) = <[Reply; 3]>::try_from(values) else { return Err(unexpected(Reply::Nil)) };
    let attempt = u32::try_from(number(attempt)?).map_err(|_| unexpected(Reply::Nil))?;
    Ok(Message { topic: topic.clone(), id: number(id)?, attempt, body: bytes(body)? })
}
