//! Directories to which something has happened: what is read is what was written, or its group is lost.

use super::*;

/// A small journal with a restart in its middle and one at its end, so that something vouches for every commit, with a
/// snapshot, and frontiers behind the commits that leave room for them.
fn settled() -> (Disk, Recovered) {
    let mut disk = Disk::founded(3);
    let mut writer = Writer::default();
    for _ in 0..2 {
        let (_, mut journal) = disk.start().unwrap();
        for _ in 0..6 {
            let mut ios = Vec::new();
            journal.plan(&[writer.batch(&mut disk)], &mut ios);
            journal.done();
            journal.idle(&mut ios);
            disk.perform(&ios);
            journal.done();
        }
    }
    disk.start().unwrap();
    let before = disk.clone();
    let (recovered, _) = disk.start().unwrap();
    assert!(recovered.snapshots.len() == 1 && recovered.entries.len() > 1, "it has all kinds of files");
    (before, recovered)
}

/// Starts on a directory that something has happened to: what is not lost is what it was, and what is lost stays so.
fn start_on_damage(mut disk: Disk, expected: &Recovered, context: &str) -> Vec<GroupId> {
    let (recovered, _) = disk.start().unwrap_or_else(|damage| panic!("{context}: {damage}"));
    assert_eq!(recovered.meta, expected.meta, "{context}");
    let lost = lost(&recovered);
    assert_eq!(lost.is_empty(), recovered.damage.is_empty(), "{context}: {:?}", recovered.damage);
    for group in expected.rows.keys().filter(|group| !lost.contains(group)) {
        assert_eq!(recovered.rows[group], expected.rows[group], "{context}");
        assert!(recovered.entries.get(group) == expected.entries.get(group), "{context}: {group:?}");
        assert_eq!(recovered.snapshots.get(group), expected.snapshots.get(group), "{context}");
    }
    for group in &lost {
        assert!(!recovered.entries.contains_key(group) && !recovered.snapshots.contains_key(group));
    }
    let (again, _) = disk.start().unwrap_or_else(|damage| panic!("{context}, again: {damage}"));
    assert_eq!((again.rows, again.entries), (recovered.rows, recovered.entries), "{context}");
    assert_eq!(again.damage, [], "{context}: it is told once");
    lost
}

#[test]
fn a_flipped_bit_anywhere_is_harmless_or_loses_a_group_and_never_changes_what_is_read() {
    let (disk, expected) = settled();
    let (mut harmful, mut harmless) = (0, 0);
    for (file, bytes) in &disk.live {
        for at in 0..bytes.len() {
            // Every byte where records lie, samples of the empty rest.
            if bytes[at..].iter().take(64).all(|&byte| byte == 0) && at % 37 != 0 {
                continue;
            }
            let mut flipped = disk.clone();
            flipped.live.get_mut(file).unwrap()[at] ^= 1 << (at % 8);
            let lost = start_on_damage(flipped, &expected, &format!("{file:?} byte {at}"));
            match file {
                File::Meta | File::Hard => assert_eq!(lost, [], "{file:?} has two copies: byte {at}"),
                File::Snapshot(group, _) => assert!(lost.iter().all(|other| other == group)),
                File::Segment(_) => assert!(lost.is_empty() || lost.len() == expected.rows.len()),
            }
            if lost.is_empty() { harmless += 1 } else { harmful += 1 }
        }
    }
    assert!(harmful > 1000 && harmless > 1000, "both happen: {harmful} and {harmless}");
}

#[test]
fn zeroed_and_torn_sectors_are_harmless_or_lose_a_group() {
    let (disk, expected) = settled();
    for (file, bytes) in &disk.live {
        for at in (0..bytes.len()).step_by(512) {
            for (what, byte) in [("zeroed", 0), ("torn", 0xa5)] {
                let mut spoiled = disk.clone();
                let live = spoiled.live.get_mut(file).unwrap();
                let from = if byte == 0 { at } else { at + 100 };
                let end = (at + 512).min(live.len());
                live.get_mut(from..end).unwrap_or_default().fill(byte);
                start_on_damage(spoiled, &expected, &format!("{file:?} {what} at {at}"));
            }
        }
        for keep in [0, 1, 511, 600, 4096, bytes.len() / 2, bytes.len().saturating_sub(1)] {
            let mut cut = disk.clone();
            cut.live.get_mut(file).unwrap().truncate(keep);
            start_on_damage(cut, &expected, &format!("{file:?} cut at {keep}"));
        }
    }
}

/// An open segment ends somewhere, and that looks like a torn tail; but a file is as long as it was made, and the manifest
/// knows that it was begun, and a place up to which it was synced.
#[test]
fn an_open_segment_that_is_cut_off_emptied_or_gone_is_damage() {
    let mut disk = Disk::founded(3);
    let (_, mut journal) = disk.start().unwrap();
    let mut writer = Writer::default();
    let (mut proven, mut rolled) = (0, 0);
    for _ in 0..40 {
        let before = journal.segment;
        let mut ios = Vec::new();
        let batch = writer.batch(&mut disk);
        journal.plan(&[batch], &mut ios);
        disk.perform(&ios);
        journal.done();
        rolled += journal.segment - before;
        let copies = twin::copies(&Bytes::copy_from_slice(&disk.live[&File::Hard]));
        let (segment, end) = HardFile::from_wire(copies[0].contents.clone()).unwrap().synced;
        assert_eq!(segment, journal.segment, "the manifest knows the open segment");
        let file = File::Segment(segment);
        let (recovered, _) = disk.clone().start().unwrap();
        assert!(recovered.damage.is_empty());
        let spoil = |what: &str, change: &dyn Fn(&mut Disk)| {
            let mut spoiled = disk.clone();
            change(&mut spoiled);
            assert_ne!(spoiled.start().unwrap().0.damage, [], "segment {segment} {what}");
        };
        for at in (0..usize::try_from(end).unwrap()).step_by(512) {
            let change = |disk: &mut Disk| disk.live.get_mut(&file).unwrap()[at..].fill(0);
            spoil(&format!("emptied from {at} on, synced up to {end}"), &change);
            proven += usize::from(at > 0);
        }
        // A segment that was made larger, for a larger record, is known by its synced part only.
        for keep in (0..usize::try_from(SMALL.max(end)).unwrap()).step_by(500) {
            spoil(&format!("cut at {keep}"), &|disk| disk.live.get_mut(&file).unwrap().truncate(keep));
        }
        spoil("gone", &|disk| drop(disk.live.remove(&file)));
    }
    assert!(proven > 20, "only {proven} places behind the first are known to be synced");
    assert!(rolled > 5, "only {rolled} segments were begun");
}

#[test]
fn a_missing_or_foreign_file_loses_what_it_was_needed_for() {
    let (disk, expected) = settled();
    let all: Vec<GroupId> = (0..=expected.meta.partitions).map(GroupId).collect();
    let held: Vec<GroupId> = expected.rows.keys().copied().collect();
    let snapshot = *expected.snapshots.keys().next().unwrap();
    let foreign = |disk: &mut Disk| {
        let meta = Meta { identity: Identity(78), ..meta() };
        let other = HardFile { meta, segments: (0, 0), synced: (0, 0), rows: Vec::new(), since: Vec::new() };
        let mut ios = Vec::new();
        twin::replace(File::Hard, 1 << 40, &other.to_wire(), &mut ios);
        disk.perform(&ios);
    };
    type Change<'a> = &'a dyn Fn(&mut Disk);
    let last = *disk.live.keys().rfind(|file| matches!(file, File::Segment(_))).unwrap();
    let first = *disk.live.keys().find(|file| matches!(file, File::Segment(_))).unwrap();
    assert_ne!(first, last);
    let index = expected.rows[&snapshot].snapshot.0;
    let header = snapshot::Header::new(snapshot, (index, 1), 0, Conf::default(), Vec::new());
    let older = snapshot_of(snapshot::Header { version: 1, ..header });
    let cases: [(&[GroupId], Change<'_>); 10] = [
        (&[], &|disk| drop(disk.live.remove(&File::Meta))),
        (&[], &|disk| disk.live.get_mut(&File::Meta).unwrap().fill(9)),
        (&all, &|disk| drop(disk.live.remove(&File::Hard))),
        (&all, &|disk| disk.live.get_mut(&File::Hard).unwrap().fill(7)),
        (&all, &|disk| disk.live.get_mut(&File::Hard).unwrap().clear()),
        (&all, &foreign),
        (&held, &|disk| drop(disk.live.remove(&first))),
        (&held, &|disk| drop(disk.live.remove(&last))),
        (&[snapshot], &|disk| drop(disk.live.remove(&File::Snapshot(snapshot, index)))),
        (&[snapshot], &|disk| drop(disk.live.insert(File::Snapshot(snapshot, index), older.clone()))),
    ];
    for (number, (expected_loss, change)) in cases.into_iter().enumerate() {
        let mut disk = disk.clone();
        change(&mut disk);
        assert_eq!(start_on_damage(disk, &expected, &format!("case {number}")), expected_loss, "{number}");
    }
    // What nobody knows of was perhaps acknowledged under any incarnation.
    let mut unknown = disk.clone();
    unknown.live.remove(&File::Hard);
    let (recovered, journal) = unknown.start().unwrap();
    assert!(recovered.rows.values().all(|row| row.incarnation == u32::MAX));
    let File::Segment(number) = journal.next_segment().0 else { panic!("it is a segment") };
    assert!(number > 1 << 24, "no number is used twice: {number}");
    // Nobody knows whose it is.
    let mut nobody = disk;
    nobody.live.remove(&File::Hard);
    nobody.live.remove(&File::Meta);
    let text = nobody.start().map(|_| ()).unwrap_err().to_string();
    assert!(text.contains("meta is damaged at offset 0: neither it nor its copy"), "{text}");
}

#[test]
fn a_last_commit_without_room_for_a_frontier_behind_it_is_vouched_for_all_the_same() {
    let mut disk = Disk::founded(3);
    let (_, mut journal) = disk.start().unwrap();
    disk.perform(&plan(&mut journal, vote(1, 1)));
    journal.done();
    let mut without_room = 0;
    for index in 1..=60 {
        disk.perform(&plan(&mut journal, entry(index)));
        journal.done();
        let (segment, end) = journal.synced;
        let mut ios = Vec::new();
        journal.idle(&mut ios);
        disk.perform(&ios);
        journal.done();
        without_room +=
            usize::from(!ios.iter().any(|io| matches!(io, Io::Write { file: File::Segment(_), .. })));
        let mut spoiled = disk.clone();
        spoiled.live.get_mut(&File::Segment(segment)).unwrap()[usize::try_from(end).unwrap() - 100] ^= 1;
        assert_ne!(spoiled.start().unwrap().0.damage, [], "entry {index}");
        assert!(disk.clone().start().unwrap().0.damage.is_empty());
        let mut again = Vec::new();
        journal.idle(&mut again);
        assert!(again.is_empty() && !journal.has_news(), "it is said once");
    }
    assert!(without_room > 5, "only {without_room} commits lay at the end of a segment");
}

#[test]
fn a_restored_directory_that_loses_its_manifest_is_not_a_new_one() {
    let mut disk = Disk::default();
    disk.snapshot(GroupId(1), 5);
    let mut ios = Vec::new();
    found_with(&meta(), vec![(GroupId(1), Row { snapshot: (5, 1), ..row(1, 0) })], &mut ios);
    disk.perform(&ios);
    assert_eq!(disk.clone().start().unwrap().0.damage, []);
    disk.live.remove(&File::Hard);
    let (recovered, _) = disk.start().unwrap();
    assert_eq!((recovered.damage.len(), lost(&recovered).len()), (1, 17));
}

/// A file whose checksums are right, in a format that this release does not know.
#[test]
fn what_a_newer_release_wrote_is_no_damage() {
    let (disk, expected) = settled();
    let (&group, _) = expected.snapshots.first_key_value().unwrap();
    let snapshot = File::Snapshot(group, expected.rows[&group].snapshot.0);
    let last = *disk.live.keys().rfind(|file| matches!(file, File::Segment(_))).unwrap();
    let File::Segment(number) = last else { panic!("it is one") };
    let twin = |disk: &mut Disk, file| {
        let number = twin::copies(&Bytes::copy_from_slice(&disk.live[&file]))[0].number;
        let mut ios = Vec::new();
        twin::replace(file, number + 1, b"in other words", &mut ios);
        // The start after the upgrade has died in the middle: what an older copy says is of the past.
        disk.perform(&ios[..2]);
    };
    let record = |disk: &mut Disk, number: u64, offset: u64| {
        let live = disk.live.get_mut(&File::Segment(number)).unwrap();
        let at = usize::try_from(offset).unwrap();
        let place = Place { identity: Identity(77), segment: number, offset };
        let mut record = live[at..at + usize::try_from(MARKER).unwrap()].to_vec();
        record[9] = record::VERSION + 1;
        let crc = record::tests::checksum_at(&record, place);
        record[4..8].copy_from_slice(&crc.to_le_bytes());
        live[at..at + record.len()].copy_from_slice(&record);
    };
    let header = snapshot::Header {
        version: 200,
        ..snapshot::Header::new(group, (1, 1), 0, Conf::default(), Vec::new())
    };
    let mut bytes = Vec::new();
    let File::Snapshot(_, index) = snapshot else { panic!("it is one") };
    quorate_protocol::chunk::put(1, &header.to_wire(), (group, index, 0), &mut bytes);
    // Behind the end of the commit before it, in the next block.
    let is_frontier = |number, at| {
        let kind = usize::try_from(at + 8).unwrap();
        disk.live[&File::Segment(number)][kind] == Kind::Frontier as u8
    };
    let mut blocks = (1..=number).flat_map(|number| (0..SMALL).step_by(4096).map(move |at| (number, at)));
    let (paused, frontier) = blocks.find(|&(number, at)| is_frontier(number, at)).expect("there is one");
    type Change<'a> = &'a dyn Fn(&mut Disk);
    let cases: [(File, Change<'_>); 6] = [
        (File::Meta, &|disk| twin(disk, File::Meta)),
        (File::Hard, &|disk| twin(disk, File::Hard)),
        (last, &|disk| record(disk, number, 0)),
        (File::Segment(paused), &|disk| record(disk, paused, frontier)),
        (File::Segment(number - 1), &|disk| record(disk, number - 1, 512)),
        (snapshot, &|disk| drop(disk.live.insert(snapshot, bytes.clone()))),
    ];
    for (file, change) in cases {
        let mut disk = disk.clone();
        change(&mut disk);
        let refused = disk.start().map(|_| ());
        assert!(matches!(refused, Err(Refusal::Newer(found, _)) if found == file), "{file:?}: {refused:?}");
    }
}

#[test]
fn rows_that_are_older_than_the_log_lose_their_group() {
    let mut disk = Disk::founded(1);
    let (_, mut journal) = disk.start().unwrap();
    disk.perform(&plan(&mut journal, vote(1, 1)));
    disk.perform(&plan(&mut journal, entry(1)));
    let old = disk.live[&File::Hard].clone();
    disk.perform(&plan(&mut journal, vote(2, 1)));
    let mut newer = entry(2);
    newer.entries[0].term = 2;
    disk.perform(&plan(&mut journal, newer));
    disk.live.insert(File::Hard, old);
    let (recovered, _) = disk.start().unwrap();
    assert_eq!(lost(&recovered), [GroupId(0)]);
    assert!(recovered.damage[0].what.contains("it is older than the log of group 0"));
}
