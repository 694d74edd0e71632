//! What the answer to a write says of whether it was done.
//!
//! Charter: for who has to know whether a command changed its keys, and sees nothing but the answer.
//!
//! Invariant: an answer that says "done" is never given by a command that left one of its keys as it was. Where the same
//! answer may mean both, it does not say so. `engine/src/store/tests.rs` compares this with what is done.

use super::{Expiry, FencedSet, MSet, Op, Set, SetRange, When};
use crate::reply::Reply;

/// The answer that a command gives only if all its keys were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// None does.
    Never,
    /// All but errors.
    Always,
    /// OK.
    Ok,
    /// Nil: the old value, where the condition is that there is none.
    Nil,
    /// A value: the old one, where the condition is that there is one.
    Value,
    /// This number.
    Int(i64),
}

impl Done {
    /// Whether this answer says so.
    #[must_use]
    pub fn is_said_by(self, reply: &Reply) -> bool {
        match self {
            Self::Never => false,
            Self::Always => reply.failure().is_none(),
            Self::Ok => *reply == Reply::OK,
            Self::Nil => *reply == Reply::Nil,
            Self::Value => matches!(reply, Reply::Bulk(_)),
            Self::Int(number) => *reply == Reply::Int(number),
        }
    }
}

impl Op {
    /// Which answer says that all keys of a write were written. Of a transaction each command has its own.
    #[must_use]
    pub fn done(&self) -> Done {
        match self {
            Self::Set(set) | Self::FencedSet(FencedSet { set, .. }) => set.done(),
            Self::SetBack(_) | Self::MSet(MSet { absent: false, .. }) => Done::Ok,
            Self::MSet(MSet { absent: true, .. })
            | Self::Expire(_)
            | Self::ExpireAt(_)
            | Self::Persist(_) => Done::Int(1),
            Self::Del(keys) => {
                let mut names: Vec<_> = keys.iter().collect();
                names.sort_unstable();
                names.dedup();
                // Fewer: one of them, and nobody says which, did not exist.
                Done::Int(i64::try_from(names.len()).unwrap_or(i64::MAX))
            }
            // These make the key if it is not there, and have no condition.
            Self::Incr(_) | Self::Append(_) => Done::Always,
            // As in Redis, nothing is no change.
            Self::SetRange(SetRange { value, .. }) if value.is_empty() => Done::Never,
            Self::SetRange(_) => Done::Always,
            Self::GetDel(_) => Done::Value,
            // PERSIST of a key without a deadline answers the value too.
            Self::GetEx(get) if get.expiry == Expiry::Never => Done::Never,
            Self::GetEx(_) => Done::Value,
            _ => Done::Never,
        }
    }
}

impl Set {
    fn done(&self) -> Done {
        match self.when {
            _ if !self.get => Done::Ok,
            When::Always => Done::Always,
            When::Absent | When::Version(0) => Done::Nil,
            When::Present => Done::Value,
            // A value there was, of this version or another.
            When::Version(_) => Done::Never,
        }
    }
}
