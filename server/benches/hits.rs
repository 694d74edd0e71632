//! What a GET costs that a node answers from its own memory, above a request that asks for nothing.
//!
//! `cargo bench -p quorate-server --bench hits` for nanoseconds; on a busy machine `time BINARY --count hit 22400000 1000 16` (requests,
//! keys, in a pipeline) and the same with `floor` for what the process itself took. Instructions, which are the same on every
//! machine: `valgrind --tool=callgrind BINARY --count KIND N 1000 16` for two numbers of requests, of one of the kinds
//! `floor`, `look` (a hit, but for the clock), `get` (a hit that goes the way of all commands) and `ping`.
//!
//! Charter: both are what the connection does with a request between the read and the write of its socket (`show_lines`): find it in what
//! was read, read the clock once for all of them, find the value, write the reply. The floor has a value at hand and no clock: an echo.
//! The sockets are not in it; they cost both the same.

use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use criterion::{Criterion, Throughput};
use quorate_engine::cache::CacheEffect;
use quorate_protocol::command::{Command, ConnAsk, parse};
use quorate_protocol::id::GroupId;
use quorate_protocol::reply::Reply;
use quorate_protocol::resp::{Dialect, RequestDecoder, encode, encode_value, peek_get};
use quorate_server::clock;
use quorate_server::view::View;

const GROUP: GroupId = GroupId(1);
const VALUE: &[u8] = &[b'v'; 64];

fn key(n: u64) -> Bytes {
    Bytes::from(format!("key:{n:012}"))
}

/// A view that holds so many keys.
fn view(keys: u64) -> View {
    let view = View::new(1, 1 << 30);
    let mut evicted = Vec::new();
    view.apply(CacheEffect::Lease { group: GROUP, generation: 1, until: u64::MAX }, &mut evicted);
    for n in 0..keys {
        let value = Some(Bytes::from_static(VALUE));
        let fill = CacheEffect::Fill { group: GROUP, generation: 1, key: key(n), value, until: u64::MAX };
        view.apply(fill, &mut evicted);
    }
    assert!(evicted.is_empty(), "there is room");
    view
}

/// What was read from a socket: each a pipeline of GETs of keys in no order.
fn reads(keys: u64, pipeline: usize) -> Vec<Vec<u8>> {
    let mut state = 1_u64;
    let mut request = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let key = key((state >> 33) % keys);
        format!("*2\r\n$3\r\nGET\r\n${}\r\n{}\r\n", key.len(), key.escape_ascii()).into_bytes()
    };
    (0..(1 << 16) / pipeline).map(|_| (0..pipeline).flat_map(|_| request()).collect()).collect()
}

fn hit(view: &View, read: &[u8], out: &mut Vec<u8>) {
    look(view, clock::mono(), read, out);
}

fn look(view: &View, now: u64, read: &[u8], out: &mut Vec<u8>) {
    let mut taken = 0;
    while let Some((key, end)) = peek_get(&read[taken..]) {
        let key = &read[taken..][key];
        assert!(view.show(key, now, |value| encode_value(Dialect::Resp2, value, out)), "it is held");
        taken += end;
    }
}

fn floor(value: &Bytes, read: &[u8], out: &mut Vec<u8>) {
    let mut taken = 0;
    while let Some((key, end)) = peek_get(&read[taken..]) {
        black_box(&read[taken..][key]);
        encode_value(Dialect::Resp2, Some(value), out);
        taken += end;
    }
}

/// What all commands go through that the engine is not asked about: taken apart, understood, answered.
fn understood(view: &View, buffer: &mut BytesMut, read: &[u8], out: &mut Vec<u8>) {
    buffer.extend_from_slice(read);
    let mut decoder = RequestDecoder::default();
    while let Ok(Some(request)) = decoder.decode(buffer) {
        let reply = match parse(&request.args) {
            Ok(Command::Connection(ConnAsk::Ping(None))) => Reply::Status("PONG"),
            Ok(Command::Op(op)) => {
                let value = op.line().and_then(|key| view.get(key, 1));
                Reply::Bulk(value.flatten().expect("it is held"))
            }
            other => panic!("this is not asked here: {other:?}"),
        };
        encode(Dialect::Resp2, &reply, out);
    }
    assert!(buffer.is_empty(), "all is answered");
}

fn bench(c: &mut Criterion) {
    let value = Bytes::from_static(VALUE);
    let mut out = Vec::with_capacity(1 << 16);
    for (keys, pipeline) in [(1, 1), (1, 16), (100_000, 1), (100_000, 16)] {
        let (view, reads) = (view(keys), reads(keys, pipeline));
        let mut group = c.benchmark_group(format!("{keys} keys, {pipeline} in a pipeline"));
        group.throughput(Throughput::Elements(pipeline as u64));
        let mut each = reads.iter().cycle();
        group.bench_function("floor", |b| {
            b.iter(|| {
                out.clear();
                floor(&value, each.next().expect("it goes round"), &mut out);
                black_box(&out);
            });
        });
        let mut each = reads.iter().cycle();
        group.bench_function("hit", |b| {
            b.iter(|| {
                out.clear();
                hit(&view, each.next().expect("it goes round"), &mut out);
                black_box(&out);
            });
        });
        group.finish();
    }
}

/// So many requests of one kind, for a clock of the process's own time.
fn count(kind: &str, requests: usize, keys: u64, pipeline: usize) {
    let (view, mut reads, value) = (view(keys), reads(keys, pipeline), Bytes::from_static(VALUE));
    if kind == "ping" {
        reads = vec![b"*1\r\n$4\r\nPING\r\n".repeat(pipeline)];
    }
    let mut out = Vec::with_capacity(1 << 16);
    let mut buffer = BytesMut::with_capacity(1 << 16);
    for read in reads.iter().cycle().take(requests / pipeline) {
        out.clear();
        match kind {
            "hit" => hit(&view, read, &mut out),
            "look" => look(&view, 1, read, &mut out),
            "floor" => floor(&value, read, &mut out),
            "get" | "ping" => understood(&view, &mut buffer, read, &mut out),
            _ => panic!("a kind is one of hit, look, floor, get, ping"),
        }
        black_box(&out);
    }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let [_, flag, kind, numbers @ ..] = &args[..]
        && flag == "--count"
        && let [requests, keys, pipeline] = numbers
    {
        let number = |text: &String| text.parse::<u32>().expect("numbers: requests, keys, pipeline");
        let few = |text: &String| usize::try_from(number(text)).expect("32 bits");
        return count(kind, few(requests), number(keys).into(), few(pipeline));
    }
    let mut criterion = Criterion::default().configure_from_args();
    bench(&mut criterion);
    criterion.final_summary();
}
