//! Fenced writes on real nodes: whoever is granted a lock is not overwritten by its former holders, whatever nodes they are connected
//! to, and however long they stood still.

use quorate_tests::process::{Client, Cluster, poll};

fn token(client: &mut Client, line: &str) -> u64 {
    client.ask(line).parse().expect("a fencing token")
}

#[test]
fn a_holder_that_slept_overwrites_nothing() {
    let cluster = Cluster::start(3);
    let mut clients: Vec<Client> = (1..=3).map(|id| cluster.client(id)).collect();
    let mut last = 0;
    for round in 0..6 {
        let [old, new, other] = [round % 3, (round + 1) % 3, (round + 2) % 3];
        let sleeper = token(&mut clients[old], &format!("LOCK db OWNER o{round} TTL 300 WAIT 5000"));
        assert!(sleeper > last, "tokens rise");
        assert_eq!(clients[old].ask(&format!("SET k old-{round} FENCE db {sleeper}")), "OK");
        let holder = token(&mut clients[new], &format!("LOCK db OWNER n{round} TTL 30000 WAIT 10000"));
        // It has not written yet: that it was granted is enough.
        for late in [old, other] {
            let refusal = clients[late].ask(&format!("SET k late FENCE db {sleeper}"));
            assert!(refusal.starts_with(&format!("-FENCED {holder} ")), "{refusal}");
        }
        assert_eq!(clients[other].ask("GET k"), format!("old-{round}"));
        assert_eq!(clients[other].ask(&format!("SET k new-{round} FENCE db {holder}")), "OK");
        assert_eq!(clients[old].ask("GET k"), format!("new-{round}"));
        assert_eq!(clients[new].ask(&format!("UNLOCK db OWNER n{round} TOKEN {holder}")), "1");
        last = holder;
    }
}

#[test]
fn a_lock_is_granted_at_once_when_its_partitions_can_hear() {
    let cluster = Cluster::start(3);
    let mut client = cluster.client(2);
    let mut last = token(&mut client, "LOCK db OWNER a");
    for n in 0..20 {
        assert_eq!(client.ask(&format!("SET key-{n} v FENCE db {last}")), "OK", "in whatever partition");
    }
    for _ in 0..10 {
        assert_eq!(client.ask(&format!("UNLOCK db OWNER a TOKEN {last}")), "1");
        let next = token(&mut client, "LOCK db OWNER a");
        assert!(next > last);
        for n in [0, 7, 13] {
            assert!(client.ask(&format!("SET key-{n} v FENCE db {last}")).starts_with("-FENCED"));
            assert_eq!(client.ask(&format!("SET key-{n} {next} FENCE db {next}")), "OK");
        }
        last = next;
    }
}

#[test]
fn shared_holders_of_an_era_all_write() {
    let cluster = Cluster::start(3);
    let mut clients: Vec<Client> = (1..=3).map(|id| cluster.client(id)).collect();
    let tokens: Vec<u64> =
        clients.iter_mut().map(|client| token(client, "LOCK doc SHARED WAIT 5000")).collect();
    for (client, token) in clients.iter_mut().zip(&tokens) {
        assert_eq!(client.ask(&format!("SET page {token} FENCE doc {token}")), "OK");
    }
    for client in &mut clients {
        assert_eq!(client.ask("UNLOCK doc"), "1");
    }
    let alone = token(&mut clients[0], "LOCK doc");
    for token in tokens {
        assert!(clients[1].ask(&format!("SET page x FENCE doc {token}")).starts_with("-FENCED"));
    }
    assert_eq!(clients[2].ask(&format!("SET page y FENCE doc {alone}")), "OK");
}

#[test]
fn a_token_that_was_never_given_is_refused_at_once() {
    let cluster = Cluster::start(3);
    for id in 1..=3 {
        let mut client = cluster.client(id);
        let token = token(&mut client, "LOCK db OWNER a WAIT 5000");
        assert_eq!(client.ask(&format!("UNLOCK db OWNER a TOKEN {token}")), "1");
        for never in [token + 1, token + 1000] {
            let refusal = client.ask(&format!("SET k v FENCE db {never}"));
            assert!(refusal.starts_with(&format!("-ERR {never} was never given")), "{refusal}");
        }
        assert!(client.ask(&format!("SET k v FENCE db {token}")).starts_with("-FENCED"));
        assert_eq!(client.ask("GET k"), "(nil)");
    }
    let mut client = cluster.client(1);
    let token = token(&mut client, "LOCK db OWNER a");
    assert_eq!(
        client.ask(&format!("SET k v FENCE db {token}")),
        "OK",
        "what was known of it when it was free is no more"
    );
}

#[test]
fn one_stale_token_refuses_a_whole_transaction() {
    let cluster = Cluster::start(3);
    let mut client = cluster.client(1);
    let stale = token(&mut client, "LOCK a");
    assert_eq!(client.ask("UNLOCK a"), "1");
    let good = token(&mut client, "LOCK b");
    let current = token(&mut client, "LOCK a");
    for (fence, answer) in [(stale, format!("-FENCED {current} ")), (current, "1) OK".to_owned())] {
        assert_eq!(client.ask("MULTI"), "OK");
        assert_eq!(client.ask(&format!("SET {{t}}1 v{fence} FENCE b {good}")), "QUEUED");
        assert_eq!(client.ask(&format!("SET {{t}}2 v{fence} FENCE a {fence}")), "QUEUED");
        let told = client.ask("EXEC");
        assert!(told.starts_with(&answer), "{told}");
        if fence == stale {
            assert_eq!(client.ask("GET {t}1"), "(nil)", "nothing is done");
        } else {
            assert_eq!(client.line().trim(), "2) OK");
        }
    }
}

#[test]
fn the_floors_outlive_their_leaders_and_restarts() {
    let mut cluster = Cluster::start(3);
    let stale = token(&mut cluster.client(1), "LOCK db OWNER a");
    assert_eq!(cluster.client(1).ask(&format!("SET k a FENCE db {stale}")), "OK");
    assert_eq!(cluster.client(1).ask("UNLOCK db OWNER a"), "1");
    let good = token(&mut cluster.client(2), "LOCK db OWNER b TTL 600000");
    for id in 1..=3 {
        cluster.kill(id);
        let mut other = cluster.client(id % 3 + 1);
        let mut late = |line: &str| {
            poll("somebody leads", || {
                let answer = other.ask(line);
                let again = answer.starts_with("-CLUSTERDOWN") || answer.starts_with("-TRYAGAIN");
                (!again && !answer.starts_with("-INDOUBT")).then_some(answer)
            })
        };
        assert!(late(&format!("SET k late FENCE db {stale}")).starts_with(&format!("-FENCED {good} ")));
        assert_eq!(late(&format!("SET k {id} FENCE db {good}")), "OK");
        cluster.spawn(id);
        cluster.wait_ready(id);
    }
}
