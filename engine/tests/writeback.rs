//! SET WRITEBACK in a whole cluster on a perfect network: what is answered by the owner alone is what everybody reads.

mod town;

use bytes::Bytes;
use quorate_engine::effect::Input;
use quorate_protocol::id::NodeId;
use quorate_protocol::limits::{DIRTY_WINDOW, IN_FLIGHT_MAX};
use quorate_protocol::op::{Append, Commands, Multi, Op, SetBack, partition_of};
use quorate_protocol::reply::Reply;
use town::{Town, get, set};

const KEY: &str = "k";
/// Inputs that a node takes for a request that it answers by itself, and what was on its way before.
const AT_ONCE: usize = 8;

fn back(value: &str) -> Op {
    let (key, value) = (Bytes::from_static(KEY.as_bytes()), Bytes::copy_from_slice(value.as_bytes()));
    Op::SetBack(SetBack { key, value })
}

fn bulk(value: &str) -> Reply {
    Reply::Bulk(Bytes::copy_from_slice(value.as_bytes()))
}

impl Town {
    fn told(&mut self, node: u64, op: Op) -> Reply {
        let id = self.ask_next(node, vec![op]);
        self.run_until("an answer", |town| town.answer(node, id).is_some());
        self.answer(node, id).expect("it was just seen")
    }

    fn taken_on(&self, node: u64) -> u64 {
        self.engine(node).write_backs().absorbed
    }

    /// A node that does not lead the key's partition, and the one that does.
    fn owner_and_home(&mut self) -> (u64, u64) {
        assert_eq!(self.told(1, set(KEY, "0")), Reply::OK);
        let group = partition_of(KEY.as_bytes(), 16);
        let leader = |node: &u64| {
            let report = self.engine(*node).report();
            report.iter().find(|report| report.group == group).and_then(|report| report.leader)
        };
        let home = leader(&1).expect("it has just written").0;
        (home % 3 + 1, home)
    }

    /// Writes until the node answers by itself.
    fn own(&mut self, node: u64) {
        for n in 0..50 {
            let before = self.taken_on(node);
            assert_eq!(self.told(node, back(&format!("begin {n}"))), Reply::OK);
            if self.taken_on(node) > before {
                return;
            }
            self.run(5);
        }
        panic!("node {node} takes nothing on");
    }
}

#[test]
fn an_owner_answers_at_once_and_everybody_reads_what_it_answered() {
    let mut town = Town::new(3);
    let (owner, home) = town.owner_and_home();
    let third = 6 - owner - home;
    town.own(owner);
    for (n, reader) in [(1, third), (2, home), (3, owner)] {
        town.own(owner);
        let before = town.taken_on(owner);
        let first = town.ask_next(owner, vec![back("a"), back(&format!("b{n}"))]);
        town.run_some(AT_ONCE);
        assert_eq!(town.answer(owner, first + 1), Some(Reply::OK), "without a word to anybody");
        assert_eq!(town.taken_on(owner), before + 2);
        assert_eq!(town.told(reader, get(KEY)), bulk(&format!("b{n}")));
    }
}

#[test]
fn every_command_that_names_the_key_sees_what_was_answered() {
    let mut town = Town::new(3);
    let (owner, home) = town.owner_and_home();
    let key = Bytes::from_static(KEY.as_bytes());
    let read = Multi { watched: Vec::new(), commands: Commands(vec![get(KEY)]) };
    let append = Append { key: key.clone(), value: Bytes::from_static(b"+") };
    let cases = [
        (Op::Strlen(key.clone()), Reply::Int(5)),
        (Op::MGet(vec![key.clone()]), Reply::Array(vec![bulk("value")])),
        (Op::Multi(read.into()), Reply::Array(vec![bulk("value")])),
        (Op::Append(append), Reply::Int(6)),
        (Op::GetDel(key.clone()), bulk("value")),
    ];
    for (op, expected) in cases {
        for asker in [owner, home] {
            town.own(owner);
            assert_eq!(town.told(owner, back("value")), Reply::OK);
            assert_eq!(town.told(asker, op.clone()), expected, "{op:?} on node {asker}");
            town.told(home, set(KEY, "again"));
        }
    }
}

#[test]
fn a_connection_that_has_something_under_way_is_answered_in_order() {
    let mut town = Town::new(3);
    let (owner, _) = town.owner_and_home();
    town.own(owner);
    let before = town.taken_on(owner);
    let first = town.ask_next(owner, vec![set(KEY, "through"), back("behind"), get(KEY)]);
    town.run_until("answers", |town| town.answer(owner, first + 2).is_some());
    assert_eq!(town.answer(owner, first + 2), Some(bulk("behind")));
    assert_eq!(town.taken_on(owner), before, "it was not answered by the node alone");
}

#[test]
fn what_was_answered_is_durable_within_the_window_also_if_nobody_asks() {
    let mut town = Town::new(3);
    let (owner, _) = town.owner_and_home();
    town.own(owner);
    assert_eq!(town.told(owner, back("last")), Reply::OK);
    town.run(DIRTY_WINDOW / 20);
    assert_eq!(town.engine(owner).write_backs().dirty, 0);
    town.cut_off.insert(NodeId(owner));
    let reader = owner % 3 + 1;
    assert_eq!(town.told(reader, get(KEY)), bulk("last"));
}

#[test]
fn an_owner_that_is_cut_off_loses_the_last_writes_and_overwrites_nothing() {
    let mut town = Town::new(3);
    let (owner, _) = town.owner_and_home();
    town.own(owner);
    assert_eq!(town.told(owner, back("kept")), Reply::OK);
    town.run(DIRTY_WINDOW / 20);
    town.cut_off.insert(NodeId(owner));
    assert_eq!(town.told(owner, back("lost")), Reply::OK);
    let reader = owner % 3 + 1;
    assert_eq!(town.told(reader, get(KEY)), bulk("kept"));
    assert_eq!(town.told(reader, set(KEY, "newer")), Reply::OK);
    town.cut_off.clear();
    town.run_until("it gives up", |town| town.engine(owner).write_backs().dirty == 0);
    assert_eq!(town.engine(owner).write_backs().lost, 1);
    assert_eq!(town.told(owner, get(KEY)), bulk("newer"));
}

#[test]
fn flushall_and_a_change_of_leader_come_behind_what_was_answered() {
    let mut town = Town::new(3);
    let (owner, home) = town.owner_and_home();
    town.own(owner);
    assert_eq!(town.told(owner, back("gone")), Reply::OK);
    assert_eq!(town.told(home, Op::FlushAll), Reply::OK);
    assert_eq!(town.told(owner, get(KEY)), Reply::Nil);
    assert_eq!(town.engine(owner).write_backs().lost, 0);
    town.own(owner);
    assert_eq!(town.told(owner, back("kept")), Reply::OK);
    town.post(home, Input::Resign);
    let leads =
        |town: &Town| town.engine(home).report().iter().any(|report| report.leader == Some(NodeId(home)));
    town.run_until("it leads nothing", |town| !leads(town));
    town.cut_off.insert(NodeId(home));
    let reader = 6 - owner - home;
    assert_eq!(town.told(reader, get(KEY)), bulk("kept"));
    assert_eq!(town.engine(owner).write_backs().lost, 0);
}

#[test]
fn an_owner_that_is_told_to_stop_is_not_done_before_it_has_brought_everything() {
    let mut town = Town::new(3);
    let (owner, home) = town.owner_and_home();
    town.own(owner);
    let id = town.ask_next(owner, vec![back("last")]);
    town.run_some(AT_ONCE);
    assert_eq!(town.answer(owner, id), Some(Reply::OK));
    assert!(!town.engine(owner).is_idle(), "it has something that nobody else has");
    town.post(owner, Input::Resign);
    town.run_until("it has nothing left to tell", |town| town.engine(owner).is_idle());
    town.cut_off.insert(NodeId(owner));
    assert_eq!(town.told(home, get(KEY)), bulk("last"));
}

const BESIDE: &str = "{k}beside";

/// Has a node hold the line of the key beside, and cuts it off: a write of that waits until the node's lease is over.
fn cut_off_a_reader_of_the_key_beside(town: &mut Town, home: u64, reader: u64) {
    assert_eq!(town.told(home, set(BESIDE, "before")), Reply::OK);
    let holds = |town: &Town| town.engine(reader).counts().lines.iter().sum::<usize>() > 0;
    for _ in 0..50 {
        assert_eq!(town.told(reader, get(BESIDE)), bulk("before"));
        if holds(town) {
            break;
        }
        town.run(1);
    }
    assert!(holds(town), "node {reader} keeps nothing");
    town.cut_off.insert(NodeId(reader));
}

#[test]
fn a_transaction_sees_every_write_that_was_acknowledged_before_it_took_effect() {
    let mut town = Town::new(3);
    let (owner, home) = town.owner_and_home();
    let reader = 6 - owner - home;
    town.own(owner);
    cut_off_a_reader_of_the_key_beside(&mut town, home, reader);
    let commands = Commands(vec![get(KEY), set(BESIDE, "after")]);
    let exec = town.ask_next(home, vec![Op::Multi(Multi { watched: Vec::new(), commands }.into())]);
    let mut acknowledged = String::new();
    for n in 0.. {
        let value = format!("during {n}");
        let id = town.ask_next(owner, vec![back(&value)]);
        town.run(1);
        if town.answer(home, exec).is_some() {
            break;
        }
        if town.answer(owner, id) == Some(Reply::OK) {
            acknowledged = value;
        }
    }
    let Some(Reply::Array(answers)) = town.answer(home, exec) else { panic!("it is answered") };
    let Reply::Bulk(seen) = &answers[0] else { panic!("{answers:?}") };
    let number = |value: &str| value.trim_start_matches("during ").parse::<u32>().expect("it was written so");
    let seen = core::str::from_utf8(seen).expect("it is text");
    assert!(number(&acknowledged) > 3, "many were written while it waited: {acknowledged}");
    assert!(number(seen) >= number(&acknowledged), "{seen} is older than {acknowledged}");
    town.cut_off.clear();
    town.own(owner);
}

#[test]
fn a_write_that_was_taken_on_breaks_a_watch() {
    let mut town = Town::new(3);
    let (owner, home) = town.owner_and_home();
    let key = Bytes::from_static(KEY.as_bytes());
    for (watcher, writes) in [(home, true), (owner, true), (home, false)] {
        town.own(owner);
        let Reply::Array(versions) = town.told(watcher, Op::Versions(vec![key.clone()])) else {
            panic!("versions are a list")
        };
        let Reply::Int(version) = versions[0] else { panic!("{versions:?}") };
        if writes {
            town.own(owner);
        }
        let watched = vec![(key.clone(), version.unsigned_abs())];
        let multi = Multi { watched, commands: Commands(vec![set(BESIDE, "after")]) };
        let answer = town.told(watcher, Op::Multi(multi.into()));
        let expected = if writes { Reply::Nil } else { Reply::Array(vec![Reply::OK]) };
        assert_eq!(answer, expected, "watched on node {watcher}");
    }
}

#[test]
fn what_an_owner_brings_is_taken_by_a_home_that_can_take_no_more() {
    let mut town = Town::new(3);
    let (owner, home) = town.owner_and_home();
    town.own(owner);
    // Nothing is committed any more, and the home's bound is filled.
    town.silent.extend((1..=3).map(NodeId));
    town.ask_next(home, (0..=IN_FLIGHT_MAX).map(|n| set(BESIDE, &format!("{n}"))).collect());
    town.run(1);
    let full = town.engine(home).counts().refused_busy;
    assert!(full > 0, "it is full");
    let id = town.ask_next(owner, vec![back("last")]);
    town.run(4);
    assert_eq!(town.answer(owner, id), Some(Reply::OK), "the owner takes it on");
    assert_eq!(town.engine(home).counts().refused_busy, full, "what it brings is not sent away");
    town.unsilence();
    town.run_until("it is brought", |town| town.engine(owner).write_backs().dirty == 0);
    assert_eq!(town.told(6 - owner - home, get(KEY)), bulk("last"));
}
