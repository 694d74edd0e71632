//! `quorate-server dev`, as somebody who has just built it uses it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use quorate_tests::process::{Client, Scratch, binary, next_ports, poll, run};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// A cluster for trying things out, and what it has shown.
struct Dev {
    child: Child,
    shown: String,
    base: u16,
    data: PathBuf,
}

/// A base port with room for this many nodes.
fn base_port(nodes: u16) -> u16 {
    poll("a range of free ports", || next_ports(10 * nodes).first().copied())
}

fn command(nodes: u16, base: u16, data: &Path) -> Command {
    let mut command = Command::new(binary());
    command.args(["dev", "--nodes", &nodes.to_string(), "--base-port", &base.to_string()]);
    command.arg("--data-dir").arg(data);
    command
}

impl Dev {
    fn start(nodes: u16, base: u16, data: &Path) -> Self {
        let child = command(nodes, base, data).stdout(Stdio::piped()).spawn();
        let mut child = child.expect("it starts");
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let mut shown = String::new();
        while !shown.contains("Ctrl-C") {
            let line = lines.next().expect("it shows the cluster").expect("it is text");
            shown.push_str(&line);
            shown.push('\n');
        }
        Self { child, shown, base, data: data.to_owned() }
    }

    fn client(&self, node: u16) -> Client {
        let address = SocketAddr::from(([127, 0, 0, 1], self.base + 10 * (node - 1)));
        Client::try_new(address).expect("the node listens")
    }

    fn end(&mut self, signal: Signal) -> Option<i32> {
        kill_process(Pid::from_child(&self.child), signal).expect("the process is ours");
        self.child.wait().expect("the process is ours").code()
    }

    /// The processes of its nodes, as they have written them down.
    fn nodes(&self) -> Vec<Pid> {
        let locks = fs::read_dir(&self.data).expect("it is there").filter_map(|file| {
            let text = fs::read_to_string(file.ok()?.path().join("LOCK")).ok()?;
            Pid::from_raw(text.trim().parse().ok()?)
        });
        locks.collect()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn three_nodes_show_themselves_and_keep_their_data_over_ctrl_c() {
    let scratch = Scratch::new();
    let (base, data) = (base_port(3), scratch.path().join("data"));
    let mut dev = Dev::start(3, base, &data);
    let heading: Vec<&str> = dev.shown.lines().nth(1).unwrap_or_default().split_whitespace().collect();
    assert_eq!(heading, ["node", "client", "peer", "admin", "leader"]);
    let rows: Vec<&str> = dev.shown.lines().skip(2).take(3).collect();
    for (row, id) in rows.iter().zip(1..) {
        let port = |n: u16| format!("127.0.0.1:{}", base + 10 * (id - 1) + n);
        let words: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(words[..4], [id.to_string(), port(0), port(1), port(2)]);
    }
    assert_eq!(rows.iter().filter(|row| row.ends_with("yes")).count(), 1, "one leads: {}", dev.shown);
    for words in [&format!("nc 127.0.0.1 {base}"), "redis-cli -p", "LOCK db", "PUB jobs hello", "FETCH jobs"]
    {
        assert!(dev.shown.contains(words), "{words}: {}", dev.shown);
    }
    assert_eq!(dev.client(1).ask("SET greeting hi"), "OK");
    assert_eq!(dev.end(Signal::INT), Some(0));
    let log = fs::read_to_string(data.join("node1.log")).expect("a log");
    assert!(log.contains("node 1 stops"), "its nodes were told to stop: {log}");

    let mut dev = Dev::start(3, base, &data);
    assert_eq!(dev.client(3).ask("GET greeting"), "hi");
    assert_eq!(dev.nodes().len(), 3);
    let others = run(&mut command(3, base, &scratch.path().join("other")), "");
    assert_eq!(others.code, Some(1));
    assert_eq!(others.err.lines().count(), 1, "{}", others.err);
    assert!(others.err.contains(&format!("port {base} is taken")) && others.err.contains("--base-port"));
    assert_eq!(dev.end(Signal::TERM), Some(0));
    let refused = |nodes, base, data: &Path, words: &[&str]| {
        let ran = run(&mut command(nodes, base, data), "");
        assert_eq!((ran.code, ran.err.lines().count()), (Some(1), 1), "{}", ran.err);
        for word in words {
            assert!(ran.err.contains(word), "'{word}' is missing: {}", ran.err);
        }
    };
    let join = format!("--node-id 4 --join 127.0.0.1:{}", base + 1);
    refused(5, base, &data, &["holds a cluster of 3 nodes, not 5", "--nodes 3", &join, "--data-dir"]);
    refused(1, base, &data, &["holds a cluster of 3 nodes, not 1", "--nodes 3"]);
    let free = base_port(3);
    refused(3, free, &data, &[&format!("whose first port is {base}, not {free}"), "--base-port"]);
    let spoilt = scratch.path().join("spoilt");
    fs::create_dir_all(&spoilt).expect("it can be made");
    fs::write(spoilt.join("node1"), "not a directory").expect("it can be written");
    refused(3, free, &spoilt, &["node 1 has ended", "Not a directory", "node1.log"]);
}

#[test]
fn no_node_outlives_its_parent() {
    let scratch = Scratch::new();
    let (base, data) = (base_port(3), scratch.path().join("data"));
    let mut dev = Dev::start(3, base, &data);
    let nodes = dev.nodes();
    assert_eq!(nodes.len(), 3);
    assert_eq!(dev.end(Signal::KILL), None);
    for node in nodes {
        poll("the node has ended", || test_kill_process(node).is_err().then_some(()));
    }
    let dev = Dev::start(3, base, &data);
    assert_eq!(dev.client(1).ask("PING"), "PONG");
}

#[test]
fn one_node_and_five_work_as_well() {
    let scratch = Scratch::new();
    for nodes in [1, 5] {
        let mut dev = Dev::start(nodes, base_port(nodes), &scratch.path().join(nodes.to_string()));
        let mut client = dev.client(nodes);
        for n in 0..40 {
            poll("every partition serves", || (client.ask(&format!("SET k{n} {n}")) == "OK").then_some(()));
            assert_eq!(dev.client(1).ask(&format!("GET k{n}")), n.to_string());
        }
        assert!(dev.client(1).ask("LOCK db").parse::<u64>().is_ok());
        assert_eq!(dev.end(Signal::INT), Some(0));
    }
}
