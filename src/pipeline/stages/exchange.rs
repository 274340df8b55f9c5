//! Data that goes with a rollback: put back between the stop of one version and the start of the other, and forward again by undo.
//!
//! Before the first byte is touched a mark is written beside the state that was kept (`pipeline::state`). Undo exchanges data only where it
//! finds the mark: a rollback that ended before that has left the data alone, and what was written since the backup stays.

use std::{io, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{StageFailure, Step};
use crate::{
    data::{self, RestoreRequest},
    files,
    pipeline::state,
};

/// Two backup sets, relative to the backups directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Exchange {
    /// The data as the old version left it.
    pub back: String,
    /// The data as it was when the rollback began.
    pub forward: String,
}

/// Puts the old data back. Nothing that uses it may run.
pub async fn back(step: &Step, exchange: &Exchange) -> Result<(), StageFailure> {
    let mark = mark(step);
    let failed = |e: io::Error| StageFailure::failed(format!("{} cannot be written: {e}", mark.display()));
    if let Some(dir) = mark.parent() {
        files::make_private_dir(dir).map_err(failed)?;
    }
    files::write_atomically(&mark, exchange.forward.as_bytes(), 0o600).map_err(failed)?;
    let restored = put(step, &exchange.back).await;
    if let Err(error) = &restored
        && error.left_data_alone()
    {
        unmark(&mark)?;
    }
    Ok(restored?)
}

/// Whether the old data may have been put back, so that undo has to exchange it again.
pub fn began(step: &Step) -> bool {
    mark(step).exists()
}

/// Puts the data forward again, as it was when the rollback began. Nothing that uses it may run.
pub async fn forward(step: &Step, exchange: &Exchange) -> Result<(), StageFailure> {
    put(step, &exchange.forward).await?;
    unmark(&mark(step))
}

async fn put(step: &Step, set: &str) -> Result<(), data::DataError> {
    let dir = step.world.config.server.backups_dir.join(set);
    let request = RestoreRequest { environment: &step.environment, set: &dir };
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
