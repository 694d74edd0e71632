//! Frames on a connection between nodes: length, CRC32, payload.
//!
//! Invariant: nothing is reserved for a length before it was compared with its bound, and nothing behind the first
//! frame is swallowed by whoever reads only that.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quorate_protocol::limits::PEER_FRAME_MAX;
use quorate_protocol::wire::Wire;
use rustix::net::sockopt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::queue::Queue;
use crate::mailbox::{Mailbox, Room};

/// Frames are gathered into writes of about this size.
const WRITE_TARGET: usize = 256 << 10;
/// Milliseconds that bytes may stay unacknowledged, or unread in full buffers, before the other side counts as gone.
/// A node with too much to do reads nothing for a while; it is not to be cut for that.
const VANISHED_MS: u32 = 4000;
/// What stands before a payload.
const HEADER: usize = 8;

/// Appends a frame.
pub(super) fn put_frame(value: &impl Wire, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER]);
    value.put(out);
    let length = u32::try_from(out.len() - start - HEADER).expect("limits keep frames far below 4 GiB");
    let crc = crc32fast::hash(&out[start + HEADER..]);
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    out[start + 4..start + HEADER].copy_from_slice(&crc.to_le_bytes());
}

/// The length of a payload and its checksum.
fn read_header(header: [u8; HEADER], max: usize) -> Result<(usize, u32), &'static str> {
    let [l0, l1, l2, l3, c0, c1, c2, c3] = header;
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if length > max {
        return Err("a frame is over the limit");
    }
    Ok((length, u32::from_le_bytes([c0, c1, c2, c3])))
}

fn check(payload: Bytes, crc: u32) -> Result<Bytes, &'static str> {
    if crc32fast::hash(&payload) == crc { Ok(payload) } else { Err("a frame was damaged on the way") }
}

/// Takes a frame's payload off the buffer; an error when the bytes are no frame.
fn take_frame(buffer: &mut BytesMut, max: usize) -> Result<Option<Bytes>, &'static str> {
    let Some(header) = buffer.first_chunk::<HEADER>() else { return Ok(None) };
    let (length, crc) = read_header(*header, max)?;
    if buffer.len() < HEADER + length {
        return Ok(None);
    }
    let payload = buffer.split_to(HEADER + length).split_off(HEADER).freeze();
    check(payload, crc).map(Some)
}

/// Sends small frames at once, and ends a connection whose other side has vanished without a word: the network
/// is cut, or the machine is. Without that TCP would go on trying at longer and longer pauses, and be the last to find out
/// that the network is well again.
pub(super) fn attend(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_tcp_user_timeout(stream, VANISHED_MS)?;
    // Also where this side only listens.
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(2))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(1))?;
    Ok(())
}

/// Writes one frame.
pub(super) async fn write_frame(stream: &mut TcpStream, value: &impl Wire) -> std::io::Result<()> {
    let mut out = Vec::new();
    put_frame(value, &mut out);
    stream.write_all(&out).await
}

/// Why there is no first frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unread {
    /// The connection ended before it said anything.
    Silent,
    /// What it said is no frame.
    Garbage(String),
}

impl std::fmt::Display for Unread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Silent => f.write_str("it closed the connection"),
            Self::Garbage(why) => f.write_str(why),
        }
    }
}

/// Reads the payload of one frame, and not a byte more.
pub(super) async fn read_frame(stream: &mut TcpStream, max: usize) -> Result<Bytes, Unread> {
    let garbage = |why: &dyn ToString| Unread::Garbage(why.to_string());
    let mut header = [0; HEADER];
    match stream.read(&mut header[..1]).await {
        Ok(1..) => {}
        Ok(0) | Err(_) => return Err(Unread::Silent),
    }
    stream.read_exact(&mut header[1..]).await.map_err(|error| garbage(&error))?;
    let (length, crc) = read_header(header, max).map_err(|why| garbage(&why))?;
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await.map_err(|error| garbage(&error))?;
    check(payload.into(), crc).map_err(|why| garbage(&why))
}

/// Writes some frames.
pub(super) async fn write_all<T: Wire>(
    writer: &mut OwnedWriteHalf,
    frames: impl IntoIterator<Item = T>,
    out: &mut Vec<u8>,
) -> std::io::Result<()> {
    for frame in frames {
        put_frame(&frame, out);
        if out.len() >= WRITE_TARGET {
            writer.write_all(out).await?;
            out.clear();
        }
    }
    writer.write_all(out).await?;
    out.clear();
    out.shrink_to(WRITE_TARGET);
    Ok(())
}

/// Writes what comes into a queue, until it is closed or the connection fails.
pub(super) async fn write_frames<T: Wire>(
    writer: &mut OwnedWriteHalf,
    queue: &Queue<T>,
) -> std::io::Result<()> {
    let mut out = Vec::new();
    while let Some(frames) = queue.take().await {
        write_all(writer, frames, &mut out).await?;
    }
    Ok(())
}

/// Reads frames until the connection ends or `hear` has had enough; says why if the bytes are no frames. A mailbox
/// without room for what comes stops the reading.
pub(super) async fn read_frames(
    reader: &mut OwnedReadHalf,
    (mailbox, room): (&Mailbox, Room),
    mut hear: impl FnMut(Bytes) -> bool,
) -> Result<(), &'static str> {
    let mut buffer = BytesMut::new();
    loop {
        while let Some(frame) = take_frame(&mut buffer, PEER_FRAME_MAX)? {
            if !hear(frame) {
                return Ok(());
            }
        }
        mailbox.room(room).await;
        buffer.reserve(64 << 10);
        if !matches!(reader.read_buf(&mut buffer).await, Ok(1..)) {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_checked_and_bounded() {
        let mut out = Vec::new();
        put_frame(&7u64, &mut out);
        put_frame(&8u64, &mut out);
        let mut buffer = BytesMut::from(&out[..out.len() - 1]);
        assert_eq!(take_frame(&mut buffer, 100), Ok(Some(Bytes::copy_from_slice(&7u64.to_le_bytes()))));
        assert_eq!(take_frame(&mut buffer, 100), Ok(None), "the second one is not all there");
        assert!(take_frame(&mut BytesMut::from(&out[..]), 7).is_err(), "too long");
        out[9] ^= 1;
        assert!(take_frame(&mut BytesMut::from(&out[..]), 100).is_err(), "damaged");
    }
}
