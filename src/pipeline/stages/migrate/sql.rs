//! SQL files: the room `crate::migrate`, with this deployment's trail.

use std::{collections::BTreeSet, time::Duration};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::{Done, Input, Listed, OnMigrateFailure, Output, StageFailure, Step, Trail, moved, prepare, restore};
use crate::{
    config::{Migrate, MigrateWith, MigrationFiles},
    migrate::{
        self, Files, Migration, Place, Session, SessionError, State, Witness, down, plan_up, up,
    },
    model::CommitId,
    pipeline::{journal::FailureKind, stages::{blocking, within}},
    registry::Facts,
};

/// How long another program that migrates is waited for, and a session that was cut off and is still at work.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);

/// Versions named in one line of a report.
const NAMED: usize = 6;

impl From<SessionError> for StageFailure {
    fn from(error: SessionError) -> Self {
        let kind = match error {
            SessionError::Unreachable { .. } => FailureKind::Unavailable,
            SessionError::Cancelled => FailureKind::Cancelled,
            _ => FailureKind::Failed,
        };
        Self { kind, message: error.to_string() }
    }
}

/// The plan, from the commit's files and the database's table. Changes nothing.
pub(super) async fn list(
    step: &Step,
    migrate: &Migrate,
    files: &MigrationFiles,
    commit: &CommitId,
) -> Result<Listed, StageFailure> {
    let set = read(step, files, commit).await?;
    let place = place(step, files).await?;
    let state = migrate::look(&place, &step.job.cancel).await?;
    let reversible = migrate.on_failure == OnMigrateFailure::Down;
    let pending = plan_up(&set, &state.applied, None, reversible)
        .map_err(|problems| StageFailure::failed(problems.to_string()))?;
    Ok(Listed { before: state.version(), pending: pending.iter().map(|migration| migration.title()).collect() })
}

/// The migrations of a commit.
async fn read(step: &Step, files: &MigrationFiles, commit: &CommitId) -> Result<Files, StageFailure> {
    let mirror = step.world.mirror_of(&step.environment);
    let (dir, commit) = (files.dir.clone(), commit.clone());
    blocking(move || migrate::files_of(&mirror, &commit, &dir).map_err(StageFailure::failed)).await
}

async fn place(step: &Step, files: &MigrationFiles) -> Result<Place, StageFailure> {
    Ok(migrate::place(&step.environment, files, step.world.runtimes.containers.as_ref()).await?)
}

pub(super) async fn run(
    step: &Step,
    migrate: &Migrate,
    files: &MigrationFiles,
    input: &Input,
) -> Result<Done, StageFailure> {
    let Some(listed) = &input.files else {
        return Err(StageFailure::failed("the journal has no plan for these migrations: run it again"));
    };
    let log = &step.job.log;
    let before = listed.before.clone();
    if listed.pending.is_empty() {
        log.line(format!("no migration is pending: the schema is at {before}"));
        return Done::new(&Output { after: Some(before.clone()), before: Some(before), ..Output::default() });
    }
    log.line(format!("the schema is at {before}; pending: {}", listed.pending.join(", ")));
    let (mut trail, backup) = prepare(step, migrate, input, Some(before.clone())).await?;
    let ran = within(migrate.timeout, "the migration", &step.job.cancel, async |cancel| {
        apply(step, migrate, files, (input, &mut trail), cancel).await
    })
    .await;
    match ran {
        Ok((applied, after)) => {
            log.line(format!("schema {before} → {after}"));
            let facts = Facts { backup: backup.clone(), ..Facts::default() };
            let output = Output { before: Some(before), after: Some(after), backup, applied };
            Ok(Done { facts, ..Done::new(&output)? })
        }
        Err(failure) if failure.kind == FailureKind::Cancelled => Err(failure),
        Err(failure) => {
            let after = settled(step, files).await.map(|(_, state)| state.version());
            let after = match after {
                Ok(after) => moved(Some(&before), Some(&after)),
                Err(why) => format!("; how the schema stands is not known: {}", why.message),
            };
            Err(StageFailure { message: format!("{}{after}", failure.message), ..failure })
        }
    }
}

/// Applies what is pending now that nobody else migrates, and returns that and the schema's version.
async fn apply(
    step: &Step,
    migrate: &Migrate,
    files: &MigrationFiles,
    (input, trail): (&Input, &mut Trail),
    cancel: CancellationToken,
) -> Result<(Vec<String>, String), StageFailure> {
    let set = read(step, files, &input.commit).await?;
    let place = place(step, files).await?;
    let mut session = Session::open(&place, files.lock_timeout, &cancel).await?;
    session.lock(LOCK_PATIENCE).await?;
    let applied = session.applied().await?;
    let pending = plan_up(&set, &applied, None, migrate.on_failure == OnMigrateFailure::Down);
    let pending = pending.map_err(|problems| StageFailure::failed(problems.to_string()))?;
    let mut witness = Recorder { step, trail };
    let carried = up(&mut session, &pending, &step.job.log, &mut witness).await;
    let state = session.applied().await.map(|applied| State { applied });
    session.close().await;
    match carried {
        Ok(_) => {
            let state = state?;
            // All that this deployment applied, also before a step was done again.
            let applied = ours(&state, trail).iter().filter_map(|version| set.get(*version).map(Migration::title)).collect();
            Ok((applied, state.version()))
        }
        Err(failure) => Err(StageFailure { message: failure.message, ..failure.cause.into() }),
    }
}

/// Writes each migration into the trail before it is applied.
struct Recorder<'a> {
    step: &'a Step,
    trail: &'a mut Trail,
}

#[async_trait]
impl Witness for Recorder<'_> {
    async fn intent(&mut self, migration: &Migration) -> Result<(), String> {
        self.trail.write(|trail| trail.begun.push(migration.version)).map_err(|failure| failure.message)?;
        self.step.world.faults.reach(&format!("migrate:{}:intent", migration.version)).await;
        Ok(())
    }

    async fn effect(&mut self, migration: &Migration) {
        self.step.world.faults.reach(&format!("migrate:{}:effect", migration.version)).await;
    }
}

/// A session with the lock, and how the schema stands now that no other one is at work.
async fn settled(step: &Step, files: &MigrationFiles) -> Result<(Session, State), StageFailure> {
    let place = place(step, files).await?;
    let mut session = Session::open(&place, files.lock_timeout, &CancellationToken::new()).await?;
    session.lock(LOCK_PATIENCE).await?;
    let applied = session.applied().await?;
    Ok((session, State { applied }))
}

pub(super) async fn undo(
    step: &Step,
    input: &Input,
    trail: &mut Trail,
    started: bool,
) -> Result<Option<String>, StageFailure> {
    let before = trail.before.clone().unwrap_or_else(|| "none".to_owned());
    if trail.begun.is_empty() {
        return Ok(None);
    }
    if input.on_failure == OnMigrateFailure::Restore && trail.restored {
        return restore(step, input, trail, started).await.map(Some);
    }
    let Some(MigrateWith::Files(files)) = step.environment.migrate.as_ref().map(|migrate| &migrate.with) else {
        let why = "SQL files migrated here, and `migrate.files` is no longer configured";
        return Ok(Some(format!("the schema was not rolled back: {why}; it was at {before}")));
    };
    let (session, state) = match settled(step, files).await {
        Ok(settled) => settled,
        // What is to be left alone need not be looked at.
        Err(failure) if input.on_failure == OnMigrateFailure::Keep => {
            let why = failure.message;
            return Ok(Some(format!("the schema was not rolled back, and how it stands is not known: {why}; it was at {before}")));
        }
        Err(failure) => return Err(failure),
    };
    let set = read(step, files, &input.commit).await?;
    if is_as_before(&set, &state, trail, session.server().undoes()) {
        session.close().await;
        return Ok(Some(format!("the schema is at {before}, as it was before")));
    }
    match input.on_failure {
        OnMigrateFailure::Keep => {
            session.close().await;
            Ok(Some(stays(&state, trail, &before)))
        }
        OnMigrateFailure::Down => take_back(step, session, (&set, &state, trail), &before).await.map(Some),
        OnMigrateFailure::Restore => {
            session.close().await;
            let line = restore(step, input, trail, started).await?;
            Ok(Some(if trail.restored { line } else { format!("{line}; {}", stays(&state, trail, &before)) }))
        }
    }
}

/// Whether every file that was begun was undone by its own transaction.
fn is_as_before(set: &Files, state: &State, trail: &Trail, undoes: bool) -> bool {
    let transactional = |version: &i64| set.get(*version).is_some_and(Migration::in_transaction);
    undoes && trail.begun.iter().all(|version| !state.has(*version) && transactional(version))
}

fn stays(state: &State, trail: &Trail, before: &str) -> String {
    let ours = ours(state, trail);
    let mut line = format!("the schema was not rolled back: it stays at {} (it was {before})", state.version());
    if let Some(dirty) = state.dirty() {
        line.push_str(&format!("; {dirty}"));
    } else if !ours.is_empty() {
        let first = ours.first().copied().unwrap_or_default();
        line.push_str(&format!("; `refit migrate down --to {}` takes it back", state.below(first)));
    }
    line
}

/// What this deployment began and the database has, by number.
fn ours(state: &State, trail: &Trail) -> Vec<i64> {
    let begun: BTreeSet<i64> = trail.begun.iter().copied().filter(|version| state.has(*version)).collect();
    begun.into_iter().collect()
}

/// Takes back what this deployment applied, the newest first.
async fn take_back(
    step: &Step,
    mut session: Session,
    (set, state, trail): (&Files, &State, &Trail),
    before: &str,
) -> Result<String, StageFailure> {
    let ours = ours(state, trail);
    let refused = |why: String| format!("the schema was not rolled back: {why}; it stays at {} (it was {before})", state.version());
    if let Some(dirty) = state.dirty() {
        session.close().await;
        return Ok(refused(dirty.to_string()));
    }
    if state.newest() > ours.last().copied() {
        session.close().await;
        return Ok(refused("somebody has applied another migration since".to_owned()));
    }
    let back: Vec<&Migration> = ours.iter().rev().filter_map(|version| set.get(*version)).collect();
    let mut witness = Backwards { step };
    let carried = down(&mut session, &back, &step.job.log, &mut witness).await;
    let now = session.applied().await.map(|applied| State { applied }.version());
    session.close().await;
    match carried {
        Ok(carried) => {
            let titles: Vec<String> = carried.iter().take(NAMED).map(|one| one.title.clone()).collect();
            let more = if carried.len() > NAMED { ", …" } else { "" };
            Ok(format!("the schema went back to {}: {}{more} taken back", now?, titles.join(", ")))
        }
        Err(failure) => {
            let now = now.unwrap_or_else(|_| "a version that is not known".to_owned());
            let message = format!("{}; the schema is at {now} (it was {before})", failure.message);
            Err(StageFailure { message, ..failure.cause.into() })
        }
    }
}

/// For the tests that kill in the middle of going back.
struct Backwards<'a> {
    step: &'a Step,
}

#[async_trait]
impl Witness for Backwards<'_> {
    async fn intent(&mut self, migration: &Migration) -> Result<(), String> {
        self.step.world.faults.reach(&format!("migrate:{}:back", migration.version)).await;
        Ok(())
    }

    async fn effect(&mut self, migration: &Migration) {
        self.step.world.faults.reach(&format!("migrate:{}:gone", migration.version)).await;
    }
}
