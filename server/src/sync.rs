//! What the read view synchronizes with.
//!
//! Charter: `view.rs` takes its lock and its atomics from here and from nowhere else, so that the tests can compile the
//! very same file with others, which play every interleaving (`tests/interleaved.rs`).

pub(crate) use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) use parking_lot::Mutex;
