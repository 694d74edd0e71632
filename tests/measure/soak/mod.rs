//! A soak: real processes under load, one seeded fault after the other, and an audit of everything that was acknowledged.
//!
//! Charter: starts the cluster and the load, deals the faults, brings all to rest, audits, and says what came of it. It
//! ends with exit code 1, the seed, and the directories and logs of the nodes in their place, when a promise was broken.
//!
//! Subtlety: the plan of the faults follows from the seed, what comes of it does not: real clocks, disks and schedulers
//! are no part of it. To play a run again, bit by bit, is what the simulator is for.

mod counters;
mod faults;
mod health;
mod homes;
mod ledger;
mod locks;
mod probe;
mod queues;
mod registers;
mod rest;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use quorate_tests::netns::Network;
use quorate_tests::process::{Cluster, Place, millis};
use quorate_tests::sim::rng::Rng;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use counters::Counters;
use faults::{Kind, World};
use homes::Homes;
use ledger::Ledger;
use locks::Locks;
use queues::Queues;
use registers::Registers;

/// What a soak takes.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// How long faults and load go on
    #[arg(long, default_value_t = 20.0)]
    minutes: f64,
    /// Which faults, and in which order
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Nodes that found the cluster; one more comes and goes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=7))]
    nodes: u8,
    /// Whether there are faults
    #[arg(long, value_enum, default_value = "all")]
    faults: Faults,
    /// These faults only, by name
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Kind>,
    /// Pretend that something was acknowledged that was never sent: the audit must see it
    #[arg(long, value_enum)]
    lie: Option<Lie>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Faults {
    All,
    None,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Lie {
    Register,
    Counter,
    Token,
    Message,
}

/// Everything that works, and its accounts.
#[derive(Debug)]
struct Load {
    registers: Arc<Registers>,
    counters: Arc<Counters>,
    locks: Arc<Locks>,
    queues: Arc<Queues>,
    tasks: Vec<JoinHandle<()>>,
    threads: Vec<std::thread::JoinHandle<()>>,
    lie: Option<Lie>,
}

impl Load {
    /// The lie, once nobody writes any more and before the audit. That of a token is told at the start: tokens are judged
    /// as they come.
    fn lie(&self) {
        match self.lie {
            Some(Lie::Register) => self.registers.lie(),
            Some(Lie::Counter) => self.counters.lie(),
            Some(Lie::Message) => self.queues.lie(),
            Some(Lie::Token) | None => {}
        }
    }

    fn start(runtime: &Runtime, world: &World, queues: Arc<Queues>, flags: &Flags) -> Self {
        let mut this = Self {
            registers: Arc::new(Registers::new()),
            counters: Arc::new(Counters::new()),
            locks: Arc::default(),
            queues,
            tasks: Vec::new(),
            threads: Vec::new(),
            lie: flags.lie,
        };
        if let Some(Lie::Token) = flags.lie {
            this.locks.lie();
        }
        let (homes, ledger) = (&world.homes, &world.ledger);
        let mut part = 1000;
        let mut rng = || {
            part += 1;
            Rng::new(flags.seed, part)
        };
        let tasks = &mut this.tasks;
        tasks.push(runtime.spawn(Arc::clone(homes).renew(Arc::clone(ledger))));
        for at in 0..this.registers.len() {
            let (homes, ledger) = (Arc::clone(homes), Arc::clone(ledger));
            tasks.push(runtime.spawn(Arc::clone(&this.registers).write(at, homes, ledger, rng())));
        }
        for id in 1..=world.guest {
            let address = world.cluster.address(id).to_string();
            let reader = Arc::clone(&this.registers).read(address.clone(), Arc::clone(ledger), rng());
            tasks.push(runtime.spawn(reader));
            let digests = health::compare_digests(id as u64, address.clone(), Arc::clone(ledger));
            tasks.push(runtime.spawn(digests));
            if id < world.guest {
                tasks.push(runtime.spawn(probe::probe(id, address, Arc::clone(ledger), rng())));
            }
        }
        for worker in 0..9 {
            let (homes, ledger) = (Arc::clone(homes), Arc::clone(ledger));
            tasks.push(runtime.spawn(Arc::clone(&this.locks).take(worker, homes, ledger, rng())));
            let (homes, ledger) = (Arc::clone(&world.homes), Arc::clone(&world.ledger));
            tasks.push(runtime.spawn(Arc::clone(&this.counters).add(worker, homes, ledger, rng())));
        }
        for at in 0..this.queues.len() {
            let (homes, ledger) = (Arc::clone(homes), Arc::clone(ledger));
            tasks.push(runtime.spawn(Arc::clone(&this.queues).publish(at, homes, ledger, rng())));
            for (home, is_dead) in [(at, false), (at + 1, false), (at + 2, true)] {
                let (homes, ledger) = (Arc::clone(&world.homes), Arc::clone(&world.ledger));
                let consumer = Arc::clone(&this.queues).consume(at, is_dead, home, homes, ledger, rng());
                tasks.push(runtime.spawn(consumer));
            }
        }
        let nodes: Vec<_> = (1..world.guest).map(|id| world.cluster.address(id)).collect();
        for nth in 0..3 {
            let (counters, ledger) = (Arc::clone(&this.counters), Arc::clone(ledger));
            let (nodes, rng) = (nodes.clone(), rng());
            let work = move || counters.add_plainly(nth, &nodes, &ledger, rng);
            this.threads.push(std::thread::spawn(work));
        }
        this
    }
}

/// What came of the faults of a kind.
#[derive(Debug, Default)]
struct Toll {
    times: u64,
    without_service: Vec<u64>,
    whole_after: Vec<u64>,
}

/// Runs a soak.
pub(crate) fn run(flags: &Flags) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let (network, places) = network(flags.nodes + 1);
    let (guests, founders) = places.split_last().expect("there are some");
    let mut cluster = Cluster::start_at(founders.to_vec());
    let guest = cluster.plan_node_at(guests.clone());
    let addresses = (1..=guest).map(|id| cluster.address(id).to_string()).collect();
    let ledger = Arc::new(Ledger::new());
    let queues = Arc::new(Queues::new());
    let homes = runtime.block_on(async {
        let homes = Homes::connect(addresses, usize::from(flags.nodes)).await?;
        queues.prepare(&homes.at(0)).await?;
        Ok::<_, quorate_client::Error>(Arc::new(homes))
    });
    let homes = homes.expect("a new cluster serves");
    let handle = runtime.handle().clone();
    let mut world = World::new(cluster, network, handle, homes, ledger, flags.seed);
    if !flags.only.is_empty() {
        world.kinds.clone_from(&flags.only);
    }
    println!("seed {}, {} minutes, {} nodes", flags.seed, flags.minutes, flags.nodes);
    let load = Load::start(&runtime, &world, queues, flags);
    let mut tolls = BTreeMap::new();
    guarded(&mut world, |world| {
        world.recover();
        strike_all(world, flags, &mut tolls);
    });
    let left = guarded(&mut world, |world| rest::bring(world, load)).unwrap_or_default();
    summary(&world, &tolls, &left);
    verdict(&mut world, flags.seed)
}

/// A network in namespaces, if there can be one, and places for so many nodes.
fn network(nodes: u8) -> (Option<Network>, Vec<Place>) {
    match Network::new(nodes) {
        Ok(network) => {
            let places = network.places();
            (Some(network), places)
        }
        Err(why) => {
            println!("SKIPPED: {why}: the network is not cut");
            (None, vec![Place::here(); usize::from(nodes)])
        }
    }
}

/// Does something with the cluster; that it fails is a violation too: what it waited for has not come.
fn guarded<T>(world: &mut World, what: impl FnOnce(&mut World) -> T) -> Option<T> {
    let ledger = Arc::clone(&world.ledger);
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| what(world)));
    let failed = |panic: Box<dyn std::any::Any + Send>| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        ledger.violated(&text.unwrap_or_else(|| "it failed".to_owned()));
    };
    done.map_err(failed).ok()
}

/// One fault after the other until the time is over or a promise is broken.
fn strike_all(world: &mut World, flags: &Flags, tolls: &mut BTreeMap<Kind, Toll>) {
    let end = Duration::from_secs_f64(flags.minutes.max(0.0) * 60.0).as_millis();
    let ledger = Arc::clone(&world.ledger);
    while u128::from(ledger.elapsed()) < end && ledger.is_clean() {
        ledger.open_window();
        if flags.faults == Faults::None {
            std::thread::park_timeout(Duration::from_millis(500));
            continue;
        }
        let Some(kind) = world.deal() else {
            println!("SKIPPED: none of the faults of --only is possible here");
            return;
        };
        let begun = ledger.clock();
        let what = world.strike(kind);
        let struck = millis();
        let whole = world.recover();
        let toll = tolls.entry(kind).or_default();
        let (silence, after) = (ledger.without_service(), millis() - struck);
        toll.times += 1;
        toll.without_service.push(silence);
        if whole {
            toll.whole_after.push(after);
        }
        println!("{begun}: {what}; {silence} ms without service in some group, whole after {after} ms");
        // A while of peace.
        let peace = Duration::from_millis(world.rng.between(500..2500));
        std::thread::park_timeout(peace);
    }
    if flags.faults == Faults::None {
        println!("the longest time without service in some group: {} ms", ledger.without_service());
    }
}

fn summary(world: &World, tolls: &BTreeMap<Kind, Toll>, left: &[String]) {
    let all: Vec<String> = world.ledger.done().iter().map(|(what, n)| format!("{what:?} {n}")).collect();
    println!("\nacknowledged: {}", all.join(", "));
    println!("{}", world.ledger.not_done());
    let faults: u64 = tolls.values().map(|toll| toll.times).sum();
    println!("{faults} faults in {}:", world.ledger.clock());
    for (kind, toll) in tolls {
        let row = |values: &[u64]| {
            let mut values = values.to_vec();
            values.sort_unstable();
            let show = |at: usize| values.get(at).map_or_else(|| "-".to_owned(), u64::to_string);
            format!("median {}, longest {}", show(values.len() / 2), show(values.len().saturating_sub(1)))
        };
        println!(
            "  {kind:?}: {} times; ms without service: {}; ms until whole: {}",
            toll.times,
            row(&toll.without_service),
            row(&toll.whole_after)
        );
    }
    left.iter().for_each(|line| println!("{line}"));
}

fn verdict(world: &mut World, seed: u64) -> ExitCode {
    let (wrong, kept) = world.ledger.violations();
    if wrong == 0 {
        println!("the audit is content");
        return ExitCode::SUCCESS;
    }
    println!("{wrong} VIOLATIONS, seed {seed}; the first of them:");
    kept.iter().for_each(|line| println!("  {line}"));
    println!("directories and logs are kept in {}", world.cluster.keep().display());
    ExitCode::FAILURE
}
