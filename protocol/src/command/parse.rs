//! What each command's arguments mean; those of keys are in `keys.rs`.

use bytes::Bytes;

use super::tracking::track;
use super::words::{Words, integer, shown};
use super::{Command, ConnAsk, NodeAsk, failure};
use crate::id::{ClientId, GroupId, NodeId};
use crate::limits::{
    CLIENT_NAME_MAX, DURATION_MAX, FETCH_MAX, LOCK_TTL, MANY_MAX, MAX_DELIVER, NODE_ID_MAX, PARTITIONS_MAX,
    PREFETCH, PREFETCH_MAX,
};
use crate::op::{
    Ack, DEAD_LETTERS, Fetch, Lock, MemberAdd, MemberOp, Nack, Op, Pub, QSet, Receipt, Renew, Sub, Unlock,
};
use crate::peer::SnapshotAt;
use crate::reply::{Code, Failure};

pub(super) use super::keys::*;

pub(super) type Parsed = Result<Command, Failure>;

pub(super) fn op(op: Op) -> Parsed {
    Ok(Command::Op(op))
}

pub(super) fn connection(ask: ConnAsk) -> Parsed {
    Ok(Command::Connection(ask))
}

/// A named owner must show that it lives; a connection's locks go with the connection, so they need no other
/// end than the longest lease there is.
fn default_ttl(owner: Option<&Bytes>) -> u64 {
    if owner.is_some() { LOCK_TTL } else { DURATION_MAX }
}

pub(super) fn lock(words: &mut Words<'_>) -> Parsed {
    let name = words.name("lock name")?;
    let mut lock = Lock { name, shared: false, owner: None, ttl: 0, wait: 0 };
    let mut seen = 0;
    while let Some(option) = words.option(&["SHARED", "OWNER", "TTL", "WAIT"], &mut seen)? {
        match option {
            "SHARED" => lock.shared = true,
            "OWNER" => lock.owner = Some(words.name("owner")?),
            "TTL" => lock.ttl = words.millis("TTL", 1)?,
            _ => lock.wait = words.millis("WAIT", 0)?,
        }
    }
    if lock.ttl == 0 {
        lock.ttl = default_ttl(lock.owner.as_ref());
    }
    op(Op::Lock(lock))
}

pub(super) fn unlock(words: &mut Words<'_>) -> Parsed {
    let mut unlock = Unlock { name: words.name("lock name")?, owner: None, token: None };
    let mut seen = 0;
    while let Some(option) = words.option(&["OWNER", "TOKEN"], &mut seen)? {
        match option {
            "OWNER" => unlock.owner = Some(words.name("owner")?),
            _ => unlock.token = Some(words.token()?),
        }
    }
    op(Op::Unlock(unlock))
}

pub(super) fn renew(words: &mut Words<'_>) -> Parsed {
    let mut renew = Renew { name: words.name("lock name")?, owner: None, token: None, ttl: 0 };
    let mut seen = 0;
    while let Some(option) = words.option(&["OWNER", "TOKEN", "TTL"], &mut seen)? {
        match option {
            "OWNER" => renew.owner = Some(words.name("owner")?),
            "TOKEN" => renew.token = Some(words.token()?),
            _ => renew.ttl = words.millis("TTL", 1)?,
        }
    }
    if renew.ttl == 0 {
        renew.ttl = default_ttl(renew.owner.as_ref());
    }
    op(Op::Renew(renew))
}

pub(super) fn lock_info(words: &mut Words<'_>) -> Parsed {
    op(Op::LockInfo(words.name("lock name")?))
}

pub(super) fn publish(words: &mut Words<'_>) -> Parsed {
    let topic = words.topic()?;
    let mut publish = Pub { topic, body: words.value("message")?, dedupe: None, delay: 0 };
    let mut seen = 0;
    while let Some(option) = words.option(&["ID", "DELAY"], &mut seen)? {
        match option {
            "ID" => publish.dedupe = Some(words.name("message ID")?),
            _ => publish.delay = words.millis("DELAY", 0)?,
        }
    }
    op(Op::Pub(publish))
}

pub(super) fn fetch(words: &mut Words<'_>) -> Parsed {
    let mut fetch = Fetch { topic: words.topic()?, count: 1, block: 0, lease: None };
    let mut seen = 0;
    while let Some(option) = words.option(&["COUNT", "BLOCK", "LEASE"], &mut seen)? {
        match option {
            "COUNT" => fetch.count = words.count("COUNT", FETCH_MAX)?,
            "BLOCK" => fetch.block = words.millis("BLOCK", 0)?,
            _ => fetch.lease = Some(words.millis("LEASE", 1)?),
        }
    }
    op(Op::Fetch(fetch))
}

/// `id` or `id@attempt`.
fn receipt(word: &Bytes) -> Result<Receipt, Failure> {
    let (id, attempt) = match word.iter().position(|&byte| byte == b'@') {
        Some(at) => (&word[..at], Some(&word[at + 1..])),
        None => (&word[..], None),
    };
    let number = |digits: &[u8]| integer(digits).and_then(|n| u64::try_from(n).ok());
    let attempt = attempt.map(|digits| number(digits).and_then(|n| u32::try_from(n).ok()));
    match (number(id), attempt) {
        (Some(id), None) => Ok(Receipt { id, attempt: None }),
        (Some(id), Some(Some(attempt))) => Ok(Receipt { id, attempt: Some(attempt) }),
        _ => {
            let text = format!(
                "'{}' is not a message id; give the number that FETCH showed, as id or id@attempt",
                shown(word)
            );
            Err(failure(Code::Err, text))
        }
    }
}

pub(super) fn ack(words: &mut Words<'_>) -> Parsed {
    let topic = words.topic()?;
    if words.rest.len() > MANY_MAX {
        let text = format!("{} ids in one ACK, at most {MANY_MAX} are taken; send several", words.rest.len());
        return Err(failure(Code::TooBig, text));
    }
    if let Some(group) = words.rest.iter().position(|word| word.eq_ignore_ascii_case(b"GROUP")) {
        words.rest = &words.rest[group..];
        words.option(&[], &mut 0)?;
    }
    let receipts = words.take_rest().iter().map(receipt).collect::<Result<_, _>>()?;
    op(Op::Ack(Ack { topic, receipts }))
}

pub(super) fn nack(words: &mut Words<'_>) -> Parsed {
    let topic = words.topic()?;
    let mut nack = Nack { topic, receipt: receipt(&words.next()?)?, delay: 0, dead: false };
    let mut seen = 0;
    while let Some(option) = words.option(&["DELAY", "DEAD"], &mut seen)? {
        match option {
            "DELAY" => nack.delay = words.millis("DELAY", 0)?,
            _ => nack.dead = true,
        }
    }
    op(Op::Nack(nack))
}

pub(super) fn subscribe(words: &mut Words<'_>) -> Parsed {
    let mut sub = Sub { topic: words.topic()?, prefetch: PREFETCH, lease: None };
    let mut seen = 0;
    while let Some(option) = words.option(&["PREFETCH", "LEASE"], &mut seen)? {
        match option {
            "PREFETCH" => sub.prefetch = words.count("PREFETCH", PREFETCH_MAX)?,
            _ => sub.lease = Some(words.millis("LEASE", 1)?),
        }
    }
    op(Op::Sub(sub))
}

pub(super) fn unsubscribe(words: &mut Words<'_>) -> Parsed {
    let topic = words.topic()?;
    words.option(&[], &mut 0)?;
    op(Op::Unsub(topic))
}

pub(super) fn queue_set(words: &mut Words<'_>) -> Parsed {
    let mut set = QSet { topic: words.topic()?, lease: None, max_deliver: None, dlq: None };
    let mut seen = 0;
    while let Some(option) = words.option(&["LEASE", "MAXDELIVER", "DLQ"], &mut seen)? {
        match option {
            "LEASE" => set.lease = Some(words.millis("LEASE", 1)?),
            "DLQ" => set.dlq = Some(dead_letter_topic(words, &set.topic)?),
            _ => set.max_deliver = Some(words.count("MAXDELIVER", MAX_DELIVER * 1024)?),
        }
    }
    op(Op::QSet(set))
}

/// Dead letters never die again, and no topic is its own dead letters: so a message always comes to rest.
fn dead_letter_topic(words: &mut Words<'_>, topic: &Bytes) -> Result<Bytes, Failure> {
    if topic.ends_with(DEAD_LETTERS) {
        let text = "these are dead letters already, and stay here until they are acknowledged; set the DLQ of the topic that they come from";
        return Err(failure(Code::Err, text));
    }
    let dlq = words.topic()?;
    if dlq == *topic {
        return Err(failure(Code::Err, "a topic cannot be its own DLQ; name another topic"));
    }
    Ok(dlq)
}

pub(super) fn queue_info(words: &mut Words<'_>) -> Parsed {
    op(Op::QInfo(words.topic()?))
}

pub(super) fn status(_: &mut Words<'_>) -> Parsed {
    Ok(Command::Node(NodeAsk::Status))
}

pub(super) fn members(_: &mut Words<'_>) -> Parsed {
    Ok(Command::Node(NodeAsk::Members))
}

pub(super) fn member(words: &mut Words<'_>) -> Parsed {
    let name = subcommand(words)?;
    let known = ["ADD", "DRAIN", "REMOVE", "CANCEL"].contains(&name.as_str());
    if !known {
        return unknown_subcommand(words, &name);
    }
    let node = NodeId(words.number("the node id", 1, NODE_ID_MAX)?);
    op(Op::Member(match name.as_str() {
        "ADD" => MemberOp::Add(MemberAdd { node, peer_address: words.address("peer address")? }),
        "DRAIN" => MemberOp::Drain(node),
        "REMOVE" => MemberOp::Remove(node),
        _ => MemberOp::Cancel(node),
    }))
}

pub(super) fn leader(_: &mut Words<'_>) -> Parsed {
    Ok(Command::Node(NodeAsk::Leader))
}

pub(super) fn partitions(_: &mut Words<'_>) -> Parsed {
    Ok(Command::Node(NodeAsk::Partitions))
}

pub(super) fn snapshot(words: &mut Words<'_>) -> Parsed {
    if words.rest.is_empty() {
        return Ok(Command::Node(NodeAsk::Snapshot));
    }
    match subcommand(words)?.as_str() {
        "LIST" => Ok(Command::Node(NodeAsk::Snapshots)),
        "READ" => {
            let group = words.number("the group", 0, u64::from(PARTITIONS_MAX))?;
            let group = GroupId(u16::try_from(group).expect("it is at most PARTITIONS_MAX"));
            let index = words.number("the index", 1, i64::MAX as u64)?;
            let offset = words.number("the offset", 0, i64::MAX as u64)?;
            Ok(Command::Node(NodeAsk::SnapshotRead(SnapshotAt { group, index, offset })))
        }
        name => {
            let name = name.to_owned();
            unknown_subcommand(words, &name)
        }
    }
}

pub(super) fn ping(words: &mut Words<'_>) -> Parsed {
    let message = if words.rest.is_empty() { None } else { Some(words.next()?) };
    connection(ConnAsk::Ping(message))
}

pub(super) fn echo(words: &mut Words<'_>) -> Parsed {
    connection(ConnAsk::Echo(words.next()?))
}

pub(super) fn hello(words: &mut Words<'_>) -> Parsed {
    let mut version = None;
    if !words.rest.is_empty() {
        version = match integer(&words.next()?) {
            Some(2) => Some(2),
            Some(3) => Some(3),
            Some(_) => {
                return Err(failure(
                    Code::NoProto,
                    "unsupported protocol version; HELLO 2 and HELLO 3 are spoken",
                ));
            }
            None => return Err(failure(Code::Err, "Protocol version is not an integer or out of range")),
        };
    }
    let (mut auth, mut name, mut seen) = (false, None, 0);
    while let Some(option) = words.option(&["AUTH", "SETNAME"], &mut seen)? {
        if option == "AUTH" {
            words.next()?;
            words.next()?;
            auth = true;
        } else {
            name = Some(client_name(words.next()?, "Client name")?);
        }
    }
    connection(ConnAsk::Hello { version, auth, name })
}

pub(super) fn auth(words: &mut Words<'_>) -> Parsed {
    words.take_rest();
    connection(ConnAsk::Auth)
}

/// What a client says of itself; kept as long as its connection, and shown in CLIENT LIST.
fn client_name(name: Bytes, what: &str) -> Result<Bytes, Failure> {
    if name.len() > CLIENT_NAME_MAX {
        let text = format!("{what} of {} bytes, at most {CLIENT_NAME_MAX} are taken", name.len());
        return Err(failure(Code::TooBig, text));
    }
    let text = format!("{what}s cannot contain spaces, newlines or special characters.");
    if name.iter().all(u8::is_ascii_graphic) { Ok(name) } else { Err(failure(Code::Err, text)) }
}

/// A subcommand, in upper case.
fn subcommand(words: &mut Words<'_>) -> Result<String, Failure> {
    Ok(shown(&words.next()?).to_ascii_uppercase())
}

fn unknown_subcommand(words: &mut Words<'_>, name: &str) -> Parsed {
    words.take_rest();
    let verb = words.spec.name;
    Err(failure(Code::Err, format!("unknown subcommand '{name}'. Try HELP {verb}.")))
}

pub(super) fn client(words: &mut Words<'_>) -> Parsed {
    let name = subcommand(words)?;
    connection(match name.as_str() {
        "ID" => ConnAsk::ClientId,
        "GETNAME" => ConnAsk::ClientGetName,
        "SETNAME" => ConnAsk::ClientSetName(client_name(words.next()?, "Client name")?),
        "SETINFO" => {
            let attribute = words.next()?;
            if !attribute.eq_ignore_ascii_case(b"LIB-NAME") && !attribute.eq_ignore_ascii_case(b"LIB-VER") {
                let text = format!(
                    "Unrecognized option '{}'; CLIENT SETINFO takes LIB-NAME and LIB-VER",
                    shown(&attribute)
                );
                return Err(failure(Code::Err, text));
            }
            let what = shown(&attribute).to_ascii_lowercase();
            ConnAsk::ClientSetInfo(attribute, client_name(words.next()?, &what)?)
        }
        "INFO" => ConnAsk::ClientInfo,
        "LIST" => ConnAsk::ClientList,
        "TRACKING" | "CACHING" | "TRACKINGINFO" | "GETREDIR" => ConnAsk::Track(track(&name, words)?),
        "REPLY" | "KILL" | "PAUSE" | "UNPAUSE" | "NO-EVICT" | "NO-TOUCH" => {
            return Err(failure(
                Code::Err,
                format!("CLIENT {name} is not built yet; see HELP CLIENT for what is"),
            ));
        }
        _ => return unknown_subcommand(words, &name),
    })
}

pub(super) fn config(words: &mut Words<'_>) -> Parsed {
    match subcommand(words)?.as_str() {
        "GET" if words.rest.is_empty() => Err(words.syntax("CONFIG GET needs a parameter or pattern")),
        "GET" => connection(ConnAsk::ConfigGet(words.take_rest())),
        "SET" | "REWRITE" | "RESETSTAT" => Err(failure(
            Code::Err,
            "the configuration is fixed at the start; change the file or the flags and start again",
        )),
        name => {
            let name = name.to_owned();
            unknown_subcommand(words, &name)
        }
    }
}

pub(super) fn info(words: &mut Words<'_>) -> Parsed {
    connection(ConnAsk::Info(words.take_rest()))
}

pub(super) fn command(words: &mut Words<'_>) -> Parsed {
    if words.rest.is_empty() {
        return connection(ConnAsk::Command);
    }
    match subcommand(words)?.as_str() {
        "COUNT" => connection(ConnAsk::CommandCount),
        "LIST" => connection(ConnAsk::CommandList),
        "INFO" => connection(ConnAsk::CommandInfo(words.take_rest())),
        "DOCS" => connection(ConnAsk::CommandDocs(words.take_rest())),
        name => {
            let name = name.to_owned();
            unknown_subcommand(words, &name)
        }
    }
}

pub(super) fn help(words: &mut Words<'_>) -> Parsed {
    let verb = if words.rest.is_empty() { None } else { Some(words.next()?) };
    connection(ConnAsk::Help(verb))
}

pub(super) fn select(words: &mut Words<'_>) -> Parsed {
    match words.integer()? {
        0 => connection(ConnAsk::Select),
        _ => Err(failure(Code::Err, "DB index is out of range; there is one database, 0")),
    }
}

pub(super) fn time(_: &mut Words<'_>) -> Parsed {
    connection(ConnAsk::Time)
}

pub(super) fn reset(_: &mut Words<'_>) -> Parsed {
    connection(ConnAsk::Reset)
}

pub(super) fn quit(_: &mut Words<'_>) -> Parsed {
    connection(ConnAsk::Quit)
}

pub(super) fn session(words: &mut Words<'_>) -> Parsed {
    match subcommand(words)?.as_str() {
        "OPEN" => connection(ConnAsk::SessionOpen),
        "RESUME" => {
            let id = words.number("the session id", 1, i64::MAX as u64)?;
            connection(ConnAsk::SessionResume(ClientId(id)))
        }
        name => {
            let name = name.to_owned();
            unknown_subcommand(words, &name)
        }
    }
}
