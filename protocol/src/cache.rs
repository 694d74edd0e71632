//! The words of the cache's protocol between a home and the nodes that hold its lines; see engine/src/cache.
//!
//! Invariant: every word names the lease that it is about, and with it the term; so a late one is known for what it is.

use bytes::Bytes;

use crate::id::{Boot, GroupId, Term};
use crate::op::Op;
use crate::peer::Work;
use crate::{wire_enum, wire_struct};

wire_struct! {
    /// A lease on the lines of one home, as holder and home name it. Epochs are numbered by the home within its term.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    pub struct LeaseName {
        /// The group whose keys they are.
        pub group: GroupId,
        /// The term of the home, which leads the group.
        pub term: Term,
        /// The epoch; 0 is none yet.
        pub epoch: u64,
    }
}

/// Above all epochs: a read whose `Ask::line` has this bit comes from a node without a lease, and asks for one. The rest is when it
/// asks, by its own clock in microseconds: the lease is counted from there.
pub const WISH: u64 = 1 << 63;

wire_struct! {
    /// A node wants a lease, or wants it to go on.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct LeaseWanted {
        /// Which; without an epoch, a new one.
        pub lease: LeaseName,
        /// The node's start: nothing that was granted to a former one is of any use.
        pub boot: Boot,
        /// When it asks, by its own clock; microseconds.
        pub sent: u64,
        /// It wants to hear of every write of the home's keys, whether it holds them or not.
        pub watch: bool,
    }
}

wire_struct! {
    /// A home grants a lease.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct LeaseGranted {
        /// Which.
        pub lease: LeaseName,
        /// As it was asked for.
        pub boot: Boot,
        /// As it was asked for: the lease is counted from here.
        pub sent: u64,
        /// How long it lasts; microseconds.
        pub length: u64,
        /// From now on the node hears of every write, as long as the lease lasts.
        pub watch: bool,
    }
}

wire_struct! {
    /// Lines are not valid any more, from now on.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Invalidation {
        /// The lease under which they were granted.
        pub lease: LeaseName,
        /// Rises within a term with every grant and invalidation: what was granted under a lower number is void.
        pub number: u64,
        /// The keys.
        pub keys: Vec<Bytes>,
    }
}

wire_struct! {
    /// What was to be dropped is dropped.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Purged {
        /// The lease.
        pub lease: LeaseName,
        /// The invalidation's number.
        pub number: u64,
    }
}

wire_struct! {
    /// Lines that a node has given up to make room.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Evicted {
        /// The lease.
        pub lease: LeaseName,
        /// The keys, and the number of the grant that is given up.
        pub lines: Vec<(Bytes, u64)>,
    }
}

wire_struct! {
    /// Keys that were written: for a node that watches, whatever it holds.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Changed {
        /// The lease under which the node watches.
        pub lease: LeaseName,
        /// Rises within a lease.
        pub number: u64,
        /// The keys, each with the counter of the connection that wrote it if that is one of the node's own; 0: it is not.
        pub keys: Vec<(Bytes, u64)>,
    }
}

wire_struct! {
    /// `Changed` was heard.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Noted {
        /// The lease.
        pub lease: LeaseName,
        /// The number.
        pub number: u64,
    }
}

wire_enum! {
    /// A word of the cache's protocol; see engine/src/cache. It may be lost, doubled and overtake others.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum CacheWord {
        /// Node to home.
        Want(want: LeaseWanted) = 1,
        /// Home to node.
        Lease(granted: LeaseGranted) = 2,
        /// Home to node.
        Invalid(invalidation: Invalidation) = 3,
        /// Node to home.
        Purged(purged: Purged) = 4,
        /// Home to node: the lease is to be given back, with all lines.
        Recall(lease: LeaseName) = 5,
        /// Node to home: it holds nothing under this lease.
        Returned(lease: LeaseName) = 6,
        /// Node to home.
        Evicted(evicted: Evicted) = 7,
        /// Home to node: as `Recall`, because every key of the group is about to be written.
        Flush(lease: LeaseName) = 20,
        /// Home to node.
        Changed(changed: Changed) = 21,
        /// Node to home.
        Noted(noted: Noted) = 22,
    }
}

wire_struct! {
    /// A line that comes with the answer to a read or write of one key. The value is that of the answer, or of the write.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Grant {
        /// The lease under which it is granted.
        pub lease: LeaseName,
        /// See `Invalidation::number`.
        pub number: u64,
        /// The key's version; 0: it does not exist.
        pub version: u64,
        /// Microseconds for which it is granted at the most, counted from when it was asked for: none without a deadline.
        pub left: Option<u64>,
        /// Nobody else holds the line.
        pub exclusive: bool,
        /// The node may write it by itself, under the lease, and brings what it wrote in time (`Op::Flush`).
        pub owned: bool,
    }
}

impl Work {
    /// Whether it is what an owner brings of its line, and of which key.
    #[must_use]
    pub fn flushes(&self) -> Option<&Bytes> {
        if let Self::Op(Op::Flush(flush)) = self { Some(&flush.key) } else { None }
    }

    /// The keys on whose values it depends, or which it changes. Whoever only looks at the cache depends on none.
    #[must_use]
    pub fn names(&self) -> Vec<&Bytes> {
        match self {
            Self::Op(Op::CacheInfo(_)) => Vec::new(),
            Self::Op(op) => op.keys(),
            _ => Vec::new(),
        }
    }
}

impl CacheWord {
    /// The group that it is about.
    #[must_use]
    pub fn group(&self) -> GroupId {
        match self {
            Self::Want(want) => want.lease.group,
            Self::Lease(granted) => granted.lease.group,
            Self::Invalid(invalidation) => invalidation.lease.group,
            Self::Purged(purged) => purged.lease.group,
            Self::Recall(lease) | Self::Returned(lease) | Self::Flush(lease) => lease.group,
            Self::Changed(changed) => changed.lease.group,
            Self::Noted(noted) => noted.lease.group,
            Self::Evicted(evicted) => evicted.lease.group,
        }
    }

    /// Whether it is a node's word to a home, and not a home's to a node.
    #[must_use]
    pub fn is_for_home(&self) -> bool {
        match self {
            Self::Want(_) | Self::Purged(_) | Self::Returned(_) | Self::Evicted(_) | Self::Noted(_) => true,
            Self::Lease(_) | Self::Invalid(_) | Self::Recall(_) | Self::Flush(_) | Self::Changed(_) => false,
        }
    }

    /// About how many bytes it takes.
    #[must_use]
    pub fn weight(&self) -> usize {
        64 + match self {
            Self::Invalid(invalidation) => invalidation.keys.iter().map(|key| 32 + key.len()).sum(),
            Self::Evicted(evicted) => evicted.lines.iter().map(|(key, _)| 48 + key.len()).sum(),
            Self::Changed(changed) => changed.keys.iter().map(|(key, _)| 40 + key.len()).sum(),
            _ => 0,
        }
    }
}
