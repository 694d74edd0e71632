//! What a text connection may be sent unasked: the topics it has subscribed to.
//!
//! RESP2 has no place for pushed messages: between replies they would be taken for replies. So a connection
//! that may have a subscription never comes to speak RESP2, on whatever way.
//!
//! Invariant: a topic is here from the answer to SUB to the answer to UNSUB; unanswered SUBs are counted.
//! Where the outcome is not known, the connection counts as subscribed.

use std::collections::BTreeSet;

use bytes::Bytes;
use quorate_engine::effect::Want;
use quorate_protocol::command::{Command, ConnAsk};
use quorate_protocol::limits::SUBSCRIPTIONS_MAX;
use quorate_protocol::op::Op;
use quorate_protocol::reply::{Code, Failure, Reply};
use quorate_protocol::resp::Dialect;

/// What a request's answer will change.
#[derive(Debug)]
pub enum Change {
    /// A topic is subscribed to.
    Sub(Bytes),
    /// It is not any more.
    Unsub(Bytes),
}

/// See the top of the file.
#[derive(Debug, Default)]
pub struct Subscriptions {
    topics: BTreeSet<Bytes>,
    /// SUBs that are not answered yet.
    asked: usize,
}

impl Subscriptions {
    /// Whether something may come unasked.
    #[must_use]
    pub fn may_push(&self) -> bool {
        self.asked > 0 || !self.topics.is_empty()
    }

    /// A request goes to the engine.
    pub fn ask(&mut self, want: &Want) -> Option<Box<Change>> {
        // Copied: what was read shares its memory with the read buffer.
        match want {
            Want::Op(Op::Sub(sub)) => {
                self.asked += 1;
                Some(Box::new(Change::Sub(Bytes::copy_from_slice(&sub.topic))))
            }
            Want::Op(Op::Unsub(topic)) => Some(Box::new(Change::Unsub(Bytes::copy_from_slice(topic)))),
            _ => None,
        }
    }

    /// The request is answered.
    pub fn answered(&mut self, change: Change, reply: &Reply) {
        match (change, reply) {
            (Change::Sub(topic), reply) => {
                self.asked -= 1;
                if reply.failure().is_none_or(|failure| failure.code == Code::InDoubt) {
                    self.topics.insert(topic);
                }
            }
            (Change::Unsub(topic), Reply::Int(_)) => {
                self.topics.remove(&topic);
            }
            (Change::Unsub(_), _) => {}
        }
    }

    /// Why a request cannot be granted because of them. `now` is its dialect; `switches` says that it is the
    /// first in RESP on a connection of lines.
    #[must_use]
    pub fn objection(
        &self,
        command: &Result<Command, Failure>,
        now: Dialect,
        switches: bool,
    ) -> Option<Reply> {
        if let Ok(Command::Op(Op::Sub(sub))) = command
            && self.topics.len() + self.asked >= SUBSCRIPTIONS_MAX
            && !self.topics.contains(&sub.topic)
        {
            let text = format!(
                "this connection has {SUBSCRIPTIONS_MAX} subscriptions; UNSUB from some, or open another connection"
            );
            return Some(Reply::error(Code::Err, text));
        }
        if !self.may_push() {
            return None;
        }
        let text = match command {
            Ok(Command::Connection(ConnAsk::Reset)) => {
                "RESET does not end subscriptions; send UNSUB for each topic first"
            }
            Ok(Command::Connection(ConnAsk::Hello { version: Some(3), auth: false, .. })) => return None,
            Ok(Command::Connection(ConnAsk::Hello { version, auth: false, .. }))
                if version.is_some() || now != Dialect::Resp3 =>
            {
                "this connection has subscriptions, and RESP2 cannot carry their messages; send UNSUB for each topic first, \
                 or HELLO 3"
            }
            _ if switches => {
                "this connection has subscribed in lines of text, and RESP2 cannot carry its messages; say HELLO 3, or UNSUB \
                 for each topic in a line, first"
            }
            _ => return None,
        };
        Some(Reply::error(Code::Err, text))
    }
}

#[cfg(test)]
mod tests {
    use quorate_protocol::command::parse;

    use super::*;

    fn op(line: &str) -> Want {
        let words: Vec<Bytes> = line.split(' ').map(|word| Bytes::copy_from_slice(word.as_bytes())).collect();
        match parse(&words) {
            Ok(Command::Op(op)) => Want::Op(op),
            other => panic!("{other:?}"),
        }
    }

    fn answer(subscriptions: &mut Subscriptions, line: &str, reply: &Reply) {
        let change = subscriptions.ask(&op(line)).expect("it changes something");
        subscriptions.answered(*change, reply);
    }

    #[test]
    fn what_is_not_known_counts_as_subscribed() {
        let mut all = Subscriptions::default();
        let change = all.ask(&op("SUB t")).expect("it changes something");
        assert!(all.may_push(), "it may be granted at any time");
        all.answered(*change, &Reply::error(Code::ClusterDown, ""));
        assert!(!all.may_push(), "it was refused");
        answer(&mut all, "SUB t", &Reply::error(Code::InDoubt, ""));
        assert!(all.may_push());
        answer(&mut all, "SUB t", &Reply::error(Code::ClusterDown, ""));
        assert!(all.may_push(), "a refusal of the second says nothing of the first");
        answer(&mut all, "UNSUB t", &Reply::error(Code::InDoubt, ""));
        assert!(all.may_push());
        answer(&mut all, "UNSUB t", &Reply::Int(0));
        assert!(!all.may_push());
    }

    #[test]
    fn subscriptions_of_a_connection_are_bounded() {
        let mut all = Subscriptions::default();
        (0..SUBSCRIPTIONS_MAX).for_each(|n| answer(&mut all, &format!("SUB t{n}"), &Reply::OK));
        let asked = |line: &str| match op(line) {
            Want::Op(op) => all.objection(&Ok(Command::Op(op)), Dialect::Resp3, false),
            _ => None,
        };
        assert!(asked("SUB another").is_some());
        assert!(asked("SUB t0").is_none(), "that it has already");
    }
}
