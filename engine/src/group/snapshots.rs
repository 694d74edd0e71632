//! Snapshots of a group: taking them beside the work, offering them, fetching a leader's.
//!
//! Charter: at most one is being written and one being fetched. What goes to the files leaves in plans (`background`),
//! each answered by `background_done`; what goes to other nodes in `take_words`.
//!
//! Invariants:
//! - A snapshot is named in the row, offered and relied on only when it is synced.
//! - A fetched one is checked chunk by chunk while it is loaded, and its digest before it takes the state's place.
//! - A turn makes one slice at the most, and loads a bounded part of what has come; what waits to be loaded or written is
//!   bounded too, because no more is asked for meanwhile.
//! - A leader takes no new snapshot while a replica fetches the present one, within bounds, so that a transfer ends.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::backup::Crossing;
use quorate_protocol::id::{Index, NodeId, Term};
use quorate_protocol::peer::{RaftMessage, SnapshotAt, SnapshotFrame, SnapshotPiece};

use super::Group;
use crate::effect::TICK;
use crate::journal::{File, Io, Meta};
use crate::snapshot::{Header, Loader, Writer};
use crate::state::State;
use crate::trash::Trash;

/// Plans of one group that may be under way.
const PLANS: usize = 2;
/// Plans of one group that may wait before no more pieces are asked for: a slow disk must not fill the memory.
const PLANS_WAITING: usize = 4;
/// Bytes of a piece.
pub const PIECE: u64 = 256 << 10;
/// Bytes that all fetching replicas of a node have asked for and not received, but each a piece at least.
const WINDOW: u64 = 4 * PIECE;
/// How long a piece may take before it is asked for again; microseconds.
const ASK_AGAIN: u64 = 10 * TICK;
/// How long a replica may ask for nothing before it is offered a snapshot anew; microseconds.
const OFFER_AGAIN: u64 = 150 * TICK;
/// How long the sender may be silent before the fetching is given up; microseconds.
const GIVE_UP: u64 = 500 * TICK;

/// How long a client that copies a snapshot may take from one piece to the next; microseconds.
const COPY_PAUSE: u64 = 250 * TICK;

/// The newest snapshot of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotReport {
    /// The index and term up to which it goes.
    pub at: (Index, Term),
    /// Group time of its state.
    pub time: u64,
    /// Bytes of its file.
    pub bytes: u64,
}

/// What a plan was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// Bytes, or the end of a file that nobody wants.
    Bytes,
    /// The snapshot that is being written is synced.
    Written,
    /// The snapshot that was fetched is synced.
    Fetched,
}

/// A snapshot that is being written.
struct Writing {
    writer: Writer,
    complete: bool,
}

/// A snapshot that is being fetched.
struct Fetching {
    /// The newest offer.
    offer: RaftMessage,
    loader: Loader,
    /// Bytes received, and asked for.
    received: u64,
    asked: u64,
    /// When something was last received, and last asked for.
    heard: u64,
    asked_at: u64,
    complete: bool,
}

/// See the top of the file.
#[derive(Default)]
pub(super) struct Files {
    /// Bytes of the newest snapshot, group time of its state, and what it says of letters.
    size: u64,
    time: u64,
    crossings: Vec<Crossing>,
    /// This replica's part of `WINDOW`.
    window: u64,
    /// The node's counter of log bytes when the oldest entry was written that no snapshot covers.
    oldest: Option<u64>,
    /// The counter when the snapshot that is being written was begun.
    begun: u64,
    writing: Option<Writing>,
    fetching: Option<Fetching>,
    /// What was fetched, until raft has taken it.
    loaded: Option<(Header, State)>,
    plans: VecDeque<Vec<Io>>,
    under_way: VecDeque<Purpose>,
    purposes: VecDeque<Purpose>,
    words: Vec<(NodeId, SnapshotFrame)>,
    /// Node → when it last asked for a piece, or was found to be fetching.
    asked: BTreeMap<NodeId, u64>,
    /// When a client last read a piece of it, and not the last one.
    copied: Option<u64>,
}

impl Files {
    /// A snapshot was found in the directory, of so many bytes.
    pub(super) fn found(&mut self, size: u64, header: &Header) {
        (self.size, self.time) = (size, header.time);
        self.crossings.clone_from(&header.crossings);
    }

    /// Whether entries were found behind it.
    pub(super) fn has_entries(&mut self, has: bool) {
        self.oldest = has.then_some(0);
    }

    /// Gives away what was loaded, to be dropped bit by bit.
    pub(super) fn discard(&mut self, trash: &mut Trash) {
        if let Some(fetching) = self.fetching.take() {
            fetching.loader.discard(trash);
        }
        if let Some((_, state)) = self.loaded.take() {
            state.discard(trash);
        }
    }

    fn plan(&mut self, purpose: Purpose, plan: Vec<Io>) {
        self.plans.push_back(plan);
        self.purposes.push_back(purpose);
    }
}

impl Group {
    /// Bytes of the newest snapshot, if there is one.
    #[must_use]
    pub fn snapshot_size(&self) -> u64 {
        self.files.size
    }

    /// The newest snapshot, synced; none before there is one.
    #[must_use]
    pub fn snapshot_report(&self) -> Option<SnapshotReport> {
        let report = SnapshotReport { at: self.row.snapshot, time: self.files.time, bytes: self.files.size };
        (report.at.0 > 0).then_some(report)
    }

    /// How far letters had crossed at the newest snapshot.
    #[must_use]
    pub fn snapshot_crossings(&self) -> &[Crossing] {
        &self.files.crossings
    }

    /// The index of the newest snapshot that the row names, and that was handed out so for the disk.
    #[must_use]
    pub fn named_snapshot(&self) -> Index {
        if self.changed { 0 } else { self.row.snapshot.0 }
    }

    /// A client reads a piece of the newest snapshot.
    pub fn note_copied(&mut self, now: u64, offset: u64) {
        if offset == 0 {
            self.look_again();
        }
        self.files.copied = (offset < self.files.size).then_some(now);
    }

    /// The node's counter of log bytes when the oldest entry was written that no snapshot covers.
    #[must_use]
    pub fn oldest_entry(&self) -> Option<u64> {
        self.files.oldest
    }

    /// Entries are written at this value of the node's counter of log bytes.
    pub fn note_written(&mut self, counter: u64) {
        self.files.oldest.get_or_insert(counter);
    }

    /// Whether a snapshot is being written.
    #[must_use]
    pub fn is_writing(&self) -> bool {
        self.files.writing.is_some()
    }

    /// Whether a newer snapshot could be begun.
    #[must_use]
    pub fn may_begin_snapshot(&self) -> bool {
        // Both would write to one file, if it comes to the same index by entries before all has come.
        let files = &self.files;
        let free = files.writing.is_none() && files.fetching.is_none() && files.loaded.is_none();
        free && !self.is_mapping() && self.applied > self.row.snapshot.0
    }

    /// Whether a replica of the group needs a newer snapshot than there is.
    #[must_use]
    pub fn wants_snapshot(&self) -> bool {
        self.consensus.leads() && self.consensus.wants_snapshot() && self.may_begin_snapshot()
    }

    /// Begins a snapshot of the applied state. `counter`: the node's counter of log bytes.
    pub fn begin_snapshot(&mut self, counter: u64) {
        let (at, conf) = ((self.applied, self.applied_term), self.consensus.conf().clone());
        let header = Header::new(self.id, at, self.time, conf, self.state.crossings());
        let writer = Writer::new(header, &mut self.state);
        self.files.begun = counter;
        self.files.writing = Some(Writing { writer, complete: false });
    }

    /// The next plan for the snapshot files, if one may be under way. `may_slice`: whether a slice may be made for it
    /// in this turn, until one is.
    pub fn background(&mut self, may_slice: &mut bool) -> Option<Vec<Io>> {
        if self.files.under_way.len() >= PLANS {
            return None;
        }
        if self.files.plans.is_empty() && *may_slice {
            self.write_slice();
            *may_slice = self.files.plans.is_empty();
        }
        let plan = self.files.plans.pop_front()?;
        let purpose = self.files.purposes.pop_front().expect("every plan has a purpose");
        self.files.under_way.push_back(purpose);
        Some(plan)
    }

    fn write_slice(&mut self) {
        let Some(writing) = self.files.writing.as_mut().filter(|writing| !writing.complete) else { return };
        let header = writing.writer.header();
        let file = File::Snapshot(header.group, header.index);
        if let Some((offset, bytes)) = writing.writer.slice(&mut self.state) {
            self.files.plan(Purpose::Bytes, alloc::vec![Io::Write { file, offset, bytes }]);
        } else {
            writing.complete = true;
            #[cfg(feature = "faults")]
            if self.faults.snapshot_unsynced {
                return self.files.plan(Purpose::Written, Vec::new());
            }
            self.files.plan(Purpose::Written, alloc::vec![Io::Sync { file }]);
        }
    }

    /// The oldest plan under way is done.
    pub fn background_done(&mut self, now: u64) {
        match self.files.under_way.pop_front() {
            Some(Purpose::Written) => self.adopt(),
            Some(Purpose::Fetched) => self.install(now),
            Some(Purpose::Bytes) | None => {}
        }
    }

    /// The snapshot that was written is synced: from now on the replica starts from it.
    fn adopt(&mut self) {
        let Some(Writing { writer, .. }) = self.files.writing.take_if(|writing| writing.complete) else {
            return;
        };
        let header = writer.header();
        let at = (header.index, header.term);
        assert!(at.0 > self.row.snapshot.0, "snapshots follow each other");
        (self.files.size, self.files.time) = (writer.len(), header.time);
        self.files.crossings.clone_from(&header.crossings);
        self.files.copied = None;
        self.files.oldest = (self.consensus.last_index() > at.0).then_some(self.files.begun);
        self.row.snapshot = at;
        self.changed = true;
        self.consensus.offer(at, header.conf.clone());
        self.want_map();
    }

    /// What goes to other nodes.
    pub fn take_words(&mut self) -> Vec<(NodeId, SnapshotFrame)> {
        core::mem::take(&mut self.files.words)
    }

    /// Another replica asks for bytes of a snapshot; whether this one has it.
    pub fn is_asked(&mut self, now: u64, from: NodeId, at: &SnapshotAt) -> bool {
        self.files.asked.insert(from, now);
        let has = at.index == self.row.snapshot.0 && at.index > 0;
        if has && at.offset == 0 {
            self.look_again();
        }
        has
    }

    /// A leader offers a snapshot: it is fetched, unless it is of no use.
    pub(super) fn offered(&mut self, now: u64, offer: RaftMessage, meta: &Meta) {
        if offer.to != self.consensus.me() || offer.term < self.consensus.term() {
            return;
        }
        if offer.index <= self.applied {
            return self.consensus.decline(now, offer);
        }
        match &mut self.files.fetching {
            Some(fetching) if fetching.offer.index == offer.index => {
                // The file is the same on every node.
                fetching.offer = offer;
                return;
            }
            _ => {}
        }
        self.give_up_fetching();
        let loader = Loader::new(self.id, offer.index, meta);
        self.files.fetching = Some(Fetching {
            offer,
            loader,
            received: 0,
            asked: 0,
            heard: now,
            asked_at: now,
            complete: false,
        });
        self.ask_for_pieces(now);
    }

    fn ask_for_pieces(&mut self, now: u64) {
        let waits = self.files.plans.len() >= PLANS_WAITING;
        let Some(fetching) = self.files.fetching.as_mut().filter(|fetching| !fetching.complete) else {
            return;
        };
        let window = self.files.window.max(PIECE);
        if waits || fetching.loader.waiting() as u64 >= window {
            // The sender is not to blame for the silence.
            fetching.heard = now;
            return;
        }
        while fetching.asked < fetching.received + window {
            let at = SnapshotAt { group: self.id, index: fetching.offer.index, offset: fetching.asked };
            self.files.words.push((fetching.offer.from.node, SnapshotFrame::Ask(at)));
            fetching.asked += PIECE;
            fetching.asked_at = now;
        }
    }

    /// A piece of a snapshot has come.
    pub fn receive_piece(&mut self, now: u64, piece: &SnapshotPiece) {
        let Some(fetching) = &mut self.files.fetching else { return };
        let SnapshotAt { index, offset, .. } = piece.at;
        if index != fetching.offer.index || offset != fetching.received || fetching.complete {
            return;
        }
        if piece.bytes.is_empty() {
            // The sender has a newer one by now, and will offer it; or this is the end of the file, and what has come is
            // yet to be loaded.
            if !fetching.loader.has_work() {
                self.give_up_fetching();
            }
            return;
        }
        fetching.heard = now;
        fetching.received += piece.bytes.len() as u64;
        let file = File::Snapshot(self.id, index);
        let write = Io::Write { file, offset, bytes: piece.bytes.clone() };
        fetching.loader.take(piece.bytes.clone());
        self.files.plan(Purpose::Bytes, alloc::vec![write]);
        self.ask_for_pieces(now);
    }

    /// Whether there are rows to be loaded.
    #[must_use]
    pub fn has_rows_to_load(&self) -> bool {
        let fetching = self.files.fetching.as_ref().filter(|fetching| !fetching.complete);
        fetching.is_some_and(|fetching| fetching.loader.has_work())
    }

    /// Whether it fetches a snapshot.
    #[must_use]
    pub fn fetches(&self) -> bool {
        self.files.fetching.as_ref().is_some_and(|fetching| !fetching.complete)
    }

    /// Loads rows that have come, as far as `room` goes. `fetching`: replicas of this node that fetch a snapshot.
    pub fn load_rows(&mut self, now: u64, fetching: usize, room: &mut usize) {
        self.files.window = WINDOW / fetching.max(1) as u64;
        if !self.has_rows_to_load() {
            return;
        }
        let fetching = self.files.fetching.as_mut().expect("it has rows");
        match fetching.loader.work(room) {
            Err(_) => self.give_up_fetching(),
            Ok(true) => {
                fetching.complete = true;
                let file = File::Snapshot(self.id, fetching.offer.index);
                self.files.plan(Purpose::Fetched, alloc::vec![Io::Sync { file }]);
            }
            Ok(false) => self.ask_for_pieces(now),
        }
    }

    fn give_up_fetching(&mut self) {
        let Some(fetching) = self.files.fetching.take() else { return };
        // Its sync, if it is under way, says nothing of what is fetched next.
        let purposes = self.files.under_way.iter_mut().chain(&mut self.files.purposes);
        purposes
            .filter(|purpose| **purpose == Purpose::Fetched)
            .for_each(|purpose| *purpose = Purpose::Bytes);
        if fetching.received > 0 {
            self.drop_file(fetching.offer.index);
        }
        fetching.loader.discard(&mut self.trash);
    }

    fn drop_file(&mut self, index: Index) {
        let file = File::Snapshot(self.id, index);
        self.files.plan(Purpose::Bytes, alloc::vec![Io::Remove { file }]);
    }

    /// The snapshot that was fetched is synced: raft is asked to take it in place of its log.
    fn install(&mut self, now: u64) {
        let Some(fetching) = self.files.fetching.take_if(|fetching| fetching.complete) else { return };
        let Fetching { offer, loader, received, .. } = fetching;
        let (header, state) = loader.into_state();
        let at = (header.index, header.term);
        let fits = offer.log_term == at.1 && at.0 > self.applied;
        if !fits || !self.consensus.install(now, offer, header.conf.clone()) {
            state.discard(&mut self.trash);
            return self.drop_file(at.0);
        }
        if let Some(Writing { writer, .. }) = self.files.writing.take() {
            self.drop_file(writer.header().index);
        }
        self.files.size = received;
        self.files.loaded = Some((header, state));
    }

    /// Raft has taken the snapshot: its state takes the place of the replica's.
    pub(super) fn take_installed(&mut self, at: (Index, Term)) {
        let (header, state) = self.files.loaded.take().expect("raft takes what was loaded");
        assert!((header.index, header.term) == at, "raft takes the snapshot that was loaded");
        core::mem::replace(&mut self.state, state).discard(&mut self.trash);
        self.state.set_map_from(self.map_from);
        #[cfg(feature = "faults")]
        self.state.set_faults(&self.faults);
        (self.applied, self.applied_term, self.time) = (header.index, header.term, header.time);
        self.replayed = self.replayed.max(header.index);
        self.row.snapshot = at;
        (self.files.time, self.files.copied) = (header.time, None);
        self.files.crossings = header.crossings;
        self.reset = Some(at);
        self.files.oldest = None;
        self.forget_maps();
        self.want_map();
    }

    /// Looks after transfers in both directions.
    pub(super) fn watch_transfers(&mut self, now: u64) {
        let mut again = Vec::new();
        let fetching = self.consensus.fetching();
        self.files.asked.retain(|node, _| fetching.iter().any(|replica| replica.node == *node));
        for replica in fetching {
            let since = *self.files.asked.entry(replica.node).or_insert(now);
            if now > since + OFFER_AGAIN {
                again.push(replica);
            }
        }
        for replica in again {
            self.files.asked.remove(&replica.node);
            self.consensus.offer_again(replica);
        }
        let Some(fetching) = self.files.fetching.as_mut().filter(|fetching| !fetching.complete) else {
            return;
        };
        if fetching.offer.index <= self.applied || now > fetching.heard + GIVE_UP {
            self.give_up_fetching();
        } else if now > fetching.asked_at.max(fetching.heard) + ASK_AGAIN {
            fetching.asked = fetching.received;
            self.ask_for_pieces(now);
        }
    }

    /// Whether a replica fetches the present snapshot, or a client copies it.
    #[must_use]
    pub fn is_fetched(&self, now: u64) -> bool {
        !self.files.asked.is_empty() || self.files.copied.is_some_and(|copied| now < copied + COPY_PAUSE)
    }

    /// Lets go of what the snapshot covers and nobody needs any more.
    pub fn compact(&mut self) {
        self.consensus.compact();
    }
}

/// The answer to whoever asks for a snapshot that is not here.
#[must_use]
pub fn gone(at: SnapshotAt) -> SnapshotFrame {
    SnapshotFrame::Piece(SnapshotPiece { at, bytes: Bytes::new() })
}

#[cfg(test)]
mod tests;
