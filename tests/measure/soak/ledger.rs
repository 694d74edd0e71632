//! What a soak has been told, and what of it was not as promised.
//!
//! Charter: counts of what was acknowledged, the time in which each group served nobody, and the list of violations.
//! Each kind of load keeps its own account beside it (`registers`, `counters`, `locks`, `queues`).
//!
//! Invariant: bounded, however long the soak: of violations the first few are kept, all are counted.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use quorate_client::Error;
use quorate_client::reply::Code;
use quorate_tests::process::millis;

/// The system group and the partitions.
pub(super) const GROUPS: usize = 17;
/// Violations that are kept.
const KEPT: usize = 40;
/// Digests of a group that are remembered, to be compared with those of other nodes.
const DIGESTS: usize = 256;

/// What can be acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Did {
    Set,
    Get,
    Incr,
    PlainIncr,
    Lock,
    NotGranted,
    Unlock,
    Publish,
    Republish,
    Deliver,
    DeliverDead,
    Ack,
    Digest,
}

/// What a load is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Work,
    /// Nothing new; topics are emptied.
    Drain,
    End,
}

/// Row of digests: applied index → who said what.
type Digests = BTreeMap<u64, (u64, String)>;

/// See the top of the file.
#[derive(Debug)]
pub(super) struct Ledger {
    start: u64,
    draining: AtomicBool,
    ended: AtomicBool,
    wrong: AtomicU64,
    violations: Mutex<Vec<String>>,
    done: Mutex<BTreeMap<Did, u64>>,
    doubts: AtomicU64,
    /// Those of clients without a session.
    plain_doubts: AtomicU64,
    refused: AtomicU64,
    /// Of each group, when somebody was served last.
    served: Vec<AtomicU64>,
    /// Of each group, the longest time without since the window was opened.
    longest: Vec<AtomicU64>,
    digests: Mutex<BTreeMap<u64, Digests>>,
}

impl Ledger {
    pub(super) fn new() -> Self {
        let now = millis();
        Self {
            start: now,
            draining: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            wrong: AtomicU64::new(0),
            violations: Mutex::default(),
            done: Mutex::default(),
            doubts: AtomicU64::new(0),
            plain_doubts: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            served: (0..GROUPS).map(|_| AtomicU64::new(now)).collect(),
            longest: (0..GROUPS).map(|_| AtomicU64::new(0)).collect(),
            digests: Mutex::default(),
        }
    }

    /// Seconds and tenths since the beginning.
    pub(super) fn clock(&self) -> String {
        let tenths = (millis() - self.start) / 100;
        format!("{}.{} s", tenths / 10, tenths % 10)
    }

    /// Milliseconds since the beginning.
    pub(super) fn elapsed(&self) -> u64 {
        millis() - self.start
    }

    pub(super) fn phase(&self) -> Phase {
        match (self.ended.load(Ordering::SeqCst), self.draining.load(Ordering::SeqCst)) {
            (true, _) => Phase::End,
            (false, true) => Phase::Drain,
            (false, false) => Phase::Work,
        }
    }

    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
    }

    /// A promise was broken.
    pub(super) fn violated(&self, what: &str) {
        let line = format!("{}: {what}", self.clock());
        self.wrong.fetch_add(1, Ordering::SeqCst);
        let mut kept = lock(&self.violations);
        if kept.len() < KEPT {
            println!("VIOLATION at {line}");
            kept.push(line);
        }
    }

    pub(super) fn is_clean(&self) -> bool {
        self.wrong.load(Ordering::SeqCst) == 0
    }

    /// How many, and the first of them.
    pub(super) fn violations(&self) -> (u64, Vec<String>) {
        (self.wrong.load(Ordering::SeqCst), lock(&self.violations).clone())
    }

    /// Something was acknowledged.
    pub(super) fn did(&self, what: Did) {
        *lock(&self.done).entry(what).or_default() += 1;
    }

    /// A command was answered that a group has decided.
    pub(super) fn served(&self, group: u16) {
        let (now, group) = (millis(), usize::from(group));
        let before = self.served[group].swap(now, Ordering::SeqCst);
        self.longest[group].fetch_max(now.saturating_sub(before), Ordering::SeqCst);
    }

    /// What an error says of its command: `true` if that may have taken effect. Refusals that are not of the moment are
    /// violations: whatever is asked here is in order.
    pub(super) fn failed(&self, what: &str, error: &Error) -> bool {
        let in_doubt = matches!(error, Error::InDoubt(_)) || error.code() == Some(Code::InDoubt);
        let passing =
            matches!(error, Error::Timeout | Error::Unreachable(_) | Error::Lost(_) | Error::Closed)
                || is_of_ended_session(error);
        if in_doubt {
            self.doubts.fetch_add(1, Ordering::SeqCst);
        } else if passing || error.is_passing() {
            self.refused.fetch_add(1, Ordering::SeqCst);
        } else {
            self.violated(&format!("{what}: {error}"));
        }
        in_doubt
    }

    /// A refusal or a doubt of a client without a session.
    pub(super) fn plain(&self, in_doubt: bool) {
        if in_doubt { &self.plain_doubts } else { &self.refused }.fetch_add(1, Ordering::SeqCst);
    }

    /// What was acknowledged, and how often.
    pub(super) fn done(&self) -> BTreeMap<Did, u64> {
        lock(&self.done).clone()
    }

    /// What was not, in words.
    pub(super) fn not_done(&self) -> String {
        let [sessions, plain, refused] =
            [&self.doubts, &self.plain_doubts, &self.refused].map(|count| count.load(Ordering::SeqCst));
        format!(
            "in doubt for good: {sessions} in client sessions, {plain} on plain connections; refused for the moment: \
             {refused}"
        )
    }

    /// From now on the time without service is measured anew.
    pub(super) fn open_window(&self) {
        self.longest.iter().for_each(|longest| longest.store(0, Ordering::SeqCst));
    }

    /// The longest time in which some group served nobody, since the window was opened.
    pub(super) fn without_service(&self) -> u64 {
        let now = millis();
        let each = self.longest.iter().zip(&self.served).map(|(longest, served)| {
            longest.load(Ordering::SeqCst).max(now.saturating_sub(served.load(Ordering::SeqCst)))
        });
        each.max().unwrap_or(0)
    }

    /// Groups that have served nobody since then.
    pub(super) fn silent_since(&self, then: u64) -> Vec<usize> {
        (0..GROUPS).filter(|group| self.served[*group].load(Ordering::SeqCst) <= then).collect()
    }

    /// A node has told its digest of a group.
    pub(super) fn digest(&self, node: u64, group: u64, applied: u64, digest: String) {
        let mut all = lock(&self.digests);
        let rows = all.entry(group).or_default();
        if let Some((other, theirs)) = rows.get(&applied) {
            if *theirs != digest {
                let (other, theirs) = (*other, theirs.clone());
                drop(all);
                self.violated(&format!(
                    "group {group} at {applied}: node {other} has digest {theirs}, node {node} {digest}"
                ));
            } else if *other != node {
                drop(all);
                self.did(Did::Digest);
            }
            return;
        }
        rows.insert(applied, (node, digest));
        if rows.len() > DIGESTS {
            rows.pop_first();
        }
    }
}

/// A connection that has stood while its node was away for longer than the node's session lives: what it asks is not
/// done, and the sentence says to connect again.
pub(super) fn is_of_ended_session(error: &Error) -> bool {
    let text = "the session of this connection's node has ended";
    matches!(error, Error::Refused(failure) if failure.text.starts_with(text))
}

/// A lock that nobody holds while panicking for long: what it guards is changed in one go.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
