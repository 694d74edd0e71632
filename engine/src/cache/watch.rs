//! The home's news for nodes that watch: every key that is written, whoever holds it.
//!
//! Charter: a node with clients that track by prefix (CLIENT TRACKING BCAST) watches. It is told of writes behind their
//! application, and says that it has heard. Nothing waits for it: a write is answered whether it has heard or not.
//!
//! Invariants:
//! - From the grant that says `watch` on, until its lease is over, a node hears of every write or gets no more time: news
//!   that it does not confirm are said again, and once they are old its lease is not renewed. When it ends, the node
//!   tells its clients to forget everything.
//! - So nothing is lost silently, and what is kept here is bounded: `NEWS_MAX` keys, or as many as a lease's rest brings.
//!
//! Subtlety: a wish that was overtaken by a newer one counts for nothing, or a node would be taken for one that does not
//! watch while it believes that it does.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::cache::{CacheWord, Changed, LeaseName, Noted};
use quorate_protocol::id::{Boot, ConnId, NodeId};
use quorate_protocol::limits::NEWS_MAX;

use crate::effect::TICK;

/// How long news may be unconfirmed before they are said again; microseconds.
const SAY_AGAIN: u64 = 2 * TICK;
/// News that are older cost their node its lease; microseconds.
const OVERDUE: u64 = 4 * TICK;

/// News that were said and are not confirmed.
#[derive(Debug, Clone)]
struct News {
    number: u64,
    since: u64,
    said: u64,
    keys: Vec<(Bytes, u64)>,
}

#[derive(Debug, Clone, Default)]
struct Watcher {
    boot: Boot,
    epoch: u64,
    /// When its newest wish was sent, by its own clock, and what it was.
    asked: u64,
    watches: bool,
    /// Not said yet; `all`: every key of the group may have been written.
    fresh: Vec<(Bytes, u64)>,
    all: bool,
    since: u64,
    open: VecDeque<News>,
    /// Keys in `open` and `fresh`.
    kept: usize,
    number: u64,
    /// There were too many: it hears nothing more under this lease, and gets no more time.
    given_up: bool,
}

/// See the top of the file.
#[derive(Debug, Clone, Default)]
pub struct Watchers(BTreeMap<NodeId, Watcher>);

impl Watchers {
    /// A node that has this lease wishes to watch, or not to. Whether it does from now on.
    pub fn wish(&mut self, node: NodeId, boot: Boot, epoch: u64, sent: u64, watch: bool) -> bool {
        let known = self.0.get(&node).is_some_and(|watcher| watcher.epoch == epoch);
        if !known {
            if !watch {
                self.0.remove(&node);
                return false;
            }
            self.0.insert(node, Watcher { boot, epoch, ..Watcher::default() });
        }
        let Some(watcher) = self.0.get_mut(&node) else { return false };
        if sent >= watcher.asked {
            watcher.asked = sent;
            watcher.watches = watch;
            if !watch {
                watcher.forget();
            }
        }
        watcher.watches && !watcher.given_up
    }

    /// Whether a node that has this lease watches.
    pub fn hears(&self, node: NodeId, epoch: u64) -> bool {
        self.0.get(&node).is_some_and(|watcher| watcher.epoch == epoch && watcher.hears())
    }

    /// Whether nobody watches.
    #[cfg(feature = "faults")]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A node's lease is over.
    pub fn end(&mut self, node: NodeId) {
        self.0.remove(&node);
    }

    /// Whether a node has left news unconfirmed for so long that it gets no more time.
    #[must_use]
    pub fn owes(&self, node: NodeId, now: u64) -> bool {
        self.0.get(&node).is_some_and(|watcher| {
            let late = watcher.open.front().is_some_and(|news| now > news.since + OVERDUE);
            watcher.given_up || late
        })
    }

    /// A write of these keys is applied. `by`: whose it was, if it was a client's.
    pub fn changed(&mut self, now: u64, by: Option<&ConnId>, keys: &[Bytes]) {
        for (node, watcher) in self.0.iter_mut().filter(|(_, watcher)| watcher.hears()) {
            let own = by.filter(|conn| conn.node == *node && conn.boot() == watcher.boot);
            let by = own.map_or(0, ConnId::number);
            if watcher.fresh.is_empty() && !watcher.all {
                watcher.since = now;
            }
            watcher.fresh.extend(keys.iter().map(|key| (key.clone(), by)));
            watcher.kept += keys.len();
            if watcher.kept > NEWS_MAX {
                watcher.forget();
                watcher.given_up = true;
            }
        }
    }

    /// A write of all keys is applied.
    pub fn changed_all(&mut self, now: u64) {
        for watcher in self.0.values_mut().filter(|watcher| watcher.hears()) {
            watcher.kept -= watcher.fresh.len();
            watcher.fresh = Vec::new();
            (watcher.all, watcher.since) = (true, now);
        }
    }

    /// What is to be said for the first time. `name`: the lease of an epoch.
    pub fn take_words(&mut self, name: impl Fn(u64) -> LeaseName) -> Vec<(NodeId, CacheWord)> {
        let mut words = Vec::new();
        for (node, watcher) in &mut self.0 {
            if watcher.fresh.is_empty() && !watcher.all {
                continue;
            }
            watcher.number += 1;
            watcher.all = false;
            let (number, since) = (watcher.number, watcher.since);
            let keys = core::mem::take(&mut watcher.fresh);
            words.push((*node, word(name(watcher.epoch), number, keys.clone())));
            watcher.open.push_back(News { number, since, said: since, keys });
        }
        words
    }

    /// A node has heard.
    pub fn noted(&mut self, node: NodeId, noted: Noted) {
        let Some(watcher) = self.0.get_mut(&node).filter(|watcher| watcher.epoch == noted.lease.epoch) else {
            return;
        };
        if let Some(at) = watcher.open.iter().position(|news| news.number == noted.number) {
            let news = watcher.open.remove(at).expect("it was just found");
            watcher.kept -= news.keys.len();
        }
    }

    /// What is to be said again.
    pub fn tick(&mut self, now: u64, name: impl Fn(u64) -> LeaseName) -> Vec<(NodeId, CacheWord)> {
        let mut words = Vec::new();
        for (node, watcher) in &mut self.0 {
            for news in watcher.open.iter_mut().filter(|news| now >= news.said + SAY_AGAIN) {
                news.said = now;
                words.push((*node, word(name(watcher.epoch), news.number, news.keys.clone())));
            }
        }
        words
    }
}

impl Watcher {
    fn hears(&self) -> bool {
        self.watches && !self.given_up
    }

    fn forget(&mut self) {
        (self.fresh, self.all, self.kept) = (Vec::new(), false, 0);
        self.open.clear();
    }
}

/// No key names all of them.
fn word(lease: LeaseName, number: u64, keys: Vec<(Bytes, u64)>) -> CacheWord {
    CacheWord::Changed(Changed { lease, number, keys })
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use quorate_protocol::id::{GroupId, SessionId};

    use super::*;

    const NODE: NodeId = NodeId(2);

    fn name(epoch: u64) -> LeaseName {
        LeaseName { group: GroupId(1), term: 3, epoch }
    }

    fn watching() -> Watchers {
        let mut watchers = Watchers::default();
        assert!(watchers.wish(NODE, Boot(7), 1, 100, true));
        watchers
    }

    fn said(watchers: &mut Watchers) -> Vec<(u64, Vec<(Bytes, u64)>)> {
        let words = watchers.take_words(name).into_iter();
        words
            .map(|(node, word)| match word {
                CacheWord::Changed(changed) if node == NODE => (changed.number, changed.keys),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn what_is_not_confirmed_is_said_again_and_costs_the_lease() {
        let mut watchers = watching();
        watchers.changed(1000, None, &["k".into()]);
        assert_eq!(said(&mut watchers), [(1, vec![("k".into(), 0)])]);
        assert!(said(&mut watchers).is_empty(), "once");
        assert!(watchers.tick(1000 + SAY_AGAIN - 1, name).is_empty());
        assert_eq!(watchers.tick(1000 + SAY_AGAIN, name).len(), 1);
        assert!(!watchers.owes(NODE, 1000 + OVERDUE));
        assert!(watchers.owes(NODE, 1001 + OVERDUE));
        watchers.noted(NODE, Noted { lease: name(2), number: 1 });
        assert!(watchers.owes(NODE, 1001 + OVERDUE), "that was another lease");
        watchers.noted(NODE, Noted { lease: name(1), number: 1 });
        assert!(!watchers.owes(NODE, 1001 + OVERDUE));
        assert!(watchers.tick(1_000_000, name).is_empty());
    }

    #[test]
    fn a_write_names_the_watchers_own_connection_of_this_start_and_no_other() {
        let mut watchers = watching();
        for (node, boot, by) in [(NODE, 7, 5), (NODE, 6, 0), (NodeId(3), 7, 0)] {
            let conn = ConnId::new(node, SessionId(1), Boot(boot), 5);
            watchers.changed(1, Some(&conn), &["k".into()]);
            assert_eq!(said(&mut watchers)[0].1, [("k".into(), by)]);
        }
    }

    #[test]
    fn a_wish_that_was_overtaken_counts_for_nothing() {
        let mut watchers = watching();
        assert!(watchers.wish(NODE, Boot(7), 1, 99, false), "it was sent before the one that is known");
        watchers.changed(1, None, &["k".into()]);
        assert_eq!(said(&mut watchers).len(), 1);
        assert!(!watchers.wish(NODE, Boot(7), 1, 101, false));
        watchers.changed(1, None, &["k".into()]);
        watchers.changed_all(1);
        assert!(said(&mut watchers).is_empty());
        assert!(!watchers.owes(NODE, u64::MAX), "what it does not want it need not confirm");
    }

    #[test]
    fn who_is_told_of_too_much_loses_its_lease_and_nothing_is_kept() {
        let mut watchers = watching();
        let keys: Vec<Bytes> = (0..=NEWS_MAX).map(|_| "k".into()).collect();
        watchers.changed(1, None, &keys[1..]);
        assert!(!watchers.owes(NODE, 1));
        watchers.changed(1, None, &keys[..1]);
        assert!(watchers.owes(NODE, 1) && said(&mut watchers).is_empty());
        assert!(!watchers.wish(NODE, Boot(7), 1, 200, true), "not under this lease");
        watchers.end(NODE);
        assert!(watchers.wish(NODE, Boot(7), 2, 300, true));
        assert!(!watchers.owes(NODE, 1));
    }

    #[test]
    fn a_write_of_all_keys_names_none() {
        let mut watchers = watching();
        watchers.changed(1, None, &["k".into()]);
        watchers.changed_all(1);
        assert_eq!(said(&mut watchers), [(1, vec![])]);
    }
}
