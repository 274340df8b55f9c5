//! Dumps that are damaged or mean harm, and restores that must not begin or not end.

use super::{super::restore::forge, *};

/// A database with a table of a thousand rows, its set, and ten rows left now.
struct Scene {
    db: Container,
    _dir: tempfile::TempDir,
    set: PathBuf,
    source: Backup,
}

const OLD: &str = "10\t55";
const NEW: &str = "1000\t500500";

impl Scene {
    async fn new() -> Self {
        let db = Container::mariadb().await;
        db.sql("mysql", "CREATE DATABASE shop");
        db.sql("shop", "CREATE TABLE held AS SELECT seq AS x FROM seq_1_to_1000; CREATE TRIGGER t BEFORE INSERT ON held FOR EACH ROW SET @x = 1");
        let dir = tempfile::tempdir().unwrap();
        let source = Backup { compression: Compression::None, ..backup("shop", mysql_in(&db.0, "shop")) };
        let (set, _) = set_of(dir.path(), &source).await;
        db.sql("shop", "DELETE FROM held WHERE x > 10");
        Self { db, _dir: dir, set, source }
    }

    fn rows(&self) -> String {
        self.db.sql("shop", "SELECT COUNT(*), SUM(x) FROM held")
    }

    async fn put_back(&self, job: &Job) -> Result<RestoreReport, DataError> {
        put_back(&environment(vec![self.source.clone()]), &self.set, Some(&engine()), job).await
    }

    fn is_as_it_was(&self) {
        assert_eq!((self.rows().as_str(), self.db.databases().as_str()), (OLD, "shop"));
        assert_eq!(
            self.db.sql("shop", "SELECT COUNT(*) FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = 'shop'"),
            "1"
        );
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.set.join("shop.sql")).unwrap()
    }

    /// Exchanges the dump for another that the manifest agrees with.
    fn forge_dump(&self, text: &str) {
        std::fs::write(self.set.join("shop.sql"), text).unwrap();
        forge(&self.set, |m| {
            (m.parts[0].bytes, m.parts[0].raw_bytes) = (text.len() as u64, text.len() as u64);
            m.parts[0].sha256 = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(text));
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_or_damaged_dump_runs_nothing_and_changes_nothing() {
    let scene = Scene::new().await;
    let good = scene.text();
    let here = "INSERT INTO `held` VALUES";
    assert!(good.contains(here), "{good}");
    for (order, expected) in [
        ("\\! touch /tmp/owned\n", "is nothing that a dump of one database has in it"),
        ("system touch /tmp/owned\n", "is nothing that a dump"),
        ("SELECT 1; \\! touch /tmp/owned\n;", "is nothing that a dump"),
        ("COMMIT;\nsystem touch /tmp/owned;\n", "is nothing that a dump"),
        ("COMMIT\\! touch /tmp/owned\n;\n", ""),
        ("source /tmp/more.sql\n;", "is nothing that a dump"),
        ("\\. /tmp/more.sql\n", "is nothing that a dump"),
        ("pager touch /tmp/owned\n;", "is nothing that a dump"),
        ("tee /tmp/owned\n;", "is nothing that a dump"),
        ("/*!40101 SET NAMES utf8 */ \\! touch /tmp/owned\n;\n", "is nothing that a dump"),
        ("DELIMITER \\!\n\\! touch /tmp/owned\n", "a `DELIMITER` that no dump program writes"),
        ("USE mysql;\n", "`USE mysql` is nothing that a dump"),
        ("DROP TABLE `shop`.`held`;\n", "names an object of another database"),
        ("DELETE FROM `shop`.`held`;\n", "is nothing that a dump"),
        ("SELECT 'x' INTO OUTFILE '/tmp/owned';\n", "is nothing that a dump"),
        ("LOAD DATA LOCAL INFILE '/etc/passwd' INTO TABLE held;\n", "is nothing that a dump"),
        ("SET GLOBAL general_log = 1;\n", "is nothing that a dump"),
    ] {
        scene.forge_dump(&good.replace(here, &format!("{order}{here}")));
        let error = scene.put_back(&job()).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(expected) && text.ends_with("; no data was changed"), "{order}: {text}");
        assert!(error.left_data_alone());
        scene.is_as_it_was();
    }
    let row = "(1),\n";
    assert!(good.contains(row));
    for (text, expected) in [
        (good.replacen(row, "(1+(SELECT 1)),\n", 1), "something else than plain values"),
        (good.replacen(row, "", 1), "the table `held` should have 1000 rows and has 999 rows in it"),
        (good.replacen(row, "('no number'),\n", 1), "Incorrect integer value"),
        (good[..good.rfind("-- Dump completed").unwrap()].to_owned(), "its closing line is missing"),
        (good[..good.find("(500)").unwrap()].to_owned(), "ends in the middle of a statement"),
    ] {
        // The dump's own mode would let the wrong number pass.
        let text = text.replace("NO_AUTO_VALUE_ON_ZERO", "STRICT_ALL_TABLES");
        scene.forge_dump(&text);
        let error = scene.put_back(&job()).await.unwrap_err().to_string();
        assert!(error.contains(expected) && error.ends_with("; no data was changed"), "{expected}: {error}");
        scene.is_as_it_was();
    }
    let untouched = "! test -e /tmp/owned && ! test -e /tmp/data/owned && ! test -e /tmp/data/shop/owned";
    assert!(scene.db.exec(&["sh", "-c", untouched]).status.success());

    // Without the sieve, the client itself is deaf to its own commands.
    let orders = "COMMIT;\n\\! touch /tmp/owned\nsystem touch /tmp/owned\n";
    let file = scene.set.join("orders.sql");
    std::fs::write(&file, orders).unwrap();
    let deaf = Command::new("docker")
        .args([
            "exec",
            "-i",
            &scene.db.0,
            "mariadb",
            "--no-defaults",
            "-uroot",
            "--batch",
            "--binary-mode",
            "--sandbox",
        ])
        .stdin(std::fs::File::open(&file).unwrap())
        .output();
    assert!(!deaf.unwrap().status.success());
    assert!(scene.db.exec(&["sh", "-c", untouched]).status.success());

    scene.forge_dump(&good);
    scene.put_back(&job()).await.unwrap();
    assert_eq!(scene.rows(), NEW);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_in_use_or_with_strangers_is_waited_for_or_refused() {
    let scene = Scene::new().await;
    scene.db.sql("mysql", "ALTER TABLE shop.held ADD PRIMARY KEY (x); CREATE DATABASE other; CREATE TABLE other.far (y BIGINT UNSIGNED, FOREIGN KEY (y) REFERENCES shop.held (x))");
    let refused = scene.put_back(&job()).await;
    scene.db.sql("mysql", "DROP DATABASE other");
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("a foreign key of the table `other`.`far` refers to it"), "{error}");
    scene.is_as_it_was();

    let mut holder = Command::new("docker")
        .args([
            "exec",
            &scene.db.0,
            "mariadb",
            "-uroot",
            "shop",
            "-e",
            "BEGIN; SELECT * FROM held LIMIT 1; SELECT SLEEP(600)",
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let holds = "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE INFO LIKE 'SELECT SLEEP%'";
    until("the table is in use", || scene.db.sql("mysql", holds) == "1").await;
    let error = scene.put_back(&job()).await.unwrap_err().to_string();
    assert!(error.contains("another connection is using a table"), "{error}");
    holder.kill().unwrap();
    holder.wait().unwrap();
    let ids = "SELECT CONCAT('KILL ', ID) FROM information_schema.PROCESSLIST WHERE INFO LIKE 'SELECT SLEEP%'";
    let kill = scene.db.sql("mysql", ids);
    let _ = scene.db.try_sql("mysql", &kill);
    scene.is_as_it_was();
    scene.put_back(&job()).await.unwrap();
    assert_eq!(scene.rows(), NEW);
}
