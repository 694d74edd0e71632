//! The newest snapshot's file, mapped into memory: what of the state may lie there is taken from there.
//!
//! Charter: when a snapshot is named in the row, the shell is asked to map its file (`Effect::Map`); then the file is gone
//! through in portions, and so it is when a transfer of it begins. What a start has found mapped was gone through when
//! it was loaded.
//!
//! Invariants:
//! - Behind that, nothing of the state lies in an older file: it can lose its room on the disk. No newer snapshot is begun
//!   before, so no walk has rows that lie there.
//! - What is found not to be what was written is told once, and then nothing more leaves the node (`Engine::step`).
//!
//! Subtlety: a file that cannot be mapped changes nothing. The older one stays held until the next can be.

use alloc::format;
use alloc::string::String;
use bytes::Bytes;
use quorate_protocol::id::{GroupId, Index};

use super::Group;
use crate::journal::File;
use crate::snapshot::Pass;

/// See the top of the file.
#[derive(Default)]
pub(super) struct Mapped {
    /// The file that the shell is to map, and whether it was asked.
    wanted: Option<(Index, bool)>,
    /// The newest file that is mapped.
    newest: Option<(Index, Bytes)>,
    /// The one before, as long as something may lie there.
    former: Option<(Index, Bytes)>,
    pass: Option<Pass>,
    damage: Option<String>,
}

impl Mapped {
    /// What was loaded when the node started.
    pub(super) fn found(index: Index, file: Bytes) -> Self {
        Self { newest: Some((index, file)), ..Self::default() }
    }
}

impl Group {
    /// A new snapshot is named in the row.
    pub(super) fn want_map(&mut self) {
        self.mapped.pass = None;
        if self.state.may_be_mapped() {
            self.mapped.wanted = Some((self.row.snapshot.0, false));
        }
    }

    /// The state is another one, of which nothing is mapped.
    pub(super) fn forget_maps(&mut self) {
        self.mapped = Mapped::default();
    }

    /// The snapshot whose file the shell is to map now.
    pub fn take_wanted_map(&mut self) -> Option<Index> {
        let (index, asked) = self.mapped.wanted.as_mut().filter(|(_, asked)| !asked)?;
        *asked = true;
        Some(*index)
    }

    /// The shell has mapped a file, or could not.
    pub fn map(&mut self, index: Index, file: Option<Bytes>) {
        if self.mapped.wanted.take_if(|(wanted, asked)| *wanted == index && *asked).is_none() {
            return;
        }
        let Some(file) = file else { return };
        if self.state.has_bodies() {
            self.mapped.pass = Some(Pass::new(self.id, index, file.clone()));
            self.mapped.former = self.mapped.newest.take();
        }
        // Otherwise nothing lies in the older one.
        self.mapped.newest = Some((index, file));
    }

    /// Whether a mapped file is being gone through, or is about to be.
    #[must_use]
    pub fn is_mapping(&self) -> bool {
        self.mapped.wanted.is_some() || self.mapped.pass.is_some()
    }

    /// Whether `look_through` would find something to do.
    #[must_use]
    pub fn has_pass(&self) -> bool {
        self.mapped.pass.is_some()
    }

    /// Somebody begins to fetch the newest snapshot: it is looked whether it is still whole.
    pub(super) fn look_again(&mut self) {
        if let (None, Some((index, file))) = (&self.mapped.pass, &self.mapped.newest)
            && *index == self.row.snapshot.0
        {
            self.mapped.pass = Some(Pass::new(self.id, *index, file.clone()));
        }
    }

    /// Goes on through a mapped file, as far as `room` goes.
    pub fn look_through(&mut self, room: &mut usize) {
        let Some(pass) = &mut self.mapped.pass else { return };
        match pass.work(&mut self.state, room) {
            Ok(false) => {}
            Ok(true) => {
                self.mapped.pass = None;
                self.mapped.former = None;
                debug_assert!(self.lies_in_newest(), "nothing lies in an older file");
            }
            Err(why) => {
                let index = self.mapped.newest.as_ref().map_or(0, |(index, _)| *index);
                self.mapped.damage = Some(told(self.id, index, why.0));
                self.mapped.pass = None;
            }
        }
    }

    fn lies_in_newest(&self) -> bool {
        let newest = self.mapped.newest.as_ref().map(|(_, file)| file.as_ptr_range());
        self.state.mapped().all(|part| newest.as_ref().is_some_and(|file| file.contains(&part.as_ptr())))
    }

    /// What was found to be damaged in a mapped file, once: a sentence that says what to do.
    pub fn take_damage(&mut self) -> Option<String> {
        if let Some(bytes) = self.state.take_damage() {
            let inside = |file: &&(Index, Bytes)| file.1.as_ptr_range().contains(&bytes.as_ptr());
            let files = [&self.mapped.newest, &self.mapped.former];
            let file = files.into_iter().flatten().find(inside);
            let index = file.map_or(0, |(index, _)| *index);
            self.mapped.damage =
                Some(told(self.id, index, "a message in it is not the one that was published"));
        }
        self.mapped.damage.take()
    }
}

fn told(group: GroupId, index: Index, why: &str) -> String {
    let file = File::Snapshot(group, index).path();
    format!(
        "the disk does not give back what was written: {file} is damaged ({why}); nothing of it was told to anybody, and this \
         node stops. Start it again: it finds the damage and fetches what is lost from the other nodes; if it comes again, \
         replace the disk. A node without others needs a backup (quorate-server restore)"
    )
}
