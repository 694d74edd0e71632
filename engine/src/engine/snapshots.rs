//! When groups take snapshots, and what goes to the snapshot files and the snapshot lane.
//!
//! Charter: the log of all groups lies in one journal, which is freed from its oldest end. So when it has grown by more
//! than `log_floor` and half of what the snapshots take since a group's oldest entry, that group takes a new one, the
//! oldest first. Disk use stays below twice the live data, and all groups come by turns. What clients want comes before that
//! (`demands.rs`).
//!
//! Invariant: one snapshot at a time is written on a node. No turn works for snapshots longer than some milliseconds.

use alloc::collections::VecDeque;
use bytes::Bytes;
use quorate_protocol::id::{GroupId, Index, NodeId};
use quorate_protocol::peer::SnapshotFrame;

use super::Engine;
use crate::effect::{Effect, Effects};
use crate::group::{Group, PIECE, gone};
use crate::journal::Entry;

/// Bytes of log that a server keeps at least before it takes a snapshot.
pub(super) const LOG_FLOOR: u64 = 16 << 20;
/// Bytes of log above which a snapshot is taken though another node fetches the one before.
const LOG_CEILING: u64 = 1 << 30;

/// What all groups together load in a turn of snapshots that they fetch, as `State::load` counts it: some
/// milliseconds' worth.
const LOAD_ROOM: usize = 512 << 10;

/// What a turn looks through of snapshots that are mapped, counted so: about a chunk.
const LOOK_ROOM: usize = 256 << 10;

/// What is under way on the files.
pub(super) struct Background {
    floor: u64,
    /// Bytes of entries that this node has written, ever since its oldest.
    written: u64,
    next: u64,
    /// What may still be loaded in this turn, as `State::load` counts it; and whether a slice may be made.
    room: usize,
    may_slice: bool,
    /// Number → the replica (group and incarnation) whose plan it is.
    under_way: VecDeque<(u64, GroupId, u32)>,
}

impl Background {
    pub(super) fn new(floor: u64, written: u64) -> Self {
        Self { floor, written, next: 1, room: 0, may_slice: false, under_way: VecDeque::new() }
    }

    /// A turn ends.
    pub(super) fn begin_turn(&mut self) {
        (self.room, self.may_slice) = (LOAD_ROOM, true);
    }

    pub(super) fn written(&self) -> u64 {
        self.written
    }

    pub(super) fn note_written(&mut self, entries: &[Entry]) {
        self.written += entries.iter().map(|entry| 64 + entry.data.len() as u64).sum::<u64>();
    }
}

impl Engine {
    /// Plans for the files, and words for other nodes.
    pub(super) fn run_background(&mut self, mono: u64, fx: &mut Effects) {
        self.begin_snapshots(mono);
        let fetching = self.groups.values().filter(|group| group.fetches()).count();
        let mut look_room = LOOK_ROOM;
        for (&id, group) in &mut self.groups {
            if let Some(index) = group.take_wanted_map() {
                fx.push(Effect::Map { group: id, index });
            }
            if look_room > 0 {
                group.look_through(&mut look_room);
            }
            group.load_rows(mono, fetching, &mut self.background.room);
            while let Some(ios) = group.background(&mut self.background.may_slice) {
                let number = self.background.next;
                self.background.next += 1;
                self.background.under_way.push_back((number, id, group.consensus().me().incarnation));
                fx.push(Effect::Background { number, ios });
            }
            for (to, frame) in group.take_words() {
                fx.push(Effect::Snapshot { to, frame });
            }
        }
    }

    fn begin_snapshots(&mut self, mono: u64) {
        if self.groups.values().any(Group::is_writing) {
            return;
        }
        let counter = self.background.written;
        if let Some(group) = self.groups.values_mut().find(|group| group.wants_snapshot()) {
            return group.begin_snapshot(counter);
        }
        if let Some(id) = self.demanded(mono)
            && let Some(group) = self.groups.get_mut(&id)
        {
            return group.begin_snapshot(counter);
        }
        let live: u64 = self.groups.values().map(Group::snapshot_size).sum();
        // Without room whatever can be freed is freed: a snapshot takes the place of the one before, and of the log.
        let bound =
            if self.replicas.room { self.background.floor + live / 2 } else { self.background.floor / 16 };
        // How much was written since a group's own oldest entry: one that cannot take a snapshot (what it holds is not
        // committed, say) is no reason for others to take theirs again and again, which would free nothing.
        let kept = |group: &Group| group.oldest_entry().map_or(0, |oldest| counter - oldest);
        let due = |group: &&mut Group| {
            let kept = kept(group);
            kept > bound && group.may_begin_snapshot() && (kept > LOG_CEILING || !group.is_fetched(mono))
        };
        if let Some(group) = self.groups.values_mut().filter(due).max_by_key(|group| kept(group)) {
            group.begin_snapshot(counter);
        }
    }

    /// The shell has mapped a file, or could not.
    pub(super) fn mapped(&mut self, id: GroupId, index: Index, bytes: Option<Bytes>) {
        if let Some(group) = self.groups.get_mut(&id) {
            group.map(index, bytes);
            self.awake.insert(id);
        }
    }

    /// A node whose disk gives back other bytes than were written tells nobody what it has done with them.
    pub(super) fn stop_if_damaged(&mut self, fx: &mut Effects) {
        if let Some(why) = self.groups.values_mut().find_map(Group::take_damage) {
            self.stopped = true;
            fx.clear();
            fx.push(Effect::Stop(why));
        }
    }

    /// Plans up to a number are done.
    pub(super) fn background_done(&mut self, mono: u64, number: u64) {
        while self.background.under_way.front().is_some_and(|(under_way, ..)| *under_way <= number) {
            let (_, id, incarnation) = self.background.under_way.pop_front().expect("it was just seen");
            let group = self.groups.get_mut(&id);
            if let Some(group) = group.filter(|group| group.consensus().me().incarnation == incarnation) {
                group.background_done(mono);
                self.awake.insert(id);
            }
        }
    }

    /// A frame of the snapshot lane has come.
    pub(super) fn snapshot_frame(&mut self, mono: u64, from: NodeId, frame: SnapshotFrame, fx: &mut Effects) {
        match frame {
            SnapshotFrame::Ask(at) => {
                let has = self.groups.get_mut(&at.group).is_some_and(|group| group.is_asked(mono, from, &at));
                fx.push(if has {
                    Effect::SendPiece { to: from, at, length: PIECE }
                } else {
                    Effect::Snapshot { to: from, frame: gone(at) }
                });
            }
            SnapshotFrame::Piece(piece) => {
                if let Some(group) = self.groups.get_mut(&piece.at.group) {
                    group.receive_piece(mono, &piece);
                    self.awake.insert(piece.at.group);
                }
            }
        }
    }
}
