//! A node's data directory: locked, founded, read back.
//!
//! Invariant: one process at a time. What recovery demands is on the disk before `open` returns, so nothing
//! of a start leaves the node before its boot number is raised and synced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use quorate_engine::journal::{
    self, Contents, Damage, File as Name, Io, Journal, Meta, Options, Recovered, SEGMENT_SIZE, found,
};
use quorate_protocol::id::{Boot, ClusterId, Identity, NodeId};
use rustix::fs::{FlockOperation, flock};

/// Zeroes are written in pieces of this size.
const ZEROES: usize = 1 << 20;

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
    /// Something that was synced cannot be read.
    Damaged(PathBuf, Damage),
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
            Self::Damaged(path, damage) => write!(f, "data directory {}: {damage}", path.display()),
        }
    }
}

impl std::error::Error for OpenError {}

/// A locked data directory. The lock goes with the value, and so does what is known of its files: which are
/// open, and how far the segment in use is zeroed.
#[derive(Debug)]
pub struct DataDir {
    disk: Disk,
    _lock: File,
}

impl DataDir {
    /// Locks a directory, founds it if it is empty, and reads it.
    ///
    /// # Errors
    /// With a sentence that says what to do.
    pub fn open(path: &Path, founding: &Founding) -> Result<(Self, Recovered, Journal), OpenError> {
        let failed = |error| OpenError::Io(path.to_owned(), error);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path.join("journal")).map_err(failed)?;
        let lock = lock(path)?;
        let mut dir = Self { disk: Disk::new(path), _lock: lock };
        let damaged = |damage| OpenError::Damaged(path.to_owned(), damage);
        let mut contents = dir.read().map_err(failed)?;
        match journal::read_meta(&contents).map_err(damaged)? {
            Some((_, meta)) => dir.check(&meta, founding)?,
            None => {
                dir.name().map_err(failed)?;
                let mut ios = Vec::new();
                found(&founding.meta().map_err(failed)?, &mut ios);
                dir.perform(&ios).map_err(failed)?;
                contents = dir.read().map_err(failed)?;
            }
        }
        let (mut recovered, mut journal, ios) =
            journal::recover(&contents, &Options::new(SEGMENT_SIZE)).map_err(damaged)?;
        dir.perform(&ios).map_err(failed)?;
        journal.done();
        dir.give_back(&contents, &ios, &journal).map_err(failed)?;
        detach(&contents, &mut recovered);
        Ok((dir, recovered, journal))
    }

    /// Puts the directory's own name, and those of the directories above it, on stable storage: once, before it is
    /// founded, because all that is synced in it later is lost with them.
    fn name(&self) -> io::Result<()> {
        for dir in nameable(self.path())? {
            match File::open(dir).and_then(|dir| dir.sync_all()) {
                // Who may not read it has not made what is in it.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                done => done?,
            }
        }
        Ok(())
    }

    /// Gives back the room behind the seals that recovery has written, and files that were made ahead in
    /// vain: each start opens a new segment, and many starts must not fill the disk.
    fn give_back(&self, contents: &Contents, ios: &[Io], journal: &Journal) -> io::Result<()> {
        for io in ios {
            if let Io::Write { file: Name::Segment(number), offset, bytes } = io
                && contents.segments.contains_key(number)
            {
                let path = self.path().join(Name::Segment(*number).path());
                OpenOptions::new().write(true).open(path)?.set_len(offset + bytes.len() as u64)?;
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
    pub(super) fn perform(&mut self, ios: &[Io]) -> io::Result<()> {
        self.disk.perform(ios)
    }

    fn check(&self, meta: &Meta, founding: &Founding) -> Result<(), OpenError> {
        let foreign = |what| Err(OpenError::Foreign(self.path().to_owned(), what));
        if meta.node != founding.node {
            let (is, wanted) = (meta.node.0, founding.node.0);
            return foreign(format!(
                "belongs to node {is}, not to node {wanted}; correct --node-id or --data-dir"
            ));
        }
        if meta.cluster != founding.cluster {
            let known: Vec<String> =
                meta.founders.iter().map(|(id, address)| format!("{}={address}", id.0)).collect();
            let known = known.join(",");
            return foreign(format!(
                "belongs to another cluster, founded as {known}; correct --initial-cluster or --data-dir"
            ));
        }
        Ok(())
    }

    fn read(&self) -> io::Result<Contents> {
        let read = |name: Name| match fs::read(self.path().join(name.path())) {
            Ok(bytes) => Ok(Some(Bytes::from(bytes))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        let mut contents =
            Contents { meta: read(Name::Meta)?, hard: read(Name::Hard)?, ..Contents::default() };
        for file in fs::read_dir(self.path().join("journal"))? {
            let name = file?.file_name();
            let number =
                name.to_str().and_then(|name| name.strip_suffix(".seg")).and_then(|name| name.parse().ok());
            if let Some(number) = number
                && let Some(bytes) = read(Name::Segment(number))?
            {
                contents.segments.insert(number, bytes);
            }
        }
        Ok(contents)
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

/// Entries are read as parts of their segment's bytes and keep all of them in memory. If most of those are
/// empty room, the entries are copied out instead.
fn detach(contents: &Contents, recovered: &mut Recovered) {
    let read: usize = contents.segments.values().map(Bytes::len).sum();
    let entries = || recovered.entries.values().flatten();
    if entries().map(|entry| entry.data.len()).sum::<usize>() < read / 2 {
        for entry in recovered.entries.values_mut().flatten() {
            entry.data = Bytes::copy_from_slice(&entry.data);
        }
    }
}

/// A directory and those above it on the same file system: any of them may just have been made, by this
/// process or by one that was killed. A mount point was there before.
fn nameable(path: &Path) -> io::Result<Vec<PathBuf>> {
    let path = path.canonicalize()?;
    let device = fs::metadata(&path)?.dev();
    let same = |dir: &&Path| fs::metadata(dir).is_ok_and(|meta| meta.dev() == device);
    Ok(path.ancestors().take_while(same).map(Path::to_owned).collect())
}

fn lock(path: &Path) -> Result<File, OpenError> {
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

/// Does what the journal's logic asks for, on real files. Files stay open between calls.
#[derive(Debug)]
struct Disk {
    path: PathBuf,
    open: Vec<(Name, File)>,
    /// Files whose name is on stable storage for certain. One that was found is not among them: whoever made it
    /// may have been killed before its sync.
    named: Vec<Name>,
    /// A segment that was not zeroed ahead, and up to where it is by now.
    growing: Option<(Name, u64)>,
}

/// Files that are kept open: the twin of terms and votes, and the segments in use.
const OPEN_FILES: usize = 4;

impl Disk {
    fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), open: Vec::new(), named: Vec::new(), growing: None }
    }

    /// Does the list in order. Writes to neighbouring bytes go out as one.
    fn perform(&mut self, ios: &[Io]) -> io::Result<()> {
        for io in ios {
            match io {
                Io::Create { file, size } => self.create(*file, *size)?,
                Io::Write { file, offset, bytes } => {
                    self.zero_ahead(*file, offset + bytes.len() as u64)?;
                    self.file(*file)?.write_all_at(bytes, *offset)?;
                }
                Io::Sync { file } => self.sync(*file)?,
                Io::Remove { file } => fs::remove_file(self.path.join(file.path()))?,
            }
        }
        Ok(())
    }

    fn file(&mut self, name: Name) -> io::Result<&File> {
        if let Some(at) = self.open.iter().position(|(open, _)| *open == name) {
            return Ok(&self.open[at].1);
        }
        let options =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).clone();
        let file = options.open(self.path.join(name.path()))?;
        if self.open.len() == OPEN_FILES {
            let (closed, _) = self.open.remove(0);
            self.named.retain(|named| *named != closed);
        }
        self.open.push((name, file));
        Ok(&self.open[self.open.len() - 1].1)
    }

    /// Makes a segment of zeroes, unless `prepare` has made it already.
    fn create(&mut self, name: Name, size: u64) -> io::Result<()> {
        let prepared = prepared_path(&self.path, name);
        if fs::metadata(&prepared).is_ok_and(|meta| meta.len() == size) {
            return fs::rename(prepared, self.path.join(name.path()));
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
        self.file(name)?.sync_data()?;
        if !self.named.contains(&name) {
            let path = self.path.join(name.path());
            File::open(path.parent().unwrap_or(&self.path))?.sync_all()?;
            self.named.push(name);
        }
        Ok(())
    }
}

fn prepared_path(path: &Path, name: Name) -> PathBuf {
    path.join(format!("{}.next", name.path()))
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

/// Makes the file of a segment ahead of need: zeroed and synced, so that commits into it change no metadata.
pub(super) fn prepare(path: &Path, name: Name, size: u64) -> io::Result<()> {
    let prepared = prepared_path(path, name);
    if fs::metadata(&prepared).is_ok_and(|meta| meta.len() == size) {
        return Ok(());
    }
    let making = path.join(format!("{}.making", name.path()));
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&making)?;
    write_zeroes(&file, 0, size)?;
    file.sync_all()?;
    fs::rename(making, prepared)
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_engine::journal::{Entry, Hard, Persist, Row};
    use quorate_protocol::id::GroupId;

    use super::super::{Listener, SyncThread};

    struct Ignore;

    impl Listener for Ignore {
        fn durable(&self, _: u64) {}
        fn failed(&self, why: String) {
            panic!("{why}");
        }
    }

    struct Scratch(PathBuf);

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn scratch(name: &str) -> Scratch {
        Scratch(std::env::temp_dir().join(format!("quorate-dir-{}-{name}", std::process::id())))
    }

    fn founding(node: u64) -> Founding {
        let founders = vec![(NodeId(1), "a:1".to_owned()), (NodeId(2), "b:2".to_owned())];
        Founding { cluster: ClusterId(9), node: NodeId(node), partitions: 16, founders }
    }

    fn commit(dir: &mut DataDir, journal: &mut Journal, seq: u64) {
        let entry = Entry { group: GroupId(3), term: 1, index: seq, kind: 0, data: vec![7; 5000].into() };
        let hard = Hard { term: 1, ..Hard::default() };
        let rows = vec![(GroupId(3), Row { hard, ..Row::default() })];
        let mut ios = Vec::new();
        journal.plan(&[Persist { seq, rows, entries: vec![entry] }], &mut ios);
        dir.perform(&ios).unwrap();
        journal.done();
    }

    #[test]
    fn a_directory_is_found_again_as_it_was_left() {
        let scratch = scratch("again");
        for boot in 1..=3 {
            let (mut dir, recovered, mut journal) = DataDir::open(&scratch.0, &founding(2)).unwrap();
            assert_eq!(recovered.meta.boot, Boot(boot));
            assert_eq!(recovered.entries.get(&GroupId(3)).map_or(0, Vec::len) as u64, boot - 1);
            commit(&mut dir, &mut journal, boot);
        }
        let size = |number| fs::metadata(scratch.0.join(Name::Segment(number).path())).unwrap().len();
        assert!(
            size(1) < 16 << 10 && size(2) < 16 << 10,
            "a sealed segment takes no more room than it needs"
        );
        assert_eq!(size(3), SEGMENT_SIZE);
    }

    #[test]
    fn commits_behind_a_start_find_their_segment_zeroed() {
        let scratch = scratch("zeroed");
        let (dir, _, journal) = DataDir::open(&scratch.0, &founding(2)).unwrap();
        let thread = SyncThread::start(dir, journal, Ignore);
        let entry =
            |index, size| Entry { group: GroupId(3), term: 1, index, kind: 0, data: vec![7; size].into() };
        let hard = Hard { term: 1, ..Hard::default() };
        let rows = vec![(GroupId(3), Row { hard, ..Row::default() })];
        thread.submit(Persist { seq: 1, rows, entries: vec![entry(1, ZEROES + ZEROES / 4)] });
        thread.close();
        let allocated = fs::metadata(scratch.0.join(Name::Segment(1).path())).unwrap().blocks() * 512;
        assert!(allocated >= 2 * ZEROES as u64, "the second MiB is zeroed before it is reached: {allocated}");
    }

    #[test]
    fn every_name_on_the_way_to_a_file_is_synced() {
        let scratch = scratch("names");
        let path = scratch.0.join("of").join("node");
        let (dir, ..) = DataDir::open(&path, &founding(2)).unwrap();
        let made = nameable(&path).unwrap();
        for dir in [&path, &scratch.0.join("of"), &scratch.0, &std::env::temp_dir()] {
            let dir = dir.canonicalize().unwrap();
            assert!(made.contains(&dir), "{} is not among {made:?}", dir.display());
        }
        assert_eq!(dir.disk.named, [Name::Meta, Name::Segment(1)]);
        drop(dir);
        // A process is killed between making a file and syncing it: the next one finds the file, not its name.
        fs::write(path.join("hardstate"), [0; 10]).unwrap();
        let mut disk = Disk::new(&path);
        disk.perform(&[Io::Sync { file: Name::Hard }]).unwrap();
        assert_eq!(disk.named, [Name::Hard]);
    }

    #[test]
    fn whoever_must_not_use_it_is_told_why() {
        let scratch = scratch("refuse");
        let (mut dir, _, mut journal) = DataDir::open(&scratch.0, &founding(2)).unwrap();
        commit(&mut dir, &mut journal, 1);
        let text =
            |founding: Founding| DataDir::open(&scratch.0, &founding).map(|_| ()).unwrap_err().to_string();
        assert!(text(founding(2)).contains(&format!("in use by process {}", std::process::id())));
        drop(dir);
        assert!(text(founding(1)).contains("belongs to node 2, not to node 1"));
        assert!(
            text(Founding { cluster: ClusterId(1), ..founding(2) }).contains("belongs to another cluster")
        );
        let segment = scratch.0.join(Name::Segment(1).path());
        let mut bytes = fs::read(&segment).unwrap();
        bytes[1000] ^= 1;
        fs::write(&segment, bytes).unwrap();
        // Nothing vouches for the last commit yet, so it counts as a torn tail; the restart seals it.
        assert!(DataDir::open(&scratch.0, &founding(2)).is_ok());
        let mut bytes = fs::read(&segment).unwrap();
        bytes[20] ^= 1;
        fs::write(&segment, bytes).unwrap();
        assert!(text(founding(2)).contains("seg is damaged at offset 0"));
    }
}
