//! The threads that serve clients' connections: one loop of its own each.
//!
//! Charter: a connection stays on the thread that it is given to. A read hit is answered where the bytes were read, so nothing is
//! gained by handing it to another core, and the handing over costs more than the answer. The fewer threads there are, the
//! more each finds to do when it wakes, and the less a command costs; so they are no more than the clients need.
//!
//! Invariant: a new connection goes to the thread that serves the fewest.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{Builder, available_parallelism};

use tokio::net::TcpStream;
use tokio::runtime::{self, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// How many threads serve clients unless it is said: one for every two cores. The engine, the journal and the other nodes
/// need the rest.
#[must_use]
pub fn usual_threads() -> usize {
    available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1))
}

/// One thread.
struct Loop {
    handle: Handle,
    serves: Arc<AtomicUsize>,
}

/// See the top of the file. The threads end when this is dropped.
pub struct Loops {
    loops: Vec<Loop>,
    _end: DropGuard,
}

impl Loops {
    /// As many threads.
    ///
    /// # Errors
    /// When a thread cannot be had.
    pub fn start(count: usize) -> io::Result<Self> {
        let end = CancellationToken::new();
        let one = |number| {
            let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
            let handle = runtime.handle().clone();
            let end = end.clone();
            Builder::new()
                .name(format!("clients-{number}"))
                .spawn(move || runtime.block_on(end.cancelled()))?;
            Ok(Loop { handle, serves: Arc::default() })
        };
        let loops = (0..count).map(one).collect::<io::Result<_>>()?;
        Ok(Self { loops, _end: end.drop_guard() })
    }

    /// Gives a connection to one of the threads.
    pub fn spawn<F>(
        &self,
        stream: TcpStream,
        tasks: &TaskTracker,
        serve: impl FnOnce(TcpStream) -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let serves = |one: &&Loop| one.serves.load(Ordering::Relaxed);
        let chosen = self.loops.iter().min_by_key(serves).expect("there is a core");
        chosen.serves.fetch_add(1, Ordering::Relaxed);
        let serves = Arc::clone(&chosen.serves);
        let task = async move {
            // It is registered anew, with the loop that it runs on.
            match stream.into_std().and_then(TcpStream::from_std) {
                Ok(stream) => serve(stream).await,
                Err(error) => tracing::warn!("a client's connection cannot be served: {error}"),
            }
            serves.fetch_sub(1, Ordering::Relaxed);
        };
        tasks.spawn_on(task, &chosen.handle);
    }
}
