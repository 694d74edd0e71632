//! The cluster, as the node at the other end sees it.

use quorate_protocol::backup::Crossing;
use quorate_protocol::id::GroupId;
use quorate_protocol::reply::Reply;

use crate::session::Again;
use crate::values::{Fields, list, maybe, number, text, unexpected};
use crate::{Client, Error};

/// A node's view of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Its id.
    pub node: u64,
    /// The cluster's id, in hexadecimal.
    pub cluster: String,
    /// How often it has started.
    pub boot: u64,
    /// Its role in the system group.
    pub role: String,
    /// Whether its session with the system group is open: without one it takes no locks and hands out no
    /// messages.
    pub has_session: bool,
    /// The groups of which it has lost what it acknowledged: they wait to be replaced by the other nodes.
    pub lost: Vec<u64>,
    /// The groups of which it holds a replica.
    pub groups: Vec<GroupStatus>,
}

/// A node's view of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupStatus {
    /// 0 is the system group, others are partitions.
    pub group: u64,
    /// The node's role.
    pub role: String,
    /// Its term.
    pub term: u64,
    /// The leader it knows of.
    pub leader: Option<u64>,
    /// Its commit index.
    pub commit: u64,
    /// Its applied index.
    pub applied: u64,
    /// The digest of its state at the applied index; equal on all replicas at the same one.
    pub digest: String,
    /// The index of its newest snapshot; none before there is one, and from a node that does not tell.
    pub snapshot: Option<u64>,
}

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub node: u64,
    /// Where its clients connect; empty until it has told.
    pub client: String,
    /// Where other nodes connect.
    pub peer: String,
    /// `active`, `draining`, `leaving` or `gone`; empty from a node that does not tell.
    pub standing: String,
    /// How many groups it leads.
    pub leads: u64,
}

/// Where a partition lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionInfo {
    /// Its number; 1 and up.
    pub partition: u64,
    /// The node that leads it, if known.
    pub leader: Option<u64>,
    /// The nodes that hold it; empty when the node that was asked does not know.
    pub replicas: Vec<u64>,
    /// The nodes that are to hold it, as the members are now; none from a node that does not tell.
    pub target: Option<Vec<u64>>,
}

/// The newest snapshot that a node has of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// 0 is the system group, others are partitions.
    pub group: u64,
    /// The last entry of the log that is in it.
    pub index: u64,
    /// That entry's term.
    pub term: u64,
    /// Group time of the state, in milliseconds.
    pub time: u64,
    /// Bytes of its file.
    pub bytes: u64,
    /// How far dead letters had crossed between this group and others.
    pub crossings: Vec<Crossing>,
}

impl Client {
    /// STATUS: the node's own view.
    ///
    /// # Errors
    /// As every call.
    pub async fn status(&self) -> Result<Status, Error> {
        status(self.ask("STATUS", Vec::new(), Again::Read).await?)
    }

    /// LEADER: id and client address of the node that leads the system group, as far as the node knows.
    ///
    /// # Errors
    /// As every call.
    pub async fn leader(&self) -> Result<Option<(u64, String)>, Error> {
        let reply = self.ask("LEADER", Vec::new(), Again::Read).await?;
        maybe(reply, |reply| {
            let Reply::Array(values) = reply else { return Err(unexpected(reply)) };
            let Ok([id, address]) = <[Reply; 2]>::try_from(values) else {
                return Err(unexpected(Reply::Nil));
            };
            Ok((number(id)?, text(address)?))
        })
    }

    /// MEMBERS: the nodes.
    ///
    /// # Errors
    /// As every call.
    pub async fn members(&self) -> Result<Vec<Member>, Error> {
        members(self.ask("MEMBERS", Vec::new(), Again::Read).await?)
    }

    /// PARTITIONS: who leads and who holds each partition.
    ///
    /// # Errors
    /// As every call.
    pub async fn partitions(&self) -> Result<Vec<PartitionInfo>, Error> {
        partitions(self.ask("PARTITIONS", Vec::new(), Again::Read).await?)
    }
}

/// Reads the answer of STATUS.
pub(crate) fn status(reply: Reply) -> Result<Status, Error> {
    let mut fields = Fields::of(reply)?;
    Ok(Status {
        node: number(fields.take("node"))?,
        cluster: text(fields.take("cluster"))?,
        boot: number(fields.take("boot"))?,
        role: text(fields.take("role"))?,
        has_session: text(fields.take("session"))? == "open",
        // Earlier releases do not tell.
        lost: maybe(fields.take("lost"), |lost| list(lost, number))?.unwrap_or_default(),
        groups: list(fields.take("groups"), group)?,
    })
}

/// Reads the answer of MEMBERS.
pub(crate) fn members(reply: Reply) -> Result<Vec<Member>, Error> {
    list(reply, |row| {
        let mut fields = Fields::of(row)?;
        Ok(Member {
            node: number(fields.take("node"))?,
            client: text(fields.take("client"))?,
            peer: text(fields.take("peer"))?,
            standing: maybe(fields.take("standing"), text)?.unwrap_or_default(),
            leads: number(fields.take("leads"))?,
        })
    })
}

/// Reads the answer of PARTITIONS.
pub(crate) fn partitions(reply: Reply) -> Result<Vec<PartitionInfo>, Error> {
    list(reply, |row| {
        let mut fields = Fields::of(row)?;
        Ok(PartitionInfo {
            partition: number(fields.take("partition"))?,
            leader: maybe(fields.take("leader"), number)?,
            replicas: list(fields.take("replicas"), number)?,
            target: maybe(fields.take("target"), |target| list(target, number))?,
        })
    })
}

/// Reads the answer of SNAPSHOT LIST.
pub(crate) fn snapshots(reply: Reply) -> Result<Vec<SnapshotInfo>, Error> {
    list(reply, |row| {
        let fields = list(row, Ok)?;
        let Ok([group, index, term, time, bytes, crossings]) = <[Reply; 6]>::try_from(fields) else {
            return Err(unexpected(Reply::Nil));
        };
        let crossings = list(crossings, crossing)?;
        let [group, index, term, time, bytes] = [group, index, term, time, bytes].map(number);
        Ok(SnapshotInfo { group: group?, index: index?, term: term?, time: time?, bytes: bytes?, crossings })
    })
}

fn crossing(row: Reply) -> Result<Crossing, Error> {
    let Ok([other, left, arrived]) = <[u64; 3]>::try_from(list(row, number)?) else {
        return Err(unexpected(Reply::Nil));
    };
    let other = u16::try_from(other).map_err(|_| unexpected(Reply::int(other)))?;
    Ok(Crossing { other: GroupId(other), left, arrived })
}

fn group(row: Reply) -> Result<GroupStatus, Error> {
    let mut fields = Fields::of(row)?;
    Ok(GroupStatus {
        group: number(fields.take("group"))?,
        role: text(fields.take("role"))?,
        term: number(fields.take("term"))?,
        leader: maybe(fields.take("leader"), number)?,
        commit: number(fields.take("commit"))?,
        applied: number(fields.take("applied"))?,
        digest: text(fields.take("digest"))?,
        snapshot: maybe(fields.take("snapshot"), number)?.filter(|&index| index > 0),
    })
}
