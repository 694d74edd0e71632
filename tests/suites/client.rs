//! The Rust client against real clusters: typed calls, pipelining, and one effect for each call whatever
//! breaks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use quorate_client::reply::{Code, Reply};
use quorate_client::{Client, Error, Fetch, Lock, Options, Publish, Set, Subscribe, TopicSettings, Ttl};
use quorate_tests::process::{Cluster, poll};
use tokio::task::JoinSet;

/// Addresses of all nodes, beginning with one.
fn addresses(cluster: &Cluster, first: usize) -> Vec<String> {
    (0..3).map(|n| cluster.address((first - 1 + n) % 3 + 1).to_string()).collect()
}

/// A client that outlasts elections on a busy machine.
async fn patient(cluster: &Cluster, first: usize) -> Client {
    let minute = Duration::from_secs(60);
    let options = Options { timeout: Some(minute), retry: minute, connect: minute, ..Options::default() };
    Client::connect_with(addresses(cluster, first), options).await.expect("a node serves")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_and_the_cluster_in_types() {
    let cluster = Cluster::start(3);
    let client = patient(&cluster, 2).await;
    assert_eq!(client.get("k").await, Ok(None));
    assert_eq!(client.set("k", "1", Set::default().if_present()).await, Ok(false));
    assert_eq!(client.set("k", "1", Set::default().if_absent()).await, Ok(true));
    assert_eq!(client.incr("k", 41).await, Ok(42));
    assert_eq!(client.swap("k", "x", Set::default()).await, Ok(Some("42".into())));
    assert_eq!(client.ttl("k").await, Ok(Ttl::Forever));
    assert_eq!(client.expire("k", Duration::from_secs(100)).await, Ok(true));
    assert!(matches!(client.ttl("k").await, Ok(Ttl::Left(left)) if left > Duration::from_secs(50)));
    assert_eq!(client.set("k", "y", Set::default().keep_ttl()).await, Ok(true));
    assert!(matches!(client.ttl("k").await, Ok(Ttl::Left(_))));
    assert_eq!(client.set("new", "z", Set::default().if_version(0)).await, Ok(true));
    assert_eq!(client.set("new", "z", Set::default().if_version(0)).await, Ok(false));
    assert_eq!(client.exists(["k", "new", "none"]).await, Ok(2));
    assert_eq!(client.del(["k", "new", "none"]).await, Ok(2));
    assert_eq!(client.ttl("k").await, Ok(Ttl::Absent));
    client.set("word", "abc", Set::default()).await.expect("a value");
    assert!(
        matches!(client.incr("word", 1).await, Err(Error::Refused(failure)) if failure.code == Code::Err)
    );
    let big = vec![7; 4 << 20];
    assert_eq!(client.set("big", big.clone(), Set::default()).await, Ok(true));
    assert_eq!(client.get("big").await.expect("a value").as_deref(), Some(&big[..]));

    let status = client.status().await.expect("a status");
    assert_eq!((status.node, status.has_session, status.groups.len()), (2, true, 17));
    let (leader, address) = client.leader().await.expect("an answer").expect("a leader");
    let members = client.members().await.expect("members");
    assert_eq!(members.len(), 3);
    assert!(members.iter().any(|member| member.node == leader && member.client == address));
    assert_eq!(client.partitions().await.expect("partitions").len(), 16);
    assert_eq!(client.call(["set", "k", "v", "PX", "100000"]).await, Ok(Reply::OK));
    assert_eq!(client.call(["ECHO", "hello"]).await, Ok(Reply::text("hello")));
    assert!(matches!(client.call(["NONSENSE"]).await, Err(Error::Refused(_))));
    assert!(matches!(client.call(["SUB", "t"]).await, Err(Error::Usage(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_back_is_answered_by_the_clients_node_and_read_everywhere() {
    let cluster = Cluster::start(3);
    let (one, two) = (patient(&cluster, 1).await, patient(&cluster, 2).await);
    let absorbed = |text: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix("absorbed: ").map(str::to_owned));
        line.and_then(|figure| figure.parse::<u64>().ok()).expect("STATUS has it")
    };
    let mut status = cluster.client(1);
    let mut value = 0;
    for typed in [true, false] {
        let before = absorbed(&status.ask_all("STATUS"));
        while absorbed(&status.ask_all("STATUS")) < before + 10 {
            value += 1;
            assert!(value < 10_000, "the node answers nothing by itself");
            let text = value.to_string();
            if typed {
                assert_eq!(one.set("k", text, Set::default().write_back()).await, Ok(true));
            } else {
                let words = ["SET", "k", &text, "WRITEBACK"].map(str::to_owned);
                assert_eq!(one.call(words).await, Ok(Reply::OK));
            }
        }
        assert_eq!(two.get("k").await, Ok(Some(value.to_string().into())));
    }
    let minute = Duration::from_secs(60);
    assert_eq!(one.set("t", "v", Set::default().write_back().expires_in(minute)).await, Ok(true));
    assert!(matches!(two.ttl("t").await, Ok(Ttl::Left(_))));
    let both = one.set("k", "v", Set::default().write_back().if_version(1)).await;
    assert!(matches!(both, Err(Error::Refused(failure)) if failure.text.contains("IFVER")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_former_holder_overwrites_nothing() {
    let cluster = Cluster::start(3);
    let (one, two) = (patient(&cluster, 1).await, patient(&cluster, 2).await);
    let fenced = |token| Set::default().fenced("db", token);
    let held = one.lock("db", Lock::owned_by("a")).await.expect("an answer").expect("it is free");
    let first = held.token();
    assert_eq!(two.set("k", "a", fenced(first)).await, Ok(true));
    held.unlock().await.expect("an answer");
    let held = two.lock("db", Lock::owned_by("b")).await.expect("an answer").expect("it is free");
    let late = one.set("k", "late", fenced(first)).await;
    assert!(matches!(late, Err(Error::Refused(failure)) if failure.code == Code::Fenced));
    assert_eq!(one.set("k", "b", fenced(held.token()).if_present()).await, Ok(true));
    assert_eq!(two.get("k").await, Ok(Some("b".into())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_wait_in_line_and_hold_nobody_up() {
    let cluster = Cluster::start(3);
    let one = patient(&cluster, 1).await;
    let two = patient(&cluster, 2).await;
    let minute = Duration::from_secs(60);
    let held = one.lock("db", Lock::owned_by("a").ttl(minute)).await.expect("an answer").expect("it is free");
    assert!(two.lock("db", Lock::owned_by("b")).await.expect("an answer").is_none(), "it is held");
    let next = {
        let two = two.clone();
        tokio::spawn(async move { two.lock("db", Lock::owned_by("b").wait(minute)).await })
    };
    while one.lock_info("db").await.expect("an answer").waiters.is_empty() {
        tokio::task::yield_now().await;
    }
    // More than the session's window, while the lock waits on the same connection.
    for n in 0..1500 {
        assert_eq!(two.incr("n", 1).await, Ok(n + 1));
    }
    let info = one.lock_info("db").await.expect("an answer");
    assert_eq!(info.holders[0].owner, "a");
    assert_eq!(info.holders[0].token, held.token());
    assert_eq!(info.waiters[0].owner, "b");
    let refused = one.lock("db", Lock::owned_by("b").shared().wait(Duration::ZERO)).await;
    assert!(matches!(refused, Ok(None)));
    assert!(held.renew(minute).await.expect("an answer").is_some_and(|left| left > minute / 2));
    let first = held.token();
    assert_eq!(held.unlock().await, Ok(true));
    let granted = next.await.expect("it ran").expect("an answer").expect("it was granted");
    assert!(granted.token() > first);
    assert_eq!(two.unlock("db", "b", first).await, Ok(false), "another token");
    assert!(matches!(one.unlock("db", "a", first).await, Err(Error::Refused(f)) if f.code == Code::NotOwner));
    assert_eq!(granted.unlock().await, Ok(true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cycle_is_refused_and_a_lock_of_the_connection_goes_with_it() {
    let mut cluster = Cluster::start(3);
    let one = patient(&cluster, 1).await;
    let minute = Duration::from_secs(60);
    let a = one.lock("a", Lock::owned_by("x")).await.expect("an answer").expect("free");
    let b = one.lock("b", Lock::owned_by("y")).await.expect("an answer").expect("free");
    let waits = {
        let one = one.clone();
        tokio::spawn(async move { one.lock("b", Lock::owned_by("x").wait(minute)).await })
    };
    while one.lock_info("b").await.expect("an answer").waiters.is_empty() {
        tokio::task::yield_now().await;
    }
    let refused = one.lock("a", Lock::owned_by("y").wait(minute)).await;
    assert!(matches!(refused, Err(Error::Refused(failure)) if failure.code == Code::Deadlock));
    assert_eq!(b.unlock().await, Ok(true));
    assert!(waits.await.expect("it ran").expect("an answer").is_some());
    let _ = a.unlock().await;

    let mine = one.lock("mine", Lock::owned_by_connection()).await.expect("an answer").expect("free");
    let before = one.connections();
    cluster.kill(1);
    let other = patient(&cluster, 2).await;
    let theirs = other.lock("mine", Lock::owned_by("z").wait(minute)).await.expect("an answer");
    assert!(theirs.is_some_and(|theirs| theirs.token() > mine.token()), "it went with its node's session");
    assert_eq!(one.get("k").await, Ok(None), "the client goes on with another node");
    assert!(one.connections() > before);
    assert!(matches!(mine.unlock().await, Err(Error::Refused(failure)) if failure.code == Code::NotOwner));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_writes_at_once() {
    let cluster = Cluster::start(3);
    let client = patient(&cluster, 3).await;
    let mut sets = JoinSet::new();
    for n in 0..1000 {
        let client = client.clone();
        sets.spawn(async move { client.set(format!("k{n}"), format!("v{n}"), Set::default()).await });
    }
    assert!(sets.join_all().await.into_iter().all(|result| result == Ok(true)));
    let mut gets = JoinSet::new();
    for n in 0..1000 {
        let client = client.clone();
        gets.spawn(async move { (n, client.get(format!("k{n}")).await) });
    }
    for (n, value) in gets.join_all().await {
        assert_eq!(value, Ok(Some(format!("v{n}").into())));
    }
    assert_eq!(client.connections(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_values_by_the_hundred_cut_neither_clients_nor_links() {
    let cluster = Cluster::start(3);
    let client = patient(&cluster, 3).await;
    assert_eq!(client.set("big", vec![1; 1 << 20], Set::default()).await, Ok(true));
    // Through every node: one leads, the others hear the answers over their links.
    let mut large = JoinSet::new();
    for n in 0..6 {
        let client = patient(&cluster, n % 3 + 1).await;
        for _ in 0..50 {
            let client = client.clone();
            large.spawn(async move { client.get("big").await.map(|value| value.map(|value| value.len())) });
        }
    }
    assert!(large.join_all().await.into_iter().all(|length| length == Ok(Some(1 << 20))));
    let mut written = JoinSet::new();
    for n in 0..9 {
        let client = patient(&cluster, n % 3 + 1).await;
        for m in 0..8 {
            let client = client.clone();
            written
                .spawn(async move { client.set(format!("{n}.{m}"), vec![2; 3 << 20], Set::default()).await });
        }
    }
    assert!(written.join_all().await.into_iter().all(|result| result == Ok(true)));
    assert!(!cluster.logs().contains("is closed"), "{}", cluster.logs());
    let mut large = JoinSet::new();
    for _ in 0..200 {
        let client = client.clone();
        large.spawn(async move { client.get("big").await.map(|value| value.map(|value| value.len())) });
    }
    assert!(large.join_all().await.into_iter().all(|length| length == Ok(Some(1 << 20))));
    assert_eq!(client.connections(), 1, "nobody was cut");
}

/// Adds 1 again and again in eight tasks until told to stop; counts what succeeded.
fn count_up(client: &Client, done: &Arc<AtomicI64>, stop: &Arc<AtomicBool>) -> JoinSet<Vec<Error>> {
    let mut tasks = JoinSet::new();
    for _ in 0..8 {
        let (client, done, stop) = (client.clone(), Arc::clone(done), Arc::clone(stop));
        tasks.spawn(async move {
            let mut errors = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                match client.incr("counter", 1).await {
                    Ok(_) => drop(done.fetch_add(1, Ordering::Relaxed)),
                    Err(error) => errors.push(error),
                }
            }
            errors
        });
    }
    tasks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_counter_counts_every_call_once_whatever_node_is_killed() {
    let mut cluster = Cluster::start(3);
    let client = patient(&cluster, 1).await;
    let (done, stop) = (Arc::<AtomicI64>::default(), Arc::<AtomicBool>::default());
    let tasks = count_up(&client, &done, &stop);
    let until = |more: i64| {
        let goal = done.load(Ordering::Relaxed) + more;
        poll("calls succeed", || (done.load(Ordering::Relaxed) >= goal).then_some(()));
    };
    until(200);
    for _ in 0..3 {
        let node = usize::try_from(client.status().await.expect("a status").node).expect("a small number");
        let before = client.connections();
        cluster.kill(node);
        poll("another connection", || (client.connections() > before).then_some(()));
        until(200);
        cluster.spawn(node);
        cluster.wait_ready(node);
    }
    stop.store(true, Ordering::Relaxed);
    let errors: Vec<Error> = tasks.join_all().await.into_iter().flatten().collect();
    assert_eq!(errors, [], "the session outlasts every crash");
    let counter = client.get("counter").await.expect("an answer").expect("it was counted");
    assert_eq!(counter, done.load(Ordering::Relaxed).to_string(), "each success counts once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_are_fetched_settled_and_rejected() {
    let cluster = Cluster::start(3);
    let client = patient(&cluster, 1).await;
    let minute = Duration::from_secs(60);
    assert_eq!(client.fetch("jobs", Fetch::default()).await, Ok(Vec::new()));
    let first = client.publish("jobs", "one", Publish::default().id("1")).await.expect("an id");
    assert_eq!(client.publish("jobs", "one", Publish::default().id("1")).await, Ok(first));
    let second = client.publish("jobs", "two", Publish::default()).await.expect("an id");
    client.publish("jobs", "late", Publish::default().delay(minute)).await.expect("an id");
    let fetched = client.fetch("jobs", Fetch::default().count(10).lease(minute)).await.expect("messages");
    assert_eq!(fetched.iter().map(|m| (m.id, m.attempt)).collect::<Vec<_>>(), [(first, 1), (second, 1)]);
    assert_eq!(fetched[0].body, "one");
    let info = client.topic_info("jobs").await.expect("an answer").expect("a topic");
    assert_eq!((info.ready, info.delayed, info.unacknowledged), (0, 1, 2));
    assert_eq!(client.ack(&fetched[0]).await, Ok(true));
    assert_eq!(client.ack(&fetched[0]).await, Ok(false), "it is gone");
    assert_eq!(client.nack(&fetched[1], Duration::ZERO).await, Ok(true));
    let again = client.fetch("jobs", Fetch::default().block(minute)).await.expect("messages");
    assert_eq!((again[0].id, again[0].attempt), (second, 2));
    assert_eq!(client.ack(&fetched[1]).await, Ok(false), "the first delivery is stale");
    assert_eq!(client.reject(&again[0]).await, Ok(true));
    let dead = client.fetch("jobs.dlq", Fetch::default()).await.expect("messages");
    assert_eq!(dead[0].body, "two");
    assert_eq!(client.ack_all(&dead[0].topic, &dead).await, Ok(1));
    client
        .set_topic("jobs", TopicSettings::default().lease(minute).max_deliver(3).dead_letters("lost"))
        .await
        .expect("OK");
    let info = client.topic_info("jobs").await.expect("an answer").expect("a topic");
    assert_eq!((info.lease, info.max_deliver, info.leaving), (minute, 3, 0));
    assert_eq!(info.dead_letters.as_deref(), Some(&b"lost"[..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_goes_on_after_its_node_is_killed() {
    let mut cluster = Cluster::start(3);
    let publisher = patient(&cluster, 2).await;
    let consumer = patient(&cluster, 1).await;
    let mut jobs = consumer.subscribe("jobs", Subscribe::default().prefetch(4)).await.expect("subscribed");
    assert!(matches!(consumer.subscribe("jobs", Subscribe::default()).await, Err(Error::Usage(_))));
    let mut ids = Vec::new();
    for n in 0..20 {
        ids.push(publisher.publish("jobs", format!("{n}"), Publish::default()).await.expect("an id"));
    }
    let mut settled = Vec::new();
    for _ in 0..10 {
        let job = jobs.next().await.expect("a message");
        assert_eq!(job.attempt, 1);
        assert_eq!(consumer.ack(&job).await, Ok(true));
        settled.push(job.id);
    }
    cluster.kill(1);
    while settled.len() < 20 {
        let job = jobs.next().await.expect("a message");
        if consumer.ack(&job).await.expect("an answer") {
            settled.push(job.id);
        }
    }
    settled.sort_unstable();
    ids.sort_unstable();
    assert_eq!(settled, ids, "every message is settled once");
    for n in 0..6 {
        publisher.publish("jobs", format!("more {n}"), Publish::default()).await.expect("an id");
    }
    let job = jobs.next().await.expect("a message");
    assert_eq!(consumer.ack(&job).await, Ok(true));
    jobs.close().await.expect("it ends");
    let rest = publisher.fetch("jobs", Fetch::default().count(10).block(Duration::from_secs(60))).await;
    assert!(!rest.expect("messages").is_empty(), "what was not taken comes back at once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_client_and_absent_nodes_are_clear_errors() {
    let cluster = Cluster::start(1);
    let client = Client::connect([cluster.address(1).to_string()]).await.expect("a node serves");
    let kept = client.clone();
    client.close();
    assert_eq!(kept.get("k").await, Err(Error::Closed));
    let options = Options { connect: Duration::from_millis(300), ..Options::default() };
    let nobody = Client::connect_with(["127.0.0.1:1"], options).await;
    assert!(matches!(nobody, Err(Error::Unreachable(why)) if why.contains("127.0.0.1:1")));
    assert!(matches!(Client::connect::<String>([]).await, Err(Error::Usage(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_missed_much_catches_up() {
    let mut cluster = Cluster::start(3);
    let client = patient(&cluster, 1).await;
    cluster.kill(3);
    for n in 0..40 {
        let key = format!("{{one}}{}", n % 4);
        assert_eq!(client.set(key, vec![n; 4 << 20], Set::default()).await, Ok(true));
    }
    cluster.spawn(3);
    cluster.wait_ready(3);
    let third = Client::connect([cluster.address(3).to_string()]).await.expect("it serves");
    let progress = async |client: &Client| {
        let groups = client.status().await.expect("a status").groups;
        groups.into_iter().map(|group| group.applied).sum::<u64>()
    };
    let goal = progress(&client).await;
    while progress(&third).await < goal {
        tokio::task::yield_now().await;
    }
    assert!(!cluster.logs().contains("over the limit"), "{}", cluster.logs());
}
