//! `quorate member`: who belongs to the cluster, and how far the replicas have moved because of it.
//!
//! Subtlety: the cluster decides at once and moves afterwards, by itself. Waiting here only watches.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use quorate_client::{Member, PartitionInfo};
use serde_json::json;

use crate::args::{Change, Whom};
use crate::cluster::{Cluster, View};
use crate::show::Screen;
use crate::status::same;
use crate::trouble::{INTERRUPTED, Trouble};

/// Between two looks at the cluster.
const PAUSE: Duration = Duration::from_millis(200);

/// A change, as it is sent and watched.
struct Wish {
    words: Vec<String>,
    node: String,
    wait: bool,
    /// The standing that MEMBERS shows in the end.
    standing: &'static str,
    /// What is said when it has come about.
    done: &'static str,
}

impl Wish {
    fn of(change: &Change) -> Self {
        let (verb, node, wait, standing, done) = match change {
            Change::Add { id, wait, .. } => ("ADD", id, *wait, "active", "has its share"),
            Change::Drain(Whom { id, wait }) => {
                ("DRAIN", id, *wait, "draining", "is drained: it holds no partition")
            }
            Change::Remove(Whom { id, wait }) => {
                ("REMOVE", id, *wait, "gone", "is removed; its process can be stopped")
            }
            Change::Cancel(Whom { id, wait }) => ("CANCEL", id, *wait, "active", "has its share"),
        };
        let mut words = vec!["MEMBER".to_owned(), verb.to_owned(), node.clone()];
        if let Change::Add { address, .. } = change {
            words.push(address.clone());
        }
        Self { words, node: node.clone(), wait, standing, done }
    }

    fn leaves(&self) -> bool {
        self.standing != "active"
    }

    /// Whether the change had been decided before it was asked for.
    fn is_old(&self, before: &View, node: u64) -> bool {
        match before.members.iter().find(|member| member.node == node) {
            Some(row) => !row.standing.is_empty() && heard(row, self.standing),
            None => self.standing == "gone",
        }
    }

    /// What is to be said when so few nodes are left to hold groups that none of them, or no second one, may fail.
    fn thin(&self, before: &View, node: u64) -> Option<String> {
        let active = before.members.iter().filter(|member| member.standing == "active");
        let left = active.filter(|member| member.node != node).count();
        let text = match left {
            _ if !self.leaves() => return None,
            1 => "1 active node is left: each group has one replica there, and is lost with it".to_owned(),
            2 => "2 active nodes are left: groups have two replicas, and stand still when either node fails"
                .to_owned(),
            _ => return None,
        };
        Some(format!("{text}; add a node, or `quorate member cancel` one that is draining"))
    }
}

/// Has the cluster decide, and watches what follows if that is wanted.
pub(crate) async fn run(
    cluster: &mut Cluster,
    screen: &Screen,
    change: &Change,
) -> Result<ExitCode, Trouble> {
    let wish = Wish::of(change);
    let before = cluster.view(None).await.ok();
    let reply = cluster.client().await?.call(wish.words.clone()).await?;
    let node: u64 =
        wish.node.parse().map_err(|_| Trouble::internal("a node id that is no number was taken"))?;
    let note = |text: &str| {
        if !screen.is_json() {
            screen.note(text)
        }
    };
    let already = before.as_ref().is_some_and(|before| wish.is_old(before, node));
    if let Some(text) = before.as_ref().and_then(|before| wish.thin(before, node)).filter(|_| !already) {
        note(&text);
    }
    if !wish.wait {
        screen.reply(&reply);
        note(&if already {
            let standing = if wish.standing == "gone" { "being removed" } else { wish.standing };
            format!("node {node} was {standing} already; `quorate status` shows whether replicas still move")
        } else {
            "replicas move now; `quorate status` shows how far they are".to_owned()
        });
        return Ok(ExitCode::SUCCESS);
    }
    tokio::select! {
        () = watch(cluster, screen, &wish, node) => Ok(ExitCode::SUCCESS),
        _ = tokio::signal::ctrl_c() => {
            let back = if wish.standing == "active" { "" } else { "; `quorate member cancel` takes it back" };
            let text = format!("interrupted, but the change goes on; `quorate status` shows how far it is{back}");
            Err(Trouble::new(INTERRUPTED, text))
        }
    }
}

/// How far a change is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The node that was asked does not know of the change yet.
    Unheard,
    /// The new node has not come yet.
    Absent,
    /// So many partitions of those concerned have moved.
    Moved(usize),
    /// All have.
    Done,
}

/// The partitions that a change concerns, as they are found one by one.
#[derive(Debug, Default)]
struct Concerned(BTreeSet<u64>);

impl Concerned {
    fn stage(&mut self, view: &View, node: u64, standing: &str) -> Stage {
        let Some(row) = view.members.iter().find(|member| member.node == node) else {
            return if standing == "gone" { Stage::Done } else { Stage::Unheard };
        };
        let leaves = standing != "active";
        if !heard(row, standing) {
            return Stage::Unheard;
        }
        let touches = |partition: &&PartitionInfo| {
            let wanted = partition.target.iter().any(|target| target.contains(&node));
            wanted || partition.replicas.contains(&node)
        };
        self.0.extend(view.partitions.iter().filter(touches).map(|partition| partition.partition));
        if row.client.is_empty() && !leaves {
            return Stage::Absent;
        }
        let in_place = |partition: &&PartitionInfo| match &partition.target {
            _ if partition.replicas.is_empty() => false,
            Some(target) => same(target, &partition.replicas),
            None => !leaves || !partition.replicas.contains(&node),
        };
        let concerned = |partition: &&PartitionInfo| self.0.contains(&partition.partition);
        let moved = view.partitions.iter().filter(concerned).filter(in_place).count();
        let unknown = view.partitions.iter().any(|partition| partition.replicas.is_empty());
        let arrived = row.standing.is_empty() || row.standing == standing;
        if moved == self.0.len() && !unknown && arrived { Stage::Done } else { Stage::Moved(moved) }
    }
}

/// Whether a node's row shows that the change has been decided. A node that does not tell standings has to be believed.
fn heard(row: &Member, standing: &str) -> bool {
    let on_its_way = standing == "gone" && matches!(&row.standing[..], "leaving" | "closing");
    row.standing.is_empty() || row.standing == standing || on_its_way
}

async fn watch(cluster: &mut Cluster, screen: &Screen, wish: &Wish, node: u64) {
    let mut concerned = Concerned::default();
    let mut said = String::new();
    let mut tell = |text: String, moved: usize, of: usize, done: bool| {
        let progress = json!({ "node": node, "moved": moved, "of": of, "done": done }).to_string();
        let line = if screen.is_json() { progress } else { format!("node {node}: {text}") };
        if said != line {
            screen.line(&line);
            said = line;
        }
    };
    let without = wish.leaves().then_some(node);
    loop {
        let view = cluster.view(without).await;
        let stage = view.as_ref().map(|view| concerned.stage(view, node, wish.standing));
        let of = concerned.0.len();
        match stage {
            Err(error) => tell(format!("waiting for a node that answers ({error})"), 0, of, false),
            Ok(Stage::Unheard) => {}
            Ok(Stage::Absent) => {
                tell(
                    "waiting for it; start it with --join and an empty data directory".to_owned(),
                    0,
                    of,
                    false,
                );
            }
            Ok(Stage::Moved(moved)) => tell(format!("{moved} of {of} groups moved"), moved, of, false),
            Ok(Stage::Done) => {
                tell(format!("{of} of {of} groups moved"), of, of, true);
                if !screen.is_json() {
                    screen.line(&format!("node {node} {}", wish.done));
                }
                return;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(standing: &str, client: &str, partitions: &[(&[u64], &[u64])]) -> View {
        let member = |node, standing: &str, client: &str| Member {
            node,
            client: client.to_owned(),
            peer: String::new(),
            standing: standing.to_owned(),
            leads: 0,
        };
        let partition = |(number, (replicas, target)): (u64, &(&[u64], &[u64]))| PartitionInfo {
            partition: number,
            leader: None,
            replicas: replicas.to_vec(),
            target: Some(target.to_vec()),
        };
        View {
            cluster: String::new(),
            members: vec![member(1, "active", "a:1"), member(4, standing, client)],
            partitions: (1..).zip(partitions).map(partition).collect(),
        }
    }

    #[test]
    fn an_added_node_has_its_share_when_all_that_it_gets_is_in_place() {
        let mut concerned = Concerned::default();
        let mut stage = |standing, client, partitions: &[(&[u64], &[u64])]| {
            concerned.stage(&view(standing, client, partitions), 4, "active")
        };
        assert_eq!(stage("gone", "", &[]), Stage::Unheard, "an old view");
        let before: &[(&[u64], &[u64])] = &[(&[1, 2, 3], &[1, 2, 4]), (&[1, 2, 3], &[3, 2, 1])];
        assert_eq!(stage("active", "", before), Stage::Absent);
        assert_eq!(stage("active", "d:1", before), Stage::Moved(0));
        assert_eq!(stage("active", "d:1", &[(&[1, 2, 3, 4], &[1, 2, 4]), before[1]]), Stage::Moved(0));
        assert_eq!(stage("active", "d:1", &[(&[4, 1, 2], &[1, 2, 4]), (&[], &[3, 2, 1])]), Stage::Moved(1));
        assert_eq!(stage("active", "d:1", &[(&[4, 1, 2], &[1, 2, 4]), before[1]]), Stage::Done);
    }

    #[test]
    fn a_node_is_removed_when_it_is_gone_and_not_before() {
        let mut concerned = Concerned::default();
        let mut stage = |standing, partitions: &[(&[u64], &[u64])]| {
            concerned.stage(&view(standing, "d:1", partitions), 4, "gone")
        };
        let here: (&[u64], &[u64]) = (&[1, 2, 4], &[1, 2, 3]);
        let away: (&[u64], &[u64]) = (&[1, 2, 3], &[1, 2, 3]);
        assert_eq!(stage("active", &[here, here, away]), Stage::Unheard);
        assert_eq!(stage("leaving", &[here, here, away]), Stage::Moved(0));
        assert_eq!(stage("leaving", &[here, away, away]), Stage::Moved(1));
        assert_eq!(stage("leaving", &[away, away, away]), Stage::Moved(2));
        assert_eq!(stage("closing", &[away, away, away]), Stage::Moved(2), "its session runs out");
        assert_eq!(stage("gone", &[away, away, away]), Stage::Done);
    }

    #[test]
    fn what_is_said_of_a_change_is_true() {
        let wish =
            |standing| Wish { words: Vec::new(), node: "4".to_owned(), wait: false, standing, done: "" };
        let old = |standing, wanted| wish(wanted).is_old(&view(standing, "d:1", &[]), 4);
        assert!(old("active", "active") && old("draining", "draining") && old("closing", "gone"));
        assert!(!old("draining", "active") && !old("active", "draining") && !old("active", "gone"));
        assert!(wish("gone").is_old(&view("active", "", &[]), 9), "MEMBERS does not show what is gone");
        assert!(!wish("active").is_old(&view("active", "", &[]), 9));
        // Node 1 is the other one.
        let thin = |wanted, node| wish(wanted).thin(&view("active", "d:1", &[]), node);
        assert!(thin("draining", 4).is_some_and(|text| text.starts_with("1 active node is left")));
        assert!(thin("gone", 9).is_some_and(|text| text.starts_with("2 active nodes are left")));
        assert_eq!(thin("active", 4), None);
    }
}
