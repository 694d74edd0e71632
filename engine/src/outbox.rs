//! What groups tell each other: kept by the source until the target has it, taken by the target once.
//!
//! Charter: the two replicated ends of the only way in which one group changes another. The leader of the source
//! brings parcels to the target (`household.rs`); what an item means is decided by `system.rs` and `partition.rs`.
//!
//! Invariants:
//! - Items are numbered from 1 for each pair of source and target, without a gap. The target takes them in that
//!   order, each once: it keeps the last number it has, and passes over what it has already.
//! - The source keeps an item until it has committed the target's receipt for it. Both steps may be done again, by
//!   whatever leaders, at any time: neither a parcel nor a receipt that comes late or twice changes anything.
//! - What an outbox holds for one target is bounded (`has_room`). Who adds to it asks first: who may refuse, refuses;
//!   what cannot be refused waits outside. Nothing is dropped.
//!
//! Subtlety: the target may stop within a parcel, at an item for which it has no room. Its answer is the last number
//! that it took, as ever, and what follows stands behind that item until it is taken.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::id::GroupId;
use quorate_protocol::limits::{OUTBOX_BYTES_MAX, OUTBOX_ITEMS_MAX, PARCEL_BYTES_MAX};
use quorate_protocol::peer::{Item, Letter, Parcel, Receipted};
use quorate_protocol::wire::Malformed;

use crate::keep::keep;
use crate::table::{Rows, Table, load_row, take_row};
use crate::trash::Trash;

/// Deliberate bugs, for the tests of the checkers.
#[cfg(feature = "faults")]
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// The target takes a letter whether it has it or not.
    pub taken_twice: bool,
}

/// What is kept for a target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Load {
    items: usize,
    bytes: usize,
}

/// The source's end. See the top of the file.
pub struct Outbox {
    source: GroupId,
    items: Table<(GroupId, u64), Item>,
    /// Target → the last number that was given out for it.
    last: Table<GroupId, u64>,
    /// Derived: what `items` holds for each target.
    loads: BTreeMap<GroupId, Load>,
}

impl Outbox {
    /// A group that has told nobody anything.
    #[must_use]
    pub fn new(source: GroupId) -> Self {
        Self { source, items: Table::new(111), last: Table::new(112), loads: BTreeMap::new() }
    }

    /// The digest of what is kept.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.items.digest().wrapping_add(self.last.digest())
    }

    /// All tables, in the order in which a snapshot shows them.
    pub fn tables(&mut self) -> Vec<&mut dyn Rows> {
        alloc::vec![&mut self.items, &mut self.last]
    }

    /// Takes a row of one of the tables from a snapshot.
    ///
    /// # Errors
    /// When it is none.
    pub fn load(&mut self, table: u64, input: &mut Bytes) -> Result<(), Malformed> {
        match table {
            n if n == self.items.id() => {
                let ((target, number), item) = take_row(input)?;
                self.put(target, number, kept(item));
            }
            n if n == self.last.id() => load_row(&mut self.last, input)?,
            _ => return Err(Malformed("unknown table")),
        }
        Ok(())
    }

    /// Gives all rows away, to be dropped bit by bit.
    pub fn discard(self, trash: &mut Trash) {
        self.items.discard(trash, Item::weight);
    }

    /// How far each target that was ever told anything has everything: the last number that it has said to have.
    pub fn left(&self) -> impl Iterator<Item = (GroupId, u64)> {
        self.last.iter().map(|(&target, &last)| {
            let first = self.items.range((target, 0)..=(target, u64::MAX)).next();
            (target, first.map_or(last, |((_, number), _)| number - 1))
        })
    }

    /// A target has more than this group knows to have told it: what follows is numbered behind that.
    pub fn go_on_behind(&mut self, target: GroupId, arrived: u64) {
        if self.last.get(&target).is_none_or(|last| *last < arrived) {
            self.last.insert(target, arrived);
        }
    }

    /// Whose it is.
    #[must_use]
    pub fn source(&self) -> GroupId {
        self.source
    }

    /// Whether every target has everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Targets that do not have everything.
    pub fn targets(&self) -> impl Iterator<Item = GroupId> {
        self.loads.keys().copied()
    }

    fn load_of(&self, target: GroupId) -> Load {
        self.loads.get(&target).copied().unwrap_or_default()
    }

    /// How many more items fit in, as far as their number goes.
    #[must_use]
    pub fn room(&self, target: GroupId) -> usize {
        OUTBOX_ITEMS_MAX.saturating_sub(self.load_of(target).items)
    }

    /// Whether one more item fits in.
    #[must_use]
    pub fn has_room(&self, target: GroupId, item: &Item) -> bool {
        let load = self.load_of(target);
        load.items == 0 || (load.items < OUTBOX_ITEMS_MAX && load.bytes + item.weight() <= OUTBOX_BYTES_MAX)
    }

    /// Adds an item; the caller has seen that there is room.
    pub fn post(&mut self, target: GroupId, item: Item) {
        let number = self.last.get(&target).copied().unwrap_or(0) + 1;
        self.last.insert(target, number);
        self.put(target, number, item);
    }

    fn put(&mut self, target: GroupId, number: u64, item: Item) {
        let load = self.loads.entry(target).or_default();
        load.items += 1;
        load.bytes += item.weight();
        self.items.insert((target, number), item);
    }

    /// The next items for a target behind a number, `most` of them if they are small.
    #[must_use]
    pub fn parcel(&self, target: GroupId, behind: u64, most: usize) -> Parcel {
        let mut parcel = Parcel { source: self.source, first: 0, items: Vec::new() };
        let mut bytes = 0;
        for ((_, number), item) in self.items.range((target, behind + 1)..=(target, u64::MAX)).take(most) {
            bytes += item.weight();
            if bytes > PARCEL_BYTES_MAX && !parcel.items.is_empty() {
                break;
            }
            if parcel.items.is_empty() {
                parcel.first = *number;
            }
            parcel.items.push(item.clone());
        }
        parcel
    }

    /// The target has these: they go. Returns them in order; none when the receipt came late or twice.
    pub fn receipted(&mut self, receipt: &Receipted) -> Vec<Item> {
        let Receipted { target, upto } = *receipt;
        let gone: Vec<u64> =
            self.items.range((target, 0)..=(target, upto)).map(|((_, number), _)| *number).collect();
        let gone: Vec<Item> =
            gone.into_iter().filter_map(|number| self.items.remove(&(target, number))).collect();
        if let Some(load) = self.loads.get_mut(&target) {
            load.items -= gone.len();
            load.bytes -= gone.iter().map(Item::weight).sum::<usize>();
            if load.items == 0 {
                self.loads.remove(&target);
            }
        }
        gone
    }
}

/// The same item, fit to be kept for long.
fn kept(item: Item) -> Item {
    match item {
        Item::Letter(letter) => {
            let (topic, body) = (keep(letter.topic), keep(letter.body));
            Item::Letter(Letter { topic, body, ..letter })
        }
        end => end,
    }
}

/// The target's end. See the top of the file.
pub struct Inbox {
    /// Source → the last number that was taken of its items.
    taken: Table<GroupId, u64>,
    #[cfg(feature = "faults")]
    faults: Faults,
}

impl Inbox {
    /// A group that nobody has told anything.
    #[must_use]
    pub fn new() -> Self {
        Self {
            taken: Table::new(113),
            #[cfg(feature = "faults")]
            faults: Faults::default(),
        }
    }

    /// Switches deliberate bugs on.
    #[cfg(feature = "faults")]
    pub fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    /// The digest of what was taken.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.taken.digest()
    }

    /// All tables, in the order in which a snapshot shows them.
    pub fn tables(&mut self) -> Vec<&mut dyn Rows> {
        alloc::vec![&mut self.taken]
    }

    /// Takes a row of the table from a snapshot.
    ///
    /// # Errors
    /// When it is none.
    pub fn load(&mut self, table: u64, input: &mut Bytes) -> Result<(), Malformed> {
        if table == self.taken.id() {
            load_row(&mut self.taken, input)
        } else {
            Err(Malformed("unknown table"))
        }
    }

    /// The last number that was taken of a source's items.
    #[must_use]
    pub fn taken(&self, source: GroupId) -> u64 {
        self.taken.get(&source).copied().unwrap_or(0)
    }

    /// The last number that was taken of each source's items.
    pub fn arrived(&self) -> impl Iterator<Item = (GroupId, u64)> {
        self.taken.iter().map(|(&source, &last)| (source, last))
    }

    /// A source begins to count anew.
    pub fn forget(&mut self, source: GroupId) {
        self.taken.remove(&source);
    }

    /// Shows what is new in a parcel to `take`, with its place in the parcel, in order, up to an item for which `take`
    /// has no room and says so. Returns the last number that is taken.
    pub fn take(&mut self, parcel: Parcel, mut take: impl FnMut(u32, Item) -> bool) -> u64 {
        let source = parcel.source;
        let mut last = self.taken(source);
        for ((place, number), item) in (0..).zip(parcel.first..).zip(parcel.items) {
            let new = number == last + 1;
            #[cfg(feature = "faults")]
            let new = new || (self.faults.taken_twice && number <= last && matches!(item, Item::Letter(_)));
            if new {
                if !take(place, item) {
                    break;
                }
                last = last.max(number);
            }
        }
        if last > self.taken(source) {
            self.taken.insert(source, last);
        }
        last
    }
}

impl Default for Inbox {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
