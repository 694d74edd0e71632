//! How long keys cannot be written when the node that leads them is killed or frozen.
//!
//! One client on each of the other nodes for each partition that the node led, each with one write under way at a
//! time. Counted is the first acknowledged write that was sent after the signal; a write that was under way then,
//! and what became of it, comes before that on the same connection, so its time is in the figure.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quorate_tests::process::{Client, Cluster, millis};
use rustix::process::Signal;

use crate::report;
use crate::watch::{self, key_of, settle};

/// Pause between two writes before the signal, so that the writers do not load the machine.
const PACE: Duration = Duration::from_millis(20);

/// What a writer saw after the signal: milliseconds until a write was acknowledged, and refusals before.
fn write(mut client: Client, key: &str, fallen: &AtomicU64) -> (u64, u64) {
    let mut failures = 0;
    loop {
        let before = fallen.load(Ordering::Acquire);
        let sent = millis();
        let answer = client.try_first(&format!("SET {key} {sent}")).expect("its node lives");
        let at = fallen.load(Ordering::Acquire);
        if at > 0 && answer != "OK" {
            failures += 1;
        }
        if before > 0 && answer == "OK" {
            return (millis() - before, failures);
        }
        if at == 0 {
            std::thread::park_timeout(PACE);
        }
    }
}

pub(crate) fn measure(rounds: usize, freeze: bool) {
    let mut cluster = Cluster::start(3);
    let (mut first, mut each, mut all, mut refusals) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for round in 0..rounds {
        let leaders = settle(&cluster);
        let victim = round % 3 + 1;
        let led: Vec<u16> =
            leaders.iter().filter(|(_, leader)| **leader == victim).map(|(p, _)| *p).collect();
        let fallen = AtomicU64::new(0);
        let mut took = Vec::new();
        std::thread::scope(|scope| {
            let mut writers = Vec::new();
            for node in (1..=3).filter(|node| *node != victim) {
                for &partition in &led {
                    let (client, fallen) = (cluster.client(node), &fallen);
                    let writer = scope.spawn(move || write(client, &key_of(partition), fallen));
                    writers.push((partition, writer));
                }
            }
            // At any point of a heartbeat's period.
            std::thread::park_timeout(Duration::from_millis(300 + 7 * round as u64 % 40));
            // Leaders may have made way for preferred ones meanwhile.
            let led = watch::leaders(&mut cluster.client(victim)).expect("it still lives");
            let at = millis();
            cluster.signal(victim, if freeze { Signal::STOP } else { Signal::KILL });
            fallen.store(at, Ordering::Release);
            for (partition, writer) in writers {
                let (ms, failures) = writer.join().expect("a writer ends");
                took.extend((led.get(&partition) == Some(&victim)).then_some(ms));
                refusals += failures;
            }
        });
        took.sort_unstable();
        println!("round {round}: node {victim} led {} partitions: {took:?} ms", led.len());
        first.extend(took.first());
        all.extend(took.last());
        each.extend(took);
        if freeze {
            cluster.signal(victim, Signal::CONT);
        } else {
            assert_eq!(cluster.wait_exit(victim), None, "it was killed");
            cluster.spawn(victim);
        }
        cluster.wait_ready(victim);
    }
    report("ms to the first write on any key that the node led", first);
    report("ms to the first write, each client and partition", each);
    report("ms until all could be written", all);
    println!("refused or in doubt meanwhile: {refusals}");
}
