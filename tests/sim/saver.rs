//! Somebody who makes backups: asks nodes for snapshots, and holds them to their OK.
//!
//! Charter: now and then a node is told SNAPSHOT, on a connection of its own, and asked for a piece of a snapshot
//! afterwards. When it says OK, the medium must hold, synced and named in the manifest, a snapshot of every group that it
//! held all the while, and each goes at least as far as anything that was applied anywhere when it was asked.
//!
//! Subtlety: what was acknowledged was applied by somebody before. So what running nodes have applied is as much as any
//! client can have been told by those that are still there.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate_engine::effect::{Input, NodeAsk, Request, Want};
use quorate_engine::journal::{File, HardFile, Row, Standing, is_sound, twin};
use quorate_protocol::chunk;
use quorate_protocol::id::{GroupId, Index};
use quorate_protocol::peer::SnapshotAt;
use quorate_protocol::reply::Reply;
use quorate_protocol::wire::Wire;

use super::rng::Rng;
use super::world::{Event, World};

/// Counters of the saver's connections are from here on; no client reaches them.
pub const FIRST: u64 = 1 << 35;
/// The property that is checked.
const PROPERTY: &str = "a SNAPSHOT that is done is on the disk";

/// What a node was told.
#[derive(Debug, Clone)]
enum Asked {
    /// SNAPSHOT: how far each group's is to go, and the incarnation of the replica. For a backup, with how often groups had
    /// been cut anew.
    Snapshot(BTreeMap<GroupId, (Index, u32)>, Option<usize>),
    /// SNAPSHOT READ.
    Read,
}

/// See the top of the file.
pub struct Saver {
    next: u64,
    /// Node, its life, and the connection → what was asked there.
    asked: BTreeMap<(usize, u64, u64), Asked>,
    /// Its chance.
    pub rng: Rng,
    /// How often a node has said OK.
    pub done: u64,
}

impl Saver {
    /// Nothing is asked yet.
    #[must_use]
    pub fn new(rng: Rng) -> Self {
        Self { next: FIRST, asked: BTreeMap::new(), rng, done: 0 }
    }
}

impl World {
    /// Gets the saver to work.
    pub fn plan_saves(&mut self) {
        if self.plan.saves {
            self.schedule(1_000_000, Event::Save);
        }
    }

    /// Time for a backup.
    pub fn save(&mut self) {
        if self.resting {
            return;
        }
        self.ask_some_to_save(None);
        let next = self.time + self.saver.rng.between(50_000..1_500_000);
        self.schedule(next, Event::Save);
    }

    /// Tells some node SNAPSHOT; see `Asked`.
    pub fn ask_some_to_save(&mut self, cut: Option<usize>) {
        let at = self.saver.rng.index(self.nodes.len());
        if let Some(wanted) = self.wanted(at) {
            self.ask_to_save(at, NodeAsk::Snapshot, Asked::Snapshot(wanted, cut));
        }
    }

    fn ask_to_save(&mut self, at: usize, ask: NodeAsk, asked: Asked) {
        let conn = self.saver.next;
        self.saver.next += 1;
        self.saver.asked.insert((at, self.nodes[at].life, conn), asked);
        let request = Request { id: 1, want: Want::Node(ask), client: None, after: None };
        self.post(at, Input::Connected { conn, ordered: true });
        self.post(at, Input::Requests { conn, requests: vec![request] });
    }

    /// What a node's snapshots are to contain; none if it does not run.
    fn wanted(&self, at: usize) -> Option<BTreeMap<GroupId, (Index, u32)>> {
        let node = self.nodes[at].engine.as_ref().filter(|_| self.nodes[at].is_up())?;
        let rows = rows(&Bytes::copy_from_slice(self.nodes[at].disk.bytes(File::Hard)?))?;
        let mut applied: BTreeMap<GroupId, Index> = BTreeMap::new();
        for report in
            self.nodes.iter().filter_map(|node| node.engine.as_ref()).flat_map(|engine| engine.report())
        {
            let highest = applied.entry(report.group).or_default();
            *highest = report.applied.max(*highest);
        }
        let held = node.report().into_iter().filter_map(|report| {
            let row = rows.get(&report.group)?;
            Some((report.group, (applied[&report.group], row.incarnation)))
        });
        Some(held.collect())
    }

    /// A node answers the saver.
    pub fn saved(&mut self, at: usize, conn: u64, reply: &Reply) {
        let life = self.nodes[at].life;
        self.post(at, Input::Disconnected { conn });
        let verdict = match (self.saver.asked.remove(&(at, life, conn)), reply) {
            (Some(Asked::Snapshot(wanted, cut)), &Reply::OK) => {
                self.saver.done += 1;
                self.read_one(at);
                self.is_saved(at, &wanted).map(|saved| {
                    cut.into_iter().for_each(|cut| self.take_cuts(at, cut, &saved));
                })
            }
            (Some(Asked::Read), Reply::Bulk(bytes))
                if bytes.get(8).is_none_or(|&kind| kind != chunk::HEADER) =>
            {
                Err(format!("what was read of a snapshot is not its beginning: {bytes:?}"))
            }
            (Some(Asked::Read), Reply::Bulk(_) | Reply::Nil) => Ok(()),
            // Why not is said, and nothing was promised.
            (Some(_), reply) if reply.never_proposed() => Ok(()),
            (asked, reply) => Err(format!("{asked:?} is answered with {reply:?}")),
        };
        if let Err(text) = verdict
            && !self.checks.may_be_ruined(at)
        {
            self.fail(PROPERTY, format!("node {}: {text}", at + 1));
        }
    }

    /// The snapshots that are there.
    fn is_saved(
        &self,
        at: usize,
        wanted: &BTreeMap<GroupId, (Index, u32)>,
    ) -> Result<Vec<(GroupId, Index)>, String> {
        let mut saved = Vec::new();
        let disk = &self.nodes[at].disk;
        let hard = disk.medium(File::Hard).and_then(|bytes| rows(&bytes)).ok_or("there is no manifest")?;
        for (&group, &(index, incarnation)) in wanted {
            let Some(row) = hard.get(&group).filter(|row| row.standing == Standing::Whole) else { continue };
            if row.incarnation != incarnation {
                continue;
            }
            let named = row.snapshot.0;
            if named < index {
                return Err(format!("group {}: its snapshot goes up to {named}, not to {index}", group.0));
            }
            let file = disk.medium(File::Snapshot(group, named));
            if !file.is_some_and(|file| is_sound(&file, group, named)) {
                return Err(format!("group {}: its snapshot at {named} is not on the medium", group.0));
            }
            saved.push((group, named));
        }
        Ok(saved)
    }

    /// Asks for the beginning of one of a node's snapshots.
    fn read_one(&mut self, at: usize) {
        let reports = self.nodes[at].engine.as_ref().map(|engine| engine.report()).unwrap_or_default();
        if reports.is_empty() {
            return;
        }
        let report = reports[self.saver.rng.index(reports.len())];
        let place = SnapshotAt { group: report.group, index: report.snapshot, offset: 0 };
        self.ask_to_save(at, NodeAsk::SnapshotRead(place), Asked::Read);
    }
}

/// The rows of a manifest.
fn rows(hard: &Bytes) -> Option<BTreeMap<GroupId, Row>> {
    let copy = twin::copies(hard).into_iter().next()?;
    Some(HardFile::from_wire(copy.contents).ok()?.rows.into_iter().collect())
}
