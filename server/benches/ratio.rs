//! How often the read view finds a line when it has room for a part of the keys: `cargo bench -p quorate-server --bench ratio`.
//!
//! Charter: traces with a fixed seed, no clock; the view is the server's own. Beside it stands what would be found if the keys that
//! are asked for most were held all the time, which no policy that does not know the future of such a trace can beat.
#![allow(clippy::print_stdout, reason = "this program's output is its purpose")]

use bytes::Bytes;
use quorate_engine::cache::CacheEffect;
use quorate_protocol::id::GroupId;
use quorate_server::view::View;

const GROUP: GroupId = GroupId(1);
const KEYS: usize = 100_000;
const REQUESTS: usize = 1_000_000;
/// Before hits are counted.
const WARM_UP: usize = 300_000;
const VALUE: &[u8] = &[b'v'; 64];

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below one.
    fn part(&mut self) -> f64 {
        f64::from(u32::try_from(self.next() >> 32).expect("32 bits")) / 4_294_967_296.0
    }
}

/// Of each key, how probable it or one before it is.
fn zipf(s: f64) -> Vec<f64> {
    let weights = (1..=u32::try_from(KEYS).expect("few")).map(|rank| f64::from(rank).powf(-s));
    let sums: Vec<f64> = weights
        .scan(0.0, |sum, weight| {
            *sum += weight;
            Some(*sum)
        })
        .collect();
    let all = sums[KEYS - 1];
    sums.into_iter().map(|sum| sum / all).collect()
}

fn key(n: usize) -> Bytes {
    Bytes::from(format!("key:{n:012}"))
}

fn fill(view: &View, key: Bytes) {
    let value = Some(Bytes::from_static(VALUE));
    let fill = CacheEffect::Fill { group: GROUP, generation: 1, key, value, until: u64::MAX };
    view.apply(fill, &mut Vec::new());
}

/// A view with room for so many lines.
fn view(lines: usize) -> View {
    let probe = View::new(1, 1 << 20);
    fill(&probe, key(0));
    let view = View::new(1, lines * probe.counts().bytes);
    view.apply(CacheEffect::Lease { group: GROUP, generation: 1, until: u64::MAX }, &mut Vec::new());
    view
}

/// Hits of a thousand. Every `scan_every` requests, if that is not nought, as many keys as there is room for are asked for that are never asked for again.
fn ratio(sums: &[f64], lines: usize, scan_every: usize) -> u64 {
    let (view, mut rng) = (view(lines), Rng(7));
    let (mut hits, mut asked) = (0, 0);
    let mut next_cold = KEYS;
    for n in 0..REQUESTS {
        if scan_every > 0 && n % scan_every == scan_every - 1 {
            for _ in 0..lines {
                fill(&view, key(next_cold));
                next_cold += 1;
            }
        }
        let part = rng.part();
        let key = key(sums.partition_point(|sum| *sum < part).min(KEYS - 1));
        let hit = view.get(&key, 1).is_some();
        if n >= WARM_UP {
            hits += u64::from(hit);
            asked += 1;
        }
        if !hit {
            fill(&view, key);
        }
    }
    hits * 1000 / asked
}

fn main() {
    println!("{KEYS} keys, {REQUESTS} requests, of which the first {WARM_UP} are not counted; hits of 1000");
    println!("| trace | room for | hits | the most popular held for ever |");
    println!("|---|---|---|---|");
    for (s, sums) in [(0.99, zipf(0.99)), (0.7, zipf(0.7))] {
        for lines in [KEYS / 10, KEYS / 100] {
            let best = sums[lines - 1] * 1000.0;
            for (scan, scan_every) in
                [("", 0), (", a scan every 10 times the room", 10), (", every 3 times", 3)]
            {
                let hits = ratio(&sums, lines, scan_every * lines);
                println!("| zipfian {s}{scan} | {lines} | {hits} | {best:.0} |");
            }
        }
    }
}
