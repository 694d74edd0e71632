//! Nodes that are nothing but their peer port, on loopback: who is let in, dialled, cut; what travels.

use quorate_engine::effect::{Input, Member};
use quorate_engine::journal::{File, Meta};
use quorate_protocol::id::{Boot, ClusterId, GroupId, Identity};
use quorate_protocol::peer::{Greeting, Hello, Join, Lane, Opening, SnapshotPiece, Welcome};
use quorate_protocol::wire::Wire;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use super::framing::{put_frame, read_frame};
use super::*;
use crate::mailbox::Taken;

/// A node, and what its engine was told.
struct Node {
    shared: Arc<Shared>,
    me: Me,
    told: Vec<Input>,
}

impl Node {
    /// A node of cluster 7 that knows these others, at a port of its own.
    async fn start(node: u64, known: &[&Node]) -> Self {
        let known = known.iter().map(|node| (node.me.meta.node, node.me.peer_address.clone()));
        Self::start_knowing(node, known.collect()).await
    }

    async fn start_knowing(node: u64, founders: Vec<(NodeId, String)>) -> Self {
        let (listener, address) = listen().await;
        let meta = Meta {
            cluster: ClusterId(7),
            node: NodeId(node),
            identity: Identity(u128::from(node)),
            boot: Boot(1),
            partitions: 1,
            founders: founders.clone(),
        };
        let me = Me { meta, client_address: String::new(), peer_address: address };
        let shared = Arc::<Shared>::default();
        shared.book.begin(founders, BTreeMap::new());
        tokio::spawn(accept_all(listener, 100, me.clone(), Arc::clone(&shared)));
        tokio::spawn(dial_all(me.clone(), Arc::clone(&shared)));
        Self { shared, me, told: Vec::new() }
    }

    fn as_member(&self, removed: bool) -> Member {
        Member {
            node: self.me.meta.node,
            identity: Some(self.me.meta.identity),
            life: 0,
            retired: Vec::new(),
            client_address: String::new(),
            peer_address: self.me.peer_address.clone(),
            removed,
        }
    }

    /// Waits until the engine has been told something, and forgets all before it.
    async fn is_told(&mut self, what: &str, fits: impl Fn(&Input) -> bool) {
        poll(what, || {
            let mut taken = Taken::default();
            self.shared.mailbox.take(Duration::ZERO, &mut taken);
            self.told.append(&mut taken.inputs);
            let at = self.told.iter().position(&fits)?;
            self.told.drain(..=at);
            Some(())
        })
        .await;
    }

    async fn has_link(&mut self, to: u64, end: Side) {
        let fits = |input: &Input| matches!(input, Input::LinkUp { peer, side } if *peer == NodeId(to) && *side == end);
        self.is_told("a link stands", fits).await;
    }

    async fn loses_link(&mut self, to: u64, end: Side) {
        let fits = |input: &Input| matches!(input, Input::LinkDown { peer, side } if *peer == NodeId(to) && *side == end);
        self.is_told("a link is cut", fits).await;
    }
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has ports");
    let address = listener.local_addr().expect("it is bound").to_string();
    (listener, address)
}

async fn poll<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..2000 {
        if let Some(found) = look() {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}: not within 20 s");
}

/// What the peer port answers to a first frame.
async fn answer_to(node: &Node, first: &[u8]) -> Welcome {
    let mut stream = TcpStream::connect(&node.me.peer_address).await.expect("it listens");
    stream.write_all(first).await.expect("it is read");
    let frame = read_frame(&mut stream, 1 << 20).await.expect("an answer comes");
    Welcome::from_wire(frame).expect("it is understood")
}

#[tokio::test]
async fn a_node_that_is_not_known_is_let_in_and_dialled_back_until_it_is_removed() {
    let mut one = Node::start(1, &[]).await;
    let mut four = Node::start(4, &[&one]).await;
    one.has_link(4, Side::Opener).await;
    four.has_link(1, Side::Opener).await;
    one.shared.book.learn(vec![one.as_member(false), four.as_member(true)]);
    one.loses_link(4, Side::Opener).await;
    four.loses_link(1, Side::Opener).await;
    // Its own log may never say so: who refuses it does.
    four.is_told("it was removed", |input| matches!(input, Input::Removed)).await;
    assert!(four.shared.book.is_disowned(NodeId(4), 0) && !one.shared.book.is_disowned(NodeId(1), 0));
    let mut hello = four.me.hello(NodeId(1), Lane::Raft);
    let greet = async |hello| {
        let mut first = Vec::new();
        put_frame(&Greeting { version: 1, opening: Opening::Hello(hello) }, &mut first);
        answer_to(&one, &first).await
    };
    let refused = |answer: Welcome, words: &str| match answer {
        Welcome::No(why) | Welcome::Removed(why) => assert!(why.contains(words), "{why}"),
        other => panic!("{other:?}"),
    };
    refused(greet(hello.clone()).await, "node 4 has been removed from this cluster; start it with an empty");
    hello.node = NodeId(5);
    assert!(matches!(greet(hello.clone()).await, Welcome::Yes(_)));
    hello.to = NodeId(2);
    refused(greet(hello.clone()).await, "this is node 1, not node 2");
    hello.cluster = ClusterId(8);
    refused(greet(hello).await, "belongs to another cluster");
    assert!(one.shared.peers.snapshots.lock().get(&NodeId(4)).is_none(), "its queues are gone");
}

#[tokio::test]
async fn a_node_that_turns_out_to_have_another_directory_is_cut() {
    let mut one = Node::start(1, &[]).await;
    let mut two = Node::start(2, &[&one]).await;
    one.has_link(2, Side::Reached).await;
    let mut known = two.as_member(false);
    known.identity = Some(Identity(22));
    one.shared.book.learn(vec![known]);
    one.loses_link(2, Side::Reached).await;
    two.loses_link(1, Side::Opener).await;
}

#[tokio::test]
async fn a_node_is_dialled_where_the_system_group_says() {
    let mut two = Node::start(2, &[]).await;
    let mut one = Node::start(1, &[&two]).await;
    one.has_link(2, Side::Opener).await;
    // It moves: another port, the same directory.
    let mut moved = Node::start(2, &[]).await;
    one.shared.book.learn(vec![moved.as_member(false)]);
    one.has_link(2, Side::Opener).await;
    moved.has_link(1, Side::Reached).await;
    two.loses_link(1, Side::Reached).await;
}

#[tokio::test]
async fn snapshots_travel_in_a_lane_of_their_own() {
    let mut two = Node::start(2, &[]).await;
    let mut one = Node::start(1, &[&two]).await;
    let dir = std::env::temp_dir().join(format!("quorate-pieces-{}", std::process::id()));
    let (group, index) = (GroupId(3), 40);
    let path = dir.join(File::Snapshot(group, index).path());
    std::fs::create_dir_all(path.parent().expect("it lies in a directory")).expect("it can be made");
    std::fs::write(&path, b"0123456789").expect("it can be written");
    tokio::spawn(read_pieces(dir.clone(), Arc::clone(&one.shared)));
    one.has_link(2, Side::Opener).await;
    let at = |index, offset| SnapshotAt { group, index, offset };
    for (index, offset, length, expected) in
        [(40, 0, 4, "0123"), (40, 7, 100, "789"), (40, 10, 100, ""), (41, 0, 100, "")]
    {
        let at = at(index, offset);
        poll("it is dialled", || one.shared.peers.snapshots.lock().contains_key(&NodeId(2)).then_some(()))
            .await;
        one.shared.peers.send_piece(NodeId(2), at, length);
        let piece = SnapshotFrame::Piece(SnapshotPiece { at, bytes: expected.into() });
        let fits = |input: &Input| matches!(input, Input::Snapshot { from, frame } if *from == NodeId(1) && *frame == piece);
        two.is_told("the piece comes", fits).await;
    }
    two.shared.book.learn(vec![one.as_member(false)]);
    poll("it is dialled back", || two.shared.peers.snapshots.lock().contains_key(&NodeId(1)).then_some(()))
        .await;
    two.shared.peers.send_snapshot(NodeId(1), SnapshotFrame::Ask(at(40, 0)));
    one.is_told("it is asked", |input| {
        matches!(input, Input::Snapshot { frame: SnapshotFrame::Ask(asked), .. } if *asked == at(40, 0))
    })
    .await;
    std::fs::remove_dir_all(dir).expect("it is ours");
}

/// Accepts a lane in the name of node 2, whatever it is.
async fn accept_lane(listener: &TcpListener) -> (Lane, TcpStream) {
    let (mut stream, _) = listener.accept().await.expect("it listens");
    let frame = read_frame(&mut stream, 4096).await.expect("a greeting comes");
    let Ok(Greeting { opening: Opening::Hello(hello), .. }) = Greeting::from_wire(frame) else {
        panic!("it opens no lane");
    };
    let me = Hello { node: hello.to, to: hello.node, identity: Identity(2), ..hello.clone() };
    framing::write_frame(&mut stream, &Welcome::Yes(me)).await.expect("it is read");
    (hello.lane, stream)
}

#[tokio::test]
async fn a_snapshot_lane_is_opened_when_it_is_needed_and_closed_when_it_is_not() {
    let (two, address) = listen().await;
    let one = Node::start_knowing(1, vec![(NodeId(2), address)]).await;
    let (first, second) = (accept_lane(&two).await, accept_lane(&two).await);
    assert!([first.0, second.0].iter().all(|lane| *lane != Lane::Snapshot), "nothing is to be sent yet");
    for offset in 0..2 {
        let at = SnapshotAt { group: GroupId(1), index: 1, offset };
        one.shared.peers.send_snapshot(NodeId(2), SnapshotFrame::Ask(at));
        let (lane, mut stream) = accept_lane(&two).await;
        assert_eq!(lane, Lane::Snapshot);
        let frame = read_frame(&mut stream, 4096).await.expect("a frame comes");
        assert_eq!(SnapshotFrame::from_wire(frame), Ok(SnapshotFrame::Ask(at)));
        assert_eq!(read_frame(&mut stream, 4096).await, Err(framing::Unread::Silent), "it is closed");
    }
}

#[tokio::test]
async fn strangers_are_told_or_counted() {
    let one = Node::start(1, &[]).await;
    let mut first = Vec::new();
    // A later release, whose words after the version nobody knows yet.
    put_frame(&(9u16, "something else".to_owned()), &mut first);
    match answer_to(&one, &first).await {
        Welcome::No(why) => {
            assert!(why.contains("speaks peer version 1, not 9; run the same release"), "{why}")
        }
        other => panic!("{other:?}"),
    }
    let counted = |kind, node| {
        let complaints = one.shared.peers.complaints.lock();
        complaints.count(kind, NodeId(node))
    };
    assert_eq!(counted(Kind::Version, 0), 1);
    for _ in 0..3 {
        let mut stream = TcpStream::connect(&one.me.peer_address).await.expect("it listens");
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("it is read");
    }
    poll("all are counted", || (counted(Kind::Garbage, 0) == 3).then_some(())).await;
}

#[tokio::test]
async fn who_may_not_join_is_told_why() {
    let one = Node::start(1, &[]).await;
    let four = Node::start(4, &[]).await;
    one.shared.book.learn(vec![one.as_member(false), four.as_member(false)]);
    let ask = async |node, address: &str| {
        let join = Join { node: NodeId(node), peer_address: address.to_owned() };
        join::ask(std::slice::from_ref(&one.me.peer_address), &join).await.expect_err("it may not")
    };
    let why = ask(4, &four.me.peer_address).await;
    assert!(why.contains("node 4 is known with another data directory"), "{why}");
    let why = ask(1, &four.me.peer_address).await;
    assert!(why.contains("this is node 1; choose another --node-id"), "{why}");
    let why = ask(5, "127.0.0.1:1").await;
    assert!(why.contains("cannot reach node 5 at 127.0.0.1:1") && why.contains("--peer-advertise"), "{why}");
}
