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
    let mut writer = Writer::new(Header::new(GROUP, (9000, 2), 77, conf), state);
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
