//! Who waits for whom: finds the waits that could never end.
//!
//! By reduction: an owner without a waiting request is taken to release all it holds; requests are then
//! granted by the rules (shared, exclusive, first come first served, upgrades first); repeat. Owners that keep
//! a waiting request are deadlocked. (Holt, "Some deadlock properties of computer systems", 1972.)
//!
//! Invariant: before a request begins to wait, no set of owners is deadlocked. So a new deadlock contains the
//! owner of the new request, and only what that owner waits for, directly or not, has to be looked at.
//!
//! Subtlety: whoever is waited for by nobody closes no cycle. That is the common case, and it costs a look-up
//! for each lock that the owner holds or waits for. Otherwise the search is linear in the
//! rows that it reaches, and so is the reduction: a queue is granted from its front, and looked at again only
//! when one of its holders is finished.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;

use super::{Key, Locks, Owner, Wait};

/// What an owner waits for, directly or not: up to which place of each lock's queue.
#[derive(Default)]
struct Seen<'a> {
    owners: BTreeSet<&'a Owner>,
    upto: BTreeMap<&'a Bytes, u64>,
    /// The owner with whom the search began is among those whom somebody else waits for.
    comes_back: bool,
}

/// A lock during the reduction.
struct Line<'a> {
    queue: VecDeque<(&'a Key, &'a Wait)>,
    /// Who holds it and is not finished, and whether exclusively.
    holders: BTreeMap<&'a Owner, bool>,
    exclusive: usize,
}

impl<'a> Line<'a> {
    fn hold(&mut self, owner: &'a Owner, exclusive: bool) {
        let before = self.holders.insert(owner, exclusive);
        self.exclusive += usize::from(exclusive);
        self.exclusive -= usize::from(before == Some(true));
    }

    fn release(&mut self, owner: &Owner) {
        let before = self.holders.remove(owner);
        self.exclusive -= usize::from(before == Some(true));
    }

    /// Grants the first request if the holders let it, and says whose it was.
    fn grant(&mut self) -> Option<&'a Owner> {
        let (_, wait) = *self.queue.front()?;
        let own = self.holders.get(&wait.owner).copied();
        let others = self.holders.len() - usize::from(own.is_some());
        let exclusive = self.exclusive - usize::from(own == Some(true));
        if (if wait.shared { exclusive } else { others }) > 0 {
            return None;
        }
        self.queue.pop_front();
        self.hold(&wait.owner, !wait.shared || own == Some(true));
        Some(&wait.owner)
    }
}

impl Locks {
    /// The deadlock that the newest request of `owner` completes, as a witness: `a:L1 -> b:L2 -> a`.
    pub(super) fn find_cycle(&self, owner: &Owner) -> Option<String> {
        #[cfg(feature = "faults")]
        if self.faults.deadlock_ignored {
            return None;
        }
        if !self.is_awaited(owner) {
            return None;
        }
        let seen = self.search(owner);
        if !seen.comes_back {
            return None;
        }
        let stuck = self.reduce(&seen);
        stuck.contains_key(owner).then(|| self.witness(owner, &stuck))
    }

    /// Whether somebody stands behind `owner` somewhere: waits for a lock that it holds, or behind its request.
    fn is_awaited(&self, owner: &Owner) -> bool {
        let mut holds = self.index.holds.get(owner).into_iter().flatten();
        let mut waits = self.index.waits.get(owner).into_iter().flatten();
        holds.any(|(name, _)| self.queue_of(name).any(|(_, wait)| wait.owner != *owner))
            || waits.any(|(name, place)| {
                self.waits.range((name.clone(), place + 1)..=(name.clone(), u64::MAX)).next().is_some()
            })
    }

    /// Whom `owner` waits for, directly or not. Each row of a queue is looked at once.
    fn search<'a>(&'a self, owner: &'a Owner) -> Seen<'a> {
        let mut seen = Seen::default();
        let mut to_see = Vec::from([owner]);
        while let Some(at) = to_see.pop() {
            if !seen.owners.insert(at) {
                continue;
            }
            for (name, place) in self.index.waits.get(at).into_iter().flatten() {
                seen.comes_back |= at != owner && self.stands_before(owner, name, *place);
                let from = seen.upto.get(name).copied();
                if from.is_none() {
                    to_see.extend(self.holds_of(name).map(|(_, hold)| &hold.owner));
                }
                let from = from.unwrap_or(0);
                if *place >= from {
                    let ahead = self.waits.range((name.clone(), from)..(name.clone(), *place));
                    to_see.extend(ahead.map(|(_, wait)| &wait.owner));
                    seen.upto.insert(name, *place);
                }
            }
        }
        seen
    }

    /// Whether an owner holds a lock, or waits for it before this place.
    fn stands_before(&self, owner: &Owner, name: &Bytes, place: u64) -> bool {
        let any = |keys: Option<&BTreeSet<Key>>, end: u64| {
            keys.is_some_and(|keys| keys.range((name.clone(), 0)..(name.clone(), end)).next().is_some())
        };
        any(self.index.holds.get(owner), u64::MAX) || any(self.index.waits.get(owner), place)
    }

    /// The owners among those seen who keep a waiting request, each with one.
    fn reduce<'a>(&'a self, seen: &Seen<'a>) -> BTreeMap<&'a Owner, &'a Key> {
        let waits = |owner: &Owner| self.index.waits.get(owner).map_or(0, BTreeSet::len);
        let mut open: BTreeMap<&Owner, usize> =
            seen.owners.iter().map(|&owner| (owner, waits(owner))).collect();
        let mut held: BTreeMap<&Owner, Vec<&Bytes>> = BTreeMap::new();
        let mut lines: BTreeMap<&Bytes, Line<'_>> = BTreeMap::new();
        for (&name, &place) in &seen.upto {
            let queue = self.waits.range((name.clone(), 0)..=(name.clone(), place)).collect();
            let mut line = Line { queue, holders: BTreeMap::new(), exclusive: 0 };
            // Whoever waits for nothing is taken to release all it holds.
            for (_, hold) in self.holds_of(name).filter(|(_, hold)| open[&hold.owner] > 0) {
                line.hold(&hold.owner, !hold.shared);
                held.entry(&hold.owner).or_default().push(name);
            }
            lines.insert(name, line);
        }
        let mut to_look: Vec<&Bytes> = lines.keys().copied().collect();
        while let Some(name) = to_look.pop() {
            while let Some(owner) = lines.get_mut(name).and_then(Line::grant) {
                held.entry(owner).or_default().push(name);
                let left = open.get_mut(owner).expect("whoever stands in a queue was seen");
                *left -= 1;
                if *left > 0 {
                    continue;
                }
                for freed in held.remove(owner).unwrap_or_default() {
                    lines.get_mut(freed).expect("it was held in the reduction").release(owner);
                    to_look.push(freed);
                }
            }
        }
        lines.into_values().flat_map(|line| line.queue).map(|(key, wait)| (&wait.owner, key)).collect()
    }

    /// A stuck owner whom a stuck request waits for: one that cannot hold the lock together with it.
    fn blocker<'a>(&self, key: &Key, stuck: &BTreeMap<&'a Owner, &'a Key>) -> Option<&'a Owner> {
        let me = self.waits.get(key).expect("a stuck request waits");
        let find = |owner: &Owner, shared: bool| {
            let conflicts = *owner != me.owner && !(shared && me.shared);
            stuck.get_key_value(owner).filter(|_| conflicts).map(|(owner, _)| *owner)
        };
        let holder = self.holds_of(&key.0).find_map(|(_, hold)| find(&hold.owner, hold.shared));
        let mut ahead = self.waits.range((key.0.clone(), 0)..key.clone());
        holder.or_else(|| ahead.find_map(|(_, wait)| find(&wait.owner, wait.shared)))
    }

    /// A cycle among the stuck owners, beginning as near to `owner` as there is one.
    fn witness(&self, owner: &Owner, stuck: &BTreeMap<&Owner, &Key>) -> String {
        let mut path: Vec<&Owner> = Vec::new();
        let mut places: BTreeMap<&Owner, usize> = BTreeMap::new();
        let (&first, _) = stuck.get_key_value(owner).expect("the owner is stuck");
        let mut at = first;
        while !places.contains_key(at) {
            places.insert(at, path.len());
            path.push(at);
            at = self.blocker(stuck[at], stuck).expect("a stuck request has a stuck owner against it");
        }
        let mut text = String::new();
        for owner in &path[places[at]..] {
            text.push_str(&format!("{owner}:{} -> ", stuck[*owner].0.escape_ascii()));
        }
        text.push_str(&format!("{at}"));
        text
    }
}
