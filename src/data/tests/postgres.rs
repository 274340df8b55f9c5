//! Against real servers, each in a container of its own, through the real engine.

use std::{
    process::{Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Instant,
};

use super::*;
use crate::runtime::docker::Engine;

/// `guest` needs a password, everyone else is trusted; and nothing here has to survive a power cut.
const START: &str = r#"
set -e
install -d -o postgres /run/postgresql
su postgres -c '
    PATH=/usr/lib/postgresql/15/bin:$PATH
    initdb --no-sync --encoding=UTF8 --locale=C --auth=trust /tmp/data >/dev/null
    printf "local all guest scram-sha-256\nlocal all all trust\n" > /tmp/data/pg_hba.conf
    exec postgres -D /tmp/data -c fsync=off -c listen_addresses= -c shared_buffers=16MB
'
"#;

/// A container that goes when this does.
pub(super) struct Container(pub String);

impl Container {
    pub(super) fn run(image: &str, command: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("refit-data-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let run = Command::new("docker").args(["run", "--detach", "--name", &name, image]).args(command).output();
        let run = run.unwrap();
        assert!(run.status.success(), "{run:?}");
        Self(name)
    }

    pub(super) async fn postgres() -> Self {
        let container = Self::run("refit-test/postgres:15", &["sh", "-c", START]);
        until("PostgreSQL answers", || container.try_psql("postgres", "SELECT 1").status.success()).await;
        container
    }

    /// One that takes connections with a password from elsewhere.
    pub(super) async fn postgres_on_network() -> Self {
        let start = START
            .replace("listen_addresses=", "listen_addresses=0.0.0.0")
            .replace("local all all trust\\n", "local all all trust\\nhost all all all scram-sha-256\\n");
        let container = Self::run("refit-test/postgres:15", &["sh", "-c", &start]);
        until("PostgreSQL answers", || container.try_psql("postgres", "SELECT 1").status.success()).await;
        container
    }

    pub(super) fn address(&self) -> String {
        let format = "{{.NetworkSettings.IPAddress}}";
        let out = Command::new("docker").args(["inspect", "--format", format, &self.0]).output().unwrap();
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    pub(super) fn exec(&self, command: &[&str]) -> Output {
        Command::new("docker").args(["exec", &self.0]).args(command).output().unwrap()
    }

    pub(super) fn try_psql(&self, database: &str, sql: &str) -> Output {
        let database = format!("--dbname=dbname='{}'", database.replace('\\', "\\\\").replace('\'', "\\'"));
        self.exec(&["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "postgres", &database, "-c", sql])
    }

    pub(super) fn psql(&self, database: &str, sql: &str) -> String {
        let out = self.try_psql(database, sql);
        assert!(out.status.success(), "{sql}: {out:?}");
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    /// Command lines of everything that runs in it.
    pub(super) fn processes(&self) -> String {
        let script = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done 2>/dev/null; true";
        String::from_utf8_lossy(&self.exec(&["sh", "-c", script]).stdout).into_owned()
    }

    fn is_dumping(&self) -> bool {
        self.processes().lines().any(|l| l.contains("pg_dump "))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["rm", "--force", "--volumes", &self.0]).output();
    }
}

pub(super) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < LONG, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(super) fn engine() -> Engine {
    Engine::connect(None).unwrap()
}

pub(super) fn formats(container: &str, database: &str) -> Vec<Backup> {
    let plain = backup("plain", postgres_in(container, database, PostgresFormat::Plain));
    let custom = backup("custom", postgres_in(container, database, PostgresFormat::Custom));
    let none = Backup { compression: Compression::None, name: "none".parse().unwrap(), ..custom.clone() };
    vec![plain, custom, none]
}

pub(super) const AWKWARD: &str = r#"
CREATE SCHEMA "Odd Schema; --";
CREATE TYPE mood AS ENUM ('gut', '😀');
CREATE TABLE "Odd Schema; --"."ta""ble 'x' \ $$" (
    id bigserial PRIMARY KEY, "col umn" text, raw bytea, feeling mood, doc jsonb, at timestamptz, amounts numeric[]);
INSERT INTO "Odd Schema; --"."ta""ble 'x' \ $$" ("col umn", raw, feeling, doc, at, amounts)
    SELECT 'Zeile ' || i || E' \t\\N \\. \r\n👩‍👩‍👧 ' || repeat('é', i % 7), decode(md5(i::text) || '00ff', 'hex'), '😀',
           jsonb_build_object('n', i, 'q', '"\'), 'epoch'::timestamptz + i * interval '1 hour', ARRAY[i / 3.0, 'NaN', NULL]
    FROM generate_series(1, 3000) i;
CREATE TABLE nothing (x int);
CREATE SEQUENCE tickets START 1000 INCREMENT 7;
SELECT nextval('tickets'), nextval('tickets');
CREATE VIEW recent AS SELECT id, "col umn" FROM "Odd Schema; --"."ta""ble 'x' \ $$" WHERE id > 2990;
CREATE MATERIALIZED VIEW counted AS SELECT count(*) AS n FROM recent;
CREATE FUNCTION twice(i int) RETURNS int LANGUAGE sql AS $f$ SELECT i * 2; -- PostgreSQL database dump complete $f$;
SELECT lo_from_bytea(424242, decode(repeat('00ff10', 3000), 'hex'));
"#;

/// One line a thing that must come through.
pub(super) const FINGERPRINT: &str = r#"
SELECT md5(string_agg(t::text, '|' ORDER BY id)) FROM "Odd Schema; --"."ta""ble 'x' \ $$" t;
SELECT count(*) FROM nothing;
SELECT nextval('tickets'), nextval('"Odd Schema; --"."ta""ble ''x'' \ $$_id_seq"'), setval('tickets', 1007), twice(21);
SELECT md5(string_agg(r::text, '|' ORDER BY id)) FROM recent r;
SELECT n FROM counted;
SELECT md5(string_agg(encode(data, 'hex'), '' ORDER BY loid, pageno)) FROM pg_largeobject;
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_restores_by_its_own_hint() {
    let db = Container::postgres().await;
    let odd = r"it's = a \ $(touch owned) --db";
    db.psql("postgres", &format!(r#"CREATE DATABASE "{odd}""#));
    db.psql(odd, AWKWARD);
    let before = db.psql(odd, FINGERPRINT);
    // The nextval of the table's own sequence is not set back by the fingerprint.
    let before = before.replacen("|3001|", "|3002|", 1);

    let dir = tempfile::tempdir().unwrap();
    let report = take(dir.path(), formats(&db.0, odd), Some(&engine()), &job()).await.unwrap();
    assert_eq!(report.failures, []);
    let set = dir.path().join(report.set.as_ref().unwrap());
    verify_checksums(&set).unwrap();
    let files: Vec<_> = report.parts.iter().map(|p| p.file.as_str()).collect();
    assert_eq!(files, ["plain.sql.gz", "custom.dump", "none.dump"]);
    assert!(report.parts[1].bytes * 2 < report.parts[2].bytes, "pg_dump compresses its custom format itself");
    for part in &report.parts {
        assert!(part.tool.starts_with("pg_dump (PostgreSQL) 15."), "{part:?}");
        assert!(part.server.as_ref().is_some_and(|s| s.starts_with("PostgreSQL 15.")), "{part:?}");
        assert_eq!(part.source.database.as_deref(), Some(odd));

        let empty = format!("restored_{}", part.name);
        db.psql("postgres", &format!("CREATE DATABASE {empty}"));
        let hint = part.restore.replace("EMPTY_DATABASE", &empty);
        let restored = Command::new("sh").arg("-c").arg(&hint).current_dir(&set).output().unwrap();
        assert!(restored.status.success(), "{hint}: {restored:?}");
        assert_eq!(db.psql(&empty, FINGERPRINT), before, "{hint}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_database_is_a_good_backup_and_a_wrong_name_is_none() {
    let db = Container::postgres().await;
    db.psql("postgres", "CREATE DATABASE bare; ");
    db.psql("postgres", "CREATE ROLE guest LOGIN PASSWORD 'right pass''word'");
    let with_password = |name: &str, password: &str| {
        let source = BackupSource::Postgres {
            container: db.0.clone(),
            database: "bare".to_owned(),
            user: "guest".to_owned(),
            password: Some(Secret::new(password)),
            format: PostgresFormat::Plain,
            roles: false,
        };
        backup(name, source)
    };
    let mut backups = formats(&db.0, "bare");
    backups.push(backup("wrong", postgres_in(&db.0, "no such", PostgresFormat::Plain)));
    backups.push(with_password("secret", "right pass'word"));
    backups.push(with_password("locked", "hunter22"));
    let log_dir = tempfile::tempdir().unwrap();
    let log = log_dir.path().join("log");
    let log = DeploymentLog::open(&log, Redactor::new([&Secret::new("hunter22")])).unwrap();
    let job = Job { log: log.stage(Stage::Backup), cancel: CancellationToken::new() };

    let dir = tempfile::tempdir().unwrap();
    let report = take(dir.path(), backups, Some(&engine()), &job).await.unwrap();
    let names: Vec<_> = report.parts.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["plain", "custom", "none", "secret"]);
    let errors: Vec<_> = report.failures.iter().map(|f| f.error.as_str()).collect();
    assert!(
        errors[0].contains("exit code 1") && errors[0].contains("database \"no such\" does not exist"),
        "{errors:?}"
    );
    assert!(errors[1].contains("password authentication failed for user \"guest\""), "{errors:?}");
    let logged = std::fs::read_to_string(log.path()).unwrap();
    assert!(logged.contains("database \"no such\" does not exist"), "{logged}");
    let set = dir.path().join(report.set.unwrap());
    assert!(!set.join("wrong.sql.gz").exists());
    let manifest = std::fs::read_to_string(set.join(MANIFEST)).unwrap();
    for secret in ["hunter22", "right pass"] {
        assert!(!logged.contains(secret) && !manifest.contains(secret));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_that_hangs_on_a_lock_ends_when_cancelled_late_or_dropped() {
    let db = Container::postgres().await;
    db.psql("postgres", "CREATE TABLE held (x int)");
    let hold = "BEGIN; LOCK TABLE held IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(600)";
    let holder = Command::new("docker")
        .args(["exec", &db.0, "psql", "-XU", "postgres", "-c", hold])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn();
    let mut holder = holder.unwrap();
    let locks = "SELECT count(*) FROM pg_locks WHERE relation = 'held'::regclass AND granted = ";
    until("the lock is held", || db.psql("postgres", &format!("{locks} true")) == "1").await;

    let dir = tempfile::tempdir().unwrap();
    let dump = |timeout| Backup { timeout, ..formats(&db.0, "postgres").remove(0) };
    let hangs = || db.is_dumping() && db.psql("postgres", &format!("{locks} false")) == "1";
    let all_gone = || async {
        assert_eq!(set_dirs(dir.path()).len(), 0);
        until("pg_dump is gone", || !db.is_dumping()).await;
        until("its session is gone", || db.psql("postgres", &format!("{locks} false")) == "0").await;
    };
    let engine = engine();

    // Cancelled: when the call returns, the command is gone.
    let job = job();
    let (cancelled, ()) = tokio::join!(take(dir.path(), vec![dump(LONG)], Some(&engine), &job), async {
        until("pg_dump waits for the lock", hangs).await;
        job.cancel.cancel();
    });
    assert!(matches!(cancelled, Err(DataError::Cancelled)), "{cancelled:?}");
    assert!(!db.is_dumping(), "{}", db.processes());
    all_gone().await;

    // Out of time.
    let job = self::job();
    let report = take(dir.path(), vec![dump(Duration::from_secs(2))], Some(&engine), &job).await.unwrap();
    assert!(report.failures[0].error.contains("took longer than 2s"), "{report:?}");
    assert!(!db.is_dumping(), "{}", db.processes());
    all_gone().await;

    // Dropped: in the background.
    tokio::select! {
        ended = take(dir.path(), vec![dump(LONG)], Some(&engine), &job) => panic!("{ended:?}"),
        () = until("pg_dump waits for the lock", hangs) => {}
    }
    all_gone().await;
    assert!(holder.try_wait().unwrap().is_none(), "nobody else was ended");
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_ends_the_dump_in_the_container() {
    let db = Container::postgres().await;
    let fill = "CREATE TABLE noise AS SELECT i, md5(random()::text) || md5(random()::text) AS x FROM generate_series(1, 300000) i";
    db.psql("postgres", fill);
    let disk = SmallDisk::mount();
    let report = take(disk.path(), formats(&db.0, "postgres"), Some(&engine()), &job()).await.unwrap();
    for failure in &report.failures {
        let clear = failure.error.starts_with("no space left on ") && failure.error.contains("while dumping");
        assert!(clear, "{failure:?}");
    }
    assert_eq!(report.failures.len(), 3);
    assert!(!db.is_dumping(), "{}", db.processes());
    assert_eq!(set_dirs(disk.path()).len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_is_not_there_is_named() {
    let stopped = Container::run("refit-test/postgres:15", &["true"]);
    until("it has stopped", || {
        let state = Command::new("docker").args(["inspect", "--format", "{{.State.Running}}", &stopped.0]).output();
        state.unwrap().stdout == b"false\n"
    })
    .await;
    let bare = Container::run("refit-test/postgres:15", &["sh", "-c", "rm /usr/bin/pg_dump; touch /ready; sleep 600"]);
    until("it is ready", || bare.exec(&["test", "-e", "/ready"]).status.success()).await;
    let dir = tempfile::tempdir().unwrap();
    for (container, expected) in [
        ("refit-no-such-container", "container `refit-no-such-container` does not exist".to_owned()),
        ("../images/x", "container `../images/x` does not exist".to_owned()),
        (&stopped.0, format!("running `pg_dump` in container `{}`: the container is not running", stopped.0)),
        (&bare.0, format!("running `pg_dump` in container `{}`: there is no `pg_dump` in it", bare.0)),
    ] {
        let part = formats(container, "postgres").remove(0);
        let report = take(dir.path(), vec![part], Some(&engine()), &job()).await.unwrap();
        assert_eq!(report.failures[0].error, expected);
    }
    // A socket that nobody listens on any more.
    let socket = dir.path().join("docker.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let away = Engine::connect(Some(&format!("unix://{}", socket.display()))).unwrap();
    let report = take(dir.path(), formats("x", "postgres"), Some(&away), &job()).await.unwrap();
    assert!(report.failures[0].error.starts_with("Docker cannot be reached: "), "{report:?}");
}
