//! Property: what is lost of keys that are written back is bounded, and nothing is overwritten (consistency.md, Written back).
//!
//! - A value that was acknowledged before a write-through SET of its key, or a FLUSHALL, was asked for is not read after that
//!   one was acknowledged: what an owner brings late overwrites nothing.
//! - A value is not read once two writes are acknowledged that were asked for after it was, the second of them
//!   `DIRTY_WINDOW` after the first was acknowledged: when a node takes the second on, it has brought the first.
//!
//! Without faults these keys are registers like others (`registers.rs`).

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate_protocol::limits::DIRTY_WINDOW;
use quorate_protocol::op::Op;
use quorate_protocol::reply::Reply;

use super::Verdict;
use crate::sim::clock::SLOWEST;
use crate::sim::history::{History, Record};

/// `DIRTY_WINDOW`, as the slowest clock measures it; microseconds.
const WINDOW: u64 = DIRTY_WINDOW * 1000 * SLOWEST.1 / SLOWEST.0 + 1000;

/// What was written to a key.
#[derive(Default)]
struct Writes<'a> {
    by_value: BTreeMap<&'a Bytes, &'a Record>,
    /// Those that were acknowledged, by the time of that.
    done: Vec<&'a Record>,
    /// FLUSHALLs, which write nil to every key, through.
    flushes: Vec<&'a Record>,
}

/// Whether a key is one that is written back.
#[must_use]
pub fn is_back(key: &[u8]) -> bool {
    key.starts_with(b"w")
}

/// Looks at every read of such a key.
pub fn check(history: &History) -> Verdict {
    let mut keys: BTreeMap<&Bytes, Writes<'_>> = BTreeMap::new();
    for record in history.records() {
        let (key, value) = match &record.op {
            Op::SetBack(set) => (&set.key, &set.value),
            Op::Set(set) if is_back(&set.key) => (&set.key, &set.value),
            _ => continue,
        };
        let writes = keys.entry(key).or_default();
        writes.by_value.insert(value, record);
        if record.succeeded() {
            writes.done.push(record);
        }
    }
    let flushes = || history.records().iter().filter(|record| record.op == Op::FlushAll);
    for writes in keys.values_mut() {
        writes.done.extend(flushes().filter(|record| record.succeeded()));
        writes.flushes = flushes().collect();
        writes.done.sort_by_key(|record| record.ended);
    }
    // A key that made room for others has vanished.
    let evicted = history.short_of_room()[0] > 0;
    for read in history.records() {
        let (key, reply) = match (&read.op, read.reply()) {
            (Op::Get(key), Some(reply)) => (key, reply),
            (Op::Multi(multi), Some(Reply::Array(answers))) => match (&multi.commands.0[..], &answers[..]) {
                ([Op::Get(key), _], [reply, _]) => (key, reply),
                _ => continue,
            },
            _ => continue,
        };
        if let Some(writes) = keys.get(key).filter(|_| !evicted || *reply != Reply::Nil) {
            judge(read, reply, writes)?;
        }
    }
    Ok(())
}

fn judge(read: &Record, reply: &Reply, writes: &Writes<'_>) -> Verdict {
    let written = match reply {
        Reply::Bulk(value) => match writes.by_value.get(value) {
            Some(record) if record.invoked < read.ended => Some(*record),
            _ => return Err(format!("{}, which nobody had written", read.story())),
        },
        Reply::Nil => writes
            .flushes
            .iter()
            .filter(|record| record.invoked < read.ended)
            .max_by_key(|record| known_by(record))
            .copied(),
        _ => return Ok(()),
    };
    let acknowledged = written.map_or(0, known_by);
    let before = writes.done.partition_point(|record| record.ended < read.invoked);
    let newer = |record: &&&Record| record.invoked > acknowledged;
    let done = &writes.done[..before];
    if let Some(through) =
        done.iter().filter(newer).find(|record| matches!(record.op, Op::Set(_) | Op::FlushAll))
    {
        return Err(story(read, written, through, through));
    }
    let Some(last) = done.iter().max_by_key(|record| record.invoked) else { return Ok(()) };
    let bound = last.invoked.saturating_sub(WINDOW);
    match done.iter().filter(newer).find(|record| record.ended <= bound) {
        Some(lost) => Err(story(read, written, lost, last)),
        None => Ok(()),
    }
}

/// When it has certainly taken effect: one whose outcome is not known may do so late.
fn known_by(record: &Record) -> u64 {
    if record.succeeded() { record.ended } else { u64::MAX }
}

fn story(read: &Record, written: Option<&Record>, lost: &Record, last: &Record) -> String {
    let written = written.map_or("nothing".into(), Record::story);
    let (at, acknowledged, asked) = (read.invoked, lost.ended, last.invoked);
    format!(
        "{} at {at}: it was written by {written}, although later {} (acknowledged at {acknowledged}), and {} (asked for at {asked})",
        read.story(),
        lost.story(),
        last.story()
    )
}
