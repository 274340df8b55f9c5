//! PostgreSQL and MariaDB, each in a container of its own.

use std::time::Duration;

use sqlx::Connection;

use super::{server::*, *};
use crate::{
    config::{MigrationDatabase, MigrationFiles},
    runtime::docker::Engine,
    secret::Secret,
    test_servers::Server,
};

/// A place is found by the container's name, which is in the URL.
struct Reached {
    server: Server,
    place: Place,
}

impl Reached {
    async fn start(mysql: bool) -> Self {
        let server = Server::start(mysql);
        let files = MigrationFiles {
            dir: "migrations".to_owned(),
            database: MigrationDatabase::Url(Secret::new(server.url())),
            lock_timeout: Duration::from_secs(5),
        };
        let house = tempfile::tempdir().unwrap();
        let file = house.path().join("pipeline.toml");
        std::fs::write(&file, "[app]\nname = 'a'\nrepository = 'r'\n[environments.production]\nbranch = 'main'\n").unwrap();
        let options =
            crate::config::LoadOptions { env: &|_| None, missing_secrets: crate::config::MissingSecrets::Error };
        let config = crate::config::load_with(&file, options).unwrap();
        let environment = config.environments().next().unwrap().clone();
        let engine = Engine::connect(None).unwrap();
        let place = place(&environment, &files, &engine).await.unwrap();
        assert!(!format!("{place:?}").contains("pass"), "{place:?}");
        Self { server, place }
    }
}

impl Reached {
    /// The URL with the address, as sqlx's own tool would be given it.
    async fn address(&self) -> String {
        let engine = Engine::connect(None).unwrap();
        let ip = crate::runtime::ContainerExec::address_of(&engine, &self.server.name).await.unwrap();
        self.server.url().replace(&self.server.name, &ip.to_string())
    }
}

impl Db for Reached {
    fn place(&self) -> Place {
        self.place.clone()
    }

    fn sql(&self, sql: &str) -> String {
        self.server.run("app", sql)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_has_it_as_sqlx_has_and_undoes_what_fails() {
    let db = Reached::start(false).await;
    agrees_with_sqlx!(&db, sqlx::PgConnection::connect(&db.address().await).await.unwrap());
    db.sql("DROP TABLE _sqlx_migrations, entries");
    fails_half_way_and_leaves_nothing(&db).await;
    let broken = with(&[("3_add_colour.up.sql", THIRD[0].1), ("4_b.sql", "-- a\nSELECT 1;\n  SELECT nothing;\n")]);
    let error = up_all(&db.place(), &files(&broken)).await.unwrap_err();
    assert!(error.starts_with("migrations/4_b.sql, line 3: column \"nothing\" does not exist"), "{error}");
    // What cannot be in a transaction says so.
    let index = "-- no-transaction\nCREATE INDEX CONCURRENTLY by_mood ON entries (mood);\n";
    let set = with(&[("3_add_colour.up.sql", THIRD[0].1), ("4_index.sql", index)]);
    assert_eq!(up_all(&db.place(), &files(&set)).await.unwrap(), ["4 (index)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_does_not_freeze_the_app_for_a_lock() {
    let db = Reached::start(false).await;
    up_all(&db.place(), &files(FIRST)).await.unwrap();
    let held = db.server.hold();
    gives_up_a_lock_in_time(&db, "ALTER TABLE entries ADD COLUMN colour text", || db.server.waits()).await;
    is_cancelled_on_the_server_too(&db, "ALTER TABLE entries ADD COLUMN colour text", || db.server.waits()).await;
    drop(held);
    assert_eq!(up_all(&db.place(), &files(&with(THIRD))).await.unwrap(), ["3 (add colour)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_notices_that_we_are_gone() {
    let db = Reached::start(false).await;
    up_all(&db.place(), &files(FIRST)).await.unwrap();
    let held = db.server.hold();
    let set = files(&with(&[("3_change.sql", "ALTER TABLE entries ADD COLUMN colour text")]));
    let place = db.place();
    let migrating = tokio::spawn(async move { up_with(&place, &set, Duration::from_secs(600), &CancellationToken::new()).await });
    until("the migration waits", || db.server.waits()).await;
    // As if the process were killed: the connection closes, and nobody says goodbye.
    migrating.abort();
    until("the server gives the statement up by itself", || !db.server.waits()).await;
    drop(held);
    assert_eq!(states(&db.place(), &files(FIRST)).await, ["1 applied", "2 applied"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_has_it_as_sqlx_has_and_says_that_it_is_dirty() {
    let db = Reached::start(true).await;
    agrees_with_sqlx!(&db, sqlx::MySqlConnection::connect(&db.address().await).await.unwrap());
    db.sql("DROP TABLE _sqlx_migrations, entries");
    up_all(&db.place(), &files(FIRST)).await.unwrap();
    let broken =
        with(&[("3_broken.sql", "ALTER TABLE entries ADD COLUMN colour TEXT;\nALTER TABLE nothing ADD COLUMN x INT;\n")]);
    let error = up_all(&db.place(), &files(&broken)).await.unwrap_err();
    assert!(error.contains("3 (broken) stopped half way") && error.contains("DELETE FROM _sqlx_migrations WHERE version = 3"), "{error}");
    assert_eq!(states(&db.place(), &files(&broken)).await, ["1 applied", "2 applied", "3 dirty"]);
    // Nothing goes on over it, in either direction.
    assert!(up_all(&db.place(), &files(&broken)).await.unwrap_err().contains("the database is dirty"));
    assert!(down_to(&db.place(), &files(&broken), 1).await.unwrap_err().contains("the database is dirty"));
    // The way out, as it was told.
    db.sql("ALTER TABLE entries DROP COLUMN colour; DELETE FROM _sqlx_migrations WHERE version = 3");
    assert_eq!(up_all(&db.place(), &files(&with(THIRD))).await.unwrap(), ["3 (add colour)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_does_not_freeze_the_app_for_a_lock() {
    let db = Reached::start(true).await;
    up_all(&db.place(), &files(FIRST)).await.unwrap();
    let held = db.server.hold();
    gives_up_a_lock_in_time(&db, "ALTER TABLE entries ADD COLUMN colour TEXT;\n", || db.server.waits()).await;
    drop(held);
    assert_eq!(up_all(&db.place(), &files(&with(THIRD))).await.unwrap(), ["3 (add colour)"]);
}
