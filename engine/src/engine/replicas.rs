//! Which replicas this node holds: found in its directory, made by leaders, removed, lost; and what nodes tell each
//! other of them.
//!
//! Invariants:
//! - A replica acts only while its standing is `Whole`. One that is lost, or that was removed, never acts again under
//!   its incarnation.
//! - A new incarnation comes into being only by the word of the group's leader, and knows that leader's term: it never
//!   votes in a term in which a former one may have.
//! - A group's leader moves it towards what the members say (`Group::balance`), one change at a time.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::vec::Vec;
use bytes::Bytes;
use quorate_protocol::id::{GroupId, NodeId, Replica, Term};
use quorate_protocol::peer::{Led, RaftFrame, RaftMessage, Work};

use super::{Engine, LEADING_TICKS};
use crate::consensus::is_of_leader;
use crate::effect::{Effect, Effects, Level, Member};
use crate::gateway::Errand;
use crate::group::{Birth, Found, Group};
use crate::journal::{Conf, Damage, Entry, File, Hard, Meta, Row, Standing};
use crate::members::{Members, Targets};
use crate::ring::Ring;
use crate::system::System;

/// Ticks between two leaders that make way for preferred ones.
const MAKE_WAY_TICKS: u64 = 24;
const _: () = assert!(MAKE_WAY_TICKS.is_multiple_of(LEADING_TICKS), "it is looked at that often only");
/// How long what a leader tells of its group counts as the present; microseconds.
const FRESH: u64 = 1_000_000;
/// How long something may wait for the disk before the node would rather not lead; microseconds.
const SLOW_DISK: u64 = 1_000_000;
/// How long a disk is to be well before the node leads again; microseconds.
const WELL_AGAIN: u64 = 10_000_000;

/// What is known of replicas besides those that act here.
#[derive(Default)]
pub(super) struct Replicas {
    /// Rows of groups that are not held: lost ones, and removed ones with their last incarnation.
    idle: BTreeMap<GroupId, Row>,
    /// Rows that are to be written.
    rows: Vec<(GroupId, Row)>,
    /// Groups whose snapshots could not be loaded at the start.
    unreadable: BTreeMap<GroupId, Damage>,
    /// Replicas of other nodes that have lost what they acknowledged.
    lost: BTreeSet<(GroupId, Replica)>,
    /// Groups without a leader of which so many voters are lost that there will be none.
    doomed: BTreeSet<GroupId>,
    /// Group → the newest that its leader has told of it, and when.
    led: BTreeMap<GroupId, (u64, Led)>,
    /// All other nodes that are members.
    pub(super) peers: BTreeSet<NodeId>,
    /// Nodes that do not want to lead.
    reluctant: BTreeSet<NodeId>,
    pub(super) resigning: bool,
    pub(super) room: bool,
    slow_until: u64,
    ticks: u64,
    notices: Vec<(Level, alloc::string::String)>,
}

/// The configuration with which a cluster of these nodes is founded.
#[must_use]
pub(crate) fn founding(group: GroupId, meta: &Meta) -> Conf {
    let ring = Ring::new(meta.founders.iter().map(|(node, _)| *node));
    let wanted = Members::new(&meta.founders).targets(&ring, group);
    let founder = |node: NodeId| Replica { node, incarnation: 0 };
    Conf::founding(
        wanted.voters.into_iter().map(founder).collect(),
        wanted.learners.into_iter().map(founder).collect(),
    )
}

/// A node's place among those that the ring wants for a group, the preferred leader first.
#[must_use]
pub(super) fn rank(voters: &[NodeId], node: NodeId) -> usize {
    voters.iter().position(|voter| *voter == node).unwrap_or(voters.len())
}

/// A row as a deliberate bug has it.
#[cfg(feature = "faults")]
pub(super) fn falsify(row: Option<Row>, group: GroupId, meta: &Meta, faults: &super::Faults) -> Option<Row> {
    let row = row.filter(|row| !faults.lost_acts_on || row.standing != Standing::Lost)?;
    Some(if faults.conf_forgotten { Row { conf: founding(group, meta), ..row } } else { row })
}

impl Replicas {
    pub(super) fn new(meta: &Meta) -> Self {
        let peers = meta.founders.iter().map(|(node, _)| *node).filter(|node| *node != meta.node).collect();
        Self { peers, room: true, ..Self::default() }
    }

    /// The replica of a group as the directory has it; none if there is none that may act.
    pub(super) fn revive(
        &mut self,
        now: u64,
        birth: Birth,
        row: Option<Row>,
        (snapshot, entries): (Bytes, Vec<Entry>),
        meta: &Meta,
    ) -> Option<Group> {
        let Some(row) = row else {
            let conf = founding(birth.group, meta);
            let founder = conf.replicas().iter().any(|replica| replica.node == meta.node);
            return founder.then(|| Group::newborn(now, birth, 0, Hard::default(), conf, meta));
        };
        if row.standing != Standing::Whole {
            self.idle.insert(birth.group, row);
            return None;
        }
        let found = Found { row: row.clone(), snapshot, entries };
        match Group::recovered(now, birth, found, meta) {
            Ok(group) => Some(group),
            Err(malformed) => {
                let text = format!(
                    "the snapshot of group {} cannot be read ({malformed}): its replica here is silent until the \
                     group's leader has replaced it",
                    birth.group.0
                );
                self.notices.push((Level::Warn, text));
                let file = File::Snapshot(birth.group, row.snapshot.0);
                let damage = Damage { file, offset: 0, what: malformed.0.into() };
                self.unreadable.insert(birth.group, damage);
                self.lose(birth.group, row);
                None
            }
        }
    }

    fn lose(&mut self, group: GroupId, row: Row) {
        let row = Row { standing: Standing::Lost, snapshot: (0, 0), ..row };
        self.rows.push((group, row.clone()));
        self.idle.insert(group, row);
    }

    /// Groups of which the replica here has lost what it acknowledged, and is not replaced yet.
    pub(super) fn lost_here(&self) -> impl Iterator<Item = GroupId> {
        self.idle.iter().filter(|(_, row)| row.standing == Standing::Lost).map(|(&group, _)| group)
    }

    /// Rows that are to be written before anything else.
    pub(super) fn take_rows(&mut self) -> Vec<(GroupId, Row)> {
        core::mem::take(&mut self.rows)
    }
}

impl Engine {
    /// Groups of which it was found while they were loaded that they cannot be. If there are any, a shell drops the engine
    /// before its first turn, and opens the directory again, knowing of them (`Options::unreadable`): so they are damage as any
    /// other, and nothing is removed where nobody else has it. An engine that goes on takes them for lost.
    #[must_use]
    pub fn unreadable(&self) -> &BTreeMap<GroupId, Damage> {
        &self.replicas.unreadable
    }

    pub(super) fn raft(&mut self, mono: u64, from: NodeId, frame: RaftFrame) {
        self.replicas.peers.insert(from);
        if !frame.leading.is_empty() || (frame.messages.is_empty() && frame.cache.is_empty()) {
            if frame.reluctant {
                self.replicas.reluctant.insert(from);
            } else {
                self.replicas.reluctant.remove(&from);
            }
            // Such a frame says all that is lost: what is not named has been replaced, or put back as it was.
            self.replicas.lost.retain(|(_, lost)| lost.node != from);
        }
        for (group, incarnation) in frame.lost {
            self.replicas.lost.insert((group, Replica { node: from, incarnation }));
        }
        for message in frame.messages {
            if message.from.node != from || message.to.node != self.me {
                continue;
            }
            self.make_replica(mono, &message);
            let group = self.groups.get_mut(&message.group);
            if let Some(group) = group.filter(|group| self.replicas.room || !group.would_write(&message)) {
                self.awake.insert(message.group);
                group.receive(mono, message, &self.meta);
            }
        }
        for word in frame.cache {
            self.hear_cache(mono, from, word);
        }
        for led in frame.leading {
            if led.group.0 <= self.meta.partitions {
                self.hear_of(mono, from, led);
            }
        }
    }

    /// Makes a replica when a group's leader speaks to one that is to be.
    fn make_replica(&mut self, mono: u64, message: &RaftMessage) {
        let (id, incarnation) = (message.group, message.to.incarnation);
        if id.0 > self.meta.partitions || !is_of_leader(message.kind) || incarnation == 0 {
            return;
        }
        let held = self.groups.get(&id).map(|group| group.consensus().me().incarnation);
        let last = held.or(self.replicas.idle.get(&id).map(|row| row.incarnation));
        if last.is_some_and(|last| last >= incarnation) {
            return;
        }
        self.drop_replica(id);
        self.replicas.idle.remove(&id);
        let birth = Birth { seed: self.seed, group: id, rank: usize::MAX, map_from: self.map_from };
        let hard = Hard { term: message.term, vote: message.from };
        let conf = founding(id, &self.meta);
        let mut group = Group::newborn(mono, birth, incarnation, hard, conf, &self.meta);
        group.set_bound(self.bound);
        #[cfg(feature = "faults")]
        group.set_faults(&self.faults);
        self.groups.insert(id, group);
        self.gateway.hold_replica(id);
        let text =
            format!("this node holds a replica of group {} from now on (incarnation {incarnation})", id.0);
        self.replicas.notices.push((Level::Info, text));
    }

    fn drop_replica(&mut self, id: GroupId) -> Option<Row> {
        let mut group = self.groups.remove(&id)?;
        self.last_words.append(&mut group.give_up_all());
        let row = group.into_row(&mut self.trash);
        self.gateway.skipped(id);
        self.gateway.drop_replica(id);
        self.leading_changed |= self.leading.remove(&id).is_some();
        Some(row)
    }

    /// A group's leader tells everybody of it.
    fn hear_of(&mut self, mono: u64, from: NodeId, led: Led) {
        let id = led.group;
        if let Some(group) = self.groups.get(&id) {
            let consensus = group.consensus();
            let me = consensus.me();
            let removed =
                led.term >= consensus.term() && led.next > me.serial() && !led.replicas.contains(&me);
            if removed {
                let row = self.drop_replica(id).expect("it was just seen");
                let row = Row { standing: Standing::Absent, snapshot: (0, 0), ..row };
                self.replicas.rows.push((id, row.clone()));
                self.replicas.idle.insert(id, row);
                let text = format!("this node does not hold a replica of group {} any more", id.0);
                self.replicas.notices.push((Level::Info, text));
            }
        }
        if !self.groups.contains_key(&id) {
            self.gateway.set_route(mono, id, Some(from), led.term);
        }
        let newest = self.replicas.led.get(&id).map_or(0, |(_, known)| known.term);
        if led.term >= newest {
            self.replicas.led.insert(id, (mono, led));
        }
    }

    /// Tells all other nodes what this one leads, and what it has lost.
    pub(super) fn tell_all(&self, fx: &mut Effects) {
        let led = |(&group, &term): (&GroupId, &Term)| {
            let conf = self.groups.get(&group)?.consensus().conf();
            Some(Led { group, term, next: conf.next, replicas: conf.replicas() })
        };
        let leading: Vec<Led> = self.leading.iter().filter_map(led).collect();
        let lost = self.replicas.lost_here().map(|group| (group, self.replicas.idle[&group].incarnation));
        let lost: Vec<_> = lost.collect();
        for &to in &self.replicas.peers {
            let (leading, lost) = (leading.clone(), lost.clone());
            let frame = RaftFrame { leading, lost, reluctant: self.is_reluctant(), ..RaftFrame::default() };
            fx.push(Effect::Raft { to, frame });
        }
    }

    fn is_reluctant(&self) -> bool {
        self.replicas.resigning || !self.replicas.room || self.replicas.slow_until > 0
    }

    /// What the members say of a group.
    fn wanted(&self, group: GroupId) -> Option<Targets> {
        let system = self.groups.get(&GroupId::SYSTEM)?;
        system.consensus().leader()?;
        Some(system.system()?.targets(&self.ring, group))
    }

    /// Lets leaders move their groups to where they belong, and leadership with them.
    pub(super) fn tend_replicas(&mut self, mono: u64) {
        self.watch_disk(mono);
        self.replicas.ticks += 1;
        if !self.replicas.ticks.is_multiple_of(LEADING_TICKS) {
            return;
        }
        if self.replicas.ticks.is_multiple_of(MAKE_WAY_TICKS) {
            self.forget_members(mono);
            self.tell_of_the_doomed();
        }
        self.renounce_unknown(mono);
        let reluctant = self.is_reluctant();
        let mut may_make_way = self.replicas.ticks.is_multiple_of(MAKE_WAY_TICKS);
        let lives = self.lives();
        for id in (0..=self.meta.partitions).map(GroupId) {
            let Some(wanted) = self.wanted(id) else { continue };
            let Some(group) = self.groups.get_mut(&id) else { continue };
            group.set_ambition(rank(&wanted.voters, self.me), reluctant);
            group.compact();
            let (lost, shy) = (&self.replicas.lost, &self.replicas.reluctant);
            let life = |node: NodeId| lives.get(&node).copied().unwrap_or(0);
            let is_lost =
                |replica: Replica| replica.life() < life(replica.node) || lost.contains(&(id, replica));
            let changed = group.balance(mono, &wanted, is_lost, life);
            if reluctant {
                group.hand_over(mono, |node| shy.contains(&node));
            } else if !changed && may_make_way {
                may_make_way = !group.make_way(mono, &wanted, |node| shy.contains(&node));
            }
        }
    }

    /// Which life each member is in.
    fn lives(&self) -> BTreeMap<NodeId, u32> {
        let Some(system) = self.groups.get(&GroupId::SYSTEM).and_then(Group::system) else {
            return BTreeMap::new();
        };
        system.present().map(|(node, row)| (node, row.life)).collect()
    }

    /// A node that cannot say which replicas it had (their rows are unreadable) renounces them all.
    fn renounce_unknown(&mut self, mono: u64) {
        let unknown = |row: &Row| row.standing == Standing::Lost && row.incarnation == u32::MAX;
        if !self.replicas.idle.values().any(unknown) {
            return;
        }
        let Some(life) = self.household.renounce(mono, &mut self.gateway) else { return };
        for (id, row) in self.replicas.idle.iter_mut().filter(|(_, row)| unknown(row)) {
            // All that is below belongs to former lives.
            row.standing = Standing::Absent;
            row.incarnation = Replica::new(self.me, life, 0).incarnation;
            self.replicas.rows.push((*id, row.clone()));
        }
    }

    /// Warns of groups that cannot go on, because a majority has lost what it acknowledged. Nothing is made up for them.
    fn tell_of_the_doomed(&mut self) {
        let (lost, lives) = (&self.replicas.lost, self.lives());
        let is_lost = |group: GroupId, replica: Replica| {
            let any = Replica { incarnation: u32::MAX, ..replica };
            // What belongs to a former life of its node was renounced with all else that the node had.
            let renounced = lives.get(&replica.node).is_some_and(|life| replica.life() < *life);
            renounced || lost.contains(&(group, replica)) || lost.contains(&(group, any))
        };
        let short = |group: GroupId, voters: &[Replica]| {
            let left = voters.iter().filter(|replica| !is_lost(group, **replica)).count();
            !voters.is_empty() && 2 * left <= voters.len()
        };
        let is_doomed = |id: GroupId, group: &Group| {
            let conf = group.consensus().conf();
            group.consensus().leader().is_none() && (short(id, &conf.voters) || short(id, &conf.outgoing))
        };
        let doomed = self.groups.iter().filter(|(id, group)| is_doomed(**id, group));
        let doomed: BTreeSet<GroupId> = doomed.map(|(id, _)| *id).collect();
        if doomed == self.replicas.doomed {
            return;
        }
        if !doomed.is_empty() {
            let groups: Vec<_> = doomed.iter().map(|group| format!("{}", group.0)).collect();
            let text = format!(
                "most replicas of groups {} have lost what they acknowledged: these groups stand still, because nobody \
                 can say what was in them; put the lost data directories back as they were",
                groups.join(", ")
            );
            self.replicas.notices.push((Level::Warn, text));
        }
        self.replicas.doomed = doomed;
    }

    /// Forgets leaving members that no group names any more; only where the system group is led.
    fn forget_members(&mut self, mono: u64) {
        let Some(system) = self.groups.get(&GroupId::SYSTEM).filter(|group| group.leading().is_some()) else {
            return;
        };
        let leaving = system.system().map(System::leaving).unwrap_or_default();
        for node in leaving {
            let free = (1..=self.meta.partitions).map(GroupId).all(|group| {
                let Some(replicas) = self.replicas_for_certain(mono, group) else { return false };
                replicas.iter().all(|replica| replica.node != node)
            });
            if free {
                self.gateway.run_errand(mono, GroupId::SYSTEM, Work::Forget(node), Errand::Forget(node));
            }
        }
    }

    /// The replicas of a group as its leader sees them at present.
    fn replicas_for_certain(&self, mono: u64, group: GroupId) -> Option<Vec<Replica>> {
        if let Some(led) = self.groups.get(&group).filter(|group| group.leading().is_some()) {
            return Some(led.consensus().conf().replicas());
        }
        let (heard, led) = self.replicas.led.get(&group)?;
        (mono < heard + FRESH).then(|| led.replicas.clone())
    }

    /// The members, and with them the ring, have changed.
    pub(super) fn members_changed(&mut self, members: &[Member]) {
        let present = members.iter().filter(|member| !member.removed).map(|member| member.node);
        self.replicas.peers = present.filter(|node| *node != self.me).collect();
        if let Some(system) = self.groups.get(&GroupId::SYSTEM).and_then(Group::system) {
            self.ring = Ring::new(system.ring_nodes());
        }
    }

    /// A node whose disk is slow would rather not lead.
    fn watch_disk(&mut self, mono: u64) {
        let waits = self.withheld.front().is_some_and(|withheld| mono > withheld.since + SLOW_DISK);
        if waits {
            if self.replicas.slow_until == 0 {
                let text = "the disk is slow: this node leaves leading to others";
                self.replicas.notices.push((Level::Warn, text.into()));
            }
            self.replicas.slow_until = mono + WELL_AGAIN;
        } else if self.replicas.slow_until > 0 && mono > self.replicas.slow_until {
            self.replicas.slow_until = 0;
            self.replicas.notices.push((Level::Info, "the disk is well again".into()));
        }
    }

    /// Lines for the log.
    pub(super) fn tell_notices(&mut self, fx: &mut Effects) {
        fx.extend(self.replicas.notices.drain(..).map(|(level, line)| Effect::Log(level, line)));
    }

    /// The replicas of a group, as far as this node knows.
    pub(super) fn replicas_of(&self, group: GroupId) -> Vec<NodeId> {
        let replicas = match (self.groups.get(&group), self.replicas.led.get(&group)) {
            (Some(group), _) => group.consensus().conf().replicas(),
            (None, Some((_, led))) => led.replicas.clone(),
            (None, None) => Vec::new(),
        };
        replicas.into_iter().map(|replica| replica.node).collect()
    }
}
