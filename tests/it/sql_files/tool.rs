//! Migrations by a command of the user's own with `on_failure = "restore"`: what it did goes away with the backup that is put back, and nothing that people wrote.

use super::{Shop, undone};
use crate::support::poll;

/// A tool of the user's own: each line of a file is a change that stays, whatever comes after it. It waits where it is told to.
const TOOL: &str = r#"
import os, sqlite3, time
db = sqlite3.connect(os.environ["APP_DB"], timeout=20, isolation_level=None)
for line in open("steps"):
    if line.strip() == "wait":
        while os.path.exists(os.environ["APP_DB"] + ".wait"):
            time.sleep(0.02)
    else:
        db.execute(line)
"#;

const FIRST_STEPS: &str = "CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)\nINSERT INTO notes (text) VALUES ('seed')\nPRAGMA user_version = 1\n";

/// What nothing takes back but a backup.
const WRECK: &str = "DELETE FROM notes\nALTER TABLE notes ADD COLUMN mood TEXT\nPRAGMA user_version = 2\n";

impl Shop {
    /// Version one is live; the schema is a tool's, and what it did is put back from the backup.
    fn by_tool() -> Self {
        let shop = Self::new("on_failure = \"restore\"\nhold = true");
        let tool = "run = \"python3 tool.py\"\nversion = \"python3 version.py\"";
        shop.site.edit_config("files = \"migrations\"", tool);
        shop.site.write("tool.py", TOOL);
        let version = "import os, sqlite3\nprint(sqlite3.connect(os.environ['APP_DB']).execute('PRAGMA user_version').fetchone()[0])\n";
        shop.site.write("version.py", version);
        shop.site.write("steps", FIRST_STEPS);
        shop.site.push("first");
        shop.site.deploy(0);
        shop.site.expect_page("one");
        shop
    }

    /// What people wrote: the app itself says that it was started.
    fn notes(&self) -> String {
        self.sql("SELECT text FROM notes WHERE text <> 'written by the app' ORDER BY id")
    }

    /// Old data under the old schema, and the old version on it.
    #[track_caller]
    fn is_as_before(&self, notes: &str, what: &str) {
        assert_eq!((self.notes().as_str(), self.columns().as_str()), (notes, "id text"), "{what}");
        assert_eq!(self.sql("PRAGMA user_version"), "1", "{what}");
        assert_eq!(self.site.page().as_deref().map(str::trim), Some("version one"), "{what}");
    }
}

#[test]
fn what_a_command_did_is_put_back_with_what_was_accepted_since_the_first_backup() {
    let mut shop = Shop::by_tool();
    shop.site.version("two");
    shop.site.write("steps", &format!("{WRECK}ALTER TABLE absent ADD COLUMN x\n"));
    shop.site.push("wrecks");
    // Somebody writes between the backup stage and the moment in which the app is stopped.
    let pause = shop.site.path().join("pause");
    shop.site.set_env("REFIT_FAULT", &format!("step:migrate:intent=pause:{}", pause.display()));
    let mut deploy = shop.site.refit_command(&["deploy"]).spawn().unwrap();
    poll(|| pause.exists().then_some(())).expect("migrate is about to begin");
    shop.site.expect_page("one");
    shop.sql("INSERT INTO notes (text) VALUES ('accepted late')");
    std::fs::remove_file(&pause).unwrap();
    assert_eq!(deploy.wait().unwrap().code(), Some(3));
    shop.site.set_env("REFIT_FAULT", "");
    let bad = shop.site.newest();
    assert_eq!((&bad["status"], &bad["failed_stage"]), (&"failed".into(), &"migrate".into()), "{bad:#}");
    let error = bad["error"].as_str().unwrap();
    assert!(error.contains("exit code 1") && error.contains("the schema went from 1 to 2"), "{error}");
    assert!(undone(&bad).contains("the data is as it was before the migration: backup "), "{bad:#}");
    shop.is_as_before("seed accepted late", "after the failure");
    let report = shop.site.refit(&["report", &bad["id"].to_string()]).expect(0).stdout;
    assert!(report.contains("the data is as it was before the migration"), "{report}");
    // In smoke it is too late for that: what the new version accepted would be lost.
    shop.site.write("steps", "ALTER TABLE notes ADD COLUMN mood TEXT\nPRAGMA user_version = 2\n");
    shop.site.write("www/health", "sick");
    shop.site.push("never healthy");
    let late = shop.site.deploy(4);
    assert!(undone(&late).contains("the new version has run since"), "{late:#}");
    assert_eq!((shop.notes().as_str(), shop.columns().as_str()), ("seed accepted late", "id text mood"));
    shop.site.expect_page("one");
}

/// SIGKILL around the command, in it, and on the way back; another process recovers.
#[test]
fn killed_anywhere_what_a_command_did_is_put_back() {
    let mut shop = Shop::by_tool();
    let wait = shop.db().with_extension("db.wait");
    let points = [
        "migrate:prepared",
        "step:migrate:effect",
        "step:migrate:record",
        "undo:migrate:intent",
        "undo:migrate:effect",
    ];
    for point in points.into_iter().chain(["the command"]) {
        let fails = point.starts_with("undo");
        let last = if fails { "ALTER TABLE absent ADD COLUMN x\n" } else { "" };
        shop.site.write("steps", &format!("{WRECK}wait\n{last}"));
        shop.site.version(point);
        shop.site.push(point);
        let notes = shop.notes();
        if point == "the command" {
            std::fs::write(&wait, "").unwrap();
            let mut deploy = shop.site.refit_command(&["deploy"]).spawn().unwrap();
            poll(|| (shop.sql("PRAGMA user_version") == "2").then_some(())).expect("it is in the middle");
            deploy.kill().unwrap();
            deploy.wait().unwrap();
        } else {
            shop.site.set_env("REFIT_FAULT", &format!("{point}=kill"));
            assert_eq!(shop.site.refit(&["deploy"]).code, -1, "{point}: it was to die");
            shop.site.set_env("REFIT_FAULT", "");
        }
        shop.site.serve();
        let ended = shop.site.settled();
        assert_eq!(shop.site.stop_daemon(), 0);
        assert!(matches!(ended["status"].as_str(), Some("failed" | "rolled_back")), "{point}: {ended:#}");
        shop.is_as_before(&notes, point);
        // What goes on with it is no later kill's to lose.
        shop.sql(&format!("INSERT INTO notes (text) VALUES ('after {}')", point.replace(':', " ")));
    }
    // Nothing of the killed command is left that could go on with its work.
    std::fs::remove_file(&wait).unwrap();
    assert_eq!(shop.sql("PRAGMA user_version"), "1");
    shop.site.write("steps", "ALTER TABLE notes ADD COLUMN mood TEXT\nPRAGMA user_version = 2\n");
    shop.site.write("needs", "mood");
    shop.site.version("last");
    shop.site.push("last");
    shop.site.deploy(0);
    assert_eq!((shop.notes().split("after").count(), shop.columns().as_str()), (7, "id text mood"));
    shop.site.expect_page("last");
}
