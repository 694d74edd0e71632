//! What goes wrong, and when it is put right again.
//!
//! Invariant: at most one node's directory is ever at the mercy of a flipped bit, so that a majority of every
//! group can come back.

use quorate_engine::effect::Input;

use super::network::Quality;
use super::world::{Event, World};

/// A pause that a node's session may not survive.
const LONG_PAUSE: u64 = 5_000_000;

/// A fault begins or ends.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// Something goes wrong, and the next fault is planned.
    Next,
    /// All directions between nodes are open again.
    Heal,
    /// Frames travel well again.
    Calm,
    /// A node's disk has room again.
    Room(usize),
    /// A node that was told to stop ends.
    Stopped(usize),
}

impl World {
    /// Plans the first fault.
    pub fn plan_faults(&mut self) {
        if self.plan.fault_every > 0 {
            self.schedule(1_000_000, Event::Fault(Fault::Next));
        }
    }

    /// A fault begins or ends.
    pub fn fault(&mut self, fault: Fault) {
        if self.resting {
            return;
        }
        match fault {
            Fault::Heal => self.network.blocked.iter_mut().for_each(|row| row.fill(false)),
            Fault::Calm => self.network.quality = Quality::GOOD,
            Fault::Room(at) => self.post(at, Input::Room(true)),
            Fault::Stopped(at) => {
                self.crash(at, false, false);
                let back = self.time + 1000 + self.fault_rng.below(2_000_000);
                self.schedule(back, Event::Start { node: at });
            }
            Fault::Next => {
                self.something_goes_wrong();
                let pause = self.fault_rng.below(2 * self.plan.fault_every);
                self.schedule(self.time + pause, Event::Fault(Fault::Next));
            }
        }
    }

    fn something_goes_wrong(&mut self) {
        let at = self.fault_rng.index(self.nodes.len());
        if self.plan.rots_much && self.fault_rng.chance(500) {
            return self.rot_some(at);
        }
        match self.fault_rng.below(20) {
            0..=3 if self.plan.crashes => self.crash_and_restart(at),
            4 if self.plan.crashes => {
                for at in 0..self.nodes.len() {
                    self.crash_and_restart(at);
                }
            }
            5 | 6 if self.plan.pauses => self.pause(at),
            7..=9 if self.plan.partitioned => self.block(at),
            10 if self.plan.cuts => self.cut_some_link(),
            11 | 12 if self.plan.lossy => self.spoil_network(),
            13 if self.plan.slow_disks => {
                self.nodes[at].slow_until = self.time + self.fault_rng.below(3_000_000);
            }
            14 if self.plan.disconnects => self.cut_some_client(),
            15 => self.nodes[at].clock.jump(&mut self.fault_rng),
            16 if self.plan.wipes => self.lose_disk(at),
            17 if self.plan.full_disks => self.fill_disk(at),
            18 if self.plan.stops => self.stop(at),
            19 if self.plan.rots => self.rot_some(at),
            _ => {}
        }
    }

    fn crash_and_restart(&mut self, at: usize) {
        let power = self.fault_rng.chance(600);
        let flip = self.plan.flips && self.plan.nodes > 2 && self.is_victim(at) && self.fault_rng.chance(300);
        if self.crash(at, power, flip).is_some() {
            self.checks.flipped(at);
        }
        let longest = self.fault_rng.pick(&[20_000, 300_000, 2_000_000, 15_000_000]);
        let back = self.time + 1000 + self.fault_rng.below(longest);
        self.schedule(back, Event::Start { node: at });
    }

    /// Whether a node may lose what it has: no other one has.
    fn is_victim(&self, at: usize) -> bool {
        (0..self.nodes.len()).all(|other| other == at || !self.checks.may_be_ruined(other))
    }

    fn lose_disk(&mut self, at: usize) {
        if self.is_victim(at) && self.nodes[at].is_up() {
            self.checks.flipped(at);
            self.wipe(at);
        }
    }

    fn rot_some(&mut self, at: usize) {
        if self.nodes.len() > 2 && self.is_victim(at) {
            self.rot(at);
        }
    }

    fn fill_disk(&mut self, at: usize) {
        self.note(at, &[52], || "has a full disk".into());
        self.post(at, Input::Room(false));
        let until = self.time + self.fault_rng.below(3_000_000);
        self.schedule(until, Event::Fault(Fault::Room(at)));
    }

    /// Stops a node as an operator does it: leadership is handed over first.
    fn stop(&mut self, at: usize) {
        self.note(at, &[53], || "is told to stop".into());
        self.post(at, Input::Resign);
        let until = self.time + self.fault_rng.below(1_000_000);
        self.schedule(until, Event::Fault(Fault::Stopped(at)));
    }

    fn pause(&mut self, at: usize) {
        let longest = self.fault_rng.pick(&[50_000, 600_000, 2_000_000, 12_000_000]);
        let until = (self.time + self.fault_rng.below(longest)).min(self.plan.end);
        if until > self.time + LONG_PAUSE {
            // The node's session may end while it cannot tell its clients: what they held is not certain any more.
            for conn in self.nodes[at].conns.values() {
                self.checks.conn_ended(*conn, self.time);
            }
        }
        self.note(at, &[50, until], || "freezes".into());
        self.nodes[at].paused_until = self.nodes[at].paused_until.max(until);
    }

    /// Blocks directions: one, both ways of one node, or between two halves.
    fn block(&mut self, at: usize) {
        let count = self.nodes.len();
        let other = self.fault_rng.index(count);
        let kind = self.fault_rng.below(4);
        let mut blocked = self.network.blocked.clone();
        for peer in (0..count).filter(|&peer| peer != at) {
            match kind {
                0 if peer == other => blocked[at][peer] = true,
                1 => (blocked[at][peer], blocked[peer][at]) = (true, true),
                2 => blocked[at][peer] = true,
                3 => blocked[peer][at] = true,
                _ => {}
            }
        }
        self.network.blocked = blocked;
        self.note(at, &[51, kind, other as u64], || {
            ["is not heard by one", "is cut off", "is not heard", "hears nobody"]
                [usize::try_from(kind).unwrap_or(0)]
            .into()
        });
        let longest = self.fault_rng.pick(&[100_000, 1_000_000, 6_000_000]);
        let heal = self.time + 10_000 + self.fault_rng.below(longest);
        self.schedule(heal, Event::Fault(Fault::Heal));
    }

    fn spoil_network(&mut self) {
        let rng = &mut self.fault_rng;
        self.network.quality = Quality {
            loss: rng.pick(&[0, 10, 100, 400]),
            doubled: rng.pick(&[0, 20, 200]),
            slow: rng.pick(&[0, 20, 200]),
            delay: rng.pick(&[300, 5_000, 60_000]),
        };
        let calm = self.time + self.fault_rng.below(4_000_000);
        self.schedule(calm, Event::Fault(Fault::Calm));
    }

    /// Puts everything right: the network is whole, every node runs that can.
    pub fn heal(&mut self) {
        self.resting = true;
        self.network.heal();
        for at in 0..self.nodes.len() {
            self.nodes[at].paused_until = 0;
            self.nodes[at].slow_until = 0;
            self.post(at, Input::Room(true));
            let soon = self.time + 1000;
            self.schedule(soon, Event::Start { node: at });
        }
    }
}
