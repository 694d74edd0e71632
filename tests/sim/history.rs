//! What clients asked and what they were told, and where in the logs it ended up.
//!
//! Charter: one record for each operation of a client: invoked, answered, and its places in the groups' committed
//! logs. The checkers read it after the run.
//!
//! Invariant: a record's outcome is what its client may conclude. `Refused` is concluded only when every sending of
//! the operation was answered with a never-proposed code; a lost connection or `-INDOUBT` leaves `Unknown`.
//!
//! Subtlety: connection counters and request numbers begin anew with every boot of a node, so a logged command is
//! told apart from its namesakes of an earlier boot by what it says; the workload sees to it that no two say the same.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate_engine::batch::Logged;
use quorate_protocol::id::{ClientId, GroupId, LogPos};
use quorate_protocol::op::{Commands, Multi, Op};
use quorate_protocol::peer::Work;
use quorate_protocol::reply::{Code, Reply};

/// What a client may conclude.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing yet.
    Open,
    /// It was answered.
    Answered(Reply),
    /// It never takes effect.
    Refused(Code),
    /// It may or may not have taken effect, or may still do so.
    Unknown,
}

/// Where a command lies in a committed log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The group.
    pub group: GroupId,
    /// The place in its log.
    pub pos: LogPos,
    /// Group time there.
    pub stamp: u64,
    /// When a replica applied it first, in the world's time.
    pub time: u64,
}

/// An operation of a client.
#[derive(Debug, Clone)]
pub struct Record {
    /// Its number.
    pub id: u64,
    /// The client.
    pub client: usize,
    /// What was asked.
    pub op: Op,
    /// Whether the connection was an ordered one.
    pub ordered: bool,
    /// Its place in a client session.
    pub session: Option<(ClientId, u64)>,
    /// The connection on which it was asked last, and the request's number there.
    pub conn: u64,
    /// See `conn`.
    pub request: u64,
    /// When it was asked first.
    pub invoked: u64,
    /// The turn in which a node heard it last, by the number of turns that the node had taken.
    pub heard: u64,
    /// When its outcome became known to the client; `u64::MAX` while it is not.
    pub ended: u64,
    /// What the client may conclude.
    pub outcome: Outcome,
    /// Some sending of it may have been delivered, and no answer to that sending came.
    pub maybe: bool,
    /// Its places in committed logs, in the order in which they were applied.
    pub places: Vec<Place>,
}

impl Record {
    /// Of an operation that nothing has become of.
    #[must_use]
    pub fn new(id: u64, client: usize, op: Op) -> Self {
        Self {
            id,
            client,
            op,
            ordered: false,
            session: None,
            conn: 0,
            request: 0,
            invoked: 0,
            heard: 0,
            ended: u64::MAX,
            outcome: Outcome::Open,
            maybe: false,
            places: Vec::new(),
        }
    }

    /// The reply, if it was answered.
    #[must_use]
    pub fn reply(&self) -> Option<&Reply> {
        if let Outcome::Answered(reply) = &self.outcome { Some(reply) } else { None }
    }

    /// Whether it was answered with something that is not an error.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.reply().is_some_and(|reply| reply.failure().is_none())
    }

    /// A short description.
    #[must_use]
    pub fn story(&self) -> String {
        let outcome = match &self.outcome {
            Outcome::Answered(reply) => format!("answered {reply:?}"),
            Outcome::Refused(code) => format!("refused -{}", code.word()),
            Outcome::Open | Outcome::Unknown => "of unknown outcome".into(),
        };
        format!("operation {} of client {} ({:?}) {outcome}", self.id, self.client, self.op)
    }
}

/// See the top of the file.
#[derive(Debug, Default)]
pub struct History {
    records: Vec<Record>,
    /// (node, connection counter, request) → operations, oldest boot first.
    by_asker: BTreeMap<(u64, u64, u64), Vec<u64>>,
    by_session: BTreeMap<(ClientId, u64), u64>,
    /// What leaders have evicted: of a key the version that it had, as a command that removes it if that is its version
    /// still, and that took effect when a replica applied it first.
    pub evictions: Vec<Record>,
    /// Key → the version that its newest SET or INCR in the log has given it.
    pub versions: BTreeMap<Bytes, u64>,
}

impl History {
    /// All operations, by number.
    #[must_use]
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Keys that leaders have evicted, and writes that were refused for want of room.
    #[must_use]
    pub fn short_of_room(&self) -> [usize; 2] {
        let refused = |record: &&Record| record.outcome == Outcome::Refused(Code::Oom);
        [self.evictions.len(), self.records.iter().filter(refused).count()]
    }

    /// The number of the next operation.
    #[must_use]
    pub fn next_id(&self) -> u64 {
        self.records.len() as u64
    }

    /// A client asks.
    pub fn invoke(&mut self, client: usize, op: Op, ordered: bool, time: u64) -> u64 {
        let id = self.next_id();
        self.records.push(Record { ordered, invoked: time, ..Record::new(id, client, op) });
        id
    }

    /// An operation that nobody has asked for as such: what is known of it stands for one that somebody has.
    pub fn add(&mut self, record: Record) {
        assert_eq!(record.id, self.next_id(), "records are found by their numbers");
        self.records.push(record);
    }

    /// An operation.
    #[must_use]
    pub fn get(&self, id: u64) -> &Record {
        &self.records[place_of(id)]
    }

    /// An operation, to be changed.
    pub fn get_mut(&mut self, id: u64) -> &mut Record {
        &mut self.records[place_of(id)]
    }

    /// An operation got its number in a client session.
    pub fn in_session(&mut self, id: u64, client: ClientId, seq: u64) {
        self.get_mut(id).session = Some((client, seq));
        self.by_session.insert((client, seq), id);
    }

    /// A node hears an operation on a connection.
    pub fn heard(&mut self, id: u64, node: u64, counter: u64, request: u64, turn: u64) {
        self.get_mut(id).heard = turn;
        self.by_asker.entry((node, counter, request)).or_default().push(id);
    }

    /// The outcome of an operation becomes known.
    pub fn end(&mut self, id: u64, outcome: Outcome, time: u64) {
        let record = self.get_mut(id);
        if record.ended == u64::MAX {
            record.outcome = outcome;
            record.ended = time;
        }
    }

    fn evicted(&mut self, (key, version): &(Bytes, u64), place: Place) {
        let commands = Commands(vec![Op::GetDel(key.clone())]);
        let op = Op::Multi(Multi { watched: vec![(key.clone(), *version)], commands }.into());
        self.evictions.push(Record {
            invoked: place.time,
            ended: place.time,
            outcome: Outcome::Answered(Reply::Array(Vec::new())),
            places: vec![place],
            ..Record::new(0, 0, op)
        });
    }

    /// A command was applied somewhere for the first time.
    pub fn applied(&mut self, logged: &Logged, place: Place) {
        if let Work::Evict(lines) = &logged.work {
            return lines.iter().for_each(|line| self.evicted(line, place));
        }
        let Work::Op(op) = &logged.work else { return };
        let asker = &logged.asker;
        let key = (asker.conn.node.0, asker.conn.number(), asker.request);
        let of_session = asker.client.and_then(|seq| self.by_session.get(&(seq.client, seq.seq)));
        let of_asker = || {
            let ids = self.by_asker.get(&key)?;
            ids.iter().rev().find(|&&id| says(&self.records[place_of(id)].op, op))
        };
        let Some(&id) = of_session.or_else(of_asker) else { return };
        self.get_mut(id).places.push(place);
        if self.get(id).places.len() > 1 {
            return;
        }
        match op {
            Op::Set(set) => self.versions.insert(set.key.clone(), place.pos.serial()),
            Op::Incr(incr) => self.versions.insert(incr.key.clone(), place.pos.serial()),
            Op::Append(append) => self.versions.insert(append.key.clone(), place.pos.serial()),
            Op::GetEx(get) => self.versions.insert(get.key.clone(), place.pos.serial()),
            // It may have been given up for what was watched: then these are guesses, and wrong ones.
            Op::Multi(_) => {
                let written = op.writes().into_owned();
                written.into_iter().for_each(|key| _ = self.versions.insert(key, place.pos.serial()));
                None
            }
            _ => None,
        };
    }
}

/// Whether a logged command is the operation, or its share for one partition.
fn says(asked: &Op, logged: &Op) -> bool {
    match (asked, logged) {
        (Op::Del(all), Op::Del(share)) => share.iter().all(|key| all.contains(key)),
        (Op::MSet(all), Op::MSet(share)) => share.pairs.iter().all(|pair| all.pairs.contains(pair)),
        // A node adds what the system group has told it.
        (Op::FencedSet(asked), Op::FencedSet(logged)) => {
            let alike = (&asked.fence.lock, asked.fence.token) == (&logged.fence.lock, logged.fence.token);
            alike && asked.set == logged.set
        }
        (asked, logged) => asked == logged,
    }
}

fn place_of(id: u64) -> usize {
    usize::try_from(id).expect("operations are counted in memory")
}
