//! The node's own business with the groups: its session, the client sessions connected to it, connections
//! that are gone, and the outboxes of groups that it leads.
//!
//! Invariants:
//! - The session's lease is counted from the first sending of the last answered renewal and taken to end 1 %
//!   early, so the node gives it up before the system group ends it.
//! - A client session is introduced to a partition only with a number of ends that was read from the
//!   system group after the session was seen alive (see `peer::Introduction`).
//! - For a source and a target, one parcel or receipt is under way from here at a time. (A former leader of the source
//!   may have another one under way: `outbox.rs` bears that.)

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use quorate_protocol::id::{Boot, ClientId, ConnId, GroupId, Identity, NodeId, SessionId};
use quorate_protocol::limits::{PARCEL_ITEMS_MAX, SESSION_LEASE};
use quorate_protocol::op::Watch;
use quorate_protocol::peer::{FEATURE_LEVEL, Introduction, OpenSession, Receipted, Renewal, Work};
use quorate_protocol::reply::{Code, Reply};

use crate::effect::{Effect, Effects, Level};
use crate::gateway::{Errand, Fenced, Gateway};
use crate::outbox::Outbox;

/// How often the session is renewed; microseconds.
const RENEW_EVERY: u64 = 2_000_000;
/// How long the node counts on its session; microseconds. 1 % short of the lease, for drifting clocks.
const COUNTED_LEASE: u64 = SESSION_LEASE * 1000 / 100 * 99;
/// How long to wait before an errand that was refused is run again; microseconds.
const AGAIN: u64 = 200_000;
/// Watches that are asked for at a time.
const WATCHING_MAX: usize = 1024;
/// How long to wait before a target that had no room for an item is asked again; microseconds. Each time costs it an entry.
const FULL_AGAIN: u64 = 5_000_000;

/// Who the node is.
#[derive(Debug, Clone)]
pub struct Me {
    /// Its id.
    pub node: NodeId,
    /// Its data directory.
    pub identity: Identity,
    /// Its start.
    pub boot: Boot,
    /// Where its clients connect.
    pub client_address: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Session {
    None { ask_at: u64 },
    Asked,
    Live { id: SessionId, until: u64, renew_at: u64, renewing: bool },
}

/// How it stands between a source and a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Delivery {
    /// A parcel, or the receipt for it, is under way.
    UnderWay,
    /// It did not arrive, or the target had no room for the item behind `upto`: then that one is tried alone.
    Waits { until: u64, full: bool, upto: u64 },
    /// It has all up to here; the source keeps them for a while, and what follows goes on meanwhile.
    Kept { until: u64, upto: u64 },
}

/// See the top of the file.
pub struct Household {
    me: Me,
    session: Session,
    /// Client session → the number of ends when it was last seen alive.
    ends: BTreeMap<ClientId, u64>,
    seeing: BTreeSet<ClientId>,
    introducing: BTreeSet<(ClientId, GroupId)>,
    /// No introduction is tried before this: one was refused.
    introduce_at: u64,
    watching: BTreeSet<Fenced>,
    /// No watch is asked for before this: one was not to be had.
    watch_at: u64,
    /// Source → until when it is not told what has arrived.
    kept: BTreeMap<GroupId, u64>,
    /// By source and target.
    deliveries: BTreeMap<(GroupId, GroupId), Delivery>,
    /// Closed connections of which a group refused to hear, to be told again.
    untold: Vec<(GroupId, ConnId)>,
    untold_at: u64,
    renouncing: bool,
    /// The life that began when the node's former replicas were renounced.
    renounced: Option<u32>,
    /// Why no session was to be had, as it was said last.
    said: String,
}

impl Household {
    /// A node that has just started.
    #[must_use]
    pub fn new(me: Me) -> Self {
        Self {
            me,
            session: Session::None { ask_at: 0 },
            ends: BTreeMap::new(),
            seeing: BTreeSet::new(),
            introducing: BTreeSet::new(),
            introduce_at: 0,
            watching: BTreeSet::new(),
            watch_at: 0,
            kept: BTreeMap::new(),
            deliveries: BTreeMap::new(),
            untold: Vec::new(),
            untold_at: 0,
            renouncing: false,
            renounced: None,
            said: String::new(),
        }
    }

    /// Whether the node has a session.
    #[must_use]
    pub fn has_session(&self) -> bool {
        matches!(self.session, Session::Live { .. })
    }

    /// Lets time pass: opens, renews or gives up the session.
    pub fn tick(&mut self, now: u64, gateway: &mut Gateway, fx: &mut Effects) {
        if now >= self.untold_at {
            let untold = core::mem::take(&mut self.untold);
            self.close(now, untold, gateway);
        }
        match self.session {
            Session::None { ask_at } if now >= ask_at => {
                self.session = Session::Asked;
                let Me { node, identity, boot, client_address } = self.me.clone();
                let open = OpenSession { node, identity, boot, level: FEATURE_LEVEL, client_address };
                gateway.run_errand(now, GroupId::SYSTEM, Work::OpenSession(open), Errand::OpenSession);
            }
            Session::Live { until, .. } if now >= until => {
                let line = "this node's session ran out unrenewed; connections that hold locks or messages are closed";
                fx.push(Effect::Log(Level::Warn, line.into()));
                self.lose_session(now, gateway);
            }
            Session::Live { id, until, renew_at, renewing: false } if now >= renew_at => {
                self.session = Session::Live { id, until, renew_at, renewing: true };
                let clients: BTreeSet<ClientId> = gateway.clients().collect();
                self.ends.retain(|client, _| clients.contains(client));
                gateway.keep_clients(&clients);
                let renewal =
                    Renewal { node: self.me.node, session: id, clients: clients.into_iter().collect() };
                gateway.run_errand(now, GroupId::SYSTEM, Work::Renew(renewal), Errand::Renew(id));
            }
            _ => {}
        }
    }

    fn lose_session(&mut self, now: u64, gateway: &mut Gateway) {
        self.session = Session::None { ask_at: now };
        // Their session's end is told by the system group.
        self.untold.clear();
        gateway.set_session(SessionId(0));
    }

    /// Tells groups that a connection is gone.
    pub fn close(&mut self, now: u64, gone: Vec<(GroupId, ConnId)>, gateway: &mut Gateway) {
        for (group, conn) in gone {
            gateway.run_errand(now, group, Work::CloseConn(conn), Errand::Close(group, conn));
        }
    }

    /// Renounces all replicas that the node had and knows nothing of; the life that begins, once it is decided.
    pub fn renounce(&mut self, now: u64, gateway: &mut Gateway) -> Option<u32> {
        if self.renounced.is_none() && !core::mem::replace(&mut self.renouncing, true) {
            gateway.run_errand(now, GroupId::SYSTEM, Work::Renounce(self.me.node), Errand::Renounce);
        }
        self.renounced.take()
    }

    /// Introduces client sessions to groups where requests wait for it.
    pub fn introduce(&mut self, now: u64, gateway: &mut Gateway) {
        if now < self.introduce_at {
            return;
        }
        for (client, group) in gateway.take_unintroduced() {
            if let Some(&ends) = self.ends.get(&client) {
                if self.introducing.insert((client, group)) {
                    let work = Work::Introduce(Introduction { client, ends });
                    gateway.run_errand(now, group, work, Errand::Introduce(client, group));
                }
            } else if self.seeing.insert(client) {
                gateway.run_errand(now, GroupId::SYSTEM, Work::SeeClient(client), Errand::See(client));
            }
        }
    }

    /// Asks for watches that fenced writes wait for.
    pub fn watch(&mut self, now: u64, gateway: &mut Gateway) {
        if now < self.watch_at {
            return;
        }
        for fenced in gateway.take_unwatched() {
            // Whoever is left out asks again once some are answered.
            if self.watching.len() < WATCHING_MAX && self.watching.insert(fenced.clone()) {
                gateway.run_errand(now, GroupId::SYSTEM, Work::Watch(fenced.clone()), Errand::Watch(fenced));
            }
        }
    }

    /// Brings a group's outbox items to their targets; called on the group's leader. `keep`: until when it keeps letters
    /// that have arrived.
    pub fn deliver(&mut self, now: u64, outbox: &Outbox, keep: u64, gateway: &mut Gateway) {
        let source = outbox.source();
        self.kept.insert(source, keep);
        for target in outbox.targets() {
            let (behind, most) = match self.deliveries.get(&(source, target)) {
                Some(Delivery::UnderWay) => continue,
                Some(Delivery::Waits { until, .. }) if now < *until => continue,
                Some(Delivery::Waits { full: true, upto, .. }) => (*upto, 1),
                Some(Delivery::Waits { full: false, .. }) | None => (0, PARCEL_ITEMS_MAX),
                Some(Delivery::Kept { until, upto }) if now < *until => (*upto, PARCEL_ITEMS_MAX),
                Some(&Delivery::Kept { upto, .. }) => {
                    self.deliveries.insert((source, target), Delivery::UnderWay);
                    let work = Work::Taken(Receipted { target, upto });
                    gateway.run_errand(now, source, work, Errand::Receipt(source, target));
                    continue;
                }
            };
            let parcel = outbox.parcel(target, behind, most);
            if parcel.items.is_empty() {
                continue;
            }
            let errand = Errand::Parcel(source, target, parcel.first);
            self.deliveries.insert((source, target), Delivery::UnderWay);
            gateway.run_errand(now, target, Work::Take(parcel), errand);
        }
    }

    /// A target has answered a parcel with the last number that it has; none if it did not.
    fn brought(
        &mut self,
        now: u64,
        (source, target): (GroupId, GroupId),
        first: u64,
        number: Option<u64>,
        gateway: &mut Gateway,
    ) {
        let keep = self.kept.get(&source).copied().unwrap_or(0);
        let waits = match number {
            // What the system group tells is in no backup.
            Some(upto) if upto >= first && now < keep && source != GroupId::SYSTEM => {
                Delivery::Kept { until: keep, upto }
            }
            Some(upto) if upto >= first => {
                let work = Work::Taken(Receipted { target, upto });
                return gateway.run_errand(now, source, work, Errand::Receipt(source, target));
            }
            Some(upto) => Delivery::Waits { until: now + FULL_AGAIN, full: true, upto },
            None => Delivery::Waits { until: now + AGAIN, full: false, upto: 0 },
        };
        self.deliveries.insert((source, target), waits);
    }

    /// Takes the answer to an errand.
    pub fn finished(
        &mut self,
        now: u64,
        errand: Errand,
        sent: u64,
        reply: &Reply,
        gateway: &mut Gateway,
        fx: &mut Effects,
    ) {
        let number = if let Reply::Int(n) = reply { u64::try_from(*n).ok() } else { None };
        match errand {
            Errand::OpenSession => self.session_opened(now, sent, number, reply, gateway, fx),
            Errand::Renew(session) => self.session_renewed(now, session, sent, number, gateway),
            // Whoever leads the system group then looks again.
            Errand::Forget(_) => {}
            Errand::Flush(key, id) => gateway.holder.flushed(now, &key, id, reply),
            Errand::Renounce => {
                self.renouncing = false;
                self.renounced = number.and_then(|life| u32::try_from(life).ok());
            }
            Errand::Close(group, conn) => {
                if reply.failure().is_some() {
                    self.untold.push((group, conn));
                    self.untold_at = now + AGAIN;
                }
            }
            Errand::Parcel(source, target, first) => {
                self.brought(now, (source, target), first, number, gateway);
            }
            Errand::Receipt(source, target) => {
                if reply.failure().is_some() {
                    let waits = Delivery::Waits { until: now + AGAIN, full: false, upto: 0 };
                    self.deliveries.insert((source, target), waits);
                } else {
                    self.deliveries.remove(&(source, target));
                }
            }
            Errand::Watch(fenced) => self.watched(now, sent, fenced, reply, gateway),
            Errand::See(client) => {
                self.seeing.remove(&client);
                match reply {
                    Reply::Array(values) => {
                        if let [_, Reply::Int(ends)] = values[..] {
                            self.ends.insert(client, u64::try_from(ends).unwrap_or(0));
                        }
                        gateway.wake();
                    }
                    Reply::Nil => gateway.forget_client(client),
                    _ => {
                        // Not at once: a group of this node would refuse within the same turn, for ever.
                        self.introduce_at = now + AGAIN;
                        gateway.wake();
                    }
                }
            }
            Errand::Introduce(client, group) => {
                self.introducing.remove(&(client, group));
                match number {
                    Some(1) => gateway.set_introduced(client, group),
                    Some(_) => {
                        // Sessions have ended since this one was seen alive: look again.
                        self.ends.remove(&client);
                        gateway.wake();
                    }
                    None => {
                        self.introduce_at = now + AGAIN;
                        gateway.wake();
                    }
                }
            }
        }
    }

    fn watched(&mut self, now: u64, sent: u64, fenced: Fenced, reply: &Reply, gateway: &mut Gateway) {
        self.watching.remove(&fenced);
        let numbers = if let Reply::Array(values) = reply { &values[..] } else { &[] };
        if let [Reply::Int(number), Reply::Int(floor), Reply::Int(lease)] = numbers {
            let watch = Watch { number: number.cast_unsigned(), floor: floor.cast_unsigned() };
            gateway.set_watch(sent, fenced, watch, lease.cast_unsigned());
        } else if reply.failure().is_some_and(|failure| failure.code == Code::Err) {
            gateway.refuse_watch(now, fenced, reply.clone());
        } else {
            self.watch_at = now + AGAIN;
            gateway.wake();
        }
    }

    fn session_opened(
        &mut self,
        now: u64,
        sent: u64,
        number: Option<u64>,
        reply: &Reply,
        gateway: &mut Gateway,
        fx: &mut Effects,
    ) {
        let until = sent + COUNTED_LEASE;
        if let Some(id) = number.map(SessionId).filter(|_| now < until) {
            self.session = Session::Live { id, until, renew_at: now + RENEW_EVERY, renewing: false };
            gateway.set_session(id);
            fx.push(Effect::Log(Level::Info, format!("session {} is open", id.0)));
            self.said.clear();
        } else {
            let said = reply.failure().map(|failure| format!("this node got no session: {failure}"));
            // It asks again several times a second, until the reason is gone.
            if let Some(said) = said.filter(|said| *said != self.said) {
                fx.push(Effect::Log(Level::Warn, said.clone()));
                self.said = said;
            }
            self.session = Session::None { ask_at: now + AGAIN };
        }
    }

    fn session_renewed(
        &mut self,
        now: u64,
        session: SessionId,
        sent: u64,
        number: Option<u64>,
        gateway: &mut Gateway,
    ) {
        let Session::Live { id, until, .. } = self.session else { return };
        if id != session {
            return;
        }
        match number {
            Some(0) => self.lose_session(now, gateway),
            Some(_) => {
                let until = until.max(sent + COUNTED_LEASE);
                self.session = Session::Live { id, until, renew_at: sent + RENEW_EVERY, renewing: false };
            }
            None => self.session = Session::Live { id, until, renew_at: now + AGAIN, renewing: false },
        }
    }
}
