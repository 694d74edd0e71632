//! What a group remembers of client sessions, so that a request that comes twice takes effect once.
//!
//! Invariant: for every session that the group knows, the outcome of every request from the session's
//! lowest unanswered one upward is kept. A request below it, or of a session that is not known, is answered
//! `-INDOUBT` and never executed.
//!
//! Subtlety: a request that waits (LOCK WAIT, FETCH BLOCK) is remembered without a reply; if it comes
//! again, on another connection perhaps, the reply will go to where it came from last.
//!
//! Source: Ongaro, "Consensus: Bridging Theory and Practice", 2014, §6.3.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::id::{ClientId, ClientSeq};
use quorate_protocol::limits::{CLIENT_WINDOW, OUTPUT_MAX};
use quorate_protocol::reply::{Code, Reply};
use quorate_protocol::wire::{Malformed, Wire};
use quorate_protocol::wire_struct;

use crate::outcome::Asker;
use crate::table::{Rows, Table, take_row};
use crate::trash::Trash;

wire_struct! {
    /// A request that was executed.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Executed {
        /// Where the reply goes.
        pub asker: Asker,
        /// The reply; none while the request waits.
        pub reply: Option<Reply>,
    }
}

/// What is to be done with a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is new: execute it.
    Execute,
    /// It is settled: this is the reply.
    Answer(Reply),
    /// It waits already; the reply will go to its newest asker.
    Waits,
}

/// See the top of the file.
pub struct Memory {
    /// Session → its lowest unanswered request.
    clients: Table<ClientId, u64>,
    executed: Table<(ClientId, u64), Executed>,
    /// Derived: bytes of the replies kept for each session.
    bytes: BTreeMap<ClientId, usize>,
}

impl Memory {
    /// Nothing is known.
    #[must_use]
    pub fn new() -> Self {
        Self { clients: Table::new(101), executed: Table::new(102), bytes: BTreeMap::new() }
    }

    /// The digest of what is remembered.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.clients.digest().wrapping_add(self.executed.digest())
    }

    /// All tables, in the order in which a snapshot shows them.
    pub fn tables(&mut self) -> Vec<&mut dyn Rows> {
        alloc::vec![&mut self.clients, &mut self.executed]
    }

    /// Takes a row of one of the tables from a snapshot.
    ///
    /// # Errors
    /// When it is none.
    pub fn load(&mut self, table: u64, input: &mut Bytes) -> Result<(), Malformed> {
        match table {
            n if n == self.clients.id() => {
                let (client, lowest) = take_row(input)?;
                self.bytes.insert(client, 0);
                self.clients.insert(client, lowest);
            }
            n if n == self.executed.id() => {
                let (key, row) = take_row::<(ClientId, u64), Executed>(input)?;
                let size = row.reply.as_ref().map_or(0, size_of_reply);
                *self.bytes.get_mut(&key.0).ok_or(Malformed("a reply of no session"))? += size;
                self.executed.insert(key, row);
            }
            _ => return Err(Malformed("unknown table")),
        }
        Ok(())
    }

    /// Gives all rows away, to be dropped bit by bit.
    pub fn discard(self, trash: &mut Trash) {
        self.clients.discard(trash, |_| 0);
        self.executed.discard(trash, |row| {
            row.reply.as_ref().map_or(0, |reply| match reply {
                Reply::Bulk(bytes) => bytes.len(),
                _ => 0,
            })
        });
        trash.throw(self.bytes.into_iter().map(|_| 0));
    }

    /// Whether the session is known.
    #[must_use]
    pub fn knows(&self, client: ClientId) -> bool {
        self.clients.contains(&client)
    }

    /// Whether a request of a session has been executed here, or is being so.
    #[must_use]
    pub fn has_heard(&self, seq: &ClientSeq) -> bool {
        self.executed.contains(&(seq.client, seq.seq))
    }

    /// Gets to know a session.
    pub fn meet(&mut self, client: ClientId) {
        if !self.knows(client) {
            self.clients.insert(client, 1);
            self.bytes.insert(client, 0);
        }
    }

    /// Forgets a session that has ended.
    pub fn forget(&mut self, client: ClientId) {
        if let Some(lowest) = self.clients.remove(&client) {
            self.forget_below(client, lowest, u64::MAX);
            self.bytes.remove(&client);
        }
    }

    fn forget_below(&mut self, client: ClientId, from: u64, below: u64) {
        let gone: Vec<u64> =
            self.executed.range((client, from)..(client, below)).map(|(key, _)| key.1).collect();
        for seq in gone {
            let row = self.executed.remove(&(client, seq)).expect("it was just seen");
            let size = row.reply.as_ref().map_or(0, size_of_reply);
            *self.bytes.entry(client).or_default() -= size;
        }
    }

    /// Decides about a request, and remembers it if it is to be executed.
    pub fn admit(&mut self, asker: &Asker) -> Admission {
        let Some(ClientSeq { client, seq, lowest }) = asker.client else { return Admission::Execute };
        let Some(&known) = self.clients.get(&client) else {
            return refuse("this client session is not known here, or has ended; open a new one");
        };
        if seq < known.max(1) {
            return refuse(
                "the request is below the session's lowest unanswered one; its outcome is forgotten",
            );
        }
        if lowest > known && lowest <= seq {
            self.forget_below(client, known, lowest);
            self.clients.insert(client, lowest);
        }
        let executed = self.executed.change(&(client, seq), |row| {
            row.asker = *asker;
            row.reply.clone()
        });
        match executed {
            Some(Some(reply)) => Admission::Answer(reply),
            Some(None) => Admission::Waits,
            None => self.begin(client, seq, asker),
        }
    }

    fn begin(&mut self, client: ClientId, seq: u64, asker: &Asker) -> Admission {
        let lowest = *self.clients.get(&client).expect("it was just seen");
        if seq - lowest >= CLIENT_WINDOW || self.bytes.get(&client).is_some_and(|&bytes| bytes > OUTPUT_MAX) {
            return Admission::Answer(Reply::error(
                Code::Err,
                "too many replies of this client session are kept; say in `lowest` which ones were received",
            ));
        }
        self.executed.insert((client, seq), Executed { asker: *asker, reply: None });
        Admission::Execute
    }

    /// Keeps the reply of a request that was executed, and says to whom it goes.
    pub fn settle(&mut self, asker: Asker, reply: &Reply) -> Asker {
        let Some(ClientSeq { client, seq, .. }) = asker.client else { return asker };
        let newest = self.executed.change(&(client, seq), |row| {
            row.reply = Some(reply.clone());
            row.asker
        });
        if newest.is_some() {
            *self.bytes.entry(client).or_default() += size_of_reply(reply);
        }
        newest.unwrap_or(asker)
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

fn refuse(text: &str) -> Admission {
    Admission::Answer(Reply::error(Code::InDoubt, text))
}

fn size_of_reply(reply: &Reply) -> usize {
    match reply {
        Reply::Bulk(bytes) => bytes.len() + 5,
        Reply::Nil | Reply::Int(_) | Reply::Status(_) => 9,
        other => other.to_wire().len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_protocol::id::ConnId;

    fn ask(seq: u64, lowest: u64, request: u64) -> Asker {
        let client = Some(ClientSeq { client: ClientId(5), seq, lowest });
        Asker { conn: ConnId::default(), request, client }
    }

    #[test]
    fn a_request_takes_effect_once() {
        let mut memory = Memory::new();
        assert!(matches!(memory.admit(&ask(1, 1, 1)), Admission::Answer(r) if r.failure().is_some()));
        memory.meet(ClientId(5));
        assert_eq!(memory.admit(&ask(1, 1, 1)), Admission::Execute);
        assert_eq!(memory.admit(&ask(1, 1, 2)), Admission::Waits);
        assert_eq!(memory.settle(ask(1, 1, 1), &Reply::Int(7)).request, 2, "the newest asker gets the reply");
        assert_eq!(memory.admit(&ask(1, 1, 3)), Admission::Answer(Reply::Int(7)));
        assert_eq!(memory.admit(&ask(3, 3, 4)), Admission::Execute);
        assert!(
            matches!(memory.admit(&ask(1, 1, 5)), Admission::Answer(r) if r.failure().is_some_and(|f| f.code == Code::InDoubt)),
            "below the window nothing is executed"
        );
        memory.forget(ClientId(5));
        assert_eq!(memory.digest(), Memory::new().digest(), "nothing is left of a session that ended");
    }
}
