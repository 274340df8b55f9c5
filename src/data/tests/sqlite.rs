use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, Stdio},
};

use sqlx::{Connection, SqliteConnection, sqlite::SqliteConnectOptions};

use super::*;

fn sqlite(path: &Path) -> Backup {
    backup("app", BackupSource::Sqlite { path: path.to_owned() })
}

/// Runs a script against `path` (its `argv[1]`) in a process of its own.
fn python(script: &str, path: &Path) -> Child {
    let mut child = Command::new("python3");
    child.arg("-c").arg(script).arg(path).stdin(Stdio::null()).stdout(Stdio::piped());
    child.spawn().unwrap()
}

fn prepare(script: &str, path: &Path) {
    python(&format!("import sqlite3, sys\ndb = sqlite3.connect(sys.argv[1])\n{script}"), path).wait().unwrap();
    assert!(path.exists());
}

/// The dumped database, unpacked, and its answer to a query for one number.
async fn ask(set: &Path, part: &Part, query: &'static str) -> i64 {
    let file = set.join(format!("unpacked-{}", part.name));
    std::fs::File::create(&file).unwrap().write_all(&unpack(&set.join(&part.file)).await).unwrap();
    let options = SqliteConnectOptions::new().filename(&file).read_only(true).immutable(true);
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::query_scalar(query).fetch_one(&mut connection).await.unwrap()
}

/// Writes one row to each of two tables in one transaction, for ever; tells how many, each time.
const WRITER: &str = r#"
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=60)
db.execute("PRAGMA journal_mode = wal")
db.execute("PRAGMA wal_autocheckpoint = 0")
db.executescript("CREATE TABLE a (x, t); CREATE TABLE b (x, t); PRAGMA user_version = 42")
n = 0
while True:
    n += 1
    with db:
        db.execute("INSERT INTO a VALUES (?, ?)", (n, "\U0001F600" * 50))
        db.execute("INSERT INTO b VALUES (?, ?)", (n, "x" * 200))
    print(n, flush=True)
"#;

#[tokio::test]
async fn a_database_in_use_is_copied_as_of_one_moment() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("odd 'name' ü.db");
    let mut writer = python(WRITER, &path);
    let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines().map_while(Result::ok);
    let before: i64 = lines.find_map(|l| l.parse().ok().filter(|n| *n >= 200)).unwrap();
    // Someone has to read on, or the writer stops at a full pipe.
    let reader = std::thread::spawn(move || lines.last().and_then(|l| l.parse::<i64>().ok()).unwrap_or_default());

    for compression in [Compression::Gzip, Compression::Zstd, Compression::None] {
        let backup = Backup { compression, ..sqlite(&path) };
        let report = take(dir.path(), vec![backup], None, &job()).await.unwrap();
        let set = dir.path().join(report.set.as_ref().unwrap());
        verify_checksums(&set).unwrap();
        let part = &report.parts[0];
        assert!(part.tool.starts_with("SQLite 3."), "{}", part.tool);
        let rows = ask(&set, part, "SELECT count(*) FROM a").await;
        assert!(rows >= before, "what is only in the WAL is in the copy");
        let torn = ask(&set, part, "SELECT (SELECT count(*) FROM a) - (SELECT count(*) FROM b)").await;
        assert_eq!(torn, 0);
        assert_eq!(ask(&set, part, "SELECT user_version FROM pragma_user_version").await, 42);
        assert_eq!(std::fs::read_dir(&set).unwrap().count(), 3, "part, manifest and this test's copy");
    }
    assert!(writer.try_wait().unwrap().is_none(), "the writer was not disturbed");
    writer.kill().unwrap();
    writer.wait().unwrap();
    assert!(reader.join().unwrap() >= before);
}

#[tokio::test]
async fn a_database_whose_app_crashed_is_copied_as_the_app_would_find_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let crash = "\
import os, signal
db.executescript('PRAGMA journal_mode = delete; CREATE TABLE t (x); INSERT INTO t VALUES (1)')
db.commit()
db.execute('PRAGMA cache_size = 1')
db.execute('BEGIN')
for n in range(5000): db.execute('INSERT INTO t VALUES (?)', ('x' * 500,))
db.execute('DELETE FROM t WHERE x = 1')
os.kill(os.getpid(), signal.SIGKILL)
";
    prepare(crash, &path);
    assert!(dir.path().join("app.db-journal").exists(), "a journal to be rolled back is left");
    let report = take(dir.path(), vec![sqlite(&path)], None, &job()).await.unwrap();
    let set = dir.path().join(report.set.as_ref().unwrap());
    assert_eq!(ask(&set, &report.parts[0], "SELECT sum(x) * 10 + count(*) FROM t").await, 11);
}

#[tokio::test]
async fn what_cannot_be_copied_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("empty"), "").unwrap();
    std::fs::write(path("text"), "just some words, long enough to have a header. ".repeat(100)).unwrap();
    let fill = "db.executescript('CREATE TABLE t (x); WITH RECURSIVE n(i) AS \
                (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) INSERT INTO t SELECT hex(randomblob(50)) FROM n')";
    prepare(fill, &path("damaged"));
    let mut bytes = std::fs::read(path("damaged")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 20_000].fill(0xff);
    std::fs::write(path("damaged"), bytes).unwrap();
    for (name, expected) in [
        ("missing", "missing does not exist"),
        (".", "is not a file"),
        ("empty", "empty is empty"),
        ("text", "file is not a database"),
        ("damaged", "malformed"),
    ] {
        let report = take(dir.path(), vec![sqlite(&path(name))], None, &job()).await.unwrap();
        assert!(report.failures[0].error.contains(expected), "{name}: {report:?}");
        assert!(report.set.is_none());
    }
    assert_eq!(set_dirs(dir.path()).len(), 0);
    assert!(!path("missing").exists());
}

#[tokio::test]
async fn a_large_copy_ends_when_cancelled_and_when_the_disk_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let fill = "db.executescript('CREATE TABLE t (x); WITH RECURSIVE n(i) AS \
                (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000) INSERT INTO t SELECT hex(randomblob(50)) FROM n')";
    prepare(fill, &path);
    let job = job();
    let begun = || set_dirs(dir.path()).iter().any(|set| set.join(".app.db.copy").exists());
    let (cancelled, ()) = tokio::join!(take(dir.path(), vec![sqlite(&path)], None, &job), async {
        while !begun() {
            tokio::task::yield_now().await;
        }
        job.cancel.cancel();
    });
    assert!(matches!(cancelled, Err(DataError::Cancelled)), "{cancelled:?}");
    assert_eq!(set_dirs(dir.path()).len(), 0);

    let disk = SmallDisk::mount();
    let report = take(disk.path(), vec![sqlite(&path)], None, &self::job()).await.unwrap();
    let error = &report.failures[0].error;
    assert!(error.starts_with("no space left on ") && error.contains("while dumping `app`"), "{error}");
    assert_eq!(set_dirs(disk.path()).len(), 0);
}
