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
//! - A write that may have been delivered is never sent again, unless it carries a client session.
//!
//! Subtlety: a request that a former leader never proposed (`Moved`) goes back among the pending ones; it
//! is sent again only under a newer term, and pending requests are sent in order, so it cannot be overtaken.

use alloc::borrow::ToOwned;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use quorate_protocol::id::{Boot, ClientId, ClientSeq, ConnId, GroupId, NodeId, SessionId, Term};
use quorate_protocol::limits::CLIENT_WINDOW;
use quorate_protocol::op::{Home, Op, partition_of, partition_of_topic};
use quorate_protocol::peer::{Answer, Ask, Delivery, Forward, Principal, Verdict, Work};
use quorate_protocol::reply::{Code, Reply};

use crate::effect::{Effect, Effects, Request, Want};

/// How long a request waits for a leader to be known before it is refused; microseconds.
const PARK: u64 = 600_000;
/// How long a request may stay unanswered beyond its own patience before it is in doubt; microseconds.
const ANSWER: u64 = 5_000_000;
/// How long the former leader of a group may still answer once it leads no more; microseconds.
const GRACE: u64 = 1_000_000;
/// The counter of the node's own connection.
pub const OWN: u64 = 0;

/// What the node itself wants to know of the groups; see `household.rs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Errand {
    /// Open the node's session.
    OpenSession,
    /// Renew this session.
    Renew(SessionId),
    /// Tell a group that a connection is gone.
    Close(GroupId, ConnId),
    /// Bring outbox items to a partition.
    Parcel(GroupId),
    /// Tell the system group that they have arrived.
    Receipt(GroupId),
    /// Look whether a client session is alive.
    See(ClientId),
    /// Make a client session known to a partition.
    Introduce(ClientId, GroupId),
}

/// Where a group is led, as far as this node knows.
#[derive(Debug, Clone, Copy, Default)]
struct Route {
    leader: Option<NodeId>,
    term: Term,
    /// When it last changed.
    since: u64,
    /// The newest term whose leader said that it leads no more.
    moved: Term,
}

#[derive(Debug)]
enum PartState {
    Parked,
    Sent { to: NodeId, term: Term, at: u64 },
    Done(Reply),
}

/// A request's share for one group.
#[derive(Debug)]
struct Part {
    group: GroupId,
    work: Work,
    sending: u32,
    /// An earlier sending may have been delivered, and no answer came.
    maybe: bool,
    state: PartState,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Plain,
    OpenClient,
    ResumeClient,
    Errand(Errand),
}

#[derive(Debug)]
struct Slot {
    kind: Kind,
    /// Empty: the answer is `ready`.
    parts: Vec<Part>,
    ready: Option<Reply>,
    client: Option<ClientSeq>,
    after: Option<u64>,
    read: bool,
    barrier: bool,
    needs_session: bool,
    /// Microseconds that it may rightly wait.
    patience: u64,
    /// When it was first found that it cannot be sent; 0: not yet.
    parked_since: u64,
    /// When it was first sent.
    first_sent: u64,
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
    /// The client session that was opened or resumed here.
    client: Option<ClientId>,
}

/// What became of an attempt to send.
enum Sent {
    Gone,
    Answered,
    Waits,
}

/// See the top of the file.
pub struct Gateway {
    me: NodeId,
    boot: Boot,
    partitions: u16,
    conns: BTreeMap<u64, Conn>,
    routes: Vec<Route>,
    /// Nodes to which a link stands.
    links: BTreeSet<NodeId>,
    /// Connections with requests that are not answered.
    busy: BTreeSet<u64>,
    /// Something has changed that lets pending requests go.
    wake: bool,
    next_own: u64,
    session: SessionId,
    introduced: BTreeSet<(ClientId, GroupId)>,
    unintroduced: BTreeSet<(ClientId, GroupId)>,
    finished: Vec<(Errand, u64, Reply)>,
    forwards: Vec<(NodeId, Forward)>,
    effects: Effects,
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
            routes: alloc::vec![Route::default(); usize::from(partitions) + 1],
            links: [me].into(),
            busy: BTreeSet::new(),
            wake: false,
            next_own: 1,
            session: SessionId(0),
            introduced: BTreeSet::new(),
            unintroduced: BTreeSet::new(),
            finished: Vec::new(),
            forwards: Vec::new(),
            effects: Effects::new(),
        };
        this.connected(OWN, false);
        this
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
    }

    /// The leader of a group, as far as this node knows.
    #[must_use]
    pub fn leader(&self, group: GroupId) -> Option<NodeId> {
        self.routes[group.slot()].leader
    }

    /// A client has come.
    pub fn connected(&mut self, counter: u64, ordered: bool) {
        let conn = Conn { ordered, ..Conn::default() };
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
        let told: BTreeSet<GroupId> = conn.owns.iter().copied().chain(refused).collect();
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
            conn.slots.insert(id, new_slot(request, self.partitions));
            fresh.push_back(id);
        }
        self.busy.insert(counter);
        self.dispatch_some(now, counter, fresh);
    }

    /// The node itself asks a group.
    pub fn run_errand(&mut self, now: u64, group: GroupId, work: Work, errand: Errand) {
        let id = self.next_own;
        self.next_own += 1;
        let read = matches!(work, Work::SeeClient(_));
        let slot =
            Slot { read, kind: Kind::Errand(errand), parts: [part(group, work)].into(), ..empty_slot() };
        let conn = self.conns.get_mut(&OWN).expect("the node's own connection is always there");
        conn.last = id;
        conn.pending.insert(id);
        conn.slots.insert(id, slot);
        self.busy.insert(OWN);
        self.dispatch_some(now, OWN, [id].into());
    }

    /// Sends what can be sent of these requests and of those that wait for them; on an ordered connection, of
    /// all that are pending.
    fn dispatch_some(&mut self, now: u64, counter: u64, mut ids: VecDeque<u64>) {
        if self.conns.get(&counter).is_none_or(|conn| conn.ordered) {
            return self.dispatch(now, counter);
        }
        let Some(mut conn) = self.conns.remove(&counter) else { return };
        while let Some(id) = ids.pop_front() {
            if !conn.pending.contains(&id) {
                continue;
            }
            match self.try_send(now, counter, &mut conn, id) {
                Sent::Gone => {
                    conn.pending.remove(&id);
                }
                Sent::Answered => {
                    conn.pending.remove(&id);
                    self.finish(counter, &mut conn, id);
                    ids.extend(conn.followers.remove(&id).unwrap_or_default());
                }
                Sent::Waits => {}
            }
        }
        self.conns.insert(counter, conn);
    }

    /// Sends what can be sent of a connection's pending requests.
    fn dispatch(&mut self, now: u64, counter: u64) {
        let Some(mut conn) = self.conns.remove(&counter) else { return };
        let mut next = conn.pending.first().copied();
        while let Some(id) = next {
            match self.try_send(now, counter, &mut conn, id) {
                Sent::Gone => {
                    conn.pending.remove(&id);
                }
                Sent::Answered => {
                    conn.pending.remove(&id);
                    self.finish(counter, &mut conn, id);
                    // Those that wait for it come later in this very walk.
                    conn.followers.remove(&id);
                }
                Sent::Waits if conn.ordered => break,
                Sent::Waits => {}
            }
            next = conn.pending.range(id + 1..).next().copied();
        }
        self.conns.insert(counter, conn);
    }

    fn try_send(&mut self, now: u64, counter: u64, conn: &mut Conn, id: u64) -> Sent {
        let slot = &conn.slots[&id];
        if slot.after.is_some_and(|after| conn.slots.contains_key(&after)) {
            return Sent::Waits;
        }
        if slot.ready.is_some() || slot.parts.iter().all(|part| matches!(part.state, PartState::Done(_))) {
            return Sent::Answered;
        }
        if !slot.parts.iter().any(is_parked) {
            // What was parked of it is refused; the rest is on its way.
            return Sent::Gone;
        }
        if conn.ordered && (conn.barrier || (slot.barrier && conn.unanswered > 0)) {
            return Sent::Waits;
        }
        if let Some(reply) = self.refusal(conn, id) {
            conn.slots.get_mut(&id).expect("it is pending").ready = Some(reply);
            return Sent::Answered;
        }
        if !self.may_go(conn, &conn.slots[&id]) {
            let slot = conn.slots.get_mut(&id).expect("it is pending");
            if slot.parked_since == 0 {
                slot.parked_since = now;
            }
            return Sent::Waits;
        }
        self.send(now, counter, conn, id);
        Sent::Gone
    }

    /// Whether the request stands behind one that was refused, or outside its session's window.
    fn refusal(&self, conn: &Conn, id: u64) -> Option<Reply> {
        let slot = &conn.slots[&id];
        if let Some(client) = slot.client {
            if conn.client != Some(client.client) {
                let text = "this client session is not open on this connection; say SESSION RESUME with its id first";
                return Some(Reply::error(Code::InDoubt, text));
            }
            if client.seq.saturating_sub(client.lowest) >= CLIENT_WINDOW {
                let text =
                    format!("{CLIENT_WINDOW} requests of this client session are unanswered; wait for some");
                return Some(Reply::error(Code::Busy, text));
            }
        }
        let behind = |part: &Part| conn.lanes.get(&part.group).is_some_and(|lane| id <= lane.refused_upto);
        if conn.ordered && slot.parts.iter().all(is_parked) && slot.parts.iter().any(behind) {
            let text = "an earlier command of this connection to the same partition was refused; send them again in order";
            return Some(Reply::error(Code::TryAgain, text));
        }
        None
    }

    /// Whether every part of the request that is parked can be sent now.
    fn may_go(&mut self, conn: &Conn, slot: &Slot) -> bool {
        if slot.needs_session && self.session.0 == 0 {
            return false;
        }
        for part in slot.parts.iter().filter(|part| is_parked(part)) {
            let route = &self.routes[part.group.slot()];
            if !route.leader.is_some_and(|leader| self.links.contains(&leader)) {
                return false;
            }
            if let (Some(client), false) = (slot.client, slot.read) {
                let pair = (client.client, part.group);
                if part.group != GroupId::SYSTEM && !self.introduced.contains(&pair) {
                    self.unintroduced.insert(pair);
                    return false;
                }
            }
            let Some(lane) = conn.lanes.get(&part.group).filter(|_| conn.ordered) else { continue };
            let newer = lane.reads + lane.writes > 0 && lane.term != route.term;
            if newer || (!slot.read && lane.reads > 0) {
                return false;
            }
        }
        true
    }

    fn send(&mut self, now: u64, counter: u64, conn: &mut Conn, id: u64) {
        let Conn { slots, lanes, owns, .. } = conn;
        let slot = slots.get_mut(&id).expect("it is pending");
        slot.parked_since = 0;
        if slot.first_sent == 0 {
            slot.first_sent = now;
        }
        conn.unanswered += usize::from(!slot.parts.iter().any(is_sent));
        conn.barrier |= slot.barrier && conn.ordered;
        if slot.needs_session {
            conn.session = self.session;
        }
        let from = ConnId::new(self.me, conn.session, self.boot, counter);
        let principal = if counter == OWN { Principal::Node(self.me) } else { Principal::Anonymous };
        for part in slot.parts.iter_mut().filter(|part| is_parked(part)) {
            let route = self.routes[part.group.slot()];
            let to = route.leader.expect("may_go has seen it");
            let lane = lanes.entry(part.group).or_default();
            lane.term = route.term;
            let behind = conn.ordered && slot.read && (lane.writes > 0 || (lane.reads > 0 && lane.behind));
            lane.behind = behind;
            *if slot.read { &mut lane.reads } else { &mut lane.writes } += 1;
            if keeps_something(&part.work) {
                owns.insert(part.group);
            }
            part.sending += 1;
            part.state = PartState::Sent { to, term: route.term, at: now };
            let ask = Ask {
                request: id,
                sending: part.sending,
                client: slot.client.filter(|_| !slot.read),
                principal: principal.clone(),
                behind,
                work: part.work.clone(),
            };
            push_ask(&mut self.forwards, to, part.group, route.term, from, lane.run, ask);
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
        let PartState::Sent { term, .. } = part.state else { return };
        let refused = match &answer.verdict {
            Verdict::Moved => true,
            Verdict::Reply(reply) => reply.never_proposed(),
        };
        if refused && answer.sending != part.sending {
            return;
        }
        part.state = match answer.verdict {
            Verdict::Reply(_) if refused && part.maybe && !slot.read => PartState::Done(in_doubt()),
            Verdict::Reply(reply) => PartState::Done(reply),
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
        let reply = match slot.ready.take() {
            Some(reply) => reply,
            None => combine(&mut slot.parts, slot.read),
        };
        let kind = slot.kind.clone();
        let reply = match kind {
            Kind::Plain => reply,
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

    /// A link to a node stands.
    pub fn link_up(&mut self, now: u64, peer: NodeId) {
        self.link_down(now, peer);
        self.links.insert(peer);
        self.wake = true;
    }

    /// The link to a node is cut: what was sent on it is in doubt, or is sent again.
    pub fn link_down(&mut self, now: u64, peer: NodeId) {
        self.links.remove(&peer);
        self.give_up(now, |_, _, to, _, _| to == peer);
    }

    /// Looks after requests that have waited long enough.
    pub fn tick(&mut self, now: u64) {
        let routes = self.routes.clone();
        self.give_up(now, |slot, part, _, term, at| {
            let route = &routes[part.group.slot()];
            let elsewhere = route.leader.is_none() || route.term > term;
            (elsewhere && now > route.since.max(at) + GRACE) || now > at + slot.patience + ANSWER
        });
        let busy: Vec<u64> = self.busy.iter().copied().collect();
        for counter in busy {
            self.refuse_parked(now, counter);
            let Some(conn) = self.conns.get_mut(&counter).filter(|conn| conn.slots.is_empty()) else {
                continue;
            };
            // An empty map keeps room for several slots; an idle connection must not.
            conn.slots = BTreeMap::new();
            conn.pending = BTreeSet::new();
            self.busy.remove(&counter);
        }
    }

    /// Sends what a change has set free.
    pub fn end_turn(&mut self, now: u64) {
        if core::mem::take(&mut self.wake) {
            let busy: Vec<u64> = self.busy.iter().copied().collect();
            for counter in busy {
                self.dispatch(now, counter);
            }
        }
    }

    /// Ends the waiting of all sent parts that `over` names.
    fn give_up(&mut self, now: u64, over: impl Fn(&Slot, &Part, NodeId, Term, u64) -> bool) {
        let busy: Vec<u64> = self.busy.iter().copied().collect();
        for counter in busy {
            let Some(conn) = self.conns.get_mut(&counter) else { continue };
            let mut changed = Vec::new();
            for (&id, slot) in &mut conn.slots {
                let again = slot.client.is_some() || slot.read || matches!(slot.kind, Kind::Errand(_));
                let which: Vec<usize> = (0..slot.parts.len())
                    .filter(|&at| match slot.parts[at].state {
                        PartState::Sent { to, term, at: sent } => over(slot, &slot.parts[at], to, term, sent),
                        _ => false,
                    })
                    .collect();
                for &at in &which {
                    let part = &mut slot.parts[at];
                    part.maybe = true;
                    part.state = if again { PartState::Parked } else { PartState::Done(in_doubt()) };
                    let lane = conn.lanes.get_mut(&part.group).expect("something was sent in it");
                    *if slot.read { &mut lane.reads } else { &mut lane.writes } -= 1;
                }
                if !which.is_empty() {
                    changed.push(id);
                }
            }
            // All of them first: what is to be sent again must not be overtaken by what waited behind it.
            for &id in &changed {
                self.settle_quietly(counter, id);
            }
            if !changed.is_empty() {
                self.dispatch(now, counter);
            }
        }
    }

    /// Refuses pending requests that could not be sent for too long.
    fn refuse_parked(&mut self, now: u64, counter: u64) {
        if counter == OWN {
            return;
        }
        let Some(conn) = self.conns.get_mut(&counter) else { return };
        let late = |id: &&u64| {
            let since = conn.slots[*id].parked_since;
            since != 0 && now > since + PARK
        };
        let late: Vec<u64> = conn.pending.iter().filter(late).copied().collect();
        for id in &late {
            let down = Reply::error(Code::ClusterDown, self.down_text(*id, counter));
            let conn = self.conns.get_mut(&counter).expect("it was just seen");
            let slot = conn.slots.get_mut(id).expect("it is pending");
            for part in slot.parts.iter_mut().filter(|part| is_parked(part)) {
                let maybe = part.maybe && !slot.read;
                part.state = PartState::Done(if maybe { in_doubt() } else { down.clone() });
                if conn.ordered {
                    conn.lanes.entry(part.group).or_default().refused_upto = conn.last;
                }
            }
        }
        if !late.is_empty() {
            self.dispatch(now, counter);
        }
    }

    fn down_text(&self, id: u64, counter: u64) -> String {
        let group =
            self.conns[&counter].slots[&id].parts.iter().find(|part| is_parked(part)).map(|part| part.group);
        match group {
            Some(GroupId(0)) => {
                "the system group has no leader with a majority; try again, see STATUS".to_owned()
            }
            Some(GroupId(n)) => format!("partition {n} has no leader with a majority; try again, see STATUS"),
            None => "no leader with a majority; try again, see STATUS".to_owned(),
        }
    }
}

fn in_doubt() -> Reply {
    let text = "no answer came from the leader; the command may or may not take effect: read before you send it again";
    Reply::error(Code::InDoubt, text)
}

fn is_parked(part: &Part) -> bool {
    matches!(part.state, PartState::Parked)
}

fn is_sent(part: &Part) -> bool {
    matches!(part.state, PartState::Sent { .. })
}

fn part(group: GroupId, work: Work) -> Part {
    Part { group, work, sending: 0, maybe: false, state: PartState::Parked }
}

fn empty_slot() -> Slot {
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

/// What a request needs before it can be answered.
fn new_slot(request: Request, partitions: u16) -> Slot {
    let Request { want, client, after, .. } = request;
    let base = Slot { client, after, ..empty_slot() };
    match want {
        Want::Answered(reply) => Slot { ready: Some(reply), client: None, ..base },
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
fn needs_session(op: &Op) -> bool {
    match op {
        Op::Fetch(_) | Op::Sub(_) | Op::Unsub(_) | Op::Ack(_) | Op::Nack(_) => true,
        op => op.home() == Home::System && !op.is_read(),
    }
}

/// Whether a group may keep something in the connection's name after the command.
fn keeps_something(work: &Work) -> bool {
    matches!(work, Work::Op(Op::Lock(_) | Op::Fetch(_) | Op::Sub(_)))
}

/// A command's shares for the groups that decide it.
fn split(op: Op, partitions: u16) -> Vec<Part> {
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
fn combine(parts: &mut [Part], read: bool) -> Reply {
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

/// Adds an ask to the last forward if it is for the same leader and connection.
fn push_ask(
    forwards: &mut Vec<(NodeId, Forward)>,
    to: NodeId,
    group: GroupId,
    term: Term,
    conn: ConnId,
    run: u64,
    ask: Ask,
) {
    if let Some((last_to, last)) = forwards.last_mut()
        && (*last_to, last.group, last.term, last.conn, last.run) == (to, group, term, conn, run)
    {
        last.asks.push(ask);
        return;
    }
    forwards.push((to, Forward { group, term, conn, run, asks: [ask].into() }));
}
