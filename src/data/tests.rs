//! Sets from end to end. What needs a database server is in `tests/postgres.rs`, SQLite in `tests/sqlite.rs`; here a stand-in for
//! the container says what a test wants to hear.

use std::{
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::PermissionsExt,
    process::Command,
    time::Duration,
};

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    config::{
        BackupSource, Build, Builder, Compression, Health, LogRotation, PathRules, PostgresFormat, Probe, Pull,
        Retention, Rollback, RuntimeKind, Smoke, Start, Strategy,
    },
    log::DeploymentLog,
    model::{EnvironmentKey, Stage},
    redact::Redactor,
    runtime::{ContainerExec, ExecOutcome},
    secret::Secret,
};

mod command;
mod damage;
mod docker_killed;
mod docker_missing;
mod docker_mysql;
mod docker_roles;
mod docker_verify;
mod hostile;
mod postgres;
mod restore;
mod retention;
mod sqlite;
mod trees;
mod volumes;

const LONG: Duration = Duration::from_secs(120);

fn key() -> EnvironmentKey {
    EnvironmentKey { app: "guestbook".parse().unwrap(), environment: "production".parse().unwrap() }
}

fn environment(backups: Vec<Backup>) -> Environment {
    Environment {
        key: key(),
        repository: "/srv/guestbook.git".to_owned(),
        branch: "main".parse().unwrap(),
        port: None,
        bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
        paths: PathRules::default(),
        requires: Vec::new(),
        parallel: true,
        approval: None,
        pull: Pull { timeout: LONG, retries: 0 },
        backups,
        backup_retention: Retention { keep: 10, keep_days: 7 },
        rehearse_backups: None,
        tests: Vec::new(),
        build: Build {
            context: ".".to_owned(),
            dockerfile: "Dockerfile".to_owned(),
            target: None,
            args: Default::default(),
            builder: Builder::Auto,
            timeout: LONG,
            run: None,
            no_cache: false,
        },
        migrate: None,
        start: Start {
            runtime: RuntimeKind::Docker,
            gate: None,
            strategy: Strategy::Recreate,
            strategy_reason: None,
            container_port: None,
            networks: Vec::new(),
            volumes: Vec::new(),
            command: None,
            env: Default::default(),
            secrets: Default::default(),
            user: None,
            memory: None,
            cpus: None,
            init: false,
            stop_timeout: LONG,
            log: LogRotation { max_size: 1 << 20, max_file: 1 },
            health: Health {
                probe: Probe::Running,
                interval: LONG,
                timeout: LONG,
                successes: 1,
                deadline: LONG,
                settle: LONG,
            },
        },
        smoke: Smoke { checks: Vec::new(), bake: Duration::ZERO, interval: LONG, timeout: LONG, max_error_rate: None },
        rollback: Rollback { automatic: true, keep: 1 },
    }
}

fn backup(name: &str, source: BackupSource) -> Backup {
    Backup {
        name: name.parse().unwrap(),
        source,
        required: false,
        timeout: LONG,
        compression: Compression::Gzip,
        verify: crate::config::VerifyBackup::Off,
        check: None,
    }
}

fn postgres_in(container: &str, database: &str, format: PostgresFormat) -> BackupSource {
    let (container, database) = (container.to_owned(), database.to_owned());
    BackupSource::Postgres { container, database, user: "postgres".to_owned(), password: None, format, roles: false }
}

fn plain(name: &str) -> Backup {
    backup(name, postgres_in("guestbook-db", name, PostgresFormat::Plain))
}

fn job() -> Job {
    Job { log: DeploymentLog::discard(Redactor::default()).stage(Stage::Backup), cancel: CancellationToken::new() }
}

async fn take(
    dir: &Path,
    backups: Vec<Backup>,
    exec: Option<&dyn ContainerExec>,
    job: &Job,
) -> Result<BackupReport, DataError> {
    let environment = environment(backups);
    let commit = "0123456789abcdef0123456789abcdef01234567".parse().unwrap();
    let request = SetRequest {
        environment: &environment,
        parts: &[],
        deployment: Some(DeploymentId(7)),
        commit: Some(&commit),
        reason: "before deployment 7",
        backups_dir: dir,
        context: &SetContext::default(),
    };
    create_set(request, Reach { containers: exec, scratch: None }, job).await
}

/// Directories of the environment: sets, whole or not.
fn set_dirs(dir: &Path) -> Vec<PathBuf> {
    let environment = dir.join("guestbook/production");
    let entries = std::fs::read_dir(environment).into_iter().flatten();
    entries.map(|e| e.unwrap().path()).collect()
}

async fn unpack(file: &Path) -> Vec<u8> {
    use async_compression::tokio::bufread::{GzipDecoder, ZstdDecoder};
    let raw = tokio::io::BufReader::new(tokio::fs::File::open(file).await.unwrap());
    let mut reader: Box<dyn AsyncRead + Unpin> = match file.extension().and_then(|e| e.to_str()) {
        Some("gz") => Box::new(GzipDecoder::new(raw)),
        Some("zst") => Box::new(ZstdDecoder::new(raw)),
        _ => Box::new(raw),
    };
    let mut out = Vec::new();
    reader.read_to_end(&mut out).await.unwrap();
    out
}

/// Stands in for a container: per database, what `pg_dump` prints, says and ends with.
#[derive(Debug)]
struct Script(fn(database: &str) -> Answer);

#[derive(Debug)]
enum Answer {
    Ends {
        stdout: Vec<u8>,
        stderr: &'static str,
        code: i64,
    },
    /// Prints for ever.
    Endless,
}

const WHOLE: &str = "-- PostgreSQL database dump\n\n-- Dumped from database version 15.14 (Debian 15.14-0+deb12u1)\n\
-- Dumped by pg_dump version 15.14\n\nSELECT 1;\n\n--\n-- PostgreSQL database dump complete\n--\n\n";

#[async_trait]
impl ContainerExec for Script {
    async fn exec_into(
        &self,
        _container: &str,
        command: &[String],
        _env: &[(&str, &Secret)],
        sink: &mut (dyn AsyncWrite + Send + Unpin),
        job: &Job,
    ) -> Result<ExecOutcome, RuntimeError> {
        let argument = command.iter().find_map(|a| a.strip_prefix("--dbname=dbname='")).unwrap_or_default();
        let database = argument.split('\'').next().unwrap_or_default();
        let failed =
            |e: io::Error| RuntimeError::failed("running `pg_dump`", format!("its output was not written: {e}"));
        match (self.0)(database) {
            Answer::Ends { stdout, stderr, code } => {
                for chunk in stdout.chunks(32 * 1024) {
                    sink.write_all(chunk).await.map_err(failed)?;
                }
                sink.flush().await.map_err(failed)?;
                Ok(ExecOutcome { code, output: vec![stderr.to_owned()] })
            }
            Answer::Endless => loop {
                sink.write_all(b"COPY").await.map_err(failed)?;
                if job.cancel.is_cancelled() {
                    return Err(RuntimeError::Cancelled);
                }
                tokio::task::yield_now().await;
            },
        }
    }

    async fn exec_through(
        &self,
        container: &str,
        _command: &[String],
        _env: &[(&str, &Secret)],
        _source: &mut (dyn AsyncRead + Send + Unpin),
        _sink: &mut (dyn AsyncWrite + Send + Unpin),
        _job: &Job,
    ) -> Result<ExecOutcome, RuntimeError> {
        Err(RuntimeError::Missing { what: "container", name: container.to_owned() })
    }
}

fn whole() -> Answer {
    Answer::Ends { stdout: WHOLE.into(), stderr: "", code: 0 }
}

#[tokio::test]
async fn a_set_has_its_files_its_manifest_and_nobody_elses_eyes() {
    let dir = tempfile::tempdir().unwrap();
    let mut second = plain("orders");
    second.compression = Compression::Zstd;
    let report = take(dir.path(), vec![plain("guestbook"), second], Some(&Script(|_| whole())), &job()).await.unwrap();
    let set = dir.path().join(report.set.as_ref().unwrap());
    assert_eq!(set_dirs(dir.path()), std::slice::from_ref(&set));

    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    for made in [dir.path().join("guestbook"), dir.path().join("guestbook/production"), set.clone()] {
        assert_eq!(mode(&made), 0o700, "{}", made.display());
    }
    let mut files: Vec<_> = std::fs::read_dir(&set).unwrap().map(|e| e.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["guestbook.sql.gz", "manifest.json", "orders.sql.zst"]);
    for file in files {
        assert_eq!(mode(&set.join(&file)), 0o600, "{file:?}");
        if file != MANIFEST {
            assert_eq!(unpack(&set.join(&file)).await, WHOLE.as_bytes());
        }
    }

    let manifest = read_manifest(&set).unwrap();
    assert_eq!(manifest.parts, report.parts);
    assert_eq!((manifest.version, manifest.deployment), (2, Some(DeploymentId(7))));
    let part = &manifest.parts[0];
    assert_eq!(part.raw_bytes, WHOLE.len() as u64);
    assert_eq!(part.tool, "pg_dump (PostgreSQL) 15.14");
    assert_eq!(part.server.as_deref(), Some("PostgreSQL 15.14 (Debian 15.14-0+deb12u1)"));
    let verified = verify_checksums(&set).unwrap();
    assert_eq!(verified, Verified { parts: 2, bytes: report.bytes });
}

#[tokio::test]
async fn any_flipped_byte_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let report = take(dir.path(), vec![plain("guestbook")], Some(&Script(|_| whole())), &job()).await.unwrap();
    let set = dir.path().join(report.set.unwrap());
    for file in ["guestbook.sql.gz", MANIFEST] {
        let path = set.join(file);
        let good = std::fs::read(&path).unwrap();
        for at in (0..good.len()).filter(|at| !good[*at].is_ascii_whitespace() || file != MANIFEST) {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, bad).unwrap();
            let found = verify_checksums(&set);
            assert!(matches!(found, Err(DataError::Damaged { .. } | DataError::Manifest { .. })), "{file} {at}");
        }
        std::fs::write(&path, good).unwrap();
        assert!(verify_checksums(&set).is_ok());
    }
    std::fs::write(set.join("guestbook.sql.gz"), "").unwrap();
    assert!(verify_checksums(&set).unwrap_err().to_string().contains("has 0 bytes"));
    std::fs::remove_file(set.join("guestbook.sql.gz")).unwrap();
    assert!(verify_checksums(&set).unwrap_err().to_string().contains("`guestbook.sql.gz` is missing"));
    // A link to the right content is not what was written either.
    std::fs::write(dir.path().join("elsewhere"), "x").unwrap();
    std::os::unix::fs::symlink(dir.path().join("elsewhere"), set.join("guestbook.sql.gz")).unwrap();
    assert!(verify_checksums(&set).unwrap_err().to_string().contains("cannot be read"));
}

#[tokio::test]
async fn a_manifest_cannot_point_out_of_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    let report = take(dir.path(), vec![plain("guestbook")], Some(&Script(|_| whole())), &job()).await.unwrap();
    let set = dir.path().join(report.set.unwrap());
    let manifest = read_manifest(&set).unwrap();
    for name in ["../guestbook.sql.gz", "/etc/passwd", "..", "", "a/b", "manifest.json"] {
        let mut forged = manifest.clone();
        name.clone_into(&mut forged.parts[0].file);
        std::fs::remove_file(set.join(MANIFEST)).unwrap();
        // `write` computes the right checksum, as a forger would.
        forged.write(&set).unwrap();
        let found = verify_checksums(&set).unwrap_err();
        assert!(
            matches!(&found, DataError::Manifest { why, .. } if why.contains("plain file name")),
            "{name}: {found}"
        );
    }
    std::fs::write(set.join(MANIFEST), r#"{"version": 3, "news": true}"#).unwrap();
    assert!(read_manifest(&set).unwrap_err().to_string().contains("version 3"));
}

/// As a Refit of version 0.1.0 wrote it.
#[test]
fn a_manifest_of_version_1_is_still_read() {
    let dir = tempfile::tempdir().unwrap();
    let text = include_str!("tests/fixtures/manifest-1.json");
    std::fs::write(dir.path().join(MANIFEST), text).unwrap();
    std::fs::write(dir.path().join("guestbook.sql"), "-- as it was\n").unwrap();
    let manifest = read_manifest(dir.path()).unwrap();
    assert_eq!((manifest.version, manifest.release, manifest.by, manifest.schema), (1, None, None, None));
    assert_eq!((manifest.parts[0].compression, &manifest.parts[0].tables[..]), (None, &[][..]));
    assert_eq!(verify_checksums(dir.path()).unwrap(), Verified { parts: 1, bytes: 13 });
    std::fs::write(dir.path().join(MANIFEST), text.replace("production", "productiom")).unwrap();
    assert!(read_manifest(dir.path()).unwrap_err().to_string().contains("changed after it was written"));
}

#[tokio::test]
async fn a_dump_that_is_not_whole_is_a_failure() {
    let answer = |database: &str| match database {
        "empty" => Answer::Ends { stdout: Vec::new(), stderr: "", code: 0 },
        "cut" => Answer::Ends { stdout: WHOLE[..WHOLE.len() - 30].into(), stderr: "", code: 0 },
        "code" => Answer::Ends { stdout: WHOLE.into(), stderr: "pg_dump: error: connection lost", code: 1 },
        "archive" => Answer::Ends { stdout: b"PGDMP\x01".to_vec(), stderr: "", code: 0 },
        _ => whole(),
    };
    let custom = backup("archive", postgres_in("db", "archive", PostgresFormat::Custom));
    let backups = vec![plain("empty"), plain("cut"), plain("good"), plain("code"), custom];
    let dir = tempfile::tempdir().unwrap();
    let report = take(dir.path(), backups, Some(&Script(answer)), &job()).await.unwrap();
    assert_eq!(report.parts.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["good"]);
    let errors: Vec<_> = report.failures.iter().map(|f| (f.name.as_str(), f.error.as_str())).collect();
    assert_eq!(
        errors,
        [
            ("empty", "`pg_dump` reported success and wrote nothing"),
            ("cut", "the dump is cut off: its closing line is missing"),
            ("code", "`pg_dump` ended with exit code 1: pg_dump: error: connection lost"),
            ("archive", "what `pg_dump` wrote is not an archive in its custom format"),
        ]
    );
    assert!(!report.is_failure());
    let set = dir.path().join(report.set.unwrap());
    assert_eq!(std::fs::read_dir(&set).unwrap().count(), 2, "only the good part and the manifest are left");
    assert_eq!(read_manifest(&set).unwrap().failures, report.failures);
    assert_eq!(read_manifest(&set).unwrap().warnings.len(), 4);
}

#[tokio::test]
async fn nothing_stays_when_all_parts_or_a_required_one_failed() {
    let answer = |database: &str| match database {
        "bad" => Answer::Ends { stdout: Vec::new(), stderr: "no", code: 1 },
        _ => whole(),
    };
    let dir = tempfile::tempdir().unwrap();
    let report = take(dir.path(), vec![plain("bad")], Some(&Script(answer)), &job()).await.unwrap();
    assert!(report.set.is_none() && !report.is_failure());

    let required = Backup { required: true, ..plain("bad") };
    let report = take(dir.path(), vec![plain("good"), required, plain("last")], Some(&Script(answer)), &job()).await;
    let report = report.unwrap();
    assert!(report.set.is_none() && report.parts.is_empty() && report.is_failure());

    let report = take(dir.path(), vec![plain("good")], None, &job()).await.unwrap();
    assert!(report.failures[0].error.contains("container `guestbook-db` is out of reach"), "{report:?}");

    let report = take(dir.path(), Vec::new(), None, &job()).await.unwrap();
    assert_eq!(report, BackupReport::default());
    assert!(set_dirs(dir.path()).is_empty());
}

#[tokio::test]
async fn secrets_are_masked_in_what_a_failure_says() {
    let answer = |_: &str| Answer::Ends { stdout: Vec::new(), stderr: "bad password hunter22", code: 1 };
    let log = DeploymentLog::discard(Redactor::new([&Secret::new("hunter22")])).stage(Stage::Backup);
    let job = Job { log, cancel: CancellationToken::new() };
    let dir = tempfile::tempdir().unwrap();
    let report = take(dir.path(), vec![plain("bad")], Some(&Script(answer)), &job).await.unwrap();
    assert!(report.failures[0].error.ends_with("bad password [masked]"), "{report:?}");
}

#[tokio::test]
async fn a_cancelled_or_dropped_or_late_set_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let started = || async {
        while !set_dirs(dir.path()).iter().any(|set| set.join("guestbook.sql.gz").exists()) {
            tokio::task::yield_now().await;
        }
    };
    let script = Script(|_| Answer::Endless);

    let job = job();
    let cancelled = tokio::join!(take(dir.path(), vec![plain("guestbook")], Some(&script), &job), async {
        started().await;
        job.cancel.cancel();
    });
    assert!(matches!(cancelled.0, Err(DataError::Cancelled)), "{cancelled:?}");
    assert_eq!(set_dirs(dir.path()).len(), 0);

    let job = self::job();
    tokio::select! {
        ended = take(dir.path(), vec![plain("guestbook")], Some(&script), &job) => panic!("{ended:?}"),
        () = started() => {}
    }
    assert_eq!(set_dirs(dir.path()).len(), 0);

    let late = Backup { timeout: Duration::from_millis(50), ..plain("guestbook") };
    let report = take(dir.path(), vec![late], Some(&script), &job).await.unwrap();
    assert!(report.failures[0].error.contains("took longer than 50ms"), "{report:?}");
    assert_eq!(set_dirs(dir.path()).len(), 0);
}

/// A file system of one megabyte, for as long as it lives.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(dir.path()).status();
        assert!(mount.unwrap().success(), "mounting a tmpfs needs root");
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

/// Bytes that no compression makes smaller.
fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

#[tokio::test]
async fn a_full_disk_is_a_clean_failure() {
    let disk = SmallDisk::mount();
    let answer = |database: &str| match database {
        "guestbook" => Answer::Ends { stdout: [WHOLE.into(), noise(4 << 20)].concat(), stderr: "", code: 0 },
        _ => whole(),
    };
    for compression in [Compression::Gzip, Compression::Zstd, Compression::None] {
        let large = Backup { compression, ..plain("guestbook") };
        let report = take(disk.path(), vec![large, plain("small")], Some(&Script(answer)), &job()).await.unwrap();
        let error = &report.failures[0].error;
        assert!(error.starts_with("no space left on ") && error.contains("while dumping `guestbook`"), "{error}");
        // The room it took is free again for the next part.
        let set = disk.path().join(report.set.unwrap());
        assert_eq!(std::fs::read_dir(&set).unwrap().count(), 2);
        verify_checksums(&set).unwrap();
    }
}
