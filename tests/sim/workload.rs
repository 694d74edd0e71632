//! What clients ask: all verbs, on few names, so that they collide.
//!
//! Charter: decides a client's next operation from what the client knows (locks that it thinks it holds, messages that
//! it has received), and what it learns from answers.
//!
//! Invariant: no two operations of a kind say exactly the same unless one is meant to be the other's resend: values,
//! sums, leases and a key that nobody writes carry the operation's number. So a logged command tells whose it is. FLUSHALL
//! alone has nothing to carry; it is rare, so its connection and number tell.

use bytes::Bytes;
use quorate_protocol::id::Index;
use quorate_protocol::limits::DURATION_MAX;
use quorate_protocol::op::{
    Ack, Append, Commands, DEAD_LETTERS, Expire, Expiry, Fence, FencedSet, Fetch, FillV, GetEx, Incr, Lock,
    MSet, Multi, Nack, Only, Op, Pub, QSet, Receipt, Renew, Set, SetBack, SetRange, Sub, Ttl, Unlock, When,
};
use quorate_protocol::peer::Delivery;
use quorate_protocol::reply::Reply;

use super::rng::Rng;
use super::world::World;

/// Keys whose values are compared.
pub const REGISTERS: u64 = 3;
/// Keys whose values are compared too, and that lie in one partition, so that transactions can change both.
pub const PAIR: [&str; 2] = ["r8{pair}", "r9{pair}"];
/// Keys that count.
pub const COUNTERS: u64 = 2;
/// Keys that are written back.
pub const BACKS: u64 = 3;
/// Keys that one of those who miss them fills. Their values are compared too.
pub const FILLED: u64 = 2;
/// A time to live that no run lasts for, in milliseconds.
const NEVER: u64 = 1 << 40;
/// Locks. Each fences a key, `rl` and its number.
pub const LOCKS: u64 = 3;
/// Topics.
pub const TOPICS: u64 = 2;
/// Where the first topic's dead letters go now and then; in another partition than the topic, if there are several.
pub const DEAD: &[u8] = b"dead";

/// What a client is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Keys of all kinds.
    Keys,
    /// Locks.
    Locks,
    /// Messages.
    Queues,
    /// Keys, far more often read than written.
    Readers,
    /// Keys that are written back.
    Backs,
    /// Keys that are soon gone.
    Brief,
    /// Keys, written so that one does not know whether they were.
    Doubtful,
    /// Everything.
    Mixed,
    /// Nothing by itself.
    Auditor,
}

impl Profile {
    /// The profile of a client: every kind is there.
    pub fn of(client: usize, rng: &mut Rng) -> Self {
        match client {
            0 => Self::Keys,
            1 => Self::Locks,
            2 => Self::Queues,
            3 => Self::Readers,
            _ => rng.pick(&[
                Self::Keys,
                Self::Brief,
                Self::Readers,
                Self::Readers,
                Self::Locks,
                Self::Locks,
                Self::Queues,
                Self::Mixed,
            ]),
        }
    }
}

/// A lock that a client thinks it holds.
#[derive(Debug, Clone)]
pub struct Held {
    name: Bytes,
    owner: Option<Bytes>,
    token: u64,
    shared: bool,
}

/// What a client knows.
#[derive(Debug, Default)]
pub struct Mind {
    held: Vec<Held>,
    sections: u64,
    /// The named owner of the present critical section.
    owner: Option<Bytes>,
    received: Vec<(Bytes, u64, u32)>,
    subscribed: Vec<Bytes>,
    published: Vec<Pub>,
    /// Keys that it is to fill.
    leads: Vec<Bytes>,
}

impl Mind {
    /// What belongs to the connection is gone with it.
    pub fn connection_ended(&mut self) {
        self.held.retain(|held| held.owner.is_some());
        self.subscribed.clear();
    }
}

/// A name of a kind.
#[must_use]
pub fn name(kind: &str, number: u64) -> Bytes {
    format!("{kind}{number}").into()
}

impl World {
    /// A client's next operation.
    pub fn next_op(&mut self, at: usize) -> Option<Op> {
        let profile = match self.clients[at].profile {
            Profile::Mixed => self.client_rng.pick(&[Profile::Keys, Profile::Locks, Profile::Queues]),
            profile => profile,
        };
        let of_keys = matches!(profile, Profile::Keys | Profile::Readers);
        if of_keys
            && self.client_rng.chance(600)
            && let Some(key) = self.clients[at].mind.leads.pop()
        {
            let (value, when) = (name("v", self.checks.history.next_id()), When::Version(0));
            return Some(Op::Set(Set { key, value, when, expiry: Expiry::Never, get: false }));
        }
        match profile {
            Profile::Keys => Some(self.next_key_op()),
            Profile::Readers if self.client_rng.chance(900) => Some(self.next_read()),
            Profile::Readers => Some(self.next_key_op()),
            Profile::Locks => Some(self.next_lock_op(at)),
            Profile::Queues => Some(self.next_queue_op(at)),
            Profile::Backs => Some(self.next_back_op(at)),
            Profile::Brief => Some(self.next_brief_op()),
            Profile::Doubtful => {
                let key = name("r", self.client_rng.below(REGISTERS));
                Some(match self.client_rng.below(5) {
                    0 | 1 => Op::Get(key),
                    2 | 3 => self.next_doubtful_op(&key),
                    _ => self.next_set(key),
                })
            }
            Profile::Mixed | Profile::Auditor => None,
        }
    }

    /// Each client has a key that it mostly writes, so that lines stay with their owners for a while.
    fn next_back_op(&mut self, at: usize) -> Op {
        let id = self.checks.history.next_id();
        let own = self.client_rng.chance(800);
        let number = if own { at as u64 % BACKS } else { self.client_rng.below(BACKS) };
        let (key, value) = (name("w", number), name("v", id));
        match self.client_rng.below(21) {
            20 => {
                let beside = format!("{{{}}}beside", String::from_utf8_lossy(&key)).into();
                let append = Append { key: beside, value: format!("+{id}").into() };
                let commands = Commands(vec![Op::Get(key), Op::Append(append)]);
                Op::Multi(Multi { watched: Vec::new(), commands }.into())
            }
            0..=12 if own => Op::SetBack(SetBack { key, value }),
            0..=2 => Op::SetBack(SetBack { key, value }),
            13 => Op::Set(Set { key, value, when: When::Always, expiry: Expiry::Never, get: false }),
            14 => Op::Exists(vec![key]),
            _ => Op::Get(key),
        }
    }

    fn next_read(&mut self) -> Op {
        let id = self.checks.history.next_id();
        match self.client_rng.below(7) {
            6 => self.next_fill(),
            0 => Op::Get(name("n", self.client_rng.below(COUNTERS))),
            1 => Op::Get(name("t", id.saturating_sub(self.client_rng.below(60)))),
            _ => Op::Get(name("r", self.client_rng.below(REGISTERS))),
        }
    }

    fn next_key_op(&mut self) -> Op {
        let id = self.checks.history.next_id();
        if self.client_rng.chance(8) {
            return Op::FlushAll;
        }
        let key = name("r", self.client_rng.below(REGISTERS));
        match self.client_rng.below(37) {
            30..=32 => self.next_fill(),
            34..=36 => self.next_doubtful_op(&key),
            33 => {
                let filled = self.client_rng.below(FILLED);
                Op::Del(vec![name("rf", filled), format!("{{rf{filled}}}{id}").into()])
            }
            24 => Op::Append(Append { key, value: format!("+{id}").into() }),
            25 => {
                let other = name("r", self.client_rng.below(REGISTERS));
                let mut pairs = vec![(key.clone(), name("v", id))];
                if other != key {
                    pairs.push((other, name("w", id)));
                }
                Op::MSet(MSet { pairs, absent: false })
            }
            26..=29 => self.next_pair_op(),
            0..=5 => Op::Get(key),
            6..=12 => self.next_set(key),
            13 | 14 => {
                let nobody = format!("{{{}}}{id}", String::from_utf8_lossy(&key));
                let mut keys = vec![key, nobody.into()];
                if self.client_rng.chance(200) {
                    keys.push(name("r", self.client_rng.below(REGISTERS)));
                }
                Op::Del(keys)
            }
            15 => Op::Exists(vec![key]),
            16 => Op::Expire(Expire { key, ms: -i64::try_from(id).expect("small"), only: Only::Always }),
            17..=19 => {
                let by = i64::try_from(self.client_rng.below(1 << 30) << 16 | id & 0xffff).expect("small");
                Op::Incr(Incr { key: name("n", self.client_rng.below(COUNTERS)), by })
            }
            20 => Op::Get(name("n", self.client_rng.below(COUNTERS))),
            21 => {
                let (key, value) = (name("t", id), name("v", id));
                let ms = 50 + self.client_rng.below(3000);
                Op::Set(Set { key, value, when: When::Always, expiry: Expiry::After(ms), get: false })
            }
            22 => Op::Get(name("t", id.saturating_sub(self.client_rng.below(60)))),
            _ => Op::Ttl(Ttl { key: name("t", id.saturating_sub(self.client_rng.below(60))), millis: true }),
        }
    }

    /// A command whose answer may be the same whether it changes the key or leaves it as it is.
    fn next_doubtful_op(&mut self, key: &Bytes) -> Op {
        let id = self.checks.history.next_id();
        // It has nothing to carry; what stands beside it tells whose it is.
        let alone = |op: Op| {
            let nobody = Op::GetDel(format!("{{{}}}{id}", String::from_utf8_lossy(key)).into());
            Op::Multi(Multi { watched: Vec::new(), commands: Commands(vec![op, nobody]) }.into())
        };
        let get_ex = |expiry| Op::GetEx(GetEx { key: key.clone(), expiry });
        let set_range = |offset, value| Op::SetRange(SetRange { key: key.clone(), offset, value });
        match self.client_rng.below(6) {
            0 => set_range(id, Bytes::new()),
            1 => set_range(self.client_rng.below(20), format!("={id}=").into()),
            2 => get_ex(Expiry::After(NEVER + id)),
            3 => alone(get_ex(Expiry::Never)),
            4 => alone(Op::Persist(key.clone())),
            _ => {
                let (value, when) = (name("v", id), When::Absent);
                Op::Set(Set { key: key.clone(), value, when, expiry: Expiry::Never, get: true })
            }
        }
    }

    /// Keys are set for a moment, and looked for when it ends.
    fn next_brief_op(&mut self) -> Op {
        let id = self.checks.history.next_id();
        let of_late = name("t", id.saturating_sub(self.client_rng.below(30)));
        match self.client_rng.below(3) {
            0 => {
                let (key, value) = (name("t", id), name("v", id));
                let expiry = Expiry::After(2 + self.client_rng.below(40));
                Op::Set(Set { key, value, when: When::Always, expiry, get: false })
            }
            1 => Op::Ttl(Ttl { key: of_late, millis: true }),
            _ => Op::Get(of_late),
        }
    }

    fn next_fill(&mut self) -> Op {
        let key = name("rf", self.client_rng.below(FILLED));
        Op::FillV(FillV { key, ms: 50 + self.client_rng.below(1000) })
    }

    fn next_pair_op(&mut self) -> Op {
        let id = self.checks.history.next_id();
        let [first, second] = PAIR.map(Bytes::from);
        let get = |key: &Bytes| Op::Get(key.clone());
        let set = |key: &Bytes| {
            let (key, value) = (key.clone(), name("v", id));
            Op::Set(Set { key, value, when: When::Always, expiry: Expiry::Never, get: false })
        };
        let append = |key: &Bytes| Op::Append(Append { key: key.clone(), value: format!("+{id}").into() });
        let commands = match self.client_rng.below(6) {
            0 => return get(&first),
            1 => return get(&second),
            2 => vec![get(&first), get(&second)],
            3 => vec![set(&first), Op::GetDel(second.clone())],
            4 => vec![append(&second), set(&first)],
            _ => vec![set(&second), append(&first)],
        };
        let version = |key: &Bytes| self.checks.history.versions.get(key).copied().unwrap_or(0);
        let watched = match self.client_rng.below(3) {
            0 => vec![(first.clone(), version(&first))],
            1 => vec![(first.clone(), version(&first)), (second.clone(), version(&second))],
            _ => Vec::new(),
        };
        Op::Multi(Multi { watched, commands: Commands(commands) }.into())
    }

    fn next_set(&mut self, key: Bytes) -> Op {
        let id = self.checks.history.next_id();
        let version = self.checks.history.versions.get(&key).copied().unwrap_or(0);
        let when = match self.client_rng.below(8) {
            0 => When::Absent,
            1 => When::Present,
            2 => When::Version(0),
            3 | 4 => When::Version(version),
            _ => When::Always,
        };
        let expiry = if self.client_rng.chance(200) { Expiry::Keep } else { Expiry::Never };
        Op::Set(Set { key, value: name("v", id), when, expiry, get: self.client_rng.chance(250) })
    }

    fn next_lock_op(&mut self, at: usize) -> Op {
        let id = self.checks.history.next_id();
        let rng = &mut self.client_rng;
        let ordered = self.clients[at].ordered;
        let mind = &mut self.clients[at].mind;
        let often = if self.plan.only == Some(Profile::Locks) { 850 } else { 400 };
        if self.plan.fenced && rng.chance(often) {
            return fenced_op(rng, mind, id);
        }
        if !mind.held.is_empty() && rng.chance(650) {
            let held = mind.held[rng.index(mind.held.len())].clone();
            let token = rng.chance(900).then_some(held.token);
            match rng.below(10) {
                0..=5 => {
                    mind.held.retain(|other| (&other.name, &other.owner) != (&held.name, &held.owner));
                    return Op::Unlock(Unlock { name: held.name, owner: held.owner, token });
                }
                6 | 7 => {
                    let ttl = rng.below(4) * 1000 + 100 + id % 900;
                    return Op::Renew(Renew { name: held.name, owner: held.owner, token, ttl });
                }
                8 if held.shared => {
                    let wait = rng.pick(&[0, 1000, 5000]);
                    let ttl = rng.below(4) * 1000 + 100 + id % 900;
                    return Op::Lock(Lock { name: held.name, shared: false, owner: held.owner, ttl, wait });
                }
                _ => {}
            }
        }
        if rng.chance(80) {
            return Op::LockInfo(name("l", rng.below(LOCKS)));
        }
        if mind.held.iter().all(|held| held.owner != mind.owner) {
            // Nothing is held in the old critical section: a new one begins, under a new name. A client session
            // outlives its connections, so it owns nothing by connection.
            mind.sections += 1;
            mind.owner = (!ordered || rng.chance(500)).then(|| format!("o{at}.{}", mind.sections).into());
        }
        let (name, shared, owner) = (name("l", rng.below(LOCKS)), rng.chance(350), mind.owner.clone());
        if owner.is_none() && rng.chance(250) {
            // As long as the connection lives.
            return Op::Lock(Lock { name, shared, owner, ttl: DURATION_MAX, wait: 300 + id % 6000 });
        }
        let wait = rng.pick(&[0, 300, 2000, 6000]);
        let wait = if wait == 0 { 0 } else { wait + rng.below(500) };
        Op::Lock(Lock { name, shared, owner, ttl: rng.pick(&[0, 1, 3, 8]) * 1000 + 100 + id % 900, wait })
    }

    fn next_queue_op(&mut self, at: usize) -> Op {
        let id = self.checks.history.next_id();
        let rng = &mut self.client_rng;
        let mind = &mut self.clients[at].mind;
        let topic = name("q", rng.below(TOPICS));
        if !mind.received.is_empty() && rng.chance(600) {
            let (topic, message, attempt) = mind.received.swap_remove(rng.index(mind.received.len()));
            let receipt = Receipt { id: message, attempt: Some(attempt) };
            if rng.chance(800) {
                let attempt = rng.chance(800).then_some(attempt);
                return Op::Ack(Ack { topic, receipts: vec![Receipt { id: message, attempt }] });
            }
            return Op::Nack(Nack {
                topic,
                receipt,
                delay: rng.below(3) * 1000 + id % 900,
                dead: rng.chance(150),
            });
        }
        match rng.below(20) {
            0..=8 => {
                if !mind.published.is_empty() && rng.chance(250) {
                    return Op::Pub(mind.published[rng.index(mind.published.len())].clone());
                }
                let dedupe = rng.chance(400).then(|| name("d", id));
                let delay = if rng.chance(200) { rng.below(2000) } else { 0 };
                let op = Pub { topic, body: name("m", id), dedupe, delay };
                if op.dedupe.is_some() {
                    mind.published.push(op.clone());
                }
                Op::Pub(op)
            }
            9..=14 => Op::Fetch(Fetch {
                topic: if rng.chance(100) { Bytes::from_static(DEAD) } else { topic },
                count: u32::try_from(1 + rng.below(4)).expect("small"),
                block: if rng.chance(400) { rng.below(2000) } else { 0 },
                lease: Some(rng.below(3) * 1000 + 100 + id % 900),
            }),
            15 | 16 if !mind.subscribed.contains(&topic) => {
                mind.subscribed.push(topic.clone());
                Op::Sub(Sub { topic, prefetch: 3, lease: Some(rng.below(3) * 1000 + 100 + id % 900) })
            }
            17 if !mind.subscribed.is_empty() => {
                let topic = mind.subscribed.swap_remove(rng.index(mind.subscribed.len()));
                Op::Unsub(topic)
            }
            18 => {
                let max_deliver = Some(u32::try_from(2 + rng.below(4)).expect("small"));
                let own = || Bytes::from([&topic[..], DEAD_LETTERS].concat());
                let dlq = match rng.below(4) {
                    0 => None,
                    1 => Some(own()),
                    _ => Some(Bytes::from_static(DEAD)),
                };
                let dlq = dlq.filter(|_| topic == name("q", 0));
                Op::QSet(QSet { topic, lease: Some(1000 + id % 900), max_deliver, dlq })
            }
            _ => Op::QInfo(topic),
        }
    }

    /// A client learns from an answer.
    pub fn learn(&mut self, at: usize, id: u64) {
        let record = self.checks.history.get(id);
        let (op, Some(reply)) = (record.op.clone(), record.reply().cloned()) else { return };
        let mind = &mut self.clients[at].mind;
        match (op, reply) {
            (Op::Lock(lock), Reply::Int(token)) => {
                mind.held.retain(|held| (&held.name, &held.owner) != (&lock.name, &lock.owner));
                let token = u64::try_from(token).unwrap_or(0);
                mind.held.push(Held { name: lock.name, owner: lock.owner, token, shared: lock.shared });
            }
            (Op::FillV(fill), Reply::Array(fields)) if fields.last() == Some(&Reply::Int(1)) => {
                mind.leads.push(fill.key);
            }
            (Op::Renew(renew), Reply::Nil) => {
                mind.held.retain(|held| (&held.name, &held.owner) != (&renew.name, &renew.owner));
            }
            (Op::Fetch(fetch), Reply::Array(messages)) => {
                for (message, attempt, _) in messages.iter().filter_map(message_of) {
                    mind.received.push((fetch.topic.clone(), message, attempt));
                }
            }
            _ => {}
        }
    }

    /// A subscriber receives a message.
    pub fn took(&mut self, at: usize, delivery: Delivery) {
        let Delivery { topic, id, attempt, body } = delivery;
        self.checks.deliveries.push((self.time, topic.clone(), id, attempt, body));
        self.clients[at].mind.received.push((topic, id, attempt));
    }
}

/// A write under a lock that the client thinks it holds, or a read of what others have written so.
fn fenced_op(rng: &mut Rng, mind: &Mind, id: u64) -> Op {
    let key = |lock: &[u8]| Bytes::from([&b"r"[..], lock].concat());
    if mind.held.is_empty() || rng.chance(300) {
        return Op::Get(key(&name("l", rng.below(LOCKS))));
    }
    let held = &mind.held[rng.index(mind.held.len())];
    let fence = Fence { lock: held.name.clone(), token: held.token, watch: None };
    let (key, value) = (key(&held.name), name("v", id));
    let set = Set { key, value, when: When::Always, expiry: Expiry::Never, get: rng.chance(200) };
    Op::FencedSet(FencedSet { fence, set })
}

/// A message of a FETCH's answer: id, attempt, body.
#[must_use]
pub fn message_of(reply: &Reply) -> Option<(u64, u32, Bytes)> {
    let Reply::Array(fields) = reply else { return None };
    let [Reply::Int(id), Reply::Int(attempt), Reply::Bulk(body)] = &fields[..] else { return None };
    Some((Index::try_from(*id).ok()?, u32::try_from(*attempt).ok()?, body.clone()))
}
