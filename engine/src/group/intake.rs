//! What a group takes on: work for the leader of this term, within bounds, in the order of each connection.

use alloc::format;
use quorate_protocol::id::{ConnId, GroupId, NodeId};
use quorate_protocol::limits::{IN_FLIGHT_BYTES_MAX, IN_FLIGHT_MAX};
use quorate_protocol::peer::{Ask, Forward, Verdict, Work};
use quorate_protocol::reply::{Code, Reply};

use super::closing::Job;
use super::{Group, Read};
use crate::batch::Logged;
use crate::outcome::Asker;

impl Group {
    /// Takes work from a connection, if this node leads in the very term that is named.
    pub fn accept(&mut self, now: u64, forward: Forward) {
        let Forward { term, conn, run, asks, .. } = forward;
        for ask in asks {
            if self.clock.is_none() || self.term != term {
                self.refuse(conn, ask.request, ask.sending, Verdict::Moved);
            } else {
                self.accept_one(now, conn, run, ask);
            }
        }
    }

    fn accept_one(&mut self, now: u64, conn: ConnId, run: u64, ask: Ask) {
        let asker = Asker { conn, request: ask.request, client: ask.client };
        let is_read = ask.work.is_read();
        let of_client = match &ask.work {
            Work::Op(_) | Work::OpenClient => true,
            // Dead letters are clients' messages, and can wait where they are.
            Work::Take(parcel) => parcel.source != GroupId::SYSTEM,
            _ => false,
        };
        if let (Work::Watch(_), Some(why)) = (&ask.work, self.no_room) {
            // By itself: what else the node needs of this group goes on.
            let text = format!("the system group takes no writes: {why}");
            let verdict = Verdict::Reply(Reply::error(Code::Busy, text));
            return self.refuse(conn, ask.request, ask.sending, verdict);
        }
        // What an owner brings is waited for by what fills the bounds, and has bounds of its own.
        let of_owner = ask.work.flushes().is_some();
        let checked = if of_owner { Ok(()) } else { self.check(&asker, run, is_read, of_client) };
        if let Err(reply) = checked {
            self.refused.insert((conn.node, conn.counter), run);
            self.counted.refused_busy += u64::from(reply.failure().is_some_and(|f| f.code == Code::Busy));
            return self.refuse(conn, ask.request, ask.sending, Verdict::Reply(reply));
        }
        if let Work::CloseConn(gone) = &ask.work {
            self.refused.remove(&(gone.node, gone.counter));
            self.close_fills(now, (gone.node, gone.counter));
        }
        let Ask { sending, line, behind, principal, work, request: ask_number, .. } = ask;
        let job = if is_read {
            Job::Read(Read { asker, sending, behind, recalled: false, line, work })
        } else {
            Job::Write { sending, logged: Logged { asker, principal, work }, gave_up: line }
        };
        // What a node brings of one line waits for no other: as if each came on a connection of its own.
        let counter = if of_owner { u64::MAX - ask_number } else { conn.counter };
        self.let_in(now, (conn.node, counter), job);
    }

    /// Refuses what is over a bound, and what stands behind something refused. Without room it takes no more of
    /// clients, but what the nodes need to go on: sessions and their ends, closed connections, receipts.
    fn check(&self, asker: &Asker, run: u64, is_read: bool, of_client: bool) -> Result<(), Reply> {
        let refused = self.refused.get(&(asker.conn.node, asker.conn.counter));
        #[cfg(feature = "faults")]
        let refused = refused.filter(|_| !self.faults.order_broken_behind_refusal);
        if refused.is_some_and(|&refused| run <= refused) {
            let text = "an earlier command of this connection to the same partition was refused; send them again in order";
            return Err(Reply::error(Code::TryAgain, text));
        }
        if self.in_flight.commands + self.open.len() + self.reads.len() + self.closing.waiting()
            >= self.in_flight_max()
            || self.in_flight.bytes + self.open_bytes + self.closing.waiting_bytes() >= IN_FLIGHT_BYTES_MAX
        {
            let text = format!("partition {} has too much work on its way; try again", self.id.0);
            return Err(Reply::error(Code::Busy, text));
        }
        if let Some(why) = self.no_room.filter(|_| of_client && !is_read) {
            let text = format!("partition {} takes no writes: {why}", self.id.0);
            return Err(Reply::error(Code::Busy, text));
        }
        Ok(())
    }

    /// Says why there is no room for more of clients' commands, if it is so.
    pub fn set_no_room(&mut self, why: Option<&'static str>) {
        self.no_room = why;
    }

    fn in_flight_max(&self) -> usize {
        #[cfg(feature = "faults")]
        if let Some(max) = self.faults.small_in_flight {
            return max;
        }
        IN_FLIGHT_MAX
    }

    /// Forgets what was refused to connections of a node whose link is gone, and whom of them others wait for.
    pub fn forget_node(&mut self, now: u64, node: NodeId) {
        self.refused.retain(|(of, _), _| *of != node);
        self.close_fills_of(now, node);
    }
}
