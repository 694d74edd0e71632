//! A request on its way: its shares for the groups that decide it, and the one answer out of theirs.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::id::{ClientId, ClientSeq, ConnId, GroupId, Index, NodeId, SessionId, Term};
use quorate_protocol::limits::VALUES_MAX;
use quorate_protocol::op::{Cursor, Home, MSet, Op, partition_of, partition_of_topic};
use quorate_protocol::peer::{SnapshotAt, Work};
use quorate_protocol::reply::{Code, Reply};

use super::Fenced;
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
    /// Have a partition compare a lock's tokens.
    Watch(Fenced),
    /// Bring the home what was acknowledged of a line that this node owns; the number of it.
    Flush(Bytes, u64),
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

/// How the answers of a request's parts become one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Gather {
    /// Counts are added up.
    Sum,
    /// All say OK.
    Done,
    /// Each value comes from the next one of this group's.
    Values(Vec<GroupId>),
    /// Lists are joined.
    Joined,
    /// A page of SCAN, with so many partitions: behind the last one the cursor is 0.
    Page(u16),
}

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) kind: Kind,
    /// Empty: the answer is `ready`.
    pub(super) parts: Vec<Part>,
    pub(super) ready: Option<Reply>,
    /// How the answers of its parts become one.
    pub(super) gather: Gather,
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
        gather: Gather::Sum,
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
            ..shared_out(op, partitions, base)
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

/// A slot with the command's shares, or with its refusal.
fn shared_out(op: Op, partitions: u16, base: Slot) -> Slot {
    let gather = match &op {
        Op::MGet(keys) | Op::Versions(keys) => {
            Gather::Values(keys.iter().map(|key| partition_of(key, partitions)).collect())
        }
        Op::MSet(_) | Op::FlushAll => Gather::Done,
        Op::Keys(_) => Gather::Joined,
        Op::Scan(_) => Gather::Page(partitions),
        _ => Gather::Sum,
    };
    match split(op, partitions) {
        Ok(parts) => Slot { parts, gather, ..base },
        Err(refusal) => Slot { ready: Some(refusal), ..base },
    }
}

/// A command's shares for the groups that decide it.
fn split(op: Op, partitions: u16) -> Result<Vec<Part>, Reply> {
    let whole = match op.home() {
        Home::System => GroupId::SYSTEM,
        Home::Key(name) => partition_of(name, partitions),
        Home::Topic(name) => partition_of_topic(name, partitions),
        Home::Each => return Ok(shares(op, partitions)),
        Home::Together => together(&op, partitions)?,
        Home::All => {
            let groups = (1..=partitions).map(GroupId);
            return Ok(groups.map(|group| part(group, Work::Op(op.clone()))).collect());
        }
        Home::Cursor(cursor) => match Cursor::read(cursor) {
            Some(at) if at.partition <= partitions => GroupId(at.partition),
            _ => return Err(Reply::error(Code::Err, "invalid cursor")),
        },
    };
    Ok([part(whole, Work::Op(op))].into())
}

/// The one partition of all keys.
fn together(op: &Op, partitions: u16) -> Result<GroupId, Reply> {
    let mut groups = op.keys().into_iter().map(|key| partition_of(key, partitions));
    let first = groups.next().unwrap_or(GroupId(1));
    if groups.all(|group| group == first) {
        return Ok(first);
    }
    let text = "Keys in request don't hash to the same partition; give their names a common {tag}, \
                as in {cart}:1 and {cart}:2";
    Err(Reply::error(Code::CrossSlot, text))
}

/// Each partition's share of a command that names several keys.
fn shares(op: Op, partitions: u16) -> Vec<Part> {
    fn sorted<T>(all: Vec<T>, group: impl Fn(&T) -> GroupId) -> BTreeMap<GroupId, Vec<T>> {
        let mut shares: BTreeMap<GroupId, Vec<T>> = BTreeMap::new();
        for one in all {
            shares.entry(group(&one)).or_default().push(one);
        }
        shares
    }
    let of_names = |names: Vec<Bytes>, share: fn(Vec<Bytes>) -> Op| {
        let shares = sorted(names, |name| partition_of(name, partitions)).into_iter();
        shares.map(|(group, names)| part(group, Work::Op(share(names)))).collect()
    };
    match op {
        Op::Del(names) => of_names(names, Op::Del),
        Op::Exists(names) => of_names(names, Op::Exists),
        Op::MGet(names) => of_names(names, Op::MGet),
        Op::Versions(names) => of_names(names, Op::Versions),
        Op::MSet(MSet { pairs, absent }) => {
            let shares = sorted(pairs, |(key, _)| partition_of(key, partitions)).into_iter();
            shares.map(|(group, pairs)| part(group, Work::Op(Op::MSet(MSet { pairs, absent })))).collect()
        }
        op => [part(GroupId::SYSTEM, Work::Op(op))].into(),
    }
}

/// One answer out of those of all parts; a failure stands for the whole, and for a write
/// it is a never-proposed one only if nothing was proposed anywhere. A read has changed nothing, whoever
/// refused it.
pub(super) fn combine(parts: &mut [Part], read: bool, gather: &Gather) -> Reply {
    let groups: Vec<GroupId> = parts.iter().map(|part| part.group).collect();
    let mut replies =
        parts.iter_mut().map(|part| match core::mem::replace(&mut part.state, PartState::Parked) {
            PartState::Done(reply) => reply,
            _ => unreachable!("a request is finished when all its parts are done"),
        });
    if replies.len() == 1 {
        return page(replies.next().expect("one part"), gather);
    }
    let replies: Vec<Reply> = replies.collect();
    if let Some(failure) = replies.iter().find(|reply| reply.failure().is_some_and(|f| !f.code.turned_away()))
    {
        return failure.clone();
    }
    let refused = || replies.iter().filter(|reply| reply.turned_away());
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
    gathered(groups, replies, gather)
}

fn page(reply: Reply, gather: &Gather) -> Reply {
    let (Gather::Page(partitions), Reply::Array(values)) = (gather, &reply) else { return reply };
    let [Reply::Bulk(number), names] = &values[..] else { return reply };
    let number = core::str::from_utf8(number).ok().and_then(|digits| digits.parse().ok());
    match number.and_then(Cursor::read) {
        Some(cursor) if cursor.partition > *partitions => {
            Reply::Array([Reply::text("0"), names.clone()].into())
        }
        _ => reply,
    }
}

fn gathered(groups: Vec<GroupId>, replies: Vec<Reply>, gather: &Gather) -> Reply {
    let list = |reply| if let Reply::Array(values) = reply { values } else { Vec::new() };
    let values = match gather {
        Gather::Sum => {
            return Reply::Int(
                replies.iter().map(|reply| if let Reply::Int(n) = reply { *n } else { 0 }).sum(),
            );
        }
        Gather::Done => return Reply::OK,
        Gather::Values(order) => {
            let lists = replies.into_iter().map(|reply| list(reply).into_iter());
            let mut lists: BTreeMap<GroupId, _> = groups.into_iter().zip(lists).collect();
            let next = |group| lists.get_mut(group)?.next();
            Reply::Array(order.iter().map(next).map(|value| value.unwrap_or(Reply::Nil)).collect())
        }
        Gather::Joined | Gather::Page(_) => Reply::Array(replies.into_iter().flat_map(list).collect()),
    };
    if values.weight() <= VALUES_MAX {
        return values;
    }
    let text = format!("the answer comes to more than {VALUES_MAX} bytes; ask for less at a time");
    Reply::error(Code::TooBig, text)
}
