//! What a node counts of itself, for whoever watches it. Nothing in here decides anything.
//!
//! Subtlety: it is gathered once in a while, so it costs the work between nothing but additions.

use quorate_protocol::id::GroupId;
use quorate_protocol::limits::STORE_MAX;

use super::Engine;
use crate::cache::{self, line::State};

/// See the top of the file. Counts that rise do so from 0 at the node's start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Whether the node's session is open.
    pub session: bool,
    /// Groups of which the node holds a replica.
    pub replicas: usize,
    /// Groups that it leads.
    pub leads: usize,
    /// How often it began to lead one.
    pub led: u64,
    /// Entries that its replicas have applied, all together, since their groups began.
    pub applied: u64,
    /// Bytes of log in memory.
    pub log_bytes: usize,
    /// Requests of its clients that came to the engine.
    pub asked: u64,
    /// Requests that were refused at the bounds of groups that it leads.
    pub refused_busy: u64,
    /// Writes that were refused for want of room, by groups that it leads.
    pub refused_for_room: u64,
    /// How often something was taken up that had waited for nodes or for room, in groups that it leads.
    pub taken_up: u64,
    /// Keys that were looked at to find some that can be evicted.
    pub looked_at: u64,
    /// Bytes that keys take in its replicas.
    pub store_bytes: u64,
    /// Bytes that they may take.
    pub store_max: u64,
    /// Keys in its replicas.
    pub store_keys: u64,
    /// Keys that were evicted from its replicas.
    pub evicted: u64,
    /// Invalidations that it has sent as a home.
    pub invalidations_sent: u64,
    /// Invalidations that it has heard as a holder.
    pub invalidations_heard: u64,
    /// Lines that it holds in the states M, E and S.
    pub lines: [usize; 3],
    /// Keys that somebody is to fill, and callers that wait for it (GETV FILL).
    pub fills: [usize; 2],
    /// Keys of its groups whose lines are known to be held somewhere.
    pub directory: usize,
    /// What it has answered by itself of keys that are written back.
    pub write_backs: cache::Counts,
}

impl Engine {
    /// What there is to count now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let holder = &self.gateway.holder;
        let mut counts = Counts {
            session: self.household.has_session(),
            replicas: self.groups.len(),
            asked: self.asked,
            store_max: self.bound.max.min(STORE_MAX) * u64::from(self.meta.partitions),
            invalidations_heard: holder.invalidations(),
            write_backs: holder.write_backs(),
            lines: [State::Modified, State::Exclusive, State::Shared].map(|state| holder.lines_in(state)),
            ..Counts::default()
        };
        for (id, group) in &self.groups {
            let counted = group.counted();
            counts.leads += usize::from(group.leading().is_some());
            counts.led += counted.led;
            counts.applied += group.applied();
            counts.log_bytes += group.consensus().log_bytes();
            counts.refused_busy += counted.refused_busy;
            counts.refused_for_room += counted.refused_for_room;
            counts.taken_up += counted.taken_up;
            counts.looked_at += counted.looked_at;
            counts.invalidations_sent += counted.invalidations;
            let [keys, waiters] = group.fills();
            counts.fills = [counts.fills[0] + keys, counts.fills[1] + waiters];
            counts.directory += group.directory().len();
            if let Some(store) = group.store().filter(|_| *id != GroupId::SYSTEM) {
                counts.store_bytes += store.bytes();
                counts.store_keys += store.len() as u64;
                counts.evicted += store.evicted();
            }
        }
        counts
    }
}
