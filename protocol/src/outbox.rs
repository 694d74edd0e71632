//! What groups tell each other through the outbox: the words of `engine/src/outbox.rs`.

use bytes::Bytes;

use crate::id::{ClientId, GroupId, NodeId, SessionId};
use crate::peer::BASE;
use crate::{wire_enum, wire_struct};

wire_struct! {
    /// A message that died in a topic whose dead letters lie in another partition.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Letter {
        /// The topic that it is put into.
        pub topic: Bytes,
        /// How often it was delivered before.
        pub attempts: u32,
        /// What the sender knows it by: the number of the topic in which it died, and its id there.
        pub origin: (u64, u64),
        /// Its body.
        pub body: Bytes,
    }
}

wire_enum! {
    /// What groups tell each other through the outbox.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum Item {
        /// The session of a node has ended, with all its connections.
        NodeEnded(session: (NodeId, SessionId)) = 1,
        /// A client session has ended.
        ClientEnded(client: ClientId) = 2,
        /// A dead letter for a topic of the target.
        Letter(letter: Letter) = 3,
        /// From group 0: tokens of a lock below this one are good no more.
        Floor(floor: Floor) = 4,
        /// From group 0: the watch of a lock with this number is over.
        Unwatched(watch: (Bytes, u64)) = 5,
    }
}

wire_struct! {
    /// A lock is about to be granted under a new token.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Floor {
        /// The lock.
        pub lock: Bytes,
        /// The number of the partition's watch.
        pub number: u64,
        /// The token.
        pub token: u64,
    }
}

wire_struct! {
    /// Outbox items for one group: `items[i]` has the number `first + i`. Each source numbers what it has for each
    /// target by itself, from 1.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Parcel {
        /// The group they come from.
        pub source: GroupId,
        /// The number of the first item.
        pub first: u64,
        /// The items in order.
        pub items: Vec<Item>,
    }
}

wire_struct! {
    /// A group has committed a source's outbox items up to a number.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Receipted {
        /// The group that has them.
        pub target: GroupId,
        /// The last number it has.
        pub upto: u64,
    }
}

impl Item {
    /// Bytes that it holds on to, about.
    #[must_use]
    pub fn weight(&self) -> usize {
        match self {
            Self::Letter(letter) => BASE + letter.topic.len() + letter.body.len(),
            Self::Floor(Floor { lock, .. }) | Self::Unwatched((lock, _)) => 64 + lock.len(),
            Self::NodeEnded(_) | Self::ClientEnded(_) => 32,
        }
    }
}
