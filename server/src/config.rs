//! Settings: a file (TOML), then environment variables `QUORATE_*`, then flags. Checked once, at the start.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use quorate_protocol::id::{ClusterId, NodeId};
use quorate_protocol::limits::{
    CACHE_MEMORY, CLIENT_MEMORY, CLIENT_MEMORY_MIN, NODE_ID_MAX, NODES_MAX, PARTITIONS, STORE_MEMORY,
};
use serde::Deserialize;
use xxhash_rust::xxh3::xxh3_64;

use crate::check::CheckFlags;
use crate::journal::Founding;
use crate::loops;
use crate::restore::RestoreFlags;

/// The most threads that may serve clients.
const CLIENT_THREADS_MAX: usize = 256;

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "quorate-server", version, about = "Locks, queues and keys for applications, replicated")]
#[command(args_conflicts_with_subcommands = true)]
pub struct CommandLine {
    #[command(subcommand)]
    command: Option<Mode>,
    #[command(flatten)]
    node: NodeFlags,
}

#[derive(Debug, Subcommand)]
enum Mode {
    /// Start a whole cluster on this machine, to try things out.
    Dev(DevFlags),
    /// Say what a data directory holds, and whether it is sound.
    Check(CheckFlags),
    /// Make of a backup the data directory of a node of a new cluster.
    Restore(RestoreFlags),
}

/// What `quorate-server dev` takes.
#[derive(Debug, Clone, Args)]
pub struct DevFlags {
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    pub nodes: u16,
    /// Client port of the first node; node i has base+10(i-1), its peer and admin ports follow.
    #[arg(long, default_value_t = 7411, value_parser = clap::value_parser!(u16).range(1..=65_400))]
    pub base_port: u16,
    /// Where the nodes keep their data and logs.
    #[arg(long, default_value = "quorate-data")]
    pub data_dir: PathBuf,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines, an object a line.
    Json,
}

/// What makes room for keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Eviction {
    /// Nothing: writes that need room are refused.
    #[default]
    None,
    /// The keys that were not looked at for longest.
    Lru,
}

/// What a node can be told, on the command line or in a file; none of it must be.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct NodeFlags {
    /// A file with these settings (TOML, the names without dashes in front).
    #[arg(long, env = "QUORATE_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// This node's number in the cluster [default: 1].
    #[arg(long, env = "QUORATE_NODE_ID", value_name = "N")]
    node_id: Option<u64>,
    /// Where clients connect [default: 127.0.0.1:7411].
    #[arg(long, env = "QUORATE_LISTEN", value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Where other nodes connect [default: 127.0.0.1:7412].
    #[arg(long, env = "QUORATE_PEER_LISTEN", value_name = "ADDR")]
    peer_listen: Option<SocketAddr>,
    /// Where health is told, over HTTP [default: 127.0.0.1:7413].
    #[arg(long, env = "QUORATE_ADMIN_LISTEN", value_name = "ADDR")]
    admin_listen: Option<SocketAddr>,
    /// The client address that other nodes and LEADER name, if it is not the one listened on.
    #[arg(long, env = "QUORATE_ADVERTISE", value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// The peer address that other nodes dial, if it is not the one listened on (for --join).
    #[arg(long, env = "QUORATE_PEER_ADVERTISE", value_name = "HOST:PORT")]
    peer_advertise: Option<String>,
    /// Where the node keeps its data [default: quorate-data].
    #[arg(long, env = "QUORATE_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The nodes that found the cluster, as ID=HOST:PEERPORT,...; the same on all of them.
    #[arg(long, env = "QUORATE_INITIAL_CLUSTER", value_name = "SPEC")]
    initial_cluster: Option<String>,
    /// Join a cluster that exists: the peer ports of some of its nodes, as HOST:PEERPORT,...
    #[arg(long, env = "QUORATE_JOIN", value_name = "ADDRS")]
    join: Option<String>,
    /// Memory for keys that this node has read, in bytes, or with k, m or g behind [default: 256m].
    #[arg(long, env = "QUORATE_CACHE_MAX_MEMORY", value_name = "SIZE")]
    cache_max_memory: Option<Size>,
    /// Memory that clients' connections may hold together, 64m at least [default: 1g].
    #[arg(long, env = "QUORATE_CLIENT_MAX_MEMORY", value_name = "SIZE")]
    client_max_memory: Option<Size>,
    /// Threads that serve clients [default: one for every two cores].
    #[arg(long, env = "QUORATE_CLIENT_THREADS", value_name = "N")]
    client_threads: Option<usize>,
    /// Memory for the keys of all partitions, in equal shares; the same on all nodes [default: 1g for each partition].
    #[arg(long, env = "QUORATE_STORE_MAX_MEMORY", value_name = "SIZE")]
    store_max_memory: Option<Size>,
    /// What makes room where a partition's keys fill their share: none (writes are refused) or lru [default: none].
    #[arg(long, env = "QUORATE_STORE_EVICTION", value_enum)]
    store_eviction: Option<Eviction>,
    /// How log lines are written [default: text].
    #[arg(long, env = "QUORATE_LOG_FORMAT", value_enum)]
    log_format: Option<LogFormat>,
    /// What is logged: error, warn, info, debug, trace [default: info].
    #[arg(long, env = "QUORATE_LOG_LEVEL", value_name = "LEVEL")]
    log_level: Option<String>,
    /// Show the settings that are in force, and end.
    #[arg(long)]
    #[serde(skip)]
    print_config: bool,
    /// End when standard input ends (for a parent that must not leave children behind).
    #[arg(long, hide = true)]
    #[serde(skip)]
    end_with_stdin: bool,
}

/// A node's settings, complete and checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// The client port.
    pub listen: SocketAddr,
    /// The peer port.
    pub peer_listen: SocketAddr,
    /// The admin port.
    pub admin_listen: SocketAddr,
    /// The client address to be told to others.
    pub advertise: String,
    /// The data directory.
    pub data_dir: PathBuf,
    /// The peer address to be told to others.
    pub peer_advertise: String,
    /// How its data directory comes to be.
    pub origin: Origin,
    /// Memory for keys that this node has read; bytes.
    pub cache_memory: usize,
    /// Memory that clients' connections may hold together; bytes.
    pub client_memory: usize,
    /// Threads that serve clients.
    pub client_threads: usize,
    /// Memory for the keys of all partitions; bytes.
    pub store_memory: u64,
    /// What makes room for keys.
    pub store_eviction: Eviction,
    /// How log lines are written.
    pub log_format: LogFormat,
    /// What is logged.
    pub log_level: String,
    /// Only show the settings.
    pub print_config: bool,
    /// End when standard input ends.
    pub end_with_stdin: bool,
}

/// How a node's data directory comes to be, if it is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// With its cluster: the nodes that found it.
    Founded(Vec<(NodeId, String)>),
    /// Later: one of these members lets it in.
    Joined(Vec<String>),
}

/// What the process is to be.
#[derive(Debug)]
pub enum Plan {
    /// A node.
    Node(Box<Config>),
    /// A whole cluster for trying things out.
    Dev(DevFlags),
    /// A look at a data directory.
    Check(CheckFlags),
    /// A data directory out of a backup.
    Restore(RestoreFlags),
}

impl CommandLine {
    /// Understands the process's arguments. HELP and the version are errors that want to be printed.
    ///
    /// # Errors
    /// What clap says; `one_line` makes a sentence of it.
    pub fn read() -> Result<Self, clap::Error> {
        Self::try_parse()
    }

    /// Reads the file, if one is named, and checks everything.
    ///
    /// # Errors
    /// With one line that says what to correct.
    pub fn plan(self) -> Result<Plan, String> {
        match self.command {
            Some(Mode::Dev(flags)) => Ok(Plan::Dev(flags)),
            Some(Mode::Check(flags)) => Ok(Plan::Check(flags)),
            Some(Mode::Restore(flags)) => flags.founders().map(|_| Plan::Restore(flags)),
            None => {
                let file = self.node.config.as_deref().map(read_file).transpose()?.unwrap_or_default();
                Ok(Plan::Node(Box::new(self.node.or(file).check()?)))
            }
        }
    }
}

/// A usage error in one line: what is wrong and where help is, without the usage itself.
#[must_use]
pub fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    // Behind the first of these stands nothing but how the program is used, over several lines.
    let said = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let said = said.filter(|line| !line.is_empty() && !line.starts_with("For more information"));
    let said = said.collect::<Vec<_>>().join(" ");
    format!("{}; see quorate-server --help", said.trim_start_matches("error: "))
}

fn read_file(path: &Path) -> Result<NodeFlags, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("--config {}: {error}; check the path", path.display()))?;
    toml::from_str(&text).map_err(|error| {
        let what = error.message().lines().next().unwrap_or("it is not TOML").to_owned();
        let line = text[..error.span().map_or(0, |span| span.start)].matches('\n').count() + 1;
        format!("--config {}, line {line}: {what}", path.display())
    })
}

impl NodeFlags {
    /// What is not said here is taken from `other`.
    fn or(self, other: Self) -> Self {
        Self {
            config: self.config,
            node_id: self.node_id.or(other.node_id),
            listen: self.listen.or(other.listen),
            peer_listen: self.peer_listen.or(other.peer_listen),
            admin_listen: self.admin_listen.or(other.admin_listen),
            advertise: self.advertise.or(other.advertise),
            peer_advertise: self.peer_advertise.or(other.peer_advertise),
            data_dir: self.data_dir.or(other.data_dir),
            initial_cluster: self.initial_cluster.or(other.initial_cluster),
            join: self.join.or(other.join),
            log_format: self.log_format.or(other.log_format),
            cache_max_memory: self.cache_max_memory.or(other.cache_max_memory),
            client_max_memory: self.client_max_memory.or(other.client_max_memory),
            client_threads: self.client_threads.or(other.client_threads),
            store_max_memory: self.store_max_memory.or(other.store_max_memory),
            store_eviction: self.store_eviction.or(other.store_eviction),
            log_level: self.log_level.or(other.log_level),
            print_config: self.print_config,
            end_with_stdin: self.end_with_stdin,
        }
    }

    fn check(self) -> Result<Config, String> {
        let loopback = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let node = own_id(self.node_id.unwrap_or(1))?;
        let listen = self.listen.unwrap_or(loopback(7411));
        let peer_listen = self.peer_listen.unwrap_or(loopback(7412));
        let admin_listen = self.admin_listen.unwrap_or(loopback(7413));
        apart([("--listen", listen), ("--peer-listen", peer_listen), ("--admin-listen", admin_listen)])?;
        let origin = match (&self.initial_cluster, &self.join) {
            (Some(_), Some(_)) => {
                return Err(
                    "--initial-cluster founds a cluster and --join joins one that exists; give one of them"
                        .into(),
                );
            }
            (None, Some(_)) if self.node_id.is_none() => {
                return Err("--join needs --node-id: a number that no node of the cluster has".into());
            }
            (None, Some(members)) => Origin::Joined(parse_members(members)?),
            (Some(spec), None) => Origin::Founded(parse_cluster(spec)?),
            (None, None) => Origin::Founded(vec![(node, peer_listen.to_string())]),
        };
        let peer_advertise = peer_address(self.peer_advertise, &origin, node, peer_listen)?;
        let client_threads = self.client_threads.unwrap_or_else(loops::usual_threads);
        if !(1..=CLIENT_THREADS_MAX).contains(&client_threads) {
            return Err(format!(
                "--client-threads {client_threads} is not between 1 and {CLIENT_THREADS_MAX}"
            ));
        }
        let client_memory = self.client_max_memory.map_or(CLIENT_MEMORY, |size| size.0);
        if client_memory < CLIENT_MEMORY_MIN {
            return Err(format!(
                "--client-max-memory {client_memory} is less than one client may need; give {}m or more",
                CLIENT_MEMORY_MIN >> 20
            ));
        }
        let log_level = self.log_level.unwrap_or_else(|| "info".into()).to_lowercase();
        if !["error", "warn", "info", "debug", "trace"].contains(&log_level.as_str()) {
            return Err(format!("--log-level {log_level} is unknown; use error, warn, info, debug or trace"));
        }
        Ok(Config {
            node,
            listen,
            peer_listen,
            admin_listen,
            advertise: self.advertise.unwrap_or_else(|| listen.to_string()),
            data_dir: self.data_dir.unwrap_or_else(|| "quorate-data".into()),
            peer_advertise,
            origin,
            log_format: self.log_format.unwrap_or_default(),
            cache_memory: self.cache_max_memory.map_or(CACHE_MEMORY, |size| size.0),
            client_memory,
            client_threads,
            store_memory: self.store_max_memory.map_or(STORE_MEMORY, |size| size.0 as u64),
            store_eviction: self.store_eviction.unwrap_or_default(),
            log_level,
            print_config: self.print_config,
            end_with_stdin: self.end_with_stdin,
        })
    }
}

/// No two of a node's addresses are the same; port 0 is a free one each time.
fn apart(addresses: [(&str, SocketAddr); 3]) -> Result<(), String> {
    for (at, (flag, address)) in addresses.iter().enumerate() {
        let is_same = |other: &SocketAddr| {
            let everywhere = other.ip().is_unspecified() || address.ip().is_unspecified();
            other.port() == address.port() && (everywhere || other.ip() == address.ip())
        };
        let taken = |(_, other): &&(&str, SocketAddr)| other.port() > 0 && is_same(other);
        if let Some((first, other)) = addresses[..at].iter().find(taken) {
            return Err(format!("{first} {other} and {flag} {address} are one port; give each its own"));
        }
    }
    Ok(())
}

/// What `--node-id` says.
pub(crate) fn own_id(id: u64) -> Result<NodeId, String> {
    if !(1..=NODE_ID_MAX).contains(&id) {
        return Err(format!("--node-id {id} is not allowed; nodes are numbered from 1 to {NODE_ID_MAX}"));
    }
    Ok(NodeId(id))
}

pub(crate) fn parse_cluster(spec: &str) -> Result<Vec<(NodeId, String)>, String> {
    let mut nodes: BTreeMap<NodeId, String> = BTreeMap::new();
    for part in spec.split(',').map(str::trim) {
        let parsed = part.split_once('=').and_then(|(id, address)| {
            let (id, address) = (id.trim().parse::<u64>().ok()?, address.trim());
            is_address(address).then(|| (id, address.to_owned()))
        });
        let Some((id, address)) = parsed else {
            return Err(format!("--initial-cluster: '{part}' is not ID=HOST:PEERPORT"));
        };
        if !(1..=NODE_ID_MAX).contains(&id) {
            return Err(format!(
                "--initial-cluster: node {id} is not allowed; nodes are numbered from 1 to {NODE_ID_MAX}"
            ));
        }
        if let Some((NodeId(other), _)) = nodes.iter().find(|(node, at)| node.0 != id && **at == address) {
            return Err(format!(
                "--initial-cluster gives nodes {other} and {id} the address {address}; give each node its own"
            ));
        }
        if nodes.insert(NodeId(id), address).is_some() {
            return Err(format!("--initial-cluster names node {id} twice"));
        }
    }
    if nodes.len() > NODES_MAX {
        return Err(format!("--initial-cluster names {} nodes, at most {NODES_MAX} are taken", nodes.len()));
    }
    Ok(nodes.into_iter().collect())
}

/// The nodes of a first configuration in one notation, whatever the operator wrote.
pub(crate) fn founders_spec(founders: &[(NodeId, String)]) -> String {
    founders.iter().map(|(id, address)| format!("{}={address},", id.0)).collect()
}

/// Where other nodes reach this one. Founders are named by --initial-cluster.
fn peer_address(
    advertised: Option<String>,
    origin: &Origin,
    node: NodeId,
    listen: SocketAddr,
) -> Result<String, String> {
    let named = match origin {
        Origin::Founded(founders) => {
            let own = founders.iter().find(|(id, _)| *id == node);
            Some(own.map(|(_, address)| address.clone()).ok_or_else(|| {
                format!("--initial-cluster does not name node {}; add it, or correct --node-id", node.0)
            })?)
        }
        Origin::Joined(_) => None,
    };
    match advertised.or(named) {
        Some(address) if is_address(&address) => Ok(address),
        Some(address) => Err(format!("--peer-advertise: '{address}' is not HOST:PEERPORT")),
        None if listen.ip().is_unspecified() => Err(format!(
            "--peer-listen {listen} says to nobody where this node is; name a host with --peer-advertise"
        )),
        None => Ok(listen.to_string()),
    }
}

fn is_address(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

fn parse_members(list: &str) -> Result<Vec<String>, String> {
    let members: Vec<String> = list.split(',').map(|member| member.trim().to_owned()).collect();
    match members.iter().find(|member| !is_address(member)) {
        Some(wrong) => Err(format!("--join: '{wrong}' is not HOST:PEERPORT")),
        None => Ok(members),
    }
}

/// A number of bytes, with k, m or g behind it if it is one of KiB, MiB or GiB.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "toml::Value")]
struct Size(usize);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let lower = text.trim().to_lowercase();
        let digits = lower.trim_end_matches(['k', 'm', 'g']);
        let shift = match &lower[digits.len()..] {
            "" => Some(0),
            "k" => Some(10),
            "m" => Some(20),
            "g" => Some(30),
            _ => None,
        };
        let size = digits.parse::<usize>().ok().zip(shift).and_then(|(n, shift)| n.checked_mul(1 << shift));
        size.map(Self).ok_or_else(|| format!("'{text}' is no size; say bytes, or 512k, 256m, 1g"))
    }
}

impl TryFrom<toml::Value> for Size {
    type Error = String;

    fn try_from(value: toml::Value) -> Result<Self, String> {
        match value {
            toml::Value::String(text) => text.parse(),
            other => other.to_string().parse(),
        }
    }
}

impl Config {
    /// What an empty data directory is founded as, together with a new cluster.
    #[must_use]
    pub fn founding(&self, founders: &[(NodeId, String)]) -> Founding {
        Founding {
            cluster: ClusterId(xxh3_64(founders_spec(founders).as_bytes())),
            node: self.node,
            partitions: PARTITIONS,
            founders: founders.to_vec(),
            life: 0,
        }
    }

    /// The settings as they are in force, by name.
    #[must_use]
    pub fn settings(&self) -> Vec<(String, String)> {
        let origin = match &self.origin {
            Origin::Founded(founders) => {
                let founders: Vec<String> =
                    founders.iter().map(|(id, address)| format!("{}={address}", id.0)).collect();
                ("initial-cluster", founders.join(","))
            }
            Origin::Joined(members) => ("join", members.join(",")),
        };
        let format = if self.log_format == LogFormat::Json { "json" } else { "text" };
        let eviction = if self.store_eviction == Eviction::Lru { "lru" } else { "none" };
        let settings = [
            ("node-id", self.node.0.to_string()),
            ("listen", self.listen.to_string()),
            ("peer-listen", self.peer_listen.to_string()),
            ("admin-listen", self.admin_listen.to_string()),
            ("advertise", self.advertise.clone()),
            ("peer-advertise", self.peer_advertise.clone()),
            ("data-dir", self.data_dir.display().to_string()),
            origin,
            ("cache-max-memory", self.cache_memory.to_string()),
            ("client-max-memory", self.client_memory.to_string()),
            ("client-threads", self.client_threads.to_string()),
            ("store-max-memory", self.store_memory.to_string()),
            ("store-eviction", eviction.to_owned()),
            ("log-format", format.to_owned()),
            ("log-level", self.log_level.clone()),
        ];
        settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// What CONFIG GET tells: the settings, and what Redis clients ask for.
    #[must_use]
    pub fn redis_settings(&self) -> Vec<(String, String)> {
        let mut settings = self.settings();
        let policy = if self.store_eviction == Eviction::Lru { "allkeys-lru" } else { "noeviction" };
        settings.push(("maxmemory".to_owned(), self.store_memory.to_string()));
        settings.push(("maxmemory-clients".to_owned(), self.client_memory.to_string()));
        for (name, value) in [
            // Every write is on stable storage before its answer; there is no snapshot schedule.
            ("save", ""),
            ("appendonly", "yes"),
            ("appendfsync", "always"),
            ("databases", "1"),
            ("maxmemory-policy", policy),
        ] {
            settings.push((name.to_owned(), value.to_owned()));
        }
        settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(args: &[&str]) -> Result<Config, String> {
        let line =
            CommandLine::try_parse_from([&["quorate-server"], args].concat()).map_err(|e| one_line(&e))?;
        match line.plan()? {
            Plan::Node(config) => Ok(*config),
            Plan::Dev(_) | Plan::Check(_) | Plan::Restore(_) => Err("no node".into()),
        }
    }

    #[test]
    fn alone_it_is_a_single_node_on_loopback() {
        let config = plan(&[]).unwrap();
        assert_eq!(config.listen.to_string(), "127.0.0.1:7411");
        assert_eq!(config.origin, Origin::Founded(vec![(NodeId(1), "127.0.0.1:7412".to_owned())]));
        assert_eq!(config.peer_advertise, "127.0.0.1:7412");
    }

    #[test]
    fn every_listener_has_its_own_address() {
        let why = plan(&["--listen", "127.0.0.1:7413"]).expect_err("that is the admin's");
        assert_eq!(
            why,
            "--listen 127.0.0.1:7413 and --admin-listen 127.0.0.1:7413 are one port; give each its own"
        );
        assert!(plan(&["--listen", "0.0.0.0:7412"]).is_err(), "that is everywhere");
        assert!(plan(&["--listen", "127.0.0.1:0", "--peer-listen", "127.0.0.1:0"]).is_ok());
    }

    #[test]
    fn sizes_are_bytes_or_more() {
        for (text, bytes) in [("0", 0), ("1000", 1000), ("64k", 64 << 10), ("3M", 3 << 20), ("2g", 2 << 30)] {
            assert_eq!(plan(&["--cache-max-memory", text]).unwrap().cache_memory, bytes);
        }
        for wrong in ["", "m", "1x", "1kk", "-1", "99999999999999g"] {
            let args = format!("--cache-max-memory={wrong}");
            assert!(plan(&[&args]).is_err_and(|why| why.contains("no size")), "{wrong}");
        }
    }

    #[test]
    fn there_are_some_threads_for_clients() {
        assert!(plan(&[]).unwrap().client_threads >= 1);
        assert_eq!(plan(&["--client-threads", "3"]).unwrap().client_threads, 3);
        for wrong in ["0", "1000", "-1", "many"] {
            assert!(plan(&[&format!("--client-threads={wrong}")]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_node_that_joins_says_where_it_is() {
        let args = ["--node-id", "4", "--join", "a:1, b:2", "--peer-listen", "127.0.0.1:7442"];
        let config = plan(&args).unwrap();
        assert_eq!(config.origin, Origin::Joined(vec!["a:1".to_owned(), "b:2".to_owned()]));
        assert_eq!(config.peer_advertise, "127.0.0.1:7442");
        let config = plan(&[&args[..], &["--peer-advertise", "d.example:7412"]].concat()).unwrap();
        assert_eq!(config.peer_advertise, "d.example:7412");
    }

    #[test]
    fn flags_come_before_the_file() {
        let path = std::env::temp_dir().join(format!("quorate-config-{}.toml", std::process::id()));
        std::fs::write(&path, "node-id = 2\nlog-level = \"debug\"\ninitial-cluster = \"2=b:1,1=a:1\"\n")
            .unwrap();
        let file = path.display().to_string();
        let config = plan(&["--config", &file, "--log-level", "warn"]).unwrap();
        assert_eq!((config.node, config.log_level.as_str()), (NodeId(2), "warn"));
        let Origin::Founded(founders) = config.origin else { panic!("it founds a cluster") };
        assert_eq!(founders[0], (NodeId(1), "a:1".to_owned()), "the order of the nodes does not matter");
        assert_eq!(config.peer_advertise, "b:1");
        std::fs::write(&path, "port = 2\n").unwrap();
        let text = plan(&["--config", &file]).unwrap_err();
        assert!(text.contains("line 1: unknown field `port`") && !text.contains('\n'), "{text}");
        std::fs::write(&path, "node-id = 1\nlisten = \"here\n").unwrap();
        let text = plan(&["--config", &file]).unwrap_err();
        assert!(text.contains("line 2: ") && !text.contains('\n'), "{text}");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line() {
        for (args, expected) in [
            (&["--initial-cluster", "1"][..], "'1' is not ID=HOST:PEERPORT"),
            (&["--initial-cluster", "1=a:1,1=b:1"], "names node 1 twice"),
            (&["--initial-cluster", "1=a:1,2=b:1,3=a:1"], "nodes 1 and 3 the address a:1"),
            (&["--initial-cluster", "1=a:1,0=b:1"], "node 0 is not allowed"),
            (&["--initial-cluster", "1=a:1,4294967296=b:1"], "node 4294967296 is not allowed"),
            (&["--node-id", "4294967296", "--join", "a:1"], "numbered from 1 to 4294967295"),
            (&["--initial-cluster", "2=a:1"], "does not name node 1"),
            (&["--node-id", "0"], "nodes are numbered from 1"),
            (&["--join", "a:1"], "--join needs --node-id"),
            (&["--node-id", "4", "--join", "a:1,b"], "--join: 'b' is not HOST:PEERPORT"),
            (&["--node-id", "4", "--join", "a:1", "--initial-cluster", "4=a:1"], "give one of them"),
            (&["--node-id", "4", "--join", "a:1", "--peer-listen", "0.0.0.0:7412"], "--peer-advertise"),
            (&["--peer-advertise", "here"], "--peer-advertise: 'here' is not HOST:PEERPORT"),
            (&["--client-max-memory", "63m"], "one client may need; give 64m or more"),
            (&["--log-level", "loud"], "--log-level loud is unknown"),
            (&["--port", "1"], "unexpected argument '--port' found"),
            (&["--log-format", "xml"], "[possible values: text, json]; see quorate-server --help"),
            (&["--listen"], "a value is required for '--listen <ADDR>'"),
            (&["--node-id", "1", "dev"], "cannot be used with"),
        ] {
            let text = plan(args).unwrap_err();
            assert!(text.contains(expected) && !text.contains('\n'), "{text}");
        }
    }
}
