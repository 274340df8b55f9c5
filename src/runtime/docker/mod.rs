//! The Docker runtime: images and containers through the Engine's API.
//!
//! An artefact is an image, known by its id; an instance is a container. Everything is found again by its computed name and its labels, so
//! each call asks the engine instead of remembering. Where two calls could race, the engine decides: a container is created
//! first and looked at only if its name is taken.
//!
//! | file | what |
//! |---|---|
//! | `transport` | the connection to the engine's socket |
//! | `errors` | what the engine's errors mean; the limits on waiting |
//! | `build`, `dockerfile`, `progress` | a commit's tree → image, with the classic builder or BuildKit |
//! | `trail`, `leftovers` | what a build makes besides its image, who waits for it, and what of it is kept |
//! | `images` | names of images, removal |
//! | `spec`, `instances` | what a container is made of; its life |
//! | `once` | one-off containers: tests, migrations |
//! | `exec` | commands in containers that Refit did not make |
//! | `scratch` | throw-away containers: a server that a dump is tried in |
//! | `sight` | everything of an environment, to find what nobody recorded |
//! | `base` | an image from this host's files; an app cleared away whole |
//!
//! Waiting is bounded everywhere: bollard limits the time to the head of each answer ([`Engine::connect`]), `errors::answer`
//! the whole of each call, and streams (a build, a one-off) end with their job's cancellation.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bollard::{Docker, models::ContainerSummary};
use tokio_util::sync::CancellationToken;

pub use self::base::Cleared;
use self::{
    errors::{answer, failure, unavailable},
    trail::Builds,
    transport::Address,
};
use super::{
    Artefact, BuildRequest, CandidateSpec, ExecOutcome, Instance, InstanceState, Job, Lacking, OneOff, OneOffResult,
    Result, Runtime, RuntimeError, RuntimeInfo, Sight,
};
use crate::{
    config::{Environment, Start},
    model::{DeploymentId, EnvironmentKey},
};

mod base;
mod build;
mod dockerfile;
mod errors;
mod exec;
mod images;
mod instances;
mod leftovers;
mod lines;
mod once;
mod progress;
mod scratch;
mod sight;
mod spec;
#[cfg(test)]
mod tests;
mod trail;
mod transport;

/// Where the engine listens unless `DOCKER_HOST` says otherwise.
const DEFAULT_SOCKET: &str = "/var/run/docker.sock";

/// To the head of an answer, in seconds. Streams may take longer to their end.
const HEAD_LIMIT_S: u64 = 120;

/// An engine that does not answer [`Runtime::check`] by then counts as away.
const CHECK_LIMIT: Duration = Duration::from_secs(5);

/// A connection to a Docker Engine. Cheap to clone. Connecting does not talk to the engine; each call says if it is away.
#[derive(Debug, Clone)]
pub struct Engine {
    pub(super) docker: Docker,
    address: Address,
}

impl Engine {
    /// `host` is `DOCKER_HOST` as the binary found it (`unix://…`, `tcp://…`); the local socket where unset.
    pub fn connect(host: Option<&str>) -> Result<Self> {
        let address = match host.map(|host| host.split_once("://").unwrap_or(("unix", host))) {
            None => Address::Unix(DEFAULT_SOCKET.into()),
            Some(("unix", path)) if path.starts_with('/') => Address::Unix(path.into()),
            Some(("unix", other)) => {
                let why = format!("DOCKER_HOST is `{other}`, which is no address; use unix:///path or tcp://host:port");
                return Err(unavailable(why));
            }
            Some(("tcp" | "http", host)) => Address::Tcp(host.trim_end_matches('/').to_owned()),
            Some((scheme, _)) => {
                let why = format!("DOCKER_HOST with `{scheme}://` is not supported; use unix:// or tcp://");
                return Err(unavailable(why));
            }
        };
        Ok(Self { docker: client(&address, &CancellationToken::new())?, address })
    }

    /// Says where Docker was looked for, if that is not where it usually is.
    fn placed(&self, error: RuntimeError) -> RuntimeError {
        match error {
            RuntimeError::Unavailable { what, why } if self.address != Address::Unix(DEFAULT_SOCKET.into()) => {
                RuntimeError::Unavailable { what: format!("{what} at {} (DOCKER_HOST)", self.address), why }
            }
            error => error,
        }
    }

    /// A client whose connections break when `scope` is cancelled.
    fn within(&self, scope: &CancellationToken) -> Result<Docker> {
        client(&self.address, scope)
    }
}

fn client(address: &Address, scope: &CancellationToken) -> Result<Docker> {
    transport::client(address, HEAD_LIMIT_S, scope).map_err(|e| failure("connect to Docker", e))
}

/// Containers of a Docker Engine.
#[derive(Debug, Clone)]
pub struct DockerRuntime {
    engine: Engine,
    docker: Docker,
    builds: Arc<Builds>,
}

impl DockerRuntime {
    pub fn new(engine: Engine) -> Self {
        Self { docker: engine.docker.clone(), engine, builds: Arc::default() }
    }
}

#[async_trait]
impl Runtime for DockerRuntime {
    async fn check(&self) -> Result<RuntimeInfo> {
        let asked = async { tokio::try_join!(self.docker.version(), self.docker.clone().negotiate_version()) };
        let late = |_| unavailable(format!("it did not answer within {} s", CHECK_LIMIT.as_secs()));
        let answer = tokio::time::timeout(CHECK_LIMIT, asked).await.map_err(late);
        let answer = answer.and_then(|a| a.map_err(|e| failure("ask Docker for its version", e)));
        let (version, _) = answer.map_err(|e| self.engine.placed(e))?;
        let text = Option::unwrap_or_default;
        Ok(RuntimeInfo {
            kind: "docker".to_owned(),
            version: text(version.version),
            detail: format!("API {}, {}/{}", text(version.api_version), text(version.os), text(version.arch)),
        })
    }

    async fn build(&self, request: &BuildRequest<'_>, job: &Job) -> Result<Artefact> {
        build::build(&self.engine, &self.builds, request, job).await
    }

    async fn run_once(&self, one_off: &OneOff<'_>, job: &Job) -> Result<OneOffResult> {
        once::run(&self.docker, one_off, job).await
    }

    async fn has_artefact(&self, id: &str) -> Result<bool> {
        Ok(images::id(&self.docker, id).await?.is_some())
    }

    async fn tag(&self, environment: &Environment, artefact: &str, tag: &str) -> Result<()> {
        images::tag(&self.docker, artefact, environment.key.app.as_str(), tag).await
    }

    async fn tagged(&self, environment: &Environment, tag: &str) -> Result<Option<String>> {
        images::id(&self.docker, &format!("{}:{tag}", environment.key.app)).await
    }

    async fn untag(&self, environment: &Environment, tag: &str) -> Result<()> {
        images::untag(&self.docker, &environment.key.app, tag).await
    }

    async fn prepare(&self, spec: &CandidateSpec<'_>) -> Result<Instance> {
        instances::prepare(&self.docker, spec).await
    }

    async fn start(&self, instance: &Instance) -> Result<()> {
        let started = answer(self.docker.start_container(&instance.name, None)).await;
        started.map_err(|e| failure(format!("start container {}", instance.name), e))
    }

    async fn keep_up(&self, instance: &Instance, keep: bool) -> Result<()> {
        instances::keep_up(&self.docker, instance, keep).await
    }

    async fn stop(&self, instance: &Instance, timeout: Duration) -> Result<()> {
        instances::stop(&self.docker, instance, timeout).await
    }

    async fn inspect(&self, instance: &Instance) -> Result<InstanceState> {
        instances::inspect(&self.docker, instance).await
    }

    async fn wait_exit(&self, instance: &Instance) -> Result<Option<i64>> {
        instances::wait_exit(&self.docker, instance).await
    }

    async fn tail(&self, instance: &Instance, lines: usize) -> Result<Vec<String>> {
        instances::tail(&self.docker, instance, lines).await
    }

    async fn exec(&self, instance: &Instance, command: &[String], timeout: Duration) -> Result<ExecOutcome> {
        instances::exec(&self.docker, instance, command, timeout).await
    }

    async fn remove(&self, instance: &Instance) -> Result<()> {
        instances::remove(&self.docker, &instance.name).await
    }

    async fn size(&self, instance: &Instance) -> Result<u64> {
        instances::size(&self.docker, instance).await
    }

    async fn remove_artefact(&self, id: &str) -> Result<u64> {
        images::remove(&self.docker, id).await
    }

    async fn instances(&self, key: &EnvironmentKey) -> Result<Vec<Instance>> {
        instances::all(&self.docker, key).await
    }

    async fn sight(&self, key: &EnvironmentKey) -> Result<Sight> {
        sight::of(&self.docker, key).await
    }

    async fn sweep(&self, key: &EnvironmentKey, deployment: DeploymentId) -> Result<Vec<String>> {
        once::sweep(&self.docker, key, deployment).await
    }

    async fn built_by(&self, key: &EnvironmentKey, deployment: DeploymentId) -> Result<Option<String>> {
        leftovers::built_by(&self.docker, key, deployment).await
    }

    async fn clear_leftovers(&self, key: &EnvironmentKey) -> Result<Vec<String>> {
        leftovers::clear(&self.docker, &self.builds, key).await
    }

    async fn definition(&self, instance: &Instance) -> Result<Option<serde_json::Value>> {
        instances::definition(&self.docker, instance).await
    }

    async fn lacking(&self, start: &Start) -> Result<Lacking> {
        instances::lacking(&self.docker, start).await
    }

    async fn is_running(&self, name: &str) -> Result<bool> {
        instances::is_running(&self.docker, name).await
    }
}

/// The name of a listed container, or its id where it has none (it is just being removed).
fn container_name(summary: &ContainerSummary) -> String {
    let name = summary.names.iter().flatten().next().map(|name| name.trim_start_matches('/').to_owned());
    name.or_else(|| summary.id.clone()).unwrap_or_default()
}
