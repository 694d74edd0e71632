//! A snapshot becomes the beginning of another cluster: what goes over, and what does not.
//!
//! Charter: takes a group's state at the cut, and makes of it what the replicas of a new cluster begin with, as if it
//! were founded so. It is a pure function of the state and of how the cluster is founded, so every node makes the same.
//!
//! ```text
//!  goes over         keys, versions, deadlines · topics, messages, attempts, publishers' ids · the feature level
//!                    letters on their way to other partitions, and what has arrived of them
//!  jumps             log index (and with it ids and versions to come) · fencing tokens
//!  begins anew       members, replicas, lives, boots · sessions and what they were answered · locks, waiters
//!                    leases (messages are ready again) · consumers · what the system group tells others
//! ```
//!
//! Invariants:
//! - The old cluster may have gone on after the cut, and may still. No token, id or version that it gives before it has
//!   given `INDEXES_LEFT_OUT` entries more to a group is given here too.
//! - What is not named above does not go over: `rebased` of each group takes what it keeps into a fresh state.
//! - Group time goes on from the cut, so a deadline has as much time left as it had.

use alloc::collections::BTreeMap;

use quorate_protocol::id::{GroupId, Index};

use crate::engine::founding;
use crate::journal::{Hard, Meta, Row, Standing};
use crate::snapshot::Header;
use crate::state::State;

/// Places in the log that a restored group leaves out: those that the old one may have used after the cut.
const INDEXES_LEFT_OUT: Index = 1 << 32;
/// The last index with which a restored group may begin: what follows must still fit a serial number.
const INDEX_MAX: Index = 1 << 42;

/// What a group of a cluster that is founded as `meta` says begins with. `arrived`: the last letter that each other group
/// had of this one by its own cut.
///
/// # Errors
/// With the reason, when a number would not fit any more.
pub fn rebase(
    header: &Header,
    state: State,
    meta: &Meta,
    arrived: &BTreeMap<GroupId, u64>,
) -> Result<(Header, State), &'static str> {
    let group = header.group;
    let index = header.index.checked_add(INDEXES_LEFT_OUT).filter(|&index| index <= INDEX_MAX);
    let index = index.ok_or("it has been restored so often that no places in its log are left")?;
    let (state, conf) = (state.rebased(group, meta, arrived)?, founding(group, meta));
    Ok((Header::new(group, (index, header.term), header.time, conf, state.crossings()), state))
}

/// The row of a replica that begins with this snapshot.
#[must_use]
pub fn row(header: &Header) -> Row {
    Row {
        hard: Hard { term: header.term, ..Hard::default() },
        incarnation: 0,
        standing: Standing::Whole,
        conf: header.conf.clone(),
        snapshot: (header.index, header.term),
    }
}

/// Whether a node of a cluster that is founded so holds a replica of the group.
#[must_use]
pub fn holds(group: GroupId, meta: &Meta) -> bool {
    founding(group, meta).replicas().iter().any(|replica| replica.node == meta.node)
}

#[cfg(test)]
mod tests;
