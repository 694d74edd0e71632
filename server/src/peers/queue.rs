//! Frames that wait for a peer, encoded by its writer.
//!
//! Invariant: bounded by what they weigh. Who adds to a full queue is told so, and decides what is lost.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tokio::sync::Notify;

#[derive(Debug)]
struct State<T> {
    frames: VecDeque<T>,
    weight: usize,
    closed: bool,
}

/// See the top of the file.
#[derive(Debug)]
pub(super) struct Queue<T> {
    max: usize,
    state: Mutex<State<T>>,
    news: Notify,
}

impl<T> Queue<T> {
    /// An empty one that holds about `max` bytes.
    #[must_use]
    pub(super) fn new(max: usize) -> Self {
        let state = State { frames: VecDeque::new(), weight: 0, closed: false };
        Self { max, state: Mutex::new(state), news: Notify::new() }
    }

    /// Adds a frame; false when the queue is full or closed.
    pub(super) fn push(&self, frame: T, weight: usize) -> bool {
        let mut state = self.state.lock();
        if state.closed || state.weight > self.max {
            return false;
        }
        state.frames.push_back(frame);
        state.weight += weight;
        drop(state);
        self.news.notify_one();
        true
    }

    /// Takes all frames, and waits for the first; `None` when the queue is closed.
    pub(super) async fn take(&self) -> Option<VecDeque<T>> {
        loop {
            {
                let mut state = self.state.lock();
                if state.closed {
                    return None;
                }
                if !state.frames.is_empty() {
                    state.weight = 0;
                    return Some(std::mem::take(&mut state.frames));
                }
            }
            self.news.notified().await;
        }
    }

    /// Waits until there is a frame, and leaves it.
    pub(super) async fn wait(&self) {
        while self.state.lock().frames.is_empty() {
            self.news.notified().await;
        }
    }

    /// Drops what waits.
    pub(super) fn clear(&self) {
        let mut state = self.state.lock();
        state.weight = 0;
        state.frames.clear();
    }

    /// Drops what waits, and takes nothing more.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.frames.clear();
        drop(state);
        self.news.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_queue_takes_nothing_until_it_is_emptied() {
        let queue = Queue::new(10);
        assert!(queue.push('a', 10) && queue.push('b', 1), "one over the bound is let in");
        assert!(!queue.push('c', 1));
        queue.wait().await;
        assert_eq!(queue.take().await.map(Vec::from), Some(vec!['a', 'b']));
        assert!(queue.push('d', 11) && !queue.push('e', 1));
        queue.clear();
        assert!(queue.push('f', 1));
        queue.close();
        assert_eq!(queue.take().await, None);
        assert!(!queue.push('g', 1));
    }
}
