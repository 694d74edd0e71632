//! A request on its way: its shares for the groups that decide it, and the one answer out of theirs.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use quorate_protocol::id::{ClientId, ClientSeq, ConnId, GroupId, Index, NodeId, SessionId, Term};
use quorate_protocol::op::{Home, Op, partition_of, partition_of_topic};
use quorate_protocol::peer::{SnapshotAt, Work};
use quorate_protocol::reply::{Code, Reply};

use crate::effect::{NodeAsk, Request, Want};

/// What the node itself wants to know of the groups; see `household.rs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Errand {
    /// Open the node's session.
    OpenSession,
    /// Renew the node's session.
    Renew(SessionId),
    /// Tell a group that a connection is gone.
    Close(GroupId, ConnId),
    /// Bring outbox items of a source to their target; the number of the first.
    Parcel(GroupId, GroupId, u64),
    /// Tell the source that the target has them.
    Receipt(GroupId, GroupId),
    /// Look whether a client session is alive.
    See(ClientId),
    /// Make a client session known to a partition.
    Introduce(ClientId, GroupId),
    /// Forgets a member that has given its share away.
    Forget(NodeId),
    /// Makes all former replicas of this node void.
    Renounce,
}

#[derive(Debug)]
pub(super) enum PartState {
    Parked,
    Sent { to: NodeId, term: Term, at: u64 },
    Done(Reply),
}

/// A request's share for one group.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) group: GroupId,
    pub(super) work: Work,
    pub(super) sending: u32,
    /// An earlier sending may have been delivered, and no answer came.
    pub(super) maybe: bool,
    /// It is in the log and waits there.
    pub(super) waits: bool,
    /// This node's own replica may have passed over what became of it.
    pub(super) deaf: bool,
    pub(super) state: PartState,
}

/// What is left to do for a request once the groups have done their part: the node itself brings it to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Snapshots of these groups that go at least so far.
    Snapshot(BTreeMap<GroupId, Index>),
    /// Bytes of a snapshot.
    Read(SnapshotAt),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Plain,
    /// Its groups say how far their snapshots are to go.
    Snapshot,
    /// It asks for bytes of a snapshot.
    Read(SnapshotAt),
    OpenClient,
    ResumeClient,
    Errand(Errand),
}

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) kind: Kind,
    /// Empty: the answer is `ready`.
    pub(super) parts: Vec<Part>,
    pub(super) ready: Option<Reply>,
    pub(super) client: Option<ClientSeq>,
    pub(super) after: Option<u64>,
    pub(super) read: bool,
    pub(super) barrier: bool,
    pub(super) needs_session: bool,
    /// Microseconds that it may rightly wait.
    pub(super) patience: u64,
    /// When it was first found that it cannot be sent; 0: not yet.
    pub(super) parked_since: u64,
    /// When it was first sent.
    pub(super) first_sent: u64,
}

impl Slot {
    /// What is left to do for it; none when its answer is known, or follows from its parts.
    pub(super) fn task(&self) -> Option<Task> {
        match self.kind {
            _ if self.ready.is_some() => None,
            Kind::Snapshot => {
                let index = |part: &Part| match part.state {
                    PartState::Done(Reply::Int(index)) => Some((part.group, Index::try_from(index).ok()?)),
                    _ => None,
                };
                Some(Task::Snapshot(self.parts.iter().map(index).collect::<Option<_>>()?))
            }
            Kind::Read(at) => Some(Task::Read(at)),
            _ => None,
        }
    }
}

pub(super) fn in_doubt() -> Reply {
    let text = "no answer came from the leader; the command may or may not take effect: read before you send it again";
    Reply::error(Code::InDoubt, text)
}

pub(super) fn is_parked(part: &Part) -> bool {
    matches!(part.state, PartState::Parked)
}

pub(super) fn is_sent(part: &Part) -> bool {
    matches!(part.state, PartState::Sent { .. })
}

pub(super) fn part(group: GroupId, work: Work) -> Part {
    Part { group, work, sending: 0, maybe: false, waits: false, deaf: true, state: PartState::Parked }
}

pub(super) fn empty_slot() -> Slot {
    Slot {
        kind: Kind::Plain,
        parts: Vec::new(),
        ready: None,
        client: None,
        after: None,
        read: false,
        barrier: false,
        needs_session: false,
        patience: 0,
        parked_since: 0,
        first_sent: 0,
    }
}

/// What a request needs before it can be answered. `replicas`: the groups that the node holds.
pub(super) fn new_slot(request: Request, partitions: u16, replicas: &BTreeSet<GroupId>) -> Slot {
    let Request { want, client, after, .. } = request;
    let base = Slot { client, after, ..empty_slot() };
    match want {
        Want::Answered(reply) => Slot { ready: Some(reply), client: None, ..base },
        Want::Node(NodeAsk::Snapshot) => {
            let parts = replicas.iter().map(|&group| part(group, Work::SeeIndex)).collect();
            Slot { kind: Kind::Snapshot, parts, client: None, read: true, ..base }
        }
        Want::Node(NodeAsk::SnapshotRead(at)) => {
            Slot { kind: Kind::Read(at), client: None, read: true, ..base }
        }
        Want::Node(_) => Slot { ready: Some(Reply::Nil), client: None, ..base },
        Want::OpenClient => {
            let parts = [part(GroupId::SYSTEM, Work::OpenClient)].into();
            Slot { kind: Kind::OpenClient, parts, client: None, ..base }
        }
        Want::ResumeClient(id) => {
            let parts = [part(GroupId::SYSTEM, Work::SeeClient(id))].into();
            Slot { kind: Kind::ResumeClient, parts, client: None, read: true, ..base }
        }
        Want::Op(op) => Slot {
            read: op.is_read(),
            barrier: op.is_barrier(),
            needs_session: needs_session(&op),
            patience: op.patience().saturating_mul(1000),
            parts: split(op, partitions),
            ..base
        },
    }
}

/// Commands whose effect belongs to their connection, or whose connection decides what they may settle.
pub(super) fn needs_session(op: &Op) -> bool {
    match op {
        Op::Fetch(_) | Op::Sub(_) | Op::Unsub(_) | Op::Ack(_) | Op::Nack(_) => true,
        op => op.home() == Home::System && !op.is_read(),
    }
}

/// Whether a group may keep something in the connection's name after the command.
pub(super) fn keeps_something(work: &Work) -> bool {
    matches!(work, Work::Op(Op::Lock(_) | Op::Fetch(_) | Op::Sub(_)))
}

/// A command's shares for the groups that decide it.
pub(super) fn split(op: Op, partitions: u16) -> Vec<Part> {
    let whole = match op.home() {
        Home::System => GroupId::SYSTEM,
        Home::Key(name) => partition_of(name, partitions),
        Home::Topic(name) => partition_of_topic(name, partitions),
        Home::Each(names) => {
            let mut shares: BTreeMap<GroupId, Vec<_>> = BTreeMap::new();
            for name in names {
                shares.entry(partition_of(name, partitions)).or_default().push(name.clone());
            }
            let reads = op.is_read();
            let share = |names| if reads { Op::Exists(names) } else { Op::Del(names) };
            return shares.into_iter().map(|(group, names)| part(group, Work::Op(share(names)))).collect();
        }
    };
    [part(whole, Work::Op(op))].into()
}

/// One answer out of those of all parts: counts are added up; a failure stands for the whole, and for a write
/// it is a never-proposed one only if nothing was proposed anywhere. A read has changed nothing, whoever
/// refused it.
pub(super) fn combine(parts: &mut [Part], read: bool) -> Reply {
    let mut replies =
        parts.iter_mut().map(|part| match core::mem::replace(&mut part.state, PartState::Parked) {
            PartState::Done(reply) => reply,
            _ => unreachable!("a request is finished when all its parts are done"),
        });
    if replies.len() == 1 {
        return replies.next().expect("one part");
    }
    let replies: Vec<Reply> = replies.collect();
    if let Some(failure) =
        replies.iter().find(|reply| reply.failure().is_some_and(|f| !f.code.never_proposed()))
    {
        return failure.clone();
    }
    let refused = || replies.iter().filter(|reply| reply.never_proposed());
    match refused().next() {
        Some(refusal) if read || refused().count() == replies.len() => return refusal.clone(),
        Some(_) => {
            return Reply::error(
                Code::InDoubt,
                "some of the partitions refused, others did their part; read, then send again",
            );
        }
        None => {}
    }
    let sum = replies.iter().map(|reply| if let Reply::Int(n) = reply { *n } else { 0 }).sum();
    Reply::Int(sum)
}
