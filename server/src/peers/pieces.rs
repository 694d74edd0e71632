//! Pieces of snapshot files, for other nodes and for clients: read beside everything else.
//!
//! Invariant: at most two are read at once, and few wait. A node that wants one that was dropped asks again; a client is
//! always answered.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use quorate_engine::effect::Input;
use quorate_engine::journal::File as Name;
use quorate_protocol::id::NodeId;
use quorate_protocol::limits::SNAPSHOT_OUTPUT_MAX;
use quorate_protocol::peer::{SnapshotAt, SnapshotFrame, SnapshotPiece};
use tokio::sync::Semaphore;

use super::complaints::Kind;
use super::queue::Queue;
use crate::driver::Shared;

/// Pieces that are read at the same time.
const AT_ONCE: usize = 2;
/// Pieces that wait to be read; more are dropped.
const WAITING_MAX: usize = 256;
/// Bytes of a piece at the most, whatever is asked for.
const PIECE_MAX: usize = SNAPSHOT_OUTPUT_MAX / 2;

/// Who has asked for a piece.
#[derive(Debug, Clone, Copy)]
enum Asked {
    Node(NodeId),
    /// A client: its connection and request.
    Client(u64, u64),
}

#[derive(Debug, Clone, Copy)]
struct Wanted {
    to: Asked,
    at: SnapshotAt,
    length: u64,
}

/// Pieces that are to be read.
#[derive(Debug)]
pub(super) struct Pieces(Queue<Wanted>);

impl Default for Pieces {
    fn default() -> Self {
        Self(Queue::new(WAITING_MAX))
    }
}

impl Pieces {
    /// Adds one for a node, or drops it.
    pub(super) fn send(&self, to: NodeId, at: SnapshotAt, length: u64) {
        self.0.push(Wanted { to: Asked::Node(to), at, length }, 1);
    }

    /// Adds one for a client, if there is room.
    pub(super) fn read(&self, (conn, request): (u64, u64), at: SnapshotAt, length: u64) -> bool {
        self.0.push(Wanted { to: Asked::Client(conn, request), at, length }, 1)
    }
}

fn hand_over(shared: &Shared, to: Asked, at: SnapshotAt, read: io::Result<Option<Bytes>>, path: &Path) {
    match (to, read) {
        (Asked::Client(conn, request), read) => {
            let weight = read.as_ref().map_or(0, |bytes| bytes.as_ref().map_or(0, Bytes::len));
            let bytes = read.map_err(|error| error.to_string());
            shared.mailbox.post_urgent(Input::PieceRead { conn, request, bytes }, weight);
        }
        (Asked::Node(to), Ok(bytes)) => {
            let piece = SnapshotPiece { at, bytes: bytes.unwrap_or_default() };
            shared.peers.send_snapshot(to, SnapshotFrame::Piece(piece));
        }
        (Asked::Node(_), Err(error)) => {
            let line = format!("{} cannot be read: {error}", path.display());
            shared.peers.complain(Kind::Snapshot, NodeId(0), line);
        }
    }
}

/// Reads what is wanted from a data directory and sends it, for as long as the process lives.
pub async fn read_pieces(dir: PathBuf, shared: Arc<Shared>) {
    let readers = Arc::new(Semaphore::new(AT_ONCE));
    while let Some(wanted) = shared.peers.pieces.0.take().await {
        for Wanted { to, at, length } in wanted {
            let Ok(permit) = Arc::clone(&readers).acquire_owned().await else { return };
            let path = dir.join(Name::Snapshot(at.group, at.index).path());
            let shared = Arc::clone(&shared);
            tokio::task::spawn_blocking(move || {
                hand_over(&shared, to, at, read(&path, at.offset, length), &path);
                drop(permit);
            });
        }
    }
}

/// Up to `length` bytes; none if the file is gone.
fn read(path: &Path, offset: u64, length: u64) -> io::Result<Option<Bytes>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let left = file.metadata()?.len().saturating_sub(offset);
    let length = usize::try_from(length.min(left)).unwrap_or(PIECE_MAX).min(PIECE_MAX);
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(Some(bytes.into()))
}
