//! Elections, forwarding, order, sessions, among engines on a perfect network.

mod town;

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate_engine::effect::{Effect, Input, TICK};
use quorate_engine::engine::{Config, Engine};
use quorate_protocol::id::NodeId;
use quorate_protocol::op::{Expiry, Lock, Op, Set, partition_of};
use quorate_protocol::reply::Reply;
use town::{Town, get, meta, set};

#[test]
fn every_node_serves_every_command_and_replicas_agree() {
    for n in [1, 3, 5] {
        let mut cluster = Town::new(n);
        cluster.run(20);
        let names: Vec<_> = (0..40).map(|i| format!("key{i}")).collect();
        cluster.ask(1, 1, names.iter().map(|name| set(name, name)).collect());
        cluster.run(3);
        let answers = cluster.replies_of(1);
        assert_eq!(answers.len(), 40, "{answers:?}");
        assert!(answers.iter().enumerate().all(|(i, r)| *r == (i as u64 + 1, Reply::OK)), "{answers:?}");
        cluster.ask(n, 100, names.iter().map(|name| get(name)).collect());
        cluster.run(3);
        let read = cluster.replies_of(n);
        let read = &read[read.len() - 40..];
        let expected = |i: usize| Reply::Bulk(Bytes::from(names[i].clone()));
        assert!(read.iter().enumerate().all(|(i, r)| r.1 == expected(i)), "{read:?}");
        cluster.run(10);
        let mut digests = BTreeMap::new();
        for report in cluster.nodes.values().flat_map(Engine::report) {
            assert_eq!(
                digests.entry((report.group, report.applied)).or_insert(report.digest),
                &report.digest
            );
        }
        assert_eq!(digests.len(), 17, "all replicas have applied the same: {digests:?}");
    }
}

#[test]
fn a_pipeline_of_reads_and_writes_of_one_key_takes_effect_in_order() {
    let mut cluster = Town::new(3);
    cluster.run(20);
    for node in 1..=3 {
        let ops = (0..10).flat_map(|i| [set("k", &format!("{node}.{i}")), get("k")]).collect();
        cluster.ask(node, 1, ops);
        cluster.run(30);
        let replies = cluster.replies_of(node);
        let expected = (0..10).flat_map(|i| [Reply::OK, Reply::Bulk(Bytes::from(format!("{node}.{i}")))]);
        assert_eq!(replies.into_iter().map(|r| r.1).collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    }
}

#[test]
fn a_connection_that_ends_frees_its_lock_for_the_next_waiter() {
    let mut cluster = Town::new(3);
    cluster.run(20);
    let lock = |wait| Op::Lock(Lock { name: "db".into(), shared: false, owner: None, ttl: 600_000, wait });
    cluster.ask(1, 1, [lock(0)].into());
    cluster.run(3);
    let Reply::Int(first) = cluster.replies_of(1)[0].1 else { panic!("{:?}", cluster.replies) };
    cluster.ask(2, 1, [lock(60_000)].into());
    cluster.run(50);
    assert!(cluster.replies_of(2).is_empty(), "the lock is held");
    cluster.post(1, Input::Disconnected { conn: 1 });
    cluster.run(3);
    let second = cluster.replies_of(2);
    assert!(matches!(second[..], [(1, Reply::Int(token))] if token > first), "{second:?}");
}

/// A node that finds a long log applies it in parts, each a turn of its own, so that it goes on hearing and answering.
#[test]
fn a_long_log_is_applied_in_parts() {
    const VALUE: usize = 16 << 10;
    let mut cluster = Town::new(1);
    cluster.run(20);
    let value = "v".repeat(VALUE);
    for n in 0..200 {
        cluster.ask(1, 1 + n, vec![set("k", &value)]);
        cluster.run(1);
    }
    cluster.run(2);
    assert_eq!(cluster.replies_of(1).len(), 200);
    let before = cluster.nodes[&NodeId(1)].report();

    let disk = &cluster.disks[&NodeId(1)];
    let log = disk.entries.clone();
    let recovered = disk.recover(meta(1, &[(NodeId(1), "peer1".into())]));
    let mut engine = Engine::new(cluster.now, Config::new(7, "client1".into()), recovered);
    let mut fx = Vec::new();
    let (mut now, mut parts, mut inputs) = (cluster.now, 0, Vec::new());
    for _ in 0..40 {
        while !inputs.is_empty() || engine.has_more() {
            let from = engine.report();
            inputs.push(Input::EndOfTurn);
            inputs.drain(..).for_each(|input| engine.step(now, input, &mut fx));
            for (from, to) in from.iter().zip(engine.report()) {
                let new =
                    log[&to.group].iter().filter(|e| (from.applied + 1..=to.applied).contains(&e.index));
                let bytes: usize = new.map(|entry| entry.data.len()).sum();
                assert!(bytes < 256 << 10, "{bytes} bytes of {:?} in one turn", to.group);
            }
            parts += usize::from(engine.has_more());
            inputs.extend(fx.drain(..).filter_map(|effect| match effect {
                Effect::Persist(persist) => Some(Input::Persisted(persist.seq)),
                _ => None,
            }));
        }
        now.mono += TICK;
        inputs.push(Input::Tick);
    }
    assert!(parts > 10, "3 MiB take more than {parts} parts");
    for (before, after) in before.iter().zip(engine.report()) {
        assert!(after.applied >= before.applied, "{after:?} has applied less than {before:?}");
    }
}

/// The home grants what is left to the key. The stamp of its write does not show that to the microsecond.
#[test]
fn a_node_shows_a_key_almost_as_long_as_it_is_there_and_no_longer() {
    let mut town = Town::new(3);
    town.run(30);
    // Stamps are almost a millisecond behind from now on.
    town.now.mono += 999;
    let key = Bytes::from_static(b"brief");
    let group = partition_of(&key, 16);
    let report = town.engine(1).report().into_iter().find(|report| report.group == group).expect("a replica");
    let home = report.leader.expect("it has one").0;
    let Op::Set(brief) = set("brief", "v") else { unreachable!() };
    let written = town.now.mono;
    town.ask_next(home, vec![Op::Set(Set { expiry: Expiry::After(100), ..brief })]);
    town.run(80_000 / TICK);
    let reader = home % 3 + 1;
    let asked = town.ask_next(reader, vec![get("brief")]);
    town.run(1);
    assert_eq!(town.answer(reader, asked), Some(Reply::Bulk("v".into())));
    let shown = town.shown[&(NodeId(reader), key)] - written;
    // Gone by the stamp that shows 101 ms; 1 % of what was left is for clocks that run apart.
    assert!((99_000..=101_000 - 999).contains(&shown), "{shown} us");
}
