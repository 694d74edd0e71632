//! The deterministic simulator: the whole cluster in one thread, and everything that can go wrong with it.
//!
//! Charter: a second shell around the engine and the journal's logic, with a seeded network, disk, clock and clients.
//! `run` plays one seed and says what was not as promised. See docs/simulation.md.
//!
//! Invariant: equal seeds and settings, equal traces.

pub mod background;
pub mod backup;
pub mod bugs;
pub mod check;
pub mod client;
pub mod clock;
pub mod disk;
pub mod faults;
pub mod history;
pub mod mapped;
pub mod members;
pub mod network;
pub mod node;
pub mod plan;
pub mod rest;
pub mod rng;
pub mod saver;
pub mod trace;
pub mod tracked;
pub mod workload;
pub mod world;

pub use bugs::Bug;
pub use check::Violation;
pub use plan::{Plan, Settings};

use world::World;

/// What came of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// The hash of everything that happened.
    pub hash: u64,
    /// Operations of clients.
    pub operations: u64,
    /// Reads that nodes answered from their own memory.
    pub hits: u64,
    /// Writes that nodes acknowledged by themselves, as far as they lived to the end.
    pub absorbed: u64,
    /// Keys that leaders have evicted, and writes that were refused for want of room.
    pub room: [usize; 2],
    /// Nodes that stopped because a mapped file had changed.
    pub stops: u64,
    /// Backups from which another cluster was restored.
    pub restored: u64,
    /// How much time passed in the world, in microseconds.
    pub simulated: u64,
    /// What was not as promised.
    pub violation: Option<Violation>,
    /// The last lines of the trace, if they were kept.
    pub lines: Vec<String>,
}

/// Plays one seed.
#[must_use]
pub fn run(seed: u64, settings: &Settings) -> Report {
    let mut world = World::new(Plan::new(seed, settings), settings.keep);
    let end = world.plan.end;
    if world.run_until(end) && !settings.idle && world.come_to_rest() && world.restore() {
        let auditor = world.clients.len() - 1;
        let calm = world.plan.is_calm() && world.checks.history.short_of_room()[0] == 0;
        world.checks.conclude(world.time, world.plan.partitions, auditor, calm);
    }
    Report {
        seed,
        hash: world.trace.hash(),
        operations: world.checks.history.next_id(),
        hits: world.checks.hits,
        absorbed: world
            .nodes
            .iter()
            .filter_map(|node| node.engine.as_ref())
            .map(|engine| engine.write_backs().absorbed)
            .sum(),
        room: world.checks.history.short_of_room(),
        stops: world.checks.stops,
        restored: world.checks.restored,
        simulated: world.time,
        violation: world.checks.violation.clone(),
        lines: world.trace.lines(),
    }
}
