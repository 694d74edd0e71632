//! The cluster at the other end: a client for what it decides, single nodes for what they see.
//!
//! Subtlety: the client needs a session, which a cluster without a majority cannot give. What a node answers by itself
//! is therefore asked of a node, so that STATUS works when it is needed most.

use std::time::Duration;

use bytes::Bytes;
use quorate_client::{Client, Error, Member, Node, PartitionInfo};
use quorate_protocol::command::{Command, NodeAsk, parse};
use quorate_protocol::reply::Reply;

/// How long a node may take to be reached, and to answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);
/// How long a node may take to write snapshots of all that it holds.
pub(crate) const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(3600);

/// See the top of the file.
#[derive(Debug)]
pub(crate) struct Cluster {
    servers: Vec<String>,
    client: Option<Client>,
    node: Option<Node>,
}

/// Who belongs to the cluster and who holds what, as one node sees it.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) cluster: String,
    pub(crate) members: Vec<Member>,
    pub(crate) partitions: Vec<PartitionInfo>,
}

impl Cluster {
    pub(crate) fn new(servers: Vec<String>) -> Self {
        Self { servers, client: None, node: None }
    }

    /// The client; connected when it is first needed.
    pub(crate) async fn client(&mut self) -> Result<Client, Error> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let client = Client::connect(self.servers.iter().cloned()).await?;
        self.client = Some(client.clone());
        Ok(client)
    }

    /// Asks a node: the one that answered last, or the first that can be reached.
    pub(crate) async fn ask_node(&mut self, words: Vec<Bytes>) -> Result<Reply, Error> {
        let writes = matches!(parse(&words), Ok(Command::Node(NodeAsk::Snapshot)));
        let patience = if writes { SNAPSHOT_PATIENCE } else { PATIENCE };
        if let Some(node) = &mut self.node {
            node.set_patience(patience);
            match node.call(words.clone()).await {
                Err(Error::Unreachable(_) | Error::Timeout) => self.node = None,
                answer => return answer,
            }
        }
        let mut last = Error::Usage("give at least one address with --server".to_owned());
        for address in &self.servers {
            let answer = match Node::connect(address, PATIENCE).await {
                Ok(mut node) => {
                    node.set_patience(patience);
                    node.call(words.clone()).await.map(|reply| (node, reply))
                }
                Err(error) => Err(error),
            };
            match answer {
                Ok((node, reply)) => {
                    self.node = Some(node);
                    return Ok(reply);
                }
                Err(error @ (Error::Unreachable(_) | Error::Timeout)) => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// What a node sees of the cluster. Nodes that are not `without` are asked rather than that one: it is about to
    /// leave, and may not hear any more how far it has come.
    pub(crate) async fn view(&mut self, without: Option<u64>) -> Result<View, Error> {
        let mut last = Error::Timeout;
        for address in self.servers.clone() {
            match self.view_of(&address).await {
                Ok(view) => {
                    self.learn(&view.members, without);
                    return Ok(view);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn view_of(&mut self, address: &str) -> Result<View, Error> {
        let mut node = Node::connect(address, PATIENCE).await?;
        let cluster = node.status().await?.cluster;
        Ok(View { cluster, members: node.members().await?, partitions: node.partitions().await? })
    }

    /// Remembers where nodes are, those first that will stay.
    fn learn(&mut self, members: &[Member], without: Option<u64>) {
        let stays = |member: &&Member| Some(member.node) != without && member.standing != "gone";
        let known: Vec<String> = members.iter().filter(stays).map(|member| member.client.clone()).collect();
        let leaves = members.iter().find(|member| Some(member.node) == without).map(|member| &member.client);
        let mut servers: Vec<String> =
            self.servers.iter().filter(|&at| Some(at) != leaves).cloned().collect();
        for address in known.into_iter().chain(leaves.cloned()) {
            if !address.is_empty() && !servers.contains(&address) {
                servers.push(address);
            }
        }
        self.servers = servers;
    }
}

/// A node's own view, if it can be had.
pub(crate) async fn status_of(address: &str) -> Result<quorate_client::Status, Error> {
    Node::connect(address, PATIENCE).await?.status().await
}
