//! What may go to a leader now, and in which order.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::vec::Vec;
use quorate_protocol::id::{ConnId, GroupId, NodeId, Term};
use quorate_protocol::limits::CLIENT_WINDOW;
use quorate_protocol::op::Op;
use quorate_protocol::peer::{Ask, Forward, Principal, Work};
use quorate_protocol::reply::{Code, Reply};

use super::slot::{Part, PartState, Slot, is_parked, is_sent, keeps_something};
use super::{Conn, Gateway, Lane, OWN};

/// What became of an attempt to send.
enum Sent {
    Gone,
    Answered,
    Waits,
}

impl Gateway {
    /// Sends what can be sent of these requests and of those that wait for them; on an ordered connection, of
    /// all that are pending.
    pub(super) fn dispatch_some(&mut self, now: u64, counter: u64, mut ids: VecDeque<u64>) {
        if self.conns.get(&counter).is_none_or(|conn| conn.ordered) {
            return self.dispatch(now, counter);
        }
        let Some(mut conn) = self.conns.remove(&counter) else { return };
        while let Some(id) = ids.pop_front() {
            if !conn.pending.contains(&id) {
                continue;
            }
            ids.extend(self.advance(now, counter, &mut conn, id).unwrap_or_default());
        }
        self.conns.insert(counter, conn);
    }

    /// Sends what can be sent of a connection's pending requests.
    pub(super) fn dispatch(&mut self, now: u64, counter: u64) {
        let Some(mut conn) = self.conns.remove(&counter) else { return };
        let mut next = conn.pending.first().copied();
        while let Some(id) = next {
            // Those that waited for its answer come later in this very walk.
            if self.advance(now, counter, &mut conn, id).is_none() && conn.ordered {
                break;
            }
            next = conn.pending.range(id + 1..).next().copied();
        }
        self.conns.insert(counter, conn);
    }

    /// Sends or answers a pending request and returns those that waited for its answer; `None` when it has to
    /// wait itself.
    fn advance(&mut self, now: u64, counter: u64, conn: &mut Conn, id: u64) -> Option<Vec<u64>> {
        let sent = self.try_send(now, counter, conn, id);
        if matches!(sent, Sent::Waits) {
            return None;
        }
        conn.pending.remove(&id);
        if matches!(sent, Sent::Gone) {
            return Some(Vec::new());
        }
        self.finish(counter, conn, id);
        Some(conn.followers.remove(&id).unwrap_or_default())
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
        if let Some(reply) = self.fence_refusal(now, &conn.slots[&id]) {
            conn.slots.get_mut(&id).expect("it is pending").ready = Some(reply);
            return Sent::Answered;
        }
        if let Some(reply) = self.done_here(now, counter, conn, &conn.slots[&id]) {
            conn.slots.get_mut(&id).expect("it is pending").ready = Some(reply);
            return Sent::Answered;
        }
        if !self.may_go(now, conn, &conn.slots[&id]) {
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

    /// What this node answers by itself because it owns the line: writes that ask for that, and reads of what it has
    /// written so. A client session's request takes effect once, which only its group can see to.
    fn done_here(&mut self, now: u64, counter: u64, conn: &Conn, slot: &Slot) -> Option<Reply> {
        let [part] = &slot.parts[..] else { return None };
        let Work::Op(op @ (Op::SetBack(_) | Op::Get(_))) = &part.work else { return None };
        let idle = |lane: &Lane| lane.reads + lane.writes == 0;
        let in_order = !conn.ordered || conn.lanes.get(&part.group).is_none_or(idle);
        if !in_order || part.maybe || slot.client.is_some() {
            return None;
        }
        match op {
            Op::SetBack(set) => {
                self.holder.absorb(now, counter, part.group, &set.key, &set.value).then_some(Reply::OK)
            }
            Op::Get(key) => self.holder.absorbed(now, part.group, key).map(Reply::Bulk),
            _ => None,
        }
    }

    /// Whether every part of the request that is parked can be sent now.
    fn may_go(&mut self, now: u64, conn: &Conn, slot: &Slot) -> bool {
        if slot.needs_session && self.session.0 == 0 {
            return false;
        }
        for part in slot.parts.iter().filter(|part| is_parked(part)) {
            let route = self.routes[part.group.slot()];
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
            if !self.has_watches(now, slot, part) {
                return false;
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
        let Conn { slots, lanes, owns, fills, .. } = conn;
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
            if matches!(part.work, Work::Op(Op::FillV(_))) {
                fills.insert(part.group);
            }
            part.sending += 1;
            part.waits = false;
            part.deaf = !(self.replicas.contains(&part.group) && route.tells);
            part.state = PartState::Sent { to, term: route.term, at: now };
            if matches!(part.work, Work::Op(Op::SetBack(_))) {
                // Without a lease nothing can be owned.
                self.holder.epoch(now, part.group);
            }
            let line = match part.work.line() {
                Some(_) => self.holder.wish(now, part.group),
                None if part.work.writes().is_empty() => 0,
                None => {
                    self.holder.writing(counter, &part.work.writes());
                    self.holder.give_up(part.group, &part.work.writes())
                }
            };
            self.add_watches(part);
            let ask = Ask {
                line,
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
