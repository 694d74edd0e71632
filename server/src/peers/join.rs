//! Joining: a node with an empty data directory asks a member to be let into the cluster.
//!
//! Charter: both sides. The member that is asked lets the cluster decide, as it would for a client, and tells what the
//! node is to found its directory as. Nothing is written by the node that asks before it was let in.
//!
//! Subtlety: the decision may be made without the node hearing of it. It asks again then; to be let in twice under
//! the same id and address is to be let in once.

use std::sync::Arc;
use std::time::Duration;

use quorate_engine::effect::{Input, Request, Want};
use quorate_protocol::op::{MemberAdd, MemberOp, Op};
use quorate_protocol::peer::{Greeting, Join, Joined, Opening, PEER_VERSION, Welcome};
use quorate_protocol::reply::{Code, Reply};
use quorate_protocol::wire::Wire;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::HANDSHAKE;
use super::framing::{read_frame, write_frame};
use super::greet::Me;
use crate::clock;
use crate::driver::Shared;
use crate::outlet::{Out, Outlet};

/// How long the cluster may take to decide.
const DECISION: Duration = Duration::from_secs(10);
/// How long a member's answer may take: the decision, and finding out whether the node can be reached.
const ANSWER: Duration = Duration::from_secs(15);
/// How long to go on asking when nobody can decide; microseconds.
const PATIENCE: u64 = 10_000_000;
/// Pause between two rounds.
const PAUSE: Duration = Duration::from_millis(300);
/// An answer at the most: the addresses of all nodes that there can be, twice.
const ANSWER_MAX: usize = 64 << 10;

/// Asks members, one after the other, until one lets the node in.
///
/// # Errors
/// With one line that says what to do.
pub async fn ask(members: &[String], join: &Join) -> Result<Joined, String> {
    let since = clock::now().mono;
    let mut said = String::new();
    loop {
        let mut last = String::new();
        for member in members {
            match timeout(ANSWER, ask_one(member, join)).await {
                Ok(Ok(Welcome::Joined(joined))) => return Ok(joined),
                Ok(Ok(Welcome::No(why) | Welcome::Removed(why))) => {
                    return Err(format!("--join {member}: {why}"));
                }
                Ok(Ok(Welcome::Later(why))) => last = format!("--join {member}: {why}"),
                Ok(Ok(Welcome::Yes(_))) => return Err(format!("--join {member}: it is no member's answer")),
                Ok(Err(why)) => {
                    last = format!("--join {member}: {why}; name the peer port of a member that runs");
                }
                Err(_) => {
                    last = format!("--join {member}: it does not answer; name the peer port of a member");
                }
            }
        }
        if clock::now().mono > since + PATIENCE {
            return Err(last);
        }
        if said != last {
            tracing::info!("not let into the cluster yet: {last}");
            said = last;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn ask_one(member: &str, join: &Join) -> Result<Welcome, String> {
    let connected = timeout(HANDSHAKE, TcpStream::connect(member)).await.map_err(|_| "it does not answer")?;
    let mut stream = connected.map_err(|error| error.to_string())?;
    let greeting = Greeting { version: PEER_VERSION, opening: Opening::Join(join.clone()) };
    write_frame(&mut stream, &greeting).await.map_err(|error| error.to_string())?;
    let answer = read_frame(&mut stream, ANSWER_MAX).await.map_err(|unread| unread.to_string())?;
    Welcome::from_wire(answer).map_err(|malformed| format!("it answers as no member does ({malformed})"))
}

/// What a node that asks is told.
pub(super) async fn answer(join: &Join, me: &Me, shared: &Shared) -> Welcome {
    let node = join.node.0;
    if node == 0 || join.node == me.meta.node {
        return Welcome::No(format!("this is node {}; choose another --node-id", me.meta.node.0));
    }
    if let Some(why) = shared.book.objection_to_join(join.node) {
        return Welcome::No(why);
    }
    if let Err(why) = reach(&join.peer_address).await {
        return Welcome::No(format!(
            "node {} cannot reach node {node} at {}: {why}; correct --peer-listen or --peer-advertise",
            me.meta.node.0, join.peer_address,
        ));
    }
    match admit(shared, wish(join)).await {
        Ok(life) => Welcome::Joined(joined(me, shared, life)),
        Err(refusal) => refusal,
    }
}

/// Whether somebody listens at an address: a member that nobody can reach would be one voice less.
async fn reach(address: &str) -> Result<(), String> {
    match timeout(HANDSHAKE, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("it does not answer".to_owned()),
    }
}

fn joined(me: &Me, shared: &Shared, life: u32) -> Joined {
    let mut members = shared.book.addresses();
    members.insert(me.meta.node, me.peer_address.clone());
    Joined {
        cluster: me.meta.cluster,
        partitions: me.meta.partitions,
        founders: me.meta.founders.clone(),
        members: members.into_iter().collect(),
        life,
    }
}

/// What the cluster is to decide.
fn wish(join: &Join) -> Want {
    let add = MemberAdd { node: join.node, peer_address: join.peer_address.clone() };
    Want::Op(Op::Member(MemberOp::Join(add)))
}

/// Lets the cluster decide, by a connection like a client's; which life of its id the node begins.
async fn admit(shared: &Shared, want: Want) -> Result<u32, Welcome> {
    let conn = shared.next_conn();
    let outlet = Arc::<Outlet>::default();
    shared.outlets.insert(conn, Arc::clone(&outlet));
    shared.mailbox.post(Input::Connected { conn, ordered: true }, 64);
    let request = Request { id: 1, want, client: None, after: None };
    shared.mailbox.post(Input::Requests { conn, requests: vec![request] }, 256);
    let decided = timeout(DECISION, first_word(&outlet)).await;
    shared.outlets.remove(conn);
    shared.mailbox.post(Input::Disconnected { conn }, 64);
    match decided {
        Ok(Ok(Reply::Int(life))) => u32::try_from(life).map_err(|_| Welcome::No("too many lives".to_owned())),
        Ok(Ok(reply)) => match reply.failure() {
            None => Err(Welcome::Later("the cluster has not said which life this is".to_owned())),
            Some(failure) => Err(match failure.code {
                Code::ClusterDown | Code::TryAgain | Code::Busy | Code::Loading | Code::InDoubt => {
                    Welcome::Later(failure.text.clone())
                }
                _ => Welcome::No(failure.text.clone()),
            }),
        },
        Ok(Err(why)) => Err(Welcome::Later(why)),
        Err(_) => Err(Welcome::Later(format!("the cluster has not decided within {DECISION:?}"))),
    }
}

/// The answer, or why the connection is closed.
async fn first_word(outlet: &Outlet) -> Result<Reply, String> {
    loop {
        for out in outlet.take().unwrap_or_default() {
            match out {
                Out::Reply(_, reply) => return Ok(reply),
                Out::Close(why) => return Err(why),
                Out::Push(_) | Out::Stale(_) | Out::Cut => {}
            }
        }
        outlet.news().await;
    }
}
