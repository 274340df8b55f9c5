//! What a look at a backup found: kept beside the set, and told to people where the set was restored to try it (`registry::Rehearsed`).
//!
//! The message is written first. If the process dies between the two, the set counts as not tried out, so it is tried again; the registry knows then
//! that this set was told of.

use std::path::Path;

use super::World;
use crate::{
    data::{self, DataError, Depth, VerifyReport},
    model::EnvironmentKey,
    registry::Rehearsed,
};

/// Keeps a result, and has people told of it if it is news.
///
/// # Errors
/// As [`data::keep_verification`]. A message that cannot be written is logged only.
pub async fn keep(
    world: &World,
    key: &EnvironmentKey,
    set: &Path,
    report: VerifyReport,
) -> Result<VerifyReport, DataError> {
    if report.depth == Depth::Restore {
        let found = Rehearsed::new(key.clone(), report.set.clone(), report.ok, report.problems.clone());
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
