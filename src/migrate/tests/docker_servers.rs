//! PostgreSQL and MariaDB, each in a container of its own.

use std::{
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use sqlx::Connection;

use super::{server::*, *};
use crate::{
    config::{MigrationDatabase, MigrationFiles},
    runtime::docker::Engine,
    secret::Secret,
};

const POSTGRES: &str = "install -d -o postgres /run/postgresql; su postgres -c '
    PATH=/usr/lib/postgresql/15/bin:$PATH
    initdb --no-sync --encoding=UTF8 --locale=C --auth=trust /tmp/data >/dev/null
    echo \"host all all all scram-sha-256\" >> /tmp/data/pg_hba.conf
    exec postgres -D /tmp/data -c fsync=off -c listen_addresses=* -c shared_buffers=16MB'";

const MARIADB: &str = "install -d -o mysql /run/mysqld /tmp/data
    mariadb-install-db --user=mysql --datadir=/tmp/data --auth-root-authentication-method=normal >/dev/null
    exec mariadbd --user=mysql --datadir=/tmp/data --bind-address=0.0.0.0 --innodb-flush-log-at-trx-commit=0";

/// A server with the database `app` of the user `app`, password `pass word/1`.
struct Server {
    name: String,
    mysql: bool,
}

impl Server {
    async fn start(mysql: bool) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("refit-migrate-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let (image, script) =
            if mysql { ("refit-test/mariadb:10", MARIADB) } else { ("refit-test/postgres:15", POSTGRES) };
        let run = Command::new("docker").args(["run", "--detach", "--name", &name, image, "sh", "-c", script]).output();
        let run = run.unwrap();
        assert!(run.status.success(), "{run:?}");
        let server = Self { name, mysql };
        let ready = if mysql { "mysql" } else { "postgres" };
        until("the server answers", || server.command(ready, "SELECT 1").output().unwrap().status.success()).await;
        if mysql {
            server.run("mysql", "CREATE DATABASE app; CREATE USER app IDENTIFIED BY 'pass word/1'; GRANT ALL ON app.* TO app");
        } else {
            server.run("postgres", "CREATE ROLE app LOGIN PASSWORD 'pass word/1'");
            server.run("postgres", "CREATE DATABASE app OWNER app");
        }
        server
    }

    fn command(&self, database: &str, sql: &str) -> Command {
        let mut docker = Command::new("docker");
        docker.args(["exec", &self.name]);
        if self.mysql {
            docker.args(["mariadb", "-N", "-B", "-e", sql, database]);
        } else {
            let user = if database == "app" { "app" } else { "postgres" };
            docker.args(["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-U", user, "-d", database, "-c", sql]);
        }
        docker
    }

    fn run(&self, database: &str, sql: &str) -> String {
        let out = self.command(database, sql).output().unwrap();
        assert!(out.status.success(), "{sql}: {out:?}");
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    /// A session that reads the table and keeps its lock until it is dropped.
    async fn hold(&self) -> Holder<'_> {
        let sql = if self.mysql {
            "START TRANSACTION; SELECT * FROM entries; SELECT SLEEP(600)"
        } else {
            "BEGIN; SELECT * FROM entries; SELECT pg_sleep(600)"
        };
        let child = self.command("app", sql).stdout(Stdio::null()).spawn().unwrap();
        let holder = Holder { server: self, child };
        until("the lock is held", || self.holders() == "1").await;
        holder
    }

    fn holders(&self) -> String {
        if self.mysql {
            self.run("mysql", "SELECT count(*) FROM information_schema.processlist WHERE info = 'SELECT SLEEP(600)'")
        } else {
            self.run("postgres", "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
        }
    }

    /// Whether a change of a table waits for a lock.
    fn waits(&self) -> bool {
        let count = if self.mysql {
            self.run("mysql", "SELECT count(*) FROM information_schema.processlist WHERE info LIKE 'ALTER TABLE%' AND state LIKE 'Waiting for table metadata lock%'")
        } else {
            self.run("postgres", "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'ALTER TABLE%'")
        };
        count != "0"
    }

    fn url(&self) -> String {
        let scheme = if self.mysql { "mysql" } else { "postgres" };
        format!("{scheme}://app:pass%20word%2F1@{}/app", self.name)
    }

    /// The address, as sqlx's own tool would be given it.
    async fn address(&self) -> String {
        let engine = Engine::connect(None).unwrap();
        let ip = crate::runtime::ContainerExec::address_of(&engine, &self.name).await.unwrap();
        self.url().replace(&self.name, &ip.to_string())
    }
}

struct Holder<'a> {
    server: &'a Server,
    child: Child,
}

impl Drop for Holder<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let end = if self.server.mysql {
            "SELECT CONCAT('KILL ', id, ';') FROM information_schema.processlist WHERE info = 'SELECT SLEEP(600)'"
        } else {
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        };
        let database = if self.server.mysql { "mysql" } else { "postgres" };
        let out = self.server.command(database, end).output();
        if let Ok(kill) = out.map(|out| String::from_utf8_lossy(&out.stdout).into_owned())
            && self.server.mysql
        {
            let _ = self.server.command(database, &kill).output();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["rm", "--force", "--volumes", &self.name]).output();
    }
}

/// A place is found by the container's name, which is in the URL.
struct Reached {
    server: Server,
    place: Place,
}

impl Reached {
    async fn start(mysql: bool) -> Self {
        let server = Server::start(mysql).await;
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
    agrees_with_sqlx!(&db, sqlx::PgConnection::connect(&db.server.address().await).await.unwrap());
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
    let held = db.server.hold().await;
    gives_up_a_lock_in_time(&db, "ALTER TABLE entries ADD COLUMN colour text", || db.server.waits()).await;
    is_cancelled_on_the_server_too(&db, "ALTER TABLE entries ADD COLUMN colour text", || db.server.waits()).await;
    drop(held);
    assert_eq!(up_all(&db.place(), &files(&with(THIRD))).await.unwrap(), ["3 (add colour)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_notices_that_we_are_gone() {
    let db = Reached::start(false).await;
    up_all(&db.place(), &files(FIRST)).await.unwrap();
    let held = db.server.hold().await;
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
    agrees_with_sqlx!(&db, sqlx::MySqlConnection::connect(&db.server.address().await).await.unwrap());
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
    let held = db.server.hold().await;
    gives_up_a_lock_in_time(&db, "ALTER TABLE entries ADD COLUMN colour TEXT;\n", || db.server.waits()).await;
    drop(held);
    assert_eq!(up_all(&db.place(), &files(&with(THIRD))).await.unwrap(), ["3 (add colour)"]);
}
