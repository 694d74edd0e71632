//! Whether the bytes of a snapshot file are those that were written; what they mean is not looked at.
//!
//! ```text
//!  chunk:   0..4      4..8    8      9..
//!           length    CRC32   kind   payload
//! ```
//!
//! `length` is the payload's. The CRC32 is over kind, payload, group, index and the chunk's offset. The first chunk is
//! of kind 1, the last of kind 3.

use bytes::Bytes;
use quorate_protocol::id::{GroupId, Index};

const FIRST: u8 = 1;
const LAST: u8 = 3;
const FRAME: usize = 9;

/// Whether every chunk is whole and the last one is there.
#[must_use]
pub fn is_sound(file: &Bytes, group: GroupId, index: Index) -> bool {
    let mut offset = 0;
    loop {
        let frame = file.get(offset..).and_then(|rest| rest.first_chunk::<FRAME>());
        let Some(&[l0, l1, l2, l3, c0, c1, c2, c3, kind]) = frame else { return false };
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let payload = file.get(offset + FRAME..).and_then(|rest| rest.get(..length));
        let Some(payload) = payload else { return false };
        let crc = u32::from_le_bytes([c0, c1, c2, c3]);
        if checksum(kind, payload, (group, index, offset)) != crc || (offset == 0) != (kind == FIRST) {
            return false;
        }
        if kind == LAST {
            return true;
        }
        offset += FRAME + length;
    }
}

fn checksum(kind: u8, payload: &[u8], (group, index, offset): (GroupId, Index, usize)) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[kind]);
    hasher.update(payload);
    hasher.update(&group.0.to_le_bytes());
    hasher.update(&index.to_le_bytes());
    hasher.update(&(offset as u64).to_le_bytes());
    hasher.finalize()
}

/// A file with these payloads, for tests.
#[cfg(test)]
pub(super) fn file_of(payloads: &[&[u8]], group: GroupId, index: Index) -> alloc::vec::Vec<u8> {
    let mut out = alloc::vec::Vec::new();
    for (at, payload) in payloads.iter().enumerate() {
        let kind = if at == 0 {
            FIRST
        } else if at + 1 == payloads.len() {
            LAST
        } else {
            2
        };
        let crc = checksum(kind, payload, (group, index, out.len()));
        out.extend_from_slice(&u32::try_from(payload.len()).expect("it is small").to_le_bytes());
        out.extend_from_slice(&crc.to_le_bytes());
        out.push(kind);
        out.extend_from_slice(payload);
    }
    out
}
