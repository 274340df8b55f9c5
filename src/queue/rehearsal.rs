//! Backups that are tried out by themselves: where `rehearse_backups` says how often, the newest set of an environment is restored into something that
//! is thrown away, and what was found is kept beside it, for `refit status`, `refit backup list` and `refit doctor`.
//!
//! A rehearsal never stands in anybody's way: it borrows the environment's turn, and gives up as soon as a deployment or a person wants it; it
//! is tried again later.

use std::{
    collections::HashMap,
    sync::Weak,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::Queue;
use crate::{
    config::Environment,
    data::{self, DataError, Depth, SetState, SetSummary, VerifyRequest},
    log::DeploymentLog,
    model::EnvironmentKey,
    pipeline::{World, rehearsed},
    runtime::Job,
};

/// Between two looks at what is due; more often only where rehearsals are.
const LOOK: Duration = Duration::from_secs(60);

/// After one that could not be carried out at all.
const PAUSE: Duration = Duration::from_secs(15 * 60);

pub(super) async fn watch(queue: Weak<Queue>, closing: CancellationToken) {
    let mut failed: HashMap<EnvironmentKey, Instant> = HashMap::new();
    loop {
        let Some(strong) = queue.upgrade() else { return };
        let scheduled: Vec<_> =
            strong.world.config.environments().filter(|e| e.rehearse_backups.is_some()).cloned().collect();
        let Some(shortest) = scheduled.iter().filter_map(|e| e.rehearse_backups).min() else { return };
        for environment in scheduled {
            let every = environment.rehearse_backups.unwrap_or(LOOK);
            if failed.get(&environment.key).is_some_and(|at| at.elapsed() < PAUSE.min(every)) {
                continue;
            }
            match rehearse(&strong, &environment, every, &closing).await {
                Ok(()) => drop(failed.remove(&environment.key)),
                Err(error) => {
                    tracing::warn!(environment = %environment.key, %error, "a backup could not be rehearsed");
                    failed.insert(environment.key.clone(), Instant::now());
                }
            }
        }
        drop(strong);
        tokio::select! {
            () = tokio::time::sleep(LOOK.min(shortest)) => {}
            () = closing.cancelled() => return,
        }
    }
}

/// Rehearses the newest set of an environment, if that is due and nobody has its turn.
async fn rehearse(
    queue: &Queue,
    environment: &Environment,
    every: Duration,
    closing: &CancellationToken,
) -> Result<(), DataError> {
    let world: &World = &queue.world;
    let Some(set) = due(world, environment, every).await? else { return Ok(()) };
    let cancel = closing.child_token();
    let Some(_held) = world.holds.borrow(&environment.key, "a rehearsal of its backup", &cancel) else { return Ok(()) };
    let Some(_active) = queue.begin() else { return Ok(()) };
    tracing::info!(environment = %environment.key, set = set.name, "rehearsing a backup");
    let log = DeploymentLog::discard(world.config.redactor.clone()).section("backup");
    let job = Job { log, cancel };
    let request = VerifyRequest { environment: Some(environment), set: &set.path, depth: Depth::Restore, parts: &[] };
    let report = match data::verify_set(request, world.runtimes.reach(), &job).await {
        // Somebody wants the turn.
        Err(DataError::Cancelled) => return Ok(()),
        found => found?,
    };
    let report = rehearsed::keep(world, &environment.key, &set.path, report, false).await?;
    match report.ok {
        true => tracing::info!(environment = %environment.key, set = set.name, "the backup was rehearsed and is good"),
        false => tracing::error!(
            environment = %environment.key,
            set = set.name,
            problems = report.problems.join("; "),
            "THE BACKUP IS NOT GOOD: it could not be restored; take another one with `refit backup create`"
        ),
    }
    world.tick();
    Ok(())
}

/// The newest set, if none was tried out for `every`.
async fn due(world: &World, environment: &Environment, every: Duration) -> Result<Option<SetSummary>, DataError> {
    let (dir, key) = (world.config.server.backups_dir.clone(), environment.key.clone());
    let listed = tokio::task::spawn_blocking(move || data::list(&dir, &key)).await;
    let sets = listed.map_err(|e| DataError::Dump { why: e.to_string() })??;
    Ok(pick(sets, every, Timestamp::now()))
}

fn pick(sets: Vec<SetSummary>, every: Duration, now: Timestamp) -> Option<SetSummary> {
    let tried = sets.iter().filter_map(|set| set.verified.as_ref()).filter(|look| look.depth == Depth::Restore);
    let last = tried.map(|look| look.at).max();
    let over = |at: Timestamp| Duration::try_from(now.duration_since(at)).is_ok_and(|since| since >= every);
    if last.is_some_and(|at| !over(at)) {
        return None;
    }
    sets.into_iter().find(|set| set.state == SetState::Complete)
}
