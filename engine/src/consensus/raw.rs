//! Between raft's types and ours.

use quorate_protocol::id::{GroupId, NodeId, Replica};
use quorate_protocol::peer::{RaftEntry, RaftMessage};
use raft::eraftpb::{Entry as RawEntry, EntryType, Message, MessageType};

use crate::journal::{COMMANDS, CONFIGURATION, Entry};

/// A replica as raft names it: the node below, its incarnation above.
pub(super) fn raw_id(replica: Replica) -> u64 {
    assert!(replica.node.0 < 1 << 32, "limits.rs bounds the nodes' ids");
    replica.node.0 | u64::from(replica.incarnation) << 32
}

pub(super) fn replica_of(raw: u64) -> Replica {
    let incarnation = u32::try_from(raw >> 32).expect("32 bits are left");
    Replica { node: NodeId(raw & u64::from(u32::MAX)), incarnation }
}

/// Raft reads the data of a change only when it is proposed, and wants its own notation there. In the log and
/// between nodes it has ours, which raft carries as the entry's context.
pub(super) fn to_raw_entry(entry: &Entry) -> RawEntry {
    let mut raw = RawEntry::default();
    if entry.kind == COMMANDS {
        raw.set_entry_type(EntryType::EntryNormal);
        raw.data = entry.data.clone();
    } else {
        raw.set_entry_type(EntryType::EntryConfChangeV2);
        raw.context = entry.data.clone();
    }
    raw.term = entry.term;
    raw.index = entry.index;
    raw
}

pub(super) fn from_raw_entry(group: GroupId, raw: &RawEntry) -> Entry {
    let (kind, data) = if is_change(raw) { (CONFIGURATION, &raw.context) } else { (COMMANDS, &raw.data) };
    Entry { group, term: raw.term, index: raw.index, kind, data: data.clone() }
}

pub(super) fn is_change(raw: &RawEntry) -> bool {
    raw.get_entry_type() != EntryType::EntryNormal
}

/// The number of the message that offers a snapshot.
pub const SNAPSHOT: u8 = 10;

/// The kinds of message that travel between nodes, by number. Numbers are never reused.
const KINDS: [(u8, MessageType); 10] = [
    (1, MessageType::MsgAppend),
    (2, MessageType::MsgAppendResponse),
    (3, MessageType::MsgRequestVote),
    (4, MessageType::MsgRequestVoteResponse),
    (5, MessageType::MsgHeartbeat),
    (6, MessageType::MsgHeartbeatResponse),
    (7, MessageType::MsgTimeoutNow),
    (8, MessageType::MsgRequestPreVote),
    (9, MessageType::MsgRequestPreVoteResponse),
    (SNAPSHOT, MessageType::MsgSnapshot),
];

/// Whether a message of this kind comes from a leader only.
#[must_use]
pub fn is_of_leader(kind: u8) -> bool {
    [1, 5, SNAPSHOT].contains(&kind)
}

/// Whether a message of this kind answers a leader's word.
pub(super) fn is_answer(kind: u8) -> bool {
    [2, 6].contains(&kind)
}

pub(super) fn to_raw(message: RaftMessage) -> Option<Message> {
    let (_, kind) = *KINDS.iter().find(|(number, _)| *number == message.kind)?;
    let mut raw = Message::default();
    raw.set_msg_type(kind);
    raw.from = raw_id(message.from);
    raw.to = raw_id(message.to);
    raw.term = message.term;
    raw.log_term = message.log_term;
    raw.index = message.index;
    raw.commit = message.commit;
    raw.commit_term = message.commit_term;
    raw.reject = message.reject;
    raw.reject_hint = message.reject_hint;
    raw.request_snapshot = message.request_snapshot;
    raw.priority = message.priority;
    raw.context = message.context;
    for entry in message.entries {
        let RaftEntry { term, index, kind, data } = entry;
        raw.entries.push(to_raw_entry(&Entry { group: message.group, term, index, kind, data }));
    }
    Some(raw)
}

pub(super) fn from_raw(group: GroupId, raw: Message) -> Option<RaftMessage> {
    let (kind, _) = *KINDS.iter().find(|(_, kind)| *kind == raw.get_msg_type())?;
    let entries = raw.entries.iter().map(|entry| {
        let Entry { term, index, kind, data, .. } = from_raw_entry(group, entry);
        RaftEntry { term, index, kind, data }
    });
    // The offer of a snapshot says which; the bytes are fetched by the receiver.
    let offered = raw.get_snapshot().get_metadata();
    let at = if kind == SNAPSHOT { (offered.index, offered.term) } else { (raw.index, raw.log_term) };
    Some(RaftMessage {
        group,
        kind,
        from: replica_of(raw.from),
        to: replica_of(raw.to),
        term: raw.term,
        log_term: at.1,
        index: at.0,
        commit: raw.commit,
        commit_term: raw.commit_term,
        reject: raw.reject,
        reject_hint: raw.reject_hint,
        request_snapshot: raw.request_snapshot,
        priority: raw.priority,
        entries: entries.collect(),
        context: raw.context,
        sent: 0,
    })
}
