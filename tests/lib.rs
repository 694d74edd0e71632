//! What can go wrong: real clusters (`process`), on networks that fail (`netns`) and small disks (`small`), with spoilt files (`damages`), simulated ones (`sim`), and the tools that the suites share.

pub mod damages;
pub mod netns;
pub mod process;
pub mod sim;
pub mod small;
