//! The memory that the connections of all clients hold together, beyond what each may always hold.
//!
//! Charter: a connection adds up what it holds (`connection/memory.rs`). `limits::CLIENT_ALLOWANCE` is its own; what is beyond is
//! charged here, in steps, so that few requests touch what all connections share. At the bound a charge is refused, and the
//! connection tells its client.
//!
//! Invariant: all charges together never exceed the bound. What one read or one turn's answers bring is held before it is charged:
//! by one connection for each thread that serves clients, and no longer than it takes to refuse it.
//!
//! Subtlety: who holds much and goes on with nothing would keep all others out. So when a charge is refused, the largest of
//! those connections go that have been beyond their allowance for `limits::CLIENT_PATIENCE` without a break, until there is some room.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use quorate_protocol::limits::{CLIENT_ALLOWANCE, CLIENT_PATIENCE};

use crate::clock;
use crate::outlet::{Out, Outlet};

/// What a charge is a multiple of.
const STEP: usize = CLIENT_ALLOWANCE;
/// The pause between two looks for connections to be cut; microseconds.
const PAUSE: u64 = 100_000;
/// Nobody is cut who is beyond its allowance since then.
const NEVER: u64 = u64::MAX;

/// A connection that has been beyond its allowance.
#[derive(Debug)]
struct Holder {
    outlet: Arc<Outlet>,
    /// What it is charged; written by itself only.
    charged: AtomicUsize,
    /// When it last went beyond its allowance, in microseconds; `NEVER` once it is cut for it.
    since: AtomicU64,
}

#[derive(Debug, Default)]
struct Holders {
    all: HashMap<u64, Arc<Holder>>,
    /// When connections to be cut are looked for again.
    next_look: u64,
}

/// See the top of the file.
#[derive(Debug, Default)]
pub struct ClientMemory {
    max: usize,
    charged: AtomicUsize,
    refused: AtomicU64,
    cut: AtomicU64,
    holders: Mutex<Holders>,
}

/// What there is to tell of it.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    /// Bytes that are charged.
    pub bytes: usize,
    /// The bound.
    pub max: usize,
    /// Requests and answers that found no room.
    pub refused: u64,
    /// Connections that were cut to make room.
    pub cut: u64,
}

impl ClientMemory {
    /// With this bound.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self { max, ..Self::default() }
    }

    /// Its figures now.
    #[must_use]
    pub fn figures(&self) -> Figures {
        Figures {
            bytes: self.charged.load(Ordering::Relaxed),
            max: self.max,
            refused: self.refused.load(Ordering::Relaxed),
            cut: self.cut.load(Ordering::Relaxed),
        }
    }

    fn take(&self, bytes: usize) -> bool {
        let fits = |charged: usize| charged.checked_add(bytes).filter(|sum| *sum <= self.max);
        self.charged.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }

    /// Cuts connections that have held much for long, the largest first, until an eighth of the bound is free.
    fn make_room(&self, now: u64) {
        let mut holders = self.holders.lock();
        if now < holders.next_look {
            return;
        }
        holders.next_look = now + PAUSE;
        let is_old = |holder: &&Arc<Holder>| {
            let since = holder.since.load(Ordering::Relaxed);
            since.checked_add(1000 * CLIENT_PATIENCE).is_some_and(|due| due <= now)
        };
        let charge = |holder: &Arc<Holder>| holder.charged.load(Ordering::Relaxed);
        let mut old: Vec<_> = holders.all.values().filter(is_old).collect();
        old.sort_unstable_by_key(|holder| core::cmp::Reverse(charge(holder)));
        let mut left = self.charged.load(Ordering::Relaxed);
        for holder in old {
            let charged = charge(holder);
            if left <= self.max - self.max / 8 || charged == 0 {
                return;
            }
            left = left.saturating_sub(charged);
            holder.since.store(NEVER, Ordering::Relaxed);
            self.cut.fetch_add(1, Ordering::Relaxed);
            holder.outlet.add(Out::Cut);
            holder.outlet.wake();
        }
    }
}

/// What one connection is charged.
#[derive(Debug)]
pub struct Account {
    memory: Arc<ClientMemory>,
    number: u64,
    charged: usize,
    /// Once it has been beyond its allowance.
    holder: Option<Arc<Holder>>,
}

impl Account {
    /// Of a connection that holds nothing yet.
    #[must_use]
    pub fn new(number: u64, memory: Arc<ClientMemory>) -> Self {
        Self { memory, number, charged: 0, holder: None }
    }

    /// Charges what the connection holds now. False if there is no room for it: then it is charged what it was before.
    pub fn settle(&mut self, held: usize, outlet: &Arc<Outlet>) -> bool {
        if held <= CLIENT_ALLOWANCE && self.charged == 0 {
            return true;
        }
        let wanted = held.saturating_sub(CLIENT_ALLOWANCE).next_multiple_of(STEP);
        if wanted <= self.charged {
            self.give_back(self.charged - wanted);
            return true;
        }
        if !self.memory.take(wanted - self.charged) {
            return false;
        }
        let holder = self.holder.get_or_insert_with(|| {
            let outlet = Arc::clone(outlet);
            let holder = Holder { outlet, charged: AtomicUsize::new(0), since: AtomicU64::new(NEVER) };
            let holder = Arc::new(holder);
            self.memory.holders.lock().all.insert(self.number, Arc::clone(&holder));
            holder
        });
        if self.charged == 0 {
            holder.since.store(clock::mono(), Ordering::Relaxed);
        }
        self.charged = wanted;
        holder.charged.store(wanted, Ordering::Relaxed);
        true
    }

    fn give_back(&mut self, bytes: usize) {
        let Some(holder) = self.holder.as_ref().filter(|_| bytes > 0) else { return };
        self.charged -= bytes;
        holder.charged.store(self.charged, Ordering::Relaxed);
        self.memory.charged.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// What it may hold as it is charged now.
    #[must_use]
    pub fn covers(&self) -> usize {
        CLIENT_ALLOWANCE + self.charged
    }

    /// It was to be cut, and has come to an end with what it held: it is not, and counts from now on.
    pub fn spared(&self) {
        if let Some(holder) = &self.holder {
            holder.since.store(clock::mono(), Ordering::Relaxed);
            self.memory.cut.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The connection is told that there is no room. Returns the bound.
    pub fn refused(&self) -> usize {
        self.memory.refused.fetch_add(1, Ordering::Relaxed);
        self.memory.make_room(clock::mono());
        self.memory.max
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if self.holder.is_some() {
            self.give_back(self.charged);
            self.memory.holders.lock().all.remove(&self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Client {
        account: Account,
        outlet: Arc<Outlet>,
    }

    impl Client {
        fn new(number: u64, memory: &Arc<ClientMemory>) -> Self {
            Self { account: Account::new(number, Arc::clone(memory)), outlet: Arc::default() }
        }

        fn holds(&mut self, steps: usize) -> bool {
            self.account.settle((1 + steps) * STEP, &self.outlet)
        }

        fn is_cut(&self) -> bool {
            self.outlet.take().is_some_and(|outs| matches!(outs[..], [Out::Cut]))
        }

        /// As if it had been beyond its allowance for so long.
        fn age(&self) {
            let holder = self.account.holder.as_ref().expect("it holds much");
            let long_ago = clock::mono().saturating_sub(1000 * CLIENT_PATIENCE);
            holder.since.store(long_ago, Ordering::Relaxed);
        }
    }

    #[test]
    fn charges_stay_below_the_bound_and_are_given_back() {
        let memory = Arc::new(ClientMemory::new(10 * STEP));
        let (mut a, mut b) = (Client::new(1, &memory), Client::new(2, &memory));
        assert!(a.account.settle(CLIENT_ALLOWANCE, &a.outlet) && memory.figures().bytes == 0);
        assert!(a.account.settle(CLIENT_ALLOWANCE + 1, &a.outlet) && memory.figures().bytes == STEP);
        assert!(a.holds(6) && b.holds(4) && !b.holds(5));
        assert_eq!(memory.figures().bytes, 10 * STEP, "what is refused leaves the charge");
        assert!(b.holds(0) && a.holds(10), "the one has what the other gives back");
        drop(a);
        assert_eq!(memory.figures().bytes, 0);
        assert_eq!(memory.holders.lock().all.len(), 1);
        drop(b);
        assert!(memory.holders.lock().all.is_empty());
    }

    #[test]
    fn the_largest_of_those_that_hold_much_for_long_are_cut_for_others() {
        let memory = Arc::new(ClientMemory::new(16 * STEP));
        let mut clients: Vec<Client> = (0..5).map(|number| Client::new(number, &memory)).collect();
        for (client, steps) in clients.iter_mut().zip([2, 5, 1, 6, 2]) {
            assert!(client.holds(steps));
        }
        let mut late = Client::new(9, &memory);
        assert!(!late.holds(1));
        late.account.refused();
        assert!(!clients.iter().any(Client::is_cut), "nobody has held it for long");
        clients[..3].iter().for_each(Client::age);
        memory.holders.lock().next_look = 0;
        late.account.refused();
        let cut: Vec<usize> = (0..5).filter(|n| clients[*n].is_cut()).collect();
        assert_eq!(cut, [1], "the fourth is larger, and has not held it for long");
        memory.holders.lock().next_look = 0;
        late.account.refused();
        assert!(clients[0].is_cut() && !clients[1].is_cut(), "nobody is told twice");
        assert_eq!((memory.figures().refused, memory.figures().cut), (3, 2));
        // One that was not cut after all may be the next time.
        clients[0].account.spared();
        assert_eq!(memory.figures().cut, 1);
        clients[0].age();
        memory.holders.lock().next_look = 0;
        late.account.refused();
        assert!(clients[0].is_cut());
    }
}
