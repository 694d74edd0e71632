//! What a node has mapped into memory of its snapshots: a backlog of messages takes no memory of its own, a file that is
//! replaced is not held, bytes that the disk gives back otherwise than they were written are told to nobody, and what it
//! does not give back at all ends the node.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use quorate_tests::damages::files;
use quorate_tests::process::{Client, Cluster, poll};

/// Bytes of a message.
const SIZE: usize = 8 << 10;
/// Messages that are asked for at once.
const WINDOW: usize = 32;

fn body(n: usize) -> String {
    let mut body = format!("message-{n}-");
    body.extend(std::iter::repeat_n('v', SIZE - body.len()));
    body
}

/// Sends a command as a program does.
fn command(words: &[&str]) -> String {
    let all: String = words.iter().map(|word| format!("\r\n${}\r\n{word}", word.len())).collect();
    format!("*{}{all}\r", words.len())
}

/// Has a node take snapshots of all it holds.
fn snapshot(cluster: &Cluster, id: usize) {
    poll("snapshots are taken", || cluster.client(id).try_first("SNAPSHOT").filter(|said| said == "OK"));
}

fn publish(client: &mut Client, numbers: std::ops::Range<usize>, topics: usize) {
    let numbers: Vec<usize> = numbers.collect();
    for some in numbers.chunks(WINDOW) {
        for n in some {
            let topic = format!("topic-{}", n % topics);
            client.say(&command(&["PUB", &topic, &body(*n)]));
        }
        for _ in some {
            let answer = client.line();
            assert!(answer.starts_with(':'), "{answer}");
        }
    }
}

/// The next messages of a topic, by id; none when the connection is gone.
fn fetch(client: &mut Client, topic: usize) -> Option<BTreeMap<String, String>> {
    let (topic, count) = (format!("topic-{topic}"), WINDOW.to_string());
    let first = client.try_first(&command(&["FETCH", &topic, "COUNT", &count, "LEASE", "600000"]))?;
    let mut messages = BTreeMap::new();
    let count = first.strip_prefix('*').and_then(|count| count.parse().ok()).unwrap_or(0);
    for _ in 0..count {
        // *3, :id, :attempt, $length, body
        let [_, id, _, _, body] = [(); 5].map(|()| client.try_line());
        messages.insert(id?, body?);
    }
    Some(messages)
}

/// All that is in the topics; each must be what was published.
fn fetch_all(client: &mut Client, topics: usize) -> Vec<String> {
    let mut all = Vec::new();
    for topic in 0..topics {
        loop {
            let some = fetch(client, topic).expect("the node runs");
            if some.is_empty() {
                break;
            }
            all.extend(some.into_values());
        }
    }
    all.sort();
    all
}

fn bodies(count: usize) -> Vec<String> {
    let mut bodies: Vec<String> = (0..count).map(body).collect();
    bodies.sort();
    bodies
}

/// A figure of a process's status, in MiB.
fn status(cluster: &Cluster, id: usize, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", cluster.pid(id))).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("the system says it");
    let kilobytes = line.trim_matches([':', ' ', '\t']).strip_suffix(" kB").expect("it is in kB");
    kilobytes.parse::<u64>().expect("it is a number") >> 10
}

/// What a process has mapped of snapshots.
fn maps(cluster: &Cluster, id: usize) -> Vec<String> {
    let maps = fs::read_to_string(format!("/proc/{}/maps", cluster.pid(id))).expect("it runs");
    maps.lines().filter(|line| line.contains(".snap") || line.contains(".seg")).map(str::to_owned).collect()
}

fn wait_until_newest_is_mapped(cluster: &Cluster, id: usize) {
    poll("only files that are there are mapped", || {
        let maps = maps(cluster, id);
        (!maps.is_empty() && !maps.iter().any(|line| line.contains("(deleted)"))).then_some(())
    });
}

/// Three nodes that have so many messages of a topic in mapped files.
fn with_backlog(count: usize) -> Cluster {
    let cluster = Cluster::start(3);
    publish(&mut cluster.client(1), 0..count, 1);
    for id in 1..=3 {
        snapshot(&cluster, id);
        wait_until_newest_is_mapped(&cluster, id);
    }
    cluster
}

#[test]
fn a_backlog_takes_little_memory_and_holds_no_file_that_is_gone() {
    const COUNT: usize = (128 << 20) / SIZE;
    const TOPICS: usize = 64;
    let mut cluster = Cluster::start(1);
    publish(&mut cluster.client(1), 0..COUNT, TOPICS);
    snapshot(&cluster, 1);
    wait_until_newest_is_mapped(&cluster, 1);
    let bound = |cluster: &Cluster, what: &str| {
        poll(what, || (status(cluster, 1, "RssAnon") < 96).then_some(()));
    };
    bound(&cluster, "the backlog is in the page cache");
    cluster.crash(1);
    bound(&cluster, "it is there after a start");
    publish(&mut cluster.client(1), COUNT..COUNT + COUNT / 8, TOPICS);
    snapshot(&cluster, 1);
    wait_until_newest_is_mapped(&cluster, 1);
    assert!(fetch_all(&mut cluster.client(1), TOPICS) == bodies(COUNT + COUNT / 8), "as they were published");
    bound(&cluster, "whoever fetches it does not change that");
}

/// Changes a byte of a message in the newest snapshot that has it, as a bad disk does: in place.
fn spoil(cluster: &Cluster, id: usize, message: usize) -> PathBuf {
    let text = body(message);
    let found = files(&cluster.data_dir(id).join("snapshots"), ".snap").into_iter().find_map(|path| {
        let bytes = fs::read(&path).expect("it is there");
        let at = bytes.windows(SIZE).position(|window| window == text.as_bytes())?;
        Some((path, at))
    });
    let (path, at) = found.expect("a snapshot has it");
    let file = OpenOptions::new().write(true).open(&path).expect("it is there");
    file.write_all_at(b"w", (at + SIZE / 2) as u64).expect("it is ours");
    path
}

#[test]
fn what_the_disk_gives_back_otherwise_than_it_was_written_is_told_to_nobody() {
    const COUNT: usize = 400;
    let mut cluster = with_backlog(COUNT);
    let path = spoil(&cluster, 1, 300);
    let mut client = cluster.client(1);
    let mut told = Vec::new();
    while let Some(some) = fetch(&mut client, 0) {
        told.extend(some.into_values());
    }
    assert!(told.iter().all(|told| bodies(COUNT).contains(told)), "nothing else is told");
    assert_eq!(cluster.wait_exit(1), Some(70));
    let log = cluster.log(1);
    let last = log.lines().last().expect("it says why");
    let name = path.file_name().and_then(|name| name.to_str()).expect("it has a name");
    assert!(last.contains(name) && last.contains("Start it again"), "{last}");

    cluster.spawn(1);
    cluster.wait_ready(1);
    poll("the damage is found", || cluster.log(1).contains("wait to be replaced").then_some(()));
    // All that was leased comes back to whoever gives it back.
    let mut client = cluster.client(1);
    let all = poll("all messages are there", || {
        let mut all = told.clone();
        all.extend(fetch_all(&mut client, 1));
        all.sort();
        all.dedup();
        (all.len() == COUNT).then_some(all)
    });
    assert!(all == bodies(COUNT), "as they were published");
}

#[test]
fn a_part_that_cannot_be_read_ends_the_node_with_a_last_line() {
    const COUNT: usize = 400;
    let mut cluster = with_backlog(COUNT);
    // Pages behind a file's end are what a disk can refuse at will.
    for path in files(&cluster.data_dir(1).join("snapshots"), ".snap") {
        OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(0)).expect("it is ours");
    }
    let mut client = cluster.client(1);
    // The next snapshot is made of what lies in the last one.
    fetch(&mut client, 0);
    while client.try_first("SNAPSHOT").is_some() {}
    assert_eq!(cluster.wait_exit(1), Some(70));
    let log = cluster.log(1);
    let last = log.lines().last().expect("it says why");
    assert!(last.contains("SIGBUS") && last.contains("Start it again"), "{last}");
    cluster.spawn(1);
    cluster.wait_ready(1);
    poll("the damage is found", || cluster.log(1).contains("wait to be replaced").then_some(()));
}
