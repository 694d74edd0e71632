//! What can go wrong: real clusters (`process`), and the tools that the suites share.

pub mod process;
