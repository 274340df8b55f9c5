//! migrate: the user's command in a one-off container of the new image, with the app's network, environment and secrets.

use serde::{Deserialize, Serialize};

use super::{Done, Progress, StageFailure, Step, backup, within};
use crate::{
    config::Migrate,
    model::CommitId,
    pipeline::journal::FailureKind,
    registry::Facts,
    runtime::{Job, OneOff},
};

#[derive(Debug, Serialize, Deserialize)]
pub struct Input {
    pub commit: CommitId,
    pub artefact: String,
    /// When this deployment's backup was taken.
    pub backup_at: Option<jiff::Timestamp>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Output {
    /// What `migrate.version` printed before and after, where it is configured.
    pub before: Option<String>,
    pub after: Option<String>,
    /// The backup was too old and was taken again.
    pub backup: Option<String>,
}

pub fn input(progress: &Progress) -> Result<Input, StageFailure> {
    Ok(Input { commit: progress.commit()?, artefact: progress.artefact()?.id, backup_at: progress.backup_at })
}

pub async fn run(step: &Step, input: Input) -> Result<Done, StageFailure> {
    let Some(migrate) = &step.environment.migrate else {
        return Done::new(&Output { before: None, after: None, backup: None });
    };
    let backup = fresh_backup(step, migrate, &input).await?;
    let before = version(step, migrate, &input).await?;
    let ran = within(migrate.timeout, "the migration", &step.job.cancel, async |cancel| {
        let job = Job { log: step.job.log.clone(), cancel };
        Ok(one_off(step, &input, &migrate.run, "migrate", &job).await?.code)
    })
    .await;
    let failure = match ran {
        Ok(0) => None,
        Ok(code) => Some(StageFailure::failed(format!("the migration failed with exit code {code}"))),
        Err(failure) if failure.kind == FailureKind::TimedOut => Some(failure),
        Err(failure) => return Err(failure),
    };
    if let Some(failure) = failure {
        let after = version(step, migrate, &input).await.unwrap_or_default();
        return Err(StageFailure { message: format!("{}{}", failure.message, moved(&before, &after)), ..failure });
    }
    let after = version(step, migrate, &input).await?;
    if let (Some(before), Some(after)) = (&before, &after) {
        step.job.log.line(format!("schema {before} → {after}"));
    }
    let facts = Facts { backup: backup.clone(), ..Facts::default() };
    Ok(Done { facts, ..Done::new(&Output { before, after, backup })? })
}

/// What a failed migration left, as far as the version command tells.
fn moved(before: &Option<String>, after: &Option<String>) -> String {
    match (before, after) {
        (Some(before), Some(after)) if before == after => format!("; the schema is still at {before}"),
        (Some(before), Some(after)) => format!("; the schema went from {before} to {after}"),
        _ => "; the state of the schema is not known (set `migrate.version` to record it)".to_owned(),
    }
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

async fn version(step: &Step, migrate: &Migrate, input: &Input) -> Result<Option<String>, StageFailure> {
    let Some(command) = &migrate.version else { return Ok(None) };
    let result = within(migrate.timeout, "migrate.version", &step.job.cancel, async |cancel| {
        let job = Job { log: step.job.log.clone(), cancel };
        Ok(one_off(step, input, command, "version", &job).await?)
    })
    .await?;
    if result.code != 0 {
        return Err(StageFailure::failed(format!("`migrate.version` failed with exit code {}", result.code)));
    }
    Ok(result.stdout_tail.iter().rev().find(|line| !line.trim().is_empty()).map(|line| line.trim().to_owned()))
}

async fn one_off(
    step: &Step,
    input: &Input,
    run: &str,
    role: &str,
    job: &Job,
) -> crate::runtime::Result<crate::runtime::OneOffResult> {
    let environment = &step.environment;
    let one_off = OneOff {
        environment,
        deployment: step.deployment,
        role,
        artefact: &input.artefact,
        run,
        env: &environment.start.env,
        secrets: &environment.start.secrets,
        networks: &environment.start.networks,
        with_volumes: true,
        tree: None,
        collect: None,
    };
    step.world.runtime(environment).run_once(&one_off, job).await
}

/// `on_failure = "keep"`: the database stays as it is, and the report says so.
pub async fn undo(step: &Step, _input: Input, output: Option<Output>) -> Result<Option<String>, StageFailure> {
    step.world.runtime(&step.environment).sweep(&step.environment.key, step.deployment).await?;
    let line = match output {
        Some(Output { before: Some(before), after: Some(after), .. }) if before == after => return Ok(None),
        Some(Output { before: Some(before), after: Some(after), .. }) => {
            format!("the schema was not rolled back: it stays at {after} (it was {before})")
        }
        _ => "the schema was not rolled back: it stays as the migration left it".to_owned(),
    };
    Ok(Some(line))
}
