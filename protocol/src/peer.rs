//! What nodes say to each other: Raft messages in one lane, client work in another.
//!
//! Charter: the `Raft` lane carries `RaftFrame`s, which may be lost, doubled and overtake each other. The
//! `Work` lane carries `LinkFrame`s on a link: a connection that one node opens to forward its clients'
//! commands, and on which the answers come back. A link is FIFO, delivers each frame at most once and is
//! cut as a whole.
//!
//! Invariant: a `Forward` names the term it is meant for; only the leader of that very term accepts it.
//!
//! On the wire a frame is: length `u32` of what follows it, CRC32 `u32` over the payload, the payload in
//! the notation of `wire.rs`. The first frame of a connection is a `Greeting`, answered by a `Welcome`. The version
//! at its very beginning, and `Welcome::No`, are the same in all versions: a release that is not understood
//! reads a sentence that says so.

use std::borrow::Cow;

use bytes::Bytes;

use crate::cache::{CacheWord, Grant};
use crate::id::{
    Boot, ClientId, ClientSeq, ClusterId, ConnId, GroupId, Identity, Index, NodeId, Replica, SessionId, Term,
};
use crate::op::Op;
pub use crate::outbox::{Floor, Item, Letter, Parcel, Receipted};
use crate::reply::Reply;
pub use crate::snapshot::{SnapshotAt, SnapshotFrame, SnapshotPiece};
use crate::wire::Wire;
use crate::{wire_enum, wire_struct};

/// The version of the words in this file.
pub const PEER_VERSION: u16 = 1;

/// What this release can log. A cluster writes entries and rows of its own feature level only, and that
/// level rises when every member's release knows the next one.
pub const FEATURE_LEVEL: u16 = 1;

wire_enum! {
    /// What a connection between nodes carries.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    pub enum Lane {
        /// `RaftFrame`s from the node that opened it; nothing comes back.
        Raft = 1,
        /// `LinkFrame`s, both ways.
        Work = 2,
        /// `SnapshotFrame`s from the node that opened it; nothing comes back.
        Snapshot = 3,
    }
}

wire_struct! {
    /// The first frame of a connection.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Greeting {
        /// `PEER_VERSION` of the sender. What follows is read only if it is the reader's own.
        pub version: u16,
        /// What it wants.
        pub opening: Opening,
    }
}

impl Greeting {
    /// The version of a first frame, whatever release it comes from.
    #[must_use]
    pub fn version_of(frame: &Bytes) -> Option<u16> {
        u16::take(&mut frame.clone()).ok()
    }
}

wire_enum! {
    /// Why a connection to the peer port is opened.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum Opening {
        /// A node of the cluster opens a lane.
        Hello(hello: Hello) = 1,
        /// A node without data asks to be let into the cluster.
        Join(join: Join) = 2,
    }
}

wire_struct! {
    /// Who opens a lane.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Hello {
        /// Its cluster.
        pub cluster: ClusterId,
        /// Its node id.
        pub node: NodeId,
        /// The node it wants to reach.
        pub to: NodeId,
        /// Its data directory.
        pub identity: Identity,
        /// Its start.
        pub boot: Boot,
        /// What it opens.
        pub lane: Lane,
        /// Where its clients connect, for MEMBERS and LEADER.
        pub client_address: String,
        /// Where other nodes connect to it: who does not know it yet dials it there.
        pub peer_address: String,
    }
}

wire_struct! {
    /// A node with an empty data directory asks a member for admission.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Join {
        /// The id that its operator gave it.
        pub node: NodeId,
        /// Where other nodes are to connect to it.
        pub peer_address: String,
    }
}

wire_struct! {
    /// What a node that was let in founds its data directory as.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Joined {
        /// The cluster.
        pub cluster: ClusterId,
        /// Its partitions.
        pub partitions: u16,
        /// The nodes of its first configuration.
        pub founders: Vec<(NodeId, String)>,
        /// Its nodes by now, as far as the member knows them, and where to reach them.
        pub members: Vec<(NodeId, String)>,
        /// Which life of its id the node begins: replicas of former ones are void.
        pub life: u32,
    }
}

wire_enum! {
    /// The answer to a `Greeting`. The connection is closed behind all but `Yes`.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum Welcome {
        /// The lane stands; who answers.
        Yes(me: Hello) = 1,
        /// No, and what to do about it.
        No(why: String) = 2,
        /// The node is a member now.
        Joined(joined: Joined) = 3,
        /// The cluster cannot decide it at the moment, and why: ask again, or another member.
        Later(why: String) = 4,
        /// No, never again: the node, or the member whose data directory it shows, was removed; and what to do about it.
        Removed(why: String) = 5,
    }
}

wire_struct! {
    /// An entry within an append.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct RaftEntry {
        /// Term of the entry.
        pub term: Term,
        /// Index of the entry.
        pub index: Index,
        /// Kind of the entry; 0 for commands.
        pub kind: u8,
        /// Its bytes.
        pub data: Bytes,
    }
}

wire_struct! {
    /// A message of the Raft protocol. `kind` is numbered by `engine/src/consensus.rs`.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct RaftMessage {
        /// The group.
        pub group: GroupId,
        /// What kind of message it is.
        pub kind: u8,
        /// Who sends it.
        pub from: Replica,
        /// Who gets it.
        pub to: Replica,
        /// The sender's term.
        pub term: Term,
        /// Term of the entry at `index`.
        pub log_term: Term,
        /// The entry before those sent, or the one acknowledged or asked about; the last one in an offered snapshot.
        pub index: Index,
        /// The sender's commit index.
        pub commit: Index,
        /// Term of the entry at `commit`.
        pub commit_term: Term,
        /// Whether it is a refusal.
        pub reject: bool,
        /// Where to go on after a refusal.
        pub reject_hint: Index,
        /// The first index wanted in a snapshot; 0 is none.
        pub request_snapshot: Index,
        /// Election priority of the sender.
        pub priority: i64,
        /// Pairs an answer with its question (ReadIndex, forced campaign).
        pub context: Bytes,
        /// Of a leader's word (heartbeat, append, offer of a snapshot): when it was sent, by the leader's clock; of
        /// an answer to one: the newest of these that was heard. Microseconds; 0 is none.
        pub sent: u64,
        /// Entries of an append.
        pub entries: Vec<RaftEntry>,
    }
}

wire_struct! {
    /// A group, as its leader tells everybody: how nodes without a replica find leaders, and how a replica that was
    /// removed learns of it.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Led {
        /// The group.
        pub group: GroupId,
        /// The leader's term.
        pub term: Term,
        /// The serial number of the group's next replica: the list below knows of those before it.
        pub next: u32,
        /// The group's replicas. Empty: not said this time.
        pub replicas: Vec<Replica>,
    }
}

wire_struct! {
    /// All Raft messages of one turn for one peer, and what the sender tells all.
    #[derive(Debug, Clone, PartialEq, Eq, Default)]
    pub struct RaftFrame {
        /// The messages, of any groups.
        pub messages: Vec<RaftMessage>,
        /// The groups that the sender leads.
        pub leading: Vec<Led>,
        /// The sender's replicas that have lost what they acknowledged, and are to be replaced.
        pub lost: Vec<(GroupId, u32)>,
        /// The sender does not want to lead: it stops, or its disk is slow or full.
        pub reluctant: bool,
        /// Words of the cache's protocol.
        pub cache: Vec<CacheWord>,
    }
}

wire_enum! {
    /// In whose name a command comes.
    #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
    pub enum Principal {
        /// A client that did not authenticate (no users are set up).
        Anonymous = 0,
        /// A node of the cluster.
        Node(node: NodeId) = 1,
        /// A user, by name.
        User(name: String) = 2,
    }
}

wire_struct! {
    /// A node opens its session: the one before it ends.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct OpenSession {
        /// The node.
        pub node: NodeId,
        /// Its data directory.
        pub identity: Identity,
        /// Its start.
        pub boot: Boot,
        /// `FEATURE_LEVEL` of its release.
        pub level: u16,
        /// Where its clients connect.
        pub client_address: String,
    }
}

wire_struct! {
    /// A node proves that it lives, and that the client sessions connected to it do.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Renewal {
        /// The node.
        pub node: NodeId,
        /// Its session.
        pub session: SessionId,
        /// Client sessions with a connection to the node.
        pub clients: Vec<ClientId>,
    }
}

wire_struct! {
    /// A group is told of a client session before its first command there.
    ///
    /// Safe because of `ends`: a group that has heard of more ends than the teller had refuses, so that a
    /// session which ended meanwhile is never brought back to life with its replies forgotten.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Introduction {
        /// The session.
        pub client: ClientId,
        /// How many ends (of sessions) group 0 had numbered when the session was seen alive there.
        pub ends: u64,
    }
}

wire_enum! {
    /// What a group is asked to do: a client's command, or a node's own business.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum Work {
        /// A client's command.
        Op(op: Op) = 1,
        /// Group 0: a node opens its session; answers the session id.
        OpenSession(open: OpenSession) = 2,
        /// Group 0: a node renews its session; answers 1, or 0 when the session is over.
        Renew(renewal: Renewal) = 3,
        /// Any group: a connection has ended; answers OK.
        CloseConn(conn: ConnId) = 4,
        /// Group 0: opens a client session; answers `[id, ends]`.
        OpenClient = 5,
        /// Group 0, a read: is the session alive? Answers `[id, ends]` or nil.
        SeeClient(client: ClientId) = 6,
        /// A partition learns of a client session; answers 1, or 0 when `ends` is behind: look again.
        Introduce(introduction: Introduction) = 7,
        /// A group takes outbox items; answers the last number that it has of the source's.
        Take(parcel: Parcel) = 8,
        /// The source of outbox items learns that they arrived; answers OK.
        Taken(receipt: Receipted) = 9,
        /// Group 0: no other group's configuration names this leaving node any more, so that it can be forgotten;
        /// answers 1, or 0 when the node is not leaving.
        Forget(node: NodeId) = 10,
        /// Group 0: the node cannot say which replicas it had; all of them are void. Answers which of its lives begins.
        Renounce(node: NodeId) = 11,
        /// Any group, a read: answers an index that covers all that was acknowledged before.
        SeeIndex = 12,
        /// A partition: its leader makes room; removes each of these keys that still has this version. Answers OK.
        Evict(lines: Vec<(Bytes, u64)>) = 13,
        /// Group 0: this partition is to be told before the lock is granted anew; answers `[number, floor]`, see `Watch`.
        Watch(watched: (Bytes, GroupId)) = 14,
    }
}

wire_struct! {
    /// One piece of work on its way to a leader.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Ask {
        /// The request's number on its connection.
        pub request: u64,
        /// Which sending of the request this is; a refusal names it, so that one which comes late is not
        /// taken for the refusal of a later sending.
        pub sending: u32,
        /// Its number in its client session, if it has one.
        pub client: Option<ClientSeq>,
        /// In whose name.
        pub principal: Principal,
        /// A read that follows unanswered writes of its connection: it must see them.
        pub behind: bool,
        /// Of a read of one key: the epoch of the lease under which the node would keep the line, or, without one, a
        /// wish for it (`cache::WISH`). Of a write of one key: the number of the grant that the node has given up for
        /// it. 0 is none.
        pub line: u64,
        /// What to do.
        pub work: Work,
    }
}

wire_struct! {
    /// Work of one connection for one group.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Forward {
        /// The group.
        pub group: GroupId,
        /// The term whose leader may accept it.
        pub term: Term,
        /// The connection.
        pub conn: ConnId,
        /// Rises when the connection has seen a refusal from this group. A leader that refused something
        /// of a run refuses the rest of the run: nothing overtakes what was refused.
        pub run: u64,
        /// In the connection's order.
        pub asks: Vec<Ask>,
    }
}

wire_enum! {
    /// What became of an `Ask`.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum Verdict {
        /// It is answered.
        Reply(reply: Reply) = 1,
        /// Never proposed: the receiver does not lead the group in the term named.
        Moved = 2,
        /// It is in the log, and waits there: the answer comes later, whoever leads by then.
        Waits = 3,
    }
}

wire_struct! {
    /// An answer on its way back.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Answer {
        /// The connection.
        pub conn: ConnId,
        /// The request's number on it.
        pub request: u64,
        /// The group that answers (one of several, perhaps).
        pub group: GroupId,
        /// The sending that is refused; of no meaning in an answer that is not a refusal.
        pub sending: u32,
        /// What became of it.
        pub verdict: Verdict,
        /// The line that comes with it.
        pub grant: Option<Grant>,
    }
}

wire_struct! {
    /// A message for a subscriber.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Delivery {
        /// The topic.
        pub topic: Bytes,
        /// The message.
        pub id: u64,
        /// Which delivery of it this is; 1 is the first.
        pub attempt: u32,
        /// Its body.
        pub body: Bytes,
    }
}

wire_enum! {
    /// A frame on a link.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum LinkFrame {
        /// Work for a leader, from the node that opened the link.
        Forward(forward: Forward) = 1,
        /// Answers, from the node that was reached.
        Answers(answers: Vec<Answer>) = 2,
        /// Messages for subscribers, from the node that was reached.
        Pushes(pushes: Vec<(ConnId, Delivery)>) = 3,
    }
}

/// What any word between nodes holds on to besides byte strings, about.
pub(crate) const BASE: usize = 128;

impl Work {
    /// The keys that it may change.
    #[must_use]
    pub fn writes(&self) -> Cow<'_, [Bytes]> {
        match self {
            Self::Op(op) => op.writes(),
            Self::Evict(lines) => lines.iter().map(|(key, _)| key.clone()).collect(),
            _ => Cow::Borrowed(&[]),
        }
    }

    /// Bytes that keys and values may grow by at the most, besides what a new row costs, and the rows that it may add.
    #[must_use]
    pub fn needs(&self) -> (usize, usize) {
        if let Self::Op(op) = self { op.needs() } else { (0, 0) }
    }

    /// Turns times by the wall clock into group time; see `Op::set_epoch`.
    pub fn set_epoch(&mut self, epoch: i64) {
        if let Self::Op(op) = self {
            op.set_epoch(epoch);
        }
    }

    /// Whether it may change every key of its partition.
    #[must_use]
    pub fn writes_all(&self) -> bool {
        matches!(self, Self::Op(op) if op.writes_all())
    }

    /// The key whose value answers it, if it is a read of one.
    #[must_use]
    pub fn line(&self) -> Option<&Bytes> {
        if let Self::Op(op) = self { op.line() } else { None }
    }
}

impl RaftMessage {
    /// Bytes that it holds on to, about.
    #[must_use]
    pub fn weight(&self) -> usize {
        BASE + self.entries.iter().map(|entry| 64 + entry.data.len()).sum::<usize>()
    }
}

impl RaftFrame {
    /// Bytes that it holds on to, about.
    #[must_use]
    pub fn weight(&self) -> usize {
        64 * (self.leading.len() + self.lost.len())
            + self.cache.iter().map(CacheWord::weight).sum::<usize>()
            + self.messages.iter().map(RaftMessage::weight).sum::<usize>()
    }
}

impl Work {
    /// Whether it is answered from the state, and leaves no trace in the log.
    #[must_use]
    pub fn is_read(&self) -> bool {
        match self {
            Self::Op(op) => op.is_read(),
            Self::SeeClient(_) | Self::SeeIndex => true,
            _ => false,
        }
    }

    /// Bytes that it holds on to, about.
    #[must_use]
    pub fn weight(&self) -> usize {
        match self {
            Self::Op(op) => op.weight(),
            Self::Renew(renewal) => BASE + 8 * renewal.clients.len(),
            Self::Take(parcel) => BASE + parcel.items.iter().map(Item::weight).sum::<usize>(),
            Self::Evict(lines) => BASE + lines.iter().map(|(key, _)| 48 + key.len()).sum::<usize>(),
            _ => 2 * BASE,
        }
    }
}

impl Answer {
    /// Bytes that it holds on to, about.
    #[must_use]
    pub fn weight(&self) -> usize {
        BASE + if let Verdict::Reply(reply) = &self.verdict { reply.weight() } else { 0 }
    }
}

impl Delivery {
    /// Bytes that it holds on to, about.
    #[must_use]
    pub fn weight(&self) -> usize {
        BASE + self.topic.len() + self.body.len()
    }
}

impl LinkFrame {
    /// Bytes that it holds on to, about.
    #[must_use]
    pub fn weight(&self) -> usize {
        match self {
            Self::Forward(forward) => forward.asks.iter().map(|ask| BASE + ask.work.weight()).sum(),
            Self::Answers(answers) => answers.iter().map(Answer::weight).sum(),
            Self::Pushes(pushes) => pushes.iter().map(|(_, delivery)| delivery.weight()).sum(),
        }
    }
}
