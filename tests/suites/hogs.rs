//! Clients that make a node hold memory for them and go on with nothing: together they get no more than is allowed, are told so, and
//! keep nobody out for ever.

use std::io::Write;

use quorate_protocol::frame::{Frame, RequestFrame};
use quorate_protocol::limits::{CLIENT_ALLOWANCE, VALUE_MAX};
use quorate_protocol::reply::{Code, Reply};
use quorate_tests::figures::figure;
use quorate_tests::process::{Cluster, poll};
use quorate_tests::socket::{Socket, encoded, request};

/// What clients may hold.
const BOUND: usize = 64 << 20;

struct Node(Cluster);

impl Node {
    fn start() -> Self {
        let mut cluster = Cluster::plan(1);
        cluster.flags = vec!["--client-max-memory", "64m"];
        cluster.spawn_all();
        Self(cluster)
    }

    fn connect(&self) -> Socket {
        Socket::new(self.0.address(1))
    }

    fn figure(&self, name: &str) -> usize {
        usize::try_from(figure(&self.0, 1, name)).expect("a size")
    }

    fn held(&self) -> usize {
        self.figure("quorate_client_bytes")
    }

    /// A line of the process's status, in bytes.
    fn memory(&self, name: &str) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.pid(1)));
        let status = status.expect("the node runs");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("Linux tells");
        let kib = line.trim_start_matches(':').split_whitespace().next().map(str::parse::<usize>);
        1024 * kib.expect("a number").expect("a number")
    }

    /// Whoever needs little is served as if nobody else were there.
    fn serves_small(&self) {
        let mut operator = self.connect();
        operator.send(b"PING\r\nSET small v\r\nGET small\r\nSTATUS\r\n");
        assert_eq!([operator.line(), operator.line(), operator.line()], ["PONG", "OK", "v"]);
        assert!(operator.line().starts_with("node:"), "STATUS");
        let mut framed = self.connect();
        assert_eq!(framed.ask(request(1, "SET small v")), Reply::OK);
    }
}

/// The largest SET but for its last eight bytes.
fn unfinished() -> Vec<u8> {
    let head = format!("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n${VALUE_MAX}\r\n");
    [head.as_bytes(), &vec![b'v'; VALUE_MAX - 8]].concat()
}

/// A request with something large behind it.
fn framed(correlation: u64, line: &str, large: usize) -> RequestFrame {
    let mut frame = request(correlation, line);
    frame.args.push(vec![b'v'; large].into());
    frame
}

/// What a client is told that has said nothing for long.
fn heard(socket: &Socket) -> String {
    let mut words = [0; 512];
    socket.stream.set_nonblocking(true).expect("a socket");
    let count = socket.stream.peek(&mut words).unwrap_or(0);
    socket.stream.set_nonblocking(false).expect("a socket");
    String::from_utf8_lossy(&words[..count]).into_owned()
}

/// As many hogs as fill what is allowed.
fn fill(node: &Node) -> Vec<Socket> {
    let bytes = unfinished();
    let hogs = (1..=BOUND / VALUE_MAX).map(|n| {
        let mut hog = node.connect();
        hog.send(&bytes);
        poll("it is held", || (node.held() == n * VALUE_MAX).then_some(()));
        hog
    });
    hogs.collect()
}

#[test]
fn what_clients_hold_together_is_bounded_and_whoever_is_refused_is_told_so() {
    let node = Node::start();
    let mut rich = node.connect();
    assert_eq!(rich.ask(framed(1, "SET big", VALUE_MAX)), Reply::OK);
    assert!(matches!(rich.ask(framed(2, "PUB jobs", VALUE_MAX / 2)), Reply::Int(_)));
    let before = node.memory("VmRSS");
    let hogs = fill(&node);
    node.serves_small();
    let mut answers = 0;
    for n in 0..16 {
        let mut late = node.connect();
        if n % 2 == 0 {
            late.try_send(&[b"INCR n\r\n", &unfinished()[..]].concat());
            answers += 1;
            assert_eq!(late.line(), answers.to_string(), "what was asked before is answered");
            let rest = late.rest();
            assert!(
                rest.starts_with("-BUSY the clients of this node hold all of the 67108864 bytes"),
                "{rest}"
            );
            assert!(rest.ends_with("or raise client-max-memory\r\n"), "{rest}");
        } else {
            late.try_send(&encoded(framed(1, "SET k", VALUE_MAX)));
            let Some(Frame::Goodbye { reply }) = late.frame() else { panic!("no goodbye") };
            assert!(reply.failure().is_some_and(|failure| failure.code == Code::Busy), "{reply:?}");
            assert!(late.frame().is_none(), "nothing follows");
        }
    }
    // Behind one that waits it is not known what becomes of that.
    let mut late = node.connect();
    late.try_send(&[b"FETCH nothing BLOCK 600000\r\n", &unfinished()[..]].concat());
    assert!(late.rest().starts_with("-INDOUBT the clients of this node hold"));
    // Answers that find no room are refused in their places; the connections stand.
    let mut text = node.connect();
    text.send(b"*2\r\n$3\r\nGET\r\n$3\r\nbig\r\n*1\r\n$4\r\nPING\r\n*2\r\n$5\r\nFETCH\r\n$4\r\njobs\r\n");
    let said = [text.line(), text.line(), text.rest()];
    assert!(said[0].starts_with("-BUSY there is no room for the answer, of 8388608 bytes"), "{said:?}");
    assert_eq!(said[1], "+PONG");
    // Whoever cannot be given what it has fetched goes, and the messages go back.
    assert!(said[2].starts_with("-INDOUBT there is no room for the answer, of 4194"), "{said:?}");
    // And who reads none waits, with as many more as it likes, until it reads them.
    let mut deaf = node.connect();
    deaf.send(&[&b"PING\r\n".repeat(5000)[..], b"ECHO end\r\n"].concat());
    let refused = rich.ask(request(3, "GET big"));
    assert!(refused.failure().is_some_and(|failure| failure.code == Code::Busy), "{refused:?}");
    assert_eq!(rich.ask(request(4, "GET n")), Reply::text(answers.to_string()));
    let grown = node.memory("VmHWM").saturating_sub(before);
    assert!(grown < BOUND + BOUND / 2, "{} MiB more", grown >> 20);
    assert!(node.figure("quorate_client_refused_total") >= 20);
    assert_eq!(node.figure("quorate_client_max_bytes"), BOUND);
    node.serves_small();
    (0..5000).for_each(|_| assert_eq!(deaf.line(), "PONG"));
    assert_eq!(deaf.line(), "end");
    drop(hogs);
    poll("all is given back", || (node.held() == 0).then_some(()));
    poll("the system has it back", || {
        (node.memory("VmRSS").saturating_sub(before) < BOUND / 2).then_some(())
    });
    let Reply::Bulk(big) = rich.ask(request(5, "GET big")) else { panic!("there is room again") };
    assert_eq!(big.len(), VALUE_MAX);
}

#[test]
fn hogs_are_cut_for_others_once_they_have_held_much_for_long() {
    let node = Node::start();
    let mut hogs = fill(&node);
    let mut late = node.connect();
    let set = encoded(framed(1, "SET k", 4 * CLIENT_ALLOWANCE));
    let mut trickle = 0..7;
    poll("there is room again", || {
        // A byte now and then is not enough.
        if trickle.next().is_some() {
            hogs[0].try_send(b"v");
        }
        late.try_send(&set);
        match late.frame() {
            Some(Frame::Reply { reply: Reply::OK, .. }) => Some(()),
            Some(Frame::Goodbye { reply }) => {
                assert!(reply.failure().is_some_and(|failure| failure.code == Code::Busy), "{reply:?}");
                late = node.connect();
                None
            }
            other => panic!("{other:?}"),
        }
    });
    let told: Vec<String> = hogs.iter().map(heard).filter(|words| !words.is_empty()).collect();
    assert!(!told.is_empty() && told.len() <= 2, "an eighth is free: {told:?}");
    for words in told {
        assert!(
            words.starts_with("-BUSY 8388") && words.contains("were held here for more than 10 s"),
            "{words}"
        );
    }
    assert!(node.figure("quorate_client_cut_total") >= 1);
    let log = node.0.log(1);
    assert!(log.contains("is cut: it has held 8388"), "{log}");
    node.serves_small();
}

/// Each way to have a node hold something counts, and is given back when the connection ends.
#[test]
fn whatever_is_held_for_a_client_counts() {
    let node = Node::start();
    assert_eq!(node.connect().ask(framed(1, "SET big", VALUE_MAX)), Reply::OK);
    let mut holder = node.connect();
    assert!(matches!(holder.ask(request(1, "LOCK held OWNER holder TTL 600000")), Reply::Int(_)));
    let half = VALUE_MAX / 2;
    let value = format!("${half}\r\n{}\r\n", "v".repeat(half));
    let set = format!("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n{value}");
    let waits = encoded(request(1, "LOCK held WAIT 600000"));
    let after = encoded(RequestFrame { after: Some(1), ..framed(2, "SET k", half) });
    let cases: [(&str, Vec<u8>); 6] = [
        ("a part of a request", set.as_bytes()[..set.len() - 1].to_vec()),
        ("elements of an array", format!("*4\r\n$3\r\nSET\r\n$1\r\nk\r\n{value}").into()),
        ("a transaction", format!("MULTI\r\n{set}").into()),
        ("requests behind one that waits", format!("LOCK held WAIT 600000\r\n{set}").into()),
        ("frames behind one that waits", [waits, after].concat()),
        ("answers that are not read", b"GET big\r\n".repeat(2)),
    ];
    for (what, bytes) in cases {
        let mut hogs: Vec<Socket> = (0..4).map(|_| node.connect()).collect();
        hogs.iter_mut().for_each(|hog| hog.send(&bytes));
        poll(what, || (node.held() >= 4 * (half - CLIENT_ALLOWANCE)).then_some(()));
        drop(hogs);
        poll(what, || (node.held() == 0).then_some(()));
    }
}

/// Of memory that was used for something large nothing is kept for the little that came with it.
#[test]
fn a_little_that_comes_with_much_keeps_little() {
    let node = Node::start();
    let mut holder = node.connect();
    assert!(matches!(holder.ask(request(1, "LOCK held OWNER holder TTL 600000")), Reply::Int(_)));
    let before = node.memory("VmRSS");
    // Refused for its length, and nothing is left of it but what came behind.
    let large = format!("*2\r\n$3\r\nGET\r\n${VALUE_MAX}\r\n{}\r\n", "v".repeat(VALUE_MAX));
    let mut littles = Vec::new();
    for n in 0..6 {
        let mut text = node.connect();
        text.send(&[large.as_bytes(), b"*2\r\n$4\r\nECHO\r\n$"].concat());
        assert!(text.line().starts_with('-'), "such a name is too long");
        let mut binary = node.connect();
        let lock = encoded(request(2, &format!("LOCK held OWNER waiter{n} WAIT 600000")));
        binary.send(&[&encoded(framed(1, "GET", VALUE_MAX)), &lock, &lock[..20]].concat());
        let (_, refusal) = binary.reply();
        assert!(refusal.failure().is_some(), "{refusal:?}");
        littles.extend([text, binary]);
    }
    poll("nobody is charged", || (node.held() == 0).then_some(()));
    poll("nothing is kept", || (node.memory("VmRSS").saturating_sub(before) < 4 * VALUE_MAX).then_some(()));
    drop(littles);
    node.serves_small();
}

/// A client that always has more answers to read does not make the node keep those that it has read.
#[test]
fn answers_that_are_read_are_let_go_of_though_more_are_asked_for_all_the_time() {
    const MIB: usize = 1 << 20;
    let node = Node::start();
    assert_eq!(node.connect().ask(framed(1, "SET big", MIB)), Reply::OK);
    let mut reader = node.connect();
    let mut asker = reader.stream.try_clone().expect("a second handle");
    let ask = std::thread::spawn(move || asker.write_all(&b"*2\r\n$3\r\nGET\r\n$3\r\nbig\r\n".repeat(600)));
    let answer = [&b"$1048576\r\n"[..], &[b'v'; MIB], b"\r\n"].concat();
    for n in 0..600 {
        reader.expect(&answer);
        assert!(node.held() < BOUND / 2, "{} bytes after {n} answers", node.held());
    }
    ask.join().expect("it ran").expect("all was read");
}

/// What the node answers by itself is ready long before it may be sent.
#[test]
fn answers_that_are_kept_behind_one_that_waits_count() {
    let node = Node::start();
    let mut text = node.connect();
    text.send(&[&b"FETCH nothing BLOCK 600000\r\n"[..], &b"COMMAND DOCS\r\n".repeat(100)].concat());
    poll("they count", || (node.held() > 2 << 20).then_some(()));
    let mut framed = node.connect();
    framed.send(&encoded(request(1, "FETCH nothing BLOCK 600000")));
    let before = node.held();
    for correlation in 2..100 {
        framed.send(&encoded(RequestFrame { after: Some(1), ..request(correlation, "COMMAND DOCS") }));
    }
    poll("so they do here", || (node.held() > before + (2 << 20)).then_some(()));
    drop((text, framed));
    poll("all is given back", || (node.held() == 0).then_some(()));
}
