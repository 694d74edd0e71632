//! What a connection answers by itself: PING, HELLO, CLIENT, CONFIG, INFO, COMMAND, HELP, TIME.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use quorate_engine::engine::Counts;
use quorate_protocol::command::{ConnAsk, command_count, command_docs, command_info, command_list, help};
use quorate_protocol::reply::{Code, Reply};
use quorate_protocol::resp::Dialect;

use crate::client_memory::ClientMemory;
use crate::clock;

/// The Redis version whose behaviour clients may expect.
const REDIS_VERSION: &str = "7.4.0";

/// What is known of a client.
#[derive(Debug, Clone)]
struct ClientRow {
    address: SocketAddr,
    since: u64,
    name: Bytes,
    library: Bytes,
    version: Bytes,
    resp: u8,
}

/// All clients of the node, and what it says of itself.
#[derive(Debug)]
pub struct Desk {
    clients: Mutex<BTreeMap<u64, ClientRow>>,
    /// Name and value of every setting.
    settings: Vec<(String, String)>,
    node: u64,
    port: u16,
    started: u64,
    counts: Arc<Mutex<Counts>>,
    memory: Arc<ClientMemory>,
}

impl Desk {
    /// For a node with these settings; `figures` are what its engine and its clients' memory count.
    #[must_use]
    pub fn new(
        node: u64,
        port: u16,
        settings: Vec<(String, String)>,
        (counts, memory): (Arc<Mutex<Counts>>, Arc<ClientMemory>),
    ) -> Self {
        Self { clients: Mutex::default(), settings, node, port, started: clock::now().mono, counts, memory }
    }

    /// The number of clients.
    #[must_use]
    pub fn len(&self) -> usize {
        self.clients.lock().len()
    }

    /// Whether there is no client.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// An answer, and the dialect from it on if that changes.
#[derive(Debug)]
pub struct Answered {
    /// The answer.
    pub reply: Reply,
    /// The new dialect.
    pub dialect: Option<Dialect>,
}

/// Answers for one connection.
#[derive(Debug)]
pub struct Answerer {
    number: u64,
    desk: Arc<Desk>,
}

impl Drop for Answerer {
    fn drop(&mut self) {
        self.desk.clients.lock().remove(&self.number);
    }
}

impl Answerer {
    /// For a connection that has just come.
    #[must_use]
    pub fn new(number: u64, address: SocketAddr, desk: Arc<Desk>) -> Self {
        let empty = Bytes::new;
        let since = clock::now().mono;
        let row = ClientRow { address, since, name: empty(), library: empty(), version: empty(), resp: 2 };
        desk.clients.lock().insert(number, row);
        Self { number, desk }
    }

    fn with<R>(&self, change: impl FnOnce(&mut ClientRow) -> R) -> R {
        let mut clients = self.desk.clients.lock();
        change(clients.get_mut(&self.number).expect("the row lives as long as the connection"))
    }

    /// Answers; `dialect` is the one the request came in.
    pub fn answer(&self, ask: ConnAsk, dialect: Dialect) -> Answered {
        let mut switch = None;
        let reply = match ask {
            ConnAsk::Ping(None) => Reply::Status("PONG"),
            ConnAsk::Ping(Some(message)) | ConnAsk::Echo(message) => Reply::Bulk(message),
            ConnAsk::Hello { auth: true, .. } | ConnAsk::Auth => Reply::error(
                Code::Err,
                "AUTH called without any password configured: no users are set up on this server, connect without",
            ),
            ConnAsk::Hello { version, name, .. } => {
                let dialect = match version {
                    Some(3) => Dialect::Resp3,
                    Some(_) => Dialect::Resp2,
                    None if dialect == Dialect::Inline => Dialect::Resp2,
                    None => dialect,
                };
                switch = Some(dialect);
                self.hello(dialect, name)
            }
            ConnAsk::ClientId => Reply::int(self.number),
            ConnAsk::ClientGetName => self.with(|row| Reply::Bulk(row.name.clone())),
            ConnAsk::ClientSetName(name) => self.with(|row| set(&mut row.name, &name)),
            ConnAsk::ClientSetInfo(attribute, value) => self.with(|row| {
                let field = if attribute.eq_ignore_ascii_case(b"LIB-NAME") {
                    &mut row.library
                } else {
                    &mut row.version
                };
                set(field, &value)
            }),
            ConnAsk::ClientInfo => self.with(|row| Reply::text(client_line(self.number, row))),
            ConnAsk::ClientList => self.client_list(),
            ConnAsk::ConfigGet(patterns) => self.config(&patterns),
            ConnAsk::Info(sections) => self.info(&sections),
            ConnAsk::Command => command_info(&[]),
            ConnAsk::CommandCount => command_count(),
            ConnAsk::CommandList => command_list(),
            ConnAsk::CommandInfo(names) => command_info(&names),
            ConnAsk::CommandDocs(names) => command_docs(&names),
            ConnAsk::Help(verb) => help(verb.as_deref())
                .unwrap_or_else(|| Reply::error(Code::Err, "no such command; HELP lists them all")),
            ConnAsk::Select => Reply::OK,
            ConnAsk::Time => {
                let (seconds, micros) = clock::wall();
                Reply::Array(vec![Reply::text(seconds.to_string()), Reply::text(micros.to_string())])
            }
            ConnAsk::Reset => {
                self.with(|row| row.name.clear());
                switch = (dialect != Dialect::Inline).then_some(Dialect::Resp2);
                Reply::Status("RESET")
            }
            ConnAsk::Quit | ConnAsk::Unwatch => Reply::OK,
            ConnAsk::Multi | ConnAsk::Exec | ConnAsk::Discard | ConnAsk::Watch(_) => {
                Reply::error(Code::Err, "this belongs to a transaction, which this connection has none of")
            }
            ConnAsk::Track(_) => {
                Reply::error(Code::Err, "CLIENT TRACKING belongs to RESP3 connections; say HELLO 3 on one")
            }
            ConnAsk::SessionOpen | ConnAsk::SessionResume(_) => {
                Reply::error(Code::Err, "client sessions belong to the binary protocol; see docs/protocol.md")
            }
        };
        Answered { reply, dialect: switch }
    }

    fn hello(&self, dialect: Dialect, name: Option<Bytes>) -> Reply {
        let proto = if dialect == Dialect::Resp3 { 3 } else { 2 };
        self.with(|row| {
            row.resp = proto;
            if let Some(name) = name {
                set(&mut row.name, &name);
            }
        });
        let fields = [
            ("server", Reply::text("redis")),
            ("version", Reply::text(REDIS_VERSION)),
            ("proto", Reply::int(u64::from(proto))),
            ("id", Reply::int(self.number)),
            ("mode", Reply::text("standalone")),
            ("role", Reply::text("master")),
            ("modules", Reply::Array(Vec::new())),
        ];
        Reply::Map(fields.into_iter().map(|(name, value)| (Reply::text(name), value)).collect())
    }

    fn client_list(&self) -> Reply {
        let clients = self.desk.clients.lock();
        let lines: String = clients.iter().map(|(&number, row)| client_line(number, row)).collect();
        Reply::text(lines)
    }

    fn config(&self, patterns: &[Bytes]) -> Reply {
        let asked = |name: &str| patterns.iter().any(|pattern| matches(pattern, name.as_bytes()));
        let found = self.desk.settings.iter().filter(|(name, _)| asked(name));
        Reply::Map(
            found.map(|(name, value)| (Reply::text(name.clone()), Reply::text(value.clone()))).collect(),
        )
    }

    /// What keys and clients take on this node, in Redis' names.
    fn memory(&self) -> String {
        let counts = *self.desk.counts.lock();
        let policy = self.desk.settings.iter().find(|(name, _)| name == "maxmemory-policy");
        let policy = policy.map_or("noeviction", |(_, value)| value);
        format!(
            "used_memory:{}\r\nmaxmemory:{}\r\nmaxmemory_policy:{policy}\r\nevicted_keys:{}\r\nmem_clients_normal:{}\r\n",
            counts.store_bytes,
            counts.store_max,
            counts.evicted,
            self.desk.memory.figures().bytes
        )
    }

    fn info(&self, sections: &[Bytes]) -> Reply {
        let up = (clock::now().mono - self.desk.started) / 1_000_000;
        let server = format!(
            "redis_version:{REDIS_VERSION}\r\nredis_mode:standalone\r\nserver_name:quorate\r\nquorate_version:{}\r\n\
             quorate_node:{}\r\nprocess_id:{}\r\ntcp_port:{}\r\nuptime_in_seconds:{up}\r\n",
            env!("CARGO_PKG_VERSION"),
            self.desk.node,
            std::process::id(),
            self.desk.port,
        );
        let clients = format!("connected_clients:{}\r\n", self.desk.len());
        let memory = self.memory();
        let replication = "role:master\r\nconnected_slaves:0\r\n".to_owned();
        let all =
            [("Server", server), ("Clients", clients), ("Memory", memory), ("Replication", replication)];
        let everything = ["all", "default", "everything"];
        let wants = |title: &str| {
            sections.is_empty()
                || sections.iter().any(|section| {
                    section.eq_ignore_ascii_case(title.as_bytes())
                        || everything.iter().any(|word| section.eq_ignore_ascii_case(word.as_bytes()))
                })
        };
        let mut text = String::new();
        for (title, lines) in all.iter().filter(|(title, _)| wants(title)) {
            let _ = write!(text, "# {title}\r\n{lines}\r\n");
        }
        Reply::text(text)
    }
}

fn set(field: &mut Bytes, value: &Bytes) -> Reply {
    *field = Bytes::copy_from_slice(value);
    Reply::OK
}

/// Only visible characters are let in.
fn word(name: &[u8]) -> &str {
    std::str::from_utf8(name).unwrap_or_default()
}

fn client_line(number: u64, row: &ClientRow) -> String {
    let age = (clock::now().mono - row.since) / 1_000_000;
    format!(
        "id={number} addr={} name={} age={age} db=0 lib-name={} lib-ver={} resp={}\n",
        row.address,
        word(&row.name),
        word(&row.library),
        word(&row.version),
        row.resp,
    )
}

/// Whether a pattern with `*` and `?` fits a name, whatever the case. Only the last star is ever tried
/// again, so the work is at most pattern times name.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(byte) if *byte == b'?' || byte.eq_ignore_ascii_case(&name[n]) => {
                p += 1;
                n += 1;
            }
            _ => {
                let Some((at, from)) = star else { return false };
                star = Some((at, from + 1));
                p = at + 1;
                n = from + 1;
            }
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    use quorate_protocol::limits::{CLIENT_NAME_MAX, CLIENT_ROW_MAX};

    use super::*;

    #[test]
    fn a_row_of_client_list_is_no_longer_than_its_bound() {
        let longest = || Bytes::from(vec![b'"'; CLIENT_NAME_MAX]);
        let address = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff%4294967295]:65535";
        let address = address.parse().expect("an address");
        let row =
            ClientRow { address, since: 0, name: longest(), library: longest(), version: longest(), resp: 3 };
        let age = "18446744073709551615".len();
        assert!(client_line(u64::MAX, &row).len() + age <= CLIENT_ROW_MAX + 3 * CLIENT_NAME_MAX);
    }

    #[test]
    fn patterns_fit_as_in_redis() {
        for (pattern, name, fits) in [
            ("save", "SAVE", true),
            ("app*", "appendonly", true),
            ("*x", "maxmemory", false),
            ("?ave", "save", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), fits, "{pattern} {name}");
        }
    }
}
