//! Every interleaving of readers with what the engine does to the read view, and every order in which memory may show it
//! (loom): nobody is shown what was purged and acknowledged, or what another lease left, and no client keeps a value that has gone.
//!
//! Up to three threads, each preempted twice at the most where it does not have to wait.

use bytes::Bytes;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;
use quorate_engine::cache::CacheEffect;
use quorate_protocol::command::Tracks;
use quorate_protocol::id::GroupId;
use quorate_tests::interleaved::tracking::{Pushes, Tracking};
use quorate_tests::interleaved::{Sight, Table, looked_before, table_first};
use quorate_tests::interleaved::{end_first, generation_first, unordered_end, view::View};
use xxhash_rust::xxh3::xxh3_64;

const GROUP: GroupId = GroupId(1);
const KEY: &[u8] = b"k";
const ROOM: usize = 1 << 20;
/// A connection.
const CONN: u64 = 7;

fn explore(story: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(story);
}

/// Whether a story goes wrong in some interleaving.
fn goes_wrong(story: impl Fn() + Send + Sync + 'static) -> bool {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| explore(story))).is_err()
}

fn lease(view: &impl Sight, generation: u64, until: u64) {
    view.apply(CacheEffect::Lease { group: GROUP, generation, until }, &mut Vec::new());
}

fn fill(view: &impl Sight, key: &[u8], value: &'static [u8], generation: u64) -> Vec<(GroupId, Bytes)> {
    let (key, value) = (Bytes::copy_from_slice(key), Some(Bytes::from_static(value)));
    let mut evicted = Vec::new();
    view.apply(CacheEffect::Fill { group: GROUP, generation, key, value, until: u64::MAX }, &mut evicted);
    evicted
}

fn purge(view: &impl Sight) {
    let keys = vec![Bytes::from_static(KEY)];
    view.apply(CacheEffect::Purge { group: GROUP, keys }, &mut Vec::new());
}

fn with_a_line<V: Sight>(until: u64) -> Arc<V> {
    let view = V::new(ROOM);
    lease(&view, 1, until);
    fill(&view, KEY, b"old", 1);
    Arc::new(view)
}

/// A line is purged and that is acknowledged, then it is filled anew; two readers, each in one of the two ways to look.
fn purged_and_filled<V: Sight>(acknowledged_too_soon: bool) {
    let view = with_a_line::<V>(100);
    let acknowledged = Arc::new(AtomicBool::new(false));
    let readers = [false, true].map(|shows| {
        let (view, acknowledged) = (Arc::clone(&view), Arc::clone(&acknowledged));
        thread::spawn(move || {
            let look = || if shows { view.show(KEY, 5) } else { view.get(KEY, 5) };
            let before = acknowledged.load(Ordering::Acquire);
            let first = look();
            let is =
                |found: &Option<Option<Bytes>>, value: &str| *found == Some(Some(value.to_owned().into()));
            assert!(!before || !is(&first, "old"), "what was purged is shown");
            assert!(!is(&first, "new") || !is(&look(), "old"), "time runs backwards");
        })
    });
    if acknowledged_too_soon {
        acknowledged.store(true, Ordering::Release);
    }
    purge(&*view);
    acknowledged.store(true, Ordering::Release);
    fill(&*view, KEY, b"new", 1);
    for reader in readers {
        reader.join().expect("it has seen nothing wrong");
    }
}

/// A lease is followed by another one, at once or behind its end; readers before and behind the end of the first.
fn another_lease<V: Sight>(ended: bool) {
    let view = with_a_line::<V>(10);
    let over = Arc::new(AtomicBool::new(false));
    let readers = [5, 20].map(|now| {
        let (view, over) = (Arc::clone(&view), Arc::clone(&over));
        thread::spawn(move || {
            let before = over.load(Ordering::Acquire);
            let found = view.get(KEY, now);
            let old = found == Some(Some("old".into()));
            assert!(!old || (now < 10 && !before), "what an ended lease has left is shown");
        })
    });
    if ended {
        lease(&*view, 0, 0);
        over.store(true, Ordering::Release);
    }
    lease(&*view, 2, 30);
    over.store(true, Ordering::Release);
    fill(&*view, KEY, b"new", 2);
    for reader in readers {
        reader.join().expect("it has seen nothing wrong");
    }
}

/// Two threads fill lines of one shard, of which two fit, while a reader looks.
fn evicted_once<V: Sight>() {
    const VALUE: &[u8] = &[0; 10_000];
    let keys: Vec<[u8; 2]> =
        (0..=u16::MAX).map(u16::to_be_bytes).filter(|key| xxh3_64(key) >> 58 == 7).take(4).collect();
    let view = Arc::new(V::new(64 * 25_000));
    lease(&*view, 1, 10);
    let mut evicted = fill(&*view, &keys[0], VALUE, 1);
    let reader = {
        let (view, key) = (Arc::clone(&view), keys[0]);
        thread::spawn(move || drop(view.get(&key, 5)))
    };
    let other = {
        let (view, key) = (Arc::clone(&view), keys[1]);
        thread::spawn(move || fill(&*view, &key, VALUE, 1))
    };
    evicted.extend(fill(&*view, &keys[2], VALUE, 1));
    evicted.extend(other.join().expect("it has filled"));
    reader.join().expect("it has looked");
    evicted.extend(fill(&*view, &keys[3], VALUE, 1));
    for key in &keys {
        let reported = evicted.iter().filter(|(_, gone)| gone[..] == key[..]).count();
        let there = usize::from(view.get(key, 5).is_some());
        assert_eq!(reported + there, 1, "{key:?} is there, or was reported once: {evicted:?}");
    }
    assert_eq!(evicted.len(), 2);
}

#[test]
fn nobody_is_shown_what_was_purged_once_that_is_acknowledged() {
    explore(|| purged_and_filled::<View>(false));
}

#[test]
fn nobody_is_shown_what_another_lease_left() {
    explore(|| another_lease::<View>(false));
    explore(|| another_lease::<View>(true));
}

#[test]
fn what_made_room_is_reported_once() {
    explore(evicted_once::<View>);
}

fn purge_effect() -> CacheEffect {
    CacheEffect::Purge { group: GROUP, keys: vec![Bytes::from_static(KEY)] }
}

/// A connection has been answered a value, and asks whether its client may keep it, while something ends the line.
fn kept_and_told<T: Table>(end: fn() -> CacheEffect) {
    let view = with_a_line::<View>(100);
    let table = Arc::new(T::with(CONN));
    let client = {
        let (view, table) = (Arc::clone(&view), Arc::clone(&table));
        thread::spawn(move || table.keep(&view, CONN, &Bytes::from_static(KEY), &Bytes::from_static(b"old")))
    };
    let told = table.apply(&view, end()) > 0;
    let kept = client.join().expect("it has asked");
    assert_eq!(kept, told, "who keeps a value is told, and who is told has kept it");
}

/// What a client reads on its connection, in this order.
enum Said {
    Answer(Bytes),
    Drop,
}

/// A connection reads a key, once or twice, and writes answers, and what the engine has pushed, to its client (`connection.rs`), while the key
/// is written. `answers_first`: it asks behind the answer whether that may be kept, not before it.
fn answered_and_pushed<T: Table>(reads: usize, answers_first: bool) {
    let view = with_a_line::<View>(100);
    let table = Arc::new(T::with(CONN));
    let outlet = Arc::new(Mutex::new(0));
    let connection = {
        let (view, table, outlet) = (Arc::clone(&view), Arc::clone(&table), Arc::clone(&outlet));
        thread::spawn(move || {
            let mut said = Vec::new();
            let pushed = |said: &mut Vec<Said>| {
                let pushes = std::mem::take(&mut *outlet.lock().expect("nobody panics with it"));
                said.extend((0..pushes).map(|_| Said::Drop));
            };
            for _ in 0..reads {
                if let Some(Some(value)) = view.get(KEY, 5) {
                    let keep = || table.keep(&view, CONN, &Bytes::from_static(KEY), &value);
                    let early = (!answers_first).then(keep);
                    if early.is_some() {
                        pushed(&mut said);
                    }
                    said.push(Said::Answer(value.clone()));
                    if !early.unwrap_or_else(keep) {
                        said.push(Said::Drop);
                    }
                }
                pushed(&mut said);
            }
            said
        })
    };
    let value = Some(Bytes::from_static(b"new"));
    let key = Bytes::from_static(KEY);
    for effect in [purge_effect(), CacheEffect::Fill { group: GROUP, generation: 1, key, value, until: 90 }] {
        let pushes = table.apply(&view, effect);
        *outlet.lock().expect("nobody panics with it") += pushes;
    }
    let mut said = connection.join().expect("it has answered");
    said.extend((0..*outlet.lock().expect("nobody panics with it")).map(|_| Said::Drop));
    let kept = said.into_iter().fold(None, |_, said| match said {
        Said::Answer(value) => Some(value),
        Said::Drop => None,
    });
    let there = view.get(KEY, 5).flatten();
    assert!(kept.is_none() || kept == there, "{kept:?} is kept for ever, {there:?} is there");
}

#[test]
fn whoever_keeps_a_value_is_told_when_its_line_ends() {
    explore(|| kept_and_told::<Tracking>(purge_effect));
    explore(|| kept_and_told::<Tracking>(|| CacheEffect::Lease { group: GROUP, generation: 0, until: 0 }));
    explore(|| kept_and_told::<Tracking>(|| CacheEffect::Lease { group: GROUP, generation: 2, until: 200 }));
}

#[test]
fn no_push_comes_before_the_answer_that_it_is_about() {
    explore(|| answered_and_pushed::<Tracking>(1, true));
    explore(|| answered_and_pushed::<Tracking>(2, true));
}

#[test]
fn mistakes_about_what_clients_keep_are_seen() {
    fn made<T: Table>(what: &str) {
        assert!(T::MADE, "{what}: the words that tests/build.rs replaces are not in the table any more");
        assert!(goes_wrong(|| kept_and_told::<T>(purge_effect)), "{what} is not seen");
        assert!(goes_wrong(|| answered_and_pushed::<T>(1, true)), "{what} leaves nothing old behind");
    }
    made::<table_first::Tracking>("the table before the view");
    made::<looked_before::Tracking>("the line looked for outside the lock");
    assert!(
        goes_wrong(|| answered_and_pushed::<Tracking>(1, false)),
        "an answer behind what was pushed about it is not seen"
    );
}

/// The first client with tracking begins, and is answered a value, while something ends the line.
fn begun_and_told(end: fn() -> CacheEffect) {
    let view = with_a_line::<View>(100);
    let tracking = Arc::new(Tracking::new(1, 10));
    let client = {
        let (view, tracking) = (Arc::clone(&view), Arc::clone(&tracking));
        thread::spawn(move || {
            let (key, value) = (Bytes::from_static(KEY), Bytes::from_static(b"old"));
            tracking.begin(CONN, Tracks::default(), drop);
            tracking.keep(&view, CONN, &key, Some(&value), 5, &mut Pushes::new())
        })
    };
    let mut pushes = Pushes::new();
    tracking.apply(&view, end(), &mut Vec::new(), &mut pushes);
    let kept = client.join().expect("it has asked");
    assert_eq!(
        kept,
        !pushes.is_empty(),
        "who begins while a line ends is told, if it has kept a value of it"
    );
}

#[test]
fn whoever_begins_to_keep_values_while_a_line_ends_is_told() {
    explore(|| begun_and_told(purge_effect));
    explore(|| begun_and_told(|| CacheEffect::Lease { group: GROUP, generation: 0, until: 0 }));
    explore(|| {
        begun_and_told(|| {
            let (key, value) = (Bytes::from_static(KEY), Some(Bytes::from_static(b"new")));
            CacheEffect::Fill { group: GROUP, generation: 1, key, value, until: u64::MAX }
        });
    });
}

#[test]
fn mistakes_are_seen() {
    fn made<V: Sight>(what: &str) {
        assert!(V::MADE, "{what}: the words that tests/build.rs replaces are not in the view any more");
        assert!(goes_wrong(|| another_lease::<V>(false)), "{what} is not seen");
    }
    assert!(
        goes_wrong(|| purged_and_filled::<View>(true)),
        "an acknowledgement before the purge is not seen"
    );
    made::<end_first::View>("the new end before the new generation");
    made::<generation_first::View>("the generation read before the end");
    made::<unordered_end::View>("the end read in no order");
}
