//! A walk through a snapshot's file that is mapped into memory: every chunk is checked, and the state takes from it what
//! may lie there (`table::Rows::look_at`).
//!
//! Invariant: the state's contents stay as they are. When the walk has ended, nothing of the state lies in an older file.

use bytes::Bytes;
use quorate_protocol::chunk::{Chunks, FOOTER, ROWS};
use quorate_protocol::id::{GroupId, Index};
use quorate_protocol::wire::Malformed;

use crate::state::{Sections, State};

/// See the top of the file.
pub struct Pass {
    chunks: Chunks,
    sections: Sections,
}

impl Pass {
    /// A walk through the file of a group's snapshot at an index.
    #[must_use]
    pub fn new(group: GroupId, index: Index, file: Bytes) -> Self {
        let mut chunks = Chunks::new(group, index);
        chunks.feed(file);
        Self { chunks, sections: Sections::default() }
    }

    /// Goes on as far as `room` goes, which counts bytes and rows as `State::load` does; true at the end.
    ///
    /// # Errors
    /// When the file is not what was written.
    pub fn work(&mut self, state: &mut State, room: &mut usize) -> Result<bool, Malformed> {
        while *room > 0 {
            if !self.sections.is_empty() {
                state.look_at(&mut self.sections, room)?;
                continue;
            }
            let Some((kind, payload)) = self.chunks.next()? else {
                return Err(Malformed("it ends without its footer"));
            };
            *room = room.saturating_sub(payload.len() / 8);
            match kind {
                FOOTER => return Ok(true),
                ROWS => self.sections = Sections::new(payload),
                _ => {}
            }
        }
        Ok(false)
    }
}
