//! The lines that a node has of one home, and how many of them are in each state.

use alloc::collections::BTreeMap;
use bytes::Bytes;

use super::holder::Own;
use super::line::State;

/// A line that the view holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line {
    pub(super) number: u64,
    pub(super) state: State,
    /// This node may write it by itself.
    pub(super) own: Option<Own>,
}

/// See the top of the file.
#[derive(Debug, Clone, Default)]
pub(super) struct Lines {
    lines: BTreeMap<Bytes, Line>,
    /// By state.
    counts: [usize; 4],
}

impl Lines {
    pub(super) fn get(&self, key: &Bytes) -> Option<&Line> {
        self.lines.get(key)
    }

    pub(super) fn own_mut(&mut self, key: &Bytes) -> Option<&mut Own> {
        self.lines.get_mut(key)?.own.as_mut()
    }

    pub(super) fn insert(&mut self, key: Bytes, line: Line) {
        self.counts[line.state as usize] += 1;
        if let Some(old) = self.lines.insert(key, line) {
            self.counts[old.state as usize] -= 1;
        }
    }

    pub(super) fn remove(&mut self, key: &Bytes) -> Option<Line> {
        let line = self.lines.remove(key)?;
        self.counts[line.state as usize] -= 1;
        Some(line)
    }

    pub(super) fn pop_first(&mut self) -> Option<(Bytes, Line)> {
        let (key, line) = self.lines.pop_first()?;
        self.counts[line.state as usize] -= 1;
        Some((key, line))
    }

    #[cfg(feature = "faults")]
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Bytes, &Line)> {
        self.lines.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.lines.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// How many there are in a state.
    pub(super) fn in_state(&self, state: State) -> usize {
        self.counts[state as usize]
    }
}
