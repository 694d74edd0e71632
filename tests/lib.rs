//! What can go wrong: real clusters (`process`), simulated ones (`sim`), and the tools that the suites share.

pub mod process;
pub mod sim;
