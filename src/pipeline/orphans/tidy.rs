//! Looking and acting.
//!
//! Everything is bounded in time, so that a daemon starts whatever the engine does. What could not be asked or done in time is done
//! later by the environment's worker.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use super::{Action, Plan, plan};
use crate::{
    config::{Environment, RuntimeKind},
    data,
    log::DeploymentLog,
    model::{DeploymentId, EnvironmentKey, Stage},
    pipeline::{Runtimes, World, kept},
    registry::{Registry, RegistryError, Standing},
    runtime::{Job, RuntimeError, Sight},
};

/// A runtime that does not show itself within this time is away.
const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// For what is left of data, of all environments together: a server that does not answer must not keep the daemon waiting.
const SWEEP_LIMIT: Duration = Duration::from_secs(15);

/// For all the actions of one environment, beside the time that the app has to stop.
const ACT_LIMIT: Duration = Duration::from_secs(60);

/// The registry and the runtime are two places: a deployment may begin or end between two looks.
const LOOKS: usize = 3;

/// What was found.
#[derive(Debug, Clone)]
pub struct Look {
    pub plan: Plan,
    /// Why a runtime could not be asked.
    pub away: Option<String>,
}

/// Looks at one environment and changes nothing. `registry`: `None` where there is no store, and so nothing is known.
pub async fn look(
    registry: Option<&Registry>,
    runtimes: &Runtimes,
    environment: &Environment,
    may_start: bool,
) -> Result<Look, RegistryError> {
    let key = &environment.key;
    let standing = || async {
        match registry {
            Some(registry) => registry.standing(key).await,
            None => Ok(Standing::default()),
        }
    };
    let mut before = standing().await?;
    for left in (0..LOOKS).rev() {
        let (sights, away) = sights(runtimes, kinds(registry, environment).await?, key).await;
        let after = standing().await?;
        if before == after || left == 0 {
            return Ok(Look { plan: plan(&after, &sights, may_start), away });
        }
        before = after;
    }
    Ok(Look { plan: Plan::default(), away: None })
}

/// The runtimes on which something of the environment may be: it may have moved from one to the other.
async fn kinds(registry: Option<&Registry>, environment: &Environment) -> Result<Vec<RuntimeKind>, RegistryError> {
    let mut kinds = vec![environment.start.runtime];
    let Some(registry) = registry else { return Ok(kinds) };
    let kept = registry.kept_releases(&environment.key).await?;
    for release in kept.into_iter().chain(registry.live(&environment.key).await?) {
        if !kinds.contains(&release.runtime) {
            kinds.push(release.runtime);
        }
    }
    Ok(kinds)
}

async fn sights(
    runtimes: &Runtimes,
    kinds: Vec<RuntimeKind>,
    key: &EnvironmentKey,
) -> (Vec<(RuntimeKind, Sight)>, Option<String>) {
    let (mut sights, mut away) = (Vec::new(), None);
    for kind in kinds {
        let runtime = runtimes.of(kind);
        let seen = async {
            // Says quickly and in good words if it is away. Processes cannot be, and their check makes directories.
            if kind == RuntimeKind::Docker {
                runtime.check().await?;
            }
            runtime.sight(key).await
        };
        match tokio::time::timeout(LOOK_LIMIT, seen).await {
            Ok(Ok(sight)) => sights.push((kind, sight)),
            Ok(Err(error)) => away = Some(error.to_string()),
            Err(_) => away = Some(format!("{} does not answer", kind.as_str())),
        }
    }
    (sights, away)
}

/// Looks at one environment and puts it in order; what goes wrong is logged. Whether all could be looked at and done:
/// else it is to be tried again. Called only by who owns the environment.
pub async fn tidy(world: &World, environment: &Environment, may_start: bool) -> bool {
    let key = &environment.key;
    let found = match look(Some(&world.registry), &world.runtimes, environment, may_start).await {
        Ok(found) => found,
        Err(error) => {
            tracing::error!(environment = %key, %error, "leftovers cannot be looked for");
            return false;
        }
    };
    if let Some(why) = &found.away {
        tracing::debug!(environment = %key, why, "leftovers cannot be looked for yet");
    }
    for finding in &found.plan.findings {
        tracing::warn!(environment = %key, fix = finding.fix(), "{finding}");
    }
    let done = carry_out(world, environment, &found.plan.actions).await;
    done && found.away.is_none()
}

/// Whether nothing has to be tried again. An action that failed for good is not.
async fn carry_out(world: &World, environment: &Environment, actions: &[Action]) -> bool {
    let key = &environment.key;
    let limit = ACT_LIMIT.saturating_add(environment.start.stop_timeout);
    let began = Instant::now();
    for action in actions {
        let left = limit.saturating_sub(began.elapsed());
        match tokio::time::timeout(left, act(world, environment, action)).await {
            Ok(Ok(())) => tracing::warn!(environment = %key, "{action}: {}", action.done()),
            Ok(Err(error)) => {
                tracing::error!(environment = %key, %error, "{action}, and could not be {}", action.done());
                if matches!(error, RuntimeError::Unavailable { .. }) {
                    return false;
                }
            }
            Err(_) => {
                tracing::error!(environment = %key, "{action}, and was not {} in time: it is tried again", action.done());
                return false;
            }
        }
    }
    true
}

async fn act(world: &World, environment: &Environment, action: &Action) -> Result<(), RuntimeError> {
    let of = |kind: &RuntimeKind| world.runtimes.of(*kind);
    match action {
        Action::Remove { runtime, instance, runs, .. } => {
            if *runs {
                // It may be in the middle of something that it should not be cut off from.
                of(runtime).stop(instance, environment.start.stop_timeout).await?;
            }
            of(runtime).remove(instance).await?;
            forget(world, environment, instance.deployment)
        }
        Action::Stop { runtime, instance } => of(runtime).stop(instance, environment.start.stop_timeout).await,
        Action::Sweep { runtime, deployment, .. } => of(runtime).sweep(&environment.key, *deployment).await.map(drop),
        Action::Start { runtime, instance } => of(runtime).start(instance).await,
        Action::RemoveArtefact { runtime, id, deployment, .. } => {
            // Asked again: a deployment of another environment of the app may have found it meanwhile.
            let in_use = world.registry.artefact_in_use(id, None).await;
            if in_use.map_err(|error| RuntimeError::failed("ask the registry for releases", error))? {
                return Ok(());
            }
            of(runtime).remove_artefact(id).await?;
            forget(world, environment, *deployment)
        }
    }
}

/// What a deployment that is no release kept of its settings, secrets among them, goes with it.
fn forget(world: &World, environment: &Environment, deployment: DeploymentId) -> Result<(), RuntimeError> {
    kept::remove(world, &environment.key, deployment)
        .map_err(|why| RuntimeError::failed(format!("forget the settings of deployment {deployment}"), why))
}

/// Puts every environment in order; those that have to be looked at again.
pub async fn settle_all(world: &World, may_start: bool) -> BTreeSet<EnvironmentKey> {
    let settled = world.config.environments().map(async |environment| {
        let done = tidy(world, environment, may_start).await;
        if !done {
            tracing::warn!(environment = %environment.key, "what nobody recorded is looked for again in a while");
        }
        (!done).then(|| environment.key.clone())
    });
    join_all(settled).await.into_iter().flatten().collect()
}

/// Ends or removes what a process that was killed left of backups and restores, as far as it can be done in time; the next restore
/// does the rest. Before anything else acts. Of an environment that is stuck, where data may be half restored, nothing is touched.
pub async fn sweep_data(world: &World) {
    let cancel = CancellationToken::new();
    let swept = world.config.environments().map(async |environment| {
        let key = &environment.key;
        let log = DeploymentLog::discard(world.config.redactor.clone()).stage(Stage::Backup);
        let job = Job { log, cancel: cancel.clone() };
        match world.registry.standing(key).await {
            Ok(standing) if standing.stuck.is_none() => {}
            _ => return,
        }
        let backups = &world.config.server.backups_dir;
        for what in data::sweep_leftovers(environment, backups, world.runtimes.reach(), &job).await {
            tracing::warn!(environment = %key, "of a process that was killed: {what}");
        }
    });
    if tokio::time::timeout(SWEEP_LIMIT, join_all(swept)).await.is_err() {
        cancel.cancel();
        tracing::warn!("what killed processes left of data is not looked for any longer: the next restore does");
    }
}
