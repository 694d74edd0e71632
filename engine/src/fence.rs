//! A partition's end of fencing: which tokens of locks are good here.
//!
//! Charter: compares the token of a fenced write with the floor of its lock, at the place in the log where the write
//! takes effect. Floors come from group 0: with a write that was sent under a new watch, or through the outbox, before the
//! lock's next holder is told of its grant (`lock/fencing.rs`).
//!
//! Invariants:
//! - A floor never falls as long as its row is there, whatever watches follow each other.
//! - Without a row nothing is executed but under a watch that is newer than all whose end was heard here: its floor is
//!   as good as what was forgotten.
//!
//! Subtlety: a floor may come before the write for which the watch was begun. It is kept under the watch's number, so that the
//! write finds it. Numbers are of all locks together, so the end of a newer watch of another lock makes such a write
//! wait for another watch: one more question, no harm.

use alloc::format;
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::op::Fence;
use quorate_protocol::peer::Floor;
use quorate_protocol::reply::{Code, Reply};
use quorate_protocol::wire::Malformed;
use quorate_protocol::wire_struct;

use crate::keep::keep;
use crate::table::{Rows, Table, load_row};
use crate::trash::Trash;

/// The number of what says only which tokens are stale: nobody held the lock, and nobody watches it.
pub const NO_WATCH: u64 = 0;

/// Deliberate bugs, for the tests of the checkers.
#[cfg(feature = "faults")]
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// A floor that comes through the outbox is passed over.
    pub floor_ignored: bool,
}

wire_struct! {
    /// What holds for a lock.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct FloorRow {
        /// The number of the newest watch.
        pub number: u64,
        /// The lowest token that is good.
        pub floor: u64,
    }
}

/// The refusal of a write under a token below the floor.
#[must_use]
pub fn stale(fence: &Fence, floor: u64) -> Reply {
    let (lock, token) = (fence.lock.escape_ascii(), fence.token);
    let text = format!(
        "{floor} is the lowest token of lock {lock} that is good, {token} is not; take the lock again"
    );
    Reply::error(Code::Fenced, text)
}

/// The refusal of a write under a token that nobody was ever given. Not as of a stale one: taking the lock again would go on
/// with what is wrong, a token that was read amiss or is of another cluster.
#[must_use]
pub fn never_given(fence: &Fence) -> Reply {
    let (lock, token) = (fence.lock.escape_ascii(), fence.token);
    let text = format!(
        "{token} was never given as a token of lock {lock}, which nobody holds; use the token that this cluster's LOCK answers"
    );
    Reply::error(Code::Err, text)
}

/// See the top of the file.
pub struct Fences {
    floors: Table<Bytes, FloorRow>,
    /// One row: the highest number of a watch whose end was heard.
    ended: Table<u8, u64>,
    #[cfg(feature = "faults")]
    faults: Faults,
}

impl Fences {
    /// A partition that has compared no tokens.
    #[must_use]
    pub fn new() -> Self {
        let mut ended = Table::new(304);
        ended.insert(0, 0);
        Self {
            floors: Table::new(303),
            ended,
            #[cfg(feature = "faults")]
            faults: Faults::default(),
        }
    }

    /// Switches deliberate bugs on.
    #[cfg(feature = "faults")]
    pub fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    /// The digest of it all.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.floors.digest().wrapping_add(self.ended.digest())
    }

    /// All tables, in the order in which a snapshot shows them.
    pub fn tables(&mut self) -> Vec<&mut dyn Rows> {
        alloc::vec![&mut self.floors, &mut self.ended]
    }

    /// Takes a row of one of the tables from a snapshot.
    ///
    /// # Errors
    /// When it is none.
    pub fn load(&mut self, table: u64, input: &mut Bytes) -> Result<(), Malformed> {
        match table {
            n if n == self.floors.id() => load_row(&mut self.floors, input),
            n if n == self.ended.id() => load_row(&mut self.ended, input),
            _ => Err(Malformed("unknown table")),
        }
    }

    /// Gives all rows away, to be dropped bit by bit.
    pub fn discard(self, trash: &mut Trash) {
        self.floors.discard(trash, |_| 0);
    }

    fn ended(&self) -> u64 {
        *self.ended.get(&0).expect("the row exists from the beginning")
    }

    /// Compares a write's token with the floor.
    ///
    /// # Errors
    /// The answer to the write, which must not be executed.
    pub fn check(&mut self, fence: &Fence) -> Result<(), Reply> {
        let mut row = self.floors.get(&fence.lock).copied();
        let newest = row.map_or(self.ended(), |row| row.number);
        if let Some(watch) = fence.watch.filter(|watch| watch.number > newest) {
            row = Some(self.raise(&fence.lock, watch.number, watch.floor));
        }
        if let Some(free) = fence.watch.filter(|watch| watch.number == NO_WATCH) {
            let stale = || stale(fence, free.floor);
            return Err(if fence.token < free.floor { stale() } else { never_given(fence) });
        }
        match row {
            Some(row) if fence.token < row.floor => Err(stale(fence, row.floor)),
            Some(_) => Ok(()),
            None => {
                let text =
                    "the tokens of this lock have just been forgotten here; not executed, send it again";
                Err(Reply::error(Code::Err, text))
            }
        }
    }

    /// Group 0 is about to grant the lock.
    pub fn hear(&mut self, floor: &Floor) {
        #[cfg(feature = "faults")]
        if self.faults.floor_ignored {
            return;
        }
        let newest = self.floors.get(&floor.lock).map_or(self.ended() + 1, |row| row.number);
        if floor.number >= newest {
            self.raise(&floor.lock, floor.number, floor.token);
        }
    }

    /// A watch is over: tokens are compared under a new one, if at all.
    pub fn end(&mut self, lock: &Bytes, number: u64) {
        if self.floors.get(lock).is_some_and(|row| row.number <= number) {
            self.floors.remove(lock);
        }
        self.ended.change(&0, |ended| *ended = number.max(*ended));
    }

    fn raise(&mut self, lock: &Bytes, number: u64, floor: u64) -> FloorRow {
        let old = self.floors.get(lock).map_or(0, |row| row.floor);
        let row = FloorRow { number, floor: floor.max(old) };
        self.floors.insert(keep(lock.clone()), row);
        row
    }
}

impl Default for Fences {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use quorate_protocol::op::Watch;

    use super::*;

    fn write(token: u64, watch: Option<(u64, u64)>) -> Fence {
        let watch = watch.map(|(number, floor)| Watch { number, floor });
        Fence { lock: "l".into(), token, watch }
    }

    fn code(checked: Result<(), Reply>) -> Option<Code> {
        checked.err().and_then(|reply| reply.failure().map(|failure| failure.code))
    }

    fn floor(number: u64, token: u64) -> Floor {
        Floor { lock: "l".into(), number, token }
    }

    #[test]
    fn a_token_below_the_floor_is_refused_and_the_floor_named() {
        let mut fences = Fences::new();
        assert_eq!(fences.check(&write(5, Some((1, 5)))), Ok(()));
        assert_eq!(fences.check(&write(5, None)), Ok(()), "a watch is there");
        fences.hear(&floor(1, 9));
        let refused = fences.check(&write(5, Some((1, 5)))).expect_err("it is stale");
        let failure = refused.failure().expect("an error");
        assert_eq!(failure.code, Code::Fenced);
        assert!(failure.text.starts_with("9 is the lowest token"), "{}", failure.text);
        assert_eq!(fences.check(&write(9, None)), Ok(()));
    }

    #[test]
    fn what_nobody_watches_is_refused_if_it_is_stale_and_never_executed() {
        let mut fences = Fences::new();
        assert_eq!(code(fences.check(&write(5, Some((NO_WATCH, 9))))), Some(Code::Fenced));
        assert_eq!(code(fences.check(&write(9, Some((NO_WATCH, 9))))), Some(Code::Err), "never given");
        assert_eq!(fences.check(&write(5, Some((1, 5)))), Ok(()), "nothing is kept of it");
        assert_eq!(code(fences.check(&write(5, Some((NO_WATCH, 9))))), Some(Code::Fenced));
        assert_eq!(
            code(fences.check(&write(9, Some((NO_WATCH, 9))))),
            Some(Code::Err),
            "likewise, though a row is there"
        );
    }

    #[test]
    fn a_floor_that_comes_before_the_first_write_counts() {
        let mut fences = Fences::new();
        fences.hear(&floor(1, 9));
        assert_eq!(code(fences.check(&write(5, Some((1, 5))))), Some(Code::Fenced));
    }

    #[test]
    fn an_older_watch_says_nothing() {
        let mut fences = Fences::new();
        assert_eq!(fences.check(&write(9, Some((2, 9)))), Ok(()));
        assert_eq!(code(fences.check(&write(5, Some((1, 5))))), Some(Code::Fenced));
        fences.hear(&floor(1, 20));
        assert_eq!(fences.check(&write(9, None)), Ok(()), "the floor of another watch is passed over");
        assert_eq!(fences.check(&write(9, Some((3, 4)))), Ok(()));
        assert_eq!(code(fences.check(&write(5, None))), Some(Code::Fenced), "a floor never falls");
    }

    #[test]
    fn behind_the_end_of_a_watch_only_a_newer_one_counts() {
        let mut fences = Fences::new();
        assert_eq!(fences.check(&write(5, Some((3, 5)))), Ok(()));
        fences.end(&"l".into(), 2);
        assert_eq!(fences.check(&write(5, None)), Ok(()), "the end of another watch");
        fences.end(&"l".into(), 3);
        for late in [None, Some((2, 1)), Some((3, 5))] {
            assert_eq!(code(fences.check(&write(5, late))), Some(Code::Err), "{late:?}");
        }
        fences.hear(&floor(3, 9));
        assert_eq!(
            code(fences.check(&write(9, None))),
            Some(Code::Err),
            "nothing comes back by a late floor"
        );
        assert_eq!(code(fences.check(&write(5, Some((4, 9))))), Some(Code::Fenced));
    }
}
