//! The node's counter under histories that a lucky network never shows.

use bytes::Bytes;
use quorate_engine::effect::{Effect, Request, Want};
use quorate_engine::gateway::Gateway;
use quorate_protocol::id::{Boot, ClientId, ClientSeq, ConnId, GroupId, NodeId, SessionId};
use quorate_protocol::op::{Expiry, Fence, FencedSet, Op, Set, Watch, When, partition_of};
use quorate_protocol::peer::{Answer, Forward, Verdict, Work};
use quorate_protocol::reply::{Code, Reply};

const NODES: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

fn set(key: &'static str) -> Op {
    let (key, value) = (Bytes::from_static(key.as_bytes()), Bytes::from_static(b"v"));
    Op::Set(Set { key, value, when: When::Always, expiry: Expiry::Never, get: false })
}

fn del(keys: [&'static str; 2]) -> Op {
    Op::Del(keys.map(|key| Bytes::from_static(key.as_bytes())).into())
}

fn request(id: u64, op: Op) -> Request {
    Request { id, want: Want::Op(op), client: None, after: None }
}

/// Node 1's gateway with one connection; node 2 leads everything in term 5.
fn gateway(ordered: bool) -> Gateway {
    let mut gateway = Gateway::new(NODES[0], Boot(1), 16);
    gateway.link_up(1, NODES[1]);
    gateway.link_up(1, NODES[2]);
    for group in 0..=16 {
        gateway.set_route(1, GroupId(group), Some(NODES[1]), 5);
    }
    gateway.connected(1, ordered);
    gateway
}

fn answer(request: u64, group: GroupId, verdict: Verdict) -> Answer {
    let conn = ConnId::new(NODES[0], SessionId(0), Boot(1), 1);
    Answer { conn, request, group, sending: 1, verdict, grant: None }
}

fn asked(forwards: &[(NodeId, Forward)], group: GroupId) -> Vec<u64> {
    let of_group = forwards.iter().filter(|(_, forward)| forward.group == group);
    of_group.flat_map(|(_, forward)| &forward.asks).map(|ask| ask.request).collect()
}

fn replies(gateway: &mut Gateway) -> Vec<(u64, Reply)> {
    let mut fx = Vec::new();
    gateway.take_effects(&mut fx);
    let reply = |effect| match effect {
        Effect::Reply { request, reply, .. } => Some((request, reply)),
        _ => None,
    };
    fx.into_iter().filter_map(reply).collect()
}

#[test]
fn a_share_that_comes_back_is_not_overtaken_while_another_is_on_its_way() {
    let (a, b) = (partition_of(b"a", 16), partition_of(b"b", 16));
    assert_ne!(a, b);
    let mut gateway = gateway(true);
    gateway.requests(2, 1, vec![request(1, del(["a", "b"])), request(2, set("b"))]);
    assert_eq!(asked(&gateway.take_forwards(), b), [1, 2]);
    gateway.answered(3, answer(1, b, Verdict::Moved));
    gateway.answered(3, answer(2, b, Verdict::Moved));
    gateway.set_route(4, b, Some(NODES[2]), 6);
    gateway.end_turn(4);
    assert_eq!(asked(&gateway.take_forwards(), b), [1, 2], "in the order in which they were asked");
    let ok = |n| Verdict::Reply(Reply::Int(n));
    gateway.answered(5, answer(1, a, ok(1)));
    gateway.answered(5, answer(1, b, ok(1)));
    gateway.answered(5, answer(2, b, Verdict::Reply(Reply::OK)));
    assert_eq!(replies(&mut gateway), [(1, Reply::Int(2)), (2, Reply::OK)]);
}

#[test]
fn a_share_that_nobody_takes_leaves_the_whole_in_doubt_once_another_was_done() {
    let (a, b) = (partition_of(b"a", 16), partition_of(b"b", 16));
    let mut gateway = gateway(true);
    gateway.requests(2, 1, vec![request(1, del(["a", "b"]))]);
    gateway.take_forwards();
    gateway.answered(3, answer(1, b, Verdict::Moved));
    gateway.tick(3);
    gateway.tick(1_000_000);
    assert!(replies(&mut gateway).is_empty(), "the other share is on its way");
    gateway.answered(1_000_001, answer(1, a, Verdict::Reply(Reply::Int(1))));
    let answered = replies(&mut gateway);
    let [(1, Reply::Error(failure))] = &answered[..] else { panic!("{answered:?}") };
    assert_eq!(failure.code, Code::InDoubt);
}

#[test]
fn whatever_waits_for_an_answer_goes_when_it_comes() {
    let a = partition_of(b"a", 16);
    let mut gateway = gateway(false);
    let behind = |id, after| Request { after: Some(after), ..request(id, set("a")) };
    gateway.requests(2, 1, vec![request(1, set("a")), behind(2, 1), behind(3, 2), behind(4, 1)]);
    assert_eq!(asked(&gateway.take_forwards(), a), [1]);
    gateway.answered(3, answer(1, a, Verdict::Reply(Reply::OK)));
    assert_eq!(asked(&gateway.take_forwards(), a), [2, 4]);
    gateway.answered(4, answer(4, a, Verdict::Reply(Reply::OK)));
    gateway.answered(4, answer(2, a, Verdict::Reply(Reply::OK)));
    assert_eq!(asked(&gateway.take_forwards(), a), [3]);
}

#[test]
fn a_read_that_one_partition_refuses_is_refused_and_a_write_is_in_doubt() {
    let keys = || ["a", "b"].map(|key| Bytes::from_static(key.as_bytes())).into();
    let (a, b) = (partition_of(b"a", 16), partition_of(b"b", 16));
    for (op, expected) in [(Op::Exists(keys()), Code::ClusterDown), (del(["a", "b"]), Code::InDoubt)] {
        let mut gateway = gateway(true);
        gateway.requests(2, 1, vec![request(1, op)]);
        gateway.take_forwards();
        gateway.answered(3, answer(1, a, Verdict::Reply(Reply::Int(1))));
        let down = Reply::error(Code::ClusterDown, "no leader");
        gateway.answered(3, answer(1, b, Verdict::Reply(down)));
        let answered = replies(&mut gateway);
        let [(1, Reply::Error(failure))] = &answered[..] else { panic!("{answered:?}") };
        assert_eq!(failure.code, expected);
    }
}

/// The log here has left the old term behind without the request: it never took effect, and never will.
#[test]
fn what_a_former_leader_cannot_bring_to_effect_any_more_goes_to_the_next_one() {
    let a = partition_of(b"a", 16);
    let mut gateway = gateway(true);
    gateway.hold_replica(a);
    gateway.set_applied(a, 5, true);
    gateway.requests(2, 1, vec![request(1, set("a")), request(2, set("a"))]);
    assert_eq!(asked(&gateway.take_forwards(), a), [1, 2]);
    gateway.answered(3, answer(1, a, Verdict::Reply(Reply::OK)));
    gateway.set_route(4, a, Some(NODES[2]), 6);
    gateway.end_turn(4);
    assert!(gateway.take_forwards().is_empty(), "the old leader may have brought it into the log");
    gateway.set_applied(a, 6, true);
    gateway.end_turn(5);
    assert_eq!(asked(&gateway.take_forwards(), a), [2]);
    // What the old leader says of the first sending counts no more.
    gateway.answered(6, answer(2, a, Verdict::Moved));
    assert!(gateway.take_forwards().is_empty());
    gateway.answered(7, Answer { sending: 2, ..answer(2, a, Verdict::Reply(Reply::OK)) });
    assert_eq!(replies(&mut gateway), [(1, Reply::OK), (2, Reply::OK)]);
}

#[test]
fn who_may_have_missed_the_outcome_sends_nothing_again() {
    let a = partition_of(b"a", 16);
    // No replica here; one that applies in silence what was in its log; one that leaps over a part of the log.
    for case in 0..3 {
        let mut gateway = gateway(true);
        if case > 0 {
            gateway.hold_replica(a);
        }
        gateway.set_applied(a, 5, case != 1);
        gateway.requests(2, 1, vec![request(1, set("a"))]);
        gateway.take_forwards();
        if case == 2 {
            gateway.skipped(a);
        }
        gateway.set_route(3, a, Some(NODES[2]), 6);
        gateway.set_applied(a, 6, true);
        gateway.end_turn(4);
        gateway.tick(5_000_000);
        assert!(gateway.take_forwards().is_empty(), "case {case}");
        let answered = replies(&mut gateway);
        let [(1, Reply::Error(failure))] = &answered[..] else { panic!("{answered:?}") };
        assert_eq!(failure.code, Code::InDoubt, "case {case}");
    }
}

fn fenced(token: u64) -> Op {
    let Op::Set(set) = set("a") else { unreachable!() };
    let lock = Bytes::from_static(b"l");
    Op::FencedSet(FencedSet { fence: Fence { lock, token, watch: None }, set })
}

/// Tokens of a lock that nobody holds: those below the next of all are stale, the others nobody can have.
#[test]
fn a_token_that_was_never_given_is_refused_by_the_first_answer_that_tells() {
    let (a, lock) = (partition_of(b"a", 16), Bytes::from_static(b"l"));
    let free = Watch { number: 0, floor: 7 };
    let mut gateway = gateway(true);
    gateway.requests(10, 1, vec![request(1, fenced(7))]);
    assert_eq!(gateway.take_unwatched().len(), 1);
    gateway.set_watch(10, (lock.clone(), a), free, 0);
    gateway.end_turn(20);
    let told = replies(&mut gateway);
    let [(1, Reply::Error(failure))] = &told[..] else { panic!("{told:?}") };
    assert!(failure.code == Code::Err && failure.text.starts_with("7 was never given"), "{failure:?}");
    assert!(gateway.take_unwatched().is_empty());

    // It may have been granted since that was asked, also while the answer was on its way.
    gateway.requests(30, 1, vec![request(2, fenced(7))]);
    assert_eq!((replies(&mut gateway), gateway.take_unwatched().len()), (vec![], 1));
    gateway.set_watch(29, (lock.clone(), a), free, 0);
    gateway.end_turn(40);
    assert_eq!((replies(&mut gateway), gateway.take_unwatched().len()), (vec![], 1));
    gateway.set_watch(40, (lock, a), Watch { number: 3, floor: 7 }, 1000);
    gateway.end_turn(50);
    assert_eq!(asked(&gateway.take_forwards(), a), [2]);
}

/// Its partition may have executed it before, by way of another node, and answers that.
#[test]
fn a_token_that_was_never_given_goes_to_its_partition_once_if_it_comes_in_a_client_session() {
    let (a, lock) = (partition_of(b"a", 16), Bytes::from_static(b"l"));
    let mut gateway = gateway(true);
    gateway.requests(2, 1, vec![Request { id: 1, want: Want::OpenClient, client: None, after: None }]);
    gateway.take_forwards();
    let opened = Reply::Array(vec![Reply::Int(9), Reply::Int(0)]);
    gateway.answered(3, answer(1, GroupId::SYSTEM, Verdict::Reply(opened)));
    assert_eq!(replies(&mut gateway), [(1, Reply::Int(9))]);
    gateway.set_introduced(ClientId(9), a);
    let client = Some(ClientSeq { client: ClientId(9), seq: 1, lowest: 1 });
    gateway.requests(10, 1, vec![Request { client, ..request(2, fenced(7)) }]);
    assert_eq!((asked(&gateway.take_forwards(), a), gateway.take_unwatched().len()), (vec![], 1));
    gateway.set_watch(10, (lock, a), Watch { number: 0, floor: 7 }, 0);
    gateway.end_turn(20);
    assert_eq!((replies(&mut gateway), gateway.take_unwatched().len()), (vec![], 0));
    let forwards = gateway.take_forwards();
    let [(_, forward)] = &forwards[..] else { panic!("{forwards:?}") };
    let Work::Op(op) = &forward.asks[0].work else { panic!("{forward:?}") };
    let told: Vec<_> = op.fences().map(|fence| fence.watch).collect();
    assert_eq!(told, [Some(Watch { number: 0, floor: 7 })], "and what it needs to refuse it");
}
