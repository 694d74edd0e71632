//! The server's read view and the table of what clients keep of it, compiled a second time, with locks and atomics of which every
//! interleaving is played.
//!
//! Charter: includes `server/src/view.rs` and `server/src/tracking.rs` as they are, with loom in place of what `server/src/sync.rs` gives
//! them, and copies of them with one mistake each (`build.rs`). `suites/view.rs` plays them.
//!
//! Subtlety: this is no part of the library's own test build, in which the view's own tests would run outside of loom.

use bytes::Bytes;
use quorate_engine::cache::CacheEffect;
use quorate_protocol::command::Tracks;
use quorate_protocol::id::GroupId;

/// What the view synchronizes with here.
mod sync {
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    #[derive(Debug)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
            self.0.lock().expect("nobody panics with it")
        }
    }
}

#[path = "../server/src/view.rs"]
pub mod view;

#[path = "../server/src/tracking.rs"]
pub mod tracking;

include!(concat!(env!("OUT_DIR"), "/mistaken.rs"));

/// A view, right or not.
pub trait Sight: Send + Sync + 'static {
    /// Whether it is what it is meant to be.
    const MADE: bool;
    /// See `View::new`.
    fn new(max: usize) -> Self;
    /// See `View::get`.
    fn get(&self, key: &[u8], now: u64) -> Option<Option<Bytes>>;
    /// `View::show`, which answers the same.
    fn show(&self, key: &[u8], now: u64) -> Option<Option<Bytes>>;
    /// See `View::apply`.
    fn apply(&self, effect: CacheEffect, evicted: &mut Vec<(GroupId, Bytes)>);
}

macro_rules! sight {
    ($view:ty, $made:expr) => {
        impl Sight for $view {
            const MADE: bool = $made;

            fn new(max: usize) -> Self {
                Self::new(1, max)
            }

            fn get(&self, key: &[u8], now: u64) -> Option<Option<Bytes>> {
                self.get(key, now)
            }

            fn show(&self, key: &[u8], now: u64) -> Option<Option<Bytes>> {
                let mut shown = None;
                let was = self.show(key, now, |value| shown = Some(value.cloned()));
                assert!(was == shown.is_some(), "what is shown is shown");
                shown
            }

            fn apply(&self, effect: CacheEffect, evicted: &mut Vec<(GroupId, Bytes)>) {
                self.apply(effect, evicted);
            }
        }
    };
}

sight!(view::View, true);
sight!(end_first::View, end_first::MADE);
sight!(generation_first::View, generation_first::MADE);
sight!(unordered_end::View, unordered_end::MADE);

/// A table of what clients keep, right or not.
pub trait Table: Send + Sync + 'static {
    /// Whether it is what it is meant to be.
    const MADE: bool;
    /// A table in which this connection tracks.
    fn with(conn: u64) -> Self;
    /// See `Tracking::keep`.
    fn keep(&self, view: &view::View, conn: u64, key: &Bytes, value: &Bytes) -> bool;
    /// `Tracking::apply`; how many pushes come of it.
    fn apply(&self, view: &view::View, effect: CacheEffect) -> usize;
}

macro_rules! table {
    ($module:ident, $made:expr) => {
        impl Table for $module::Tracking {
            const MADE: bool = $made;

            fn with(conn: u64) -> Self {
                let table = Self::new(1, 10);
                table.begin(conn, Tracks::default(), drop);
                table
            }

            fn keep(&self, view: &view::View, conn: u64, key: &Bytes, value: &Bytes) -> bool {
                let mut pushes = $module::Pushes::new();
                let kept = self.keep(view, conn, key, Some(value), 5, &mut pushes);
                assert!(pushes.is_empty(), "there is room");
                kept
            }

            fn apply(&self, view: &view::View, effect: CacheEffect) -> usize {
                let mut pushes = $module::Pushes::new();
                self.apply(view, effect, &mut Vec::new(), &mut pushes);
                pushes.len()
            }
        }
    };
}

table!(tracking, true);
table!(table_first, table_first::MADE);
table!(looked_before, looked_before::MADE);
