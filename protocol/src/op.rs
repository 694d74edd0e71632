//! The commands that the cluster decides, typed: what a client's words mean once they are understood.
//!
//! Charter: `command.rs` turns words into these; nodes forward them; groups log and apply them. A command
//! that only its connection or its node answers (PING, STATUS) is not here.
//!
//! Invariant: an `Op` carries everything that its effect depends on. Defaults (TTL 30 s, …) are filled in
//! when it is parsed, so that a later version with other defaults replays old logs alike.

mod done;
mod keys;
mod place;

use std::borrow::Cow;

use bytes::Bytes;

pub use done::Done;
pub use keys::{
    Append, Commands, Cursor, Expire, ExpireAt, ExpireTime, Expiry, Fence, FencedSet, FillV, Flush, GetEx,
    GetRange, Incr, MSet, Moment, Multi, Only, Scan, Set, SetBack, SetRange, Ttl, Watch, When,
};
pub use place::{DEAD_LETTERS, partition_of, partition_of_topic, slot_of};

use crate::id::NodeId;
use crate::limits::VALUE_MAX;
use crate::{wire_enum, wire_struct};

/// Digits of a number that INCR writes, at the most, with its sign.
const DIGITS: usize = 20;

wire_struct! {
    /// `LOCK name [SHARED] [OWNER id] [TTL ms] [WAIT ms]`
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Lock {
        /// The lock's name.
        pub name: Bytes,
        /// Shared instead of exclusive.
        pub shared: bool,
        /// The named owner; none means the connection.
        pub owner: Option<Bytes>,
        /// Lease in milliseconds from the grant; above 0. (Default: `LOCK_TTL` with an owner's name; without, the
        /// longest there is, which stands for no end: the lock ends with its connection.)
        pub ttl: u64,
        /// Milliseconds to wait for the grant; 0 tries once.
        pub wait: u64,
    }
}

wire_struct! {
    /// `UNLOCK name [OWNER id] [TOKEN n]`
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Unlock {
        /// The lock's name.
        pub name: Bytes,
        /// The named owner; none means the connection.
        pub owner: Option<Bytes>,
        /// The fencing token to release; none means whatever the owner holds.
        pub token: Option<u64>,
    }
}

wire_struct! {
    /// `RENEW name [OWNER id] [TOKEN n] [TTL ms]`
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Renew {
        /// The lock's name.
        pub name: Bytes,
        /// The named owner; none means the connection.
        pub owner: Option<Bytes>,
        /// The fencing token to renew; none means whatever the owner holds.
        pub token: Option<u64>,
        /// The new lease in milliseconds from now; above 0.
        pub ttl: u64,
    }
}

wire_struct! {
    /// `PUB topic body [ID dedupe] [DELAY ms]`
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Pub {
        /// The topic.
        pub topic: Bytes,
        /// The message.
        pub body: Bytes,
        /// The publisher's own id: the same one within the dedupe window publishes nothing new.
        pub dedupe: Option<Bytes>,
        /// Milliseconds before the message can be delivered.
        pub delay: u64,
    }
}

wire_struct! {
    /// `FETCH topic [COUNT n] [BLOCK ms] [LEASE ms]`
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Fetch {
        /// The topic.
        pub topic: Bytes,
        /// Messages at the most; 1..=`limits::FETCH_MAX`.
        pub count: u32,
        /// Milliseconds to wait for the first one; 0 answers at once.
        pub block: u64,
        /// The lease of each delivery in milliseconds; none means the topic's.
        pub lease: Option<u64>,
    }
}

wire_struct! {
    /// A message as a consumer names it: `id` or `id@attempt`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    pub struct Receipt {
        /// The message id.
        pub id: u64,
        /// The delivery that is settled; none means the current one.
        pub attempt: Option<u32>,
    }
}

wire_struct! {
    /// `ACK topic id …`
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Ack {
        /// The topic.
        pub topic: Bytes,
        /// What is done with; 1..=`limits::MANY_MAX`.
        pub receipts: Vec<Receipt>,
    }
}

wire_struct! {
    /// `NACK topic id [DELAY ms] [DEAD]`
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Nack {
        /// The topic.
        pub topic: Bytes,
        /// What is given back.
        pub receipt: Receipt,
        /// Milliseconds before it can be delivered again.
        pub delay: u64,
        /// Move it to the dead letters at once.
        pub dead: bool,
    }
}

wire_struct! {
    /// `SUB topic [PREFETCH n] [LEASE ms]`
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Sub {
        /// The topic.
        pub topic: Bytes,
        /// Unacknowledged messages at the most; 1..=`limits::PREFETCH_MAX`.
        pub prefetch: u32,
        /// The lease of each delivery in milliseconds; none means the topic's.
        pub lease: Option<u64>,
    }
}

wire_struct! {
    /// `QSET topic [LEASE ms] [MAXDELIVER n] [DLQ topic]`: what is none stays as it is.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct QSet {
        /// The topic.
        pub topic: Bytes,
        /// Default lease of a delivery in milliseconds.
        pub lease: Option<u64>,
        /// Deliveries before a message becomes a dead letter.
        pub max_deliver: Option<u32>,
        /// Where its dead letters go, in whatever partition that lies; its own name and `DEAD_LETTERS` is the default.
        pub dlq: Option<Bytes>,
    }
}

wire_struct! {
    /// `MEMBER ADD id host:port`
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct MemberAdd {
        /// The node.
        pub node: NodeId,
        /// Where other nodes connect to it.
        pub peer_address: String,
    }
}

wire_enum! {
    /// `MEMBER`: who belongs to the cluster. What replicas move is a consequence, brought about by the groups' leaders.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum MemberOp {
        /// ADD: the node belongs to the cluster, and gets its share.
        Add(op: MemberAdd) = 1,
        /// DRAIN: the node gives its share away, and stays a member.
        Drain(node: NodeId) = 2,
        /// REMOVE: the node gives its share away, and is forgotten then.
        Remove(node: NodeId) = 3,
        /// CANCEL: a node that was to give its share away keeps it.
        Cancel(node: NodeId) = 4,
        /// As ADD, asked by the node itself with an empty directory; answers which of its lives this is.
        Join(op: MemberAdd) = 5,
    }
}

wire_enum! {
    /// One command of a client. Tags are part of the log's format: never reuse one.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum Op {
        /// LOCK
        Lock(op: Lock) = 1,
        /// UNLOCK
        Unlock(op: Unlock) = 2,
        /// RENEW
        Renew(op: Renew) = 3,
        /// LOCKINFO name
        LockInfo(name: Bytes) = 4,
        /// PUB
        Pub(op: Pub) = 16,
        /// FETCH
        Fetch(op: Fetch) = 17,
        /// ACK
        Ack(op: Ack) = 18,
        /// NACK
        Nack(op: Nack) = 19,
        /// SUB
        Sub(op: Sub) = 20,
        /// UNSUB topic
        Unsub(topic: Bytes) = 21,
        /// QSET
        QSet(op: QSet) = 22,
        /// QINFO topic
        QInfo(topic: Bytes) = 23,
        /// GET key
        Get(key: Bytes) = 32,
        /// SET
        Set(op: Set) = 33,
        /// DEL key …: within one partition once the node has split it
        Del(keys: Vec<Bytes>) = 34,
        /// EXISTS key …: likewise
        Exists(keys: Vec<Bytes>) = 35,
        /// INCR
        Incr(op: Incr) = 36,
        /// EXPIRE
        Expire(op: Expire) = 37,
        /// TTL
        Ttl(op: Ttl) = 38,
        /// CACHEINFO key
        CacheInfo(key: Bytes) = 39,
        /// MGET key …: likewise
        MGet(keys: Vec<Bytes>) = 40,
        /// MSET: likewise
        MSet(op: MSet) = 41,
        /// APPEND
        Append(op: Append) = 42,
        /// SETRANGE
        SetRange(op: SetRange) = 43,
        /// GETDEL key
        GetDel(key: Bytes) = 44,
        /// GETEX
        GetEx(op: GetEx) = 45,
        /// STRLEN key
        Strlen(key: Bytes) = 46,
        /// GETRANGE
        GetRange(op: GetRange) = 47,
        /// PERSIST key
        Persist(key: Bytes) = 48,
        /// TYPE key
        Type(key: Bytes) = 49,
        /// EXPIREAT
        ExpireAt(op: ExpireAt) = 50,
        /// EXPIRETIME
        ExpireTime(op: ExpireTime) = 51,
        /// DBSIZE: in each partition
        DbSize = 52,
        /// KEYS pattern: in each partition
        Keys(pattern: Bytes) = 53,
        /// SCAN: in the partition that its cursor names
        Scan(op: Scan) = 54,
        /// FLUSHALL: in each partition
        FlushAll = 55,
        /// WATCH key …: their versions; within one partition once the node has split it
        Versions(keys: Vec<Bytes>) = 56,
        /// MULTI … EXEC
        Multi(op: Box<Multi>) = 57,
        /// GETV key
        GetV(key: Bytes) = 58,
        /// GETV key FILL ms
        FillV(op: FillV) = 61,
        /// SET key value WRITEBACK
        SetBack(op: SetBack) = 62,
        /// A line's owner brings what it has acknowledged
        Flush(op: Flush) = 63,
        /// MEMBER
        Member(op: MemberOp) = 64,
        /// SET ... FENCE lock token
        FencedSet(op: FencedSet) = 65,
    }
}

/// Where a command is decided.
#[derive(Debug, PartialEq, Eq)]
pub enum Home<'a> {
    /// In the system group.
    System,
    /// In the partition of this key.
    Key(&'a Bytes),
    /// In the partition of this topic.
    Topic(&'a Bytes),
    /// In the partitions of the names in it, each its share.
    Each,
    /// In the one partition of all names in it.
    Together,
    /// In every partition.
    All,
    /// In the partition that the cursor names.
    Cursor(u64),
}

impl Op {
    /// Where the command is decided.
    #[must_use]
    pub fn home(&self) -> Home<'_> {
        match self {
            Self::Pub(Pub { topic: name, .. })
            | Self::Fetch(Fetch { topic: name, .. })
            | Self::Ack(Ack { topic: name, .. })
            | Self::Nack(Nack { topic: name, .. })
            | Self::Sub(Sub { topic: name, .. })
            | Self::QSet(QSet { topic: name, .. })
            | Self::Unsub(name)
            | Self::QInfo(name) => Home::Topic(name),
            Self::MSet(MSet { absent: true, .. }) | Self::Multi(_) => Home::Together,
            Self::Del(_) | Self::Exists(_) | Self::MGet(_) | Self::MSet(_) | Self::Versions(_) => Home::Each,
            Self::DbSize | Self::Keys(_) | Self::FlushAll => Home::All,
            Self::Scan(scan) => Home::Cursor(scan.cursor),
            op => op.key().map_or(Home::System, Home::Key),
        }
    }

    /// Whether the command changes nothing, so that it is answered from the state and never logged.
    #[must_use]
    pub fn is_read(&self) -> bool {
        match self {
            Self::LockInfo(_) | Self::QInfo(_) | Self::Get(_) | Self::Exists(_) | Self::Ttl(_) => true,
            Self::CacheInfo(_) | Self::MGet(_) | Self::Strlen(_) | Self::GetRange(_) | Self::Type(_) => true,
            Self::ExpireTime(_) | Self::DbSize | Self::Keys(_) | Self::Scan(_) | Self::Versions(_) => true,
            Self::GetV(_) | Self::FillV(_) => true,
            Self::Multi(multi) => multi.commands.0.iter().all(Self::is_read),
            _ => false,
        }
    }

    /// The keys that the command may change, unless they are all (`writes_all`).
    #[must_use]
    pub fn writes(&self) -> Cow<'_, [Bytes]> {
        match self {
            Self::Del(keys) => Cow::Borrowed(keys),
            Self::MSet(MSet { pairs, .. }) => pairs.iter().map(|(key, _)| key.clone()).collect(),
            Self::Multi(multi) => multi.commands.0.iter().flat_map(|op| op.writes().into_owned()).collect(),
            op if op.is_read() => Cow::Borrowed(&[]),
            op => Cow::Borrowed(op.key().map_or(&[], core::slice::from_ref)),
        }
    }

    /// Bytes that keys and values may grow by at the most, besides what a new row costs, and the rows that it may add.
    #[must_use]
    pub fn needs(&self) -> (usize, usize) {
        match self {
            Self::Set(Set { key, value, .. })
            | Self::FencedSet(FencedSet { set: Set { key, value, .. }, .. })
            | Self::SetBack(SetBack { key, value })
            | Self::Append(Append { key, value }) => (key.len() + value.len(), 1),
            Self::Incr(Incr { key, .. }) => (key.len() + DIGITS, 1),
            Self::SetRange(op) => {
                let offset = usize::try_from(op.offset).unwrap_or(VALUE_MAX).min(VALUE_MAX);
                (op.key.len() + offset + op.value.len(), 1)
            }
            Self::MSet(MSet { pairs, .. }) => {
                (pairs.iter().map(|(key, value)| key.len() + value.len()).sum(), pairs.len())
            }
            Self::Multi(multi) => {
                let each = multi.commands.0.iter().map(Self::needs);
                each.fold((0, 0), |(bytes, rows), (more, another)| (bytes + more, rows + another))
            }
            _ => (0, 0),
        }
    }

    /// Whether the command may change every key of a partition.
    #[must_use]
    pub fn writes_all(&self) -> bool {
        *self == Self::FlushAll
    }

    /// The key whose value answers the command, if it is a read of one.
    #[must_use]
    pub fn line(&self) -> Option<&Bytes> {
        if let Self::Get(key) = self { Some(key) } else { None }
    }

    /// Whether the command stands alone on its connection: it waits for all before it, all after it wait.
    /// Every lock command does, and every command that can wait.
    #[must_use]
    pub fn is_barrier(&self) -> bool {
        match self {
            Self::Lock(_) | Self::Unlock(_) | Self::Renew(_) | Self::LockInfo(_) => true,
            Self::Fetch(fetch) => fetch.block > 0,
            Self::FillV(_) => true,
            _ => false,
        }
    }

    /// Milliseconds that the command may rightly stay unanswered.
    #[must_use]
    pub fn patience(&self) -> u64 {
        match self {
            Self::Lock(lock) => lock.wait,
            Self::Fetch(fetch) => fetch.block,
            Self::FillV(fill) => fill.ms,
            _ => 0,
        }
    }

    /// Whether the answer may be large.
    #[must_use]
    pub fn may_answer_much(&self) -> bool {
        match self {
            Self::Get(_) | Self::Fetch(_) | Self::LockInfo(_) | Self::MGet(_) | Self::GetDel(_) => true,
            Self::GetEx(_) | Self::GetRange(_) | Self::Keys(_) | Self::Scan(_) | Self::GetV(_) => true,
            Self::FillV(_) => true,
            Self::Multi(multi) => multi.commands.0.iter().any(Self::may_answer_much),
            Self::Set(set) | Self::FencedSet(FencedSet { set, .. }) => set.get,
            _ => false,
        }
    }

    /// Bytes that the command holds on to.
    #[must_use]
    pub fn weight(&self) -> usize {
        let names = || self.keys().into_iter().map(|key| 32 + key.len()).sum::<usize>();
        64 + match self {
            Self::Lock(op) => op.name.len() + op.owner.as_ref().map_or(0, Bytes::len),
            Self::Pub(op) => op.topic.len() + op.body.len() + op.dedupe.as_ref().map_or(0, Bytes::len),
            Self::Ack(op) => op.topic.len() + 16 * op.receipts.len(),
            Self::QSet(op) => op.topic.len() + op.dlq.as_ref().map_or(0, Bytes::len),
            Self::Set(Set { key, value, .. })
            | Self::SetBack(SetBack { key, value })
            | Self::Flush(Flush { key, value, .. })
            | Self::Append(Append { key, value })
            | Self::SetRange(SetRange { key, value, .. }) => key.len() + value.len(),
            Self::FencedSet(op) => op.fence.lock.len() + op.set.key.len() + op.set.value.len(),
            Self::MSet(op) => op.pairs.iter().map(|(key, value)| 64 + key.len() + value.len()).sum(),
            Self::Multi(op) => {
                let watched = op.watched.iter().map(|(key, _)| 40 + key.len()).sum::<usize>();
                watched + op.commands.0.iter().map(|op| 64 + op.weight()).sum::<usize>()
            }
            Self::Scan(_) | Self::Keys(_) => 1024,
            other => match other.home() {
                Home::Topic(name) => name.len(),
                Home::System => 256,
                _ => names(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Wire;

    #[test]
    fn ops_survive_the_notation() {
        let op = Op::Set(Set {
            key: "k".into(),
            value: "v".into(),
            when: When::Version(7),
            expiry: Expiry::After(1500),
            get: true,
        });
        assert_eq!(Op::from_wire(op.to_wire()), Ok(op.clone()));
        let mut cut = op.to_wire();
        cut.truncate(cut.len() - 1);
        assert!(Op::from_wire(cut).is_err());
    }
}
