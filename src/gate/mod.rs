//! The gate: a reverse proxy that owns the public ports and says which instance of an app gets the requests.
//!
//! It is a process of its own (`refit gate`), so that deployments, crashes and upgrades of the daemon do not touch a single connection. The daemon and people speak to it over
//! a Unix socket ([`wire`], [`Client`]).
//!
//! - `front` accepts connections on the public sockets and feeds them to pingora, through `stream`, which bounds what a client may send before
//!   its request is whole.
//! - `proxy` is one request's way: `table` finds its route, `traffic` says where that goes now, `side` counts it there until its answer is sent.
//! - `upgrade` connects for requests that ask for another protocol, such as WebSockets.
//! - `hold` is where requests wait while the app is away, `pages` what the gate answers by itself, `forward` what the app is told about its client.
//! - `house` carries out the verbs that `control` reads; `state` keeps what must outlive the process.
//! - `keeper` starts a gate for the daemon and replaces one of another `build`.
//! - `handover` lets a new gate take the sockets of an old one; `predecessors` is what the new one knows of those that are still finishing.
//!
//! Only this room uses pingora.

pub mod build;
pub mod client;
mod control;
mod counters;
mod forward;
mod front;
mod handover;
mod hold;
mod house;
pub mod keeper;
mod pages;
mod predecessors;
mod proxy;
mod side;
mod state;
mod stream;
mod table;
mod traffic;
mod upgrade;
pub mod wire;

use std::{
    collections::BTreeMap,
    fs::{File, TryLockError},
    io,
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{net::UnixListener, sync::watch, time};
use tokio_util::sync::CancellationToken;

pub use build::Build;
pub use client::{Client, ClientError};
pub use forward::Network;
pub use state::StateError;

use control::Control;
use front::{Connections, Floor};
use house::Gate;

use crate::{server::socket::Socket, throttle::Throttle};

/// Files that the gate needs besides connections.
const OTHER_FILES: u64 = 512;

/// How the gate runs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Has `gate.json` and `gate.lock`; made (0700) where it is missing.
    pub state_dir: PathBuf,
    pub socket: PathBuf,
    /// Take the place of the gate that serves this state directory, if there is one.
    pub take_over: bool,
    /// The file that this process runs, for whoever asks.
    pub build: Option<Build>,
    /// Whether the daemon started it, and so may replace it by a newer one.
    pub by_daemon: bool,
    /// Whose `X-Forwarded-…` headers are believed.
    pub trusted: Vec<Network>,
    /// Client connections at once; fewer where the system allows fewer open files.
    pub max_connections: u64,
    /// How long a gate that was replaced may finish its connections.
    pub linger: Duration,
    /// How long requests may take to end after SIGTERM.
    pub grace: Duration,
}

impl Settings {
    pub fn new(state_dir: PathBuf, socket: PathBuf) -> Self {
        Self {
            state_dir,
            socket,
            take_over: false,
            build: None,
            by_daemon: false,
            trusted: Network::LOOPBACK.to_vec(),
            max_connections: 8192,
            linger: Duration::from_secs(3600),
            grace: Duration::from_secs(30),
        }
    }
}

/// Why the gate does not start.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    #[error("another gate serves the state directory {}", dir.display())]
    Taken { dir: PathBuf },
    #[error("{action}: {source}")]
    Io { action: String, source: io::Error },
    #[error(transparent)]
    State(#[from] StateError),
}

impl GateError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Taken { .. } => "`refit gate --take-over` replaces it and drops nothing",
            Self::Io { .. } => "check the directory, its owner and the disk",
            Self::State(StateError::Read { .. }) => "check the file and its owner",
            Self::State(StateError::Newer { .. }) => "run the newer release of refit",
        }
    }
}

fn io_error(action: impl Into<String>) -> impl FnOnce(io::Error) -> GateError {
    let action = action.into();
    move |source| GateError::Io { action, source }
}

/// Serves until `stop` is cancelled, or until another gate has taken over and the last connection here has ended. `ready` is called once it serves.
///
/// After `stop`, requests may end within [`Settings::grace`]. Connections that are left then are tasks of the runtime, and end with it.
pub async fn run(settings: Settings, stop: CancellationToken, ready: impl FnOnce()) -> Result<(), GateError> {
    crate::files::make_private_dir(&settings.state_dir)
        .map_err(io_error(format!("making the directory {}", settings.state_dir.display())))?;
    let (leave, leaving) = watch::channel(false);
    let floor = Arc::new(Floor {
        connections: Connections::new(most_connections(settings.max_connections)),
        unmatched: AtomicU64::new(0),
        trusted: settings.trusted.clone(),
        leaving,
        hurry: CancellationToken::new(),
        throttle: Throttle::default(),
    });
    let state_file = settings.state_dir.join("gate.json");
    let gate =
        Arc::new(Gate::new(floor.clone(), leave, state_file.clone(), (settings.build.clone(), settings.by_daemon)));
    let control = start(&settings, &gate, &state_file).await?;
    let (left, closed) = (control.left.clone(), control.closed.clone());
    tokio::spawn(control.serve());
    let keeper = tokio::spawn(gate.clone().keep());
    tokio::spawn(gate.clone().probe());
    ready();
    tokio::select! {
        () = stop.cancelled() => {
            tracing::info!("stopping: {} connections", floor.connections.now());
            closed.cancel();
            gate.leave();
            floor.hurry.cancel();
            finish(&gate, settings.grace, CancellationToken::new()).await;
        }
        () = left.cancelled() => finish(&gate, settings.linger, stop).await,
    }
    keeper.abort();
    Ok(())
}

/// Makes the gate serve: as the successor of another one, or from what is on disk.
async fn start(settings: &Settings, gate: &Arc<Gate>, state_file: &std::path::Path) -> Result<Control, GateError> {
    let control = |listener: UnixListener, lock: File| Control {
        gate: gate.clone(),
        listener: Arc::new(listener),
        lock: Arc::new(lock),
        closed: CancellationToken::new(),
        left: CancellationToken::new(),
    };
    let lock_file = settings.state_dir.join("gate.lock");
    let lock = File::options().create(true).truncate(false).write(true).open(&lock_file);
    let lock = lock.map_err(io_error(format!("opening {}", lock_file.display())))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) if settings.take_over => return take_over(settings, gate, control).await,
        Err(TryLockError::WouldBlock) => return Err(GateError::Taken { dir: settings.state_dir.clone() }),
        Err(TryLockError::Error(error)) => return Err(io_error(format!("locking {}", lock_file.display()))(error)),
    }
    let state = state::load(state_file)?;
    let socket = Socket::bind(&settings.socket);
    let socket = socket.map_err(io_error(format!("listening on {}", settings.socket.display())))?;
    gate.restore(&state, BTreeMap::new());
    Ok(control(socket.into_listener(), lock))
}

async fn take_over(
    settings: &Settings,
    gate: &Arc<Gate>,
    control: impl FnOnce(UnixListener, File) -> Control,
) -> Result<Control, GateError> {
    let action = format!("taking over from the gate on {}", settings.socket.display());
    let mut taken = handover::take(&settings.socket).await.map_err(io_error(action))?;
    gate.restore(&taken.state, std::mem::take(&mut taken.listeners));
    let report = std::mem::take(&mut taken.report);
    let (pid, stream, listener, lock) = taken.into_parts();
    // Before any change can be asked for, so that the old gate hears of all of them.
    let old = gate.predecessors.enter(pid, report);
    let gate = gate.clone();
    tokio::spawn(async move {
        if let Err(error) = handover::succeed(&gate, pid, stream, old).await {
            tracing::warn!("the gate before this one, process {pid}: {error}");
        }
    });
    Ok(control(listener, lock))
}

/// Waits until nothing is left to do, at most `at_most` or until `stop`.
async fn finish(gate: &Gate, at_most: Duration, stop: CancellationToken) {
    let done = async {
        while gate.floor.connections.now() > 0 || !gate.predecessors.is_empty() {
            time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = done => {}
        () = time::sleep(at_most) => {
            tracing::warn!("the time is over: {} connections are cut", gate.floor.connections.now());
        }
        () = stop.cancelled() => {}
    }
}

/// A connection needs a file here and one towards the app. Raises the limit as far as it goes.
fn most_connections(wanted: u64) -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let needed = wanted.saturating_mul(2).saturating_add(OTHER_FILES);
    let raised = limit.maximum.map_or(needed, |most| most.min(needed)).max(limit.current.unwrap_or(needed));
    let raised = match setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum: limit.maximum }) {
        Ok(()) => raised,
        Err(_) => limit.current.unwrap_or(needed),
    };
    wanted.min(raised.saturating_sub(OTHER_FILES) / 2).max(16)
}
