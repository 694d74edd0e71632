//! The client port: accepts connections, up to a bound.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use quorate_protocol::limits::{ADMIN_CONNECTIONS_MAX, CONNECTIONS_MAX, NODES_MAX, PEER_CONNECTIONS_MAX};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;

use crate::answers::{Answerer, Desk};
use crate::connection::Connection;
use crate::driver::Shared;
use crate::loops::Loops;

/// The pause after a failed accept (no more file descriptors, most likely).
const PAUSE: Duration = Duration::from_millis(100);
/// Files that a node opens besides its clients' sockets.
const OTHER_FILES: usize = 1024;
/// Of these, what is no connection that somebody else opens: the journal's, ports, the runtime's own.
const OWN_FILES: usize = 256;
/// Refused clients that are told why at the same time; more are just closed.
const REFUSED_MAX: usize = 128;
/// How long a refused client may take to read why.
const REFUSAL: Duration = Duration::from_secs(1);

const _: () = assert!(
    OWN_FILES + REFUSED_MAX + ADMIN_CONNECTIONS_MAX + PEER_CONNECTIONS_MAX + 3 * NODES_MAX <= OTHER_FILES,
    "ports full to their bounds, and the lanes to all other nodes, leave the journal its files"
);

/// How many connections fit under the bound of open files.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// Clients.
    pub clients: usize,
    /// Clients that are told why they are refused.
    pub refused: usize,
    /// Lanes that other nodes open.
    pub peers: usize,
    /// Visitors of the admin port.
    pub admin: usize,
}

/// Raises the process's bound of open files as far as it may, and shares out what it is then. If it is less than
/// all the bounds together, a quarter stays for the node's own files.
#[must_use]
pub fn room() -> Room {
    let wanted = (CONNECTIONS_MAX + OTHER_FILES) as u64;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < wanted) {
        limit.current = Some(limit.maximum.map_or(wanted, |maximum| maximum.min(wanted)));
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!("the number of open files cannot be raised: {error}");
        }
    }
    let files = getrlimit(Resource::Nofile).current.unwrap_or(wanted).min(wanted);
    let files = usize::try_from(files).expect("it is at most what is wanted");
    let clients = files.saturating_sub(OTHER_FILES).max(files / 2).min(CONNECTIONS_MAX);
    if clients < CONNECTIONS_MAX {
        tracing::warn!(
            "only {clients} clients can be served: the process may open {files} files (ulimit -n)"
        );
    }
    Room {
        clients,
        refused: REFUSED_MAX.min(files / 16),
        peers: PEER_CONNECTIONS_MAX.min(files / 8),
        admin: ADMIN_CONNECTIONS_MAX.min(files / 16),
    }
}

/// Counts a connection as long as it lives.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Accepts as many clients at a time as there is room for, until the node is told to stop; `tasks` are their connections.
pub async fn accept_all(
    listener: TcpListener,
    room: Room,
    shared: Arc<Shared>,
    desk: Arc<Desk>,
    tasks: TaskTracker,
    loops: Arc<Loops>,
) {
    let count = Arc::new(AtomicUsize::new(0));
    let max = room.clients;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shared.leaving.cancelled() => return,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("accepting a client: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let number = shared.next_conn();
        let counted = Counted(Arc::clone(&count));
        let before = count.fetch_add(1, Ordering::Relaxed);
        if before >= max {
            if before < max + room.refused {
                tokio::spawn(async move {
                    refuse(stream, max).await;
                    drop(counted);
                });
            }
            continue;
        }
        if stream.set_nodelay(true).is_err() {
            continue;
        }
        let answerer = Answerer::new(number, address, Arc::clone(&desk));
        let shared = Arc::clone(&shared);
        loops.spawn(stream, &tasks, move |stream| async move {
            let _counted = counted;
            Box::new(Connection::new(number, stream, shared, answerer)).serve().await;
        });
    }
}

/// Says why, and waits until it is read: closing a socket with unread bytes would take the words back.
async fn refuse(mut stream: TcpStream, max: usize) {
    let text = format!("-BUSY {max} clients are connected; close some, or ask another node\r\n");
    let say = async {
        stream.write_all(text.as_bytes()).await?;
        stream.shutdown().await?;
        let mut unread = [0; 512];
        while stream.read(&mut unread).await? > 0 {}
        Ok::<_, std::io::Error>(())
    };
    // The client may be gone already.
    let _ = tokio::time::timeout(REFUSAL, say).await;
}
