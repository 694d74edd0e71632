//! What groups tell each other arrives once, whatever becomes of their leaders, on a network that loses what was on
//! its way to a node that starts again.

mod town;

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate_engine::consensus::Role;
use quorate_protocol::id::{GroupId, NodeId};
use quorate_protocol::op::{Ack, Fetch, Nack, Op, Pub, QSet, Receipt, partition_of_topic};
use quorate_protocol::reply::Reply;
use town::Town;

const JOBS: &str = "jobs";
const DEAD: &str = "dead";
const LETTERS: u64 = 100;

fn home(topic: &str) -> GroupId {
    partition_of_topic(topic.as_bytes(), 16)
}

fn leader(town: &Town, group: GroupId) -> Option<u64> {
    let leads = |node: &NodeId| {
        town.engine(node.0).report().iter().any(|row| row.group == group && row.role == Role::Leader)
    };
    town.nodes.keys().copied().find(leads).map(|node| node.0)
}

/// Asks until there is an answer that is no error.
fn answer(town: &mut Town, node: u64, op: &Op) -> Reply {
    for _ in 0..50 {
        let request = town.ask_next(node, vec![op.clone()]);
        for _ in 0..200 {
            town.run(1);
            let reply = town.replies_of(node).into_iter().find(|(id, _)| *id == request);
            match reply {
                Some((_, reply)) if reply.failure().is_none() => return reply,
                Some(_) => break,
                None => {}
            }
        }
        town.run(10);
    }
    panic!("{op:?} is not answered");
}

fn info(town: &mut Town, topic: &str, field: &str) -> Option<i64> {
    match answer(town, 1, &Op::QInfo(Bytes::copy_from_slice(topic.as_bytes()))) {
        Reply::Map(fields) => {
            let value = fields.into_iter().find(|(name, _)| *name == Reply::text(field)).map(|pair| pair.1);
            if let Some(Reply::Int(n)) = value { Some(n) } else { None }
        }
        _ => None,
    }
}

/// Receives everything there is: id, attempt, body.
fn fetch(town: &mut Town, topic: &'static str) -> Vec<(u64, u32, Bytes)> {
    let fetch = Fetch { topic: topic.into(), count: 1024, block: 0, lease: Some(600_000) };
    let Reply::Array(rows) = answer(town, 1, &Op::Fetch(fetch)) else { return Vec::new() };
    let row = |row: Reply| match row {
        Reply::Array(values) => match &values[..] {
            [Reply::Int(id), Reply::Int(attempt), Reply::Bulk(body)] => {
                let attempt = u32::try_from(*attempt).expect("a count");
                (u64::try_from(*id).expect("an id"), attempt, body.clone())
            }
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    rows.into_iter().map(row).collect()
}

fn nack(id: u64) -> Op {
    let receipt = Receipt { id, attempt: Some(1) };
    Op::Nack(Nack { topic: JOBS.into(), receipt, delay: 0, dead: true })
}

/// A town in which all messages of `jobs` are delivered, and die elsewhere.
fn deadly_town() -> (Town, Vec<u64>) {
    let mut town = Town::with_floor(3, 64 << 10);
    town.run(50);
    let dlq = Some(DEAD.into());
    answer(&mut town, 1, &Op::QSet(QSet { topic: JOBS.into(), lease: None, max_deliver: Some(1), dlq }));
    for n in 0..LETTERS {
        let body = Bytes::from(format!("{n} {}", "x".repeat(2000)));
        answer(&mut town, 1, &Op::Pub(Pub { topic: JOBS.into(), body, dedupe: None, delay: 0 }));
    }
    let ids = fetch(&mut town, JOBS).into_iter().map(|(id, ..)| id).collect();
    (town, ids)
}

#[test]
fn dead_letters_cross_partitions_once_over_changes_of_leaders_and_restarts() {
    assert_ne!(home(JOBS), home(DEAD), "it is about two partitions");
    let (mut town, ids) = deadly_town();
    assert_eq!(ids.len() as u64, LETTERS);
    for (round, some) in ids.chunks(5).enumerate() {
        town.run_until("both ends are led", |town| {
            leader(town, home(JOBS)).is_some() && leader(town, home(DEAD)).is_some()
        });
        let struck = leader(&town, if round % 2 == 0 { home(JOBS) } else { home(DEAD) });
        // Asked for, and somewhere on its way, when the leader of either end starts again.
        town.ask_next(1, some.iter().map(|id| nack(*id)).collect());
        town.run_some(4 + 6 * round);
        town.start(struck.expect("it was just seen"));
        town.run_some(3 * round);
    }
    town.run(700);
    for id in ids {
        answer(&mut town, 2, &nack(id));
    }
    for _ in 0..100 {
        if info(&mut town, JOBS, "leaving") == Some(0) {
            break;
        }
        town.run(20);
    }
    let counts = ["ready", "unacknowledged", "leaving"].map(|field| info(&mut town, JOBS, field));
    assert_eq!(counts, [Some(0); 3], "nothing is left behind");
    let letters = fetch(&mut town, DEAD);
    assert!(letters.iter().all(|(_, attempt, _)| *attempt == 2), "the count of deliveries goes on");
    let ids: BTreeMap<u64, &Bytes> = letters.iter().map(|(id, _, body)| (*id, body)).collect();
    let bodies: BTreeMap<&Bytes, u64> = letters.iter().map(|(id, _, body)| (body, *id)).collect();
    assert_eq!(
        [letters.len(), ids.len(), bodies.len()],
        [100; 3],
        "each has arrived once, as a message of its own"
    );
    let receipts =
        letters.iter().map(|(id, attempt, _)| Receipt { id: *id, attempt: Some(*attempt) }).collect();
    assert_eq!(answer(&mut town, 1, &Op::Ack(Ack { topic: DEAD.into(), receipts })), Reply::Int(100));
    town.run(400);
    assert!(fetch(&mut town, DEAD).is_empty(), "and does not come again");
    town.run_until("all agree", |town| town.agree(&[1, 2, 3]));
}

#[test]
fn letters_wait_in_their_topic_while_nobody_hears_them() {
    let (mut town, ids) = deadly_town();
    town.run_until("both are led", |town| leader(town, home(JOBS)).is_some());
    let from = leader(&town, home(JOBS)).expect("it was just seen");
    // Alone, the leader cannot commit anything: what it is told is decided when it is heard again, by whoever leads.
    town.cut_off.insert(NodeId(from));
    town.ask_next(from, ids.iter().map(|id| nack(*id)).collect());
    town.run(300);
    town.cut_off.clear();
    for id in ids {
        answer(&mut town, 1, &nack(id));
    }
    town.run(300);
    for node in 1..=3 {
        town.start(node);
    }
    town.run(300);
    assert_eq!(info(&mut town, JOBS, "leaving"), Some(0));
    assert_eq!(info(&mut town, DEAD, "ready"), Some(100), "all of them, once");
}
