//! The engine's only contact with the world: what it is told, and what it wants done.
//!
//! Charter: a shell (the server, or the simulator) calls `Engine::step(now, input, &mut effects)` and
//! performs the effects in order. It decides nothing.
//!
//! The shell's part of the contract:
//! - `now` never falls. `Input::Tick` comes about every `TICK`; missed ticks are not made up.
//! - A turn is any number of inputs and then `Input::EndOfTurn`: log entries, read rounds, Raft messages and
//!   `Effect::Persist` come at its end, one for all that the turn gathered.
//! - When `Engine::has_more` says so behind a turn's end, the next turn does not wait for inputs or the tick: it
//!   comes as soon as the effects are performed, with whatever has come by then.
//! - `Persist` batches go to the journal in the order of `seq`; `Input::Persisted(n)` says that all batches
//!   up to `n` are on stable storage.
//! - Connection counters rise and are never reused within one boot. Request numbers rise within a
//!   connection. After `Disconnected`, or after `Effect::Close`, nothing more is said of a connection.
//! - A link is FIFO and at most once. `LinkUp` says that a new one stands; what was in the old one is lost.

use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;
pub use quorate_protocol::command::NodeAsk;
use quorate_protocol::id::{ClientId, ClientSeq, GroupId, Identity, Index, NodeId};
use quorate_protocol::op::Op;
use quorate_protocol::peer::{Delivery, LinkFrame, RaftFrame, SnapshotAt, SnapshotFrame};
use quorate_protocol::reply::Reply;

pub use crate::cache::{CacheEffect, TrackEffect, Tracked};
use crate::journal::{Io, Persist};

/// How often the shell ticks, in microseconds.
pub const TICK: u64 = 20_000;

/// The time, as the shell reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// Microseconds of CLOCK_BOOTTIME: never falls, runs on while the machine sleeps.
    pub mono: u64,
    /// Milliseconds since 1970, for people only; may jump.
    pub wall: u64,
}

/// What a request wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Want {
    /// A decision of the cluster.
    Op(Op),
    /// The node's own view.
    Node(NodeAsk),
    /// Nothing more: the connection knows the answer, and only its turn has to come.
    Answered(Reply),
    /// A new client session; answers its id.
    OpenClient,
    /// To go on with a client session; answers its id, or an error when it is over.
    ResumeClient(ClientId),
}

/// A request of a client connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Its number on the connection; rises.
    pub id: u64,
    /// What it wants.
    pub want: Want,
    /// Its place in a client session, if it has one.
    pub client: Option<ClientSeq>,
    /// On an unordered connection: the request whose answer it waits for.
    pub after: Option<u64>,
}

/// Which end of a link this node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// It opened the link: it forwards, and hears answers.
    Opener,
    /// It was reached: it hears work, and answers.
    Reached,
}

/// What the engine is told.
#[derive(Debug, Clone)]
pub enum Input {
    /// Time has passed.
    Tick,
    /// Everything gathered since the last one is to be decided.
    EndOfTurn,
    /// All `Persist` batches up to this number are on stable storage.
    Persisted(u64),
    /// All `Background` effects up to this number are done.
    BackgroundDone(u64),
    /// What `Effect::Map` asked for.
    Mapped {
        /// The group.
        group: GroupId,
        /// The snapshot's index.
        index: Index,
        /// The file's bytes, which the system may read from the disk whenever they are looked at; none if it cannot be
        /// mapped, or is gone.
        bytes: Option<Bytes>,
    },
    /// The node is about to stop: leadership is handed over, as far as others can take it. `Engine::is_idle` says when.
    Resign,
    /// The node has been removed from its cluster; its clients are told so. Its own log may end before that.
    Removed,
    /// Whether the disk has room: while it has none, nothing is written for clients.
    Room(bool),
    /// A frame of the snapshot lane.
    Snapshot {
        /// Its sender.
        from: NodeId,
        /// The frame.
        frame: SnapshotFrame,
    },
    /// What `Effect::ReadPiece` asked for.
    PieceRead {
        /// The connection's counter.
        conn: u64,
        /// The request's number.
        request: u64,
        /// The bytes; none if the file is gone; or why they cannot be had now.
        bytes: Result<Option<Bytes>, String>,
    },
    /// A client has come.
    Connected {
        /// The connection's counter.
        conn: u64,
        /// Replies in order (RESP, inline) or as they come (binary).
        ordered: bool,
    },
    /// A client asks, in this order.
    Requests {
        /// The connection's counter.
        conn: u64,
        /// What it asks.
        requests: Vec<Request>,
    },
    /// The read view has dropped lines to make room. Comes before anything that happens behind the effect that filled it.
    Evicted(Vec<(GroupId, Bytes)>),
    /// The read view has shown lines of these groups since it was said last.
    Shown(Vec<GroupId>),
    /// What the node needs for its clients that keep values themselves (CLIENT TRACKING).
    Track(Tracked),
    /// A client has gone.
    Disconnected {
        /// The connection's counter.
        conn: u64,
    },
    /// A frame of the Raft lane.
    Raft {
        /// Its sender.
        from: NodeId,
        /// The frame.
        frame: RaftFrame,
    },
    /// A link stands; if there was one before it, that one is gone.
    LinkUp {
        /// The node at the other end.
        peer: NodeId,
        /// This node's end.
        side: Side,
    },
    /// A link is cut.
    LinkDown {
        /// The node at the other end.
        peer: NodeId,
        /// This node's end.
        side: Side,
    },
    /// A frame of a link.
    Link {
        /// The node at the other end.
        peer: NodeId,
        /// This node's end.
        side: Side,
        /// The frame.
        frame: LinkFrame,
    },
}

/// How much a log line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For those who follow every step.
    Debug,
    /// What an operator wants to have read.
    Info,
    /// What an operator should look into.
    Warn,
}

/// A node as the system group knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The node.
    pub node: NodeId,
    /// Its data directory, once it has opened a session; peers with another one are refused.
    pub identity: Option<Identity>,
    /// Which life of its id this is, or was: one that it begins later is news that has not come here yet.
    pub life: u32,
    /// The directories that it had before it was removed and added again; peers with one of them are refused.
    pub retired: Vec<Identity>,
    /// Where its clients connect; empty as long as it has opened no session.
    pub client_address: String,
    /// Where other nodes connect to it.
    pub peer_address: String,
    /// Whether it is no member any more: it is not dialled, and refused when it dials.
    pub removed: bool,
}

/// What the engine wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Make this durable, then say `Input::Persisted(seq)`.
    Persist(Persist),
    /// Do this to snapshot files, in order, beside the commits of the journal; then say `BackgroundDone`.
    Background {
        /// Rises by one.
        number: u64,
        /// What to do. `File::Snapshot` only.
        ios: Vec<Io>,
    },
    /// Map a snapshot's file into memory, beside the commits; then say `Input::Mapped`, whatever comes of it.
    Map {
        /// The group.
        group: GroupId,
        /// The snapshot's index.
        index: Index,
    },
    /// End the node at once, as a crash does: its disk cannot be trusted. A sentence that says what to do. Nothing comes
    /// before it, and nothing behind.
    Stop(String),
    /// Send a frame of the snapshot lane; it may be lost.
    Snapshot {
        /// To whom.
        to: NodeId,
        /// The frame.
        frame: SnapshotFrame,
    },
    /// Read bytes of a snapshot file and send them as a `SnapshotPiece`, empty if the file is gone.
    SendPiece {
        /// To whom.
        to: NodeId,
        /// Which.
        at: SnapshotAt,
        /// How many at the most.
        length: u64,
    },
    /// Read bytes of a snapshot file for a client, then say `Input::PieceRead`, whatever comes of it.
    ReadPiece {
        /// The connection's counter.
        conn: u64,
        /// The request's number.
        request: u64,
        /// Which.
        at: SnapshotAt,
        /// How many at the most.
        length: u64,
    },
    /// Send a Raft frame; it may be lost.
    Raft {
        /// To whom.
        to: NodeId,
        /// The frame.
        frame: RaftFrame,
    },
    /// Send a frame on a link. Without a link it is dropped.
    Link {
        /// The node at the other end.
        peer: NodeId,
        /// This node's end.
        side: Side,
        /// The frame.
        frame: LinkFrame,
    },
    /// Answer a request. On an ordered connection answers come in the order of the requests.
    Reply {
        /// The connection's counter.
        conn: u64,
        /// The request's number.
        request: u64,
        /// The answer.
        reply: Reply,
    },
    /// Hand a message to a subscriber.
    Push {
        /// The connection's counter.
        conn: u64,
        /// The message.
        delivery: Delivery,
    },
    /// Close a client connection and tell it why.
    Close {
        /// The connection's counter.
        conn: u64,
        /// A sentence.
        reason: String,
    },
    /// What the system group knows of the nodes has changed.
    Members(Vec<Member>),
    /// Change what connections read without asking the engine.
    Cache(CacheEffect),
    /// Tell clients that keep values themselves.
    Track(TrackEffect),
    /// Write a line to the log.
    Log(Level, String),
}

/// Effects in the order in which they are to be performed.
pub type Effects = Vec<Effect>;
