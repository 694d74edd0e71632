//! A replica that is offered snapshots faster than its disk syncs them.

use super::*;
use alloc::string::ToString;
use quorate_protocol::id::{Boot, ClusterId, GroupId, Identity, Replica};

use crate::consensus::SNAPSHOT;
use crate::group::Birth;
use crate::journal::{Conf, Hard};

const GROUP: GroupId = GroupId(3);
const LEADER: Replica = Replica { node: NodeId(1), incarnation: 0 };
const ME: Replica = Replica { node: NodeId(2), incarnation: 1 };

fn meta() -> Meta {
    Meta {
        cluster: ClusterId(1),
        node: ME.node,
        identity: Identity(1),
        boot: Boot(1),
        partitions: 4,
        founders: alloc::vec![(LEADER.node, "a:1".to_string()), (ME.node, "b:1".to_string())],
    }
}

fn follower() -> Group {
    let birth = Birth { seed: 1, group: GROUP, rank: 1, map_from: 1 };
    let hard = Hard { term: 1, vote: LEADER };
    Group::newborn(0, birth, ME.incarnation, hard, Conf::founding(alloc::vec![LEADER], Vec::new()), &meta())
}

fn offer(index: Index) -> RaftMessage {
    RaftMessage {
        group: GROUP,
        kind: SNAPSHOT,
        from: LEADER,
        to: ME,
        term: 1,
        log_term: 1,
        index,
        commit: 0,
        commit_term: 0,
        reject: false,
        reject_hint: 0,
        request_snapshot: 0,
        priority: 0,
        entries: Vec::new(),
        context: Bytes::new(),
        sent: 0,
    }
}

/// The bytes of a snapshot at an index.
fn file(index: Index) -> Bytes {
    let mut state = State::new(GROUP, &meta());
    let conf = Conf::founding(alloc::vec![LEADER, ME], Vec::new());
    let mut writer = Writer::new(Header::new(GROUP, (index, 1), 7, conf, Vec::new()), &mut state);
    let mut bytes = Vec::new();
    while let Some((_, slice)) = writer.slice(&mut state) {
        bytes.extend_from_slice(&slice);
    }
    bytes.into()
}

fn receive(group: &mut Group, index: Index, offset: u64, bytes: Bytes) {
    group.receive_piece(0, &SnapshotPiece { at: SnapshotAt { group: GROUP, index, offset }, bytes });
}

/// Fetches a snapshot; what is to be done to its file waits in `background`.
fn fetch(group: &mut Group, index: Index) {
    group.receive(0, offer(index), &meta());
    receive(group, index, 0, file(index));
    group.load_rows(0, 1, &mut usize::MAX.clone());
    assert!(!group.fetches(), "all of it has come");
}

/// Works off all plans; those that were done, in order.
fn do_all(group: &mut Group) -> Vec<Io> {
    let mut done = Vec::new();
    while let Some(ios) = group.background(&mut false) {
        done.extend(ios);
        group.background_done(0);
    }
    done
}

#[test]
fn the_sync_of_a_snapshot_that_was_given_up_is_not_taken_for_that_of_the_next() {
    let mut group = follower();
    fetch(&mut group, 10);
    assert!(group.background(&mut false).is_some() && group.background(&mut false).is_some());
    group.background_done(0);
    // The disk is slow: while the first is being synced, another is offered and comes.
    fetch(&mut group, 20);
    group.background_done(0);
    while group.progress(0).is_some() {}
    assert_eq!((group.applied(), group.row.snapshot.0), (0, 0), "nothing of the second is on the disk");
    let done = do_all(&mut group);
    assert!(matches!(done.last(), Some(Io::Sync { file: File::Snapshot(GROUP, 20) })), "{done:?}");
    while group.progress(0).is_some() {}
    assert_eq!((group.applied(), group.row.snapshot.0), (20, 20));
}

#[test]
fn an_empty_piece_at_the_end_of_a_file_is_no_reason_to_fetch_it_again() {
    let mut group = follower();
    group.receive(0, offer(10), &meta());
    let bytes = file(10);
    let end = bytes.len() as u64;
    receive(&mut group, 10, 0, bytes);
    receive(&mut group, 10, end, Bytes::new());
    group.load_rows(0, 1, &mut usize::MAX.clone());
    do_all(&mut group);
    while group.progress(0).is_some() {}
    assert_eq!(group.applied(), 10);

    let mut group = follower();
    group.receive(0, offer(10), &meta());
    receive(&mut group, 10, 0, Bytes::new());
    assert!(!group.fetches(), "the sender has it no more");
}
