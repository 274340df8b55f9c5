//! Files: a directory of this host with everything below it. How it is packed, unpacked and exchanged is told in `archive.rs`.
//!
//! All or nothing: the tree grows beside the one that it replaces, and one rename exchanges the two when every part is ready. The old tree is removed
//! after that; a restore that is killed leaves either of them whole, and what is too many is removed by the next. A directory that is a
//! mount point gets its content exchanged instead, which a kill can interrupt and the next restore ends.
//!
//! A symbolic link as the configured path is followed.

use std::{
    io,
    path::{Path, PathBuf},
};

use async_trait::async_trait;

use super::{
    Check, DataError, Part, PartKind, PartSource, Reach, TableRows,
    archive::{
        exchange::{discard, is_half_done},
        pack,
    },
    kind::{Kind, Stored},
    part::Place,
    restore::{Gate, Loaded, Work},
    tree,
};
use crate::{
    config::{Backup, BackupSource, PathRules},
    model::EnvironmentKey,
    runtime::Job,
};

/// Unpacks on another machine, into a directory that is there and empty.
const HINT: &str = "tar --extract --preserve-permissions --numeric-owner --directory=EMPTY_DIRECTORY";

#[derive(Debug)]
pub(super) struct Files;

#[async_trait]
impl Kind for Files {
    fn place(&self, source: &BackupSource) -> String {
        source_of(source).map_or_else(|_| String::new(), |(path, _)| format!("files in {}", path.display()))
    }

    async fn dump(&self, backup: &Backup, place: &Place<'_>, _: Reach<'_>, job: &Job) -> Result<Part, DataError> {
        let (path, exclude) = source_of(&backup.source)?;
        let root = readable(path)?;
        let exclude = tree::exclude(exclude);
        let made = tree::store(backup, place, job, move |feed| pack(&root, &exclude, feed)).await;
        let made = made.map_err(|error| about(path, error))?;
        let source = PartSource { path: Some(path.to_owned()), ..PartSource::default() };
        Ok(tree::part(backup, PartKind::Files, source, made, HINT))
    }

    async fn catalogue(&self, stored: Stored<'_>, job: &Job) -> Result<Vec<Check>, DataError> {
        tree::catalogue(stored, job).await
    }

    async fn restore(&self, work: &Work<'_>, gate: Gate) -> Result<Loaded, DataError> {
        let (path, exclude) = source_of(&work.backup.source)?;
        let target = (resolve(path)?, tree::exclude(exclude), false);
        let ready = tree::prepare(work.set, work.part, work.job, target).await?;
        tokio::select! {
            biased;
            passed = gate.pass() => passed?,
            () = work.job.cancel.cancelled() => return Err(DataError::Cancelled),
        }
        tree::exchange(ready).await
    }

    async fn rehearse(&self, stored: Stored<'_>, _: Reach<'_>, job: &Job) -> Result<Vec<TableRows>, DataError> {
        tree::rehearse(stored, job).await.map(|()| Vec::new())
    }

    async fn exists(&self, backup: &Backup, _: &EnvironmentKey, _: Reach<'_>, _: &Job) -> Result<bool, DataError> {
        Ok(source_of(&backup.source)?.0.exists())
    }

    fn discard_leftovers(&self, source: &BackupSource) -> Result<Vec<PathBuf>, DataError> {
        let root = resolve(source_of(source)?.0)?;
        discard(&root).map_err(DataError::io("tidying up", &root))
    }
}

fn source_of(source: &BackupSource) -> Result<(&Path, &PathRules), DataError> {
    match source {
        BackupSource::Files { path, exclude } => Ok((path, exclude)),
        _ => Err(DataError::dump("not a directory")),
    }
}

/// Where the directory really is, or would be.
fn resolve(path: &Path) -> Result<PathBuf, DataError> {
    match std::fs::canonicalize(path) {
        Ok(real) => Ok(real),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(path.to_owned()),
        Err(error) => Err(DataError::io("reading", path)(error)),
    }
}

fn readable(path: &Path) -> Result<PathBuf, DataError> {
    let problem = match std::fs::metadata(path) {
        Ok(found) if !found.is_dir() => "is no directory: name the one that it is in",
        Ok(_) => {
            let root = resolve(path)?;
            if !is_half_done(&root) {
                return Ok(root);
            }
            "holds a restore that was interrupted: restore again first"
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => "does not exist",
        Err(error) => return Err(DataError::io("reading", path)(error)),
    };
    Err(DataError::dump(format!("{} {problem}", path.display())))
}

fn about(path: &Path, error: DataError) -> DataError {
    match error {
        DataError::Dump { why } => DataError::dump(format!("{} could not be read: {why}", path.display())),
        other => other,
    }
}
