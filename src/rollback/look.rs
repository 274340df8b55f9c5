//! Finding out what the checks judge. Reads, asks and probes; changes nothing.

use std::{sync::Arc, time::Duration};

use super::{
    PlanError,
    checks::{Data, Facts, FileSchema},
    schema::Past,
};
use crate::{
    config::{Environment, RuntimeKind},
    migrate,
    model::{DeploymentView, RollbackKind},
    pipeline::{World, health, kept},
    registry::{Filter, Release},
};

/// Deployments whose migrations and backups are looked at.
const LOOK_BACK: u32 = 300;

/// A live version that has not shown by then that it is healthy is not.
const PATIENCE: Duration = Duration::from_secs(10);

/// The environment's deployments, the newest first.
pub(super) async fn history(world: &World, environment: &Environment) -> Result<Vec<DeploymentView>, PlanError> {
    let filter = Filter {
        app: Some(environment.key.app.to_string()),
        environment: Some(environment.key.environment.to_string()),
        limit: Some(LOOK_BACK),
        ..Filter::default()
    };
    Ok(world.registry.deployments(&filter).await?)
}

pub(super) async fn facts<'a>(
    world: &Arc<World>,
    environment: &Environment,
    (live, target, kind): (&'a Release, &'a Release, RollbackKind),
    past: &'a [Past],
    data: Data,
) -> Result<Facts<'a>, PlanError> {
    let runtime = world.runtimes.of(target.runtime);
    let (then, unreadable) = kept::environment(world, environment, target.deployment);
    Ok(Facts {
        kind,
        live,
        target,
        live_trouble: trouble(world, environment, live).await,
        instance: runtime.inspect(&target.instance).await?,
        artefact: runtime.has_artefact(&target.artefact).await?,
        // A container holds what its image gave it; a process runs in its release's directory.
        instance_suffices: target.runtime == RuntimeKind::Docker,
        past,
        files: files(world, environment, target).await,
        unreadable,
        lacking: runtime.lacking(&then.start).await?,
        ports: (then.port, environment.port),
        away: away(world, environment).await,
        data,
    })
}

/// The database beside the target's own SQL files; `None` where no files migrate. What cannot be looked at is judged by what was recorded.
async fn files(world: &World, environment: &Environment, target: &Release) -> Option<FileSchema> {
    let files = migrate::configured(environment)?;
    let at = (world.mirror_of(environment), target.commit.clone());
    let survey = migrate::survey(environment, files, at, world.runtimes.containers.as_ref(), PATIENCE).await.ok()?;
    Some(FileSchema {
        at: survey.state.version(),
        unknown: survey.unknown(),
        down_to: survey.known_below(),
        lacking: survey.lacking(),
    })
}

/// Why the live version is not healthy, by its own probe and its own smoke checks.
async fn trouble(world: &Arc<World>, environment: &Environment, live: &Release) -> Option<String> {
    let (mut own, _) = kept::environment(world, environment, live.deployment);
    own.start.runtime = live.runtime;
    let look = health::now(world, Arc::new(own), &live.instance);
    match tokio::time::timeout(PATIENCE, look).await {
        Ok(Ok(())) => None,
        Ok(Err(failure)) => Some(failure.message),
        Err(_) => Some(format!("its checks did not pass within {PATIENCE:?}")),
    }
}

/// What `requires` names and does not run, as far as can be told.
async fn away(world: &World, environment: &Environment) -> Vec<String> {
    let mut away = Vec::new();
    for name in &environment.requires {
        if !crate::pipeline::preflight::is_running(world, environment, name).await.unwrap_or(false) {
            away.push(name.clone());
        }
    }
    away
}
