//! One connection to the database that is migrated: the table of what was applied, the lock, one file forward or back.

use std::time::{Duration, Instant};

use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Executor, MySqlConnection, PgConnection, Row, SqliteConnection,
    migrate::{Migrate, MigrateError},
    mysql::MySqlDatabaseError,
    postgres::{PgDatabaseError, PgErrorPosition},
};
use tokio_util::sync::CancellationToken;

use super::{
    TABLE,
    files::Migration,
    place::{Options, Place, Server},
    plan::Applied,
};

/// A server that has not answered by then is not there.
const CONNECT: Duration = Duration::from_secs(10);

/// Steps of SQLite's machine between two looks at whether the work is cancelled: a few milliseconds.
const STEPS: i32 = 10_000;

/// The name of sqlx's lock on MySQL, a hexadecimal number made of the database's name. Its own call waits for ever.
const MYSQL_LOCK: &str = "SELECT GET_LOCK(LOWER(HEX(1026731422 * CRC32(DATABASE()))), ?)";

#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Exit code 69.
    #[error("{place} cannot be reached: {why}")]
    Unreachable { place: String, why: String },
    #[error(
        "another program has been migrating {place} for {waited:?}: wait until it is done (sqlx, an app that migrates when it starts, a session that \
         was cut off and is still at work)"
    )]
    Locked { place: String, waited: Duration },
    /// A file waited for a lock for as long as it may.
    #[error(
        "a lock that another session holds was not free within {waited:?}, and the migration gave up so that the app does not wait behind it: try again \
         when it is quiet, end that session, or raise `migrate.lock_timeout`"
    )]
    LockTimeout { waited: Duration },
    #[error("{why}")]
    Sql { why: String, line: Option<usize> },
    #[error("cancelled")]
    Cancelled,
    /// The configuration does not fit.
    #[error("{0}")]
    Unfit(String),
}

impl SessionError {
    pub(super) fn unreachable(place: &str, why: impl ToString) -> Self {
        Self::Unreachable { place: place.to_owned(), why: why.to_string() }
    }

    fn sql(error: &sqlx::Error, text: &str) -> Self {
        let Some(told) = error.as_database_error() else {
            return Self::Sql { why: error.to_string(), line: None };
        };
        let mut why = told.message().to_owned();
        let mut line = None;
        if let Some(postgres) = told.try_downcast_ref::<PgDatabaseError>() {
            for more in [postgres.detail(), postgres.hint()].into_iter().flatten() {
                why.push_str(&format!(" ({more})"));
            }
            if let Some(PgErrorPosition::Original(at)) = postgres.position().filter(|_| !text.is_empty()) {
                line = Some(1 + text.chars().take(at.saturating_sub(1)).filter(|c| *c == '\n').count());
            }
        }
        Self::Sql { why, line }
    }
}

/// A connection, with its settings made.
pub struct Session {
    inner: Inner,
    place: Place,
    lock_timeout: Duration,
    cancel: CancellationToken,
    /// The server's number for it; 0 where there is no server.
    id: i64,
}

enum Inner {
    Postgres(Box<PgConnection>),
    Mysql(Box<MySqlConnection>),
    Sqlite(Box<SqliteConnection>),
}

/// The same words for each kind of connection.
macro_rules! with {
    ($session:expr, $connection:ident => $work:expr) => {
        match &mut $session.inner {
            Inner::Postgres($connection) => $work,
            Inner::Mysql($connection) => $work,
            Inner::Sqlite($connection) => $work,
        }
    };
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("place", &self.place).field("id", &self.id).finish_non_exhaustive()
    }
}

impl Session {
    /// Connects. A SQLite database that is not there yet is made.
    pub async fn open(place: &Place, lock_timeout: Duration, cancel: &CancellationToken) -> Result<Self, SessionError> {
        let opened = tokio::select! {
            opened = tokio::time::timeout(CONNECT, connect(place, lock_timeout, cancel)) => opened,
            () = cancel.cancelled() => return Err(SessionError::Cancelled),
        };
        let told = |error: sqlx::Error| match SessionError::sql(&error, "") {
            SessionError::Sql { why, .. } => SessionError::unreachable(&place.name, why),
            other => other,
        };
        let late = |_| SessionError::unreachable(&place.name, format!("it does not answer within {CONNECT:?}"));
        let (inner, id) = opened.map_err(late)?.map_err(told)?;
        Ok(Self { inner, place: place.clone(), lock_timeout, cancel: cancel.clone(), id })
    }

    pub fn server(&self) -> Server {
        self.place.server()
    }

    /// What the table says, by number; nothing where there is no table.
    pub async fn applied(&mut self) -> Result<Vec<Applied>, SessionError> {
        // The same columns everywhere; only the time is written differently.
        let at = match self.server() {
            Server::Postgres => r#"to_char(installed_on AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')"#,
            Server::Mysql => "DATE_FORMAT(installed_on, '%Y-%m-%dT%H:%i:%sZ')",
            Server::Sqlite => "COALESCE(strftime('%Y-%m-%dT%H:%M:%SZ', installed_on), '')",
        };
        let sql = format!("SELECT version, description, success, checksum, {at} FROM {TABLE} ORDER BY version");
        let rows = with!(self, connection => {
            let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(connection.as_mut()).await;
            rows.and_then(|rows| rows.iter().map(|row| Ok(Applied {
                version: row.try_get(0)?,
                name: row.try_get(1)?,
                success: row.try_get(2)?,
                checksum: row.try_get(3)?,
                at: row.try_get(4)?,
            })).collect())
        });
        match rows {
            Err(error) if is_missing_table(&error) => Ok(Vec::new()),
            rows => rows.map_err(|error| SessionError::sql(&error, "")),
        }
    }

    /// Waits until nobody else migrates, and makes the table where it is not there yet.
    pub async fn lock(&mut self, patience: Duration) -> Result<(), SessionError> {
        let began = Instant::now();
        let mut free = false;
        while !free {
            if self.cancel.is_cancelled() {
                return Err(SessionError::Cancelled);
            }
            if began.elapsed() > patience {
                return Err(SessionError::Locked { place: self.place.name.clone(), waited: patience });
            }
            free = self.try_lock().await?;
        }
        let made = with!(self, connection => connection.ensure_migrations_table(TABLE).await);
        made.map_err(|error| self.explain(&error, ""))
    }

    /// Waits for the lock as long as one statement may.
    async fn try_lock(&mut self) -> Result<bool, SessionError> {
        let seconds = i64::try_from(self.lock_timeout.as_secs()).unwrap_or(i64::MAX).max(1);
        let taken = match &mut self.inner {
            Inner::Postgres(connection) => connection.lock().await.map(|()| true),
            // It has nobody to wait for but writers, and every statement does that.
            Inner::Sqlite(_) => Ok(true),
            Inner::Mysql(connection) => {
                let taken = sqlx::query_scalar::<_, Option<i64>>(MYSQL_LOCK).bind(seconds).fetch_one(connection.as_mut());
                taken.await.map(|taken| taken == Some(1)).map_err(MigrateError::Execute)
            }
        };
        match taken {
            Err(error) if is_lock_timeout(&error) => Ok(false),
            taken => taken.map_err(|error| self.explain(&error, "")),
        }
    }

    /// Applies one migration and writes its row.
    pub async fn apply(&mut self, migration: &Migration) -> Result<Duration, SessionError> {
        let cancel = self.cancel.clone();
        let applied = {
            let apply = async { with!(self, connection => connection.apply(TABLE, &migration.up).await) };
            tokio::select! {
                applied = apply => Some(applied),
                () = cancel.cancelled() => None,
            }
        };
        let error = match applied {
            Some(Ok(took)) => return Ok(took),
            Some(Err(error)) => error,
            None => {
                self.end().await;
                return Err(SessionError::Cancelled);
            }
        };
        if is_lock_timeout(&error) && self.server() == Server::Mysql && is_one_statement(migration.text()) {
            self.forget_what_never_began(migration.version).await?;
        }
        Err(self.explain(&error, migration.text()))
    }

    /// Takes one migration back and removes its row.
    pub async fn revert(&mut self, migration: &Migration) -> Result<Duration, SessionError> {
        let Some((file, down)) = &migration.down else {
            return Err(SessionError::Unfit(format!("{} has no `.down.sql`", migration.file)));
        };
        let cancel = self.cancel.clone();
        let reverted = {
            let revert = async { with!(self, connection => connection.revert(TABLE, down).await) };
            tokio::select! {
                reverted = revert => Some(reverted),
                () = cancel.cancelled() => None,
            }
        };
        match reverted {
            Some(reverted) => reverted.map_err(|error| match self.explain(&error, down.sql.as_str()) {
                SessionError::Sql { why, line } => SessionError::Sql { why: format!("{}: {why}", at(file, line)), line: None },
                other => other,
            }),
            None => {
                self.end().await;
                Err(SessionError::Cancelled)
            }
        }
    }

    /// MySQL writes the row before the statement, and the statement never got its lock: it changed nothing, and the row says otherwise.
    async fn forget_what_never_began(&mut self, version: i64) -> Result<(), SessionError> {
        let Inner::Mysql(connection) = &mut self.inner else { return Ok(()) };
        let sql = format!("DELETE FROM {TABLE} WHERE version = ? AND success = FALSE");
        let forgotten = sqlx::query(AssertSqlSafe(sql)).bind(version).execute(connection.as_mut()).await;
        forgotten.map(drop).map_err(|error| SessionError::sql(&error, ""))
    }

    /// Ends what the server still does for this connection; dropping it would leave that running.
    async fn end(&mut self) {
        let sql = match self.server() {
            Server::Postgres => format!("SELECT pg_terminate_backend({})", self.id),
            Server::Mysql => format!("KILL {}", self.id),
            // Its work is in this process, and looks at the token itself.
            Server::Sqlite => return,
        };
        let end = async {
            let fresh = Self::open(&self.place, self.lock_timeout, &CancellationToken::new()).await;
            if let Ok(mut fresh) = fresh {
                with!(fresh, connection => drop(connection.execute(AssertSqlSafe(sql)).await));
            }
        };
        // Whoever wants to know waits for the lock.
        let _ = tokio::time::timeout(CONNECT, Box::pin(end)).await;
    }

    /// Lets go of the lock and closes.
    pub async fn close(mut self) {
        with!(self, connection => drop(connection.unlock().await));
        let close = async {
            match self.inner {
                Inner::Postgres(connection) => drop((*connection).close().await),
                Inner::Mysql(connection) => drop((*connection).close().await),
                Inner::Sqlite(connection) => drop((*connection).close().await),
            }
        };
        let _ = tokio::time::timeout(CONNECT, close).await;
    }

    fn explain(&self, error: &MigrateError, text: &str) -> SessionError {
        if self.cancel.is_cancelled() {
            return SessionError::Cancelled;
        }
        if is_lock_timeout(error) {
            return SessionError::LockTimeout { waited: self.lock_timeout };
        }
        match inner(error) {
            Some(error) => SessionError::sql(error, text),
            None => SessionError::Sql { why: error.to_string(), line: None },
        }
    }
}

/// `migrations/7_add.up.sql, line 3`.
pub(super) fn at(file: &str, line: Option<usize>) -> String {
    match line {
        Some(line) => format!("{file}, line {line}"),
        None => file.to_owned(),
    }
}

async fn connect(place: &Place, lock_timeout: Duration, cancel: &CancellationToken) -> sqlx::Result<(Inner, i64)> {
    let ms = lock_timeout.as_millis();
    match &place.options {
        Options::Postgres(options) => {
            let mut connection = options.connect().await?;
            connection.execute(AssertSqlSafe(format!("SET lock_timeout = {ms}"))).await?;
            // Since version 14: the server notices that we are gone. An older one has no such setting.
            let _ = connection.execute("SET client_connection_check_interval = 1000").await;
            let id: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut connection).await?;
            Ok((Inner::Postgres(Box::new(connection)), id.into()))
        }
        Options::Mysql(options) => {
            let mut connection = options.connect().await?;
            // Whole seconds, at least one.
            let seconds = ms.div_ceil(1000).max(1);
            let set = format!("SET SESSION lock_wait_timeout = {seconds}, SESSION innodb_lock_wait_timeout = {seconds}");
            connection.execute(AssertSqlSafe(set)).await?;
            let id: u64 = sqlx::query_scalar("SELECT CONNECTION_ID()").fetch_one(&mut connection).await?;
            Ok((Inner::Mysql(Box::new(connection)), i64::try_from(id).unwrap_or_default()))
        }
        Options::Sqlite(options) => {
            let options = (**options).clone().create_if_missing(true).busy_timeout(lock_timeout);
            let mut connection = options.connect().await?;
            let cancel = cancel.clone();
            connection.lock_handle().await?.set_progress_handler(STEPS, move || !cancel.is_cancelled());
            Ok((Inner::Sqlite(Box::new(connection)), 0))
        }
    }
}

/// The database's own error.
fn inner(error: &MigrateError) -> Option<&sqlx::Error> {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => Some(error),
        _ => None,
    }
}

/// PostgreSQL's `lock_not_available`; `ER_LOCK_WAIT_TIMEOUT` of MySQL; `SQLITE_BUSY` and `SQLITE_LOCKED`.
fn is_lock_timeout(error: &MigrateError) -> bool {
    let Some(error) = inner(error).and_then(sqlx::Error::as_database_error) else { return false };
    if let Some(mysql) = error.try_downcast_ref::<MySqlDatabaseError>() {
        return mysql.number() == 1205;
    }
    let Some(code) = error.code() else { return false };
    code == "55P03" || code.parse::<i32>().is_ok_and(|code| code < 1024 * 1024 && matches!(code & 0xff, 5 | 6) && is_sqlite(error))
}

fn is_sqlite(error: &dyn sqlx::error::DatabaseError) -> bool {
    error.try_downcast_ref::<sqlx::sqlite::SqliteError>().is_some()
}

fn is_missing_table(error: &sqlx::Error) -> bool {
    let Some(error) = error.as_database_error() else { return false };
    if let Some(mysql) = error.try_downcast_ref::<MySqlDatabaseError>() {
        return mysql.number() == 1146;
    }
    error.code().is_some_and(|code| code == "42P01") || is_sqlite(error) && error.message().contains("no such table")
}

/// Whether a text of MySQL has one statement. In doubt it has more: what is in quotes is not looked into.
fn is_one_statement(text: &str) -> bool {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("--") && !line.starts_with('#'));
    let bare = lines.collect::<Vec<_>>().join("\n");
    !bare.trim_end_matches(';').contains(';')
}

#[cfg(test)]
mod tests {
    use super::is_one_statement;

    #[test]
    fn one_statement_is_told_from_more() {
        for one in ["ALTER TABLE a ADD b INT", "-- a; b\n\nALTER TABLE a\n  ADD b INT;\n", "# x;\nDROP TABLE a;"] {
            assert!(is_one_statement(one), "{one}");
        }
        for more in ["ALTER TABLE a ADD b INT; DROP TABLE c", "INSERT INTO a VALUES (';'), ('x')", "SELECT 1; -- end\nSELECT 2;"] {
            assert!(!is_one_statement(more), "{more}");
        }
    }
}
