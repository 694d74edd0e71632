//! What the system group tells partitions of locks, on its way through the outbox (`lock/fencing.rs`).

use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::id::GroupId;
use quorate_protocol::limits::{CLIENTS_MAX, NODES_MAX};
use quorate_protocol::peer::{Item, Receipted};
use quorate_protocol::reply::{Code, Reply};

use super::System;
use crate::outcome::{Asker, Ctx, Outcomes, answer};

/// Places in the outbox of each partition that floors of locks leave free.
const KEPT_FOR_ENDS: usize = 2 * (CLIENTS_MAX + NODES_MAX);

impl System {
    pub(super) fn watch(
        &mut self,
        ctx: &Ctx,
        asker: &Asker,
        lock: Bytes,
        partition: GroupId,
        out: &mut Outcomes,
    ) {
        if !(1..=self.partitions).contains(&partition.0) {
            return answer(out, *asker, Reply::error(Code::Err, "there is no such partition"));
        }
        self.locks.watch(ctx, asker, (lock, partition), out);
    }

    /// A partition has taken what was told to it.
    pub(super) fn receipted(&mut self, ctx: &Ctx, receipt: &Receipted, out: &mut Outcomes) {
        for item in self.outbox.receipted(receipt) {
            match item {
                Item::Floor(floor) => self.locks.confirmed(ctx, receipt.target, &floor, out),
                Item::Unwatched((lock, number)) => self.locks.fencing.forget(receipt.target, lock, number),
                Item::NodeEnded(_) | Item::ClientEnded(_) | Item::Letter(_) => {}
            }
        }
    }

    /// Gives what partitions have to hear of locks a place in the outbox, as far as there is room beside the ends of all sessions
    /// that there can be, twice.
    pub(super) fn post_floors(&mut self) {
        let targets: Vec<GroupId> = self.locks.fencing.owes().collect();
        for target in targets {
            while let Some(item) = self.locks.fencing.next_due(target) {
                if self.outbox.room(target) <= KEPT_FOR_ENDS || !self.outbox.has_room(target, &item) {
                    break;
                }
                self.locks.fencing.posted(target, &item);
                self.outbox.post(target, item);
            }
        }
    }
}
