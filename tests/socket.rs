//! A client's socket, for tests that say themselves what goes over it.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quorate_protocol::command::find;
use quorate_protocol::frame::{self, Frame, RequestFrame};
use quorate_protocol::reply::Reply;

/// How long a node may take to answer or to close.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection of a client that sends what it is told to.
#[derive(Debug)]
pub struct Socket {
    pub stream: TcpStream,
    buffer: BytesMut,
}

impl Socket {
    /// Connects.
    ///
    /// # Panics
    /// When nobody listens.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the node listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_nodelay(true).expect("no delay");
        Self { stream, buffer: BytesMut::new() }
    }

    /// Sends all of it.
    ///
    /// # Panics
    /// When the node has closed the connection.
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the connection stands");
    }

    /// Sends what the node may refuse to read to its end.
    pub fn try_send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Reads more; false at the end.
    ///
    /// # Panics
    /// When nothing comes.
    pub fn more(&mut self) -> bool {
        let mut piece = [0; 64 << 10];
        match self.stream.read(&mut piece) {
            Ok(count) => {
                self.buffer.extend_from_slice(&piece[..count]);
                count > 0
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
            Err(error) => panic!("the node neither answers nor closes: {error}"),
        }
    }

    /// The next line.
    ///
    /// # Panics
    /// When nothing comes, or the end.
    pub fn line(&mut self) -> String {
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                return String::from_utf8_lossy(&line).trim_end().to_owned();
            }
            assert!(self.more(), "closed instead of a line");
        }
    }

    /// Everything up to the end.
    ///
    /// # Panics
    /// When the end does not come.
    pub fn rest(&mut self) -> String {
        while self.more() {}
        String::from_utf8_lossy(&self.buffer).into_owned()
    }

    /// Exactly these bytes come next.
    ///
    /// # Panics
    /// When others come.
    pub fn expect(&mut self, bytes: &[u8]) {
        while self.buffer.len() < bytes.len() {
            assert!(self.more(), "closed instead of {}", bytes.escape_ascii());
        }
        let got = self.buffer.split_to(bytes.len());
        assert!(got == bytes, "{} instead of {}", got.escape_ascii(), bytes.escape_ascii());
    }

    /// Sends a request.
    ///
    /// # Panics
    /// When the node has closed the connection.
    pub fn send_frame(&mut self, frame: RequestFrame) {
        self.send(&encoded(frame));
    }

    /// The next frame; none at the end.
    ///
    /// # Panics
    /// When nothing comes, or no frame.
    pub fn frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = frame::decode(&mut self.buffer).expect("nodes send good frames") {
                return Some(frame);
            }
            if !self.more() {
                return None;
            }
        }
    }

    /// The next frame, which answers this request.
    ///
    /// # Panics
    /// When something else comes.
    pub fn reply(&mut self) -> (u64, Reply) {
        match self.frame() {
            Some(Frame::Reply { correlation, reply }) => (correlation, reply),
            other => panic!("{other:?} instead of a reply"),
        }
    }

    /// Why the node closes the connection.
    ///
    /// # Panics
    /// When none comes.
    pub fn goodbye(&mut self) -> String {
        loop {
            match self.frame() {
                Some(Frame::Goodbye { reply }) => {
                    assert!(self.frame().is_none(), "nothing follows a goodbye");
                    return reply.failure().expect("an error").text.clone();
                }
                Some(_) => {}
                None => panic!("closed without a goodbye"),
            }
        }
    }

    /// One request and its answer.
    ///
    /// # Panics
    /// When something else comes.
    pub fn ask(&mut self, frame: RequestFrame) -> Reply {
        let correlation = frame.correlation;
        self.send_frame(frame);
        let (answered, reply) = self.reply();
        assert_eq!(answered, correlation);
        reply
    }
}

/// A request as it travels.
#[must_use]
pub fn encoded(frame: RequestFrame) -> Vec<u8> {
    let mut out = Vec::new();
    Frame::Request(frame).encode(&mut out);
    out
}

/// A request from a line: the verb by its number.
///
/// # Panics
/// When there is no such verb.
#[must_use]
pub fn request(correlation: u64, line: &str) -> RequestFrame {
    let mut words = line.split(' ');
    let opcode = find(words.next().expect("a verb").as_bytes()).expect("a verb of the table").number;
    let args = words.map(|word| Bytes::copy_from_slice(word.as_bytes())).collect();
    RequestFrame { correlation, opcode, args, ..RequestFrame::default() }
}
