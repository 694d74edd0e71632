//! Real clusters: `quorate-server` processes on loopback, with their data, logs and signals.
//!
//! Charter: starts, stops, kills and freezes nodes, and finds what they wrote. Everything is taken down
//! again when the value is dropped. What they run is in `built`, and who talks to them in `client`.

mod built;
mod client;

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

pub use built::{binary, cli};
pub use client::Client;

/// How long anything may take before a test gives up; far above what it takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two looks at a state that is waited for.
const PAUSE: Duration = Duration::from_millis(10);

/// Milliseconds of a clock that never falls, to measure how long something took.
#[must_use]
pub fn millis() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let part = |n: i64| u64::try_from(n).unwrap_or(0);
    part(time.tv_sec) * 1000 + part(time.tv_nsec) / 1_000_000
}

/// Looks again and again until `look` finds something; fails with `what` when it takes too long.
///
/// # Panics
/// When nothing is found in time.
pub fn poll<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..PATIENCE.as_millis() / PAUSE.as_millis() {
        if let Some(found) = look() {
            return found;
        }
        std::thread::park_timeout(PAUSE);
    }
    panic!("{what}: not within {PATIENCE:?}");
}

/// An empty directory that is gone after the test.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    keep: bool,
}

impl Scratch {
    /// A new one.
    ///
    /// # Panics
    /// When it cannot be made.
    #[allow(clippy::new_without_default, reason = "it makes a directory")]
    #[must_use]
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("quorate-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("the temporary directory can be written");
        Self { path, keep: false }
    }

    /// Its place.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.keep {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// Ports that nobody listens on, and that the system gives nobody by itself: below those of outgoing
/// connections, so that a node finds its port again after a restart.
///
/// # Panics
/// When the machine has none.
#[must_use]
pub fn free_ports<const N: usize>() -> [u16; N] {
    [(); N].map(|()| poll("a free port", || next_ports(1).first().copied()))
}

/// The next numbers in this process's walk through the ports, if all of them are free: a row of `n`.
#[must_use]
pub fn next_ports(n: u16) -> Vec<u16> {
    const FIRST: u32 = 10_240;
    const LAST: u32 = 32_000;
    static STEPS: AtomicU32 = AtomicU32::new(0);
    // Test processes that run side by side begin at different places.
    let start = std::process::id().wrapping_mul(613);
    let step = start.wrapping_add(STEPS.fetch_add(u32::from(n), Ordering::Relaxed));
    let first = FIRST + step % (LAST - FIRST);
    let row = (first..first + u32::from(n)).map(|port| u16::try_from(port).expect("it is far below 65536"));
    row.map(|port| TcpListener::bind(("127.0.0.1", port)).is_ok().then_some(port))
        .collect::<Option<Vec<_>>>()
        .unwrap_or_default()
}

/// What a program that has ended has left.
#[derive(Debug)]
pub struct Ran {
    /// Its exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// What it wrote.
    pub out: String,
    /// What it complained about.
    pub err: String,
}

/// Runs a program to its end, with these bytes to read.
///
/// # Panics
/// When it cannot be started.
pub fn run(command: &mut Command, input: &str) -> Ran {
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pipes.spawn().expect("the program starts");
    let mut stdin = child.stdin.take().expect("it is piped");
    // It may end without having read it.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().expect("the process is ours");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// One node of a cluster.
#[derive(Debug)]
struct Node {
    child: Option<Child>,
    place: Place,
    client: u16,
    peer: u16,
    admin: u16,
    /// It joins the cluster instead of founding it.
    joins: bool,
}

impl Node {
    fn at(place: Place) -> Self {
        let [client, peer, admin] = free_ports();
        Self { child: None, place, client, peer, admin, joins: false }
    }
}

/// Where a node runs.
#[derive(Debug, Clone)]
pub struct Place {
    /// Its address.
    pub ip: IpAddr,
    /// Its network namespace; this process's own if there is none.
    pub namespace: Option<String>,
}

impl Place {
    /// Loopback.
    #[must_use]
    pub fn here() -> Self {
        Self { ip: Ipv4Addr::LOCALHOST.into(), namespace: None }
    }
}

/// A cluster of real processes.
#[derive(Debug)]
pub struct Cluster {
    scratch: Scratch,
    nodes: Vec<Node>,
    /// How many of them founded it.
    founders: usize,
    pub flags: Vec<&'static str>,
}

impl Cluster {
    /// Starts a cluster and waits until every node can serve.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn start(n: usize) -> Self {
        Self::start_at(vec![Place::here(); n])
    }

    /// The same, with a node at each of these places.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn start_at(places: Vec<Place>) -> Self {
        let mut this = Self::plan_at(places);
        this.spawn_all();
        this
    }

    /// A cluster of which no node is started yet.
    #[must_use]
    pub fn plan(n: usize) -> Self {
        Self::plan_at(vec![Place::here(); n])
    }

    fn plan_at(places: Vec<Place>) -> Self {
        let founders = places.len();
        let nodes = places.into_iter().map(Node::at).collect();
        Self { scratch: Scratch::new(), nodes, founders, flags: Vec::new() }
    }

    /// Starts all nodes and waits until every one can serve.
    ///
    /// # Panics
    /// When they do not come up.
    pub fn spawn_all(&mut self) {
        (1..=self.size()).for_each(|id| self.spawn(id));
        (1..=self.size()).for_each(|id| self.wait_ready(id));
    }

    /// The nodes that found the cluster, as `--initial-cluster` names them.
    #[must_use]
    pub fn founders(&self) -> String {
        let named = |(node, id): (&Node, u64)| format!("{id}={}:{}", node.place.ip, node.peer);
        self.nodes[..self.founders].iter().zip(1..).map(named).collect::<Vec<_>>().join(",")
    }

    /// Finds ports for one more node, which is not started: it joins when it is. Returns its id.
    pub fn plan_node(&mut self) -> usize {
        self.plan_node_at(Place::here())
    }

    /// The same, at this place.
    pub fn plan_node_at(&mut self, place: Place) -> usize {
        self.nodes.push(Node { joins: true, ..Node::at(place) });
        self.nodes.len()
    }

    /// A node that does not run loses its data directory; from now on it joins when it is started.
    ///
    /// # Panics
    /// When it runs, or the directory cannot be removed.
    pub fn wipe(&mut self, id: usize) {
        assert!(!self.runs(id), "node {id} runs");
        std::fs::remove_dir_all(self.data_dir(id)).expect("it is ours");
        self.node(id).joins = true;
    }

    /// Whether a node's process was started and not stopped.
    #[must_use]
    pub fn runs(&self, id: usize) -> bool {
        self.nodes[id - 1].child.is_some()
    }

    /// Leaves everything where it is when the value is dropped; says where that is.
    pub fn keep(&mut self) -> &Path {
        self.scratch.keep = true;
        self.scratch.path()
    }

    fn node(&mut self, id: usize) -> &mut Node {
        &mut self.nodes[id - 1]
    }

    /// The command that starts a node.
    #[must_use]
    pub fn command(&self, id: usize) -> Command {
        let founders = self.nodes[..self.founders].iter();
        let peer = |node: &Node| format!("{}:{}", node.place.ip, node.peer);
        let node = &self.nodes[id - 1];
        let known: Vec<String> = founders.filter(|founder| founder.peer != node.peer).map(peer).collect();
        let address = |port: u16| format!("{}:{port}", node.place.ip);
        let mut command = match &node.place.namespace {
            None => Command::new(binary()),
            // It becomes the server: the process is the same.
            Some(namespace) => {
                let mut ip = Command::new("ip");
                ip.args(["netns", "exec", namespace]).arg(binary());
                ip
            }
        };
        command.args(["--node-id", &id.to_string()]);
        if node.joins {
            command.args(["--join", &known.join(",")]);
        } else {
            command.args(["--initial-cluster", &self.founders()]);
        }
        command.args(["--listen", &address(node.client), "--peer-listen", &address(node.peer)]);
        command.args(&self.flags).args(["--admin-listen", &address(node.admin)]);
        command.arg("--data-dir").arg(self.data_dir(id));
        command
    }

    /// Starts a node that does not run.
    ///
    /// # Panics
    /// When it runs already, or its process cannot be started.
    pub fn spawn(&mut self, id: usize) {
        let log =
            std::fs::File::options().create(true).append(true).open(self.log_path(id)).expect("a log file");
        // It ends with its standard input, so that nothing is left behind when a test is killed.
        let mut command = self.command(id);
        command.arg("--end-with-stdin").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log);
        let node = self.node(id);
        assert!(node.child.is_none(), "node {id} runs already");
        let child = command.spawn();
        node.child = Some(child.expect("the server's process starts"));
    }

    /// Waits until a node answers, knows a leader and has its session.
    ///
    /// # Panics
    /// When it takes too long.
    pub fn wait_ready(&mut self, id: usize) {
        poll(&format!("node {id} is ready"), || {
            let mut client = Client::try_new(self.address(id))?;
            let status = client.try_ask("STATUS")?;
            let leader = client.try_ask("LEADER")?;
            (status.contains("session: open") && leader.contains(':')).then_some(())
        });
    }

    /// Where a node's clients connect.
    #[must_use]
    pub fn address(&self, id: usize) -> SocketAddr {
        let node = &self.nodes[id - 1];
        SocketAddr::new(node.place.ip, node.client)
    }

    fn log_path(&self, id: usize) -> PathBuf {
        self.scratch.path().join(format!("node{id}.log"))
    }

    /// A node's data directory.
    #[must_use]
    pub fn data_dir(&self, id: usize) -> PathBuf {
        self.scratch.path().join(format!("node{id}"))
    }

    /// How many nodes there are.
    #[must_use]
    pub fn size(&self) -> usize {
        self.nodes.len()
    }

    /// A node's client port.
    #[must_use]
    pub fn port(&self, id: usize) -> u16 {
        self.nodes[id - 1].client
    }

    /// Where other nodes dial a node.
    #[must_use]
    pub fn peer_address(&self, id: usize) -> SocketAddr {
        let node = &self.nodes[id - 1];
        SocketAddr::new(node.place.ip, node.peer)
    }

    /// A node's peer port.
    #[must_use]
    pub fn peer_port(&self, id: usize) -> u16 {
        self.nodes[id - 1].peer
    }

    /// A node's admin port.
    #[must_use]
    pub fn admin_port(&self, id: usize) -> u16 {
        self.nodes[id - 1].admin
    }

    /// What a node has logged.
    #[must_use]
    pub fn log(&self, id: usize) -> String {
        std::fs::read_to_string(self.log_path(id)).unwrap_or_default()
    }

    /// What all nodes have logged.
    #[must_use]
    pub fn logs(&self) -> String {
        (1..=self.nodes.len()).map(|id| self.log(id)).collect()
    }

    /// A line of talk with a node, as with nc.
    #[must_use]
    pub fn client(&self, id: usize) -> Client {
        poll("a connection", || Client::try_new(self.address(id)))
    }

    /// The node that leads the system group, as a running node sees it.
    #[must_use]
    pub fn leader(&self, seen_by: usize) -> usize {
        poll("a leader", || {
            let reply = Client::try_new(self.address(seen_by))?.try_ask("LEADER")?;
            let id = reply.lines().next()?.trim_start_matches("1) ").parse().ok()?;
            Some(id)
        })
    }

    /// A node's process id.
    ///
    /// # Panics
    /// When the node does not run.
    #[must_use]
    pub fn pid(&self, id: usize) -> u32 {
        self.nodes[id - 1].child.as_ref().expect("the node runs").id()
    }

    /// Sends a signal to a node's process.
    ///
    /// # Panics
    /// When the node does not run.
    pub fn signal(&mut self, id: usize, signal: Signal) {
        let child = self.node(id).child.as_ref().expect("the node runs");
        kill_process(Pid::from_child(child), signal).expect("the process is ours");
    }

    /// kill -9, and waits until the process is gone.
    ///
    /// # Panics
    /// When the node does not run.
    pub fn kill(&mut self, id: usize) {
        self.signal(id, Signal::KILL);
        self.wait_exit(id);
    }

    /// Waits until a node's process is gone, and returns its exit code.
    ///
    /// # Panics
    /// When the node does not run.
    pub fn wait_exit(&mut self, id: usize) -> Option<i32> {
        let mut child = self.node(id).child.take().expect("the node runs");
        child.wait().expect("the process is ours").code()
    }

    /// SIGTERM, and waits until the process is gone; returns its exit code.
    ///
    /// # Panics
    /// When the node does not run.
    pub fn stop(&mut self, id: usize) -> Option<i32> {
        self.signal(id, Signal::TERM);
        self.wait_exit(id)
    }

    /// kill -9 and start again.
    pub fn crash(&mut self, id: usize) {
        self.kill(id);
        self.spawn(id);
        self.wait_ready(id);
    }
}

impl Drop for Cluster {
    #[allow(clippy::print_stderr, reason = "the test framework shows it with the failure")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            for id in 1..=self.nodes.len() {
                let log = self.log(id);
                let tail: Vec<&str> = log.lines().rev().take(15).collect();
                eprintln!("--- node {id}:\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
            }
        }
        for node in &mut self.nodes {
            if let Some(mut child) = node.child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}
