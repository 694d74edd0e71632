//! Asynchronous, typed client of Quorate: replicated locks, durable queues, keys.
//!
//! ```no_run
//! use std::time::Duration;
//! use quorate_client::{Client, Lock, Publish, Set, Subscribe};
//!
//! # async fn example() -> Result<(), quorate_client::Error> {
//! let client = Client::connect(["127.0.0.1:7411", "127.0.0.1:7421", "127.0.0.1:7431"]).await?;
//!
//! // A lock, owned by name, so that it outlives a lost connection.
//! let lock = Lock::owned_by("worker-7").ttl(Duration::from_secs(10)).wait(Duration::from_secs(5));
//! if let Some(held) = client.lock("invoices", lock).await? {
//!     println!("fencing token {}", held.token());
//!     held.unlock().await?;
//! }
//!
//! // A durable message, acknowledged once it is worked off.
//! client.publish("jobs", "resize 42.png", Publish::default()).await?;
//! let mut jobs = client.subscribe("jobs", Subscribe::default().prefetch(16)).await?;
//! let job = jobs.next().await?;
//! client.ack(&job).await?;
//!
//! // Keys.
//! client.set("greeting", "hello", Set::default().expires_in(Duration::from_secs(60))).await?;
//! assert_eq!(client.get("greeting").await?.as_deref(), Some(&b"hello"[..]));
//! # Ok(())
//! # }
//! ```
//!
//! # What the client does by itself
//!
//! One connection, to one node; any node serves any command. Calls of many tasks share it: requests are
//! pipelined, answers overtake each other, a LOCK that waits holds nobody up. When the connection breaks, or
//! nothing is heard of the node for [`Options::silence`], the next address is tried, with pauses from 20 ms
//! to 1 s, for as long as the client lives; calls meanwhile wait, up to [`Options::timeout`].
//!
//! Commands that change something travel in a *client session*: the cluster remembers their outcome until the
//! client has seen it. So they are sent again after a reconnect, and still **take effect once**. The session
//! lives 60 s without a connection. When it has ended, calls that were sent in it and not answered fail with
//! [`Error::InDoubt`], and a new session is opened for the next ones.
//!
//! Refusals that promise that nothing happened (`CLUSTERDOWN`, `TRYAGAIN`, `BUSY`, `LOADING`) are asked again
//! for up to [`Options::retry`], then handed to the caller.
//!
//! # What belongs to the connection
//!
//! Locks taken with [`Lock::owned_by_connection`] go with the connection, whoever ended it; prefer
//! [`Lock::owned_by`]. So do the leases of fetched messages: they come back, to somebody. Subscriptions are
//! renewed on the next connection.
//!
//! # Bounds
//!
//! 496 calls are on their way at a time, and 496 more that wait by their nature (LOCK with a wait, FETCH with
//! a block); further ones wait for a place. Dropping a call's future gives up on it, not on its effect.
#![warn(missing_docs)]

mod call;
mod cluster;
mod connection;
mod error;
mod keys;
mod locks;
mod node;
mod queues;
mod raw;
mod session;
mod subscription;
mod values;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_protocol::reply::Reply;

pub use cluster::{GroupStatus, Member, PartitionInfo, SnapshotInfo, Status};
pub use error::Error;
pub use keys::{Filled, Set, Ttl};
pub use locks::{Held, Holder, Lock, LockInfo, Waiter};
pub use node::Node;
pub use queues::{Fetch, Message, Publish, TopicInfo, TopicSettings};
pub use quorate_protocol::reply;
pub use subscription::{Subscribe, Subscription};

use connection::{Shared, request};
use session::Again;

/// How a client behaves. All times are bounds of waiting.
#[derive(Debug, Clone)]
pub struct Options {
    /// A call's time beyond what it may wait by its nature (WAIT, BLOCK); none waits for ever. 30 s.
    pub timeout: Option<Duration>,
    /// How long refusals that promise that nothing happened are asked again before the caller gets them; 0
    /// hands them out at once. 5 s, which outlasts an election.
    pub retry: Duration,
    /// How long a node may be silent, or a connection take, before the next node is tried. 3 s.
    pub silence: Duration,
    /// How long [`Client::connect`] tries. 10 s.
    pub connect: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timeout: Some(Duration::from_secs(30)),
            retry: Duration::from_secs(5),
            silence: Duration::from_secs(3),
            connect: Duration::from_secs(10),
        }
    }
}

/// Closes the client when the last handle is dropped.
#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// A client; cheap to clone, shared by any number of tasks. See the top of the crate.
#[derive(Debug, Clone)]
pub struct Client {
    handle: Arc<Handle>,
}

impl Client {
    /// Connects to the first node that answers and opens a client session, with default [`Options`].
    /// Addresses are `host:port` of client ports. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// `Unreachable` when no node serves within [`Options::connect`].
    pub async fn connect<A: Into<String>>(addresses: impl IntoIterator<Item = A>) -> Result<Self, Error> {
        Self::connect_with(addresses, Options::default()).await
    }

    /// The same, with options.
    ///
    /// # Errors
    /// As `connect`.
    pub async fn connect_with<A: Into<String>>(
        addresses: impl IntoIterator<Item = A>,
        options: Options,
    ) -> Result<Self, Error> {
        let addresses: Vec<String> = addresses.into_iter().map(Into::into).collect();
        if addresses.is_empty() {
            return Err(Error::Usage(
                "give at least one address, host:port of a node's client port".to_owned(),
            ));
        }
        let patience = options.connect;
        let shared = Arc::new(Shared::new(addresses, options));
        tokio::spawn(Arc::clone(&shared).drive());
        let client = Self { handle: Arc::new(Handle { shared }) };
        match tokio::time::timeout(patience, client.shared().ready()).await {
            Ok(()) => Ok(client),
            Err(_) => Err(Error::Unreachable(client.shared().state.borrow().trouble.clone())),
        }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }

    /// Closes the client for all its handles: calls on their way fail, some of them in doubt.
    pub fn close(&self) {
        self.shared().close();
    }

    /// How often the client has connected: 1 until the first connection was lost. What belonged to an
    /// earlier connection is gone.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared().state.borrow().epoch
    }

    pub(crate) async fn ask(&self, verb: &str, args: Vec<Bytes>, again: Again) -> Result<Reply, Error> {
        call::ask(self.shared(), request(verb, args, again)).await
    }

    pub(crate) async fn ask_waiting(
        &self,
        verb: &str,
        args: Vec<Bytes>,
        again: Again,
        patience: Duration,
    ) -> Result<Reply, Error> {
        let request = session::Request { patience, ..request(verb, args, again) };
        call::ask(self.shared(), request).await
    }

    /// Asks the node whether it is there.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub async fn ping(&self) -> Result<(), Error> {
        self.ask("PING", Vec::new(), Again::Read).await.map(|_| ())
    }

    /// Subscribes to a topic: messages are delivered as they come, at most PREFETCH unacknowledged.
    /// One subscription of a topic for each client.
    ///
    /// # Errors
    /// When the client is subscribed to the topic already. A refusal is told by [`Subscription::next`].
    pub async fn subscribe(&self, topic: impl Into<Bytes>, how: Subscribe) -> Result<Subscription, Error> {
        Subscription::begin(self, topic.into(), how).await
    }
}
