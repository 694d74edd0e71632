//! The coherent cache: which node may answer reads of which key from its own memory, and until when.
//!
//! Charter: `directory` is the home's side (the leader of a group), `holder` every node's side, `line` the table of
//! states, `watch` the home's news for nodes whose clients track by prefix. What the holder decides goes to the node's read view as `CacheEffect`s; readers look there and at a clock,
//! and never at the engine.
//!
//! ```text
//!   client ─GET─▶ read view ──hit──▶ answer
//!                    │ miss
//!                    ▼ Ask.line = epoch            Answer.grant
//!   holder ──────────────────────▶ home ─────────────────────▶ holder ─Fill─▶ read view
//!
//!   client ─SET─▶ home: key closed ─Invalid─▶ holders ─Purged─▶ home: entry proposed, applied, key open ─OK─▶ client
//! ```
//!
//! Invariants (design: time and authority; coherence):
//! - A node's lease ends before the home's does, and the home's before another can lead. So a new leader knows that no
//!   line is left of its predecessor's, and collects nothing.
//! - Nothing that changes a key is proposed before every other copy of it is dropped, or its node's lease is over. Until
//!   it is applied or known to be lost the key is closed: nothing is granted of it.
//! - Words may be lost, doubled and late. Grants and invalidations of a term are numbered in one row; a holder takes no
//!   grant below the last invalidation that it has heard of for the key, under no other lease than its present one.
//! - A lease that has lapsed is never renewed. Everything that was granted under it is void.
//! - A line may be owned (SET WRITEBACK): then its holder answers writes before they are durable, and nobody else, nor
//!   the home, does anything with the key before the holder has brought them, or its lease is over.
//!
//! Sources: Gray & Cheriton, "Leases", SOSP 1989; Papamarcos & Patel, ISCA 1984 (MESI); Cai et al., "GAM", PVLDB 2018.

pub mod directory;
mod dirty;
pub mod holder;
pub mod line;
mod lines;
#[cfg(test)]
mod tests;
#[cfg(feature = "faults")]
pub mod walk;
pub mod watch;

use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::id::GroupId;

pub use dirty::Counts;

/// What a node's read view is to do. Between two effects readers may see either state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheEffect {
    /// Lines of this generation are valid until then, by the node's clock; those of every other generation of the group are
    /// void. Generation 0 has none.
    Lease {
        /// The group.
        group: GroupId,
        /// The generation: one for each lease that the node gets, never the same again.
        generation: u64,
        /// Microseconds.
        until: u64,
    },
    /// Keep a line.
    Fill {
        /// The group.
        group: GroupId,
        /// The generation under which it is valid.
        generation: u64,
        /// The key.
        key: Bytes,
        /// Its value; none: the key does not exist.
        value: Option<Bytes>,
        /// Until when it is valid at the most, by the node's clock; microseconds.
        until: u64,
    },
    /// Drop the lines of these keys: what follows is done only when no reader can see them any more.
    Purge {
        /// The group.
        group: GroupId,
        /// The keys.
        keys: Vec<Bytes>,
    },
}

/// What a node wants of homes for its clients that keep values themselves (CLIENT TRACKING).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tracked {
    /// It has no such clients.
    #[default]
    Nothing,
    /// Leases of all groups at all times, so that what a client reads comes with a line.
    Lines,
    /// To hear of every write, too.
    Everything,
}

/// What clients that keep values themselves are to be told. What becomes of lines tells them, too: `CacheEffect`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrackEffect {
    /// A connection of this node writes these keys: it knows why their lines go now.
    Writes {
        /// The connection's counter.
        conn: u64,
        /// The keys.
        keys: Vec<Bytes>,
    },
    /// All keys of a group are about to be written: its lines go for that.
    Flushed {
        /// The group.
        group: GroupId,
    },
    /// These keys were written somewhere, each with the counter of the connection of this node that did it, or 0.
    Changed {
        /// The keys.
        keys: Vec<(Bytes, u64)>,
    },
    /// Writes may have gone unheard: whoever relies on `Changed` is to forget everything.
    Gap,
}

/// Deliberate bugs.
#[cfg(feature = "faults")]
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// An invalidation is not sent to one of the holders.
    pub missed_invalidation: bool,
    /// An invalidation is acknowledged and not obeyed.
    pub kept_line: bool,
    /// A lease that has lapsed is renewed.
    pub lapsed_renewed: bool,
    /// A grant is taken though an invalidation has overtaken it.
    pub late_fill: bool,
    /// The line of the writer's own node stays open.
    pub own_line_kept: bool,
    /// A key is not closed while a write of it is on its way.
    pub left_open: bool,
    /// Leases are granted beyond the home's own.
    pub beyond_home: bool,
    /// What depends on an owned line does not wait for its owner.
    pub owned_read_open: bool,
    /// An owner says that it has given a line back before it has brought what it acknowledged.
    pub purged_unbrought: bool,
    /// An owner acknowledges writes for as long as its lease lasts, and brings them late.
    pub absorbed_late: bool,
    /// News of writes are confirmed, and told to nobody.
    pub news_missed: bool,
    /// Whoever asks leads the filling of a key.
    pub all_lead: bool,
}
