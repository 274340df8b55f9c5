//! The verbs that every door calls: deploy, rerun, cancel, receive a push, follow, health, status.
//!
//! [`Control::start`] takes the state directory's lock, recovers what a crash left, and starts the queue; from then on this
//! process is the one that acts. Doors hold a clone of [`Control`] and never touch Docker, Git or SQL. Reading does
//! not need the lock: [`Observer`] serves `refit status` with or without a daemon.

use std::{
    fs::{File, TryLockError},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::stream::BoxStream;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Config, Environment},
    data::LastLook,
    fault::Faults,
    model::{Branch, CommitId, DeploymentId, DeploymentView, EnvironmentKey, Status, Trigger},
    pipeline::{Runtimes, World, journal::Recorded, orphans, recover, traffic},
    queue::Queue,
    registry::{Delivery, Filter, NewDeployment, Outcome, Receipt, Registry, RegistryError},
    rollback::Check,
    runtime::{
        docker::{DockerRuntime, Engine},
        process::ProcessRuntime,
    },
};

mod backup;
mod decide;
mod follow;
mod migrate;
mod observe;
mod read;
mod rollback;
mod served;
#[cfg(test)]
mod tests;

pub use backup::{BackupEntry, BackupRequest, BackupUpdate, BackupVerb, Created, Removed, RestoreWish, Restored};
pub use decide::{ApprovalRequest, ResolveRequest, decide, resolve};
pub use migrate::{MigrateReport, MigrateRequest, MigrateVerb, Migrations};
pub use observe::Observer;
pub use read::LogText;
pub use rollback::{RollbackRequest, Target};

/// What the binary hands in.
#[derive(Debug, Clone)]
pub struct Options {
    /// `DOCKER_HOST`, if it is set.
    pub docker_host: Option<String>,
    /// The refit binary itself: the process runtime starts its supervisors with it.
    pub program: PathBuf,
    /// Faults that a test ordered; see [`Faults::parse`].
    pub faults: Faults,
}

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The request names something that is not there, or nothing where several are possible. Exit 64, HTTP 404 or 400.
    #[error("{message}")]
    Usage { message: String, hint: Option<String> },
    /// Somebody else holds the state directory or the environment. Exit 75, HTTP 409.
    #[error("{message}")]
    Busy { message: String, hint: Option<String> },
    /// Something that is needed is not there. Exit 69, HTTP 503.
    #[error("{message}")]
    Unavailable { message: String, hint: Option<String> },
    /// Safety checks say no, and nothing was changed. Exit 1, HTTP 412.
    #[error("{message}")]
    Refused { message: String, hint: Option<String>, checks: Vec<Check> },
    /// It was tried and did not work; the message says what that leaves. HTTP 500.
    #[error("{message}")]
    Failed { message: String, hint: Option<String>, code: u8 },
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl ControlError {
    pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage { message: message.into(), hint: Some(hint.into()) }
    }

    /// The exit code of the design, section 8.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused { .. } => 1,
            Self::Failed { code, .. } => *code,
            Self::Usage { .. } => 64,
            Self::Unavailable { .. } | Self::Registry(_) => 69,
            Self::Busy { .. } => 75,
        }
    }

    /// The next step for a person.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Usage { hint, .. }
            | Self::Busy { hint, .. }
            | Self::Unavailable { hint, .. }
            | Self::Failed { hint, .. }
            | Self::Refused { hint, .. } => hint.as_deref(),
            Self::Registry(error) => Some(error.hint()),
        }
    }
}

pub type Result<T> = std::result::Result<T, ControlError>;

/// A deployment that somebody asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeployRequest {
    /// Needed where there are several apps.
    pub app: Option<String>,
    /// Needed where there are several environments and none is called `production`.
    pub environment: Option<String>,
    /// A branch, tag or commit; the environment's branch where unset.
    pub reference: Option<String>,
    pub trigger: Trigger,
    /// Refuse ([`ControlError::Busy`]) instead of waiting behind a running deployment.
    pub no_wait: bool,
}

/// A deployment to be done again: the same commit.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RerunRequest {
    /// The newest of the environment where unset.
    pub id: Option<DeploymentId>,
    pub app: Option<String>,
    pub environment: Option<String>,
    pub trigger: Trigger,
    pub no_wait: bool,
}

/// What a follower sees, in order; `End` is the last.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Update {
    Event(Recorded),
    End { deployment: Box<DeploymentView> },
}

/// `GET /_deploy/health`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Health {
    /// `ok` or `unavailable`.
    pub status: String,
    pub version: String,
    /// `ok`, or what is wrong.
    pub store: String,
    /// `ok`, what is wrong, or `unused` where no environment runs on Docker.
    pub docker: String,
}

/// One environment as `refit status` and `GET /_deploy/status` show it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EnvironmentStatus {
    #[serde(flatten)]
    pub key: EnvironmentKey,
    pub branch: String,
    pub port: Option<u16>,
    pub runtime: String,
    pub live: Option<LiveStatus>,
    pub service: ServiceStatus,
    /// How the gate serves it; `None` where the app has its port itself, or nothing is live.
    #[serde(default)]
    pub gate: Option<GateView>,
    /// The version before, where it goes on running for a while so that going back to it is a switch.
    #[serde(default)]
    pub warm: Option<WarmStatus>,
    pub databases: Vec<DatabaseStatus>,
    /// `None` where nothing is configured to be backed up.
    pub backups: Option<BackupStatus>,
    /// The schema's version: as the database says where SQL files migrate, else as the last migration reported.
    pub migrations: Option<String>,
    /// What the database has and the live version does not know: migrations of a version that did not stay.
    #[serde(default)]
    pub schema_ahead: Vec<String>,
    /// The deployment that runs now, and the one that waits.
    pub running: Option<DeploymentId>,
    pub queued: Option<DeploymentId>,
    /// The one that waits for a person's word.
    pub awaiting_approval: Option<AwaitingApproval>,
    /// The newest stuck one that nobody has resolved: automatic deployments are held back.
    pub stuck: Option<DeploymentId>,
    pub last: Option<LastDeployment>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LiveStatus {
    pub deployment: DeploymentId,
    pub commit: CommitId,
    pub subject: Option<String>,
    /// The artefact's name, such as `guestbook:0123456789`.
    pub version: String,
    pub image: String,
    pub deployed_at: Timestamp,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// `running`, `restarting`, `exited`, `created`, `missing`, `none` (nothing deployed yet) or `unknown` (the runtime is away).
    pub state: String,
    pub detail: Option<String>,
    pub restarts: u64,
}

/// How the gate serves an environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateView {
    /// `serving`, `held` (requests wait), `maintenance`, `empty` (nothing to send requests to), `missing` (the gate does not know the environment)
    /// or `unreachable`.
    pub state: String,
    /// Why it is unreachable, or the sentence of the maintenance page.
    pub detail: Option<String>,
    /// Requests that wait.
    pub held: u64,
    /// What has the traffic, as far as the gate tells.
    pub live: Option<SideView>,
}

/// A version that has the traffic, with its figures since it became live in the gate that runs now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SideView {
    pub deployment: String,
    /// RFC 3339, UTC.
    pub since: String,
    /// Whether it accepted the newest connection that was tried.
    pub reachable: Option<bool>,
    pub requests: u64,
    /// Answers with status 500 and above, and requests without a whole answer because of the app.
    pub errors: u64,
    /// From a request to the head of its answer, in microseconds; 0 where none was answered.
    pub p50_us: u64,
    pub p99_us: u64,
    /// Requests that are being answered now.
    pub in_flight: u64,
    pub websockets: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DatabaseStatus {
    pub name: String,
    /// `running`, `stopped`, `present`, `missing` or `unknown`.
    pub state: String,
}

/// What could come back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupStatus {
    /// The newest set that can be used.
    pub newest: Option<NewestBackup>,
    /// The set that was looked at last, and what was found. One that was restored to try it counts more than one whose checksums were read.
    pub verified: Option<VerifiedBackup>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewestBackup {
    pub set: String,
    pub at: Timestamp,
    pub bytes: u64,
    /// Parts that it should have.
    pub missing: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedBackup {
    pub set: String,
    #[serde(flatten)]
    pub look: LastLook,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmStatus {
    pub deployment: DeploymentId,
    /// Then it is stopped.
    pub until: Timestamp,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AwaitingApproval {
    pub id: DeploymentId,
    pub expires_at: Timestamp,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LastDeployment {
    pub id: DeploymentId,
    pub status: Status,
    pub error: Option<String>,
    pub finished_at: Option<Timestamp>,
}

/// The verbs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Control {
    world: Arc<World>,
    queue: Arc<Queue>,
    /// Held while this process acts.
    lock: Arc<Mutex<Option<File>>>,
    hurry: CancellationToken,
    /// Work by hand that is no deployment.
    by_hand: CancellationToken,
}

impl Control {
    /// Takes the lock ([`ControlError::Busy`] if another process has it), opens the registry, recovers, starts the queue.
    pub async fn start(config: Arc<Config>, options: Options) -> Result<Self> {
        Self::start_with(config, options, Mode::Daemon).await
    }

    /// The same for one command without a daemon: remotes are not asked for other pushes.
    pub async fn start_in_place(config: Arc<Config>, options: Options) -> Result<Self> {
        Self::start_with(config, options, Mode::InPlace).await
    }

    async fn start_with(config: Arc<Config>, options: Options, mode: Mode) -> Result<Self> {
        let lock = take_lock(&config)?;
        let registry = Registry::open(&config.server.registry()).await?;
        let runtimes = runtimes(&config, &options)?;
        let daemon = mode == Mode::Daemon;
        let world = World::new(config, registry, runtimes, options.faults).with_program(options.program);
        let world = Arc::new(world.as_daemon(daemon));
        recover::recover(&world).await?;
        // After a reboot the engine starts its containers by itself; supervised processes wait for us, and so does what was stopped.
        let untidy = orphans::settle_all(&world, daemon).await;
        if daemon {
            traffic::renew(&world).await;
        }
        for environment in world.config.environments() {
            traffic::settle(&world, environment).await?;
        }
        if daemon {
            orphans::sweep_data(&world).await;
        }
        let queue = Queue::start(Arc::clone(&world), daemon, &untidy);
        let lock = Arc::new(Mutex::new(Some(lock)));
        Ok(Self { world, queue, lock, hurry: CancellationToken::new(), by_hand: CancellationToken::new() })
    }

    pub fn config(&self) -> &Arc<Config> {
        &self.world.config
    }

    pub fn registry(&self) -> &Registry {
        &self.world.registry
    }

    /// Faults that a test ordered.
    pub fn faults(&self) -> &Faults {
        &self.world.faults
    }

    /// Goes up with everything that is recorded; the notifier waits on it.
    pub fn ticks(&self) -> watch::Receiver<u64> {
        self.world.ticks.subscribe()
    }

    /// Writes a push to disk; returns once it is there. Many at once share one commit.
    pub async fn receive(&self, delivery: Delivery) -> Result<Receipt> {
        self.queue.receive(delivery).await.map_err(|error| ControlError::Unavailable {
            message: error.to_string(),
            hint: Some(error.hint().to_owned()),
        })
    }

    /// Waits until the queue has said what becomes of a received push.
    pub async fn outcome(&self, receipt: Receipt) -> Result<Vec<Outcome>> {
        let mut ticks = self.world.ticks.subscribe();
        loop {
            if let Some(outcomes) = self.world.registry.outcome(receipt.id).await? {
                return Ok(outcomes);
            }
            // The sender lives in `world`, which we hold.
            let _ = ticks.changed().await;
        }
    }

    pub async fn deploy(&self, request: DeployRequest) -> Result<DeploymentId> {
        let environment = self.environment(request.app.as_deref(), request.environment.as_deref())?;
        let commit = request.reference.as_deref().and_then(|r| r.parse::<CommitId>().ok());
        let reference = match &request.reference {
            Some(reference) => checked_reference(reference)?,
            None => format!("refs/heads/{}", environment.branch),
        };
        let new =
            NewDeployment { key: environment.key.clone(), commit, reference, trigger: request.trigger, rollback: None };
        self.enqueue(new, request.no_wait).await
    }

    pub async fn rerun(&self, request: RerunRequest) -> Result<DeploymentId> {
        let registry = self.registry();
        let old = match request.id {
            Some(id) => registry.deployment(id).await?.ok_or_else(|| unknown(id))?,
            None => {
                let environment = self.environment(request.app.as_deref(), request.environment.as_deref())?;
                let filter = Filter {
                    app: Some(environment.key.app.to_string()),
                    environment: Some(environment.key.environment.to_string()),
                    limit: Some(1),
                    ..Filter::default()
                };
                let newest = registry.deployments(&filter).await?.pop();
                newest.ok_or_else(|| {
                    let message = format!("{} has no deployment to run again", environment.key);
                    ControlError::usage(message, "run `refit deploy` for a first one")
                })?
            }
        };
        let key = EnvironmentKey { app: old.app, environment: old.environment };
        if self.world.config.by_key(&key).is_none() {
            let message = format!("{key} is no longer in the configuration");
            return Err(ControlError::usage(message, "run `refit check` to see what is"));
        }
        let (commit, reference) = (old.commit, old.reference);
        let new = NewDeployment { key, commit, reference, trigger: request.trigger, rollback: None };
        self.enqueue(new, request.no_wait).await
    }

    async fn enqueue(&self, new: NewDeployment, no_wait: bool) -> Result<DeploymentId> {
        let key = new.key.clone();
        if no_wait {
            for (status, what) in [(Status::Running, "is running"), (Status::AwaitingApproval, "waits for approval")] {
                let open = self.registry().open_deployments(status).await?;
                if let Some((id, _)) = open.into_iter().find(|(_, k)| *k == key) {
                    return Err(ControlError::Busy {
                        message: format!("deployment {id} of {key} {what}"),
                        hint: Some(format!("wait for it (`refit logs {id} -f`), or leave out --no-wait")),
                    });
                }
            }
        }
        let id = self.registry().enqueue(&new).await?;
        self.world.tick();
        self.queue.wake(&key);
        Ok(id)
    }

    fn environment(&self, app: Option<&str>, environment: Option<&str>) -> Result<Arc<Environment>> {
        self.world.config.environment(app, environment).cloned().map_err(|error| ControlError::Usage {
            message: error.to_string(),
            hint: Some("name it with --app and --env".to_owned()),
        })
    }

    /// Asks a queued or running deployment to stop; it undoes what it did. Returns at once.
    pub async fn cancel(&self, id: DeploymentId, by: &str) -> Result<()> {
        let view = self.registry().deployment(id).await?.ok_or_else(|| unknown(id))?;
        if view.status.is_end() {
            let message = format!("deployment {id} has ended already ({})", view.status);
            return Err(ControlError::usage(message, format!("`refit show {id}` tells how")));
        }
        let key = EnvironmentKey { app: view.app, environment: view.environment };
        if self.queue.cancel(&key, id, by) {
            return Ok(());
        }
        Err(ControlError::usage(format!("{key} is no longer in the configuration"), "restart the daemon to recover it"))
    }

    /// The journal from after `seq` on, live, closing with `End`.
    pub fn follow(&self, id: DeploymentId, after: i64) -> BoxStream<'static, Result<Update>> {
        follow::follow(self.registry().clone(), self.world.ticks.subscribe(), id, after)
    }

    pub async fn health(&self) -> Health {
        self.observer().health().await
    }

    pub async fn status(&self) -> Result<Vec<EnvironmentStatus>> {
        self.observer().status().await
    }

    fn observer(&self) -> Observer {
        Observer::of(Arc::clone(&self.world.config), Some(self.world.registry.clone()), self.world.runtimes.clone())
    }

    /// Takes no new work from this call on; the future lets running deployments finish within `grace`, then cancels and undoes them.
    /// Followers and reports may still be read afterwards; [`close`](Self::close) ends that.
    pub fn shutdown(&self, grace: Duration) -> impl Future<Output = ()> + Send {
        self.queue.close();
        async move {
            tokio::select! {
                () = self.queue.idle() => {}
                () = async {
                    tokio::select! {
                        () = tokio::time::sleep(grace) => {}
                        () = self.hurry.cancelled() => {}
                    }
                    self.queue.cancel_all("the daemon, which is stopping");
                    self.by_hand.cancel();
                    self.queue.idle().await;
                } => {}
            }
            self.queue.stop().await;
        }
    }

    /// Closes the registry and lets go of the lock. Call after [`shutdown`](Self::shutdown).
    pub async fn close(&self) {
        self.registry().close().await;
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Cancels what [`shutdown`](Self::shutdown) waits for: the second SIGTERM.
    pub fn hurry(&self) {
        self.hurry.cancel();
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Daemon,
    InPlace,
}

/// One process acts on a state directory. The lock goes with the process, however it ends.
fn take_lock(config: &Config) -> Result<File> {
    let path = config.server.lock();
    let unavailable = |error: &dyn std::fmt::Display| ControlError::Unavailable {
        message: format!("the lock {} cannot be taken: {error}", path.display()),
        hint: Some("check who owns the state directory and whether its disk is writable".to_owned()),
    };
    crate::files::make_private_dir(&config.server.state_dir).map_err(|e| unavailable(&e))?;
    let mut options = File::options();
    let file = options.create(true).truncate(false).write(true).open(&path).map_err(|e| unavailable(&e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(ControlError::Busy {
            message: format!("another refit works in {}", config.server.state_dir.display()),
            hint: Some("is a daemon or a `refit deploy` running? `refit status` shows what it does".to_owned()),
        }),
        Err(TryLockError::Error(error)) => Err(unavailable(&error)),
    }
}

/// The runtimes of this machine. Docker is connected to when it is first needed.
fn runtimes(config: &Config, options: &Options) -> Result<Runtimes> {
    let engine = Engine::connect(options.docker_host.as_deref()).map_err(|error| ControlError::Unavailable {
        message: error.to_string(),
        hint: Some("check DOCKER_HOST".to_owned()),
    })?;
    let process = ProcessRuntime::new(config.server.state_dir.join("process"), options.program.clone());
    Ok(Runtimes {
        docker: Arc::new(DockerRuntime::new(engine.clone())),
        process: Arc::new(process),
        containers: Arc::new(engine.clone()),
        scratch: Arc::new(engine),
    })
}

/// What a person may name: no leading `-`, nothing that Git would read as more than a name.
fn checked_reference(reference: &str) -> Result<String> {
    let bare = reference.strip_prefix("refs/heads/").or(reference.strip_prefix("refs/tags/")).unwrap_or(reference);
    match bare.parse::<Branch>() {
        Ok(_) => Ok(reference.to_owned()),
        Err(error) => {
            Err(ControlError::usage(error.to_string(), "name a branch, a tag, or a commit by its hexadecimal id"))
        }
    }
}

fn unknown(id: DeploymentId) -> ControlError {
    ControlError::usage(format!("there is no deployment {id}"), "`refit history` lists them")
}
