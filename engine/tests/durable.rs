//! Snapshots, compaction, replacement of replicas, on a perfect network.

mod town;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use quorate_engine::consensus::Role;
use quorate_engine::effect::Input;
use quorate_engine::journal::{Conf, File, Row, Standing};
use quorate_engine::ring::Ring;
use quorate_protocol::id::{GroupId, NodeId};
use quorate_protocol::op::{MemberAdd, MemberOp, Op, Pub};
use quorate_protocol::reply::{Code, Reply};
use town::{Town, get, set};

/// Overwrites keys, publishes, and lets time pass in between.
fn work(town: &mut Town, node: u64, from: u64, rounds: u64) {
    for n in from..from + rounds {
        let value = format!("{n}{}", "v".repeat(2000));
        let message = Pub {
            topic: Bytes::from(format!("topic{}", n % 20)),
            body: Bytes::from(value.clone()),
            dedupe: None,
            delay: 0,
        };
        let ops = vec![set(&format!("key{}", n % 50), &value), Op::Pub(message)];
        town.ask_next(node, ops);
        town.run(1);
    }
    town.run(5);
}

fn log_bytes(town: &Town, node: u64) -> usize {
    town.disks[&NodeId(node)].rows.keys().map(|group| town.engine(node).log_bytes(*group)).sum()
}

#[test]
fn a_log_that_grows_is_replaced_by_snapshots_and_a_restart_finds_the_same_state() {
    let mut town = Town::with_floor(3, 64 << 10);
    town.run(30);
    work(&mut town, 1, 1, 300);
    town.run_until("all agree", |town| town.agree(&[1, 2, 3]));
    for node in 1..=3 {
        let disk = &town.disks[&NodeId(node)];
        let snapshots = disk.rows.values().filter(|row| row.snapshot.0 > 0).count();
        assert!(snapshots > 10, "most groups of node {node} have taken snapshots, not {snapshots}");
        assert!(log_bytes(&town, node) < 900_000, "{} bytes of log are kept", log_bytes(&town, node));
    }
    let before = town.engine(2).report();
    town.start(2);
    for (before, after) in before.iter().zip(town.engine(2).report()) {
        assert!(after.applied > 0 || before.applied < 20, "{after:?} starts from a snapshot");
    }
    town.run_until("node 2 has caught up", |town| town.agree(&[1, 2, 3]));
    town.ask_next(2, vec![get("key1")]);
    town.run(5);
    let (_, last) = town.replies_of(2).pop().expect("an answer");
    assert!(matches!(&last, Reply::Bulk(value) if value.starts_with(b"251v")), "{last:?}");
}

#[test]
fn a_node_that_was_away_for_long_fetches_snapshots() {
    let mut town = Town::with_floor(3, 64 << 10);
    town.run(30);
    work(&mut town, 1, 1, 30);
    town.cut_off.insert(NodeId(3));
    town.run(60);
    let behind = town.engine(3).report();
    // The rest keeps no more for it than its bounds allow.
    work(&mut town, 1, 31, 400);
    town.cut_off.clear();
    town.run_until("node 3 has caught up", |town| town.agree(&[1, 2, 3]));
    let leapt = behind.iter().filter(|old| {
        let row = &town.disks[&NodeId(3)].rows[&old.group];
        row.snapshot.0 > old.applied && old.group != GroupId::SYSTEM
    });
    assert!(leapt.count() > 5, "most groups were too far behind for their logs");
    town.start(3);
    town.run_until("node 3 has restarted", |town| town.agree(&[1, 2, 3]));
}

#[test]
fn a_node_with_a_slow_disk_asks_for_no_more_than_it_can_write() {
    let mut town = Town::with_floor(3, 64 << 10);
    town.run(30);
    town.cut_off.insert(NodeId(3));
    town.run(60);
    let value = "v".repeat(20_000);
    for n in 0..400 {
        town.ask_next(1, vec![set(&format!("{{one}}{n}"), &value)]);
        town.run(1);
    }
    town.run(30);
    town.stuck.insert(NodeId(3));
    town.cut_off.clear();
    town.run(300);
    let sent = town.sent[&NodeId(3)];
    assert!(sent > 0 && sent < 4 << 20, "{sent} bytes of 8 MB were sent to a node that can write none");
    town.unstick();
    town.run_until("node 3 has caught up", |town| town.agree(&[1, 2, 3]));
    assert!(town.sent[&NodeId(3)] > 4 << 20, "what was not sent before was fetched then");
}

#[test]
fn a_replica_that_has_lost_what_it_acknowledged_is_replaced() {
    let mut town = Town::with_floor(3, 64 << 10);
    town.run(30);
    work(&mut town, 1, 1, 200);
    let disk = town.disks.get_mut(&NodeId(2)).expect("a disk");
    disk.entries.clear();
    disk.files.retain(|file, _| !matches!(file, File::Snapshot(..)));
    for row in disk.rows.values_mut() {
        row.standing = Standing::Lost;
        row.snapshot = (0, 0);
    }
    town.start(2);
    assert!(town.engine(2).report().is_empty(), "it acts for no group");
    town.run_until("all groups are back", |town| {
        town.engine(2).report().len() == 17 && town.agree(&[1, 2, 3])
    });
    town.run_until("its replicas vote again", |town| {
        town.disks[&NodeId(2)].rows.values().all(|row| {
            row.standing == Standing::Whole
                && row.incarnation > 0
                && row.conf.outgoing.is_empty()
                && row
                    .conf
                    .voters
                    .iter()
                    .any(|voter| voter.node == NodeId(2) && voter.incarnation == row.incarnation)
        })
    });
    // It carries a majority: node 3 may go.
    town.cut_off.insert(NodeId(3));
    town.run(100);
    work(&mut town, 1, 1000, 5);
    assert!(
        town.replies_of(1).iter().filter(|(id, _)| *id >= 10_000).all(|(_, reply)| reply.failure().is_none())
    );
    assert!(town.agree(&[1, 2]));
}

/// Nodes that have lost what they had of a group.
fn lose(town: &mut Town, group: GroupId, nodes: [u64; 2]) {
    for node in nodes {
        let disk = town.disks.get_mut(&NodeId(node)).expect("a disk");
        disk.entries.remove(&group);
        let row = disk.rows.get_mut(&group).expect("it is held everywhere");
        (row.standing, row.snapshot) = (Standing::Lost, (0, 0));
        town.start(node);
    }
}

#[test]
fn a_replica_that_was_put_back_as_it_was_counts_again() {
    let mut town = Town::new(3);
    town.run(30);
    work(&mut town, 1, 1, 40);
    town.run_until("all agree", |town| town.agree(&[1, 2, 3]));
    let ring = Ring::new((1..=3).map(NodeId));
    let group = (1..=16).map(GroupId).find(|group| ring.voters(*group).first() == Some(&NodeId(1)));
    let group = group.expect("node 1 is to lead some");
    let (row, log) =
        (town.disks[&NodeId(2)].rows[&group].clone(), town.disks[&NodeId(2)].entries[&group].clone());
    lose(&mut town, group, [2, 3]);
    town.run(200);
    assert!(town.engine(1).report().iter().any(|one| one.group == group && one.leader.is_none()));
    let disk = town.disks.get_mut(&NodeId(2)).expect("a disk");
    disk.rows.insert(group, row);
    disk.entries.insert(group, log);
    town.start(2);
    for _ in 0..600 {
        town.run(1);
        let conf = &town.disks[&NodeId(1)].rows[&group].conf;
        assert!(conf.voters.len() > 1, "what node 2 has is not thrown away: {conf:?}");
    }
    let rows = |node: u64| &town.disks[&NodeId(node)].rows[&group];
    assert!(rows(2).standing == Standing::Whole && rows(2).incarnation == 0, "{:?}", rows(2));
    assert_eq!((rows(3).standing, rows(1).conf.voters.len()), (Standing::Whole, 3), "node 3 was replaced");
    assert!(town.agree(&[1, 2, 3]));
}

#[test]
fn a_group_stands_still_and_says_so_when_most_of_its_nodes_have_renounced_what_they_had() {
    let mut town = Town::new(5);
    town.run(50);
    work(&mut town, 1, 1, 20);
    // A partition, and the node of it that keeps what it has.
    let places = places(&town);
    let holders = |group: &GroupId| places[group].iter().copied().collect::<Vec<_>>();
    let group = (1..=16).map(GroupId).find(|group| !holders(group).contains(&NodeId(1)));
    let group = group.expect("node 1 does not hold all");
    let struck = &holders(&group)[..2];
    for node in struck {
        let disk = town.disks.get_mut(node).expect("a disk");
        disk.entries.clear();
        disk.files.clear();
        let lost = Row { incarnation: u32::MAX, standing: Standing::Lost, ..Row::default() };
        disk.rows = (0..=16).map(|group| (GroupId(group), lost.clone())).collect();
        town.start(node.0);
    }
    let last = holders(&group)[2];
    town.run_until("they have renounced it", |town| {
        struck.iter().all(|node| town.disks[node].rows[&group].standing == Standing::Absent)
    });
    town.run(600);
    let mut warnings =
        town.logs.iter().filter(|(node, line)| *node == last && line.contains("have lost what"));
    let named = format!("{}", group.0);
    let names = |line: &str| line.split([' ', ',', ':']).any(|word| word == named);
    assert!(warnings.any(|(_, line)| names(line)), "node {} says so of group {named}", last.0);
}

#[test]
fn leadership_returns_to_where_it_belongs_and_leaves_a_node_that_stops() {
    let mut town = Town::new(3);
    town.run(30);
    let leads = |town: &Town, node: u64| {
        town.engine(node).report().iter().filter(|report| report.leader == Some(NodeId(node))).count()
    };
    let spread: Vec<usize> = (1..=3).map(|node| leads(&town, node)).collect();
    assert!(spread.iter().all(|&n| n > 0), "{spread:?}");
    town.post(1, Input::Resign);
    town.run_until("node 1 leads nothing", |town| leads(town, 1) == 0);
    assert!(town.engine(1).is_idle());
    town.run(200);
    assert_eq!(leads(&town, 1), 0, "and nobody hands it anything");
    town.start(1);
    let began = town.now.mono;
    town.run_until("leaders are where they were", |town| {
        (1..=3).map(|node| leads(town, node)).collect::<Vec<_>>() == spread
    });
    let took = (town.now.mono - began) / 1000;
    let bound = (spread[0] as u64 + 1) * 500;
    assert!(took < bound, "they return one after the other, twice a second from each node: {took} ms");
}

/// MsgTimeoutNow: with it a leader has another one stand for election.
const TIMEOUT_NOW: u8 = 7;

#[test]
fn a_leader_that_could_not_hand_over_has_a_lease_again() {
    let mut town = Town::new(3);
    town.run(30);
    let with_lease = |town: &Town, node: u64| {
        let now = town.now.mono;
        town.engine(node)
            .report()
            .iter()
            .filter(|report| report.role == Role::Leader && report.lease > now)
            .count()
    };
    let before = with_lease(&town, 1);
    assert!(before > 0);
    town.lost = Some(TIMEOUT_NOW);
    town.post(1, Input::Room(false));
    town.run_until("it has tried to hand over", |town| with_lease(town, 1) == 0);
    town.post(1, Input::Room(true));
    town.run(200);
    assert!(with_lease(&town, 1) == 0, "nobody has heard of it: the term is the same");
    town.lost = None;
    town.run_until("it leads in new terms", |town| with_lease(town, 1) == before);
}

#[test]
fn a_lease_does_not_wait_for_who_did_not_take_leadership() {
    let mut town = Town::new(3);
    town.run(30);
    town.cut_off.insert(NodeId(1));
    let led = |town: &Town| {
        let now = town.now.mono;
        let reports = [2, 3].map(|node| town.engine(node).report());
        let leads: Vec<_> =
            reports.into_iter().flatten().filter(|report| report.role == Role::Leader).collect();
        (leads.len(), leads.iter().filter(|report| report.lease > now).count())
    };
    town.run_until("the others lead all", |town| led(town) == (17, 17));
    town.lost = Some(TIMEOUT_NOW);
    town.cut_off.clear();
    town.run_until("it was to lead again", |town| led(town).1 < 17);
    town.run(20);
    town.cut_off.insert(NodeId(1));
    town.lost = None;
    town.run_until("they have their leases without it", |town| led(town) == (17, 17));
}

fn change(town: &mut Town, op: MemberOp) {
    let id = town.ask_next(1, vec![Op::Member(op)]);
    town.run(10);
    let (_, reply) = town.replies_of(1).into_iter().find(|(other, _)| *other == id).expect("an answer");
    assert_eq!(reply, Reply::OK);
}

/// The nodes with a replica of each group, as their leaders see it.
fn places(town: &Town) -> BTreeMap<GroupId, BTreeSet<NodeId>> {
    let rows = town.disks.values().flat_map(|disk| &disk.rows);
    let mut newest: BTreeMap<GroupId, &Conf> = BTreeMap::new();
    for (&group, row) in rows.filter(|(_, row)| row.standing == Standing::Whole) {
        let known = newest.entry(group).or_insert(&row.conf);
        if row.conf.index > known.index {
            *known = &row.conf;
        }
    }
    let nodes = |conf: &Conf| conf.replicas().into_iter().map(|replica| replica.node).collect();
    newest.into_iter().map(|(group, conf)| (group, nodes(conf))).collect()
}

#[test]
fn a_cluster_grows_and_shrinks_under_load_and_moves_only_what_it_must() {
    let mut town = Town::with_floor(3, 64 << 10);
    town.run(30);
    work(&mut town, 1, 1, 200);
    let three = places(&town);
    for node in [4, 5] {
        let add = MemberAdd { node: NodeId(node), peer_address: format!("peer{node}:7412") };
        change(&mut town, MemberOp::Add(add));
        town.start(node);
    }
    let ring = Ring::new((1..=5).map(NodeId));
    let want: BTreeMap<GroupId, BTreeSet<NodeId>> =
        (0..=16).map(GroupId).map(|group| (group, ring.voters(group).into_iter().collect())).collect();
    let mut round = 0;
    while places(&town) != want {
        round += 1;
        work(&mut town, 1, 1000 + round * 10, 3);
        assert!(round < 300, "the groups move: {:?}", places(&town));
    }
    let moved = want.iter().filter(|(group, nodes)| three[group] != **nodes).count();
    assert!((8..=17).contains(&moved), "{moved} of 17 groups got a new node");
    town.run_until("all agree", |town| town.agree(&[1, 2, 3, 4, 5]));
    let held = |town: &Town, node: u64| town.engine(node).report().len();
    assert!((4..17).contains(&held(&town, 4)) && (4..17).contains(&held(&town, 5)));

    for node in [4, 5] {
        change(&mut town, MemberOp::Remove(NodeId(node)));
    }
    round = 0;
    while places(&town) != three {
        round += 1;
        work(&mut town, 1, 5000 + round * 10, 3);
        assert!(round < 300, "the groups move back: {:?}", places(&town));
    }
    town.run_until("nothing is left on them", |town| (held(town, 4), held(town, 5)) == (0, 0));
    town.run_until("all agree", |town| town.agree(&[1, 2, 3]));
    let replies = town.replies_of(1);
    let refused: Vec<_> = replies.iter().filter(|(_, reply)| reply.failure().is_some()).collect();
    assert!(refused.is_empty(), "nothing was refused meanwhile: {refused:?}");
}

fn led(town: &Town, node: u64) -> usize {
    town.engine(node).report().iter().filter(|report| report.leader == Some(NodeId(node))).count()
}

#[test]
fn a_node_without_room_leaves_writing_to_others_and_comes_back_by_itself() {
    let mut town = Town::with_floor(3, 64 << 10);
    town.run(30);
    town.post(1, Input::Room(false));
    town.run_until("it leads nothing", |town| led(town, 1) == 0);
    let before = town.engine(1).report();
    work(&mut town, 1, 1, 50);
    assert!(town.replies_of(1).iter().all(|(_, reply)| reply.failure().is_none()), "its clients are served");
    town.run(50);
    // New leaders' first entries hold no command, and are written.
    let reports = town.engine(1).report();
    let grown = reports.iter().zip(&before).filter(|(now, before)| now.applied > before.applied + 1);
    assert_eq!(grown.count(), 0, "it writes no commands");
    let (_, read) = {
        town.ask_next(1, vec![get("key1")]);
        town.run(5);
        town.replies_of(1).pop().expect("an answer")
    };
    assert!(matches!(read, Reply::Bulk(_)), "it serves reads: {read:?}");
    // Its vote counts: without it the other one has no majority.
    let other = (2..=3).max_by_key(|&node| led(&town, node)).expect("one of two");
    town.cut_off.insert(NodeId(other));
    let left = 5 - other;
    town.run_until("the one that is left leads with its vote", |town| led(town, left) == 17);
    town.cut_off.clear();
    town.post(1, Input::Room(true));
    town.run_until("all agree", |town| town.agree(&[1, 2, 3]));
}

#[test]
fn with_no_room_anywhere_writes_are_refused_and_reads_are_served() {
    let mut town = Town::new(3);
    town.run(30);
    work(&mut town, 1, 1, 5);
    (1..=3).for_each(|node| town.post(node, Input::Room(false)));
    town.run(20);
    let first = town.ask_next(2, vec![set("key1", "v"), get("key1")]);
    town.run(10);
    let replies = town.replies_of(2);
    let of = |id: u64| &replies.iter().find(|(other, _)| *other == id).expect("an answer").1;
    let refusal = of(first).failure().expect("a refusal");
    assert!(refusal.code == Code::Busy && refusal.text.contains("disk"), "{refusal:?}");
    assert!(
        matches!(of(first + 1), Reply::Error(failure) if failure.code == Code::TryAgain),
        "behind a refusal nothing goes on"
    );
    let second = town.ask_next(3, vec![get("key1")]);
    town.run(5);
    assert!(matches!(town.replies_of(3).iter().find(|(id, _)| *id == second), Some((_, Reply::Bulk(_)))));
    (1..=3).for_each(|node| town.post(node, Input::Room(true)));
    town.run(5);
    town.ask_next(1, vec![set("key1", "again")]);
    town.run(20);
    assert_eq!(town.replies_of(1).pop().map(|(_, reply)| reply), Some(Reply::OK));
}

#[test]
fn a_group_that_stands_still_is_no_reason_for_others_to_take_snapshots_again_and_again() {
    let mut town = Town::with_floor(3, 64 << 10);
    town.run(30);
    work(&mut town, 1, 1, 100);
    // What node 1 proposes now is written and never committed.
    town.cut_off.insert(NodeId(1));
    let before = town.disks[&NodeId(1)].entries.clone();
    town.ask_next(1, (0..40).map(|n| set(&format!("tail{n}"), "v")).collect());
    town.run(3);
    let grown = |(group, log): &(&GroupId, &Vec<_>)| {
        **group != GroupId::SYSTEM && before.get(*group).is_none_or(|before| log.len() > before.len())
    };
    let stuck = town.disks[&NodeId(1)].entries.iter().find(grown).map(|(group, _)| *group);
    let stuck = stuck.expect("node 1 leads a partition");
    for node in 2..=3 {
        let disk = town.disks.get_mut(&NodeId(node)).expect("a disk");
        disk.entries.remove(&stuck);
        let row = disk.rows.get_mut(&stuck).expect("it is held everywhere");
        (row.standing, row.snapshot) = (Standing::Lost, (0, 0));
        town.start(node);
    }
    town.cut_off.clear();
    town.run(200);
    let mut taken = BTreeMap::from([(1, 0), (2, 0)]);
    for n in 0..400 {
        let before = town.disks.clone();
        town.ask_next(2, vec![set(&format!("key{}", n % 50), &"v".repeat(4000))]);
        town.run(1);
        for (&node, taken) in &mut taken {
            let (before, rows) = (&before[&NodeId(node)].rows, &town.disks[&NodeId(node)].rows);
            *taken += rows.iter().filter(|(group, row)| before[group].snapshot != row.snapshot).count();
        }
    }
    let report = town.engine(1).report();
    assert!(report.iter().any(|one| one.group == stuck && one.leader.is_none()), "{stuck:?} stands still");
    assert!(taken[&2] > 10 && 2 * taken[&1] <= 3 * taken[&2], "snapshots of each node: {taken:?}");
}

#[test]
fn a_node_whose_commits_take_long_leaves_leading_to_others_until_its_disk_is_well() {
    let mut town = Town::new(3);
    town.run(30);
    let before = led(&town, 1);
    assert!(before > 0, "node 1 leads something");
    town.silent.insert(NodeId(1));
    work(&mut town, 2, 1, 30);
    assert_eq!(led(&town, 1), before, "half a second is no reason");
    work(&mut town, 2, 31, 100);
    town.run_until("it leads nothing", |town| led(town, 1) == 0);
    work(&mut town, 2, 131, 20);
    assert!(town.replies_of(2).iter().all(|(_, reply)| reply.failure().is_none()), "clients notice nothing");
    town.unsilence();
    town.run(400);
    assert_eq!(led(&town, 1), 0, "it has to be well for a while");
    town.run_until("it leads again", |town| led(town, 1) == before);
    town.run_until("all agree", |town| town.agree(&[1, 2, 3]));
}

/// A disk may be full of the node's own log: what can be freed of it is freed, though it is not much.
#[test]
fn without_room_a_node_lets_go_of_what_log_it_can() {
    let mut town = Town::with_floor(1, 1 << 20);
    town.run(30);
    let taken = |town: &Town| town.disks[&NodeId(1)].rows.values().filter(|row| row.snapshot.0 > 0).count();
    for n in 0..40 {
        town.ask_next(1, vec![set("key", &format!("{n}{}", "v".repeat(4000)))]);
        town.run(1);
    }
    assert_eq!(taken(&town), 0, "there is little log");
    town.post(1, Input::Room(false));
    town.run(20);
    assert!(taken(&town) > 0);
    town.post(1, Input::Room(true));
    let before = taken(&town);
    town.run(20);
    assert_eq!(taken(&town), before);
}
