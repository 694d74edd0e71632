//! The connection to a node, and the next one when it breaks.
//!
//! Charter: one task per client. While a connection stands it reads frames, writes what has gathered as one,
//! keeps the client session open and looks whether the node still breathes. When it breaks it goes to the
//! next address, with growing pauses, for as long as the client lives.

use std::hash::{BuildHasher, Hasher};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use quorate_protocol::command::find;
use quorate_protocol::frame::{self, Frame};
use quorate_protocol::id::ClientId;
use quorate_protocol::limits::{PIPELINE_MAX, WAITS_MAX};
use quorate_protocol::reply::{Code, Reply};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::Options;
use crate::call::ask_once;
use crate::error::Error;
use crate::session::{Again, Request, Unanswered};

/// The first pause before something is tried again.
const PAUSE: Duration = Duration::from_millis(20);
/// The longest one.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Room for one read.
const READ: usize = 16 << 10;
/// Refusals of a session after which another node is asked.
const REFUSALS: u32 = 4;
/// Places for requests that wait (LOCK WAIT, FETCH BLOCK), and as many for all others: those never take
/// each other's places, and together they stay below what a node reads of one connection.
const PLACES: usize = PIPELINE_MAX / 2 - 16;

const _: () = assert!(PLACES <= WAITS_MAX, "a node refuses none of those that are waited for here");

/// The pause after a node has had no room for what is to be sent again. It cuts who holds too much for 10 s, and a request is sent
/// 8 times.
const ROOM: Duration = Duration::from_secs(2);

/// Growing pauses, each a little by chance so that many clients do not come together.
#[derive(Debug, Default)]
pub(crate) struct Pauses(u32);

impl Pauses {
    /// The next pause: 20 ms, doubling up to 1 s, less up to a half.
    pub(crate) fn next(&mut self) -> Duration {
        let full = PAUSE.saturating_mul(1 << self.0).min(PAUSE_MAX);
        self.0 = (self.0 + 1).min(6);
        let chance = std::hash::RandomState::new().build_hasher().finish() % 512;
        full - full.mul_f64(f64::from(u32::try_from(chance).expect("below 512")) / 1024.0)
    }
}

/// What the client's handles and its task share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: Options,
    addresses: Vec<String>,
    pub(crate) unanswered: Mutex<Unanswered>,
    /// Something is to be written.
    pub(crate) work: Notify,
    /// A number of the session was given back.
    pub(crate) window: Notify,
    /// The session is to be looked after.
    session: Notify,
    pub(crate) quick: Semaphore,
    pub(crate) waiting: Semaphore,
    /// Counts connections; why there is none at present.
    pub(crate) state: watch::Sender<Link>,
    heard: AtomicBool,
    pub(crate) closed: CancellationToken,
}

/// The connection, as those who wait for it see it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Link {
    /// Rises with every connection.
    pub(crate) epoch: u64,
    /// The session is open on it.
    pub(crate) ready: bool,
    /// Why the last one ended, or did not come about.
    pub(crate) trouble: String,
}

impl Shared {
    pub(crate) fn new(addresses: Vec<String>, options: Options) -> Self {
        Self {
            options,
            addresses,
            unanswered: Mutex::default(),
            work: Notify::new(),
            window: Notify::new(),
            session: Notify::new(),
            quick: Semaphore::new(PLACES),
            waiting: Semaphore::new(PLACES),
            state: watch::Sender::default(),
            heard: AtomicBool::new(false),
            closed: CancellationToken::new(),
        }
    }

    /// The session must be asked for before it is used again.
    pub(crate) fn doubt_session(&self) {
        self.unanswered.lock().doubt_session();
        self.session.notify_one();
    }

    /// Keeps a connection for as long as the client lives.
    pub(crate) async fn drive(self: Arc<Self>) {
        let mut pauses = Pauses::default();
        for address in self.addresses.iter().cycle() {
            let trouble = tokio::select! {
                () = self.closed.cancelled() => return,
                trouble = self.visit(address) => trouble,
            };
            let is_full = trouble.kind() == io::ErrorKind::ResourceBusy;
            let trouble = format!("{address}: {trouble}");
            self.unanswered.lock().connection_lost(&trouble);
            let had_served = self.state.borrow().ready;
            self.state.send_modify(|link| {
                link.ready = false;
                link.trouble = trouble;
            });
            if had_served {
                pauses = Pauses::default();
            }
            tokio::select! {
                () = self.closed.cancelled() => return,
                () = sleep(if is_full { ROOM } else { pauses.next() }) => {}
            }
        }
    }

    /// Serves one connection until it breaks; why it did.
    async fn visit(&self, address: &str) -> io::Error {
        let stream = match timeout(self.options.silence, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return error,
            Err(_) => return io::Error::other("no connection in time"),
        };
        if let Err(error) = stream.set_nodelay(true) {
            return error;
        }
        self.state.send_modify(|link| link.epoch += 1);
        let (read, write) = stream.into_split();
        tokio::select! {
            error = self.read_all(read) => error,
            error = self.write_all(write) => error,
            error = self.keep_session() => error,
            error = self.listen() => error,
        }
    }

    async fn read_all(&self, mut read: OwnedReadHalf) -> io::Error {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(READ);
            match read.read_buf(&mut buffer).await {
                Ok(0) => return io::Error::other("the node has closed the connection"),
                Ok(_) => self.heard.store(true, Ordering::Relaxed),
                Err(error) => return error,
            }
            loop {
                match frame::decode(&mut buffer) {
                    Ok(None) => break,
                    Ok(Some(frame)) => {
                        if let Err(error) = self.take(frame) {
                            return error;
                        }
                    }
                    Err(error) => return io::Error::other(error),
                }
            }
        }
    }

    fn take(&self, frame: Frame) -> io::Result<()> {
        match frame {
            Frame::Reply { correlation, reply } => self.unanswered.lock().answered(correlation, reply),
            Frame::Push { reply } => self.pushed(reply),
            Frame::Goodbye { reply } => {
                let why = reply.failure().map_or("the node says goodbye", |failure| &failure.text);
                // What the node has no room for now may find some later.
                let busy = reply.failure().is_some_and(|failure| failure.code == Code::Busy);
                let kind = if busy { io::ErrorKind::ResourceBusy } else { io::ErrorKind::Other };
                return Err(io::Error::new(kind, why.to_owned()));
            }
            Frame::Request(_) => return Err(io::Error::other("the other side is no node")),
        }
        Ok(())
    }

    fn pushed(&self, reply: Reply) {
        let Reply::Array(values) = reply else { return };
        // Other kinds of pushes may come from newer nodes; nobody here has asked for them.
        let [Reply::Bulk(kind), Reply::Bulk(topic), Reply::Int(id), Reply::Int(attempt), Reply::Bulk(body)] =
            &values[..]
        else {
            return;
        };
        let (Ok(id), Ok(attempt)) = (u64::try_from(*id), u32::try_from(*attempt)) else { return };
        let inbox = self.unanswered.lock().subscriptions.get(topic).cloned();
        if let Some(inbox) = inbox.filter(|_| kind == "message") {
            inbox.put(crate::Message { topic: topic.clone(), id, attempt, body: body.clone() });
        }
    }

    async fn write_all(&self, mut write: OwnedWriteHalf) -> io::Error {
        let mut out = Vec::new();
        loop {
            out.clear();
            out.shrink_to(READ);
            let more = self.unanswered.lock().write_frames(&mut out);
            if !out.is_empty() {
                if let Err(error) = write.write_all(&out).await {
                    return error;
                }
            } else if !more {
                self.work.notified().await;
            }
        }
    }

    /// Opens the session, or goes on with it, whenever it is not open.
    async fn keep_session(&self) -> io::Error {
        let mut pauses = Pauses::default();
        let mut refusals = 0;
        loop {
            let (session, open) = {
                let unanswered = self.unanswered.lock();
                (unanswered.session(), unanswered.is_open())
            };
            if open {
                refusals = 0;
                self.session.notified().await;
                continue;
            }
            match self.ask_for_session(session).await {
                Ok(Reply::Int(id)) => {
                    pauses = Pauses::default();
                    let id = ClientId(u64::try_from(id).unwrap_or_default());
                    self.unanswered.lock().session_open(id);
                    self.state.send_modify(|link| link.ready = true);
                    self.work.notify_one();
                }
                Ok(reply) if session.is_some() && has_ended(&reply) => {
                    self.unanswered.lock().session_ended();
                }
                Ok(reply) => {
                    self.unanswered.lock().session_refused(&reply);
                    refusals += 1;
                    if refusals >= REFUSALS {
                        let why = reply.failure().map_or_else(|| format!("{reply:?}"), ToString::to_string);
                        return io::Error::other(format!("no client session can be had here: {why}"));
                    }
                    sleep(pauses.next()).await;
                }
                Err(error) => return io::Error::other(error),
            }
        }
    }

    async fn ask_for_session(&self, session: Option<ClientId>) -> Result<Reply, Error> {
        let args = match session {
            Some(id) => vec![Bytes::from("RESUME"), Bytes::from(id.0.to_string())],
            None => vec![Bytes::from("OPEN")],
        };
        ask_once(self, request("SESSION", args, Again::Never)).await
    }

    /// Finds out when the node no longer breathes: what it owes is answered, or at least a PING is.
    async fn listen(&self) -> io::Error {
        loop {
            sleep(self.options.silence / 2).await;
            if self.heard.swap(false, Ordering::Relaxed) {
                continue;
            }
            let ping = ask_once(self, request("PING", Vec::new(), Again::Never));
            if timeout(self.options.silence / 2, ping).await.is_err() {
                return io::Error::other(format!("nothing was heard for {:?}", self.options.silence));
            }
        }
    }

    /// Waits until the session is open on a connection.
    pub(crate) async fn ready(&self) {
        // The sender lives in `self`, so the channel cannot be closed.
        let _ = self.state.subscribe().wait_for(|link| link.ready).await;
    }

    /// Ends the client.
    pub(crate) fn close(&self) {
        self.unanswered.lock().close();
        self.quick.close();
        self.waiting.close();
        self.closed.cancel();
    }
}

/// The answer of a RESUME whose session is over.
fn has_ended(reply: &Reply) -> bool {
    reply.failure().is_some_and(|failure| failure.code == Code::Err)
}

/// A request of a command that the table knows.
pub(crate) fn request(verb: &str, args: Vec<Bytes>, again: Again) -> Request {
    let opcode = find(verb.as_bytes()).expect("a verb of the command table").number;
    Request { opcode, args, again, patience: Duration::ZERO, left: AtomicBool::new(false) }
}
