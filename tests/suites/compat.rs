//! Clients that others have written: redis-cli, redis-benchmark, nc, redis-py.
//!
//! A machine may lack them: then a test says that it was skipped. Where `CI` is set it fails instead.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use quorate_protocol::command::find;
use quorate_tests::others::is_there;
use quorate_tests::process::{Cluster, Ran, run};

fn has_redis_cli() -> bool {
    is_there("redis-cli (package redis-tools)", Command::new("redis-cli").arg("--version"))
}

fn has_nc() -> bool {
    // `nc -h` ends with 0 in OpenBSD's; others may lack -N.
    is_there("nc (package netcat-openbsd)", Command::new("nc").arg("-h"))
}

fn redis_cli(cluster: &Cluster, node: usize) -> Command {
    let mut command = Command::new("redis-cli");
    command.args(["-p", &cluster.port(node).to_string()]);
    command
}

fn clean(ran: Ran) -> String {
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{}", ran.out);
    ran.out
}

#[test]
fn a_session_with_redis_cli() {
    if !has_redis_cli() {
        return;
    }
    let cluster = Cluster::start(3);
    let one = |node, args: &[&str]| clean(run(redis_cli(&cluster, node).args(args), ""));
    assert_eq!(one(1, &["PING"]), "PONG\n");
    assert_eq!(one(1, &["SET", "greeting", "hello world"]), "OK\n");
    assert_eq!(one(2, &["GET", "greeting"]), "hello world\n");
    assert_eq!(one(3, &["-3", "GET", "greeting"]), "hello world\n");
    assert_eq!(one(3, &["GET", "nothing"]), "\n");
    assert!(one(2, &["-3", "HELLO", "3"]).contains("proto 3"));
    let piped = clean(run(
        &mut redis_cli(&cluster, 2),
        "SET counter 10\nINCR counter\nDEL counter nothing\nEXISTS counter\nLOCK mine OWNER me\nUNLOCK mine OWNER me\n",
    ));
    let lines: Vec<&str> = piped.lines().collect();
    assert_eq!((&lines[..4], lines[5]), (&["OK", "11", "1", "0"][..], "1"), "{piped}");
    assert!(lines[4].parse::<u64>().is_ok(), "a token: {piped}");
    let typed = run(
        redis_cli(&cluster, 1).args(["--no-raw", "-3"]),
        "SET a 1 EX 100\nTTL a\nGET b\nLOCKINFO a\nNONSENSE\n",
    );
    let typed = clean(typed);
    for words in ["OK\n", "(integer) 100\n", "(nil)\n", "\"name\" => \"a\"", "(error) ERR unknown command"] {
        assert!(typed.contains(words), "{words}: {typed}");
    }
    let id = one(1, &["PUB", "jobs", "hello"]).trim().to_owned();
    // The process ends, and with it its connection: the message goes back.
    assert_eq!(one(2, &["FETCH", "jobs"]).lines().collect::<Vec<_>>(), [&id, "1", "hello"]);
    let fetched = clean(run(&mut redis_cli(&cluster, 3), &format!("FETCH jobs BLOCK 5000\nACK jobs {id}\n")));
    assert_eq!(fetched.lines().collect::<Vec<_>>(), [&id, "2", "hello", "1"]);
    assert!(one(1, &["COMMAND", "COUNT"]).trim().parse::<usize>().is_ok());
    assert!(one(1, &["COMMAND", "DOCS", "lock"]).contains("fencing token"));
    assert!(one(1, &["INFO"]).contains("redis_version:"));
    assert_eq!(one(1, &["CONFIG", "GET", "save"]), "save\n\n");
}

#[test]
fn a_session_with_nc() {
    if !has_nc() {
        return;
    }
    let cluster = Cluster::start(3);
    let nc = |node: usize, input: &str| {
        clean(run(Command::new("nc").args(["-N", "127.0.0.1", &cluster.port(node).to_string()]), input))
            .replace("\r\n", "\n")
    };
    let text =
        nc(1, "PING\nSET greeting \"hello world\"\nGET greeting\nGET nothing\nINCR n\nLOCK db\nLOCK db\n");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..5], ["PONG", "OK", "hello world", "(nil)", "1"]);
    assert_eq!(lines[5], lines[6], "the connection holds it, and asks again for its own lock");
    let next = nc(2, "LOCK db\r\nquit\r\n");
    assert!(
        next.lines().next().and_then(|token| token.parse::<u64>().ok()) > lines[5].parse().ok(),
        "{next}"
    );
    let id = nc(2, "PUB jobs hello\n").trim().to_owned();
    let fetched = nc(3, &format!("FETCH jobs\nACK jobs {id}\nFETCH jobs\n"));
    assert!(
        fetched.contains(&id) && fetched.contains("hello") && fetched.ends_with("1\n(nil)\n"),
        "{fetched}"
    );
    let wrong = nc(1, "SET\nNONSENSE 1\nSET a\tb\nGET a\n");
    let lines: Vec<&str> = wrong.lines().collect();
    assert!(lines[0].starts_with("-ERR wrong number of arguments for 'set' command; usage: SET key value"));
    assert!(lines[1].starts_with("-ERR unknown command 'NONSENSE', with args beginning with: '1'"));
    assert_eq!(lines[2..], ["OK", "b"]);
    assert!(nc(1, "HELP\n").contains("LOCK name"));
    let browser = nc(1, "POST / HTTP/1.1\r\nHost: localhost\r\n\r\nSET stolen 1\r\n");
    assert!(!browser.contains("OK"), "a browser must not be able to talk to us: {browser}");
    assert_eq!(nc(1, "GET stolen\n"), "(nil)\n");
}

#[test]
fn redis_benchmark_runs_clean() {
    if !has_redis_cli() {
        return;
    }
    let cluster = Cluster::start(3);
    for pipeline in ["1", "16"] {
        let mut command = Command::new("redis-benchmark");
        command.args(["-p", &cluster.port(2).to_string(), "-t", "set,get,incr", "-n", "2000", "-q"]);
        let out = clean(run(command.args(["-P", pipeline]), ""));
        for test in ["SET: ", "GET: ", "INCR: "] {
            let done = |line: &str| line.contains(test) && line.contains("requests per second");
            assert!(out.split(['\r', '\n']).any(done), "{test}: {out}");
        }
        assert!(!out.to_lowercase().contains("warning") && !out.to_lowercase().contains("error"), "{out}");
    }
    assert_eq!(cluster.client(1).ask("GET counter:__rand_int__"), "4000");
}

#[test]
fn redis_py_connects_without_a_warning() {
    if !is_there("redis-py (pip install redis)", Command::new("python3").args(["-c", "import redis"])) {
        return;
    }
    let cluster = Cluster::start(3);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("suites/redis_py.py");
    let ports = (1..=3).map(|node| cluster.port(node).to_string());
    let ran = run(Command::new("python3").args(["-W", "error"]).arg(script).args(ports), "");
    assert_eq!(clean(ran), "all is well\n");
}

/// What is written there is what one sees, but for numbers that come out otherwise each time.
#[test]
fn the_session_of_the_readme() {
    if !has_redis_cli() {
        return;
    }
    let readme = include_str!("../../README.md");
    let block = |start: &str| -> Vec<&str> {
        let lines = readme.lines().skip_while(|line| !line.contains(start)).skip(1);
        lines.map_while(|line| line.strip_prefix("    ")).collect()
    };
    let cluster = Cluster::start(3);
    let socket = TcpStream::connect(("127.0.0.1", cluster.port(1))).expect("it listens");
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
    let mut answers = BufReader::new(socket.try_clone().expect("a socket")).lines();
    let lines = block("$ nc 127.0.0.1 7411");
    assert!(lines.len() > 10, "{lines:?}");
    let is_command = |line: &str| line.split(' ').next().and_then(|verb| find(verb.as_bytes())).is_some();
    // Which number a message has depends on what its partition has written before.
    let (written, mut id) = ("2097153", String::new());
    for line in lines {
        if is_command(line) {
            (&socket).write_all(format!("{line}\n").as_bytes()).expect("it reads");
        } else {
            let answer = answers.next().expect("a line").expect("an answer");
            assert_eq!(masked(line), masked(&answer));
            if line == written {
                answer.trim_end().clone_into(&mut id);
            }
        }
    }
    let mut typed = String::new();
    let mut shown = String::new();
    for line in block("$ redis-cli -p 7421") {
        match line.split_once("7421> ") {
            Some((_, command)) => typed.extend([command, "\n"]),
            None => shown.extend([line, "\n"]),
        }
    }
    let answered = clean(run(redis_cli(&cluster, 2).arg("--no-raw"), &typed.replace(written, &id)));
    assert_eq!(shown.replace(written, &id), answered);
    (&socket).write_all(b"QUIT\n").expect("it reads");
    let rest: Vec<String> = answers.map(|line| line.expect("an answer")).collect();
    assert_eq!(rest.iter().map(|line| line.trim_end()).collect::<Vec<_>>(), ["OK"]);
}

/// Without what is another number in every run: ids, what is left of a lease, names of connections.
fn masked(line: &str) -> String {
    let line = line.trim_end_matches('\r');
    let digits = line.trim_start_matches(|letter: char| !letter.is_ascii_digit());
    match line.split_once("conn:") {
        Some((before, _)) => format!("{before}conn:"),
        None if digits.len() > 6 => line[..line.len() - digits.len()].to_owned(),
        None => line.to_owned(),
    }
}
