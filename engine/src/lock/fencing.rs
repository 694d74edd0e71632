//! Group 0's end of fencing: who compares a lock's tokens hears of its next grant before the new holder does.
//!
//! Charter: keeps which partitions compare tokens of which locks (*watches*), and brings them the floor of each new
//! *era*: a grant behind which no earlier holder is left (exclusive, or the first of shared ones). What partitions do with it
//! is in `fence.rs`.
//!
//! Invariants:
//! - An era's token is taken from the counter when it begins, and the request that it is for is granted with it once the partition
//!   of every watch that stood then has confirmed the floor; not before.
//! - A watch begins only while somebody holds the lock, or is about to: else all its tokens are stale, and stay so.
//! - Who begins a watch is told the floor of the newest era, also of one that nobody has been granted yet. So a watch
//!   that comes later need not be waited for.
//! - A watch ends at a group time well behind the last time that a node sends anything under it (`WATCH_LEASE`, and
//!   `gateway/fences.rs`), and is forgotten when its partition has confirmed that.
//!
//! Subtlety: the request that is next stays in the queue meanwhile, so its withdrawal by WAIT, or with its connection, needs
//! nothing here. The era is that request's: whoever is next then begins another one, or tokens would not rise in the order in which
//! they are asked for.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::id::GroupId;
use quorate_protocol::limits::{WATCH_LEASE, WATCHES_MAX};
use quorate_protocol::peer::{Floor, Item};
use quorate_protocol::reply::{Code, Reply};
use quorate_protocol::wire::Malformed;
use quorate_protocol::{wire_enum, wire_struct};

use super::{Locks, Owner};
use crate::keep::keep;
use crate::outcome::{Asker, Ctx, Outcomes, answer};
use crate::portion::Portion;
use crate::table::{Rows, Table, load_row, take_row};
use crate::time::{is_over, over_at};
use crate::trash::Trash;

wire_enum! {
    /// How it stands with a watch.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Stage {
        /// It ends at this group time, unless somebody asks for it again.
        Stands(until: u64) = 0,
        /// Its partition is to be told that it is over.
        Ends = 1,
        /// That has its place in the outbox.
        Told = 2,
    }
}

wire_struct! {
    /// A partition compares tokens of a lock.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Watched {
        /// Rises with every watch of any lock.
        pub number: u64,
        /// How it stands.
        pub stage: Stage,
    }
}

wire_struct! {
    /// The next grant of a lock.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Era {
        /// The place in the queue of the request that is to be granted.
        pub place: u64,
        /// Its token.
        pub token: u64,
        /// Partitions that have not confirmed it,
        pub left: Vec<GroupId>,
        /// and those of them for which it has no place in the outbox yet.
        pub due: Vec<GroupId>,
    }
}

/// See the top of the file.
pub struct Fencing {
    watches: Table<(Bytes, GroupId), Watched>,
    eras: Table<Bytes, Era>,
    /// One row: the last number of a watch.
    number: Table<u8, u64>,
    /// Derived: watches that stand, by their ends.
    ends: BTreeSet<(u64, (Bytes, GroupId))>,
    /// Derived: what has no place in the outbox yet; target → locks, and whether a watch of it ends.
    due: BTreeMap<GroupId, BTreeSet<(Bytes, bool)>>,
    /// Locks of which partitions are told late, and from when on.
    #[cfg(feature = "faults")]
    late: BTreeMap<Bytes, Option<u64>>,
}

impl Fencing {
    /// Nobody compares anything.
    #[must_use]
    pub fn new() -> Self {
        let mut number = Table::new(508);
        number.insert(0, 0);
        Self {
            watches: Table::new(506),
            eras: Table::new(507),
            number,
            ends: BTreeSet::new(),
            due: BTreeMap::new(),
            #[cfg(feature = "faults")]
            late: BTreeMap::new(),
        }
    }

    /// The digest of it all.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.watches.digest().wrapping_add(self.eras.digest()).wrapping_add(self.number.digest())
    }

    /// All tables, in the order in which a snapshot shows them.
    pub fn tables(&mut self) -> Vec<&mut dyn Rows> {
        alloc::vec![&mut self.watches, &mut self.eras, &mut self.number]
    }

    /// Takes a row of one of the tables from a snapshot.
    ///
    /// # Errors
    /// When it is none.
    pub fn load(&mut self, table: u64, input: &mut Bytes) -> Result<(), Malformed> {
        match table {
            n if n == self.watches.id() => {
                let (watch, row): ((Bytes, GroupId), Watched) = take_row(input)?;
                self.put(watch, row);
            }
            n if n == self.eras.id() => {
                let (lock, era): (Bytes, Era) = take_row(input)?;
                era.due.iter().for_each(|target| self.owe(*target, &lock, false));
                self.eras.insert(lock, era);
            }
            n if n == self.number.id() => load_row(&mut self.number, input)?,
            _ => return Err(Malformed("unknown table")),
        }
        Ok(())
    }

    /// Gives all rows away, to be dropped bit by bit.
    pub fn discard(self, trash: &mut Trash) {
        self.watches.discard(trash, |_| 0);
        self.eras.discard(trash, |_| 0);
        trash.throw(self.ends.into_iter().map(|_| 0));
        trash.throw(self.due.into_values().flatten().map(|_| 0));
    }

    fn owe(&mut self, target: GroupId, lock: &Bytes, end: bool) {
        self.due.entry(target).or_default().insert((lock.clone(), end));
    }

    fn settle(&mut self, target: GroupId, lock: &Bytes, end: bool) {
        if let Some(owed) = self.due.get_mut(&target) {
            owed.remove(&(lock.clone(), end));
            if owed.is_empty() {
                self.due.remove(&target);
            }
        }
    }

    /// Puts a watch in place of the one that there was.
    fn put(&mut self, watch: (Bytes, GroupId), row: Watched) {
        self.drop_watch(&watch);
        match row.stage {
            Stage::Stands(until) => _ = self.ends.insert((until, watch.clone())),
            Stage::Ends => self.owe(watch.1, &watch.0, true),
            Stage::Told => {}
        }
        self.watches.insert(watch, row);
    }

    fn drop_watch(&mut self, watch: &(Bytes, GroupId)) {
        match self.watches.remove(watch).map(|row| row.stage) {
            Some(Stage::Stands(until)) => _ = self.ends.remove(&(until, watch.clone())),
            Some(Stage::Ends) => self.settle(watch.1, &watch.0, true),
            Some(Stage::Told) | None => {}
        }
    }

    fn watching(&self, lock: &Bytes) -> Vec<GroupId> {
        let all = (lock.clone(), GroupId(0))..=(lock.clone(), GroupId(u16::MAX));
        self.watches.range(all).map(|((_, target), _)| *target).collect()
    }

    fn begin_era(&mut self, lock: &Bytes, place: u64, token: u64, targets: Vec<GroupId>) {
        targets.iter().for_each(|target| self.owe(*target, lock, false));
        self.eras.insert(keep(lock.clone()), Era { place, token, left: targets.clone(), due: targets });
    }

    fn drop_era(&mut self, lock: &Bytes) {
        if let Some(era) = self.eras.remove(lock) {
            era.due.iter().for_each(|target| self.settle(*target, lock, false));
        }
    }

    /// Whether partitions have to hear of the lock's next grant.
    #[cfg(test)]
    pub fn is_awaited(&self, lock: &Bytes) -> bool {
        self.eras.contains(lock)
    }

    /// When the next watch ends, in group time.
    #[must_use]
    pub fn next_end(&self) -> Option<u64> {
        self.ends.first().map(|(until, _)| over_at(*until))
    }

    /// Ends the watches whose time has come, as far as the portion goes.
    pub fn expire(&mut self, time: u64, portion: &mut Portion) {
        #[cfg(feature = "faults")]
        self.tell_now(time);
        while let Some((until, watch)) = self.ends.first()
            && is_over(*until, time)
            && portion.take(2)
        {
            let watch = watch.clone();
            let number = self.watches.get(&watch).expect("the index names rows").number;
            self.put(watch, Watched { number, stage: Stage::Ends });
        }
    }

    #[cfg(feature = "faults")]
    fn tell_late(&mut self, lock: &Bytes) {
        for target in self.watching(lock) {
            self.settle(target, lock, false);
        }
        self.late.insert(lock.clone(), None);
    }

    #[cfg(feature = "faults")]
    fn tell_now(&mut self, time: u64) {
        for since in self.late.values_mut() {
            since.get_or_insert(time + 300);
        }
        let ready = |since: &Option<u64>| since.is_some_and(|since| since <= time);
        let ready: Vec<Bytes> =
            self.late.iter().filter(|(_, since)| ready(since)).map(|(lock, _)| lock.clone()).collect();
        for lock in ready {
            self.late.remove(&lock);
            let due = self.eras.get(&lock).map(|era| era.due.clone()).unwrap_or_default();
            due.into_iter().for_each(|target| self.owe(target, &lock, false));
        }
    }

    /// Whom there is something to be told.
    pub fn owes(&self) -> impl Iterator<Item = GroupId> {
        self.due.keys().copied()
    }

    /// The next thing to be told to a partition.
    #[must_use]
    pub fn next_due(&self, target: GroupId) -> Option<Item> {
        let (lock, end) = self.due.get(&target)?.first()?.clone();
        let watch = self.watches.get(&(lock.clone(), target));
        if end {
            return watch.map(|row| Item::Unwatched((lock, row.number)));
        }
        // Without a watch there is nothing that could be told wrong.
        let number = watch.map_or(0, |row| row.number);
        self.eras.get(&lock).map(|era| Item::Floor(Floor { lock, number, token: era.token }))
    }

    /// That has its place in the outbox.
    pub fn posted(&mut self, target: GroupId, item: &Item) {
        match item {
            Item::Floor(Floor { lock, .. }) => {
                self.settle(target, lock, false);
                self.eras.change(lock, |era| era.due.retain(|due| *due != target));
            }
            Item::Unwatched((lock, number)) => {
                let stage = Stage::Told;
                self.put((lock.clone(), target), Watched { number: *number, stage });
            }
            _ => {}
        }
    }

    /// A partition has heard that a watch is over.
    pub fn forget(&mut self, target: GroupId, lock: Bytes, number: u64) {
        let watch = (lock, target);
        if self.watches.get(&watch).is_some_and(|row| row.number == number) {
            self.drop_watch(&watch);
        }
    }
}

impl Default for Fencing {
    fn default() -> Self {
        Self::new()
    }
}

impl Locks {
    /// A partition is to compare tokens of a lock: it is told before the lock is granted anew.
    pub fn watch(&mut self, ctx: &Ctx, asker: &Asker, (lock, target): (Bytes, GroupId), out: &mut Outcomes) {
        let watch = (keep(lock), target);
        let floor = self.floor(&watch.0);
        if self.line(&watch.0).holds == 0 && !self.fencing.eras.contains(&watch.0) {
            // All tokens that were given are stale, for ever: there is nothing to be told of.
            return answer(out, *asker, Reply::Array([0, floor, 0].map(Reply::int).into()));
        }
        let full = self.fencing.watches.len() >= WATCHES_MAX;
        if full && !self.fencing.watches.contains(&watch) {
            let text = format!(
                "{WATCHES_MAX} locks are fenced already; use fewer names with FENCE, or wait some minutes"
            );
            return answer(out, *asker, Reply::error(Code::Err, text));
        }
        let number = self.fencing.number.change(&0, |number| {
            *number += 1;
            *number
        });
        let number = number.expect("the row exists from the beginning");
        let lease = WATCH_LEASE;
        #[cfg(feature = "faults")]
        let lease = self.faults.short_watches.unwrap_or(lease);
        let stage = Stage::Stands(ctx.time.saturating_add(lease));
        self.fencing.put(watch, Watched { number, stage });
        answer(out, *asker, Reply::Array([number, floor, lease].map(Reply::int).into()));
    }

    /// The lowest token of a lock that is good.
    fn floor(&self, lock: &Bytes) -> u64 {
        let era = self.fencing.eras.get(lock).map(|era| era.token);
        let held = || self.holds_of(lock).map(|((_, token), _)| *token).min();
        era.or_else(held).unwrap_or(self.last_token() + 1)
    }

    /// The token for the request at a place in the queue, which the holders allow; none as long as partitions have to hear of
    /// the grant first.
    pub(super) fn token_for(&mut self, name: &Bytes, owner: &Owner, place: u64) -> Option<u64> {
        if !self.holds_of(name).all(|(_, hold)| hold.owner == *owner) {
            return Some(self.next_token());
        }
        if let Some(era) = self.fencing.eras.get(name).filter(|era| era.place == place) {
            let token = era.left.is_empty().then_some(era.token)?;
            self.fencing.drop_era(name);
            return Some(token);
        }
        self.fencing.drop_era(name);
        let token = self.next_token();
        let targets = self.fencing.watching(name);
        if targets.is_empty() {
            return Some(token);
        }
        self.fencing.begin_era(name, place, token, targets);
        #[cfg(feature = "faults")]
        if self.faults.floors_not_awaited {
            self.fencing.tell_late(name);
            return Some(token);
        }
        None
    }

    /// A request is made anew, or given up, at its place in the queue: the next grant there gets a token of its own.
    pub(super) fn begin_anew(&mut self, name: &Bytes, place: u64) {
        if self.fencing.eras.get(name).is_some_and(|era| era.place == place) {
            self.fencing.drop_era(name);
        }
    }

    /// A partition has the floor of a lock.
    pub fn confirmed(&mut self, ctx: &Ctx, target: GroupId, floor: &Floor, out: &mut Outcomes) {
        let name = &floor.lock;
        if self.fencing.eras.get(name).is_none_or(|era| era.token != floor.token) {
            return;
        }
        let left = self.fencing.eras.change(name, |era| {
            era.left.retain(|left| *left != target);
            era.left.len()
        });
        if left == Some(0) {
            self.grant(ctx, name, out);
            // Whoever it was for may have gone.
            if self.fencing.eras.get(name).is_some_and(|era| era.token == floor.token) {
                self.fencing.drop_era(name);
            }
        }
    }
}

#[cfg(test)]
mod tests;
