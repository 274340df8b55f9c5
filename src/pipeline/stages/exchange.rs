//! Data that goes back, with a rollback or by itself: put back between the stop of one version and the start of the other (or of the same one),
//! and forward again by undo.
//!
//! Before the first byte is touched a mark is written beside the state that was kept (`pipeline::state`). Undo exchanges data only where it
//! finds the mark: one that ended before that has left the data alone, and what was written since the backup stays.
//!
//! Data that was put back under the version that was live has to answer the `check` of its `[[backup]]`, where there is one, before anything
//! starts on it.

use std::{io, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{StageFailure, Step};
use crate::{
    data::{self, RestoreRequest},
    files,
    model::Name,
    pipeline::state,
};

/// Two backup sets, relative to the backups directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Exchange {
    /// The data as the old version left it.
    pub back: String,
    /// The data as it was when the rollback began; `None` where it could not be backed up, and the one who asked knew that.
    pub forward: Option<String>,
    /// Only these parts; all where empty.
    #[serde(default)]
    pub parts: Vec<Name>,
    /// What was put back has to answer today's `check`: where the version stays the same.
    #[serde(default)]
    pub check: bool,
}

/// Puts the old data back. Nothing that uses it may run.
pub async fn back(step: &Step, exchange: &Exchange) -> Result<(), StageFailure> {
    let mark = mark(step);
    let failed = |e: io::Error| StageFailure::failed(format!("{} cannot be written: {e}", mark.display()));
    if let Some(dir) = mark.parent() {
        files::make_private_dir(dir).map_err(failed)?;
    }
    files::write_atomically(&mark, exchange.back.as_bytes(), 0o600).map_err(failed)?;
    let restored = put(step, &exchange.back, &exchange.parts).await;
    if let Err(error) = &restored
        && error.left_data_alone()
    {
        unmark(&mark)?;
    }
    restored?;
    if exchange.check {
        data::check_data(&step.environment, &exchange.parts, step.world.runtimes.reach(), &step.job).await?;
    }
    Ok(())
}

/// Whether the old data may have been put back, so that undo has to exchange it again.
pub fn began(step: &Step) -> bool {
    mark(step).exists()
}

/// Puts the data forward again, as it was when the rollback began. Nothing that uses it may run.
pub async fn forward(step: &Step, exchange: &Exchange) -> Result<(), StageFailure> {
    match &exchange.forward {
        Some(set) => match held(step, set, &exchange.parts)? {
            Some(parts) => put(step, set, &parts).await?,
            None => step.job.log.line("there was nothing of it before: what was put back stays"),
        },
        None => step.job.log.line("there is no backup of the data as it was before: what was put back stays"),
    }
    unmark(&mark(step))
}

/// Which of these parts a set holds: what did not exist when it was taken is not in it. `None`: none of them.
fn held(step: &Step, set: &str, parts: &[Name]) -> Result<Option<Vec<Name>>, StageFailure> {
    if parts.is_empty() {
        return Ok(Some(Vec::new()));
    }
    let manifest = data::read_manifest(&step.world.config.server.backups_dir.join(set))?;
    let is_held = |name: &&Name| manifest.parts.iter().any(|part| part.name == name.as_str());
    let held: Vec<Name> = parts.iter().filter(is_held).cloned().collect();
    Ok((!held.is_empty()).then_some(held))
}

/// Restores a set, or some of its parts. Nothing that uses the data may run.
pub(super) async fn put(step: &Step, set: &str, parts: &[Name]) -> Result<(), data::DataError> {
    let (backups, key, name) =
        (step.world.config.server.backups_dir.clone(), step.environment.key.clone(), set.to_owned());
    let found = tokio::task::spawn_blocking(move || data::which_set(&backups, &key, &name)).await;
    let dir =
        found.map_err(|e| data::DataError::Dump { why: format!("looking for {set} was interrupted: {e}") })??.path;
    let request = RestoreRequest { environment: &step.environment, set: &dir, parts };
    let report = data::restore_set(request, step.world.runtimes.reach(), &step.job).await?;
    for part in &report.restored {
        step.job.log.line(format!("put back {} from {set}", part.place));
    }
    Ok(())
}

fn mark(step: &Step) -> PathBuf {
    state::dir(&step.world, &step.environment.key, step.deployment).join("data-exchanged")
}

fn unmark(mark: &std::path::Path) -> Result<(), StageFailure> {
    match std::fs::remove_file(mark) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StageFailure::failed(format!("{} cannot be removed: {error}", mark.display())))
        }
        _ => Ok(()),
    }
}
