//! Group time: the clock in which all deadlines of a group are kept.
//!
//! Every entry carries a stamp. A leader goes on from the highest stamp in its log and adds what its own
//! clock has advanced since it began to lead, so stamps never fall and time stands still without a leader.
//! A deadline takes effect only at a log position, by the stamp there: never early, late by at most a millisecond, the
//! time without a leader, and `STAMP_EVERY` per change of leader.
//!
//! Subtlety: stamps are whole milliseconds, so two of them can be nearly one further apart than what they were taken of. A lease
//! that ended as soon as a stamp shows its length would end early for a holder that counts its own clock: it ends behind that (`is_over`).

/// A group with deadlines commits a stamp at least this often; milliseconds.
pub const STAMP_EVERY: u64 = 1000;

/// Whether a lease, a wait, a delay or a key that lasts up to `deadline` is over at `time`.
#[must_use]
pub fn is_over(deadline: u64, time: u64) -> bool {
    time > deadline
}

/// The first group time at which that is over.
#[must_use]
pub fn over_at(deadline: u64) -> u64 {
    deadline.saturating_add(1)
}

/// A leader's reading of group time.
#[derive(Debug, Clone, Copy)]
pub struct GroupClock {
    base: u64,
    since: u64,
    stamped: u64,
}

impl GroupClock {
    /// Begins to lead at `mono` microseconds, with `highest` the highest stamp in the log.
    #[must_use]
    pub fn new(mono: u64, highest: u64) -> Self {
        Self { base: highest, since: mono, stamped: highest }
    }

    /// Group time in milliseconds.
    #[must_use]
    pub fn read(&self, mono: u64) -> u64 {
        self.base + mono.saturating_sub(self.since) / 1000
    }

    /// What the leader's clock shows at group time 0, in milliseconds; below 0 if it began later.
    #[must_use]
    pub fn origin(&self) -> i64 {
        let millis = |time: u64| i64::try_from(time).unwrap_or(i64::MAX);
        millis(self.since / 1000).saturating_sub(millis(self.base))
    }

    /// Reads the clock for an entry.
    pub fn stamp(&mut self, mono: u64) -> u64 {
        let stamp = self.read(mono);
        assert!(stamp >= self.stamped, "group time never falls");
        self.stamped = stamp;
        stamp
    }

    /// Whether an entry is due only to carry time forward, given the group's next deadline.
    #[must_use]
    pub fn is_due(&self, mono: u64, deadline: Option<u64>) -> bool {
        let Some(deadline) = deadline else { return false };
        let time = self.read(mono);
        // A deadline that the last stamp has passed is being dealt with by an entry on its way.
        (time >= deadline && self.stamped < deadline) || time >= self.stamped + STAMP_EVERY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on_from_the_log_not_from_the_machine() {
        let mut clock = GroupClock::new(9_000_000, 500);
        assert_eq!(clock.stamp(9_000_000), 500);
        assert_eq!(clock.stamp(9_250_999), 750);
        assert_eq!(clock.origin(), 8_500);
        assert!(!clock.is_due(9_300_000, None));
        assert!(!clock.is_due(9_300_000, Some(801)));
        assert!(clock.is_due(9_301_000, Some(801)));
        assert!(clock.is_due(10_250_000, Some(u64::MAX)));
    }

    /// Whenever in their milliseconds it begins and is looked at.
    #[test]
    fn nothing_is_over_before_its_length_has_passed() {
        for begin in (9_000_000..9_002_000).step_by(100) {
            let mut clock = GroupClock::new(9_000_000, 500);
            let deadline = clock.stamp(begin) + 7;
            for length in (5_000..7_000).step_by(100) {
                assert!(
                    !is_over(deadline, clock.read(begin + length)),
                    "begun at {begin}, over after {length} us"
                );
            }
            assert!(is_over(deadline, clock.read(begin + 8_000)));
            assert!(clock.is_due(begin + 8_000, Some(over_at(deadline))));
        }
    }
}
