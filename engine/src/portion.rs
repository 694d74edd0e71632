//! How much of what has ended takes effect at one place in the log.
//!
//! Charter: a million keys may expire at the same time, and a connection may end that held a million locks. What an entry
//! brings to its end is bounded by its size, as what it does otherwise is; the rest follows with the next entries, and as
//! long as there is a rest, the leader adds entries that carry nothing else (`Group::flush`).
//!
//! Invariant: the portion is a pure function of the entry, so every replica ends the same at the same place.
//!
//! Subtlety: so things may end later than group time says, by the entries that those before them need. Never earlier; and
//! a key whose time has come is not seen any more, whether it is gone or not.

/// What an entry without commands brings to its end.
const ALONE: usize = 256;
/// Bytes of an entry with commands for each thing that it brings to its end besides.
const BYTES_EACH: usize = 64;
/// What a command brings to its end itself, without leaving it to others.
const AT_ONCE: usize = 32;

/// Counts what ends: one for a key, two for what lets others go on, such as a lock.
#[derive(Debug)]
pub struct Portion(usize);

impl Portion {
    /// Of an entry of this size, with so many commands.
    #[must_use]
    pub fn of_entry(bytes: usize, commands: usize) -> Self {
        Self(if commands == 0 { ALONE } else { 1 + bytes / BYTES_EACH })
    }

    /// Of a command.
    #[must_use]
    pub fn of_command() -> Self {
        Self(AT_ONCE)
    }

    /// Whatever there is.
    #[cfg(test)]
    pub fn endless() -> Self {
        Self(usize::MAX)
    }

    /// Whether anything more may end.
    #[must_use]
    pub fn is_left(&self) -> bool {
        self.0 > 0
    }

    /// Something is to end; false when that has to wait. The last may cost more than is left.
    pub fn take(&mut self, cost: usize) -> bool {
        let is_left = self.is_left();
        self.0 = self.0.saturating_sub(cost);
        is_left
    }
}

#[cfg(test)]
mod tests;
