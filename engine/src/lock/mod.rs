//! Locks: shared and exclusive, first come first served, with leases and fencing tokens.
//!
//! Charter: applies LOCK, UNLOCK, RENEW, the passing of time and the end of connections to the table of
//! holders (`holds`) and waiting requests (`waits`). `graph.rs` refuses waits that could never end.
//!
//! Invariants:
//! - Never two holders of a lock of whom one is exclusive. (Checked at every grant, in release too.)
//! - Tokens rise with every grant, over all locks, and are never reused: one counter, no memory per name. (That of a grant
//!   which waits for partitions is taken when the wait begins.)
//! - No other waiting request that could be granted is left waiting: whatever takes a holder or a waiter away calls
//!   `grant`. Where it is much, it follows by portions (`closing.rs`).
//! - A lock whose tokens partitions compare is granted anew only when they know of it: until then the request that is
//!   next goes on waiting (`fencing.rs`).
//! - No set of owners waits for each other: every request is checked when it begins to wait, and nothing
//!   else adds a wait. (A withdrawal takes one away; a grant turns "ahead of me" into "holds against me".)
//!
//! Subtlety: a request is queued by the serial number of its place in the log; an upgrade (exclusive asked by
//! a shared holder) stands before all others. An exclusive request is granted when nobody but its own owner
//! holds the lock, which covers upgrades too.

mod closing;
mod fencing;
mod graph;
mod index;

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::id::ConnId;
use quorate_protocol::limits::{DURATION_MAX, LOCK_HOLDERS_MAX, LOCK_WAITERS_MAX, LOCKINFO_MAX, LOCKS_MAX};
use quorate_protocol::op::{Lock, Renew, Unlock};
use quorate_protocol::reply::{Code, Reply};
use quorate_protocol::wire::Malformed;
use quorate_protocol::{wire_enum, wire_struct};

use crate::outcome::{Asker, Ctx, Outcome, Outcomes, answer};
use fencing::Fencing;
use index::{Index, Key, Line};

use crate::portion::Portion;
use crate::table::{Rows, Table, load_row, take_row};
use crate::time::{is_over, over_at};
use crate::trash::Trash;

/// Names of which refused tries are remembered; beyond it the memory starts anew.
const REFUSED_MAX: usize = 4096;
/// Tokens that a restored cluster leaves out: those that the old one may have given after the cut.
const TOKENS_LEFT_OUT: u64 = 1 << 40;
/// How long a try waits when all that it waits for is that partitions hear of its grant; milliseconds.
const FLOORS_WAIT: u64 = 1000;
/// Places in a queue from here on are ordinary; those below are upgrades.
const ORDINARY: u64 = 1 << 63;

wire_enum! {
    /// Who holds or waits.
    #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
    pub enum Owner {
        /// A critical section that a client has named.
        Named(name: Bytes) = 1,
        /// A connection.
        Conn(conn: ConnId) = 2,
    }
}

/// A deadline that does not come.
const NEVER: u64 = u64::MAX;

impl Owner {
    /// When a lease ends that begins now. A connection that has not said for how long holds a lock as long as it lives.
    fn until(&self, time: u64, ttl: u64) -> u64 {
        let endless = matches!(self, Self::Conn(_)) && ttl == DURATION_MAX;
        if endless { NEVER } else { time.saturating_add(ttl) }
    }
}

impl core::fmt::Display for Owner {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Named(name) => write!(f, "{}", name.escape_ascii()),
            Self::Conn(conn) => write!(f, "conn:{}.{}.{}", conn.node.0, conn.boot().0, conn.number()),
        }
    }
}

wire_struct! {
    /// A grant. Its key is (lock, token).
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Hold {
        /// Who holds.
        pub owner: Owner,
        /// Others may hold too.
        pub shared: bool,
        /// Group time at which the lease ends.
        pub deadline: u64,
    }
}

wire_struct! {
    /// A waiting request. Its key is (lock, place in the queue).
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Wait {
        /// Who waits.
        pub owner: Owner,
        /// Where the answer goes.
        pub asker: Asker,
        /// Others may hold too.
        pub shared: bool,
        /// The lease once it is granted, in milliseconds.
        pub ttl: u64,
        /// Group time at which the request is withdrawn.
        pub deadline: u64,
    }
}

/// Deliberate bugs, for the tests of the checkers.
#[cfg(feature = "faults")]
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// A try finds every lock free.
    pub double_grant: bool,
    /// The token counter stands still.
    pub token_reused: bool,
    /// A shared request overtakes whoever waits.
    pub overtaking: bool,
    /// A waiting request is never checked for a cycle.
    pub deadlock_ignored: bool,
    /// A lock is granted before the partitions that compare its tokens know of it; they are told late.
    pub floors_not_awaited: bool,
    /// No bug: how long watches last in a short life; milliseconds.
    pub short_watches: Option<u64>,
}

/// See the top of the file.
pub struct Locks {
    holds: Table<Key, Hold>,
    waits: Table<Key, Wait>,
    /// One row: the last token.
    token: Table<u8, u64>,
    /// Connections that have ended and hold too much to release it at once: the last of a range of one node session,
    /// and the counter to go on with.
    closing: Table<ConnId, u64>,
    /// Locks that more requests can be granted than at once.
    granting: Table<Bytes, u8>,
    /// Who compares tokens, and which grants wait for that.
    pub fencing: Fencing,
    index: Index,
    /// Whom a lock was refused during the present lease. Not replicated state: only a hint for the log.
    refused: BTreeMap<Bytes, Owner>,
    #[cfg(feature = "faults")]
    faults: Faults,
}

impl Locks {
    /// No locks.
    #[must_use]
    pub fn new() -> Self {
        let mut token = Table::new(503);
        token.insert(0, 0);
        Self {
            holds: Table::new(501),
            waits: Table::new(502),
            token,
            closing: Table::new(504),
            granting: Table::new(505),
            fencing: Fencing::new(),
            index: Index::default(),
            refused: BTreeMap::new(),
            #[cfg(feature = "faults")]
            faults: Faults::default(),
        }
    }

    /// No locks, and tokens above all that another cluster with the same past may give (`rebase.rs`).
    ///
    /// # Errors
    /// When there are none left.
    pub fn rebased(self) -> Result<Self, &'static str> {
        let last = *self.token.get(&0).expect("the row exists from the beginning");
        let jumped = last.checked_add(TOKENS_LEFT_OUT).filter(|&token| i64::try_from(token).is_ok());
        let mut fresh = Self::new();
        fresh.token.insert(0, jumped.ok_or("it has been restored so often that no fencing tokens are left")?);
        Ok(fresh)
    }

    /// Switches deliberate bugs on.
    #[cfg(feature = "faults")]
    pub fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    /// The digest of all locks.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let rest = self.closing.digest().wrapping_add(self.granting.digest());
        let locks = self.holds.digest().wrapping_add(self.waits.digest());
        locks.wrapping_add(self.token.digest()).wrapping_add(rest).wrapping_add(self.fencing.digest())
    }

    /// Whether no lock is held or awaited.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.holds.is_empty() && self.waits.is_empty()
    }

    /// The earliest end of a lease or a wait.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        if self.has_rest() {
            return Some(0);
        }
        let locks = self.index.deadlines.first().map(|(deadline, ..)| *deadline);
        let locks = locks.filter(|deadline| *deadline < NEVER).map(over_at);
        locks.into_iter().chain(self.fencing.next_end()).min()
    }

    /// LOCK
    pub fn lock(&mut self, ctx: &Ctx, asker: &Asker, mut op: Lock, out: &mut Outcomes) {
        let owner = owner_of(op.owner.as_ref(), asker);
        let held = self.held_by(&owner, &op.name);
        if let Some((key, hold)) = &held
            && (op.shared || !hold.shared)
        {
            // What it holds covers what it asks: the same token, the lease renewed.
            self.set_deadline(key, owner.until(ctx.time, op.ttl));
            return answer(out, *asker, Reply::int(key.1));
        }
        if let Some(key) = self.waits_of(&owner, &op.name) {
            return self.ask_again(ctx, asker, &op, &key, out);
        }
        let first = held.is_some() || self.line(&op.name).waits == 0;
        #[cfg(feature = "faults")]
        let first = first || (self.faults.overtaking && op.shared);
        let mut place = if held.is_some() { ctx.at.serial() } else { ORDINARY | ctx.at.serial() };
        // Who upgrades alone may stand behind an upgrade of somebody who holds it no more, and who waits for this very one.
        let ahead = self.queue_of(&op.name).next().map(|((_, ahead), _)| ahead.saturating_sub(1));
        if first && self.may_hold(&op.name, &owner, op.shared) {
            place = ahead.map_or(place, |ahead| ahead.min(place));
            if held.is_none() && self.index.lines.len() >= LOCKS_MAX {
                return answer(out, *asker, full());
            }
            if let Some(token) = self.token_for(&op.name, &owner, place) {
                let until = owner.until(ctx.time, op.ttl);
                self.hold(&op.name, owner, op.shared, token, until);
                return answer(out, *asker, Reply::int(token));
            }
            // Nobody else has it: it is only that partitions have to hear of the grant first.
            op.wait = if op.wait == 0 { FLOORS_WAIT } else { op.wait };
        }
        if op.wait == 0 {
            self.remember_refused(&op.name, owner);
            return answer(out, *asker, Reply::Nil);
        }
        self.wait(ctx, asker, owner, &op, place, out);
    }

    /// Queues a request, unless it could never be granted.
    fn wait(&mut self, ctx: &Ctx, asker: &Asker, owner: Owner, op: &Lock, place: u64, out: &mut Outcomes) {
        if self.line(&op.name).waits >= LOCK_WAITERS_MAX {
            self.begin_anew(&op.name, place);
            // Not -BUSY: that code promises that the command was never proposed, and it was.
            let text = format!("{LOCK_WAITERS_MAX} requests wait for this lock already; try again later");
            return answer(out, *asker, Reply::error(Code::Err, text));
        }
        let name = Bytes::copy_from_slice(&op.name);
        let deadline = ctx.time.saturating_add(op.wait);
        let wait = Wait { owner: owner.clone(), asker: *asker, shared: op.shared, ttl: op.ttl, deadline };
        self.insert_wait((name.clone(), place), wait);
        if let Some(cycle) = self.find_cycle(&owner) {
            self.remove_wait(&(name, place));
            out.push(Outcome::Notice(format!("DEADLOCK DETECTED: {cycle}")));
            return answer(out, *asker, Reply::error(Code::Deadlock, cycle));
        }
        out.push(Outcome::Waits { to: *asker });
    }

    /// An owner asks for a lock that it waits for already: the newer request takes the older one's place.
    fn ask_again(&mut self, ctx: &Ctx, asker: &Asker, op: &Lock, key: &Key, out: &mut Outcomes) {
        if op.wait == 0 {
            return answer(out, *asker, Reply::Nil);
        }
        let old = self.remove_wait(key);
        self.begin_anew(&key.0, key.1);
        let text = "a newer request of the same owner has taken this one's place in the queue";
        answer(out, old.asker, Reply::error(Code::InDoubt, text));
        self.wait(ctx, asker, old.owner, op, key.1, out);
        self.grant(ctx, &key.0, out);
    }

    /// UNLOCK
    pub fn unlock(&mut self, ctx: &Ctx, asker: &Asker, op: Unlock, out: &mut Outcomes) {
        let owner = owner_of(op.owner.as_ref(), asker);
        match self.held_by(&owner, &op.name) {
            Some((key, _)) if op.token.is_none_or(|token| token == key.1) => {
                self.remove_hold(&key);
                answer(out, *asker, Reply::Int(1));
                self.grant(ctx, &op.name, out);
            }
            None if self.line(&op.name).holds > 0 => {
                let text = "somebody else holds this lock; LOCKINFO shows who";
                answer(out, *asker, Reply::error(Code::NotOwner, text));
            }
            _ => answer(out, *asker, Reply::Int(0)),
        }
    }

    /// RENEW
    pub fn renew(&mut self, ctx: &Ctx, asker: &Asker, op: Renew, out: &mut Outcomes) {
        let owner = owner_of(op.owner.as_ref(), asker);
        match self.held_by(&owner, &op.name) {
            Some((key, _)) if op.token.is_none_or(|token| token == key.1) => {
                self.set_deadline(&key, owner.until(ctx.time, op.ttl));
                answer(out, *asker, Reply::int(op.ttl));
            }
            _ => answer(out, *asker, Reply::Nil),
        }
    }

    /// LOCKINFO, at the group time of the applied state.
    #[must_use]
    pub fn info(&self, time: u64, name: &Bytes) -> Reply {
        let mode = |shared| Reply::text(if shared { "shared" } else { "exclusive" });
        let left = |deadline: u64| match deadline {
            NEVER => Reply::Int(-1),
            deadline => Reply::int(deadline.saturating_sub(time)),
        };
        let holder = |((_, token), hold): (&Key, &Hold)| {
            fields([
                ("owner", Reply::text(hold.owner.to_string())),
                ("mode", mode(hold.shared)),
                ("token", Reply::int(*token)),
                ("ttl", left(hold.deadline)),
            ])
        };
        let waiter = |(_, wait): (&Key, &Wait)| {
            fields([
                ("owner", Reply::text(wait.owner.to_string())),
                ("mode", mode(wait.shared)),
                ("wait", left(wait.deadline)),
            ])
        };
        let line = self.line(name);
        fields([
            ("name", Reply::Bulk(name.clone())),
            ("holding", Reply::int(line.holds as u64)),
            ("waiting", Reply::int(line.waits as u64)),
            ("holders", Reply::Array(self.holds_of(name).take(LOCKINFO_MAX).map(holder).collect())),
            ("waiters", Reply::Array(self.queue_of(name).take(LOCKINFO_MAX).map(waiter).collect())),
        ])
    }

    /// Ends the leases and waits that group time has ended, as far as the portion goes.
    pub fn expire(&mut self, ctx: &Ctx, portion: &mut Portion, out: &mut Outcomes) {
        self.work_off(ctx, portion, out);
        self.fencing.expire(ctx.time, portion);
        while let Some((deadline, is_wait, key)) = self.index.deadlines.first() {
            if !is_over(*deadline, ctx.time) || !portion.take(2) {
                break;
            }
            let key = key.clone();
            if *is_wait {
                let wait = self.remove_wait(&key);
                self.remember_refused(&key.0, wait.owner);
                answer(out, wait.asker, Reply::Nil);
            } else {
                let hold = self.remove_hold(&key);
                self.report_expiry(&key.0, &hold.owner, out);
            }
            self.grant(ctx, &key.0, out);
        }
    }

    /// A lease that ran out while others wanted the lock looks like a deadlock to them: the log says so.
    fn report_expiry(&mut self, name: &Bytes, owner: &Owner, out: &mut Outcomes) {
        let waiting = self.queue_of(name).map(|(_, wait)| &wait.owner).find(|other| *other != owner);
        let refused = self.refused.get(name).filter(|other| *other != owner);
        if let Some(other) = waiting.or(refused) {
            let name = name.escape_ascii();
            out.push(Outcome::Notice(format!(
                "DEADLOCK DETECTED: lease of {owner} on {name} expired with {other} waiting or refused; released"
            )));
        }
        self.refused.remove(name);
    }

    /// Whether the holders let this owner hold the lock, whoever waits.
    fn may_hold(&self, name: &Bytes, owner: &Owner, shared: bool) -> bool {
        #[cfg(feature = "faults")]
        if self.faults.double_grant {
            return true;
        }
        if shared {
            self.has_room_for_shared(name)
        } else {
            self.holds_of(name).all(|(_, hold)| hold.owner == *owner)
        }
    }

    fn has_room_for_shared(&self, name: &Bytes) -> bool {
        let line = self.line(name);
        line.exclusive == 0 && line.holds < LOCK_HOLDERS_MAX
    }

    /// The last token.
    fn last_token(&self) -> u64 {
        *self.token.get(&0).expect("the row exists from the beginning")
    }

    fn next_token(&mut self) -> u64 {
        #[cfg(feature = "faults")]
        let rises = u64::from(!self.faults.token_reused);
        #[cfg(not(feature = "faults"))]
        let rises = 1;
        let token = self.token.change(&0, |token| {
            *token += rises;
            (*token).max(1)
        });
        token.expect("the row exists from the beginning")
    }

    /// Makes an owner a holder, in place of what it held of the lock.
    fn hold(&mut self, name: &Bytes, owner: Owner, shared: bool, token: u64, deadline: u64) {
        if let Some((key, _)) = self.held_by(&owner, name) {
            self.remove_hold(&key);
        }
        let name = Bytes::copy_from_slice(name);
        self.refused.remove(&name);
        self.insert_hold((name.clone(), token), Hold { owner, shared, deadline });
        let line = self.line(&name);
        #[cfg(feature = "faults")]
        if self.faults.double_grant || self.faults.token_reused {
            return;
        }
        assert!(line.exclusive == 0 || line.holds == 1, "an exclusive holder is the only one");
    }

    fn remember_refused(&mut self, name: &Bytes, owner: Owner) {
        if self.refused.len() >= REFUSED_MAX {
            self.refused.clear();
        }
        if self.line(name).holds > 0 {
            self.refused.insert(Bytes::copy_from_slice(name), owner);
        }
    }

    fn line(&self, name: &Bytes) -> Line {
        self.index.lines.get(name).cloned().unwrap_or_default()
    }

    fn holds_of(&self, name: &Bytes) -> impl Iterator<Item = (&Key, &Hold)> {
        self.holds.range((name.clone(), 0)..=(name.clone(), u64::MAX))
    }

    fn queue_of(&self, name: &Bytes) -> impl Iterator<Item = (&Key, &Wait)> {
        self.waits.range((name.clone(), 0)..=(name.clone(), u64::MAX))
    }

    fn held_by(&self, owner: &Owner, name: &Bytes) -> Option<(Key, Hold)> {
        let keys = self.index.holds.get(owner)?;
        let key = keys.range((name.clone(), 0)..=(name.clone(), u64::MAX)).next()?;
        Some((key.clone(), self.holds.get(key).expect("the index names rows").clone()))
    }

    fn waits_of(&self, owner: &Owner, name: &Bytes) -> Option<Key> {
        let keys = self.index.waits.get(owner)?;
        keys.range((name.clone(), 0)..=(name.clone(), u64::MAX)).next().cloned()
    }

    fn set_deadline(&mut self, key: &Key, deadline: u64) {
        let mut hold = self.remove_hold(key);
        hold.deadline = deadline;
        self.insert_hold(key.clone(), hold);
    }

    fn insert_hold(&mut self, key: Key, hold: Hold) {
        self.index.add_hold(&key, &hold);
        self.holds.insert(key, hold);
    }

    fn remove_hold(&mut self, key: &Key) -> Hold {
        let hold = self.holds.remove(key).expect("the caller has seen it");
        self.index.drop_hold(key, &hold);
        hold
    }

    fn insert_wait(&mut self, key: Key, wait: Wait) {
        self.index.add_wait(&key, &wait);
        self.waits.insert(key, wait);
    }

    fn remove_wait(&mut self, key: &Key) -> Wait {
        let wait = self.waits.remove(key).expect("the caller has seen it");
        self.index.drop_wait(key, &wait);
        wait
    }

    /// All tables, in the order in which a snapshot shows them.
    pub fn tables(&mut self) -> Vec<&mut dyn Rows> {
        let mut tables: Vec<&mut dyn Rows> = alloc::vec![
            &mut self.token,
            &mut self.holds,
            &mut self.waits,
            &mut self.closing,
            &mut self.granting,
        ];
        tables.extend(self.fencing.tables());
        tables
    }

    /// Takes a row of one of the tables from a snapshot.
    ///
    /// # Errors
    /// When it is none.
    pub fn load(&mut self, table: u64, input: &mut Bytes) -> Result<(), Malformed> {
        match table {
            n if n == self.token.id() => load_row(&mut self.token, input)?,
            n if n == self.holds.id() => {
                let (key, hold) = take_row(input)?;
                self.insert_hold(key, hold);
            }
            n if n == self.waits.id() => {
                let (key, wait) = take_row(input)?;
                self.insert_wait(key, wait);
            }
            n if n == self.closing.id() => load_row(&mut self.closing, input)?,
            n if n == self.granting.id() => load_row(&mut self.granting, input)?,
            _ => return self.fencing.load(table, input),
        }
        Ok(())
    }

    /// Gives all rows away, to be dropped bit by bit.
    pub fn discard(self, trash: &mut Trash) {
        self.holds.discard(trash, |_| 0);
        self.waits.discard(trash, |_| 0);
        self.index.discard(trash);
        self.fencing.discard(trash);
    }

    /// The index as the rows say it is.
    #[cfg(test)]
    fn rebuilt(&self) -> Index {
        let mut index = Index::default();
        self.holds.iter().for_each(|(key, hold)| index.add_hold(key, hold));
        self.waits.iter().for_each(|(key, wait)| index.add_wait(key, wait));
        index
    }
}

impl Default for Locks {
    fn default() -> Self {
        Self::new()
    }
}

fn owner_of(named: Option<&Bytes>, asker: &Asker) -> Owner {
    named.map_or(Owner::Conn(asker.conn), |name| Owner::Named(Bytes::copy_from_slice(name)))
}

fn full() -> Reply {
    // Not -BUSY: that code promises that the command was never proposed, and it was.
    Reply::error(Code::Err, format!("{LOCKS_MAX} locks are held or awaited; release some"))
}

fn fields<const N: usize>(fields: [(&str, Reply); N]) -> Reply {
    Reply::Map(
        fields.into_iter().map(|(name, value)| (Reply::text(String::from(name)), value)).collect::<Vec<_>>(),
    )
}

#[cfg(test)]
mod tests;
