//! Who belongs to the cluster, and which of its nodes are to hold a group.
//!
//! Charter: the operator's decisions (`MemberOp`) and what follows from them as a pure function: `Targets`. Leaders
//! compare the targets with their groups' configurations and move replicas until both agree.
//!
//! Invariants:
//! - At least one member is active, so every group has somebody to be held by.
//! - A node that is not active holds no partition in the end. It stays a learner of the system group until it is gone,
//!   so it knows how far its own leaving has come, and its clients can still work.
//! - A node is forgotten only when its session is over: until then its clients count on their locks. A closing node
//!   gets no more of its lease, and closes their connections when it hears so.
//! - The data directory of a node that is gone never comes back, whatever id it shows.
//!
//! ```text
//!        ADD              DRAIN              REMOVE           Forget        Forget, and its session is over
//!  (none) ───► Active ◄──────────► Draining ────────► Leaving ───────► Closing ───────► Gone
//!                ▲ ▲     CANCEL                          │                │              │
//!                │ └──────────────── CANCEL ─────────────┴────────────────┘              │
//!                └───────────────────────────── ADD ─────────────────────────────────────┘
//! ```

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use quorate_protocol::id::{GroupId, Identity, LIVES_MAX, NodeId};
use quorate_protocol::limits::{NODE_ID_MAX, NODES_EVER_MAX, NODES_MAX, RETIRED_MAX};
use quorate_protocol::op::{MemberAdd, MemberOp};
use quorate_protocol::{wire_enum, wire_struct};

use crate::ring::Ring;
use crate::table::Table;

wire_enum! {
    /// What is to become of a member; see the top of the file.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum MemberStanding {
        /// It has its share of the partitions.
        Active = 0,
        /// It gives its share away and stays a member.
        Draining = 1,
        /// It gives its share away and is forgotten then.
        Leaving = 2,
        /// It is no member any more.
        Gone = 3,
        /// It holds nothing any more, and its session is running out.
        Closing = 4,
    }
}

impl MemberStanding {
    /// Whether it is to be forgotten.
    #[must_use]
    pub fn is_leaving(self) -> bool {
        matches!(self, Self::Leaving | Self::Closing)
    }

    /// The word that MEMBERS shows.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Leaving => "leaving",
            Self::Closing => "closing",
            Self::Gone => "gone",
        }
    }
}

wire_struct! {
    /// A node that is, or was, a member.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct MemberRow {
        /// Where other nodes connect to it.
        pub peer_address: String,
        /// What is to become of it.
        pub standing: MemberStanding,
        /// Rises when the node comes back with nothing. Replicas of former lives are void.
        pub life: u32,
    }
}

wire_struct! {
    /// The data directory of a node that is gone.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Retired {
        /// The node.
        pub node: NodeId,
        /// Its directory.
        pub identity: Identity,
    }
}

/// Who is to hold a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Targets {
    /// Who votes; the preferred leader first.
    pub voters: Vec<NodeId>,
    /// Who only listens.
    pub learners: Vec<NodeId>,
}

/// See the top of the file.
pub struct Members {
    /// The nodes that the cluster has ever had.
    pub(crate) rows: Table<NodeId, MemberRow>,
    /// Where in the log a node was forgotten, as a serial number → what directory it had.
    pub(crate) retired: Table<u64, Retired>,
}

impl Members {
    /// The members with which a cluster is founded.
    #[must_use]
    pub fn new(founders: &[(NodeId, String)]) -> Self {
        let mut rows = Table::new(206);
        for (node, address) in founders {
            rows.insert(
                *node,
                MemberRow { peer_address: address.clone(), standing: MemberStanding::Active, life: 0 },
            );
        }
        Self { rows, retired: Table::new(208) }
    }

    /// The digest of it all.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.rows.digest().wrapping_add(self.retired.digest())
    }

    /// Every node that the cluster has ever had, in id order.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &MemberRow)> {
        self.rows.iter().map(|(&node, row)| (node, row))
    }

    /// The members: all but those that are gone.
    pub fn present(&self) -> impl Iterator<Item = (NodeId, &MemberRow)> {
        self.iter().filter(|(_, row)| row.standing != MemberStanding::Gone)
    }

    /// The members of one standing.
    pub fn with(&self, standing: MemberStanding) -> impl Iterator<Item = NodeId> {
        self.iter().filter(move |(_, row)| row.standing == standing).map(|(node, _)| node)
    }

    /// What is to become of a node; `None` for one that was never a member.
    #[must_use]
    pub fn standing(&self, node: NodeId) -> Option<MemberStanding> {
        self.rows.get(&node).map(|row| row.standing)
    }

    /// The directories that a node had in former lives.
    pub fn retired(&self, node: NodeId) -> impl Iterator<Item = Identity> {
        self.retired.iter().filter(move |(_, row)| row.node == node).map(|(_, row)| row.identity)
    }

    /// Who is to hold a group. `ring` is that of the active members.
    #[must_use]
    pub fn targets(&self, ring: &Ring, group: GroupId) -> Targets {
        let voters = ring.voters(group);
        let listens = |node: &NodeId| group == GroupId::SYSTEM && !voters.contains(node);
        let learners = self.present().map(|(node, _)| node).filter(listens).collect();
        Targets { voters, learners }
    }

    /// Why a node may not open a session, and what to do about it.
    #[must_use]
    pub fn objection(&self, node: NodeId, identity: Identity) -> Option<String> {
        let id = node.0;
        match self.standing(node) {
            None => Some(format!("node {id} is no member of this cluster; send MEMBER ADD {id} host:peerport")),
            Some(MemberStanding::Gone) => Some(format!(
                "node {id} was removed from this cluster; send MEMBER ADD {id} host:peerport and start it with an \
                 empty data directory"
            )),
            Some(MemberStanding::Closing) => Some(format!(
                "node {id} holds nothing any more and is being removed; send MEMBER CANCEL {id} if it is to stay"
            )),
            Some(_) => self.retired.iter().any(|(_, row)| row.identity == identity).then(|| {
                format!(
                    "the data directory of node {id} belongs to a member that was removed; start the node with an \
                     empty one"
                )
            }),
        }
    }

    /// Decides about a change; refuses it with a sentence.
    ///
    /// # Errors
    /// When the cluster cannot be changed so; nothing is changed then.
    pub fn decide(&mut self, op: MemberOp) -> Result<(), String> {
        use MemberStanding::{Active, Closing, Draining, Gone, Leaving};
        let (node, wanted) = match op {
            MemberOp::Add(add) | MemberOp::Join(add) => return self.add(add),
            MemberOp::Drain(node) => (node, Draining),
            MemberOp::Remove(node) => (node, Leaving),
            MemberOp::Cancel(node) => (node, Active),
        };
        let id = node.0;
        match (self.standing(node), wanted) {
            (None, _) => Err(format!("node {id} is no member of this cluster; MEMBERS lists them")),
            (Some(Gone | Closing), Leaving) => Ok(()),
            (Some(Gone), _) => {
                Err(format!("node {id} was removed; MEMBER ADD {id} host:peerport makes it a member again"))
            }
            (Some(Leaving | Closing), Draining) => Err(format!(
                "node {id} is being removed; send MEMBER CANCEL {id} first if it is to stay a member"
            )),
            (Some(Active), Draining | Leaving) if self.with(Active).count() == 1 => Err(format!(
                "node {id} is the last active node; add another one first, or send MEMBER CANCEL for one that is draining"
            )),
            (Some(_), wanted) => {
                self.rows.change(&node, |row| row.standing = wanted);
                Ok(())
            }
        }
    }

    fn add(&mut self, add: MemberAdd) -> Result<(), String> {
        let MemberAdd { node, peer_address } = add;
        let id = node.0;
        if !(1..=NODE_ID_MAX).contains(&id) {
            return Err(format!("a node id is a number from 1 to {NODE_ID_MAX}, not {id}; give another one"));
        }
        let row = self.rows.get(&node).filter(|row| row.standing != MemberStanding::Gone);
        if let Some(row) = row {
            return match row.standing {
                _ if row.peer_address != peer_address => Err(format!(
                    "node {id} is a member already, at {}; remove it first if it is to move to {peer_address}",
                    row.peer_address
                )),
                MemberStanding::Active => Ok(()),
                standing => Err(format!(
                    "node {id} is a member already and {}; send MEMBER CANCEL {id} to keep it",
                    standing.word()
                )),
            };
        }
        if let Some((other, _)) = self.present().find(|(_, row)| row.peer_address == peer_address) {
            return Err(format!(
                "node {} has the address {peer_address} already; give the peer address of node {id} itself",
                other.0
            ));
        }
        if self.present().count() >= NODES_MAX {
            return Err(format!("a cluster has {NODES_MAX} nodes at the most; remove one first"));
        }
        if !self.rows.contains(&node) && self.rows.len() >= NODES_EVER_MAX {
            return Err(format!(
                "this cluster has had {NODES_EVER_MAX} nodes; give the id of one that was removed"
            ));
        }
        let life = self.rows.get(&node).map_or(0, |row| row.life + 1);
        if life >= LIVES_MAX {
            return Err(format!("node {id} has come back {LIVES_MAX} times; give another id"));
        }
        self.rows.insert(node, MemberRow { peer_address, standing: MemberStanding::Active, life });
        Ok(())
    }

    /// Begins a new life of a node, whose former replicas are void.
    pub fn renounce(&mut self, node: NodeId) -> Option<u32> {
        self.rows.get(&node).filter(|row| row.life + 1 < LIVES_MAX)?;
        self.rows.change(&node, |row| {
            row.life += 1;
            row.life
        })
    }

    /// Which life of its id a node has.
    #[must_use]
    pub fn life(&self, node: NodeId) -> u32 {
        self.rows.get(&node).map_or(0, |row| row.life)
    }

    /// Gives a leaving node no more of its session's lease.
    pub fn close(&mut self, node: NodeId) {
        if self.standing(node) == Some(MemberStanding::Leaving) {
            self.rows.change(&node, |row| row.standing = MemberStanding::Closing);
        }
    }

    /// Forgets a leaving node, and retires its data directory; whether it was leaving.
    pub fn forget(&mut self, serial: u64, node: NodeId, identity: Option<Identity>) -> bool {
        if !self.standing(node).is_some_and(MemberStanding::is_leaving) {
            return false;
        }
        self.rows.change(&node, |row| row.standing = MemberStanding::Gone);
        if let Some(identity) = identity {
            self.retired.insert(serial, Retired { node, identity });
        }
        while self.retired.len() > RETIRED_MAX {
            let oldest = *self.retired.iter().next().expect("there are more than none").0;
            self.retired.remove(&oldest);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use MemberStanding::{Active, Draining, Gone, Leaving};

    fn address(node: u64) -> String {
        format!("host{node}:7412")
    }

    fn cluster(nodes: u64) -> Members {
        let founders: Vec<_> = (1..=nodes).map(|node| (NodeId(node), address(node))).collect();
        Members::new(&founders)
    }

    fn add(node: u64, peer_address: String) -> MemberOp {
        MemberOp::Add(MemberAdd { node: NodeId(node), peer_address })
    }

    fn refused(members: &mut Members, op: MemberOp, why: &str) {
        let before = members.digest();
        let text = members.decide(op).expect_err(why);
        assert!(text.contains(why), "{text}");
        assert_eq!(members.digest(), before, "a refusal changes nothing");
    }

    fn ring(members: &Members) -> Ring {
        Ring::new(members.with(Active))
    }

    #[test]
    fn every_step_of_a_members_life_changes_the_digest_and_who_holds_what() {
        let mut members = cluster(3);
        let mut digests = alloc::vec![members.digest()];
        let steps = [
            (add(4, address(4)), Active),
            (MemberOp::Drain(NodeId(4)), Draining),
            (MemberOp::Remove(NodeId(4)), Leaving),
        ];
        for (op, standing) in steps {
            members.decide(op).expect("it is allowed");
            assert_eq!(members.standing(NodeId(4)), Some(standing));
            digests.push(members.digest());
            let held = (1..=16).any(|group| {
                let Targets { voters, learners } = members.targets(&ring(&members), GroupId(group));
                assert_eq!((voters.len(), learners.len()), (3, 0), "group {group}");
                voters.contains(&NodeId(4))
            });
            assert_eq!(held, standing == Active);
            let system = members.targets(&ring(&members), GroupId::SYSTEM);
            assert!(system.voters.iter().chain(&system.learners).any(|node| node.0 == 4), "{standing:?}");
            assert_eq!(system.voters.contains(&NodeId(4)), standing == Active);
        }
        assert!(members.forget(77, NodeId(4), Some(Identity(44))));
        digests.push(members.digest());
        assert_eq!(members.standing(NodeId(4)), Some(Gone));
        let system = members.targets(&ring(&members), GroupId::SYSTEM);
        assert_eq!(system, Targets { voters: [1, 2, 3].map(NodeId).into(), learners: Vec::new() });
        assert!(members.objection(NodeId(4), Identity(45)).is_some_and(|text| text.contains("MEMBER ADD 4")));
        members.decide(add(4, address(44))).expect("it comes again, elsewhere");
        digests.push(members.digest());
        assert_eq!(members.objection(NodeId(4), Identity(45)), None);
        let text = members.objection(NodeId(4), Identity(44)).expect("a former life");
        assert!(text.contains("belongs to a member that was removed"), "{text}");
        assert_eq!(members.retired(NodeId(4)).collect::<Vec<_>>(), [Identity(44)]);
        digests.sort_unstable();
        assert!(digests.is_sorted_by(|a, b| a < b), "all differ: {digests:?}");
    }

    #[test]
    fn the_system_group_has_five_voters_and_everybody_else_listens() {
        let mut members = cluster(7);
        let ids = |nodes: &[NodeId]| nodes.iter().map(|node| node.0).collect::<Vec<_>>();
        let Targets { voters, learners } = members.targets(&ring(&members), GroupId::SYSTEM);
        assert_eq!((ids(&voters), ids(&learners)), ([1, 2, 3, 4, 5].into(), [6, 7].into()));
        members.decide(MemberOp::Drain(NodeId(2))).expect("it is allowed");
        let Targets { voters, learners } = members.targets(&ring(&members), GroupId::SYSTEM);
        assert_eq!((ids(&voters), ids(&learners)), ([1, 3, 4, 5, 6].into(), [2, 7].into()));
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_way_out() {
        let mut members = cluster(3);
        let drain = |node| MemberOp::Drain(NodeId(node));
        let remove = |node| MemberOp::Remove(NodeId(node));
        let cancel = |node| MemberOp::Cancel(NodeId(node));
        for op in [drain(9), remove(9), cancel(9)] {
            refused(&mut members, op, "node 9 is no member of this cluster");
        }
        refused(&mut members, add(0, address(0)), "from 1 to 4294967295");
        refused(&mut members, add(1 << 32, address(4)), "from 1 to 4294967295");
        refused(&mut members, add(2, address(4)), "already, at host2:7412");
        refused(&mut members, add(4, address(2)), "node 2 has the address host2:7412 already");
        let before = members.digest();
        members.decide(add(2, address(2))).expect("twice is as once");
        members.decide(cancel(2)).expect("it is active already");
        assert_eq!(members.digest(), before);
        members.decide(remove(1)).expect("two are left");
        members.decide(remove(1)).expect("twice is as once");
        refused(&mut members, drain(1), "is being removed");
        refused(&mut members, add(1, address(1)), "a member already and leaving");
        members.decide(drain(2)).expect("one is left");
        members.decide(drain(2)).expect("twice is as once");
        refused(&mut members, drain(3), "last active node");
        refused(&mut members, remove(3), "last active node");
        members.decide(cancel(2)).expect("it keeps its share");
        members.decide(remove(3)).expect("node 2 is active again");
        assert!(!members.forget(1, NodeId(2), None), "it is not leaving");
        assert!(members.forget(1, NodeId(3), None) && !members.forget(2, NodeId(3), None));
        members.decide(remove(3)).expect("it is gone already");
        refused(&mut members, cancel(3), "MEMBER ADD 3");
        refused(&mut members, drain(3), "MEMBER ADD 3");
    }

    #[test]
    fn the_tables_are_bounded() {
        let mut members = cluster(1);
        let most = NODES_EVER_MAX as u64;
        for node in 2..=most {
            members.decide(add(node, address(node))).expect("there is room");
            if members.present().count() == NODES_MAX {
                refused(&mut members, add(most + 1, address(0)), "64 nodes at the most");
                members.decide(MemberOp::Remove(NodeId(node))).expect("others are active");
                assert!(members.forget(node, NodeId(node), Some(Identity(node.into()))));
            }
        }
        refused(&mut members, add(most + 1, address(0)), "has had 1024 nodes");
        members.decide(add(most, address(most))).expect("it comes again");
        for life in 2..u64::from(LIVES_MAX) {
            members.decide(MemberOp::Remove(NodeId(most))).expect("others are active");
            assert!(members.forget(most + 1 + life, NodeId(most), Some(Identity(0))));
            members.decide(add(most, address(most))).expect("it comes again");
        }
        assert_eq!(members.retired.len(), RETIRED_MAX);
        members.decide(MemberOp::Remove(NodeId(most))).expect("others are active");
        assert!(members.forget(u64::MAX, NodeId(most), None));
        refused(&mut members, add(most, address(most)), "give another id");
    }
}
