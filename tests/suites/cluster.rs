//! What the contract says of three nodes: any of them serves any command, with one and the same outcome.

use std::collections::BTreeMap;

use quorate_tests::process::{Client, Cluster, millis, poll};
use rustix::process::Signal;

/// How a first line is compared with what is expected: whole, or by its beginning if that ends with `…`.
fn fits(line: &str, expected: &str) -> bool {
    expected.strip_suffix('…').map_or(line == expected, |start| line.starts_with(start))
}

fn talk(client: &mut Client, script: &[(&str, &str)], me: usize) {
    for (line, expected) in script {
        let line = line.replace('@', &me.to_string());
        let answer = client.ask_all(&line);
        let first = answer.lines().next().unwrap_or_default();
        assert!(fits(first, &expected.replace('@', &me.to_string())), "{line}: {answer}");
    }
}

const KEYS: &[(&str, &str)] = &[
    ("GET key-@", "(nil)"),
    ("SET key-@ one", "OK"),
    ("GET key-@", "one"),
    ("SET key-@ two NX", "(nil)"),
    ("SET key-@ two XX GET", "one"),
    ("SET other-@ x XX", "(nil)"),
    ("SET other-@ x IFVER 0", "OK"),
    ("SET other-@ y IFVER 0", "(nil)"),
    ("EXISTS key-@ other-@ nothing-@", "2"),
    ("TTL key-@", "-1"),
    ("TTL nothing-@", "-2"),
    ("EXPIRE nothing-@ 10", "0"),
    ("EXPIRE key-@ 1000", "1"),
    ("TTL key-@", "1000"),
    ("PEXPIRE key-@ 995000", "1"),
    ("SET key-@ three KEEPTTL", "OK"),
    ("PTTL key-@", "99…"),
    ("PEXPIRE key-@ 2000000", "1"),
    ("TTL key-@", "2000"),
    ("SET key-@ four", "OK"),
    ("TTL key-@", "-1"),
    ("SET gone-@ x PX 1", "OK"),
    ("SET late-@ x EX 100", "OK"),
    ("TTL late-@", "100"),
    ("INCR number-@", "1"),
    ("INCRBY number-@ 41", "42"),
    ("DECR number-@", "41"),
    ("DECRBY number-@ 40", "1"),
    ("INCR key-@", "-ERR value is not an integer or out of range"),
    ("GET key-@", "four"),
    ("DEL key-@ nothing-@ number-@", "2"),
    ("UNLINK other-@", "1"),
    ("EXISTS key-@ other-@", "0"),
];

const LOCKS: &[(&str, &str)] = &[
    ("LOCK lock-@ OWNER b WAIT 0", "(nil)"),
    ("RENEW lock-@ OWNER b", "(nil)"),
    ("UNLOCK lock-@ OWNER b", "-NOTOWNER…"),
    ("UNLOCK lock-@ OWNER a TOKEN 999999", "0"),
    ("RENEW lock-@ OWNER a TTL 60000", "60000"),
    ("LOCKINFO lock-@", "name: lock-@"),
    ("UNLOCK lock-@ OWNER a", "1"),
    ("UNLOCK lock-@ OWNER a", "0"),
    ("LOCKINFO nobody-@", "name: nobody-@"),
    ("RENEW lock-@", "(nil)"),
];

const NODE: &[(&str, &str)] = &[
    ("PING", "PONG"),
    ("ping hello", "hello"),
    ("ECHO \"a b\"", "a b"),
    ("SELECT 0", "OK"),
    ("SELECT 1", "-ERR DB index is out of range…"),
    ("STATUS", "node: @"),
    ("CLIENT SETNAME me-@", "OK"),
    ("CLIENT GETNAME", "me-@"),
    ("CONFIG GET appendonly", "appendonly: yes"),
    ("INFO server", "# Server"),
    ("COMMAND INFO get", "1)…"),
    ("HELP LOCK", "1) LOCK name [SHARED]…"),
    ("nonsense a b", "-ERR unknown command 'nonsense', with args beginning with: 'a' 'b' "),
    ("GET", "-ERR wrong number of arguments for 'get' command; usage: GET key"),
    ("SET a b SOON", "-ERR syntax error: 'SOON' is not an option here…"),
    ("SET a b NX XX", "-ERR syntax error: NX, XX and IFVER exclude each other…"),
    ("SET a b EX 0", "-ERR invalid expire time in 'set' command"),
    ("SET a b EX soon", "-ERR value is not an integer or out of range"),
    ("LOCK a SLOTS 3", "-ERR…"),
    ("LOCK a TTL -1", "-ERR…"),
    ("PEEK t", "-ERR PEEK is not built yet…"),
    ("FETCH jobs GROUP g", "-ERR…"),
    ("AUTH secret", "-ERR AUTH called without any password configured…"),
    ("CLIENT MAINT_NOTIFICATIONS ON", "-ERR unknown subcommand…"),
];

#[test]
fn every_node_serves_every_verb() {
    let cluster = Cluster::start(3);
    let mut tokens = Vec::new();
    for me in 1..=3 {
        let mut client = cluster.client(me);
        talk(&mut client, KEYS, me);
        let first: u64 = client.ask(&format!("LOCK lock-{me} OWNER a TTL 50000")).parse().expect("a token");
        let again: u64 = client.ask(&format!("LOCK lock-{me} OWNER a")).parse().expect("a token");
        assert_eq!(first, again, "the same owner gets the same token");
        tokens.push(first);
        talk(&mut client, LOCKS, me);
        let shared = |client: &mut Client, owner: &str| {
            client.ask(&format!("LOCK shared-{me} SHARED OWNER {owner}")).parse::<u64>().is_ok()
        };
        assert!(shared(&mut client, "a") && shared(&mut client, "b"), "shared holders do not exclude");
        assert_eq!(client.ask(&format!("LOCK shared-{me} OWNER c")), "(nil)");
        talk(&mut client, NODE, me);
        poll("a key with a deadline vanishes", || {
            (client.ask(&format!("GET gone-{me}")) == "(nil)").then_some(())
        });
        assert_eq!(client.ask_all("MEMBERS").matches("node: ").count(), 3);
        assert_eq!(client.ask_all("PARTITIONS").matches("replicas:").count(), 16);
        assert_eq!(client.ask("QUIT"), "OK");
        assert!(client.is_closed());
    }
    assert!(tokens.is_sorted_by(|a, b| a < b), "tokens rise, whichever node is asked: {tokens:?}");
}

#[test]
fn every_node_serves_queues() {
    let cluster = Cluster::start(3);
    for me in 1..=3 {
        let mut producer = cluster.client(me);
        let mut consumer = cluster.client(me % 3 + 1);
        let topic = format!("topic-{me}");
        assert_eq!(producer.ask(&format!("QSET {topic} MAXDELIVER 2")), "OK");
        let id = producer.ask(&format!("PUB {topic} hello ID once"));
        assert!(id.parse::<u64>().is_ok(), "{id}");
        assert_eq!(producer.ask(&format!("PUB {topic} hello ID once")), id, "a duplicate is the first");
        let second = producer.ask(&format!("PUB {topic} world"));
        let fetched = consumer.ask_all(&format!("FETCH {topic}"));
        assert!(fetched.contains(&id) && fetched.contains("hello"), "{fetched}");
        assert_eq!(consumer.ask(&format!("NACK {topic} {id}")), "1");
        let again = consumer.ask_all(&format!("FETCH {topic}"));
        assert!(again.contains("hello"), "what comes back stands in front: {again}");
        assert_eq!(consumer.ask(&format!("ACK {topic} {id}@1")), "0", "that delivery is stale");
        assert_eq!(consumer.ask(&format!("NACK {topic} {id}@2")), "1", "the last delivery that is allowed");
        let dead = consumer.ask_all(&format!("FETCH {topic}.dlq BLOCK 5000"));
        assert!(dead.contains("hello"), "{dead}");
        assert!(consumer.ask_all(&format!("FETCH {topic}")).contains("world"));
        assert_eq!(producer.ask(&format!("ACK {topic} {second} {second}")), "1");
        assert_eq!(consumer.ask(&format!("FETCH {topic}")), "(nil)");
        assert!(consumer.ask_all(&format!("QINFO {topic}")).contains("topic"), "it is described");
        assert_eq!(consumer.ask(&format!("SUB {topic}")), "OK");
        producer.ask(&format!("PUB {topic} pushed"));
        let push = poll("a push", || consumer.try_line());
        assert!(push.contains("message") && push.contains(&topic) && push.contains("pushed"), "{push}");
    }
}

/// A GET on any node after SET said OK never returns the older value.
#[test]
fn a_read_anywhere_sees_what_was_written_anywhere() {
    let cluster = Cluster::start(3);
    let mut clients: Vec<Client> = (1..=3).map(|id| cluster.client(id)).collect();
    for round in 0..60 {
        let key = round % 5;
        assert_eq!(clients[round % 3].ask(&format!("SET seen-{key} {round}")), "OK");
        for client in &mut clients {
            assert_eq!(client.ask(&format!("GET seen-{key}")), round.to_string());
        }
    }
}

#[test]
fn what_a_connection_owns_ends_with_it() {
    let mut cluster = Cluster::start(3);
    let mut holder = cluster.client(1);
    let mut other = cluster.client(2);
    assert!(holder.ask("LOCK mine").parse::<u64>().is_ok());
    assert_eq!(other.ask("LOCK mine"), "(nil)");
    other.say("LOCK mine WAIT 30000");
    poll("it waits", || cluster.client(3).ask_all("LOCKINFO mine").contains("conn:2").then_some(()));
    let asked = millis();
    drop(holder);
    assert!(other.line().parse::<u64>().is_ok(), "granted when the holder has gone");
    assert!(millis() - asked < 5000, "at once, not when a lease ends");

    // Whoever waits and goes does not stay in the queue.
    let mut waiter = cluster.client(3);
    waiter.say("LOCK mine WAIT 30000");
    poll("it waits", || cluster.client(3).ask_all("LOCKINFO mine").contains("conn:3").then_some(()));
    drop(waiter);
    poll("it is withdrawn", || {
        cluster.client(3).ask_all("LOCKINFO mine").contains("waiters: (empty)").then_some(())
    });

    // A node that is killed takes the locks of its connections with it, when its session ends.
    let mut doomed = cluster.client(3);
    assert!(doomed.ask("LOCK theirs").parse::<u64>().is_ok());
    let mut third = cluster.client(1);
    assert_eq!(third.ask("LOCK theirs"), "(nil)");
    cluster.kill(3);
    assert!(third.ask("LOCK theirs WAIT 30000").parse::<u64>().is_ok(), "free within the session's lease");
}

#[test]
fn what_was_delivered_to_a_connection_comes_back_when_it_ends() {
    let cluster = Cluster::start(3);
    let mut consumer = cluster.client(1);
    let id = consumer.ask("PUB work something");
    assert!(consumer.ask_all("FETCH work").contains(&id));
    let mut other = cluster.client(2);
    assert_eq!(other.ask("FETCH work"), "(nil)");
    let asked = millis();
    drop(consumer);
    let again = other.ask_all("FETCH work BLOCK 20000");
    assert!(again.contains(&id) && again.contains("something"), "{again}");
    assert!(millis() - asked < 5000, "at once, not when its lease ends");
    assert_eq!(other.ask(&format!("ACK work {id}@2")), "1");
}

#[test]
fn a_minority_refuses_quickly_and_recovers() {
    let mut cluster = Cluster::start(3);
    let mut client = cluster.client(3);
    assert_eq!(client.ask("SET before 1"), "OK");
    for id in [1, 2] {
        cluster.signal(id, Signal::STOP);
    }
    // A leader among the three may need an election timeout to notice; what it took until then is in doubt.
    poll("it knows that it is alone", || client.ask("SET probe 1").starts_with("-CLUSTERDOWN").then_some(()));
    for line in ["SET after 1", "INCR n", "LOCK l", "PUB topic x", "FETCH topic", "DEL before"] {
        let asked = millis();
        let answer = client.ask(line);
        let took = millis() - asked;
        assert!(answer.starts_with("-CLUSTERDOWN") && answer.contains("try again"), "{line}: {answer}");
        assert!(took < 1500, "{line} was refused after {took} ms");
    }
    let read = client.ask("GET before");
    assert!(read.starts_with("-CLUSTERDOWN"), "never stale: {read}");
    assert_eq!(client.ask("LEADER"), "(nil)");
    assert_eq!(client.ask("PING"), "PONG", "the node itself answers");
    for id in [1, 2] {
        cluster.signal(id, Signal::CONT);
    }
    poll("it recovers", || (client.ask("SET probe 2") == "OK").then_some(()));
    assert_eq!(client.ask("GET before"), "1", "what was refused never takes effect");
    assert_eq!(client.ask("GET after"), "(nil)");
    poll("all groups serve", || (0..40).all(|n| client.ask(&format!("SET k{n} x")) == "OK").then_some(()));
}

/// Group, applied index and digest, as a node's STATUS tells them.
fn digests(client: &mut Client) -> Vec<(String, String, String)> {
    let status = client.ask_all("STATUS");
    let field = |name: &'static str| {
        status.lines().filter_map(move |line| Some(line.trim().strip_prefix(name)?.to_owned()))
    };
    field("group: ").zip(field("applied: ")).zip(field("digest: ")).map(|((g, a), d)| (g, a, d)).collect()
}

#[test]
fn replicas_have_equal_digests_at_equal_indexes() {
    let cluster = Cluster::start(3);
    std::thread::scope(|scope| {
        for id in 1..=3 {
            let cluster = &cluster;
            scope.spawn(move || {
                let mut client = cluster.client(id);
                for n in 0..150 {
                    client.ask(&format!("SET key-{} {id}-{n} PX {}", n % 40, 1 + n * 20));
                    client.ask(&format!("INCR number-{}", n % 7));
                    client.ask(&format!("LOCK lock-{} OWNER o{id} TTL 500", n % 5));
                    client.ask(&format!("UNLOCK lock-{} OWNER o{id}", (n + 3) % 5));
                    client.ask(&format!("PUB topic-{} body-{n}", n % 4));
                    client.ask_all(&format!("FETCH topic-{} LEASE 200", n % 4));
                    client.ask(&format!("DEL key-{}", n % 11));
                }
            });
        }
    });
    let mut seen: BTreeMap<(String, String), (String, usize)> = BTreeMap::new();
    let mut clients: Vec<Client> = (1..=3).map(|id| cluster.client(id)).collect();
    poll("all replicas were seen at one index", || {
        let views: Vec<_> = clients.iter_mut().map(digests).collect();
        for (node, view) in views.iter().enumerate() {
            assert_eq!(view.len(), 17, "every node shows its groups: {view:?}");
            for (group, applied, digest) in view {
                let (first, by) =
                    seen.entry((group.clone(), applied.clone())).or_insert((digest.clone(), node));
                assert_eq!(first, digest, "group {group} at {applied}: node {by} and node {node} differ");
            }
        }
        views.iter().all(|view| *view == views[0]).then_some(())
    });
}

/// A lock without OWNER and TTL needs no lease: it is its connection's as long as that lives.
#[test]
fn a_connections_own_lock_has_no_lease_to_renew() {
    let cluster = Cluster::start(1);
    let mut holder = cluster.client(1);
    assert_eq!(holder.ask("LOCK mine"), "1");
    let ttl = |client: &mut Client| {
        let info = client.ask_all("LOCKINFO mine");
        let left = info.split("ttl: ").nth(1).and_then(|rest| rest.lines().next()?.parse::<i64>().ok());
        left.expect("a holder has a ttl")
    };
    assert_eq!(ttl(&mut holder), -1);
    assert_eq!(holder.ask("RENEW mine TTL 5000"), "5000");
    assert!((0..=5000).contains(&ttl(&mut holder)));
    assert_eq!(holder.ask("RENEW mine"), "2592000000");
    assert_eq!(ttl(&mut holder), -1);
}
