//! The verbs that every door calls: deploy, rerun, cancel, receive a push, follow, health, status.
//!
//! [`Control::start`] takes the state directory's lock, recovers what a crash left, and starts the queue; from then on this
//! process is the one that acts. Doors hold a clone of [`Control`] and never touch Docker, Git or SQL. Reading does
//! not need the lock: [`Observer`] serves `refit status` with or without a daemon.

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures_util::stream::BoxStream;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    config::Config,
    model::{CommitId, DeploymentId, DeploymentView, EnvironmentKey, Status, Trigger},
    pipeline::journal::Recorded,
    registry::{Delivery, Outcome, Receipt, Registry, RegistryError},
};

/// What the binary hands in.
#[derive(Debug, Clone)]
pub struct Options {
    /// `DOCKER_HOST`, if it is set.
    pub docker_host: Option<String>,
    /// The refit binary itself: the process runtime starts its supervisors with it.
    pub program: PathBuf,
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
            Self::Usage { .. } => 64,
            Self::Unavailable { .. } | Self::Registry(_) => 69,
            Self::Busy { .. } => 75,
        }
    }

    /// The next step for a person.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Usage { hint, .. } | Self::Busy { hint, .. } | Self::Unavailable { hint, .. } => hint.as_deref(),
            Self::Registry(_) => None,
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
    pub databases: Vec<DatabaseStatus>,
    /// The schema version that the last migration reported.
    pub migrations: Option<String>,
    /// The deployment that runs now, and the one that waits.
    pub running: Option<DeploymentId>,
    pub queued: Option<DeploymentId>,
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

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DatabaseStatus {
    pub name: String,
    /// `running`, `stopped`, `present`, `missing` or `unknown`.
    pub state: String,
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
    config: Arc<Config>,
    registry: Registry,
}

impl Control {
    /// Takes the lock ([`ControlError::Busy`] if another process has it), opens the registry, recovers, starts the queue.
    pub async fn start(_config: Arc<Config>, _options: Options) -> Result<Self> {
        todo!()
    }

    pub fn config(&self) -> &Arc<Config> {
        &self.config
    }

    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Writes a push to disk; returns once it is there. Many at once share one commit.
    pub async fn receive(&self, _delivery: Delivery) -> Result<Receipt> {
        todo!()
    }

    /// Waits until the queue has said what becomes of a received push.
    pub async fn outcome(&self, _receipt: Receipt) -> Result<Vec<Outcome>> {
        todo!()
    }

    pub async fn deploy(&self, _request: DeployRequest) -> Result<DeploymentId> {
        todo!()
    }

    pub async fn rerun(&self, _request: RerunRequest) -> Result<DeploymentId> {
        todo!()
    }

    /// Asks a queued or running deployment to stop; it undoes what it did. Returns at once.
    pub async fn cancel(&self, _id: DeploymentId, _by: &str) -> Result<()> {
        todo!()
    }

    /// The journal from after `seq` on, live, closing with `End`.
    pub fn follow(&self, _id: DeploymentId, _after: i64) -> BoxStream<'static, Result<Update>> {
        todo!()
    }

    pub async fn health(&self) -> Health {
        todo!()
    }

    pub async fn status(&self) -> Result<Vec<EnvironmentStatus>> {
        todo!()
    }

    /// Takes no new work, lets running deployments finish within `grace`, then cancels and undoes them, and lets go of the lock.
    pub async fn shutdown(&self, _grace: Duration) {
        todo!()
    }

    /// Cancels what [`shutdown`](Self::shutdown) waits for: the second SIGTERM.
    pub fn hurry(&self) {
        todo!()
    }
}

/// Reads without the lock: what reading commands use.
#[derive(Debug, Clone)]
pub struct Observer {
    _config: Arc<Config>,
}

impl Observer {
    /// `registry`: `None` while nothing was ever deployed.
    pub fn new(_config: Arc<Config>, _registry: Option<Registry>, _options: &Options) -> Self {
        todo!()
    }

    pub async fn status(&self) -> Result<Vec<EnvironmentStatus>> {
        todo!()
    }

    pub async fn health(&self) -> Health {
        todo!()
    }
}
