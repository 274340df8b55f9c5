//! smoke: the checks through the public way, then a bake time in which they go on. A failure sends the traffic back.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use errors::Watch;
use serde::{Deserialize, Serialize};

use super::{Done, Progress, StageFailure, Step, start::Previous, within};
use crate::{
    pipeline::{
        checks,
        journal::FailureKind,
        traffic::{self, Meanwhile},
        warm,
    },
    registry::Warm,
    runtime::{Instance, InstanceState, Job},
};

mod errors;

#[derive(Debug, Serialize, Deserialize)]
pub struct Input {
    pub instance: Instance,
    /// The version before, which still runs: it is stopped when this one is trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beside: Option<Previous>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Output {
    pub checks: Vec<CheckResult>,
    /// How long it was watched, and how many rounds of checks that were.
    pub bake_ms: u64,
    pub rounds: u32,
    /// What the gate counted, where `max_error_rate` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errors: Option<errors::Compared>,
    /// The version before, where it goes on running for a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm: Option<Warm>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct CheckResult {
    pub name: String,
    /// Of the first round.
    pub duration_ms: u64,
}

pub fn input(progress: &Progress) -> Result<Input, StageFailure> {
    let instance = progress.instance.clone().ok_or_else(|| StageFailure::failed("nothing was started"))?;
    Ok(Input { instance, beside: progress.beside.clone() })
}

pub async fn run(step: &Step, input: Input) -> Result<Done, StageFailure> {
    let (smoke, instance) = (&step.environment.smoke, &input.instance);
    let mut watch = Watch::begin(step, &input).await;
    let checks = while_it_runs(step, instance, once(step, instance)).await?;
    let began = Instant::now();
    let work = bake(step, instance, began, watch.as_mut());
    let rounds = while_it_runs(step, instance, work).await.map_err(|failure| match failure.kind {
        FailureKind::Cancelled => failure,
        _ => StageFailure {
            message: format!("{} ({:.1} s into the bake time)", failure.message, began.elapsed().as_secs_f64()),
            ..failure
        },
    })?;
    let bake_ms = if smoke.bake.is_zero() { 0 } else { u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX) };
    let errors = watch.and_then(|watch| watch.end(step));
    let warm = match &input.beside {
        Some(previous) => retire(step, previous).await,
        None => None,
    };
    Done::new(&Output { checks, bake_ms, rounds: rounds + 1, errors, warm })
}

/// Lets the version that was replaced finish what it had begun, and stops it, unless it is kept warm. The new one is live and good: trouble here is a
/// line in the log.
async fn retire(step: &Step, previous: &Previous) -> Option<Warm> {
    let (world, start) = (&step.world, &step.environment.start);
    let work = async {
        if let Some(behind) = start.gate {
            traffic::drain(step, behind, previous.deployment, Meanwhile::Served).await?;
        }
        let warm = warm::keep(step, previous).await;
        if warm.is_none() {
            world.runtimes.of(previous.runtime).stop(&previous.instance, start.stop_timeout).await?;
            step.job.log.line(format!("stopped deployment {}", previous.deployment));
        }
        Ok::<_, StageFailure>(warm)
    };
    work.await.unwrap_or_else(|why| {
        step.job.log.line(format!("warning: deployment {} still runs: {}", previous.deployment, why.message));
        None
    })
}

/// The checks on a candidate that does not have the traffic yet: those that name a path or run a command. Those that name another address would judge
/// something else, and come when it is live.
pub(super) async fn directly(step: &Step, instance: &Instance) -> Result<(), StageFailure> {
    let InstanceState::Running { address: Some(address), .. } =
        step.world.runtime(&step.environment).inspect(instance).await?
    else {
        return Err(StageFailure::failed(format!("{} has no port that this host can reach", instance.name)));
    };
    let limit = step.environment.smoke.timeout;
    let work = within(limit, "the smoke checks before the switch", &step.job.cancel, async |cancel| {
        let step = Step { job: Job { log: step.job.log.clone(), cancel }, ..step.clone() };
        round(&step, instance, checks::Way::Direct(address), true).await
    });
    while_it_runs(step, instance, work).await.map(drop)
}

/// The rounds after the first one; how many there were.
async fn bake(
    step: &Step,
    instance: &Instance,
    began: Instant,
    mut watch: Option<&mut Watch>,
) -> Result<u32, StageFailure> {
    let smoke = &step.environment.smoke;
    let mut rounds = 0;
    while began.elapsed() < smoke.bake {
        let pause = smoke.interval.min(smoke.bake.saturating_sub(began.elapsed()));
        tokio::select! {
            () = tokio::time::sleep(pause.max(Duration::from_millis(1))) => {}
            () = step.job.cancel.cancelled() => return Err(StageFailure::cancelled()),
        }
        within(smoke.timeout, "a round of smoke checks", &step.job.cancel, async |cancel| {
            let step = Step { job: Job { log: step.job.log.clone(), cancel }, ..step.clone() };
            round(&step, instance, way(&step, instance).await, false).await
        })
        .await?;
        rounds += 1;
        if let Some(watch) = &mut watch
            && let Err(failure) = watch.look(step).await
        {
            quote(step, instance).await;
            return Err(failure);
        }
    }
    Ok(rounds)
}

/// `work`, unless the instance ends meanwhile: that is said at once, and not only when the next check finds nobody.
async fn while_it_runs<T>(
    step: &Step,
    instance: &Instance,
    work: impl Future<Output = Result<T, StageFailure>>,
) -> Result<T, StageFailure> {
    tokio::select! {
        result = work => result,
        failure = its_end(step, instance) => Err(failure),
    }
}

async fn its_end(step: &Step, instance: &Instance) -> StageFailure {
    let runtime = step.world.runtime(&step.environment);
    loop {
        // An engine that does not answer now is asked again; that it is away is for the rounds to say.
        if let Ok(code) = runtime.wait_exit(instance).await {
            let ended = match (runtime.inspect(instance).await, code) {
                (Ok(InstanceState::Exited { out_of_memory: true, .. }), _) => OUT_OF_MEMORY.to_owned(),
                (_, Some(code)) => exited(code),
                (_, None) => "ended".to_owned(),
            };
            quote(step, instance).await;
            return StageFailure::failed(format!("{} {ended}", instance.name));
        }
        tokio::time::sleep(step.environment.smoke.interval).await;
    }
}

const OUT_OF_MEMORY: &str = "was killed for using too much memory";

fn exited(code: i64) -> String {
    format!("exited with code {code}")
}

/// The first round, within its time.
pub(in crate::pipeline) async fn once(step: &Step, instance: &Instance) -> Result<Vec<CheckResult>, StageFailure> {
    let limit = step.environment.smoke.timeout;
    within(limit, "the first round of smoke checks", &step.job.cancel, async |cancel| {
        let step = Step { job: Job { log: step.job.log.clone(), cancel }, ..step.clone() };
        round(&step, instance, way(&step, instance).await, true).await
    })
    .await
}

/// As users come, unless the gate turns them all away on purpose: its page would say nothing of the app.
async fn way(step: &Step, instance: &Instance) -> checks::Way {
    if step.environment.start.gate.is_none() || !traffic::in_maintenance(&step.world, &step.environment.key).await {
        return checks::Way::Public;
    }
    match step.world.runtime(&step.environment).inspect(instance).await {
        Ok(InstanceState::Running { address: Some(address), .. }) => checks::Way::Direct(address),
        _ => checks::Way::Public,
    }
}

/// One pass over the instance's state and every check.
async fn round(
    step: &Step,
    instance: &Instance,
    way: checks::Way,
    loud: bool,
) -> Result<Vec<CheckResult>, StageFailure> {
    still_running(step, instance).await?;
    let mut results = Vec::new();
    for check in step.environment.smoke.checks.iter().filter(|check| way.has(check)) {
        let began = Instant::now();
        if let Err(why) = checks::run(step, instance, way, check).await {
            if step.job.cancel.is_cancelled() {
                return Err(StageFailure::cancelled());
            }
            // An app that ended answers nothing: then that is why, and not the check.
            let gone = gone(step, instance).await.ok().flatten();
            let gone = gone.map(|gone| format!(" ({} {gone})", instance.name)).unwrap_or_default();
            let message = format!("smoke check `{}` failed: {why}{gone}", check.name);
            step.job.log.line(&message);
            quote(step, instance).await;
            return Err(StageFailure::failed(message));
        }
        let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        if loud {
            step.job.log.line(format!("ok {} ({duration_ms} ms)", check.name));
        }
        results.push(CheckResult { name: check.name.clone(), duration_ms });
    }
    Ok(results)
}

async fn still_running(step: &Step, instance: &Instance) -> Result<(), StageFailure> {
    let Some(gone) = gone(step, instance).await? else { return Ok(()) };
    quote(step, instance).await;
    Err(StageFailure::failed(format!("{} {gone}", instance.name)))
}

/// What became of an instance that has not run all the time.
async fn gone(step: &Step, instance: &Instance) -> Result<Option<String>, StageFailure> {
    let runtime = step.world.runtime(&step.environment);
    Ok(Some(match runtime.inspect(instance).await? {
        InstanceState::Running { restarts: 0, .. } => return Ok(None),
        InstanceState::Running { restarts: 1, .. } => "ended and was restarted once".to_owned(),
        InstanceState::Running { restarts, .. } => format!("ended and was restarted {restarts} times"),
        InstanceState::Restarting { code, .. } => format!("exited with code {code} and is being restarted"),
        InstanceState::Exited { out_of_memory: true, .. } => OUT_OF_MEMORY.to_owned(),
        InstanceState::Exited { code, .. } => exited(code),
        InstanceState::Created => "was never started".to_owned(),
        InstanceState::Missing => "is gone".to_owned(),
    }))
}

/// The app's last lines, for the report.
async fn quote(step: &Step, instance: &Instance) {
    super::quote(step, step.world.runtime(&step.environment).as_ref(), instance).await;
}
