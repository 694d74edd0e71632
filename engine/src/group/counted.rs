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
    /// How often something was taken up that had waited for nodes or for room.
    pub taken_up: u64,
    /// Keys that were looked at to find some that can be evicted.
    pub looked_at: u64,
}

impl Group {
    /// What it has counted since the node started.
    #[must_use]
    pub fn counted(&self) -> Counted {
        let invalidations = self.counted.invalidations + self.closing.directory.invalidations();
        let taken_up = self.counted.taken_up + self.closing.taken_up();
        let (refused_for_room, looked_at) = (self.room.refused(), self.room.looked_at());
        Counted { refused_for_room, invalidations, taken_up, looked_at, ..self.counted }
    }

    /// The keys, if it has some.
    #[must_use]
    pub fn store(&self) -> Option<&Store> {
        self.state.store()
    }
}
