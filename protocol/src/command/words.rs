//! Reading a command's arguments: names, numbers, durations, options.
//!
//! Options are `NAME value` pairs in any order. Each may stand once; what contradicts, is unknown or is not
//! built is refused with a sentence that says what to send.

use bytes::Bytes;

use super::failure;
use super::table::Spec;
use crate::limits::{ADDRESS_MAX, DURATION_MAX, MANY_MAX, NAME_MAX, VALUE_MAX};
use crate::op::DEAD_LETTERS;
use crate::reply::{Code, Failure};

/// The arguments of one command, read from left to right.
pub struct Words<'a> {
    pub(super) spec: &'static Spec,
    pub(super) rest: &'a [Bytes],
}

impl<'a> Words<'a> {
    pub(super) fn new(spec: &'static Spec, rest: &'a [Bytes]) -> Self {
        Self { spec, rest }
    }

    /// Refuses what is left over.
    pub(super) fn end(&self) -> Result<(), Failure> {
        match self.rest.first() {
            None => Ok(()),
            Some(word) => Err(self.syntax(&format!("'{}' is not expected here", shown(word)))),
        }
    }

    pub(super) fn syntax(&self, what: &str) -> Failure {
        failure(Code::Err, format!("syntax error: {what}; usage: {}", self.spec.syntax))
    }

    pub(super) fn next(&mut self) -> Result<Bytes, Failure> {
        let Some((first, rest)) = self.rest.split_first() else {
            return Err(self.syntax("an argument is missing"));
        };
        self.rest = rest;
        Ok(first.clone())
    }

    pub(super) fn take_rest(&mut self) -> Vec<Bytes> {
        core::mem::take(&mut self.rest).to_vec()
    }

    /// A name: of a lock, a key, a topic, an owner.
    pub(super) fn name(&mut self, what: &str) -> Result<Bytes, Failure> {
        let name = self.next()?;
        check_name(&name, what)?;
        Ok(name)
    }

    /// A topic's name; its dead letters' name must fit too.
    pub(super) fn topic(&mut self) -> Result<Bytes, Failure> {
        let name = self.name("topic")?;
        let most = NAME_MAX - DEAD_LETTERS.len();
        if name.len() > most && !name.ends_with(DEAD_LETTERS) {
            let text = format!("topic of {} bytes, at most {most} are taken", name.len());
            return Err(failure(Code::TooBig, text));
        }
        Ok(name)
    }

    pub(super) fn names(&mut self, what: &str) -> Result<Vec<Bytes>, Failure> {
        if self.rest.len() > MANY_MAX {
            let text = format!(
                "{} {what}s in one command, at most {MANY_MAX} are taken; send several",
                self.rest.len()
            );
            return Err(failure(Code::TooBig, text));
        }
        let names = self.take_rest();
        names.iter().try_for_each(|name| check_name(name, what))?;
        Ok(names)
    }

    pub(super) fn value(&mut self, what: &str) -> Result<Bytes, Failure> {
        let value = self.next()?;
        if value.len() > VALUE_MAX {
            let text = format!("{what} of {} bytes, at most {VALUE_MAX} are taken", value.len());
            return Err(failure(Code::TooBig, text));
        }
        Ok(value)
    }

    /// Where somebody listens: `host:port`.
    pub(super) fn address(&mut self, what: &str) -> Result<String, Failure> {
        let word = self.next()?;
        let parts = core::str::from_utf8(&word).ok().and_then(|text| text.rsplit_once(':'));
        let fits = parts.is_some_and(|(host, port)| {
            let named = !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_graphic());
            named && word.len() <= ADDRESS_MAX && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
        let Some((host, port)) = parts.filter(|_| fits) else {
            let text = format!(
                "the {what} must be host:port, as in 10.0.0.4:7412, not {}; give the one that other nodes can reach",
                shown(&word)
            );
            return Err(failure(Code::Err, text));
        };
        Ok(format!("{host}:{port}"))
    }

    pub(super) fn integer(&mut self) -> Result<i64, Failure> {
        let word = self.next()?;
        integer(&word).ok_or_else(|| failure(Code::Err, "value is not an integer or out of range"))
    }

    /// A number from `low` to `high`.
    pub(super) fn number(&mut self, what: &str, low: u64, high: u64) -> Result<u64, Failure> {
        let word = self.next()?;
        let number = integer(&word).and_then(|number| u64::try_from(number).ok());
        number.filter(|number| (low..=high).contains(number)).ok_or_else(|| {
            let text = format!("{what} must be a number from {low} to {high}, not {}", shown(&word));
            failure(Code::Err, text)
        })
    }

    pub(super) fn token(&mut self) -> Result<u64, Failure> {
        self.number("TOKEN", 1, i64::MAX as u64)
    }

    /// A duration in milliseconds; 0 only where `low` is 0.
    pub(super) fn millis(&mut self, what: &str, low: u64) -> Result<u64, Failure> {
        self.number(what, low, DURATION_MAX)
    }

    pub(super) fn count(&mut self, what: &str, high: u32) -> Result<u32, Failure> {
        let number = self.number(what, 1, u64::from(high))?;
        Ok(u32::try_from(number).expect("it is at most `high`"))
    }

    /// The next option's name, in upper case; `None` at the end. `seen` keeps options from coming twice.
    pub(super) fn option(
        &mut self,
        known: &'static [&'static str],
        seen: &mut u32,
    ) -> Result<Option<&'static str>, Failure> {
        let Some(word) = self.rest.first() else { return Ok(None) };
        let Some(at) = known.iter().position(|name| word.eq_ignore_ascii_case(name.as_bytes())) else {
            let name = shown(word).to_ascii_uppercase();
            if self.spec.later.contains(&name.as_str()) {
                let verb = self.spec.name;
                return Err(failure(
                    Code::Err,
                    format!("option {name} of {verb} is not built yet; send {verb} without it"),
                ));
            }
            return Err(self.syntax(&format!("'{}' is not an option here", shown(word))));
        };
        self.rest = &self.rest[1..];
        if *seen & (1 << at) != 0 {
            return Err(self.syntax(&format!("{} stands twice", known[at])));
        }
        *seen |= 1 << at;
        Ok(Some(known[at]))
    }
}

fn check_name(name: &Bytes, what: &str) -> Result<(), Failure> {
    if name.is_empty() {
        return Err(failure(Code::Err, format!("the {what} is empty; give at least one byte")));
    }
    if name.len() > NAME_MAX {
        let text = format!("{what} of {} bytes, at most {NAME_MAX} are taken", name.len());
        return Err(failure(Code::TooBig, text));
    }
    Ok(())
}

pub(super) fn shown(word: &Bytes) -> String {
    word[..word.len().min(64)].escape_ascii().to_string()
}

pub(super) fn integer(word: &[u8]) -> Option<i64> {
    core::str::from_utf8(word).ok()?.parse().ok().filter(|_| !word.starts_with(b"+"))
}
