//! Commands in words, for what has no method of its own.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use quorate_protocol::command::{Command, ConnAsk, find, parse};
use quorate_protocol::op::Op;
use quorate_protocol::reply::Reply;

use crate::session::{Again, Request};
use crate::{Client, Error, call};

impl Client {
    /// Sends a command in words, the verb first, as docs/commands.md has it; its answer as it comes.
    /// It is treated as the typed calls are: in the session, sent again, or bound to its connection.
    ///
    /// # Errors
    /// `Refused` with the answer's error. `Usage` for SUB, UNSUB, SESSION and QUIT, which would upset what
    /// the client does by itself: see [`Client::subscribe`] and [`Client::close`].
    pub async fn call<W: Into<Bytes>>(&self, words: impl IntoIterator<Item = W>) -> Result<Reply, Error> {
        let mut args: Vec<Bytes> = words.into_iter().map(Into::into).collect();
        // What cannot be understood here may be understood by a newer node.
        let (again, patience) = parse(&args).map_or(Ok((Again::Never, 0)), |command| kind_of(&command))?;
        let mut opcode = 0;
        if let Some(spec) = args.first().and_then(|verb| find(verb)) {
            opcode = spec.number;
            args.remove(0);
        }
        let patience = Duration::from_millis(patience);
        let request = Request { opcode, args, again, patience, left: AtomicBool::new(false) };
        call::ask(self.shared(), request).await
    }
}

/// Whether a command may be sent again, and how long it waits.
fn kind_of(command: &Command) -> Result<(Again, u64), Error> {
    let usage = |text: &str| Err(Error::Usage(text.to_owned()));
    match command {
        Command::Op(Op::Sub(_) | Op::Unsub(_)) => {
            usage("use subscribe(), which subscribes again after a reconnect")
        }
        Command::Op(op) => Ok((again(op), op.patience())),
        Command::Connection(ConnAsk::SessionOpen | ConnAsk::SessionResume(_)) => {
            usage("the client opens its session by itself")
        }
        Command::Connection(ConnAsk::Quit) => usage("use close()"),
        Command::Node(_) | Command::Connection(_) => Ok((Again::Read, 0)),
    }
}

fn again(op: &Op) -> Again {
    let owned = match op {
        Op::Lock(lock) => &lock.owner,
        Op::Unlock(unlock) => &unlock.owner,
        Op::Renew(renew) => &renew.owner,
        Op::Fetch(_) => return Again::Repeatable,
        // Its node would not answer it by itself in the session.
        Op::SetBack(_) => return Again::IfRefused,
        // A plain id means the delivery on this connection.
        Op::Nack(nack) if nack.receipt.attempt.is_none() => return Again::Never,
        op if op.is_read() => return Again::Read,
        _ => return Again::InSession,
    };
    match (op, owned) {
        (_, None) => Again::Never,
        (Op::Lock(_), Some(_)) => Again::Repeatable,
        _ => Again::InSession,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_a_connection_is_not_sent_on_another() {
        let cases = [
            ("GET k", Again::Read),
            ("SET k v", Again::InSession),
            ("INCR k", Again::InSession),
            ("LOCK a", Again::Never),
            ("LOCK a OWNER me WAIT 5", Again::Repeatable),
            ("UNLOCK a", Again::Never),
            ("UNLOCK a OWNER me TOKEN 5", Again::InSession),
            ("RENEW a OWNER me", Again::InSession),
            ("FETCH t", Again::Repeatable),
            ("ACK t 1", Again::InSession),
            ("NACK t 1", Again::Never),
            ("NACK t 1@1", Again::InSession),
            ("STATUS", Again::Read),
        ];
        for (line, expected) in cases {
            let words: Vec<Bytes> = line.split(' ').map(Bytes::from).collect();
            let command = parse(&words).expect("a command");
            assert_eq!(kind_of(&command).map(|(again, _)| again), Ok(expected), "{line}");
        }
        for line in ["SUB t", "SESSION OPEN", "QUIT"] {
            let words: Vec<Bytes> = line.split(' ').map(Bytes::from).collect();
            assert!(matches!(kind_of(&parse(&words).expect("a command")), Err(Error::Usage(_))), "{line}");
        }
    }
}
