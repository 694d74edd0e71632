//! What a turn has for others: Raft messages, answers, messages for subscribers, words of the cache's protocol.
//!
//! Invariant: frames are of a moderate size, and what goes to one node goes in the order in which it came about.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use quorate_protocol::cache::CacheWord;
use quorate_protocol::id::{GroupId, NodeId};
use quorate_protocol::limits::PEER_FRAME_TARGET;
use quorate_protocol::peer::{Answer, LinkFrame, RaftFrame, RaftMessage};

use super::Engine;
use crate::effect::{Effect, Effects, Level, Side};
use crate::group::{Group, Told};

impl Engine {
    pub(super) fn send_raft(&self, messages: Vec<RaftMessage>, with_leading: bool, fx: &mut Effects) {
        if with_leading {
            self.tell_all(fx);
        }
        let mut by_peer: BTreeMap<NodeId, Vec<RaftMessage>> = BTreeMap::new();
        for message in messages {
            by_peer.entry(message.to.node).or_default().push(message);
        }
        for (to, messages) in by_peer {
            for messages in in_frames(messages, RaftMessage::weight) {
                let frame = RaftFrame { messages, ..RaftFrame::default() };
                fx.push(Effect::Raft { to, frame });
            }
        }
    }

    /// Hands on the words of the cache's protocol that are for this node itself, and gathers the others. Whether there
    /// were any for this node.
    pub(super) fn tell_cache(&mut self, mono: u64, out: &mut BTreeMap<NodeId, Vec<CacheWord>>) -> bool {
        let mut here = Vec::new();
        let of_groups = self.groups.values_mut().flat_map(Group::take_cache_words);
        for (to, word) in of_groups.chain(self.gateway.holder.take_words()) {
            if to == self.me {
                here.push(word);
            } else {
                out.entry(to).or_default().push(word);
            }
        }
        let any = !here.is_empty();
        for word in here {
            self.hear_cache(mono, self.me, word);
        }
        any
    }

    pub(super) fn hear_cache(&mut self, mono: u64, from: NodeId, word: CacheWord) {
        if !word.is_for_home() {
            return self.gateway.holder.hear(mono, from, word);
        }
        let id = word.group();
        if let Some(group) = self.groups.get_mut(&id) {
            group.hear_cache(mono, from, word);
            self.awake.insert(id);
        }
    }

    /// An answer to an invalidation leaves behind the effect that purges the view.
    pub(super) fn send_cache_words(&mut self, words: BTreeMap<NodeId, Vec<CacheWord>>, fx: &mut Effects) {
        self.gateway.holder.take_effects(fx);
        for (to, words) in words {
            for cache in in_frames(words, CacheWord::weight) {
                fx.push(Effect::Raft { to, frame: RaftFrame { cache, ..RaftFrame::default() } });
            }
        }
    }

    /// Brings what groups tell to where it belongs; whether anything was told to this node itself.
    pub(super) fn tell(&mut self, mono: u64, awake: &BTreeSet<GroupId>, fx: &mut Effects) -> bool {
        let mut here = false;
        let mut pushes: BTreeMap<NodeId, Vec<_>> = BTreeMap::new();
        let mut all = core::mem::take(&mut self.last_words);
        for id in awake {
            all.append(&mut self.groups.get_mut(id).map(Group::take_told).unwrap_or_default());
        }
        for told in all {
            match told {
                Told::Answer(answer) if answer.conn.node == self.me => {
                    here = true;
                    self.gateway.answered(mono, answer);
                }
                Told::Answer(answer) => self.answers.entry(answer.conn.node).or_default().push(answer),
                Told::Push(conn, delivery) if conn.node == self.me => self.gateway.pushed(conn, delivery),
                Told::Push(conn, delivery) => pushes.entry(conn.node).or_default().push((conn, delivery)),
                Told::Notice(line) => fx.push(Effect::Log(Level::Warn, line)),
            }
        }
        if !pushes.is_empty() {
            // A subscriber hears the answer to its SUB before its first message.
            self.deliver_answers(fx);
        }
        for (peer, pushes) in pushes {
            for pushes in in_frames(pushes, |(_, delivery)| delivery.weight()) {
                fx.push(Effect::Link { peer, side: Side::Reached, frame: LinkFrame::Pushes(pushes) });
            }
        }
        here
    }

    pub(super) fn deliver_answers(&mut self, fx: &mut Effects) {
        for (peer, answers) in core::mem::take(&mut self.answers) {
            for answers in in_frames(answers, Answer::weight) {
                fx.push(Effect::Link { peer, side: Side::Reached, frame: LinkFrame::Answers(answers) });
            }
        }
    }
}

/// Cuts what a turn has for a peer into frames of a moderate size; one larger thing fits alone.
fn in_frames<T>(all: Vec<T>, weight: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let mut frames: Vec<Vec<T>> = Vec::new();
    let mut size = usize::MAX;
    for one in all {
        let more = weight(&one);
        if size.saturating_add(more) > PEER_FRAME_TARGET {
            frames.push(Vec::new());
            size = 0;
        }
        size += more;
        frames.last_mut().expect("it was just pushed").push(one);
    }
    frames
}
