//! The golden vectors in `tests/data`, read in both directions, and the numbers in docs/protocol.md.
//!
//! The vectors were made by an implementation of its own (a script in another language, after
//! docs/protocol.md), so they hold this one to the document.

use bytes::{Bytes, BytesMut};
use quorate_protocol::command::{TABLE, find_number};
use quorate_protocol::frame::{self, Frame, RequestFrame};
use quorate_protocol::id::{ClientId, ClientSeq};
use quorate_protocol::reply::{Code, Failure, Reply};
use quorate_protocol::resp::{self, Dialect, RequestDecoder, TextRequest};
use quorate_protocol::wire::Wire;
use serde_json::Value;

fn data(name: &str) -> Value {
    let path = format!("{}/data/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).expect("the vectors are there");
    serde_json::from_str(&text).expect("the vectors are JSON")
}

fn rows<'a>(data: &'a Value, what: &str) -> &'a [Value] {
    data[what].as_array().expect("a list of vectors")
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("{field} of {value}"))
}

fn unhex(hex: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal digits");
    (0..hex.len()).step_by(2).map(byte).collect()
}

/// A string, or `{"hex": …}` for what is no UTF-8.
fn bytes(value: &Value) -> Bytes {
    match value {
        Value::String(text) => Bytes::from(text.clone()),
        other => unhex(text(other, "hex")).into(),
    }
}

fn list(value: &Value) -> Vec<Bytes> {
    value.as_array().expect("a list").iter().map(bytes).collect()
}

fn reply(value: &Value) -> Reply {
    match value {
        Value::Null => Reply::Nil,
        Value::Number(n) => Reply::Int(n.as_i64().expect("a signed number")),
        Value::Array(values) => Reply::Array(values.iter().map(reply).collect()),
        Value::Object(fields) if fields.contains_key("map") => {
            let pairs = value["map"].as_array().expect("pairs");
            Reply::Map(pairs.iter().map(|pair| (reply(&pair[0]), reply(&pair[1]))).collect())
        }
        Value::Object(fields) if fields.contains_key("status") => match text(value, "status") {
            "OK" => Reply::OK,
            "PONG" => Reply::Status("PONG"),
            other => panic!("no status {other}"),
        },
        Value::Object(fields) if fields.contains_key("error") => {
            let word = value["error"][0].as_str().expect("a code");
            let text = value["error"][1].as_str().expect("a sentence").to_owned();
            let code = (0..=u8::MAX)
                .filter_map(|tag| Code::from_wire(vec![tag].into()).ok())
                .find(|code| code.word() == word);
            Reply::Error(Box::new(Failure { code: code.expect("a code of ours"), text }))
        }
        other => Reply::Bulk(bytes(other)),
    }
}

fn meaning(row: &Value) -> Frame {
    let number = |value: &Value| value.as_u64().expect("a number");
    match text(row, "kind") {
        "request" => Frame::Request(RequestFrame {
            correlation: number(&row["correlation"]),
            opcode: u16::try_from(number(&row["opcode"])).expect("a command's number"),
            client: row.get("session").map(|session| ClientSeq {
                client: ClientId(number(&session["client"])),
                seq: number(&session["seq"]),
                lowest: number(&session["lowest"]),
            }),
            after: row.get("after").map(number),
            args: list(&row["args"]),
        }),
        "reply" => Frame::Reply { correlation: number(&row["correlation"]), reply: reply(&row["reply"]) },
        "push" => Frame::Push { reply: reply(&row["reply"]) },
        "goodbye" => Frame::Goodbye { reply: reply(&row["reply"]) },
        other => panic!("no kind {other}"),
    }
}

#[test]
fn frames_mean_what_they_should_in_both_directions() {
    let data = data("frames.json");
    for row in rows(&data, "frames") {
        let golden = unhex(text(row, "hex"));
        let frame = meaning(row);
        let mut encoded = Vec::new();
        frame.encode(&mut encoded);
        assert_eq!(encoded, golden, "{row}");
        let mut buffer = BytesMut::from(&golden[..]);
        assert_eq!(frame::decode(&mut buffer), Ok(Some(frame)), "{row}");
        assert!(buffer.is_empty(), "{row}");
        for cut in 0..golden.len() {
            assert_eq!(frame::decode(&mut BytesMut::from(&golden[..cut])), Ok(None), "{row} cut at {cut}");
        }
    }
}

#[test]
fn bad_frames_are_refused_with_the_sentence_that_is_promised() {
    let data = data("frames.json");
    for row in rows(&data, "refused") {
        let mut buffer = BytesMut::from(&unhex(text(row, "hex"))[..]);
        let error = frame::decode(&mut buffer).expect_err("it is refused").to_string();
        assert_eq!(error, text(row, "error"), "{row}");
    }
}

fn decode_text(input: &Bytes, step: usize) -> Result<Vec<TextRequest>, resp::ProtocolError> {
    let (mut decoder, mut buffer) = (RequestDecoder::default(), BytesMut::new());
    let mut requests = Vec::new();
    for piece in input.chunks(step) {
        buffer.extend_from_slice(piece);
        while let Some(request) = decoder.decode(&mut buffer)? {
            requests.push(request);
        }
    }
    Ok(requests)
}

#[test]
fn text_requests_are_understood_however_they_are_cut() {
    let data = data("text.json");
    for row in rows(&data, "requests") {
        let input = bytes(&row["bytes"]);
        let expected = TextRequest { args: list(&row["args"]), inline: row["inline"] == true };
        for step in 1..=input.len() {
            assert_eq!(decode_text(&input, step), Ok(vec![expected.clone()]), "{row} cut every {step}");
        }
    }
    for row in rows(&data, "refused") {
        let input = bytes(&row["bytes"]);
        for step in 1..=input.len() {
            let error = decode_text(&input, step).expect_err("it is refused").to_string();
            assert_eq!(error, text(row, "error"), "{row} cut every {step}");
        }
    }
}

#[test]
fn replies_are_written_in_every_dialect() {
    let data = data("text.json");
    for row in rows(&data, "replies") {
        let reply = reply(&row["reply"]);
        for (dialect, name) in
            [(Dialect::Inline, "inline"), (Dialect::Resp2, "resp2"), (Dialect::Resp3, "resp3")]
        {
            let mut out = Vec::new();
            resp::encode(dialect, &reply, &mut out);
            assert_eq!(String::from_utf8_lossy(&out), text(row, name), "{name} of {row}");
        }
        assert_eq!(reply.to_wire(), unhex(text(row, "binary")), "{row}");
        assert_eq!(Reply::from_wire(unhex(text(row, "binary")).into()), Ok(reply), "{row}");
    }
    for row in rows(&data, "pushes") {
        let values: Vec<Reply> = row["values"].as_array().expect("values").iter().map(reply).collect();
        for (dialect, name) in [(Dialect::Inline, "inline"), (Dialect::Resp3, "resp3")] {
            let mut out = Vec::new();
            resp::encode_push(dialect, &values, &mut out);
            assert_eq!(String::from_utf8_lossy(&out), text(row, name), "{name} of {row}");
        }
    }
}

const BEGIN: &str =
    "<!-- numbers: written by QUORATE_BLESS=1 cargo test -p quorate-tests --test vectors -->\n";
const END: &str = "<!-- end of numbers -->\n";

/// The tables of docs/protocol.md that come from the code.
fn numbers() -> String {
    use std::fmt::Write as _;
    let mut specs: Vec<_> = TABLE.iter().collect();
    specs.sort_by_key(|spec| spec.number);
    let mut out = "| opcode | command | sent again without a session |\n|---|---|---|\n".to_owned();
    for spec in specs {
        assert_eq!(find_number(spec.number).map(|found| found.name), Some(spec.name));
        let _ = writeln!(out, "| {} | `{}` | {} |", spec.number, spec.name, spec.resend.text());
    }
    out.push_str("\n| code | word | safe to send again |\n|---|---|---|\n");
    for tag in 0..=u8::MAX {
        let Ok(code) = Code::from_wire(vec![tag].into()) else { continue };
        let again = match code {
            Code::InDoubt => "in the session; otherwise read first",
            code if code.never_proposed() => "yes: never executed",
            _ => "as the sentence says; not executed",
        };
        let _ = writeln!(out, "| {tag} | `{}` | {again} |", code.word());
    }
    out
}

#[test]
fn the_numbers_in_the_document_are_those_of_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/protocol.md");
    let document = std::fs::read_to_string(path).expect("docs/protocol.md");
    let (before, rest) = document.split_once(BEGIN).expect("the tables have a beginning");
    let (_, after) = rest.split_once(END).expect("the tables have an end");
    let whole = format!("{before}{BEGIN}\n{}\n{END}{after}", numbers());
    if std::env::var_os("QUORATE_BLESS").is_some() {
        std::fs::write(path, &whole).expect("docs can be written");
    }
    assert!(
        document == whole || std::env::var_os("QUORATE_BLESS").is_some(),
        "QUORATE_BLESS=1 cargo test -p quorate-tests --test vectors writes the tables anew"
    );
}
