//! The two ends, over parcels and receipts that come late, twice and in part.

use alloc::vec::Vec;

use quorate_protocol::id::ClientId;
use quorate_protocol::limits::{PARCEL_ITEMS_MAX, VALUE_MAX};

use super::*;
use crate::script::Dice;

const HERE: GroupId = GroupId(2);
const THERE: GroupId = GroupId(7);

fn end(number: u64) -> Item {
    Item::ClientEnded(ClientId(number))
}

fn letter(size: usize) -> Item {
    Item::Letter(Letter {
        topic: "dead".into(),
        attempts: 3,
        origin: (1, 9),
        body: alloc::vec![b'x'; size].into(),
    })
}

fn receipt(target: GroupId, upto: u64) -> Receipted {
    Receipted { target, upto }
}

#[test]
fn each_target_has_numbers_of_its_own_and_its_own_receipts() {
    let mut outbox = Outbox::new(HERE);
    let other = GroupId(3);
    outbox.post(THERE, end(1));
    outbox.post(other, end(2));
    outbox.post(THERE, end(3));
    let parcel = |first, items: &[Item]| Parcel { source: HERE, first, items: items.into() };
    assert_eq!(outbox.parcel(THERE, 0, 64), parcel(1, &[end(1), end(3)]));
    assert_eq!(outbox.parcel(other, 0, 64), parcel(1, &[end(2)]));
    assert_eq!(outbox.targets().collect::<Vec<_>>(), [other, THERE]);
    assert_eq!(outbox.receipted(&receipt(THERE, 1)), [end(1)]);
    assert_eq!(outbox.receipted(&receipt(THERE, 1)), [], "a receipt that comes twice");
    assert_eq!(outbox.parcel(THERE, 0, 64), parcel(2, &[end(3)]));
    assert_eq!(outbox.receipted(&receipt(THERE, 2)), [end(3)]);
    assert_eq!(outbox.receipted(&receipt(THERE, 1)), [], "a receipt that comes late");
    assert_eq!(outbox.targets().collect::<Vec<_>>(), [other]);
    outbox.post(THERE, end(4));
    assert_eq!(outbox.parcel(THERE, 0, 64).first, 3, "numbers go on when the outbox was empty");
}

#[test]
fn an_item_is_taken_once_and_in_order_whatever_parcels_come() {
    let mut inbox = Inbox::new();
    let mut seen = Vec::new();
    let mut take = |source, first, count: u64, most: usize| {
        let items = (first..first + count).map(end).collect();
        let parcel = Parcel { source, first, items };
        let before = seen.len();
        inbox.take(parcel, |_, item| {
            let room = seen.len() < before + most;
            if room {
                seen.push((source, item));
            }
            room
        })
    };
    assert_eq!(take(HERE, 1, 3, 9), 3);
    assert_eq!(take(HERE, 1, 3, 9), 3, "it comes twice");
    assert_eq!(take(HERE, 5, 2, 9), 3, "a gap is not leapt over");
    assert_eq!(take(HERE, 2, 5, 2), 5, "room for two");
    assert_eq!(take(HERE, 6, 1, 0), 5, "no room");
    assert_eq!(take(THERE, 1, 1, 9), 1, "another source counts by itself");
    assert_eq!(take(HERE, 4, 5, 9), 8);
    let of_here: Vec<Item> =
        seen.iter().filter(|(source, _)| *source == HERE).map(|(_, item)| item.clone()).collect();
    assert_eq!(of_here, (1..=8).map(end).collect::<Vec<_>>());
}

#[test]
fn parcels_and_outboxes_are_bounded() {
    let mut outbox = Outbox::new(HERE);
    assert!(outbox.has_room(THERE, &letter(VALUE_MAX)));
    for _ in 0..3 {
        outbox.post(THERE, letter(PARCEL_BYTES_MAX * 2 / 5));
    }
    assert_eq!(outbox.parcel(THERE, 0, PARCEL_ITEMS_MAX).items.len(), 2, "a parcel has a size");
    outbox.post(THERE, letter(VALUE_MAX));
    outbox.receipted(&receipt(THERE, 3));
    assert_eq!(outbox.parcel(THERE, 0, PARCEL_ITEMS_MAX).items.len(), 1, "a large letter travels alone");
    assert!(!outbox.has_room(THERE, &letter(VALUE_MAX)), "an outbox has a size");
    assert!(outbox.has_room(GroupId(1), &letter(VALUE_MAX)), "for each target");
    let (small, mut many) = (end(1), Outbox::new(HERE));
    while many.has_room(THERE, &small) {
        many.post(THERE, small.clone());
    }
    assert_eq!(
        (many.room(THERE), many.parcel(THERE, 0, PARCEL_ITEMS_MAX).items.len()),
        (0, PARCEL_ITEMS_MAX)
    );
    many.receipted(&receipt(THERE, 5));
    assert_eq!(many.room(THERE), 5);
}

#[test]
fn snapshots_hold_both_ends() {
    let (mut outbox, mut inbox) = (Outbox::new(HERE), Inbox::new());
    outbox.post(THERE, letter(10));
    outbox.post(THERE, end(2));
    outbox.receipted(&receipt(THERE, 1));
    inbox.take(outbox.parcel(THERE, 0, 64), |_, _| true);
    inbox.take(Parcel { source: HERE, first: 1, items: [end(1)].into() }, |_, _| true);
    let (mut outbox_again, mut inbox_again) = (Outbox::new(HERE), Inbox::new());
    for table in outbox.tables().into_iter().chain(inbox.tables()) {
        let mut rows = Vec::new();
        table.begin_walk();
        let (count, more) = table.show(usize::MAX, &mut rows);
        assert!(!more);
        let mut rows = Bytes::from(rows);
        for _ in 0..count {
            let id = table.id();
            let loaded =
                if id == 113 { inbox_again.load(id, &mut rows) } else { outbox_again.load(id, &mut rows) };
            loaded.expect("a row");
        }
    }
    assert_eq!((outbox.digest(), inbox.digest()), (outbox_again.digest(), inbox_again.digest()));
    assert_eq!(outbox.loads, outbox_again.loads);
    assert_eq!(outbox_again.parcel(THERE, 0, 64), outbox.parcel(THERE, 0, 64));
}

#[test]
fn whatever_is_lost_doubled_or_late_everything_arrives_once_and_in_order() {
    for seed in 0..50 {
        let mut dice = Dice::new(seed);
        let (mut outbox, mut inbox) = (Outbox::new(HERE), Inbox::new());
        let (mut posted, mut arrived) = (0, Vec::new());
        let (mut parcels, mut receipts) = (Vec::new(), Vec::new());
        while posted < 60 || !outbox.is_empty() {
            match dice.roll(6) {
                0 if posted < 60 => {
                    posted += 1;
                    outbox.post(THERE, end(posted));
                }
                0..=2 if !outbox.is_empty() => {
                    parcels.push(outbox.parcel(THERE, 0, 1 + usize::try_from(dice.roll(4)).expect("small")));
                }
                3 | 4 if !parcels.is_empty() => {
                    let at = usize::try_from(dice.roll(parcels.len() as u64)).expect("small");
                    let upto = inbox.take(parcels[at].clone(), |_, item| {
                        let room = dice.roll(8) > 0;
                        if room {
                            arrived.push(item);
                        }
                        room
                    });
                    receipts.push(receipt(THERE, upto));
                }
                _ if !receipts.is_empty() => {
                    let at = usize::try_from(dice.roll(receipts.len() as u64)).expect("small");
                    outbox.receipted(&receipts[at]);
                }
                _ => {}
            }
        }
        assert_eq!(arrived, (1..=60).map(end).collect::<Vec<_>>(), "seed {seed}");
    }
}
