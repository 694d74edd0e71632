//! Subscriptions: messages as they come, over one connection or many.
//!
//! Invariants:
//! - At most PREFETCH messages wait here: as many as the cluster delivers without an acknowledgement.
//! - Only deliveries of the present connection wait here; those of a lost one belong to others already.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use quorate_protocol::limits::{PREFETCH, PREFETCH_MAX};
use tokio::sync::Notify;

use crate::call::{ask, millis};
use crate::connection::{Shared, request};
use crate::error::Error;
use crate::session::Again;
use crate::values::option;
use crate::{Client, Message};

/// How a topic is subscribed to.
#[derive(Debug, Clone, Default)]
pub struct Subscribe {
    prefetch: Option<u32>,
    lease: Option<Duration>,
}

impl Subscribe {
    /// Messages that may be delivered and not acknowledged, 1 to 4096; 64 by default.
    #[must_use]
    pub fn prefetch(mut self, messages: u32) -> Self {
        self.prefetch = Some(messages);
        self
    }

    /// How long each delivery is leased; by default as the topic says (30 s).
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = Some(lease);
        self
    }
}

#[derive(Debug, Default)]
struct Waiting {
    messages: VecDeque<Message>,
    end: Option<Error>,
}

/// What was delivered and not taken yet.
#[derive(Debug)]
pub(crate) struct Inbox {
    prefetch: usize,
    waiting: Mutex<Waiting>,
    news: Notify,
}

impl Inbox {
    fn new(prefetch: u32) -> Self {
        Self { prefetch: prefetch as usize, waiting: Mutex::default(), news: Notify::new() }
    }

    /// A message was delivered. One that waits here already has lost its lease: the newer delivery counts.
    pub(crate) fn put(&self, message: Message) {
        let mut waiting = self.waiting.lock();
        waiting.messages.retain(|known| known.id != message.id);
        if waiting.messages.len() >= self.prefetch {
            // More than PREFETCH: the oldest has lost its lease, and comes back or is with somebody else.
            waiting.messages.pop_front();
        }
        waiting.messages.push_back(message);
        drop(waiting);
        self.news.notify_one();
    }

    /// The connection is gone, and with it the leases.
    pub(crate) fn clear(&self) {
        self.waiting.lock().messages.clear();
    }

    /// Nothing more will come.
    pub(crate) fn end(&self, why: Error) {
        self.waiting.lock().end.get_or_insert(why);
        self.news.notify_one();
    }

    fn take(&self) -> Option<Result<Message, Error>> {
        let mut waiting = self.waiting.lock();
        match waiting.messages.pop_front() {
            Some(message) => Some(Ok(message)),
            None => waiting.end.clone().map(Err),
        }
    }
}

/// A subscription of one topic. After a reconnect it subscribes again by itself.
///
/// Dropped, it ends the subscription; messages that were delivered and not taken stay leased until their
/// lease ends. [`Subscription::close`] gives them back at once.
#[derive(Debug)]
pub struct Subscription {
    client: Client,
    topic: Bytes,
    inbox: Arc<Inbox>,
    keeper: tokio::task::JoinHandle<()>,
    over: bool,
}

impl Subscription {
    pub(crate) async fn begin(client: &Client, topic: Bytes, how: Subscribe) -> Result<Self, Error> {
        let prefetch = how.prefetch.unwrap_or(PREFETCH).min(PREFETCH_MAX);
        let inbox = Arc::new(Inbox::new(prefetch));
        let shared = client.shared();
        {
            let mut unanswered = shared.unanswered.lock();
            if unanswered.subscriptions.contains_key(&topic) {
                let text = "this client is subscribed to the topic already; use that subscription, or another client";
                return Err(Error::Usage(text.to_owned()));
            }
            unanswered.subscriptions.insert(topic.clone(), Arc::clone(&inbox));
        }
        let mut args = vec![topic.clone()];
        option(&mut args, "PREFETCH", how.prefetch);
        option(&mut args, "LEASE", how.lease.map(millis));
        let keeper = tokio::spawn(keep(Arc::clone(shared), Arc::clone(&inbox), args.clone()));
        // From here on dropping it cleans up.
        Ok(Self { client: client.clone(), topic, inbox, keeper, over: false })
    }

    /// The next message. At most PREFETCH are out at a time: acknowledge ([`Client::ack`]) to get more.
    /// Cancelling it loses nothing.
    ///
    /// # Errors
    /// When the subscription was refused, or the client is closed. A lost connection is no error.
    pub async fn next(&mut self) -> Result<Message, Error> {
        loop {
            if let Some(result) = self.inbox.take() {
                return result;
            }
            self.inbox.news.notified().await;
        }
    }

    /// Ends the subscription, and gives back what was delivered and not taken.
    ///
    /// # Errors
    /// When that fails; what was delivered then comes back at the end of its lease.
    pub async fn close(mut self) -> Result<(), Error> {
        self.keeper.abort();
        let unsub = request("UNSUB", vec![self.topic.clone()], Again::Never);
        let ended = ask(self.client.shared(), unsub).await;
        self.client.shared().unanswered.lock().subscriptions.remove(&self.topic);
        self.over = true;
        while let Some(Ok(message)) = self.inbox.take() {
            self.client.nack(&message, Duration::ZERO).await?;
        }
        // A connection that is lost has ended it as well.
        match ended {
            Ok(_) | Err(Error::Lost(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        self.keeper.abort();
        let shared = Arc::clone(self.client.shared());
        let topic = self.topic.clone();
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            shared.unanswered.lock().subscriptions.remove(&topic);
            return;
        };
        runtime.spawn(async move {
            let unsub = request("UNSUB", vec![topic.clone()], Again::Never);
            // Whatever comes of it: if the connection is lost, so is the subscription.
            let _ = ask(&shared, unsub).await;
            // Only now may the topic be subscribed to again: frames know no order.
            shared.unanswered.lock().subscriptions.remove(&topic);
        });
    }
}

/// Subscribes on every connection anew.
async fn keep(shared: Arc<Shared>, inbox: Arc<Inbox>, args: Vec<Bytes>) {
    let mut links = shared.state.subscribe();
    loop {
        let Ok(epoch) = links.wait_for(|link| link.ready).await.map(|link| link.epoch) else { return };
        match ask(&shared, request("SUB", args.clone(), Again::Never)).await {
            Ok(_) => {
                if links.wait_for(|link| link.epoch != epoch).await.is_err() {
                    return;
                }
            }
            Err(Error::Refused(failure)) if !failure.code.never_proposed() => {
                return inbox.end(Error::Refused(failure));
            }
            Err(Error::Closed) => return inbox.end(Error::Closed),
            // It passes: to subscribe twice is as once.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(id: u64, attempt: u32) -> Message {
        Message { topic: "t".into(), id, attempt, body: Bytes::new() }
    }

    #[test]
    fn an_inbox_holds_no_more_than_prefetch_and_only_the_newest_delivery() {
        let inbox = Inbox::new(2);
        for (id, attempt) in [(1, 1), (2, 1), (1, 2), (3, 1)] {
            inbox.put(message(id, attempt));
        }
        let taken: Vec<_> =
            std::iter::from_fn(|| inbox.take()).map(|m| m.map(|m| (m.id, m.attempt))).collect();
        assert_eq!(taken, [Ok((1, 2)), Ok((3, 1))]);
        inbox.end(Error::Closed);
        assert_eq!(inbox.take(), Some(Err(Error::Closed)));
    }
}
