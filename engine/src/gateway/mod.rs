//! The node's counter: client connections on one side, leaders of groups on the other.
//!
//! Charter: keeps what each connection has asked, sends it to leaders in an order that keeps the promises,
//! puts answers back in order, and decides what an unanswered request is told. It performs nothing:
//! `take_forwards` and `take_effects` hand out what there is to do.
//!
//! Invariants (design: outcome and order), for ordered connections:
//! - Commands to one partition take effect in order. So a write waits for unanswered reads of its
//!   connection; a read behind unanswered writes says so (`Ask::behind`); and nothing is sent under a newer
//!   term while something is unanswered under an older one.
//! - Once a command is refused as never proposed, everything that the connection had sent behind it to the
//!   same partition is refused too: here up to `Lane::refused_upto`, at the leader by `Forward::run`.
//! - A barrier stands alone: it waits for all before it, and all behind it wait for it.
//! - A write that may have taken effect, or may still, is never sent again, unless it carries a client session.
//!   One that was sent under a term which the log here has left behind, and whose outcome was not in it, never will.
//!
//! - A request that waits in the log (a LOCK, a FETCH) is not given up when its leader is gone, if this node
//!   holds a replica: it hears the answer from the log itself.
//!
//! Subtlety: a request that a former leader never proposed (`Moved`) goes back among the pending ones; it
//! is sent again only under a newer term, and pending requests are sent in order, so it cannot be overtaken.

mod fences;
mod overdue;
mod send;
mod slot;

use alloc::borrow::ToOwned;
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::cache::Grant;
use quorate_protocol::id::{Boot, ClientId, ConnId, GroupId, NodeId, SessionId, Term};
use quorate_protocol::op::{FencedSet, Op};
use quorate_protocol::peer::{Answer, Delivery, Forward, Verdict, Work};
use quorate_protocol::reply::{Code, Reply};

use crate::cache::holder::{Fill, Holder};
use crate::effect::{Effect, Effects, Request};
use crate::keep::keep;
pub use fences::Fenced;
use fences::Fences;
pub use slot::{Errand, Task};
use slot::{Kind, Part, PartState, Slot, combine, empty_slot, in_doubt, is_parked, is_sent, new_slot, part};

/// The counter of the node's own connection.
pub const OWN: u64 = 0;

/// Where a group is led, as far as this node knows.
#[derive(Debug, Clone, Copy, Default)]
struct Route {
    leader: Option<NodeId>,
    term: Term,
    /// When it last changed.
    since: u64,
    /// The newest term whose leader said that it leads no more.
    moved: Term,
    /// The term of what this node's own replica applied last.
    applied: Term,
    /// What that replica applies from now on is told to connections.
    tells: bool,
}

/// A connection's dealings with one group.
#[derive(Debug, Default, Clone)]
struct Lane {
    reads: u32,
    writes: u32,
    /// An unanswered read stands behind a write: so do all reads behind it, or they would overtake it.
    behind: bool,
    term: Term,
    run: u64,
    refused_upto: u64,
}

#[derive(Debug, Default)]
struct Conn {
    ordered: bool,
    session: SessionId,
    slots: BTreeMap<u64, Slot>,
    /// Requests that are not sent yet.
    pending: BTreeSet<u64>,
    /// On an unordered connection: request → those that wait for its answer.
    followers: BTreeMap<u64, Vec<u64>>,
    /// Requests of which something is sent and unanswered.
    unanswered: usize,
    barrier: bool,
    last: u64,
    lanes: BTreeMap<GroupId, Lane>,
    /// Groups that keep something in the connection's name.
    owns: BTreeSet<GroupId>,
    /// Groups whose leaders may count on it to fill a key, or have it wait for that.
    fills: BTreeSet<GroupId>,
    /// The client session that was opened or resumed here.
    client: Option<ClientId>,
}

/// See the top of the file.
pub struct Gateway {
    me: NodeId,
    boot: Boot,
    partitions: u16,
    /// Boxed: a connection is taken out and put back at every step.
    conns: BTreeMap<u64, Box<Conn>>,
    routes: Vec<Route>,
    /// Whether this node is no member any more: then nobody answers what it sends.
    removed: bool,
    /// Groups of which this node holds a replica.
    replicas: BTreeSet<GroupId>,
    /// Nodes to which a link stands.
    links: BTreeSet<NodeId>,
    /// Connections with requests that are not answered.
    busy: BTreeSet<u64>,
    /// Something has changed that lets pending requests go.
    wake: bool,
    /// A log has entered a new term.
    overtaken: bool,
    next_own: u64,
    session: SessionId,
    introduced: BTreeSet<(ClientId, GroupId)>,
    unintroduced: BTreeSet<(ClientId, GroupId)>,
    fences: Fences,
    finished: Vec<(Errand, u64, Reply)>,
    tasks: Vec<(u64, u64, Task)>,
    forwards: Vec<(NodeId, Forward)>,
    effects: Effects,
    /// What this node keeps of what it has read.
    pub holder: Holder,
}

impl Gateway {
    /// The counter of a node, for a cluster of this many partitions.
    #[must_use]
    pub fn new(me: NodeId, boot: Boot, partitions: u16) -> Self {
        let mut this = Self {
            me,
            boot,
            partitions,
            conns: BTreeMap::new(),
            removed: false,
            routes: alloc::vec![Route::default(); usize::from(partitions) + 1],
            replicas: BTreeSet::new(),
            links: [me].into(),
            busy: BTreeSet::new(),
            wake: false,
            overtaken: false,
            next_own: 1,
            session: SessionId(0),
            introduced: BTreeSet::new(),
            unintroduced: BTreeSet::new(),
            fences: Fences::default(),
            finished: Vec::new(),
            tasks: Vec::new(),
            forwards: Vec::new(),
            effects: Effects::new(),
            holder: Holder::new(boot, partitions),
        };
        this.connected(OWN, false);
        this
    }

    /// This node holds a replica of the group.
    pub fn hold_replica(&mut self, group: GroupId) {
        self.replicas.insert(group);
    }

    /// This node holds no replica of a group any more.
    pub fn drop_replica(&mut self, group: GroupId) {
        self.replicas.remove(&group);
    }

    /// This node's replica of a group has leapt over a part of the log: it has not heard what became of requests there.
    pub fn skipped(&mut self, group: GroupId) {
        let parts =
            self.conns.values_mut().flat_map(|conn| conn.slots.values_mut()).flat_map(|slot| &mut slot.parts);
        parts.filter(|part| part.group == group).for_each(|part| (part.waits, part.deaf) = (false, true));
    }

    /// Work to be sent to leaders.
    pub fn take_forwards(&mut self) -> Vec<(NodeId, Forward)> {
        core::mem::take(&mut self.forwards)
    }

    /// What the shell is to do.
    pub fn take_effects(&mut self, fx: &mut Effects) {
        fx.append(&mut self.effects);
    }

    /// Whether everything that the node itself wanted of the groups is answered.
    #[must_use]
    pub fn has_no_errand(&self) -> bool {
        self.conns.get(&OWN).is_none_or(|own| own.slots.is_empty())
    }

    /// Errands that are done: which, when it was first sent, and the answer.
    pub fn take_finished(&mut self) -> Vec<(Errand, u64, Reply)> {
        core::mem::take(&mut self.finished)
    }

    /// Requests that the node itself brings to their end: the connection, the request, and what is to be done.
    pub fn take_tasks(&mut self) -> Vec<(u64, u64, Task)> {
        core::mem::take(&mut self.tasks)
    }

    /// A task is done. Nobody may be there any more who asked.
    pub fn complete(&mut self, counter: u64, id: u64, reply: Reply) {
        let Some(mut conn) = self.conns.remove(&counter) else { return };
        if let Some(slot) = conn.slots.get_mut(&id) {
            slot.ready = Some(reply);
            self.finish(counter, &mut conn, id);
            // Something may have waited for this very answer.
            self.wake = true;
        }
        self.conns.insert(counter, conn);
    }

    /// Client sessions that wait to be introduced to a group.
    pub fn take_unintroduced(&mut self) -> BTreeSet<(ClientId, GroupId)> {
        core::mem::take(&mut self.unintroduced)
    }

    /// A group knows a client session now.
    pub fn set_introduced(&mut self, client: ClientId, group: GroupId) {
        self.introduced.insert((client, group));
        self.wake = true;
    }

    /// Pending requests are to be looked at again.
    pub fn wake(&mut self) {
        self.wake = true;
    }

    /// A client session is over: nobody here may go on with it.
    pub fn forget_client(&mut self, client: ClientId) {
        self.introduced.retain(|&(known, _)| known != client);
        for conn in self.conns.values_mut().filter(|conn| conn.client == Some(client)) {
            conn.client = None;
        }
        self.wake = true;
    }

    /// Forgets what it knows of client sessions that are not connected here any more.
    pub fn keep_clients(&mut self, connected: &BTreeSet<ClientId>) {
        self.introduced.retain(|(client, _)| connected.contains(client));
    }

    /// The client sessions that are connected.
    pub fn clients(&self) -> impl Iterator<Item = ClientId> {
        self.conns.values().filter_map(|conn| conn.client)
    }

    /// This node has been removed from its cluster.
    pub fn remove(&mut self) {
        self.removed = true;
    }

    /// The node's session; 0 while it has none. Whoever held something under another one is closed.
    pub fn set_session(&mut self, session: SessionId) {
        self.session = session;
        self.wake = true;
        self.forget_closes();
        let owners: Vec<u64> = self
            .conns
            .iter()
            .filter(|(_, conn)| !conn.owns.is_empty() && conn.session != session)
            .map(|(&counter, _)| counter)
            .collect();
        for conn in owners {
            let reason = "the node lost its session, and with it what this connection held; connect again";
            self.effects.push(Effect::Close { conn, reason: reason.to_owned() });
            self.drop_conn(conn);
        }
    }

    /// Connections of a session that is over need not be closed one by one.
    fn forget_closes(&mut self) {
        let own = self.conns.get_mut(&OWN).expect("the node's own connection is always there");
        own.slots.retain(|id, slot| {
            let close = matches!(slot.kind, Kind::Errand(Errand::Close(..)));
            let keep = !close || !own.pending.contains(id);
            if !keep {
                own.pending.remove(id);
            }
            keep
        });
    }

    /// Where a group is led. Unknown leaders are `None`; terms never fall.
    pub fn set_route(&mut self, now: u64, group: GroupId, leader: Option<NodeId>, term: Term) {
        let route = &mut self.routes[group.slot()];
        let leader = leader.filter(|_| term > route.moved);
        if term < route.term || (leader == route.leader && term == route.term) {
            return;
        }
        route.leader = leader;
        route.term = term;
        route.since = now;
        self.wake |= leader.is_some();
        self.holder.set_route(group, leader, term);
    }

    /// The term of what this node's replica of a group has applied last, and whether connections are told of all that it
    /// applies from now on. What it has applied so far is told.
    pub fn set_applied(&mut self, group: GroupId, term: Term, tells: bool) {
        let route = &mut self.routes[group.slot()];
        self.overtaken |= term > route.applied;
        (route.applied, route.tells) = (term, tells);
    }

    /// The leader of a group, as far as this node knows.
    #[must_use]
    pub fn leader(&self, group: GroupId) -> Option<NodeId> {
        self.routes[group.slot()].leader
    }

    /// A client has come.
    pub fn connected(&mut self, counter: u64, ordered: bool) {
        let conn = Box::new(Conn { ordered, ..Conn::default() });
        let old = self.conns.insert(counter, conn);
        assert!(old.is_none(), "connection counters are never reused");
    }

    /// A client has gone: returns what groups must be told, as `(group, connection)`.
    pub fn disconnected(&mut self, counter: u64) -> Vec<(GroupId, ConnId)> {
        self.drop_conn(counter)
    }

    fn drop_conn(&mut self, counter: u64) -> Vec<(GroupId, ConnId)> {
        self.busy.remove(&counter);
        let Some(conn) = self.conns.remove(&counter) else { return Vec::new() };
        let refused = conn.lanes.iter().filter(|(_, lane)| lane.run > 0).map(|(&group, _)| group);
        let told: BTreeSet<GroupId> = conn.owns.iter().chain(&conn.fills).copied().chain(refused).collect();
        let id = ConnId::new(self.me, conn.session, self.boot, counter);
        told.into_iter().map(|group| (group, id)).collect()
    }

    /// A client asks.
    pub fn requests(&mut self, now: u64, counter: u64, requests: Vec<Request>) {
        let Some(conn) = self.conns.get_mut(&counter) else { return };
        let mut fresh = VecDeque::new();
        for request in requests {
            assert!(request.id > conn.last, "request numbers rise");
            let id = request.id;
            conn.last = id;
            conn.pending.insert(id);
            if let Some(after) = request.after.filter(|after| conn.slots.contains_key(after)) {
                conn.followers.entry(after).or_default().push(id);
            }
            conn.slots.insert(id, new_slot(request, self.partitions, &self.replicas));
            fresh.push_back(id);
        }
        self.busy.insert(counter);
        self.dispatch_some(now, counter, fresh);
    }

    /// The node itself asks a group.
    pub fn run_errand(&mut self, now: u64, group: GroupId, work: Work, errand: Errand) {
        let id = self.next_own;
        self.next_own += 1;
        let read = work.is_read();
        let slot =
            Slot { read, kind: Kind::Errand(errand), parts: [part(group, work)].into(), ..empty_slot() };
        let conn = self.conns.get_mut(&OWN).expect("the node's own connection is always there");
        conn.last = id;
        conn.pending.insert(id);
        conn.slots.insert(id, slot);
        self.busy.insert(OWN);
        self.dispatch_some(now, OWN, [id].into());
    }

    /// What this node owns and has acknowledged goes to its home.
    pub fn send_flushes(&mut self, now: u64) {
        for (group, id, flush) in self.holder.take_flushes() {
            let errand = Errand::Flush(flush.key.clone(), id);
            self.run_errand(now, group, Work::Op(Op::Flush(flush)), errand);
        }
    }

    /// An answer has come.
    pub fn answered(&mut self, now: u64, answer: Answer) {
        if answer.conn.boot() != self.boot {
            // Somebody of a former boot asked for it; the log has been replayed since.
            return;
        }
        let counter = answer.conn.number();
        let Some(conn) = self.conns.get_mut(&counter) else { return };
        let Some(slot) = conn.slots.get_mut(&answer.request) else { return };
        let of_group = |part: &&mut Part| part.group == answer.group;
        let Some(part) = slot.parts.iter_mut().find(of_group) else { return };
        let PartState::Sent { term, at, .. } = part.state else { return };
        let refused = match &answer.verdict {
            Verdict::Waits => {
                part.waits = true;
                return;
            }
            Verdict::Moved => true,
            Verdict::Reply(reply) => reply.never_proposed(),
        };
        let turned_away = refused || matches!(&answer.verdict, Verdict::Reply(reply) if reply.turned_away());
        if turned_away && answer.sending != part.sending {
            return;
        }
        if let Some(grant) = answer.grant {
            fill(&mut self.holder, now, part, at, grant, &answer.verdict);
        }
        part.state = match answer.verdict {
            Verdict::Reply(_) if turned_away && part.maybe && !slot.read => PartState::Done(in_doubt()),
            Verdict::Reply(reply) => PartState::Done(reply),
            Verdict::Waits => unreachable!("it was noted above"),
            Verdict::Moved => {
                let route = &mut self.routes[answer.group.slot()];
                route.moved = route.moved.max(term);
                if route.term == term {
                    route.leader = None;
                    route.since = now;
                }
                PartState::Parked
            }
        };
        let moved = is_parked(part);
        let lane = conn.lanes.get_mut(&answer.group).expect("something was sent in it");
        *if slot.read { &mut lane.reads } else { &mut lane.writes } -= 1;
        if refused && !moved {
            // Also where order is not promised: the leader refuses the rest of a run whoever asks.
            lane.run += 1;
            if conn.ordered {
                lane.refused_upto = conn.last;
            }
        }
        self.settle(now, counter, answer.request);
    }

    /// Looks at a request of which a part has just changed.
    fn settle(&mut self, now: u64, counter: u64, id: u64) {
        let mut free = VecDeque::from([id]);
        free.extend(self.settle_quietly(counter, id));
        self.dispatch_some(now, counter, free);
    }

    /// The same, but lets nothing behind it go yet. Returns what waited for it, if it is finished.
    fn settle_quietly(&mut self, counter: u64, id: u64) -> Vec<u64> {
        let Some(mut conn) = self.conns.remove(&counter) else { return Vec::new() };
        let parts = &conn.slots[&id].parts;
        let (sent, parked) = (parts.iter().any(is_sent), parts.iter().any(is_parked));
        if parked {
            // At once, also while other parts are on their way: nothing may overtake this one.
            conn.pending.insert(id);
        }
        let mut freed = Vec::new();
        if !sent {
            conn.unanswered -= 1;
            if conn.slots[&id].barrier {
                conn.barrier = false;
            }
            if !parked {
                self.finish(counter, &mut conn, id);
                freed = conn.followers.remove(&id).unwrap_or_default();
            }
        }
        self.conns.insert(counter, conn);
        freed
    }

    /// A request has its answer: hands it out in its turn.
    fn finish(&mut self, counter: u64, conn: &mut Conn, id: u64) {
        let slot = conn.slots.get_mut(&id).expect("it is being finished");
        if let Some(task) = slot.task() {
            return self.tasks.push((counter, id, task));
        }
        let reply = match slot.ready.take() {
            Some(reply) => reply,
            None => combine(&mut slot.parts, slot.read, &slot.gather),
        };
        let kind = slot.kind.clone();
        let reply = match kind {
            Kind::Plain | Kind::Snapshot | Kind::Read(_) => reply,
            Kind::OpenClient | Kind::ResumeClient => self.adopt_client(conn, reply),
            Kind::Errand(errand) => {
                let at = conn.slots.remove(&id).map_or(0, |slot| slot.first_sent);
                return self.finished.push((errand, at, reply));
            }
        };
        if conn.ordered {
            conn.slots.get_mut(&id).expect("it is being finished").ready = Some(reply);
            self.hand_out(counter, conn);
        } else {
            conn.slots.remove(&id);
            self.effects.push(Effect::Reply { conn: counter, request: id, reply });
        }
    }

    fn hand_out(&mut self, counter: u64, conn: &mut Conn) {
        while let Some(first) = conn.slots.first_entry() {
            let request = *first.key();
            if first.get().ready.is_none() || conn.pending.first() == Some(&request) {
                break;
            }
            let reply = first.remove().ready.expect("it was just seen");
            self.effects.push(Effect::Reply { conn: counter, request, reply });
        }
    }

    fn adopt_client(&mut self, conn: &mut Conn, reply: Reply) -> Reply {
        let Reply::Array(values) = &reply else {
            let over =
                Reply::error(Code::Err, "this client session has ended; open a new one with SESSION OPEN");
            return if reply == Reply::Nil { over } else { reply };
        };
        let [Reply::Int(id), Reply::Int(_)] = values[..] else { return reply };
        conn.client = u64::try_from(id).ok().map(ClientId);
        Reply::Int(id)
    }

    /// A message for a subscriber.
    pub fn pushed(&mut self, to: ConnId, delivery: Delivery) {
        let counter = to.number();
        let here = self.conns.get(&counter).is_some_and(|conn| conn.session == to.session);
        if here && to.boot() == self.boot {
            self.effects.push(Effect::Push { conn: counter, delivery });
        }
    }

    /// Sends what a change has set free.
    pub fn end_turn(&mut self, now: u64) {
        if core::mem::take(&mut self.overtaken) {
            self.take_back_overtaken(now);
        }
        if core::mem::take(&mut self.wake) {
            let busy: Vec<u64> = self.busy.iter().copied().collect();
            for counter in busy {
                self.dispatch(now, counter);
            }
        }
    }
}

/// Keeps the line that has come with an answer.
fn fill(holder: &mut Holder, now: u64, part: &Part, asked: u64, grant: Grant, verdict: &Verdict) {
    let (Work::Op(op), Verdict::Reply(reply)) = (&part.work, verdict) else { return };
    let (key, value, written) = match (op, reply) {
        (Op::Get(key), Reply::Bulk(value)) => (key, Some(value.clone()), false),
        (Op::Get(key), Reply::Nil) => (key, None, false),
        (Op::Set(set) | Op::FencedSet(FencedSet { set, .. }), Reply::Status(_)) => {
            // Without a version its deadline has come with it: an absolute time in the past.
            (&set.key, (grant.version > 0).then(|| set.value.clone()), true)
        }
        (Op::SetBack(set), Reply::Status(_)) => (&set.key, Some(set.value.clone()), true),
        (Op::Incr(incr), Reply::Int(n)) => (&incr.key, Some(Bytes::from(format!("{n}"))), true),
        _ => return,
    };
    let (key, value) = (keep(key.clone()), value.map(keep));
    holder.fill(now, Fill { key, value, grant, asked, written });
}
