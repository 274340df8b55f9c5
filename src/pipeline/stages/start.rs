//! start: the candidate takes the place of the live instance, with the `recreate` strategy: prepare, stop the old one, start
//! the new one, judge it. The old instance is kept, stopped; undo starts it again.
//!
//! The trait gives the pieces (`prepare`, `start`, `stop`, `inspect`, `remove`); a strategy is their order. Blue-green will be another
//! order of the same pieces with a switch in between.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::{
    Done, Progress, StageFailure, Step,
    exchange::{self, Exchange},
    smoke,
};
use crate::{
    config::{Environment, RuntimeKind},
    model::{CommitId, DeploymentId},
    pipeline::{
        health, kept,
        state::{self, Before, Held},
    },
    registry::Release,
    runtime::{CandidateSpec, Instance, InstanceState, Job, instance_name},
};

/// Going back does not wait longer than this for the state to be kept.
const KEEP_LIMIT: Duration = Duration::from_secs(5);

#[derive(Debug, Serialize, Deserialize)]
pub struct Input {
    pub commit: CommitId,
    pub artefact: String,
    /// The candidate's name, known before it exists.
    pub candidate: String,
    pub previous: Option<Previous>,
    /// The candidate is an earlier release's instance, which comes back: a rollback. It is stopped by undo, and not removed.
    #[serde(default)]
    pub release: Option<DeploymentId>,
    /// That instance, as it was known when it was live.
    #[serde(default)]
    pub standing: Option<Instance>,
    /// Data that goes with it.
    #[serde(default)]
    pub data: Option<Exchange>,
}

/// The way back.
#[derive(Debug, Serialize, Deserialize)]
pub struct Previous {
    pub deployment: DeploymentId,
    pub commit: CommitId,
    pub artefact: String,
    pub instance: Instance,
    /// Where it runs: the configuration may say otherwise by now.
    pub runtime: RuntimeKind,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Output {
    pub instance: Instance,
    /// From the start of the candidate until it counted as healthy.
    pub healthy_after_ms: u64,
    /// From the stop of the old instance until the new one gave its first good answer; zero without an old one.
    pub gap_ms: u64,
}

pub fn input(step: &Step, progress: &Progress) -> Result<Input, StageFailure> {
    Ok(Input {
        commit: progress.commit()?,
        artefact: progress.artefact()?.id,
        candidate: instance_name(
            &step.environment.key,
            progress.target.as_ref().map_or(step.deployment, |t| t.deployment),
        ),
        release: progress.target.as_ref().map(|target| target.deployment),
        standing: progress.target.as_ref().map(|target| target.instance.clone()),
        data: exchange(progress)?,
        previous: progress.previous.as_ref().map(Previous::of),
    })
}

impl Previous {
    pub fn of(release: &Release) -> Self {
        Self {
            deployment: release.deployment,
            commit: release.commit.clone(),
            artefact: release.artefact.clone(),
            instance: release.instance.clone(),
            runtime: release.runtime,
        }
    }
}

/// Both sets have to be known before anything is stopped.
fn exchange(progress: &Progress) -> Result<Option<Exchange>, StageFailure> {
    let parts = progress.parts.clone();
    match (progress.restore.clone(), progress.fresh.clone()) {
        (None, _) => Ok(None),
        (Some(back), forward) if forward.is_some() || progress.without_backup => {
            Ok(Some(Exchange { back, forward, parts, check: progress.only_data }))
        }
        (Some(_), _) => Err(StageFailure::failed("the data as it is now was not backed up")),
    }
}

pub async fn run(step: &Step, input: Input) -> Result<Done, StageFailure> {
    let environment = &step.environment;
    let runtime = step.world.runtime(environment);
    let candidate = candidate(step, &input).await?;
    if step.job.cancel.is_cancelled() {
        return Err(StageFailure::cancelled());
    }
    // Before anything stops: users are not to wait for it.
    runtime.keep_up(&candidate, false).await?;
    let gap = Instant::now();
    if let Some(previous) = &input.previous {
        step.job.log.line(format!("stopping deployment {}", previous.deployment));
        step.world.runtimes.of(previous.runtime).stop(&previous.instance, environment.start.stop_timeout).await?;
    }
    if let Some(data) = &input.data {
        exchange::back(step, data).await?;
    }
    step.job.log.line(format!("starting {}", candidate.name));
    let started = Instant::now();
    runtime.start(&candidate).await?;
    let healthy = judge(step, environment, &candidate, started).await?;
    let gap_ms = if input.previous.is_some() { ms(healthy.first_answer.saturating_duration_since(gap)) } else { 0 };
    let healthy_after_ms = ms(started.elapsed());
    step.job.log.line(format!("healthy after {healthy_after_ms} ms"));
    let warning = newer_schema(step, &input).await;
    Ok(Done { warning, ..Done::new(&Output { instance: candidate, healthy_after_ms, gap_ms })? })
}

/// What the safety checks said of the schema, of a version that came back without its data.
async fn newer_schema(step: &Step, input: &Input) -> Option<String> {
    if input.release.is_none() || input.data.is_some() {
        return None;
    }
    let order = step.world.registry.rollback_order(step.deployment).await.ok().flatten()?;
    let checks = order.checks.as_array()?;
    let bad = checks.iter().find(|check| check["name"] == "schema" && check["severity"] != "ok")?;
    Some(format!("this version runs with another schema than its own: {}", bad["message"].as_str()?))
}

/// What is to be started. An earlier release's instance that stands is taken as it is: what it is made of may be gone by now, and it
/// starts without that.
async fn candidate(step: &Step, input: &Input) -> Result<Instance, StageFailure> {
    let runtime = step.world.runtime(&step.environment);
    if let Some(standing) = &input.standing {
        match runtime.inspect(standing).await? {
            InstanceState::Missing => {
                step.job.log.line(format!("{} is gone: making it again from its artefact", standing.name));
            }
            InstanceState::Created => {}
            _ => return Ok(standing.clone()),
        }
    }
    let deployment = input.release.unwrap_or(step.deployment);
    Ok(runtime.prepare(&spec(&step.environment, deployment, &input.commit, &input.artefact)).await?)
}

/// Removes the candidate and brings the old instance back, healthy.
pub async fn undo(step: &Step, input: Input) -> Result<Option<String>, StageFailure> {
    let runtime = step.world.runtime(&step.environment);
    let deployment = input.release.unwrap_or(step.deployment);
    let candidate = Instance { id: input.candidate.clone(), name: input.candidate.clone(), deployment };
    // Once it does not run its port is free, and users wait: what else there is of it goes when the old version is on its way up.
    let patience = if input.release.is_some() { step.environment.start.stop_timeout } else { Duration::ZERO };
    runtime.stop(&candidate, patience).await?;
    let clear_away = async || {
        if input.release.is_none() {
            keep_state(step, &candidate, input.previous.as_ref()).await;
            runtime.remove(&candidate).await?;
        }
        Ok::<_, StageFailure>(())
    };
    let Some(previous) = &input.previous else {
        clear_away().await?;
        return Ok(Some("the new version was removed; nothing was live before, so nothing is live now".to_owned()));
    };
    if let Some(data) = input.data.as_ref().filter(|_| exchange::began(step)) {
        // An undo that was cut off may have started it already.
        let runtime = step.world.runtimes.of(previous.runtime);
        runtime.stop(&previous.instance, step.environment.start.stop_timeout).await?;
        exchange::forward(step, data).await?;
    }
    bring_back(step, previous, clear_away).await.map(Some)
}

/// Starts what was live again, with its own settings; `meanwhile` is done as soon as it is on its way up. The line is for the report.
pub(super) async fn bring_back(
    step: &Step,
    previous: &Previous,
    meanwhile: impl AsyncFnOnce() -> Result<(), StageFailure>,
) -> Result<String, StageFailure> {
    let (mut environment, unreadable) = kept::environment(&step.world, &step.environment, previous.deployment);
    if let Some(why) = unreadable {
        step.job.log.line(format!("using today's settings: {why}"));
    }
    environment.start.runtime = previous.runtime;
    let started = Instant::now();
    let again = start_again(step, &environment, previous).await;
    meanwhile().await?;
    let instance = again?;
    // Going back is not for the one who cancelled to cancel.
    let job = Job { log: step.job.log.clone(), cancel: CancellationToken::new() };
    let environment = Arc::new(environment);
    let step = Step { job, environment: Arc::clone(&environment), ..step.clone() };
    let not_good = |what: &str, failure: StageFailure| StageFailure {
        message: format!("deployment {} was started again and {what}: {}", previous.deployment, failure.message),
        ..failure
    };
    judge(&step, &environment, &instance, started).await.map_err(|f| not_good("is not healthy", f))?;
    let healthy = ms(started.elapsed());
    // A way back that nobody looked at is no way back.
    smoke::once(&step, &instance).await.map_err(|f| not_good("does not pass its own checks", f))?;
    Ok(format!(
        "deployment {} ({}) is live again, healthy after {healthy} ms",
        previous.deployment,
        previous.commit.short(),
    ))
}

/// What is known of a version that is about to be taken away again. Never a reason not to go back.
async fn keep_state(step: &Step, candidate: &Instance, previous: Option<&Previous>) {
    let Some(previous) = previous else { return };
    let held = |instance: &Instance, runtime| Held { instance: instance.clone(), runtime };
    let before = Before {
        key: &step.environment.key,
        by: step.deployment,
        from: step.deployment,
        release: previous.deployment,
        instances: &[held(candidate, step.environment.start.runtime), held(&previous.instance, previous.runtime)],
        backup: None,
    };
    match tokio::time::timeout(KEEP_LIMIT, state::keep(&step.world, before, &step.job.log)).await {
        Ok(Ok(place)) => step.job.log.line(format!("the state before going back is kept in {place}")),
        Ok(Err(why)) => step.job.log.line(format!("warning: {why}")),
        Err(_) => step.job.log.line("warning: the state before going back was not kept: it took too long"),
    }
}

/// Starts the old instance, made again from its artefact where it is gone.
async fn start_again(step: &Step, environment: &Environment, previous: &Previous) -> Result<Instance, StageFailure> {
    let runtime = step.world.runtime(environment);
    let instance = match runtime.inspect(&previous.instance).await? {
        InstanceState::Missing => {
            step.job.log.line(format!("{} is gone: making it again from its artefact", previous.instance.name));
            runtime.prepare(&spec(environment, previous.deployment, &previous.commit, &previous.artefact)).await?
        }
        _ => previous.instance.clone(),
    };
    runtime.start(&instance).await?;
    // A rollback to what is live had taken it away from this very instance.
    if let Err(error) = runtime.keep_up(&instance, true).await {
        step.job.log.line(format!("warning: {} is not started again by itself when it ends: {error}", instance.name));
    }
    Ok(instance)
}

async fn judge(
    step: &Step,
    environment: &Environment,
    instance: &Instance,
    started: Instant,
) -> Result<health::Healthy, StageFailure> {
    let runtime = step.world.runtime(environment);
    let judged = health::judge(runtime.as_ref(), step.world.http(), environment, instance, started, &step.job).await;
    if judged.is_err() {
        super::quote(step, runtime.as_ref(), instance).await;
    }
    judged
}

fn spec<'a>(
    environment: &'a Environment,
    deployment: DeploymentId,
    commit: &'a CommitId,
    artefact: &'a str,
) -> CandidateSpec<'a> {
    CandidateSpec {
        environment,
        deployment,
        commit,
        artefact,
        env: &environment.start.env,
        secrets: &environment.start.secrets,
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
