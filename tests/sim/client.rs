//! Clients: how they connect, ask, lose their connection and come back.
//!
//! Charter: an ordered client (RESP) pipelines, and gives up what is unanswered when its connection ends. A session
//! client (binary protocol) opens a client session, asks under numbers, and sends what is unanswered again on its
//! next connection, to any node. What they ask is `workload.rs`.
//!
//! Invariant: a client concludes from an answer only what the contract lets it conclude (`history::Outcome`).

use std::collections::{BTreeMap, BTreeSet};

use quorate_engine::effect::{Input, Request, Want};
use quorate_protocol::id::{ClientId, ClientSeq};
use quorate_protocol::op::Op;
use quorate_protocol::peer::Delivery;
use quorate_protocol::reply::{Code, Reply};
use quorate_server::tracking::{Stale, Told};

use super::history::Outcome;
use super::tracked::Keeper;
use super::workload::{Mind, Profile};
use super::world::{Event, World};

/// What travels to a node.
pub enum ForServer {
    /// The connection is to be made.
    Connect,
    /// Requests, with the operations that they ask for.
    Requests(Vec<(Request, Option<u64>)>),
    /// The client is gone.
    Gone,
}

/// What travels to a client.
pub enum ForClient {
    /// An answer.
    Reply(u64, Reply),
    /// A message of a subscription.
    Push(Delivery),
    /// What it is to drop of what it keeps.
    Stale(Stale),
    /// The connection has ended.
    Closed,
}

/// A client connection.
#[derive(Debug)]
pub struct Conn {
    /// Whose it is.
    pub client: usize,
    /// The node at its other end.
    pub node: usize,
    /// Its number there, once it is accepted.
    pub counter: Option<u64>,
    ordered: bool,
    client_open: bool,
    server_open: bool,
    /// Nothing arrives before this: at the node, at the client.
    due: [u64; 2],
    /// Requests that the node has heard and not answered.
    unanswered: BTreeSet<u64>,
    /// What the answers to some of them tell of keys that the client may keep.
    pub told: BTreeMap<u64, Box<Told>>,
}

/// What a request on the present connection was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Operation(u64),
    Session,
}

/// A client.
#[derive(Debug)]
pub struct Client {
    /// What it is for.
    pub profile: Profile,
    /// Whether it speaks RESP.
    pub ordered: bool,
    /// Its connection.
    pub conn: Option<u64>,
    /// What it knows of the cluster's locks and messages.
    pub mind: Mind,
    /// What it keeps of what it has read, if it does.
    pub keeper: Option<Keeper>,
    /// When it last connected.
    since: u64,
    asked: BTreeMap<u64, (Asked, u64)>,
    next_request: u64,
    session: Option<ClientId>,
    /// Whether its session is open on this connection.
    ready: bool,
    next_seq: u64,
    /// Number in the session → operation.
    open: BTreeMap<u64, u64>,
}

impl Client {
    fn new(profile: Profile, ordered: bool) -> Self {
        Self {
            profile,
            ordered,
            conn: None,
            mind: Mind::default(),
            keeper: None,
            since: 0,
            asked: BTreeMap::new(),
            next_request: 1,
            session: None,
            ready: false,
            next_seq: 1,
            open: BTreeMap::new(),
        }
    }

    /// Whether nothing of it is unanswered.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.asked.is_empty() && self.open.is_empty()
    }
}

impl World {
    /// The clients of the plan.
    pub fn add_clients(&mut self) {
        for client in 0..self.plan.clients {
            let profile = Profile::of(client, &mut self.client_rng);
            let profile = self.plan.only.unwrap_or(profile);
            let ordered = self.client_rng.chance(550);
            self.clients.push(Client::new(profile, ordered));
            self.clients[client].keeper = Keeper::of(client, ordered);
            let at = 300_000 + self.client_rng.below(700_000);
            self.schedule(at, Event::Think { client });
        }
    }

    /// The clients of keys that are written back, besides.
    pub fn add_back_clients(&mut self) {
        for client in self.clients.len()..self.clients.len() + self.plan.backs {
            // In a client session nothing is acknowledged by a node alone.
            let ordered = self.client_rng.chance(850);
            self.clients.push(Client::new(Profile::Backs, ordered));
            let at = 300_000 + self.client_rng.below(700_000);
            self.schedule(at, Event::Think { client });
        }
    }

    /// One more client, which asks only what it is told to ask.
    pub fn add_auditor(&mut self) -> usize {
        self.clients.push(Client::new(Profile::Auditor, true));
        self.clients.len() - 1
    }

    /// A client looks what it wants next.
    pub fn think(&mut self, at: usize) {
        if self.clients[at].conn.is_none() {
            if !self.resting
                || !self.clients[at].open.is_empty()
                || self.clients[at].profile == Profile::Auditor
            {
                self.connect(at);
            }
        } else if self.has_waited_too_long(at) {
            self.disconnect(at);
        } else if !self.resting && (self.clients[at].ordered || self.clients[at].ready) {
            self.ask_some(at);
        }
        if self.clients[at].profile != Profile::Auditor {
            let pause = self.client_rng.pick(&[2_000, 20_000, 100_000]);
            let next = self.time + 500 + self.client_rng.below(pause);
            self.schedule(next, Event::Think { client: at });
        }
    }

    fn has_waited_too_long(&self, at: usize) -> bool {
        let oldest = self.clients[at].asked.values().map(|&(_, since)| since).min();
        oldest.is_some_and(|since| self.time > since + 20_000_000)
    }

    fn connect(&mut self, at: usize) {
        let up: Vec<usize> = (0..self.nodes.len()).filter(|&node| self.nodes[node].is_up()).collect();
        if up.is_empty() {
            return;
        }
        let node = up[self.client_rng.index(up.len())];
        let id = self.conns.last_key_value().map_or(1, |(id, _)| id + 1);
        let client = &mut self.clients[at];
        let conn = Conn {
            client: at,
            node,
            counter: None,
            ordered: client.ordered,
            client_open: true,
            server_open: false,
            due: [self.time; 2],
            unanswered: BTreeSet::new(),
            told: BTreeMap::new(),
        };
        client.conn = Some(id);
        client.since = self.time;
        client.next_request = 1;
        client.ready = false;
        self.conns.insert(id, conn);
        self.send_to_server(id, ForServer::Connect);
        if !self.clients[at].ordered {
            self.ask_for_session(at);
        }
    }

    fn ask_for_session(&mut self, at: usize) {
        let client = &mut self.clients[at];
        let want = client.session.map_or(Want::OpenClient, Want::ResumeClient);
        let id = client.next_request;
        client.next_request += 1;
        client.asked.insert(id, (Asked::Session, self.time));
        let conn = client.conn.expect("it has just connected");
        self.send_to_server(
            conn,
            ForServer::Requests(vec![(Request { id, want, client: None, after: None }, None)]),
        );
    }

    fn send_to_server(&mut self, conn: u64, what: ForServer) {
        let delay = 40 + self.client_rng.below(300);
        let state = self.conns.get_mut(&conn).expect("connections are never forgotten");
        state.due[0] = state.due[0].max(self.time + delay);
        let at = state.due[0];
        self.schedule(at, Event::ToServer { conn, what });
    }

    /// Something goes to a client, behind everything that went before.
    pub fn send_to_client(&mut self, conn: u64, delay: u64, what: ForClient) {
        let delay = 40 + self.client_rng.below(300) + delay;
        let state = self.conns.get_mut(&conn).expect("connections are never forgotten");
        state.due[1] = state.due[1].max(self.time + delay);
        let at = state.due[1];
        self.schedule(at, Event::ToClient { conn, what });
    }

    fn ask_some(&mut self, at: usize) {
        let room = self.plan.pipeline.saturating_sub(self.clients[at].asked.len());
        if room == 0 {
            return;
        }
        let count = 1 + self.client_rng.index(room);
        let mut ids = Vec::new();
        for _ in 0..count {
            let Some(op) = self.next_op(at) else { break };
            let id = self.checks.history.invoke(at, op, self.clients[at].ordered, self.time);
            let client = &mut self.clients[at];
            if !client.ordered {
                let session = client.session.expect("a session client is ready once it has one");
                self.checks.history.in_session(id, session, client.next_seq);
                client.open.insert(client.next_seq, id);
                client.next_seq += 1;
            }
            ids.push(id);
        }
        self.ask(at, &ids);
    }

    /// What a client has asked on a connection and is waiting for, if the connection has not ended for it.
    #[must_use]
    pub fn asked_on(&self, conn: u64, request: u64) -> Option<&Op> {
        let client = &self.clients[self.conns[&conn].client];
        let (Asked::Operation(id), _) = client.asked.get(&request).filter(|_| client.conn == Some(conn))?
        else {
            return None;
        };
        Some(&self.checks.history.get(*id).op)
    }

    /// Sends operations on a client's connection.
    pub fn ask(&mut self, at: usize, ids: &[u64]) {
        let client = &mut self.clients[at];
        let conn = client.conn.expect("the caller has seen a connection");
        let mut requests = Vec::new();
        for &id in ids {
            let lowest = client.open.first_key_value().map_or(client.next_seq, |(&seq, _)| seq);
            let request = client.next_request;
            client.next_request += 1;
            client.asked.insert(request, (Asked::Operation(id), self.time));
            let record = self.checks.history.get_mut(id);
            record.conn = conn;
            record.request = request;
            let seq = record.session.map(|(client, seq)| ClientSeq { client, seq, lowest });
            let behind = !client.ordered && self.client_rng.chance(200) && request > 1;
            let after = behind.then(|| request - 1);
            let want = Want::Op(record.op.clone());
            requests.push((Request { id: request, want, client: seq, after }, Some(id)));
        }
        if !requests.is_empty() {
            self.trace.note(self.time, &[10, at as u64, ids[0]], || {
                let ops: Vec<String> =
                    ids.iter().map(|&id| format!("{id} {:?}", self.checks.history.get(id).op)).collect();
                format!("client {at} asks on connection {conn}: {}", ops.join("; "))
            });
            self.send_to_server(conn, ForServer::Requests(requests));
        }
    }

    /// Something of a client reaches its node.
    pub fn to_server(&mut self, id: u64, what: ForServer) {
        let conn = self.conns.get_mut(&id).expect("connections are never forgotten");
        let node = conn.node;
        if self.time < self.nodes[node].paused_until {
            // It lies in the socket until the process goes on.
            let until = self.nodes[node].paused_until;
            // Also if the node is killed meanwhile: nothing that comes later is before it.
            conn.due[0] = conn.due[0].max(until);
            return self.schedule(until, Event::ToServer { conn: id, what });
        }
        match what {
            ForServer::Connect if self.nodes[node].is_up() => {
                self.nodes[node].accepted += 1;
                let counter = self.nodes[node].accepted;
                conn.counter = Some(counter);
                conn.server_open = true;
                let ordered = conn.ordered;
                self.nodes[node].conns.insert(counter, id);
                self.begin_tracking(node, id, counter);
                self.post(node, Input::Connected { conn: counter, ordered });
            }
            ForServer::Connect => self.send_to_client(id, 0, ForClient::Closed),
            ForServer::Requests(requests) if conn.server_open => {
                let counter = conn.counter.expect("an accepted connection has one");
                let (name, turn) = (self.nodes[node].id.0, self.nodes[node].turns);
                for (request, operation) in &requests {
                    conn.unanswered.insert(request.id);
                    let keeper = self.clients[conn.client].keeper.as_ref();
                    conn.told.extend(keeper.and_then(|keeper| keeper.told(request)));
                    if let Some(operation) = operation {
                        self.checks.history.heard(*operation, name, counter, request.id, turn);
                    }
                }
                let requests = requests.into_iter().map(|(request, _)| request);
                let requests = self.look_up(node, id, counter, requests.collect());
                if !requests.is_empty() {
                    self.post(node, Input::Requests { conn: counter, requests });
                }
            }
            ForServer::Gone if conn.server_open => {
                conn.server_open = false;
                let counter = conn.counter.expect("an accepted connection has one");
                self.nodes[node].conns.remove(&counter);
                self.end_tracking(node, counter);
                self.post(node, Input::Disconnected { conn: counter });
            }
            ForServer::Requests(_) | ForServer::Gone => {}
        }
    }

    /// Answers reads from what the node holds itself, as long as nothing of the connection is unanswered before them.
    /// What is left goes to the engine.
    fn look_up(&mut self, at: usize, id: u64, counter: u64, requests: Vec<Request>) -> Vec<Request> {
        let mut left = Vec::new();
        for request in requests {
            let first = self.conns[&id].unanswered.first().copied();
            let line = if let Want::Op(op) = &request.want { op.line() } else { None };
            let line = line.filter(|_| first == Some(request.id) && request.after.is_none());
            let now = self.nodes[at].clock.read(self.time).mono;
            match line.and_then(|key| self.nodes[at].view.get(key, now)) {
                Some(value) => {
                    self.checks.hits += 1;
                    self.replied(at, counter, request.id, value.map_or(Reply::Nil, Reply::Bulk));
                }
                None => left.push(request),
            }
        }
        left
    }

    /// A node answers.
    pub fn replied(&mut self, at: usize, counter: u64, request: u64, reply: Reply) {
        self.note(at, &[11, counter, request, hash_of(&reply)], || {
            format!("answers {counter}.{request}: {reply:?}")
        });
        let Some(&id) = self.nodes[at].conns.get(&counter) else { return };
        let conn = self.conns.get_mut(&id).expect("connections are never forgotten");
        let first = conn.unanswered.first().copied();
        if !conn.unanswered.remove(&request) || (conn.ordered && first != Some(request)) {
            let text = format!(
                "node {} answers request {request} of connection {id}, where {first:?} is next",
                at + 1
            );
            return self.fail("connection order", text);
        }
        let told = conn.told.remove(&request);
        self.send_to_client(id, 0, ForClient::Reply(request, reply.clone()));
        self.tell_behind(at, (id, request), told, &reply);
    }

    /// A node hands a message to a subscriber.
    pub fn pushed(&mut self, at: usize, counter: u64, delivery: Delivery) {
        self.note(at, &[12, counter, delivery.id], || format!("pushes to {counter}: {delivery:?}"));
        if let Some(&id) = self.nodes[at].conns.get(&counter) {
            self.send_to_client(id, 0, ForClient::Push(delivery));
        }
    }

    /// A node closes a connection.
    pub fn closed(&mut self, at: usize, counter: u64, reason: String) {
        self.note(at, &[13, counter], || format!("closes {counter}: {reason}"));
        if let Some(id) = self.nodes[at].conns.remove(&counter) {
            self.checks.conn_ended(id, self.time);
            self.conns.get_mut(&id).expect("connections are never forgotten").server_open = false;
            self.send_to_client(id, 0, ForClient::Closed);
        }
    }

    /// A node is gone: its clients notice sooner or later.
    pub fn drop_conns(&mut self, at: usize, power: bool) {
        for id in std::mem::take(&mut self.nodes[at].conns).into_values() {
            self.checks.conn_ended(id, self.time);
            self.conns.get_mut(&id).expect("connections are never forgotten").server_open = false;
            let delay = if power { self.client_rng.below(3_000_000) } else { 0 };
            self.send_to_client(id, delay, ForClient::Closed);
        }
    }

    /// Some client loses its connection.
    pub fn cut_some_client(&mut self) {
        if !self.clients.is_empty() {
            let at = self.client_rng.index(self.clients.len());
            self.disconnect(at);
        }
    }

    /// A client goes; what it has sent last may never arrive.
    pub fn disconnect(&mut self, at: usize) {
        let Some(id) = self.clients[at].conn else { return };
        let conn = self.conns.get_mut(&id).expect("connections are never forgotten");
        if self.client_rng.chance(500) {
            conn.due[0] = self.time;
        }
        self.send_to_server(id, ForServer::Gone);
        self.connection_ended(at);
    }

    /// Something of a node reaches a client.
    pub fn to_client(&mut self, id: u64, what: ForClient) {
        let conn = &self.conns[&id];
        let at = conn.client;
        if !conn.client_open {
            return;
        }
        match what {
            ForClient::Reply(request, reply) => self.answered(at, request, reply),
            ForClient::Push(delivery) => self.took(at, delivery),
            ForClient::Stale(stale) => self.drop_kept(at, &stale),
            ForClient::Closed => self.connection_ended(at),
        }
    }

    fn connection_ended(&mut self, at: usize) {
        let client = &mut self.clients[at];
        let Some(id) = client.conn.take() else { return };
        self.checks.conn_ended(id, self.time);
        self.conns.get_mut(&id).expect("connections are never forgotten").client_open = false;
        client.ready = false;
        client.mind.connection_ended();
        client.keeper.iter_mut().for_each(Keeper::connection_ended);
        let asked = std::mem::take(&mut client.asked);
        let ordered = client.ordered;
        self.trace.note(self.time, &[14, at as u64], || format!("client {at} has lost connection {id}"));
        for (asked, _) in asked.into_values() {
            let Asked::Operation(operation) = asked else { continue };
            self.checks.history.get_mut(operation).maybe = true;
            if ordered {
                self.checks.history.end(operation, Outcome::Unknown, self.time);
            }
        }
    }

    fn answered(&mut self, at: usize, request: u64, reply: Reply) {
        let Some((asked, _)) = self.clients[at].asked.remove(&request) else { return };
        match asked {
            Asked::Session => self.session_answered(at, &reply),
            Asked::Operation(id) if self.clients[at].ordered => {
                self.keep_answer(at, id, &reply);
                let outcome = conclude(reply, self.checks.history.get(id).maybe);
                self.concluded(at, id, outcome);
            }
            Asked::Operation(id) => self.session_op_answered(at, id, reply),
        }
    }

    fn session_op_answered(&mut self, at: usize, id: u64, reply: Reply) {
        let record = self.checks.history.get_mut(id);
        let (_, seq) = record.session.expect("it was asked in a session");
        let code = reply.failure().map(|failure| failure.code);
        record.maybe |= code == Some(Code::InDoubt);
        let again = code.is_some_and(|code| code == Code::InDoubt || code.never_proposed());
        if again && self.client_rng.chance(600) {
            // The session makes it safe to send once more, at the next occasion or at once.
            if self.client_rng.chance(500) {
                self.ask(at, &[id]);
            } else {
                self.disconnect(at);
            }
            return;
        }
        let outcome = conclude(reply, record.maybe);
        self.clients[at].open.remove(&seq);
        self.concluded(at, id, outcome);
    }

    fn session_answered(&mut self, at: usize, reply: &Reply) {
        let client = &mut self.clients[at];
        if let Reply::Int(id) = reply {
            let id = ClientId(u64::try_from(*id).expect("session ids are positive"));
            if client.session != Some(id) {
                client.session = Some(id);
                client.next_seq = 1;
            }
            client.ready = true;
            let open: Vec<u64> = client.open.values().copied().collect();
            return self.ask(at, &open);
        }
        if client.session.is_some() && reply.failure().is_some_and(|failure| failure.code == Code::Err) {
            client.session = None;
            for id in std::mem::take(&mut client.open).into_values() {
                self.checks.history.end(id, Outcome::Unknown, self.time);
            }
        }
        self.disconnect(at);
    }

    /// A client knows what became of an operation.
    pub fn concluded(&mut self, at: usize, id: u64, outcome: Outcome) {
        self.checks.history.end(id, outcome, self.time);
        self.learn(at, id);
    }
}

fn conclude(reply: Reply, maybe: bool) -> Outcome {
    match reply.failure().map(|failure| failure.code) {
        Some(Code::InDoubt) => Outcome::Unknown,
        Some(code) if code.turned_away() && maybe => Outcome::Unknown,
        Some(code) if code.turned_away() => Outcome::Refused(code),
        _ => Outcome::Answered(reply),
    }
}

fn hash_of(reply: &Reply) -> u64 {
    use quorate_protocol::wire::Wire;
    super::trace::hash_bytes(7, &reply.to_wire())
}
