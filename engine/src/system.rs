//! The system group's state: members, locks, node sessions, client sessions, and the outbox of their ends.
//!
//! Invariants:
//! - A node has at most one live session. Opening a new one ends the old one in the same command, and a
//!   command of any but the live session is refused.
//! - The end of a session is counted and posted to every partition in the same command, so that the counts of ends
//!   that partitions keep compare with this one's (see `partition.rs`).
//! - A session is opened only if the outbox has room for its end, and for those of all others: ends come by time and
//!   cannot be refused.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::id::{Boot, ClientId, ConnId, GroupId, Identity, NodeId, SessionId};
use quorate_protocol::limits::{CLIENT_LEASE, CLIENTS_MAX, NODES_MAX, SESSION_LEASE};
use quorate_protocol::op::{MemberOp, Op};
use quorate_protocol::peer::{Item, OpenSession, Renewal, Work};
use quorate_protocol::reply::{Code, Reply};
use quorate_protocol::wire::Malformed;
use quorate_protocol::wire_struct;

use crate::batch::Batch;
use crate::effect::Member;
use crate::journal::{Entry, Meta};
use crate::lock::Locks;
use crate::members::{MemberRow, MemberStanding, Members, Targets};
use crate::memory::Memory;
use crate::outbox::{Inbox, Outbox};
use crate::outcome::{Asker, Ctx, Outcome, Outcomes, answer};
use crate::portion::Portion;
use crate::ring::Ring;
use crate::table::{Rows, Table, load_row};
use crate::time::{is_over, over_at};
use crate::trash::Trash;

mod floors;

wire_struct! {
    /// A node that has ever opened a session.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct NodeRow {
        /// Its data directory.
        pub identity: Identity,
        /// Its start.
        pub boot: Boot,
        /// The feature level of its release.
        pub level: u16,
        /// Its live session; 0 when it has none.
        pub session: SessionId,
        /// Group time at which the session ends.
        pub deadline: u64,
        /// Where its clients connect.
        pub client_address: String,
    }
}

/// What the end of a client session costs of a portion: all that was kept for it goes, and all partitions are told.
const CLIENT_COST: usize = 128;

/// See the top of the file.
pub struct System {
    /// The locks.
    pub locks: Locks,
    /// What client sessions have been answered here.
    pub memory: Memory,
    /// Who belongs to the cluster.
    pub members: Members,
    nodes: Table<NodeId, NodeRow>,
    clients: Table<ClientId, u64>,
    partitions: u16,
    /// Ends of sessions, for every partition.
    pub outbox: Outbox,
    inbox: Inbox,
    /// One row: how many ends of sessions have been posted.
    ends: Table<u8, u64>,
    /// One row: the cluster's feature level.
    level: Table<u8, u16>,
    members_changed: bool,
    #[cfg(feature = "faults")]
    forgotten_at_once: bool,
    /// Derived: no node or client session ends before this. Deadlines only move away, so it may be early.
    next_end: u64,
}

/// The data directories that a recovered log of the system group names, the first of each node: whom to let
/// in before anything of the log is known to be committed. A node that was forgotten may have come again since, with
/// another directory. Beside each, the life in which it was founded.
#[must_use]
pub fn identities(log: &[Entry]) -> BTreeMap<NodeId, (Identity, u32)> {
    let mut found = BTreeMap::new();
    for entry in log.iter().filter(|entry| !entry.data.is_empty()) {
        let commands = Batch::read(entry.data.clone()).map(|batch| batch.commands).unwrap_or_default();
        for logged in commands {
            match logged.work {
                Work::OpenSession(open) => {
                    let named = (open.identity, open.boot.life());
                    found.entry(open.node).or_insert(named);
                }
                Work::Forget(node) => _ = found.remove(&node),
                _ => {}
            }
        }
    }
    found
}

/// Where a recovered log of the system group says that nodes were added: whom to dial before anything of the log is
/// known to be committed. The founders may all be gone by then.
#[must_use]
pub fn addresses(log: &[Entry]) -> BTreeMap<NodeId, String> {
    let mut found = BTreeMap::new();
    for entry in log.iter().filter(|entry| !entry.data.is_empty()) {
        let commands = Batch::read(entry.data.clone()).map(|batch| batch.commands).unwrap_or_default();
        for logged in commands {
            match logged.work {
                Work::Op(Op::Member(MemberOp::Add(add) | MemberOp::Join(add))) => {
                    _ = found.insert(add.node, add.peer_address)
                }
                Work::Forget(node) => _ = found.remove(&node),
                _ => {}
            }
        }
    }
    found
}

impl System {
    /// The state of a cluster that was founded so.
    #[must_use]
    pub fn new(meta: &Meta) -> Self {
        let mut level = Table::new(207);
        level.insert(0, 1);
        let mut ends = Table::new(205);
        ends.insert(0, 0);
        Self {
            locks: Locks::new(),
            memory: Memory::new(),
            members: Members::new(&meta.founders),
            nodes: Table::new(201),
            clients: Table::new(202),
            partitions: meta.partitions,
            outbox: Outbox::new(GroupId::SYSTEM),
            inbox: Inbox::new(),
            ends,
            level,
            members_changed: false,
            #[cfg(feature = "faults")]
            forgotten_at_once: false,
            next_end: u64::MAX,
        }
    }

    /// What goes over into another cluster, founded so: the tokens, so that none is given twice, and the feature level.
    ///
    /// # Errors
    /// When there are no tokens left.
    pub fn rebased(self, meta: &Meta) -> Result<Self, &'static str> {
        Ok(Self { locks: self.locks.rebased()?, level: self.level, ..Self::new(meta) })
    }

    /// Switches deliberate bugs on.
    #[cfg(feature = "faults")]
    pub fn set_faults(&mut self, faults: &crate::engine::Faults) {
        self.locks.set_faults(faults.locks.clone());
        self.forgotten_at_once = faults.forgotten_at_once;
        self.inbox.set_faults(faults.outbox.clone());
    }

    /// The digest of it all.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let parts = [
            self.locks.digest(),
            self.memory.digest(),
            self.members.digest(),
            self.nodes.digest(),
            self.clients.digest(),
            self.outbox.digest(),
            self.inbox.digest(),
            self.ends.digest(),
            self.level.digest(),
        ];
        parts.into_iter().fold(0, u64::wrapping_add)
    }

    /// All tables, in the order in which a snapshot shows them.
    pub fn tables(&mut self) -> Vec<&mut dyn Rows> {
        let mut tables: Vec<&mut dyn Rows> = alloc::vec![
            &mut self.members.rows,
            &mut self.members.retired,
            &mut self.nodes,
            &mut self.clients,
            &mut self.ends,
            &mut self.level,
        ];
        tables.extend(self.outbox.tables());
        tables.extend(self.inbox.tables());
        tables.extend(self.memory.tables());
        tables.extend(self.locks.tables());
        tables
    }

    /// Takes a row of one of the tables from a snapshot.
    ///
    /// # Errors
    /// When it is none.
    pub fn load(&mut self, table: u64, input: &mut Bytes) -> Result<(), Malformed> {
        match table {
            101 | 102 => return self.memory.load(table, input),
            111 | 112 => return self.outbox.load(table, input),
            113 => return self.inbox.load(table, input),
            501..600 => return self.locks.load(table, input),
            201 => load_row(&mut self.nodes, input)?,
            202 => load_row(&mut self.clients, input)?,
            205 => load_row(&mut self.ends, input)?,
            206 => load_row(&mut self.members.rows, input)?,
            207 => load_row(&mut self.level, input)?,
            208 => load_row(&mut self.members.retired, input)?,
            _ => return Err(Malformed("unknown table")),
        }
        // Early at worst: the next look at the deadlines corrects it.
        self.next_end = 0;
        self.members_changed = true;
        Ok(())
    }

    /// Gives all rows away, to be dropped bit by bit.
    pub fn discard(self, trash: &mut Trash) {
        self.locks.discard(trash);
        self.memory.discard(trash);
        self.outbox.discard(trash);
    }

    /// Ends what group time has ended, as far as the portion goes.
    pub fn expire(&mut self, ctx: &Ctx, portion: &mut Portion, out: &mut Outcomes) {
        if ctx.time >= self.next_end {
            self.expire_sessions(ctx, portion, out);
        }
        self.locks.expire(ctx, portion, out);
        self.post_floors();
    }

    fn expire_sessions(&mut self, ctx: &Ctx, portion: &mut Portion, out: &mut Outcomes) {
        let over = |row: &&NodeRow| row.session != SessionId(0) && is_over(row.deadline, ctx.time);
        let nodes: Vec<NodeId> = self.nodes.iter().filter(|(_, row)| over(row)).map(|(id, _)| *id).collect();
        for node in nodes {
            self.end_node(ctx, node, out);
        }
        let clients: Vec<ClientId> = self
            .clients
            .iter()
            .filter(|&(_, &deadline)| is_over(deadline, ctx.time))
            .map(|(id, _)| *id)
            .collect();
        for client in clients {
            if !portion.take(CLIENT_COST) {
                break;
            }
            self.clients.remove(&client);
            self.memory.forget(client);
            self.locks.end_client(ctx, client, out);
            self.post(Item::ClientEnded(client));
        }
        let live =
            self.nodes.iter().filter(|(_, row)| row.session != SessionId(0)).map(|(_, row)| row.deadline);
        self.next_end =
            live.chain(self.clients.iter().map(|(_, &deadline)| deadline)).min().map_or(u64::MAX, over_at);
    }

    /// The earliest group time at which something may end.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        let session = (self.next_end != u64::MAX).then_some(self.next_end);
        session.into_iter().chain(self.locks.next_deadline()).min()
    }

    /// Tells all partitions of the end of a session.
    fn post(&mut self, end: Item) {
        self.ends.change(&0, |n| *n += 1);
        for target in (1..=self.partitions).map(GroupId) {
            self.outbox.post(target, end.clone());
        }
    }

    /// Why `more` sessions cannot be opened, if it is so: a partition has not heard of too many ends.
    fn check_ends(&self, more: usize) -> Result<(), Reply> {
        let live = self.nodes.iter().filter(|(_, row)| row.session != SessionId(0)).count();
        let owed = self.clients.len() + live + more;
        match (1..=self.partitions).map(GroupId).find(|&target| self.outbox.room(target) < owed) {
            None => Ok(()),
            Some(target) => {
                let text = format!(
                    "partition {} has to hear of too many sessions that have ended, and does not answer; bring its \
                     nodes back",
                    target.0
                );
                Err(Reply::error(Code::Err, text))
            }
        }
    }

    fn ends(&self) -> u64 {
        *self.ends.get(&0).expect("the row exists from the beginning")
    }

    fn end_node(&mut self, ctx: &Ctx, node: NodeId, out: &mut Outcomes) {
        let session = self.nodes.change(&node, |row| core::mem::take(&mut row.session));
        let Some(session) = session.filter(|session| session.0 != 0) else { return };
        out.push(Outcome::Notice(format!(
            "session {} of node {} has ended; its locks are released",
            session.0, node.0
        )));
        self.locks.end_session(ctx, node, session, out);
        self.post(Item::NodeEnded((node, session)));
    }

    /// Ends a node's session out of its time.
    #[cfg(test)]
    pub(crate) fn end_for_tests(&mut self, ctx: &Ctx, node: NodeId) {
        self.end_node(ctx, node, &mut Outcomes::new());
    }

    /// Whether the connection's session is its node's live one.
    fn is_live(&self, conn: &ConnId) -> bool {
        conn.session.0 != 0 && self.nodes.get(&conn.node).is_some_and(|row| row.session == conn.session)
    }

    /// Applies a command.
    pub fn apply(&mut self, ctx: &Ctx, asker: &Asker, work: Work, out: &mut Outcomes) {
        match work {
            Work::Op(op) => self.apply_op(ctx, asker, op, out),
            Work::OpenSession(open) => self.open_session(ctx, asker, open, out),
            Work::Renew(renewal) => self.renew(ctx, asker, &renewal, out),
            Work::CloseConn(conn) => {
                self.locks.close(ctx, conn, out);
                answer(out, *asker, Reply::OK);
            }
            Work::OpenClient => self.open_client(ctx, asker, out),
            Work::Take(parcel) => {
                // Nobody has anything to tell this group yet. What it does not understand stays with its source.
                let upto = self.inbox.take(parcel, |_, _| false);
                answer(out, *asker, Reply::int(upto));
            }
            Work::Taken(receipt) => {
                self.receipted(ctx, &receipt, out);
                answer(out, *asker, Reply::OK);
            }
            Work::Watch((lock, partition)) => self.watch(ctx, asker, lock, partition, out),
            Work::Forget(node) => self.forget(ctx, asker, node, out),
            Work::Renounce(node) => {
                let life = self.members.renounce(node);
                answer(out, *asker, life.map_or(Reply::Nil, |life| Reply::int(u64::from(life))));
            }
            Work::SeeClient(_) | Work::SeeIndex | Work::Introduce(_) | Work::Evict(_) => {
                answer(out, *asker, Reply::error(Code::Err, "this is not the system group's work"));
            }
        }
        self.post_floors();
    }

    fn apply_op(&mut self, ctx: &Ctx, asker: &Asker, op: Op, out: &mut Outcomes) {
        if !self.is_live(&asker.conn) {
            let text = "the session of this connection's node has ended; reconnect and ask again";
            return answer(out, *asker, Reply::error(Code::Err, text));
        }
        match op {
            Op::Lock(op) => self.locks.lock(ctx, asker, op, out),
            Op::Unlock(op) => self.locks.unlock(ctx, asker, op, out),
            Op::Renew(op) => self.locks.renew(ctx, asker, op, out),
            Op::Member(op) => self.change_members(asker, op, out),
            _ => answer(
                out,
                *asker,
                Reply::error(Code::Err, "this command is not decided by the system group"),
            ),
        }
    }

    fn change_members(&mut self, asker: &Asker, op: MemberOp, out: &mut Outcomes) {
        let joins = if let MemberOp::Join(add) = &op { Some(add.node) } else { None };
        let reply = match (self.members.decide(op), joins) {
            (Ok(()), None) => Reply::OK,
            (Ok(()), Some(node)) => Reply::int(u64::from(self.members.life(node))),
            (Err(why), _) => Reply::error(Code::Err, why),
        };
        self.members_changed = true;
        answer(out, *asker, reply);
    }

    /// Ends what there still is of a node that has given its share away and leaves.
    fn forget(&mut self, ctx: &Ctx, asker: &Asker, node: NodeId, out: &mut Outcomes) {
        let has_session = self.nodes.get(&node).is_some_and(|row| row.session != SessionId(0));
        #[cfg(feature = "faults")]
        let has_session = has_session && !self.forgotten_at_once;
        if has_session {
            self.members.close(node);
            self.members_changed = true;
            return answer(out, *asker, Reply::Int(0));
        }
        let identity = self.nodes.get(&node).map(|row| row.identity);
        let leaves = self.members.forget(ctx.at.serial(), node, identity);
        if leaves {
            self.end_node(ctx, node, out);
            self.nodes.remove(&node);
            self.members_changed = true;
            self.raise_level();
            out.push(Outcome::Notice(format!("node {} is no member of this cluster any more", node.0)));
        }
        answer(out, *asker, Reply::Int(i64::from(leaves)));
    }

    fn open_session(&mut self, ctx: &Ctx, asker: &Asker, open: OpenSession, out: &mut Outcomes) {
        if let Some(why) = self.members.objection(open.node, open.identity) {
            return answer(out, *asker, Reply::error(Code::Err, why));
        }
        let known = self.nodes.get(&open.node);
        if known.is_some_and(|row| row.identity != open.identity) {
            let text = format!(
                "node {} is known with another data directory; restore it, or remove the member and add it anew",
                open.node.0
            );
            return answer(out, *asker, Reply::error(Code::Err, text));
        }
        if known.is_some_and(|row| row.boot > open.boot) {
            let text = format!("node {} has started again since; this start is over", open.node.0);
            return answer(out, *asker, Reply::error(Code::Err, text));
        }
        if open.level < self.level() {
            let text = format!(
                "the cluster is at feature level {}, this release knows {}; run a newer one",
                self.level(),
                open.level
            );
            return answer(out, *asker, Reply::error(Code::Err, text));
        }
        // One for the session that ends now, one for the new one's own end.
        if let Err(full) = self.check_ends(2) {
            return answer(out, *asker, full);
        }
        self.end_node(ctx, open.node, out);
        let session = SessionId(ctx.at.serial());
        let row = NodeRow {
            identity: open.identity,
            boot: open.boot,
            level: open.level,
            session,
            deadline: ctx.time + SESSION_LEASE,
            client_address: open.client_address,
        };
        self.next_end = self.next_end.min(over_at(row.deadline));
        self.nodes.insert(open.node, row);
        self.members_changed = true;
        self.raise_level();
        answer(out, *asker, Reply::int(session.0));
    }

    /// The cluster's feature level.
    #[must_use]
    pub fn level(&self) -> u16 {
        *self.level.get(&0).expect("the row exists from the beginning")
    }

    /// Raises the feature level to what every member's release knows.
    fn raise_level(&mut self) {
        let of = |node| self.nodes.get(&node).map_or(0, |row| row.level);
        let known = self.members.present().map(|(node, _)| of(node)).min().unwrap_or(0);
        if known > self.level() {
            self.level.insert(0, known);
        }
    }

    fn renew(&mut self, ctx: &Ctx, asker: &Asker, renewal: &Renewal, out: &mut Outcomes) {
        let mut live = self.nodes.get(&renewal.node).is_some_and(|row| row.session == renewal.session);
        if live && renewal.session.0 != 0 {
            if self.members.standing(renewal.node) == Some(MemberStanding::Closing) {
                // What it was granted it keeps; it must not count on more.
                live = false;
            } else {
                self.nodes.change(&renewal.node, |row| row.deadline = ctx.time + SESSION_LEASE);
            }
            for client in &renewal.clients {
                self.clients.change(client, |deadline| *deadline = ctx.time + CLIENT_LEASE);
            }
        }
        answer(out, *asker, Reply::Int(i64::from(live)));
    }

    fn open_client(&mut self, ctx: &Ctx, asker: &Asker, out: &mut Outcomes) {
        if self.clients.len() >= CLIENTS_MAX {
            let text = format!(
                "there are {CLIENTS_MAX} client sessions already; close some, or wait until they end"
            );
            return answer(out, *asker, Reply::error(Code::Err, text));
        }
        // Clients leave room for nodes that come and go.
        if let Err(full) = self.check_ends(1 + 2 * NODES_MAX) {
            return answer(out, *asker, full);
        }
        let client = ClientId(ctx.at.serial());
        self.next_end = self.next_end.min(over_at(ctx.time + CLIENT_LEASE));
        self.clients.insert(client, ctx.time + CLIENT_LEASE);
        self.memory.meet(client);
        answer(out, *asker, self.see_client(client));
    }

    fn see_client(&self, client: ClientId) -> Reply {
        if self.clients.contains(&client) {
            Reply::Array([Reply::int(client.0), Reply::int(self.ends())].into())
        } else {
            Reply::Nil
        }
    }

    /// Answers a read.
    #[must_use]
    pub fn read(&self, time: u64, work: &Work) -> Reply {
        match work {
            Work::Op(Op::LockInfo(name)) => self.lock_info(time, name),
            Work::SeeClient(client) => self.see_client(*client),
            _ => Reply::error(Code::Err, "this cannot be read from the system group"),
        }
    }

    fn lock_info(&self, time: u64, name: &Bytes) -> Reply {
        self.locks.info(time, name)
    }

    /// The nodes, if they have changed since this was last asked.
    pub fn take_members(&mut self) -> Option<Box<[Member]>> {
        core::mem::take(&mut self.members_changed).then(|| self.members())
    }

    /// The nodes that are, or were, members.
    #[must_use]
    pub fn members(&self) -> Box<[Member]> {
        let member = |(node, row): (NodeId, &MemberRow)| {
            let known = self.nodes.get(&node);
            Member {
                node,
                identity: known.map(|known| known.identity),
                life: row.life,
                retired: self.members.retired(node).collect(),
                client_address: known.map(|known| known.client_address.clone()).unwrap_or_default(),
                peer_address: row.peer_address.clone(),
                removed: row.standing == MemberStanding::Gone,
            }
        };
        self.members.iter().map(member).collect()
    }

    /// The nodes that partitions are spread over, in id order.
    #[must_use]
    pub fn ring_nodes(&self) -> Vec<NodeId> {
        self.members.with(MemberStanding::Active).collect()
    }

    /// What is to become of a node; none if it was never a member.
    #[must_use]
    pub fn standing(&self, node: NodeId) -> Option<MemberStanding> {
        self.members.standing(node)
    }

    /// The members.
    pub fn present(&self) -> impl Iterator<Item = (NodeId, &MemberRow)> {
        self.members.present()
    }

    /// The nodes that are to be forgotten once they hold nothing.
    #[must_use]
    pub fn leaving(&self) -> Vec<NodeId> {
        let leaving = self.members.iter().filter(|(_, row)| row.standing.is_leaving());
        leaving.map(|(node, _)| node).collect()
    }

    /// Who is to hold a group; `ring` is that of `ring_nodes`.
    #[must_use]
    pub fn targets(&self, ring: &Ring, group: GroupId) -> Targets {
        self.members.targets(ring, group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_protocol::id::{ClusterId, LogPos};
    use quorate_protocol::op::MemberAdd;

    fn apply(system: &mut System, at: u64, conn: ConnId, work: Work) -> Reply {
        let asker = Asker { conn, request: at, client: None };
        let mut out = Outcomes::new();
        let ctx = Ctx { at: LogPos { index: 0, offset: u32::try_from(at).unwrap() }, time: at };
        system.apply(&ctx, &asker, work, &mut out);
        match out.pop() {
            Some(Outcome::Reply { reply, .. }) => reply,
            other => panic!("{other:?}"),
        }
    }

    fn session(node: u64, identity: u64, boot: u64, level: u16) -> Work {
        Work::OpenSession(OpenSession {
            node: NodeId(node),
            identity: Identity(identity.into()),
            boot: Boot(boot),
            level,
            client_address: String::new(),
        })
    }

    fn open(system: &mut System, at: u64, node: u64, boot: u64, level: u16) -> Reply {
        apply(system, at, ConnId::default(), session(node, node, boot, level))
    }

    fn three_nodes() -> System {
        let (cluster, identity) = (ClusterId(1), Identity(1));
        let founders = (1..=3).map(|node| (NodeId(node), format!("host{node}:7412"))).collect();
        System::new(&Meta { cluster, node: NodeId(1), identity, boot: Boot(1), partitions: 16, founders })
    }

    #[track_caller]
    fn assert_refused(reply: &Reply, why: &str) {
        assert!(reply.failure().is_some_and(|failure| failure.text.contains(why)), "{reply:?}");
    }

    #[test]
    fn the_feature_level_rises_when_every_member_knows_the_next_and_never_falls() {
        let mut system = three_nodes();
        for (at, node) in (1..).zip([1, 2]) {
            assert_eq!(open(&mut system, at, node, 1, 2), Reply::int(at));
        }
        assert_eq!(system.level(), 1, "node 3 is not known yet");
        open(&mut system, 3, 3, 1, 1);
        assert_eq!(system.level(), 1);
        open(&mut system, 4, 3, 2, 3);
        assert_eq!(system.level(), 2);
        assert_refused(&open(&mut system, 5, 3, 3, 1), "feature level 2");
        assert_eq!(open(&mut system, 6, 1, 2, 2), Reply::int(6));
        assert_refused(&open(&mut system, 7, 1, 1, 2), "started again");
    }

    /// A stamp may show a session's length up to a millisecond too early: nothing ends by that one, and nobody is to look then.
    #[test]
    fn sessions_are_there_at_their_deadlines_and_over_a_millisecond_later() {
        let mut system = three_nodes();
        for at in [4, 6] {
            let opened = apply(&mut system, at, ConnId::default(), Work::OpenClient);
            assert_eq!(opened, Reply::Array([Reply::int(at), Reply::int(0)].into()));
        }
        assert_eq!(system.next_deadline(), Some(5 + CLIENT_LEASE));
        open(&mut system, CLIENT_LEASE - SESSION_LEASE, 1, 1, 1);
        assert_eq!(system.next_deadline(), Some(1 + CLIENT_LEASE), "the node's is over before those");
        let mut look = |after: u64| {
            let ctx = Ctx { at: LogPos { index: 1, offset: 0 }, time: after + CLIENT_LEASE };
            let [is, anew] = [false, true].map(|forgets| {
                // As behind a snapshot, when nothing is known of the ends.
                system.next_end = if forgets { 0 } else { system.next_end };
                system.expire(&ctx, &mut Portion::endless(), &mut Outcomes::new());
                let node = system.nodes.get(&NodeId(1)).is_some_and(|row| row.session.0 != 0);
                let clients = [4, 6].map(|id| system.clients.contains(&ClientId(id)));
                (node, clients, system.next_deadline().map(|time| time - CLIENT_LEASE))
            });
            assert_eq!(is, anew);
            is
        };
        assert_eq!(look(0), (true, [true, true], Some(1)));
        assert_eq!(look(1), (false, [true, true], Some(5)));
        assert_eq!(look(4), (false, [true, true], Some(5)));
        assert_eq!(look(5), (false, [false, true], Some(7)));
        assert_eq!(look(6), (false, [false, true], Some(7)));
        assert_eq!(look(7), (false, [false, false], None));
    }

    #[test]
    fn a_node_that_is_gone_holds_nothing_back_and_comes_again_only_anew() {
        let mut system = three_nodes();
        let conn = ConnId::new(NodeId(1), SessionId(1), Boot(1), 1);
        let change = |op| Work::Op(Op::Member(op));
        assert!(system.take_members().is_none(), "nothing is known yet");
        for (at, (node, level)) in (1..).zip([(1, 2), (2, 2), (3, 1)]) {
            assert_eq!(open(&mut system, at, node, 7, level), Reply::int(at));
        }
        assert_refused(&open(&mut system, 4, 4, 1, 2), "no member of this cluster; send MEMBER ADD 4");
        assert_refused(
            &apply(&mut system, 5, ConnId::default(), change(MemberOp::Remove(NodeId(3)))),
            "reconnect",
        );
        assert_eq!(apply(&mut system, 6, conn, Work::Forget(NodeId(3))), Reply::Int(0), "it is not leaving");
        assert_eq!(apply(&mut system, 7, conn, change(MemberOp::Remove(NodeId(3)))), Reply::OK);
        assert_eq!(system.ring_nodes(), [1, 2].map(NodeId));
        let renewal = || Work::Renew(Renewal { node: NodeId(3), session: SessionId(3), clients: Vec::new() });
        assert_eq!(apply(&mut system, 8, conn, renewal()), Reply::Int(1), "a leaving node is still at work");
        assert_eq!((system.level(), system.outbox.is_empty()), (1, true));
        let forget = |system: &mut System, at| apply(system, at, conn, Work::Forget(NodeId(3)));
        assert_eq!(forget(&mut system, 9), Reply::Int(0), "its clients count on its session");
        assert_eq!(apply(&mut system, 10, conn, renewal()), Reply::Int(0), "which gets no more of its lease");
        assert_refused(&open(&mut system, 10, 3, 8, 2), "is being removed");
        let over = Ctx { at: LogPos { index: 0, offset: 10 }, time: 9 + SESSION_LEASE };
        assert_eq!(system.next_deadline(), Some(2 + SESSION_LEASE), "the others are not renewed here");
        system.expire(&over, &mut Portion::endless(), &mut Outcomes::new());
        assert_eq!(forget(&mut system, 11), Reply::Int(1));
        assert_eq!(system.level(), 2, "the old release is gone");
        for target in (1..=16).map(GroupId) {
            let parcel = system.outbox.parcel(target, 0, 64);
            assert!(parcel.items.contains(&Item::NodeEnded((NodeId(3), SessionId(3)))));
        }
        assert_refused(&open(&mut system, 11, 3, 8, 2), "was removed from this cluster");
        let removed = |members: &[Member]| members.iter().map(|member| member.removed).collect::<Vec<_>>();
        assert_eq!(removed(&system.take_members().expect("news")), [false, false, true]);

        let add = MemberAdd { node: NodeId(3), peer_address: "host33:7412".into() };
        assert_eq!(open(&mut system, 12, 1, 8, 2), Reply::int(12));
        let conn = ConnId::new(NodeId(1), SessionId(12), Boot(8), 1);
        assert_eq!(apply(&mut system, 13, conn, change(MemberOp::Add(add))), Reply::OK);
        assert_refused(&open(&mut system, 13, 3, 8, 2), "belongs to a member that was removed");
        let members = system.take_members().expect("news");
        assert_eq!((members[2].identity, &members[2].retired), (None, &[Identity(3)].into()));
        assert_eq!((members[2].removed, members[2].peer_address.as_str()), (false, "host33:7412"));
        assert_eq!((members[1].life, members[2].life), (0, 1), "it begins its second life");
        assert_eq!(
            apply(&mut system, 14, conn, session(3, 33, 1, 2)),
            Reply::int(14),
            "a directory of its own"
        );
        assert_eq!(system.take_members().expect("news")[2].identity, Some(Identity(33)));
    }
}
