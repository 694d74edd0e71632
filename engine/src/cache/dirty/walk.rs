//! The row of numbers of what is unbrought. See `cache/walk.rs`.

use quorate_protocol::limits::DIRTY_WINDOW;

use super::super::walk::{Kind, Walk};
use super::{Dirty, Entry, Flying};

impl Dirty {
    /// Adds what the node at this place has to bring to the row.
    pub(in crate::cache) fn walk(&self, walk: &mut Walk<'_>, place: u8) {
        let Self {
            entries,
            due,
            // Follows from the entries.
            bytes: _,
            // A new flush has a number that nothing has had before.
            next: _,
            flushes,
            // They are only shown.
            counts: _,
            late: _,
        } = self;
        assert!(flushes.is_empty(), "the model takes them at once");
        let window = DIRTY_WINDOW * 1000;
        walk.count(entries.len());
        for (key, Entry { group: _, lease, number, evicted, base, value, since, flying }) in entries {
            walk.bytes(key);
            walk.lease(place, lease);
            walk.one(Kind::Number(place), *number);
            walk.node(*evicted);
            walk.one(Kind::Version, *base);
            walk.value(Some(value));
            walk.plain(since.is_some());
            since.inspect(|since| walk.passed(*since, window));
            walk.plain(flying.is_some());
            if let Some(Flying { id, value, since }) = flying {
                walk.one(Kind::Flush(place), *id);
                walk.value(Some(value));
                walk.passed(*since, window);
            }
        }
        walk.count(due.len());
        for (due, key) in due {
            walk.left(*due);
            walk.bytes(key);
        }
    }
}
