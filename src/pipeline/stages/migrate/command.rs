//! The user's own command in a one-off container of the new image, with the app's network, environment and secrets.

use super::{Done, Input, OnMigrateFailure, Output, StageFailure, Step, Trail, moved, prepare, restore};
use crate::{
    config::{Migrate, MigrateCommand, MigrateWith},
    pipeline::{journal::FailureKind, stages::within},
    registry::Facts,
    runtime::{Job, OneOff, OneOffResult},
};

/// Where `migrate.down` finds the version to go back to.
const BEFORE: &str = "REFIT_SCHEMA_BEFORE";

pub(super) async fn run(
    step: &Step,
    migrate: &Migrate,
    command: &MigrateCommand,
    input: &Input,
) -> Result<Done, StageFailure> {
    let log = &step.job.log;
    let before = version(step, migrate, input).await?;
    if let Some(status) = &command.status {
        let pending = told(&call(step, migrate, input, ("migrate.status", status, "status")).await?);
        if pending.is_empty() {
            let at = before.as_ref().map(|version| format!(": the schema is at {version}")).unwrap_or_default();
            log.line(format!("no migration is pending{at}"));
            return Done::new(&Output { after: before.clone(), before, ..Output::default() });
        }
        log.line(format!("pending: {}", pending.join(", ")));
    }
    let (mut trail, backup) = prepare(step, migrate, input, before.clone()).await?;
    trail.write(|trail| trail.began = true)?;
    let ran = within(migrate.timeout, "the migration", &step.job.cancel, async |cancel| {
        let job = Job { log: log.clone(), cancel };
        Ok(one_off(step, input, (&command.run, "migrate"), None, &job).await?.code)
    })
    .await;
    let failure = match ran {
        Ok(0) => None,
        Ok(code) => Some(StageFailure::failed(format!("the migration failed with exit code {code}"))),
        Err(failure) if failure.kind == FailureKind::TimedOut => Some(failure),
        Err(failure) => return Err(failure),
    };
    if let Some(failure) = failure {
        let after = version(step, migrate, input).await.unwrap_or_default();
        let moved = moved(before.as_deref(), after.as_deref());
        return Err(StageFailure { message: format!("{}{moved}", failure.message), ..failure });
    }
    let after = version(step, migrate, input).await?;
    if let (Some(before), Some(after)) = (&before, &after) {
        log.line(format!("schema {before} → {after}"));
    }
    let facts = Facts { backup: backup.clone(), ..Facts::default() };
    Ok(Done { facts, ..Done::new(&Output { before, after, backup, applied: Vec::new() })? })
}

pub(super) async fn undo(
    step: &Step,
    input: &Input,
    output: Option<&Output>,
    trail: &mut Trail,
    started: bool,
) -> Result<Option<String>, StageFailure> {
    if !trail.began {
        return Ok(None);
    }
    match (input.on_failure, step.environment.migrate.as_ref().map(|migrate| (migrate, &migrate.with))) {
        (OnMigrateFailure::Restore, _) => {
            let line = restore(step, input, trail, started).await?;
            let stays = left(output).filter(|_| !trail.restored);
            Ok(Some([Some(line), stays].into_iter().flatten().collect::<Vec<_>>().join("; ")))
        }
        (OnMigrateFailure::Down, Some((migrate, MigrateWith::Command(command)))) => {
            take_back(step, migrate, command, (input, trail)).await.map(Some)
        }
        _ => Ok(left(output)),
    }
}

/// What the report says of a schema that stays as it is.
pub(super) fn left(output: Option<&Output>) -> Option<String> {
    match output {
        Some(Output { before: Some(before), after: Some(after), .. }) if before == after => None,
        Some(Output { before: Some(before), after: Some(after), .. }) => {
            Some(format!("the schema was not rolled back: it stays at {after} (it was {before})"))
        }
        _ => Some("the schema was not rolled back: it stays as the migration left it".to_owned()),
    }
}

/// `migrate.down`, where the schema is not at its old version already. Only the version that it prints afterwards counts.
async fn take_back(
    step: &Step,
    migrate: &Migrate,
    command: &MigrateCommand,
    (input, trail): (&Input, &Trail),
) -> Result<String, StageFailure> {
    let (Some(before), Some(down)) = (&trail.before, &command.down) else {
        let why = "`migrate.version` and `migrate.down` are both needed for that";
        return Ok(format!("the schema was not rolled back: {why}"));
    };
    let now = version(step, migrate, input).await?.unwrap_or_default();
    if now == *before {
        return Ok(format!("the schema is at {before}, as it was"));
    }
    step.job.log.line(format!("taking the schema back from {now} to {before}"));
    let ran = within(migrate.timeout, "migrate.down", &step.job.cancel, async |cancel| {
        let job = Job { log: step.job.log.clone(), cancel };
        Ok(one_off(step, input, (down, "down"), Some(before), &job).await?.code)
    })
    .await?;
    let after = version(step, migrate, input).await?.unwrap_or_default();
    match ran {
        0 if after == *before => Ok(format!("the schema went back from {now} to {before}")),
        0 => Err(StageFailure::failed(format!(
            "`migrate.down` ended well, and the schema is at {after}, not at {before}: take it back by hand"
        ))),
        code => Err(StageFailure::failed(format!(
            "`migrate.down` failed with exit code {code}; the schema is at {after} (it was {before})"
        ))),
    }
}

async fn version(step: &Step, migrate: &Migrate, input: &Input) -> Result<Option<String>, StageFailure> {
    let MigrateWith::Command(MigrateCommand { version: Some(command), .. }) = &migrate.with else { return Ok(None) };
    let result = call(step, migrate, input, ("migrate.version", command, "version")).await?;
    Ok(told(&result).pop())
}

/// A command that only looks; its failure is the stage's.
async fn call(
    step: &Step,
    migrate: &Migrate,
    input: &Input,
    (key, run, role): (&str, &str, &str),
) -> Result<OneOffResult, StageFailure> {
    let result = within(migrate.timeout, key, &step.job.cancel, async |cancel| {
        let job = Job { log: step.job.log.clone(), cancel };
        Ok(one_off(step, input, (run, role), None, &job).await?)
    })
    .await?;
    match result.code {
        0 => Ok(result),
        code => Err(StageFailure::failed(format!("`{key}` failed with exit code {code}"))),
    }
}

fn told(result: &OneOffResult) -> Vec<String> {
    let lines = result.stdout_tail.iter().map(|line| line.trim());
    lines.filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

async fn one_off(
    step: &Step,
    input: &Input,
    (run, role): (&str, &str),
    before: Option<&str>,
    job: &Job,
) -> crate::runtime::Result<OneOffResult> {
    let environment = &step.environment;
    let mut env = environment.start.env.clone();
    env.extend(before.map(|before| (BEFORE.to_owned(), before.to_owned())));
    let one_off = OneOff {
        environment,
        deployment: step.deployment,
        role,
        artefact: &input.artefact,
        run,
        env: &env,
        secrets: &environment.start.secrets,
        networks: &environment.start.networks,
        with_volumes: true,
        tree: None,
        collect: None,
    };
    step.world.runtime(environment).run_once(&one_off, job).await
}
