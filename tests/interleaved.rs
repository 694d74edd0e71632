//! The server's read view, compiled a second time, with locks and atomics of which every interleaving is played.
//!
//! Charter: includes `server/src/view.rs` as it is, with loom in place of what `server/src/sync.rs` gives it, and copies of it with one
//! mistake each (`build.rs`). `suites/view.rs` plays them.
//!
//! Subtlety: this is no part of the library's own test build, in which the view's own tests would run outside of loom.

use bytes::Bytes;
use quorate_engine::cache::CacheEffect;
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

include!(concat!(env!("OUT_DIR"), "/mistaken_views.rs"));

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
