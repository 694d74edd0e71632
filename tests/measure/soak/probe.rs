//! Probes: small writes to every group through every founding node, each by a client that stays at its node. They are
//! what the time without service is measured by: clients that roam can all happen to be with the node that hangs.

use std::sync::Arc;
use std::time::Duration;

use quorate_client::{Client, Error, Options, Set};
use quorate_tests::sim::rng::Rng;

use super::homes::pause;
use super::ledger::{Ledger, Phase, is_of_ended_session};
use crate::watch::{PARTITIONS, key_of};

const OPTIONS: Options = Options {
    timeout: Some(Duration::from_millis(1500)),
    retry: Duration::ZERO,
    silence: Duration::from_secs(1),
    connect: Duration::from_secs(1),
};

/// Probes all groups through one node, each by itself, so that none waits for another.
pub(super) async fn probe(id: usize, address: String, ledger: Arc<Ledger>, rng: Rng) {
    let client = loop {
        match Client::connect_with([address.clone()], OPTIONS).await {
            Ok(client) => break client,
            Err(_) if ledger.phase() == Phase::Work => {}
            Err(_) => return,
        }
    };
    let mut probes = tokio::task::JoinSet::new();
    for group in 0..=PARTITIONS {
        let (client, ledger, rng) = (client.clone(), Arc::clone(&ledger), rng.clone());
        probes.spawn(probe_one(id, group, client, ledger, rng));
    }
    probes.join_all().await;
}

async fn probe_one(id: usize, group: u16, client: Client, ledger: Arc<Ledger>, mut rng: Rng) {
    // Not all at the same moments.
    for _ in 0..group {
        rng.draw();
    }
    let key = (group > 0).then(|| format!("{{{}}}-probe-{id}", key_of(group)));
    while ledger.phase() == Phase::Work {
        match ask(&client, key.as_deref(), id).await {
            Ok(()) => ledger.served(group),
            // A probe that finds no service is what probes are for.
            Err(error) if passes(&error) => {}
            Err(error) => ledger.violated(&format!("a probe of group {group} at node {id}: {error}")),
        }
        pause(&mut rng, 60..180).await;
    }
}

/// Something that a group decides: a write, or the release of a lock that nobody has.
async fn ask(client: &Client, key: Option<&str>, id: usize) -> Result<(), Error> {
    match key {
        Some(key) => client.set(key.to_owned(), "probe", Set::default()).await.map(|_| ()),
        None => client.unlock(format!("probe-{id}"), "nobody", 1).await.map(|_| ()),
    }
}

fn passes(error: &Error) -> bool {
    error.is_passing()
        || is_of_ended_session(error)
        || matches!(error, Error::InDoubt(_) | Error::Timeout | Error::Lost(_))
}
