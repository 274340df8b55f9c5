//! Migrations in SQL files through `refit deploy`, with each `on_failure`, and killed before, in and after each file.
//!
//! The app here reads its database as it starts and serves what it finds, so that a page tells of the schema; the database is SQLite beside the
//! site (it needs no server, so a whole pass over the points is quick). `servers` has the same against PostgreSQL and
//! MariaDB, and `tool` has a command in the place of files.

use std::{path::PathBuf, process::Command};

use serde_json::Value;

use crate::support::{Site, poll};

mod servers;
mod tool;

/// Serves `www`, after it has written what its table has into the page; a version may ask for a column.
const APP: &str = r#"
import os, sqlite3, sys, http.server, functools
db = sqlite3.connect(os.environ["APP_DB"])
needs = open("needs").read().strip()
if needs:
    db.execute(f"SELECT {needs} FROM notes")
db.execute("INSERT INTO notes (text) VALUES ('written by the app')")
db.commit()
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory="www")
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), handler).serve_forever()
"#;

struct Shop {
    site: Site,
}

impl Shop {
    /// Version one is live, with migrations 1 and 2.
    fn live(migrate: &str) -> Self {
        let shop = Self::new(migrate);
        shop.site.push("first");
        shop.site.deploy(0);
        shop.site.expect_page("one");
        assert_eq!(shop.rows(), "1 2");
        shop
    }

    fn new(migrate: &str) -> Self {
        let site = Site::process();
        let db = site.path().join("app.db");
        let site = site.with(&format!(
            "[[backup]]\nkind = \"sqlite\"\nname = \"shop\"\npath = \"app.db\"\n[migrate]\nfiles = \"migrations\"\n{migrate}\n"
        ));
        site.edit_config("[start]\n", &format!("[start]\nenv = {{ APP_DB = \"{}\" }}\n", db.display()));
        site.write("run.sh", "exec python3 app.py\n");
        site.write("app.py", APP);
        site.write("needs", "");
        let shop = Self { site };
        shop.migration(1, "notes", "CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT);\n", "DROP TABLE notes;\n");
        shop.migration(
            2,
            "seed",
            "INSERT INTO notes (text) VALUES ('seed');\n",
            "DELETE FROM notes WHERE text = 'seed';\n",
        );
        shop
    }

    fn migration(&self, version: i64, name: &str, up: &str, down: &str) {
        self.site.write(&format!("migrations/{version}_{name}.up.sql"), up);
        self.site.write(&format!("migrations/{version}_{name}.down.sql"), down);
    }

    /// Two good ones, each of which would fail if it ran twice.
    fn two_more(&self) {
        self.migration(3, "mood", "ALTER TABLE notes ADD COLUMN mood TEXT;\n", "ALTER TABLE notes DROP COLUMN mood;\n");
        self.migration(
            4,
            "colour",
            "ALTER TABLE notes ADD COLUMN colour TEXT;\n",
            "ALTER TABLE notes DROP COLUMN colour;\n",
        );
    }

    /// A third that fails in its second statement.
    fn and_a_broken_one(&self) {
        let broken = "CREATE TABLE half (x);\nALTER TABLE absent ADD COLUMN x;\n";
        self.migration(5, "broken", broken, "DROP TABLE half;\n");
    }

    fn db(&self) -> PathBuf {
        self.site.path().join("app.db")
    }

    fn sql(&self, sql: &str) -> String {
        let script = "import sqlite3, sys\nc = sqlite3.connect(sys.argv[1], timeout=20, isolation_level=None)\n\
                      print(*['|'.join(map(str, r)) for r in c.execute(sys.argv[2])])";
        let out = Command::new("python3").args(["-c", script]).arg(self.db()).arg(sql).output().unwrap();
        assert!(out.status.success(), "{sql}: {out:?}");
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    /// What the table of migrations has.
    fn rows(&self) -> String {
        self.sql("SELECT version FROM _sqlx_migrations ORDER BY version")
    }

    fn columns(&self) -> String {
        self.sql("SELECT name FROM pragma_table_info('notes')")
    }

    /// Table and schema tell the same, however it came to it.
    #[track_caller]
    fn expect_schema(&self, rows: &str) {
        assert_eq!(self.rows(), rows);
        let mut columns = "id text".to_owned();
        for (version, column) in [("3", " mood"), ("4", " colour")] {
            if rows.contains(version) {
                columns.push_str(column);
            }
        }
        assert_eq!(self.columns(), columns);
        assert_eq!(self.sql("SELECT count(*) FROM sqlite_master WHERE name = 'half'"), "0");
    }

    fn sets(&self) -> usize {
        let dir = self.site.path().join("backups").join(&self.site.app).join("production");
        std::fs::read_dir(dir).map_or(0, Iterator::count)
    }
}

fn stage<'a>(deployment: &'a Value, name: &str) -> &'a Value {
    deployment["stages"].as_array().unwrap().iter().find(|stage| stage["name"] == name).unwrap()
}

/// What the report says was undone, or was not.
fn undone(deployment: &Value) -> String {
    deployment["undone"].to_string()
}

#[test]
fn versions_are_recorded_and_nothing_pending_costs_nothing() {
    let shop = Shop::live("max_backup_age = \"1ms\"");
    let first = shop.site.newest();
    let output = &stage(&first, "migrate")["output"];
    assert_eq!((&output["before"], &output["after"]), (&"none".into(), &"2 (seed)".into()), "{output:#}");
    assert_eq!(output["applied"], serde_json::json!(["1 (notes)", "2 (seed)"]));
    let log = shop.site.log_of(&first);
    assert!(log.contains("pending: 1 (notes), 2 (seed)") && log.contains("applied 2 (seed) in "), "{log}");
    // Nothing pending: one backup, the backup stage's own, however old it is.
    let sets = shop.sets();
    shop.site.version("two");
    shop.site.push("second");
    let second = shop.site.deploy(0);
    assert_eq!(shop.sets(), sets + 1);
    let output = &stage(&second, "migrate")["output"];
    assert_eq!((&output["before"], &output["after"]), (&"2 (seed)".into(), &"2 (seed)".into()), "{output:#}");
    assert!(shop.site.log_of(&second).contains("no migration is pending: the schema is at 2 (seed)"));
    // Something pending: it was too old, and is taken again.
    shop.two_more();
    shop.site.push("third");
    let third = shop.site.deploy(0);
    assert_eq!(shop.sets(), sets + 3);
    assert_eq!(third["backup"], stage(&third, "migrate")["output"]["backup"], "{third:#}");
    shop.expect_schema("1 2 3 4");
    assert!(shop.site.refit(&["status"]).expect(0).stdout.contains("schema 4 (colour)"));
}

#[test]
fn what_is_wrong_is_found_before_anything_is_applied() {
    let shop = Shop::live("");
    shop.two_more();
    let refused = |name: &str, text: &str, words: &str| {
        let path = shop.site.work().join("migrations").join(name);
        let before = std::fs::read_to_string(&path).ok();
        shop.site.write(&format!("migrations/{name}"), text);
        shop.site.push(words);
        let bad = shop.site.deploy(3);
        let error = bad["error"].as_str().unwrap();
        assert!(error.contains(words), "{error}");
        assert_eq!((&bad["failed_stage"], undone(&bad)), (&"migrate".into(), "[]".to_owned()), "{bad:#}");
        shop.expect_schema("1 2");
        shop.site.expect_page("one");
        before.map_or_else(|| std::fs::remove_file(&path), |before| std::fs::write(&path, before)).unwrap();
    };
    refused("2_seed.up.sql", "SELECT 1;\n", "migrations/2_seed.up.sql was edited after it was applied");
    refused("4_again.up.sql", "SELECT 1;\n", "migrations/4_colour.up.sql: has the number 4");
    refused("extra.sql", "SELECT 1;\n", "migrations/extra.sql: has no `_` after its number");
    refused(
        "6_lonely.down.sql",
        "SELECT 1;\n",
        "migrations/6_lonely.down.sql: takes back a migration that is not here",
    );
    // By hand beside us, with a number above: ours comes too late.
    shop.sql("INSERT INTO _sqlx_migrations VALUES (9, 'by hand', CURRENT_TIMESTAMP, 1, x'00', 1)");
    shop.site.push("by hand");
    let bad = shop.site.deploy(3);
    let error = bad["error"].as_str().unwrap();
    assert!(
        error.contains("the database has migration 9 (by hand)") && error.contains("refit migrate down --to 2"),
        "{error}"
    );
    shop.sql("DELETE FROM _sqlx_migrations WHERE version = 9");
    shop.site.refit(&["rerun"]).expect(0);
    shop.expect_schema("1 2 3 4");
}

#[test]
fn a_migration_applied_by_hand_without_its_row_is_told_and_mended() {
    let shop = Shop::live("");
    shop.two_more();
    shop.sql("ALTER TABLE notes ADD COLUMN mood TEXT");
    shop.site.push("second");
    let bad = shop.site.deploy(3);
    let error = bad["error"].as_str().unwrap();
    assert!(
        error.contains("migrations/3_mood.up.sql: duplicate column name: mood; its transaction was undone"),
        "{error}"
    );
    assert!(error.ends_with("the schema is still at 2 (seed)"), "{error}");
    shop.sql("ALTER TABLE notes DROP COLUMN mood");
    shop.site.refit(&["rerun"]).expect(0);
    shop.expect_schema("1 2 3 4");
}

#[test]
fn keep_leaves_what_was_applied_and_says_so() {
    let shop = Shop::live("on_failure = \"keep\"");
    shop.two_more();
    shop.and_a_broken_one();
    shop.site.version("two");
    shop.site.push("broken");
    let bad = shop.site.deploy(3);
    let error = bad["error"].as_str().unwrap();
    assert!(error.contains("migrations/5_broken.up.sql: no such table: absent; its transaction was undone"), "{error}");
    assert!(error.ends_with("the schema went from 2 (seed) to 4 (colour)"), "{error}");
    assert!(
        undone(&bad).contains("it stays at 4 (colour) (it was 2 (seed)); `refit migrate down --to 2` takes it back"),
        "{bad:#}"
    );
    shop.expect_schema("1 2 3 4");
    shop.site.expect_page("one");
    // Mended, it goes on from there.
    shop.migration(5, "broken", "CREATE TABLE whole (x);\n", "DROP TABLE whole;\n");
    shop.site.push("mended");
    shop.site.deploy(0);
    assert_eq!(shop.rows(), "1 2 3 4 5");
    // And a version that fails later leaves it too.
    shop.migration(6, "more", "CREATE TABLE more (x);\n", "DROP TABLE more;\n");
    shop.site.write("needs", "nothing_of_the_kind");
    shop.site.push("never healthy");
    let bad = shop.site.deploy(3);
    assert!(undone(&bad).contains("it stays at 6 (more) (it was 5 (broken))"), "{bad:#}");
    shop.site.expect_page("two");
    let status = shop.site.refit(&["status"]).expect(0).stdout;
    assert!(status.contains("the schema is newer than what is live") && status.contains("6 (more)"), "{status}");
}

#[test]
fn down_takes_back_what_this_deployment_applied_and_nothing_else() {
    let shop = Shop::live("on_failure = \"down\"");
    shop.two_more();
    shop.and_a_broken_one();
    shop.site.push("broken");
    let bad = shop.site.deploy(3);
    assert!(undone(&bad).contains("the schema went back to 2 (seed): 4 (colour), 3 (mood) taken back"), "{bad:#}");
    shop.expect_schema("1 2");
    assert_eq!(shop.sql("SELECT text FROM notes LIMIT 1"), "seed", "the earlier ones were not this deployment's");
    // Later, in start: the old version is live again, and then the schema goes back.
    shop.migration(5, "broken", "CREATE TABLE whole (x);\n", "DROP TABLE whole;\n");
    shop.site.write("needs", "nothing_of_the_kind");
    shop.site.push("never healthy");
    let bad = shop.site.deploy(3);
    assert_eq!(bad["status"], "rolled_back");
    assert!(undone(&bad).contains("5 (broken), 4 (colour), 3 (mood) taken back"), "{bad:#}");
    shop.expect_schema("1 2");
    shop.site.expect_page("one");
    // A way back that is missing ends it before anything is applied.
    std::fs::remove_file(shop.site.work().join("migrations/4_colour.down.sql")).unwrap();
    shop.site.write("needs", "mood");
    shop.site.push("no way back");
    let bad = shop.site.deploy(3);
    assert!(bad["error"].as_str().unwrap().contains("migrations/4_colour.up.sql cannot be taken back"), "{bad:#}");
    shop.expect_schema("1 2");
}

#[test]
fn a_way_back_that_fails_needs_a_person() {
    let shop = Shop::live("on_failure = \"down\"");
    shop.two_more();
    shop.migration(3, "mood", "ALTER TABLE notes ADD COLUMN mood TEXT;\n", "DROP TABLE absent;\n");
    shop.and_a_broken_one();
    shop.site.push("broken");
    let bad = shop.site.deploy(5);
    assert_eq!(bad["status"], "stuck");
    let error = bad["error"].as_str().unwrap();
    assert!(
        error.contains("3 (mood) was not taken back: migrations/3_mood.down.sql: no such table: absent"),
        "{error}"
    );
    assert!(error.contains("the schema is at 3 (mood) (it was 2 (seed))"), "{error}");
    shop.expect_schema("1 2 3");
    shop.site.expect_page("one");
}

#[test]
fn restore_puts_back_what_was_there_when_the_app_was_stopped() {
    let shop = Shop::live("on_failure = \"restore\"\nhold = true\nmax_backup_age = \"1h\"");
    shop.two_more();
    // It does something that no file takes back, and then fails.
    shop.site
        .write("migrations/5_wreck.sql", "-- no-transaction\nDELETE FROM notes;\nALTER TABLE absent ADD COLUMN x;\n");
    shop.sql("INSERT INTO notes (text) VALUES ('accepted after the first backup')");
    let notes = shop.sql("SELECT text FROM notes");
    shop.site.push("wrecks");
    let bad = shop.site.deploy(3);
    assert_eq!(bad["status"], "failed");
    assert!(undone(&bad).contains("the data is as it was before the migration"), "{bad:#}");
    shop.expect_schema("1 2");
    // The old version was started again, and says so in the table.
    assert_eq!(shop.sql("SELECT text FROM notes"), format!("{notes} written by the app"));
    shop.site.expect_page("one");
    // In start it is too late for that: what the new version accepted would be lost.
    std::fs::remove_file(shop.site.work().join("migrations/5_wreck.sql")).unwrap();
    shop.site.write("needs", "nothing_of_the_kind");
    shop.site.push("never healthy");
    let bad = shop.site.deploy(3);
    let told = undone(&bad);
    assert!(told.contains("the new version has run since") && told.contains("it stays at 4 (colour)"), "{bad:#}");
    shop.expect_schema("1 2 3 4");
    shop.site.expect_page("one");
}

#[test]
fn what_is_held_is_stopped_only_for_a_migration_and_comes_back() {
    let mut shop = Shop::live("hold = true");
    shop.site.version("two");
    shop.site.push("second");
    assert!(!shop.site.log_of(&shop.site.deploy(0)).contains("while the schema changes"));
    shop.two_more();
    shop.and_a_broken_one();
    shop.site.push("third");
    // While the migration is about to begin nobody answers; afterwards the old version does again.
    let pause = shop.site.path().join("pause");
    shop.site.set_env("REFIT_FAULT", &format!("migrate:3:intent=pause:{}", pause.display()));
    let mut deploy = shop.site.refit_command(&["deploy"]).spawn().unwrap();
    poll(|| pause.exists().then_some(())).expect("the migration begins");
    assert_eq!(shop.site.page(), None, "it is stopped");
    shop.rows();
    std::fs::remove_file(&pause).unwrap();
    assert_eq!(deploy.wait().unwrap().code(), Some(3));
    shop.site.set_env("REFIT_FAULT", "");
    shop.site.expect_page("two");
    let bad = shop.site.newest();
    assert!(undone(&bad).contains("is live again, healthy after"), "{bad:#}");
    shop.expect_schema("1 2 3 4");
}

/// At every point of a migration and of its way back the process dies, and another one recovers.
fn killed_anywhere(way: &str, always: Option<&str>) {
    let forward = ["migrate:prepared", "migrate:3:intent", "migrate:3:effect", "migrate:4:intent", "migrate:4:effect"];
    let around = ["step:migrate:intent", "step:migrate:effect", "step:migrate:record", "undo:migrate:intent"];
    let back = ["migrate:4:back", "migrate:4:gone", "migrate:3:back", "migrate:3:gone", "undo:migrate:effect"];
    let mut shop = Shop::live(way);
    shop.two_more();
    for point in forward.iter().chain(&around).chain(back.iter().filter(|_| way.contains("down"))) {
        let what = format!("{way}, killed at {point}");
        // Something fails later, where the way back is to be killed.
        let fails = back.contains(point) || point.starts_with("undo");
        shop.site.write("needs", if fails { "nothing_of_the_kind" } else { "" });
        shop.site.version(point);
        let commit = shop.site.push(point);
        shop.site.set_env("REFIT_FAULT", &format!("{point}=kill"));
        assert_eq!(shop.site.refit(&["deploy"]).code, -1, "{what}: it was to die");
        shop.site.set_env("REFIT_FAULT", "");
        // The next one recovers.
        shop.site.serve();
        let ended = shop.site.settled();
        assert_eq!(shop.site.stop_daemon(), 0);
        assert_eq!(ended["commit"], commit.as_str(), "{what}");
        assert!(matches!(ended["status"].as_str(), Some("failed" | "rolled_back")), "{what}: {ended:#}");
        let now = shop.rows();
        shop.expect_schema(&now);
        assert!(always.is_none_or(|always| now == always), "{what}: {now}: {ended:#}");
        assert_eq!(shop.site.page().as_deref().map(str::trim), Some("version one"), "{what}: {ended:#}");
        // From the beginning again, by hand.
        if now != "1 2" {
            shop.site.refit(&["migrate", "down", "--to", "2", "--yes", "--no-backup"]).expect(0);
            shop.expect_schema("1 2");
        }
    }
    // And without a kill it goes through.
    shop.site.write("needs", "colour");
    shop.site.version("last");
    shop.site.push("last");
    shop.site.deploy(0);
    shop.expect_schema("1 2 3 4");
    shop.site.expect_page("last");
}

#[test]
fn killed_anywhere_the_schema_is_kept_and_known() {
    killed_anywhere("on_failure = \"keep\"", None);
}

#[test]
fn killed_anywhere_the_schema_goes_back() {
    killed_anywhere("on_failure = \"down\"", Some("1 2"));
}

#[test]
fn killed_anywhere_the_data_is_put_back_or_known() {
    killed_anywhere("on_failure = \"restore\"\nhold = true", None);
}

#[test]
fn by_hand_the_same_files_do_the_same() {
    let mut shop = Shop::new("on_failure = \"keep\"");
    let hand = |args: &[&str], code: i32| shop_hand(&shop.site, args, code);
    shop.site.push("first");
    // Nothing was deployed yet, and there is no database.
    let status = hand(&["status"], 0);
    assert!(status.contains("2 pending migrations") && status.contains("at none"), "{status}");
    assert!(!shop.db().exists());
    shop.site.deploy(0);
    shop.two_more();
    shop.site.push("second");
    let up = hand(&["up", "--to", "3"], 0);
    assert!(
        up.contains("1 migration applied: the schema went from 2 (seed) to 3 (mood); the data before is in backup"),
        "{up}"
    );
    shop.expect_schema("1 2 3");
    let rows = shop.site.refit(&["migrate", "status", "--format", "json"]).expect(0).json();
    let states: Vec<_> = rows["migrations"].as_array().unwrap().iter().map(|row| row["state"].clone()).collect();
    assert_eq!(states, ["applied", "applied", "applied", "pending"], "{rows:#}");
    assert_eq!((&rows["version"], &rows["problem"]), (&"3 (mood)".into(), &Value::Null));
    hand(&["up"], 0);
    assert!(hand(&["up"], 0).starts_with("nothing to do: the schema is at 4 (colour)"));
    // Taking back asks, and nobody can answer here.
    hand(&["down"], 64);
    shop.expect_schema("1 2 3 4");
    assert!(hand(&["redo", "--to", "2", "--yes"], 0).contains("2 migrations taken back, 2 migrations applied"));
    shop.expect_schema("1 2 3 4");
    // What is live does not know them yet: status says so, and a rollback would too.
    let status = shop.site.refit(&["status"]).expect(0).stdout;
    assert!(status.contains("the schema is newer than what is live"), "{status}");
    shop.site.deploy(0);
    assert!(!shop.site.refit(&["status"]).expect(0).stdout.contains("newer than what is live"));
    let refused = shop.site.refit(&["rollback", "--reason", "a test", "--force"]);
    assert_eq!(refused.code, 0, "{refused:?}");
    let back = shop.site.newest();
    let report = shop.site.refit(&["report", &back["id"].to_string()]).expect(0).stdout;
    assert!(
        report.contains("the schema is newer than deployment 1, which does not know 3 (mood), 4 (colour)")
            && report.contains("refit migrate down"),
        "{report}"
    );
    hand(&["down", "--to", "2", "--yes"], 0);
    shop.expect_schema("1 2");
    // The other way round: a release that needs what is not there any more.
    let preview = shop.site.refit(&["rollback", "--undo", "--preview", "--format", "json"]).expect(0).json();
    let checks = preview["checks"].as_array().unwrap();
    let schema = checks.iter().find(|check| check["name"] == "schema").unwrap();
    assert_eq!(schema["severity"], "error", "{preview:#}");
    assert!(
        schema["message"].as_str().unwrap().contains("needs 3 (mood), 4 (colour), which the database does not have")
    );
    // Not beside a daemon.
    shop.site.serve();
    let busy = shop.site.refit(&["migrate", "up"]);
    assert_eq!(busy.code, 75, "{busy:?}");
    assert!(busy.stderr.contains("systemctl stop refit"), "{busy:?}");
    shop.site.refit(&["migrate", "status"]).expect(0);
    assert_eq!(shop.site.stop_daemon(), 0);
}

fn shop_hand(site: &Site, args: &[&str], code: i32) -> String {
    site.refit(&[&["migrate"], args].concat()).expect(code).stdout
}

/// The user's own tool: its schema is a file with a number.
#[test]
fn a_command_goes_back_to_the_version_before_and_does_nothing_where_nothing_is_pending() {
    let site = Site::process();
    let schema = site.path().join("schema");
    let site = site.with(
        "[[backup]]\nkind = \"sqlite\"\npath = \"app.db\"\n[migrate]\nrun = \"sh migrate.sh\"\nversion = \"cat $SCHEMA || echo none\"\n\
         status = \"sh status.sh\"\ndown = \"echo $REFIT_SCHEMA_BEFORE >$SCHEMA\"\non_failure = \"down\"\nmax_backup_age = \"1ms\"",
    );
    site.edit_config("[start]\n", &format!("[start]\nenv = {{ SCHEMA = \"{}\" }}\n", schema.display()));
    let make = ["-c", "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('CREATE TABLE a (x)')"];
    assert!(Command::new("python3").args(make).arg(site.path().join("app.db")).status().unwrap().success());
    site.write("status.sh", "[ \"$(cat $SCHEMA)\" = \"$(cat wanted)\" ] || echo \"to $(cat wanted)\"\n");
    site.write("migrate.sh", "cat wanted >$SCHEMA\n");
    let wanted = |version: &str| site.write("wanted", &format!("{version}\n"));
    let at = || std::fs::read_to_string(&schema).unwrap().trim().to_owned();
    wanted("1");
    site.push("first");
    let first = site.deploy(0);
    assert!(site.log_of(&first).contains("pending: to 1"));
    // Nothing pending: it is not run, and no backup is taken for it.
    site.write("migrate.sh", "exit 1\n");
    site.push("second");
    let second = site.deploy(0);
    assert!(site.log_of(&second).contains("no migration is pending: the schema is at 1"));
    assert_eq!(stage(&second, "migrate")["output"]["backup"], Value::Null);
    // It fails half way.
    wanted("2");
    site.write("migrate.sh", "cat wanted >$SCHEMA; exit 1\n");
    site.push("third");
    let third = site.deploy(3);
    assert!(third["error"].as_str().unwrap().contains("the schema went from 1 to 2"), "{third:#}");
    assert!(undone(&third).contains("the schema went back from 2 to 1"), "{third:#}");
    assert_eq!(at(), "1");
    // It goes through, and the version fails later.
    site.write("migrate.sh", "cat wanted >$SCHEMA\n");
    site.write("www/health", "sick");
    site.push("fourth");
    let fourth = site.deploy(4);
    assert!(undone(&fourth).contains("the schema went back from 2 to 1"), "{fourth:#}");
    assert_eq!(at(), "1");
    site.expect_page("one");
    // A way back that does not lead there is told.
    site.edit_config("echo $REFIT_SCHEMA_BEFORE >$SCHEMA", "true");
    site.push("fifth");
    let fifth = site.deploy(5);
    assert!(
        fifth["error"].as_str().unwrap().contains("`migrate.down` ended well, and the schema is at 2, not at 1"),
        "{fifth:#}"
    );
}
