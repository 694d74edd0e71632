//! The names of keys: SCAN and KEYS, and what a pattern fits.
//!
//! Invariant: a SCAN shows keys in the order of their hashes, and all whose hashes look alike to a cursor at once. So a
//! key that is there from the first call to the last is shown, whatever comes and goes meanwhile, and nothing is kept
//! between the calls.
//!
//! Subtlety: both work within bounds. A pattern full of stars costs its length for each letter of a name: what is spent
//! is counted, and the call ends early. Names made to collide in 56 bits of a hash would be shown at once; they cost
//! whoever makes them more than whoever lists them.

use alloc::format;
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::limits::{KEYS_MAX, MATCH_WORK};
use quorate_protocol::op::{Cursor, Scan};
use quorate_protocol::reply::{Code, Reply};

use super::{Name, Store, is_seen};

/// Bits of a hash that a cursor lacks.
const LACKING: u32 = 8;

impl Store {
    /// SCAN. The cursor in the answer is one for this partition: the number above its own when all is shown.
    pub(super) fn scan(&self, op: &Scan, time: u64) -> Reply {
        let Some(from) = Cursor::read(op.cursor) else { return Reply::error(Code::Err, "invalid cursor") };
        let first = Name { hash: from.hash << LACKING, key: Bytes::new() };
        let (mut names, mut work, mut looked, mut last) = (Vec::new(), MATCH_WORK, 0, None);
        let mut next = Cursor { partition: from.partition + 1, hash: 0 };
        for (name, row) in self.rows.range(first..) {
            let hash = name.hash >> LACKING;
            if (looked >= op.count || work == 0) && last != Some(hash) {
                next = Cursor { hash, ..from };
                break;
            }
            (looked, last) = (looked + 1, Some(hash));
            let fits = op.pattern.as_ref().is_none_or(|pattern| fits(pattern, &name.key, &mut work));
            if fits && !op.none && is_seen(row, time) {
                names.push(Reply::Bulk(name.key.clone()));
            }
        }
        Reply::Array([Reply::text(format!("{}", next.number())), Reply::Array(names)].into())
    }

    /// KEYS
    pub(super) fn keys(&self, pattern: &Bytes, time: u64) -> Reply {
        let mut work = MATCH_WORK;
        let mut names = Vec::new();
        for (name, row) in self.rows.iter().take(KEYS_MAX + 1) {
            if fits(pattern, &name.key, &mut work) && is_seen(row, time) {
                names.push(Reply::Bulk(name.key.clone()));
            }
            if work == 0 {
                break;
            }
        }
        if work == 0 || self.len() > KEYS_MAX {
            let text = format!(
                "KEYS would look at too much at once (a partition has {} keys); use SCAN with MATCH",
                self.len()
            );
            return Reply::error(Code::Err, text);
        }
        Reply::Array(names)
    }
}

/// Whether a pattern of Redis' kind fits a name: `*`, `?`, `[abc]`, `[^a-c]`, and `\` before what is meant as it stands.
/// Takes what it costs off `work`.
///
/// Only the last star is ever tried again: one before it that took more would gain nothing that this one cannot.
fn fits(pattern: &[u8], name: &[u8], work: &mut usize) -> bool {
    let (mut p, mut n, mut star) = (0, 0, None);
    loop {
        let rest = &pattern[p..];
        *work = work.saturating_sub(1);
        if rest.first() == Some(&b'*') {
            star = Some((p, n));
            p += 1;
            continue;
        }
        let Some(&byte) = name.get(n) else { return rest.is_empty() };
        if let Some(length) = one(rest, byte, work) {
            (p, n) = (p + length, n + 1);
            continue;
        }
        let Some((at, from)) = star else { return false };
        star = Some((at, from + 1));
        (p, n) = (at + 1, from + 1);
    }
}

/// The length of a pattern's first element, if it fits the byte.
fn one(pattern: &[u8], byte: u8, work: &mut usize) -> Option<usize> {
    match pattern {
        [] => None,
        [b'?', ..] => Some(1),
        [b'[', rest @ ..] => {
            let (fits, length) = class(rest, byte);
            *work = work.saturating_sub(length);
            fits.then_some(1 + length)
        }
        [b'\\', escaped, ..] => (*escaped == byte).then_some(2),
        [first, ..] => (*first == byte).then_some(1),
    }
}

/// Whether a class (what follows its `[`) holds the byte, and its length with the `]`, which may be missing at the end.
fn class(pattern: &[u8], byte: u8) -> (bool, usize) {
    let (not, mut at) = if pattern.first() == Some(&b'^') { (true, 1) } else { (false, 0) };
    let mut found = false;
    loop {
        match &pattern[at..] {
            [] => break,
            [b']', ..] => {
                at += 1;
                break;
            }
            [b'\\', escaped, ..] => {
                found |= *escaped == byte;
                at += 2;
            }
            [from, b'-', to, ..] => {
                found |= (*from.min(to)..=*from.max(to)).contains(&byte);
                at += 3;
            }
            [first, ..] => {
                found |= *first == byte;
                at += 1;
            }
        }
    }
    (found != not, at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_as_in_redis() {
        for (pattern, name, expected) in [
            ("*", "", true),
            ("", "", true),
            ("a", "", false),
            ("h?llo", "hallo", true),
            ("h?llo", "hllo", false),
            ("h[ae]llo", "hello", true),
            ("h[^e]llo", "hello", false),
            ("h[^e]llo", "hallo", true),
            ("h[a-c]llo", "hbllo", true),
            ("h[c-a]llo", "hbllo", true),
            ("h[a-c", "hb", true),
            ("h\\*llo", "h*llo", true),
            ("h\\*llo", "hxllo", false),
            ("[\\]]", "]", true),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxbyy", false),
            ("*a*", "bab", true),
            ("a**", "a", true),
            ("user:*:name", "user:1:2:name", true),
            ("abc", "ABC", false),
        ] {
            assert_eq!(fits(pattern.as_bytes(), name.as_bytes(), &mut 1000), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn hostile_patterns_cost_what_is_counted() {
        let (pattern, name) = ("*a".repeat(500) + "b", "a".repeat(1000));
        let mut work = 2_000_000;
        assert!(!fits(pattern.as_bytes(), name.as_bytes(), &mut work));
        assert!(work > 0 && work < 2_000_000 - 1000, "{work}");
    }
}
