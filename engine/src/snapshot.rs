//! A group's state as the bytes of a snapshot file: written in slices while the state goes on, read in pieces.
//!
//! ```text
//!  file:    chunks (protocol/src/chunk.rs): header, rows, rows, …, footer
//!
//!  header (kind 1): "QSNP", version u8, group u16, index u64, term u64, group time u64, configuration, crossings
//!  rows   (kind 2): sections of one table each: table u64, rows u64, the rows (key, value) in key order
//!  footer (kind 3): rows u64 in the whole file, digest u64 of the state
//! ```
//!
//! Integers little-endian, everything in the notation of `protocol/src/wire.rs`. A chunk is valid only in its own file;
//! but the file is the same on every node, and travels byte by byte.
//!
//! Invariants:
//! - The rows are those of the state at the index, however it changes while they are walked.
//! - A file counts only with its footer, and when the digest of what was loaded is the footer's.

mod pass;

use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::backup::Crossing;
use quorate_protocol::chunk::{self, Chunks, FOOTER, FRAME, HEADER, ROWS};
use quorate_protocol::id::{GroupId, Index, Term};
use quorate_protocol::limits::SNAPSHOT_SLICE as SLICE;
use quorate_protocol::wire::{Malformed, Wire};
use quorate_protocol::wire_struct;

use crate::journal::{Conf, Meta};
use crate::state::{Sections, State};
use crate::trash::Trash;
pub use pass::Pass;

/// The version of the format.
const VERSION: u8 = 2;
const MAGIC: u32 = u32::from_le_bytes(*b"QSNP");

wire_struct! {
    /// What a snapshot is of.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Header {
        /// "QSNP".
        pub magic: u32,
        /// The version of the format.
        pub version: u8,
        /// The group.
        pub group: GroupId,
        /// The last entry that the state contains,
        pub index: Index,
        /// and its term.
        pub term: Term,
        /// Group time of the state.
        pub time: u64,
        /// The configuration at the index.
        pub conf: Conf,
        /// How far dead letters had crossed between this group and others.
        pub crossings: Vec<Crossing>,
    }
}

impl Header {
    /// Of this release's format.
    #[must_use]
    pub fn new(group: GroupId, at: (Index, Term), time: u64, conf: Conf, crossings: Vec<Crossing>) -> Self {
        Self { magic: MAGIC, version: VERSION, group, index: at.0, term: at.1, time, conf, crossings }
    }

    fn known(payload: Bytes, of: (GroupId, Index)) -> Result<Self, Malformed> {
        let header = Self::from_wire(payload)?;
        if (header.magic, header.version, (header.group, header.index)) != (MAGIC, VERSION, of) {
            return Err(Malformed("a snapshot of another release, group or index"));
        }
        Ok(header)
    }
}

/// The header of a snapshot, of which these are the first bytes.
///
/// # Errors
/// When there is none, or another one.
pub fn header_of(group: GroupId, index: Index, bytes: Bytes) -> Result<Header, Malformed> {
    let mut chunks = Chunks::new(group, index);
    chunks.feed(bytes);
    match chunks.next()? {
        Some((HEADER, payload)) => Header::known(payload, (group, index)),
        _ => Err(Malformed("a snapshot begins with its header")),
    }
}

/// Makes the bytes of a file, chunk by chunk.
pub struct Writer {
    header: Header,
    offset: u64,
    table: usize,
    rows: u64,
    digest: u64,
    shown: bool,
}

impl Writer {
    /// Begins a snapshot of the state as it is now.
    pub fn new(header: Header, state: &mut State) -> Self {
        state.begin_walk();
        Self { header, offset: 0, table: 0, rows: 0, digest: state.digest(), shown: false }
    }

    /// What it is of.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Bytes made so far.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.offset
    }

    /// Whether nothing has been made yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.offset == 0
    }

    /// The next bytes and where they belong; none when the file is complete.
    pub fn slice(&mut self, state: &mut State) -> Option<(u64, Bytes)> {
        if self.shown {
            return None;
        }
        let start = self.offset;
        let mut out = Vec::new();
        if start == 0 {
            let header = self.header.to_wire();
            self.chunk(HEADER, &header, &mut out);
        }
        let mut rows = Vec::with_capacity(SLICE + FRAME);
        let (count, more) = state.show(&mut self.table, SLICE, &mut rows);
        self.rows += count;
        self.chunk(ROWS, &rows, &mut out);
        if !more {
            let mut footer = Vec::new();
            self.rows.put(&mut footer);
            self.digest.put(&mut footer);
            self.chunk(FOOTER, &footer, &mut out);
            self.shown = true;
        }
        Some((start, out.into()))
    }

    fn chunk(&mut self, kind: u8, payload: &[u8], out: &mut Vec<u8>) {
        let place = (self.header.group, self.header.index, self.offset);
        self.offset += chunk::put(kind, payload, place, out);
    }
}

/// Loads a file piece by piece into a state of its own.
pub struct Loader {
    chunks: Chunks,
    header: Option<Header>,
    state: State,
    /// The rows of the last chunk that are not loaded yet.
    sections: Sections,
    /// What it is given is mapped into memory: the chunk whose rows are being loaded.
    mapped: Option<Bytes>,
    maps: bool,
    rows: u64,
    complete: bool,
}

impl Loader {
    /// A loader of the snapshot of a group at an index.
    #[must_use]
    pub fn new(group: GroupId, index: Index, meta: &Meta) -> Self {
        Self {
            chunks: Chunks::new(group, index),
            header: None,
            state: State::empty(group, meta),
            sections: Sections::default(),
            mapped: None,
            maps: false,
            rows: 0,
            complete: false,
        }
    }

    /// What it will be given is mapped into memory: message bodies from a size on are left where they are, and all
    /// else is copied.
    pub fn leave_from(&mut self, size: usize) {
        self.maps = true;
        self.state.set_map_from(size);
    }

    /// Takes the next bytes, and loads all that can be; true when the snapshot is complete.
    ///
    /// # Errors
    /// When they are not what was written.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<bool, Malformed> {
        self.take(Bytes::copy_from_slice(bytes));
        let mut room = usize::MAX;
        self.work(&mut room)
    }

    /// Takes the next bytes, to be loaded later.
    pub fn take(&mut self, bytes: Bytes) {
        self.chunks.feed(bytes);
    }

    /// Bytes that were taken and are not loaded.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.chunks.waiting() + self.sections.len()
    }

    /// Whether `work` would find something to do.
    #[must_use]
    pub fn has_work(&self) -> bool {
        !self.sections.is_empty() || self.chunks.has_next()
    }

    /// Loads what was taken, as far as `room` goes (see `State::load`); true when the snapshot is complete.
    ///
    /// # Errors
    /// When the bytes are not what was written.
    pub fn work(&mut self, room: &mut usize) -> Result<bool, Malformed> {
        while *room > 0 {
            if !self.sections.is_empty() {
                self.rows += self.state.load(&mut self.sections, room)?;
                if self.sections.is_empty()
                    && let Some(chunk) = self.mapped.take()
                {
                    // A second look, as at a file that is mapped later: one way to take something from a mapping is enough.
                    self.state.look_at(&mut Sections::new(chunk), &mut usize::MAX.clone())?;
                }
                continue;
            }
            let Some((kind, payload)) = self.chunks.next()? else { break };
            // Its checksum costs time too.
            *room = room.saturating_sub(payload.len() / 8);
            match kind {
                HEADER if self.header.is_none() => {
                    self.header = Some(Header::known(payload, self.chunks.of())?)
                }
                ROWS if self.header.is_some() && !self.complete => {
                    let copy = if self.maps { Bytes::copy_from_slice(&payload) } else { payload.clone() };
                    self.mapped = self.maps.then_some(payload);
                    self.sections = Sections::new(copy);
                }
                FOOTER if self.header.is_some() && !self.complete => self.conclude(payload)?,
                _ => return Err(Malformed("a chunk of a snapshot is not where it belongs")),
            }
        }
        Ok(self.complete)
    }

    /// Gives what was loaded away, to be dropped bit by bit.
    pub fn discard(self, trash: &mut Trash) {
        self.state.discard(trash);
    }

    fn conclude(&mut self, mut payload: Bytes) -> Result<(), Malformed> {
        let (rows, digest) = (u64::take(&mut payload)?, u64::take(&mut payload)?);
        if rows != self.rows || digest != self.state.digest() {
            return Err(Malformed("a snapshot's rows are not those that its footer counts"));
        }
        self.complete = true;
        Ok(())
    }

    /// What was loaded.
    ///
    /// # Panics
    /// When the snapshot is not complete.
    #[must_use]
    pub fn into_state(self) -> (Header, State) {
        assert!(self.complete, "only a complete snapshot is a state");
        (self.header.expect("a complete one has a header"), self.state)
    }
}

/// Whether a newer release has written a file: its first chunk is as it was written, and says so.
#[must_use]
pub fn is_newer(file: &Bytes, group: GroupId, index: Index) -> bool {
    let Some(&[l0, l1, l2, l3, c0, c1, c2, c3, HEADER]) = file.first_chunk::<FRAME>() else { return false };
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    let Some(payload) = file.get(FRAME..).and_then(|rest| rest.get(..length)) else { return false };
    let sound = chunk::checksum(HEADER, payload, (group, index, 0)) == u32::from_le_bytes([c0, c1, c2, c3]);
    // Magic and version come first, whatever follows them.
    let newer = payload.get(4).is_some_and(|version| *version > VERSION);
    sound && newer && payload.starts_with(&MAGIC.to_le_bytes())
}

/// The header of a snapshot file whose chunks are all as they were written; what its rows say is not looked at.
///
/// # Errors
/// When something is damaged or missing.
pub fn check(file: &Bytes, group: GroupId, index: Index) -> Result<Header, Malformed> {
    check_upto(file, group, index, &mut 0)
}

/// The same; leaves in `offset` where the last chunk begins that was looked at, which is the bad one if there is one.
///
/// # Errors
/// When something is damaged or missing.
pub fn check_upto(
    file: &Bytes,
    group: GroupId,
    index: Index,
    offset: &mut usize,
) -> Result<Header, Malformed> {
    let mut header = None;
    loop {
        let at = *offset;
        let frame = file.get(at..).and_then(|rest| rest.first_chunk::<FRAME>());
        let Some(&[l0, l1, l2, l3, c0, c1, c2, c3, kind]) = frame else {
            return Err(Malformed("a snapshot ends without its footer"));
        };
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let Some(payload) = file.get(at + FRAME..).and_then(|rest| rest.get(..length)) else {
            return Err(Malformed("a snapshot ends within a chunk"));
        };
        if chunk::checksum(kind, payload, (group, index, at as u64)) != u32::from_le_bytes([c0, c1, c2, c3]) {
            return Err(Malformed("a chunk of a snapshot is damaged"));
        }
        match (kind, header) {
            (HEADER, None) => {
                let found = Header::from_wire(file.slice(at + FRAME..at + FRAME + length))?;
                if (found.magic, found.version) != (MAGIC, VERSION) {
                    return Err(Malformed("a snapshot of another release"));
                }
                header = Some(found);
            }
            (ROWS, Some(found)) => header = Some(found),
            (FOOTER, Some(found)) => return Ok(found),
            _ => return Err(Malformed("a chunk of a snapshot is not where it belongs")),
        }
        *offset += FRAME + length;
    }
}

#[cfg(test)]
mod tests;
