//! Grants that wait for partitions, by what holders and waiters are told.

use alloc::string::String;
use alloc::{format, vec};
use quorate_protocol::id::NodeId;
use quorate_protocol::op::Lock;

use super::*;
use crate::outcome::Outcome;
use crate::script::{Script, conn};

/// Locks, and partitions that hear of floors when they are told to.
struct Town {
    script: Script<Locks>,
}

impl Town {
    fn new() -> Self {
        Self { script: Script::new(Locks::new()) }
    }

    fn say(&mut self, conn: u64, line: &str) -> String {
        self.script.say(conn, line)
    }

    /// A partition compares tokens of a lock that nobody holds; token 1 is gone.
    fn watched(partition: u16) -> Self {
        let mut town = Self::new();
        assert_eq!(town.say(90, "LOCK db"), "1");
        assert_eq!(town.watch(partition), (1, 1));
        assert_eq!(town.say(90, "UNLOCK db"), "1");
        town
    }

    /// A partition asks for a watch: the number and the floor.
    fn watch(&mut self, partition: u16) -> (i64, i64) {
        let asker = Asker { conn: conn(99), request: 1, client: None };
        let mut told = vec![];
        self.script.event(|locks, ctx, _| {
            locks.watch(ctx, &asker, ("db".into(), GroupId(partition)), &mut told);
        });
        match &told[..] {
            [Outcome::Reply { reply: Reply::Array(values), .. }] => match values[..] {
                [Reply::Int(number), Reply::Int(floor), Reply::Int(600_000)] => (number, floor),
                [Reply::Int(0), Reply::Int(floor), Reply::Int(0)] => (0, floor),
                _ => panic!("{values:?}"),
            },
            _ => panic!("{told:?}"),
        }
    }

    /// What a partition is told goes into the outbox.
    fn post(&mut self, partition: u16) -> Option<Item> {
        let target = GroupId(partition);
        let item = self.script.subject.fencing.next_due(target)?;
        self.script.subject.fencing.posted(target, &item);
        Some(item)
    }

    /// A partition is told of a grant, and says that it has heard.
    fn hear(&mut self, partition: u16) -> (u64, u64) {
        let Some(Item::Floor(floor)) = self.post(partition) else { panic!("a floor is due") };
        self.script.event(|locks, ctx, out| locks.confirmed(ctx, GroupId(partition), &floor, out));
        (floor.number, floor.token)
    }
}

#[test]
fn a_grant_waits_until_all_who_compare_have_heard() {
    let mut town = Town::new();
    assert_eq!(town.say(1, "LOCK db TTL 1000"), "1");
    assert_eq!((town.watch(3), town.watch(5)), ((1, 1), (2, 1)), "the holder's token is good");
    assert_eq!(town.say(2, "LOCK db WAIT 9000 TTL 1000"), "");
    assert_eq!(town.post(3), None, "nothing changes before the lock is free");
    assert_eq!(town.say(1, "UNLOCK db"), "1");
    assert_eq!(town.script.heard(), [""; 0]);
    assert_eq!(town.hear(3), (1, 2));
    assert_eq!(town.script.heard(), [""; 0], "the other one does not know yet");
    town.script.pass(5000);
    assert_eq!(town.hear(5), (2, 2));
    assert_eq!(town.script.heard(), ["2: 2"]);
    town.script.pass(999);
    assert_eq!(town.say(3, "LOCK db"), "(nil)", "the lease began with the grant");
}

#[test]
fn nobody_compares_then_nobody_waits() {
    let mut town = Town::new();
    assert_eq!(town.say(1, "LOCK db"), "1");
    assert_eq!(town.say(1, "UNLOCK db"), "1");
    assert_eq!(
        town.watch(3),
        (0, 2),
        "nobody holds it: all tokens so far are stale, and nobody need be told of more"
    );
    assert_eq!(town.say(1, "LOCK db"), "2");
    assert_eq!(town.say(1, "LOCK other"), "3");
}

#[test]
fn a_try_waits_a_second_for_partitions_and_no_longer() {
    let mut town = Town::watched(3);
    assert_eq!(town.say(1, "LOCK db"), "", "it waits for the partition");
    assert_eq!(town.say(2, "LOCK db"), "(nil)", "somebody is before it");
    town.script.pass(1000);
    assert_eq!(town.script.heard(), ["1: (nil)"]);
    assert_eq!(town.hear(3), (1, 2));
    assert_eq!(town.script.heard(), [""; 0], "nobody is there to be granted it");
    assert_eq!(town.say(2, "LOCK db WAIT 50"), "");
    town.script.pass(50);
    assert_eq!(town.script.heard(), ["2: (nil)"], "whoever says how long waits that long");
    assert_eq!(town.say(2, "LOCK db"), "");
    assert_eq!(town.hear(3), (1, 4), "with a token of its own");
    assert_eq!(town.script.heard(), ["2: 4"]);
}

#[test]
fn a_grant_that_was_withdrawn_is_not_confirmed_by_its_floor() {
    let mut town = Town::watched(3);
    assert_eq!(town.say(1, "LOCK db WAIT 2000"), "");
    let Some(Item::Floor(first)) = town.post(3) else { panic!("a floor is due") };
    assert_eq!(town.say(2, "LOCK db WAIT 9000"), "");
    town.script.pass(2000);
    assert_eq!(town.script.heard(), ["1: (nil)"]);
    town.script.event(|locks, ctx, out| locks.confirmed(ctx, GroupId(3), &first, out));
    assert_eq!(
        town.script.heard(),
        [""; 0],
        "the second one has a token that the partition has not heard of"
    );
    assert_eq!(town.hear(3), (1, 3));
    assert_eq!(town.script.heard(), ["2: 3"]);
}

#[test]
fn who_joins_an_era_waits_for_nobody() {
    let mut town = Town::watched(3);
    assert_eq!(town.say(1, "LOCK db SHARED WAIT 9000"), "");
    assert_eq!(town.say(2, "LOCK db SHARED WAIT 9000"), "");
    assert_eq!(town.hear(3), (1, 2));
    assert_eq!(town.script.heard(), ["1: 2", "2: 3"]);
    assert_eq!(town.say(3, "LOCK db SHARED"), "4");
    assert_eq!(town.post(3), None);
    assert_eq!(town.watch(5), (2, 2), "all of them are good");
    for conn in 1..=3 {
        assert_eq!(town.say(conn, "UNLOCK db"), "1");
    }
    assert_eq!(town.say(4, "LOCK db WAIT 9000"), "");
    assert_eq!((town.hear(3), town.hear(5)), ((1, 5), (2, 5)));
    assert_eq!(town.script.heard(), ["4: 5"]);
}

#[test]
fn an_upgrade_begins_an_era() {
    let mut town = Town::new();
    assert_eq!(town.say(1, "LOCK db SHARED"), "1");
    town.watch(3);
    assert_eq!(town.say(1, "LOCK db WAIT 9000"), "");
    assert_eq!(town.hear(3), (1, 2));
    assert_eq!(town.script.heard(), ["1: 2"]);
}

#[test]
fn who_upgrades_alone_waits_only_for_partitions() {
    let mut town = Town::new();
    assert_eq!(town.say(1, "LOCK db SHARED TTL 1000 OWNER a"), "1");
    assert_eq!(town.say(2, "LOCK db SHARED TTL 9000 OWNER b"), "2");
    town.watch(3);
    assert_eq!(town.say(1, "LOCK db OWNER a WAIT 5000"), "");
    town.script.pass(1000);
    // The first one holds it no more, waits for the second one, and stands before it.
    assert_eq!(town.say(2, "LOCK db OWNER b"), "");
    assert_eq!(town.hear(3), (1, 3));
    assert_eq!(town.script.heard().last().expect("it is granted"), "2: 3");
}

#[test]
fn who_watches_during_an_era_need_not_be_waited_for() {
    let mut town = Town::watched(3);
    assert_eq!(town.say(1, "LOCK db WAIT 9000"), "");
    assert_eq!(town.watch(5), (2, 2), "it is told of the grant to come");
    assert_eq!(town.watch(3), (3, 2), "so is who asks again");
    assert_eq!(town.hear(3), (3, 2));
    assert_eq!(town.script.heard(), ["1: 2"]);
}

#[test]
fn a_request_made_anew_gets_a_token_of_its_own() {
    let mut town = Town::watched(3);
    assert_eq!(town.say(1, "LOCK db OWNER me WAIT 9000"), "");
    assert_eq!(town.say(2, "LOCK other"), "3");
    assert_eq!(town.say(3, "LOCK db OWNER me WAIT 9000"), "");
    assert!(town.script.heard()[0].starts_with("1: -INDOUBT"));
    // Who stands behind holds nobody up by asking again.
    for conn in 4..=5 {
        assert_eq!(town.say(conn, "LOCK db OWNER you WAIT 9000"), "");
    }
    town.script.heard();
    assert_eq!(town.hear(3), (1, 4));
    assert_eq!(town.script.heard(), ["3: 4"]);
}

#[test]
fn a_connection_that_ends_leaves_no_era() {
    let mut town = Town::watched(3);
    assert_eq!(town.say(1, "LOCK db WAIT 9000"), "");
    let session = quorate_protocol::id::SessionId(1);
    town.script.event(|locks, ctx, out| locks.end_session(ctx, NodeId(1), session, out));
    assert_eq!(town.hear(3), (1, 2));
    assert!(town.script.subject.fencing.eras.is_empty());
    assert!(town.script.subject.is_empty());
}

#[test]
fn a_watch_ends_when_nobody_has_asked_for_it_for_long() {
    let mut town = Town::new();
    assert_eq!(town.say(90, "LOCK db TTL 2000000"), "1");
    town.watch(3);
    town.script.pass(300_000);
    town.watch(3);
    town.script.pass(599_999);
    assert_eq!(town.post(3), None);
    assert_eq!(town.script.subject.next_deadline(), Some(1001 + 900_000));
    town.script.pass(1);
    let Some(Item::Unwatched(ended)) = town.post(3) else { panic!("it is over") };
    assert_eq!(ended, ("db".into(), 2));
    // Until the partition has heard that, it compares.
    assert_eq!(town.say(90, "UNLOCK db"), "1");
    assert_eq!(town.say(1, "LOCK db WAIT 9000"), "");
    assert_eq!(town.hear(3), (2, 2));
    assert_eq!(town.script.heard(), ["1: 2"]);
    town.script.event(|locks, _, _| locks.fencing.forget(GroupId(3), ended.0, ended.1));
    assert_eq!(town.say(1, "UNLOCK db"), "1");
    assert_eq!(town.say(2, "LOCK db"), "3");
}

#[test]
fn who_asks_again_meanwhile_keeps_its_watch() {
    let mut town = Town::new();
    assert_eq!(town.say(90, "LOCK db TTL 2000000"), "1");
    town.watch(3);
    town.script.pass(600_000);
    let Some(Item::Unwatched(ended)) = town.post(3) else { panic!("it is over") };
    assert_eq!(town.watch(3), (2, 1));
    town.script.event(|locks, _, _| locks.fencing.forget(GroupId(3), ended.0, ended.1));
    assert_eq!(town.say(90, "UNLOCK db"), "1");
    assert_eq!(town.say(1, "LOCK db WAIT 9000"), "");
    assert_eq!(town.hear(3), (2, 2));
}

#[test]
fn there_are_only_so_many_watches() {
    let mut locks = Locks::new();
    let asker = Asker { conn: conn(99), request: 1, client: None };
    let ctx = Ctx { at: quorate_protocol::id::LogPos { index: 1, offset: 0 }, time: 0 };
    let mut out = vec![];
    for n in 0..=WATCHES_MAX {
        let name: Bytes = format!("l{n}").into();
        let lock = Lock { name: name.clone(), shared: false, owner: None, ttl: 1000, wait: 0 };
        locks.lock(&ctx, &asker, lock, &mut out);
        out.clear();
        locks.watch(&ctx, &asker, (name, GroupId(1)), &mut out);
    }
    let [Outcome::Reply { reply, .. }] = &out[..] else { panic!("{out:?}") };
    assert!(reply.failure().is_some_and(|failure| failure.code == Code::Err));
    assert_eq!(locks.fencing.watches.len(), WATCHES_MAX);
    locks.watch(&ctx, &asker, ("l0".into(), GroupId(1)), &mut out);
    assert!(matches!(&out[1], Outcome::Reply { reply: Reply::Array(_), .. }), "it has one already");
}

#[test]
fn what_is_left_to_tell_survives_a_snapshot() {
    let mut town = Town::new();
    assert_eq!(town.say(90, "LOCK db"), "1");
    for partition in [3, 5, 7] {
        town.watch(partition);
    }
    assert_eq!(town.say(90, "UNLOCK db"), "1");
    assert_eq!(town.say(1, "LOCK db WAIT 9000"), "");
    town.post(3);
    let mut loaded = Locks::new();
    for table in town.script.subject.tables() {
        let mut rows = vec![];
        table.begin_walk();
        let (count, _) = table.show(usize::MAX, &mut rows);
        let mut rows = Bytes::from(rows);
        (0..count).for_each(|_| loaded.load(table.id(), &mut rows).expect("it is a row"));
    }
    assert_eq!(loaded.digest(), town.script.subject.digest());
    assert_eq!(loaded.fencing.due, town.script.subject.fencing.due);
    assert_eq!(loaded.fencing.ends, town.script.subject.fencing.ends);
}
