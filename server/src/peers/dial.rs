//! Dialling: the lanes that this node opens, to all nodes that the book names.
//!
//! Invariant: one task per node and lane. It ends when the node is removed or has another address; the tasks for
//! the new address are others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quorate_engine::effect::{Input, Side};
use quorate_protocol::id::NodeId;
use quorate_protocol::limits::SNAPSHOT_OUTPUT_MAX;
use quorate_protocol::peer::{Hello, Lane};
use tokio_util::sync::CancellationToken;

use super::greet::{Me, open};
use super::lanes::{speak_link, speak_raft, speak_snapshots};
use super::{HANDSHAKE, Queue, SnapshotQueue};
use crate::driver::Shared;

/// The first and the longest pause before a peer is dialled again.
pub(super) const REDIAL: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// Dials every other node that is known, for as long as the process lives.
pub async fn dial_all(me: Me, shared: Arc<Shared>) {
    let mut dialled = BTreeMap::new();
    let mut removed = false;
    loop {
        let news = shared.book.news();
        if !removed && shared.book.is_disowned(me.meta.node, me.meta.boot.life()) {
            removed = true;
            shared.mailbox.post(Input::Removed, 0);
            tracing::warn!(
                "this node has been removed from its cluster and serves nobody any more; stop it, or start it with an \
                 empty data directory and --join to bring it back"
            );
        }
        let mut wanted = shared.book.addresses();
        wanted.remove(&me.meta.node);
        dialled.retain(|node, (address, _)| wanted.get(node) == Some(address));
        for (node, address) in wanted {
            dialled.entry(node).or_insert_with(|| {
                let over = CancellationToken::new();
                let dialler = Dialler {
                    me: me.clone(),
                    node,
                    address: address.clone(),
                    over: over.clone(),
                    shared: Arc::clone(&shared),
                };
                dialler.start();
                (address, over.drop_guard())
            });
        }
        news.await;
    }
}

#[derive(Clone)]
struct Dialler {
    me: Me,
    node: NodeId,
    address: String,
    over: CancellationToken,
    shared: Arc<Shared>,
}

impl Dialler {
    fn start(self) {
        for lane in [Lane::Raft, Lane::Work] {
            let this = self.clone();
            tokio::spawn(async move { this.keep_open(lane).await });
        }
        tokio::spawn(async move { self.open_for_snapshots().await });
    }

    /// Keeps a lane open.
    async fn keep_open(&self, lane: Lane) {
        let (node, shared) = (self.node, &*self.shared);
        let mut pause = REDIAL.0;
        let mut said = String::new();
        loop {
            let opened = open(&self.me, node, &self.address, lane, shared);
            let Some(opened) = self.unless_over(tokio::time::timeout(HANDSHAKE, opened)).await else {
                return;
            };
            match opened {
                Ok(Ok((stream, hello))) => {
                    pause = REDIAL.0;
                    said.clear();
                    let until = self.ended(&hello);
                    if lane == Lane::Raft {
                        speak_raft(stream, node, shared, until).await;
                    } else {
                        speak_link(stream, node, Side::Opener, shared, until).await;
                    }
                }
                Ok(Err(why)) => {
                    if said != why && lane == Lane::Raft {
                        tracing::warn!("node {} at {}: {why}", node.0, self.address);
                        said = why;
                    }
                }
                Err(_) => tracing::debug!("node {} at {} does not answer", node.0, self.address),
            }
            if self.unless_over(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
            pause = (pause * 2).min(REDIAL.1);
        }
    }

    /// Opens the snapshot lane whenever there is something to send.
    async fn open_for_snapshots(&self) {
        let queue = SnapshotQueue::new(Queue::new(SNAPSHOT_OUTPUT_MAX));
        self.shared.peers.snapshots.lock().insert(self.node, Arc::clone(&queue));
        while self.unless_over(queue.wait()).await.is_some() {
            let opened = open(&self.me, self.node, &self.address, Lane::Snapshot, &self.shared);
            match self.unless_over(tokio::time::timeout(HANDSHAKE, opened)).await {
                None => break,
                Some(Ok(Ok((stream, hello)))) => {
                    speak_snapshots(stream, self.node, &queue, &self.shared, self.ended(&hello)).await;
                }
                // The Raft lane says why. What waits is asked for again.
                Some(Ok(Err(_)) | Err(_)) => {
                    queue.clear();
                    self.unless_over(tokio::time::sleep(REDIAL.1)).await;
                }
            }
        }
        let mut lanes = self.shared.peers.snapshots.lock();
        if lanes.get(&self.node).is_some_and(|current| Arc::ptr_eq(current, &queue)) {
            lanes.remove(&self.node);
        }
    }

    async fn unless_over<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.over.run_until_cancelled(work).await
    }

    /// Ends when a lane that stands is to end, with the reason.
    async fn ended(&self, hello: &Hello) -> String {
        tokio::select! {
            biased;
            why = self.me.disowned(hello, &self.shared) => why,
            () = self.over.cancelled() => "its address has changed".to_owned(),
        }
    }
}
