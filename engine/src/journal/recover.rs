//! Reading a data directory back: what is whole, what is a torn tail, what is damage.
//!
//! Charter: takes the bytes of all files, returns what the node goes on from, a journal that writes behind
//! it, and what must be done to the files first. Nothing is guessed: a group that may have lost anything that
//! it acknowledged is `Lost`, on the disk too before the node speaks, and the node goes on without it. Refused is
//! only a directory that cannot say whose it is, and one of which a newer release has written something: there
//! nothing is damaged.
//!
//! Invariants:
//! - Bad bytes in the journal may have been anybody's: every group that relies on it is lost, and all of the
//!   journal goes. A bad snapshot, or a log that does not fit its row, is one group's loss.
//! - What was read may be in the system's memory only, if just the process died: it is synced before anything
//!   relies on it. What only one copy of a twin holds is written to the other as well.
//! - The manifest is written when the new segment is there, and before anything is removed: a start that is cut
//!   short finds what this one found.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::id::{Boot, GroupId, Index};
use quorate_protocol::wire::Wire;

use super::manifest::{HardFile, Manifest, Pins};
use super::walk::{Last, Reader};
use super::{Entry, File, Io, Journal, MARKER, Meta, Recovered, Row, SECTOR, is_sound, twin};
use crate::snapshot;

/// The bytes of a data directory.
#[derive(Debug, Clone, Default)]
pub struct Contents {
    /// The file `meta`, if it is there.
    pub meta: Option<Bytes>,
    /// The file `hardstate`, if it is there.
    pub hard: Option<Bytes>,
    /// The segments, by number.
    pub segments: BTreeMap<u64, Bytes>,
    /// The snapshots, by group and index.
    pub snapshots: BTreeMap<(GroupId, Index), Bytes>,
}

/// Something that cannot be read as it was written.
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
        write!(f, "{} is damaged at offset {offset}: {what}", file.path())
    }
}

/// Why a directory is not started on. Nothing of it is changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It cannot say whose it is.
    Nameless(Damage),
    /// A newer release has written something that this one cannot read.
    Newer(File, u64),
}

impl Refusal {
    fn nameless<T>(what: &str) -> Result<T, Self> {
        Err(Self::Nameless(Damage { file: File::Meta, offset: 0, what: what.into() }))
    }
}

impl core::fmt::Display for Refusal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Nameless(damage) => damage.fmt(f),
            Self::Newer(file, offset) => {
                write!(f, "{} was written by a newer release (at offset {offset})", file.path())
            }
        }
    }
}

/// How a directory is read.
#[derive(Debug, Clone)]
pub struct Options {
    /// The size of new segments.
    pub segment_size: u64,
    /// Groups whose snapshots could not be loaded, though their bytes are as they were written.
    pub unreadable: BTreeMap<GroupId, Damage>,
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
            unreadable: BTreeMap::new(),
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
/// When it holds files but does not say what it is, or says it in words of a newer release.
pub fn read_meta(contents: &Contents) -> Result<Option<(u64, Meta)>, Refusal> {
    let copies = copies_of(contents.meta.as_ref());
    refuse_newer::<Meta>(File::Meta, &copies)?;
    let own = newest::<Meta>(&copies).map(|(copy, meta)| (copy.number, meta));
    let copies = copies_of(contents.hard.as_ref());
    refuse_newer::<HardFile>(File::Hard, &copies)?;
    let copied = newest::<HardFile>(&copies).map(|(_, hard)| hard.meta);
    match (own, copied) {
        // A start writes the manifest first.
        (Some((number, own)), Some(copied)) if own.identity == copied.identity => {
            Ok(Some((number, if own.boot > copied.boot { own } else { copied })))
        }
        (Some(own), _) => Ok(Some(own)),
        (None, Some(copied)) => Ok(Some((0, copied))),
        (None, None) => {
            if contents.hard.is_some() || !contents.segments.is_empty() || !contents.snapshots.is_empty() {
                let what =
                    "neither it nor its copy in hardstate can be read, but the directory has been used";
                return Refusal::nameless(what);
            }
            Ok(None)
        }
    }
}

fn copies_of(file: Option<&Bytes>) -> Vec<twin::Copy> {
    file.map(twin::copies).unwrap_or_default()
}

/// A copy with a sound checksum is as somebody has written it. If it cannot be read all the same, that was a newer release;
/// an older copy beside it says nothing any more.
fn refuse_newer<T: Wire>(file: File, copies: &[twin::Copy]) -> Result<(), Refusal> {
    let newer = copies.iter().find(|copy| T::from_wire(copy.contents.clone()).is_err());
    newer.map_or(Ok(()), |copy| Err(Refusal::Newer(file, copy.offset)))
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
/// When the directory cannot say whose it is, or a newer release has written something of it.
pub fn recover(contents: &Contents, options: &Options) -> Result<(Recovered, Journal, Vec<Io>), Refusal> {
    let Some((meta_number, mut meta)) = read_meta(contents)? else {
        return Refusal::nameless("the directory was never founded");
    };
    let mut found = Found::default();
    let mut out = Vec::new();
    let (number, hard) = found.read_hard(contents, &meta, options, &mut out);
    repair_meta(contents, &mut out);
    let (last, pins) = found.read_journal(contents, &hard, options)?;
    found.read_snapshots(contents, options)?;
    meta.boot = Boot(meta.boot.0 + 1);
    let highest = contents.segments.last_key_value().map_or(0, |(&number, _)| number).max(hard.segments.1);
    // Without a manifest nobody knows which numbers were used before: they are left far behind.
    let highest = if found.unknown { highest.max(meta.boot.0 << 24) } else { highest };
    let since = hard.since.iter().copied().collect();
    let manifest = Manifest { meta: meta.clone(), first: 0, rows: found.rows.clone(), since, pins, number };
    let mut journal = Journal {
        manifest,
        segment_size: options.segment_size,
        segment: last.number,
        size: last.size,
        end: last.end,
        synced: (last.number, last.end),
        planned: (last.number, last.end),
        news: false,
    };
    journal.begin_behind(&last, highest + 1, &mut out);
    for group in &found.anew {
        journal.manifest.begin(*group, (journal.segment, 0));
    }
    journal.manifest.first = journal.manifest.pins.first_needed(&found.rows, journal.segment);
    journal.manifest.pins.release(journal.manifest.first);
    journal.vouch(&mut out);
    twin::replace(File::Meta, meta_number + 1, &meta.to_wire(), &mut out);
    found.remove_the_rest(contents, &journal, &mut out);
    journal.done();
    let Found { rows, snapshots, entries, damage, .. } = found;
    Ok((Recovered { meta, rows, snapshots, entries, damage }, journal, out))
}

/// The replacement begins with the first copy, which may be the only good one.
fn repair_meta(contents: &Contents, out: &mut Vec<Io>) {
    let copies = copies_of(contents.meta.as_ref());
    if let Some((copy, _)) = newest::<Meta>(&copies) {
        twin::repair(File::Meta, &copies, copy, out);
    }
}

impl Journal {
    /// Goes on in a new segment behind what was read. The old one is never appended to.
    fn begin_behind(&mut self, last: &Last, number: u64, out: &mut Vec<Io>) {
        if last.size > 0 {
            // The seal below, or the next segment's header, vouches for these bytes. Segments before this one
            // are synced for certain: a segment's header is written only behind the synced seal of the one before.
            out.push(Io::Sync { file: File::Segment(last.number) });
        }
        if !last.sealed {
            // The tail may hold torn bytes; what is behind the seal is never looked at again.
            self.size = self.size.max(last.end.next_multiple_of(SECTOR) + MARKER);
            self.seal(out);
        }
        self.open(number, 0, out);
    }
}

/// What a start has found.
#[derive(Default)]
struct Found {
    rows: BTreeMap<GroupId, Row>,
    snapshots: BTreeMap<GroupId, Bytes>,
    entries: BTreeMap<GroupId, Vec<Entry>>,
    damage: Vec<Damage>,
    /// Groups of which nothing in the journal counts any more.
    anew: Vec<GroupId>,
    /// Whether the manifest could not be read.
    unknown: bool,
}

impl Found {
    /// Reads the manifest, or finds out what its loss means.
    fn read_hard(
        &mut self,
        contents: &Contents,
        meta: &Meta,
        options: &Options,
        out: &mut Vec<Io>,
    ) -> (u64, HardFile) {
        let copies = copies_of(contents.hard.as_ref());
        let mut what = "neither copy can be read";
        if let Some((copy, mut hard)) = newest::<HardFile>(&copies) {
            if hard.meta.identity == meta.identity {
                // A vote that only one copy holds would be acted upon, and forgotten when the next change tears it.
                twin::repair(File::Hard, &copies, copy, out);
                forget(&mut hard.rows, options);
                self.rows = hard.rows.iter().cloned().collect();
                return (copy.number, hard);
            }
            what = "it belongs to another data directory";
        }
        let mut hard = HardFile {
            meta: meta.clone(),
            segments: (0, 0),
            synced: (0, 0),
            rows: Vec::new(),
            since: Vec::new(),
        };
        // Before the first start is done, nothing was ever acted upon.
        if meta.boot > Boot(0) {
            self.damage.push(Damage { file: File::Hard, offset: 0, what: what.into() });
            self.unknown = true;
            self.rows = (0..=meta.partitions).map(|group| (GroupId(group), Row::lost())).collect();
            hard.rows = self.rows.iter().map(|(&group, row)| (group, row.clone())).collect();
        }
        (copies.first().map_or(0, |copy| copy.number), hard)
    }

    /// Reads the journal: the logs, where it ends, and what pins its segments. Without a readable one there is none.
    fn read_journal(
        &mut self,
        contents: &Contents,
        hard: &HardFile,
        options: &Options,
    ) -> Result<(Last, Pins), Refusal> {
        if self.unknown {
            return Ok((Last::none(), Pins::default()));
        }
        let mut reader = Reader::new(hard, options.segment_size, options.bound());
        let read = reader.segments(&contents.segments);
        if let Some((number, offset)) = reader.newer {
            return Err(Refusal::Newer(File::Segment(number), offset));
        }
        let last = match read {
            Ok(last) => last,
            Err(damage) => {
                self.damage.push(damage);
                self.rows.values_mut().filter(|row| row.is_held()).for_each(Row::lose);
                return Ok((Last::none(), Pins::default()));
            }
        };
        (self.entries, self.anew) = reader.conclude();
        for (group, damage) in reader.broken {
            self.lose(group, damage);
        }
        Ok((last, reader.pins))
    }

    /// Looks for the snapshot of every row that names one.
    fn read_snapshots(&mut self, contents: &Contents, options: &Options) -> Result<(), Refusal> {
        let named = self.rows.iter().filter(|(_, row)| row.is_held() && row.snapshot.0 > 0);
        let named: Vec<_> = named.map(|(&group, row)| (group, row.snapshot.0)).collect();
        for (group, index) in named {
            let file = File::Snapshot(group, index);
            let bytes = contents.snapshots.get(&(group, index));
            if bytes.is_some_and(|bytes| snapshot::is_newer(bytes, group, index)) {
                return Err(Refusal::Newer(file, 0));
            }
            if let Some(damage) = options.unreadable.get(&group) {
                self.lose(group, damage.clone());
                continue;
            }
            let what = match bytes {
                Some(bytes) if is_sound(bytes, group, index) => {
                    self.snapshots.insert(group, bytes.clone());
                    continue;
                }
                Some(_) => "its chunks are not those that were written",
                None => "it is missing",
            };
            self.lose(group, Damage { file, offset: contents.unsound_at(group, index), what: what.into() });
        }
        Ok(())
    }

    /// A group may have lost something that it acknowledged.
    fn lose(&mut self, group: GroupId, damage: Damage) {
        self.damage.push(damage);
        self.rows.entry(group).or_insert_with(Row::lost).lose();
        self.entries.remove(&group);
        self.anew.push(group);
    }

    /// Takes away what nobody needs: segments in front, files that were never begun, snapshots that no row names.
    fn remove_the_rest(&self, contents: &Contents, journal: &Journal, out: &mut Vec<Io>) {
        let kept = |number: u64| journal.manifest.pins.has(number);
        let segments = contents.segments.keys().filter(|&&number| !kept(number));
        out.extend(segments.map(|&number| Io::Remove { file: File::Segment(number) }));
        let named = |&(group, index): &(GroupId, Index)| {
            self.snapshots.contains_key(&group)
                && self.rows.get(&group).is_some_and(|row| row.snapshot.0 == index)
        };
        let snapshots = contents.snapshots.keys().filter(|key| !named(key));
        out.extend(snapshots.map(|&(group, index)| Io::Remove { file: File::Snapshot(group, index) }));
    }
}

/// The deliberate bug "a vote is forgotten".
fn forget(rows: &mut [(GroupId, Row)], options: &Options) {
    #[cfg(feature = "faults")]
    if options.forget_votes {
        rows.iter_mut().for_each(|(_, row)| row.hard = super::Hard::default());
    }
    let _ = (rows, options);
}
