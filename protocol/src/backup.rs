//! A backup: one file that holds a snapshot of every group of a cluster.
//!
//! ```text
//!  file:  head, then for each group from 0 on: part, the bytes of its snapshot file; then tail
//!
//!  head   "QBAK" u32, version u8, cluster u64, partitions u16, saved u64 (milliseconds since 1970)
//!  part   group u16, index u64, term u64, group time u64, bytes u64: how many of them follow
//!  tail   "QEND" u32, length u64 of all before it, CRC32 u32 of all before it
//! ```
//!
//! In the notation of `wire.rs`. What is in a snapshot file is the server's own business; its frames are in `chunk.rs`.
//!
//! Invariant: a file counts only with its tail, and with a snapshot of every group, each whole.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, Bytes, BytesMut};

use crate::chunk::Checker;
use crate::id::{ClusterId, GroupId, Index, Term};
use crate::limits::PARTITIONS_MAX;
use crate::wire::{Malformed, Wire};
use crate::wire_struct;

/// The version of the format.
const VERSION: u8 = 1;
const MAGIC: u32 = u32::from_le_bytes(*b"QBAK");
const END: u32 = u32::from_le_bytes(*b"QEND");
const HEAD: usize = 23;
const PART: usize = 34;
const TAIL: usize = 16;

wire_struct! {
    /// What the backup is of.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Head {
        /// "QBAK".
        pub magic: u32,
        /// The version of the format.
        pub version: u8,
        /// The cluster that was saved.
        pub cluster: ClusterId,
        /// Its partitions: so many groups follow, and the system group before them.
        pub partitions: u16,
        /// When it was saved, in milliseconds since 1970, for people.
        pub saved: u64,
    }
}

impl Head {
    /// Of this release's format.
    #[must_use]
    pub fn new(cluster: ClusterId, partitions: u16, saved: u64) -> Self {
        Self { magic: MAGIC, version: VERSION, cluster, partitions, saved }
    }

    /// All groups, in the order in which they stand in the file.
    pub fn groups(&self) -> impl Iterator<Item = GroupId> + use<> {
        (0..=self.partitions).map(GroupId)
    }
}

wire_struct! {
    /// A group's snapshot: the cut, and how long its file is.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Part {
        /// The group.
        pub group: GroupId,
        /// The last entry of its log that is in the state,
        pub index: Index,
        /// and that entry's term.
        pub term: Term,
        /// Group time of the state, in milliseconds.
        pub time: u64,
        /// Bytes of the snapshot file.
        pub bytes: u64,
    }
}

wire_struct! {
    /// The end; made and checked here only.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Tail {
        /// "QEND".
        pub magic: u32,
        /// Bytes before it.
        pub length: u64,
        /// Their CRC32.
        pub crc: u32,
    }
}

wire_struct! {
    /// How far dead letters have crossed between a partition and another one, as the partition has it.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Crossing {
        /// The other partition.
        pub other: GroupId,
        /// The last letter to it that has left for good: the other one has said that it has it.
        pub left: u64,
        /// The last letter from it that has arrived here.
        pub arrived: u64,
    }
}

/// The groups that were cut too early: another group's state had let go of a letter that is not yet in theirs, so it would
/// be in neither. Who cuts them anew, later, has it.
pub fn cut_too_early<'a>(cuts: impl Iterator<Item = (GroupId, &'a [Crossing])>) -> BTreeSet<GroupId> {
    let cuts: BTreeMap<GroupId, &[Crossing]> = cuts.collect();
    let arrived = |source: GroupId, target: GroupId| {
        let known = cuts.get(&target)?.iter().find(|crossing| crossing.other == source)?;
        Some(known.arrived)
    };
    let all = cuts.iter().flat_map(|(&source, crossings)| crossings.iter().map(move |to| (source, to)));
    all.filter(|(source, to)| to.left > arrived(*source, to.other).unwrap_or(0))
        .map(|(_, to)| to.other)
        .collect()
}

/// The last letter of a group that each other one had by its cut: a restored group numbers its letters behind them.
#[must_use]
pub fn arrived_from(source: GroupId, cuts: &BTreeMap<GroupId, Vec<Crossing>>) -> BTreeMap<GroupId, u64> {
    let of_source = |known: &&Crossing| known.other == source && known.arrived > 0;
    cuts.iter()
        .filter_map(|(&target, all)| all.iter().find(of_source).map(|known| (target, known.arrived)))
        .collect()
}

/// Counts what goes into a file, and makes its tail. A copy from before a part lets that part be written anew.
#[derive(Debug, Clone, Default)]
pub struct Writer {
    crc: crc32fast::Hasher,
    length: u64,
}

impl Writer {
    /// These bytes come next: a head, a part, or bytes of a snapshot file.
    pub fn note(&mut self, bytes: &[u8]) {
        self.crc.update(bytes);
        self.length += bytes.len() as u64;
    }

    /// Bytes so far.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// What stands behind everything that was noted.
    #[must_use]
    pub fn tail(self) -> Bytes {
        Tail { magic: END, length: self.length, crc: self.crc.finalize() }.to_wire()
    }
}

/// A time in milliseconds since 1970 as people write it, in UTC.
#[must_use]
pub fn when(millis: u64) -> String {
    let (days, seconds) = (millis / 86_400_000, millis / 1000 % 86_400);
    // Years that begin in March, in eras of 400: the leap day is a year's last.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let (month, year) = if month < 10 { (month + 3, year) } else { (month - 9, year + 1) };
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{:04}-{month:02}-{date:02} {hour:02}:{minute:02}:{second:02} UTC", year + 400 * era)
}

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// The beginning.
    Head(Head),
    /// A group's snapshot begins.
    Part(Part),
    /// Some of its bytes.
    Bytes(Bytes),
    /// The tail, and all before it was as it says.
    End,
}

enum Expected {
    Head,
    Part(GroupId),
    Bytes(Part, u64, Box<Checker>),
    Tail,
    Nothing,
}

/// Reads a file as its bytes come, and checks everything.
pub struct Reader {
    seen: Writer,
    partitions: u16,
    expected: Expected,
}

impl Reader {
    /// At the beginning of a file.
    #[must_use]
    pub fn new() -> Self {
        Self { seen: Writer::default(), partitions: 0, expected: Expected::Head }
    }

    /// Whether the file may end here.
    #[must_use]
    pub fn is_done(&self) -> bool {
        matches!(self.expected, Expected::Nothing)
    }

    /// The next piece; none when more bytes are needed.
    ///
    /// # Errors
    /// When the file is not what was written, or is of another version.
    #[allow(
        clippy::should_implement_trait,
        reason = "that there is none yet does not mean that there is no more"
    )]
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Piece>, Malformed> {
        let piece = match &mut self.expected {
            Expected::Head => {
                // Whoever gives a file of another kind hears so, however short it is.
                if input.len() >= 4 && input[..4] != MAGIC.to_le_bytes() {
                    return Err(Malformed("this is no backup of Quorate"));
                }
                let Some(head) = take::<Head>(input, HEAD, Some(&mut self.seen))? else { return Ok(None) };
                if head.version != VERSION {
                    return Err(Malformed(
                        "a backup of another version; use the release that has written it",
                    ));
                }
                if !(1..=PARTITIONS_MAX).contains(&head.partitions) {
                    return Err(Malformed("a backup of more partitions than there can be"));
                }
                self.partitions = head.partitions;
                self.expected = Expected::Part(GroupId(0));
                Piece::Head(head)
            }
            Expected::Part(group) => {
                let group = *group;
                let Some(part) = take::<Part>(input, PART, Some(&mut self.seen))? else { return Ok(None) };
                if part.group != group || part.index == 0 {
                    return Err(Malformed("a group of the backup is not where it belongs"));
                }
                let checker = Box::new(Checker::new(part.group, part.index));
                self.expected = Expected::Bytes(part, part.bytes, checker);
                Piece::Part(part)
            }
            Expected::Bytes(_, left, checker) if *left > 0 => {
                if input.is_empty() {
                    return Ok(None);
                }
                let length = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                let bytes = input.split_to(length).freeze();
                *left -= length as u64;
                checker.feed(bytes.clone())?;
                self.seen.note(&bytes);
                Piece::Bytes(bytes)
            }
            Expected::Bytes(part, _, checker) => {
                if !checker.is_whole() {
                    return Err(Malformed("a snapshot in the backup ends early"));
                }
                let next = GroupId(part.group.0 + 1);
                let more = next.0 <= self.partitions;
                self.expected = if more { Expected::Part(next) } else { Expected::Tail };
                return self.next(input);
            }
            Expected::Tail => {
                let Some(tail) = take::<Tail>(input, TAIL, None)? else { return Ok(None) };
                let seen = core::mem::take(&mut self.seen);
                if tail.to_wire() != seen.tail() {
                    return Err(Malformed("the backup is damaged: its checksum is another one"));
                }
                self.expected = Expected::Nothing;
                Piece::End
            }
            Expected::Nothing if input.is_empty() => return Ok(None),
            Expected::Nothing => return Err(Malformed("there is something behind the end of the backup")),
        };
        Ok(Some(piece))
    }
}

impl Default for Reader {
    fn default() -> Self {
        Self::new()
    }
}

/// Takes a value of a fixed length, if it is all there, and counts it.
fn take<T: Wire>(
    input: &mut BytesMut,
    length: usize,
    seen: Option<&mut Writer>,
) -> Result<Option<T>, Malformed> {
    if input.len() < length {
        return Ok(None);
    }
    if let Some(seen) = seen {
        seen.note(&input[..length]);
    }
    let value = T::from_wire(Bytes::copy_from_slice(&input[..length]))?;
    input.advance(length);
    Ok(Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk;

    fn snapshot(part: Part) -> Vec<u8> {
        let (mut out, mut offset) = (Vec::new(), 0);
        for (kind, payload) in
            [(chunk::HEADER, &b"head"[..]), (chunk::ROWS, &[7; 300]), (chunk::FOOTER, b"end")]
        {
            offset += chunk::put(kind, payload, (part.group, part.index, offset), &mut out);
        }
        out
    }

    #[test]
    fn who_lacks_a_letter_that_has_left_elsewhere_was_cut_too_early() {
        let to = |other, left, arrived| Crossing { other: GroupId(other), left, arrived };
        let early = |cuts: &[&[Crossing]]| -> Vec<u16> {
            let cuts = (0..).map(GroupId).zip(cuts.iter().copied());
            cut_too_early(cuts).into_iter().map(|group| group.0).collect()
        };
        assert_eq!(early(&[&[], &[to(2, 5, 0)], &[to(1, 0, 5)]]), [0; 0]);
        // One that has arrived and not left comes again, and is known by its number.
        assert_eq!(early(&[&[], &[to(2, 5, 0)], &[to(1, 0, 6)]]), [0; 0]);
        assert_eq!(early(&[&[], &[to(2, 5, 0)], &[to(1, 0, 4)]]), [2]);
        assert_eq!(early(&[&[], &[to(2, 1, 3), to(3, 1, 0)], &[to(1, 4, 1)], &[]]), [1, 3]);
    }

    fn backup() -> (Vec<u8>, Vec<Part>) {
        let head = Head::new(ClusterId(5), 2, 99);
        let (mut out, mut parts) = (head.to_wire().to_vec(), Vec::new());
        for group in head.groups() {
            let mut part = Part { group, index: 10 + u64::from(group.0), term: 3, time: 4, bytes: 0 };
            let bytes = snapshot(part);
            part.bytes = bytes.len() as u64;
            part.put(&mut out);
            out.extend(bytes);
            parts.push(part);
        }
        let mut writer = Writer::default();
        writer.note(&out);
        assert_eq!(writer.length(), out.len() as u64);
        out.extend(writer.tail());
        (out, parts)
    }

    fn read(bytes: &[u8], step: usize) -> Result<Vec<Piece>, Malformed> {
        let (mut reader, mut input, mut pieces) = (Reader::new(), BytesMut::new(), Vec::new());
        for more in bytes.chunks(step) {
            input.extend_from_slice(more);
            while let Some(piece) = reader.next(&mut input)? {
                pieces.push(piece);
            }
        }
        if reader.is_done() { Ok(pieces) } else { Err(Malformed("it ends early")) }
    }

    #[test]
    fn times_are_told_as_people_write_them() {
        for (millis, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_400_000, "2000-02-29 00:00:00 UTC"),
            (1_709_251_199_999, "2024-02-29 23:59:59 UTC"),
            (1_709_251_200_000, "2024-03-01 00:00:00 UTC"),
            (1_798_761_599_000, "2026-12-31 23:59:59 UTC"),
            (4_107_542_400_000, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(when(millis), text);
        }
    }

    #[test]
    fn what_was_written_is_read_in_pieces_of_any_size() {
        let (file, parts) = backup();
        for step in [1, 7, file.len()] {
            let pieces = read(&file, step).expect("it is whole");
            assert_eq!(pieces[0], Piece::Head(Head::new(ClusterId(5), 2, 99)));
            let read: Vec<Part> = pieces
                .iter()
                .filter_map(|p| if let Piece::Part(part) = p { Some(*part) } else { None })
                .collect();
            assert_eq!(read, parts);
            let bytes = pieces
                .iter()
                .map(|p| if let Piece::Bytes(bytes) = p { bytes.len() } else { 0 })
                .sum::<usize>();
            assert_eq!(bytes as u64, parts.iter().map(|part| part.bytes).sum::<u64>());
            assert_eq!(pieces.last(), Some(&Piece::End));
        }
    }

    #[test]
    fn a_backup_that_is_cut_or_damaged_anywhere_is_refused() {
        let (file, _) = backup();
        for end in 0..file.len() {
            assert!(read(&file[..end], 64).is_err(), "cut at {end}");
        }
        for at in 0..file.len() {
            let mut bad = file.clone();
            bad[at] ^= 1;
            assert!(read(&bad, 64).is_err(), "damaged at {at}");
        }
        assert!(read(&[&file[..], b"x"].concat(), 64).is_err());
        assert_eq!(read(b"#!/bin/sh", 64), Err(Malformed("this is no backup of Quorate")));
    }
}
