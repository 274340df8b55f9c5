//! `refit migrate`: SQL files looked at, applied and taken back by hand.
//!
//! Looking needs nothing but the database. Acting happens here and now, under the state directory's lock: while a daemon holds it, this says what to
//! do and does nothing, because two must not migrate at once, and a daemon's next deployment may be about to. The files are those of a commit, never
//! of a work tree: what is applied by hand today is then what a deployment finds tomorrow.

use std::{fs::File, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::{ControlError, Observer, Result, take_lock};
use crate::{
    config::{Environment, MigrationFiles},
    data::{self, SetContext, SetRequest},
    git::GitError,
    log::DeploymentLog,
    migrate::{
        self, Carried, Files, Migration, Place, Row, Session, SessionError, State, Witness, files_of, plan_down,
        plan_up, rows,
    },
    model::{CommitId, EnvironmentKey, Status},
    pipeline::mirror,
    registry::Registry,
    runtime::Job,
};

/// How long another program that migrates is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);

/// The migrations of an environment, as `refit migrate status` shows them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Migrations {
    pub app: String,
    pub environment: String,
    /// For people: which database.
    pub database: String,
    /// Whose files they are.
    pub commit: CommitId,
    /// The newest one that is applied, `none` without any.
    pub version: String,
    pub migrations: Vec<Row>,
    /// Why nothing can be applied as things stand.
    pub problem: Option<String>,
    /// What the reader should know of how this was found out.
    pub note: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MigrateVerb {
    /// What is pending, up to and with a number.
    Up { to: Option<i64> },
    /// Everything above a number; without one, the newest.
    Down { to: Option<i64> },
    /// Back as `Down`, and up again.
    Redo { to: Option<i64> },
}

impl MigrateVerb {
    pub fn takes_back(self) -> bool {
        !matches!(self, Self::Up { .. })
    }
}

/// What to do by hand.
#[derive(Debug, Clone)]
pub struct MigrateRequest {
    pub key: EnvironmentKey,
    pub verb: MigrateVerb,
    /// A commit, branch or tag; the environment's branch where unset.
    pub reference: Option<String>,
    /// Take a backup first.
    pub backup: bool,
}

/// What was done by hand.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct MigrateReport {
    pub before: String,
    pub after: String,
    /// As `7 (add mood)`, in the order in which it was done.
    pub taken_back: Vec<String>,
    pub applied: Vec<String>,
    /// The set that was taken before, relative to the backups directory.
    pub backup: Option<String>,
}

/// Is told what is being done, a line at a time.
pub type Say<'a> = &'a mut (dyn FnMut(&str) + Send);

impl Observer {
    /// Looks at the files and the database. Changes nothing but the mirror, which it brings up to date if it can.
    pub async fn migrations(&self, key: &EnvironmentKey, reference: Option<&str>) -> Result<Migrations> {
        let (environment, files) = self.with_files(key)?;
        let job = quiet(self, CancellationToken::new());
        let (commit, note) = self.commit(&environment, reference, &job).await?;
        let set = self.files(&environment, files_dir(&files), &commit).await;
        let place = migrate::place(&environment, &files, self.runtimes.containers.as_ref()).await?;
        let state = migrate::look(&place, &job.cancel).await?;
        let (set, problem) = match set {
            Ok(set) => {
                let problem = plan_up(&set, &state.applied, None, false).err().map(|problems| problems.to_string());
                (set, problem)
            }
            Err(why) => (Files::default(), Some(why)),
        };
        Ok(Migrations {
            app: key.app.to_string(),
            environment: key.environment.to_string(),
            database: place.name.clone(),
            commit,
            version: state.version(),
            migrations: rows(&set, &state.applied),
            problem,
            note,
        })
    }

    /// Applies or takes back, under the lock. `cancel` ends it: on the server too.
    pub async fn migrate(
        &self,
        request: &MigrateRequest,
        cancel: &CancellationToken,
        say: Say<'_>,
    ) -> Result<MigrateReport> {
        let (environment, files) = self.with_files(&request.key)?;
        let _lock = self.alone(&request.key).await?;
        let job = quiet(self, cancel.clone());
        let (commit, note) = self.commit(&environment, request.reference.as_deref(), &job).await?;
        note.iter().for_each(|note| say(note));
        let set = self.files(&environment, files_dir(&files), &commit).await.map_err(|why| refused(&why))?;
        let place = migrate::place(&environment, &files, self.runtimes.containers.as_ref()).await?;
        let before = migrate::look(&place, cancel).await?;
        let plan = plan(&set, &before, request.verb)?;
        let mut report = MigrateReport { before: before.version(), after: before.version(), ..Default::default() };
        if plan.back.is_empty() && plan.forth.is_empty() {
            return Ok(report);
        }
        if request.backup && !environment.backups.is_empty() {
            say("taking a backup");
            report.backup = Some(self.back_up(&environment, &commit, &job).await?);
        }
        carry_out(&place, &files, &set, (request.verb, job), say, &mut report).await?;
        Ok(report)
    }

    fn with_files(&self, key: &EnvironmentKey) -> Result<(Arc<Environment>, MigrationFiles)> {
        let unknown =
            || ControlError::usage(format!("{key} is not in the configuration"), "`refit check` lists what is");
        let environment = self.config.by_key(key).ok_or_else(unknown)?.clone();
        match (migrate::configured(&environment), &environment.migrate) {
            (Some(files), _) => Ok((environment.clone(), files.clone())),
            (None, Some(_)) => Err(ControlError::usage(
                format!("{key} migrates with a command of its own (`migrate.run`), which only it understands"),
                "`refit check` shows the command, and `refit status` the schema's version; deploy to run it",
            )),
            (None, None) => Err(ControlError::usage(
                format!("{key} has no migrations"),
                "add `[migrate]` with `files = \"migrations\"` to pipeline.toml",
            )),
        }
    }

    /// The commit that is meant, and what to know about it.
    async fn commit(
        &self,
        environment: &Environment,
        reference: Option<&str>,
        job: &Job,
    ) -> Result<(CommitId, Option<String>)> {
        let mirror = mirror(&self.config, environment);
        let limit = environment.pull.timeout;
        let fetched = match reference {
            None => mirror.fetch_branch(&environment.branch, limit, job).await.map(drop),
            Some(_) => mirror.fetch_all(limit, job).await,
        };
        let note = match fetched {
            Err(error) if error.cancelled() => return Err(SessionError::Cancelled.into()),
            Err(error) => Some(format!("the repository was not asked for news: {error}")),
            Ok(()) => None,
        };
        let name = reference.map_or_else(|| format!("refs/heads/{}", environment.branch), str::to_owned);
        let found = blocking(move || mirror.resolve(&name).map_err(|e: GitError| e.to_string())).await;
        match found {
            Ok(commit) => Ok((commit, note)),
            Err(why) => Err(ControlError::usage(
                note.unwrap_or(why),
                "--commit SHA or --ref NAME; `refit doctor` checks the repository",
            )),
        }
    }

    async fn files(
        &self,
        environment: &Environment,
        dir: String,
        commit: &CommitId,
    ) -> std::result::Result<Files, String> {
        let (mirror, commit) = (mirror(&self.config, environment), commit.clone());
        blocking(move || files_of(&mirror, &commit, &dir)).await
    }

    /// The lock, with nothing interrupted behind it.
    async fn alone(&self, key: &EnvironmentKey) -> Result<File> {
        let lock = take_lock(&self.config).map_err(|error| match error {
            ControlError::Busy { message, .. } => ControlError::Busy {
                message,
                hint: Some(
                    "it may be about to migrate itself: stop the daemon for the moment (`systemctl stop refit`), or let it deploy a commit with the migration"
                        .to_owned(),
                ),
            },
            other => other,
        })?;
        let registry = Registry::open(&self.config.server.registry()).await?;
        let running = registry.open_deployments(Status::Running).await;
        registry.close().await;
        match running?.into_iter().find(|(_, other)| other == key) {
            None => Ok(lock),
            Some((id, _)) => Err(ControlError::Busy {
                message: format!("deployment {id} of {key} was interrupted and is not recovered yet"),
                hint: Some("`refit serve` or `refit deploy` recovers it; then try again".to_owned()),
            }),
        }
    }

    async fn back_up(&self, environment: &Environment, commit: &CommitId, job: &Job) -> Result<String> {
        let request = SetRequest {
            environment,
            parts: &[],
            deployment: None,
            commit: Some(commit),
            reason: "before a migration by hand",
            backups_dir: &self.config.server.backups_dir,
            context: &SetContext::default(),
        };
        let report = data::create_set(request, self.runtimes.reach(), job).await;
        let report = report.map_err(|error| refused(&error.to_string()))?;
        let whole = report.failures.is_empty();
        report.set.filter(|_| whole).ok_or_else(|| {
            let why: Vec<String> = report.failures.iter().map(|f| format!("{}: {}", f.name, f.error)).collect();
            refused(&format!("the backup failed: {}; --no-backup does without", why.join("; ")))
        })
    }
}

fn files_dir(files: &MigrationFiles) -> String {
    files.dir.clone()
}

fn quiet(observer: &Observer, cancel: CancellationToken) -> Job {
    Job { log: DeploymentLog::discard(observer.config.redactor.clone()).section("migrate"), cancel }
}

struct Planned<'a> {
    back: Vec<&'a Migration>,
    forth: Vec<&'a Migration>,
}

fn plan<'a>(set: &'a Files, state: &State, verb: MigrateVerb) -> Result<Planned<'a>> {
    let problem = |problems: migrate::Problems| refused(&problems.to_string());
    let below = |to: Option<i64>| to.unwrap_or_else(|| state.below(state.newest().unwrap_or_default()));
    Ok(match verb {
        MigrateVerb::Up { to } => {
            Planned { back: Vec::new(), forth: plan_up(set, &state.applied, to, false).map_err(problem)? }
        }
        MigrateVerb::Down { to } => {
            Planned { back: plan_down(set, &state.applied, below(to)).map_err(problem)?, forth: Vec::new() }
        }
        MigrateVerb::Redo { to } => {
            let back = plan_down(set, &state.applied, below(to)).map_err(problem)?;
            let forth = back.iter().rev().copied().collect();
            Planned { back, forth }
        }
    })
}

/// With the database's own lock; planned again under it, because the first look was without.
async fn carry_out(
    place: &Place,
    files: &MigrationFiles,
    set: &Files,
    (verb, job): (MigrateVerb, Job),
    say: Say<'_>,
    report: &mut MigrateReport,
) -> Result<()> {
    let mut session = Session::open(place, files.lock_timeout, &job.cancel).await?;
    session.lock(LOCK_PATIENCE).await?;
    let state = State { applied: session.applied().await? };
    let plan = plan(set, &state, verb)?;
    let titles = |carried: Vec<Carried>| carried.into_iter().map(|one| one.title).collect();
    let back =
        migrate::down(&mut session, &plan.back, &job.log, &mut Aloud { say: &mut *say, what: "took back" }).await;
    let done = match back {
        Err(failure) => Err(failure),
        Ok(carried) => {
            report.taken_back = titles(carried);
            migrate::up(&mut session, &plan.forth, &job.log, &mut Aloud { say, what: "applied" }).await
        }
    };
    let after = session.applied().await.map(|applied| State { applied }.version());
    session.close().await;
    match (done, after) {
        (Ok(carried), after) => {
            report.applied = titles(carried);
            report.after = after?;
            Ok(())
        }
        (Err(failure), after) => {
            let stands = after.map_or_else(|_| String::new(), |after| format!("; the schema is at {after}"));
            Err(refused(&format!("{}{stands}", failure.message)))
        }
    }
}

/// Says what was done.
struct Aloud<'a> {
    say: Say<'a>,
    what: &'static str,
}

#[async_trait]
impl Witness for Aloud<'_> {
    async fn intent(&mut self, _migration: &Migration) -> std::result::Result<(), String> {
        Ok(())
    }

    async fn effect(&mut self, migration: &Migration) {
        (self.say)(&format!("{} {}", self.what, migration.title()));
    }
}

/// Exit code 1: it was understood, and cannot be done, or not to its end.
fn refused(why: &str) -> ControlError {
    ControlError::Refused {
        message: why.to_owned(),
        hint: Some("`refit migrate status` shows how things stand".to_owned()),
        checks: Vec::new(),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::result::Result<T, String> + Send + 'static,
) -> std::result::Result<T, String> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(format!("it broke off: {e}")))
}

impl From<SessionError> for ControlError {
    fn from(error: SessionError) -> Self {
        let message = error.to_string();
        match error {
            SessionError::Unreachable { .. } => Self::Unavailable {
                message,
                hint: Some("check that it runs, and `database` or `url` in [migrate]".to_owned()),
            },
            SessionError::Locked { .. } => Self::Busy { message, hint: None },
            SessionError::Unfit(_) => Self::usage(message, "correct [migrate] in pipeline.toml"),
            _ => refused(&message),
        }
    }
}
