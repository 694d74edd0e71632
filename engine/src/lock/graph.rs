//! Who waits for whom: finds the waits that could never end.
//!
//! By reduction: an owner without a waiting request is taken to release all it holds; requests are then
//! granted by the rules (shared, exclusive, first come first served, upgrades first); repeat. Owners that keep
//! a waiting request are deadlocked. (Holt, "Some deadlock properties of computer systems", 1972.)
//!
//! Invariant: before a request begins to wait, no set of owners is deadlocked. So a new deadlock contains the
//! owner of the new request, and only what that owner waits for, directly or not, has to be looked at.
//!
//! Subtlety: whoever holds nothing and waits for nothing else is waited for by nobody, so its request
//! closes no cycle. That is the common case, and it costs two look-ups.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::{Key, Locks, Owner};

/// What stands against a request: an owner, and whether it is enough that its own request ahead is granted.
struct Against<'a> {
    owner: &'a Owner,
    /// The request ahead; none for a holder.
    ahead: Option<&'a Key>,
    /// Whether both cannot hold the lock together.
    conflicts: bool,
}

impl Locks {
    /// The deadlock that the newest request of `owner` completes, as a witness: `a:L1 -> b:L2 -> a`.
    pub(super) fn find_cycle(&self, owner: &Owner) -> Option<String> {
        #[cfg(feature = "faults")]
        if self.faults.deadlock_ignored {
            return None;
        }
        let others = self.index.waits.get(owner).map_or(0, BTreeSet::len);
        if others <= 1 && !self.index.holds.contains_key(owner) {
            return None;
        }
        let stuck = self.stuck(owner);
        stuck.contains_key(owner).then(|| self.witness(owner, &stuck))
    }

    /// The owners among those that `owner` waits for (and itself) who keep a waiting request, each with one.
    fn stuck(&self, owner: &Owner) -> BTreeMap<Owner, Key> {
        let mut open: BTreeMap<&Owner, BTreeSet<&Key>> = BTreeMap::new();
        let mut to_see = Vec::from([owner]);
        while let Some(owner) = to_see.pop() {
            if open.contains_key(owner) {
                continue;
            }
            let requests: BTreeSet<&Key> = self.index.waits.get(owner).into_iter().flatten().collect();
            for key in &requests {
                to_see.extend(self.against(key).map(|against| against.owner));
            }
            open.insert(owner, requests);
        }
        let mut granted: BTreeSet<&Key> = BTreeSet::new();
        loop {
            let finished = |owner: &Owner| open.get(owner).is_some_and(BTreeSet::is_empty);
            let free = |key: &&&Key| {
                self.against(key).all(|against| {
                    let gone = finished(against.owner);
                    gone || (!against.conflicts && against.ahead.is_none_or(|ahead| granted.contains(ahead)))
                })
            };
            let now: Vec<&Key> = open.values().flatten().filter(free).copied().collect();
            if now.is_empty() {
                break;
            }
            for key in now {
                granted.insert(key);
                open.values_mut().for_each(|requests| {
                    requests.remove(key);
                });
            }
        }
        open.into_iter()
            .filter_map(|(owner, requests)| Some((owner.clone(), (*requests.first()?).clone())))
            .collect()
    }

    /// What stands against a waiting request: holders, and requests ahead of it in the queue.
    fn against(&self, key: &Key) -> impl Iterator<Item = Against<'_>> {
        let me = self.waits.get(key).expect("the caller names a waiting request");
        let (shared, name, place) = (me.shared, key.0.clone(), key.1);
        let others = |owner: &Owner| *owner != me.owner;
        let holders =
            self.holds_of(&name).filter(move |(_, hold)| others(&hold.owner)).map(move |(_, hold)| Against {
                owner: &hold.owner,
                ahead: None,
                conflicts: !(shared && hold.shared),
            });
        let others = |owner: &Owner| *owner != me.owner;
        let ahead = self.waits.range((name.clone(), 0)..(name.clone(), place));
        let ahead = ahead.filter(move |(_, wait)| others(&wait.owner)).map(move |(key, wait)| Against {
            owner: &wait.owner,
            ahead: Some(key),
            conflicts: !(shared && wait.shared),
        });
        holders.collect::<Vec<_>>().into_iter().chain(ahead.collect::<Vec<_>>())
    }

    /// A cycle among the stuck owners, beginning as near to `owner` as there is one.
    fn witness(&self, owner: &Owner, stuck: &BTreeMap<Owner, Key>) -> String {
        let mut path: Vec<&Owner> = Vec::new();
        let (mut at, _) = stuck.get_key_value(owner).expect("the owner is stuck");
        while !path.contains(&at) {
            path.push(at);
            let key = &stuck[at];
            let next = self.against(key).find_map(|against| {
                // Whoever is stuck and stands against the request, by holding or by standing ahead.
                stuck.get_key_value(against.owner).map(|(next, _)| next)
            });
            at = next.expect("a stuck request has a stuck owner against it");
        }
        let start = path.iter().position(|&owner| owner == at).expect("the path came back to it");
        let mut text = String::new();
        for owner in &path[start..] {
            text.push_str(&format!("{owner}:{} -> ", stuck[*owner].0.escape_ascii()));
        }
        text.push_str(&format!("{at}"));
        text
    }
}
