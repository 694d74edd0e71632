//! `/metrics`: what a node counts of itself, in the text format that Prometheus reads.
//!
//! Charter: gathered when somebody asks, from what is counted anyway. Names, help and kinds stand in one list here;
//! docs/operations.md shows it.
//!
//! Invariant: asking takes no lock that the work between two looks waits for, other than for the time of an addition.

use core::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::answers::Desk;
use crate::driver::Shared;

/// What the text is.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A figure: what is before its name, what it says, and the figure itself, or one for each value of a label.
enum Figure {
    /// It rises.
    Counter(u64),
    /// It rises and falls.
    Gauge(u64),
    /// The same, for each value of a label.
    Gauges(&'static str, Vec<(&'static str, u64)>),
}

/// A figure's name, its help, and itself.
type Named = (&'static str, &'static str, Figure);

fn of_clients(shared: &Shared, desk: &Desk) -> Vec<Named> {
    use Figure::{Counter, Gauge};
    let memory = shared.client_memory.figures();
    vec![
        ("connections", "Clients that are connected", Gauge(desk.len() as u64)),
        (
            "client_bytes",
            "Bytes that clients' connections hold beyond what each may always hold",
            Gauge(memory.bytes as u64),
        ),
        ("client_max_bytes", "Bytes that they may hold (client-max-memory)", Gauge(memory.max as u64)),
        (
            "client_refused",
            "Requests and answers of clients that found no room there",
            Counter(memory.refused),
        ),
        (
            "client_cut",
            "Connections of clients cut because others needed what they held",
            Counter(memory.cut),
        ),
    ]
}

/// Everything there is to tell, as it is now.
fn figures(shared: &Shared, desk: &Desk) -> Vec<Named> {
    use Figure::{Counter, Gauge, Gauges};
    let (counts, cache) = (*shared.counts.lock(), shared.view.counts());
    let size = |n: usize| n as u64;
    let [modified, exclusive, in_shared] = counts.lines.map(size);
    let [filled, waiting] = counts.fills.map(size);
    let states = vec![("M", modified), ("E", exclusive), ("S", in_shared)];
    let commits = shared.commits.load(Ordering::Relaxed);
    let of_engine = vec![
        ("requests", "Requests of clients that came to the engine; cache hits do not", Counter(counts.asked)),
        (
            "refused_busy",
            "Requests refused with -BUSY at the bounds of partitions led here",
            Counter(counts.refused_busy),
        ),
        ("replicas", "Groups of which this node holds a replica", Gauge(size(counts.replicas))),
        ("leader_groups", "Groups that this node leads", Gauge(size(counts.leads))),
        ("elections_won", "How often this node began to lead a group", Counter(counts.led)),
        (
            "applied_entries",
            "Log entries that its replicas have applied, by the indexes of all",
            Gauge(counts.applied),
        ),
        ("log_bytes", "Bytes of log in memory", Gauge(size(counts.log_bytes))),
        ("journal_commits", "Commits on stable storage, one sync or more each", Counter(commits)),
    ];
    let of_keys = vec![
        ("store_keys", "Keys in its replicas", Gauge(counts.store_keys)),
        ("store_bytes", "Bytes that these keys take", Gauge(counts.store_bytes)),
        ("store_max_bytes", "Bytes that they may take (store-max-memory)", Gauge(counts.store_max)),
        ("store_evictions", "Keys evicted from its replicas to make room", Counter(counts.evicted)),
        ("refused_oom", "Writes refused with -OOM by partitions led here", Counter(counts.refused_for_room)),
        ("fill_leads", "Keys that a caller of GETV FILL is to write, of partitions led here", Gauge(filled)),
        ("fill_waiters", "Callers of GETV FILL that wait for them", Gauge(waiting)),
    ];
    let of_cache = vec![
        ("cache_hits", "Reads answered from the node's own lines", Counter(cache.hits)),
        ("cache_misses", "Reads of which the node had no valid line", Counter(cache.misses)),
        ("cache_evictions", "Lines that made room for others", Counter(cache.evictions)),
        ("cache_entries", "Lines in memory, valid or not", Gauge(size(cache.lines))),
        ("cache_bytes", "Bytes that they take", Gauge(size(cache.bytes))),
        ("cache_max_bytes", "Bytes that they may take (cache-max-memory)", Gauge(size(shared.view.max()))),
        ("cache_lines", "Lines under leases that last, by state", Gauges("state", states)),
        (
            "cache_directory_keys",
            "Keys of partitions led here whose lines some node may hold",
            Gauge(size(counts.directory)),
        ),
        (
            "cache_invalidations_sent",
            "Invalidations sent as the home of keys",
            Counter(counts.invalidations_sent),
        ),
        (
            "cache_invalidations_received",
            "Invalidations received as a holder of lines",
            Counter(counts.invalidations_heard),
        ),
    ];
    let backs = counts.write_backs;
    let of_write_backs = vec![
        ("cache_absorbed", "SETs with WRITEBACK that this node answered by itself", Counter(backs.absorbed)),
        ("cache_write_backs", "Values of such keys brought to their homes", Counter(backs.flushed)),
        ("cache_write_backs_lost", "Times that such SETs of a key were lost", Counter(backs.lost)),
        ("cache_dirty_lines", "Keys with such SETs still to be brought", Gauge(size(backs.dirty))),
    ];
    [of_clients(shared, desk), of_engine, of_keys, of_cache, of_write_backs].into_iter().flatten().collect()
}

/// What is told at one moment.
#[derive(Debug)]
struct Told(Arc<Vec<Named>>);

impl fmt::Debug for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Counter(n) | Self::Gauge(n) => n.fmt(f),
            Self::Gauges(label, all) => (label, all).fmt(f),
        }
    }
}

/// A gauge has a sign.
fn gauge(n: u64) -> ConstGauge<i64> {
    ConstGauge::new(i64::try_from(n).unwrap_or(i64::MAX))
}

impl Collector for Told {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, figure) in self.0.iter() {
            match figure {
                Figure::Counter(n) => {
                    let counter = ConstCounter::new(*n);
                    let place = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
                    counter.encode(place)?;
                }
                Figure::Gauge(n) => {
                    let gauge = gauge(*n);
                    gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
                }
                Figure::Gauges(label, all) => {
                    let mut place = encoder.encode_descriptor(name, help, None, gauge(0).metric_type())?;
                    for (value, n) in all {
                        gauge(*n).encode(place.encode_family(&[(*label, *value)])?)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// The whole text.
#[must_use]
pub fn text(shared: &Shared, desk: &Desk) -> String {
    let mut registry = Registry::with_prefix("quorate");
    registry.register_collector(Box::new(Told(Arc::new(figures(shared, desk)))));
    let mut text = String::new();
    // A string takes whatever is written to it.
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    text
}
