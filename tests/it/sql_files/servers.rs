//! The same against PostgreSQL and MariaDB in containers: locks that others hold, processes that are really killed, a server that undoes nothing.

use serde_json::Value;

use crate::support::{Site, poll, servers::{Server, until}};

/// A site whose files go to a database in a container, by its name.
struct Away {
    server: Server,
    site: Site,
}

impl Away {
    fn live(mysql: bool, more: &str) -> Self {
        let server = Server::start(mysql);
        let site = Site::process().env("DATABASE_URL", &server.url()).with(&format!(
            "[migrate]\nfiles = \"db\"\nurl = {{ env = \"DATABASE_URL\" }}\n{more}\n"
        ));
        site.write("db/1_entries.up.sql", "CREATE TABLE entries (id INTEGER PRIMARY KEY, message VARCHAR(80));\nINSERT INTO entries VALUES (1, 'hello');\n");
        site.write("db/1_entries.down.sql", "DROP TABLE entries;\n");
        site.push("first");
        site.deploy(0);
        Self { server, site }
    }

    fn rows(&self) -> String {
        self.server.run("app", "SELECT version FROM _sqlx_migrations ORDER BY version").replace('\n', " ")
    }

    /// What the second version brings.
    fn second(&self, up: &str, down: &str) {
        self.site.write("db/2_mood.up.sql", "ALTER TABLE entries ADD COLUMN mood VARCHAR(9);\n");
        self.site.write("db/2_mood.down.sql", "ALTER TABLE entries DROP COLUMN mood;\n");
        self.site.write("db/3_third.up.sql", up);
        self.site.write("db/3_third.down.sql", down);
        self.site.version("two");
        self.site.push("second");
    }

    fn columns(&self) -> String {
        let own = if self.server.mysql { "table_schema = 'app' AND" } else { "" };
        let sql = format!("SELECT column_name FROM information_schema.columns WHERE {own} table_name = 'entries' ORDER BY ordinal_position");
        self.server.run("app", &sql).replace('\n', " ")
    }

    /// Ends the deployment in the middle: the process gets SIGKILL once `when` holds. Returns what recovery makes of it.
    fn killed_when(&mut self, when: impl Fn(&Self) -> bool) -> Value {
        let mut deploy = self.site.refit_command(&["deploy"]).spawn().unwrap();
        until("it is in the middle", || when(self));
        deploy.kill().unwrap();
        deploy.wait().unwrap();
        self.site.serve();
        let ended = self.site.settled();
        assert_eq!(self.site.stop_daemon(), 0);
        self.site.expect_page("one");
        ended
    }
}

fn told(deployment: &Value) -> String {
    format!("{} {}", deployment["error"].as_str().unwrap_or_default(), deployment["undone"])
}

/// Somebody reads the table and does not end: the deployment gives up in time, and meanwhile the app is answered.
fn gives_up_a_lock(mysql: bool) {
    let away = Away::live(mysql, "lock_timeout = \"2s\"\non_failure = \"down\"");
    let held = away.server.hold();
    away.second("ALTER TABLE entries ADD COLUMN colour VARCHAR(9);\n", "ALTER TABLE entries DROP COLUMN colour;\n");
    let mut deploy = away.site.refit_command(&["deploy"]).spawn().unwrap();
    until("the migration waits for the lock", || away.server.waits() || deploy.try_wait().unwrap().is_some());
    // A query of the app stands behind it, and is answered though the lock is held until the end of this test.
    assert_eq!(away.server.run("app", "SELECT count(*) FROM entries"), "1");
    away.site.expect_page("one");
    assert_eq!(deploy.wait().unwrap().code(), Some(3));
    let bad = away.site.newest();
    assert!(told(&bad).contains("db/2_mood.up.sql: a lock that another session holds was not free within 2s"), "{bad:#}");
    assert!(told(&bad).contains("the schema is still at 1 (entries)"), "{bad:#}");
    assert_eq!((away.rows(), away.columns()), ("1".to_owned(), "id message".to_owned()));
    drop(held);
    away.site.refit(&["rerun"]).expect(0);
    assert_eq!((away.rows(), away.columns()), ("1 2 3".to_owned(), "id message mood colour".to_owned()));
    away.site.expect_page("two");
}

#[test]
fn docker_postgres_gives_up_a_lock() {
    gives_up_a_lock(false);
}

#[test]
fn docker_mariadb_gives_up_a_lock() {
    gives_up_a_lock(true);
}

#[test]
fn docker_postgres_takes_back_a_file_whose_process_was_killed() {
    let mut away = Away::live(false, "on_failure = \"down\"");
    // The second file is applied; in the middle of the third, with a change made and not committed, the process dies.
    away.second(
        "ALTER TABLE entries ADD COLUMN colour text;\nSELECT pg_sleep(600);\nALTER TABLE entries ADD COLUMN x text;\n",
        "ALTER TABLE entries DROP COLUMN colour;\n",
    );
    let sleeps = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    let ended = away.killed_when(|away| away.server.run("postgres", sleeps) == "1");
    assert_eq!(ended["status"], "failed");
    assert!(told(&ended).contains("the schema went back to 1 (entries): 2 (mood) taken back"), "{ended:#}");
    assert_eq!((away.rows(), away.columns()), ("1".to_owned(), "id message".to_owned()));
    assert_eq!(away.server.run("postgres", sleeps), "0", "the server has ended the old session");
    // Mended, everything is applied once.
    away.second("ALTER TABLE entries ADD COLUMN colour text;\n", "ALTER TABLE entries DROP COLUMN colour;\n");
    away.site.deploy(0);
    assert_eq!((away.rows(), away.columns()), ("1 2 3".to_owned(), "id message mood colour".to_owned()));
}

#[test]
fn docker_postgres_ends_what_takes_too_long() {
    let away = Away::live(false, "timeout = \"3s\"");
    away.second("SELECT pg_sleep(600);\n", "SELECT 1;\n");
    let bad = away.site.deploy(3);
    assert!(told(&bad).contains("the migration did not finish within 3s"), "{bad:#}");
    assert!(told(&bad).contains("the schema went from 1 (entries) to 2 (mood)"), "{bad:#}");
    let sleeps = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    assert_eq!(away.server.run("postgres", sleeps), "0", "on the server too");
    assert_eq!(away.rows(), "1 2");
}

#[test]
fn docker_mariadb_says_where_it_stopped_and_how_to_go_on() {
    let away = Away::live(true, "on_failure = \"down\"");
    away.second(
        "ALTER TABLE entries ADD COLUMN colour VARCHAR(9);\nALTER TABLE absent ADD COLUMN x INT;\n",
        "ALTER TABLE entries DROP COLUMN colour;\n",
    );
    let bad = away.site.deploy(3);
    let text = told(&bad);
    assert!(text.contains("db/3_third.up.sql: Table 'app.absent' doesn't exist; 3 (third) stopped half way"), "{bad:#}");
    assert!(text.contains("the schema was not rolled back: 3 (third) stopped half way: the database is dirty"), "{bad:#}");
    away.site.expect_page("one");
    // Nothing goes on over it.
    away.site.refit(&["rerun"]).expect(3);
    assert!(told(&away.site.newest()).contains("the database is dirty"));
    let status = away.site.refit(&["migrate", "status"]).expect(0).stdout;
    assert!(status.contains("dirty") && status.contains("nothing can be applied"), "{status}");
    // The way out that was told.
    away.server.run("app", "ALTER TABLE entries DROP COLUMN colour; DELETE FROM _sqlx_migrations WHERE version = 3");
    away.second("ALTER TABLE entries ADD COLUMN colour VARCHAR(9);\n", "ALTER TABLE entries DROP COLUMN colour;\n");
    away.site.deploy(0);
    assert_eq!((away.rows(), away.columns()), ("1 2 3".to_owned(), "id message mood colour".to_owned()));
}

#[test]
fn docker_mariadb_is_dirty_after_a_kill_and_says_so() {
    let mut away = Away::live(true, "");
    away.second("ALTER TABLE entries ADD COLUMN colour VARCHAR(9);\nSELECT SLEEP(5);\n", "SELECT 1;\n");
    let sleeps = "SELECT count(*) FROM information_schema.processlist WHERE info LIKE '%SLEEP(5)%' AND info NOT LIKE '%processlist%'";
    let ended = away.killed_when(|away| away.server.run("mysql", sleeps) == "1");
    // The server went on without us; the lock told when it was over, and then the table was believed.
    let rows = away.server.run("app", "SELECT version, success FROM _sqlx_migrations ORDER BY version");
    let dirty = rows.lines().any(|row| row.ends_with('0'));
    assert!(!dirty || told(&ended).contains("the database is dirty"), "{rows}: {ended:#}");
    assert!(dirty || told(&ended).contains("it stays at 3 (third)"), "{rows}: {ended:#}");
    assert!(poll(|| (away.server.run("mysql", sleeps) == "0").then_some(())).is_some());
}

#[test]
fn docker_a_database_that_is_away_is_told_as_such() {
    let away = Away::live(false, "");
    away.second("SELECT 1;\n", "SELECT 1;\n");
    crate::support::docker(&["stop", "--time", "1", &away.server.name]);
    let bad = away.site.deploy(69);
    assert_eq!(bad["failed_stage"], "migrate");
    assert!(told(&bad).contains("cannot be reached"), "{bad:#}");
    assert!(!told(&bad).contains("pass"), "{bad:#}");
    away.site.expect_page("one");
    // Status does not hang with it.
    away.site.refit(&["status"]).expect(0);
    away.site.refit(&["migrate", "status"]).expect(69);
}
