//! A view, and the table of what clients keep of it.

use quorate_protocol::op::{Commands, Expiry, GetEx, Incr, Multi, Op, Set, SetRange, When};
use quorate_protocol::reply::{Code, Reply};

use super::*;

const GROUP: GroupId = GroupId(1);
const FOREVER: u64 = u64::MAX;

fn key(name: &str) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

fn keys(names: &[&str]) -> Stale {
    Stale::Keys(names.iter().map(|name| key(name)).collect())
}

struct Node {
    view: View,
    tracking: Tracking,
    mode: Mutex<Vec<Tracked>>,
}

impl Node {
    /// A node of one partition, which holds a lease until 100.
    fn new(max: usize) -> Self {
        let this =
            Self { view: View::new(1, 1 << 20), tracking: Tracking::new(1, max), mode: Mutex::default() };
        assert_eq!(this.lease(1, 100), []);
        this
    }

    fn begin(&self, conn: u64, tracks: Tracks) {
        self.tracking.begin(conn, tracks, |mode| self.mode.lock().push(mode));
    }

    fn end(&self, conn: u64) {
        self.tracking.end(conn, |mode| self.mode.lock().push(mode));
    }

    fn apply(&self, effect: CacheEffect) -> Pushes {
        let mut pushes = Pushes::new();
        self.tracking.apply(&self.view, effect, &mut Vec::new(), &mut pushes);
        pushes
    }

    fn lease(&self, generation: u64, until: u64) -> Pushes {
        self.apply(CacheEffect::Lease { group: GROUP, generation, until })
    }

    fn fill(&self, name: &str, value: &str, until: u64) -> Pushes {
        let value = Some(key(value));
        self.apply(CacheEffect::Fill { group: GROUP, generation: 1, key: key(name), value, until })
    }

    fn purge(&self, names: &[&str]) -> Pushes {
        let keys = names.iter().map(|name| key(name)).collect();
        self.apply(CacheEffect::Purge { group: GROUP, keys })
    }

    /// A connection was answered a value; whether it may keep it.
    fn keep(&self, conn: u64, name: &str, value: &str) -> bool {
        let mut pushes = Pushes::new();
        let kept = self.tracking.keep(&self.view, conn, &key(name), Some(&key(value)), 1, &mut pushes);
        assert_eq!(pushes, []);
        kept
    }

    fn told(&self, effect: TrackEffect) -> Pushes {
        let mut pushes = Pushes::new();
        self.tracking.told(effect, &mut pushes);
        pushes
    }

    fn tick(&self, now: u64) -> Pushes {
        let mut pushes = Pushes::new();
        self.tracking.tick(now, &mut pushes);
        pushes
    }

    fn empty(&self) -> bool {
        let shard = self.tracking.shards[0].lock();
        shard.keys.is_empty() && shard.deadlines.is_empty() && shard.readers.is_empty() && shard.pairs == 0
    }
}

/// A node with connections 1 and 2, and a line.
fn two() -> Node {
    let node = Node::new(1000);
    node.begin(1, Tracks::default());
    node.begin(2, Tracks::default());
    node.fill("k", "v", FOREVER);
    node
}

#[test]
fn only_what_the_view_shows_with_this_very_value_is_kept() {
    let node = two();
    assert!(!node.keep(1, "other", "v"), "no line");
    assert!(!node.keep(1, "k", "older"), "the line is of a later write than the answer");
    let mut pushes = Pushes::new();
    assert!(!node.tracking.keep(&node.view, 1, &key("k"), None, 1, &mut pushes), "nor was it missing");
    assert!(!node.tracking.keep(&node.view, 1, &key("k"), Some(&key("v")), 100, &mut pushes), "no lease");
    assert!(node.empty());
    assert!(node.keep(1, "k", "v") && node.keep(2, "k", "v") && node.keep(1, "k", "v"));
    assert_eq!(node.purge(&["other", "k"]), [(1, keys(&["k"])), (2, keys(&["k"]))]);
    assert!(!node.keep(1, "k", "v"), "the line has gone before the answer could be looked at");
    assert_eq!(node.purge(&["k"]), [], "it is told once");
    assert!(node.empty());
}

#[test]
fn whatever_ends_a_line_is_told() {
    let node = two();
    assert!(node.keep(1, "k", "v"));
    assert_eq!(node.lease(1, 200), [], "it goes on");
    assert_eq!(node.fill("k", "v", FOREVER), [], "the same once more");
    assert_eq!(node.fill("k", "w", FOREVER), [(1, keys(&["k"]))], "written, and never gone");
    assert!(node.keep(1, "k", "w"));
    assert_eq!(node.lease(0, 0), [(1, keys(&["k"]))], "the end of the lease");
    assert_eq!(node.lease(1, 200), []);
    node.fill("mortal", "v", 50);
    assert!(node.keep(1, "mortal", "v"));
    assert_eq!(node.tick(49), []);
    assert_eq!(node.tick(50), [(1, keys(&["mortal"]))], "the key's deadline");
    assert!(node.empty());
}

#[test]
fn a_deadline_that_was_lifted_tells_nobody() {
    let node = two();
    node.fill("k", "v", 50);
    assert!(node.keep(1, "k", "v"));
    node.fill("k", "v", FOREVER);
    assert!(node.keep(1, "k", "v"));
    assert_eq!(node.tick(60), []);
    assert_eq!(node.purge(&["k"]).len(), 1);
    assert!(node.empty());
}

#[test]
fn a_line_that_makes_room_is_told() {
    let node = Node { view: View::new(1, 0), ..two() };
    node.lease(1, 100);
    node.fill("k", "v", FOREVER);
    assert!(!node.keep(1, "k", "v"), "a node without memory for lines keeps none");
    let node = Node { view: View::new(1, 64 * 200), ..two() };
    node.lease(1, 100);
    node.fill("k", "v", FOREVER);
    assert!(node.keep(1, "k", "v"));
    let told: Vec<_> = (0..1000).flat_map(|n| node.fill(&format!("other{n}"), "v", FOREVER)).collect();
    assert_eq!(told, [(1, keys(&["k"]))]);
}

#[test]
fn many_keys_of_a_partition_are_not_named() {
    let node = two();
    let names: Vec<String> = (0..=NAMED_MAX).map(|n| format!("k{n}")).collect();
    for name in &names {
        node.fill(name, "v", FOREVER);
        assert!(node.keep(2, name, "v"));
    }
    assert!(node.keep(1, "k", "v"));
    assert_eq!(node.lease(0, 0), [(1, Stale::All), (2, Stale::All)]);
    assert!(node.empty());
    assert_eq!(node.tracking.void.lock().len(), 1);
    node.tick(1);
    assert_eq!(node.tracking.void.lock().len(), 0, "the old one is taken apart");
}

#[test]
fn beyond_the_bound_the_least_recently_read_key_is_forgotten_and_told() {
    let node = Node::new(3);
    ["a", "b", "c"].iter().for_each(|name| assert_eq!(node.fill(name, "v", 90), []));
    node.begin(1, Tracks::default());
    assert!(node.keep(1, "a", "v") && node.keep(2, "a", "v") && node.keep(1, "b", "v"));
    let mut pushes = Pushes::new();
    assert!(node.tracking.keep(&node.view, 1, &key("c"), Some(&key("v")), 1, &mut pushes));
    assert_eq!(pushes, [(1, keys(&["a"])), (2, keys(&["a"]))]);
    assert_eq!(node.purge(&["a", "b", "c"]), [(1, keys(&["b", "c"]))]);
    assert!(node.empty());
}

#[test]
fn own_writes_are_not_told_to_who_does_not_want_to_know() {
    let node = two();
    node.begin(1, Tracks { no_loop: true, ..Tracks::default() });
    assert!(node.keep(1, "k", "v") && node.keep(2, "k", "v"));
    let writes = |conn| TrackEffect::Writes { conn, keys: vec![key("k"), key("none")] };
    assert_eq!(node.told(writes(1)), []);
    assert_eq!(node.purge(&["k"]), [(2, keys(&["k"]))]);
    node.fill("k", "v", FOREVER);
    assert!(node.keep(1, "k", "v"));
    assert_eq!(node.told(writes(2)), []);
    assert_eq!(node.purge(&["k"]), [(1, keys(&["k"]))], "that was another's");
    node.fill("k", "v", 50);
    assert!(node.keep(1, "k", "v"));
    node.told(writes(1));
    assert!(node.empty(), "nobody else had read it");
}

#[test]
fn a_write_of_all_keys_is_told_to_all_readers() {
    let node = two();
    assert!(node.keep(1, "k", "v"));
    assert_eq!(node.told(TrackEffect::Flushed { group: GROUP }), [(1, Stale::All)]);
    assert!(node.keep(2, "k", "v"), "its line has not gone yet");
    assert_eq!(node.lease(0, 0), [(2, keys(&["k"]))]);
    assert_eq!(node.told(TrackEffect::Flushed { group: GroupId::SYSTEM }), [], "it has no keys");
}

#[test]
fn who_tracks_by_prefix_is_told_of_writes_and_of_gaps() {
    let node = two();
    let by = |prefix: &str, no_loop| Tracks {
        broadcast: true,
        no_loop,
        prefixes: vec![key(prefix)],
        ..Tracks::default()
    };
    node.begin(3, by("", false));
    node.begin(4, by("k", true));
    let changed = vec![(key("k1"), 0), (key("l1"), 4), (key("k2"), 4)];
    let told = node.told(TrackEffect::Changed { keys: changed });
    assert_eq!(told, [(3, keys(&["k1", "l1", "k2"])), (4, keys(&["k1"]))]);
    assert_eq!(node.told(TrackEffect::Gap), [(3, Stale::All), (4, Stale::All)]);
    assert_eq!(node.purge(&["k"]), [], "and not of lines");
}

#[test]
fn the_node_asks_for_what_its_clients_need() {
    let node = Node::new(10);
    node.begin(1, Tracks::default());
    node.begin(2, Tracks { broadcast: true, ..Tracks::default() });
    node.begin(3, Tracks { broadcast: true, ..Tracks::default() });
    node.end(2);
    node.end(2);
    node.end(3);
    node.end(1);
    let modes = [Tracked::Lines, Tracked::Everything, Tracked::Lines, Tracked::Nothing];
    assert_eq!(node.mode.lock()[..], modes);
}

#[test]
fn whoever_looks_between_the_view_and_the_table_sees_no_line() {
    let node = two();
    assert!(node.keep(1, "k", "v"));
    let purge = CacheEffect::Purge { group: GROUP, keys: vec![key("k")] };
    node.view.apply(purge.clone(), &mut Vec::new());
    assert!(!node.keep(2, "k", "v"), "it pushes itself");
    assert_eq!(node.apply(purge), [(1, keys(&["k"]))], "and who was there before is told");
    assert!(node.empty());
}

/// What a connection that does not want to hear of its own writes is told to drop behind one.
fn told_behind(op: &Op, reply: &Reply) -> Vec<Bytes> {
    let node = two();
    let tracks = Tracks { no_loop: true, ..Tracks::default() };
    let Some(told) = Told::of(op, &tracks, false) else { return Vec::new() };
    node.tracking.behind(&node.view, (1, &tracks), *told, reply, 1, &mut Pushes::new())
}

#[test]
fn of_own_writes_is_told_what_the_answer_leaves_open() {
    let old = || Reply::Bulk(key("old"));
    let set = |when, get| Op::Set(Set { key: key("k"), value: key("v"), when, expiry: Expiry::Never, get });
    let set_range = |value: &str| Op::SetRange(SetRange { key: key("k"), offset: 0, value: key(value) });
    let get_ex = |expiry| Op::GetEx(GetEx { key: key("k"), expiry });
    let written = [
        (set(When::Always, false), Reply::OK),
        (set(When::Absent, false), Reply::OK),
        (set(When::Always, true), old()),
        (set(When::Always, true), Reply::Nil),
        (set(When::Absent, true), Reply::Nil),
        (set(When::Version(0), true), Reply::Nil),
        (set(When::Present, true), old()),
        (set_range("x"), Reply::Int(3)),
        (get_ex(Expiry::After(1)), old()),
        (Op::GetDel(key("k")), old()),
        (Op::Del(vec![key("k"), key("k")]), Reply::Int(1)),
        (Op::Incr(Incr { key: key("k"), by: 1 }), Reply::Int(0)),
    ];
    let open = [
        (set(When::Always, false), Reply::error(Code::InDoubt, "")),
        (set(When::Always, true), Reply::error(Code::InDoubt, "")),
        (set(When::Absent, false), Reply::Nil),
        (set(When::Absent, true), old()),
        (set(When::Version(0), true), old()),
        (set(When::Version(5), true), old()),
        (set(When::Version(5), true), Reply::Nil),
        (set(When::Present, true), Reply::Nil),
        (set_range(""), Reply::Int(3)),
        (get_ex(Expiry::Never), old()),
        (Op::GetDel(key("k")), Reply::Nil),
        (Op::Persist(key("k")), Reply::Int(0)),
    ];
    for (op, reply) in &written {
        assert_eq!(told_behind(op, reply), [] as [Bytes; 0], "{op:?} answered {reply:?}");
    }
    for (op, reply) in &open {
        assert_eq!(told_behind(op, reply), ["k"], "{op:?} answered {reply:?}");
    }
    let two = Op::Del(vec![key("k"), key("l")]);
    assert_eq!(told_behind(&two, &Reply::Int(2)), [] as [Bytes; 0]);
    assert_eq!(told_behind(&two, &Reply::Int(1)), ["k", "l"], "one of them, and nobody says which");
    let commands = vec![set_range(""), set(When::Always, false), Op::Persist(key("l"))];
    let all = Op::Multi(Multi { watched: Vec::new(), commands: Commands(commands[1..].to_vec()) }.into());
    let answers = |last| Reply::Array(vec![Reply::OK, Reply::Int(last)]);
    assert_eq!(told_behind(&all, &answers(1)), [] as [Bytes; 0]);
    assert_eq!(told_behind(&all, &answers(0)), ["l"], "each by its own answer");
    assert_eq!(told_behind(&all, &Reply::Nil), ["k", "l"], "given up for what was watched");
    let alone = Commands(vec![set(When::Absent, true)]);
    let alone = Op::Multi(Multi { watched: Vec::new(), commands: alone }.into());
    assert_eq!(told_behind(&alone, &Reply::Nil), ["k"], "likewise, though its command may answer that too");
    let all = Op::Multi(Multi { watched: Vec::new(), commands: Commands(commands) }.into());
    let answers = Reply::Array(vec![Reply::Int(1), Reply::OK, Reply::Int(1)]);
    assert_eq!(told_behind(&all, &answers), ["k"]);
}
