//! What a request and a reply cost in each dialect. `cargo bench -p quorate-protocol`

use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use quorate_protocol::command::parse;
use quorate_protocol::frame::{self, Frame, RequestFrame};
use quorate_protocol::reply::Reply;
use quorate_protocol::resp::{Dialect, RequestDecoder, encode};

/// Requests of one read.
const PIPELINE: u64 = 64;

fn resp_set() -> BytesMut {
    let value = "v".repeat(128);
    let one = format!("*3\r\n$3\r\nSET\r\n$8\r\nkey:1234\r\n$128\r\n{value}\r\n");
    BytesMut::from(one.repeat(usize::try_from(PIPELINE).expect("a small number")).as_bytes())
}

fn frames_set() -> BytesMut {
    let args = vec![Bytes::from_static(b"key:1234"), Bytes::from(vec![b'v'; 128])];
    let mut out = Vec::new();
    for correlation in 0..PIPELINE {
        Frame::Request(RequestFrame {
            correlation,
            opcode: 33,
            args: args.clone(),
            ..RequestFrame::default()
        })
        .encode(&mut out);
    }
    BytesMut::from(&out[..])
}

fn requests(c: &mut Criterion) {
    let mut group = c.benchmark_group("request");
    group.throughput(Throughput::Elements(PIPELINE));
    group.bench_function("resp SET 128 B", |b| {
        let decode = |mut buffer: BytesMut| {
            let mut decoder = RequestDecoder::default();
            while let Ok(Some(request)) = decoder.decode(&mut buffer) {
                let _ = black_box(parse(&request.args));
            }
        };
        b.iter_batched(resp_set, decode, BatchSize::SmallInput);
    });
    group.bench_function("frame SET 128 B", |b| {
        let decode = |mut buffer: BytesMut| {
            while let Ok(Some(frame)) = frame::decode(&mut buffer) {
                black_box(frame);
            }
        };
        b.iter_batched(frames_set, decode, BatchSize::SmallInput);
    });
    group.finish();
}

fn replies(c: &mut Criterion) {
    let mut group = c.benchmark_group("reply");
    let reply = Reply::Bulk(Bytes::from(vec![b'v'; 128]));
    for (name, dialect) in [("resp2", Dialect::Resp2), ("resp3", Dialect::Resp3), ("inline", Dialect::Inline)]
    {
        let mut out = Vec::with_capacity(1024);
        group.bench_function(format!("{name} bulk 128 B"), |b| {
            b.iter(|| {
                out.clear();
                encode(dialect, black_box(&reply), &mut out);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, requests, replies);
criterion_main!(benches);
