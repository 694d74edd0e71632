//! The log as raft reads it: everything that was handed to the journal, durable or not, behind the last compaction.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use bytes::Bytes;
use core::cell::Cell;
use quorate_protocol::id::{Index, Replica, Term};
use raft::eraftpb::{Entry as RawEntry, HardState, Snapshot};
use raft::storage::{GetEntriesContext, RaftState};
use raft::{Storage, StorageError};

use super::entries::Entries;
use super::raw::{is_change, raw_id, replica_of, to_raw_entry};
use super::{APPLY_BYTES, Setup};
use crate::journal::Conf;
use crate::trash::Trash;

/// What raft is told of a snapshot file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) at: (Index, Term),
    pub(super) conf: Conf,
}

/// See the top of the file.
pub(super) struct Log {
    /// Index and term of the last entry that is not kept.
    base: (Index, Term),
    /// The entry at place `i` has index `base + 1 + i`.
    entries: Entries,
    /// Indexes of the entries among them that change the replicas.
    changes: VecDeque<Index>,
    hard: HardState,
    conf: Conf,
    /// The snapshot that can be sent.
    taken: Option<Taken>,
    /// A replica needs a newer snapshot than `taken`.
    pub(super) wanted: Cell<bool>,
    /// Entries that went.
    pub(super) trash: Trash,
}

impl Log {
    pub(super) fn new(setup: &Setup) -> Self {
        let mut hard = HardState::default();
        hard.term = setup.hard.term;
        hard.vote = raw_id(setup.hard.vote);
        let last = setup.entries.last().map_or(setup.snapshot.0, |entry| entry.index);
        // What was applied of the configuration was committed.
        hard.commit = setup.snapshot.0.max(setup.conf.index.min(last));
        let taken =
            (setup.snapshot.0 > 0).then(|| Taken { at: setup.snapshot, conf: setup.snapshot_conf.clone() });
        let mut log = Self {
            base: setup.snapshot,
            entries: Entries::default(),
            changes: VecDeque::new(),
            hard,
            conf: setup.conf.clone(),
            taken,
            wanted: Cell::new(false),
            trash: Trash::default(),
        };
        log.append(setup.entries.iter().map(to_raw_entry).collect());
        log
    }

    fn place(&self, index: Index) -> Option<usize> {
        index.checked_sub(self.base.0 + 1).and_then(|place| usize::try_from(place).ok())
    }

    pub(super) fn append(&mut self, entries: Vec<RawEntry>) {
        let Some(first) = entries.first() else { return };
        let keep = self.place(first.index).expect("what was compacted is never written again");
        assert!(keep <= self.entries.len(), "the log has no holes");
        self.entries.truncate(keep, &mut self.trash);
        self.changes.retain(|&index| index < first.index);
        self.changes.extend(entries.iter().filter(|entry| is_change(entry)).map(|entry| entry.index));
        entries.into_iter().for_each(|entry| self.entries.push(entry));
    }

    /// Keeps no entry up to an index.
    pub(super) fn compact(&mut self, upto: Index) {
        let count = self.place(upto).map_or(0, |place| (place + 1).min(self.entries.len()));
        if let Some(last) = count.checked_sub(1).and_then(|place| self.entries.get(place)) {
            self.base = (last.index, last.term);
            self.entries.drop_front(count, &mut self.trash);
        }
        self.changes.retain(|&index| index > upto);
    }

    /// The log begins anew behind a snapshot.
    pub(super) fn restart(&mut self, taken: Taken) {
        self.forget();
        self.base = taken.at;
        self.taken = Some(taken);
    }

    /// Lets go of all entries.
    pub(super) fn forget(&mut self) {
        self.entries.truncate(0, &mut self.trash);
        self.entries = Entries::default();
        self.changes.clear();
    }

    /// A newer snapshot can be sent.
    pub(super) fn offer(&mut self, taken: Taken) {
        self.taken = Some(taken);
        self.wanted.set(false);
    }

    /// Bytes of the entries that are kept.
    pub(super) fn bytes(&self) -> usize {
        self.entries.bytes()
    }

    pub(super) fn taken(&self) -> Option<&Taken> {
        self.taken.as_ref()
    }

    /// The commands of the entries after `index`, newest first.
    pub(super) fn data_after(&self, index: Index) -> impl Iterator<Item = &Bytes> {
        let all = self.entries.range(0..self.entries.len());
        let after = all.rev().take_while(move |entry| entry.index > index);
        after.filter(|entry| !is_change(entry)).map(|entry| &entry.data)
    }

    /// The newest entry that changes the replicas.
    pub(super) fn last_change(&self) -> Option<Index> {
        self.changes.back().copied()
    }
}

/// An entry that only carries a stamp is smaller than this, and every other one is larger.
const STAMP_ALONE: usize = 16;

/// What an entry counts when raft cuts a slice of the log: the smallest are not free either. One that only carries a
/// stamp is as dear as all that a group may apply in a turn: it brings to its end what time has ended.
pub(super) fn size_of_committed(entry: &RawEntry) -> usize {
    if (1..STAMP_ALONE).contains(&entry.data.len()) { APPLY_BYTES } else { 32 + entry.data.len() }
}

impl Storage for Log {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState { hard_state: self.hard.clone(), conf_state: self.conf.to_raw() })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<RawEntry>> {
        let Some(from) = self.place(low) else { return Err(StorageError::Compacted.into()) };
        let to = self.place(high).expect("a slice ends behind its beginning");
        let mut room = max_size.into().unwrap_or(u64::MAX);
        let fits = |entry: &&RawEntry| {
            room = room.saturating_sub(size_of_committed(entry) as u64);
            entry.index == low || room > 0
        };
        Ok(self.entries.range(from..to).take_while(fits).cloned().collect())
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.base.0 {
            return Ok(self.base.1);
        }
        let Some(place) = self.place(index) else { return Err(StorageError::Compacted.into()) };
        self.entries.get(place).map(|entry| entry.term).ok_or(StorageError::Unavailable.into())
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.base.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.base.0 + self.entries.len() as u64)
    }

    fn snapshot(&self, _request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let to: Replica = replica_of(to);
        // Raft takes a snapshot only where its configuration names the receiver, and only if it leads into the log.
        let usable = |taken: &&Taken| taken.at.0 >= self.base.0 && taken.conf.replicas().contains(&to);
        let Some(taken) = self.taken.as_ref().filter(usable) else {
            self.wanted.set(true);
            return Err(StorageError::SnapshotTemporarilyUnavailable.into());
        };
        let mut snapshot = Snapshot::default();
        let metadata = snapshot.mut_metadata();
        (metadata.index, metadata.term) = taken.at;
        metadata.set_conf_state(taken.conf.to_raw());
        Ok(snapshot)
    }
}
