//! Room for keys: what does not fit is refused and never proposed, or others make room for it.

mod town;

use bytes::Bytes;
use quorate_engine::effect::{Input, Request, TICK, Want};
use quorate_protocol::id::NodeId;
use quorate_protocol::limits::{LOOKED_AT_ONCE, TAKEN_UP_AT_ONCE};
use quorate_protocol::op::{Append, GetRange, Incr, MSet, Op, SetBack, partition_of};
use quorate_protocol::reply::{Code, Reply};
use town::{Town, get, set};

/// What the keys of each of the 16 partitions may take.
const SHARE: usize = 4000;

fn town(evicts: bool) -> Town {
    town_of(SHARE, evicts)
}

fn town_of(share: usize, evicts: bool) -> Town {
    let mut town = Town::with_bounds(3, 64 << 20, (16 * share as u64, evicts));
    town.run_until("sessions are open", |town| (1..=3).all(|node| town.engine(node).counts().session));
    town
}

fn ask(town: &mut Town, node: u64, op: Op) -> Reply {
    let id = town.ask_next(node, vec![op]);
    town.run_until("an answer", |town| town.answer(node, id).is_some());
    town.answer(node, id).expect("it was just seen")
}

fn code(reply: &Reply) -> Option<Code> {
    reply.failure().map(|failure| failure.code)
}

/// A key of the one partition that is filled.
fn key(n: usize) -> String {
    format!("{{a}}{n:04}")
}

fn fill(town: &mut Town) -> usize {
    let full =
        |town: &mut Town, n: &usize| code(&ask(town, 1 + (n % 3) as u64, set(&key(*n), &"v".repeat(100))));
    let refused = (0..1000).find(|n| full(town, n).is_some_and(|code| code == Code::Oom));
    refused.expect("it is full before long")
}

#[test]
fn what_does_not_fit_is_refused_and_all_else_goes_on() {
    let mut town = town(false);
    let refused = fill(&mut town);
    assert!(refused * 211 <= SHARE && (refused + 1) * 211 > SHARE, "{refused} keys fit");
    let applied = |town: &Town| town.engine(1).report().iter().map(|report| report.applied).sum::<u64>();
    let (before, first) =
        (applied(&town), town.ask_next(1, vec![set(&key(refused), &"v".repeat(200)), set(&key(0), "short")]));
    town.run_until("both are answered", |town| town.answer(1, first + 1).is_some());
    let Some(Reply::Error(failure)) = town.answer(1, first) else { panic!("there is room") };
    assert!(
        failure.to_string().starts_with("OOM command not allowed when used memory > 'maxmemory'."),
        "{failure}"
    );
    assert_eq!(
        town.answer(1, first + 1),
        Some(Reply::OK),
        "what takes no more room goes on, also behind a refusal"
    );
    town.run(10);
    assert_eq!(applied(&town), before + 1, "the refused one is in no log");
    assert_eq!(ask(&mut town, 2, get(&key(1))), Reply::text("v".repeat(100)));
    let range = Op::GetRange(GetRange { key: key(0).into(), start: 0, end: 1 });
    assert_eq!(ask(&mut town, 3, range), Reply::text("sh"));
    assert_eq!(ask(&mut town, 3, Op::Del(vec![key(1).into(), key(2).into()])), Reply::Int(2));
    assert_eq!(ask(&mut town, 2, Op::Incr(Incr { key: key(9000).into(), by: 1 })), Reply::Int(1));
    assert_eq!(ask(&mut town, 1, set(&key(refused), "v")), Reply::OK);
    assert_eq!(code(&ask(&mut town, 1, set(&key(9001), &"v".repeat(400)))), Some(Code::Oom));
    assert_eq!(ask(&mut town, 1, set("another partition", &"v".repeat(400))), Reply::OK);
    let counts = town.engine(1).counts();
    assert!(counts.store_bytes <= 2 * SHARE as u64 && counts.evicted == 0, "{counts:?}");
    let refusals: u64 = (1..=3).map(|node| town.engine(node).counts().refused_for_room).sum();
    assert_eq!(refusals, 3);
}

#[test]
fn the_least_recently_used_make_room_on_all_replicas_alike() {
    let mut town = town(true);
    let hot = [key(1), key(2), key(3)];
    for n in 0..400 {
        assert_eq!(ask(&mut town, 1 + (n % 3) as u64, set(&key(n), &"v".repeat(100))), Reply::OK);
        for key in hot.iter().filter(|_| n >= 3) {
            assert_ne!(ask(&mut town, 1, get(key)), Reply::Nil, "a hot key is evicted at {n}");
        }
        let counts = town.engine(1).counts();
        assert!(counts.store_bytes <= SHARE as u64, "{counts:?}");
    }
    town.run(50);
    assert!(town.agree(&[1, 2, 3]));
    let counts = town.engine(2).counts();
    assert!(counts.store_keys >= 15 && counts.evicted == 400 - counts.store_keys, "{counts:?}");
}

#[test]
fn who_needs_much_room_waits_until_it_is_made() {
    let mut town = town(true);
    let small: Vec<Op> = (0..30).map(|n| set(&key(n), "v")).collect();
    let first = town.ask_next(2, small);
    town.run_until("small ones are there", |town| town.answer(2, first + 29).is_some());
    let large = SHARE - 104 - 7;
    assert_eq!(ask(&mut town, 3, set(&key(100), &"v".repeat(large))), Reply::OK);
    assert_eq!(town.engine(1).counts().store_keys, 1, "all others had to go");
    assert_eq!(code(&ask(&mut town, 3, set(&key(101), &"v".repeat(large + 1)))), Some(Code::Oom));
    assert_eq!(ask(&mut town, 3, get(&key(100))), Reply::Bulk(Bytes::from("v".repeat(large))));
    let extend = Op::Append(Append { key: key(100).into(), value: "w".into() });
    assert_eq!(code(&ask(&mut town, 3, extend)), Some(Code::Oom), "it does not make room for itself");
    assert_eq!(ask(&mut town, 3, get(&key(100))), Reply::Bulk(Bytes::from("v".repeat(large))));
    // Behind one that waits for room its connection's others wait, in their order.
    let ops = vec![set(&key(200), &"w".repeat(large)), get(&key(200)), set(&key(200), "x"), get(&key(200))];
    let first = town.ask_next(1, ops);
    town.run_until("all are answered", |town| town.answer(1, first + 3).is_some());
    let answers: Vec<_> = (first..first + 4).filter_map(|id| town.answer(1, id)).collect();
    let expected = [Reply::OK, Reply::text("w".repeat(large)), Reply::OK, Reply::text("x")];
    assert_eq!(answers, expected);
}

/// Writes a key back through a node until that owns it.
fn own(town: &mut Town, owner: u64, key: &str, value: &str) {
    for n in 0..50 {
        let back =
            SetBack { key: Bytes::copy_from_slice(key.as_bytes()), value: format!("{value}{n:02}").into() };
        let before = town.engine(owner).write_backs().absorbed;
        assert_eq!(ask(town, owner, Op::SetBack(back)), Reply::OK);
        if town.engine(owner).write_backs().absorbed > before {
            return;
        }
        town.run(5);
    }
    panic!("node {owner} takes nothing on");
}

/// Two nodes that do not lead the partition, and the one that does.
fn others_and_home(town: &Town) -> (u64, u64, u64) {
    let group = partition_of(key(0).as_bytes(), 16);
    let report = town.engine(1).report();
    let home = report.iter().find(|report| report.group == group).and_then(|report| report.leader);
    let home = home.expect("it has one").0;
    (home % 3 + 1, 6 - home - (home % 3 + 1), home)
}

#[test]
fn an_owner_asks_the_home_for_what_it_reads_from_time_to_time() {
    for (evicts, life) in [(true, Some(5_000_000)), (false, None)] {
        let mut town = town(evicts);
        let (owner, ..) = others_and_home(&town);
        own(&mut town, owner, &key(1), "v");
        let until = town.shown[&(NodeId(owner), Bytes::from(key(1)))];
        let written = town.now.mono;
        let expected = life.map_or(u64::MAX, |life| written + life);
        assert!(until.abs_diff(expected) <= 2 * TICK, "{until}, written at {written}");
    }
}

#[test]
fn room_is_made_once_also_of_a_key_whose_owner_is_being_asked() {
    let mut town = town(true);
    let (owner, _, home) = others_and_home(&town);
    own(&mut town, owner, &key(1), &"v".repeat(500));
    // Nobody looks at it for so long that it is the first to go.
    town.run(8_000_000 / TICK);
    let small = (SHARE - 700) / 211;
    for n in 2..2 + small {
        assert_eq!(ask(&mut town, home, set(&key(n), &"v".repeat(100))), Reply::OK);
    }
    let before = town.engine(home).counts();
    assert_eq!((before.evicted, before.store_keys), (0, 1 + small as u64));
    town.cut_off.insert(NodeId(owner));
    let read = town.ask_next(home, vec![get(&key(1))]);
    town.run(1);
    assert_eq!(town.answer(home, read), None, "its owner is asked");
    let other = 6 - owner - home;
    assert_eq!(ask(&mut town, other, set(&key(1000), &"w".repeat(300))), Reply::OK);
    town.run(20);
    assert_eq!(town.engine(home).counts().evicted, 1, "one key is large enough");
}

/// A partition that 300 keys fill, and whose steps are counted: what is taken up again, and keys that are looked at.
fn full_town() -> Town {
    let mut town = town_of(300 * 211 + 100, true);
    let all = (0..300).map(|n| set(&key(n), &"v".repeat(100))).collect();
    let first = town.ask_next(1, all);
    town.run_until("it is full", |town| town.answer(1, first + 299).is_some());
    town.steps = Some((|counts| [counts.taken_up, counts.looked_at], [0, 0]));
    town
}

fn taken_up(town: &Town) -> u64 {
    (1..=3).map(|node| town.engine(node).counts().taken_up).sum()
}

#[test]
fn what_waits_behind_others_is_touched_when_its_turn_has_come() {
    let mut town = full_town();
    let all = (1000..2000).map(|n| set(&key(n), &"v".repeat(100))).collect();
    let first = town.ask_next(1, all);
    town.run_until("all are answered", |town| town.answer(1, first + 999).is_some());
    assert!((first..first + 1000).all(|id| town.answer(1, id) == Some(Reply::OK)));
    // Each waits for what stands before it, and once for room.
    let steps = taken_up(&town);
    assert!((1000..=2 * 1000).contains(&steps), "{steps} steps for 1000 writes that wait");
    let [_, looked] = town.steps.expect("they are counted").1;
    assert!(looked < LOOKED_AT_ONCE as u64 + 256, "{looked} keys are looked at in one turn");
}

#[test]
fn a_turn_takes_up_a_part_of_what_has_waited() {
    let mut town = full_town();
    let count = 5 * TAKEN_UP_AT_ONCE as u64 / 2;
    let mut ops = vec![set(&key(1000), &"v".repeat(100 * 211))];
    ops.extend((0..count).map(|_| get(&key(1000))));
    let first = town.ask_next(1, ops);
    town.run_until("all are answered", |town| town.answer(1, first + count).is_some());
    assert_eq!(town.answer(1, first), Some(Reply::OK));
    let large = Reply::Bulk(Bytes::from("v".repeat(100 * 211)));
    assert!(
        (1..=count).all(|n| town.answer(1, first + n).as_ref() == Some(&large)),
        "all, and in their order"
    );
    assert!(taken_up(&town) > count);
    let [most, _] = town.steps.expect("they are counted").1;
    assert!((1..=TAKEN_UP_AT_ONCE as u64).contains(&most), "{most} are taken up in one turn");
}

#[test]
fn a_turn_looks_at_a_part_of_the_keys_when_none_can_go() {
    let mut town = full_town();
    let conns = 2..42;
    for conn in conns.clone() {
        // No room can be made of the keys that are to grow.
        let grown = Bytes::from("v".repeat(110));
        let pairs = (0..300).map(|n| (key(n).into(), grown.clone())).collect();
        let want = Want::Op(Op::MSet(MSet { pairs, absent: false }));
        town.post(1, Input::Connected { conn, ordered: true });
        town.post(
            1,
            Input::Requests { conn, requests: vec![Request { id: 1, want, client: None, after: None }] },
        );
    }
    // All come in one turn.
    town.gathers = true;
    town.run_until("all are answered", |town| {
        conns.clone().all(|conn| town.replies.iter().any(|reply| reply.1 == conn))
    });
    let refused = town.replies.iter().filter(|reply| code(&reply.3) == Some(Code::Oom)).count();
    assert_eq!(refused, conns.count());
    let [_, most] = town.steps.expect("they are counted").1;
    let looked: u64 = (1..=3).map(|node| town.engine(node).counts().looked_at).sum();
    assert!(looked > 2 * LOOKED_AT_ONCE as u64, "{looked} were looked at");
    assert!(most < LOOKED_AT_ONCE as u64 + 256, "{most} of them in one turn");
}
