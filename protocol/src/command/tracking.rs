//! CLIENT TRACKING and its kind: what a client that keeps values itself wants to be told.
//!
//! The wording of errors is Redis' where Redis has one. What contradicts what the connection asked for before is found by
//! the connection.

use bytes::Bytes;

use super::failure;
use super::words::{Words, shown};
use crate::limits::{NAME_MAX, PREFIXES_MAX};
use crate::reply::{Code, Failure};

/// What a connection asks about its tracking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Track {
    /// CLIENT TRACKING ON …
    On(Tracks),
    /// CLIENT TRACKING OFF
    Off,
    /// CLIENT CACHING YES|NO
    Caching(bool),
    /// CLIENT TRACKINGINFO
    Info,
    /// CLIENT GETREDIR
    GetRedir,
}

/// How a connection's reads are tracked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tracks {
    /// Every key that is written is told, whether it was read or not.
    pub broadcast: bool,
    /// Only such with one of these beginnings; none: all.
    pub prefixes: Vec<Bytes>,
    /// Only reads behind CACHING YES are tracked.
    pub opt_in: bool,
    /// Reads behind CACHING NO are not tracked.
    pub opt_out: bool,
    /// What the connection writes itself is not told.
    pub no_loop: bool,
}

impl Tracks {
    fn check(&self) -> Result<(), Failure> {
        let err = |text: &str| Err(failure(Code::Err, text));
        if !self.broadcast && !self.prefixes.is_empty() {
            return err("PREFIX option requires BCAST mode to be enabled");
        }
        if self.broadcast && (self.opt_in || self.opt_out) {
            return err("OPTIN and OPTOUT are not compatible with BCAST");
        }
        if self.opt_in && self.opt_out {
            return err("You can't specify both OPTIN mode and OPTOUT mode");
        }
        for (at, prefix) in self.prefixes.iter().enumerate() {
            if let Some(other) = self.prefixes[at + 1..].iter().find(|other| overlap(prefix, other)) {
                return Err(overlapping(prefix, "another provided prefix", other));
            }
        }
        Ok(())
    }

    /// What a connection tracks by once it asks for `self`; `before`: what it tracks by already. Prefixes add up, the rest
    /// is replaced.
    ///
    /// # Errors
    /// When the two contradict each other.
    pub fn after(mut self, before: Option<&Self>) -> Result<Self, Failure> {
        before.map_or(Ok(()), |before| before.agree(&self))?;
        let known = before.map(|before| &before.prefixes[..]).unwrap_or_default();
        for prefix in &self.prefixes {
            if let Some(other) = known.iter().find(|other| overlap(prefix, other)) {
                return Err(overlapping(prefix, "an existing prefix", other));
            }
        }
        if self.broadcast && self.prefixes.is_empty() {
            // What everything begins with.
            self.prefixes.push(Bytes::new());
        }
        self.prefixes.extend_from_slice(known);
        self.prefixes.sort_unstable();
        self.prefixes.dedup();
        too_many(self.prefixes.len())?;
        Ok(self)
    }

    /// Whether the key begins with one of the prefixes.
    #[must_use]
    pub fn covers(&self, key: &[u8]) -> bool {
        self.prefixes.iter().any(|prefix| key.starts_with(prefix))
    }

    fn agree(&self, more: &Self) -> Result<(), Failure> {
        let again =
            "before disabling tracking for this client, and then re-enabling it with a different mode.";
        if self.broadcast != more.broadcast {
            return Err(failure(Code::Err, format!("You can't switch BCAST mode on/off {again}")));
        }
        if (self.opt_in && more.opt_out) || (self.opt_out && more.opt_in) {
            return Err(failure(Code::Err, format!("You can't switch OPTIN/OPTOUT mode {again}")));
        }
        Ok(())
    }
}

fn overlap(one: &Bytes, other: &Bytes) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

fn overlapping(prefix: &Bytes, what: &str, other: &Bytes) -> Failure {
    let text = format!(
        "Prefix '{}' overlaps with {what} '{}'. Prefixes for a single client must not overlap.",
        shown(prefix),
        shown(other)
    );
    failure(Code::Err, text)
}

fn too_many(prefixes: usize) -> Result<(), Failure> {
    if prefixes <= PREFIXES_MAX {
        return Ok(());
    }
    let text = format!("{prefixes} prefixes, a connection may name {PREFIXES_MAX}; name shorter ones");
    Err(failure(Code::TooBig, text))
}

/// What stands behind CLIENT and one of these names.
pub(super) fn track(name: &str, words: &mut Words<'_>) -> Result<Track, Failure> {
    match name {
        "TRACKING" => tracking(words),
        "CACHING" => {
            let word = argument(name, words)?;
            match word.to_ascii_uppercase().as_slice() {
                b"YES" => Ok(Track::Caching(true)),
                b"NO" => Ok(Track::Caching(false)),
                _ => Err(words.syntax("CLIENT CACHING takes YES or NO")),
            }
        }
        "TRACKINGINFO" => Ok(Track::Info),
        _ => Ok(Track::GetRedir),
    }
}

fn argument(name: &str, words: &mut Words<'_>) -> Result<Bytes, Failure> {
    if words.rest.is_empty() {
        let name = name.to_ascii_lowercase();
        let text =
            format!("wrong number of arguments for 'client|{name}' command; usage: {}", words.spec.syntax);
        return Err(failure(Code::Err, text));
    }
    words.next()
}

fn tracking(words: &mut Words<'_>) -> Result<Track, Failure> {
    let switch = argument("TRACKING", words)?;
    let mut tracks = Tracks::default();
    while !words.rest.is_empty() {
        let option = words.next()?;
        match option.to_ascii_uppercase().as_slice() {
            b"BCAST" => tracks.broadcast = true,
            b"OPTIN" => tracks.opt_in = true,
            b"OPTOUT" => tracks.opt_out = true,
            b"NOLOOP" => tracks.no_loop = true,
            b"PREFIX" if !words.rest.is_empty() => {
                // Copied: what was read shares its memory with the read buffer.
                let prefix = Bytes::copy_from_slice(&words.next()?);
                if prefix.len() > NAME_MAX {
                    let text = format!("prefix of {} bytes, at most {NAME_MAX} are taken", prefix.len());
                    return Err(failure(Code::TooBig, text));
                }
                tracks.prefixes.push(prefix);
                too_many(tracks.prefixes.len())?;
            }
            b"REDIRECT" => {
                let text = "REDIRECT is not spoken here: invalidations go to the connection that reads, so let it say \
                            HELLO 3 and CLIENT TRACKING ON without REDIRECT";
                return Err(failure(Code::Err, text));
            }
            _ => return Err(words.syntax(&format!("'{}' is no option of CLIENT TRACKING", shown(&option)))),
        }
    }
    match switch.to_ascii_uppercase().as_slice() {
        b"ON" => tracks.check().map(|()| Track::On(tracks)),
        b"OFF" => Ok(Track::Off),
        _ => Err(words.syntax("CLIENT TRACKING takes ON or OFF")),
    }
}
