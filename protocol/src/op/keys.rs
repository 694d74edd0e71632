//! What commands about keys say.
//!
//! Invariant: no replica looks at a wall clock. Absolute times come as the client gave them and are turned into group
//! time by the leader that logs them (`Op::set_epoch`); after that they mean the same everywhere and for ever.

use bytes::Bytes;

use super::Op;
use crate::wire::{Malformed, Wire};
use crate::{wire_enum, wire_struct};

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
    /// A point in time.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Moment {
        /// Milliseconds since 1970, as a client says it. Never in a log.
        Unix(ms: u64) = 0,
        /// Group time in milliseconds.
        Group(ms: u64) = 1,
    }
}

impl Moment {
    /// The moment in group time. `epoch`: what the wall clock shows at group time 0, in milliseconds since 1970.
    #[must_use]
    pub fn in_group(self, epoch: i64) -> Self {
        match self {
            Self::Unix(ms) => {
                let ms = i64::try_from(ms).unwrap_or(i64::MAX).saturating_sub(epoch);
                Self::Group(u64::try_from(ms).unwrap_or(0))
            }
            Self::Group(ms) => Self::Group(ms),
        }
    }
}

wire_enum! {
    /// What a SET or GETEX does to the key's deadline.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Expiry {
        /// None from now on.
        Never = 0,
        /// `KEEPTTL`: as it was.
        Keep = 1,
        /// `EX`, `PX`: milliseconds from now; above 0.
        After(ms: u64) = 2,
        /// `EXAT`, `PXAT`: then. What lies in the past lets the key vanish at once.
        At(moment: Moment) = 3,
    }
}

impl Expiry {
    fn set_epoch(&mut self, epoch: i64) {
        if let Self::At(moment) = self {
            *moment = moment.in_group(epoch);
        }
    }
}

wire_enum! {
    /// On which deadline of the key an EXPIRE depends. No deadline counts as one that never comes.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Only {
        /// On none.
        Always = 0,
        /// `NX`: there is none.
        Absent = 1,
        /// `XX`: there is one.
        Present = 2,
        /// `GT`: the new one is later.
        Later = 3,
        /// `LT`: the new one is earlier.
        Earlier = 4,
        /// `XX LT`: there is one, and the new one is earlier.
        PresentEarlier = 5,
    }
}

wire_struct! {
    /// `SET key value [NX|XX|IFVER n] [EX s|PX ms|EXAT s|PXAT ms|KEEPTTL] [GET]`
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
    /// What a fenced write is compared with: whoever presents a lower token than the lock's newest holder has is refused.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Fence {
        /// The lock.
        pub lock: Bytes,
        /// The token of a grant of it.
        pub token: u64,
        /// What the system group has said of the lock; the node adds it, not the client.
        pub watch: Option<Watch>,
    }
}

wire_struct! {
    /// The system group's promise to tell a partition of a lock's grants before they are answered.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Watch {
        /// Rises with every watch of any lock, never used twice.
        pub number: u64,
        /// The lowest token that was good when the watch began.
        pub floor: u64,
    }
}

wire_struct! {
    /// `SET ... FENCE lock token`
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct FencedSet {
        /// What must hold.
        pub fence: Fence,
        /// What it does then.
        pub set: Set,
    }
}

wire_struct! {
    /// `GETV key FILL ms`
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct FillV {
        /// The key.
        pub key: Bytes,
        /// Milliseconds that whoever is to fill it has for that; above 0.
        pub ms: u64,
    }
}

wire_struct! {
    /// `SET key value WRITEBACK`, and no other option: whoever asks for it may get the key's line as its own.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct SetBack {
        /// The key.
        pub key: Bytes,
        /// The value.
        pub value: Bytes,
    }
}

wire_struct! {
    /// What a node brings of a line that it owns: nothing is done unless the key's version is still the one that the
    /// node's own writes began with. Said by nodes only.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Flush {
        /// The key.
        pub key: Bytes,
        /// The newest value that the node has acknowledged.
        pub value: Bytes,
        /// The version; never 0.
        pub base: u64,
    }
}

wire_struct! {
    /// `MSET key value …`, `MSETNX key value …`, `SETNX key value`
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct MSet {
        /// Keys and values; at least one.
        pub pairs: Vec<(Bytes, Bytes)>,
        /// Only if none of the keys exists; answers 1 or 0. All keys lie in one partition then.
        pub absent: bool,
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
    /// `APPEND key value`
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Append {
        /// The key.
        pub key: Bytes,
        /// What is added to its value.
        pub value: Bytes,
    }
}

wire_struct! {
    /// `SETRANGE key offset value`
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct SetRange {
        /// The key.
        pub key: Bytes,
        /// Where the value is written; what is missing before it is filled with zeros.
        pub offset: u64,
        /// What is written there.
        pub value: Bytes,
    }
}

wire_struct! {
    /// `GETRANGE key start end`
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct GetRange {
        /// The key.
        pub key: Bytes,
        /// The first byte; below 0 it is counted from the end.
        pub start: i64,
        /// The last byte, likewise.
        pub end: i64,
    }
}

wire_struct! {
    /// `GETEX key EX s|PX ms|EXAT s|PXAT ms|PERSIST`
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct GetEx {
        /// The key.
        pub key: Bytes,
        /// Its new deadline.
        pub expiry: Expiry,
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
        /// The condition.
        pub only: Only,
    }
}

wire_struct! {
    /// `EXPIREAT key s`, `PEXPIREAT key ms`
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct ExpireAt {
        /// The key.
        pub key: Bytes,
        /// When; what lies in the past deletes the key.
        pub at: Moment,
        /// The condition.
        pub only: Only,
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
    /// `EXPIRETIME key` (seconds since 1970), `PEXPIRETIME key` (milliseconds)
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct ExpireTime {
        /// The key.
        pub key: Bytes,
        /// Milliseconds instead of seconds.
        pub millis: bool,
        /// What the leader's wall clock shows at group time 0, in milliseconds since 1970; the leader fills it in.
        pub epoch: i64,
    }
}

wire_struct! {
    /// `SCAN cursor [MATCH p] [COUNT n] [TYPE t]`
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Scan {
        /// Where to go on; see `Cursor`.
        pub cursor: u64,
        /// Which keys are shown; none: all.
        pub pattern: Option<Bytes>,
        /// Keys that are looked at, about.
        pub count: u32,
        /// Of a type that no key has: nothing is shown.
        pub none: bool,
    }
}

/// A place among all keys, as SCAN gives it out: a partition, and there the place of a key's hash. 0 is the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// The partition's number, from 1.
    pub partition: u16,
    /// The upper 56 bits of the first hash that is not shown yet.
    pub hash: u64,
}

/// Bits of a cursor's hash.
const CURSOR_HASH: u32 = 56;

impl Cursor {
    /// What a client has sent; none if no SCAN has given it out.
    #[must_use]
    pub fn read(number: u64) -> Option<Self> {
        if number == 0 {
            return Some(Self { partition: 1, hash: 0 });
        }
        let partition = u16::try_from(number >> CURSOR_HASH).ok()?;
        (partition > 0).then_some(Self { partition, hash: number & ((1 << CURSOR_HASH) - 1) })
    }

    /// The number that a client gets. It fits a signed one.
    #[must_use]
    pub fn number(self) -> u64 {
        (u64::from(self.partition) << CURSOR_HASH) | self.hash
    }
}

wire_struct! {
    /// `MULTI` … `EXEC`: commands that take effect together, at one place in the log of one partition.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Multi {
        /// Keys that were watched, with their versions then (0: it did not exist). Another version now: nothing is done.
        pub watched: Vec<(Bytes, u64)>,
        /// The commands.
        pub commands: Commands,
    }
}

/// Commands of a transaction; each one for which `Op::may_be_queued` holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commands(pub Vec<Op>);

impl Wire for Commands {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
    }

    fn take(input: &mut Bytes) -> Result<Self, Malformed> {
        let count = u32::take(input)?;
        let mut commands = Vec::new();
        for _ in 0..count {
            // Looked at first: transactions do not nest, and bytes from outside must not make this function do so.
            if input.first() == Some(&Op::MULTI_TAG) {
                return Err(Malformed("a transaction in a transaction"));
            }
            let op = Op::take(input)?;
            if !op.may_be_queued() {
                return Err(Malformed("a command that cannot be part of a transaction"));
            }
            commands.push(op);
        }
        Ok(Self(commands))
    }
}

impl Op {
    /// The tag of `Op::Multi` in the notation.
    const MULTI_TAG: u8 = 57;

    /// Whether it may be part of a transaction: the keys that it names, in one partition, decide it.
    #[must_use]
    pub fn may_be_queued(&self) -> bool {
        matches!(
            self,
            Self::Get(_)
                | Self::GetV(_)
                | Self::GetDel(_)
                | Self::GetEx(_)
                | Self::GetRange(_)
                | Self::MGet(_)
                | Self::Set(_)
                | Self::SetBack(_)
                | Self::FencedSet(_)
                | Self::SetRange(_)
                | Self::MSet(_)
                | Self::Append(_)
                | Self::Incr(_)
                | Self::Del(_)
                | Self::Exists(_)
                | Self::Strlen(_)
                | Self::Type(_)
                | Self::Expire(_)
                | Self::ExpireAt(_)
                | Self::ExpireTime(_)
                | Self::Persist(_)
                | Self::Ttl(_)
        )
    }

    /// Turns times by the wall clock into group time. `epoch`: what the wall clock shows at group time 0, in
    /// milliseconds since 1970.
    pub fn set_epoch(&mut self, epoch: i64) {
        match self {
            Self::Set(set) | Self::FencedSet(FencedSet { set, .. }) => set.expiry.set_epoch(epoch),
            Self::GetEx(get) => get.expiry.set_epoch(epoch),
            Self::ExpireAt(expire) => expire.at = expire.at.in_group(epoch),
            Self::ExpireTime(read) => read.epoch = epoch,
            Self::Multi(multi) => multi.commands.0.iter_mut().for_each(|op| op.set_epoch(epoch)),
            _ => {}
        }
    }

    /// The fences that it depends on.
    pub fn fences(&self) -> impl Iterator<Item = &Fence> {
        let queued =
            if let Self::Multi(multi) = self { &multi.commands.0[..] } else { core::slice::from_ref(self) };
        queued.iter().filter_map(|op| if let Self::FencedSet(op) = op { Some(&op.fence) } else { None })
    }

    /// As `fences`, to be changed.
    pub fn fences_mut(&mut self) -> impl Iterator<Item = &mut Fence> {
        let queued = if let Self::Multi(multi) = self {
            &mut multi.commands.0[..]
        } else {
            core::slice::from_mut(self)
        };
        queued
            .iter_mut()
            .filter_map(|op| if let Self::FencedSet(op) = op { Some(&mut op.fence) } else { None })
    }

    /// The keys that it names, as often as it does.
    #[must_use]
    pub fn keys(&self) -> Vec<&Bytes> {
        match self {
            Self::Multi(multi) => {
                let queued = multi.commands.0.iter().flat_map(Self::keys);
                multi.watched.iter().map(|(key, _)| key).chain(queued).collect()
            }
            Self::MSet(MSet { pairs, .. }) => pairs.iter().map(|(key, _)| key).collect(),
            Self::Del(keys) | Self::Exists(keys) | Self::MGet(keys) | Self::Versions(keys) => {
                keys.iter().collect()
            }
            op => op.key().into_iter().collect(),
        }
    }

    /// The key of a command that is about one.
    #[must_use]
    pub fn key(&self) -> Option<&Bytes> {
        match self {
            Self::Get(key)
            | Self::CacheInfo(key)
            | Self::GetDel(key)
            | Self::Strlen(key)
            | Self::Persist(key)
            | Self::Type(key)
            | Self::GetV(key)
            | Self::FillV(FillV { key, .. })
            | Self::Set(Set { key, .. })
            | Self::FencedSet(FencedSet { set: Set { key, .. }, .. })
            | Self::SetBack(SetBack { key, .. })
            | Self::Flush(Flush { key, .. })
            | Self::Incr(Incr { key, .. })
            | Self::Append(Append { key, .. })
            | Self::SetRange(SetRange { key, .. })
            | Self::GetRange(GetRange { key, .. })
            | Self::GetEx(GetEx { key, .. })
            | Self::Expire(Expire { key, .. })
            | Self::ExpireAt(ExpireAt { key, .. })
            | Self::ExpireTime(ExpireTime { key, .. })
            | Self::Ttl(Ttl { key, .. }) => Some(key),
            _ => None,
        }
    }
}
