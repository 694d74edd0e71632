//! Clients that keep what they have read (CLIENT TRACKING), and what they are told.
//!
//! Charter: does what the server's connections do, with the server's own table. Some clients are told of what they have
//! read, some of every write, some of all but their own. They keep what GET answers until they are told to drop it, or until
//! their connection ends; nobody reads from there. When all is at rest, what they still have must be what is there.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate_engine::effect::{CacheEffect, Input, Request, TrackEffect, Want};
use quorate_protocol::command::Tracks;
use quorate_protocol::op::Op;
use quorate_protocol::reply::Reply;
use quorate_server::tracking::{Pushes, Stale, Told};

use super::bugs::Bug;
use super::check::registers::surely_written;
use super::client::ForClient;
use super::workload::{COUNTERS, PAIR, REGISTERS, name};
use super::world::World;

/// How long a push may be on its way when all is at rest: lost news are said again, and leases that are owed end.
const WAY: u64 = 1_000_000;
/// How often it is looked whether a value that is kept is the present one.
const LOOKS: usize = 3;

/// What a client keeps.
#[derive(Debug)]
pub struct Keeper {
    tracks: Tracks,
    kept: BTreeMap<Bytes, Option<Bytes>>,
}

impl Keeper {
    /// Of a client by its number; only an ordered connection can be told.
    #[must_use]
    pub fn of(client: usize, ordered: bool) -> Option<Self> {
        let tracks = match client % 4 {
            0 => Tracks::default(),
            1 => Tracks { no_loop: true, ..Tracks::default() },
            3 => Tracks { broadcast: true, prefixes: vec![Bytes::new()], ..Tracks::default() },
            _ => return None,
        };
        ordered.then(|| Self { tracks, kept: BTreeMap::new() })
    }

    /// What the answer to a request will tell.
    #[must_use]
    pub fn told(&self, request: &Request) -> Option<(u64, Box<Told>)> {
        let Want::Op(op) = &request.want else { return None };
        Some((request.id, Told::of(op, &self.tracks, false)?))
    }

    /// Nobody tells any more what is to be dropped.
    pub fn connection_ended(&mut self) {
        self.kept.clear();
    }
}

impl World {
    /// A connection has come to a node.
    pub fn begin_tracking(&mut self, at: usize, conn: u64, counter: u64) {
        let Some(keeper) = &self.clients[self.conns[&conn].client].keeper else { return };
        let mut mode = None;
        self.nodes[at].tracking.begin(counter, keeper.tracks.clone(), |tracked| mode = Some(tracked));
        mode.into_iter().for_each(|mode| self.post(at, Input::Track(mode)));
    }

    /// It has gone.
    pub fn end_tracking(&mut self, at: usize, counter: u64) {
        let mut mode = None;
        self.nodes[at].tracking.end(counter, |tracked| mode = Some(tracked));
        mode.into_iter().for_each(|mode| self.post(at, Input::Track(mode)));
    }

    /// Lines of a node change.
    pub fn cache_effect(&mut self, at: usize, effect: CacheEffect) {
        let mut pushes = Pushes::new();
        let node = &mut self.nodes[at];
        node.tracking.apply(&node.view, effect, &mut node.evicted, &mut pushes);
        if self.plan.bug != Some(Bug::PushMissed) {
            self.tell_stale(at, pushes);
        }
    }

    /// A node has something to tell its clients.
    pub fn track_effect(&mut self, at: usize, effect: TrackEffect) {
        let mut pushes = Pushes::new();
        self.nodes[at].tracking.told(effect, &mut pushes);
        self.tell_stale(at, pushes);
    }

    /// Tells clients what to drop.
    pub fn tell_stale(&mut self, at: usize, pushes: Pushes) {
        for (counter, stale) in pushes {
            if let Some(&conn) = self.nodes[at].conns.get(&counter) {
                self.note(at, &[15, counter], || format!("tells {counter} to drop {stale:?}"));
                self.send_to_client(conn, 0, ForClient::Stale(stale));
            }
        }
    }

    /// An answer is on its way to a client: what it may not keep of it follows.
    pub fn tell_behind(
        &mut self,
        at: usize,
        (conn, request): (u64, u64),
        told: Option<Box<Told>>,
        reply: &Reply,
    ) {
        let client = &self.clients[self.conns[&conn].client];
        let (Some(told), Some(keeper)) = (told, &client.keeper) else { return };
        if self.plan.bug == Some(Bug::KeptUnseen) {
            return;
        }
        let counter = self.conns[&conn].counter.expect("an answered connection has one");
        let node = &self.nodes[at];
        let (mut pushes, now) = (Pushes::new(), node.clock.read(self.time).mono);
        let who = (counter, &keeper.tracks);
        let mut stale = node.tracking.behind(&node.view, who, *told, reply, now, &mut pushes);
        if self.plan.bug == Some(Bug::TakenForDone) && !is_nothing(reply) {
            let written = self.asked_on(conn, request).map(Op::writes).unwrap_or_default();
            stale.retain(|key| !written.contains(key));
        }
        if !stale.is_empty() {
            pushes.insert(0, (counter, Stale::Keys(stale)));
        }
        self.tell_stale(at, pushes);
    }

    /// A client is told to drop something.
    pub fn drop_kept(&mut self, at: usize, stale: &Stale) {
        let Some(keeper) = &mut self.clients[at].keeper else { return };
        match stale {
            Stale::All => keeper.kept.clear(),
            Stale::Keys(keys) => keys.iter().for_each(|key| drop(keeper.kept.remove(key))),
        }
    }

    /// A client is answered.
    pub fn keep_answer(&mut self, at: usize, operation: u64, reply: &Reply) {
        let Some(keeper) = &mut self.clients[at].keeper else { return };
        match (&self.checks.history.get(operation).op, reply) {
            (Op::Get(key), Reply::Bulk(value)) => drop(keeper.kept.insert(key.clone(), Some(value.clone()))),
            (Op::Get(key), Reply::Nil) => drop(keeper.kept.insert(key.clone(), None)),
            // It knows itself what it has written. What its answer leaves open, it goes on believing.
            (op, reply) if keeper.tracks.no_loop => {
                let written = |key: &&Bytes| surely_written(op, key, reply);
                op.writes().iter().filter(written).for_each(|key| drop(keeper.kept.remove(key)));
            }
            _ => {}
        }
    }

    /// All is at rest: what clients keep is what is there. False when it is not.
    pub fn what_is_kept_is_current(&mut self) -> bool {
        let later = self.time + WAY;
        if !self.run_until(later) {
            return false;
        }
        let auditor = self.add_auditor();
        let registers = (0..REGISTERS).map(|n| name("r", n));
        let counters = (0..COUNTERS).map(|n| name("n", n));
        let keys: Vec<Bytes> =
            registers.chain(counters).chain(PAIR.map(|name| Bytes::from_static(name.as_bytes()))).collect();
        for key in keys {
            for look in 0.. {
                let Some(reply) = self.inquire(auditor, Op::Get(key.clone())) else { return false };
                let value = if let Reply::Bulk(value) = reply { Some(value) } else { None };
                let of = |keeper: &Keeper| keeper.kept.get(&key).cloned();
                let wrong = self.clients.iter().enumerate().find_map(|(at, client)| {
                    let kept = client.keeper.as_ref().and_then(of).filter(|kept| *kept != value)?;
                    Some((at, kept))
                });
                let Some((at, kept)) = wrong else { break };
                if look == LOOKS {
                    let text = format!("client {at} keeps {kept:?} of {key:?}, which is {value:?}");
                    self.fail("what clients keep is current", text);
                    return false;
                }
                // A command of unknown outcome may still take effect.
                let later = self.time + WAY;
                if !self.run_until(later) {
                    return false;
                }
            }
        }
        true
    }
}

/// An answer that says by its kind alone that nothing, or not all, was done.
fn is_nothing(reply: &Reply) -> bool {
    match reply {
        Reply::Error(_) | Reply::Nil | Reply::Int(0) => true,
        Reply::Array(replies) => replies.iter().any(is_nothing),
        _ => false,
    }
}
