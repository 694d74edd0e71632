//! Snapshots of a partition that goes on meanwhile, and every byte of a small one changed.

use super::*;
use alloc::format;
use alloc::vec::Vec;
use quorate_protocol::id::{Boot, ClusterId, ConnId, Identity, LogPos, NodeId};
use quorate_protocol::op::{Expiry, Fetch, Op, Pub, Set, When};
use quorate_protocol::peer::Work;

use crate::outcome::{Asker, Ctx, Outcomes};
use crate::portion::Portion;

const GROUP: GroupId = GroupId(3);

fn meta() -> Meta {
    Meta {
        cluster: ClusterId(1),
        node: NodeId(1),
        identity: Identity(1),
        boot: Boot(1),
        partitions: 4,
        founders: Vec::new(),
    }
}

fn apply(state: &mut State, index: u64, op: Op) {
    let asker = Asker { conn: ConnId::default(), request: index, client: None };
    let ctx = Ctx { at: LogPos { index, offset: 1 }, time: index };
    state.apply(&ctx, &asker, Work::Op(op), &mut Outcomes::new());
}

fn set(n: u64, size: usize) -> Op {
    let expiry = if n.is_multiple_of(3) { Expiry::After(n * 1000) } else { Expiry::Never };
    let value = Bytes::from(alloc::vec![7; size]);
    Op::Set(Set { key: format!("key{n}").into(), value, when: When::Always, expiry, get: false })
}

fn filled() -> State {
    let mut state = State::new(GROUP, &meta());
    for n in 1..=600 {
        let size = usize::try_from(n).unwrap() * 3;
        apply(&mut state, n, set(n, size));
        let (topic, body) = (Bytes::from(format!("topic{}", n % 7)), Bytes::from(alloc::vec![1; 500]));
        apply(
            &mut state,
            1000 + n,
            Op::Pub(Pub { topic: topic.clone(), body, dedupe: Some(format!("{n}").into()), delay: n % 2 }),
        );
        if n.is_multiple_of(5) {
            apply(&mut state, 2000 + n, Op::Fetch(Fetch { topic, count: 1, block: 0, lease: None }));
        }
    }
    let waits = Fetch { topic: "empty".into(), count: 1, block: 5000, lease: None };
    apply(&mut state, 9000, Op::Fetch(waits));
    state
}

/// The bytes of a snapshot, while `meanwhile` goes on with the state after each slice.
fn written(state: &mut State, mut meanwhile: impl FnMut(&mut State, u64)) -> Vec<u8> {
    let conf = Conf::founding(Vec::new(), Vec::new());
    let mut writer = Writer::new(Header::new(GROUP, (9000, 2), 77, conf, Vec::new()), state);
    let mut file = Vec::new();
    let mut turn = 10_000;
    while let Some((offset, bytes)) = writer.slice(state) {
        assert_eq!(offset, file.len() as u64, "slices follow each other");
        file.extend_from_slice(&bytes);
        turn += 1;
        meanwhile(state, turn);
    }
    assert_eq!(writer.len(), file.len() as u64);
    file
}

fn loader() -> Loader {
    Loader::new(GROUP, 9000, &meta())
}

#[test]
fn a_snapshot_is_the_state_of_its_beginning_whatever_happens_meanwhile() {
    let mut state = filled();
    let digest = state.digest();
    let file = written(&mut state, |state, turn| {
        for n in 0..50 {
            apply(state, turn * 100 + n, set((turn * 37 + n * 11) % 900, 10));
        }
    });
    assert_ne!(state.digest(), digest, "the state went on");
    let mut loader = loader();
    let mut complete = false;
    for piece in file.chunks(1000) {
        assert!(!complete, "nothing comes behind the footer");
        complete = loader.feed(piece).unwrap();
    }
    assert!(complete);
    let (header, mut loaded) = loader.into_state();
    assert_eq!((header.index, header.term, header.time), (9000, 2, 77));
    assert_eq!(loaded.digest(), digest);
    assert_eq!(written(&mut loaded, |_, _| ()), file, "the same state has the same bytes on every node");
    assert_eq!(check(&Bytes::from(file), GROUP, 9000), Ok(header));
}

#[test]
fn what_is_derived_is_derived_from_loaded_rows_too() {
    let mut state = filled();
    let file = written(&mut state, |_, _| ());
    let mut loader = loader();
    assert!(loader.feed(&file).unwrap());
    let (_, mut loaded) = loader.into_state();
    assert_eq!(loaded.next_deadline(), state.next_deadline());
    // Both go on alike: expiry, redelivery, waiting consumers, room.
    for (index, time) in [(20_000, 40_000), (20_001, 90_000), (20_002, 2_000_000)] {
        let mut outs = [Outcomes::new(), Outcomes::new()];
        for (state, out) in [&mut state, &mut loaded].into_iter().zip(&mut outs) {
            state.expire(&Ctx { at: LogPos { index, offset: 0 }, time }, &mut Portion::endless(), out);
        }
        assert_eq!(outs[0], outs[1]);
        assert_eq!(state.digest(), loaded.digest());
    }
}

#[test]
fn no_byte_of_a_snapshot_can_change_unseen() {
    let mut state = State::new(GROUP, &meta());
    apply(&mut state, 1, set(1, 20));
    let file = written(&mut state, |_, _| ());
    let sound = |file: &[u8]| {
        let complete = loader().feed(file) == Ok(true);
        assert_eq!(check(&Bytes::copy_from_slice(file), GROUP, 9000).is_ok(), complete);
        complete
    };
    assert!(sound(&file));
    for at in 0..file.len() {
        let mut damaged = file.clone();
        damaged[at] ^= 1 << (at % 8);
        assert!(!sound(&damaged), "byte {at} flipped");
        assert!(!sound(&file[..at]), "cut at {at}");
    }
    for (group, index) in [(GroupId(4), 9000), (GROUP, 9001)] {
        assert_ne!(Loader::new(group, index, &meta()).feed(&file), Ok(true), "of another place");
    }
}

#[test]
fn a_snapshot_is_loaded_in_portions_and_the_old_state_is_dropped_in_portions() {
    let mut state = filled();
    let file = written(&mut state, |_, _| ());
    let mut loader = loader();
    loader.take(file.clone().into());
    let mut turns = 0;
    loop {
        let mut room = 20_000;
        let before = loader.waiting();
        let complete = loader.work(&mut room).unwrap();
        assert!(before - loader.waiting() < 60_000, "{before} to {}", loader.waiting());
        turns += 1;
        if complete {
            break;
        }
        assert!(loader.has_work());
    }
    assert!(turns > 50, "{turns}");
    let (_, loaded) = loader.into_state();
    assert_eq!(loaded.digest(), state.digest());
    let mut trash = Trash::default();
    loaded.discard(&mut trash);
    let mut dropped = 0;
    while !trash.is_empty() {
        let portion = trash.dig();
        assert!(portion <= 4096, "{portion} things in a turn");
        dropped += portion;
    }
    // 600 keys, 600 messages with their bodies and ids, and what is derived from them.
    assert!(dropped > 600 * 6, "{dropped}");
}

/// A file as a shell maps it.
fn mapped(file: Vec<u8>) -> Bytes {
    Bytes::from_owner(file)
}

fn pass(state: &mut State, file: &Bytes) -> Result<usize, Malformed> {
    let mut pass = Pass::new(GROUP, 9000, file.clone());
    for turn in 1.. {
        let mut room = 10_000;
        if pass.work(state, &mut room)? {
            return Ok(turn);
        }
    }
    unreachable!("it ends")
}

fn parts(state: &State, file: &Bytes) -> usize {
    assert!(
        state.mapped().all(|part| file.as_ptr_range().contains(&part.as_ptr())),
        "all lie in the newest file"
    );
    state.mapped().count()
}

#[test]
fn bodies_are_taken_from_a_mapped_file_and_nothing_else_changes() {
    let mut state = filled();
    state.set_map_from(500);
    let (before, file) = (state.digest(), mapped(written(&mut state, |_, _| {})));
    state.begin_walk();
    let turns = pass(&mut state, &file).unwrap();
    assert!(turns > 20, "in portions: {turns}");
    assert_eq!((state.digest(), parts(&state, &file)), (before, 600));

    // What has changed since is left as it is; the next file takes the place of this one.
    for n in 1..=50 {
        let topic = Bytes::from(format!("topic{}", n % 7));
        let body = Bytes::from(alloc::vec![2; 700]);
        apply(&mut state, 20_000 + n, Op::Pub(Pub { topic: topic.clone(), body, dedupe: None, delay: 0 }));
        apply(&mut state, 30_000 + n, Op::Fetch(Fetch { topic, count: 3, block: 0, lease: None }));
    }
    let again = mapped(written(&mut state, |_, _| {}));
    assert_eq!(
        pass(&mut state, &file).map(|_| parts(&state, &file)),
        Ok(600),
        "an old file has none of the new"
    );
    pass(&mut state, &again).unwrap();
    assert_eq!(parts(&state, &again), 650);
    drop(file);
    assert_eq!(written(&mut state, |_, _| {}), again, "it is written as it was");
    assert_eq!(state.take_damage(), None);
}

#[test]
fn a_file_is_loaded_as_it_is_mapped() {
    let mut state = filled();
    let file = mapped(written(&mut state, |_, _| {}));
    let mut loader = loader();
    loader.leave_from(500);
    loader.take(file.clone());
    assert_eq!(loader.work(&mut usize::MAX.clone()), Ok(true));
    let (_, loaded) = loader.into_state();
    assert_eq!((loaded.digest(), parts(&loaded, &file)), (state.digest(), 600));
}

#[test]
fn every_changed_byte_of_a_mapped_file_is_noticed_before_its_bodies_are_taken() {
    let mut state = State::new(GROUP, &meta());
    state.set_map_from(1);
    for n in 1..=3 {
        let publish = Pub { topic: "t".into(), body: format!("message {n}").into(), dedupe: None, delay: 0 };
        apply(&mut state, n, Op::Pub(publish));
    }
    let file = written(&mut state, |_, _| {});
    for at in 0..file.len() {
        let mut bad = file.clone();
        bad[at] ^= 1;
        assert!(pass(&mut state, &mapped(bad)).is_err(), "byte {at}");
    }
    for end in 0..file.len() {
        assert!(pass(&mut state, &mapped(file[..end].to_vec())).is_err(), "cut at {end}");
    }
    let other = Pub { topic: "t".into(), body: "message 4".into(), dedupe: None, delay: 0 };
    let mut liar = State::new(GROUP, &meta());
    apply(&mut liar, 1, Op::Pub(other));
    let file = written(&mut liar, |_, _| {});
    assert!(pass(&mut state, &mapped(file)).is_err(), "sound, and not what was published");
}
