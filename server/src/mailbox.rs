//! What waits for the engine: two lanes, bounded, taken in turns.
//!
//! Invariants: the urgent lane (Raft, the disk) is taken first. The work lane is bounded: whoever would
//! overfill it waits for room before reading more from its socket, so a full mailbox pushes back on clients
//! instead of refusing them. Order within a lane is kept.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use quorate_engine::effect::Input;
use quorate_protocol::limits::{MAILBOX_BYTES_MAX, MAILBOX_MAX};
use tokio::sync::Notify;

/// Inputs of the work lane that one turn takes at the most, so that heartbeats never wait long.
const TURN_MAX: usize = 2048;

#[derive(Debug, Default)]
struct Lanes {
    urgent: Vec<Input>,
    urgent_bytes: usize,
    work: Vec<(Input, usize)>,
    requests: usize,
    bytes: usize,
    stopped: bool,
}

impl Lanes {
    fn are_full(&self) -> bool {
        self.requests >= MAILBOX_MAX || self.bytes + self.urgent_bytes >= MAILBOX_BYTES_MAX
    }
}

/// See the top of the file.
#[derive(Debug, Default)]
pub struct Mailbox {
    lanes: Mutex<Lanes>,
    wake: Condvar,
    room: Notify,
}

/// What one turn takes.
#[derive(Debug, Default)]
pub struct Taken {
    /// In the order in which it is to be stepped.
    pub inputs: Vec<Input>,
    /// The node is to stop; stays true once it is.
    pub stopped: bool,
}

impl Mailbox {
    /// Posts what must not wait behind client work.
    pub fn post_urgent(&self, input: Input, weight: usize) {
        let mut lanes = self.lanes.lock();
        lanes.urgent.push(input);
        lanes.urgent_bytes += weight;
        drop(lanes);
        self.wake.notify_one();
    }

    /// Posts client work; `weight` is what it holds in bytes.
    pub fn post(&self, input: Input, weight: usize) {
        let mut lanes = self.lanes.lock();
        if let Input::Requests { requests, .. } = &input {
            lanes.requests += requests.len();
        }
        lanes.bytes += weight;
        lanes.work.push((input, weight));
        drop(lanes);
        self.wake.notify_one();
    }

    /// Waits until there is room for more.
    pub async fn room(&self) {
        loop {
            let notified = self.room.notified();
            if !self.is_full() {
                return;
            }
            notified.await;
        }
    }

    /// Whether sockets are to be read no further for now.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.lanes.lock().are_full()
    }

    /// Tells the engine's thread to stop.
    pub fn stop(&self) {
        self.lanes.lock().stopped = true;
        self.wake.notify_one();
    }

    /// Takes what waits, or waits for something up to `patience`.
    pub fn take(&self, patience: Duration, taken: &mut Taken) {
        taken.inputs.clear();
        let mut lanes = self.lanes.lock();
        if lanes.urgent.is_empty() && lanes.work.is_empty() && !lanes.stopped && !patience.is_zero() {
            let _ = self.wake.wait_for(&mut lanes, patience);
        }
        taken.stopped |= std::mem::take(&mut lanes.stopped);
        taken.inputs.append(&mut lanes.urgent);
        let was_full = lanes.are_full();
        lanes.urgent_bytes = 0;
        let count = lanes.work.len().min(TURN_MAX);
        let work: Vec<_> = lanes.work.drain(..count).collect();
        for (input, weight) in work {
            if let Input::Requests { requests, .. } = &input {
                lanes.requests -= requests.len();
            }
            lanes.bytes -= weight;
            taken.inputs.push(input);
        }
        drop(lanes);
        if was_full {
            self.room.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_urgent_lane_comes_first_and_order_is_kept() {
        let mailbox = Mailbox::default();
        for conn in 0..TURN_MAX as u64 + 1 {
            mailbox.post(Input::Disconnected { conn }, 1);
        }
        mailbox.post_urgent(Input::Persisted(9), 0);
        let mut taken = Taken::default();
        mailbox.take(Duration::ZERO, &mut taken);
        assert!(matches!(taken.inputs[0], Input::Persisted(9)));
        assert!(matches!(taken.inputs[1], Input::Disconnected { conn: 0 }));
        assert_eq!(taken.inputs.len(), TURN_MAX + 1);
        mailbox.take(Duration::ZERO, &mut taken);
        assert!(matches!(taken.inputs[..], [Input::Disconnected { conn }] if conn == TURN_MAX as u64));
    }

    #[test]
    fn a_full_mailbox_says_so_until_it_is_taken() {
        let mailbox = Mailbox::default();
        mailbox.post(Input::Disconnected { conn: 1 }, MAILBOX_BYTES_MAX);
        assert!(mailbox.is_full());
        mailbox.take(Duration::ZERO, &mut Taken::default());
        assert!(!mailbox.is_full());
    }
}
