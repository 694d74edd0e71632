//! The cache's protocol, breadth first: every order in which words arrive, are lost or come twice, time passes, nodes read and
//! write, and leadership moves, up to a stated number of states. The engine's own directory and holders are what is played.
//!
//! What is checked at every step: a node shows no value that is older than one that was acknowledged before.
//!
//! The model around them: time moves by `STEP`; a home's lease is `LEASE` long and goes on as long as the home is not cut off;
//! another home begins when it is over (`consensus/lease.rs` is what makes that so, and is tested apart). A write is
//! proposed when the directory lets it, and applied or lost later.

use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;
use quorate_engine::cache::directory::{Directory, WriteId};
use quorate_engine::cache::holder::{Fill, Holder};
use quorate_engine::cache::{CacheEffect, Faults};
use quorate_engine::effect::{Effect, Effects, TICK};
use quorate_protocol::cache::{CacheWord, Grant};
use quorate_protocol::id::{Boot, GroupId, NodeId, Term};

const GROUP: GroupId = GroupId(1);
/// Time moves by as much.
const STEP: u64 = 3 * TICK;
/// What a home's lease lasts.
const LEASE: u64 = 9 * TICK;

/// What may happen at the most.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    keys: usize,
    steps: u64,
    reads: u8,
    writes: u8,
    losses: u8,
    doubles: u8,
    failovers: u8,
    flying: usize,
    states: usize,
}

#[derive(Debug, Clone)]
enum Flying {
    Word { from: usize, to: usize, word: CacheWord },
    Read { node: usize, key: usize, epoch: u64, asked: u64, term: Term },
    Filled { node: usize, key: usize, value: u64, grant: Option<Grant>, asked: u64, written: bool },
    Write { node: usize, key: usize, gave_up: u64, term: Term },
}

/// A node's view: what it would show.
#[derive(Debug, Clone, Default)]
struct View {
    generation: u64,
    until: u64,
    /// Key → generation and value.
    lines: Vec<Option<(u64, u64)>>,
}

#[derive(Debug, Clone)]
struct Node {
    holder: Holder,
    view: View,
}

#[derive(Debug, Clone)]
struct Proposal {
    node: usize,
    key: usize,
    value: u64,
}

#[derive(Debug, Clone)]
struct Model {
    now: u64,
    nodes: Vec<Node>,
    home: usize,
    term: Term,
    home_until: u64,
    cut_off: bool,
    directory: Directory,
    held: Vec<(WriteId, Proposal)>,
    proposed: Vec<Proposal>,
    /// Key → applied value, newest acknowledged value.
    applied: Vec<u64>,
    acknowledged: Vec<u64>,
    last_value: u64,
    flying: Vec<Flying>,
    left: Bounds,
}

fn name(key: usize) -> Bytes {
    Bytes::from(format!("k{key}"))
}

fn id(at: usize) -> NodeId {
    NodeId(at as u64 + 1)
}

fn place(node: NodeId) -> usize {
    usize::try_from(node.0 - 1).expect("few nodes")
}

impl Model {
    fn new(bounds: Bounds, faults: &Faults) -> Self {
        let node = |at: u64| {
            let mut holder = Holder::new(Boot(at), 1);
            holder.set_faults(faults);
            holder.set_route(GROUP, Some(NodeId(1)), 1);
            Node { holder, view: View { lines: vec![None; bounds.keys], ..View::default() } }
        };
        let mut directory = Directory::new(GROUP, 1);
        directory.set_faults(faults);
        Self {
            now: 100 * TICK,
            nodes: (1..=3).map(node).collect(),
            home: 0,
            term: 1,
            home_until: 100 * TICK + LEASE,
            cut_off: false,
            directory,
            held: Vec::new(),
            proposed: Vec::new(),
            applied: vec![0; bounds.keys],
            acknowledged: vec![0; bounds.keys],
            last_value: 0,
            flying: Vec::new(),
            left: bounds,
        }
    }

    /// Every state that can follow, or what was wrong.
    fn next(&self, faults: &Faults) -> Result<Vec<Self>, String> {
        let mut all = Vec::new();
        for at in 0..self.nodes.len() {
            for key in 0..self.left.keys {
                if let Some(next) = self.read(at, key)? {
                    all.push(next);
                }
                all.extend(self.write(at, key));
            }
        }
        for at in 0..self.flying.len() {
            all.push(self.arrive(at, true));
            if self.left.doubles > 0 && matches!(self.flying[at], Flying::Word { .. }) {
                let mut next = self.arrive(at, false);
                next.left.doubles -= 1;
                all.push(next);
            }
            if self.left.losses > 0 {
                let mut next = self.clone();
                next.flying.remove(at);
                next.left.losses -= 1;
                all.push(next);
            }
        }
        for at in 0..self.proposed.len() {
            all.push(self.apply(at));
        }
        all.extend(self.time_passes());
        all.extend(self.failover(faults));
        all.retain(|next| next.flying.len() <= next.left.flying);
        Ok(all)
    }

    fn shown(&self, at: usize, key: usize) -> Option<u64> {
        let view = &self.nodes[at].view;
        let (generation, value) = view.lines[key]?;
        (generation == view.generation && self.now < view.until).then_some(value)
    }

    fn read(&self, at: usize, key: usize) -> Result<Option<Self>, String> {
        if let Some(value) = self.shown(at, key) {
            if value < self.acknowledged[key] {
                return Err(format!(
                    "node {} shows {value} of key {key} behind {}: {self:?}",
                    at + 1,
                    self.acknowledged[key]
                ));
            }
            return Ok(None);
        }
        if self.left.reads == 0 {
            return Ok(None);
        }
        let mut next = self.clone();
        next.left.reads -= 1;
        let epoch = next.nodes[at].holder.epoch(self.now, GROUP);
        next.flying.push(Flying::Read { node: at, key, epoch, asked: self.now, term: self.term });
        next.settle();
        Ok(Some(next))
    }

    fn write(&self, at: usize, key: usize) -> Option<Self> {
        let mut next = self.clone();
        next.left.writes = next.left.writes.checked_sub(1)?;
        let gave_up = next.nodes[at].holder.give_up(GROUP, &[name(key)]);
        next.flying.push(Flying::Write { node: at, key, gave_up, term: self.term });
        next.settle();
        Some(next)
    }

    fn arrive(&self, at: usize, once: bool) -> Self {
        let mut next = self.clone();
        let flying = if once { next.flying.remove(at) } else { next.flying[at].clone() };
        next.take(flying);
        next.settle();
        next
    }

    fn take(&mut self, flying: Flying) {
        match flying {
            Flying::Word { from, to, word } if word.is_for_home() => {
                if to == self.home {
                    self.directory.hear(self.now, self.home_until, id(from), word);
                }
            }
            Flying::Word { from, to, word } => self.nodes[to].holder.hear(self.now, id(from), word),
            Flying::Read { node, key, epoch, asked, term } => {
                if term == self.term && self.now < self.home_until {
                    let grant = (epoch > 0)
                        .then(|| self.directory.grant(self.now, id(node), epoch, &name(key), false))
                        .flatten();
                    let value = self.applied[key];
                    self.flying.push(Flying::Filled { node, key, value, grant, asked, written: false });
                }
            }
            Flying::Filled { node, key, value, grant, asked, written } => {
                if let Some(grant) = grant {
                    let value = Some(Bytes::from(value.to_string()));
                    let fill = Fill { key: name(key), value, grant, asked, written };
                    self.nodes[node].holder.fill(self.now, fill);
                }
            }
            Flying::Write { node, key, gave_up, term } => {
                if term == self.term {
                    self.last_value += 1;
                    let proposal = Proposal { node, key, value: self.last_value };
                    match self.directory.close(self.now, &[name(key)], id(node), gave_up) {
                        Some(write) => self.held.push((write, proposal)),
                        None => self.proposed.push(proposal),
                    }
                }
            }
        }
    }

    /// A proposal is committed, applied and acknowledged.
    fn apply(&self, at: usize) -> Self {
        let mut next = self.clone();
        let Proposal { node, key, value } = next.proposed.remove(at);
        next.applied[key] = value;
        let owner = next.directory.open(&[name(key)]);
        let grant = owner.filter(|_| self.now < self.home_until).and_then(|owner| {
            (owner == id(node)).then(|| next.directory.grant_written(self.now, owner, &name(key))).flatten()
        });
        if grant.is_some() {
            next.flying.push(Flying::Filled { node, key, value, grant, asked: self.now, written: true });
        }
        next.acknowledged[key] = next.acknowledged[key].max(value);
        next.settle();
        next
    }

    fn time_passes(&self) -> Option<Self> {
        let mut next = self.clone();
        next.left.steps = next.left.steps.checked_sub(1)?;
        next.now += STEP;
        if !next.cut_off {
            next.home_until = next.now + LEASE;
        }
        next.directory.tick(next.now);
        next.nodes.iter_mut().for_each(|node| node.holder.tick(next.now));
        next.settle();
        Some(next)
    }

    /// The home is cut off; or its lease is over, and another one begins. What was proposed may be in the log or not.
    fn failover(&self, faults: &Faults) -> Vec<Self> {
        let mut all = Vec::new();
        if !self.cut_off && self.left.failovers > 0 {
            let mut next = self.clone();
            next.cut_off = true;
            next.left.failovers -= 1;
            all.push(next);
        }
        if self.cut_off && self.now >= self.home_until {
            for survives in [false, true] {
                let mut next = self.clone();
                for Proposal { key, value, .. } in std::mem::take(&mut next.proposed) {
                    if survives {
                        next.applied[key] = value;
                        next.acknowledged[key] = next.acknowledged[key].max(value);
                    }
                }
                next.held.clear();
                (next.home, next.term, next.cut_off) =
                    ((self.home + 1) % self.nodes.len(), self.term + 1, false);
                next.home_until = next.now + LEASE;
                next.directory = Directory::new(GROUP, next.term);
                next.directory.set_faults(faults);
                for node in &mut next.nodes {
                    node.holder.set_route(GROUP, Some(id(next.home)), next.term);
                }
                next.settle();
                all.push(next);
            }
        }
        all
    }

    /// Does what holders and directory want done.
    fn settle(&mut self) {
        loop {
            let mut any = false;
            for at in 0..self.nodes.len() {
                let Node { holder, view } = &mut self.nodes[at];
                let mut effects = Effects::new();
                holder.take_effects(&mut effects);
                effects.into_iter().for_each(|effect| view.perform(effect));
                for (to, word) in holder.take_words() {
                    any = true;
                    self.say(at, place(to), word);
                }
            }
            for (to, word) in self.directory.take_words() {
                any = true;
                self.say(self.home, place(to), word);
            }
            for write in self.directory.take_ready() {
                let at = self.held.iter().position(|(held, _)| *held == write).expect("it is held");
                let (_, proposal) = self.held.remove(at);
                self.proposed.push(proposal);
            }
            if !any {
                return;
            }
        }
    }

    /// A node's word to itself arrives at once.
    fn say(&mut self, from: usize, to: usize, word: CacheWord) {
        let flying = Flying::Word { from, to, word };
        if from == to { self.take(flying) } else { self.flying.push(flying) }
    }
}

impl View {
    fn perform(&mut self, effect: Effect) {
        let at = |key: &Bytes| usize::from(key[1] - b'0');
        match effect {
            Effect::Cache(CacheEffect::Lease { generation, until, .. }) => {
                (self.generation, self.until) = (generation, until);
            }
            Effect::Cache(CacheEffect::Fill { key, generation, value, .. }) => {
                let value = value.and_then(|value| String::from_utf8(value.to_vec()).ok()?.parse().ok());
                self.lines[at(&key)] = Some((generation, value.expect("values are numbers")));
            }
            Effect::Cache(CacheEffect::Purge { keys, .. }) => {
                keys.iter().for_each(|key| self.lines[at(key)] = None);
            }
            _ => {}
        }
    }
}

/// Plays everything within bounds: how many states there are, whether these were all, and what was wrong.
fn explore(bounds: Bounds, faults: &Faults) -> (usize, bool, Option<String>) {
    let fingerprint = |model: &Model| {
        let mut hasher = DefaultHasher::new();
        format!("{model:?}").hash(&mut hasher);
        hasher.finish()
    };
    let first = Model::new(bounds, faults);
    let mut seen = HashSet::from([fingerprint(&first)]);
    let mut front = VecDeque::from([first]);
    while let Some(model) = front.pop_front() {
        match model.next(faults) {
            Err(wrong) => return (seen.len(), false, Some(wrong)),
            Ok(all) => {
                for next in all {
                    if seen.len() < bounds.states && seen.insert(fingerprint(&next)) {
                        front.push_back(next);
                    }
                }
            }
        }
    }
    (seen.len(), seen.len() < bounds.states, None)
}

/// One key, and of each thing that may go wrong one.
const ONE_KEY: Bounds = Bounds {
    keys: 1,
    steps: 4,
    reads: 2,
    writes: 1,
    losses: 1,
    doubles: 0,
    failovers: 1,
    flying: 3,
    states: 120_000,
};

#[test]
fn one_key() {
    let (states, _, wrong) = explore(ONE_KEY, &Faults::default());
    assert_eq!((wrong, states), (None, ONE_KEY.states));
}

#[test]
fn two_keys() {
    let bounds = Bounds { keys: 2, steps: 2, failovers: 0, losses: 0, writes: 2, ..ONE_KEY };
    let (states, _, wrong) = explore(bounds, &Faults::default());
    assert_eq!((wrong, states), (None, bounds.states));
}

#[test]
fn every_broken_rule_is_seen() {
    let ask = |change: fn(&mut Faults)| {
        let mut faults = Faults::default();
        change(&mut faults);
        faults
    };
    for (what, faults) in [
        ("kept line", ask(|faults| faults.kept_line = true)),
        ("late fill", ask(|faults| faults.late_fill = true)),
        ("own line kept", ask(|faults| faults.own_line_kept = true)),
        ("left open", ask(|faults| faults.left_open = true)),
    ] {
        let (states, all, wrong) = explore(ONE_KEY, &faults);
        assert!(wrong.is_some(), "{what}: nothing was wrong in {states} states, all: {all}");
    }
}
