//! Lines that a node writes by itself: taken on, brought, asked back.

use quorate_protocol::limits::{DIRTY_BYTES_MAX, DIRTY_VALUE_MAX, DIRTY_WINDOW};
use quorate_protocol::op::Flush;
use quorate_protocol::reply::{Code, Reply};

use super::*;
use crate::cache::{TrackEffect, Tracked};

const WINDOW: u64 = DIRTY_WINDOW * 1000;

impl Trio {
    /// A node's SET WRITEBACK is applied, with this version.
    fn own(&mut self, node: u64, name: &str, version: u64) {
        self.own_of(node, name, version, &b"first"[..], None);
    }

    /// A node's SET WRITEBACK of this value is applied; its line is granted for so long.
    fn own_of(&mut self, node: u64, name: &str, version: u64, value: impl Into<Bytes>, left: Option<u64>) {
        let open = self.write(node, name);
        self.home.wants_to_own(NodeId(node), &key(name));
        if !open {
            self.deliver();
            assert_eq!(self.home.take_ready().len(), 1);
        }
        assert_eq!(self.home.open(&[key(name)]), Some(NodeId(node)));
        let grant = self.home.grant_owned(self.now, NodeId(node), &key(name)).expect("the key is open");
        assert!(grant.owned && grant.exclusive);
        let (now, node) = self.node(NodeId(node));
        let grant = Grant { version, left, ..grant };
        let (key, value) = (key(name), Some(value.into()));
        assert!(node.holder.fill(now, Fill { key, value, grant, asked: now, written: true }));
    }

    fn absorb(&mut self, node: u64, name: &str, value: &'static str) -> bool {
        let (now, node) = self.node(NodeId(node));
        node.holder.absorb(now, 5, GROUP, &key(name), &Bytes::from_static(value.as_bytes()))
    }

    /// What a node brings now.
    fn flushes(&mut self, node: u64) -> Vec<(u64, Flush)> {
        let (_, node) = self.node(NodeId(node));
        node.holder.take_flushes().into_iter().map(|(_, id, flush)| (id, flush)).collect()
    }

    fn the_flush(&mut self, node: u64) -> (u64, Flush) {
        let mut flushes = self.flushes(node);
        assert_eq!(flushes.len(), 1, "{flushes:?}");
        flushes.remove(0)
    }

    fn tick(&mut self, node: u64, later: u64) {
        self.now += later;
        let (now, node) = self.node(NodeId(node));
        node.holder.tick(now);
    }

    fn flushed(&mut self, node: u64, (id, flush): (u64, Flush), reply: Reply) {
        let (now, node) = self.node(NodeId(node));
        node.holder.flushed(now, &flush.key, id, &reply);
    }

    fn is_clean(&mut self, node: u64) -> bool {
        self.node(NodeId(node)).1.holder.is_clean()
    }

    /// A flush reaches the home and is applied there; whether it passes.
    fn applied(&mut self, node: u64, name: &str) -> bool {
        let passes = self.home.close_flush(self.now, NodeId(node), &key(name));
        if passes {
            self.home.open_flush(NodeId(node), &key(name));
        }
        passes
    }
}

#[test]
fn only_an_owner_takes_writes_on_and_only_while_its_lease_lasts() {
    let mut trio = Trio::new();
    assert!(!trio.absorb(2, "k", "a"), "it has no line");
    trio.read(2, "k");
    assert!(!trio.absorb(2, "k", "a"), "it was read, not written");
    trio.own(2, "k", 5);
    assert!(trio.absorb(2, "k", "a") && trio.two.shows("k"));
    let (now, two) = trio.node(NodeId(2));
    assert_eq!(two.holder.absorbed(now, GROUP, &key("k")), Some(Bytes::from_static(b"a")));
    assert!(trio.granted(3, "k").is_none(), "nobody else is granted the line");
    trio.now = trio.home_until;
    assert!(!trio.absorb(2, "k", "b"), "the lease is over");
    let (now, two) = trio.node(NodeId(2));
    assert_eq!(two.holder.absorbed(now, GROUP, &key("k")), None);
}

#[test]
fn what_is_large_is_written_through() {
    let mut trio = Trio::new();
    trio.own(2, "k", 5);
    let (now, two) = trio.node(NodeId(2));
    let mut absorb = |length: usize| two.holder.absorb(now, 5, GROUP, &key("k"), &vec![b'x'; length].into());
    assert!(absorb(256) && !absorb(257), "the store has taken less than half of it");
    assert!(!absorb(DIRTY_VALUE_MAX + 1));
}

#[test]
fn a_value_does_not_grow_beyond_what_the_store_has_taken() {
    let mut trio = Trio::new();
    trio.own_of(2, "k", 5, vec![b'x'; 1000], None);
    let (now, two) = trio.node(NodeId(2));
    let mut absorb = |length: usize| two.holder.absorb(now, 5, GROUP, &key("k"), &vec![b'x'; length].into());
    assert!(absorb(1000) && !absorb(1001));
}

#[test]
fn an_owned_line_is_shown_for_as_long_as_it_was_granted_and_after_each_write() {
    let mut trio = Trio::new();
    let until = |trio: &mut Trio| {
        let mut effects = Effects::new();
        trio.two.holder.take_effects(&mut effects);
        effects.into_iter().rev().find_map(|effect| match effect {
            Effect::Cache(CacheEffect::Fill { until, .. }) => Some(until),
            _ => None,
        })
    };
    trio.own_of(2, "k", 5, &b"first"[..], Some(3 * TICK));
    let granted = trio.now;
    assert_eq!(until(&mut trio), Some(granted + 3 * TICK));
    trio.now += 2 * TICK;
    assert!(trio.absorb(2, "k", "a"));
    let written = trio.now;
    assert_eq!(until(&mut trio), Some(written + 3 * TICK));
    trio.own(2, "l", 5);
    assert!(trio.absorb(2, "l", "a"));
    assert_eq!(until(&mut trio), Some(u64::MAX), "for as long as the lease lasts");
}

#[test]
fn a_value_that_was_sent_again_and_came_too_late_is_brought_anew() {
    let mut trio = Trio::new();
    trio.own(2, "k", 5);
    assert!(trio.absorb(2, "k", "a"));
    trio.tick(2, 2 * TICK);
    let first = trio.the_flush(2);
    // Its link is cut, and what was sent has arrived.
    trio.flushed(2, first, Reply::error(Code::TryAgain, "no answer came"));
    assert!(trio.absorb(2, "k", "b"));
    trio.tick(2, 2 * TICK);
    let again = trio.the_flush(2);
    assert_eq!((&again.1.value[..], again.1.base), (&b"b"[..], 5));
    trio.flushed(2, again, Reply::Int(-6));
    assert!(!trio.is_clean(2), "the home has a, not b");
    trio.tick(2, 0);
    let third = trio.the_flush(2);
    assert_eq!((&third.1.value[..], third.1.base), (&b"b"[..], 6));
    trio.flushed(2, third, Reply::Int(7));
    assert!(trio.is_clean(2));
    assert_eq!(trio.two.holder.write_backs().lost, 0);
}

#[test]
fn all_that_a_node_takes_on_is_bounded() {
    let mut trio = Trio::new();
    let mut taken = 0;
    for n in 0.. {
        let name = alloc::format!("key-{n}");
        trio.own(2, &name, 5);
        if !trio.absorb(2, &name, "a") {
            break;
        }
        taken += 1;
    }
    assert!((DIRTY_BYTES_MAX / 512..DIRTY_BYTES_MAX / 256).contains(&taken), "{taken}");
    trio.tick(2, 2 * TICK);
    let flush = trio.flushes(2).remove(0);
    let name = alloc::string::String::from_utf8(flush.1.key.to_vec()).expect("it is text");
    trio.flushed(2, flush, Reply::Int(6));
    assert!(trio.absorb(2, &name, "a"), "there is room again");
}

#[test]
fn one_value_of_a_key_is_on_its_way_and_the_newest_goes_next() {
    let mut trio = Trio::new();
    trio.own(2, "k", 5);
    assert!(trio.absorb(2, "k", "a") && trio.absorb(2, "k", "b"));
    trio.tick(2, TICK);
    assert!(trio.flushes(2).is_empty(), "it waits for company");
    trio.tick(2, TICK);
    let first = trio.the_flush(2);
    assert_eq!((&first.1.value[..], first.1.base), (&b"b"[..], 5));
    assert!(trio.absorb(2, "k", "c") && trio.absorb(2, "k", "d"));
    trio.tick(2, 2 * TICK);
    assert!(trio.flushes(2).is_empty(), "one at a time");
    trio.flushed(2, first, Reply::Int(6));
    trio.tick(2, TICK);
    let second = trio.the_flush(2);
    assert_eq!((&second.1.value[..], second.1.base), (&b"d"[..], 6));
    assert!(!trio.is_clean(2));
    trio.flushed(2, second, Reply::Int(7));
    assert!(trio.is_clean(2));
    assert!(trio.absorb(2, "k", "e"));
    trio.tick(2, 2 * TICK);
    assert_eq!(trio.the_flush(2).1.base, 7);
}

#[test]
fn nothing_is_taken_on_while_the_oldest_unbrought_write_is_too_old() {
    let mut trio = Trio::new();
    trio.own(2, "k", 5);
    assert!(trio.absorb(2, "k", "a"));
    trio.tick(2, 2 * TICK);
    let flush = trio.the_flush(2);
    let began = trio.now - 2 * TICK;
    assert!(trio.absorb(2, "k", "b"));
    trio.now = began + WINDOW - 1;
    assert!(trio.absorb(2, "k", "c"));
    trio.now += 1;
    assert!(!trio.absorb(2, "k", "d"), "the first is 100 ms old");
    // It was refused: with the newest value, and the age of the oldest.
    trio.flushed(2, flush, Reply::error(Code::TryAgain, "later"));
    assert!(!trio.absorb(2, "k", "d"));
    trio.tick(2, 2 * TICK);
    let again = trio.the_flush(2);
    assert_eq!((&again.1.value[..], again.1.base), (&b"c"[..], 5));
    trio.flushed(2, again, Reply::Int(6));
    assert!(trio.absorb(2, "k", "d"));
}

#[test]
fn whoever_asks_for_an_owned_line_waits_until_everything_is_brought() {
    let mut trio = Trio::new();
    trio.own(2, "k", 5);
    assert!(trio.absorb(2, "k", "a"));
    let name = key("k");
    let read = trio.home.recall_owned(trio.now, &[&name]).expect("node 2 owns it");
    assert!(!trio.write(3, "k"), "a write waits too");
    let again = trio.home.recall_owned(trio.now, &[&name]).expect("so does the next read");
    trio.deliver();
    assert!(trio.home.take_ready().is_empty());
    assert!(!trio.two.shows("k") && !trio.absorb(2, "k", "b"), "nothing is taken on any more");
    let flush = trio.the_flush(2);
    assert!(trio.applied(2, "k"), "it passes the write that waits for it");
    trio.flushed(2, flush, Reply::Int(6));
    trio.deliver();
    let ready = trio.home.take_ready();
    assert!(ready.len() == 3 && ready.contains(&read) && ready.contains(&again), "{ready:?}");
    assert!(!trio.home.has_owners());
    assert!(!trio.applied(2, "k"), "it is no owner any more");
}

#[test]
fn what_is_taken_on_behind_a_flush_is_brought_before_the_line_is_given_back() {
    let mut trio = Trio::new();
    trio.own(2, "k", 5);
    assert!(trio.absorb(2, "k", "a"));
    trio.tick(2, 2 * TICK);
    let first = trio.the_flush(2);
    assert!(trio.absorb(2, "k", "b"));
    trio.home.recall_owned(trio.now, &[&key("k")]).expect("node 2 owns it");
    trio.deliver();
    trio.flushed(2, first, Reply::Int(6));
    trio.deliver();
    assert!(trio.home.take_ready().is_empty());
    let second = trio.the_flush(2);
    assert_eq!((&second.1.value[..], second.1.base), (&b"b"[..], 6), "at once");
    trio.flushed(2, second, Reply::Int(7));
    trio.deliver();
    assert_eq!(trio.home.take_ready().len(), 1);
}

#[test]
fn a_silent_owner_is_waited_out_and_what_it_brings_late_goes_the_ordinary_way() {
    let mut trio = Trio::new();
    trio.own(2, "k", 5);
    assert!(trio.absorb(2, "k", "a"));
    trio.home.recall_owned(trio.now, &[&key("k")]).expect("node 2 owns it");
    trio.now = trio.home_until;
    trio.home.tick(trio.now);
    assert_eq!(trio.home.take_ready().len(), 1);
    assert!(!trio.applied(2, "k"));
    trio.tick(2, 0);
    let flush = trio.the_flush(2);
    trio.flushed(2, flush, Reply::Int(-9));
    assert!(trio.is_clean(2), "another one has written the key: it is lost");
    assert_eq!(trio.two.holder.write_backs().lost, 1);
}

#[test]
fn another_version_within_the_lease_is_the_owners_own() {
    let mut trio = Trio::new();
    trio.own(2, "k", 5);
    assert!(trio.absorb(2, "k", "a"));
    trio.tick(2, 2 * TICK);
    let flush = trio.the_flush(2);
    assert!(trio.absorb(2, "k", "b"));
    trio.flushed(2, flush, Reply::Int(-6));
    trio.tick(2, 2 * TICK);
    assert_eq!(trio.the_flush(2).1.base, 6);
    assert_eq!(trio.two.holder.write_backs().lost, 0);
}

#[test]
fn a_lease_is_given_back_when_everything_is_brought() {
    let mut trio = Trio::new();
    trio.own(2, "k", 5);
    assert!(trio.absorb(2, "k", "a"));
    let all = trio.home.close_all(trio.now).expect("there are leases");
    trio.deliver();
    trio.now += 2 * TICK;
    trio.home.tick(trio.now);
    trio.deliver();
    assert!(trio.home.take_ready().is_empty());
    let flush = trio.the_flush(2);
    assert!(trio.applied(2, "k"), "it passes the write of all keys");
    trio.flushed(2, flush, Reply::Int(6));
    trio.deliver();
    assert_eq!(trio.home.take_ready(), [all]);
}

#[test]
fn the_home_hears_of_an_eviction_when_it_has_what_was_written() {
    let mut trio = Trio::new();
    trio.own(2, "k", 5);
    assert!(trio.absorb(2, "k", "a"));
    trio.two.holder.evicted(vec![(GROUP, key("k"))]);
    trio.tick(2, 0);
    trio.deliver();
    assert!(trio.home.has_owners());
    assert!(!trio.absorb(2, "k", "b"));
    let flush = trio.the_flush(2);
    trio.flushed(2, flush, Reply::Int(6));
    trio.tick(2, 0);
    trio.deliver();
    assert!(!trio.home.has_owners());
    assert_eq!(trio.states("k"), []);
}

#[test]
fn an_own_write_goes_behind_what_was_taken_on_and_takes_a_clean_line_along() {
    let mut trio = Trio::new();
    trio.own(2, "k", 5);
    assert!(trio.write(2, "k"), "the line is clean: its grant goes with the write");
    assert!(!trio.home.has_owners());
    assert_eq!(trio.home.open(&[key("k")]), Some(NodeId(2)));
    trio.own(2, "k", 7);
    assert!(trio.absorb(2, "k", "a"));
    assert!(!trio.write(2, "k") && trio.two.shows("k"));
    trio.deliver();
    let flush = trio.the_flush(2);
    trio.flushed(2, flush, Reply::Int(8));
    trio.deliver();
    assert_eq!(trio.home.take_ready().len(), 1);
}

#[test]
fn a_newer_grant_ends_what_is_left_of_the_one_before() {
    let mut trio = Trio::new();
    trio.own(2, "k", 5);
    assert!(trio.absorb(2, "k", "a"));
    trio.now = trio.home_until;
    trio.home_until += ENOUGH;
    trio.home.tick(trio.now);
    trio.tick(2, 0);
    let late = trio.the_flush(2);
    let (now, two) = trio.node(NodeId(2));
    two.holder.epoch(now, GROUP);
    trio.deliver();
    trio.own(2, "k", 9);
    assert!(trio.is_clean(2));
    assert!(trio.absorb(2, "k", "b"));
    trio.flushed(2, late, Reply::Int(-9));
    assert!(!trio.is_clean(2), "that was the answer to another life of the line");
    trio.tick(2, 2 * TICK);
    assert_eq!(trio.the_flush(2).1.base, 9);
}

#[test]
fn a_slow_log_is_no_reason_for_an_owners_lease_to_run_out() {
    let mut trio = Trio::new();
    trio.own(2, "k", 5);
    assert!(trio.absorb(2, "k", "a"));
    trio.home.recall_owned(trio.now, &[&key("k")]).expect("node 2 owns it");
    trio.deliver();
    trio.now += 5 * TICK;
    trio.home_until = trio.now + ENOUGH;
    let (now, two) = trio.node(NodeId(2));
    two.holder.tick(now);
    trio.deliver();
    let before = trio.home.relied_on_until();
    assert!(before < trio.home_until, "who owes an answer gets no more time");
    assert!(trio.home.close_flush(trio.now, NodeId(2), &key("k")));
    trio.tick(2, 2 * TICK);
    trio.deliver();
    assert_eq!(trio.home.relied_on_until(), trio.home_until, "unless it has done what it can");
}

#[test]
fn a_home_that_can_write_no_more_calls_its_owned_lines_back() {
    let mut trio = Trio::new();
    trio.own(2, "k", 5);
    assert!(trio.absorb(2, "k", "a"));
    trio.home.disown(trio.now);
    trio.deliver();
    assert!(!trio.absorb(2, "k", "b"));
    let flush = trio.the_flush(2);
    trio.flushed(2, flush, Reply::Int(6));
    trio.deliver();
    assert!(!trio.home.has_owners());
}

#[test]
fn a_node_that_is_about_to_stop_brings_everything_and_takes_nothing_on() {
    let mut trio = Trio::new();
    trio.own(2, "k", 5);
    assert!(trio.absorb(2, "k", "a"));
    trio.two.holder.leave();
    assert!(!trio.absorb(2, "k", "b"));
    let flush = trio.the_flush(2);
    trio.flushed(2, flush, Reply::Int(6));
    assert!(trio.is_clean(2));
}

#[test]
fn a_client_that_writes_what_its_node_owns_is_named_before_the_value_changes() {
    let mut trio = Trio::new();
    trio.own(2, "k", 5);
    trio.two.holder.track(trio.now, Tracked::Lines);
    trio.two.look();
    let told = |trio: &mut Trio| {
        let mut effects = Effects::new();
        trio.two.holder.take_effects(&mut effects);
        effects.into_iter().filter(|effect| !matches!(effect, Effect::Log(..))).collect::<Vec<_>>()
    };
    assert!(trio.absorb(2, "k", "a"));
    let effects = told(&mut trio);
    let writes = Effect::Track(TrackEffect::Writes { conn: 5, keys: vec![key("k")] });
    let purge = Effect::Cache(CacheEffect::Purge { group: GROUP, keys: vec![key("k")] });
    assert_eq!(effects[..2], [writes, purge]);
    assert!(matches!(&effects[2..], [Effect::Cache(CacheEffect::Fill { .. })]), "{effects:?}");
    let (now, two) = trio.node(NodeId(2));
    assert!(!two.holder.absorb(now, 5, GROUP, &key("k"), &vec![b'x'; 257].into()));
    assert_eq!(told(&mut trio), [], "what is written through is named when it is sent");
}
