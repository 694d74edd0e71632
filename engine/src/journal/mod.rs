//! The node's journal: what is written where, and what is read back. Logic only, no I/O.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::id::{Boot, ClusterId, GroupId, Identity, Index, NodeId, Term};
use quorate_protocol::wire_struct;

wire_struct! {
    /// One entry of a group's Raft log.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Entry {
        /// The group.
        pub group: GroupId,
        /// The term in which it was proposed.
        pub term: Term,
        /// Its place in the log. It replaces whatever the log held there and after it.
        pub index: Index,
        /// 0 for commands; other kinds belong to `consensus.rs`.
        pub kind: u8,
        /// The entry's bytes.
        pub data: Bytes,
    }
}

wire_struct! {
    /// What a group's replica must never forget (Raft's HardState without the commit index, which is
    /// found again from the log).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Hard {
        /// The newest term seen.
        pub term: Term,
        /// Who got the vote in that term; node 0 is nobody.
        pub vote: NodeId,
    }
}

wire_struct! {
    /// What a data directory is: written when it is founded, `boot` raised at every start.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Meta {
        /// The cluster.
        pub cluster: ClusterId,
        /// The node.
        pub node: NodeId,
        /// The directory itself.
        pub identity: Identity,
        /// The number of this start.
        pub boot: Boot,
        /// Partitions of the cluster.
        pub partitions: u16,
        /// The nodes with which the cluster was founded, and their peer addresses.
        pub founders: Vec<(NodeId, String)>,
    }
}

/// What must be on the disk before what waits for it may leave: one turn's worth.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Persist {
    /// Rises by one from batch to batch.
    pub seq: u64,
    /// Votes and terms that changed.
    pub hard: Vec<(GroupId, Hard)>,
    /// Entries in log order within each group.
    pub entries: Vec<Entry>,
}

/// What a node finds when it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// The directory, `boot` already raised and synced.
    pub meta: Meta,
    /// Votes and terms; a group that is missing has neither.
    pub hard: BTreeMap<GroupId, Hard>,
    /// Each group's log from index 1, without holes.
    pub entries: BTreeMap<GroupId, Vec<Entry>>,
}
