//! GETV FILL in a whole cluster on a perfect network: who is told to fill a key, and who is next when that one is gone.

mod town;

use bytes::Bytes;
use quorate_engine::effect::{Input, Side};
use quorate_protocol::id::NodeId;
use quorate_protocol::op::{FillV, Op, partition_of};
use quorate_protocol::reply::Reply;
use town::{Town, set};

const KEY: &str = "{a}key";
const BESIDE: &str = "{a}beside";
/// Longer than any of this takes; milliseconds.
const LONG: u64 = 600_000;
/// Ticks after which whoever is told at once has been told.
const SOON: u64 = 10;

fn fill() -> Op {
    Op::FillV(FillV { key: Bytes::from_static(KEY.as_bytes()), ms: LONG })
}

fn lead() -> Option<Reply> {
    Some(Reply::Array(vec![Reply::Nil, Reply::Int(0), Reply::Int(1)]))
}

/// Three nodes, and the leader of the key's partition.
fn town() -> (Town, u64) {
    let mut town = Town::new(3);
    assert_eq!(told(&mut town, 1, set(BESIDE, "v")), Reply::OK);
    let home = home(&town);
    (town, home)
}

fn home(town: &Town) -> u64 {
    let group = partition_of(KEY.as_bytes(), 16);
    let of_group = |node: u64| town.engine(node).report().into_iter().find(|report| report.group == group);
    of_group(1).and_then(|report| report.leader).expect("it has one").0
}

fn told(town: &mut Town, node: u64, op: Op) -> Reply {
    let id = town.ask_next(node, vec![op]);
    town.run_until("an answer", |town| town.answer(node, id).is_some());
    town.answer(node, id).expect("it was just seen")
}

#[test]
fn the_next_leads_at_once_when_the_node_of_the_one_before_is_cut_off() {
    let (mut town, home) = town();
    let (first, second) = (home % 3 + 1, 6 - home - (home % 3 + 1));
    let id = town.ask_next(first, vec![fill()]);
    town.run(SOON);
    assert_eq!(town.answer(first, id), lead());
    let waits = town.ask_next(second, vec![fill()]);
    town.run(SOON);
    assert_eq!(town.answer(second, waits), None, "one fills it");
    town.post(home, Input::LinkDown { peer: NodeId(first), side: Side::Reached });
    town.run(SOON);
    assert_eq!(town.answer(second, waits), lead());
    let late = town.ask_next(first, vec![fill()]);
    town.run(SOON);
    assert_eq!(town.answer(first, late), None, "it is back, and another one fills it");
    assert_eq!(told(&mut town, second, set(KEY, "filled")), Reply::OK);
    town.run(SOON);
    assert!(matches!(town.answer(first, late), Some(Reply::Array(fields)) if fields[2] == Reply::Int(0)));
}
