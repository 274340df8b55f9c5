//! The store: one SQLite file with everything that must survive a crash. Every SQL statement of the program is in this room.
//!
//! WAL with `synchronous=FULL`: a commit that returned is on disk. One connection writes, so that writers queue here and not in
//! SQLite's busy handler; two read. Another process (a reading command, or `refit deploy` without a daemon) may open
//! the same file at the same time; who may *act* is decided by the lock file, not here.
//!
//! - `inbox`: deliveries, one row each, several to a commit.
//! - `deployments`: rows and queries; the rest of a [`DeploymentView`](crate::model::DeploymentView) is folded from the journal.
//! - `journal`: appending events, each with what it changes elsewhere, in one transaction.
//! - `releases`: what was live and healthy, and what is live now.
//! - `warm`: the version that was replaced last, where it goes on running for a while.
//! - `decisions`: what people said: rollbacks, approvals, resolutions.
//! - `standing`: all that is known of one environment, as of one moment.
//! - `rollbacks`: what people asked to come back, and what Refit brought back, as one list.
//! - `outbox`: messages, written with the state they report.
//! - `rehearsals`: messages about backups that were tried out, each once.
//! - `chat`: the messages in a chat that are edited as a deployment goes on.
//! - `bot`: the chat's buttons, and which updates of the Bot API were taken care of.

use std::{fs::File, path::Path, time::Duration};

use jiff::Timestamp;
use sqlx::{
    Connection, SqlitePool,
    migrate::Migrator,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

mod bot;
mod chat;
mod decisions;
mod deployments;
mod inbox;
mod journal;
mod outbox;
mod rehearsals;
mod releases;
mod rollbacks;
mod standing;
mod warm;

pub use bot::{NewButton, Press, Pressed, Terms};
pub use chat::ChatMessage;
pub use decisions::{Decision, LastRollback, RollbackOrder};
pub use deployments::{Filter, NewDeployment};
pub use inbox::{Delivery, Outcome, Receipt, StoredDelivery};
pub use journal::{End, Entry, Facts};
pub use outbox::{Message, MessageKind, NewMessage, OutboxFigures};
pub use rehearsals::Rehearsed;
pub use releases::Release;
pub use standing::{Known, Standing};
pub use warm::Warm;

static MIGRATIONS: Migrator = sqlx::migrate!("src/registry/migrations");

/// How long a statement waits for another process's write.
const BUSY: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("the registry {path} cannot be opened: {source}")]
    Open { path: String, source: sqlx::Error },
    #[error("the registry {path} was written by a newer version of refit, or is damaged: {source}")]
    Migrate { path: String, source: sqlx::migrate::MigrateError },
    #[error("the registry could not {operation}: {source}")]
    Query { operation: &'static str, source: sqlx::Error },
    #[error("the registry holds a value that this version cannot read ({what}): {why}")]
    Damaged { what: &'static str, why: String },
    #[error("the daemon is stopping")]
    Stopping,
    #[error(transparent)]
    Illegal(#[from] crate::pipeline::journal::IllegalTransition),
}

impl RegistryError {
    /// The next step for a person.
    pub fn hint(&self) -> &'static str {
        let source = match self {
            Self::Open { source, .. } | Self::Query { source, .. } => Some(source),
            Self::Migrate { source: sqlx::migrate::MigrateError::Execute(source), .. } => Some(source),
            _ => None,
        };
        match source.and_then(sqlite_code) {
            Some(CORRUPT | NOT_A_DATABASE) => {
                "the file is damaged: stop the daemon and put a copy of it back, or see what `sqlite3 FILE .recover` saves, or move it away \
                 with its -wal and -shm: the history is lost then, and what runs goes on (docs/recovery.md)"
            }
            Some(FULL) => "free some space on the disk of the state directory (`df`)",
            Some(READ_ONLY | CANNOT_OPEN) => "run it as the user that owns the state directory, the daemon's",
            _ => self.usual_hint(),
        }
    }

    fn usual_hint(&self) -> &'static str {
        match self {
            Self::Open { .. } => "check who owns the state directory, its modes, and the free space of its disk",
            Self::Migrate { .. } => {
                "use the version of refit that wrote it, or a newer one; `sqlite3 FILE 'PRAGMA integrity_check'` tells of damage"
            }
            Self::Query { .. } => "look at the free space of the state directory's disk (`df`) and at the daemon's log",
            Self::Damaged { .. } => "use the version of refit that wrote it, or a newer one",
            Self::Stopping => "send it again once the daemon is back",
            Self::Illegal(_) => "this is a fault of refit: report it with the deployment's `refit report`",
        }
    }
}

// SQLite's primary result codes (sqlite.org/rescode.html).
const READ_ONLY: i32 = 8;
const CORRUPT: i32 = 11;
const FULL: i32 = 13;
const CANNOT_OPEN: i32 = 14;
const NOT_A_DATABASE: i32 = 26;

/// The primary result code: the low byte of an extended one.
fn sqlite_code(error: &sqlx::Error) -> Option<i32> {
    let code: i32 = error.as_database_error()?.code()?.parse().ok()?;
    Some(code & 0xff)
}

pub type Result<T> = std::result::Result<T, RegistryError>;

/// The open store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Registry {
    write: SqlitePool,
    read: SqlitePool,
}

impl Registry {
    /// Opens the file, making it and its directory (0700) where they are missing, and brings its schema up to date.
    pub async fn open(path: &Path) -> Result<Self> {
        if let Some(dir) = path.parent() {
            crate::files::make_private_dir(dir)
                .map_err(|e| RegistryError::Open { path: path.display().to_string(), source: sqlx::Error::Io(e) })?;
        }
        let options = options(path).create_if_missing(true);
        let opened = |source| RegistryError::Open { path: path.display().to_string(), source };
        // SQLite has no lock of its own for migrations: two processes that find a new file would both write its schema.
        let _alone = alone(path).await.map_err(|e| opened(sqlx::Error::Io(e)))?;
        let write = pool(1).connect_with(options.clone()).await.map_err(opened)?;
        MIGRATIONS
            .run(&write)
            .await
            .map_err(|source| RegistryError::Migrate { path: path.display().to_string(), source })?;
        crate::files::make_private(path).map_err(|e| opened(sqlx::Error::Io(e)))?;
        let read = pool(2).connect_with(options.read_only(true)).await.map_err(opened)?;
        Ok(Self { write, read })
    }

    /// Opens the file for reading commands. `None` where there is none: nothing was ever deployed.
    pub async fn open_existing(path: &Path) -> Result<Option<Self>> {
        if !path.exists() {
            return Ok(None);
        }
        // WAL needs write access to the -shm file even for readers, so this is the same as `open`, migrations included.
        Self::open(path).await.map(Some)
    }

    /// A trivial query that touches the file: for health checks.
    pub async fn ping(&self) -> Result<()> {
        sqlx::query("SELECT count(*) FROM live").execute(&self.read).await.map_err(query("answer"))?;
        Ok(())
    }

    /// Closes every connection, which also checkpoints the WAL.
    pub async fn close(&self) {
        self.read.close().await;
        self.write.close().await;
    }
}

/// Held while the file is opened: a lock on its directory, which every process that opens it takes for a moment.
async fn alone(path: &Path) -> std::io::Result<File> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
    let lock = move || File::open(dir).and_then(|dir| dir.lock().map(|()| dir));
    tokio::task::spawn_blocking(lock).await.map_err(std::io::Error::other)?
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY)
        .pragma("cache_size", "-1024")
}

fn pool(connections: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(connections)
        .min_connections(0)
        .idle_timeout(None)
        .test_before_acquire(false)
        .after_release(|connection, _| {
            Box::pin(async move {
                // A transaction that was dropped is rolled back now.
                connection.ping().await?;
                // A full disk makes SQLite end the transaction by itself. The rollback then fails, and the connection would believe
                // in that transaction, and refuse others, for ever: it makes way for a new one.
                Ok(!connection.is_in_transaction())
            })
        })
}

fn query(operation: &'static str) -> impl FnOnce(sqlx::Error) -> RegistryError {
    move |source| RegistryError::Query { operation, source }
}

fn damaged(what: &'static str) -> impl Fn(&dyn std::fmt::Display) -> RegistryError {
    move |why| RegistryError::Damaged { what, why: why.to_string() }
}

fn parse<T: std::str::FromStr>(what: &'static str, text: &str) -> Result<T>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|e: T::Err| damaged(what)(&e))
}

fn from_json<T: serde::de::DeserializeOwned>(what: &'static str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| damaged(what)(&e))
}

fn to_json<T: serde::Serialize>(what: &'static str, value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|e| damaged(what)(&e))
}

fn now_ms() -> i64 {
    Timestamp::now().as_millisecond()
}

fn time(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod bot_test;
#[cfg(test)]
mod people_test;
#[cfg(test)]
mod tests;
