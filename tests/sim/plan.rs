//! What a seed decides before the world begins: how many nodes, which faults, how many clients.
//!
//! Not every run has every fault: one that only pauses nodes goes deeper into what pauses do than one that
//! mixes everything. (Groce et al., "Swarm testing", ISSTA 2012.)

use quorate_engine::engine::Config;
use quorate_engine::journal::{Meta, Options};
use quorate_engine::ring::Ring;
use quorate_protocol::id::{Boot, ClusterId, GroupId, Identity, NodeId};

use super::bugs::Bug;
use super::rng::Rng;
use super::workload::Profile;

/// What a run is asked to be.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Nodes; the seed decides if there is none.
    pub nodes: Option<u64>,
    /// Simulated seconds with faults and clients; what follows until everything has come to rest is not counted.
    pub seconds: u64,
    /// A deliberate bug.
    pub bug: Option<Bug>,
    /// No faults.
    pub calm: bool,
    /// No faults but bits that flip in what is mapped.
    pub rot: bool,
    /// Lines of the trace to keep.
    pub keep: usize,
    /// No clients and no faults: for measuring.
    pub idle: bool,
}

/// Which faults happen, and what the cluster is like.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// Nodes.
    pub nodes: u64,
    /// Partitions.
    pub partitions: u16,
    /// When faults and clients end, in microseconds.
    pub end: u64,
    /// Mean pause between two faults, in microseconds; 0: no faults.
    pub fault_every: u64,
    /// Nodes are killed or switched off.
    pub crashes: bool,
    /// Bits flip on the disk of a node that is off.
    pub flips: bool,
    /// Nodes freeze.
    pub pauses: bool,
    /// Directions between nodes are blocked.
    pub partitioned: bool,
    /// Links are cut.
    pub cuts: bool,
    /// Raft frames are lost, doubled and late.
    pub lossy: bool,
    /// Disks are slow for a while.
    pub slow_disks: bool,
    /// Client connections end for no reason.
    pub disconnects: bool,
    /// Nodes that may join.
    pub spares: u64,
    /// Nodes join, leave, and drain.
    pub membership: bool,
    /// A node loses its disk.
    pub wipes: bool,
    /// Disks are full for a while.
    pub full_disks: bool,
    /// Nodes are stopped as an operator does it.
    pub stops: bool,
    /// Bits flip in mapped snapshots of a node that runs,
    pub rots: bool,
    /// and nearly nothing else happens.
    pub rots_much: bool,
    /// Snapshots are asked for.
    pub saves: bool,
    /// When a backup is begun from which another cluster is restored.
    pub backup: Option<u64>,
    /// Clients.
    pub clients: usize,
    /// Clients of keys that are written back, besides.
    pub backs: usize,
    /// Who holds a lock writes under its token.
    pub fenced: bool,
    /// How long partitions compare tokens at the least, in milliseconds, so that watches end at all.
    short_watches: Option<u64>,
    /// What all of them are for, if it is one thing.
    pub only: Option<Profile>,
    /// Requests that a client lets wait at the most.
    pub pipeline: usize,
    /// Bytes of the lines that a node keeps.
    pub cache_memory: usize,
    /// Bytes that the keys of a partition may take, so that they are refused; none: more than there will be.
    pub store_max: Option<u64>,
    /// Keys make room for others instead.
    pub store_evicts: bool,
    /// Bytes of a journal segment.
    segment: u64,
    /// Bytes of log before a snapshot is taken.
    log_floor: u64,
    /// Message bodies from this size on are taken from mapped snapshots.
    map_from: usize,
    /// Commands in flight above which a group says `-BUSY`, so that refusals happen at all.
    small_in_flight: Option<usize>,
    /// The deliberate bug that is to be seen.
    pub bug: Option<Bug>,
}

impl Plan {
    /// What the seed decides.
    #[must_use]
    pub fn new(seed: u64, settings: &Settings) -> Self {
        let mut rng = Rng::new(seed, 1);
        let bug = settings.bug;
        let nodes = rng.pick(&[3, 3, 3, 3, 3, 3, 3, 1, 5, 3]);
        let nodes = settings.nodes.unwrap_or(if bug.is_some() { 3 } else { nodes });
        let partitions = rng.pick(&[1, 2, 4, 4, 4, 16]);
        let fault_every = rng.pick(&[150_000, 400_000, 1_000_000, 1_000_000, 3_000_000]);
        let mut plan = Self {
            seed,
            nodes,
            partitions: if settings.idle { 16 } else { partitions },
            end: settings.seconds * 1_000_000,
            fault_every: if settings.idle { 0 } else { fault_every },
            crashes: rng.chance(700),
            flips: rng.chance(300),
            pauses: rng.chance(400),
            partitioned: rng.chance(500) && nodes > 1,
            cuts: rng.chance(400),
            lossy: rng.chance(500),
            slow_disks: rng.chance(300),
            disconnects: rng.chance(600),
            spares: 0,
            membership: false,
            wipes: false,
            full_disks: false,
            stops: false,
            rots: false,
            rots_much: false,
            saves: false,
            backup: None,
            clients: if settings.idle { 0 } else { rng.index(10) + 4 },
            backs: 0,
            fenced: false,
            short_watches: None,
            only: None,
            pipeline: rng.pick(&[1, 2, 4, 8]),
            cache_memory: rng.pick(&[0, 64 * 400, 1 << 20, 1 << 20]),
            store_max: None,
            store_evicts: false,
            segment: rng.pick(&[16 << 10, 64 << 10, 256 << 10]),
            log_floor: 64 << 20,
            map_from: 0,
            small_in_flight: rng.chance(300).then(|| rng.index(10) + 1),
            bug,
        };
        if !settings.idle {
            plan.live_long(&mut rng);
        }
        // Chance of its own: what was seen of other bugs under a seed is seen again.
        let mut rng = Rng::new(seed, 7);
        if !settings.idle && bug.is_none() && rng.chance(600) {
            plan.backs = 1 + rng.index(5);
        }
        if !settings.idle && bug.is_none() && rng.chance(600) {
            plan.fenced = true;
            plan.short_watches = rng.chance(600).then(|| rng.between(100..3000));
        }
        plan.map(&mut Rng::new(seed, 8), settings.idle);
        let mut rng = Rng::new(seed, 9);
        if !settings.idle && bug.is_none() && rng.chance(500) {
            plan.backup = Some(rng.between(plan.end / 5..plan.end));
        }
        if settings.calm {
            plan.calm_down();
        }
        if settings.rot {
            plan.rot_much();
        }
        if let Some(bug) = bug {
            bug.provoke(&mut plan);
        }
        plan
    }

    /// Which messages lie in mapped snapshots, and whether bits flip there.
    fn map(&mut self, rng: &mut Rng, idle: bool) {
        self.rots = !idle && self.nodes > 2 && rng.chance(400);
        self.map_from = rng.pick(&[0, 0, 4, 1000]);
    }

    /// What a cluster goes through in a longer life.
    fn live_long(&mut self, rng: &mut Rng) {
        self.log_floor = rng.pick(&[8 << 10, 32 << 10, 200 << 10, 64 << 20]);
        let several = self.nodes >= 3;
        self.membership = several && rng.chance(350);
        self.spares = if self.membership { rng.between(1..3) } else { 0 };
        self.wipes = several && rng.chance(250);
        self.full_disks = rng.chance(250);
        self.stops = rng.chance(300);
        self.saves = rng.chance(400);
        self.store_max = rng.chance(350).then(|| rng.between(300..2000));
        self.store_evicts = rng.chance(500);
    }

    /// Letters cross between partitions all the time, while a backup is made that nothing disturbs.
    pub fn back_up_letters(&mut self) {
        self.only = Some(Profile::Queues);
        (self.nodes, self.clients, self.partitions) = (6, 14, 4);
        self.calm_down();
        (self.backs, self.saves) = (0, false);
        self.backup = Some(self.end / 2);
    }

    /// That of a cluster that begins with a backup of this one: nothing fails, and nobody asks but the auditor.
    #[must_use]
    pub fn of_another_cluster(&self) -> Self {
        let mut plan = Self { seed: self.seed ^ (1 << 63), ..self.clone() };
        plan.calm_down();
        (plan.clients, plan.backs, plan.saves, plan.backup) = (0, 0, false, None);
        (plan.store_max, plan.small_in_flight) = (None, None);
        plan
    }

    /// Machines go off, snapshots are taken often, and, if it is asked for, bits flip.
    pub fn lose_much(&mut self, flips: bool) {
        self.crashes = true;
        self.flips = flips;
        self.wipes = false;
        self.fault_every = self.fault_every.min(300_000);
        self.log_floor = 8 << 10;
    }

    /// Bits flip in what is mapped of the queues, and that is all that happens.
    pub fn rot_much(&mut self) {
        self.only = Some(Profile::Queues);
        (self.clients, self.partitions) = (8, 1);
        (self.membership, self.spares, self.wipes, self.flips) = (false, 0, false, false);
        (self.rots, self.rots_much) = (true, true);
        (self.crashes, self.pauses, self.stops, self.full_disks) = (false, false, false, false);
        (self.partitioned, self.cuts, self.lossy, self.disconnects) = (false, false, false, false);
        self.fault_every = 60_000;
        self.log_floor = 2 << 10;
        self.map_from = 0;
    }

    /// Members come and go all the time.
    pub fn change_much(&mut self) {
        self.membership = true;
        self.crashes = true;
        self.spares = 2;
        self.wipes = false;
        self.fault_every = self.fault_every.min(1_000_000);
        self.log_floor = 8 << 10;
    }

    /// Nothing fails, and nobody comes or goes; some keys are written back.
    pub fn calm_down(&mut self) {
        self.fault_every = 0;
        (self.membership, self.spares) = (false, 0);
        self.backs = 5;
    }

    /// Whether nothing fails.
    #[must_use]
    pub fn is_calm(&self) -> bool {
        self.fault_every == 0 && !self.membership
    }

    /// Few keys that are written back, by clients on all nodes.
    pub fn write_back_much(&mut self) {
        self.backs = 6;
        self.clients = 4;
        self.partitions = 1;
        self.cache_memory = 1 << 20;
    }

    /// Few locks, wanted by all, under which much is written.
    pub fn fence_much(&mut self) {
        self.fenced = true;
        self.only = Some(Profile::Locks);
        self.clients = 16;
        self.pipeline = 4;
        self.partitions = 2;
    }

    /// Few keys, read everywhere and all the time.
    pub fn read_much(&mut self) {
        self.only = Some(Profile::Readers);
        self.clients = 12;
        self.pipeline = 1;
        self.partitions = 1;
        self.cache_memory = 1 << 20;
    }

    /// Refusals are to happen.
    pub fn refuse_above(&mut self, in_flight: usize) {
        self.small_in_flight = Some(in_flight);
    }

    /// How nodes read their directories.
    #[must_use]
    pub fn journal_options(&self) -> Options {
        let mut options = Options::new(self.segment);
        if let Some(bug) = self.bug {
            bug.put_into_journal(&mut options);
        }
        options
    }

    /// How a node's engine is set up.
    #[must_use]
    pub fn config(&self, node: NodeId) -> Config {
        let mut config = Config::new(self.seed, format!("client-{}", node.0));
        config.log_floor = self.log_floor;
        config.map_from = self.map_from;
        if let Some(max) = self.store_max {
            config.store_memory = max * u64::from(self.partitions);
        }
        config.store_evicts = self.store_evicts;
        config.faults.small_in_flight = self.small_in_flight;
        config.faults.locks.short_watches = self.short_watches;
        if let Some(bug) = self.bug {
            bug.put_into_engine(&mut config.faults);
        }
        config
    }

    /// What a node's empty directory, its first or a later one, is founded as.
    #[must_use]
    pub fn meta(&self, node: NodeId, directory: u64) -> Meta {
        Meta {
            cluster: ClusterId(self.seed),
            node,
            identity: Identity(u128::from(self.seed) << 64 | u128::from(directory << 16 | node.0)),
            boot: Boot(0),
            partitions: self.partitions,
            founders: (1..=self.nodes).map(|id| (NodeId(id), format!("peer-{id}"))).collect(),
        }
    }

    /// The nodes that hold each group, as places in the world.
    pub fn voters(&self) -> impl Iterator<Item = (GroupId, Vec<usize>)> {
        let ring = Ring::new((1..=self.nodes).map(NodeId));
        (0..=self.partitions).map(GroupId).map(move |group| {
            let place = |node: NodeId| usize::try_from(node.0 - 1).expect("few nodes");
            (group, ring.voters(group).into_iter().map(place).collect())
        })
    }
}
