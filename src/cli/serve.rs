//! `refit serve`: the daemon's life from its first port to its last lock.
//!
//! The port is bound before anything else, because that is what fails most often and costs nothing to undo. Then [`Control::start`]
//! takes the lock and recovers; only then is anybody answered. On SIGTERM or SIGINT the port is let go of at once,
//! while the Unix socket stays until running deployments have ended, for those who follow them; a second signal cuts that short. Under systemd
//! each of these steps is announced, and the watchdog is fed.

use std::{io, sync::Arc, time::Duration};

use sd_notify::NotifyState;
use tokio::{
    net::TcpListener,
    select,
    signal::unix::{Signal, SignalKind, signal},
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use crate::{
    cli::client::Daemon,
    config::{Config, Server},
    control::{Control, ControlError, Options},
    notify,
    server::{self, SharedVerbs, socket::Socket},
    telegram,
};

/// How long running deployments may go on after the first signal, before they are cancelled and undone.
const GRACE: Duration = Duration::from_secs(60);

/// What systemd is asked for on top: the time that undoing may take.
const UNDO: Duration = Duration::from_secs(240);

/// Descriptors for everything that is no connection: the store, Docker, Git, logs.
const OTHER_FILES: u64 = 512;

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("the daemon cannot listen on {address}: {source}")]
    Listen { address: String, source: io::Error },
    #[error("the daemon cannot make its socket {path}: {source}")]
    Socket { path: String, source: io::Error },
    #[error("the daemon cannot receive signals: {0}")]
    Signals(io::Error),
    #[error(transparent)]
    Control(#[from] ControlError),
}

impl ServeError {
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Control(error) => error.exit_code(),
            _ => 69,
        }
    }

    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Listen { address, source } if source.kind() == io::ErrorKind::AddrInUse => {
                let port = address.rsplit(':').next().unwrap_or_default();
                Some(format!(
                    "another program has the port, perhaps another refit: see `ss -ltnp 'sport = :{port}'`, or set another `listen` in `[server]`"
                ))
            }
            Self::Listen { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("ports below 1024 need root; set a higher one as `listen` in `[server]`".to_owned())
            }
            Self::Listen { .. } => Some("set `listen` in `[server]` to an address of this machine".to_owned()),
            Self::Socket { .. } => Some("check the modes and free space of `state_dir` in `[server]`".to_owned()),
            Self::Signals(_) => None,
            Self::Control(error) => error.hint().map(str::to_owned),
        }
    }
}

/// Runs until a signal ends it and everything is put away.
pub async fn run(config: Arc<Config>, options: Options) -> Result<(), ServeError> {
    let mut signals = Signals::new().map_err(ServeError::Signals)?;
    raise_file_limit(config.server.max_connections);
    let listener = listen(&config.server).await?;
    announce(&[NotifyState::Status("recovering")]);
    let control = select! {
        control = Control::start(config.clone(), options) => control?,
        () = signals.end() => return Ok(()),
    };
    let served = serve(&config, &control, listener, &mut signals).await;
    if served.is_err() {
        control.shutdown(Duration::ZERO).await;
    }
    control.close().await;
    served
}

async fn serve(
    config: &Arc<Config>,
    control: &Control,
    listener: TcpListener,
    signals: &mut Signals,
) -> Result<(), ServeError> {
    let path = config.server.socket();
    let socket =
        Socket::bind(&path).map_err(|source| ServeError::Socket { path: path.display().to_string(), source })?;
    let address = listener.local_addr().map_or_else(|_| config.server.listen.clone(), |a| a.to_string());
    let verbs: SharedVerbs = Arc::new(control.clone());
    let (network_ends, all_ends) = (CancellationToken::new(), CancellationToken::new());

    let (door, inlet) = telegram::line(config.telegram.as_ref()).unzip();
    let network = tokio::spawn(server::serve(listener, verbs.clone(), config.clone(), door, network_ends.clone()));
    let local = tokio::spawn(socket.serve(verbs, config.clone(), all_ends.clone()));
    let watchdog = tokio::spawn(feed_watchdog(all_ends.clone()));
    // Until `all_ends`, so that the last reports leave too.
    let post = super::hands::post(control);
    let pacer = post.pacer.clone();
    let reports = tokio::spawn(notify::run(post, control.ticks(), all_ends.clone()));

    // It gives commands: it ends with the other doors.
    let bot = tokio::spawn(Box::pin(telegram::run(control.clone(), pacer, inlet, network_ends.clone())));

    if config.telegram_without_token {
        tracing::warn!("the token of [telegram] is not set or empty: reports go to this log only");
    }
    tracing::info!("listening on {address} and {}", path.display());
    announce(&[NotifyState::Ready, NotifyState::Status(&format!("listening on {address}"))]);
    signals.end().await;

    // First, so that nothing begins after the word of it.
    let shutdown = control.shutdown(GRACE);
    tracing::info!(
        "stopping: running deployments have {} seconds to end; a second signal cancels them",
        GRACE.as_secs()
    );
    let micros = u32::try_from((GRACE + UNDO).as_micros()).unwrap_or(u32::MAX);
    announce(&[
        NotifyState::Stopping,
        NotifyState::Status("waiting for running deployments"),
        NotifyState::ExtendTimeoutUsec(micros),
    ]);
    network_ends.cancel();
    shut_down(control, shutdown, signals).await;
    all_ends.cancel();
    for task in [network, local, watchdog, reports, bot] {
        if let Err(error) = task.await {
            tracing::error!("a part of the daemon broke: {error}");
        }
    }
    tracing::info!("stopped");
    Ok(())
}

async fn shut_down(control: &Control, shutdown: impl Future<Output = ()>, signals: &mut Signals) {
    tokio::pin!(shutdown);
    loop {
        select! {
            () = &mut shutdown => return,
            () = signals.end() => {
                tracing::warn!("second signal: running deployments are cancelled and undone now");
                control.hurry();
            }
        }
    }
}

async fn listen(server: &Server) -> Result<TcpListener, ServeError> {
    match TcpListener::bind(&server.listen).await {
        Ok(listener) => Ok(listener),
        Err(source)
            if source.kind() == io::ErrorKind::AddrInUse && Daemon::connect(&server.socket()).await.is_some() =>
        {
            Err(ServeError::Control(ControlError::Busy {
                message: format!("a daemon of this configuration already runs and listens on {}", server.listen),
                hint: Some("see `refit status`; stop it before you start another".to_owned()),
            }))
        }
        Err(source) => Err(ServeError::Listen { address: server.listen.clone(), source }),
    }
}

/// Makes room for all connections and for the daemon's own files, as far as the hard limit allows.
fn raise_file_limit(connections: usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = u64::try_from(connections).unwrap_or(u64::MAX).saturating_add(OTHER_FILES);
    let wanted = limit.maximum.map_or(wanted, |maximum| wanted.min(maximum));
    if limit.current.is_some_and(|current| current < wanted)
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum })
    {
        tracing::warn!("the limit of open files could not be raised to {wanted}: {error}");
    }
}

/// SIGTERM and SIGINT, and a word about SIGHUP.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Returns when the daemon is asked to end.
    async fn end(&mut self) {
        loop {
            select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hang_up.recv() => {
                    tracing::warn!("SIGHUP changes nothing: a new configuration is read at the next start, so restart the daemon");
                }
            }
        }
    }
}

/// Tells systemd that this program's threads still take turns, twice as often as it asks.
async fn feed_watchdog(ends: CancellationToken) {
    let Some(period) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = interval((period / 2).max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        select! {
            _ = ticks.tick() => announce(&[NotifyState::Watchdog]),
            () = ends.cancelled() => return,
        }
    }
}

/// Does nothing where there is no systemd; a message that it does not take is no reason to stop.
fn announce(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("systemd could not be told: {error}");
    }
}
