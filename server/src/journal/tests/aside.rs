//! Starts on damage: what they keep, and when they refuse.

use quorate_engine::engine::Config as EngineConfig;

use super::super::aside::{keep, place};
use super::*;

/// A directory with a segment of full size whose first commit is damaged, and a row that names a snapshot; the files
/// that a start has no use for.
fn spoiled(scratch: &Scratch) -> Vec<(PathBuf, Vec<u8>)> {
    let (mut dir, _, mut journal) = DataDir::open(&scratch.0, &founding(2)).unwrap();
    fill(&mut dir, &mut journal, 1..=FIT + 1, (0, 0));
    fs::write(scratch.0.join(Name::Snapshot(GroupId(3), 1).path()), snapshot_file(1)).unwrap();
    fill(&mut dir, &mut journal, FIT + 2..=FIT + 2, (1, 1));
    drop((dir, journal));
    flip(scratch);
    let names = [Name::Segment(1), Name::Segment(2), Name::Snapshot(GroupId(3), 1), Name::Hard, Name::Meta];
    names.map(|name| (name.path().into(), fs::read(scratch.0.join(name.path())).unwrap())).into()
}

#[test]
fn a_start_on_damage_that_is_killed_anywhere_destroys_nothing() {
    let scratch = scratch("killed");
    let held = spoiled(&scratch);
    let is_kept = |place: &Path| {
        held.iter().all(|(path, bytes)| fs::read(place.join(path)).is_ok_and(|kept| kept == *bytes))
    };
    let places =
        || fs::read_dir(scratch.0.join("damaged")).map(|places| places.map(|one| one.unwrap().path()));
    let (mut done, mut at_first) = (false, 0);
    // One that was killed while it put the first file there, and whatever lies there since.
    let first = scratch.0.join("damaged/2");
    fs::create_dir_all(&first).unwrap();
    fs::write(first.join("meta"), "of an earlier time").unwrap();
    for steps in 0.. {
        let (mut dir, _, start) = DataDir::find(&scratch.0, &founding(2), &Unreadable::new()).unwrap();
        if start.found.damage.is_empty() {
            break;
        }
        assert_eq!(start.found.rows[&GroupId(3)].standing, Standing::Lost);
        at_first += 1;
        dir.disk.lives_for = steps;
        done |= dir.settle(&start.found, &start.ios).is_ok();
        assert!(places().unwrap().any(|place| is_kept(&place)), "killed after {steps} steps");
    }
    assert!(at_first > 5 && !done, "the rows were written, and it was killed before it took the files away");
    for _ in 0..2 {
        let (mut dir, recovered, mut journal) = DataDir::open(&scratch.0, &founding(2)).unwrap();
        assert_eq!(recovered.rows[&GroupId(3)].standing, Standing::Lost);
        assert!(!scratch.0.join(Name::Segment(2).path()).exists());
        // Whatever is written from now on is not written over what is kept.
        let mut ios = Vec::new();
        let rows = vec![(
            GroupId(4),
            Row { standing: Standing::Whole, hard: Hard { term: 1, ..Hard::default() }, ..Row::default() },
        )];
        let entry =
            |index| Entry { group: GroupId(4), term: 1, index, kind: 0, data: vec![7; 1 << 20].into() };
        let first = recovered.entries.get(&GroupId(4)).map_or(0, Vec::len) as u64;
        journal.plan(
            &[Persist { seq: 1, rows, entries: (first + 1..first + 40).map(entry).collect() }],
            &mut ios,
        );
        dir.perform(&ios, &mut |_| false).unwrap();
        assert!(places().unwrap().any(|place| is_kept(&place)));
    }
    assert_eq!(fs::read(first.join("meta")).unwrap(), b"of an earlier time", "nothing is overwritten");
}

#[test]
fn a_start_that_is_killed_while_it_keeps_what_it_has_no_use_for_has_changed_nothing() {
    let scratch = scratch("killed-early");
    let held = spoiled(&scratch);
    let (dir, _, start) = DataDir::find(&scratch.0, &founding(2), &Unreadable::new()).unwrap();
    for steps in 0..=start.ios.len() {
        let place = place(dir.path(), &start.found);
        keep(dir.path(), &place, &start.ios[..steps]).unwrap();
        for (path, bytes) in &held {
            let there = fs::read(scratch.0.join(path)).is_ok_and(|there| there == *bytes);
            assert!(there, "{} after {steps} steps", path.display());
        }
    }
    let inode = |dir: &Path| fs::metadata(dir.join(Name::Segment(1).path())).unwrap().ino();
    let last = scratch.0.join(format!("damaged/2-{}", start.ios.len() + 1));
    assert_eq!(inode(&last), inode(&scratch.0), "what is kept takes no room");
}

#[test]
fn what_is_kept_is_not_written_again_when_it_is_removed_later() {
    let scratch = scratch("two-names");
    let (mut dir, ..) = DataDir::open(&scratch.0, &founding(2)).unwrap();
    let kept = scratch.0.join("kept");
    for (number, is_kept) in [(2, false), (3, true)] {
        let file = Name::Segment(number);
        prepare(&scratch.0, file, SEGMENT_SIZE).unwrap();
        dir.perform(&[Io::Create { file, size: SEGMENT_SIZE }], &mut |_| false).unwrap();
        if is_kept {
            fs::hard_link(scratch.0.join(file.path()), &kept).unwrap();
        }
        dir.perform(&[Io::Remove { file }], &mut |_| false).unwrap();
        assert!(!scratch.0.join(file.path()).exists());
        assert_eq!(spare_places(&scratch.0).any(|place| place.exists()), !is_kept);
    }
    assert_eq!(fs::metadata(kept).unwrap().nlink(), 1);
}

/// A snapshot that is as it was written, and whose footer counts rows that are not there.
fn miscounted() -> Vec<u8> {
    let header = Header::new(GroupId(3), (1, 1), 0, Conf::default(), Vec::new()).to_wire();
    chunks(1, &[(1, header), (3, vec![1; 16].into())])
}

/// A directory of this founding whose group 3 has a snapshot that is as it was written, and cannot be loaded.
fn unloadable(scratch: &Scratch, founding: &Founding) -> Name {
    let name = Name::Snapshot(GroupId(3), 1);
    let (mut dir, _, mut journal) = DataDir::open(&scratch.0, founding).unwrap();
    fs::write(scratch.0.join(name.path()), miscounted()).unwrap();
    fill(&mut dir, &mut journal, 1..=2, (1, 1));
    name
}

fn settings(seed: u64) -> EngineConfig {
    EngineConfig::new(seed, "a:1".into())
}

#[test]
fn a_snapshot_that_cannot_be_loaded_is_damage_like_any_other() {
    let scratch = scratch("unloadable");
    let name = unloadable(&scratch, &founding(2));
    let flags = crate::check::CheckFlags { dir: scratch.0.clone(), explain: None, group: None };
    let mut told = Vec::new();
    let sound = crate::check::report(&flags, &mut told).unwrap();
    let told = String::from_utf8(told).unwrap();
    assert!(!sound && told.contains("LOST: 1 of") && told.contains(&name.path()), "{told}");
    let earlier = scratch.0.join("damaged/1");
    fs::create_dir_all(&earlier).unwrap();
    let opened = crate::node::open(&scratch.0, &founding(2), settings).unwrap();
    assert!(opened.engine.unreadable().is_empty());
    assert!(earlier.exists(), "all was whole to the eye, and was not");
    assert!(!scratch.0.join(name.path()).exists());
    let places = fs::read_dir(scratch.0.join("damaged")).unwrap();
    let kept: Vec<_> = places.map(|place| place.unwrap().path().join(name.path())).collect();
    assert!(kept.iter().any(|kept| kept.exists()), "{kept:?}");
    drop(opened);
    let opened = crate::node::open(&scratch.0, &founding(2), settings).unwrap();
    assert!(opened.dir.path().join("damaged").exists(), "it is told once, and kept");
}

#[test]
fn a_snapshot_that_cannot_be_loaded_and_that_nobody_else_has_is_left_as_it_is() {
    let scratch = scratch("unloadable-alone");
    let alone = Founding { founders: vec![(NodeId(2), "b:2".to_owned())], ..founding(2) };
    let name = unloadable(&scratch, &alone);
    let before = files_of(&scratch.0);
    for _ in 0..2 {
        let refused = crate::node::open(&scratch.0, &alone, settings).map(|_| ()).unwrap_err();
        assert!(
            refused.contains(&name.path()) && refused.contains("no other node has what this one had"),
            "{refused}"
        );
        assert!(files_of(&scratch.0) == before, "nothing is changed");
    }
}

#[test]
fn what_a_newer_release_wrote_is_refused_and_left_as_it_is() {
    let scratch = scratch("newer");
    let name = unloadable(&scratch, &founding(2));
    let newer = Header { version: 200, ..Header::new(GroupId(3), (1, 1), 0, Conf::default(), Vec::new()) };
    fs::write(scratch.0.join(name.path()), chunks(1, &[(1, newer.to_wire()), (3, vec![0; 16].into())]))
        .unwrap();
    let before = files_of(&scratch.0);
    let refused = DataDir::open(&scratch.0, &founding(2)).map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("was written by a newer release"), "{refused}");
    assert!(refused.contains("nothing was changed: start the release that wrote it"), "{refused}");
    assert!(files_of(&scratch.0) == before);
}

#[test]
fn what_a_node_held_that_cannot_say_what_it_held_is_removed_by_nobody() {
    let scratch = scratch("renounced");
    let held = spoiled(&scratch);
    fs::remove_file(scratch.0.join("hardstate")).unwrap();
    let (mut dir, recovered, mut journal) = DataDir::open(&scratch.0, &founding(2)).unwrap();
    // The engine renounces all that the directory may have held.
    let rows = recovered
        .rows
        .iter()
        .map(|(&group, row)| (group, Row { standing: Standing::Absent, incarnation: 9, ..row.clone() }));
    let mut ios = Vec::new();
    journal.plan(&[Persist { seq: 1, rows: rows.collect(), entries: Vec::new() }], &mut ios);
    dir.perform(&ios, &mut |_| false).unwrap();
    drop((dir, journal));
    for _ in 0..2 {
        let (_, recovered, _) = DataDir::open(&scratch.0, &founding(2)).unwrap();
        assert!(recovered.damage.is_empty() && recovered.lost().next().is_none());
    }
    let kept = scratch.0.join("damaged/2.keep");
    for (path, bytes) in held.iter().filter(|(path, _)| !path.ends_with("hardstate")) {
        assert!(fs::read(kept.join(path)).unwrap() == *bytes, "{}", path.display());
    }
    fs::remove_dir_all(kept).unwrap();
    drop(DataDir::open(&scratch.0, &founding(2)).unwrap());
    assert!(!scratch.0.join("damaged").exists(), "it was taken away by hand");
}
