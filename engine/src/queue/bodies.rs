//! The messages' bodies: each on the heap, or a part of a snapshot's file that the shell has mapped into memory.
//!
//! Charter: whoever wants the bytes of a body asks here. So a backlog costs the system's page cache, not heap: once a
//! snapshot's file is mapped, the bodies that it holds are taken from there (`look_at`).
//!
//! Invariants:
//! - Where a body lies is no part of the state: digests, walks and snapshots do not know it.
//! - A body in a mapping has the checksum of what was written. Whenever the bytes are to go anywhere they are copied, and the copy is
//!   compared, because the system may read them from the disk anew at any time. When it fails, `take_damage` says so, and the engine
//!   lets nothing of the turn leave the node.
//! - Only bodies lie in mappings, and only under the key that the file has them under. What is told, or kept elsewhere (a
//!   reply of a client session, a letter in the outbox, a dead letter), is a copy. So no file but the newest is held for long.

use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::wire::{Malformed, Wire};

use super::Queues;
use super::rows::MessageKey;
use crate::keep::keep;
use crate::table::{Rows, Table, take_row};
use crate::trash::Trash;

/// Bodies below this size stay on the heap: what they would free is not worth the look.
pub const MAPPED_FROM: usize = 512;

/// A body, wherever it lies.
#[derive(Debug, Clone)]
struct Body {
    bytes: Bytes,
    /// Its checksum, if it lies in a mapping.
    mapped: Option<u32>,
}

impl Body {
    /// What may leave: bytes that nobody changes any more.
    fn taken(&self) -> Bytes {
        if self.mapped.is_some() { Bytes::copy_from_slice(&self.bytes) } else { self.bytes.clone() }
    }

    fn is_sound(&self, taken: &[u8]) -> bool {
        self.mapped.is_none_or(|known| known == crc32fast::hash(taken))
    }
}

impl Wire for Body {
    fn put(&self, out: &mut Vec<u8>) {
        self.bytes.put(out);
    }

    fn take(input: &mut Bytes) -> Result<Self, Malformed> {
        Ok(Self { bytes: keep(Bytes::take(input)?), mapped: None })
    }
}

/// See the top of the file.
pub(super) struct Bodies {
    rows: Table<MessageKey, Body>,
    /// Bodies from this size on are taken from mappings.
    from: usize,
    /// A body that is not what was written.
    damaged: Option<Bytes>,
    #[cfg(feature = "faults")]
    unchecked: bool,
}

impl Bodies {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            rows: Table::new(seed),
            from: MAPPED_FROM,
            damaged: None,
            #[cfg(feature = "faults")]
            unchecked: false,
        }
    }

    /// Switches a deliberate bug on: bytes from mappings are taken for what was written.
    #[cfg(feature = "faults")]
    pub(super) fn set_unchecked(&mut self, unchecked: bool) {
        self.unchecked = unchecked;
    }

    pub(super) fn set_map_from(&mut self, from: usize) {
        self.from = from;
    }

    pub(super) fn digest(&self) -> u64 {
        self.rows.digest()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// A body's length.
    pub(super) fn size(&self, key: &MessageKey) -> Option<usize> {
        self.rows.get(key).map(|body| body.bytes.len())
    }

    /// Bodies that lie in a mapping.
    pub(super) fn mapped(&self) -> impl Iterator<Item = &Bytes> {
        self.rows.iter().filter(|(_, body)| body.mapped.is_some()).map(|(_, body)| &body.bytes)
    }

    /// A body on the heap. One that the next snapshot's file will take may share the memory of its log entry, which is
    /// there until that snapshot anyway.
    pub(super) fn insert(&mut self, key: MessageKey, bytes: Bytes) {
        let bytes = if bytes.len() < self.from { keep(bytes) } else { bytes };
        self.rows.insert(key, Body { bytes, mapped: None });
    }

    /// Takes a body away; returns its length.
    pub(super) fn remove(&mut self, key: &MessageKey) -> Option<usize> {
        self.rows.remove(key).map(|body| body.bytes.len())
    }

    /// A body, to be told to somebody.
    pub(super) fn get(&mut self, key: &MessageKey) -> Option<Bytes> {
        let body = self.rows.get(key)?;
        let taken = body.taken();
        #[cfg(feature = "faults")]
        if self.unchecked {
            return Some(taken);
        }
        if body.is_sound(&taken) {
            return Some(taken);
        }
        // It has a body as long as the turn lasts, of which nothing leaves the node.
        self.damaged = Some(body.bytes.clone());
        Some(Bytes::new())
    }

    /// A body, to be kept elsewhere.
    pub(super) fn copy(&mut self, key: &MessageKey) -> Option<Bytes> {
        let is_mapped = self.rows.get(key)?.mapped.is_some();
        let taken = self.get(key)?;
        Some(if is_mapped { taken } else { keep(taken) })
    }

    /// A body as it lies there, not to be told or kept.
    pub(super) fn unchecked(&self, key: &MessageKey) -> Option<Bytes> {
        self.rows.get(key).map(|body| body.bytes.clone())
    }

    /// A body that was found not to be what was written, once.
    pub(super) fn take_damage(&mut self) -> Option<Bytes> {
        self.damaged.take()
    }

    /// Reads one row of a snapshot and puts it; returns the body's length.
    pub(super) fn load(&mut self, input: &mut Bytes) -> Result<usize, Malformed> {
        let (key, body) = take_row::<MessageKey, Body>(input)?;
        let size = body.bytes.len();
        self.rows.insert(key, body);
        Ok(size)
    }

    pub(super) fn discard(self, trash: &mut Trash) {
        self.rows.discard(trash, |body| if body.mapped.is_some() { 0 } else { body.bytes.len() });
    }
}

impl Queues {
    /// Bodies from this size on are taken from mapped snapshots.
    pub fn set_map_from(&mut self, from: usize) {
        self.bodies.set_map_from(from);
    }

    /// Whether there is any message.
    #[must_use]
    pub fn has_bodies(&self) -> bool {
        !self.messages.is_empty()
    }

    /// The bodies that lie in mapped snapshots.
    pub fn mapped(&self) -> impl Iterator<Item = &Bytes> {
        self.bodies.mapped()
    }

    /// A body in a mapped snapshot that was found not to be what was written, once.
    pub fn take_damage(&mut self) -> Option<Bytes> {
        self.bodies.take_damage()
    }
}

impl Rows for Bodies {
    fn id(&self) -> u64 {
        self.rows.id()
    }

    fn clear(&mut self) {
        self.rows.clear();
    }

    fn begin_walk(&mut self) {
        self.rows.begin_walk();
    }

    fn end_walk(&mut self) {
        self.rows.end_walk();
    }

    fn show(&mut self, target: usize, out: &mut Vec<u8>) -> (u64, bool) {
        let Self { rows: table, damaged, .. } = self;
        #[cfg(feature = "faults")]
        let unchecked = self.unchecked;
        #[cfg(not(feature = "faults"))]
        let unchecked = false;
        let mut rows = 0;
        let goes_on = table.walk(|key, body| {
            key.put(out);
            body.put(out);
            // What was put ends with the bytes.
            if !unchecked && !body.is_sound(&out[out.len() - body.bytes.len()..]) {
                *damaged = Some(body.bytes.clone());
            }
            rows += 1;
            out.len() < target
        });
        (rows, goes_on)
    }

    /// Takes the body of a row from where it lies now, if it is still the same.
    fn look_at(&mut self, input: &mut Bytes) -> Result<(), Malformed> {
        let (key, bytes) = take_row::<MessageKey, Bytes>(input)?;
        if bytes.len() < self.from {
            return Ok(());
        }
        let same = self.rows.replace(&key, |body| {
            if core::ptr::eq(&raw const *body.bytes, &raw const *bytes) {
                return true;
            }
            let checksum = crc32fast::hash(&bytes);
            let same = match body.mapped {
                // Nobody looks at the older file for that.
                Some(known) => known == checksum && body.bytes.len() == bytes.len(),
                None => body.bytes == bytes,
            };
            *body = Body { bytes, mapped: Some(checksum) };
            same
        });
        if same == Some(false) {
            return Err(Malformed("it holds another body of a message than was published"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    const KEY: MessageKey = (1, 2);

    /// A body in a mapping that gives back other bytes than were written.
    fn damaged() -> Bodies {
        let mut bodies = Bodies::new(602);
        let mapped = Some(crc32fast::hash(b"as it was"));
        bodies.rows.insert(KEY, Body { bytes: Bytes::from_static(b"as it is "), mapped });
        bodies
    }

    #[test]
    fn a_body_that_is_not_what_was_written_is_told_to_nobody() {
        let uses: [fn(&mut Bodies) -> Option<Bytes>; 2] = [|all| all.get(&KEY), |all| all.copy(&KEY)];
        for told in uses {
            let mut bodies = damaged();
            assert_eq!(told(&mut bodies), Some(Bytes::new()));
            assert_eq!(bodies.take_damage(), Some(Bytes::from_static(b"as it is ")));
        }
        let mut bodies = damaged();
        bodies.begin_walk();
        let mut shown = vec![];
        bodies.show(1000, &mut shown);
        assert!(bodies.take_damage().is_some(), "nor to another file");
        assert_eq!(bodies.take_damage(), None, "once");
        assert_eq!(bodies.remove(&KEY), Some(9), "what is not looked at may be anything");
        assert_eq!(bodies.take_damage(), None);
    }

    #[test]
    fn what_is_kept_elsewhere_holds_no_file() {
        let mut bodies = damaged();
        let file = Bytes::from_static(b"as it was");
        bodies.rows.insert(KEY, Body { mapped: Some(crc32fast::hash(&file)), bytes: file.clone() });
        let told = bodies.get(&KEY).unwrap();
        assert!(
            told == file && told.as_ptr() != file.as_ptr(),
            "what waits for its client is not read again"
        );
        let copy = bodies.copy(&KEY).unwrap();
        assert!(copy == file && copy.as_ptr() != file.as_ptr());
        bodies.insert(KEY, copy.clone());
        let again = bodies.copy(&KEY).unwrap();
        assert!(again == copy && again.as_ptr() != copy.as_ptr(), "nor a log entry");
    }
}
