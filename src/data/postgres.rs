//! PostgreSQL: `pg_dump` inside the database's own container, so that its version always fits the server's; or, for a server that is
//! reached by a URL, on this host or in an image that is named (`client.rs`).
//!
//! Nothing the configuration names goes through a shell. The database is given as a quoted connection string
//! (`dbname='…'`), because libpq would take a bare name with `=` or `://` in it for one; the password goes in the command's
//! environment. `pg_dump` waits at most 30 s for a lock (a migration that hangs must not hang the backup too), 10 s for a connection, and never for a
//! password to be typed. It runs in one repeatable-read transaction and blocks no reader or writer.
//!
//! | format | compression | file | written by |
//! |---|---|---|---|
//! | plain | gzip, zstd, none | `.sql.gz`, `.sql.zst`, `.sql` | compressed here |
//! | custom | gzip, none | `.dump` | `pg_dump` compresses (gzip) or not (none) |
//! | custom | zstd | `.dump.zst` | uncompressed by `pg_dump`, compressed here |
//!
//! A dump is whole if `pg_dump` exited with 0, and a plain one has its closing comment, a custom one all the data that its table of contents
//! names. The rows of each table are counted as they go by (`script.rs`, `archive.rs`): in the dump's own snapshot by nature, with no
//! second connection and no second look at the data.
//! The versions of server and tool are read from the dump itself: they are those that really took part.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use async_trait::async_trait;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWrite};

use super::{
    Check, DataError, Part, PartFormat, PartKind, PartSource, Reach, TableRows,
    kind::{Kind, Stored},
    part::{self, PartWriter, Place},
    restore::{self, Gate, Loaded, Work},
    unpack::PartReader,
};
use crate::{
    config::{Backup, BackupSource, Compression, PostgresFormat},
    model::EnvironmentKey,
    runtime::Job,
};

mod archive;
pub(super) mod client;
mod rehearse;
pub(super) mod roles;
pub(super) mod script;

use archive::Archive;
use client::{Client, Url};
use script::Script;

/// What `pg_dump` writes last into a plain dump, at the beginning of a line. (Minor releases since August 2025 add an `\unrestrict`.)
const END_OF_PLAIN: &[u8] = b"\n-- PostgreSQL database dump complete";

#[derive(Debug)]
pub(super) struct Postgres;

#[async_trait]
impl Kind for Postgres {
    fn place(&self, source: &BackupSource) -> String {
        match source {
            BackupSource::Postgres { container, database, .. } => {
                format!("PostgreSQL database `{database}` in container `{container}`")
            }
            BackupSource::PostgresUrl { url, .. } => match Url::parse(url) {
                Ok(url) => format!("PostgreSQL database `{}` at {}", url.database(), url.server()),
                Err(_) => "a PostgreSQL database".to_owned(),
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
        restore::postgres::restore(work, gate).await
    }

    async fn exists(
        &self,
        backup: &Backup,
        key: &EnvironmentKey,
        reach: Reach<'_>,
        job: &Job,
    ) -> Result<bool, DataError> {
        restore::postgres::exists(&backup.source, key, reach, job).await
    }

    async fn ask(
        &self,
        backup: &Backup,
        key: &EnvironmentKey,
        query: &str,
        reach: Reach<'_>,
        job: &Job,
    ) -> Result<Option<String>, DataError> {
        restore::postgres::ask(backup, key, query, reach, job).await
    }

    async fn rehearse(&self, stored: Stored<'_>, reach: Reach<'_>, job: &Job) -> Result<Vec<TableRows>, DataError> {
        rehearse::rehearse(stored, reach, job).await
    }
}

async fn look(stored: Stored<'_>) -> Result<Vec<Check>, DataError> {
    let mut reader = PartReader::open(stored.set, stored.part)?;
    let (mut head, mut tail, mut chunk) = (Vec::new(), Vec::new(), vec![0; 64 * 1024]);
    let format = if stored.part.format == PartFormat::Plain { PostgresFormat::Plain } else { PostgresFormat::Custom };
    let mut follower = Follower::new(format);
    loop {
        let n = reader.read(&mut chunk).await.map_err(|e| DataError::dump(e.to_string()))?;
        if n == 0 {
            break;
        }
        part::sample(&mut head, &mut tail, &chunk[..n]);
        follower.take(&chunk[..n]);
    }
    reader.finish().await?;
    let what = if format == PostgresFormat::Plain { "closing line" } else { "header" };
    let mut checks = vec![match judge(stored.part.raw_bytes, &head, &tail, format) {
        Ok(versions) => Check::good(what, versions.server.map_or_else(String::new, |v| format!("of PostgreSQL {v}"))),
        Err(error) => Check::bad(what, error.to_string()),
    }];
    let what = if format == PostgresFormat::Plain { "statements" } else { "table of contents" };
    let noted = &stored.part.tables;
    checks.push(match follower.finish() {
        Err(why) => Check::bad(what, why),
        Ok(found) if noted.is_empty() || same_rows(noted, &found) => {
            let rows: u64 = found.iter().map(|table| table.rows).sum();
            Check::good(what, format!("{} tables, {rows} rows", found.len()))
        }
        Ok(_) => Check::bad(what, "the tables in it are not those that were counted when it was made"),
    });
    checks.extend(roles::look(stored));
    Ok(checks)
}

fn same_rows(noted: &[TableRows], found: &[TableRows]) -> bool {
    noted.len() == found.len() && noted.iter().all(|table| found.contains(table))
}

/// Follows a dump as it goes by, and counts.
enum Follower {
    Plain { script: Box<Script>, passed: Vec<u8> },
    Custom(Box<Archive>),
    Lost(String),
}

impl Follower {
    fn new(format: PostgresFormat) -> Self {
        match format {
            PostgresFormat::Plain => Self::Plain { script: Box::new(Script::new(false)), passed: Vec::new() },
            PostgresFormat::Custom => Self::Custom(Box::default()),
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        let followed = match self {
            Self::Plain { script, passed } => {
                passed.clear();
                script.take(bytes, passed).map_err(|refused| refused.to_string())
            }
            Self::Custom(archive) => archive.take(bytes),
            Self::Lost(_) => Ok(()),
        };
        if let Err(why) = followed {
            *self = Self::Lost(why);
        }
    }

    /// The rows of each table. The error is for people.
    fn finish(self) -> Result<Vec<TableRows>, String> {
        match self {
            Self::Plain { script, .. } => script.finish().map_err(|refused| refused.to_string()),
            Self::Custom(archive) => archive.finish().map(|contents| contents.tables),
            Self::Lost(why) => Err(why),
        }
    }
}

/// A part's file, and what follows it.
struct Followed<'a> {
    writer: &'a mut PartWriter,
    follower: Follower,
}

impl AsyncWrite for Followed<'_> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let n = ready!(Pin::new(&mut *self.writer).poll_write(cx, buf))?;
        self.follower.take(&buf[..n]);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.writer).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.writer).poll_shutdown(cx)
    }
}

async fn dump(backup: &Backup, place: &Place<'_>, reach: Reach<'_>, job: &Job) -> Result<Part, DataError> {
    let client = Client::open(&backup.source, place.key, reach, "").await?;
    let dumped = dump_with(&client, backup, place, job).await;
    client.close(job).await;
    dumped
}

async fn dump_with(client: &Client<'_>, backup: &Backup, place: &Place<'_>, job: &Job) -> Result<Part, DataError> {
    let name = backup.name.as_str();
    let format = format_of(&backup.source);
    let roles = match with_roles(&backup.source) {
        true => Some(roles::dump(client, name, &backup.source, place, job).await?),
        false => None,
    };
    let (file, outside) = file_and_compression(name, format, backup.compression);
    let mut writer = PartWriter::create(place, file, outside).await?;
    let command = client.command(&arguments(format, backup.compression));
    let mut sink = Followed { writer: &mut writer, follower: Follower::new(format) };
    let ended = client.exec().exec_into(client.container(), &command, &client.env(), &mut sink, job).await;
    let follower = sink.follower;
    // A disk that is full is the cause of whatever the engine makes of it.
    if let Some(error) = writer.failure(name) {
        return Err(error);
    }
    client::succeeded("pg_dump", &ended?)?;
    let written = writer.finish(name).await?;
    let versions = judge(written.raw_bytes, &written.head, &written.tail, format)?;
    let tables = match (follower.finish(), format) {
        (Ok(tables), _) => tables,
        (Err(why), PostgresFormat::Custom) => return Err(DataError::dump(why)),
        // It is a dump, which a person can look at and restore.
        (Err(why), PostgresFormat::Plain) => {
            job.log.line(format!("warning: `{name}` would not be restored: {why}"));
            Vec::new()
        }
    };
    let source = describe(&backup.source, client, job).await;
    let restore = restore_hint(&written.file, &backup.source, format, outside);
    written.doomed.keep();
    let roles = roles.map(|(roles, doomed)| {
        doomed.keep();
        roles
    });
    Ok(Part {
        name: name.to_owned(),
        kind: PartKind::Postgres,
        format: if format == PostgresFormat::Plain { PartFormat::Plain } else { PartFormat::Custom },
        source,
        file: written.file,
        sha256: written.sha256,
        bytes: written.bytes,
        raw_bytes: written.raw_bytes,
        compression: Some(outside),
        tables,
        tree: None,
        roles,
        tool: versions.tool.map_or_else(|| "pg_dump".to_owned(), |v| format!("pg_dump (PostgreSQL) {v}")),
        server: versions.server.map(|v| format!("PostgreSQL {v}")),
        restore,
        duration_ms: 0,
    })
}

fn format_of(source: &BackupSource) -> PostgresFormat {
    match source {
        BackupSource::Postgres { format, .. } | BackupSource::PostgresUrl { format, .. } => *format,
        _ => PostgresFormat::Plain,
    }
}

fn with_roles(source: &BackupSource) -> bool {
    matches!(source, BackupSource::Postgres { roles: true, .. } | BackupSource::PostgresUrl { roles: true, .. })
}

/// What an empty database like this one is made with.
#[derive(Debug, Default, Deserialize)]
struct Facts {
    encoding: Option<String>,
    collate: Option<String>,
    ctype: Option<String>,
    #[serde(default)]
    roles: Vec<String>,
}

/// The superuser that `initdb` made has the id 10, and nothing records what depends on it.
const FACTS: &str = "SELECT pg_catalog.json_build_object('encoding', pg_catalog.pg_encoding_to_char(encoding), \
     'collate', datcollate, 'ctype', datctype, 'roles', (SELECT pg_catalog.json_agg(rolname ORDER BY rolname) \
     FROM pg_catalog.pg_roles WHERE oid = 10 OR oid IN (SELECT refobjid FROM pg_catalog.pg_shdepend \
     WHERE refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass AND dbid = d.oid))) \
     FROM pg_catalog.pg_database d WHERE datname = pg_catalog.current_database();\n";

/// Where it came from. What the server does not tell is left out: the dump is there.
async fn describe(source: &BackupSource, client: &Client<'_>, job: &Job) -> PartSource {
    let told = client.ask(FACTS, job).await.ok();
    let told = told.and_then(|lines| serde_json::from_str::<Facts>(lines.first()?).ok()).unwrap_or_default();
    let mut described = PartSource {
        encoding: told.encoding,
        collate: told.collate,
        ctype: told.ctype,
        roles: told.roles,
        ..PartSource::default()
    };
    match source {
        BackupSource::Postgres { container, database, user, .. } => {
            described.container = Some(container.clone());
            described.database = Some(database.clone());
            described.user = Some(user.clone());
        }
        BackupSource::PostgresUrl { url, .. } => {
            let url = Url::parse(url).ok();
            described.database = url.as_ref().map(|url| url.database().to_owned());
            described.server = url.map(|url| url.server());
        }
        _ => {}
    }
    described
}

/// The part's file, and the compression that is done here rather than by `pg_dump`.
fn file_and_compression(name: &str, format: PostgresFormat, compression: Compression) -> (String, Compression) {
    let (ending, outside) = match (format, compression) {
        (PostgresFormat::Plain, compression) => ("sql", compression),
        (PostgresFormat::Custom, Compression::Zstd) => ("dump", Compression::Zstd),
        (PostgresFormat::Custom, Compression::Gzip | Compression::None) => ("dump", Compression::None),
    };
    (format!("{name}.{ending}{}", part::suffix(outside)), outside)
}

fn arguments(format: PostgresFormat, compression: Compression) -> Vec<&'static str> {
    let mut arguments = vec!["pg_dump"];
    arguments.push(if format == PostgresFormat::Plain { "--format=plain" } else { "--format=custom" });
    if format == PostgresFormat::Custom && compression != Compression::Gzip {
        arguments.push("--compress=0");
    }
    arguments.extend(["--no-password", "--lock-wait-timeout=30s"]);
    arguments
}

/// libpq's rule for values in connection strings: single quotes, with `\` before `'` and `\`.
pub(super) fn conninfo_quote(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

pub(super) fn shell_quote(value: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    if !value.is_empty() && value.bytes().all(plain) {
        value.to_owned()
    } else {
        format!("'{}'", value.replace('\'', r"'\''"))
    }
}

fn restore_hint(file: &str, source: &BackupSource, format: PostgresFormat, outside: Compression) -> String {
    let read = match outside {
        Compression::Gzip => "gunzip -c",
        Compression::Zstd => "zstd -dc",
        Compression::None => "cat",
    };
    let load = match format {
        PostgresFormat::Plain => "psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1",
        PostgresFormat::Custom => "pg_restore --exit-on-error",
    };
    match source {
        BackupSource::Postgres { container, user, .. } => {
            let (container, user) = (shell_quote(container), shell_quote(user));
            format!("{read} {file} | docker exec -i {container} {load} --username={user} --dbname=EMPTY_DATABASE")
        }
        _ => format!("{read} {file} | {load} --host=HOST --username=USER --dbname=EMPTY_DATABASE"),
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Versions {
    tool: Option<String>,
    server: Option<String>,
}

/// Whether the dump is whole by its own signs, and who made it.
fn judge(raw_bytes: u64, head: &[u8], tail: &[u8], format: PostgresFormat) -> Result<Versions, DataError> {
    if raw_bytes == 0 {
        return Err(DataError::dump("`pg_dump` reported success and wrote nothing"));
    }
    match format {
        PostgresFormat::Plain => {
            if !tail.windows(END_OF_PLAIN.len()).any(|w| w == END_OF_PLAIN) {
                return Err(DataError::dump("the dump is cut off: its closing line is missing"));
            }
            Ok(versions_of_plain(head))
        }
        PostgresFormat::Custom => versions_of_custom(head)
            .ok_or_else(|| DataError::dump("what `pg_dump` wrote is not an archive in its custom format")),
    }
}

/// From the comments at the top: `-- Dumped from database version 15.14 (Debian …)`.
fn versions_of_plain(head: &[u8]) -> Versions {
    let text = String::from_utf8_lossy(head);
    let after = |start: &str| text.lines().find_map(|l| l.strip_prefix(start)).map(|v| v.trim().to_owned());
    Versions { server: after("-- Dumped from database version "), tool: after("-- Dumped by pg_dump version ") }
}

/// From the header of an archive: `PGDMP`, format version, sizes of integers and offsets, format, compression, seven
/// integers of time, then database, server version and tool version as strings (PostgreSQL's `ReadHead` in
/// `pg_backup_archiver.c`). `None` if it is not one.
fn versions_of_custom(head: &[u8]) -> Option<Versions> {
    const CUSTOM: u8 = 1;
    let rest = head.strip_prefix(b"PGDMP")?;
    let (&[major, minor, _revision, int_size, _offset_size, format], rest) = rest.split_first_chunk::<6>()?;
    if format != CUSTOM || !(1..=8).contains(&int_size) {
        return None;
    }
    let mut header = archive::Input { rest, int_size: usize::from(int_size) };
    // Archives of version 1.15 (PostgreSQL 16) and later say the compression in one byte.
    if (major, minor) >= (1, 15) {
        header.skip(1)?
    } else {
        header.skip(1 + header.int_size)?
    }
    header.skip(7 * (1 + header.int_size))?;
    let _database = header.string()?;
    Some(Versions { server: header.string().flatten(), tool: header.string().flatten() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hints_are_safe_to_paste() {
        let source = BackupSource::Postgres {
            container: "db".to_owned(),
            database: "d".to_owned(),
            user: "o'brien $(x)".to_owned(),
            password: None,
            format: PostgresFormat::Plain,
            roles: false,
        };
        let hint = restore_hint("a.sql.gz", &source, PostgresFormat::Plain, Compression::Gzip);
        assert!(hint.starts_with("gunzip -c a.sql.gz | docker exec -i db psql "), "{hint}");
        assert!(hint.ends_with(r"--username='o'\''brien $(x)' --dbname=EMPTY_DATABASE"), "{hint}");
    }

    #[test]
    fn custom_compression_is_pg_dumps_own_unless_zstd() {
        let file = |format, compression| file_and_compression("g", format, compression).0;
        assert_eq!(file(PostgresFormat::Plain, Compression::Gzip), "g.sql.gz");
        assert_eq!(file(PostgresFormat::Plain, Compression::None), "g.sql");
        assert_eq!(file(PostgresFormat::Custom, Compression::Gzip), "g.dump");
        assert_eq!(file(PostgresFormat::Custom, Compression::Zstd), "g.dump.zst");
    }

    proptest! {
        #[test]
        fn headers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), real in any::<bool>()) {
            let mut head = if real { b"PGDMP\x01\x0e\x00\x04\x08\x01".to_vec() } else { Vec::new() };
            head.extend(bytes);
            let _ = versions_of_custom(&head);
            let _ = versions_of_plain(&head);
        }
    }
}
