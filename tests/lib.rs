//! What can go wrong: real clusters (`process`), on networks that fail (`netns`), simulated ones (`sim`), and the tools that the suites share.

pub mod netns;
pub mod process;
pub mod sim;
