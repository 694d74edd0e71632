//! The thread beside the commits: writes snapshots, maps them, and watches how much room the disk has.
//!
//! Invariants: plans are done in order, and `background_done` is told after each. A snapshot's bytes go to the disk as
//! they come, not all at its final sync, which commits would have to wait for. A file that is made takes the name from
//! the one that had it before, whose bytes somebody may hold.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use quorate_engine::journal::{File as Name, Io};
use quorate_protocol::id::{GroupId, Index};

use super::Listener;
use super::dir::there;
use super::disk::{is_full, keep_reserve, remove_if_there, room_at};
use super::mmap::map;

/// How often the room is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How long a write waits for room before it is tried again.
pub(super) const RETRY: Duration = Duration::from_millis(100);
/// Bytes that are written before they are synced.
const SYNC_EVERY: u64 = 4 << 20;
/// Below this there is no room for clients any more: what is left is for votes, logs on their way, and compaction.
const ROOM_LOW: u64 = 64 << 20;
/// From this on there is room again.
const ROOM_AGAIN: u64 = 96 << 20;

/// Whether the disk has room, as it was told last.
pub(super) struct Room<L> {
    listener: Arc<L>,
    has: Mutex<bool>,
}

impl<L: Listener> Room<L> {
    pub(super) fn new(listener: Arc<L>) -> Self {
        Self { listener, has: Mutex::new(true) }
    }

    /// Tells what is new.
    pub(super) fn set(&self, has: bool) {
        let mut told = self.has.lock();
        if std::mem::replace(&mut *told, has) != has {
            self.listener.room(has);
        }
    }
}

/// What the thread is asked for.
#[derive(Debug)]
enum Task {
    /// A plan, and its number.
    Plan(u64, Vec<Io>),
    /// To map a snapshot's file.
    Map(GroupId, Index),
}

#[derive(Debug, Default)]
struct Queue {
    tasks: Vec<Task>,
    closed: bool,
}

type Shared = Arc<(Mutex<Queue>, Condvar)>;

/// A handle to the thread.
#[derive(Debug)]
pub(super) struct Background {
    shared: Shared,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Background {
    pub(super) fn start<L: Listener>(path: PathBuf, listener: Arc<L>, room: Arc<Room<L>>) -> Self {
        let shared = Shared::default();
        let shared_too = Arc::clone(&shared);
        let worker = Worker { path, shared: shared_too, listener, room, open: None, unsynced: 0 };
        let builder = std::thread::Builder::new().name("background".into());
        let thread = builder.spawn(move || worker.run()).expect("a thread at the start");
        Self { shared, thread: Some(thread) }
    }

    pub(super) fn submit(&self, number: u64, ios: Vec<Io>) {
        self.ask(Task::Plan(number, ios));
    }

    pub(super) fn map(&self, group: GroupId, index: Index) {
        self.ask(Task::Map(group, index));
    }

    fn ask(&self, task: Task) {
        let (queue, wake) = &*self.shared;
        queue.lock().tasks.push(task);
        wake.notify_one();
    }

    /// Ends the thread. What it has not done yet is nothing that anybody relies on.
    pub(super) fn close(&mut self) {
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
    path: PathBuf,
    shared: Shared,
    listener: Arc<L>,
    room: Arc<Room<L>>,
    /// The file that is being written.
    open: Option<(Name, File)>,
    unsynced: u64,
}

impl<L: Listener> Worker<L> {
    fn run(mut self) {
        loop {
            self.look();
            let Some(tasks) = self.wait() else { return };
            for task in tasks {
                let (number, ios) = match task {
                    Task::Plan(number, ios) => (number, ios),
                    Task::Map(group, index) => {
                        self.listener.mapped(group, index, self.map(group, index));
                        continue;
                    }
                };
                match self.perform(&ios) {
                    Ok(true) => self.listener.background_done(number),
                    Ok(false) => return,
                    Err(error) => {
                        let path = self.path.display();
                        let why = format!("the disk failed, so this node stops: {path}: {error}");
                        return self.listener.failed(why);
                    }
                }
            }
        }
    }

    /// A snapshot's bytes, unless a newer one has taken its place already.
    fn map(&self, group: GroupId, index: Index) -> Option<Bytes> {
        let path = self.path.join(Name::Snapshot(group, index).path());
        match there(File::open(&path)).and_then(|file| file.as_ref().map(map).transpose()) {
            Ok(bytes) => bytes,
            Err(error) => {
                let path = path.display();
                tracing::warn!("{path} cannot be mapped, so its messages stay in memory: {error}");
                None
            }
        }
    }

    /// Looks how much room there is.
    fn look(&self) {
        let reserved = keep_reserve(&self.path).unwrap_or(false);
        match room_at(&self.path) {
            Ok(room) if room < ROOM_LOW => self.room.set(false),
            Ok(room) if room >= ROOM_AGAIN && reserved => self.room.set(true),
            _ => {}
        }
    }

    /// Waits for tasks, a while; `None` is the end.
    fn wait(&self) -> Option<Vec<Task>> {
        let (queue, wake) = &*self.shared;
        let mut queue = queue.lock();
        if queue.tasks.is_empty() && !queue.closed {
            let _ = wake.wait_for(&mut queue, LOOK);
        }
        (!queue.closed).then(|| std::mem::take(&mut queue.tasks))
    }

    /// Does the list in order; false when the node stops meanwhile.
    fn perform(&mut self, ios: &[Io]) -> io::Result<bool> {
        for io in ios {
            while let Err(error) = self.perform_one(io) {
                if matches!(io, Io::Sync { .. }) || !is_full(&error) {
                    return Err(error);
                }
                self.room.set(false);
                std::thread::sleep(RETRY);
                if self.shared.0.lock().closed {
                    return Ok(false);
                }
            }
            if self.unsynced >= SYNC_EVERY
                && let Some((_, file)) = &self.open
            {
                file.sync_data()?;
                self.unsynced = 0;
            }
        }
        Ok(true)
    }

    fn perform_one(&mut self, io: &Io) -> io::Result<()> {
        match io {
            Io::Create { file, size } => {
                self.open = None;
                remove_if_there(&self.path.join(file.path()))?;
                self.file(*file)?.set_len(*size)
            }
            Io::Write { file, offset, bytes } => {
                self.file(*file)?.write_all_at(bytes, *offset)?;
                self.unsynced += bytes.len() as u64;
                Ok(())
            }
            Io::Sync { file } => {
                self.file(*file)?.sync_data()?;
                self.unsynced = 0;
                File::open(self.path.join("snapshots"))?.sync_all()
            }
            Io::Remove { file } => {
                self.open.take_if(|(open, _)| open == file);
                remove_if_there(&self.path.join(file.path()))
            }
        }
    }

    fn file(&mut self, name: Name) -> io::Result<&File> {
        assert!(matches!(name, Name::Snapshot(..)), "only snapshots are written beside the commits");
        if self.open.as_ref().is_none_or(|(open, _)| *open != name) {
            if let Some((_, file)) = self.open.take() {
                // Its bytes would be counted for the next one.
                file.sync_data()?;
                self.unsynced = 0;
            }
            let options = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).clone();
            self.open = Some((name, options.open(self.path.join(name.path()))?));
        }
        Ok(&self.open.as_ref().expect("it was just opened").1)
    }
}
