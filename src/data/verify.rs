//! Whether a set can be trusted: the further one looks, the more one knows.
//!
//! | depth | what it shows | what it costs |
//! |---|---|---|
//! | checksums | every file is what was written | reading the files |
//! | catalogue | the dump is whole by its own signs, and holds the rows that were counted when it was made | unpacking them |
//! | restore | it can be put back: it was, into something that was thrown away again, and each table had its rows | a restore |
//!
//! A part that fails at one depth is not looked at further, the other parts are. A report is a result, also where it says that the set is damaged;
//! an error means that there is no result.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    Check, DataError, Manifest, Part, PartKind, Reach, TableCount, TableRows, WIND_UP,
    kind::{Stored, kind_of},
    manifest, part,
    progress::{Reading, SetDir},
    read_manifest,
    restore::LONGER_THAN_DUMPING,
};
use crate::{
    config::{Backup, Environment},
    files,
    model::{EnvironmentKey, Name},
    runtime::Job,
};

/// The last result, beside the manifest; no part of the set.
pub const VERIFICATION: &str = "verified.json";

/// For dumping a part of which no configuration says how long it may take.
const UNKNOWN_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// A result is a few kilobytes.
const MOST_BYTES: u64 = 4 * 1024 * 1024;

/// How far to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Depth {
    Checksums,
    Catalogue,
    Restore,
}

#[derive(Debug, Clone, Copy)]
pub struct VerifyRequest<'a> {
    /// Says how long parts may take, and where a server of the right version is. Without it what the set itself recorded has to do.
    pub environment: Option<&'a Environment>,
    /// The set's directory: [`super::which_set`] finds it.
    pub set: &'a Path,
    pub depth: Depth,
    /// Only these parts; all where empty.
    pub parts: &'a [Name],
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// The set's name.
    pub set: String,
    pub depth: Depth,
    /// When it was begun.
    pub at: Timestamp,
    /// There is no problem.
    pub ok: bool,
    pub parts: Vec<VerifiedPart>,
    /// For people: what is wrong, each with the part's name.
    pub problems: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedPart {
    pub name: String,
    pub kind: PartKind,
    pub ok: bool,
    /// In the order in which they were made; the last one is the one that failed.
    pub checks: Vec<Check>,
    /// What was found in the restored part.
    pub tables: Vec<TableCount>,
    pub duration_ms: u64,
}

/// Verifies a set. Changes nothing in it, nor in any source.
///
/// # Errors
/// [`DataError::Cancelled`]; [`DataError::Io`] where there is no manifest to read.
pub async fn verify_set(request: VerifyRequest<'_>, reach: Reach<'_>, job: &Job) -> Result<VerifyReport, DataError> {
    let set = request.set.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut report = VerifyReport {
        set,
        depth: request.depth,
        at: Timestamp::now(),
        ok: false,
        parts: Vec::new(),
        problems: Vec::new(),
    };
    let manifest = match blocking(request.set, read_manifest).await {
        Ok(manifest) => manifest,
        Err(error @ DataError::Manifest { .. }) => {
            report.problems.push(error.to_string());
            return Ok(report);
        }
        Err(error) => return Err(error),
    };
    if request.depth == Depth::Restore
        && let Some(scratch) = reach.scratch
    {
        // What a verification that was killed left running.
        let swept = scratch.sweep_scratch(&key(&manifest)).await.unwrap_or_default();
        swept.iter().for_each(|name| job.log.line(format!("removed {name}, which an earlier look had left")));
    }
    let wanted = |part: &&Part| request.parts.is_empty() || request.parts.iter().any(|p| p.as_str() == part.name);
    for part in manifest.parts.iter().filter(wanted) {
        let verified = verify_part(&request, &manifest, part, reach, job).await?;
        let bad = verified.checks.iter().filter(|check| !check.ok);
        report.problems.extend(bad.map(|check| format!("`{}`: {}: {}", part.name, check.what, check.detail)));
        report.parts.push(verified);
    }
    report.ok = report.problems.is_empty();
    Ok(report)
}

async fn verify_part(
    request: &VerifyRequest<'_>,
    manifest: &Manifest,
    part: &Part,
    reach: Reach<'_>,
    job: &Job,
) -> Result<VerifiedPart, DataError> {
    let begun = Instant::now();
    job.log.line(format!("verifying `{}`: {}", part.name, part::size(part.bytes)));
    let key = key(manifest);
    let backup = request.environment.and_then(|environment| source_of(part, environment));
    let (meter, what) = (Arc::default(), format!("verifying `{}`", part.name));
    let set = SetDir { path: request.set, meter: &meter };
    let stored = Stored { part, set, key: &key, backup };
    let reading = Reading { what: &what, total: part.size(), meter: &meter };
    let mut checks = vec![reading.told(job, checksum(set, part, job)).await?];
    let mut tables = Vec::new();
    if all_good(&checks) && request.depth >= Depth::Catalogue {
        let work = |job: Job| async move { kind_of(part.kind).catalogue(stored, &job).await };
        let reading = Reading { total: part.bytes, ..reading };
        match reading.told(job, within(limit(backup), job, work)).await {
            Ok(found) => checks.extend(found),
            Err(error) => checks.push(failed("catalogue", error, job)?),
        }
    }
    if all_good(&checks) && request.depth >= Depth::Restore {
        let work = |job: Job| async move { kind_of(part.kind).rehearse(stored, reach, &job).await };
        let what = format!("trying `{}` out", part.name);
        let reading = Reading { what: &what, total: part.bytes, ..reading };
        match reading.told(job, within(limit(backup), job, work)).await {
            Ok(found) => {
                tables = compare(&part.tables, found, &mut checks);
            }
            Err(error) => checks.push(failed("restore", error, job)?),
        }
    }
    let ok = all_good(&checks);
    job.log.line(format!("`{}` is {}", part.name, if ok { "good" } else { "not good" }));
    let duration_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(VerifiedPart { name: part.name.clone(), kind: part.kind, ok, checks, tables, duration_ms })
}

fn key(manifest: &Manifest) -> EnvironmentKey {
    EnvironmentKey { app: manifest.app.clone(), environment: manifest.environment.clone() }
}

fn source_of<'e>(part: &Part, environment: &'e Environment) -> Option<&'e Backup> {
    let same = |backup: &&Backup| backup.name.as_str() == part.name && PartKind::of(&backup.source) == part.kind;
    environment.backups.iter().find(same)
}

fn all_good(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.ok)
}

fn limit(backup: Option<&Backup>) -> Duration {
    backup.map_or(UNKNOWN_TIMEOUT, |backup| backup.timeout).saturating_mul(LONGER_THAN_DUMPING)
}

/// An error as a check that failed; a job that was cancelled has no result.
fn failed(what: &str, error: DataError, job: &Job) -> Result<Check, DataError> {
    match error {
        DataError::Cancelled => Err(DataError::Cancelled),
        error => Ok(Check::bad(what, job.log.redactor().mask(&error.to_string()))),
    }
}

async fn checksum(set: SetDir<'_>, part: &Part, job: &Job) -> Result<Check, DataError> {
    const WHAT: &str = "SHA-256";
    let (cancel, part, meter) = (job.cancel.clone(), part.clone(), Arc::clone(set.meter));
    let problem = blocking(set.path, move |set| manifest::problem(set, &part, &meter, &cancel)).await?;
    Ok(problem.map_or_else(|| Check::good(WHAT, "as recorded"), |why| Check::bad(WHAT, why)))
}

/// Ends what takes longer than `limit`.
async fn within<T, F>(limit: Duration, job: &Job, work: impl FnOnce(Job) -> F) -> Result<T, DataError>
where
    F: Future<Output = Result<T, DataError>> + Send,
{
    let inner = Job { log: job.log.clone(), cancel: job.cancel.child_token() };
    let cancel = inner.cancel.clone();
    let mut work = Box::pin(work(inner));
    tokio::select! {
        done = &mut work => done,
        () = tokio::time::sleep(limit) => {
            cancel.cancel();
            // What does not wind up in time is dropped, which ends it in the background.
            let _ = tokio::time::timeout(WIND_UP, &mut work).await;
            Err(DataError::dump(format!("it took longer than {limit:?}, four times the part's `timeout`, and was stopped")))
        }
    }
}

/// Holds what was found to what was noted.
fn compare(noted: &[TableRows], found: Vec<TableRows>, checks: &mut Vec<Check>) -> Vec<TableCount> {
    const WHAT: &str = "rows";
    /// Differences that are told.
    const SHOWN: usize = 5;
    let expected = |name: &str| noted.iter().find(|table| table.name == name).map(|table| table.rows);
    let tables: Vec<TableCount> = found
        .into_iter()
        .map(|table| TableCount { expected: expected(&table.name), name: table.name, found: table.rows })
        .collect();
    let differs = |table: &&TableCount| table.expected.is_some_and(|expected| expected != table.found);
    let mut wrong: Vec<String> = tables
        .iter()
        .filter(differs)
        .map(|t| format!("{} has {} rows and should have {}", t.name, t.found, t.expected.unwrap_or_default()))
        .collect();
    let missing = noted.iter().filter(|table| !tables.iter().any(|found| found.name == table.name));
    wrong.extend(missing.map(|table| format!("{} is missing", table.name)));
    let rows: u64 = tables.iter().map(|table| table.found).sum();
    checks.push(match wrong.len() {
        0 if noted.is_empty() && tables.is_empty() => Check::good("restore", "it was put back, and thrown away again"),
        0 if noted.is_empty() => {
            Check::good(WHAT, format!("{} tables, {rows} rows; none were counted when it was made", tables.len()))
        }
        0 => Check::good(WHAT, format!("{} tables, {rows} rows, as counted when it was made", tables.len())),
        more if more > SHOWN => Check::bad(WHAT, format!("{}, and {} more", wrong[..SHOWN].join("; "), more - SHOWN)),
        _ => Check::bad(WHAT, wrong.join("; ")),
    });
    tables
}

async fn blocking<T: Send + 'static>(
    set: &Path,
    work: impl FnOnce(&Path) -> Result<T, DataError> + Send + 'static,
) -> Result<T, DataError> {
    let set: PathBuf = set.to_owned();
    let done = tokio::task::spawn_blocking(move || work(&set)).await;
    done.map_err(|e| DataError::dump(format!("verifying was interrupted: {e}")))?
}

/// Keeps a result beside the set's manifest, in place of an earlier one. Blocks.
///
/// # Errors
/// [`DataError::Io`], [`DataError::NoSpace`].
pub fn record_verification(set: &Path, report: &VerifyReport) -> Result<(), DataError> {
    let path = set.join(VERIFICATION);
    let text = serde_json::to_vec_pretty(report).map_err(|e| DataError::io("writing", &path)(e.into()))?;
    files::write_atomically(&path, &text, 0o600).map_err(DataError::io("writing", &path))
}

/// The result that was kept last; `None` where there is none that can be read. Blocks.
pub fn last_verification(set: &Path) -> Option<VerifyReport> {
    use std::io::Read;
    let mut text = Vec::new();
    manifest::open_plain(&set.join(VERIFICATION)).ok()?.take(MOST_BYTES).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}
