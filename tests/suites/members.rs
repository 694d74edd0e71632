//! A cluster that grows from three nodes to five and shrinks to three others, with real processes and under load:
//! what was acknowledged is there in the end, once.
//!
//! Every client counts (INCR) and publishes on whatever node serves. What it was told is held against what is there: a
//! counter is at least what was acknowledged, and at most that and what is in doubt; a message that was acknowledged is in
//! its topic once, and one that is in doubt once at the most.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use quorate_tests::process::{Client, Cluster, poll};

/// Clients, each with a counter and a topic of its own.
const CLIENTS: usize = 4;

/// What one client was told.
#[derive(Default)]
struct Told {
    counted: u64,
    count_in_doubt: u64,
    published: Vec<String>,
    publish_in_doubt: Vec<String>,
}

/// What all clients know.
struct Load {
    /// Client ports of the nodes that serve now.
    places: Mutex<Vec<std::net::SocketAddr>>,
    over: AtomicBool,
    /// Rounds of all clients in which everything was acknowledged.
    rounds: AtomicU64,
}

impl Load {
    fn place(&self, turn: usize) -> std::net::SocketAddr {
        let places = self.places.lock().expect("nobody panics with it");
        places[turn % places.len()]
    }

    /// Waits until clients got on by this many rounds.
    fn goes_on(&self, by: u64) {
        let before = self.rounds.load(Ordering::Relaxed);
        poll("the clients get on", || (self.rounds.load(Ordering::Relaxed) > before + by).then_some(()));
    }

    fn client(&self, number: usize) -> Told {
        let (mut told, mut turn) = (Told::default(), number);
        while !self.over.load(Ordering::Relaxed) {
            let Some(mut client) = Client::try_new(self.place(turn)) else {
                turn += 1;
                continue;
            };
            // A few rounds, then the next node.
            for _ in 0..20 {
                if !self.round(&mut client, number, &mut told) {
                    break;
                }
                // Five nodes and their clients share what may be two cores.
                std::thread::park_timeout(Duration::from_millis(3));
            }
            turn += 1;
        }
        told
    }

    /// Counts and publishes; false when it is better to ask another node.
    fn round(&self, client: &mut Client, number: usize, told: &mut Told) -> bool {
        let answer = client.try_first(&format!("INCR counter-{number}")).unwrap_or_default();
        let counted = answer.parse::<u64>().is_ok();
        told.counted += u64::from(counted);
        told.count_in_doubt += u64::from(!counted && !is_refusal(&answer));
        if !counted {
            return false;
        }
        let body = format!("{number}-{}", told.published.len() + told.publish_in_doubt.len() + 1);
        let answer = client.try_first(&format!("PUB topic-{number} {body}")).unwrap_or_default();
        let published = answer.parse::<u64>().is_ok();
        if published {
            told.published.push(body);
            self.rounds.fetch_add(1, Ordering::Relaxed);
        } else if !is_refusal(&answer) {
            told.publish_in_doubt.push(body);
        }
        published
    }
}

/// Whether the command will never take effect.
fn is_refusal(answer: &str) -> bool {
    ["-TRYAGAIN", "-CLUSTERDOWN", "-LOADING", "-BUSY"].iter().any(|code| answer.starts_with(code))
}

/// Waits until these nodes hold every partition as the members are now, and no other is a member.
fn settled(cluster: &Cluster, nodes: &[usize]) {
    let ask = |command: &str| Client::try_new(cluster.address(nodes[0]))?.try_ask(command);
    poll("the members are these", || {
        let members = ask("MEMBERS")?;
        let present: Vec<usize> = (1..=5).filter(|id| members.contains(&format!("node: {id}\n"))).collect();
        (present == nodes).then_some(())
    });
    poll("all replicas are where they are to be", || {
        let text = ask("PARTITIONS")?;
        let rows: Vec<&str> = text.split("partition: ").skip(1).collect();
        let moved = rows.iter().all(|row| {
            let of = |name: &str| list(row, name);
            of("replicas:") == of("target:") && of("replicas:").len() == 3
        });
        (rows.len() == 16 && moved).then_some(())
    });
}

/// The numbers behind a name in a row that is shown in one line.
fn list(row: &str, name: &str) -> Vec<u64> {
    let behind = row.split(name).nth(1).unwrap_or_default();
    let numbers = behind.split_whitespace().take_while(|word| !word.ends_with(':'));
    let mut found: Vec<u64> = numbers.filter_map(|word| word.trim_matches(',').parse().ok()).collect();
    found.sort_unstable();
    found
}

/// Takes everything out of a topic: body → how many times it was there.
fn drain(client: &mut Client, number: usize) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    loop {
        let answer = client.ask_all(&format!("FETCH topic-{number} COUNT 100"));
        let words: Vec<&str> = answer.split_whitespace().collect();
        let bodies = words.iter().filter(|word| word.starts_with(&format!("{number}-")));
        let ids: Vec<&str> =
            words.iter().filter(|word| word.len() > 4 && word.parse::<u64>().is_ok()).copied().collect();
        let before = found.values().sum::<usize>();
        bodies.for_each(|body| *found.entry((*body).to_owned()).or_default() += 1);
        if found.values().sum::<usize>() == before {
            return found;
        }
        assert_eq!(client.ask(&format!("ACK topic-{number} {}", ids.join(" "))), ids.len().to_string());
    }
}

#[test]
fn five_nodes_of_three_and_three_others_of_five_lose_nothing_and_double_nothing() {
    let mut cluster = Cluster::start(3);
    let places = (1..=3).map(|id| cluster.address(id)).collect();
    let load = Load { places: Mutex::new(places), over: AtomicBool::new(false), rounds: AtomicU64::new(0) };
    let told: Vec<Told> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let load = &load;
                scope.spawn(move || load.client(number))
            })
            .collect();
        let story = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| story(&mut cluster, &load)));
        load.over.store(true, Ordering::Relaxed);
        let told = clients.into_iter().map(|client| client.join().expect("it only talks")).collect();
        story.expect("the story ends well");
        told
    });
    let mut client = cluster.client(5);
    for (number, told) in told.iter().enumerate() {
        let counter: u64 = client.ask(&format!("GET counter-{number}")).parse().expect("it was counted");
        let possible = told.counted..=told.counted + told.count_in_doubt;
        assert!(possible.contains(&counter), "counter {number} is {counter}, not in {possible:?}");
        let mut found = drain(&mut client, number);
        for body in &told.published {
            assert_eq!(found.remove(body), Some(1), "{body} was acknowledged");
        }
        for body in &told.publish_in_doubt {
            assert!(found.remove(body).is_none_or(|times| times == 1), "{body} is in doubt");
        }
        assert!(found.is_empty(), "nobody has published {found:?}");
        assert!(told.counted > 100, "client {number} got on: {}", told.counted);
    }
}

/// What a node's admin port answers to those who would send it clients.
fn readyz(cluster: &Cluster, id: usize) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", cluster.admin_port(id))).ok()?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// A removed node sends everybody away, though the log that it has may end before its removal; after a restart, too.
fn knows_that_it_is_removed(cluster: &mut Cluster, id: usize) {
    for again in [false, true] {
        if again {
            cluster.kill(id);
            cluster.spawn(id);
        }
        let word = "this node has been removed from its cluster";
        poll("it is not ready", || {
            let answer = readyz(cluster, id)?;
            (answer.starts_with("HTTP/1.1 503 ") && answer.contains(word)).then_some(())
        });
        let answer = cluster.client(id).ask("SET a b");
        let expected = format!("-CLUSTERDOWN node {id} was removed from the cluster and serves nobody");
        assert!(answer.starts_with(&expected) && answer.contains("use another node"), "{answer}");
    }
    let line = "this node has been removed from its cluster and serves nobody any more";
    assert_eq!(cluster.log(id).matches(line).count(), 2, "once a start");
    // It asks for a session several times a second while its old one runs out.
    let refusals = cluster.log(id).matches("this node got no session").count();
    assert!(refusals <= 4, "one reason is said once: {refusals}");
    assert!(readyz(cluster, 5).is_some_and(|answer| answer.starts_with("HTTP/1.1 200 ")));
}

/// Two nodes more, then two of the first ones fewer.
fn story(cluster: &mut Cluster, load: &Load) {
    load.goes_on(50);
    for id in [4, 5] {
        assert_eq!(cluster.plan_node(), id);
        cluster.spawn(id);
        cluster.wait_ready(id);
        load.places.lock().expect("nobody panics with it").push(cluster.address(id));
    }
    settled(cluster, &[1, 2, 3, 4, 5]);
    load.goes_on(50);
    for (gone, left) in [(1, &[2, 3, 4, 5][..]), (2, &[3, 4, 5])] {
        let address = cluster.address(gone);
        load.places.lock().expect("nobody panics with it").retain(|place| *place != address);
        assert_eq!(cluster.client(left[0]).ask(&format!("MEMBER REMOVE {gone}")), "OK");
        settled(cluster, left);
        knows_that_it_is_removed(cluster, gone);
        cluster.stop(gone);
        load.goes_on(50);
    }
}
