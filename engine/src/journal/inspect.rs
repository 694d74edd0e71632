//! Looking at a directory without using it: what a start would find, and what lies where.
//!
//! Invariant: an entry is alive if a start would hand it to its group; everything else in a segment waits to be freed.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::id::{GroupId, Index, Term};

use super::recover::{Contents, Options, Refusal, recover};
use super::walk::Source;
use super::{Damage, Entry, Recovered, SEGMENT_SIZE, unsound_at};

/// A segment as it lies there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentReport {
    /// Its number.
    pub number: u64,
    /// Bytes of its file.
    pub size: u64,
    /// Where what can be read ends.
    pub end: u64,
    /// Whether it ends with a seal.
    pub sealed: bool,
    /// The first and the last index of each group in it, in the order in which they lie there.
    pub groups: BTreeMap<GroupId, (Index, Index)>,
    /// Bytes of entries that a start would use,
    pub alive: u64,
    /// and of those that it would not.
    pub dead: u64,
}

/// What is found in a directory.
#[derive(Debug)]
pub struct Inspection {
    /// What a start would go on from. Its boot number would be the next one.
    pub recovered: Recovered,
    /// The segments by number.
    pub segments: Vec<SegmentReport>,
}

/// Looks at a directory. `unreadable`: see `Options`.
///
/// # Errors
/// When it cannot say whose it is, or a newer release has written something of it.
pub fn inspect(contents: &Contents, unreadable: &BTreeMap<GroupId, Damage>) -> Result<Inspection, Refusal> {
    let options = Options { unreadable: unreadable.clone(), ..Options::new(SEGMENT_SIZE) };
    let (recovered, ..) = recover(contents, &options)?;
    let source = Source { identity: recovered.meta.identity, bound: true };
    let mut segments = Vec::new();
    for (&number, bytes) in &contents.segments {
        let mut report = SegmentReport {
            number,
            size: bytes.len() as u64,
            end: 0,
            sealed: false,
            groups: BTreeMap::new(),
            alive: 0,
            dead: 0,
        };
        if source.is_begun(number, bytes) {
            let walked = source.walk(number, bytes, &mut |_, record| {
                let range = report.groups.entry(record.group).or_insert((record.index, record.index));
                range.1 = record.index;
                let size = record.size() as u64;
                if is_alive(&recovered, record.group, (record.index, record.term), &record.body) {
                    report.alive += size;
                } else {
                    report.dead += size;
                }
            });
            (report.end, report.sealed) = (walked.end, walked.sealed);
        }
        segments.push(report);
    }
    Ok(Inspection { recovered, segments })
}

impl Contents {
    /// Where the first chunk of a snapshot begins that is not what was written; 0 if all is well, or nothing there.
    pub(super) fn unsound_at(&self, group: GroupId, index: Index) -> u64 {
        let bytes = self.snapshots.get(&(group, index));
        bytes.and_then(|bytes| unsound_at(bytes, group, index)).unwrap_or(0)
    }
}

/// Whether this very record is what a start would use.
fn is_alive(recovered: &Recovered, group: GroupId, (index, term): (Index, Term), body: &Bytes) -> bool {
    let entry = recovered.entries.get(&group).and_then(|log| entry_at(log, index));
    entry.is_some_and(|entry| entry.term == term && entry.data.as_ptr() == body.as_ptr())
}

fn entry_at(log: &[Entry], index: Index) -> Option<&Entry> {
    let first = log.first()?.index;
    log.get(usize::try_from(index.checked_sub(first)?).ok()?)
}

/// Every entry of this index that lies in the journal, and whether a start would use it: old ones too, and those of
/// groups that are lost.
#[must_use]
pub fn entries_at(contents: &Contents, inspection: &Inspection, index: Index) -> Vec<(Entry, bool)> {
    let source = Source { identity: inspection.recovered.meta.identity, bound: true };
    let mut found = Vec::new();
    for (&number, bytes) in
        contents.segments.iter().filter(|(number, bytes)| source.is_begun(**number, bytes))
    {
        source.walk(number, bytes, &mut |_, record| {
            if record.index == index {
                let alive = is_alive(&inspection.recovered, record.group, (index, record.term), &record.body);
                let (group, term, kind, data) = (record.group, record.term, record.subkind, record.body);
                found.push((Entry { group, term, index, kind, data }, alive));
            }
        });
    }
    found
}
