//! Registers: keys that one writer sets to rising numbers, and that are read on every node.
//!
//! With one writer, linearizability is simple: a read returns nothing older than what was acknowledged, or read by
//! anybody, before it began, and nothing newer than what was sent by its end.
//!
//! Subtlety: a write that is in doubt for good (its session has ended) may come later. Its key is given up then, and
//! the writer goes on with a new one.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_client::{Client, Options, Set};
use quorate_tests::sim::rng::Rng;

use super::homes::{Homes, pause};
use super::ledger::{Did, Ledger, Phase, lock};
use crate::watch::{PARTITIONS, key_of};

/// Writers of each partition, each from another home.
const WRITERS: usize = 3;
/// Bytes of a large value: some are, so that logs grow and snapshots are taken.
const LARGE: usize = 64 << 10;

/// What is known of a key.
#[derive(Debug, Default)]
struct Known {
    epoch: u64,
    tried: u64,
    acknowledged: u64,
    read: u64,
}

/// A key and its writer.
#[derive(Debug)]
struct Register {
    partition: u16,
    home: usize,
    tag: String,
    known: Mutex<Known>,
}

impl Register {
    fn key(&self, epoch: u64) -> String {
        format!("{{{}}}-register-{}-{epoch}", self.tag, self.home)
    }

    async fn write(&self, homes: &Homes, ledger: &Ledger, rng: &mut Rng) {
        let (epoch, n) = {
            let mut known = lock(&self.known);
            known.tried += 1;
            (known.epoch, known.tried)
        };
        let mut value = format!("{n}-");
        if self.partition % 3 == 1 && rng.chance(150) {
            value.extend(std::iter::repeat_n('v', LARGE));
        }
        let key = self.key(epoch);
        match homes.at(self.home).set(key.clone(), value, Set::default()).await {
            Ok(true) => {
                lock(&self.known).acknowledged = n;
                ledger.served(self.partition);
                ledger.did(Did::Set);
            }
            Ok(false) => ledger.violated(&format!("SET {key} {n} without a condition was not done")),
            Err(error) => {
                if ledger.failed("SET", &error) {
                    let mut known = lock(&self.known);
                    *known = Known { epoch: epoch + 1, tried: known.tried, ..Known::default() };
                }
            }
        }
    }

    /// Reads; whether that went well.
    async fn read(&self, client: &Client, node: &str, ledger: &Ledger) -> bool {
        let (epoch, known) = {
            let known = lock(&self.known);
            (known.epoch, known.acknowledged.max(known.read))
        };
        let key = self.key(epoch);
        let value = match client.get(key.clone()).await {
            Ok(value) => value,
            Err(error) => {
                ledger.failed("GET", &error);
                return false;
            }
        };
        let value = value.map(|value| String::from_utf8_lossy(&value).into_owned()).unwrap_or_default();
        let found: u64 = value.split('-').next().and_then(|n| n.parse().ok()).unwrap_or(0);
        let mut now = lock(&self.known);
        if now.epoch != epoch {
            return true;
        }
        let tried = now.tried;
        now.read = now.read.max(found);
        drop(now);
        if found < known || found > tried {
            ledger.violated(&format!(
                "{node} says {key} is {found}; {known} was acknowledged or read before it was asked, {tried} is the \
                 newest that was sent"
            ));
        }
        ledger.did(Did::Get);
        true
    }
}

/// See the top of the file.
#[derive(Debug)]
pub(super) struct Registers(Vec<Register>);

impl Registers {
    pub(super) fn new() -> Self {
        let pairs = (1..=PARTITIONS).flat_map(|partition| (0..WRITERS).map(move |home| (partition, home)));
        let register =
            |(partition, home)| Register { partition, home, tag: key_of(partition), known: Mutex::default() };
        Self(pairs.map(register).collect())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// One writer's work.
    pub(super) async fn write(
        self: Arc<Self>,
        at: usize,
        homes: Arc<Homes>,
        ledger: Arc<Ledger>,
        mut rng: Rng,
    ) {
        while ledger.phase() == Phase::Work {
            self.0[at].write(&homes, &ledger, &mut rng).await;
            pause(&mut rng, 60..240).await;
        }
    }

    /// Reads on one node, and on no other.
    pub(super) async fn read(self: Arc<Self>, address: String, ledger: Arc<Ledger>, mut rng: Rng) {
        let options = Options {
            timeout: Some(Duration::from_secs(5)),
            retry: Duration::ZERO,
            silence: Duration::from_secs(2),
            connect: Duration::from_secs(2),
        };
        let mut client = None;
        while ledger.phase() == Phase::Work {
            if client.is_none() {
                client = Client::connect_with([address.clone()], options.clone()).await.ok();
            }
            let register = &self.0[rng.index(self.0.len())];
            let went_well = match &client {
                Some(client) => register.read(client, &address, &ledger).await,
                None => false,
            };
            let wait = if went_well { 2..8 } else { 50..150 };
            pause(&mut rng, wait).await;
        }
    }

    /// The last reads: each key once, wherever the client is.
    pub(super) async fn audit(&self, client: &Client, ledger: &Ledger) {
        for register in &self.0 {
            if !register.read(client, "the last reader's node", ledger).await {
                ledger.violated("a key cannot be read in the end");
            }
        }
    }

    /// Pretends that a write was acknowledged that nobody has sent.
    pub(super) fn lie(&self) {
        let mut known = lock(&self.0[0].known);
        known.acknowledged = known.tried + 1000;
        known.tried += 1000;
    }
}
