//! Property: a key with a deadline is there until then, never gone early, and gone at rest (commands.md, Cache).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use quorate_protocol::op::{Expiry, Op};
use quorate_protocol::reply::Reply;

use super::Verdict;
use super::locks::earliest_end;
use crate::sim::history::{History, Record};

/// Looks at every key that was set once, with a deadline.
pub fn check(history: &History, auditor: usize) -> Verdict {
    let mut set: BTreeMap<&Bytes, (&Record, u64)> = BTreeMap::new();
    for record in history.records() {
        if let Op::Set(op) = &record.op
            && let Expiry::After(ms) = op.expiry
        {
            set.insert(&op.key, (record, ms));
        }
    }
    let evicted: BTreeSet<&Bytes> = history.evictions.iter().flat_map(|record| record.op.keys()).collect();
    for record in history.records() {
        if record.client == auditor
            && matches!(record.op, Op::Exists(_))
            && !matches!(record.reply(), None | Some(Reply::Int(0)))
        {
            return Err(format!("keys outlived their deadlines: {:?}", record.reply()));
        }
        let (Op::Get(key) | Op::Ttl(quorate_protocol::op::Ttl { key, .. })) = &record.op else { continue };
        let Some(&(writer, ms)) = set.get(key).filter(|_| !evicted.contains(key)) else { continue };
        let certain = writer.succeeded() && writer.ended < record.invoked;
        let flushed = |flush: &&Record| {
            flush.op == Op::FlushAll && flush.invoked <= record.ended && flush.ended >= writer.invoked
        };
        let early = certain
            && !history.records().iter().any(|other| flushed(&other))
            && record.ended < earliest_end(writer.invoked, ms);
        let impossible = match (&record.op, record.reply()) {
            (Op::Get(_), Some(Reply::Nil)) | (Op::Ttl(_), Some(Reply::Int(-2))) => early,
            (Op::Ttl(_), Some(Reply::Int(left))) => u64::try_from(*left).map_or(true, |left| left > ms),
            _ => false,
        };
        if impossible {
            return Err(format!("{}, although {}", record.story(), writer.story()));
        }
    }
    Ok(())
}
