//! The journal's files and its threads. What is written where is decided in `quorate_engine::journal`.

mod aside;
mod background;
mod dir;
mod disk;
mod mmap;
mod restore;
mod sync;

pub use aside::is_irreplaceable;
pub use dir::{DataDir, Founding, Look, OpenError, Unreadable, check_place};
pub use mmap::{map, stop_on_unreadable_pages};
pub use restore::Restoring;
pub use sync::{Listener, SyncThread};

#[cfg(test)]
mod tests;
