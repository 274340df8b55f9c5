//! Which backup set has the data as a release left it, and whether it can be put back.
//!
//! It is the set that was taken by the first deployment that touched what the release had left: the one that replaced it, or one before
//! that whose migration went through before it failed.

use std::collections::BTreeSet;

use super::checks::Data;
use crate::{
    config::Environment,
    data::{self, DataError, Manifest, SetState},
    model::{DeploymentId, DeploymentView, Stage, StageStatus, Status},
    pipeline::World,
    registry::Release,
};

pub(super) async fn look(
    world: &World,
    environment: &Environment,
    target: &Release,
    restore: bool,
    history: &[DeploymentView],
) -> Data {
    let (dir, key) = (world.config.server.backups_dir.clone(), environment.key.clone());
    if !restore {
        if environment.backups.is_empty() {
            return Data::NotConfigured;
        }
        let newest = blocking(move || {
            let sets = data::list(&dir, &key)?;
            Ok(sets.into_iter().find(|set| set.state == SetState::Complete).map(|set| set.name))
        });
        return Data::Stays { newest: newest.await.ok().flatten() };
    }
    if environment.backups.is_empty() {
        return Data::NoSet("no [[backup]] is configured".to_owned());
    }
    let set = match set_after(target.deployment, history) {
        Ok(set) => set,
        Err(why) => return Data::NoSet(why),
    };
    let path = dir.join(&set);
    let verified = blocking(move || {
        let bytes = data::verify_checksums(&path)?.bytes;
        Ok((bytes, data::read_manifest(&path)?))
    });
    match verified.await {
        Ok((bytes, manifest)) => compare(set, bytes, &manifest, environment),
        Err(why) => Data::Damaged { set, why },
    }
}

fn compare(set: String, bytes: u64, manifest: &Manifest, environment: &Environment) -> Data {
    let held: BTreeSet<String> = manifest.parts.iter().map(|part| part.name.clone()).collect();
    let configured: BTreeSet<String> = environment.backups.iter().map(|backup| backup.name.to_string()).collect();
    let missing: Vec<String> = configured.difference(&held).cloned().collect();
    let unknown: Vec<String> = held.difference(&configured).cloned().collect();
    if missing.is_empty() && unknown.is_empty() {
        return Data::Good { set, bytes };
    }
    Data::Differs { set, missing, unknown }
}

/// The set with the newest data that `target` left; the error says why there is none.
fn set_after(target: DeploymentId, history: &[DeploymentView]) -> Result<String, String> {
    let came_back = |d: &&DeploymentView| {
        d.status == Status::Succeeded && d.rollback.as_ref().is_some_and(|rollback| rollback.to == target)
    };
    let since = history.iter().filter(came_back).map(|d| d.id).max().unwrap_or(target);
    let mut after: Vec<_> = history.iter().filter(|d| d.previous == Some(target) && d.id > since).collect();
    after.sort_by_key(|d| d.id);
    let migrated = |d: &DeploymentView| {
        let stage = d.stages.iter().find(|stage| stage.name == Stage::Migrate);
        stage.is_some_and(|s| !matches!(s.status, StageStatus::Pending | StageStatus::Skipped))
    };
    let Some(replaced) = after.into_iter().find(|d| d.status == Status::Succeeded || migrated(d)) else {
        return Err(format!("what replaced deployment {target} is not known any more"));
    };
    replaced.backup.clone().ok_or_else(|| format!("deployment {}, which came after it, took no backup", replaced.id))
}

/// The error is for people.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DataError> + Send + 'static,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(error) => Err(error.to_string()),
    }
}
