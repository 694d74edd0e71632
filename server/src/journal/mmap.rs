//! Files as bytes that the system reads when they are looked at.
//!
//! Invariant: a mapped file is never truncated and never written again, as long as anybody holds its bytes. It may lose
//! its name. Only sealed segments and complete snapshots are mapped; the rest is read.
#![allow(
    unsafe_code,
    reason = "a mapping is only as good as the promise that nobody changes the file, and its reader is told of a bad disk by a signal"
)]

use std::fs::File;
use std::io;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use memmap2::{Mmap, MmapOptions};
use parking_lot::Mutex;
use quorate_engine::journal::File as Name;

/// Mappings from this size on are let go of by a thread of their own: whoever drops the last part of one may be the engine,
/// and the system takes a millisecond for each hundred MiB.
const LARGE: usize = 16 << 20;

struct Owner {
    map: Option<Mmap>,
    _held: Option<Arc<()>>,
}

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if let Some(map) = self.map.take_if(|map| map.len() >= LARGE) {
            // Without a thread it is let go of here.
            let _ = std::thread::Builder::new().name("unmap".into()).spawn(move || drop(map));
        }
    }
}

/// Maps a file. What is written to it later is seen in the bytes: nobody does that, but a disk may.
///
/// # Errors
/// When the operating system refuses.
pub fn map(file: &File) -> io::Result<Bytes> {
    map_held(file, None)
}

fn map_held(file: &File, held: Option<Arc<()>>) -> io::Result<Bytes> {
    if file.metadata()?.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the directory is locked, so no other process of ours changes the file, and this one does not while
    // somebody holds the bytes: see the top of the file, and `is_held`.
    let map = unsafe { Mmap::map(file)? };
    Ok(Bytes::from_owner(Owner { map: Some(map), _held: held }))
}

/// A copy of many bytes in memory of the process's own, in large pages where the system has them: taking a GiB in small ones
/// costs half a second.
pub(super) fn copy(bytes: &[u8]) -> Bytes {
    let Ok(mut room) = MmapOptions::new().len(bytes.len()).populate().map_anon() else {
        return Bytes::copy_from_slice(bytes);
    };
    room.copy_from_slice(bytes);
    Bytes::from_owner(room)
}

/// What is said of a page that cannot be read.
const UNREADABLE: &[u8] = b"this node stops: the disk did not give back a part of a mapped file in the data directory (SIGBUS); the system's \
log says which disk. Start it again when the disk can be read: what is damaged is replaced from the other nodes\n";

/// From now on a page that the disk refuses to give back ends the process with a last line, as every other failure of a disk does.
///
/// # Errors
/// When the operating system refuses.
pub fn stop_on_unreadable_pages() -> io::Result<()> {
    let stop = || {
        // Nobody may be reading.
        let _ = rustix::io::write(rustix::stdio::stderr(), UNREADABLE);
        signal_hook::low_level::exit(70)
    };
    // SAFETY: whatever thread it comes to, in the middle of whatever, this writes bytes that are there already and ends the process.
    unsafe { signal_hook::low_level::register(signal_hook::consts::SIGBUS, stop) }.map(drop)
}

/// Which files are mapped.
#[derive(Debug, Default)]
pub(super) struct Maps(Mutex<Vec<(Name, Weak<()>)>>);

impl Maps {
    /// Maps a file.
    pub(super) fn map(&self, name: Name, file: &File) -> io::Result<Bytes> {
        let held = Arc::new(());
        let known = Arc::downgrade(&held);
        let bytes = map_held(file, Some(held))?;
        self.0.lock().push((name, known));
        Ok(bytes)
    }

    /// Whether somebody holds a file's bytes, so that it must not be written again.
    pub(super) fn is_held(&self, name: Name) -> bool {
        let mut maps = self.0.lock();
        maps.retain(|(_, held)| held.strong_count() > 0);
        maps.iter().any(|(other, _)| *other == name)
    }
}
