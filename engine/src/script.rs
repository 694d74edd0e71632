//! Talks to a state machine in the words of a client, for its tests: one log position per line said.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use alloc::{format, vec};

use bytes::Bytes;
use quorate_protocol::command::{Command, parse};
use quorate_protocol::id::{ConnId, LogPos, NodeId, SessionId};
use quorate_protocol::op::Op;
use quorate_protocol::reply::Reply;
use quorate_protocol::resp::{Dialect, encode};

use crate::outcome::{Asker, Ctx, Outcome, Outcomes};
use crate::time::over_at;

/// A state machine that a script can talk to.
pub(crate) trait Subject {
    fn expire(&mut self, ctx: &Ctx, out: &mut Outcomes);
    fn apply(&mut self, ctx: &Ctx, asker: &Asker, op: Op, out: &mut Outcomes);
    /// Asserts what holds between any two commands.
    fn check(&self);
}

/// A log being written. Serial numbers of places (message ids) are 1, 2, 3, …
pub(crate) struct Script<S> {
    pub(crate) subject: S,
    ctx: Ctx,
    requests: u64,
    /// What was told besides the answers to what was just said: `2: (nil)`, `push 1: …`, `notice: …`.
    heard: Vec<String>,
}

pub(crate) fn conn(counter: u64) -> ConnId {
    ConnId { node: NodeId(1), session: SessionId(1), counter }
}

impl<S: Subject> Script<S> {
    pub(crate) fn new(subject: S) -> Self {
        let ctx = Ctx { at: LogPos { index: 0, offset: 0 }, time: 1000 };
        Self { subject, ctx, requests: 0, heard: Vec::new() }
    }

    /// A connection says a line: the answer in words, empty when it waits.
    pub(crate) fn say(&mut self, counter: u64, line: &str) -> String {
        let words: Vec<Bytes> = line.split(' ').map(|word| Bytes::from(word.to_string())).collect();
        let Ok(Command::Op(op)) = parse(&words) else { panic!("{line} is a command of the cluster") };
        self.requests += 1;
        let asker = Asker { conn: conn(counter), request: self.requests, client: None };
        let outcomes = self.run(|subject, ctx, out| subject.apply(ctx, &asker, op, out));
        let mut answer = String::new();
        for outcome in outcomes {
            match outcome {
                Outcome::Reply { to, reply } if to == asker => {
                    assert!(answer.is_empty(), "one answer a request");
                    answer = text(&reply);
                }
                Outcome::Waits { to } if to == asker => {}
                other => self.heard.push(told(&other)),
            }
        }
        answer
    }

    /// Time passes, in milliseconds.
    pub(crate) fn pass(&mut self, ms: u64) {
        self.ctx.time += ms;
        self.event(|_, _, _| {});
    }

    /// Something that is not a client's command.
    pub(crate) fn event(&mut self, event: impl FnOnce(&mut S, &Ctx, &mut Outcomes)) {
        let outcomes = self.run(event);
        self.heard.extend(outcomes.iter().map(told));
    }

    fn run(&mut self, event: impl FnOnce(&mut S, &Ctx, &mut Outcomes)) -> Outcomes {
        self.ctx.at.offset += 1;
        let mut out = vec![];
        // The first stamp at which what lasts until now is over.
        self.subject.expire(&Ctx { time: over_at(self.ctx.time), ..self.ctx }, &mut out);
        event(&mut self.subject, &self.ctx, &mut out);
        self.subject.check();
        out
    }

    /// What was told meanwhile.
    pub(crate) fn heard(&mut self) -> Vec<String> {
        core::mem::take(&mut self.heard)
    }
}

fn text(reply: &Reply) -> String {
    let mut out = Vec::new();
    encode(Dialect::Inline, reply, &mut out);
    String::from_utf8(out).expect("scripts speak text").trim_end().replace("\r\n", "\n")
}

fn told(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Reply { to, reply } => format!("{}: {}", to.conn.counter, text(reply)),
        Outcome::Push { to, delivery } => {
            let body = delivery.body.escape_ascii();
            format!("push {}: {} {} {body}", to.counter, delivery.id, delivery.attempt)
        }
        Outcome::Waits { to } => format!("{}: waits", to.conn.counter),
        Outcome::Expired(key) => format!("expired: {}", key.escape_ascii()),
        Outcome::Notice(line) => format!("notice: {line}"),
    }
}

/// Chance without chance: the same numbers for the same seed.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `n`.
    pub(crate) fn roll(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}
