//! The holder's row of numbers. See `cache/walk.rs`.

use bytes::Bytes;
use quorate_protocol::cache::{Grant, Invalidation, LeaseGranted, LeaseName};

use super::super::Tracked;
use super::super::walk::{Kind, Walk};
use super::{Holder, Home, KEPT, KEPT_EMPTY, Lease, Line, SAY_AGAIN};

impl Holder {
    /// Adds what the holder of the node at this place is to the row. Of the age of what it asked for no more than `enough`
    /// counts.
    pub fn walk(&self, walk: &mut Walk<'_>, place: u8, enough: u64) {
        let Self {
            boot,
            homes,
            // A new generation has a number that nothing has had before.
            generation: _,
            evicted,
            // It is only taken apart.
            void: _,
            early,
            // It is only shown.
            invalidations: _,
            dirty,
            owed,
            leaving,
            words,
            effects,
            tracked,
            tracked_since: _,
            faults: _,
        } = self;
        assert!(*tracked == Tracked::Nothing, "the model has no clients that keep values themselves");
        assert!(!leaving, "no node of the model is told to stop");
        assert!(words.is_empty() && effects.is_empty(), "the model takes them at once");
        walk.plain(boot.0);
        for Home { leader, term, lease, lines, read, asked, since, watched, floors } in homes {
            walk.node(*leader);
            walk.plain(*term);
            // That nobody reads any more is as if what is asked for were lost, so how long it is ago tells nothing more.
            walk.plain(*read > 0 && walk.now <= read + KEPT);
            walk.plain(*read > 0 && walk.now <= read + KEPT_EMPTY);
            walk.plain(*watched);
            walk.plain(lease.is_some());
            if let Some(Lease { epoch, generation, until }) = lease {
                walk.one(Kind::Epoch(place), *epoch);
                walk.one(Kind::Generation(place), *generation);
                walk.left(*until);
            }
            walk.passed(*asked, SAY_AGAIN);
            walk.plain(*since > 0);
            walk.passed(*since, enough);
            walk.count(lines.len());
            for (key, Line { number, state, own }) in lines.iter() {
                walk.bytes(key);
                walk.one(Kind::Number(place), *number);
                walk.plain(*state as u8);
                walk.plain(own.is_some());
                own.inspect(|own| own.walk(walk));
            }
            floors.walk(walk, place);
        }
        dirty.walk(walk, place);
        walk.count(owed.len());
        owed.iter().for_each(|owed| owed.walk(walk, place));
        early.walk(walk, place);
        walk.count(evicted.len());
        for ((leader, lease), lines) in evicted {
            walk.node(Some(*leader));
            walk.lease(place, lease);
            for (key, number) in lines {
                walk.bytes(key);
                walk.one(Kind::Number(place), *number);
            }
        }
    }

    /// Whether a grant of a lease can do anything here, now or ever.
    #[must_use]
    pub fn heeds_lease(&self, now: u64, granted: &LeaseGranted) -> bool {
        let Some(home) = self.homes.get(granted.lease.group.slot()) else { return false };
        let until = granted.sent + granted.length;
        let longer = home.lease.is_none_or(|mine| mine.epoch != granted.lease.epoch || until > mine.until);
        // Whoever has not asked yet will ask now at the earliest.
        let asked = granted.sent >= if home.since == 0 { now } else { home.since };
        home.term <= granted.lease.term && until > now && longer && asked
    }

    /// Whether an invalidation can do anything here but be answered, now or ever.
    #[must_use]
    pub fn heeds_invalidation(&self, invalidation: &Invalidation) -> bool {
        let lease = &invalidation.lease;
        let home = &self.homes[lease.group.slot()];
        let new = |key: &Bytes| home.floors.is_raised_by(key, lease.term, invalidation.number);
        home.term <= lease.term && invalidation.keys.iter().any(new)
    }

    /// Whether a grant can be taken, now or ever, if the node has its lease by then.
    #[must_use]
    pub fn heeds_grant(&self, key: &[u8], grant: &Grant) -> bool {
        let term = grant.lease.term;
        let home = &self.homes[grant.lease.group.slot()];
        let overtaken = home.floors.is_above(key, term, grant.number) && !self.faults.late_fill;
        home.term <= term && !overtaken
    }

    /// Whether it has this lease.
    #[must_use]
    pub fn has_lease(&self, under: &LeaseName) -> bool {
        let home = &self.homes[under.group.slot()];
        home.term == under.term && home.lease.is_some_and(|lease| lease.epoch == under.epoch)
    }
}
