//! Lines that this node may write by itself (SET WRITEBACK): how it does so, and how it gives them back.
//!
//! Charter: takes writes of owned lines on, has the household bring them to the home, and lets nobody know that a line
//! or a lease is given up before that.
//!
//! Invariants:
//! - A write is taken on only under a live lease, of a line that is owned and was not asked back. It changes the value of
//!   a key that exists and has no deadline, and nothing else of it.
//! - Whoever asks for a line, or for the lease, is answered when everything is brought that was acknowledged under it.
//! - What is left when a lease ends is brought all the same, to whoever leads then. It is void if somebody else has written the
//!   key meanwhile: versions never repeat.
//!
//! Subtlety: an answer that says "another version" while the lease still lasts speaks of this node's own value, of which an
//! earlier sending has arrived: nobody else can have written the key.

use alloc::format;
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::cache::{CacheWord, Grant, LeaseName};
use quorate_protocol::id::{GroupId, NodeId};
use quorate_protocol::limits::DIRTY_VALUE_MAX;
use quorate_protocol::op::Flush;
use quorate_protocol::reply::Reply;

use super::{Holder, as_text};
use crate::cache::dirty::{Brought, Counts, Entry, Owned};
#[cfg(feature = "faults")]
use crate::cache::walk::{Kind, Walk};
use crate::cache::{CacheEffect, Tracked};
use crate::effect::{Effect, Level};
use crate::keep::keep;

/// What an owned line's value may grow to, whatever it was; bytes.
const SMALL: usize = 256;

/// An answer to a home that waits until something is brought.
#[derive(Debug, Clone)]
pub(super) struct Owed {
    to: NodeId,
    word: CacheWord,
    lease: LeaseName,
    /// The invalidated keys; none of them: the whole lease.
    keys: Vec<Bytes>,
}

/// What a line's grant says of writing it.
#[derive(Debug, Clone, Copy)]
pub(in crate::cache) struct Own {
    /// The version with which the next writes begin.
    base: u64,
    /// How long a value may be: what owners bring the store takes unasked, so it must be no more than it has taken before,
    /// but for small ones.
    most: usize,
    /// For how long the line is shown after a write; none: for as long as the lease lasts. Then its home is to see that it is read.
    life: Option<u64>,
}

impl Own {
    pub(super) fn new(grant: &Grant, length: usize) -> Self {
        let most = SMALL.max(length).min(DIRTY_VALUE_MAX);
        Self { base: grant.version, most, life: grant.left }
    }
}

#[cfg(feature = "faults")]
impl Own {
    /// Adds it to a row of numbers. See `cache/walk.rs`.
    pub(super) fn walk(self, walk: &mut Walk<'_>) {
        let Self { base, most, life } = self;
        walk.one(Kind::Version, base);
        walk.count(most);
        walk.plain(life.map_or(0, |life| life.saturating_add(1)));
    }
}

#[cfg(feature = "faults")]
impl Owed {
    /// Adds what the node at this place owes to a row of numbers. See `cache/walk.rs`.
    pub(super) fn walk(&self, walk: &mut Walk<'_>, place: u8) {
        let Self { to, word, lease, keys } = self;
        walk.node(Some(*to));
        walk.word(place, word, 0);
        walk.lease(place, lease);
        walk.count(keys.len());
        keys.iter().for_each(|key| walk.bytes(key));
    }
}

impl Holder {
    /// Takes a connection's write of a key on, if this node owns the line; then it may be answered.
    pub fn absorb(&mut self, now: u64, conn: u64, group: GroupId, key: &Bytes, value: &Bytes) -> bool {
        let home = &mut self.homes[group.slot()];
        let Some(lease) = home.lease.filter(|lease| now < lease.until && !self.leaving) else { return false };
        let Some((number, own)) = home.lines.get(key).and_then(|line| Some((line.number, line.own?))) else {
            return false;
        };
        if value.len() > own.most {
            return false;
        }
        let name = LeaseName { group, term: home.term, epoch: lease.epoch };
        let (key, value) = (keep(key.clone()), keep(value.clone()));
        let was_clean = !self.dirty.has(&key);
        let owned = Owned { group, lease: name, number, base: own.base };
        if !self.dirty.take_on(now, &key, &value, owned) {
            return false;
        }
        home.read = now;
        if was_clean {
            let line = format!("{}: State M -> M, to be written back", as_text(&key));
            self.effects.push(Effect::Log(Level::Debug, line));
        }
        if self.tracked > Tracked::Nothing {
            // Clients that keep the value themselves are told by that; the one that writes, only if it wants to be.
            self.writing(conn, core::slice::from_ref(&key));
            self.effect(CacheEffect::Purge { group, keys: [key.clone()].into() });
        }
        let generation = lease.generation;
        let until = own.life.map_or(u64::MAX, |life| now.saturating_add(life));
        self.effect(CacheEffect::Fill { group, generation, key, value: Some(value), until });
        true
    }

    /// The value of a key that this node has written by itself and still owns.
    #[must_use]
    pub fn absorbed(&self, now: u64, group: GroupId, key: &Bytes) -> Option<Bytes> {
        let home = &self.homes[group.slot()];
        let owned = home.lease.is_some_and(|lease| now < lease.until)
            && home.lines.get(key).is_some_and(|line| line.own.is_some());
        self.dirty.value(key).filter(|_| owned).cloned()
    }

    /// What is to be brought to the homes, with a number for the answer.
    pub fn take_flushes(&mut self) -> Vec<(GroupId, u64, Flush)> {
        self.dirty.take_flushes()
    }

    /// Whether there is anything to be brought now.
    #[must_use]
    pub fn has_flushes(&self) -> bool {
        self.dirty.has_flushes()
    }

    /// Whether every write that was acknowledged has been brought.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.dirty.is_empty()
    }

    /// What has been counted of writes that were taken on.
    #[must_use]
    pub fn write_backs(&self) -> Counts {
        self.dirty.counts()
    }

    /// The node is about to stop: it brings what it has, and takes nothing on.
    pub fn leave(&mut self) {
        self.leaving = true;
        self.dirty.keys().iter().for_each(|key| self.dirty.bring(key));
    }

    /// What was brought is answered.
    pub fn flushed(&mut self, now: u64, key: &Bytes, id: u64, reply: &Reply) {
        if !self.dirty.is_flying(key, id) {
            // Superseded by a later write of this node's.
            return;
        }
        let Some(entry) = self.dirty.get(key) else { return };
        let (group, lease) = (entry.group, entry.lease);
        let brought = match reply {
            Reply::Int(version) if *version > 0 => Brought::As(version.unsigned_abs()),
            // Nobody else can have written it: it is what was brought before, which may be an older value than this.
            Reply::Int(version) if *version < 0 && self.is_live(now, lease) => {
                Brought::Behind(version.unsigned_abs())
            }
            Reply::Int(_) => Brought::Overwritten,
            _ => Brought::NotYet,
        };
        if let Brought::As(version) | Brought::Behind(version) = brought
            && let Some(own) = self.homes[group.slot()].lines.own_mut(key)
        {
            own.base = version;
        }
        let urgent = self.leaving || self.is_asked_back(key, lease);
        let done = self.dirty.answered(now, key, brought, urgent);
        if brought == Brought::Overwritten {
            let line = format!(
                "{}: writes of up to the last 100 ms that were acknowledged here are lost: another write of the key came first after this node's lease had ended",
                as_text(key)
            );
            self.effects.push(Effect::Log(Level::Warn, line));
        }
        let Some(entry) = done else { return };
        if brought != Brought::Overwritten {
            let line = format!("{}: State M -> M, written back", as_text(key));
            self.effects.push(Effect::Log(Level::Debug, line));
        }
        self.brought(key, &entry);
    }

    /// Whether a lease lasts, by this node's clock.
    fn is_live(&self, now: u64, lease: LeaseName) -> bool {
        let home = &self.homes[lease.group.slot()];
        let same = |mine: &super::Lease| mine.epoch == lease.epoch && now < mine.until;
        home.term == lease.term && home.lease.as_ref().is_some_and(same)
    }

    fn is_asked_back(&self, key: &Bytes, lease: LeaseName) -> bool {
        let is_line = self.homes[lease.group.slot()].lines.get(key).is_some_and(|line| line.own.is_some());
        !is_line || !self.is_known(lease)
    }

    fn is_known(&self, lease: LeaseName) -> bool {
        let home = &self.homes[lease.group.slot()];
        home.term == lease.term && home.lease.is_some_and(|mine| mine.epoch == lease.epoch)
    }

    /// Nothing is left of a key: whoever waits for that hears so.
    fn brought(&mut self, key: &Bytes, entry: &Entry) {
        if let Some(leader) = entry.evicted {
            self.evicted.entry((leader, entry.lease)).or_default().push((key.clone(), entry.number));
        }
        let (dirty, words) = (&self.dirty, &mut self.words);
        self.owed.retain(|owed| {
            let waits = match &owed.keys[..] {
                [] => dirty.any_under(owed.lease),
                keys => keys.iter().any(|key| dirty.has_under(key, owed.lease, u64::MAX)),
            };
            if !waits {
                words.push((owed.to, owed.word.clone()));
            }
            waits
        });
    }

    /// A home is to hear this once these keys of a lease (none: all of it) are brought. Brings them.
    pub(super) fn owe(&mut self, to: NodeId, word: CacheWord, lease: LeaseName, keys: Vec<Bytes>) {
        let of_lease = if keys.is_empty() { self.dirty.keys_of(lease.group) } else { keys.clone() };
        of_lease.iter().for_each(|key| self.dirty.bring(key));
        // It says everything again until it is answered.
        if !self.owed.iter().any(|owed| owed.word == word) {
            self.owed.push(Owed { to, word, lease, keys });
        }
    }

    /// Whether a home waits for something: until it has that, the lease must not end.
    pub(super) fn owes(&self, group: GroupId) -> bool {
        self.owed.iter().any(|owed| owed.lease.group == group)
    }

    /// What was acknowledged under a group's lease is brought at once: the lease is over.
    pub(super) fn bring_all(&mut self, group: GroupId) {
        self.owed.retain(|owed| owed.lease.group != group);
        self.dirty.keys_of(group).iter().for_each(|key| self.dirty.bring(key));
    }
}
