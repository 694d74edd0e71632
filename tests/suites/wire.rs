//! What comes over real sockets: every language, cut anywhere, and everything that is none.
//!
//! Whatever is sent: an error reply or a closed connection, the node goes on serving, and its memory stays
//! bounded.

use std::collections::HashMap;
use std::io::Write;
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

use quorate_protocol::frame::{Frame, RequestFrame};
use quorate_protocol::id::{ClientId, ClientSeq};
use quorate_protocol::limits::{ARGS_MAX, INLINE_MAX, PIPELINE_MAX, WAITS_MAX};
use quorate_protocol::reply::{Code, Reply};
use quorate_tests::process::{Cluster, poll};
use quorate_tests::socket::{Socket, encoded, request};

/// The node that most tests talk to.
struct Node {
    cluster: Cluster,
}

impl Node {
    fn start() -> Self {
        Self { cluster: Cluster::start(1) }
    }

    fn address(&self) -> SocketAddr {
        self.cluster.address(1)
    }

    fn connect(&self) -> Socket {
        Socket::new(self.address())
    }

    /// The node serves others, as it did before.
    fn still_serves(&self) {
        let mut other = self.connect();
        other.send(b"PING\r\n");
        assert_eq!(other.line(), "PONG");
        let log = self.cluster.log(1);
        assert!(!log.contains("panicked"), "{log}");
    }

    /// The most memory that the node has ever used, in bytes.
    fn memory(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.cluster.pid(1)));
        let status = status.expect("the node runs");
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("Linux tells");
        1024 * line.split_whitespace().nth(1).and_then(|kib| kib.parse::<usize>().ok()).expect("a number")
    }
}

fn in_session(correlation: u64, line: &str, client: u64, seq: u64, lowest: u64) -> RequestFrame {
    let client = Some(ClientSeq { client: ClientId(client), seq, lowest });
    RequestFrame { client, ..request(correlation, line) }
}

/// A good frame with some of its bytes replaced, and the checksum made to fit.
fn forged(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = encoded(request(1, "PING"));
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame[20..24].fill(0);
    let crc = crc32(&frame);
    frame[20..24].copy_from_slice(&crc.to_le_bytes());
    frame
}

fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), |crc, _| step(crc)))
}

#[test]
fn text_that_is_none_is_told_so_and_the_connection_closed() {
    let node = Node::start();
    let long = vec![b'a'; INLINE_MAX + 100];
    let many = format!("*{}\r\n", ARGS_MAX + 1);
    let cases: [(&[u8], &str); 14] = [
        (b"*x\r\n", "invalid multibulk length"),
        (b"*99999999999999999999\r\n", "invalid multibulk length"),
        (many.as_bytes(), "invalid multibulk length"),
        (b"*1\r\n$99999999999\r\n", "invalid bulk length"),
        (b"*1\r\n$-5\r\n", "invalid bulk length"),
        (b"*2\r\n$3\r\nGET\r\n:5\r\n", "expected '$', got ':'"),
        (b"*1\r\n$4\r\nPINGPONG\r\n", "does not end with CR LF"),
        (b"*1111111111111111111111111111111111111111", "invalid multibulk length"),
        (&long, "too big inline request"),
        (b"SET k \"open\r\n", "unbalanced quotes"),
        (b"SET k \"a\"b\r\n", "unbalanced quotes"),
        (b"POST / HTTP/1.1\r\nHost: x\r\n\r\n", "does not speak HTTP"),
        (b"Host: 127.0.0.1:7411\r\n", "does not speak HTTP"),
        (b"PING\r\nhost: 127.0.0.1\r\nPING\r\n", "does not speak HTTP"),
    ];
    for (bytes, why) in cases {
        let mut socket = node.connect();
        socket.try_send(bytes);
        let rest = socket.rest();
        assert!(rest.contains(why), "{}: {rest}", bytes[..bytes.len().min(60)].escape_ascii());
        assert_eq!(rest.matches("Protocol error").count(), 1, "nothing behind it is looked at");
        node.still_serves();
    }
}

#[test]
fn text_that_makes_no_sense_is_told_so_and_the_connection_stands() {
    let node = Node::start();
    let cases: [(&[u8], &str); 7] = [
        (b"\x00\x01\x02\x7f\r\n", "-ERR unknown command '\\x00\\x01\\x02\\x7f'"),
        (b"GET\x00k\r\n", "-ERR unknown command 'GET\\x00k'"),
        (b"GET / HTTP/1.1\r\n", "-ERR wrong number of arguments for 'get'"),
        (b"\x16\x03\x01\x02\x00\r\n", "-ERR unknown command"),
        (b"SET k\r\n", "-ERR wrong number of arguments for 'set'"),
        (b"LOCK db WAIT soon\r\n", "-ERR WAIT must be a number from 0 to 2592000000, not soon"),
        (b"SESSION OPEN\r\n", "-ERR client sessions belong to the binary protocol"),
    ];
    let mut socket = node.connect();
    for (bytes, why) in cases {
        socket.send(bytes);
        let line = socket.line();
        assert!(line.starts_with(why), "{}: {line}", bytes.escape_ascii());
    }
    let mut telnet = node.connect();
    // As it says what it can do, and how large its window is: ten rows.
    telnet.send(b"\xff\xfd\x03\xff\xfb\x18\xff\xfa\x1f\x00\x50\x00\x0a\xff\xf0PING\r\n\xff\xf4\xff\xfd\x06\r\nPING\r\n");
    assert_eq!((telnet.line(), telnet.line()), ("PONG".to_owned(), "PONG".to_owned()));
    node.still_serves();
}

#[test]
fn frames_that_are_none_get_a_goodbye_that_says_why() {
    let node = Node::start();
    let mut damaged = encoded(request(1, "PING"));
    damaged[20] ^= 1;
    let reply = {
        let mut out = Vec::new();
        Frame::Reply { correlation: 1, reply: Reply::OK }.encode(&mut out);
        out
    };
    let twice = [encoded(request(5, "LOCK held OWNER x WAIT 60000")), encoded(request(5, "PING"))].concat();
    let cases: [(Vec<u8>, &str); 11] = [
        (forged(1, &[2]), "version 2 is not spoken here"),
        (forged(2, &[7]), "kind 7 is not expected"),
        (forged(3, &[0x80]), "flags 0x80 have no meaning"),
        (forged(18, &[1, 0]), "reserved field"),
        (forged(4, &u32::MAX.to_le_bytes()), "over the limit"),
        (forged(24, &9u32.to_le_bytes()), "announces more arguments"),
        (forged(3, &[1]), "ends before the last argument"),
        (damaged, "checksum does not match"),
        ([encoded(request(1, "PING")), b"PING\r\n".to_vec()].concat(), "begins with 0x50"),
        (reply, "only requests are understood here"),
        (twice, "belongs to a request that is not answered yet"),
    ];
    let mut holder = node.connect();
    holder.send(b"LOCK held OWNER holder\r\n");
    holder.line();
    for (bytes, why) in cases {
        let mut socket = node.connect();
        socket.send(&bytes);
        let text = socket.goodbye();
        assert!(text.contains(why), "{why}: {text}");
        node.still_serves();
    }
}

#[test]
fn what_breaks_off_in_the_middle_leaves_nothing_behind() {
    let node = Node::start();
    let frame = encoded(request(1, "SET broken off"));
    let resp = b"*3\r\n$3\r\nSET\r\n$6\r\nbroken\r\n$3\r\noff\r\n";
    for bytes in [&frame[..], resp, b"SET broken off\r\n"] {
        for cut in 0..bytes.len() {
            let mut socket = node.connect();
            socket.send(&bytes[..cut]);
            if cut % 2 == 0 {
                socket.stream.shutdown(Shutdown::Write).expect("it stands");
                assert_eq!(socket.rest(), "", "half a request is none");
            }
        }
    }
    let mut socket = node.connect();
    socket.send(b"GET broken\r\n");
    assert_eq!(socket.line(), "(nil)");
    node.still_serves();
}

#[test]
fn requests_are_understood_however_they_are_cut() {
    let node = Node::start();
    let mut resp = node.connect();
    for &byte in b"*3\r\n$3\r\nSET\r\n$3\r\ncut\r\n$4\r\na\r\nb\r\n*2\r\n$3\r\nGET\r\n$3\r\ncut\r\n" {
        resp.send(&[byte]);
    }
    resp.expect(b"+OK\r\n$4\r\na\r\nb\r\n");
    let mut line = node.connect();
    for &byte in b"SET cut \"x y\"\r\nGET cut\r\n" {
        line.send(&[byte]);
    }
    line.expect(b"OK\r\nx y\r\n");
    let mut binary = node.connect();
    for byte in
        [encoded(request(1, "SET cut z")), encoded(RequestFrame { after: Some(1), ..request(2, "GET cut") })]
            .concat()
    {
        binary.send(&[byte]);
    }
    assert_eq!(binary.reply(), (1, Reply::OK));
    assert_eq!(binary.reply(), (2, Reply::text("z")));
}

#[test]
fn an_array_of_a_hundred_thousand_elements_costs_linear_time() {
    let node = Node::start();
    let mut bytes = b"*100001\r\n$4\r\nPING\r\n".to_vec();
    (0..100_000).for_each(|_| bytes.extend_from_slice(b"$1\r\nx\r\n"));
    let mut socket = node.connect();
    // Byte by byte at the beginning; then in pieces of a byte's meaning, as a network may cut them.
    let (slow, fast) = bytes.split_at(20_000);
    slow.iter().for_each(|byte| socket.send(&[*byte]));
    fast.chunks(5).for_each(|piece| socket.send(piece));
    let line = socket.line();
    assert!(line.starts_with("-ERR") || line.starts_with('+'), "{line}");
    node.still_serves();
}

#[test]
fn the_dialect_changes_where_hello_stands() {
    let node = Node::start();
    let mut socket = node.connect();
    socket.send(b"GET nothing\r\nHELLO 3\r\nGET nothing\r\nHELLO 2\r\nGET nothing\r\nRESET\r\n");
    assert_eq!(socket.line(), "(nil)");
    let mut hello = socket.line();
    assert_eq!(hello, "%7", "RESP3 from its reply on");
    while hello != "_" {
        hello = socket.line();
    }
    assert_eq!(socket.line(), "*14", "RESP2 from its reply on");
    while hello != "$-1" {
        hello = socket.line();
    }
    assert_eq!(socket.line(), "+RESET");
    let mut people = node.connect();
    people.send(b"PING\r\n*1\r\n$4\r\nPING\r\nPING\r\n");
    people.expect(b"PONG\r\n+PONG\r\n+PONG\r\n");
    let mut two = node.connect();
    two.send(b"*2\r\n$3\r\nSUB\r\n$1\r\nt\r\n");
    assert!(two.line().starts_with("-ERR RESP2 cannot carry pushed messages"));
}

#[test]
fn messages_never_come_between_replies_of_resp2() {
    let node = Node::start();
    let refused = |socket: &mut Socket, ask: &[u8]| {
        socket.send(ask);
        let line = socket.line();
        assert!(line.starts_with("-ERR") && line.contains("UNSUB"), "{}: {line}", ask.escape_ascii());
    };
    let mut publisher = node.connect();
    let mut publish = |socket: &mut Socket| {
        publisher.send(b"PUB quiet body\r\n");
        let id = publisher.line();
        while !socket.line().ends_with("body") {}
        publisher.send(format!("ACK quiet {id}\r\n").as_bytes());
        assert_eq!(publisher.line(), "1");
    };
    let mut three = node.connect();
    // Already behind a SUB that is not answered.
    three.send(b"HELLO 3\r\nSUB quiet\r\nHELLO 2\r\n");
    while three.line() != "+OK" {}
    assert!(three.line().contains("UNSUB"));
    refused(&mut three, b"RESET\r\n");
    publish(&mut three);
    three.send(b"HELLO 3\r\nHELLO\r\nUNSUB quiet\r\n");
    while three.line() != ":1" {}
    three.send(b"RESET\r\n");
    assert_eq!(three.line(), "+RESET");

    let mut lines = node.connect();
    lines.send(b"SUB quiet\r\n");
    assert_eq!(lines.line(), "OK");
    for ask in [&b"*1\r\n$4\r\nPING\r\n"[..], b"*2\r\n$5\r\nHELLO\r\n$1\r\n2\r\n", b"HELLO\r\n", b"RESET\r\n"]
    {
        refused(&mut lines, ask);
    }
    publish(&mut lines);
    lines.send(b"*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n");
    assert_eq!(lines.line(), "%7", "RESP3 carries them");
    publish(&mut lines);
    lines.send(b"UNSUB quiet\r\n");
    assert_eq!(lines.line(), ":1");
}

#[test]
fn what_clients_say_of_themselves_is_bounded() {
    let node = Node::start();
    let mut socket = node.connect();
    let long = "n".repeat(1 << 20);
    for words in [&["CLIENT", "SETNAME"][..], &["HELLO", "3", "SETNAME"], &["CLIENT", "SETINFO", "lib-ver"]] {
        let mut ask = format!("*{}\r\n", words.len() + 1);
        for word in words.iter().copied().chain([long.as_str()]) {
            ask.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        socket.send(ask.as_bytes());
        let line = socket.line();
        assert!(line.starts_with("-TOOBIG") && line.contains("of 1048576 bytes"), "{words:?}: {line}");
    }
    let mut people = node.connect();
    for (ask, answer) in [
        (
            "CLIENT SETNAME \"a b\"",
            "-ERR Client names cannot contain spaces, newlines or special characters.",
        ),
        ("HELLO 2 SETNAME \"a\\nb\"", "-ERR Client names cannot contain"),
        ("CLIENT SETINFO LIB-NAME \"a b\"", "-ERR lib-names cannot contain"),
        ("CLIENT SETNAME worker-\"1\"", "OK"),
        ("CLIENT GETNAME", "worker-\"1\""),
    ] {
        people.send(format!("{ask}\r\n").as_bytes());
        let line = people.line();
        assert!(line.starts_with(answer), "{ask}: {line}");
    }
    people.send(b"CLIENT LIST\r\n");
    let (first, second) = (people.line(), people.line());
    assert!(first.contains(" name= "), "nothing was kept of the long one: {first}");
    assert!(second.contains(" name=worker-\"1\" "), "{second}");
}

#[test]
fn a_client_that_closes_its_side_is_answered_but_waits_for_nothing() {
    let node = Node::start();
    let mut piped = node.connect();
    piped.send(b"SET piped 1\r\nINCR piped\r\nGET piped\r\n");
    piped.stream.shutdown(Shutdown::Write).expect("it stands");
    assert_eq!(piped.rest(), "OK\r\n2\r\n2\r\n");

    let mut holder = node.connect();
    holder.send(b"LOCK gone OWNER holder\r\n");
    holder.line();
    // Behind a waiting LOCK stands an error that closes the connection: nothing more is read from it.
    let mut waiter = node.connect();
    waiter.send(b"LOCK gone WAIT 600000\r\nPOST / HTTP/1.1\r\n");
    let waits = |holder: &mut Socket, wanted: bool| {
        poll("the queue of the lock", || {
            holder.send(b"LOCKINFO gone\r\nECHO end\r\n");
            let mut text = String::new();
            loop {
                match holder.line().as_str() {
                    "end" => break,
                    line => text.push_str(line),
                }
            }
            (text.contains("waiters: (empty)") != wanted).then_some(())
        });
    };
    waits(&mut holder, true);
    drop(waiter);
    waits(&mut holder, false);
}

#[test]
fn binary_answers_overtake_and_after_keeps_order() {
    let node = Node::start();
    let mut holder = node.connect();
    assert!(matches!(holder.ask(request(1, "LOCK overtaken OWNER holder")), Reply::Int(_)));
    let mut socket = node.connect();
    socket.send_frame(request(1, "LOCK overtaken OWNER waiter WAIT 600000"));
    for n in 300..310 {
        socket.send_frame(request(n, "FETCH nothing BLOCK 600000"));
    }
    for n in 2..200 {
        assert_eq!(socket.ask(request(n, "SET overtaken v")), Reply::OK, "the waiting LOCK holds nobody up");
    }
    // AFTER: what waits for the LOCK waits, whatever answers it: the cluster, the connection, an error.
    let after = |line: &str, n: u64, on: u64| RequestFrame { after: Some(on), ..request(n, line) };
    for (n, line) in [(200, "GET overtaken"), (201, "PING"), (202, "STATUS"), (203, "GET")] {
        socket.send_frame(after(line, n, 1));
    }
    socket.send_frame(after("ECHO first", 204, 9_999));
    assert_eq!(socket.reply(), (204, Reply::text("first")), "nobody knows 9999: it is taken for answered");
    assert_eq!(socket.ask(request(205, "PING")), Reply::Status("PONG"));
    let token = |reply: Reply| if let Reply::Int(token) = reply { token } else { panic!("{reply:?}") };
    assert_eq!(holder.ask(request(2, "UNLOCK overtaken OWNER holder")), Reply::Int(1));
    let (first, granted) = socket.reply();
    assert!(first == 1 && token(granted) > 0, "the LOCK is answered first");
    let mut behind: Vec<u64> = (0..4).map(|_| socket.reply().0).collect();
    behind.sort_unstable();
    assert_eq!(behind, [200, 201, 202, 203]);
    // A chain: each INCR waits for the one before.
    let mut chain = Vec::new();
    for n in 1..=500 {
        let link = RequestFrame { after: (n > 1).then(|| 1000 + n - 1), ..request(1000 + n, "INCR chained") };
        chain.extend(encoded(link));
    }
    socket.send(&chain);
    for n in 1..=500 {
        assert_eq!(socket.reply(), (1000 + n, Reply::int(n)));
    }
    let mut last = node.connect();
    last.send(&[encoded(request(1, "INCR last")), encoded(request(2, "QUIT"))].concat());
    let mut answered = [last.reply().0, last.reply().0];
    answered.sort_unstable();
    assert_eq!(answered, [1, 2], "QUIT waits for what was asked before");
    assert!(last.frame().is_none(), "closed");
}

#[test]
fn requests_that_wait_leave_room_for_those_that_do_not() {
    let node = Node::start();
    let mut holder = node.connect();
    assert!(matches!(holder.ask(request(1, "LOCK held OWNER holder TTL 600000")), Reply::Int(_)));
    let mut socket = node.connect();
    let most = u64::try_from(WAITS_MAX).expect("a number");
    let waits = |n: u64| match n % 3 {
        0 => request(n, "FETCH nothing BLOCK 600000"),
        1 => request(n, &format!("LOCK held OWNER waiter{n} WAIT 600000")),
        // What is behind one that waits does, too.
        _ => RequestFrame { after: Some(n - 1), ..request(n, "PING") },
    };
    // More than the node reads of unanswered requests.
    let many: Vec<u8> = (1..=2 * most + 100).flat_map(|n| encoded(waits(n))).collect();
    socket.send(&many);
    let refused = |(n, reply): (u64, Reply)| {
        let failure = reply.failure().unwrap_or_else(|| panic!("{n} is refused, not {reply:?}"));
        assert!(failure.code == Code::Busy && reply.never_proposed(), "{failure:?}");
        assert!(failure.text.contains("512 requests of this connection wait"), "{failure:?}");
        n
    };
    for n in most + 1..=2 * most + 100 {
        if n % 3 == 2 {
            assert_eq!(socket.reply(), (n, Reply::Status("PONG")), "the one before was refused at once");
        } else {
            assert_eq!(refused(socket.reply()), n);
        }
    }
    assert_eq!(socket.ask(request(10_000, "PING")), Reply::Status("PONG"));
    assert_eq!(socket.ask(request(10_001, "SET k v")), Reply::OK);
    assert!(
        matches!(socket.ask(request(10_002, "LOCK free OWNER other")), Reply::Int(_)),
        "it is not to wait"
    );
    // The UNLOCK that one waits for comes on the same connection, behind all that wait.
    socket.send_frame(request(10_003, "UNLOCK held OWNER holder"));
    let answers: HashMap<u64, Reply> = (0..3).map(|_| socket.reply()).collect();
    assert_eq!(answers[&10_003], Reply::Int(1));
    let granted = answers.iter().find(|(n, reply)| **n < 10_000 && matches!(reply, Reply::Int(_)));
    let (granted, _) = granted.expect("one of those that wait");
    assert_eq!(answers[&(granted + 1)], Reply::Status("PONG"), "and what is behind it");
    // So two more may wait.
    (0..3).for_each(|n| socket.send_frame(request(20_000 + n, "FETCH nothing BLOCK 600000")));
    assert_eq!(refused(socket.reply()), 20_002);
    // Where answers come in order, what waits holds up all behind it anyway, and as much may be sent as ever.
    let mut ordered = node.connect();
    ordered.send(&b"LOCK free OWNER other WAIT 1000\r\n".repeat(WAITS_MAX + 100));
    (0..WAITS_MAX + 100).for_each(|_| assert!(ordered.line().parse::<u64>().is_ok(), "it is granted"));
}

#[test]
fn a_session_goes_on_at_another_node_and_executes_nothing_twice() {
    let mut cluster = Cluster::start(3);
    let mut first = Socket::new(cluster.address(1));
    let Reply::Int(id) = first.ask(request(1, "SESSION OPEN")) else { panic!("a session") };
    let id = u64::try_from(id).expect("above 0");
    for seq in 1..=5 {
        assert_eq!(first.ask(in_session(seq, "INCR counter", id, seq, 1)), Reply::int(seq));
    }
    // The same again on the same connection, and on another node, while the first one runs and after.
    assert_eq!(first.ask(in_session(6, "INCR counter", id, 5, 1)), Reply::int(5));
    let mut second = Socket::new(cluster.address(2));
    let early = second.ask(in_session(1, "INCR counter", id, 5, 1));
    assert!(early.failure().is_some_and(|f| f.code == Code::InDoubt), "RESUME comes first: {early:?}");
    assert_eq!(second.ask(request(2, &format!("SESSION RESUME {id}"))), Reply::int(id));
    assert_eq!(second.ask(in_session(3, "INCR counter", id, 4, 4)), Reply::int(4));
    cluster.kill(1);
    let again = poll("node 2 answers", || {
        let reply = second.ask(in_session(4, "INCR counter", id, 5, 5));
        (!reply.never_proposed() && reply.failure().is_none_or(|f| f.code != Code::InDoubt)).then_some(reply)
    });
    assert_eq!(again, Reply::int(5));
    let below = second.ask(in_session(5, "INCR counter", id, 3, 3));
    assert!(below.failure().is_some_and(|f| f.code == Code::InDoubt), "its answer is forgotten: {below:?}");
    let above = second.ask(in_session(6, "INCR counter", id, 6 + 1024, 6));
    assert!(above.failure().is_some_and(|f| f.code == Code::Busy), "beyond the window: {above:?}");
    assert_eq!(second.ask(request(7, "GET counter")), Reply::text("5"));
    let unknown = second.ask(request(8, &format!("SESSION RESUME {}", id + 1)));
    assert!(unknown.failure().is_some_and(|f| f.code == Code::Err), "no such session: {unknown:?}");
}

#[test]
fn a_client_that_does_not_read_is_cut_or_held_up_and_memory_stays_bounded() {
    let node = Node::start();
    let mut setter = node.connect();
    let value = vec![b'v'; 1 << 20];
    setter.send(&[&b"*3\r\n$3\r\nSET\r\n$3\r\nbig\r\n$1048576\r\n"[..], &value, b"\r\n"].concat());
    setter.expect(b"+OK\r\n");
    let before = node.memory();
    let mut deaf: Vec<Socket> = Vec::new();
    let pings = b"PING\r\n".repeat(20_000);
    let gets = b"GET big\r\n".repeat(2 * PIPELINE_MAX);
    let docs = b"COMMAND DOCS\r\n".repeat(20_000);
    let frames: Vec<u8> = (0..20_000).flat_map(|n| encoded(request(n, "GET big"))).collect();
    for bytes in [&pings[..], &gets, &docs, &frames] {
        let mut socket = node.connect();
        socket.stream.set_write_timeout(Some(Duration::from_millis(500))).expect("a timeout");
        for _ in 0..20 {
            // Until the node reads no further, or has cut the connection.
            if socket.stream.write_all(bytes).is_err() {
                break;
            }
        }
        deaf.push(socket);
        node.still_serves();
    }
    let grown = node.memory().saturating_sub(before);
    assert!(grown < 256 << 20, "{} MiB more", grown >> 20);
    // Deep but reading: everything is answered, in order, however large.
    let mut reader = node.connect();
    reader.send(&b"GET big\r\n".repeat(200));
    let line = [&value[..], b"\r\n"].concat();
    for _ in 0..200 {
        reader.expect(&line);
    }
    let mut writer = reader.stream.try_clone().expect("a second handle");
    let sender = std::thread::spawn(move || writer.write_all(&b"INCR deep\r\n".repeat(5000)));
    for n in 1..=5000 {
        assert_eq!(reader.line(), n.to_string());
    }
    sender.join().expect("it ran").expect("all was read");
    drop(deaf);
    node.still_serves();
}
