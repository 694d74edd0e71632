//! Property: `-CLUSTERDOWN`, `-TRYAGAIN`, `-BUSY`, `-LOADING` and `-OOM` are said only of commands that never take effect, and what
//! was answered as done is in the committed log (design: outcome and order).
//!
//! Subtlety: changes of members are left out. They say the same again and again, so that one in a log cannot be told from
//! its namesake that was asked of a node's former life.

use quorate_protocol::op::Op;

use super::Verdict;
use crate::sim::history::{History, Outcome};

/// Looks at every operation.
pub fn check(history: &History) -> Verdict {
    for record in history.records().iter().filter(|record| !matches!(record.op, Op::Member(_))) {
        if let (Outcome::Refused(_), Some(place)) = (&record.outcome, record.places.first()) {
            return Err(format!(
                "{} and is entry {} of group {}",
                record.story(),
                place.pos.index,
                place.group.0
            ));
        }
        // What is written back is in the log when its owner has brought it, in whose name it is there then.
        let is_back = matches!(record.op, Op::SetBack(_));
        if record.succeeded() && !record.op.is_read() && !is_back && record.places.is_empty() {
            return Err(format!("{} and is in no log", record.story()));
        }
    }
    Ok(())
}
