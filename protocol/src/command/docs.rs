//! What the command table says about itself: HELP, COMMAND, docs/commands.md.

use std::fmt::Write as _;

use bytes::Bytes;

use super::table::{Family, Resend, Spec, TABLE, find, later};
use crate::reply::Reply;

/// The number of commands.
#[must_use]
pub fn command_count() -> Reply {
    Reply::int(TABLE.len() as u64)
}

/// COMMAND LIST
#[must_use]
pub fn command_list() -> Reply {
    Reply::Array(TABLE.iter().map(|spec| lower(spec.name)).collect())
}

fn lower(name: &str) -> Reply {
    Reply::text(name.to_ascii_lowercase())
}

/// COMMAND and COMMAND INFO: rows as Redis 7 has them. Without names, all.
#[must_use]
pub fn command_info(names: &[Bytes]) -> Reply {
    if names.is_empty() {
        return Reply::Array(TABLE.iter().map(info_row).collect());
    }
    Reply::Array(names.iter().map(|name| find(name).map_or(Reply::Nil, info_row)).collect())
}

fn info_row(spec: &Spec) -> Reply {
    let flags = spec.flags.words().into_iter().map(Reply::text).collect();
    Reply::Array(vec![
        lower(spec.name),
        Reply::Int(spec.arity as i64),
        Reply::Array(flags),
        Reply::Int(spec.keys.0),
        Reply::Int(spec.keys.1),
        Reply::Int(spec.keys.2),
        Reply::Array(vec![Reply::text(format!("@{}", spec.family.title().to_ascii_lowercase()))]),
        Reply::Array(Vec::new()),
        Reply::Array(Vec::new()),
        Reply::Array(Vec::new()),
    ])
}

/// COMMAND DOCS: a map of maps. Without names, all; unknown names are left out, as Redis does.
#[must_use]
pub fn command_docs(names: &[Bytes]) -> Reply {
    let specs: Vec<&Spec> = if names.is_empty() {
        TABLE.iter().collect()
    } else {
        names.iter().filter_map(|name| find(name)).collect()
    };
    Reply::Map(specs.into_iter().map(|spec| (lower(spec.name), docs_row(spec))).collect())
}

fn docs_row(spec: &Spec) -> Reply {
    let fields = [
        ("summary", spec.summary),
        ("since", "0.1.0"),
        ("group", spec.family.title()),
        ("complexity", spec.complexity),
        ("syntax", spec.syntax),
        ("reply", spec.reply),
        ("resend", spec.resend.text()),
    ];
    Reply::Map(fields.into_iter().map(|(name, text)| (Reply::text(name), Reply::text(text))).collect())
}

/// HELP: for people, a line each; `None` for an unknown verb.
#[must_use]
pub fn help(verb: Option<&[u8]>) -> Option<Reply> {
    let lines = match verb {
        Some(verb) => {
            let spec = find(verb)?;
            vec![
                spec.syntax.to_owned(),
                spec.summary.to_owned(),
                format!("reply: {}", spec.reply),
                format!("safe to send again: {}", spec.resend.text()),
            ]
        }
        None => TABLE.iter().map(|spec| spec.syntax.to_owned()).collect(),
    };
    Some(Reply::Array(lines.into_iter().map(Reply::text).collect()))
}

const INTRODUCTION: &str = "\
# Commands

<!-- Written by the command table (protocol/src/command/table.rs): QUORATE_BLESS=1 cargo test -p quorate-protocol -->

Verbs and options are case-insensitive; options are `NAME value` pairs in any order. Times are milliseconds unless the
command says seconds. Contention, emptiness and absence are **nil, never an error**. Every error begins with an
upper-case code and says what to do next. `HELP LOCK` shows one command, `COMMAND DOCS` everything below.

Names (locks, keys, owners) have 1 byte to 1 KiB, topics 1,020 bytes (their dead letters' name must fit), values and messages 8 MiB. Names with the same `{tag}` lie in the
same partition, as in Redis Cluster.

## Outcome and order

- `-CLUSTERDOWN`, `-TRYAGAIN`, `-BUSY`, `-LOADING`: the command never took and never takes effect; send it again.
- `-INDOUBT`: it may or may not take effect. Read before you send it again, or send commands that may come twice: the
  line *again* below says which.
- One connection (RESP or inline): answers in order; commands to one partition take effect in order; once one of them is
  refused, those already sent behind it to that partition are refused too. A lock command, and one that can wait, is
  a barrier: it waits for all before it, and all behind it wait for it. Commands to different partitions may overlap.
- Binary frames may be answered in any order, except where a frame says AFTER; see [protocol.md](protocol.md).

## Rules of locks

- The owner is a name (`OWNER id`: one critical section of a client) or the connection, whose locks go with it.
  The same owner asking again gets the same token with its lease renewed, or keeps its place in the queue.
- Tokens rise strictly, whatever happens. A lock is granted only after the grant is committed on a majority; nil after
  WAIT is sent only when the withdrawal is committed, so nobody holds a lock without knowing.
- First come, first served; a waiting exclusive request is not overtaken by later shared ones. LOCK by a shared holder is
  an upgrade and stands before all waiters; a second upgrade of the same lock is refused with -DEADLOCK.
- A wait that would close a cycle of waiting owners is refused with `-DEADLOCK a:L1 -> b:L2 -> a`, and the leader logs
  `DEADLOCK DETECTED` with it. A lease that runs out while others wanted the lock is logged alike.
- Leases end by logged time: never early; late by at most the time without a leader and 1 s per change of leader.

## Rules of queues

- At least once: a message comes back when its lease ends, its consumer's connection ends, or it is NACKed; *attempt*
  counts deliveries. `id` names the current delivery, `id@attempt` a certain one. ACK may come on any connection; NACK of a plain
  `id` only on the one that received it.
- First in, first out on first delivery; what comes back stands in front.
- After MAXDELIVER deliveries (default 16), or NACK DEAD, a message moves to `topic.dlq` in one replicated step; nothing is
  dropped. `QSET topic DLQ other` has later ones go to another topic, where the count of deliveries goes on, and MAXDELIVER
  counts from there. If `other` lies in another partition, the message is *leaving* (QINFO) in its topic, is delivered to
  nobody there and counts against the topic's bound until it has arrived: then it is in `other` once, under a new id.
  While `other` takes no more (-QFULL), it keeps leaving. `QSET topic DLQ topic.dlq` is the default again.
- SUB streams on inline, RESP3 and binary connections. RESP2 clients use FETCH.

## Rules of keys

- A GET on any node after SET said OK never returns an older value.
- A version rises with every write and never repeats; `IFVER 0` means that the key does not exist. A resent `SET IFVER` may see
  its own success as nil: read to learn.
- A deadline takes effect at one log position, never early: the key vanishes on all nodes alike, behind its last millisecond, in which
  PTTL says 1 (in Redis 0). Absolute times (EXAT, EXPIREAT) are those of the
  wall clock of the partition's leader when it logs the command; if that clock is set later, deadlines stay where they are.
- `SET key value FENCE lock token` takes effect only while nobody has been granted the lock anew since the holder of this token (shared
  holders that follow each other without a gap count as one); otherwise -FENCED and the lowest token that is good. It may be refused as soon as the
  lease of this token has run out. So a holder that stood still while its lease ran out overwrites nothing of its successor,
  on whatever node. The partitions that compare a lock's tokens (those that were asked to in the last ten minutes) learn of its next
  grant before it is answered: while one of them has no majority that lock is not granted. A try (WAIT 0) waits a second for them at the most.
  In a transaction one stale token refuses the whole. A token that was never given is refused (-ERR) while nobody holds the lock; while
  somebody does it is not told apart from that of a shared holder. A shared holder whose upgrade (LOCK without SHARED) waited for
  these partitions and was withdrawn may be refused from then on, though it holds the lock: it has to UNLOCK and LOCK again.
- `SET key value WRITEBACK` alone (NX, IFVER and FENCE refuse it; with any other option it is written through) is answered by the node
  before it is durable, once that node owns the key, and made durable within 100 ms. Every node reads what was answered. If the owner, or
  its way to the key's home, fails, at most the last 100 ms of acknowledged writes are undone; nothing newer is overwritten. See
  [consistency.md](consistency.md#written-back).
- MULTI queues commands on keys; EXEC is one command in the log of one partition, so all keys between WATCH and EXEC need a common
  `{tag}`, as in `{cart}:1` and `{cart}:2`; otherwise -CROSSSLOT, and nothing is done. A command that fails there does not undo the
  others, as in Redis. Other than in Redis, what is wrong with a command's arguments is said when it is queued, and aborts EXEC
  (-EXECABORT), and so does a WATCH that was refused, until its keys are watched. A watched key that does not exist and has come and gone since counts as unchanged. At most 4,096 keys and 8 MiB are
  queued, and one EXEC or MGET answers 16 MiB of values.
- MSET, MGET and DEL over several partitions take effect in each at one place, not in all at the same.
- SCAN shows every key that is there from its beginning to its end; pages may be empty before the last. It keeps nothing
  between calls: a cursor is good for ever, also on another node.
- Redis' `r.lock()` and Redisson need Lua, which is not spoken here; use `LOCK`.

## Rules of tracking

CLIENT TRACKING is for clients that keep values themselves, such as redis-py's client-side cache (`CacheConfig`, protocol 3). They are
pushed `invalidate [key]`, or `invalidate nil` (everything), on any node, whichever node the write comes through. RESP3 only, without
REDIRECT; HELLO 2 and RESET end it.

- No client keeps a value for ever that a later write has replaced: the push comes behind the answer that it is about. A push takes its
  way, so a client may use the old value some moments after another one's SET said OK; GET without a cache of one's own never does.
- Only what GET and MGET answer of keys that the node holds itself can be kept. All else (STRLEN, TTL, EXEC, a key that is being
  written, a node whose `cache.max-memory` is too small) is invalidated right behind its answer: keeping it is of no use, and no harm.
  GET lets the node hold its key, MGET does not.
- Besides writes, the node drops keys to make room, at their deadlines, and with its lease (its partition's leader is gone, or cannot be
  reached): all that is told, too. Of more than 128 keys that go together a client is told to drop everything.
- BCAST: every write of keys with one of the prefixes is told, whether they were read or not; expired keys as well, within about a second;
  writes that may have changed something, even if they did not. `invalidate nil` comes when the node begins to hear of a partition's
  writes, so some come behind CLIENT TRACKING ON, and whenever it may have missed some.
- NOLOOP: own writes are not told, but keys of which the answer does not say for certain that they were written (an error, SET … IFVER
  n GET, DEL that counts fewer keys than it names, …). In the default mode a key is not tracked behind an own
  write before it is read again, as in Redis.
- A node remembers 1,048,576 keys, each reader's apart; a connection names 64 prefixes. Beyond that the key that has not been
  read for longest is invalidated. A client that does not read its pushes is cut when 32 MiB wait.
- A client hears nothing from a node that stands still or cannot be reached by it. Who must not go on with what it keeps sends PING, and
  gives its connection up without an answer; clients forget what they keep with their connection.
";

/// docs/commands.md
#[must_use]
pub fn markdown() -> String {
    let mut text = INTRODUCTION.to_owned();
    for family in [Family::Locks, Family::Queues, Family::Keys, Family::Cluster, Family::Connection] {
        let _ = writeln!(text, "\n## {}\n", family.title());
        let mut specs: Vec<_> = TABLE.iter().filter(|spec| spec.family == family).collect();
        specs.sort_by_key(|spec| spec.number);
        for spec in specs {
            let _ = writeln!(text, "- `{}`  \n  {}  \n  *replies* {}", spec.syntax, spec.summary, spec.reply);
            if spec.resend != Resend::Read || spec.family != Family::Connection {
                let _ = write!(text, "; *again*: {}", spec.resend.text());
            }
            let _ = writeln!(text, "; *number* {}", spec.number);
        }
    }
    text.push_str(
        "\n## Not built yet\n\nThese answer an error that says so, as do the options after the colon:\n\n",
    );
    let verbs: Vec<_> = later().map(|(name, _)| format!("`{name}`")).collect();
    let _ = writeln!(text, "{}", verbs.join(" "));
    text.push('\n');
    for spec in TABLE.iter().filter(|spec| !spec.later.is_empty()) {
        let _ = writeln!(text, "- `{}`: {}", spec.name, spec.later.join(", "));
    }
    text
}
