//! How long a start takes on a journal of 1 GiB that the system has in memory: `cargo bench -p quorate-server --bench start`.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quorate_engine::journal::{Entry, Hard, Persist, Row, Standing};
use quorate_protocol::id::{ClusterId, GroupId, NodeId};
use quorate_server::clock;
use quorate_server::journal::{DataDir, Founding, Listener, SyncThread};

/// Bytes of entries in the journal.
const JOURNAL: usize = 1 << 30;

/// The last batch that is durable.
#[derive(Clone, Default)]
struct Ears(Arc<AtomicU64>);

impl Listener for Ears {
    fn durable(&self, seq: u64) {
        self.0.store(seq, Ordering::Relaxed);
    }
    fn background_done(&self, _: u64) {}
    fn mapped(&self, _: GroupId, _: u64, _: Option<bytes::Bytes>) {}
    fn room(&self, _: bool) {}
    fn failed(&self, why: String) {
        panic!("{why}");
    }
}

/// CPU time of the thread in microseconds: what others do on the machine does not count in it.
fn cpu() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_nsec.unsigned_abs() / 1000
}

fn founding() -> Founding {
    let founders = vec![(NodeId(1), "a:1".to_owned())];
    Founding { cluster: ClusterId(9), node: NodeId(1), partitions: 16, founders, life: 0 }
}

/// Writes entries of this size, in commits of a MiB.
fn fill(path: &Path, size: usize) {
    let (dir, _, journal) = DataDir::open(path, &founding()).expect("an empty directory");
    let ears = Ears::default();
    let thread = SyncThread::start(dir, journal, ears.clone());
    let groups = (0..=16).map(GroupId);
    let hard = Hard { term: 1, ..Hard::default() };
    let row = Row { hard, standing: Standing::Whole, ..Row::default() };
    let rows = groups.map(|group| (group, row.clone())).collect();
    thread.submit(Persist { seq: 1, rows, entries: Vec::new() });
    let each = (1 << 20) / size;
    for (seq, first) in (2..).zip((0..JOURNAL / size).step_by(each)) {
        let entry = |at: usize| Entry {
            group: GroupId(u16::try_from(at % 17).expect("it is small")),
            term: 1,
            index: (at / 17 + 1) as u64,
            kind: 0,
            data: vec![u8::try_from(at % 251).expect("it is small"); size].into(),
        };
        while ears.0.load(Ordering::Relaxed) + 32 < seq {
            std::thread::yield_now();
        }
        thread.submit(Persist { seq, rows: Vec::new(), entries: (first..first + each).map(entry).collect() });
    }
    thread.close();
}

fn main() {
    let path = std::env::temp_dir().join(format!("quorate-start-{}", std::process::id()));
    for size in [128, 1 << 10, 64 << 10] {
        fill(&path, size);
        // The first one brings the files into memory.
        for run in 0..4 {
            let (begin, cpu) = (clock::now().mono, cpu());
            let (_, recovered, _) = DataDir::open(&path, &founding()).expect("it was just written");
            let (took, cpu) = (clock::now().mono - begin, self::cpu() - cpu);
            let entries: usize = recovered.entries.values().map(Vec::len).sum();
            assert_eq!(entries, JOURNAL / size);
            let _ = writeln!(
                std::io::stdout(),
                "start {run} on 1 GiB in {entries} entries of {size} bytes: {} ms, CPU {} ms",
                took / 1000,
                cpu / 1000
            );
        }
        std::fs::remove_dir_all(&path).expect("it is ours");
    }
}
