//! Backups by hand: made, verified, restored, removed.
//!
//! Each is one [`BackupRequest`], answered by a stream: what is being done, line by line, and at the end what came of it. Dropping the
//! stream cancels the work, which then leaves nothing behind. While it goes on it has the environment's turn (`pipeline::holds`), so no
//! deployment of that environment runs, and every set that it sees is one that nobody is writing.
//!
//! Data under a release that is live goes back by a deployment of its own ([`BackupUpdate::Queued`]): the app has to be stopped meanwhile, and
//! journal, undo, recovery and reports are what a rollback has. Where nothing is live (a new machine) it goes back right here
//! (`backup/restore.rs`).

use std::sync::Arc;

use futures_util::stream::{self, BoxStream, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::{Control, ControlError, Result};
use crate::{
    config::Environment,
    data::{self, BackupReport, DataError, Depth, RestoreReport, SetRequest, VerifyReport},
    log::DeploymentLog,
    model::{DeploymentId, EnvironmentKey, Name, Trigger},
    pipeline::{holds::Held, needed, rehearsed, stages::backup},
    runtime::Job,
};

mod look;
mod remove;
mod restore;
mod verify;

pub use look::BackupEntry;

/// Lines on their way to who watches; more are left out.
const LINES: usize = 256;

/// What is asked for, and where.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BackupRequest {
    pub app: Option<String>,
    pub environment: Option<String>,
    pub trigger: Trigger,
    /// Refuse ([`ControlError::Busy`]) instead of waiting for a deployment.
    pub no_wait: bool,
    pub verb: BackupVerb,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackupVerb {
    Create {
        reason: Option<String>,
        /// Only these parts; all where empty.
        #[serde(default)]
        parts: Vec<Name>,
    },
    Verify {
        set: Option<String>,
        depth: Depth,
    },
    Restore(RestoreWish),
    Delete {
        sets: Vec<String>,
    },
    Prune,
}

/// Data that somebody wants back.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RestoreWish {
    /// A set's name, or `latest`.
    pub set: String,
    /// Only these parts; all where empty.
    pub parts: Vec<Name>,
    pub reason: Option<String>,
    /// Go on though the data as it is now cannot be backed up.
    pub force: bool,
}

/// What who asked sees, in order; everything but `Said` is the last.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum BackupUpdate {
    Said {
        text: String,
    },
    /// The data goes back by this deployment: follow it.
    Queued {
        id: DeploymentId,
    },
    Created(Created),
    Verified(VerifyReport),
    Restored(Restored),
    Removed(Removed),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Created {
    #[serde(flatten)]
    pub report: BackupReport,
    /// What a look at the new set found, where the configuration asks for one.
    pub verified: Option<VerifyReport>,
    /// Sets that retention removed.
    pub removed: Vec<String>,
}

/// Of a restore where nothing is live.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Restored {
    #[serde(flatten)]
    pub report: RestoreReport,
    /// The set with the data as it was before, relative to the backups directory; `None` where there was none.
    pub before: Option<String>,
    /// The queries that the data answered.
    pub checks: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Removed {
    /// Names of the sets that are gone, the oldest first.
    pub removed: Vec<String>,
    pub bytes: u64,
}

/// Who does the work, in one environment, with its turn.
struct Hands<'a> {
    control: &'a Control,
    environment: Arc<Environment>,
    trigger: Trigger,
    job: Job,
    _held: Held,
}

impl Control {
    /// Does it; see [`BackupUpdate`].
    pub fn backup(&self, request: BackupRequest) -> BoxStream<'static, Result<BackupUpdate>> {
        let control = self.clone();
        let cancel = self.by_hand.child_token();
        let (lines, said) = mpsc::channel(LINES);
        let (end, ended) = mpsc::channel(1);
        let job = Job {
            log: DeploymentLog::watched(lines, self.config().redactor.clone()).section("backup"),
            cancel: cancel.clone(),
        };
        tokio::spawn(async move {
            let done = Box::pin(control.carry_out(request, job)).await;
            // Nobody may be listening any more.
            let _ = end.send(done).await;
        });
        let guard = cancel.drop_guard();
        stream::unfold(Some((said, ended, guard)), async |state| {
            let (mut said, mut ended, guard) = state?;
            let done = tokio::select! {
                biased;
                // What was said before the end is told before it.
                Some(text) = said.recv() => {
                    return Some((Ok(BackupUpdate::Said { text }), Some((said, ended, guard))));
                }
                done = ended.recv() => done?,
            };
            Some((done, None))
        })
        .boxed()
    }

    async fn carry_out(&self, request: BackupRequest, job: Job) -> Result<BackupUpdate> {
        let environment = self.environment(request.app.as_deref(), request.environment.as_deref())?;
        let _active = self.queue.begin().ok_or_else(stopping)?;
        if let BackupVerb::Restore(wish) = &request.verb
            && let Some(id) = self.queue_restore(&environment, wish, &request).await?
        {
            return Ok(BackupUpdate::Queued { id });
        }
        let held = self.turn(&environment.key, request.no_wait, &job).await?;
        let hands = Hands { control: self, environment, trigger: request.trigger, job, _held: held };
        match request.verb {
            BackupVerb::Create { reason, parts } => hands.create(reason, &parts).await.map(BackupUpdate::Created),
            BackupVerb::Verify { set, depth } => hands.verify(set.as_deref(), depth).await.map(BackupUpdate::Verified),
            BackupVerb::Restore(wish) => hands.restore_here(&wish).await.map(BackupUpdate::Restored),
            BackupVerb::Delete { sets } => hands.delete(&sets).await.map(BackupUpdate::Removed),
            BackupVerb::Prune => hands.prune().await.map(BackupUpdate::Removed),
        }
    }

    async fn turn(&self, key: &EnvironmentKey, no_wait: bool, job: &Job) -> Result<Held> {
        const WHAT: &str = "work on its backups";
        match self.world.holds.take_now(key, WHAT).await {
            Ok(held) => Ok(held),
            Err(holder) if no_wait => Err(ControlError::Busy {
                message: format!("{key} is busy with {holder}"),
                hint: Some("wait for it (`refit status`), or leave out --no-wait".to_owned()),
            }),
            Err(holder) => {
                job.log.line(format!("waiting: {key} is busy with {holder}"));
                tokio::select! {
                    held = self.world.holds.take(key, WHAT) => Ok(held),
                    () = job.cancel.cancelled() => Err(cancelled()),
                }
            }
        }
    }
}

impl Hands<'_> {
    async fn create(&self, reason: Option<String>, parts: &[Name]) -> Result<Created> {
        if self.environment.backups.is_empty() {
            return Err(ControlError::usage(
                format!("{} has no [[backup]]: there is nothing to back up", self.environment.key),
                "add one to pipeline.toml; `docs/data.md` shows each kind",
            ));
        }
        self.known(parts)?;
        let report = self.take(&self.environment, parts, reason.as_deref().unwrap_or("by hand")).await?;
        let world = &self.control.world;
        let mut verified = None;
        if let Some(set) = &report.set {
            let path = world.config.server.backups_dir.join(set);
            verified = match data::verify_new(&self.environment, &path, world.runtimes.reach(), &self.job).await? {
                Some(found) => Some(rehearsed::keep(world, &self.environment.key, &path, found, false).await?),
                None => None,
            };
        }
        let mut removed = Vec::new();
        if report.set.is_some() && report.failures.is_empty() && verified.as_ref().is_none_or(|look| look.ok) {
            match self.prune().await {
                Ok(pruned) => removed = pruned.removed,
                Err(error) => self.job.log.line(format!("old backups could not be removed: {error}")),
            }
        }
        Ok(Created { report, verified, removed })
    }

    fn known(&self, parts: &[Name]) -> Result<()> {
        let names = || self.environment.backups.iter().map(|backup| &backup.name);
        let Some(unknown) = parts.iter().find(|part| !names().any(|name| name == *part)) else { return Ok(()) };
        let there: Vec<&str> = names().map(Name::as_str).collect();
        Err(ControlError::usage(
            format!("{} has no [[backup]] named `{unknown}`", self.environment.key),
            format!("it has {}", there.join(", ")),
        ))
    }

    /// Takes a set.
    async fn take(&self, environment: &Environment, parts: &[Name], reason: &str) -> Result<BackupReport> {
        let world = &self.control.world;
        let live = world.registry.live(&environment.key).await?;
        let mut context = backup::context(world, &environment.key, None).await;
        context.by.clone_from(&self.trigger.by);
        let request = SetRequest {
            environment,
            parts,
            deployment: None,
            commit: live.as_ref().map(|release| &release.commit),
            reason,
            backups_dir: &world.config.server.backups_dir,
            context: &context,
        };
        Ok(data::create_set(request, world.runtimes.reach(), &self.job).await?)
    }

    /// What something still goes back to.
    async fn needed(&self) -> Result<Vec<needed::Need>> {
        let world = &self.control.world;
        let sets = needed::sets(&world.registry, &world.config.server.state_dir, &self.environment.key).await;
        sets.map_err(|message| ControlError::Unavailable { message, hint: None })
    }
}

/// Disk work off the event loop.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::result::Result<T, DataError> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done?),
        Err(error) => {
            Err(ControlError::Unavailable { message: format!("an internal task ended early: {error}"), hint: None })
        }
    }
}

fn stopping() -> ControlError {
    ControlError::Unavailable {
        message: "the daemon is stopping".to_owned(),
        hint: Some("ask again when it is back, or without it".to_owned()),
    }
}

fn cancelled() -> ControlError {
    ControlError::Failed { message: "cancelled; nothing was changed".to_owned(), hint: None, code: CANCELLED }
}

/// As deployments have it (design, section 8).
const CANCELLED: u8 = 130;
const STOPPED: u8 = 1;
const PERSON_NEEDED: u8 = 5;

impl From<DataError> for ControlError {
    fn from(error: DataError) -> Self {
        let message = error.to_string();
        let failed =
            |code, hint: Option<&str>| Self::Failed { message: message.clone(), hint: hint.map(str::to_owned), code };
        match &error {
            DataError::Cancelled => cancelled(),
            DataError::NoSet { .. } => Self::usage(message, "`refit backup list` shows them"),
            DataError::Manifest { .. } | DataError::Damaged { .. } | DataError::Unfit { .. } => {
                failed(STOPPED, Some("nothing was changed; `refit backup list` shows what else there is"))
            }
            DataError::NoSpace { .. } | DataError::Io { .. } => {
                Self::Unavailable { message, hint: Some("`refit doctor` looks at disks and permissions".to_owned()) }
            }
            error if !error.left_data_alone() => failed(PERSON_NEEDED, Some("look at the data, then restore it again")),
            _ => failed(STOPPED, None),
        }
    }
}
