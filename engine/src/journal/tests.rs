//! The journal on a disk that loses what was not synced, and on one whose bits flip.

mod damage;
mod rows;

use alloc::string::ToString;
use alloc::vec;

use super::*;

/// Small segments, so that they are rolled often.
const SMALL: u64 = 16 << 10;

/// A disk with live and durable bytes: a crash keeps any part of what was not synced, sector by sector.
#[derive(Clone, Default)]
struct Disk {
    live: BTreeMap<File, Vec<u8>>,
    durable: BTreeMap<File, Vec<u8>>,
    seed: u64,
}

impl Disk {
    fn draw(&mut self, n: u64) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) % n
    }

    /// Does some of the list; the rest is lost in the crash that follows.
    fn perform(&mut self, ios: &[Io]) {
        for io in ios {
            match io {
                Io::Create { file, size } => {
                    // A recycled file: full of what some segment held in a former life.
                    let mut bytes = self.live.values().next_back().cloned().unwrap_or_default();
                    bytes.resize(usize::try_from(*size).unwrap(), 0);
                    self.live.insert(*file, bytes);
                }
                Io::Write { file, offset, bytes } => {
                    let live = self.live.entry(*file).or_default();
                    let at = usize::try_from(*offset).unwrap();
                    live.resize(live.len().max(at + bytes.len()), 0);
                    live[at..at + bytes.len()].copy_from_slice(bytes);
                }
                Io::Sync { file } => {
                    self.durable.insert(*file, self.live[file].clone());
                }
                Io::Remove { file } => {
                    self.live.remove(file);
                    self.durable.remove(file);
                }
            }
        }
    }

    fn crash(&mut self) {
        for (file, live) in self.live.clone() {
            let mut kept = self.durable.get(&file).cloned().unwrap_or_default();
            if kept.is_empty() && self.draw(2) == 0 {
                self.durable.remove(&file);
                continue;
            }
            kept.resize(live.len(), 0);
            for at in (0..live.len()).step_by(512) {
                let end = (at + 512).min(live.len());
                if kept[at..end] != live[at..end] && self.draw(2) == 0 {
                    let torn = at + usize::try_from(self.draw(512)).unwrap();
                    let end = if self.draw(4) == 0 { torn.min(end) } else { end };
                    kept[at..end].copy_from_slice(&live[at..end]);
                }
            }
            self.durable.insert(file, kept);
        }
        self.live = self.durable.clone();
    }

    fn contents(&self) -> Contents {
        let file = |file| self.live.get(&file).map(|bytes| Bytes::copy_from_slice(bytes));
        let segments = self.live.iter().filter_map(|(file, bytes)| match file {
            File::Segment(number) => Some((*number, Bytes::copy_from_slice(bytes))),
            _ => None,
        });
        let snapshots = self.live.iter().filter_map(|(file, bytes)| match file {
            File::Snapshot(group, index) => Some(((*group, *index), Bytes::copy_from_slice(bytes))),
            _ => None,
        });
        Contents {
            meta: file(File::Meta),
            hard: file(File::Hard),
            segments: segments.collect(),
            snapshots: snapshots.collect(),
        }
    }

    /// Writes a snapshot as the engine does, before a row names it.
    fn snapshot(&mut self, group: GroupId, index: Index) {
        let file = File::Snapshot(group, index);
        let bytes = snapshot_bytes(group, index).into();
        self.perform(&[
            Io::Create { file, size: 0 },
            Io::Write { file, offset: 0, bytes },
            Io::Sync { file },
        ]);
    }

    fn has(&self, file: File) -> bool {
        self.live.contains_key(&file)
    }

    fn start(&mut self) -> Result<(Recovered, Journal), Refusal> {
        let (recovered, mut journal, ios) = recover(&self.contents(), &Options::new(SMALL))?;
        self.perform(&ios);
        journal.done();
        Ok((recovered, journal))
    }

    fn founded(seed: u64) -> Self {
        let mut disk = Self { seed, ..Self::default() };
        let mut ios = Vec::new();
        found(&meta(), 0, &mut ios);
        disk.perform(&ios);
        disk
    }
}

/// A snapshot that is sound and says little.
fn snapshot_bytes(group: GroupId, index: Index) -> Vec<u8> {
    snapshot_of(snapshot::Header::new(group, (index, 1), 0, Conf::default(), Vec::new()))
}

/// The same, with any header.
fn snapshot_of(header: snapshot::Header) -> Vec<u8> {
    let (group, index) = (header.group, header.index);
    let mut out = Vec::new();
    for (kind, payload) in [(1, header.to_wire()), (2, vec![7; 700].into()), (3, vec![0; 16].into())] {
        let place = [&group.0.to_le_bytes()[..], &index.to_le_bytes(), &(out.len() as u64).to_le_bytes()];
        let crc = crc32fast::hash(&[&[kind][..], &payload, &place.concat()].concat());
        out.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        out.extend_from_slice(&crc.to_le_bytes());
        out.push(kind);
        out.extend_from_slice(&payload);
    }
    out
}

fn meta() -> Meta {
    Meta {
        cluster: ClusterId(5),
        node: NodeId(2),
        identity: Identity(77),
        boot: Boot(0),
        partitions: 16,
        founders: vec![(NodeId(1), "a:1".into()), (NodeId(2), "b:2".into())],
    }
}

/// Makes batches like a node's: entries of a few groups, sometimes with a conflict, rows before entries, and
/// snapshots of what nobody takes back.
#[derive(Clone, Default)]
struct Writer {
    seq: u64,
    /// Whole logs, from index 1, whatever of them is compacted.
    logs: BTreeMap<GroupId, Vec<Entry>>,
    rows: BTreeMap<GroupId, Row>,
}

impl Writer {
    fn batch(&mut self, disk: &mut Disk) -> Persist {
        self.seq += 1;
        let mut persist = Persist { seq: self.seq, ..Persist::default() };
        for group in 0..3 {
            self.compact(GroupId(group), disk, &mut persist);
        }
        for _ in 0..disk.draw(4) {
            let group = GroupId(u16::try_from(disk.draw(3)).unwrap());
            let row = self.rows.entry(group).or_default();
            row.standing = Standing::Whole;
            let hard = &mut row.hard;
            let log = self.logs.entry(group).or_default();
            if disk.draw(5) == 0 || hard.term == 0 {
                hard.term += 1;
                hard.vote.node = NodeId(1 + disk.draw(3));
                let cut = log.len().saturating_sub(usize::try_from(disk.draw(3)).unwrap());
                log.truncate(cut.max(usize::try_from(row.snapshot.0).unwrap()));
                persist.rows.push((group, row.clone()));
            }
            let size = [10, 600, 3000, 20_000][usize::try_from(disk.draw(40) / 13).unwrap()];
            let data = vec![u8::try_from(self.seq % 251).unwrap(); size];
            let entry =
                Entry { group, term: row.hard.term, index: log.len() as u64 + 1, kind: 0, data: data.into() };
            log.push(entry.clone());
            persist.entries.push(entry);
        }
        persist
    }

    fn compact(&mut self, group: GroupId, disk: &mut Disk, persist: &mut Persist) {
        let Some(log) = self.logs.get(&group).filter(|log| log.len() > 4) else { return };
        let (index, row) = (log.len() as u64 - 3, self.rows.get_mut(&group).unwrap());
        if disk.draw(6) > 0 || row.snapshot.0 >= index {
            return;
        }
        row.snapshot = (index, log[usize::try_from(index - 1).unwrap()].term);
        disk.snapshot(group, index);
        persist.rows.push((group, row.clone()));
    }

    /// Goes on from what was read.
    fn adopt(&mut self, recovered: Recovered) {
        for (group, log) in &mut self.logs {
            let snapshot = recovered.rows.get(group).map_or(0, |row| row.snapshot.0);
            log.truncate(usize::try_from(snapshot).unwrap());
            log.extend(recovered.entries.get(group).into_iter().flatten().cloned());
        }
        self.logs.retain(|_, log| !log.is_empty());
        self.rows = recovered.rows;
    }
}

/// What was read is what was durable, and perhaps some of the last batch, if that was cut short.
fn check(recovered: &Recovered, durable: &Writer, after: &Writer, last: Option<&Persist>, context: &str) {
    let whole = last.is_none();
    assert_eq!(recovered.damage, [], "{context}");
    for group in [0, 1, 2].map(GroupId) {
        let row = recovered.rows.get(&group);
        let written = |writer: &Writer| writer.rows.get(&group) == row;
        assert!(written(after) || !whole && written(durable), "{context}: {group:?} has {row:?}");
        let snapshot = usize::try_from(row.map_or(0, |row| row.snapshot.0)).unwrap();
        let found = recovered.entries.get(&group).map_or(&[][..], |log| &log[..]);
        let full = |writer: &Writer| writer.logs.get(&group).cloned().unwrap_or_default();
        let (old, new) = (full(durable), full(after));
        let kept = old.iter().zip(&new).take_while(|(old, new)| old == new).count();
        assert!(snapshot + found.len() >= kept, "{context}: a synced entry of {group:?} is gone");
        if whole {
            assert_eq!(snapshot + found.len(), new.len(), "{context}: {group:?}");
        }
        for (at, entry) in (snapshot..).zip(found) {
            assert_eq!(entry.index, at as u64 + 1);
            let late = last.is_some_and(|last| last.entries.contains(entry));
            let known = old[..kept].get(at) == Some(entry) || late || !whole && old.get(at) == Some(entry);
            assert!(
                known || whole && new.get(at) == Some(entry),
                "{context}: {group:?} has another entry {}",
                entry.index
            );
        }
    }
}

#[test]
fn what_was_synced_is_recovered_whatever_a_crash_keeps_of_the_rest() {
    let mut freed = 0;
    for seed in 0..150 {
        let mut disk = Disk::founded(seed);
        let mut writer = Writer::default();
        let (mut durable, mut last) = (writer.clone(), None);
        for boot in 1..=6 {
            let (recovered, mut journal) =
                disk.start().unwrap_or_else(|d| panic!("seed {seed} boot {boot}: {d}"));
            assert_eq!(recovered.meta.boot, Boot(boot));
            check(&recovered, &durable, &writer, last.as_ref(), &format!("seed {seed} boot {boot}"));
            writer.adopt(recovered);
            for _ in 0..disk.draw(20) {
                let batches = [writer.batch(&mut disk), writer.batch(&mut disk)];
                let mut ios = Vec::new();
                journal.plan(&batches, &mut ios);
                freed += ios.iter().filter(|io| matches!(io, Io::Remove { file: File::Segment(_) })).count();
                disk.perform(&ios);
                journal.done();
                if disk.draw(3) == 0 {
                    let mut ios = Vec::new();
                    journal.idle(&mut ios);
                    disk.perform(&ios);
                    journal.done();
                }
            }
            durable = writer.clone();
            // The last commit is cut anywhere.
            let mut ios = Vec::new();
            let batch = writer.batch(&mut disk);
            journal.plan(core::slice::from_ref(&batch), &mut ios);
            let part = usize::try_from(disk.draw(ios.len() as u64 + 1)).unwrap();
            last = (part < ios.len()).then_some(batch);
            disk.perform(&ios[..part]);
            disk.crash();
        }
    }
    assert!(freed > 100, "segments are freed: {freed}");
}

#[test]
fn a_record_is_valid_only_where_it_was_written() {
    let entry = Entry { group: GroupId(1), term: 1, index: 1, kind: 0, data: "body".into() };
    let here = Place { identity: Identity(1), segment: 2, offset: 0 };
    let mut bytes = Vec::new();
    record_of(&entry).put(here, &mut bytes);
    let mut twice = bytes.clone();
    twice.extend_from_slice(&bytes);
    let bytes = Bytes::from(twice);
    assert!(Record::read(&bytes, here, true).is_some());
    for other in [
        Place { identity: Identity(2), ..here },
        Place { segment: 3, ..here },
        Place { offset: bytes.len() as u64 / 2, ..here },
    ] {
        assert!(Record::read(&bytes, other, true).is_none(), "{other:?}");
    }
    for cut in 0..bytes.len() / 2 - ALIGN {
        assert!(Record::read(&bytes.slice(..cut), here, true).is_none(), "cut at {cut}");
    }
}

fn row(term: u64, vote: u64) -> Row {
    let vote = Replica { node: NodeId(vote), incarnation: 0 };
    Row { hard: Hard { term, vote }, standing: Standing::Whole, ..Row::default() }
}

fn vote(term: u64, vote: u64) -> Persist {
    let rows = vec![(GroupId(0), row(term, vote))];
    Persist { seq: 1, rows, entries: Vec::new() }
}

fn plan(journal: &mut Journal, batch: Persist) -> Vec<Io> {
    let mut ios = Vec::new();
    journal.plan(&[batch], &mut ios);
    ios
}

/// A directory after a change of its vote was cut short: `before` is there, of `cut` only some steps are.
fn cut_vote(before: &[Persist], cut: Persist, steps: usize) -> Disk {
    let mut disk = Disk::founded(1);
    let (_, mut journal) = disk.start().unwrap();
    for batch in before {
        disk.perform(&plan(&mut journal, batch.clone()));
        journal.done();
    }
    disk.perform(&plan(&mut journal, cut)[..steps]);
    disk
}

#[test]
fn a_vote_that_a_start_has_acted_upon_outlives_the_next_torn_write() {
    // The first copy is synced, the second is not: also when it is the very first that is ever written.
    for before in [vec![vote(4, 2)], vec![]] {
        let mut disk = cut_vote(&before, vote(5, 3), 2);
        let (recovered, mut journal) = disk.start().unwrap();
        let acted = recovered.rows[&GroupId(0)].clone();
        assert_eq!(acted, row(5, 3));
        // It is granted again without a write, because nothing has changed. Then the next write is torn.
        let ios = plan(&mut journal, vote(6, 1));
        let Io::Write { file, offset, bytes } = &ios[0] else { panic!("a vote is written first") };
        disk.perform(&[Io::Write { file: *file, offset: *offset, bytes: bytes.slice(..24) }]);
        let (recovered, _) = disk.start().unwrap();
        assert_eq!(recovered.rows.get(&GroupId(0)), Some(&acted), "after {before:?}");
    }
}

#[test]
fn a_crash_in_a_repair_leaves_one_good_copy() {
    for seed in 0..400 {
        // The first copy is written and not synced when the process is killed: the next one reads it.
        let mut disk = cut_vote(&[vote(4, 2)], vote(5, 3), 1);
        disk.seed = seed;
        let (_, _, ios) = recover(&disk.contents(), &Options::new(SMALL)).unwrap();
        let steps = usize::try_from(disk.draw(ios.len() as u64 + 1)).unwrap();
        disk.perform(&ios[..steps]);
        disk.crash();
        let (recovered, _) =
            disk.start().unwrap_or_else(|damage| panic!("seed {seed}, {steps} steps: {damage}"));
        assert!(recovered.rows[&GroupId(0)].hard.term >= 4);
    }
}

#[test]
fn a_start_never_overwrites_the_only_good_copy() {
    for (file, offset) in
        [(File::Meta, 0), (File::Meta, twin::COPY), (File::Hard, 0), (File::Hard, twin::COPY)]
    {
        let mut disk = cut_vote(&[vote(4, 2)], vote(5, 3), 0);
        disk.live.get_mut(&file).unwrap()[usize::try_from(offset).unwrap() + 30] ^= 1;
        let (expected, _, ios) = recover(&disk.contents(), &Options::new(SMALL)).unwrap();
        for (steps, io) in ios.iter().enumerate() {
            let mut torn = disk.clone();
            torn.perform(&ios[..steps]);
            if let Io::Write { file, offset, bytes } = io {
                torn.perform(&[Io::Write { file: *file, offset: *offset, bytes: bytes.slice(..24) }]);
            }
            let (recovered, _) =
                torn.start().unwrap_or_else(|damage| panic!("{file:?} at {offset}, {steps} steps: {damage}"));
            assert_eq!(recovered.rows, expected.rows);
            assert!(recovered.meta.boot >= expected.meta.boot);
        }
    }
}

fn entry(index: u64) -> Persist {
    let data = vec![1; 1000].into();
    let entry = Entry { group: GroupId(0), term: 1, index, kind: 0, data };
    Persist { seq: index, rows: Vec::new(), entries: vec![entry] }
}

#[test]
fn a_start_vouches_only_for_what_it_has_synced() {
    for seed in 0..400 {
        let mut disk = Disk::founded(seed);
        let (_, mut journal) = disk.start().unwrap();
        for batch in [vote(1, 1), entry(1)] {
            disk.perform(&plan(&mut journal, batch));
            journal.done();
        }
        // Written and not synced: the process is killed, and the next one reads it from memory. Its start is cut
        // short by a power failure.
        disk.perform(&plan(&mut journal, entry(2))[..1]);
        let (recovered, _, ios) = recover(&disk.contents(), &Options::new(SMALL)).unwrap();
        assert_eq!(recovered.entries[&GroupId(0)].len(), 2);
        let steps = usize::try_from(disk.draw(ios.len() as u64 + 1)).unwrap();
        disk.perform(&ios[..steps]);
        disk.crash();
        let (recovered, _) =
            disk.start().unwrap_or_else(|damage| panic!("seed {seed}, {steps} steps: {damage}"));
        assert!(!recovered.entries[&GroupId(0)].is_empty());
    }
}

#[test]
fn a_segment_that_was_never_begun_may_come_back_after_its_removal() {
    let mut disk = Disk::founded(5);
    let (_, mut journal) = disk.start().unwrap();
    disk.perform(&plan(&mut journal, vote(1, 1)));
    disk.perform(&plan(&mut journal, entry(1)));
    // A crash between the file's making and its first record; the next start takes it away and goes on in the
    // third segment, but the removal does not reach the disk.
    let never_begun = vec![0; 4096];
    disk.live.insert(File::Segment(2), never_begun.clone());
    let (expected, mut journal) = disk.start().unwrap();
    assert!(!disk.live.contains_key(&File::Segment(2)) && disk.live.contains_key(&File::Segment(3)));
    disk.live.insert(File::Segment(2), never_begun);
    let mut back = disk.clone();
    let (recovered, _) = back.start().unwrap();
    assert_eq!(recovered.entries, expected.entries);
    assert!(!back.live.contains_key(&File::Segment(2)), "it is taken away again");

    // A first record that was there is missed by what follows it: in the same segment, or in the next.
    disk.perform(&plan(&mut journal, entry(2)));
    disk.perform(&plan(&mut journal, entry(3)));
    let mut within = disk.clone();
    within.live.get_mut(&File::Segment(3)).unwrap()[20] ^= 1;
    let mut behind = disk.clone();
    behind.start().unwrap();
    behind.live.get_mut(&File::Segment(3)).unwrap()[..4096].fill(0);
    for (mut disk, expected) in
        [(within, "3.seg is damaged at offset 0"), (behind, "4.seg is damaged at offset 0")]
    {
        let (recovered, _) = disk.start().unwrap();
        let text = recovered.damage[0].to_string();
        assert!(text.contains(expected), "{expected}: {text}");
        assert_eq!(lost(&recovered), [GroupId(0)]);
    }
}

fn lost(recovered: &Recovered) -> Vec<GroupId> {
    let lost = recovered.rows.iter().filter(|(_, row)| row.standing == Standing::Lost);
    lost.map(|(&group, _)| group).collect()
}
