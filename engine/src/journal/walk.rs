//! Following the records of a journal: where each segment ends, and what each group's log holds.
//!
//! Invariants:
//! - The walk follows records from the segment's first on. An entry lies right behind the record before it; a
//!   marker lies at the next sector (or block) and names the end of the record before it, so nothing can
//!   be missing between two records that were read.
//! - Where the walk ends, markers further on are looked for, at sectors only. One that vouches for a
//!   position behind the end proves that synced bytes are unreadable: damage. Otherwise the rest was never
//!   synced: a torn tail, dropped.
//! - An open segment that is shorter than any is made, and an end before what the manifest knows to be synced, are damage too.
//! - What is wrong with one group's log alone is that group's damage; the walk goes on.
//! - The work is linear in the bytes: markers have one fixed size, so looking for them costs a short
//!   checksum per sector at most.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::id::{GroupId, Identity, Index, Term};
use quorate_protocol::wire::Wire;

use super::manifest::{HardFile, Pins};
use super::record::{Kind, Place, Record, is_newer};
use super::recover::Damage;
use super::{BLOCK, Entry, File, MARKER, Marker, RESET, Row, SECTOR};

fn damage<T>(file: File, offset: u64, what: impl ToString) -> Result<T, Damage> {
    Err(Damage { file, offset, what: what.to_string() })
}

/// Where the last usable segment ends.
pub(super) struct Last {
    pub(super) number: u64,
    pub(super) size: u64,
    pub(super) end: u64,
    pub(super) sealed: bool,
}

impl Last {
    /// Nothing was read.
    pub(super) fn none() -> Self {
        Self { number: 0, size: 0, end: 0, sealed: true }
    }
}

/// What was read of a group's log.
#[derive(Default)]
pub(super) struct Log {
    /// The index before the first entry, if the log is known to begin anew there.
    base: Option<Index>,
    /// The index of the newest entry; 0 before there is one.
    last: Index,
    /// The term of the entry at the snapshot's index.
    at_snapshot: Option<Term>,
    /// The entries behind the snapshot.
    pub(super) entries: Vec<Entry>,
}

impl Log {
    /// Takes the next entry, or says what is wrong with it.
    fn take(&mut self, entry: Entry, snapshot: Index) -> Result<(), alloc::string::String> {
        let Entry { group, index, term, kind, .. } = entry;
        if kind == RESET {
            *self = Self { base: Some(index), last: index, ..Self::default() };
            self.at_snapshot = (index == snapshot).then_some(term);
            return Ok(());
        }
        let before = if self.last > 0 { Some(self.last) } else { self.base };
        if index == 0 || before.is_some_and(|before| index - 1 > before) {
            return Err(format!("entry {index} of group {} follows entry {}", group.0, before.unwrap_or(0)));
        }
        if self.last == 0 && self.base.is_none() || index <= snapshot {
            self.entries.clear();
        } else if let Some(first) = self.entries.first().map(|entry| entry.index) {
            // It replaces what the log held there and after it.
            self.entries.truncate(usize::try_from(index.saturating_sub(first)).unwrap_or(usize::MAX));
        }
        let behind = self.entries.last().map(|entry| entry.term).or(self.at_snapshot);
        if index > snapshot && behind.is_some_and(|before| before > term) {
            return Err(format!("the term of entry {index} of group {} falls", group.0));
        }
        self.last = index;
        if index <= snapshot {
            self.at_snapshot = (index == snapshot).then_some(term);
        } else {
            self.entries.push(entry);
        }
        Ok(())
    }
}

/// Whose records count.
#[derive(Clone, Copy)]
pub(super) struct Source {
    pub(super) identity: Identity,
    /// Whether records must lie where they were written.
    pub(super) bound: bool,
}

impl Source {
    fn record(self, number: u64, bytes: &Bytes, offset: u64) -> Option<Record> {
        Record::read(bytes, Place { identity: self.identity, segment: number, offset }, self.bound)
    }

    fn marker(self, number: u64, bytes: &Bytes, offset: u64) -> Option<(Kind, Marker)> {
        // A cheap look at the fixed length first, so that a search stays linear.
        let at = usize::try_from(offset).ok()?;
        if bytes.get(at..at + 4)? != 32u32.to_le_bytes() {
            return None;
        }
        let record = self.record(number, bytes, offset)?;
        let marker = Marker::from_wire(record.body).ok().filter(|_| record.kind != Kind::Entry)?;
        Some((record.kind, marker))
    }

    /// Where a newer release has written a record, if there is one where the walk has ended.
    fn newer(self, number: u64, bytes: &Bytes, end: u64) -> Option<u64> {
        let at = [end, end.next_multiple_of(SECTOR), end.next_multiple_of(BLOCK)];
        let place = |offset| Place { identity: self.identity, segment: number, offset };
        at.into_iter().find(|&offset| is_newer(bytes, place(offset)))
    }

    /// Whether the first record can be read.
    pub(super) fn is_begun(self, number: u64, bytes: &Bytes) -> bool {
        self.marker(number, bytes, 0).is_some_and(|(kind, _)| kind == Kind::Segment)
    }

    /// The offset of a marker behind `from` that vouches for more than `position`.
    fn vouched(self, number: u64, bytes: &Bytes, from: u64, position: (u64, u64)) -> Option<u64> {
        let mut offset = (from + 1).next_multiple_of(SECTOR);
        while offset + MARKER <= bytes.len() as u64 {
            let found = self.marker(number, bytes, offset);
            if found.is_some_and(|(_, marker)| (marker.synced_segment, marker.synced_offset) > position) {
                return Some(offset);
            }
            offset += SECTOR;
        }
        None
    }

    /// Follows the records of a segment that was begun, and shows its entries.
    pub(super) fn walk(self, number: u64, bytes: &Bytes, see: &mut dyn FnMut(u64, Record)) -> Walked {
        let mut end = MARKER;
        loop {
            if let Some(record) = self.record(number, bytes, end).filter(|record| record.kind == Kind::Entry)
            {
                let at = end;
                end += record.size() as u64;
                see(at, record);
                continue;
            }
            let next =
                [end.next_multiple_of(SECTOR), end.next_multiple_of(BLOCK)].into_iter().find_map(|offset| {
                    let (kind, marker) = self.marker(number, bytes, offset)?;
                    let follows = (marker.previous_segment, marker.previous_end) == (number, end);
                    (follows && kind != Kind::Segment).then_some((offset, kind))
                });
            match next {
                Some((offset, Kind::Seal)) => return Walked { end: offset + MARKER, sealed: true },
                Some((offset, _)) => end = offset + MARKER,
                None => return Walked { end, sealed: false },
            }
        }
    }
}

/// See the top of the file.
pub(super) struct Reader<'a> {
    source: Source,
    /// The first segment that must be there, and the last that is known to have been.
    known: (u64, u64),
    /// Up to where the manifest says that the journal was synced.
    synced: (u64, u64),
    /// No segment is made smaller.
    smallest: u64,
    rows: BTreeMap<GroupId, &'a Row>,
    since: BTreeMap<GroupId, (u64, u64)>,
    pub(super) logs: BTreeMap<GroupId, Log>,
    /// What is wrong with single groups' logs; the first of each.
    pub(super) broken: BTreeMap<GroupId, Damage>,
    pub(super) pins: Pins,
    /// The segment and the offset of a record that a newer release has written.
    pub(super) newer: Option<(u64, u64)>,
}

/// How a walk through a segment ended.
pub(super) struct Walked {
    pub(super) end: u64,
    pub(super) sealed: bool,
}

impl<'a> Reader<'a> {
    pub(super) fn new(hard: &'a HardFile, smallest: u64, bound: bool) -> Self {
        Self {
            source: Source { identity: hard.meta.identity, bound },
            known: hard.segments,
            synced: hard.synced,
            smallest,
            rows: hard.rows.iter().map(|(group, row)| (*group, row)).collect(),
            since: hard.since.iter().copied().collect(),
            logs: BTreeMap::new(),
            broken: BTreeMap::new(),
            pins: Pins::default(),
            newer: None,
        }
    }

    /// Reads all segments from the first that must be there.
    pub(super) fn segments(&mut self, segments: &BTreeMap<u64, Bytes>) -> Result<Last, Damage> {
        let (source, (first, newest)) = (self.source, self.known);
        let mut last = Last::none();
        for (&number, bytes) in segments.range(first..) {
            let file = File::Segment(number);
            let header = source.marker(number, bytes, 0).filter(|(kind, _)| *kind == Kind::Segment);
            let Some((_, header)) = header else {
                self.note_newer(number, bytes, 0);
                if let Some(offset) = source.vouched(number, bytes, 0, (number, 0)) {
                    let what = "the first record is unreadable, and offset";
                    return damage(file, 0, format!("{what} {offset} proves it was synced"));
                }
                // It was never begun, or the next header's chain breaks here. Later segments may follow: this
                // file's removal by an earlier start need not have reached the disk before they did.
                continue;
            };
            if number == first {
                last = Last { number: header.previous_segment, end: header.previous_end, ..last };
            }
            if (header.previous_segment, header.previous_end) != (last.number, last.end) || !last.sealed {
                let (previous, end) = (header.previous_segment, header.previous_end);
                if previous > last.number && !segments.contains_key(&previous) {
                    let what = format!("it is missing, and segment {number} proves that it was there");
                    return damage(File::Segment(previous), 0, what);
                }
                let (read, number) = (last.end, last.number);
                let what = format!(
                    "it follows offset {end} of segment {previous}, but segment {number} can be read up to {read} only, and there it is {}sealed",
                    if last.sealed { "" } else { "not " }
                );
                return damage(file, 0, what);
            }
            self.pins.open(number);
            let Walked { end, sealed } =
                source.walk(number, bytes, &mut |at, record| self.replay(number, at, record));
            if !sealed {
                self.note_newer(number, bytes, end);
            }
            if !sealed && let Some(offset) = source.vouched(number, bytes, end, (number, end)) {
                let what = "synced records are unreadable; the record at offset";
                return damage(file, end, format!("{what} {offset} proves that they were there"));
            }
            last = Last { number, size: bytes.len() as u64, end, sealed };
            if number == first || first == 0 {
                // The rest is one chain.
                self.known.0 = number;
            }
        }
        self.all_were_there(segments, first, newest, &last)?;
        self.nothing_was_cut_off(&last)?;
        Ok(last)
    }

    fn note_newer(&mut self, number: u64, bytes: &Bytes, end: u64) {
        self.newer = self.newer.or(self.source.newer(number, bytes, end).map(|offset| (number, offset)));
    }

    /// What the manifest names must have been read.
    fn all_were_there(
        &self,
        segments: &BTreeMap<u64, Bytes>,
        first: u64,
        newest: u64,
        last: &Last,
    ) -> Result<(), Damage> {
        for number in [first, newest] {
            if number > 0 && !segments.contains_key(&number) {
                return damage(File::Segment(number), 0, "it is missing");
            }
        }
        if last.number < newest {
            return damage(File::Segment(newest), 0, "its first record is unreadable");
        }
        Ok(())
    }

    /// A torn tail is never synced, and lies in a file that is as long as it was made.
    fn nothing_was_cut_off(&self, last: &Last) -> Result<(), Damage> {
        let Last { number, size, end, sealed } = *last;
        if !sealed && size < self.smallest {
            let what = format!(
                "it is cut off: it has {size} bytes, and was made with {} at the least",
                self.smallest
            );
            return damage(File::Segment(number), size, what);
        }
        if (number, end) < self.synced {
            let (segment, offset) = self.synced;
            let what = format!(
                "synced records are unreadable; hardstate proves that they were there, up to offset {offset} of segment {segment}"
            );
            return damage(File::Segment(number), end, what);
        }
        Ok(())
    }

    fn replay(&mut self, number: u64, offset: u64, record: Record) {
        let Record { group, subkind: kind, term, index, body: data, .. } = record;
        if self.since.get(&group).is_some_and(|&since| (number, offset) < since) {
            return;
        }
        let row = self.rows.get(&group);
        let verdict = if row.is_none_or(|row| row.hard.term < term) && self.source.bound {
            Err((File::Hard, 0, format!("it is older than the log of group {}", group.0)))
        } else if row.is_some_and(|row| !row.is_held()) {
            Err((File::Hard, 0, format!("it does not know of the log of group {}", group.0)))
        } else {
            let snapshot = row.map_or(0, |row| row.snapshot.0);
            let log = self.logs.entry(group).or_default();
            log.take(Entry { group, term, index, kind, data }, snapshot)
                .map(|()| self.pins.note(number, group, index, kind))
                .map_err(|what| (File::Segment(number), offset, what))
        };
        if let Err((file, offset, what)) = verdict {
            self.broken.entry(group).or_insert(Damage { file, offset, what });
        }
    }

    /// The logs behind the snapshots, and the groups whose logs belong to a life before their snapshot: what is in the
    /// journal of them does not count.
    pub(super) fn conclude(&mut self) -> (BTreeMap<GroupId, Vec<Entry>>, Vec<GroupId>) {
        let (mut logs, mut void) = (BTreeMap::new(), Vec::new());
        for (group, log) in core::mem::take(&mut self.logs) {
            let (snapshot, term) = self.rows.get(&group).map_or((0, 0), |row| row.snapshot);
            if snapshot > 0 && log.at_snapshot.is_some_and(|found| found != term) {
                void.push(group);
                continue;
            }
            let first = log.entries.first().map(|first| first.index).or(log.base.map(|base| base + 1));
            if let Some(first) = first.filter(|&first| first > snapshot + 1) {
                let what = format!(
                    "the log of group {} begins with entry {first}, but its snapshot is at {snapshot}",
                    group.0
                );
                let file = File::Segment(self.known.0);
                self.broken.entry(group).or_insert(Damage { file, offset: 0, what });
            }
            if !log.entries.is_empty() {
                logs.insert(group, log.entries);
            }
        }
        (logs, void)
    }
}
