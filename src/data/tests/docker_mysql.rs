//! MySQL's kind against a real MariaDB, each in a container of its own, through the real engine.

use std::{
    io::Write,
    process::{Output, Stdio},
};

use super::{
    postgres::{Container, engine, until},
    restore::put_back,
    *,
};

mod kill;
mod refuse;
mod url;

/// `guest` needs a password, `root` none; and nothing here has to survive a power cut.
const START: &str = r"
set -e
install -d -o mysql /run/mysqld /tmp/data
mariadb-install-db --user=mysql --datadir=/tmp/data --skip-test-db --auth-root-authentication-method=normal >/dev/null
exec mariadbd --user=mysql --datadir=/tmp/data --skip-networking --event-scheduler=ON \
    --innodb-flush-log-at-trx-commit=0 --innodb-buffer-pool-size=32M --innodb-log-file-size=32M
";

const AWKWARD: &str = include_str!("docker_mysql/awkward.sql");

impl Container {
    pub(super) async fn mariadb() -> Self {
        let container = Self::run("refit-test/mariadb:10", &["sh", "-c", START]);
        until("MariaDB answers", || container.try_sql("mysql", "SELECT 1").status.success()).await;
        container
    }

    fn try_sql(&self, database: &str, sql: &str) -> Output {
        let mut client = Command::new("docker")
            .args(["exec", "-i", &self.0, "mariadb", "--no-defaults", "-uroot", "-BN", "--comments"])
            .args(["--default-character-set=utf8mb4", "-D", database])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A client that has failed reads no further.
        let _ = client.stdin.take().unwrap().write_all(sql.as_bytes());
        client.wait_with_output().unwrap()
    }

    pub(super) fn sql(&self, database: &str, sql: &str) -> String {
        let out = self.try_sql(database, sql);
        assert!(out.status.success(), "{sql}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    pub(super) fn databases(&self) -> String {
        self.sql("mysql", "SELECT GROUP_CONCAT(SCHEMA_NAME ORDER BY 1) FROM information_schema.SCHEMATA WHERE SCHEMA_NAME NOT IN ('mysql', 'sys', 'information_schema', 'performance_schema')")
    }

    /// A hash of every row of every table, and what the server's own program says of all the rest.
    fn fingerprint(&self, database: &str) -> Vec<String> {
        let columns = "SET SESSION group_concat_max_len = 1 << 30; SELECT TABLE_NAME, GROUP_CONCAT(CONCAT('COALESCE(HEX(CAST(`', REPLACE(COLUMN_NAME, '`', '``'), '` AS BINARY)), ''~'')') ORDER BY ORDINAL_POSITION) \
            FROM information_schema.COLUMNS JOIN information_schema.TABLES USING (TABLE_SCHEMA, TABLE_NAME) WHERE TABLE_SCHEMA = DATABASE() AND TABLE_TYPE NOT LIKE '%VIEW' GROUP BY 1 ORDER BY 1";
        let mut lines = Vec::new();
        for line in self.sql(database, columns).lines() {
            let (table, columns) = line.split_once('\t').unwrap();
            let (table, columns) =
                (table.replace("\\n", "\n").replace("\\\\", "\\"), columns.replace("\\n", "\n").replace("\\\\", "\\"));
            let hash = format!(
                "SET SESSION group_concat_max_len = 1 << 30; SELECT COUNT(*), SHA2(GROUP_CONCAT(h ORDER BY h), 256) \
                 FROM (SELECT SHA2(CONCAT_WS('|', {columns}), 256) AS h FROM `{}`) AS hashed",
                table.replace('`', "``")
            );
            lines.push(format!("{table}: {}", self.sql(database, &hash)));
        }
        let out = self.exec(&[
            "mariadb-dump",
            "--no-defaults",
            "-uroot",
            "--no-data",
            "--routines",
            "--events",
            "--skip-dump-date",
            "--default-character-set=utf8mb4",
            database,
        ]);
        assert!(out.status.success(), "{out:?}");
        lines.extend(
            String::from_utf8(out.stdout).unwrap().lines().filter(|l| !l.starts_with("-- ")).map(str::to_owned),
        );
        lines
    }

    /// All of a database as the server's own program tells it, rows in the order of their keys.
    fn dumped(&self, database: &str) -> String {
        let fixed = [
            "mariadb-dump",
            "--no-defaults",
            "-uroot",
            "--routines",
            "--events",
            "--hex-blob",
            "--order-by-primary",
            "--skip-dump-date",
        ];
        let out = self.exec(&[&fixed[..], &[database]].concat());
        assert!(out.status.success(), "{out:?}");
        String::from_utf8(out.stdout).unwrap()
    }

    fn awkward(&self, database: &str) {
        self.sql("mysql", &format!("CREATE DATABASE `{}` CHARACTER SET utf8mb4", database.replace('`', "``")));
        let all: String = (0..=255_u8).map(|b| format!("{b:02x}")).collect();
        self.sql(database, &AWKWARD.replace("@ALL@", &all));
    }
}

pub(super) fn mysql_in(container: &str, database: &str) -> BackupSource {
    let (container, database) = (container.to_owned(), database.to_owned());
    BackupSource::Mysql { container, database, user: "root".to_owned(), password: None }
}

/// Takes a set of one source and says where it is.
async fn set_of(dir: &Path, source: &Backup) -> (PathBuf, Part) {
    let report = take(dir, vec![source.clone()], Some(&engine()), &job()).await.unwrap();
    assert_eq!(report.failures, []);
    (dir.join(report.set.unwrap()), report.parts[0].clone())
}

fn assert_same(after: &[String], before: &[String], what: &str) {
    let differs = after.iter().zip(before).find(|(after, before)| after != before);
    assert_eq!(differs, None, "{what}");
    assert_eq!(after.len(), before.len(), "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_awkward_database_comes_back_row_by_row_and_by_hand_too() {
    let db = Container::mariadb().await;
    // Not with a single quote: `mariadb-dump` itself escapes it wrongly where it comes to events.
    let odd = "odd; a `db` -- ü";
    db.awkward(odd);
    let before = db.fingerprint(odd);
    let dir = tempfile::tempdir().unwrap();
    for compression in [Compression::Gzip, Compression::Zstd, Compression::None] {
        let source = Backup { compression, ..backup("shop", mysql_in(&db.0, odd)) };
        let (set, part) = set_of(dir.path(), &source).await;
        verify_checksums(&set).unwrap();
        assert!(part.tool.starts_with("mariadb-dump 10."), "{part:?}");
        assert!(part.server.as_ref().is_some_and(|s| s.contains("-MariaDB")), "{part:?}");
        let rows = |name: &str| part.tables.iter().find(|t| t.name == name).map(|t| t.rows);
        assert_eq!(
            (rows("wide"), rows("parts"), rows("nothing"), rows("texts")),
            (Some(20_000), Some(5000), Some(0), Some(3))
        );
        assert_eq!(rows("line\n\\! touch owned\nsource /etc/passwd"), Some(1), "{:?}", part.tables);

        // What an app does in the meantime.
        db.sql(odd, "DELETE FROM wide WHERE id > 100; UPDATE texts SET t = 'changed', v = 'x'; DROP TABLE IF EXISTS nothing, journal; DROP TRIGGER IF EXISTS first_of_two; \
            DROP PROCEDURE IF EXISTS many; DROP EVENT IF EXISTS sometimes; CREATE TABLE added (x INT); CREATE VIEW added_view AS SELECT * FROM added; DROP VIEW a_on_view; \
            CREATE TABLE a_on_view (x INT); CREATE PROCEDURE added_procedure() SELECT 1; CREATE TRIGGER added_trigger BEFORE INSERT ON added FOR EACH ROW SET NEW.x = 1; \
            CREATE TABLE sub (pid INT, FOREIGN KEY (pid) REFERENCES parent (id)); DROP VIEW z_base; INSERT INTO parent VALUES (77, NULL)");
        let environment = environment(vec![source]);
        for turn in 0..2 {
            let report = put_back(&environment, &set, Some(&engine()), &job()).await.unwrap();
            assert_eq!(report.restored[0].rows, Some(part.tables.iter().map(|t| t.rows).sum()), "{report:?}");
            assert_same(&db.fingerprint(odd), &before, &format!("{compression:?}, restore {turn}"));
            assert_eq!(db.databases(), odd);
        }

        // With the server's own tools and no Refit.
        db.sql("mysql", "CREATE DATABASE by_hand CHARACTER SET utf8mb4");
        let hint = part.restore.replace("EMPTY_DATABASE", "by_hand");
        let restored = Command::new("sh").arg("-c").arg(&hint).current_dir(&set).output().unwrap();
        assert!(restored.status.success(), "{hint}: {restored:?}");
        let rows_of = |lines: &[String]| lines.iter().take_while(|l| !l.starts_with("/*")).cloned().collect::<Vec<_>>();
        assert_same(&rows_of(&db.fingerprint("by_hand")), &rows_of(&before), &hint);
        db.sql("mysql", "DROP DATABASE by_hand");
    }
    assert!(
        db.exec(&["sh", "-c", "! test -e owned && ! test -e /owned && ! test -e /tmp/data/owned"]).status.success()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_is_of_one_moment_and_tells_its_rows() {
    let db = Container::mariadb().await;
    db.sql("mysql", "CREATE DATABASE shop");
    db.sql("shop", "CREATE TABLE a (id INT AUTO_INCREMENT PRIMARY KEY, x TEXT); CREATE TABLE z (id INT AUTO_INCREMENT PRIMARY KEY, x TEXT); \
        INSERT INTO a (x) SELECT REPEAT('x', 500) FROM seq_1_to_40000; INSERT INTO z (x) SELECT x FROM a");
    // Two tables that always have as many rows, written to all the time.
    let write = "while true; do echo 'BEGIN; INSERT INTO z (x) VALUES (1); INSERT INTO a (x) VALUES (1); COMMIT;'; done | mariadb --no-defaults -uroot shop";
    let mut writer = Command::new("docker").args(["exec", &db.0, "sh", "-c", write]).spawn().unwrap();
    let rows = || db.sql("shop", "SELECT COUNT(*) FROM a").parse::<u64>().unwrap();
    until("somebody writes", || rows() > 40_010).await;
    let dir = tempfile::tempdir().unwrap();
    for (storage, expected) in
        [("InnoDB", ""), ("MyISAM", "1 of the tables know no transactions: `m` (MyISAM): writers wait")]
    {
        db.sql("shop", &format!("CREATE TABLE IF NOT EXISTS m (x INT) ENGINE={storage}; ALTER TABLE m ENGINE={storage}; INSERT INTO m VALUES (1)"));
        let log_dir = tempfile::tempdir().unwrap();
        let log = DeploymentLog::open(&log_dir.path().join("log"), Redactor::default()).unwrap();
        let job = Job { log: log.stage(Stage::Backup), cancel: CancellationToken::new() };
        let begun = rows();
        let report =
            take(dir.path(), vec![backup("shop", mysql_in(&db.0, "shop"))], Some(&engine()), &job).await.unwrap();
        assert_eq!(report.failures, []);
        let of = |name: &str| report.parts[0].tables.iter().find(|t| t.name == name).unwrap().rows;
        assert!(of("a") == of("z") && of("a") >= begun && of("a") <= rows(), "{:?}", report.parts[0].tables);
        let logged = std::fs::read_to_string(log.path()).unwrap();
        assert!(
            logged.contains(expected) && logged.contains("know no transactions") != expected.is_empty(),
            "{logged}"
        );
    }
    writer.kill().unwrap();
    writer.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_with_a_password_is_enough_if_it_has_its_rights() {
    let db = Container::mariadb().await;
    db.sql("mysql", "CREATE DATABASE shop; CREATE USER guest@localhost IDENTIFIED BY 'hunter22 ''x'; GRANT ALL ON shop.* TO guest@localhost");
    db.sql("shop", "CREATE TABLE t (x INT); INSERT INTO t VALUES (1), (2); CREATE DEFINER = guest@localhost VIEW v AS SELECT * FROM t");
    let source = |password: &str| BackupSource::Mysql {
        container: db.0.clone(),
        database: "shop".to_owned(),
        user: "guest".to_owned(),
        password: Some(Secret::new(password)),
    };
    let log_dir = tempfile::tempdir().unwrap();
    let log = DeploymentLog::open(&log_dir.path().join("log"), Redactor::new([&Secret::new("hunter22 'x")])).unwrap();
    let job = Job { log: log.stage(Stage::Backup), cancel: CancellationToken::new() };
    let dir = tempfile::tempdir().unwrap();
    let backups = vec![backup("shop", source("hunter22 'x")), backup("wrong", source("other"))];
    let report = take(dir.path(), backups.clone(), Some(&engine()), &job).await.unwrap();
    assert_eq!(report.failures.len(), 1, "{report:?}");
    assert!(report.failures[0].error.contains("Access denied for user 'guest'@'localhost'"), "{report:?}");
    let set = dir.path().join(report.set.unwrap());
    db.sql("shop", "DELETE FROM t");

    let environment = environment(backups);
    let error = put_back(&environment, &set, Some(&engine()), &job).await.unwrap_err().to_string();
    assert!(error.contains("grant its user all rights on `shop__refit_new` and `shop__refit_old`"), "{error}");
    assert_eq!((db.sql("shop", "SELECT COUNT(*) FROM t").as_str(), db.databases().as_str()), ("0", "shop"));
    db.sql("mysql", r"GRANT ALL ON `shop\_\_refit\_%`.* TO guest@localhost");
    put_back(&environment, &set, Some(&engine()), &job).await.unwrap();
    assert_eq!((db.sql("shop", "SELECT COUNT(*) FROM v").as_str(), db.databases().as_str()), ("2", "shop"));
    let logged = std::fs::read_to_string(log.path()).unwrap();
    let manifest = std::fs::read_to_string(set.join(MANIFEST)).unwrap();
    assert!(!logged.contains("hunter22") && !manifest.contains("hunter22"));

    // Rights to see only some of it make no backup.
    db.sql(
        "mysql",
        "CREATE USER half@localhost; GRANT SELECT, LOCK TABLES, SHOW VIEW, TRIGGER, EVENT ON shop.* TO half@localhost",
    );
    db.sql("shop", "CREATE DEFINER = root@localhost PROCEDURE p() SELECT 1");
    db.sql("mysql", "GRANT EXECUTE ON PROCEDURE shop.p TO half@localhost");
    let half = BackupSource::Mysql {
        container: db.0.clone(),
        database: "shop".to_owned(),
        user: "half".to_owned(),
        password: None,
    };
    let report = take(dir.path(), vec![backup("half", half)], Some(&engine()), &job).await.unwrap();
    assert!(report.failures[0].error.contains("insufficient privileges"), "{report:?}");
}

async fn verify(set: &Path, environment: Option<&Environment>) -> VerifyReport {
    let engine = engine();
    let reach = Reach { containers: Some(&engine), scratch: Some(&engine) };
    verify_set(VerifyRequest { environment, set, depth: Depth::Restore, parts: &[] }, reach, &job()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_is_tried_out_beside_the_server_and_the_check_is_asked_before_anything_changes() {
    let db = Container::mariadb().await;
    let odd = "odd; a `db` -- ü";
    db.awkward(odd);
    db.sql("mysql", "CREATE USER ada@localhost; GRANT ALL ON *.* TO ada@localhost");
    db.sql(odd, "CREATE DEFINER = ada@localhost VIEW of_ada AS SELECT * FROM a_on_view; CREATE DEFINER = ada@localhost VIEW more_of_ada AS SELECT * FROM of_ada");
    let dir = tempfile::tempdir().unwrap();
    let ask = |check: &str| Backup { check: Some(check.to_owned()), ..backup("shop", mysql_in(&db.0, odd)) };
    let source = ask("SELECT COUNT(*) FROM wide WHERE id > 19999");
    let (set, part) = set_of(dir.path(), &source).await;
    let before = db.dumped(odd);
    let with = environment(vec![source.clone()]);
    for environment in [Some(&with), None] {
        let report = verify(&set, environment).await;
        assert!(report.ok, "{report:?}");
        let verified = &report.parts[0];
        assert_eq!(verified.tables.len(), part.tables.len(), "{verified:?}");
        assert!(verified.tables.iter().all(|t| t.expected == Some(t.found)), "{verified:?}");
    }
    assert_eq!((db.dumped(odd), db.databases().as_str()), (before.clone(), odd), "the database itself was not touched");

    // A row less than was noted.
    let right = read_manifest(&set).unwrap();
    restore::forge(&set, |m| m.parts[0].tables.iter_mut().for_each(|t| t.rows += 1));
    let report = verify(&set, None).await;
    assert!(!report.ok && report.problems[0].contains("rows: the table `"), "{report:?}");
    restore::forge(&set, |m| *m = right);

    db.sql(odd, "DELETE FROM wide WHERE id > 10");
    let changed = db.dumped(odd);
    for (check, expected) in [
        ("SELECT 0 FROM wide", "said no: 0"),
        ("SELECT 1 FROM no_such", "no_such' doesn't exist"),
        ("SELECT NULL", "gave an empty value"),
    ] {
        let error =
            put_back(&environment(vec![ask(check)]), &set, Some(&engine()), &job()).await.unwrap_err().to_string();
        assert!(error.contains(expected) && error.ends_with("; no data was changed"), "{error}");
        assert_eq!((db.dumped(odd), db.databases().as_str()), (changed.clone(), odd));
    }
    put_back(&with, &set, Some(&engine()), &job()).await.unwrap();
    assert_eq!(db.dumped(odd), before);
}
