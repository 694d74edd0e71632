//! Directories that are damaged, full or outgrown: what the cluster promises of its data survives it. Each test starts
//! real nodes, spoils the files of one of them, and looks at what the others' clients notice and what the node has
//! afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use quorate_protocol::op::partition_of;
use quorate_tests::damages::{DAMAGES, change, files, segments, spoil_last};
use quorate_tests::process::{Client, Cluster, millis, poll};
use quorate_tests::small::Small;

/// The system group and the partitions.
const GROUPS: usize = 17;
/// What one write may take while nodes die; far above what it takes.
const BOUND: u64 = 8000;
/// Bytes of log beyond which every group has taken a snapshot: the floor of 16 MiB, and half of what is live.
const ENOUGH_FOR_SNAPSHOTS: usize = 88 << 20;

/// A key in every partition.
fn keys() -> Vec<String> {
    let mut keys = BTreeMap::new();
    for key in (0..1000).map(|n| format!("key-{n}")) {
        keys.entry(partition_of(key.as_bytes(), 16).0).or_insert(key);
    }
    assert_eq!(keys.len(), GROUPS - 1);
    keys.into_values().collect()
}

/// Writes all of these values, several at a time; what is refused for the moment is sent again.
fn write_all(client: &mut Client, values: impl Iterator<Item = (String, String)>) {
    const WINDOW: usize = 16;
    let values: Vec<(String, String)> = values.collect();
    for some in values.chunks(WINDOW) {
        let mut left: Vec<&(String, String)> = some.iter().collect();
        poll("the values are written", || {
            for (key, value) in &left {
                let (k, v) = (key.len(), value.len());
                client.say(&format!("*3\r\n$3\r\nSET\r\n${k}\r\n{key}\r\n${v}\r\n{value}\r"));
            }
            left.retain(|_| {
                let answer = client.line();
                let later = ["-BUSY", "-TRYAGAIN", "-CLUSTERDOWN", "-INDOUBT"];
                assert!(answer == "+OK" || later.iter().any(|code| answer.starts_with(code)), "{answer}");
                answer != "+OK"
            });
            left.is_empty().then_some(())
        });
    }
}

/// A value of this size that says what it is.
fn value(n: usize, size: usize) -> String {
    let mut value = format!("{n}-");
    value.extend(std::iter::repeat_n('v', size - value.len()));
    value
}

/// Overwrites a few large values until the groups have taken snapshots.
fn write_much(client: &mut Client) {
    const SIZE: usize = 256 << 10;
    write_all(
        client,
        (0..ENOUGH_FOR_SNAPSHOTS / SIZE).map(|n| (format!("large-{}", n % 48), value(n, SIZE))),
    );
}

/// Group → applied index and digest, as a node tells them.
fn groups(cluster: &Cluster, id: usize) -> Option<BTreeMap<u64, (u64, String)>> {
    let status = Client::try_new(cluster.address(id))?.try_ask("STATUS")?;
    let words: Vec<&str> = status.split_whitespace().skip_while(|word| *word != "groups:").collect();
    let values = |name| words.windows(2).filter(move |pair| pair[0] == name).map(|pair| pair[1]);
    let rows = values("group:").zip(values("applied:").zip(values("digest:")));
    rows.map(|(group, (applied, digest))| {
        Some((group.parse().ok()?, (applied.parse().ok()?, digest.to_owned())))
    })
    .collect()
}

/// Waits until a node's replicas count for a majority again, in all groups.
fn wait_whole(cluster: &Cluster, id: usize) {
    poll(&format!("node {id} has a vote in every group"), || {
        let status = cluster.client(id).ask_all("STATUS");
        let votes = status.matches("role: follower").count() + status.matches("role: leader").count();
        // The node itself has a line of this kind too, that of the system group.
        (votes == GROUPS + 1).then_some(())
    });
}

/// Waits until all nodes hold all groups, and have had the same state at the same index in each of them.
fn wait_alike(cluster: &Cluster) {
    let mut seen: BTreeMap<(u64, u64), BTreeMap<usize, String>> = BTreeMap::new();
    let mut alike = BTreeSet::new();
    let mut last = Vec::new();
    let start = millis();
    loop {
        last.clear();
        for id in 1..=cluster.size() {
            let found = groups(cluster, id).unwrap_or_default();
            last.push(found.len());
            for (group, (applied, digest)) in found {
                let row = seen.entry((group, applied)).or_default();
                row.insert(id, digest);
                let digests: BTreeSet<&String> = row.values().collect();
                assert_eq!(digests.len(), 1, "group {group} at {applied}: {row:?}");
                if row.len() == cluster.size() {
                    alike.insert(group);
                }
            }
        }
        if alike.len() == GROUPS && last.iter().all(|held| *held == GROUPS) {
            return;
        }
        assert!(millis() < start + 30_000, "groups held: {last:?}; alike: {alike:?}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// Somebody who writes a little all the time, into every partition, through whichever node answers.
struct Load {
    over: AtomicBool,
    rounds: AtomicU64,
}

impl Load {
    fn new() -> Self {
        Self { over: AtomicBool::new(false), rounds: AtomicU64::new(0) }
    }

    /// Works until it is over; returns what was acknowledged last of each key, and the longest that a write took.
    fn run(&self, addresses: &[std::net::SocketAddr]) -> (BTreeMap<String, u64>, u64) {
        let keys: Vec<String> = keys().into_iter().map(|key| format!("{{{key}}}")).collect();
        let (mut told, mut slowest) = (BTreeMap::new(), 0);
        let (mut at, mut client) = (0, None);
        for n in 1.. {
            for key in &keys {
                let start = millis();
                poll("a write is acknowledged", || {
                    if client.is_none() {
                        at = (at + 1) % addresses.len();
                        client = Client::try_new(addresses[at]);
                    }
                    let answer = client
                        .as_mut()
                        .and_then(|client: &mut Client| client.try_first(&format!("SET {key} {n}")));
                    if answer.is_none() {
                        client = None;
                    }
                    (answer? == "OK").then_some(())
                });
                slowest = slowest.max(millis() - start);
                told.insert(key.clone(), n);
                std::thread::park_timeout(Duration::from_millis(5));
            }
            self.rounds.fetch_add(1, Ordering::Relaxed);
            if self.over.load(Ordering::Relaxed) {
                break;
            }
        }
        (told, slowest)
    }

    /// Waits until every partition was written twice from now on.
    fn wait_for_more(&self) {
        let start = self.rounds.load(Ordering::Relaxed);
        poll("every partition can be written", || {
            (self.rounds.load(Ordering::Relaxed) >= start + 2).then_some(())
        });
    }
}

/// Makes a node that is down have this many segments: each start seals the last and begins a new one.
fn have_segments(cluster: &mut Cluster, id: usize, wanted: usize, load: &Load) {
    while segments(&cluster.data_dir(id)).len() < wanted {
        cluster.spawn(id);
        cluster.wait_ready(id);
        load.wait_for_more();
        cluster.kill(id);
    }
}

/// Whatever is spoilt of one node's directory is said, repaired from the others while they serve, and the node counts
/// again: the next one is killed as soon as it is back, and the damaged one is half of the majority that goes on.
#[test]
fn every_kind_of_damage_is_told_and_repaired_while_the_cluster_serves() {
    let mut cluster = Cluster::start(3);
    write_much(&mut cluster.client(1));
    let addresses: Vec<_> = (1..=3).map(|id| cluster.address(id)).collect();
    let load = Load::new();
    let (told, slowest) = std::thread::scope(|scope| {
        let work = scope.spawn(|| load.run(&addresses));
        let over = Over(&load);
        load.wait_for_more();
        for (damage, n) in DAMAGES.iter().zip(0..) {
            let id = n % 3 + 1;
            let start = millis();
            cluster.kill(id);
            // The majority is the other two: the one that was damaged before is among them.
            load.wait_for_more();
            have_segments(&mut cluster, id, damage.segments, &load);
            let before = cluster.log(id).len();
            let named = (damage.spoil)(&cluster.data_dir(id));
            cluster.spawn(id);
            cluster.wait_ready(id);
            wait_whole(&cluster, id);
            wait_alike(&cluster);
            let log = cluster.log(id)[before..].to_owned();
            let warning =
                log.lines().find(|line| line.contains("WARN") && line.contains(" is damaged at offset "));
            match named {
                Some(path) => {
                    let name =
                        path.strip_prefix(cluster.data_dir(id)).expect("it lies there").display().to_string();
                    assert!(
                        warning.is_some_and(|line| line.contains(&name)),
                        "{}: {name}: {log}",
                        damage.name
                    );
                }
                None => assert!(warning.is_none(), "{}: {log}", damage.name),
            }
            note(&format!("{}: node {id}, {} ms", damage.name, millis() - start));
        }
        drop(over);
        work.join().expect("the load is acknowledged")
    });
    note(&format!("the slowest write: {slowest} ms"));
    assert!(slowest < BOUND, "a write took {slowest} ms");
    for id in 1..=3 {
        let mut client = cluster.client(id);
        for (key, n) in &told {
            assert_eq!(client.ask(&format!("GET {key}")), n.to_string(), "{key} at node {id}");
        }
    }
}

/// Moves a node to a small file system. Without the right to mount one, the test says so and does nothing.
fn on_small_disk(cluster: &mut Cluster, id: usize) -> Option<Small> {
    match Small::move_node(cluster, id, 320) {
        Ok(small) => Some(small),
        Err(why) => {
            note(&format!("SKIPPED: {why}: a full disk is not tested"));
            None
        }
    }
}

fn said(cluster: &Cluster, id: usize, words: &str, times: usize) {
    poll(words, || (cluster.log(id).matches(words).count() >= times).then_some(()));
}

/// Waits until a node answers with the values of these keys.
fn wait_reads(cluster: &Cluster, id: usize, keys: &[String], value: &str) {
    for key in keys {
        poll("it can be read", || (cluster.client(id).ask(&format!("GET {key}")) == value).then_some(()));
    }
}

#[test]
fn a_node_with_a_full_disk_serves_and_the_others_go_on_and_it_recovers_unaided() {
    let mut cluster = Cluster::start(3);
    let Some(small) = on_small_disk(&mut cluster, 3) else { return };
    let keys = keys();
    write_all(&mut cluster.client(1), keys.iter().map(|key| (key.clone(), "before".to_owned())));
    small.fill();
    said(&cluster, 3, "the disk is full", 1);
    let set = |cluster: &Cluster, id: usize, value: &str| {
        for key in &keys {
            let mut client = cluster.client(id);
            poll("it can be written", || (client.ask(&format!("SET {key} {value}")) == "OK").then_some(()));
        }
    };
    let start = millis();
    set(&cluster, 1, "full");
    note(&format!("the disk is full: every partition written after {} ms", millis() - start));
    write_much(&mut cluster.client(2));
    wait_reads(&cluster, 3, &keys, "full");
    set(&cluster, 3, "through-it");
    assert_eq!(groups(&cluster, 3).expect("it answers").len(), GROUPS);
    // A start needs no room either.
    cluster.kill(3);
    cluster.spawn(3);
    said(&cluster, 3, "the disk is full", 2);
    wait_reads(&cluster, 3, &keys, "through-it");
    small.clear();
    let start = millis();
    wait_whole(&cluster, 3);
    wait_alike(&cluster);
    note(&format!("there is room: alike after {} ms", millis() - start));
    cluster.kill(1);
    set(&cluster, 3, "after");
    wait_reads(&cluster, 2, &keys, "after");
}

#[test]
fn a_node_alone_with_a_full_disk_refuses_writes_and_says_why() {
    let mut cluster = Cluster::start(1);
    let Some(small) = on_small_disk(&mut cluster, 1) else { return };
    let keys = keys();
    write_all(&mut cluster.client(1), keys.iter().map(|key| (key.clone(), "before".to_owned())));
    for round in 1..=2 {
        small.fill();
        said(&cluster, 1, "the disk is full", 2 * round - 1);
        let refused = |cluster: &Cluster| {
            let mut client = cluster.client(1);
            let refusal = poll("a refusal", || Some(client.ask("SET key-1 refused")).filter(|a| a != "OK"));
            assert!(refusal.starts_with("-BUSY ") && refusal.contains(" is full"), "{refusal}");
            wait_reads(cluster, 1, &keys[1..], "before");
            assert_eq!(groups(cluster, 1).expect("it answers").len(), GROUPS);
        };
        refused(&cluster);
        cluster.kill(1);
        cluster.spawn(1);
        said(&cluster, 1, "the disk is full", 2 * round);
        refused(&cluster);
        small.clear();
        let mut client = cluster.client(1);
        poll("there is room", || (client.ask(&format!("SET round-{round} v")) == "OK").then_some(()));
    }
    wait_reads(&cluster, 1, &["round-1".to_owned(), "round-2".to_owned()], "v");
}

/// Two of three nodes have lost what they acknowledged: nobody can say what was. That is said, and nothing made up; what
/// the third one has is not served as if it were the newest.
#[test]
fn a_damaged_majority_is_reported_and_nothing_is_made_up() {
    let mut cluster = Cluster::start(3);
    let keys = keys();
    write_all(&mut cluster.client(1), keys.iter().map(|key| (key.clone(), "before".to_owned())));
    (2..=3).for_each(|id| cluster.kill(id));
    for id in 2..=3 {
        // One loses its journal, the other the manifest too.
        if id == 2 {
            spoil_last(&cluster.data_dir(id), |bytes, _| bytes[..1024].fill(0));
        } else {
            change(&cluster.data_dir(id).join("hardstate"), |bytes| bytes.fill(0));
        }
        cluster.spawn(id);
    }
    (2..=3).for_each(|id| said(&cluster, id, " is damaged at offset ", 1));
    said(
        &cluster,
        1,
        "most replicas of groups 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16 have lost",
        1,
    );
    // Each is asked by itself: a refusal takes as long as a leader is waited for.
    let refused = |id: usize, line: String| {
        let answer = cluster.client(id).ask(&line);
        assert!(answer.starts_with("-CLUSTERDOWN"), "{line} at node {id}: {answer}");
    };
    std::thread::scope(|scope| {
        for key in &keys {
            for id in 1..=3 {
                let refused = &refused;
                scope.spawn(move || refused(id, format!("SET {key} after")));
                scope.spawn(move || refused(id, format!("GET {key}")));
            }
        }
    });
}

/// Bytes that a directory takes on the disk.
fn disk_use(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).expect("it is there").map(|entry| entry.expect("it is there"));
    entries
        .filter_map(|entry| {
            // What is removed meanwhile takes nothing.
            let meta = entry.metadata().ok()?;
            Some(if meta.is_dir() { disk_use(&entry.path()) } else { meta.blocks() * 512 })
        })
        .sum()
}

#[test]
fn disk_use_follows_live_data_and_a_killed_node_is_soon_there_again() {
    const SIZE: usize = 16 << 10;
    // Enough that what is kept whatever there is (a segment in use, one ahead, one that waits to be written again, the
    // reserve, 16 MiB of log) stays below the bound.
    const LIVE: usize = 192 << 20;
    const ROUNDS: usize = 3;
    let mut cluster = Cluster::start(1);
    let data = cluster.data_dir(1);
    let mut most = 0;
    for round in 0..ROUNDS {
        let values = (0..LIVE / SIZE).map(|n| (format!("k{n}"), value(n + round, SIZE)));
        write_all(&mut cluster.client(1), values);
        most = most.max(disk_use(&data));
    }
    let used = disk_use(&data);
    let mib = |bytes: u64| bytes >> 20;
    note(&format!(
        "{} MiB live, {} MiB written: {} MiB on the disk, {} at the most of {ROUNDS} looks",
        LIVE >> 20,
        (ROUNDS * LIVE) >> 20,
        mib(used),
        mib(most)
    ));
    assert!(used <= 2 * LIVE as u64 + (64 << 20), "{} MiB on the disk", mib(used));
    cluster.kill(1);
    let start = millis();
    cluster.spawn(1);
    cluster.wait_ready(1);
    note(&format!("ready {} ms after its start", millis() - start));
    let mut client = cluster.client(1);
    for n in 0..LIVE / SIZE {
        assert_eq!(client.ask(&format!("GET k{n}")), value(n + ROUNDS - 1, SIZE), "k{n}");
    }
}

/// What a node that was down needs is gone from the others' logs: it gets snapshots.
#[test]
fn a_node_that_was_down_while_the_others_compacted_catches_up_by_snapshots() {
    let mut cluster = Cluster::start(3);
    cluster.kill(3);
    write_much(&mut cluster.client(1));
    // Leaders keep some log for those that are behind.
    write_much(&mut cluster.client(2));
    let start = millis();
    cluster.spawn(3);
    cluster.wait_ready(3);
    wait_alike(&cluster);
    wait_whole(&cluster, 3);
    note(&format!("caught up after {} ms", millis() - start));
    let got = files(&cluster.data_dir(3).join("snapshots"), ".snap").len();
    let log: u64 =
        segments(&cluster.data_dir(3)).iter().map(|path| fs::metadata(path).expect("there").len()).sum();
    note(&format!("{got} snapshots, {} MiB of segments", log >> 20));
    assert!(got >= 8, "{got} snapshots");
    cluster.kill(1);
    let keys = keys();
    for key in &keys {
        let mut client = cluster.client(3);
        poll("it can be written", || (client.ask(&format!("SET {key} after")) == "OK").then_some(()));
    }
    wait_reads(&cluster, 2, &keys, "after");
}

/// A node that reads the past of its cluster finds members there that have been replaced since, under the same id: one
/// of them is the very leader from whom the present is to come.
#[test]
fn a_node_that_reads_the_past_hears_the_leader_that_was_replaced_since() {
    let mut cluster = Cluster::start(3);
    // So much is in the system group's log that nobody applies it in one turn.
    let owner = "o".repeat(1000);
    let mut client = cluster.client(2);
    for n in 0..600 {
        let answer = client.ask(&format!("LOCK lock-{} OWNER {owner}-{n} TTL 1000", n % 300));
        assert!(answer == "(nil)" || answer.parse::<u64>().is_ok(), "{answer}");
    }
    cluster.kill(1);
    cluster.wipe(1);
    let ask = |cluster: &Cluster, line: &str| cluster.client(2).ask_all(line);
    poll("it is removed", || ask(&cluster, "MEMBER REMOVE 1").starts_with("OK").then_some(()));
    poll("it is forgotten", || (!ask(&cluster, "MEMBERS").contains("node: 1\n")).then_some(()));
    cluster.spawn(1);
    cluster.wait_ready(1);
    wait_whole(&cluster, 1);
    poll("node 1 leads the system group", || (cluster.leader(3) == 1).then_some(()));
    cluster.kill(2);
    // It has nothing any more: it reads the log from its beginning.
    change(&cluster.data_dir(2).join("hardstate"), |bytes| bytes.fill(0));
    let before = cluster.log(2).len();
    cluster.spawn(2);
    cluster.wait_ready(2);
    wait_whole(&cluster, 2);
    wait_alike(&cluster);
    let log = cluster.log(2)[before..].to_owned();
    assert!(!log.contains("another data directory"), "{log}");
}

/// Ends the load, also when a test fails.
struct Over<'a>(&'a Load);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

/// Figures, for those who run a test with --nocapture.
#[allow(clippy::print_stderr, reason = "the test framework keeps it for failures")]
fn note(text: &str) {
    eprintln!("{text}");
}
