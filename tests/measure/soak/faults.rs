//! What is done to the cluster of a soak, one thing after the other: a seeded deck of faults, dealt until it is empty
//! and shuffled anew.
//!
//! Invariant: a fault is over, and every group is held and counts everywhere again, before the next one comes. So never
//! more than one node has lost something, and whatever was acknowledged must be there.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use quorate_tests::damages::DAMAGES;
use quorate_tests::netns::Network;
use quorate_tests::process::{Cluster, millis};
use quorate_tests::sim::rng::Rng;
use quorate_tests::small::Small;
use rustix::process::Signal;
use tokio::runtime::Handle;

use super::health::{Nodes, ailment};
use super::homes::Homes;
use super::ledger::Ledger;

/// How long the cluster may take to be whole again, in milliseconds; far above what it takes.
const WHOLE_WITHIN: u64 = 120_000;

/// From one node to another.
type Way = (usize, usize);

/// What can be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Kind {
    /// kill -9 of one node.
    Kill,
    /// kill -9 of most nodes.
    KillMost,
    /// kill -9 of all.
    KillAll,
    /// SIGSTOP, and SIGCONT later.
    Freeze,
    /// A node that crawls: it stands still again and again, and runs a little between.
    Crawl,
    /// SIGTERM, and a start.
    Stop,
    /// kill -9, and a node's files are spoilt.
    Damage,
    /// kill -9, and a node's directory is gone: removed from the members, it joins again.
    Wipe,
    /// A node's disk has no room for a while.
    FullDisk,
    /// A node is cut off, both ways.
    CutOff,
    /// One way only is cut.
    CutOneWay,
    /// A node is cut off and back several times.
    Flap,
    /// A fourth node joins, or, if it is there, is drained and removed.
    Member,
}

impl Kind {
    fn needs_network(self) -> bool {
        matches!(self, Self::CutOff | Self::CutOneWay | Self::Flap)
    }
}

/// The cluster, and all that is needed to spoil it.
#[derive(Debug)]
pub(super) struct World {
    pub(super) cluster: Cluster,
    pub(super) network: Option<Network>,
    pub(super) handle: Handle,
    pub(super) homes: Arc<Homes>,
    pub(super) ledger: Arc<Ledger>,
    /// The nodes that are members.
    pub(super) members: Vec<usize>,
    /// The node that comes and goes.
    pub(super) guest: usize,
    pub(super) rng: Rng,
    /// What may be dealt.
    pub(super) kinds: Vec<Kind>,
    deck: Vec<Kind>,
    /// Whether file systems can be mounted here.
    can_mount: bool,
}

fn wait(ms: u64) {
    let until = millis() + ms;
    while millis() < until {
        std::thread::park_timeout(Duration::from_millis(until.saturating_sub(millis())));
    }
}

fn mebibytes(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => mebibytes(&entry.path()),
        Ok(meta) => (meta.len() >> 20) + 1,
        Err(_) => 0,
    });
    sizes.sum()
}

impl World {
    pub(super) fn new(
        cluster: Cluster,
        network: Option<Network>,
        handle: Handle,
        homes: Arc<Homes>,
        ledger: Arc<Ledger>,
        seed: u64,
    ) -> Self {
        let guest = cluster.size();
        let members = (1..guest).collect();
        let (rng, deck) = (Rng::new(seed, 0), Vec::new());
        let kinds = Kind::value_variants().to_vec();
        Self { cluster, network, handle, homes, ledger, members, guest, rng, kinds, deck, can_mount: true }
    }

    /// Where the members' clients connect.
    pub(super) fn nodes(&self) -> Nodes {
        let node = |id: &usize| (*id as u64, self.cluster.address(*id).to_string());
        self.members.iter().map(node).collect()
    }

    /// The next fault of the deck; none if nothing that may be dealt is possible here.
    pub(super) fn deal(&mut self) -> Option<Kind> {
        if self.deck.is_empty() {
            let possible = |kind: &Kind| {
                (self.network.is_some() || !kind.needs_network())
                    && (self.can_mount || *kind != Kind::FullDisk)
            };
            self.deck = self.kinds.iter().copied().filter(possible).collect();
            for n in (1..self.deck.len()).rev() {
                let other = self.rng.index(n + 1);
                self.deck.swap(n, other);
            }
        }
        self.deck.pop()
    }

    /// Does it, and says what was done.
    pub(super) fn strike(&mut self, kind: Kind) -> String {
        let id = self.rng.pick(&self.members);
        match kind {
            Kind::Kill => self.kill(&[id]),
            Kind::KillMost => {
                let spared = id;
                let most: Vec<usize> = self.members.iter().copied().filter(|id| *id != spared).collect();
                self.kill(&most)
            }
            Kind::KillAll => self.kill(&self.members.clone()),
            Kind::Freeze => self.freeze(id),
            Kind::Crawl => self.crawl(id),
            Kind::Stop => self.stop(id),
            Kind::Damage => self.damage(id),
            Kind::Wipe => self.wipe(id),
            Kind::FullDisk => self.fill(id),
            Kind::CutOff => self.cut_off(id),
            Kind::CutOneWay => self.cut_one_way(id),
            Kind::Flap => self.flap(id),
            Kind::Member => self.change_members(),
        }
    }

    /// Waits until the cluster is whole and has served in every group; whether it is in time.
    pub(super) fn recover(&self) -> bool {
        let start = millis();
        loop {
            let nodes = self.nodes();
            let mut ailing = self.handle.block_on(ailment(&nodes));
            if ailing.is_none() {
                let silent = self.ledger.silent_since(start);
                if silent.is_empty() {
                    return true;
                }
                ailing = Some(format!("groups {silent:?} serve nobody"));
            }
            if millis() > start + WHOLE_WITHIN {
                let ailing = ailing.unwrap_or_default();
                self.ledger.violated(&format!("not whole after {WHOLE_WITHIN} ms: {ailing}"));
                return false;
            }
            wait(50);
        }
    }

    fn kill(&mut self, ids: &[usize]) -> String {
        // The signals first: they are to die together.
        ids.iter().for_each(|id| self.cluster.signal(*id, Signal::KILL));
        ids.iter().for_each(|id| self.dead(*id));
        let down = self.rng.below(3000);
        wait(down);
        ids.iter().for_each(|id| self.cluster.spawn(*id));
        format!("kill -9 of {ids:?}, started again after {down} ms")
    }

    /// A node was killed; if it had ended by itself before, that is seen here.
    fn dead(&mut self, id: usize) {
        if let Some(code) = self.cluster.wait_exit(id) {
            self.ledger.violated(&format!("node {id} had ended by itself, with {code}"));
        }
    }

    fn freeze(&mut self, id: usize) -> String {
        // Now and then for longer than its session lives.
        let long = self.rng.chance(250);
        let time = if long { self.rng.between(10_500..14_000) } else { self.rng.between(100..4000) };
        self.cluster.signal(id, Signal::STOP);
        wait(time);
        self.cluster.signal(id, Signal::CONT);
        format!("node {id} frozen for {time} ms")
    }

    fn crawl(&mut self, id: usize) -> String {
        let (still, runs) = (self.rng.between(20..250), self.rng.between(5..40));
        let start = millis();
        let time = self.rng.between(2000..8000);
        while millis() < start + time {
            self.cluster.signal(id, Signal::STOP);
            wait(still);
            self.cluster.signal(id, Signal::CONT);
            wait(runs);
        }
        format!(
            "node {id} crawled for {time} ms: stood still for {still} ms, ran for {runs} ms, again and again"
        )
    }

    fn stop(&mut self, id: usize) -> String {
        let start = millis();
        let code = self.cluster.stop(id);
        let took = millis() - start;
        if code != Some(0) {
            self.ledger.violated(&format!("node {id} was told to stop and ended with {code:?}"));
        }
        let down = self.rng.below(3000);
        wait(down);
        self.cluster.spawn(id);
        format!("node {id} told to stop, which took {took} ms, started again after {down} ms")
    }

    fn damage(&mut self, id: usize) -> String {
        let data = self.cluster.data_dir(id);
        self.cluster.signal(id, Signal::KILL);
        self.dead(id);
        let fitting: Vec<_> = DAMAGES.iter().filter(|damage| damage.fits(&data)).collect();
        if fitting.is_empty() {
            self.cluster.spawn(id);
            return format!("node {id} has nothing yet that could be spoilt; only killed");
        }
        let damage = self.rng.pick(&fitting);
        let before = self.cluster.log(id).len();
        let named = (damage.spoil)(&data);
        let down = self.rng.below(2000);
        wait(down);
        self.cluster.spawn(id);
        self.cluster.wait_ready(id);
        let log = self.cluster.log(id)[before..].to_owned();
        let told = log.contains(" is damaged at offset ");
        if named.is_some() != told {
            self.ledger.violated(&format!("node {id}, {}: told {told}, {named:?} was spoilt", damage.name));
        }
        format!("node {id} killed, spoilt: {}; started again after {down} ms", damage.name)
    }

    fn wipe(&mut self, id: usize) -> String {
        self.cluster.signal(id, Signal::KILL);
        self.dead(id);
        self.cluster.wipe(id);
        wait(self.rng.below(2000));
        let start = millis();
        self.remove(id);
        let took = millis() - start;
        self.cluster.spawn(id);
        format!("node {id} has lost its directory; removed within {took} ms, joins again")
    }

    /// One command of MEMBER, by a client that asks until it is decided.
    fn member(&self, words: &[&str]) {
        let command = std::iter::once("MEMBER").chain(words.iter().copied()).map(|word| word.to_owned());
        let client = self.homes.at(0);
        let asked = self.handle.block_on(client.call(command));
        if let Err(error) = asked {
            self.ledger.violated(&format!("MEMBER {words:?}: {error}"));
        }
    }

    /// Removes a member, and waits until it is forgotten.
    fn remove(&self, id: usize) {
        self.member(&["REMOVE", &id.to_string()]);
        let start = millis();
        loop {
            let members = self.handle.block_on(self.homes.at(0).members());
            if members.is_ok_and(|members| members.iter().all(|member| member.node != id as u64)) {
                return;
            }
            if millis() > start + WHOLE_WITHIN {
                self.ledger.violated(&format!("node {id} is not removed after {WHOLE_WITHIN} ms"));
                return;
            }
            wait(50);
        }
    }

    fn fill(&mut self, id: usize) -> String {
        let size = mebibytes(&self.cluster.data_dir(id)) + 256;
        let small = match Small::move_node(&mut self.cluster, id, size) {
            Ok(small) => small,
            Err(why) => {
                self.can_mount = false;
                self.cluster.spawn(id);
                println!("SKIPPED from now on: {why}: no full disks");
                return "no full disk".to_owned();
            }
        };
        self.recover();
        small.fill();
        let time = self.rng.between(2000..6000);
        wait(time);
        let kill = self.rng.chance(400);
        if kill {
            self.cluster.crash(id);
            wait(1000);
        }
        small.clear();
        self.recover();
        small.move_back(&mut self.cluster, id);
        self.cluster.spawn(id);
        let killed = if kill { ", killed meanwhile" } else { "" };
        format!("node {id}'s disk of {size} MiB full for {time} ms{killed}")
    }

    /// The ways from a node to all others, and back.
    fn ways(&self, id: usize) -> (Vec<Way>, Vec<Way>) {
        let others = self.members.iter().filter(|other| **other != id);
        others.map(|other| ((id, *other), (*other, id))).unzip()
    }

    fn cut(&self, ways: &[Way], time: u64) {
        let Some(network) = &self.network else { return };
        ways.iter().for_each(|(from, to)| network.cut(*from, *to));
        wait(time);
        ways.iter().for_each(|(from, to)| network.heal(*from, *to));
    }

    fn cut_off(&mut self, id: usize) -> String {
        let (speaks, hears) = self.ways(id);
        let long = self.rng.chance(250);
        let time = if long { self.rng.between(10_500..13_000) } else { self.rng.between(500..5000) };
        self.cut(&[speaks, hears].concat(), time);
        format!("node {id} cut off for {time} ms")
    }

    fn cut_one_way(&mut self, id: usize) -> String {
        let (speaks, hears) = self.ways(id);
        let time = self.rng.between(500..5000);
        let (what, ways) = match self.rng.below(3) {
            0 => ("is heard by nobody", speaks),
            1 => ("hears nobody", hears),
            _ => ("is not heard by one", vec![self.rng.pick(&speaks)]),
        };
        self.cut(&ways, time);
        format!("node {id} {what} for {time} ms")
    }

    fn flap(&mut self, id: usize) -> String {
        let (speaks, hears) = self.ways(id);
        let all = [speaks, hears].concat();
        let times = self.rng.between(4..12);
        for _ in 0..times {
            let time = self.rng.between(150..500);
            self.cut(&all, time);
            wait(self.rng.between(150..500));
        }
        format!("node {id} cut off and back {times} times")
    }

    fn change_members(&mut self) -> String {
        let (guest, name) = (self.guest, self.guest.to_string());
        if self.members.contains(&guest) {
            self.member(&["DRAIN", &name]);
            wait(self.rng.below(2000));
            self.remove(guest);
            self.members.retain(|id| *id != guest);
            if self.cluster.stop(guest) != Some(0) {
                self.ledger.violated("the node that left did not end well");
            }
            // What was removed is never let in again with what it has.
            self.cluster.wipe(guest);
            return format!("node {guest} drained and removed");
        }
        let peer = self.cluster.peer_address(guest).to_string();
        self.member(&["ADD", &name, &peer]);
        self.members.push(guest);
        self.cluster.spawn(guest);
        format!("node {guest} added")
    }
}
