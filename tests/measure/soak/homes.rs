//! The clients of a soak: three that roam, each beginning at another node, and the pause between two requests.
//!
//! Subtlety: a client that has lost its node stays with the next one. So that no node is left without clients, each is
//! replaced now and then by a new one, which begins at its own node again and has a session of its own; calls under way
//! end with the old one.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_client::{Client, Options};
use quorate_tests::sim::rng::Rng;

use super::ledger::{Ledger, Phase, lock};

/// How long a client is used.
const LIFE: Duration = Duration::from_secs(12);
/// Within a client session everything is certain in the end, so that is waited for.
const OPTIONS: Options = Options {
    timeout: None,
    retry: Duration::from_secs(600),
    silence: Duration::from_secs(2),
    connect: Duration::from_secs(20),
};

/// See the top of the file.
#[derive(Debug)]
pub(super) struct Homes {
    addresses: Vec<String>,
    clients: Vec<Mutex<Client>>,
}

impl Homes {
    /// Connects one client for each of the first `n` nodes.
    pub(super) async fn connect(addresses: Vec<String>, n: usize) -> Result<Self, quorate_client::Error> {
        let mut clients = Vec::new();
        for home in 0..n {
            clients.push(Mutex::new(Client::connect_with(from(&addresses, home), OPTIONS).await?));
        }
        Ok(Self { addresses, clients })
    }

    /// A client of this home; hold it for one call only.
    pub(super) fn at(&self, home: usize) -> Client {
        lock(&self.clients[home % self.clients.len()]).clone()
    }

    /// Replaces clients until the load ends.
    pub(super) async fn renew(self: Arc<Self>, ledger: Arc<Ledger>) {
        for turn in 0.. {
            tokio::time::sleep(LIFE / u32::try_from(self.clients.len()).expect("few clients")).await;
            if ledger.phase() == Phase::End {
                return;
            }
            let home = turn % self.clients.len();
            // Where no node serves for now, the old one goes on.
            if let Ok(client) = Client::connect_with(from(&self.addresses, home), OPTIONS).await {
                *lock(&self.clients[home]) = client;
            }
        }
    }
}

/// All addresses, beginning with the one at this place.
fn from(addresses: &[String], first: usize) -> Vec<String> {
    let mut all = addresses.to_vec();
    all.rotate_left(first % addresses.len());
    all
}

/// Waits some milliseconds, by chance.
pub(super) async fn pause(rng: &mut Rng, range: std::ops::Range<u64>) {
    tokio::time::sleep(Duration::from_millis(rng.between(range))).await;
}
