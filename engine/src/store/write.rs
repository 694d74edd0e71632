//! What changes keys.
//!
//! Sources: the command pages of Redis 7.4, and its own answers (`tests/suites/compat.rs` compares).

use alloc::format;
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::limits::VALUE_MAX;
use quorate_protocol::op::{
    Append, Expire, ExpireAt, Expiry, Flush, GetEx, Incr, MSet, Moment, Only, Set, SetBack, SetRange, When,
};
use quorate_protocol::reply::{Code, Reply};

use super::{Store, cost};
use crate::outcome::Ctx;

impl Store {
    /// SET
    pub(super) fn set(&mut self, ctx: &Ctx, op: Set) -> Reply {
        self.remove_overdue(ctx, &op.key);
        let old = self.seen(&op.key, ctx.time);
        let holds = match op.when {
            When::Always => true,
            When::Absent => old.is_none(),
            When::Present => old.is_some(),
            When::Version(version) => old.map_or(0, |row| row.version) == version,
        };
        #[cfg(feature = "faults")]
        let holds = holds || self.faults.conditions_ignored;
        let was = op.get.then(|| old.map_or(Reply::Nil, |row| Reply::Bulk(row.value.clone())));
        if !holds {
            return was.unwrap_or(Reply::Nil);
        }
        let old = old.and_then(|row| row.deadline);
        let deadline = deadline(ctx, op.expiry, old);
        #[cfg(feature = "faults")]
        let deadline = deadline.map(|deadline| deadline - u64::from(self.faults.early_end));
        if let Err(full) = self.check_room(self.growth(ctx, &op.key, op.value.len())) {
            return full;
        }
        self.put_until(ctx, &op.key, op.value, deadline, old);
        was.unwrap_or(Reply::OK)
    }

    /// SET WRITEBACK that is written through
    pub(super) fn set_back(&mut self, ctx: &Ctx, op: SetBack) -> Reply {
        let SetBack { key, value } = op;
        self.set(ctx, Set { key, value, when: When::Always, expiry: Expiry::Never, get: false })
    }

    /// What a line's owner has acknowledged. Answers the key's version: the new one, or the negative of the present one
    /// when the owner's writes did not begin with it, and nothing is done.
    ///
    /// A full store is no reason to refuse it: it has been acknowledged. How far that can go is bounded by what owners
    /// may take on (`cache/holder/owning.rs`).
    pub(super) fn bring(&mut self, ctx: &Ctx, op: &Flush) -> Reply {
        let (version, deadline) = self.line(&op.key, ctx.time);
        let holds = op.base != 0 && version == op.base;
        #[cfg(feature = "faults")]
        let holds = holds || self.faults.brought_blindly;
        if !holds {
            return Reply::Int(-i64::try_from(version).unwrap_or(i64::MAX));
        }
        self.put(ctx, &op.key, op.value.clone(), deadline);
        Reply::int(ctx.at.serial())
    }

    /// MSET, MSETNX, SETNX
    pub(super) fn mset(&mut self, ctx: &Ctx, op: MSet) -> Reply {
        let MSet { pairs, absent } = op;
        if absent && pairs.iter().any(|(key, _)| self.seen(key, ctx.time).is_some()) {
            return Reply::Int(0);
        }
        let grows = pairs.iter().map(|(key, value)| self.growth(ctx, key, value.len())).sum();
        if let Err(full) = self.check_room(grows) {
            return full;
        }
        for (key, value) in pairs {
            self.put(ctx, &key, value, None);
        }
        if absent { Reply::Int(1) } else { Reply::OK }
    }

    /// DEL
    pub(super) fn del(&mut self, ctx: &Ctx, keys: &[Bytes]) -> Reply {
        #[cfg(feature = "faults")]
        if self.faults.lost_delete {
            return Reply::Int(1);
        }
        let mut gone = 0u64;
        for key in keys {
            self.remove_overdue(ctx, key);
            gone += u64::from(self.remove(key));
        }
        Reply::int(gone)
    }

    /// INCR and its kind: a number is stored as its decimal digits.
    pub(super) fn incr(&mut self, ctx: &Ctx, op: Incr) -> Reply {
        self.remove_overdue(ctx, &op.key);
        let old = self.seen(&op.key, ctx.time);
        let deadline = old.and_then(|row| row.deadline);
        let Some(number) = old.map_or(Some(0), |row| parse_integer(&row.value)) else {
            return Reply::error(Code::Err, "value is not an integer or out of range");
        };
        let Some(sum) = number.checked_add(op.by) else {
            return Reply::error(Code::Err, "increment or decrement would overflow");
        };
        let value = Bytes::from(format!("{sum}"));
        if let Err(full) = self.check_room(self.growth(ctx, &op.key, value.len())) {
            return full;
        }
        self.put(ctx, &op.key, value, deadline);
        Reply::Int(sum)
    }

    /// APPEND
    pub(super) fn append(&mut self, ctx: &Ctx, op: &Append) -> Reply {
        let end = self.seen(&op.key, ctx.time).map_or(0, |row| row.value.len());
        // Redis makes the key also where nothing is added.
        self.overwrite(ctx, &op.key, end, &op.value)
    }

    /// SETRANGE
    pub(super) fn set_range(&mut self, ctx: &Ctx, op: &SetRange) -> Reply {
        if op.value.is_empty() {
            return Reply::int(self.seen(&op.key, ctx.time).map_or(0, |row| row.value.len()) as u64);
        }
        self.overwrite(ctx, &op.key, usize::try_from(op.offset).unwrap_or(usize::MAX), &op.value)
    }

    /// Writes a part of a value, and answers how long the whole is.
    fn overwrite(&mut self, ctx: &Ctx, key: &Bytes, offset: usize, part: &Bytes) -> Reply {
        self.remove_overdue(ctx, key);
        let old = self.seen(key, ctx.time);
        let end = offset.saturating_add(part.len());
        let length = end.max(old.map_or(0, |row| row.value.len()));
        if length > VALUE_MAX {
            return Reply::error(Code::Err, "string exceeds maximum allowed size (proto-max-bulk-len)");
        }
        if let Err(full) = self.check_room(self.growth(ctx, key, length)) {
            return full;
        }
        let mut value = Vec::with_capacity(length);
        value.extend_from_slice(old.map_or(&[], |row| &row.value));
        value.resize(length, 0);
        value[offset..end].copy_from_slice(part);
        let deadline = old.and_then(|row| row.deadline);
        self.put(ctx, key, value.into(), deadline);
        Reply::int(length as u64)
    }

    /// GETDEL
    pub(super) fn get_del(&mut self, ctx: &Ctx, key: &Bytes) -> Reply {
        let Some(row) = self.seen(key, ctx.time) else { return Reply::Nil };
        let value = row.value.clone();
        self.remove(key);
        Reply::Bulk(value)
    }

    /// GETEX
    pub(super) fn get_ex(&mut self, ctx: &Ctx, op: GetEx) -> Reply {
        let Some(row) = self.seen(&op.key, ctx.time) else { return Reply::Nil };
        let (value, old) = (row.value.clone(), row.deadline);
        let deadline = deadline(ctx, op.expiry, old);
        // As in Redis, PERSIST of a key without a deadline is no change; a new deadline is one, whatever it was.
        if deadline != old || op.expiry != Expiry::Never {
            self.put_until(ctx, &op.key, value.clone(), deadline, old);
        }
        Reply::Bulk(value)
    }

    /// EXPIRE and PEXPIRE
    pub(super) fn expire_in(&mut self, ctx: &Ctx, op: &Expire) -> Reply {
        let deadline = u64::try_from(op.ms).map_or(0, |ms| ctx.time.saturating_add(ms));
        self.expire_on(ctx, &op.key, deadline, op.only)
    }

    /// EXPIREAT and PEXPIREAT
    pub(super) fn expire_at(&mut self, ctx: &Ctx, op: &ExpireAt) -> Reply {
        self.expire_on(ctx, &op.key, group_time(op.at), op.only)
    }

    fn expire_on(&mut self, ctx: &Ctx, key: &Bytes, deadline: u64, only: Only) -> Reply {
        self.remove_overdue(ctx, key);
        let Some(row) = self.seen(key, ctx.time) else { return Reply::Int(0) };
        let old = row.deadline;
        let earlier = old.is_none_or(|old| deadline < old);
        let holds = match only {
            Only::Always => true,
            Only::Absent => old.is_none(),
            Only::Present => old.is_some(),
            Only::Later => old.is_some_and(|old| deadline > old),
            Only::Earlier => earlier,
            Only::PresentEarlier => old.is_some() && earlier,
        };
        if !holds {
            return Reply::Int(0);
        }
        let value = row.value.clone();
        self.put_until(ctx, key, value, Some(deadline), old);
        Reply::Int(1)
    }

    /// PERSIST
    pub(super) fn persist(&mut self, ctx: &Ctx, key: Bytes) -> Reply {
        self.remove_overdue(ctx, &key);
        let Some(row) = self.seen(&key, ctx.time).filter(|row| row.deadline.is_some()) else {
            return Reply::Int(0);
        };
        let value = row.value.clone();
        self.put(ctx, &key, value, None);
        Reply::Int(1)
    }

    /// Puts a key, or removes it if a moment that it is given now has come already. A deadline that it had takes its own time:
    /// it may lie in the millisecond that the stamp shows.
    fn put_until(&mut self, ctx: &Ctx, key: &Bytes, value: Bytes, deadline: Option<u64>, old: Option<u64>) {
        if deadline != old && deadline.is_some_and(|deadline| deadline <= ctx.time) {
            self.remove(key);
        } else {
            self.put(ctx, key, value, deadline);
        }
    }

    /// Bytes that the store grows by when the key's value gets this length.
    fn growth(&self, ctx: &Ctx, key: &Bytes, length: usize) -> u64 {
        let old = self.seen(key, ctx.time).map_or(0, |row| cost(key, &row.value));
        (cost(key, b"") + length as u64).saturating_sub(old)
    }
}

/// The deadline that a SET or GETEX leaves.
fn deadline(ctx: &Ctx, expiry: Expiry, old: Option<u64>) -> Option<u64> {
    match expiry {
        Expiry::Never => None,
        Expiry::Keep => old,
        Expiry::After(ms) => Some(ctx.time.saturating_add(ms)),
        Expiry::At(moment) => Some(group_time(moment)),
    }
}

fn group_time(moment: Moment) -> u64 {
    match moment {
        Moment::Group(ms) => ms,
        // A leader turns it into group time before it logs it. Whoever did not has no clock to go by: it never comes.
        Moment::Unix(_) => u64::MAX,
    }
}

/// A number as Redis reads one: decimal, no blanks, no plus sign, no leading zeros, within 64 bits.
pub(super) fn parse_integer(text: &[u8]) -> Option<i64> {
    let number: i64 = core::str::from_utf8(text).ok()?.parse().ok()?;
    (format!("{number}").as_bytes() == text).then_some(number)
}
