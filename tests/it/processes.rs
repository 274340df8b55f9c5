//! The process runtime through the whole pipeline: what needs no Docker at all.

use std::process::Command;

use crate::support::{Site, poll};

#[test]
fn a_release_is_built_started_and_replaced() {
    let site = Site::process().with("[build]\nrun = \"date > built\"\n[[test]]\nname = \"unit\"\nrun = \"sh test.sh\"");
    site.push("first");
    let first = site.deploy(0);
    site.expect_page("one");
    assert!(site.log_of(&first).contains("tests ran"));
    site.version("two");
    site.push("second");
    let second = site.deploy(0);
    site.expect_page("two");
    assert_ne!(first["image"], second["image"]);
}

#[test]
fn failures_end_as_with_docker() {
    let site = Site::process().with("[[test]]\nname = \"unit\"\nrun = \"sh test.sh\"\n[build]\nrun = \"sh build.sh\"");
    site.write("build.sh", "true\n");
    site.push("good");
    site.deploy(0);
    for (file, script, code) in
        [("test.sh", "exit 1\n", 1), ("build.sh", "exit 1\n", 2), ("run.sh", "exit 1\n", 3), ("www/health", "sick", 4)]
    {
        let before = std::fs::read_to_string(site.work().join(file)).unwrap();
        site.write(file, script);
        site.push(&format!("bad {file}"));
        let bad = site.deploy(code);
        site.expect_page("one");
        assert_eq!(bad["exit_code"], code);
        site.write(file, &before);
    }
}

#[test]
fn the_app_survives_the_daemon() {
    let mut site = Site::process();
    let commit = site.push("first");
    site.serve();
    site.webhook("d-1", &site.push_body("main", &commit));
    assert_eq!(site.settled()["status"], "succeeded");
    site.kill_daemon();
    site.expect_page("one");
    site.serve();
    site.expect_page("one");
    assert_eq!(site.stop_daemon(), 0);
    site.expect_page("one");
}

#[test]
fn an_app_that_crashes_later_is_started_again() {
    let site = Site::process();
    let pid_file = site.path().join("pid");
    let server = "exec python3 -m http.server --bind 127.0.0.1 --directory www $PORT";
    site.write("run.sh", &format!("echo $$ >{}\n{server}\n", pid_file.display()));
    site.push("first");
    site.deploy(0);
    let pid = || std::fs::read_to_string(&pid_file).unwrap().trim().to_owned();
    let first = pid();
    assert!(Command::new("kill").arg(&first).status().unwrap().success());
    poll(|| (!["", &first].contains(&pid().as_str())).then_some(())).expect("another one is started");
    poll(|| site.page()).expect("it is back");
}

/// A check that fails because the app ended says that it ended.
#[test]
fn a_check_that_meets_no_app_says_what_became_of_it() {
    let site = Site::process();
    let pid_file = site.path().join("pid").display().to_string();
    let check = format!(
        "old=$(cat {pid_file}); kill $old; while [ \"$(cat {pid_file})\" = $old ]; do sleep 0.05; done; exit 9"
    );
    site.write("check.sh", &check);
    let site = site.with("[smoke]\nbake = \"0s\"\n[[smoke.check]]\nname = \"own\"\nexec = [\"sh\", \"check.sh\"]");
    let server = "exec python3 -m http.server --bind 127.0.0.1 --directory www $PORT";
    site.write("run.sh", &format!("echo $$ >{pid_file}\n{server}\n"));
    site.push("first");
    let bad = site.deploy(4);
    let error = bad["error"].as_str().unwrap();
    // The app's end is seen at once; the check may have been quicker, and then says both.
    let ended = error.contains("exited with code 143") || error.contains("restarted");
    assert!(error.contains(&format!("refit-{}-production-1 ", site.app)) && ended, "{error}");
}

#[test]
fn sqlite_is_backed_up_before_a_deployment() {
    let site = Site::process();
    let database = site.path().join("app.db");
    let sql = |statement: &str| {
        let done = Command::new("sqlite3").arg(&database).arg(statement).status().unwrap();
        assert!(done.success());
    };
    sql("PRAGMA journal_mode = wal; CREATE TABLE entries (text); INSERT INTO entries VALUES ('kept');");
    let site = site.with("[[backup]]\nkind = \"sqlite\"\npath = \"app.db\"\nrequired = true");
    site.push("first");
    let deployment = site.deploy(0);
    let set = site.path().join("backups").join(deployment["backup"].as_str().expect("a backup"));
    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(set.join("manifest.json")).unwrap()).unwrap();
    let file = set.join(manifest["parts"][0]["file"].as_str().unwrap());
    let restored = site.path().join("restored.db");
    let script = format!("gunzip -c '{}' > '{}'", file.display(), restored.display());
    assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
    let rows = Command::new("sqlite3").arg(&restored).arg("SELECT text FROM entries").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&rows.stdout).trim(), "kept");

    // A required backup that fails ends the deployment before anything changes.
    std::fs::remove_file(&database).unwrap();
    site.version("two");
    site.push("second");
    let failed = site.deploy(1);
    assert_eq!(failed["failed_stage"], "backup", "{failed:#}");
    site.expect_page("one");
}

#[test]
fn a_backup_that_is_not_required_is_a_warning() {
    let site = Site::process().with("[[backup]]\nkind = \"sqlite\"\npath = \"nowhere.db\"");
    site.push("first");
    let deployment = site.deploy(0);
    let backup = &deployment["stages"][1];
    assert_eq!(backup["status"], "warned", "{backup:#}");
    assert!(backup["error"].as_str().is_some_and(|e| e.contains("nowhere.db")), "{backup:#}");
}
