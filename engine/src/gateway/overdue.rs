//! What is done about requests that have waited long enough, and about links that are cut.

use alloc::borrow::ToOwned;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use quorate_protocol::id::{GroupId, NodeId, Term};
use quorate_protocol::reply::{Code, Reply};

use super::slot::{Kind, Part, PartState, Slot, in_doubt, is_parked};
use super::{Gateway, OWN};

/// How long a request waits for a leader to be known before it is refused; microseconds.
const PARK: u64 = 600_000;
/// How long a request may stay unanswered beyond its own patience before it is in doubt; microseconds.
const ANSWER: u64 = 5_000_000;
/// How long the former leader of a group may still answer once it leads no more; microseconds.
const GRACE: u64 = 400_000;

/// What is known of a request whose waiting ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It may take effect, or have taken it.
    Unknown,
    /// It has none, and never will.
    Void,
}

impl Gateway {
    /// A link to a node stands.
    pub fn link_up(&mut self, now: u64, peer: NodeId) {
        self.link_down(now, peer);
        self.links.insert(peer);
        self.wake = true;
    }

    /// The link to a node is cut: what was sent on it is in doubt, or is sent again.
    pub fn link_down(&mut self, now: u64, peer: NodeId) {
        self.links.remove(&peer);
        let replicas = self.replicas.clone();
        self.give_up(now, Fate::Unknown, |_, part, to, _, _| to == peer && !hears(&replicas, part));
    }

    /// Looks after requests that have waited long enough.
    pub fn tick(&mut self, now: u64) {
        self.holder.tick(now);
        let (routes, replicas) = (self.routes.clone(), self.replicas.clone());
        self.give_up(now, Fate::Unknown, |slot, part, _, term, at| {
            let route = &routes[part.group.slot()];
            let elsewhere = (route.leader.is_none() || route.term > term) && !hears(&replicas, part);
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

    /// Takes back what former leaders can bring to no effect any more: the log has entered a newer term here, and all
    /// that it held of the older one has been told.
    pub(super) fn take_back_overtaken(&mut self, now: u64) {
        let routes = self.routes.clone();
        self.give_up(now, Fate::Void, |_, part, _, term, _| {
            !part.deaf && !part.waits && term < routes[part.group.slot()].applied
        });
    }

    /// Ends the waiting of all sent parts that `over` names.
    fn give_up(&mut self, now: u64, fate: Fate, over: impl Fn(&Slot, &Part, NodeId, Term, u64) -> bool) {
        let busy: Vec<u64> = self.busy.iter().copied().collect();
        for counter in busy {
            let Some(conn) = self.conns.get_mut(&counter) else { continue };
            let mut changed = Vec::new();
            for (&id, slot) in &mut conn.slots {
                let again = fate == Fate::Void
                    || slot.client.is_some()
                    || slot.read
                    || matches!(slot.kind, Kind::Errand(_));
                let which: Vec<usize> = (0..slot.parts.len())
                    .filter(|&at| match slot.parts[at].state {
                        PartState::Sent { to, term, at: sent } => over(slot, &slot.parts[at], to, term, sent),
                        _ => false,
                    })
                    .collect();
                for &at in &which {
                    let part = &mut slot.parts[at];
                    part.maybe |= fate == Fate::Unknown;
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
            let down = Reply::error(Code::ClusterDown, self.down_text(now, *id, counter));
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

    /// Why nobody takes a request. Who is missing: a fenced write may wait for the system group, which says who compares a lock's tokens.
    fn down_text(&self, now: u64, id: u64, counter: u64) -> String {
        if self.removed {
            let me = self.me.0;
            return format!("node {me} was removed from the cluster and serves nobody; use another node");
        }
        let parked = self.conns[&counter].slots[&id].parts.iter().find(|part| is_parked(part));
        let group = parked.map(|part| if self.lacks_watch(now, part) { GroupId(0) } else { part.group });
        match group {
            Some(GroupId(0)) => {
                "the system group has no leader with a majority; try again, see STATUS".to_owned()
            }
            Some(GroupId(n)) => format!("partition {n} has no leader with a majority; try again, see STATUS"),
            None => "no leader with a majority; try again, see STATUS".to_owned(),
        }
    }
}

/// Whether the answer comes from this node's own replica, whatever becomes of the leader.
fn hears(replicas: &BTreeSet<GroupId>, part: &Part) -> bool {
    part.waits && replicas.contains(&part.group)
}
