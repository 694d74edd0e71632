//! The journal's files and its thread. What is written where is decided in `quorate_engine::journal`.

mod dir;
mod sync;

pub use dir::{DataDir, Founding, OpenError};
pub use sync::{Listener, SyncThread};
