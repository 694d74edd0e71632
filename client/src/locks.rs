//! Locks.

use std::time::Duration;

use bytes::Bytes;
use quorate_protocol::reply::Reply;

use crate::call::millis;
use crate::session::Again;
use crate::values::{Fields, bytes, flag, int, list, maybe, number, option, option_bytes, text, yes};
use crate::{Client, Error};

/// How a lock is asked for.
#[derive(Debug, Clone)]
pub struct Lock {
    owner: Option<Bytes>,
    shared: bool,
    ttl: Option<Duration>,
    wait: Duration,
}

impl Lock {
    /// Owned by name: one critical section of one program. The lock outlives the connection, and the same
    /// owner asking again gets the same token. Two calls under one name are one owner: give each its own.
    #[must_use]
    pub fn owned_by(owner: impl Into<Bytes>) -> Self {
        Self { owner: Some(owner.into()), shared: false, ttl: None, wait: Duration::ZERO }
    }

    /// Owned by the connection: gone as soon as that breaks, also while the holder still works. The client
    /// reconnects by itself, so watch [`Client::connections`]; prefer [`Lock::owned_by`].
    #[must_use]
    pub fn owned_by_connection() -> Self {
        Self { owner: None, shared: false, ttl: None, wait: Duration::ZERO }
    }

    /// Together with other shared holders.
    #[must_use]
    pub fn shared(mut self) -> Self {
        self.shared = true;
        self
    }

    /// The lease from the grant on, by default 30 s; renew it in time ([`Held::renew`]).
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// How long to stand in line; by default the lock is only tried.
    #[must_use]
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }
}

/// A lock that was granted.
///
/// Dropping it releases nothing: the lease runs out by itself. Say [`Held::unlock`].
#[derive(Debug)]
#[must_use = "the lock is held until its lease ends, or its connection; unlock it"]
pub struct Held {
    client: Client,
    name: Bytes,
    owner: Option<Bytes>,
    token: u64,
}

impl Held {
    /// The fencing token: above every earlier one of any lock. Hand it to the store that the lock protects, which
    /// refuses lower ones.
    #[must_use]
    pub fn token(&self) -> u64 {
        self.token
    }

    /// The lock's name.
    #[must_use]
    pub fn name(&self) -> &Bytes {
        &self.name
    }

    fn args(&self) -> Vec<Bytes> {
        let mut args = vec![self.name.clone()];
        option_bytes(&mut args, "OWNER", self.owner.clone());
        option(&mut args, "TOKEN", Some(self.token));
        args
    }

    fn again(&self) -> Again {
        if self.owner.is_some() { Again::InSession } else { Again::Never }
    }

    /// Extends the lease to `ttl` from now; the time left, or none when the lock is lost. A connection's lock ends with that lease
    /// then, unless `ttl` is 30 days: as long as the connection.
    ///
    /// # Errors
    /// As every call.
    pub async fn renew(&self, ttl: Duration) -> Result<Option<Duration>, Error> {
        let mut args = self.args();
        option(&mut args, "TTL", Some(millis(ttl)));
        let reply = self.client.ask("RENEW", args, self.again()).await?;
        maybe(reply, |left| number(left).map(Duration::from_millis))
    }

    /// Releases the lock to whoever is next; false when it was lost already.
    ///
    /// # Errors
    /// As every call; `NOTOWNER` when somebody else holds it by now.
    pub async fn unlock(self) -> Result<bool, Error> {
        yes(self.client.ask("UNLOCK", self.args(), self.again()).await?)
    }
}

/// Who holds a lock and who waits for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockInfo {
    /// The holders.
    pub holders: Vec<Holder>,
    /// Those in line, first come first.
    pub waiters: Vec<Waiter>,
}

/// A holder of a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The owner's name, or the connection.
    pub owner: Bytes,
    /// Others may hold too.
    pub shared: bool,
    /// Its fencing token.
    pub token: u64,
    /// What is left of its lease; none: it is its connection's, and ends with it.
    pub ttl: Option<Duration>,
}

/// Somebody in line for a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiter {
    /// The owner's name, or the connection.
    pub owner: Bytes,
    /// It would let others hold too.
    pub shared: bool,
    /// How long it still waits.
    pub wait: Duration,
}

impl Client {
    /// LOCK: the lock, or none when it was not granted within the wait.
    ///
    /// Dropping the future, or a timeout, gives up on the answer only: an owner by name may still be granted
    /// the lock, until its lease ends; asking again under the same name gets it.
    ///
    /// # Errors
    /// `DEADLOCK` when the wait would close a cycle; it names the cycle. `Lost` when a lock of the connection
    /// was asked for and the connection broke.
    pub async fn lock(&self, name: impl Into<Bytes>, how: Lock) -> Result<Option<Held>, Error> {
        let name = name.into();
        let Lock { owner, shared, ttl, wait } = how;
        let mut args = vec![name.clone()];
        flag(&mut args, "SHARED", shared);
        option_bytes(&mut args, "OWNER", owner.clone());
        option(&mut args, "TTL", ttl.map(millis));
        option(&mut args, "WAIT", (!wait.is_zero()).then(|| millis(wait)));
        // Outside the session: there, the oldest unanswered request holds the window, and this may wait long.
        let again = if owner.is_some() { Again::Repeatable } else { Again::Never };
        let reply = self.ask_waiting("LOCK", args, again, wait).await?;
        let client = self.clone();
        maybe(reply, |token| Ok(Held { client, name, owner, token: number(token)? }))
    }

    /// UNLOCK without a guard: for a lock whose owner and token were handed over from elsewhere. True when it
    /// was released, false when nothing was held under the token.
    ///
    /// # Errors
    /// `NOTOWNER` when somebody else holds it.
    pub async fn unlock(
        &self,
        name: impl Into<Bytes>,
        owner: impl Into<Bytes>,
        token: u64,
    ) -> Result<bool, Error> {
        let held = Held { client: self.clone(), name: name.into(), owner: Some(owner.into()), token };
        held.unlock().await
    }

    /// RENEW without a guard; see [`Client::unlock`] and [`Held::renew`].
    ///
    /// # Errors
    /// As every call.
    pub async fn renew(
        &self,
        name: impl Into<Bytes>,
        owner: impl Into<Bytes>,
        token: u64,
        ttl: Duration,
    ) -> Result<Option<Duration>, Error> {
        let held = Held { client: self.clone(), name: name.into(), owner: Some(owner.into()), token };
        held.renew(ttl).await
    }

    /// LOCKINFO: who holds a lock and who waits for it.
    ///
    /// # Errors
    /// As every call.
    pub async fn lock_info(&self, name: impl Into<Bytes>) -> Result<LockInfo, Error> {
        let mut fields = Fields::of(self.ask("LOCKINFO", vec![name.into()], Again::Read).await?)?;
        Ok(LockInfo {
            holders: list(fields.take("holders"), holder)?,
            waiters: list(fields.take("waiters"), waiter)?,
        })
    }
}

fn holder(reply: Reply) -> Result<Holder, Error> {
    let mut fields = Fields::of(reply)?;
    Ok(Holder {
        owner: bytes(fields.take("owner"))?,
        shared: text(fields.take("mode"))? == "shared",
        token: number(fields.take("token"))?,
        ttl: u64::try_from(int(fields.take("ttl"))?).ok().map(Duration::from_millis),
    })
}

fn waiter(reply: Reply) -> Result<Waiter, Error> {
    let mut fields = Fields::of(reply)?;
    Ok(Waiter {
        owner: bytes(fields.take("owner"))?,
        shared: text(fields.take("mode"))? == "shared",
        wait: Duration::from_millis(number(fields.take("wait"))?),
    })
}
