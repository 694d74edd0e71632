//! What is on its way, between nodes and in the home's log, and what has happened so far.

use std::sync::Arc;

use quorate_engine::cache::walk::{Kind, Walk};
use quorate_protocol::cache::{CacheWord, Grant, WISH};
use quorate_protocol::id::Term;

use crate::world::{LEASE, id};

#[derive(Debug, Clone)]
pub(crate) enum Flying {
    Word {
        from: usize,
        to: usize,
        word: CacheWord,
    },
    /// `behind`: what an owner had acknowledged and not brought when it was asked.
    Read {
        node: usize,
        key: usize,
        line: u64,
        behind: u64,
        term: Term,
    },
    /// `back`: it asks for the line as its node's own.
    Write {
        node: usize,
        key: usize,
        gave_up: u64,
        back: bool,
        term: Term,
    },
    Filled {
        node: usize,
        key: usize,
        value: u64,
        grant: Grant,
        written: bool,
    },
    /// What an owner brings, and the answer: the version, negative if it is another one than it began with.
    Flush {
        node: usize,
        key: usize,
        brings: Brings,
        term: Term,
    },
    Flushed {
        node: usize,
        key: usize,
        number: u64,
        version: i64,
    },
}

/// A value that an owner brings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Brings {
    pub(crate) number: u64,
    pub(crate) value: u64,
    pub(crate) base: u64,
}

impl Brings {
    fn walk(self, walk: &mut Walk<'_>, place: u8) {
        walk.one(Kind::Flush(place), self.number);
        walk.one(Kind::Value, self.value);
        walk.one(Kind::Version, self.base);
    }
}

impl Flying {
    /// The link on which it travels: whose, and in which direction.
    pub(crate) fn link(&self) -> Option<(usize, bool)> {
        match self {
            Self::Word { .. } => None,
            Self::Read { node, .. } | Self::Write { node, .. } | Self::Flush { node, .. } => {
                Some((*node, true))
            }
            Self::Filled { node, .. } | Self::Flushed { node, .. } => Some((*node, false)),
        }
    }

    /// Adds it to the row; what is of one link begins with the same two numbers.
    pub(crate) fn walk(&self, walk: &mut Walk<'_>) {
        let (way, node) = match self {
            Self::Word { from, to, word } => (3_u8, if word.is_for_home() { *from } else { *to }),
            Self::Read { node, .. } | Self::Write { node, .. } | Self::Flush { node, .. } => (1, *node),
            Self::Filled { node, .. } | Self::Flushed { node, .. } => (2, *node),
        };
        let place = walk.place(Some(id(node)));
        walk.plain(way);
        walk.plain(place);
        match self {
            Self::Word { word, .. } => walk.word(place, word, LEASE),
            Self::Read { key, line, behind, term, .. } => {
                [1, *key as u64, *term].into_iter().for_each(|number| walk.plain(number));
                walk.one(Kind::Value, *behind);
                walk_line(walk, place, *line);
            }
            Self::Write { key, gave_up, back, term, .. } => {
                [2, *key as u64, *term, u64::from(*back)].into_iter().for_each(|number| walk.plain(number));
                walk.one(Kind::Number(place), *gave_up);
            }
            Self::Flush { key, brings, term, .. } => {
                [3, *key as u64, *term].into_iter().for_each(|number| walk.plain(number));
                brings.walk(walk, place);
            }
            Self::Filled { key, value, grant, written, .. } => {
                [4, *key as u64].into_iter().for_each(|number| walk.plain(number));
                walk.lease(place, &grant.lease);
                walk.one(Kind::Number(place), grant.number);
                walk.one(Kind::Value, *value);
                walk.one(Kind::Version, grant.version);
                walk.plain(grant.exclusive);
                walk.plain(grant.owned);
                walk.plain(*written);
            }
            Self::Flushed { key, number, version, .. } => {
                [5, *key as u64, u64::from(*version > 0)].into_iter().for_each(|number| walk.plain(number));
                walk.one(Kind::Flush(place), *number);
                walk.one(Kind::Version, version.unsigned_abs());
            }
        }
    }
}

/// What a read says of the line that it would bring.
fn walk_line(walk: &mut Walk<'_>, place: u8, line: u64) {
    if line & WISH == 0 {
        walk.one(Kind::Epoch(place), line);
    } else {
        walk.passed(line & !WISH, LEASE);
    }
}

/// Something that waits at the home, or in its log.
#[derive(Debug, Clone)]
pub(crate) struct Proposal {
    pub(crate) node: usize,
    pub(crate) key: usize,
    pub(crate) what: What,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum What {
    Set,
    SetBack,
    Flush(Brings),
    /// It has waited for an owner, and is answered behind what is in the log.
    Read {
        line: u64,
        behind: u64,
    },
}

impl Proposal {
    pub(crate) fn walk(&self, walk: &mut Walk<'_>) {
        let place = walk.place(Some(id(self.node)));
        walk.plain(place);
        walk.count(self.key);
        match self.what {
            What::Set => walk.plain(1_u8),
            What::SetBack => walk.plain(2_u8),
            What::Flush(brings) => {
                walk.plain(3_u8);
                brings.walk(walk, place);
            }
            What::Read { line, behind } => {
                walk.plain(4_u8);
                walk.one(Kind::Value, behind);
                walk_line(walk, place, line);
            }
        }
    }
}

/// What has happened, newest first; for whoever reads a failure.
#[derive(Clone, Default)]
pub(crate) struct Story(Option<Arc<Event>>);

struct Event {
    what: &'static str,
    places: Vec<usize>,
    flying: Option<Flying>,
    before: Story,
}

impl Story {
    pub(crate) fn add(&mut self, what: &'static str, places: &[usize], flying: Option<Flying>) {
        let event = Event { what, places: places.to_vec(), flying, before: self.clone() };
        *self = Self(Some(Arc::new(event)));
    }
}

impl std::fmt::Debug for Story {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Some(last) = &self.0 else { return Ok(()) };
        let Event { what, places, flying, before } = &**last;
        write!(f, "{before:?}\n  {what} {places:?} {flying:?}")
    }
}
