//! What a log entry says: a stamp of group time, and the commands that one turn gathered.
//!
//! Invariant: an entry with a version that this node does not know stops it; it never guesses.

use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::peer::{Principal, Work};
use quorate_protocol::wire::{Malformed, Wire};
use quorate_protocol::wire_struct;

use crate::outcome::Asker;

/// The version that this node writes. It rises only when all nodes of a cluster can read the next one.
pub const ENTRY_VERSION: u8 = 1;

wire_struct! {
    /// A command in the log.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Logged {
        /// Who asked.
        pub asker: Asker,
        /// In whose name.
        pub principal: Principal,
        /// What is to be done.
        pub work: Work,
    }
}

/// What one entry holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Group time at the proposal, in milliseconds.
    pub stamp: u64,
    /// The commands in order. None: the entry only carries the stamp.
    pub commands: Vec<Logged>,
}

impl Batch {
    /// Begins an entry's bytes; commands are added with `Wire::put` and counted with `finish`.
    #[must_use]
    pub fn begin(stamp: u64) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        ENTRY_VERSION.put(&mut out);
        stamp.put(&mut out);
        0u32.put(&mut out);
        out
    }

    /// Writes the number of commands into an entry's bytes.
    pub fn finish(entry: &mut [u8], commands: u32) {
        entry[9..13].copy_from_slice(&commands.to_le_bytes());
    }

    /// Reads an entry.
    ///
    /// # Errors
    /// When the bytes are of another version, or not an entry at all.
    pub fn read(mut data: Bytes) -> Result<Self, Malformed> {
        let input = &mut data;
        if u8::take(input)? != ENTRY_VERSION {
            return Err(Malformed("entry of an unknown version"));
        }
        let stamp = u64::take(input)?;
        let commands = Vec::take(input)?;
        if input.is_empty() {
            Ok(Self { stamp, commands })
        } else {
            Err(Malformed("bytes left over after an entry"))
        }
    }

    /// The commands with their offsets in the entry, which begin with 1: 0 is the passing of time. A command that brings
    /// several things into being has an offset for each, from its own on.
    pub fn placed(self) -> impl Iterator<Item = (u32, Logged)> {
        let mut next = 1;
        self.commands.into_iter().map(move |logged| {
            let offset = next;
            next += match &logged.work {
                Work::Take(parcel) => u32::try_from(parcel.items.len()).expect("parcels are small").max(1),
                _ => 1,
            };
            (offset, logged)
        })
    }

    /// The stamp alone.
    #[must_use]
    pub fn stamp_of(data: &Bytes) -> Option<u64> {
        let stamp = data.get(1..9)?;
        Some(u64::from_le_bytes(stamp.try_into().expect("eight bytes")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_protocol::id::{ConnId, NodeId};

    #[test]
    fn entries_are_read_as_they_were_written() {
        let asker = Asker { conn: ConnId { node: NodeId(1), ..ConnId::default() }, request: 9, client: None };
        let logged = Logged { asker, principal: Principal::Anonymous, work: Work::OpenClient };
        let mut entry = Batch::begin(77);
        logged.put(&mut entry);
        logged.put(&mut entry);
        Batch::finish(&mut entry, 2);
        let data = Bytes::from(entry);
        assert_eq!(Batch::stamp_of(&data), Some(77));
        assert_eq!(
            Batch::read(data.clone()),
            Ok(Batch { stamp: 77, commands: [logged.clone(), logged].into() })
        );
        let mut newer = data.to_vec();
        newer[0] = 2;
        assert!(Batch::read(newer.into()).is_err());
    }
}
