//! Stops the version that an environment kept warm when its time is over.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{
    config::Environment,
    pipeline::{World, warm},
    registry::Warm,
};

/// Between two looks. One where nothing is over is a small query.
const EVERY: Duration = Duration::from_secs(1);

/// Looks at one environment, at once and again and again: a task for each, because an app may take its time to stop. Not a part of the worker, which
/// is busy for as long as a deployment runs.
pub(super) async fn watch(world: Arc<World>, environment: Arc<Environment>, closing: CancellationToken) {
    let mut watched = Watched { done: None, told: None };
    loop {
        tokio::select! {
            () = async { watched.look(&world, &environment).await; tokio::time::sleep(EVERY).await } => {}
            () = closing.cancelled() => return,
        }
    }
}

/// What need not be done or said again.
struct Watched {
    done: Option<Warm>,
    told: Option<String>,
}

impl Watched {
    async fn look(&mut self, world: &World, environment: &Environment) {
        match warm::cool(world, environment, self.done.as_ref()).await {
            Ok(None) => {}
            Ok(Some(done)) => (self.done, self.told) = (Some(done), None),
            Err(why) if self.told.as_ref() == Some(&why) => {}
            Err(why) => {
                tracing::warn!(environment = %environment.key, why, "what was kept warm may run for longer than its time");
                self.told = Some(why);
            }
        }
    }
}
