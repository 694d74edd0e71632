//! Backups: a cluster that works is saved, and becomes new clusters, of real processes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use quorate_protocol::id::GroupId;
use quorate_protocol::op::partition_of_topic;
use quorate_tests::process::{Client, Cluster, Ran, Scratch, binary, cli, poll, run};
use rustix::process::Signal;

/// `quorate` with these words, at a node.
fn quorate(cluster: &Cluster, node: usize, words: &[&str]) -> Ran {
    let mut command = Command::new(cli());
    command.env_remove("QUORATE_SERVER").arg("--server").arg(cluster.address(node).to_string()).args(words);
    run(&mut command, "")
}

fn save(cluster: &Cluster, node: usize, file: &Path) -> Ran {
    quorate(cluster, node, &["snapshot", "save", &file.display().to_string()])
}

/// `quorate-server restore`, for a node of a cluster.
fn restore(file: &Path, cluster: &Cluster, id: usize, more: &[&str]) -> Ran {
    let mut command = Command::new(binary());
    command.arg("restore").arg(file).arg("--data-dir").arg(cluster.data_dir(id));
    command.args(["--node-id", &id.to_string(), "--initial-cluster", &cluster.founders()]).args(more);
    run(&mut command, "")
}

#[track_caller]
fn restored(file: &Path, cluster: &Cluster, id: usize) -> String {
    let ran = restore(file, cluster, id, &[]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let check = run(Command::new(binary()).arg("check").arg(cluster.data_dir(id)), "");
    assert_eq!(check.code, Some(0), "{check:?}");
    assert!(check.out.contains("no damage") && !check.out.contains("not sound"), "{check:?}");
    ran.out
}

/// A new cluster of so many nodes.
fn revived(file: &Path, n: usize) -> Cluster {
    let mut cluster = Cluster::plan(n);
    let said: Vec<String> = (1..=n).map(|id| restored(file, &cluster, id)).collect();
    let name = |said: &String| said.split("new cluster ").nth(1).map(|rest| rest[..16].to_owned());
    let names: BTreeSet<_> = said.iter().map(name).collect();
    assert!(names.len() == 1 && !names.contains(&None), "one new cluster: {said:?}");
    let files: Vec<_> = (1..=n).map(|id| snapshots(&cluster.data_dir(id))).collect();
    assert!(
        files.iter().all(|files| files.len() == 17 && *files == files_of(&cluster)),
        "all nodes begin alike"
    );
    cluster.spawn_all();
    cluster
}

fn files_of(cluster: &Cluster) -> BTreeMap<PathBuf, Vec<u8>> {
    snapshots(&cluster.data_dir(1))
}

fn snapshots(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files =
        fs::read_dir(dir.join("snapshots")).expect("it is there").map(|entry| entry.expect("one").path());
    files
        .map(|path| (path.file_name().expect("a name").into(), fs::read(&path).expect("it is ours")))
        .collect()
}

fn number(answer: &str) -> u64 {
    answer.parse().unwrap_or_else(|_| panic!("{answer} is a number"))
}

/// What a cluster has been told, and has acknowledged.
#[derive(Default)]
struct Told {
    /// Keys `k0` … and messages of topic `t`, each with its number.
    rounds: AtomicU64,
    token: u64,
    id: u64,
}

/// Writes on until `over`: each round a key, a message, and a counter.
fn write(client: &mut Client, rounds: &AtomicU64, over: &AtomicBool) -> u64 {
    let mut last = 0;
    while !over.load(Ordering::Relaxed) {
        let n = rounds.load(Ordering::Relaxed);
        assert_eq!(client.ask(&format!("SET k{n} {n}")), "OK");
        last = last.max(number(&client.ask(&format!("PUB t {n}"))));
        rounds.fetch_add(1, Ordering::Relaxed);
    }
    last
}

/// Saves a cluster that is written to all the while; returns how many rounds were acknowledged before.
fn save_under_load(old: &Cluster, file: &Path, told: &mut Told) -> u64 {
    let (over, rounds) = (AtomicBool::new(false), &told.rounds);
    let reached = |n: u64| poll("the writer goes on", || (rounds.load(Ordering::Relaxed) >= n).then_some(()));
    let mut client = old.client(2);
    let (before, last) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write(&mut client, rounds, &over));
        reached(100);
        let before = rounds.load(Ordering::Relaxed);
        let ran = save(old, 1, file);
        let after = rounds.load(Ordering::Relaxed);
        reached(after + 50);
        over.store(true, Ordering::Relaxed);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert!(ran.out.starts_with("GROUP") && ran.out.contains(": 17 groups, "), "{ran:?}");
        (before, writer.join().expect("the writer"))
    });
    told.id = last;
    before
}

/// All messages of a topic, with their attempts.
fn fetch_all(client: &mut Client, topic: &str) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    loop {
        let answer = client.ask_all(&format!("FETCH {topic} COUNT 100"));
        if answer.contains("(nil)") {
            return found;
        }
        for line in answer.lines() {
            let mut words = line.split(' ').skip(1);
            let (_, attempt, body) = (words.next(), words.next(), words.next());
            found.insert(body.expect("a body").to_owned(), number(attempt.expect("an attempt")));
        }
    }
}

/// What a new cluster has of the old one.
fn look_at(new: &Cluster, before: u64) {
    let mut client = new.client(1);
    for n in 0..before {
        assert_eq!(client.ask(&format!("GET k{n}")), n.to_string(), "of {before}");
    }
    let messages = fetch_all(&mut client, "t");
    for n in 0..before {
        assert!(messages.contains_key(&n.to_string()), "message {n} of {before}");
    }
    assert_eq!(fetch_all(&mut client, "leased"), [("once".to_owned(), 2)].into(), "it is delivered again");
    assert!(client.ask_all("LOCKINFO held").contains("holding: 0"), "nobody holds it any more");
    let ttl = number(&client.ask("TTL mortal"));
    assert!((1..=3600).contains(&ttl), "it has as long to live as it had: {ttl}");
}

/// Whatever is given now is above all that was given before.
fn numbers_rise(new: &Cluster, told: &Told) {
    let mut client = new.client(1);
    assert!(number(&client.ask("LOCK held OWNER you")) > told.token);
    for topic in ["t", "leased", "other"] {
        assert!(number(&client.ask(&format!("PUB {topic} x"))) > told.id);
    }
}

/// Group → applied index and digest.
fn digests(cluster: &Cluster, id: usize) -> BTreeMap<String, (String, String)> {
    let text = cluster.client(id).ask_all("STATUS");
    let values = |name: &'static str| {
        text.lines()
            .filter_map(move |line| line.trim().strip_prefix(name).map(|value| value.trim().to_owned()))
    };
    values("group:").zip(values("applied:").zip(values("digest:"))).collect()
}

#[test]
fn what_was_acknowledged_before_is_in_the_new_clusters_and_no_number_comes_twice() {
    let scratch = Scratch::new();
    let file = scratch.path().join("backup");
    let old = Cluster::start(3);
    let mut client = old.client(3);
    let mut told = Told::default();
    assert_eq!(client.ask("SET mortal x EX 3600"), "OK");
    client.ask("PUB leased once");
    assert!(client.ask_all("FETCH leased LEASE 600000").contains(" 1 once"));
    client.ask("LOCK held OWNER me TTL 600000");
    let before = save_under_load(&old, &file, &mut told);
    // The old cluster goes on behind the cut.
    for n in 0..50 {
        told.token = number(&client.ask(&format!("LOCK later{n} OWNER me")));
    }
    told.id = told.id.max((0..50).map(|n| number(&client.ask(&format!("PUB late{n} x")))).max().unwrap_or(0));

    let three = revived(&file, 3);
    look_at(&three, before);
    numbers_rise(&three, &told);
    poll("the replicas agree", || {
        let all: Vec<_> = (1..=3).map(|id| digests(&three, id)).collect();
        assert_eq!(all[0].len(), 17);
        all.iter().all(|digests| *digests == all[0]).then_some(())
    });
    let one = revived(&file, 1);
    look_at(&one, before);
    numbers_rise(&one, &told);
    let cluster_of = |cluster: &Cluster| {
        let status = cluster.client(1).ask_all("STATUS");
        status.lines().find_map(|line| line.strip_prefix("cluster: ").map(str::to_owned)).expect("it says so")
    };
    let names = BTreeSet::from([&old, &three, &one].map(cluster_of));
    assert_eq!(names.len(), 3, "each is a cluster of its own: {names:?}");

    // A new cluster can be saved and restored as well.
    let again = scratch.path().join("again");
    let (id, token) = {
        let mut client = one.client(1);
        (number(&client.ask("PUB t y")), number(&client.ask("LOCK other OWNER you")))
    };
    let ran = save(&one, 1, &again);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let third = revived(&again, 1);
    numbers_rise(&third, &Told { id, token, ..Told::default() });
}

/// Has a message of a topic die.
fn die(client: &mut Client, topic: &str, body: &str) {
    let id = number(&client.ask(&format!("PUB {topic} {body}")));
    client.ask_all(&format!("FETCH {topic}"));
    assert_eq!(client.ask(&format!("NACK {topic} {id}@1 DEAD")), "1");
}

/// Has messages 0, 1, ... die until `over`.
fn die_on(client: &mut Client, topic: &str, over: &AtomicBool) {
    for n in 0.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        die(client, topic, &n.to_string());
    }
}

#[test]
fn no_message_that_dies_into_another_partition_meanwhile_is_missing_in_the_backup() {
    let scratch = Scratch::new();
    let old = Cluster::start(3);
    let named = |name: &str, home: u16| {
        let mut names = (0..).map(|n| format!("{name}{n}"));
        names.find(|topic| partition_of_topic(topic.as_bytes(), 16) == GroupId(home)).expect("one of them")
    };
    // One way leads to a partition that is cut earlier, the other to one that is cut later.
    let ways = [(named("jobs", 14), named("grave", 2)), (named("work", 3), named("tomb", 13))];
    for (from, to) in &ways {
        assert_eq!(old.client(1).ask(&format!("QSET {from} DLQ {to}")), "OK");
    }
    let file = scratch.path().join("backup");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for (from, _) in &ways {
            let (over, mut client) = (&over, old.client(2));
            scope.spawn(move || die_on(&mut client, from, over));
        }
        let mut observer = old.client(3);
        for (_, to) in &ways {
            poll("messages die", || {
                observer.ask_all(&format!("QINFO {to}")).contains("ready: ").then_some(())
            });
        }
        let ran = save(&old, 1, &file);
        over.store(true, Ordering::Relaxed);
        assert_eq!(ran.code, Some(0), "{ran:?}");
    });

    let new = revived(&file, 1);
    let mut client = new.client(1);
    for (from, to) in &ways {
        let leaves = |client: &mut Client| !client.ask_all(&format!("QINFO {from}")).contains("leaving: 0");
        poll("all letters have come", || (!leaves(&mut client)).then_some(()));
        let mut there = fetch_all(&mut client, from);
        there.extend(fetch_all(&mut client, to));
        let newest =
            there.keys().map(|body| number(body)).max().expect("some had died before the backup began");
        assert!(
            (0..=newest).all(|n| there.contains_key(&n.to_string())),
            "{from}, up to {newest}: {there:?}"
        );
        // What dies from now on arrives, too.
        (0..50).for_each(|n| die(&mut client, from, &format!("{}", 1_000_000 + n)));
        poll("all letters have come", || (!leaves(&mut client)).then_some(()));
        assert_eq!(fetch_all(&mut client, to).len(), 50, "{from}");
    }
}

#[test]
fn a_file_that_is_not_whole_is_refused_and_nothing_is_left_behind() {
    let scratch = Scratch::new();
    let file = scratch.path().join("backup");
    let old = Cluster::start(1);
    let mut client = old.client(1);
    (0..200).for_each(|n| assert_eq!(client.ask(&format!("SET k{n} {}", "v".repeat(1000))), "OK"));
    assert_eq!(save(&old, 1, &file).code, Some(0));

    // No file is overwritten, and none is left half written.
    let ran = save(&old, 1, &file);
    assert!(
        ran.code == Some(2) && ran.err.contains("exists, and no backup takes another file's place"),
        "{ran:?}"
    );
    let partial = scratch.path().join("other.partial");
    fs::write(&partial, "x").expect("it is ours");
    let ran = save(&old, 1, &scratch.path().join("other"));
    assert!(ran.code == Some(2) && ran.err.contains("remove it if none runs"), "{ran:?}");
    let ran = save(&Cluster::plan(1), 1, &scratch.path().join("nobody"));
    assert!(ran.code == Some(69) && ran.err.contains("no node serves"), "{ran:?}");
    let left: BTreeSet<_> = fs::read_dir(scratch.path())
        .expect("it is ours")
        .map(|entry| entry.expect("one").file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(left, ["backup", "other.partial"].map(str::to_owned).into());

    let whole = fs::read(&file).expect("it is ours");
    let new = Cluster::plan(1);
    let bad = scratch.path().join("bad");
    let refused = |bytes: &[u8], why: &str| {
        fs::write(&bad, bytes).expect("it is ours");
        let ran = restore(&bad, &new, 1, &[]);
        assert!(ran.code == Some(1) && ran.err.contains(why) && ran.out.is_empty(), "{why}: {ran:?}");
        assert_eq!(ran.err.lines().count(), 1, "{ran:?}");
        assert!(!new.data_dir(1).exists(), "nothing is left behind");
    };
    for end in [0, 3, 22, 40, whole.len() / 2, whole.len() - 16, whole.len() - 1] {
        refused(&whole[..end], "ends early; give a file that is whole");
    }
    for at in [30, whole.len() / 3, whole.len() / 2, whole.len() - 20, whole.len() - 2] {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        refused(&flipped, "; give a file that is whole");
    }
    refused(b"not at all one of ours", "this is no backup of Quorate");
    refused(&[&whole[..], b"more"].concat(), "behind the end of the backup");

    let ran = restore(&file, &new, 1, &["--node-id", "7"]);
    assert!(ran.code == Some(2) && !new.data_dir(1).exists(), "{ran:?}");
    // What no node can be called is refused before the file is looked at, whoever's name it is.
    let named = |spec: &str, id: &str| {
        let mut command = Command::new(binary());
        command.arg("restore").arg(&file).arg("--data-dir").arg(new.data_dir(1));
        run(command.args(["--initial-cluster", spec, "--node-id", id]), "")
    };
    for (spec, id, why) in [
        ("1=a:1,4294967296=b:1", "1", "node 4294967296 is not allowed"),
        ("4294967296=a:1", "4294967296", "--node-id 4294967296 is not allowed"),
        ("1=a:1,2=a:1", "1", "nodes 1 and 2 the address a:1"),
    ] {
        let ran = named(spec, id);
        assert!(ran.code == Some(2) && ran.err.contains(why) && !new.data_dir(1).exists(), "{ran:?}");
    }
    fs::create_dir_all(new.data_dir(1).join("journal")).expect("it can be made");
    let ran = restore(&file, &new, 1, &[]);
    assert!(ran.code == Some(1) && ran.err.contains("is not empty; restore into a new one"), "{ran:?}");
}

#[test]
fn nodes_of_the_old_cluster_and_of_other_restores_stay_outside() {
    let scratch = Scratch::new();
    let file = scratch.path().join("backup");
    let mut cluster = Cluster::start(3);
    assert_eq!(cluster.client(1).ask("SET k v"), "OK");
    assert_eq!(save(&cluster, 2, &file).code, Some(0));
    (1..=3).for_each(|id| assert_eq!(cluster.stop(id), Some(0)));
    let aside = |cluster: &Cluster, id: usize, name: &str| {
        fs::rename(cluster.data_dir(id), scratch.path().join(format!("{name}{id}"))).expect("it is ours");
    };
    // Nodes 1 and 2 begin anew; node 3 comes with what it had, and with what another restore has made.
    for id in [1, 2] {
        aside(&cluster, id, "old");
        restored(&file, &cluster, id);
    }
    for id in [1, 2] {
        cluster.spawn(id);
    }
    for id in [1, 2] {
        cluster.wait_ready(id);
    }
    let mut client = cluster.client(1);
    assert_eq!(client.ask("GET k"), "v");
    for _ in 0..2 {
        let refusals = |cluster: &Cluster| cluster.logs().matches("belongs to another cluster").count();
        let before = refusals(&cluster);
        cluster.spawn(3);
        poll("node 3 is refused", || (refusals(&cluster) > before).then_some(()));
        assert!(!cluster.client(3).ask_all("STATUS").contains("session: open"));
        cluster.kill(3);
        fs::remove_dir_all(cluster.data_dir(3)).expect("it is ours");
        let ran = restore(&file, &cluster, 3, &["--initial-cluster-token", "another"]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
    }
    fs::remove_dir_all(cluster.data_dir(3)).expect("it is ours");
    restored(&file, &cluster, 3);
    cluster.spawn(3);
    cluster.wait_ready(3);
    assert_eq!(cluster.client(3).ask("GET k"), "v");
}

#[test]
fn a_save_goes_on_without_a_node_and_is_refused_without_a_majority() {
    let scratch = Scratch::new();
    let mut cluster = Cluster::start(3);
    assert_eq!(cluster.client(1).ask("SET k v"), "OK");
    // The last node is asked first, as long as all hold the same; it hears nothing any more.
    cluster.signal(3, Signal::STOP);
    let ran = save(&cluster, 1, &scratch.path().join("frozen"));
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.out.lines().skip(1).take(17).all(|line| !line.ends_with(" 3")), "{ran:?}");
    cluster.kill(3);
    cluster.kill(2);
    let ran = save(&cluster, 1, &scratch.path().join("alone"));
    assert!(ran.code == Some(1) && ran.err.contains("no leader with a majority"), "{ran:?}");
    assert!(ran.err.contains("CLUSTERDOWN") && ran.err.contains("nothing was saved"), "{ran:?}");
    let left = fs::read_dir(scratch.path()).expect("it is ours").count();
    assert_eq!(left, 1, "the file that was saved");
    let one = revived(&scratch.path().join("frozen"), 1);
    assert_eq!(one.client(1).ask("GET k"), "v");
}
