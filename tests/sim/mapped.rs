//! What a node has mapped of its snapshots: bytes that are read from its disk whenever they are looked at.
//!
//! Charter: the files are anonymous ones of the operating system, mapped as the server maps its own, so that a bit that flips
//! in one is seen by an engine that holds parts of it.
//!
//! Invariant: equal worlds map equal bytes at equal times; the operating system decides nothing.

use std::collections::BTreeMap;
use std::fs::File as Anonymous;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use quorate_engine::effect::Input;
use quorate_engine::journal::{File, Recovered};
use quorate_protocol::id::{GroupId, Index};
use rustix::fs::{MemfdFlags, memfd_create};

use super::world::{Event, World};

/// The newest mapped file of each group.
#[derive(Debug, Default)]
pub struct Maps(BTreeMap<GroupId, (Index, Anonymous)>);

impl Maps {
    /// The node is gone.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    fn map(&mut self, group: GroupId, index: Index, bytes: &[u8]) -> Bytes {
        let file = memfd_create("snapshot", MemfdFlags::CLOEXEC).expect("there is memory");
        let file = Anonymous::from(file);
        file.write_all_at(bytes, 0).expect("there is memory");
        let mapped = quorate_server::journal::map(&file).expect("there is memory");
        self.0.insert(group, (index, file));
        mapped
    }

    /// What a start has read is mapped.
    pub fn found(&mut self, recovered: &mut Recovered) {
        for (group, bytes) in &mut recovered.snapshots {
            let index = recovered.rows.get(group).map_or(0, |row| row.snapshot.0);
            *bytes = self.map(*group, index, bytes);
        }
    }
}

impl World {
    /// The engine wants a file mapped.
    pub fn want_map(&mut self, at: usize, group: GroupId, index: Index) {
        let life = self.nodes[at].life;
        let done = self.time + self.nodes[at].background.latency();
        self.schedule(done, Event::Map { node: at, life, group, index });
    }

    /// A file is mapped, as it is by now.
    pub fn mapped(&mut self, at: usize, life: u64, group: GroupId, index: Index) {
        let node = &mut self.nodes[at];
        if node.life != life {
            return;
        }
        let bytes = node.disk.bytes(File::Snapshot(group, index));
        let bytes = bytes.map(|bytes| node.maps.map(group, index, bytes));
        self.note(at, &[9, u64::from(group.0), index], || {
            format!("maps {}:{index}: {:?} bytes", group.0, bytes.as_ref().map(Bytes::len))
        });
        self.post(at, Input::Mapped { group, index, bytes });
    }

    /// A bit flips, or some do, in a mapped file of a node that runs, and on its disk.
    pub fn rot(&mut self, at: usize) {
        let rng = &mut self.fault_rng;
        let node = &mut self.nodes[at];
        let files: Vec<GroupId> =
            node.maps.0.keys().copied().filter(|group| *group != GroupId::SYSTEM).collect();
        if !node.is_up() || files.is_empty() {
            return;
        }
        let group = files[rng.index(files.len())];
        let (index, file) = &node.maps.0[&group];
        let length = file.metadata().expect("it is there").len();
        let mut bytes = vec![0; usize::try_from(length).expect("files are small")];
        file.read_exact_at(&mut bytes, 0).expect("it is there");
        // Most often within a message's body: see `workload.rs`.
        let is_body = |place: &usize| bytes[*place] == b'm' && bytes[place + 1].is_ascii_digit();
        let bodies: Vec<usize> = (0..bytes.len().saturating_sub(1)).filter(is_body).collect();
        let places = match rng.below(3) {
            0 if !bodies.is_empty() => vec![bodies[rng.index(bodies.len())] + 1],
            1 => bodies.into_iter().map(|place| place + 1).collect(),
            _ => vec![rng.index(bytes.len())],
        };
        let name = File::Snapshot(group, *index);
        for &place in &places {
            let flipped = bytes[place] ^ (1 << rng.below(3));
            file.write_all_at(&[flipped], place as u64).expect("it is there");
            node.disk.rot(name, place, flipped);
        }
        self.checks.flipped(at);
        self.note(at, &[54, places.len() as u64], || format!("bits of {} flip at {places:?}", name.path()));
    }

    /// An engine does not trust its disk any more, and must have a reason.
    pub fn stops(&mut self, at: usize, why: &str) {
        self.note(at, &[55], || format!("stops: {why}"));
        if !self.checks.may_be_ruined(at) {
            self.fail("journal", format!("node {} does not trust its sound disk: {why}", at + 1));
        }
        self.checks.stops += 1;
        self.crash(at, false, false);
        let back = self.time + 1000 + self.fault_rng.below(2_000_000);
        self.schedule(back, Event::Start { node: at });
    }
}
