//! `quorate status` and `quorate members`: the cluster as a table.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use quorate_client::{Error, Member, PartitionInfo, Status};
use serde_json::json;

use crate::cluster::{Cluster, View, status_of};
use crate::show::Screen;
use crate::trouble::Trouble;

/// What is known of a group, from all nodes that answer.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Group {
    leader: Option<u64>,
    term: u64,
    commit: u64,
    /// Node → the index that it has applied.
    applied: BTreeMap<u64, u64>,
    replicas: Vec<u64>,
    target: Option<Vec<u64>>,
}

impl Group {
    /// Entries behind the commit at which a replica is called behind rather than under way.
    const BEHIND: u64 = 1000;

    fn health(&self) -> String {
        let missing: Vec<u64> =
            self.replicas.iter().copied().filter(|node| !self.applied.contains_key(node)).collect();
        let behind = self.applied.iter().filter(|&(_, &at)| at + Self::BEHIND < self.commit);
        let behind: Vec<u64> = behind.map(|(&node, _)| node).collect();
        if self.leader.is_none() {
            "no leader".to_owned()
        } else if !missing.is_empty() {
            format!("no answer from {}", numbers(&missing))
        } else if !behind.is_empty() {
            format!("node {} is behind", numbers(&behind))
        } else if let Some(target) = self.target.as_ref().filter(|target| !same(target, &self.replicas)) {
            format!("moves to {}", numbers(target))
        } else {
            "ok".to_owned()
        }
    }
}

/// Whether two lists name the same nodes.
pub(crate) fn same(a: &[u64], b: &[u64]) -> bool {
    a.iter().collect::<BTreeSet<_>>() == b.iter().collect::<BTreeSet<_>>()
}

fn numbers(nodes: &[u64]) -> String {
    nodes.iter().map(u64::to_string).collect::<Vec<_>>().join(",")
}

/// What every node says of itself; none from those that do not answer.
async fn ask_all(members: &[Member]) -> BTreeMap<u64, Result<Status, Error>> {
    let present = members.iter().filter(|member| !member.client.is_empty() && member.standing != "gone");
    let tasks: Vec<_> = present
        .map(|member| {
            let address = member.client.clone();
            (member.node, tokio::spawn(async move { status_of(&address).await }))
        })
        .collect();
    let mut all = BTreeMap::new();
    for (node, task) in tasks {
        all.insert(node, task.await.unwrap_or(Err(Error::Timeout)));
    }
    all
}

fn groups(
    partitions: &[PartitionInfo],
    statuses: &BTreeMap<u64, Result<Status, Error>>,
) -> BTreeMap<u64, Group> {
    let mut groups: BTreeMap<u64, Group> = BTreeMap::new();
    for partition in partitions {
        let group = groups.entry(partition.partition).or_default();
        group.leader = partition.leader;
        group.replicas = partition.replicas.clone();
        group.target = partition.target.clone();
    }
    for (&node, status) in statuses.iter().filter_map(|(node, status)| Some((node, status.as_ref().ok()?))) {
        for row in &status.groups {
            let group = groups.entry(row.group).or_default();
            group.commit = group.commit.max(row.commit);
            group.applied.insert(node, row.applied);
            if row.term >= group.term && (row.role == "leader" || row.term > group.term) {
                group.leader = row.leader;
            }
            group.term = group.term.max(row.term);
        }
    }
    for group in groups.values_mut().filter(|group| group.replicas.is_empty()) {
        group.replicas = group.applied.keys().copied().collect();
    }
    groups
}

/// Shows nodes and groups.
pub(crate) async fn status(cluster: &mut Cluster, screen: &Screen) -> Result<ExitCode, Trouble> {
    let view = cluster.view(None).await?;
    let statuses = ask_all(&view.members).await;
    let groups = groups(&view.partitions, &statuses);
    let health = |member: &Member| match statuses.get(&member.node) {
        Some(Ok(status)) if !status.lost.is_empty() => "lost groups".to_owned(),
        Some(Ok(status)) if status.has_session => "ok".to_owned(),
        Some(Ok(_)) => "no session".to_owned(),
        Some(Err(_)) => "no answer".to_owned(),
        None if member.standing == "gone" => "removed".to_owned(),
        // Of a node that has heard of no member yet, only the founding is known.
        None if member.standing == "unknown" => "unknown".to_owned(),
        None => "not started".to_owned(),
    };
    if screen.is_json() {
        let nodes = view.members.iter().map(|member| {
            let mut row = member_json(&view, member);
            row["health"] = json!(health(member));
            row
        });
        let rows = groups.iter().map(|(number, group)| {
            json!({ "group": number, "leader": group.leader, "term": group.term, "commit": group.commit,
                    "replicas": group.replicas, "health": group.health() })
        });
        screen.value(&json!({ "nodes": nodes.collect::<Vec<_>>(), "groups": rows.collect::<Vec<_>>() }));
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = vec![heading(&["node", "client", "peer", "standing", "holds", "leads", "health"])];
    rows.extend(view.members.iter().map(|member| {
        let mut row = member_row(&view, member);
        row.push(health(member));
        row
    }));
    screen.table(&rows);
    screen.line("");
    let mut rows = vec![heading(&["group", "leader", "term", "commit", "replicas", "health"])];
    rows.extend(groups.iter().map(|(number, group)| {
        let leader = group.leader.map_or_else(|| "-".to_owned(), |node| node.to_string());
        let (term, commit) = (group.term.to_string(), group.commit.to_string());
        vec![number.to_string(), leader, term, commit, numbers(&group.replicas), group.health()]
    }));
    screen.table(&rows);
    Ok(ExitCode::SUCCESS)
}

/// Lists the nodes.
pub(crate) async fn members(cluster: &mut Cluster, screen: &Screen) -> Result<ExitCode, Trouble> {
    let view = cluster.view(None).await?;
    if screen.is_json() {
        let rows: Vec<_> = view.members.iter().map(|member| member_json(&view, member)).collect();
        screen.value(&json!(rows));
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = vec![heading(&["node", "client", "peer", "standing", "holds", "leads"])];
    rows.extend(view.members.iter().map(|member| member_row(&view, member)));
    screen.table(&rows);
    Ok(ExitCode::SUCCESS)
}

fn heading(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

/// How many partitions a node holds.
fn holds(view: &View, node: u64) -> usize {
    view.partitions.iter().filter(|partition| partition.replicas.contains(&node)).count()
}

fn member_row(view: &View, member: &Member) -> Vec<String> {
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    vec![
        member.node.to_string(),
        or_dash(&member.client),
        or_dash(&member.peer),
        or_dash(&member.standing),
        holds(view, member.node).to_string(),
        member.leads.to_string(),
    ]
}

fn member_json(view: &View, member: &Member) -> serde_json::Value {
    json!({ "node": member.node, "client": member.client, "peer": member.peer, "standing": member.standing,
            "holds": holds(view, member.node), "leads": member.leads })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(leader: Option<u64>, applied: &[(u64, u64)]) -> Group {
        let applied = applied.iter().copied().collect();
        Group { leader, term: 2, commit: 5000, applied, replicas: vec![1, 2, 3], target: Some(vec![3, 2, 1]) }
    }

    #[test]
    fn a_groups_health_is_the_worst_that_is_known() {
        let all = [(1, 5000), (2, 4999), (3, 5000)];
        assert_eq!(group(Some(1), &all).health(), "ok");
        assert_eq!(group(None, &all).health(), "no leader");
        assert_eq!(group(Some(1), &all[..2]).health(), "no answer from 3");
        assert_eq!(group(Some(1), &[(1, 5000), (2, 10), (3, 5000)]).health(), "node 2 is behind");
        let moving = Group { target: Some(vec![1, 2, 4]), ..group(Some(1), &all) };
        assert_eq!(moving.health(), "moves to 1,2,4");
    }
}
