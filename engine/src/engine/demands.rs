//! Snapshots that clients want: SNAPSHOT, and SNAPSHOT READ.
//!
//! Charter: a SNAPSHOT first has a read round in every group that the node holds (the gateway sees to it, as to any
//! other read), which says how far each group's snapshot is to go: then everything that was acknowledged before the
//! command came is in it. Then it waits until the snapshots go so far, are synced, and are named in the manifest.
//!
//! Invariants:
//! - One snapshot at a time is written on a node, whoever wants it. If the newest one goes far enough, none is.
//! - Who waits is bounded, and so is what is read at a time. Nobody waits for a disk that is full, for a replica that
//!   is gone, or for one that falls behind its group.
//! - A client that copies a snapshot holds back the next one of that group, but not for ever (`HOLD_BACK`, and in
//!   `snapshots.rs` the log's ceiling).

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::id::{GroupId, Index};
use quorate_protocol::limits::{SNAPSHOT_READ, SNAPSHOT_READS_MAX, SNAPSHOT_WAITERS_MAX};
use quorate_protocol::peer::SnapshotAt;
use quorate_protocol::reply::{Code, Reply};

use super::Engine;
use crate::effect::{Effect, Effects, TICK};
use crate::gateway::Task;
use crate::journal::Persist;

/// How long a replica may lack entries that its group has committed; microseconds.
const CATCH_UP: u64 = 500 * TICK;
/// How long a SNAPSHOT waits for those who copy the one before; microseconds.
const HOLD_BACK: u64 = 1500 * TICK;

/// A SNAPSHOT that waits.
struct Demand {
    conn: u64,
    request: u64,
    since: u64,
    /// How far each group's snapshot is to go.
    wanted: BTreeMap<GroupId, Index>,
    /// The `Persist` by which all of them are named.
    named_by: Option<u64>,
}

/// See the top of the file.
#[derive(Default)]
pub(super) struct Demands {
    waiting: Vec<Demand>,
    /// Pieces that are being read.
    reading: usize,
    /// Up to which `Persist` everything is on stable storage.
    durable: u64,
}

impl Demands {
    pub(super) fn persisted(&mut self, seq: u64) {
        self.durable = self.durable.max(seq);
    }
}

impl Engine {
    /// Takes up what clients want, and answers what is done. `persist`: what this turn is about to write.
    pub(super) fn tend_demands(&mut self, mono: u64, persist: &Persist, fx: &mut Effects) {
        for (conn, request, task) in self.gateway.take_tasks() {
            match task {
                Task::Snapshot(_) if self.demands.waiting.len() >= SNAPSHOT_WAITERS_MAX => {
                    let text =
                        format!("{SNAPSHOT_WAITERS_MAX} SNAPSHOTs wait on this node already; try again");
                    self.gateway.complete(conn, request, Reply::error(Code::Busy, text));
                }
                Task::Snapshot(wanted) => {
                    let demand = Demand { conn, request, since: mono, wanted, named_by: None };
                    self.demands.waiting.push(demand);
                }
                Task::Read(at) => self.read_piece(mono, (conn, request), at, fx),
            }
        }
        let writes = !(persist.rows.is_empty() && persist.entries.is_empty());
        let handed_out = if writes { self.next_seq } else { self.next_seq - 1 };
        for mut demand in core::mem::take(&mut self.demands.waiting) {
            if demand.named_by.is_none() && demand.wanted.iter().all(|(id, index)| self.is_named(*id, *index))
            {
                demand.named_by = Some(handed_out);
            }
            let done = demand.named_by.is_some_and(|seq| seq <= self.demands.durable);
            #[cfg(feature = "faults")]
            let done = done || (demand.named_by.is_some() && self.faults.saved_too_soon);
            let answer = if done { Some(Reply::OK) } else { self.refusal(mono, &demand) };
            match answer {
                Some(reply) => self.gateway.complete(demand.conn, demand.request, reply),
                None => self.demands.waiting.push(demand),
            }
        }
    }

    /// Whether a group's row, as it was last handed out for the disk, names a snapshot that goes so far.
    fn is_named(&self, id: GroupId, index: Index) -> bool {
        self.groups.get(&id).is_some_and(|group| group.named_snapshot() >= index)
    }

    /// Why a demand cannot be met, if it is so.
    fn refusal(&self, mono: u64, demand: &Demand) -> Option<Reply> {
        if demand.named_by.is_some() {
            return None;
        }
        if !self.replicas.room {
            let text = "the disk of this node is full; free some space there and send SNAPSHOT again";
            return Some(Reply::error(Code::Busy, text));
        }
        let again = |text| Some(Reply::error(Code::TryAgain, text));
        for (id, index) in &demand.wanted {
            let Some(group) = self.groups.get(id) else {
                return again(format!("group {} has left this node meanwhile; send SNAPSHOT again", id.0));
            };
            if group.applied() < *index && mono > demand.since + CATCH_UP {
                let text = "lacks entries that its group has committed; try again, or ask another node";
                return again(format!("this node's replica of group {} {text}", id.0));
            }
        }
        None
    }

    /// A group of which clients want a snapshot that can be begun now.
    pub(super) fn demanded(&self, mono: u64) -> Option<GroupId> {
        let ready = |since: u64, id: GroupId, index: Index| {
            self.groups.get(&id).is_some_and(|group| {
                let reached = group.snapshot_report().map_or(0, |report| report.at.0);
                let free = !group.is_fetched(mono) || mono > since + HOLD_BACK;
                reached < index && group.applied() >= index && group.may_begin_snapshot() && free
            })
        };
        let demands = self.demands.waiting.iter();
        let mut all = demands.flat_map(|demand| demand.wanted.iter().map(|wanted| (demand.since, wanted)));
        all.find(|(since, (id, index))| ready(*since, **id, **index)).map(|(_, (id, _))| *id)
    }

    fn read_piece(&mut self, mono: u64, (conn, request): (u64, u64), at: SnapshotAt, fx: &mut Effects) {
        let group = self.groups.get_mut(&at.group);
        let here = |index: Index| index == at.index;
        let Some(group) =
            group.filter(|group| group.snapshot_report().is_some_and(|report| here(report.at.0)))
        else {
            return self.gateway.complete(conn, request, Reply::Nil);
        };
        if self.demands.reading >= SNAPSHOT_READS_MAX {
            let text = format!("this node reads {SNAPSHOT_READS_MAX} pieces of snapshots already; try again");
            return self.gateway.complete(conn, request, Reply::error(Code::Busy, text));
        }
        group.note_copied(mono, at.offset);
        self.demands.reading += 1;
        fx.push(Effect::ReadPiece { conn, request, at, length: SNAPSHOT_READ as u64 });
    }

    /// A piece was read, or could not be.
    pub(super) fn piece_read(&mut self, conn: u64, request: u64, bytes: Result<Option<Bytes>, String>) {
        self.demands.reading = self.demands.reading.saturating_sub(1);
        let reply = match bytes {
            Ok(bytes) => bytes.map_or(Reply::Nil, Reply::Bulk),
            Err(why) => {
                Reply::error(Code::Err, format!("the snapshot cannot be read: {why}; ask another node"))
            }
        };
        self.gateway.complete(conn, request, reply);
    }
}
