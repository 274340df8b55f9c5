//! Versions that were replaced and run on for a while (`start.keep_warm`), so that going back to one is a switch.
//!
//! At the end of smoke the old version is let finish what it had begun, as always. Then it is not stopped, but recorded with its time
//! ([`Warm`]), and that record is all there is: the daemon stops it when its time is over ([`cool`]), and one that comes after
//! a crash knows of it as well. It has no traffic, and the engine does not start it again when it ends.
//!
//! There is never more than one beside what is live and what is being tried: whoever brings up another version, changes the schema or exchanges the
//! data stops it first ([`stop`]), unless it is the very version that is to come back. A process that is not the daemon keeps none, since nobody would
//! stop it in time.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use tokio::sync::OwnedMutexGuard;

use super::{
    Runtimes, World,
    stages::{StageFailure, Step, start::Previous},
};
use crate::{
    config::Environment,
    model::{DeploymentId, EnvironmentKey},
    registry::Warm,
    runtime::{Instance, InstanceState, Runtime, RuntimeError},
};

/// Who stops a warm version, one at a time: a rollback to it must find it running or stopped, and not on its way down.
#[derive(Debug, Default)]
pub struct Cooling {
    turns: Mutex<HashMap<EnvironmentKey, Arc<tokio::sync::Mutex<()>>>>,
}

impl Cooling {
    async fn turn(&self, key: &EnvironmentKey) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(turns.entry(key.clone()).or_default())
        };
        turn.lock_owned().await
    }
}

/// Lets the version that was replaced go on running, if the settings say so and it can be. `None`: it is to be stopped now, and the log says why where
/// that is not as configured.
pub(super) async fn keep(step: &Step, previous: &Previous) -> Option<Warm> {
    let keep = step.environment.start.gate.map(|gate| gate.keep_warm).filter(|keep| !keep.is_zero())?;
    if let Err(why) = try_to_keep(step, previous).await {
        step.job.log.line(format!("deployment {} is not kept warm: {why}", previous.deployment));
        return None;
    }
    let until = Timestamp::now().checked_add(keep).ok()?;
    let words = until.strftime("%Y-%m-%d %H:%M:%S UTC");
    step.job.log.line(format!("deployment {} is kept warm until {words}", previous.deployment));
    let Previous { deployment, instance, runtime, .. } = previous.clone();
    Some(Warm { deployment, instance, runtime, until })
}

async fn try_to_keep(step: &Step, previous: &Previous) -> Result<(), String> {
    if !step.world.is_daemon {
        return Err("no daemon runs that would stop it when its time is over".to_owned());
    }
    let runtime = step.world.runtimes.of(previous.runtime);
    if !runs(runtime.as_ref(), &previous.instance).await.map_err(|error| error.to_string())? {
        return Err("it does not run any more".to_owned());
    }
    runtime.keep_up(&previous.instance, false).await.map_err(|error| error.to_string())
}

/// Stops what an environment keeps warm, its time over or not. `except`: the version that is to come back, which goes on. One that is just being
/// stopped is stopped when this returns.
pub(super) async fn stop(step: &Step, except: Option<DeploymentId>) -> Result<(), StageFailure> {
    let (world, key) = (&step.world, &step.environment.key);
    let _turn = world.cooling.turn(key).await;
    let warm = world.registry.warm(key).await.map_err(|error| StageFailure::failed(error.to_string()))?;
    let Some(warm) = warm.filter(|warm| Some(warm.deployment) != except) else { return Ok(()) };
    let runtime = world.runtimes.of(warm.runtime);
    if runs(runtime.as_ref(), &warm.instance).await? {
        step.job.log.line(format!("stopping deployment {}, which was kept warm", warm.deployment));
        runtime.stop(&warm.instance, step.environment.start.stop_timeout).await?;
    }
    Ok(())
}

/// What a look at an environment has found.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing is kept warm, or nothing that has not been stopped already.
    Nothing,
    /// Its time is not over.
    Until(Timestamp),
    /// Its time is over, and it is let be for now.
    Spared,
    /// It does not run any more.
    Stopped(Warm),
}

/// Stops what an environment keeps warm if its time is over. `done`: what an earlier call has stopped. The error is for people.
///
/// It is let be while a rollback goes to it, and as long as the live version does not run or a person is needed: nothing that runs is taken down then
/// (see [`orphans`](super::orphans)).
pub async fn cool(world: &World, environment: &Environment, done: Option<&Warm>) -> Result<Found, String> {
    let key = &environment.key;
    let warm = world.registry.warm(key).await.map_err(|error| error.to_string())?;
    let Some(warm) = warm.filter(|warm| done != Some(warm)) else { return Ok(Found::Nothing) };
    if warm.is_in_time() {
        return Ok(Found::Until(warm.until));
    }
    let _turn = world.cooling.turn(key).await;
    // Asked only now: a rollback that is not seen here waits for this turn before it starts anything.
    if spared(world, key, &warm).await? {
        return Ok(Found::Spared);
    }
    let runtime = world.runtimes.of(warm.runtime);
    let trouble = |error: RuntimeError| format!("deployment {} cannot be stopped: {error}", warm.deployment);
    if runs(runtime.as_ref(), &warm.instance).await.map_err(trouble)? {
        runtime.stop(&warm.instance, environment.start.stop_timeout).await.map_err(trouble)?;
        tracing::info!(environment = %key, deployment = warm.deployment.0, "was kept warm, and its time is over: stopped");
    }
    Ok(Found::Stopped(warm))
}

async fn spared(world: &World, key: &EnvironmentKey, warm: &Warm) -> Result<bool, String> {
    let standing = world.registry.standing(key).await.map_err(|error| error.to_string())?;
    let targets = world.registry.rollback_targets(key).await.map_err(|error| error.to_string())?;
    if standing.stuck.is_some() || targets.contains(&warm.deployment) {
        return Ok(true);
    }
    let Some(live) = standing.live.filter(|live| live.deployment != warm.deployment) else { return Ok(true) };
    let up = runs(world.runtimes.of(live.runtime).as_ref(), &live.instance).await;
    Ok(!up.map_err(|error| error.to_string())?)
}

/// Whether it is what it is recorded as: it runs, and its time is not over. One that cannot be asked does not.
pub async fn runs_in_time(runtimes: &Runtimes, warm: &Warm) -> bool {
    warm.is_in_time() && runs(runtimes.of(warm.runtime).as_ref(), &warm.instance).await.unwrap_or(false)
}

async fn runs(runtime: &dyn Runtime, instance: &Instance) -> Result<bool, RuntimeError> {
    let state = runtime.inspect(instance).await?;
    Ok(matches!(state, InstanceState::Running { .. } | InstanceState::Restarting { .. }))
}
