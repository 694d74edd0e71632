//! Property: commands of one ordered connection to one partition take effect in their order, and once one is refused as
//! never proposed, nothing that was sent behind it takes effect (design: outcome and order).
//!
//! "Behind it" are for certain those that the node heard together with it: a later one may have crossed the refusal.
//! What reads see of it is checked with the registers.

use std::collections::BTreeMap;

use quorate_protocol::id::{GroupId, LogPos};
use quorate_protocol::reply::Code;

use super::Verdict;
use crate::sim::history::{History, Outcome, Record};

/// Looks at every ordered connection.
pub fn check(history: &History, home: impl Fn(&Record) -> Option<GroupId>) -> Verdict {
    let mut conns: BTreeMap<(u64, GroupId), Vec<&Record>> = BTreeMap::new();
    for record in history.records().iter().filter(|record| record.ordered && record.request > 0) {
        if let Some(group) = home(record) {
            conns.entry((record.conn, group)).or_default().push(record);
        }
    }
    for ((conn, group), mut records) in conns {
        records.sort_by_key(|record| record.request);
        in_order(conn, group, &records)?;
        nothing_behind_a_refusal(conn, group, &records)?;
    }
    Ok(())
}

fn in_order(conn: u64, group: GroupId, records: &[&Record]) -> Verdict {
    let mut last: Option<(LogPos, &Record)> = None;
    for record in records {
        let Some(place) = record.places.iter().find(|place| place.group == group) else { continue };
        if let Some((pos, earlier)) = last
            && pos >= place.pos
        {
            return Err(format!(
                "on connection {conn}, {} took effect in group {} before {}",
                record.story(),
                group.0,
                earlier.story()
            ));
        }
        last = Some((place.pos, record));
    }
    Ok(())
}

fn nothing_behind_a_refusal(conn: u64, group: GroupId, records: &[&Record]) -> Verdict {
    let mut refused: Option<&Record> = None;
    for record in records {
        if let Some(earlier) = refused.filter(|earlier| record.heard == earlier.heard) {
            let took_effect = !record.places.is_empty() || (record.op.is_read() && record.succeeded());
            if took_effect {
                return Err(format!(
                    "on connection {conn}, {} took effect in group {} although it stood behind {}",
                    record.story(),
                    group.0,
                    earlier.story()
                ));
            }
        }
        // Behind a command for which there was no room others go on, as in Redis.
        if matches!(record.outcome, Outcome::Refused(code) if code != Code::Oom) {
            refused = Some(record);
        }
    }
    Ok(())
}
