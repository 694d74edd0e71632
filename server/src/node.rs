//! One node: opens its data, binds its ports, runs until it is told to stop.

use std::fs::DirBuilder;
use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use quorate_engine::effect::Input;
use quorate_engine::engine::{Config as EngineConfig, Engine};
use quorate_engine::journal::{Entry, Journal, Meta};
use quorate_engine::system::{addresses, identities};
use quorate_protocol::id::{ClusterId, GroupId, NodeId};
use quorate_protocol::peer::Join;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::task::TaskTracker;

use crate::answers::Desk;
use crate::config::{Config, Eviction, Origin};
use crate::driver::{self, DiskListener, Shared};
use crate::founded::founded;
use crate::journal::{DataDir, Founding, SyncThread, Unreadable, check_place};
use crate::loops::Loops;
use crate::view::View;
use crate::{admin, clock, listen, peers};

/// How long a node that stops goes on answering what it was asked before.
const DRAIN: Duration = Duration::from_secs(5);
/// How long it may take to hand leadership over before that.
const RESIGN: Duration = Duration::from_secs(2);

/// Runs a node to its end.
///
/// # Errors
/// With one line that says what to do.
pub fn run(config: &Config) -> Result<(), String> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|e| e.to_string())?;
    let ports = runtime.block_on(Ports::bind(config))?;
    let (founding, members) = runtime.block_on(founding(config))?;
    let Opened { dir, journal, meta, log, engine } =
        open(&config.data_dir, &founding, |seed| engine_config(config, seed))?;
    let view = View::new(meta.partitions, config.cache_memory);
    let shared = Arc::new(Shared::new(view, config.client_memory));
    let founders = meta.founders.iter().cloned();
    shared.book.begin(founders.chain(addresses(&log)).chain(members), identities(&log));
    let me = peers::Me {
        meta: meta.clone(),
        client_address: config.advertise.clone(),
        peer_address: config.peer_advertise.clone(),
    };
    let figures = (Arc::clone(&shared.counts), Arc::clone(&shared.client_memory));
    let desk =
        Arc::new(Desk::new(config.node.0, ports.client_address.port(), config.redis_settings(), figures));
    ports.tell(&meta, dir.path());
    let data = dir.path().to_owned();
    let disk = SyncThread::start(dir, journal, DiskListener(Arc::clone(&shared)));
    let thread = {
        let shared = Arc::clone(&shared);
        let work = move || driver::run(engine, &shared, disk);
        std::thread::Builder::new().name("engine".into()).spawn(work).map_err(|error| error.to_string())?
    };
    let loops = Loops::start(config.client_threads)
        .map_err(|error| format!("no threads can be had for clients: {error}"))?;
    let loops = Arc::new(loops);
    runtime.block_on(async {
        let own = (me.meta.node, me.meta.boot.life());
        tokio::spawn(peers::dial_all(me.clone(), Arc::clone(&shared)));
        tokio::spawn(peers::read_pieces(data, Arc::clone(&shared)));
        tokio::spawn(peers::say_held_back(Arc::clone(&shared)));
        let room = listen::room();
        tokio::spawn(peers::accept_all(ports.peer, room.peers, me, Arc::clone(&shared)));
        let tasks = TaskTracker::new();
        tokio::spawn(admin::serve(ports.admin, room.admin, own, Arc::clone(&shared), Arc::clone(&desk)));
        tokio::spawn(listen::accept_all(
            ports.client,
            room,
            Arc::clone(&shared),
            desk,
            tasks.clone(),
            Arc::clone(&loops),
        ));
        until_told(config.end_with_stdin).await;
        tracing::info!("node {} stops", config.node.0);
        shared.leaving.cancel();
        shared.mailbox.post_urgent(Input::Resign, 0);
        // Clients are served until others lead, and told of no leader after that.
        let _ = tokio::time::timeout(RESIGN, shared.resigned.notified()).await;
        shared.stopping.cancel();
        tasks.close();
        // Who has not read its answers by then does not get them.
        let _ = tokio::time::timeout(DRAIN, tasks.wait()).await;
    });
    drop(loops);
    shared.mailbox.stop();
    // A panic of the engine has been reported where it happened, and has ended the process.
    let _ = thread.join();
    runtime.shutdown_background();
    Ok(())
}

/// A data directory and what was loaded from it.
pub(crate) struct Opened {
    pub(crate) dir: DataDir,
    journal: Journal,
    meta: Meta,
    /// The system group's log behind its snapshot.
    log: Vec<Entry>,
    pub(crate) engine: Engine,
}

/// Opens the data directory and loads the groups. That one cannot be loaded is seen only then; nothing of it has been changed
/// yet, and the directory is opened again with what is known now: damage as any other.
pub(crate) fn open(
    path: &Path,
    founding: &Founding,
    settings: impl Fn(u64) -> EngineConfig,
) -> Result<Opened, String> {
    let mut unreadable = Unreadable::new();
    loop {
        let (mut dir, recovered, start) =
            DataDir::find(path, founding, &unreadable).map_err(|error| error.to_string())?;
        let meta = recovered.meta.clone();
        let log = recovered.entries.get(&GroupId::SYSTEM).cloned().unwrap_or_default();
        let lost: Vec<_> = recovered.lost().collect();
        let groups = recovered.rows.len();
        let engine = Engine::new(clock::now(), settings(meta.cluster.0), recovered);
        if engine.unreadable().is_empty() {
            let journal = dir.begin(start).map_err(|error| error.to_string())?;
            warn_of_the_lost(&lost, groups);
            return Ok(Opened { dir, journal, meta, log, engine });
        }
        unreadable.extend(engine.unreadable().clone());
    }
}

/// Said at every start until it is over, not only by the one that found the damage.
fn warn_of_the_lost(lost: &[GroupId], groups: usize) {
    let lost: Vec<_> = lost.iter().map(|group| group.0.to_string()).collect();
    if !lost.is_empty() {
        tracing::warn!(
            "{} of {groups} groups have lost what this node acknowledged of them ({}); the other nodes replace them when they \
             have majorities without it: STATUS shows as `lost` what is still to come, and quorate-server check what the \
             directory holds",
            lost.len(),
            lost.join(", ")
        );
    }
}

fn engine_config(config: &Config, seed: u64) -> EngineConfig {
    EngineConfig {
        store_memory: config.store_memory,
        store_evicts: config.store_eviction == Eviction::Lru,
        ..EngineConfig::new(seed, config.advertise.clone())
    }
}

/// What the data directory is to be, and the members that are known beyond its founders. A node without data asks
/// them to let it in.
async fn founding(config: &Config) -> Result<(Founding, Vec<(NodeId, String)>), String> {
    let members = match &config.origin {
        Origin::Founded(founders) => return Ok((config.founding(founders), Vec::new())),
        Origin::Joined(members) => members,
    };
    match founded(&config.data_dir) {
        Ok(None) => {}
        Ok(Some(meta)) => {
            tracing::info!("the data directory has its cluster already; --join is not needed any more");
            let founding = Founding {
                cluster: meta.cluster,
                node: config.node,
                partitions: meta.partitions,
                founders: meta.founders,
                life: 0,
            };
            return Ok((founding, Vec::new()));
        }
        // Whoever opens it says what is wrong with it.
        Err(_) => {
            let founders = Vec::new();
            let founding =
                Founding { cluster: ClusterId(0), node: config.node, partitions: 0, founders, life: 0 };
            return Ok((founding, Vec::new()));
        }
    }
    // A directory that cannot be made, or is somebody's, is found out before the cluster has a member more.
    check_place(&config.data_dir).map_err(|error| error.to_string())?;
    let inner = config.data_dir.join("journal");
    let made: Vec<_> = inner.ancestors().take_while(|path| !path.exists()).map(Path::to_owned).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(inner).map_err(|error| {
        let path = config.data_dir.display();
        format!("data directory {path}: {error}; check the path and its permissions (--data-dir)")
    })?;
    let join = Join { node: config.node, peer_address: config.peer_advertise.clone() };
    let joined = peers::join::ask(members, &join).await.inspect_err(|_| {
        // Whatever anybody has put there meanwhile stays: only empty directories go.
        made.iter().for_each(|path| _ = std::fs::remove_dir(path));
    })?;
    tracing::info!("the cluster of nodes {} has let this node in", names(&joined.members));
    let founding = Founding {
        cluster: joined.cluster,
        node: config.node,
        partitions: joined.partitions,
        founders: joined.founders,
        life: joined.life,
    };
    Ok((founding, joined.members))
}

fn names(nodes: &[(NodeId, String)]) -> String {
    nodes.iter().map(|(node, _)| node.0.to_string()).collect::<Vec<_>>().join(", ")
}

struct Ports {
    client: TcpListener,
    peer: TcpListener,
    admin: TcpListener,
    client_address: SocketAddr,
    peer_address: SocketAddr,
    admin_address: SocketAddr,
}

impl Ports {
    async fn bind(config: &Config) -> Result<Self, String> {
        let client = bind(config.listen, "--listen").await?;
        let peer = bind(config.peer_listen, "--peer-listen").await?;
        let admin = bind(config.admin_listen, "--admin-listen").await?;
        let address = |listener: &TcpListener| listener.local_addr().map_err(|error| error.to_string());
        let (client_address, peer_address, admin_address) =
            (address(&client)?, address(&peer)?, address(&admin)?);
        Ok(Self { client, peer, admin, client_address, peer_address, admin_address })
    }

    fn tell(&self, meta: &Meta, data: &Path) {
        tracing::info!(
            "node {} starts (boot {}): clients {}, peers {}, admin {}, data {}",
            meta.node.0,
            meta.boot.0,
            self.client_address,
            self.peer_address,
            self.admin_address,
            data.display(),
        );
    }
}

async fn bind(address: SocketAddr, flag: &str) -> Result<TcpListener, String> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            format!(
                "port {} is taken by another process; stop it, or choose another with {flag}",
                address.port()
            )
        }
        _ => format!("cannot listen on {address}: {error}; choose another address with {flag}"),
    })
}

async fn until_told(end_with_stdin: bool) {
    let mut terminate = signal(SignalKind::terminate()).expect("signals can be awaited");
    let mut interrupt = signal(SignalKind::interrupt()).expect("signals can be awaited");
    let (gone, parent) = tokio::sync::oneshot::channel::<()>();
    if end_with_stdin {
        std::thread::spawn(move || {
            let mut nothing = Vec::new();
            let _ = std::io::stdin().read_to_end(&mut nothing);
            drop(gone);
        });
    } else {
        std::mem::forget(gone);
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        _ = parent => {}
    }
}
