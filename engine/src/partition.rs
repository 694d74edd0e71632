//! A partition's state: keys, topics, which tokens of locks are good, what client sessions were answered, and what came from
//! the outbox.
//!
//! Invariant: nothing of a session that group 0 has ended is executed here once the end has arrived:
//! commands of connections of an ended node session are refused, and a client session is made known only
//! by somebody who has seen it alive after all ends that arrived here (`Introduction::ends`).
//!
//! Subtlety: ends are counted, here and by group 0, apart from the outbox's numbers, which are each target's own. The
//! counts compare because group 0 posts every end to every partition in the command that counts it: the n-th end that
//! arrives at any partition is the n-th that group 0 has counted, whatever else it tells that partition in between.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::backup::Crossing;
use quorate_protocol::id::{ConnId, GroupId, LogPos, NodeId, SessionId};
use quorate_protocol::op::Op;
use quorate_protocol::peer::{Introduction, Item, Parcel, Receipted, Work};
use quorate_protocol::reply::{Code, Reply};
use quorate_protocol::wire::Malformed;

use crate::fence::Fences;
use crate::memory::Memory;
use crate::outbox::{Inbox, Outbox};
use crate::outcome::{Asker, Ctx, Outcomes, answer};
use crate::portion::Portion;
use crate::queue::Queues;
use crate::store::Store;
use crate::table::{Rows, Table, load_row};
use crate::trash::Trash;

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
    /// One row: how many ends of sessions have arrived from group 0.
    ends: Table<u8, u64>,
    /// Which tokens of locks are good here.
    fences: Fences,
    /// Dead letters for other partitions.
    pub outbox: Outbox,
    inbox: Inbox,
}

impl Partition {
    /// An empty partition, of so many.
    #[must_use]
    pub fn new(group: GroupId, partitions: u16) -> Self {
        let mut ends = Table::new(302);
        ends.insert(0, 0);
        Self {
            store: Store::new(),
            queues: Queues::new(group, partitions),
            memory: Memory::new(),
            ended: Table::new(301),
            ends,
            fences: Fences::new(),
            outbox: Outbox::new(group),
            inbox: Inbox::new(),
        }
    }

    /// What goes over into another cluster of so many partitions: the keys and the topics, and the letters on their way
    /// with their numbers, so that one which had arrived by the other partition's cut does not arrive again. `arrived`: what
    /// others had of this one by their cuts, which may have been later ones.
    #[must_use]
    pub fn rebased(self, group: GroupId, partitions: u16, arrived: &BTreeMap<GroupId, u64>) -> Self {
        let Self { store, queues, mut outbox, inbox, .. } = self;
        arrived.iter().for_each(|(&target, &arrived)| outbox.go_on_behind(target, arrived));
        let mut rebased = Self { store, queues, outbox, inbox, ..Self::new(group, partitions) };
        // What the system group tells begins anew there.
        rebased.inbox.forget(GroupId::SYSTEM);
        rebased.queues.rebase();
        rebased.post_letters();
        rebased
    }

    /// How far letters have crossed between this partition and others.
    #[must_use]
    pub fn crossings(&self) -> Vec<Crossing> {
        let mut crossings: BTreeMap<GroupId, Crossing> = BTreeMap::new();
        let of = |other: GroupId| Crossing { other, left: 0, arrived: 0 };
        for (target, left) in self.outbox.left() {
            crossings.entry(target).or_insert(of(target)).left = left;
        }
        for (source, arrived) in self.inbox.arrived().filter(|(source, _)| *source != GroupId::SYSTEM) {
            crossings.entry(source).or_insert(of(source)).arrived = arrived;
        }
        crossings.into_values().collect()
    }

    /// Switches deliberate bugs on.
    #[cfg(feature = "faults")]
    pub fn set_faults(&mut self, faults: &crate::engine::Faults) {
        self.queues.set_faults(faults.queues.clone());
        self.store.set_faults(faults.store.clone());
        self.fences.set_faults(faults.fences.clone());
        self.inbox.set_faults(faults.outbox.clone());
    }

    /// The digest of it all.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let parts = [
            self.store.digest(),
            self.queues.digest(),
            self.memory.digest(),
            self.ended.digest(),
            self.ends.digest(),
            self.fences.digest(),
            self.outbox.digest(),
            self.inbox.digest(),
        ];
        parts.into_iter().fold(0, u64::wrapping_add)
    }

    /// All tables, in the order in which a snapshot shows them.
    pub fn tables(&mut self) -> Vec<&mut dyn Rows> {
        let mut tables: Vec<&mut dyn Rows> = alloc::vec![&mut self.ended, &mut self.ends];
        tables.extend(self.fences.tables());
        tables.extend(self.outbox.tables());
        tables.extend(self.inbox.tables());
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
            302 => load_row(&mut self.ends, input),
            303 | 304 => self.fences.load(table, input),
            111 | 112 => self.outbox.load(table, input),
            113 => self.inbox.load(table, input),
            401..500 => self.store.load(table, input),
            601..700 => self.queues.load(table, input),
            _ => Err(Malformed("unknown table")),
        }
    }

    /// Gives all rows away, to be dropped bit by bit.
    pub fn discard(self, trash: &mut Trash) {
        self.store.discard(trash);
        self.queues.discard(trash);
        self.memory.discard(trash);
        self.fences.discard(trash);
        self.outbox.discard(trash);
    }

    /// Throws away what was dropped at once.
    pub fn throw_away(&mut self, trash: &mut Trash) {
        self.store.throw_away(trash);
    }

    /// Ends what group time has ended, as far as the portion goes.
    pub fn expire(&mut self, ctx: &Ctx, portion: &mut Portion, out: &mut Outcomes) {
        self.queues.expire(ctx, portion, out);
        self.store.expire(ctx, portion, out);
        self.post_letters();
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
            Work::Taken(receipt) => self.receipted(asker, &receipt, out),
            Work::Evict(lines) => {
                self.store.evict(&lines);
                answer(out, *asker, Reply::OK);
            }
            _ => answer(out, *asker, Reply::error(Code::Err, "this is not a partition's work")),
        }
        self.post_letters();
    }

    fn has_ended(&self, conn: &ConnId) -> bool {
        conn.session.0 != 0 && self.ended.get(&conn.node).is_some_and(|&ended| conn.session <= ended)
    }

    fn apply_op(&mut self, ctx: &Ctx, asker: &Asker, op: Op, out: &mut Outcomes) {
        if self.has_ended(&asker.conn) {
            let text = "the session of this connection's node has ended; reconnect and ask again";
            return answer(out, *asker, Reply::error(Code::Err, text));
        }
        // All of them first: a transaction that is refused for one has done nothing.
        if let Some(refusal) = op.fences().find_map(|fence| self.fences.check(fence).err()) {
            return answer(out, *asker, refusal);
        }
        match op {
            Op::Pub(op) => self.queues.publish(ctx, asker, op, out),
            Op::Fetch(op) => self.queues.fetch(ctx, asker, op, out),
            Op::Ack(op) => self.queues.ack(ctx, asker, op, out),
            Op::Nack(op) => self.queues.nack(ctx, asker, op, out),
            Op::Sub(op) => self.queues.sub(ctx, asker, op, out),
            Op::Unsub(topic) => self.queues.unsub(ctx, asker, &topic, out),
            Op::QSet(op) => self.queues.qset(ctx, asker, op, out),
            op => answer(out, *asker, self.store.apply(ctx, op)),
        }
    }

    fn ends(&self) -> u64 {
        *self.ends.get(&0).expect("the row exists from the beginning")
    }

    /// Gives dead letters that go elsewhere a place in the outbox, as far as there is room.
    fn post_letters(&mut self) {
        for target in self.queues.letters_for() {
            while let Some(mut letter) = self.queues.next_letter(target) {
                if !self.outbox.has_room(target, &Item::Letter(letter.clone())) {
                    break;
                }
                self.queues.posted(&mut letter);
                self.outbox.post(target, Item::Letter(letter));
            }
        }
    }

    fn receipted(&mut self, asker: &Asker, receipt: &Receipted, out: &mut Outcomes) {
        for item in self.outbox.receipted(receipt) {
            if let Item::Letter(letter) = item {
                self.queues.left(&letter);
            }
        }
        answer(out, *asker, Reply::OK);
    }

    fn introduce(&mut self, asker: &Asker, introduction: Introduction, out: &mut Outcomes) {
        let Introduction { client, ends } = introduction;
        let alive = self.memory.knows(client) || ends >= self.ends();
        if alive {
            self.memory.meet(client);
        }
        answer(out, *asker, Reply::Int(i64::from(alive)));
    }

    fn take(&mut self, ctx: &Ctx, asker: &Asker, parcel: Parcel, out: &mut Outcomes) {
        let Self { queues, memory, ended, ends, fences, inbox, .. } = self;
        let upto = inbox.take(parcel, |place, item| {
            match item {
                Item::NodeEnded((node, session)) => {
                    if ended.get(&node).is_none_or(|&ended| ended < session) {
                        ended.insert(node, session);
                    }
                    queues.end_session(ctx, node, session, out);
                }
                Item::ClientEnded(client) => memory.forget(client),
                Item::Floor(floor) => {
                    fences.hear(&floor);
                    return true;
                }
                Item::Unwatched((lock, number)) => {
                    fences.end(&lock, number);
                    return true;
                }
                Item::Letter(letter) => {
                    // Each letter has a place in the log of its own, and with it an id: see `Batch::placed`.
                    let at = LogPos { offset: ctx.at.offset + place, ..ctx.at };
                    return queues.receive(&Ctx { at, ..*ctx }, letter, out);
                }
            }
            ends.change(&0, |ends| *ends += 1);
            true
        });
        answer(out, *asker, Reply::int(upto));
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
