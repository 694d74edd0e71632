//! What nodes hear for clients that keep values themselves.

use quorate_protocol::id::{ConnId, SessionId};

use super::*;
use crate::cache::{TrackEffect, Tracked};

/// What a node's clients are told.
fn told(trio: &mut Trio) -> Vec<TrackEffect> {
    let mut effects = Effects::new();
    trio.two.holder.take_effects(&mut effects);
    let told = |effect| if let Effect::Track(told) = effect { Some(told) } else { None };
    effects.into_iter().filter_map(told).collect()
}

/// Node 2 hears of every write.
fn watching() -> Trio {
    let mut trio = Trio::new();
    trio.now += TICK;
    trio.two.holder.track(trio.now, Tracked::Everything);
    trio.deliver();
    assert_eq!(told(&mut trio), [TrackEffect::Gap], "what was written before may have gone unheard");
    trio
}

fn written(trio: &mut Trio, node: u64, conn: u64) {
    let conn = ConnId::new(NodeId(node), SessionId(1), Boot(node), conn);
    trio.home.written(trio.now, Some(&conn), &[key("k")]);
    trio.deliver();
}

fn changed(by: u64) -> TrackEffect {
    TrackEffect::Changed { keys: vec![(key("k"), by)] }
}

#[test]
fn a_node_that_watches_hears_of_writes_of_what_it_does_not_hold_and_whose_they_were() {
    let mut trio = watching();
    written(&mut trio, 3, 9);
    written(&mut trio, 2, 9);
    assert_eq!(told(&mut trio), [changed(0), changed(9)]);
    trio.two.holder.track(trio.now, Tracked::Lines);
    trio.now += 3 * TICK;
    trio.home_until += 3 * TICK;
    trio.two.holder.tick(trio.now);
    trio.deliver();
    written(&mut trio, 3, 9);
    assert_eq!(told(&mut trio), [], "it does not want to any more");
}

#[test]
fn news_that_are_lost_are_said_again() {
    let mut trio = watching();
    trio.home.written(trio.now, None, &[key("k")]);
    trio.home.take_words();
    trio.now += 2 * TICK;
    trio.home.tick(trio.now);
    trio.deliver();
    assert_eq!(told(&mut trio), [changed(0)]);
    trio.now += 2 * TICK;
    trio.home.tick(trio.now);
    assert!(trio.home.take_words().is_empty(), "it has confirmed them");
}

#[test]
fn a_node_that_does_not_hear_loses_its_lease_and_forgets_everything() {
    let mut trio = watching();
    trio.home.written(trio.now, None, &[key("k")]);
    trio.home.take_words();
    trio.now += 5 * TICK;
    trio.home_until += 5 * TICK;
    trio.two.holder.tick(trio.now);
    for (_, word) in trio.two.holder.take_words() {
        trio.home.hear(trio.now, trio.home_until, NodeId(2), word);
    }
    assert!(trio.home.take_words().is_empty(), "it gets no more time");
    trio.now += 10 * TICK;
    trio.home_until = trio.now + ENOUGH;
    trio.two.holder.tick(trio.now);
    assert_eq!(told(&mut trio), [TrackEffect::Gap], "its lease is over");
    trio.home.tick(trio.now);
    trio.deliver();
    assert_eq!(told(&mut trio), [TrackEffect::Gap], "it hears again, and may have missed something");
    written(&mut trio, 3, 1);
    assert_eq!(told(&mut trio), [changed(0)]);
}

#[test]
fn news_of_a_lease_that_is_over_are_not_confirmed() {
    let mut trio = watching();
    trio.home.written(trio.now, None, &[key("k")]);
    let late = trio.home.take_words();
    trio.two.holder.set_route(GROUP, Some(HOME), TERM + 1);
    assert_eq!(told(&mut trio), [TrackEffect::Gap]);
    for (_, word) in late {
        trio.two.holder.hear(trio.now, HOME, word);
    }
    assert!(trio.two.holder.take_words().iter().all(|(_, word)| !matches!(word, CacheWord::Noted(_))));
    assert_eq!(told(&mut trio), []);
}

#[test]
fn a_wish_that_is_not_granted_yet_is_repeated() {
    let mut trio = Trio::new();
    trio.now += TICK;
    trio.two.holder.track(trio.now, Tracked::Everything);
    trio.two.holder.take_words();
    trio.two.holder.tick(trio.now + TICK);
    assert!(trio.two.holder.take_words().is_empty(), "not at once");
    trio.now += 2 * TICK;
    trio.two.holder.tick(trio.now);
    trio.deliver();
    assert_eq!(told(&mut trio), [TrackEffect::Gap]);
}

#[test]
fn clients_that_keep_values_are_reason_enough_for_a_lease() {
    let mut trio = Trio::new();
    trio.two = Node { id: NodeId(2), ..Node::new(2) };
    trio.now = trio.home_until;
    trio.home_until += ENOUGH;
    trio.two.holder.track(trio.now, Tracked::Lines);
    trio.deliver();
    assert!(trio.home.grant(trio.now, NodeId(2), 3, &key("k"), false).is_some());
    assert_eq!(told(&mut trio), []);
}

#[test]
fn a_write_of_all_keys_is_told_before_the_lines_go_and_again_when_it_is_applied() {
    let mut trio = watching();
    assert!(trio.home.close_all(trio.now).is_some());
    trio.deliver();
    let flushed = TrackEffect::Flushed { group: GROUP };
    assert_eq!(told(&mut trio), [flushed, TrackEffect::Gap]);
    trio.now += 3 * TICK;
    trio.home_until += 3 * TICK;
    trio.two.holder.tick(trio.now);
    trio.deliver();
    assert_eq!(told(&mut trio), [TrackEffect::Gap], "it watches again");
    trio.home.open_all(trio.now);
    trio.deliver();
    assert_eq!(told(&mut trio), [TrackEffect::Gap], "what was read meanwhile is old");
}

#[test]
fn own_writes_are_named_before_their_lines_go() {
    let mut trio = Trio::new();
    trio.read(2, "k");
    trio.two.look();
    trio.two.holder.writing(5, &[key("k")]);
    assert_eq!(told(&mut trio), [], "nobody asks");
    trio.two.holder.track(trio.now, Tracked::Lines);
    trio.two.holder.writing(5, &[key("k")]);
    trio.two.holder.give_up(GROUP, &[key("k")]);
    let mut effects = Effects::new();
    trio.two.holder.take_effects(&mut effects);
    let writes = Effect::Track(TrackEffect::Writes { conn: 5, keys: vec![key("k")] });
    let purge = Effect::Cache(CacheEffect::Purge { group: GROUP, keys: vec![key("k")] });
    assert_eq!(effects, [writes, purge]);
}
