//! `quorate`, the command line, as people and scripts use it on a running cluster.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use quorate_tests::process::{Cluster, Ran, cli, free_ports, poll, run};
use rustix::process::{Pid, Signal, kill_process};

/// `quorate` with these words, at a node.
fn quorate(cluster: &Cluster, node: usize, words: &[&str]) -> Command {
    let mut command = Command::new(cli());
    command.env_remove("QUORATE_SERVER").arg("--server").arg(cluster.address(node).to_string()).args(words);
    command
}

fn ran(cluster: &Cluster, words: &[&str]) -> Ran {
    run(&mut quorate(cluster, 1, words), "")
}

/// What it says; it must succeed.
#[track_caller]
fn said(cluster: &Cluster, words: &[&str]) -> String {
    let ran = ran(cluster, words);
    assert_eq!(ran.code, Some(0), "{words:?}: {ran:?}");
    ran.out
}

#[track_caller]
fn fails(cluster: &Cluster, words: &[&str], code: i32, why: &str) {
    let ran = ran(cluster, words);
    assert_eq!(ran.code, Some(code), "{words:?}: {ran:?}");
    assert!(ran.err.contains(why), "{words:?}: {ran:?}");
    assert_eq!(ran.out, "", "{words:?}");
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).expect("the process is ours");
}

/// A program that runs on while the test does something, and the lines that it writes.
struct Running {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        Self { child, lines }
    }

    /// The next line that begins so.
    fn line(&mut self, start: &str) -> String {
        loop {
            let line = self.lines.next().expect("it goes on").expect("it is text");
            if line.starts_with(start) {
                return line;
            }
        }
    }

    /// Its exit code, and what it complained about.
    fn end(self) -> (Option<i32>, String) {
        let output = self.child.wait_with_output().expect("the process is ours");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

#[test]
fn any_command_is_passed_on_and_its_outcome_is_the_exit_code() {
    let cluster = Cluster::start(1);
    assert_eq!(said(&cluster, &["SET", "k", "a b"]), "OK\n");
    assert_eq!(said(&cluster, &["get", "k"]), "a b\n");
    assert_eq!(said(&cluster, &["get", "nothing"]), "(nil)\n");
    assert_eq!(said(&cluster, &["--", "get", "k"]), "a b\n");
    assert_eq!(said(&cluster, &["-o", "json", "get", "nothing"]), "null\n");
    assert_eq!(said(&cluster, &["-o", "json", "get", "k"]), "\"a b\"\n");
    assert!(said(&cluster, &["--", "status"]).contains("session: open"), "the command, not the table");
    assert!(said(&cluster, &["help", "lock"]).contains("LOCK name"));
    let token: u64 = said(&cluster, &["lock", "db", "OWNER", "me"]).trim().parse().expect("a token");
    assert_eq!(said(&cluster, &["unlock", "db", "OWNER", "me", "TOKEN", &token.to_string()]), "1\n");

    fails(&cluster, &["INCR", "k"], 1, "quorate: ERR value is not an integer");
    fails(&cluster, &["GET"], 1, "usage: GET key");
    fails(&cluster, &["NOSUCH", "x"], 1, "unknown command 'NOSUCH'");
    fails(&cluster, &["--output", "json", "GET"], 1, r#"{"error":{"code":"ERR""#);
    fails(&cluster, &["LOCK", "db"], 2, "quorate lock NAME -- PROGRAM");
    fails(&cluster, &["lock", "db", "--ttl", "500"], 2, "say what to run");
    fails(&cluster, &["--nosuch"], 2, "--nosuch");
    let [port] = free_ports();
    let nobody = format!("127.0.0.1:{port}");
    for words in [["PING", "hello"], ["GET", "k"]] {
        let ran = run(Command::new(cli()).args(["--server", &nobody]).args(words), "");
        assert_eq!(ran.code, Some(69), "{ran:?}");
        assert!(ran.err.contains(&nobody) && ran.err.contains("--server"), "{ran:?}");
    }
    let both = format!("{nobody},{}", cluster.address(1));
    let ran = run(Command::new(cli()).env("QUORATE_SERVER", both).args(["GET", "k"]), "");
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "a b\n"), "the first that answers: {}", ran.err);
}

#[test]
fn lines_from_a_pipe_share_a_connection_and_all_are_obeyed() {
    let cluster = Cluster::start(1);
    let script = "SET k 'x y'\nINCR k\nLOCK mine\n\nLOCK mine\nPUB t m\nFETCH t\nGET k\n";
    let ran = run(&mut quorate(&cluster, 1, &[]), script);
    assert_eq!(ran.code, Some(1), "one of them failed: {ran:?}");
    assert!(ran.err.contains("not an integer"), "{ran:?}");
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!((lines[0], lines[lines.len() - 1]), ("OK", "x y"), "{ran:?}");
    assert_eq!(lines[1], lines[2], "the same owner asks again: {ran:?}");
    assert!(lines[4].ends_with(" 1 m"), "{ran:?}");
    let mut subscriber = Running::start(quorate(&cluster, 1, &["sub", "t"]));
    said(&cluster, &["pub", "t", "later"]);
    assert!(subscriber.line("message t").ends_with(" 2 m"));
    assert!(subscriber.line("message t").ends_with(" 1 later"));
    signal(&subscriber.child, Signal::INT);
    assert_eq!(subscriber.end().0, Some(130));
}

#[test]
fn status_shows_the_cluster_also_when_it_cannot_decide() {
    let mut cluster = Cluster::start(3);
    let table = poll("a healthy table", || {
        let table = said(&cluster, &["status"]);
        (table.lines().filter(|line| line.ends_with(" ok")).count() == 3 + 17).then_some(table)
    });
    for id in 1..=3 {
        let address = cluster.address(id).to_string();
        assert!(
            table.lines().any(|line| line.starts_with(&id.to_string()) && line.contains(&address)),
            "{table}"
        );
    }
    let members = said(&cluster, &["members"]);
    assert!(members.lines().skip(1).all(|line| line.contains(" active ")), "{members}");
    let json: serde_json::Value =
        serde_json::from_str(&said(&cluster, &["-o", "json", "status"])).expect("JSON");
    assert_eq!(json["nodes"].as_array().map(Vec::len), Some(3), "{json}");
    assert_eq!(json["groups"][5]["replicas"].as_array().map(Vec::len), Some(3), "{json}");
    cluster.kill(2);
    let table = said(&cluster, &["status"]);
    assert!(table.lines().any(|line| line.starts_with('2') && line.ends_with("no answer")), "{table}");
    assert!(table.contains("no answer from 2"), "{table}");
    cluster.kill(3);
    poll("no leader is left", || {
        let table = said(&cluster, &["status"]);
        table.lines().any(|line| line.starts_with("0 ") && line.ends_with("no leader")).then_some(())
    });
}

#[test]
fn a_program_runs_while_its_lock_is_held() {
    let cluster = Cluster::start(1);
    let mut talk = cluster.client(1);
    let ran = ran(&cluster, &["lock", "db", "--", "sh", "-c", "echo $QUORATE_TOKEN; cat >&2; exit 7"]);
    assert_eq!(ran.code, Some(7), "the program's own status: {ran:?}");
    let token: u64 = ran.out.trim().parse().expect("a token");
    assert!(token > 0);
    assert!(talk.ask_all("LOCKINFO db").contains("holding: 0"), "it is released");
    let code = |script: &str| self::ran(&cluster, &["lock", "db", "--", "sh", "-c", script]).code;
    assert_eq!(code("kill -9 $$"), Some(128 + 9));
    fails(&cluster, &["lock", "db", "--", "no-such-program"], 127, "the lock is released");

    // It is renewed: it outlives its lease several times, and nobody gets it meanwhile.
    let script = "echo up; read line < \"$0\"";
    let fifo = cluster.data_dir(1).with_extension("fifo");
    let made = run(Command::new("mkfifo").arg(&fifo), "");
    assert_eq!(made.code, Some(0), "{made:?}");
    let fifo = fifo.to_str().expect("text").to_owned();
    let words = ["lock", "db", "--owner", "job", "--ttl", "400", "--", "sh", "-c", script, &fifo];
    let mut holder = Running::start(quorate(&cluster, 1, &words));
    holder.line("up");
    for _ in 0..4 {
        let tried = self::ran(&cluster, &["lock", "db", "--wait", "300", "--", "true"]);
        assert_eq!(tried.code, Some(73), "{tried:?}");
        assert!(tried.err.contains("held by somebody else"), "{tried:?}");
    }
    std::fs::write(&fifo, "go\n").expect("the program reads it");
    assert_eq!(holder.end(), (Some(0), String::new()));
    assert_eq!(code("true"), Some(0), "the next one gets it");
}

#[test]
fn a_program_whose_lock_is_lost_is_ended() {
    let mut cluster = Cluster::start(1);
    let script = "trap 'echo ended; exit 3' TERM; echo up; while :; do sleep 0.05; done";
    let words = ["lock", "db", "--owner", "job", "--ttl", "400", "--", "sh", "-c", script];
    let mut holder = Running::start(quorate(&cluster, 1, &words));
    holder.line("up");
    assert_eq!(said(&cluster, &["UNLOCK", "db", "OWNER", "job"]), "1\n");
    holder.line("ended");
    let (code, complaint) = holder.end();
    assert_eq!(code, Some(75), "{complaint}");
    assert!(complaint.contains("lock db was lost"), "{complaint}");

    // A signal is the program's, and its status is what counts.
    let mut holder = Running::start(quorate(&cluster, 1, &words));
    holder.line("up");
    signal(&holder.child, Signal::TERM);
    holder.line("ended");
    assert_eq!(holder.end(), (Some(3), String::new()));

    // Nobody can say that the lock is still held.
    let mut holder = Running::start(quorate(&cluster, 1, &words));
    holder.line("up");
    cluster.kill(1);
    holder.line("ended");
    let (code, complaint) = holder.end();
    assert_eq!(code, Some(75), "{complaint}");
    assert!(complaint.contains("no node answered before its lease ended"), "{complaint}");
}

#[test]
fn members_come_and_go_and_progress_is_shown() {
    let mut cluster = Cluster::start(3);
    let id = cluster.plan_node();
    let (name, peer) = (id.to_string(), format!("127.0.0.1:{}", cluster.peer_port(id)));
    let row = |cluster: &Cluster| {
        let table = said(cluster, &["members"]);
        table.lines().find(|line| line.starts_with(&format!("{id} "))).map(str::to_owned)
    };
    for verb in ["drain", "remove", "cancel"] {
        fails(&cluster, &["member", verb, &name], 1, "ERR node 4 is no member of this cluster");
    }
    fails(&cluster, &["member", "add", "0", &peer], 1, "from 1 to 4294967295");
    fails(&cluster, &["member", "add", &name, "nowhere"], 1, "must be host:port");

    // Interrupted while the node is not there yet: the change stands.
    let mut adding = Running::start(quorate(&cluster, 1, &["member", "add", &name, &peer, "--wait"]));
    assert!(adding.line("node 4").contains("start it with --join"));
    signal(&adding.child, Signal::INT);
    let (code, complaint) = adding.end();
    assert_eq!(code, Some(130), "{complaint}");
    assert!(complaint.contains("the change goes on"), "{complaint}");
    assert!(row(&cluster).is_some_and(|row| row.contains(" active ")));
    fails(&cluster, &["member", "add", &name, "127.0.0.1:1"], 1, "is a member already, at");

    cluster.spawn(id);
    let shown = said(&cluster, &["member", "add", &name, &peer, "--wait"]);
    assert!(shown.contains("groups moved") && shown.ends_with("node 4 has its share\n"), "{shown}");
    let share: u64 =
        row(&cluster).expect("it is a member").split_whitespace().nth(4).expect("holds").parse().expect("n");
    assert!(share > 0 && shown.contains(&format!("{share} of {share} groups moved")), "{share}: {shown}");
    cluster.wait_ready(id);

    let shown = said(&cluster, &["member", "drain", &name, "--wait"]);
    assert!(shown.ends_with("node 4 is drained: it holds no partition\n"), "{shown}");
    let drained = row(&cluster).expect("it is still a member");
    assert!(drained.contains(" draining ") && drained.split_whitespace().nth(4) == Some("0"), "{drained}");
    assert_eq!(said(&cluster, &["member", "cancel", &name]), "OK\n");
    let shown = said(&cluster, &["-o", "json", "member", "cancel", &name, "--wait"]);
    let last: serde_json::Value = serde_json::from_str(shown.lines().last().expect("a line")).expect("JSON");
    assert_eq!((last["moved"].as_u64(), last["done"].as_bool()), (Some(share), Some(true)), "{shown}");

    // Asked at the very node that leaves.
    let ran = run(&mut quorate(&cluster, id, &["member", "remove", &name, "--wait"]), "");
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.out.ends_with("node 4 is removed; its process can be stopped\n"), "{ran:?}");
    assert_eq!(row(&cluster), None);
    fails(&cluster, &["member", "drain", &name], 1, "MEMBER ADD 4 host:peerport");

    // A node that will never come back gives its share away like any other.
    cluster.kill(3);
    let shown = said(&cluster, &["member", "remove", "3", "--wait"]);
    assert!(shown.ends_with("node 3 is removed; its process can be stopped\n"), "{shown}");
    assert_eq!(said(&cluster, &["members"]).lines().count(), 1 + 2);
    fails(&cluster, &["member", "--wait", "remove", "2"], 2, "--wait");
    said(&cluster, &["member", "remove", "2", "--wait"]);
    fails(&cluster, &["member", "remove", "1"], 1, "node 1 is the last active node");
    assert_eq!(said(&cluster, &["SET", "k", "v"]), "OK\n");
}
