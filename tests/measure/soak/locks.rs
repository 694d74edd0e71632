//! Locks: never two holders, and tokens that rise.
//!
//! What a client can say for certain of its lock: it holds it from the answer on, until the lease ends that began no
//! earlier than the request was sent, or until it sends UNLOCK. Two such spans of one lock never overlap. The lease
//! is counted by this process's clock, which is the machine's, as that of the nodes is.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_client::reply::Code;
use quorate_client::{Client, Lock};
use quorate_tests::process::millis;
use quorate_tests::sim::rng::Rng;

use super::homes::{Homes, pause};
use super::ledger::{Did, Ledger, Phase, lock};

const LOCKS: usize = 3;
/// Tokens that are remembered: a repeated one is seen among so many.
const TOKENS: usize = 4096;

/// Somebody who holds a lock for certain, until then.
#[derive(Debug, Clone)]
struct Holder {
    owner: String,
    token: u64,
    until: u64,
}

/// See the top of the file.
#[derive(Debug, Default)]
pub(super) struct Locks {
    holders: Mutex<[Option<Holder>; LOCKS]>,
    tokens: Mutex<BTreeSet<u64>>,
}

fn name(at: usize) -> String {
    format!("lock-{at}")
}

impl Locks {
    fn newest(&self) -> u64 {
        lock(&self.tokens).last().copied().unwrap_or(0)
    }

    /// A lock was granted, by an answer that has just come.
    fn granted(&self, at: usize, holder: &Holder, newest: u64, ledger: &Ledger) {
        let now = millis();
        let mut holders = lock(&self.holders);
        if let Some(other) = holders[at].as_ref().filter(|other| other.until > now && holder.until > now) {
            ledger.violated(&format!(
                "{} is held at {now} by {} (token {}, until {}) and by {} (token {}, until {})",
                name(at),
                other.owner,
                other.token,
                other.until,
                holder.owner,
                holder.token,
                holder.until
            ));
        }
        if holders[at].as_ref().is_none_or(|other| other.until < holder.until) {
            holders[at] = Some(holder.clone());
        }
        drop(holders);
        let mut tokens = lock(&self.tokens);
        if holder.token <= newest || !tokens.insert(holder.token) {
            ledger.violated(&format!(
                "{} was granted {} under token {}: {newest} was granted before it asked, or it was used",
                holder.owner,
                name(at),
                holder.token
            ));
        }
        if tokens.len() > TOKENS {
            tokens.pop_first();
        }
    }

    /// From now on its owner no longer counts on it.
    fn given_up(&self, at: usize, token: u64) {
        let mut holders = lock(&self.holders);
        if holders[at].as_ref().is_some_and(|holder| holder.token == token) {
            holders[at] = None;
        }
    }

    /// Takes locks and gives them back, or leaves them to their leases.
    pub(super) async fn take(
        self: Arc<Self>,
        worker: usize,
        homes: Arc<Homes>,
        ledger: Arc<Ledger>,
        mut rng: Rng,
    ) {
        for n in 0.. {
            if ledger.phase() != Phase::Work {
                return;
            }
            self.take_one(&format!("owner-{worker}-{n}"), worker, &homes, &ledger, &mut rng).await;
            pause(&mut rng, 10..60).await;
        }
    }

    async fn take_one(&self, owner: &str, worker: usize, homes: &Homes, ledger: &Ledger, rng: &mut Rng) {
        let (at, ttl) = (rng.index(LOCKS), rng.between(800..2500));
        let wait = if rng.chance(500) { rng.between(100..1500) } else { 0 };
        let how = Lock::owned_by(owner.to_owned()).ttl(Duration::from_millis(ttl));
        let newest = self.newest();
        let sent = millis();
        let held = match homes.at(worker).lock(name(at), how.wait(Duration::from_millis(wait))).await {
            Ok(Some(held)) => held,
            Ok(None) => {
                ledger.did(Did::NotGranted);
                ledger.served(0);
                return;
            }
            Err(error) => {
                ledger.failed("LOCK", &error);
                return;
            }
        };
        let (token, until) = (held.token(), sent + ttl);
        self.granted(at, &Holder { owner: owner.to_owned(), token, until }, newest, ledger);
        ledger.did(Did::Lock);
        ledger.served(0);
        pause(rng, 1..40).await;
        if rng.chance(100) {
            // It hangs: its lease ends by itself.
            return;
        }
        self.given_up(at, token);
        // With a handle of the present: the one inside may belong to a client that was replaced.
        let released = homes.at(worker).unlock(name(at), owner.to_owned(), token).await;
        let in_time = millis() < until;
        match released {
            Ok(true) => {
                ledger.did(Did::Unlock);
                ledger.served(0);
            }
            Ok(false) if in_time => {
                ledger.violated(&format!("{owner} lost {} (token {token}) before its lease ended", name(at)));
            }
            Err(error) if error.code() == Some(Code::NotOwner) => {
                if in_time {
                    ledger.violated(&format!("{owner} lost {} to somebody else: {error}", name(at)));
                }
            }
            Ok(false) => {}
            Err(error) => drop(ledger.failed("UNLOCK", &error)),
        }
    }

    /// Who still holds or waits for a lock, in words. When all leases have ended, nobody does: whoever was told nil holds
    /// nothing.
    pub(super) async fn held(&self, client: &Client) -> Option<String> {
        let mut held = Vec::new();
        for at in 0..LOCKS {
            match client.lock_info(name(at)).await {
                Ok(info) if info.holders.is_empty() && info.waiters.is_empty() => {}
                Ok(info) => held.push(format!("{}: {info:?}", name(at))),
                Err(error) => held.push(format!("{}: {error}", name(at))),
            }
        }
        (!held.is_empty()).then(|| held.join("; "))
    }

    /// Pretends that a token was granted that nobody was given.
    pub(super) fn lie(&self) {
        let newest = self.newest();
        lock(&self.tokens).insert(newest + 1000);
    }
}
