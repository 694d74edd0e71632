//! What looks at keys, at the group time of the applied state.

use alloc::format;
use bytes::Bytes;
use quorate_protocol::limits::VALUES_MAX;
use quorate_protocol::op::{ExpireTime, FencedSet, FillV, GetRange, Multi, Op, Set, Ttl};
use quorate_protocol::reply::{Code, Reply};

use super::{Answers, Store};

impl Store {
    /// Answers a read.
    #[must_use]
    pub fn read(&self, op: &Op, time: u64) -> Reply {
        let version = |key| Reply::int(self.line(key, time).0);
        match op {
            Op::Get(key) => self.value(key, time),
            Op::GetV(key) | Op::FillV(FillV { key, .. }) => {
                Reply::Array([self.value(key, time), version(key), Reply::Int(0)].into())
            }
            Op::MGet(keys) => self.values(keys, time),
            Op::Versions(keys) => Reply::Array(keys.iter().map(version).collect()),
            Op::Exists(keys) => {
                Reply::int(keys.iter().filter(|key| self.seen(key, time).is_some()).count() as u64)
            }
            Op::Strlen(key) => Reply::int(self.length(key, time) as u64),
            Op::GetRange(op) => self.range(op, time),
            Op::Type(key) => Reply::Status(self.seen(key, time).map_or("none", |_| "string")),
            Op::Ttl(Ttl { key, millis }) => {
                // In its last millisecond it is there: PTTL says 1 then, not 0.
                self.until(key, time, |deadline| rounded((deadline - time).max(1), *millis))
            }
            Op::ExpireTime(ExpireTime { key, millis, epoch }) => self.until(key, time, |deadline| {
                let then = i64::try_from(deadline).unwrap_or(i64::MAX).saturating_add(*epoch);
                rounded(u64::try_from(then).unwrap_or(0), *millis)
            }),
            Op::DbSize => Reply::int(self.len() as u64),
            Op::Keys(pattern) => self.keys(pattern, time),
            Op::Scan(scan) => self.scan(scan, time),
            Op::Multi(multi) => self.read_together(multi, time),
            _ => Reply::error(Code::Err, "this is not a read of a key"),
        }
    }

    /// EXEC of a transaction that changes nothing.
    fn read_together(&self, multi: &Multi, time: u64) -> Reply {
        if !self.is_unchanged(&multi.watched, time) {
            return Reply::Nil;
        }
        let mut answers = Answers::default();
        for op in &multi.commands.0 {
            let refusal = answers.refusal(self.answer_bytes(op, time));
            answers.0.push(refusal.unwrap_or_else(|| self.read(op, time)));
        }
        Reply::Array(answers.0)
    }

    /// Bytes that the answer of a command may come to; 0 if it is a small one.
    pub(super) fn answer_bytes(&self, op: &Op, time: u64) -> usize {
        match op {
            Op::FillV(FillV { key, .. })
            | Op::Get(key)
            | Op::GetDel(key)
            | Op::GetV(key)
            | Op::FencedSet(FencedSet { set: Set { key, get: true, .. }, .. })
            | Op::Set(Set { key, get: true, .. }) => self.length(key, time),
            Op::GetEx(op) => self.length(&op.key, time),
            Op::GetRange(op) => self.length(&op.key, time),
            Op::MGet(keys) => keys.iter().map(|key| 32 + self.length(key, time)).sum(),
            _ => 0,
        }
    }

    fn length(&self, key: &Bytes, time: u64) -> usize {
        self.seen(key, time).map_or(0, |row| row.value.len())
    }

    fn value(&self, key: &Bytes, time: u64) -> Reply {
        self.seen(key, time).map_or(Reply::Nil, |row| Reply::Bulk(row.value.clone()))
    }

    fn values(&self, keys: &[Bytes], time: u64) -> Reply {
        if keys.iter().map(|key| self.length(key, time)).sum::<usize>() > VALUES_MAX {
            let text = format!("the values come to more than {VALUES_MAX} bytes; ask for fewer keys");
            return Reply::error(Code::TooBig, text);
        }
        Reply::Array(keys.iter().map(|key| self.value(key, time)).collect())
    }

    fn range(&self, op: &GetRange, time: u64) -> Reply {
        let value = self.seen(&op.key, time).map(|row| row.value.clone()).unwrap_or_default();
        let length = i64::try_from(value.len()).unwrap_or(i64::MAX);
        let from_front = |at: i64| if at < 0 { (length.saturating_add(at)).max(0) } else { at };
        let backwards = op.start < 0 && op.end < 0 && op.start > op.end;
        let (start, end) = (from_front(op.start), from_front(op.end).min(length - 1));
        if backwards || start > end {
            return Reply::Bulk(Bytes::new());
        }
        let place = |at: i64| usize::try_from(at).unwrap_or(0);
        Reply::Bulk(value.slice(place(start)..=place(end)))
    }

    /// What a key's deadline says; -1 without one, -2 without the key.
    fn until(&self, key: &Bytes, time: u64, said: impl Fn(u64) -> Reply) -> Reply {
        match self.seen(key, time).map(|row| row.deadline) {
            None => Reply::Int(-2),
            Some(None) => Reply::Int(-1),
            Some(Some(deadline)) => said(deadline),
        }
    }
}

/// Seconds are rounded to the nearest, as Redis does.
fn rounded(ms: u64, millis: bool) -> Reply {
    Reply::int(if millis { ms } else { (ms + 500) / 1000 })
}
