//! Queues by the contract's sentences, and over many random steps.

use alloc::collections::BTreeSet;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use quorate_protocol::id::LogPos;
use quorate_protocol::op::Op;
use quorate_protocol::peer::Letter;

use super::*;
use crate::script::{Dice, Script, Subject, conn};
use quorate_protocol::id::{NodeId, SessionId};

impl Subject for Queues {
    fn expire(&mut self, ctx: &Ctx, out: &mut Outcomes) {
        Queues::expire(self, ctx, &mut crate::portion::Portion::endless(), out);
    }

    fn apply(&mut self, ctx: &Ctx, asker: &Asker, op: Op, out: &mut Outcomes) {
        match op {
            Op::Pub(op) => self.publish(ctx, asker, op, out),
            Op::Fetch(op) => self.fetch(ctx, asker, op, out),
            Op::Ack(op) => self.ack(ctx, asker, op, out),
            Op::Nack(op) => self.nack(ctx, asker, op, out),
            Op::Sub(op) => self.sub(ctx, asker, op, out),
            Op::Unsub(topic) => self.unsub(ctx, asker, &topic, out),
            Op::QSet(op) => self.qset(ctx, asker, op, out),
            Op::QInfo(topic) => answer(out, *asker, self.info(&topic)),
            other => panic!("{other:?} is not for queues"),
        }
    }

    fn check(&self) {
        assert_eq!(self.index, self.rebuilt(), "the index is what the rows say");
        assert_eq!(self.bodies.len(), self.messages.len());
        assert_eq!(
            self.bytes,
            self.messages.iter().map(|(key, _)| cost(self.bodies.size(key).unwrap())).sum::<u64>()
        );
        for (number, line) in &self.index.lines {
            let hungry = !line.waiters.is_empty() || !line.hungry.is_empty();
            assert!(line.ready.is_empty() || !hungry, "nothing is ready while somebody waits for it");
            let topic = self.topics.get(&line.name).expect("every line has a topic");
            assert_eq!(topic.number, *number);
            let set_up = topic.lease.is_some() || topic.max_deliver.is_some() || topic.dlq.is_some();
            assert!(set_up || !line.is_idle(), "an idle topic is gone");
        }
    }
}

fn queues() -> Script<Queues> {
    Script::new(Queues::new(GroupId(1), 1))
}

#[test]
fn first_in_first_out_until_acknowledged() {
    let mut q = queues();
    assert_eq!(q.say(1, "FETCH jobs"), "(nil)");
    let ids: Vec<String> = ["a", "b", "c"].iter().map(|body| q.say(1, &format!("PUB jobs {body}"))).collect();
    assert_eq!(q.say(2, "FETCH jobs COUNT 2"), format!("1) {} 1 a\n2) {} 1 b", ids[0], ids[1]));
    assert_eq!(q.say(3, "FETCH jobs COUNT 9"), format!("1) {} 1 c", ids[2]));
    assert_eq!(q.say(9, &format!("ACK jobs {} {} 12345", ids[0], ids[1])), "2", "on any connection");
    assert_eq!(q.say(9, &format!("ACK jobs {}", ids[0])), "0", "it is gone");
    assert_eq!(q.say(9, &format!("ACK jobs {}", ids[2])), "1");
    assert_eq!(q.say(1, "QINFO jobs"), "(nil)", "an empty topic vanishes");
    assert_eq!(q.subject.digest(), {
        let mut fresh = Queues::new(GroupId(1), 1);
        fresh.last_topic.insert(0, 1);
        fresh.digest()
    });
}

#[test]
fn a_lease_that_ends_brings_the_message_back_to_its_place() {
    let mut q = queues();
    let a = q.say(1, "PUB jobs a");
    let b = q.say(1, "PUB jobs b");
    assert_eq!(q.say(2, "FETCH jobs"), format!("1) {a} 1 a"));
    q.pass(MESSAGE_LEASE - 1);
    assert!(q.say(2, "QINFO jobs").contains("unacknowledged: 1"));
    q.pass(1);
    assert_eq!(q.say(3, "FETCH jobs COUNT 2 LEASE 50"), format!("1) {a} 2 a\n2) {b} 1 b"));
    assert_eq!(q.say(2, &format!("ACK jobs {a}@1")), "0", "a stale attempt settles nothing");
    q.pass(50);
    assert_eq!(
        q.say(2, &format!("ACK jobs {a}@2 {b}")),
        "2",
        "the newest delivery settles, also when it came back"
    );
}

#[test]
fn a_fetch_that_waits_is_served_in_turn_or_answered_nil() {
    let mut q = queues();
    assert_eq!(q.say(1, "FETCH jobs BLOCK 100"), "");
    assert_eq!(q.say(2, "FETCH jobs BLOCK 500 COUNT 3"), "");
    let a = q.say(3, "PUB jobs a");
    assert_eq!(q.heard(), [format!("1: 1) {a} 1 a")]);
    q.pass(500);
    assert_eq!(q.heard(), ["2: (nil)"]);
    assert_eq!(q.say(1, "FETCH jobs BLOCK 30000"), "");
    q.pass(MESSAGE_LEASE - 500);
    assert_eq!(q.heard(), [format!("1: 1) {a} 2 a")], "at equal times the message comes before the nil");
}

#[test]
fn a_publishers_id_names_one_message_for_two_minutes() {
    let mut q = queues();
    let first = q.say(1, "PUB jobs a ID x");
    assert_eq!(q.say(2, "PUB jobs other ID x"), first);
    assert_ne!(q.say(2, "PUB elsewhere a ID x"), first, "per topic");
    assert_eq!(q.say(1, "FETCH jobs"), format!("1) {first} 1 a"));
    assert_eq!(q.say(1, &format!("ACK jobs {first}")), "1");
    assert_eq!(q.say(1, "PUB jobs a ID x"), first, "also when it is settled");
    q.pass(DEDUPE_WINDOW);
    assert_ne!(q.say(1, "PUB jobs a ID x"), first);
}

#[test]
fn delays_and_nacks() {
    let mut q = queues();
    let a = q.say(1, "PUB jobs a DELAY 100");
    assert_eq!(q.say(1, "FETCH jobs"), "(nil)");
    q.pass(100);
    assert_eq!(q.say(1, "FETCH jobs"), format!("1) {a} 1 a"));
    assert!(q.say(2, &format!("NACK jobs {a}")).starts_with("-ERR another connection"));
    assert_eq!(q.say(2, &format!("NACK jobs {a}@7")), "0");
    assert_eq!(q.say(2, &format!("NACK jobs {a}@1")), "1");
    assert_eq!(q.say(1, &format!("NACK jobs {a}")), "0", "it is with nobody");
    assert_eq!(q.say(1, "FETCH jobs"), format!("1) {a} 2 a"));
    assert_eq!(q.say(1, &format!("NACK jobs {a} DELAY 70")), "1");
    q.pass(69);
    assert_eq!(q.say(1, "FETCH jobs"), "(nil)");
    q.pass(1);
    assert_eq!(q.say(1, "FETCH jobs"), format!("1) {a} 3 a"));
}

#[test]
fn what_fails_too_often_becomes_a_dead_letter_and_is_never_lost() {
    let mut q = queues();
    assert_eq!(q.say(1, "QSET jobs MAXDELIVER 2 LEASE 10"), "OK");
    let a = q.say(1, "PUB jobs a");
    let b = q.say(1, "PUB jobs b");
    for attempt in 1..=2 {
        assert_eq!(q.say(1, "FETCH jobs"), format!("1) {a} {attempt} a"));
        q.pass(10);
    }
    assert_eq!(q.say(1, "FETCH jobs"), format!("1) {b} 1 b"));
    assert_eq!(q.say(1, &format!("NACK jobs {b} DEAD")), "1");
    assert_eq!(q.say(1, "FETCH jobs"), "(nil)");
    for attempt in 1..=20 {
        let letters = format!("1) {a} {attempt} a\n2) {b} {attempt} b");
        assert_eq!(q.say(1, "FETCH jobs.dlq COUNT 9"), letters, "dead letters stay until they are settled");
        q.pass(MESSAGE_LEASE);
    }
    assert!(q.say(1, &format!("NACK jobs.dlq {a} DEAD")).starts_with('0'));
    assert_eq!(q.say(1, &format!("ACK jobs.dlq {a} {b}")), "2");
    assert!(q.say(1, "QINFO jobs").contains("maxdeliver: 2"), "settings stay");
    assert_eq!(q.say(1, "QSET jobs MAXDELIVER 16 LEASE 30000"), "OK");
    assert_eq!(q.say(1, "QINFO jobs"), "(nil)", "default settings are none");
}

#[test]
fn subscriptions_share_the_work_up_to_their_prefetch() {
    let mut q = queues();
    assert_eq!(q.say(1, "SUB jobs PREFETCH 2"), "OK");
    assert_eq!(q.say(2, "SUB jobs PREFETCH 2"), "OK");
    let ids: Vec<String> = (0..5).map(|n| q.say(9, &format!("PUB jobs m{n}"))).collect();
    let served = |to: u64, n: usize| format!("push {to}: {} 1 m{n}", ids[n]);
    assert_eq!(q.heard(), [served(1, 0), served(2, 1), served(1, 2), served(2, 3)]);
    assert!(q.say(9, "QINFO jobs").contains("ready: 1"));
    assert_eq!(q.say(2, &format!("ACK jobs {}", ids[3])), "1");
    assert_eq!(q.heard(), [served(2, 4)], "room for one more");
    assert_eq!(q.say(1, "UNSUB jobs"), "1");
    assert_eq!(q.say(1, "UNSUB jobs"), "0");
    q.event(|queues, ctx, out| queues.close(ctx, conn(1), out));
    assert!(q.say(9, "QINFO jobs").contains("ready: 2"), "what it had comes back");
    assert_eq!(q.say(3, "SUB jobs"), "OK");
    let again = |n: usize| format!("push 3: {} 2 m{n}", ids[n]);
    assert_eq!(q.heard(), [again(0), again(2)]);
}

#[test]
fn pushes_are_bounded_in_bytes_too() {
    let mut q = queues();
    let body = "x".repeat(6 << 20);
    let ids: Vec<String> = (0..5).map(|_| q.say(9, &format!("PUB jobs {body}"))).collect();
    assert_eq!(q.say(1, "SUB jobs PREFETCH 64"), "OK");
    let pushed = |q: &mut Script<Queues>| q.heard().iter().filter(|line| line.starts_with("push 1")).count();
    assert_eq!(pushed(&mut q), 3, "16 MiB are reached with the third");
    q.say(1, &format!("ACK jobs {}", ids[0]));
    assert_eq!(pushed(&mut q), 1);
    q.say(1, &format!("ACK jobs {} {} {}", ids[1], ids[2], ids[3]));
    assert_eq!(pushed(&mut q), 1);
}

#[test]
fn the_end_of_a_session_ends_all_its_connections_at_once() {
    let mut q = queues();
    assert_eq!(q.say(1, "SUB jobs"), "OK");
    assert_eq!(q.say(2, "FETCH jobs BLOCK 1000"), "");
    let a = q.say(3, "PUB jobs a");
    assert_eq!(q.heard().len(), 1);
    q.event(|queues, ctx, out| queues.end_session(ctx, NodeId(1), SessionId(1), out));
    let heard = q.heard();
    assert!(heard.iter().all(|line| !line.starts_with("push")), "nobody of the session is served: {heard:?}");
    assert_eq!(q.say(7, "FETCH jobs"), format!("1) {a} 2 a"));
}

#[test]
fn many_random_steps_lose_nothing_and_deliver_to_one_at_a_time() {
    for seed in 0..40 {
        let mut dice = Dice::new(seed);
        let mut q = queues();
        let mut published: BTreeSet<String> = BTreeSet::new();
        let mut settled: BTreeSet<String> = BTreeSet::new();
        for _ in 0..400 {
            let who = dice.roll(4);
            match dice.roll(12) {
                0..=3 => {
                    let delay = if dice.roll(4) == 0 { " DELAY 40" } else { "" };
                    let id = q.say(who, &format!("PUB t body{delay}"));
                    assert!(published.insert(id), "ids are never used twice");
                }
                4..=5 => drop(q.say(who, &format!("FETCH t COUNT {} LEASE 60", 1 + dice.roll(3)))),
                6 => drop(q.say(who, "FETCH t BLOCK 80 LEASE 60")),
                7 => drop(q.say(who, &format!("SUB t PREFETCH {} LEASE 90", 1 + dice.roll(3)))),
                8 => drop(q.say(who, "UNSUB t")),
                9 => q.event(|queues, ctx, out| queues.close(ctx, conn(who), out)),
                10 => q.pass(dice.roll(50)),
                _ => {
                    let of = |id: &String| settled.contains(id);
                    let pick =
                        published.iter().filter(|id| !of(id)).nth(usize::try_from(dice.roll(3)).unwrap());
                    let Some(id) = pick.cloned() else { continue };
                    if dice.roll(3) == 0 {
                        drop(q.say(who, &format!("NACK t {id}")));
                    } else if q.say(who, &format!("ACK t {id}")) == "1" {
                        assert!(settled.insert(id.clone()), "settled once");
                    }
                }
            }
        }
        let left: BTreeSet<String> = q.subject.messages.iter().map(|((_, id), _)| id.to_string()).collect();
        let all: BTreeSet<String> = left.union(&settled).cloned().collect();
        assert_eq!(all, published, "seed {seed}: every message is there or was settled");
        assert!(left.is_disjoint(&settled));
    }
}

#[test]
fn a_full_partition_refuses_and_still_moves_dead_letters() {
    let mut q = queues();
    let a = q.say(1, "PUB jobs a");
    let publish = Pub { topic: "jobs".into(), body: "b".into(), dedupe: None, delay: 0 };
    q.subject.bytes += QUEUES_MAX;
    let refusal = q.subject.check_room(Some(1), &publish).unwrap_err();
    assert!(refusal.failure().is_some_and(|failure| failure.code == Code::QFull), "{refusal:?}");
    q.subject.bytes -= QUEUES_MAX;
    assert_eq!(q.say(1, "FETCH jobs"), format!("1) {a} 1 a"));
    assert_eq!(q.say(1, &format!("NACK jobs {a} DEAD")), "1");
    assert_eq!(q.say(1, "FETCH jobs.dlq"), format!("1) {a} 1 a"));
}

#[test]
fn another_dlq_in_the_same_partition_takes_letters_at_once_and_counts_on() {
    let mut q = queues();
    assert_eq!(q.say(1, "QSET jobs MAXDELIVER 2 LEASE 10 DLQ dead"), "OK");
    assert_eq!(q.say(1, "QSET dead MAXDELIVER 3 LEASE 10"), "OK");
    let a = q.say(1, "PUB jobs a");
    assert!(q.say(1, "QINFO jobs").contains("dlq: dead"));
    for attempt in 1..=2 {
        assert_eq!(q.say(1, "FETCH jobs"), format!("1) {a} {attempt} a"));
        q.pass(10);
    }
    assert_eq!(q.say(1, "FETCH jobs"), "(nil)");
    assert_eq!(q.say(1, &format!("ACK dead {a}")), "0", "nobody has received it there");
    for attempt in 3..=5 {
        assert_eq!(q.say(1, "FETCH dead"), format!("1) {a} {attempt} a"), "three more deliveries");
        q.pass(10);
    }
    assert_eq!(q.say(1, "FETCH dead"), "(nil)");
    assert_eq!(q.say(1, "FETCH dead.dlq"), format!("1) {a} 1 a"), "a DLQ is a topic like others");
    assert_eq!(q.say(1, "QSET jobs MAXDELIVER 16 LEASE 30000 DLQ jobs.dlq"), "OK");
    assert_eq!(q.say(1, "QINFO jobs"), "(nil)", "default settings are none");
}

/// Partition 10 of 16, where `jobs` lies; `dead` lies in partition 14.
fn tenth() -> Script<Queues> {
    Script::new(Queues::new(GroupId(10), 16))
}

const FAR: GroupId = GroupId(14);

fn post(q: &mut Script<Queues>) -> Letter {
    let mut letter = q.subject.next_letter(FAR).expect("there is one");
    q.subject.posted(&mut letter);
    letter
}

#[test]
fn a_letter_for_another_partition_leaves_and_is_gone_when_it_has_arrived() {
    let mut q = tenth();
    assert_eq!(q.say(1, "QSET jobs DLQ dead"), "OK");
    let (a, b) = (q.say(1, "PUB jobs a"), q.say(1, "PUB jobs b"));
    assert_eq!(q.say(1, "SUB jobs PREFETCH 2"), "OK");
    q.heard();
    assert_eq!(q.say(1, &format!("NACK jobs {b} DEAD")), "1");
    assert_eq!(q.say(1, &format!("NACK jobs {a}@1 DEAD")), "1");
    assert_eq!(q.subject.letters_for(), [FAR]);
    let first = post(&mut q);
    let origin = (1, a.parse().expect("an id"));
    assert_eq!(first, Letter { topic: "dead".into(), attempts: 1, origin, body: "a".into() });
    let info = q.say(1, "QINFO jobs");
    assert!(info.contains("leaving: 2") && info.contains("ready: 0"), "{info}");
    let told = q.heard();
    assert!(told.is_empty(), "nobody receives it: {told:?}");
    assert_eq!(q.say(1, &format!("ACK jobs {a} {b}@1")), "0", "nobody settles it");
    assert_eq!(q.say(1, &format!("NACK jobs {a}@1")), "0");
    q.pass(MESSAGE_LEASE);
    assert_eq!(q.say(1, "QSET jobs DLQ jobs.dlq"), "OK");
    let second = post(&mut q);
    assert_eq!((&second.topic[..], &second.body[..]), (&b"dead"[..], &b"b"[..]), "that was decided before");
    assert_eq!(q.subject.letters_for(), []);
    q.event(|queues, _, _| queues.left(&first));
    q.event(|queues, _, _| queues.left(&first));
    assert!(q.say(1, "QINFO jobs").contains("leaving: 1"));
    assert_eq!(q.say(1, "UNSUB jobs"), "1");
    q.event(|queues, _, _| queues.left(&second));
    assert_eq!(q.say(1, "QINFO jobs"), "(nil)", "nothing is left");
    assert_eq!(q.subject.bytes, 0);
}

#[test]
fn leases_and_connections_that_end_send_letters_away_too() {
    let mut q = tenth();
    assert_eq!(q.say(1, "QSET jobs DLQ dead MAXDELIVER 1 LEASE 10"), "OK");
    q.say(1, "PUB jobs a");
    q.say(1, "PUB jobs b");
    q.say(2, "FETCH jobs");
    q.pass(10);
    q.say(3, "FETCH jobs");
    q.event(|queues, ctx, out| queues.close(ctx, conn(3), out));
    assert_eq!((post(&mut q).body, post(&mut q).body), ("a".into(), "b".into()));
    assert!(q.subject.next_letter(FAR).is_none());
}

#[test]
fn a_letter_that_arrives_is_a_new_message_and_waits_where_there_is_no_room() {
    let mut q = Script::new(Queues::new(FAR, 16));
    assert_eq!(q.say(1, "FETCH dead BLOCK 1000"), "");
    let letter = |body: &'static str| Letter {
        topic: "dead".into(),
        attempts: 4,
        origin: (7, 7),
        body: Bytes::from_static(body.as_bytes()),
    };
    q.event(|queues, ctx, out| assert!(queues.receive(ctx, letter("a"), out)));
    assert_eq!(q.heard(), ["1: 1) 2 5 a"], "whoever waits is served, and the count goes on");
    q.subject.bytes += QUEUES_MAX;
    assert!(!q.subject.receive(
        &Ctx { at: LogPos { index: 9, offset: 9 }, time: 9 },
        letter("b"),
        &mut Vec::new()
    ));
    q.subject.bytes -= QUEUES_MAX;
    assert_eq!(q.say(1, "QINFO dead").matches("ready: 0").count(), 1, "it is where it was");
    assert_eq!(q.say(1, "ACK dead 2@5"), "1");
}

#[test]
fn what_goes_over_into_another_cluster_is_nobodys_and_is_delivered_again() {
    let mut q = tenth();
    assert_eq!(q.say(1, "QSET jobs DLQ dead MAXDELIVER 2"), "OK");
    let ids: Vec<String> = ["a", "b", "c"].iter().map(|body| q.say(1, &format!("PUB jobs {body}"))).collect();
    q.say(1, "FETCH jobs COUNT 2");
    assert_eq!(q.say(1, &format!("NACK jobs {}@1 DEAD", ids[0])), "1");
    post(&mut q);
    q.say(2, "SUB listened");
    q.say(2, "FETCH awaited BLOCK 1000");
    q.event(|queues, _, _| queues.rebase());
    assert_eq!((q.say(1, "QINFO listened"), q.say(1, "QINFO awaited")), ("(nil)".into(), "(nil)".into()));
    assert_eq!(q.subject.letters_for(), [], "it has its place in the outbox");
    let again = q.say(3, "FETCH jobs COUNT 9");
    assert_eq!(again, format!("1) {} 2 b\n2) {} 1 c", ids[1], ids[2]));
    q.event(|queues, ctx, out| queues.close(ctx, conn(3), out));
    assert_eq!(q.subject.topics.len(), 1);
    assert!(q.say(1, "QINFO jobs").contains("leaving: 2"), "MAXDELIVER counts on");
}

#[test]
fn ids_take_their_room_until_they_are_forgotten() {
    let mut q = queues();
    let asker = Asker { conn: conn(1), request: 1, client: None };
    // Longer than a client's can be, so that a few of them fill the room.
    for number in 1..QUEUES_MAX >> 20 {
        let id = [format!("{number}").as_bytes(), &[b'i'; 1 << 20][..]].concat();
        let op = Pub { topic: "jobs".into(), body: "m".into(), dedupe: Some(id.into()), delay: 0 };
        q.event(|queues, ctx, out| queues.publish(ctx, &asker, op, out));
    }
    let big = "m".repeat(1 << 20);
    let full = q.say(1, &format!("PUB jobs {big}"));
    assert!(full.starts_with("-QFULL") && full.contains("IDs"), "{full}");
    q.pass(DEDUPE_WINDOW + 1);
    assert!(!q.say(1, &format!("PUB jobs {big}")).starts_with('-'), "they are forgotten");
}
