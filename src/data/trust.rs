//! A set that was just made is looked at as far as its configuration asks (`verify`); what a look found is kept beside the set.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{DataError, Depth, Reach, VerifyReport, VerifyRequest, last_verification, record_verification, verify_set};
use crate::{
    config::{Environment, VerifyBackup},
    model::Name,
    runtime::Job,
};

/// What the last look at a set found, in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastLook {
    pub at: jiff::Timestamp,
    pub depth: Depth,
    pub ok: bool,
    /// Names of the parts that are not good.
    pub bad: Vec<String>,
    pub problems: Vec<String>,
}

impl LastLook {
    pub(super) fn of(set: &Path) -> Option<Self> {
        let VerifyReport { at, depth, ok, parts, problems, .. } = last_verification(set)?;
        let bad = parts.into_iter().filter(|part| !part.ok).map(|part| part.name).collect();
        Some(Self { at, depth, ok, bad, problems })
    }
}

/// Verifies a new set: each part as far as its `verify` says. `None` where nothing is to be verified. The caller keeps what was found ([`keep`]).
///
/// # Errors
/// As [`verify_set`].
pub async fn verify_new(
    environment: &Environment,
    set: &Path,
    reach: Reach<'_>,
    job: &Job,
) -> Result<Option<VerifyReport>, DataError> {
    let mut all: Option<VerifyReport> = None;
    for (wanted, depth) in [(VerifyBackup::Checksums, Depth::Checksums), (VerifyBackup::Restore, Depth::Restore)] {
        let of = |backup: &&crate::config::Backup| backup.verify == wanted;
        let parts: Vec<Name> = environment.backups.iter().filter(of).map(|backup| backup.name.clone()).collect();
        if parts.is_empty() {
            continue;
        }
        let request = VerifyRequest { environment: Some(environment), set, depth, parts: &parts };
        let found = verify_set(request, reach, job).await?;
        all = Some(match all {
            None => found,
            Some(before) => VerifyReport {
                ok: before.ok && found.ok,
                parts: before.parts.into_iter().chain(found.parts).collect(),
                problems: before.problems.into_iter().chain(found.problems).collect(),
                ..found
            },
        });
    }
    Ok(all)
}

/// Keeps a result beside the set. One that found nothing wrong does not take the place of one that looked further and found nothing either.
///
/// # Errors
/// As [`record_verification`].
pub async fn keep(set: &Path, report: VerifyReport) -> Result<VerifyReport, DataError> {
    let dir = set.to_owned();
    let keeping = move || {
        let further = |last: &VerifyReport| last.ok && report.ok && last.depth > report.depth;
        if !last_verification(&dir).as_ref().is_some_and(further) {
            record_verification(&dir, &report)?;
        }
        Ok(report)
    };
    let kept = tokio::task::spawn_blocking(keeping).await;
    kept.map_err(|e| DataError::dump(format!("keeping the result was interrupted: {e}")))?
}
