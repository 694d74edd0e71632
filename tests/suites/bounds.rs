//! Real clusters at their bounds: keys that fill their room, herds that miss a key, and what /metrics tells of it all.

use std::time::Duration;

use quorate_client::{Client, Filled, Options, Set};
use quorate_protocol::op::partition_of;
use quorate_tests::figures::{figure, metrics};
use quorate_tests::process::{Client as Talk, Cluster, poll};
use tokio::task::JoinSet;

/// What the keys of each of the 16 partitions may take.
const SHARE: usize = 64 << 10;

fn bounded(flags: &[&'static str]) -> Cluster {
    let mut cluster = Cluster::plan(3);
    cluster.flags = [&["--store-max-memory", "1m"], flags].concat();
    cluster.spawn_all();
    cluster
}

fn fill(talk: &mut Talk, n: usize) -> String {
    talk.ask(&format!("SET {{a}}{n} {}", "v".repeat(2000)))
}

/// A line of INFO.
fn info(cluster: &Cluster, node: usize, name: &str) -> u64 {
    let text = cluster.client(node).ask_all("INFO memory");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
}

fn all(cluster: &Cluster, name: &str) -> u64 {
    (1..=3).map(|node| figure(cluster, node, name)).sum()
}

#[test]
fn a_full_store_refuses_what_needs_room_and_nothing_else() {
    let cluster = bounded(&[]);
    let mut talks: Vec<Talk> = (1..=3).map(|node| cluster.client(node)).collect();
    let refused = (0..200).find(|n| fill(&mut talks[n % 3], *n) != "OK").expect("it is full before long");
    assert_eq!(refused, SHARE / (2000 + 104 + 5), "keys fit");
    let answer = fill(&mut talks[0], refused);
    let expected = "-OOM command not allowed when used memory > 'maxmemory'. The keys of partition";
    assert!(answer.starts_with(expected) && answer.ends_with("or raise store-max-memory"), "{answer}");
    assert_eq!(talks[1].ask("GET {a}0"), "v".repeat(2000));
    assert_eq!(talks[1].ask("EXPIRE {a}1 1000"), "1");
    assert_eq!(talks[2].ask("SET {a}2 short"), "OK");
    assert_eq!(talks[2].ask("SET elsewhere v"), "OK", "other partitions have room");
    assert_eq!(talks[0].ask("DEL {a}3 {a}4"), "2");
    assert_eq!(fill(&mut talks[1], refused), "OK", "it goes on");
    assert_eq!(talks[0].ask("CONFIG GET maxmemory"), "maxmemory: 1048576");
    poll("the figures of it", || {
        let used = info(&cluster, 1, "used_memory");
        (used > 60_000 && used <= info(&cluster, 1, "maxmemory")).then_some(())
    });
    poll("refusals are counted", || (all(&cluster, "quorate_refused_oom_total") == 2).then_some(()));
}

#[test]
fn an_evicting_store_takes_writes_for_ever_and_keeps_what_is_read() {
    let cluster = bounded(&["--store-eviction", "lru"]);
    let mut talks: Vec<Talk> = (1..=3).map(|node| cluster.client(node)).collect();
    let hot = ["{a}hot1", "{a}hot2"];
    for key in hot {
        assert_eq!(talks[0].ask(&format!("SET {key} kept")), "OK");
    }
    for n in 0..400 {
        assert_eq!(fill(&mut talks[n % 3], n), "OK");
        for (at, key) in hot.iter().enumerate() {
            assert_eq!(talks[(n + at) % 3].ask(&format!("GET {key}")), "kept", "after {n} writes");
        }
    }
    let gone = (0..400).filter(|n| talks[0].ask(&format!("GET {{a}}{n}")) == "(nil)").count();
    assert!(gone >= 400 - SHARE / 2100, "{gone} of 400 are gone");
    poll("the figures of it", || {
        let (used, evicted) = (info(&cluster, 2, "used_memory"), info(&cluster, 2, "evicted_keys"));
        (used <= SHARE as u64 && evicted == gone as u64).then_some(())
    });
    // What needs the room of thirty others waits until it is made.
    assert_eq!(talks[1].ask(&format!("SET {{a}}large {}", "w".repeat(60_000))), "OK");
    let too_large = talks[1].ask("SETRANGE {a}large 65500 w");
    assert!(too_large.starts_with("-OOM"), "{too_large}");
    assert_eq!(talks[2].ask("STRLEN {a}large"), "60000");
}

async fn patient(cluster: &Cluster, node: usize) -> Client {
    let minute = Duration::from_secs(60);
    let options = Options { timeout: Some(minute), retry: minute, connect: minute, ..Options::default() };
    Client::connect_with([cluster.address(node).to_string()], options).await.expect("a node serves")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_herd_one_fills_the_key() {
    const HERD: usize = 48;
    let cluster = Cluster::start(3);
    let minute = Duration::from_secs(60);
    let mut clients = Vec::new();
    for n in 0..HERD {
        clients.push(patient(&cluster, 1 + n % 3).await);
    }
    let mut herd = JoinSet::new();
    for (n, client) in clients.iter().cloned().enumerate() {
        herd.spawn(async move { (n, client.get_or_lead("key", minute).await.expect("an answer")) });
    }
    // And two people with nc.
    let mut talks = [cluster.client(1), cluster.client(2)];
    let (lead, first) = herd.join_next().await.expect("somebody leads").expect("no panic");
    assert_eq!(first, Filled::Lead);
    for talk in &mut talks {
        talk.say("GETV key FILL 60000");
    }
    poll("all others wait", || (all(&cluster, "quorate_fill_waiters") == HERD as u64 + 1).then_some(()));
    assert_eq!(all(&cluster, "quorate_fill_leads"), 1);
    assert!(herd.try_join_next().is_none(), "nobody else was answered");
    assert_eq!(clients[lead].set("key", "value", Set::default().if_version(0)).await, Ok(true));
    let mut versions = Vec::new();
    while let Some(answer) = herd.join_next().await {
        let (_, Filled::Value(value, version)) = answer.expect("no panic") else { panic!("two lead") };
        assert_eq!(value, "value");
        versions.push(version);
    }
    assert_eq!(versions.len(), HERD - 1);
    assert!(versions.iter().all(|version| *version == versions[0]));
    for talk in &mut talks {
        let answer: Vec<String> = (0..3).map(|_| talk.line()).collect();
        assert_eq!(answer, ["1) value".to_owned(), format!("2) {}", versions[0]), "3) 0".to_owned()]);
    }
    let versioned = clients[0].get_versioned("key").await.expect("an answer");
    assert_eq!(versioned, Some(("value".into(), versions[0])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leads_and_goes_is_followed_by_the_next() {
    let cluster = Cluster::start(3);
    let answer = |talk: &mut Talk| (0..3).map(|_| talk.line()).collect::<Vec<_>>().join(" ");
    let lead = "1) (nil) 2) 0 3) 1";
    let mut talks: Vec<Talk> = (0..4).map(|n| cluster.client(1 + n % 3)).collect();
    for (n, talk) in talks.iter_mut().enumerate() {
        // The third has little time.
        talk.say(if n == 2 { "GETV key FILL 200" } else { "GETV key FILL 600000" });
        let there = |name: &str, count: usize| all(&cluster, name) == count as u64;
        poll("it is known", || {
            (there("quorate_fill_leads", 1) && there("quorate_fill_waiters", n)).then_some(())
        });
    }
    let mut talks = talks.into_iter();
    let mut first = talks.next().expect("four");
    assert_eq!(answer(&mut first), lead);
    drop(first);
    let mut second = talks.next().expect("four");
    assert_eq!(answer(&mut second), lead, "the connection of the first has ended");
    drop(second);
    let (mut third, mut fourth) = (talks.next().expect("four"), talks.next().expect("four"));
    assert_eq!(answer(&mut third), lead);
    assert_eq!(answer(&mut fourth), lead, "the time of the third is over");
    assert_eq!(
        third.ask("SET key late IFVER 0"),
        "OK",
        "a lead is leave to write, not the right to be the only one"
    );
    assert_eq!(fourth.ask("SET key later IFVER 0"), "(nil)");
    assert!(third.ask_all("GETV key FILL 5").starts_with("1) late\n"));
}

#[test]
fn who_leads_on_a_node_that_dies_is_followed_by_the_next() {
    let mut cluster = Cluster::start(3);
    let mut asker = cluster.client(1);
    let home = poll("a home", || {
        let info = asker.ask_all("CACHEINFO key");
        info.lines().find_map(|line| line.trim().strip_prefix("home: ")?.parse::<usize>().ok())
    });
    let (dies, lives) = (home % 3 + 1, (home + 1) % 3 + 1);
    let mut first = cluster.client(dies);
    first.say("GETV key FILL 600000");
    poll("it is known", || (figure(&cluster, home, "quorate_fill_leads") == 1).then_some(()));
    let mut next = cluster.client(lives);
    next.say("GETV key FILL 600000");
    poll("it waits", || (figure(&cluster, home, "quorate_fill_waiters") == 1).then_some(()));
    cluster.kill(dies);
    let answer = (0..3).map(|_| next.line()).collect::<Vec<_>>().join(" ");
    assert_eq!(answer, "1) (nil) 2) 0 3) 1", "it waits no longer than for the link to break");
}

/// Homes number what they grant and invalidate each on its own: what one has invalidated voids no other's lines.
#[test]
fn writes_in_one_partition_leave_the_lines_of_all_others() {
    let cluster = Cluster::start(3);
    let (mut writer, mut reader) = (cluster.client(1), cluster.client(2));
    let received = || figure(&cluster, 2, "quorate_cache_invalidations_received_total");
    // So many that most places where a key's last invalidation may be remembered are taken.
    poll("the node has heard of many writes", || {
        for n in 0..300 {
            reader.ask(&format!("GET {{cart}}{n}"));
            assert_eq!(writer.ask(&format!("SET {{cart}}{n} x")), "OK");
        }
        (received() > 600).then_some(())
    });
    let mut hits_of_a_round = || {
        let before = figure(&cluster, 2, "quorate_cache_hits_total");
        for n in 0..256 {
            reader.ask(&format!("GET key:{}", n % 64));
        }
        figure(&cluster, 2, "quorate_cache_hits_total") - before
    };
    // A machine that stands still for a lease's length loses it: some more tries.
    let most = (0..5).map(|_| hits_of_a_round()).find(|hits| *hits > 128);
    assert!(most.is_some(), "its lines are kept all the same");
}

/// In a pipeline, a read that goes to its home holds up no read of another partition that the node can answer itself.
#[test]
fn reads_behind_a_miss_are_answered_from_the_nodes_lines() {
    let cluster = Cluster::start(3);
    let mut reader = cluster.client(2);
    assert_eq!(reader.ask("SET warm w"), "OK");
    let home = partition_of(b"warm", 16);
    let mut cold = (0..).map(|n| format!("cold:{n}")).filter(|key| partition_of(key.as_bytes(), 16) != home);
    let (hits, misses) = ("quorate_cache_hits_total", "quorate_cache_misses_total");
    let before = figure(&cluster, 2, misses);
    let mut asked = 0;
    poll("all that are warm are hits", || {
        // The line may have gone with a lease.
        poll("it is warm", || {
            let before = figure(&cluster, 2, hits);
            asked += 1;
            reader.ask("GET warm");
            (figure(&cluster, 2, hits) > before).then_some(())
        });
        let before = figure(&cluster, 2, hits);
        let cold = cold.next().expect("there is no end of them");
        reader.say(&format!("GET {cold}\r\nGET warm\r\nGET warm\r\nGET {cold}\r\nGET warm\r"));
        let said: Vec<String> = (0..5).map(|_| reader.line()).collect();
        assert_eq!(said, ["(nil)", "w", "w", "(nil)", "w"], "in their order");
        asked += 5;
        (figure(&cluster, 2, hits) == before + 3).then_some(())
    });
    assert_eq!(
        figure(&cluster, 2, misses) - before + figure(&cluster, 2, hits),
        asked,
        "each is one of both"
    );
}

#[test]
fn figures_move_with_what_is_done() {
    let cluster = Cluster::start(3);
    let mut talks: Vec<Talk> = (1..=3).map(|node| cluster.client(node)).collect();
    poll("all groups are led", || (all(&cluster, "quorate_leader_groups") == 17).then_some(()));
    assert!(all(&cluster, "quorate_elections_won_total") >= 17);
    let names = ["hits_total", "misses_total", "invalidations_sent_total", "invalidations_received_total"];
    let before = names.map(|name| all(&cluster, &format!("quorate_cache_{name}")));
    let (commits, applied) =
        (all(&cluster, "quorate_journal_commits_total"), all(&cluster, "quorate_applied_entries"));
    assert_eq!(talks[0].ask("SET k one"), "OK");
    for talk in &mut talks {
        poll("it reads from its own line", || (talk.ask("GET k") == "one").then_some(()));
        poll("a hit", || {
            talk.ask("GET k");
            (all(&cluster, "quorate_cache_hits_total") > before[0]).then_some(())
        });
    }
    poll("two nodes share the line", || {
        talks.iter_mut().for_each(|talk| drop(talk.ask("GET k")));
        (all(&cluster, "quorate_cache_lines{state=\"S\"}") >= 2).then_some(())
    });
    assert_eq!(talks[1].ask("SET k two"), "OK");
    poll("all have moved", || {
        let after = names.map(|name| all(&cluster, &format!("quorate_cache_{name}")));
        before.iter().zip(after).all(|(before, after)| after > *before).then_some(())
    });
    poll("replicas have the key, and their logs", || {
        let moved = all(&cluster, "quorate_journal_commits_total") >= commits + 2
            && all(&cluster, "quorate_applied_entries") >= applied + 6;
        (moved && all(&cluster, "quorate_store_keys") == 3).then_some(())
    });
    assert_eq!(all(&cluster, "quorate_store_bytes"), 3 * (104 + 1 + 3));
    poll("SETs are answered by the node, and brought", || {
        assert_eq!(talks[0].ask("SET back v WRITEBACK"), "OK");
        let absorbed = figure(&cluster, 1, "quorate_cache_absorbed_total");
        (absorbed > 0 && figure(&cluster, 1, "quorate_cache_write_backs_total") > 0).then_some(())
    });
    poll("nothing is left to bring", || (all(&cluster, "quorate_cache_dirty_lines") == 0).then_some(()));
    assert_eq!(all(&cluster, "quorate_cache_write_backs_lost_total"), 0);
    assert!(figure(&cluster, 1, "quorate_connections") >= 1);
    let text = metrics(&cluster, 1);
    assert!(text.contains("# HELP quorate_cache_hits Reads answered from the node's own lines"), "{text}");
    assert!(text.contains("# TYPE quorate_cache_hits counter") && text.ends_with("# EOF\n"), "{text}");
    // Operators find every figure in the manual.
    let manual = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md");
    let manual = std::fs::read_to_string(manual).expect("docs/operations.md");
    for name in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()) {
        assert!(manual.contains(&format!("`{name}")), "docs/operations.md does not explain {name}");
    }
}
