//! What an answer tells of keys that its client may keep, and what of that it may not.
//!
//! Invariants:
//! - Only the values of GET and MGET can be kept: they can be compared with what the node holds. What a client learns otherwise
//!   of a key (EXISTS, STRLEN, TTL, …, and all that EXEC answers) it is told to drop at once.
//! - A connection that does not want to be told of its own writes is told of every key of which the answer does not say that it
//!   was written (`Done`): it may go on believing what it had, and is in the table no more.

use bytes::Bytes;
use quorate_protocol::command::Tracks;
use quorate_protocol::op::{Done, Op};
use quorate_protocol::reply::Reply;

use super::{Pushes, Tracking, View};

/// What an answer will tell.
#[derive(Debug, Default)]
pub struct Told {
    /// Values of these keys, in this order.
    values: Vec<Bytes>,
    /// Something about them.
    others: Vec<Bytes>,
    /// That they were written, command by command.
    written: Vec<Written>,
    /// Whether these are the commands of a transaction, and the answer has one to each.
    together: bool,
}

/// What a command writes, and which answer says so.
#[derive(Debug)]
struct Written {
    keys: Vec<Bytes>,
    done: Done,
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
            told.writes(op);
        }
        let nothing = told.values.is_empty() && told.others.is_empty() && told.written.is_empty();
        (!nothing).then(|| Box::new(told))
    }

    fn writes(&mut self, op: &Op) {
        let written = |op: &Op| Written { keys: op.writes().into_owned(), done: op.done() };
        match op {
            Op::Multi(multi) => {
                self.together = true;
                self.written.extend(multi.commands.0.iter().map(written));
            }
            op if op.writes().is_empty() => {}
            op => self.written.push(written(op)),
        }
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

/// The keys of which an answer does not say that they were written.
fn unsure(written: Vec<Written>, together: bool, reply: &Reply) -> impl Iterator<Item = Bytes> {
    let answers = match reply {
        Reply::Array(answers) if together => &answers[..],
        // It was given up, or may have been.
        _ if together => &[],
        reply => std::slice::from_ref(reply),
    };
    written.into_iter().enumerate().flat_map(|(at, Written { keys, done })| {
        let said = answers.get(at).is_some_and(|answer| done.is_said_by(answer));
        if said { Vec::new() } else { keys }
    })
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
        stale.extend(unsure(told.written, told.together, reply));
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
