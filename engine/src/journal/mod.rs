//! The node's journal: what is written where, and what is read back. Logic only, no I/O.
//!
//! Charter: one journal for all groups, in numbered segment files; one commit (write, then sync) for all that
//! waits. `Journal::plan` says what to write, a shell does it in order; `recover` reads a directory's bytes.
//! The bytes are drawn in docs/storage.md.
//!
//! Invariants:
//! - Bytes that were synced are never written again: commits begin at multiples of `SECTOR`.
//! - Every commit begins with a marker that says up to where the journal was known to be synced before it,
//!   and where the record before it ended; after a pause a `Frontier` says so in a block of its own, or the
//!   manifest, where a segment has no room for one. Bad bytes below any such position are damage, above it a torn tail.
//! - Segment numbers rise and are never used twice; a restart seals the segment that it found open, at the
//!   recovered end, and goes on in the next.
//! - Nothing is committed to a segment before the manifest names it, synced.
//! - Rows (terms and votes above all) reach the disk, in both copies, before the entries of the same commit.
//! - A segment is removed when its entries, and all in the segments before it, lie at or below their groups'
//!   snapshots, and only after the manifest says that it need not be there.

mod inspect;
mod manifest;
pub mod record;
mod recover;
pub mod twin;
mod walk;

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::id::{Boot, ClusterId, GroupId, Identity, Index, NodeId, Replica, Term};
use quorate_protocol::wire::Wire;
use quorate_protocol::{wire_enum, wire_struct};

pub use inspect::{Inspection, SegmentReport, entries_at, inspect};
pub use manifest::HardFile;
pub use recover::{Contents, Damage, Options, Refusal, read_meta, recover};

use crate::snapshot;
use manifest::Manifest;
use record::{ALIGN, HEADER, Kind, Place, Record, size_of_body};

/// An entry that holds a batch of commands (or nothing: a new leader's first).
pub const COMMANDS: u8 = 0;
/// An entry that changes a group's replicas; see `consensus::change`.
pub const CONFIGURATION: u8 = 1;
/// In a journal only: the group's log begins anew, empty, behind this index and term.
pub const RESET: u8 = 2;

wire_struct! {
    /// One entry of a group's Raft log.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Entry {
        /// The group.
        pub group: GroupId,
        /// The term in which it was proposed.
        pub term: Term,
        /// Its place in the log. It replaces whatever the log held there and after it.
        pub index: Index,
        /// `COMMANDS`, `CONFIGURATION`, or (in a journal) `RESET`.
        pub kind: u8,
        /// The entry's bytes.
        pub data: Bytes,
    }
}

wire_struct! {
    /// Raft's HardState without the commit index, which is found again from the log.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Hard {
        /// The newest term seen.
        pub term: Term,
        /// Who got the vote in that term; node 0 is nobody.
        pub vote: Replica,
    }
}

wire_struct! {
    /// A group's configuration, as the entry at `index` (or the founding, at 0) has left it. While `outgoing` is not
    /// empty it is a joint one: every decision needs a majority of both sets of voters.
    ///
    /// Source: Ongaro, "Consensus: Bridging Theory and Practice", 2014, §4.3.
    #[derive(Debug, Clone, PartialEq, Eq, Default)]
    pub struct Conf {
        /// The entry that made it.
        pub index: Index,
        /// The voters.
        pub voters: Vec<Replica>,
        /// The voters before, while the change is under way.
        pub outgoing: Vec<Replica>,
        /// Replicas that follow without a vote.
        pub learners: Vec<Replica>,
        /// The serial number of the next replica.
        pub next: u32,
    }
}

wire_enum! {
    /// Whether a node's replica of a group may act.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub enum Standing {
        /// There is none: never was, or it was removed from the group.
        #[default]
        Absent = 0,
        /// It is whole.
        Whole = 1,
        /// It cannot prove that it has all that it acknowledged: it is silent for ever, and waits to be replaced by
        /// a new incarnation.
        Lost = 2,
    }
}

wire_struct! {
    /// What a node must never forget of its replica of a group.
    #[derive(Debug, Clone, PartialEq, Eq, Default)]
    pub struct Row {
        /// Term and vote.
        pub hard: Hard,
        /// The replica's incarnation; of an absent one the last that there was.
        pub incarnation: u32,
        /// Whether it may act.
        pub standing: Standing,
        /// The newest configuration that was applied. Durable before any entry behind the next one is written, so
        /// that a restart never falls back by more than one change.
        pub conf: Conf,
        /// Index and term of the snapshot from which the replica starts; 0 when there is none. Its log begins
        /// behind it.
        pub snapshot: (Index, Term),
    }
}

wire_struct! {
    /// What a data directory is: written when it is founded, `boot` raised at every start.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Meta {
        /// The cluster.
        pub cluster: ClusterId,
        /// The node.
        pub node: NodeId,
        /// The directory itself.
        pub identity: Identity,
        /// The number of this start.
        pub boot: Boot,
        /// Partitions of the cluster.
        pub partitions: u16,
        /// The nodes with which the cluster was founded, and their peer addresses.
        pub founders: Vec<(NodeId, String)>,
    }
}

/// What must be on the disk before what waits for it may leave: one turn's worth.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Persist {
    /// Rises by one from batch to batch.
    pub seq: u64,
    /// What changed of groups besides their logs. A snapshot that is named here is on stable storage already, and
    /// what it covers of the log is not needed any more.
    pub rows: Vec<(GroupId, Row)>,
    /// Entries in log order within each group.
    pub entries: Vec<Entry>,
}

/// What a node finds when it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// The directory, `boot` already raised and synced.
    pub meta: Meta,
    /// What is known of each group besides its log; a group that is missing was never held here.
    pub rows: BTreeMap<GroupId, Row>,
    /// The bytes of each group's snapshot file, if its row names one; checked already.
    pub snapshots: BTreeMap<GroupId, Bytes>,
    /// Each group's log behind its snapshot (from index 1 without one), without holes.
    pub entries: BTreeMap<GroupId, Vec<Entry>>,
    /// What could not be read, for the log. The groups that may have lost something by it are `Lost`.
    pub damage: Vec<Damage>,
}

impl Recovered {
    /// The groups whose replicas here have lost what they acknowledged, in this start or one before it.
    pub fn lost(&self) -> impl Iterator<Item = GroupId> {
        self.rows.iter().filter(|(_, row)| row.standing == Standing::Lost).map(|(&group, _)| group)
    }
}

/// A file of a data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum File {
    /// What the directory is.
    Meta,
    /// The manifest: the groups' rows, and which segments must be there.
    Hard,
    /// A segment of the journal.
    Segment(u64),
    /// A group's state at an index of its log.
    Snapshot(GroupId, Index),
}

impl File {
    /// Its path within the directory.
    #[must_use]
    pub fn path(self) -> String {
        match self {
            Self::Meta => "meta".into(),
            Self::Hard => "hardstate".into(),
            Self::Segment(number) => format!("journal/{number:020}.seg"),
            Self::Snapshot(group, index) => format!("snapshots/{:05}-{index:020}.snap", group.0),
        }
    }
}

/// One thing for a shell to do; the order counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Io {
    /// Make a segment file of this many zero bytes. What it held before does not matter.
    Create {
        /// The file.
        file: File,
        /// Its size.
        size: u64,
    },
    /// Write bytes.
    Write {
        /// The file; made if it is not there.
        file: File,
        /// Where.
        offset: u64,
        /// What.
        bytes: Bytes,
    },
    /// Wait until everything written to a file is on stable storage, and the file's name too.
    Sync {
        /// The file.
        file: File,
    },
    /// Take a file away, if it is there: nobody needs it any more, and it may come back after a crash.
    Remove {
        /// The file.
        file: File,
    },
}

/// Commits, markers and seals begin at multiples of this, so that no synced sector is written again.
pub const SECTOR: u64 = 512;
/// Frontiers begin at multiples of this: another block than the one they vouch for.
pub const BLOCK: u64 = 4096;
/// Bytes of a segment in a server: room for the largest entry, and little beyond what is live. See decision 8.
pub const SEGMENT_SIZE: u64 = 16 << 20;

wire_struct! {
    /// The body of a marker (`Batch`, `Frontier`, `Seal`, and a segment's first record).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Marker {
        /// Up to where the journal was known to be synced: the segment,
        pub synced_segment: u64,
        /// and the offset in it.
        pub synced_offset: u64,
        /// The segment of the record before it (another one, in a segment's first record),
        pub previous_segment: u64,
        /// and where that record ended.
        pub previous_end: u64,
    }
}

/// Bytes of a marker record.
const MARKER: u64 = (HEADER + 32) as u64;

/// Where the next record goes, and what is known of the disk. See the top of the file.
#[derive(Debug)]
pub struct Journal {
    manifest: Manifest,
    segment_size: u64,
    /// The open segment, its size, and the end of its last record.
    segment: u64,
    size: u64,
    end: u64,
    /// What is known to be synced, and what will be when the plan is done.
    synced: (u64, u64),
    planned: (u64, u64),
    /// Whether a frontier would say something new.
    news: bool,
}

impl Journal {
    /// Plans one commit for all batches. The shell does it all, in order, then says `done`.
    pub fn plan(&mut self, batches: &[Persist], out: &mut Vec<Io>) {
        let mut removed = Vec::new();
        let cuts = self.manifest.take(batches, (self.segment, self.end), self.synced, out, &mut removed);
        let entries = batches.iter().flat_map(|batch| &batch.entries).enumerate();
        let mut entries =
            entries.filter(|(at, entry)| cuts.keep(*at, entry)).map(|(_, entry)| entry).peekable();
        while entries.peek().is_some() {
            let first = size_of_body(entries.peek().expect("it was just seen").data.len()) as u64;
            if self.end.next_multiple_of(SECTOR) + MARKER + first + room_for_seal() > self.size {
                self.roll(first, out);
            }
            let offset = self.end.next_multiple_of(SECTOR);
            let mut bytes = Vec::new();
            self.mark(Kind::Batch, offset, &mut bytes);
            while let Some(entry) = entries.peek() {
                let at = offset + bytes.len() as u64;
                if at + size_of_body(entry.data.len()) as u64 + room_for_seal() > self.size {
                    break;
                }
                record_of(entry).put(self.place(at), &mut bytes);
                self.manifest.pins.note(self.segment, entry.group, entry.index, entry.kind);
                entries.next();
            }
            self.write(offset, bytes, out);
        }
        if self.planned != self.synced {
            out.push(Io::Sync { file: File::Segment(self.segment) });
            self.news = true;
        }
        out.extend(removed.into_iter().map(|file| Io::Remove { file }));
    }

    /// Everything that was planned is done.
    pub fn done(&mut self) {
        self.synced = self.planned;
    }

    /// Plans a frontier, if there is anything that it could vouch for. Then `done`, as after `plan`.
    pub fn idle(&mut self, out: &mut Vec<Io>) {
        let offset = self.end.next_multiple_of(BLOCK);
        if !core::mem::take(&mut self.news) {
            return;
        }
        if offset + MARKER + room_for_seal() > self.size {
            // There is no room for one at the segment's end. The manifest says the same, and needs no new segment for that,
            // which a full disk may not have.
            return self.manifest.write(self.segment, self.synced, out);
        }
        let mut bytes = Vec::new();
        self.mark(Kind::Frontier, offset, &mut bytes);
        self.write(offset, bytes, out);
        out.push(Io::Sync { file: File::Segment(self.segment) });
    }

    /// Whether `idle` would plan something.
    #[must_use]
    pub fn has_news(&self) -> bool {
        self.news
    }

    /// The segment after the open one: the shell may make its file ahead of need.
    #[must_use]
    pub fn next_segment(&self) -> (File, u64) {
        (File::Segment(self.segment + 1), self.segment_size)
    }

    /// Whether the open segment is filled so far that the next one is worth making: a node that writes
    /// little never makes one in vain.
    #[must_use]
    pub fn wants_next(&self) -> bool {
        self.end >= self.size / 4
    }

    fn place(&self, offset: u64) -> Place {
        Place { identity: self.manifest.meta.identity, segment: self.segment, offset }
    }

    fn mark(&self, kind: Kind, offset: u64, bytes: &mut Vec<u8>) {
        let marker = Marker {
            synced_segment: self.synced.0,
            synced_offset: self.synced.1,
            previous_segment: self.segment,
            previous_end: self.end,
        };
        marker_record(kind, marker).put(self.place(offset), bytes);
    }

    fn write(&mut self, offset: u64, bytes: Vec<u8>, out: &mut Vec<Io>) {
        assert!(offset >= self.end && offset.is_multiple_of(ALIGN as u64), "the journal only grows");
        self.end = offset + bytes.len() as u64;
        assert!(self.end <= self.size, "a record does not cross its segment's end");
        self.planned = (self.segment, self.end);
        out.push(Io::Write { file: File::Segment(self.segment), offset, bytes: bytes.into() });
    }

    /// Seals the open segment and opens the next one, large enough for a record of `first` bytes. The manifest names it
    /// before anything is committed there: otherwise it could vanish, and with it what was acknowledged, and nobody
    /// would miss it.
    fn roll(&mut self, first: u64, out: &mut Vec<Io>) {
        self.seal(out);
        self.open(self.segment + 1, first, out);
        self.vouch(out);
    }

    /// Says in the manifest that the open segment is there, and synced as far as is planned by now.
    fn vouch(&mut self, out: &mut Vec<Io>) {
        out.push(Io::Sync { file: File::Segment(self.segment) });
        self.manifest.write(self.segment, self.planned, out);
    }

    fn seal(&mut self, out: &mut Vec<Io>) {
        let offset = self.end.next_multiple_of(SECTOR);
        let mut bytes = Vec::new();
        self.mark(Kind::Seal, offset, &mut bytes);
        self.write(offset, bytes, out);
        out.push(Io::Sync { file: File::Segment(self.segment) });
    }

    /// Opens a segment behind the sealed one.
    fn open(&mut self, number: u64, first: u64, out: &mut Vec<Io>) {
        let (previous_segment, previous_end) = (self.segment, self.end);
        self.manifest.pins.open(number);
        self.segment = number;
        self.end = 0;
        self.size =
            self.segment_size.max((2 * SECTOR + MARKER + first + room_for_seal()).next_multiple_of(BLOCK));
        out.push(Io::Create { file: File::Segment(number), size: self.size });
        let marker = Marker {
            synced_segment: previous_segment,
            synced_offset: previous_end,
            previous_segment,
            previous_end,
        };
        let mut bytes = Vec::new();
        marker_record(Kind::Segment, marker).put(self.place(0), &mut bytes);
        self.write(0, bytes, out);
    }
}

fn room_for_seal() -> u64 {
    SECTOR + MARKER
}

fn marker_record(kind: Kind, marker: Marker) -> Record {
    Record { kind, group: GroupId(0), subkind: 0, term: 0, index: 0, body: marker.to_wire() }
}

fn record_of(entry: &Entry) -> Record {
    Record {
        kind: Kind::Entry,
        group: entry.group,
        subkind: entry.kind,
        term: entry.term,
        index: entry.index,
        body: entry.data.clone(),
    }
}

/// Whether the bytes of a snapshot file are those that were written; what the rows in it say is not looked at.
#[must_use]
pub fn is_sound(file: &Bytes, group: GroupId, index: Index) -> bool {
    unsound_at(file, group, index).is_none()
}

/// Where in a snapshot file the first chunk begins that is not what was written.
#[must_use]
pub fn unsound_at(file: &Bytes, group: GroupId, index: Index) -> Option<u64> {
    let mut offset = 0;
    match snapshot::check_upto(file, group, index, &mut offset) {
        Ok(header) if (header.group, header.index) == (group, index) => None,
        // It is whole, and somebody else's.
        Ok(_) => Some(0),
        Err(_) => Some(offset as u64),
    }
}

/// What is to be done to found an empty directory, in a life of its node (0 is the first). Afterwards `recover` makes
/// its first start.
pub fn found(meta: &Meta, life: u32, out: &mut Vec<Io>) {
    let unborn = Meta { boot: Boot::before(life), ..meta.clone() };
    // Replicas of former lives are not taken for ones of this life, whoever still speaks to them.
    let before = Replica::new(meta.node, life, 0).incarnation;
    let void = |group| (GroupId(group), Row { incarnation: before, ..Row::default() });
    let rows = if life > 0 { (0..=meta.partitions).map(void).collect() } else { Vec::new() };
    twin::replace(File::Meta, 1, &unborn.to_wire(), out);
    let contents = HardFile { meta: unborn, segments: (0, 0), synced: (0, 0), rows, since: Vec::new() };
    twin::replace(File::Hard, 1, &contents.to_wire(), out);
}

/// What is to be done to found a directory whose groups begin with these rows, and with snapshots that are on stable
/// storage already. The manifest comes first: with it, and not before, the directory says what it is.
pub fn found_with(meta: &Meta, rows: Vec<(GroupId, Row)>, out: &mut Vec<Io>) {
    // As after a first start: without the manifest such a directory has lost what the rows named, and is not a new one.
    let meta = &Meta { boot: Boot(meta.boot.0 + 1), ..meta.clone() };
    let contents = HardFile { meta: meta.clone(), segments: (0, 0), synced: (0, 0), rows, since: Vec::new() };
    twin::replace(File::Hard, 1, &contents.to_wire(), out);
    twin::replace(File::Meta, 1, &meta.to_wire(), out);
}

#[cfg(test)]
mod tests;
