//! The simulator itself: good seeds are clean, equal seeds play alike, and every deliberate bug is seen.

use clap::ValueEnum;
use quorate_tests::sim::{Bug, Settings, run};

/// Seeds that a deliberate bug may take to be seen.
const SEEDS: u64 = 200;

fn settings(seconds: u64) -> Settings {
    Settings { seconds, ..Settings::default() }
}

#[test]
fn good_seeds_are_clean() {
    for seed in 1..=6 {
        let report = run(seed, &settings(6));
        assert_eq!(report.violation, None, "seed {seed}");
        assert!(report.operations > 50, "seed {seed} asks too little: {}", report.operations);
    }
}

#[test]
fn what_is_written_back_is_linearizable_without_faults() {
    let mut absorbed = 0;
    for seed in 1..=6 {
        let report = run(seed, &Settings { calm: true, ..settings(4) });
        assert_eq!(report.violation, None, "seed {seed}");
        absorbed += report.absorbed;
    }
    assert!(absorbed > 100, "nodes take on too little by themselves: {absorbed}");
}

#[test]
fn bounds_are_reached() {
    let mut room = [0, 0];
    for seed in 1..=60 {
        let report = run(seed, &settings(4));
        assert_eq!(report.violation, None, "seed {seed}");
        room = [room[0] + report.room[0], room[1] + report.room[1]];
        if room.iter().all(|times| *times > 10) {
            return;
        }
    }
    panic!("too few evictions or refusals for want of room: {room:?}");
}

#[test]
fn backups_are_made_under_faults_and_clusters_begin_with_them() {
    let mut restored = 0;
    for seed in 1..=60 {
        let report = run(seed, &settings(4));
        assert_eq!(report.violation, None, "seed {seed}");
        restored += report.restored;
        if restored > 5 {
            return;
        }
    }
    panic!("too few backups: {restored}");
}

#[test]
fn equal_seeds_play_alike_and_others_do_not() {
    let (first, again, other) = (run(5, &settings(4)), run(5, &settings(4)), run(6, &settings(4)));
    assert_eq!(first, again);
    assert_ne!(first.hash, other.hash);
    let told = Settings { keep: 50, ..settings(4) };
    assert_eq!(run(5, &told).hash, first.hash, "whether lines are kept changes nothing");
}

#[test]
fn every_deliberate_bug_is_seen() {
    let mut unseen = Vec::new();
    for &bug in Bug::value_variants() {
        let settings = Settings { bug: Some(bug), ..settings(5) };
        if !(1..=SEEDS).any(|seed| run(seed, &settings).violation.is_some()) {
            unseen.push(bug);
        }
    }
    assert!(unseen.is_empty(), "no checker sees these within {SEEDS} seeds: {unseen:?}");
}

#[test]
fn nodes_stop_when_what_they_have_mapped_is_not_what_they_wrote() {
    let mut stops = 0;
    for seed in 1..=40 {
        let report = run(seed, &Settings { rot: true, nodes: Some(3), ..settings(4) });
        assert_eq!(report.violation, None, "seed {seed}");
        stops += report.stops;
        if stops > 3 {
            return;
        }
    }
    panic!("too few nodes stop: {stops}");
}
