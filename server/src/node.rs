//! One node: opens its data, binds its ports, runs until it is told to stop.

use std::io::Read;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quorate_engine::engine::{Config as EngineConfig, Engine};
use quorate_engine::system::identities;
use quorate_protocol::id::GroupId;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::task::TaskTracker;

use crate::answers::Desk;
use crate::config::Config;
use crate::driver::{self, DiskListener, Shared};
use crate::journal::{DataDir, SyncThread};
use crate::{admin, clock, listen, peers};

/// How long a node that stops goes on answering what it was asked before.
const DRAIN: Duration = Duration::from_secs(5);

/// Runs a node to its end.
///
/// # Errors
/// With one line that says what to do.
pub fn run(config: &Config) -> Result<(), String> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|e| e.to_string())?;
    let ports = runtime.block_on(Ports::bind(config))?;
    let (dir, recovered, journal) =
        DataDir::open(&config.data_dir, &config.founding()).map_err(|error| error.to_string())?;
    let shared = Arc::<Shared>::default();
    let logged = recovered.entries.get(&GroupId::SYSTEM).map(|log| identities(log)).unwrap_or_default();
    let me = peers::Me { meta: recovered.meta.clone(), client_address: config.advertise.clone(), logged };
    let desk = Arc::new(Desk::new(config.node.0, ports.client_address.port(), config.redis_settings()));
    tracing::info!(
        "node {} starts (boot {}): clients {}, peers {}, admin {}, data {}",
        config.node.0,
        recovered.meta.boot.0,
        ports.client_address,
        ports.peer_address,
        ports.admin_address,
        dir.path().display(),
    );
    let seed = me.meta.cluster.0;
    let engine_config = EngineConfig::new(seed, config.advertise.clone());
    let engine = Engine::new(clock::now(), engine_config, recovered);
    let disk = SyncThread::start(dir, journal, DiskListener(Arc::clone(&shared)));
    let thread = {
        let shared = Arc::clone(&shared);
        let work = move || driver::run(engine, &shared, disk);
        std::thread::Builder::new().name("engine".into()).spawn(work).map_err(|error| error.to_string())?
    };
    runtime.block_on(async {
        peers::dial_all(&me, &shared);
        let room = listen::room();
        tokio::spawn(peers::accept_all(ports.peer, room.peers, me, Arc::clone(&shared)));
        let tasks = TaskTracker::new();
        tokio::spawn(listen::accept_all(ports.client, room, Arc::clone(&shared), desk, tasks.clone()));
        tokio::spawn(admin::serve(ports.admin, room.admin, Arc::clone(&shared)));
        until_told(config.end_with_stdin).await;
        tracing::info!("node {} stops", config.node.0);
        shared.stopping.cancel();
        tasks.close();
        // Who has not read its answers by then does not get them.
        let _ = tokio::time::timeout(DRAIN, tasks.wait()).await;
    });
    shared.mailbox.stop();
    // A panic of the engine has been reported where it happened, and has ended the process.
    let _ = thread.join();
    runtime.shutdown_background();
    Ok(())
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
