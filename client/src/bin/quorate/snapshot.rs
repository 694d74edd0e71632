//! `quorate snapshot`: a backup of the whole cluster in one file, and a new cluster out of one.
//!
//! Charter: finds out who holds which group, has those nodes take snapshots, and copies one of each group. What the file
//! looks like is in `quorate_protocol::backup`; what becomes of it is the server's business, so `restore` runs
//! `quorate-server`.
//!
//! Invariants:
//! - A backup appears under its name only when it is whole and on stable storage, and never in place of another file.
//! - Every snapshot in it was taken after the program began: what was acknowledged before is in it.
//! - A dead letter on its way from one partition to another is in one of them at least: where a group was cut too early for
//!   that, it is cut anew (`backup::cut_too_early`). Nodes help by keeping letters for a while.
//!
//! Subtlety: nodes go on taking snapshots of their own, and keep only the newest of each group. One that has gone while
//! it was being copied is copied anew, from its successor.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use quorate_client::{Error, Node, SnapshotInfo};
use quorate_protocol::backup::{Crossing, Head, Part, Writer, cut_too_early};
use quorate_protocol::chunk::Checker;
use quorate_protocol::id::{ClusterId, GroupId};
use quorate_protocol::limits::PARTITIONS_MAX;
use quorate_protocol::reply::Code;
use quorate_protocol::wire::Wire as _;
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

use crate::cluster::{Cluster, PATIENCE, SNAPSHOT_PATIENCE, View};
use crate::show::Screen;
use crate::trouble::{INTERRUPTED, NOT_FOUND, Trouble};

/// How often a snapshot may go while it is copied.
const TRIES: usize = 20;
/// How often groups may be cut anew because letters cross between them.
const CUTS: usize = 10;

/// Saves the cluster to a file.
pub(crate) async fn save(cluster: &mut Cluster, screen: &Screen, path: &Path) -> Result<ExitCode, Trouble> {
    if path.exists() {
        return Err(exists(path));
    }
    let mut target = Target::begin(path)?;
    tokio::select! {
        saved = Save::run(cluster, &mut target) => {
            let saved = saved?;
            target.finish(saved.writer)?;
            saved.report.show(screen, path);
            Ok(ExitCode::SUCCESS)
        }
        _ = tokio::signal::ctrl_c() => Err(Trouble::new(INTERRUPTED, "interrupted; nothing was saved")),
    }
}

/// Becomes `quorate-server restore` with these words.
pub(crate) fn restore(words: &[OsString]) -> Trouble {
    let name = "quorate-server";
    let beside = std::env::current_exe().ok().and_then(|me| Some(me.parent()?.join(name)));
    let program = beside.filter(|path| path.is_file()).unwrap_or_else(|| PathBuf::from(name));
    let error = Command::new(&program).arg("restore").args(words).exec();
    let text = match error.kind() {
        ErrorKind::NotFound => {
            "quorate-server lies neither beside quorate nor in PATH; say `quorate-server restore` where it is installed"
                .to_owned()
        }
        _ => format!("{} cannot be run: {error}", program.display()),
    };
    Trouble::new(NOT_FOUND, text)
}

fn exists(path: &Path) -> Trouble {
    let path = path.display();
    Trouble::usage(format!("{path} exists, and no backup takes another file's place; give a new name"))
}

fn failed(path: &Path, error: &io::Error) -> Trouble {
    let cure =
        if error.kind() == ErrorKind::StorageFull { "free some space there" } else { "check the path" };
    Trouble::new(crate::trouble::REFUSED, format!("{}: {error}; {cure}; nothing was saved", path.display()))
}

/// The file that is being written, beside its place; gone if it is not finished.
struct Target {
    path: PathBuf,
    partial: PathBuf,
    file: File,
}

impl Target {
    fn begin(path: &Path) -> Result<Self, Trouble> {
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let options = OpenOptions::new().write(true).create_new(true).mode(0o600).clone();
        let file = options.open(&partial).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => {
                let text =
                    "is there: another save to this name runs, or one was cut short; remove it if none runs";
                Trouble::usage(format!("{} {text}", partial.display()))
            }
            _ => failed(&partial, &error),
        })?;
        Ok(Self { path: path.to_owned(), partial, file })
    }

    fn write(&mut self, bytes: &[u8], writer: &mut Writer) -> Result<(), Trouble> {
        self.file.write_all(bytes).map_err(|error| failed(&self.partial, &error))?;
        writer.note(bytes);
        Ok(())
    }

    /// What was written behind this is to be written anew.
    fn back_to(&mut self, writer: &Writer) -> Result<(), Trouble> {
        let length = writer.length();
        let done = self.file.set_len(length).and_then(|()| self.file.seek(SeekFrom::Start(length)));
        done.map(drop).map_err(|error| failed(&self.partial, &error))
    }

    fn finish(mut self, writer: Writer) -> Result<(), Trouble> {
        let name = |this: &mut Self| {
            this.file.write_all(&writer.tail())?;
            this.file.sync_all()?;
            match fs::hard_link(&this.partial, &this.path) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::AlreadyExists || this.path.exists() => {
                    return Err(error);
                }
                // There are file systems without links.
                Err(_) => fs::rename(&this.partial, &this.path)?,
            }
            let parent = this.path.parent().filter(|parent| !parent.as_os_str().is_empty());
            File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
        };
        name(&mut self).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => exists(&self.path),
            _ => failed(&self.path, &error),
        })
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // After `finish` only its second name is gone by this, or nothing.
        let _ = fs::remove_file(&self.partial);
    }
}

/// A node that has taken snapshots.
struct Source {
    node: Node,
    list: BTreeMap<u64, SnapshotInfo>,
}

/// Where groups can be had from.
struct Sources {
    addresses: BTreeMap<u64, String>,
    /// Group → the nodes that hold it and have not failed.
    holders: BTreeMap<u64, BTreeSet<u64>>,
    ready: BTreeMap<u64, Source>,
    last: Option<Error>,
}

impl Sources {
    fn of(view: &View) -> Self {
        let present =
            view.members.iter().filter(|member| !member.client.is_empty() && member.standing != "gone");
        let addresses: BTreeMap<u64, String> =
            present.map(|member| (member.node, member.client.clone())).collect();
        let known =
            |nodes: &[u64]| nodes.iter().copied().filter(|node| addresses.contains_key(node)).collect();
        let partitions =
            view.partitions.iter().map(|partition| (partition.partition, known(&partition.replicas)));
        // Every node holds the system group.
        let system = (0, addresses.keys().copied().collect());
        let holders = [system].into_iter().chain(partitions).collect();
        Self { addresses, holders, ready: BTreeMap::new(), last: None }
    }

    /// A node that has a snapshot of the group, taken by now: one that has taken some already, else the one that holds
    /// the most groups.
    async fn of_group(&mut self, group: u64) -> Result<u64, Trouble> {
        loop {
            let holders = self.holders.get(&group).cloned().unwrap_or_default();
            let has =
                |node: &&u64| self.ready.get(*node).is_some_and(|source| source.list.contains_key(&group));
            if let Some(node) = holders.iter().find(has) {
                return Ok(*node);
            }
            let holds = |node: &u64| self.holders.values().filter(|holders| holders.contains(node)).count();
            let Some(node) = holders.iter().copied().max_by_key(holds) else {
                return Err(self.nobody(group));
            };
            match self.prepare(node).await {
                Ok(()) if self.ready[&node].list.contains_key(&group) => {}
                // It has given the group away.
                Ok(()) => _ = self.holders.entry(group).or_default().remove(&node),
                Err(error) => self.lose(node, error),
            }
        }
    }

    fn nobody(&mut self, group: u64) -> Trouble {
        let Some(error) = self.last.take() else {
            let text = format!("no node says that it holds group {group}; try again, see `quorate status`");
            return Trouble::new(crate::trouble::UNAVAILABLE, text);
        };
        let trouble = Trouble::from(error);
        Trouble {
            text: format!("group {group} cannot be had: {}; nothing was saved", trouble.text),
            ..trouble
        }
    }

    /// Has a node take snapshots.
    async fn prepare(&mut self, node: u64) -> Result<(), Error> {
        let address = &self.addresses[&node];
        let mut connection = Node::connect(address, PATIENCE).await?;
        connection.set_patience(SNAPSHOT_PATIENCE);
        tokio::select! {
            done = connection.snapshot() => done?,
            error = until_silent(address) => return Err(error),
        }
        connection.set_patience(PATIENCE);
        let mut source = Source { node: connection, list: BTreeMap::new() };
        source.look().await?;
        self.ready.insert(node, source);
        Ok(())
    }

    /// Copies a group's snapshot from a node that has one; the cut, the node, and what the cut says of letters.
    async fn copy(
        &mut self,
        group: GroupId,
        target: &mut Target,
        writer: &mut Writer,
    ) -> Result<(Part, u64, Vec<Crossing>), Trouble> {
        let before = writer.clone();
        let mut tries = 0;
        loop {
            let node = self.of_group(u64::from(group.0)).await?;
            let source = self.ready.get_mut(&node).expect("it has taken snapshots");
            let info = source.list[&u64::from(group.0)].clone();
            let part = part_of(&info)?;
            match source.copy(part, target, writer).await {
                Ok(true) => return Ok((part, node, info.crossings)),
                Ok(false) if tries < TRIES => {
                    tries += 1;
                    if let Err(error) = source.look().await {
                        self.lose(node, error);
                    }
                }
                Ok(false) => self.lose(node, Error::Timeout),
                Err(Stopped::Node(error)) => self.lose(node, error),
                Err(Stopped::Here(trouble)) => return Err(trouble),
            }
            *writer = before.clone();
            target.back_to(writer)?;
        }
    }

    /// Has the nodes take snapshots anew whose groups were cut too early; whether there are any.
    fn drop_early(&mut self, cuts: &BTreeMap<GroupId, Vec<Crossing>>) -> bool {
        let early = cut_too_early(cuts.iter().map(|(&group, crossings)| (group, &crossings[..])));
        let has = |source: &Source| early.iter().any(|group| source.list.contains_key(&u64::from(group.0)));
        self.ready.retain(|_, source| !has(source));
        !early.is_empty()
    }

    /// A node is not asked any more.
    fn lose(&mut self, node: u64, error: Error) {
        self.ready.remove(&node);
        self.holders.values_mut().for_each(|holders| _ = holders.remove(&node));
        // What a node says is worth more than that another one says nothing.
        if !matches!(self.last, Some(Error::Refused(_))) || matches!(error, Error::Refused(_)) {
            self.last = Some(error);
        }
    }
}

/// Ends when a node does not answer any more: writing much takes long, but a node that does so still answers.
async fn until_silent(address: &str) -> Error {
    loop {
        tokio::time::sleep(PATIENCE / 2).await;
        let answer = async { Node::connect(address, PATIENCE).await?.status().await };
        if let Err(error) = answer.await {
            return error;
        }
    }
}

impl Source {
    async fn look(&mut self) -> Result<(), Error> {
        let list = self.node.snapshots().await?;
        self.list = list.into_iter().map(|info| (info.group, info)).collect();
        Ok(())
    }

    /// Copies a snapshot; false when it has gone meanwhile.
    async fn copy(&mut self, part: Part, target: &mut Target, writer: &mut Writer) -> Result<bool, Stopped> {
        target.write(&part.to_wire(), writer)?;
        let mut checker = Checker::new(part.group, part.index);
        let mut offset = 0;
        loop {
            let piece = loop {
                match self.node.read_snapshot(u64::from(part.group.0), part.index, offset).await {
                    // Others read too.
                    Err(Error::Refused(failure)) if failure.code == Code::Busy => {
                        tokio::time::sleep(PATIENCE / 20).await;
                    }
                    piece => break piece?,
                }
            };
            let Some(bytes) = piece else { return Ok(false) };
            if bytes.is_empty() {
                break;
            }
            offset += bytes.len() as u64;
            let sound = checker.feed(bytes.clone());
            sound.map_err(|why| Error::Unreachable(format!("its snapshot is not sound: {}", why.0)))?;
            target.write(&bytes, writer)?;
        }
        if offset != part.bytes || !checker.is_whole() {
            return Err(Error::Unreachable("its snapshot ends early".to_owned()).into());
        }
        Ok(true)
    }
}

/// Why copying has stopped: because of the node, so that another one may be asked, or for good.
enum Stopped {
    Node(Error),
    Here(Trouble),
}

impl From<Error> for Stopped {
    fn from(error: Error) -> Self {
        Self::Node(error)
    }
}

impl From<Trouble> for Stopped {
    fn from(trouble: Trouble) -> Self {
        Self::Here(trouble)
    }
}

/// A cluster that is in the file.
struct Save {
    writer: Writer,
    report: Report,
}

impl Save {
    async fn run(cluster: &mut Cluster, target: &mut Target) -> Result<Self, Trouble> {
        let view = cluster.view(None).await?;
        let (head, mut sources) = (head(&view)?, Sources::of(&view));
        let mut writer = Writer::default();
        target.write(&head.to_wire(), &mut writer)?;
        for _ in 0..CUTS {
            // All of them first: the cuts of the groups are to be close to each other, and none is copied in vain.
            let mut cuts = BTreeMap::new();
            for group in head.groups() {
                let node = sources.of_group(u64::from(group.0)).await?;
                cuts.insert(group, sources.ready[&node].list[&u64::from(group.0)].crossings.clone());
            }
            let mut late = sources.drop_early(&cuts);
            if !late {
                let before = writer.clone();
                let mut parts = Vec::new();
                for group in head.groups() {
                    let (part, node, crossings) = sources.copy(group, target, &mut writer).await?;
                    parts.push((part, node));
                    cuts.insert(group, crossings);
                }
                // Some may have been newer by the time they were copied.
                late = sources.drop_early(&cuts);
                if !late {
                    return Ok(Self { writer, report: Report { cluster: head.cluster, parts } });
                }
                writer = before;
                target.back_to(&writer)?;
            }
        }
        let text = "dead letters cross between partitions faster than the partitions can be cut; nothing was saved; try again \
                    when fewer messages die";
        Err(Trouble::new(crate::trouble::UNAVAILABLE, text))
    }
}

fn head(view: &View) -> Result<Head, Trouble> {
    let cluster = u64::from_str_radix(&view.cluster, 16);
    let cluster =
        cluster.map_err(|_| Trouble::internal("a node does not say which cluster it belongs to"))?;
    let partitions = u16::try_from(view.partitions.len()).ok().filter(|n| (1..=PARTITIONS_MAX).contains(n));
    let partitions =
        partitions.ok_or_else(|| Trouble::internal("a node does not say which partitions there are"))?;
    let now = clock_gettime(ClockId::Realtime);
    let part = |n: i64| u64::try_from(n).unwrap_or(0);
    Ok(Head::new(ClusterId(cluster), partitions, part(now.tv_sec) * 1000 + part(now.tv_nsec) / 1_000_000))
}

fn part_of(info: &SnapshotInfo) -> Result<Part, Trouble> {
    let group = u16::try_from(info.group).map_err(|_| Trouble::internal("there is no such group"))?;
    let SnapshotInfo { index, term, time, bytes, .. } = *info;
    Ok(Part { group: GroupId(group), index, term, time, bytes })
}

/// The cut.
struct Report {
    cluster: ClusterId,
    parts: Vec<(Part, u64)>,
}

impl Report {
    fn show(&self, screen: &Screen, path: &Path) {
        let bytes: u64 = self.parts.iter().map(|(part, _)| part.bytes).sum();
        let cluster = format!("{:016x}", self.cluster.0);
        if screen.is_json() {
            let group = |(part, node): &(Part, u64)| json!({ "group": part.group.0, "index": part.index, "term": part.term, "bytes": part.bytes, "node": node });
            let groups: Vec<_> = self.parts.iter().map(group).collect();
            let file = path.display().to_string();
            return screen
                .value(&json!({ "file": file, "cluster": cluster, "bytes": bytes, "groups": groups }));
        }
        let heading = ["GROUP", "INDEX", "TERM", "BYTES", "NODE"].map(str::to_owned).to_vec();
        let row = |(part, node): &(Part, u64)| {
            [part.group.0.into(), part.index, part.term, part.bytes, *node]
                .map(|n: u64| n.to_string())
                .to_vec()
        };
        let rows: Vec<Vec<String>> = [heading].into_iter().chain(self.parts.iter().map(row)).collect();
        screen.table(&rows);
        let (groups, path) = (self.parts.len(), path.display());
        screen.line(&format!("cluster {cluster}: {groups} groups, {bytes} bytes, saved to {path}"));
    }
}
