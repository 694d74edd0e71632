//! What can happen: three nodes, one of which is the home of all keys, and the words and requests between them.
//!
//! The model around the engine's directory and holders: time moves by `STEP`. A home's lease is `LEASE` long and goes on as
//! long as the home is not cut off; when it is over, another node begins (`consensus/lease.rs` is what makes that so, and is tested
//! apart), and each node learns of it when it does. A write is proposed when the directory lets it, and applied later, or
//! not at all. Requests and their answers travel on links, in order; words overtake each other and can come twice.
//!
//! Everything that is on its way can be lost at any time. More than `flying` are never on their way at a time: what is
//! said above that makes one of them vanish, each in turn, and clients ask only when there is room.

use bytes::Bytes;
use quorate_engine::cache::directory::{Directory, WriteId};
use quorate_engine::cache::holder::{Fill, Holder};
use quorate_engine::cache::walk::Walk;
use quorate_engine::cache::{CacheEffect, Faults};
use quorate_engine::effect::{Effect, Effects, TICK};
use quorate_protocol::cache::{CacheWord, Grant, LeaseName, WISH};
use quorate_protocol::id::{Boot, GroupId, NodeId, Term};

use crate::flying::{Flying, Proposal, Story, What};

pub(crate) const GROUP: GroupId = GroupId(1);
/// Time moves by as much.
const STEP: u64 = 3 * TICK;
/// What a home's lease lasts.
pub(crate) const LEASE: u64 = 9 * TICK;
/// As often as may be.
pub(crate) const ENDLESS: u8 = u8::MAX;

/// What may happen at the most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) keys: usize,
    /// Reads that a node does not answer itself.
    pub(crate) reads: u8,
    pub(crate) writes: u8,
    /// Writes that ask for the line as their node's own (SET WRITEBACK).
    pub(crate) backs: u8,
    /// Writes that an owner takes on.
    pub(crate) absorbs: u8,
    /// Lines that make room for others.
    pub(crate) evictions: u8,
    /// Words that come twice.
    pub(crate) doubles: u8,
    /// Homes that are cut off.
    pub(crate) failovers: u8,
    pub(crate) steps: u8,
    /// Words and requests that are on their way at a time.
    pub(crate) flying: usize,
    /// States that are looked at.
    pub(crate) states: usize,
}

/// Whether something may happen once more; counts it.
pub(crate) fn once(left: &mut u8) -> bool {
    let may = *left > 0;
    if may && *left != ENDLESS {
        *left -= 1;
    }
    may
}

impl Bounds {
    pub(crate) fn walk(&self, walk: &mut Walk<'_>) {
        let Self { reads, writes, backs, absorbs, evictions, doubles, failovers, steps, .. } = *self;
        for left in [reads, writes, backs, absorbs, evictions, doubles, failovers, steps] {
            walk.plain(left);
        }
    }
}

/// A node's view: what it would show.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    pub(crate) generation: u64,
    pub(crate) until: u64,
    /// Key → generation and value.
    pub(crate) lines: Vec<Option<(u64, u64)>>,
}

#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) holder: Holder,
    pub(crate) view: View,
    /// The newest term that it has heard of.
    pub(crate) term: Term,
    /// Key → the newest value that it has acknowledged by itself, and the generation under which it did.
    pub(crate) taken_on: Vec<Option<(u64, u64)>>,
}

#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) now: u64,
    pub(crate) nodes: Vec<Node>,
    pub(crate) home: usize,
    pub(crate) term: Term,
    pub(crate) home_until: u64,
    pub(crate) cut_off: bool,
    pub(crate) directory: Directory,
    faults: Faults,
    pub(crate) held: Vec<(WriteId, Proposal)>,
    pub(crate) proposed: Vec<Proposal>,
    /// Key → applied value, newest acknowledged value.
    pub(crate) applied: Vec<u64>,
    pub(crate) acknowledged: Vec<u64>,
    /// Key → its version.
    pub(crate) versions: Vec<u64>,
    pub(crate) last_value: u64,
    last_version: u64,
    /// What was answered, or written, and must not be.
    pub(crate) wrong: Option<String>,
    pub(crate) flying: Vec<Flying>,
    pub(crate) left: Bounds,
    story: Story,
}

pub(crate) fn name(key: usize) -> Bytes {
    Bytes::from_static([b"k0", b"k1"][key])
}

pub(crate) fn id(at: usize) -> NodeId {
    NodeId(at as u64 + 1)
}

fn place(node: NodeId) -> usize {
    usize::try_from(node.0 - 1).expect("few nodes")
}

impl Model {
    pub(crate) fn new(bounds: Bounds, faults: &Faults) -> Self {
        let node = || {
            let mut holder = Holder::new(Boot(1), 1);
            holder.set_faults(faults);
            holder.set_route(GROUP, Some(NodeId(1)), 1);
            let view = View { lines: vec![None; bounds.keys], ..View::default() };
            Node { holder, view, term: 1, taken_on: vec![None; bounds.keys] }
        };
        let mut directory = Directory::new(GROUP, 1);
        directory.set_faults(faults);
        Self {
            now: 100 * TICK,
            nodes: (1..=3).map(|_| node()).collect(),
            home: 0,
            term: 1,
            home_until: 100 * TICK + LEASE,
            cut_off: false,
            directory,
            faults: faults.clone(),
            held: Vec::new(),
            proposed: Vec::new(),
            applied: vec![0; bounds.keys],
            acknowledged: vec![0; bounds.keys],
            versions: vec![0; bounds.keys],
            last_value: 0,
            last_version: 0,
            wrong: None,
            flying: Vec::new(),
            left: bounds,
            story: Story::default(),
        }
    }

    /// What a node would show of a key.
    pub(crate) fn shown(&self, at: usize, key: usize) -> Option<u64> {
        let view = &self.nodes[at].view;
        let (generation, value) = view.lines[key]?;
        (generation == view.generation && self.now < view.until).then_some(value)
    }

    /// Every state that can follow, or what is wrong with this one.
    pub(crate) fn next(&self) -> Result<Vec<Self>, String> {
        let keys = || (0..self.nodes.len()).flat_map(|at| (0..self.left.keys).map(move |key| (at, key)));
        if let Some(wrong) = &self.wrong {
            return Err(format!("{wrong}, after{:?}", self.story));
        }
        for (at, key) in keys() {
            let newest = self.acknowledged[key].max(self.unbrought(key));
            if let Some(value) = self.shown(at, key).filter(|value| *value < newest) {
                return Err(format!(
                    "node {} shows {value} of key {key} behind {newest}, after{:?}",
                    at + 1,
                    self.story
                ));
            }
        }
        let mut all = self.each_flying("lost", Self::lose, |_| true);
        if self.flying.len() > self.left.flying {
            return Ok(all);
        }
        let mut step = |what: &'static str, places: &[usize], act: &dyn Fn(&mut Self) -> bool| {
            let mut next = self.clone();
            if act(&mut next) {
                next.story.add(what, places, None);
                next.settle();
                all.push(next);
            }
        };
        for (at, key) in keys() {
            step("read", &[at, key], &|next| next.read(at, key));
            step("write", &[at, key], &|next| next.write(at, key, false));
            step("write back", &[at, key], &|next| next.write(at, key, true));
            step("take on", &[at, key], &|next| next.take_on(at, key));
            step("evict", &[at, key], &|next| next.evict(at, key));
        }
        (0..self.nodes.len()).for_each(|at| step("learn", &[at], &|next| next.learn(at)));
        step("apply", &[], &|next| next.apply());
        step("time passes", &[], &|next| next.time_passes());
        step("home is cut off", &[], &|next| next.is_cut_off());
        for home in 0..self.nodes.len() {
            for kept in 0..=self.proposed.len() {
                step("another home, with so many entries", &[home, kept], &|next| next.failover(home, kept));
            }
        }
        let arrives = |next: &mut Self, at: usize| {
            let flying = next.flying.remove(at);
            next.take(flying);
        };
        all.extend(self.each_flying("arrives", arrives, |at| self.is_first(at)));
        if self.left.doubles > 0 {
            let comes = |next: &mut Self, at: usize| {
                once(&mut next.left.doubles);
                next.take(next.flying[at].clone());
            };
            all.extend(
                self.each_flying("comes, and will again", comes, |at| self.flying[at].link().is_none()),
            );
        }
        Ok(all)
    }

    fn each_flying(
        &self,
        what: &'static str,
        act: impl Fn(&mut Self, usize),
        may: impl Fn(usize) -> bool,
    ) -> Vec<Self> {
        let one = |at: usize| {
            let mut next = self.clone();
            next.story.add(what, &[], Some(self.flying[at].clone()));
            act(&mut next, at);
            next.settle();
            next
        };
        (0..self.flying.len()).filter(|at| may(*at)).map(one).collect()
    }

    /// Whether nothing is before it on its link.
    fn is_first(&self, at: usize) -> bool {
        let link = self.flying[at].link();
        link.is_none() || self.flying[..at].iter().all(|before| before.link() != link)
    }

    /// Clients ask when there is room.
    fn has_room(&self) -> bool {
        self.flying.len() < self.left.flying
    }

    fn read(&mut self, at: usize, key: usize) -> bool {
        if self.shown(at, key).is_some() || !self.has_room() || !once(&mut self.left.reads) {
            return false;
        }
        let behind = self.unbrought(key);
        let node = &mut self.nodes[at];
        let (line, term) = (node.holder.wish(self.now, GROUP), node.term);
        self.flying.push(Flying::Read { node: at, key, line, behind, term });
        true
    }

    fn write(&mut self, at: usize, key: usize, back: bool) -> bool {
        let has_room = self.has_room();
        let left = if back { &mut self.left.backs } else { &mut self.left.writes };
        if !has_room || !once(left) {
            return false;
        }
        let node = &mut self.nodes[at];
        if back {
            // Without a lease nothing can be owned.
            node.holder.epoch(self.now, GROUP);
        }
        let (gave_up, term) = (node.holder.give_up(GROUP, &[name(key)]), node.term);
        self.flying.push(Flying::Write { node: at, key, gave_up, back, term });
        true
    }

    fn evict(&mut self, at: usize, key: usize) -> bool {
        if self.shown(at, key).is_none() || !once(&mut self.left.evictions) {
            return false;
        }
        self.nodes[at].view.lines[key] = None;
        self.nodes[at].holder.evicted(vec![(GROUP, name(key))]);
        true
    }

    /// A node hears of the new home.
    fn learn(&mut self, at: usize) -> bool {
        let node = &mut self.nodes[at];
        let news = node.term < self.term;
        node.term = self.term;
        node.holder.set_route(GROUP, Some(id(self.home)), self.term);
        news
    }

    fn take(&mut self, flying: Flying) {
        match flying {
            Flying::Word { from, to, word } if word.is_for_home() => {
                if to == self.home {
                    self.directory.hear(self.now, self.home_until, id(from), word);
                }
            }
            Flying::Word { from, to, word } => self.nodes[to].holder.hear(self.now, id(from), word),
            Flying::Read { node, key, line, behind, term } => {
                if term == self.term && self.now < self.home_until {
                    self.read_at_home(Proposal { node, key, what: What::Read { line, behind } });
                }
            }
            Flying::Filled { node, key, value, grant, written } => {
                let value = Some(Bytes::copy_from_slice(&value.to_le_bytes()));
                // There are no deadlines, so it does not matter when it was asked for.
                let fill = Fill { key: name(key), value, grant, asked: self.now, written };
                self.nodes[node].holder.fill(self.now, fill);
            }
            Flying::Write { node, key, gave_up, back, term } => {
                if term == self.term {
                    let waits = self.directory.close(self.now, &[name(key)], id(node), gave_up);
                    let what = if back { What::SetBack } else { What::Set };
                    if back {
                        self.directory.wants_to_own(id(node), &name(key));
                    }
                    self.propose(waits, Proposal { node, key, what });
                }
            }
            Flying::Flush { node, key, brings, term } => {
                if term == self.term {
                    self.flush_at_home(node, key, brings);
                } else {
                    self.not_brought(node, key, brings.number);
                }
            }
            Flying::Flushed { node, key, number, version } => self.brought(node, key, number, version),
        }
    }

    /// An answer without a line changes nothing.
    pub(crate) fn answer(
        &mut self,
        node: usize,
        key: usize,
        value: u64,
        grant: Option<Grant>,
        written: bool,
    ) {
        self.flying.extend(grant.map(|grant| Flying::Filled { node, key, value, grant, written }));
    }

    /// It is proposed once nothing has to be waited for any more.
    pub(crate) fn propose(&mut self, waits: Option<WriteId>, proposal: Proposal) {
        match waits {
            Some(write) => self.held.push((write, proposal)),
            None => self.proposed.push(proposal),
        }
    }

    /// The first proposal is committed, applied and acknowledged: the log has an order.
    fn apply(&mut self) -> bool {
        if self.proposed.is_empty() {
            return false;
        }
        let Proposal { node, key, what } = self.proposed.remove(0);
        let version = self.commit(key, what);
        match what {
            What::Set | What::SetBack => self.answer_write(node, key, what, version.unsigned_abs()),
            What::Flush(brings) => {
                self.directory.open_flush(id(node), &name(key));
                self.answer_flush(node, key, brings.number, version);
            }
            What::Read { line, behind } => self.answer_read(node, key, line, behind),
        }
        true
    }

    fn answer_write(&mut self, node: usize, key: usize, what: What, version: u64) {
        let owner = self.directory.open(&[name(key)]);
        let owner = owner.filter(|owner| self.now < self.home_until && *owner == id(node));
        let grant = owner.and_then(|owner| match what {
            What::SetBack => self.directory.grant_owned(self.now, owner, &name(key)),
            _ => self.directory.grant_written(self.now, owner, &name(key)),
        });
        // Only who owns the line needs to know the version.
        let told = |grant: Grant| Grant { version: if grant.owned { version } else { 0 }, ..grant };
        self.answer(node, key, self.applied[key], grant.map(told), true);
    }

    /// An entry is in the log for good; the key's version behind it, negative if it has changed nothing.
    fn commit(&mut self, key: usize, what: What) -> i64 {
        let signed = |version: u64| i64::try_from(version).expect("they are few");
        let value = match what {
            What::Set | What::SetBack => self.last_value + 1,
            What::Flush(brings) if brings.base == self.versions[key] => brings.value,
            What::Flush(_) => return -signed(self.versions[key]),
            What::Read { .. } => return 0,
        };
        if value < self.applied[key] {
            let newer = self.applied[key];
            self.wrong = Some(format!("{value} was written over {newer} of key {key}"));
        }
        self.last_value = self.last_value.max(value);
        self.last_version += 1;
        self.versions[key] = self.last_version;
        (self.applied[key], self.acknowledged[key]) = (value, value);
        signed(self.last_version)
    }

    fn time_passes(&mut self) -> bool {
        if !once(&mut self.left.steps) {
            return false;
        }
        self.now += STEP;
        if !self.cut_off {
            self.home_until = self.now + LEASE;
        }
        self.directory.tick(self.now);
        self.nodes.iter_mut().for_each(|node| node.holder.tick(self.now));
        true
    }

    fn is_cut_off(&mut self) -> bool {
        let may = !self.cut_off && once(&mut self.left.failovers);
        self.cut_off |= may;
        may
    }

    /// The home's lease is over, and another node begins. Of what was proposed it has the first entries in its log.
    fn failover(&mut self, home: usize, kept: usize) -> bool {
        if !self.cut_off || self.now < self.home_until || home == self.home {
            return false;
        }
        let proposed = std::mem::take(&mut self.proposed);
        for Proposal { key, what, .. } in &proposed[..kept] {
            self.commit(*key, *what);
        }
        let held = std::mem::take(&mut self.held).into_iter().map(|(_, proposal)| proposal);
        let unanswered: Vec<Proposal> = proposed.into_iter().chain(held).collect();
        (self.home, self.term, self.cut_off) = (home, self.term + 1, false);
        self.home_until = self.now + LEASE;
        self.directory = Directory::new(GROUP, self.term);
        self.directory.set_faults(&self.faults);
        self.learn(home);
        unanswered.into_iter().for_each(|proposal| self.unanswered(proposal));
        true
    }

    /// Does what holders and directory want done, and forgets what can do nothing any more.
    fn settle(&mut self) {
        loop {
            let mut any = false;
            for at in 0..self.nodes.len() {
                let Node { holder, view, .. } = &mut self.nodes[at];
                let mut effects = Effects::new();
                holder.take_effects(&mut effects);
                effects.into_iter().for_each(|effect| view.perform(effect));
                let (words, flushes) = (holder.take_words(), holder.take_flushes());
                any |= !words.is_empty() || !flushes.is_empty();
                words.into_iter().for_each(|(to, word)| self.say(at, place(to), word));
                flushes.into_iter().for_each(|(_, number, flush)| self.bring(at, number, &flush));
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
                break;
            }
        }
        let mut flying = std::mem::take(&mut self.flying);
        let all = flying.clone();
        flying.retain(|one| self.heeds(one, &all));
        self.flying = flying;
    }

    /// A node's word to itself arrives at once.
    fn say(&mut self, from: usize, to: usize, word: CacheWord) {
        let flying = Flying::Word { from, to, word };
        if from == to { self.take(flying) } else { self.flying.push(flying) }
    }

    /// Whether anything can come of it, now or ever.
    fn heeds(&self, flying: &Flying, others: &[Flying]) -> bool {
        match flying {
            Flying::Word { from, to, word } if word.is_for_home() => {
                *to == self.home && term_of(word) == self.term && self.directory.heeds(id(*from), word)
            }
            Flying::Word { to, word, .. } => match word {
                CacheWord::Lease(granted) => self.nodes[*to].holder.heeds_lease(self.now, granted),
                CacheWord::Invalid(word) => {
                    let waits = word.lease.term == self.term && self.directory.waits_for(word.number);
                    waits || self.nodes[*to].holder.heeds_invalidation(word)
                }
                _ => true,
            },
            Flying::Read { node, line, term, .. } => {
                let wishes = line & WISH > 0 && self.now < (line & !WISH) + LEASE;
                *term == self.term && (wishes || self.directory.has_lease(id(*node), *line))
            }
            Flying::Write { term, .. } => *term == self.term,
            // Whoever brings something hears that nothing has come of it.
            Flying::Flush { .. } | Flying::Flushed { .. } => true,
            Flying::Filled { node, key, grant, .. } => {
                let LeaseName { term, epoch, .. } = grant.lease;
                let granted = |other: &Flying| match other {
                    Flying::Word { to, word: CacheWord::Lease(granted), .. } => {
                        to == node && granted.lease == grant.lease
                    }
                    _ => false,
                };
                let holder = &self.nodes[*node].holder;
                let may_have = holder.has_lease(&grant.lease)
                    || term == self.term && self.directory.has_lease(id(*node), epoch)
                    || others.iter().any(granted);
                may_have && holder.heeds_grant(&name(*key), grant)
            }
        }
    }
}

fn term_of(word: &CacheWord) -> Term {
    match word {
        CacheWord::Want(want) => want.lease.term,
        CacheWord::Lease(granted) => granted.lease.term,
        CacheWord::Invalid(invalidation) => invalidation.lease.term,
        CacheWord::Purged(purged) => purged.lease.term,
        CacheWord::Evicted(evicted) => evicted.lease.term,
        CacheWord::Recall(lease) | CacheWord::Returned(lease) | CacheWord::Flush(lease) => lease.term,
        CacheWord::Changed(changed) => changed.lease.term,
        CacheWord::Noted(noted) => noted.lease.term,
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
                let value = value.and_then(|value| value[..].try_into().ok()).map(u64::from_le_bytes);
                self.lines[at(&key)] = Some((generation, value.expect("values are numbers")));
            }
            Effect::Cache(CacheEffect::Purge { keys, .. }) => {
                keys.iter().for_each(|key| self.lines[at(key)] = None);
            }
            _ => {}
        }
    }
}
