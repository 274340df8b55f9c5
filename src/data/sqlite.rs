//! SQLite: a consistent copy of a database that is in use, through SQLite itself.
//!
//! Copying the file would miss what is still in the `-wal` beside it, or catch a page half written. Refit asks SQLite for
//! `VACUUM INTO`: in one read transaction it writes every table, as of one moment, into a new file. It was chosen over the
//! backup API because that restarts from the beginning each time another process writes (on a busy database it may never
//! end), and because it needs no `unsafe` code. What to know about it:
//!
//! - In WAL mode readers and writers go on undisturbed. With a rollback journal, other writers wait for the time of the copy;
//!   the compression comes after.
//! - The copy is compact, and in rollback-journal mode: WAL is turned on again by the app, or by `PRAGMA journal_mode = wal`.
//!   `user_version` and `application_id` are kept. Row ids of tables without an `INTEGER PRIMARY KEY` may differ, as after any `VACUUM`.
//! - It needs room for the uncompressed copy, beside the compressed one, for the time of the backup.
//!
//! The source is opened read-only. Only where SQLite cannot read it that way (a crash left a journal to be rolled back, or a
//! WAL to be recovered) is it opened for writing, as the app itself would do next. The copy has to pass
//! `PRAGMA integrity_check` before it counts.

use std::{
    fs::OpenOptions,
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use sqlx::{Connection, Row, SqliteConnection, sqlite::SqliteConnectOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::{
    Check, DataError, Part, PartFormat, PartKind, PartSource, Reach, TableRows,
    kind::{Kind, Stored},
    part::{self, Doomed, PartWriter, Place},
    restore::{self, Gate, Loaded, Work},
    unpack::PartReader,
};
use crate::{
    config::{Backup, BackupSource, Compression},
    model::EnvironmentKey,
    runtime::Job,
};

/// How long to wait for a writer that holds the database.
const BUSY: Duration = Duration::from_secs(20);

/// Steps of SQLite's machine between two looks at whether the job is cancelled: a few milliseconds.
const STEPS: i32 = 10_000;

/// SQLite's result codes, <https://www.sqlite.org/rescode.html>; the low byte is the primary one.
pub(super) mod code {
    pub const BUSY: i32 = 5;
    pub const LOCKED: i32 = 6;
    pub const READONLY: i32 = 8;
    pub const INTERRUPT: i32 = 9;
    pub const CORRUPT: i32 = 11;
    pub const FULL: i32 = 13;
    pub const CANTOPEN: i32 = 14;
    pub const NOTADB: i32 = 26;
}

#[derive(Debug)]
pub(super) struct Sqlite;

#[async_trait]
impl Kind for Sqlite {
    fn place(&self, source: &BackupSource) -> String {
        path_of(source).map_or_else(|_| String::new(), |path| format!("SQLite database {}", path.display()))
    }

    async fn dump(&self, backup: &Backup, place: &Place<'_>, _: Reach<'_>, job: &Job) -> Result<Part, DataError> {
        dump(backup, path_of(&backup.source)?, place, job).await
    }

    async fn catalogue(&self, stored: Stored<'_>, job: &Job) -> Result<Vec<Check>, DataError> {
        const WHAT: &str = "integrity check";
        let copy = unpack(stored, job).await?;
        Ok(vec![match integrity(&copy.path, &stored.part.name, &job.cancel).await {
            Ok(()) => Check::good(WHAT, "ok"),
            Err(DataError::Dump { why }) => Check::bad(WHAT, why),
            Err(other) => return Err(other),
        }])
    }

    async fn restore(&self, work: &Work<'_>, gate: Gate) -> Result<Loaded, DataError> {
        restore::sqlite::restore(work, path_of(&work.backup.source)?, gate).await
    }

    async fn ask(
        &self,
        backup: &Backup,
        _: &EnvironmentKey,
        query: &str,
        _: Reach<'_>,
        job: &Job,
    ) -> Result<Option<String>, DataError> {
        ask(path_of(&backup.source)?, query, backup.name.as_str(), &job.cancel).await
    }

    async fn rehearse(&self, stored: Stored<'_>, _: Reach<'_>, job: &Job) -> Result<Vec<TableRows>, DataError> {
        let copy = unpack(stored, job).await?;
        integrity(&copy.path, &stored.part.name, &job.cancel).await?;
        if let Some(query) = stored.backup.and_then(|backup| backup.check.as_deref()) {
            let answer = ask(&copy.path, query, &stored.part.name, &job.cancel).await?;
            super::check::judge(answer).map_err(|why| DataError::dump(format!("its `check` {why}")))?;
        }
        rows(&copy.path, &stored.part.name, &job.cancel).await
    }

    async fn exists(&self, backup: &Backup, _: &EnvironmentKey, _: Reach<'_>, _: &Job) -> Result<bool, DataError> {
        Ok(path_of(&backup.source)?.exists())
    }

    fn discard_leftovers(&self, source: &BackupSource) -> Result<Vec<PathBuf>, DataError> {
        restore::sqlite::discard_leftovers(path_of(source)?)
    }
}

fn path_of(source: &BackupSource) -> Result<&Path, DataError> {
    match source {
        BackupSource::Sqlite { path } => Ok(path),
        _ => Err(DataError::dump("not a SQLite database")),
    }
}

/// The database of a part beside its file, for as long as the guard lives. What an earlier look that was killed left gives way.
async fn unpack(stored: Stored<'_>, job: &Job) -> Result<Doomed, DataError> {
    let name = &stored.part.name;
    let copy = Doomed::new(stored.set.join(format!(".{name}.db{}", part::LOOK)));
    let unpacking = async {
        match std::fs::remove_file(&copy.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(DataError::io("removing", &copy.path)(error));
            }
            Ok(()) | Err(_) => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&copy.path);
        let mut file = tokio::fs::File::from_std(file.map_err(DataError::io("making", &copy.path))?);
        let mut reader = PartReader::open(stored.set, stored.part)?;
        tokio::io::copy(&mut reader, &mut file).await.map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => DataError::dump(error.to_string()),
            _ => DataError::io("writing", &copy.path)(error),
        })?;
        file.flush().await.map_err(DataError::io("writing", &copy.path))?;
        reader.finish().await
    };
    tokio::select! {
        () = job.cancel.cancelled() => return Err(DataError::Cancelled),
        unpacked = unpacking => unpacked?,
    }
    Ok(copy)
}

/// The first column of a query's first row.
async fn ask(path: &Path, query: &str, name: &str, cancel: &CancellationToken) -> Result<Option<String>, DataError> {
    let asking = async {
        let options = SqliteConnectOptions::new().filename(path).read_only(true).busy_timeout(BUSY);
        let mut connection = open(&options, cancel).await?;
        let row = sqlx::query(sqlx::AssertSqlSafe(query.to_owned())).fetch_optional(&mut connection).await?;
        let answer = row.map(|row| text_of(&row));
        connection.close().await?;
        sqlx::Result::Ok(answer)
    };
    asking.await.map_err(|error| explain(error, path, name, path, cancel))
}

/// Whatever type SQLite gave it; NULL is empty.
fn text_of(row: &sqlx::sqlite::SqliteRow) -> String {
    let number = || row.try_get_unchecked::<Option<f64>, _>(0).ok().flatten().map(|value| value.to_string());
    let integer = || row.try_get_unchecked::<Option<i64>, _>(0).ok().flatten().map(|value| value.to_string());
    let text = || row.try_get::<Option<String>, _>(0).ok().flatten();
    text().or_else(integer).or_else(number).unwrap_or_default()
}

/// Rows of each table of a database that nobody else has open, by name.
async fn rows(copy: &Path, name: &str, cancel: &CancellationToken) -> Result<Vec<TableRows>, DataError> {
    let counting = async {
        let options = SqliteConnectOptions::new().filename(copy).read_only(true).immutable(true);
        let mut connection = open(&options, cancel).await?;
        // Virtual tables need their modules, and what they hold is in tables of its own.
        let tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' \
                      AND sql NOT LIKE 'CREATE VIRTUAL%' ORDER BY name";
        let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(&mut connection).await?;
        let mut counted = Vec::with_capacity(tables.len());
        for table in tables {
            let count = format!("SELECT count(*) FROM \"{}\"", table.replace('"', "\"\""));
            let rows: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(count)).fetch_one(&mut connection).await?;
            counted.push(TableRows { name: table, rows: u64::try_from(rows).unwrap_or_default() });
        }
        connection.close().await?;
        sqlx::Result::Ok(counted)
    };
    counting.await.map_err(|error| explain(error, copy, name, copy, cancel))
}

async fn dump(backup: &Backup, source: &Path, place: &Place<'_>, job: &Job) -> Result<Part, DataError> {
    let name = backup.name.as_str();
    check_source(source)?;
    let copy = new_copy(place, name)?;
    let version = copy_into(source, &copy.path, name, &job.cancel).await?;
    integrity(&copy.path, name, &job.cancel).await?;
    let tables = rows(&copy.path, name, &job.cancel).await?;
    let file = format!("{name}.db{}", part::suffix(backup.compression));
    let mut writer = PartWriter::create(place, file, backup.compression).await?;
    tokio::select! {
        () = job.cancel.cancelled() => return Err(DataError::Cancelled),
        stored = store(&copy.path, &mut writer, name) => stored?,
    }
    let written = writer.finish(name).await?;
    if written.raw_bytes == 0 {
        return Err(DataError::dump(format!("the copy of {} is empty", source.display())));
    }
    written.doomed.keep();
    Ok(Part {
        name: name.to_owned(),
        kind: PartKind::Sqlite,
        format: PartFormat::Database,
        source: PartSource { path: Some(source.to_owned()), ..PartSource::default() },
        restore: restore_hint(&written.file, backup.compression),
        file: written.file,
        sha256: written.sha256,
        bytes: written.bytes,
        raw_bytes: written.raw_bytes,
        compression: Some(backup.compression),
        tables,
        tree: None,
        roles: None,
        tool: format!("SQLite {version}"),
        server: None,
        duration_ms: 0,
    })
}

fn restore_hint(file: &str, compression: Compression) -> String {
    let read = match compression {
        Compression::Gzip => "gunzip -c",
        Compression::Zstd => "zstd -dc",
        Compression::None => "cat",
    };
    format!("{read} {file} > DATABASE  # with the app stopped, and DATABASE-wal and DATABASE-shm removed")
}

/// Makes a small database with a table of guests, for `refit demo` to have something to back up.
pub async fn make_example_database(path: &Path) -> Result<(), DataError> {
    let make = async {
        let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
        let mut connection = SqliteConnection::connect_with(&options).await?;
        sqlx::query("CREATE TABLE guests (id INTEGER PRIMARY KEY, name TEXT NOT NULL)")
            .execute(&mut connection)
            .await?;
        for name in ["Ada", "Grace", "Linus"] {
            sqlx::query("INSERT INTO guests (name) VALUES (?1)").bind(name).execute(&mut connection).await?;
        }
        connection.close().await
    };
    let made: sqlx::Result<()> = make.await;
    made.map_err(|error| DataError::dump(format!("SQLite database {} could not be made: {error}", path.display())))
}

/// Says in plain words what SQLite would call "unable to open database file".
fn check_source(source: &Path) -> Result<(), DataError> {
    let problem = match std::fs::metadata(source) {
        Ok(found) if !found.is_file() => "is not a file",
        // SQLite would take it for a database without tables.
        Ok(found) if found.len() == 0 => "is empty",
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => "does not exist",
        Err(error) => return Err(DataError::io("reading", source)(error)),
    };
    Err(DataError::dump(format!("SQLite database {} {problem}", source.display())))
}

/// An empty file, 0600, for SQLite to write into; it goes when the part is done.
fn new_copy(place: &Place<'_>, name: &str) -> Result<Doomed, DataError> {
    let path = place.dir.join(format!(".{name}.db.copy"));
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .map_err(|error| part::write_error(error, name, &path))?;
    Ok(Doomed::new(path))
}

/// Copies the database and returns SQLite's version.
async fn copy_into(source: &Path, copy: &Path, name: &str, cancel: &CancellationToken) -> Result<String, DataError> {
    let Some(target) = copy.to_str() else {
        return Err(DataError::dump(format!("{} is not UTF-8, which SQLite needs", copy.display())));
    };
    let attempt = |read_only| async move {
        let options = SqliteConnectOptions::new().filename(source).read_only(read_only).busy_timeout(BUSY);
        let mut connection = open(&options, cancel).await?;
        sqlx::query("VACUUM INTO ?1").bind(target).execute(&mut connection).await?;
        let version = sqlx::query("SELECT sqlite_version()").fetch_one(&mut connection).await?.try_get(0)?;
        connection.close().await?;
        Ok(version)
    };
    let mut result = attempt(true).await;
    if result.as_ref().is_err_and(|e| matches!(primary_code(e), Some(code::READONLY | code::CANTOPEN))) {
        result = attempt(false).await;
    }
    result.map_err(|error| explain(error, source, name, copy, cancel))
}

/// A connection whose statements end soon after `cancel`.
pub(super) async fn open(options: &SqliteConnectOptions, cancel: &CancellationToken) -> sqlx::Result<SqliteConnection> {
    let mut connection = SqliteConnection::connect_with(options).await?;
    let cancel = cancel.clone();
    connection.lock_handle().await?.set_progress_handler(STEPS, move || !cancel.is_cancelled());
    Ok(connection)
}

/// Whether a database that nobody else has open passes its own check.
pub(super) async fn integrity(copy: &Path, name: &str, cancel: &CancellationToken) -> Result<(), DataError> {
    let check = async {
        let options = SqliteConnectOptions::new().filename(copy).read_only(true).immutable(true);
        let mut connection = open(&options, cancel).await?;
        let rows = sqlx::query("PRAGMA integrity_check").fetch_all(&mut connection).await?;
        connection.close().await?;
        rows.iter().map(|row| row.try_get::<String, _>(0)).collect::<sqlx::Result<Vec<_>>>()
    };
    let found: Vec<String> = check.await.map_err(|error| explain(error, copy, name, copy, cancel))?;
    if found == ["ok"] {
        return Ok(());
    }
    let found = found.into_iter().take(3).collect::<Vec<_>>().join("; ");
    Err(DataError::dump(format!("the database is damaged, its integrity check says: {found}")))
}

/// Compresses the copy into the part's file.
async fn store(copy: &Path, writer: &mut PartWriter, name: &str) -> Result<(), DataError> {
    let mut file = tokio::fs::File::open(copy).await.map_err(DataError::io("reading", copy))?;
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let n = file.read(&mut chunk).await.map_err(DataError::io("reading", copy))?;
        if n == 0 {
            return Ok(());
        }
        if let Err(error) = writer.write_all(&chunk[..n]).await {
            return Err(writer.failure(name).unwrap_or_else(|| part::write_error(error, name, copy)));
        }
    }
}

pub(super) fn primary_code(error: &sqlx::Error) -> Option<i32> {
    let code: i32 = error.as_database_error()?.code()?.parse().ok()?;
    Some(code & 0xff)
}

fn explain(error: sqlx::Error, source: &Path, name: &str, copy: &Path, cancel: &CancellationToken) -> DataError {
    let place = copy.parent().map_or_else(PathBuf::new, Path::to_owned);
    match primary_code(&error) {
        Some(code::FULL) => DataError::NoSpace { place, doing: format!("dumping `{name}`") },
        Some(code::INTERRUPT) if cancel.is_cancelled() => DataError::Cancelled,
        _ if cancel.is_cancelled() => DataError::Cancelled,
        _ => {
            let said = error.as_database_error().map_or_else(|| error.to_string(), |e| e.message().to_owned());
            DataError::dump(format!("SQLite database {} could not be copied: {said}", source.display()))
        }
    }
}
