//! A container of replicated state: ordered, digested as it changes, walkable while it changes.
//!
//! Charter: everything a replica must agree on lies in `Table`s. Indexes derived from them (deadlines,
//! ready lists, the wait-for graph) lie beside them and are rebuilt from them.
//!
//! Invariant: `digest` is the sum, modulo 2^64, of the hashes of all rows, so it depends on the contents
//! alone and a change costs one hash of the row. A walk shows every row as it was when the walk began.
//!
//! Subtlety: a row changed behind the walk's cursor needs no copy; one changed before it is kept, as it
//! was, until the walk passes it. A key that did not exist at the beginning is kept as `None`. When all rows are dropped
//! at once (`forget_all`) the walk goes on over those that there were.

use alloc::borrow::Cow;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use bytes::Bytes;
use core::ops::Bound;
use quorate_protocol::wire::{Malformed, Wire};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::trash::Trash;

struct Row<V> {
    hash: u64,
    value: V,
}

struct Walk<K, V> {
    /// The last key that was shown.
    cursor: Option<K>,
    /// Rows past the cursor as they were at the beginning; `None`: not there then.
    kept: BTreeMap<K, Option<V>>,
    /// The rows as they were when all were dropped: from then on nothing that changes concerns the walk.
    frozen: Option<BTreeMap<K, Row<V>>>,
}

/// See the top of the file. `seed` tells tables with equal rows apart in a sum of digests.
pub struct Table<K, V> {
    seed: u64,
    rows: BTreeMap<K, Row<V>>,
    digest: u64,
    walk: Option<Walk<K, V>>,
    /// Rows that nobody needs any more, until somebody throws them away.
    dropped: Vec<BTreeMap<K, Row<V>>>,
    scratch: Vec<u8>,
}

impl<K: Ord + Clone + Wire, V: Clone + Wire> Table<K, V> {
    /// An empty table.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed, rows: BTreeMap::new(), digest: 0, walk: None, dropped: Vec::new(), scratch: Vec::new() }
    }

    /// The digest of all rows.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// The number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The row of `key`.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&V> {
        self.rows.get(key).map(|row| &row.value)
    }

    /// Whether `key` has a row.
    #[must_use]
    pub fn contains(&self, key: &K) -> bool {
        self.rows.contains_key(key)
    }

    /// All rows in key order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.rows.iter().map(|(key, row)| (key, &row.value))
    }

    /// The first row in key order.
    #[must_use]
    pub fn first(&self) -> Option<(&K, &V)> {
        self.rows.first_key_value().map(|(key, row)| (key, &row.value))
    }

    /// The rows within bounds, in key order.
    pub fn range(&self, bounds: impl core::ops::RangeBounds<K>) -> impl Iterator<Item = (&K, &V)> {
        self.rows.range(bounds).map(|(key, row)| (key, &row.value))
    }

    /// Puts a row, in place of the one there was.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let hash = self.hash(&key, &value);
        self.digest = self.digest.wrapping_add(hash);
        let old = self.rows.insert(key.clone(), Row { hash, value });
        if let Some(row) = &old {
            self.digest = self.digest.wrapping_sub(row.hash);
        }
        let old = old.map(|row| row.value);
        self.keep(&key, || old.clone());
        old
    }

    /// Takes a row away.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let row = self.rows.remove(key)?;
        self.digest = self.digest.wrapping_sub(row.hash);
        self.keep(key, || Some(row.value.clone()));
        Some(row.value)
    }

    /// Changes a row in place; `None` when there is none.
    pub fn change<R>(&mut self, key: &K, change: impl FnOnce(&mut V) -> R) -> Option<R> {
        if self.walk.is_some() {
            let old = self.rows.get(key)?.value.clone();
            self.keep(key, || Some(old));
        }
        let row = self.rows.get_mut(key)?;
        let result = change(&mut row.value);
        let hash = hash_row(self.seed, &mut self.scratch, key, &row.value);
        self.digest = self.digest.wrapping_sub(row.hash).wrapping_add(hash);
        row.hash = hash;
        Some(result)
    }

    /// Changes where the contents of a row lie, and not what they are: neither the digest nor a walk hears of it.
    pub fn replace<R>(&mut self, key: &K, change: impl FnOnce(&mut V) -> R) -> Option<R> {
        self.rows.get_mut(key).map(|row| change(&mut row.value))
    }

    fn hash(&mut self, key: &K, value: &V) -> u64 {
        hash_row(self.seed, &mut self.scratch, key, value)
    }

    /// Keeps what `key` held for the walk, unless the walk has passed it or keeps it already.
    fn keep(&mut self, key: &K, old: impl FnOnce() -> Option<V>) {
        let Some(walk) = self.walk.as_mut().filter(|walk| walk.frozen.is_none()) else { return };
        let ahead = walk.cursor.as_ref().is_none_or(|cursor| key > cursor);
        if ahead && !walk.kept.contains_key(key) {
            walk.kept.insert(key.clone(), old());
        }
    }

    /// Begins a walk over the rows as they are now. A walk under way is given up.
    pub fn begin_walk(&mut self) {
        self.give_walk_up();
        self.walk = Some(Walk { cursor: None, kept: BTreeMap::new(), frozen: None });
    }

    fn give_walk_up(&mut self) {
        self.dropped.extend(self.walk.take().and_then(|walk| walk.frozen));
    }

    /// Drops all rows at once. They are taken apart later; see `throw_away`.
    pub fn forget_all(&mut self) {
        let rows = core::mem::take(&mut self.rows);
        self.digest = 0;
        match &mut self.walk {
            Some(walk) if walk.frozen.is_none() => walk.frozen = Some(rows),
            _ => self.dropped.push(rows),
        }
    }

    /// Throws away what was dropped at once. `weight`: as for `discard`.
    pub fn throw_away(&mut self, trash: &mut Trash, weight: impl Fn(&V) -> usize + Copy + Send + 'static)
    where
        K: Send + 'static,
        V: Send + 'static,
    {
        for rows in self.dropped.drain(..) {
            trash.throw(rows.into_values().map(move |row| weight(&row.value)));
        }
    }

    /// Shows the next rows, as long as `show` says that it wants more; false when the walk has ended (and when none is
    /// under way).
    pub fn walk(&mut self, mut show: impl FnMut(&K, &V) -> bool) -> bool {
        let Some(mut walk) = self.walk.take() else { return false };
        let Walk { cursor, kept, frozen } = &mut walk;
        let rows = frozen.as_ref().unwrap_or(&self.rows);
        let after = cursor.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        // One search for all that is shown at once.
        let mut live = rows.range((after, Bound::Unbounded)).peekable();
        let shown = loop {
            let is_kept = match (live.peek(), kept.first_key_value()) {
                (None, None) => break None,
                (Some((key, _)), Some((kept, _))) => kept <= *key,
                (live, _) => live.is_none(),
            };
            let (key, wants_more) = if is_kept {
                let (key, old) = kept.pop_first().expect("it was just seen");
                live.next_if(|(live, _)| **live == key);
                let wants_more = old.is_none_or(|old| show(&key, &old));
                (Cow::Owned(key), wants_more)
            } else {
                let (key, row) = live.next().expect("it was just seen");
                (Cow::Borrowed(key), show(key, &row.value))
            };
            if !wants_more {
                break Some(key.into_owned());
            }
        };
        let goes_on = shown.is_some();
        walk.cursor = shown;
        self.walk = Some(walk);
        if !goes_on {
            self.give_walk_up();
        }
        goes_on
    }

    /// Gives all rows away, to be dropped bit by bit. `weight`: the bytes of a row that are worth counting.
    pub fn discard(mut self, trash: &mut Trash, weight: impl Fn(&V) -> usize + Copy + Send + 'static)
    where
        K: Send + 'static,
        V: Send + 'static,
    {
        self.throw_away(trash, weight);
        trash.throw(self.rows.into_values().map(move |row| weight(&row.value)));
        let frozen = self.walk.as_mut().and_then(|walk| walk.frozen.take()).unwrap_or_default();
        trash.throw(frozen.into_values().map(move |row| weight(&row.value)));
        let kept = self.walk.map(|walk| walk.kept).unwrap_or_default();
        trash.throw(kept.into_iter().map(|_| 0));
    }
}

/// A table whatever its rows are: how a snapshot is made of all tables of a group.
pub trait Rows {
    /// The table's number within its group; names it in a snapshot.
    fn id(&self) -> u64;

    /// Takes all rows away.
    fn clear(&mut self);

    /// Begins a walk over the rows as they are now. A walk under way is given up.
    fn begin_walk(&mut self);

    /// Gives a walk up.
    fn end_walk(&mut self);

    /// Appends rows to `out`, in key order, until it holds `target` bytes. Returns their number, and whether the walk
    /// goes on.
    fn show(&mut self, target: usize, out: &mut Vec<u8>) -> (u64, bool);

    /// Reads one row of a snapshot that is mapped into memory, and takes from there what may lie there.
    ///
    /// # Errors
    /// When it is no such row, or not the one that was written.
    fn look_at(&mut self, input: &mut Bytes) -> Result<(), Malformed>;
}

impl<K: Ord + Clone + Wire, V: Clone + Wire> Rows for Table<K, V> {
    fn id(&self) -> u64 {
        self.seed
    }

    fn clear(&mut self) {
        *self = Self::new(self.seed);
    }

    fn begin_walk(&mut self) {
        Self::begin_walk(self);
    }

    fn end_walk(&mut self) {
        self.give_walk_up();
    }

    fn show(&mut self, target: usize, out: &mut Vec<u8>) -> (u64, bool) {
        let mut rows = 0;
        let goes_on = self.walk(|key, value| {
            key.put(out);
            value.put(out);
            rows += 1;
            out.len() < target
        });
        (rows, goes_on)
    }

    fn look_at(&mut self, input: &mut Bytes) -> Result<(), Malformed> {
        take_row::<K, V>(input).map(drop)
    }
}

/// Reads one row, as `Rows::show` has written it.
///
/// # Errors
/// When the bytes are no such row.
pub fn take_row<K: Wire, V: Wire>(input: &mut Bytes) -> Result<(K, V), Malformed> {
    Ok((K::take(input)?, V::take(input)?))
}

/// Reads one row and puts it.
///
/// # Errors
/// As `take_row`.
pub fn load_row<K: Ord + Clone + Wire, V: Clone + Wire>(
    table: &mut Table<K, V>,
    input: &mut Bytes,
) -> Result<(), Malformed> {
    let (key, value) = take_row(input)?;
    table.insert(key, value);
    Ok(())
}

fn hash_row<K: Wire, V: Wire>(seed: u64, scratch: &mut Vec<u8>, key: &K, value: &V) -> u64 {
    scratch.clear();
    key.put(scratch);
    value.put(scratch);
    let hash = xxh3_64_with_seed(scratch, seed);
    // A large value must not leave its room behind for good.
    scratch.shrink_to(64 << 10);
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum_of(table: &Table<u64, u64>) -> u64 {
        sum_with(table, 7)
    }

    fn sum_with(table: &Table<u64, u64>, seed: u64) -> u64 {
        table.iter().fold(0, |sum, (k, v)| sum.wrapping_add(hash_row(seed, &mut Vec::new(), k, v)))
    }

    #[test]
    fn digest_follows_contents_not_history() {
        let (mut a, mut b) = (Table::new(7), Table::new(7));
        for n in 0..100u64 {
            a.insert(n, n * n);
            b.insert(99 - n, 0);
        }
        for n in 0..100u64 {
            b.change(&n, |v| *v = n * n);
        }
        assert_eq!(a.digest(), b.digest());
        assert_eq!(a.digest(), sum_of(&a));
        a.remove(&5);
        assert_ne!(a.digest(), b.digest());
        assert_eq!(a.digest(), sum_of(&a));
    }

    #[test]
    fn a_walk_shows_the_rows_of_its_beginning() {
        for forgotten in [false, true] {
            walk_over_changes(forgotten);
        }
    }

    fn walk_over_changes(forgotten: bool) {
        let mut table = Table::new(1);
        for n in (0..100u64).step_by(2) {
            table.insert(n, n);
        }
        let before: Vec<_> = table.iter().map(|(k, v)| (*k, *v)).collect();
        let mut seen = Vec::new();
        table.begin_walk();
        let mut turn = 0;
        let mut shown = 0;
        while table.walk(|k, v| {
            seen.push((*k, *v));
            shown += 1;
            shown % 3 > 0
        }) {
            turn += 1;
            if forgotten && turn == 5 {
                table.forget_all();
                assert_eq!((table.len(), table.digest()), (0, 0));
            }
            table.insert(turn, 1000); // new keys, old keys, before and behind the cursor
            table.remove(&(100 - turn));
            table.change(&50, |v| *v += 1);
        }
        assert_eq!(seen, before);
        assert_eq!(table.digest(), sum_with(&table, 1));
        let mut trash = Trash::default();
        table.throw_away(&mut trash, |_| 0);
        assert_eq!(!trash.is_empty(), forgotten, "what was dropped waits to be taken apart");
    }
}
