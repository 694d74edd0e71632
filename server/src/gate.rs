//! A bound on the connections of a port that serves no clients.
//!
//! Whoever comes above it is closed at once, so that a flood cannot take the files that the journal needs.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::clock;

/// How long a full port says nothing more of being full; microseconds.
const QUIET: u64 = 60_000_000;

/// See the top of the file.
#[derive(Debug)]
pub struct Gate {
    port: &'static str,
    max: usize,
    room: Arc<Semaphore>,
    said: Option<u64>,
}

impl Gate {
    /// For a port of this name.
    #[must_use]
    pub fn new(port: &'static str, max: usize) -> Self {
        Self { port, max, room: Arc::new(Semaphore::new(max)), said: None }
    }

    /// Lets a connection in as long as the permit lives; `None` when there is no room.
    pub fn enter(&mut self) -> Option<OwnedSemaphorePermit> {
        let permit = Arc::clone(&self.room).try_acquire_owned().ok();
        let now = clock::now().mono;
        if permit.is_none() && self.said.is_none_or(|said| now > said + QUIET) {
            self.said = Some(now);
            tracing::warn!(
                "{} connections stand at the {} port; more are closed at once",
                self.max,
                self.port
            );
        }
        permit
    }
}
