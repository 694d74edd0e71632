//! A leader that refused something of a connection's run refuses the rest of the run, whatever the connection
//! is called meanwhile.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate_engine::effect::{Effect, Input, Now, Request, Side, TICK, Want};
use quorate_engine::engine::{Config, Engine};
use quorate_engine::journal::{Meta, Recovered};
use quorate_protocol::id::{Boot, ClusterId, ConnId, GroupId, Identity, NodeId, SessionId, Term};
use quorate_protocol::op::{Expiry, Op, Set, When, partition_of};
use quorate_protocol::peer::{Answer, Ask, Forward, LinkFrame, Principal, Verdict, Work};
use quorate_protocol::reply::{Code, Reply};

const KEY: &[u8] = b"k";
const PEER: NodeId = NodeId(2);

fn set(value: Bytes) -> Op {
    Op::Set(Set {
        key: Bytes::from_static(KEY),
        value,
        when: When::Always,
        expiry: Expiry::Never,
        get: false,
    })
}

/// A node alone that leads everything, and whose disk answers when it is told to.
struct Leader {
    engine: Engine,
    now: Now,
    unwritten: Option<u64>,
    answers: Vec<Answer>,
}

impl Leader {
    fn new() -> Self {
        let founders = vec![(NodeId(1), String::new())];
        let (cluster, node, identity, boot) = (ClusterId(1), NodeId(1), Identity(1), Boot(1));
        let meta = Meta { cluster, node, identity, boot, partitions: 16, founders };
        let recovered = Recovered {
            meta,
            rows: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            entries: BTreeMap::new(),
            damage: Vec::new(),
        };
        let now = Now { mono: 1_000_000, wall: 0 };
        let engine = Engine::new(now, Config::new(1, String::new()), recovered);
        let mut this = Self { engine, now, unwritten: None, answers: Vec::new() };
        for _ in 0..20 {
            this.now.mono += TICK;
            this.turn(Input::Tick);
            this.write();
        }
        this.turn(Input::LinkUp { peer: PEER, side: Side::Reached });
        this.turn(Input::Connected { conn: 1, ordered: true });
        this
    }

    fn turn(&mut self, input: Input) {
        let mut fx = Vec::new();
        self.engine.step(self.now, input, &mut fx);
        self.engine.step(self.now, Input::EndOfTurn, &mut fx);
        for effect in fx {
            match effect {
                Effect::Persist(persist) => self.unwritten = Some(persist.seq),
                Effect::Link { frame: LinkFrame::Answers(answers), .. } => self.answers.extend(answers),
                _ => {}
            }
        }
    }

    fn write(&mut self) {
        loop {
            match self.unwritten.take() {
                Some(seq) => self.turn(Input::Persisted(seq)),
                // Large entries are applied in parts, a turn each.
                None if self.engine.has_more() => self.turn(Input::Tick),
                None => return,
            }
        }
    }

    fn term(&self, group: GroupId) -> Term {
        self.engine.report().iter().find(|report| report.group == group).expect("it holds all").term
    }

    /// What a connection of the peer is answered, under this session.
    fn forward(&mut self, session: u64, request: u64, run: u64) -> Option<Reply> {
        let group = partition_of(KEY, 16);
        let conn = ConnId::new(PEER, SessionId(session), Boot(1), 7);
        let work = Work::Op(set(Bytes::from_static(b"v")));
        let ask = Ask {
            request,
            sending: 1,
            client: None,
            principal: Principal::Anonymous,
            behind: false,
            line: 0,
            work,
        };
        let forward = Forward { group, term: self.term(group), conn, run, asks: vec![ask] };
        self.turn(Input::Link { peer: PEER, side: Side::Reached, frame: LinkFrame::Forward(forward) });
        self.write();
        match self.answers.pop()?.verdict {
            Verdict::Reply(reply) => Some(reply),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_run_stays_refused_when_the_connections_session_changes_within_it() {
    let code = |reply: Option<Reply>| reply.and_then(|reply| reply.failure().map(|failure| failure.code));
    let mut leader = Leader::new();
    // The partition has all the bytes on their way that it takes.
    for id in 1..=8 {
        let want = Want::Op(set(vec![7; 8 << 20].into()));
        let requests = vec![Request { id, want, client: None, after: None }];
        leader.turn(Input::Requests { conn: 1, requests });
    }
    let written = leader.unwritten.take();
    assert_eq!(code(leader.forward(0, 1, 0)), Some(Code::Busy));
    leader.unwritten = written;
    leader.write();
    assert_eq!(
        code(leader.forward(9, 2, 0)),
        Some(Code::TryAgain),
        "it was sent before the refusal was heard"
    );
    assert_eq!(leader.forward(9, 3, 1), Some(Reply::OK), "a new run is welcome");
}
