//! What an answer tells of keys that its client may keep, and what of that it may not.
//!
//! Invariants:
//! - Only the values of GET and MGET can be kept: they can be compared with what the node holds. What a client learns otherwise
//!   of a key (EXISTS, STRLEN, TTL, …, and all that EXEC answers) it is told to drop at once.
//! - A connection that does not want to be told of its own writes is told of those that may not have been done: it may go on
//!   believing what it had.

use bytes::Bytes;
use quorate_protocol::command::Tracks;
use quorate_protocol::op::Op;
use quorate_protocol::reply::Reply;

use super::{Pushes, Tracking, View};

/// What an answer will tell.
#[derive(Debug, Default)]
pub struct Told {
    /// Values of these keys, in this order.
    values: Vec<Bytes>,
    /// Something about them.
    others: Vec<Bytes>,
    /// That they were written.
    written: Vec<Bytes>,
}

impl Told {
    /// What the answer to a command will tell a connection. `caching`: CLIENT CACHING stands before it.
    #[must_use]
    pub fn of(op: &Op, tracks: &Tracks, caching: bool) -> Option<Box<Self>> {
        let mut told = Self::default();
        if (!tracks.opt_in && !tracks.opt_out) || tracks.opt_in == caching {
            told.reads(op);
        }
        if tracks.no_loop && !tracks.broadcast {
            told.written = op.writes().into_owned();
        }
        let nothing = told.values.is_empty() && told.others.is_empty() && told.written.is_empty();
        (!nothing).then(|| Box::new(told))
    }

    fn reads(&mut self, op: &Op) {
        match op {
            Op::Get(key) => self.values.push(key.clone()),
            Op::MGet(keys) => self.values.extend_from_slice(keys),
            Op::Multi(multi) => {
                let reads = multi.commands.0.iter().filter(|op| op.is_read());
                self.others.extend(reads.flat_map(|op| op.keys().into_iter().cloned()));
            }
            // What the connection asks for its own use, and what tells nothing of a value.
            Op::Versions(_) | Op::CacheInfo(_) => {}
            op if op.is_read() => self.others.extend(op.keys().into_iter().cloned()),
            _ => {}
        }
    }
}

/// Whether a write may have left things as they were, wholly or in part.
#[must_use]
pub fn may_have_failed(reply: &Reply) -> bool {
    match reply {
        Reply::Error(_) | Reply::Nil | Reply::Int(0) => true,
        Reply::Array(replies) => replies.iter().any(may_have_failed),
        _ => false,
    }
}

impl Tracking {
    /// A connection's answer stands in its output: the keys that it is to be told to drop right behind it. What others are
    /// to be told is added to `pushes`.
    #[must_use]
    pub fn behind(
        &self,
        view: &View,
        (conn, tracks): (u64, &Tracks),
        told: Told,
        reply: &Reply,
        now: u64,
        pushes: &mut Pushes,
    ) -> Vec<Bytes> {
        let mut stale = told.others;
        if may_have_failed(reply) {
            stale.extend(told.written);
        }
        let single = std::slice::from_ref(reply);
        let values = if let Reply::Array(values) = reply { &values[..] } else { single };
        for (key, value) in told.values.into_iter().zip(values) {
            let value = match value {
                Reply::Bulk(value) => Some(value),
                Reply::Nil => None,
                // An error tells nothing of a value.
                _ => continue,
            };
            let kept = if tracks.broadcast {
                view.shows(&key, value, now).is_some()
            } else {
                self.keep(view, conn, &key, value, now, pushes)
            };
            if !kept {
                stale.push(key);
            }
        }
        if tracks.broadcast {
            stale.retain(|key| tracks.covers(key));
        }
        stale.sort_unstable();
        stale.dedup();
        stale
    }
}
