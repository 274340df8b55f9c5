//! Retention: at the end of a success, releases beyond `rollback.keep` give their instance, artefact and kept settings back, and what
//! builds and tests left is cleared away.
//!
//! Not a stage: the deployment is live and healthy by then, and what goes wrong here is a line in its log, tried again after the next
//! one. It runs just before the end is recorded, so that the reports can say what went and how much space that gave. [`pick`] alone decides what
//! may go. A release's row is marked last, once everything of it is gone: a process that dies in the middle leaves a release that
//! the next deployment takes up again.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use super::build;
use crate::{
    config::Environment,
    files::human_bytes,
    log::StageLog,
    model::DeploymentId,
    pipeline::{World, kept},
    registry::{RegistryError, Release},
};

/// All of it together: a deployment that is live is not kept open for longer by an engine that hangs.
const LIMIT: Duration = Duration::from_secs(60);

/// What the decision is made from; releases are named by their deployments.
#[derive(Debug, Clone)]
pub struct Ground {
    /// Those whose instance and artefact are still here.
    pub here: BTreeSet<DeploymentId>,
    /// What is live from now on.
    pub live: DeploymentId,
    /// What was live until now: the way back, or after a rollback the way forward again.
    pub previous: Option<DeploymentId>,
    /// What rollbacks that have not ended go to, and what a person needs who looks at a stuck deployment.
    pub held: BTreeSet<DeploymentId>,
    /// How many stay besides the live one, at least.
    pub keep: usize,
}

/// The releases that may go, the oldest first.
///
/// After a rollback the live release is not the newest one. Those that are newer stay as long as `keep` has room for them, and the one before it
/// stays in any case: it is where a rollback goes by default.
pub fn pick(ground: &Ground) -> Vec<DeploymentId> {
    let before = ground.here.range(..ground.live).next_back().copied();
    let fixed = [Some(ground.live), ground.previous, before].into_iter().flatten();
    let mut stay: BTreeSet<DeploymentId> = fixed.chain(ground.held.iter().copied()).collect();
    stay.retain(|id| ground.here.contains(id));
    let besides = stay.iter().filter(|id| **id != ground.live).count();
    let others: Vec<DeploymentId> = ground.here.difference(&stay).copied().collect();
    let room = ground.keep.saturating_sub(besides);
    others[..others.len().saturating_sub(room)].to_vec()
}

/// Retires what may go now that `live` is live, at the end of deployment `by`. Bytes that were given back by it, also before it was
/// interrupted; `None` where nothing went.
pub async fn retire_old(
    world: &Arc<World>,
    environment: &Environment,
    by: DeploymentId,
    live: DeploymentId,
    log: &StageLog,
) -> Option<u64> {
    let work = async {
        if let Err(error) = retire_all(world, environment, by, live, log).await {
            log.line(format!("warning: old releases cannot be listed: {error}"));
        }
        if let Err(why) = build::clear(world, environment, None).await {
            log.line(format!("warning: what builds left could not be removed: {why}"));
        }
    };
    if tokio::time::timeout(LIMIT, work).await.is_err() {
        log.line(format!(
            "warning: old releases are not all removed after {} s; the next deployment goes on",
            LIMIT.as_secs()
        ));
    }
    let gone = world.registry.retired_by(by).await.ok().filter(|gone| !gone.is_empty())?;
    Some(gone.iter().map(|(_, freed)| freed).sum())
}

async fn retire_all(
    world: &World,
    environment: &Environment,
    by: DeploymentId,
    live: DeploymentId,
    log: &StageLog,
) -> Result<(), RegistryError> {
    let (registry, key) = (&world.registry, &environment.key);
    let releases = registry.kept_releases(key).await?;
    let mut held: BTreeSet<DeploymentId> = registry.rollback_targets(key).await?.into_iter().collect();
    held.extend(registry.looked_at(key).await?);
    let ground = Ground {
        here: releases.iter().map(|release| release.deployment).chain([live]).collect(),
        live,
        previous: registry.live(key).await?.map(|release| release.deployment),
        held,
        keep: environment.rollback.keep,
    };
    for id in pick(&ground) {
        let Some(release) = releases.iter().find(|release| release.deployment == id) else { continue };
        match retire(world, environment, release, by).await {
            Ok(freed) => log.line(format!("removed the release of deployment {id}, {} given back", human_bytes(freed))),
            Err(why) => log.line(format!("warning: the release of deployment {id} could not be removed: {why}")),
        }
    }
    Ok(())
}

async fn retire(world: &World, environment: &Environment, release: &Release, by: DeploymentId) -> Result<u64, String> {
    let runtime = world.runtimes.of(release.runtime);
    // It may still run: kept warm, or because it could not be stopped when it was replaced. It is not cut off.
    let stopped = runtime.stop(&release.instance, environment.start.stop_timeout).await;
    stopped.map_err(|e| e.to_string())?;
    let mut freed = runtime.size(&release.instance).await.map_err(|e| e.to_string())?;
    runtime.remove(&release.instance).await.map_err(|e| e.to_string())?;
    let needed = world.registry.artefact_in_use(&release.artefact, Some(release.deployment)).await;
    if !needed.map_err(|e| e.to_string())? {
        freed += runtime.remove_artefact(&release.artefact).await.map_err(|e| e.to_string())?;
    }
    kept::remove(world, &environment.key, release.deployment)?;
    world.registry.retire(release.deployment, by, freed).await.map_err(|e| e.to_string())?;
    Ok(freed)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::btree_set, prelude::*};

    use super::*;

    fn ids(ids: impl IntoIterator<Item = i64>) -> BTreeSet<DeploymentId> {
        ids.into_iter().map(DeploymentId).collect()
    }

    fn ground(here: impl IntoIterator<Item = i64>, live: i64, previous: i64, keep: usize) -> Ground {
        let previous = Some(DeploymentId(previous));
        Ground { here: ids(here), live: DeploymentId(live), previous, held: BTreeSet::new(), keep }
    }

    fn picked(ground: &Ground) -> Vec<i64> {
        pick(ground).into_iter().map(|id| id.0).collect()
    }

    #[test]
    fn keep_releases_besides_the_live_one_stay() {
        assert_eq!(picked(&ground(1..=6, 6, 5, 2)), [1, 2, 3]);
        assert_eq!(picked(&ground(1..=6, 6, 5, 5)), [] as [i64; 0]);
        assert_eq!(picked(&ground([6], 6, 5, 1)), [] as [i64; 0]);
    }

    #[test]
    fn after_a_rollback_the_ways_back_and_forward_stay() {
        // From 6 to 3: 2 is the default way back, 6 is what `--undo` goes to; the newest of the others have what room is left.
        assert_eq!(picked(&ground(1..=6, 3, 6, 1)), [1, 4, 5]);
        assert_eq!(picked(&ground(1..=6, 3, 6, 3)), [1, 4]);
        // And on from 5 to 3 after that: 6 is neither.
        assert_eq!(picked(&ground(1..=6, 3, 5, 2)), [1, 4, 6]);
        // Forward by a push: what was live stays, and so does the release before, which is newer than that.
        assert_eq!(picked(&ground(1..=7, 7, 3, 2)), [1, 2, 4, 5]);
    }

    #[test]
    fn what_is_held_stays_and_takes_room() {
        let mut ground = ground(1..=6, 6, 5, 3);
        ground.held = ids([1, 2, 99]);
        assert_eq!(picked(&ground), [3, 4]);
        ground.keep = 4;
        assert_eq!(picked(&ground), [3]);
    }

    proptest! {
        #[test]
        fn nothing_that_somebody_needs_is_ever_picked(
            here in btree_set(1_i64..40, 1..25),
            held in btree_set(1_i64..40, 0..6),
            live in any::<prop::sample::Index>(),
            previous in prop::option::of(1_i64..40),
            keep in 0_usize..12,
        ) {
            let live = DeploymentId(*here.iter().nth(live.index(here.len())).unwrap());
            let previous = previous.map(DeploymentId);
            let mut ground = Ground { here: ids(here), live, previous, held: ids(held), keep };
            let gone = pick(&ground);
            let before = ground.here.iter().rev().find(|id| **id < live);
            for id in &gone {
                prop_assert!(ground.here.contains(id) && *id != live && Some(*id) != previous && Some(id) != before);
                prop_assert!(!ground.held.contains(id));
            }
            prop_assert!(gone.is_sorted());
            let stay = ground.here.len() - gone.len() - 1;
            prop_assert!(gone.is_empty() || stay >= keep, "{stay} stay");
            // Done in the middle, or done twice: the same ones go.
            ground.here.retain(|id| gone.first() != Some(id));
            prop_assert_eq!(pick(&ground), gone.get(1..).unwrap_or_default());
            ground.here.retain(|id| !gone.contains(id));
            prop_assert_eq!(pick(&ground), []);
        }
    }
}
