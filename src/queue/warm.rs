//! Stops the version that an environment kept warm when its time is over.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::{
    config::Environment,
    pipeline::{
        World,
        warm::{self, Found},
    },
    registry::Warm,
};

/// Between two looks at what could not be stopped yet.
const SOON: Duration = Duration::from_secs(5);

/// Between two looks at most: the clock that times are recorded in may be set.
const LATE: Duration = Duration::from_secs(60);

/// Looks at one environment, at once and whenever something was recorded or the time of something is over. A task for each, because an app may take
/// its time to stop; and not a part of the worker, which is busy for as long as a deployment runs.
pub(super) async fn watch(world: Arc<World>, environment: Arc<Environment>, closing: CancellationToken) {
    let mut ticks = world.ticks.subscribe();
    let mut watched = Watched { done: None, told: None };
    let work = async {
        loop {
            ticks.mark_unchanged();
            let pause = watched.look(&world, &environment).await;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // Its sender lives in `world`.
                _ = ticks.changed() => {}
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = closing.cancelled() => {}
    }
}

/// What need not be done or said again.
struct Watched {
    done: Option<Warm>,
    told: Option<String>,
}

impl Watched {
    /// Until when to wait.
    async fn look(&mut self, world: &World, environment: &Environment) -> Duration {
        match warm::cool(world, environment, self.done.as_ref()).await {
            Ok(Found::Nothing) => LATE,
            Ok(Found::Until(until)) => {
                let left = Duration::try_from(until.duration_since(Timestamp::now())).unwrap_or_default();
                // A moment more: else it may not be over by less than the clock's step.
                left.saturating_add(Duration::from_millis(1)).min(LATE)
            }
            Ok(Found::Spared) => SOON,
            Ok(Found::Stopped(done)) => {
                (self.done, self.told) = (Some(done), None);
                LATE
            }
            Err(why) => {
                if self.told.as_ref() != Some(&why) {
                    tracing::warn!(environment = %environment.key, why, "what was kept warm may run for longer than its time");
                    self.told = Some(why);
                }
                SOON
            }
        }
    }
}
