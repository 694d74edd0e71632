//! The engine's thread: the only caller of `step`, and the performer of its effects, in order.
//!
//! Invariant: a turn is: what waits in the mailbox, a tick if one is due, `EndOfTurn`; then all effects.
//! An engine that has more to do than fitted a turn gets the next one without waiting for the mailbox.
//! A tick that was missed is not made up. A failure of the disk ends the process, as a panic does: a node
//! that cannot trust itself does not go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use quorate_engine::effect::{Effect, Effects, Input, Level, Side, TICK};
use quorate_engine::engine::{Counts, Engine};
use quorate_protocol::id::{GroupId, Index};
use quorate_protocol::limits::TRACKED_MAX;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::client_memory::ClientMemory;
use crate::clock;
use crate::journal::{Listener, SyncThread};
use crate::mailbox::{Mailbox, Taken};
use crate::outlet::{Out, Outlets};
use crate::peers::Peers;
use crate::peers::book::Book;
use crate::tracking::{Pushes, Tracking};
use crate::view::View;

/// What the engine's thread shares with the rest of the node.
#[derive(Debug, Default)]
pub struct Shared {
    /// What waits for the engine.
    pub mailbox: Mailbox,
    /// What waits for clients.
    pub outlets: Outlets,
    /// Other nodes.
    pub peers: Peers,
    /// Who they are.
    pub book: Book,
    /// What is read without asking the engine.
    pub view: View,
    /// What their connections hold.
    pub client_memory: Arc<ClientMemory>,
    /// What clients keep themselves.
    pub tracking: Tracking,
    /// Cancelled when the node is told to stop: no new clients.
    pub leaving: CancellationToken,
    /// The engine was told, and leads nothing any more.
    pub resigned: Notify,
    /// Cancelled when the node stops: no new requests either.
    pub stopping: CancellationToken,
    /// What the engine has counted by its last tick.
    pub counts: Arc<Mutex<Counts>>,
    /// Commits of the journal that are on stable storage, each of them one sync or more.
    pub commits: AtomicU64,
    /// Connections that there have been.
    conns: AtomicU64,
}

impl Shared {
    /// Of a node that reads from this view, and whose clients may hold so many bytes.
    #[must_use]
    pub fn new(view: View, client_memory: usize) -> Self {
        let tracking = Tracking::new(view.partitions(), TRACKED_MAX);
        let client_memory = Arc::new(ClientMemory::new(client_memory));
        Self { view, client_memory, tracking, ..Self::default() }
    }

    /// The number of a new connection. 0 is the node's own.
    pub fn next_conn(&self) -> u64 {
        self.conns.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// Tells the engine what the disk has done.
#[derive(Debug)]
pub struct DiskListener(pub Arc<Shared>);

impl Listener for DiskListener {
    fn durable(&self, seq: u64) {
        self.0.commits.fetch_add(1, Ordering::Relaxed);
        self.0.mailbox.post_urgent(Input::Persisted(seq), 0);
    }

    fn background_done(&self, number: u64) {
        self.0.mailbox.post_urgent(Input::BackgroundDone(number), 0);
    }

    fn mapped(&self, group: GroupId, index: Index, bytes: Option<Bytes>) {
        self.0.mailbox.post_urgent(Input::Mapped { group, index, bytes }, 0);
    }

    fn room(&self, has: bool) {
        if has {
            tracing::info!("the disk has room again");
        } else {
            tracing::warn!("the disk is full: nothing is written for clients until there is room again");
        }
        self.0.mailbox.post_urgent(Input::Room(has), 0);
    }

    fn failed(&self, why: String) {
        stop_at_once(&why);
    }
}

/// Ends the process because it must not go on. The last line says why.
fn stop_at_once(why: &str) -> ! {
    tracing::error!("{why}");
    std::process::exit(70);
}

/// How long a node that stops goes on to tell the groups which connections have gone; microseconds.
const FAREWELL: u64 = 500_000;

/// Runs the engine until the mailbox says stop, and then until there is nothing left to tell.
pub fn run(mut engine: Engine, shared: &Shared, disk: SyncThread) {
    let mut fx = Effects::new();
    let mut evicted = Vec::new();
    let mut taken = Taken::default();
    let mut next_tick = clock::now().mono;
    let mut stopped_at = None;
    let mut resigning = false;
    loop {
        let patience = if engine.has_more() { Duration::ZERO } else { clock::until(next_tick, clock::now()) };
        shared.mailbox.take(patience, &mut taken);
        let now = clock::now();
        if !evicted.is_empty() {
            engine.step(now, Input::Evicted(std::mem::take(&mut evicted)), &mut fx);
        }
        for input in taken.inputs.drain(..) {
            resigning |= matches!(input, Input::Resign);
            engine.step(now, input, &mut fx);
        }
        let mut pushes = Pushes::new();
        if now.mono >= next_tick {
            shared.tracking.tick(now.mono, &mut pushes);
            *shared.counts.lock() = engine.counts();
            next_tick = (next_tick + TICK).max(now.mono);
            engine.step(now, Input::Shown(shared.view.take_shown()), &mut fx);
            engine.step(now, Input::Tick, &mut fx);
        }
        engine.step(now, Input::EndOfTurn, &mut fx);
        perform(&mut fx, shared, &disk, &mut evicted, pushes);
        if resigning && engine.is_idle() {
            shared.resigned.notify_one();
        }
        if taken.stopped {
            let since = *stopped_at.get_or_insert(now.mono);
            if engine.is_idle() || now.mono > since + FAREWELL {
                return disk.close();
            }
        }
    }
}

/// `pushes`: what clients are to be told first.
fn perform(
    fx: &mut Effects,
    shared: &Shared,
    disk: &SyncThread,
    evicted: &mut Vec<(GroupId, Bytes)>,
    mut pushes: Pushes,
) {
    let mut touched = Vec::new();
    shared.outlets.add_stale(&mut pushes, &mut touched);
    for effect in fx.drain(..) {
        match effect {
            Effect::Persist(batch) => disk.submit(batch),
            Effect::Background { number, ios } => disk.submit_background(number, ios),
            Effect::Map { group, index } => disk.submit_map(group, index),
            Effect::Stop(why) => stop_at_once(&why),
            Effect::Snapshot { to, frame } => shared.peers.send_snapshot(to, frame),
            Effect::SendPiece { to, at, length } => shared.peers.send_piece(to, at, length),
            Effect::ReadPiece { conn, request, at, length } => {
                if !shared.peers.read_piece((conn, request), at, length) {
                    let bytes = Err("too much is being read already".to_owned());
                    shared.mailbox.post_urgent(Input::PieceRead { conn, request, bytes }, 0);
                }
            }
            Effect::Raft { to, frame } => shared.peers.send_raft(to, frame),
            Effect::Link { peer, side: Side::Opener, frame } => shared.peers.send_forward(peer, frame),
            Effect::Link { peer, side: Side::Reached, frame } => shared.peers.send_back(peer, frame),
            Effect::Reply { conn, request, reply } => {
                shared.outlets.add(conn, Out::Reply(request, reply), &mut touched);
            }
            Effect::Push { conn, delivery } => shared.outlets.add(conn, Out::Push(delivery), &mut touched),
            Effect::Close { conn, reason } => shared.outlets.add(conn, Out::Close(reason), &mut touched),
            Effect::Members(members) => shared.book.learn(members),
            Effect::Cache(effect) => {
                shared.tracking.apply(&shared.view, effect, evicted, &mut pushes);
                shared.outlets.add_stale(&mut pushes, &mut touched);
            }
            Effect::Track(effect) => {
                shared.tracking.told(effect, &mut pushes);
                shared.outlets.add_stale(&mut pushes, &mut touched);
            }
            Effect::Log(Level::Debug, line) => tracing::debug!("{line}"),
            Effect::Log(Level::Info, line) => tracing::info!("{line}"),
            Effect::Log(Level::Warn, line) => tracing::warn!("{line}"),
        }
    }
    shared.view.keep_gone(evicted);
    for outlet in touched {
        outlet.wake();
    }
}
