//! The journal's files: does what the journal's logic asks for, in order.
//!
//! Invariants:
//! - A file's name is synced with its first sync in this process, whoever made it.
//! - A segment that is not needed any more is written again under a new number, if nobody holds its bytes. What it
//!   held is no record there: a record's checksum covers its segment's number.
//! - A disk without room is waited for, and nothing is lost or done out of order meanwhile: what was written in part is
//!   written again at the same place. A failed sync is never tried again.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use quorate_engine::journal::{File as Name, Io, SEGMENT_SIZE, twin};
use rustix::fs::{FallocateFlags, fallocate, statvfs};

use super::mmap::Maps;

/// Zeroes are written in pieces of this size.
pub(super) const ZEROES: usize = 1 << 20;
/// Files that are kept open: the twins, and the segments in use.
const OPEN_FILES: usize = 4;
/// Segments that are kept to be written again.
const SPARES: u8 = 1;

/// What a disk without room asks: whether to try again, after a while if it is to be waited for.
pub(super) type NoRoom<'a> = &'a mut dyn FnMut(bool) -> bool;

/// See the top of the file. Files stay open between calls.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) path: PathBuf,
    open: Vec<(Name, File)>,
    /// Files whose name is on stable storage for certain. One that was found is not among them: whoever made it
    /// may have been killed before its sync.
    pub(super) named: Vec<Name>,
    /// A segment that was not zeroed ahead, and up to where it is by now.
    growing: Option<(Name, u64)>,
    pub(super) maps: Maps,
    /// A file whose syncs fail.
    #[cfg(test)]
    pub(super) broken: Option<Name>,
    /// How many things are done before the process is killed.
    #[cfg(test)]
    pub(super) lives_for: usize,
}

impl Disk {
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            open: Vec::new(),
            named: Vec::new(),
            growing: None,
            maps: Maps::default(),
            #[cfg(test)]
            broken: None,
            #[cfg(test)]
            lives_for: usize::MAX,
        }
    }

    /// Does the list in order.
    pub(super) fn perform(&mut self, ios: &[Io], no_room: NoRoom<'_>) -> io::Result<()> {
        for io in ios {
            while let Err(error) = self.perform_one(io) {
                let waits = !matches!(io, Io::Sync { .. }) && is_full(&error);
                if !waits || !no_room(!self.use_reserve(io)?) {
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn perform_one(&mut self, io: &Io) -> io::Result<()> {
        #[cfg(test)]
        match self.lives_for.checked_sub(1) {
            Some(left) => self.lives_for = left,
            None => return Err(io::Error::other("it is killed here")),
        }
        match io {
            Io::Create { file, size } => self.create(*file, *size),
            Io::Write { file, offset, bytes } => {
                self.zero_ahead(*file, offset + bytes.len() as u64)?;
                self.file(*file)?.write_all_at(bytes, *offset)
            }
            Io::Sync { file } => self.sync(*file),
            Io::Remove { file } => self.remove(*file),
        }
    }

    fn path_of(&self, name: Name) -> PathBuf {
        self.path.join(name.path())
    }

    fn file(&mut self, name: Name) -> io::Result<&File> {
        if let Some(at) = self.open.iter().position(|(open, _)| *open == name) {
            return Ok(&self.open[at].1);
        }
        let options =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).clone();
        let file = options.open(self.path_of(name))?;
        if matches!(name, Name::Meta | Name::Hard) && file.metadata()?.len() == 0 {
            // So that a vote finds its room on a full disk.
            write_zeroes(&file, 0, 2 * twin::COPY)?;
        }
        if self.open.len() == OPEN_FILES {
            let (closed, _) = self.open.remove(0);
            self.named.retain(|named| *named != closed);
        }
        self.open.push((name, file));
        Ok(&self.open[self.open.len() - 1].1)
    }

    /// A file's name is given to another one, or to none.
    fn forget(&mut self, name: Name) {
        self.open.retain(|(open, _)| *open != name);
        self.named.retain(|named| *named != name);
        self.growing = self.growing.filter(|(growing, _)| *growing != name);
    }

    /// Makes a segment of zeroes, unless `prepare` has made it already, or there is an old one to write again.
    fn create(&mut self, name: Name, size: u64) -> io::Result<()> {
        self.forget(name);
        let path = self.path_of(name);
        let prepared = prepared_path(&self.path, name);
        if fs::metadata(&prepared).is_ok_and(|meta| meta.len() == size) {
            return fs::rename(prepared, path);
        }
        self.make(name, &path, size)?;
        // Too small for what is to be written, or only just made: `prepare` looks for the segment after that.
        remove_if_there(&prepared)
    }

    fn make(&mut self, name: Name, path: &Path, size: u64) -> io::Result<()> {
        if size == SEGMENT_SIZE && take_spare(&self.path, path)? {
            return Ok(());
        }
        let file = self.file(name)?;
        file.set_len(0)?;
        file.set_len(size)?;
        // Zeroed as it is reached, so that a fresh node starts at once.
        self.growing = Some((name, 0));
        Ok(())
    }

    /// Zeroes a growing segment before a write reaches bytes that were never written: a commit into them
    /// would have to change the file's metadata too.
    fn zero_ahead(&mut self, name: Name, end: u64) -> io::Result<()> {
        let Some((growing, zeroed)) =
            self.growing.filter(|(growing, zeroed)| *growing == name && end > *zeroed)
        else {
            return Ok(());
        };
        let file = self.file(name)?;
        let to = (end.next_multiple_of(ZEROES as u64)).min(file.metadata()?.len());
        write_zeroes(file, zeroed, to)?;
        self.growing = Some((growing, to));
        Ok(())
    }

    fn sync(&mut self, name: Name) -> io::Result<()> {
        if cfg!(quorate_no_sync) {
            return Ok(()); // Loses what was acknowledged: only tests/power builds it, to see it caught.
        }
        #[cfg(test)]
        if self.broken == Some(name) {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.file(name)?.sync_data()?;
        if !self.named.contains(&name) {
            let path = self.path_of(name);
            File::open(path.parent().unwrap_or(&self.path))?.sync_all()?;
            self.named.push(name);
        }
        Ok(())
    }

    /// Takes a file away; a segment is kept for later if it can be written again. One with another name is somebody's still.
    fn remove(&mut self, name: Name) -> io::Result<()> {
        self.forget(name);
        let path = self.path_of(name);
        let whole = |meta: fs::Metadata| {
            meta.len() == SEGMENT_SIZE && meta.blocks() * 512 >= meta.len() && meta.nlink() == 1
        };
        if matches!(name, Name::Segment(_))
            && fs::metadata(&path).is_ok_and(whole)
            && !self.maps.is_held(name)
            && let Some(place) = spare_places(&self.path).find(|place| !place.exists())
        {
            return fs::rename(path, place);
        }
        remove_if_there(&path)
    }

    /// Makes room for what failed, from what is kept for that; whether there was any.
    fn use_reserve(&mut self, io: &Io) -> io::Result<bool> {
        let reserve = reserve_path(&self.path);
        if !reserve.exists() {
            return Ok(false);
        }
        if let Io::Write { file: name, .. } = io
            && let Some((growing, zeroed)) = self.growing
            && growing == *name
        {
            let size = self.file(*name)?.metadata()?.len();
            if zeroed == 0 && size == SEGMENT_SIZE {
                self.forget(*name);
                fs::rename(reserve, self.path_of(*name))?;
                return Ok(true);
            }
            fs::remove_file(reserve)?;
            // What was freed is this segment's, before anybody else takes it.
            let _ = fallocate(self.file(*name)?, FallocateFlags::empty(), zeroed, size - zeroed);
            return Ok(true);
        }
        fs::remove_file(reserve)?;
        Ok(true)
    }
}

/// Whether an error says that there is no room.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Bytes that may still be written to the file system of a path.
pub(super) fn room_at(path: &Path) -> io::Result<u64> {
    let stat = statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

pub(super) fn prepared_path(path: &Path, name: Name) -> PathBuf {
    path.join(format!("{}.next", name.path()))
}

pub(super) fn reserve_path(path: &Path) -> PathBuf {
    path.join("journal").join("reserve")
}

/// Where old segments wait to be written again.
pub(super) fn spare_places(path: &Path) -> impl Iterator<Item = PathBuf> {
    let journal = path.join("journal");
    (1..=SPARES).map(move |number| journal.join(format!("spare-{number}")))
}

/// Gives an old segment a new name; whether there was one.
fn take_spare(path: &Path, to: &Path) -> io::Result<bool> {
    for place in spare_places(path) {
        match fs::rename(place, to) {
            Ok(()) => return Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

fn write_zeroes(file: &File, from: u64, to: u64) -> io::Result<()> {
    let zeroes = vec![0; ZEROES];
    let mut offset = from;
    while offset < to {
        let piece = usize::try_from(to - offset).unwrap_or(ZEROES).min(ZEROES);
        file.write_all_at(&zeroes[..piece], offset)?;
        offset += piece as u64;
    }
    Ok(())
}

/// Makes the file of a segment ahead of need, so that commits into it change no metadata: zeroed and synced, or one that
/// was used before.
pub(super) fn prepare(path: &Path, name: Name, size: u64) -> io::Result<()> {
    let prepared = prepared_path(path, name);
    // Commits may have come to it meanwhile, and made it themselves.
    let is_late = || path.join(name.path()).exists();
    if is_late() {
        return Ok(());
    }
    if fs::metadata(&prepared).is_ok_and(|meta| meta.len() == size) {
        return Ok(());
    }
    if size == SEGMENT_SIZE && take_spare(path, &prepared)? {
        return if is_late() { remove_if_there(&prepared) } else { Ok(()) };
    }
    if !keep_reserve(path)? || room_at(path)? < 2 * size {
        return Err(ErrorKind::StorageFull.into());
    }
    let making = path.join(format!("{}.making", name.path()));
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&making)?;
    if let Err(error) = write_zeroes(&file, 0, size).and_then(|()| file.sync_all()) {
        fs::remove_file(making)?;
        return Err(error);
    }
    fs::rename(making, &prepared)?;
    if is_late() { remove_if_there(&prepared) } else { Ok(()) }
}

/// Sets a segment's room aside, for when there is none; whether it is there.
pub(super) fn keep_reserve(path: &Path) -> io::Result<bool> {
    // Two threads want it, and one makes it.
    static MAKING: Mutex<()> = Mutex::new(());
    let _one = MAKING.lock();
    let reserve = reserve_path(path);
    if fs::metadata(&reserve).is_ok_and(|meta| meta.len() == SEGMENT_SIZE) {
        return Ok(true);
    }
    if room_at(path)? < 2 * SEGMENT_SIZE {
        return Ok(false);
    }
    let making = reserve.with_extension("making");
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&making)?;
    // Where room cannot be set aside without writing, it is written.
    let allocated = fallocate(&file, FallocateFlags::empty(), 0, SEGMENT_SIZE).map_err(io::Error::from);
    let made = match allocated {
        Err(error) if error.kind() == ErrorKind::Unsupported => write_zeroes(&file, 0, SEGMENT_SIZE),
        done => done,
    };
    if let Err(error) = made.and_then(|()| file.sync_all()) {
        fs::remove_file(making)?;
        return Err(error);
    }
    fs::rename(making, reserve)?;
    Ok(true)
}
