//! `quorate-server restore`: a backup becomes the data directory of a node of a new cluster.
//!
//! Charter: checks the whole file, then makes of every group's snapshot what the new cluster begins with
//! (`quorate_engine::rebase`), and of that a directory. It is run for every node of the new cluster, with the same file
//! and the same `--initial-cluster`; each makes the same snapshots, and the same new cluster id.
//!
//! Invariants: nothing is written before the file has proved to be whole. One group at a time is in memory. When it says
//! that it is done, everything is on stable storage.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bytes::BytesMut;
use clap::Args;
use quorate_engine::journal::Meta;
use quorate_engine::rebase::{holds, rebase, row};
use quorate_engine::snapshot::{Header, Loader, Writer, header_of};
use quorate_engine::state::State;
use quorate_protocol::backup::{Crossing, Head, Part, Piece, Reader, arrived_from, cut_too_early, when};
use quorate_protocol::id::{Boot, ClusterId, GroupId, Identity, NodeId};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::config::{founders_spec, own_id, parse_cluster};
use crate::journal::{OpenError, Restoring};

/// Bytes that are read at once.
const AT_ONCE: usize = 1 << 20;

/// What `quorate-server restore` takes.
#[derive(Debug, Clone, Args)]
pub struct RestoreFlags {
    /// The file that `quorate snapshot save` has written.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The node's new data directory; it must not exist, or be empty.
    #[arg(long, env = "QUORATE_DATA_DIR", value_name = "DIR")]
    pub data_dir: PathBuf,
    /// The node's number in the new cluster.
    #[arg(long, env = "QUORATE_NODE_ID", value_name = "N")]
    pub node_id: u64,
    /// All nodes of the new cluster, as ID=HOST:PEERPORT,...; the same on all of them.
    #[arg(long, env = "QUORATE_INITIAL_CLUSTER", value_name = "SPEC")]
    pub initial_cluster: String,
    /// A word that tells this restore from others of the same file to the same nodes; the same on all of them.
    #[arg(long, env = "QUORATE_INITIAL_CLUSTER_TOKEN", value_name = "WORD", default_value = "")]
    pub initial_cluster_token: String,
}

/// Nodes, and where they listen for others.
type Founders = Vec<(NodeId, String)>;

/// How far letters had crossed between groups, as each of them has it.
type Crossings = BTreeMap<GroupId, Vec<Crossing>>;

/// A file that has proved to be whole.
struct Backup {
    file: File,
    head: Head,
    /// Each group's snapshot, and where its bytes begin.
    parts: Vec<(Part, u64)>,
    /// Of all bytes.
    hash: u64,
}

/// Makes the directory and says what is in it.
///
/// # Errors
/// With one line that says what to do; then nothing is left behind.
pub fn run(flags: &RestoreFlags) -> Result<(), String> {
    let mut out = Vec::new();
    restore(flags, &mut out)?;
    // Nobody may be reading.
    let _ = io::stdout().lock().write_all(&out);
    Ok(())
}

impl RestoreFlags {
    /// This node and the new cluster's nodes, as far as that can be known without the file.
    ///
    /// # Errors
    /// With one line that says what to correct.
    pub fn founders(&self) -> Result<(NodeId, Founders), String> {
        let node = own_id(self.node_id)?;
        let founders = parse_cluster(&self.initial_cluster)?;
        if !founders.iter().any(|(id, _)| *id == node) {
            let id = node.0;
            return Err(format!("--initial-cluster does not name node {id}; add it, or correct --node-id"));
        }
        Ok((node, founders))
    }
}

fn restore(flags: &RestoreFlags, out: &mut Vec<u8>) -> Result<(), String> {
    let (node, founders) = flags.founders()?;
    let mut backup = Backup::open(&flags.file)?;
    let crossings = backup.crossings(&flags.file)?;
    let spec = founders_spec(&founders);
    let name = format!("{:016x} {spec} {}", backup.hash, flags.initial_cluster_token);
    let meta = Meta {
        cluster: ClusterId(xxh3_64(name.as_bytes())),
        node,
        identity: random().map_err(|error| format!("no random number can be had: {error}"))?,
        boot: Boot::before(0),
        partitions: backup.head.partitions,
        founders,
    };
    let mut directory = Restoring::begin(&flags.data_dir).map_err(|error| error.to_string())?;
    let failed = |error| refusal(&flags.data_dir, error);
    let Head { cluster, saved, .. } = backup.head;
    let write = |out: &mut Vec<u8>, line: String| out.extend(format!("{line}\n").bytes());
    write(
        out,
        format!(
            "{} holds cluster {:016x} as it was saved at {}",
            flags.file.display(),
            cluster.0,
            when(saved)
        ),
    );
    let (mut rows, mut bytes) = (Vec::new(), 0);
    for (part, at) in core::mem::take(&mut backup.parts) {
        if !holds(part.group, &meta) {
            continue;
        }
        let (header, mut state) = backup.load(&part, at, (&meta, &crossings), &flags.file)?;
        let mut writer = Writer::new(header.clone(), &mut state);
        let next = || writer.slice(&mut state).map(|(_, slice)| slice);
        let length = directory.snapshot(part.group, header.index, next).map_err(failed)?;
        let (group, index, term, begins) = (part.group.0, part.index, part.term, header.index);
        write(
            out,
            format!(
                "group {group}: cut at index {index} (term {term}), goes on from {begins}, {length} bytes"
            ),
        );
        rows.push((part.group, row(&header)));
        bytes += length;
    }
    let groups = rows.len();
    directory.finish(&meta, rows).map_err(failed)?;
    let (dir, id, cluster) = (flags.data_dir.display(), node.0, meta.cluster.0);
    write(
        out,
        format!(
            "{dir} is node {id} of the new cluster {cluster:016x}: {groups} groups, {bytes} bytes; restore the other \
             nodes likewise, and start all with --initial-cluster {}",
            spec.trim_end_matches(',')
        ),
    );
    Ok(())
}

fn refusal(path: &Path, error: io::Error) -> String {
    if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
        return format!(
            "data directory {}: {error}; free some space there and restore again",
            path.display()
        );
    }
    OpenError::Io(path.to_owned(), error).to_string()
}

impl Backup {
    fn open(path: &Path) -> Result<Self, String> {
        let failed =
            |why: &dyn std::fmt::Display| format!("{}: {why}; give a file that is whole", path.display());
        let mut file =
            File::open(path).map_err(|error| format!("{}: {error}; check the path", path.display()))?;
        let (mut reader, mut input, mut hash) = (Reader::new(), BytesMut::new(), Xxh3::new());
        let (mut head, mut parts, mut at) = (None, Vec::new(), 0);
        let mut buffer = vec![0; AT_ONCE];
        loop {
            let length = file.read(&mut buffer).map_err(|error| failed(&error))?;
            if length == 0 {
                break;
            }
            at += length as u64;
            hash.update(&buffer[..length]);
            input.extend_from_slice(&buffer[..length]);
            while let Some(piece) = reader.next(&mut input).map_err(|error| failed(&error.0))? {
                match piece {
                    Piece::Head(found) => head = Some(found),
                    Piece::Part(part) => parts.push((part, at - input.len() as u64)),
                    Piece::Bytes(_) | Piece::End => {}
                }
            }
        }
        match head {
            Some(head) if reader.is_done() => Ok(Self { file, head, parts, hash: hash.digest() }),
            _ => Err(failed(&"the backup ends early")),
        }
    }

    /// How far letters had crossed by each group's cut. No dead letter is missing because its partition was cut before it came,
    /// and the other one after it had left.
    fn crossings(&mut self, path: &Path) -> Result<Crossings, String> {
        let mut cuts = Crossings::new();
        for (part, at) in self.parts.clone() {
            let failed = |why: &dyn std::fmt::Display| unreadable(path, &part, why);
            self.file.seek(SeekFrom::Start(at)).map_err(|error| failed(&error))?;
            let mut bytes = vec![0; usize::try_from(part.bytes).unwrap_or(AT_ONCE).min(AT_ONCE)];
            self.file.read_exact(&mut bytes).map_err(|error| failed(&error))?;
            let header = header_of(part.group, part.index, bytes.into()).map_err(|why| failed(&why.0))?;
            cuts.insert(part.group, header.crossings);
        }
        let early = cut_too_early(cuts.iter().map(|(group, crossings)| (*group, &crossings[..])));
        if let Some(group) = early.first() {
            let (path, group) = (path.display(), group.0);
            return Err(format!(
                "{path}: partition {group} was cut before dead letters came that had left others by theirs; give another \
                 backup (quorate snapshot save makes none like this)"
            ));
        }
        Ok(cuts)
    }

    /// A group's state, as the new cluster begins with it.
    fn load(
        &mut self,
        part: &Part,
        at: u64,
        (meta, crossings): (&Meta, &Crossings),
        path: &Path,
    ) -> Result<(Header, State), String> {
        let failed = |why: &dyn std::fmt::Display| unreadable(path, part, why);
        self.file.seek(SeekFrom::Start(at)).map_err(|error| failed(&error))?;
        let mut loader = Loader::new(part.group, part.index, meta);
        let (mut left, mut complete) = (part.bytes, false);
        let mut buffer = vec![0; AT_ONCE];
        while left > 0 {
            let length = usize::try_from(left).unwrap_or(AT_ONCE).min(AT_ONCE);
            self.file.read_exact(&mut buffer[..length]).map_err(|error| failed(&error))?;
            complete = loader.feed(&buffer[..length]).map_err(|error| failed(&error.0))?;
            left -= length as u64;
        }
        if !complete {
            return Err(failed(&"it ends early"));
        }
        let (header, state) = loader.into_state();
        if (header.term, header.time) != (part.term, part.time) {
            return Err(failed(&"it is not of the cut that stands before it"));
        }
        rebase(&header, state, meta, &arrived_from(part.group, crossings)).map_err(|why| failed(&why))
    }
}

fn unreadable(path: &Path, part: &Part, why: &dyn std::fmt::Display) -> String {
    format!("{}: the snapshot of group {} cannot be read: {why}", path.display(), part.group.0)
}

fn random() -> io::Result<Identity> {
    let mut random = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(Identity(u128::from_le_bytes(random)))
}
