//! Commands: what a client's words mean.
//!
//! Charter: `table.rs` is the one command table; everything that speaks of commands is made from it: parsing
//! (`words.rs`, `parse.rs`, `keys.rs`), arity errors, HELP, COMMAND and docs/commands.md (`docs.rs`). Binary frames may name a
//! command by its number in the table.
//!
//! Invariant: an option or a verb that is not built is refused with a sentence; nothing is ever ignored.

mod docs;
mod keys;
mod parse;
mod table;
mod tracking;
mod words;

use bytes::Bytes;

pub use docs::{command_count, command_docs, command_info, command_list, help, markdown};
pub use table::{Family, Flags, Resend, Spec, TABLE, find, find_number};
pub use tracking::{Track, Tracks};
pub use words::Words;

use crate::id::ClientId;
use crate::limits::REQUEST_MAX;
use crate::op::Op;
use crate::peer::SnapshotAt;
use crate::reply::{Code, Failure};

/// A question about the node's own view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeAsk {
    /// STATUS
    Status,
    /// MEMBERS
    Members,
    /// LEADER
    Leader,
    /// PARTITIONS
    Partitions,
    /// SNAPSHOT
    Snapshot,
    /// SNAPSHOT LIST
    Snapshots,
    /// SNAPSHOT READ group index offset
    SnapshotRead(SnapshotAt),
}

/// What the connection answers, or has changed about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnAsk {
    /// PING [message]
    Ping(Option<Bytes>),
    /// ECHO message
    Echo(Bytes),
    /// HELLO [2|3] [AUTH …] [SETNAME name]
    Hello {
        /// The protocol version, 2 or 3.
        version: Option<u8>,
        /// Whether credentials were given.
        auth: bool,
        /// The connection's name.
        name: Option<Bytes>,
    },
    /// AUTH …
    Auth,
    /// CLIENT ID
    ClientId,
    /// CLIENT GETNAME
    ClientGetName,
    /// CLIENT SETNAME name
    ClientSetName(Bytes),
    /// CLIENT SETINFO attribute value
    ClientSetInfo(Bytes, Bytes),
    /// CLIENT INFO
    ClientInfo,
    /// CLIENT LIST
    ClientList,
    /// CLIENT TRACKING, CACHING, TRACKINGINFO, GETREDIR
    Track(Track),
    /// CONFIG GET pattern …
    ConfigGet(Vec<Bytes>),
    /// INFO [section …]
    Info(Vec<Bytes>),
    /// COMMAND
    Command,
    /// COMMAND COUNT
    CommandCount,
    /// COMMAND LIST
    CommandList,
    /// COMMAND INFO [name …]
    CommandInfo(Vec<Bytes>),
    /// COMMAND DOCS [name …]
    CommandDocs(Vec<Bytes>),
    /// HELP [verb]
    Help(Option<Bytes>),
    /// SELECT 0
    Select,
    /// TIME
    Time,
    /// MULTI
    Multi,
    /// EXEC
    Exec,
    /// DISCARD
    Discard,
    /// WATCH key …
    Watch(Vec<Bytes>),
    /// UNWATCH
    Unwatch,
    /// RESET
    Reset,
    /// QUIT
    Quit,
    /// SESSION OPEN
    SessionOpen,
    /// SESSION RESUME id
    SessionResume(ClientId),
}

/// A command, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// The cluster decides.
    Op(Op),
    /// The node tells what it sees.
    Node(NodeAsk),
    /// The connection answers.
    Connection(ConnAsk),
}

/// Understands a request: the verb and its arguments.
///
/// # Errors
/// An error reply that says what is wrong and what to send instead.
pub fn parse(args: &[Bytes]) -> Result<Command, Failure> {
    let Some((verb, rest)) = args.split_first() else {
        return Err(failure(Code::Err, "an empty request; try HELP"));
    };
    let Some(spec) = find(verb) else { return Err(unknown(verb, rest)) };
    parse_as(spec, rest)
}

/// Understands the arguments of a known command.
///
/// # Errors
/// As `parse`.
pub fn parse_as(spec: &'static Spec, rest: &[Bytes]) -> Result<Command, Failure> {
    let words = rest.len() + 1;
    let fits =
        usize::try_from(spec.arity).map_or_else(|_| words >= spec.arity.unsigned_abs(), |n| words == n);
    if !fits {
        let name = spec.name.to_ascii_lowercase();
        let text = format!("wrong number of arguments for '{name}' command; usage: {}", spec.syntax);
        return Err(failure(Code::Err, text));
    }
    debug_assert!(
        rest.iter().map(Bytes::len).sum::<usize>() <= 4 * REQUEST_MAX,
        "the decoders bound requests"
    );
    let mut words = Words::new(spec, rest);
    let command = (spec.parse)(&mut words)?;
    words.end()?;
    Ok(command)
}

fn failure(code: Code, text: impl Into<String>) -> Failure {
    Failure { code, text: text.into() }
}

/// How many bytes of an unknown command's words an error repeats.
const REPEATED: usize = 128;

fn unknown(verb: &Bytes, rest: &[Bytes]) -> Failure {
    let shown = |bytes: &Bytes| bytes[..bytes.len().min(REPEATED)].escape_ascii().to_string();
    let name = shown(verb);
    if let Some(why) = table::not_built(verb) {
        return failure(Code::Err, format!("{} is not built yet; {why}", name.to_ascii_uppercase()));
    }
    let mut text = format!("unknown command '{name}', with args beginning with: ");
    for arg in rest {
        if text.len() > 2 * REPEATED {
            break;
        }
        text.push_str(&format!("'{}' ", shown(arg)));
    }
    failure(Code::Err, text)
}

#[cfg(test)]
mod tests;
