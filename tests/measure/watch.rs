//! What a running cluster says of itself: who leads what, and in which terms.

use std::collections::BTreeMap;

use quorate_protocol::op::partition_of;
use quorate_tests::process::{Client, Cluster, poll};

/// Partitions of a cluster.
pub(crate) const PARTITIONS: u16 = 16;

/// Partition → its leader, as a node sees it.
pub(crate) fn leaders(client: &mut Client) -> Option<BTreeMap<u16, usize>> {
    let text = client.try_ask("PARTITIONS")?;
    let number = |row: &str, name: &str| row.split_once(name)?.1.split_whitespace().next()?.parse().ok();
    let rows = text.split("partition: ").skip(1);
    Some(
        rows.filter_map(|row| {
            let partition = row.split_whitespace().next()?.parse().ok()?;
            Some((partition, number(row, "leader: ")?))
        })
        .collect(),
    )
}

/// Group → its term, as a node sees it.
pub(crate) fn terms(client: &mut Client) -> Option<BTreeMap<u16, u64>> {
    let text = client.try_ask("STATUS")?;
    let mut words = text.split_whitespace().peekable();
    let (mut group, mut terms) = (0, BTreeMap::new());
    while let Some(word) = words.next() {
        let number = words.peek().and_then(|next| next.parse::<u64>().ok());
        match (word.trim_start_matches(|c: char| !c.is_alphabetic()), number) {
            ("group:", Some(n)) => group = u16::try_from(n).ok()?,
            ("term:", Some(n)) => drop(terms.insert(group, n)),
            _ => {}
        }
    }
    Some(terms)
}

/// Waits until all nodes see the same leaders, every node leads some, and nothing has changed for a while.
pub(crate) fn settle(cluster: &Cluster) -> BTreeMap<u16, usize> {
    let mut last = (BTreeMap::new(), 0);
    poll("the leaders are settled", || {
        let mut seen: Vec<_> =
            (1..=cluster.size()).map(|id| leaders(&mut Client::try_new(cluster.address(id))?)).collect();
        let first = seen.pop()??;
        let whole = first.len() == usize::from(PARTITIONS)
            && (1..=cluster.size()).all(|id| first.values().any(|leader| *leader == id))
            && seen.iter().all(|other| other.as_ref() == Some(&first));
        last = if whole && last.0 == first { (first, last.1 + 1) } else { (first, 0) };
        // Leaders make way for preferred ones one by one, twice a second at the most.
        (last.1 > 90).then(|| last.0.clone())
    })
}

/// A key of a partition.
pub(crate) fn key_of(partition: u16) -> String {
    (0..)
        .map(|n| format!("key-{n}"))
        .find(|key| partition_of(key.as_bytes(), PARTITIONS).0 == partition)
        .expect("keys are spread")
}
