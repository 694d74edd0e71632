//! What nobody needs any more, taken apart bit by bit.
//!
//! Charter: a state of a million rows takes a good part of a second to drop, and so does a long log. Whoever lets go of
//! such a thing throws it here, and the engine digs a part of it away in each turn.
//!
//! Invariant: a turn drops `PORTION` at the most, whatever was thrown, and a last thing that is larger.

use alloc::boxed::Box;
use alloc::collections::VecDeque;

/// What a turn drops: about a millisecond's worth of rows, or of memory that goes back to the system.
const PORTION: usize = 1 << 20;
/// What dropping one thing costs besides its bytes.
const EACH: usize = 256;

/// See the top of the file. Each heap drops a thing with every step, and says how many bytes it had.
#[derive(Default)]
pub struct Trash(VecDeque<Box<dyn Iterator<Item = usize> + Send>>);

impl Trash {
    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes things that are dropped as they are shown.
    pub fn throw(&mut self, mut heap: impl Iterator<Item = usize> + Send + 'static) {
        // Most containers are empty or nearly so.
        if (0..4).all(|_| heap.next().is_some()) {
            self.0.push_back(Box::new(heap));
        }
    }

    /// Takes over what another one holds.
    pub fn append(&mut self, other: &mut Self) {
        self.0.append(&mut other.0);
    }

    /// Drops a turn's portion; the number of things.
    pub fn dig(&mut self) -> usize {
        let (mut room, mut dropped) = (PORTION, 0);
        while room > 0
            && let Some(heap) = self.0.front_mut()
        {
            match heap.next() {
                Some(bytes) => {
                    dropped += 1;
                    room = room.saturating_sub(EACH + bytes);
                }
                None => _ = self.0.pop_front(),
            }
        }
        dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn a_turn_drops_a_portion() {
        let mut trash = Trash::default();
        trash.throw(vec![0u64; 10_000].into_iter().map(|_| 0));
        trash.throw(vec![0u64; 10].into_iter().map(|_| PORTION));
        let mut turns = vec![];
        while !trash.is_empty() {
            turns.push(trash.dig());
        }
        assert_eq!(turns[..2], [PORTION / EACH; 2], "small things");
        assert!(turns[3..].iter().all(|&dropped| dropped <= 1), "large things one by one: {turns:?}");
        assert!(turns.iter().sum::<usize>() >= 10_010 - 8, "all were dropped: {turns:?}");
    }
}
