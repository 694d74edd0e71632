//! Other nodes: three lanes to each, opened by the node that speaks.
//!
//! Charter: dials every other member for the Raft lane and for the Work lane, and for the Snapshot lane while there
//! is something to send; accepts theirs, checks who they are, frames and checks bytes. Says `LinkUp` and
//! `LinkDown` to the engine, frames between them. Lets nodes without data join.
//!
//! Invariants:
//! - At most one link per peer and direction is heard: a newer one replaces the older, and nothing of the
//!   older is posted after the newer one's `LinkUp`.
//! - A node that was removed, or whose data directory is not the one that is known, is heard and spoken to in no
//!   lane, whoever dialled, and also if that becomes known only later: it may have forgotten what it promised.
//! - Each lane has its own connection and queue, so neither client work nor a snapshot stands before a heartbeat.
//!   When a queue is full, Raft and snapshot frames are dropped (they may be) and links are cut (their
//!   frames may not be lost one by one).

mod accept;
pub mod book;
pub mod complaints;
mod dial;
mod framing;
mod greet;
pub mod join;
mod lanes;
mod pieces;
mod queue;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorate_engine::effect::Side;
use quorate_protocol::id::NodeId;
use quorate_protocol::peer::{LinkFrame, RaftFrame, SnapshotAt, SnapshotFrame};

pub use accept::accept_all;
pub use dial::dial_all;
pub use greet::Me;
pub use pieces::read_pieces;

use crate::clock;
use crate::driver::Shared;
use complaints::{Complaints, Kind};
use pieces::Pieces;
use queue::Queue;

/// How long a connection and its first words may take.
const HANDSHAKE: Duration = Duration::from_secs(3);
/// Pause between two looks whether there are complaints that were held back.
const SWEEP: Duration = Duration::from_secs(5);

type RaftQueue = Arc<Queue<RaftFrame>>;
type LinkQueue = Arc<Queue<LinkFrame>>;
type SnapshotQueue = Arc<Queue<SnapshotFrame>>;

/// The lanes that stand.
#[derive(Debug, Default)]
pub struct Peers {
    raft: Mutex<BTreeMap<NodeId, RaftQueue>>,
    links: Mutex<BTreeMap<(NodeId, Side), LinkQueue>>,
    /// Of every node that is dialled, whether its lane stands or not.
    snapshots: Mutex<BTreeMap<NodeId, SnapshotQueue>>,
    pieces: Pieces,
    complaints: Mutex<Complaints>,
}

impl Peers {
    /// Sends a Raft frame, or drops it.
    pub fn send_raft(&self, to: NodeId, frame: RaftFrame) {
        let weight = frame.weight();
        if let Some(queue) = self.raft.lock().get(&to) {
            queue.push(frame, weight);
        }
    }

    /// Sends a frame of the snapshot lane, or drops it.
    pub fn send_snapshot(&self, to: NodeId, frame: SnapshotFrame) {
        let weight = frame.weight();
        if let Some(queue) = self.snapshots.lock().get(&to) {
            queue.push(frame, weight);
        }
    }

    /// Sends bytes of a snapshot file once they are read; dropped when too much is to be read already.
    pub fn send_piece(&self, to: NodeId, at: SnapshotAt, length: u64) {
        self.pieces.send(to, at, length);
    }

    /// Has bytes of a snapshot file read for a client's request; false when too much is to be read already.
    pub fn read_piece(&self, asked: (u64, u64), at: SnapshotAt, length: u64) -> bool {
        self.pieces.read(asked, at, length)
    }

    /// Sends work on the link that this node opened.
    pub fn send_forward(&self, to: NodeId, frame: LinkFrame) {
        self.send_link(to, Side::Opener, frame);
    }

    /// Sends an answer on the link that the other node opened.
    pub fn send_back(&self, to: NodeId, frame: LinkFrame) {
        self.send_link(to, Side::Reached, frame);
    }

    fn send_link(&self, to: NodeId, side: Side, frame: LinkFrame) {
        let weight = frame.weight();
        if let Some(queue) = self.links.lock().get(&(to, side))
            && !queue.push(frame, weight)
        {
            queue.close();
        }
    }

    /// Warns of what a stranger or a node has done, unless that was done a moment ago.
    fn complain(&self, kind: Kind, node: NodeId, line: String) {
        let line = self.complaints.lock().hear(clock::now().mono, kind, node, line);
        if let Some(line) = line {
            tracing::warn!("{line}");
        }
    }
}

/// Says what was held back, for as long as the process lives.
pub async fn say_held_back(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let due = shared.peers.complaints.lock().due(clock::now().mono);
        for line in due {
            tracing::warn!("{line}");
        }
    }
}
