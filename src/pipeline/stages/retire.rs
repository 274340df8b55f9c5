//! After a success: releases beyond `rollback.keep` give their instance, artefact and kept environment back, and what builds and
//! tests left is cleared away.
//!
//! Not a stage: the deployment has ended well, and what goes wrong here is a line in the log, tried again after the next one.

use std::sync::Arc;

use super::build;
use crate::{
    config::Environment,
    pipeline::{World, kept},
    registry::Release,
};

/// Retires what is beyond `keep`. The live release and the one before it always stay.
pub async fn retire_old(world: &Arc<World>, environment: &Environment) {
    let keep = environment.rollback.keep.max(1) + 1;
    let releases = match world.registry.kept_releases(&environment.key).await {
        Ok(releases) => releases,
        Err(error) => return tracing::warn!(%error, "old releases cannot be listed"),
    };
    for release in releases.into_iter().skip(keep) {
        if let Err(why) = retire(world, environment, &release).await {
            tracing::warn!(deployment = release.deployment.0, why, "an old release could not be removed");
        }
    }
    if let Err(why) = build::clear(world, environment).await {
        tracing::warn!(environment = %environment.key, why, "what builds left could not be removed");
    }
}

async fn retire(world: &World, environment: &Environment, release: &Release) -> Result<(), String> {
    let runtime = world.runtimes.of(release.runtime);
    runtime.remove(&release.instance).await.map_err(|e| e.to_string())?;
    world.registry.retire(release.deployment).await.map_err(|e| e.to_string())?;
    if !world.registry.artefact_in_use(&release.artefact).await.map_err(|e| e.to_string())? {
        let freed = runtime.remove_artefact(&release.artefact).await.map_err(|e| e.to_string())?;
        tracing::info!(deployment = release.deployment.0, freed, "retired an old release");
    }
    kept::remove(world, &environment.key, release.deployment)
}
