//! How the cluster of a soak is: asked of each node by itself, with bounded patience, since nodes may be frozen.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use quorate_client::{GroupStatus, Node, Status};

use super::ledger::{GROUPS, Ledger, Phase};

/// Node → where its clients connect.
pub(super) type Nodes = BTreeMap<u64, String>;

const PATIENCE: Duration = Duration::from_secs(2);

fn counts(row: &GroupStatus) -> bool {
    matches!(row.role.as_str(), "leader" | "follower") && row.leader.is_some()
}

/// What keeps the cluster from being whole: every group is held by the nodes that are to hold it, each of which counts
/// for a majority and knows the leader. None if nothing does.
pub(super) async fn ailment(nodes: &Nodes) -> Option<String> {
    let mut told: BTreeMap<u64, Status> = BTreeMap::new();
    let mut partitions = Vec::new();
    for (&id, address) in nodes {
        let asked = async {
            let mut node = Node::connect(address, PATIENCE).await?;
            Ok::<_, quorate_client::Error>((node.status().await?, node.partitions().await?))
        };
        match asked.await {
            Ok((status, _)) if !status.has_session => return Some(format!("node {id} has no session")),
            Ok((status, rows)) => {
                told.insert(id, status);
                partitions = rows;
            }
            Err(error) => return Some(format!("node {id}: {error}")),
        }
    }
    let sound = |id: u64, group: u64| {
        told.get(&id).is_some_and(|status| status.groups.iter().any(|row| row.group == group && counts(row)))
    };
    if let Some(id) = nodes.keys().find(|id| !sound(**id, 0)) {
        return Some(format!("node {id} does not count in group 0"));
    }
    if partitions.len() + 1 != GROUPS {
        return Some(format!("{} partitions are told", partitions.len()));
    }
    for row in partitions {
        let held: BTreeSet<u64> = row.replicas.iter().copied().collect();
        let target: BTreeSet<u64> = row.target.iter().flatten().copied().collect();
        if held != target || !held.iter().all(|id| sound(*id, row.partition)) {
            let group = row.partition;
            return Some(format!(
                "group {group} is held by {held:?}, is to be by {target:?}, and not all count"
            ));
        }
    }
    None
}

/// Compares the digests that nodes tell, for as long as the soak lasts.
pub(super) async fn compare_digests(id: u64, address: String, ledger: Arc<Ledger>) {
    while ledger.phase() != Phase::End {
        tokio::time::sleep(Duration::from_millis(250)).await;
        let Ok(mut node) = Node::connect(&address, PATIENCE).await else { continue };
        // As long as it answers: a new connection each time would be most of the work.
        while let Ok(status) = node.status().await {
            for row in status.groups {
                ledger.digest(id, row.group, row.applied, row.digest);
            }
            if ledger.phase() == Phase::End {
                return;
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }
}

/// Group → what its holders say, (applied, digest) → how many.
type Said = BTreeMap<u64, BTreeMap<(u64, String), usize>>;

/// What keeps the replicas from being equal at the same moment; none if they are. Group 0 is held by all nodes, a
/// partition by three, or by all if there are fewer.
pub(super) async fn difference(nodes: &Nodes, ledger: &Ledger) -> Option<String> {
    let mut said = Said::new();
    for (&id, address) in nodes {
        let asked = async { Node::connect(address, PATIENCE).await?.status().await };
        match asked.await {
            Ok(status) => {
                for row in status.groups {
                    ledger.digest(id, row.group, row.applied, row.digest.clone());
                    *said.entry(row.group).or_default().entry((row.applied, row.digest)).or_default() += 1;
                }
            }
            Err(error) => return Some(format!("node {id}: {error}")),
        }
    }
    if said.len() != GROUPS {
        return Some(format!("{} groups are told", said.len()));
    }
    said.into_iter().find_map(|(group, said)| {
        let holders = if group == 0 { nodes.len() } else { nodes.len().min(3) };
        let alike = said.len() == 1 && said.values().all(|n| *n == holders);
        (!alike).then(|| format!("group {group}, wanted of {holders} nodes: {said:?}"))
    })
}
