//! What a command costs in the engine alone: a single node, no disk, no sockets. `cargo bench -p quorate-engine`
//!
//! One iteration is one turn with a batch of commands, from `Requests` to the replies. A fresh node is made
//! every `TURNS` turns, since a node keeps its whole log.

use std::collections::BTreeMap;
use std::hint::black_box;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use quorate_engine::effect::{Effect, Effects, Input, Now, Request, TICK, Want};
use quorate_engine::engine::{Config, Engine};
use quorate_engine::journal::{
    COMMANDS, Contents, Entry, File, Io, Journal, Meta, Options, Persist, Recovered, SEGMENT_SIZE, found,
    recover,
};
use quorate_protocol::command::{Command, parse};
use quorate_protocol::id::{Boot, ClusterId, GroupId, Identity, NodeId};
use quorate_protocol::op::Op;

const TURNS: u64 = 50;

struct Node {
    engine: Engine,
    now: Now,
    fx: Effects,
    next: u64,
    replies: u64,
}

impl Node {
    fn new() -> Self {
        let now = Now { mono: 1_000_000, wall: 0 };
        let recovered = Recovered {
            meta: meta(),
            rows: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            entries: BTreeMap::new(),
            damage: Vec::new(),
        };
        let engine = Engine::new(now, Config::new(1, String::new()), recovered);
        let mut this = Self { engine, now, fx: Effects::new(), next: 1, replies: 0 };
        this.step(Input::Connected { conn: 1, ordered: false });
        for _ in 0..20 {
            this.now.mono += TICK;
            this.step(Input::Tick);
            this.turn();
        }
        this
    }

    fn step(&mut self, input: Input) {
        self.engine.step(self.now, input, &mut self.fx);
    }

    /// Ends a turn, and those that follow from the disk's answer.
    fn turn(&mut self) {
        self.end_turn();
        while !self.fx.is_empty() {
            let mut durable = None;
            for effect in std::mem::take(&mut self.fx) {
                match effect {
                    Effect::Persist(persist) => durable = Some(persist.seq),
                    Effect::Reply { .. } => self.replies += 1,
                    _ => {}
                }
            }
            let Some(seq) = durable else { break };
            self.step(Input::Persisted(seq));
            self.end_turn();
        }
    }

    fn end_turn(&mut self) {
        self.step(Input::EndOfTurn);
        while self.engine.has_more() {
            self.step(Input::EndOfTurn);
        }
    }

    fn ask(&mut self, ops: Vec<Op>) {
        let count = ops.len() as u64;
        let request = |(id, op)| Request { id, want: Want::Op(op), client: None, after: None };
        let requests = (self.next..).zip(ops).map(request).collect();
        self.next += count;
        let before = self.replies;
        self.step(Input::Requests { conn: 1, requests });
        self.turn();
        assert_eq!(self.replies - before, count, "everything is answered within the turn");
    }
}

fn meta() -> Meta {
    let founders = vec![(NodeId(1), String::new())];
    Meta {
        cluster: ClusterId(1),
        node: NodeId(1),
        identity: Identity(1),
        boot: Boot(1),
        partitions: 16,
        founders,
    }
}

fn op(line: &str) -> Op {
    let words: Vec<Bytes> = line.split(' ').map(|word| Bytes::from(word.to_owned())).collect();
    match parse(&words) {
        Ok(Command::Op(op)) => op,
        other => panic!("{line}: {other:?}"),
    }
}

fn turns(c: &mut Criterion) {
    let value = "v".repeat(128);
    let batches: [(&str, Vec<Op>); 5] = [
        ("SET 128 B, 1 a turn", vec![op(&format!("SET key:1 {value}"))]),
        ("SET 128 B, 64 a turn", (0..64).map(|n| op(&format!("SET key:{n} {value}"))).collect()),
        ("GET, 64 a turn", (0..64).map(|n| op(&format!("GET key:{n}"))).collect()),
        (
            "LOCK + UNLOCK, 64 names a turn",
            (0..64)
                .flat_map(|n| [op(&format!("LOCK l{n} OWNER o")), op(&format!("UNLOCK l{n} OWNER o"))])
                .collect(),
        ),
        (
            "PUB 128 B + FETCH, 64 a turn",
            (0..64).flat_map(|n| [op(&format!("PUB q{n} {value}")), op(&format!("FETCH q{n}"))]).collect(),
        ),
    ];
    let mut group = c.benchmark_group("turn");
    for (name, ops) in batches {
        group.throughput(Throughput::Elements(TURNS * ops.len() as u64));
        group.bench_function(name, |b| {
            let run = |mut node: Node| {
                for _ in 0..TURNS {
                    node.ask(black_box(ops.clone()));
                }
                node
            };
            b.iter_batched(Node::new, run, BatchSize::LargeInput);
        });
    }
    group.finish();
}

/// The journal of a directory that has just been founded.
fn fresh_journal() -> Journal {
    let mut ios = Vec::new();
    found(&meta(), 0, &mut ios);
    let mut file = Vec::new();
    for io in ios {
        if let Io::Write { file: File::Meta, offset, bytes } = io {
            file.resize(usize::try_from(offset).expect("a small file"), 0);
            file.extend_from_slice(&bytes);
        }
    }
    let contents = Contents { meta: Some(file.into()), ..Contents::default() };
    let (_, journal, _) = recover(&contents, &Options::new(SEGMENT_SIZE)).expect("it was just founded");
    journal
}

fn entry(index: u64) -> Entry {
    Entry { group: GroupId(1), term: 1, index, kind: COMMANDS, data: Bytes::from(vec![7; 4096]) }
}

fn journal(c: &mut Criterion) {
    let mut group = c.benchmark_group("journal");
    group.throughput(Throughput::Elements(TURNS));
    group.bench_function("plan a commit of one 4 KiB entry", |b| {
        let run = |mut journal: Journal| {
            let mut ios = Vec::new();
            for seq in 1..=TURNS {
                ios.clear();
                journal.plan(&[Persist { seq, rows: Vec::new(), entries: vec![entry(seq)] }], &mut ios);
                journal.done();
            }
            journal
        };
        b.iter_batched(fresh_journal, run, BatchSize::LargeInput);
    });
    group.finish();
}

criterion_group!(benches, turns, journal);
criterion_main!(benches);
