//! The names of things, as newtypes: what cannot be mixed up need not be checked.

use crate::{wire_newtype, wire_struct};

/// A Raft term.
pub type Term = u64;
/// An index in a group's Raft log; the first entry has index 1.
pub type Index = u64;

wire_newtype! {
    /// A node of the cluster, chosen by the operator; 1 and up.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
    pub struct NodeId(pub u64);
}

wire_struct! {
    /// A replica of a group, named so that it is never mistaken for an earlier one on the same node: one that was
    /// removed, or has lost what it acknowledged, comes back under a new incarnation. Node 0 is nobody.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
    pub struct Replica {
        /// The node that holds it.
        pub node: NodeId,
        /// Which life of its node it belongs to (see `members`), and below `SERIAL_BITS` a number that rises with every
        /// replica that the group has been given. The founders' are 0.
        pub incarnation: u32,
    }
}

/// Bits that number the replicas of a group.
const SERIAL_BITS: u32 = 20;

impl Replica {
    /// The replica of this number of a group, in a life of its node.
    ///
    /// # Panics
    /// After 2^20 replicas of one group, or 2^12 lives of a node.
    #[must_use]
    pub fn new(node: NodeId, life: u32, serial: u32) -> Self {
        assert!(
            serial < 1 << SERIAL_BITS && life < 1 << (32 - SERIAL_BITS),
            "lives and replicas fit one number"
        );
        Self { node, incarnation: life << SERIAL_BITS | serial }
    }

    /// The life of its node.
    #[must_use]
    pub fn life(&self) -> u32 {
        self.incarnation >> SERIAL_BITS
    }

    /// Its number among the replicas of its group.
    #[must_use]
    pub fn serial(&self) -> u32 {
        self.incarnation & ((1 << SERIAL_BITS) - 1)
    }
}

wire_newtype! {
    /// A Raft group: 0 is the system group, 1.. are the partitions.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
    pub struct GroupId(pub u16);
}

impl GroupId {
    /// The group of locks, sessions and membership.
    pub const SYSTEM: Self = Self(0);

    /// The group's place in an array of all groups.
    #[must_use]
    pub fn slot(self) -> usize {
        usize::from(self.0)
    }
}

wire_newtype! {
    /// The cluster, fixed when it is founded: derived from its first configuration.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
    pub struct ClusterId(pub u64);
}

wire_newtype! {
    /// A node's data directory: random, written when the directory is founded, checked by its peers.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
    pub struct Identity(pub u128);
}

wire_newtype! {
    /// A start of a node: rises at every start, synced before the first frame leaves. 1 is the first.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
    pub struct Boot(pub u64);
}

wire_newtype! {
    /// A node's session: the index of the group 0 entry that opened it. 0 names none.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
    pub struct SessionId(pub u64);
}

wire_newtype! {
    /// A client's session (binary protocol): the index of the group 0 entry that opened it. 0 names none.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
    pub struct ClientId(pub u64);
}

impl Boot {
    /// The number before a life's first boot: boots of different lives are never alike, though each begins with an
    /// empty directory.
    #[must_use]
    pub fn before(life: u32) -> Self {
        Self(u64::from(life) << BOOT_BITS)
    }

    /// The life of its node in which the directory was founded.
    #[must_use]
    pub fn life(self) -> u32 {
        u32::try_from(self.0 >> BOOT_BITS).unwrap_or(u32::MAX)
    }
}

wire_struct! {
    /// A client connection, named so that the whole cluster can tell it from every other one, ever.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
    pub struct ConnId {
        /// The node that holds the socket.
        pub node: NodeId,
        /// That node's session when the connection first needed one.
        pub session: SessionId,
        /// The node's boot above `COUNTER_BITS`, below it a number that rises with every connection of that boot.
        /// So what a former boot asked, and a replayed log answers, is nobody's.
        pub counter: u64,
    }
}

/// Bits that count the connections of one boot.
const COUNTER_BITS: u32 = 36;
/// Bits that count the boots of one life of a node.
const BOOT_BITS: u32 = 17;
/// Lives of a node's id; above it another id is to be given.
pub const LIVES_MAX: u32 = 1000;

impl ConnId {
    /// The connection of this number of a boot.
    ///
    /// # Panics
    /// After 2^36 connections of one boot, 2^17 boots of one life or 2^10 lives.
    #[must_use]
    pub fn new(node: NodeId, session: SessionId, boot: Boot, number: u64) -> Self {
        let fits = number < 1 << COUNTER_BITS && boot.0 < 1 << (63 - COUNTER_BITS);
        assert!(fits, "connections and boots fit one number");
        Self { node, session, counter: boot.0 << COUNTER_BITS | number }
    }

    /// The boot of its node.
    #[must_use]
    pub fn boot(&self) -> Boot {
        Boot(self.counter >> COUNTER_BITS)
    }

    /// Its number in that boot.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.counter & ((1 << COUNTER_BITS) - 1)
    }
}

wire_struct! {
    /// A request of a client session.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
    pub struct ClientSeq {
        /// The session.
        pub client: ClientId,
        /// The request's number in it; 1 and up, never reused.
        pub seq: u64,
        /// The lowest number whose reply the client has not seen: replies below it may be forgotten.
        pub lowest: u64,
    }
}

wire_struct! {
    /// A logged command's place: entry and offset in the entry's batch.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
    pub struct LogPos {
        /// Index of the entry in the group's log.
        pub index: Index,
        /// Offset of the command in the entry.
        pub offset: u32,
    }
}

impl LogPos {
    /// The place as one number that rises along the log and fits a signed 64-bit integer: how ids and
    /// versions that never repeat are made.
    ///
    /// # Panics
    /// When the entry holds 2^20 commands or the log 2^43 entries, which `limits.rs` rules out.
    #[must_use]
    pub fn serial(self) -> u64 {
        assert!(self.offset < 1 << 20 && self.index < 1 << 43, "a place in the log fits 63 bits");
        self.index << 20 | u64::from(self.offset)
    }
}
