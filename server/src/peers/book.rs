//! Who the other nodes are, as far as this node knows, and where they are dialled.
//!
//! Charter: what the system group says (`Effect::Members`) counts before everything else. What it does not name yet
//! is known by hearsay: the founding, the answer to a join, a node that greets and says where it is. Members may
//! have changed while this node was down, so a node that it does not know is no stranger if it knows the cluster.
//!
//! Subtlety: what the system group says *here* may be the past: a node that was down, or that learns everything anew,
//! reads the log from where it stands. Meanwhile a member may have been removed and have come back with another
//! directory, and it may be the very leader from whom the rest of the log is to come. So a later life of a node than the
//! one that is known here is let in: its cluster has given it that number, and its replicas are not those of the
//! earlier life. A directory that was emptied by mistake is founded in the life that it had, and is refused.
//!
//! Invariants:
//! - In one life, a node that is known with a data directory is let in with that one only: another one may have
//!   forgotten what it promised.
//! - A removed node is not let in, and not dialled, until it begins another life.
//! - At most `NODES_MAX` nodes that are no members are known by hearsay.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use quorate_engine::effect::Member;
use quorate_protocol::id::{Identity, NodeId};
use quorate_protocol::limits::NODES_MAX;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

#[derive(Debug, Default)]
struct Rows {
    members: BTreeMap<NodeId, Member>,
    /// Data directories that this node's own log names.
    logged: BTreeMap<NodeId, (Identity, u32)>,
    /// Addresses by hearsay, and in which life the node said so.
    heard: BTreeMap<NodeId, (u32, String)>,
}

/// See the top of the file.
#[derive(Debug, Default)]
pub struct Book {
    rows: Mutex<Rows>,
    /// Another member says that this very node has been removed.
    disowned: AtomicBool,
    news: Notify,
}

impl Book {
    /// What is known before anybody was heard.
    pub fn begin(
        &self,
        addresses: impl IntoIterator<Item = (NodeId, String)>,
        logged: BTreeMap<NodeId, (Identity, u32)>,
    ) {
        let mut rows = self.rows.lock();
        rows.heard.extend(addresses.into_iter().map(|(node, address)| (node, (0, address))));
        rows.logged = logged;
        drop(rows);
        self.news.notify_waiters();
    }

    /// What the system group says.
    pub fn learn(&self, members: Vec<Member>) {
        let mut rows = self.rows.lock();
        rows.members = members.into_iter().map(|member| (member.node, member)).collect();
        let Rows { members, heard, .. } = &mut *rows;
        heard.retain(|node, (life, _)| members.get(node).is_none_or(|member| member.life < *life));
        drop(rows);
        self.news.notify_waiters();
    }

    /// Whether the system group has been heard of.
    #[must_use]
    pub fn is_informed(&self) -> bool {
        !self.rows.lock().members.is_empty()
    }

    /// Ends when something has changed since it was called.
    pub fn news(&self) -> Notified<'_> {
        self.news.notified()
    }

    /// Whether a node was a member in this life of its and is none any more.
    #[must_use]
    pub fn is_removed(&self, node: NodeId, life: u32) -> bool {
        let rows = self.rows.lock();
        rows.members.get(&node).is_some_and(|member| member.removed && member.life >= life)
    }

    /// Another member says that this node has been removed. Nobody who is removed comes back with its directory, so
    /// whoever knows of it is right, and the end of this node's own log need not have come here.
    pub fn disown(&self) {
        self.disowned.store(true, Ordering::Relaxed);
        self.news.notify_waiters();
    }

    /// Whether this node, in this life of its id, is known to have been removed.
    #[must_use]
    pub fn is_disowned(&self, own: NodeId, life: u32) -> bool {
        self.disowned.load(Ordering::Relaxed) || self.is_removed(own, life)
    }

    /// Whether a node with this data directory will never be let in again.
    #[must_use]
    pub fn is_over(&self, node: NodeId, identity: Identity, life: u32) -> bool {
        let is_retired = |member: &Member| member.retired.contains(&identity);
        self.is_removed(node, life) || self.rows.lock().members.get(&node).is_some_and(is_retired)
    }

    /// Why a node with this data directory, founded in this life of its, is not let in.
    #[must_use]
    pub fn objection(&self, node: NodeId, identity: Identity, life: u32) -> Option<String> {
        let rows = self.rows.lock();
        let id = node.0;
        if rows.members.get(&node).is_some_and(|member| member.removed && member.life >= life) {
            return Some(format!(
                "node {id} has been removed from this cluster; start it with an empty data directory and --join to \
                 bring it back under its id"
            ));
        }
        if rows.members.get(&node).is_some_and(|member| member.retired.contains(&identity)) {
            return Some(format!(
                "the data directory of node {id} belongs to a member that was removed; start the node with an empty \
                 one and --join"
            ));
        }
        if rows.identity(node).is_some_and(|(known, before)| known != identity && before >= life) {
            return Some(known_otherwise(node));
        }
        let known = rows.members.contains_key(&node) || rows.heard.contains_key(&node);
        (!known && rows.heard.len() >= NODES_MAX)
            .then(|| format!("node {id} is not known here, and neither are {NODES_MAX} others"))
    }

    /// Why a node that has no data yet may not join under this id.
    #[must_use]
    pub fn objection_to_join(&self, node: NodeId) -> Option<String> {
        let rows = self.rows.lock();
        let removed = rows.members.get(&node).is_some_and(|member| member.removed);
        (!removed && rows.identity(node).is_some()).then(|| known_otherwise(node))
    }

    /// A node that was let in says where it is: believed as long as the system group says nothing of it in this life.
    pub fn meet(&self, node: NodeId, address: &str, life: u32) {
        let mut rows = self.rows.lock();
        let told = (life, address.to_owned());
        let news = !address.is_empty()
            && rows.members.get(&node).is_none_or(|member| member.life < life)
            && rows.heard.get(&node).is_none_or(|known| *known != told && known.0 <= life);
        if news {
            rows.heard.insert(node, told);
            drop(rows);
            self.news.notify_waiters();
        }
    }

    /// The nodes of the cluster and where they are reached.
    #[must_use]
    pub fn addresses(&self) -> BTreeMap<NodeId, String> {
        let rows = self.rows.lock();
        let members = rows.members.values().filter(|member| !member.removed);
        let mut addresses: BTreeMap<NodeId, String> =
            members.map(|member| (member.node, member.peer_address.clone())).collect();
        // What is left of hearsay is later than what the system group says.
        addresses.extend(rows.heard.iter().map(|(node, (_, address))| (*node, address.clone())));
        addresses
    }
}

impl Rows {
    /// The data directory that a node is known with, and in which life. What the own log names is old where the system
    /// group speaks.
    fn identity(&self, node: NodeId) -> Option<(Identity, u32)> {
        match self.members.get(&node) {
            Some(member) => member.identity.map(|identity| (identity, member.life)),
            None => self.logged.get(&node).copied(),
        }
    }
}

fn known_otherwise(node: NodeId) -> String {
    let node = node.0;
    format!(
        "node {node} is known with another data directory; bring that directory back, or let the cluster forget the \
         node with `quorate member remove {node}` and start it with an empty directory and --join"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(node: u64, identity: u128, peer_address: &str, removed: bool) -> Member {
        Member {
            node: NodeId(node),
            identity: (identity > 0).then_some(Identity(identity)),
            life: 0,
            retired: vec![Identity(99)],
            client_address: String::new(),
            peer_address: peer_address.into(),
            removed,
        }
    }

    fn dialled(book: &Book) -> Vec<(u64, String)> {
        book.addresses().into_iter().map(|(node, address)| (node.0, address)).collect()
    }

    #[test]
    fn what_the_system_group_says_counts_before_hearsay() {
        let book = Book::default();
        let founders = [(NodeId(1), "a:1".to_owned()), (NodeId(2), "b:1".to_owned())];
        book.begin(founders, [(NodeId(2), (Identity(2), 0))].into());
        assert!(
            book.objection(NodeId(2), Identity(9), 0)
                .is_some_and(|why| why.contains("another data directory"))
        );
        assert!(book.objection(NodeId(4), Identity(4), 0).is_none(), "this node may be behind");
        book.meet(NodeId(4), "d:1", 0);
        assert_eq!(dialled(&book), [(1, "a:1".into()), (2, "b:1".into()), (4, "d:1".into())]);
        book.learn(vec![member(2, 0, "b:2", false), member(4, 4, "d:2", false), member(1, 1, "a:1", true)]);
        assert_eq!(
            dialled(&book),
            [(2, "b:2".into()), (4, "d:2".into())],
            "node 1 is gone, others have moved"
        );
        assert!(
            book.objection(NodeId(2), Identity(9), 0).is_none(),
            "it was added anew: any directory is its first"
        );
        let retired = book.objection(NodeId(2), Identity(99), 0);
        assert!(retired.is_some_and(|why| why.contains("that was removed")), "but none of its former life");
        assert!(book.is_removed(NodeId(1), 0) && !book.is_removed(NodeId(2), 0));
        assert!(!book.is_removed(NodeId(1), 1), "it reads of its former life");
        assert!(
            book.objection(NodeId(1), Identity(1), 0).is_some_and(|why| why.contains("has been removed"))
        );
        book.meet(NodeId(4), "d:3", 0);
        assert_eq!(dialled(&book)[1], (4, "d:2".into()), "hearsay is heard no more");
        assert!(book.objection_to_join(NodeId(4)).is_some(), "it has data somewhere");
        assert!(book.objection_to_join(NodeId(1)).is_none(), "a removed node may come back");
        assert!(book.objection_to_join(NodeId(7)).is_none());
    }

    /// Whoever reads the past of the cluster must not shut out the node from which the present is to come.
    #[test]
    fn a_later_life_of_a_node_than_the_one_known_here_is_let_in() {
        let book = Book::default();
        let founders = [(NodeId(1), "a:1".to_owned()), (NodeId(2), "b:1".to_owned())];
        book.begin(founders, [(NodeId(1), (Identity(1), 0))].into());
        let refused = |identity, life| book.objection(NodeId(1), Identity(identity), life).is_some();
        for removed in [false, true] {
            assert!(refused(7, 0), "emptied by mistake: it has forgotten what it promised");
            assert!(!refused(7, 1), "it was removed and has come back, says its cluster");
            assert!(refused(99, 0), "the log names another one");
            book.learn(vec![member(1, 1, "a:1", removed), member(2, 2, "b:1", false)]);
        }
        assert!(refused(99, 1), "a directory that was retired never comes back");
        assert_eq!(dialled(&book), [(2, "b:1".into())]);
        book.meet(NodeId(1), "a:2", 1);
        book.meet(NodeId(1), "a:0", 0);
        assert_eq!(dialled(&book), [(1, "a:2".into()), (2, "b:1".into())], "it has moved since");
        book.learn(vec![member(1, 1, "a:1", false), member(2, 2, "b:1", false)]);
        assert_eq!(dialled(&book)[0], (1, "a:2".into()), "that is still the past");
        book.learn(vec![Member { life: 1, ..member(1, 7, "a:3", false) }]);
        assert_eq!(dialled(&book), [(1, "a:3".into())], "the present has come");
        assert!(refused(8, 1) && !refused(7, 1) && !refused(8, 2));
    }

    #[test]
    fn hearsay_is_bounded() {
        let book = Book::default();
        for node in (1..=NODES_MAX as u64).map(NodeId) {
            assert!(book.objection(node, Identity(1), 0).is_none());
            book.meet(node, "x:1", 0);
        }
        assert!(book.objection(NodeId(1), Identity(1), 0).is_none(), "a node that was met is let in again");
        assert!(book.objection(NodeId(100_000), Identity(1), 0).is_some());
    }
}
