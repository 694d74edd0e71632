//! `quorate lock NAME -- PROGRAM`: runs a program while a lock is held.
//!
//! Invariant: the program runs only inside a lease that was counted from before the request that got it left. When
//! the lease ends unrenewed, or a renewal says that the lock is lost, the program is told to end (SIGTERM), and is
//! ended (SIGKILL) if it does not.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::pin::Pin;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use bytes::Bytes;
use quorate_client::{Error, Held, Lock};
use quorate_protocol::reply::Code;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Sleep, sleep, timeout};

use crate::args::LockArgs;
use crate::cluster::Cluster;
use crate::trouble::{INTERNAL, LOCK_LOST, NOT_FOUND, NOT_GRANTED, NOT_RUNNABLE, Trouble};

/// How long a program whose lock is lost may take to end.
const GRACE: Duration = Duration::from_secs(10);
/// Pause before a renewal that failed is tried again.
const AGAIN: Duration = Duration::from_millis(100);

/// A lease, ending 1 % early, for drifting clocks.
type Lease = Pin<Box<Sleep>>;

fn lease(ttl: Duration) -> Lease {
    Box::pin(sleep(ttl.mul_f64(0.99)))
}

/// Takes the lock, runs the program, releases the lock.
pub(crate) async fn run(cluster: &mut Cluster, args: &LockArgs) -> Result<ExitCode, Trouble> {
    args.check()?;
    let name = Bytes::from(args.name.clone().into_vec());
    let shown = name.escape_ascii().to_string();
    let owner = args.owner.clone().unwrap_or_else(own_name);
    let (ttl, wait) = (Duration::from_millis(args.ttl()), Duration::from_millis(args.wait.unwrap_or(0)));
    let how = Lock::owned_by(owner.into_vec()).ttl(ttl).wait(wait);
    // Before the program can be told anything: from here on a signal is passed on to it instead of ending this one.
    let mut signals = Signals::new().map_err(|error| Trouble::internal(error.to_string()))?;
    let client = cluster.client().await?;
    let granted = tokio::select! {
        granted = client.lock(name, how) => granted?,
        signal = signals.next() => return Ok(ExitCode::from(128 + signal_number(signal))),
    };
    let Some(held) = granted else {
        let text =
            format!("lock {shown} is held by somebody else; wait longer with --wait MS, or try again later");
        return Err(Trouble::new(NOT_GRANTED, text));
    };
    let first = lease(ttl);
    if let Some(why) = renew(&held, ttl).await? {
        return Err(lost(&shown, why));
    }
    let child = start(args, held.token());
    let mut child = match child {
        Ok(child) => child,
        Err(trouble) => {
            release(held).await;
            return Err(trouble);
        }
    };
    let mut keeping = Box::pin(keep(&held, ttl, first));
    let why = loop {
        tokio::select! {
            status = child.wait() => {
                drop(keeping);
                release(held).await;
                return status.map(exit_code).map_err(|error| Trouble::internal(error.to_string()));
            }
            why = &mut keeping => break why,
            signal = signals.next() => tell(&child, signal),
        }
    };
    tell(&child, Some(Signal::TERM));
    if timeout(GRACE, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
    Err(lost(&shown, why))
}

fn lost(name: &str, why: &str) -> Trouble {
    let text = format!("lock {name} was lost ({why}), so the program was ended; look at what it left behind");
    Trouble::new(LOCK_LOST, text)
}

/// Renews the lock for as long as that works; why it does not any more.
async fn keep(held: &Held, ttl: Duration, mut lease: Lease) -> &'static str {
    const RAN_OUT: &str = "no node answered before its lease ended";
    let mut pause = ttl / 3;
    loop {
        tokio::select! {
            () = &mut lease => return RAN_OUT,
            () = sleep(pause) => {}
        }
        let fresh = self::lease(ttl);
        let renewed = tokio::select! {
            () = &mut lease => return RAN_OUT,
            renewed = renew(held, ttl) => renewed,
        };
        match renewed {
            Ok(None) => (lease, pause) = (fresh, ttl / 3),
            Ok(Some(why)) => return why,
            Err(_) => pause = AGAIN.min(ttl / 3),
        }
    }
}

/// Renews the lock once; if it is lost, why.
async fn renew(held: &Held, ttl: Duration) -> Result<Option<&'static str>, Error> {
    match held.renew(ttl).await {
        Ok(Some(_)) => Ok(None),
        Ok(None) => Ok(Some("it was released, or its lease had ended")),
        Err(error) if error.code() == Some(Code::NotOwner) => Ok(Some("somebody else holds it")),
        Err(error) => Err(error),
    }
}

/// Releases the lock. If that fails, the lease ends by itself.
async fn release(held: Held) {
    let _ = timeout(GRACE, held.unlock()).await;
}

/// A name that nobody else has: of this host, this process, and chance.
fn own_name() -> OsString {
    use std::hash::{BuildHasher as _, Hasher as _};
    let chance = std::hash::RandomState::new().build_hasher().finish();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{host}:{}:{chance:016x}", std::process::id()).into()
}

fn start(args: &LockArgs, token: u64) -> Result<Child, Trouble> {
    let (program, rest) = args.program.split_first().expect("there is a program");
    let child = Command::new(program).args(rest).env("QUORATE_TOKEN", token.to_string()).spawn();
    child.map_err(|error| {
        let missing = error.kind() == std::io::ErrorKind::NotFound;
        let text = format!("{} cannot be run: {error}; the lock is released", program.to_string_lossy());
        Trouble::new(if missing { NOT_FOUND } else { NOT_RUNNABLE }, text)
    })
}

/// Signals that are for the program.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// The next one to pass on; none for Ctrl-C, which the terminal gives to the program itself.
    async fn next(&mut self) -> Option<Signal> {
        tokio::select! {
            _ = self.terminate.recv() => Some(Signal::TERM),
            _ = self.hangup.recv() => Some(Signal::HUP),
            _ = self.interrupt.recv() => None,
        }
    }
}

fn signal_number(signal: Option<Signal>) -> u8 {
    u8::try_from(signal.unwrap_or(Signal::INT).as_raw()).unwrap_or(INTERNAL)
}

fn tell(child: &Child, signal: Option<Signal>) {
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let (Some(pid), Some(signal)) = (pid, signal) {
        // It may have ended already.
        let _ = kill_process(pid, signal);
    }
}

/// The program's own status, as shells say it.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(INTERNAL))
}
