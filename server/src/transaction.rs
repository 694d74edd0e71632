//! MULTI, EXEC, DISCARD, WATCH, UNWATCH: what a text connection has queued, and what it watches.
//!
//! Charter: commands between MULTI and EXEC are kept here; EXEC makes one command of them, which takes effect at one
//! place in the log of one partition or not at all.
//!
//! Invariants:
//! - A command that is refused when it is queued makes EXEC refuse all, as in Redis.
//! - Versions of watched keys are those that the group told when WATCH was answered; until then nothing more of the
//!   connection is decoded (`waits`), so that an EXEC knows them.
//! - What a refused WATCH was to guard is not done: the next EXEC refuses, unless its keys are watched by then. It may have
//!   been sent before the refusal was read.
//! - What is kept is bounded, and has memory of its own: it must not keep what was read beside it alive.

use bytes::Bytes;
use quorate_protocol::command::{Command, ConnAsk};
use quorate_protocol::limits::{MULTI_MAX, REQUEST_MAX, WATCH_MAX};
use quorate_protocol::op::{Commands, Multi, Op};
use quorate_protocol::reply::{Code, Failure, Reply};
use quorate_protocol::wire::Wire;

/// What becomes of a request.
#[derive(Debug, PartialEq)]
pub enum Taken {
    /// It is not a transaction's business.
    No,
    /// It is answered.
    Answered(Reply),
    /// The groups decide it.
    Ask(Op),
    /// The groups are asked for the versions of these keys.
    Watch(Vec<Bytes>),
}

/// What stands between MULTI and EXEC.
#[derive(Debug, Default)]
struct Queue {
    commands: Vec<Op>,
    keys: usize,
    bytes: usize,
    /// One was refused.
    broken: bool,
}

/// See the top of the file.
#[derive(Debug, Default)]
pub struct Transaction {
    /// Boxed: most connections have none.
    queue: Option<Box<Queue>>,
    watched: Vec<(Bytes, u64)>,
    /// Keys that were to be watched, and are not.
    unwatched: Vec<Bytes>,
    /// There were more of them than are remembered.
    unguarded: bool,
    /// A WATCH is not answered.
    asked: bool,
}

fn refused(text: impl Into<String>) -> Taken {
    Taken::Answered(Reply::error(Code::Err, text))
}

impl Transaction {
    /// Whether an answer is to come before more can be understood.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.asked
    }

    /// Bytes that are kept.
    #[must_use]
    pub fn held(&self) -> usize {
        let queued = self.queue.as_ref().filter(|queue| !queue.commands.is_empty());
        let watched = self.watched.iter().map(|(key, _)| key).chain(&self.unwatched);
        queued.map_or(0, |queue| queue.bytes) + watched.map(|key| 64 + key.len()).sum::<usize>()
    }

    /// Whether commands are queued.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.queue.is_some()
    }

    /// Takes a request, if it is a transaction's business.
    pub fn take(&mut self, command: &Result<Command, Failure>) -> Taken {
        let ask = match command {
            Ok(Command::Connection(ask)) => Some(ask),
            _ => None,
        };
        match ask {
            Some(ConnAsk::Multi) if self.queue.is_some() => refused("MULTI calls can not be nested"),
            Some(ConnAsk::Multi) => {
                self.queue = Some(Box::default());
                Taken::Answered(Reply::OK)
            }
            Some(ConnAsk::Exec) => self.exec(),
            Some(ConnAsk::Discard) if self.queue.is_none() => refused("DISCARD without MULTI"),
            Some(ConnAsk::Discard) => {
                *self = Self::default();
                Taken::Answered(Reply::OK)
            }
            Some(ConnAsk::Watch(_)) if self.queue.is_some() => refused("WATCH inside MULTI is not allowed"),
            Some(ConnAsk::Watch(keys)) => self.watch(keys),
            Some(ConnAsk::Unwatch) if self.queue.is_none() => {
                *self = Self::default();
                Taken::Answered(Reply::OK)
            }
            Some(ConnAsk::Reset | ConnAsk::Quit) => {
                *self = Self::default();
                Taken::No
            }
            _ => match &mut self.queue {
                Some(queue) => queue.take(command),
                None => Taken::No,
            },
        }
    }

    fn watch(&mut self, keys: &[Bytes]) -> Taken {
        if self.watched.len() + self.unwatched.len() + keys.len() > WATCH_MAX {
            self.unguarded = true;
            return refused(format!(
                "a connection watches {WATCH_MAX} keys at the most; UNWATCH forgets them"
            ));
        }
        self.asked = true;
        Taken::Watch(keys.to_vec())
    }

    /// A WATCH is answered; what the client is told.
    pub fn watching(&mut self, keys: &[Bytes], reply: Reply) -> Reply {
        self.asked = false;
        let Reply::Array(versions) = reply else {
            self.unwatched.extend(keys.iter().map(|key| Bytes::copy_from_slice(key)));
            return reply;
        };
        self.unwatched.retain(|key| !keys.contains(key));
        for (key, version) in keys.iter().zip(versions) {
            let known = self.watched.iter().any(|(watched, _)| watched == key);
            if let (Reply::Int(version), false) = (version, known) {
                let version = u64::try_from(version).unwrap_or(0);
                self.watched.push((Bytes::copy_from_slice(key), version));
            }
        }
        Reply::OK
    }

    fn exec(&mut self) -> Taken {
        let Some(queue) = self.queue.take() else { return refused("EXEC without MULTI") };
        let (watched, unwatched) = (core::mem::take(&mut self.watched), core::mem::take(&mut self.unwatched));
        if core::mem::take(&mut self.unguarded) || !unwatched.is_empty() {
            let text = "Transaction discarded because a WATCH before it was refused; begin again with WATCH.";
            return Taken::Answered(Reply::error(Code::ExecAbort, text));
        }
        if queue.broken {
            let text = "Transaction discarded because of previous errors.";
            return Taken::Answered(Reply::error(Code::ExecAbort, text));
        }
        if queue.commands.is_empty() && watched.is_empty() {
            return Taken::Answered(Reply::Array(Vec::new()));
        }
        Taken::Ask(Op::Multi(Multi { watched, commands: Commands(queue.commands) }.into()))
    }
}

impl Queue {
    fn take(&mut self, command: &Result<Command, Failure>) -> Taken {
        let queued = match command {
            Ok(Command::Op(op)) if op.may_be_queued() => self.add(op),
            // What is wrong is said in the words that it would be said in outside.
            Err(failure) => Err(Reply::Error(Box::new(failure.clone()))),
            Ok(_) => Err(Reply::error(
                Code::Err,
                "only commands on keys can stand between MULTI and EXEC: one partition has to decide them together; \
                 send this one before MULTI or after EXEC",
            )),
        };
        self.broken |= queued.is_err();
        Taken::Answered(match queued {
            Ok(()) => Reply::Status("QUEUED"),
            Err(reply) => reply,
        })
    }

    fn add(&mut self, op: &Op) -> Result<(), Reply> {
        self.keys += op.keys().len();
        self.bytes += op.weight();
        if self.keys > MULTI_MAX || self.bytes > REQUEST_MAX {
            self.commands = Vec::new();
            let text = format!(
                "a transaction names {MULTI_MAX} keys and takes {REQUEST_MAX} bytes at the most; make several of it"
            );
            return Err(Reply::error(Code::TooBig, text));
        }
        let own = Op::from_wire(op.to_wire()).expect("what was written can be read");
        self.commands.push(own);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use quorate_protocol::command::parse;

    use super::*;

    fn take(transaction: &mut Transaction, line: &str) -> Taken {
        let words: Vec<Bytes> = line.split(' ').map(|word| Bytes::copy_from_slice(word.as_bytes())).collect();
        transaction.take(&parse(&words))
    }

    fn told(transaction: &mut Transaction, line: &str) -> String {
        match take(transaction, line) {
            Taken::Answered(Reply::Error(failure)) => failure.to_string(),
            Taken::Answered(reply) => format!("{reply:?}"),
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn commands_are_queued_and_become_one() {
        let mut t = Transaction::default();
        assert_eq!(take(&mut t, "SET {a}1 x"), Taken::No);
        assert_eq!(told(&mut t, "EXEC"), "ERR EXEC without MULTI");
        assert_eq!(told(&mut t, "DISCARD"), "ERR DISCARD without MULTI");
        assert_eq!(
            take(&mut t, "WATCH {a}1 {a}2 {a}1"),
            Taken::Watch(vec!["{a}1".into(), "{a}2".into(), "{a}1".into()])
        );
        assert!(t.waits());
        let versions = Reply::Array(vec![Reply::Int(7), Reply::Int(0), Reply::Int(7)]);
        assert_eq!(t.watching(&["{a}1".into(), "{a}2".into(), "{a}1".into()], versions), Reply::OK);
        assert!(!t.waits());
        assert_eq!(told(&mut t, "MULTI"), "Status(\"OK\")");
        assert_eq!(told(&mut t, "SET {a}1 x"), "Status(\"QUEUED\")");
        assert_eq!(told(&mut t, "MULTI"), "ERR MULTI calls can not be nested");
        assert_eq!(told(&mut t, "WATCH k"), "ERR WATCH inside MULTI is not allowed");
        assert_eq!(told(&mut t, "GET {a}2"), "Status(\"QUEUED\")");
        let Taken::Ask(Op::Multi(multi)) = take(&mut t, "EXEC") else { panic!("it is one command") };
        assert_eq!(multi.watched, [("{a}1".into(), 7), ("{a}2".into(), 0)]);
        assert_eq!(multi.commands.0.len(), 2);
        assert_eq!(told(&mut t, "EXEC"), "ERR EXEC without MULTI");
        told(&mut t, "MULTI");
        assert_eq!(told(&mut t, "EXEC"), "Array([])", "nothing is watched any more");
    }

    #[test]
    fn a_refused_watch_guards_what_was_sent_behind_it() {
        let down = || Reply::error(Code::ClusterDown, "no leader");
        let (a, b) = (Bytes::from("a"), Bytes::from("b"));
        let exec = |t: &mut Transaction| {
            told(t, "MULTI");
            told(t, "SET a 1");
            take(t, "EXEC")
        };
        let is_aborted = |taken| matches!(taken, Taken::Answered(Reply::Error(failure)) if failure.code == Code::ExecAbort);
        let mut t = Transaction::default();
        assert_eq!(t.watching(&[a.clone(), b.clone()], down()), down());
        t.watching(std::slice::from_ref(&a), Reply::Array(vec![Reply::Int(1)]));
        assert!(is_aborted(exec(&mut t)), "b is not watched");
        assert!(!is_aborted(exec(&mut t)), "it is said once");
        t.watching(std::slice::from_ref(&a), down());
        t.watching(std::slice::from_ref(&a), Reply::Array(vec![Reply::Int(1)]));
        assert!(!is_aborted(exec(&mut t)), "it was watched in the end");
        for line in ["UNWATCH", "DISCARD"] {
            t.watching(std::slice::from_ref(&a), down());
            told(&mut t, if line == "DISCARD" { "MULTI" } else { "UNWATCH" });
            told(&mut t, line);
            assert!(!is_aborted(exec(&mut t)), "{line} forgets it");
        }
        t.watching(std::slice::from_ref(&a), down());
        for _ in 0..=WATCH_MAX {
            if matches!(take(&mut t, "WATCH a"), Taken::Watch(_)) {
                t.watching(std::slice::from_ref(&a), down());
            }
        }
        assert_eq!(t.unwatched.len(), WATCH_MAX, "no more are remembered");
        assert!(is_aborted(exec(&mut t)));
        assert!(!is_aborted(exec(&mut t)), "it is said once");
    }

    #[test]
    fn what_is_refused_aborts_all() {
        for line in ["GET", "NONSENSE", "LOCK l", "PING", "FLUSHALL", "SCAN 0"] {
            let mut t = Transaction::default();
            told(&mut t, "MULTI");
            assert!(told(&mut t, line).starts_with("ERR "), "{line}");
            told(&mut t, "SET k v");
            assert_eq!(told(&mut t, "EXEC"), "EXECABORT Transaction discarded because of previous errors.");
        }
        let mut t = Transaction::default();
        told(&mut t, "MULTI");
        (0..MULTI_MAX).for_each(|_| assert_eq!(told(&mut t, "INCR n"), "Status(\"QUEUED\")"));
        assert!(told(&mut t, "INCR n").starts_with("TOOBIG a transaction names 4096 keys"));
        assert!(told(&mut t, "EXEC").starts_with("EXECABORT"));
    }
}
