//! What a connection holds, and what becomes of it when there is no room for that (`client_memory.rs`).
//!
//! Charter: what was read, the part of a request that is understood already, unanswered requests, what is queued for EXEC or watched, and
//! answers that are not written. It is settled after each read and each writing, before the connection waits for anything.
//!
//! Invariants:
//! - An answer that finds no room is refused in its place, and nothing more is decoded until the refusals are written. A request
//!   that finds none is refused in the connection's language, and the connection closed. Only who is sent unasked what it does not
//!   read, and who is to make room and does not read, is cut without a word: none fits behind half an answer.
//! - What is kept does not keep more than twice its size alive that was read beside it.

use std::collections::{HashMap, VecDeque};
use std::io;

use bytes::{Bytes, BytesMut};
use quorate_engine::effect::Want;
use quorate_protocol::command::NodeAsk;
use quorate_protocol::limits::{CLIENT_ALLOWANCE, CLIENT_PATIENCE, SNAPSHOT_READ};
use quorate_protocol::reply::{Code, Reply};
use quorate_protocol::resp::RequestDecoder;

use super::{Connection, Nature, READ, SPARE, Speech};
use crate::transaction::Transaction;

/// Elements of an unfinished request that may keep what was read with them.
const FEW: usize = 8;
/// Less room than this is not read into.
const LEAST: usize = READ / 8;
/// Places for unanswered requests that a connection keeps when all are answered.
const QUEUES_KEPT: usize = 256;
/// What an answer may come to that the node makes of itself (STATUS, MEMBERS, …).
const OWN_ANSWER: usize = 16 << 10;
/// A small answer.
const SMALL: usize = 1 << 10;

impl Connection {
    pub(super) fn held(&self) -> usize {
        let asked = self.unanswered_bytes + self.transaction.held();
        // Behind what waits, answers are made that wait as well.
        let owed = if self.waiting > 0 { self.owed_bytes } else { 0 };
        self.grown + self.understood() + asked + owed + self.write.len().saturating_sub(self.refusals)
    }

    /// Bytes of a request of which the rest is still to come.
    fn understood(&self) -> usize {
        if let Speech::Text { decoder, .. } = &self.speech { decoder.held() } else { 0 }
    }

    pub(super) fn unread(&self) -> usize {
        self.write.len() - self.written
    }

    /// Whether a small answer finds room. If not, nothing more is decoded until the client has read what it was answered.
    pub(super) fn has_room_for_answers(&mut self) -> bool {
        let few = self.unread() < CLIENT_ALLOWANCE / 2;
        self.full = !few && !self.account.settle(self.held() + SMALL, &self.outlet);
        !self.full
    }

    /// The answer to a request; a refusal if there is no room for it until it is read.
    pub(super) fn fitting(&mut self, reply: Reply, nature: Nature) -> Reply {
        let weight = reply.weight();
        // However much else is held, a few small ones are always told.
        if weight <= SMALL && (nature == Nature::Local || self.unread() < CLIENT_ALLOWANCE / 2) {
            return reply;
        }
        if self.account.settle(self.held() + weight, &self.outlet) {
            return reply;
        }
        let max = self.account.refused();
        let code = if matches!(nature, Nature::Local | Nature::Read) { Code::Busy } else { Code::InDoubt };
        // Its messages go back with it, to be fetched by somebody who has room.
        self.closing |= nature == Nature::Lease;
        let text = format!(
            "there is no room for the answer, of {weight} bytes: the clients of this node hold all of the {max} bytes that they may take \
             together; read answers as they come, ask again in some seconds, or raise client-max-memory"
        );
        // With what its frame takes.
        self.refusals += text.len() + 64;
        self.full = true;
        Reply::error(code, text)
    }

    /// Settles what the connection holds; an error when it is cut for it.
    pub(super) fn settle(&mut self) -> io::Result<()> {
        let held = self.held();
        if self.account.settle(held, &self.outlet) {
            return Ok(());
        }
        // Small answers, and how they are written, may come a little above.
        if self.unread() > CLIENT_ALLOWANCE && held <= self.account.covers() + CLIENT_ALLOWANCE {
            return Ok(());
        }
        let max = if self.closing { 0 } else { self.account.refused() };
        if self.unread() > CLIENT_ALLOWANCE {
            return self.too_much_output();
        }
        if !self.closing {
            let why = format!(
                "the clients of this node hold all of the {max} bytes that they may take together; try again in some seconds, ask \
                 another node, or raise client-max-memory"
            );
            self.give_up(&why, self.waiting == 0);
        }
        Ok(())
    }

    /// Others need what it has held for long.
    pub(super) fn make_room(&mut self) -> io::Result<()> {
        let held = self.held();
        if held <= CLIENT_ALLOWANCE {
            self.account.spared();
            return Ok(());
        }
        tracing::warn!(
            "connection {} is cut: it has held {held} bytes for long, and others need them",
            self.number
        );
        if self.closing || self.unread() > CLIENT_ALLOWANCE {
            return Err(io::Error::other("others need its memory"));
        }
        let why = format!(
            "{held} bytes were held here for more than {} s, and others need them; send requests to their end and read their answers, \
             or raise client-max-memory",
            CLIENT_PATIENCE / 1000
        );
        self.give_up(&why, false);
        Ok(())
    }

    /// Lets go of what was read and not asked, says why, and closes. In turn: behind the answers to what was asked before; otherwise
    /// whatever is unanswered is in doubt.
    fn give_up(&mut self, why: &str, in_turn: bool) {
        self.read = BytesMut::new();
        self.grown = 0;
        self.held_back = false;
        self.transaction = Transaction::default();
        if let Speech::Text { decoder, .. } = &mut self.speech {
            *decoder = RequestDecoder::default();
            if in_turn && !self.asked.is_empty() {
                self.ask_text(Want::Answered(Reply::error(Code::Busy, why)), 0, None, true);
                self.hand_over();
            } else {
                let code = if self.asked.is_empty() { Code::Busy } else { Code::InDoubt };
                self.write_text(None, &Reply::error(code, why));
                self.asked.clear();
                (self.unanswered_bytes, self.waiting) = (0, 0);
            }
        } else {
            self.goodbye_for(Code::Busy, why);
            self.unanswered_bytes = 0;
        }
        self.closing = true;
    }

    /// Gives back what queues keep of a long pipeline.
    fn slim_queues(&mut self) {
        if self.unanswered() == 0 && self.asked.capacity().max(self.framed.capacity()) > QUEUES_KEPT {
            self.asked = VecDeque::new();
            self.framed = HashMap::new();
            self.correlations = HashMap::new();
        }
    }

    /// Keeps no more memory for what was read than that needs.
    pub(super) fn slim(&mut self) {
        self.slim_queues();
        if let Speech::Text { decoder, .. } = &mut self.speech {
            decoder.detach(FEW);
        }
        let kept = self.read.len() + self.understood();
        if self.grown > CLIENT_ALLOWANCE && self.grown >= 2 * kept {
            self.read = BytesMut::from(&self.read[..]);
            if let Speech::Text { decoder, .. } = &mut self.speech {
                decoder.detach(0);
            }
            self.grown = self.read.len();
        }
        if self.read.is_empty() {
            let read = std::mem::take(&mut self.read);
            if self.grown <= CLIENT_ALLOWANCE {
                SPARE.set(read);
            }
            self.grown = 0;
        }
    }

    /// A request is given memory of its own if it is small beside what it was read with, and may be kept for long.
    pub(super) fn detach(&self, args: &mut [Bytes]) {
        let beside =
            self.grown > CLIENT_ALLOWANCE && self.grown >= 2 * args.iter().map(Bytes::len).sum::<usize>();
        if self.waiting > 0 || beside {
            args.iter_mut().for_each(|arg| *arg = Bytes::copy_from_slice(arg));
        }
    }

    /// Lets go of what is written already, once that is most of it.
    pub(super) fn slim_output(&mut self) {
        if self.written > READ && self.written >= self.write.len() / 2 {
            self.write.drain(..self.written);
            self.written = 0;
            self.write.shrink_to(2 * self.write.len());
        }
    }

    /// It lets more pile up than there is room for.
    pub(super) fn too_much_output(&self) -> io::Result<()> {
        tracing::warn!("connection {} is cut: its client does not read what it asked for", self.number);
        Err(io::Error::other("too much output"))
    }
}

/// Bytes of the answer to something that is answered at once, also behind something that waits; it is kept until then.
pub(super) fn early_answer(want: &Want) -> usize {
    match want {
        Want::Answered(reply) => reply.weight(),
        Want::Node(NodeAsk::SnapshotRead(_)) => SNAPSHOT_READ,
        Want::Node(_) => OWN_ANSWER,
        _ => 0,
    }
}

/// Room for the next read. What little is left beside something that is kept is used up first: each read would keep as much as
/// a whole one otherwise, however short it is.
pub(super) fn make_room(read: &mut BytesMut) {
    let room = read.capacity() - read.len();
    if room < READ && !read.try_reclaim(READ) && room < LEAST {
        read.reserve(READ);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_reads_that_are_kept_share_their_memory() {
        let (mut read, mut kept, mut rooms) = (BytesMut::new(), Vec::new(), 0);
        for _ in 0..10_000 {
            let before = read.as_ptr() as usize;
            make_room(&mut read);
            rooms += usize::from(read.as_ptr() as usize != before);
            read.extend_from_slice(b"$1\r\na\r\n");
            kept.push(read.split().freeze());
        }
        assert!(rooms <= 10_000 * 7 / (READ - LEAST) + 2, "{rooms} rooms for 70 KB");
        kept.clear();
        make_room(&mut read);
        assert!(read.capacity() >= READ, "nothing is kept: there is room for a whole read");
    }
}
