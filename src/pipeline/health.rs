//! Judging a candidate: N good probes in a row within a deadline, and no exit or restart meanwhile.
//!
//! Nothing is waited for blindly. Until the first good answer the probing is fast and slows down towards `interval`, so that a quick app
//! is found healthy at once and a slow one is not hammered. Before each probe the runtime is asked whether the
//! instance still runs: an exit or a restart fails at once, long before the deadline.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Environment, Probe},
    log::DeploymentLog,
    pipeline::{
        World,
        journal::FailureKind,
        stages::{StageFailure, Step, smoke},
    },
    runtime::{Instance, InstanceState, Job, Runtime},
};

/// The first pause between probes; doubled up to `health.interval`.
const FIRST_PAUSE: Duration = Duration::from_millis(5);

/// A candidate that passed.
#[derive(Debug, Clone, Copy)]
pub struct Healthy {
    /// When the first of the good answers in a row came.
    pub first_answer: Instant,
}

/// Probes until the instance is healthy, ends, or the deadline (counted from `started`) is over.
pub async fn judge(
    runtime: &dyn Runtime,
    http: &reqwest::Client,
    environment: &Environment,
    instance: &Instance,
    started: Instant,
    job: &Job,
) -> Result<Healthy, StageFailure> {
    let health = &environment.start.health;
    let mut pause = FIRST_PAUSE.min(health.interval);
    let mut good = 0;
    let mut first_answer = started;
    let mut last_error = "it was never probed".to_owned();
    let mut logged = String::new();
    loop {
        let look = async {
            let (address, image_health) = alive(runtime, instance).await?;
            Ok::<_, StageFailure>(probe(runtime, http, environment, instance, address, image_health, started).await)
        };
        // An engine that hangs does not stretch the deadline.
        let left = health.deadline.saturating_sub(started.elapsed()).max(health.timeout);
        let looked = tokio::select! {
            looked = tokio::time::timeout(left, look) => looked,
            () = job.cancel.cancelled() => return Err(StageFailure::cancelled()),
        };
        match looked.map_err(|_| no_word(instance, health.deadline))?? {
            Ok(()) => {
                if good == 0 {
                    first_answer = Instant::now();
                }
                good += 1;
                if good >= health.successes {
                    return Ok(Healthy { first_answer });
                }
                pause = health.interval;
            }
            Err(why) => {
                good = 0;
                if why != logged {
                    job.log.line(format!("not healthy yet: {why}"));
                    logged.clone_from(&why);
                }
                last_error = why;
            }
        }
        if started.elapsed() + pause > health.deadline {
            return Err(StageFailure {
                kind: FailureKind::TimedOut,
                message: format!(
                    "{} was not healthy within {:?} (`start.health.deadline`): {last_error}",
                    instance.name, health.deadline
                ),
            });
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = job.cancel.cancelled() => return Err(StageFailure::cancelled()),
        }
        if good == 0 {
            pause = (pause * 2).min(health.interval);
        }
    }
}

/// Whether an instance that runs for some time is healthy now: one probe, and one round of its smoke checks.
pub async fn now(world: &Arc<World>, environment: Arc<Environment>, instance: &Instance) -> Result<(), StageFailure> {
    let runtime = world.runtime(&environment);
    let (address, image_health) = alive(runtime.as_ref(), instance).await?;
    // It has been running longer than it had to settle.
    let started = Instant::now().checked_sub(environment.start.health.settle).unwrap_or_else(Instant::now);
    let good = probe(runtime.as_ref(), world.http(), &environment, instance, address, image_health, started).await;
    good.map_err(StageFailure::failed)?;
    let log = DeploymentLog::discard(world.config.redactor.clone()).section("refit");
    let job = Job { log, cancel: CancellationToken::new() };
    let step = Step { world: Arc::clone(world), environment, deployment: instance.deployment, job };
    smoke::once(&step, instance).await.map(drop)
}

/// Whether an instance that has been live runs, never ended since it was started, and passes its probe now.
pub async fn answers(step: &Step, instance: &Instance) -> bool {
    let environment = &step.environment;
    let runtime = step.world.runtime(environment);
    let Ok((address, image_health)) = alive(runtime.as_ref(), instance).await else { return false };
    let started = Instant::now().checked_sub(environment.start.health.settle).unwrap_or_else(Instant::now);
    let http = step.world.http();
    probe(runtime.as_ref(), http, environment, instance, address, image_health, started).await.is_ok()
}

fn no_word(instance: &Instance, deadline: Duration) -> StageFailure {
    StageFailure {
        kind: FailureKind::Unavailable,
        message: format!(
            "nothing was heard of {} within {deadline:?} (`start.health.deadline`): what runs it does not answer",
            instance.name
        ),
    }
}

/// The address and the image's own verdict of an instance that runs and never restarted.
async fn alive(runtime: &dyn Runtime, instance: &Instance) -> Result<(Option<SocketAddr>, Option<bool>), StageFailure> {
    let name = &instance.name;
    let why = match runtime.inspect(instance).await? {
        InstanceState::Running { address, restarts: 0, health } => return Ok((address, health)),
        InstanceState::Running { restarts, .. } => format!("{name} ended and was restarted ({})", times(restarts)),
        InstanceState::Restarting { restarts, code } => {
            format!("{name} exited with code {code} and is in a restart loop ({})", times(restarts))
        }
        InstanceState::Exited { out_of_memory: true, .. } => {
            format!("{name} was killed for using too much memory: raise `start.memory` or mend the app")
        }
        InstanceState::Exited { code, .. } => format!("{name} exited with code {code}"),
        InstanceState::Created => format!("{name} was not started"),
        InstanceState::Missing => format!("{name} is gone"),
    };
    Err(StageFailure::failed(why))
}

fn times(restarts: u64) -> String {
    if restarts == 1 { "1 restart".to_owned() } else { format!("{restarts} restarts") }
}

async fn probe(
    runtime: &dyn Runtime,
    http: &reqwest::Client,
    environment: &Environment,
    instance: &Instance,
    address: Option<SocketAddr>,
    image_health: Option<bool>,
    started: Instant,
) -> Result<(), String> {
    let health = &environment.start.health;
    let address = || address.ok_or_else(|| "it has no port that this host can reach".to_owned());
    match &health.probe {
        Probe::Http { path } => {
            let url = format!("http://{}{path}", address()?);
            let answer = http.get(&url).timeout(health.timeout).send().await;
            let status = answer.map_err(|e| format!("GET {path}: {}", super::checks::http_error(&e)))?.status();
            if status.is_success() || status.is_redirection() {
                Ok(())
            } else {
                Err(format!("GET {path} answered {status}"))
            }
        }
        Probe::Tcp => {
            let address = address()?;
            let port = address.port();
            match tokio::time::timeout(health.timeout, TcpStream::connect(address)).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => Err(format!("connecting to port {port}: {error}")),
                Err(_) => Err(format!("connecting to port {port} took too long")),
            }
        }
        Probe::Exec { command } => {
            let done = runtime.exec(instance, command, health.timeout).await.map_err(|e| e.to_string())?;
            match done.code {
                0 => Ok(()),
                code => Err(format!("`{}` exited with code {code}", command.join(" "))),
            }
        }
        Probe::Image => match image_health {
            Some(true) => Ok(()),
            Some(false) => Err("the image's HEALTHCHECK says unhealthy".to_owned()),
            None => Err("the image's HEALTHCHECK has not answered (has the image one?)".to_owned()),
        },
        Probe::Running if started.elapsed() >= health.settle => Ok(()),
        Probe::Running => Err(format!("waiting for it to have run {:?}", health.settle)),
    }
}
