//! Files as bytes that the system reads when they are looked at.
//!
//! Invariant: a mapped file is never truncated and never written again, as long as anybody holds its bytes. It may lose
//! its name. Only sealed segments and complete snapshots are mapped; the rest is read.
#![allow(unsafe_code, reason = "a mapping is only as good as the promise that nobody changes the file")]

use std::fs::File;
use std::io;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use memmap2::Mmap;
use parking_lot::Mutex;
use quorate_engine::journal::File as Name;

struct Owner {
    map: Mmap,
    _held: Arc<()>,
}

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

/// Which files are mapped.
#[derive(Debug, Default)]
pub(super) struct Maps(Mutex<Vec<(Name, Weak<()>)>>);

impl Maps {
    /// Maps a file.
    pub(super) fn map(&self, name: Name, file: &File) -> io::Result<Bytes> {
        if file.metadata()?.len() == 0 {
            return Ok(Bytes::new());
        }
        // SAFETY: the directory is locked, so no other process of ours changes the file, and this one does not while
        // somebody holds the bytes: see the top of the file, and `is_held`.
        let map = unsafe { Mmap::map(file)? };
        let held = Arc::new(());
        self.0.lock().push((name, Arc::downgrade(&held)));
        Ok(Bytes::from_owner(Owner { map, _held: held }))
    }

    /// Whether somebody holds a file's bytes, so that it must not be written again.
    pub(super) fn is_held(&self, name: Name) -> bool {
        let mut maps = self.0.lock();
        maps.retain(|(_, held)| held.strong_count() > 0);
        maps.iter().any(|(other, _)| *other == name)
    }
}
