//! A data directory that begins with snapshots: how a restored node's comes to be.
//!
//! Invariants:
//! - It is made in an empty place. What was made is taken away again if it cannot be finished.
//! - The snapshots are on stable storage before the manifest names them, and the directory's own name before that; so
//!   what is left behind by a power cut is either a whole directory or one that no node starts on.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use quorate_engine::journal::{File as Name, Meta, Row, found_with};
use quorate_protocol::id::{GroupId, Index};

use super::dir::{OpenError, lock, name_directories, there};
use super::disk::Disk;

/// A directory that is being made. Dropped before `finish`, it is gone again.
#[derive(Debug)]
pub struct Restoring {
    path: PathBuf,
    _lock: File,
    /// What is to be taken away if it is not finished; the last first.
    made: Vec<PathBuf>,
}

impl Restoring {
    /// Begins in a place where nothing is.
    ///
    /// # Errors
    /// With a sentence that says what to do.
    pub fn begin(path: &Path) -> Result<Self, OpenError> {
        let failed = |error| OpenError::Io(path.to_owned(), error);
        let mut made = Vec::new();
        match entries(path).map_err(failed)? {
            None => {
                // Those above it may have to be made too.
                made.extend(path.ancestors().take_while(|dir| !is_there(dir)).map(Path::to_owned));
                made.reverse();
            }
            Some(true) => {}
            Some(false) => {
                let text = "is not empty; restore into a new one, or move away what is in it";
                return Err(OpenError::Foreign(path.to_owned(), text.to_owned()));
            }
        }
        let mut unfinished = Unfinished(made);
        for dir in [path.to_owned(), path.join("journal"), path.join("snapshots")] {
            DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(failed)?;
            if dir != path {
                unfinished.0.push(dir);
            }
        }
        unfinished.0.push(path.join("LOCK"));
        let lock = lock(path)?;
        Ok(Self { path: path.to_owned(), _lock: lock, made: std::mem::take(&mut unfinished.0) })
    }

    /// Writes a snapshot, slice by slice; returns its length.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn snapshot(
        &mut self,
        group: GroupId,
        index: Index,
        mut next: impl FnMut() -> Option<Bytes>,
    ) -> io::Result<u64> {
        let path = self.path.join(Name::Snapshot(group, index).path());
        self.made.push(path.clone());
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let mut length = 0;
        while let Some(slice) = next() {
            file.write_all(&slice)?;
            length += slice.len() as u64;
        }
        file.sync_all()?;
        Ok(length)
    }

    /// Says what the directory is: from now on a node can start on it.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn finish(mut self, meta: &Meta, rows: Vec<(GroupId, Row)>) -> io::Result<()> {
        File::open(self.path.join("snapshots"))?.sync_all()?;
        name_directories(&self.path)?;
        let mut ios = Vec::new();
        found_with(meta, rows, &mut ios);
        self.made.extend([Name::Hard, Name::Meta].map(|name| self.path.join(name.path())));
        Disk::new(&self.path).perform(&ios, &mut |_| false)?;
        self.made.clear();
        Ok(())
    }
}

impl Drop for Restoring {
    fn drop(&mut self) {
        drop(Unfinished(std::mem::take(&mut self.made)));
    }
}

/// Takes away what it holds.
struct Unfinished(Vec<PathBuf>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        for path in self.0.drain(..).rev() {
            // What cannot be taken away is no directory that a node would start on.
            let _ = if path.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) };
        }
    }
}

/// Whether a path names something; the empty one is where the process is.
fn is_there(path: &Path) -> bool {
    path.as_os_str().is_empty() || path.exists()
}

/// Whether a directory is empty; none if it is not there. What a file system keeps at its top does not count.
fn entries(path: &Path) -> io::Result<Option<bool>> {
    let Some(mut entries) = there(fs::read_dir(path))? else { return Ok(None) };
    entries.try_fold(true, |empty, entry| Ok(empty && entry?.file_name() == "lost+found")).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_finished_is_gone_and_what_is_there_is_left_alone() {
        let place = std::env::temp_dir().join(format!("quorate-restoring-{}", std::process::id()));
        let mut slices = [Bytes::from_static(b"abc")].into_iter();
        let below = place.join("of").join("node1");
        let mut restoring = Restoring::begin(&below).expect("it can be made");
        assert_eq!(restoring.snapshot(GroupId(1), 5, || slices.next()).expect("it can be written"), 3);
        assert!(below.join(Name::Snapshot(GroupId(1), 5).path()).exists());
        drop(restoring);
        assert!(!place.exists());

        fs::create_dir(&place).expect("it can be made");
        drop(Restoring::begin(&place).expect("an empty one will do"));
        assert!(entries(&place).expect("it can be read") == Some(true), "it is empty again, and there");
        fs::write(place.join("mine"), "x").expect("it can be written");
        let refused = Restoring::begin(&place).expect_err("it is not empty").to_string();
        assert!(refused.contains("is not empty; restore into a new one"), "{refused}");
        assert!(place.join("mine").exists() && !place.join("LOCK").exists());
        fs::remove_dir_all(place).expect("it is ours");
    }
}
