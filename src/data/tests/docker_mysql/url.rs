//! A server that is reached by its URL: with the programs of an image, and with those of this host. For the latter this test runs itself once
//! more, with programs of the server's image on its `PATH`.

use std::fmt::Write as _;

use super::*;
use crate::config::DatabaseTools;

/// In the environment of the process that has the programs: the URL, and where it may work.
const ROLE: &str = "REFIT_TEST_MYSQL_BY_URL";

const IMAGE: &str = "refit-test/mariadb:10";

const ROWS: u64 = 3000;

impl Container {
    async fn mariadb_on_network() -> Self {
        let start = START.replace("--skip-networking", "--bind-address=0.0.0.0 --skip-name-resolve");
        let container = Self::run(IMAGE, &["sh", "-c", &start]);
        until("MariaDB answers", || container.try_sql("mysql", "SELECT 1").status.success()).await;
        container
    }
}

fn by_url(url: &str, tools: DatabaseTools) -> Backup {
    let check = Some("SELECT COUNT(*) FROM held".to_owned());
    Backup { check, ..backup("far", BackupSource::MysqlUrl { url: Secret::new(url), tools }) }
}

async fn back_up(dir: &Path, source: &Backup) -> BackupReport {
    let environment = environment(vec![source.clone()]);
    let request = SetRequest {
        environment: &environment,
        parts: &[],
        deployment: None,
        commit: None,
        reason: "test",
        backups_dir: dir,
        context: &SetContext::default(),
    };
    let engine = engine();
    create_set(request, Reach { containers: Some(&engine), scratch: Some(&engine) }, &job()).await.unwrap()
}

/// Backs up, has `change` change it, and puts it back, twice.
async fn there_and_back(dir: &Path, source: &Backup, change: &str) -> PathBuf {
    let report = back_up(dir, source).await;
    assert_eq!(report.failures, []);
    let set = dir.join(report.set.unwrap());
    let part = &report.parts[0];
    assert_eq!(part.tables, [TableRows { name: "held".to_owned(), rows: ROWS }]);
    let environment = environment(vec![source.clone()]);
    let engine = engine();
    let reach = Reach { containers: Some(&engine), scratch: Some(&engine) };
    for _ in 0..2 {
        let client = Command::new("sh").arg("-c").arg(change).output().unwrap();
        assert!(client.status.success(), "{client:?}");
        let request = RestoreRequest { environment: &environment, set: &set, parts: &[] };
        let report = restore_set(request, reach, &job()).await.unwrap();
        assert_eq!(report.restored[0].rows, Some(ROWS), "{report:?}");
        assert_eq!(check_data(&environment, &[], reach, &job()).await.unwrap().len(), 1);
    }
    set
}

/// Puts the client programs of the image into `dir`, with what they need to run on any machine of this kind. Each notes its arguments.
fn take_programs(db: &Container, dir: &Path) {
    let script = "for p in mariadb mariadb-dump; do command -v $p; done > /tmp/paths; \
        ldd $(cat /tmp/paths) | grep -o '/[^ :]*' | sort -u | grep -v '^/usr/bin' >> /tmp/paths; tar -chf - $(cat /tmp/paths) 2>/dev/null";
    let packed = db.exec(&["sh", "-c", script]);
    assert!(packed.status.success(), "{packed:?}");
    let root = dir.join("root");
    tar::Archive::new(packed.stdout.as_slice()).unpack(&root).unwrap();
    let paths = String::from_utf8(db.exec(&["cat", "/tmp/paths"]).stdout).unwrap();
    let loader = paths.lines().find(|path| path.contains("/ld-")).unwrap();
    let mut places: Vec<String> = Vec::new();
    for library in paths.lines().filter(|path| path.contains("/lib") && !path.contains("/bin/")) {
        let place = root.join(&library[1..]).parent().unwrap().display().to_string();
        if !places.contains(&place) {
            places.push(place);
        }
    }
    let (root, places, noted) = (root.display(), places.join(":"), dir.join("arguments"));
    for program in ["mariadb", "mariadb-dump"] {
        let mut text = format!("#!/bin/sh\necho \"$0 $*\" >> {}\n", noted.display());
        writeln!(text, "exec {root}{loader} --library-path {places} {root}/usr/bin/{program} \"$@\"").unwrap();
        let path = dir.join(program);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}

async fn with_the_programs(role: &str) {
    let words: Vec<&str> = role.split('|').collect();
    let [url, dir, container] = words[..] else { panic!("{role}") };
    let source = by_url(url, DatabaseTools::Host);
    let change =
        format!("docker exec {container} mariadb --no-defaults -uroot 'odd name' -e 'DELETE FROM held WHERE x > 5'");
    let set = there_and_back(Path::new(dir), &source, &change).await;
    let environment = environment(vec![source]);
    let report = verify(&set, Some(&environment)).await;
    assert!(report.problems[0].contains("set `tools` to an image"), "{report:?}");
    let demanding = by_url(&format!("{url}?ssl-mode=REQUIRED"), DatabaseTools::Host);
    let report = back_up(Path::new(dir), &demanding).await;
    assert!(report.failures[0].error.contains("the server does not encrypt"), "{report:?}");
    let verifying = by_url(&format!("{url}?ssl-mode=VERIFY_IDENTITY"), DatabaseTools::Host);
    let report = back_up(Path::new(dir), &verifying).await;
    assert!(report.failures[0].error.contains("SSL is required"), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_reached_by_its_url_goes_there_and_back() {
    if let Ok(role) = std::env::var(ROLE) {
        return with_the_programs(&role).await;
    }
    let db = Container::mariadb_on_network().await;
    db.sql("mysql", "CREATE DATABASE `odd name`; CREATE USER \"o'brien\"@'%' IDENTIFIED BY 'p@ss/w%rd'");
    db.sql("mysql", "GRANT ALL ON *.* TO \"o'brien\"@'%'");
    db.sql("odd name", &format!("CREATE TABLE held AS SELECT seq AS x FROM seq_1_to_{ROWS}"));
    let host = db.address();
    let url = format!("mysql://o%27brien:p%40ss%2Fw%25rd@{host}:3306/odd%20name");
    let change = format!("docker exec {} mariadb --no-defaults -uroot 'odd name' -e 'DROP TABLE held'", db.0);
    let dir = tempfile::tempdir().unwrap();

    let source = by_url(&url, DatabaseTools::Image(IMAGE.to_owned()));
    let set = there_and_back(dir.path(), &source, &change).await;
    let part = &read_manifest(&set).unwrap().parts[0];
    assert_eq!(part.source.server.as_deref(), Some(format!("{host}:3306").as_str()));
    let text = std::fs::read_to_string(set.join(MANIFEST)).unwrap();
    assert!(!text.contains("p@ss") && !text.contains("p%40ss"), "{text}");
    let with = environment(vec![source]);
    let report = verify(&set, Some(&with)).await;
    assert!(report.ok, "{report:?}");
    assert_eq!(db.databases(), "odd name");

    // By hand, as the manifest says it.
    db.sql("mysql", "CREATE DATABASE by_hand");
    assert!(part.restore.contains("--host=HOST --user=USER EMPTY_DATABASE"), "{}", part.restore);

    take_programs(&db, dir.path());
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    let name = "data::tests::docker_mysql::url::a_database_that_is_reached_by_its_url_goes_there_and_back";
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env("PATH", &path)
        .env(ROLE, format!("{url}|{}|{}", dir.path().display(), db.0))
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&[child.stdout, child.stderr].concat()));
    let hint = part.restore.replace("HOST", &host).replace("USER", "o\\'brien").replace("EMPTY_DATABASE", "by_hand");
    let mut by_hand = Command::new("sh");
    by_hand.arg("-c").arg(&hint).current_dir(&set).env("PATH", &path).env("MYSQL_PWD", "p@ss/w%rd");
    let by_hand = by_hand.output().unwrap();
    assert!(by_hand.status.success(), "{hint}: {by_hand:?}");
    assert_eq!(db.sql("by_hand", "SELECT COUNT(*) FROM held"), ROWS.to_string());
    let arguments = std::fs::read_to_string(dir.path().join("arguments")).unwrap();
    assert!(arguments.contains("mariadb-dump --no-defaults") && !arguments.contains("p@ss"), "{arguments}");

    let wrong = by_url(&url.replace("p%40ss", "wrong"), DatabaseTools::Image(IMAGE.to_owned()));
    let report = back_up(dir.path(), &wrong).await;
    assert!(report.failures[0].error.contains("Access denied for user"), "{report:?}");
    let nowhere = by_url(&url, DatabaseTools::Image("refit-test/busybox:1".to_owned()));
    let report = back_up(dir.path(), &nowhere).await;
    assert!(report.failures[0].error.contains("there is no `mysql` in it"), "{report:?}");
    assert_eq!(docker_verify::scratch_containers(), 0);
}
