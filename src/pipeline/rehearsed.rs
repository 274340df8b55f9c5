//! What a look at a backup found: kept beside the set, and told to people where the set was restored to try it (`registry::Rehearsed`).
//!
//! The message is written first. If the process dies between the two, the set counts as not tried out, so it is tried again; the registry knows then
//! that this set was told of.

use std::path::Path;

use super::World;
use crate::{
    data::{self, DataError, Depth, VerifiedPart, VerifyReport},
    model::EnvironmentKey,
    registry::Rehearsed,
};

/// Keeps a result, and has people told of it if it is news. `in_report`: the report of a deployment that fails because of it tells it as well.
///
/// # Errors
/// As [`data::keep_verification`]. A message that cannot be written is logged only.
pub async fn keep(
    world: &World,
    key: &EnvironmentKey,
    set: &Path,
    report: VerifyReport,
    in_report: bool,
) -> Result<VerifyReport, DataError> {
    if report.depth == Depth::Restore && (!report.ok || everything_was_restored(world, key, &report)) {
        let (set, problems) = (report.set.clone(), report.problems.clone());
        let found = Rehearsed::new(key.clone(), set, report.ok, problems).in_report(in_report);
        let news = world.registry.rehearsed(&found).await;
        world.faults.reach("rehearsal:told").await;
        match news {
            Ok(true) => world.tick(),
            Ok(false) => {}
            Err(error) => tracing::error!(environment = %key, %error, "nobody can be told what became of a backup"),
        }
    }
    data::keep_verification(set, report).await
}

/// Only then all is well again: of a new set some parts may be missing, or looked at no further than their checksums.
fn everything_was_restored(world: &World, key: &EnvironmentKey, report: &VerifyReport) -> bool {
    let restored =
        |part: &&VerifiedPart| part.checks.iter().any(|check| matches!(check.what.as_str(), "restore" | "rows"));
    let parts: Vec<&str> = report.parts.iter().filter(restored).map(|part| part.name.as_str()).collect();
    let environment = world.config.environments().find(|environment| environment.key == *key);
    environment
        .is_some_and(|environment| environment.backups.iter().all(|backup| parts.contains(&backup.name.as_str())))
}
