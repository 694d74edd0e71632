//! Which states are the same: those that nothing can ever tell apart have the same fingerprint.
//!
//! Three things are taken out of a state before its fingerprint is made, none of which the engine's rules depend on:
//! - *Time*: only what is left until an end, or has passed since a beginning, up to where more makes no difference.
//! - *Names of numbers*: grants and invalidations that concern one node are compared with each other only, and so are epochs,
//!   generations and values; they are numbered anew, from nought, in their order.
//! - *Places of nodes*: nodes are alike, so the two that do not lead can change places; the smaller fingerprint counts.
//!
//! Of words in flight the order does not count, except of what one link carries.

use quorate_engine::cache::walk::{Kind, Walk};
use quorate_protocol::id::NodeId;
use xxhash_rust::xxh3::xxh3_128;

use crate::flying::Flying;
use crate::world::{LEASE, Model, id};

type Row = Vec<(Kind, u64)>;

/// A state's fingerprint.
pub(crate) fn fingerprint(model: &Model) -> u128 {
    let others: Vec<usize> = (0..3).filter(|at| *at != model.home).collect();
    let orders = [[model.home, others[0], others[1]], [model.home, others[1], others[0]]];
    orders.map(|order| of(model, order)).into_iter().min().expect("there are two")
}

fn of(model: &Model, order: [usize; 3]) -> u128 {
    let ids: [NodeId; 3] = order.map(id);
    let mut walk = Walk { now: model.now, order: &ids, row: Vec::with_capacity(128) };
    walk.plain(model.term);
    walk.left(model.home_until);
    walk.plain(model.cut_off);
    model.left.walk(&mut walk);
    model.directory.walk(&mut walk);
    for (place, at) in (0_u8..).zip(order) {
        let node = &model.nodes[at];
        node.holder.walk(&mut walk, place, LEASE);
        walk.plain(node.term);
        for key in 0..node.view.lines.len() {
            let shown = model.shown(at, key);
            walk.plain(shown.is_some());
            shown.inspect(|value| walk.one(Kind::Value, *value));
        }
        model.walk_taken_on(&mut walk, at);
        walk.left(node.view.until);
        walk.one(Kind::Generation(place), node.view.generation);
    }
    for (write, proposal) in &model.held {
        walk.one(Kind::Write, *write);
        proposal.walk(&mut walk);
    }
    walk.count(model.proposed.len());
    model.proposed.iter().for_each(|proposal| proposal.walk(&mut walk));
    for value in model.applied.iter().chain(&model.acknowledged) {
        walk.one(Kind::Value, *value);
    }
    model.versions.iter().for_each(|version| walk.one(Kind::Version, *version));
    let mut flying: Vec<(u64, Row)> = Vec::with_capacity(model.flying.len());
    let state = std::mem::take(&mut walk.row);
    for (at, one) in (0..).zip(&model.flying) {
        one.walk(&mut walk);
        // On a link the order counts.
        let behind = if matches!(one, Flying::Word { .. }) { 0 } else { at };
        flying.push((behind, std::mem::take(&mut walk.row)));
    }
    hash(state, flying)
}

fn hash(mut row: Row, mut flying: Vec<(u64, Row)>) -> u128 {
    let mut known: Row = row.iter().chain(flying.iter().flat_map(|(_, row)| row)).copied().collect();
    known.retain(|(kind, _)| *kind != Kind::Plain);
    known.sort_unstable();
    known.dedup();
    let rank = |(kind, value): &mut (Kind, u64)| {
        if *kind != Kind::Plain && *value > 0 {
            let first = known.partition_point(|one| *one < (*kind, 1));
            let place = known.partition_point(|one| *one < (*kind, *value));
            *value = (place - first) as u64 + 1;
        }
    };
    row.iter_mut().for_each(rank);
    flying.iter_mut().for_each(|(_, row)| row.iter_mut().for_each(rank));
    // Entries of one link begin alike, so that they stay together, and in their order.
    flying.sort_unstable_by(|(at, row), (other_at, other)| {
        (&row[..2], at, row).cmp(&(&other[..2], other_at, other))
    });
    // What a number is belongs to it, or an epoch could be taken for a time.
    let mut bytes = Vec::with_capacity(2048);
    for row in core::iter::once(&row).chain(flying.iter().map(|(_, row)| row)) {
        bytes.extend_from_slice(&row.len().to_le_bytes());
        for (kind, value) in row {
            bytes.extend_from_slice(&code(*kind));
            bytes.extend_from_slice(&value.to_le_bytes());
        }
    }
    xxh3_128(&bytes)
}

fn code(kind: Kind) -> [u8; 2] {
    match kind {
        Kind::Plain => [0, 0],
        Kind::Number(place) => [1, place],
        Kind::Epoch(place) => [2, place],
        Kind::Generation(place) => [3, place],
        Kind::Write => [4, 0],
        Kind::Value => [5, 0],
        Kind::Version => [6, 0],
        Kind::Flush(place) => [7, place],
    }
}
