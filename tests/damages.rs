//! The ways to spoil a data directory of a node that is down: every kind of file, and every kind of place in it.
//!
//! Charter: what can be wrong with files, for the suite that sees each of them repaired and for the soak, which deals
//! them out among other faults.

use std::fs;
use std::path::{Path, PathBuf};

/// The files of a directory whose names end like this, in order.
///
/// # Panics
/// When the directory cannot be read.
#[must_use]
pub fn files(dir: &Path, end: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("it is there").map(|entry| entry.expect("it is there").path());
    let mut files: Vec<PathBuf> =
        entries.filter(|path| path.to_str().is_some_and(|path| path.ends_with(end))).collect();
    files.sort();
    files
}

/// The segments of a node's journal, oldest first.
///
/// # Panics
/// When there is no journal.
#[must_use]
pub fn segments(data: &Path) -> Vec<PathBuf> {
    files(&data.join("journal"), ".seg")
}

/// Changes a file's bytes.
///
/// # Panics
/// When it is not there.
pub fn change(path: &Path, how: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).expect("it is there");
    how(&mut bytes);
    fs::write(path, bytes).expect("it is ours");
}

/// Where a commit begins that is not a segment's first and has an entry that says something. What is behind it proves
/// that it was synced.
fn find_commit(bytes: &[u8], own: u32) -> Option<usize> {
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    // The file may have been another segment before; what is left of that names another number.
    let number = |at: usize| word(at + 48);
    let is_batch = |at: &usize| word(*at) == 32 && bytes[at + 8] == 2 && number(*at) == own;
    let has_entry = |at: &usize| word(at + 64) >= 8 && bytes[at + 72] == 3;
    let mut commits = (0..bytes.len().saturating_sub(128)).step_by(512).filter(is_batch).skip(1);
    commits.find(has_entry)
}

fn some_commit(bytes: &[u8], own: u32) -> usize {
    find_commit(bytes, own).expect("there are many commits")
}

/// The lower half of a segment's number; the upper one is that of a directory that is not its node's first.
fn number_of(segment: &Path) -> u32 {
    let name = segment.file_stem().and_then(|name| name.to_str()).expect("it is a number");
    let number: u64 = name.parse().expect("it is a number");
    u32::try_from(number & u64::from(u32::MAX)).expect("it is the lower half")
}

/// One way to spoil a directory, and the file that the log is to name; none if nothing is lost by it.
#[derive(Debug)]
pub struct Damage {
    /// In words.
    pub name: &'static str,
    /// Segments that must be there to be spoilt.
    pub segments: usize,
    /// Whether a snapshot must be there.
    pub snapshot: bool,
    /// Does it to a data directory.
    pub spoil: fn(&Path) -> Option<PathBuf>,
}

impl Damage {
    /// Whether the directory has what is to be spoilt: a young one may have no snapshot, or one segment only.
    ///
    /// # Panics
    /// When the directory cannot be read.
    #[must_use]
    pub fn fits(&self, data: &Path) -> bool {
        let segments = segments(data);
        let has_commits =
            |path: &PathBuf| fs::read(path).is_ok_and(|bytes| find_commit(&bytes, number_of(path)).is_some());
        let ends = [segments.first(), segments.last()];
        segments.len() >= self.segments
            && ends.into_iter().all(|path| path.is_some_and(has_commits))
            && (!self.snapshot || !files(&data.join("snapshots"), ".snap").is_empty())
    }
}

fn spoil_first(data: &Path, how: impl FnOnce(&mut Vec<u8>, u32)) -> Option<PathBuf> {
    let path = segments(data).first().expect("there are segments").clone();
    let number = number_of(&path);
    change(&path, |bytes| how(bytes, number));
    Some(path)
}

/// Changes the bytes of the last segment, the open one; the change is given the segment's number.
///
/// # Panics
/// When there is none.
pub fn spoil_last(data: &Path, how: impl FnOnce(&mut Vec<u8>, u32)) -> Option<PathBuf> {
    let path = segments(data).last().expect("there are segments").clone();
    let number = number_of(&path);
    change(&path, |bytes| how(bytes, number));
    Some(path)
}

fn newest_snapshot(data: &Path) -> PathBuf {
    // The last one of the first group that has any: older ones are only waiting to be removed.
    let all = files(&data.join("snapshots"), ".snap");
    let group = |path: &PathBuf| path.file_name().map(|name| name.as_encoded_bytes()[..5].to_vec());
    let first = all.first().expect("there are snapshots");
    all.iter().rfind(|path| group(path) == group(first)).expect("it was just seen").clone()
}

/// All of them.
pub const DAMAGES: &[Damage] = &[
    Damage {
        name: "a snapshot that has a byte flipped",
        segments: 1,
        snapshot: true,
        spoil: |data| {
            let path = newest_snapshot(data);
            change(&path, |bytes| {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
            });
            Some(path)
        },
    },
    Damage {
        name: "a snapshot that is gone",
        segments: 1,
        snapshot: true,
        spoil: |data| {
            let path = newest_snapshot(data);
            fs::remove_file(&path).expect("it is ours");
            Some(path)
        },
    },
    Damage {
        name: "a snapshot that was cut off",
        segments: 1,
        snapshot: true,
        spoil: |data| {
            let path = newest_snapshot(data);
            change(&path, |bytes| bytes.truncate(bytes.len() / 2));
            Some(path)
        },
    },
    Damage {
        name: "the header of a sealed segment",
        segments: 2,
        snapshot: false,
        spoil: |data| spoil_first(data, |bytes, _| bytes[40] ^= 1),
    },
    Damage {
        name: "the header of the open segment",
        segments: 1,
        snapshot: false,
        spoil: |data| spoil_last(data, |bytes, _| bytes[40] ^= 1),
    },
    Damage {
        name: "the body of a record in the open segment",
        segments: 1,
        snapshot: false,
        spoil: |data| {
            spoil_last(data, |bytes, number| {
                let at = some_commit(bytes, number) + 64;
                bytes[at + 36] ^= 1;
            })
        },
    },
    Damage {
        name: "the body of a record in a sealed segment",
        segments: 2,
        snapshot: false,
        spoil: |data| {
            spoil_first(data, |bytes, number| {
                let at = some_commit(bytes, number) + 64;
                bytes[at + 36] ^= 1;
            })
        },
    },
    Damage {
        name: "a marker",
        segments: 1,
        snapshot: false,
        spoil: |data| {
            spoil_last(data, |bytes, number| {
                let at = some_commit(bytes, number);
                bytes[at + 50] ^= 1;
            })
        },
    },
    Damage {
        name: "zeroes over the beginning of the open segment",
        segments: 1,
        snapshot: false,
        spoil: |data| spoil_last(data, |bytes, _| bytes[..1024].fill(0)),
    },
    Damage {
        name: "zeroes over the beginning of a sealed segment",
        segments: 2,
        snapshot: false,
        spoil: |data| spoil_first(data, |bytes, _| bytes[..1024].fill(0)),
    },
    Damage {
        name: "a segment that is gone",
        segments: 2,
        snapshot: false,
        spoil: |data| {
            let path = segments(data).first().expect("there are segments").clone();
            fs::remove_file(&path).expect("it is ours");
            Some(path)
        },
    },
    Damage {
        name: "the open segment that is gone",
        segments: 1,
        snapshot: false,
        spoil: |data| {
            let path = segments(data).last().expect("there are segments").clone();
            fs::remove_file(&path).expect("it is ours");
            Some(path)
        },
    },
    Damage {
        name: "one copy of the manifest",
        segments: 1,
        snapshot: false,
        spoil: |data| {
            change(&data.join("hardstate"), |bytes| bytes[30] ^= 1);
            None
        },
    },
    Damage {
        name: "both copies of the manifest",
        segments: 1,
        snapshot: false,
        spoil: |data| {
            change(&data.join("hardstate"), |bytes| {
                bytes[30] ^= 1;
                bytes[65_536 + 30] ^= 1;
            });
            Some(data.join("hardstate"))
        },
    },
    Damage {
        name: "one copy of what the directory is",
        segments: 1,
        snapshot: false,
        spoil: |data| {
            change(&data.join("meta"), |bytes| bytes[30] ^= 1);
            None
        },
    },
    Damage {
        name: "what the directory is",
        segments: 1,
        snapshot: false,
        spoil: |data| {
            fs::remove_file(data.join("meta")).expect("it is ours");
            None
        },
    },
];
