//! A group's replicated state: the system group's, or a partition's.
//!
//! Charter: what every group does with its state whatever it is: apply, read, digest, and show or load its rows for
//! snapshots. Which commands mean what is decided in `system.rs` and `partition.rs`.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::backup::Crossing;
use quorate_protocol::id::GroupId;
use quorate_protocol::peer::Work;
use quorate_protocol::reply::Reply;
use quorate_protocol::wire::{Malformed, Wire};

use crate::journal::Meta;
use crate::memory::Memory;
use crate::outbox::Outbox;
use crate::outcome::{Asker, Ctx, Outcomes};
use crate::partition::Partition;
use crate::portion::Portion;
use crate::store::Store;
use crate::system::System;
use crate::table::Rows;
use crate::trash::Trash;

/// What loading a row costs besides its bytes, in the time that as many bytes take.
pub const ROW_COST: usize = 512;

/// Rows on their way from a snapshot, in sections of one table each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sections {
    bytes: Bytes,
    /// Of the section that is begun: its table, and the rows that are left.
    table: u64,
    rows: u64,
}

impl Sections {
    /// The bytes of a chunk.
    #[must_use]
    pub fn new(bytes: Bytes) -> Self {
        Self { bytes, table: 0, rows: 0 }
    }

    /// Bytes that are left.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether all are loaded. A section that lacks rows never is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.rows == 0
    }
}

/// See the top of the file.
pub enum State {
    /// Of group 0.
    System(Box<System>),
    /// Of any other group.
    Partition(Box<Partition>),
}

impl State {
    /// The state before a group's first entry.
    #[must_use]
    pub fn new(group: GroupId, meta: &Meta) -> Self {
        if group == GroupId::SYSTEM {
            Self::System(Box::new(System::new(meta)))
        } else {
            Self::Partition(Box::new(Partition::new(group, meta.partitions)))
        }
    }

    /// A state without any row, to be loaded from a snapshot.
    #[must_use]
    pub fn empty(group: GroupId, meta: &Meta) -> Self {
        let mut state = Self::new(group, meta);
        state.tables().into_iter().for_each(Rows::clear);
        state
    }

    /// What goes over into another cluster; see `rebase.rs`. `arrived`: the last letter that each other group had of this one.
    ///
    /// # Errors
    /// When a number would not fit any more.
    pub fn rebased(
        self,
        group: GroupId,
        meta: &Meta,
        arrived: &BTreeMap<GroupId, u64>,
    ) -> Result<Self, &'static str> {
        Ok(match self {
            Self::System(system) => Self::System(Box::new(system.rebased(meta)?)),
            Self::Partition(partition) => {
                Self::Partition(Box::new(partition.rebased(group, meta.partitions, arrived)))
            }
        })
    }

    /// How far dead letters have crossed between this group and others; none for the system group, which has no letters.
    #[must_use]
    pub fn crossings(&self) -> Vec<Crossing> {
        if let Self::Partition(partition) = self { partition.crossings() } else { Vec::new() }
    }

    /// Switches deliberate bugs on.
    #[cfg(feature = "faults")]
    pub fn set_faults(&mut self, faults: &crate::engine::Faults) {
        match self {
            Self::System(system) => system.set_faults(faults),
            Self::Partition(partition) => partition.set_faults(faults),
        }
    }

    /// The digest of all rows.
    #[must_use]
    pub fn digest(&self) -> u64 {
        match self {
            Self::System(system) => system.digest(),
            Self::Partition(partition) => partition.digest(),
        }
    }

    /// What client sessions have been answered here.
    pub fn memory(&mut self) -> &mut Memory {
        match self {
            Self::System(system) => &mut system.memory,
            Self::Partition(partition) => &mut partition.memory,
        }
    }

    /// What the group has to tell others.
    #[must_use]
    pub fn outbox(&self) -> &Outbox {
        match self {
            Self::System(system) => &system.outbox,
            Self::Partition(partition) => &partition.outbox,
        }
    }

    /// Ends what group time has ended, as far as the portion goes.
    pub fn expire(&mut self, ctx: &Ctx, portion: &mut Portion, out: &mut Outcomes) {
        match self {
            Self::System(system) => system.expire(ctx, portion, out),
            Self::Partition(partition) => partition.expire(ctx, portion, out),
        }
    }

    /// Applies a command.
    pub fn apply(&mut self, ctx: &Ctx, asker: &Asker, work: Work, out: &mut Outcomes) {
        match self {
            Self::System(system) => system.apply(ctx, asker, work, out),
            Self::Partition(partition) => partition.apply(ctx, asker, work, out),
        }
    }

    /// Answers a read.
    #[must_use]
    pub fn read(&self, time: u64, work: &Work) -> Reply {
        match self {
            Self::System(system) => system.read(time, work),
            Self::Partition(partition) => partition.read(time, work),
        }
    }

    /// The version and the deadline of a key, if this state has keys; (0, none) of one that does not exist.
    #[must_use]
    pub fn line(&self, key: &Bytes, time: u64) -> Option<(u64, Option<u64>)> {
        match self {
            Self::System(_) => None,
            Self::Partition(partition) => Some(partition.store.line(key, time)),
        }
    }

    /// The keys, if this state has some.
    #[must_use]
    pub fn store(&self) -> Option<&Store> {
        if let Self::Partition(partition) = self { Some(&partition.store) } else { None }
    }

    /// The earliest group time at which something may end.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        match self {
            Self::System(system) => system.next_deadline(),
            Self::Partition(partition) => partition.next_deadline(),
        }
    }

    /// Gives all rows away, to be dropped bit by bit.
    pub fn discard(self, trash: &mut Trash) {
        match self {
            Self::System(system) => system.discard(trash),
            Self::Partition(partition) => partition.discard(trash),
        }
    }

    /// Throws away what was dropped at once.
    pub fn throw_away(&mut self, trash: &mut Trash) {
        if let Self::Partition(partition) = self {
            partition.throw_away(trash);
        }
    }

    /// All tables, in the order in which a snapshot shows them.
    pub(crate) fn tables(&mut self) -> Vec<&mut dyn Rows> {
        match self {
            Self::System(system) => system.tables(),
            Self::Partition(partition) => partition.tables(),
        }
    }

    /// Begins a walk over all rows as they are now.
    pub fn begin_walk(&mut self) {
        self.tables().into_iter().for_each(Rows::begin_walk);
    }

    /// Gives a walk up.
    pub fn end_walk(&mut self) {
        self.tables().into_iter().for_each(Rows::end_walk);
    }

    /// Shows the next rows of the walk, in sections of one table each: the table's number (u64), the number of rows
    /// (u64), the rows. `from` is the table to go on with, counted from 0, and moves on; false when all is shown.
    pub fn show(&mut self, from: &mut usize, target: usize, out: &mut Vec<u8>) -> (u64, bool) {
        let mut shown = 0;
        let mut tables = self.tables();
        while let Some(table) = tables.get_mut(*from) {
            if out.len() >= target {
                return (shown, true);
            }
            table.id().put(out);
            let count_at = out.len();
            0u64.put(out);
            let (rows, goes_on) = table.show(target, out);
            out[count_at..count_at + 8].copy_from_slice(&rows.to_le_bytes());
            shown += rows;
            if goes_on {
                return (shown, true);
            }
            *from += 1;
        }
        (shown, false)
    }

    /// Loads rows of sections that `show` has written, as far as `room` goes, which counts bytes, and `ROW_COST` of
    /// each row besides. Returns the number of rows.
    ///
    /// # Errors
    /// When the bytes are none.
    pub fn load(&mut self, sections: &mut Sections, room: &mut usize) -> Result<u64, Malformed> {
        let Sections { bytes, table, rows } = sections;
        let mut loaded = 0;
        while *room > 0 && !(bytes.is_empty() && *rows == 0) {
            if *rows == 0 {
                (*table, *rows) = (u64::take(bytes)?, u64::take(bytes)?);
                // So that sections without rows are not free.
                *room = room.saturating_sub(16);
                continue;
            }
            let before = bytes.len();
            match self {
                Self::System(system) => system.load(*table, bytes)?,
                Self::Partition(partition) => partition.load(*table, bytes)?,
            }
            *room = room.saturating_sub(ROW_COST + before - bytes.len());
            *rows -= 1;
            loaded += 1;
        }
        Ok(loaded)
    }

    /// Looks at rows of a snapshot that is mapped into memory, and takes from there what may lie there. `room` counts as
    /// that of `load` does.
    ///
    /// # Errors
    /// When the bytes are not what was written.
    pub fn look_at(&mut self, sections: &mut Sections, room: &mut usize) -> Result<(), Malformed> {
        let Sections { bytes, table, rows } = sections;
        let mut tables = self.tables();
        while *room > 0 && !(bytes.is_empty() && *rows == 0) {
            if *rows == 0 {
                (*table, *rows) = (u64::take(bytes)?, u64::take(bytes)?);
                *room = room.saturating_sub(16);
                continue;
            }
            let found = tables.iter_mut().find(|found| found.id() == *table);
            let found = found.ok_or(Malformed("unknown table"))?;
            while *room > 0 && *rows > 0 {
                let before = bytes.len();
                found.look_at(bytes)?;
                *room = room.saturating_sub(ROW_COST + before - bytes.len());
                *rows -= 1;
            }
        }
        Ok(())
    }

    /// Message bodies from this size on are taken from mapped snapshots.
    pub fn set_map_from(&mut self, from: usize) {
        if let Self::Partition(partition) = self {
            partition.queues.set_map_from(from);
        }
    }

    /// Whether anything of it may lie in a mapped snapshot.
    #[must_use]
    pub fn may_be_mapped(&self) -> bool {
        matches!(self, Self::Partition(_))
    }

    /// Whether there is anything that may lie in a mapped snapshot.
    #[must_use]
    pub fn has_bodies(&self) -> bool {
        matches!(self, Self::Partition(partition) if partition.queues.has_bodies())
    }

    /// What lies in mapped snapshots.
    pub fn mapped(&self) -> impl Iterator<Item = &Bytes> {
        if let Self::Partition(partition) = self { Some(partition.queues.mapped()) } else { None }
            .into_iter()
            .flatten()
    }

    /// Bytes in a mapped snapshot that were found not to be what was written, once.
    pub fn take_damage(&mut self) -> Option<Bytes> {
        if let Self::Partition(partition) = self { partition.queues.take_damage() } else { None }
    }
}
