//! start: the candidate takes the place of the live instance, with the `recreate` strategy: prepare, stop the old one, start
//! the new one, judge it. The old instance is kept, stopped; undo starts it again.
//!
//! The trait gives the pieces (`prepare`, `start`, `stop`, `inspect`, `remove`); a strategy is their order. Blue-green will be another
//! order of the same pieces with a switch in between.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Done, Progress, StageFailure, Step, tag};
use crate::{
    config::Environment,
    model::{CommitId, DeploymentId},
    pipeline::health,
    runtime::{CandidateSpec, Instance, InstanceState, Job, instance_name},
};

#[derive(Debug, Serialize, Deserialize)]
pub struct Input {
    pub commit: CommitId,
    pub artefact: String,
    /// The candidate's name, known before it exists.
    pub candidate: String,
    pub previous: Option<Previous>,
}

/// The way back.
#[derive(Debug, Serialize, Deserialize)]
pub struct Previous {
    pub deployment: DeploymentId,
    pub commit: CommitId,
    pub artefact: String,
    pub instance: Instance,
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
        candidate: instance_name(&step.environment.key, step.deployment),
        previous: progress.previous.as_ref().map(|release| Previous {
            deployment: release.deployment,
            commit: release.commit.clone(),
            artefact: release.artefact.clone(),
            instance: release.instance.clone(),
        }),
    })
}

pub async fn run(step: &Step, input: Input) -> Result<Done, StageFailure> {
    let environment = &step.environment;
    let runtime = step.world.runtime(environment);
    let candidate = runtime.prepare(&spec(environment, step.deployment, &input.commit, &input.artefact)).await?;
    if step.job.cancel.is_cancelled() {
        return Err(StageFailure::cancelled());
    }
    let gap = Instant::now();
    if let Some(previous) = &input.previous {
        step.job.log.line(format!("stopping deployment {}", previous.deployment));
        runtime.stop(&previous.instance, environment.start.stop_timeout).await?;
    }
    step.job.log.line(format!("starting {}", candidate.name));
    let started = Instant::now();
    runtime.start(&candidate).await?;
    let healthy = judge(step, environment, &candidate, started).await?;
    let gap_ms = if input.previous.is_some() { ms(healthy.first_answer.saturating_duration_since(gap)) } else { 0 };
    let healthy_after_ms = ms(started.elapsed());
    step.job.log.line(format!("healthy after {healthy_after_ms} ms"));
    Done::new(&Output { instance: candidate, healthy_after_ms, gap_ms })
}

/// Removes the candidate and brings the old instance back, healthy.
pub async fn undo(step: &Step, input: Input) -> Result<Option<String>, StageFailure> {
    let runtime = step.world.runtime(&step.environment);
    let candidate =
        Instance { id: input.candidate.clone(), name: input.candidate.clone(), deployment: step.deployment };
    runtime.remove(&candidate).await?;
    let Some(previous) = input.previous else {
        return Ok(Some("the new version was removed; nothing was live before, so nothing is live now".to_owned()));
    };
    let environment = tag::kept_environment(step, previous.deployment);
    let instance = match runtime.inspect(&previous.instance).await? {
        InstanceState::Missing => {
            step.job.log.line(format!("{} is gone: making it again from its artefact", previous.instance.name));
            runtime.prepare(&spec(&environment, previous.deployment, &previous.commit, &previous.artefact)).await?
        }
        _ => previous.instance,
    };
    let started = Instant::now();
    runtime.start(&instance).await?;
    // Going back is not for the one who cancelled to cancel.
    let step = Step {
        job: Job { log: step.job.log.clone(), cancel: tokio_util::sync::CancellationToken::new() },
        ..step.clone()
    };
    judge(&step, &environment, &instance, started).await.map_err(|failure| {
        StageFailure::failed(format!(
            "deployment {} was started again and is not healthy: {}",
            previous.deployment, failure.message
        ))
    })?;
    Ok(Some(format!(
        "deployment {} ({}) is live again, healthy after {} ms",
        previous.deployment,
        previous.commit.short(),
        ms(started.elapsed())
    )))
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
        let tail = runtime.tail(instance, crate::log::TAIL_LINES / 2).await.unwrap_or_default();
        if !tail.is_empty() {
            step.job.log.line(format!("last lines of {}:\n{}", instance.name, tail.join("\n")));
        }
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
