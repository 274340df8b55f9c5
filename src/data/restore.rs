//! Putting a set back: what the databases held when it was taken replaces what they hold now.
//!
//! Two rules shape everything here.
//!
//! **Nothing is touched before everything is known to be good.** First the manifest and every checksum of the set are verified. Then
//! each part is brought to the point where one small step is left: a PostgreSQL dump is loaded in a transaction that stays open
//! (`postgres.rs`), a SQLite database is unpacked and checked beside the one it will replace, which is held locked (`sqlite.rs`). Each part
//! says so at the [`Gate`]; when all have, it opens, and all take that step: `COMMIT`, and a rename. A part that fails, a job that is
//! cancelled, or time that runs out before that leaves every database as it was.
//!
//! **A killed Refit leaves the old data or the new, never half of it.** A transaction whose `COMMIT` never came is rolled back by the server; a file that
//! was never renamed is found by its name and removed by the next call, or by [`discard_restore_leftovers`]. Between
//! the first and the last of several parts' steps lie milliseconds; an end just there leaves some parts new, some old, each whole. Doing it again puts
//! that right: a restore done twice gives the same world.
//!
//! **What cannot be undone comes last.** A command's restore changes its data at once, whatever happens then. So it is run when every other part is
//! ready and before any has taken its last step: if it fails, nothing else is changed, and the error says that its own data may be.
//!
//! What is read is bounded by the size that the manifest recorded and hashed once more on the way, so that a file exchanged after the
//! verification is not committed either.
//!
//! The app must be stopped: its connections to a PostgreSQL database are ended, and a SQLite database that is open in WAL mode elsewhere
//! is refused.

use std::{
    fmt,
    future::Future,
    path::{Path, PathBuf},
    pin::{Pin, pin},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    DataError, Manifest, Part, PartKind, Reach, WIND_UP,
    kind::{self, kind_of},
    manifest, part,
    progress::{ReadMeter, Reading, SetDir},
    read_manifest,
};
use crate::{
    config::{Backup, BackupSource, Environment},
    model::{EnvironmentKey, Name},
    runtime::Job,
};

pub(super) mod postgres;
pub(super) mod sqlite;

/// Times a part's `timeout`, which is for dumping it: loading builds the indexes too.
pub(super) const LONGER_THAN_DUMPING: u32 = 4;

/// How long the last step may take once it was begun. A server that waits for an absent standby never answers a `COMMIT`.
const LAST_STEP: Duration = Duration::from_secs(120);

/// What to put back, and where.
#[derive(Debug, Clone, Copy)]
pub struct RestoreRequest<'a> {
    /// Says where the databases are *now*; of the set's own record only the names and kinds of parts count.
    pub environment: &'a Environment,
    /// The set's directory: [`super::which_set`] finds it.
    pub set: &'a Path,
    /// Only these parts; all where empty.
    pub parts: &'a [Name],
}

/// What was put back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreReport {
    /// The set's name.
    pub set: String,
    /// In the order of the set.
    pub restored: Vec<RestoredPart>,
    /// Parts of the set that were left alone, with the reason.
    pub skipped: Vec<SkippedPart>,
    /// Sources in the configuration that the set holds nothing of: their data is as it was.
    pub absent: Vec<String>,
    /// Of all restored files, compressed.
    pub bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoredPart {
    pub name: String,
    pub kind: PartKind,
    /// For people: ``PostgreSQL database `guestbook` in container `db` ``.
    pub place: String,
    /// Of the file, compressed.
    pub bytes: u64,
    /// Of a directory or a volume: files, directories and links.
    pub tables: u64,
    /// PostgreSQL: rows loaded.
    pub rows: Option<u64>,
    /// What a person should know: a damaged database was set aside, and where.
    pub note: Option<String>,
    pub duration_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedPart {
    pub name: String,
    pub why: String,
}

/// What an attempt that failed left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Left {
    /// Every database is as it was.
    Old,
    /// The last step was begun: these parts are new, others are old, or it is not known (the engine went away just then). Each is
    /// whole.
    Partly { done: Vec<String> },
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Old => f.write_str("no data was changed"),
            Self::Partly { done } if done.is_empty() => {
                f.write_str("whether the data was changed is not known; restore it again")
            }
            Self::Partly { done } => write!(f, "`{}` was put back already; restore it again", done.join("`, `")),
        }
    }
}

/// Puts back every part of a set that the environment's configuration still has a source for. With the app stopped. Not
/// two at a time for one environment.
///
/// # Errors
/// [`DataError::Manifest`], [`DataError::Damaged`], [`DataError::Unfit`], [`DataError::Io`]: found before anything was done.
/// [`DataError::Cancelled`], [`DataError::RestoreTimedOut`]: undone, no data was changed. [`DataError::Restore`] says itself what it left.
pub async fn restore_set(request: RestoreRequest<'_>, reach: Reach<'_>, job: &Job) -> Result<RestoreReport, DataError> {
    let manifest = verified(request.set, job).await?;
    discard_restore_leftovers(request.environment)?;
    let plan = Plan::make(&request, &manifest)?;
    let set = request.set.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let restored = carry_out(&plan, &request, reach, job).await?;
    Ok(RestoreReport {
        set,
        bytes: restored.iter().map(|p| p.bytes).sum(),
        restored,
        skipped: plan.skipped,
        absent: plan.absent,
    })
}

/// Removes what a restore that was killed left beside databases of this environment. What was removed.
///
/// # Errors
/// [`DataError::Io`] for the first file that cannot be removed.
pub fn discard_restore_leftovers(environment: &Environment) -> Result<Vec<PathBuf>, DataError> {
    let mut removed = Vec::new();
    for backup in &environment.backups {
        removed.extend(kind_of(PartKind::of(&backup.source)).discard_leftovers(&backup.source)?);
    }
    Ok(removed)
}

async fn verified(set: &Path, job: &Job) -> Result<Manifest, DataError> {
    job.log.line(format!("verifying backup {}", set.display()));
    let dir = set.to_owned();
    let (manifest, meter) = (read_manifest(set)?, Arc::<ReadMeter>::default());
    let total = manifest.parts.iter().map(Part::size).sum();
    let (counted, cancel) = (Arc::clone(&meter), job.cancel.child_token());
    let _guard = cancel.clone().drop_guard();
    let verifying = tokio::task::spawn_blocking(move || {
        let verified = manifest::checksums(&dir, &manifest, &counted, &cancel)?;
        Ok::<_, DataError>((verified, manifest))
    });
    let reading = Reading { what: "verifying", total, meter: &meter };
    let (verified, manifest) = tokio::select! {
        () = job.cancel.cancelled() => return Err(DataError::Cancelled),
        done = reading.told(job, verifying) => {
            done.map_err(|e| DataError::dump(format!("verifying was interrupted: {e}")))??
        }
    };
    job.log.line(format!("verified {} files, {}", verified.parts, part::size(verified.bytes)));
    Ok(manifest)
}

/// Which part goes where.
struct Plan<'a> {
    pairs: Vec<(&'a Part, &'a Backup)>,
    skipped: Vec<SkippedPart>,
    absent: Vec<String>,
}

impl<'a> Plan<'a> {
    fn make(request: &RestoreRequest<'a>, manifest: &'a Manifest) -> Result<Self, DataError> {
        let unfit = |why: String| DataError::Unfit { set: request.set.to_owned(), why };
        let key = &request.environment.key;
        if (&manifest.app, &manifest.environment) != (&key.app, &key.environment) {
            let (app, environment) = (&manifest.app, &manifest.environment);
            return Err(unfit(format!("it is of {app}/{environment}, not of {}/{}", key.app, key.environment)));
        }
        let backups = &request.environment.backups;
        let mut plan = Plan { pairs: Vec::new(), skipped: Vec::new(), absent: Vec::new() };
        let wanted = |part: &Part| request.parts.is_empty() || request.parts.iter().any(|p| p.as_str() == part.name);
        if let Some(unknown) = request.parts.iter().find(|p| !manifest.parts.iter().any(|part| part.name == p.as_str()))
        {
            return Err(unfit(format!("it has no part `{unknown}`")));
        }
        for part in manifest.parts.iter().filter(|part| wanted(part)) {
            match plan.source_of(part, backups) {
                Ok(backup) => plan.pairs.push((part, backup)),
                Err(why) => plan.skipped.push(SkippedPart { name: part.name.clone(), why }),
            }
        }
        let known = |name: &str| manifest.parts.iter().any(|p| p.name == name);
        plan.absent = backups.iter().map(|b| b.name.to_string()).filter(|name| !known(name)).collect();
        if let Some((inner, outer)) = plan.nested() {
            return Err(unfit(format!(
                "`{inner}` lies inside `{outer}`, and one cannot be exchanged while the other is: name directories beside each other"
            )));
        }
        if plan.pairs.is_empty() {
            return Err(unfit(
                "it holds nothing that the configuration has a `[[backup]]` of the same name for".to_owned(),
            ));
        }
        Ok(plan)
    }

    /// A part whose files lie in the directory of another.
    fn nested(&self) -> Option<(&str, &str)> {
        let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let path = |source: &BackupSource| match source {
            BackupSource::Files { path, .. } => Some((true, real(path))),
            BackupSource::Sqlite { path } => Some((false, real(path))),
            _ => None,
        };
        let paths = self.pairs.iter().filter_map(|(part, backup)| Some((part.name.as_str(), path(&backup.source)?)));
        let paths: Vec<_> = paths.collect();
        let outer =
            |inner: &Path| paths.iter().find(|(_, (is_dir, path))| *is_dir && inner != path && inner.starts_with(path));
        paths.iter().find_map(|(name, (_, path))| Some((*name, outer(path)?.0)))
    }

    fn source_of(&self, part: &Part, backups: &'a [Backup]) -> Result<&'a Backup, String> {
        let backup = backups.iter().find(|b| b.name.as_str() == part.name);
        let backup = backup.ok_or_else(|| format!("the configuration has no `[[backup]]` named `{}`", part.name))?;
        if PartKind::of(&backup.source) != part.kind {
            return Err(format!("the configuration's `{}` is a database of another kind", part.name));
        }
        // Two transactions that replace one database would wait for each other.
        let place = kind::place(&backup.source);
        match self.pairs.iter().find(|(_, other)| kind::place(&other.source) == place) {
            Some((first, _)) => Err(format!("`{}` is of the same database", first.name)),
            None => Ok(backup),
        }
    }
}

/// Where parts that are ready wait until all are.
pub(super) struct Gate {
    ready: mpsc::UnboundedSender<()>,
    open: watch::Receiver<bool>,
}

impl Gate {
    /// Returns when every part has come here. A part that must not wait any longer is dropped or its work cancelled.
    pub async fn pass(mut self) -> Result<(), DataError> {
        let closed = self.ready.send(()).is_err();
        if closed || self.open.wait_for(|open| *open).await.is_err() {
            return Err(DataError::Cancelled);
        }
        Ok(())
    }
}

/// What a part says about itself when it is done.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub tables: u64,
    pub rows: Option<u64>,
    pub note: Option<String>,
}

/// Everything that putting one part back needs.
pub(super) struct Work<'a> {
    pub part: &'a Part,
    pub backup: &'a Backup,
    pub set: SetDir<'a>,
    /// Whose the data is: throw-away containers are labelled with it.
    pub key: &'a EnvironmentKey,
    pub reach: Reach<'a>,
    /// Cancelled to give up before the gate has opened; after that, only when the last step takes too long.
    pub job: &'a Job,
}

type Working<'a> = Pin<Box<dyn Future<Output = (usize, Result<RestoredPart, DataError>)> + Send + 'a>>;

/// Runs all parts up to the gate and through it. In the order of the plan.
async fn carry_out(
    plan: &Plan<'_>,
    request: &RestoreRequest<'_>,
    reach: Reach<'_>,
    job: &Job,
) -> Result<Vec<RestoredPart>, DataError> {
    let (ready, mut arrivals) = mpsc::unbounded_channel();
    let (opener, open) = watch::channel(false);
    let inner = Job { log: job.log.clone(), cancel: CancellationToken::new() };
    // What is dropped half way must not go on by itself.
    let _guard = inner.cancel.clone().drop_guard();
    let (last, first): (Vec<_>, Vec<_>) =
        plan.pairs.iter().enumerate().partition(|(_, (part, _))| kind_of(part.kind).comes_last());
    let mut missing = first.len();
    let meters: Vec<Arc<ReadMeter>> = plan.pairs.iter().map(|_| Arc::default()).collect();
    let dirs: Vec<SetDir<'_>> = meters.iter().map(|meter| SetDir { path: request.set, meter }).collect();
    let works: FuturesUnordered<Working<'_>> = first
        .into_iter()
        .map(|(index, (part, backup))| {
            let key = &request.environment.key;
            let work = Work { part, backup, set: dirs[index], key, reach, job: &inner };
            let gate = Gate { ready: ready.clone(), open: open.clone() };
            Box::pin(async move { (index, work.run(gate).await) }) as Working<'_>
        })
        .collect();
    let mut run = Run { works, restored: Vec::new(), failure: None };

    let longest = plan.pairs.iter().map(|(_, backup)| backup.timeout).max().unwrap_or_default();
    let limit = longest.saturating_mul(LONGER_THAN_DUMPING);
    let mut deadline = Box::pin(tokio::time::sleep(limit));
    while missing > 0 {
        let given_up = tokio::select! {
            biased;
            () = job.cancel.cancelled() => DataError::Cancelled,
            Some(()) = arrivals.recv() => {
                missing -= 1;
                continue;
            }
            // Before the gate is open, a part can only end by failing.
            Some((index, Err(error))) = run.works.next() => plan.failure(index, error),
            () = &mut deadline => DataError::RestoreTimedOut { limit },
        };
        inner.cancel.cancel();
        // What does not wind up in time is dropped, which ends it in the background.
        let _ = tokio::time::timeout(WIND_UP, run.finish(plan)).await;
        return Err(given_up);
    }
    for (index, (part, backup)) in last {
        let work = Work { part, backup, set: dirs[index], key: &request.environment.key, reach, job: &inner };
        if let Err(error) = run.put_last(index, &work, plan, job, LONGER_THAN_DUMPING).await {
            inner.cancel.cancel();
            let _ = tokio::time::timeout(WIND_UP, run.finish(plan)).await;
            return Err(error);
        }
    }
    job.log.line("everything is ready: replacing the data");
    let _ = opener.send(true);
    if tokio::time::timeout(LAST_STEP, run.finish(plan)).await.is_err() {
        inner.cancel.cancel();
        let _ = tokio::time::timeout(WIND_UP, run.finish(plan)).await;
    }
    run.outcome(plan)
}

struct Run<'a> {
    works: FuturesUnordered<Working<'a>>,
    restored: Vec<(usize, RestoredPart)>,
    failure: Option<DataError>,
}

impl Run<'_> {
    async fn finish(&mut self, plan: &Plan<'_>) {
        while let Some((index, result)) = self.works.next().await {
            match result {
                Ok(part) => self.restored.push((index, part)),
                Err(error) => {
                    self.failure.get_or_insert(plan.failure(index, error));
                }
            }
        }
    }

    /// Puts a part back that cannot wait at the gate, while all that can do so. An error leaves those as they are.
    async fn put_last(
        &mut self,
        index: usize,
        work: &Work<'_>,
        plan: &Plan<'_>,
        job: &Job,
        times: u32,
    ) -> Result<(), DataError> {
        let (ready, _arrivals) = mpsc::unbounded_channel();
        let (_opener, open) = watch::channel(true);
        let limit = work.backup.timeout.saturating_mul(times);
        let mut working = pin!(work.run(Gate { ready, open }));
        let ended = loop {
            tokio::select! {
                biased;
                ended = &mut working => break ended,
                // One of those that wait did not hold out.
                Some((index, Err(error))) = self.works.next() => {
                    self.failure.get_or_insert(plan.failure(index, error));
                    work.job.cancel.cancel();
                }
                () = job.cancel.cancelled(), if !work.job.cancel.is_cancelled() => work.job.cancel.cancel(),
                () = tokio::time::sleep(limit) => {
                    work.job.cancel.cancel();
                    // A command that does not end then is ended by being dropped.
                    let _ = tokio::time::timeout(WIND_UP, &mut working).await;
                    break Err(DataError::dump(format!("it took longer than {limit:?}, {times} times its `timeout`")));
                }
            }
        };
        let error = match ended {
            Ok(part) => {
                self.restored.push((index, part));
                match self.failure.take() {
                    None => return Ok(()),
                    Some(error) => error,
                }
            }
            Err(error) => {
                let (part, place) = plan.name_and_place(index);
                DataError::Restore { part, place, why: error.to_string(), left: Left::Old }
            }
        };
        let done = self.restored.iter().map(|(_, part)| part.name.clone()).collect();
        Err(match error {
            DataError::Restore { part, place, why, .. } => {
                DataError::Restore { part, place, why, left: Left::Partly { done } }
            }
            other => other,
        })
    }

    /// Of a run whose gate was opened.
    fn outcome(mut self, plan: &Plan<'_>) -> Result<Vec<RestoredPart>, DataError> {
        self.restored.sort_by_key(|(index, _)| *index);
        let done = || self.restored.iter().map(|(_, part)| part.name.clone()).collect();
        match self.failure {
            None if self.restored.len() == plan.pairs.len() => {
                Ok(self.restored.into_iter().map(|(_, part)| part).collect())
            }
            Some(DataError::Restore { part, place, why, .. }) => {
                Err(DataError::Restore { part, place, why, left: Left::Partly { done: done() } })
            }
            None | Some(_) => {
                let unfinished =
                    (0..plan.pairs.len()).find(|index| !self.restored.iter().any(|(done, _)| done == index));
                let (part, place) = plan.name_and_place(unfinished.unwrap_or_default());
                let why = format!("the last step did not end within {LAST_STEP:?}");
                Err(DataError::Restore { part, place, why, left: Left::Partly { done: done() } })
            }
        }
    }
}

impl Plan<'_> {
    fn name_and_place(&self, index: usize) -> (String, String) {
        self.pairs.get(index).map(|(part, backup)| (part.name.clone(), kind::place(&backup.source))).unwrap_or_default()
    }

    /// Says which part an error is about.
    fn failure(&self, index: usize, error: DataError) -> DataError {
        match error {
            DataError::Cancelled => DataError::Cancelled,
            other => {
                let (part, place) = self.name_and_place(index);
                DataError::Restore { part, place, why: other.to_string(), left: Left::Old }
            }
        }
    }
}

impl Work<'_> {
    async fn run(&self, gate: Gate) -> Result<RestoredPart, DataError> {
        let begun = Instant::now();
        let place = kind::place(&self.backup.source);
        let log = &self.job.log;
        log.line(format!("restoring `{}` into {place}: {}", self.part.name, part::size(self.part.bytes)));
        let what = format!("restoring `{}`", self.part.name);
        let reading = Reading { what: &what, total: self.part.bytes, meter: self.set.meter };
        let loaded = reading.told(self.job, kind_of(self.part.kind).restore(self, gate)).await;
        let loaded = loaded.map_err(|error| match error {
            DataError::Dump { why } => DataError::Dump { why: log.redactor().mask(&why) },
            other => other,
        })?;
        let rows = loaded.rows.map(|rows| format!(", {rows} rows")).unwrap_or_default();
        let what = match self.part.kind {
            PartKind::Postgres | PartKind::Mysql | PartKind::Sqlite => format!("{} tables{rows}", loaded.tables),
            PartKind::Files | PartKind::Volume => format!("{} files, directories and links", loaded.tables),
            PartKind::Command => "its command has ended well".to_owned(),
        };
        log.line(format!("restored `{}`: {what}", self.part.name));
        if let Some(note) = &loaded.note {
            log.line(note);
        }
        Ok(RestoredPart {
            name: self.part.name.clone(),
            kind: self.part.kind,
            place,
            bytes: self.part.bytes,
            tables: loaded.tables,
            rows: loaded.rows,
            note: loaded.note,
            duration_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        })
    }
}
