//! MySQL and MariaDB: `mariadb-dump` (or `mysqldump`) beside the server, so that its version always fits the server's.
//!
//! **Consistent.** The dump runs in one repeatable-read transaction (`--single-transaction`) and blocks no reader or writer. That holds for
//! tables of transactional engines, InnoDB above all. If the database has others (MyISAM, Aria), the dump says so and locks
//! all its tables against writing until it is done (`--lock-tables`): a backup that fits together is worth the wait. A change of a
//! table's definition meanwhile makes the dump fail, which is reported.
//!
//! **Whole.** With triggers, routines, events, and every byte of binary columns as hexadecimal. A dump counts if the program exited with
//! 0, its closing comment came last, and it did not have to leave out what its user may not see. It is read as it passes (`sieve.rs`), which
//! tells the rows of each table in the very snapshot that was dumped: no second session could see that snapshot, and none has to count. It
//! also tells at once if a restore would refuse the dump.
//!
//! **Restored** into a database beside the live one, by the client in its most obedient mode, statement by statement as `judge.rs` knows them,
//! and exchanged at the end; `restore.rs` and `swap.rs` tell how, and what a kill at each point leaves.
//!
//! What a dump cannot have: rows of system-versioned tables that are history (the program leaves them out; the log says so), and what belongs
//! to the server rather than to the database, users and their rights.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWrite};

use super::{
    Check, DataError, Part, PartFormat, PartKind, PartSource, Reach, TableRows,
    kind::{Kind, Stored},
    part::{self, PartWriter, Place},
    postgres::shell_quote,
    restore::{Gate, Loaded, Work},
    unpack::PartReader,
};
use crate::{
    config::{Backup, BackupSource, Compression},
    model::EnvironmentKey,
    runtime::Job,
};

use client::{Server, succeeded};
use sieve::{Heard, Purpose, Sieve, Sifted};
use url::Url;

mod client;
mod judge;
mod rehearse;
mod restore;
mod sieve;
mod split;
mod swap;
mod url;

#[derive(Debug)]
pub(super) struct Mysql;

#[async_trait]
impl Kind for Mysql {
    fn place(&self, source: &BackupSource) -> String {
        match source {
            BackupSource::Mysql { container, database, .. } => {
                format!("MySQL database `{database}` in container `{container}`")
            }
            BackupSource::MysqlUrl { url, .. } => match Url::parse(url) {
                Ok(url) => format!("MySQL database `{}` at {}", url.database(), url.server()),
                Err(_) => "a MySQL database".to_owned(),
            },
            _ => String::new(),
        }
    }

    async fn dump(&self, backup: &Backup, place: &Place<'_>, reach: Reach<'_>, job: &Job) -> Result<Part, DataError> {
        dump(backup, place, reach, job).await
    }

    async fn catalogue(&self, stored: Stored<'_>, job: &Job) -> Result<Vec<Check>, DataError> {
        tokio::select! {
            () = job.cancel.cancelled() => Err(DataError::Cancelled),
            looked = look(stored) => looked,
        }
    }

    async fn restore(&self, work: &Work<'_>, gate: Gate) -> Result<Loaded, DataError> {
        restore::restore(work, gate).await
    }

    async fn rehearse(&self, stored: Stored<'_>, reach: Reach<'_>, job: &Job) -> Result<Vec<TableRows>, DataError> {
        rehearse::rehearse(stored, reach, job).await
    }

    async fn sweep(
        &self,
        backup: &Backup,
        key: &EnvironmentKey,
        reach: Reach<'_>,
        job: &Job,
    ) -> Result<Option<String>, DataError> {
        let database = database_of(&backup.source)?;
        let server = Server::find(&backup.source, key, reach, job).await?;
        let settled = restore::settle(&database, &server, job).await;
        server.close(job).await;
        settled
    }

    async fn exists(
        &self,
        backup: &Backup,
        key: &EnvironmentKey,
        reach: Reach<'_>,
        job: &Job,
    ) -> Result<bool, DataError> {
        let database = database_of(&backup.source)?;
        let server = Server::find(&backup.source, key, reach, job).await?;
        let exists = restore::exists(&server, &database, job).await;
        server.close(job).await;
        exists
    }

    async fn ask(
        &self,
        backup: &Backup,
        key: &EnvironmentKey,
        query: &str,
        reach: Reach<'_>,
        job: &Job,
    ) -> Result<Option<String>, DataError> {
        let database = database_of(&backup.source)?;
        let server = Server::find(&backup.source, key, reach, job).await?;
        let answer = server.ask(Some(&database), &format!("{query}\n;\n"), job).await;
        server.close(job).await;
        Ok(restore::first(answer?))
    }
}

/// The database's name.
fn database_of(source: &BackupSource) -> Result<String, DataError> {
    match source {
        BackupSource::Mysql { database, .. } => Ok(database.clone()),
        BackupSource::MysqlUrl { url, .. } => {
            Url::parse(url).map(|url| url.database().to_owned()).map_err(DataError::dump)
        }
        _ => Err(DataError::dump("not a MySQL database")),
    }
}

async fn dump(backup: &Backup, place: &Place<'_>, reach: Reach<'_>, job: &Job) -> Result<Part, DataError> {
    let server = Server::find(&backup.source, place.key, reach, job).await?;
    let dumped = dump_with(&server, backup, place, job).await;
    server.close(job).await;
    dumped
}

async fn dump_with(server: &Server<'_>, backup: &Backup, place: &Place<'_>, job: &Job) -> Result<Part, DataError> {
    let name = backup.name.as_str();
    let database = database_of(&backup.source)?;
    // What a restore that was killed has taken away would be missing in the dump.
    restore::settle(&database, server, job).await?;
    let options = consistency(server, &database, job).await?;
    let file = format!("{name}.sql{}", part::suffix(backup.compression));
    let writer = PartWriter::create(place, file, backup.compression).await?;
    let mut writer = Tee { writer, sieve: Sieve::new(Purpose::Hear) };
    let ended = server.dump(&database, &options, &mut writer, job).await;
    let Tee { mut writer, sieve } = writer;
    // A disk that is full is the cause of whatever the engine makes of it.
    if let Some(error) = writer.failure(name) {
        return Err(error);
    }
    succeeded(server.dump_name(), &ended?)?;
    let written = writer.finish(name).await?;
    let Sifted { heard, refused, .. } = sieve.finish().map_err(|refused| DataError::dump(refused.to_string()))?;
    whole(&heard)?;
    if let Some(why) = refused {
        job.log.line(format!("warning: a restore would refuse the dump of `{name}`: {why}"));
    }
    let restore = hint(&written.file, server.client_name(), &backup.source, backup.compression);
    written.doomed.keep();
    Ok(Part {
        name: backup.name.to_string(),
        kind: PartKind::Mysql,
        format: PartFormat::Plain,
        source: described(&backup.source, database),
        file: written.file,
        sha256: written.sha256,
        bytes: written.bytes,
        raw_bytes: written.raw_bytes,
        tool: heard.tool.unwrap_or_else(|| server.dump_name().to_owned()),
        server: heard.server.map(|version| server_name(&version)),
        restore,
        compression: Some(backup.compression),
        tables: heard.tables.into_iter().map(|(name, rows)| TableRows { name, rows }).collect(),
        tree: None,
        roles: None,
        duration_ms: 0,
    })
}

/// `10.11.19-MariaDB-0+deb12u1` is what it is; MySQL's version has no name in it.
fn server_name(version: &str) -> String {
    if version.contains("MariaDB") { version.to_owned() } else { format!("MySQL {version}") }
}

/// How the dump sees one moment of the database.
async fn consistency(server: &Server<'_>, database: &str, job: &Job) -> Result<Vec<&'static str>, DataError> {
    let sql = "SELECT t.TABLE_NAME, t.TABLE_TYPE = 'SYSTEM VERSIONED', t.ENGINE, e.TRANSACTIONS = 'YES' FROM information_schema.TABLES t \
               LEFT JOIN information_schema.ENGINES e ON e.ENGINE = t.ENGINE \
               WHERE t.TABLE_SCHEMA = DATABASE() AND t.TABLE_TYPE NOT LIKE '%VIEW' \
               AND (t.TABLE_TYPE = 'SYSTEM VERSIONED' OR e.TRANSACTIONS <> 'YES') ORDER BY 1;\n";
    let odd = server.ask(Some(database), sql, job).await?;
    let mut locked = Vec::new();
    for row in &odd {
        let [name, versioned, engine, transactional] = row.as_slice() else { continue };
        if versioned == "1" {
            job.log.line(format!(
                "the history of the system-versioned table `{name}` is not dumped, its present rows are"
            ));
        }
        if transactional != "1" {
            locked.push(format!("`{name}` ({engine})"));
        }
    }
    if locked.is_empty() {
        return Ok(vec!["--single-transaction", "--skip-lock-tables"]);
    }
    let few = locked.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
    job.log.line(format!(
        "{} of the tables know no transactions: {few}: writers wait until the dump is done",
        locked.len()
    ));
    Ok(vec!["--skip-single-transaction", "--lock-tables"])
}

/// Whether the dump is whole by its own signs.
fn whole(heard: &Heard) -> Result<(), DataError> {
    if let Some(missing) = &heard.missing {
        return Err(DataError::dump(format!("the user does not see all of the database: {missing}")));
    }
    if !heard.complete {
        return Err(DataError::dump("the dump is cut off: its closing line is missing"));
    }
    Ok(())
}

/// Where it came from.
fn described(source: &BackupSource, database: String) -> PartSource {
    let mut described = PartSource { database: Some(database), ..PartSource::default() };
    match source {
        BackupSource::Mysql { container, user, .. } => {
            described.container = Some(container.clone());
            described.user = Some(user.clone());
        }
        BackupSource::MysqlUrl { url, .. } => described.server = Url::parse(url).ok().map(|url| url.server()),
        _ => {}
    }
    described
}

fn hint(file: &str, client: &str, source: &BackupSource, compression: Compression) -> String {
    let read = match compression {
        Compression::Gzip => "gunzip -c",
        Compression::Zstd => "zstd -dc",
        Compression::None => "cat",
    };
    const OPTIONS: &str = "--binary-mode --default-character-set=utf8mb4";
    let BackupSource::Mysql { container, user, password, .. } = source else {
        return format!("{read} {file} | {client} {OPTIONS} --host=HOST --user=USER EMPTY_DATABASE");
    };
    let (container, user) = (shell_quote(container), shell_quote(user));
    // The shell's own variable of that name is handed on; nothing secret is typed into the line.
    let env = if password.is_some() { " --env MYSQL_PWD" } else { "" };
    format!("{read} {file} | docker exec -i{env} {container} {client} {OPTIONS} --user={user} EMPTY_DATABASE")
}

/// Reads the file and compares what it holds with what was noted when it was made.
async fn look(stored: Stored<'_>) -> Result<Vec<Check>, DataError> {
    let mut reader = PartReader::open(stored.set, stored.part)?;
    let mut sieve = Sieve::new(Purpose::Hear);
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let n = reader.read(&mut chunk).await.map_err(|e| DataError::dump(e.to_string()))?;
        if n == 0 {
            break;
        }
        sieve.feed(&chunk[..n]).map_err(|refused| DataError::dump(refused.to_string()))?;
    }
    reader.finish().await?;
    let Sifted { heard, refused, .. } = sieve.finish().map_err(|refused| DataError::dump(refused.to_string()))?;
    let mut checks = vec![match whole(&heard) {
        Ok(()) => Check::good("closing line", heard.server.as_deref().map(server_name).unwrap_or_default()),
        Err(error) => Check::bad("closing line", error.to_string()),
    }];
    checks.push(match refused {
        None => Check::good("statements", "only those of a dump of one database"),
        Some(why) => Check::bad("statements", why),
    });
    checks.push(rows(&stored.part.tables, &heard));
    Ok(checks)
}

fn rows(noted: &[TableRows], heard: &Heard) -> Check {
    const WHAT: &str = "rows";
    let wrong = noted.iter().find(|table| heard.tables.get(&table.name) != Some(&table.rows));
    match wrong {
        Some(table) => {
            let found = heard.tables.get(&table.name).map_or_else(|| "is not in it".to_owned(), |n| format!("has {n}"));
            Check::bad(WHAT, format!("the table `{}` should have {} and {found}", table.name, table.rows))
        }
        None => {
            let all: u64 = heard.tables.values().sum();
            Check::good(WHAT, format!("{all} in {} tables", heard.tables.len()))
        }
    }
}

/// Writes the part, and has it read on the way.
#[derive(Debug)]
struct Tee {
    writer: PartWriter,
    sieve: Sieve,
}

impl AsyncWrite for Tee {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let n = ready!(Pin::new(&mut self.writer).poll_write(cx, buf))?;
        let fed = self.sieve.feed(&buf[..n]);
        Poll::Ready(fed.map(|()| n).map_err(|refused| io::Error::other(refused.to_string())))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(cx)
    }
}
