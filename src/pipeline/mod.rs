//! The pipeline: a deployment from its first event to its last.
//!
//! - [`journal`] says what may happen next. [`run`] drives a deployment forward, and backwards when something fails; [`recover`] decides
//!   what becomes of one whose process died, and then drives it with the same code; [`orphans`] finds what no journal tells of.
//! - [`stages`] does the work: one file a stage, each with the input and output that it records.
//! - [`kept`] is what a release keeps of its settings, for the way back; [`state`] is what a rollback keeps of what it leaves; [`needed`]
//!   tells which backup sets something still goes back to.
//! - [`traffic`] says who gets the requests, where the gate owns the public port; [`warm`] keeps a version running that was replaced.
//! - [`health`] and [`checks`] judge a candidate; [`preflight`] looks before the first step; [`outcome`] turns an end into an
//!   exit code and words.
//!
//! [`rehearsed`] keeps what trying a backup out has shown, and has people told. [`holds`] keeps deployments and backups by hand apart. Everything a stage may touch is in [`World`]. Nothing here knows of HTTP, Telegram or the terminal.

use std::{path::PathBuf, sync::Arc};

use tokio::sync::watch;

use crate::{
    config::{Config, Environment, RuntimeKind},
    data::Reach,
    fault::Faults,
    gate::keeper::Keeper,
    git::Mirror,
    registry::Registry,
    runtime::{ContainerExec, Runtime, Scratch},
};

pub mod checks;
pub mod health;
pub mod holds;
pub mod journal;
pub mod kept;
pub mod needed;
pub mod orphans;
pub mod outcome;
pub mod preflight;
pub mod recover;
pub mod rehearsed;
pub mod run;
pub mod stages;
pub mod state;
pub mod traffic;
pub mod warm;

/// The runtimes of this machine.
#[derive(Debug, Clone)]
pub struct Runtimes {
    pub docker: Arc<dyn Runtime>,
    pub process: Arc<dyn Runtime>,
    /// For databases in containers, whichever runtime the app uses.
    pub containers: Arc<dyn ContainerExec>,
    /// For trying backups out.
    pub scratch: Arc<dyn Scratch>,
}

impl Runtimes {
    pub fn of(&self, kind: RuntimeKind) -> &Arc<dyn Runtime> {
        match kind {
            RuntimeKind::Docker => &self.docker,
            RuntimeKind::Process => &self.process,
        }
    }

    /// What backups may reach.
    pub fn reach(&self) -> Reach<'_> {
        Reach { containers: Some(self.containers.as_ref()), scratch: Some(self.scratch.as_ref()) }
    }
}

/// The mirror of an environment's app.
pub fn mirror(config: &Config, environment: &Environment) -> Mirror {
    let dir = config.server.state_dir.join("git").join(format!("{}.git", environment.key.app));
    Mirror::new(dir, environment.repository.clone())
}

/// What the pipeline works with. One for the whole daemon.
#[derive(Debug)]
pub struct World {
    pub config: Arc<Config>,
    pub registry: Registry,
    pub runtimes: Runtimes,
    /// Goes up with every event that was recorded: followers wait on it.
    pub ticks: watch::Sender<u64>,
    /// Faults that a test ordered.
    pub faults: Faults,
    /// Whose turn it is in each environment.
    pub holds: holds::Holds,
    /// Who owns the public ports of the apps that are behind it.
    pub gate: Keeper,
    /// Whether this process stays and looks after what runs.
    pub is_daemon: bool,
    /// Whose turn it is to stop what was kept warm.
    pub cooling: warm::Cooling,
    http: reqwest::Client,
}

impl World {
    pub fn new(config: Arc<Config>, registry: Registry, runtimes: Runtimes, faults: Faults) -> Self {
        Self {
            gate: Keeper::new(&config.server.state_dir, None),
            config,
            registry,
            runtimes,
            ticks: watch::Sender::new(0),
            faults,
            holds: holds::Holds::default(),
            is_daemon: false,
            cooling: warm::Cooling::default(),
            http: checks::client(),
        }
    }

    /// With this binary, which the gate is started from.
    #[must_use]
    pub fn with_program(mut self, program: PathBuf) -> Self {
        self.gate = Keeper::new(&self.config.server.state_dir, Some(program));
        self
    }

    /// As the daemon, or as one command.
    #[must_use]
    pub fn as_daemon(self, is_daemon: bool) -> Self {
        Self { is_daemon, ..self }
    }

    pub fn runtime(&self, environment: &Environment) -> &Arc<dyn Runtime> {
        self.runtimes.of(environment.start.runtime)
    }

    /// The client of probes and checks: follows no redirects, uses no proxy.
    pub fn http(&self) -> &reqwest::Client {
        &self.http
    }

    /// An app's mirror, which its environments share: fetches take turns by themselves, within their limits.
    pub fn mirror_of(&self, environment: &Environment) -> Mirror {
        mirror(&self.config, environment)
    }

    /// Tells followers that something was recorded.
    pub fn tick(&self) {
        self.ticks.send_modify(|n| *n += 1);
    }
}
