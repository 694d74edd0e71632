//! Property: of those who miss a key (GETV FILL), one is to fill it at a time; another one only when the time is over that
//! the first had asked for, or its connection, or a link of its node, or the key was written meanwhile (commands.md, Cache).
//!
//! Subtlety: when somebody was told to fill a key is known to lie between question and answer. What is judged are pairs
//! that were told so within the time for certain, while nobody else came to lead the group: a new home knows of nobody.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate_protocol::id::GroupId;
use quorate_protocol::op::Op;
use quorate_protocol::reply::Reply;

use super::Verdict;
use crate::sim::history::{History, Record};

/// What ends a connection's lead.
pub struct Ends<'a> {
    /// Connection → when it ended.
    pub conns: &'a BTreeMap<u64, u64>,
    /// Connection → when a link of its node was cut.
    pub cuts: &'a BTreeMap<u64, Vec<u64>>,
}

impl Ends<'_> {
    fn has(&self, record: &Record, within: impl Fn(&u64) -> bool) -> bool {
        self.conns.get(&record.conn).is_some_and(&within)
            || self.cuts.get(&record.conn).is_some_and(|times| times.iter().any(within))
    }
}

/// Looks at every key that somebody was told to fill.
pub fn check(
    history: &History,
    ends: &Ends<'_>,
    changes: &BTreeMap<GroupId, Vec<u64>>,
    home: impl Fn(&Record) -> Option<GroupId>,
) -> Verdict {
    let mut leads: BTreeMap<&Bytes, Vec<(&Record, u64)>> = BTreeMap::new();
    let mut writes: BTreeMap<&Bytes, Vec<u64>> = BTreeMap::new();
    for record in history.records().iter().chain(&history.evictions) {
        let times = record.places.iter().map(|place| place.time);
        record.op.keys().into_iter().for_each(|key| writes.entry(key).or_default().extend(times.clone()));
        if let (Op::FillV(fill), Some(Reply::Array(fields))) = (&record.op, record.reply())
            && fields.last() == Some(&Reply::Int(1))
        {
            leads.entry(&fill.key).or_default().push((record, fill.ms));
        }
    }
    for (key, leads) in leads {
        for (at, (first, time)) in leads.iter().enumerate() {
            for (second, other) in &leads[at + 1..] {
                let (from, to) = (first.invoked.min(second.invoked), first.ended.max(second.ended));
                // A tenth is for clocks that run apart.
                if to - from >= time.min(other) * 900 {
                    continue;
                }
                let within = |moment: &u64| (from..=to).contains(moment);
                let excused = writes.get(key).is_some_and(|times| times.iter().any(within))
                    || [first, second].iter().any(|record| ends.has(record, within))
                    || home(first).is_none_or(|group| {
                        changes.get(&group).is_some_and(|times| times.iter().any(within))
                    });
                if !excused {
                    return Err(format!("{}, and {} too", first.story(), second.story()));
                }
            }
        }
    }
    Ok(())
}
