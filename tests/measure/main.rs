//! `measure`: figures of real clusters on this machine, for docs/benchmarks.md.
//!
//! Nothing here passes or fails but `soak`: what must hold is in the suites, with generous bounds. `QUORATE_SERVER` names
//! another server binary, to measure two builds side by side.
#![allow(clippy::print_stdout, reason = "this program's output is its purpose")]

mod failover;
mod idle;
mod load;
mod resign;
mod soak;
mod watch;

use std::process::ExitCode;

use clap::Parser;

/// What is measured.
#[derive(Debug, Parser)]
enum Args {
    /// From kill -9 of a leader to the next acknowledged write on keys that it led
    Failover {
        /// How often
        #[arg(long, default_value_t = 30)]
        rounds: usize,
        /// SIGSTOP instead of kill -9
        #[arg(long)]
        freeze: bool,
    },
    /// What clients of the other nodes see when a leader is told to stop (SIGTERM)
    Resign {
        /// How often
        #[arg(long, default_value_t = 10)]
        rounds: usize,
    },
    /// Changes of term under full load
    Load {
        /// How long
        #[arg(long, default_value_t = 120)]
        seconds: u64,
    },
    /// CPU and wake-ups of three nodes that do nothing
    Idle {
        /// How long
        #[arg(long, default_value_t = 30)]
        seconds: u64,
    },
    /// Random faults under load, and an audit of all that was acknowledged
    Soak(soak::Flags),
}

fn main() -> ExitCode {
    match Args::parse() {
        Args::Failover { rounds, freeze } => failover::measure(rounds, freeze),
        Args::Resign { rounds } => resign::measure(rounds),
        Args::Load { seconds } => load::measure(seconds),
        Args::Idle { seconds } => idle::measure(seconds),
        Args::Soak(flags) => return soak::run(&flags),
    }
    ExitCode::SUCCESS
}

/// A line of a report: how many, the quantiles and the largest.
fn report(what: &str, mut values: Vec<u64>) {
    values.sort_unstable();
    let at = |part: usize| values.get((values.len() * part / 100).min(values.len().saturating_sub(1)));
    let show = |value: Option<&u64>| value.map_or_else(|| "-".to_owned(), u64::to_string);
    println!(
        "{what}: n {}, median {}, p90 {}, max {}",
        values.len(),
        show(at(50)),
        show(at(90)),
        show(values.last())
    );
}
