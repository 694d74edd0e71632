//! Property: a fenced write does nothing once the lock has been granted anew and somebody was told so (commands.md, Cache: SET
//! FENCE).
//!
//! A token is stale behind an exclusive grant with a higher one; that of an exclusive holder behind any grant with a higher
//! one. Shared holders of the same era are all good.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate_protocol::op::{FencedSet, Op};
use quorate_protocol::reply::Reply;

use super::Verdict;
use crate::sim::history::{History, Record};

/// What is known of a token.
struct Grant<'a> {
    /// Somebody has held the lock alone under it.
    exclusive: bool,
    /// When somebody knew of it first.
    told: u64,
    record: &'a Record,
}

/// Lock → token → what is known of it.
type Grants<'a> = BTreeMap<&'a Bytes, BTreeMap<u64, Grant<'a>>>;

fn grants(history: &History) -> Grants<'_> {
    let mut grants = Grants::new();
    for record in history.records() {
        let (Op::Lock(lock), Some(Reply::Int(token))) = (&record.op, record.reply()) else { continue };
        let of_lock = grants.entry(&lock.name).or_default();
        let grant = of_lock.entry(token.cast_unsigned()).or_insert(Grant {
            exclusive: false,
            told: record.ended,
            record,
        });
        grant.exclusive |= !lock.shared;
        grant.told = grant.told.min(record.ended);
    }
    grants
}

/// The first grant, by when somebody was told of it, that makes a token stale.
fn successor<'a, 'g>(grants: &'g Grants<'a>, lock: &Bytes, token: u64) -> Option<&'g Grant<'a>> {
    let of_lock = grants.get(lock)?;
    let alone = of_lock.get(&token).is_some_and(|grant| grant.exclusive);
    let later = of_lock.range(token + 1..).map(|(_, grant)| grant);
    later.filter(|grant| alone || grant.exclusive).min_by_key(|grant| grant.told)
}

/// Looks at every fenced write, and at who read it.
pub fn check(history: &History) -> Verdict {
    let grants = grants(history);
    let mut written: BTreeMap<&Bytes, Vec<(&FencedSet, &Record)>> = BTreeMap::new();
    for record in history.records() {
        let Op::FencedSet(write) = &record.op else { continue };
        written.entry(&write.set.key).or_default().push((write, record));
        let stale = successor(&grants, &write.fence.lock, write.fence.token);
        if let Some(grant) = stale.filter(|grant| record.succeeded() && grant.told < record.invoked) {
            return Err(format!("{}, though {} was told before", record.story(), grant.record.story()));
        }
    }
    for read in history.records() {
        let (Op::Get(key), Some(Reply::Bulk(value))) = (&read.op, read.reply()) else { continue };
        let Some(writes) = written.get(key) else { continue };
        let Some((shown, _)) = writes.iter().find(|(write, _)| write.set.value == *value) else { continue };
        let told = successor(&grants, &shown.fence.lock, shown.fence.token).map(|grant| grant.told);
        let before = |earlier: &&Record| {
            let of_key = matches!(&earlier.op, Op::Get(other) if other == key);
            let in_time = told.is_some_and(|told| told < earlier.invoked) && earlier.ended < read.invoked;
            of_key && in_time && earlier.reply().is_some_and(|reply| reply != &Reply::Bulk(value.clone()))
        };
        if let Some(earlier) = history.records().iter().find(before) {
            return Err(format!("{} came behind {}, when it was stale", read.story(), earlier.story()));
        }
        let alone = |write: &FencedSet| {
            let of_lock = grants.get(&write.fence.lock);
            of_lock.and_then(|grants| grants.get(&write.fence.token)).is_some_and(|grant| grant.exclusive)
        };
        let overwrites = |(write, record): &&(&FencedSet, &Record)| {
            let newer = write.fence.token > shown.fence.token && (alone(write) || alone(shown));
            newer && record.succeeded() && record.ended < read.invoked
        };
        if let Some((_, newer)) = writes.iter().find(overwrites) {
            return Err(format!("{}, written under an older token than {}", read.story(), newer.story()));
        }
    }
    Ok(())
}
