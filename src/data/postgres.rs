//! PostgreSQL: `pg_dump` inside the database's own container, so that its version always fits the server's.
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
//! A dump is whole if `pg_dump` exited with 0, and a plain one has its closing comment, a custom one its header.
//! The versions of server and tool are read from the dump itself: they are those that really took part.

use async_trait::async_trait;
use tokio::io::AsyncReadExt;

use super::{
    Check, DataError, Part, PartFormat, PartKind, PartSource, Reach, TableRows,
    kind::{Kind, Stored},
    part::{self, PartWriter, Place},
    restore::{self, Gate, Loaded, Work},
    unpack::PartReader,
};
use crate::{
    config::{Backup, BackupSource, Compression, PostgresFormat},
    runtime::Job,
};

/// What `pg_dump` writes last into a plain dump, at the beginning of a line. (Minor releases since August 2025 add an `\unrestrict`.)
const END_OF_PLAIN: &[u8] = b"\n-- PostgreSQL database dump complete";

#[derive(Debug)]
pub(super) struct Postgres;

#[async_trait]
impl Kind for Postgres {
    fn place(&self, source: &BackupSource) -> String {
        let BackupSource::Postgres { container, database, .. } = source else { return String::new() };
        format!("PostgreSQL database `{database}` in container `{container}`")
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

    async fn rehearse(&self, _: Stored<'_>, _: Reach<'_>, _: &Job) -> Result<Vec<TableRows>, DataError> {
        Err(DataError::dump("this version cannot try a PostgreSQL dump out yet"))
    }
}

async fn look(stored: Stored<'_>) -> Result<Vec<Check>, DataError> {
    let mut reader = PartReader::open(stored.set, stored.part)?;
    let (mut head, mut tail, mut chunk) = (Vec::new(), Vec::new(), vec![0; 64 * 1024]);
    loop {
        let n = reader.read(&mut chunk).await.map_err(|e| DataError::dump(e.to_string()))?;
        if n == 0 {
            break;
        }
        part::sample(&mut head, &mut tail, &chunk[..n]);
    }
    reader.finish().await?;
    let (what, judged) = match stored.part.format {
        PartFormat::Plain => ("closing line", judge(stored.part.raw_bytes, &head, &tail, PostgresFormat::Plain)),
        _ => ("header", judge(stored.part.raw_bytes, &head, &tail, PostgresFormat::Custom)),
    };
    Ok(vec![match judged {
        Ok(versions) => Check::good(what, versions.server.map_or_else(String::new, |v| format!("of PostgreSQL {v}"))),
        Err(error) => Check::bad(what, error.to_string()),
    }])
}

async fn dump(backup: &Backup, place: &Place<'_>, reach: Reach<'_>, job: &Job) -> Result<Part, DataError> {
    let BackupSource::Postgres { container, database, user, password, format } = &backup.source else {
        return Err(DataError::dump("not a PostgreSQL database"));
    };
    let exec = reach.containers(container)?;
    let (file, outside) = file_and_compression(backup.name.as_str(), *format, backup.compression);
    let mut writer = PartWriter::create(place, file, outside).await?;
    let command = command(database, user, *format, backup.compression);
    let env: Vec<_> = password.iter().map(|password| ("PGPASSWORD", password)).collect();
    let ended = exec.exec_into(container, &command, &env, &mut writer, job).await;
    // A disk that is full is the cause of whatever the engine makes of it.
    if let Some(error) = writer.failure(backup.name.as_str()) {
        return Err(error);
    }
    let outcome = ended?;
    if outcome.code != 0 {
        let said = outcome.output.iter().rev().take(3).rev().cloned().collect::<Vec<_>>().join("\n");
        let said = if said.is_empty() { "it said nothing".to_owned() } else { said };
        return Err(DataError::dump(format!("`pg_dump` ended with exit code {}: {said}", outcome.code)));
    }
    let written = writer.finish(backup.name.as_str()).await?;
    let versions = judge(written.raw_bytes, &written.head, &written.tail, *format)?;
    let restore = restore_hint(&written.file, container, user, *format, outside);
    written.doomed.keep();
    Ok(Part {
        name: backup.name.to_string(),
        kind: PartKind::Postgres,
        format: if *format == PostgresFormat::Plain { PartFormat::Plain } else { PartFormat::Custom },
        source: PartSource {
            container: Some(container.clone()),
            database: Some(database.clone()),
            user: Some(user.clone()),
            ..PartSource::default()
        },
        file: written.file,
        sha256: written.sha256,
        bytes: written.bytes,
        raw_bytes: written.raw_bytes,
        tool: versions.tool.map_or_else(|| "pg_dump".to_owned(), |v| format!("pg_dump (PostgreSQL) {v}")),
        server: versions.server.map(|v| format!("PostgreSQL {v}")),
        restore,
        compression: Some(outside),
        tables: Vec::new(),
        tree: None,
        duration_ms: 0,
    })
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

fn command(database: &str, user: &str, format: PostgresFormat, compression: Compression) -> Vec<String> {
    let mut command = vec!["pg_dump".to_owned()];
    command.push(format!("--format={}", if format == PostgresFormat::Plain { "plain" } else { "custom" }));
    if format == PostgresFormat::Custom && compression != Compression::Gzip {
        command.push("--compress=0".to_owned());
    }
    command.push("--no-password".to_owned());
    command.push("--lock-wait-timeout=30s".to_owned());
    command.push(format!("--username={user}"));
    command.push(format!("--dbname=dbname={} connect_timeout=10", conninfo_quote(database)));
    command
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

fn restore_hint(file: &str, container: &str, user: &str, format: PostgresFormat, outside: Compression) -> String {
    let read = match outside {
        Compression::Gzip => "gunzip -c",
        Compression::Zstd => "zstd -dc",
        Compression::None => "cat",
    };
    let load = match format {
        PostgresFormat::Plain => "psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1",
        PostgresFormat::Custom => "pg_restore --exit-on-error",
    };
    let (container, user) = (shell_quote(container), shell_quote(user));
    format!("{read} {file} | docker exec -i {container} {load} --username={user} --dbname=EMPTY_DATABASE")
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
    let mut header = Header { rest, int_size: usize::from(int_size) };
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

struct Header<'a> {
    rest: &'a [u8],
    int_size: usize,
}

impl Header<'_> {
    fn skip(&mut self, bytes: usize) -> Option<()> {
        self.rest = self.rest.get(bytes..)?;
        Some(())
    }

    /// A sign byte, then the value, least significant byte first.
    fn int(&mut self) -> Option<i64> {
        let (sign, bytes) = self.rest.get(..=self.int_size)?.split_first()?;
        let value = bytes.iter().rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
        self.skip(1 + self.int_size)?;
        let value = i64::try_from(value).ok()?;
        Some(if *sign == 0 { value } else { -value })
    }

    /// `Some(None)`: a null string, which has length -1.
    fn string(&mut self) -> Option<Option<String>> {
        let length = self.int()?;
        let Ok(length) = usize::try_from(length) else { return Some(None) };
        let text = String::from_utf8_lossy(self.rest.get(..length)?).into_owned();
        self.skip(length)?;
        Some(Some(text))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn odd_names_stay_one_argument() {
        let command = command("it's=\\a --odd", "-x; y", PostgresFormat::Custom, Compression::None);
        assert_eq!(
            command,
            [
                "pg_dump",
                "--format=custom",
                "--compress=0",
                "--no-password",
                "--lock-wait-timeout=30s",
                "--username=-x; y",
                "--dbname=dbname='it\\'s=\\\\a --odd' connect_timeout=10"
            ]
        );
    }

    #[test]
    fn hints_are_safe_to_paste() {
        let hint = restore_hint("a.sql.gz", "db", "o'brien $(x)", PostgresFormat::Plain, Compression::Gzip);
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
