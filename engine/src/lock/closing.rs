//! The end of connections, sessions and client sessions, and grants to many at once: what takes long goes on by portions.
//!
//! Invariants:
//! - What is in `closing` and `granting` is worked off with every entry, and nobody can add to a connection that is in
//!   there: it has ended.
//! - Of a connection in portions, what it holds is released before what it asked is withdrawn.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::id::{ClientId, ConnId, NodeId, SessionId};
use quorate_protocol::reply::Reply;

use super::index::Key;
use super::{Locks, Owner};
use crate::outcome::{Ctx, Outcomes, answer};
use crate::portion::Portion;

/// What a released lock, or a withdrawn request, costs of a portion.
const COST: usize = 2;
/// Requests that are granted at once.
const GRANTS: usize = 32;

impl Locks {
    /// A connection has ended: what it owns is released, what it asked is withdrawn. At once, unless it is much.
    pub fn close(&mut self, ctx: &Ctx, conn: ConnId, out: &mut Outcomes) {
        self.close_up_to(ctx, conn, conn.counter, out);
    }

    /// The session of a node has ended, and with it all connections of that session.
    pub fn end_session(&mut self, ctx: &Ctx, node: NodeId, session: SessionId, out: &mut Outcomes) {
        self.close_up_to(ctx, ConnId { node, session, counter: u64::MAX }, 0, out);
    }

    fn close_up_to(&mut self, ctx: &Ctx, last: ConnId, from: u64, out: &mut Outcomes) {
        if let Some(rest) = self.close_some(ctx, last, from, &mut Portion::of_command(), out) {
            self.closing.insert(last, rest);
        }
    }

    /// A client session has ended: nobody will ask for what still waits in it, and it must not be granted.
    pub fn end_client(&mut self, ctx: &Ctx, client: ClientId, out: &mut Outcomes) {
        let mut names = BTreeSet::new();
        for key in self.index.asked_in.get(&client).cloned().unwrap_or_default() {
            let wait = self.remove_wait(&key);
            answer(out, wait.asker, Reply::Nil);
            names.insert(key.0);
        }
        for name in names {
            self.grant(ctx, &name, out);
        }
    }

    /// Goes on with what was too much at once.
    pub(super) fn work_off(&mut self, ctx: &Ctx, portion: &mut Portion, out: &mut Outcomes) {
        while portion.is_left()
            && let Some((&last, &from)) = self.closing.first()
        {
            match self.close_some(ctx, last, from, portion, out) {
                Some(rest) => _ = self.closing.insert(last, rest),
                None => _ = self.closing.remove(&last),
            }
        }
        while portion.is_left()
            && let Some((name, _)) = self.granting.first()
        {
            let name = name.clone();
            self.granting.remove(&name);
            portion.take(GRANTS * COST);
            self.grant(ctx, &name, out);
        }
    }

    /// Whether something was too much at once.
    pub(super) fn has_rest(&self) -> bool {
        !self.closing.is_empty() || !self.granting.is_empty()
    }

    /// Closes connections from a counter on, up to the last one; returns the counter to go on with.
    fn close_some(
        &mut self,
        ctx: &Ctx,
        last: ConnId,
        mut from: u64,
        portion: &mut Portion,
        out: &mut Outcomes,
    ) -> Option<u64> {
        loop {
            let first = ConnId { counter: from, ..last };
            let owner = self.index.holds.range(Owner::Conn(first)..=Owner::Conn(last)).next();
            let owner =
                owner.and_then(|(owner, _)| if let Owner::Conn(conn) = owner { Some(*conn) } else { None });
            let asker = self.index.asked_on.range(first..=last).next().map(|(conn, _)| *conn);
            let conn = owner.into_iter().chain(asker).min()?;
            if !self.close_one(ctx, conn, portion, out) {
                return Some(conn.counter);
            }
            from = conn.counter.checked_add(1).filter(|next| *next <= last.counter)?;
        }
    }

    /// Closes a connection; whether all of it is done.
    fn close_one(&mut self, ctx: &Ctx, conn: ConnId, portion: &mut Portion, out: &mut Outcomes) -> bool {
        let owner = Owner::Conn(conn);
        let mut names = BTreeSet::new();
        let mut done = true;
        while let Some(key) = self.index.holds.get(&owner).and_then(|keys| keys.first().cloned()) {
            done = portion.take(COST);
            if !done {
                break;
            }
            self.remove_hold(&key);
            names.insert(key.0);
        }
        // A named owner that asks in a client session may go on on another connection.
        let ends = |key: &&Key| {
            let wait = self.waits.get(key).expect("the index names rows");
            wait.owner == owner || wait.asker.client.is_none()
        };
        let asked = self.index.asked_on.get(&conn).into_iter().flatten().filter(ends);
        let asked: Vec<Key> = if done { asked.take(GRANTS).cloned().collect() } else { Vec::new() };
        done &= asked.len() < GRANTS;
        for key in asked {
            if !portion.take(COST) {
                done = false;
                break;
            }
            let wait = self.remove_wait(&key);
            answer(out, wait.asker, Reply::Nil);
            names.insert(key.0);
        }
        for name in names {
            self.grant(ctx, &name, out);
        }
        done
    }

    /// Grants a lock to whoever is next, as far as it goes.
    pub(super) fn grant(&mut self, ctx: &Ctx, name: &Bytes, out: &mut Outcomes) {
        for _ in 0..GRANTS {
            let Some((key, wait)) = self.queue_of(name).next() else { return };
            if !self.may_hold(name, &wait.owner, wait.shared) {
                return;
            }
            let (key, owner) = (key.clone(), wait.owner.clone());
            let Some(token) = self.token_for(name, &owner, key.1) else { return };
            let wait = self.remove_wait(&key);
            let until = owner.until(ctx.time, wait.ttl);
            self.hold(name, owner, wait.shared, token, until);
            answer(out, wait.asker, Reply::int(token));
        }
        self.granting.insert(Bytes::copy_from_slice(name), 0);
    }
}
