//! The peer port of real nodes: who is let in, who may join, and what is said of everybody else.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use bytes::Bytes;
use quorate_protocol::id::{Boot, ClusterId, Identity, NodeId};
use quorate_protocol::peer::{Greeting, Hello, Lane, Opening, PEER_VERSION, Welcome};
use quorate_protocol::wire::Wire;
use quorate_tests::process::{Client, Cluster, Ran, Scratch, binary, free_ports, poll, run};

/// A node without data that asks the member at a peer port to let it in.
fn joining(id: u64, member: u16, data: &Path) -> Command {
    joining_at(free_ports(), id, member, data)
}

fn joining_at([client, peer, admin]: [u16; 3], id: u64, member: u16, data: &Path) -> Command {
    let mut command = Command::new(binary());
    for (flag, port) in [("--listen", client), ("--peer-listen", peer), ("--admin-listen", admin)] {
        command.args([flag, &format!("127.0.0.1:{port}")]);
    }
    command.args(["--node-id", &id.to_string(), "--join", &format!("127.0.0.1:{member}")]);
    command.arg("--end-with-stdin").arg("--data-dir").arg(data);
    command
}

/// The process has failed, and its last line says all of this. Nothing was founded.
fn refused(ran: &Ran, data: &Path, words: &[&str]) {
    let last = ran.err.lines().last().unwrap_or_default();
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    for word in words {
        assert!(
            last.starts_with("quorate-server: ") && last.contains(word),
            "'{word}' is missing: {}",
            ran.err
        );
    }
    assert!(!data.join("meta").exists(), "nothing is founded by a node that was not let in");
}

/// What a member answers to a first frame.
fn answer(port: u16, greeting: &[u8]) -> Welcome {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the node listens");
    let length = u32::try_from(greeting.len()).expect("it is short");
    stream.write_all(&length.to_le_bytes()).expect("it is read");
    stream.write_all(&crc32fast::hash(greeting).to_le_bytes()).expect("it is read");
    stream.write_all(greeting).expect("it is read");
    let mut header = [0; 8];
    stream.read_exact(&mut header).expect("an answer comes");
    let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    let mut payload = vec![0; usize::try_from(length).expect("it is short")];
    stream.read_exact(&mut payload).expect("the answer is whole");
    Welcome::from_wire(Bytes::from(payload)).expect("it is understood")
}

fn refusal(welcome: Welcome) -> String {
    match welcome {
        Welcome::No(why) | Welcome::Removed(why) => why,
        other => panic!("it is not refused: {other:?}"),
    }
}

/// The cluster's id, as STATUS shows it.
fn cluster_id(cluster: &Cluster) -> ClusterId {
    let status = cluster.client(1).try_ask("STATUS").expect("it answers");
    let line = status.lines().find_map(|line| line.split_once("cluster: ")).expect("it names the cluster").1;
    ClusterId(u64::from_str_radix(line.trim(), 16).expect("it is a number"))
}

#[test]
fn nodes_that_are_not_known_are_let_in_and_strangers_are_told_why_not() {
    let cluster = Cluster::start(1);
    let port = cluster.peer_port(1);
    let hello = Hello {
        cluster: cluster_id(&cluster),
        node: NodeId(9),
        to: NodeId(1),
        identity: Identity(9),
        boot: Boot(1),
        lane: Lane::Snapshot,
        client_address: String::new(),
        peer_address: String::new(),
    };
    let greet = |hello: Hello| {
        let greeting = Greeting { version: PEER_VERSION, opening: Opening::Hello(hello) };
        answer(port, &greeting.to_wire())
    };
    assert!(matches!(greet(hello.clone()), Welcome::Yes(me) if me.node == NodeId(1)), "node 1 may be behind");
    let foreign = refusal(greet(Hello { cluster: ClusterId(1), ..hello.clone() }));
    assert!(foreign.contains("node 1 belongs to another cluster"), "{foreign}");
    let itself = refusal(greet(Hello { node: NodeId(1), ..hello.clone() }));
    assert!(itself.contains("node 1 is no other member"), "{itself}");
    let wrong = refusal(greet(Hello { to: NodeId(2), ..hello }));
    assert!(wrong.contains("this is node 1, not node 2"), "{wrong}");
    let other = refusal(answer(port, &[7, 0, 1, 2, 3]));
    assert!(other.contains("speaks peer version 1, not 7; run the same release"), "{other}");
    let garbage = "was refused: a frame is over the limit";
    for _ in 0..50 {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the node listens");
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").expect("it is read");
        assert!(!matches!(stream.read(&mut [0]), Ok(1..)), "nothing is said to a browser");
    }
    poll("the log says it", || cluster.log(1).contains(garbage).then_some(()));
    assert_eq!(cluster.log(1).matches(garbage).count(), 1, "once, not fifty times");
    assert_eq!(cluster.client(1).ask("SET k v"), "OK");
}

#[test]
fn who_may_not_join_is_told_why_in_one_line() {
    let cluster = Cluster::start(3);
    let scratch = Scratch::new();
    let data = scratch.path().join("d");
    let member = cluster.peer_port(1);
    let ran = run(&mut joining(1, member, &data), "");
    refused(
        &ran,
        &data,
        &["this is node 1; choose another --node-id", &format!("--join 127.0.0.1:{member}")],
    );
    let ran = run(&mut joining(2, member, &data), "");
    refused(&ran, &data, &["node 2 is known with another data directory", "quorate member remove 2"]);
    let ran = run(joining(4, member, &data).args(["--peer-advertise", "127.0.0.1:1"]), "");
    refused(&ran, &data, &["cannot reach node 4 at 127.0.0.1:1", "--peer-advertise"]);
    let taken = format!("127.0.0.1:{}", cluster.peer_port(2));
    let ran = run(joining(4, member, &data).args(["--peer-advertise", &taken]), "");
    refused(&ran, &data, &["node 2 has the address", &taken]);
    let [nobody] = free_ports();
    let ran = run(&mut joining(4, nobody, &data), "");
    refused(&ran, &data, &["Connection refused", "name the peer port of a member that runs"]);
    assert_eq!(cluster.client(1).ask("SET k v"), "OK");
}

/// A node that joins, until its log says something.
fn spawn_until(command: &mut Command, log: &Path, words: &str) -> Child {
    command.stderr(fs::File::create(log).expect("a log file")).stdin(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    poll(words, || {
        let text = fs::read_to_string(log).unwrap_or_default();
        assert!(child.try_wait().expect("it is ours").is_none(), "{text}");
        text.contains(words).then_some(())
    });
    child
}

fn end(mut child: Child) {
    drop(child.stdin.take());
    assert!(child.wait().expect("it is ours").success());
}

/// What a removed node hears.
const REMOVED: &str =
    "node 4 has been removed from this cluster; start it with an empty data directory and --join";

/// Node 4, which joins a cluster of three.
struct Life<'a> {
    cluster: &'a Cluster,
    ports: [u16; 3],
    data: PathBuf,
    log: PathBuf,
}

impl<'a> Life<'a> {
    fn new(cluster: &'a Cluster, scratch: &Path) -> Self {
        Self { cluster, ports: free_ports(), data: scratch.join("d"), log: scratch.join("log") }
    }

    fn start(&self, boot: u64) -> Child {
        let mut command = joining_at(self.ports, 4, self.cluster.peer_port(1), &self.data);
        spawn_until(&mut command, &self.log, &format!("node 4 starts (boot {boot})"))
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// It takes a command, and the others have what came of it.
    fn serves(&self, node: &mut Child, value: &str) {
        let address = SocketAddr::from(([127, 0, 0, 1], self.ports[0]));
        poll("node 4 serves", || {
            assert!(node.try_wait().expect("it is ours").is_none(), "{}", self.log());
            (Client::try_new(address)?.try_first(&format!("SET k {value}"))? == "OK").then_some(())
        });
        assert_eq!(self.cluster.client(2).ask("GET k"), value);
    }
}

#[test]
fn a_node_is_let_in_once_and_keeps_its_directory() {
    let cluster = Cluster::start(3);
    let scratch = Scratch::new();
    let (data, log) = (scratch.path().join("d"), scratch.path().join("log"));
    let member = cluster.peer_port(3);
    let child = spawn_until(&mut joining(4, member, &data), &log, "node 4 starts (boot 1)");
    let text = fs::read_to_string(&log).expect("a log");
    assert!(text.contains("the cluster of nodes 1, 2, 3") && text.contains("has let this node in"), "{text}");
    assert!(cluster.log(3).contains("node 4 at 127.0.0.1:") && cluster.log(3).contains("joins the cluster"));
    end(child);
    let ran = run(&mut joining(5, member, &data), "");
    let last = ran.err.lines().last().unwrap_or_default();
    assert!(ran.code == Some(1) && last.contains("belongs to node 4, not to node 5"), "{}", ran.err);
    assert_eq!(cluster.client(1).ask("SET k v"), "OK");
}

/// A node joins and serves, is removed, and hears so from everybody.
#[test]
fn a_removed_node_is_told_so() {
    let cluster = Cluster::start(3);
    let scratch = Scratch::new();
    let life = Life::new(&cluster, scratch.path());
    let mut node = life.start(1);
    life.serves(&mut node, "first");
    assert_eq!(cluster.client(2).ask("MEMBER REMOVE 4"), "OK");
    poll("node 4 is refused", || life.log().contains(REMOVED).then_some(()));
    for id in 1..=3 {
        poll("the others say so", || cluster.log(id).contains(REMOVED).then_some(()));
    }
    assert_eq!(cluster.client(1).ask("SET k without"), "OK");
    end(node);
}

/// A directory that has its cluster needs nobody's permission.
#[test]
fn a_node_that_joined_starts_again_without_asking() {
    let cluster = Cluster::start(3);
    let scratch = Scratch::new();
    let life = Life::new(&cluster, scratch.path());
    let mut node = life.start(1);
    life.serves(&mut node, "first");
    end(node);
    let mut node = life.start(2);
    assert!(life.log().contains("--join is not needed any more"), "{}", life.log());
    assert!(!life.log().contains("has let this node in"), "{}", life.log());
    life.serves(&mut node, "second");
    end(node);
}

/// A removed node stays out with its old directory, and comes back under its id with an empty one, at once.
#[test]
fn a_removed_node_comes_back_empty_and_only_so() {
    let cluster = Cluster::start(3);
    let scratch = Scratch::new();
    let life = Life::new(&cluster, scratch.path());
    let mut node = life.start(1);
    life.serves(&mut node, "first");
    assert_eq!(cluster.client(2).ask("MEMBER REMOVE 4"), "OK");
    poll("node 4 is refused", || life.log().contains(REMOVED).then_some(()));
    end(node);
    let node = life.start(2);
    poll("it is refused again", || life.log().contains(REMOVED).then_some(()));
    end(node);
    fs::remove_dir_all(&life.data).expect("it is ours");
    // Boots of the second life are counted apart from those of the first.
    let mut node = life.start(Boot::before(1).0 + 1);
    life.serves(&mut node, "second");
    end(node);
}
