//! A partition's state: keys, topics, what client sessions were answered, and what came from the outbox.
//!
//! Invariant: nothing of a session that group 0 has ended is executed here once the end has arrived:
//! commands of connections of an ended node session are refused, and a client session is made known only
//! by somebody who has seen it alive after all ends that arrived here (`Introduction::ends`).

use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::id::{ConnId, NodeId, SessionId};
use quorate_protocol::op::Op;
use quorate_protocol::peer::{Introduction, Item, Parcel, Work};
use quorate_protocol::reply::{Code, Reply};
use quorate_protocol::wire::Malformed;

use crate::memory::Memory;
use crate::outcome::{Asker, Ctx, Outcomes, answer};
use crate::queue::Queues;
use crate::store::Store;
use crate::table::{Rows, Table, load_row};

/// See the top of the file.
pub struct Partition {
    /// The keys.
    pub store: Store,
    /// The topics.
    pub queues: Queues,
    /// What client sessions have been answered here.
    pub memory: Memory,
    /// Node → its newest session that has ended.
    ended: Table<NodeId, SessionId>,
    /// One row: the number of the last outbox item of group 0.
    taken: Table<u8, u64>,
}

impl Partition {
    /// An empty partition.
    #[must_use]
    pub fn new() -> Self {
        let mut taken = Table::new(302);
        taken.insert(0, 0);
        Self {
            store: Store::new(),
            queues: Queues::new(),
            memory: Memory::new(),
            ended: Table::new(301),
            taken,
        }
    }

    /// Switches deliberate bugs on.
    #[cfg(feature = "faults")]
    pub fn set_faults(&mut self, faults: &crate::engine::Faults) {
        self.queues.set_faults(faults.queues.clone());
        self.store.set_faults(faults.store.clone());
    }

    /// The digest of it all.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let parts = [
            self.store.digest(),
            self.queues.digest(),
            self.memory.digest(),
            self.ended.digest(),
            self.taken.digest(),
        ];
        parts.into_iter().fold(0, u64::wrapping_add)
    }

    /// All tables, in the order in which a snapshot shows them.
    pub fn tables(&mut self) -> Vec<&mut dyn Rows> {
        let mut tables: Vec<&mut dyn Rows> = alloc::vec![&mut self.ended, &mut self.taken];
        tables.extend(self.memory.tables());
        tables.extend(self.store.tables());
        tables.extend(self.queues.tables());
        tables
    }

    /// Takes a row of one of the tables from a snapshot.
    ///
    /// # Errors
    /// When it is none.
    pub fn load(&mut self, table: u64, input: &mut Bytes) -> Result<(), Malformed> {
        match table {
            101 | 102 => self.memory.load(table, input),
            301 => load_row(&mut self.ended, input),
            302 => load_row(&mut self.taken, input),
            401..500 => self.store.load(table, input),
            601..700 => self.queues.load(table, input),
            _ => Err(Malformed("unknown table")),
        }
    }

    /// Ends what group time has ended.
    pub fn expire(&mut self, ctx: &Ctx, out: &mut Outcomes) {
        self.store.expire(ctx, out);
        self.queues.expire(ctx, out);
    }

    /// The earliest group time at which something ends.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.store.next_deadline().into_iter().chain(self.queues.next_deadline()).min()
    }

    /// Applies a command.
    pub fn apply(&mut self, ctx: &Ctx, asker: &Asker, work: Work, out: &mut Outcomes) {
        match work {
            Work::Op(op) => self.apply_op(ctx, asker, op, out),
            Work::CloseConn(conn) => {
                self.queues.close(ctx, conn, out);
                answer(out, *asker, Reply::OK);
            }
            Work::Introduce(introduction) => self.introduce(asker, introduction, out),
            Work::Take(parcel) => self.take(ctx, asker, parcel, out),
            _ => answer(out, *asker, Reply::error(Code::Err, "this is not a partition's work")),
        }
    }

    fn has_ended(&self, conn: &ConnId) -> bool {
        conn.session.0 != 0 && self.ended.get(&conn.node).is_some_and(|&ended| conn.session <= ended)
    }

    fn apply_op(&mut self, ctx: &Ctx, asker: &Asker, op: Op, out: &mut Outcomes) {
        if self.has_ended(&asker.conn) {
            let text = "the session of this connection's node has ended; reconnect and ask again";
            return answer(out, *asker, Reply::error(Code::Err, text));
        }
        match op {
            Op::Set(op) => self.store.set(ctx, asker, op, out),
            Op::Del(keys) => self.store.del(ctx, asker, keys, out),
            Op::Incr(op) => self.store.incr(ctx, asker, op, out),
            Op::Expire(op) => self.store.expire_key(ctx, asker, op, out),
            Op::Pub(op) => self.queues.publish(ctx, asker, op, out),
            Op::Fetch(op) => self.queues.fetch(ctx, asker, op, out),
            Op::Ack(op) => self.queues.ack(ctx, asker, op, out),
            Op::Nack(op) => self.queues.nack(ctx, asker, op, out),
            Op::Sub(op) => self.queues.sub(ctx, asker, op, out),
            Op::Unsub(topic) => self.queues.unsub(ctx, asker, &topic, out),
            Op::QSet(op) => self.queues.qset(ctx, asker, op, out),
            _ => answer(out, *asker, Reply::error(Code::Err, "this command is not decided by a partition")),
        }
    }

    fn taken(&self) -> u64 {
        *self.taken.get(&0).expect("the row exists from the beginning")
    }

    fn introduce(&mut self, asker: &Asker, introduction: Introduction, out: &mut Outcomes) {
        let Introduction { client, ends } = introduction;
        let alive = self.memory.knows(client) || ends >= self.taken();
        if alive {
            self.memory.meet(client);
        }
        answer(out, *asker, Reply::Int(i64::from(alive)));
    }

    fn take(&mut self, ctx: &Ctx, asker: &Asker, parcel: Parcel, out: &mut Outcomes) {
        for (number, item) in (parcel.first..).zip(parcel.items) {
            let next = self.taken() + 1;
            if number > next {
                break;
            }
            if number < next {
                continue;
            }
            self.taken.insert(0, number);
            match item {
                Item::NodeEnded((node, session)) => {
                    if self.ended.get(&node).is_none_or(|&ended| ended < session) {
                        self.ended.insert(node, session);
                    }
                    self.queues.end_session(ctx, node, session, out);
                }
                Item::ClientEnded(client) => self.memory.forget(client),
            }
        }
        answer(out, *asker, Reply::int(self.taken()));
    }

    /// Answers a read.
    #[must_use]
    pub fn read(&self, time: u64, work: &Work) -> Reply {
        match work {
            Work::Op(Op::QInfo(topic)) => self.queues.info(topic),
            Work::Op(op) => self.store.read(op, time),
            _ => Reply::error(Code::Err, "this cannot be read from a partition"),
        }
    }
}

impl Default for Partition {
    fn default() -> Self {
        Self::new()
    }
}
