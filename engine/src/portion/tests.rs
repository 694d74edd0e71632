//! However much ends at once, each place in the log brings a portion of it to its end, and nothing is left in the end.

use alloc::format;
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::id::{ConnId, GroupId, LogPos, NodeId, SessionId};
use quorate_protocol::op::{Expiry, Fetch, Lock, Op, Pub, Set, Unlock, When};
use quorate_protocol::reply::Reply;

use super::*;
use crate::lock::Locks;
use crate::outcome::{Asker, Ctx, Outcome, Outcomes};
use crate::queue::Queues;
use crate::store::Store;
use crate::table::Rows;

fn ctx(index: u64, time: u64) -> Ctx {
    Ctx { at: LogPos { index, offset: 0 }, time }
}

fn conn(counter: u64) -> ConnId {
    ConnId { node: NodeId(1), session: SessionId(1), counter }
}

fn asker(counter: u64) -> Asker {
    Asker { conn: conn(counter), request: 1, client: None }
}

fn alone() -> Portion {
    Portion::of_entry(13, 0)
}

/// The same rows in a table of its own, as a snapshot brings them to another replica.
fn copied(from: Vec<&mut dyn Rows>, mut load: impl FnMut(u64, &mut Bytes)) {
    for table in from {
        table.begin_walk();
        let mut rows = Vec::new();
        let (count, more) = table.show(usize::MAX, &mut rows);
        assert!(!more, "all is shown at once");
        let mut rows = Bytes::from(rows);
        (0..count).for_each(|_| load(table.id(), &mut rows));
    }
}

#[test]
fn keys_that_expire_together_are_removed_by_portions_and_seen_by_nobody() {
    let (mut store, mut out) = (Store::new(), Outcomes::new());
    let set = |n: u64, when| {
        let (key, value, expiry) = (format!("key{n}").into(), "v".into(), Expiry::After(10));
        Op::Set(Set { key, value, when, expiry, get: false })
    };
    (0..5000).for_each(|n| _ = store.apply(&ctx(n, 0), set(n, When::Always)));
    let mut turns = 0;
    while store.next_deadline().is_some_and(|deadline| deadline <= 11) {
        let before = store.len();
        store.expire(&ctx(6000 + turns, 11), &mut alone(), &mut out);
        assert!(before - store.len() <= ALONE && before > store.len(), "{before} to {}", store.len());
        if turns == 3 {
            let get = |n| store.read(&Op::Get(format!("key{n}").into()), 11);
            assert!((0..5000).all(|n| get(n) == Reply::Nil), "removed or not, nobody sees them");
            let keys = (0..5000).map(|n| format!("key{n}").into()).rev().take(10).collect();
            assert_eq!(store.apply(&ctx(7000, 11), Op::Del(keys)), Reply::Int(0));
            assert!((0..10).all(|n| store.apply(&ctx(7001, 11), set(n, When::Absent)) == Reply::OK));
        }
        turns += 1;
    }
    assert_eq!(store.len(), 10, "those that were set anew");
    let mut busy = Portion::of_entry(640, 5);
    store.expire(&ctx(9000, 30), &mut busy, &mut out);
    assert_eq!(store.len(), 0, "entries with commands bring some to their end too");
}

#[test]
fn a_connection_with_many_locks_ends_by_portions_on_every_replica_alike() {
    let (mut locks, mut out) = (Locks::new(), Outcomes::new());
    let lock = |n: u64, wait| {
        let name = format!("lock{n}").into();
        Lock { name, shared: false, owner: None, ttl: 1_000_000, wait }
    };
    (0..1000).for_each(|n| locks.lock(&ctx(n, 0), &asker(1 + n % 2), lock(n, 0), &mut out));
    locks.lock(&ctx(1001, 0), &asker(3), lock(999, 1000), &mut out);
    locks.end_session(&ctx(1002, 0), NodeId(1), SessionId(2), &mut out);
    assert_eq!(locks.next_deadline(), Some(1001), "nothing was left of another session");
    let of_session = ConnId { counter: 3, ..conn(3) };
    out.clear();
    locks.close(&ctx(1003, 0), conn(1), &mut out);
    locks.close(&ctx(1004, 0), conn(2), &mut out);
    assert_eq!(locks.next_deadline(), Some(0), "there is a rest");
    let mut other = Locks::new();
    copied(locks.tables(), |table, rows| {
        // The first row of the counter is there from the beginning.
        other.load(table, rows).expect("it was just shown");
    });
    assert_eq!(other.digest(), locks.digest());
    let mut turns = 0;
    while locks.next_deadline() == Some(0) {
        let mut outs = [Outcomes::new(), Outcomes::new()];
        locks.expire(&ctx(1005 + turns, 1), &mut alone(), &mut outs[0]);
        other.expire(&ctx(1005 + turns, 1), &mut alone(), &mut outs[1]);
        assert_eq!((locks.digest(), &outs[0]), (other.digest(), &outs[1]));
        out.append(&mut outs[0]);
        turns += 1;
    }
    assert!((7..20).contains(&turns), "{turns} portions for 1000 locks");
    assert!(
        matches!(&out[..], [Outcome::Reply { to, reply: Reply::Int(1001) }] if to.conn == of_session),
        "who waited holds: {out:?}"
    );
    locks.close(&ctx(3000, 1), conn(3), &mut out);
    assert!(locks.is_empty(), "nothing else is left");
}

#[test]
fn a_lock_is_granted_to_many_by_portions() {
    let (mut locks, mut out) = (Locks::new(), Outcomes::new());
    let lock = |shared| Lock { name: "a".into(), shared, owner: None, ttl: 1_000_000, wait: 1_000_000 };
    locks.lock(&ctx(1, 0), &asker(1), lock(false), &mut out);
    (2..502).for_each(|n| locks.lock(&ctx(n, 0), &asker(n), lock(true), &mut out));
    out.clear();
    let unlock = Unlock { name: "a".into(), owner: None, token: None };
    locks.unlock(&ctx(600, 0), &asker(1), unlock, &mut out);
    assert!(out.len() < 50, "{} answers at once", out.len());
    let mut turns = 0;
    while locks.next_deadline() == Some(0) {
        let before = out.len();
        locks.expire(&ctx(601 + turns, 1), &mut alone(), &mut out);
        assert!(out.len() - before < 200, "{} answers at once", out.len() - before);
        turns += 1;
    }
    assert_eq!(out.len(), 501, "all were granted, in {turns} portions");
    (2..502).for_each(|n| locks.close(&ctx(700 + n, 1), conn(n), &mut out));
    assert!(locks.is_empty());
}

#[test]
fn messages_of_a_session_that_ends_come_back_by_portions() {
    let (mut queues, mut out) = (Queues::new(GroupId(1), 16), Outcomes::new());
    let publish = || Pub { topic: "jobs".into(), body: "b".into(), dedupe: None, delay: 0 };
    (0..2000).for_each(|n| queues.publish(&ctx(n, 0), &asker(9), publish(), &mut out));
    let fetch = |count, block| Fetch { topic: "jobs".into(), count, block, lease: Some(1_000_000) };
    (0..20).for_each(|n| queues.fetch(&ctx(3000 + n, 0), &asker(n), fetch(100, 0), &mut out));
    (0..20).for_each(|n| queues.fetch(&ctx(3100 + n, 0), &asker(n), fetch(1, 1000), &mut out));
    out.clear();
    queues.end_session(&ctx(4000, 0), NodeId(1), SessionId(1), &mut out);
    let mut turns = 0;
    while queues.next_deadline() == Some(0) {
        queues.expire(&ctx(4001 + turns, 1), &mut alone(), &mut out);
        turns += 1;
    }
    assert!((15..40).contains(&turns), "{turns} portions for 2000 messages");
    let nothing = |outcome: &Outcome| matches!(outcome, Outcome::Reply { reply: Reply::Nil, .. });
    assert!(out.len() == 20 && out.iter().all(nothing), "nobody of the session is served: {out:?}");
    assert_eq!(queues.next_deadline(), None, "nothing is with anybody");
    out.clear();
    queues.fetch(&ctx(5000, 1), &asker(100), fetch(1024, 0), &mut out);
    assert!(matches!(&out[..], [Outcome::Reply { reply: Reply::Array(all), .. }] if all.len() == 1024));
}
