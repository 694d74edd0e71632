//! What a command is answered: one value type for every dialect, and the error codes.
//!
//! Invariant: a `Failure` with a code of `Code::never_proposed` says that the command was not, and will
//! never be, applied. Everything that cannot be known is `Code::InDoubt`.

use bytes::Bytes;

use crate::wire::{Malformed, Wire};
use crate::{wire_enum, wire_struct};

wire_enum! {
    /// The first word of an error.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub enum Code {
        /// The request is wrong as it stands.
        Err = 0,
        /// No leader with a majority can be reached; never proposed.
        ClusterDown = 1,
        /// A passing refusal; never proposed.
        TryAgain = 2,
        /// A bound is reached; never proposed.
        Busy = 3,
        /// The node is starting; never proposed.
        Loading = 4,
        /// The outcome is unknown: the command may or may not take effect.
        InDoubt = 5,
        /// Granting the wait would close a cycle of waiting owners.
        Deadlock = 6,
        /// Somebody else holds the lock.
        NotOwner = 7,
        /// The consumer group does not exist.
        NoGroup = 8,
        /// The key holds something else.
        WrongType = 9,
        /// The names lie in different partitions.
        CrossSlot = 10,
        /// The topic is full.
        QFull = 11,
        /// A size limit is exceeded.
        TooBig = 12,
        /// Authentication is needed.
        NoAuth = 13,
        /// The principal may not do this.
        NoPerm = 14,
        /// The protocol version is not spoken here.
        NoProto = 15,
        /// The store is full; the leader said so before it proposed anything.
        Oom = 16,
        /// A newer fencing token exists.
        Fenced = 17,
        /// A transaction is given up because of what was queued.
        ExecAbort = 18,
    }
}

impl Code {
    /// The code as it is written, in upper case.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Err => "ERR",
            Self::ClusterDown => "CLUSTERDOWN",
            Self::TryAgain => "TRYAGAIN",
            Self::Busy => "BUSY",
            Self::Loading => "LOADING",
            Self::InDoubt => "INDOUBT",
            Self::Deadlock => "DEADLOCK",
            Self::NotOwner => "NOTOWNER",
            Self::NoGroup => "NOGROUP",
            Self::WrongType => "WRONGTYPE",
            Self::CrossSlot => "CROSSSLOT",
            Self::QFull => "QFULL",
            Self::TooBig => "TOOBIG",
            Self::NoAuth => "NOAUTH",
            Self::NoPerm => "NOPERM",
            Self::NoProto => "NOPROTO",
            Self::Oom => "OOM",
            Self::Fenced => "FENCED",
            Self::ExecAbort => "EXECABORT",
        }
    }

    /// Whether the code promises that the command never takes effect and may be sent again.
    #[must_use]
    pub fn never_proposed(self) -> bool {
        matches!(self, Self::ClusterDown | Self::TryAgain | Self::Busy | Self::Loading)
    }

    /// Whether the code says that the sending which it answers was not proposed. -OOM says so too, but what stands behind
    /// it goes on, and sending it again at once is of no use.
    #[must_use]
    pub fn turned_away(self) -> bool {
        self.never_proposed() || self == Self::Oom
    }
}

wire_struct! {
    /// An error reply: the code, and a sentence that says what to do next.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Failure {
        /// The first word.
        pub code: Code,
        /// The sentence after it; one line.
        pub text: String,
    }
}

impl core::fmt::Display for Failure {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} {}", self.code.word(), self.text)
    }
}

/// A command's answer, before it is put into a dialect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Nothing: contention, emptiness, absence.
    Nil,
    /// `OK` and its kind: a word.
    Status(&'static str),
    /// A number.
    Int(i64),
    /// Bytes.
    Bulk(Bytes),
    /// A refusal.
    Error(Box<Failure>),
    /// Values in order.
    Array(Vec<Reply>),
    /// Names and values; an array of twice the length in RESP2.
    Map(Vec<(Reply, Reply)>),
}

impl Reply {
    /// The reply of success without a value.
    pub const OK: Self = Self::Status("OK");

    /// An error reply.
    pub fn error(code: Code, text: impl Into<String>) -> Self {
        Self::Error(Box::new(Failure { code, text: text.into() }))
    }

    /// A text value.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Bulk(Bytes::from(text.into()))
    }

    /// A count or number that is known to fit.
    ///
    /// # Panics
    /// When `n` is above `i64::MAX`, which no counter of ours reaches.
    #[must_use]
    pub fn int(n: u64) -> Self {
        Self::Int(i64::try_from(n).expect("counters stay below 2^63"))
    }

    /// Bytes that it holds on to, about.
    #[must_use]
    pub fn weight(&self) -> usize {
        match self {
            Self::Bulk(bytes) => bytes.len(),
            Self::Array(values) => values.iter().map(|value| 32 + value.weight()).sum(),
            Self::Map(pairs) => pairs.iter().map(|(name, value)| 64 + name.weight() + value.weight()).sum(),
            Self::Error(failure) => failure.text.len(),
            Self::Nil | Self::Int(_) | Self::Status(_) => 0,
        }
    }

    /// The failure, if the reply is one.
    #[must_use]
    pub fn failure(&self) -> Option<&Failure> {
        if let Self::Error(failure) = self { Some(failure) } else { None }
    }

    /// Whether the reply promises that the command never takes effect.
    #[must_use]
    pub fn never_proposed(&self) -> bool {
        self.failure().is_some_and(|f| f.code.never_proposed())
    }

    /// Whether the leader has turned the command away: it was not proposed, for a reason that passes or for want of room.
    #[must_use]
    pub fn turned_away(&self) -> bool {
        self.failure().is_some_and(|f| f.code.turned_away())
    }
}

/// Words that may stand in `Reply::Status`; their position is their number in the notation.
const STATUS_WORDS: [&str; 6] = ["OK", "PONG", "QUEUED", "RESET", "string", "none"];

/// How deep replies may nest; no command of ours goes beyond four.
const MAX_DEPTH: u8 = 8;

impl Wire for Reply {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Nil => out.push(0),
            Self::Status(word) => {
                let at = STATUS_WORDS.iter().position(|w| w == word).expect("a word of STATUS_WORDS");
                out.push(1);
                out.push(u8::try_from(at).expect("few words"));
            }
            Self::Int(n) => {
                out.push(2);
                n.put(out);
            }
            Self::Bulk(bytes) => {
                out.push(3);
                bytes.put(out);
            }
            Self::Error(failure) => {
                out.push(4);
                failure.put(out);
            }
            Self::Array(values) => {
                out.push(5);
                values.put(out);
            }
            Self::Map(pairs) => {
                out.push(6);
                pairs.put(out);
            }
        }
    }

    fn take(input: &mut Bytes) -> Result<Self, Malformed> {
        take_reply(input, 0)
    }
}

fn take_reply(input: &mut Bytes, depth: u8) -> Result<Reply, Malformed> {
    if depth > MAX_DEPTH {
        return Err(Malformed("reply nested too deep"));
    }
    Ok(match u8::take(input)? {
        0 => Reply::Nil,
        1 => {
            let at = usize::from(u8::take(input)?);
            Reply::Status(STATUS_WORDS.get(at).ok_or(Malformed("unknown status word"))?)
        }
        2 => Reply::Int(i64::take(input)?),
        3 => Reply::Bulk(Bytes::take(input)?),
        4 => Reply::Error(Box::new(Failure::take(input)?)),
        5 => {
            let count = u32::take(input)? as usize;
            let mut values = Vec::new();
            for _ in 0..count {
                values.push(take_reply(input, depth + 1)?);
            }
            Reply::Array(values)
        }
        6 => {
            let count = u32::take(input)? as usize;
            let mut pairs = Vec::new();
            for _ in 0..count {
                pairs.push((take_reply(input, depth + 1)?, take_reply(input, depth + 1)?));
            }
            Reply::Map(pairs)
        }
        _ => return Err(Malformed("unknown tag of Reply")),
    })
}
