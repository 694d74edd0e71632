//! Rows and logs that change together: snapshots, new incarnations, replicas that are gone.

use super::*;

/// Everything that a start may find when `batches` are cut short by a crash.
fn cut_short(
    disk: &Disk,
    journal: impl Fn(&mut Disk) -> Journal,
    batches: &[Persist],
    see: &dyn Fn(Recovered),
) {
    for seed in 0..60 {
        let mut disk = Disk { seed, ..disk.clone() };
        let mut journal = journal(&mut disk);
        let mut ios = Vec::new();
        journal.plan(batches, &mut ios);
        let steps = usize::try_from(seed).unwrap() % (ios.len() + 1);
        disk.perform(&ios[..steps]);
        disk.crash();
        see(disk.start().unwrap_or_else(|damage| panic!("seed {seed}: {damage}")).0);
    }
}

fn at(row: Row, rows: Vec<Entry>) -> Persist {
    Persist { seq: 1, rows: vec![(GroupId(0), row)], entries: rows }
}

fn numbered(term: u64, index: u64, kind: u8) -> Entry {
    let data = if kind == RESET { Bytes::new() } else { vec![u8::try_from(term).unwrap(); 300].into() };
    Entry { group: GroupId(0), term, index, kind, data }
}

#[test]
fn a_log_that_begins_anew_behind_an_installed_snapshot_is_never_mixed_with_the_old_one() {
    let mut disk = Disk::founded(1);
    let (_, mut journal) = disk.start().unwrap();
    let old: Vec<Entry> = (1..=20).map(|index| numbered(1, index, COMMANDS)).collect();
    disk.perform(&plan(&mut journal, at(row(1, 1), old.clone())));
    let installed = Row { snapshot: (12, 3), ..row(3, 1) };
    // Old entries of the same plan that the reset takes back, and new ones behind it.
    let late = at(row(1, 1), vec![numbered(1, 21, COMMANDS)]);
    let new = [numbered(3, 12, RESET), numbered(3, 13, COMMANDS), numbered(3, 14, COMMANDS)];
    let batches = [late, at(installed.clone(), new.to_vec())];
    let both = core::cell::Cell::new((0, 0));
    let begin = |disk: &mut Disk| {
        let (_, journal) = disk.start().unwrap();
        disk.snapshot(GroupId(0), 12);
        journal
    };
    cut_short(&disk, begin, &batches, &|recovered| {
        assert_eq!(recovered.damage, []);
        let log = recovered.entries.get(&GroupId(0)).cloned().unwrap_or_default();
        let (olds, news) = both.get();
        if recovered.rows[&GroupId(0)] == installed {
            assert!(new[1..].starts_with(&log), "only new entries: {log:?}");
            assert!(recovered.snapshots.contains_key(&GroupId(0)));
            both.set((olds, news + 1));
        } else {
            assert!(log.starts_with(&old));
            both.set((olds + 1, news));
        }
    });
    assert!(both.get().0 > 5 && both.get().1 > 5, "both happen: {both:?}");
}

#[test]
fn a_log_that_contradicts_its_snapshot_is_void_and_what_is_written_behind_it_is_not() {
    let mut disk = Disk::founded(1);
    let (_, mut journal) = disk.start().unwrap();
    let old: Vec<Entry> = (1..=20).map(|index| numbered(1, index, COMMANDS)).collect();
    disk.perform(&plan(&mut journal, at(row(1, 1), old)));
    disk.snapshot(GroupId(0), 12);
    // The row is durable, the reset would have come with the next plan.
    disk.perform(&plan(&mut journal, at(Row { snapshot: (12, 3), ..row(3, 1) }, Vec::new())));
    let (recovered, mut journal) = disk.start().unwrap();
    assert_eq!((recovered.damage.len(), recovered.entries.len()), (0, 0));
    let next = Persist { seq: 1, rows: Vec::new(), entries: vec![numbered(3, 13, COMMANDS)] };
    disk.perform(&plan(&mut journal, next.clone()));
    for _ in 0..2 {
        let (recovered, _) = disk.start().unwrap();
        assert_eq!(recovered.entries[&GroupId(0)], next.entries);
    }
}

#[test]
fn a_new_incarnation_has_nothing_of_the_old_one() {
    let mut disk = Disk::founded(1);
    let (_, mut journal) = disk.start().unwrap();
    let old: Vec<Entry> = (1..=20).map(|index| numbered(7, index, COMMANDS)).collect();
    disk.snapshot(GroupId(0), 5);
    disk.perform(&plan(&mut journal, at(Row { snapshot: (5, 7), ..row(7, 1) }, old.clone())));
    // Its terms begin anew as well.
    let second = Row { incarnation: 1, ..row(1, 1) };
    let batches = [
        at(Row { snapshot: (5, 7), ..row(7, 1) }, vec![numbered(7, 21, COMMANDS)]),
        at(Row { standing: Standing::Absent, ..row(7, 1) }, Vec::new()),
        at(second.clone(), vec![numbered(1, 0, RESET), numbered(1, 1, COMMANDS)]),
    ];
    let both = core::cell::Cell::new((0, 0));
    cut_short(&disk, |disk| disk.start().unwrap().1, &batches, &|recovered| {
        assert_eq!(recovered.damage, []);
        let log = recovered.entries.get(&GroupId(0)).cloned().unwrap_or_default();
        let (olds, news) = both.get();
        if recovered.rows[&GroupId(0)] == second {
            assert!(log.is_empty() || log == [numbered(1, 1, COMMANDS)], "{log:?}");
            both.set((olds, news + 1));
        } else {
            assert!(log.starts_with(&old[5..]) && recovered.snapshots.contains_key(&GroupId(0)));
            both.set((olds + 1, news));
        }
    });
    assert!(both.get().0 > 5 && both.get().1 > 5, "both happen: {both:?}");
    let (_, mut journal) = disk.start().unwrap();
    let mut ios = Vec::new();
    journal.plan(&batches, &mut ios);
    disk.perform(&ios);
    assert!(!disk.has(File::Snapshot(GroupId(0), 5)) && !disk.has(File::Segment(1)), "nothing pins the old");
}

#[test]
fn a_replica_that_is_not_there_has_no_log_and_pins_nothing() {
    let mut disk = Disk::founded(1);
    let (_, mut journal) = disk.start().unwrap();
    disk.perform(&plan(&mut journal, at(row(1, 1), vec![numbered(1, 1, COMMANDS)])));
    let gone = Row { standing: Standing::Lost, ..row(1, 1) };
    let ios = plan(&mut journal, at(gone, vec![numbered(1, 2, COMMANDS)]));
    assert!(ios.iter().all(|io| !matches!(io, Io::Write { file: File::Segment(_), .. })), "{ios:?}");
    disk.perform(&ios);
    disk.start().unwrap();
    let (recovered, _) = disk.start().unwrap();
    assert!(recovered.damage.is_empty() && recovered.entries.is_empty() && !disk.has(File::Segment(1)));
}

#[test]
fn what_was_freed_may_come_back_and_is_taken_away_again() {
    let mut disk = Disk::founded(1);
    let (_, mut journal) = disk.start().unwrap();
    disk.perform(&plan(&mut journal, vote(1, 1)));
    for index in 1..=60 {
        disk.perform(&plan(&mut journal, entry(index)));
        journal.done();
    }
    disk.snapshot(GroupId(0), 30);
    disk.snapshot(GroupId(0), 55);
    disk.perform(&plan(&mut journal, at(Row { snapshot: (30, 1), ..row(1, 1) }, Vec::new())));
    assert!(!disk.has(File::Segment(1)) && disk.has(File::Snapshot(GroupId(0), 30)));
    let before = disk.clone();
    disk.perform(&plan(&mut journal, at(Row { snapshot: (55, 1), ..row(1, 1) }, Vec::new())));
    assert!(!disk.has(File::Snapshot(GroupId(0), 30)), "its successor is named");
    let mut back = before;
    back.live.insert(File::Hard, disk.live[&File::Hard].clone());
    let (recovered, _) = back.start().unwrap();
    assert_eq!(recovered.entries[&GroupId(0)].len(), 5);
    assert_eq!(recovered.damage, []);
    let segments = |disk: &Disk| -> Vec<File> {
        disk.live
            .keys()
            .copied()
            .filter(|file| matches!(file, File::Segment(_) | File::Snapshot(..)))
            .collect()
    };
    disk.start().unwrap();
    assert_eq!(segments(&back), segments(&disk));
}
