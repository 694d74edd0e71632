//! Lanes that stand: what is spoken and heard on them until they end.
//!
//! Every one ends when its connection fails, or when `until` gives a reason (the other node is not to be spoken with
//! any more, above all).

use std::sync::Arc;
use std::time::Duration;

use quorate_engine::effect::{Input, Side};
use quorate_protocol::id::NodeId;
use quorate_protocol::limits::PEER_OUTPUT_MAX;
use quorate_protocol::peer::{LinkFrame, RaftFrame, SnapshotFrame};
use quorate_protocol::wire::Wire;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::time::timeout;

use super::complaints::Kind;
use super::framing::{read_frames, write_all, write_frames};
use super::{LinkQueue, Queue, RaftQueue, SnapshotQueue};
use crate::driver::Shared;
use crate::mailbox::Room;

/// How long a snapshot lane stays open with nothing to send.
const IDLE: Duration = if cfg!(test) { Duration::from_millis(200) } else { Duration::from_secs(10) };

/// A lane that was told to end.
fn cut(node: NodeId, why: &str, shared: &Shared) {
    let line = format!("a connection with node {} is cut: {why}", node.0);
    shared.peers.complain(Kind::Cut, node, line);
}

/// Hears typed frames until `hear` has had enough, or the bytes are none.
async fn hear_frames<T: Wire>(
    reader: &mut OwnedReadHalf,
    node: NodeId,
    shared: &Shared,
    room: Room,
    mut hear: impl FnMut(T, usize) -> bool,
) {
    let broken = |why: &dyn std::fmt::Display| {
        let line = format!("node {} sent a frame that cannot be read: {why}", node.0);
        shared.peers.complain(Kind::Frame, node, line);
    };
    let end = read_frames(reader, (&shared.mailbox, room), |frame| {
        let weight = frame.len();
        match T::from_wire(frame) {
            Ok(frame) => hear(frame, weight),
            Err(malformed) => {
                broken(&malformed);
                false
            }
        }
    });
    if let Err(why) = end.await {
        broken(&why);
    }
}

/// Nothing comes back on a lane of one direction; a read ends when the peer is gone.
async fn gone(reader: &mut OwnedReadHalf) {
    let mut nothing = [0; 1];
    let _ = reader.read(&mut nothing).await;
}

/// Writes this node's Raft frames to a peer.
pub(super) async fn speak_raft(
    stream: TcpStream,
    node: NodeId,
    shared: &Shared,
    until: impl Future<Output = String>,
) {
    let queue = RaftQueue::new(Queue::new(PEER_OUTPUT_MAX));
    shared.peers.raft.lock().insert(node, Arc::clone(&queue));
    let (mut reader, mut writer) = stream.into_split();
    tokio::select! {
        _ = write_frames(&mut writer, &queue) => {}
        () = gone(&mut reader) => {}
        why = until => cut(node, &why, shared),
    }
    let mut lanes = shared.peers.raft.lock();
    if lanes.get(&node).is_some_and(|current| Arc::ptr_eq(current, &queue)) {
        lanes.remove(&node);
    }
}

/// Hears a peer's Raft frames.
pub(super) async fn hear_raft(
    stream: TcpStream,
    node: NodeId,
    shared: &Shared,
    until: impl Future<Output = String>,
) {
    let (mut reader, _writer) = stream.into_split();
    let hear = hear_frames(&mut reader, node, shared, Room::Urgent, |frame: RaftFrame, weight| {
        shared.mailbox.post_urgent(Input::Raft { from: node, frame }, weight);
        true
    });
    tokio::select! {
        () = hear => {}
        why = until => cut(node, &why, shared),
    }
}

/// Writes what is in the queue of the snapshot lane, until nothing has come for a while.
pub(super) async fn speak_snapshots(
    stream: TcpStream,
    node: NodeId,
    queue: &SnapshotQueue,
    shared: &Shared,
    until: impl Future<Output = String>,
) {
    let (mut reader, mut writer) = stream.into_split();
    let speak = async {
        let mut out = Vec::new();
        while let Ok(Some(frames)) = timeout(IDLE, queue.take()).await {
            if write_all(&mut writer, frames, &mut out).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = speak => {}
        () = gone(&mut reader) => {}
        why = until => cut(node, &why, shared),
    }
}

/// Hears a peer's snapshot frames.
pub(super) async fn hear_snapshots(
    stream: TcpStream,
    node: NodeId,
    shared: &Shared,
    until: impl Future<Output = String>,
) {
    let (mut reader, _writer) = stream.into_split();
    let hear = hear_frames(&mut reader, node, shared, Room::Work, |frame: SnapshotFrame, weight| {
        shared.mailbox.post(Input::Snapshot { from: node, frame }, weight);
        true
    });
    tokio::select! {
        () = hear => {}
        why = until => cut(node, &why, shared),
    }
}

/// Both directions of a link, until it is cut or replaced.
pub(super) async fn speak_link(
    stream: TcpStream,
    peer: NodeId,
    side: Side,
    shared: &Shared,
    until: impl Future<Output = String>,
) {
    let queue = LinkQueue::new(Queue::new(PEER_OUTPUT_MAX));
    {
        let mut links = shared.peers.links.lock();
        if let Some(old) = links.insert((peer, side), Arc::clone(&queue)) {
            old.close();
        }
        // Posted under the lock, so that the newer link's words come after it.
        shared.mailbox.post(Input::LinkUp { peer, side }, 64);
    }
    let (mut reader, mut writer) = stream.into_split();
    let hear = hear_frames(&mut reader, peer, shared, Room::Work, |frame: LinkFrame, weight| {
        let links = shared.peers.links.lock();
        let current = links.get(&(peer, side)).is_some_and(|current| Arc::ptr_eq(current, &queue));
        if current {
            shared.mailbox.post(Input::Link { peer, side, frame }, weight);
        }
        current
    });
    tokio::select! {
        () = hear => {}
        _ = write_frames(&mut writer, &queue) => {}
        why = until => cut(peer, &why, shared),
    }
    let mut links = shared.peers.links.lock();
    if links.get(&(peer, side)).is_some_and(|current| Arc::ptr_eq(current, &queue)) {
        links.remove(&(peer, side));
        shared.mailbox.post(Input::LinkDown { peer, side }, 64);
    }
}
