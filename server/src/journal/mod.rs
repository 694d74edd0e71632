//! The journal's files and its threads. What is written where is decided in `quorate_engine::journal`.

mod background;
mod dir;
mod disk;
mod mmap;
mod sync;

pub use dir::{DataDir, Founding, Look, OpenError};
pub use sync::{Listener, SyncThread};

#[cfg(test)]
mod tests;
