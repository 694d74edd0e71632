//! The cache's protocol, exhaustively: every order in which words arrive, are lost or come twice, time passes, nodes read, write
//! and make room, leases end, and leadership moves, within bounds. The engine's own directory and holders are what is played.
//!
//! What is checked in every state: no node shows a value that is older than one that was acknowledged before.
//!
//! `world.rs` is what can happen, `same.rs` which states are the same, `explore.rs` goes through all of them.

mod explore;
mod same;
mod world;

use explore::explore;
use quorate_engine::cache::Faults;
use world::{Bounds, ENDLESS};

/// One key, read and written twice each, any number of lapses of leases, one change of the home.
const ONE_KEY: Bounds = Bounds {
    keys: 1,
    reads: 2,
    writes: 2,
    evictions: 0,
    doubles: 0,
    failovers: 1,
    steps: ENDLESS,
    flying: 3,
    states: 4_000_000,
};

/// The same with a line that makes room, and a word that comes twice.
const TWICE: Bounds = Bounds { writes: 1, evictions: 1, doubles: 1, flying: 2, ..ONE_KEY };

/// Two keys under one home.
const TWO_KEYS: Bounds = Bounds { keys: 2, writes: 1, flying: 2, ..ONE_KEY };

#[allow(clippy::print_stdout, reason = "the figures are for whoever runs it with --nocapture")]
fn nothing_is_wrong(bounds: Bounds) {
    let found = explore(bounds, &Faults::default());
    println!("{bounds:?}: {} states", found.states);
    assert!(found.wrong.is_none(), "{}", found.wrong.unwrap_or_default());
    assert!(found.all, "{} states are not all", found.states);
}

#[test]
fn one_key() {
    nothing_is_wrong(ONE_KEY);
}

#[test]
fn one_key_that_makes_room_and_words_that_come_twice() {
    nothing_is_wrong(TWICE);
}

#[test]
fn two_keys() {
    nothing_is_wrong(TWO_KEYS);
}

/// Other bounds, from the environment, in the order of the fields: `QUORATE_MODEL=1,2,2,1,1,1,255,2,50000000`.
#[test]
fn what_is_asked_for() {
    let Ok(asked) = std::env::var("QUORATE_MODEL") else { return };
    let numbers: Vec<usize> = asked.split(',').map(|n| n.parse().expect("numbers")).collect();
    let [keys, reads, writes, evictions, doubles, failovers, steps, flying, states] = numbers[..] else {
        panic!("nine numbers, not {asked}");
    };
    let few = |n: usize| u8::try_from(n).expect("255 is as often as may be");
    let [reads, writes, evictions] = [reads, writes, evictions].map(few);
    let [doubles, failovers, steps] = [doubles, failovers, steps].map(few);
    nothing_is_wrong(Bounds { keys, reads, writes, evictions, doubles, failovers, steps, flying, states });
}

#[allow(clippy::print_stdout, reason = "the figures are for whoever runs it with --nocapture")]
#[test]
fn every_broken_rule_is_seen() {
    let ask = |change: fn(&mut Faults)| {
        let mut faults = Faults::default();
        change(&mut faults);
        faults
    };
    for (what, faults) in [
        ("kept line", ask(|faults| faults.kept_line = true)),
        ("late fill", ask(|faults| faults.late_fill = true)),
        ("own line kept", ask(|faults| faults.own_line_kept = true)),
        ("left open", ask(|faults| faults.left_open = true)),
        ("lapsed renewed", ask(|faults| faults.lapsed_renewed = true)),
        ("beyond home", ask(|faults| faults.beyond_home = true)),
    ] {
        let bounds = Bounds { writes: 1, ..ONE_KEY };
        let found = explore(bounds, &faults);
        println!("{what}: after {} states", found.states);
        assert!(found.wrong.is_some(), "{what}: nothing was wrong in {} states", found.states);
    }
}
