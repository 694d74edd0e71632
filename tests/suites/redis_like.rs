//! Commands on keys, asked of Quorate and of a real redis-server: both must say the same.
//!
//! The list is drawn from a seed, so every run asks the same. What Quorate says beyond Redis (what to do
//! next) stands behind Redis' own words, so an error of ours begins with the one of theirs.
//!
//! A machine may lack redis-server: then the test says that it was skipped. Where `CI` is set it fails instead.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use quorate_tests::process::{Cluster, free_ports, poll};

/// A server's answer.
#[derive(Debug, PartialEq)]
enum Answer {
    Nil,
    Said(String),
    Error(String),
    List(Vec<Answer>),
}

/// A connection that speaks RESP2.
struct Talk(BufReader<TcpStream>);

impl Talk {
    fn to(port: u16) -> Self {
        Self(poll("a connection", || TcpStream::connect(("127.0.0.1", port)).ok().map(BufReader::new)))
    }

    fn ask(&mut self, words: &[String]) -> Answer {
        let mut request = format!("*{}\r\n", words.len());
        words.iter().for_each(|word| request.push_str(&format!("${}\r\n{word}\r\n", word.len())));
        self.0.get_mut().write_all(request.as_bytes()).expect("the server listens");
        self.answer()
    }

    fn answer(&mut self) -> Answer {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("an answer");
        let rest = line[1..].trim_end();
        let length = || rest.parse::<i64>().expect("a length");
        match &line[..1] {
            "+" | ":" => Answer::Said(line.trim_end().to_owned()),
            "-" => Answer::Error(rest.to_owned()),
            "$" if length() >= 0 => {
                let mut bytes = vec![0; usize::try_from(length()).expect("a length") + 2];
                self.0.read_exact(&mut bytes).expect("the value");
                bytes.truncate(bytes.len() - 2);
                Answer::Said(format!("${}", String::from_utf8_lossy(&bytes)))
            }
            "*" if length() >= 0 => Answer::List((0..length()).map(|_| self.answer()).collect()),
            "$" | "*" => Answer::Nil,
            other => panic!("an answer begins with {other}"),
        }
    }
}

/// Whether ours is theirs.
fn alike(ours: &Answer, theirs: &Answer) -> bool {
    match (ours, theirs) {
        (Answer::Error(ours), Answer::Error(theirs)) => ours.starts_with(theirs.as_str()),
        (Answer::List(ours), Answer::List(theirs)) => {
            ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(ours, theirs)| alike(ours, theirs))
        }
        (ours, theirs) => ours == theirs,
    }
}

struct Redis(Child);

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn redis(port: u16) -> Option<Redis> {
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--save", "", "--appendonly", "no"]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    if child.is_err() {
        assert!(
            std::env::var_os("CI").is_none(),
            "redis-server is not installed, and CI must not skip its tests"
        );
        let _ = writeln!(std::io::stdout(), "skipped: redis-server is not installed");
    }
    child.ok().map(Redis)
}

/// Draws commands.
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((self.0 >> 33) % n as u64).expect("below n")
    }

    fn of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.below(all.len())]
    }

    /// Fills a template in: `K` a key, `V` a value, `N` a number, `T` seconds far away, `A` a time by the wall clock, `O`
    /// conditions of an EXPIRE, `R` those
    /// that do not hang on milliseconds, `S` options of a SET.
    fn command(&mut self, templates: &[&str]) -> Vec<String> {
        let mut words = Vec::new();
        for word in self.of(templates).split(' ') {
            let drawn = match word {
                "K" => self.of(&["{t}a", "{t}b", "{t}c", "{t}d"]),
                "V" => self.of(&["", "x", "hello world", "10", "-3", "007", "1.5", "9223372036854775807"]),
                "N" => self.of(&[
                    "0",
                    "1",
                    "-1",
                    "3",
                    "-4",
                    "25",
                    "x",
                    "9223372036854775807",
                    "-9223372036854775808",
                ]),
                "P" => self.of(&["0", "1", "5", "17", "-1", "x"]),
                "T" => self.of(&["1000", "2000", "5000", "0", "-1", "x", "9223372036854775807"]),
                "M" => self.of(&["1000000", "2000000", "0", "-1", "x"]),
                "A" => self.of(&["4000000000", "4100000000", "1000", "0", "-5", "x"]),
                "O" => self.of(&["", "NX", "XX", "GT", "LT", "XX GT", "XX LT", "NX XX", "GT LT", "WHAT"]),
                "R" => self.of(&["", "NX", "XX", "NX XX", "GT LT", "WHAT"]),
                "S" => self.of(&[
                    "",
                    "NX",
                    "XX",
                    "EX 1000",
                    "EXAT 4000000000",
                    "KEEPTTL",
                    "GET",
                    "XX GET",
                    "NX XX",
                    "EX 0",
                    "EX 1 KEEPTTL",
                ]),
                word => word,
            };
            if matches!(word, "O" | "R" | "S") {
                words.extend(drawn.split(' ').filter(|word| !word.is_empty()).map(str::to_owned));
            } else {
                words.push(drawn.to_owned());
            }
        }
        words
    }
}

const COMMANDS: &[&str] = &[
    "GET K",
    "SET K V S",
    "SET K V",
    "SETNX K V",
    "SETEX K T V",
    "GETSET K V",
    "GETDEL K",
    "GETEX K",
    "GETEX K EX 3000",
    "GETEX K PERSIST",
    "GETEX K EXAT 4000000000",
    "MGET K K K",
    "MSET K V K V",
    "MSETNX K V K V",
    "APPEND K V",
    "STRLEN K",
    "GETRANGE K N N",
    "SUBSTR K N N",
    "SETRANGE K P V",
    "INCR K",
    "DECR K",
    "INCRBY K N",
    "DECRBY K N",
    "EXPIRE K T R",
    "PEXPIRE K M R",
    "EXPIREAT K A O",
    "EXPIRETIME K",
    "TTL K",
    "PERSIST K",
    "TYPE K",
    "EXISTS K K",
    "TOUCH K K",
    "DEL K",
    "UNLINK K K",
    "GET",
    "MSET K",
    "NONSENSE K",
    "SET K V EX",
    "SETEX K T",
];

/// What can stand in a transaction. Redis finds some wrong arguments only when it executes; Quorate refuses them when they
/// are queued, and all with them. So here arguments are right; values may still be of the wrong kind.
const QUEUED: &[&str] = &[
    "GET K",
    "SET K V",
    "SET K V NX",
    "SETEX K 1000 V",
    "GETDEL K",
    "GETEX K EX 1000",
    "MGET K K K",
    "MSET K V K V",
    "MSETNX K V K V",
    "APPEND K V",
    "GETRANGE K 1 3",
    "SETRANGE K 2 V",
    "INCR K",
    "DECRBY K 7",
    "EXPIRE K 1000 XX",
    "EXPIREAT K 4200000000 GT",
    "EXPIREAT K 1000",
    "EXPIRETIME K",
    "TTL K",
    "PERSIST K",
    "TYPE K",
    "EXISTS K K",
    "DEL K",
];

const ALONE: &[&str] = &["DBSIZE", "FLUSHDB", "FLUSHALL ASYNC", "EXEC", "DISCARD", "UNWATCH", "SCAN x"];

struct Both {
    ours: Talk,
    theirs: Talk,
    /// What was asked so far.
    asked: Vec<String>,
}

impl Both {
    fn ask(&mut self, words: &[String]) {
        self.asked.push(words.join(" "));
        let (ours, theirs) = (self.ours.ask(words), self.theirs.ask(words));
        let last = self.asked.len().saturating_sub(12);
        assert!(alike(&ours, &theirs), "{:#?}\nours: {ours:?}\nredis: {theirs:?}", &self.asked[last..]);
    }

    fn line(&mut self, line: &str) {
        self.ask(&line.split(' ').map(str::to_owned).collect::<Vec<_>>());
    }
}

#[test]
fn a_drawn_list_of_commands_is_answered_as_redis_answers_it() {
    let [port] = free_ports();
    let Some(_redis) = redis(port) else { return };
    let cluster = Cluster::start(1);
    let both = || Both { ours: Talk::to(cluster.port(1)), theirs: Talk::to(port), asked: Vec::new() };
    let (mut one, mut other) = (both(), both());
    let mut draw = Draw(7);
    for _ in 0..1200 {
        match draw.below(20) {
            0 => one.ask(&draw.command(ALONE)),
            1 | 2 => {
                one.ask(&draw.command(&["WATCH K", "WATCH K K", "UNWATCH"]));
                if draw.below(2) == 0 {
                    other.ask(&draw.command(COMMANDS));
                }
                one.line("MULTI");
                (0..draw.below(5)).for_each(|_| one.ask(&draw.command(QUEUED)));
                if draw.below(8) == 0 {
                    one.ask(&draw.command(&["GET", "NONSENSE K", "MULTI", "WATCH K"]));
                }
                one.ask(&draw.command(&["EXEC", "EXEC", "EXEC", "DISCARD"]));
            }
            _ => one.ask(&draw.command(COMMANDS)),
        }
    }
    one.line("DISCARD");
    (0..40).for_each(|n| one.line(&format!("SET key:{n} {n}")));
    let mut found = |pattern: &str| {
        let words = |line: String| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        [&mut one.ours, &mut one.theirs].map(|talk| {
            let (mut cursor, mut names) = ("0".to_owned(), Vec::new());
            loop {
                let Answer::List(page) = talk.ask(&words(format!("SCAN {cursor} MATCH {pattern} COUNT 5")))
                else {
                    panic!("a page")
                };
                let [Answer::Said(next), Answer::List(shown)] = &page[..] else { panic!("{page:?}") };
                names.extend(shown.iter().map(|name| format!("{name:?}")));
                cursor = next[1..].to_owned();
                if cursor == "0" {
                    names.sort();
                    names.dedup();
                    return names;
                }
            }
        })
    };
    for pattern in ["*", "key:?", "key:[1-3]*", "key:[^1-3]*", "k*:*9", "\\k*1", "nothing"] {
        let [ours, theirs] = found(pattern);
        assert_eq!(ours, theirs, "{pattern}");
        assert_eq!(ours.is_empty(), pattern == "nothing");
    }
}
