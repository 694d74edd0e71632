//! One client connection: bytes in, requests to the engine; answers out, in the client's dialect.
//!
//! Charter: one task per connection, no channel of its own. What one read brings goes to the engine as one
//! batch; what one turn of the engine answers goes out as one write. What only the connection knows (PING,
//! HELLO, COMMAND, …) is answered in `answers.rs`; if something is unanswered before it, its answer takes its
//! turn through the engine.
//!
//! Invariants:
//! - Nothing is read or decoded while `PIPELINE_MAX` requests or `PIPELINE_BYTES_MAX` bytes are unanswered,
//!   or much output waits to be written; nothing is read while the mailbox is full.
//! - Answers that may be large are asked for a few at a time, until their size is known: a client that reads
//!   must never be cut for a pipeline of ordinary depth.
//! - The dialect changes between two answers, where the request that changed it stands; never to RESP2 while
//!   a subscription may stand.
//! - An idle connection holds no read buffer. What all connections hold is bounded (`memory.rs`).
//! - A client that sends no more (`nc -N`), and one of a node that stops, is answered what it asked before, but
//!   nothing that waits by its nature: a LOCK or FETCH of somebody who is gone must not take anything.

mod ahead;
mod binary;
mod memory;
mod pushes;
mod shown;
mod socket;

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quorate_engine::effect::{Input, Request, Want};
use quorate_protocol::command::{Command, ConnAsk, NodeAsk, parse};
use quorate_protocol::frame::{Frame, MAGIC};
use quorate_protocol::id::ClientSeq;
use quorate_protocol::limits::{OUTPUT_MAX, PIPELINE_BYTES_MAX, PIPELINE_MAX, VALUE_MAX};
use quorate_protocol::op::Op;
use quorate_protocol::reply::{Code, Failure, Reply};
use quorate_protocol::resp::{self, Dialect, RequestDecoder};
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::answers::{Answered, Answerer};
use crate::client_memory::Account;
use crate::driver::Shared;
use crate::outlet::{Out, Outlet};
use crate::subscriptions::{Change, Subscriptions};
use crate::tracking::Told;
use crate::transaction::{Taken, Transaction};
use ahead::Ahead;
use memory::early_answer;
use pushes::Tracker;
use socket::{gone, read_once, readable};

/// Room for one read.
const READ: usize = 16 << 10;
/// Output above which requests wait.
const OUTPUT_FULL: usize = OUTPUT_MAX / 4;
/// Expected bytes of answers above which requests wait.
const OWED_FULL: usize = OUTPUT_MAX / 2;
/// How long a client that has closed its side waits for its next answer.
const GRACE: Duration = Duration::from_secs(5);

thread_local! {
    /// Room for one read, handed from one connection of the thread to the next: who has nothing left unread holds none.
    static SPARE: Cell<BytesMut> = Cell::default();
}

/// How requests come and answers go.
enum Speech {
    /// Nothing has been heard yet.
    Unknown,
    /// RESP and inline.
    Text { decoder: RequestDecoder, dialect: Dialect },
    /// Binary frames.
    Binary,
}

/// What an unanswered request takes up.
#[derive(Clone, Copy)]
struct Cost {
    bytes: usize,
    /// What its answer may come to.
    answer: usize,
    /// It waits by its nature.
    waits: bool,
    nature: Nature,
}

/// What is known of a request whose answer finds no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nature {
    /// The connection knows the answer itself. A small one is no larger than what was asked, and is never refused.
    Local,
    /// It changes nothing.
    Read,
    /// It may have taken effect.
    Write,
    /// It may have taken messages, which come back when the connection ends.
    Lease,
}

/// What is remembered of an unanswered request.
struct Asked {
    id: u64,
    cost: Cost,
    /// Text: the dialect from its answer on.
    dialect: Option<Dialect>,
    /// Text: the connection closes behind its answer.
    last: bool,
    /// What its answer changes in the subscriptions.
    change: Option<Box<Change>>,
    /// It asks for the versions of these keys, which are watched from its answer on.
    watch: Option<Box<[Bytes]>>,
    /// What its answer tells of keys that the client may keep.
    told: Option<Box<Told>>,
}

/// See the top of the file.
pub struct Connection {
    number: u64,
    stream: TcpStream,
    shared: Arc<Shared>,
    outlet: Arc<Outlet>,
    answerer: Answerer,
    speech: Speech,
    read: BytesMut,
    /// The most bytes that have lain in `read` since it had memory of its own.
    grown: usize,
    write: Vec<u8>,
    written: usize,
    /// Bytes in `write` that say that there is no room for answers.
    refusals: usize,
    /// There is no room for answers until all in `write` are written.
    full: bool,
    next_id: u64,
    batch: Vec<Request>,
    batch_weight: usize,
    /// Text: unanswered requests in order.
    asked: VecDeque<Asked>,
    /// Text: what may be pushed.
    subscriptions: Subscriptions,
    /// Text: what is queued for EXEC.
    transaction: Transaction,
    /// Text: what it wants to be told of what it keeps.
    tracker: Tracker,
    /// Binary: unanswered requests, and the way back from correlation ids.
    framed: HashMap<u64, (u64, Cost)>,
    correlations: HashMap<u64, u64>,
    /// What is unanswered, for reads that may pass it.
    ahead: Ahead,
    unanswered_bytes: usize,
    /// What the answers to unanswered requests may come to.
    owed_bytes: usize,
    /// What the next large answer is expected to come to: twice the last ones at the most.
    expected: usize,
    /// What it is charged for the memory that it holds.
    account: Account,
    /// Unanswered requests that wait by their nature.
    waiting: usize,
    connected: bool,
    /// What was read may hold more requests than were decoded.
    held_back: bool,
    /// The client has closed its side, or the node stops: what waits is not answered any more.
    half_closed: bool,
    /// Nothing more is read; the connection closes when all is answered and written.
    closing: bool,
}

impl Connection {
    /// A connection that has just been accepted.
    #[must_use]
    pub fn new(number: u64, stream: TcpStream, shared: Arc<Shared>, answerer: Answerer) -> Self {
        let outlet = Arc::<Outlet>::default();
        shared.outlets.insert(number, Arc::clone(&outlet));
        let account = Account::new(number, Arc::clone(&shared.client_memory));
        Self {
            number,
            stream,
            shared,
            outlet,
            answerer,
            speech: Speech::Unknown,
            read: BytesMut::new(),
            grown: 0,
            account,
            write: Vec::new(),
            written: 0,
            refusals: 0,
            full: false,
            next_id: 1,
            batch: Vec::new(),
            batch_weight: 0,
            asked: VecDeque::new(),
            subscriptions: Subscriptions::default(),
            transaction: Transaction::default(),
            tracker: Tracker::default(),
            framed: HashMap::new(),
            correlations: HashMap::new(),
            unanswered_bytes: 0,
            ahead: Ahead::default(),
            owed_bytes: 0,
            expected: VALUE_MAX,
            waiting: 0,
            connected: false,
            held_back: false,
            half_closed: false,
            closing: false,
        }
    }

    /// Serves the connection until it ends. Boxed, because a future keeps what is moved into it twice.
    pub async fn serve(mut self: Box<Self>) {
        let ended = self.talk().await;
        self.shared.outlets.remove(self.number);
        self.stop_tracking();
        if self.connected {
            self.shared.mailbox.post(Input::Disconnected { conn: self.number }, 64);
        }
        match ended {
            Ok(()) if self.closing && !self.half_closed => Box::pin(self.linger()).await,
            Ok(()) => {}
            Err(error) => tracing::debug!("connection {}: {error}", self.number),
        }
    }

    async fn talk(&mut self) -> io::Result<()> {
        // Asked for once: each asking takes a lock that all connections share.
        let shared = Arc::clone(&self.shared);
        let mut stopping = pin!(shared.stopping.cancelled());
        let outlet = Arc::clone(&self.outlet);
        let mut news = pin!(outlet.news());
        // What is rarely waited for is boxed when it is, so that an idle connection does not carry it.
        loop {
            self.flush()?;
            self.settle()?;
            let pending = self.written < self.write.len();
            let over = if self.half_closed { !self.has_answers_due() } else { self.unanswered() == 0 };
            if self.closing && !pending && over {
                return Ok(());
            }
            if self.held_back && self.has_room() {
                self.decode();
                self.hand_over();
                self.slim();
                continue;
            }
            let may_read = !self.closing && !self.half_closed && self.has_room();
            tokio::select! {
                biased;
                () = &mut news => {
                    news.set(outlet.news());
                    self.take_answers()?;
                }
                ready = self.stream.writable(), if pending => ready?,
                ready = readable(&self.stream, &self.shared), if may_read => {
                    ready?;
                    if !self.read_some()? {
                        self.leave();
                    }
                }
                // What is still unread may say that more was asked: only its end is looked for.
                gone = async { Box::pin(gone(&self.stream)).await }, if !may_read && !self.half_closed => {
                    gone?;
                    if self.closing || self.waiting > 0 {
                        self.leave();
                    }
                }
                () = &mut stopping, if !self.half_closed => self.leave(),
                () = async { Box::pin(sleep(GRACE)).await }, if self.half_closed => return Ok(()),
            }
        }
    }

    /// Whether more may be asked.
    fn has_room(&self) -> bool {
        self.unanswered() < PIPELINE_MAX
            && !self.transaction.waits()
            && self.unanswered_bytes < PIPELINE_BYTES_MAX
            && self.owed_bytes < OWED_FULL
            && self.unread() < OUTPUT_FULL
            && !self.full
    }

    fn unanswered(&self) -> usize {
        self.asked.len() + self.framed.len()
    }

    /// Nobody will ask more here.
    fn leave(&mut self) {
        self.half_closed = true;
        self.closing = true;
    }

    /// Whether something is unanswered that does not wait for anything.
    fn has_answers_due(&self) -> bool {
        // In order, nothing is answered before the first is.
        self.asked.front().is_some_and(|first| !first.cost.waits)
            || self.framed.values().any(|(_, cost)| !cost.waits)
    }

    /// Writes as much as the socket takes.
    fn flush(&mut self) -> io::Result<()> {
        while self.written < self.write.len() {
            match self.stream.try_write(&self.write[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.slim_output();
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        self.write.clear();
        self.write.shrink_to(READ);
        (self.written, self.refusals, self.full) = (0, 0, false);
        Ok(())
    }

    /// Reads once and hands over what is complete; false at the end of the stream.
    fn read_some(&mut self) -> io::Result<bool> {
        if self.read.capacity() == 0 {
            self.read = SPARE.take();
        }
        memory::make_room(&mut self.read);
        let more = match read_once(&self.stream, &mut self.read) {
            Ok(0) => false,
            Ok(_) => {
                self.grown = self.grown.max(self.read.len());
                self.decode();
                self.hand_over();
                true
            }
            // It looked readable, and was not.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => true,
            Err(error) => return Err(error),
        };
        self.slim();
        Ok(more)
    }

    fn decode(&mut self) {
        if let (Speech::Unknown, Some(&first)) = (&self.speech, self.read.first()) {
            self.speech = if first == MAGIC {
                Speech::Binary
            } else {
                Speech::Text { decoder: RequestDecoder::default(), dialect: Dialect::Inline }
            };
        }
        self.held_back = false;
        while !self.closing {
            if !self.has_room() || !self.has_room_for_answers() {
                self.held_back = true;
                return;
            }
            let more = match &mut self.speech {
                Speech::Unknown => return,
                Speech::Binary => self.next_frame(),
                Speech::Text { .. } => self.next_text(),
            };
            if !more {
                return;
            }
        }
    }

    fn next_text(&mut self) -> bool {
        self.show_lines();
        let Speech::Text { decoder, dialect } = &mut self.speech else { return false };
        match decoder.decode(&mut self.read) {
            Ok(None) => false,
            Ok(Some(mut request)) => {
                let last = self.asked.iter().rev().find_map(|asked| asked.dialect).unwrap_or(*dialect);
                let switch = (last == Dialect::Inline && !request.inline).then_some(Dialect::Resp2);
                self.detach(&mut request.args);
                self.text_request(&request.args, switch.unwrap_or(last), switch);
                true
            }
            Err(error) => {
                let reply = Reply::error(Code::Err, error.to_string());
                self.answer_text(reply, 0, None, true);
                self.closing = true;
                false
            }
        }
    }

    fn text_request(&mut self, args: &[Bytes], now: Dialect, switch: Option<Dialect>) {
        let weight = args.iter().map(|arg| 32 + arg.len()).sum();
        let command = parse(args);
        let about_itself = pushes::is_about_client(&command);
        self.text_command(command, weight, now, switch);
        if !about_itself && !self.transaction.is_open() {
            self.tracker.passed();
        }
    }

    fn text_command(
        &mut self,
        command: Result<Command, Failure>,
        weight: usize,
        now: Dialect,
        switch: Option<Dialect>,
    ) {
        if let Some(reply) = self.subscriptions.objection(&command, now, switch.is_some()) {
            return self.answer_text(reply, weight, None, false);
        }
        match self.transaction.take(&command) {
            Taken::No => {}
            Taken::Answered(reply) => return self.answer_text(reply, weight, switch, false),
            Taken::Ask(op) => {
                let weight = weight + op.weight();
                return self.ask_text(Want::Op(op), weight, switch, false);
            }
            Taken::Watch(keys) => {
                self.ask_text(Want::Op(Op::Versions(keys.clone())), weight, switch, false);
                let asked = self.asked.back_mut().expect("it was just asked");
                asked.watch = Some(keys.into());
                return;
            }
        }
        match command {
            Ok(Command::Op(Op::Sub(_))) if !now.has_pushes() => {
                let text = "RESP2 cannot carry pushed messages; say HELLO 3 first, or use FETCH with BLOCK";
                self.answer_text(Reply::error(Code::Err, text), weight, switch, false);
            }
            Ok(Command::Op(op)) => match self.look_up(&op) {
                Some(reply) => {
                    let told = self.tracker.told(&op);
                    self.answer_text(reply.clone(), weight, switch, false);
                    self.tell_behind(told, &reply);
                }
                None => self.ask_text(Want::Op(op), weight, switch, false),
            },
            Ok(Command::Node(ask)) => self.ask_text(Want::Node(ask), weight, switch, false),
            Ok(Command::Connection(ConnAsk::SessionOpen | ConnAsk::SessionResume(_))) => {
                let text = "client sessions belong to the binary protocol; see docs/protocol.md";
                self.answer_text(Reply::error(Code::Err, text), weight, switch, false);
            }
            Ok(Command::Connection(ConnAsk::Track(ask))) => {
                let reply = self.track(ask, now);
                self.answer_text(reply, weight, switch, false);
            }
            Ok(Command::Connection(ask)) => {
                let last = ask == ConnAsk::Quit;
                let Answered { reply, dialect } = self.answerer.answer(ask, now);
                self.answer_text(reply, weight, dialect.or(switch), last);
                if dialect == Some(Dialect::Resp2) {
                    self.stop_tracking();
                }
                self.closing |= last;
            }
            Err(failure) => self.answer_text(refusal(failure), weight, switch, false),
        }
    }

    /// An answer that is known: written at once when nothing stands before it.
    fn answer_text(&mut self, reply: Reply, bytes: usize, dialect: Option<Dialect>, last: bool) {
        if self.asked.is_empty() {
            let reply = self.fitting(reply, Nature::Local);
            self.write_text(dialect, &reply);
        } else {
            self.ask_text(Want::Answered(reply), bytes, dialect, last);
        }
    }

    fn ask_text(&mut self, want: Want, bytes: usize, dialect: Option<Dialect>, last: bool) {
        let change = self.subscriptions.ask(&want);
        let told = if let Want::Op(op) = &want { self.tracker.told(op) } else { None };
        let (id, cost) = self.ask(want, None, None, bytes);
        self.asked.push_back(Asked { id, cost, dialect, last, change, watch: None, told });
    }

    fn ask(
        &mut self,
        want: Want,
        client: Option<ClientSeq>,
        after: Option<u64>,
        bytes: usize,
    ) -> (u64, Cost) {
        if self.unanswered() == 0 {
            self.ahead = Ahead::default();
        }
        self.ahead.asks(&want, self.shared.view.partitions());
        let id = self.next_id;
        self.next_id += 1;
        let waits = self.will_wait(&want, after);
        let nature = match &want {
            Want::Answered(_) => Nature::Local,
            Want::Op(Op::Fetch(_)) => Nature::Lease,
            // Who has read and is to fill the key has been granted something.
            Want::Op(op) if op.is_read() && op.patience() == 0 => Nature::Read,
            Want::Node(ask) if !matches!(ask, NodeAsk::Snapshot) => Nature::Read,
            _ => Nature::Write,
        };
        let bytes = bytes + early_answer(&want);
        let answer = match &want {
            // What waits must hold nobody up; its answers are few.
            _ if waits || after.is_some() => 0,
            Want::Op(op) if op.may_answer_much() => self.expected,
            Want::Answered(reply) => reply.weight(),
            _ => 0,
        };
        self.batch.push(Request { id, want, client, after });
        self.batch_weight += bytes;
        self.unanswered_bytes += bytes;
        self.owed_bytes += answer;
        self.waiting += usize::from(waits);
        (id, Cost { bytes, answer, waits, nature })
    }

    fn no_longer_owed(&mut self, cost: Cost, reply: &Reply) {
        self.unanswered_bytes -= cost.bytes;
        self.owed_bytes -= cost.answer;
        self.waiting -= usize::from(cost.waits);
        if cost.answer > 0 {
            self.expected = reply.weight().max(self.expected / 2).max(1);
        }
    }

    /// Gives the engine what has been gathered.
    fn hand_over(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        if !self.connected {
            self.connected = true;
            let ordered = !matches!(self.speech, Speech::Binary);
            self.shared.mailbox.post(Input::Connected { conn: self.number, ordered }, 64);
        }
        let requests = std::mem::take(&mut self.batch);
        let weight = std::mem::take(&mut self.batch_weight);
        self.shared.mailbox.post(Input::Requests { conn: self.number, requests }, weight);
    }

    fn take_answers(&mut self) -> io::Result<()> {
        let Some(outs) = self.outlet.take() else { return self.too_much_output() };
        for out in outs {
            match out {
                Out::Reply(id, reply) => self.answered(id, reply),
                Out::Push(delivery) => self.pushed(delivery),
                Out::Stale(stale) => self.push_stale(stale),
                Out::Close(reason) => self.close(&reason),
                Out::Cut => self.make_room()?,
            }
        }
        if self.unread() > OUTPUT_MAX { self.too_much_output() } else { Ok(()) }
    }

    fn answered(&mut self, id: u64, mut reply: Reply) {
        if let Some((correlation, cost)) = self.framed.remove(&id) {
            self.correlations.remove(&correlation);
            self.no_longer_owed(cost, &reply);
            let reply = self.fitting(reply, cost.nature);
            return Frame::Reply { correlation, reply }.encode(&mut self.write);
        }
        if let Some(asked) = self.asked.pop_front() {
            assert!(asked.id == id, "answers come in the order of the requests");
            self.no_longer_owed(asked.cost, &reply);
            if let Some(change) = asked.change {
                self.subscriptions.answered(*change, &reply);
            }
            if let Some(keys) = asked.watch {
                reply = self.transaction.watching(&keys, reply);
            }
            let reply = self.fitting(reply, asked.cost.nature);
            self.write_text(asked.dialect, &reply);
            self.tell_behind(asked.told, &reply);
            self.closing |= asked.last;
        }
    }

    fn write_text(&mut self, switch: Option<Dialect>, reply: &Reply) {
        let Speech::Text { dialect, .. } = &mut self.speech else { return };
        if let Some(switch) = switch {
            *dialect = switch;
        }
        resp::encode(*dialect, reply, &mut self.write);
    }
}

fn refusal(failure: Failure) -> Reply {
    Reply::Error(Box::new(failure))
}
