//! What a node tells of itself and of the cluster as it sees it: STATUS, MEMBERS, LEADER, PARTITIONS, SNAPSHOT LIST.

use alloc::format;
use alloc::vec::Vec;
use quorate_protocol::backup::Crossing;
use quorate_protocol::id::{GroupId, NodeId};
use quorate_protocol::reply::Reply;

use super::{Engine, GroupReport};
use crate::effect::NodeAsk;
use crate::group::{Group, SnapshotReport};
use crate::members::MemberStanding;
use crate::system::System;

impl Engine {
    /// Every group that this node holds, as it sees it.
    #[must_use]
    pub fn report(&self) -> Vec<GroupReport> {
        let report = |(&id, group): (&GroupId, &Group)| GroupReport {
            group: id,
            role: group.role(),
            term: group.consensus().term(),
            leader: group.consensus().leader(),
            commit: group.consensus().commit(),
            applied: group.applied(),
            lease: group.lease(),
            digest: group.digest(),
            snapshot: group.snapshot_report().map_or(0, |report| report.at.0),
        };
        self.groups.iter().map(report).collect()
    }

    /// What this node has acknowledged of lines that it owns, and what came of that.
    #[must_use]
    pub fn write_backs(&self) -> crate::cache::Counts {
        self.gateway.holder.write_backs()
    }

    /// Whether this node leads the system group.
    #[must_use]
    pub fn leads_system(&self) -> bool {
        self.groups.get(&GroupId::SYSTEM).is_some_and(|group| group.leading().is_some())
    }

    /// What is to become of a member, as this node knows it.
    #[must_use]
    pub fn standing_of(&self, node: NodeId) -> Option<MemberStanding> {
        self.groups.get(&GroupId::SYSTEM).and_then(Group::system)?.standing(node)
    }

    /// Bytes of log that a group keeps in memory.
    #[must_use]
    pub fn log_bytes(&self, group: GroupId) -> usize {
        self.groups.get(&group).map_or(0, |group| group.consensus().log_bytes())
    }

    /// Answers a question about this node's own view; none if there is more to it than to look.
    pub(super) fn view(&self, ask: &NodeAsk) -> Option<Reply> {
        Some(match ask {
            NodeAsk::Status => self.status(),
            NodeAsk::Members => self.members(),
            NodeAsk::Leader => self.gateway.leader(GroupId::SYSTEM).map_or(Reply::Nil, |leader| {
                Reply::Array([Reply::int(leader.0), self.address_of(leader)].into())
            }),
            NodeAsk::Partitions => self.partitions(),
            NodeAsk::Snapshots => self.snapshots(),
            NodeAsk::Snapshot | NodeAsk::SnapshotRead(_) => return None,
        })
    }

    fn snapshots(&self) -> Reply {
        let row = |(id, group): (&GroupId, &Group)| {
            let SnapshotReport { at, time, bytes } = group.snapshot_report()?;
            let crossing = |to: &Crossing| {
                Reply::Array([u64::from(to.other.0), to.left, to.arrived].map(Reply::int).into())
            };
            let crossings = Reply::Array(group.snapshot_crossings().iter().map(crossing).collect());
            let numbers = [u64::from(id.0), at.0, at.1, time, bytes].map(Reply::int);
            Some(Reply::Array(numbers.into_iter().chain([crossings]).collect()))
        };
        Reply::Array(self.groups.iter().filter_map(row).collect())
    }

    fn address_of(&self, node: NodeId) -> Reply {
        Reply::text(self.client_addresses.get(&node).cloned().unwrap_or_default())
    }

    fn status(&self) -> Reply {
        let group = |r: GroupReport| {
            let fields = [
                ("group", Reply::int(u64::from(r.group.0))),
                ("role", Reply::text(r.role.word())),
                ("term", Reply::int(r.term)),
                ("leader", r.leader.map_or(Reply::Nil, |node| Reply::int(node.0))),
                ("commit", Reply::int(r.commit)),
                ("applied", Reply::int(r.applied)),
                ("digest", Reply::text(format!("{:016x}", r.digest))),
                ("snapshot", Reply::int(r.snapshot)),
            ];
            map(fields)
        };
        let system = self.groups.get(&GroupId::SYSTEM);
        let backs = self.write_backs();
        let backs = map([
            ("absorbed", Reply::int(backs.absorbed)),
            ("flushed", Reply::int(backs.flushed)),
            ("lost", Reply::int(backs.lost)),
            ("dirty", Reply::int(backs.dirty as u64)),
        ]);
        map([
            ("node", Reply::int(self.me.0)),
            ("cluster", Reply::text(format!("{:016x}", self.meta.cluster.0))),
            ("boot", Reply::int(self.meta.boot.0)),
            ("role", Reply::text(system.map_or("none", |group| group.role().word()))),
            (
                "level",
                system.and_then(Group::system).map_or(Reply::Nil, |s| Reply::int(u64::from(s.level()))),
            ),
            ("session", Reply::text(if self.household.has_session() { "open" } else { "none" })),
            (
                "lost",
                Reply::Array(self.replicas.lost_here().map(|group| Reply::int(group.0.into())).collect()),
            ),
            ("writeback", backs),
            ("groups", Reply::Array(self.report().into_iter().map(group).collect())),
        ])
    }

    fn members(&self) -> Reply {
        let member = |node: NodeId, peer: &str, standing: &str| {
            map([
                ("node", Reply::int(node.0)),
                ("client", self.address_of(node)),
                ("peer", Reply::text(peer)),
                ("standing", Reply::text(standing)),
                ("leads", Reply::int(self.led_by(node))),
                ("holds", Reply::int(self.held_by(node))),
            ])
        };
        let system = self.groups.get(&GroupId::SYSTEM).and_then(Group::system);
        let Some(members) = system.map(System::present) else {
            // Not heard of the members yet: those that founded the cluster.
            return Reply::Array(
                self.meta.founders.iter().map(|(node, peer)| member(*node, peer, "unknown")).collect(),
            );
        };
        Reply::Array(
            members.map(|(node, row)| member(node, &row.peer_address, row.standing.word())).collect(),
        )
    }

    /// Partitions of which a node has a replica, as far as this node knows.
    fn held_by(&self, node: NodeId) -> u64 {
        (1..=self.meta.partitions).filter(|&group| self.replicas_of(GroupId(group)).contains(&node)).count()
            as u64
    }

    fn led_by(&self, node: NodeId) -> u64 {
        (0..=self.meta.partitions).filter(|&group| self.gateway.leader(GroupId(group)) == Some(node)).count()
            as u64
    }

    fn partitions(&self) -> Reply {
        let partition = |group: u16| {
            let ids = |nodes: Vec<NodeId>| nodes.into_iter().map(|node| Reply::int(node.0)).collect();
            map([
                ("partition", Reply::int(u64::from(group))),
                ("leader", self.gateway.leader(GroupId(group)).map_or(Reply::Nil, |node| Reply::int(node.0))),
                ("replicas", Reply::Array(ids(self.replicas_of(GroupId(group))))),
                ("target", Reply::Array(ids(self.ring.voters(GroupId(group))))),
            ])
        };
        Reply::Array((1..=self.meta.partitions).map(partition).collect())
    }
}

fn map<const N: usize>(fields: [(&str, Reply); N]) -> Reply {
    Reply::Map(fields.into_iter().map(|(name, value)| (Reply::text(name), value)).collect())
}
