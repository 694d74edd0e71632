//! Why a call did not bring what was asked for, and what may be said of its effect.

use quorate_protocol::reply::{Code, Failure, Reply};

/// Why a call failed.
///
/// | variant | has it taken effect? | what to do |
/// |---|---|---|
/// | `Refused` | no | as the sentence says; with a code of [`Error::is_passing`], ask again |
/// | `InDoubt` | perhaps, now or later | read before asking again |
/// | `Lost` | what it held or asked for went with the connection | ask again |
/// | `Timeout` | no | ask again, or give it more time |
/// | `Unreachable`, `Closed` | no | see that a node runs; make a new client |
/// | `Usage` | no | correct the call |
/// | `Unexpected` | yes | the server is newer than this client |
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The cluster said no: the code, and a sentence that says what to do.
    Refused(Failure),
    /// The outcome is unknown: the command may or may not take effect.
    InDoubt(String),
    /// The connection ended, and the request belonged to it: a lock of the connection, for example, is gone
    /// with it.
    Lost(String),
    /// No answer in time, to something that has no effect: a read, or a request that never left.
    Timeout,
    /// No node could be reached.
    Unreachable(String),
    /// The client is closed.
    Closed,
    /// The call cannot be made like this.
    Usage(String),
    /// An answer of a shape that this client does not know.
    Unexpected(Box<Reply>),
}

impl Error {
    /// Whether the cluster promises that the command was not executed and that asking again may succeed:
    /// `CLUSTERDOWN`, `TRYAGAIN`, `BUSY`, `LOADING`.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        self.code().is_some_and(Code::never_proposed)
    }

    /// The code of a refusal.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        if let Self::Refused(failure) = self { Some(failure.code) } else { None }
    }
}

impl core::fmt::Display for Error {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Refused(failure) => write!(f, "refused: {failure}"),
            Self::InDoubt(why) => write!(f, "in doubt, read before asking again: {why}"),
            Self::Lost(why) => write!(f, "lost with its connection, ask again: {why}"),
            Self::Timeout => write!(f, "no answer in time; nothing has changed, ask again"),
            Self::Unreachable(why) => write!(f, "no node can be reached, see that one runs: {why}"),
            Self::Closed => write!(f, "this client is closed, make a new one"),
            Self::Usage(what) => write!(f, "{what}"),
            Self::Unexpected(reply) => {
                write!(f, "an answer that this client does not know, it may be too old: {reply:?}")
            }
        }
    }
}

impl std::error::Error for Error {}
