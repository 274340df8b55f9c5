//! Which backup set has the data as a release left it, and whether it can be put back.

use std::collections::BTreeSet;

use super::checks::Data;
use crate::{
    config::Environment,
    data::{self, DataError, Manifest, SetState},
    model::DeploymentView,
    pipeline::{World, needed::set_after},
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

/// The error is for people.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DataError> + Send + 'static,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(error) => Err(error.to_string()),
    }
}
