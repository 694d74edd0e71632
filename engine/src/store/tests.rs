//! The store against Redis' rules, and against a plain map over many random steps.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use quorate_protocol::id::{ConnId, LogPos};

use super::*;
use crate::outcome::Outcome;

struct Script {
    store: Store,
    ctx: Ctx,
}

impl Script {
    fn new() -> Self {
        Self { store: Store::new(), ctx: Ctx { at: LogPos { index: 1, offset: 1 }, time: 1000 } }
    }

    fn apply(&mut self, run: impl FnOnce(&mut Store, &Ctx, &Asker, &mut Outcomes)) -> Reply {
        let asker = Asker { conn: ConnId::default(), request: 1, client: None };
        let mut out = Outcomes::new();
        self.ctx.at.index += 1;
        self.store.expire(&self.ctx, &mut crate::portion::Portion::endless(), &mut out);
        run(&mut self.store, &self.ctx, &asker, &mut out);
        match out.pop() {
            Some(Outcome::Reply { reply, .. }) if out.is_empty() => reply,
            other => panic!("exactly one reply is due, got {other:?} and {out:?}"),
        }
    }

    fn set(&mut self, key: &str, value: &str, when: When, expiry: Expiry, get: bool) -> Reply {
        let op = Set { key: bytes(key), value: bytes(value), when, expiry, get };
        self.apply(|store, ctx, asker, out| store.set(ctx, asker, op, out))
    }

    fn incr(&mut self, key: &str, by: i64) -> Reply {
        let op = Incr { key: bytes(key), by };
        self.apply(|store, ctx, asker, out| store.incr(ctx, asker, op, out))
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
    let version = s.store.rows.get(&bytes("k")).unwrap().version;
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
    assert_eq!(s.store.next_deadline(), Some(2500));
    s.ctx.time = 2499;
    assert_eq!(s.get("k").as_deref(), Some("w"), "no entry has said that it is gone");
    s.ctx.time = 2500;
    assert_eq!((s.get("k"), s.store.len()), (None, 1), "it is not seen, and waits to be removed");
    s.set("other", "v", When::Always, Expiry::Never, false);
    assert_eq!((s.get("k"), s.store.len()), (None, 1));
    assert_eq!((s.ttl("k", true), s.ttl("other", true)), (Reply::Int(-2), Reply::Int(-1)));
    let expire = |s: &mut Script, ms| {
        let op = Expire { key: bytes("other"), ms };
        s.apply(|store, ctx, asker, out| store.expire_key(ctx, asker, op, out))
    };
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
        map.retain(|_, (_, deadline)| deadline.is_none_or(|d| d > time));
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
                let reply = s.apply(|store, ctx, asker, out| store.del(ctx, asker, keys, out));
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
        assert_eq!(s.store.next_deadline(), map.values().filter_map(|(_, d)| *d).min());
    }
    let deadlines = s.store.rows.iter().filter_map(|(key, row)| Some((row.deadline?, key.clone()))).collect();
    assert_eq!(s.store.deadlines, deadlines, "the index is what the rows say");
    assert_eq!(s.store.bytes, s.store.rows.iter().map(|(key, row)| cost(key, &row.value)).sum::<u64>());
}
