//! Goes through all states, on two threads.
//!
//! Depth first, so that few states wait; of those that were seen only fingerprints are kept.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use quorate_engine::cache::Faults;

use crate::same::fingerprint;
use crate::world::{Bounds, Model};

const THREADS: usize = 2;
const SHARDS: usize = 64;
/// A thread that has more states before it gives half of them to the others, if there are none for them.
const SHARES_ABOVE: usize = 16;

/// A fingerprint is a hash already.
#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn write(&mut self, _: &[u8]) {}

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

type Seen = Mutex<HashSet<u64, BuildHasherDefault<AsItIs>>>;

/// What came of it.
#[derive(Debug)]
pub(crate) struct Found {
    /// States that were seen.
    pub(crate) states: usize,
    /// These were all.
    pub(crate) all: bool,
    /// The first that was wrong.
    pub(crate) wrong: Option<String>,
}

struct Search {
    seen: Vec<Seen>,
    states: AtomicUsize,
    most: usize,
    shared: Mutex<Vec<Model>>,
    /// Threads that have states.
    busy: AtomicUsize,
    over: AtomicBool,
    wrong: Mutex<Option<String>>,
}

impl Search {
    fn is_new(&self, model: &Model) -> bool {
        let print = fingerprint(model);
        let (print, shard) = ((print >> 64) as u64, print as usize % SHARDS);
        let new = self.seen[shard].lock().expect("nobody panics with it").insert(print);
        if new && self.states.fetch_add(1, Ordering::Relaxed) + 1 >= self.most {
            self.over.store(true, Ordering::Relaxed);
        }
        new
    }

    /// Takes states of others; none: there are no more.
    fn take(&self) -> Vec<Model> {
        self.busy.fetch_sub(1, Ordering::SeqCst);
        loop {
            let mut shared = self.shared.lock().expect("nobody panics with it");
            if !shared.is_empty() {
                self.busy.fetch_add(1, Ordering::SeqCst);
                return std::mem::take(&mut *shared);
            }
            // With the lock: nobody is between taking and being busy.
            if self.busy.load(Ordering::SeqCst) == 0 || self.over.load(Ordering::Relaxed) {
                return Vec::new();
            }
            drop(shared);
            std::thread::yield_now();
        }
    }

    fn work(&self) {
        let mut stack = Vec::new();
        while !self.over.load(Ordering::Relaxed) {
            let Some(model) = stack.pop() else {
                stack = self.take();
                if stack.is_empty() {
                    return;
                }
                continue;
            };
            match Model::next(&model) {
                Ok(next) => stack.extend(next.into_iter().filter(|next| self.is_new(next))),
                Err(wrong) => {
                    *self.wrong.lock().expect("nobody panics with it") = Some(wrong);
                    self.over.store(true, Ordering::Relaxed);
                }
            }
            if stack.len() > SHARES_ABOVE {
                let mut shared = self.shared.lock().expect("nobody panics with it");
                if shared.is_empty() {
                    shared.extend(stack.drain(..stack.len() / 2));
                }
            }
        }
    }
}

/// Plays everything within bounds.
pub(crate) fn explore(bounds: Bounds, faults: &Faults) -> Found {
    let search = Search {
        seen: (0..SHARDS).map(|_| Seen::default()).collect(),
        states: AtomicUsize::new(0),
        most: bounds.states,
        shared: Mutex::new(vec![Model::new(bounds, faults)]),
        busy: AtomicUsize::new(THREADS),
        over: AtomicBool::new(false),
        wrong: Mutex::default(),
    };
    std::thread::scope(|scope| {
        (0..THREADS).for_each(|_| drop(scope.spawn(|| search.work())));
    });
    let all = !search.over.load(Ordering::Relaxed);
    let wrong = search.wrong.into_inner().expect("nobody panics with it");
    Found { states: search.states.into_inner(), all, wrong }
}
