//! Who stands for election and when, among bare replicas of one group: no state, no disk, a network that loses what it
//! is told to lose.

use quorate_engine::consensus::{Consensus, ELECTION_TIMEOUT, HEARTBEAT_TICKS, Role, Setup};
use quorate_engine::effect::TICK;
use quorate_engine::journal::{Conf, Hard};
use quorate_protocol::id::{GroupId, NodeId, Replica};
use quorate_protocol::peer::RaftMessage;

const PRE_VOTE: u8 = 8;
const HEARTBEAT: u8 = 5;

fn replica(node: usize) -> Replica {
    Replica { node: NodeId(node as u64), incarnation: 0 }
}

/// Replicas 1, 2, 3 in the order of the ring.
struct Three {
    now: u64,
    ticks: usize,
    replicas: Vec<Consensus>,
    /// Nobody hears them, and they hear nobody.
    dead: Vec<usize>,
    /// What was sent at the last tick.
    sent: Vec<RaftMessage>,
}

impl Three {
    fn new() -> Self {
        let conf = Conf::founding((1..=3).map(replica).collect(), Vec::new());
        let setup = |node| Setup {
            seed: 1,
            me: replica(node),
            group: GroupId(1),
            rank: node - 1,
            hard: Hard::default(),
            conf: conf.clone(),
            snapshot: (0, 0),
            snapshot_conf: Conf::default(),
            entries: Vec::new(),
            newborn: true,
        };
        let replicas = (1..=3).map(|node| Consensus::new(1, setup(node))).collect();
        let mut this = Self { now: 1, ticks: 0, replicas, dead: Vec::new(), sent: Vec::new() };
        this.settle();
        this
    }

    fn of(&self, node: usize) -> &Consensus {
        &self.replicas[node - 1]
    }

    fn settle(&mut self) {
        loop {
            let mut messages = Vec::new();
            for replica in &mut self.replicas {
                while let Some(progress) = replica.progress(self.now) {
                    messages.extend(progress.messages.into_iter().chain(progress.after_persist));
                    replica.persisted(progress.number);
                }
            }
            if messages.is_empty() {
                return;
            }
            for message in messages {
                self.sent.push(message.clone());
                let place = |replica: Replica| usize::try_from(replica.node.0).expect("few nodes");
                let (from, to) = (place(message.from), place(message.to));
                if !self.dead.contains(&from) && !self.dead.contains(&to) {
                    self.replicas[to - 1].receive(self.now, message);
                }
            }
        }
    }

    fn tick(&mut self) {
        self.now += TICK;
        self.ticks += 1;
        self.sent.clear();
        let beat = self.ticks.is_multiple_of(HEARTBEAT_TICKS);
        self.replicas.iter_mut().for_each(|replica| replica.tick(self.now, beat));
        self.settle();
    }

    /// Ticks until somebody alive leads; returns who, and after how many ticks.
    fn elect(&mut self) -> (usize, u64) {
        for ticks in 0..200 {
            let alive = (1..=3).filter(|node| !self.dead.contains(node));
            if let Some(leader) = alive.into_iter().find(|node| self.of(*node).leads()) {
                return (leader, ticks);
            }
            self.tick();
        }
        panic!("nobody was elected");
    }
}

#[test]
fn the_next_on_the_ring_leads_soon_after_the_promise_and_at_the_first_attempt() {
    for (dead, heir) in [(1, 2), (2, 3)] {
        let mut three = Three::new();
        assert_eq!(three.elect(), (1, 0), "the first stands at once on a new cluster");
        if dead == 2 {
            let to = replica(2);
            three.replicas[0].transfer(to);
            three.settle();
            assert!(three.of(2).leads());
            three.dead.push(1);
        }
        (0..20).for_each(|_| three.tick());
        let term = three.of(heir).term();
        if dead == 2 {
            three.dead.clear();
            (0..4).for_each(|_| three.tick());
            // The first of the ring has heard of the leader again; it does not want the part now.
            three.replicas[0].set_passive(true);
        }
        three.dead.push(dead);
        let (leader, ticks) = three.elect();
        assert_eq!((leader, three.of(heir).term()), (heir, term + 1));
        let most = ELECTION_TIMEOUT / TICK + if heir == 2 { 3 } else { 5 };
        assert!(ticks > ELECTION_TIMEOUT / TICK - HEARTBEAT_TICKS as u64 && ticks <= most, "{ticks} ticks");
    }
}

/// Raft refuses its vote to others until its own timeout has passed.
#[test]
fn who_does_not_want_to_lead_votes_for_others() {
    let mut three = Three::new();
    (0..10).for_each(|_| three.tick());
    three.replicas[1].set_passive(true);
    three.dead.push(1);
    let (leader, _) = three.elect();
    assert_eq!(leader, 3);
    assert_eq!(three.of(2).role(), Role::Follower);
}

/// It may have what nobody else that lives has: the others cannot be elected then.
#[test]
fn who_does_not_want_to_lead_does_when_nobody_else_is_elected() {
    let mut three = Three::new();
    (0..10).for_each(|_| three.tick());
    three.replicas[1].set_passive(true);
    three.replicas[2].set_passive(true);
    three.dead.push(1);
    let (leader, ticks) = three.elect();
    assert!(leader != 1 && (30..60).contains(&ticks), "{leader} after {ticks} ticks");
}

#[test]
fn a_pre_vote_that_nobody_answers_is_asked_again_soon_and_raises_no_term() {
    let mut three = Three::new();
    (0..10).for_each(|_| three.tick());
    let term = three.of(2).term();
    three.dead.extend([1, 3]);
    let mut asked = Vec::new();
    for tick in 0..60 {
        three.tick();
        let asks = |message: &RaftMessage| message.kind == PRE_VOTE && message.from == replica(2);
        if three.sent.iter().any(asks) {
            asked.push(tick);
        }
    }
    assert!(asked.len() > 4 && asked.windows(2).all(|pair| pair[1] - pair[0] <= 6), "{asked:?}");
    assert_eq!(three.of(2).term(), term);
    three.dead.clear();
    (0..10).for_each(|_| three.tick());
    assert!(three.of(1).leads() || three.of(2).term() == term + 1, "nobody is disturbed for long");
}

#[test]
fn heartbeats_are_sent_at_the_same_ticks_whenever_a_leader_was_elected() {
    for late in 0..4 {
        let mut three = Three::new();
        (0..late).for_each(|_| three.tick());
        // A leader of an odd tick as well as one of an even tick.
        three.replicas[0].transfer(replica(2));
        three.settle();
        assert!(three.of(2).leads());
        let mut beats = 0;
        for _ in 0..20 {
            three.tick();
            let beat = three.sent.iter().any(|message| message.kind == HEARTBEAT);
            assert!(!beat || three.ticks.is_multiple_of(HEARTBEAT_TICKS), "tick {}", three.ticks);
            beats += usize::from(beat);
        }
        assert!(beats >= 20 / HEARTBEAT_TICKS - 1, "{beats}");
    }
}
