//! Starts that must not succeed, and the one line that says what to do; where settings come from.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use quorate_protocol::limits::{ADMIN_CONNECTIONS_MAX, PEER_CONNECTIONS_MAX};
use quorate_tests::process::{Client, Cluster, Ran, Scratch, binary, free_ports, poll, run};

/// A node that could start: everything is in place but what a test spoils.
fn node(data: &Path) -> Command {
    let [client, peer, admin] = free_ports();
    let mut command = Command::new(binary());
    for (flag, port) in [("--listen", client), ("--peer-listen", peer), ("--admin-listen", admin)] {
        command.args([flag, &format!("127.0.0.1:{port}")]);
    }
    command.args(["--initial-cluster", &format!("1=127.0.0.1:{}", 7412)]);
    // Should it start against all expectation, it ends with its input.
    command.arg("--end-with-stdin").arg("--data-dir").arg(data);
    command
}

/// The process has failed, and said in one line all of this.
fn refused(ran: &Ran, words: &[&str]) {
    let Ran { code, out, err } = ran;
    assert!(code.is_some_and(|code| code != 0), "exit code {code:?}: {err}");
    assert_eq!(err.trim_end().lines().count(), 1, "one line: {err}");
    assert!(out.is_empty(), "nothing on standard output: {out}");
    assert!(err.starts_with("quorate-server: ") && !err.contains("panicked"), "{err}");
    for word in words {
        assert!(err.contains(word), "'{word}' is missing: {err}");
    }
}

/// Starts a node that founds its directory, and stops it.
fn found(data: &Path) {
    let ran = run(&mut node(data), "");
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(ran.err.contains("node 1 starts (boot 1)") && ran.err.contains("node 1 stops"), "{}", ran.err);
}

#[test]
fn a_port_that_is_taken_is_named() {
    let cluster = Cluster::start(1);
    let scratch = Scratch::new();
    let port = cluster.port(1);
    let mut command = Command::new(binary());
    let [peer, admin] = free_ports();
    command.args(["--listen", &format!("127.0.0.1:{port}"), "--peer-listen", &format!("127.0.0.1:{peer}")]);
    command.args(["--admin-listen", &format!("127.0.0.1:{admin}")]);
    command.arg("--data-dir").arg(scratch.path().join("d"));
    let ran = run(&mut command, "");
    refused(&ran, &[&format!("port {port} is taken"), "--listen"]);
    assert!(!scratch.path().join("d").exists(), "a node without ports makes no directory");
}

/// Whoever is not let in leaves nothing behind; what was there before stays.
#[test]
fn a_refused_join_makes_no_directory() {
    let cluster = Cluster::start(1);
    let scratch = Scratch::new();
    let (outer, inner) = (scratch.path().join("outer"), scratch.path().join("outer/d"));
    let join = || {
        let [client, peer, admin] = free_ports();
        let mut command = Command::new(binary());
        for (flag, port) in [("--listen", client), ("--peer-listen", peer), ("--admin-listen", admin)] {
            command.args([flag, &format!("127.0.0.1:{port}")]);
        }
        command.args(["--node-id", "1", "--join", &cluster.peer_address(1).to_string()]);
        run(command.arg("--end-with-stdin").arg("--data-dir").arg(&inner), "")
    };
    refused(&join(), &["--join", "this is node 1; choose another --node-id"]);
    assert!(!outer.exists(), "it made them all");
    fs::create_dir(&outer).expect("it can be made");
    refused(&join(), &["--join", "this is node 1; choose another --node-id"]);
    assert!(outer.exists() && !inner.exists(), "it made one of them");
}

#[test]
fn a_directory_in_use_is_not_touched() {
    let cluster = Cluster::start(1);
    let ran = run(&mut node(&cluster.data_dir(1)), "");
    refused(&ran, &["is in use by process", "--data-dir"]);
    assert_eq!(cluster.client(1).ask("SET k v"), "OK", "the node that has it goes on");
}

#[test]
fn a_foreign_directory_is_refused() {
    let scratch = Scratch::new();
    let data = scratch.path().join("d");
    found(&data);
    let other = |spec: &str, id: &str| {
        let [client, peer, admin] = free_ports();
        let mut command = Command::new(binary());
        command.args(["--node-id", id, "--initial-cluster", spec]).arg("--data-dir").arg(&data);
        for (flag, port) in [("--listen", client), ("--peer-listen", peer), ("--admin-listen", admin)] {
            command.args([flag, &format!("127.0.0.1:{port}")]);
        }
        run(&mut command, "")
    };
    refused(&other("2=127.0.0.1:7412", "2"), &["belongs to node 1, not to node 2", "--node-id"]);
    let ran = other("1=127.0.0.1:7412,2=127.0.0.1:7422", "1");
    refused(&ran, &["belongs to another cluster", "1=127.0.0.1:7412", "--initial-cluster"]);
}

#[test]
fn a_place_with_other_files_is_no_data_directory() {
    let scratch = Scratch::new();
    let home = scratch.path().join("home");
    fs::create_dir(&home).expect("it can be made");
    fs::write(home.join("letter.txt"), "dear").expect("it can be written");
    refused(&run(&mut node(&home), ""), &["holds letter.txt", "--data-dir"]);
    let cluster = Cluster::start(1);
    let mut joins = Command::new(binary());
    joins
        .args(["--node-id", "2", "--join", &cluster.peer_address(1).to_string()])
        .arg("--data-dir")
        .arg(&home);
    for (flag, port) in ["--listen", "--peer-listen", "--admin-listen"].into_iter().zip(free_ports::<3>()) {
        joins.args([flag, &format!("127.0.0.1:{port}")]);
    }
    refused(&run(&mut joins, ""), &["holds letter.txt", "--data-dir"]);
    assert!(!cluster.client(1).ask_all("MEMBERS").contains("node: 2"), "it was not let in");
    let left: Vec<_> = fs::read_dir(&home).expect("it is there").collect();
    assert_eq!(left.len(), 1, "nothing was made there: {left:?}");
    // At the top of a file system there may be something from the beginning.
    fs::remove_file(home.join("letter.txt")).expect("it is ours");
    fs::create_dir(home.join("lost+found")).expect("it can be made");
    found(&home);
    fs::write(home.join("letter.txt"), "dear").expect("it can be written");
    found_again(&home);
}

#[test]
fn a_directory_that_cannot_be_used_is_named() {
    let scratch = Scratch::new();
    let file = scratch.path().join("file");
    fs::write(&file, "not a directory").expect("it can be written");
    refused(&run(&mut node(&file), ""), &["file", "Not a directory", "--data-dir"]);
    // Root may write anywhere but in /proc.
    let locked = if rustix::process::geteuid().is_root() {
        Path::new("/proc/quorate").to_owned()
    } else {
        let locked = scratch.path().join("locked");
        fs::create_dir(&locked).expect("it can be made");
        fs::set_permissions(&locked, fs::Permissions::from_mode(0o500)).expect("it is ours");
        locked
    };
    refused(&run(&mut node(&locked), ""), &["data directory", "check the path and its permissions"]);
}

#[test]
fn damage_is_told_and_nothing_is_guessed() {
    let scratch = Scratch::new();
    let data = scratch.path().join("d");
    found(&data);
    found_again(&data);
    let first = fs::read_dir(data.join("journal")).expect("it is there");
    let first = first.map(|entry| entry.expect("it is there").file_name().into_string().expect("it is ours"));
    let first =
        format!("journal/{}", first.filter(|name| name.ends_with(".seg")).min().expect("there is one"));
    let whole = scratch.path().join("whole");
    copy(&data, &whole);
    let told = |file: &str, change: &dyn Fn(&mut Vec<u8>), words: &[&str]| {
        fs::remove_dir_all(&data).expect("it is ours");
        copy(&whole, &data);
        let path = data.join(file);
        let mut bytes = fs::read(&path).expect("it is there");
        change(&mut bytes);
        fs::write(&path, &bytes).expect("it is ours");
        let ran = run(&mut node(&data), "");
        // Nobody else has what this node had.
        assert_eq!(ran.code, Some(if words.is_empty() { 0 } else { 1 }), "{file}: {}", ran.err);
        let told =
            |line: &&str| line.contains(" is damaged at offset ") && line.contains("nothing was changed");
        let warning = ran.err.lines().find(told);
        assert_eq!(warning.is_some(), !words.is_empty(), "{file}: {}", ran.err);
        for word in words {
            assert!(warning.is_some_and(|warning| warning.contains(word)), "{word}: {}", ran.err);
        }
    };
    told(&first, &|bytes| bytes[20] ^= 1, &[&first, "the first record is unreadable"]);
    told(&first, &|bytes| bytes[600] ^= 1, &[&first]);
    told("hardstate", &|bytes| bytes.fill(7), &["neither copy can be read"]);
    told("hardstate", &Vec::clear, &["neither copy can be read"]);
    // One copy of two is enough, and so is the copy of `meta` in the other file.
    told("meta", &|bytes| bytes.fill(0), &[]);
    told("meta", &|bytes| bytes[30] ^= 1, &[]);
    told("hardstate", &|bytes| bytes[30] ^= 1, &[]);
    fs::write(data.join("meta"), [0; 100]).expect("it is ours");
    fs::write(data.join("hardstate"), [0; 100]).expect("it is ours");
    refused(&run(&mut node(&data), ""), &["meta is damaged at offset 0", "with an empty directory"]);
}

/// Copies a data directory.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("it can be made");
    for entry in fs::read_dir(from).expect("it is there") {
        let path = entry.expect("it is there").path();
        let target = to.join(path.file_name().expect("it has a name"));
        if path.is_dir() {
            copy(&path, &target);
        } else if !path.ends_with("reserve") && !path.ends_with("LOCK") {
            fs::copy(&path, &target).expect("there is room");
        }
    }
}

/// Starts a node on a directory that was founded before, until it has its session, and stops it.
fn found_again(data: &Path) {
    let log = data.with_extension("log");
    let mut command = node(data);
    command.stderr(fs::File::create(&log).expect("a log file")).stdin(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    poll("it has its session", || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        assert!(child.try_wait().expect("it is ours").is_none(), "{text}");
        text.contains("is open").then_some(())
    });
    drop(child.stdin.take());
    assert!(child.wait().expect("it is ours").success());
}

#[test]
fn wrong_settings_are_explained_in_one_line() {
    let scratch = Scratch::new();
    let write = |name: &str, text: &str| {
        let path = scratch.path().join(name);
        fs::write(&path, text).expect("it can be written");
        path.display().to_string()
    };
    let unknown = write("unknown.toml", "node-id = 1\nport = 5\n");
    let syntax = write("syntax.toml", "node-id = 1\nlisten = \"127.0.0.1:1\n");
    let kind = write("kind.toml", "log-format = \"xml\"\n");
    for (args, words) in [
        (&["--bogus"][..], &["--bogus", "--help"][..]),
        (&["--node-id", "x"], &["--node-id", "invalid"]),
        (&["--node-id", "0"], &["numbered from 1"]),
        (&["--listen", "here"], &["--listen", "here"]),
        (&["--listen"], &["--listen", "value"]),
        (&["--log-format", "xml"], &["text, json"]),
        (&["--log-level", "loud"], &["error, warn, info, debug or trace"]),
        (&["--initial-cluster", "1:a"], &["ID=HOST:PEERPORT"]),
        (&["--initial-cluster", "2=a:1"], &["does not name node 1"]),
        (&["--initial-cluster", "1=a:1,1=b:2"], &["names node 1 twice"]),
        (&["--initial-cluster", "1=a:1,2=a:1"], &["nodes 1 and 2 the address a:1", "give each node its own"]),
        (&["--node-id", "4294967296", "--initial-cluster", "4294967296=a:1"], &["from 1 to 4294967295"]),
        (&["--initial-cluster", "1=a:1,4294967296=b:1"], &["node 4294967296", "from 1 to 4294967295"]),
        (&["--join", "a:1"], &["--join needs --node-id"]),
        (&["--node-id", "4", "--join", "here"], &["'here' is not HOST:PEERPORT"]),
        (&["--node-id", "4", "--join", "a:1", "--initial-cluster", "4=a:1"], &["give one of them"]),
        (&["--node-id", "4", "--join", "a:1", "--peer-listen", "0.0.0.0:1"], &["--peer-advertise"]),
        (&["--peer-advertise", "here"], &["'here' is not HOST:PEERPORT"]),
        (&["serve"], &["serve", "--help"]),
        (&["--node-id", "1", "dev"], &["cannot be used with"]),
        (&["dev", "--nodes", "99"], &["--nodes", "1..=9"]),
        (&["--config", "/nowhere.toml"], &["/nowhere.toml", "No such file"]),
        (&["--config", &unknown], &["line 2", "port", "expected one of"]),
        (&["--config", &syntax], &["line 2"]),
        (&["--config", &kind], &["line 1", "xml"]),
    ] {
        refused(&run(Command::new(binary()).args(args), ""), words);
    }
    let ran = run(Command::new(binary()).env("QUORATE_NODE_ID", "first"), "");
    refused(&ran, &["--node-id", "first"]);
}

#[test]
fn the_file_is_overruled_by_the_environment_and_that_by_flags() {
    let scratch = Scratch::new();
    let file = scratch.path().join("quorate.toml");
    fs::write(
        &file,
        "node-id = 2\nlog-level = \"debug\"\nlisten = \"127.0.0.1:1001\"\npeer-listen = \"127.0.0.1:1002\"\n\
         initial-cluster = \"1=a:1,2=b:1,3=c:1\"\n",
    )
    .expect("it can be written");
    let mut command = Command::new(binary());
    command.env("QUORATE_CONFIG", &file).env("QUORATE_LISTEN", "127.0.0.1:2001");
    command.env("QUORATE_PEER_LISTEN", "127.0.0.1:2002");
    let ran = run(command.args(["--peer-listen", "127.0.0.1:3002", "--print-config"]), "");
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    for line in [
        "node-id = 2",
        "log-level = \"debug\"",
        "listen = \"127.0.0.1:2001\"",
        "peer-listen = \"127.0.0.1:3002\"",
        "admin-listen = \"127.0.0.1:7413\"",
        "advertise = \"127.0.0.1:2001\"",
        "peer-advertise = \"b:1\"",
        "initial-cluster = \"1=a:1,2=b:1,3=c:1\"",
    ] {
        assert!(ran.out.lines().any(|shown| shown == line), "{line}: {}", ran.out);
    }
    let again = scratch.path().join("again.toml");
    fs::write(&again, &ran.out).expect("it can be written");
    let reread = run(Command::new(binary()).arg("--config").arg(&again).arg("--print-config"), "");
    assert_eq!(reread.out, ran.out, "what is printed is a file that says the same: {}", reread.err);
}

/// The bound of open files is the bound of clients: whoever comes after is told, and room is used again.
#[test]
fn clients_beyond_the_bound_are_refused_with_a_reason() {
    let scratch = Scratch::new();
    let [client, peer, admin] = free_ports();
    let log = fs::File::create(scratch.path().join("log")).expect("a log file");
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 300 && exec \"$0\" \"$@\""]).arg(binary());
    for (flag, port) in [("--listen", client), ("--peer-listen", peer), ("--admin-listen", admin)] {
        command.args([flag, &format!("127.0.0.1:{port}")]);
    }
    command.arg("--data-dir").arg(scratch.path().join("d")).arg("--end-with-stdin");
    let mut node = command.stdin(Stdio::piped()).stderr(log).spawn().expect("it starts");
    let address = SocketAddr::from(([127, 0, 0, 1], client));
    poll("it listens", || Client::try_new(address)?.try_first("PING"));
    let mut clients = Vec::new();
    let refusal = poll("a refusal", || {
        let mut client = Client::try_new(address)?;
        let answer = client.try_first("PING")?;
        if answer == "PONG" {
            clients.push(client);
            return None;
        }
        Some(answer)
    });
    assert_eq!(refusal, "-BUSY 150 clients are connected; close some, or ask another node");
    assert_eq!(clients.last_mut().expect("some were served").ask("PING"), "PONG");
    clients.truncate(100);
    poll("room again", || (Client::try_new(address)?.try_first("PING")? == "PONG").then_some(()));
    let log = fs::read_to_string(scratch.path().join("log")).expect("a log");
    assert!(log.contains("only 150 clients can be served") && log.contains("ulimit -n"), "{log}");
    drop(node.stdin.take());
    assert!(node.wait().expect("it is ours").success());
}

/// A flood of connections that say nothing: the ports that serve no clients close what is above their bound,
/// so that the journal has its files.
#[test]
fn the_peer_and_admin_ports_take_a_bounded_number_of_connections() {
    let cluster = Cluster::start(1);
    let ports = [
        ("peer", cluster.peer_port(1), PEER_CONNECTIONS_MAX),
        ("admin", cluster.admin_port(1), ADMIN_CONNECTIONS_MAX),
    ];
    for (name, port, max) in ports {
        let mut flood: Vec<TcpStream> = (0..max + 8)
            .map(|_| TcpStream::connect(("127.0.0.1", port)).expect("the node listens"))
            .collect();
        let last = flood.last_mut().expect("there are many");
        let closed = last.read(&mut [0]);
        assert!(!matches!(closed, Ok(1..)), "the last one is closed: {closed:?}");
        flood[0].set_nonblocking(true).expect("it stands");
        let open = flood[0].read(&mut [0]).map_err(|error| error.kind());
        assert_eq!(open, Err(ErrorKind::WouldBlock), "the first one is let in");
        let line = format!("{max} connections stand at the {name} port; more are closed at once");
        assert_eq!(cluster.log(1).matches(&line).count(), 1, "said once: {line}");
        assert_eq!(cluster.client(1).ask("SET k v"), "OK");
    }
    let visit = || {
        let mut stream = TcpStream::connect(("127.0.0.1", cluster.admin_port(1))).ok()?;
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        text.contains("alive").then_some(())
    };
    poll("room again", visit);
}

/// A node that has lost its directory has forgotten what it promised: the others do not let it in.
#[test]
fn a_node_with_a_new_directory_is_refused_by_its_peers() {
    let mut cluster = Cluster::start(3);
    assert_eq!(cluster.client(1).ask("SET k v"), "OK");
    cluster.kill(3);
    fs::remove_dir_all(cluster.data_dir(3)).expect("it is ours");
    cluster.spawn(3);
    for id in [1, 2, 3] {
        poll("the refusal is logged", || {
            let log = cluster.log(id);
            (log.contains("node 3 is known with another data directory")
                && log.contains("quorate member remove 3")
                && log.contains("an empty directory and --join"))
            .then_some(())
        });
    }
    for n in 0..20 {
        let mut client = cluster.client(1 + n % 2);
        poll("the cluster goes on", || (client.ask(&format!("SET k{n} {n}")) == "OK").then_some(()));
    }
    assert!(cluster.client(3).ask("SET k w").starts_with("-CLUSTERDOWN"), "it serves nobody");
    assert_eq!(cluster.client(1).ask("GET k"), "v");
}
