//! The cache's protocol, exhaustively: every order in which words arrive, are lost or come twice, time passes, nodes read, write
//! and make room, leases end, and leadership moves, within bounds. The engine's own directory and holders are what is played.
//!
//! What is checked in every state: no node shows a value that is older than one that was acknowledged before. Of lines that are
//! written back, `owning.rs` says what is promised.
//!
//! `world.rs` and `owning.rs` are what can happen, `flying.rs` what is on its way, `same.rs` which states are the same, `explore.rs` goes through all of them.

mod explore;
mod flying;
mod owning;
mod same;
mod world;

use explore::explore;
use quorate_engine::cache::Faults;
use world::{Bounds, ENDLESS};

/// One key, read once and written twice, any number of lapses of leases, one change of the home.
const ONE_KEY: Bounds = Bounds {
    keys: 1,
    reads: 1,
    writes: 2,
    backs: 0,
    absorbs: 0,
    evictions: 0,
    doubles: 0,
    failovers: 1,
    steps: ENDLESS,
    flying: 3,
    states: 4_000_000,
};

/// Two nodes that read it.
const SHARED: Bounds = Bounds { reads: 2, writes: 1, failovers: 0, flying: 2, ..ONE_KEY };

/// A line that makes room, and a word that comes twice.
const TWICE: Bounds = Bounds { writes: 1, evictions: 1, doubles: 1, flying: 2, ..ONE_KEY };

/// Two keys under one home.
const TWO_KEYS: Bounds = Bounds { keys: 2, writes: 1, flying: 2, ..ONE_KEY };

/// A line that is owned by who has written it, and a reader.
const OWNED: Bounds = Bounds { writes: 0, backs: 1, absorbs: 1, failovers: 0, flying: 2, ..ONE_KEY };

/// The same with somebody else who writes, and another home.
const OWNED_AND_LOST: Bounds = Bounds { reads: 0, writes: 1, failovers: 1, ..OWNED };

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
fn one_key_that_two_nodes_read() {
    nothing_is_wrong(SHARED);
}

#[test]
fn one_key_that_is_written_back() {
    nothing_is_wrong(OWNED);
}

#[test]
fn one_key_that_is_written_back_and_overwritten() {
    nothing_is_wrong(OWNED_AND_LOST);
}

#[test]
fn one_key_that_makes_room_and_words_that_come_twice() {
    nothing_is_wrong(TWICE);
}

#[test]
fn two_keys() {
    nothing_is_wrong(TWO_KEYS);
}

/// Other bounds, from the environment, in the order of the fields: `QUORATE_MODEL=1,2,2,0,0,1,1,1,255,2,50000000`.
#[test]
fn what_is_asked_for() {
    let Ok(asked) = std::env::var("QUORATE_MODEL") else { return };
    let numbers: Vec<usize> = asked.split(',').map(|n| n.parse().expect("numbers")).collect();
    let [keys, few @ .., flying, states] = &numbers[..] else { panic!("eleven numbers, not {asked}") };
    let few: Vec<u8> = few.iter().map(|n| u8::try_from(*n).expect("255 is as often as may be")).collect();
    let [reads, writes, backs, absorbs, evictions, doubles, failovers, steps] = few[..] else {
        panic!("eleven numbers, not {asked}");
    };
    let (keys, flying, states) = (*keys, *flying, *states);
    nothing_is_wrong(Bounds {
        keys,
        reads,
        writes,
        backs,
        absorbs,
        evictions,
        doubles,
        failovers,
        steps,
        flying,
        states,
    });
}

#[allow(clippy::print_stdout, reason = "the figures are for whoever runs it with --nocapture")]
#[test]
fn every_broken_rule_is_seen() {
    let ask = |change: fn(&mut Faults)| {
        let mut faults = Faults::default();
        change(&mut faults);
        faults
    };
    let through = Bounds { writes: 1, ..ONE_KEY };
    for (what, bounds, faults) in [
        ("kept line", through, ask(|faults| faults.kept_line = true)),
        ("late fill", through, ask(|faults| faults.late_fill = true)),
        ("own line kept", through, ask(|faults| faults.own_line_kept = true)),
        ("left open", through, ask(|faults| faults.left_open = true)),
        ("lapsed renewed", through, ask(|faults| faults.lapsed_renewed = true)),
        ("beyond home", through, ask(|faults| faults.beyond_home = true)),
        ("purged unbrought", OWNED, ask(|faults| faults.purged_unbrought = true)),
        ("owned read open", OWNED, ask(|faults| faults.owned_read_open = true)),
    ] {
        let found = explore(bounds, &faults);
        println!("{what}: after {} states", found.states);
        assert!(found.wrong.is_some(), "{what}: nothing was wrong in {} states", found.states);
    }
}
