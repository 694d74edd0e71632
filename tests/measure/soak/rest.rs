//! The end of a soak: no more faults, no more load, topics emptied, everything audited, every node stopped and its
//! directory checked.
//!
//! Invariant: each step is bounded; what has not come by then is a violation, and the next steps are taken all the same,
//! since each of them is evidence.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use quorate_client::Client;
use quorate_tests::damages::{files, segments};
use quorate_tests::process::{binary, millis, run};

use super::Load;
use super::faults::World;
use super::health::{Nodes, difference};
use super::ledger::Ledger;

/// How long each step may take, in milliseconds; far above what it takes.
const STEP: u64 = 90_000;
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// Brings everything to rest; figures of the end, one a line.
pub(super) fn bring(world: &mut World, load: Load) -> Vec<String> {
    world.recover();
    let (ledger, handle) = (Arc::clone(&world.ledger), world.handle.clone());
    let mut figures = Vec::new();
    let start = millis();
    handle.block_on(quiet(world, load, &mut figures));
    figures.push(format!("audited {} ms after the load was stopped", millis() - start));
    let start = millis();
    let nodes = world.nodes();
    match handle.block_on(equal(&nodes, &ledger)) {
        None => figures.push(format!("all replicas are equal; that was waited for {} ms", millis() - start)),
        Some(why) => ledger.violated(&format!("replicas differ after {STEP} ms: {why}")),
    }
    for id in world.members.clone() {
        let data = world.cluster.data_dir(id);
        let (segments, snapshots) = (segments(&data).len(), files(&data.join("snapshots"), ".snap").len());
        let memory = memory(world.cluster.pid(id));
        figures.push(format!("node {id}: {memory}, {segments} segments, {snapshots} snapshots"));
    }
    stop(world, &mut figures);
    figures
}

/// Stops the load, empties the topics, and audits all accounts.
async fn quiet(world: &World, mut load: Load, figures: &mut Vec<String>) {
    let ledger = &world.ledger;
    let nodes: Nodes = world.nodes();
    ledger.drain();
    let client = match Client::connect(nodes.values().cloned()).await {
        Ok(client) => client,
        Err(error) => {
            ledger.violated(&format!("nobody serves in the end: {error}"));
            ledger.end();
            return;
        }
    };
    if let Some(rest) = gone(async || load.queues.rest(&client).await).await {
        ledger.violated(&format!("topics are not empty after {STEP} ms: {rest}"));
    }
    ledger.end();
    if let Some(rest) = gone(async || still_running(&load)).await {
        ledger.violated(&rest);
    }
    ended_well(&mut load, ledger).await;
    if let Some(rest) = gone(async || load.queues.rest(&client).await).await {
        ledger.violated(&format!("topics are not empty in the end: {rest}"));
    }
    if let Some(rest) = gone(async || load.locks.held(&client).await).await {
        ledger.violated(&format!("locks are held in the end: {rest}"));
    }
    load.lie();
    load.registers.audit(&client, ledger).await;
    load.counters.audit(&client, ledger).await;
    load.queues.audit(ledger);
    figures.push(format!("{} registers, {} topics audited", load.registers.len(), load.queues.len()));
}

/// Waits until there is nothing left of something; what is left when it takes too long.
async fn gone(look: impl AsyncFn() -> Option<String>) -> Option<String> {
    let start = millis();
    loop {
        let rest = look().await?;
        if millis() > start + STEP {
            return Some(rest);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn still_running(load: &Load) -> Option<String> {
    let tasks = load.tasks.iter().filter(|task| !task.is_finished()).count();
    let threads = load.threads.iter().filter(|thread| !thread.is_finished()).count();
    (tasks + threads > 0).then(|| format!("{tasks} tasks and {threads} plain clients wait for an answer"))
}

/// Of the load, what has ended has not failed.
async fn ended_well(load: &mut Load, ledger: &Ledger) {
    for task in load.tasks.extract_if(.., |task| task.is_finished()) {
        if let Err(error) = task.await {
            ledger.violated(&format!("a client failed: {error}"));
        }
    }
    for thread in load.threads.extract_if(.., |thread| thread.is_finished()) {
        if thread.join().is_err() {
            ledger.violated("a plain client failed");
        }
    }
}

async fn equal(nodes: &Nodes, ledger: &Ledger) -> Option<String> {
    gone(async || difference(nodes, ledger).await).await
}

/// What a process takes, in words.
fn memory(pid: u32) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).map_or("?", str::trim);
    format!("{resident} resident")
}

/// Stops all nodes; each ends well, has never stopped by itself, and leaves a sound directory.
fn stop(world: &mut World, figures: &mut Vec<String>) {
    let ledger = Arc::clone(&world.ledger);
    for id in world.members.clone() {
        let code = world.cluster.stop(id);
        if code != Some(0) {
            ledger.violated(&format!("node {id} was told to stop in the end and ended with {code:?}"));
        }
    }
    for id in 1..=world.cluster.size() {
        let log = world.cluster.log(id);
        if let Some(line) = log.lines().find(|line| line.contains("this node stops")) {
            ledger.violated(&format!("node {id} has stopped by itself: {line}"));
        }
    }
    for id in world.members.clone() {
        let data = world.cluster.data_dir(id);
        let checked = run(Command::new(binary()).arg("check").arg(&data), "");
        if checked.code != Some(0) {
            let (out, err) = (checked.out, checked.err);
            ledger.violated(&format!("the directory of node {id} is not sound: {out} {err}"));
        }
    }
    figures.push("every node ended with 0 and its directory was checked".to_owned());
}
