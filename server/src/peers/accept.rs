//! The peer port: lanes that other nodes open, and nodes that want to join.

use std::net::SocketAddr;
use std::sync::Arc;

use quorate_engine::effect::Side;
use quorate_protocol::id::NodeId;
use quorate_protocol::peer::{Greeting, Hello, Join, Lane, Opening, Welcome};
use quorate_protocol::wire::Wire;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::complaints::Kind;
use super::dial::REDIAL;
use super::framing::{Unread, attend, read_frame, write_frame};
use super::greet::{HELLO_MAX, Me};
use super::lanes::{hear_raft, hear_snapshots, speak_link};
use super::{HANDSHAKE, join};
use crate::driver::Shared;
use crate::gate::Gate;

/// Accepts other nodes' lanes, up to `max`, for as long as the process lives.
pub async fn accept_all(listener: TcpListener, max: usize, me: Me, shared: Arc<Shared>) {
    let mut gate = Gate::new("peer", max);
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                let Some(permit) = gate.enter() else { continue };
                let visit = Visit { from, me: me.clone(), shared: Arc::clone(&shared) };
                tokio::spawn(async move {
                    visit.receive(stream).await;
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

/// Why there is nobody to talk to.
enum Stranger {
    Silent,
    Garbage(String),
    Other(u16),
}

async fn read_opening(stream: &mut TcpStream) -> Result<Opening, Stranger> {
    attend(stream).map_err(|_| Stranger::Silent)?;
    let frame = read_frame(stream, HELLO_MAX).await.map_err(|unread| match unread {
        Unread::Silent => Stranger::Silent,
        Unread::Garbage(why) => Stranger::Garbage(why),
    })?;
    let version = Greeting::version_of(&frame);
    match (Greeting::from_wire(frame), version) {
        (Ok(greeting), _) if greeting.version == quorate_protocol::peer::PEER_VERSION => Ok(greeting.opening),
        (_, Some(version)) if version != quorate_protocol::peer::PEER_VERSION => {
            Err(Stranger::Other(version))
        }
        (Err(malformed), _) => Err(Stranger::Garbage(malformed.to_string())),
        (Ok(_), _) => Err(Stranger::Garbage("it names no version".to_owned())),
    }
}

struct Visit {
    from: SocketAddr,
    me: Me,
    shared: Arc<Shared>,
}

impl Visit {
    async fn receive(self, mut stream: TcpStream) {
        let nobody = NodeId(0);
        match timeout(HANDSHAKE, read_opening(&mut stream)).await {
            Ok(Ok(Opening::Hello(hello))) => self.lane(stream, hello).await,
            Ok(Ok(Opening::Join(join))) => self.join(stream, join).await,
            Ok(Err(Stranger::Garbage(why))) => self.complain(Kind::Garbage, nobody, &why),
            Ok(Err(Stranger::Other(version))) => {
                let why = self.me.objection_to_version(version).unwrap_or_default();
                self.complain(Kind::Version, nobody, &why);
                self.say(&mut stream, &Welcome::No(why)).await;
            }
            Ok(Err(Stranger::Silent)) | Err(_) => {
                tracing::debug!("a connection from {} to the peer port said nothing", self.from);
            }
        }
    }

    fn complain(&self, kind: Kind, node: NodeId, why: &str) {
        let line = format!("a connection from {} to the peer port was refused: {why}", self.from);
        self.shared.peers.complain(kind, node, line);
    }

    /// Whether the other side has taken it.
    async fn say(&self, stream: &mut TcpStream, welcome: &Welcome) -> bool {
        matches!(timeout(HANDSHAKE, write_frame(stream, welcome)).await, Ok(Ok(())))
    }

    async fn lane(self, mut stream: TcpStream, hello: Hello) {
        let (node, shared) = (hello.node, &*self.shared);
        if let Some(why) = self.me.objection(&hello, shared) {
            // Who does not know the cluster may invent any id.
            let known = if hello.cluster == self.me.meta.cluster { node } else { NodeId(0) };
            self.complain(Kind::Refused, known, &why);
            let is_own = (hello.cluster, hello.to) == (self.me.meta.cluster, self.me.meta.node);
            let over = is_own && shared.book.is_over(node, hello.identity, hello.boot.life());
            self.say(&mut stream, &if over { Welcome::Removed(why) } else { Welcome::No(why) }).await;
            return;
        }
        if !self.say(&mut stream, &Welcome::Yes(self.me.hello(node, hello.lane))).await {
            return;
        }
        shared.book.meet(node, &hello.peer_address, hello.boot.life());
        let until = self.me.disowned(&hello, shared);
        match hello.lane {
            Lane::Raft => hear_raft(stream, node, shared, until).await,
            Lane::Work => speak_link(stream, node, Side::Reached, shared, until).await,
            Lane::Snapshot => hear_snapshots(stream, node, shared, until).await,
        }
    }

    async fn join(self, mut stream: TcpStream, join: Join) {
        let (node, address) = (join.node.0, &join.peer_address);
        let welcome = join::answer(&join, &self.me, &self.shared).await;
        match &welcome {
            Welcome::No(why) | Welcome::Later(why) | Welcome::Removed(why) => {
                let line = format!("node {node} at {address} asks to join and is refused: {why}");
                self.shared.peers.complain(Kind::Join, join.node, line);
            }
            Welcome::Yes(_) | Welcome::Joined(_) => {
                tracing::info!("node {node} at {address} joins the cluster")
            }
        }
        self.say(&mut stream, &welcome).await;
    }
}
