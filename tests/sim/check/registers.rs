//! Property: keys are linearizable registers: there is one order of all operations on a key, consistent with when they
//! were asked and answered and with each ordered connection's own order, that explains every answer. So a read never
//! returns an older value, INCR counts exactly, conditions hold, a client session's request takes effect once.
//!
//! Source: Wing & Gong, "Testing and verifying concurrent objects", 1993; the memory of visited configurations is Lowe's,
//! "Testing for linearizability", 2017.
//!
//! An operation of unknown outcome may take effect at any time, once, or never. The committed log narrows that: what is
//! not in the log never took effect, what is in it did so, if at all, before a replica applied it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use quorate_protocol::op::{Expiry, FencedSet, GetEx, Multi, Op, Set, SetRange, When};
use quorate_protocol::reply::{Code, Reply};

use super::Verdict;
use super::writeback::is_back;
use crate::sim::history::{History, Outcome, Record};
use crate::sim::trace::hash_bytes;

/// Configurations that are looked at for one key before the search is given up.
const BUDGET: usize = 1_000_000;

/// What a key holds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Cell {
    value: Bytes,
    /// It has a deadline, which no run lives to see.
    mortal: bool,
    /// Places in the log that may have given it its version.
    versions: Vec<u64>,
}

/// An operation's part for one key.
struct Step<'a> {
    record: &'a Record,
    call: u64,
    ret: u64,
    /// The answer, if it says something of this key alone.
    reply: Option<&'a Reply>,
    /// It may also have had no effect.
    optional: bool,
    /// The operation before it on the same ordered connection.
    before: Option<usize>,
}

/// Looks at every register and counter; where it is `calm`, without faults, also at what is written back.
pub fn check(history: &History, calm: bool) -> Verdict {
    let mut by_key: BTreeMap<&Bytes, Vec<Step<'_>>> = BTreeMap::new();
    for record in history.records() {
        for key in keys_of(&record.op) {
            if is_back(key) && !calm {
                continue;
            }
            if let Some(step) = step_of(record) {
                by_key.entry(key).or_default().push(step);
            }
        }
    }
    let flushes: Vec<&Record> = history.records().iter().filter(|record| record.op == Op::FlushAll).collect();
    for steps in by_key.values_mut() {
        steps.extend(flushes.iter().filter_map(|record| step_of(record)));
    }
    for record in &history.evictions {
        // Nobody was told whether the key had that version still.
        let (call, ret) = (record.invoked, record.ended);
        let step = || Step { record, call, ret, reply: None, optional: false, before: None };
        keys_of(&record.op).into_iter().for_each(|key| by_key.entry(key).or_default().push(step()));
    }
    for (key, mut steps) in by_key {
        steps.sort_by_key(|step| (step.call, step.record.id));
        link(&mut steps);
        search(key, &steps)?;
    }
    Ok(())
}

fn keys_of(op: &Op) -> Vec<&Bytes> {
    let keys = match op {
        Op::Get(key) => vec![key],
        Op::Set(set) | Op::FencedSet(FencedSet { set, .. }) => vec![&set.key],
        Op::SetBack(set) => vec![&set.key],
        Op::Incr(incr) => vec![&incr.key],
        Op::FillV(fill) => vec![&fill.key],
        Op::Expire(expire) => vec![&expire.key],
        Op::GetEx(get) => vec![&get.key],
        Op::SetRange(set) => vec![&set.key],
        Op::Del(_) | Op::Exists(_) | Op::Append(_) | Op::MSet(_) | Op::Multi(_) => op.keys(),
        _ => Vec::new(),
    };
    let mut keys: Vec<&Bytes> = keys
        .into_iter()
        .filter(|key| key.starts_with(b"r") || key.starts_with(b"n") || is_back(key))
        .collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

fn step_of(record: &Record) -> Option<Step<'_>> {
    let several =
        matches!(&record.op, Op::Del(keys) if keys.iter().filter(|key| key.starts_with(b"r")).count() > 1);
    let step =
        Step { record, call: record.invoked, ret: record.ended, reply: None, optional: true, before: None };
    match &record.outcome {
        Outcome::Answered(reply) if reply.failure().is_none() => {
            Some(Step { reply: (!several).then_some(reply), optional: false, ..step })
        }
        Outcome::Answered(reply) if reply.failure().is_some_and(|failure| failure.code == Code::Fenced) => {
            None
        }
        // An error that says nothing happened, or a read that was not answered.
        _ if record.op.is_read() => None,
        // It may have been taken on by a node that has not answered.
        _ if matches!(record.op, Op::SetBack(_)) => Some(Step { ret: u64::MAX, ..step }),
        _ => {
            let last = record.places.last()?;
            Some(Step { ret: last.time, ..step })
        }
    }
}

fn link(steps: &mut [Step<'_>]) {
    let mut last: BTreeMap<u64, usize> = BTreeMap::new();
    for (at, step) in steps.iter_mut().enumerate() {
        if step.record.ordered && !step.optional {
            step.before = last.insert(step.record.conn, at);
        }
    }
}

/// A configuration: what has taken effect, and what the key holds then.
#[derive(Debug, Clone)]
struct Config {
    /// All operations before this one are done.
    base: usize,
    /// Those done beyond it.
    done: BTreeSet<usize>,
    cell: Option<Cell>,
}

impl Config {
    fn has(&self, at: usize) -> bool {
        at < self.base || self.done.contains(&at)
    }

    fn with(&self, at: usize, cell: Option<Cell>) -> Self {
        let mut next = Self { base: self.base, done: self.done.clone(), cell };
        next.done.insert(at);
        while next.done.remove(&next.base) {
            next.base += 1;
        }
        next
    }

    fn fingerprint(&self) -> (usize, u64) {
        let mut hash = self.cell.as_ref().map_or(1, |cell| {
            cell.versions.iter().fold(hash_bytes(2 + u64::from(cell.mortal), &cell.value), |hash, version| {
                hash_bytes(hash, &version.to_le_bytes())
            })
        });
        for at in &self.done {
            hash = hash_bytes(hash, &(*at as u64).to_le_bytes());
        }
        (self.base, hash)
    }
}

fn search(key: &Bytes, steps: &[Step<'_>]) -> Verdict {
    let mut seen = BTreeSet::new();
    let mut open = vec![Config { base: 0, done: BTreeSet::new(), cell: None }];
    let mut furthest = Config { base: 0, done: BTreeSet::new(), cell: None };
    while let Some(config) = open.pop() {
        if config.base == steps.len() {
            return Ok(());
        }
        if !seen.insert(config.fingerprint()) {
            continue;
        }
        if seen.len() > BUDGET {
            return Ok(());
        }
        if config.base + config.done.len() > furthest.base + furthest.done.len() {
            furthest = config.clone();
        }
        let mut next: Vec<usize> = candidates(&config, steps);
        // Those that ended, or were applied, last are tried last: the stack turns the order round.
        next.sort_by_key(|&at| std::cmp::Reverse(likely_end(&steps[at])));
        for at in next {
            if steps[at].optional {
                open.push(config.with(at, config.cell.clone()));
            }
            for cell in effects(key, &steps[at], config.cell.as_ref()) {
                open.push(config.with(at, cell));
            }
        }
    }
    let holds = furthest
        .cell
        .as_ref()
        .map_or("nothing".into(), |cell| String::from_utf8_lossy(&cell.value).into_owned());
    let stuck: Vec<String> =
        candidates(&furthest, steps).into_iter().map(|at| steps[at].record.story()).collect();
    Err(format!(
        "no order of the operations on {} explains the answers; in the longest that was found, {} of {} long, the key holds {holds}, and next would be one of: {}",
        String::from_utf8_lossy(key),
        furthest.base + furthest.done.len(),
        steps.len(),
        stuck.join("; ")
    ))
}

fn likely_end(step: &Step<'_>) -> u64 {
    step.record.places.first().map_or(step.ret, |place| place.time.min(step.ret))
}

/// The operations that may take effect next: those that began before any open one ended.
fn candidates(config: &Config, steps: &[Step<'_>]) -> Vec<usize> {
    let mut first_end = u64::MAX;
    let mut found = Vec::new();
    for (at, step) in steps.iter().enumerate().skip(config.base) {
        if step.call > first_end {
            break;
        }
        if !config.has(at) {
            first_end = first_end.min(step.ret);
            found.push(at);
        }
    }
    found.retain(|&at| {
        steps[at].call <= first_end && steps[at].before.is_none_or(|before| config.has(before))
    });
    found
}

/// Whether a client can conclude from the answer alone that its operation has written the key: by the rules of this file, no
/// state in which the key may have been explains that answer and is left as it was.
#[must_use]
pub fn surely_written(op: &Op, key: &Bytes, reply: &Reply) -> bool {
    let (op, reply) = match (op, reply) {
        (Op::Multi(multi), Reply::Array(answers)) => {
            let at = multi.commands.0.iter().position(|op| !op.is_read() && op.key() == Some(key));
            let Some((op, reply)) = at.and_then(|at| Some((&multi.commands.0[at], answers.get(at)?))) else {
                return false;
            };
            (op, reply)
        }
        // Which of several keys were there their number does not say, unless it is that of all.
        (Op::Del(keys), reply) => {
            return *reply == Reply::int(keys.iter().collect::<BTreeSet<_>>().len() as u64);
        }
        both => both,
    };
    if reply.failure().is_some() {
        return false;
    }
    // Nothing has come of it yet: what it writes has no version, and differs from all that was there.
    let record = Record::new(0, 0, op.clone());
    let step = Step { record: &record, call: 0, ret: 0, reply: Some(reply), optional: false, before: None };
    let before = states_before(op, reply);
    let mut after = before.iter().filter_map(|cell| Some((cell, effect(key, &step, cell.as_ref())?)));
    after.all(|(before, after)| *before != after)
}

/// States of a key that stand for all that may have been before an operation was answered so.
fn states_before(op: &Op, reply: &Reply) -> Vec<Option<Cell>> {
    let value = match (op, reply) {
        (_, Reply::Bulk(value)) => value.clone(),
        (Op::Incr(incr), Reply::Int(sum)) => (sum - incr.by).to_string().into(),
        (Op::Append(append), Reply::Int(length)) => {
            let length = usize::try_from(*length).expect("no length is below 0");
            vec![b'x'; length - append.value.len()].into()
        }
        (Op::SetRange(_), Reply::Int(length)) => {
            vec![b'x'; usize::try_from(*length).expect("no length is below 0")].into()
        }
        _ => Bytes::from_static(b"x"),
    };
    let named = match op {
        Op::Set(Set { when: When::Version(version), .. })
        | Op::FencedSet(FencedSet { set: Set { when: When::Version(version), .. }, .. }) => *version,
        _ => 1,
    };
    let cell = |(version, mortal)| Some(Cell { value: value.clone(), mortal, versions: vec![version] });
    let cells = [named, u64::MAX].into_iter().flat_map(|version| [(version, false), (version, true)]);
    cells.map(cell).chain([None]).collect()
}

/// What the key may hold after the operation; nothing if its answer does not fit.
fn effects(key: &Bytes, step: &Step<'_>, cell: Option<&Cell>) -> Vec<Option<Cell>> {
    if let (Op::Set(set), Some(cell)) = (&step.record.op, cell)
        && let When::Version(version) = set.when
        && cell.versions.len() > 1
        && cell.versions.contains(&version)
    {
        // The value was logged twice, by a resend, and it is not known which of the two took effect.
        let otherwise = Cell { versions: Vec::new(), ..cell.clone() };
        let as_it_is = Cell { versions: vec![version], ..cell.clone() };
        let both = [as_it_is, otherwise].into_iter().filter_map(|cell| effect(key, step, Some(&cell)));
        return both.collect();
    }
    effect(key, step, cell).into_iter().collect()
}

/// What the key holds after the operation; none if its answer does not fit.
fn effect(key: &Bytes, step: &Step<'_>, cell: Option<&Cell>) -> Option<Option<Cell>> {
    effect_of(&step.record.op, step.reply, key, step, cell)
}

/// The same of one of its commands, with the answer to that.
fn effect_of(
    op: &Op,
    told: Option<&Reply>,
    key: &Bytes,
    step: &Step<'_>,
    cell: Option<&Cell>,
) -> Option<Option<Cell>> {
    let value = || cell.map_or(Reply::Nil, |cell| Reply::Bulk(cell.value.clone()));
    let put = |value: Bytes, mortal| {
        let versions = step.record.places.iter().map(|place| place.pos.serial()).collect();
        Some(Cell { value, mortal, versions })
    };
    let mortal = cell.is_some_and(|cell| cell.mortal);
    // The deadline stays.
    let written = |value: Bytes| put(value, mortal);
    let fits = |reply: Reply| told.is_none_or(|told| *told == reply);
    let kept = || cell.cloned();
    match op {
        Op::Get(_) => fits(value()).then(kept),
        Op::FillV(_) => told.is_none_or(|told| is_of(told, cell)).then(kept),
        Op::Exists(_) => fits(Reply::Int(i64::from(cell.is_some()))).then(kept),
        Op::Del(_) => fits(Reply::Int(i64::from(cell.is_some()))).then_some(None),
        Op::Expire(_) => fits(Reply::Int(i64::from(cell.is_some()))).then_some(None),
        Op::Incr(incr) => {
            let number =
                cell.map_or(Some(0), |cell| std::str::from_utf8(&cell.value).ok()?.parse::<i64>().ok())?;
            let sum = number + incr.by;
            fits(Reply::Int(sum)).then(|| written(format!("{sum}").into()))
        }
        Op::Set(set) | Op::FencedSet(FencedSet { set, .. }) => {
            debug_assert_eq!(set.key, *key, "steps are sorted by key");
            let holds = match set.when {
                When::Always => true,
                When::Absent => cell.is_none(),
                When::Present => cell.is_some(),
                When::Version(0) => cell.is_none(),
                When::Version(version) => cell.is_some_and(|cell| cell.versions.contains(&version)),
            };
            let otherwise = if holds { Reply::OK } else { Reply::Nil };
            let told = if set.get { value() } else { otherwise };
            let mortal = set.expiry == Expiry::Keep && mortal;
            fits(told).then(|| if holds { put(set.value.clone(), mortal) } else { kept() })
        }
        Op::SetBack(set) => fits(Reply::OK).then(|| put(set.value.clone(), false)),
        Op::GetEx(GetEx { expiry, .. }) => fits(value()).then(|| {
            let dies = *expiry != Expiry::Never;
            let changes = dies || mortal;
            cell.and_then(|cell| if changes { put(cell.value.clone(), dies) } else { kept() })
        }),
        Op::Persist(_) => fits(Reply::Int(i64::from(mortal)))
            .then(|| cell.and_then(|cell| if mortal { put(cell.value.clone(), false) } else { kept() })),
        Op::SetRange(set) if set.value.is_empty() => {
            fits(Reply::int(cell.map_or(0, |cell| cell.value.len()) as u64)).then(kept)
        }
        Op::SetRange(set) => {
            let value = overwritten(cell.map_or(b"", |cell| &cell.value), set);
            fits(Reply::int(value.len() as u64)).then(|| written(value))
        }
        Op::GetDel(_) => fits(value()).then_some(None),
        Op::FlushAll => fits(Reply::OK).then_some(None),
        Op::Append(append) => {
            let value = [cell.map_or(&b""[..], |cell| &cell.value), &append.value].concat();
            fits(Reply::int(value.len() as u64)).then(|| written(value.into()))
        }
        Op::MSet(mset) => {
            let value = mset.pairs.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone())?;
            fits(Reply::OK).then(|| put(value, false))
        }
        Op::Multi(multi) => effect_of_some(multi, told, key, step, cell),
        _ => None,
    }
}

/// The same of a transaction.
fn effect_of_some(
    multi: &Multi,
    told: Option<&Reply>,
    key: &Bytes,
    step: &Step<'_>,
    cell: Option<&Cell>,
) -> Option<Option<Cell>> {
    let unchanged = multi
        .watched
        .iter()
        .filter(|(name, _)| name == key)
        .all(|(_, version)| cell.map_or(*version == 0, |cell| cell.versions.contains(version)));
    if told == Some(&Reply::Nil) || (told.is_none() && !unchanged) {
        // Of several watched keys another one may be the reason.
        return Some(cell.cloned());
    }
    let at = multi.commands.0.iter().position(|op| op.key() == Some(key));
    let told = |at: usize| if let Some(Reply::Array(all)) = told { all.get(at) } else { None };
    let after =
        at.map_or(Some(cell.cloned()), |at| effect_of(&multi.commands.0[at], told(at), key, step, cell));
    after.filter(|_| unchanged)
}

/// Whether GETV FILL may answer so.
fn is_of(told: &Reply, cell: Option<&Cell>) -> bool {
    let Reply::Array(fields) = told else { return false };
    match (&fields[..], cell) {
        ([Reply::Nil, Reply::Int(0), Reply::Int(_)], None) => true,
        ([Reply::Bulk(told), version, Reply::Int(0)], Some(cell)) => {
            *told == cell.value && cell.versions.iter().any(|known| Reply::int(*known) == *version)
        }
        _ => false,
    }
}

/// A value of which SETRANGE has written a part.
fn overwritten(old: &[u8], part: &SetRange) -> Bytes {
    let from = usize::try_from(part.offset).expect("offsets are small");
    let to = from + part.value.len();
    let mut value = old.to_vec();
    value.resize(to.max(old.len()), 0);
    value[from..to].copy_from_slice(&part.value);
    value.into()
}
