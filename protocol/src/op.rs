//! The commands that the cluster decides, typed: what a client's words mean once they are understood.
//!
//! Charter: `command.rs` turns words into these; nodes forward them; groups log and apply them. A command
//! that only its connection or its node answers (PING, STATUS) is not here.
//!
//! Invariant: an `Op` carries everything that its effect depends on. Defaults (TTL 30 s, …) are filled in
//! when it is parsed, so that a later version with other defaults replays old logs alike.

use bytes::Bytes;

use crate::id::{GroupId, NodeId};
use crate::{wire_enum, wire_struct};

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
        /// longest there is, since the lock ends with its connection.)
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

wire_enum! {
    /// On what a SET depends.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum When {
        /// On nothing.
        Always = 0,
        /// `NX`: the key does not exist.
        Absent = 1,
        /// `XX`: the key exists.
        Present = 2,
        /// `IFVER n`: the key's version is n; 0 means that it does not exist.
        Version(version: u64) = 3,
    }
}

wire_enum! {
    /// What a SET does to the key's deadline.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Expiry {
        /// None from now on.
        Never = 0,
        /// `KEEPTTL`: as it was.
        Keep = 1,
        /// `EX`, `PX`: milliseconds from now; above 0.
        After(ms: u64) = 2,
    }
}

wire_struct! {
    /// `SET key value [NX|XX|IFVER n] [EX s|PX ms|KEEPTTL] [GET]`
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Set {
        /// The key.
        pub key: Bytes,
        /// The value.
        pub value: Bytes,
        /// The condition.
        pub when: When,
        /// The deadline.
        pub expiry: Expiry,
        /// `GET`: answer the old value.
        pub get: bool,
    }
}

wire_struct! {
    /// `INCR key` and its kind.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Incr {
        /// The key.
        pub key: Bytes,
        /// What is added.
        pub by: i64,
    }
}

wire_struct! {
    /// `EXPIRE key s`, `PEXPIRE key ms`
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Expire {
        /// The key.
        pub key: Bytes,
        /// Milliseconds from now; 0 or less deletes the key.
        pub ms: i64,
    }
}

wire_struct! {
    /// `TTL key` (seconds, rounded up to the nearer), `PTTL key` (milliseconds)
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Ttl {
        /// The key.
        pub key: Bytes,
        /// Milliseconds instead of seconds.
        pub millis: bool,
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
        /// MEMBER
        Member(op: MemberOp) = 64,
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
    /// In the partitions of these names, and the counts are added up.
    Each(&'a [Bytes]),
}

impl Op {
    /// Where the command is decided.
    #[must_use]
    pub fn home(&self) -> Home<'_> {
        match self {
            Self::Lock(_) | Self::Unlock(_) | Self::Renew(_) | Self::LockInfo(_) | Self::Member(_) => {
                Home::System
            }
            Self::Pub(Pub { topic: name, .. })
            | Self::Fetch(Fetch { topic: name, .. })
            | Self::Ack(Ack { topic: name, .. })
            | Self::Nack(Nack { topic: name, .. })
            | Self::Sub(Sub { topic: name, .. })
            | Self::QSet(QSet { topic: name, .. })
            | Self::Unsub(name)
            | Self::QInfo(name) => Home::Topic(name),
            Self::Get(name)
            | Self::CacheInfo(name)
            | Self::Set(Set { key: name, .. })
            | Self::Incr(Incr { key: name, .. })
            | Self::Expire(Expire { key: name, .. })
            | Self::Ttl(Ttl { key: name, .. }) => Home::Key(name),
            Self::Del(names) | Self::Exists(names) => Home::Each(names),
        }
    }

    /// Whether the command changes nothing, so that it is answered from the state and never logged.
    #[must_use]
    pub fn is_read(&self) -> bool {
        matches!(
            self,
            Self::LockInfo(_)
                | Self::QInfo(_)
                | Self::Get(_)
                | Self::Exists(_)
                | Self::Ttl(_)
                | Self::CacheInfo(_)
        )
    }

    /// The keys that the command may change.
    #[must_use]
    pub fn writes(&self) -> &[Bytes] {
        match self {
            Self::Set(Set { key, .. }) | Self::Incr(Incr { key, .. }) | Self::Expire(Expire { key, .. }) => {
                core::slice::from_ref(key)
            }
            Self::Del(keys) => keys,
            _ => &[],
        }
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
            _ => false,
        }
    }

    /// Milliseconds that the command may rightly stay unanswered.
    #[must_use]
    pub fn patience(&self) -> u64 {
        match self {
            Self::Lock(lock) => lock.wait,
            Self::Fetch(fetch) => fetch.block,
            _ => 0,
        }
    }

    /// Whether the answer may be large.
    #[must_use]
    pub fn may_answer_much(&self) -> bool {
        match self {
            Self::Get(_) | Self::Fetch(_) | Self::LockInfo(_) => true,
            Self::Set(set) => set.get,
            _ => false,
        }
    }

    /// Bytes that the command holds on to.
    #[must_use]
    pub fn weight(&self) -> usize {
        let many = |names: &[Bytes]| names.iter().map(Bytes::len).sum();
        64 + match self {
            Self::Lock(op) => op.name.len() + op.owner.as_ref().map_or(0, Bytes::len),
            Self::Pub(op) => op.topic.len() + op.body.len() + op.dedupe.as_ref().map_or(0, Bytes::len),
            Self::Ack(op) => op.topic.len() + 16 * op.receipts.len(),
            Self::QSet(op) => op.topic.len() + op.dlq.as_ref().map_or(0, Bytes::len),
            Self::Set(op) => op.key.len() + op.value.len(),
            Self::Del(keys) | Self::Exists(keys) => many(keys),
            other => match other.home() {
                Home::Key(name) | Home::Topic(name) => name.len(),
                _ => 256,
            },
        }
    }
}

/// Slots of Redis Cluster; a partition is a contiguous range of them.
const SLOTS: u32 = 16_384;

/// The partition (group 1 and up) of a key or topic. `{tag}` pins names together, as in Redis Cluster:
/// if the name holds a `{`, and a `}` after it with something between, only that something is hashed.
///
/// Source: Redis Cluster specification, "Hash tags"; CRC16 is CRC-16/XMODEM.
///
/// # Panics
/// When `partitions` is 0.
#[must_use]
pub fn partition_of(name: &[u8], partitions: u16) -> GroupId {
    let slot = slot_of(name);
    let partition = u32::from(slot) * u32::from(partitions) / SLOTS;
    GroupId(1 + u16::try_from(partition).expect("below the number of partitions"))
}

/// What a topic's dead letters are called, unless QSET DLQ says otherwise: the topic's name and this.
pub const DEAD_LETTERS: &[u8] = b".dlq";

/// The partition of a topic. Dead letters lie in the partition of the topic that they are called after.
#[must_use]
pub fn partition_of_topic(name: &[u8], partitions: u16) -> GroupId {
    partition_of(name.strip_suffix(DEAD_LETTERS).unwrap_or(name), partitions)
}

/// The Redis Cluster slot of a name: 0..16384.
#[must_use]
pub fn slot_of(name: &[u8]) -> u16 {
    crc16(tag_of(name)) & 0x3fff
}

fn tag_of(name: &[u8]) -> &[u8] {
    let Some(open) = name.iter().position(|&b| b == b'{') else { return name };
    let rest = &name[open + 1..];
    match rest.iter().position(|&b| b == b'}') {
        Some(len) if len > 0 => &rest[..len],
        _ => name,
    }
}

const CRC16: [u16; 256] = crc16_table();

#[allow(clippy::cast_possible_truncation, reason = "i stays below 256; TryFrom is not const")]
const fn crc16_table() -> [u16; 256] {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = (i as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
}

fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, &byte| (crc << 8) ^ CRC16[usize::from((crc >> 8) as u8 ^ byte)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Wire;

    #[test]
    fn slots_agree_with_redis_cluster() {
        // `CLUSTER KEYSLOT` of Redis 7.
        assert_eq!(slot_of(b"123456789"), 0x31C3);
        assert_eq!(slot_of(b"foo"), 12182);
        assert_eq!(slot_of(b"{foo}bar"), 12182);
        assert_eq!(slot_of(b"{}foo"), crc16(b"{}foo") & 0x3fff);
    }

    #[test]
    fn every_partition_is_reached_and_none_beyond() {
        let mut seen = [0u32; 17];
        for n in 0..4096 {
            seen[partition_of(format!("key:{n}").as_bytes(), 16).slot()] += 1;
        }
        assert_eq!(seen[0], 0);
        assert!(seen[1..].iter().all(|&n| n > 128), "{seen:?}");
    }

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
