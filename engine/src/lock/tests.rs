//! Locks by the contract's sentences; the deadlock search against a plain one; the index against the rows.

use alloc::collections::BTreeSet;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use quorate_protocol::id::{ClientId, ClientSeq, NodeId, SessionId};
use quorate_protocol::op::{Lock, Op};

use super::*;
use crate::script::{Dice, Script, Subject, conn};

impl Subject for Locks {
    fn expire(&mut self, ctx: &Ctx, out: &mut Outcomes) {
        Locks::expire(self, ctx, &mut crate::portion::Portion::endless(), out);
    }

    fn apply(&mut self, ctx: &Ctx, asker: &Asker, op: Op, out: &mut Outcomes) {
        match op {
            Op::Lock(op) => self.lock(ctx, asker, op, out),
            Op::Unlock(op) => self.unlock(ctx, asker, op, out),
            Op::Renew(op) => self.renew(ctx, asker, op, out),
            Op::LockInfo(name) => answer(out, *asker, self.info(ctx.time, &name)),
            other => panic!("{other:?} is not for locks"),
        }
    }

    fn check(&self) {
        assert_eq!(self.index, self.rebuilt(), "the index is what the rows say");
        for (name, line) in &self.index.lines {
            assert!(line.exclusive == 0 || line.holds == 1, "an exclusive holder is alone");
            let first = self.queue_of(name).next();
            let idle = first.is_some_and(|(_, wait)| self.may_hold(name, &wait.owner, wait.shared))
                && !self.fencing.is_awaited(name);
            assert!(!idle, "nobody waits for what could be granted");
        }
        assert!(self.deadlocked().is_empty(), "no set of owners waits for each other");
    }
}

impl Locks {
    /// The owners that are deadlocked, found the plain way: everybody who is not takes part in the reduction.
    fn deadlocked(&self) -> BTreeSet<Owner> {
        let mut holds: Vec<(Bytes, Owner, bool)> = self
            .holds
            .iter()
            .map(|((name, _), hold)| (name.clone(), hold.owner.clone(), hold.shared))
            .collect();
        let mut waits: Vec<(Bytes, Owner, bool)> = self
            .waits
            .iter()
            .map(|((name, _), wait)| (name.clone(), wait.owner.clone(), wait.shared))
            .collect();
        loop {
            let waiting: BTreeSet<Owner> = waits.iter().map(|(_, owner, _)| owner.clone()).collect();
            holds.retain(|(_, owner, _)| waiting.contains(owner));
            let free = |at: usize| {
                let (name, owner, shared) = &waits[at];
                let held = holds.iter().all(|(n, o, s)| n != name || o == owner || (*s && *shared));
                let ahead = waits[..at].iter().all(|(n, o, _)| n != name || o == owner);
                held && ahead
            };
            let Some(at) = (0..waits.len()).find(|&at| free(at)) else { return waiting };
            let (name, owner, shared) = waits.remove(at);
            holds.retain(|(n, o, _)| (n, o) != (&name, &owner));
            holds.push((name, owner, shared));
        }
    }
}

impl Locks {
    /// Asserts that the wait which was refused would have been part of a deadlock.
    fn assert_deadlocks(&mut self, owner: &str, name: &str, shared: bool) {
        let owner = named(owner);
        let name = Bytes::from(name.to_string());
        let place = if self.held_by(&owner, &name).is_some() { ORDINARY - 1 } else { u64::MAX - 1 };
        let asker = Asker { conn: conn(99), request: 1, client: None };
        let wait = Wait { owner: owner.clone(), asker, shared, ttl: 1, deadline: u64::MAX };
        self.insert_wait((name.clone(), place), wait);
        assert!(self.deadlocked().contains(&owner), "{owner} is refused for a reason");
        self.remove_wait(&(name, place));
    }
}

fn named(owner: &str) -> Owner {
    Owner::Named(Bytes::from(owner.to_string()))
}

fn locks() -> Script<Locks> {
    Script::new(Locks::new())
}

#[test]
fn one_holder_at_a_time_first_come_first_served() {
    let mut l = locks();
    assert_eq!(l.say(1, "LOCK db"), "1");
    assert_eq!(l.say(2, "LOCK db"), "(nil)");
    assert_eq!(l.say(2, "LOCK db WAIT 1000"), "");
    assert_eq!(l.say(3, "LOCK db WAIT 1000"), "");
    assert_eq!(l.say(2, "UNLOCK db"), "-NOTOWNER somebody else holds this lock; LOCKINFO shows who");
    assert_eq!(l.say(1, "UNLOCK db TOKEN 9"), "0");
    assert_eq!(l.say(1, "UNLOCK db TOKEN 1"), "1");
    assert_eq!(l.heard(), ["2: 2"]);
    l.pass(1000);
    assert_eq!(l.heard(), ["3: (nil)"], "an unfulfilled wait is withdrawn");
    assert_eq!(l.say(2, "UNLOCK db"), "1");
    assert_eq!(l.say(2, "UNLOCK db"), "0", "nothing is held");
    assert_eq!(l.say(3, "LOCK db"), "3");
}

#[test]
fn the_same_owner_gets_the_same_token_and_keeps_its_place() {
    let mut l = locks();
    assert_eq!(l.say(1, "LOCK db OWNER a TTL 100"), "1");
    assert_eq!(l.say(2, "LOCK db OWNER a TTL 500"), "1", "on any connection, the lease renewed");
    l.pass(400);
    assert!(l.say(1, "LOCKINFO db").contains("ttl: 100"));
    assert_eq!(l.say(3, "LOCK db OWNER b WAIT 10000"), "");
    assert_eq!(l.say(4, "LOCK db OWNER c WAIT 10000"), "");
    assert_eq!(l.say(5, "LOCK db OWNER b WAIT 20000"), "");
    assert_eq!(
        l.heard(),
        ["3: -INDOUBT a newer request of the same owner has taken this one's place in the queue"]
    );
    assert_eq!(l.say(1, "UNLOCK db OWNER a"), "1");
    assert_eq!(l.heard(), ["5: 2"], "b is still before c");
}

#[test]
fn leases_end_by_group_time_and_the_log_says_who_waited() {
    let mut l = locks();
    assert_eq!(l.say(1, "LOCK db OWNER a TTL 100"), "1");
    assert_eq!(l.say(2, "LOCK db OWNER b"), "(nil)");
    l.pass(99);
    assert_eq!(l.say(1, "RENEW db OWNER a TOKEN 1 TTL 50"), "50");
    l.pass(49);
    assert!(l.heard().is_empty());
    l.pass(1);
    let line = "DEADLOCK DETECTED: lease of a on db expired with b waiting or refused; released";
    assert_eq!(l.heard(), [alloc::format!("notice: {line}")]);
    assert_eq!(l.say(1, "RENEW db OWNER a TOKEN 1"), "(nil)");
    assert_eq!(l.say(2, "LOCK db OWNER b TTL 10"), "2");
    l.pass(10);
    assert!(l.heard().is_empty(), "nobody else wanted it");
}

#[test]
fn shared_holders_do_not_starve_an_exclusive_waiter() {
    let mut l = locks();
    assert_eq!(l.say(1, "LOCK db SHARED"), "1");
    assert_eq!(l.say(2, "LOCK db SHARED"), "2");
    assert_eq!(l.say(3, "LOCK db WAIT 9000"), "");
    assert_eq!(l.say(4, "LOCK db SHARED"), "(nil)");
    assert_eq!(l.say(4, "LOCK db SHARED WAIT 9000"), "");
    assert_eq!(l.say(5, "LOCK db SHARED WAIT 9000"), "");
    l.say(1, "UNLOCK db");
    assert!(l.heard().is_empty());
    l.say(2, "UNLOCK db");
    assert_eq!(l.heard(), ["3: 3"]);
    l.say(3, "UNLOCK db");
    assert_eq!(l.heard(), ["4: 4", "5: 5"], "all shared ones in front at once");
}

#[test]
fn an_upgrade_stands_before_all_and_a_second_one_is_a_deadlock() {
    let mut l = locks();
    assert_eq!(l.say(1, "LOCK db SHARED OWNER a"), "1");
    assert_eq!(l.say(2, "LOCK db SHARED OWNER b"), "2");
    assert_eq!(l.say(3, "LOCK db OWNER c WAIT 9000"), "");
    assert_eq!(l.say(1, "LOCK db OWNER a WAIT 9000"), "");
    let refusal = l.say(2, "LOCK db OWNER b WAIT 9000");
    assert!(refusal.starts_with("-DEADLOCK ") && refusal.contains("b:db -> a:db -> b"), "{refusal}");
    assert_eq!(l.heard().len(), 1, "the log is told");
    l.say(2, "UNLOCK db OWNER b");
    assert_eq!(l.heard(), ["1: 3"], "the upgrade gets a new token");
    assert_eq!(
        l.say(1, "LOCK db SHARED OWNER a"),
        "3",
        "shared asked by the exclusive holder changes nothing"
    );
    l.say(1, "UNLOCK db OWNER a");
    assert_eq!(l.heard(), ["3: 4"]);
}

#[test]
fn a_cycle_is_refused_and_named_whatever_its_length() {
    for n in 2..6u64 {
        let mut l = locks();
        for i in 0..n {
            assert_eq!(l.say(i, &alloc::format!("LOCK l{i} OWNER o{i}")), (i + 1).to_string());
        }
        for i in 0..n - 1 {
            assert_eq!(l.say(i, &alloc::format!("LOCK l{} OWNER o{i} WAIT 9000", i + 1)), "");
        }
        let refusal = l.say(n - 1, &alloc::format!("LOCK l0 OWNER o{} WAIT 9000", n - 1));
        assert!(refusal.starts_with("-DEADLOCK "), "{refusal}");
        assert_eq!(refusal.matches(" -> ").count() as u64, n, "every owner of the cycle is named: {refusal}");
        // Whoever gives up lets the others go on, one after the other.
        l.say(n - 1, &alloc::format!("UNLOCK l{} OWNER o{}", n - 1, n - 1));
        assert_eq!(l.heard().last(), Some(&alloc::format!("{}: {}", n - 2, n + 1)));
    }
}

#[test]
fn the_witness_names_only_who_stands_in_the_way() {
    let mut l = locks();
    assert_eq!(l.say(1, "LOCK a OWNER x SHARED"), "1");
    assert_eq!(l.say(2, "LOCK b OWNER y"), "2");
    assert_eq!(l.say(3, "LOCK a OWNER z WAIT 9000"), "");
    assert_eq!(l.say(1, "LOCK b OWNER x WAIT 9000"), "");
    // x holds a too, but shared: it is z, waiting for a alone, who stands before y.
    assert_eq!(l.say(2, "LOCK a OWNER y SHARED WAIT 9000"), "-DEADLOCK y:a -> z:a -> x:b -> y");
}

#[test]
fn thousands_who_hold_something_wait_for_one_lock() {
    let mut locks = Locks::new();
    let mut out = Outcomes::new();
    let mut lock = |at: u32, name: &str, owner: u32, wait: u64, out: &mut Outcomes| {
        let ctx = Ctx { at: quorate_protocol::id::LogPos { index: 0, offset: at }, time: 0 };
        let asker = Asker { conn: conn(1), request: u64::from(at), client: None };
        let owner = Some(Bytes::from(alloc::format!("o{owner}")));
        let op = Lock { name: Bytes::from(name.to_string()), shared: false, owner, ttl: 1000, wait };
        locks.lock(&ctx, &asker, op, out);
    };
    let n = 10_000;
    lock(1, "hot", 0, 0, &mut out);
    for owner in 1..n {
        lock(2 * owner, &alloc::format!("own{owner}"), owner, 0, &mut out);
        lock(2 * owner + 1, "hot", owner, 1000, &mut out);
    }
    out.clear();
    // The search is linear: a cubic one would not come to an end here.
    lock(2 * n, "own9999", 0, 1000, &mut out);
    let [Outcome::Notice(line), Outcome::Reply { reply, .. }] = &out[..] else { panic!("{out:?}") };
    assert_eq!(line, "DEADLOCK DETECTED: o0:own9999 -> o9999:hot -> o0");
    assert!(reply.failure().is_some_and(|failure| failure.code == Code::Deadlock));
}

#[test]
fn waiting_behind_somebody_counts_as_waiting_for_them() {
    let mut l = locks();
    assert_eq!(l.say(1, "LOCK a OWNER x"), "1");
    assert_eq!(l.say(2, "LOCK b OWNER y SHARED"), "2");
    assert_eq!(l.say(1, "LOCK b OWNER x WAIT 9000"), "");
    assert_eq!(l.say(3, "LOCK c OWNER z"), "3");
    assert_eq!(l.say(4, "LOCK c OWNER x WAIT 9000"), "", "an owner may wait for several locks");
    // z would stand behind x's exclusive request for b, and x waits for z's c.
    assert!(l.say(3, "LOCK b OWNER z SHARED WAIT 9000").starts_with("-DEADLOCK "));
}

#[test]
fn a_connection_holds_a_lock_as_long_as_it_lives() {
    let mut l = locks();
    let token = l.say(1, "LOCK db");
    assert_eq!(l.subject.next_deadline(), None, "nothing is waited for");
    l.pass(DURATION_MAX + 1);
    assert!(l.say(2, "LOCKINFO db").contains("ttl: -1"));
    assert_eq!(l.say(1, "LOCK db"), token, "it has it still");
    assert_eq!(l.say(1, "RENEW db TTL 1000"), "1000");
    l.pass(1001);
    assert_ne!(l.say(2, "LOCK db"), "(nil)", "an end was asked for");
}

#[test]
fn a_connection_that_ends_releases_and_withdraws() {
    let mut l = locks();
    assert_eq!(l.say(1, "LOCK a"), "1");
    assert_eq!(l.say(1, "LOCK named OWNER me"), "2");
    assert_eq!(l.say(2, "LOCK a WAIT 9000"), "");
    assert_eq!(l.say(3, "LOCK a WAIT 9000"), "");
    l.event(|locks, ctx, out| locks.close(ctx, conn(2), out));
    assert_eq!(l.heard(), ["2: (nil)"]);
    l.event(|locks, ctx, out| locks.close(ctx, conn(1), out));
    assert_eq!(l.heard(), ["3: 3"]);
    assert_eq!(l.say(4, "LOCK named"), "(nil)", "a named owner outlives its connection");
    l.event(|locks, ctx, out| locks.end_session(ctx, NodeId(1), SessionId(1), out));
    assert_eq!(l.say(4, "LOCK a"), "4");
}

#[test]
fn what_waits_in_a_client_session_outlives_its_connection_but_not_the_session() {
    let mut l = locks();
    assert_eq!(l.say(1, "LOCK a OWNER x"), "1");
    let client = Some(ClientSeq { client: ClientId(7), seq: 1, lowest: 1 });
    let asker = Asker { conn: conn(2), request: 1, client };
    l.event(|locks, ctx, out| {
        let op = Lock { name: "a".into(), shared: false, owner: Some("y".into()), ttl: 900, wait: 90_000 };
        locks.lock(ctx, &asker, op, out);
    });
    assert_eq!(l.heard(), ["2: waits"]);
    assert_eq!(l.say(3, "LOCK a OWNER z WAIT 90000"), "");
    l.event(|locks, ctx, out| locks.close(ctx, conn(2), out));
    assert_eq!(l.heard(), [""; 0], "it may go on on another connection");
    l.event(|locks, ctx, out| locks.end_client(ctx, ClientId(7), out));
    assert_eq!(l.heard(), ["2: (nil)"]);
    assert_eq!(l.say(1, "UNLOCK a OWNER x"), "1");
    assert_eq!(l.heard(), ["3: 2"], "nobody who is gone is granted anything");
}

#[test]
fn many_random_steps_keep_every_invariant() {
    let mut refused = 0;
    for seed in 0..60 {
        let mut dice = Dice::new(seed);
        let mut l = locks();
        let mut last = 0;
        for _ in 0..250 {
            let (who, name) = (dice.roll(5), dice.roll(3));
            let shared = if dice.roll(3) == 0 { " SHARED" } else { "" };
            match dice.roll(8) {
                0..=4 => {
                    let wait = ["", " WAIT 60", " WAIT 200"][usize::try_from(dice.roll(3)).unwrap()];
                    let (owner, lock) = (alloc::format!("o{who}"), alloc::format!("l{name}"));
                    // One that asks again stands where it stood, and may have been stood behind.
                    let again = l.subject.waits_of(&named(&owner), &Bytes::from(lock.clone())).is_some();
                    let reply =
                        l.say(who, &alloc::format!("LOCK {lock} OWNER {owner} TTL 150{wait}{shared}"));
                    if reply.starts_with("-DEADLOCK") {
                        refused += 1;
                        if !again {
                            l.subject.assert_deadlocks(&owner, &lock, !shared.is_empty());
                        }
                    }
                }
                5 => drop(l.say(who, &alloc::format!("UNLOCK l{name} OWNER o{who}"))),
                6 => l.pass(dice.roll(60)),
                _ => l.event(|locks, ctx, out| locks.close(ctx, conn(who), out)),
            }
            let token = *l.subject.token.get(&0).unwrap();
            assert!(token >= last, "tokens rise");
            last = token;
        }
        l.pass(1000);
        let left: Vec<String> = l.subject.waits.iter().map(|(key, _)| alloc::format!("{key:?}")).collect();
        assert!(left.is_empty(), "seed {seed}: every wait ends: {left:?}");
    }
    assert!(refused > 100, "deadlocks do come up: {refused}");
}

#[test]
fn lockinfo_shows_the_first_thousand_and_how_many_there_are() {
    let mut locks = Locks::new();
    let mut out = Outcomes::new();
    for n in 1..=1500u32 {
        let ctx = Ctx { at: quorate_protocol::id::LogPos { index: 0, offset: n }, time: 0 };
        let asker = Asker { conn: conn(1), request: u64::from(n), client: None };
        let owner = Some(Bytes::from(alloc::format!("o{n}")));
        let op = Lock { name: "read".into(), shared: true, owner, ttl: 1000, wait: 0 };
        locks.lock(&ctx, &asker, op, &mut out);
    }
    let Reply::Map(fields) = locks.info(0, &"read".into()) else { panic!("a map") };
    let of =
        |name: &str| fields.iter().find(|(field, _)| *field == Reply::text(name)).map(|(_, value)| value);
    assert_eq!(of("holding"), Some(&Reply::Int(1500)));
    assert!(matches!(of("holders"), Some(Reply::Array(rows)) if rows.len() == LOCKINFO_MAX));
}

#[test]
fn a_restore_leaves_tokens_out_as_long_as_there_are_some() {
    let with = |token| {
        let mut locks = Locks::new();
        locks.token.insert(0, token);
        locks.rebased().map(|locks| *locks.token.get(&0).expect("it has one"))
    };
    assert_eq!(with(5), Ok(5 + (1 << 40)));
    let last = (1 << 63) - 1 - (1 << 40);
    assert_eq!(with(last), Ok((1 << 63) - 1));
    assert!(with(last + 1).is_err() && with(u64::MAX).is_err());
}
