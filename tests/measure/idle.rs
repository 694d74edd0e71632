//! What three nodes cost that do nothing: CPU, and how often their threads are woken.

use std::fs;
use std::time::Duration;

use quorate_tests::process::Cluster;

use crate::watch::settle;

/// Hundredths of a second of CPU, user and system.
fn cpu(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    fields[11..13].iter().map(|field| field.parse::<u64>().expect("a number")).sum()
}

/// Of each thread: its name, and how often it went to sleep.
fn sleeps(pid: u32) -> Vec<(String, u64)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    tasks
        .filter_map(|task| {
            let status = fs::read_to_string(task.ok()?.path().join("status")).ok()?;
            let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            Some((field("Name:")?.to_owned(), field("voluntary_ctxt_switches:")?.parse().ok()?))
        })
        .collect()
}

pub(crate) fn measure(seconds: u64) {
    let cluster = Cluster::start(3);
    settle(&cluster);
    let pids: Vec<u32> = (1..=3).map(|id| cluster.pid(id)).collect();
    let before: Vec<_> = pids.iter().map(|pid| (cpu(*pid), sleeps(*pid))).collect();
    std::thread::park_timeout(Duration::from_secs(seconds));
    let mut total = 0;
    for (pid, (cpu_before, sleeps_before)) in pids.iter().zip(before) {
        let used = cpu(*pid) - cpu_before;
        total += used;
        let of = |all: &[(String, u64)], engine: bool| -> u64 {
            all.iter().filter(|(name, _)| (name == "engine") == engine).map(|(_, n)| n).sum()
        };
        let after = sleeps(*pid);
        let per_second = |engine| (of(&after, engine) - of(&sleeps_before, engine)) / seconds;
        println!(
            "process {pid}: {} ms of CPU per second; woken per second: engine {}, others {}",
            used * 10 / seconds,
            per_second(true),
            per_second(false)
        );
    }
    println!("together: {} ms of CPU per second", total * 10 / seconds);
}
