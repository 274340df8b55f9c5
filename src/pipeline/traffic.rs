//! Who gets an environment's requests, where its public port belongs to the gate.
//!
//! Every call says how things should be, and may be made twice: a route that is as it should be stays so. The gate itself is started when it is
//! needed, and knows after a crash what it served before; [`settle`] then compares that with what is live.

use std::{net::SocketAddr, time::Duration};

use super::{
    World, kept,
    stages::{StageFailure, Step},
};
use crate::{
    config::{BehindGate, Environment, RuntimeKind},
    gate::{
        client::ClientError,
        keeper::{KeeperError, Renewal},
        wire::{DrainBounds, ErrorCode, HoldBounds, RouteSpec, RouteState, RouteStatus, Side},
    },
    model::{DeploymentId, EnvironmentKey},
    pipeline::journal::FailureKind,
    registry::{RegistryError, Release},
    runtime::{Instance, InstanceState},
};

impl From<KeeperError> for StageFailure {
    fn from(error: KeeperError) -> Self {
        match error {
            KeeperError::Client(error) => error.into(),
            error @ KeeperError::Start(_) => Self { kind: FailureKind::Unavailable, message: error.to_string() },
        }
    }
}

impl From<ClientError> for StageFailure {
    fn from(error: ClientError) -> Self {
        let kind = match error {
            ClientError::Absent { .. } | ClientError::Unanswered { .. } => FailureKind::Unavailable,
            _ => FailureKind::Failed,
        };
        Self { kind, message: format!("{error}: {}", error.hint()) }
    }
}

/// Sends every new request to this instance, which runs; those that were held go on. Returns when that is so.
pub async fn open(world: &World, environment: &Environment, instance: &Instance) -> Result<(), StageFailure> {
    let side = side(world, environment.start.runtime, instance).await?;
    point(world, environment, side).await
}

async fn side(world: &World, runtime: RuntimeKind, instance: &Instance) -> Result<Side, StageFailure> {
    let upstream = match world.runtimes.of(runtime).inspect(instance).await? {
        InstanceState::Running { address: Some(address), .. } => address,
        InstanceState::Running { .. } => {
            return Err(StageFailure::failed(format!("{} has no port that the gate can reach", instance.name)));
        }
        _ => return Err(StageFailure::failed(format!("{} does not run", instance.name))),
    };
    Ok(Side { id: instance.deployment.to_string(), upstream })
}

async fn point(world: &World, environment: &Environment, side: Side) -> Result<(), StageFailure> {
    let gate = world.gate.up().await?;
    let name = environment.key.to_string();
    let port = environment.port.ok_or_else(|| StageFailure::failed("the gate serves a port, and the app has none"))?;
    gate.route(RouteSpec::new(&name, SocketAddr::new(environment.bind, port), Some(side))).await?;
    gate.resume(&name).await?;
    Ok(())
}

/// Lets new requests wait until [`open`] is called. `at_most`: when they go on in any case, should nobody call it.
pub async fn hold(
    world: &World,
    key: &EnvironmentKey,
    behind: BehindGate,
    at_most: Duration,
) -> Result<(), StageFailure> {
    let bounds = HoldBounds { max_wait_ms: ms(behind.hold), at_most_ms: ms(at_most), ..HoldBounds::default() };
    unless_unknown(world.gate.up().await?.pause(&key.to_string(), bounds).await)
}

/// Gives the public port back. Without a gate there is nothing to give.
pub async fn close(world: &World, key: &EnvironmentKey) -> Result<(), StageFailure> {
    match world.gate.client().remove(&key.to_string()).await {
        Err(error) if error.is_absent() => Ok(()),
        done => unless_unknown(done),
    }
}

/// What the gate knows of an environment, its counters among it; it is not started for that.
pub async fn route(world: &World, key: &EnvironmentKey) -> Result<Option<RouteStatus>, ClientError> {
    let name = key.to_string();
    let status = world.gate.client().status(Some(&name)).await?;
    Ok(status.routes.into_iter().find(|route| route.name == name))
}

/// Whether a person has put up the maintenance page. A gate that does not say so has none up.
pub async fn in_maintenance(world: &World, key: &EnvironmentKey) -> bool {
    matches!(route(world, key).await, Ok(Some(route)) if route.state == RouteState::Maintenance)
}

/// Who waits while a version that is to be stopped answers what it had begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meanwhile {
    /// Another version answers: there is time.
    Served,
    /// New requests are held, so this may take half of what they wait, and WebSockets, which seldom end by themselves, none of it.
    Held,
}

/// Waits until a version has answered what it had begun, within its bounds; what is left then is told in the log.
pub async fn drain(
    step: &Step,
    behind: BehindGate,
    leaving: DeploymentId,
    meanwhile: Meanwhile,
) -> Result<(), StageFailure> {
    let bounds = match meanwhile {
        Meanwhile::Served => DrainBounds { requests_ms: ms(behind.drain), websockets_ms: ms(behind.drain_websockets) },
        Meanwhile::Held => DrainBounds { requests_ms: ms(behind.drain.min(behind.hold / 2)), websockets_ms: 0 },
    };
    let name = step.environment.key.to_string();
    match step.world.gate.up().await?.drain(&name, &leaving.to_string(), Some(bounds)).await {
        Ok(drained) if drained.is_empty() => Ok(()),
        Ok(drained) => {
            step.job.log.line(format!(
                "{} requests and {} WebSockets of deployment {leaving} were not over after {} ms and end when it is stopped",
                drained.left.requests, drained.left.websockets, drained.waited_ms
            ));
            Ok(())
        }
        Err(error) if matches!(error.code(), Some(ErrorCode::UnknownRoute | ErrorCode::UnknownSide)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Replaces a gate that the daemon started before refit was updated. One that cannot be replaced goes on serving; that is logged, and `refit doctor`
/// tells it.
pub async fn renew(world: &World) {
    match world.gate.renew().await {
        Ok(Renewal::Needless) => {}
        Ok(Renewal::Replaced { old, new }) => {
            tracing::info!("the gate, process {old}, ran another build of refit: process {new} has taken its place");
        }
        Ok(Renewal::NotOurs { pid }) => tracing::warn!(
            "the gate, process {pid}, runs another build of refit and was not started by the daemon: restart it with `--take-over`"
        ),
        Err(error) => {
            let log = world.gate.log_path();
            tracing::error!(%error, log = %log.display(), "the gate runs another build of refit and could not be replaced; it goes on serving");
        }
    }
}

/// Puts the gate right for an environment whose live version is behind it: it may be gone, or point to where the version was before the
/// machine or the engine was started again. Nothing to do in most cases, and then cheap. What cannot be put right now is logged. Whether the
/// environment's live version is behind the gate at all. Not while a deployment of the environment runs.
pub async fn settle(world: &World, environment: &Environment) -> Result<bool, RegistryError> {
    let Some(live) = world.registry.live(&environment.key).await? else { return Ok(false) };
    let (mut kept, _) = kept::environment(world, environment, live.deployment);
    kept.start.runtime = live.runtime;
    if kept.start.gate.is_none() {
        return Ok(false);
    }
    if let Err(failure) = settle_live(world, &kept, &live).await {
        tracing::warn!(environment = %environment.key, why = failure.message, "the gate does not serve what is live");
    }
    Ok(true)
}

async fn settle_live(world: &World, environment: &Environment, live: &Release) -> Result<(), StageFailure> {
    let name = environment.key.to_string();
    let status = world.gate.up().await?.status(Some(&name)).await?;
    let id = live.deployment.to_string();
    let good = status.route(&name).is_some_and(|route| {
        let serving = route.live.as_ref().is_some_and(|side| side.id == id && side.reachable != Some(false));
        matches!(route.state, RouteState::Serving | RouteState::Maintenance) && serving
    });
    if good {
        return Ok(());
    }
    // While it does not run there is nowhere to point to.
    let Ok(side) = side(world, live.runtime, &live.instance).await else { return Ok(()) };
    point(world, environment, side).await
}

fn unless_unknown<T>(done: Result<T, ClientError>) -> Result<(), StageFailure> {
    match done {
        Err(error) if error.code() == Some(ErrorCode::UnknownRoute) => Ok(()),
        done => Ok(done.map(drop)?),
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
