//! The frames of a snapshot file: so that whoever copies one can see that it is whole, whatever is in it.
//!
//! ```text
//!  chunk:   0..4      4..8    8      9..
//!           length    CRC32   kind   payload
//! ```
//!
//! `length` is the payload's; integers little-endian. The CRC32 is over kind and payload, **and the place**: group,
//! index, offset of the chunk. So a chunk is valid only in its own file; but the file is the same on every node.
//!
//! Invariant: nothing is reserved that the bytes which were given do not fill.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::id::{GroupId, Index};
use crate::limits::{REQUEST_MAX, SNAPSHOT_SLICE};
use crate::wire::Malformed;

/// The kind of the first chunk: what the file is of.
pub const HEADER: u8 = 1;
/// The kind of the chunks between: rows.
pub const ROWS: u8 = 2;
/// The kind of the last chunk.
pub const FOOTER: u8 = 3;
/// Bytes of a chunk before its payload.
pub const FRAME: usize = 9;
/// A payload at the most: a slice, and one large row that did not fit it.
const PAYLOAD_MAX: usize = SNAPSHOT_SLICE + 2 * REQUEST_MAX;

/// Where a chunk lies: the file's group and index, and the offset in it.
pub type Place = (GroupId, Index, u64);

/// The checksum of a chunk.
#[must_use]
pub fn checksum(kind: u8, payload: &[u8], (group, index, offset): Place) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[kind]);
    hasher.update(payload);
    hasher.update(&group.0.to_le_bytes());
    hasher.update(&index.to_le_bytes());
    hasher.update(&offset.to_le_bytes());
    hasher.finalize()
}

/// Appends a chunk; returns its length.
///
/// # Panics
/// When the payload is longer than 4 GiB.
pub fn put(kind: u8, payload: &[u8], place: Place, out: &mut Vec<u8>) -> u64 {
    let length = u32::try_from(payload.len()).expect("a slice is far below 4 GiB");
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&checksum(kind, payload, place).to_le_bytes());
    out.push(kind);
    out.extend_from_slice(payload);
    (FRAME + payload.len()) as u64
}

/// Reads a file's chunks as its bytes come. What comes is kept as it is: only a chunk that lies in several pieces is
/// copied, and not before it is read.
#[derive(Debug)]
pub struct Chunks {
    group: GroupId,
    index: Index,
    offset: u64,
    pieces: VecDeque<Bytes>,
    waiting: usize,
}

impl Chunks {
    /// Of the snapshot of a group at an index.
    #[must_use]
    pub fn new(group: GroupId, index: Index) -> Self {
        Self { group, index, offset: 0, pieces: VecDeque::new(), waiting: 0 }
    }

    /// Whose file it is.
    #[must_use]
    pub fn of(&self) -> (GroupId, Index) {
        (self.group, self.index)
    }

    /// Takes the next bytes.
    pub fn feed(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.waiting += bytes.len();
            self.pieces.push_back(bytes);
        }
    }

    /// Bytes that were taken and are in no chunk yet.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// The first bytes that wait, if there are so many.
    fn peek<const N: usize>(&self) -> Option<[u8; N]> {
        let mut found = [0; N];
        let mut bytes = self.pieces.iter().flatten();
        for byte in &mut found {
            *byte = *bytes.next()?;
        }
        Some(found)
    }

    /// Takes the first bytes that wait; there are so many.
    fn split(&mut self, length: usize) -> Bytes {
        self.waiting -= length;
        let mut found = BytesMut::new();
        loop {
            let missing = length - found.len();
            let is_whole = self.pieces.front().is_some_and(|piece| piece.len() <= missing);
            match if is_whole { self.pieces.pop_front() } else { None } {
                Some(piece) if piece.len() == length => return piece,
                Some(piece) => {
                    found.reserve(missing);
                    found.extend_from_slice(&piece);
                }
                None if missing == 0 => return found.freeze(),
                None => {
                    let piece = self.pieces.front_mut().expect("so many bytes wait").split_to(missing);
                    if found.is_empty() {
                        return piece;
                    }
                    found.extend_from_slice(&piece);
                    return found.freeze();
                }
            }
        }
    }

    /// Whether `next` would find a chunk, or that there is none.
    #[must_use]
    pub fn has_next(&self) -> bool {
        self.peek().is_some_and(|length| {
            let length = u32::from_le_bytes(length) as usize;
            length > PAYLOAD_MAX || self.waiting >= FRAME + length
        })
    }

    /// The next chunk, its kind and payload; none when more bytes are needed.
    ///
    /// # Errors
    /// When it is not what was written.
    #[allow(
        clippy::should_implement_trait,
        reason = "that there is none yet does not mean that there is no more"
    )]
    pub fn next(&mut self) -> Result<Option<(u8, Bytes)>, Malformed> {
        let Some([l0, l1, l2, l3, c0, c1, c2, c3, kind]) = self.peek::<FRAME>() else { return Ok(None) };
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if length > PAYLOAD_MAX {
            return Err(Malformed("a chunk of a snapshot is longer than any"));
        }
        if self.waiting < FRAME + length {
            return Ok(None);
        }
        self.split(FRAME);
        let payload = self.split(length);
        let place = (self.group, self.index, self.offset);
        if checksum(kind, &payload, place) != u32::from_le_bytes([c0, c1, c2, c3]) {
            return Err(Malformed("a chunk of a snapshot is damaged"));
        }
        self.offset += (FRAME + length) as u64;
        Ok(Some((kind, payload)))
    }
}

/// Sees whether a file is whole, without a look at what is in it.
#[derive(Debug)]
pub struct Checker {
    chunks: Chunks,
    last: Option<u8>,
}

impl Checker {
    /// Of the snapshot of a group at an index.
    #[must_use]
    pub fn new(group: GroupId, index: Index) -> Self {
        Self { chunks: Chunks::new(group, index), last: None }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// When they are not what was written.
    pub fn feed(&mut self, bytes: Bytes) -> Result<(), Malformed> {
        self.chunks.feed(bytes);
        while let Some((kind, _)) = self.chunks.next()? {
            let follows = match self.last {
                None => kind == HEADER,
                Some(HEADER | ROWS) => kind == ROWS || kind == FOOTER,
                Some(_) => false,
            };
            if !follows {
                return Err(Malformed("a chunk of a snapshot is not where it belongs"));
            }
            self.last = Some(kind);
        }
        Ok(())
    }

    /// Whether all of the file was given, and nothing behind it.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.last == Some(FOOTER) && self.chunks.waiting() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(kinds: &[u8]) -> Vec<u8> {
        let (mut out, mut offset) = (Vec::new(), 0);
        for (kind, payload) in kinds.iter().zip([&b"head"[..], b"some rows", b"", b"more"]) {
            offset += put(*kind, payload, (GroupId(3), 7, offset), &mut out);
        }
        out
    }

    fn checked(bytes: &[u8], step: usize) -> Result<bool, Malformed> {
        let mut checker = Checker::new(GroupId(3), 7);
        bytes.chunks(step).try_for_each(|piece| checker.feed(Bytes::copy_from_slice(piece)))?;
        Ok(checker.is_whole())
    }

    #[test]
    fn a_file_is_whole_with_all_its_chunks_and_nothing_else() {
        let whole = file(&[HEADER, ROWS, FOOTER]);
        for step in [1, 5, 1000] {
            assert_eq!(checked(&whole, step), Ok(true));
        }
        for end in 0..whole.len() {
            assert_ne!(checked(&whole[..end], 1000), Ok(true), "cut at {end}");
        }
        for at in 0..whole.len() {
            let mut bad = whole.clone();
            bad[at] ^= 4;
            assert_ne!(checked(&bad, 1000), Ok(true), "damaged at {at}");
        }
        assert_ne!(checked(&[&whole[..], b"x"].concat(), 1000), Ok(true));
        for kinds in [&[ROWS, FOOTER][..], &[HEADER, HEADER], &[HEADER, FOOTER, ROWS], &[HEADER, 9]] {
            assert!(checked(&file(kinds), 1000).is_err(), "{kinds:?}");
        }
    }
}
