//! Against real servers, each in a container of its own, through the real engine.

use super::{
    super::postgres::{AWKWARD, Container, FINGERPRINT, engine, formats, until},
    *,
};

/// All kinds of things that a database can hold beside tables, some of which depend on others.
const ODDITIES: &str = r#"
CREATE EXTENSION pgcrypto; CREATE EXTENSION hstore;
CREATE TABLE base (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, h hstore, code text UNIQUE);
CREATE TABLE parts (at date, n int REFERENCES base DEFERRABLE INITIALLY DEFERRED) PARTITION BY RANGE (at);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
CREATE TABLE child (more text) INHERITS (base);
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TYPE pair AS (a positive, b text);
CREATE TYPE span AS RANGE (subtype = float8);
CREATE FUNCTION add(pair, pair) RETURNS pair LANGUAGE sql IMMUTABLE AS 'SELECT ROW($1.a + $2.a, $1.b || $2.b)::pair';
CREATE OPERATOR ||| (LEFTARG = pair, RIGHTARG = pair, FUNCTION = add);
CREATE AGGREGATE together(pair) (SFUNC = add, STYPE = pair);
CREATE PROCEDURE nop() LANGUAGE plpgsql AS 'BEGIN END';
CREATE FUNCTION to_pair(int) RETURNS pair LANGUAGE sql IMMUTABLE AS $$SELECT ROW($1, 'n')::pair$$;
CREATE CAST (int AS pair) WITH FUNCTION to_pair(int);
CREATE COLLATION odd (provider = libc, locale = 'C');
CREATE TEXT SEARCH CONFIGURATION words (COPY = simple);
CREATE STATISTICS about (dependencies) ON id, code FROM base;
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER noted BEFORE INSERT ON base FOR EACH ROW EXECUTE FUNCTION note();
CREATE FUNCTION watch() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
CREATE EVENT TRIGGER watcher ON ddl_command_end EXECUTE FUNCTION watch();
CREATE PUBLICATION everything FOR ALL TABLES;
CREATE FOREIGN DATA WRAPPER nothing; CREATE SERVER away FOREIGN DATA WRAPPER nothing;
INSERT INTO base (h, code) SELECT hstore('k', i::text), 'c' || i FROM generate_series(1, 50) i;
INSERT INTO parts SELECT '2026-05-05', i FROM generate_series(1, 50) i;
"#;

/// What an app does in the meantime; of each kind something deleted, changed, added.
const SINCE: &str = r#"
DELETE FROM "Odd Schema; --"."ta""ble 'x' \ $$" WHERE id < 100;
UPDATE "Odd Schema; --"."ta""ble 'x' \ $$" SET "col umn" = 'changed' WHERE id > 2900;
INSERT INTO "Odd Schema; --"."ta""ble 'x' \ $$" ("col umn") VALUES ('added');
SELECT setval('tickets', 99999); SELECT lo_unlink(424242); SELECT lo_from_bytea(515151, 'new');
DROP TABLE nothing; CREATE TABLE added (x int); CREATE SCHEMA later; CREATE TABLE later.t (x mood);
CREATE SCHEMA "it's "" -- later"; CREATE VIEW "it's "" -- later".v AS SELECT * FROM added;
ALTER TYPE mood ADD VALUE 'neu'; CREATE TYPE late AS ENUM ('x');
CREATE OR REPLACE FUNCTION twice(i int) RETURNS int LANGUAGE sql AS 'SELECT i * 3';
CREATE TABLE gone (at pair); DROP TABLE parts_1; DROP EXTENSION pgcrypto; DROP PUBLICATION everything;
"#;

/// What `pg_dump` says of a database, but for what is random in it.
fn dumped(db: &Container, database: &str) -> String {
    let name = format!("dbname='{}'", database.replace('\\', r"\\").replace('\'', r"\'"));
    let out = db.exec(&["pg_dump", "-U", "postgres", "-d", &name]);
    assert!(out.status.success(), "{out:?}");
    let text = String::from_utf8(out.stdout).unwrap();
    text.lines().filter(|l| !l.contains("restrict ")).collect::<Vec<_>>().join("\n")
}

/// Takes a set of each source and says where it is.
async fn set_of(dir: &Path, sources: &[Backup]) -> PathBuf {
    let report = take(dir, sources.to_vec(), Some(&engine()), &job()).await.unwrap();
    assert_eq!(report.failures, []);
    dir.join(report.set.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_format_brings_everything_back_and_twice_is_the_same() {
    let db = Container::postgres().await;
    let odd = r"it's = a \ $(touch owned) --db";
    db.psql("postgres", &format!(r#"CREATE DATABASE "{odd}""#));
    db.psql(odd, AWKWARD);
    db.psql(odd, ODDITIES);
    db.psql("postgres", &format!(r#"ALTER DATABASE "{odd}" SET work_mem = '5MB'"#));
    let before = dumped(&db, odd);
    let dir = tempfile::tempdir().unwrap();
    let mut sources = formats(&db.0, odd);
    let zstd = |backup: &Backup, name: &str| Backup {
        compression: Compression::Zstd,
        name: name.parse().unwrap(),
        ..backup.clone()
    };
    sources.extend([zstd(&sources[0], "plain-zstd"), zstd(&sources[1], "custom-zstd")]);
    for source in sources {
        let set = set_of(dir.path(), std::slice::from_ref(&source)).await;
        db.psql(odd, SINCE);
        assert_ne!(dumped(&db, odd), before);
        let environment = environment(vec![source.clone()]);
        for _ in 0..2 {
            let report = put_back(&environment, &set, Some(&engine()), &job()).await.unwrap();
            let part = &report.restored[0];
            assert_eq!((part.rows, part.tables), (Some(3000 + 50 + 50), 6), "{part:?}");
            assert_eq!(dumped(&db, odd), before, "{}", source.name);
        }
        assert!(db.psql(odd, FINGERPRINT).contains("|1007|42"), "sequences go on where they were");
        db.psql(odd, "SELECT setval('tickets', 1007); SELECT setval('\"Odd Schema; --\".\"ta\"\"ble ''x'' \\ $$_id_seq\"', 3000)");
    }
    let kept =
        "SELECT setconfig FROM pg_db_role_setting s JOIN pg_database d ON d.oid = setdatabase WHERE datname LIKE 'it%'";
    assert_eq!(db.psql("postgres", kept), "{work_mem=5MB}", "what belongs to the database itself stays");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    assert!(db.try_psql("postgres", "SELECT 1").status.success());
    assert!(db.exec(&["sh", "-c", "! test -e owned && ! test -e /owned"]).status.success());
}

/// A database with a table of a thousand rows, its set, and its state then and now.
struct Scene {
    db: Container,
    dir: tempfile::TempDir,
    set: PathBuf,
    source: Backup,
}

const ROWS: &str = "SELECT count(*) || ' ' || sum(x) FROM held";

impl Scene {
    async fn new(format: PostgresFormat) -> Self {
        let db = Container::postgres().await;
        db.psql("postgres", "CREATE TABLE held AS SELECT generate_series(1, 1000) AS x");
        let dir = tempfile::tempdir().unwrap();
        let source = backup("app", postgres_in(&db.0, "postgres", format));
        let set = set_of(dir.path(), std::slice::from_ref(&source)).await;
        db.psql("postgres", "DELETE FROM held WHERE x > 10");
        Self { db, dir, set, source }
    }

    fn rows(&self) -> String {
        self.db.psql("postgres", ROWS)
    }

    async fn put_back(&self, job: &Job) -> Result<RestoreReport, DataError> {
        put_back(&environment(vec![self.source.clone()]), &self.set, Some(&engine()), job).await
    }

    fn open_transactions(&self) -> String {
        let others = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'postgres' AND xact_start IS NOT NULL AND pid <> pg_backend_pid() AND backend_type = 'client backend'";
        self.db.psql("postgres", others)
    }

    async fn nothing_runs(&self) {
        until("psql is gone", || !self.db.processes().lines().any(|l| l.contains("psql --no-psqlrc"))).await;
        until("its session is gone", || self.open_transactions() == "0").await;
    }

    /// Exchanges the dump for another that the manifest agrees with.
    async fn forge_dump(&self, change: impl FnOnce(String) -> String) {
        let part = read_manifest(&self.set).unwrap().parts.remove(0);
        let text = change(String::from_utf8(unpack(&self.set.join(&part.file)).await).unwrap());
        std::fs::write(self.set.join("app.sql"), &text).unwrap();
        forge(&self.set, |m| {
            "app.sql".clone_into(&mut m.parts[0].file);
            (m.parts[0].bytes, m.parts[0].raw_bytes) = (text.len() as u64, text.len() as u64);
            m.parts[0].sha256 = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&text));
        });
    }
}

const OLD: &str = "10 55";
const NEW: &str = "1000 500500";

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_that_fails_in_the_middle_or_is_cut_off_leaves_the_old_data() {
    let scene = Scene::new(PostgresFormat::Plain).await;
    scene.forge_dump(|text| text.replace("\n500\n", "\nnot a number\n")).await;
    let error = scene.put_back(&job()).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("`psql` ended with exit code 3: ") && text.contains("invalid input syntax"), "{text}");
    assert!(text.ends_with("; no data was changed") && error.left_data_alone(), "{text}");
    assert_eq!(scene.rows(), OLD);

    // Ends where `psql --single-transaction` would see the end of the file, and commit.
    scene.forge_dump(|text| text[..text.find("\n600\n").unwrap()].to_owned() + "\n\\.\n").await;
    scene.forge_dump(|text| text + "SELECT no_such_function();\n").await;
    assert!(scene.put_back(&job()).await.is_err());
    assert_eq!(scene.rows(), OLD);
    scene.nothing_runs().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_is_damaged_leaves_the_old_data() {
    let scene = Scene::new(PostgresFormat::Custom).await;
    let path = scene.set.join("app.dump");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.truncate(bytes.len() - 50);
    let before = scene.put_back(&job()).await.map(|r| r.restored[0].rows);
    assert_eq!(before.unwrap(), Some(1000));
    scene.db.psql("postgres", "DELETE FROM held WHERE x > 10");
    std::fs::write(&path, &bytes).unwrap();
    let error = scene.put_back(&job()).await.unwrap_err();
    assert!(matches!(error, DataError::Damaged { .. }), "{error}");
    forge(&scene.set, |m| {
        (m.parts[0].bytes, m.parts[0].raw_bytes) = (bytes.len() as u64, bytes.len() as u64);
        m.parts[0].sha256 = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&bytes));
    });
    let error = scene.put_back(&job()).await.unwrap_err();
    assert!(error.to_string().contains("`pg_restore` ended with exit code 1: "), "{error}");
    assert_eq!(scene.rows(), OLD);
    scene.nothing_runs().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_hold_locks_are_ended() {
    let scene = Scene::new(PostgresFormat::Plain).await;
    let hold = "BEGIN; LOCK TABLE held IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(600)";
    let mut holder = Command::new("docker")
        .args(["exec", &scene.db.0, "psql", "-XU", "postgres", "-c", hold])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let held =
        "SELECT count(*) FROM pg_locks WHERE relation = 'held'::regclass AND mode = 'AccessExclusiveLock' AND granted";
    until("the lock is held", || scene.db.psql("postgres", held) == "1").await;
    scene.put_back(&job()).await.unwrap();
    assert_eq!(scene.rows(), NEW);
    assert!(!holder.wait().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_may_not_be_ended_is_waited_for_only_so_long() {
    let scene = Scene::new(PostgresFormat::Plain).await;
    scene.db.psql(
        "postgres",
        "CREATE ROLE owner LOGIN; GRANT ALL ON SCHEMA public TO owner; ALTER TABLE held OWNER TO owner",
    );
    let hold = "BEGIN; LOCK TABLE held IN ACCESS SHARE MODE; SELECT pg_sleep(600)";
    let mut holder = Command::new("docker")
        .args(["exec", &scene.db.0, "psql", "-XU", "postgres", "-c", hold])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let held = "SELECT count(*) FROM pg_locks WHERE relation = 'held'::regclass AND granted";
    until("the lock is held", || scene.db.psql("postgres", held) == "1").await;
    let mut source = scene.source.clone();
    let BackupSource::Postgres { user, .. } = &mut source.source else { panic!() };
    "owner".clone_into(user);
    let ended = put_back(&environment(vec![source]), &scene.set, Some(&engine()), &job()).await;
    let text = ended.unwrap_err().to_string();
    assert!(text.contains("lock timeout") && text.contains("another connection holds a lock"), "{text}");
    assert!(text.ends_with("; no data was changed"), "{text}");
    assert!(holder.try_wait().unwrap().is_none(), "a role without the right ends nobody");
    assert_eq!(scene.rows(), OLD);
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_only_owns_its_tables_is_enough() {
    let db = Container::postgres().await;
    db.psql("postgres", "CREATE ROLE owner LOGIN");
    db.psql("postgres", "CREATE DATABASE theirs");
    db.psql("theirs", "GRANT CREATE ON SCHEMA public TO owner; GRANT CREATE ON DATABASE theirs TO owner");
    let make = "SET ROLE owner; CREATE TABLE t (id serial PRIMARY KEY, x text); INSERT INTO t (x) VALUES ('a'); \
                CREATE SCHEMA mine; CREATE VIEW mine.v AS SELECT * FROM t; CREATE TYPE e AS ENUM ('a')";
    db.psql("theirs", make);
    let source = BackupSource::Postgres {
        container: db.0.clone(),
        database: "theirs".to_owned(),
        user: "owner".to_owned(),
        password: None,
        format: PostgresFormat::Custom,
        roles: false,
    };
    let dir = tempfile::tempdir().unwrap();
    let source = backup("theirs", source);
    let before = dumped(&db, "theirs");
    let set = set_of(dir.path(), std::slice::from_ref(&source)).await;
    db.psql("theirs", "SET ROLE owner; DROP TABLE t CASCADE; CREATE TABLE t (y int); CREATE TABLE u (y int, z e)");
    put_back(&environment(vec![source]), &set, Some(&engine()), &job()).await.unwrap();
    assert_eq!(dumped(&db, "theirs"), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_dropped_or_killed_in_the_middle_the_old_data_stays() {
    let scene = Scene::new(PostgresFormat::Plain).await;
    scene.forge_dump(|text| text + "SELECT pg_catalog.pg_sleep(600);\n").await;
    let busy = || {
        scene.open_transactions() == "1" && {
            let asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
            scene.db.psql("postgres", asleep) == "1"
        }
    };

    let job = job();
    let (ended, ()) = tokio::join!(scene.put_back(&job), async {
        until("the dump is loading", busy).await;
        job.cancel.cancel();
    });
    assert!(matches!(ended, Err(DataError::Cancelled)), "{ended:?}");
    scene.nothing_runs().await;
    assert_eq!(scene.rows(), OLD);

    let job = self::job();
    tokio::select! {
        ended = scene.put_back(&job) => panic!("{ended:?}"),
        () = until("the dump is loading", busy) => {}
    }
    scene.nothing_runs().await;
    assert_eq!(scene.rows(), OLD);

    let late = Backup { timeout: Duration::from_millis(500), ..scene.source.clone() };
    let ended = put_back(&environment(vec![late]), &scene.set, Some(&engine()), &job).await;
    assert!(matches!(ended, Err(DataError::RestoreTimedOut { .. })), "{ended:?}");
    scene.nothing_runs().await;
    assert_eq!(scene.rows(), OLD);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_is_loaded_waits_for_the_others_and_goes_back_with_them() {
    let scene = Scene::new(PostgresFormat::Plain).await;
    let path = scene.dir.path().join("app.db");
    run(&path, MADE).await;
    let sources = vec![scene.source.clone(), backup("second", BackupSource::Sqlite { path: path.clone() })];
    scene.db.psql("postgres", "INSERT INTO held SELECT generate_series(11, 1000)");
    let set = set_of(scene.dir.path(), &sources).await;
    scene.db.psql("postgres", "DELETE FROM held WHERE x > 10");
    run(&path, CHANGED).await;
    let changed = answer(&path, PRINT).await;
    let environment = environment(sources);
    let engine = engine();

    forge(&set, |m| m.parts[1].raw_bytes += 1);
    let error = put_back(&environment, &set, Some(&engine), &job()).await.unwrap_err();
    assert!(error.to_string().starts_with("`second` was not put back"), "{error}");
    assert_eq!((scene.rows(), answer(&path, PRINT).await), (OLD.to_owned(), changed));
    scene.nothing_runs().await;

    forge(&set, |m| m.parts[1].raw_bytes -= 1);
    let report = put_back(&environment, &set, Some(&engine), &job()).await.unwrap();
    assert_eq!(report.restored.iter().map(|p| p.tables).collect::<Vec<_>>(), [1, 1]);
    assert_eq!((scene.rows().as_str(), answer(&path, PRINT).await.as_str()), (NEW, AS_MADE));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_is_gone_or_out_of_reach_is_named() {
    let scene = Scene::new(PostgresFormat::Plain).await;
    let error = put_back(&environment(vec![scene.source.clone()]), &scene.set, None, &job()).await.unwrap_err();
    assert!(error.to_string().contains("is out of reach: this environment's runtime has no Docker Engine"), "{error}");
    let elsewhere = backup("app", postgres_in("refit-no-such-container", "postgres", PostgresFormat::Plain));
    let ended = put_back(&environment(vec![elsewhere]), &scene.set, Some(&engine()), &job()).await;
    let text = ended.unwrap_err().to_string();
    assert!(text.contains("container `refit-no-such-container` does not exist; no data was changed"), "{text}");
}
