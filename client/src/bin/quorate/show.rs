//! Answers on the terminal: as nc shows them, or as JSON.

use std::io::Write as _;
use std::process::ExitCode;

use quorate_protocol::reply::Reply;
use quorate_protocol::resp::{self, Dialect};
use serde_json::{Map, Value, json};

use crate::args::Output;
use crate::trouble::Trouble;

/// Where everything is written.
#[derive(Debug)]
pub(crate) struct Screen {
    output: Output,
}

impl Screen {
    pub(crate) fn new(output: Output) -> Self {
        Self { output }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.output == Output::Json
    }

    /// An answer as it came.
    pub(crate) fn reply(&self, reply: &Reply) {
        if self.is_json() {
            return self.value(&json(reply));
        }
        let mut out = Vec::new();
        resp::encode(Dialect::Inline, reply, &mut out);
        while out.last().is_some_and(|byte| b"\r\n".contains(byte)) {
            out.pop();
        }
        out.push(b'\n');
        write_out(&out);
    }

    /// A line of text.
    pub(crate) fn line(&self, line: &str) {
        write_out(format!("{line}\n").as_bytes());
    }

    /// A JSON value, on a line.
    pub(crate) fn value(&self, value: &Value) {
        write_out(format!("{value}\n").as_bytes());
    }

    /// Rows below a heading, in columns.
    pub(crate) fn table(&self, rows: &[Vec<String>]) {
        write_out(columns(rows).as_bytes());
    }

    /// A remark that is no answer.
    pub(crate) fn note(&self, text: &str) {
        let _ = writeln!(std::io::stderr(), "quorate: {text}");
    }

    /// Tells what went wrong.
    pub(crate) fn complain(&self, trouble: &Trouble) -> ExitCode {
        if self.is_json() {
            let error = json!({ "code": trouble.code, "text": trouble.text, "exit": trouble.exit });
            let _ = writeln!(std::io::stderr(), "{}", json!({ "error": error }));
        } else {
            self.note(&trouble.to_string());
        }
        ExitCode::from(trouble.exit)
    }
}

/// Whoever reads may have gone (`quorate … | head`): that ends nothing but the output.
fn write_out(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(bytes).and_then(|()| out.flush());
}

fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |at: usize| rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..count).map(|at| width(at).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// An answer as JSON. Bytes that are no text become `{"hex": "…"}`.
pub(crate) fn json(reply: &Reply) -> Value {
    match reply {
        Reply::Nil => Value::Null,
        Reply::Status(word) => json!(word),
        Reply::Int(number) => json!(number),
        Reply::Bulk(bytes) => match core::str::from_utf8(bytes) {
            Ok(text) => json!(text),
            Err(_) => json!({ "hex": bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>() }),
        },
        Reply::Error(failure) => json!({ "error": { "code": failure.code.word(), "text": failure.text } }),
        Reply::Array(values) => values.iter().map(json).collect(),
        Reply::Map(pairs) => {
            let name = |reply: &Reply| match json(reply) {
                Value::String(text) => text,
                other => other.to_string(),
            };
            let fields: Map<String, Value> =
                pairs.iter().map(|(key, value)| (name(key), json(value))).collect();
            Value::Object(fields)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_as_json_lose_nothing() {
        let reply = Reply::Map(vec![
            (Reply::text("a"), Reply::Array(vec![Reply::Int(-1), Reply::Nil, Reply::OK])),
            (Reply::text("b"), Reply::Bulk(b"\xff\x00".as_slice().into())),
            (Reply::text("c"), Reply::text("t\"t")),
        ]);
        assert_eq!(json(&reply).to_string(), r#"{"a":[-1,null,"OK"],"b":{"hex":"ff00"},"c":"t\"t"}"#);
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows =
            [vec!["a".to_owned(), "b".to_owned()], vec!["long".to_owned(), "c".to_owned(), "d".to_owned()]];
        assert_eq!(columns(&rows), "a     b\nlong  c  d\n");
    }
}
