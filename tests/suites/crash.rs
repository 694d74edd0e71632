//! Nodes that are killed, frozen and stopped while clients work: what was acknowledged is there afterwards.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use quorate_protocol::op::partition_of_topic;
use quorate_tests::process::{Client, Cluster, Scratch, binary, free_ports, millis, poll};
use rustix::process::{Pid, Signal, kill_process};

/// A client that goes to the next node when one fails it, as real ones do.
struct Roamer {
    addresses: Vec<SocketAddr>,
    at: usize,
    client: Option<Client>,
}

impl Roamer {
    fn new(addresses: &[SocketAddr], at: usize) -> Self {
        Self { addresses: addresses.to_vec(), at, client: None }
    }

    /// The first line of the answer, if one came.
    fn ask(&mut self, line: &str) -> Option<String> {
        if self.client.is_none() {
            self.at = (self.at + 1) % self.addresses.len();
            self.client = Client::try_new(self.addresses[self.at]);
        }
        let answer = self.client.as_mut().and_then(|client| client.try_first(line));
        if answer.is_none() {
            self.client = None;
            std::thread::yield_now();
        }
        answer
    }
}

/// What a worker was told.
#[derive(Default)]
struct Acknowledged {
    /// Key → the last value that was acknowledged, and all that were left in doubt: those may come later.
    sets: BTreeMap<String, (u64, Vec<u64>)>,
    incremented: u64,
    tried: u64,
    tokens: Vec<u64>,
    published: Vec<String>,
}

/// A refusal is a refusal, and doubt is doubt; anything else is a defect.
fn is_excuse(answer: &str) -> bool {
    ["-CLUSTERDOWN", "-TRYAGAIN", "-BUSY", "-INDOUBT", "-ERR the session of"]
        .iter()
        .any(|code| answer.starts_with(code))
}

fn work(addresses: &[SocketAddr], worker: usize, over: &AtomicBool, progress: &AtomicU64) -> Acknowledged {
    let mut roamer = Roamer::new(addresses, worker);
    let mut told = Acknowledged::default();
    for n in 1.. {
        if over.load(Ordering::Relaxed) {
            return told;
        }
        let key = format!("key-{worker}-{}", n % 16);
        let answer = roamer.ask(&format!("SET {key} {n}"));
        let row = told.sets.entry(key).or_default();
        match answer.as_deref() {
            Some("OK") => row.0 = n,
            Some(answer) if answer.starts_with("-CLUSTERDOWN") || answer.starts_with("-TRYAGAIN") => {}
            Some(answer) => {
                assert!(is_excuse(answer), "{answer}");
                row.1.push(n);
            }
            None => row.1.push(n),
        }
        told.tried += 1;
        if let Some(answer) = roamer.ask(&format!("INCR counter-{worker}")) {
            assert!(is_excuse(&answer) || answer.parse::<u64>().is_ok(), "{answer}");
            told.incremented += u64::from(answer.parse::<u64>().is_ok());
        }
        // A new owner each time, so that every grant is a new token.
        let lock = format!("OWNER w{worker}-{n}");
        if let Some(answer) = roamer.ask(&format!("LOCK lock-{worker} {lock} TTL 1000")) {
            assert!(is_excuse(&answer) || answer == "(nil)" || answer.parse::<u64>().is_ok(), "{answer}");
            if let Ok(token) = answer.parse() {
                told.tokens.push(token);
                let _ = roamer.ask(&format!("UNLOCK lock-{worker} {lock} TOKEN {token}"));
            }
        }
        if let Some(answer) = roamer.ask(&format!("PUB topic-{worker} {worker}-{n}")) {
            assert!(is_excuse(&answer) || answer.parse::<u64>().is_ok(), "{answer}");
            if answer.parse::<u64>().is_ok() {
                told.published.push(format!("{worker}-{n}"));
            }
        }
        progress.fetch_add(1, Ordering::Relaxed);
    }
    told
}

/// What was acknowledged is there; what was not may be, but nothing else is.
fn check(cluster: &Cluster, worker: usize, told: &Acknowledged) {
    let mut client = cluster.client(worker % 3 + 1);
    for (key, (acknowledged, doubtful)) in &told.sets {
        let found: u64 = client.ask(&format!("GET {key}")).parse().unwrap_or(0);
        assert!(
            found == *acknowledged || doubtful.contains(&found),
            "{key} is {found}; {acknowledged} was acknowledged, {doubtful:?} tried"
        );
    }
    let counter: u64 = client.ask(&format!("GET counter-{worker}")).parse().unwrap_or(0);
    assert!(
        (told.incremented..=told.tried).contains(&counter),
        "{} acknowledged ≤ {counter} ≤ {} tried",
        told.incremented,
        told.tried
    );
    assert!(told.tokens.is_sorted_by(|a, b| a < b), "tokens rise: {:?}", told.tokens);
    let mut missing: std::collections::BTreeSet<&String> = told.published.iter().collect();
    while !missing.is_empty() {
        let batch = client.ask_all(&format!("FETCH topic-{worker} COUNT 100 LEASE 600000"));
        assert_ne!(batch, "(nil)", "published and lost: {missing:?}");
        for word in batch.split_whitespace() {
            missing.remove(&word.to_owned());
        }
    }
}

fn addresses(cluster: &Cluster) -> Vec<SocketAddr> {
    (1..=cluster.size()).map(|id| cluster.address(id)).collect()
}

/// Waits until the workers have done some more rounds.
fn let_them_work(progress: &AtomicU64, rounds: u64) {
    let start = progress.load(Ordering::Relaxed);
    poll("the workers go on", || (progress.load(Ordering::Relaxed) >= start + rounds).then_some(()));
}

#[test]
fn nothing_acknowledged_is_lost_when_nodes_are_killed_under_load() {
    let mut cluster = Cluster::start(3);
    let addresses = addresses(&cluster);
    let (over, progress) = (AtomicBool::new(false), AtomicU64::new(0));
    let told: Vec<Acknowledged> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|worker| {
                let (addresses, over, progress) = (&addresses, &over, &progress);
                scope.spawn(move || work(addresses, worker, over, progress))
            })
            .collect();
        let crashes = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            crash_by_turns(&mut cluster, &progress);
        }));
        over.store(true, Ordering::Relaxed);
        let told = workers.into_iter().map(|worker| worker.join().expect("a worker ends well")).collect();
        crashes.expect("the nodes come back");
        told
    });
    for (worker, told) in told.iter().enumerate() {
        assert!(told.incremented > 20 && told.tokens.len() > 20, "the test has tested something");
        check(&cluster, worker, told);
    }
    let highest = told.iter().flat_map(|told| &told.tokens).max().expect("tokens were granted");
    let next: u64 = cluster.client(1).ask("LOCK another").parse().expect("a token");
    assert!(next > *highest, "tokens rise over all restarts and all locks");
}

fn crash_by_turns(cluster: &mut Cluster, progress: &AtomicU64) {
    let_them_work(progress, 60);
    let leader = cluster.leader(1);
    let follower = leader % 3 + 1;
    cluster.kill(follower);
    let_them_work(progress, 60);
    cluster.spawn(follower);
    cluster.wait_ready(follower);
    let_them_work(progress, 60);
    let leader = cluster.leader(follower);
    cluster.kill(leader);
    let_them_work(progress, 60);
    cluster.spawn(leader);
    cluster.wait_ready(leader);
    let_them_work(progress, 60);
    for _ in 0..2 {
        (1..=3).for_each(|id| cluster.signal(id, Signal::KILL));
        (1..=3).for_each(|id| assert_eq!(cluster.wait_exit(id), None));
        (1..=3).for_each(|id| cluster.spawn(id));
        (1..=3).for_each(|id| cluster.wait_ready(id));
        let_them_work(progress, 60);
    }
}

/// A leader that stands still is replaced within a bounded time; awake again, it follows and knows nothing
/// better.
#[test]
fn a_frozen_leader_is_replaced_and_never_answers_from_the_past() {
    let mut cluster = Cluster::start(3);
    let frozen = cluster.leader(1);
    let other = frozen % 3 + 1;
    let mut client = cluster.client(other);
    let keys: Vec<String> = (0..24).map(|n| format!("key-{n}")).collect();
    for key in &keys {
        assert_eq!(client.ask(&format!("SET {key} old")), "OK");
    }
    let mut sleepers: Vec<Client> = keys.iter().map(|_| cluster.client(frozen)).collect();
    for sleeper in &mut sleepers {
        assert_eq!(sleeper.ask("PING"), "PONG");
    }
    cluster.signal(frozen, Signal::STOP);
    let stopped = millis();
    for key in &keys {
        poll("the others take over", || (client.ask(&format!("SET {key} new")) == "OK").then_some(()));
    }
    let took = millis() - stopped;
    assert!(took < 10_000, "all partitions and locks were led again after {took} ms");
    assert!(client.ask("LOCK taken OWNER me").parse::<u64>().is_ok());
    // Asked while it is frozen, answered when it wakes up and still takes itself for the leader.
    for (sleeper, key) in sleepers.iter_mut().zip(&keys) {
        sleeper.say(&format!("GET {key}"));
    }
    let mut locker = cluster.client(other);
    cluster.signal(frozen, Signal::CONT);
    for (sleeper, key) in sleepers.iter_mut().zip(&keys) {
        let answer = sleeper.line();
        assert!(answer == "new" || answer.starts_with("-CLUSTERDOWN"), "{key}: {answer}");
    }
    assert_eq!(locker.ask("LOCK taken OWNER somebody-else"), "(nil)");
    poll("it follows", || {
        let status = cluster.client(frozen).ask_all("STATUS");
        let leader = cluster.leader(frozen);
        (leader == cluster.leader(other) && (status.contains("role: follower") || leader == frozen))
            .then_some(())
    });
    poll("it serves again", || (cluster.client(frozen).ask("GET key-0") == "new").then_some(()));
}

#[test]
fn who_waits_goes_on_waiting_when_the_leader_is_killed() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader(1);
    let (near, far) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    let mut holder = cluster.client(near);
    let held: u64 = holder.ask("LOCK db OWNER holder TTL 600000").parse().expect("a token");
    let mut waiter = cluster.client(far);
    waiter.say("LOCK db OWNER waiter WAIT 600000");
    // The waiting FETCH is on a topic that the killed node leads too.
    let led = |topic: &String| cluster_leads(&cluster, near, topic, leader);
    let topic = (0..).map(|n| format!("t{n}")).find(led).expect("it leads a third of them");
    let mut consumer = cluster.client(far);
    consumer.say(&format!("FETCH {topic} BLOCK 600000"));
    let waiting = |line: &str, client: &mut Client| client.ask_all(line).contains("waiting: 1");
    let mut look = cluster.client(near);
    poll("both wait", || {
        (waiting("LOCKINFO db", &mut look) && waiting(&format!("QINFO {topic}"), &mut look)).then_some(())
    });
    cluster.kill(leader);
    poll("another leader", || (cluster.leader(near) != leader).then_some(()));
    poll("the lock is released", || {
        (holder.ask(&format!("UNLOCK db OWNER holder TOKEN {held}")) == "1").then_some(())
    });
    let token: u64 = waiter.line().parse().expect("the waiter is granted the lock");
    assert!(token > held);
    let id =
        poll("a message is published", || look.ask(&format!("PUB {topic} late ID once")).parse::<u64>().ok());
    assert_eq!(consumer.line(), format!("1) {id} 1 late"));
}

/// Whether a node leads the partition of a topic, as another one sees it.
fn cluster_leads(cluster: &Cluster, seen_by: usize, topic: &str, node: usize) -> bool {
    let partition = partition_of_topic(topic.as_bytes(), 16).0;
    let partitions = cluster.client(seen_by).ask_all("PARTITIONS");
    let row = partitions.split("partition: ").find(|row| row.starts_with(&format!("{partition}\n")));
    row.is_some_and(|row| row.contains(&format!("leader: {node}\n")))
}

#[test]
fn a_node_that_is_told_to_stop_answers_first_and_frees_its_locks() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader(1);
    let mut holder = cluster.client(leader);
    assert!(holder.ask("LOCK mine").parse::<u64>().is_ok());
    let mut busy = cluster.client(leader);
    for n in 0..300 {
        busy.say(&format!("SET drained-{n} {n}"));
    }
    assert_eq!(busy.line(), "OK");
    let stopped = millis();
    cluster.signal(leader, Signal::TERM);
    let mut answered = 1;
    while let Some(line) = busy.try_line() {
        assert_eq!(line, "OK", "what was asked before is answered");
        answered += 1;
    }
    assert_eq!(cluster.wait_exit(leader), Some(0));
    assert!(millis() - stopped < 8000, "it does not take its time");
    let log = cluster.log(leader);
    assert!(log.contains(&format!("node {leader} stops")) && !log.contains("panicked"), "{log}");
    let mut client = cluster.client(leader % 3 + 1);
    poll("the lock is free", || client.ask("LOCK mine").parse::<u64>().ok());
    assert!(millis() - stopped < 8000, "its session's lease of 10 s need not run out");
    for n in 0..answered {
        assert_eq!(client.ask(&format!("GET drained-{n}")), n.to_string());
    }
    cluster.spawn(leader);
    cluster.wait_ready(leader);
    assert_eq!(cluster.client(leader).ask("GET drained-0"), "0");
}

/// `quorate-server` alone: one node, durable.
#[test]
fn a_single_node_keeps_everything_over_kill_9() {
    let scratch = Scratch::new();
    let [client_port, peer_port, admin_port] = free_ports();
    let address = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    let mut last_token = 0;
    for round in 1..=4 {
        let mut node = Command::new(binary())
            .args(["--listen", &address(client_port).to_string(), "--peer-listen"])
            .args([&address(peer_port).to_string(), "--admin-listen", &address(admin_port).to_string()])
            .arg("--data-dir")
            .arg(scratch.path().join("data"))
            .arg("--end-with-stdin")
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        let mut client = poll("it listens", || Client::try_new(address(client_port)));
        poll("it leads", || (client.ask("EXISTS x") == "0").then_some(()));
        for before in 1..round {
            assert_eq!(client.ask(&format!("GET key-{before}")), format!("value-{before}"));
        }
        assert_eq!(
            client.ask("GET counter"),
            if round == 1 { "(nil)".into() } else { format!("{}", 20 * (round - 1)) }
        );
        assert_eq!(client.ask(&format!("SET key-{round} value-{round}")), "OK");
        let mut pipeline = Client::try_new(address(client_port)).expect("it listens");
        for _ in 0..20 {
            pipeline.say("INCR counter");
        }
        for n in 1..=20 {
            assert_eq!(pipeline.line(), (20 * (round - 1) + n).to_string());
        }
        let token: u64 = poll("a token", || {
            client.ask(&format!("LOCK lock OWNER {round}")).parse().ok().or_else(|| {
                assert!(round > 1, "nobody else holds it");
                client.ask(&format!("UNLOCK lock OWNER {}", round - 1));
                None
            })
        });
        assert!(token > last_token, "tokens rise over restarts: {last_token}, {token}");
        last_token = token;
        assert!(client.ask(&format!("PUB jobs job-{round}")).parse::<u64>().is_ok());
        kill_process(Pid::from_child(&node), Signal::KILL).expect("the process is ours");
        node.wait().expect("the process is ours");
    }
}

/// Whoever is told to stop hands its groups over first, so that nobody waits for an election.
#[test]
fn a_leader_that_is_told_to_stop_hands_its_groups_over() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader(1);
    assert!(cluster.log(leader).contains("this node leads groups"));
    assert_eq!(cluster.stop(leader), Some(0));
    let log = cluster.log(leader);
    let last = log.lines().rfind(|line| line.contains("this node leads")).expect("it has led");
    assert!(last.contains("leads no group"), "{log}");
    let other = leader % 3 + 1;
    assert_eq!(cluster.client(other).ask("LOCK db").parse::<u64>().map(drop), Ok(()));
}
