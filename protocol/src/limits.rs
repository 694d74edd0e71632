//! Every bound in one place. At a bound Quorate refuses with a clear error; it never grows past it.
//!
//! Sizes are bytes, times are milliseconds unless the name says otherwise.

/// A lock, key or topic name, an owner id, a message id given by the client.
pub const NAME_MAX: usize = 1024;
/// What a client says of itself: its name, the name and the version of its library, each.
pub const CLIENT_NAME_MAX: usize = 128;
/// A row of CLIENT LIST, besides those three.
pub const CLIENT_ROW_MAX: usize = 192;
/// A value or a message body.
pub const VALUE_MAX: usize = 8 << 20;
/// The arguments of one request, all together.
pub const REQUEST_MAX: usize = VALUE_MAX + (64 << 10);
/// The number of arguments of one request.
pub const ARGS_MAX: usize = 1 << 20;
/// An inline line (nc, telnet), with its end.
pub const INLINE_MAX: usize = 64 << 10;
/// Keys of one DEL, EXISTS, MGET or MSET, ids of one ACK.
pub const MANY_MAX: usize = 1024;
/// Bytes of values that one MGET or EXEC answers at the most.
pub const VALUES_MAX: usize = 16 << 20;
/// Keys that the commands between MULTI and EXEC name at the most, and their number.
pub const MULTI_MAX: usize = 4096;
/// Keys that a connection watches.
pub const WATCH_MAX: usize = MANY_MAX;
/// Keys that one SCAN looks at; COUNT may say more, and gets no more.
pub const SCAN_MAX: u32 = 1024;
/// Keys of one partition that KEYS looks at; where there are more, it refers to SCAN.
pub const KEYS_MAX: usize = 10_000;
/// Bytes of names, and of patterns tried against them, that one SCAN or KEYS spends on a partition.
pub const MATCH_WORK: usize = 1 << 20;
/// Client connections of one node.
pub const CONNECTIONS_MAX: usize = 10_000;
/// Connections of other nodes to one node: each has three lanes, and a new one may come before the old is gone.
pub const PEER_CONNECTIONS_MAX: usize = 6 * NODES_MAX;
/// Connections to the admin port of one node.
pub const ADMIN_CONNECTIONS_MAX: usize = 64;
/// Requests of one connection that are read but not answered; reading stops until some are.
pub const PIPELINE_MAX: usize = 1024;
/// Of these on a binary connection, those that wait by their nature (LOCK WAIT, FETCH BLOCK, GETV FILL, AFTER one of them); above it
/// `-BUSY`. Half of all, so that what does not wait always finds room.
pub const WAITS_MAX: usize = PIPELINE_MAX / 2;
/// Unanswered request bytes of one connection; reading stops until some are answered.
pub const PIPELINE_BYTES_MAX: usize = 2 * REQUEST_MAX;
/// Reply bytes that wait for one client; a client that lets more pile up is cut.
pub const OUTPUT_MAX: usize = 32 << 20;
/// Bytes that a client's connection may always hold: a read of its socket, requests and answers of ordinary size.
pub const CLIENT_ALLOWANCE: usize = 64 << 10;
/// Bytes that all client connections of a node hold beyond that, unless `client.max-memory` says otherwise; above it `-BUSY`.
pub const CLIENT_MEMORY: usize = 1 << 30;
/// The least that `client.max-memory` may say: one client at its own bounds needs as much.
pub const CLIENT_MEMORY_MIN: usize = 64 << 20;
/// How long a connection may be beyond its allowance while others are refused; then the largest such is cut.
pub const CLIENT_PATIENCE: u64 = 10_000;
/// Requests in a node's mailbox from all its clients; above it no client's socket is read until there is room.
pub const MAILBOX_MAX: usize = 65_536;
/// Bytes in a node's mailbox from clients and peers; above it no socket is read until there is room.
pub const MAILBOX_BYTES_MAX: usize = 256 << 20;
/// Commands of one group that are proposed and not applied; above it `-BUSY`.
pub const IN_FLIGHT_MAX: usize = 65_536;
/// Bytes of one group that are proposed and not applied; above it `-BUSY`.
pub const IN_FLIGHT_BYTES_MAX: usize = 64 << 20;
/// Command bytes that one log entry gathers before the next is begun; one larger command fits alone.
pub const ENTRY_TARGET: usize = 1 << 20;
/// A frame between nodes.
pub const PEER_FRAME_MAX: usize = 64 << 20;
/// Bytes of one turn that a frame to a peer gathers before the next is begun; one larger thing fits alone.
pub const PEER_FRAME_TARGET: usize = 1 << 20;
/// Bytes that wait for one peer; above it its link is cut (and Raft messages are dropped).
pub const PEER_OUTPUT_MAX: usize = 256 << 20;
/// Bytes that wait for one peer in the snapshot lane; above it frames are dropped, and asked for again.
pub const SNAPSHOT_OUTPUT_MAX: usize = 8 << 20;
/// Bytes of rows that a slice of a snapshot gathers: what a turn spends on a snapshot stays far below 10 ms.
pub const SNAPSHOT_SLICE: usize = 256 << 10;
/// Bytes of a snapshot that one SNAPSHOT READ answers at the most.
pub const SNAPSHOT_READ: usize = 256 << 10;
/// SNAPSHOT READs that a node works on at a time; above it `-BUSY`.
pub const SNAPSHOT_READS_MAX: usize = 32;
/// SNAPSHOTs that wait on a node; above it `-BUSY`.
pub const SNAPSHOT_WAITERS_MAX: usize = 64;

/// Waiters of one lock; above it `-ERR`: the group decides it in its log, so `-BUSY` would promise too much.
pub const LOCK_WAITERS_MAX: usize = 65_536;
/// Shared holders of one lock; further ones wait.
pub const LOCK_HOLDERS_MAX: usize = 65_536;
/// Holders, and waiters, that LOCKINFO shows of one lock, besides their numbers.
pub const LOCKINFO_MAX: usize = 1000;
/// Locks that are held or awaited.
pub const LOCKS_MAX: usize = 4 << 20;
/// Default lease of a lock.
pub const LOCK_TTL: u64 = 30_000;
/// Longest TTL, WAIT, BLOCK or LEASE: 30 days. Longer ones are refused, not cut short.
pub const DURATION_MAX: u64 = 30 * 24 * 3600 * 1000;

/// Default lease of a delivered message.
pub const MESSAGE_LEASE: u64 = 30_000;
/// Deliveries before a message is moved to the dead-letter topic.
pub const MAX_DELIVER: u32 = 16;
/// Messages that one FETCH returns at the most.
pub const FETCH_MAX: u32 = 1024;
/// Bytes that one FETCH returns at the most (the first message always fits).
pub const FETCH_BYTES_MAX: usize = 16 << 20;
/// Default and greatest number of unacknowledged messages of a subscription.
pub const PREFETCH: u32 = 64;
/// See `PREFETCH`.
pub const PREFETCH_MAX: u32 = 4096;
/// Topics that one connection of lines or RESP may subscribe to.
pub const SUBSCRIPTIONS_MAX: usize = 1024;
/// Messages of one topic; above it `-QFULL`.
pub const TOPIC_MESSAGES_MAX: usize = 8 << 20;
/// Bytes of messages, and of remembered PUB IDs, in one partition's topics; above it `-QFULL`.
pub const QUEUES_MAX: u64 = 1 << 30;
/// Topics of one partition.
pub const TOPICS_MAX: usize = 65_536;
/// Waiting FETCHes and subscriptions of one topic; above it `-ERR`, as with waiters of a lock.
pub const CONSUMERS_MAX: usize = 65_536;
/// How long a PUB ID is remembered.
pub const DEDUPE_WINDOW: u64 = 120_000;
/// Remembered PUB IDs of one topic; above it a PUB with ID is refused `-QFULL` until the window has moved on.
pub const DEDUPE_MAX: usize = 1 << 20;

/// Bytes of keys and values in one partition's store; above it `-OOM`. `store.max-memory` may say less.
pub const STORE_MAX: u64 = 1 << 30;
/// Bytes that the keys of all partitions take together, unless `store.max-memory` says less.
pub const STORE_MEMORY: u64 = STORE_MAX * PARTITIONS as u64;
/// Bytes that a key costs in the store beyond its name and value.
pub const STORE_ROW: u64 = 104;
/// Keys that a partition evicts in one turn at the most: what a turn spends on it stays far below 10 ms.
pub const EVICTED_AT_ONCE: usize = 64;
/// Keys that a partition looks at in one turn to find those; whoever needs more waits for the next turn.
pub const LOOKED_AT_ONCE: usize = 64 * EVICTED_AT_ONCE;
/// Commands of a partition that have waited, for nodes or for room, and are taken up in one turn; the next comes at once.
pub const TAKEN_UP_AT_ONCE: usize = 1024;

/// Callers that wait for one key to be filled (GETV FILL); above it `-BUSY`.
pub const FILL_WAITERS_MAX: usize = 4096;
/// Callers of one partition that wait so, and keys that somebody is to fill; above it `-BUSY`.
pub const FILLS_MAX: usize = 65_536;

/// Bytes that the lines of a node's cache take at the most, unless `cache.max-memory` says otherwise.
pub const CACHE_MEMORY: usize = 256 << 20;
/// Lines of one partition that its home knows to be cached somewhere; above it no more are granted.
pub const DIRECTORY_LINES_MAX: usize = 1 << 20;
/// Keys that a node remembers for its connections with CLIENT TRACKING, each connection's apart; above it the one whose
/// turn it is longest is forgotten, and whoever has read it is told so.
pub const TRACKED_MAX: usize = 1 << 20;
/// Prefixes that one connection names in CLIENT TRACKING.
pub const PREFIXES_MAX: usize = 64;
/// Written keys that a home keeps for a node that watches and has not said that it heard of them; above it that node's lease
/// ends.
pub const NEWS_MAX: usize = 65_536;

/// A value that a node acknowledges before it is durable (SET WRITEBACK); a larger one is written through.
pub const DIRTY_VALUE_MAX: usize = 64 << 10;
/// Bytes of such values, and what they cost, that a node keeps; above it SETs are written through.
pub const DIRTY_BYTES_MAX: usize = 16 << 20;
/// How long a node may have acknowledged such a value that is not durable yet; then SETs of the key are written through.
pub const DIRTY_WINDOW: u64 = 100;
/// Lines of one partition that nodes may write by themselves; above it SETs are written through.
pub const OWNED_LINES_MAX: usize = 64 << 10;

/// Lease of a node's session.
pub const SESSION_LEASE: u64 = 10_000;
/// Lease of a client's session, renewed by the node that holds its connection.
pub const CLIENT_LEASE: u64 = 60_000;
/// Live client sessions of a cluster; above it none is opened.
pub const CLIENTS_MAX: usize = 4096;
/// Requests of a client session from its lowest unanswered one; above it `-BUSY`.
pub const CLIENT_WINDOW: u64 = 1024;

/// Items that one group keeps for another one until that has them; what may not be added waits outside.
pub const OUTBOX_ITEMS_MAX: usize = 16_384;
/// Bytes of those items; one larger item fits alone.
pub const OUTBOX_BYTES_MAX: usize = 16 << 20;
/// Outbox items that travel together.
pub const PARCEL_ITEMS_MAX: usize = 64;
/// Bytes of outbox items that travel together; one larger item travels alone.
pub const PARCEL_BYTES_MAX: usize = 1 << 20;

/// Partitions of a new cluster.
pub const PARTITIONS: u16 = 16;
/// Partitions of a cluster at the most: the row of each has its place in a directory's manifest.
pub const PARTITIONS_MAX: u16 = 64;
/// Replicas of a partition.
pub const REPLICAS: usize = 3;
/// Voters of the system group at the most.
pub const SYSTEM_VOTERS: usize = 5;
/// Pairs of a lock and a partition that compares its tokens (FENCE); above it writes with further ones are refused.
pub const WATCHES_MAX: usize = 65_536;
/// How long a partition compares a lock's tokens after a node last asked for that, in milliseconds.
pub const WATCH_LEASE: u64 = 600_000;
/// What a node knows of locks and partitions where it has sent fenced writes; above it it asks again.
pub const FENCES_KNOWN_MAX: usize = 4096;
/// Nodes of a cluster.
pub const NODES_MAX: usize = 64;
/// Nodes that a cluster has ever had; above it only ids of removed ones are taken again.
pub const NODES_EVER_MAX: usize = 1024;
/// Data directories of removed nodes that are remembered, so that none of them comes back; the oldest go first.
pub const RETIRED_MAX: usize = 1024;
/// A node's id: it shares 64 bits with the number of its replica.
pub const NODE_ID_MAX: u64 = u32::MAX as u64;
/// A node's address, `host:port`.
pub const ADDRESS_MAX: usize = 261;
/// Bytes of log entries that a node keeps in memory; above it new work is refused until snapshots cover some.
pub const LOG_MAX: usize = 4 << 30;

const _: () = assert!(REQUEST_MAX < PEER_FRAME_MAX, "a forwarded command fits a peer frame");
const _: () =
    assert!(ENTRY_TARGET + REQUEST_MAX < PEER_FRAME_MAX / 2, "an append with its largest entry fits");
const _: () =
    assert!(PEER_FRAME_TARGET + OUTPUT_MAX < PEER_FRAME_MAX, "the largest answer fits a peer frame");
const _: () = assert!(PARCEL_BYTES_MAX < REQUEST_MAX, "a parcel is no larger than a command");
const _: () = assert!(
    OUTBOX_ITEMS_MAX > 2 * (CLIENTS_MAX + NODES_MAX),
    "there is room for the ends of all sessions, and for as many that a partition has not heard of yet"
);
const _: () = assert!(PARTITIONS <= PARTITIONS_MAX, "a new cluster has no more partitions than there can be");
const _: () = assert!(
    SNAPSHOT_READS_MAX * SNAPSHOT_READ < OUTPUT_MAX,
    "whoever reads a snapshot as fast as it may is not cut"
);
const _: () = assert!(
    REQUEST_MAX + PIPELINE_BYTES_MAX + OUTPUT_MAX < CLIENT_MEMORY_MIN && CLIENT_MEMORY_MIN <= CLIENT_MEMORY,
    "one client may have all that it may have"
);
const _: () = assert!(PREFETCH <= PREFETCH_MAX, "the default is allowed");
const _: () = assert!(FETCH_BYTES_MAX + VALUE_MAX <= OUTPUT_MAX, "a full FETCH does not cut its client");
const _: () = assert!(NAME_MAX < INLINE_MAX, "a name fits a line");
const _: () = assert!(
    CONNECTIONS_MAX * (CLIENT_ROW_MAX + 3 * CLIENT_NAME_MAX) <= VALUE_MAX,
    "CLIENT LIST of all clients is no larger than a value"
);
const _: () = assert!(VALUES_MAX + VALUE_MAX <= OUTPUT_MAX, "a full MGET does not cut its client");
