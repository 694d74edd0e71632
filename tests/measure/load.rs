//! Elections that should not be: terms before, while and after three nodes have all that they can do.
//!
//! 64 connections with 16 writes of 128 bytes under way on each, and two that write 1 MiB, spread over the nodes.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use quorate_tests::process::{Client, Cluster, millis};

use crate::watch::{settle, terms};

const WRITERS: usize = 64;
const PIPELINE: usize = 16;

/// Writes batch after batch until it is over; counts what was acknowledged and what was not.
fn write(
    to: SocketAddr,
    size: usize,
    pipeline: usize,
    seed: usize,
    over: &AtomicBool,
    done: &[AtomicU64; 2],
) {
    let mut stream = BufReader::new(TcpStream::connect(to).expect("its node lives"));
    let value = "v".repeat(size);
    for batch in 0.. {
        if over.load(Ordering::Relaxed) {
            return;
        }
        let mut out = String::new();
        for n in 0..pipeline {
            let key = format!(
                "key-{}",
                (seed * 7919 + batch * pipeline + n) % if size > 1000 { 16 } else { 100_000 }
            );
            out += &format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${size}\r\n{value}\r\n", key.len());
        }
        stream.get_mut().write_all(out.as_bytes()).expect("its node lives");
        for _ in 0..pipeline {
            let mut line = String::new();
            stream.read_line(&mut line).expect("its node lives");
            done[usize::from(!line.starts_with("+OK"))].fetch_add(1, Ordering::Relaxed);
            if !line.starts_with("+OK") && done[1].load(Ordering::Relaxed) < 5 {
                println!("refused: {}", line.trim());
            }
        }
        if size > 1000 {
            // Now and then: a journal without end would fill the disk.
            std::thread::park_timeout(Duration::from_millis(500));
        }
    }
}

pub(crate) fn measure(seconds: u64) {
    let cluster = Cluster::start(3);
    settle(&cluster);
    let look = |id| terms(&mut Client::try_new(cluster.address(id))?);
    let before: Vec<_> = (1..=3).map(|id| look(id).expect("it serves")).collect();
    let lines = |id| cluster.log(id).matches("this node leads").count();
    let (over, done) = (AtomicBool::new(false), [AtomicU64::new(0), AtomicU64::new(0)]);
    let said: Vec<usize> = (1..=3).map(lines).collect();
    let (mut changes, mut unheard) = (0, 0);
    std::thread::scope(|scope| {
        for n in 0..WRITERS + 2 {
            let (to, over, done) = (cluster.address(n % 3 + 1), &over, &done);
            let (size, pipeline) = if n < WRITERS { (128, PIPELINE) } else { (1 << 20, 1) };
            scope.spawn(move || write(to, size, pipeline, n, over, done));
        }
        let start = millis();
        let mut last = before.clone();
        while millis() < start + seconds * 1000 {
            std::thread::park_timeout(Duration::from_secs(1));
            for id in 1..=3 {
                let Some(now) = look(id) else {
                    unheard += 1;
                    continue;
                };
                for (group, term) in &now {
                    let old = last[id - 1].get(group).copied().unwrap_or(*term);
                    if *term != old {
                        println!(
                            "{} s: node {id}, group {group}: term {old} → {term}",
                            (millis() - start) / 1000
                        );
                        changes += 1;
                    }
                }
                last[id - 1] = now;
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    let [acknowledged, refused] = done.map(AtomicU64::into_inner);
    println!("{seconds} s: {acknowledged} writes acknowledged ({}/s), {refused} not", acknowledged / seconds);
    println!(
        "changes of term seen (each of three nodes counts): {changes}; looks without an answer: {unheard}"
    );
    for id in 1..=3 {
        println!("node {id}: {} lines about leading", lines(id) - said[id - 1]);
    }
}
