//! The rows that replicas agree on. A message's life:
//!
//! ```text
//!      PUB            FETCH, SUB             ACK
//!  ─────────▶ Ready ────────────▶ Leased ─────────▶ gone ◀──────────────┐
//!              ▲  ▲                 │ │ │                              │ arrived
//!   time is up │  └─────────────────┘ │ ├─────────▶ Leaving for the DLQ ┘
//!              │    lease or          │ └─────────▶ Ready in the DLQ, if it lies in this partition
//!  ─────────▶ Delayed ◀───────────────┘   after MAXDELIVER deliveries, or NACK DEAD
//!   PUB DELAY       connection ends; NACK (DELAY)
//! ```

use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::id::{ConnId, GroupId};
use quorate_protocol::{wire_enum, wire_struct};

use crate::outcome::Asker;

/// A topic's number within its partition: rises with every topic that is opened, never used twice.
pub(super) type TopicNumber = u64;
/// A message: its topic, and its id (the serial number of its PUB's place in the log).
pub(super) type MessageKey = (TopicNumber, u64);

wire_struct! {
    /// A topic, by its name. It exists while it holds anything, is listened to, or is set up.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Topic {
        /// What its other rows are found by.
        pub number: u64,
        /// Default lease of a delivery in milliseconds; none: `limits::MESSAGE_LEASE`.
        pub lease: Option<u64>,
        /// Deliveries before a message becomes a dead letter; none: `limits::MAX_DELIVER`.
        pub max_deliver: Option<u32>,
        /// Where its dead letters go; none: its own name and `op::DEAD_LETTERS`.
        pub dlq: Option<Bytes>,
    }
}

wire_struct! {
    /// How far a message's delivery has come. Its body has a row of its own, which never changes.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Message {
        /// Deliveries so far; the number of the latest one.
        pub attempts: u32,
        /// Those of them before it became a dead letter here: they do not count towards MAXDELIVER.
        pub before: u32,
        /// What is happening with it.
        pub state: State,
    }
}

wire_enum! {
    /// See the top of the file.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum State {
        /// To be delivered to whoever comes first.
        Ready = 0,
        /// Not before this group time.
        Delayed(until: u64) = 1,
        /// With a consumer.
        Leased(lease: Lease) = 2,
        /// Dead, and on its way to another partition.
        Leaving(leaving: Leaving) = 3,
    }
}

wire_struct! {
    /// Where a message goes that leaves.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Leaving {
        /// The topic.
        pub to: Bytes,
        /// Its partition.
        pub target: GroupId,
        /// It has a place in the outbox.
        pub posted: bool,
    }
}

wire_struct! {
    /// A delivery that is not settled.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Lease {
        /// Group time at which the message comes back.
        pub until: u64,
        /// The connection that received it.
        pub conn: ConnId,
        /// It was pushed to a subscription, and counts against its PREFETCH.
        pub pushed: bool,
    }
}

wire_struct! {
    /// A FETCH that waits, by the serial number of its place in the log.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Waiter {
        /// The topic.
        pub topic: u64,
        /// Where the answer goes.
        pub asker: Asker,
        /// Messages at the most.
        pub count: u32,
        /// The lease of each, in milliseconds; none: the topic's.
        pub lease: Option<u64>,
        /// Group time at which it is answered with nothing.
        pub deadline: u64,
    }
}

wire_struct! {
    /// A subscription, by its topic and connection.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Subscription {
        /// Unacknowledged messages at the most.
        pub prefetch: u32,
        /// The lease of each, in milliseconds; none: the topic's.
        pub lease: Option<u64>,
        /// The serial number of the place in the log at which it was last served.
        pub turn: u64,
    }
}

wire_struct! {
    /// A publisher's own id, by topic and id.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Published {
        /// The message that it named first.
        pub message: u64,
        /// Group time until which that is remembered.
        pub until: u64,
    }
}

/// What falls due at a group time. At equal times messages come back before a FETCH gives up.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Due {
    /// A lease or a delay ends.
    Message(MessageKey),
    /// A FETCH has waited long enough.
    Waiter(u64),
    /// A publisher's id is forgotten.
    Published((TopicNumber, Bytes)),
}

/// What a connection has of a partition's queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Held {
    /// A subscription to this topic.
    Subscription(TopicNumber),
    /// A FETCH that waits, by its place.
    Waiter(u64),
    /// A delivery that is not settled.
    Lease(MessageKey),
}
