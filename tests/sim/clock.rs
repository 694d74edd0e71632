//! A node's clock: what it reads at a moment of the world's time.
//!
//! Invariant: `mono` never falls within one life of a node. Two nodes' clocks run apart by at most 1 %, which
//! is what the leases of Quorate allow for: each is at most 0.5 % away from the world.
//!
//! Subtlety: CLOCK_BOOTTIME goes on when a process is killed and begins anew when its machine is switched off.

use quorate_engine::effect::Now;

use super::rng::Rng;

/// How far a clock may be away from the world, in millionths.
const DRIFT: u64 = 5000;
/// The factor by which a time measured by one clock may differ from the world's, as a fraction.
pub const SLOWEST: (u64, u64) = (1_000_000, 1_000_000 + DRIFT);

/// See the top of the file.
#[derive(Debug, Clone)]
pub struct Clock {
    /// What `mono` was at `since`.
    base: u64,
    since: u64,
    /// Millionths of a microsecond per microsecond.
    rate: u64,
    wall: u64,
}

impl Clock {
    /// A clock that was started some time before the world.
    pub fn new(rng: &mut Rng) -> Self {
        Self {
            base: rng.between(1_000_000..1_000_000_000_000),
            since: 0,
            rate: 1_000_000 - DRIFT + rng.below(2 * DRIFT + 1),
            wall: 1_760_000_000_000 + rng.below(1_000_000),
        }
    }

    /// What the node reads.
    #[must_use]
    pub fn read(&self, time: u64) -> Now {
        let passed = time - self.since;
        let mono = self.base + passed / 1000 * self.rate / 1000 + passed % 1000 * self.rate / 1_000_000;
        Now { mono, wall: self.wall + time / 1000 }
    }

    /// The first moment of the world at which the node reads `mono` or more.
    #[must_use]
    pub fn when(&self, mono: u64) -> u64 {
        let ahead = mono.saturating_sub(self.base);
        let mut time = self.since + ahead / 1000 * 1_000_000_000 / self.rate;
        while self.read(time).mono < mono {
            time += 1 + (mono - self.read(time).mono) / 2;
        }
        time
    }

    /// The machine is switched on again.
    pub fn reboot(&mut self, time: u64, rng: &mut Rng) {
        self.base = rng.between(1_000_000..60_000_000);
        self.since = time;
    }

    /// Somebody sets the wall clock.
    pub fn jump(&mut self, rng: &mut Rng) {
        self.wall = 1_000_000_000_000 + rng.below(1_000_000_000_000);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_drifts_within_its_bound_and_is_inverted() {
        for seed in 0..50 {
            let mut rng = Rng::new(seed, 9);
            let mut clock = Clock::new(&mut rng);
            let start = clock.read(0).mono;
            let passed = clock.read(100_000_000).mono - start;
            assert!((99_500_000..=100_500_000).contains(&passed), "{passed}");
            for mono in [start, start + 20_000, start + 1_234_567] {
                let time = clock.when(mono);
                assert!(clock.read(time).mono >= mono && clock.read(time).mono < mono + 5);
            }
            clock.reboot(5_000_000, &mut rng);
            assert!(clock.read(5_000_000).mono < 60_000_000);
        }
    }
}
