//! Who the other nodes are, as far as this node knows, and where they are dialled.
//!
//! Charter: what the system group says (`Effect::Members`) counts before everything else. What it does not name yet
//! is known by hearsay: the founding, the answer to a join, a node that greets and says where it is. Members may
//! have changed while this node was down, so a node that it does not know is no stranger if it knows the cluster.
//!
//! Invariants:
//! - A node that is known with a data directory is let in with that one only: another one may have forgotten
//!   what it promised.
//! - A removed node is not let in, and not dialled.
//! - At most `NODES_MAX` nodes are known by hearsay.

use std::collections::BTreeMap;

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
    logged: BTreeMap<NodeId, Identity>,
    /// Addresses by hearsay.
    heard: BTreeMap<NodeId, String>,
}

/// See the top of the file.
#[derive(Debug, Default)]
pub struct Book {
    rows: Mutex<Rows>,
    news: Notify,
}

impl Book {
    /// What is known before anybody was heard.
    pub fn begin(
        &self,
        addresses: impl IntoIterator<Item = (NodeId, String)>,
        logged: BTreeMap<NodeId, Identity>,
    ) {
        let mut rows = self.rows.lock();
        rows.heard.extend(addresses);
        rows.logged = logged;
        drop(rows);
        self.news.notify_waiters();
    }

    /// What the system group says.
    pub fn learn(&self, members: Vec<Member>) {
        let mut rows = self.rows.lock();
        rows.members = members.into_iter().map(|member| (member.node, member)).collect();
        let Rows { members, heard, .. } = &mut *rows;
        heard.retain(|node, _| !members.contains_key(node));
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

    /// Whether a node was a member and is none any more.
    #[must_use]
    pub fn is_removed(&self, node: NodeId) -> bool {
        self.rows.lock().members.get(&node).is_some_and(|member| member.removed)
    }

    /// Why a node with this data directory is not let in.
    #[must_use]
    pub fn objection(&self, node: NodeId, identity: Identity) -> Option<String> {
        let rows = self.rows.lock();
        let id = node.0;
        if rows.members.get(&node).is_some_and(|member| member.removed) {
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
        if rows.identity(node).is_some_and(|known| known != identity) {
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

    /// A node that was let in says where it is: believed as long as the system group says nothing of it.
    pub fn meet(&self, node: NodeId, address: &str) {
        let mut rows = self.rows.lock();
        let news = !address.is_empty()
            && !rows.members.contains_key(&node)
            && rows.heard.get(&node).is_none_or(|known| known != address);
        if news {
            rows.heard.insert(node, address.to_owned());
            drop(rows);
            self.news.notify_waiters();
        }
    }

    /// The nodes of the cluster and where they are reached.
    #[must_use]
    pub fn addresses(&self) -> BTreeMap<NodeId, String> {
        let rows = self.rows.lock();
        let mut addresses = rows.heard.clone();
        for member in rows.members.values() {
            if !member.removed {
                addresses.insert(member.node, member.peer_address.clone());
            }
        }
        addresses
    }
}

impl Rows {
    /// The data directory that a node is known with. What the own log names is old where the system group speaks.
    fn identity(&self, node: NodeId) -> Option<Identity> {
        match self.members.get(&node) {
            Some(member) => member.identity,
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
        book.begin(founders, [(NodeId(2), Identity(2))].into());
        assert!(
            book.objection(NodeId(2), Identity(9)).is_some_and(|why| why.contains("another data directory"))
        );
        assert!(book.objection(NodeId(4), Identity(4)).is_none(), "this node may be behind");
        book.meet(NodeId(4), "d:1");
        assert_eq!(dialled(&book), [(1, "a:1".into()), (2, "b:1".into()), (4, "d:1".into())]);
        book.learn(vec![member(2, 0, "b:2", false), member(4, 4, "d:2", false), member(1, 1, "a:1", true)]);
        assert_eq!(
            dialled(&book),
            [(2, "b:2".into()), (4, "d:2".into())],
            "node 1 is gone, others have moved"
        );
        assert!(
            book.objection(NodeId(2), Identity(9)).is_none(),
            "it was added anew: any directory is its first"
        );
        let retired = book.objection(NodeId(2), Identity(99));
        assert!(retired.is_some_and(|why| why.contains("that was removed")), "but none of its former life");
        assert!(book.is_removed(NodeId(1)) && !book.is_removed(NodeId(2)));
        assert!(book.objection(NodeId(1), Identity(1)).is_some_and(|why| why.contains("has been removed")));
        book.meet(NodeId(4), "d:3");
        assert_eq!(dialled(&book)[1], (4, "d:2".into()), "hearsay is heard no more");
        assert!(book.objection_to_join(NodeId(4)).is_some(), "it has data somewhere");
        assert!(book.objection_to_join(NodeId(1)).is_none(), "a removed node may come back");
        assert!(book.objection_to_join(NodeId(7)).is_none());
    }

    #[test]
    fn hearsay_is_bounded() {
        let book = Book::default();
        for node in (1..=NODES_MAX as u64).map(NodeId) {
            assert!(book.objection(node, Identity(1)).is_none());
            book.meet(node, "x:1");
        }
        assert!(book.objection(NodeId(1), Identity(1)).is_none(), "a node that was met is let in again");
        assert!(book.objection(NodeId(100_000), Identity(1)).is_some());
    }
}
