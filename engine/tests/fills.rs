//! GETV FILL in a whole cluster on a perfect network: who is told to fill a key, and who is next when that one is gone.

mod town;

use bytes::Bytes;
use quorate_engine::effect::{Input, Side};
use quorate_protocol::id::NodeId;
use quorate_protocol::op::{FillV, Op, SetBack, partition_of};
use quorate_protocol::reply::Reply;
use town::{Town, get, set};

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
    home_seen_by(town, 1).expect("it has one")
}

fn home_seen_by(town: &Town, node: u64) -> Option<u64> {
    let group = partition_of(KEY.as_bytes(), 16);
    let report = town.engine(node).report().into_iter().find(|report| report.group == group);
    report.and_then(|report| report.leader).map(|leader| leader.0)
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

#[test]
fn nobody_leads_by_the_word_of_a_home_that_is_cut_off() {
    let (mut town, home) = town();
    let (first, second) = (home % 3 + 1, 6 - home - (home % 3 + 1));
    let leads = town.ask_next(first, vec![fill()]);
    town.run(SOON);
    assert_eq!(town.answer(first, leads), lead());
    let waits = town.ask_next(home, vec![fill()]);
    town.run(SOON);
    // It has no lease any more when it hears that the link to the one who fills is gone, and still takes itself for the leader.
    town.cut_off.insert(NodeId(home));
    town.run(12);
    town.post(home, Input::LinkDown { peer: NodeId(first), side: Side::Reached });
    town.run(1);
    assert_eq!(town.answer(home, waits), None, "the key may be there by now");
    town.run_until("another one leads", |town| {
        home_seen_by(town, second).is_some_and(|leader| leader != home)
    });
    assert_eq!(told(&mut town, second, set(KEY, "filled")), Reply::OK);
    assert_eq!(town.answer(home, waits), None);
    town.cut_off.clear();
    town.run_until("it is told", |town| town.answer(home, waits).is_some());
    let told = town.answer(home, waits);
    assert!(matches!(&told, Some(Reply::Array(fields)) if fields[2] == Reply::Int(0)), "{told:?}");
}

#[test]
fn who_is_gone_before_it_could_be_told_leads_nothing() {
    let (mut town, home) = town();
    let others = [home % 3 + 1, 6 - home - (home % 3 + 1)];
    // Without a lease the home has to ask before it reads; it hears that its client is gone meanwhile.
    town.cut_off.extend(others.map(NodeId));
    town.run(12);
    let gone = town.ask_next(home, vec![fill()]);
    town.post(home, Input::Disconnected { conn: 1 });
    town.run(1);
    assert_eq!(town.answer(home, gone), None);
    town.cut_off.clear();
    town.run(SOON);
    assert_eq!(self::home(&town), home, "it leads as before");
    assert_eq!(town.engine(home).counts().fills, [0, 0], "nobody is there");
    let waits = town.ask_next(others[0], vec![fill()]);
    town.run(SOON);
    assert_eq!(town.answer(others[0], waits), lead());
}

#[test]
fn who_fills_a_key_behind_an_owner_does_not_hold_up_what_it_reads_next() {
    let (mut town, home) = town();
    let (owner, other) = (home % 3 + 1, 6 - home - (home % 3 + 1));
    let back = || {
        let (key, value) = (Bytes::from_static(KEY.as_bytes()), Bytes::from_static(b"v"));
        Op::SetBack(SetBack { key, value })
    };
    let owns = |town: &Town| town.engine(owner).write_backs().absorbed > 0;
    for _ in 0..50 {
        if owns(&town) {
            break;
        }
        assert_eq!(told(&mut town, owner, back()), Reply::OK);
        town.run(5);
    }
    assert!(owns(&town), "node {owner} takes nothing on");
    town.cut_off.insert(NodeId(owner));
    // Both wait until the owner's lease is over, and the read is answered behind the DEL.
    let fills = town.ask_next(home, vec![fill()]);
    let del = town.ask_next(other, vec![Op::Del(vec![Bytes::from_static(KEY.as_bytes())])]);
    town.run_until("both are answered", |town| {
        town.answer(home, fills).is_some() && town.answer(other, del).is_some()
    });
    assert_eq!(town.answer(home, fills), lead());
    // A write that is not committed: only what must wait for it does.
    town.silent.extend([NodeId(home), NodeId(other)]);
    let write = town.ask_next(other, vec![set(BESIDE, "w")]);
    town.run(3);
    let read = town.ask_next(home, vec![get(BESIDE)]);
    town.run(2);
    assert_eq!((town.answer(other, write), town.answer(home, read)), (None, Some(Reply::text("v"))));
    town.unsilence();
    town.run(SOON);
    assert_eq!(town.answer(other, write), Some(Reply::OK));
}
