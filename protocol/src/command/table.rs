//! The one command table.
//!
//! Invariant: numbers are part of the binary protocol and never reused; names are unique; the table is
//! sorted by name, so that a verb is found by binary search (tests hold all three).

use super::parse;
use super::words::Words;
use super::{Command, Failure};

/// What a command is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// Locks.
    Locks,
    /// Queues.
    Queues,
    /// Keys.
    Keys,
    /// The cluster, as a node sees it.
    Cluster,
    /// The connection itself.
    Connection,
}

impl Family {
    /// The heading under which its commands stand.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Locks => "Locks",
            Self::Queues => "Queues",
            Self::Keys => "Keys",
            Self::Cluster => "Cluster",
            Self::Connection => "Connection",
        }
    }
}

/// Whether a command may be sent again when its answer is missing, on a connection without a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resend {
    /// It changes nothing.
    Read,
    /// With OWNER (and TOKEN, once there is one).
    OwnerToken,
    /// With ID.
    Id,
    /// With ids as `id@attempt`.
    Attempt,
    /// With IFVER.
    IfVersion,
    /// The effect of sending it twice is that of sending it once.
    Idempotent,
    /// So it is if nobody else changes the same thing in between: what comes again late undoes that.
    Alone,
    /// Not without a client session.
    No,
}

impl Resend {
    /// The rule in words.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Read => "yes: it changes nothing",
            Self::OwnerToken => "with OWNER, and TOKEN once there is one",
            Self::Id => "with ID",
            Self::Attempt => "with id@attempt",
            Self::IfVersion => "with IFVER",
            Self::Idempotent => "yes: twice is as once",
            Self::Alone => "if nobody else writes there meanwhile (in a client session: yes)",
            Self::No => "no (in a client session: yes)",
        }
    }
}

/// What COMMAND says of a command besides its arity, as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flags(pub u8);

impl Flags {
    /// Changes something.
    pub const WRITE: Self = Self(1);
    /// Changes nothing.
    pub const READ: Self = Self(2);
    /// Can wait.
    pub const BLOCKING: Self = Self(4);
    /// Answered by the node at once.
    pub const FAST: Self = Self(8);
    /// Pushes messages.
    pub const PUBSUB: Self = Self(16);

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The flags as Redis names them.
    #[must_use]
    pub fn words(self) -> Vec<&'static str> {
        let names = [(1, "write"), (2, "readonly"), (4, "blocking"), (8, "fast"), (16, "pubsub")];
        names.into_iter().filter(|(bit, _)| self.0 & bit != 0).map(|(_, name)| name).collect()
    }
}

/// A row of the table.
#[derive(Debug)]
pub struct Spec {
    /// Its name, in upper case.
    pub name: &'static str,
    /// Its number in binary frames; 1 and up.
    pub number: u16,
    /// How it is written.
    pub syntax: &'static str,
    /// What it does, in a sentence.
    pub summary: &'static str,
    /// What it answers.
    pub reply: &'static str,
    /// Words with the verb: exactly n, or at least -n.
    pub arity: isize,
    /// What COMMAND says of it.
    pub flags: Flags,
    /// First key, last key, step; 0 without keys.
    pub keys: (i64, i64, i64),
    /// What it is about.
    pub family: Family,
    /// What it costs.
    pub complexity: &'static str,
    /// Whether it may be sent again.
    pub resend: Resend,
    /// Options of the contract that are not built yet.
    pub later: &'static [&'static str],
    /// Understands its arguments.
    pub parse: fn(&mut Words<'_>) -> Result<Command, Failure>,
}

const WRITE: Flags = Flags::WRITE;
const READ: Flags = Flags::READ;
const FAST: Flags = Flags::FAST;
const WAITS: Flags = Flags::WRITE.and(Flags::BLOCKING);

/// A row in fewer words than a struct literal takes.
macro_rules! row {
    ($number:literal $name:literal $arity:literal $flags:expr, $keys:expr, $family:ident, $resend:ident, $parse:ident,
     $syntax:literal, $summary:literal, $reply:literal, $complexity:literal $(, later $later:expr)?) => {
        Spec {
            name: $name,
            number: $number,
            syntax: $syntax,
            summary: $summary,
            reply: $reply,
            arity: $arity,
            flags: $flags,
            keys: $keys,
            family: Family::$family,
            complexity: $complexity,
            resend: Resend::$resend,
            later: row!(@later $($later)?),
            parse: parse::$parse,
        }
    };
    (@later) => { &[] };
    (@later $later:expr) => { $later };
}

const NONE: (i64, i64, i64) = (0, 0, 0);
const ONE: (i64, i64, i64) = (1, 1, 1);
const ALL: (i64, i64, i64) = (1, -1, 1);

/// Every command that is built, by name.
pub static TABLE: &[Spec] = &[
    row!(18 "ACK" -3 WRITE, ONE, Queues, Attempt, ack, "ACK topic id [id ...]",
        "Settles messages: they are not delivered again.",
        "the number settled; a message that is gone, or a stale id@attempt, counts 0", "O(log n) per id", later &["GROUP"]),
    row!(46 "APPEND" 3 WRITE, ONE, Keys, No, append, "APPEND key value", "Adds to the end of a value; a missing key begins empty.",
        "the new length", "O(length)"),
    row!(70 "AUTH" -2 FAST, NONE, Connection, Read, auth, "AUTH [user] password",
        "Authenticates; no users can be set up yet.", "an error", "O(1)"),
    row!(45 "CACHEINFO" 2 READ, ONE, Keys, Read, cache_info, "CACHEINFO key", "Shows which nodes hold a key in their caches.",
        "a map: key, partition, home (the node that leads it), version, holders (node and state: S shared, E exclusive, M modified)", "O(log n)"),
    row!(71 "CLIENT" -2 FAST, NONE, Connection, Idempotent, client,
        "CLIENT ID | GETNAME | SETNAME name | SETINFO LIB-NAME|LIB-VER value | INFO | LIST | \
        TRACKING ON|OFF [BCAST [PREFIX prefix ...]] [OPTIN] [OPTOUT] [NOLOOP] | CACHING YES|NO | TRACKINGINFO | GETREDIR",
        "Asks about connections, names this one; TRACKING pushes what the client must drop from its own cache (RESP3).",
        "as Redis", "O(1); LIST O(connections)"),
    row!(72 "COMMAND" -1 FAST, NONE, Connection, Read, command, "COMMAND [COUNT | LIST | INFO [name ...] | DOCS [name ...]]",
        "Describes the commands.", "as Redis", "O(commands)"),
    row!(73 "CONFIG" -2 FAST, NONE, Connection, Read, config, "CONFIG GET pattern [pattern ...]",
        "Shows the configuration.", "a map of names and values", "O(parameters)"),
    row!(47 "DBSIZE" 1 READ, NONE, Keys, Read, db_size, "DBSIZE", "Counts all keys.", "the number", "O(partitions)"),
    row!(42 "DECR" 2 WRITE, ONE, Keys, No, decr, "DECR key", "Takes 1 from the number at a key.", "the new number", "O(log n)"),
    row!(43 "DECRBY" 3 WRITE, ONE, Keys, No, decr_by, "DECRBY key n", "Takes n from the number at a key.", "the new number", "O(log n)"),
    row!(34 "DEL" -2 WRITE, ALL, Keys, Alone, del, "DEL key [key ...]", "Removes keys; each partition's at one log position.",
        "the number of keys that existed", "O(log n) per key"),
    row!(84 "DISCARD" 1 FAST, NONE, Connection, No, discard, "DISCARD", "Gives up what MULTI has queued, and forgets what is watched.", "OK", "O(1)"),
    row!(74 "ECHO" 2 FAST, NONE, Connection, Read, echo, "ECHO message", "Answers the message.", "the message", "O(1)"),
    row!(85 "EXEC" 1 WRITE, NONE, Connection, No, exec, "EXEC",
        "Has all that was queued take effect at one place in the log of its partition; nothing if a watched key has changed.",
        "the answers in order, or nil; -CROSSSLOT when the keys lie in several partitions", "O(commands)"),
    row!(35 "EXISTS" -2 READ, ALL, Keys, Read, exists, "EXISTS key [key ...]", "Counts the keys that exist.", "the number", "O(log n) per key"),
    row!(37 "EXPIRE" -3 WRITE, ONE, Keys, No, expire, "EXPIRE key seconds [NX | XX | GT | LT]", "Gives a key a deadline; 0 or less removes it.",
        "1, or 0 when there is no such key or the condition does not hold", "O(log n)"),
    row!(48 "EXPIREAT" -3 WRITE, ONE, Keys, Alone, expire_at, "EXPIREAT key unix-seconds [NX | XX | GT | LT]",
        "Gives a key a deadline by the wall clock of its partition's leader; one in the past removes it.",
        "1, or 0 when there is no such key or the condition does not hold", "O(log n)"),
    row!(49 "EXPIRETIME" 2 READ, ONE, Keys, Read, expire_time_of, "EXPIRETIME key", "Tells when a key vanishes, by the wall clock of its partition's leader.",
        "seconds since 1970; -1 without a deadline, -2 without a key", "O(log n)"),
    row!(17 "FETCH" -2 WAITS, ONE, Queues, No, fetch, "FETCH topic [COUNT n] [BLOCK ms] [LEASE ms]",
        "Takes messages: nobody else gets them until the lease ends (default 30 s).",
        "`[[id, attempt, body], ...]`, or nil when there is none within BLOCK", "O(log n) per message", later &["GROUP"]),
    row!(50 "FLUSHALL" -1 WRITE, NONE, Keys, Alone, flush, "FLUSHALL [ASYNC | SYNC]", "Removes all keys; each partition's at one log position. Queues and locks stay.", "OK", "O(1) per partition"),
    row!(51 "FLUSHDB" -1 WRITE, NONE, Keys, Alone, flush, "FLUSHDB [ASYNC | SYNC]", "The same as FLUSHALL: there is one database.", "OK", "O(1) per partition"),
    row!(32 "GET" 2 READ, ONE, Keys, Read, get, "GET key", "Reads a key, never an older value than any SET that was answered.", "the value or nil", "O(log n)"),
    row!(52 "GETDEL" 2 WRITE, ONE, Keys, No, get_del, "GETDEL key", "Reads a key and removes it.", "the value or nil", "O(log n)"),
    row!(53 "GETEX" -2 WRITE, ONE, Keys, No, get_ex, "GETEX key [EX s | PX ms | EXAT unix-seconds | PXAT unix-ms | PERSIST]", "Reads a key and sets or removes its deadline.",
        "the value or nil", "O(log n)"),
    row!(54 "GETRANGE" 4 READ, ONE, Keys, Read, get_range, "GETRANGE key start end", "Reads a part of a value; numbers below 0 count from the end.", "the bytes, perhaps none", "O(log n)"),
    row!(55 "GETSET" 3 WRITE, ONE, Keys, No, get_set, "GETSET key value", "The same as SET with GET.", "the old value or nil", "O(log n)"),
    row!(56 "GETV" -2 READ, ONE, Keys, Read, get_v, "GETV key [FILL ms]",
        "Reads a key with its version, for SET IFVER. With FILL, one of those who miss the key leads: it has ms to write it, with IFVER 0; the others wait until it is written, or one of them leads.",
        "`[value, version, lead]`: nil and 0 without a key; lead 1: write it", "O(log n)"),
    row!(75 "HELLO" -1 FAST, NONE, Connection, Idempotent, hello, "HELLO [2|3] [AUTH user password] [SETNAME name]",
        "Chooses RESP2 or RESP3.", "a map about the server", "O(1)"),
    row!(76 "HELP" -1 FAST, NONE, Connection, Read, help, "HELP [command]", "Tells what can be said.", "lines of text", "O(commands)"),
    row!(36 "INCR" 2 WRITE, ONE, Keys, No, incr, "INCR key", "Adds 1 to the number at a key.", "the new number", "O(log n)"),
    row!(41 "INCRBY" 3 WRITE, ONE, Keys, No, incr_by, "INCRBY key n", "Adds n to the number at a key.", "the new number", "O(log n)"),
    row!(77 "INFO" -1 FAST, NONE, Connection, Read, info, "INFO [section ...]", "Describes the node, as Redis clients expect it.", "text", "O(1)"),
    row!(57 "KEYS" 2 READ, NONE, Keys, Read, keys, "KEYS pattern", "Lists the keys that fit a pattern, where a partition has at most 10,000; use SCAN otherwise.",
        "the names", "O(keys)"),
    row!(66 "LEADER" 1 FAST, NONE, Cluster, Read, leader, "LEADER", "Finds the leader of the system group, which holds all locks.",
        "`[node id, client address]`, or nil while there is none", "O(1)"),
    row!(1 "LOCK" -2 WAITS, NONE, Locks, OwnerToken, lock, "LOCK name [SHARED] [OWNER id] [TTL ms] [WAIT ms]",
        "Takes a lock for a named owner, for a lease (default 30 s), or for this connection, until it ends (or TTL does).",
        "the fencing token, or nil if not granted within WAIT (default 0); -DEADLOCK names the cycle", "O(log n)",
        later &["SLOTS", "DOWNGRADE"]),
    row!(4 "LOCKINFO" 2 READ, NONE, Locks, Read, lock_info, "LOCKINFO name", "Shows who holds a lock and who waits for it.",
        "a map: name, holding, waiting (numbers), holders, waiters in queue order (the first 1000 of each); a ttl of -1: as long as its connection", "O(holders + waiters)"),
    row!(68 "MEMBER" -3 WRITE, NONE, Cluster, Alone, member, "MEMBER ADD id host:peerport | DRAIN id | REMOVE id | CANCEL id",
        "Adds a node; has one give its share away (DRAIN), and be forgotten then (REMOVE); has it keep its share after all (CANCEL). Replicas move afterwards: see PARTITIONS.",
        "OK once it is decided, before replicas move", "O(nodes)"),
    row!(65 "MEMBERS" 1 FAST, NONE, Cluster, Read, members, "MEMBERS", "Lists the nodes.", "maps: node, client, peer, standing (active, draining, leaving, closing), leads, holds", "O(nodes)"),
    row!(58 "MGET" -2 READ, ALL, Keys, Read, m_get, "MGET key [key ...]", "Reads keys, at most 16 MiB; each partition's at one log position.", "the values or nils in order", "O(log n) per key"),
    row!(59 "MSET" -3 WRITE, (1, -1, 2), Keys, No, m_set, "MSET key value [key value ...]", "Writes keys; each partition's at one log position.", "OK", "O(log n) per key"),
    row!(60 "MSETNX" -3 WRITE, (1, -1, 2), Keys, No, m_set_nx, "MSETNX key value [key value ...]",
        "Writes keys of one partition if none of them exists.", "1 or 0; -CROSSSLOT when they lie in several partitions", "O(log n) per key"),
    row!(86 "MULTI" 1 FAST, NONE, Connection, No, multi, "MULTI", "Queues the commands on keys that follow, for EXEC (RESP and inline).", "OK, and QUEUED for each", "O(1)"),
    row!(19 "NACK" -3 WRITE, ONE, Queues, No, nack, "NACK topic id [DELAY ms] [DEAD]",
        "Gives a message back, to be delivered again at once or after DELAY; DEAD makes it a dead letter.",
        "1, or 0 when the delivery is stale", "O(log n)", later &["GROUP"]),
    row!(67 "PARTITIONS" 1 FAST, NONE, Cluster, Read, partitions, "PARTITIONS", "Shows who leads and who holds each partition.",
        "maps: partition, leader, replicas, target: who is to hold it as the members are now", "O(partitions)"),
    row!(61 "PERSIST" 2 WRITE, ONE, Keys, Alone, persist, "PERSIST key", "Takes a key's deadline away.", "1, or 0 when there is no such key or deadline", "O(log n)"),
    row!(39 "PEXPIRE" -3 WRITE, ONE, Keys, No, pexpire, "PEXPIRE key ms [NX | XX | GT | LT]", "Gives a key a deadline; 0 or less removes it.",
        "1, or 0 when there is no such key or the condition does not hold", "O(log n)"),
    row!(62 "PEXPIREAT" -3 WRITE, ONE, Keys, Alone, pexpire_at, "PEXPIREAT key unix-ms [NX | XX | GT | LT]",
        "Gives a key a deadline by the wall clock of its partition's leader; one in the past removes it.",
        "1, or 0 when there is no such key or the condition does not hold", "O(log n)"),
    row!(63 "PEXPIRETIME" 2 READ, ONE, Keys, Read, pexpire_time_of, "PEXPIRETIME key", "Tells when a key vanishes, by the wall clock of its partition's leader.",
        "milliseconds since 1970, as far as clocks agree; -1 without a deadline, -2 without a key", "O(log n)"),
    row!(78 "PING" -1 FAST, NONE, Connection, Read, ping, "PING [message]", "Answers.", "PONG or the message", "O(1)"),
    row!(96 "PSETEX" 4 WRITE, ONE, Keys, No, pset_ex, "PSETEX key ms value", "The same as SET with PX.", "OK", "O(log n)"),
    row!(40 "PTTL" 2 READ, ONE, Keys, Read, pttl, "PTTL key", "Tells how long a key still lives.", "milliseconds; -1 without a deadline, -2 without a key", "O(log n)"),
    row!(16 "PUB" -3 WRITE, ONE, Queues, Id, publish, "PUB topic message [ID id] [DELAY ms]",
        "Publishes a message; it is on stable storage on a majority before the answer.",
        "the message id; the first one's when ID came within the last 2 minutes", "O(log n)", later &["KEY", "TTL", "FENCE", "GROUP"]),
    row!(23 "QINFO" 2 READ, ONE, Queues, Read, queue_info, "QINFO topic", "Describes a topic.", "a map of counts and settings", "O(1)"),
    row!(22 "QSET" -2 WRITE, ONE, Queues, Alone, queue_set, "QSET topic [LEASE ms] [MAXDELIVER n] [DLQ topic]",
        "Sets a topic's default lease, how often a message is delivered before it becomes a dead letter, and where dead letters go (topic.dlq).",
        "OK", "O(log n)", later &["BACKOFF", "DEDUP", "MAXLEN"]),
    row!(79 "QUIT" -1 FAST, NONE, Connection, Idempotent, quit, "QUIT", "Closes the connection, after all answers.", "OK", "O(1)"),
    row!(3 "RENEW" -2 WRITE, NONE, Locks, OwnerToken, renew, "RENEW name [OWNER id] [TOKEN n] [TTL ms]",
        "Extends a lock's lease (default 30 s from now; without OWNER as long as the connection lives, told as 30 days).", "milliseconds left, or nil when the lock is lost", "O(log n)"),
    row!(80 "RESET" 1 FAST, NONE, Connection, Idempotent, reset, "RESET", "Forgets the connection's name and protocol version.", "RESET", "O(1)"),
    row!(97 "SCAN" -2 READ, NONE, Keys, Read, scan, "SCAN cursor [MATCH pattern] [COUNT n] [TYPE type]",
        "Lists some keys, and where to go on. Every key that is there from the first call (cursor 0) to the last (cursor 0 in the answer) is shown.",
        "`[cursor, [name, ...]]`, perhaps without names", "O(COUNT), at most 1,024"),
    row!(81 "SELECT" 2 FAST, NONE, Connection, Idempotent, select, "SELECT 0", "There is one database, 0.", "OK", "O(1)"),
    row!(82 "SESSION" -2 FAST, NONE, Connection, No, session, "SESSION OPEN | RESUME id",
        "Opens a client session, or goes on with one (binary protocol): its requests take effect once, however often they are sent.",
        "the session's id", "O(log n)"),
    row!(33 "SET" -3 WRITE, ONE, Keys, IfVersion, set, "SET key value [NX | XX | IFVER n] [EX s | PX ms | EXAT unix-seconds | PXAT unix-ms | KEEPTTL] [GET] [WRITEBACK] [FENCE lock token]",
        "Writes a key; durable on a majority before the answer. FENCE refuses whoever held the lock before its newest holder; WRITEBACK lets the node answer first, see the rules below.",
        "OK, or nil when the condition does not hold; with GET the old value or nil; -FENCED and the lowest token that is good", "O(log n)"),
    row!(98 "SETEX" 4 WRITE, ONE, Keys, No, set_ex, "SETEX key seconds value", "The same as SET with EX.", "OK", "O(log n)"),
    row!(99 "SETNX" 3 WRITE, ONE, Keys, No, set_nx, "SETNX key value", "Writes a key that does not exist.", "1 or 0", "O(log n)"),
    row!(100 "SETRANGE" 4 WRITE, ONE, Keys, Alone, set_range, "SETRANGE key offset value", "Writes a part of a value; what is missing before it becomes zeros.", "the new length", "O(length)"),
    row!(69 "SNAPSHOT" -1 Flags::BLOCKING, NONE, Cluster, Idempotent, snapshot, "SNAPSHOT [LIST | READ group index offset]",
        "Writes a snapshot of every group that the node holds, with all that was acknowledged before; LIST and READ let it be copied (see `quorate snapshot save`).",
        "OK once all are on stable storage; LIST: `[[group, index, term, group time, bytes, crossings], ...]`, with crossings `[[other partition, last dead letter that has left for it, last that has arrived from it], ...]`; READ: up to 256 KiB from the offset on, empty at the end, nil when that snapshot is not here any more",
        "O(data)"),
    row!(64 "STATUS" 1 FAST, NONE, Cluster, Read, status, "STATUS", "Shows the node's view of every group it holds.",
        "a map: node, role, session, lost (groups whose replicas here wait to be replaced), and per group role, term, leader, commit and applied index, digest, index of the snapshot", "O(groups)"),
    row!(101 "STRLEN" 2 READ, ONE, Keys, Read, strlen, "STRLEN key", "Tells how long a value is.", "bytes; 0 without a key", "O(log n)"),
    row!(20 "SUB" -2 Flags::WRITE.and(Flags::PUBSUB), ONE, Queues, Idempotent, subscribe, "SUB topic [PREFETCH n] [LEASE ms]",
        "Streams messages as `message topic id attempt body`, at most PREFETCH (64) of them and about 16 MiB unacknowledged.", "OK, then pushes", "O(log n)", later &["GROUP"]),
    row!(102 "SUBSTR" 4 READ, ONE, Keys, Read, get_range, "SUBSTR key start end", "The same as GETRANGE.", "the bytes, perhaps none", "O(log n)"),
    row!(83 "TIME" 1 FAST, NONE, Connection, Read, time, "TIME", "Tells the node's clock.", "`[seconds, microseconds]`", "O(1)"),
    row!(103 "TOUCH" -2 READ, ALL, Keys, Read, exists, "TOUCH key [key ...]", "The same as EXISTS.", "the number of keys that exist", "O(log n) per key"),
    row!(38 "TTL" 2 READ, ONE, Keys, Read, ttl, "TTL key", "Tells how long a key still lives.", "seconds; -1 without a deadline, -2 without a key", "O(log n)"),
    row!(104 "TYPE" 2 READ, ONE, Keys, Read, key_type, "TYPE key", "Tells a key's type.", "string, or none", "O(log n)"),
    row!(44 "UNLINK" -2 WRITE, ALL, Keys, Alone, del, "UNLINK key [key ...]", "The same as DEL.", "the number of keys that existed", "O(log n) per key"),
    row!(2 "UNLOCK" -2 WRITE, NONE, Locks, OwnerToken, unlock, "UNLOCK name [OWNER id] [TOKEN n]",
        "Releases a lock and grants it to the next in line.", "1, or 0 when nothing is held under that token; -NOTOWNER when somebody else holds it", "O(log n)"),
    row!(21 "UNSUB" -2 WRITE, ONE, Queues, Idempotent, unsubscribe, "UNSUB topic", "Ends a subscription; what was delivered stays leased.",
        "1, or 0 without a subscription", "O(log n)", later &["GROUP"]),
    row!(87 "UNWATCH" 1 FAST, NONE, Connection, Idempotent, unwatch, "UNWATCH", "Forgets what is watched.", "OK", "O(1)"),
    row!(88 "WATCH" -2 READ, ALL, Connection, Idempotent, watch, "WATCH key [key ...]",
        "Has the next EXEC do nothing if one of the keys has changed since; in one partition with what is queued.", "OK", "O(log n) per key"),
];

/// Verbs of the contract that are not built yet, and what to do meanwhile.
static LATER: &[(&str, &str)] = &[
    ("CLUSTER", "see MEMBERS and PARTITIONS"),
    ("EXTEND", "fetch with a longer LEASE"),
    ("FENCE", "compare tokens where they are used"),
    ("GROUPDEL", "there is one group a topic"),
    ("KEEPALIVE", "use RENEW for each lock"),
    ("LOCKFORCE", "wait for the lease to end"),
    ("LOCKS", "use LOCKINFO with a name"),
    ("LOCKWAITS", "use LOCKINFO with a name"),
    ("PEEK", "use QINFO"),
    ("PSUBSCRIBE", "use SUB or FETCH"),
    ("PUBLISH", "use PUB"),
    ("PUBSUB", "use QINFO"),
    ("PUNSUBSCRIBE", "use UNSUB"),
    ("PURGE", "FETCH and ACK what is there"),
    ("QDEL", "an empty topic at default settings vanishes by itself"),
    ("QLIST", "use QINFO with a name"),
    ("REDRIVE", "FETCH from the dead letters and PUB again"),
    ("SHUTDOWN", "send the process SIGTERM"),
    ("SUBSCRIBE", "use SUB or FETCH"),
    ("UNSUBSCRIBE", "use UNSUB"),
];

/// The longest verb.
const VERB_MAX: usize = 16;

/// A verb in upper case, on the stack.
fn upper(verb: &[u8]) -> Option<([u8; VERB_MAX], usize)> {
    let mut word = [0; VERB_MAX];
    word.get_mut(..verb.len())?.copy_from_slice(verb);
    word.make_ascii_uppercase();
    Some((word, verb.len()))
}

/// The row of a verb, whatever its case.
#[must_use]
pub fn find(verb: &[u8]) -> Option<&'static Spec> {
    let (word, len) = upper(verb)?;
    let at = TABLE.binary_search_by(|spec| spec.name.as_bytes().cmp(&word[..len])).ok()?;
    Some(&TABLE[at])
}

/// The row of a number.
#[must_use]
pub fn find_number(number: u16) -> Option<&'static Spec> {
    TABLE.iter().find(|spec| spec.number == number)
}

/// For a verb of the contract that is not built yet: what to do meanwhile.
pub(super) fn not_built(verb: &[u8]) -> Option<&'static str> {
    let (word, len) = upper(verb)?;
    let at = LATER.binary_search_by(|(name, _)| name.as_bytes().cmp(&word[..len])).ok()?;
    Some(LATER[at].1)
}

/// The verbs that are not built yet.
pub(super) fn later() -> impl Iterator<Item = (&'static str, &'static str)> {
    LATER.iter().copied()
}
