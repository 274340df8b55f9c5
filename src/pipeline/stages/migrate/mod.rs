//! migrate: brings the database's schema to what the new version needs, by the user's own command (`command`) or by SQL files (`sql`).
//!
//! What is pending is known before anything is done. Where nothing is, the stage says so and does nothing else: no backup, no stop. Where
//! something is, the order is: the *trail* (a file beside the registry, `trail`), with `hold` the stop of the live version, the backup, the migration. Before each
//! of these has an effect, the trail says on disk that it is about to. Undo reads the trail and asks the database, and remembers nothing, so it does not
//! matter which process undoes, or where the last one was killed: what the trail names *and* the database has, this deployment applied.
//!
//! Undo does what `on_failure` says:
//!
//! - `keep`: nothing, and says how the schema stands;
//! - `down`: takes back what this deployment applied, the newest first. It leaves alone what it does not understand: a migration that stopped half way, one
//!   that somebody applied since;
//! - `restore`: puts back the set that was taken with the app stopped. Only while nothing of the app has run since: once start has begun, the new version may
//!   have accepted writes that are in no backup, and the report says that it was not done, and why.
//!
//! What `hold` stopped is started again here, unless start has begun: then its own undo has done it.

use serde::{Deserialize, Serialize};

use super::{Done, Progress, StageFailure, Step, backup, exchange, start, start::Previous};
use crate::{
    config::{Migrate, MigrateWith, OnMigrateFailure},
    model::{CommitId, Stage},
    pipeline::warm,
};

mod command;
mod sql;
mod trail;

use trail::Trail;

#[derive(Debug, Serialize, Deserialize)]
pub struct Input {
    pub commit: CommitId,
    pub artefact: String,
    /// When this deployment's backup was taken.
    pub backup_at: Option<jiff::Timestamp>,
    #[serde(default)]
    pub on_failure: OnMigrateFailure,
    /// Of SQL files: how the schema stands, and what is to be applied.
    #[serde(default)]
    pub files: Option<Listed>,
    /// What is stopped for the time of the migration.
    #[serde(default)]
    pub held: Option<Previous>,
}

/// What the plan found.
#[derive(Debug, Serialize, Deserialize)]
pub struct Listed {
    /// The newest migration of the database, as `7 (add mood)`.
    pub before: String,
    pub pending: Vec<String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Output {
    /// The schema's version before and after: of SQL files always; of a command what `migrate.version` printed, where it is configured.
    pub before: Option<String>,
    pub after: Option<String>,
    /// The backup was too old, or the app had to be stopped for it, and it was taken again.
    pub backup: Option<String>,
    /// The files that were applied, as `7 (add mood)`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub applied: Vec<String>,
}

/// Looks at files and database: what is wrong with them ends the deployment here, with nothing changed.
pub async fn input(step: &Step, progress: &Progress) -> Result<Input, StageFailure> {
    let commit = progress.commit()?;
    let migrate = step.environment.migrate.as_ref();
    let files = match migrate.map(|migrate| (migrate, &migrate.with)) {
        Some((migrate, MigrateWith::Files(files))) => Some(Box::pin(sql::list(step, migrate, files, &commit)).await?),
        _ => None,
    };
    Ok(Input {
        commit,
        artefact: progress.artefact()?.id,
        backup_at: progress.backup_at,
        on_failure: migrate.map(|migrate| migrate.on_failure).unwrap_or_default(),
        files,
        held: progress
            .previous
            .as_ref()
            .filter(|_| migrate.is_some_and(|migrate| migrate.hold))
            .map(|live| Previous::of(step, live)),
    })
}

pub async fn run(step: &Step, input: Input) -> Result<Done, StageFailure> {
    let Some(migrate) = &step.environment.migrate else { return Done::new(&Output::default()) };
    match &migrate.with {
        MigrateWith::Command(command) => command::run(step, migrate, command, &input).await,
        MigrateWith::Files(files) => Box::pin(sql::run(step, migrate, files, &input)).await,
    }
}

/// Everything between the decision to migrate and the first change. The set is one that was taken here.
async fn prepare(
    step: &Step,
    migrate: &Migrate,
    input: &Input,
    before: Option<String>,
) -> Result<(Trail, Option<String>), StageFailure> {
    // It knows the schema of now at best, and nobody needs it for what comes.
    warm::stop(step, None).await?;
    let mut trail = Trail::begin(step, before)?;
    if let Some(live) = &input.held {
        trail.write(|trail| trail.held = true)?;
        step.job.log.line(format!("stopping deployment {} while the schema changes", live.deployment));
        start::silence(step, live).await?;
    }
    let set = match (trail.held, trail.set.clone()) {
        // Of the data before the first change, and of nothing later.
        (true, Some(set)) => Some(set),
        (true, None) => backup_of_what_is_held(step, input).await?,
        (false, _) => fresh_backup(step, migrate, input).await?,
    };
    if trail.held && trail.set.is_none() {
        trail.write(|trail| trail.set.clone_from(&set))?;
    }
    step.world.faults.reach("migrate:prepared").await;
    Ok((trail, set))
}

/// What was written since the first backup is in no set yet, and nothing is written any more.
async fn backup_of_what_is_held(step: &Step, input: &Input) -> Result<Option<String>, StageFailure> {
    if step.environment.backups.is_empty() {
        return Ok(None);
    }
    let taken = backup::take(step, &input.commit, "before a migration, with the app stopped", &[]).await?;
    let whole = taken.set.is_some() && taken.failures.is_empty();
    if input.on_failure == OnMigrateFailure::Restore && !whole {
        let why = taken.failures.join("; ");
        return Err(StageFailure::failed(format!("the data could not be backed up, so nothing was migrated: {why}")));
    }
    Ok(taken.set)
}

async fn fresh_backup(step: &Step, migrate: &Migrate, input: &Input) -> Result<Option<String>, StageFailure> {
    let Some(taken) = input.backup_at else { return Ok(None) };
    let age = jiff::Timestamp::now().duration_since(taken).unsigned_abs();
    if age <= migrate.max_backup_age {
        return Ok(None);
    }
    step.job.log.line(format!("the backup is {} s old: taking it again", age.as_secs()));
    Ok(backup::take(step, &input.commit, "before a migration", &[]).await?.set)
}

/// What a failed migration left, as far as is known.
fn moved(before: Option<&str>, after: Option<&str>) -> String {
    match (before, after) {
        (Some(before), Some(after)) if before == after => format!("; the schema is still at {before}"),
        (Some(before), Some(after)) => format!("; the schema went from {before} to {after}"),
        _ => "; the state of the schema is not known (set `migrate.version` to record it)".to_owned(),
    }
}

/// Does what `on_failure` says, and starts again what was held.
pub async fn undo(step: &Step, input: Input, output: Option<Output>) -> Result<Option<String>, StageFailure> {
    step.world.runtime(&step.environment).sweep(&step.environment.key, step.deployment).await?;
    let Some(mut trail) = Trail::read(step)? else {
        // Nothing was begun, or by a version of refit that left no trail.
        return Ok(if input.files.is_some() { None } else { command::left(output.as_ref()) });
    };
    let (saga, _) = step.world.registry.saga(step.deployment).await.map_err(|e| StageFailure::failed(e.to_string()))?;
    let started = saga.touched.contains(&Stage::Start);
    let schema = undo_schema(step, &input, output.as_ref(), &mut trail, started).await;
    let held = input.held.as_ref().filter(|_| trail.held && !started);
    let Some(held) = held.filter(|_| !trail.torn) else { return schema };
    // With the schema as it is: a version that may not run is better than none.
    let back = start::bring_back(step, held, async || Ok(())).await;
    match (schema, back) {
        (Ok(schema), Ok(back)) => Ok(Some(schema.into_iter().chain([back]).collect::<Vec<_>>().join("; "))),
        (Err(failure), Ok(back)) => Err(StageFailure { message: format!("{}; {back}", failure.message), ..failure }),
        (Ok(_), Err(failure)) => Err(failure),
        (Err(failure), Err(back)) => {
            Err(StageFailure { message: format!("{}; {}", failure.message, back.message), ..failure })
        }
    }
}

async fn undo_schema(
    step: &Step,
    input: &Input,
    output: Option<&Output>,
    trail: &mut Trail,
    started: bool,
) -> Result<Option<String>, StageFailure> {
    match &input.files {
        Some(_) => Box::pin(sql::undo(step, input, trail, started)).await,
        None => command::undo(step, input, output, trail, started).await,
    }
}

/// Puts back the set that was taken with the app stopped, once.
async fn restore(step: &Step, input: &Input, trail: &mut Trail, started: bool) -> Result<String, StageFailure> {
    let not = |why: &str| format!("the backup was not put back, and the schema stays as it is: {why}");
    let Some(set) = trail.set.clone() else { return Ok(not("none was taken with the app stopped")) };
    if started {
        return Ok(not(&format!(
            "the new version has run since, and what it accepted would be lost; if that is well, `refit backup restore {set}` does it"
        )));
    }
    if !trail.restored {
        if let Some(live) = &input.held {
            start::silence(step, live).await?;
        }
        if let Err(error) = exchange::put(step, &set, &[]).await {
            if !error.left_data_alone() {
                trail.write(|trail| trail.torn = true)?;
            }
            return Err(error.into());
        }
        // From here on the app may run again, and what it writes must not be put back.
        trail.write(|trail| trail.restored = true)?;
    }
    Ok(format!("the data is as it was before the migration: backup {set} was put back"))
}
