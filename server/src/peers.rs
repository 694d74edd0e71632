//! Other nodes: two lanes to each, opened by the node that speaks.
//!
//! Charter: dials every other member for the Raft lane and for the Work lane, accepts theirs, checks who they
//! are, frames and checks bytes. Says `LinkUp` and `LinkDown` to the engine, frames between them.
//!
//! Invariants:
//! - At most one link per peer and direction is heard: a newer one replaces the older, and nothing of the
//!   older is posted after the newer one's `LinkUp`.
//! - A node whose data directory is not the one that is known is heard and spoken to in no lane, whoever dialled,
//!   and also if that becomes known only later: it may have forgotten what it promised.
//! - The Raft lane has its own connection and queue, so client work never stands before a heartbeat. When a
//!   queue is over `PEER_OUTPUT_MAX`, Raft frames are dropped (they may be) and links are cut (their frames
//!   may not be lost one by one).

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use quorate_engine::effect::{Input, Side};
use quorate_engine::journal::Meta;
use quorate_protocol::id::{Identity, NodeId};
use quorate_protocol::limits::{PEER_FRAME_MAX, PEER_OUTPUT_MAX};
use quorate_protocol::peer::{Hello, Lane, LinkFrame, PEER_VERSION, RaftFrame, Welcome};
use quorate_protocol::wire::Wire;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::driver::Shared;
use crate::gate::Gate;

/// How long a connection and its first words may take.
const HANDSHAKE: Duration = Duration::from_secs(3);
/// The first and the longest pause before a peer is dialled again.
const REDIAL: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// Frames are gathered into writes of about this size.
const WRITE_TARGET: usize = 256 << 10;
/// A first frame at the most; anything longer is no node.
const HELLO_MAX: usize = 4096;

/// Frames that wait for a peer, encoded by its writer.
#[derive(Debug)]
struct Queue<T> {
    state: Mutex<(VecDeque<T>, usize, bool)>,
    news: Notify,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { state: Mutex::new((VecDeque::new(), 0, false)), news: Notify::new() }
    }
}

impl<T> Queue<T> {
    /// Adds a frame; false when the queue is full or closed.
    fn push(&self, frame: T, weight: usize) -> bool {
        let mut state = self.state.lock();
        if state.2 || state.1 > PEER_OUTPUT_MAX {
            return false;
        }
        state.0.push_back(frame);
        state.1 += weight;
        drop(state);
        self.news.notify_one();
        true
    }

    /// Takes all frames; `None` when the queue is closed.
    async fn take(&self) -> Option<VecDeque<T>> {
        loop {
            {
                let mut state = self.state.lock();
                if state.2 {
                    return None;
                }
                if !state.0.is_empty() {
                    state.1 = 0;
                    return Some(std::mem::take(&mut state.0));
                }
            }
            self.news.notified().await;
        }
    }

    fn close(&self) {
        let mut state = self.state.lock();
        state.2 = true;
        state.0.clear();
        drop(state);
        self.news.notify_one();
    }
}

type LinkQueue = Arc<Queue<LinkFrame>>;

/// The lanes that stand.
#[derive(Debug, Default)]
pub struct Peers {
    raft: Mutex<BTreeMap<NodeId, Arc<Queue<RaftFrame>>>>,
    links: Mutex<BTreeMap<(NodeId, Side), LinkQueue>>,
}

impl Peers {
    /// Sends a Raft frame, or drops it.
    pub fn send_raft(&self, to: NodeId, frame: RaftFrame) {
        let weight = frame.weight();
        if let Some(queue) = self.raft.lock().get(&to) {
            queue.push(frame, weight);
        }
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
}

/// Who this node is, for handshakes.
#[derive(Debug, Clone)]
pub struct Me {
    /// Its data directory's word.
    pub meta: Meta,
    /// Where its clients connect.
    pub client_address: String,
    /// Data directories that this node's own log names: all that is known of others before the system group
    /// has been heard of.
    pub logged: BTreeMap<NodeId, Identity>,
}

impl Me {
    fn hello(&self, to: NodeId, lane: Lane) -> Hello {
        Hello {
            version: PEER_VERSION,
            cluster: self.meta.cluster,
            node: self.meta.node,
            to,
            identity: self.meta.identity,
            boot: self.meta.boot,
            lane,
            client_address: self.client_address.clone(),
        }
    }

    /// Why a node is not welcome, as a sentence for its log.
    fn objection(&self, hello: &Hello, shared: &Shared) -> Option<String> {
        let me = self.meta.node.0;
        let node = hello.node.0;
        if hello.version != PEER_VERSION {
            let version = hello.version;
            return Some(format!(
                "node {me} speaks peer version {PEER_VERSION}, not {version}; run the same release"
            ));
        }
        if hello.cluster != self.meta.cluster {
            return Some(format!(
                "node {me} belongs to another cluster; compare --initial-cluster of both nodes"
            ));
        }
        if hello.to != self.meta.node {
            return Some(format!("this is node {me}, not node {}; correct --initial-cluster", hello.to.0));
        }
        if !self.meta.founders.iter().any(|(id, _)| *id == hello.node) || hello.node == self.meta.node {
            return Some(format!("node {node} is no other member of this cluster; correct --node-id"));
        }
        let members = shared.members.lock();
        let known =
            members.iter().find(|member| member.node == hello.node).and_then(|member| member.identity);
        drop(members);
        if known
            .or_else(|| self.logged.get(&hello.node).copied())
            .is_some_and(|known| known != hello.identity)
        {
            return Some(format!(
                "node {node} is known with another data directory; bring that directory back, or let the cluster forget \
                 the node with `quorate member remove {node}` and `quorate member add {node}`"
            ));
        }
        None
    }

    /// Ends when a node that was let in must not have been, with the reason.
    async fn disowned(&self, hello: &Hello, shared: &Shared) -> String {
        loop {
            let news = shared.members_news.notified();
            if let Some(why) = self.objection(hello, shared) {
                return why;
            }
            news.await;
        }
    }
}

/// Dials every other member, for as long as the process lives.
pub fn dial_all(me: &Me, shared: &Arc<Shared>) {
    for (node, address) in me.meta.founders.iter().filter(|(node, _)| *node != me.meta.node) {
        for lane in [Lane::Raft, Lane::Work] {
            tokio::spawn(dial(me.clone(), *node, address.clone(), lane, Arc::clone(shared)));
        }
    }
}

async fn dial(me: Me, node: NodeId, address: String, lane: Lane, shared: Arc<Shared>) {
    let mut pause = REDIAL.0;
    let mut said = String::new();
    loop {
        match tokio::time::timeout(HANDSHAKE, open(&me, node, &address, lane, &shared)).await {
            Ok(Ok((stream, hello))) => {
                pause = REDIAL.0;
                said.clear();
                let until = me.disowned(&hello, &shared);
                match lane {
                    Lane::Raft => speak_raft(stream, node, &shared, until).await,
                    Lane::Work => speak_link(stream, node, Side::Opener, &shared, until).await,
                    Lane::Snapshot => {}
                }
            }
            Ok(Err(why)) => {
                if said != why && lane == Lane::Raft {
                    tracing::warn!("node {} at {address}: {why}", node.0);
                    said = why;
                }
            }
            Err(_) => tracing::debug!("node {} at {address} does not answer", node.0),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(REDIAL.1);
    }
}

async fn open(
    me: &Me,
    node: NodeId,
    address: &str,
    lane: Lane,
    shared: &Shared,
) -> Result<(TcpStream, Hello), String> {
    let mut stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let mut out = Vec::new();
    put_frame(&me.hello(node, lane), &mut out);
    stream.write_all(&out).await.map_err(|error| error.to_string())?;
    let answer = read_first(&mut stream).await?;
    match Welcome::from_wire(answer).map_err(|malformed| malformed.to_string())? {
        Welcome::No(why) => Err(why),
        Welcome::Yes(hello) if hello.node != node => {
            Err(format!("node {} answers at this address; correct --initial-cluster", hello.node.0))
        }
        Welcome::Yes(hello) => match me.objection(&hello, shared) {
            None => Ok((stream, hello)),
            Some(why) => Err(why),
        },
    }
}

/// Accepts other nodes' lanes, up to `max`, for as long as the process lives.
pub async fn accept_all(listener: TcpListener, max: usize, me: Me, shared: Arc<Shared>) {
    let mut gate = Gate::new("peer", max);
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                let Some(permit) = gate.enter() else { continue };
                let (me, shared) = (me.clone(), Arc::clone(&shared));
                tokio::spawn(async move {
                    accept(stream, from, me, shared).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!("accepting a node: {error}");
                tokio::time::sleep(REDIAL.1).await;
            }
        }
    }
}

async fn accept(mut stream: TcpStream, from: SocketAddr, me: Me, shared: Arc<Shared>) {
    let welcome = async {
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let first = read_first(&mut stream).await?;
        let hello = Hello::from_wire(first).map_err(|malformed| malformed.to_string())?;
        let objection = me.objection(&hello, &shared);
        let answer = match &objection {
            None => Welcome::Yes(me.hello(hello.node, hello.lane)),
            Some(why) => Welcome::No(why.clone()),
        };
        let mut out = Vec::new();
        put_frame(&answer, &mut out);
        stream.write_all(&out).await.map_err(|error| error.to_string())?;
        match objection {
            None => Ok(hello),
            Some(why) => Err(why),
        }
    };
    match tokio::time::timeout(HANDSHAKE, welcome).await {
        Ok(Ok(hello)) => {
            let until = me.disowned(&hello, &shared);
            match hello.lane {
                Lane::Raft => hear_raft(stream, hello.node, &shared, until).await,
                Lane::Work => speak_link(stream, hello.node, Side::Reached, &shared, until).await,
                Lane::Snapshot => {}
            }
        }
        Ok(Err(why)) => tracing::warn!("a connection from {from} to the peer port was refused: {why}"),
        Err(_) => tracing::debug!("a connection from {from} to the peer port said nothing"),
    }
}

fn cut(node: NodeId, why: &str) {
    tracing::warn!("a connection with node {} is cut: {why}", node.0);
}

/// Writes this node's Raft frames to a peer until the connection fails, or `until` gives a reason.
async fn speak_raft(stream: TcpStream, node: NodeId, shared: &Shared, until: impl Future<Output = String>) {
    let queue = Arc::<Queue<RaftFrame>>::default();
    shared.peers.raft.lock().insert(node, Arc::clone(&queue));
    let (mut reader, mut writer) = stream.into_split();
    // Nothing comes back on this lane; a read ends when the peer is gone.
    let mut nothing = [0; 1];
    tokio::select! {
        _ = write_frames(&mut writer, &queue) => {}
        _ = reader.read(&mut nothing) => {}
        why = until => cut(node, &why),
    }
    shared.peers.raft.lock().remove(&node);
}

async fn hear_raft(stream: TcpStream, node: NodeId, shared: &Shared, until: impl Future<Output = String>) {
    let (mut reader, _writer) = stream.into_split();
    let hear = read_frames(&mut reader, shared, |frame| {
        let weight = frame.len();
        match RaftFrame::from_wire(frame) {
            Ok(frame) => {
                shared.mailbox.post_urgent(Input::Raft { from: node, frame }, weight);
                true
            }
            Err(malformed) => {
                tracing::warn!("node {} sent a Raft frame that cannot be read: {malformed}", node.0);
                false
            }
        }
    });
    tokio::select! {
        () = hear => {}
        why = until => cut(node, &why),
    }
}

/// Both directions of a link, until it is cut or replaced, or `until` gives a reason.
async fn speak_link(
    stream: TcpStream,
    peer: NodeId,
    side: Side,
    shared: &Shared,
    until: impl Future<Output = String>,
) {
    let queue = LinkQueue::default();
    {
        let mut links = shared.peers.links.lock();
        if let Some(old) = links.insert((peer, side), Arc::clone(&queue)) {
            old.close();
        }
        // Posted under the lock, so that the newer link's words come after it.
        shared.mailbox.post(Input::LinkUp { peer, side }, 64);
    }
    let (mut reader, mut writer) = stream.into_split();
    let hear = read_frames(&mut reader, shared, |frame| {
        let weight = frame.len();
        match LinkFrame::from_wire(frame) {
            Ok(frame) => {
                let links = shared.peers.links.lock();
                let current = links.get(&(peer, side)).is_some_and(|current| Arc::ptr_eq(current, &queue));
                if current {
                    shared.mailbox.post(Input::Link { peer, side, frame }, weight);
                }
                current
            }
            Err(malformed) => {
                tracing::warn!("node {} sent a frame that cannot be read: {malformed}", peer.0);
                false
            }
        }
    });
    tokio::select! {
        () = hear => {}
        _ = write_frames(&mut writer, &queue) => {}
        why = until => cut(peer, &why),
    }
    let mut links = shared.peers.links.lock();
    if links.get(&(peer, side)).is_some_and(|current| Arc::ptr_eq(current, &queue)) {
        links.remove(&(peer, side));
        shared.mailbox.post(Input::LinkDown { peer, side }, 64);
    }
}

async fn write_frames<T: Wire>(writer: &mut OwnedWriteHalf, queue: &Queue<T>) -> std::io::Result<()> {
    let mut out = Vec::new();
    while let Some(frames) = queue.take().await {
        for frame in frames {
            put_frame(&frame, &mut out);
            if out.len() >= WRITE_TARGET {
                writer.write_all(&out).await?;
                out.clear();
            }
        }
        writer.write_all(&out).await?;
        out.clear();
        out.shrink_to(WRITE_TARGET);
    }
    Ok(())
}

/// A frame: length, CRC32, payload.
fn put_frame(value: &impl Wire, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; 8]);
    value.put(out);
    let length = u32::try_from(out.len() - start - 8).expect("limits keep frames far below 4 GiB");
    let crc = crc32fast::hash(&out[start + 8..]);
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
}

/// Takes a frame's payload off the buffer; an error when the bytes are no frame.
fn take_frame(buffer: &mut BytesMut, max: usize) -> Result<Option<Bytes>, &'static str> {
    let Some(header) = buffer.first_chunk::<8>() else { return Ok(None) };
    let [l0, l1, l2, l3, c0, c1, c2, c3] = *header;
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if length > max {
        return Err("a frame is over the limit");
    }
    if buffer.len() < 8 + length {
        return Ok(None);
    }
    let mut frame = buffer.split_to(8 + length);
    let payload = frame.split_off(8).freeze();
    if crc32fast::hash(&payload) != u32::from_le_bytes([c0, c1, c2, c3]) {
        return Err("a frame was damaged on the way");
    }
    Ok(Some(payload))
}

async fn read_first(stream: &mut TcpStream) -> Result<Bytes, String> {
    let mut buffer = BytesMut::new();
    loop {
        if let Some(payload) = take_frame(&mut buffer, HELLO_MAX)? {
            return Ok(payload);
        }
        // Byte by byte what the header asks for, so that nothing of the next frame is swallowed.
        let mut byte = [0; 1];
        match stream.read(&mut byte).await {
            Ok(0) => return Err("it closed the connection".to_owned()),
            Ok(_) => buffer.extend_from_slice(&byte),
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// Reads frames until the connection ends or `hear` has had enough. A full mailbox stops the reading.
async fn read_frames(reader: &mut OwnedReadHalf, shared: &Shared, mut hear: impl FnMut(Bytes) -> bool) {
    let mut buffer = BytesMut::new();
    loop {
        loop {
            match take_frame(&mut buffer, PEER_FRAME_MAX) {
                Ok(Some(frame)) => {
                    if !hear(frame) {
                        return;
                    }
                }
                Ok(None) => break,
                Err(why) => return tracing::warn!("a node's connection is closed: {why}"),
            }
        }
        shared.mailbox.room().await;
        buffer.reserve(64 << 10);
        if !matches!(reader.read_buf(&mut buffer).await, Ok(1..)) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_checked_and_bounded() {
        let mut out = Vec::new();
        put_frame(&7u64, &mut out);
        put_frame(&8u64, &mut out);
        let mut buffer = BytesMut::from(&out[..out.len() - 1]);
        assert_eq!(take_frame(&mut buffer, 100), Ok(Some(Bytes::copy_from_slice(&7u64.to_le_bytes()))));
        assert_eq!(take_frame(&mut buffer, 100), Ok(None), "the second one is not all there");
        assert!(take_frame(&mut BytesMut::from(&out[..]), 7).is_err(), "too long");
        out[9] ^= 1;
        assert!(take_frame(&mut BytesMut::from(&out[..]), 100).is_err(), "damaged");
    }
}
