//! RESP2, RESP3 and inline text: requests in, replies out.
//!
//! Charter: `RequestDecoder` takes requests off the front of a read buffer, split anywhere; `encode` puts a
//! reply into a dialect. A connection may send either form of request at any time, as with Redis.
//!
//! Invariants:
//! - Decoding costs linear time however the bytes arrive: an element that is complete is taken off the
//!   buffer at once and never looked at again, and a line is never scanned twice.
//! - Nothing is reserved on the word of a length. Bounds: `limits::{ARGS_MAX, REQUEST_MAX, INLINE_MAX}`.
//!
//! Source: the Redis serialization protocol specification (RESP2, RESP3); inline quoting as redis-cli's.

use core::ops::Range;

use bytes::{Bytes, BytesMut};
use nom::character::streaming::{char, crlf, i64 as integer};
use nom::sequence::delimited;
use nom::{IResult, Parser};

use crate::limits::{ARGS_MAX, INLINE_MAX, NAME_MAX, REQUEST_MAX};
use crate::reply::Reply;
use crate::telnet::{self, Telnet};

/// The longest line that announces a length.
const LENGTH_LINE_MAX: usize = 32;

/// What an element takes besides its bytes: its place in a list that may be half empty.
const ELEMENT: usize = 2 * size_of::<Bytes>();

/// Why a text connection cannot go on. The wording is Redis' where Redis has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProtocolError {
    /// An array's length is no number, negative beyond -1, or too large.
    MultibulkLength,
    /// A bulk string's length is no number, negative, or too large.
    BulkLength,
    /// Something else stands where a bulk string should begin.
    ExpectedBulk(u8),
    /// A bulk string does not end with CR LF.
    BulkEnd,
    /// The arguments of one request are larger than `limits::REQUEST_MAX`.
    RequestTooLong,
    /// A line is longer than `limits::INLINE_MAX`.
    LineTooLong,
    /// A quote in a line is not closed.
    Quotes,
    /// An HTTP request: browsers must not be able to talk to this port.
    Http,
}

impl core::fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::MultibulkLength => write!(f, "Protocol error: invalid multibulk length"),
            Self::BulkLength => write!(f, "Protocol error: invalid bulk length"),
            Self::ExpectedBulk(byte) => {
                write!(f, "Protocol error: expected '$', got '{}'", byte.escape_ascii())
            }
            Self::BulkEnd => write!(f, "Protocol error: a bulk string does not end with CR LF"),
            Self::RequestTooLong => write!(f, "Protocol error: the request is over {REQUEST_MAX} bytes"),
            Self::LineTooLong => write!(f, "Protocol error: too big inline request"),
            Self::Quotes => write!(f, "Protocol error: unbalanced quotes in request"),
            Self::Http => write!(f, "Protocol error: this port does not speak HTTP"),
        }
    }
}

impl std::error::Error for ProtocolError {}

/// A request in words, and how it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextRequest {
    /// The verb and its arguments; never empty.
    pub args: Vec<Bytes>,
    /// It came as a line, not as an array.
    pub inline: bool,
}

/// An array of which some elements are still to come.
#[derive(Debug)]
struct Partial {
    missing: usize,
    args: Vec<Bytes>,
    bytes: usize,
    /// How many of them have memory of their own.
    detached: usize,
}

/// See the top of the file.
#[derive(Debug, Default)]
pub struct RequestDecoder {
    partial: Option<Partial>,
    /// Bytes of the buffer's front that hold no line end.
    scanned: usize,
    /// Whether those end within telnet's negotiation.
    telnet: Telnet,
}

/// A read of one key as clients send it, `*2 $3 GET $n key`, at the front of a buffer: where the key lies in it, and where
/// the request ends. None for everything else, and for what is not all there: the decoder knows better.
#[must_use]
pub fn peek_get(buffer: &[u8]) -> Option<(Range<usize>, usize)> {
    const HEAD: &[u8] = b"*2\r\n$3\r\nGET\r\n$";
    let head = buffer.get(..HEAD.len())?;
    if head != HEAD && !head.eq_ignore_ascii_case(HEAD) {
        return None;
    }
    let (mut at, mut length) = (HEAD.len(), 0);
    while let Some(digit @ b'0'..=b'9') = buffer.get(at) {
        length = 10 * length + usize::from(digit - b'0');
        at += 1;
        if length > NAME_MAX {
            return None;
        }
    }
    let key = at + 2..at + 2 + length;
    let ends = buffer.get(at..at + 2)? == b"\r\n" && buffer.get(key.end..key.end + 2)? == b"\r\n";
    (ends && length > 0).then(|| (key.clone(), key.end + 2))
}

impl RequestDecoder {
    /// Whether it stands between two requests.
    #[must_use]
    pub fn is_between(&self) -> bool {
        self.partial.is_none() && self.scanned == 0
    }

    /// Bytes that the elements take of an array of which some are still to come.
    #[must_use]
    pub fn held(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| partial.bytes + ELEMENT * partial.args.len())
    }

    /// Gives those memory of their own, but for `few`: they keep nothing alive that was in the buffer with them.
    pub fn detach(&mut self, few: usize) {
        let Some(partial) =
            self.partial.as_mut().filter(|partial| partial.args.len() > partial.detached + few)
        else {
            return;
        };
        partial.args[partial.detached..].iter_mut().for_each(|arg| *arg = Bytes::copy_from_slice(arg));
        partial.detached = partial.args.len();
    }

    /// Takes the next request off the front of `buffer`; `None` when it is not all there yet.
    ///
    /// # Errors
    /// When the bytes are no request: the connection cannot go on.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<TextRequest>, ProtocolError> {
        loop {
            if self.partial.is_some() {
                return self.elements(buffer);
            }
            match buffer.first() {
                None => return Ok(None),
                Some(b'*') => {
                    let Some(count) = length_line(b'*', buffer, ProtocolError::MultibulkLength)? else {
                        return Ok(None);
                    };
                    if count > ARGS_MAX as i64 {
                        return Err(ProtocolError::MultibulkLength);
                    }
                    // An empty or null array asks nothing.
                    if let Ok(missing @ 1..) = usize::try_from(count) {
                        self.partial = Some(Partial { missing, args: Vec::new(), bytes: 0, detached: 0 });
                    }
                }
                Some(_) => match self.line(buffer)? {
                    None => return Ok(None),
                    Some(args) if args.is_empty() => {}
                    Some(args) => return Ok(Some(TextRequest { args, inline: true })),
                },
            }
        }
    }

    fn elements(&mut self, buffer: &mut BytesMut) -> Result<Option<TextRequest>, ProtocolError> {
        let partial = self.partial.as_mut().expect("the caller has seen it");
        while partial.missing > 0 {
            let Some(&first) = buffer.first() else { return Ok(None) };
            if first != b'$' {
                return Err(ProtocolError::ExpectedBulk(first));
            }
            let Some((header, length)) = peek_length(b'$', buffer, ProtocolError::BulkLength)? else {
                return Ok(None);
            };
            let length = usize::try_from(length).map_err(|_| ProtocolError::BulkLength)?;
            if length > REQUEST_MAX {
                return Err(ProtocolError::BulkLength);
            }
            if partial.bytes + length > REQUEST_MAX {
                return Err(ProtocolError::RequestTooLong);
            }
            if buffer.len() < header + length + 2 {
                return Ok(None);
            }
            let mut element = buffer.split_to(header + length + 2);
            if &element[header + length..] != b"\r\n" {
                return Err(ProtocolError::BulkEnd);
            }
            element.truncate(header + length);
            let _ = element.split_to(header);
            partial.args.push(element.freeze());
            partial.bytes += length;
            partial.missing -= 1;
        }
        let args = self.partial.take().expect("it was just complete").args;
        Ok(Some(TextRequest { args, inline: false }))
    }

    fn line(&mut self, buffer: &mut BytesMut) -> Result<Option<Vec<Bytes>>, ProtocolError> {
        let Some(end) = self.telnet.find_end(buffer, self.scanned) else {
            self.scanned = buffer.len();
            return if buffer.len() > INLINE_MAX { Err(ProtocolError::LineTooLong) } else { Ok(None) };
        };
        let line = buffer.split_to(end + 1);
        self.scanned = 0;
        if line.len() > INLINE_MAX {
            return Err(ProtocolError::LineTooLong);
        }
        let line = telnet::without(&line[..end]);
        words(line.strip_suffix(b"\r").unwrap_or(&line))
    }
}

fn length(mark: u8) -> impl Fn(&[u8]) -> IResult<&[u8], i64> {
    move |input| delimited(char(char::from(mark)), integer, crlf).parse(input)
}

/// The length that a line like `$5\r\n` announces, and the bytes of the line.
fn peek_length(mark: u8, buffer: &[u8], error: ProtocolError) -> Result<Option<(usize, i64)>, ProtocolError> {
    match length(mark)(buffer) {
        Ok((rest, value)) => Ok(Some((buffer.len() - rest.len(), value))),
        Err(nom::Err::Incomplete(_)) if buffer.len() < LENGTH_LINE_MAX => Ok(None),
        Err(_) => Err(error),
    }
}

fn length_line(mark: u8, buffer: &mut BytesMut, error: ProtocolError) -> Result<Option<i64>, ProtocolError> {
    let Some((line, value)) = peek_length(mark, buffer, error)? else { return Ok(None) };
    let _ = buffer.split_to(line);
    Ok(Some(value))
}

/// Splits a line at blanks; `"…"` knows `\n \r \t \b \a \\ \" \xHH`, `'…'` knows `\'`.
fn words(line: &[u8]) -> Result<Option<Vec<Bytes>>, ProtocolError> {
    let upper: Vec<u8> = line.iter().take(5).map(u8::to_ascii_uppercase).collect();
    if upper == b"POST " || upper == b"HOST:" {
        return Err(ProtocolError::Http);
    }
    let mut args = Vec::new();
    let mut rest = line.trim_ascii_start();
    while !rest.is_empty() {
        let (word, tail) = word(rest)?;
        args.push(Bytes::from(word));
        rest = tail.trim_ascii_start();
    }
    Ok(Some(args))
}

fn word(mut rest: &[u8]) -> Result<(Vec<u8>, &[u8]), ProtocolError> {
    let mut word = Vec::new();
    while let [first, tail @ ..] = rest {
        match first {
            b'"' | b'\'' if word.is_empty() => {
                let (text, tail) = if *first == b'"' { double_quoted(tail)? } else { single_quoted(tail)? };
                // As in redis-cli, a closing quote ends the word.
                return match tail {
                    [next, ..] if !next.is_ascii_whitespace() => Err(ProtocolError::Quotes),
                    _ => Ok((text, tail)),
                };
            }
            byte if byte.is_ascii_whitespace() => break,
            byte => {
                word.push(*byte);
                rest = tail;
            }
        }
    }
    Ok((word, rest))
}

fn double_quoted(mut rest: &[u8]) -> Result<(Vec<u8>, &[u8]), ProtocolError> {
    let mut text = Vec::new();
    loop {
        rest = match rest {
            [] => return Err(ProtocolError::Quotes),
            [b'"', tail @ ..] => return Ok((text, tail)),
            [b'\\', b'x', a, b, tail @ ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => {
                text.push(16 * hex(*a) + hex(*b));
                tail
            }
            [b'\\', escaped, tail @ ..] => {
                text.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'a' => 7,
                    other => *other,
                });
                tail
            }
            [byte, tail @ ..] => {
                text.push(*byte);
                tail
            }
        }
    }
}

fn single_quoted(mut rest: &[u8]) -> Result<(Vec<u8>, &[u8]), ProtocolError> {
    let mut text = Vec::new();
    loop {
        rest = match rest {
            [] => return Err(ProtocolError::Quotes),
            [b'\'', tail @ ..] => return Ok((text, tail)),
            [b'\\', b'\'', tail @ ..] => {
                text.push(b'\'');
                tail
            }
            [byte, tail @ ..] => {
                text.push(*byte);
                tail
            }
        }
    }
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        _ => digit - b'A' + 10,
    }
}

/// How replies of a text connection are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dialect {
    /// For people: one value a line.
    #[default]
    Inline,
    /// RESP2.
    Resp2,
    /// RESP3.
    Resp3,
}

impl Dialect {
    /// Whether messages can be pushed between replies.
    #[must_use]
    pub fn has_pushes(self) -> bool {
        self != Self::Resp2
    }
}

/// Appends a reply to `out`.
pub fn encode(dialect: Dialect, reply: &Reply, out: &mut Vec<u8>) {
    match dialect {
        Dialect::Inline => {
            inline(reply, 0, out);
        }
        Dialect::Resp2 | Dialect::Resp3 => resp(dialect == Dialect::Resp3, reply, out),
    }
}

/// Appends the value of a key to `out`; none is nil.
pub fn encode_value(dialect: Dialect, value: Option<&Bytes>, out: &mut Vec<u8>) {
    match value {
        Some(value) if dialect != Dialect::Inline => {
            out.reserve(value.len() + 24);
            head(b'$', value.len(), out);
            out.extend_from_slice(value);
            out.extend_from_slice(b"\r\n");
        }
        Some(value) => encode(dialect, &Reply::Bulk(value.clone()), out),
        None => encode(dialect, &Reply::Nil, out),
    }
}

/// Appends a push (an array) to `out`.
pub fn encode_push(dialect: Dialect, values: &[Reply], out: &mut Vec<u8>) {
    match dialect {
        Dialect::Inline => {
            for (at, value) in values.iter().enumerate() {
                if at > 0 {
                    out.push(b' ');
                }
                scalar(value, out);
            }
            out.extend_from_slice(b"\r\n");
        }
        Dialect::Resp2 | Dialect::Resp3 => {
            head(if dialect == Dialect::Resp3 { b'>' } else { b'*' }, values.len(), out);
            values.iter().for_each(|value| resp(dialect == Dialect::Resp3, value, out));
        }
    }
}

fn head(mark: u8, number: usize, out: &mut Vec<u8>) {
    out.push(mark);
    decimal(number as u64, out);
    out.extend_from_slice(b"\r\n");
}

fn decimal(mut number: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(number % 10).expect("a digit");
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

fn signed(number: i64, out: &mut Vec<u8>) {
    if number < 0 {
        out.push(b'-');
    }
    decimal(number.unsigned_abs(), out);
}

/// An error's text never breaks its line.
fn one_line(text: &str, out: &mut Vec<u8>) {
    out.extend(text.bytes().map(|byte| if byte == b'\r' || byte == b'\n' { b' ' } else { byte }));
}

fn resp(three: bool, reply: &Reply, out: &mut Vec<u8>) {
    match reply {
        Reply::Nil => out.extend_from_slice(if three { b"_\r\n" } else { b"$-1\r\n" }),
        Reply::Status(word) => {
            out.push(b'+');
            out.extend_from_slice(word.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        Reply::Int(number) => {
            out.push(b':');
            signed(*number, out);
            out.extend_from_slice(b"\r\n");
        }
        Reply::Bulk(bytes) => {
            head(b'$', bytes.len(), out);
            out.extend_from_slice(bytes);
            out.extend_from_slice(b"\r\n");
        }
        Reply::Error(failure) => {
            out.push(b'-');
            out.extend_from_slice(failure.code.word().as_bytes());
            out.push(b' ');
            one_line(&failure.text, out);
            out.extend_from_slice(b"\r\n");
        }
        Reply::Array(values) => {
            head(b'*', values.len(), out);
            values.iter().for_each(|value| resp(three, value, out));
        }
        Reply::Map(pairs) => {
            if three {
                head(b'%', pairs.len(), out);
            } else {
                head(b'*', 2 * pairs.len(), out);
            }
            for (name, value) in pairs {
                resp(three, name, out);
                resp(three, value, out);
            }
        }
    }
}

/// A value that fits a line, without its end.
fn scalar(reply: &Reply, out: &mut Vec<u8>) {
    match reply {
        Reply::Nil => out.extend_from_slice(b"(nil)"),
        Reply::Status(word) => out.extend_from_slice(word.as_bytes()),
        Reply::Int(number) => signed(*number, out),
        Reply::Bulk(bytes) => out.extend_from_slice(bytes),
        Reply::Error(failure) => {
            out.push(b'-');
            out.extend_from_slice(failure.code.word().as_bytes());
            out.push(b' ');
            one_line(&failure.text, out);
        }
        Reply::Array(_) | Reply::Map(_) => out.extend_from_slice(b"(empty)"),
    }
}

/// Writes a reply for people. Nested values stand below their number or name, indented; arrays of single
/// values within arrays stand on one line.
fn inline(reply: &Reply, depth: usize, out: &mut Vec<u8>) {
    match reply {
        Reply::Array(values) if !values.is_empty() => {
            for (at, value) in values.iter().enumerate() {
                indent(depth, out);
                decimal(at as u64 + 1, out);
                out.push(b')');
                nested(value, depth, out);
            }
        }
        Reply::Map(pairs) if !pairs.is_empty() => {
            for (name, value) in pairs {
                indent(depth, out);
                scalar(name, out);
                out.push(b':');
                nested(value, depth, out);
            }
        }
        other => {
            indent(depth, out);
            scalar(other, out);
            out.extend_from_slice(b"\r\n");
        }
    }
}

fn nested(value: &Reply, depth: usize, out: &mut Vec<u8>) {
    match value {
        Reply::Array(values) if !values.is_empty() && values.iter().all(is_scalar) => {
            for value in values {
                out.push(b' ');
                scalar(value, out);
            }
            out.extend_from_slice(b"\r\n");
        }
        Reply::Array(values) if !values.is_empty() => {
            out.extend_from_slice(b"\r\n");
            inline(value, depth + 1, out);
        }
        Reply::Map(pairs) if !pairs.is_empty() => {
            out.extend_from_slice(b"\r\n");
            inline(value, depth + 1, out);
        }
        other => {
            out.push(b' ');
            scalar(other, out);
            out.extend_from_slice(b"\r\n");
        }
    }
}

fn is_scalar(reply: &Reply) -> bool {
    !matches!(reply, Reply::Array(_) | Reply::Map(_))
}

fn indent(depth: usize, out: &mut Vec<u8>) {
    out.resize(out.len() + 3 * depth, b' ');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8], step: usize) -> Result<Vec<TextRequest>, ProtocolError> {
        let mut decoder = RequestDecoder::default();
        let mut buffer = BytesMut::new();
        let mut requests = Vec::new();
        for piece in bytes.chunks(step) {
            buffer.extend_from_slice(piece);
            while let Some(request) = decoder.decode(&mut buffer)? {
                requests.push(request);
            }
        }
        assert!(buffer.is_empty(), "nothing is left over");
        Ok(requests)
    }

    #[test]
    fn a_plain_get_is_seen_without_being_taken_apart() {
        let whole = b"*2\r\n$3\r\ngEt\r\n$5\r\nk\r\nxy\r\nrest";
        assert_eq!(peek_get(whole), Some((17..22, 24)));
        for end in 0..24 {
            assert_eq!(peek_get(&whole[..end]), None, "{end} bytes");
        }
        for other in [
            "*2\r\n$3\r\nDEL\r\n$1\r\nk\r\n",
            "*3\r\n$3\r\nGET\r\n$1\r\nk\r\n",
            "*2\r\n$3\r\nGET\r\n$0\r\n\r\n",
            "*2\r\n$3\r\nGET\r\n$-1\r\nk\r\n",
            "*2\r\n$3\r\nGET\r\n$2\r\nkkk\r\n",
            "*2\r\n$3\r\nGET\r\n$1025\r\nk\r\n",
            "*2\r\n$3\r\nGET\r\n$99999999999999999999999\r\nk\r\n",
            "GET k\r\n",
        ] {
            assert_eq!(peek_get(other.as_bytes()), None, "{other:?}");
        }
    }

    fn text(request: &TextRequest) -> Vec<String> {
        request.args.iter().map(|arg| arg.escape_ascii().to_string()).collect()
    }

    #[test]
    fn requests_come_out_however_they_are_cut() {
        let bytes =
            b"PING\r\n*2\r\n$3\r\nGET\r\n$1\r\nk\r\n*0\r\n\r\n*-1\r\nset \"a b\" 'c\\'d' \"\\x00\\n\"\n";
        for step in 1..bytes.len() {
            let requests = all(bytes, step).expect("all are good");
            let texts: Vec<_> = requests.iter().map(text).collect();
            assert_eq!(texts, [vec!["PING"], vec!["GET", "k"], vec!["set", "a b", "c\\'d", "\\x00\\n"]]);
            assert_eq!(requests.iter().map(|r| r.inline).collect::<Vec<_>>(), [true, false, true]);
        }
    }

    #[test]
    fn what_is_no_request_says_why() {
        let cases: [(&[u8], ProtocolError); 12] = [
            (b"*x\r\n", ProtocolError::MultibulkLength),
            (b"*9999999999\r\n", ProtocolError::MultibulkLength),
            (b"*1\r\n!1\r\n", ProtocolError::ExpectedBulk(b'!')),
            (b"*1\r\n$-1\r\n", ProtocolError::BulkLength),
            (b"*1\r\n$99999999999\r\n", ProtocolError::BulkLength),
            (b"*1\r\n$x\r\n", ProtocolError::BulkLength),
            (b"*1\r\n$1\r\nabc", ProtocolError::BulkEnd),
            (b"set \"a\n", ProtocolError::Quotes),
            (b"set 'a\n", ProtocolError::Quotes),
            (b"set \"a\"b\n", ProtocolError::Quotes),
            (b"POST / HTTP/1.1\r\n", ProtocolError::Http),
            (b"Host: localhost\r\n", ProtocolError::Http),
        ];
        for (bytes, error) in cases {
            assert_eq!(all(bytes, 1), Err(error), "{}", bytes.escape_ascii());
        }
        assert_eq!(all(&[b'a'; INLINE_MAX + 1], 4096), Err(ProtocolError::LineTooLong));
        assert_eq!(all(&[b"*".as_slice(), &[b'1'; 40]].concat(), 1), Err(ProtocolError::MultibulkLength));
    }

    #[test]
    fn telnet_negotiation_is_not_text_however_it_is_cut() {
        let ten_rows = b"\xff\xfa\x1f\x00\x50\x00\x0a\xff\xf0";
        let with_iac = b"\xff\xfa\x1f\xff\xff\xff\xff\xff\xf0";
        let bytes = [
            &b"\xff\xfd\x03\xff\xfb\x18PING\r\n\xff\xf4\r\n"[..],
            ten_rows,
            b"PI",
            with_iac,
            b"NG\r",
            b"\xff\xf1\nECHO a\xff\xffb\n\xff\xfb\x0aECHO \xffc\xff\r\n",
        ]
        .concat();
        for step in 1..bytes.len() {
            let requests = all(&bytes, step).expect("good");
            let texts: Vec<_> = requests.iter().map(text).collect();
            assert_eq!(texts, [vec!["PING"], vec!["PING"], vec!["ECHO", "a\\xffb"], vec!["ECHO", "c"]]);
        }
    }

    #[test]
    fn negotiation_without_an_end_is_no_longer_than_a_line() {
        for step in [1000, 1 << 20] {
            let endless = [&b"\xff\xfa"[..], &[b'\n'; INLINE_MAX]].concat();
            assert_eq!(all(&endless, step), Err(ProtocolError::LineTooLong), "{step} at a time");
        }
    }

    #[test]
    fn a_large_array_byte_by_byte_costs_linear_work() {
        let mut bytes = b"*100000\r\n".to_vec();
        (0..100_000).for_each(|_| bytes.extend_from_slice(b"$1\r\nx\r\n"));
        let mut decoder = RequestDecoder::default();
        let mut buffer = BytesMut::new();
        let mut looked_at = 0;
        let mut done = None;
        for byte in bytes {
            buffer.extend_from_slice(&[byte]);
            looked_at += buffer.len();
            if let Some(request) = decoder.decode(&mut buffer).expect("good") {
                done = Some(request);
            }
        }
        assert_eq!(done.expect("it is complete").args.len(), 100_000);
        assert!(looked_at < 10_000_000, "what waits in the buffer stays small: {looked_at}");
    }

    #[test]
    fn replies_in_every_dialect() {
        let reply = Reply::Array(vec![
            Reply::Int(-7),
            Reply::Nil,
            Reply::Array(vec![Reply::text("a"), Reply::Int(1)]),
            Reply::Map(vec![(Reply::text("name"), Reply::OK)]),
            Reply::error(crate::reply::Code::Err, "two\r\nlines"),
            Reply::Array(vec![]),
        ]);
        let written = |dialect| {
            let mut out = Vec::new();
            encode(dialect, &reply, &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            written(Dialect::Resp2),
            "*6\r\n:-7\r\n$-1\r\n*2\r\n$1\r\na\r\n:1\r\n*2\r\n$4\r\nname\r\n+OK\r\n-ERR two  lines\r\n*0\r\n"
        );
        assert_eq!(
            written(Dialect::Resp3),
            "*6\r\n:-7\r\n_\r\n*2\r\n$1\r\na\r\n:1\r\n%1\r\n$4\r\nname\r\n+OK\r\n-ERR two  lines\r\n*0\r\n"
        );
        assert_eq!(
            written(Dialect::Inline),
            "1) -7\r\n2) (nil)\r\n3) a 1\r\n4)\r\n   name: OK\r\n5) -ERR two  lines\r\n6) (empty)\r\n"
        );
    }
}
