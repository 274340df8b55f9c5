//! backup: a set of dumps before anything changes. Fails soft unless a part is `required`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Done, Progress, StageFailure, Step};
use crate::{
    data::{self, SetRequest},
    model::CommitId,
    registry::Facts,
};

#[derive(Debug, Serialize, Deserialize)]
pub struct Input {
    pub commit: CommitId,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Output {
    /// The set's directory, relative to the backups directory; `None` where every part failed.
    pub set: Option<String>,
    /// The parts that are in the set.
    pub parts: Vec<String>,
    /// Bytes on disk.
    pub bytes: u64,
    /// `part: error` of what is missing.
    pub failures: Vec<String>,
    /// Sets that retention removed.
    pub removed: Vec<String>,
}

pub fn input(progress: &Progress) -> Result<Input, StageFailure> {
    Ok(Input { commit: progress.commit()? })
}

pub async fn run(step: &Step, input: Input) -> Result<Done, StageFailure> {
    let output = take(step, &input.commit, "before a deployment").await?;
    let facts = Facts { backup: output.set.clone(), ..Facts::default() };
    let warning = (!output.failures.is_empty()).then(|| output.failures.join("; "));
    Ok(Done { facts, warning, ..Done::new(&output)? })
}

/// Takes a set and applies retention. An error only if a required part failed.
pub async fn take(step: &Step, commit: &CommitId, reason: &str) -> Result<Output, StageFailure> {
    let environment = &step.environment;
    let backups_dir = &step.world.config.server.backups_dir;
    let request =
        SetRequest { environment, deployment: Some(step.deployment), commit: Some(commit), reason, backups_dir };
    let report = data::create_set(request, Some(step.world.runtimes.containers.as_ref()), &step.job).await?;
    let failures: Vec<String> = report.failures.iter().map(|f| format!("{}: {}", f.name, f.error)).collect();
    if report.is_failure() {
        return Err(StageFailure::failed(format!("a required backup failed: {}", failures.join("; "))));
    }
    let mut removed = Vec::new();
    if report.set.is_some() {
        // Old sets go only once a new one is there. What cannot be removed is no reason to stop.
        let (dir, environment) = (backups_dir.clone(), Arc::clone(environment));
        let pruned = super::blocking(move || {
            Ok(data::prune(&dir, &environment.key, &environment.backup_retention, jiff::Timestamp::now(), &[])?)
        });
        match pruned.await {
            Ok(pruned) => removed = pruned.removed,
            Err(failure) => step.job.log.line(format!("old backups could not be removed: {}", failure.message)),
        }
    }
    Ok(Output {
        set: report.set,
        bytes: report.bytes,
        parts: report.parts.into_iter().map(|p| p.file).collect(),
        failures,
        removed,
    })
}

/// A complete set is kept, whatever becomes of the deployment; what a killed process left half written goes.
pub async fn undo(step: &Step) -> Result<Option<String>, StageFailure> {
    let backups_dir = step.world.config.server.backups_dir.clone();
    let key = step.environment.key.clone();
    super::blocking(move || Ok(data::discard_incomplete(&backups_dir, &key)?)).await?;
    Ok(None)
}
