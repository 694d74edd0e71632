//! SET WRITEBACK in a whole cluster on a perfect network: what is answered by the owner alone is what everybody reads.

mod town;

use bytes::Bytes;
use quorate_engine::effect::Input;
use quorate_protocol::id::NodeId;
use quorate_protocol::limits::DIRTY_WINDOW;
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
