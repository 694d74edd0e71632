//! The binary half of a connection: frames in, and the requests that they carry.
//!
//! Invariants: an answer finds its way back by its correlation id, which names one unanswered request at a time. However many
//! requests wait by their nature, there is room for others behind them (`limits::WAITS_MAX`).

use quorate_engine::effect::Want;
use quorate_protocol::command::{Command, ConnAsk, find_number, parse, parse_as};
use quorate_protocol::frame::{self, Frame, RequestFrame};
use quorate_protocol::limits::WAITS_MAX;
use quorate_protocol::reply::{Code, Failure, Reply};
use quorate_protocol::resp::Dialect;

use super::{Connection, Nature, refusal};

impl Connection {
    pub(super) fn next_frame(&mut self) -> bool {
        match frame::decode(&mut self.read) {
            Ok(None) => false,
            Ok(Some(Frame::Request(mut request))) => {
                self.detach(&mut request.args);
                self.frame_request(request);
                true
            }
            Ok(Some(_)) => {
                self.goodbye("only requests are understood here");
                false
            }
            Err(error) => {
                self.goodbye(&error.to_string());
                false
            }
        }
    }

    pub(super) fn goodbye(&mut self, why: &str) {
        self.goodbye_for(Code::Err, why);
    }

    pub(super) fn goodbye_for(&mut self, code: Code, why: &str) {
        let reply = Reply::error(code, why);
        Frame::Goodbye { reply }.encode(&mut self.write);
        self.closing = true;
        self.framed.clear();
        self.waiting = 0;
    }

    fn frame_request(&mut self, request: RequestFrame) {
        let RequestFrame { correlation, opcode, client, after, args } = request;
        if self.correlations.contains_key(&correlation) {
            return self.goodbye(
                "this correlation id belongs to a request that is not answered yet; choose another",
            );
        }
        let weight = args.iter().map(|arg| 32 + arg.len()).sum();
        let command = if opcode == 0 {
            parse(&args)
        } else {
            let unknown = || Failure {
                code: Code::Err,
                text: format!("no command has the number {opcode}; see COMMAND"),
            };
            find_number(opcode).ok_or_else(unknown).and_then(|spec| parse_as(spec, &args))
        };
        let after = after.and_then(|after| self.correlations.get(&after).copied());
        let want = match command {
            Ok(Command::Op(op)) => Want::Op(op),
            Ok(Command::Node(ask)) => Want::Node(ask),
            Ok(Command::Connection(ConnAsk::SessionOpen)) => Want::OpenClient,
            Ok(Command::Connection(ConnAsk::SessionResume(id))) => Want::ResumeClient(id),
            Ok(Command::Connection(
                ConnAsk::Multi | ConnAsk::Exec | ConnAsk::Discard | ConnAsk::Watch(_) | ConnAsk::Unwatch,
            )) => {
                let text = "transactions belong to RESP and inline connections; SET IFVER guards against others here";
                Want::Answered(Reply::error(Code::Err, text))
            }
            Ok(Command::Connection(ask)) => {
                self.closing |= ask == ConnAsk::Quit;
                Want::Answered(self.answerer.answer(ask, Dialect::Resp3).reply)
            }
            Err(failure) => Want::Answered(refusal(failure)),
        };
        let want = match want {
            Want::Op(op) if after.is_none() => self.look_up(&op).map_or(Want::Op(op), Want::Answered),
            want => want,
        };
        if self.waiting >= WAITS_MAX && self.will_wait(&want, after) {
            let reply = Reply::error(Code::Busy, too_many_wait());
            return Frame::Reply { correlation, reply }.encode(&mut self.write);
        }
        match want {
            // Behind another request it takes its turn through the engine.
            Want::Answered(reply) if after.is_none() => {
                let reply = self.fitting(reply, Nature::Local);
                Frame::Reply { correlation, reply }.encode(&mut self.write);
            }
            want => {
                let (id, cost) = self.ask(want, client, after, weight);
                self.framed.insert(id, (correlation, cost));
                self.correlations.insert(correlation, id);
            }
        }
    }

    /// Whether a request waits by its nature, or behind one that does.
    pub(super) fn will_wait(&self, want: &Want, after: Option<u64>) -> bool {
        let behind = after.and_then(|id| self.framed.get(&id));
        matches!(want, Want::Op(op) if op.patience() > 0) || behind.is_some_and(|(_, cost)| cost.waits)
    }
}

fn too_many_wait() -> String {
    format!(
        "{WAITS_MAX} requests of this connection wait already (LOCK WAIT, FETCH BLOCK, GETV FILL, and what is AFTER them); let some \
         be answered first, or open another connection"
    )
}
