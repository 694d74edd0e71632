//! Random and mutated bytes for every decoder of bytes from outside: no panic, no memory beyond what the
//! input's size allows, and what is accepted survives being written again.
//!
//! Deterministic: equal seeds, equal bytes. A poor man's fuzzer that runs with the tests, on stable.

use allocation_counter::measure;
use bytes::{Bytes, BytesMut};
use quorate_protocol::backup;
use quorate_protocol::cache::{
    CacheWord, Changed, Evicted, Grant, Invalidation, LeaseGranted, LeaseName, LeaseWanted, Noted, Purged,
};
use quorate_protocol::chunk;
use quorate_protocol::frame::{self, Frame, RequestFrame};
use quorate_protocol::id::{
    Boot, ClientId, ClientSeq, ClusterId, ConnId, GroupId, Identity, NodeId, Replica, SessionId,
};
use quorate_protocol::op::{
    Ack, Append, Commands, ExpireAt, Expiry, Fetch, GetEx, GetRange, Lock, MSet, Moment, Multi, Only, Op,
    Pub, Receipt, Scan,
};
use quorate_protocol::peer::{
    Answer, Ask, Delivery, Forward, Greeting, Hello, Item, Join, Joined, Lane, Led, Letter, LinkFrame,
    Opening, Parcel, Principal, RaftEntry, RaftFrame, RaftMessage, Verdict, Welcome, Work,
};
use quorate_protocol::reply::{Code, Reply};
use quorate_protocol::resp::RequestDecoder;
use quorate_protocol::wire::Wire;

/// SplitMix64 (Steele, Lea and Flood 2014).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n.max(1) as u64).expect("below n")
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..self.below(most)).map(|_| self.byte()).collect()
    }

    /// Flips, overwrites, inserts, removes, cuts, doubles; lengths and tags are what it hits most.
    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        const TELLING: [u8; 16] =
            [0, 1, 2, 3, 4, 5, 6, 0x7f, 0x80, 0xff, 0xb5, b'*', b'$', b'\r', b'\n', b'9'];
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            match self.below(7) {
                0 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                1 if !bytes.is_empty() => bytes[at] = TELLING[self.below(TELLING.len())],
                2 => bytes.insert(at, TELLING[self.below(TELLING.len())]),
                3 if !bytes.is_empty() => drop(bytes.remove(at)),
                4 => bytes.truncate(at),
                5 if bytes.len() >= at + 4 => {
                    let wild = [u32::MAX, 0, 1 << 31, 1 << 20, 0x7fff_ffff][self.below(5)];
                    bytes[at..at + 4].copy_from_slice(&wild.to_le_bytes());
                }
                _ => {
                    let piece = bytes[at..(at + self.below(32)).min(bytes.len())].to_vec();
                    bytes.splice(at..at, piece);
                }
            }
        }
    }
}

/// What an input of this size may make a decoder hold. A reply or an argument takes 32 bytes for as little as
/// one or five on the wire, and vectors grow by doubling.
fn allowance(input: usize) -> usize {
    1024 + 160 * input
}

/// Rounds of each decoder. The simulator and nightly fuzzers go further.
const ROUNDS: usize = 20_000;

/// Hands random and mutated inputs to a decoder that returns what it accepted, written again.
fn attack(name: &str, seed: u64, samples: &[Vec<u8>], decode: impl Fn(&[u8]) -> Option<Vec<u8>>) {
    let mut chance = Chance(seed);
    let mut accepted = 0;
    for round in 0..ROUNDS {
        let mut input =
            if round % 8 == 0 { chance.bytes(256) } else { samples[chance.below(samples.len())].clone() };
        if round % 8 != 1 {
            chance.mutate(&mut input);
        }
        let mut again = None;
        let held = measure(|| again = decode(&input)).bytes_max;
        let held = usize::try_from(held).expect("a size");
        assert!(
            held <= allowance(input.len()),
            "{name}, round {round}: {} bytes made it hold {held}: {input:02x?}",
            input.len()
        );
        if let Some(again) = again {
            accepted += 1;
            assert_eq!(decode(&again).as_ref(), Some(&again), "{name}, round {round}: {input:02x?}");
        }
    }
    assert!(accepted > ROUNDS / 20, "{name}: only {accepted} inputs were good: the samples are not");
}

fn wire<T: Wire>(input: &[u8]) -> Option<Vec<u8>> {
    T::from_wire(Bytes::copy_from_slice(input)).ok().map(|value| value.to_wire().to_vec())
}

fn samples<T: Wire>(values: impl IntoIterator<Item = T>) -> Vec<Vec<u8>> {
    values.into_iter().map(|value| value.to_wire().to_vec()).collect()
}

fn values() -> Vec<Reply> {
    let message = Reply::Array(vec![Reply::Int(7), Reply::Int(1), Reply::text("body")]);
    vec![
        Reply::Nil,
        Reply::OK,
        Reply::Int(-5),
        Reply::text("some bytes"),
        Reply::error(Code::InDoubt, "who knows"),
        Reply::Array(vec![message.clone(), message.clone(), Reply::Nil]),
        Reply::Map(vec![(Reply::text("name"), message), (Reply::text("n"), Reply::Int(1))]),
        Reply::Array(vec![Reply::Nil; 100]),
    ]
}

fn conn() -> ConnId {
    ConnId { node: NodeId(1), session: SessionId(2), counter: 3 }
}

fn transaction() -> Op {
    let expire = ExpireAt { key: "k".into(), at: Moment::Group(9), only: Only::PresentEarlier };
    let append = Append { key: "k".into(), value: "v".into() };
    let get = GetEx { key: "k".into(), expiry: Expiry::At(Moment::Unix(7)) };
    let range = GetRange { key: "k".into(), start: 0, end: -1 };
    let commands = Commands(vec![
        Op::ExpireAt(expire),
        Op::Append(append),
        Op::GetEx(get),
        Op::GetRange(range),
        Op::GetDel("k".into()),
        Op::MGet(vec!["k".into()]),
    ]);
    Op::Multi(Multi { watched: vec![("k".into(), 5)], commands }.into())
}

#[test]
fn transactions_do_not_nest() {
    let Op::Multi(multi) = transaction() else { panic!("it is one") };
    let nested = Multi { commands: Commands(vec![transaction()]), ..(*multi).clone() };
    assert!(Op::from_wire(Op::Multi(nested.into()).to_wire()).is_err());
    let foreign = Multi { commands: Commands(vec![Op::FlushAll]), ..*multi };
    assert!(Op::from_wire(Op::Multi(foreign.into()).to_wire()).is_err());
    // However deep bytes from outside nest, reading them does not.
    let mut deep = [57, 0, 0, 0, 0, 1, 0, 0, 0].repeat(200_000);
    deep.push(0);
    assert!(Op::from_wire(deep.into()).is_err());
}

fn link_frames() -> Vec<LinkFrame> {
    let lock = Op::Lock(Lock { name: "l".into(), shared: true, owner: Some("me".into()), ttl: 1, wait: 2 });
    let publish =
        Op::Pub(Pub { topic: "t".into(), body: "body".into(), dedupe: Some("id".into()), delay: 5 });
    let fetch = Op::Fetch(Fetch { topic: "t".into(), count: 3, block: 0, lease: Some(9) });
    let receipts = vec![Receipt { id: 1, attempt: None }, Receipt { id: 2, attempt: Some(3) }];
    let works = [
        Work::Op(lock),
        Work::Op(publish),
        Work::Op(fetch),
        Work::Op(Op::Ack(Ack { topic: "t".into(), receipts })),
        Work::Op(Op::Del(vec!["a".into(), "b".into()])),
        Work::Op(Op::MSet(MSet {
            pairs: vec![("a".into(), "1".into()), ("b".into(), "2".into())],
            absent: true,
        })),
        Work::Op(Op::Scan(Scan { cursor: 1 << 56, pattern: Some("a*".into()), count: 10, none: false })),
        Work::Op(Op::FlushAll),
        Work::Op(transaction()),
        Work::CloseConn(conn()),
        Work::OpenClient,
        Work::SeeIndex,
        Work::Take(Parcel {
            source: GroupId(0),
            first: 1,
            items: vec![
                Item::NodeEnded((NodeId(1), SessionId(2))),
                Item::ClientEnded(ClientId(3)),
                Item::Letter(Letter { topic: "t".into(), attempts: 2, origin: (1, 2), body: "b".into() }),
            ],
        }),
    ];
    let ask = |(request, work)| Ask {
        request,
        sending: 1,
        client: Some(ClientSeq { client: ClientId(5), seq: 2, lowest: 1 }),
        principal: Principal::User("me".into()),
        behind: false,
        line: 3,
        work,
    };
    let asks = (1..).zip(works).map(ask).collect();
    let lease = LeaseName { group: GroupId(2), term: 3, epoch: 4 };
    let grant = Grant { lease, number: 5, version: 6, left: Some(7), exclusive: true, owned: false };
    let answer = |verdict| Answer {
        conn: conn(),
        request: 1,
        group: GroupId(2),
        sending: 1,
        verdict,
        grant: Some(grant),
    };
    let answers = values().into_iter().map(Verdict::Reply).chain([Verdict::Moved]).map(answer).collect();
    let delivery = Delivery { topic: "t".into(), id: 1, attempt: 2, body: "body".into() };
    vec![
        LinkFrame::Forward(Forward { group: GroupId(1), term: 2, conn: conn(), run: 0, asks }),
        LinkFrame::Answers(answers),
        LinkFrame::Pushes(vec![(conn(), delivery)]),
    ]
}

fn raft_frame() -> RaftFrame {
    let entries = vec![RaftEntry { term: 1, index: 2, kind: 0, data: "entry".into() }; 3];
    let message = RaftMessage {
        group: GroupId(1),
        kind: 3,
        from: Replica { node: NodeId(1), incarnation: 0 },
        to: Replica { node: NodeId(2), incarnation: 3 },
        term: 3,
        log_term: 2,
        index: 1,
        commit: 1,
        commit_term: 1,
        reject: false,
        reject_hint: 0,
        request_snapshot: 0,
        priority: -1,
        context: "context".into(),
        sent: 5,
        entries,
    };
    let replicas = vec![Replica { node: NodeId(1), incarnation: 0 }];
    let leading = vec![Led { group: GroupId(1), term: 3, next: 4, replicas }];
    let lost = vec![(GroupId(2), 1)];
    let lease = LeaseName { group: GroupId(2), term: 3, epoch: 4 };
    let cache = vec![
        CacheWord::Want(LeaseWanted { lease, boot: Boot(1), sent: 2, watch: true }),
        CacheWord::Lease(LeaseGranted { lease, boot: Boot(1), sent: 2, length: 3, watch: false }),
        CacheWord::Invalid(Invalidation { lease, number: 5, keys: vec!["k".into(), "l".into()] }),
        CacheWord::Purged(Purged { lease, number: 5 }),
        CacheWord::Recall(lease),
        CacheWord::Returned(lease),
        CacheWord::Evicted(Evicted { lease, lines: vec![("k".into(), 5)] }),
        CacheWord::Flush(lease),
        CacheWord::Changed(Changed { lease, number: 6, keys: vec![("k".into(), 0), ("l".into(), 7)] }),
        CacheWord::Noted(Noted { lease, number: 6 }),
    ];
    RaftFrame { messages: vec![message.clone(), message], leading, lost, reluctant: true, cache }
}

fn hello() -> Hello {
    Hello {
        cluster: ClusterId(1),
        node: NodeId(1),
        to: NodeId(2),
        identity: Identity(3),
        boot: Boot(4),
        lane: Lane::Work,
        client_address: "127.0.0.1:7411".into(),
        peer_address: "127.0.0.1:7412".into(),
    }
}

fn greetings() -> [Greeting; 2] {
    let join = Join { node: NodeId(4), peer_address: "127.0.0.1:7442".into() };
    [Opening::Hello(hello()), Opening::Join(join)].map(|opening| Greeting { version: 1, opening })
}

fn welcomes() -> [Welcome; 5] {
    let nodes = vec![(NodeId(1), "127.0.0.1:7412".to_owned()), (NodeId(2), "127.0.0.1:7422".to_owned())];
    let joined =
        Joined { cluster: ClusterId(1), partitions: 16, founders: nodes.clone(), members: nodes, life: 2 };
    [
        Welcome::Yes(hello()),
        Welcome::No("because".into()),
        Welcome::Joined(joined),
        Welcome::Later("not yet".into()),
        Welcome::Removed("for good".into()),
    ]
}

#[test]
fn replies() {
    attack("Reply", 1, &samples(values()), wire::<Reply>);
}

#[test]
fn words_between_nodes() {
    attack("LinkFrame", 2, &samples(link_frames()), wire::<LinkFrame>);
    attack("RaftFrame", 3, &samples([raft_frame()]), wire::<RaftFrame>);
    attack("Greeting", 4, &samples(greetings()), wire::<Greeting>);
    attack("Welcome", 5, &samples(welcomes()), wire::<Welcome>);
}

/// Mutated frames get a checksum that fits, or nothing behind it would ever be reached.
fn with_checksum(input: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    if let Some(header) = bytes.get_mut(..frame::HEADER) {
        header[20..24].fill(0);
        let crc = crc32(&bytes);
        bytes[20..24].copy_from_slice(&crc.to_le_bytes());
    }
    bytes
}

/// CRC-32 (IEEE), bit by bit: another one than the decoder's.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
    let byte = |crc: u32, &byte: &u8| (0..8).fold(crc ^ u32::from(byte), |crc, _| step(crc));
    !bytes.iter().fold(!0, byte)
}

#[test]
fn frames() {
    let request = RequestFrame {
        correlation: 7,
        opcode: 33,
        client: Some(ClientSeq { client: ClientId(9), seq: 3, lowest: 2 }),
        after: Some(6),
        args: vec!["k".into(), "value".into(), Bytes::new()],
    };
    let plain = RequestFrame { client: None, after: None, ..request.clone() };
    let mut all = vec![Frame::Request(request), Frame::Request(plain)];
    for reply in values() {
        all.push(Frame::Reply { correlation: 3, reply: reply.clone() });
        all.push(Frame::Push { reply: reply.clone() });
        all.push(Frame::Goodbye { reply });
    }
    let encode = |frame: &Frame| {
        let mut out = Vec::new();
        frame.encode(&mut out);
        out
    };
    let samples: Vec<Vec<u8>> = all.iter().map(encode).collect();
    let decode = |input: &[u8]| {
        let mut buffer = BytesMut::from(&with_checksum(input)[..]);
        let frame = frame::decode(&mut buffer).ok().flatten()?;
        Some(encode(&frame))
    };
    attack("Frame", 6, &samples, decode);
    // And as they come: the checksum, the length, the magic byte do not fit.
    let raw =
        |input: &[u8]| frame::decode(&mut BytesMut::from(input)).ok().flatten().map(|frame| encode(&frame));
    attack("Frame as it comes", 7, &samples, raw);
}

/// A backup of two groups, and where in it a checksum stands over what.
fn backup(rows: &[u8]) -> Vec<u8> {
    let head = backup::Head::new(ClusterId(1), 1, 2);
    let mut out = head.to_wire().to_vec();
    for group in head.groups() {
        let (mut file, mut offset) = (Vec::new(), 0);
        for (kind, payload) in
            [(chunk::HEADER, &b"header"[..]), (chunk::ROWS, rows), (chunk::FOOTER, b"footer")]
        {
            offset += chunk::put(kind, payload, (group, 9, offset), &mut file);
        }
        backup::Part { group, index: 9, term: 1, time: 5, bytes: offset }.put(&mut out);
        out.extend(file);
    }
    let mut writer = backup::Writer::default();
    writer.note(&out);
    out.extend(writer.tail());
    out
}

#[test]
fn backups() {
    let decode = |input: &[u8]| {
        let (mut reader, mut buffer) = (backup::Reader::new(), BytesMut::from(input));
        while reader.next(&mut buffer).ok()?.is_some() {}
        reader.is_done().then(|| input.to_vec())
    };
    attack("Backup", 10, &[backup(b"rows"), backup(&[7; 700])], decode);
}

/// Requests written as RESP arrays.
fn as_resp(requests: &[Vec<Bytes>]) -> Vec<u8> {
    let mut out = Vec::new();
    for args in requests {
        out.extend_from_slice(format!("*{}\r\n", args.len()).as_bytes());
        for arg in args {
            out.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
            out.extend_from_slice(arg);
            out.extend_from_slice(b"\r\n");
        }
    }
    out
}

#[test]
fn text() {
    let samples = [
        &b"PING\r\n*2\r\n$3\r\nGET\r\n$1\r\nk\r\n"[..],
        b"set \"a b\\x41\" 'c\\'d' e\n*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$5\r\nvalue\r\n",
        b"\xff\xfd\x03\xff\xfb\x18PING\r\n",
        b"*0\r\n*-1\r\n\r\n*1\r\n$0\r\n\r\n",
    ];
    let samples: Vec<Vec<u8>> = samples.map(<[u8]>::to_vec).into();
    let whole = |input: &[u8]| {
        let (mut decoder, mut buffer) = (RequestDecoder::default(), BytesMut::from(input));
        let mut requests = Vec::new();
        while let Some(request) = decoder.decode(&mut buffer).ok()? {
            requests.push(request.args);
        }
        (!requests.is_empty()).then(|| as_resp(&requests))
    };
    attack("RequestDecoder", 8, &samples, whole);
    // However it is cut, the same comes out.
    let mut chance = Chance(9);
    for _ in 0..ROUNDS / 4 {
        let mut input = samples[chance.below(samples.len())].clone();
        chance.mutate(&mut input);
        let run = |pieces: Vec<&[u8]>| {
            let (mut decoder, mut buffer) = (RequestDecoder::default(), BytesMut::new());
            let mut requests = Vec::new();
            for piece in pieces {
                buffer.extend_from_slice(piece);
                loop {
                    match decoder.decode(&mut buffer) {
                        Ok(Some(request)) => requests.push(request),
                        Ok(None) => break,
                        Err(error) => return (requests, Some(error)),
                    }
                }
            }
            (requests, None)
        };
        let step = 1 + chance.below(input.len());
        let (at_once, cut) = (run(vec![&input[..]]), run(input.chunks(step).collect()));
        assert_eq!(at_once, cut, "cut every {step}: {}", input.escape_ascii());
    }
}
