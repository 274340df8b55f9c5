//! SQLite, in a file.

use std::path::PathBuf;

use sqlx::Connection;

use super::{server::*, *};

struct File {
    dir: tempfile::TempDir,
}

impl File {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("app.db")
    }

    async fn connect(&self) -> sqlx::SqliteConnection {
        sqlx::SqliteConnection::connect(&format!("sqlite://{}", self.path().display())).await.unwrap()
    }
}

impl Db for File {
    fn place(&self) -> Place {
        Place::sqlite(&self.path())
    }

    /// Python has SQLite, and is there wherever tests run.
    fn sql(&self, sql: &str) -> String {
        let script = "import sqlite3, sys\nc = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)\n\
                      for r in c.execute(sys.argv[2]): print('|'.join(map(str, r)))";
        let out = std::process::Command::new("python3").args(["-c", script]).arg(self.path()).arg(sql).output().unwrap();
        assert!(out.status.success(), "{sql}: {out:?}");
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }
}

#[tokio::test]
async fn refit_and_sqlx_agree() {
    let file = File::new();
    assert_eq!(states(&file.place(), &files(FIRST)).await, ["1 pending", "2 pending"]);
    assert!(!file.path().exists(), "looking makes nothing");
    agrees_with_sqlx!(&file, file.connect().await);
}

#[tokio::test]
async fn a_file_that_fails_half_way_leaves_nothing() {
    fails_half_way_and_leaves_nothing(&File::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_goes_on_is_waited_for_in_time() {
    let file = File::new();
    up_all(&file.place(), &files(FIRST)).await.unwrap();
    // Readers go on beside a writer that has not committed, whatever the journal.
    let mut writer = file.connect().await;
    sqlx::raw_sql("BEGIN IMMEDIATE; UPDATE entries SET message = 'x'").execute(&mut writer).await.unwrap();
    gives_up_a_lock_in_time(&file, "ALTER TABLE entries ADD COLUMN colour TEXT", || false).await;
    sqlx::raw_sql("COMMIT").execute(&mut writer).await.unwrap();
    assert_eq!(up_all(&file.place(), &files(&with(THIRD))).await.unwrap(), ["3 (add colour)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_without_end_is_ended() {
    let file = File::new();
    up_all(&file.place(), &files(FIRST)).await.unwrap();
    let endless = "CREATE TABLE n AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n;";
    let set = files(&with(&[("3_endless.sql", endless)]));
    let cancel = CancellationToken::new();
    let place = file.place();
    let running = tokio::spawn({
        let (place, set, cancel) = (place.clone(), set.clone(), cancel.clone());
        async move { up_with(&place, &set, std::time::Duration::from_secs(2), &cancel).await }
    });
    until("it has the database", || {
        std::fs::metadata(file.path().with_extension("db-journal")).is_ok() || running.is_finished()
    })
    .await;
    cancel.cancel();
    let failure = running.await.unwrap().unwrap_err();
    assert!(matches!(failure.cause, SessionError::Cancelled), "{failure:?}");
    assert_eq!(up_all(&place, &files(&with(THIRD))).await.unwrap(), ["3 (add colour)"], "nobody holds the database");
}

#[tokio::test]
async fn without_a_transaction_what_ran_stays() {
    let file = File::new();
    let text = "-- no-transaction\nCREATE TABLE a (x);\nCREATE TABLE a (x);\n";
    let error = up_all(&file.place(), &files(&[("1_twice.sql", text)])).await.unwrap_err();
    assert!(error.contains("runs without a transaction"), "{error}");
    assert_eq!(file.sql("SELECT count(*) FROM a"), "0");
}
