//! Round trips of an awkward database, compared row by row; sets tried out in throw-away servers; hostile dumps; a restore whose process is
//! killed. All against real servers in containers of their own.

use std::process::{Child, Stdio};

use super::{
    postgres::{Container, engine, until},
    restore::{forge, put_back},
    *,
};
use crate::config::DatabaseTools;

/// Every common type, with the values that go wrong first; and what tables can be made of.
const TYPES: &str = r#"
CREATE SCHEMA "Ünï ""quoted""; \! id";
CREATE TYPE "Ünï ""quoted""; \! id"."mood; --" AS ENUM ('gut', '😀', 'it''s', 'back\slash');
CREATE DOMAIN email AS text CHECK (VALUE ~ '^[^@\\]+@[^@]+$');
CREATE TYPE pair AS (a int, b text);
CREATE FUNCTION plus(integer) RETURNS integer LANGUAGE sql IMMUTABLE AS $body$ SELECT $1 + 1 -- '\! id' $body$;
CREATE FUNCTION newer(n integer) RETURNS integer LANGUAGE sql IMMUTABLE BEGIN ATOMIC SELECT CASE WHEN n > 1 THEN n ELSE 1 END; END;
CREATE TABLE "Ünï ""quoted""; \! id"."every type\.
of column" (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    "col ""umn""; \! id" text DEFAULT E'C:\\' , b boolean, i2 smallint, i4 integer, i8 bigint, f4 real, f8 double precision,
    n numeric(30, 10), nn numeric, c char(7), vc varchar(40), raw bytea, d date, t time, tz time with time zone, ts timestamp,
    tsz timestamptz, iv interval, u uuid, j json, jb jsonb, x xml, ip inet, net cidr, mac macaddr, bits bit(5), vbits bit varying,
    p point, ln lseg, bx box, poly polygon, circ circle, tsv tsvector, tsq tsquery, r int4range, mr datemultirange, money money,
    ints int[][], texts text[], mood "Ünï ""quoted""; \! id"."mood; --", moods "Ünï ""quoted""; \! id"."mood; --"[], mail email, pairs pair[],
    oid oid, reg regclass, lsn pg_lsn, doubled bigint GENERATED ALWAYS AS (i8 * 2) STORED);
INSERT INTO "Ünï ""quoted""; \! id"."every type\.
of column" ("col ""umn""; \! id", b, i2, i4, i8, f4, f8, n, nn, c, vc, raw, d, t, tz, ts, tsz, iv, u, j, jb, x, ip, net, mac, bits, vbits,
    p, ln, bx, poly, circ, tsv, tsq, r, mr, money, ints, texts, mood, moods, mail, pairs, oid, reg, lsn)
SELECT CASE i % 9 WHEN 0 THEN NULL WHEN 1 THEN '' WHEN 2 THEN E'\\.' WHEN 3 THEN E'\\N' WHEN 4 THEN E'\n\\.\n\\! id\r\n\t\b\f\v'
        WHEN 5 THEN E'\x01\x02\x1f\x7f' WHEN 6 THEN repeat('👩‍👩‍👧é\\', i) WHEN 7 THEN 'NULL' ELSE 'COPY t (a) FROM stdin;' END,
    CASE WHEN i % 3 > 0 THEN i % 2 = 0 END, -32768 + i, 2147483647 - i, -9223372036854775807 / 4 + i,
    CASE i % 4 WHEN 0 THEN 'NaN' WHEN 1 THEN 'Infinity' ELSE (i / 3.0)::text END::real, CASE i % 3 WHEN 0 THEN '-Infinity' ELSE (i / 7.0)::text END::float8,
    i / 7.0, CASE i % 5 WHEN 0 THEN 'NaN' WHEN 1 THEN 'Infinity' ELSE repeat('9', i)::text END::numeric, 'c ' || i % 10, E'v\t' || i,
    decode(repeat('00ff5c2e0a', i % 50), 'hex'), CASE i % 4 WHEN 0 THEN 'infinity' WHEN 1 THEN '4713-01-01 BC' ELSE '2026-02-03' END::date,
    '24:00', '12:34:56.789+05:30', 'epoch'::timestamp + i * interval '1 microsecond', CASE WHEN i % 2 = 0 THEN '-infinity' ELSE '2026-03-29 01:30:00+01' END::timestamptz,
    i * interval '1 month -3 days 00:00:00.000001', md5(i::text)::uuid, '{"a" : [1, "\\u00e9"],  "a": 2}', jsonb_build_object('n', i, E'q"\\', E'\n'),
    '<a b="&lt;">x</a>', '::ffff:1.2.3.4/96', '10.0.0.0/8', '08:00:2b:01:02:03', B'10101', CASE WHEN i % 2 = 0 THEN B'' ELSE B'1' END, point(i, -0.0),
    '((0,0),(1,1))', '((0,0),(1,1))', '((0,0),(1,1),(2,0))', '<(1,1),3>', to_tsvector('it''s a fat \cat'), 'a & !b', int4range(i, i + 5), '{[2026-01-01,2026-02-01)}',
    i * 1.11, ARRAY[[1, NULL], [3, i]], ARRAY['', 'NULL', NULL, '"', E'\\', '{}', ','], '😀', ARRAY['it''s', 'back\slash']::"Ünï ""quoted""; \! id"."mood; --"[],
    'a@b', ARRAY[(1, 'x,")'), NULL, (NULL, '')]::pair[], 4294967295 - i, 'pg_class', '16/B374D848'
FROM generate_series(1, 400) i;
CREATE TABLE bare ();
INSERT INTO bare DEFAULT VALUES; INSERT INTO bare DEFAULT VALUES;
CREATE TABLE empty (x int);
CREATE TABLE split (at date, n int, PRIMARY KEY (at, n)) PARTITION BY RANGE (at);
CREATE TABLE split_a PARTITION OF split FOR VALUES FROM ('2026-01-01') TO ('2026-07-01');
CREATE TABLE split_b PARTITION OF split DEFAULT;
INSERT INTO split SELECT '2026-01-01'::date + i, i FROM generate_series(1, 365) i;
CREATE TABLE parent (a int); CREATE TABLE child (b int) INHERITS (parent);
INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2, 3), (4, 5);
CREATE TABLE node (id int PRIMARY KEY, up int REFERENCES node DEFERRABLE INITIALLY DEFERRED);
CREATE ROLE "reader; \! id"; CREATE ROLE keeper;
ALTER TABLE node ENABLE ROW LEVEL SECURITY; CREATE POLICY own ON node TO "reader; \! id" USING (id < 10);
INSERT INTO node SELECT i, 1001 - i FROM generate_series(1, 1000) i;
CREATE TABLE audit (what text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN INSERT INTO audit VALUES ('fired'); RETURN NEW; END$$;
CREATE TRIGGER noted BEFORE INSERT ON empty FOR EACH ROW EXECUTE FUNCTION note();
CREATE VIEW "view; \! id" AS SELECT id, E'\\' || "col ""umn""; \! id" AS v FROM "Ünï ""quoted""; \! id"."every type\.
of column" WHERE "col ""umn""; \! id" LIKE E'%\\\\%';
CREATE MATERIALIZED VIEW counted AS SELECT count(*) FROM "view; \! id";
CREATE INDEX ON "Ünï ""quoted""; \! id"."every type\.
of column" (plus(i4)) WHERE "col ""umn""; \! id" <> E'\\';
COMMENT ON TABLE bare IS E'it ends with a backslash \\';
COMMENT ON TABLE empty IS E'a comment\n\\! touch /tmp/owned\n\\.';
CREATE SEQUENCE tickets START 1000 INCREMENT -7 MINVALUE -100000 MAXVALUE 2000; SELECT nextval('tickets'), nextval('tickets');
GRANT SELECT ON bare TO "reader; \! id"; ALTER TABLE split OWNER TO keeper;
ALTER DEFAULT PRIVILEGES FOR ROLE keeper GRANT SELECT ON TABLES TO "reader; \! id";
SELECT lo_from_bytea(424242, decode(repeat('00ff10270a5c2e', 30000), 'hex')); SELECT lo_create(515151); COMMENT ON LARGE OBJECT 515151 IS '\! id';
"#;

/// A hash over every row of every table, with their names; and over what else holds data.
const EVERY_ROW: &str = r#"
SELECT format('SELECT %L, count(*), md5(string_agg(t::text, %L ORDER BY t::text COLLATE "C")) FROM ONLY %I.%I t', c.oid::regclass, '|', n.nspname, c.relname)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'm') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' ORDER BY n.nspname COLLATE "C", c.relname COLLATE "C"
\gexec
SELECT schemaname, sequencename, last_value, increment_by FROM pg_sequences ORDER BY 1, 2;
SELECT loid, md5(string_agg(data, ''::bytea ORDER BY pageno)) FROM pg_largeobject GROUP BY loid ORDER BY loid;
SELECT oid, obj_description(oid, 'pg_largeobject') FROM pg_largeobject_metadata ORDER BY oid;
SELECT * FROM "view; \! id" ORDER BY id;
SELECT obj_description('bare'::regclass), obj_description('empty'::regclass);
SELECT plus(41), newer(7), (SELECT count(*) FROM pg_policy), (SELECT count(*) FROM pg_default_acl), relacl, relowner::regrole FROM pg_class WHERE relname IN ('bare', 'split') ORDER BY relname;
"#;

fn every_row(db: &Container, database: &str) -> String {
    use std::io::Write;
    let mut psql = Command::new("docker")
        .args(["exec", "-i", &db.0, "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", database])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    psql.stdin.take().unwrap().write_all(EVERY_ROW.as_bytes()).unwrap();
    let out = psql.wait_with_output().unwrap();
    assert!(out.status.success(), "{out:?}");
    String::from_utf8(out.stdout).unwrap()
}

fn reach(engine: &crate::runtime::docker::Engine) -> Reach<'_> {
    Reach { containers: Some(engine), scratch: Some(engine) }
}

async fn verify(environment: Option<&Environment>, set: &Path, depth: Depth) -> VerifyReport {
    let engine = engine();
    verify_set(VerifyRequest { environment, set, depth, parts: &[] }, reach(&engine), &job()).await.unwrap()
}

async fn set_of(dir: &Path, sources: &[Backup]) -> PathBuf {
    let report = take(dir, sources.to_vec(), Some(&engine()), &job()).await.unwrap();
    assert_eq!(report.failures, []);
    dir.join(report.set.unwrap())
}

pub(super) fn scratch_containers() -> usize {
    let labels = ["--filter", "label=refit.role=scratch", "--filter", "label=refit.app=guestbook"];
    let mine = format!("label=refit.owner={}", owner());
    let out = Command::new("docker").args(["ps", "-aq", "--filter", &mine]).args(labels).output().unwrap();
    String::from_utf8(out.stdout).unwrap().lines().count()
}

/// Process id and start time of this process.
fn owner() -> String {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let started = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(19).unwrap();
    format!("{}.{started}", std::process::id())
}

/// Every row of every table, in every format: into the database itself after it was changed, and into a server that is thrown away.
#[tokio::test(flavor = "multi_thread")]
async fn every_row_comes_back_and_is_found_when_a_set_is_tried_out() {
    let db = Container::postgres().await;
    db.psql("postgres", "CREATE DATABASE app");
    db.psql("app", TYPES);
    let before = every_row(&db, "app");
    assert!(before.lines().count() > 15 && before.contains("|400|"), "{before}");
    let dir = tempfile::tempdir().unwrap();
    let of =
        |name: &str, format, compression| Backup { compression, ..backup(name, postgres_in(&db.0, "app", format)) };
    let sources = vec![
        of("plain", PostgresFormat::Plain, Compression::Zstd),
        of("custom", PostgresFormat::Custom, Compression::Gzip),
        of("custom-zstd", PostgresFormat::Custom, Compression::Zstd),
    ];
    let set = set_of(dir.path(), &sources).await;
    let manifest = read_manifest(&set).unwrap();
    let noted = |index: usize| {
        let mut tables = manifest.parts[index].tables.clone();
        tables.sort_by(|a, b| a.name.cmp(&b.name));
        tables
    };
    assert_eq!(noted(0), noted(1), "counted alike in both formats");
    assert_eq!(noted(0), noted(2));
    let rows = |name: &str| noted(0).iter().find(|t| t.name == name).map(|t| t.rows);
    assert_eq!(
        [rows("public.bare"), rows("public.empty"), rows("public.split_a"), rows("public.parent")],
        [Some(2), Some(0), Some(180), Some(1)]
    );
    assert_eq!(noted(0).iter().filter(|t| t.rows == 400).count(), 1);
    assert!(manifest.parts[0].source.roles.iter().any(|r| r == "reader; \\! id"), "{:?}", manifest.parts[0].source);

    for source in &sources {
        db.psql("app", "DELETE FROM split; DROP TABLE child; UPDATE node SET up = 1; SELECT lo_unlink(424242); DROP VIEW \"view; \\! id\" CASCADE; SELECT setval('tickets', 3)");
        assert_ne!(db.psql("app", "SELECT count(*) FROM split"), "365");
        let only = environment(vec![source.clone()]);
        for _ in 0..2 {
            put_back(&only, &set, Some(&engine()), &job()).await.unwrap();
            assert_eq!(every_row(&db, "app"), before, "{}", source.name);
        }
    }
    assert!(db.exec(&["sh", "-c", "! test -e /tmp/owned"]).status.success());

    let environment = environment(sources);
    let report = verify(Some(&environment), &set, Depth::Restore).await;
    assert!(report.ok, "{report:#?}");
    for (verified, part) in report.parts.iter().zip(&manifest.parts) {
        assert_eq!(verified.tables.len(), part.tables.len());
        assert!(verified.tables.iter().all(|table| table.expected == Some(table.found)), "{verified:?}");
    }
    // The part's own record says which image.
    assert!(verify(None, &set, Depth::Restore).await.ok);
    assert_eq!(scratch_containers(), 0);

    record_verification(&set, &report).unwrap();
    assert_eq!(last_verification(&set), Some(report));
    assert_eq!(set.join(VERIFICATION).metadata().unwrap().permissions().mode() & 0o777, 0o600);

    // A set that does not hold what was counted.
    forge(&set, |m| m.parts[1].tables[0].rows += 1);
    let report = verify(Some(&environment), &set, Depth::Catalogue).await;
    let bad: Vec<_> = report.parts.iter().map(|part| part.ok).collect();
    assert_eq!((report.ok, bad), (false, vec![true, false, true]), "{report:#?}");
    assert!(report.problems[0].starts_with("`custom`: table of contents: "), "{:?}", report.problems);
}

/// A database with a thousand rows, of which ten are left, and a set of the thousand.
struct Scene {
    db: Container,
    dir: tempfile::TempDir,
    set: PathBuf,
    environment: Environment,
}

const OLD: &str = "10 55";
const NEW: &str = "1000 500500";

impl Scene {
    async fn new() -> Self {
        let db = Container::postgres().await;
        db.psql(
            "postgres",
            "CREATE TABLE held AS SELECT generate_series(1, 1000) AS x; SELECT lo_from_bytea(77, 'large')",
        );
        let dir = tempfile::tempdir().unwrap();
        let source = backup("app", postgres_in(&db.0, "postgres", PostgresFormat::Plain));
        let set = set_of(dir.path(), std::slice::from_ref(&source)).await;
        db.psql("postgres", "DELETE FROM held WHERE x > 10");
        Self { db, dir, set, environment: environment(vec![source]) }
    }

    fn rows(&self) -> String {
        self.db.psql("postgres", "SELECT count(*) || ' ' || sum(x) FROM held")
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

/// CVE-2025-8714 and its relatives: nothing runs, nothing changes, wherever in the dump it stands.
#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_dump_runs_nothing_and_changes_nothing() {
    let scene = Scene::new().await;
    let whole = std::sync::OnceLock::new();
    scene.forge_dump(|text| whole.get_or_init(|| text).clone()).await;
    let whole = whole.get().unwrap();
    let middle = "\nSET standard_conforming_strings = on;\n";
    assert!(whole.contains(middle) && whole.contains("\nCOMMIT;\n"), "{whole}");
    let hostile: [(&str, String); 7] = [
        ("there is a command of `psql` in it", whole.replacen(middle, &format!("{middle}\\! touch /tmp/owned\n"), 1)),
        (
            "there is a command of `psql` in it",
            whole.replacen("-- Name: held;", "-- Name: held\r\\! touch /tmp/owned\n--;", 1),
        ),
        ("there is a command of `psql` in it", whole.replacen("\n\\.\n", "\n\\.\n\\! touch /tmp/owned\n\\.\n", 1)),
        ("there is a command of `psql` in it", format!("{whole}\nSELECT 1 \\g |touch${{IFS}}/tmp/owned\n")),
        (
            "not of the form `pg_dump` writes",
            format!("{whole}\nCOPY held (x) FROM PROGRAM 'touch /tmp/owned; echo 1';\n"),
        ),
        ("begins or ends a transaction", whole.replacen("\nCOMMIT;\n", "\nCOMMIT AND CHAIN;\n", 1)),
        // What passes the scanner is still stopped by the server's own words.
        ("`psql` ended with exit code 3: ", format!("{whole}\nSELECT no_such_function();\n")),
    ];
    for (expected, dump) in hostile {
        scene.forge_dump(|_| dump).await;
        let ended = put_back(&scene.environment, &scene.set, Some(&engine()), &job()).await;
        let error = ended.unwrap_err().to_string();
        assert!(error.contains(expected) && error.ends_with("; no data was changed"), "{error}");
        assert_eq!(scene.rows(), OLD, "{error}");
        assert!(scene.db.exec(&["sh", "-c", "! test -e /tmp/owned"]).status.success(), "{error}");
        if !expected.starts_with("`psql`") {
            let report = verify(Some(&scene.environment), &scene.set, Depth::Restore).await;
            assert!(!report.ok && report.problems[0].contains(expected), "{report:?}");
        }
    }
    scene.forge_dump(|_| whole.clone()).await;
    put_back(&scene.environment, &scene.set, Some(&engine()), &job()).await.unwrap();
    assert_eq!(scene.rows(), NEW);
    assert_eq!(scene.db.psql("postgres", "SELECT convert_from(lo_get(77), 'UTF8')"), "large");
}

/// Large objects come between `BEGIN;` and `COMMIT;` in a dump: what fails after them must not find them committed.
#[tokio::test(flavor = "multi_thread")]
async fn a_dump_with_large_objects_that_fails_at_its_end_changes_nothing() {
    let scene = Scene::new().await;
    for format in [PostgresFormat::Plain, PostgresFormat::Custom] {
        let db = &scene.db;
        db.psql("postgres", "DROP TABLE IF EXISTS late; CREATE TABLE late (x int); INSERT INTO late VALUES (1)");
        let source = backup("late", postgres_in(&db.0, "postgres", format));
        let set = set_of(scene.dir.path(), std::slice::from_ref(&source)).await;
        // Found only when the whole dump has gone by.
        db.psql("postgres", "INSERT INTO late VALUES (2)");
        forge(&set, |m| m.parts[0].raw_bytes += 1);
        let ended = put_back(&environment(vec![source]), &set, Some(&engine()), &job()).await;
        let error = ended.unwrap_err().to_string();
        assert!(error.ends_with("; no data was changed"), "{error}");
        assert_eq!(db.psql("postgres", "SELECT string_agg(x::text, ',' ORDER BY x) FROM late"), "1,2", "{format:?}");
    }
}

/// What the test below starts, and kills.
const ORDER: &str = "REFIT_TEST_RESTORE";

#[tokio::test(flavor = "multi_thread")]
async fn restores_what_it_is_ordered_to() {
    let Ok(order) = std::env::var(ORDER) else { return };
    let (container, set) = order.split_once('|').unwrap();
    let source = backup("app", postgres_in(container, "postgres", PostgresFormat::Plain));
    put_back(&environment(vec![source]), Path::new(set), Some(&engine()), &job()).await.unwrap();
}

fn start_restore(scene: &Scene) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "data::tests::docker_verify::restores_what_it_is_ordered_to"])
        .env(ORDER, format!("{}|{}", scene.db.0, scene.set.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_whose_process_is_killed_leaves_the_old_data_or_the_new() {
    let scene = Scene::new().await;
    let idle = || {
        let others =
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
        scene.db.psql("postgres", others) == "0"
            && !scene.db.processes().lines().any(|l| l.contains("psql --no-psqlrc"))
    };
    let asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    let whole = std::sync::OnceLock::new();
    scene.forge_dump(|text| whole.get_or_init(|| text).clone()).await;
    let whole = whole.get().unwrap();
    // At known moments: before the data, in the middle of it, after the large objects, at the very end. The statement that it is killed
    // in goes on until it finds a file: `psql` does not see the end of its input before.
    let sleep = "DO $$BEGIN WHILE pg_catalog.pg_stat_file('/tmp/go', true) IS NULL LOOP PERFORM pg_catalog.pg_sleep(0.2); END LOOP; END$$;\n";
    let at = [
        whole.replacen(
            "SET standard_conforming_strings = on;\n",
            &format!("SET standard_conforming_strings = on;\n{sleep}"),
            1,
        ),
        whole.replacen("\n\\.\n", &format!("\n\\.\n{sleep}"), 1),
        whole.replacen("\nCOMMIT;\n", &format!("\nCOMMIT;\n{sleep}"), 1),
        format!("{whole}{sleep}"),
    ];
    for dump in at {
        assert_ne!(&dump, whole);
        scene.forge_dump(|_| dump).await;
        let mut child = start_restore(&scene);
        until("it is loading", || scene.db.psql("postgres", asleep) == "1").await;
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(scene.db.exec(&["touch", "/tmp/go"]).status.success());
        until("the server has rolled back", idle).await;
        assert!(scene.db.exec(&["rm", "/tmp/go"]).status.success());
        assert_eq!(scene.rows(), OLD);
    }
    // And at moments that nobody chose, from its first to its last.
    scene.forge_dump(|_| whole.clone()).await;
    let begun = Instant::now();
    assert!(start_restore(&scene).wait().unwrap().success());
    let took = begun.elapsed();
    assert_eq!(scene.rows(), NEW);
    let mut seen = std::collections::BTreeSet::new();
    for n in 0..12 {
        scene.db.psql("postgres", "TRUNCATE held; INSERT INTO held SELECT generate_series(1, 10)");
        let mut child = start_restore(&scene);
        tokio::time::sleep(took * n / 11).await;
        child.kill().unwrap();
        child.wait().unwrap();
        until("the server has settled", idle).await;
        let rows = scene.rows();
        assert!(rows == OLD || rows == NEW, "{rows}");
        seen.insert(rows);
    }
    assert!(seen.contains(OLD), "{seen:?}");
    assert!(start_restore(&scene).wait().unwrap().success());
    assert_eq!(scene.rows(), NEW);
}

/// With a password over the network: tools of this host, and of an image.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_reached_by_its_url_goes_there_and_back() {
    let db = Container::postgres_on_network().await;
    db.psql("postgres", "CREATE ROLE \"o'brien\" SUPERUSER LOGIN PASSWORD 'p@ss/w%rd'");
    db.psql("postgres", "CREATE DATABASE \"odd name\"");
    db.psql("odd name", "CREATE TABLE held AS SELECT generate_series(1, 1000) AS x");
    let host = db.address();
    let dir = tempfile::tempdir().unwrap();
    let url = format!("postgresql://o%27brien:p%40ss%2Fw%25rd@{host}:5432/odd%20name?sslmode=disable");
    for (tools, format) in [
        (DatabaseTools::Host, PostgresFormat::Plain),
        (DatabaseTools::Image("refit-test/postgres:15".to_owned()), PostgresFormat::Custom),
    ] {
        let source = backup(
            "far",
            BackupSource::PostgresUrl { url: Secret::new(url.as_str()), tools: tools.clone(), format, roles: false },
        );
        let environment = environment(vec![source.clone()]);
        let engine = engine();
        let request = SetRequest {
            environment: &environment,
            parts: &[],
            deployment: None,
            commit: None,
            reason: "test",
            backups_dir: dir.path(),
            context: &SetContext { by: Some("ada".to_owned()), ..SetContext::default() },
        };
        let report = create_set(request, reach(&engine), &job()).await.unwrap();
        assert_eq!(report.failures, [], "{tools:?}");
        let set = dir.path().join(report.set.unwrap());
        let part = &read_manifest(&set).unwrap().parts[0];
        assert_eq!(part.tables, [TableRows { name: "public.held".to_owned(), rows: 1000 }]);
        assert_eq!(part.source.server.as_deref(), Some(format!("{host}:5432").as_str()));
        let text = std::fs::read_to_string(set.join(MANIFEST)).unwrap();
        assert!(!text.contains("p@ss") && !text.contains("p%40ss") && text.contains("\"by\": \"ada\""), "{text}");
        db.psql("odd name", "DELETE FROM held WHERE x > 10");
        let request = RestoreRequest { environment: &environment, set: &set, parts: &[] };
        let report = restore_set(request, reach(&engine), &job()).await.unwrap();
        assert_eq!(report.restored[0].place, format!("PostgreSQL database `odd name` at {host}:5432"));
        assert_eq!(db.psql("odd name", "SELECT count(*) FROM held"), "1000");
        let request = VerifyRequest { environment: Some(&environment), set: &set, depth: Depth::Restore, parts: &[] };
        let report = verify_set(request, reach(&engine), &job()).await.unwrap();
        if tools == DatabaseTools::Host {
            assert!(report.problems[0].contains("set `tools` to an image"), "{report:?}");
        } else {
            assert!(report.ok, "{report:?}");
        }
    }
    let wrong = url.replace("p%40ss", "wrong");
    let source = BackupSource::PostgresUrl {
        url: Secret::new(wrong),
        tools: DatabaseTools::Host,
        format: PostgresFormat::Plain,
        roles: false,
    };
    let report = take(dir.path(), vec![backup("far", source)], None, &job()).await.unwrap();
    assert!(report.failures[0].error.contains("password authentication failed"), "{report:?}");
    assert_eq!(scratch_containers(), 0);
}
