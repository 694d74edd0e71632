//! What is found by something else than its key. Derived from the rows, equal to what they say.
//!
//! Invariant: every row is added when it is put and dropped, as it was, before it changes or goes.

use alloc::collections::{BTreeMap, BTreeSet};
use bytes::Bytes;
use quorate_protocol::id::{ClientId, ConnId};

use super::{Hold, Owner, Wait};
use crate::trash::Trash;

/// A hold or a wait, by its lock and its number.
pub(super) type Key = (Bytes, u64);

/// Derived: what a lock's rows come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) holds: usize,
    pub(super) exclusive: usize,
    pub(super) waits: usize,
}

/// Derived: everything that is found by something else than its key.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    /// (deadline, whether it is a wait, key); at equal times leases end before waits.
    pub(super) deadlines: BTreeSet<(u64, bool, Key)>,
    pub(super) lines: BTreeMap<Bytes, Line>,
    pub(super) holds: BTreeMap<Owner, BTreeSet<Key>>,
    pub(super) waits: BTreeMap<Owner, BTreeSet<Key>>,
    pub(super) asked_on: BTreeMap<ConnId, BTreeSet<Key>>,
    pub(super) asked_in: BTreeMap<ClientId, BTreeSet<Key>>,
}

impl Index {
    pub(super) fn add_hold(&mut self, key: &Key, hold: &Hold) {
        self.deadlines.insert((hold.deadline, false, key.clone()));
        let line = self.lines.entry(key.0.clone()).or_default();
        line.holds += 1;
        line.exclusive += usize::from(!hold.shared);
        self.holds.entry(hold.owner.clone()).or_default().insert(key.clone());
    }

    pub(super) fn drop_hold(&mut self, key: &Key, hold: &Hold) {
        self.deadlines.remove(&(hold.deadline, false, key.clone()));
        self.change_line(&key.0, |line| {
            line.holds -= 1;
            line.exclusive -= usize::from(!hold.shared);
        });
        drop_from(&mut self.holds, &hold.owner, key);
    }

    pub(super) fn add_wait(&mut self, key: &Key, wait: &Wait) {
        self.deadlines.insert((wait.deadline, true, key.clone()));
        self.lines.entry(key.0.clone()).or_default().waits += 1;
        self.waits.entry(wait.owner.clone()).or_default().insert(key.clone());
        self.asked_on.entry(wait.asker.conn).or_default().insert(key.clone());
        if let Some(seq) = wait.asker.client {
            self.asked_in.entry(seq.client).or_default().insert(key.clone());
        }
    }

    pub(super) fn drop_wait(&mut self, key: &Key, wait: &Wait) {
        self.deadlines.remove(&(wait.deadline, true, key.clone()));
        self.change_line(&key.0, |line| line.waits -= 1);
        drop_from(&mut self.waits, &wait.owner, key);
        drop_from(&mut self.asked_on, &wait.asker.conn, key);
        if let Some(seq) = wait.asker.client {
            drop_from(&mut self.asked_in, &seq.client, key);
        }
    }

    /// Gives all rows away, to be dropped bit by bit.
    pub(super) fn discard(self, trash: &mut Trash) {
        trash.throw(self.deadlines.into_iter().map(|_| 0));
        trash.throw(self.lines.into_iter().map(|_| 0));
        trash.throw(self.holds.into_values().flatten().map(|_| 0));
        trash.throw(self.waits.into_values().flatten().map(|_| 0));
        trash.throw(self.asked_on.into_values().flatten().map(|_| 0));
        trash.throw(self.asked_in.into_values().flatten().map(|_| 0));
    }

    fn change_line(&mut self, name: &Bytes, change: impl FnOnce(&mut Line)) {
        let line = self.lines.get_mut(name).expect("every row has a line");
        change(line);
        if *line == Line::default() {
            self.lines.remove(name);
        }
    }
}

fn drop_from<K: Ord>(map: &mut BTreeMap<K, BTreeSet<Key>>, owner: &K, key: &Key) {
    let keys = map.get_mut(owner).expect("every row is in the index");
    keys.remove(key);
    if keys.is_empty() {
        map.remove(owner);
    }
}
