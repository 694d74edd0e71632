//! How a lease is got by a read, and for how long it is kept.

use super::*;

const SECOND: u64 = 1_000_000;

/// What a first read brings to a node: the words of the home, and the line.
struct FirstRead {
    words: Vec<(NodeId, CacheWord)>,
    grant: Grant,
}

impl Trio {
    /// A home, and nodes that have no lease.
    fn without_leases() -> Self {
        let mut trio = Self::new();
        trio.two = Node::new(2);
        trio.three = Node::new(3);
        trio.now = trio.home_until;
        trio.home_until += ENOUGH;
        trio
    }

    /// Node 2 reads, and its home answers.
    fn first_read(&mut self, name: &str) -> FirstRead {
        let line = self.two.holder.wish(self.now, GROUP);
        let reader = (NodeId(2), Boot(2));
        let epoch =
            self.home.epoch_for(self.now, self.home_until, reader, line).expect("the home has a lease");
        let grant = self.home.grant(self.now, NodeId(2), epoch, &key(name), false).expect("the key is open");
        FirstRead { words: self.home.take_words(), grant }
    }

    fn hear(&mut self, words: Vec<(NodeId, CacheWord)>) {
        for (to, word) in words {
            let (now, node) = self.node(to);
            node.holder.hear(now, HOME, word);
        }
    }

    /// Ticks for so long, and words go both ways; how many leases node 2 asked for meanwhile.
    fn pass(&mut self, long: u64) -> usize {
        let mut asked = 0;
        for _ in 0..long / TICK {
            self.now += TICK;
            self.home_until = self.now + ENOUGH;
            self.home.tick(self.now);
            self.two.holder.tick(self.now);
            for (_, word) in self.two.holder.take_words() {
                asked += usize::from(matches!(word, CacheWord::Want(_)));
                self.home.hear(self.now, self.home_until, NodeId(2), word);
            }
            self.deliver();
        }
        asked
    }
}

#[test]
fn the_first_read_of_a_partition_brings_lease_and_line() {
    for line_first in [false, true] {
        let mut trio = Trio::without_leases();
        let FirstRead { words, grant } = trio.first_read("k");
        assert!(matches!(&words[..], [(NodeId(2), CacheWord::Lease(_))]), "{words:?}");
        assert!(
            trio.two.holder.take_words().is_empty(),
            "the read asks for the lease, and no word beside it"
        );
        if line_first {
            assert!(!trio.fill(2, "k", grant), "there is no lease yet");
            assert!(!trio.two.shows("k"));
            trio.hear(words);
        } else {
            trio.hear(words);
            assert!(trio.fill(2, "k", grant));
        }
        assert!(trio.two.shows("k"), "line first: {line_first}");
        assert_eq!(trio.states("k"), [(2, "E")]);
    }
}

#[test]
fn a_line_that_waits_for_its_lease_is_called_back_like_any_other() {
    let mut trio = Trio::without_leases();
    let FirstRead { words, grant } = trio.first_read("k");
    assert!(!trio.fill(2, "k", grant));
    assert!(!trio.write(3, "k"), "node 2 may show it");
    trio.deliver();
    assert_eq!(trio.home.take_ready().len(), 1);
    trio.hear(words);
    assert!(!trio.two.shows("k"), "an invalidation has overtaken it");
}

#[test]
fn a_line_that_waits_for_its_lease_goes_with_the_home() {
    let mut trio = Trio::without_leases();
    let FirstRead { words, grant } = trio.first_read("k");
    assert!(!trio.fill(2, "k", grant));
    trio.two.holder.set_route(GROUP, Some(HOME), TERM + 1);
    trio.two.holder.set_route(GROUP, Some(HOME), TERM);
    trio.two.holder.wish(trio.now, GROUP);
    trio.hear(words);
    assert!(!trio.two.shows("k"));
}

#[test]
fn what_waits_for_a_lease_is_bounded_and_does_not_wait_for_long() {
    let mut trio = Trio::without_leases();
    for n in 0..1000 {
        let grant = trio.first_read(&alloc::format!("k{n}")).grant;
        assert!(!trio.fill(2, &alloc::format!("k{n}"), grant));
    }
    let words = trio.first_read("last").words;
    trio.hear(words);
    trio.two.look();
    assert_eq!(trio.two.shown.len(), 256);
    let mut trio = Trio::without_leases();
    let FirstRead { words, grant } = trio.first_read("k");
    assert!(!trio.fill(2, "k", grant));
    trio.now += 6 * TICK;
    trio.two.holder.tick(trio.now);
    trio.hear(words);
    assert!(!trio.two.shows("k"), "it is only read again");
}

#[test]
fn a_lease_outlives_pauses_between_reads_and_ends_when_nobody_reads_any_more() {
    let mut trio = Trio::new();
    trio.read(2, "k");
    // Nobody asks the engine: the view says what it shows.
    for _ in 0..5 {
        assert!(trio.pass(8 * SECOND) > 0);
        assert!(trio.two.shows("k"));
        trio.two.holder.shown(trio.now, &[GROUP]);
    }
    let asked = trio.pass(9 * SECOND);
    assert!((80..=120).contains(&asked), "it asks about a dozen times a second: {asked} in 9 s");
    assert!(trio.two.shows("k"));
    trio.pass(2 * SECOND);
    assert!(!trio.two.shows("k"), "its lease is over");
    assert_eq!(trio.pass(60 * SECOND), 0, "a node that nobody asks costs nothing");
    assert_eq!(trio.home.relied_on_until(), 0);
}

#[test]
fn a_lease_without_lines_ends_at_once() {
    let mut trio = Trio::new();
    assert_eq!(trio.pass(SECOND), 0);
    assert_eq!(trio.home.relied_on_until(), 0);
}

#[test]
fn a_wish_for_a_lease_does_not_end_that_the_node_hears_of_writes() {
    use crate::cache::{TrackEffect, Tracked};
    let mut trio = Trio::without_leases();
    trio.two.holder.track(trio.now, Tracked::Everything);
    trio.deliver();
    let line = quorate_protocol::cache::WISH | trio.now;
    assert!(trio.home.epoch_for(trio.now, trio.home_until, (NodeId(2), Boot(2)), line).is_some());
    trio.home.written(trio.now, None, &[key("k")]);
    trio.deliver();
    let mut effects = Effects::new();
    trio.two.holder.take_effects(&mut effects);
    let changed = Effect::Track(TrackEffect::Changed { keys: vec![(key("k"), 0)] });
    assert!(effects.contains(&changed), "{effects:?}");
}
