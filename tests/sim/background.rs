//! What a node's disk does beside the commits: snapshot files are written, and pieces of them read for others.
//!
//! Charter: the plans of `Effect::Background`, one after the other, each with latencies of its own, so that they
//! fall between the journal's writes in any order; then `Input::BackgroundDone`. A crash ends them where they
//! are, and what was not synced is lost as everything else.

use std::collections::VecDeque;

use bytes::Bytes;
use quorate_engine::effect::Input;
use quorate_engine::journal::{File, Io};
use quorate_protocol::peer::{SnapshotAt, SnapshotFrame, SnapshotPiece};

use super::rng::Rng;
use super::world::{Event, World};

/// See the top of the file.
pub struct Background {
    plans: VecDeque<(u64, VecDeque<Io>)>,
    /// Rises with every plan.
    last: u64,
    rng: Rng,
}

impl Background {
    /// Nothing to do.
    #[must_use]
    pub fn new(rng: Rng) -> Self {
        Self { plans: VecDeque::new(), last: 0, rng }
    }

    /// The node is gone.
    pub fn stop(&mut self) {
        self.plans.clear();
        self.last = 0;
    }

    /// How long a few writes or a read take.
    pub fn latency(&mut self) -> u64 {
        if self.rng.chance(50) { self.rng.between(1_000..30_000) } else { self.rng.between(20..800) }
    }
}

/// Who has asked for a piece of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Asked {
    /// A node.
    Node(usize),
    /// A client: its connection and request.
    Client(u64, u64),
}

impl World {
    /// The engine hands over a plan.
    pub fn submit_background(&mut self, at: usize, number: u64, ios: Vec<Io>) {
        self.note(at, &[6, number, ios.len() as u64], || {
            format!("writes beside the commits ({number}): {ios:?}")
        });
        let background = &mut self.nodes[at].background;
        let expected = background.last + 1;
        background.last = number;
        background.plans.push_back((number, ios.iter().cloned().collect()));
        let alone = background.plans.len() == 1;
        if number != expected {
            self.fail("effects keep their contract", format!("plan {number} comes instead of {expected}"));
        }
        if let Some(io) = ios.iter().find(|io| !matches!(file_of(io), File::Snapshot(..))) {
            self.fail("effects keep their contract", format!("{io:?} is the journal's business"));
        }
        if alone {
            self.schedule_background(at);
        }
    }

    fn schedule_background(&mut self, at: usize) {
        let time = self.time;
        let node = &mut self.nodes[at];
        let syncs = node
            .background
            .plans
            .front()
            .is_some_and(|(_, left)| matches!(left.front(), Some(Io::Sync { .. })));
        let latency = if syncs { node.sync_latency(time) } else { node.background.latency() };
        let life = node.life;
        self.schedule(time + latency, Event::Background { node: at, life });
    }

    /// A sync, or what stands before the next one, is done.
    pub fn background_goes_on(&mut self, at: usize, life: u64) {
        let time = self.time;
        let node = &mut self.nodes[at];
        if node.life != life {
            return;
        }
        if time < node.paused_until {
            let until = node.paused_until;
            return self.schedule(until, Event::Background { node: at, life });
        }
        let Some((number, left)) = node.background.plans.front_mut() else { return };
        let number = *number;
        while let Some(io) = left.pop_front() {
            node.disk.perform(&io);
            if matches!(left.front(), Some(Io::Sync { .. })) {
                return self.schedule_background(at);
            }
        }
        node.background.plans.pop_front();
        let more = !node.background.plans.is_empty();
        self.post(at, Input::BackgroundDone(number));
        if more {
            self.schedule_background(at);
        }
    }

    /// The engine wants a piece of a file sent.
    pub fn read_piece(&mut self, node: usize, to: Asked, at: SnapshotAt, length: u64) {
        let life = self.nodes[node].life;
        let done = self.time + self.nodes[node].background.latency();
        self.schedule(done, Event::Piece { node, life, to, at, length });
    }

    /// A piece is read, as the file is by now.
    pub fn piece_read(&mut self, node: usize, life: u64, to: Asked, at: SnapshotAt, length: u64) {
        if self.nodes[node].life != life {
            return;
        }
        let file = self.nodes[node].disk.bytes(File::Snapshot(at.group, at.index));
        let gone = file.is_none();
        let file = file.unwrap_or_default();
        let place = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(file.len());
        let bytes = Bytes::copy_from_slice(&file[place(at.offset)..place(at.offset.saturating_add(length))]);
        self.note(node, &[7, at.offset, bytes.len() as u64], || {
            format!("sends {} bytes of {at:?}", bytes.len())
        });
        match to {
            Asked::Node(to) => {
                self.send_snapshot(node, to, SnapshotFrame::Piece(SnapshotPiece { at, bytes }))
            }
            Asked::Client(conn, request) => {
                let bytes = Ok((!gone).then_some(bytes));
                self.post(node, Input::PieceRead { conn, request, bytes });
            }
        }
    }
}

fn file_of(io: &Io) -> File {
    match io {
        Io::Create { file, .. } | Io::Write { file, .. } | Io::Sync { file } | Io::Remove { file } => *file,
    }
}

#[cfg(test)]
mod tests {
    use quorate_engine::effect::Effect;
    use quorate_protocol::id::GroupId;

    use super::*;
    use crate::sim::node::State;
    use crate::sim::plan::{Plan, Settings};

    /// A world whose first node has a disk, and no engine that would wonder.
    fn world() -> World {
        let settings = Settings { nodes: Some(3), seconds: 60, idle: true, ..Settings::default() };
        let mut world = World::new(Plan::new(1, &settings), 0);
        world.nodes[0].state = State::Ruined("it only has a disk".into());
        world
    }

    #[test]
    fn plans_are_done_in_order_and_take_their_time() {
        let mut world = world();
        let file = |index| File::Snapshot(GroupId(1), index);
        let plan = |index| {
            let create = Io::Create { file: file(index), size: 0 };
            let write = Io::Write { file: file(index), offset: 0, bytes: vec![7; 3000].into() };
            vec![create, write, Io::Sync { file: file(index) }]
        };
        let plans = (1..=2).map(|number| Effect::Background { number, ios: plan(number) });
        let last = Effect::Background { number: 3, ios: vec![Io::Remove { file: file(1) }] };
        world.perform(0, plans.chain([last]).collect());
        assert!(world.nodes[0].disk.bytes(file(1)).is_none(), "nothing is done at once");
        assert!(world.run_until(1_000_000));
        assert!(world.nodes[0].background.plans.is_empty());
        world.nodes[0].disk.lose_power();
        let length = |index| world.nodes[0].disk.bytes(file(index)).map(<[u8]>::len);
        assert_eq!((length(1), length(2)), (None, Some(3000)), "what was synced is kept");
    }

    #[test]
    fn a_plan_that_breaks_the_contract_is_a_violation() {
        for (number, file) in [(1, File::Meta), (2, File::Snapshot(GroupId(1), 1))] {
            let mut world = world();
            world.perform(0, vec![Effect::Background { number, ios: vec![Io::Remove { file }] }]);
            assert!(world.checks.violation.is_some(), "plan {number} of {file:?}");
        }
    }
}
