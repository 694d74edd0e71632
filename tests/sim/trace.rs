//! What happened, as a hash over everything and as lines around the end.
//!
//! Invariant: the hash depends on what happened and when, never on whether lines are kept. Equal seeds,
//! equal hashes.

use std::collections::VecDeque;

/// See the top of the file.
#[derive(Debug)]
pub struct Trace {
    hash: u64,
    keep: usize,
    lines: VecDeque<String>,
}

impl Trace {
    /// An empty trace that keeps the last `keep` lines.
    #[must_use]
    pub fn new(keep: usize) -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, keep, lines: VecDeque::new() }
    }

    /// Something happened: `words` tell it apart, `text` tells a reader.
    pub fn note(&mut self, time: u64, words: &[u64], text: impl FnOnce() -> String) {
        self.mix(time);
        words.iter().for_each(|&word| self.mix(word));
        if self.keep > 0 {
            if self.lines.len() == self.keep {
                self.lines.pop_front();
            }
            self.lines.push_back(format!("{:>10.6} {}", seconds(time), text()));
        }
    }

    /// Something happened that is not worth a line.
    pub fn count(&mut self, time: u64, words: &[u64]) {
        self.mix(time);
        words.iter().for_each(|&word| self.mix(word));
    }

    /// FNV-1a, a word at a time.
    fn mix(&mut self, word: u64) {
        self.hash = (self.hash ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
    }

    /// The hash of everything so far.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The last lines.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.lines.iter().cloned().collect()
    }
}

/// Microseconds as seconds, for people.
#[must_use]
#[allow(clippy::cast_precision_loss, reason = "a simulated run lasts far less than 2^52 microseconds")]
pub fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

/// A hash of bytes that does not change from build to build.
#[must_use]
pub fn hash_bytes(seed: u64, bytes: &[u8]) -> u64 {
    let mut chunks = bytes.chunks_exact(8);
    let mut hash = seed ^ (bytes.len() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for chunk in &mut chunks {
        let word = u64::from_le_bytes(chunk.try_into().expect("eight bytes"));
        hash = (hash ^ word).wrapping_mul(0x2127_599b_f432_5c37).rotate_left(29);
    }
    for &byte in chunks.remainder() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x2127_599b_f432_5c37).rotate_left(29);
    }
    hash ^ (hash >> 32)
}
