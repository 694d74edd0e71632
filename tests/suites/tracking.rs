//! CLIENT TRACKING with real processes: clients that keep values are told what to drop, on any node, whatever happens.
//!
//! The commands are compared with a real redis-server; redis-py's client-side cache is used as its users do. A machine may lack
//! either: then a test says that it was skipped. Where `CI` is set it fails instead.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use quorate_tests::process::{Cluster, free_ports, poll, run};

/// How long a push may take that must come.
const PATIENCE: Duration = Duration::from_secs(30);

/// Something that a client hears.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Heard {
    /// An answer, as text.
    Answer(String),
    /// `invalidate` of these keys.
    Drop(Vec<String>),
    /// `invalidate` of everything.
    DropAll,
}

/// A connection that speaks RESP3 and keeps values.
struct Keeper(BufReader<TcpStream>);

impl Keeper {
    /// Without tracking.
    fn to(port: u16) -> Self {
        let stream = poll("a connection", || TcpStream::connect(("127.0.0.1", port)).ok());
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        let mut this = Self(BufReader::new(stream));
        assert!(this.ask("HELLO 3").contains("proto 3"));
        this
    }

    fn tracking(port: u16, options: &str) -> Self {
        let mut this = Self::to(port);
        assert_eq!(this.ask(format!("CLIENT TRACKING ON {options}").trim_end()), "OK");
        this
    }

    fn say(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let mut request = format!("*{}\r\n", words.len());
        words.iter().for_each(|word| request.push_str(&format!("${}\r\n{word}\r\n", word.len())));
        self.0.get_mut().write_all(request.as_bytes()).expect("the node listens");
    }

    fn head(&mut self) -> (char, String) {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("the node says something");
        let mark = line.chars().next().expect("the connection stands");
        (mark, line[1..].trim_end().to_owned())
    }

    fn value(&mut self) -> String {
        let (mark, rest) = self.head();
        let count = || rest.parse::<usize>().expect("a number");
        match mark {
            '+' | ':' => rest,
            '-' => format!("-{rest}"),
            '_' => "nil".to_owned(),
            '$' => {
                let mut bytes = vec![0; count() + 2];
                self.0.read_exact(&mut bytes).expect("the value");
                bytes.truncate(count());
                String::from_utf8(bytes).expect("text")
            }
            '*' | '~' | '>' => self.values(count()).join(" "),
            '%' => self.values(2 * count()).join(" "),
            other => panic!("an answer begins with {other}"),
        }
    }

    fn values(&mut self, count: usize) -> Vec<String> {
        (0..count).map(|_| self.value()).collect()
    }

    fn hear(&mut self) -> Heard {
        let push = self.0.fill_buf().expect("the node says something").first() == Some(&b'>');
        if !push {
            return Heard::Answer(self.value());
        }
        assert_eq!(self.head().1, "2");
        assert_eq!(self.value(), "invalidate");
        match self.head() {
            ('_', _) => Heard::DropAll,
            (_, count) => Heard::Drop(self.values(count.parse().expect("a number"))),
        }
    }

    /// The answer, and what was pushed before it.
    fn ask_and_hear(&mut self, line: &str) -> (String, Vec<Heard>) {
        self.say(line);
        let mut pushed = Vec::new();
        loop {
            match self.hear() {
                Heard::Answer(answer) => return (answer, pushed),
                push => pushed.push(push),
            }
        }
    }

    fn ask(&mut self, line: &str) -> String {
        self.ask_and_hear(line).0
    }

    /// What has been pushed by now.
    fn pushed(&mut self) -> Vec<Heard> {
        self.ask_and_hear("PING").1
    }

    /// Waits for a push.
    fn waits_for(&mut self, push: &Heard) {
        loop {
            let heard = self.hear();
            if heard == *push {
                return;
            }
            assert!(!matches!(heard, Heard::Answer(_)), "{heard:?}, where {push:?} is awaited");
        }
    }

    /// Reads a key until it may be kept: until then the node holds no line of it, and says so behind the answer.
    fn keeps(&mut self, key: &str) -> String {
        poll("a value that may be kept", || {
            let value = self.ask(&format!("GET {key}"));
            self.pushed().is_empty().then_some(value)
        })
    }
}

fn drops(keys: &[&str]) -> Heard {
    Heard::Drop(keys.iter().map(|&key| key.to_owned()).collect())
}

#[test]
fn whoever_has_read_a_key_is_told_when_any_node_writes_it() {
    let cluster = Cluster::start(3);
    let mut keepers: Vec<Keeper> = (1..=3).map(|node| Keeper::tracking(cluster.port(node), "")).collect();
    let mut writers: Vec<_> = (1..=3).map(|node| cluster.client(node)).collect();
    let mut value = "nil".to_owned();
    for round in 0..12 {
        for keeper in &mut keepers {
            assert_eq!(keeper.keeps("k"), value);
        }
        let writer = &mut writers[round % 3];
        let said = match round {
            9 => writer.ask("DEL k"),
            10 => writer.ask("APPEND k tail"),
            11 => writer.ask("EXPIRE k 100"),
            _ => writer.ask(&format!("SET k v{round}")),
        };
        assert!(!said.starts_with('-'), "{said}");
        for keeper in &mut keepers {
            keeper.waits_for(&drops(&["k"]));
        }
        value = writers[(round + 1) % 3].ask("GET k");
        value = if value == "(nil)" { "nil".to_owned() } else { value };
    }
    // Told once, and not again before it is read again.
    writers[0].ask("SET k last");
    keepers.iter_mut().for_each(|keeper| assert_eq!(keeper.pushed(), []));
    // Its own writes as well.
    keepers[0].keeps("k");
    assert_eq!(keepers[0].ask_and_hear("SET k own"), ("OK".to_owned(), vec![drops(&["k"])]));
    assert_eq!(keepers[0].ask("CLIENT TRACKING OFF"), "OK");
    keepers[0].ask("GET k");
    writers[1].ask("SET k unheard");
    assert_eq!(keepers[0].pushed(), []);
}

#[test]
fn what_cannot_be_kept_is_to_be_dropped_right_behind_the_answer() {
    let cluster = Cluster::start(1);
    let mut keeper = Keeper::tracking(cluster.port(1), "");
    cluster.client(1).ask("MSET {t}a 1 {t}b 22");
    assert_eq!(keeper.keeps("{t}a"), "1");
    for (line, answer) in [("STRLEN {t}b", "2"), ("EXISTS {t}b", "1"), ("TTL {t}b", "-1")] {
        assert_eq!(keeper.ask(line), answer);
        assert_eq!(keeper.pushed(), [drops(&["{t}b"])], "{line}");
    }
    assert_eq!(keeper.ask("MGET {t}a {t}b"), "1 22");
    assert_eq!(keeper.pushed(), [drops(&["{t}b"])], "the node holds the other one");
    assert_eq!(keeper.keeps("{t}b"), "22");
    assert_eq!(keeper.ask("MGET {t}a {t}b"), "1 22");
    assert_eq!(keeper.pushed(), []);
    keeper.ask("MULTI");
    keeper.ask("GET {t}b");
    assert_eq!(keeper.ask("EXEC"), "22");
    assert_eq!(keeper.pushed(), [drops(&["{t}b"])]);
    assert!(keeper.ask("GETRANGE {t}b 0").starts_with("-ERR"));
    assert_eq!(keeper.pushed(), [], "an error tells nothing");
}

#[test]
fn expiry_flush_and_the_end_of_a_lease_are_told() {
    let mut cluster = Cluster::start(3);
    let mut keeper = Keeper::tracking(cluster.port(1), "");
    let mut writer = cluster.client(2);
    writer.ask("SET mortal v PX 1500");
    poll("a value that may be kept, or has gone", || {
        let value = keeper.ask("GET mortal");
        (keeper.pushed().is_empty() || value == "nil").then_some(())
    });
    if keeper.ask("GET mortal") == "v" {
        keeper.waits_for(&drops(&["mortal"]));
    }
    writer.ask("SET {t}k v");
    assert_eq!(keeper.keeps("{t}k"), "v");
    assert_eq!(writer.ask("FLUSHALL"), "OK");
    keeper.waits_for(&Heard::DropAll);
    assert_eq!(keeper.keeps("{t}k"), "nil");
    writer.ask("SET {t}k v");
    keeper.waits_for(&drops(&["{t}k"]));
    assert_eq!(keeper.keeps("{t}k"), "v");
    let info = cluster.client(1).ask_all("CACHEINFO {t}k");
    let words: Vec<&str> = info.split_whitespace().collect();
    let at =
        words.iter().position(|word| word.trim_matches(['"', ':']) == "home").expect("it names the home");
    let home: usize = words[at + 1].parse().expect("a node");
    let here = if home == 1 { 2 } else { 1 };
    let mut keeper = Keeper::tracking(cluster.port(here), "");
    assert_eq!(keeper.keeps("{t}k"), "v");
    cluster.kill(home);
    keeper.waits_for(&drops(&["{t}k"]));
    let other = (1..=3).find(|node| *node != home && *node != here).expect("a third one");
    let mut writer = cluster.client(other);
    poll("another home", || (writer.ask("SET {t}k w") == "OK").then_some(()));
    assert_eq!(keeper.keeps("{t}k"), "w");
}

#[test]
fn own_writes_and_what_is_not_opted_for_are_not_told() {
    let cluster = Cluster::start(3);
    let mut other = cluster.client(2);
    let mut quiet = Keeper::tracking(cluster.port(1), "NOLOOP");
    other.ask("SET k v");
    quiet.keeps("k");
    assert_eq!(quiet.ask_and_hear("SET k own"), ("OK".to_owned(), vec![]));
    assert_eq!(quiet.pushed(), []);
    quiet.keeps("k");
    assert_eq!(quiet.ask_and_hear("SET k never NX"), ("nil".to_owned(), vec![]));
    assert_eq!(
        quiet.pushed(),
        [drops(&["k"])],
        "it was not done, and the node does not hold the key any more"
    );
    // Nor were these, which answer as if something had been.
    other.ask("DEL {k}none");
    for line in ["SET k never NX GET", "SETRANGE k 0 ", "GETEX k PERSIST", "SET k never IFVER 1 GET"] {
        quiet.keeps("k");
        quiet.ask(line);
        assert_eq!(quiet.pushed(), [drops(&["k"])], "{line}");
    }
    assert_eq!(quiet.keeps("{k}none"), "nil");
    other.ask("SET {k}some v");
    assert_eq!(quiet.ask("DEL {k}none {k}some"), "1");
    assert_eq!(quiet.pushed(), ["{k}none", "{k}some"].map(|key| drops(&[key])), "one of them");
    quiet.keeps("k");
    other.ask("SET k other");
    quiet.waits_for(&drops(&["k"]));
    // Likewise of what its node takes on, and everybody else is told.
    let mut loud = Keeper::tracking(cluster.port(1), "");
    for n in 0..20 {
        poll("the node owns the line", || {
            assert_eq!(quiet.ask("SET w 0 WRITEBACK"), "OK");
            quiet.ask("CACHEINFO w").contains("owned 1").then_some(())
        });
        quiet.pushed();
        quiet.keeps("w");
        loud.keeps("w");
        assert_eq!(quiet.ask_and_hear(&format!("SET w {n}own WRITEBACK")), ("OK".to_owned(), vec![]));
        assert_eq!(quiet.pushed(), []);
        loud.waits_for(&drops(&["w"]));
    }

    let mut opted = Keeper::tracking(cluster.port(1), "OPTIN");
    quiet.keeps("k");
    opted.ask("GET k");
    assert_eq!(opted.ask("CLIENT CACHING YES"), "OK");
    assert_eq!(opted.ask("GET k"), "other");
    assert_eq!(opted.pushed(), []);
    other.ask("SET k more");
    opted.waits_for(&drops(&["k"]));
    opted.ask("GET k");
    other.ask("SET k most");
    assert_eq!(opted.pushed(), []);

    let mut opted = Keeper::tracking(cluster.port(1), "OPTOUT");
    assert_eq!(opted.ask("CLIENT CACHING NO"), "OK");
    assert_eq!(opted.ask("STRLEN k"), "4");
    assert_eq!(opted.pushed(), []);
    assert_eq!(opted.ask("STRLEN k"), "4");
    assert_eq!(opted.pushed(), [drops(&["k"])]);
}

/// Writes until a node that watches says so: then it hears of everything.
fn until_it_watches(keeper: &mut Keeper, writer: &mut quorate_tests::process::Client, key: &str) {
    poll("a home that tells", || {
        writer.ask(&format!("SET {key} x"));
        let deadline = 20;
        (0..deadline).find_map(|_| {
            std::thread::park_timeout(Duration::from_millis(5));
            keeper.pushed().contains(&drops(&[key])).then_some(())
        })
    });
}

#[test]
fn whoever_tracks_by_prefix_is_told_of_every_write_on_any_node() {
    let cluster = Cluster::start(3);
    let mut writer = cluster.client(2);
    let mut keeper = Keeper::tracking(cluster.port(1), "BCAST PREFIX user: PREFIX shop: NOLOOP");
    until_it_watches(&mut keeper, &mut writer, "user:{t}1");
    writer.ask("SET user:{t}2 never-read");
    writer.ask("SET other:{t} x");
    writer.ask("MSET shop:{t}3 x other:{t}4 y");
    keeper.waits_for(&drops(&["user:{t}2"]));
    keeper.waits_for(&drops(&["shop:{t}3"]));
    assert_eq!(keeper.ask_and_hear("SET user:{t}5 own"), ("OK".to_owned(), vec![]));
    writer.ask("SET user:{t}6 PX PX 200");
    keeper.waits_for(&drops(&["user:{t}6"]));
    keeper.waits_for(&drops(&["user:{t}6"]));
    assert_eq!(keeper.pushed(), [], "by their end, once; and of the own one nothing");
    let mut same = Keeper::to(cluster.port(1));
    assert_eq!(same.ask("SET user:{t}7 x"), "OK", "another connection of the node is not the own one");
    keeper.waits_for(&drops(&["user:{t}7"]));
    assert_eq!(writer.ask("FLUSHALL"), "OK");
    keeper.waits_for(&Heard::DropAll);
}

#[test]
fn only_resp3_connections_can_be_told() {
    let cluster = Cluster::start(1);
    let mut lines = cluster.client(1);
    assert!(lines.ask("CLIENT TRACKING ON").contains("say HELLO 3 first"));
    let mut keeper = Keeper::to(cluster.port(1));
    assert!(keeper.ask("CLIENT TRACKING ON REDIRECT 7").starts_with("-ERR REDIRECT is not spoken here"));
    assert_eq!(keeper.ask("CLIENT TRACKING ON"), "OK");
    keeper.keeps("k");
    assert!(keeper.ask("HELLO 2").contains("proto 2"));
    assert_eq!(keeper.ask("SET k v"), "OK", "and nothing between the answers");
    assert!(keeper.ask("CLIENT TRACKING ON").contains("say HELLO 3 first"));
    assert_eq!(keeper.ask("CLIENT GETREDIR"), "-1");
}

#[test]
fn who_does_not_read_what_it_is_told_is_cut() {
    let cluster = Cluster::start(1);
    let mut writer = Keeper::to(cluster.port(1));
    let mut deaf = Keeper::tracking(cluster.port(1), "BCAST");
    until_it_watches(&mut deaf, &mut cluster.client(1), "{t}");
    // Some MiB lie in the kernel; beyond `OUTPUT_MAX` the node keeps no more for it.
    let tail = "x".repeat(980);
    let many: Vec<String> = (0..1000).map(|n| format!("{{t}}{n:04}{tail} v")).collect();
    let line = format!("MSET {}", many.join(" "));
    poll("a deaf client that is cut", || {
        assert_eq!(writer.ask(&line), "OK");
        cluster.log(1).contains("is cut: its client does not read what it asked for").then_some(())
    });
    assert_eq!(writer.ask("GET {t}"), "x");
}

struct Redis(Child);

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn skipped(what: &str) {
    assert!(std::env::var_os("CI").is_none(), "{what} is not installed, and CI must not skip its tests");
    let _ = writeln!(std::io::stdout(), "skipped: {what} is not installed");
}

#[test]
fn the_commands_say_what_redis_says() {
    let [port] = free_ports();
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--save", "", "--appendonly", "no"]);
    let Ok(child) = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn() else {
        return skipped("redis-server");
    };
    let _redis = Redis(child);
    let cluster = Cluster::start(1);
    Keeper::tracking(cluster.port(1), "").keeps("{t}a");
    let (mut ours, mut theirs) = (Keeper::to(cluster.port(1)), Keeper::to(port));
    let script = "\
        CLIENT TRACKING|CLIENT TRACKING MAYBE|CLIENT TRACKING ON WHAT|CLIENT TRACKING ON PREFIX|CLIENT CACHING|\
        CLIENT CACHING YES|CLIENT TRACKINGINFO|CLIENT GETREDIR|CLIENT TRACKING ON PREFIX a|\
        CLIENT TRACKING ON BCAST OPTIN|CLIENT TRACKING ON OPTIN OPTOUT|\
        CLIENT TRACKING ON BCAST PREFIX a PREFIX ab|CLIENT TRACKING ON BCAST PREFIX a PREFIX b|\
        CLIENT TRACKING ON BCAST PREFIX bc|CLIENT TRACKING ON BCAST PREFIX a|CLIENT TRACKING ON|\
        CLIENT TRACKING ON BCAST PREFIX c NOLOOP|CLIENT TRACKINGINFO|CLIENT TRACKING ON BCAST|\
        CLIENT TRACKINGINFO|CLIENT CACHING YES|CLIENT TRACKING OFF BCAST|CLIENT TRACKING ON BCAST|\
        CLIENT TRACKING ON BCAST PREFIX a|CLIENT TRACKING OFF|\
        CLIENT TRACKING ON OPTIN|CLIENT TRACKING ON OPTOUT|CLIENT CACHING NO|CLIENT CACHING MAYBE|\
        CLIENT CACHING YES|CLIENT TRACKINGINFO|GET {t}a|CLIENT TRACKINGINFO|CLIENT TRACKING ON BCAST|\
        GET {t}a|SET {t}a 1|CLIENT CACHING YES|CLIENT GETREDIR|GET {t}a|SET {t}a 2|SET {t}a 3|\
        CLIENT CACHING YES|MULTI|INCR {t}b|EXEC|CLIENT TRACKINGINFO|\
        CLIENT TRACKING OFF|CLIENT TRACKING ON OPTOUT|CLIENT CACHING NO|CLIENT TRACKINGINFO|\
        GET {t}a|SET {t}a 1|GET {t}a|SET {t}a 2|GET {t}a|DEL {t}a|GET {t}a|SETNX {t}a 1|\
        CLIENT TRACKING OFF|CLIENT TRACKING ON NOLOOP|GET {t}a|SET {t}a 1|CLIENT TRACKINGINFO|\
        RESET|HELLO 3|CLIENT TRACKINGINFO|CLIENT TRACKING ON|GET {t}a|FLUSHALL";
    for line in script.split('|').filter(|line| *line != "HELLO 3") {
        let both = [&mut ours, &mut theirs].map(|keeper| {
            let (answer, mut pushed) = keeper.ask_and_hear(line);
            // What it has to say behind its answer: ours comes before it, if it is of an own write.
            // A PING would end what CACHING says, and would be queued behind MULTI.
            if !line.starts_with("CLIENT") && line != "MULTI" && line != "INCR {t}b" {
                pushed.extend(keeper.pushed());
            }
            if line != "FLUSHALL" {
                // Where Redis knows that nothing was missed, a node that begins to watch does not.
                pushed.retain(|push| *push != Heard::DropAll);
            }
            if line == "RESET" {
                keeper.ask("HELLO 3");
            }
            (answer, pushed)
        });
        let [(ours, our_pushes), (theirs, their_pushes)] = &both;
        let alike = if theirs.starts_with('-') { ours.starts_with(theirs.as_str()) } else { ours == theirs };
        assert!(alike, "{line}\nours: {ours}\nredis: {theirs}");
        assert_eq!(our_pushes, their_pushes, "{line}");
    }
}

#[test]
fn the_cache_of_redis_py_works_against_any_node() {
    let mut probe = Command::new("python3");
    if !probe.args(["-c", "import redis.cache"]).output().is_ok_and(|out| out.status.success()) {
        return skipped("redis-py with client-side caching (pip install redis)");
    }
    let cluster = Cluster::start(3);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("suites/redis_py_cache.py");
    let ports = (1..=3).map(|node| cluster.port(node).to_string());
    let ran = run(Command::new("python3").args(["-W", "error"]).arg(script).args(ports), "");
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (Some(0), "all is well\n", ""));
}
