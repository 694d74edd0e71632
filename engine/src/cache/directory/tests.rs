//! A write of all keys, and the leases that stand in its way.

use quorate_protocol::cache::LeaseWanted;

use super::*;

const FAR: u64 = 1000 * TICK;

/// A directory under which nodes 1 and 2 have leases, and node 1 the line of `k`.
fn with_a_line() -> Directory {
    let mut directory = Directory::new(GroupId(1), 3);
    (1..=2).for_each(|node| want(&mut directory, 10, NodeId(node)));
    assert!(directory.grant(10, NodeId(1), 1, &"k".into(), false).is_some());
    directory.take_words();
    directory
}

fn want(directory: &mut Directory, now: u64, from: NodeId) {
    let lease = LeaseName { group: GroupId(1), term: 3, epoch: 0 };
    let want = CacheWord::Want(LeaseWanted { lease, boot: Boot(1), sent: now, watch: false });
    directory.hear(now, FAR, from, want);
}

fn returned(directory: &mut Directory, node: u64, epoch: u64) {
    let lease = LeaseName { group: GroupId(1), term: 3, epoch };
    directory.hear(20, FAR, NodeId(node), CacheWord::Returned(lease));
}

#[test]
fn a_write_of_all_keys_waits_until_every_lease_has_come_back() {
    let mut directory = with_a_line();
    let write = directory.close_all(20).expect("a line is out there");
    let words = directory.take_words();
    assert!(words.iter().all(|(_, word)| matches!(word, CacheWord::Flush(_))) && words.len() == 2);
    assert!(directory.grant(20, NodeId(2), 2, &"other".into(), false).is_none(), "everything is closed");
    want(&mut directory, 20, NodeId(1));
    assert!(directory.take_words().is_empty(), "whoever has not given its lease back gets none");
    directory.tick(20 + SAY_AGAIN);
    assert_eq!(directory.take_words().len(), 2, "it is said again");
    returned(&mut directory, 1, 1);
    let second = directory.close(20, &["k".into()], NodeId(2), 0).expect("node 2 may still show it");
    assert!(!directory.has_ready());
    returned(&mut directory, 2, 2);
    assert_eq!(directory.take_ready(), [write, second]);
    assert!(directory.holders(20, &"k".into()).is_empty());
    want(&mut directory, 20, NodeId(1));
    assert!(directory.grant(20, NodeId(1), 1, &"other".into(), false).is_none(), "that lease is over");
    assert!(directory.grant(20, NodeId(1), 3, &"other".into(), false).is_none(), "it is not applied yet");
    directory.open_all(20);
    assert!(directory.grant(20, NodeId(1), 3, &"other".into(), false).is_some());
}

#[test]
fn a_write_of_all_keys_waits_no_longer_than_leases_last() {
    let mut directory = with_a_line();
    let write = directory.close_all(20).expect("a line is out there");
    directory.tick(FAR);
    assert_eq!(directory.take_ready(), [write]);
}
