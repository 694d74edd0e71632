//! Lines that a node writes by itself (SET WRITEBACK), in the model.
//!
//! Charter: an owner takes writes on, brings them, and gives the line back; what is read at the home waits for it. What links
//! lose is told to who brings, as the engine does when a link is cut.
//!
//! What must hold: as long as the lease of an owner lasts, by its own clock, nobody reads a value that is older than what it has
//! acknowledged; and nothing that it brings is written over something newer, whenever it comes.

use bytes::Bytes;
use quorate_engine::cache::walk::{Kind, Walk};
use quorate_protocol::id::Boot;
use quorate_protocol::op::Flush;
use quorate_protocol::reply::{Code, Reply};

use crate::flying::{Brings, Flying, Proposal, What};
use crate::world::{GROUP, Model, Node, id, name, once};

impl Model {
    /// The newest value of a key that an owner has acknowledged under a lease that lasts, if it is newer than what is in the
    /// log; otherwise 0.
    pub(crate) fn unbrought(&self, key: usize) -> u64 {
        self.nodes.iter().map(|node| self.unbrought_by(node, key)).max().unwrap_or(0)
    }

    fn unbrought_by(&self, node: &Node, key: usize) -> u64 {
        let lasts = |generation| generation == node.view.generation && self.now < node.view.until;
        let taken = node.taken_on[key].filter(|(_, generation)| lasts(*generation));
        taken.map(|(value, _)| value).filter(|value| *value > self.acknowledged[key]).unwrap_or(0)
    }

    /// Adds what a node has acknowledged to the row.
    pub(crate) fn walk_taken_on(&self, walk: &mut Walk<'_>, at: usize) {
        let node = &self.nodes[at];
        (0..node.taken_on.len()).for_each(|key| walk.one(Kind::Value, self.unbrought_by(node, key)));
    }

    /// A node that owns the line takes a write on.
    pub(crate) fn take_on(&mut self, at: usize, key: usize) -> bool {
        let value = self.last_value + 1;
        let node = &mut self.nodes[at];
        let bytes = Bytes::copy_from_slice(&value.to_le_bytes());
        if !once(&mut self.left.absorbs) || !node.holder.absorb(self.now, 1, GROUP, &name(key), &bytes) {
            return false;
        }
        self.last_value = value;
        node.taken_on[key] = Some((value, node.view.generation));
        true
    }

    /// What an owner brings leaves; within its own node it arrives at once.
    pub(crate) fn bring(&mut self, at: usize, number: u64, flush: &Flush) {
        let key = usize::from(flush.key[1] - b'0');
        let value = u64::from_le_bytes(flush.value[..].try_into().expect("values are numbers"));
        let brings = Brings { number, value, base: flush.base };
        let term = self.nodes[at].term;
        if at == self.home && term == self.term {
            self.flush_at_home(at, key, brings);
        } else {
            self.flying.push(Flying::Flush { node: at, key, brings, term });
        }
    }

    /// It passes what waits for its node, if that is the owner.
    pub(crate) fn flush_at_home(&mut self, node: usize, key: usize, brings: Brings) {
        let passes = self.directory.close_flush(self.now, id(node), &name(key));
        let waits = if passes { None } else { self.directory.close(self.now, &[name(key)], id(node), 0) };
        self.propose(waits, Proposal { node, key, what: What::Flush(brings) });
    }

    /// It is applied.
    pub(crate) fn answer_flush(&mut self, node: usize, key: usize, number: u64, version: i64) {
        if node == self.home {
            self.brought(node, key, number, version);
        } else {
            self.flying.push(Flying::Flushed { node, key, number, version });
        }
    }

    pub(crate) fn brought(&mut self, node: usize, key: usize, number: u64, version: i64) {
        self.nodes[node].holder.flushed(self.now, &name(key), number, &Reply::Int(version));
    }

    /// Whoever brings something hears that nothing is known of it.
    pub(crate) fn not_brought(&mut self, node: usize, key: usize, number: u64) {
        let reply = Reply::error(Code::InDoubt, "the link was cut");
        self.nodes[node].holder.flushed(self.now, &name(key), number, &reply);
    }

    /// Something vanishes on its way.
    pub(crate) fn lose(&mut self, at: usize) {
        match self.flying.remove(at) {
            Flying::Flush { node, key, brings, .. } => self.not_brought(node, key, brings.number),
            Flying::Flushed { node, key, number, .. } => self.not_brought(node, key, number),
            _ => {}
        }
    }

    /// A home has ended before it answered this.
    pub(crate) fn unanswered(&mut self, proposal: Proposal) {
        if let Proposal { node, key, what: What::Flush(brings) } = proposal {
            self.not_brought(node, key, brings.number);
        }
    }

    /// A read arrives. If somebody owns the line, it waits.
    pub(crate) fn read_at_home(&mut self, read: Proposal) {
        let Proposal { node, key, what: What::Read { line, behind } } = read else { return };
        match self.directory.recall_owned(self.now, &[&name(key)]) {
            Some(write) => self.held.push((write, read)),
            None => self.answer_read(node, key, line, behind),
        }
    }

    /// A read is answered out of what is applied. `behind`: what was unbrought when it was asked; what has been lost since, with
    /// its owner's lease, need not be seen.
    pub(crate) fn answer_read(&mut self, node: usize, key: usize, line: u64, behind: u64) {
        if self.now >= self.home_until {
            return;
        }
        let (value, newest) = (self.applied[key], behind.min(self.unbrought(key)));
        if value < newest {
            self.wrong = Some(format!("{value} of key {key} is read behind {newest}"));
        }
        let reader = (id(node), Boot(1));
        let epoch = self.directory.epoch_for(self.now, self.home_until, reader, line);
        let grant =
            epoch.and_then(|epoch| self.directory.grant(self.now, id(node), epoch, &name(key), false));
        self.answer(node, key, value, grant, false);
    }
}
