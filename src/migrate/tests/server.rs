//! The story that every server is told, with the few words that differ.

use std::time::Duration;

use super::*;

/// A database that is there for one test.
pub trait Db {
    fn place(&self) -> Place;
    /// Runs SQL as somebody else would, and returns what it prints; fails where the SQL does.
    fn sql(&self, sql: &str) -> String;
}

pub const FIRST: &[(&str, &str)] = &[
    ("1_entries.up.sql", "CREATE TABLE entries (id INTEGER PRIMARY KEY, message VARCHAR(80));\nINSERT INTO entries VALUES (1, 'hello');\n"),
    ("1_entries.down.sql", "DROP TABLE entries;\n"),
    ("2_add_mood.up.sql", "ALTER TABLE entries ADD COLUMN mood VARCHAR(20);\n"),
    ("2_add_mood.down.sql", "ALTER TABLE entries DROP COLUMN mood;\n"),
];

pub const THIRD: &[(&str, &str)] = &[
    ("3_add_colour.up.sql", "ALTER TABLE entries ADD COLUMN colour VARCHAR(20);\n"),
    ("3_add_colour.down.sql", "ALTER TABLE entries DROP COLUMN colour;\n"),
];

pub fn with(more: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    FIRST.iter().chain(more).copied().collect()
}

/// Refit and sqlx's own tool, in turns, over one table: each takes what the other wrote for its own.
macro_rules! agrees_with_sqlx {
    ($db:expr, $connection:expr) => {{
        let db = $db;
        let place = db.place();
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &with(THIRD));
        let three = sqlx::migrate::Migrator::new(dir.path()).await.unwrap();
        let set = files(FIRST);
        // Ours first: sqlx sees it as done, validates the checksums, and goes on with the third.
        assert_eq!(up_all(&place, &set).await.unwrap(), ["1 (entries)", "2 (add mood)"]);
        let mut connection = $connection;
        three.run_direct(None, &mut connection, false).await.unwrap();
        let whole = files(&with(THIRD));
        assert_eq!(states(&place, &whole).await, ["1 applied", "2 applied", "3 applied"]);
        assert_eq!(up_all(&place, &whole).await.unwrap(), [""; 0]);
        // sqlx takes one back, and we take back another; then it brings both again.
        three.undo(&mut connection, 2).await.unwrap();
        assert_eq!(states(&place, &whole).await, ["1 applied", "2 applied", "3 pending"]);
        assert_eq!(down_to(&place, &whole, 1).await.unwrap(), ["2 (add mood)"]);
        three.run_direct(None, &mut connection, false).await.unwrap();
        assert_eq!(states(&place, &whole).await, ["1 applied", "2 applied", "3 applied"]);
        // An edit is an edit to both.
        write(dir.path(), &[("2_add_mood.up.sql", "ALTER TABLE entries ADD COLUMN mood VARCHAR(21);\n")]);
        let edited = sqlx::migrate::Migrator::new(dir.path()).await.unwrap();
        let refused = edited.run_direct(None, &mut connection, false).await;
        assert!(matches!(refused, Err(sqlx::migrate::MigrateError::VersionMismatch(2))), "{refused:?}");
        // sqlx keeps its lock when it fails; its session has to end.
        sqlx::Connection::close(connection).await.unwrap();
        let mut texts = with(THIRD);
        texts[2].1 = "ALTER TABLE entries ADD COLUMN mood VARCHAR(21);\n";
        let error = up_all(&place, &files(&texts)).await.unwrap_err();
        assert!(error.contains("migrations/2_add_mood.up.sql was edited"), "{error}");
        let rows = db.sql("SELECT version, description, success FROM _sqlx_migrations ORDER BY version");
        assert_eq!(rows.lines().count(), 3, "{rows}");
    }};
}
pub(super) use agrees_with_sqlx;

/// A file that fails in its second statement, on a server that takes all of it back.
pub async fn fails_half_way_and_leaves_nothing(db: &impl Db) {
    let place = db.place();
    up_all(&place, &files(FIRST)).await.unwrap();
    let broken = with(&[("3_broken.sql", "ALTER TABLE entries ADD COLUMN colour VARCHAR(9);\n\nALTER TABLE nothing ADD COLUMN x INT;\n")]);
    let error = up_all(&place, &files(&broken)).await.unwrap_err();
    assert!(error.starts_with("migrations/3_broken.sql") && error.ends_with("; its transaction was undone"), "{error}");
    assert_eq!(states(&place, &files(&broken)).await, ["1 applied", "2 applied", "3 pending"]);
    // The column would be there twice otherwise.
    assert_eq!(up_all(&place, &files(&with(THIRD))).await.unwrap(), ["3 (add colour)"]);
}

/// The lock is `held` by somebody until the end: the migration gives up, and meanwhile the app was answered.
pub async fn gives_up_a_lock_in_time(db: &(impl Db + Sync), change: &'static str, waits: impl Fn() -> bool + Send) {
    let place = db.place();
    let set = files(&with(&[("3_change.sql", change)]));
    let migrating = tokio::spawn({
        let (place, set) = (place.clone(), set.clone());
        async move { up_with(&place, &set, Duration::from_secs(2), &CancellationToken::new()).await }
    });
    until("the migration waits for the lock", || waits() || migrating.is_finished()).await;
    // It wants what the migration wants, stands behind it in the queue, and is answered though nobody let go.
    assert_eq!(db.sql("SELECT count(*) FROM entries"), "1");
    let failure = migrating.await.unwrap().unwrap_err();
    assert!(matches!(failure.cause, SessionError::LockTimeout { .. }), "{failure:?}");
    assert!(failure.message.contains("raise `migrate.lock_timeout`"), "{}", failure.message);
    assert_eq!(states(&place, &set).await, ["1 applied", "2 applied", "3 pending"], "nothing of it is left");
}

/// Cancelled while it waits: the server ends its session, and the next one gets the lock.
pub async fn is_cancelled_on_the_server_too(db: &impl Db, change: &'static str, waits: impl Fn() -> bool) {
    let place = db.place();
    let set = files(&with(&[("3_change.sql", change)]));
    let cancel = CancellationToken::new();
    let migrating = tokio::spawn({
        let (place, set, cancel) = (place.clone(), set.clone(), cancel.clone());
        async move { up_with(&place, &set, Duration::from_secs(600), &cancel).await }
    });
    until("the migration waits for the lock", || waits() || migrating.is_finished()).await;
    cancel.cancel();
    let failure = migrating.await.unwrap().unwrap_err();
    assert!(matches!(failure.cause, SessionError::Cancelled), "{failure:?}");
    until("its session is gone", || !waits()).await;
    let mut session = Session::open(&place, Duration::from_secs(2), &CancellationToken::new()).await.unwrap();
    session.lock(Duration::from_secs(20)).await.unwrap();
    session.close().await;
}

pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
