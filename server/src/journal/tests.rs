//! The journal on real files: starts, disks that fail or are full, segments that are used again.

mod aside;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use quorate_engine::journal::{
    Conf, Entry, File as Name, Hard, Io, Journal, Persist, Row, SEGMENT_SIZE, Standing,
};
use quorate_engine::snapshot::Header;
use quorate_protocol::id::{Boot, ClusterId, GroupId, NodeId};

use quorate_protocol::wire::Wire;

use super::dir::nameable;
use super::disk::{Disk, ZEROES, prepare, prepared_path, reserve_path, spare_places};
use super::*;

/// What the threads have told.
#[derive(Debug, Default)]
struct Told {
    durable: u64,
    background: u64,
    rooms: Vec<bool>,
    failed: Option<String>,
}

#[derive(Debug, Clone, Default)]
struct Ears(Arc<(Mutex<Told>, Condvar)>);

impl Ears {
    fn tell(&self, change: impl FnOnce(&mut Told)) {
        change(&mut self.0.0.lock());
        self.0.1.notify_all();
    }

    /// Waits until they have told something.
    fn wait(&self, what: &str, heard: impl Fn(&Told) -> bool) {
        let mut told = self.0.0.lock();
        while !heard(&told) {
            let late = self.0.1.wait_for(&mut told, Duration::from_secs(60)).timed_out();
            assert!(!late, "{what}: {told:?}");
        }
    }
}

impl Listener for Ears {
    fn durable(&self, seq: u64) {
        self.tell(|told| told.durable = seq);
    }
    fn background_done(&self, number: u64) {
        self.tell(|told| told.background = number);
    }
    fn mapped(&self, _: GroupId, _: u64, _: Option<bytes::Bytes>) {}
    fn room(&self, has: bool) {
        self.tell(|told| told.rooms.push(has));
    }
    fn failed(&self, why: String) {
        self.tell(|told| told.failed = Some(why));
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
    Founding { cluster: ClusterId(9), node: NodeId(node), partitions: 16, founders, life: 0 }
}

fn commit(dir: &mut DataDir, journal: &mut Journal, seq: u64) {
    let entry = Entry { group: GroupId(3), term: 1, index: seq, kind: 0, data: vec![7; 5000].into() };
    let hard = Hard { term: 1, ..Hard::default() };
    let rows = vec![(GroupId(3), Row { hard, standing: Standing::Whole, ..Row::default() })];
    let mut ios = Vec::new();
    journal.plan(&[Persist { seq, rows, entries: vec![entry] }], &mut ios);
    dir.perform(&ios, &mut |_| false).unwrap();
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
    assert!(size(1) < 16 << 10 && size(2) < 16 << 10, "a sealed segment takes no more room than it needs");
    assert_eq!(size(3), SEGMENT_SIZE);
}

/// A commit, and a frontier, without which its damage would be a torn tail.
fn commit_and_vouch(dir: &mut DataDir, journal: &mut Journal) {
    commit(dir, journal, 1);
    let mut ios = Vec::new();
    journal.idle(&mut ios);
    dir.perform(&ios, &mut |_| false).unwrap();
}

/// Changes a byte of the first segment, behind its header.
fn flip(scratch: &Scratch) {
    let path = scratch.0.join(Name::Segment(1).path());
    let mut bytes = fs::read(&path).unwrap();
    bytes[600] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// All files but the lock, with what is in them.
fn files_of(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_of(&path));
        } else if !path.ends_with("LOCK") {
            files.push((path.clone(), fs::read(path).unwrap()));
        }
    }
    files.sort();
    files
}

#[test]
fn what_no_other_node_has_is_left_as_it_is() {
    let scratch = scratch("alone");
    let alone = Founding { founders: vec![(NodeId(2), "b:2".to_owned())], ..founding(2) };
    let (mut dir, _, mut journal) = DataDir::open(&scratch.0, &alone).unwrap();
    commit_and_vouch(&mut dir, &mut journal);
    drop((dir, journal));
    flip(&scratch);
    let before = files_of(&scratch.0);
    let error = DataDir::open(&scratch.0, &alone).expect_err("it cannot be read").to_string();
    assert!(error.contains("is damaged at offset") && error.contains("bring the file back"), "{error}");
    assert!(files_of(&scratch.0) == before, "nothing was changed");
    flip(&scratch);
    let (_, recovered, _) = DataDir::open(&scratch.0, &alone).unwrap();
    assert_eq!(
        (recovered.damage.len(), recovered.entries[&GroupId(3)].len()),
        (0, 1),
        "the cause has passed"
    );
}

#[test]
fn what_a_damaged_start_cannot_use_is_kept_until_all_is_whole() {
    let scratch = scratch("aside");
    let (mut dir, _, mut journal) = DataDir::open(&scratch.0, &founding(2)).unwrap();
    commit_and_vouch(&mut dir, &mut journal);
    drop((dir, journal));
    flip(&scratch);
    let spoiled = fs::read(scratch.0.join(Name::Segment(1).path())).unwrap();
    let kept = scratch.0.join("damaged/2");
    for start in 0..2 {
        let (_, recovered, _) = DataDir::open(&scratch.0, &founding(2)).unwrap();
        assert_eq!(recovered.damage.is_empty(), start == 1, "it is told once");
        assert_eq!(recovered.rows[&GroupId(3)].standing, Standing::Lost);
        assert!(fs::read(kept.join(Name::Segment(1).path())).unwrap() == spoiled);
        assert!(kept.join("hardstate").exists() && kept.join("meta").exists());
        assert!(!scratch.0.join(Name::Segment(1).path()).exists());
    }
    let (mut dir, _, mut journal) = DataDir::open(&scratch.0, &founding(2)).unwrap();
    commit(&mut dir, &mut journal, 1);
    drop((dir, journal));
    DataDir::open(&scratch.0, &founding(2)).unwrap();
    assert!(!scratch.0.join("damaged").exists(), "the group is whole again");
}

#[test]
fn commits_behind_a_start_find_their_segment_zeroed() {
    let scratch = scratch("zeroed");
    let (dir, _, journal) = DataDir::open(&scratch.0, &founding(2)).unwrap();
    let thread = SyncThread::start(dir, journal, Ears::default());
    let entry =
        |index, size| Entry { group: GroupId(3), term: 1, index, kind: 0, data: vec![7; size].into() };
    let hard = Hard { term: 1, ..Hard::default() };
    let rows = vec![(GroupId(3), Row { hard, standing: Standing::Whole, ..Row::default() })];
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
    assert_eq!(dir.disk.named, [Name::Meta, Name::Hard, Name::Segment(1)]);
    drop(dir);
    // A process is killed between making a file and syncing it: the next one finds the file, not its name.
    fs::write(path.join("hardstate"), [0; 10]).unwrap();
    let mut disk = Disk::new(&path);
    disk.perform(&[Io::Sync { file: Name::Hard }], &mut |_| false).unwrap();
    assert_eq!(disk.named, [Name::Hard]);
}

#[test]
fn a_directory_is_known_by_its_founders_whatever_its_clusters_id() {
    // A restored cluster has another id than a founding of the same nodes gives.
    let scratch = scratch("restored");
    drop(DataDir::open(&scratch.0, &founding(2)).unwrap());
    let (_, recovered, _) =
        DataDir::open(&scratch.0, &Founding { cluster: ClusterId(1), ..founding(2) }).unwrap();
    assert_eq!(recovered.meta.cluster, ClusterId(9));
}

#[test]
fn whoever_must_not_use_it_is_told_why() {
    let scratch = scratch("refuse");
    let (mut dir, _, mut journal) = DataDir::open(&scratch.0, &founding(2)).unwrap();
    commit(&mut dir, &mut journal, 1);
    let text = |founding: Founding| DataDir::open(&scratch.0, &founding).map(|_| ()).unwrap_err().to_string();
    assert!(text(founding(2)).contains(&format!("in use by process {}", std::process::id())));
    drop(dir);
    assert!(text(founding(1)).contains("belongs to node 2, not to node 1"));
    let others = vec![(NodeId(2), "elsewhere:7412".to_owned())];
    assert!(text(Founding { founders: others, ..founding(2) }).contains("belongs to another cluster"));
    let segment = scratch.0.join(Name::Segment(1).path());
    let mut bytes = fs::read(&segment).unwrap();
    bytes[1000] ^= 1;
    fs::write(&segment, bytes).unwrap();
    // Nothing vouches for the last commit yet, so it counts as a torn tail; the restart seals it.
    let (_, recovered, _) = DataDir::open(&scratch.0, &founding(2)).unwrap();
    assert!(recovered.damage.is_empty() && recovered.entries.is_empty());
    for file in ["meta", "hardstate"] {
        fs::write(scratch.0.join(file), [7; 200]).unwrap();
    }
    let text = text(founding(2));
    assert!(
        text.contains("meta is damaged at offset 0") && text.contains("add it again with an empty"),
        "{text}"
    );
}

#[test]
fn a_damaged_directory_starts_without_what_it_has_lost() {
    let scratch = scratch("lost");
    for seq in 1..=2 {
        let (mut dir, _, mut journal) = DataDir::open(&scratch.0, &founding(2)).unwrap();
        commit(&mut dir, &mut journal, seq);
    }
    let segment = scratch.0.join(Name::Segment(1).path());
    let mut bytes = fs::read(&segment).unwrap();
    bytes[1000] ^= 1;
    fs::write(&segment, bytes).unwrap();
    for start in 1..=2 {
        let (_, recovered, _) = DataDir::open(&scratch.0, &founding(2)).unwrap();
        assert_eq!(recovered.rows[&GroupId(3)].standing, Standing::Lost);
        assert_eq!(recovered.damage.len(), 2 - start, "it is told once: {:?}", recovered.damage);
    }
    assert!(!segment.exists());
}

fn batch(seq: u64, snapshot: (u64, u64), size: usize) -> Persist {
    let hard = Hard { term: 1, ..Hard::default() };
    let rows = vec![(GroupId(3), Row { hard, snapshot, standing: Standing::Whole, ..Row::default() })];
    let entry = Entry { group: GroupId(3), term: 1, index: seq, kind: 0, data: vec![7; size].into() };
    Persist { seq, rows, entries: vec![entry] }
}

#[test]
fn a_failed_sync_stops_the_journal_with_a_last_line() {
    for broken in [Name::Segment(1), Name::Hard] {
        let scratch = scratch(&format!("broken-{}", broken.path().len()));
        let (mut dir, _, journal) = DataDir::open(&scratch.0, &founding(2)).unwrap();
        dir.disk.broken = Some(broken);
        let ears = Ears::default();
        let thread = SyncThread::start(dir, journal, ears.clone());
        thread.submit(batch(1, (0, 0), 100));
        ears.wait("the failure", |told| told.failed.is_some());
        thread.submit(batch(2, (0, 0), 100));
        thread.close();
        let told = ears.0.0.lock();
        let why = told.failed.as_deref().unwrap();
        assert!(
            why.starts_with("the disk failed, so this node stops: ") && why.contains("os error 5"),
            "{why}"
        );
        assert_eq!(told.durable, 0, "nothing is durable behind it");
    }
}

/// Entries of a MiB that fit a segment.
const FIT: u64 = (SEGMENT_SIZE >> 20) - 1;

/// Writes entries of a MiB.
fn fill(dir: &mut DataDir, journal: &mut Journal, seqs: std::ops::RangeInclusive<u64>, snapshot: (u64, u64)) {
    for seq in seqs {
        let mut ios = Vec::new();
        journal.plan(&[batch(seq, snapshot, 1 << 20)], &mut ios);
        dir.perform(&ios, &mut |_| false).unwrap();
        journal.done();
    }
}

#[test]
fn a_freed_segment_is_written_again_also_of_what_was_read_at_the_start() {
    let scratch = scratch("again-and-again");
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    let segment = |number| scratch.0.join(Name::Segment(number).path());
    let spare = spare_places(&scratch.0).next().unwrap();
    let (mut dir, _, mut journal) = DataDir::open(&scratch.0, &founding(2)).unwrap();
    fill(&mut dir, &mut journal, 1..=FIT + 1, (0, 0));
    let first = inode(&segment(1));
    assert!(segment(2).exists());
    fill(&mut dir, &mut journal, FIT + 2..=FIT + 2, (FIT, 1));
    assert!(!segment(1).exists() && inode(&spare) == first, "it waits to be written again");
    fill(&mut dir, &mut journal, FIT + 3..=2 * FIT + 1, (FIT, 1));
    assert_eq!(inode(&segment(3)), first);
    drop((dir, journal));

    // What is read is copied out of the segments: their files may be written again.
    fs::write(scratch.0.join(Name::Snapshot(GroupId(3), FIT).path()), snapshot_file(FIT)).unwrap();
    let (mut dir, recovered, mut journal) = DataDir::open(&scratch.0, &founding(2)).unwrap();
    assert_eq!(recovered.damage, []);
    let held: Vec<_> = recovered.entries[&GroupId(3)].clone();
    assert_eq!(
        held.iter().map(|entry| entry.index).collect::<Vec<_>>(),
        (FIT + 1..=2 * FIT + 1).collect::<Vec<_>>()
    );
    let second = inode(&segment(2));
    fill(&mut dir, &mut journal, 2 * FIT + 2..=2 * FIT + 2, (2 * FIT + 1, 1));
    assert!(!segment(2).exists());
    assert!(spare_places(&scratch.0).any(|place| place.exists() && inode(&place) == second));
    fill(&mut dir, &mut journal, 2 * FIT + 3..=3 * FIT + 11, (2 * FIT + 1, 1));
    assert!(held.iter().all(|entry| entry.data.iter().all(|&byte| byte == 7)));
}

#[test]
fn a_segment_that_was_opened_before_it_was_made_ahead_leaves_nothing_behind() {
    let scratch = scratch("late");
    let (mut dir, ..) = DataDir::open(&scratch.0, &founding(2)).unwrap();
    let (late, large) = (Name::Segment(2), Name::Segment(3));
    let mut create = |file, size| dir.perform(&[Io::Create { file, size }], &mut |_| false).unwrap();
    create(late, SEGMENT_SIZE);
    prepare(&scratch.0, late, SEGMENT_SIZE).unwrap();
    prepare(&scratch.0, large, SEGMENT_SIZE).unwrap();
    assert!(prepared_path(&scratch.0, large).exists());
    create(large, 2 * SEGMENT_SIZE);
    for name in [late, large] {
        assert!(
            scratch.0.join(name.path()).exists() && !prepared_path(&scratch.0, name).exists(),
            "{name:?}"
        );
    }
}

#[test]
fn a_segment_that_is_opened_while_it_is_made_ahead_leaves_nothing_behind() {
    let scratch = scratch("meanwhile");
    let (mut dir, ..) = DataDir::open(&scratch.0, &founding(2)).unwrap();
    let name = Name::Segment(2);
    let making = scratch.0.join(format!("{}.making", name.path()));
    std::thread::scope(|scope| {
        let ahead = scope.spawn(|| prepare(&scratch.0, name, SEGMENT_SIZE));
        while !making.exists() && !ahead.is_finished() {
            std::thread::yield_now();
        }
        dir.perform(&[Io::Create { file: name, size: SEGMENT_SIZE }], &mut |_| false).unwrap();
        ahead.join().unwrap().unwrap();
    });
    assert!(scratch.0.join(name.path()).exists() && !prepared_path(&scratch.0, name).exists());
}

/// A snapshot that is sound and says nothing.
fn snapshot_file(index: u64) -> Vec<u8> {
    let header = Header::new(GroupId(3), (index, 1), 0, Conf::default(), Vec::new()).to_wire();
    chunks(index, &[(1, header), (3, vec![0; 16].into())])
}

/// The file of a snapshot of group 3 with these chunks.
fn chunks(index: u64, chunks: &[(u8, bytes::Bytes)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (kind, payload) in chunks {
        quorate_protocol::chunk::put(*kind, payload, (GroupId(3), index, out.len() as u64), &mut out);
    }
    out
}

#[test]
fn background_plans_are_done_in_order_and_then_told() {
    let scratch = scratch("background");
    let (dir, _, journal) = DataDir::open(&scratch.0, &founding(2)).unwrap();
    let ears = Ears::default();
    let thread = SyncThread::start(dir, journal, ears.clone());
    let file = Name::Snapshot(GroupId(3), 7);
    let path = scratch.0.join(file.path());
    let write = |offset| Io::Write { file, offset, bytes: vec![5; 3 << 20].into() };
    thread.submit_background(1, vec![Io::Create { file, size: 0 }, write(0)]);
    thread.submit_background(2, vec![write(3 << 20), Io::Sync { file }]);
    ears.wait("both", |told| told.background == 2);
    assert!(fs::read(&path).unwrap() == vec![5; 6 << 20]);
    thread.submit_background(3, vec![Io::Remove { file }, Io::Remove { file }]);
    ears.wait("the third", |told| told.background == 3);
    assert!(!path.exists());
    thread.close();
}

/// A file system of its own that is soon full.
struct Small(PathBuf);

impl Small {
    /// Without the right to mount one, the test says so and does nothing.
    fn mount(name: &str, mebibytes: u64) -> Option<Self> {
        let path = scratch(name).0.clone();
        fs::create_dir_all(&path).unwrap();
        let size = format!("size={mebibytes}m");
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&path).status();
        if done.is_ok_and(|status| status.success()) {
            return Some(Self(path));
        }
        tracing::warn!("no file system can be mounted here: a full disk is not tested");
        None
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_full_disk_is_waited_for_and_nothing_is_lost() {
    let Some(small) = Small::mount("full", 256) else { return };
    let data = small.0.join("data");
    let (dir, _, journal) = DataDir::open(&data, &founding(2)).unwrap();
    let ears = Ears::default();
    let thread = SyncThread::start(dir, journal, ears.clone());
    let reserve = reserve_path(&data);
    let since = crate::clock::now().mono;
    while !reserve.exists() {
        assert!(crate::clock::now().mono < since + 30_000_000, "a reserve is set aside");
        std::thread::yield_now();
    }
    thread.submit(batch(1, (0, 0), 1 << 20));
    ears.wait("the first", |told| told.durable == 1);
    // Somebody else takes all the room.
    let mut ballast = fs::File::create(small.0.join("ballast")).unwrap();
    let filled = std::io::copy(&mut std::io::repeat(1), &mut ballast).unwrap_err();
    assert_eq!(filled.kind(), std::io::ErrorKind::StorageFull);
    ears.wait("no room", |told| told.rooms == [false]);
    // The reserve lasts for a while; then commits wait, in their order.
    for seq in 2..=80 {
        thread.submit(batch(seq, (0, 0), 1 << 20));
    }
    while reserve.exists() {
        assert!(crate::clock::now().mono < since + 60_000_000, "the reserve is used");
        std::thread::yield_now();
    }
    assert!(ears.0.0.lock().failed.is_none());
    drop(ballast);
    fs::remove_file(small.0.join("ballast")).unwrap();
    ears.wait("all of it", |told| told.durable == 80);
    // There is room again for a reserve, and for more than that.
    ears.wait("room again", |told| told.rooms.last() == Some(&true) || told.failed.is_some());
    thread.close();
    assert_eq!(ears.0.0.lock().failed, None);
    let (_, recovered, _) = DataDir::open(&data, &founding(2)).unwrap();
    assert_eq!(recovered.damage, []);
    assert_eq!(recovered.entries[&GroupId(3)].len(), 80);
}

#[test]
fn a_node_ends_while_its_disk_is_full() {
    let Some(small) = Small::mount("full-end", 160) else { return };
    let data = small.0.join("data");
    let (dir, _, journal) = DataDir::open(&data, &founding(2)).unwrap();
    let ears = Ears::default();
    let mut ballast = fs::File::create(small.0.join("ballast")).unwrap();
    let filled = std::io::copy(&mut std::io::repeat(1), &mut ballast).unwrap_err();
    assert_eq!(filled.kind(), std::io::ErrorKind::StorageFull);
    let thread = SyncThread::start(dir, journal, ears.clone());
    thread.submit(batch(1, (0, 0), 40 << 20));
    ears.wait("no room", |told| told.rooms == [false]);
    thread.close();
    let told = ears.0.0.lock();
    assert_eq!((told.durable, told.failed.as_ref()), (0, None));
}
