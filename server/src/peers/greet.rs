//! The first words between nodes: who one is, and whether the other is let in.

use std::time::Duration;

use quorate_engine::journal::Meta;
use quorate_protocol::id::NodeId;
use quorate_protocol::peer::{Greeting, Hello, Lane, Opening, PEER_VERSION, Welcome};
use quorate_protocol::wire::Wire;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::framing::{attend, read_frame, write_frame};
use crate::driver::Shared;

/// First words at the most; anything longer is no node.
pub(super) const HELLO_MAX: usize = 4096;

/// How long a connection may take: shorter than the pause after which TCP itself would ask a second time, so that a
/// node which can be reached again is found again at once.
const CONNECT: Duration = Duration::from_secs(1);

/// Who this node is, for handshakes.
#[derive(Debug, Clone)]
pub struct Me {
    /// Its data directory's word.
    pub meta: Meta,
    /// Where its clients connect.
    pub client_address: String,
    /// Where other nodes connect.
    pub peer_address: String,
}

impl Me {
    pub(super) fn hello(&self, to: NodeId, lane: Lane) -> Hello {
        Hello {
            cluster: self.meta.cluster,
            node: self.meta.node,
            to,
            identity: self.meta.identity,
            boot: self.meta.boot,
            lane,
            client_address: self.client_address.clone(),
            peer_address: self.peer_address.clone(),
        }
    }

    /// Why another release is not understood, as a sentence for its log.
    pub(super) fn objection_to_version(&self, version: u16) -> Option<String> {
        let me = self.meta.node.0;
        (version != PEER_VERSION).then(|| {
            format!("node {me} speaks peer version {PEER_VERSION}, not {version}; run the same release")
        })
    }

    /// Why a node is not welcome, as a sentence for its log.
    pub(super) fn objection(&self, hello: &Hello, shared: &Shared) -> Option<String> {
        let me = self.meta.node.0;
        let node = hello.node.0;
        if hello.cluster != self.meta.cluster {
            return Some(format!(
                "node {me} belongs to another cluster; compare --initial-cluster or --join of both nodes, and if it \
                 was restored, restore all nodes from the same file"
            ));
        }
        if hello.to != self.meta.node {
            return Some(format!(
                "this is node {me}, not node {}; correct the address of one of them",
                hello.to.0
            ));
        }
        if hello.node == self.meta.node || node == 0 {
            return Some(format!("node {node} is no other member of this cluster; correct --node-id"));
        }
        shared.book.objection(hello.node, hello.identity, hello.boot.life())
    }

    /// Ends when a node that was let in must not have been, with the reason.
    pub(super) async fn disowned(&self, hello: &Hello, shared: &Shared) -> String {
        loop {
            let news = shared.book.news();
            if let Some(why) = self.objection(hello, shared) {
                return why;
            }
            news.await;
        }
    }
}

/// Opens a lane to a node and finds out whether it is the one that was meant.
pub(super) async fn open(
    me: &Me,
    node: NodeId,
    address: &str,
    lane: Lane,
    shared: &Shared,
) -> Result<(TcpStream, Hello), String> {
    let failed = |error: std::io::Error| error.to_string();
    let connected = timeout(CONNECT, TcpStream::connect(address)).await;
    let mut stream = connected.map_err(|_| "it does not answer".to_owned())?.map_err(failed)?;
    attend(&stream).map_err(failed)?;
    let opening = Opening::Hello(me.hello(node, lane));
    write_frame(&mut stream, &Greeting { version: PEER_VERSION, opening }).await.map_err(failed)?;
    let answer = read_frame(&mut stream, HELLO_MAX).await.map_err(|unread| unread.to_string())?;
    match Welcome::from_wire(answer).map_err(|malformed| malformed.to_string())? {
        Welcome::Yes(hello) if hello.node != node => Err(format!(
            "node {} answers at this address; correct --initial-cluster, or the address that it was added with",
            hello.node.0
        )),
        Welcome::Yes(hello) => match me.objection(&hello, shared) {
            None => Ok((stream, hello)),
            Some(why) => Err(why),
        },
        Welcome::No(why) | Welcome::Later(why) => Err(why),
        Welcome::Removed(why) => {
            shared.book.disown();
            Err(why)
        }
        Welcome::Joined(_) => Err("it answers what it was not asked".to_owned()),
    }
}
