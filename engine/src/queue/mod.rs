use crate::outcome::*;
use bytes::Bytes;
use quorate_protocol::{id::*, op::*, reply::Reply};
#[derive(Debug, Clone, Default)]
pub struct Faults {}
pub struct Queues {}
impl Default for Queues {
    fn default() -> Self {
        Self::new()
    }
}
impl Queues {
    pub fn new() -> Self {
        Self {}
    }
    pub fn set_faults(&mut self, _f: Faults) {}
    pub fn publish(&mut self, _ctx: &Ctx, a: &Asker, _op: Pub, out: &mut Outcomes) {
        answer(out, *a, Reply::Int(1))
    }
    pub fn fetch(&mut self, _ctx: &Ctx, a: &Asker, _op: Fetch, out: &mut Outcomes) {
        answer(out, *a, Reply::Int(1))
    }
    pub fn ack(&mut self, _ctx: &Ctx, a: &Asker, _op: Ack, out: &mut Outcomes) {
        answer(out, *a, Reply::Int(1))
    }
    pub fn nack(&mut self, _ctx: &Ctx, a: &Asker, _op: Nack, out: &mut Outcomes) {
        answer(out, *a, Reply::Int(1))
    }
    pub fn sub(&mut self, _ctx: &Ctx, a: &Asker, _op: Sub, out: &mut Outcomes) {
        answer(out, *a, Reply::Int(1))
    }
    pub fn unsub(&mut self, _ctx: &Ctx, a: &Asker, _op: Bytes, out: &mut Outcomes) {
        answer(out, *a, Reply::Int(1))
    }
    pub fn qset(&mut self, _ctx: &Ctx, a: &Asker, _op: QSet, out: &mut Outcomes) {
        answer(out, *a, Reply::Int(1))
    }
    pub fn info(&self, _now: u64, _name: &Bytes) -> Reply {
        Reply::Nil
    }
    pub fn expire(&mut self, _ctx: &Ctx, _out: &mut Outcomes) {}
    pub fn next_deadline(&self) -> Option<u64> {
        None
    }
    pub fn close(&mut self, _ctx: &Ctx, _conn: ConnId, _out: &mut Outcomes) {}
    pub fn end_session(&mut self, _ctx: &Ctx, _session: SessionId, _out: &mut Outcomes) {}
    pub fn digest(&self) -> u64 {
        0
    }
}
