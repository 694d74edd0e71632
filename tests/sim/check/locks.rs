//! Properties of locks, as clients see them (commands.md, Locks):
//! - no two owners hold a lock together unless both hold it shared;
//! - tokens are never used twice, and rise from grant to grant;
//! - nobody overtakes: requests that were logged in an order are granted in that order;
//! - nil means not granted: who was answered so does not hold the lock afterwards.
//!
//! A client holds a lock for certain from the answer until it lets go, its connection ends (if that is the owner), or its
//! lease may have ended: group time never runs faster than the fastest clock, so not before TTL / (1 + drift) after it asked.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate_protocol::op::{Lock, Op};
use quorate_protocol::reply::Reply;

use super::Verdict;
use crate::sim::clock::SLOWEST;
use crate::sim::history::{History, Outcome, Record};

/// Who holds: an owner by name, or a connection.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// By name.
    Named(Bytes),
    /// A connection.
    Conn(u64),
}

/// A time during which a lock is certainly held.
#[derive(Debug)]
pub struct Hold<'a> {
    /// The request that was granted.
    pub record: &'a Record,
    /// By whom.
    pub owner: Owner,
    /// Which lock.
    pub name: &'a Bytes,
    /// Others may hold it too.
    pub shared: bool,
    /// The token.
    pub token: u64,
    /// From then on.
    pub from: u64,
    /// Not for certain any more.
    pub until: u64,
}

/// The owner in whose name an operation was asked.
#[must_use]
pub fn owner_of(record: &Record, named: Option<&Bytes>) -> Owner {
    named.map_or(Owner::Conn(record.conn), |name| Owner::Named(name.clone()))
}

/// The earliest end of a time of so many milliseconds of group time that was asked for at `from`. What clocks leave of a
/// microsecond, each leader's its own, is less than the way of the request.
#[must_use]
pub fn earliest_end(from: u64, ms: u64) -> u64 {
    from + ms * 1000 / SLOWEST.1 * SLOWEST.0 + ms * 1000 % SLOWEST.1 * SLOWEST.0 / SLOWEST.1
}

/// Every certain hold. `ends`: connection → when it ended.
#[must_use]
pub fn holds<'a>(history: &'a History, ends: &BTreeMap<u64, u64>) -> Vec<Hold<'a>> {
    let mut by_owner: BTreeMap<(Owner, &Bytes), Vec<&Record>> = BTreeMap::new();
    for record in history.records() {
        let (name, owner) = match &record.op {
            Op::Lock(op) => (&op.name, op.owner.as_ref()),
            Op::Unlock(op) => (&op.name, op.owner.as_ref()),
            Op::Renew(op) => (&op.name, op.owner.as_ref()),
            _ => continue,
        };
        if !matches!(record.outcome, Outcome::Refused(_)) {
            by_owner.entry((owner_of(record, owner), name)).or_default().push(record);
        }
    }
    let mut holds = Vec::new();
    for ((owner, name), records) in &by_owner {
        for record in records {
            let (Op::Lock(op), Some(Reply::Int(token))) = (&record.op, record.reply()) else { continue };
            let mut until = earliest_end(record.invoked, op.ttl);
            for other in records.iter().filter(|other| other.id != record.id && other.ended > record.invoked)
            {
                until = until.min(match &other.op {
                    Op::Lock(op) => earliest_end(other.invoked, op.ttl),
                    Op::Renew(op) => earliest_end(other.invoked, op.ttl),
                    _ => other.invoked,
                });
            }
            if let Owner::Conn(conn) = owner {
                until = until.min(ends.get(conn).copied().unwrap_or(u64::MAX));
            }
            let token = u64::try_from(*token).unwrap_or(0);
            let (owner, shared, from) = (owner.clone(), op.shared, record.ended);
            holds.push(Hold { record, owner, name, shared, token, from, until });
        }
    }
    holds.retain(|hold| hold.from < hold.until);
    holds.sort_by_key(|hold| (hold.from, hold.record.id));
    holds
}

/// No two owners hold a lock together unless both hold it shared.
pub fn exclusion(holds: &[Hold<'_>]) -> Verdict {
    for (at, first) in holds.iter().enumerate() {
        let later = holds[at + 1..].iter().take_while(|second| second.from < first.until);
        for second in later.filter(|second| second.name == first.name && second.owner != first.owner) {
            if !(first.shared && second.shared) {
                return Err(format!(
                    "two owners held {} together at {:.6} s: {}; and {}",
                    String::from_utf8_lossy(first.name),
                    crate::sim::trace::seconds(second.from),
                    first.record.story(),
                    second.record.story()
                ));
            }
        }
    }
    Ok(())
}

/// Tokens are used once and rise.
pub fn tokens(history: &History) -> Verdict {
    /// What is known of a token.
    struct Known<'a> {
        name: &'a Bytes,
        owner: Owner,
        told: u64,
        asked: u64,
        record: &'a Record,
    }
    let mut first_asked: BTreeMap<(Owner, &Bytes), u64> = BTreeMap::new();
    let mut known: BTreeMap<u64, Known<'_>> = BTreeMap::new();
    for record in history.records() {
        let Op::Lock(op) = &record.op else { continue };
        let owner = owner_of(record, op.owner.as_ref());
        let asked = *first_asked.entry((owner.clone(), &op.name)).or_insert(record.invoked);
        let Some(Reply::Int(token)) = record.reply() else { continue };
        let token = u64::try_from(*token).unwrap_or(0);
        let told = record.ended;
        let entry =
            known.entry(token).or_insert(Known { name: &op.name, owner: owner.clone(), told, asked, record });
        if (entry.name, &entry.owner) != (&op.name, &owner) {
            return Err(format!(
                "token {token} was given twice: {}; and {}",
                entry.record.story(),
                record.story()
            ));
        }
        entry.told = entry.told.min(told);
    }
    let mut by_told: Vec<(u64, u64)> = known.iter().map(|(&token, known)| (known.told, token)).collect();
    by_told.sort_unstable();
    for (&token, later) in &known {
        let before = by_told.partition_point(|&(told, _)| told < later.asked);
        if let Some(&(_, higher)) = by_told[..before].iter().max_by_key(|&&(_, token)| token)
            && higher >= token
        {
            return Err(format!(
                "token {token} is not above {higher}, which was known before it was asked for: {}; and {}",
                later.record.story(),
                known[&higher].record.story()
            ));
        }
    }
    Ok(())
}

/// The requests of owners that had never asked for the lock before, in the order of the log.
fn fresh(history: &History) -> BTreeMap<&Bytes, Vec<(&Record, &Lock)>> {
    let mut logged: Vec<(&Record, &Lock)> = Vec::new();
    for record in history.records() {
        if let (Op::Lock(op), [_, ..]) = (&record.op, &record.places[..]) {
            logged.push((record, op));
        }
    }
    logged.sort_by_key(|(record, _)| record.places[0].pos);
    let mut seen = std::collections::BTreeSet::new();
    let mut fresh: BTreeMap<&Bytes, Vec<(&Record, &Lock)>> = BTreeMap::new();
    for (record, op) in logged {
        // One that was logged twice took effect at one of the places; which, is not known.
        if seen.insert((owner_of(record, op.owner.as_ref()), &op.name)) && record.places.len() == 1 {
            fresh.entry(&op.name).or_default().push((record, op));
        }
    }
    fresh
}

/// Requests that were logged in an order are granted in that order.
pub fn fairness(history: &History) -> Verdict {
    for requests in fresh(history).into_values() {
        let mut last: Option<(i64, &Record)> = None;
        for (record, _) in requests {
            let Some(Reply::Int(token)) = record.reply() else { continue };
            if let Some((before, earlier)) = last
                && *token <= before
            {
                return Err(format!("{} stood behind {}", record.story(), earlier.story()));
            }
            last = Some((*token, record));
        }
    }
    Ok(())
}

/// What LOCKINFO shows is possible, and no orphan is among it; at rest there is nothing left.
pub fn infos(history: &History, auditor: usize) -> Verdict {
    let mut asked: BTreeMap<(&Bytes, &Bytes), Vec<&Record>> = BTreeMap::new();
    for record in history.records() {
        if let Op::Lock(Lock { name, owner: Some(owner), .. }) = &record.op {
            asked.entry((name, owner)).or_default().push(record);
        }
    }
    for record in history.records() {
        let (Op::LockInfo(name), Some(Reply::Map(fields))) = (&record.op, record.reply()) else { continue };
        let list = |name: &str| match fields.iter().find(|(field, _)| *field == Reply::text(name)) {
            Some((_, Reply::Array(list))) => list.clone(),
            _ => Vec::new(),
        };
        let (holders, waiters) = (list("holders"), list("waiters"));
        if record.client == auditor && !(holders.is_empty() && waiters.is_empty()) {
            return Err(format!("at rest, {}", record.story()));
        }
        let exclusive =
            holders.iter().filter(|holder| field(holder, "mode") == Some("exclusive".into())).count();
        if exclusive > 0 && holders.len() > 1 {
            return Err(record.story());
        }
        for owner in holders.iter().chain(&waiters).filter_map(|holder| field(holder, "owner")) {
            let Some([only]) = asked.get(&(name, &owner)).map(|records| &records[..]) else { continue };
            let not_granted = matches!(only.outcome, Outcome::Refused(_))
                || only.reply().is_some_and(|reply| !matches!(reply, Reply::Int(_)));
            if not_granted && only.ended < record.invoked {
                return Err(format!("{}, and yet {}", only.story(), record.story()));
            }
        }
    }
    Ok(())
}

fn field(row: &Reply, name: &str) -> Option<Bytes> {
    let Reply::Map(fields) = row else { return None };
    match fields.iter().find(|(field, _)| *field == Reply::text(name)) {
        Some((_, Reply::Bulk(value))) => Some(value.clone()),
        _ => None,
    }
}
