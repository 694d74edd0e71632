//! Applying what is committed, and telling whom it concerns.
//!
//! Invariant: equal entries bring about the same on every replica. What is told depends on who leads and who asked here;
//! what is changed does not.

use quorate_protocol::cache::Grant;
use quorate_protocol::id::{ConnId, LogPos};
use quorate_protocol::op::Op;
use quorate_protocol::peer::{Answer, Verdict, Work};
use quorate_protocol::reply::Reply;

use super::{Group, Told};
use crate::batch::{Batch, Logged};
use crate::journal::{CONFIGURATION, Entry};
use crate::memory::Admission;
use crate::outcome::{Asker, Ctx, Outcome, Outcomes};
use crate::portion::Portion;

impl Group {
    pub(super) fn apply(&mut self, now: u64, entry: Entry) {
        assert!(entry.index == self.applied + 1, "entries are applied in order, without a gap");
        (self.applied, self.applied_term) = (entry.index, entry.term);
        while self.in_flight.entries.front().is_some_and(|&(index, ..)| index <= entry.index) {
            let (_, commands, bytes, growth) = self.in_flight.entries.pop_front().expect("it was just seen");
            self.in_flight.commands -= commands;
            self.in_flight.bytes -= bytes;
            self.in_flight.growth -= growth;
        }
        if entry.kind == CONFIGURATION || entry.data.is_empty() {
            // Of consensus alone: a change of replicas, or a new leader's first entry, which only marks its term.
            return;
        }
        let bytes = entry.data.len();
        let batch = match Batch::read(entry.data) {
            Ok(batch) => batch,
            Err(why) => panic!("entry {} of group {} cannot be applied: {why}", entry.index, self.id.0),
        };
        assert!(batch.stamp >= self.time, "group time never falls along the log");
        self.time = batch.stamp;
        let own = self.clock.is_some() && entry.term == self.term;
        let mut out = Outcomes::new();
        let time = batch.stamp;
        let ctx = |offset| Ctx { at: LogPos { index: entry.index, offset }, time };
        let mut portion = Portion::of_entry(bytes, batch.commands.len());
        self.state.expire(&ctx(0), &mut portion, &mut out);
        for (offset, logged) in batch.placed() {
            let writes = own.then(|| logged.work.writes().into_owned()).filter(|keys| !keys.is_empty());
            let asker = logged.asker;
            if let Work::CloseConn(gone) = &logged.work {
                // What it asked before it went may have been looked at since.
                self.close_fills(now, (gone.node, gone.counter));
            }
            if own {
                self.has_looked(&logged.work);
            }
            let all = own && logged.work.writes_all();
            let flushed = logged.work.flushes().cloned();
            let wants = matches!(&logged.work, Work::Op(Op::SetBack(_)));
            self.apply_one(&ctx(offset), logged, &mut out);
            if all {
                self.open_all(now);
            }
            if let Some(keys) = writes {
                match flushed {
                    Some(key) => self.open_flushed(now, &asker, &key),
                    None => self.open_keys(now, &asker, &keys, wants),
                }
                self.filled(&keys);
                self.tell(now, core::mem::take(&mut out), own);
            }
        }
        self.tell(now, out, own);
    }

    fn apply_one(&mut self, ctx: &Ctx, logged: Logged, out: &mut Outcomes) {
        let Logged { asker, work, .. } = logged;
        let admission = self.state.memory().admit(&asker);
        #[cfg(feature = "faults")]
        let admission = if self.faults.resend_applied_twice { Admission::Execute } else { admission };
        match admission {
            Admission::Execute => self.state.apply(ctx, &asker, work, out),
            // Already settled: straight to the asker, not through the memory again.
            Admission::Answer(reply) => {
                self.tell_reply(asker, reply);
            }
            Admission::Waits => self.tell_verdict(asker, Verdict::Waits),
        }
    }

    /// `own`: the entry was proposed in the term that this node leads.
    fn tell(&mut self, now: u64, out: Outcomes, own: bool) {
        for outcome in out {
            match outcome {
                Outcome::Reply { to, reply } => {
                    let to = self.state.memory().settle(to, &reply);
                    self.tell_reply(to, reply);
                }
                Outcome::Waits { to } => self.tell_verdict(to, Verdict::Waits),
                Outcome::Push { to, delivery } => {
                    if own {
                        self.told.push(Told::Push(to, delivery));
                    }
                }
                Outcome::Expired(key) => {
                    if own {
                        self.tell_expired(now, &[key]);
                    }
                }
                Outcome::Notice(line) => {
                    if own {
                        self.told.push(Told::Notice(line));
                    }
                }
            }
        }
    }

    fn tell_reply(&mut self, to: Asker, reply: Reply) {
        self.tell_verdict(to, Verdict::Reply(reply));
    }

    fn tell_verdict(&mut self, to: Asker, verdict: Verdict) {
        let grant = self.grant_written(&to);
        let concerns = self.clock.is_some() || to.conn.node == self.me;
        if concerns && self.applied > self.replayed {
            self.tell_answer(&to, verdict, grant);
        }
    }

    pub(super) fn tell_answer(&mut self, to: &Asker, verdict: Verdict, grant: Option<Grant>) {
        let Asker { conn, request, .. } = *to;
        self.told.push(Told::Answer(Answer { conn, request, group: self.id, sending: 0, verdict, grant }));
    }

    pub(super) fn refuse(&mut self, conn: ConnId, request: u64, sending: u32, verdict: Verdict) {
        self.told.push(Told::Answer(Answer { conn, request, group: self.id, sending, verdict, grant: None }));
    }
}
