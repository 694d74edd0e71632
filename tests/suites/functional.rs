//! The replaced system's functional script, against three real processes.

use std::collections::BTreeSet;

use quorate_protocol::op::partition_of;
use quorate_tests::figures::figure;
use quorate_tests::process::{Client, Cluster, millis, poll};

/// Contention on a lock, and its release when the holder's lease has run out: node logs say so.
#[test]
fn a_timed_out_holder_is_released_and_the_log_says_deadlock_detected() {
    let cluster = Cluster::start(3);
    let mut one = cluster.client(1);
    let mut two = cluster.client(2);
    let first: u64 = one.ask("LOCK resource OWNER client-1 TTL 1500").parse().expect("a fencing token");
    assert_eq!(two.ask("LOCK resource OWNER client-2 TTL 30000"), "(nil)");
    assert!(two.ask_all("LOCKINFO resource").contains("client-1"));
    let second: u64 = two.ask("LOCK resource OWNER client-2 TTL 30000 WAIT 30000").parse().expect("a token");
    assert!(second > first, "tokens rise: {first}, {second}");
    assert_eq!(one.ask(&format!("RENEW resource OWNER client-1 TOKEN {first}")), "(nil)");
    assert!(one.ask(&format!("UNLOCK resource OWNER client-1 TOKEN {first}")).starts_with("-NOTOWNER"));
    let leader = cluster.leader(1);
    poll("the leader's log", || {
        cluster.log(leader).contains("DEADLOCK DETECTED: lease of client-1").then_some(())
    });
    assert_eq!(two.ask(&format!("UNLOCK resource OWNER client-2 TOKEN {second}")), "1");
}

/// Two owners that wait for each other: the second wait is refused and the cycle is named.
#[test]
fn a_cycle_of_waiting_owners_is_refused_and_named() {
    let cluster = Cluster::start(3);
    let mut one = cluster.client(1);
    let mut two = cluster.client(3);
    assert!(one.ask("LOCK a OWNER x").parse::<u64>().is_ok());
    assert!(two.ask("LOCK b OWNER y").parse::<u64>().is_ok());
    one.say("LOCK b OWNER x WAIT 60000");
    poll("x waits", || cluster.client(2).ask_all("LOCKINFO b").contains('x').then_some(()));
    let refusal = two.ask("LOCK a OWNER y WAIT 60000");
    assert!(refusal.starts_with("-DEADLOCK"), "{refusal}");
    assert!(refusal.contains("y:a -> x:b -> y") || refusal.contains("x:b -> y:a -> x"), "{refusal}");
    poll("the log", || cluster.logs().contains("DEADLOCK DETECTED").then_some(()));
    assert_eq!(two.ask("UNLOCK b OWNER y"), "1");
    assert!(one.line().parse::<u64>().is_ok(), "x is granted b");
}

/// A message that is not acknowledged comes back after its lease, 30 s by default.
#[test]
fn an_unacknowledged_message_comes_back_after_thirty_seconds() {
    let cluster = Cluster::start(3);
    let mut producer = cluster.client(1);
    let id = producer.ask("PUB jobs hello");
    assert!(id.parse::<u64>().is_ok(), "{id}");
    let mut consumer = cluster.client(2);
    let first = consumer.ask_all("FETCH jobs");
    assert!(first.contains(&id) && first.contains("hello"), "{first}");
    assert_eq!(cluster.client(3).ask_all("FETCH jobs").trim(), "(nil)");
    let again = cluster.client(3).ask_all("FETCH jobs BLOCK 45000");
    assert!(again.contains(&id) && again.contains("hello"), "{again}");
    assert_eq!(consumer.ask(&format!("ACK jobs {id}@1")), "0", "the first delivery is stale");
    assert_eq!(consumer.ask(&format!("ACK jobs {id}")), "1");
    assert_eq!(consumer.ask(&format!("ACK jobs {id}")), "0");
}

/// A key is written through one node, read on a second and written through a third: the second node's log says that its
/// copy is gone, and it never shows the old value again.
#[test]
fn a_write_elsewhere_invalidates_a_copy_and_the_log_says_so() {
    let cluster = Cluster::start(3);
    let (mut one, mut two, mut three) = (cluster.client(1), cluster.client(2), cluster.client(3));
    let mut round = 0;
    // A node that is slow enough loses its lease before it is told: then there is nothing to tell, and it is tried again.
    poll("node 2's log", || {
        round += 1;
        assert_eq!(one.ask(&format!("SET user:7 Alice-{round}")), "OK");
        assert_eq!(two.ask("GET user:7"), format!("Alice-{round}"));
        if !two.ask_all("CACHEINFO user:7").contains("node: 2\n") {
            return None;
        }
        assert_eq!(three.ask(&format!("SET user:7 Bob-{round}")), "OK");
        assert_eq!(two.ask("GET user:7"), format!("Bob-{round}"));
        cluster.log(2).contains("Received INVAL for user:7. State -> I").then_some(())
    });
    for client in [&mut one, &mut two, &mut three] {
        assert_eq!(client.ask("GET user:7"), format!("Bob-{round}"));
    }
}

/// A node keeps what it has read once, also if nobody asks for it for seconds; and one that nobody asks at all lets it go.
#[test]
fn what_was_read_once_is_still_there_seconds_later_and_goes_when_nobody_reads() {
    let cluster = Cluster::start(3);
    let (mut one, mut two) = (cluster.client(1), cluster.client(2));
    let hits = || figure(&cluster, 2, "quorate_cache_hits_total");
    let holds = |one: &mut Client, key: &str| one.ask_all(&format!("CACHEINFO {key}")).contains("node: 2\n");
    // Whether a single read brings a line that is there three seconds later. Each key is the first of its partition.
    let mut is_kept = |key: &str| {
        assert_eq!(one.ask(&format!("SET {key} Alice")), "OK");
        assert_eq!(two.ask(&format!("GET {key}")), "Alice");
        let read = millis();
        let kept = poll("three seconds", || {
            let kept = holds(&mut one, key);
            (!kept || millis() > read + 3000).then_some(kept)
        });
        let before = hits();
        assert_eq!(two.ask(&format!("GET {key}")), "Alice");
        kept && hits() == before + 1
    };
    let mut partitions = BTreeSet::new();
    let first_ones =
        (0..).map(|n| format!("user:{n}")).filter(|key| partitions.insert(partition_of(key.as_bytes(), 16)));
    // A machine that stands still for a lease's length loses it: some more tries.
    let kept = first_ones.take(5).find(|key| is_kept(key)).expect("a key that is kept");
    let read = millis();
    poll("the end of the lease", || (!holds(&mut one, &kept)).then_some(()));
    assert!(millis() < read + 15_000, "nobody has read for ten seconds");
}

/// The probe that finds the leader: every node names the same one, and its address.
#[test]
fn every_node_names_the_leader() {
    let cluster = Cluster::start(3);
    let leader = cluster.leader(1);
    for id in 1..=3 {
        let reply = cluster.client(id).ask_all("LEADER");
        assert_eq!(reply, format!("1) {leader}\n2) {}\n", cluster.address(leader)));
    }
    let partitions = cluster.client(2).ask_all("PARTITIONS");
    assert_eq!(partitions.matches("partition: ").count(), 16, "{partitions}");
}
