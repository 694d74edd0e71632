//! SNAPSHOT and SNAPSHOT READ: what clients can have of snapshots, and when they are refused.

mod town;

use quorate_engine::effect::{Input, NodeAsk};
use quorate_protocol::chunk::Checker;
use quorate_protocol::id::{GroupId, NodeId};
use quorate_protocol::limits::SNAPSHOT_WAITERS_MAX;
use quorate_protocol::peer::SnapshotAt;
use quorate_protocol::reply::{Code, Reply};
use town::{Town, set};

fn settled() -> Town {
    let mut town = Town::new(3);
    town.run(30);
    // More than a piece, in one partition.
    let ops = (0..300).map(|n| set(&format!("{{t}}{n}"), &"v".repeat(2000))).collect();
    town.ask_next(2, ops);
    town.run(20);
    town
}

/// Asks a node, and waits for the answer.
fn ask(town: &mut Town, node: u64, what: NodeAsk) -> Reply {
    let id = town.ask_node(node, what);
    town.run_until("an answer", |town| town.answer(node, id).is_some());
    town.answer(node, id).expect("it has come")
}

/// `[group, index, term, group time, bytes]` of all that a node has; no letters have crossed between groups.
fn list(town: &mut Town, node: u64) -> Vec<[u64; 5]> {
    let Reply::Array(rows) = ask(town, node, NodeAsk::Snapshots) else { panic!("a list") };
    let numbers = |row: &Reply| {
        let Reply::Array(values) = row else { panic!("{row:?}") };
        let number = |value: &Reply| match value {
            Reply::Int(n) => u64::try_from(*n).expect("it is positive"),
            other => panic!("{other:?}"),
        };
        let (crossings, numbers) = values.split_last().expect("six values");
        assert_eq!(*crossings, Reply::Array([].into()));
        numbers.iter().map(number).collect::<Vec<_>>().try_into().expect("five numbers")
    };
    rows.iter().map(numbers).collect()
}

fn read(town: &mut Town, node: u64, [group, index, ..]: [u64; 5], offset: u64) -> Reply {
    let group = GroupId(u16::try_from(group).expect("few groups"));
    ask(town, node, NodeAsk::SnapshotRead(SnapshotAt { group, index, offset }))
}

fn code_of(reply: Option<&Reply>) -> Option<Code> {
    reply.and_then(Reply::failure).map(|failure| failure.code)
}

#[test]
fn every_node_has_all_that_was_acknowledged_in_its_snapshots_once_it_says_ok() {
    let mut town = settled();
    for node in 1..=3 {
        let before = town.engine(node).report();
        assert_eq!(ask(&mut town, node, NodeAsk::Snapshot), Reply::OK);
        let rows = town.disks[&NodeId(node)].rows.clone();
        for report in before {
            let named = rows[&report.group].snapshot.0;
            assert!(named >= report.commit, "group {} of node {node}: {named}", report.group.0);
        }
    }
    // Nothing is written anew where nothing has changed.
    let before = list(&mut town, 1);
    assert_eq!(before.len(), 17);
    assert_eq!(ask(&mut town, 1, NodeAsk::Snapshot), Reply::OK);
    let same = list(&mut town, 1).iter().filter(|row| before.contains(row)).count();
    assert!(same >= 15, "only {same} groups are as they were");
}

#[test]
fn a_snapshot_is_read_piece_by_piece_to_its_end_and_no_other_is() {
    let mut town = settled();
    assert_eq!(ask(&mut town, 3, NodeAsk::Snapshot), Reply::OK);
    let rows = list(&mut town, 3);
    let largest = *rows.iter().max_by_key(|row| row[4]).expect("there are some");
    assert!(largest[4] > 600_000, "{largest:?}");
    for row in rows {
        let mut checker = Checker::new(GroupId(u16::try_from(row[0]).expect("few groups")), row[1]);
        let mut offset = 0;
        loop {
            let Reply::Bulk(bytes) = read(&mut town, 3, row, offset) else { panic!("{row:?} is there") };
            if bytes.is_empty() {
                break;
            }
            offset += bytes.len() as u64;
            checker.feed(bytes).expect("as it was written");
        }
        assert!(offset == row[4] && checker.is_whole(), "{row:?}: {offset}");
        let [group, index, rest @ ..] = row;
        assert_eq!(read(&mut town, 3, [group, index - 1, rest[0], rest[1], rest[2]], 0), Reply::Nil);
    }
    assert_eq!(read(&mut town, 3, [40, 7, 0, 0, 0], 0), Reply::Nil, "there is no such group");
}

#[test]
fn who_copies_holds_the_next_snapshot_back_for_a_while() {
    let mut town = settled();
    assert_eq!(ask(&mut town, 1, NodeAsk::Snapshot), Reply::OK);
    let row = *list(&mut town, 1).iter().max_by_key(|row| row[4]).expect("there are some");
    town.ask_next(1, vec![set("{t}0", "new")]);
    town.run(5);
    assert!(matches!(read(&mut town, 1, row, 0), Reply::Bulk(_)));
    let id = town.ask_node(1, NodeAsk::Snapshot);
    town.run(50);
    assert_eq!(town.answer(1, id), None, "it is being copied");
    assert!(matches!(read(&mut town, 2, row, 0), Reply::Nil), "node 2 has taken none");
    town.run(400);
    assert_eq!(town.answer(1, id), Some(Reply::OK), "nobody has read on for 5 seconds");
    // Whoever reads to the end holds nothing back.
    let row = *list(&mut town, 1).iter().max_by_key(|row| row[4]).expect("there are some");
    town.ask_next(1, vec![set("{t}0", "newer")]);
    town.run(5);
    assert!(matches!(read(&mut town, 1, row, row[4]), Reply::Bulk(end) if end.is_empty()));
    let id = town.ask_node(1, NodeAsk::Snapshot);
    town.run(50);
    assert_eq!(town.answer(1, id), Some(Reply::OK));
}

#[test]
fn who_cannot_have_one_is_told_why() {
    let mut town = settled();
    town.post(1, Input::Room(false));
    let reply = ask(&mut town, 1, NodeAsk::Snapshot);
    assert!(code_of(Some(&reply)) == Some(Code::Busy) && format!("{reply:?}").contains("free some space"));
    town.post(1, Input::Room(true));
    town.run(2);

    let all: Vec<u64> = (0..SNAPSHOT_WAITERS_MAX + 3).map(|_| town.ask_node(1, NodeAsk::Snapshot)).collect();
    town.run_until("all are answered", |town| all.iter().all(|id| town.answer(1, *id).is_some()));
    let refused = all.iter().filter(|id| code_of(town.answer(1, **id).as_ref()) == Some(Code::Busy)).count();
    let done = all.iter().filter(|id| town.answer(1, **id) == Some(Reply::OK)).count();
    assert_eq!((refused, done), (3, SNAPSHOT_WAITERS_MAX));

    town.cut_off.extend([NodeId(2), NodeId(3)]);
    town.run(200);
    let reply = ask(&mut town, 1, NodeAsk::Snapshot);
    assert_eq!(code_of(Some(&reply)), Some(Code::ClusterDown), "{reply:?}");
}
