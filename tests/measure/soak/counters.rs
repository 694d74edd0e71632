//! Counters: what was acknowledged was added once. In client sessions every call is certain in the end; without one
//! (RESP) what is in doubt may have been added or not, and what was refused for the moment was not.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quorate_client::Client;
use quorate_protocol::op::partition_of;
use quorate_tests::process::Client as Plain;
use quorate_tests::sim::rng::Rng;

use super::homes::{Homes, pause};
use super::ledger::{Did, Ledger, Phase};
use crate::watch::PARTITIONS;

/// Counters of client sessions; those of plain connections follow.
const IN_SESSIONS: usize = 6;
const PLAIN: usize = 3;

#[derive(Debug)]
struct Counter {
    key: String,
    begun: AtomicU64,
    acknowledged: AtomicU64,
    in_doubt: AtomicU64,
}

impl Counter {
    fn new(key: String) -> Self {
        let [begun, acknowledged, in_doubt] = [(); 3].map(|()| AtomicU64::new(0));
        Self { key, begun, acknowledged, in_doubt }
    }

    /// Begins an addition; what was acknowledged by then.
    fn begin(&self) -> u64 {
        let known = self.acknowledged.load(Ordering::SeqCst);
        self.begun.fetch_add(1, Ordering::SeqCst);
        known
    }

    /// The answer has come: above all that was known before, and not above all that was ever begun.
    fn answered(&self, known: u64, found: u64, ledger: &Ledger) {
        self.acknowledged.fetch_add(1, Ordering::SeqCst);
        let begun = self.begun.load(Ordering::SeqCst);
        if found <= known || found > begun {
            let key = &self.key;
            ledger.violated(&format!(
                "{key} became {found}; {known} additions were acknowledged before, {begun} begun"
            ));
        }
        ledger.served(partition_of(self.key.as_bytes(), PARTITIONS).0);
    }
}

/// See the top of the file.
#[derive(Debug)]
pub(super) struct Counters(Vec<Counter>);

impl Counters {
    pub(super) fn new() -> Self {
        let in_sessions = (0..IN_SESSIONS).map(|n| format!("counter-{n}"));
        let plain = (0..PLAIN).map(|n| format!("plain-counter-{n}"));
        Self(in_sessions.chain(plain).map(Counter::new).collect())
    }

    /// Adds to any of the counters, in a client session.
    pub(super) async fn add(
        self: Arc<Self>,
        home: usize,
        homes: Arc<Homes>,
        ledger: Arc<Ledger>,
        mut rng: Rng,
    ) {
        while ledger.phase() == Phase::Work {
            let counter = &self.0[rng.index(IN_SESSIONS)];
            let known = counter.begin();
            match homes.at(home).incr(counter.key.clone(), 1).await {
                Ok(found) => {
                    counter.answered(known, u64::try_from(found).unwrap_or(0), &ledger);
                    ledger.did(Did::Incr);
                }
                Err(error) => {
                    if ledger.failed("INCRBY", &error) {
                        counter.in_doubt.fetch_add(1, Ordering::SeqCst);
                    }
                }
            }
            pause(&mut rng, 20..80).await;
        }
    }

    /// Adds on plain connections, as somebody with nc: on a thread of its own, since it waits as such a one does.
    pub(super) fn add_plainly(&self, nth: usize, nodes: &[SocketAddr], ledger: &Ledger, mut rng: Rng) {
        let counter = &self.0[IN_SESSIONS + nth % PLAIN];
        let mut connection = None;
        let mut at = nth;
        while ledger.phase() == Phase::Work {
            std::thread::park_timeout(Duration::from_millis(rng.between(20..80)));
            if connection.is_none() {
                at += 1;
                connection = Plain::try_new(nodes[at % nodes.len()]);
            }
            let Some(open) = connection.as_mut() else { continue };
            let known = counter.begin();
            let answer = open.try_first(&format!("INCR {}", counter.key));
            let never = ["-CLUSTERDOWN", "-TRYAGAIN", "-BUSY", "-LOADING"];
            match answer {
                Some(answer) if answer.starts_with("-ERR the session of") => {
                    // Its node was away for too long; the sentence says to connect again.
                    ledger.plain(false);
                    connection = None;
                }
                Some(answer) if never.iter().any(|code| answer.starts_with(code)) => ledger.plain(false),
                Some(answer) if answer.starts_with("-INDOUBT") => {
                    counter.in_doubt.fetch_add(1, Ordering::SeqCst);
                    ledger.plain(true);
                }
                Some(answer) => match answer.parse() {
                    Ok(found) => {
                        counter.answered(known, found, ledger);
                        ledger.did(Did::PlainIncr);
                    }
                    Err(_) => {
                        ledger.violated(&format!("INCR {}: {answer}", counter.key));
                        return;
                    }
                },
                None => {
                    counter.in_doubt.fetch_add(1, Ordering::SeqCst);
                    ledger.plain(true);
                    connection = None;
                }
            }
        }
    }

    /// Every counter is what was acknowledged, and at most what is in doubt above it.
    pub(super) async fn audit(&self, client: &Client, ledger: &Ledger) {
        for counter in &self.0 {
            let found = match client.get(counter.key.clone()).await {
                Ok(value) => {
                    value.and_then(|value| String::from_utf8_lossy(&value).parse().ok()).unwrap_or(0)
                }
                Err(error) => {
                    ledger.violated(&format!("{} cannot be read in the end: {error}", counter.key));
                    continue;
                }
            };
            let acknowledged = counter.acknowledged.load(Ordering::SeqCst);
            let doubt = counter.in_doubt.load(Ordering::SeqCst);
            if !(acknowledged..=acknowledged + doubt).contains(&found) {
                let key = &counter.key;
                ledger.violated(&format!(
                    "{key} is {found}; {acknowledged} additions were acknowledged, {doubt} are in doubt"
                ));
            }
        }
    }

    /// Pretends that an addition was acknowledged that nobody has sent.
    pub(super) fn lie(&self) {
        self.0[0].begun.fetch_add(1, Ordering::SeqCst);
        self.0[0].acknowledged.fetch_add(1, Ordering::SeqCst);
    }
}
