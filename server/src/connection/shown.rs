//! Reads that a connection answers from the node's own lines (`view.rs`), without the engine.
//!
//! Invariants: a read is answered so only if it may pass all that the connection has asked before (`ahead.rs`). A value that finds no
//! room (`memory.rs`) is left to whoever refuses it.

use bytes::{Buf, Bytes};
use quorate_protocol::op::Op;
use quorate_protocol::reply::Reply;
use quorate_protocol::resp::{self, Dialect};

use super::{Connection, OUTPUT_FULL, Speech};
use crate::clock;

impl Connection {
    /// Answers reads that stand at the front of what was read and that the node can answer itself, without taking them
    /// apart. They were all asked before the one look at the clock.
    pub(super) fn show_lines(&mut self) {
        let Speech::Text { decoder, dialect } = &self.speech else { return };
        let plain = decoder.is_between() && *dialect != Dialect::Inline && !self.subscriptions.may_push();
        // Between MULTI and EXEC reads are queued like everything else.
        let plain = plain && !self.transaction.is_open() && !self.tracker.is_on();
        if !plain || self.unanswered() > 0 {
            return;
        }
        let mut next = resp::peek_get(&self.read);
        if next.is_none() {
            return;
        }
        let (dialect, now) = (*dialect, clock::mono());
        let besides = self.held().saturating_sub(self.write.len());
        let (mut taken, mut fits) = (0, true);
        while let Some((key, end)) = next {
            let key = &self.read[taken..][key];
            if self.unread() >= OUTPUT_FULL {
                break;
            }
            let (write, account) = (&mut self.write, &mut self.account);
            let show = |value: Option<&Bytes>| {
                fits = account.settle(besides + write.len() + value.map_or(0, Bytes::len), &self.outlet);
                if fits {
                    resp::encode_value(dialect, value, write);
                }
            };
            if !self.shared.view.show(key, now, show) || !fits {
                break;
            }
            taken += end;
            next = resp::peek_get(&self.read[taken..]);
        }
        self.read.advance(taken);
    }

    /// Answers a read from what the node holds itself, if it may pass all that is unanswered before it.
    pub(super) fn look_up(&self, op: &Op) -> Option<Reply> {
        let view = &self.shared.view;
        let key = op.line()?;
        // What a client that keeps values is told of a read stands right behind its answer.
        let passes =
            self.unanswered() == 0 || !self.tracker.is_on() && self.ahead.lets_pass(key, view.partitions());
        if !passes {
            view.miss(key);
            return None;
        }
        let value = view.get(key, clock::mono())?;
        Some(value.map_or(Reply::Nil, Reply::Bulk))
    }
}
