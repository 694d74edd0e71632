//! Queues: every message that was acknowledged to its publisher is delivered until it is settled, and is then gone; dead
//! letters go to a topic in another partition.
//!
//! Invariant: a message is in `open` from before it is sent until its settlement is certain; then, for a while, in
//! `settled`. What is delivered and in neither was never published, or was settled long ago.
//!
//! Subtlety: an answer may be on its way while a message is settled elsewhere. So a delivery is compared with what was
//! certain before it was *asked for*.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_client::{Client, Error, Fetch, Message, Publish, TopicSettings};
use quorate_protocol::op::partition_of_topic;
use quorate_tests::process::millis;
use quorate_tests::sim::rng::Rng;

use super::homes::{Homes, pause};
use super::ledger::{Did, Ledger, Phase, lock};
use crate::watch::PARTITIONS;

const TOPICS: usize = 4;
/// Deliveries before a message is a dead letter.
const MAX_DELIVER: u32 = 3;
const LEASE: Duration = Duration::from_secs(2);
/// Messages of a topic that are open at the most: then its publisher waits.
const OPEN_MAX: usize = 400;
/// How long a settled message is remembered, in milliseconds; no FETCH takes as long.
const MEMORY: u64 = 600_000;
/// Every so many-th message is acknowledged by nobody, until it is a dead letter.
const POISON: u64 = 16;

/// A message that is not known to be settled.
#[derive(Debug, Default)]
struct Open {
    /// Its id, once the publisher was told.
    id: Option<u64>,
    /// Its publication is in doubt for good.
    maybe_published: bool,
    /// An acknowledgement is in doubt for good.
    maybe_settled: bool,
    /// When it was first seen among the dead letters.
    died: Option<u64>,
}

#[derive(Debug, Default)]
struct Account {
    sent: u64,
    newest_id: u64,
    open: BTreeMap<u64, Open>,
    settled: BTreeMap<u64, u64>,
}

#[derive(Debug)]
struct Topic {
    name: String,
    dead: String,
    partition: u16,
    dead_partition: u16,
    account: Mutex<Account>,
}

fn partition(name: &str) -> u16 {
    partition_of_topic(name.as_bytes(), PARTITIONS).0
}

impl Topic {
    fn new(at: usize) -> Self {
        let name = format!("jobs-{at}");
        let others = (0..).map(|n| format!("dead-jobs-{at}-{n}"));
        let dead =
            others.into_iter().find(|dead| partition(dead) != partition(&name)).expect("names are many");
        let (partition, dead_partition) = (partition(&name), partition(&dead));
        Self { name, dead, partition, dead_partition, account: Mutex::default() }
    }

    async fn publish(&self, client: &Client, again: &Client, ledger: &Ledger, rng: &mut Rng) {
        let n = {
            let mut account = lock(&self.account);
            account.sent += 1;
            let n = account.sent;
            account.open.insert(n, Open::default());
            n
        };
        let body = format!("{n} {}", "m".repeat(rng.index(400)));
        let how = Publish::default().id(format!("publisher-{n}"));
        let id = match client.publish(self.name.clone(), body.clone(), how.clone()).await {
            Ok(id) => id,
            Err(error) => {
                let mut account = lock(&self.account);
                if !ledger.failed("PUB", &error) {
                    account.open.remove(&n);
                } else if let Some(open) = account.open.get_mut(&n) {
                    open.maybe_published = true;
                }
                return;
            }
        };
        ledger.did(Did::Publish);
        ledger.served(self.partition);
        self.published(n, id, ledger);
        if rng.chance(60) {
            match again.publish(self.name.clone(), body, how).await {
                Ok(same) if same == id => ledger.did(Did::Republish),
                Ok(other) => ledger.violated(&format!(
                    "message {n} of {} has id {id}, and was published again as {other} under the same publisher's id",
                    self.name
                )),
                Err(error) => drop(ledger.failed("PUB again", &error)),
            }
        }
    }

    fn published(&self, n: u64, id: u64, ledger: &Ledger) {
        let mut account = lock(&self.account);
        // It may have been delivered and settled before its publisher was told.
        if let Some(open) = account.open.get_mut(&n) {
            open.id = Some(id);
        }
        let newest = std::mem::replace(&mut account.newest_id, id);
        drop(account);
        if id <= newest {
            ledger.violated(&format!("message {n} of {} has id {id}, behind {newest}", self.name));
        }
    }

    /// A message was delivered, by a FETCH that was sent then; its number.
    fn delivered(&self, message: &Message, is_dead: bool, asked: u64, ledger: &Ledger) -> u64 {
        let body = String::from_utf8_lossy(&message.body).into_owned();
        let n = body.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
        let mut account = lock(&self.account);
        let sent = account.sent;
        let settled = account.settled.get(&n).copied();
        let wrong = match account.open.get_mut(&n) {
            None if settled.is_some_and(|settled| settled >= asked) => None,
            None => Some(format!("was settled at {settled:?}, or never published ({sent} were sent)")),
            Some(open) if is_dead => {
                open.died.get_or_insert_with(millis);
                None
            }
            Some(open) if open.died.is_some_and(|died| died < asked) => {
                Some(format!("was a dead letter at {:?}", open.died))
            }
            Some(open) if open.id.is_some_and(|id| id != message.id) => {
                Some(format!("was published as {:?}", open.id))
            }
            Some(_) if message.attempt > MAX_DELIVER => Some("should be a dead letter".to_owned()),
            Some(_) => None,
        };
        drop(account);
        if let Some(wrong) = wrong {
            let (id, attempt) = (message.id, message.attempt);
            let from = if is_dead { &self.dead } else { &self.name };
            ledger.violated(&format!(
                "message {n} is delivered from {from} (id {id}, attempt {attempt}, asked at {asked}), but {wrong}"
            ));
        }
        n
    }

    fn settled(&self, n: u64) {
        let mut account = lock(&self.account);
        account.open.remove(&n);
        let now = millis();
        account.settled.insert(n, now);
        while account.settled.first_key_value().is_some_and(|(_, at)| at + MEMORY < now) {
            account.settled.pop_first();
        }
    }

    fn maybe_settled(&self, n: u64) {
        if let Some(open) = lock(&self.account).open.get_mut(&n) {
            open.maybe_settled = true;
        }
    }

    /// Takes some messages and settles most of them.
    async fn consume(&self, is_dead: bool, home: usize, homes: &Homes, ledger: &Ledger, rng: &mut Rng) {
        let (name, partition) =
            if is_dead { (&self.dead, self.dead_partition) } else { (&self.name, self.partition) };
        let count = u32::try_from(rng.between(1..6)).expect("a few");
        let how = Fetch::default().count(count).block(Duration::from_millis(400)).lease(LEASE);
        let asked = millis();
        let messages = match homes.at(home).fetch(name.clone(), how).await {
            Ok(messages) => messages,
            Err(error) => {
                ledger.failed("FETCH", &error);
                return;
            }
        };
        ledger.served(partition);
        for message in messages {
            let n = self.delivered(&message, is_dead, asked, ledger);
            ledger.did(if is_dead { Did::DeliverDead } else { Did::Deliver });
            // Some consumers hang, some messages are poison; in the end everything is worked off.
            let refused = rng.chance(80) || !is_dead && n.is_multiple_of(POISON);
            if refused && ledger.phase() == Phase::Work {
                continue;
            }
            match homes.at(home).ack(&message).await {
                Ok(true) => {
                    self.settled(n);
                    ledger.did(Did::Ack);
                    ledger.served(partition);
                }
                // Its lease ended meanwhile, or its connection did.
                Ok(false) => {}
                Err(error) => {
                    if ledger.failed("ACK", &error) {
                        self.maybe_settled(n);
                    }
                }
            }
        }
    }
}

/// See the top of the file.
#[derive(Debug)]
pub(super) struct Queues(Vec<Topic>);

impl Queues {
    pub(super) fn new() -> Self {
        Self((0..TOPICS).map(Topic::new).collect())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Sets the topics up.
    pub(super) async fn prepare(&self, client: &Client) -> Result<(), Error> {
        for topic in &self.0 {
            let settings = TopicSettings::default().max_deliver(MAX_DELIVER).dead_letters(topic.dead.clone());
            client.set_topic(topic.name.clone(), settings).await?;
        }
        Ok(())
    }

    /// A topic's only publisher.
    pub(super) async fn publish(
        self: Arc<Self>,
        at: usize,
        homes: Arc<Homes>,
        ledger: Arc<Ledger>,
        mut rng: Rng,
    ) {
        while ledger.phase() == Phase::Work {
            if lock(&self.0[at].account).open.len() < OPEN_MAX {
                let (client, again) = (homes.at(at), homes.at(at + 1));
                self.0[at].publish(&client, &again, &ledger, &mut rng).await;
            }
            pause(&mut rng, 30..120).await;
        }
    }

    /// A topic's consumer, or that of its dead letters.
    pub(super) async fn consume(
        self: Arc<Self>,
        at: usize,
        is_dead: bool,
        home: usize,
        homes: Arc<Homes>,
        ledger: Arc<Ledger>,
        mut rng: Rng,
    ) {
        while ledger.phase() != Phase::End {
            self.0[at].consume(is_dead, home, &homes, &ledger, &mut rng).await;
        }
    }

    /// What is still in the topics, in words; none when they are empty.
    pub(super) async fn rest(&self, client: &Client) -> Option<String> {
        let mut rest = Vec::new();
        for name in self.0.iter().flat_map(|topic| [&topic.name, &topic.dead]) {
            match client.topic_info(name.clone()).await {
                Ok(Some(info)) => {
                    let left = info.ready + info.delayed + info.unacknowledged + info.leaving;
                    if left > 0 {
                        rest.push(format!("{name}: {info:?}"));
                    }
                }
                // A topic without a dead letter is not there yet.
                Ok(None) => {}
                Err(error) => rest.push(format!("{name}: {error}")),
            }
        }
        (!rest.is_empty()).then(|| rest.join("; "))
    }

    /// All topics are empty: what was acknowledged to its publisher was settled, or may have been.
    pub(super) fn audit(&self, ledger: &Ledger) {
        for topic in &self.0 {
            let account = lock(&topic.account);
            for (n, open) in &account.open {
                if !open.maybe_settled && !open.maybe_published {
                    ledger.violated(&format!("message {n} of {} is lost: {open:?}", topic.name));
                }
            }
        }
    }

    /// Pretends that a message was acknowledged that nobody has published.
    pub(super) fn lie(&self) {
        let mut account = lock(&self.0[0].account);
        account.sent += 1;
        let n = account.sent;
        account.open.insert(n, Open { id: Some(n), ..Open::default() });
    }
}
