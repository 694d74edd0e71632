//! A small file that is replaced as a whole: two numbered copies of the same contents in separate blocks.
//!
//! ```text
//!  0..4     4..8    8..16    16..20   20..
//!  "QTWN"   CRC32   number   length   contents, then zeros to 64 KiB; the second copy begins there
//! ```
//!
//! Invariant: what is acted upon is synced in both copies. `replace` writes and syncs the first copy, then the
//! second, and only then is the number acted upon; a start that finds one copy ahead of the other, or one that
//! cannot be read, makes them alike by `repair` before it acts. So the valid copy with the highest number is
//! the newest that anybody can have acted upon, or one newer; if one copy cannot be read, the other is.
//!
//! Subtlety: `replace` always begins with the first copy, which is safe only because the second then holds all
//! that was ever acted upon: they are alike, or nothing ever was.

use alloc::vec::Vec;
use bytes::Bytes;

use super::{File, Io};

/// Bytes of one copy.
pub const COPY: u64 = 64 << 10;
const MAGIC: &[u8; 4] = b"QTWN";
const HEADER: usize = 20;

/// A copy that can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// Rises with every replacement.
    pub number: u64,
    /// Where it lies.
    pub offset: u64,
    /// What it says.
    pub contents: Bytes,
}

/// Adds what is to be done to replace a twin file's contents. Both copies are alike when it begins, or
/// nothing was ever acted upon.
///
/// # Panics
/// When the contents do not fit a copy, which the bounds on partitions and nodes rule out.
pub fn replace(file: File, number: u64, contents: &[u8], out: &mut Vec<Io>) {
    let copy = encode(number, contents);
    for offset in [0, COPY] {
        out.push(Io::Write { file, offset, bytes: copy.clone() });
        out.push(Io::Sync { file });
    }
}

/// Adds what is to be done so that both copies hold what `copy`, one of `copies`, says: before a start acts
/// on it, and before a `replace` overwrites it.
pub fn repair(file: File, copies: &[Copy], copy: &Copy, out: &mut Vec<Io>) {
    // If only the process died, what was read may be in the system's memory alone. It must be on the medium
    // before the other copy is written: a sync of both at once could tear both.
    out.push(Io::Sync { file });
    let alike = |other: &Copy| other.number == copy.number && other.contents == copy.contents;
    if copies.len() == 2 && copies.iter().all(alike) {
        return;
    }
    let offset = if copy.offset == 0 { COPY } else { 0 };
    out.push(Io::Write { file, offset, bytes: encode(copy.number, &copy.contents) });
    out.push(Io::Sync { file });
}

fn encode(number: u64, contents: &[u8]) -> Bytes {
    let mut copy = Vec::with_capacity(HEADER + contents.len());
    copy.extend_from_slice(MAGIC);
    copy.extend_from_slice(&[0; 4]);
    copy.extend_from_slice(&number.to_le_bytes());
    copy.extend_from_slice(&u32::try_from(contents.len()).expect("it is small").to_le_bytes());
    copy.extend_from_slice(contents);
    assert!(copy.len() as u64 <= COPY, "the contents fit a copy");
    let crc = crc32fast::hash(&copy[8..]);
    copy[4..8].copy_from_slice(&crc.to_le_bytes());
    copy.into()
}

/// The copies that can be read, newest first.
#[must_use]
pub fn copies(file: &Bytes) -> Vec<Copy> {
    let mut copies: Vec<_> = [0, COPY].into_iter().filter_map(|offset| decode(file, offset)).collect();
    copies.sort_by_key(|copy| core::cmp::Reverse(copy.number));
    copies
}

fn decode(file: &Bytes, offset: u64) -> Option<Copy> {
    let start = usize::try_from(offset).ok()?;
    let header = file.get(start..start + HEADER)?;
    let length = u32::from_le_bytes(header[16..20].try_into().expect("four bytes")) as usize;
    let end = (start + HEADER).checked_add(length)?;
    let bytes = file.get(start + 8..end)?;
    let crc = u32::from_le_bytes(header[4..8].try_into().expect("four bytes"));
    if &header[..4] != MAGIC || crc32fast::hash(bytes) != crc {
        return None;
    }
    let number = u64::from_le_bytes(header[8..16].try_into().expect("eight bytes"));
    Some(Copy { number, offset, contents: file.slice(start + HEADER..end) })
}
