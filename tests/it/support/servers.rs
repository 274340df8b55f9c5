//! Database servers in containers of their own; std only, because the library's own tests use this file too.

use std::{
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
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
#[derive(Debug)]
pub struct Server {
    /// The container's.
    pub name: String,
    pub mysql: bool,
}

impl Server {
    pub fn start(mysql: bool) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("refit-migrate-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let (image, script) =
            if mysql { ("refit-test/mariadb:10", MARIADB) } else { ("refit-test/postgres:15", POSTGRES) };
        let run = Command::new("docker").args(["run", "--detach", "--name", &name, image, "sh", "-c", script]).output();
        let run = run.unwrap();
        assert!(run.status.success(), "{run:?}");
        let server = Self { name, mysql };
        let ready = if mysql { "mysql" } else { "postgres" };
        until("the server answers", || server.command(ready, "SELECT 1").output().unwrap().status.success());
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

    /// Runs SQL as the app's user (in `app`) or as the owner.
    #[track_caller]
    pub fn run(&self, database: &str, sql: &str) -> String {
        let out = self.command(database, sql).output().unwrap();
        assert!(out.status.success(), "{sql}: {out:?}");
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    /// A session that reads the table and keeps its lock until it is dropped.
    pub fn hold(&self) -> Holder<'_> {
        let sql = if self.mysql {
            "START TRANSACTION; SELECT * FROM entries; SELECT SLEEP(600)"
        } else {
            "BEGIN; SELECT * FROM entries; SELECT pg_sleep(600)"
        };
        let child = self.command("app", sql).stdout(Stdio::null()).spawn().unwrap();
        let holder = Holder { server: self, child };
        until("the lock is held", || self.holders() == "1");
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
    pub fn waits(&self) -> bool {
        let count = if self.mysql {
            self.run("mysql", "SELECT count(*) FROM information_schema.processlist WHERE info LIKE 'ALTER TABLE%' AND state LIKE 'Waiting for table metadata lock%'")
        } else {
            self.run("postgres", "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'ALTER TABLE%'")
        };
        count != "0"
    }

    pub fn url(&self) -> String {
        let scheme = if self.mysql { "mysql" } else { "postgres" };
        format!("{scheme}://app:pass%20word%2F1@{}/app", self.name)
    }
}

#[derive(Debug)]
pub struct Holder<'a> {
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

/// Looks again and again, for a bounded time.
#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(90), "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
