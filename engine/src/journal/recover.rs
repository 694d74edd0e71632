//! Reading a data directory back: what is whole, what is a torn tail, what is damage.
//!
//! Charter: takes the bytes of all files, returns what the node goes on from, a journal that writes behind
//! it, and what must be done to the files first. Damage is refused with a sentence; nothing is guessed.
//!
//! Invariants:
//! - The walk follows records from the segment's first on. An entry lies right behind the record before it; a
//!   marker lies at the next sector (or block) and names the end of the record before it, so nothing can
//!   be missing between two records that were read.
//! - Where the walk ends, markers further on are looked for, at sectors only. One that vouches for a
//!   position behind the end proves that synced bytes are unreadable: damage. Otherwise the rest was never
//!   synced: a torn tail, dropped.
//! - What was read may be in the system's memory only, if just the process died: it is synced before anything
//!   relies on it. What only one copy of a twin holds is written to the other as well.
//! - The work is linear in the bytes: markers have one fixed size, so looking for them costs a short
//!   checksum per sector at most.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::id::{Boot, GroupId, Identity};
use quorate_protocol::wire::Wire;

use super::record::{Kind, Place, Record};
use super::{BLOCK, Entry, File, HardFile, Io, Journal, MARKER, Marker, Meta, Recovered, Row, SECTOR, twin};

/// The bytes of a data directory.
#[derive(Debug, Clone, Default)]
pub struct Contents {
    /// The file `meta`, if it is there.
    pub meta: Option<Bytes>,
    /// The file `hardstate`, if it is there.
    pub hard: Option<Bytes>,
    /// The segments, by number.
    pub segments: BTreeMap<u64, Bytes>,
}

/// Why a data directory cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub file: File,
    /// Where in it.
    pub offset: u64,
    /// What was found there.
    pub what: String,
}

impl core::fmt::Display for Damage {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self { file, offset, what } = self;
        write!(
            f,
            "{} is damaged at offset {offset}: {what}; this node must not vote with it: bring back a copy of the \
             directory that was made after the node's last stop, an older one has forgotten what it promised",
            file.path()
        )
    }
}

fn damage<T>(file: File, offset: u64, what: impl ToString) -> Result<T, Damage> {
    Err(Damage { file, offset, what: what.to_string() })
}

/// How a directory is read.
#[derive(Debug, Clone)]
pub struct Options {
    /// The size of new segments.
    pub segment_size: u64,
    /// Deliberate bug: records are valid wherever they lie.
    #[cfg(feature = "faults")]
    pub accept_recycled: bool,
    /// Deliberate bug: terms and votes are not read back.
    #[cfg(feature = "faults")]
    pub forget_votes: bool,
}

impl Options {
    /// As a server does it, with segments of this size.
    #[must_use]
    pub fn new(segment_size: u64) -> Self {
        Self {
            segment_size,
            #[cfg(feature = "faults")]
            accept_recycled: false,
            #[cfg(feature = "faults")]
            forget_votes: false,
        }
    }

    fn bound(&self) -> bool {
        #[cfg(feature = "faults")]
        if self.accept_recycled {
            return false;
        }
        true
    }
}

/// What a directory is, without using it; `None` when it was never founded.
///
/// # Errors
/// When it holds files but does not say what it is.
pub fn read_meta(contents: &Contents) -> Result<Option<(u64, Meta)>, Damage> {
    if let Some((copy, meta)) = newest(&copies_of(contents.meta.as_ref())) {
        return Ok(Some((copy.number, meta)));
    }
    if contents.hard.is_some() || !contents.segments.is_empty() {
        return damage(File::Meta, 0, "neither copy can be read, but the directory has been used");
    }
    Ok(None)
}

fn copies_of(file: Option<&Bytes>) -> Vec<twin::Copy> {
    file.map(twin::copies).unwrap_or_default()
}

/// The newest copy that says something.
fn newest<T: Wire>(copies: &[twin::Copy]) -> Option<(&twin::Copy, T)> {
    copies.iter().find_map(|copy| Some((copy, T::from_wire(copy.contents.clone()).ok()?)))
}

/// Reads a founded directory.
///
/// The shell does what is in the list, in order, before anything of the node leaves it.
///
/// # Errors
/// When something that was synced cannot be read.
pub fn recover(contents: &Contents, options: &Options) -> Result<(Recovered, Journal, Vec<Io>), Damage> {
    let mut out = Vec::new();
    let meta = read_and_raise(contents, &mut out)?;
    let (hard_number, rows) = read_rows(contents, meta.identity, options, &mut out)?;
    let mut reader = Reader { identity: meta.identity, bound: options.bound(), logs: BTreeMap::new() };
    let last = reader.segments(&contents.segments, &mut out)?;
    reader.check_terms(&rows, options)?;
    let mut journal = Journal {
        identity: meta.identity,
        segment_size: options.segment_size,
        segment: last.number,
        size: last.size,
        end: last.end,
        synced: (last.number, last.end),
        planned: (last.number, last.end),
        news: false,
        rows: rows.clone(),
        hard_number,
    };
    if last.number > 0 {
        // The seal below, or the next segment's header, vouches for these bytes. Segments before this one
        // are synced for certain: a segment's header is written only behind the synced seal of the one before.
        out.push(Io::Sync { file: File::Segment(last.number) });
    }
    if last.number > 0 && !last.sealed {
        // The tail may hold torn bytes; what is behind the seal is never looked at again.
        journal.size = journal.size.max(last.end.next_multiple_of(SECTOR) + MARKER);
        journal.seal(&mut out);
    }
    journal.open(last.highest + 1, 0, &mut out);
    out.push(Io::Sync { file: File::Segment(journal.segment) });
    journal.done();
    Ok((Recovered { meta, rows, snapshots: BTreeMap::new(), entries: reader.logs }, journal, out))
}

/// Reads what the directory is, and raises the number of the start.
fn read_and_raise(contents: &Contents, out: &mut Vec<Io>) -> Result<Meta, Damage> {
    let Some((number, mut meta)) = read_meta(contents)? else {
        return damage(File::Meta, 0, "the directory was never founded");
    };
    let copies = copies_of(contents.meta.as_ref());
    if let Some((copy, _)) = newest::<Meta>(&copies) {
        // The replacement begins with the first copy, which may be the only good one.
        twin::repair(File::Meta, &copies, copy, out);
    }
    meta.boot = Boot(meta.boot.0 + 1);
    twin::replace(File::Meta, number + 1, &meta.to_wire(), out);
    Ok(meta)
}

fn read_rows(
    contents: &Contents,
    identity: Identity,
    options: &Options,
    out: &mut Vec<Io>,
) -> Result<(u64, BTreeMap<GroupId, Row>), Damage> {
    #[cfg(feature = "faults")]
    if options.forget_votes {
        return Ok((1 << 32, BTreeMap::new()));
    }
    let _ = options;
    let Some(file) = &contents.hard else { return Ok((0, BTreeMap::new())) };
    let copies = twin::copies(file);
    if let Some((copy, hard)) = newest::<HardFile>(&copies) {
        if hard.identity != identity {
            return damage(File::Hard, 0, "it belongs to another data directory");
        }
        // A vote that only one copy holds would be acted upon, and forgotten when the next change tears it.
        twin::repair(File::Hard, &copies, copy, out);
        return Ok((copy.number, hard.rows.into_iter().collect()));
    }
    if never_acted(file) {
        // The very first write of the file was torn: no vote can have left.
        return Ok((0, BTreeMap::new()));
    }
    damage(File::Hard, 0, "neither copy of terms and votes can be read")
}

/// Whether the second copy was never begun, so that nothing can have been acted upon.
fn never_acted(file: &Bytes) -> bool {
    usize::try_from(twin::COPY)
        .ok()
        .and_then(|copy| file.get(copy..))
        .is_none_or(|second| second.iter().all(|&b| b == 0))
}

/// Where the last usable segment ends.
struct Last {
    number: u64,
    size: u64,
    end: u64,
    sealed: bool,
    /// The highest number that any file has.
    highest: u64,
}

struct Reader {
    identity: Identity,
    bound: bool,
    logs: BTreeMap<GroupId, Vec<Entry>>,
}

/// How a walk through a segment ended.
struct Walked {
    end: u64,
    sealed: bool,
}

impl Reader {
    fn place(&self, segment: u64, offset: u64) -> Place {
        Place { identity: self.identity, segment, offset }
    }

    fn record(&self, number: u64, bytes: &Bytes, offset: u64) -> Option<Record> {
        Record::read(bytes, self.place(number, offset), self.bound)
    }

    fn marker(&self, number: u64, bytes: &Bytes, offset: u64) -> Option<(Kind, Marker)> {
        // A cheap look at the fixed length first, so that a search stays linear.
        let at = usize::try_from(offset).ok()?;
        if bytes.get(at..at + 4)? != 32u32.to_le_bytes() {
            return None;
        }
        let record = self.record(number, bytes, offset)?;
        let marker = Marker::from_wire(record.body).ok().filter(|_| record.kind != Kind::Entry)?;
        Some((record.kind, marker))
    }

    fn segments(&mut self, segments: &BTreeMap<u64, Bytes>, out: &mut Vec<Io>) -> Result<Last, Damage> {
        let highest = segments.last_key_value().map_or(0, |(&number, _)| number);
        let mut last = Last { number: 0, size: 0, end: 0, sealed: true, highest };
        for (&number, bytes) in segments {
            let file = File::Segment(number);
            let first = self.marker(number, bytes, 0).filter(|(kind, _)| *kind == Kind::Segment);
            let Some((_, header)) = first else {
                if let Some(offset) = self.vouched(number, bytes, 0, (number, 0)) {
                    return damage(
                        file,
                        0,
                        format!("the first record is unreadable, and offset {offset} proves it was synced"),
                    );
                }
                // It was never begun, or the next header's chain breaks here. Later segments may follow: this
                // file's removal by an earlier start need not have reached the disk before they did.
                out.push(Io::Remove { file });
                continue;
            };
            if (header.previous_segment, header.previous_end) != (last.number, last.end) || !last.sealed {
                let (previous, end) = (header.previous_segment, header.previous_end);
                let (read, number) = (last.end, last.number);
                let what = format!(
                    "it follows offset {end} of segment {previous}, but segment {number} can be read up to {read} only, and there it is {}sealed",
                    if last.sealed { "" } else { "not " }
                );
                return damage(file, 0, what);
            }
            let walked = self.walk(number, bytes)?;
            if !walked.sealed
                && let Some(offset) = self.vouched(number, bytes, walked.end, (number, walked.end))
            {
                let what = format!(
                    "synced records are unreadable; the record at offset {offset} proves that they were there"
                );
                return damage(file, walked.end, what);
            }
            last = Last { number, size: bytes.len() as u64, end: walked.end, sealed: walked.sealed, highest };
        }
        Ok(last)
    }

    /// The offset of a marker behind `from` that vouches for more than `position`.
    fn vouched(&self, number: u64, bytes: &Bytes, from: u64, position: (u64, u64)) -> Option<u64> {
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

    fn walk(&mut self, number: u64, bytes: &Bytes) -> Result<Walked, Damage> {
        let mut end = MARKER;
        loop {
            if let Some(record) = self.record(number, bytes, end).filter(|record| record.kind == Kind::Entry)
            {
                let at = end;
                end += record.size() as u64;
                self.replay(number, at, record)?;
                continue;
            }
            let next =
                [end.next_multiple_of(SECTOR), end.next_multiple_of(BLOCK)].into_iter().find_map(|offset| {
                    let (kind, marker) = self.marker(number, bytes, offset)?;
                    let follows = (marker.previous_segment, marker.previous_end) == (number, end);
                    (follows && kind != Kind::Segment).then_some((offset, kind))
                });
            match next {
                Some((offset, Kind::Seal)) => return Ok(Walked { end: offset + MARKER, sealed: true }),
                Some((offset, _)) => end = offset + MARKER,
                None => return Ok(Walked { end, sealed: false }),
            }
        }
    }

    fn replay(&mut self, number: u64, offset: u64, record: Record) -> Result<(), Damage> {
        let Record { group, subkind: kind, term, index, body: data, .. } = record;
        let log = self.logs.entry(group).or_default();
        let file = File::Segment(number);
        let Some(keep) =
            index.checked_sub(1).and_then(|n| usize::try_from(n).ok()).filter(|&n| n <= log.len())
        else {
            let what = format!("entry {index} of group {} follows entry {}", group.0, log.len());
            return damage(file, offset, what);
        };
        log.truncate(keep);
        if log.last().is_some_and(|entry| entry.term > term) {
            return damage(file, offset, format!("the term of entry {index} of group {} falls", group.0));
        }
        log.push(Entry { group, term, index, kind, data });
        Ok(())
    }

    /// An entry's term was on the disk before the entry.
    fn check_terms(&self, rows: &BTreeMap<GroupId, Row>, options: &Options) -> Result<(), Damage> {
        #[cfg(feature = "faults")]
        if options.forget_votes || options.accept_recycled {
            return Ok(());
        }
        let _ = options;
        for (group, log) in &self.logs {
            let term = rows.get(group).map_or(0, |row| row.hard.term);
            if log.last().is_some_and(|entry| entry.term > term) {
                return damage(File::Hard, 0, format!("it is older than the log of group {}", group.0));
            }
        }
        Ok(())
    }
}
