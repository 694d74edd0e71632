//! The thread that makes things durable: everything that waits becomes one commit.
//!
//! Invariants: batches become durable in the order in which they were submitted, and `durable` is told only
//! after the sync. An error of the disk is told once, and nothing is done after it: a failed sync is never
//! tried again, because the second one may say OK for bytes that are lost. A full disk is no error: the commit waits,
//! and all behind it.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use quorate_engine::journal::{Io, Journal, Persist};
use quorate_protocol::id::{GroupId, Index};

use super::background::{Background, RETRY, Room};
use super::dir::DataDir;
use super::disk::{is_full, prepare};

/// The pause after which a frontier vouches for what was committed.
const IDLE: Duration = Duration::from_millis(10);

/// What the thread reports.
pub trait Listener: Send + Sync + 'static {
    /// All batches up to this number are on stable storage.
    fn durable(&self, seq: u64);
    /// The background plan of this number is done, and all before it.
    fn background_done(&self, number: u64);
    /// A snapshot's file is mapped; none if it cannot be, or is gone.
    fn mapped(&self, group: GroupId, index: Index, bytes: Option<Bytes>);
    /// Whether the disk has room, when that has changed; at the start it has.
    fn room(&self, has: bool);
    /// The disk has failed; nothing more will become durable.
    fn failed(&self, why: String);
}

#[derive(Debug, Default)]
struct Queue {
    batches: Vec<Persist>,
    closed: bool,
}

type Shared = Arc<(Mutex<Queue>, Condvar)>;

/// A handle to the thread.
#[derive(Debug)]
pub struct SyncThread {
    shared: Shared,
    thread: Option<std::thread::JoinHandle<()>>,
    background: Background,
}

impl SyncThread {
    /// Starts the thread, another that zeroes segments ahead of need, and one for what is written beside the commits.
    /// The directory stays locked until the thread ends.
    ///
    /// # Panics
    /// When the operating system has no threads left.
    #[must_use]
    pub fn start(dir: DataDir, journal: Journal, listener: impl Listener) -> Self {
        let shared = Shared::default();
        let listener = Arc::new(listener);
        let room = Arc::new(Room::new(Arc::clone(&listener)));
        let path = dir.path().to_owned();
        let background = Background::start(path, Arc::clone(&listener), Arc::clone(&room));
        let worker = Worker { dir, journal, shared: Arc::clone(&shared), listener, room };
        let builder = std::thread::Builder::new().name("journal".into());
        let thread = builder.spawn(move || worker.run()).expect("a thread at the start");
        Self { shared, thread: Some(thread), background }
    }

    /// Hands a batch over; never waits.
    pub fn submit(&self, batch: Persist) {
        let (queue, wake) = &*self.shared;
        queue.lock().batches.push(batch);
        wake.notify_one();
    }

    /// Hands over what is to be done beside the commits; never waits.
    pub fn submit_background(&self, number: u64, ios: Vec<Io>) {
        self.background.submit(number, ios);
    }

    /// Has a snapshot's file mapped beside the commits; never waits.
    pub fn submit_map(&self, group: GroupId, index: Index) {
        self.background.map(group, index);
    }

    /// Makes durable what was handed over, and ends the threads. A disk without room is not waited for.
    pub fn close(mut self) {
        self.background.close();
        let (queue, wake) = &*self.shared;
        queue.lock().closed = true;
        wake.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported where it happened.
            let _ = thread.join();
        }
    }
}

struct Worker<L> {
    dir: DataDir,
    journal: Journal,
    shared: Shared,
    listener: Arc<L>,
    room: Arc<Room<L>>,
}

impl<L: Listener> Worker<L> {
    fn run(mut self) {
        let preparer = Preparer::start(self.dir.path());
        let mut ios: Vec<Io> = Vec::new();
        let mut asked = None;
        loop {
            let next = self.journal.next_segment();
            if asked != Some(next) && self.journal.wants_next() && preparer.ask(next) {
                asked = Some(next);
            }
            let Some(batches) = self.wait() else { return };
            ios.clear();
            if batches.is_empty() {
                self.journal.idle(&mut ios);
            } else {
                self.journal.plan(&batches, &mut ios);
            }
            if let Err(error) = self.perform(&ios) {
                if is_full(&error) && self.shared.0.lock().closed {
                    return tracing::warn!(
                        "the disk is full to the end: what waited for room was answered to nobody"
                    );
                }
                let path = self.dir.path().display();
                return self.listener.failed(format!("the disk failed, so this node stops: {path}: {error}"));
            }
            self.journal.done();
            if let Some(last) = batches.last() {
                self.listener.durable(last.seq);
            }
        }
    }

    fn perform(&mut self, ios: &[Io]) -> io::Result<()> {
        let (room, shared) = (&self.room, &self.shared);
        self.dir.perform(ios, &mut |wait| {
            room.set(false);
            if wait {
                std::thread::sleep(RETRY);
            }
            !(wait && shared.0.lock().closed)
        })
    }

    /// Waits for batches; empty ones mean a pause in which a frontier is due, `None` the end.
    fn wait(&self) -> Option<Vec<Persist>> {
        let (queue, wake) = &*self.shared;
        let mut queue = queue.lock();
        while queue.batches.is_empty() {
            if queue.closed {
                return None;
            }
            if self.journal.has_news() {
                if wake.wait_for(&mut queue, IDLE).timed_out() {
                    return Some(std::mem::take(&mut queue.batches));
                }
            } else {
                wake.wait(&mut queue);
            }
        }
        Some(std::mem::take(&mut queue.batches))
    }
}

/// Zeroes the next segment beside the commits.
struct Preparer {
    wanted: std::sync::mpsc::SyncSender<(quorate_engine::journal::File, u64)>,
}

impl Preparer {
    fn start(path: &Path) -> Self {
        let (wanted, asked) = std::sync::mpsc::sync_channel(1);
        let path = path.to_owned();
        let work = move || {
            while let Ok((file, size)) = asked.recv() {
                if let Err(error) = prepare(&path, file, size) {
                    tracing::warn!("the next segment could not be zeroed ahead: {error}");
                }
            }
        };
        let builder = std::thread::Builder::new().name("journal-ahead".into());
        builder.spawn(work).expect("a thread at the start");
        Self { wanted }
    }

    /// Whether it was asked; if it is busy with the one before, it is asked again at the next commit.
    fn ask(&self, segment: (quorate_engine::journal::File, u64)) -> bool {
        self.wanted.try_send(segment).is_ok()
    }
}
