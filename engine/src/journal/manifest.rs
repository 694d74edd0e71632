//! The manifest of a data directory, in the twin file `hardstate`: what must be there, and what of it counts.
//!
//! Invariants:
//! - Whatever makes bytes needless is in the manifest, synced, before the bytes are removed; whatever makes them
//!   needed was written before they were.
//! - A group's entries count from a place in the journal on: what lies before it was written by a former
//!   incarnation, or before the log began anew behind a snapshot. So rows and logs change together, with one write.
//! - Only segments in front are freed: what is left is one chain.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use quorate_protocol::id::{GroupId, Index};
use quorate_protocol::wire::Wire;
use quorate_protocol::wire_struct;

use super::{Entry, File, Io, Meta, Persist, RESET, Row, Standing, twin};

wire_struct! {
    /// The contents of the file.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct HardFile {
        /// What the directory is: the copy of `meta`.
        pub meta: Meta,
        /// The first segment that must be there, and the last of which that is known; 0 before there is one.
        pub segments: (u64, u64),
        /// Up to where the journal was known to be synced: the segment and the offset.
        pub synced: (u64, u64),
        /// Every group that was ever held.
        pub rows: Vec<(GroupId, Row)>,
        /// From which segment and offset on a group's entries count; from the first on, if it is not here.
        pub since: Vec<(GroupId, (u64, u64))>,
    }
}

impl Row {
    /// Whether the replica relies on its log and its snapshot.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.standing == Standing::Whole
    }

    /// It cannot prove any more that it has all that it acknowledged.
    pub(super) fn lose(&mut self) {
        self.standing = Standing::Lost;
        self.snapshot = (0, 0);
    }

    /// A replica of which nothing is known, not even its incarnation: every former one of this node.
    pub(super) fn lost() -> Self {
        Self { incarnation: u32::MAX, standing: Standing::Lost, ..Self::default() }
    }
}

/// Which segments hold what a group may need: the highest index of each group in each segment.
#[derive(Debug, Clone, Default)]
pub(super) struct Pins {
    segments: BTreeMap<u64, BTreeMap<GroupId, Index>>,
    last: BTreeMap<GroupId, Index>,
}

impl Pins {
    /// There is a segment.
    pub(super) fn open(&mut self, segment: u64) {
        self.segments.entry(segment).or_default();
    }

    /// Whether a segment is to stay.
    pub(super) fn has(&self, segment: u64) -> bool {
        self.segments.contains_key(&segment)
    }

    /// A segment holds an entry.
    pub(super) fn note(&mut self, segment: u64, group: GroupId, index: Index, kind: u8) {
        let last = self.last.insert(group, index);
        if kind == RESET {
            self.forget(group);
            self.last.insert(group, index);
        } else {
            if last.is_some_and(|last| last >= index) {
                // It replaces what the log held there and after it.
                for high in self.segments.values_mut().filter_map(|groups| groups.get_mut(&group)) {
                    *high = (*high).min(index - 1);
                }
            }
            self.segments.entry(segment).or_default().insert(group, index);
        }
    }

    /// Nothing that was written of a group so far counts any more.
    fn forget(&mut self, group: GroupId) {
        self.last.remove(&group);
        for groups in self.segments.values_mut() {
            groups.remove(&group);
        }
    }

    /// The first segment that holds anything needed, `open` at the latest.
    pub(super) fn first_needed(&self, rows: &BTreeMap<GroupId, Row>, open: u64) -> u64 {
        let needs = |(group, &high): (&GroupId, &Index)| {
            rows.get(group).is_none_or(|row| row.is_held() && high > row.snapshot.0)
        };
        let mut needed = self.segments.range(..open).filter(|(_, groups)| groups.iter().any(needs));
        needed.next().map_or(open, |(&number, _)| number)
    }

    /// Takes away the segments before this one; their numbers.
    pub(super) fn release(&mut self, first: u64) -> Vec<u64> {
        let kept = self.segments.split_off(&first);
        core::mem::replace(&mut self.segments, kept).into_keys().collect()
    }
}

/// What is known of the directory besides where the next record goes.
#[derive(Debug)]
pub(super) struct Manifest {
    pub(super) meta: Meta,
    pub(super) first: u64,
    pub(super) rows: BTreeMap<GroupId, Row>,
    pub(super) since: BTreeMap<GroupId, (u64, u64)>,
    pub(super) pins: Pins,
    /// Of the newest copy of the file.
    pub(super) number: u64,
}

/// What of a plan's entries is not written.
#[derive(Debug, Default)]
pub(super) struct Cuts(BTreeMap<GroupId, usize>);

impl Cuts {
    /// Whether the entry at this place among all of the plan is to be written.
    pub(super) fn keep(&self, at: usize, entry: &Entry) -> bool {
        self.0.get(&entry.group).is_none_or(|&from| at >= from)
    }
}

impl Manifest {
    /// Takes over what a plan changes besides the logs. `here` is where the journal ends: entries lie behind it, if they
    /// are written at all; it is synced up to `synced`. Adds the files that nobody needs any more, to be removed when the plan is done.
    pub(super) fn take(
        &mut self,
        batches: &[Persist],
        here: (u64, u64),
        synced: (u64, u64),
        out: &mut Vec<Io>,
        removed: &mut Vec<File>,
    ) -> Cuts {
        let mut cuts = Cuts::default();
        let mut changed = false;
        let mut at = 0;
        for batch in batches {
            for (group, row) in &batch.rows {
                let before = self.rows.insert(*group, row.clone());
                if before.as_ref() == Some(row) {
                    continue;
                }
                changed = true;
                let same =
                    |before: &Row| (before.incarnation, before.standing) == (row.incarnation, row.standing);
                if !before.as_ref().is_some_and(same) {
                    self.begin(*group, here);
                    cuts.0.insert(*group, at);
                }
                let old = before.map_or(0, |before| before.snapshot.0);
                if old > 0 && (old != row.snapshot.0 || !row.is_held()) {
                    removed.push(File::Snapshot(*group, old));
                }
            }
            for entry in &batch.entries {
                if entry.kind == RESET {
                    changed = true;
                    self.begin(entry.group, here);
                    cuts.0.insert(entry.group, at);
                }
                at += 1;
            }
        }
        for (group, row) in &self.rows {
            // A replica that is not there has no log; a start takes entries of one for a sign of damage.
            if !row.is_held() && *row != Row::default() {
                cuts.0.insert(*group, usize::MAX);
            }
        }
        if changed {
            self.first = self.pins.first_needed(&self.rows, here.0);
            removed.extend(self.pins.release(self.first).into_iter().map(File::Segment));
            self.write(here.0, synced, out);
        }
        cuts
    }

    /// A group's log begins anew.
    pub(super) fn begin(&mut self, group: GroupId, here: (u64, u64)) {
        self.since.insert(group, here);
        self.pins.forget(group);
    }

    /// Replaces the file. All segments up to `last` are there, and synced so far that they can be found; the journal is
    /// synced up to `synced`.
    pub(super) fn write(&mut self, last: u64, synced: (u64, u64), out: &mut Vec<Io>) {
        self.number += 1;
        // A place in a segment that is gone says nothing any more.
        self.since.retain(|_, since| *since > (self.first, 0));
        let contents = HardFile {
            meta: self.meta.clone(),
            segments: (self.first, last),
            synced,
            rows: self.rows.iter().map(|(&group, row)| (group, row.clone())).collect(),
            since: self.since.iter().map(|(&group, &since)| (group, since)).collect(),
        };
        twin::replace(File::Hard, self.number, &contents.to_wire(), out);
    }
}
