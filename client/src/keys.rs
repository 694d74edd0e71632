//! Keys.

use std::time::Duration;

use bytes::Bytes;
use quorate_protocol::reply::Reply;

use crate::call::millis;
use crate::session::Again;
use crate::values::{bytes, flag, int, maybe, number, option, unexpected, yes};
use crate::{Client, Error};

#[derive(Debug, Clone, Copy, Default)]
enum When {
    #[default]
    Always,
    Absent,
    Present,
    Version(u64),
}

#[derive(Debug, Clone, Copy, Default)]
enum Expiry {
    #[default]
    Never,
    Keep,
    After(Duration),
}

/// On what a write depends, and how long the value lives. By default: on nothing, for ever.
#[derive(Debug, Clone, Default)]
pub struct Set {
    when: When,
    expiry: Expiry,
    back: bool,
    fence: Option<(Bytes, u64)>,
}

impl Set {
    /// Only if the key does not exist.
    #[must_use]
    pub fn if_absent(mut self) -> Self {
        self.when = When::Absent;
        self
    }

    /// Only if the key exists.
    #[must_use]
    pub fn if_present(mut self) -> Self {
        self.when = When::Present;
        self
    }

    /// Only if the key has this version; 0: only if it does not exist.
    #[must_use]
    pub fn if_version(mut self, version: u64) -> Self {
        self.when = When::Version(version);
        self
    }

    /// The key vanishes after this time; whole milliseconds, at least one.
    #[must_use]
    pub fn expires_in(mut self, time: Duration) -> Self {
        self.expiry = Expiry::After(time);
        self
    }

    /// The key's deadline stays as it is.
    #[must_use]
    pub fn keep_ttl(mut self) -> Self {
        self.expiry = Expiry::Keep;
        self
    }

    /// WRITEBACK: the client's node may answer from its own memory, and write later, once for many: fast where one client writes a key
    /// often. **A crash, pause or partition of the node may undo up to the last 100 ms of such writes.** When the connection breaks
    /// under it the outcome is [`Error::InDoubt`], as it is outside the session. With a deadline it is written as without
    /// WRITEBACK; the server refuses it with a condition.
    #[must_use]
    pub fn write_back(mut self) -> Self {
        self.back = true;
        self
    }

    /// FENCE: only if nobody has been granted the lock since this token of it was: who held it before is answered an error with the code
    /// FENCED, however late the write comes. [`Held`](crate::Held) has name and token.
    #[must_use]
    pub fn fenced(mut self, lock: impl Into<Bytes>, token: u64) -> Self {
        self.fence = Some((lock.into(), token));
        self
    }

    /// In the session a write takes effect once, which only the key's home can see to: no node would answer it by itself.
    fn again(&self) -> Again {
        match self {
            Self { when: When::Always, expiry: Expiry::Never, back: true, fence: None } => Again::IfRefused,
            _ => Again::InSession,
        }
    }

    fn args(self, key: Bytes, value: Bytes) -> Vec<Bytes> {
        let mut args = vec![key, value];
        match self.when {
            When::Always => {}
            When::Absent => flag(&mut args, "NX", true),
            When::Present => flag(&mut args, "XX", true),
            When::Version(version) => option(&mut args, "IFVER", Some(version)),
        }
        match self.expiry {
            Expiry::Never => {}
            Expiry::Keep => flag(&mut args, "KEEPTTL", true),
            Expiry::After(time) => option(&mut args, "PX", Some(millis(time))),
        }
        flag(&mut args, "WRITEBACK", self.back);
        if let Some((lock, token)) = self.fence {
            args.extend([Bytes::from_static(b"FENCE"), lock, Bytes::from(token.to_string())]);
        }
        args
    }
}

/// What came of a read for which somebody fills a missing key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filled {
    /// The value, and its version, for [`Set::if_version`].
    Value(Bytes, u64),
    /// There is none, and it is the caller who is to write it: with `Set::if_version(0)`, in the time that it named.
    Lead,
}

/// How long a key still lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ttl {
    /// There is no such key.
    Absent,
    /// It has no deadline.
    Forever,
    /// It vanishes after this time.
    Left(Duration),
}

/// Value, version, and whether it is the caller who is to write it.
fn versioned(reply: Reply) -> Result<(Option<Bytes>, u64, bool), Error> {
    let Reply::Array(fields) = &reply else { return Err(unexpected(reply)) };
    let [value, version, lead] = &fields[..] else { return Err(unexpected(reply)) };
    Ok((maybe(value.clone(), bytes)?, number(version.clone())?, yes(lead.clone())?))
}

impl Client {
    /// GET: the value, or none. Never older than what any client was told is written.
    ///
    /// # Errors
    /// As every call.
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Bytes>, Error> {
        maybe(self.ask("GET", vec![key.into()], Again::Read).await?, bytes)
    }

    /// GETV: the value with its version, for [`Set::if_version`]; none without such a key.
    ///
    /// # Errors
    /// As every call.
    pub async fn get_versioned(&self, key: impl Into<Bytes>) -> Result<Option<(Bytes, u64)>, Error> {
        match versioned(self.ask("GETV", vec![key.into()], Again::Read).await?)? {
            (Some(value), version, _) => Ok(Some((value, version))),
            _ => Ok(None),
        }
    }

    /// GETV with FILL: the value, or the task to write it within `time` (whole milliseconds, at least one), which one
    /// caller has at a time. The others wait until it is written, or until they have the task themselves: because the
    /// time is over, or the connection of whoever had it has ended.
    ///
    /// # Errors
    /// `BUSY` when too many wait already.
    pub async fn get_or_lead(&self, key: impl Into<Bytes>, time: Duration) -> Result<Filled, Error> {
        let mut args = vec![key.into()];
        option(&mut args, "FILL", Some(millis(time).max(1)));
        match versioned(self.ask_waiting("GETV", args, Again::Read, time).await?)? {
            (Some(value), version, _) => Ok(Filled::Value(value, version)),
            (None, _, true) => Ok(Filled::Lead),
            (None, ..) => Err(unexpected(Reply::Nil)),
        }
    }

    /// SET: true when it is written, durable on a majority unless it is [`Set::write_back`]; false when the condition does not hold.
    ///
    /// # Errors
    /// As every call.
    pub async fn set(&self, key: impl Into<Bytes>, value: impl Into<Bytes>, how: Set) -> Result<bool, Error> {
        let again = how.again();
        match self.ask("SET", how.args(key.into(), value.into()), again).await? {
            Reply::Nil => Ok(false),
            reply if reply == Reply::OK => Ok(true),
            other => Err(unexpected(other)),
        }
    }

    /// SET with GET: writes, and returns the value before it, whether or not the condition held.
    ///
    /// # Errors
    /// As every call.
    pub async fn swap(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
        how: Set,
    ) -> Result<Option<Bytes>, Error> {
        let mut args = how.args(key.into(), value.into());
        flag(&mut args, "GET", true);
        maybe(self.ask("SET", args, Again::InSession).await?, bytes)
    }

    /// DEL of up to 1024 keys: how many existed. Each partition removes its own at one log position; keys of
    /// several partitions are not removed as one.
    ///
    /// # Errors
    /// As every call.
    pub async fn del<K: Into<Bytes>>(&self, keys: impl IntoIterator<Item = K>) -> Result<u64, Error> {
        let keys = keys.into_iter().map(Into::into).collect();
        number(self.ask("DEL", keys, Again::InSession).await?)
    }

    /// EXISTS of up to 1024 keys: how many there are.
    ///
    /// # Errors
    /// As every call.
    pub async fn exists<K: Into<Bytes>>(&self, keys: impl IntoIterator<Item = K>) -> Result<u64, Error> {
        let keys = keys.into_iter().map(Into::into).collect();
        number(self.ask("EXISTS", keys, Again::Read).await?)
    }

    /// INCRBY: adds to the number at a key (0 without one); the new number.
    ///
    /// # Errors
    /// `ERR` when the value is no number, or the sum would not fit.
    pub async fn incr(&self, key: impl Into<Bytes>, by: i64) -> Result<i64, Error> {
        let args = vec![key.into(), Bytes::from(by.to_string())];
        int(self.ask("INCRBY", args, Again::InSession).await?)
    }

    /// PEXPIRE: gives a key a deadline, or removes it at once if `time` is zero; false without such a key.
    ///
    /// # Errors
    /// As every call.
    pub async fn expire(&self, key: impl Into<Bytes>, time: Duration) -> Result<bool, Error> {
        let args = vec![key.into(), Bytes::from(millis(time).to_string())];
        yes(self.ask("PEXPIRE", args, Again::InSession).await?)
    }

    /// PTTL: how long a key still lives.
    ///
    /// # Errors
    /// As every call.
    pub async fn ttl(&self, key: impl Into<Bytes>) -> Result<Ttl, Error> {
        match int(self.ask("PTTL", vec![key.into()], Again::Read).await?)? {
            -2 => Ok(Ttl::Absent),
            -1 => Ok(Ttl::Forever),
            left => Ok(Ttl::Left(Duration::from_millis(left.max(0).unsigned_abs()))),
        }
    }
}
