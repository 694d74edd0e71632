//! The states of a line on a node, and every way from one to another.
//!
//! ```text
//!            read, others hold it             write of this node, nobody else holds it
//!        I ───────────────────────▶ S    I, S, E, M ──────────────────────────────────▶ M
//!        │ read, nobody holds it          E, M ── another node reads ──▶ S
//!        └──────────────────────▶ E       S, E, M ── INVAL, eviction, end of the lease ──▶ I
//! ```
//!
//! M is the sole right to write, not the sole copy: a write is on a majority's disks before it is answered. An M line may
//! be owned (SET WRITEBACK, `holder/owning.rs`): then its node answers writes first and brings them to the home in time. The
//! line is M all the while, clean or dirty, and it is answered for no event but the node's own before it is clean.
//!
//! ```text
//!                 SET WRITEBACK                     INVAL, recall, eviction: nothing is taken on any more
//!        M owned ───────────────▶ M owned, dirty ──────────────────────────────────────────▶ I, brought, then answered
//!                ◀─────────────── brought
//! ```
//!
//! While a write of its own node is on its way the line is closed: it is I on that node, and comes back with the
//! answer.
//!
//! Source: Papamarcos & Patel, "A Low-Overhead Coherence Solution for Multiprocessors with Private Cache Memories", ISCA 1984.

/// What a node may do with a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Nothing: it has none.
    Invalid,
    /// Read it; others may, too.
    Shared,
    /// Read it; nobody else does.
    Exclusive,
    /// As `Exclusive`, and it is the node that wrote it last.
    Modified,
}

/// What happens to a line on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// It was read, and others hold it.
    ReadShared,
    /// It was read, and nobody else holds it.
    ReadAlone,
    /// This node's write is applied, and nobody else holds it.
    Written,
    /// This node's write is on its way.
    Writes,
    /// Another node has read it.
    OtherReads,
    /// Another node writes it.
    Invalidated,
    /// There was no room for it.
    Evicted,
    /// The lease is over.
    Lapsed,
}

impl State {
    /// The state after an event; none: it cannot happen in this state.
    #[must_use]
    pub fn after(self, event: Event) -> Option<Self> {
        use Event as E;
        use State as S;
        match (self, event) {
            (S::Invalid, E::ReadShared) => Some(S::Shared),
            (S::Invalid, E::ReadAlone) => Some(S::Exclusive),
            // A second read was on its way when the first filled the line.
            (S::Shared | S::Exclusive | S::Modified, E::ReadShared) => Some(S::Shared),
            (S::Shared, E::ReadAlone) => Some(S::Exclusive),
            (S::Exclusive | S::Modified, E::ReadAlone) => Some(self),
            (_, E::Written) => Some(S::Modified),
            (S::Exclusive | S::Modified | S::Shared, E::OtherReads) => Some(S::Shared),
            (S::Invalid, E::OtherReads) => None,
            (_, E::Writes | E::Invalidated | E::Evicted | E::Lapsed) => Some(S::Invalid),
        }
    }

    /// The state's letter.
    #[must_use]
    pub fn letter(self) -> &'static str {
        match self {
            Self::Invalid => "I",
            Self::Shared => "S",
            Self::Exclusive => "E",
            Self::Modified => "M",
        }
    }
}
