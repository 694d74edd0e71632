//! What is said of connections that are refused: one line of a kind a minute, with a count.
//!
//! Invariant: neither the log nor the memory grows with what strangers send. A kind may be told apart by node; a
//! flood of invented nodes is one kind.

use std::collections::BTreeMap;

use quorate_protocol::id::NodeId;

/// How long a kind is not said again; microseconds.
const QUIET: u64 = 60_000_000;
/// Kinds that are told apart by node.
const ROWS_MAX: usize = 256;

/// What there is to complain about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Bytes that no node would send.
    Garbage,
    /// Another release.
    Version,
    /// A node that is not let in.
    Refused,
    /// A node that was let in and is cut.
    Cut,
    /// A node that may not join.
    Join,
    /// A frame of a node that was let in cannot be read.
    Frame,
    /// A snapshot file cannot be read.
    Snapshot,
}

#[derive(Debug)]
struct Row {
    said_at: u64,
    unsaid: u64,
    last: String,
}

/// See the top of the file.
#[derive(Debug, Default)]
pub struct Complaints(BTreeMap<(Kind, NodeId), Row>);

impl Complaints {
    /// Takes a complaint at a time in microseconds; the line to be logged now, if there is one. Node 0 is nobody.
    pub fn hear(&mut self, now: u64, kind: Kind, node: NodeId, line: String) -> Option<String> {
        let crowded = self.0.len() >= ROWS_MAX && !self.0.contains_key(&(kind, node));
        let node = if crowded { NodeId(0) } else { node };
        let Some(row) = self.0.get_mut(&(kind, node)) else {
            self.0.insert((kind, node), Row { said_at: now, unsaid: 0, last: String::new() });
            return Some(line);
        };
        row.unsaid += 1;
        row.last = line;
        (now >= row.said_at + QUIET).then(|| row.say(now))
    }

    /// How often something was complained about since it was said last, that time included.
    #[cfg(test)]
    pub(super) fn count(&self, kind: Kind, node: NodeId) -> u64 {
        self.0.get(&(kind, node)).map_or(0, |row| row.unsaid + 1)
    }

    /// The lines that are due: what was not said while it was too much, with its count.
    pub fn due(&mut self, now: u64) -> Vec<String> {
        let is_over = |row: &Row| now >= row.said_at + QUIET;
        self.0.retain(|_, row| row.unsaid > 0 || !is_over(row));
        self.0.values_mut().filter(|row| is_over(row)).map(|row| row.say(now)).collect()
    }
}

impl Row {
    fn say(&mut self, now: u64) -> String {
        let (unsaid, last) = (std::mem::take(&mut self.unsaid), std::mem::take(&mut self.last));
        self.said_at = now;
        match unsaid {
            1 => last,
            _ => format!("{last} ({unsaid} times since this was said last)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_said_once_a_minute_with_a_count() {
        let mut complaints = Complaints::default();
        let mut hear = |now, kind, node, n| complaints.hear(now, kind, NodeId(node), format!("line {n}"));
        assert_eq!(hear(5, Kind::Garbage, 0, 1).as_deref(), Some("line 1"), "the first one at once");
        for n in 2..=100 {
            assert_eq!(hear(4 + n, Kind::Garbage, 0, n), None);
        }
        assert_eq!(hear(50, Kind::Version, 0, 7).as_deref(), Some("line 7"), "another kind is another line");
        assert_eq!(hear(50, Kind::Refused, 3, 8).as_deref(), Some("line 8"));
        assert_eq!(hear(51, Kind::Refused, 4, 9).as_deref(), Some("line 9"), "and so is another node");
        assert_eq!(hear(QUIET + 4, Kind::Garbage, 0, 101), None);
        assert_eq!(complaints.due(QUIET + 4), Vec::<String>::new(), "the minute is not over");
        let due = complaints.due(QUIET + 5);
        assert_eq!(due, ["line 101 (100 times since this was said last)"]);
        assert_eq!(complaints.due(QUIET + 6), Vec::<String>::new(), "it was just said");
        let again = complaints.hear(2 * QUIET + 5, Kind::Garbage, NodeId(0), "line 102".into());
        assert_eq!(again.as_deref(), Some("line 102"), "alone, without a count");
        assert!(
            complaints.due(3 * QUIET + 5).is_empty() && complaints.0.is_empty(),
            "nothing is kept for ever"
        );
    }

    #[test]
    fn invented_nodes_take_no_memory_and_no_lines() {
        let mut complaints = Complaints::default();
        let said = (0..100_000).filter_map(|n| complaints.hear(n, Kind::Refused, NodeId(n), "no".into()));
        assert!(said.count() <= ROWS_MAX + 1);
        assert!(complaints.0.len() <= ROWS_MAX + 1);
        assert_eq!(complaints.due(QUIET + 100_000).len(), 1, "what was too much is counted together");
    }
}
