//! Properties: a LOCK that is refused with `-DEADLOCK` names a real cycle, and no two owners are left waiting for each
//! other (commands.md, Locks).

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate_protocol::op::Op;
use quorate_protocol::reply::{Code, Reply};

use super::Verdict;
use super::locks::{Hold, Owner, earliest_end, owner_of};
use crate::sim::history::{History, Outcome, Record};

/// Every refusal's witness is possible, and no cycle was overlooked.
pub fn check(history: &History, holds: &[Hold<'_>], ends: &BTreeMap<u64, u64>) -> Verdict {
    for record in history.records() {
        let Some(failure) = record.reply().and_then(|reply| reply.failure()) else { continue };
        if failure.code == Code::Deadlock {
            check_witness(history, record, &failure.text)?;
        }
    }
    overlooked(history, holds, ends)
}

/// `a:L1 -> b:L2 -> a`: each named owner has asked for its lock with a wait, and may still have been waiting.
fn check_witness(history: &History, refused: &Record, text: &str) -> Verdict {
    let doubt = |why: &str| Err(format!("{}: {why}", refused.story()));
    let mut edges: Vec<&str> = text.split(" -> ").collect();
    let Some(last) = edges.pop() else { return doubt("there is no cycle in it") };
    let parsed: Option<Vec<(&str, &str)>> = edges.iter().map(|edge| edge.rsplit_once(':')).collect();
    let Some(parsed) = parsed.filter(|edges| edges.len() >= 2) else {
        return doubt("there is no cycle in it");
    };
    if parsed[0].0 != last {
        return doubt("the cycle does not close");
    }
    for (at, (waiter, name)) in parsed.iter().enumerate() {
        let next = parsed[(at + 1) % parsed.len()].0;
        if waiter.starts_with("conn:") || next.starts_with("conn:") {
            continue;
        }
        let asked = |owner: &str| -> Vec<&Record> {
            let by = |record: &&Record| matches!(&record.op, Op::Lock(op) if op.name == *name && op.owner.as_deref() == Some(owner.as_bytes()));
            history.records().iter().filter(by).filter(|record| record.invoked <= refused.ended).collect()
        };
        let waits = |record: &Record| {
            // A wait whose asker was told nothing certain may go on.
            let goes_on = record.ended >= refused.invoked || record.outcome == Outcome::Unknown;
            matches!(&record.op, Op::Lock(op) if op.wait > 0) && goes_on
        };
        if !asked(waiter).into_iter().any(waits) {
            return doubt(&format!("{waiter} was not waiting for {name}"));
        }
        if asked(next).iter().all(|record| matches!(record.outcome, Outcome::Refused(_))) {
            return doubt(&format!("{next} had nothing to do with {name}"));
        }
    }
    Ok(())
}

/// A wait that is certainly in the queue for some time.
struct Wait<'a> {
    record: &'a Record,
    owner: Owner,
    name: &'a Bytes,
    shared: bool,
    from: u64,
    until: u64,
}

/// The token that a LOCK was answered with.
fn token_of(record: &Record) -> Option<i64> {
    match (&record.op, record.reply()) {
        (Op::Lock(_), Some(Reply::Int(token))) => Some(*token),
        _ => None,
    }
}

fn waits<'a>(history: &'a History, ends: &BTreeMap<u64, u64>) -> Vec<Wait<'a>> {
    let mut asked: BTreeMap<(Owner, &Bytes), Vec<&Record>> = BTreeMap::new();
    for record in history.records() {
        if let Op::Lock(op) = &record.op {
            asked.entry((owner_of(record, op.owner.as_ref()), &op.name)).or_default().push(record);
        }
    }
    let granted = history.records().iter().filter_map(|record| Some((token_of(record)?, record.ended)));
    let mut heard: BTreeMap<i64, u64> = BTreeMap::new();
    for (token, time) in granted {
        let first = heard.entry(token).or_insert(time);
        *first = time.min(*first);
    }
    let mut waits = Vec::new();
    for ((owner, name), records) in asked {
        for record in &records {
            // One that was logged twice may have been granted long before its asker heard of it.
            let (Op::Lock(op), [place]) = (&record.op, &record.places[..]) else { continue };
            // An answer that never came may have been the refusal.
            if !record.succeeded() {
                continue;
            }
            // A newer request of the same owner takes its place: then it is not certain any more. The client's
            // connection may have ended too: the request goes with it, unless a session carries it on.
            let replaced =
                records.iter().filter(|other| other.id > record.id).map(|other| other.invoked).min();
            let gone = ends.get(&record.conn).copied().unwrap_or(u64::MAX);
            let until = earliest_end(record.invoked, op.wait).min(record.ended).min(gone);
            let until = until.min(replaced.unwrap_or(u64::MAX));
            // Its answer may have been long on its way: it was granted before anybody heard of a later token.
            let token = token_of(record).unwrap_or(i64::MAX);
            let later = heard.range(token.saturating_add(1)..).map(|(_, &time)| time).min();
            let until = until.min(later.unwrap_or(u64::MAX));
            let (owner, shared) = (owner.clone(), op.shared);
            waits.push(Wait { record, owner, name, shared, from: place.time, until });
        }
    }
    waits.retain(|wait| wait.from < wait.until);
    waits.sort_by_key(|wait| wait.from);
    waits
}

fn overlooked(history: &History, holds: &[Hold<'_>], ends: &BTreeMap<u64, u64>) -> Verdict {
    let waits = waits(history, ends);
    for (at, second) in waits.iter().enumerate() {
        // At this moment the later of the two requests has been applied, and was not refused.
        let now = second.from;
        for first in waits[..at].iter().filter(|first| now < first.until && first.owner != second.owner) {
            let against = |wait: &Wait<'_>, owner: &Owner| {
                holds.iter().any(|hold| {
                    hold.name == wait.name
                        && hold.owner == *owner
                        && !(hold.shared && wait.shared)
                        && (hold.from..hold.until).contains(&now)
                })
            };
            if against(first, &second.owner) && against(second, &first.owner) {
                return Err(format!(
                    "two owners wait for each other: {}; and {}",
                    first.record.story(),
                    second.record.story()
                ));
            }
        }
    }
    Ok(())
}
