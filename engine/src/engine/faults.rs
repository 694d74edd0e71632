//! Deliberate bugs, for the tests of the checkers. No server has them.

/// Deliberate bugs, for the tests that show that the simulator's checkers see them.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Takes everything for durable at once.
    pub reply_before_durable: bool,
    /// Answers reads from the leader's state without a read round.
    pub stale_reads: bool,
    /// Executes a request of a client session as often as it comes.
    pub resend_applied_twice: bool,
    /// Goes on behind a refusal.
    pub order_broken_behind_refusal: bool,
    /// Now and then says `-TRYAGAIN` for what was proposed.
    pub honest_codes_broken: bool,
    /// Now and then says `-OOM` for what was proposed.
    pub full_lies: bool,
    /// Refuses above this many commands in flight, so that refusals happen at all.
    pub small_in_flight: Option<usize>,
    /// Relies on a snapshot that is written and not synced.
    pub snapshot_unsynced: bool,
    /// Goes on acting with a replica that has lost what it acknowledged.
    pub lost_acts_on: bool,
    /// Starts with the founding configuration, whatever was applied.
    pub conf_forgotten: bool,
    /// Ends the session of a member that is removed while its node counts on it.
    pub forgotten_at_once: bool,
    /// Answers SNAPSHOT before the manifest names what was written.
    pub saved_too_soon: bool,
    /// Bugs of the leader leases.
    pub leases: crate::consensus::lease::Faults,
    /// Bugs of the cache.
    pub cache: crate::cache::Faults,
    /// Bugs of the lock table.
    pub locks: crate::lock::Faults,
    /// Bugs of the queues.
    pub queues: crate::queue::Faults,
    /// In the comparison of tokens.
    pub fences: crate::fence::Faults,
    /// Bugs of the outbox.
    pub outbox: crate::outbox::Faults,
    /// Bugs of the store.
    pub store: crate::store::Faults,
}
