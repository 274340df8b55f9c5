//! The stages: one file each, always in the order input, recorded output, `run`, `undo`, tests.
//!
//! A stage works from its recorded input and nothing else, and says in its output what it did, so that undo (perhaps by another
//! process, after a crash) needs no memory. `run` may be cut off anywhere; `undo` may be called twice, and may be called
//! for a step that never got to its effect. [`input`], [`run`] and [`undo`] are the only places that know all eight.

use std::{future::Future, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::{
    config::Environment,
    data::DataError,
    git::GitError,
    model::{CommitId, DeploymentId, Name, Stage},
    pipeline::{World, journal::FailureKind},
    registry::{Facts, Release},
    runtime::{Artefact, Instance, Job, Runtime, RuntimeError},
};

pub mod backup;
pub mod build;
pub mod coverage;
mod exchange;
pub mod migrate;
pub mod pull;
pub mod retire;
pub mod smoke;
pub mod start;
pub mod tag;
pub mod test;

/// Why a stage did not do what it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageFailure {
    pub kind: FailureKind,
    /// For people: what, to what, what to do.
    pub message: String,
}

impl StageFailure {
    pub fn failed(message: impl Into<String>) -> Self {
        Self { kind: FailureKind::Failed, message: message.into() }
    }

    pub fn cancelled() -> Self {
        Self { kind: FailureKind::Cancelled, message: "cancelled".to_owned() }
    }
}

impl From<RuntimeError> for StageFailure {
    fn from(error: RuntimeError) -> Self {
        let kind = match error {
            RuntimeError::Unavailable { .. } => FailureKind::Unavailable,
            RuntimeError::Cancelled => FailureKind::Cancelled,
            _ => FailureKind::Failed,
        };
        let message = match error.hint() {
            // What to do about a runtime that is away is said with the deployment's end.
            Some(hint) if kind != FailureKind::Unavailable => format!("{error}: {hint}"),
            _ => error.to_string(),
        };
        Self { kind, message }
    }
}

impl From<GitError> for StageFailure {
    fn from(error: GitError) -> Self {
        let kind = if error.cancelled() {
            FailureKind::Cancelled
        } else if error.unavailable() {
            FailureKind::Unavailable
        } else {
            FailureKind::Failed
        };
        Self { kind, message: error.to_string() }
    }
}

impl From<DataError> for StageFailure {
    fn from(error: DataError) -> Self {
        let kind = match error {
            DataError::Cancelled => FailureKind::Cancelled,
            DataError::TimedOut { .. } => FailureKind::TimedOut,
            _ => FailureKind::Failed,
        };
        Self { kind, message: error.to_string() }
    }
}

/// What a stage works with besides its input.
#[derive(Debug, Clone)]
pub struct Step {
    pub world: Arc<World>,
    pub environment: Arc<Environment>,
    pub deployment: DeploymentId,
    pub job: Job,
}

/// What the deployment knows so far: inputs are made from it.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// What the request named: a commit, else a reference.
    pub requested: Option<CommitId>,
    pub reference: String,
    pub explicit: bool,
    pub forced: bool,
    /// What was live when it began.
    pub previous: Option<Release>,
    /// The release that a rollback goes to.
    pub target: Option<Release>,
    /// The backup set that a rollback puts back, or a restore.
    pub restore: Option<String>,
    /// Only these parts of it; all where empty.
    pub parts: Vec<Name>,
    /// Only data goes back: the release that is live stays, and is stopped meanwhile.
    pub only_data: bool,
    /// The person who asked knows that the data as it is now may not be there to be backed up.
    pub without_backup: bool,
    /// The backup set that was taken before that.
    pub fresh: Option<String>,
    pub commit: Option<CommitId>,
    pub artefact: Option<Artefact>,
    pub instance: Option<Instance>,
    /// The version before, where it still runs beside the new one.
    pub beside: Option<start::Previous>,
    pub backup_at: Option<jiff::Timestamp>,
}

impl Progress {
    fn commit(&self) -> Result<CommitId, StageFailure> {
        self.commit.clone().ok_or_else(|| StageFailure::failed("no commit was pulled"))
    }

    fn artefact(&self) -> Result<Artefact, StageFailure> {
        self.artefact.clone().ok_or_else(|| StageFailure::failed("nothing was built"))
    }
}

/// How a stage ended well.
#[derive(Debug, Clone)]
pub struct Done {
    pub output: Value,
    /// A failure that the deployment outlives.
    pub warning: Option<String>,
    pub facts: Facts,
}

/// Whether the configuration has anything for the stage to do; else the reason why not.
pub fn skip_reason(stage: Stage, environment: &Environment, progress: &Progress) -> Option<&'static str> {
    match stage {
        Stage::Pull | Stage::Test | Stage::Build | Stage::Migrate | Stage::Tag if progress.only_data => {
            Some("a restore changes only data")
        }
        Stage::Pull | Stage::Test | Stage::Build | Stage::Migrate if progress.target.is_some() => {
            Some("a rollback builds nothing")
        }
        // It keeps the state before, whatever becomes of the data.
        Stage::Backup if progress.target.is_some() => None,
        Stage::Backup if environment.backups.is_empty() => Some("no [[backup]] is configured"),
        Stage::Test if environment.tests.is_empty() => Some("no [[test]] is configured"),
        Stage::Migrate if environment.migrate.is_none() => Some("no [migrate] is configured"),
        // It stops the version before.
        Stage::Smoke if progress.beside.is_some() => None,
        Stage::Smoke if environment.smoke.checks.is_empty() && environment.smoke.bake.is_zero() => {
            Some("no [[smoke.check]] and no bake time is configured")
        }
        _ => None,
    }
}

/// The input to record with the intent. May look at the world, never changes it.
pub async fn input(stage: Stage, step: &Step, progress: &Progress) -> Result<Value, StageFailure> {
    match stage {
        Stage::Pull => json(&pull::input(progress)),
        Stage::Backup => json(&backup::input(progress)?),
        Stage::Test => json(&test::input(progress)?),
        Stage::Build => json(&build::input(progress)?),
        Stage::Tag => json(&tag::input(step, progress).await?),
        Stage::Migrate => json(&migrate::input(step, progress).await?),
        Stage::Start => json(&start::input(step, progress)?),
        Stage::Smoke => json(&smoke::input(progress)?),
    }
}

/// Does the stage. A panic is a fault of this program's, and is a failure like any other to those who drive the deployment.
pub async fn run(stage: Stage, step: &Step, input: &Value) -> Result<Done, StageFailure> {
    caught(stage, run_stage(stage, step, input)).await
}

async fn run_stage(stage: Stage, step: &Step, input: &Value) -> Result<Done, StageFailure> {
    match stage {
        Stage::Pull => pull::run(step, parsed(input)?).await,
        Stage::Backup => backup::run(step, parsed(input)?).await,
        Stage::Test => test::run(step, parsed(input)?).await,
        Stage::Build => build::run(step, parsed(input)?).await,
        Stage::Tag => tag::run(step, parsed(input)?).await,
        Stage::Migrate => migrate::run(step, parsed(input)?).await,
        Stage::Start => start::run(step, parsed(input)?).await,
        Stage::Smoke => smoke::run(step, parsed(input)?).await,
    }
}

/// Undoes the stage from what was recorded. `Ok(Some(…))` is a line for the report.
pub async fn undo(
    stage: Stage,
    step: &Step,
    input: &Value,
    output: Option<&Value>,
) -> Result<Option<String>, StageFailure> {
    caught(stage, undo_stage(stage, step, input, output)).await
}

async fn undo_stage(
    stage: Stage,
    step: &Step,
    input: &Value,
    output: Option<&Value>,
) -> Result<Option<String>, StageFailure> {
    match stage {
        // The mirror and complete backups are worth keeping.
        Stage::Pull | Stage::Smoke => Ok(None),
        Stage::Backup => backup::undo(step).await,
        Stage::Test => test::undo(step).await,
        Stage::Build => build::undo(step, output.map(parsed).transpose()?).await,
        Stage::Tag => tag::undo(step, parsed(input)?).await,
        Stage::Migrate => migrate::undo(step, parsed(input)?, output.map(parsed).transpose()?).await,
        Stage::Start => start::undo(step, parsed(input)?).await,
    }
}

/// The panic's own words go to the daemon's log, by the panic hook.
async fn caught<T>(stage: Stage, work: impl Future<Output = Result<T, StageFailure>>) -> Result<T, StageFailure> {
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|_| {
        Err(StageFailure::failed(format!(
            "{stage} broke off by a fault of refit itself: report it with what the daemon's log says"
        )))
    })
}

/// Takes from a stage's recorded output, and from when it was recorded, what later stages need.
pub fn learn(stage: Stage, output: &Value, at: jiff::Timestamp, progress: &mut Progress) -> Result<(), StageFailure> {
    match stage {
        Stage::Pull => progress.commit = Some(parsed::<pull::Output>(output)?.commit),
        Stage::Backup => {
            let taken = parsed::<backup::Output>(output)?;
            progress.fresh = taken.set;
            progress.without_backup |= taken.nothing_there;
            progress.backup_at = progress.fresh.as_ref().map(|_| at);
        }
        Stage::Build => progress.artefact = Some(parsed(output)?),
        Stage::Start => {
            let started = parsed::<start::Output>(output)?;
            (progress.instance, progress.beside) = (Some(started.instance), started.beside);
        }
        _ => {}
    }
    Ok(())
}

/// Runs `work` for at most `limit`. When time is up its token is cancelled and it gets [`GRACE`] to leave cleanly.
pub async fn within<T, F>(
    limit: Duration,
    what: &str,
    cancel: &CancellationToken,
    work: impl FnOnce(CancellationToken) -> F,
) -> Result<T, StageFailure>
where
    F: Future<Output = Result<T, StageFailure>>,
{
    /// For removing a container or ending a process group; after that the work is dropped and `sweep` cleans up.
    const GRACE: Duration = Duration::from_secs(20);
    let token = cancel.child_token();
    let work = work(token.clone());
    tokio::pin!(work);
    let late = || StageFailure {
        kind: FailureKind::TimedOut,
        message: format!("{what} did not finish within {limit:?}: raise its `timeout`, or find out what it waits for"),
    };
    tokio::select! {
        result = &mut work => result,
        () = tokio::time::sleep(limit) => {
            token.cancel();
            match tokio::time::timeout(GRACE, work).await {
                // It finished in the very moment.
                Ok(Ok(value)) => Ok(value),
                _ => Err(late()),
            }
        }
        () = async { cancel.cancelled().await; tokio::time::sleep(GRACE).await } => Err(StageFailure::cancelled()),
    }
}

/// Puts an app's last lines into the log. They are worth a moment, and not the two minutes that an engine which hangs may take.
async fn quote(step: &Step, runtime: &dyn Runtime, instance: &Instance) {
    const MOMENT: Duration = Duration::from_secs(5);
    let tail = tokio::time::timeout(MOMENT, runtime.tail(instance, crate::log::TAIL_LINES / 2)).await;
    let tail = tail.ok().and_then(Result::ok).unwrap_or_default();
    if !tail.is_empty() {
        step.job.log.line(format!("last lines of {}:\n{}", instance.name, tail.join("\n")));
    }
}

/// Runs blocking work (libgit2, archives) off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StageFailure> + Send + 'static,
) -> Result<T, StageFailure> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|e| Err(StageFailure::failed(format!("an internal task ended early: {e}"))))
}

pub(crate) fn json<T: Serialize>(value: &T) -> Result<Value, StageFailure> {
    serde_json::to_value(value).map_err(|e| StageFailure::failed(format!("a record could not be written: {e}")))
}

pub(crate) fn parsed<T: DeserializeOwned>(value: &Value) -> Result<T, StageFailure> {
    serde_json::from_value(value.clone())
        .map_err(|e| StageFailure::failed(format!("the journal holds a record that this version cannot read: {e}")))
}

impl Done {
    pub(crate) fn new<T: Serialize>(output: &T) -> Result<Self, StageFailure> {
        Ok(Self { output: json(output)?, warning: None, facts: Facts::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_a_failure_of_its_stage() {
        let broken: Result<(), _> = caught(Stage::Build, async { panic!("a bug") }).await;
        assert!(broken.is_err_and(|f| f.kind == FailureKind::Failed && f.message.contains("build broke off")));
        assert_eq!(caught(Stage::Build, async { Ok(7) }).await, Ok(7));
    }
}
