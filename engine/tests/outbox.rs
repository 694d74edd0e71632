//! What groups tell each other arrives once, whatever becomes of their leaders, on a network that loses what was on
//! its way to a node that starts again.

mod town;

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate_engine::consensus::Role;
use quorate_protocol::backup::{Crossing, cut_too_early};
use quorate_protocol::command::NodeAsk;
use quorate_protocol::id::{GroupId, NodeId};
use quorate_protocol::op::{Ack, Fetch, Nack, Op, Pub, QSet, Receipt, partition_of, partition_of_topic};
use quorate_protocol::reply::Reply;
use town::{Town, set};

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

/// What a node's snapshots say of letters that have crossed.
fn crossings(town: &mut Town, node: u64) -> BTreeMap<GroupId, Vec<Crossing>> {
    let list =
        |reply: &Reply| if let Reply::Array(values) = reply { values.to_vec() } else { panic!("{reply:?}") };
    let number = |reply: &Reply| {
        if let Reply::Int(n) = reply {
            u64::try_from(*n).expect("it is positive")
        } else {
            panic!("{reply:?}")
        }
    };
    let group = |reply: &Reply| GroupId(u16::try_from(number(reply)).expect("few groups"));
    let id = town.ask_node(node, NodeAsk::Snapshots);
    town.run(1);
    let rows = list(&town.answer(node, id).expect("it looks at once"));
    let crossing = |row: &Reply| {
        let row = list(row);
        Crossing { other: group(&row[0]), left: number(&row[1]), arrived: number(&row[2]) }
    };
    rows.iter()
        .map(|row| {
            let row = list(row);
            (group(&row[0]), list(&row[5]).iter().map(crossing).collect())
        })
        .collect()
}

#[test]
fn a_letter_that_crosses_while_snapshots_are_taken_is_in_one_of_them_at_least() {
    // Where letters arrive is cut long before the place that they leave.
    let grave =
        (0..).map(|n| format!("grave{n}")).find(|topic| home(topic) == GroupId(1)).expect("one of them");
    assert!(home(JOBS) > GroupId(8), "{:?}", home(JOBS));
    let (mut town, ids) = deadly_town();
    let dlq = Some(grave.clone().into());
    answer(&mut town, 1, &Op::QSet(QSet { topic: JOBS.into(), lease: None, max_deliver: Some(1), dlq }));
    // What lies between is cut between them, and takes long.
    let between = |key: &String| (GroupId(2)..home(JOBS)).contains(&partition_of(key.as_bytes(), 16));
    for key in (0..).map(|n| format!("key{n}")).filter(between).take(80) {
        answer(&mut town, 1, &set(&key, &"v".repeat(200_000)));
    }
    // A steady flow of them, in the midst of which snapshots are taken.
    for (round, some) in ids.chunks(20).enumerate() {
        let mut id = None;
        for (n, letter) in some.iter().enumerate() {
            if n == 10 {
                id = Some(town.ask_node(1, NodeAsk::Snapshot));
            }
            town.ask_next(2, vec![nack(*letter)]);
            town.run_some(10);
        }
        let id = id.expect("it was asked for");
        town.run_until("the snapshots are taken", |town| town.answer(1, id).is_some());
        assert_eq!(town.answer(1, id), Some(Reply::OK));
        let cuts = crossings(&mut town, 1);
        let early = cut_too_early(cuts.iter().map(|(group, crossings)| (*group, &crossings[..])));
        assert!(early.is_empty(), "round {round}: {cuts:?}");
        // Letters are kept for two minutes.
        town.run(6200);
        assert_eq!(info(&mut town, JOBS, "leaving"), Some(0), "then they have left");
    }
    assert_eq!(info(&mut town, &grave, "ready"), Some(100), "all of them, once");
}
