//! The process runtime: apps as supervised processes of this host. It needs no Docker, only `sh`.
//!
//! An artefact is a directory with a commit's tree and what the build command made of it (`release`). An instance is
//! a directory with a spec, and a supervisor process that keeps the app running (`supervisor`), started by the daemon and
//! independent of it from then on: the daemon may end, be killed or be replaced, and reads from the directory what goes on
//! (`instance`). Tests, builds and migrations are process groups that record themselves (`oneoff`). Every process is known by pid and
//! start time, never by pid alone (`procfs`).
//!
//! An app is told by `PORT` and `HOST` where to listen, and is to stay in the foreground. It runs as the daemon's user, without
//! isolation: limits of memory and CPUs, networks and volumes are Docker's and not enforced here, which the build's log says.
//! After a reboot nothing runs until somebody calls `start`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;

use self::{
    instance::InstanceDir,
    place::{Place, disk_usage, make_dir},
    spec::Spec,
};
use super::{
    Artefact, BuildRequest, CandidateSpec, ExecOutcome, Instance, InstanceState, Job, OneOff, OneOffResult, Result,
    Runtime, RuntimeError, RuntimeInfo, SeenInstance, Sight, instance_name,
};
use crate::{
    config::Environment,
    exec::ExecError,
    model::{DeploymentId, EnvironmentKey},
};

mod instance;
mod oneoff;
mod output;
mod place;
mod procfs;
mod release;
mod spec;
pub mod supervisor;

/// The stages have their own timeouts and cancel the job; this is only what an unlimited program is given.
const NO_LIMIT: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Where instances behind the gate listen: below what Linux gives to outgoing connections (32768 and up).
const FIRST_OWN_PORT: u16 = 20_000;
const OWN_PORTS: u16 = 10_000;

/// Between two looks at an instance that is watched.
const WATCH_EVERY: Duration = Duration::from_millis(50);

/// Apps as processes, below one directory.
#[derive(Debug, Clone)]
pub struct ProcessRuntime {
    place: Place,
    program: PathBuf,
}

impl ProcessRuntime {
    /// `root` is made when it is needed (`process` in the state directory). `program` is the binary whose `supervise` command is
    /// [`supervisor::run`]. Both must be absolute: a supervisor runs in `/`.
    pub fn new(root: PathBuf, program: PathBuf) -> Self {
        Self { place: Place { root }, program }
    }

    fn instance(&self, instance: &Instance) -> Result<InstanceDir> {
        self.named(&instance.name)
    }

    fn named(&self, name: &str) -> Result<InstanceDir> {
        Ok(InstanceDir { name: name.to_owned(), path: self.place.instance(name)? })
    }

    /// Every instance with its spec; what is being made or deleted just now is left out.
    fn all(&self) -> Result<Vec<(InstanceDir, Spec)>> {
        let Ok(entries) = std::fs::read_dir(self.place.instances()) else { return Ok(Vec::new()) };
        let mut all = Vec::new();
        for entry in entries.flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let dir = InstanceDir { path: entry.path(), name };
            if let Some(spec) = dir.spec()? {
                all.push((dir, spec));
            }
        }
        Ok(all)
    }

    /// A port for an instance behind the gate: one that nothing listens on, and that no other instance will want when it comes back.
    /// Another program may still take it before the app does: then the app does not come up, and the deployment is undone.
    fn free_port(&self) -> Result<u16> {
        let wanted: BTreeSet<u16> = self.all()?.into_iter().filter_map(|(_, spec)| spec.port).collect();
        let mut seed = [0; 2];
        getrandom::fill(&mut seed).map_err(|error| RuntimeError::failed("finding a free port", error))?;
        let first = u16::from_le_bytes(seed) % OWN_PORTS;
        (0..OWN_PORTS)
            .map(|n| FIRST_OWN_PORT + (first + n) % OWN_PORTS)
            .find(|port| !wanted.contains(port) && TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
            .ok_or_else(|| RuntimeError::failed("finding a free port", "all of 20000 to 29999 are taken"))
    }
}

#[async_trait]
impl Runtime for ProcessRuntime {
    async fn check(&self) -> Result<RuntimeInfo> {
        let unavailable = |what: &str, why: String| RuntimeError::Unavailable { what: what.to_owned(), why };
        make_dir(&self.place.root).map_err(|error| unavailable("the process runtime", error.to_string()))?;
        for needed in [Path::new("/bin/sh"), Path::new("/proc/self/stat"), &self.program] {
            std::fs::metadata(needed)
                .map_err(|error| unavailable("the process runtime", format!("{}: {error}", needed.display())))?;
        }
        Ok(RuntimeInfo {
            kind: "process".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            detail: format!("releases and instances in {}", self.place.root.display()),
        })
    }

    async fn build(&self, request: &BuildRequest<'_>, job: &Job) -> Result<Artefact> {
        release::build(&self.place, request, job).await
    }

    async fn run_once(&self, one_off: &OneOff<'_>, job: &Job) -> Result<OneOffResult> {
        oneoff::run(&self.place, one_off, job).await
    }

    async fn has_artefact(&self, id: &str) -> Result<bool> {
        Ok(self.place.existing_release(id).is_ok())
    }

    async fn tag(&self, environment: &Environment, artefact: &str, tag: &str) -> Result<()> {
        release::tag(&self.place, environment, artefact, tag)
    }

    async fn tagged(&self, environment: &Environment, tag: &str) -> Result<Option<String>> {
        release::tagged(&self.place, environment, tag)
    }

    async fn untag(&self, environment: &Environment, tag: &str) -> Result<()> {
        release::untag(&self.place, environment, tag).await
    }

    async fn prepare(&self, spec: &CandidateSpec<'_>) -> Result<Instance> {
        let name = instance_name(&spec.environment.key, spec.deployment);
        let dir = self.named(&name)?;
        let own_port = match spec.environment.start.gate {
            // What was made once keeps its port.
            Some(_) => Some(dir.spec()?.and_then(|made| made.port).map_or_else(|| self.free_port(), Ok)?),
            None => None,
        };
        let settled = settle(spec, self.place.existing_release(spec.artefact)?, own_port)?;
        dir.prepare(&settled)?;
        Ok(Instance { id: settled.artefact, name, deployment: spec.deployment })
    }

    async fn start(&self, instance: &Instance) -> Result<()> {
        self.instance(instance)?.start(&self.program).await
    }

    async fn stop(&self, instance: &Instance, timeout: Duration) -> Result<()> {
        self.instance(instance)?.stop(timeout).await
    }

    async fn inspect(&self, instance: &Instance) -> Result<InstanceState> {
        self.instance(instance)?.inspect().await
    }

    async fn wait_exit(&self, instance: &Instance) -> Result<Option<i64>> {
        let dir = self.instance(instance)?;
        loop {
            match dir.inspect().await? {
                InstanceState::Running { restarts: 0, .. } => tokio::time::sleep(WATCH_EVERY).await,
                InstanceState::Restarting { code, .. } | InstanceState::Exited { code, .. } => return Ok(Some(code)),
                _ => return Ok(None),
            }
        }
    }

    async fn tail(&self, instance: &Instance, lines: usize) -> Result<Vec<String>> {
        self.instance(instance)?.tail(lines)
    }

    async fn exec(&self, instance: &Instance, command: &[String], timeout: Duration) -> Result<ExecOutcome> {
        self.instance(instance)?.exec(command, timeout).await
    }

    async fn remove(&self, instance: &Instance) -> Result<()> {
        self.instance(instance)?.remove().await
    }

    async fn size(&self, instance: &Instance) -> Result<u64> {
        Ok(disk_usage(self.instance(instance)?.path).await)
    }

    async fn remove_artefact(&self, id: &str) -> Result<u64> {
        if let Some((dir, _)) = self.all()?.into_iter().find(|(_, spec)| spec.artefact == id) {
            let why = format!("instance `{}` uses it; remove that first", dir.name);
            return Err(RuntimeError::failed(format!("removing release `{id}`"), why));
        }
        release::remove(&self.place, id).await
    }

    async fn instances(&self, key: &EnvironmentKey) -> Result<Vec<Instance>> {
        let ours = self.all()?.into_iter().filter(|(_, spec)| spec.key == *key);
        let mut instances: Vec<_> = ours
            .map(|(dir, spec)| Instance { id: spec.artefact, name: dir.name, deployment: spec.deployment })
            .collect();
        instances.sort_by_key(|instance| instance.deployment);
        Ok(instances)
    }

    async fn sight(&self, key: &EnvironmentKey) -> Result<Sight> {
        let mut instances = Vec::new();
        for (dir, spec) in self.all()?.into_iter().filter(|(_, spec)| spec.key == *key) {
            let runs = matches!(dir.inspect().await?, InstanceState::Running { .. } | InstanceState::Restarting { .. });
            let instance = Instance { id: spec.artefact, name: dir.name, deployment: spec.deployment };
            instances.push(SeenInstance { instance, commit: None, runs });
        }
        let helpers = oneoff::seen(&self.place, key);
        Ok(Sight { instances, helpers, artefacts: release::seen(&self.place, key) })
    }

    async fn sweep(&self, key: &EnvironmentKey, deployment: DeploymentId) -> Result<Vec<String>> {
        oneoff::sweep(&self.place, key, deployment).await
    }

    async fn definition(&self, instance: &Instance) -> Result<Option<serde_json::Value>> {
        let spec = self.instance(instance)?.spec()?;
        spec.map(|spec| serde_json::to_value(spec).map_err(|e| RuntimeError::failed("describe an instance", e)))
            .transpose()
    }

    /// A name is an instance's here; nothing else that runs on a host has one that could be relied on.
    async fn is_running(&self, name: &str) -> Result<bool> {
        match self.named(name) {
            Ok(dir) => dir.is_running().await,
            Err(_) => Ok(false),
        }
    }
}

/// An instance's spec: what the app is told, and nothing that could change later.
fn settle(candidate: &CandidateSpec<'_>, dir: PathBuf, own_port: Option<u16>) -> Result<Spec> {
    let environment = candidate.environment;
    let start = &environment.start;
    let command = check_settings(environment)?.to_vec();
    // Behind the gate each version has a port of its own, which nobody but the gate needs to reach.
    let (bind, port) = match own_port {
        None => (environment.bind, start.container_port.or(environment.port)),
        Some(port) => (Ipv4Addr::LOCALHOST.into(), Some(port)),
    };
    let mut env = BTreeMap::from([("HOST".to_owned(), bind.to_string())]);
    env.extend(port.map(|port| ("PORT".to_owned(), port.to_string())));
    env.extend(candidate.env.clone());
    env.extend(candidate.secrets.iter().map(|(name, secret)| (name.clone(), secret.expose().to_owned())));
    Ok(Spec {
        version: Spec::VERSION,
        key: environment.key.clone(),
        deployment: candidate.deployment,
        artefact: candidate.artefact.to_owned(),
        dir,
        command,
        env,
        bind,
        port,
        stop_timeout_ms: u64::try_from(start.stop_timeout.as_millis()).unwrap_or(u64::MAX),
        log_max_size: start.log.max_size,
        log_max_file: start.log.max_file,
    })
}

/// The command, and an error for what would be unsafe to leave out.
fn check_settings(environment: &Environment) -> Result<&[String]> {
    let failed = |why: &str| Err(RuntimeError::failed(format!("settings of {}", environment.key), why));
    if environment.start.user.is_some() {
        return failed("the process runtime runs apps as the daemon's user; remove `start.user` or use Docker");
    }
    match environment.start.command.as_deref() {
        Some(command) if !command.is_empty() => Ok(command),
        _ => failed("the process runtime needs `start.command`: what starts the app"),
    }
}

/// A line for each setting that has no effect here.
fn not_enforced(environment: &Environment) -> Vec<String> {
    let start = &environment.start;
    let set = [
        ("memory", start.memory.is_some()),
        ("cpus", start.cpus.is_some()),
        ("networks", !start.networks.is_empty()),
        ("volumes", !start.volumes.is_empty()),
    ];
    let names = set.into_iter().filter(|(_, set)| *set);
    names.map(|(name, _)| format!("note: the process runtime does not enforce start.{name}")).collect()
}

fn exec_failed(operation: &str) -> impl FnOnce(ExecError) -> RuntimeError + '_ {
    move |error| match error {
        ExecError::Cancelled { .. } => RuntimeError::Cancelled,
        error => RuntimeError::failed(operation, error),
    }
}
