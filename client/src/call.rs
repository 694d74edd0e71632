//! One call: asks, listens, and asks again as long as that can do no harm.
//!
//! Invariant: a refusal that promises that nothing happened is believed only if no earlier sending of the
//! same request may have been delivered; otherwise the call goes on asking in its session, or is in doubt.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use quorate_protocol::id::ClientId;
use quorate_protocol::reply::{Code, Failure, Reply};
use tokio::sync::oneshot;
use tokio::time::{Sleep, sleep};

use crate::connection::{Pauses, Shared};
use crate::error::Error;
use crate::session::{Again, Heard, Request, Sending};

/// Takes a request back when its caller gives up.
struct Entry<'a> {
    shared: &'a Shared,
    correlation: u64,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.shared.unanswered.lock().forget(self.correlation);
    }
}

/// A number of the session, for as long as its outcome is unknown.
struct Seq<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for Seq<'_> {
    fn drop(&mut self) {
        self.shared.unanswered.lock().give_back_seq(self.number);
        self.shared.window.notify_waiters();
    }
}

async fn take_seq(shared: &Shared) -> Seq<'_> {
    loop {
        let mut room = std::pin::pin!(shared.window.notified());
        room.as_mut().enable();
        let number = shared.unanswered.lock().take_seq();
        if let Some(number) = number {
            return Seq { shared, number };
        }
        room.await;
    }
}

/// What is known of a request from its earlier sendings.
#[derive(Debug, Default, Clone, Copy)]
struct Past {
    maybe: bool,
    session: Option<ClientId>,
}

/// Sends a request and waits for what comes of it.
async fn send(shared: &Shared, request: &Arc<Request>, seq: Option<u64>, past: Past) -> Result<Heard, Error> {
    let (answer, heard) = oneshot::channel();
    let sending = Sending {
        request: Arc::clone(request),
        seq,
        maybe: past.maybe,
        session: past.session,
        answer,
        sent: false,
        sendings: 0,
    };
    let correlation = shared.unanswered.lock().submit(sending)?;
    let _entry = Entry { shared, correlation };
    shared.work.notify_one();
    heard.await.map_err(|_| Error::Closed)
}

/// Sends a request once, outside the session, and returns its answer.
pub(crate) async fn ask_once(shared: &Shared, request: Request) -> Result<Reply, Error> {
    send(shared, &Arc::new(request), None, Past::default()).await?.result
}

/// Asks until there is an answer that stands.
pub(crate) async fn ask(shared: &Shared, request: Request) -> Result<Reply, Error> {
    let request = Arc::new(request);
    let Some(limit) = shared.options.timeout else { return ask_patiently(shared, &request).await };
    let limit = limit.saturating_add(request.patience);
    match tokio::time::timeout(limit, ask_patiently(shared, &request)).await {
        Ok(result) => result,
        Err(_) if request.again != Again::Read && request.left.load(Ordering::Relaxed) => {
            Err(Error::InDoubt(format!("no answer came within {limit:?}")))
        }
        Err(_) => Err(Error::Timeout),
    }
}

async fn ask_patiently(shared: &Shared, request: &Arc<Request>) -> Result<Reply, Error> {
    let places = if request.patience.is_zero() { &shared.quick } else { &shared.waiting };
    let _place = places.acquire().await.map_err(|_| Error::Closed)?;
    let seq = if request.again == Again::InSession { Some(take_seq(shared).await) } else { None };
    let mut past = Past::default();
    let mut pauses = Pauses::default();
    let mut until: Option<std::pin::Pin<Box<Sleep>>> = None;
    loop {
        let heard = send(shared, request, seq.as_ref().map(|seq| seq.number), past).await?;
        past.maybe |= heard.maybe;
        past.session = heard.session.or(past.session);
        let reply = heard.result?;
        let Some(failure) = passing(&reply) else {
            return match reply {
                // There was no room for this sending; what became of an earlier one it does not say.
                Reply::Error(failure) if failure.code == Code::Oom => Err(verdict(request, past, &failure)),
                Reply::Error(failure) => Err(Error::Refused(*failure)),
                reply => Ok(reply),
            };
        };
        let in_doubt = failure.code == Code::InDoubt;
        past.maybe |= in_doubt;
        let patience = until.get_or_insert_with(|| Box::pin(sleep(shared.options.retry)));
        let once = request.again == Again::Never || (request.again == Again::IfRefused && past.maybe);
        if once || patience.is_elapsed() || shared.options.retry.is_zero() {
            return Err(verdict(request, past, failure));
        }
        if in_doubt && request.again == Again::InSession {
            shared.doubt_session();
        }
        let pause = pauses.next();
        tokio::select! {
            () = patience.as_mut() => return Err(verdict(request, past, failure)),
            () = sleep(pause) => {}
        }
    }
}

/// A failure that says nothing final.
fn passing(reply: &Reply) -> Option<&Failure> {
    reply.failure().filter(|failure| failure.code.never_proposed() || failure.code == Code::InDoubt)
}

fn verdict(request: &Request, past: Past, failure: &Failure) -> Error {
    if past.maybe && request.again != Again::Read {
        Error::InDoubt(failure.text.clone())
    } else {
        Error::Refused(failure.clone())
    }
}

/// Milliseconds of a duration, as commands take them; part of one counts as one.
pub(crate) fn millis(duration: Duration) -> u64 {
    let up = u128::from(!duration.subsec_nanos().is_multiple_of(1_000_000));
    u64::try_from(duration.as_millis() + up).unwrap_or(u64::MAX)
}
