//! Telnet's negotiation, that clients put between the bytes of a line (RFC 854, RFC 855).
//!
//! Charter: tells, byte by byte, what belongs to the line and what to negotiation: `IAC command`, `IAC WILL|WONT|DO|DONT option`,
//! `IAC SB … IAC SE`. `IAC IAC` is the byte 0xFF itself; an IAC before a byte that is no command is left out alone.
//!
//! Invariant: nothing is remembered but where a sequence stands, so it may be split anywhere. A line end within negotiation ends no
//! line: a window of ten rows says 0x0A.

/// "Interpret as command".
pub(crate) const IAC: u8 = 0xff;
/// The end of a sub-negotiation, and the first byte that is a command.
const SE: u8 = 240;
/// The begin of one.
const SB: u8 = 250;
/// Of the commands that name an option.
const WILL: u8 = 251;
const DONT: u8 = 254;

/// Where in a sequence a byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Telnet {
    /// In none.
    #[default]
    Text,
    /// Behind IAC.
    Command,
    /// Behind IAC and a command that names an option.
    Option,
    /// Behind IAC SB.
    Sub,
    /// Behind an IAC in there.
    SubCommand,
}

impl Telnet {
    /// Takes a byte; whether it belongs to the line.
    pub(crate) fn takes(&mut self, byte: u8) -> bool {
        let (next, text) = match (*self, byte) {
            (Self::Text, IAC) => (Self::Command, false),
            (Self::Text, _) | (Self::Command, IAC | ..SE) => (Self::Text, true),
            (Self::Command, SB) => (Self::Sub, false),
            (Self::Command, WILL..=DONT) => (Self::Option, false),
            (Self::Command, _) | (Self::Option, _) | (Self::SubCommand, SE) => (Self::Text, false),
            (Self::Sub, IAC) => (Self::SubCommand, false),
            (Self::Sub | Self::SubCommand, _) => (Self::Sub, false),
        };
        *self = next;
        text
    }

    /// Goes on through the bytes of a buffer from `at`, up to the end of the line; where that is, if it is there.
    pub(crate) fn find_end(&mut self, buffer: &[u8], mut at: usize) -> Option<usize> {
        while let Some(rest) = buffer.get(at..) {
            if *self == Self::Text {
                at += rest.iter().position(|&byte| byte == b'\n' || byte == IAC)?;
            }
            let byte = *buffer.get(at)?;
            if self.takes(byte) && byte == b'\n' {
                return Some(at);
            }
            at += 1;
        }
        None
    }
}

/// A line without negotiation.
pub(crate) fn without(line: &[u8]) -> Vec<u8> {
    let mut telnet = Telnet::Text;
    line.iter().copied().filter(|&byte| telnet.takes(byte)).collect()
}
