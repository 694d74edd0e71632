//! What applying a command brings about, said by the state machines in terms of who is told what.
//!
//! Charter: locks, queues and keys know nothing of Raft, links or sockets. They are given a `Ctx` and an
//! `Asker`, and say `Outcome`s. Every replica computes the same outcomes; only the leader delivers them.
//!
//! Invariant: every logged command gets exactly one `Outcome::Reply` for its asker, at once or (a waiting
//! LOCK or FETCH) at a later log position.

use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::id::{ClientSeq, ConnId, LogPos};
pub use quorate_protocol::peer::Delivery;
use quorate_protocol::reply::Reply;
use quorate_protocol::wire_struct;

wire_struct! {
    /// Who asked, and where the answer goes.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    pub struct Asker {
        /// The connection; also the owner of what is not owned by name.
        pub conn: ConnId,
        /// The request's number on its connection.
        pub request: u64,
        /// The request's number in its client session, if it has one.
        pub client: Option<ClientSeq>,
    }
}

/// The circumstances under which a command is applied: equal on every replica.
#[derive(Debug, Clone, Copy)]
pub struct Ctx {
    /// The command's place in the group's log.
    pub at: LogPos,
    /// Group time of the entry, in milliseconds; never falls from entry to entry.
    pub time: u64,
}

/// One thing to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The answer to a command.
    Reply {
        /// Whose command it was.
        to: Asker,
        /// The answer.
        reply: Reply,
    },
    /// The command is in the log and its answer comes later: at a log position, whoever leads by then.
    Waits {
        /// Whose command it is.
        to: Asker,
    },
    /// A message for a subscriber.
    Push {
        /// The subscriber.
        to: ConnId,
        /// The message.
        delivery: Delivery,
    },
    /// A key has gone because its time had come.
    Expired(Bytes),
    /// A line for the leader's log, at warning level.
    Notice(String),
}

/// Outcomes in the order in which they came about.
pub type Outcomes = Vec<Outcome>;

/// Adds an answer.
pub fn answer(out: &mut Outcomes, to: Asker, reply: Reply) {
    out.push(Outcome::Reply { to, reply });
}
