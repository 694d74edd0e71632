//! The table's invariants, the parser's errors, and docs/commands.md.

use super::*;
use crate::id::{GroupId, NodeId};
use crate::op::{
    Expiry, Fence, FencedSet, Fetch, Lock, MemberAdd, MemberOp, Pub, Receipt, Set, SetBack, When,
};

fn words(line: &str) -> Vec<Bytes> {
    line.split(' ').map(|word| Bytes::copy_from_slice(word.as_bytes())).collect()
}

fn understood(line: &str) -> Command {
    parse(&words(line)).unwrap_or_else(|failure| panic!("{line}: {failure}"))
}

fn refused(line: &str) -> String {
    match parse(&words(line)) {
        Err(failure) => failure.to_string(),
        Ok(command) => panic!("{line}: understood as {command:?}"),
    }
}

#[test]
fn the_table_is_sorted_and_its_numbers_are_unique() {
    assert!(TABLE.is_sorted_by(|a, b| a.name < b.name));
    let mut numbers: Vec<u16> = TABLE.iter().map(|spec| spec.number).collect();
    numbers.sort_unstable();
    assert!(numbers.is_sorted_by(|a, b| a < b) && numbers[0] > 0);
    assert!(table::later().is_sorted_by(|a, b| a.0 < b.0));
    assert!(
        table::later().all(|(name, _)| find(name.as_bytes()).is_none()),
        "built verbs are not on the list"
    );
    for spec in TABLE {
        assert_eq!(find(spec.name.to_ascii_lowercase().as_bytes()).map(|s| s.number), Some(spec.number));
        assert_eq!(find_number(spec.number).map(|s| s.name), Some(spec.name));
        assert!(spec.syntax.starts_with(spec.name));
    }
}

#[test]
fn options_come_in_any_order_and_case() {
    let lock = Lock { name: "db".into(), shared: true, owner: Some("me".into()), ttl: 5, wait: 7 };
    assert_eq!(understood("lock db wait 7 OWNER me Shared TTL 5"), Command::Op(Op::Lock(lock)));
    let set = Set {
        key: "k".into(),
        value: "v".into(),
        when: When::Absent,
        expiry: Expiry::After(2000),
        get: true,
    };
    assert_eq!(understood("SET k v GET EX 2 NX"), Command::Op(Op::Set(set.clone())));
    let back = SetBack { key: "k".into(), value: "v".into() };
    assert_eq!(understood("set k v writeback"), Command::Op(Op::SetBack(back)));
    for through in [
        "SET k v WRITEBACK EX 2",
        "SET k v XX WRITEBACK",
        "SET k v GET WRITEBACK",
        "SET k v WRITEBACK KEEPTTL",
    ] {
        assert!(matches!(understood(through), Command::Op(Op::Set(_))), "{through}");
    }
    let set = Set { when: When::Version(3), get: false, expiry: Expiry::Never, ..set };
    let fence = Fence { lock: "l".into(), token: 7, watch: None };
    assert_eq!(understood("SET k v FENCE l 7 IFVER 3"), Command::Op(Op::FencedSet(FencedSet { fence, set })));
    let publish = Pub { topic: "t".into(), body: "b".into(), dedupe: Some("x".into()), delay: 9 };
    assert_eq!(understood("PUB t b DELAY 9 ID x"), Command::Op(Op::Pub(publish)));
    let fetch = Fetch { topic: "t".into(), count: 2, block: 3, lease: Some(4) };
    assert_eq!(understood("FETCH t LEASE 4 BLOCK 3 COUNT 2"), Command::Op(Op::Fetch(fetch)));
    let Command::Op(Op::Ack(ack)) = understood("ACK t 5 6@2") else { panic!() };
    assert_eq!(ack.receipts, [Receipt { id: 5, attempt: None }, Receipt { id: 6, attempt: Some(2) }]);
    let add = MemberOp::Add(MemberAdd { node: NodeId(4), peer_address: "[::1]:7412".into() });
    assert_eq!(understood("member add 4 [::1]:7412"), Command::Op(Op::Member(add)));
    assert_eq!(understood("MEMBER CANCEL 4"), Command::Op(Op::Member(MemberOp::Cancel(NodeId(4)))));
    assert_eq!(understood("ping"), Command::Connection(ConnAsk::Ping(None)));
}

#[test]
fn what_is_wrong_with_tracking_is_said_in_the_words_of_redis() {
    let cases = [
        ("CLIENT TRACKING", "ERR wrong number of arguments for 'client|tracking' command"),
        ("CLIENT TRACKING MAYBE", "ERR syntax error"),
        ("CLIENT TRACKING ON WHAT", "ERR syntax error"),
        ("CLIENT TRACKING ON PREFIX", "ERR syntax error"),
        ("CLIENT TRACKING ON PREFIX a", "ERR PREFIX option requires BCAST mode to be enabled"),
        ("CLIENT TRACKING ON BCAST OPTIN", "ERR OPTIN and OPTOUT are not compatible with BCAST"),
        ("CLIENT TRACKING ON OPTIN OPTOUT", "ERR You can't specify both OPTIN mode and OPTOUT mode"),
        ("CLIENT TRACKING ON REDIRECT 7", "ERR REDIRECT is not spoken here"),
        (
            "CLIENT TRACKING ON BCAST PREFIX a PREFIX ab",
            "ERR Prefix 'a' overlaps with another provided prefix 'ab'. Prefixes for a single client must not overlap.",
        ),
        ("CLIENT CACHING", "ERR wrong number of arguments for 'client|caching' command"),
        ("CLIENT CACHING MAYBE", "ERR syntax error"),
    ];
    for (line, expected) in cases {
        let text = refused(line);
        assert!(text.starts_with(expected), "{line}: {text}");
    }
    let many: String = (0..=crate::limits::PREFIXES_MAX).map(|n| format!(" PREFIX {n:03}")).collect();
    assert!(refused(&format!("CLIENT TRACKING ON BCAST{many}")).starts_with("TOOBIG 65 prefixes"));
    let tracks = |line: &str| match understood(line) {
        Command::Connection(ConnAsk::Track(Track::On(tracks))) => tracks,
        other => panic!("{other:?}"),
    };
    let all = tracks("CLIENT TRACKING ON BCAST").after(None).expect("nothing was before");
    assert!(all.covers(b"anything"));
    let some = tracks("CLIENT TRACKING ON BCAST PREFIX a PREFIX b NOLOOP").after(None).expect("likewise");
    assert!(some.covers(b"b1") && !some.covers(b"c1") && !some.covers(b"") && some.no_loop);
    let more = tracks("CLIENT TRACKING ON BCAST PREFIX c").after(Some(&some)).expect("they do not overlap");
    assert!(more.covers(b"c1") && more.covers(b"a") && !more.no_loop);
    let failed = tracks("CLIENT TRACKING ON BCAST PREFIX bc").after(Some(&some)).expect_err("they do");
    assert!(failed.text.starts_with("Prefix 'bc' overlaps with an existing prefix 'b'."));
}

#[test]
fn what_is_wrong_is_said_and_what_to_send_instead() {
    let cases = [
        ("GET", "ERR wrong number of arguments for 'get' command; usage: GET key"),
        ("GET a b", "ERR wrong number of arguments"),
        ("FOO a b", "ERR unknown command 'FOO', with args beginning with: 'a' 'b' "),
        ("PEEK t", "ERR PEEK is not built yet;"),
        ("LOCK db SLOTS 3", "ERR option SLOTS of LOCK is not built yet"),
        ("SET k v FENCE l", "ERR syntax error: an argument is missing"),
        ("SET k v FENCE l 0", "ERR FENCE must be a number from 1 to 9223372036854775807, not 0"),
        ("SET k v WRITEBACK FENCE l 1", "ERR syntax error: WRITEBACK goes with none of NX, IFVER and FENCE"),
        ("SET k v FENCE l 1 FENCE m 2", "ERR syntax error: FENCE stands twice"),
        ("ACK t 1 GROUP g", "ERR option GROUP of ACK is not built yet"),
        ("UNSUB t GROUP g", "ERR option GROUP of UNSUB is not built yet"),
        ("LOCK db TTL", "ERR syntax error: an argument is missing; usage: LOCK"),
        ("LOCK db TTL 5 TTL 6", "ERR syntax error: TTL stands twice"),
        ("LOCK db NOW", "ERR syntax error: 'NOW' is not an option here"),
        ("LOCK db TTL 0", "ERR TTL must be a number from 1 to"),
        ("LOCK db WAIT -1", "ERR WAIT must be a number from 0 to"),
        ("LOCK db TTL x", "ERR TTL must be a number from 1 to 2592000000, not x"),
        ("LOCK db TTL 99999999999999", "ERR TTL must be"),
        ("UNLOCK db TOKEN 0", "ERR TOKEN must be a number from 1"),
        ("FETCH t COUNT 0", "ERR COUNT must be a number from 1 to 1024"),
        ("ACK t x", "ERR 'x' is not a message id"),
        ("ACK t 1@", "ERR '1@' is not a message id"),
        ("ACK t -1", "ERR '-1' is not a message id"),
        ("QSET t DLQ", "ERR syntax error: an argument is missing"),
        ("QSET t DLQ t", "ERR a topic cannot be its own DLQ"),
        ("QSET t.dlq DLQ u", "ERR these are dead letters already"),
        ("QSET t BACKOFF 1", "ERR option BACKOFF of QSET is not built yet"),
        ("SELECT 1", "ERR DB index is out of range"),
        ("HELLO 4", "NOPROTO unsupported protocol version"),
        ("HELLO x", "ERR Protocol version is not an integer"),
        ("CLIENT MAINT_NOTIFICATIONS ON", "ERR unknown subcommand 'MAINT_NOTIFICATIONS'. Try HELP CLIENT."),
        ("CONFIG SET a b", "ERR the configuration is fixed"),
        ("SESSION RESUME 0", "ERR the session id must be"),
        (
            "MEMBER ADD",
            "ERR wrong number of arguments for 'member' command; usage: MEMBER ADD id host:peerport",
        ),
        ("MEMBER ADD 0 h:1", "ERR the node id must be a number from 1 to 4294967295, not 0"),
        ("MEMBER DRAIN 4294967296", "ERR the node id must be a number from 1 to 4294967295"),
        ("MEMBER ADD 4", "ERR syntax error: an argument is missing; usage: MEMBER"),
        ("MEMBER ADD 4 here", "ERR the peer address must be host:port, as in 10.0.0.4:7412, not here;"),
        ("MEMBER ADD 4 :7412", "ERR the peer address must be host:port"),
        ("MEMBER ADD 4 h:0", "ERR the peer address must be host:port"),
        ("MEMBER ADD 4 h:65536", "ERR the peer address must be host:port"),
        ("MEMBER REMOVE 4 now", "ERR syntax error: 'now' is not expected here"),
        ("MEMBER EVICT 4", "ERR unknown subcommand 'EVICT'. Try HELP MEMBER."),
    ];
    for (line, expected) in cases {
        let text = refused(line);
        assert!(text.starts_with(expected), "{line}: {text}");
    }
    let long = "x".repeat(crate::limits::NAME_MAX + 1);
    assert!(refused(&format!("GET {long}")).starts_with("TOOBIG key of 1025 bytes"));
    for ask in ["CLIENT SETNAME", "HELLO 3 SETNAME", "CLIENT SETINFO LIB-NAME", "CLIENT SETINFO LIB-VER"] {
        let text = refused(&format!("{ask} {}", &long[..crate::limits::CLIENT_NAME_MAX + 1]));
        assert!(
            text.starts_with("TOOBIG") && text.ends_with("of 129 bytes, at most 128 are taken"),
            "{text}"
        );
    }
    assert!(parse(&[Bytes::from("GET"), Bytes::new()]).is_err(), "an empty key");
    assert!(parse(&[]).is_err());
    let many: String = (0..2000).map(|n| format!(" k{n}")).collect();
    assert!(refused(&format!("DEL{many}")).starts_with("TOOBIG 2000 keys in one command"));
}

#[test]
fn what_is_wrong_about_keys_is_said_in_the_words_of_redis() {
    let cases = [
        ("SET k v NX WRITEBACK", "ERR syntax error: WRITEBACK goes with none of NX, IFVER and FENCE"),
        ("SET k v WRITEBACK IFVER 3", "ERR syntax error: WRITEBACK goes with none of NX, IFVER and FENCE"),
        ("SET k v NX XX", "ERR syntax error: NX, XX and IFVER exclude each other"),
        ("SET k v EX 1 PX 1", "ERR syntax error: EX, PX, EXAT, PXAT and KEEPTTL exclude each other"),
        ("SET k v EX 0", "ERR invalid expire time in 'set' command"),
        ("SET k v EX 9223372036854775807", "ERR invalid expire time in 'set' command"),
        ("INCRBY k +1", "ERR value is not an integer"),
        ("DECRBY k -9223372036854775808", "ERR decrement would overflow"),
        ("GETEX k PERSIST EX 5", "ERR syntax error: EX, PX, EXAT, PXAT and PERSIST exclude each other"),
        ("GETEX k PX 0", "ERR invalid expire time in 'getex' command"),
        ("SETEX k 0 v", "ERR invalid expire time in 'setex' command"),
        ("SETEX k x v", "ERR value is not an integer or out of range"),
        ("PEXPIRE k 9223372036854775807", "ERR invalid expire time in 'pexpire' command"),
        ("EXPIRE k 5 NX GT", "ERR NX and XX, GT or LT options at the same time are not compatible"),
        ("EXPIRE k 5 LT GT", "ERR GT and LT options at the same time are not compatible"),
        ("SETRANGE k -1 v", "ERR offset is out of range"),
        ("SETRANGE k 8388608 v", "ERR string exceeds maximum allowed size"),
        ("MSET a 1 b", "ERR wrong number of arguments for 'mset' command"),
        ("SCAN x", "ERR invalid cursor"),
        ("SCAN 5", "ERR invalid cursor"),
        ("SCAN 0 COUNT 0", "ERR syntax error: COUNT must be at least 1"),
        ("GETV k FILL 0", "ERR FILL must be"),
        ("GETV k FILL 5 FILL 6", "ERR syntax error"),
    ];
    for (line, expected) in cases {
        let text = refused(line);
        assert!(text.starts_with(expected), "{line}: {text}");
    }
}

#[test]
fn snapshots_are_taken_listed_and_read() {
    assert_eq!(understood("SNAPSHOT"), Command::Node(NodeAsk::Snapshot));
    assert_eq!(understood("snapshot list"), Command::Node(NodeAsk::Snapshots));
    let at = SnapshotAt { group: GroupId(3), index: 7, offset: 9 };
    assert_eq!(understood("Snapshot Read 3 7 9"), Command::Node(NodeAsk::SnapshotRead(at)));
    for (line, expected) in [
        ("SNAPSHOT TAKE", "ERR unknown subcommand 'TAKE'. Try HELP SNAPSHOT."),
        ("SNAPSHOT LIST now", "ERR syntax error: 'now' is not expected here"),
        ("SNAPSHOT READ 1 5", "ERR syntax error: an argument is missing; usage: SNAPSHOT"),
        ("SNAPSHOT READ 65 5 0", "ERR the group must be a number from 0 to 64, not 65"),
        ("SNAPSHOT READ 1 0 0", "ERR the index must be a number from 1 to"),
        ("SNAPSHOT READ 1 5 -1", "ERR the offset must be a number from 0 to"),
    ] {
        let text = refused(line);
        assert!(text.starts_with(expected), "{line}: {text}");
    }
}

#[test]
fn commands_md_is_what_the_table_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/commands.md");
    if std::env::var_os("QUORATE_BLESS").is_some() {
        std::fs::write(path, markdown()).expect("docs can be written");
    }
    let on_disk = std::fs::read_to_string(path).expect("docs/commands.md");
    assert_eq!(on_disk, markdown(), "QUORATE_BLESS=1 cargo test -p quorate-protocol writes it anew");
}
