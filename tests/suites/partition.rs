//! Networks that are cut: real nodes in namespaces of their own. Nobody without a majority serves, nobody is served what
//! is out of date, and whoever comes back is as the others are.
//!
//! Every test runs the same clients: on each node one that writes rising numbers to a key of its own and one that reads
//! all keys. What a reader gets is never older than what was acknowledged, by any node, before it asked.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use quorate_protocol::op::partition_of;
use quorate_tests::netns::Network;
use quorate_tests::process::{Client, Cluster, millis, poll};

const NODES: [usize; 3] = [1, 2, 3];
/// How long a client without a majority may wait for its refusal; one second is meant, the rest is for busy machines.
const REFUSED_WITHIN: u64 = 2500;

/// From one node to another.
type Way = (usize, usize);

/// A cluster on a network of its own; none where there can be no namespaces, which is said.
#[allow(clippy::print_stderr, reason = "a test that is left out must be seen")]
fn cluster() -> Option<(Cluster, Network)> {
    match Network::new(3) {
        Ok(network) => Some((Cluster::start_at(network.places()), network)),
        Err(why) => {
            eprintln!("LEFT OUT, network namespaces cannot be made here: {why}");
            None
        }
    }
}

/// A key for each node's writer, all in partitions that one node leads.
fn keys_led_by(cluster: &Cluster, leader: usize) -> Vec<String> {
    poll("it leads something", || {
        let text = cluster.client(leader).ask_all("PARTITIONS");
        let leads = |key: &String| {
            let partition = partition_of(key.as_bytes(), 16).0;
            let row = text.split("partition: ").find(|row| row.starts_with(&format!("{partition}\n")));
            row.is_some_and(|row| row.contains(&format!("leader: {leader}\n")))
        };
        let keys: Vec<String> = (0..1000).map(|n| format!("key-{n}")).filter(leads).take(3).collect();
        (keys.len() == 3).then_some(keys)
    })
}

/// What the clients have seen so far.
struct Traffic {
    keys: Vec<String>,
    /// Of each key, the newest number that was acknowledged.
    acknowledged: [AtomicU64; 3],
    /// Of each node, answers with a value or an OK.
    served: [AtomicU64; 3],
    /// Of each node, refusals.
    refused: [AtomicU64; 3],
    /// Of each node, the longest that a write waited for a refusal, in milliseconds.
    slowest: [AtomicU64; 3],
    over: AtomicBool,
}

impl Traffic {
    fn write(&self, mut client: Client, at: usize) {
        for n in 1.. {
            if self.over.load(Ordering::Relaxed) {
                return;
            }
            let asked = millis();
            let answer = client.ask(&format!("SET {} {n}", self.keys[at]));
            if answer == "OK" {
                self.acknowledged[at].store(n, Ordering::SeqCst);
                self.served[at].fetch_add(1, Ordering::Relaxed);
            } else {
                let honest = ["-CLUSTERDOWN", "-TRYAGAIN", "-INDOUBT"].iter().any(|c| answer.starts_with(c));
                assert!(honest, "node {}: {answer}", at + 1);
                self.refused[at].fetch_add(1, Ordering::Relaxed);
                self.slowest[at].fetch_max(millis() - asked, Ordering::Relaxed);
            }
            std::thread::park_timeout(Duration::from_millis(3));
        }
    }

    fn read(&self, mut client: Client, at: usize) {
        while !self.over.load(Ordering::Relaxed) {
            for (key, newest) in self.keys.iter().zip(&self.acknowledged) {
                let known = newest.load(Ordering::SeqCst);
                let answer = client.ask(&format!("GET {key}"));
                if answer.starts_with('-') {
                    continue;
                }
                let found: u64 = answer.parse().unwrap_or(0);
                assert!(found >= known, "node {} says {key} is {found}; {known} was acknowledged", at + 1);
                self.served[at].fetch_add(1, Ordering::Relaxed);
            }
            std::thread::park_timeout(Duration::from_millis(3));
        }
    }

    /// Waits until a node has served clients some more.
    fn served_again(&self, node: usize) {
        let before = self.served[node - 1].load(Ordering::Relaxed);
        let writes = self.acknowledged[node - 1].load(Ordering::SeqCst);
        poll(&format!("node {node} serves"), || {
            let served = self.served[node - 1].load(Ordering::Relaxed) > before + 20;
            (served && self.acknowledged[node - 1].load(Ordering::SeqCst) > writes + 3).then_some(())
        });
    }

    /// Waits until a node has refused some more, and until nothing that it was asked before can still be answered.
    fn refuses(&self, node: usize) {
        let before = self.refused[node - 1].load(Ordering::Relaxed);
        poll(&format!("node {node} refuses"), || {
            (self.refused[node - 1].load(Ordering::Relaxed) > before + 2).then_some(())
        });
    }
}

/// Whether a command was refused and will never take effect.
fn is_refusal(answer: &str) -> bool {
    answer.starts_with("-CLUSTERDOWN") || answer.starts_with("-TRYAGAIN")
}

/// Runs `story` while clients work on all nodes, with keys that node `leader` leads; then all replicas are equal.
fn with_traffic(cluster: &Cluster, leader: usize, story: impl FnOnce(&Traffic)) {
    let zeros = || [(); 3].map(|()| AtomicU64::new(0));
    let traffic = Traffic {
        keys: keys_led_by(cluster, leader),
        acknowledged: zeros(),
        served: zeros(),
        refused: zeros(),
        slowest: zeros(),
        over: AtomicBool::new(false),
    };
    std::thread::scope(|scope| {
        for at in 0..3 {
            let (writer, reader, traffic) = (cluster.client(at + 1), cluster.client(at + 1), &traffic);
            scope.spawn(move || traffic.write(writer, at));
            scope.spawn(move || traffic.read(reader, at));
        }
        let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            NODES.iter().for_each(|node| traffic.served_again(*node));
            story(&traffic);
            NODES.iter().for_each(|node| traffic.served_again(*node));
        }));
        traffic.over.store(true, Ordering::Relaxed);
        told.expect("the story ends well");
    });
    for (key, newest) in traffic.keys.iter().zip(&traffic.acknowledged) {
        // It was cut off a moment ago, and may refuse.
        let answer = poll(&format!("node {leader} answers"), || {
            let answer = cluster.client(leader).ask(&format!("GET {key}"));
            (!is_refusal(&answer)).then_some(answer)
        });
        let found: u64 = answer.parse().unwrap_or(0);
        let newest = newest.load(Ordering::SeqCst);
        assert!(found >= newest, "{key}: {newest} was acknowledged, node {leader} says {answer}");
    }
    poll("all replicas are equal", || {
        let [first, second, third] = NODES.map(|node| replicas(&cluster.client(node).ask_all("STATUS")));
        (first.len() == 17 && first == second && second == third).then_some(())
    });
}

/// Group → its applied index and digest, out of STATUS.
fn replicas(status: &str) -> BTreeMap<String, (String, String)> {
    let mut found = BTreeMap::new();
    let (mut group, mut applied) = (String::new(), String::new());
    let words: Vec<&str> = status.split_whitespace().collect();
    for pair in words.windows(2) {
        match pair[0] {
            "group:" => group = pair[1].to_owned(),
            "applied:" => applied = pair[1].to_owned(),
            "digest:" => drop(found.insert(group.clone(), (applied.clone(), pair[1].to_owned()))),
            _ => {}
        }
    }
    found
}

/// The ways between a node and both others: those on which it speaks, and those on which it hears.
fn ways(node: usize) -> (Vec<Way>, Vec<Way>) {
    let others = NODES.into_iter().filter(move |other| *other != node);
    others.map(|other| ((node, other), (other, node))).unzip()
}

/// Cuts these ways, sees that the node refuses and the others serve, and heals them.
#[allow(clippy::print_stdout, reason = "the figures are for whoever runs it with --nocapture")]
fn isolate(cluster: &Cluster, network: &Network, traffic: &Traffic, node: usize, cut: &[Way]) {
    cut.iter().for_each(|(from, to)| network.cut(*from, *to));
    NODES.iter().filter(|other| **other != node).for_each(|other| traffic.served_again(*other));
    // A client that comes now, and has nothing under way.
    let mut late = cluster.client(node);
    let asked = millis();
    let answer = late.ask("SET late 0");
    let took = millis() - asked;
    assert!(answer.starts_with("-CLUSTERDOWN") || answer.starts_with("-INDOUBT"), "{answer}");
    assert!(took < REFUSED_WITHIN, "it was refused after {took} ms");
    traffic.refuses(node);
    let slowest = traffic.slowest[node - 1].load(Ordering::Relaxed);
    println!("refused: a new write after {took} ms, the slowest of those under way after {slowest} ms");
    assert!(slowest < REFUSED_WITHIN, "what was under way was refused after {slowest} ms");
    NODES.iter().filter(|other| **other != node).for_each(|other| traffic.served_again(*other));
    cut.iter().for_each(|(from, to)| network.heal(*from, *to));
}

#[test]
fn a_leader_that_is_cut_off_refuses_and_comes_back() {
    let Some((cluster, network)) = cluster() else { return };
    let leader = cluster.leader(1);
    let (speaks, hears) = ways(leader);
    with_traffic(&cluster, leader, |traffic| {
        isolate(&cluster, &network, traffic, leader, &[speaks, hears].concat());
    });
}

#[test]
fn a_leader_that_is_not_heard_is_replaced_and_one_that_hears_nobody_gives_up() {
    let Some((cluster, network)) = cluster() else { return };
    let leader = cluster.leader(1);
    let (speaks, hears) = ways(leader);
    with_traffic(&cluster, leader, |traffic| {
        isolate(&cluster, &network, traffic, leader, &speaks);
        NODES.iter().for_each(|node| traffic.served_again(*node));
        isolate(&cluster, &network, traffic, leader, &hears);
    });
}

#[test]
fn one_broken_way_between_two_nodes_stops_nobody_who_can_reach_a_leader() {
    let Some((cluster, network)) = cluster() else { return };
    let leader = cluster.leader(1);
    let (deaf, other) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    with_traffic(&cluster, leader, |traffic| {
        network.cut(leader, deaf);
        traffic.served_again(leader);
        traffic.served_again(other);
        network.heal(leader, deaf);
    });
}

#[test]
fn a_network_that_comes_and_goes_loses_nothing() {
    let Some((cluster, network)) = cluster() else { return };
    let leader = cluster.leader(1);
    let (speaks, hears) = ways(leader);
    let all = [speaks, hears].concat();
    with_traffic(&cluster, leader, |_| {
        let start = millis();
        for flap in 1.. {
            all.iter().for_each(|(from, to)| network.cut(*from, *to));
            let until =
                |at: u64| std::thread::park_timeout(Duration::from_millis(at.saturating_sub(millis())));
            until(start + 600 * flap - 300);
            all.iter().for_each(|(from, to)| network.heal(*from, *to));
            until(start + 600 * flap);
            if millis() > start + 20_000 {
                break;
            }
        }
    });
}
