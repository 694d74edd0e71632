//! Properties of queues (commands.md, Queues):
//! - what is delivered was published; a body has one id, and a publisher's id names one message;
//! - each delivery of a message has a number of its own, and the numbers rise;
//! - a message is settled once, and never delivered after that: in its topic, or where its dead letters go;
//! - a dead letter lands in one place, once, whatever partition that is in;
//! - what was acknowledged to its publisher is delivered and settled, as a dead letter at worst.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use quorate_protocol::op::{DEAD_LETTERS, Op};
use quorate_protocol::reply::Reply;

use super::Verdict;
use crate::sim::history::{History, Outcome, Record};
use crate::sim::workload::{DEAD, message_of};

/// What a subscriber received: when, topic, message, attempt, body.
pub type Pushed = (u64, Bytes, u64, u32, Bytes);

/// A message in a topic.
type Key = (Bytes, u64);

/// A delivery as somebody saw it.
struct Delivery {
    key: Key,
    attempt: u32,
    body: Bytes,
    /// When its receiver asked, if it asked.
    asked: u64,
    seen: u64,
    /// The FETCH that brought it; a push has none.
    by: Option<u64>,
}

/// Looks at everything that was published, delivered and settled.
pub fn check(history: &History, pushed: &[Pushed]) -> Verdict {
    let deliveries = deliveries(history, pushed);
    published_before_delivered(history, &deliveries)?;
    publisher_ids(history)?;
    attempts(&deliveries)?;
    let settled = settled(history)?;
    nothing_after_settled(&deliveries, &settled)?;
    settled_in_one_place(&deliveries, &settled)?;
    nothing_lost(history, &deliveries, &settled)
}

fn deliveries(history: &History, pushed: &[Pushed]) -> Vec<Delivery> {
    let mut all = Vec::new();
    for record in history.records() {
        let (Op::Fetch(op), Some(Reply::Array(messages))) = (&record.op, record.reply()) else { continue };
        for (id, attempt, body) in messages.iter().filter_map(message_of) {
            let (asked, seen) = (record.invoked, record.ended);
            all.push(Delivery {
                key: (op.topic.clone(), id),
                attempt,
                body,
                asked,
                seen,
                by: Some(record.id),
            });
        }
    }
    all.extend(pushed.iter().map(|(seen, topic, id, attempt, body)| Delivery {
        key: (topic.clone(), *id),
        attempt: *attempt,
        body: body.clone(),
        asked: 0,
        seen: *seen,
        by: None,
    }));
    all
}

/// The topic to which a message was published that is found in this one.
fn source(topic: &Bytes) -> &[u8] {
    let topic = topic.strip_suffix(DEAD_LETTERS).unwrap_or(topic);
    if topic == DEAD { b"q0" } else { topic }
}

fn published_before_delivered(history: &History, deliveries: &[Delivery]) -> Verdict {
    let mut published: BTreeMap<&Bytes, Vec<(&Record, &Bytes)>> = BTreeMap::new();
    for record in history.records() {
        if let Op::Pub(op) = &record.op {
            published.entry(&op.body).or_default().push((record, &op.topic));
        }
    }
    let mut ids: BTreeMap<(&Bytes, &Bytes), u64> = BTreeMap::new();
    for delivery in deliveries {
        let Delivery { key: (topic, id), body, .. } = delivery;
        let by = published.get(body).map(|by| &by[..]).unwrap_or_default();
        let name = String::from_utf8_lossy(body);
        let could = |(record, of): &(&Record, &Bytes)| {
            !matches!(record.outcome, Outcome::Refused(_))
                && record.invoked <= delivery.seen
                && of[..] == *source(topic)
        };
        if !by.iter().any(could) {
            return Err(format!("{name} was delivered and never published"));
        }
        let first = *ids.entry((topic, body)).or_insert(*id);
        if first != *id {
            return Err(format!("{name} was published once and is delivered as message {first} and as {id}"));
        }
        let told = by.iter().filter_map(|(record, _)| record.reply());
        if topic[..] == *source(topic)
            && let Some(other) =
                told.filter(|reply| matches!(reply, Reply::Int(_))).find(|told| **told != Reply::int(*id))
        {
            return Err(format!("{name} was acknowledged as {other:?} and is delivered as {id}"));
        }
    }
    Ok(())
}

fn publisher_ids(history: &History) -> Verdict {
    let mut first: BTreeMap<(&Bytes, &Bytes), (&Reply, &Record)> = BTreeMap::new();
    for record in history.records().iter().filter(|record| record.succeeded()) {
        let (Op::Pub(op), Some(reply)) = (&record.op, record.reply()) else { continue };
        let Some(dedupe) = &op.dedupe else { continue };
        let (known, earlier) = *first.entry((&op.topic, dedupe)).or_insert((reply, record));
        if known != reply {
            return Err(format!("{}; and {}", earlier.story(), record.story()));
        }
    }
    Ok(())
}

fn attempts(deliveries: &[Delivery]) -> Verdict {
    let mut seen: BTreeMap<(&Key, u32), Option<u64>> = BTreeMap::new();
    let mut by_message: BTreeMap<&Key, Vec<&Delivery>> = BTreeMap::new();
    for delivery in deliveries {
        let Delivery { key, attempt, by, .. } = delivery;
        if seen.insert((key, *attempt), *by).is_some() {
            return Err(format!("delivery {attempt} of {key:?} was made twice"));
        }
        by_message.entry(key).or_default().push(delivery);
    }
    for all in by_message.values() {
        for late in all.iter().filter(|delivery| delivery.by.is_some()) {
            if let Some(early) =
                all.iter().find(|early| early.seen < late.asked && early.attempt > late.attempt)
            {
                return Err(format!(
                    "delivery {} of {:?} was made after delivery {}",
                    late.attempt, late.key, early.attempt
                ));
            }
        }
    }
    Ok(())
}

/// Message → the operation that settled it for certain, and the delivery that it named.
type Settled<'a> = BTreeMap<Key, (&'a Record, Option<u32>)>;

fn settled(history: &History) -> Result<Settled<'_>, String> {
    let mut settled: Settled<'_> = BTreeMap::new();
    for record in history.records() {
        let (Op::Ack(op), Some(Reply::Int(count))) = (&record.op, record.reply()) else { continue };
        if usize::try_from(*count) != Ok(op.receipts.len()) {
            continue;
        }
        for receipt in &op.receipts {
            let key = (op.topic.clone(), receipt.id);
            if let Some((earlier, _)) = settled.insert(key, (record, receipt.attempt)) {
                return Err(format!(
                    "a message was settled twice: {}; and {}",
                    earlier.story(),
                    record.story()
                ));
            }
        }
    }
    Ok(settled)
}

fn nothing_after_settled(deliveries: &[Delivery], settled: &Settled<'_>) -> Verdict {
    for delivery in deliveries {
        let Some((record, attempt)) = settled.get(&delivery.key) else { continue };
        let later = attempt.is_some_and(|attempt| delivery.attempt > attempt);
        if later || delivery.asked > record.ended {
            return Err(format!(
                "delivery {} of {:?} was made although {}",
                delivery.attempt,
                delivery.key,
                record.story()
            ));
        }
    }
    Ok(())
}

/// A body is a message, and wherever it goes there is one of it: the auditor would find and settle another one.
fn settled_in_one_place(deliveries: &[Delivery], settled: &Settled<'_>) -> Verdict {
    let mut places: BTreeMap<&Bytes, &Key> = BTreeMap::new();
    for delivery in deliveries.iter().filter(|delivery| settled.contains_key(&delivery.key)) {
        let first = *places.entry(&delivery.body).or_insert(&delivery.key);
        if *first != delivery.key {
            let name = String::from_utf8_lossy(&delivery.body);
            return Err(format!("{name} was settled as {first:?} and as {:?}", delivery.key));
        }
    }
    Ok(())
}

/// The world is at rest, and the auditor has emptied all topics.
fn nothing_lost(history: &History, deliveries: &[Delivery], settled: &Settled<'_>) -> Verdict {
    let mut may_be_settled: BTreeSet<Key> = settled.keys().cloned().collect();
    for record in history.records().iter().filter(|record| !record.places.is_empty()) {
        if let (Op::Ack(op), false) = (&record.op, record.succeeded()) {
            may_be_settled.extend(op.receipts.iter().map(|receipt| (op.topic.clone(), receipt.id)));
        }
    }
    let mut ends: BTreeSet<&Bytes> = BTreeSet::new();
    for delivery in deliveries.iter().filter(|delivery| may_be_settled.contains(&delivery.key)) {
        ends.insert(&delivery.body);
    }
    // An answer to a FETCH may have been lost, and its message settled by nobody: then it comes back.
    for record in history.records().iter().filter(|record| record.succeeded()) {
        let Op::Pub(op) = &record.op else { continue };
        if !ends.contains(&op.body) {
            return Err(format!(
                "{} and was never settled, nor found among the dead letters",
                record.story()
            ));
        }
    }
    Ok(())
}
