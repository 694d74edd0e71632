//! Histories in which a lease could outlive its leadership: each is harmless as things are, and does harm when the one
//! rule is switched off that it is about. Bare replicas of one group, clocks that run apart, and a network that does
//! what it is told.

use quorate_engine::consensus::change::{Change, Target};
use quorate_engine::consensus::lease::{Faults, LEASE};
use quorate_engine::consensus::{Consensus, ELECTION_TIMEOUT, HEARTBEAT_TICKS, Setup};
use quorate_engine::effect::TICK;
use quorate_engine::journal::{Conf, Entry, Hard};
use quorate_protocol::id::{GroupId, NodeId, Replica};
use quorate_protocol::peer::RaftMessage;

const ANSWERS: [u8; 2] = [2, 6];
/// Parts in a thousand by which the slowest clock differs from the fastest.
const APART: u64 = 10;

fn replica(node: usize) -> Replica {
    Replica { node: NodeId(node as u64), incarnation: 0 }
}

fn place(replica: Replica) -> usize {
    usize::try_from(replica.node.0).expect("few nodes")
}

/// What a replica has on its disk.
#[derive(Clone)]
struct Disk {
    hard: Hard,
    conf: Conf,
    entries: Vec<Entry>,
}

/// Replicas 1, 2, … of a group.
struct Few {
    /// The world's time.
    now: u64,
    ticks: usize,
    faults: Faults,
    replicas: Vec<Consensus>,
    disks: Vec<Disk>,
    /// Thousandths: 1000 is a clock that is right.
    rates: Vec<u64>,
    /// Replicas that do nothing for the time being.
    frozen: Vec<usize>,
    /// Directions in which nothing travels.
    cut: Vec<(usize, usize)>,
    /// Answers to this replica stay on their way until it is empty again.
    held_back: Option<usize>,
    on_their_way: Vec<RaftMessage>,
    /// Replica → term and end of the lease that it took last, by its own clock.
    leases: Vec<(u64, u64)>,
    violation: bool,
}

impl Few {
    fn new(count: usize, voters: usize, faults: Faults) -> Self {
        Self::with_clocks(vec![1000; count], voters, faults)
    }

    fn with_clocks(rates: Vec<u64>, voters: usize, faults: Faults) -> Self {
        let count = rates.len();
        let learners = (voters + 1..=count).map(replica).collect();
        let conf = Conf::founding((1..=voters).map(replica).collect(), learners);
        let disk = Disk { hard: Hard::default(), conf, entries: Vec::new() };
        let mut this = Self {
            now: 1000 * TICK,
            ticks: 0,
            faults,
            replicas: Vec::new(),
            disks: vec![disk; count],
            rates,
            frozen: Vec::new(),
            cut: Vec::new(),
            held_back: None,
            on_their_way: Vec::new(),
            leases: vec![(0, 0); count],
            violation: false,
        };
        for node in 1..=count {
            let born = this.revive(node, true);
            this.replicas.push(born);
        }
        this.settle();
        (0..10).for_each(|_| this.tick());
        assert!(this.of(1).leads() && this.lease_of(1) > 0, "the first leads and has a lease");
        this
    }

    fn revive(&self, node: usize, newborn: bool) -> Consensus {
        let disk = self.disks[node - 1].clone();
        let setup = Setup {
            seed: 1,
            me: replica(node),
            group: GroupId(1),
            rank: node - 1,
            hard: disk.hard,
            conf: disk.conf,
            snapshot: (0, 0),
            snapshot_conf: Conf::default(),
            entries: disk.entries,
            newborn,
        };
        let mut revived = Consensus::new(self.clock(node), setup);
        revived.set_lease_faults(&self.faults);
        revived
    }

    fn restart(&mut self, node: usize) {
        self.replicas[node - 1] = self.revive(node, false);
    }

    /// What a replica's clock reads.
    fn clock(&self, node: usize) -> u64 {
        self.now * self.rates[node - 1] / 1000
    }

    fn of(&self, node: usize) -> &Consensus {
        &self.replicas[node - 1]
    }

    /// How much longer a replica relies on a lease, by its own clock.
    fn lease_of(&self, node: usize) -> u64 {
        self.leases[node - 1].1.saturating_sub(self.clock(node))
    }

    fn settle(&mut self) {
        loop {
            let mut messages = Vec::new();
            for node in (1..=self.replicas.len()).filter(|node| !self.frozen.contains(node)) {
                let now = self.clock(node);
                let (replica, disk) = (&mut self.replicas[node - 1], &mut self.disks[node - 1]);
                while let Some(progress) = replica.progress(now) {
                    for entry in progress.entries {
                        disk.entries.retain(|before| before.index < entry.index);
                        disk.entries.push(entry);
                    }
                    messages.extend(progress.messages.into_iter().chain(progress.after_persist));
                    replica.persisted(progress.number);
                }
                (disk.hard, disk.conf) = (replica.hard(), replica.conf().clone());
            }
            if messages.is_empty() {
                return;
            }
            messages.into_iter().for_each(|message| self.send(message));
        }
    }

    fn send(&mut self, message: RaftMessage) {
        let (from, to) = (place(message.from), place(message.to));
        let waits = self.held_back == Some(to) && ANSWERS.contains(&message.kind);
        if waits || self.frozen.contains(&to) {
            self.on_their_way.push(message);
        } else if !self.cut.contains(&(from, to)) {
            let now = self.clock(to);
            self.replicas[to - 1].receive(now, message);
        }
    }

    /// What was on its way arrives.
    fn arrive(&mut self) {
        self.held_back = None;
        let frozen = self.frozen.clone();
        let (wait, come): (Vec<_>, Vec<_>) =
            core::mem::take(&mut self.on_their_way).into_iter().partition(|m| frozen.contains(&place(m.to)));
        self.on_their_way = wait;
        come.into_iter().for_each(|message| self.send(message));
        self.take_leases();
        self.settle();
    }

    fn tick(&mut self) {
        self.now += TICK;
        self.ticks += 1;
        let beat = self.ticks.is_multiple_of(HEARTBEAT_TICKS);
        for node in (1..=self.replicas.len()).filter(|node| !self.frozen.contains(node)) {
            let now = self.clock(node);
            self.replicas[node - 1].tick(now, beat);
        }
        self.settle();
        self.take_leases();
        self.judge();
    }

    fn take_leases(&mut self) {
        for node in (1..=self.replicas.len()).filter(|node| !self.frozen.contains(node)) {
            let now = self.clock(node);
            let replica = &mut self.replicas[node - 1];
            let until = replica.take_lease(now);
            if until > 0 {
                self.leases[node - 1] = (replica.term(), until);
            } else if replica.leads() {
                self.leases[node - 1] = (0, 0);
            }
        }
    }

    fn judge(&mut self) {
        let all = 1..=self.replicas.len();
        let harm = all.clone().filter(|&node| self.of(node).leads()).any(|leader| {
            let term = self.of(leader).term();
            all.clone()
                .any(|node| node != leader && self.leases[node - 1].0 < term && self.lease_of(node) > 0)
        });
        self.violation |= harm;
    }

    /// Ticks until another than the first leads, or long enough for that.
    fn wait_for_another(&mut self) {
        for _ in 0..3 * ELECTION_TIMEOUT / TICK {
            self.tick();
            if (2..=self.replicas.len()).any(|node| self.of(node).leads()) {
                return;
            }
        }
    }
}

/// Plays a history with the rules and without one of them.
fn only_the_rule_prevents_harm(without: Faults, play: impl Fn(Faults) -> Few) {
    let (with, without) = (play(Faults::default()), play(without));
    assert!(!with.violation, "somebody leads within another's lease though all rules hold");
    assert!(without.violation, "the history does not show what the rule is for");
}

#[test]
fn a_lease_ends_before_the_promises_though_clocks_run_apart() {
    only_the_rule_prevents_harm(Faults { too_long: true, ..Faults::default() }, |faults| {
        let (slow, fast) = (1000 - APART / 2, 1000 + APART / 2);
        let mut few = Few::with_clocks(vec![slow, fast, fast], 3, faults);
        (0..60).for_each(|_| few.tick());
        few.frozen.push(1);
        few.wait_for_another();
        assert!(few.of(2).leads());
        few
    });
}

#[test]
fn an_answer_that_comes_late_gives_what_it_gave_when_it_was_sent() {
    only_the_rule_prevents_harm(Faults { from_answer: true, ..Faults::default() }, |faults| {
        let mut few = Few::new(3, 3, faults);
        few.held_back = Some(1);
        (0..3).for_each(|_| few.tick());
        // The others hear nothing more of the leader; what they have answered is still on its way.
        few.cut = vec![(1, 2), (1, 3)];
        (0..8).for_each(|_| few.tick());
        few.cut.extend([(2, 1), (3, 1)]);
        let (cut, held) = (few.cut.clone(), core::mem::take(&mut few.on_their_way));
        few.cut.clear();
        few.on_their_way = held;
        few.arrive();
        few.cut = cut;
        few.wait_for_another();
        assert!(few.of(2).leads() || few.of(3).leads());
        few
    });
}

#[test]
fn a_voter_that_starts_again_remembers_that_it_may_have_promised() {
    only_the_rule_prevents_harm(Faults { promise_forgotten: true, ..Faults::default() }, |faults| {
        let mut few = Few::new(3, 3, faults);
        // The third hears nobody but asks; the second hears the leader until it is killed.
        few.cut = vec![(1, 3), (2, 3)];
        (0..ELECTION_TIMEOUT / TICK + 6).for_each(|_| few.tick());
        few.cut = vec![(1, 3), (3, 1), (1, 2), (2, 1)];
        few.restart(2);
        few.wait_for_another();
        assert!(few.of(3).leads() || few.of(2).leads());
        few
    });
}

#[test]
fn a_leader_that_hands_over_takes_no_lease_any_more() {
    only_the_rule_prevents_harm(Faults { kept_in_transfer: true, ..Faults::default() }, |faults| {
        let mut few = Few::new(3, 3, faults);
        // The order to campaign goes out; the leader hears nothing of what comes of it.
        few.replicas[0].transfer(replica(2));
        few.cut = vec![(2, 1), (3, 1)];
        few.take_leases();
        few.settle();
        few.tick();
        assert!(few.of(2).leads());
        few
    });
}

#[test]
fn a_change_of_replicas_ends_when_the_new_voters_have_promised() {
    let mut few = Few::new(5, 3, Faults::default());
    // The new voters have not answered for a while; the old ones have given a lease.
    few.cut = vec![(4, 1), (5, 1)];
    (0..6).for_each(|_| few.tick());
    let before = few.leases[0].1;
    let voters = vec![replica(1), replica(4), replica(5)];
    few.replicas[0].propose_change(&Change::To(Target { voters, learners: Vec::new() }));
    few.settle();
    assert!(few.of(1).conf().is_joint());
    let now = few.clock(1);
    assert!(!few.of(1).may_leave(now), "they have not promised to respect the lease that there is");
    let until = few.replicas[0].take_lease(now);
    assert!(until > now && until + 3 * TICK < before, "both quorums count");
    few.cut.clear();
    (0..2 * HEARTBEAT_TICKS).for_each(|_| few.tick());
    let now = few.clock(1);
    assert!(few.of(1).may_leave(now) && few.lease_of(1) > LEASE - 3 * TICK);
}

#[test]
fn one_way_is_no_lease() {
    for cut in [vec![(1, 2), (1, 3)], vec![(2, 1), (3, 1)]] {
        let mut few = Few::new(3, 3, Faults::default());
        few.cut = cut;
        few.wait_for_another();
        assert!(!few.violation && few.lease_of(1) == 0);
    }
}

#[test]
fn who_is_alone_always_has_a_lease() {
    let mut few = Few::new(1, 1, Faults::default());
    (0..40).for_each(|_| few.tick());
    assert_eq!(few.lease_of(1), LEASE);
}
