//! The client's rules against a scripted node: what is sent again, under which number, and what is believed.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use bytes::BytesMut;
use quorate_client::{Client, Error, Lock, Options};
use quorate_protocol::command::find_number;
use quorate_protocol::frame::{self, Frame, RequestFrame};
use quorate_protocol::id::{ClientId, ClientSeq};
use quorate_protocol::reply::{Code, Reply};

/// The script's side of a connection.
struct Peer {
    stream: TcpStream,
    buffer: BytesMut,
}

impl Peer {
    fn accept(listener: &TcpListener) -> Self {
        let (stream, _) = listener.accept().expect("the client connects");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        Self { stream, buffer: BytesMut::new() }
    }

    /// The next request that is not a sign of life.
    fn hear(&mut self) -> (String, RequestFrame) {
        loop {
            let request = self.hear_any();
            let verb = find_number(request.opcode).expect("a command").name;
            if verb == "PING" {
                self.answer(&request, Reply::Status("PONG"));
                continue;
            }
            let args = request.args.iter().map(|arg| arg.escape_ascii().to_string());
            let words: Vec<String> = std::iter::once(verb.to_owned()).chain(args).collect();
            return (words.join(" "), request);
        }
    }

    fn hear_any(&mut self) -> RequestFrame {
        loop {
            match frame::decode(&mut self.buffer).expect("clients send good frames") {
                Some(Frame::Request(request)) => return request,
                Some(other) => panic!("{other:?} from a client"),
                None => {}
            }
            let mut piece = [0; 4096];
            let count = self.stream.read(&mut piece).expect("the client says something");
            assert!(count > 0, "the client has gone");
            self.buffer.extend_from_slice(&piece[..count]);
        }
    }

    fn expect(&mut self, line: &str) -> RequestFrame {
        let (words, request) = self.hear();
        assert_eq!(words, line);
        request
    }

    fn send(&mut self, frame: &Frame) {
        let mut out = Vec::new();
        frame.encode(&mut out);
        self.stream.write_all(&out).expect("the client listens");
    }

    fn answer(&mut self, request: &RequestFrame, reply: Reply) {
        self.send(&Frame::Reply { correlation: request.correlation, reply });
    }

    /// Hears this and answers that.
    fn serve(&mut self, line: &str, reply: Reply) -> RequestFrame {
        let request = self.expect(line);
        self.answer(&request, reply);
        request
    }
}

fn seq(seq: u64, lowest: u64) -> Option<ClientSeq> {
    Some(ClientSeq { client: ClientId(100), seq, lowest })
}

fn down() -> Reply {
    Reply::error(Code::ClusterDown, "no leader")
}

/// A client, and the first connection with its session open.
async fn begin(options: Options) -> (Client, TcpListener, Peer) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("it is bound").to_string();
    let connecting = tokio::spawn(Client::connect_with([address], options));
    let mut peer = Peer::accept(&listener);
    peer.serve("SESSION OPEN", Reply::Int(100));
    (connecting.await.expect("it ran").expect("it is served"), listener, peer)
}

fn incr(client: &Client) -> tokio::task::JoinHandle<Result<i64, Error>> {
    let client = client.clone();
    tokio::spawn(async move { client.incr("n", 1).await })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_asked_again_under_the_same_number() {
    let (client, _listener, mut peer) = begin(Options::default()).await;
    let call = incr(&client);
    assert_eq!(peer.serve("INCRBY n 1", down()).client, seq(1, 1));
    assert_eq!(peer.serve("INCRBY n 1", Reply::error(Code::Busy, "full")).client, seq(1, 1));
    assert_eq!(peer.serve("INCRBY n 1", Reply::Int(1)).client, seq(1, 1));
    assert_eq!(call.await.expect("it ran"), Ok(1));
    let call = incr(&client);
    assert_eq!(peer.serve("INCRBY n 1", Reply::Int(2)).client, seq(2, 2));
    assert_eq!(call.await.expect("it ran"), Ok(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_believed_only_when_no_sending_went_unanswered() {
    let options = Options { retry: Duration::from_millis(300), ..Options::default() };
    let (client, listener, mut peer) = begin(options).await;
    let fresh = incr(&client);
    peer.serve("INCRBY n 1", down());
    // The client gives up after a while; until then every question gets the same answer.
    let answering = std::thread::spawn(move || {
        while !fresh.is_finished() {
            let mut head = [0; 1];
            peer.stream.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout");
            if peer.stream.peek(&mut head).is_ok() {
                peer.stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
                peer.serve("INCRBY n 1", down());
            }
        }
        (peer, fresh)
    });
    let (mut peer, fresh) = answering.join().expect("it ran");
    let refused = fresh.await.expect("it ran").expect_err("refused to the end");
    assert!(refused.is_passing(), "nothing happened: {refused}");

    let call = incr(&client);
    let sent = peer.expect("INCRBY n 1");
    drop(peer);
    let mut peer = Peer::accept(&listener);
    peer.serve("SESSION RESUME 100", Reply::Int(100));
    let again = peer.serve("INCRBY n 1", down());
    assert_eq!(again.client, sent.client, "the same number");
    assert_ne!(again.correlation, 0);
    assert_eq!(peer.serve("INCRBY n 1", Reply::Int(7)).client, sent.client, "asked until there is an answer");
    assert_eq!(call.await.expect("it ran"), Ok(7));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doubt_is_asked_away_as_long_as_the_session_lives() {
    let (client, _listener, mut peer) = begin(Options::default()).await;
    let call = incr(&client);
    let first = peer.serve("INCRBY n 1", Reply::error(Code::InDoubt, "no answer from the leader"));
    peer.serve("SESSION RESUME 100", Reply::Int(100));
    assert_eq!(peer.serve("INCRBY n 1", Reply::Int(1)).client, first.client);
    assert_eq!(call.await.expect("it ran"), Ok(1));
    // The session is over: no more questions help.
    let call = incr(&client);
    peer.serve("INCRBY n 1", Reply::error(Code::InDoubt, "this client session is not known here"));
    peer.serve("SESSION RESUME 100", Reply::error(Code::Err, "this client session has ended"));
    peer.serve("SESSION OPEN", Reply::Int(200));
    assert!(matches!(call.await.expect("it ran"), Err(Error::InDoubt(_))));
    let call = incr(&client);
    let next = peer.serve("INCRBY n 1", Reply::Int(3)).client.expect("in a session");
    assert_eq!((next.client, next.seq, next.lowest), (ClientId(200), 3, 3));
    assert_eq!(call.await.expect("it ran"), Ok(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_ended_between_connections_leaves_in_doubt_what_was_sent() {
    let (client, listener, mut peer) = begin(Options::default()).await;
    let sent = incr(&client);
    peer.expect("INCRBY n 1");
    drop(peer);
    let mut peer = Peer::accept(&listener);
    peer.serve("SESSION RESUME 100", Reply::error(Code::Err, "this client session has ended"));
    assert!(matches!(sent.await.expect("it ran"), Err(Error::InDoubt(_))));
    peer.serve("SESSION OPEN", Reply::Int(200));
    let call = incr(&client);
    assert_eq!(peer.serve("INCRBY n 1", Reply::Int(1)).client.map(|c| c.client), Some(ClientId(200)));
    assert_eq!(call.await.expect("it ran"), Ok(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_belongs_to_the_connection_is_lost_with_it_and_says_why() {
    let (client, listener, mut peer) = begin(Options::default()).await;
    let lock = |how: Lock| {
        let client = client.clone();
        tokio::spawn(async move { client.lock("l", how).await.map(|held| held.map(|held| held.token())) })
    };
    let mine = lock(Lock::owned_by_connection().wait(Duration::from_secs(60)));
    assert_eq!(peer.expect("LOCK l WAIT 60000").client, None);
    let named = lock(Lock::owned_by("me").wait(Duration::from_secs(60)));
    assert_eq!(peer.expect("LOCK l OWNER me WAIT 60000").client, None, "it may wait long");
    let reply = Reply::error(Code::Err, "the node lost its session");
    peer.send(&Frame::Goodbye { reply });
    drop(peer);
    let mut peer = Peer::accept(&listener);
    for _ in 0..2 {
        let (line, request) = peer.hear();
        let known = [("SESSION RESUME 100", 100), ("LOCK l OWNER me WAIT 60000", 9)];
        let (_, number) = known.into_iter().find(|(known, _)| *known == line).expect("nothing else is asked");
        peer.answer(&request, Reply::Int(number));
    }
    assert_eq!(named.await.expect("it ran"), Ok(Some(9)));
    let lost = mine.await.expect("it ran");
    assert!(matches!(&lost, Err(Error::Lost(why)) if why.contains("the node lost its session")), "{lost:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_ends_a_connection_and_a_timeout_says_what_may_have_happened() {
    let silence = Duration::from_millis(400);
    let (client, listener, mut peer) = begin(Options { silence, ..Options::default() }).await;
    let call = incr(&client);
    peer.expect("INCRBY n 1");
    // The node hears, and says nothing any more.
    let mut next = Peer::accept(&listener);
    next.serve("SESSION RESUME 100", Reply::Int(100));
    next.serve("INCRBY n 1", Reply::Int(1));
    assert_eq!(call.await.expect("it ran"), Ok(1));
    client.close();

    let timeout = Some(Duration::from_millis(200));
    let (client, _listener, mut peer) = begin(Options { timeout, ..Options::default() }).await;
    let call = incr(&client);
    peer.expect("INCRBY n 1");
    assert!(matches!(call.await.expect("it ran"), Err(Error::InDoubt(_))));
    let read = {
        let client = client.clone();
        tokio::spawn(async move { client.get("n").await })
    };
    peer.expect("GET n");
    assert_eq!(read.await.expect("it ran"), Err(Error::Timeout));
    let call = incr(&client);
    assert_eq!(peer.serve("INCRBY n 1", Reply::Int(2)).client, seq(2, 2), "nobody waits for number 1");
    assert_eq!(call.await.expect("it ran"), Ok(2));
}
