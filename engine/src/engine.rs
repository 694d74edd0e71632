//! The engine: `step` is the only place that knows all subsystems.

use crate::effect::{Effects, Input, Now};
use crate::journal::Recovered;
use alloc::string::String;

/// What a node is told once, when it starts.
#[derive(Debug, Clone)]
pub struct Config {
    /// Seed of everything that looks like chance (election timeouts).
    pub seed: u64,
    /// Where this node's clients connect, as it is to be told to others.
    pub client_address: String,
}

/// One node's decisions. See `effect.rs` for the contract with its shell.
pub struct Engine {}

impl Engine {
    /// A node that goes on from what its data directory holds.
    #[must_use]
    pub fn new(_now: Now, _config: Config, _recovered: Recovered) -> Self {
        Self {}
    }

    /// Takes one input and adds what is to be done about it.
    pub fn step(&mut self, _now: Now, _input: Input, _fx: &mut Effects) {}
}
