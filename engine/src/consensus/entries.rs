//! The entries of a log, in chunks: none of what a log does takes longer because the log is long.
//!
//! Invariant: all chunks but the last are full, so an entry is found by its place. What goes in front leaves holes in
//! the first chunk (`gone`) until all of that goes.
//!
//! Subtlety: one large ring would be copied as a whole when it has to grow, and a compaction would touch every entry.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use raft::eraftpb::Entry as RawEntry;

use crate::trash::Trash;

/// Entries of a chunk.
const CHUNK: usize = 256;

#[derive(Default)]
struct Chunk {
    entries: Vec<RawEntry>,
    /// What those of its entries take that are not gone.
    bytes: usize,
}

/// See the top of the file.
#[derive(Default)]
pub(super) struct Entries {
    chunks: VecDeque<Chunk>,
    gone: usize,
    len: usize,
    bytes: usize,
}

impl Entries {
    /// Their number.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// What they take of the memory, roughly.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The entry at a place, counted from 0.
    pub(super) fn get(&self, place: usize) -> Option<&RawEntry> {
        let at = place + self.gone;
        self.chunks.get(at / CHUNK)?.entries.get(at % CHUNK)
    }

    /// The entries from one place up to another.
    pub(super) fn range(
        &self,
        places: core::ops::Range<usize>,
    ) -> impl DoubleEndedIterator<Item = &RawEntry> {
        places.map(|place| self.get(place).expect("the places are within the log"))
    }

    pub(super) fn push(&mut self, entry: RawEntry) {
        if self.chunks.back().is_none_or(|chunk| chunk.entries.len() == CHUNK) {
            self.chunks.push_back(Chunk::default());
        }
        let size = size_of_entry(&entry);
        let chunk = self.chunks.back_mut().expect("it was just pushed");
        chunk.bytes += size;
        chunk.entries.push(entry);
        self.bytes += size;
        self.len += 1;
    }

    /// Takes the first ones away.
    pub(super) fn drop_front(&mut self, count: usize, trash: &mut Trash) {
        assert!(count <= self.len, "only what is there is taken away");
        self.len -= count;
        let mut to = self.gone + count;
        let mut whole = Vec::new();
        while to >= CHUNK {
            let chunk = self.chunks.pop_front().expect("its entries were counted");
            self.bytes -= chunk.bytes;
            whole.push(chunk.entries);
            self.gone = 0;
            to -= CHUNK;
        }
        throw(whole, trash);
        if let Some(first) = self.chunks.front_mut() {
            let part: Vec<_> = first.entries[self.gone..to].iter_mut().map(core::mem::take).collect();
            let size: usize = part.iter().map(size_of_entry).sum();
            first.bytes -= size;
            self.bytes -= size;
            throw(alloc::vec![part], trash);
        }
        self.gone = to;
    }

    /// Keeps only so many.
    pub(super) fn truncate(&mut self, len: usize, trash: &mut Trash) {
        let mut over = self.len.saturating_sub(len);
        self.len -= over;
        while over > 0 {
            let last = self.chunks.back_mut().expect("its entries were counted");
            let from = last.entries.len() - over.min(last.entries.len());
            let part = last.entries.split_off(from);
            over -= part.len();
            // Those that are gone already were counted when they went.
            let gone = if self.chunks.len() == 1 { self.gone.saturating_sub(from) } else { 0 };
            let size: usize = part[gone..].iter().map(size_of_entry).sum();
            let last = self.chunks.back_mut().expect("it was just seen");
            last.bytes -= size;
            self.bytes -= size;
            if last.entries.is_empty() {
                self.chunks.pop_back();
            }
            throw(alloc::vec![part], trash);
        }
    }
}

fn throw(entries: Vec<Vec<RawEntry>>, trash: &mut Trash) {
    trash.throw(entries.into_iter().flatten().map(|entry| entry.data.len()));
}

/// What an entry takes of the memory, roughly.
fn size_of_entry(entry: &RawEntry) -> usize {
    size_of::<RawEntry>() + entry.data.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares with a plain list, through every kind of change.
    #[test]
    fn chunks_are_a_list() {
        let (mut entries, mut plain, mut trash) = (Entries::default(), VecDeque::new(), Trash::default());
        let mut chance = 7u64;
        let mut next = 0u64;
        for _ in 0..4000 {
            chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let count = usize::try_from(chance >> 33).expect("31 bits") % 700;
            match chance >> 61 {
                0 => {
                    let count = count.min(plain.len());
                    plain.drain(..count);
                    entries.drop_front(count, &mut trash);
                }
                1 => {
                    plain.truncate(count * 3);
                    entries.truncate(count * 3, &mut trash);
                }
                _ => {
                    for _ in 0..count / 4 {
                        next += 1;
                        let data = alloc::vec![0; count % 9].into();
                        let entry = RawEntry { index: next, data, ..RawEntry::default() };
                        plain.push_back(entry.clone());
                        entries.push(entry);
                    }
                }
            }
            assert_eq!(entries.len(), plain.len());
            assert_eq!(entries.bytes(), plain.iter().map(size_of_entry).sum::<usize>());
            assert!(entries.range(0..entries.len()).eq(plain.iter()));
            assert_eq!(entries.get(plain.len()), None);
        }
    }

    #[test]
    fn a_long_log_is_dropped_in_portions() {
        let (mut entries, mut trash) = (Entries::default(), Trash::default());
        for index in 0..100_000 {
            entries.push(RawEntry { index, ..RawEntry::default() });
        }
        entries.drop_front(99_900, &mut trash);
        let mut turns = Vec::new();
        while !trash.is_empty() {
            turns.push(trash.dig());
        }
        assert!(turns.len() > 20 && turns.iter().sum::<usize>() > 99_800, "{turns:?}");
    }
}
