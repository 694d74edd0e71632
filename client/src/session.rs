//! What is asked and not answered, and its place in the client session.
//!
//! Charter: `Unanswered` is the client's memory, without I/O: requests go in, frames come out, replies find
//! their way back. `connection.rs` moves the bytes, `call.rs` decides about asking again.
//!
//! Invariants:
//! - A number of the session is never reused, not even in the next session, and stays *unanswered* until its
//!   caller knows the outcome or has given up. So `lowest` never passes a number that may be sent again.
//! - No number is given out `CLIENT_WINDOW` or more above `lowest`.
//! - A request that may have been delivered is sent again only if that cannot do harm: in the very session
//!   in which it was sent first, or because it changes nothing when it comes twice.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use quorate_protocol::frame::{Frame, RequestFrame};
use quorate_protocol::id::{ClientId, ClientSeq};
use quorate_protocol::limits::CLIENT_WINDOW;
use quorate_protocol::reply::Reply;
use tokio::sync::oneshot;

use crate::error::Error;
use crate::subscription::Inbox;

/// Bytes of frames that are gathered for one write.
const GATHER: usize = 256 << 10;
/// How often a request is sent on a new connection: one that breaks its connection must not break them all.
const SENDINGS_MAX: u32 = 8;

/// Whether a request may be sent again when its connection is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    /// It changes nothing.
    Read,
    /// Twice is as once: LOCK with OWNER keeps its place or its token, FETCH gives back with the old
    /// connection what it has taken.
    Repeatable,
    /// In the client session: it takes effect once.
    InSession,
    /// Only behind a refusal that promises that nothing happened.
    IfRefused,
    /// Not at all: what it asks for belongs to the connection.
    Never,
}

/// What is asked.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) opcode: u16,
    pub(crate) args: Vec<Bytes>,
    pub(crate) again: Again,
    /// How long it may rightly wait for its answer.
    pub(crate) patience: Duration,
    /// Bytes of it have left, and no answer says that they had no effect.
    pub(crate) left: AtomicBool,
}

/// What came of a sending.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) result: Result<Reply, Error>,
    /// An earlier sending may have been delivered.
    pub(crate) maybe: bool,
    /// The session in which it was sent.
    pub(crate) session: Option<ClientId>,
}

/// A request on its way.
#[derive(Debug)]
pub(crate) struct Sending {
    pub(crate) request: Arc<Request>,
    pub(crate) seq: Option<u64>,
    pub(crate) maybe: bool,
    pub(crate) session: Option<ClientId>,
    pub(crate) answer: oneshot::Sender<Heard>,
    pub(crate) sent: bool,
    pub(crate) sendings: u32,
}

impl Sending {
    fn end(self, result: Result<Reply, Error>) {
        let heard = Heard { result, maybe: self.maybe, session: self.session };
        // The caller may have given up.
        let _ = self.answer.send(heard);
    }
}

/// See the top of the file.
#[derive(Debug, Default)]
pub(crate) struct Unanswered {
    /// By correlation id.
    sendings: BTreeMap<u64, Sending>,
    /// To be sent, in order.
    outbox: VecDeque<u64>,
    /// To be sent once the session is open.
    parked: Vec<u64>,
    last_correlation: u64,
    /// Numbers of the session whose outcome is not known.
    seqs: BTreeSet<u64>,
    last_seq: u64,
    session: Option<ClientId>,
    /// The session is open on this connection.
    open: bool,
    pub(crate) subscriptions: HashMap<Bytes, Arc<Inbox>>,
    closed: bool,
}

impl Unanswered {
    /// The next number of the session, if the window allows one.
    pub(crate) fn take_seq(&mut self) -> Option<u64> {
        let seq = self.last_seq + 1;
        let lowest = self.seqs.first().copied().unwrap_or(seq);
        if seq - lowest >= CLIENT_WINDOW {
            return None;
        }
        self.last_seq = seq;
        self.seqs.insert(seq);
        Some(seq)
    }

    /// The outcome of a number is known, or nobody waits for it any more.
    pub(crate) fn give_back_seq(&mut self, seq: u64) {
        self.seqs.remove(&seq);
    }

    /// Takes a request; its correlation id.
    pub(crate) fn submit(&mut self, sending: Sending) -> Result<u64, Error> {
        if self.closed {
            return Err(Error::Closed);
        }
        self.last_correlation += 1;
        let correlation = self.last_correlation;
        self.sendings.insert(correlation, sending);
        self.outbox.push_back(correlation);
        Ok(correlation)
    }

    /// Nobody waits for this one any more.
    pub(crate) fn forget(&mut self, correlation: u64) {
        self.sendings.remove(&correlation);
    }

    /// Appends the frames of what is to be sent, up to a bound; whether there is more.
    pub(crate) fn write_frames(&mut self, out: &mut Vec<u8>) -> bool {
        while out.len() < GATHER {
            let Some(correlation) = self.outbox.pop_front() else { return false };
            let Some(sending) = self.sendings.get_mut(&correlation) else { continue };
            let mut client = None;
            if let Some(seq) = sending.seq {
                let Some(session) = self.session.filter(|_| self.open) else {
                    self.parked.push(correlation);
                    continue;
                };
                if sending.maybe && sending.session != Some(session) {
                    let sending = self.sendings.remove(&correlation).expect("it was just seen");
                    sending.end(Err(session_over()));
                    continue;
                }
                sending.session = Some(session);
                let lowest = self.seqs.first().copied().unwrap_or(seq).min(seq);
                client = Some(ClientSeq { client: session, seq, lowest });
            }
            sending.sent = true;
            sending.sendings += 1;
            sending.request.left.store(true, Ordering::Relaxed);
            let Request { opcode, args, .. } = &*sending.request;
            let frame =
                RequestFrame { correlation, opcode: *opcode, client, after: None, args: args.clone() };
            Frame::Request(frame).encode(out);
        }
        !self.outbox.is_empty()
    }

    /// An answer has come.
    pub(crate) fn answered(&mut self, correlation: u64, reply: Reply) {
        let Some(sending) = self.sendings.remove(&correlation) else { return };
        if reply.turned_away() && !sending.maybe {
            sending.request.left.store(false, Ordering::Relaxed);
        }
        sending.end(Ok(reply));
    }

    /// The connection is gone: what may be sent again is, in the order in which it was asked.
    pub(crate) fn connection_lost(&mut self, why: &str) {
        self.open = false;
        self.parked.clear();
        self.outbox.clear();
        let all: Vec<u64> = self.sendings.keys().copied().collect();
        for correlation in all {
            let sending = self.sendings.get_mut(&correlation).expect("it was just seen");
            sending.maybe |= sending.sent;
            let was_sent = core::mem::take(&mut sending.sent);
            let once = matches!(sending.request.again, Again::Never | Again::IfRefused);
            if was_sent && (once || sending.sendings >= SENDINGS_MAX) {
                let sending = self.sendings.remove(&correlation).expect("it was just seen");
                let lost = match sending.request.again {
                    Again::InSession => {
                        Error::InDoubt(format!("{SENDINGS_MAX} connections broke under it; {why}"))
                    }
                    Again::IfRefused => Error::InDoubt(why.to_owned()),
                    _ => Error::Lost(why.to_owned()),
                };
                sending.end(Err(lost));
            } else {
                self.outbox.push_back(correlation);
            }
        }
        self.subscriptions.values().for_each(|inbox| inbox.clear());
    }

    /// The client session, as far as it is known.
    pub(crate) fn session(&self) -> Option<ClientId> {
        self.session
    }

    /// Whether the session is open on this connection.
    pub(crate) fn is_open(&self) -> bool {
        self.open
    }

    /// A session is open on this connection: what waited for it can go.
    pub(crate) fn session_open(&mut self, session: ClientId) {
        self.session = Some(session);
        self.open = true;
        self.unpark();
    }

    /// The session must be asked for again before it is used.
    pub(crate) fn doubt_session(&mut self) {
        self.open = false;
    }

    /// The session has ended. What was sent in it is in doubt; numbers that never left are used in the next.
    pub(crate) fn session_ended(&mut self) {
        self.open = false;
        self.session = None;
        let doubtful = |sending: &Sending| sending.seq.is_some() && (sending.maybe || sending.sent);
        let doomed: Vec<u64> =
            self.sendings.iter().filter(|(_, sending)| doubtful(sending)).map(|(&id, _)| id).collect();
        for correlation in doomed {
            let sending = self.sendings.remove(&correlation).expect("it was just seen");
            sending.end(Err(session_over()));
        }
        self.unpark();
    }

    /// No session can be had for now: whoever waits for one and has never been sent learns why.
    pub(crate) fn session_refused(&mut self, why: &Reply) {
        for correlation in core::mem::take(&mut self.parked) {
            match self.sendings.get(&correlation) {
                Some(sending) if sending.maybe => self.parked.push(correlation),
                Some(_) => self.answered(correlation, why.clone()),
                None => {}
            }
        }
    }

    fn unpark(&mut self) {
        for correlation in core::mem::take(&mut self.parked).into_iter().rev() {
            self.outbox.push_front(correlation);
        }
    }

    /// Ends everything.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        self.outbox.clear();
        self.parked.clear();
        for (_, sending) in core::mem::take(&mut self.sendings) {
            let left = sending.sent || sending.maybe;
            let changes = |again| matches!(again, Again::InSession | Again::Repeatable | Again::IfRefused);
            let in_doubt = left && changes(sending.request.again);
            sending.end(Err(if in_doubt {
                Error::InDoubt("the client was closed before the answer came".to_owned())
            } else {
                Error::Closed
            }));
        }
        self.subscriptions.values().for_each(|inbox| inbox.end(Error::Closed));
    }
}

fn session_over() -> Error {
    let text = "the client session ended (it was without a connection for longer than its lease) before the answer came";
    Error::InDoubt(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;
    use quorate_protocol::frame;
    use quorate_protocol::reply::Code;

    fn submit(unanswered: &mut Unanswered, again: Again) -> (oneshot::Receiver<Heard>, Option<u64>) {
        let seq = (again == Again::InSession).then(|| unanswered.take_seq().expect("the window is open"));
        let request = Request {
            opcode: 36,
            args: vec!["k".into()],
            again,
            patience: Duration::ZERO,
            left: AtomicBool::new(false),
        };
        let (answer, heard) = oneshot::channel();
        let sending = Sending {
            request: Arc::new(request),
            seq,
            maybe: false,
            session: None,
            answer,
            sent: false,
            sendings: 0,
        };
        unanswered.submit(sending).expect("it is not closed");
        (heard, seq)
    }

    fn written(unanswered: &mut Unanswered) -> Vec<RequestFrame> {
        let mut out = Vec::new();
        while unanswered.write_frames(&mut out) {}
        let mut bytes = BytesMut::from(&out[..]);
        let mut frames = Vec::new();
        while let Some(Frame::Request(frame)) = frame::decode(&mut bytes).expect("good frames") {
            frames.push(frame);
        }
        frames
    }

    #[test]
    fn what_is_unanswered_is_sent_again_in_the_same_session_with_the_same_number() {
        let mut unanswered = Unanswered::default();
        let (first, _) = submit(&mut unanswered, Again::InSession);
        let (mut never, _) = submit(&mut unanswered, Again::Never);
        let (second, _) = submit(&mut unanswered, Again::InSession);
        assert_eq!(written(&mut unanswered).len(), 1, "only the one without a session can go");
        unanswered.session_open(ClientId(5));
        let frames = written(&mut unanswered);
        assert_eq!(frames.len(), 2);
        unanswered.answered(frames[0].correlation, Reply::Int(1));
        assert!(matches!(first.blocking_recv(), Ok(Heard { result: Ok(Reply::Int(1)), maybe: false, .. })));
        unanswered.give_back_seq(1);
        unanswered.connection_lost("cut");
        assert!(matches!(never.try_recv(), Ok(Heard { result: Err(Error::Lost(_)), .. })));
        unanswered.session_open(ClientId(5));
        let again = written(&mut unanswered);
        let expected = ClientSeq { client: ClientId(5), seq: 2, lowest: 2 };
        assert_eq!(again.iter().map(|frame| frame.client).collect::<Vec<_>>(), [Some(expected)]);
        unanswered.answered(again[0].correlation, Reply::error(Code::ClusterDown, "no leader"));
        assert!(second.blocking_recv().is_ok_and(|heard| heard.maybe), "the first sending may have arrived");
    }

    #[test]
    fn the_window_closes_at_the_lowest_unanswered_number() {
        let mut unanswered = Unanswered::default();
        for seq in 1..=CLIENT_WINDOW {
            assert_eq!(unanswered.take_seq(), Some(seq));
        }
        unanswered.give_back_seq(2);
        assert_eq!(unanswered.take_seq(), None);
        unanswered.give_back_seq(1);
        assert_eq!(unanswered.take_seq(), Some(CLIENT_WINDOW + 1));
    }

    #[test]
    fn the_end_of_a_session_leaves_what_was_sent_in_doubt_and_the_rest_to_the_next() {
        let mut unanswered = Unanswered::default();
        unanswered.session_open(ClientId(5));
        let (sent, _) = submit(&mut unanswered, Again::InSession);
        assert_eq!(written(&mut unanswered).len(), 1);
        unanswered.connection_lost("cut");
        let (fresh, seq) = submit(&mut unanswered, Again::InSession);
        assert!(written(&mut unanswered).is_empty(), "both wait for the session");
        unanswered.session_ended();
        assert!(matches!(sent.blocking_recv(), Ok(Heard { result: Err(Error::InDoubt(_)), .. })));
        unanswered.session_open(ClientId(9));
        let frames = written(&mut unanswered);
        assert_eq!(
            frames[0].client.map(|client| (client.client, Some(client.seq))),
            Some((ClientId(9), seq))
        );
        drop(fresh);
    }
}
