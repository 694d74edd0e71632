//! What a connection is sent unasked: messages of its subscriptions, and what its client is to drop of what it keeps (CLIENT
//! TRACKING), and why it is closed.
//!
//! Charter: `Tracker` knows how the connection's reads are tracked; behind each answer `tell_behind` asks the node's table
//! (`tracking.rs`) whether the client may keep what it was told.
//!
//! Invariant: an answer is written before it is asked what may be kept of it; what may not is pushed right behind it. See
//! `tracking.rs`.

use std::sync::Arc;

use quorate_engine::effect::Input;
use quorate_protocol::command::{Command, ConnAsk, Track, Tracks};
use quorate_protocol::frame::Frame;
use quorate_protocol::op::Op;
use quorate_protocol::peer::Delivery;
use quorate_protocol::reply::{Code, Failure, Reply};
use quorate_protocol::resp::{self, Dialect};

use super::{Connection, Speech, refusal};
use crate::clock;
use crate::outlet::Outlet;
use crate::tracking::{Pushes, Stale, Told};

/// How a connection's reads are tracked.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    tracks: Option<Box<Tracks>>,
    /// CACHING was said, for the next command.
    caching: bool,
}

impl Tracker {
    pub(super) fn is_on(&self) -> bool {
        self.tracks.is_some()
    }

    /// A command has been taken, and CACHING with it.
    pub(super) fn passed(&mut self) {
        self.caching = false;
    }

    /// What the answer to a command will tell of keys.
    pub(super) fn told(&self, op: &Op) -> Option<Box<Told>> {
        let tracks = self.tracks.as_ref()?;
        Told::of(op, tracks, self.caching)
    }

    fn info(&self) -> Reply {
        let flag = |name: &'static str, set: bool| set.then(|| Reply::text(name));
        let (mut flags, mut prefixes) = (vec![Reply::text("off")], Vec::new());
        if let Some(tracks) = &self.tracks {
            flags = vec![Reply::text("on")];
            flags.extend(flag("bcast", tracks.broadcast));
            flags.extend(flag("optin", tracks.opt_in));
            flags.extend(flag("caching-yes", tracks.opt_in && self.caching));
            flags.extend(flag("optout", tracks.opt_out));
            flags.extend(flag("caching-no", tracks.opt_out && self.caching));
            flags.extend(flag("noloop", tracks.no_loop));
            prefixes = tracks.prefixes.iter().cloned().map(Reply::Bulk).collect();
        }
        Reply::Map(vec![
            (Reply::text("flags"), Reply::Array(flags)),
            (Reply::text("redirect"), Reply::Int(if self.is_on() { 0 } else { -1 })),
            (Reply::text("prefixes"), Reply::Array(prefixes)),
        ])
    }

    fn caching(&mut self, yes: bool) -> Result<(), &'static str> {
        let Some(tracks) = &self.tracks else {
            return Err(
                "CLIENT CACHING can be called only when the client is in tracking mode with OPTIN or OPTOUT mode enabled",
            );
        };
        if yes && !tracks.opt_in {
            return Err("CLIENT CACHING YES is only valid when tracking is enabled in OPTIN mode.");
        }
        if !yes && !tracks.opt_out {
            return Err("CLIENT CACHING NO is only valid when tracking is enabled in OPTOUT mode.");
        }
        self.caching = true;
        Ok(())
    }
}

/// Whether a command is one of CLIENT: those leave CACHING to the next one.
pub(super) fn is_about_client(command: &Result<Command, Failure>) -> bool {
    use ConnAsk as Ask;
    let Ok(Command::Connection(ask)) = command else { return false };
    let names = matches!(ask, Ask::ClientGetName | Ask::ClientSetName(_) | Ask::ClientSetInfo(..));
    names || matches!(ask, Ask::ClientId | Ask::ClientInfo | Ask::ClientList | Ask::Track(_))
}

impl Connection {
    /// CLIENT TRACKING and its kind. `now`: the dialect in which it is asked.
    pub(super) fn track(&mut self, ask: Track, now: Dialect) -> Reply {
        match ask {
            Track::On(_) if now != Dialect::Resp3 => Reply::error(
                Code::Err,
                "invalidations are pushed, and only RESP3 can carry them here (REDIRECT is not spoken); say HELLO 3 first",
            ),
            Track::On(tracks) => match tracks.after(self.tracker.tracks.as_deref()) {
                Ok(tracks) => {
                    let shared = Arc::clone(&self.shared);
                    shared.tracking.begin(self.number, tracks.clone(), |tracked| {
                        shared.mailbox.post_urgent(Input::Track(tracked), 0);
                    });
                    self.tracker.tracks = Some(Box::new(tracks));
                    Reply::OK
                }
                Err(failure) => refusal(failure),
            },
            Track::Off => {
                self.stop_tracking();
                Reply::OK
            }
            Track::Caching(yes) => match self.tracker.caching(yes) {
                Ok(()) => Reply::OK,
                Err(why) => Reply::error(Code::Err, why),
            },
            Track::Info => self.tracker.info(),
            Track::GetRedir => Reply::Int(if self.tracker.is_on() { 0 } else { -1 }),
        }
    }

    pub(super) fn stop_tracking(&mut self) {
        if self.tracker.is_on() {
            self.tracker = Tracker::default();
            let shared = &self.shared;
            shared.tracking.end(self.number, |tracked| {
                shared.mailbox.post_urgent(Input::Track(tracked), 0);
            });
        }
    }

    /// An answer has been written: tells the client what it may not keep of it.
    pub(super) fn tell_behind(&mut self, told: Option<Box<Told>>, reply: &Reply) {
        let (Some(told), Some(tracks)) = (told, self.tracker.tracks.as_deref()) else { return };
        let (shared, now) = (&self.shared, clock::mono());
        let mut pushes = Pushes::new();
        let stale =
            shared.tracking.behind(&shared.view, (self.number, tracks), *told, reply, now, &mut pushes);
        if !stale.is_empty() {
            self.push_stale(Stale::Keys(stale));
        }
        if !pushes.is_empty() {
            let mut touched: Vec<Arc<Outlet>> = Vec::new();
            self.shared.outlets.add_stale(&mut pushes, &mut touched);
            touched.iter().for_each(|outlet| outlet.wake());
        }
    }

    /// Tells the client what to drop. In a dialect without pushes nothing of it is tracked, and nothing that it was told before.
    pub(super) fn push_stale(&mut self, stale: Stale) {
        let Speech::Text { dialect: dialect @ Dialect::Resp3, .. } = &self.speech else { return };
        let Some(tracks) = &self.tracker.tracks else { return };
        let mut push =
            |what| resp::encode_push(*dialect, &[Reply::text("invalidate"), what], &mut self.write);
        match stale {
            Stale::All => push(Reply::Nil),
            Stale::Keys(keys) if tracks.broadcast => {
                push(Reply::Array(keys.into_iter().map(Reply::Bulk).collect()));
            }
            // As Redis does: redis-py stumbles over two keys of one MGET in one message.
            Stale::Keys(keys) => keys.into_iter().for_each(|key| push(Reply::Array(vec![Reply::Bulk(key)]))),
        }
    }

    /// A message of a subscription.
    pub(super) fn pushed(&mut self, delivery: Delivery) {
        let Delivery { topic, id, attempt, body } = delivery;
        let values = vec![
            Reply::text("message"),
            Reply::Bulk(topic),
            Reply::int(id),
            Reply::int(u64::from(attempt)),
            Reply::Bulk(body),
        ];
        match &self.speech {
            // A former leader's last words, after UNSUB: the message comes back when its lease ends.
            Speech::Text { dialect, .. } if !dialect.has_pushes() => {}
            Speech::Text { dialect, .. } => resp::encode_push(*dialect, &values, &mut self.write),
            Speech::Binary => Frame::Push { reply: Reply::Array(values) }.encode(&mut self.write),
            Speech::Unknown => {}
        }
    }

    /// The engine has closed the connection: what is unanswered will not be.
    pub(super) fn close(&mut self, reason: &str) {
        if matches!(self.speech, Speech::Binary) {
            self.goodbye(reason);
        } else {
            self.write_text(None, &Reply::error(Code::Err, reason));
        }
        self.asked.clear();
        self.framed.clear();
        self.waiting = 0;
        self.closing = true;
        self.connected = false;
    }
}
