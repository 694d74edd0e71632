//! What waits for the engine: two lanes, bounded, taken in turns.
//!
//! Invariants: the urgent lane (Raft, the disk) is taken first. The work lane is bounded: whoever would
//! overfill it waits for room before reading more from its socket, so a full mailbox pushes back on clients
//! instead of refusing them. Order within a lane is kept. However much work there is, the urgent lane has room for
//! heartbeats, and no turn is so long that they would wait for its end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use quorate_engine::effect::Input;
use quorate_protocol::limits::{MAILBOX_BYTES_MAX, MAILBOX_MAX};
use tokio::sync::Notify;

/// Inputs of the work lane that one turn takes at the most, so that heartbeats never wait long.
const TURN_MAX: usize = 2048;
/// Requests of clients that end the taking: some 10 ms of work.
const TURN_REQUESTS: usize = 4096;
/// Bytes of the work lane that end the taking: they are copied into entries.
const TURN_BYTES: usize = 16 << 20;

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

    fn has_room(&self, what: Room) -> bool {
        match what {
            Room::Work => !self.are_full(),
            Room::Urgent => self.urgent_bytes < MAILBOX_BYTES_MAX,
        }
    }

    /// Takes work, oldest first, until a turn has enough.
    fn take_work(&mut self, inputs: &mut Vec<Input>) {
        let (mut requests, mut bytes) = (0, 0);
        let enough = self.work.iter().take(TURN_MAX).position(|(input, weight)| {
            let full = requests >= TURN_REQUESTS || bytes >= TURN_BYTES;
            requests += requests_in(input);
            bytes += weight;
            full
        });
        let count = enough.unwrap_or(self.work.len().min(TURN_MAX));
        for (input, weight) in self.work.drain(..count) {
            self.requests -= requests_in(&input);
            self.bytes -= weight;
            inputs.push(input);
        }
    }
}

fn requests_in(input: &Input) -> usize {
    if let Input::Requests { requests, .. } = input { requests.len() } else { 0 }
}

/// What there is to be room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// Work of clients and other nodes.
    Work,
    /// What must not wait behind it.
    Urgent,
}

/// See the top of the file.
#[derive(Debug, Default)]
pub struct Mailbox {
    lanes: Mutex<Lanes>,
    wake: Condvar,
    room: Notify,
    /// Whether the work lane is full, for those who ask before every read of a socket.
    full: AtomicBool,
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
        lanes.requests += requests_in(&input);
        lanes.bytes += weight;
        lanes.work.push((input, weight));
        self.full.store(lanes.are_full(), Ordering::Relaxed);
        drop(lanes);
        self.wake.notify_one();
    }

    /// Waits until there is room for more.
    pub async fn room(&self, what: Room) {
        if what == Room::Work && !self.full.load(Ordering::Relaxed) {
            return;
        }
        loop {
            let notified = self.room.notified();
            if self.lanes.lock().has_room(what) {
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
        lanes.take_work(&mut taken.inputs);
        self.full.store(lanes.are_full(), Ordering::Relaxed);
        drop(lanes);
        if was_full {
            self.room.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use quorate_engine::effect::{Request, Want};

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
    fn a_turn_ends_where_heartbeats_would_wait_for_it() {
        let mailbox = Mailbox::default();
        let request = |id| Request { id, want: Want::OpenClient, client: None, after: None };
        for conn in 0..5 {
            let requests = (1..=TURN_REQUESTS as u64 / 2).map(request).collect();
            mailbox.post(Input::Requests { conn, requests }, 1);
        }
        let mut taken = Taken::default();
        for inputs in [2, 2, 1] {
            mailbox.take(Duration::ZERO, &mut taken);
            assert_eq!(taken.inputs.len(), inputs);
        }
        for conn in 0..3 {
            mailbox.post(Input::Disconnected { conn }, TURN_BYTES);
        }
        mailbox.take(Duration::ZERO, &mut taken);
        assert_eq!(taken.inputs.len(), 1);
    }

    #[tokio::test]
    async fn however_much_work_waits_there_is_room_for_heartbeats() {
        let mailbox = Mailbox::default();
        mailbox.post(Input::Disconnected { conn: 1 }, MAILBOX_BYTES_MAX);
        mailbox.room(Room::Urgent).await;
        let room = tokio::time::timeout(Duration::from_millis(1), mailbox.room(Room::Work));
        assert!(room.await.is_err(), "there is none for work");
        mailbox.post_urgent(Input::Tick, MAILBOX_BYTES_MAX);
        let room = tokio::time::timeout(Duration::from_millis(1), mailbox.room(Room::Urgent));
        assert!(room.await.is_err(), "the urgent lane has its bound too");
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
