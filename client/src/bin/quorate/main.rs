//! `quorate`: the cluster from a shell.
//!
//! Charter: understands the command line and hands it to one room each: `lock` runs a program under a lock, `member`
//! changes who belongs to the cluster, `status` shows it, `snapshot` saves it, `pass` sends any other command as it stands, `repl` does so
//! line by line. What is shown goes through `show`, what goes wrong through `trouble`.
//!
//! Invariant: only what was asked for goes to standard output; everything else goes to standard error, as a sentence
//! that says what to do, and the exit code says of what kind it is (docs/operations.md).

mod args;
mod cluster;
mod lock;
mod member;
mod pass;
mod repl;
mod show;
mod snapshot;
mod status;
mod trouble;

use std::process::ExitCode;

use args::{Args, Snapshot, Verb};
use clap::Parser as _;
use cluster::Cluster;
use show::Screen;
use trouble::Trouble;

fn main() -> ExitCode {
    let args = Args::parse();
    let screen = Screen::new(args.output);
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return screen.complain(&Trouble::internal(format!("no threads can be had: {error}"))),
    };
    let mut cluster = Cluster::new(args.server);
    let result = match args.verb {
        None => repl::run(&runtime, &mut cluster, &screen),
        Some(verb) => runtime.block_on(obey(verb, &mut cluster, &screen)),
    };
    let code = result.unwrap_or_else(|trouble| screen.complain(&trouble));
    // Tasks that still wait for an answer are of no interest any more.
    runtime.shutdown_background();
    code
}

async fn obey(verb: Verb, cluster: &mut Cluster, screen: &Screen) -> Result<ExitCode, Trouble> {
    match verb {
        Verb::Status => status::status(cluster, screen).await,
        Verb::Members => status::members(cluster, screen).await,
        Verb::Member { change } => member::run(cluster, screen, &change).await,
        Verb::Snapshot { what: Some(Snapshot::Save { file }) } => {
            snapshot::save(cluster, screen, &file).await
        }
        Verb::Snapshot { what: Some(Snapshot::Restore { words }) } => Err(snapshot::restore(&words)),
        Verb::Snapshot { what } => pass::once(cluster, screen, args::snapshot_command(what)).await,
        Verb::Lock(lock) if lock.program.is_empty() => pass::once(cluster, screen, lock.as_command()?).await,
        Verb::Lock(lock) => lock::run(cluster, &lock).await,
        Verb::Other(words) => pass::once(cluster, screen, args::bytes(words)).await,
    }
}
