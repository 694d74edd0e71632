//! One record: how it is written, and when bytes are one.
//!
//! ```text
//!  0..4    4..8    8      9         10..12   12        13..16   16..24   24..32   32..
//!  length  CRC32   kind   version   group    subkind   0        term     index    body, then zeros to 8
//! ```
//!
//! `length` is the body's. Integers little-endian. The CRC32 is over length, bytes 8..32, the body, **and the
//! place**: the directory's identity, the segment's number, the record's offset. So a record is valid only
//! where it was written: not in another segment (a recycled file's former life), not in another directory.

use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::id::{GroupId, Identity};

/// Bytes before the body.
pub const HEADER: usize = 32;
/// Records begin at multiples of this.
pub const ALIGN: usize = 8;
/// The version of the format.
pub const VERSION: u8 = 1;

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The first of a segment.
    Segment = 1,
    /// Begins a commit.
    Batch = 2,
    /// An entry of a group's log.
    Entry = 3,
    /// Says, after a pause, how far the journal is synced.
    Frontier = 4,
    /// The last of a segment.
    Seal = 5,
}

impl Kind {
    fn of(number: u8) -> Option<Self> {
        [Self::Segment, Self::Batch, Self::Entry, Self::Frontier, Self::Seal]
            .into_iter()
            .find(|kind| *kind as u8 == number)
    }
}

/// Where a record lies; part of its checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The directory.
    pub identity: Identity,
    /// The segment's number.
    pub segment: u64,
    /// The offset in the segment.
    pub offset: u64,
}

/// A record, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What it is.
    pub kind: Kind,
    /// The group, of an entry.
    pub group: GroupId,
    /// The entry's kind.
    pub subkind: u8,
    /// The entry's term.
    pub term: u64,
    /// The entry's index.
    pub index: u64,
    /// The body.
    pub body: Bytes,
}

impl Record {
    /// Bytes that the record takes, padding included.
    #[must_use]
    pub fn size(&self) -> usize {
        size_of_body(self.body.len())
    }

    /// Appends the record to `out`, to be written at `place`.
    pub fn put(&self, place: Place, out: &mut Vec<u8>) {
        let start = out.len();
        let length = u32::try_from(self.body.len()).expect("limits keep bodies far below 4 GiB");
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&[self.kind as u8, VERSION]);
        out.extend_from_slice(&self.group.0.to_le_bytes());
        out.extend_from_slice(&[self.subkind, 0, 0, 0]);
        out.extend_from_slice(&self.term.to_le_bytes());
        out.extend_from_slice(&self.index.to_le_bytes());
        out.extend_from_slice(&self.body);
        let crc = checksum(&out[start..], place, true);
        out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
        out.resize(start + self.size(), 0);
    }

    /// The record at `place.offset` of a segment's bytes, if there is a valid one.
    /// `bound` is true; only the deliberate bug reads checksums without their place.
    #[must_use]
    pub fn read(segment: &Bytes, place: Place, bound: bool) -> Option<Self> {
        let start = usize::try_from(place.offset).ok()?;
        let header = segment.get(start..start.checked_add(HEADER)?)?;
        let kind = Kind::of(header[8])?;
        if header[9] != VERSION {
            return None;
        }
        let length = u32::from_le_bytes(header[0..4].try_into().expect("four bytes")) as usize;
        let end = start.checked_add(HEADER)?.checked_add(length)?;
        let bytes = segment.get(start..end)?;
        let crc = u32::from_le_bytes(header[4..8].try_into().expect("four bytes"));
        let stored = if bound { checksum(bytes, place, true) == crc } else { checksum_of_any(bytes, crc) };
        if !stored {
            return None;
        }
        Some(Self {
            kind,
            group: GroupId(u16::from_le_bytes(header[10..12].try_into().expect("two bytes"))),
            subkind: header[12],
            term: u64::from_le_bytes(header[16..24].try_into().expect("eight bytes")),
            index: u64::from_le_bytes(header[24..32].try_into().expect("eight bytes")),
            body: segment.slice(start + HEADER..end),
        })
    }
}

/// Whether a record lies at `place.offset` that a newer release has written, and that this one cannot read.
#[must_use]
pub fn is_newer(segment: &Bytes, place: Place) -> bool {
    let found = || {
        let start = usize::try_from(place.offset).ok()?;
        let header = segment.get(start..start.checked_add(HEADER)?)?;
        let length = u32::from_le_bytes(header[0..4].try_into().expect("four bytes")) as usize;
        let bytes = segment.get(start..(start + HEADER).checked_add(length)?)?;
        let crc = u32::from_le_bytes(header[4..8].try_into().expect("four bytes"));
        Some(header[9] > VERSION && checksum(bytes, place, true) == crc)
    };
    found().unwrap_or(false)
}

/// Bytes that a record with a body of this length takes.
#[must_use]
pub fn size_of_body(length: usize) -> usize {
    (HEADER + length).next_multiple_of(ALIGN)
}

fn checksum(record: &[u8], place: Place, with_place: bool) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&record[0..4]);
    hasher.update(&record[8..]);
    if with_place {
        // In one piece: each piece costs as much as a short record.
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(&place.identity.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&place.segment.to_le_bytes());
        bytes[24..].copy_from_slice(&place.offset.to_le_bytes());
        hasher.update(&bytes);
    }
    hasher.finalize()
}

/// The deliberate bug "a recycled record is accepted": takes any record whose bytes look whole.
fn checksum_of_any(record: &[u8], crc: u32) -> bool {
    record.len() >= HEADER && crc != 0
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The checksum of a record without padding that lies at a place.
    pub(in crate::journal) fn checksum_at(record: &[u8], place: Place) -> u32 {
        checksum(record, place, true)
    }
}
