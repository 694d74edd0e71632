//! The network between nodes: Raft and snapshot frames one by one, client work on links.
//!
//! Charter: Raft and snapshot frames are delayed, lost, doubled, and overtake each other. A link is FIFO, delivers each frame at
//! most once and is cut as a whole: the end that cuts it hears no more of it, the other end may still hear what was
//! on its way until it notices. Any direction between two nodes can be blocked; a link stalls for a while then, and
//! is cut in the end. Whoever opened a link dials again.
//!
//! Invariant: at most one link per opener and reached node is heard at either end; a newer one replaces it.

use std::collections::{BTreeMap, VecDeque};

use quorate_engine::effect::{Input, Side};
use quorate_protocol::peer::{LinkFrame, RaftFrame, SnapshotFrame};

use super::rng::Rng;
use super::world::{Event, World};

/// How well frames travel.
#[derive(Debug, Clone, Copy)]
pub struct Quality {
    /// Raft and snapshot frames lost, in a thousand.
    pub loss: u64,
    /// Raft and snapshot frames doubled, in a thousand.
    pub doubled: u64,
    /// Frames that take long, in a thousand.
    pub slow: u64,
    /// The usual delay at the most, in microseconds.
    pub delay: u64,
}

impl Quality {
    /// A local network on a good day.
    pub const GOOD: Self = Self { loss: 0, doubled: 0, slow: 0, delay: 400 };
}

/// A link, and what is on its way. Ends: 0 opened it, 1 was reached.
#[derive(Debug)]
struct Link {
    nodes: [usize; 2],
    open: [bool; 2],
    /// Towards each end.
    lanes: [VecDeque<LinkFrame>; 2],
    /// No frame towards an end arrives before this.
    due: [u64; 2],
    /// Since when frames towards an end have been held up.
    stalled: [Option<u64>; 2],
}

/// See the top of the file.
#[derive(Debug)]
pub struct Network {
    /// `[from][to]`
    pub blocked: Vec<Vec<bool>>,
    /// How well frames travel.
    pub quality: Quality,
    links: BTreeMap<u64, Link>,
    /// (opener, reached, end) → the link that this end hears.
    heard: BTreeMap<(usize, usize, usize), u64>,
    next: u64,
    rng: Rng,
}

impl Network {
    /// A network of so many nodes without a link.
    #[must_use]
    pub fn new(nodes: usize, seed: u64) -> Self {
        Self {
            blocked: vec![vec![false; nodes]; nodes],
            quality: Quality::GOOD,
            links: BTreeMap::new(),
            heard: BTreeMap::new(),
            next: 1,
            rng: Rng::new(seed, 3),
        }
    }

    /// Every direction is open, and frames travel well.
    pub fn heal(&mut self) {
        self.blocked.iter_mut().for_each(|row| row.fill(false));
        self.quality = Quality::GOOD;
    }

    /// How long a frame takes.
    pub fn delay(&mut self) -> u64 {
        let delay = self.rng.between(30..self.quality.delay + 31);
        if self.rng.chance(self.quality.slow) { delay + self.rng.below(300_000) } else { delay }
    }
}

impl World {
    /// Sends a Raft frame.
    pub fn send_raft(&mut self, from: usize, to: usize, frame: RaftFrame) {
        self.send_lossy(from, to, || Event::Raft { from, to, frame: Box::new(frame.clone()) });
    }

    /// Sends a frame of the snapshot lane.
    pub fn send_snapshot(&mut self, from: usize, to: usize, frame: SnapshotFrame) {
        self.send_lossy(from, to, || Event::Snapshot { from, to, frame: Box::new(frame.clone()) });
    }

    /// Lets a frame arrive once, twice or never.
    fn send_lossy(&mut self, from: usize, to: usize, arrival: impl Fn() -> Event) {
        let network = &mut self.network;
        if network.blocked[from][to] || network.rng.chance(network.quality.loss) {
            return;
        }
        if network.rng.chance(network.quality.doubled) {
            let at = self.time + network.delay() + network.rng.below(50_000);
            self.schedule(at, arrival());
        }
        let at = self.time + self.network.delay();
        self.schedule(at, arrival());
    }

    /// A Raft frame arrives, unless its way has been blocked meanwhile.
    pub fn hear_raft(&mut self, from: usize, to: usize, frame: RaftFrame) {
        if !self.network.blocked[from][to] {
            let from = self.nodes[from].id;
            self.post(to, Input::Raft { from, frame });
        }
    }

    /// A snapshot frame arrives, unless its way has been blocked meanwhile.
    pub fn hear_snapshot(&mut self, from: usize, to: usize, frame: SnapshotFrame) {
        if !self.network.blocked[from][to] {
            let from = self.nodes[from].id;
            self.post(to, Input::Snapshot { from, frame });
        }
    }

    /// Sends a frame on the link of which this node is that end.
    pub fn send_link(&mut self, from: usize, peer: usize, side: Side, frame: LinkFrame) {
        let (opener, reached, end) = if side == Side::Opener { (from, peer, 0) } else { (peer, from, 1) };
        let Some(&id) = self.network.heard.get(&(opener, reached, end)) else { return };
        let delay = self.network.delay();
        let link = self.network.links.get_mut(&id).expect("a link that is heard is there");
        let to = 1 - end;
        if !link.open[to] {
            return;
        }
        link.due[to] = link.due[to].max(self.time + delay);
        link.lanes[to].push_back(frame);
        let at = link.due[to];
        self.schedule(at, Event::LinkArrive { link: id, end: to });
    }

    /// The first frame towards an end arrives.
    pub fn link_arrives(&mut self, id: u64, end: usize) {
        let Some(link) = self.network.links.get_mut(&id) else { return };
        let (from, to) = (link.nodes[1 - end], link.nodes[end]);
        if !link.open[end] {
            link.lanes[end].clear();
            return;
        }
        if self.network.blocked[from][to] {
            let since = *link.stalled[end].get_or_insert(self.time);
            let again = self.time + 20_000;
            self.schedule(again, Event::LinkArrive { link: id, end });
            // The sender gives up after a while, as TCP does.
            let patience = 300_000 + id.wrapping_mul(7919) % 2_000_000;
            if self.time > since + patience {
                self.close_end(id, 1 - end);
            }
            return;
        }
        link.stalled[end] = None;
        let Some(frame) = link.lanes[end].pop_front() else { return };
        let (peer, side) = (self.nodes[from].id, side_of(end));
        self.post(to, Input::Link { peer, side, frame });
    }

    /// One end of a link is closed; the other one notices later.
    pub fn close_end(&mut self, id: u64, end: usize) {
        let Some(link) = self.network.links.get_mut(&id) else { return };
        let [opener, reached] = link.nodes;
        link.lanes[end].clear();
        if std::mem::replace(&mut link.open[end], false)
            && self.network.heard.get(&(opener, reached, end)) == Some(&id)
        {
            self.network.heard.remove(&(opener, reached, end));
            let (me, peer) = if end == 0 { (opener, reached) } else { (reached, opener) };
            let peer = self.nodes[peer].id;
            self.note(me, &[40, peer.0, end as u64], || {
                format!("link to {} down ({:?})", peer.0, side_of(end))
            });
            self.post(me, Input::LinkDown { peer, side: side_of(end) });
            if end == 1 {
                self.checks.link_cut(self.nodes[opener].conns.values(), self.time);
            }
            if end == 0 {
                self.dial_later(opener, reached);
            }
        }
        let link = self.network.links.get(&id).expect("it was just seen");
        if link.open[1 - end] {
            let (from, to) = (link.nodes[end], link.nodes[1 - end]);
            let blocked = self.network.blocked[from][to];
            let most = if blocked { 3_000_000 } else { 30_000 };
            let at = self.time + 100 + self.network.rng.below(most);
            self.schedule(at, Event::LinkEnd { link: id, end: 1 - end });
        } else {
            self.network.links.remove(&id);
        }
    }

    /// Cuts a link somewhere.
    pub fn cut_some_link(&mut self) {
        let ids: Vec<u64> = self.network.links.keys().copied().collect();
        if !ids.is_empty() {
            let id = ids[self.network.rng.index(ids.len())];
            let end = self.network.rng.index(2);
            self.close_end(id, end);
        }
    }

    fn dial_later(&mut self, from: usize, to: usize) {
        let life = self.nodes[from].life;
        let at = self.time + 20_000 + self.network.rng.below(400_000);
        self.schedule(at, Event::Dial { from, to, life });
    }

    /// A node that has just started dials all others.
    pub fn dial_all(&mut self, from: usize) {
        let life = self.nodes[from].life;
        for to in (0..self.nodes.len()).filter(|&to| to != from) {
            let at = self.time + self.network.delay();
            self.schedule(at, Event::Dial { from, to, life });
        }
    }

    /// A node reaches another one, or tries to.
    pub fn dial(&mut self, from: usize, to: usize, life: u64) {
        let dialler = &self.nodes[from];
        if dialler.life != life || !dialler.is_up() || self.network.heard.contains_key(&(from, to, 0)) {
            return;
        }
        let frozen = self.time < self.nodes[to].paused_until.max(dialler.paused_until);
        let blocked = self.network.blocked[from][to] || self.network.blocked[to][from];
        if !self.nodes[to].is_up() || frozen || blocked {
            return self.dial_later(from, to);
        }
        let id = self.network.next;
        self.network.next += 1;
        let due = self.time + self.network.delay();
        let link = Link {
            nodes: [from, to],
            open: [true, true],
            lanes: [VecDeque::new(), VecDeque::new()],
            due: [due, self.time],
            stalled: [None, None],
        };
        self.network.links.insert(id, link);
        // The reached end may still hear an older link: the newer one replaces it without a word.
        if let Some(old) = self.network.heard.insert((from, to, 1), id)
            && let Some(old) = self.network.links.get_mut(&old)
        {
            old.open[1] = false;
            old.lanes[1].clear();
        }
        let peer = self.nodes[from].id;
        self.post(to, Input::LinkUp { peer, side: Side::Reached });
        self.checks.link_cut(self.nodes[from].conns.values(), self.time);
        self.schedule(due, Event::LinkOpened { link: id, life });
    }

    /// The node that dialled hears that it is welcome.
    pub fn link_opened(&mut self, id: u64, life: u64) {
        let Some(link) = self.network.links.get(&id) else { return };
        let [from, to] = link.nodes;
        let dialler = &self.nodes[from];
        if dialler.life != life || !dialler.is_up() || link.open != [true; 2] {
            self.close_end(id, 0);
            if self.nodes[from].life == life {
                self.dial_later(from, to);
            }
            return;
        }
        self.network.heard.insert((from, to, 0), id);
        let peer = self.nodes[to].id;
        self.note(from, &[41, peer.0], || format!("link to {} up", peer.0));
        self.post(from, Input::LinkUp { peer, side: Side::Opener });
    }

    /// A node is gone, and its ends of all links with it.
    pub fn drop_links(&mut self, at: usize) {
        let ends: Vec<(u64, usize)> = self
            .network
            .links
            .iter()
            .flat_map(|(&id, link)| [0, 1].map(|end| (id, end, link.nodes[end])))
            .filter(|&(.., node)| node == at)
            .map(|(id, end, _)| (id, end))
            .collect();
        for (id, end) in ends {
            self.close_end(id, end);
        }
    }
}

fn side_of(end: usize) -> Side {
    if end == 0 { Side::Opener } else { Side::Reached }
}
