//! Where the app runs, behind one trait.
//!
//! A runtime turns a commit into an *artefact* (a Docker image, a release directory) and an artefact into an *instance* (a
//! container, a supervised process). It knows nothing of stages, strategies or the journal: `pipeline::stages` composes its
//! calls. Three rules make recovery possible:
//!
//! 1. Names are computed, never drawn: the instance of deployment 7 of `guestbook/production` is always
//!    `refit-guestbook-production-7`, so an effect whose record was lost is found again.
//! 2. Every call may be made twice. Preparing what exists returns it; starting what runs, stopping what stopped and removing
//!    what is gone are successes.
//! 3. Everything made carries labels (`refit.app`, `refit.environment`, `refit.deployment`), so that what belongs to nobody can be
//!    found.
//!
//! Long calls take a [`Job`]: they log to it and give up soon after it is cancelled, leaving nothing running.

use std::{collections::BTreeMap, net::{IpAddr, SocketAddr}, time::Duration};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Environment, Start},
    git::Mirror,
    log::StageLog,
    model::{CommitId, DeploymentId, EnvironmentKey},
    secret::Secret,
};

pub mod docker;
pub mod host;
pub mod process;
pub mod scratch;
mod sight;

pub use scratch::{Scratch, ScratchContainer, ScratchImage, ScratchMount, ScratchNetwork, ScratchRun, ScratchSpec};
pub use sight::{SeenArtefact, SeenHelper, SeenInstance, Sight};

/// What a long call logs to and is cancelled by.
#[derive(Debug, Clone)]
pub struct Job {
    pub log: StageLog,
    pub cancel: CancellationToken,
}

/// Label keys of everything Refit makes.
pub mod label {
    pub const APP: &str = "refit.app";
    pub const ENVIRONMENT: &str = "refit.environment";
    pub const DEPLOYMENT: &str = "refit.deployment";
    /// `app` (the instance), `test`, `migrate`, `copy` (short-lived helpers), `scratch`.
    pub const ROLE: &str = "refit.role";
    /// What the image was built from: see `docker::build`.
    pub const BUILD_KEY: &str = "refit.build-key";
    /// What a stage of a Dockerfile begins with: see `docker::dockerfile`.
    pub const STAGE: &str = "refit.stage";
}

#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The engine cannot be reached: exit code 69.
    #[error("{what} cannot be reached: {why}")]
    Unavailable { what: String, why: String },
    /// Something that the configuration names is not there (an image, a network, a container).
    #[error("{what} `{name}` does not exist")]
    Missing { what: &'static str, name: String },
    #[error("cancelled")]
    Cancelled,
    /// The operation was understood and did not work; `why` is fit for people.
    #[error("{operation}: {why}")]
    Failed { operation: String, why: String },
}

impl RuntimeError {
    pub fn failed(operation: impl Into<String>, why: impl ToString) -> Self {
        Self::Failed { operation: operation.into(), why: why.to_string() }
    }

    /// What to do about it, where that is always the same.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Missing { what: "network", name } => Some(format!("make it with `docker network create {name}`")),
            Self::Missing { what: "image", name } => {
                Some(format!("build it again, or get it with `docker pull {name}`"))
            }
            Self::Unavailable { .. } => Some("`refit doctor` checks what a deployment needs".to_owned()),
            _ => None,
        }
    }
}

pub type Result<T> = std::result::Result<T, RuntimeError>;

/// What an engine says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RuntimeInfo {
    pub kind: String,
    pub version: String,
    pub detail: String,
}

/// What to build: an app's image, or the image of a test target.
#[derive(Debug)]
pub struct BuildRequest<'a> {
    pub environment: &'a Environment,
    pub deployment: DeploymentId,
    pub commit: &'a CommitId,
    pub mirror: &'a Mirror,
    /// Overrides `build.target`: a test suite's target.
    pub target: Option<&'a str>,
}

/// A built artefact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artefact {
    /// `sha256:…` of the image, or the release directory's name.
    pub id: String,
    /// `guestbook:0123456789` (app and short commit), or the directory's path.
    pub name: String,
    /// An artefact of the same tree and arguments was there already.
    pub reused: bool,
}

/// A command to run once beside the app: a migration, a test suite.
#[derive(Debug)]
pub struct OneOff<'a> {
    pub environment: &'a Environment,
    pub deployment: DeploymentId,
    /// Part of the container's name and its role label: `test-unit`, `migrate`.
    pub role: &'a str,
    /// An image id or name, or a release directory.
    pub artefact: &'a str,
    /// Run by `sh -c`.
    pub run: &'a str,
    pub env: &'a BTreeMap<String, String>,
    pub secrets: &'a BTreeMap<String, Secret>,
    pub networks: &'a [String],
    /// With the app's volumes (`start.volumes`): migrations yes, tests no.
    pub with_volumes: bool,
    /// The commit's tree is copied to `/src`, which becomes the working directory: tests in a given image.
    pub tree: Option<(&'a Mirror, &'a CommitId)>,
    /// A file to bring back, relative to the working directory.
    pub collect: Option<&'a str>,
}

/// How a one-off ended. Its output went to the job's log, both streams, line by line.
#[derive(Debug, Clone, Default)]
pub struct OneOffResult {
    pub code: i64,
    /// The last lines of standard output, unmasked, for values such as a schema version.
    pub stdout_tail: Vec<String>,
    /// The file of `collect`, at most 32 MiB; `None` where it is not there.
    pub collected: Option<Vec<u8>>,
}

/// What to bring up: everything an instance depends on, settled.
#[derive(Debug, Clone)]
pub struct CandidateSpec<'a> {
    pub environment: &'a Environment,
    pub deployment: DeploymentId,
    pub commit: &'a CommitId,
    /// The artefact's id.
    pub artefact: &'a str,
    pub env: &'a BTreeMap<String, String>,
    pub secrets: &'a BTreeMap<String, Secret>,
}

/// A container or supervised process that may or may not run. Recorded in the journal and in the release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// The runtime's own id: a container id, or the release directory's name.
    pub id: String,
    /// `refit-<app>-<environment>-<deployment>`.
    pub name: String,
    pub deployment: DeploymentId,
}

/// The name of a deployment's instance.
pub fn instance_name(key: &EnvironmentKey, deployment: DeploymentId) -> String {
    format!("refit-{}-{}-{deployment}", key.app, key.environment)
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InstanceState {
    Missing,
    /// Made, never started.
    Created,
    Running {
        /// Where its port can be reached from this host, directly; `None` without a port.
        address: Option<SocketAddr>,
        /// How often it was restarted since it was started by us.
        restarts: u64,
        /// The image's own `HEALTHCHECK`: `Some(true)` healthy, `Some(false)` unhealthy, `None` without one or still starting.
        health: Option<bool>,
    },
    Restarting {
        restarts: u64,
        code: i64,
    },
    Exited {
        code: i64,
        /// Killed for exceeding its memory.
        out_of_memory: bool,
    },
}

/// What is not there of what settings name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lacking {
    /// Without them nothing starts.
    pub networks: Vec<String>,
    /// Volumes and directories of the host: they would be made anew, empty.
    pub places: Vec<String>,
}

/// How a command inside an instance ended.
#[derive(Debug, Clone)]
pub struct ExecOutcome {
    pub code: i64,
    /// Both streams, the last lines.
    pub output: Vec<String>,
}

/// Where an app runs.
#[async_trait]
pub trait Runtime: Send + Sync + std::fmt::Debug {
    /// Whether the engine answers, within a few seconds.
    async fn check(&self) -> Result<RuntimeInfo>;

    /// Builds, or finds what was built from the same tree and arguments.
    async fn build(&self, request: &BuildRequest<'_>, job: &Job) -> Result<Artefact>;

    /// Runs a command once and removes what it ran in, also when cancelled.
    async fn run_once(&self, one_off: &OneOff<'_>, job: &Job) -> Result<OneOffResult>;

    /// Whether an artefact is still here.
    async fn has_artefact(&self, id: &str) -> Result<bool>;

    /// Points `<app>:<label>` (`rollback`, `latest`, an environment) at an artefact; for people and other tools to find.
    async fn tag(&self, environment: &Environment, artefact: &str, tag: &str) -> Result<()>;

    /// The artefact `<app>:<tag>` points at, if any.
    async fn tagged(&self, environment: &Environment, tag: &str) -> Result<Option<String>>;

    /// Removes the name `<app>:<tag>`.
    async fn untag(&self, environment: &Environment, tag: &str) -> Result<()>;

    /// Makes the instance without starting it. What exists by that name and never ran is replaced if it differs.
    async fn prepare(&self, spec: &CandidateSpec<'_>) -> Result<Instance>;

    /// Starts it. With the `recreate` strategy it takes the public port here.
    async fn start(&self, instance: &Instance) -> Result<()>;

    /// Whether the engine starts it again when it ends by itself. An instance is made so; one that is being judged is not, because what comes up again
    /// and again holds the port that the old version needs. Said before the start, and again once it is live.
    async fn keep_up(&self, instance: &Instance, keep: bool) -> Result<()> {
        // A runtime whose restarts are no trouble.
        let _ = (instance, keep);
        Ok(())
    }

    /// Asks it to stop, kills it after `timeout`. It stays, stopped, and is not started again by the engine or a reboot.
    async fn stop(&self, instance: &Instance, timeout: Duration) -> Result<()>;

    async fn inspect(&self, instance: &Instance) -> Result<InstanceState>;

    /// Returns soon after an instance that runs has ended, whether it is started again or not, with its exit code if that is known. Of one that
    /// ended before the call nothing need be said: `inspect` knows.
    async fn wait_exit(&self, instance: &Instance) -> Result<Option<i64>>;

    /// The last lines it printed.
    async fn tail(&self, instance: &Instance, lines: usize) -> Result<Vec<String>>;

    /// Runs a command inside it.
    async fn exec(&self, instance: &Instance, command: &[String], timeout: Duration) -> Result<ExecOutcome>;

    /// Removes it for good (killing it if it runs), and for an instance that is gone does nothing.
    async fn remove(&self, instance: &Instance) -> Result<()>;

    /// Bytes that removing the instance gives back, as far as the engine says.
    async fn size(&self, instance: &Instance) -> Result<u64>;

    /// Removes an artefact that no instance uses. Bytes given back, as far as the engine says; never more than that.
    async fn remove_artefact(&self, id: &str) -> Result<u64>;

    /// Every instance of this environment that carries our labels.
    async fn instances(&self, key: &EnvironmentKey) -> Result<Vec<Instance>>;

    /// Everything that carries our labels for this environment: instances with what they do, helpers, artefacts. Lists only, so it
    /// costs the same few calls however much there is.
    async fn sight(&self, key: &EnvironmentKey) -> Result<Sight>;

    /// Removes helpers (test and migrate one-offs) that a deployment left behind: after a crash.
    async fn sweep(&self, key: &EnvironmentKey, deployment: DeploymentId) -> Result<Vec<String>>;

    /// The artefact that a deployment built, for one whose record was lost.
    async fn built_by(&self, key: &EnvironmentKey, deployment: DeploymentId) -> Result<Option<String>> {
        // A runtime that sweeps it, or leaves nothing.
        let _ = (key, deployment);
        Ok(None)
    }

    /// Removes what builds of this environment left and nothing needs: images of tests, of steps. Not while a test of the
    /// environment runs; what another build may need stays. Artefacts that are no longer found by name, which a release may
    /// still need, are returned.
    async fn clear_leftovers(&self, key: &EnvironmentKey) -> Result<Vec<String>> {
        // A runtime whose builds leave nothing.
        let _ = key;
        Ok(Vec::new())
    }

    /// Everything the runtime knows of an instance, to be kept for a person; `None` where there is no such instance. It may hold
    /// secrets.
    async fn definition(&self, instance: &Instance) -> Result<Option<serde_json::Value>>;

    /// What an instance with these settings needs beside its artefact and does not find.
    async fn lacking(&self, start: &Start) -> Result<Lacking> {
        // A runtime whose instances use nothing else.
        let _ = start;
        Ok(Lacking::default())
    }

    /// Whether something that the configuration `requires` by name runs.
    async fn is_running(&self, name: &str) -> Result<bool>;
}

/// Commands in containers that Refit did not make: `pg_dump` in a database's container. Implemented by `docker::Engine`.
#[async_trait]
pub trait ContainerExec: Send + Sync + std::fmt::Debug {
    /// Runs `command` in a running container and streams its standard output into `sink`, holding no more than a chunk.
    /// Standard error goes to the job's log and, its last lines, into the outcome's `output`. A cancelled job ends the command.
    async fn exec_into(
        &self,
        container: &str,
        command: &[String],
        env: &[(&str, &Secret)],
        sink: &mut (dyn AsyncWrite + Send + Unpin),
        job: &Job,
    ) -> Result<ExecOutcome>;

    /// The same for a command that reads: `source` is streamed into its standard input while its output is taken, and its end closes the
    /// input. A command may end without reading everything. If the source fails, the command is ended. Whoever streams must not rely
    /// on that: to the command, the end of this process looks like the end of its input.
    async fn exec_through(
        &self,
        container: &str,
        command: &[String],
        env: &[(&str, &Secret)],
        source: &mut (dyn AsyncRead + Send + Unpin),
        sink: &mut (dyn AsyncWrite + Send + Unpin),
        job: &Job,
    ) -> Result<ExecOutcome>;

    /// Where a running container can be reached from this host, whatever it publishes. [`RuntimeError::Missing`]: there is none of that name.
    async fn address_of(&self, container: &str) -> Result<IpAddr> {
        // Containers that are out of reach.
        Err(RuntimeError::Missing { what: "container", name: container.to_owned() })
    }
}
