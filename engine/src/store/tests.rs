//! The store against Redis' rules, and against a plain map over many random steps.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use quorate_protocol::id::LogPos;
use quorate_protocol::limits::VALUE_MAX;
use quorate_protocol::op::{
    Append, Commands, Expire, ExpireAt, ExpireTime, Expiry, GetEx, GetRange, Incr, MSet, Moment, Only, Scan,
    Set, SetRange, Ttl, When,
};

use super::*;

struct Script {
    store: Store,
    ctx: Ctx,
}

impl Script {
    fn new() -> Self {
        Self { store: Store::new(), ctx: Ctx { at: LogPos { index: 1, offset: 1 }, time: 1000 } }
    }

    fn apply(&mut self, op: Op) -> Reply {
        self.ctx.at.index += 1;
        self.store.expire(&self.ctx, &mut crate::portion::Portion::endless(), &mut Outcomes::new());
        self.store.apply(&self.ctx, op)
    }

    fn set(&mut self, key: &str, value: &str, when: When, expiry: Expiry, get: bool) -> Reply {
        self.apply(Op::Set(Set { key: bytes(key), value: bytes(value), when, expiry, get }))
    }

    fn put(&mut self, key: &str, value: &str) {
        assert_eq!(self.set(key, value, When::Always, Expiry::Never, false), Reply::OK);
    }

    fn incr(&mut self, key: &str, by: i64) -> Reply {
        self.apply(Op::Incr(Incr { key: bytes(key), by }))
    }

    fn get(&self, key: &str) -> Option<String> {
        match self.store.read(&Op::Get(bytes(key)), self.ctx.time) {
            Reply::Bulk(value) => Some(String::from_utf8(value.to_vec()).unwrap()),
            Reply::Nil => None,
            other => panic!("{other:?}"),
        }
    }

    fn ttl(&self, key: &str, millis: bool) -> Reply {
        self.store.read(&Op::Ttl(Ttl { key: bytes(key), millis }), self.ctx.time)
    }
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

#[test]
fn conditions_hold_or_change_nothing() {
    let mut s = Script::new();
    assert_eq!(s.set("k", "1", When::Present, Expiry::Never, false), Reply::Nil);
    assert_eq!(s.set("k", "1", When::Version(0), Expiry::Never, false), Reply::OK);
    assert_eq!(s.set("k", "2", When::Absent, Expiry::Never, true), Reply::Bulk(bytes("1")));
    assert_eq!(s.get("k").as_deref(), Some("1"));
    let version = s.store.line(&bytes("k"), s.ctx.time).0;
    assert_eq!(s.set("k", "3", When::Version(version + 1), Expiry::Never, false), Reply::Nil);
    assert_eq!(s.set("k", "3", When::Version(version), Expiry::Never, true), Reply::Bulk(bytes("1")));
    assert_eq!(
        s.set("k", "4", When::Version(version), Expiry::Never, false),
        Reply::Nil,
        "versions never repeat"
    );
}

#[test]
fn keys_vanish_by_group_time_and_not_before_an_entry_says_so() {
    let mut s = Script::new();
    s.set("k", "v", When::Always, Expiry::After(1500), false);
    assert_eq!(s.ttl("k", true), Reply::Int(1500));
    assert_eq!(s.ttl("k", false), Reply::Int(2));
    assert_eq!(s.set("k", "w", When::Always, Expiry::Keep, false), Reply::OK);
    assert_eq!(s.store.next_deadline(), Some(2501));
    s.ctx.time = 2499;
    assert_eq!(s.get("k").as_deref(), Some("w"), "no entry has said that it is gone");
    s.ctx.time = 2500;
    assert_eq!(
        s.set("k", "x", When::Present, Expiry::Keep, false),
        Reply::OK,
        "its last millisecond may not be over"
    );
    assert_eq!((s.get("k").as_deref(), s.ttl("k", true)), (Some("x"), Reply::Int(1)));
    s.ctx.time = 2501;
    assert_eq!((s.get("k"), s.store.len()), (None, 1), "it is not seen, and waits to be removed");
    s.set("other", "v", When::Always, Expiry::Never, false);
    assert_eq!((s.get("k"), s.store.len()), (None, 1));
    assert_eq!((s.ttl("k", true), s.ttl("other", true)), (Reply::Int(-2), Reply::Int(-1)));
    let expire =
        |s: &mut Script, ms| s.apply(Op::Expire(Expire { key: bytes("other"), ms, only: Only::Always }));
    assert_eq!(expire(&mut s, 10), Reply::Int(1));
    assert_eq!(expire(&mut s, -1), Reply::Int(1));
    assert_eq!(expire(&mut s, 10), Reply::Int(0));
    assert_eq!((s.store.len(), s.store.bytes(), s.store.digest()), (0, 0, Store::new().digest()));
}

#[test]
fn counters_follow_redis() {
    let mut s = Script::new();
    assert_eq!(s.incr("n", 5), Reply::Int(5));
    assert_eq!(s.incr("n", -7), Reply::Int(-2));
    for bad in ["", " 1", "+1", "01", "1.0", "9223372036854775808", "x"] {
        s.set("n", bad, When::Always, Expiry::Never, false);
        assert!(s.incr("n", 1).failure().is_some_and(|f| f.text.contains("not an integer")), "{bad:?}");
    }
    s.set("n", "9223372036854775807", When::Always, Expiry::Never, false);
    assert!(s.incr("n", 1).failure().is_some_and(|f| f.text.contains("overflow")));
    assert_eq!(s.get("n").as_deref(), Some("9223372036854775807"));
}

#[test]
fn random_steps_agree_with_a_plain_map() {
    let mut s = Script::new();
    let mut map: BTreeMap<String, (String, Option<u64>)> = BTreeMap::new();
    let mut seed = 42u64;
    let mut draw = move |n: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) % n
    };
    for step in 0..20_000 {
        s.ctx.time += draw(20);
        let time = s.ctx.time;
        map.retain(|_, (_, deadline)| deadline.is_none_or(|d| d >= time));
        let key = draw(12).to_string();
        match draw(4) {
            0 => {
                let ms = 1 + draw(200);
                s.set(&key, &step.to_string(), When::Always, Expiry::After(ms), false);
                map.insert(key.clone(), (step.to_string(), Some(time + ms)));
            }
            1 => {
                let reply = s.set(&key, &step.to_string(), When::Absent, Expiry::Never, false);
                assert_eq!(reply == Reply::OK, !map.contains_key(&key));
                map.entry(key.clone()).or_insert((step.to_string(), None));
            }
            2 => {
                let keys = Vec::from([bytes(&key), bytes(&key)]);
                let reply = s.apply(Op::Del(keys));
                assert_eq!(reply, Reply::Int(i64::from(map.remove(&key).is_some())));
            }
            _ => {
                let old = map.get(&key).map_or(0, |(value, _)| value.parse().unwrap());
                assert_eq!(s.incr(&key, 1), Reply::Int(old + 1));
                map.entry(key.clone()).or_insert((String::new(), None)).0 = (old + 1).to_string();
            }
        }
        assert_eq!(s.get(&key).as_ref(), map.get(&key).map(|(value, _)| value));
        assert_eq!(s.store.len(), map.len());
        assert_eq!(s.store.next_deadline(), map.values().filter_map(|(_, d)| *d).min().map(over_at));
    }
    let deadlines =
        s.store.rows.iter().filter_map(|(name, row)| Some((row.deadline?, name.key.clone()))).collect();
    assert_eq!(s.store.deadlines, deadlines, "the index is what the rows say");
    assert_eq!(
        s.store.bytes,
        s.store.rows.iter().map(|(name, row)| cost(&name.key, &row.value)).sum::<u64>()
    );
}

fn text(value: &str) -> Reply {
    Reply::Bulk(bytes(value))
}

#[test]
fn parts_of_values_are_read_and_written() {
    let mut s = Script::new();
    let append = |key: &str, value: &str| Op::Append(Append { key: bytes(key), value: bytes(value) });
    let write = |offset, value: &str| Op::SetRange(SetRange { key: bytes("k"), offset, value: bytes(value) });
    assert_eq!(s.apply(append("k", "Hello ")), Reply::Int(6));
    assert_eq!(s.apply(append("k", "World")), Reply::Int(11));
    assert_eq!(s.apply(write(6, "Redis")), Reply::Int(11));
    for (start, end, part) in [
        (0, 3, "Hell"),
        (-3, -1, "dis"),
        (0, -1, "Hello Redis"),
        (10, 100, "s"),
        (5, 4, ""),
        (-1, -3, ""),
        (90, 99, ""),
    ] {
        let op = Op::GetRange(GetRange { key: bytes("k"), start, end });
        assert_eq!(s.apply(op), text(part), "{start} {end}");
    }
    let nothing = Op::GetRange(GetRange { key: bytes("none"), start: 0, end: -1 });
    assert_eq!(s.apply(nothing), text(""));
    assert_eq!(s.apply(Op::Strlen(bytes("k"))), Reply::Int(11));
    assert_eq!(s.apply(Op::Del([bytes("k")].into())), Reply::Int(1));
    assert_eq!(s.apply(write(2, "")), Reply::Int(0), "nothing is written");
    assert_eq!(s.apply(Op::Type(bytes("k"))), Reply::Status("none"));
    assert_eq!(s.apply(write(2, "x")), Reply::Int(3));
    assert_eq!(s.get("k").as_deref(), Some("\0\0x"));
    let full = VALUE_MAX as u64 - 1;
    assert_eq!(s.apply(write(full, "x")), Reply::int(full + 1));
    let refused = s.apply(append("k", "y"));
    let words = "string exceeds maximum allowed size (proto-max-bulk-len)";
    assert_eq!(refused, Reply::error(Code::Err, words));
    assert_eq!(s.apply(Op::Strlen(bytes("k"))), Reply::int(full + 1), "refused is not done");
}

#[test]
fn a_deadline_follows_its_conditions() {
    let mut s = Script::new();
    let expire = |s: &mut Script, ms, only| s.apply(Op::Expire(Expire { key: bytes("k"), ms, only }));
    s.put("k", "v");
    assert_eq!(expire(&mut s, 100, Only::Present), Reply::Int(0));
    assert_eq!(expire(&mut s, 100, Only::Later), Reply::Int(0), "none is later than any");
    assert_eq!(expire(&mut s, 100, Only::PresentEarlier), Reply::Int(0));
    assert_eq!(expire(&mut s, 100, Only::Earlier), Reply::Int(1));
    assert_eq!(expire(&mut s, 50, Only::Absent), Reply::Int(0));
    assert_eq!(expire(&mut s, 100, Only::Later), Reply::Int(0));
    assert_eq!(expire(&mut s, 200, Only::Later), Reply::Int(1));
    assert_eq!(expire(&mut s, 150, Only::PresentEarlier), Reply::Int(1));
    assert_eq!(s.ttl("k", true), Reply::Int(150));
    let version = s.store.line(&bytes("k"), s.ctx.time).0;
    assert_eq!(expire(&mut s, 300, Only::Absent), Reply::Int(0));
    assert_eq!(s.store.line(&bytes("k"), s.ctx.time).0, version, "what is not done is no change");
    assert_eq!(s.apply(Op::Persist(bytes("k"))), Reply::Int(1));
    assert_eq!(s.apply(Op::Persist(bytes("k"))), Reply::Int(0));
    assert_eq!(s.apply(Op::Persist(bytes("none"))), Reply::Int(0));
    assert_eq!(expire(&mut s, -5, Only::Present), Reply::Int(0), "the condition comes first");
    assert_eq!(expire(&mut s, -5, Only::Absent), Reply::Int(1));
    assert_eq!(s.get("k"), None);
}

#[test]
fn absolute_times_are_those_of_the_leader() {
    let mut s = Script::new();
    // The wall clock shows 1,000,000 at group time 0.
    let epoch = 1_000_000;
    let mut asked = |mut op: Op| {
        op.set_epoch(epoch);
        s.apply(op)
    };
    let set = |ms| {
        let (key, value, expiry) = (bytes("k"), bytes("v"), Expiry::At(Moment::Unix(ms)));
        Op::Set(Set { key, value, when: When::Always, expiry, get: false })
    };
    let when = |millis| Op::ExpireTime(ExpireTime { key: bytes("k"), millis, epoch: 0 });
    assert_eq!(asked(when(true)), Reply::Int(-2));
    assert_eq!(asked(set(1_002_600)), Reply::OK);
    assert_eq!((asked(when(true)), asked(when(false))), (Reply::Int(1_002_600), Reply::Int(1003)));
    assert_eq!(asked(Op::Ttl(Ttl { key: bytes("k"), millis: true })), Reply::Int(1600));
    assert_eq!(asked(set(1_000_900)), Reply::OK, "it lies in the past");
    assert_eq!(asked(Op::Exists([bytes("k")].into())), Reply::Int(0));
    asked(set(1_002_600));
    let at = |ms, only| Op::ExpireAt(ExpireAt { key: bytes("k"), at: Moment::Unix(ms), only });
    assert_eq!(asked(at(1_003_000, Only::Earlier)), Reply::Int(0));
    assert_eq!(asked(at(1_003_000, Only::Always)), Reply::Int(1));
    let read = |expiry| Op::GetEx(GetEx { key: bytes("k"), expiry });
    assert_eq!(asked(read(Expiry::At(Moment::Unix(1_004_000)))), text("v"));
    assert_eq!(asked(when(true)), Reply::Int(1_004_000));
    assert_eq!(asked(read(Expiry::Never)), text("v"));
    assert_eq!(asked(when(true)), Reply::Int(-1));
    assert_eq!(asked(at(0, Only::Always)), Reply::Int(1));
    assert_eq!(asked(when(true)), Reply::Int(-2));
}

#[test]
fn several_keys_are_read_and_written_together() {
    let mut s = Script::new();
    let pairs =
        |pairs: &[(&str, &str)]| pairs.iter().map(|(key, value)| (bytes(key), bytes(value))).collect();
    let mset = |all: &[(&str, &str)], absent| Op::MSet(MSet { pairs: pairs(all), absent });
    assert_eq!(s.apply(mset(&[("a", "1"), ("b", "2"), ("a", "3")], false)), Reply::OK);
    assert_eq!(s.apply(mset(&[("c", "1"), ("b", "9")], true)), Reply::Int(0));
    assert_eq!(s.apply(mset(&[("c", "4")], true)), Reply::Int(1));
    let read = s.apply(Op::MGet([bytes("b"), bytes("x"), bytes("a"), bytes("c")].into()));
    assert_eq!(read, Reply::Array([text("2"), Reply::Nil, text("3"), text("4")].into()));
    assert_eq!(s.apply(Op::GetDel(bytes("a"))), text("3"));
    assert_eq!(s.apply(Op::GetDel(bytes("a"))), Reply::Nil);
    assert_eq!(s.apply(Op::DbSize), Reply::Int(2));
    s.put("big", &"x".repeat(VALUE_MAX));
    let big = || bytes("big");
    let much = s.apply(Op::MGet([big(), big(), big()].into()));
    assert!(much.failure().is_some_and(|failure| failure.code == Code::TooBig), "the answer is bounded");
}

fn multi(watched: &[(&str, u64)], commands: &[Op]) -> Op {
    let watched = watched.iter().map(|(key, version)| (bytes(key), *version)).collect();
    Op::Multi(Multi { watched, commands: Commands(commands.to_vec()) }.into())
}

#[test]
fn a_transaction_is_done_at_one_place_unless_what_was_watched_has_changed() {
    let mut s = Script::new();
    s.put("k", "text");
    let version = |s: &Script, key: &str| s.store.line(&bytes(key), s.ctx.time).0;
    let incr = |key: &str| Op::Incr(Incr { key: bytes(key), by: 1 });
    let answer =
        s.apply(multi(&[("k", version(&s, "k")), ("n", 0)], &[incr("n"), incr("k"), Op::Get(bytes("n"))]));
    let Reply::Array(answers) = answer else { panic!("{answer:?}") };
    assert_eq!((&answers[0], &answers[2]), (&Reply::Int(1), &text("1")));
    assert!(answers[1].failure().is_some(), "an error does not undo the others");
    assert_eq!(s.apply(multi(&[("n", 0)], &[incr("n")])), Reply::Nil);
    assert_eq!(s.get("n").as_deref(), Some("1"));
    s.set("brief", "v", When::Always, Expiry::After(10), false);
    let before = version(&s, "brief");
    s.ctx.time += 11;
    assert_eq!(s.apply(multi(&[("brief", before)], &[incr("n")])), Reply::Nil, "expiry is a change");
    assert_eq!(s.apply(multi(&[("brief", 0)], &[Op::Get(bytes("n"))])), Reply::Array([text("1")].into()));
    s.put("big", &"x".repeat(VALUE_MAX));
    let (get, take) = (Op::Get(bytes("big")), Op::GetDel(bytes("big")));
    let Reply::Array(answers) = s.apply(multi(&[], &[get.clone(), get, take])) else { panic!() };
    assert!(answers[2].failure().is_some_and(|failure| failure.code == Code::TooBig));
    assert_eq!(s.apply(Op::Exists([bytes("big")].into())), Reply::Int(1), "refused is not done");
}

#[test]
fn a_scan_shows_every_key_that_stays() {
    let mut s = Script::new();
    (0..500).for_each(|n| s.put(&alloc::format!("stays:{n}"), "v"));
    let (mut cursor, mut calls, mut shown) = (0, 0, BTreeMap::new());
    while cursor >> 56 < 2 {
        let pattern = Some(bytes("stays:*"));
        let reply = s.apply(Op::Scan(Scan { cursor, pattern, count: 7, none: false }));
        let Reply::Array(page) = reply else { panic!("{reply:?}") };
        let [Reply::Bulk(next), Reply::Array(names)] = &page[..] else { panic!("{page:?}") };
        assert!(names.len() <= 7, "a call is bounded");
        names.iter().for_each(|name| *shown.entry(alloc::format!("{name:?}")).or_insert(0) += 1);
        cursor = core::str::from_utf8(next).unwrap().parse().unwrap();
        calls += 1;
        // Others come and go meanwhile.
        s.put(&alloc::format!("new:{calls}"), "v");
        s.apply(Op::Del([bytes(&alloc::format!("new:{}", calls / 2))].into()));
    }
    assert_eq!(shown.len(), 500);
    assert!(shown.values().all(|&times| times == 1));
    assert_eq!(s.apply(Op::Scan(Scan { cursor: 1 << 56, pattern: None, count: 10, none: true })), {
        let first = s.store.rows.iter().nth(10).unwrap().0.hash >> 8;
        Reply::Array([text(&((1 << 56) | first).to_string()), Reply::Array(Vec::new())].into())
    });
    let Reply::Array(names) = s.apply(Op::Keys(bytes("stays:4?"))) else { panic!() };
    assert_eq!(names.len(), 10);
}

#[test]
fn all_keys_are_dropped_at_once_and_taken_apart_later() {
    let mut s = Script::new();
    (0..1000).for_each(|n| _ = s.set(&n.to_string(), "v", When::Always, Expiry::After(n + 1), false));
    assert_eq!(s.store.apply(&s.ctx, Op::FlushAll), Reply::OK);
    assert_eq!((s.store.len(), s.store.bytes(), s.store.digest()), (0, 0, Store::new().digest()));
    assert_eq!((s.store.next_deadline(), s.get("5")), (None, None));
    s.put("5", "w");
    assert_eq!(s.get("5").as_deref(), Some("w"));
    let mut trash = Trash::default();
    s.store.throw_away(&mut trash);
    assert!(trash.dig() > 500);
}

/// Whatever happens to be there: an answer that says that all was written is never given where something was left as it was.
#[test]
fn an_answer_that_says_done_is_true() {
    let names = ["a", "b", "c"];
    let (mut s, mut seed, mut said) = (Script::new(), 1u64, BTreeMap::new());
    let mut below = |n: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % n
    };
    for _ in 0..40_000 {
        let [key, other] = [(); 2].map(|()| bytes(names[usize::try_from(below(3)).unwrap()]));
        s.ctx.time += below(3);
        let version = s.store.line(&key, s.ctx.time).0;
        let value = bytes(["", "7"][usize::try_from(below(2)).unwrap()]);
        let expiry = match below(5) {
            0 => Expiry::Keep,
            1 => Expiry::After(1 + below(5)),
            2 => Expiry::At(Moment::Group(s.ctx.time + below(5))),
            _ => Expiry::Never,
        };
        let when = match below(5) {
            0 => When::Absent,
            1 => When::Present,
            2 => When::Version(0),
            3 => When::Version(version + below(2)),
            _ => When::Always,
        };
        let only = [Only::Always, Only::Absent, Only::Present][usize::try_from(below(3)).unwrap()];
        let op = match below(12) {
            0..=2 => Op::Set(Set { key, value, when, expiry, get: below(2) == 0 }),
            3 => {
                Op::MSet(MSet { pairs: [(key, value.clone()), (other, value)].into(), absent: below(2) == 0 })
            }
            4 | 5 => Op::Del([key, other].into()),
            6 => Op::Incr(Incr { key, by: 1 }),
            7 => Op::Append(Append { key, value }),
            8 => Op::SetRange(SetRange { key, offset: 0, value }),
            9 => Op::GetDel(key),
            10 => Op::GetEx(GetEx { key, expiry }),
            _ if below(2) == 0 => Op::Persist(key),
            _ => Op::Expire(Expire { key, ms: 3, only }),
        };
        let lines =
            |s: &Script| op.writes().iter().map(|key| s.store.line(key, s.ctx.time)).collect::<Vec<_>>();
        let before = lines(&s);
        let reply = s.apply(op.clone());
        let changed = before.iter().zip(lines(&s)).all(|(before, after)| *before != after);
        // What is put for no time at all is written, though nothing comes of it.
        let vanishes = matches!(&op, Op::Set(Set { expiry: Expiry::At(_), .. }));
        let done = op.done().is_said_by(&reply);
        assert!(!done || changed || vanishes, "{op:?} answered {reply:?}");
        let kind = alloc::format!("{:?}", core::mem::discriminant(&op));
        let counts: &mut [u32; 2] = said.entry(kind).or_default();
        counts[usize::from(changed)] += u32::from(done == changed);
    }
    // Most answers can be told apart, in both ways.
    assert!(said.values().all(|[_, changed]| *changed > 50), "{said:?}");
}
