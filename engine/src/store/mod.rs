//! Keys of a partition: values, versions, deadlines.
//!
//! Charter: `write` changes keys, `read` looks at them, `scan` walks over their names, `room` says how much a command
//! needs and which keys can go. What is common lies here, and so do transactions.
//!
//! Invariants:
//! - A version is the serial number of the place in the log where the key was last written (`LogPos::serial`),
//!   so it rises with every write of any key and never repeats, also after DEL.
//! - A key's deadline takes effect at a log position, by the stamp there, once that lies behind it (`time.rs`, `is_over`); reads
//!   never look at a clock. From then on no command sees the key; it is removed when its turn has come (`portion.rs`).
//! - A command is done as a whole or refused and not done at all; of a transaction each command by itself, as in Redis.
//!
//! Subtlety: rows lie in the order of their names' hashes, so that a cursor of 56 bits can say how far SCAN has come.

mod read;
pub mod room;
mod scan;
mod write;

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::vec::Vec;
use bytes::Bytes;
use core::cell::Cell;
use quorate_protocol::limits::{STORE_MAX, STORE_ROW, VALUES_MAX};
use quorate_protocol::op::{FencedSet, Multi, Op};
use quorate_protocol::reply::{Code, Reply};
use quorate_protocol::wire::{Malformed, Wire};
use quorate_protocol::wire_struct;
use xxhash_rust::xxh3::xxh3_64;

use crate::keep::keep;
use crate::outcome::{Ctx, Outcome, Outcomes};
use crate::portion::Portion;
use crate::table::{Rows, Table, take_row};
use crate::time::{is_over, over_at};
use crate::trash::Trash;

/// When somebody last looked at a key here, in group time. Each replica has its own idea of that, so it is no part of the
/// state: it is never written down, and two rows that differ in it are equal.
#[derive(Debug, Clone, Default)]
pub struct Touched(Cell<u64>);

impl PartialEq for Touched {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Touched {}

impl Wire for Touched {
    fn put(&self, _: &mut Vec<u8>) {}

    fn take(_: &mut Bytes) -> Result<Self, Malformed> {
        Ok(Self::default())
    }
}

wire_struct! {
    /// A key's row.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Row {
        /// Its value.
        pub value: Bytes,
        /// The serial number of its last write.
        pub version: u64,
        /// Group time behind which it vanishes, in milliseconds.
        pub deadline: Option<u64>,
        /// When it was last looked at.
        pub touched: Touched,
    }
}

/// A key's name in its place: by hash first. Only the name is written down.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    hash: u64,
    key: Bytes,
}

impl Name {
    fn of(key: &Bytes) -> Self {
        Self { hash: xxh3_64(key), key: key.clone() }
    }
}

impl Wire for Name {
    fn put(&self, out: &mut Vec<u8>) {
        self.key.put(out);
    }

    fn take(input: &mut Bytes) -> Result<Self, Malformed> {
        Ok(Self::of(&Bytes::take(input)?))
    }
}

/// Deliberate bugs, for the tests of the checkers.
#[cfg(feature = "faults")]
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// NX, XX and IFVER hold whatever the key is.
    pub conditions_ignored: bool,
    /// A DEL of a key is answered and not done.
    pub lost_delete: bool,
    /// The commands of a transaction behind its first are answered and not done.
    pub half_multi: bool,
    /// A FLUSHALL is answered and not done.
    pub lost_flush: bool,
    /// A transaction does not look at what was watched.
    pub watch_ignored: bool,
    /// What a line's owner brings is written whatever the key's version is.
    pub brought_blindly: bool,
    /// A key goes a millisecond before its time.
    pub early_end: bool,
}

/// See the top of the file.
pub struct Store {
    rows: Table<Name, Row>,
    /// Derived: (deadline, key) of every row that has a deadline.
    deadlines: BTreeSet<(u64, Bytes)>,
    /// Deadlines of rows that were dropped at once, until they are thrown away.
    dropped: Vec<BTreeSet<(u64, Bytes)>>,
    /// Derived: what all rows cost, in bytes.
    bytes: u64,
    /// Keys that were evicted since the node started.
    evicted: u64,
    #[cfg(feature = "faults")]
    faults: Faults,
}

impl Store {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self {
            rows: Table::new(401),
            deadlines: BTreeSet::new(),
            dropped: Vec::new(),
            bytes: 0,
            evicted: 0,
            #[cfg(feature = "faults")]
            faults: Faults::default(),
        }
    }

    /// Switches deliberate bugs on.
    #[cfg(feature = "faults")]
    pub fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    /// The digest of all keys.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.rows.digest()
    }

    /// The number of keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// What all keys cost, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The first group time at which a key has to go.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.deadlines.first().map(|(deadline, _)| over_at(*deadline))
    }

    /// Removes the keys whose deadline group time has passed, as far as the portion goes.
    pub fn expire(&mut self, ctx: &Ctx, portion: &mut Portion, out: &mut Outcomes) {
        while let Some((deadline, key)) = self.deadlines.first() {
            if !is_over(*deadline, ctx.time) || !portion.take(1) {
                break;
            }
            let key = key.clone();
            self.remove(&key);
            out.push(Outcome::Expired(key));
        }
    }

    /// Applies a command.
    pub fn apply(&mut self, ctx: &Ctx, op: Op) -> Reply {
        match op {
            // Its token was compared before.
            Op::Set(op) | Op::FencedSet(FencedSet { set: op, .. }) => self.set(ctx, op),
            Op::SetBack(op) => self.set_back(ctx, op),
            Op::Flush(op) => self.bring(ctx, &op),
            Op::MSet(op) => self.mset(ctx, op),
            Op::Del(keys) => self.del(ctx, &keys),
            Op::Incr(op) => self.incr(ctx, op),
            Op::Append(op) => self.append(ctx, &op),
            Op::SetRange(op) => self.set_range(ctx, &op),
            Op::GetDel(key) => self.get_del(ctx, &key),
            Op::GetEx(op) => self.get_ex(ctx, op),
            Op::Expire(op) => self.expire_in(ctx, &op),
            Op::ExpireAt(op) => self.expire_at(ctx, &op),
            Op::Persist(key) => self.persist(ctx, key),
            Op::FlushAll => self.flush(),
            Op::Multi(op) => self.multi(ctx, *op),
            op if op.is_read() => self.read(&op, ctx.time),
            _ => Reply::error(Code::Err, "this command is not decided by a partition"),
        }
    }

    /// EXEC
    fn multi(&mut self, ctx: &Ctx, op: Multi) -> Reply {
        let Multi { watched, commands } = op;
        if !self.is_unchanged(&watched, ctx.time) {
            return Reply::Nil;
        }
        let mut answers = Answers::default();
        for op in commands.0 {
            #[cfg(feature = "faults")]
            if self.faults.half_multi && !answers.0.is_empty() && !op.is_read() {
                answers.0.push(Reply::OK);
                continue;
            }
            match answers.refusal(self.answer_bytes(&op, ctx.time)) {
                Some(refusal) => answers.0.push(refusal),
                None => answers.0.push(self.apply(ctx, op)),
            }
        }
        Reply::Array(answers.0)
    }

    fn is_unchanged(&self, watched: &[(Bytes, u64)], time: u64) -> bool {
        #[cfg(feature = "faults")]
        if self.faults.watch_ignored {
            return true;
        }
        watched.iter().all(|(key, version)| self.line(key, time).0 == *version)
    }

    /// The version and the deadline of a key; (0, none) of one that does not exist.
    #[must_use]
    pub fn line(&self, key: &Bytes, time: u64) -> (u64, Option<u64>) {
        self.seen(key, time).map_or((0, None), |row| (row.version, row.deadline))
    }

    /// The key's row, unless its time has come.
    fn seen(&self, key: &Bytes, time: u64) -> Option<&Row> {
        let row = self.rows.get(&Name::of(key)).filter(|row| is_seen(row, time))?;
        row.touched.0.set(time);
        Some(row)
    }

    /// Removes a key whose time has come, if `expire` has not got so far: no command sees it.
    fn remove_overdue(&mut self, ctx: &Ctx, key: &Bytes) {
        if self.seen(key, ctx.time).is_none() {
            self.remove(key);
        }
    }

    fn check_room(&self, grows: u64) -> Result<(), Reply> {
        if self.bytes + grows <= STORE_MAX {
            return Ok(());
        }
        // The leader has looked before. What comes here was proposed by one that did not know of all that is in the log.
        let text =
            format!("this partition's keys fill their {STORE_MAX} bytes; delete some, or let them expire");
        Err(Reply::error(Code::Err, text))
    }

    fn put(&mut self, ctx: &Ctx, key: &Bytes, value: Bytes, deadline: Option<u64>) {
        self.remove(key);
        let touched = Touched(Cell::new(ctx.time));
        self.add(keep(key.clone()), Row { value: keep(value), version: ctx.at.serial(), deadline, touched });
    }

    fn add(&mut self, key: Bytes, row: Row) {
        self.bytes += cost(&key, &row.value);
        if let Some(deadline) = row.deadline {
            self.deadlines.insert((deadline, key.clone()));
        }
        self.rows.insert(Name::of(&key), row);
    }

    fn remove(&mut self, key: &Bytes) -> bool {
        let Some(row) = self.rows.remove(&Name::of(key)) else { return false };
        self.bytes -= cost(key, &row.value);
        if let Some(deadline) = row.deadline {
            let was_there = self.deadlines.remove(&(deadline, key.clone()));
            assert!(was_there, "every deadline is in the index");
        }
        true
    }

    /// FLUSHALL. A million rows take a good part of a second to drop: that is done bit by bit.
    fn flush(&mut self) -> Reply {
        #[cfg(feature = "faults")]
        if self.faults.lost_flush {
            return Reply::OK;
        }
        self.rows.forget_all();
        self.dropped.push(core::mem::take(&mut self.deadlines));
        self.bytes = 0;
        Reply::OK
    }

    /// Throws away what was dropped at once.
    pub fn throw_away(&mut self, trash: &mut Trash) {
        self.rows.throw_away(trash, |row| row.value.len());
        for deadlines in self.dropped.drain(..) {
            trash.throw(deadlines.into_iter().map(|_| 0));
        }
    }

    /// All tables, in the order in which a snapshot shows them.
    pub fn tables(&mut self) -> Vec<&mut dyn Rows> {
        alloc::vec![&mut self.rows]
    }

    /// Takes a row of one of the tables from a snapshot.
    ///
    /// # Errors
    /// When it is none.
    pub fn load(&mut self, table: u64, input: &mut Bytes) -> Result<(), Malformed> {
        if table != self.rows.id() {
            return Err(Malformed("unknown table"));
        }
        let (key, row) = take_row::<Bytes, Row>(input)?;
        self.add(keep(key), Row { value: keep(row.value), ..row });
        Ok(())
    }

    /// Gives all rows away, to be dropped bit by bit.
    pub fn discard(mut self, trash: &mut Trash) {
        self.throw_away(trash);
        self.rows.discard(trash, |row| row.value.len());
        trash.throw(self.deadlines.into_iter().map(|_| 0));
    }
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

/// Answers of several commands, which come to `VALUES_MAX` bytes at the most.
#[derive(Default)]
struct Answers(Vec<Reply>);

impl Answers {
    /// The refusal of a command whose answer would be too much, before it is done.
    fn refusal(&self, more: usize) -> Option<Reply> {
        if more == 0 || more + self.0.iter().map(Reply::weight).sum::<usize>() <= VALUES_MAX {
            return None;
        }
        let text = format!("the answers come to more than {VALUES_MAX} bytes; ask for less at a time");
        Some(Reply::error(Code::TooBig, text))
    }
}

fn is_seen(row: &Row, time: u64) -> bool {
    row.deadline.is_none_or(|deadline| !is_over(deadline, time))
}

fn cost(key: &[u8], value: &[u8]) -> u64 {
    (key.len() + value.len()) as u64 + STORE_ROW
}

#[cfg(test)]
mod tests;
