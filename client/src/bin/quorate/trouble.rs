//! What goes wrong: a sentence, and an exit code that a script can tell from others.

use quorate_client::Error;

/// Refused by the cluster.
pub(crate) const REFUSED: u8 = 1;
/// The command line is wrong.
pub(crate) const USAGE: u8 = 2;
/// It may or may not have taken effect.
pub(crate) const IN_DOUBT: u8 = 3;
/// No node answers. (EX_UNAVAILABLE)
pub(crate) const UNAVAILABLE: u8 = 69;
/// Something that should not happen. (EX_SOFTWARE)
pub(crate) const INTERNAL: u8 = 70;
/// The lock was not granted in time. (EX_CANTCREAT)
pub(crate) const NOT_GRANTED: u8 = 73;
/// The lock was lost while the program ran. (EX_TEMPFAIL)
pub(crate) const LOCK_LOST: u8 = 75;
/// The program cannot be run, as shells say it.
pub(crate) const NOT_RUNNABLE: u8 = 126;
/// There is no such program, as shells say it.
pub(crate) const NOT_FOUND: u8 = 127;
/// Interrupted by Ctrl-C, as shells say it.
pub(crate) const INTERRUPTED: u8 = 130;

/// A failure as it is told.
#[derive(Debug)]
pub(crate) struct Trouble {
    /// The exit code.
    pub(crate) exit: u8,
    /// The code of the cluster's refusal, or empty.
    pub(crate) code: &'static str,
    /// A sentence that says what to do.
    pub(crate) text: String,
}

impl Trouble {
    pub(crate) fn new(exit: u8, text: impl Into<String>) -> Self {
        Self { exit, code: "", text: text.into() }
    }

    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self::new(USAGE, text)
    }

    pub(crate) fn internal(text: impl Into<String>) -> Self {
        Self::new(INTERNAL, text)
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused(failure) => Self { exit: REFUSED, code: failure.code.word(), text: failure.text },
            Error::InDoubt(_) => Self { code: "INDOUBT", ..Self::new(IN_DOUBT, error.to_string()) },
            Error::Unreachable(why) => Self::new(
                UNAVAILABLE,
                format!(
                    "no node serves ({why}); see that nodes run, and give their client ports with --server"
                ),
            ),
            Error::Lost(_) | Error::Timeout => Self::new(UNAVAILABLE, error.to_string()),
            Error::Usage(text) => Self::usage(text),
            Error::Closed | Error::Unexpected(_) => Self::internal(error.to_string()),
        }
    }
}

impl core::fmt::Display for Trouble {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let gap = if self.code.is_empty() { "" } else { " " };
        write!(f, "{}{gap}{}", self.code, self.text)
    }
}
