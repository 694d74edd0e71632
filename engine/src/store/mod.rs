//! Keys of a partition: values, versions, deadlines.
//!
//! Invariants:
//! - A version is the serial number of the place in the log where the key was last written (`LogPos::serial`),
//!   so it rises with every write of any key and never repeats, also after DEL.
//! - A key's deadline takes effect at a log position, by the stamp there; reads never look at a clock. From then on no
//!   command sees it; it is removed when its turn has come (`portion.rs`).

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::limits::STORE_MAX;
use quorate_protocol::op::{Expire, Expiry, Incr, Op, Set, Ttl, When};
use quorate_protocol::reply::{Code, Reply};
use quorate_protocol::wire::Malformed;
use quorate_protocol::wire_struct;

use crate::keep::keep;
use crate::outcome::{Asker, Ctx, Outcomes, answer};
use crate::portion::Portion;
use crate::table::{Rows, Table, take_row};
use crate::trash::Trash;

/// What a key costs beyond its name and value.
const ROW_COST: u64 = 96;

wire_struct! {
    /// A key's row.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Row {
        /// Its value.
        pub value: Bytes,
        /// The serial number of its last write.
        pub version: u64,
        /// Group time at which it vanishes, in milliseconds.
        pub deadline: Option<u64>,
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
}

/// See the top of the file.
pub struct Store {
    rows: Table<Bytes, Row>,
    /// Derived: (deadline, key) of every row that has a deadline.
    deadlines: BTreeSet<(u64, Bytes)>,
    /// Derived: what all rows cost, in bytes.
    bytes: u64,
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
            bytes: 0,
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

    /// The earliest deadline of a key.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Removes the keys whose deadline group time has reached, as far as the portion goes.
    pub fn expire(&mut self, ctx: &Ctx, portion: &mut Portion, _out: &mut Outcomes) {
        while let Some((deadline, key)) = self.deadlines.first() {
            if *deadline > ctx.time || !portion.take(1) {
                break;
            }
            let key = key.clone();
            self.remove(&key);
        }
    }

    /// SET
    pub fn set(&mut self, ctx: &Ctx, asker: &Asker, op: Set, out: &mut Outcomes) {
        self.remove_overdue(ctx, &op.key);
        let old = self.rows.get(&op.key);
        let holds = match op.when {
            When::Always => true,
            When::Absent => old.is_none(),
            When::Present => old.is_some(),
            When::Version(version) => old.map_or(0, |row| row.version) == version,
        };
        #[cfg(feature = "faults")]
        let holds = holds || self.faults.conditions_ignored;
        let was = op.get.then(|| old.map_or(Reply::Nil, |row| Reply::Bulk(row.value.clone())));
        if !holds {
            return answer(out, *asker, was.unwrap_or(Reply::Nil));
        }
        let deadline = match op.expiry {
            Expiry::Never => None,
            Expiry::Keep => old.and_then(|row| row.deadline),
            Expiry::After(ms) => Some(ctx.time.saturating_add(ms)),
        };
        let grows = cost(&op.key, &op.value).saturating_sub(old.map_or(0, |row| cost(&op.key, &row.value)));
        if let Err(full) = self.check_room(grows) {
            return answer(out, *asker, full);
        }
        self.put(ctx, op.key, op.value, deadline);
        answer(out, *asker, was.unwrap_or(Reply::OK));
    }

    /// DEL
    pub fn del(&mut self, ctx: &Ctx, asker: &Asker, keys: Vec<Bytes>, out: &mut Outcomes) {
        #[cfg(feature = "faults")]
        if self.faults.lost_delete {
            return answer(out, *asker, Reply::Int(1));
        }
        let mut gone = 0u64;
        for key in &keys {
            self.remove_overdue(ctx, key);
            gone += u64::from(self.remove(key));
        }
        answer(out, *asker, Reply::int(gone));
    }

    /// INCR and its kind: a number is stored as its decimal digits.
    pub fn incr(&mut self, ctx: &Ctx, asker: &Asker, op: Incr, out: &mut Outcomes) {
        self.remove_overdue(ctx, &op.key);
        let old = self.rows.get(&op.key);
        let deadline = old.and_then(|row| row.deadline);
        let Some(number) = old.map_or(Some(0), |row| parse_integer(&row.value)) else {
            let text = "value is not an integer or out of range";
            return answer(out, *asker, Reply::error(Code::Err, text));
        };
        let Some(sum) = number.checked_add(op.by) else {
            let text = "increment or decrement would overflow";
            return answer(out, *asker, Reply::error(Code::Err, text));
        };
        if let Err(full) = self.check_room(if old.is_none() { cost(&op.key, b"") + 20 } else { 20 }) {
            return answer(out, *asker, full);
        }
        self.put(ctx, op.key, Bytes::from(format!("{sum}")), deadline);
        answer(out, *asker, Reply::Int(sum));
    }

    /// EXPIRE and PEXPIRE
    pub fn expire_key(&mut self, ctx: &Ctx, asker: &Asker, op: Expire, out: &mut Outcomes) {
        self.remove_overdue(ctx, &op.key);
        let Some(row) = self.rows.get(&op.key) else { return answer(out, *asker, Reply::Int(0)) };
        match u64::try_from(op.ms) {
            Err(_) | Ok(0) => {
                self.remove(&op.key);
            }
            Ok(ms) => {
                let value = row.value.clone();
                self.put(ctx, op.key, value, Some(ctx.time.saturating_add(ms)));
            }
        }
        answer(out, *asker, Reply::Int(1));
    }

    /// GET, EXISTS, TTL, at the group time of the applied state.
    #[must_use]
    pub fn read(&self, op: &Op, time: u64) -> Reply {
        match op {
            Op::Get(key) => self.seen(key, time).map_or(Reply::Nil, |row| Reply::Bulk(row.value.clone())),
            Op::Exists(keys) => {
                Reply::int(keys.iter().filter(|key| self.seen(key, time).is_some()).count() as u64)
            }
            Op::Ttl(Ttl { key, millis }) => self.ttl(key, *millis, time),
            _ => Reply::error(Code::Err, "this is not a read of a key"),
        }
    }

    /// The version and the deadline of a key; (0, none) of one that does not exist.
    #[must_use]
    pub fn line(&self, key: &Bytes, time: u64) -> (u64, Option<u64>) {
        self.seen(key, time).map_or((0, None), |row| (row.version, row.deadline))
    }

    fn ttl(&self, key: &Bytes, millis: bool, time: u64) -> Reply {
        match self.seen(key, time).map(|row| row.deadline) {
            None => Reply::Int(-2),
            Some(None) => Reply::Int(-1),
            Some(Some(deadline)) => {
                let left = deadline.saturating_sub(time);
                // Seconds are rounded to the nearest, as Redis does.
                Reply::int(if millis { left } else { (left + 500) / 1000 })
            }
        }
    }

    /// The key's row, unless its time has come.
    fn seen(&self, key: &Bytes, time: u64) -> Option<&Row> {
        self.rows.get(key).filter(|row| row.deadline.is_none_or(|deadline| deadline > time))
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
        let text =
            format!("this partition's keys fill their {STORE_MAX} bytes; delete some, or let them expire");
        Err(Reply::error(Code::Oom, text))
    }

    fn put(&mut self, ctx: &Ctx, key: Bytes, value: Bytes, deadline: Option<u64>) {
        self.remove(&key);
        self.add(keep(key), Row { value: keep(value), version: ctx.at.serial(), deadline });
    }

    fn add(&mut self, key: Bytes, row: Row) {
        self.bytes += cost(&key, &row.value);
        if let Some(deadline) = row.deadline {
            self.deadlines.insert((deadline, key.clone()));
        }
        self.rows.insert(key, row);
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
    pub fn discard(self, trash: &mut Trash) {
        self.rows.discard(trash, |row| row.value.len());
        trash.throw(self.deadlines.into_iter().map(|_| 0));
    }

    fn remove(&mut self, key: &Bytes) -> bool {
        let Some(row) = self.rows.remove(key) else { return false };
        self.bytes -= cost(key, &row.value);
        if let Some(deadline) = row.deadline {
            let was_there = self.deadlines.remove(&(deadline, key.clone()));
            assert!(was_there, "every deadline is in the index");
        }
        true
    }
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

fn cost(key: &[u8], value: &[u8]) -> u64 {
    (key.len() + value.len()) as u64 + ROW_COST
}

/// A number as Redis reads one: decimal, no blanks, no plus sign, no leading zeros, within 64 bits.
fn parse_integer(text: &[u8]) -> Option<i64> {
    let number: i64 = core::str::from_utf8(text).ok()?.parse().ok()?;
    (format!("{number}").as_bytes() == text).then_some(number)
}

#[cfg(test)]
mod tests;
