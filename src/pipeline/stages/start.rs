//! start: the candidate takes the place of the live instance, and gets the traffic.
//!
//! The trait gives the pieces (`prepare`, `start`, `stop`, `inspect`, `remove`); a strategy is their order. `recreate`: stop the old one, start the new
//! one, judge it. `blue-green`: start the new one, judge it, try its smoke checks on it directly, move the traffic; the old one runs on until
//! smoke is done. The old instance is kept, stopped in the end; undo gives the traffic back to it, starting it again where it has to.
//!
//! Either version may be behind the gate or own its port, as its own settings say, so there are four ways from one to the other; what each needs of
//! the gate is in [`traffic`].

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
        traffic::{self, Meanwhile},
        warm,
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
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Previous {
    pub deployment: DeploymentId,
    pub commit: CommitId,
    pub artefact: String,
    pub instance: Instance,
    /// Where it runs: the configuration may say otherwise by now.
    pub runtime: RuntimeKind,
    /// Whether it is behind the gate.
    #[serde(default)]
    pub gated: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Output {
    pub instance: Instance,
    /// From the start of the candidate until it counted as healthy.
    pub healthy_after_ms: u64,
    /// From the stop of the old instance until the new one gave its first good answer; zero without an old one.
    pub gap_ms: u64,
    /// The old version, where it runs beside the new one until that is trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beside: Option<Previous>,
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
        previous: progress.previous.as_ref().map(|release| Previous::of(step, release)),
    })
}

impl Previous {
    pub fn of(step: &Step, release: &Release) -> Self {
        Self {
            deployment: release.deployment,
            commit: release.commit.clone(),
            artefact: release.artefact.clone(),
            instance: release.instance.clone(),
            runtime: release.runtime,
            gated: kept::environment(&step.world, &step.environment, release.deployment).0.start.gate.is_some(),
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
    step.job.log.line(format!("strategy: {}", step.environment.start.strategy_words()));
    let candidate = candidate(step, &input).await?;
    if step.job.cancel.is_cancelled() {
        return Err(StageFailure::cancelled());
    }
    // Before anything stops: users are not to wait for it.
    step.world.runtime(&step.environment).keep_up(&candidate, false).await?;
    let warning = newer_schema(step, &input).await;
    let output = match side_by_side(step, &input, &candidate) {
        true => beside(step, input, candidate).await?,
        false => in_its_place(step, &input, candidate).await?,
    };
    step.job.log.line(format!("healthy after {} ms", output.healthy_after_ms));
    Ok(Done { warning, ..Done::new(&output)? })
}

/// What the safety checks said of the schema, of a version that came back without its data.
async fn newer_schema(step: &Step, input: &Input) -> Option<String> {
    if input.release.is_none() || input.data.is_some() {
        return None;
    }
    let order = step.world.registry.rollback_order(step.deployment).await.ok().flatten()?;
    let checks = order.checks.as_array()?;
    let bad = checks.iter().find(|check| check["name"] == "schema" && check["severity"] != "ok")?;
    // What follows is advice for who still has the choice.
    bad["message"].as_str()?.split(": ").next().map(str::to_owned)
}

/// Whether both versions run for a while. Not when the data is exchanged between them, and not when a version is to follow itself.
fn side_by_side(step: &Step, input: &Input, candidate: &Instance) -> bool {
    let itself = input.previous.as_ref().is_some_and(|previous| previous.deployment == candidate.deployment);
    step.environment.start.side_by_side() && input.data.is_none() && !itself
}

/// `recreate`: the old version stops, then the new one starts. Behind the gate requests wait meanwhile.
async fn in_its_place(step: &Step, input: &Input, candidate: Instance) -> Result<Output, StageFailure> {
    let (world, environment) = (&step.world, &step.environment);
    let runtime = world.runtime(environment);
    // Also where it is the very one that is to come up: it must not run on data that is exchanged.
    warm::stop(step, None).await?;
    let gap = Instant::now();
    if let Some(previous) = &input.previous {
        silence(step, previous).await?;
    }
    if let Some(data) = &input.data {
        exchange::back(step, data).await?;
    }
    step.job.log.line(format!("starting {}", candidate.name));
    let started = Instant::now();
    runtime.start(&candidate).await?;
    let healthy = judge(step, environment, &candidate, started).await?;
    let healthy_after_ms = ms(started.elapsed());
    if environment.start.gate.is_some() {
        traffic::open(world, environment, &candidate).await?;
    }
    let gap_ms = if input.previous.is_some() { ms(healthy.first_answer.saturating_duration_since(gap)) } else { 0 };
    Ok(Output { instance: candidate, healthy_after_ms, gap_ms, beside: None })
}

/// `blue-green`: the new version comes up and passes its checks beside the old one, and then gets the traffic. The old one goes on running until
/// smoke has watched the new one, so that going back is a switch.
async fn beside(step: &Step, input: Input, candidate: Instance) -> Result<Output, StageFailure> {
    let (world, environment) = (&step.world, &step.environment);
    // Two at once, and never three.
    warm::stop(step, input.release).await?;
    if input.release.is_some() && is_up_as_new(step, &candidate).await? {
        step.job.log.line(format!("{} was kept warm and runs", candidate.name));
    } else {
        step.job.log.line(format!("starting {} beside what is live", candidate.name));
    }
    let started = Instant::now();
    world.runtime(environment).start(&candidate).await?;
    judge(step, environment, &candidate, started).await?;
    let healthy_after_ms = ms(started.elapsed());
    smoke::directly(step, &candidate).await?;
    let gap = Instant::now();
    // It holds the public port itself: this once users notice.
    let makes_room = input.previous.as_ref().filter(|previous| !previous.gated);
    if let Some(previous) = makes_room {
        stop_previous(step, previous).await?;
    }
    traffic::open(world, environment, &candidate).await?;
    step.job.log.line(format!("{} has the traffic", candidate.name));
    let gap_ms = if makes_room.is_some() { ms(gap.elapsed()) } else { 0 };
    let beside = input.previous.filter(|previous| previous.gated);
    Ok(Output { instance: candidate, healthy_after_ms, gap_ms, beside })
}

/// Whether a version that comes back runs already. One that was started again by itself while it was live would look as if it had just ended: it
/// is stopped, and begins anew.
async fn is_up_as_new(step: &Step, candidate: &Instance) -> Result<bool, StageFailure> {
    let runtime = step.world.runtime(&step.environment);
    match runtime.inspect(candidate).await? {
        InstanceState::Running { restarts: 0, .. } => return Ok(true),
        InstanceState::Running { .. } | InstanceState::Restarting { .. } => {
            runtime.stop(candidate, step.environment.start.stop_timeout).await?;
        }
        _ => {}
    }
    Ok(false)
}

/// Stops what is live with nothing in its place. Behind the gate requests wait from now on, until the traffic is opened again.
pub(super) async fn silence(step: &Step, previous: &Previous) -> Result<(), StageFailure> {
    let (world, environment) = (&step.world, &step.environment);
    match environment.start.gate {
        Some(behind) if previous.gated => {
            traffic::hold(world, &environment.key, behind, patience(step)).await?;
            traffic::drain(step, behind, previous.deployment, Meanwhile::Held).await?;
        }
        None if previous.gated => traffic::close(world, &environment.key).await?,
        _ => {}
    }
    stop_previous(step, previous).await
}

async fn stop_previous(step: &Step, previous: &Previous) -> Result<(), StageFailure> {
    step.job.log.line(format!("stopping deployment {}", previous.deployment));
    let patience = step.environment.start.stop_timeout;
    Ok(step.world.runtimes.of(previous.runtime).stop(&previous.instance, patience).await?)
}

/// How long requests are held at most, should this process die: the longest that a change of versions takes.
fn patience(step: &Step) -> Duration {
    let Environment { start, migrate, .. } = step.environment.as_ref();
    let migrating = migrate.as_ref().filter(|migrate| migrate.hold).map_or(Duration::ZERO, |migrate| migrate.timeout);
    (start.stop_timeout + start.health.deadline).saturating_mul(2).saturating_add(migrating)
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
    let deployment = input.release.unwrap_or(step.deployment);
    let candidate = Instance { id: input.candidate.clone(), name: input.candidate.clone(), deployment };
    let Some(previous) = &input.previous else {
        if step.environment.start.gate.is_some() {
            traffic::close(&step.world, &step.environment.key).await?;
        }
        stop_candidate(step, &input, &candidate).await?;
        clear_away(step, &input, &candidate).await?;
        return Ok(Some("the new version was removed; nothing was live before, so nothing is live now".to_owned()));
    };
    let began = Instant::now();
    if let Some(back) = switch_back(step, &input, previous, &candidate).await? {
        stop_candidate(step, &input, &candidate).await?;
        clear_away(step, &input, &candidate).await?;
        return live_again(&back, previous, &previous.instance, began).await.map(Some);
    }
    stop_candidate(step, &input, &candidate).await?;
    if let Some(data) = input.data.as_ref().filter(|_| exchange::began(step)) {
        // An undo that was cut off may have started it already.
        let runtime = step.world.runtimes.of(previous.runtime);
        runtime.stop(&previous.instance, step.environment.start.stop_timeout).await?;
        exchange::forward(step, data).await?;
    }
    bring_back(step, previous, async || clear_away(step, &input, &candidate).await).await.map(Some)
}

/// What a step has for the version that was live: its own settings. Going back is not for the one who cancelled to cancel.
fn as_before(step: &Step, previous: &Previous) -> Step {
    let (mut environment, unreadable) = kept::environment(&step.world, &step.environment, previous.deployment);
    if let Some(why) = unreadable {
        step.job.log.line(format!("using today's settings: {why}"));
    }
    environment.start.runtime = previous.runtime;
    let job = Job { log: step.job.log.clone(), cancel: CancellationToken::new() };
    Step { job, environment: Arc::new(environment), ..step.clone() }
}

/// Gives the traffic back to an old version that still runs behind the gate and is healthy. Else (`None`) requests wait, or the port is made free.
async fn switch_back(
    step: &Step,
    input: &Input,
    previous: &Previous,
    candidate: &Instance,
) -> Result<Option<Step>, StageFailure> {
    let back = as_before(step, previous);
    let exchanged = input.data.is_some() && exchange::began(step);
    let itself = previous.deployment == candidate.deployment;
    if previous.gated && !exchanged && !itself && health::answers(&back, &previous.instance).await {
        traffic::open(&back.world, &back.environment, &previous.instance).await?;
        step.job.log.line(format!("deployment {} has the traffic again", previous.deployment));
        // It may have been about to be kept warm.
        keep_up(step, &back.environment, &previous.instance).await;
        // What the candidate had begun may well end well: nobody waits for it to go.
        if let Some(behind) = step.environment.start.gate {
            traffic::drain(step, behind, candidate.deployment, Meanwhile::Served).await?;
        }
        return Ok(Some(back));
    }
    match (back.environment.start.gate, step.environment.start.gate) {
        (Some(behind), _) if previous.gated => {
            traffic::hold(&back.world, &back.environment.key, behind, patience(&back)).await?;
            traffic::drain(step, behind, candidate.deployment, Meanwhile::Held).await?;
        }
        (None, Some(_)) => traffic::close(&step.world, &step.environment.key).await?,
        _ => {}
    }
    Ok(None)
}

/// Starts what was live again, with its own settings; `meanwhile` is done as soon as it is on its way up, because users wait. The line is for the
/// report.
pub(super) async fn bring_back(
    step: &Step,
    previous: &Previous,
    meanwhile: impl AsyncFnOnce() -> Result<(), StageFailure>,
) -> Result<String, StageFailure> {
    let back = as_before(step, previous);
    let started = Instant::now();
    let again = start_again(step, &back.environment, previous).await;
    meanwhile().await?;
    let instance = again?;
    judge(&back, &back.environment, &instance, started)
        .await
        .map_err(|failure| not_good(previous, "is not healthy", failure))?;
    if previous.gated {
        traffic::open(&back.world, &back.environment, &instance).await?;
    }
    live_again(&back, previous, &instance, started).await
}

async fn live_again(
    back: &Step,
    previous: &Previous,
    instance: &Instance,
    since: Instant,
) -> Result<String, StageFailure> {
    let healthy = ms(since.elapsed());
    // A way back that nobody looked at is no way back.
    smoke::once(back, instance).await.map_err(|f| not_good(previous, "does not pass its own checks", f))?;
    Ok(format!(
        "deployment {} ({}) is live again, healthy after {healthy} ms",
        previous.deployment,
        previous.commit.short(),
    ))
}

fn not_good(previous: &Previous, what: &str, failure: StageFailure) -> StageFailure {
    StageFailure {
        message: format!("deployment {} was started again and {what}: {}", previous.deployment, failure.message),
        ..failure
    }
}

/// Once it does not run its port is free, and users wait: what else there is of it goes when the old version is on its way up.
async fn stop_candidate(step: &Step, input: &Input, candidate: &Instance) -> Result<(), StageFailure> {
    let patience = if input.release.is_some() { step.environment.start.stop_timeout } else { Duration::ZERO };
    Ok(step.world.runtime(&step.environment).stop(candidate, patience).await?)
}

async fn clear_away(step: &Step, input: &Input, candidate: &Instance) -> Result<(), StageFailure> {
    if input.release.is_none() {
        keep_state(step, candidate, input.previous.as_ref()).await;
        step.world.runtime(&step.environment).remove(candidate).await?;
    }
    Ok(())
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
    keep_up(step, environment, &instance).await;
    Ok(instance)
}

/// From now on the engine starts it again when it ends. Going back does not fail over that.
async fn keep_up(step: &Step, environment: &Environment, instance: &Instance) {
    if let Err(error) = step.world.runtime(environment).keep_up(instance, true).await {
        step.job.log.line(format!("warning: {} is not started again by itself when it ends: {error}", instance.name));
    }
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
