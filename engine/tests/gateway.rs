//! What a node tells its clients of commands whose parts fare differently.

use bytes::Bytes;
use quorate_engine::effect::{Effect, Request, Want};
use quorate_engine::gateway::Gateway;
use quorate_protocol::id::{Boot, GroupId, NodeId, SessionId};
use quorate_protocol::op::{Op, partition_of};
use quorate_protocol::peer::{Answer, Verdict};
use quorate_protocol::reply::{Code, Reply};

const PARTITIONS: u16 = 16;
const CONN: u64 = 7;

/// Two keys of different partitions.
fn two_keys() -> Vec<Bytes> {
    let first = Bytes::from("k0");
    let home = partition_of(&first, PARTITIONS);
    let other = (1..).map(|n| Bytes::from(format!("k{n}"))).find(|key| partition_of(key, PARTITIONS) != home);
    vec![first, other.expect("keys spread over partitions")]
}

/// The answer to a command over two partitions, of which the first does its part and the second refuses.
fn half_refused(op: Op) -> Reply {
    let mut gateway = Gateway::new(NodeId(1), Boot(1), PARTITIONS);
    gateway.set_session(SessionId(1));
    for group in 1..=PARTITIONS {
        gateway.set_route(0, GroupId(group), Some(NodeId(1)), 1);
    }
    gateway.connected(CONN, true);
    gateway.requests(0, CONN, vec![Request { id: 1, want: Want::Op(op), client: None, after: None }]);
    let forwards = gateway.take_forwards();
    assert_eq!(forwards.len(), 2, "a part for each partition");
    let replies = [Reply::Int(1), Reply::error(Code::ClusterDown, "no leader")];
    for ((_, forward), reply) in forwards.into_iter().zip(replies) {
        let sending = forward.asks[0].sending;
        let verdict = Verdict::Reply(reply);
        let answer = Answer { conn: forward.conn, request: 1, group: forward.group, sending, verdict };
        gateway.answered(0, answer);
    }
    let mut fx = Vec::new();
    gateway.take_effects(&mut fx);
    match fx.pop() {
        Some(Effect::Reply { conn: CONN, request: 1, reply }) => reply,
        other => panic!("{other:?} instead of a reply"),
    }
}

#[test]
fn a_read_that_one_partition_refuses_is_refused_and_a_write_is_in_doubt() {
    let code = |reply: Reply| reply.failure().map(|failure| failure.code);
    assert_eq!(code(half_refused(Op::Exists(two_keys()))), Some(Code::ClusterDown));
    assert_eq!(code(half_refused(Op::Del(two_keys()))), Some(Code::InDoubt));
}
