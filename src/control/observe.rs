//! Reading the state of the world without the lock: `refit status`, `/_deploy/status`, `/_deploy/health`.

use std::{sync::Arc, time::Duration};

use futures_util::future::{join_all, try_join_all};
use serde_json::Value;

use super::{
    AwaitingApproval, BackupStatus, ControlError, DatabaseStatus, EnvironmentStatus, Health, LastDeployment,
    LiveStatus, NewestBackup, Options, Result, ServiceStatus, VerifiedBackup, WarmStatus, served,
};
use crate::{
    config::{BackupSource, Config, Environment, RuntimeKind},
    data::{self, Depth, SetState, SetSummary},
    migrate,
    model::{DeploymentView, EnvironmentKey, Stage, Status},
    pipeline::{
        Runtimes, mirror,
        orphans::{self, Look},
        warm,
    },
    registry::{Filter, Registry, Release},
    rollback,
    runtime::{InstanceState, RuntimeError},
};

/// A runtime that takes longer is shown as unknown: a status must not hang with the thing it reports on.
const PATIENCE: Duration = Duration::from_secs(5);

/// Deployments looked through for the last schema version.
const LOOK_BACK: u32 = 20;

/// Reads without the lock: what reading commands use.
#[derive(Debug, Clone)]
pub struct Observer {
    pub(super) config: Arc<Config>,
    pub(super) registry: Option<Registry>,
    pub(super) runtimes: Runtimes,
}

impl Observer {
    /// `registry`: `None` while nothing was ever deployed.
    pub fn new(config: Arc<Config>, registry: Option<Registry>, options: &Options) -> Result<Self> {
        let runtimes = super::runtimes(&config, options)?;
        Ok(Self::of(config, registry, runtimes))
    }

    pub(super) fn of(config: Arc<Config>, registry: Option<Registry>, runtimes: Runtimes) -> Self {
        Self { config, registry, runtimes }
    }

    pub async fn health(&self) -> Health {
        let store = match &self.registry {
            Some(registry) => registry.ping().await.map_or_else(|e| e.to_string(), |()| "ok".to_owned()),
            None => "ok".to_owned(),
        };
        let needed = self.environments().any(|e| e.start.runtime == RuntimeKind::Docker);
        let docker = match needed {
            false => "unused".to_owned(),
            true => match tokio::time::timeout(PATIENCE, self.runtimes.docker.check()).await {
                Ok(Ok(_)) => "ok".to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "does not answer".to_owned(),
            },
        };
        let good = store == "ok" && (docker == "ok" || docker == "unused");
        Health {
            status: if good { "ok" } else { "unavailable" }.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            store,
            docker,
        }
    }

    /// Every configured environment, in the order of the configuration.
    pub async fn status(&self) -> Result<Vec<EnvironmentStatus>> {
        // At once: a runtime that hangs costs one patience, and not one for each environment.
        try_join_all(self.environments().map(|environment| self.environment(environment))).await
    }

    /// Releases that are still there though the configuration has no such environment any more: it was removed or renamed while live.
    pub async fn strays(&self) -> Result<Vec<Release>> {
        let Some(registry) = &self.registry else { return Ok(Vec::new()) };
        let mut strays = Vec::new();
        for release in registry.all_live().await? {
            if self.environments().any(|environment| environment.key == release.key) {
                continue;
            }
            let state = self.runtimes.of(release.runtime).inspect(&release.instance);
            // What cannot be asked now may be there.
            if !matches!(tokio::time::timeout(PATIENCE, state).await, Ok(Ok(InstanceState::Missing))) {
                strays.push(release);
            }
        }
        Ok(strays)
    }

    /// What the runtimes show and the registry does not explain, in every configured environment; without acting on it.
    pub async fn leftovers(&self) -> Result<Vec<(EnvironmentKey, Look)>> {
        let look = async |environment: &Arc<Environment>| {
            let look = orphans::look(self.registry.as_ref(), &self.runtimes, environment, true).await?;
            Ok((environment.key.clone(), look))
        };
        try_join_all(self.environments().map(look)).await
    }

    fn environments(&self) -> impl Iterator<Item = &Arc<Environment>> {
        self.config.apps.iter().flat_map(|app| &app.environments)
    }

    async fn environment(&self, environment: &Environment) -> Result<EnvironmentStatus> {
        let mut recent = Vec::new();
        let mut live = None;
        let mut stuck = None;
        if let Some(registry) = &self.registry {
            let filter = Filter {
                app: Some(environment.key.app.to_string()),
                environment: Some(environment.key.environment.to_string()),
                limit: Some(LOOK_BACK),
                ..Filter::default()
            };
            recent = registry.deployments(&filter).await?;
            live = registry.live(&environment.key).await?;
            stuck = registry.unresolved(&environment.key).await?;
        }
        let service = self.service(live.as_ref()).await;
        let gate = match &live {
            Some(live) => served::look(&self.config.server.state_dir, environment, live, PATIENCE).await,
            None => None,
        };
        let warm = self.warm(environment).await;
        let (migrations, schema_ahead) = self.schema(environment, live.as_ref(), &recent).await;
        let live = match (live, &self.registry) {
            (Some(release), Some(registry)) => {
                let view = registry.deployment(release.deployment).await?;
                Some(LiveStatus {
                    deployment: release.deployment,
                    commit: release.commit,
                    subject: view.and_then(|v| v.subject),
                    version: release.artefact_name,
                    image: release.artefact,
                    deployed_at: release.live_since,
                })
            }
            _ => None,
        };
        let newest = |wanted: Status| recent.iter().find(|d| d.status == wanted).map(|d| d.id);
        let last = recent.iter().find(|d| d.status.is_end() && d.status != Status::Superseded);
        Ok(EnvironmentStatus {
            key: environment.key.clone(),
            branch: environment.branch.to_string(),
            port: environment.port,
            runtime: environment.start.runtime.as_str().to_owned(),
            live,
            service,
            gate,
            warm,
            databases: self.databases(environment).await,
            backups: self.backup_status(environment).await,
            migrations,
            schema_ahead,
            running: newest(Status::Running),
            queued: newest(Status::Queued),
            awaiting_approval: recent.iter().find(|d| d.status == Status::AwaitingApproval).and_then(|d| {
                let expires_at = d.approval.as_ref()?.expires_at;
                Some(AwaitingApproval { id: d.id, expires_at })
            }),
            stuck,
            last: last.map(|d| LastDeployment {
                id: d.id,
                status: d.status,
                error: d.error.clone(),
                finished_at: d.finished_at,
            }),
        })
    }

    /// The schema's version, and what of it the live version does not know.
    async fn schema(
        &self,
        environment: &Environment,
        live: Option<&Release>,
        recent: &[DeploymentView],
    ) -> (Option<String>, Vec<String>) {
        let recorded = recent.iter().find_map(schema_version);
        let Some(live) = live else { return (recorded, Vec::new()) };
        let Some(files) = migrate::configured(environment) else {
            // Further back nothing is known of the live version's own schema.
            let known = recent.iter().any(|d| d.id == live.deployment);
            let ahead = rollback::schema_ahead(recent, live.deployment).filter(|_| known);
            return (recorded, ahead.into_iter().collect());
        };
        let at = (mirror(&self.config, environment), live.commit.clone());
        match migrate::survey(environment, files, at, self.runtimes.containers.as_ref(), PATIENCE).await {
            Ok(survey) => (Some(survey.state.version()), survey.unknown()),
            Err(_) => (recorded, Vec::new()),
        }
    }

    /// What cannot be asked in time is not said to run.
    async fn warm(&self, environment: &Environment) -> Option<WarmStatus> {
        let warm = self.registry.as_ref()?.warm(&environment.key).await.ok()??;
        let look = warm::runs_in_time(&self.runtimes, &warm);
        let runs = tokio::time::timeout(PATIENCE, look).await.unwrap_or(false);
        runs.then_some(WarmStatus { deployment: warm.deployment, until: warm.until })
    }

    async fn service(&self, live: Option<&Release>) -> ServiceStatus {
        let plain =
            |state: &str, detail: Option<String>, restarts| ServiceStatus { state: state.to_owned(), detail, restarts };
        let Some(release) = live else { return plain("none", Some("nothing was deployed yet".to_owned()), 0) };
        let runtime = self.runtimes.of(release.runtime);
        let state = tokio::time::timeout(PATIENCE, runtime.inspect(&release.instance)).await;
        let state = state.unwrap_or_else(|_| {
            Err(RuntimeError::failed("asking for its state", format!("{} does not answer", release.runtime.as_str())))
        });
        match state {
            Ok(InstanceState::Running { address, restarts, .. }) => {
                plain("running", address.map(|a| a.to_string()), restarts)
            }
            Ok(InstanceState::Restarting { restarts, code }) => {
                plain("restarting", Some(format!("last exit code {code}")), restarts)
            }
            Ok(InstanceState::Exited { code, out_of_memory }) => {
                let why = if out_of_memory { "out of memory".to_owned() } else { format!("exit code {code}") };
                plain("exited", Some(why), 0)
            }
            Ok(InstanceState::Created) => plain("created", None, 0),
            Ok(InstanceState::Missing) => plain("missing", Some(format!("{} is gone", release.instance.name)), 0),
            Err(error) => plain("unknown", Some(error.to_string()), 0),
        }
    }

    /// A directory that cannot be read shows as no backup: `refit backup list` says why.
    async fn backup_status(&self, environment: &Environment) -> Option<BackupStatus> {
        if environment.backups.is_empty() {
            return None;
        }
        let (dir, key) = (self.config.server.backups_dir.clone(), environment.key.clone());
        let listed = tokio::task::spawn_blocking(move || data::list(&dir, &key)).await;
        let sets = listed.ok().and_then(std::result::Result::ok).unwrap_or_default();
        let newest = sets.iter().find(|set| set.state == SetState::Complete);
        let newest = newest.map(|set| NewestBackup {
            set: set.name.clone(),
            at: set.created_at,
            bytes: set.bytes,
            missing: set.missing.clone(),
        });
        Some(BackupStatus { newest, verified: last_look(&sets) })
    }

    async fn databases(&self, environment: &Environment) -> Vec<DatabaseStatus> {
        let states = join_all(environment.backups.iter().map(async |backup| {
            let state = match &backup.source {
                BackupSource::Postgres { container, .. } | BackupSource::Mysql { container, .. } => {
                    self.container_state(container).await
                }
                BackupSource::Command(command) => self.container_state(command.container.as_ref()?).await,
                BackupSource::Sqlite { path } | BackupSource::Files { path, .. } if path.exists() => "present",
                BackupSource::Sqlite { .. } | BackupSource::Files { .. } => "missing",
                // Nobody asks a server that is not ours how it is.
                BackupSource::PostgresUrl { .. } | BackupSource::MysqlUrl { .. } => "unknown",
                // Made with the app's container where it is not there.
                BackupSource::Volume { .. } => return None,
            };
            Some(DatabaseStatus { name: backup.name.to_string(), state: state.to_owned() })
        }));
        states.await.into_iter().flatten().collect()
    }

    async fn container_state(&self, container: &str) -> &'static str {
        match tokio::time::timeout(PATIENCE, self.runtimes.docker.is_running(container)).await {
            Ok(Ok(true)) => "running",
            Ok(Ok(false)) => "stopped",
            _ => "unknown",
        }
    }
}

/// What is wrong with the newest set that was looked at; else the last time that one was restored, or looked at less closely.
fn last_look(sets: &[SetSummary]) -> Option<VerifiedBackup> {
    let looks = || sets.iter().filter_map(|set| Some((set, set.verified.as_ref()?)));
    let bad = looks().next().filter(|(_, look)| !look.ok);
    let restored = looks().filter(|(_, look)| look.depth == Depth::Restore).max_by_key(|(_, look)| look.at);
    let (set, look) = bad.or(restored).or_else(|| looks().max_by_key(|(_, look)| look.at))?;
    Some(VerifiedBackup { set: set.name.clone(), look: look.clone() })
}

fn schema_version(deployment: &DeploymentView) -> Option<String> {
    let stage = deployment.stages.iter().find(|s| s.name == Stage::Migrate)?;
    stage.output.as_ref()?.get("after").and_then(Value::as_str).map(str::to_owned)
}

impl From<RuntimeError> for ControlError {
    fn from(error: RuntimeError) -> Self {
        Self::Unavailable { message: error.to_string(), hint: error.hint() }
    }
}
