//! A home and two holders, with every word in the test's hands.

mod keeping;
mod owning;
mod tracked;

use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::cache::{CacheWord, Grant, Invalidation, LeaseName, LeaseWanted};
use quorate_protocol::id::{Boot, GroupId, NodeId, Term};

use super::CacheEffect;
use super::directory::Directory;
use super::holder::{Fill, Holder};
use super::line::State;
use crate::effect::{Effect, Effects, TICK};

const GROUP: GroupId = GroupId(1);
const HOME: NodeId = NodeId(1);
const TERM: Term = 3;
const ENOUGH: u64 = 10 * TICK;

fn key(name: &str) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

/// A holder, and what its view would show.
struct Node {
    id: NodeId,
    holder: Holder,
    shown: Vec<Bytes>,
}

impl Node {
    fn new(id: u64) -> Self {
        let mut holder = Holder::new(Boot(id), 2);
        holder.set_route(GROUP, Some(HOME), TERM);
        Self { id: NodeId(id), holder, shown: Vec::new() }
    }

    fn look(&mut self) {
        let mut effects = Effects::new();
        self.holder.take_effects(&mut effects);
        for effect in effects {
            match effect {
                Effect::Cache(CacheEffect::Fill { key, .. }) => self.shown.push(key),
                Effect::Cache(CacheEffect::Purge { keys, .. }) => {
                    self.shown.retain(|key| !keys.contains(key));
                }
                Effect::Cache(CacheEffect::Lease { generation: 0, .. }) => self.shown.clear(),
                _ => {}
            }
        }
    }

    fn shows(&mut self, name: &str) -> bool {
        self.look();
        self.shown.contains(&key(name))
    }
}

struct Trio {
    now: u64,
    home_until: u64,
    home: Directory,
    two: Node,
    three: Node,
}

impl Trio {
    /// Both nodes have a lease.
    fn new() -> Self {
        let mut this = Self {
            now: 1_000_000,
            home_until: 1_000_000 + ENOUGH,
            home: Directory::new(GROUP, TERM),
            two: Node::new(2),
            three: Node::new(3),
        };
        assert_eq!(
            (this.two.holder.epoch(this.now, GROUP), this.three.holder.epoch(this.now, GROUP)),
            (0, 0)
        );
        this.deliver();
        assert!(this.two.holder.epoch(this.now, GROUP) > 0 && this.three.holder.epoch(this.now, GROUP) > 0);
        this
    }

    /// Words go both ways until there are none.
    fn deliver(&mut self) {
        loop {
            let from_home = self.home.take_words();
            let from_nodes = [self.two.holder.take_words(), self.three.holder.take_words()];
            if from_home.is_empty() && from_nodes.iter().all(Vec::is_empty) {
                return;
            }
            for (to, word) in from_home {
                let (now, node) = self.node(to);
                node.holder.hear(now, HOME, word);
            }
            for (at, words) in from_nodes.into_iter().enumerate() {
                let from = NodeId(at as u64 + 2);
                for (_, word) in words {
                    self.home.hear(self.now, self.home_until, from, word);
                }
            }
        }
    }

    fn node(&mut self, id: NodeId) -> (u64, &mut Node) {
        (self.now, if id.0 == 2 { &mut self.two } else { &mut self.three })
    }

    /// The answer to a read, on its way.
    fn granted(&mut self, node: u64, name: &str) -> Option<Grant> {
        let (now, node) = self.node(NodeId(node));
        let (epoch, id) = (node.holder.epoch(now, GROUP), node.id);
        self.home.grant(now, id, epoch, &key(name), false)
    }

    fn fill(&mut self, node: u64, name: &str, grant: Grant) -> bool {
        let (now, node) = self.node(NodeId(node));
        let fill = Fill { key: key(name), value: None, grant, asked: now, written: false };
        node.holder.fill(now, fill)
    }

    fn read(&mut self, node: u64, name: &str) {
        let grant = self.granted(node, name).expect("the key is open");
        assert!(self.fill(node, name, grant));
    }

    /// A write arrives that a node has sent; whether it may be proposed at once.
    fn write(&mut self, node: u64, name: &str) -> bool {
        let (_, writer) = self.node(NodeId(node));
        let gave_up = writer.holder.give_up(GROUP, &[key(name)]);
        self.home.close(self.now, &[key(name)], NodeId(node), gave_up).is_none()
    }

    fn states(&self, name: &str) -> Vec<(u64, &'static str)> {
        self.home
            .holders(self.now, &key(name))
            .into_iter()
            .map(|(node, state)| (node.0, state.letter()))
            .collect()
    }
}

#[test]
fn a_write_waits_for_the_other_holders_and_only_for_them() {
    let mut trio = Trio::new();
    trio.read(2, "k");
    assert_eq!(trio.states("k"), [(2, "E")]);
    trio.read(3, "k");
    assert_eq!(trio.states("k"), [(2, "S"), (3, "S")]);
    assert!(!trio.write(2, "k"));
    assert!(!trio.two.shows("k"), "the writer's own line goes first");
    assert!(trio.granted(2, "k").is_none(), "the key is closed");
    assert!(trio.write(2, "other"), "other keys are not");
    trio.deliver();
    assert!(!trio.three.shows("k"));
    assert_eq!(trio.home.take_ready().len(), 1);
    assert_eq!(trio.home.open(&[key("k")]), Some(NodeId(2)), "who gave its line up gets it back");
    let grant = trio.home.grant_written(trio.now, NodeId(2), &key("k")).expect("it is open");
    assert!(grant.exclusive);
    assert_eq!(trio.states("k"), [(2, "M")]);
    trio.read(3, "k");
    assert_eq!(trio.states("k"), [(2, "S"), (3, "S")]);
}

#[test]
fn the_only_holder_writes_without_asking_anybody() {
    let mut trio = Trio::new();
    trio.read(2, "k");
    assert!(trio.write(2, "k"));
    assert!(trio.home.take_words().is_empty());
}

#[test]
fn a_grant_on_its_way_to_the_writer_is_asked_back() {
    let mut trio = Trio::new();
    trio.read(2, "k");
    let late = trio.granted(2, "k").expect("it is open");
    assert!(!trio.write(2, "k"), "the line that it gave up is not the last one that it was granted");
    trio.deliver();
    assert!(!trio.fill(2, "k", late), "an invalidation has overtaken it");
    assert!(!trio.two.shows("k"));
    assert_eq!(trio.home.take_ready().len(), 1);
}

#[test]
fn what_one_home_invalidates_says_nothing_of_what_another_grants() {
    let mut trio = Trio::new();
    let (now, two) = (trio.now, &mut trio.two.holder);
    // Numbered by a home of its own, in an older term.
    let (other, term) = (GroupId(2), TERM - 2);
    let mut home = Directory::new(other, term);
    two.set_route(other, Some(NodeId(3)), term);
    assert_eq!(two.epoch(now, other), 0);
    two.take_words().into_iter().for_each(|(_, word)| home.hear(now, now + ENOUGH, NodeId(2), word));
    home.take_words().into_iter().for_each(|(_, word)| two.hear(now, NodeId(3), word));
    let lease = LeaseName { group: GROUP, term: TERM, epoch: two.epoch(now, GROUP) };
    let keys: Vec<Bytes> = (0..10_000).map(|n| key(&n.to_string())).collect();
    two.hear(now, HOME, CacheWord::Invalid(Invalidation { lease, number: 1 << 20, keys: keys.clone() }));
    for key in &keys[..100] {
        let epoch = two.epoch(now, other);
        let grant = home.grant(now, NodeId(2), epoch, key, false).expect("the key is open");
        assert!(two.fill(now, Fill { key: key.clone(), value: None, grant, asked: now, written: false }));
    }
}

#[test]
fn an_invalidation_is_said_again_and_a_silent_node_is_waited_out() {
    let mut trio = Trio::new();
    trio.read(3, "k");
    assert!(!trio.write(2, "k"));
    trio.home.take_words();
    trio.now += 2 * TICK;
    trio.home.tick(trio.now);
    assert!(matches!(&trio.home.take_words()[..], [(NodeId(3), CacheWord::Invalid(_))]), "it was lost");
    let lease = LeaseName { group: GROUP, term: TERM, epoch: trio.three.holder.epoch(trio.now, GROUP) };
    let want = CacheWord::Want(LeaseWanted { lease, boot: Boot(3), sent: trio.now, watch: false });
    trio.now += 1;
    trio.home.hear(trio.now, trio.now + ENOUGH, NodeId(3), want);
    assert!(trio.home.take_words().is_empty(), "who owes an answer gets no more time");
    trio.now = trio.home_until - 1;
    trio.home.tick(trio.now);
    assert!(trio.home.take_ready().is_empty());
    trio.now += 1;
    trio.home.tick(trio.now);
    assert_eq!(trio.home.take_ready().len(), 1, "its lease is over");
    trio.three.holder.tick(trio.now);
    assert!(!trio.three.shows("k"), "and was over there before");
}

#[test]
fn a_second_write_waits_for_what_the_first_waits_for() {
    let mut trio = Trio::new();
    trio.read(3, "k");
    assert!(!trio.write(2, "k"));
    assert!(!trio.write(2, "k"), "the copy may still be there");
    trio.deliver();
    assert_eq!(trio.home.take_ready().len(), 2);
    assert_eq!(trio.home.open(&[key("k")]), None);
    assert!(trio.granted(3, "k").is_none(), "one write is still on its way");
    trio.home.open(&[key("k")]);
    trio.read(3, "k");
}

#[test]
fn a_late_eviction_takes_nothing_newer_away() {
    let mut trio = Trio::new();
    trio.read(2, "k");
    trio.two.holder.evicted(vec![(GROUP, key("k"))]);
    trio.two.holder.tick(trio.now);
    let late = trio.two.holder.take_words();
    trio.read(2, "k");
    for (_, word) in late {
        trio.home.hear(trio.now, trio.home_until, NodeId(2), word);
    }
    assert_eq!(trio.states("k"), [(2, "E")], "the line that it has now is still known");
    trio.two.holder.evicted(vec![(GROUP, key("k"))]);
    trio.two.holder.tick(trio.now);
    trio.deliver();
    assert_eq!(trio.states("k"), []);
}

#[test]
fn a_lease_is_counted_from_when_it_was_asked_for_and_ends_with_all_lines() {
    let mut trio = Trio::new();
    trio.read(2, "k");
    // Asked for now, heard late.
    trio.now += 5 * TICK;
    trio.home_until = trio.now + ENOUGH;
    trio.two.holder.tick(trio.now);
    let asked = trio.now;
    let wants = trio.two.holder.take_words();
    assert!(matches!(&wants[..], [(HOME, CacheWord::Want(_))]), "{wants:?}");
    for (_, word) in wants {
        trio.home.hear(trio.now, trio.home_until, NodeId(2), word);
    }
    let answers = trio.home.take_words();
    trio.now += TICK;
    for (_, word) in answers {
        trio.two.holder.hear(trio.now, HOME, word);
    }
    trio.now = asked + ENOUGH / 100 * 99 - 1;
    assert!(trio.two.holder.epoch(trio.now, GROUP) > 0);
    trio.now += 1;
    assert_eq!(trio.two.holder.epoch(trio.now, GROUP), 0);
    trio.two.holder.tick(trio.now);
    assert!(!trio.two.shows("k"));
    let grant = trio.home.grant(trio.now, NodeId(2), 1, &key("k"), false).expect("the home's ends later");
    assert!(!trio.fill(2, "k", grant), "nothing is kept without a lease");
}

#[test]
fn what_was_granted_before_a_recall_is_void_and_nothing_is_granted_behind_it() {
    let mut trio = Trio::new();
    trio.read(2, "k");
    let late = trio.granted(3, "k").expect("it is open");
    trio.home.recall(trio.now);
    assert!(!trio.home.is_recalled(trio.now));
    trio.deliver();
    assert!(trio.home.is_recalled(trio.now));
    assert!(!trio.two.shows("k") && !trio.fill(3, "k", late));
    trio.two.holder.epoch(trio.now + 2 * TICK, GROUP);
    trio.deliver();
    assert_eq!(trio.two.holder.epoch(trio.now + 2 * TICK, GROUP), 0);
    assert_eq!(trio.home.relied_on_until(), 0);
}

#[test]
fn another_term_is_another_home() {
    let mut trio = Trio::new();
    trio.read(2, "k");
    let late = trio.granted(3, "k").expect("it is open");
    for node in [&mut trio.two, &mut trio.three] {
        node.holder.set_route(GROUP, Some(HOME), TERM + 1);
    }
    assert!(!trio.two.shows("k") && !trio.fill(3, "k", late));
}

#[test]
fn a_former_start_of_a_node_is_waited_out() {
    let mut trio = Trio::new();
    trio.read(2, "k");
    trio.two = Node { id: NodeId(2), ..Node::new(7) };
    trio.two.holder.epoch(trio.now, GROUP);
    trio.deliver();
    assert_eq!(trio.two.holder.epoch(trio.now, GROUP), 0, "the lease of the start before is not over");
    assert_eq!(trio.states("k"), [(2, "E")]);
    trio.now = trio.home_until;
    trio.home_until += ENOUGH;
    trio.two.holder.epoch(trio.now, GROUP);
    trio.deliver();
    assert!(trio.two.holder.epoch(trio.now, GROUP) > 0);
    assert_eq!(trio.states("k"), []);
}

#[test]
fn the_table_is_the_one_in_the_documents() {
    use super::line::Event as E;
    use State as S;
    let events = [E::ReadShared, E::ReadAlone, E::Written, E::Writes, E::OtherReads, E::Invalidated];
    let table = [
        (S::Invalid, "S E M I – I"),
        (S::Shared, "S E M I S I"),
        (S::Exclusive, "S E M I S I"),
        (S::Modified, "S M M I S I"),
    ];
    for (state, row) in table {
        let after: Vec<&str> =
            events.iter().map(|event| state.after(*event).map_or("–", State::letter)).collect();
        assert_eq!(after.join(" "), row.to_string(), "{state:?}");
        assert_eq!(state.after(E::Evicted), Some(S::Invalid));
        assert_eq!(state.after(E::Lapsed), Some(S::Invalid));
    }
}
