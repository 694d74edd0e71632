//! What clients of the other nodes see when a node that leads is told to stop.

use std::sync::atomic::{AtomicBool, Ordering};

use quorate_tests::process::{Client, Cluster, millis};

use crate::report;
use crate::watch::{key_of, settle};

/// Writes without pause until it is over: the longest wait for an answer, the answers, and those that were no OK.
fn write(mut client: Client, key: &str, over: &AtomicBool) -> (u64, u64, Vec<String>) {
    let (mut longest, mut answers, mut bad) = (0, 0, Vec::new());
    while !over.load(Ordering::Relaxed) {
        let sent = millis();
        let answer = client.try_first(&format!("SET {key} {sent}")).expect("its node lives");
        longest = longest.max(millis() - sent);
        answers += 1;
        if answer != "OK" {
            bad.push(answer);
        }
    }
    (longest, answers, bad)
}

pub(crate) fn measure(rounds: usize) {
    let mut cluster = Cluster::start(3);
    let (mut pauses, mut calm, mut exits) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let leaders = settle(&cluster);
        let victim = round % 3 + 1;
        let led: Vec<u16> =
            leaders.iter().filter(|(_, leader)| **leader == victim).map(|(p, _)| *p).collect();
        for stop in [false, true] {
            let over = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let mut writers = Vec::new();
                for node in (1..=3).filter(|node| *node != victim) {
                    for &partition in &led {
                        let (client, over) = (cluster.client(node), &over);
                        writers.push(scope.spawn(move || write(client, &key_of(partition), over)));
                    }
                }
                std::thread::park_timeout(std::time::Duration::from_millis(500));
                if stop {
                    let at = millis();
                    assert_eq!(cluster.stop(victim), Some(0), "it ends well");
                    exits.push(millis() - at);
                }
                std::thread::park_timeout(std::time::Duration::from_millis(500));
                over.store(true, Ordering::Relaxed);
                for writer in writers {
                    let (longest, answers, bad) = writer.join().expect("a writer ends");
                    if stop { &mut pauses } else { &mut calm }.push(longest);
                    if !bad.is_empty() {
                        println!("round {round}: {} of {answers} were no OK: {:?}", bad.len(), bad.first());
                    }
                }
            });
        }
        cluster.spawn(victim);
        cluster.wait_ready(victim);
    }
    report("ms, longest wait of each client in a second of writing, nobody stops", calm);
    report("ms, longest wait of each client while the leader of its key stops", pauses);
    report("ms from SIGTERM to the end of the process", exits);
}
