//! The client port: accepts connections, up to a bound.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use quorate_protocol::limits::CONNECTIONS_MAX;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use crate::answers::{Answerer, Desk};
use crate::connection::Connection;
use crate::driver::Shared;

/// The pause after a failed accept (no more file descriptors, most likely).
const PAUSE: Duration = Duration::from_millis(100);

/// Counts a connection as long as it lives.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Accepts clients for as long as the process lives.
pub async fn accept_all(listener: TcpListener, shared: Arc<Shared>, desk: Arc<Desk>) {
    let count = Arc::new(AtomicUsize::new(0));
    // 0 is the node's own connection.
    let mut number = 0;
    loop {
        let (mut stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("accepting a client: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        number += 1;
        let counted = Counted(Arc::clone(&count));
        if count.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
            tokio::spawn(async move {
                let _counted = counted;
                let text = format!(
                    "-BUSY {CONNECTIONS_MAX} clients are connected; close some, or ask another node\r\n"
                );
                // The client may be gone already.
                let _ = stream.write_all(text.as_bytes()).await;
            });
            continue;
        }
        if stream.set_nodelay(true).is_err() {
            continue;
        }
        let answerer = Answerer::new(number, address, Arc::clone(&desk));
        let connection = Connection::new(number, stream, Arc::clone(&shared), answerer);
        tokio::spawn(async move {
            let _counted = counted;
            connection.serve().await;
        });
    }
}
