//! A node's data directory: locked, founded, read back.
//!
//! Invariants:
//! - One process at a time. What recovery demands is on the disk before `open` returns, so nothing of a start leaves
//!   the node before its boot number is raised and synced.
//! - What a start has mapped is looked at once. Entries of the log are copied out of segments, so that these can be
//!   written again; snapshots stay mapped, and the engine checks what it takes from them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use quorate_engine::journal::{
    self, Contents, Damage, File as Name, Io, Journal, Meta, Options, Recovered, Refusal, SEGMENT_SIZE, found,
};
use quorate_protocol::id::{Boot, ClusterId, GroupId, Identity, NodeId};
use rustix::fs::{FlockOperation, flock};

use super::aside;
use super::disk::{Disk, NoRoom, prepared_path};
use super::mmap::{self, Maps};

/// Bytes of a record besides its entry, about.
const RECORD: usize = 32;

/// What an empty directory is founded as, and what a founded one is checked against.
#[derive(Debug, Clone)]
pub struct Founding {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// Partitions of a new cluster.
    pub partitions: u16,
    /// The nodes of the first configuration and their peer addresses.
    pub founders: Vec<(NodeId, String)>,
    /// Which life of its id the node begins; see `quorate_engine::members`.
    pub life: u32,
}

/// Why a data directory cannot be used; a sentence that says what to do.
#[derive(Debug)]
pub enum OpenError {
    /// The operating system refused.
    Io(PathBuf, io::Error),
    /// Another process uses it.
    InUse(PathBuf, String),
    /// It belongs to another node or cluster.
    Foreign(PathBuf, String),
    /// Nobody can tell whose it is, or this release cannot read it.
    Refused(PathBuf, Refusal),
    /// Something cannot be read that no other node has.
    Irreplaceable(PathBuf, Vec<Damage>),
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(path, error) => {
                write!(
                    f,
                    "data directory {}: {error}; check the path and its permissions (--data-dir)",
                    path.display()
                )
            }
            Self::InUse(path, holder) => write!(
                f,
                "data directory {} is in use by process {holder}; stop that node, or give this one its own --data-dir",
                path.display()
            ),
            Self::Foreign(path, what) => write!(f, "data directory {} {what}", path.display()),
            Self::Refused(path, refusal @ Refusal::Newer(..)) => write!(
                f,
                "data directory {}: {refusal}; nothing was changed: start the release that wrote it, or a newer one",
                path.display()
            ),
            Self::Refused(path, refusal @ Refusal::Nameless(_)) => write!(
                f,
                "data directory {}: {refusal}; this node cannot say who it is: remove it from the cluster's members, and \
                 add it again with an empty directory",
                path.display()
            ),
            Self::Irreplaceable(path, damage) => {
                let damage: Vec<String> = damage.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "data directory {}: {}; no other node has what this one had, so nothing was changed: bring the file back \
                     as it was, or restore the newest backup into a new directory (quorate snapshot restore). If other nodes have \
                     joined since this one was founded, let them remove it, and add it again with an empty directory",
                    path.display(),
                    damage.join("; ")
                )
            }
        }
    }
}

impl std::error::Error for OpenError {}

/// A locked data directory. The lock goes with the value, and so does what is known of its files: which are
/// open, and how far the segment in use is zeroed.
#[derive(Debug)]
pub struct DataDir {
    pub(super) disk: Disk,
    _lock: File,
}

/// Groups that cannot be loaded, and what was found.
pub type Unreadable = BTreeMap<GroupId, Damage>;

/// What is to be done on the disk before what a start has found counts.
pub struct Start {
    read: Found,
    /// What was found, without its snapshots and entries.
    pub(super) found: Recovered,
    journal: Journal,
    pub(super) ios: Vec<Io>,
}

impl DataDir {
    /// Locks a directory, founds it if it is empty, reads it, and does what recovery demands.
    ///
    /// # Errors
    /// With a sentence that says what to do.
    pub fn open(path: &Path, founding: &Founding) -> Result<(Self, Recovered, Journal), OpenError> {
        let (mut dir, recovered, start) = Self::find(path, founding, &Unreadable::new())?;
        let journal = dir.begin(start)?;
        Ok((dir, recovered, journal))
    }

    /// Locks a directory, founds it if it is empty, and reads it. A directory that was founded is as it was, until `begin`.
    /// `unreadable`: what is known of groups that cannot be loaded.
    ///
    /// # Errors
    /// With a sentence that says what to do.
    pub fn find(
        path: &Path,
        founding: &Founding,
        unreadable: &Unreadable,
    ) -> Result<(Self, Recovered, Start), OpenError> {
        let failed = |error| OpenError::Io(path.to_owned(), error);
        check_place(path)?;
        for inner in ["journal", "snapshots"] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(path.join(inner)).map_err(failed)?;
        }
        let lock = lock(path)?;
        let mut dir = Self { disk: Disk::new(path), _lock: lock };
        let refused = |refusal| OpenError::Refused(path.to_owned(), refusal);
        let mut read = read(path, &dir.disk.maps, &BTreeSet::new()).map_err(failed)?;
        match journal::read_meta(&read.contents).map_err(refused)? {
            Some((_, meta)) => dir.check(&meta, founding)?,
            None => {
                name_directories(path).map_err(failed)?;
                let mut ios = Vec::new();
                found(&founding.meta().map_err(failed)?, founding.life, &mut ios);
                dir.perform(&ios, &mut |wait| !wait).map_err(failed)?;
                read = self::read(path, &dir.disk.maps, &BTreeSet::new()).map_err(failed)?;
            }
        }
        let (mut recovered, journal, ios) = dir.recover(&mut read, unreadable)?;
        if aside::is_irreplaceable(&recovered) {
            return Err(OpenError::Irreplaceable(path.to_owned(), recovered.damage));
        }
        detach(&read, &mut recovered);
        let Recovered { meta, rows, damage, .. } = &recovered;
        let (meta, rows, damage) = (meta.clone(), rows.clone(), damage.clone());
        let found = Recovered { meta, rows, damage, snapshots: BTreeMap::new(), entries: BTreeMap::new() };
        Ok((dir, recovered, Start { read, found, journal, ios }))
    }

    /// Does what recovery demands.
    ///
    /// # Errors
    /// With a sentence that says what to do.
    pub fn begin(&mut self, start: Start) -> Result<Journal, OpenError> {
        let Start { read, found, journal, ios } = start;
        for damage in &found.damage {
            tracing::warn!("{damage}; the groups that may have lost something by it wait to be replaced");
        }
        let done = self.settle(&found, &ios).and_then(|()| self.give_back(&read.contents, &ios, &journal));
        done.map_err(|error| OpenError::Io(self.path().to_owned(), error))?;
        Ok(journal)
    }

    /// Does what recovery asks for. What it has no use for after damage is kept first.
    pub(super) fn settle(&mut self, recovered: &Recovered, ios: &[Io]) -> io::Result<()> {
        if recovered.damage.is_empty() {
            self.perform(ios, &mut |wait| !wait)?;
            return aside::let_go(self.path(), recovered);
        }
        let place = aside::place(self.path(), recovered);
        tracing::warn!("what cannot be used any more is kept in {}", place.display());
        aside::keep(self.path(), &place, ios)?;
        self.perform(ios, &mut |wait| !wait)
    }

    /// Reads what `read` has brought. Whatever is to be written to must not be mapped: it is read again as a copy.
    fn recover(
        &self,
        read: &mut Found,
        unreadable: &Unreadable,
    ) -> Result<(Recovered, Journal, Vec<Io>), OpenError> {
        let options = Options { unreadable: unreadable.clone(), ..Options::new(SEGMENT_SIZE) };
        loop {
            let found = journal::recover(&read.contents, &options)
                .map_err(|refusal| OpenError::Refused(self.path().to_owned(), refusal))?;
            let written = found.2.iter().filter_map(|io| match io {
                Io::Write { file: Name::Segment(number), .. } => Some(*number),
                _ => None,
            });
            let mapped: BTreeSet<u64> = written
                .filter(|number| read.contents.segments.contains_key(number) && !read.copied.contains(number))
                .collect();
            if mapped.is_empty() {
                return Ok(found);
            }
            drop(found);
            *read = self::read(self.path(), &self.disk.maps, &mapped)
                .map_err(|error| OpenError::Io(self.path().to_owned(), error))?;
        }
    }

    /// Gives back the room behind the seals that recovery has written, and files that were made ahead in
    /// vain: each start opens a new segment, and many starts must not fill the disk.
    fn give_back(&self, contents: &Contents, ios: &[Io], journal: &Journal) -> io::Result<()> {
        for io in ios {
            if let Io::Write { file: Name::Segment(number), offset, bytes } = io
                && contents.segments.contains_key(number)
            {
                let path = self.path().join(Name::Segment(*number).path());
                // It may have been taken away since.
                if let Some(file) = there(OpenOptions::new().write(true).open(path))? {
                    file.set_len(offset + bytes.len() as u64)?;
                }
            }
        }
        let ahead = prepared_path(self.path(), journal.next_segment().0);
        for file in fs::read_dir(self.path().join("journal"))? {
            let path = file?.path();
            let left_over = path.extension().is_some_and(|end| end == "making" || end == "next");
            if left_over && path != ahead {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.disk.path
    }

    /// Does what the journal's logic asks for, in order.
    pub(super) fn perform(&mut self, ios: &[Io], no_room: NoRoom<'_>) -> io::Result<()> {
        self.disk.perform(ios, no_room)
    }

    fn check(&self, meta: &Meta, founding: &Founding) -> Result<(), OpenError> {
        let foreign = |what| Err(OpenError::Foreign(self.path().to_owned(), what));
        if meta.node != founding.node {
            let (is, wanted) = (meta.node.0, founding.node.0);
            return foreign(format!(
                "belongs to node {is}, not to node {wanted}; correct --node-id or --data-dir"
            ));
        }
        // Not the cluster's id: that of a restored one is another than its founding would give.
        if meta.founders != founding.founders {
            let known: Vec<String> =
                meta.founders.iter().map(|(id, address)| format!("{}={address}", id.0)).collect();
            let known = known.join(",");
            return foreign(format!(
                "belongs to another cluster, founded as {known}; correct --initial-cluster or --data-dir"
            ));
        }
        Ok(())
    }
}

/// The bytes of a directory.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) contents: Contents,
    /// The segments that are copies; all others are mapped.
    copied: BTreeSet<u64>,
}

/// Reads a directory. The segments from the last one on that was ever begun are copied, and those that are asked for:
/// they may be written to. All others are mapped, and so are snapshots.
pub(super) fn read(path: &Path, maps: &Maps, copies: &BTreeSet<u64>) -> io::Result<Found> {
    let mut read = Found::default();
    read.contents.meta = copy(&path.join(Name::Meta.path()))?;
    read.contents.hard = copy(&path.join(Name::Hard.path()))?;
    let mut begun = false;
    for number in numbers(path)?.into_iter().rev() {
        let name = Name::Segment(number);
        let bytes = if begun && !copies.contains(&number) {
            let Some(file) = there(File::open(path.join(name.path())))? else { continue };
            maps.map(name, &file)?
        } else {
            let Some(bytes) = copy(&path.join(name.path()))? else { continue };
            read.copied.insert(number);
            bytes
        };
        begun |= bytes.iter().take(8).any(|&byte| byte != 0);
        read.contents.segments.insert(number, bytes);
    }
    for (group, index) in snapshots(path)? {
        let name = Name::Snapshot(group, index);
        let Some(file) = there(File::open(path.join(name.path())))? else { continue };
        read.contents.snapshots.insert((group, index), maps.map(name, &file)?);
    }
    Ok(read)
}

/// A directory as it lies there, for those who only look.
#[derive(Debug)]
pub struct Look {
    /// Its files.
    pub contents: Contents,
    /// The process that uses it.
    pub holder: Option<String>,
    /// As long as nobody uses it, nobody begins to while it is looked at.
    _lock: Option<File>,
}

impl Look {
    /// Reads a directory. What a running node may write again is copied, not mapped.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn at(path: &Path) -> io::Result<Self> {
        let mut lock = there(File::open(path.join("LOCK")))?;
        let mut holder = None;
        if let Some(file) = &mut lock
            && flock(&*file, FlockOperation::NonBlockingLockShared).is_err()
        {
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            holder = Some(text.trim().to_owned());
        }
        let copies = if holder.is_some() { numbers(path)?.into_iter().collect() } else { BTreeSet::new() };
        let contents = read(path, &Maps::default(), &copies)?.contents;
        Ok(Self { contents, holder, _lock: lock })
    }
}

/// The numbers of a directory's segments, rising.
fn numbers(path: &Path) -> io::Result<Vec<u64>> {
    let number = |name: &str| name.strip_suffix(".seg").and_then(|name| name.parse().ok());
    let mut numbers: Vec<u64> =
        names(&path.join("journal"))?.iter().filter_map(|name| number(name)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// A directory's snapshots.
fn snapshots(path: &Path) -> io::Result<Vec<(GroupId, u64)>> {
    let parse = |name: &String| {
        let (group, index) = name.strip_suffix(".snap")?.split_once('-')?;
        Some((GroupId(group.parse().ok()?), index.parse().ok()?))
    };
    Ok(names(&path.join("snapshots"))?.iter().filter_map(parse).collect())
}

fn names(path: &Path) -> io::Result<Vec<String>> {
    let Some(entries) = there(fs::read_dir(path))? else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().to_str().map(str::to_owned));
    }
    Ok(names)
}

fn copy(path: &Path) -> io::Result<Option<Bytes>> {
    Ok(there(fs::read(path))?.map(Bytes::from))
}

/// Whether a place may become a data directory: it is one, or has nothing in it but what a founding leaves there when it is cut
/// short, and what file systems and desktops put anywhere.
///
/// # Errors
/// With a sentence that says what to do.
pub fn check_place(path: &Path) -> Result<(), OpenError> {
    let failed = |error| OpenError::Io(path.to_owned(), error);
    let mut others = Vec::new();
    for entry in there(fs::read_dir(path)).map_err(failed)?.into_iter().flatten() {
        let entry = entry.map_err(failed)?;
        match entry.file_name().to_string_lossy() {
            name if (name == "meta" || name == "hardstate") && entry.path().is_file() => return Ok(()),
            name if ["LOCK", "journal", "snapshots", "lost+found"].contains(&&*name)
                || name.starts_with('.') => {}
            name => others.push(name.into_owned()),
        }
    }
    let Some(first) = others.into_iter().min() else { return Ok(()) };
    let text = format!(
        "holds {first}, and no node was founded there; give the node a directory of its own (--data-dir)"
    );
    Err(OpenError::Foreign(path.to_owned(), text))
}

/// What is not there is no error.
pub(super) fn there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        done => done.map(Some),
    }
}

impl Founding {
    fn meta(&self) -> io::Result<Meta> {
        let mut random = [0; 16];
        File::open("/dev/urandom")?.read_exact(&mut random)?;
        Ok(Meta {
            cluster: self.cluster,
            node: self.node,
            identity: Identity(u128::from_le_bytes(random)),
            boot: Boot(0),
            partitions: self.partitions,
            founders: self.founders.clone(),
        })
    }
}

/// Entries are read as parts of their segment's bytes. They are taken from copies instead: so no segment is held by what the engine
/// keeps, and what is read from the disk later was never checked. A segment that is mostly entries is copied as a whole.
fn detach(read: &Found, recovered: &mut Recovered) {
    let segments: Vec<&Bytes> = read.contents.segments.values().collect();
    let place_in = |at: usize, data: &Bytes| {
        let range = segments.get(at)?.as_ptr_range();
        range.contains(&data.as_ptr()).then(|| data.as_ptr() as usize - range.start as usize)
    };
    // Neighbours in a log are mostly neighbours in a segment too.
    let mut last = 0;
    let mut find = |data: &Bytes| {
        let at = std::iter::once(last).chain(0..segments.len()).find(|&at| place_in(at, data).is_some())?;
        last = at;
        Some((at, place_in(at, data)?))
    };
    let mut used = vec![0; segments.len()];
    for entry in recovered.entries.values().flatten() {
        if let Some((at, _)) = find(&entry.data) {
            used[at] += entry.data.len() + RECORD;
        }
    }
    let whole =
        |(segment, used): (&&Bytes, &usize)| (*used >= segment.len() / 2).then(|| mmap::copy(segment));
    let copies: Vec<Option<Bytes>> = segments.iter().zip(&used).map(whole).collect();
    for entry in recovered.entries.values_mut().flatten() {
        entry.data = match find(&entry.data).and_then(|(at, from)| Some((copies[at].as_ref()?, from))) {
            Some((copy, from)) => copy.slice(from..from + entry.data.len()),
            None => Bytes::copy_from_slice(&entry.data),
        };
    }
}

/// Puts a data directory's own name, and those of the directories above it, on stable storage: once, before it is
/// founded, because all that is synced in it later is lost with them.
pub(super) fn name_directories(path: &Path) -> io::Result<()> {
    for dir in nameable(path)? {
        match File::open(dir).and_then(|dir| dir.sync_all()) {
            // Who may not read it has not made what is in it.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            done => done?,
        }
    }
    Ok(())
}

/// A directory and those above it on the same file system: any of them may just have been made, by this
/// process or by one that was killed. A mount point was there before.
pub(super) fn nameable(path: &Path) -> io::Result<Vec<PathBuf>> {
    let path = path.canonicalize()?;
    let device = fs::metadata(&path)?.dev();
    let same = |dir: &&Path| fs::metadata(dir).is_ok_and(|meta| meta.dev() == device);
    Ok(path.ancestors().take_while(same).map(Path::to_owned).collect())
}

pub(super) fn lock(path: &Path) -> Result<File, OpenError> {
    let failed = |error| OpenError::Io(path.to_owned(), error);
    let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).clone();
    let mut file = options.open(path.join("LOCK")).map_err(failed)?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut holder = String::new();
        let _ = file.read_to_string(&mut holder);
        return Err(OpenError::InUse(path.to_owned(), holder.trim().to_owned()));
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed)?;
    Ok(file)
}
