//! `quorate-server dev`: a whole cluster on this machine, to try things out.
//!
//! Each node is a process of its own with its own data and log. They end with this process, however it ends:
//! each reads its standard input, which this process holds open, and ends when that does.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write, stdout};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{SignalKind, signal};

use crate::config::DevFlags;
use crate::founded::founded;

/// Pause between two looks at the nodes.
const PAUSE: Duration = Duration::from_millis(50);
/// How long the nodes may take to find a leader.
const PATIENCE: Duration = Duration::from_secs(30);

struct Node {
    id: u16,
    client: String,
    peer: String,
    admin: String,
    log: PathBuf,
    child: Child,
    /// Its end was reported.
    gone: bool,
}

/// Runs a cluster until Ctrl-C or SIGTERM.
///
/// # Errors
/// With one line that says what to do.
pub fn run(flags: &DevFlags) -> Result<(), String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| error.to_string())?;
        let mut nodes = start(flags)?;
        let result = tokio::select! {
            result = watch(&mut nodes) => result,
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        };
        stop(&mut nodes);
        result
    })
}

fn start(flags: &DevFlags) -> Result<Vec<Node>, String> {
    let failed = |error: std::io::Error| format!("--data-dir {}: {error}", flags.data_dir.display());
    fs::create_dir_all(&flags.data_dir).map_err(failed)?;
    let port = |id: u16, offset: u16| format!("127.0.0.1:{}", flags.base_port + 10 * (id - 1) + offset);
    let spec: Vec<String> = (1..=flags.nodes).map(|id| format!("{id}={}", port(id, 1))).collect();
    check_founded(flags)?;
    for port in (1..=flags.nodes).flat_map(|id| (0..3).map(move |offset| port(id, offset))) {
        check_free(&port)?;
    }
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut nodes = Vec::new();
    for id in 1..=flags.nodes {
        let (client, peer, admin) = (port(id, 0), port(id, 1), port(id, 2));
        let log = flags.data_dir.join(format!("node{id}.log"));
        let mut command = Command::new(&program);
        command.args([
            "--node-id",
            &id.to_string(),
            "--initial-cluster",
            &spec.join(","),
            "--end-with-stdin",
        ]);
        command.args(["--listen", &client, "--peer-listen", &peer, "--admin-listen", &admin]);
        command.arg("--data-dir").arg(flags.data_dir.join(format!("node{id}")));
        // What the environment says of a node cannot be true of all of them.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("QUORATE_") {
                command.env_remove(name);
            }
        }
        let file = File::options().create(true).append(true).open(&log).map_err(failed)?;
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(file).spawn();
        match child {
            Ok(child) => nodes.push(Node { id, client, peer, admin, log, child, gone: false }),
            Err(error) => {
                stop(&mut nodes);
                return Err(format!("node {id} cannot be started: {error}"));
            }
        }
    }
    Ok(nodes)
}

/// Waits for a leader, shows the cluster, then looks after the nodes for good.
async fn watch(nodes: &mut [Node]) -> Result<(), String> {
    let mut shown = false;
    let mut waited = Duration::ZERO;
    loop {
        for at in 0..nodes.len() {
            let node = &mut nodes[at];
            let status = if node.gone { None } else { node.child.try_wait().ok().flatten() };
            let Some(status) = status else { continue };
            node.gone = true;
            let text = obituary(node, status);
            if !shown || nodes.iter().all(|node| node.gone) {
                return Err(format!("{text}{}", if shown { "; none is left" } else { "" }));
            }
            say(&format!("{text}; the others go on\n"));
        }
        if !shown
            && let Some(leader) = nodes.iter().try_fold(String::new(), |_, node| leader_seen_by(&node.client))
        {
            shown = true;
            show(nodes, &leader);
        }
        if !shown && waited > PATIENCE {
            return Err(format!(
                "no leader was found within {PATIENCE:?}; see the logs, {}",
                nodes[0].log.display()
            ));
        }
        tokio::time::sleep(PAUSE).await;
        waited += PAUSE;
    }
}

/// A directory that holds another cluster: each node would refuse it for itself, and say less.
fn check_founded(flags: &DevFlags) -> Result<(), String> {
    let nodes = (1..=flags.nodes).map(|id| flags.data_dir.join(format!("node{id}")));
    let Some(meta) = nodes.filter_map(|dir| founded(&dir).ok().flatten()).next() else { return Ok(()) };
    let (dir, there) = (flags.data_dir.display(), meta.founders.len());
    let ports =
        meta.founders.iter().filter_map(|(_, address)| address.rsplit(':').next()?.parse::<u16>().ok());
    let base = ports.min().unwrap_or_default().saturating_sub(1);
    if there != usize::from(flags.nodes) {
        return Err(format!(
            "{dir} holds a cluster of {there} nodes, not {}; start it with --nodes {there} (and let further nodes join \
             with quorate-server --node-id {} --join 127.0.0.1:{}), or choose another --data-dir",
            flags.nodes,
            there + 1,
            base + 1,
        ));
    }
    if base != flags.base_port {
        return Err(format!(
            "{dir} holds a cluster whose first port is {base}, not {}; start it with --base-port {base}, or choose \
             another --data-dir",
            flags.base_port
        ));
    }
    Ok(())
}

/// A node that cannot have its port says so in its log; here it can be said before anything is started.
fn check_free(address: &str) -> Result<(), String> {
    match TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            let port = address.rsplit(':').next().unwrap_or_default();
            Err(format!(
                "port {port} is taken by another process; stop it, or choose others with --base-port"
            ))
        }
        Err(error) => {
            Err(format!("cannot listen on {address}: {error}; choose other ports with --base-port"))
        }
    }
}

fn obituary(node: &Node, status: ExitStatus) -> String {
    if status.signal().is_some() {
        // Whoever sent it knows why; the log does not.
        return format!("node {} has ended ({status})", node.id);
    }
    let log = fs::read_to_string(&node.log).unwrap_or_default();
    let last = log.lines().last().unwrap_or("it said nothing").trim_start_matches("quorate-server: ");
    format!("node {} has ended ({status}): {last} (more in {})", node.id, node.log.display())
}

/// The client address of the leader, as a node sees it.
fn leader_seen_by(client: &str) -> Option<String> {
    let mut stream = TcpStream::connect(client).ok()?;
    stream.set_read_timeout(Some(PAUSE * 20)).ok()?;
    stream.write_all(b"LEADER\r\n").ok()?;
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    first.starts_with("1) ").then_some(())?;
    Some(lines.next()?.ok()?.trim_start_matches("2) ").to_owned())
}

fn show(nodes: &[Node], leader: &str) {
    let mut text = format!("\n{:<6}{:<18}{:<18}{:<18}leader\n", "node", "client", "peer", "admin");
    for node in nodes {
        let mark = if node.client == leader { "yes" } else { "" };
        let line = format!("{:<6}{:<18}{:<18}{:<18}{mark}", node.id, node.client, node.peer, node.admin);
        text.push_str(line.trim_end());
        text.push('\n');
    }
    let port = |at: usize| nodes[at % nodes.len()].client.rsplit(':').next().unwrap_or_default().to_owned();
    let (one, two, three) = (port(0), port(1), port(2));
    text.push_str(&format!(
        "\nAny node serves any command. Try, in another terminal:\n\n\
         $ nc 127.0.0.1 {one}\n\
         LOCK db                      a fencing token: this connection holds the lock\n\
         PUB jobs hello               the message's id\n\
         SET greeting hi              OK, durable on a majority\n\
         HELP                         all commands\n\n\
         $ redis-cli -p {two}\n\
         LOCK db                      (nil): it is held; WAIT 60000 waits for it\n\
         FETCH jobs                   the message, leased to you for 30 s; ACK jobs ID settles it\n\n\
         $ redis-cli -p {three} GET greeting\n\n\
         Ctrl-C stops all nodes; their data stays in {}.\n",
        nodes[0].log.parent().map(|path| path.display().to_string()).unwrap_or_default(),
    ));
    say(&text);
}

fn say(text: &str) {
    let mut out = stdout().lock();
    // Nobody may be reading.
    let _ = out.write_all(text.as_bytes());
    let _ = out.flush();
}

fn stop(nodes: &mut [Node]) {
    for node in nodes.iter().filter(|node| !node.gone) {
        // It may have ended by itself.
        let _ = kill_process(Pid::from_child(&node.child), Signal::TERM);
    }
    for node in nodes {
        let _ = node.child.wait();
    }
}
