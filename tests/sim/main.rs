//! `sim`: plays seeds of the simulator and tells what was not as promised. See docs/simulation.md.
#![allow(clippy::print_stdout, reason = "this program's output is its purpose")]

use std::ops::Range;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use quorate_tests::sim::{Bug, Report, Settings, run};

/// Plays the whole cluster in one thread, with faults, and checks every promise.
#[derive(Debug, Parser)]
struct Args {
    /// The seed to play
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A range of seeds instead: A..B, without B
    #[arg(long, value_parser = range)]
    seeds: Option<Range<u64>>,
    /// Simulated seconds with faults and clients
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Nodes (the seed decides otherwise)
    #[arg(long)]
    nodes: Option<u64>,
    /// No faults but bits that flip in what is mapped.
    #[arg(long)]
    rot: bool,
    /// Without faults
    #[arg(long)]
    calm: bool,
    /// Switch a deliberate bug on
    #[arg(long, value_enum)]
    bug: Option<Bug>,
    /// Print the last so many lines of the trace
    #[arg(long, default_value_t = 0)]
    trace: usize,
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or("write it as A..B")?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| error.to_string());
    Ok(number(from)?..number(to)?)
}

fn main() -> ExitCode {
    let args = Args::parse();
    let settings = Settings {
        nodes: args.nodes,
        seconds: args.seconds,
        bug: args.bug,
        keep: args.trace,
        idle: false,
        calm: args.calm,
        rot: args.rot,
    };
    let seeds = args.seeds.clone().unwrap_or(args.seed..args.seed + 1);
    let (mut wall, mut simulated, mut operations, mut played) = (Duration::ZERO, 0, 0, 0u64);
    for seed in seeds {
        let (report, took) = timed(seed, &settings);
        wall += took;
        simulated += report.simulated;
        operations += report.operations;
        played += 1;
        println!(
            "seed {seed}: trace {:016x}, {} operations, {} cache hits, {} writes taken on, {} evictions, {} out of memory, {} simulated seconds",
            report.hash,
            report.operations,
            report.hits,
            report.absorbed,
            report.room[0],
            report.room[1],
            report.simulated / 1_000_000
        );
        report.lines.iter().for_each(|line| println!("{line}"));
        if let Some(violation) = &report.violation {
            println!("{}", story(seed, &args, violation));
            return ExitCode::FAILURE;
        }
    }
    let idle = Settings { nodes: Some(3), seconds: 60, idle: true, ..Settings::default() };
    let (report, took) = timed(1, &idle);
    println!(
        "{played} seeds, {operations} operations, all promises kept; simulated seconds per second: {:.0} under load, {:.0} idle (3 nodes, 16 partitions)",
        per_second(simulated, wall),
        per_second(report.simulated, took)
    );
    ExitCode::SUCCESS
}

#[allow(
    clippy::disallowed_methods,
    reason = "the speed of the simulator itself is measured, nothing inside it"
)]
fn timed(seed: u64, settings: &Settings) -> (Report, Duration) {
    let start = std::time::Instant::now();
    let report = run(seed, settings);
    (report, start.elapsed())
}

#[allow(clippy::cast_precision_loss, reason = "a figure for people")]
fn per_second(simulated: u64, wall: Duration) -> f64 {
    simulated as f64 / 1e6 / wall.as_secs_f64().max(1e-9)
}

fn story(seed: u64, args: &Args, violation: &quorate_tests::sim::Violation) -> String {
    let nodes = args.nodes.map(|nodes| format!(" --nodes {nodes}")).unwrap_or_default();
    let nodes = if args.calm { format!("{nodes} --calm") } else { nodes };
    let bug = args.bug.and_then(|bug| clap::ValueEnum::to_possible_value(&bug));
    let bug = bug.map(|bug| format!(" --bug {}", bug.get_name())).unwrap_or_default();
    format!(
        "seed {seed} broke a promise, \"{}\", at {:.6} simulated seconds: {}. Replay it with: cargo run --release -p quorate-tests --bin sim -- --seed {seed} --seconds {}{nodes}{bug} --trace 200",
        violation.property,
        quorate_tests::sim::trace::seconds(violation.time),
        violation.text,
        args.seconds
    )
}
