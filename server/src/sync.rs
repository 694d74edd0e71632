//! What the read view, and the table of what clients keep of it, synchronize with.
//!
//! Charter: `view.rs` and `tracking.rs` take their locks and atomics from here and from nowhere else, so that the tests can
//! compile the very same files with others, which play every interleaving (`tests/interleaved.rs`).

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub(crate) use parking_lot::Mutex;
