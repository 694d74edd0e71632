//! When a replica stands for election, and when a leader beats.
//!
//! ```text
//!  the leader's last word          promise over      rank 0   1       2        (a tick apart, and more)
//!  ├───────────────────────────────────┼───────────────┴───────┴───────┴──────▶
//!  0                                  240                                     ms
//! ```
//!
//! Invariants:
//! - Replicas follow each other in the order of the ring, so that after the death of a leader one of them stands while
//!   the others wait: no vote is split, and nobody waits for chance.
//! - A tick at which a replica would stand though it may not (its own promise, or it does not want to lead) does not
//!   pass. All others do, also of those that do not want to lead: raft grants no vote before their timeout.
//!
//! Subtlety: the promises of all replicas end at about the same time, but not at the same time. Who asks a moment too
//! early is not answered, so an unanswered pre-vote is asked again soon; that harms nobody, since it raises no term.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{Consensus, Role};
use crate::effect::TICK;

/// Ticks between two heartbeats of a leader.
pub const HEARTBEAT_TICKS: usize = 2;
/// Ticks without a leader during which nobody stands for election, and after which a leader that hears of no majority
/// leads no more.
pub(super) const ELECTION_TICKS: usize = 12;
/// The longest election timeout, exclusive.
pub(super) const ELECTION_TICKS_MAX: usize = 24;
/// What a promise lasts; microseconds.
pub const ELECTION_TIMEOUT: u64 = ELECTION_TICKS as u64 * TICK;
/// Ticks for which a replica that does not want to lead leaves it to others beyond its turn.
const RELUCTANCE: usize = 25;
/// Ticks after which a pre-vote that was not answered is asked again, at the least, and how many more there may be.
const ASK_AGAIN: (usize, u64) = (3, 3);

const _: () =
    assert!(HEARTBEAT_TICKS * 5 <= ELECTION_TICKS, "a few lost heartbeats are no reason for an election");

/// How much a replica wants to lead.
#[derive(Debug)]
pub(super) struct Ambition {
    /// Its place in elections.
    rank: usize,
    /// It leaves leading to others.
    passive: bool,
    /// Ticks at which it would have stood for election, had it wanted to.
    overdue: usize,
}

impl Ambition {
    /// Of a replica that wants to lead.
    pub(super) fn of(rank: usize) -> Self {
        Self { rank, passive: false, overdue: 0 }
    }
}

impl Consensus {
    /// Lets a tick pass. `beat`: it is one of those at which the leaders of all groups send their heartbeats, so that
    /// these travel together.
    pub fn tick(&mut self, now: u64, beat: bool) {
        if self.settling.is_some() {
            return;
        }
        let raft = &self.raw.raft;
        if self.leads() {
            if beat || raft.heartbeat_elapsed() + 1 < HEARTBEAT_TICKS {
                self.raw.tick();
            }
            return self.set_timeout();
        }
        let asks = self.role() == Role::PreCandidate;
        let timeout = if asks { self.ask_again() } else { raft.randomized_election_timeout() };
        let due = raft.election_elapsed + 1 >= timeout && raft.promotable();
        if due {
            self.ambition.overdue += 1;
        } else if self.role() == Role::Follower {
            self.ambition.overdue = 0;
        }
        if !due {
            self.raw.tick();
        } else if !self.is_passive() && now >= self.promise_until {
            // Nothing comes of it while a committed change of replicas waits to be applied: at the next time, then.
            let _ = self.raw.campaign();
            self.raw.raft.election_elapsed = 0;
        }
        self.set_timeout();
    }

    /// Says which place this replica has in elections.
    pub fn set_rank(&mut self, rank: usize) {
        self.ambition.rank = rank;
    }

    /// A passive replica follows and votes, but stands for election only if leadership is handed to it, or if there is
    /// nobody else: also if nobody has been elected for long. It may be the only one that can be, because it has what the dead
    /// leader has sent to nobody else that lives.
    pub fn set_passive(&mut self, passive: bool) {
        self.ambition.passive = passive;
    }

    pub(super) fn is_passive(&self) -> bool {
        self.ambition.passive && self.conf.voters.len() > 1 && self.ambition.overdue < RELUCTANCE
    }

    fn ask_again(&self) -> usize {
        ASK_AGAIN.0 + small(self.chance() % (ASK_AGAIN.1 + 1))
    }

    /// What looks like chance and is none.
    fn chance(&self) -> u64 {
        let role = self.role() as u64;
        let mut key = [0; 32];
        for (at, part) in [self.me.node.0, u64::from(self.group.0), self.term(), role].into_iter().enumerate()
        {
            key[8 * at..8 * at + 8].copy_from_slice(&part.to_le_bytes());
        }
        xxh3_64_with_seed(&key, self.seed)
    }

    pub(super) fn set_timeout(&mut self) {
        let spread = ELECTION_TICKS_MAX - ELECTION_TICKS - 1;
        let more = match self.ambition.rank {
            // Who was not elected backs off by chance.
            _ if self.role() != Role::Follower => small(self.chance() % spread as u64),
            0 => 0,
            // The first two are seldom both there: one of them has been the leader.
            rank => (2 * rank.min(spread) - 1).min(spread - 1),
        };
        // Above the timeout itself: raft grants votes from then on, also if this replica's own turn does not come.
        self.raw.raft.set_randomized_election_timeout(ELECTION_TICKS + 1 + more);
    }
}

fn small(n: u64) -> usize {
    usize::try_from(n).expect("a small number")
}
