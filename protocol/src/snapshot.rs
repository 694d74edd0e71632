//! What travels in the snapshot lane: bytes of snapshot files, asked for and sent.
//!
//! Invariant: everything may be lost, doubled and overtake; a piece says itself where it belongs.

use bytes::Bytes;

use crate::id::{GroupId, Index};
use crate::peer::BASE;
use crate::{wire_enum, wire_struct};

wire_enum! {
    /// A frame of the snapshot lane. It may be lost, doubled and overtake others: the receiver asks again.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum SnapshotFrame {
        /// The receiver wants the bytes of a snapshot from an offset on.
        Ask(at: SnapshotAt) = 1,
        /// Some of them.
        Piece(piece: SnapshotPiece) = 2,
    }
}

wire_struct! {
    /// A place in a snapshot file.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct SnapshotAt {
        /// The group.
        pub group: GroupId,
        /// The index of the log at which it was taken.
        pub index: Index,
        /// Bytes from the file's beginning.
        pub offset: u64,
    }
}

wire_struct! {
    /// Bytes of a snapshot file.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct SnapshotPiece {
        /// Where they begin.
        pub at: SnapshotAt,
        /// The bytes; none: the sender does not have the file any more.
        pub bytes: Bytes,
    }
}

impl SnapshotFrame {
    /// Bytes that it holds on to, about.
    #[must_use]
    pub fn weight(&self) -> usize {
        match self {
            Self::Ask(_) => BASE,
            Self::Piece(piece) => BASE + piece.bytes.len(),
        }
    }
}
