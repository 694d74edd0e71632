//! What can go wrong: real clusters (`process`), on networks that fail (`netns`) and small disks (`small`), with spoilt files (`damages`), the read view in every interleaving (`interleaved`), what a node counts (`figures`), sockets that say anything (`socket`), simulated ones (`sim`), and the tools that the suites share.

pub mod damages;
pub mod figures;
#[cfg(not(test))]
pub mod interleaved;
pub mod netns;
pub mod others;
pub mod process;
pub mod sim;
pub mod small;
pub mod socket;
