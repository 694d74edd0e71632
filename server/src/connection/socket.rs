//! The socket of a connection: how it is waited for, and how it is closed.

use std::future::poll_fn;
use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::{Connection, READ};
use crate::driver::Shared;
use crate::mailbox::Room;

/// How long a connection that was closed from here is drained, so that the last words are not lost in a reset.
const LINGER: Duration = Duration::from_secs(1);
/// Pause between two looks whether a client that is not read has gone.
const LOOK: Duration = Duration::from_millis(500);

impl Connection {
    /// Closes this side and lets the client read what was written: closed at once, with bytes of the client
    /// unread, the connection would be reset and the last words lost.
    pub(super) async fn linger(&mut self) {
        let drain = async {
            self.stream.shutdown().await?;
            let mut scratch = Vec::with_capacity(READ);
            loop {
                scratch.clear();
                self.stream.readable().await?;
                match self.stream.try_read_buf(&mut scratch) {
                    Ok(0) => return Ok(()),
                    Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                    _ => {}
                }
            }
        };
        // A client that does not close its side in time is none of our concern.
        let _: Result<io::Result<()>, _> = timeout(LINGER, drain).await;
    }
}

/// Waits for room in the mailbox, then for bytes.
pub(super) async fn readable(stream: &TcpStream, shared: &Shared) -> io::Result<()> {
    shared.mailbox.room(Room::Work).await;
    // The task is the only one that reads: it needs no place in a list of those who wait.
    poll_fn(|context| stream.poll_read_ready(context)).await
}

/// Waits until the client has closed its side, without reading. Looks now and then: the bytes that are not
/// read would wake it for ever.
pub(super) async fn gone(stream: &TcpStream) -> io::Result<()> {
    loop {
        sleep(LOOK).await;
        if stream.ready(Interest::READABLE).await?.is_read_closed() {
            return Ok(());
        }
    }
}

/// Reads as much as there is room for. What does not fill the room was all there is: the stream is not readable any
/// more then, and nobody has to ask it a second time to hear so.
pub(super) fn read_once(stream: &TcpStream, room: &mut BytesMut) -> io::Result<usize> {
    let mut found = 0;
    let asked = stream.try_io(Interest::READABLE, || {
        found = stream.try_read_buf(room)?;
        if found > 0 && room.len() < room.capacity() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    match asked {
        Err(error) if found == 0 => Err(error),
        _ => Ok(found),
    }
}
