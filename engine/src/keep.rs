//! Byte strings that stay: what a state container keeps of a log entry.
//!
//! Values arrive as slices of their entry's memory. A small one is copied out, so that it does not keep a
//! whole entry alive; a large one is the better part of its entry and is shared.

use bytes::Bytes;

/// Byte strings below this size are copied.
const SHARED_FROM: usize = 16 << 10;

/// The same bytes, fit to be kept for long.
#[must_use]
pub fn keep(bytes: Bytes) -> Bytes {
    if bytes.len() < SHARED_FROM { Bytes::copy_from_slice(&bytes) } else { bytes }
}
