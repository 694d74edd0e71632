//! The binary client protocol: frames with a fixed header.
//!
//! ```text
//!  byte 0     1        2     3      4..8       8..16           16..18  18..20    20..24   24..
//!      magic  version  kind  flags  length     correlation id  opcode  reserved  CRC32    body
//!      0xB5   1        u8    u8     u32 (body) u64             u16     0         u32
//! ```
//!
//! All integers little-endian. The CRC32 (IEEE) is over the header with its own four bytes zero, and the
//! body. docs/protocol.md draws the bodies and gives golden vectors.
//!
//! Invariant: nothing is allocated for a frame before its bytes are there, and a header that announces more
//! than the limits allow is refused before its body is read.

use bytes::{Bytes, BytesMut};
use nom::bytes::streaming::take;
use nom::number::streaming::{le_u8, le_u16, le_u32, le_u64};
use nom::{IResult, Parser};

use crate::id::{ClientId, ClientSeq};
use crate::limits::{ARGS_MAX, REQUEST_MAX};
use crate::reply::Reply;
use crate::wire::Wire;

/// The first byte of every frame, by which a binary connection is told from a text one.
pub const MAGIC: u8 = 0xB5;
/// The version of the header.
pub const VERSION: u8 = 1;
/// Bytes of a header.
pub const HEADER: usize = 24;
/// A reply's body at the most.
pub const BODY_MAX: usize = 4 * REQUEST_MAX;
/// A request's body at the most: its arguments, a length for each, session and AFTER.
pub const REQUEST_BODY_MAX: usize = REQUEST_MAX + 4 * ARGS_MAX + 64;

/// The request belongs to a client session.
const FLAG_SESSION: u8 = 1;
/// The request waits for the answer to another one.
const FLAG_AFTER: u8 = 2;

/// What a frame is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Client to server: a command.
    Request(RequestFrame),
    /// Server to client: an answer.
    Reply {
        /// The request's correlation id.
        correlation: u64,
        /// The answer.
        reply: Reply,
    },
    /// Server to client: a message of a subscription, an array like `[message, topic, id, attempt, body]`.
    Push {
        /// What is pushed.
        reply: Reply,
    },
    /// Server to client: why the connection is closed; nothing follows.
    Goodbye {
        /// An error.
        reply: Reply,
    },
}

/// A command in a frame.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RequestFrame {
    /// Chosen by the client; its answer carries it. Unique among the unanswered ones.
    pub correlation: u64,
    /// The command's number in the command table; 0: its name is the first argument.
    pub opcode: u16,
    /// Its place in a client session.
    pub client: Option<ClientSeq>,
    /// The correlation id of a request that must be answered before this one is looked at.
    pub after: Option<u64>,
    /// The arguments, without the name when `opcode` is not 0.
    pub args: Vec<Bytes>,
}

/// Why a connection that speaks frames is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameError {
    /// The first byte is not the magic one.
    Magic(u8),
    /// The version is not spoken here.
    Version(u8),
    /// The kind does not exist, or does not travel in this direction.
    Kind(u8),
    /// A flag is set that has no meaning.
    Flags(u8),
    /// A reserved field is not 0.
    Reserved(u16),
    /// The body is longer than is allowed.
    TooLong(u32),
    /// The checksum does not fit the bytes.
    Crc,
    /// The body is not what the header says.
    Body(&'static str),
}

impl core::fmt::Display for FrameError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Magic(byte) => write!(f, "frame begins with {byte:#04x} instead of {MAGIC:#04x}"),
            Self::Version(version) => {
                write!(f, "frame version {version} is not spoken here, send version {VERSION}")
            }
            Self::Kind(kind) => write!(f, "frame kind {kind} is not expected here"),
            Self::Flags(flags) => {
                write!(f, "frame flags {flags:#04x} have no meaning here, send 0 for unused ones")
            }
            Self::Reserved(value) => write!(f, "reserved field of the frame is {value}, send 0"),
            Self::TooLong(length) => {
                write!(
                    f,
                    "frame body of {length} bytes is over the limit: {REQUEST_BODY_MAX} of a request, {BODY_MAX} of a reply"
                )
            }
            Self::Crc => write!(f, "frame checksum does not match, the bytes were damaged on the way"),
            Self::Body(what) => write!(f, "frame body: {what}"),
        }
    }
}

impl std::error::Error for FrameError {}

struct Header {
    kind: u8,
    flags: u8,
    length: u32,
    correlation: u64,
    opcode: u16,
    crc: u32,
}

/// Reads the fixed fields behind magic and version, and the reserved one; `Header::read` judges them.
fn fixed_fields(input: &[u8]) -> IResult<&[u8], (Header, u16)> {
    let (input, (_magic, _version, kind, flags)) = (le_u8, le_u8, le_u8, le_u8).parse(input)?;
    let (input, (length, correlation)) = (le_u32, le_u64).parse(input)?;
    let (input, (opcode, reserved, crc)) = (le_u16, le_u16, le_u32).parse(input)?;
    Ok((input, (Header { kind, flags, length, correlation, opcode, crc }, reserved)))
}

impl Header {
    /// Reads a header once its 24 bytes are there; refuses as early as the first byte allows.
    fn read(input: &[u8]) -> Result<Option<Self>, FrameError> {
        match input {
            [magic, ..] if *magic != MAGIC => return Err(FrameError::Magic(*magic)),
            [_, version, ..] if *version != VERSION => return Err(FrameError::Version(*version)),
            _ => {}
        }
        let Ok((_, (header, reserved))) = fixed_fields(input) else { return Ok(None) };
        if reserved != 0 {
            return Err(FrameError::Reserved(reserved));
        }
        let (flags, length) = match header.kind {
            1 => (FLAG_SESSION | FLAG_AFTER, REQUEST_BODY_MAX),
            2..=4 => (0, BODY_MAX),
            kind => return Err(FrameError::Kind(kind)),
        };
        if header.flags & !flags != 0 {
            return Err(FrameError::Flags(header.flags));
        }
        if header.length as usize > length {
            return Err(FrameError::TooLong(header.length));
        }
        Ok(Some(header))
    }
}

/// Takes the next frame off the front of `buffer`; `None` when it is not all there yet.
///
/// # Errors
/// When the bytes are no frame: the connection cannot go on.
pub fn decode(buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
    let Some(header) = Header::read(buffer)? else { return Ok(None) };
    let total = HEADER + header.length as usize;
    if buffer.len() < total {
        return Ok(None);
    }
    let bytes = buffer.split_to(total).freeze();
    if crc_of(&bytes) != header.crc {
        return Err(FrameError::Crc);
    }
    let body = bytes.slice(HEADER..);
    let text = |body| Reply::from_wire(body).map_err(|malformed| FrameError::Body(malformed.0));
    let frame = match header.kind {
        1 => Frame::Request(request(&header, &body)?),
        2 => Frame::Reply { correlation: header.correlation, reply: text(body)? },
        3 => Frame::Push { reply: text(body)? },
        4 => Frame::Goodbye { reply: text(body)? },
        kind => return Err(FrameError::Kind(kind)),
    };
    Ok(Some(frame))
}

fn crc_of(frame: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&frame[..20]);
    hasher.update(&[0; 4]);
    hasher.update(&frame[HEADER..]);
    hasher.finalize()
}

fn session(input: &[u8]) -> IResult<&[u8], ClientSeq> {
    let (input, (client, seq, lowest)) = (le_u64, le_u64, le_u64).parse(input)?;
    Ok((input, ClientSeq { client: ClientId(client), seq, lowest }))
}

fn argument(input: &[u8]) -> IResult<&[u8], &[u8]> {
    let (input, length) = le_u32(input)?;
    take(length)(input)
}

fn request(header: &Header, body: &Bytes) -> Result<RequestFrame, FrameError> {
    let short = |_| FrameError::Body("ends before the last argument");
    let mut rest: &[u8] = body;
    let mut client = None;
    if header.flags & FLAG_SESSION != 0 {
        let (input, value) = session(rest).map_err(short)?;
        (rest, client) = (input, Some(value));
    }
    let mut after = None;
    if header.flags & FLAG_AFTER != 0 {
        let (input, value) = le_u64::<_, nom::error::Error<_>>(rest).map_err(short)?;
        (rest, after) = (input, Some(value));
    }
    let (mut rest, count) = le_u32::<_, nom::error::Error<_>>(rest).map_err(short)?;
    // Each argument takes at least its length field, so the count bounds what is reserved.
    if count as usize > ARGS_MAX || count as usize * 4 > rest.len() {
        return Err(FrameError::Body("announces more arguments than it holds"));
    }
    let mut args = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let (input, arg) = argument(rest).map_err(short)?;
        rest = input;
        args.push(body.slice_ref(arg));
    }
    if !rest.is_empty() {
        return Err(FrameError::Body("goes on after the last argument"));
    }
    if body.len() > REQUEST_MAX + 64 + 4 * args.len() {
        return Err(FrameError::Body("holds more bytes of arguments than a request may"));
    }
    Ok(RequestFrame { correlation: header.correlation, opcode: header.opcode, client, after, args })
}

impl Frame {
    /// Appends the frame's bytes to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.resize(start + HEADER, 0);
        let (kind, flags, correlation, opcode) = match self {
            Self::Request(request) => {
                let flags = if request.client.is_some() { FLAG_SESSION } else { 0 }
                    | if request.after.is_some() { FLAG_AFTER } else { 0 };
                (1, flags, request.correlation, request.opcode)
            }
            Self::Reply { correlation, .. } => (2, 0, *correlation, 0),
            Self::Push { .. } => (3, 0, 0, 0),
            Self::Goodbye { .. } => (4, 0, 0, 0),
        };
        match self {
            Self::Request(request) => {
                if let Some(ClientSeq { client, seq, lowest }) = request.client {
                    client.put(out);
                    seq.put(out);
                    lowest.put(out);
                }
                if let Some(after) = request.after {
                    after.put(out);
                }
                request.args.put(out);
            }
            Self::Reply { reply, .. } | Self::Push { reply } | Self::Goodbye { reply } => reply.put(out),
        }
        let length = u32::try_from(out.len() - start - HEADER).expect("limits keep bodies below 4 GiB");
        let frame = &mut out[start..];
        frame[0] = MAGIC;
        frame[1] = VERSION;
        frame[2] = kind;
        frame[3] = flags;
        frame[4..8].copy_from_slice(&length.to_le_bytes());
        frame[8..16].copy_from_slice(&correlation.to_le_bytes());
        frame[16..18].copy_from_slice(&opcode.to_le_bytes());
        let crc = crc_of(frame);
        frame[20..24].copy_from_slice(&crc.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<Frame> {
        vec![
            Frame::Request(RequestFrame {
                correlation: 7,
                opcode: 0,
                client: Some(ClientSeq { client: ClientId(9), seq: 3, lowest: 2 }),
                after: Some(6),
                args: vec!["SET".into(), "k".into(), Bytes::new()],
            }),
            Frame::Request(RequestFrame { correlation: 8, opcode: 40, ..RequestFrame::default() }),
            Frame::Reply { correlation: 7, reply: Reply::OK },
            Frame::Push { reply: Reply::Array(vec![Reply::Int(-1), Reply::Nil]) },
            Frame::Goodbye { reply: Reply::error(crate::reply::Code::Err, "the node stops") },
        ]
    }

    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut() {
        let mut bytes = Vec::new();
        sample().iter().for_each(|frame| frame.encode(&mut bytes));
        for step in 1..bytes.len() {
            let mut buffer = BytesMut::new();
            let mut frames = Vec::new();
            for piece in bytes.chunks(step) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = decode(&mut buffer).expect("all are good") {
                    frames.push(frame);
                }
            }
            assert_eq!(frames, sample(), "cut every {step} bytes");
        }
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        for frame in sample() {
            let mut good = Vec::new();
            frame.encode(&mut good);
            for bit in 0..good.len() * 8 {
                let mut bad = good.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                let decoded = decode(&mut BytesMut::from(&bad[..]));
                // A longer length only makes the decoder wait; the next bytes then fail the checksum.
                assert!(!matches!(decoded, Ok(Some(_))), "bit {bit} of {frame:?}");
            }
        }
    }

    #[test]
    fn a_lie_about_a_length_costs_nothing() {
        let mut bytes = Vec::new();
        Frame::Request(RequestFrame::default()).encode(&mut bytes);
        bytes[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(decode(&mut BytesMut::from(&bytes[..])), Err(FrameError::TooLong(u32::MAX)));
        let mut body = Vec::new();
        Frame::Request(RequestFrame { args: vec![Bytes::new()], ..RequestFrame::default() })
            .encode(&mut body);
        body[24..28].copy_from_slice(&1_000_000u32.to_le_bytes());
        let crc = crc_of(&body);
        body[20..24].copy_from_slice(&crc.to_le_bytes());
        assert!(matches!(decode(&mut BytesMut::from(&body[..])), Err(FrameError::Body(_))));
    }
}
