//! A node's disk: what its process reads, and what a crash leaves of it.
//!
//! Charter: live bytes per file, and for each 512-byte sector that was written since the file's last sync what the
//! medium held before. A killed process loses nothing; a machine that is switched off keeps any part of what was
//! not synced, sector by sector, torn in the middle at worst.
//!
//! Invariant: what was synced is kept, unless a bit is flipped on purpose.
//!
//! Subtleties: a created segment may be a recycled file, full of what some segment held in a former life, both
//! live and on the medium. A file that was taken away may be back when the machine was switched off, as long as no
//! later name of its directory was synced.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use quorate_engine::journal::{Contents, File, Io, SECTOR};

use super::rng::Rng;

/// A sector as a place in memory.
const SIZE: usize = 512;
const _: () = assert!(SIZE as u64 == SECTOR, "a crash tears what the journal takes for a sector");

/// A file.
#[derive(Debug, Clone, Default)]
struct State {
    live: Vec<u8>,
    /// Sector → what the medium holds, where that differs from `live`.
    unsynced: BTreeMap<usize, [u8; SIZE]>,
    /// Whether the file's name is on the medium.
    named: bool,
}

/// See the top of the file.
#[derive(Debug, Clone)]
pub struct Disk {
    files: BTreeMap<File, State>,
    /// What the last commit wrote, as long as nothing on the medium vouches for it.
    unvouched: Vec<(File, usize, usize)>,
    /// Files that were taken away, and may come back.
    removed: BTreeMap<File, State>,
    /// What the last removed segment held: its file may be used again.
    spare: Option<Vec<u8>>,
    rng: Rng,
}

impl Disk {
    /// An empty disk.
    #[must_use]
    pub fn new(rng: Rng) -> Self {
        Self { files: BTreeMap::new(), unvouched: Vec::new(), removed: BTreeMap::new(), spare: None, rng }
    }

    /// It is replaced by an empty one.
    pub fn empty(&mut self) {
        self.files.clear();
        self.removed.clear();
        self.unvouched.clear();
        self.spare = None;
    }

    /// Does one thing of a plan; a sync is done by the time it returns.
    pub fn perform(&mut self, io: &Io) {
        match io {
            Io::Create { file, size } => self.create(*file, *size),
            Io::Write { file, offset, bytes } => self.write(*file, *offset, bytes),
            Io::Sync { file } => {
                if let Some(state) = self.files.get_mut(file) {
                    state.unsynced.clear();
                    if !std::mem::replace(&mut state.named, true) {
                        // Its directory is synced, with all that it does not name any more.
                        self.removed.retain(|other, _| is_snapshot(*other) != is_snapshot(*file));
                    }
                }
            }
            Io::Remove { file } => {
                if let Some(state) = self.files.remove(file) {
                    if matches!(file, File::Segment(_)) {
                        self.spare = Some(state.live.clone());
                    }
                    self.removed.insert(*file, state);
                }
            }
        }
    }

    fn create(&mut self, file: File, size: u64) {
        let segments = self.files.iter().filter(|(name, _)| matches!(name, File::Segment(_)));
        let former: Vec<&State> = segments.map(|(_, state)| state).collect();
        let recycled = matches!(file, File::Segment(_)) && self.rng.chance(700);
        let mut live = match self.spare.take().filter(|_| recycled) {
            Some(spare) => spare,
            None if recycled && !former.is_empty() => former[self.rng.index(former.len())].live.clone(),
            None => Vec::new(),
        };
        self.removed.remove(&file);
        live.resize(usize::try_from(size).expect("segments are small"), 0);
        self.files.insert(file, State { live, unsynced: BTreeMap::new(), named: false });
    }

    fn write(&mut self, file: File, offset: u64, bytes: &Bytes) {
        let at = usize::try_from(offset).expect("files are small");
        let end = at + bytes.len();
        let state = self.files.entry(file).or_default();
        if state.live.len() < end {
            state.live.resize(end, 0);
        }
        for sector in at / SIZE..end.div_ceil(SIZE) {
            let mut held = [0; SIZE];
            let from = &state.live[sector * SIZE..((sector + 1) * SIZE).min(state.live.len())];
            held[..from.len()].copy_from_slice(from);
            state.unsynced.entry(sector).or_insert(held);
        }
        state.live[at..end].copy_from_slice(bytes);
    }

    /// The machine is switched off.
    pub fn lose_power(&mut self) {
        let rng = &mut self.rng;
        for (file, state) in std::mem::take(&mut self.removed) {
            if rng.chance(300) {
                self.files.entry(file).or_insert(state);
            }
        }
        self.files.retain(|_, state| state.named || rng.chance(500));
        for state in self.files.values_mut() {
            // Often nothing or all has reached the medium; the rest of the time, any part of it.
            let kept = rng.pick(&[0, 200, 500, 800, 1000]);
            for (sector, held) in std::mem::take(&mut state.unsynced) {
                let begin = sector * SIZE;
                let end = (begin + SIZE).min(state.live.len());
                let keep = if rng.chance(kept) { SIZE } else { 0 };
                let keep = if rng.chance(100) { rng.index(SIZE) } else { keep };
                let torn = (begin + keep).min(end);
                state.live[torn..end].copy_from_slice(&held[torn - begin..end - begin]);
            }
            state.named = true;
        }
    }

    /// Flips a bit, but not in a last commit that nothing vouches for: that loss is the one stated exception
    /// of the journal's promise. Returns where, if it found a place.
    pub fn flip_bit(&mut self) -> Option<(File, usize)> {
        let names: Vec<File> = self.files.keys().copied().collect();
        if names.is_empty() {
            return None;
        }
        for _ in 0..64 {
            let file = names[self.rng.index(names.len())];
            let state = self.files.get_mut(&file).expect("it was just seen");
            if state.live.is_empty() {
                continue;
            }
            let at = self.rng.index(state.live.len());
            let excluded =
                |&(name, begin, end): &(File, usize, usize)| name == file && (begin..end).contains(&at);
            let dull = state.live[at] == 0 && self.rng.chance(900);
            if dull || self.unvouched.iter().any(excluded) {
                continue;
            }
            state.live[at] ^= 1 << self.rng.below(8);
            return Some((file, at));
        }
        None
    }

    /// A byte of a file is another one than was written, unless the file is gone.
    pub fn rot(&mut self, file: File, at: usize, byte: u8) {
        if let Some(state) = self.files.get_mut(&file) {
            state.live[at] = byte;
        }
    }

    /// A commit is done: until something vouches for it, its part in the last segment may be lost; but not the segment's
    /// first record, which the manifest vouches for.
    pub fn note_commit(&mut self, plan: &[Io]) {
        let writes = plan.iter().filter_map(|io| match io {
            Io::Write { file: file @ File::Segment(_), offset, bytes } if *offset > 0 => {
                let begin = usize::try_from(*offset).expect("files are small");
                Some((*file, begin, begin + bytes.len()))
            }
            _ => None,
        });
        let writes: Vec<_> = writes.collect();
        let last: BTreeSet<File> = writes.last().map(|write| write.0).into_iter().collect();
        self.unvouched = writes.into_iter().filter(|write| last.contains(&write.0)).collect();
    }

    /// A frontier, or a new segment behind a seal, vouches for everything.
    pub fn note_vouched(&mut self) {
        self.unvouched.clear();
    }

    /// A file as the process sees it.
    #[must_use]
    pub fn bytes(&self, file: File) -> Option<&[u8]> {
        self.files.get(&file).map(|state| &state.live[..])
    }

    /// A file as the medium holds it; none if its name is not there.
    #[must_use]
    pub fn medium(&self, file: File) -> Option<Bytes> {
        let state = self.files.get(&file).filter(|state| state.named)?;
        let mut bytes = state.live.clone();
        for (sector, held) in &state.unsynced {
            let begin = sector * SIZE;
            let end = (begin + SIZE).min(bytes.len());
            bytes[begin..end].copy_from_slice(&held[..end - begin]);
        }
        Some(bytes.into())
    }

    /// What a starting process reads.
    #[must_use]
    pub fn contents(&self) -> Contents {
        let bytes = |file| self.files.get(&file).map(|state| Bytes::copy_from_slice(&state.live));
        let segment = |(name, state): (&File, &State)| match name {
            File::Segment(number) => Some((*number, Bytes::copy_from_slice(&state.live))),
            _ => None,
        };
        let snapshot = |(name, state): (&File, &State)| match name {
            File::Snapshot(group, index) => Some(((*group, *index), Bytes::copy_from_slice(&state.live))),
            _ => None,
        };
        Contents {
            meta: bytes(File::Meta),
            hard: bytes(File::Hard),
            segments: self.files.iter().filter_map(segment).collect(),
            snapshots: self.files.iter().filter_map(snapshot).collect(),
        }
    }
}

fn is_snapshot(file: File) -> bool {
    matches!(file, File::Snapshot(..))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_synced_survives_and_nothing_else_is_sure_to() {
        let (mut lost, mut kept) = (0, 0);
        for seed in 0..100 {
            let mut disk = Disk::new(Rng::new(seed, 1));
            let file = File::Segment(1);
            disk.perform(&Io::Create { file, size: 4096 });
            disk.perform(&Io::Write { file, offset: 0, bytes: vec![1; 1024].into() });
            disk.perform(&Io::Sync { file });
            disk.perform(&Io::Write { file, offset: 1024, bytes: vec![2; 2048].into() });
            disk.lose_power();
            let bytes = disk.contents().segments[&1].clone();
            assert!(bytes[..1024].iter().all(|&b| b == 1));
            let there = bytes[1024..3072].iter().filter(|&&b| b == 2).count();
            lost += usize::from(there == 0);
            kept += usize::from(there == 2048);
        }
        assert!(lost > 5 && kept > 5 && lost + kept < 95, "all three happen: {lost} lost, {kept} kept");
    }
}
