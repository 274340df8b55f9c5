//! SQLite: the database is unpacked beside the one it replaces, checked, and renamed over it.
//!
//! A SQLite database is one file only at rest. In use, a `-wal` or a `-journal` beside it belongs to it, is found by its name alone, and
//! would be applied to whatever has that name next: fatal for the file put there, and, if it were removed first, a loss for the old
//! one. So the old database is brought to rest by SQLite itself before it is replaced: everything in its WAL moves into the
//! file (`PRAGMA journal_mode = delete`), which SQLite refuses while anyone else has it open in WAL mode, and an exclusive
//! lock is held on it until the rename is done. From then on one file is all there is, and one rename replaces it. If it comes to
//! nothing, WAL mode is turned on again.
//!
//! The new file gets the old one's owner, group and mode, and WAL mode if that was on. A symbolic link is followed: what it
//! points at is replaced.
//!
//! A database too damaged for SQLite to open, the one case where there may be nothing else left of the data, is set aside under another
//! name, not replaced.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use sqlx::{Connection, SqliteConnection, sqlite::SqliteConnectOptions};

use super::{Gate, Loaded, Work};
use crate::data::{
    DataError, PartFormat,
    part::Doomed,
    sqlite::{code, integrity, primary_code},
    unpack::PartReader,
};

/// How long to wait for whoever has the database open to let go.
const BUSY: Duration = Duration::from_secs(10);

/// Files that belong to a database by their names.
const BESIDE: [&str; 3] = ["-wal", "-shm", "-journal"];

/// A database's mode where there is no old one to take it from.
const MODE: u32 = 0o600;

pub(in crate::data) async fn restore(work: &Work<'_>, path: &Path, gate: Gate) -> Result<Loaded, DataError> {
    if work.part.format != PartFormat::Database {
        return Err(DataError::dump("it is no SQLite database"));
    }
    let path = resolve(path)?;
    if let Some(parent) = path.parent() {
        // On a new machine there may be none.
        fs::create_dir_all(parent).map_err(DataError::io("making", parent))?;
    }
    let cancel = &work.job.cancel;
    let new = tokio::select! {
        () = cancel.cancelled() => return Err(DataError::Cancelled),
        new = unpack(work, &path) => new?,
    };
    // From here on the old database has another form, which is undone whatever happens.
    let old = Old::take(&path).await?;
    let replaced = async {
        let shaped = shape(&new.path, old.was_wal()).await;
        let tables = shaped.map_err(|e| DataError::dump(format!("the unpacked database cannot be opened: {e}")))?;
        tokio::select! {
            biased;
            passed = gate.pass() => passed?,
            () = cancel.cancelled() => return Err(DataError::Cancelled),
        }
        Ok((tables, replace(&path, new, &old)?))
    };
    match replaced.await {
        Ok((tables, note)) => {
            old.release().await;
            Ok(Loaded { tables, rows: None, note })
        }
        Err(error) => {
            old.give_back().await;
            Err(error)
        }
    }
}

/// Removes what an earlier restore of this database left. What was removed.
pub(in crate::data) fn discard_leftovers(path: &Path) -> Result<Vec<PathBuf>, DataError> {
    let new = new_path(&resolve(path)?);
    let mut removed = Vec::new();
    for file in BESIDE.iter().map(|ending| with_ending(&new, ending)).chain([new.clone()]) {
        match fs::remove_file(&file) {
            Ok(()) => removed.push(file),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(error) => return Err(DataError::io("removing", &file)(error)),
        }
    }
    Ok(removed)
}

/// Where the database's file really is, or would be.
fn resolve(path: &Path) -> Result<PathBuf, DataError> {
    match fs::canonicalize(path) {
        Ok(real) => Ok(real),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(path.to_owned()),
        Err(error) => Err(DataError::io("reading", path)(error)),
    }
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// One name, so that what was left is found.
fn new_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".refit-restore");
    path.with_file_name(name)
}

/// The new database, checked, beside the old one.
async fn unpack(work: &Work<'_>, path: &Path) -> Result<Doomed, DataError> {
    let new = Doomed::new(new_path(path));
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::InvalidData => DataError::dump(error.to_string()),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            let needed = crate::data::part::size(work.part.raw_bytes);
            DataError::dump(format!("no space left beside it for the unpacked {needed}: free some"))
        }
        _ => DataError::io("writing", &new.path)(error),
    };
    let mut reader = PartReader::open(work.set, work.part)?;
    let file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&new.path).map_err(failed)?;
    let mut file = tokio::fs::File::from_std(file);
    tokio::io::copy(&mut reader, &mut file).await.map_err(failed)?;
    reader.finish().await?;
    file.sync_all().await.map_err(failed)?;
    drop(file);
    integrity(&new.path, &work.part.name, &work.job.cancel).await?;
    Ok(new)
}

/// Counts the tables and sets the journal mode.
async fn shape(new: &Path, wal: bool) -> sqlx::Result<u64> {
    let mut connection = SqliteConnection::connect_with(&SqliteConnectOptions::new().filename(new)).await?;
    let tables = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'";
    let tables: i64 = sqlx::query_scalar(tables).fetch_one(&mut connection).await?;
    if wal {
        sqlx::query("PRAGMA journal_mode = wal").fetch_one(&mut connection).await?;
    }
    connection.close().await?;
    Ok(u64::try_from(tables).unwrap_or_default())
}

/// The database that is to be replaced.
enum Old {
    Missing,
    /// At rest, locked.
    Held {
        connection: Box<SqliteConnection>,
        was_wal: bool,
    },
    /// SQLite says why it cannot be opened.
    Damaged {
        why: String,
    },
}

impl Old {
    async fn take(path: &Path) -> Result<Self, DataError> {
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::Missing),
            Err(error) => return Err(DataError::io("reading", path)(error)),
            Ok(found) if !found.is_file() => return Err(DataError::dump("it is not a file")),
            Ok(_) => {}
        }
        let mut was_wal = false;
        let error = match Self::hold(path, &mut was_wal).await {
            Ok(connection) => return Ok(Self::Held { connection: Box::new(connection), was_wal }),
            Err(error) => error,
        };
        let why = error.as_database_error().map_or_else(|| error.to_string(), |e| e.message().to_owned());
        match primary_code(&error) {
            Some(code::CORRUPT | code::NOTADB) => Ok(Self::Damaged { why }),
            Some(code::BUSY | code::LOCKED) => {
                Err(DataError::dump("another process has it open: stop that and try again"))
            }
            _ => Err(DataError::dump(format!("SQLite cannot lock it: {why}"))),
        }
    }

    async fn hold(path: &Path, was_wal: &mut bool) -> sqlx::Result<SqliteConnection> {
        let options = SqliteConnectOptions::new().filename(path).busy_timeout(BUSY);
        let mut connection = SqliteConnection::connect_with(&options).await?;
        let mode: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut connection).await?;
        *was_wal = mode == "wal";
        sqlx::query("PRAGMA journal_mode = delete").fetch_one(&mut connection).await?;
        sqlx::query("BEGIN EXCLUSIVE").execute(&mut connection).await?;
        Ok(connection)
    }

    fn was_wal(&self) -> bool {
        matches!(self, Self::Held { was_wal: true, .. })
    }

    /// It is replaced, and nothing of it is left to care for.
    async fn release(self) {
        if let Self::Held { connection, .. } = self {
            // Of a file without a name any more.
            let _ = connection.close().await;
        }
    }

    /// It stays: in the form it had.
    async fn give_back(self) {
        if let Self::Held { mut connection, was_wal } = self {
            let given = async {
                sqlx::query("ROLLBACK").execute(connection.as_mut()).await?;
                if was_wal {
                    sqlx::query("PRAGMA journal_mode = wal").fetch_one(connection.as_mut()).await?;
                }
                connection.close().await
            };
            // Its content is whole without that, and an app that wants WAL mode turns it on.
            let _: sqlx::Result<()> = given.await;
        }
    }
}

/// The last step. The note is for people.
fn replace(path: &Path, new: Doomed, old: &Old) -> Result<Option<String>, DataError> {
    dress(path, &new.path)?;
    let note = match old {
        Old::Missing => None,
        Old::Held { .. } => {
            // At rest it needs none of them: what is left is stale.
            for ending in BESIDE {
                remove_if_there(&with_ending(path, ending))?;
            }
            None
        }
        Old::Damaged { why } => Some(set_aside(path, why)?),
    };
    fs::rename(&new.path, path).map_err(DataError::io("replacing", path))?;
    new.keep();
    // The directory's entry must outlive a power cut.
    let parent = path.parent().unwrap_or(Path::new("/"));
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(DataError::io("writing", parent))?;
    Ok(note)
}

/// Gives the new file the old one's owner, group and mode; without an old one, the directory's owner and group.
fn dress(path: &Path, new: &Path) -> Result<(), DataError> {
    let failed = |error| DataError::io("setting the owner and mode of", new)(error);
    let (like, mode) = match fs::metadata(path) {
        Ok(old) => (Ok(old.clone()), old.permissions().mode() & 0o7777),
        Err(_) => (fs::metadata(path.parent().unwrap_or(Path::new("/"))), MODE),
    };
    let like = like.map_err(failed)?;
    let file = OpenOptions::new().write(true).open(new).map_err(failed)?;
    let now = file.metadata().map_err(failed)?;
    if (now.uid(), now.gid()) != (like.uid(), like.gid()) {
        fchown(&file, Some(like.uid()), Some(like.gid())).map_err(failed)?;
    }
    file.set_permissions(Permissions::from_mode(mode)).map_err(failed)?;
    file.sync_all().map_err(failed)
}

/// Side files first: they must not meet the new database.
fn set_aside(path: &Path, why: &str) -> Result<String, DataError> {
    let aside = with_ending(path, &format!(".damaged-{}", Timestamp::now().strftime("%Y-%m-%d_%H-%M-%S")));
    for ending in BESIDE.into_iter().chain([""]) {
        let from = with_ending(path, ending);
        match fs::rename(&from, with_ending(&aside, ending)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(DataError::io("setting aside", &from)(error));
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(format!("the old database could not be opened ({why}) and is kept as {}", aside.display()))
}

fn remove_if_there(path: &Path) -> Result<(), DataError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(DataError::io("removing", path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}
