//! What a group counts, and lets others look at, for whoever watches the node. Nothing in here decides anything.

use super::Group;
use crate::store::Store;

/// What a group counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// How often this node began to lead it.
    pub led: u64,
    /// Requests that were refused at a bound of what is on its way.
    pub refused_busy: u64,
    /// Writes that were refused for want of room.
    pub refused_for_room: u64,
    /// Invalidations that were sent.
    pub invalidations: u64,
}

impl Group {
    /// What it has counted since the node started.
    #[must_use]
    pub fn counted(&self) -> Counted {
        let invalidations = self.counted.invalidations + self.closing.directory.invalidations();
        Counted { refused_for_room: self.room.refused(), invalidations, ..self.counted }
    }

    /// The keys, if it has some.
    #[must_use]
    pub fn store(&self) -> Option<&Store> {
        self.state.store()
    }
}
