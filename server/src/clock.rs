//! The only reader of time.

use std::time::Duration;

use quorate_engine::effect::Now;
use rustix::time::{ClockId, Timespec, clock_gettime};

/// Now: CLOCK_BOOTTIME for all that is decided, the wall clock for people.
#[must_use]
pub fn now() -> Now {
    let mono = clock_gettime(ClockId::Boottime);
    let wall = clock_gettime(ClockId::Realtime);
    Now { mono: micros(&mono), wall: micros(&wall) / 1000 }
}

/// The `mono` of now, in microseconds.
#[must_use]
pub fn mono() -> u64 {
    micros(&clock_gettime(ClockId::Boottime))
}

/// Seconds and microseconds since 1970.
#[must_use]
pub fn wall() -> (u64, u64) {
    let micros = micros(&clock_gettime(ClockId::Realtime));
    (micros / 1_000_000, micros % 1_000_000)
}

fn micros(time: &Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds * 1_000_000 + nanos / 1000
}

/// How long until a time of this clock.
#[must_use]
pub fn until(mono: u64, now: Now) -> Duration {
    Duration::from_micros(mono.saturating_sub(now.mono))
}
