//! Engines on a perfect network: elections, forwarding, order, sessions. Faults belong to the simulator.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use quorate_engine::effect::{Effect, Input, Now, Request, Side, TICK, Want};
use quorate_engine::engine::{Config, Engine};
use quorate_engine::journal::{Entry, Meta, Recovered, Row};
use quorate_protocol::id::{Boot, ClusterId, GroupId, Identity, NodeId};
use quorate_protocol::op::{Expiry, Lock, Op, Set, When};
use quorate_protocol::reply::Reply;

struct Cluster {
    now: Now,
    nodes: BTreeMap<NodeId, Engine>,
    inbox: VecDeque<(NodeId, Input)>,
    replies: Vec<(NodeId, u64, u64, Reply)>,
    /// What node 1 has on its disk.
    rows: BTreeMap<GroupId, Row>,
    entries: BTreeMap<GroupId, Vec<Entry>>,
}

fn meta(node: u64, founders: &[(NodeId, String)]) -> Meta {
    Meta {
        cluster: ClusterId(1),
        node: NodeId(node),
        identity: Identity(u128::from(node)),
        boot: Boot(1),
        partitions: 16,
        founders: founders.to_vec(),
    }
}

impl Cluster {
    fn new(n: u64) -> Self {
        let founders: Vec<_> = (1..=n).map(|id| (NodeId(id), format!("peer{id}"))).collect();
        let now = Now { mono: 1_000_000, wall: 0 };
        let node = |id: u64| {
            let meta = meta(id, &founders);
            let recovered = Recovered {
                meta,
                rows: BTreeMap::new(),
                snapshots: BTreeMap::new(),
                entries: BTreeMap::new(),
                damage: Vec::new(),
            };
            let config = Config::new(7, format!("client{id}"));
            (NodeId(id), Engine::new(now, config, recovered))
        };
        let mut this = Self {
            now,
            nodes: (1..=n).map(node).collect(),
            inbox: VecDeque::new(),
            replies: Vec::new(),
            rows: BTreeMap::new(),
            entries: BTreeMap::new(),
        };
        for a in 1..=n {
            for b in (1..=n).filter(|&b| b != a) {
                for side in [Side::Opener, Side::Reached] {
                    this.inbox.push_back((NodeId(a), Input::LinkUp { peer: NodeId(b), side }));
                }
            }
            this.inbox.push_back((NodeId(a), Input::Connected { conn: 1, ordered: true }));
        }
        this
    }

    fn step(&mut self, node: NodeId, input: Input) {
        let mut fx = Vec::new();
        let engine = self.nodes.get_mut(&node).expect("a node of the cluster");
        engine.step(self.now, input, &mut fx);
        engine.step(self.now, Input::EndOfTurn, &mut fx);
        while engine.has_more() {
            engine.step(self.now, Input::EndOfTurn, &mut fx);
        }
        for effect in fx {
            match effect {
                Effect::Persist(persist) => {
                    if node == NodeId(1) {
                        self.rows.extend(persist.rows);
                        for entry in persist.entries {
                            self.entries.entry(entry.group).or_default().push(entry);
                        }
                    }
                    self.inbox.push_back((node, Input::Persisted(persist.seq)));
                }
                Effect::Raft { to, frame } => self.inbox.push_back((to, Input::Raft { from: node, frame })),
                Effect::Link { peer, side, frame } => {
                    let other = if side == Side::Opener { Side::Reached } else { Side::Opener };
                    self.inbox.push_back((peer, Input::Link { peer: node, side: other, frame }));
                }
                Effect::Reply { conn, request, reply } => self.replies.push((node, conn, request, reply)),
                _ => {}
            }
        }
    }

    fn run(&mut self, ticks: u64) {
        for _ in 0..ticks {
            while let Some((node, input)) = self.inbox.pop_front() {
                self.step(node, input);
            }
            self.now.mono += TICK;
            let ids: Vec<_> = self.nodes.keys().copied().collect();
            self.inbox.extend(ids.into_iter().map(|id| (id, Input::Tick)));
        }
    }

    fn ask(&mut self, node: u64, first: u64, ops: Vec<Op>) {
        let request = |(id, op)| Request { id, want: Want::Op(op), client: None, after: None };
        let requests = (first..).zip(ops).map(request).collect();
        self.inbox.push_back((NodeId(node), Input::Requests { conn: 1, requests }));
    }

    fn replies_of(&self, node: u64) -> Vec<(u64, Reply)> {
        self.replies.iter().filter(|r| r.0 == NodeId(node)).map(|r| (r.2, r.3.clone())).collect()
    }
}

fn set(key: &str, value: &str) -> Op {
    let (key, value) = (Bytes::copy_from_slice(key.as_bytes()), Bytes::copy_from_slice(value.as_bytes()));
    Op::Set(Set { key, value, when: When::Always, expiry: Expiry::Never, get: false })
}

fn get(key: &str) -> Op {
    Op::Get(Bytes::copy_from_slice(key.as_bytes()))
}

#[test]
fn every_node_serves_every_command_and_replicas_agree() {
    for n in [1, 3, 5] {
        let mut cluster = Cluster::new(n);
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
    let mut cluster = Cluster::new(3);
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
    let mut cluster = Cluster::new(3);
    cluster.run(20);
    let lock = |wait| Op::Lock(Lock { name: "db".into(), shared: false, owner: None, ttl: 600_000, wait });
    cluster.ask(1, 1, [lock(0)].into());
    cluster.run(3);
    let Reply::Int(first) = cluster.replies_of(1)[0].1 else { panic!("{:?}", cluster.replies) };
    cluster.ask(2, 1, [lock(60_000)].into());
    cluster.run(50);
    assert!(cluster.replies_of(2).is_empty(), "the lock is held");
    cluster.inbox.push_back((NodeId(1), Input::Disconnected { conn: 1 }));
    cluster.run(3);
    let second = cluster.replies_of(2);
    assert!(matches!(second[..], [(1, Reply::Int(token))] if token > first), "{second:?}");
}

/// A node that finds a long log applies it in parts, each a turn of its own, so that it goes on hearing and answering.
#[test]
fn a_long_log_is_applied_in_parts() {
    const VALUE: usize = 16 << 10;
    let mut cluster = Cluster::new(1);
    cluster.run(20);
    let value = "v".repeat(VALUE);
    for n in 0..200 {
        cluster.ask(1, 1 + n, vec![set("k", &value)]);
        cluster.run(1);
    }
    cluster.run(2);
    assert_eq!(cluster.replies_of(1).len(), 200);
    let before = cluster.nodes[&NodeId(1)].report();

    let meta = meta(1, &[(NodeId(1), "peer1".into())]);
    let log = cluster.entries.clone();
    let recovered = Recovered {
        meta,
        rows: cluster.rows,
        snapshots: BTreeMap::new(),
        entries: cluster.entries,
        damage: Vec::new(),
    };
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
