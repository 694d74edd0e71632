//! Every table of a state that has something in all of them: what goes over, and that nothing else does.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use alloc::{format, vec};

use bytes::Bytes;
use quorate_protocol::command::{Command, parse};
use quorate_protocol::id::{
    Boot, ClientId, ClientSeq, ClusterId, ConnId, Identity, LogPos, NodeId, SessionId,
};
use quorate_protocol::op::partition_of_topic;
use quorate_protocol::peer::{Floor, Introduction, Item, Letter, OpenSession, Parcel, Receipted, Work};
use quorate_protocol::reply::Reply;

use super::*;
use crate::memory::Admission;
use crate::outcome::{Asker, Ctx, Outcome};
use crate::snapshot::{Loader, Writer};
use crate::table::Rows;

const HERE: GroupId = GroupId(5);
const SEAT: ConnId = ConnId { node: NodeId(1), session: SessionId(1), counter: 1 << 36 | 7 };

fn meta(cluster: u64, nodes: &[u64]) -> Meta {
    let founders = nodes.iter().map(|node| (NodeId(*node), format!("c{cluster}n{node}:7412"))).collect();
    let (cluster, identity) = (ClusterId(cluster), Identity(9));
    Meta { cluster, node: NodeId(nodes[0]), identity, boot: Boot(0), partitions: 16, founders }
}

/// A state, and the log that is being written for it.
struct Old {
    state: State,
    index: Index,
    session: SessionId,
    replies: Vec<Reply>,
}

impl Old {
    fn new(group: GroupId) -> Self {
        let state = State::new(group, &meta(1, &[1, 2, 3]));
        Self { state, index: 0, session: SessionId(1), replies: Vec::new() }
    }

    fn apply(&mut self, client: Option<ClientSeq>, work: Work) -> Reply {
        self.index += 1;
        let ctx = Ctx { at: LogPos { index: self.index, offset: 0 }, time: 1000 + self.index };
        let asker = Asker { conn: ConnId { session: self.session, ..SEAT }, request: self.index, client };
        let mut out = Vec::new();
        if self.state.memory().admit(&asker) == Admission::Execute {
            self.state.apply(&ctx, &asker, work, &mut out);
        }
        let mut own = Reply::Nil;
        for outcome in out {
            if let Outcome::Reply { to, reply } = outcome {
                self.state.memory().settle(to, &reply);
                own = if to == asker { reply.clone() } else { own };
                self.replies.push(reply);
            }
        }
        own
    }

    fn say(&mut self, line: &str) -> Reply {
        self.say_as(None, line)
    }

    fn say_as(&mut self, client: Option<ClientSeq>, line: &str) -> Reply {
        let words: Vec<Bytes> = line.split(' ').map(|word| Bytes::copy_from_slice(word.as_bytes())).collect();
        let Ok(Command::Op(op)) = parse(&words) else { panic!("{line} is a command of the cluster") };
        self.apply(client, Work::Op(op))
    }

    fn open(&mut self, node: u64, level: u16) -> Reply {
        let (identity, boot) = (Identity(u128::from(node)), Boot(1));
        let client_address = "there:7411".into();
        let open = OpenSession { node: NodeId(node), identity, boot, level, client_address };
        self.apply(None, Work::OpenSession(open))
    }
}

/// Every table's rows, as a snapshot shows them.
fn shown(state: &mut State) -> BTreeMap<u64, Vec<u8>> {
    let show = |table: &mut dyn Rows| {
        let mut out = Vec::new();
        table.begin_walk();
        assert!(!table.show(usize::MAX, &mut out).1, "it is shown at once");
        (table.id(), out)
    };
    state.tables().into_iter().map(show).collect()
}

fn number(reply: &Reply) -> u64 {
    let Reply::Int(n) = reply else { panic!("{reply:?}") };
    u64::try_from(*n).expect("it is positive")
}

/// A system group that has seen everything there is.
fn full_system() -> Old {
    let mut old = Old::new(GroupId::SYSTEM);
    old.session = SessionId(number(&old.open(1, 2)));
    let session = old.session;
    for node in [2, 3] {
        old.open(node, 2);
    }
    let Reply::Array(opened) = old.apply(None, Work::OpenClient) else { panic!("a client session") };
    let client = ClientSeq { client: ClientId(number(&opened[0])), seq: 1, lowest: 1 };
    assert_eq!(old.say_as(Some(client), "LOCK a OWNER me"), Reply::Int(1));
    assert_eq!(old.say("LOCK b"), Reply::Int(2));
    // A partition compares tokens of a lock, and has not heard of its next grant.
    assert!(matches!(old.apply(None, Work::Watch(("b".into(), GroupId(4)))), Reply::Array(_)));
    assert_eq!(old.say("UNLOCK b"), Reply::Int(1));
    old.say("LOCK b OWNER other WAIT 60000");
    old.say("LOCK a OWNER you WAIT 60000");
    assert_eq!(old.say("MEMBER ADD 4 d:7412"), Reply::OK);
    assert_eq!(old.say("MEMBER REMOVE 3"), Reply::OK);
    old.open(3, 2);
    assert!(old.session == session, "node 1 goes on");
    // The session of the node that leaves ends, and with the next word the node is gone.
    let over = Ctx { at: LogPos { index: 50, offset: 0 }, time: 5_000 };
    let State::System(system) = &mut old.state else { panic!("it is the system group") };
    system.end_for_tests(&over, NodeId(3));
    assert_eq!(old.apply(None, Work::Forget(NodeId(3))), Reply::Int(1));
    old
}

fn letter(topic: &str) -> Letter {
    Letter { topic: Bytes::copy_from_slice(topic.as_bytes()), attempts: 3, origin: (1, 1), body: "b".into() }
}

/// A topic of the partition, or of another one.
fn topic(here: bool) -> String {
    let fits = |name: &String| (partition_of_topic(name.as_bytes(), 16) == HERE) == here;
    (0..).map(|n| format!("topic{n}")).find(fits).expect("there are many names")
}

/// A partition that has seen everything there is, and the ids of its messages.
fn full_partition() -> (Old, Vec<u64>) {
    let mut old = Old::new(HERE);
    let (jobs, away) = (topic(true), topic(false));
    let client = ClientId(77);
    old.apply(None, Work::Introduce(Introduction { client, ends: 0 }));
    let seq = ClientSeq { client, seq: 1, lowest: 1 };
    old.say_as(Some(seq), "SET k v PX 90000");
    old.say(&format!("QSET {jobs} DLQ {away}"));
    let mut ids = Vec::new();
    for line in [" a", " b", " c", " d", " e ID once", " f DELAY 70000"] {
        ids.push(number(&old.say(&format!("PUB {jobs}{line}"))));
    }
    // Three letters leave, of which one has arrived; one message is with a consumer.
    old.say(&format!("FETCH {jobs} COUNT 4"));
    for id in &ids[..3] {
        assert_eq!(old.say(&format!("NACK {jobs} {id}@1 DEAD")), Reply::Int(1));
    }
    let target = partition_of_topic(away.as_bytes(), 16);
    old.apply(None, Work::Taken(Receipted { target, upto: 1 }));
    old.say("SUB listened");
    old.say("FETCH awaited BLOCK 60000");
    let ended = Item::NodeEnded((NodeId(2), SessionId(4)));
    let parcel = |source, items| Work::Take(Parcel { source, first: 1, items });
    let unwatched = Item::Unwatched(("other".into(), 1));
    old.apply(None, parcel(GroupId::SYSTEM, vec![ended, unwatched]));
    let floor = Floor { lock: "lock".into(), number: 2, token: 5 };
    old.apply(
        None,
        Work::Take(Parcel { source: GroupId::SYSTEM, first: 3, items: vec![Item::Floor(floor)] }),
    );
    old.apply(None, parcel(GroupId(9), vec![Item::Letter(letter(&topic(true)))]));
    (old, ids)
}

fn rebased(old: State, group: GroupId, index: Index, nodes: &[u64]) -> (Header, State) {
    let header = Header::new(group, (index, 6), 1234, founding(group, &meta(1, &[1, 2, 3])), old.crossings());
    rebase(&header, old, &meta(2, nodes), &BTreeMap::new()).expect("there is room for more")
}

#[test]
fn of_the_system_group_go_over_its_tokens_and_its_level() {
    let mut old = full_system();
    let before = shown(&mut old.state);
    let mut fresh = shown(&mut State::new(GroupId::SYSTEM, &meta(2, &[1])));
    let (header, mut state) = rebased(old.state, GroupId::SYSTEM, 60, &[1]);
    let after = shown(&mut state);
    for (table, rows) in &before {
        // Nobody has anything to tell the system group yet: its inbox is always empty.
        // What ends by portions (504, 505) is there for moments only, and does not go over.
        assert!(
            rows != &fresh[table] || [113, 504, 505].contains(table),
            "the test has nothing in table {table}"
        );
    }
    fresh.insert(207, before[&207].clone());
    let token = [&[0][..], &(3 + TOKENS).to_le_bytes()].concat();
    fresh.insert(503, token);
    assert_eq!(after, fresh);
    assert_eq!((header.index, header.term, header.time), (60 + (1 << 32), 6, 1234));
    assert_eq!(header.conf, founding(GroupId::SYSTEM, &meta(2, &[1])));
}

/// As `lock` has it: a change of it breaks the promise for backups that exist.
const TOKENS: u64 = 1 << 40;

#[test]
fn of_a_partition_go_over_its_keys_and_its_topics() {
    let (mut old, ids) = full_partition();
    let before = shown(&mut old.state);
    let mut fresh = shown(&mut State::new(HERE, &meta(2, &[1])));
    for (table, rows) in &before {
        // What ends by portions (608) is there for moments only, and does not go over.
        assert!(rows != &fresh[table] || *table == 608, "the test has nothing in table {table}");
    }
    let (_, mut state) = rebased(old.state, HERE, 60, &[1]);
    let after = shown(&mut state);
    // Keys, bodies, publishers' ids, the last topic's number, letters on their way: as they were.
    for table in [111, 112, 401, 602, 606, 607] {
        fresh.insert(table, before[&table].clone());
    }
    // What has arrived from other partitions, but not from the system group.
    fresh.insert(113, before[&113][10..].to_vec());
    for table in [101, 102, 111, 112, 113, 301, 302, 303, 304, 401, 602, 604, 605, 606, 607] {
        assert_eq!(after[&table], fresh[&table], "table {table}");
    }
    let State::Partition(partition) = &mut state else { panic!("it is a partition") };
    let target = partition_of_topic(topic(false).as_bytes(), 16);
    let parcel = partition.outbox.parcel(target, 0, 64);
    let bodies: Vec<&[u8]> = parcel
        .items
        .iter()
        .map(|item| if let Item::Letter(letter) = item { &letter.body[..] } else { b"no letter" })
        .collect();
    assert_eq!(
        (parcel.first, bodies),
        (2, vec![&b"b"[..], b"c"]),
        "they leave under the numbers that they had"
    );
    let crossings: Vec<_> =
        partition.crossings().into_iter().map(|to| (to.other, to.left, to.arrived)).collect();
    assert!(crossings.contains(&(target, 1, 0)) && crossings.contains(&(GroupId(9), 0, 1)), "{crossings:?}");
    assert_eq!(partition.queues.len(), 1, "topics go with those who listened");

    let mut new = Old { state, index: 60 + INDEXES_LEFT_OUT, ..Old::new(HERE) };
    let jobs = topic(true);
    let Reply::Array(messages) = new.say(&format!("FETCH {jobs} COUNT 9")) else { panic!("messages") };
    let seen: Vec<(u64, u64)> = messages
        .iter()
        .map(|message| {
            let Reply::Array(values) = message else { panic!("{message:?}") };
            (number(&values[0]), number(&values[1]))
        })
        .collect();
    // The one with a consumer comes again; the one that is delayed does not yet; the last came from elsewhere.
    assert_eq!(seen[..2], [(ids[3], 2), (ids[4], 1)]);
    assert_eq!((seen.len(), seen[2].1), (3, 4));
    assert_eq!(number(&new.say(&format!("PUB {jobs} again ID once"))), ids[4], "it is remembered");
    assert!(number(&new.say(&format!("PUB {jobs} new"))) > ids[5] + (1 << 52));
}

#[test]
fn letters_that_follow_are_numbered_behind_what_the_other_partition_had_by_a_later_cut() {
    let (mut old, _) = full_partition();
    let target = partition_of_topic(topic(false).as_bytes(), 16);
    let header = Header::new(HERE, (60, 6), 1234, founding(HERE, &meta(1, &[1])), old.state.crossings());
    // Three have a number here; the other partition had two more, of messages that are alive here.
    let arrived = [(target, 5)].into();
    let (header, state) =
        rebase(&header, old.state, &meta(2, &[1]), &arrived).expect("there is room for more");
    old = Old { state, index: 60 + INDEXES_LEFT_OUT, ..Old::new(HERE) };
    let jobs = topic(true);
    let id = number(&old.say(&format!("PUB {jobs} new")));
    old.say(&format!("FETCH {jobs} COUNT 9"));
    assert_eq!(old.say(&format!("NACK {jobs} {id}@1 DEAD")), Reply::Int(1));
    let State::Partition(partition) = &mut old.state else { panic!("it is a partition") };
    let parcel = |behind| partition.outbox.parcel(target, behind, 64);
    assert_eq!((parcel(0).first, parcel(3).first), (2, 6), "those on their way, and the new one");
    assert!(header.crossings.iter().any(|to| (to.other, to.left) == (target, 1)), "{header:?}");
}

#[test]
fn every_node_makes_the_same_file_which_is_a_sound_snapshot() {
    let file = |node: u64| {
        let (old, _) = full_partition();
        let (header, mut state) = rebased(old.state, HERE, 60, &[node, 8, 9]);
        let mut writer = Writer::new(header.clone(), &mut state);
        let mut bytes = Vec::new();
        while let Some((_, slice)) = writer.slice(&mut state) {
            bytes.extend(slice);
        }
        (header, bytes, state.digest())
    };
    let (header, bytes, digest) = file(7);
    let mut loader = Loader::new(HERE, header.index, &meta(2, &[7, 8, 9]));
    assert_eq!(loader.feed(&bytes), Ok(true));
    let (loaded, state) = loader.into_state();
    assert_eq!((&loaded, state.digest()), (&header, digest));
    assert!(file(7).1 == bytes);
    let row = row(&header);
    assert_eq!((row.snapshot, row.hard.term, row.standing), ((header.index, 6), 6, Standing::Whole));
    assert!(holds(HERE, &meta(2, &[7, 8, 9])) && holds(GroupId::SYSTEM, &meta(2, &[7])));
}

#[test]
fn what_would_not_fit_is_refused() {
    let header = |index| Header::new(HERE, (index, 1), 0, founding(HERE, &meta(1, &[1])), Vec::new());
    let state = || State::new(HERE, &meta(1, &[1]));
    let last = INDEX_MAX - INDEXES_LEFT_OUT;
    assert!(rebase(&header(last), state(), &meta(2, &[1]), &BTreeMap::new()).is_ok());
    let refused = rebase(&header(last + 1), state(), &meta(2, &[1]), &BTreeMap::new()).map(|_| ());
    assert!(refused.is_err_and(|why| why.contains("restored so often")));
}
