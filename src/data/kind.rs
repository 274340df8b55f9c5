//! What can be backed up: one file a kind, each behind [`Kind`]. A new kind is a file, a variant of [`PartKind`] and of
//! [`BackupSource`], and a line in each of the two functions here.
//!
//! A kind keeps nothing between calls. It is asked with the configured [`Backup`], which says where the data is now, or with a [`Part`],
//! which says what a file of a set holds; `catalogue` has to do with the latter alone, because a set can be looked at
//! on a machine that has no configuration.

use std::path::PathBuf;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{
    DataError, Part, PartKind, TableRows, command, files, mysql,
    part::Place,
    postgres,
    progress::SetDir,
    restore::{Gate, Loaded, Work},
    sqlite, volume,
};
use crate::{
    config::{Backup, BackupSource},
    model::EnvironmentKey,
    runtime::{ContainerExec, Job, Scratch},
};

/// What a backup may reach beyond this host's files. What is `None` is out of reach, and who needs it says so.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reach<'a> {
    /// Commands in containers.
    pub containers: Option<&'a dyn ContainerExec>,
    /// Throw-away containers.
    pub scratch: Option<&'a dyn Scratch>,
}

impl<'a> Reach<'a> {
    /// # Errors
    /// [`DataError::Dump`] that says what is out of reach.
    pub(super) fn containers(&self, container: &str) -> Result<&'a dyn ContainerExec, DataError> {
        self.containers.ok_or_else(|| {
            DataError::dump(format!(
                "container `{container}` is out of reach: this environment's runtime has no Docker Engine"
            ))
        })
    }
}

/// One thing that was looked at, and what was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// For people: `SHA-256`, `table of contents`.
    pub what: String,
    pub ok: bool,
    /// For people: what was found, or what is wrong.
    pub detail: String,
}

impl Check {
    pub(super) fn good(what: &str, detail: impl Into<String>) -> Self {
        Self { what: what.to_owned(), ok: true, detail: detail.into() }
    }

    pub(super) fn bad(what: &str, detail: impl Into<String>) -> Self {
        Self { what: what.to_owned(), ok: false, detail: detail.into() }
    }
}

/// Rows of a table (or entries of what is no database): noted when it was dumped, and found when it was tried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableCount {
    /// As people write it: `public.guests`, with quotes where SQL needs them.
    pub name: String,
    /// `None`: the set is of a Refit that did not count.
    pub expected: Option<u64>,
    pub found: u64,
}

/// A part's file in its set.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stored<'a> {
    pub part: &'a Part,
    pub set: SetDir<'a>,
    /// Whose the set is: throw-away containers are labelled with it.
    pub key: &'a EnvironmentKey,
    /// The configuration's entry of the part's name and kind, if there is one.
    pub backup: Option<&'a Backup>,
}

#[async_trait]
pub(super) trait Kind: Send + Sync {
    /// For people, and what tells two sources apart: ``PostgreSQL database `guestbook` in container `db` ``.
    fn place(&self, source: &BackupSource) -> String;

    /// Dumps into one file of `place`; the file is gone if this fails or is dropped. `duration_ms` of the part is set by the caller, who
    /// also watches the time.
    async fn dump(&self, backup: &Backup, place: &Place<'_>, reach: Reach<'_>, job: &Job) -> Result<Part, DataError>;

    /// Reads the whole file, whose checksum is known to be right, and says what its own signs tell: whether it is whole, what is in it. With no
    /// server. An error means that it could not be looked at; what is wrong with it is a check that is not `ok`.
    async fn catalogue(&self, stored: Stored<'_>, job: &Job) -> Result<Vec<Check>, DataError>;

    /// Brings the part to where one small step is left, passes the gate, and takes that step. An error before the gate opened means that
    /// nothing was changed.
    async fn restore(&self, work: &Work<'_>, gate: Gate) -> Result<Loaded, DataError>;

    /// Whether a restore changes something before its last step, and cannot undo that. Such a part is put back when all others are ready, and before they take
    /// theirs: its gate is open.
    fn comes_last(&self) -> bool {
        false
    }

    /// Restores the file into something that is thrown away afterwards, and counts the rows of the tables that are noted in the part, or of
    /// all where none are. An error means that it could not be restored, or that there
    /// is no way to try: it says which.
    async fn rehearse(&self, stored: Stored<'_>, reach: Reach<'_>, job: &Job) -> Result<Vec<TableRows>, DataError>;

    /// Runs a query in the database as it is now: the first column of the first row as text, `None` where there is no row.
    async fn ask(
        &self,
        backup: &Backup,
        key: &EnvironmentKey,
        query: &str,
        reach: Reach<'_>,
        job: &Job,
    ) -> Result<Option<String>, DataError> {
        // A kind that is no database.
        let _ = (key, query, reach, job);
        Err(DataError::dump(format!("`{}` is no database that could be asked", backup.name)))
    }

    /// Whether there is anything yet: a restore makes what is not. An error where that cannot be told.
    async fn exists(
        &self,
        backup: &Backup,
        key: &EnvironmentKey,
        reach: Reach<'_>,
        job: &Job,
    ) -> Result<bool, DataError> {
        // A kind that only its owner knows.
        let _ = (backup, key, reach, job);
        Ok(true)
    }

    /// Ends or removes what a restore that was killed left where that takes more than this host's files. What was done, for people.
    async fn sweep(
        &self,
        backup: &Backup,
        key: &EnvironmentKey,
        reach: Reach<'_>,
        job: &Job,
    ) -> Result<Option<String>, DataError> {
        // A kind whose restores leave nothing there.
        let _ = (backup, key, reach, job);
        Ok(None)
    }

    /// Removes what a restore that was killed left. What was removed.
    fn discard_leftovers(&self, source: &BackupSource) -> Result<Vec<PathBuf>, DataError> {
        // A kind whose restores leave nothing.
        let _ = source;
        Ok(Vec::new())
    }
}

/// Who knows a kind.
pub(super) fn kind_of(kind: PartKind) -> &'static dyn Kind {
    match kind {
        PartKind::Postgres => &postgres::Postgres,
        PartKind::Mysql => &mysql::Mysql,
        PartKind::Sqlite => &sqlite::Sqlite,
        PartKind::Files => &files::Files,
        PartKind::Volume => &volume::Volume,
        PartKind::Command => &command::Command,
    }
}

impl PartKind {
    pub(super) fn of(source: &BackupSource) -> Self {
        match source {
            BackupSource::Postgres { .. } | BackupSource::PostgresUrl { .. } => Self::Postgres,
            BackupSource::Mysql { .. } | BackupSource::MysqlUrl { .. } => Self::Mysql,
            BackupSource::Sqlite { .. } => Self::Sqlite,
            BackupSource::Files { .. } => Self::Files,
            BackupSource::Volume { .. } => Self::Volume,
            BackupSource::Command(_) => Self::Command,
        }
    }
}

/// For people.
pub(super) fn place(source: &BackupSource) -> String {
    kind_of(PartKind::of(source)).place(source)
}
