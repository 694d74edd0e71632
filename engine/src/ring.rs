//! Which nodes hold which partition: consistent hashing with virtual nodes.
//!
//! Every node stands at `VIRTUAL` points of a ring of 64-bit hashes; a partition's replicas are the first
//! distinct nodes clockwise from its own point, the first of them preferred as leader. A node that comes
//! or goes moves only the partitions next to its points.
//!
//! Source: Karger et al., "Consistent hashing and random trees", STOC 1997.

use alloc::vec::Vec;
use quorate_protocol::id::{GroupId, NodeId};
use quorate_protocol::limits::{REPLICAS, SYSTEM_VOTERS};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Points of each node: enough that shares differ by few per cent.
const VIRTUAL: u64 = 256;
const NODE_SEED: u64 = 1;
const GROUP_SEED: u64 = 2;

/// The nodes of a cluster on their ring.
#[derive(Debug, Clone)]
pub struct Ring {
    points: Vec<(u64, NodeId)>,
    nodes: Vec<NodeId>,
}

impl Ring {
    /// A ring of these nodes.
    #[must_use]
    pub fn new(nodes: impl IntoIterator<Item = NodeId>) -> Self {
        let mut nodes: Vec<_> = nodes.into_iter().collect();
        nodes.sort_unstable();
        nodes.dedup();
        let point = |node: NodeId, n: u64| {
            let mut key = [0; 16];
            key[..8].copy_from_slice(&node.0.to_le_bytes());
            key[8..].copy_from_slice(&n.to_le_bytes());
            (xxh3_64_with_seed(&key, NODE_SEED), node)
        };
        let mut points: Vec<_> =
            nodes.iter().flat_map(|&node| (0..VIRTUAL).map(move |n| point(node, n))).collect();
        points.sort_unstable();
        Self { points, nodes }
    }

    /// The nodes that hold a group, the preferred leader first.
    #[must_use]
    pub fn voters(&self, group: GroupId) -> Vec<NodeId> {
        if group == GroupId::SYSTEM {
            return self.nodes.iter().copied().take(SYSTEM_VOTERS).collect();
        }
        let at = xxh3_64_with_seed(&group.0.to_le_bytes(), GROUP_SEED);
        let start = self.points.partition_point(|&(point, _)| point < at);
        let mut voters = Vec::with_capacity(REPLICAS);
        for &(_, node) in self.points[start..].iter().chain(&self.points[..start]) {
            if !voters.contains(&node) {
                voters.push(node);
            }
            if voters.len() == REPLICAS {
                break;
            }
        }
        voters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(n: u64) -> Ring {
        Ring::new((1..=n).map(NodeId))
    }

    #[test]
    fn every_group_has_its_replicas() {
        for group in 0..=16 {
            assert_eq!(ring(1).voters(GroupId(group)), [NodeId(1)]);
            let mut voters = ring(3).voters(GroupId(group));
            voters.sort_unstable();
            assert_eq!(voters, [NodeId(1), NodeId(2), NodeId(3)]);
            assert_eq!(ring(7).voters(GroupId(group)).len(), if group == 0 { 5 } else { 3 });
        }
    }

    #[test]
    fn a_new_node_takes_only_its_share() {
        let (before, after) = (ring(5), ring(6));
        let groups = 1..=1000;
        let moved = groups.filter(|&g| {
            let old = before.voters(GroupId(g));
            let new = after.voters(GroupId(g));
            let others = new.iter().filter(|node| node.0 != 6 && !old.contains(node)).count();
            assert_eq!(others, 0, "only the new node gains");
            new.contains(&NodeId(6))
        });
        let moved = moved.count();
        assert!((350..650).contains(&moved), "about half of the groups get the sixth node: {moved}");
    }
}
