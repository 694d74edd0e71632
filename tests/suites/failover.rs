//! Nodes that die, freeze or are told to stop: what clients of the others notice. How fast is measured elsewhere
//! (`measure`, docs/benchmarks.md); the bounds here are wide, for busy machines.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use quorate_protocol::op::partition_of;
use quorate_tests::process::{Client, Cluster, millis, poll};
use rustix::process::Signal;

/// Far above what a change of leader takes, far below what it would take to wait for a timeout by mistake.
const BOUND: u64 = 4000;

/// Some keys that a node leads, as another one sees it.
fn keys_led_by(cluster: &Cluster, leader: usize, seen_by: usize) -> Vec<String> {
    poll("it leads something", || {
        let text = cluster.client(seen_by).ask_all("PARTITIONS");
        let leads = |key: &String| {
            let partition = partition_of(key.as_bytes(), 16).0;
            let row = text.split("partition: ").find(|row| row.starts_with(&format!("{partition}\n")));
            row.is_some_and(|row| row.contains(&format!("leader: {leader}\n")))
        };
        let keys: Vec<String> = (0..1000).map(|n| format!("key-{n}")).filter(leads).take(4).collect();
        (keys.len() == 4).then_some(keys)
    })
}

fn terms(cluster: &Cluster) -> Vec<String> {
    let status = cluster.client(1).ask_all("STATUS");
    status
        .split_whitespace()
        .skip_while(|word| *word != "groups:")
        .collect::<Vec<_>>()
        .windows(2)
        .filter(|pair| pair[0] == "term:")
        .map(|pair| pair[1].to_owned())
        .collect()
}

#[test]
fn keys_of_a_killed_leader_can_soon_be_written() {
    let mut cluster = Cluster::start(3);
    for victim in 1..=3 {
        let other = victim % 3 + 1;
        let keys = keys_led_by(&cluster, victim, other);
        let mut client = cluster.client(other);
        keys.iter().for_each(|key| assert_eq!(client.ask(&format!("SET {key} before")), "OK"));
        let start = millis();
        cluster.kill(victim);
        for key in &keys {
            poll("it can be written", || (client.ask(&format!("SET {key} after")) == "OK").then_some(()));
        }
        let took = millis() - start;
        assert!(took < BOUND, "written again after {took} ms");
        cluster.spawn(victim);
        cluster.wait_ready(victim);
    }
}

/// What a frozen leader was asked is neither lost nor in doubt: the log of the client's own node says that it never
/// took effect and never will, so that it can be sent again.
#[test]
fn what_a_frozen_leader_was_asked_goes_to_the_next_one() {
    let mut cluster = Cluster::start(3);
    let frozen = cluster.leader(1);
    let other = frozen % 3 + 1;
    let keys = keys_led_by(&cluster, frozen, other);
    let mut clients: Vec<Client> = keys.iter().map(|_| cluster.client(other)).collect();
    for (client, key) in clients.iter_mut().zip(&keys) {
        assert_eq!(client.ask(&format!("SET {key} 0")), "OK");
    }
    cluster.signal(frozen, Signal::STOP);
    let start = millis();
    for (client, key) in clients.iter_mut().zip(&keys) {
        client.say(&format!("INCR {key}"));
        client.say(&format!("GET {key}"));
    }
    for (client, key) in clients.iter_mut().zip(&keys) {
        assert_eq!(client.line(), "1", "{key} is counted, once");
        assert_eq!(client.line(), "1");
    }
    let took = millis() - start;
    assert!(took < BOUND, "answered after {took} ms");
    cluster.signal(frozen, Signal::CONT);
    cluster.wait_ready(frozen);
    // What it finds in its sockets now is of a term that is over.
    let mut awake = cluster.client(frozen);
    for key in &keys {
        let found = poll("it serves", || awake.ask(&format!("GET {key}")).parse::<u64>().ok());
        assert_eq!(found, 1, "{key} is counted once");
    }
}

#[test]
fn clients_of_others_do_not_notice_that_a_leader_is_told_to_stop() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader(1);
    let others = [leader % 3 + 1, (leader + 1) % 3 + 1];
    let keys = keys_led_by(&cluster, leader, others[0]);
    let (over, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for (n, key) in keys.iter().enumerate() {
            let (mut client, over, rounds) = (cluster.client(others[n % 2]), &over, &rounds);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let asked = millis();
                    let answer = client.ask(&format!("SET {key} {asked}"));
                    let took = millis() - asked;
                    over.fetch_or(answer != "OK", Ordering::Relaxed);
                    assert_eq!(answer, "OK", "{key}");
                    assert!(took < BOUND, "{key} waited for {took} ms");
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let go_on = || {
            let start = rounds.load(Ordering::Relaxed);
            let on = || rounds.load(Ordering::Relaxed) > start + 100 || over.load(Ordering::Relaxed);
            poll("the writers go on", || on().then_some(()));
        };
        go_on();
        let code = cluster.stop(leader);
        go_on();
        over.store(true, Ordering::Relaxed);
        assert_eq!(code, Some(0));
    });
    let log = cluster.log(leader);
    let (_, behind) = log.split_once(&format!("node {leader} stops")).expect("it says so");
    assert!(behind.contains("this node leads no group"), "leadership goes first: {log}");
}

#[test]
fn load_is_no_reason_for_an_election() {
    let cluster = Cluster::start(3);
    // Leaders go to the preferred nodes first.
    let before = poll("the terms are settled", || {
        let before = terms(&cluster);
        std::thread::park_timeout(std::time::Duration::from_millis(1500));
        (before == terms(&cluster)).then_some(before)
    });
    assert_eq!(before.len(), 17);
    std::thread::scope(|scope| {
        for n in 0..16 {
            let mut client = cluster.client(n % 3 + 1);
            scope.spawn(move || {
                let value = "v".repeat(128);
                for batch in 0..10 {
                    (0..100).for_each(|key| client.say(&format!("SET key-{n}-{batch}-{key} {value}")));
                    (0..100).for_each(|_| assert_eq!(client.line(), "OK"));
                }
            });
        }
    });
    assert_eq!(terms(&cluster), before, "the same leaders, in the same terms");
}
