//! Backups: a *set* of dumps taken before a deployment changes anything, kept on disk with what is needed to trust it later.
//!
//! A set is one directory, `<backups>/<app>/<environment>/<YYYY-MM-DD_HH-MM-SS>/` (UTC; a second set of the same second
//! gets `-2`), with one file a *part* (a configured `[[backup]]`) and a `manifest.json` that names each file with
//! its size and SHA-256. Directories are 0700 and files 0600: a dump holds everything that the database does.
//!
//! The manifest is written last, after every part has been flushed to the disk, and appears atomically. Hence the one rule for readers:
//! **a directory without a manifest is no backup**, but the remains of a run that did not finish. [`prune`] clears those away.
//!
//! A part streams from its source through compression and hashing to the file, a chunk at a time. It counts only if the
//! source said it succeeded *and* the dump is whole by its own signs (see `postgres.rs` and `sqlite.rs`). A part that fails takes its
//! file with it and is reported; the others go on, unless it was `required`, or every part failed: then no set stays. A
//! cancelled or dropped [`create_set`] leaves nothing behind, neither files nor commands in containers.
//!
//! [`restore_set`] puts a set back; how is told in `restore.rs`. [`verify_set`] says whether it could: `verify.rs`.
//!
//! Listing, pruning and verifying read the disk and block: call them off the event loop (`spawn_blocking`).

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    config::{Backup, Environment},
    model::{CommitId, DeploymentId, EnvironmentKey, Name},
    runtime::{Job, RuntimeError},
};

mod archive;
mod check;
mod command;
mod files;
mod kind;
mod layout;
mod manifest;
mod mysql;
mod part;
mod postgres;
mod present;
mod progress;
mod restore;
mod retention;
mod sqlite;
mod sweep;
#[cfg(test)]
mod tests;
mod tools;
mod tree;
mod trust;
mod unpack;
mod url;
mod verify;
mod volume;

use kind::kind_of;

pub use archive::Listing;
pub use check::check_data;
pub use kind::{Check, Reach, TableCount};
pub use layout::SetName;
pub use manifest::{
    MANIFEST, Manifest, Part, PartFormat, PartKind, PartSource, RolesFile, SetContext, SetRelease, TableRows, Verified,
    read_manifest, verify_checksums,
};
pub use present::present;
pub use restore::{
    Left, RestoreReport, RestoreRequest, RestoredPart, SkippedPart, discard_restore_leftovers, restore_set,
};
pub use retention::{
    Pruned, SetState, SetSummary, discard_incomplete, expired, find_set, last_copies, list, prune, remove_set,
    which_set,
};
pub use sqlite::make_example_database;
pub use sweep::sweep_leftovers;
pub use tree::Tree;
pub use trust::{LastLook, keep as keep_verification, verify_new};
pub use verify::{
    Depth, VERIFICATION, VerifiedPart, VerifyReport, VerifyRequest, last_verification, record_verification, verify_set,
};

/// How long a part that is out of time may take to end its command and tidy up.
const WIND_UP: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("cancelled")]
    Cancelled,
    #[error("no space left on {} while {doing}: free some space, or set `server.backups_dir` to a larger disk", place.display())]
    NoSpace { place: PathBuf, doing: String },
    #[error("{operation} {}: {source}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("dumping `{part}` took longer than {limit:?} and was stopped")]
    TimedOut { part: String, limit: Duration },
    /// The source could not be dumped, or what it gave is not a whole dump; `why` is fit for people.
    #[error("{why}")]
    Dump { why: String },
    #[error("{} is not a manifest that this version can read: {why}", path.display())]
    Manifest { path: PathBuf, why: String },
    /// The set is not what was written: each problem names a file.
    #[error("backup {} is damaged: {}", set.display(), problems.join("; "))]
    Damaged { set: PathBuf, problems: Vec<String> },
    /// There is no such set; `known` are those there are, newest first.
    #[error("there is no backup `{}`; {}", name.escape_default(), there_are(known))]
    NoSet { name: String, known: Vec<String> },
    /// The set cannot be used for what it was asked for.
    #[error("backup {} cannot be restored: {why}", set.display())]
    Unfit { set: PathBuf, why: String },
    #[error(
        "the backup was not ready to take the data's place after {limit:?}, four times the longest `timeout` of its parts; no data was changed"
    )]
    RestoreTimedOut { limit: Duration },
    /// One part failed; no other was put back either, unless `left` says so.
    #[error("`{part}` was not put back into {place}: {why}; {left}")]
    Restore { part: String, place: String, why: String, left: Left },
}

fn there_are(known: &[String]) -> String {
    const SHOWN: usize = 5;
    match known {
        [] => "there are none of this environment".to_owned(),
        few if few.len() <= SHOWN => format!("there are {}", few.join(", ")),
        many => format!("the newest are {}", many[..SHOWN].join(", ")),
    }
}

impl DataError {
    fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::NoSpace { place: path, doing: operation.to_owned() }
            }
            _ => Self::Io { operation, path, source },
        }
    }

    /// Whether a restore that ended with this left every database as it was.
    pub fn left_data_alone(&self) -> bool {
        !matches!(self, Self::Restore { left: Left::Partly { .. }, .. })
    }

    fn dump(why: impl Into<String>) -> Self {
        Self::Dump { why: why.into() }
    }
}

impl From<RuntimeError> for DataError {
    fn from(error: RuntimeError) -> Self {
        match error {
            RuntimeError::Cancelled => Self::Cancelled,
            other => Self::dump(other.to_string()),
        }
    }
}

/// What to back up, and why.
#[derive(Debug, Clone, Copy)]
pub struct SetRequest<'a> {
    pub environment: &'a Environment,
    /// Only these parts; all where empty. The set says that the others are missing, so that retention keeps their last copy.
    pub parts: &'a [Name],
    /// None for a backup by hand.
    pub deployment: Option<DeploymentId>,
    /// The commit that is about to be deployed.
    pub commit: Option<&'a CommitId>,
    /// For people: `before deployment 7`.
    pub reason: &'a str,
    pub backups_dir: &'a Path,
    pub context: &'a SetContext,
}

impl SetRequest<'_> {
    fn wants(&self, backup: &Backup) -> bool {
        self.parts.is_empty() || self.parts.contains(&backup.name)
    }
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BackupReport {
    /// `<app>/<environment>/<set>`, relative to the backups directory. `None`: there is no set, because nothing is
    /// configured, everything failed, or something required did.
    pub set: Option<String>,
    pub parts: Vec<Part>,
    pub failures: Vec<PartFailure>,
    /// Of all files, compressed.
    pub bytes: u64,
}

impl BackupReport {
    /// A required part failed: the deployment may not go on.
    pub fn is_failure(&self) -> bool {
        self.failures.iter().any(|f| f.required)
    }
}

/// A part that could not be backed up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartFailure {
    pub name: String,
    /// Fit for people, secrets masked.
    pub error: String,
    pub required: bool,
}

/// Takes a set of everything the environment's configuration names. What is out of `reach` fails and says so.
///
/// # Errors
/// Only what concerns the set as a whole: it was cancelled, its directory cannot be made, its manifest cannot be written.
/// What concerns one part is in the report.
pub async fn create_set(request: SetRequest<'_>, reach: Reach<'_>, job: &Job) -> Result<BackupReport, DataError> {
    let environment = request.environment;
    let mut report = BackupReport::default();
    if environment.backups.is_empty() {
        return Ok(report);
    }
    let created_at = Timestamp::now();
    let usual = retention::last_sizes(request.backups_dir, &environment.key);
    let set = layout::NewSet::create(request.backups_dir, &environment.key, created_at)?;
    for backup in environment.backups.iter().filter(|backup| request.wants(backup)) {
        if job.cancel.is_cancelled() {
            return Err(DataError::Cancelled);
        }
        job.log.line(format!("dumping `{}`: {}", backup.name, kind::place(&backup.source)));
        match dump_part(backup, usual.get(backup.name.as_str()).copied(), &set, &environment.key, reach, job).await {
            Ok(part) => {
                job.log.line(format!("dumped `{}`: {} in {}", part.name, part::size(part.bytes), part.file));
                report.parts.push(part);
            }
            Err(DataError::Cancelled) => return Err(DataError::Cancelled),
            Err(error) => {
                let error = job.log.redactor().mask(&error.to_string());
                job.log.line(format!("`{}` was not backed up: {error}", backup.name));
                report.failures.push(PartFailure { name: backup.name.to_string(), error, required: backup.required });
                if backup.required {
                    break;
                }
            }
        }
    }
    if report.parts.is_empty() || report.is_failure() {
        report.parts.clear();
        return Ok(report);
    }
    report.bytes = report.parts.iter().map(Part::size).sum();
    let manifest = Manifest::new(&request, created_at, &report);
    manifest.write(set.dir())?;
    let name = set.keep();
    report.set = Some(format!("{}/{}/{name}", environment.key.app, environment.key.environment));
    Ok(report)
}

/// Dumps one part within its time, telling how far it is (`usual`: the size that it had the last time, uncompressed); what it wrote is removed if it fails.
async fn dump_part(
    backup: &Backup,
    usual: Option<u64>,
    set: &layout::NewSet,
    key: &EnvironmentKey,
    reach: Reach<'_>,
    job: &Job,
) -> Result<Part, DataError> {
    let cancel = job.cancel.child_token();
    let job = &Job { log: job.log.clone(), cancel: cancel.clone() };
    let meter = Arc::new(part::Meter::default());
    let begun = Instant::now();
    let place = part::Place { dir: set.dir(), meter: &meter, key };
    let mut work = kind_of(PartKind::of(&backup.source)).dump(backup, &place, reach, job);
    let mut deadline = Box::pin(tokio::time::sleep(backup.timeout));
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + progress::EVERY, progress::EVERY);
    let result = loop {
        tokio::select! {
            result = &mut work => break result,
            _ = ticks.tick() => job.log.line(meter.progress(backup.name.as_str(), begun.elapsed(), usual)),
            () = &mut deadline => {
                cancel.cancel();
                // A dump that does not wind up in time is dropped, which ends it in the background.
                let _ = tokio::time::timeout(WIND_UP, &mut work).await;
                break Err(DataError::TimedOut { part: backup.name.to_string(), limit: backup.timeout });
            }
        }
    };
    drop(work);
    result.map(|part| Part { duration_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX), ..part })
}
