//! `refit rollback`: a release comes back, or a person is told.

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt, path::Path};

use serde_json::{Value, json};

use crate::support::{Site, docker, http, poll};

/// Deploys `versions`, one after the other; the first is deployment 1.
pub fn live(site: Site, versions: &[&str]) -> Site {
    for version in versions {
        site.version(version);
        site.push(version);
        site.deploy(0);
    }
    site.expect_page(versions.last().unwrap());
    site
}

pub fn is_live(site: &Site, id: i64) {
    let ids: Vec<Value> = site.history().iter().filter(|d| d["live"] == true).map(|d| d["id"].clone()).collect();
    assert_eq!(ids, [json!(id)]);
}

fn checks(value: &Value, severity: &str) -> Vec<String> {
    let all = value["checks"].as_array().expect("checks");
    let wanted = all.iter().filter(|c| c["severity"] == severity);
    wanted.map(|c| format!("{}: {}", c["name"].as_str().unwrap(), c["message"].as_str().unwrap())).collect()
}

#[test]
fn faults_really_kill_and_the_deployment_is_undone() {
    let site = Site::process();
    site.push("good");
    site.deploy(0);
    let site = site.env("REFIT_FAULT", "step:start:effect=kill");
    site.version("two");
    site.push("killed");
    assert_eq!(site.refit(&["deploy"]).code, -1);
    let site = site.env("REFIT_FAULT", "");
    site.version("three");
    site.push("next");
    site.deploy(0);
    site.expect_page("three");
    assert_eq!(site.history()[1]["status"], "rolled_back");
}

#[test]
fn the_release_before_comes_back_and_forward_again() {
    let site = live(Site::process(), &["one", "two"]);
    // Nobody leaves a healthy version by accident.
    let refused = site.refit(&["rollback", "--reason", "a slip"]).expect(1);
    assert!(refused.stderr.contains("the live version is healthy"), "{}", refused.stderr);
    assert!(refused.stderr.contains("nothing was changed") && refused.stderr.contains("--force"), "{}", refused.stderr);
    let refused = site.refit(&["rollback", "--reason", "a slip", "--format", "json"]).expect(1).json();
    assert_eq!(checks(&refused, "error"), ["live: the live version is healthy (deployment 2)"]);
    assert_eq!(site.history().len(), 2, "nothing was queued");
    site.expect_page("two");
    let nameless = site.refit(&["rollback", "--force"]).expect(64);
    assert!(nameless.stderr.contains("--reason"), "{}", nameless.stderr);

    let ran = site.refit(&["rollback", "--reason", "orders fail", "--force"]).expect(0);
    site.expect_page("one");
    is_live(&site, 1);
    assert!(ran.stdout.contains("was rolled back to deployment 1"), "{}", ran.stdout);
    assert!(ran.stderr.contains("CHECK") && ran.stderr.contains("image"), "the checks are shown: {}", ran.stderr);
    let view = site.show(3);
    assert_eq!((&view["status"], &view["exit_code"], &view["live"]), (&json!("succeeded"), &json!(0), &json!(false)));
    assert_eq!((&view["previous"], &view["commit"]), (&json!(2), &site.show(1)["commit"]));
    assert_eq!((&view["subject"], &view["trigger"]["kind"]), (&json!("one"), &json!("rollback")));
    let told = &view["rollback"];
    assert_eq!((&told["kind"], &told["to"], &told["reason"]), (&json!("previous"), &json!(1), &json!("orders fail")));
    for stage in ["pull", "test", "build", "migrate"] {
        let found = view["stages"].as_array().unwrap().iter().find(|s| s["name"] == stage).unwrap();
        assert_eq!(found["status"], "skipped", "{stage}");
    }
    let report = site.refit(&["report", "3"]).expect(0).stdout;
    assert!(report.contains("deployment 2 → deployment 1") && report.contains("Orders fail"), "{report}");

    site.refit(&["rollback", "--undo", "--reason", "it was the database"]).expect(0);
    site.expect_page("two");
    is_live(&site, 2);
    assert_eq!(site.newest()["rollback"]["kind"], "undo");
    // And a deployment goes on as ever.
    let site = live(site, &["three"]);
    let undone = site.refit(&["rollback", "--undo", "--reason", "again"]).expect(64);
    assert!(undone.stderr.contains("deployment 5 took its place since"), "{}", undone.stderr);
}

#[test]
fn a_release_is_named_by_its_id_its_commit_or_its_version() {
    let site = live(Site::process(), &["one", "two", "three"]);
    let commit = |id: i64| site.show(id)["commit"].as_str().unwrap().to_owned();
    let (one, two) = (commit(1), commit(2));
    let back = |args: &[&str]| site.refit(&[&["rollback", "--reason", "why", "--force"], args].concat());
    back(&["--to", "1"]).expect(0);
    site.expect_page("one");
    back(&["--commit", &two[..8]]).expect(0);
    site.expect_page("two");
    back(&["--commit", &one.to_uppercase()]).expect(0);
    site.expect_page("one");
    let release = site.show(2)["image"].as_str().unwrap().to_owned();
    back(&["--version", &release]).expect(0);
    site.expect_page("two");
    assert_eq!(site.newest()["rollback"]["kind"], "specific");

    site.write("run.sh", "exit 1\n");
    site.push("broken");
    site.deploy(3);
    let failed = site.newest()["id"].as_i64().unwrap();
    for (args, why) in [
        (["--commit", &two], "is what is live"),
        (["--to", "77"], "has no deployment 77"),
        (["--to", &failed.to_string()], "was never live"),
        (["--commit", "0000"], "has no commit 0000"),
        (["--commit", "-abc"], "is no commit"),
        (["--commit", "--upload-pack=touch owned"], "is no commit"),
        (["--commit", "main"], "is no commit"),
        (["--version", "v9"], "has no version `v9`"),
    ] {
        let error = back(&args).expect(64).stderr;
        assert!(error.contains(why), "{args:?}: {error}");
        let lists = error.contains(&format!("1  {}", &one[..10]));
        assert!(lists || why == "is no commit", "what there is: {error}");
    }
    site.expect_page("two");
    back(&["--service", "worker"]).expect(64);
    let needless = back(&["--to", "2"]).expect(1).stderr;
    assert!(needless.contains("is live and healthy: there is nothing to bring back"), "{needless}");
}

#[test]
fn the_preview_tells_names_and_changes_nothing() {
    let tables =
        "[start.env]\nGREETING = \"hello-then\"\nSAME = \"same\"\n[start.secrets]\nTOKEN = { env = \"TOKEN\" }\n";
    let site = live(Site::process().env("TOKEN", "hush-hush-then").with(tables), &["one"]);
    let mut site = site.env("TOKEN", "hush-hush-now");
    site.edit_config("GREETING = \"hello-then\"", "GREETING = \"hello-now\"\nNEW = \"brand-new\"");
    site.edit_config("path = \"/health\"", "path = \"/\"");
    site.version("two");
    site.push("Greet <b>twice</b> \u{1b}[31m");
    site.deploy(0);
    let before = fs::read(site.path().join(".refit/refit.db")).unwrap();
    let table = site.refit(&["rollback", "--preview"]).expect(0);
    let preview = site.refit(&["rollback", "--preview", "--format", "json"]).expect(0);
    assert_eq!(fs::read(site.path().join(".refit/refit.db")).unwrap(), before, "it only reads");
    assert_eq!(site.history().len(), 2);
    site.expect_page("two");
    let json = preview.json();
    let changed = |change: &str, name: &str| json!({ "change": change, "name": name });
    let expected = [changed("changed", "GREETING"), changed("removed", "NEW"), changed("changed", "TOKEN")];
    assert_eq!(json["environment"], json!(expected));
    assert_eq!(json["settings"], json!(["start.health"]));
    assert_eq!((&json["from"]["deployment"], &json["to"]["deployment"]), (&json!(2), &json!(1)));
    assert_eq!((&json["instant"], &json["data"], &json["migrations"]), (&json!(true), &Value::Null, &json!([])));
    assert_eq!(json["commits"]["left_count"], 1);
    assert_eq!(checks(&json, "error"), ["live: the live version is healthy (deployment 2)"]);
    for text in [&table.stdout, &preview.stdout] {
        for hidden in ["hush-hush", "hello-then", "hello-now", "brand-new", "\u{1b}"] {
            assert!(!text.contains(hidden), "{hidden}: {text}");
        }
    }
    assert!(table.stdout.contains("TOKEN has another value, ") || table.stdout.contains("TOKEN has another value"));
    // Beside a daemon, too.
    site.serve();
    site.refit(&["rollback", "--preview", "--to", "1"]).expect(0);
    site.refit(&["rollback", "--preview", "--to", "9"]).expect(64);
}

#[test]
fn docker_a_container_that_stands_is_started_again() {
    let site = live(Site::docker(), &["one", "two"]);
    let name = format!("refit-{}-production-1", site.app);
    let id = |name: &str| docker(&["inspect", "--format", "{{.Id}} {{.Image}}", name]).trim().to_owned();
    let then = id(&name);
    let images = || {
        let listed = docker(&["images", "-q", "--filter", &format!("label=refit.app={}", site.app)]);
        listed.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>()
    };
    let built = images();
    site.refit(&["rollback", "--reason", "why", "--force"]).expect(0);
    site.expect_page("one");
    assert_eq!(id(&name), then, "the same container of the same image");
    assert_eq!(images(), built, "none built");
    assert_eq!(site.containers(true), [name]);
    let tagged = |tag: &str| docker(&["image", "inspect", "--format", "{{.Id}}", &format!("{}:{tag}", site.app)]);
    assert_eq!(tagged("latest").trim(), site.show(1)["image"].as_str().unwrap());
    assert_eq!(tagged("rollback").trim(), site.show(2)["image"].as_str().unwrap());
}

#[test]
fn docker_a_container_that_is_gone_is_made_again_as_it_was() {
    let tables = "[start.env]\nGREETING = \"old words\"\n[start.secrets]\nTOKEN = { env = \"TOKEN\" }\n";
    let site = Site::docker().env("TOKEN", "old-secret").with(tables);
    site.write("run.sh", "echo \"$GREETING $TOKEN\" > /app/www/env\nexec httpd -f -p 8080 -h /app/www\n");
    site.write("www/only-old", "ok");
    site.edit_config("path = \"/health\"", "path = \"/only-old\"");
    let site = live(site, &["one"]).env("TOKEN", "new-secret");
    site.edit_config("old words", "new words");
    site.edit_config("path = \"/only-old\"", "path = \"/only-new\"");
    site.edit_config("http = \"/health\"\ncontains = [\"ok\"]", "http = \"/only-new\"\ncontains = [\"new\"]");
    fs::remove_file(site.work().join("www/only-old")).unwrap();
    site.write("www/only-new", "new");
    let site = live(site, &["two"]);
    let environment = |site: &Site| http(site.port, "GET", "/env", &[], b"").unwrap().body.trim().to_owned();
    assert_eq!(environment(&site), "new words new-secret");

    docker(&["rm", "-f", &format!("refit-{}-production-1", site.app)]);
    let preview = site.refit(&["rollback", "--preview", "--format", "json"]).expect(0).json();
    assert_eq!(preview["instant"], false);
    site.refit(&["rollback", "--reason", "why", "--force"]).expect(0);
    site.expect_page("one");
    // Its environment, its probe and its checks were the old ones: with the new ones it would not have passed.
    assert_eq!(environment(&site), "old words old-secret");
    assert_eq!(site.containers(true), [format!("refit-{}-production-1", site.app)]);
    assert!(site.log_of(&site.newest()).contains("is gone: making it again from its artefact"));
    is_live(&site, 1);
}

#[test]
fn docker_what_is_gone_is_found_before_anything_is_changed() {
    let site = live(Site::docker(), &["one", "two"]);
    let image = site.show(1)["image"].as_str().unwrap().to_owned();
    let container = format!("refit-{}-production-1", site.app);
    let back = ["rollback", "--reason", "why", "--force", "--format", "json"];
    // The image alone: the container still has what it needs.
    docker(&["rmi", "-f", &image]);
    let preview = site.refit(&["rollback", "--preview", "--format", "json"]).expect(0).json();
    assert!(checks(&preview, "warning")[0].contains("still stands and is started"), "{preview:#}");
    site.refit(&back).expect(0);
    site.expect_page("one");
    site.refit(&["rollback", "--undo", "--reason", "forward"]).expect(0);

    docker(&["rm", "-f", &container]);
    let refused = site.refit(&back).expect(1);
    let error = checks(&refused.json(), "error").join("\n");
    assert!(error.contains("neither") && error.contains("nothing is left to go back to"), "{error}");
    assert!(refused.stderr.contains("this cannot be forced"), "{}", refused.stderr);
    site.expect_page("two");
    is_live(&site, 2);
    assert_eq!(site.history().len(), 4, "nothing was queued");
}

#[test]
fn docker_what_is_live_and_down_is_started_again() {
    let site = live(Site::docker(), &["one", "two"]);
    docker(&["rm", "-f", &format!("refit-{}-production-2", site.app)]);
    assert_eq!(site.page(), None);
    site.refit(&["rollback", "--to", "2", "--reason", "somebody removed it"]).expect(0);
    site.expect_page("two");
    is_live(&site, 2);
}

/// Runs SQL on a SQLite database and returns the rows' first columns.
pub fn sql(database: &Path, statement: &str) -> String {
    let script = "import sqlite3,sys\nc=sqlite3.connect(sys.argv[1])\n\
                  print(' '.join(str(r[0]) for r in c.execute(sys.argv[2])))\nc.commit()";
    let ran = std::process::Command::new("python3").args(["-c", script]).arg(database).arg(statement).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).unwrap().trim().to_owned()
}

/// A site with a database: deployment 1 left the guest `ada`, deployment 2 `bob`.
pub fn with_guests(site: Site) -> (Site, std::path::PathBuf) {
    let database = site.path().join("app.db");
    sql(&database, "create table guests(name)");
    let site = site.with(&format!("[[backup]]\nkind = \"sqlite\"\npath = \"{}\"\n", database.display()));
    let site = live(site, &["one"]);
    sql(&database, "insert into guests values ('ada')");
    let site = live(site, &["two"]);
    sql(&database, "insert into guests values ('bob')");
    (site, database)
}

pub const GUESTS: &str = "select name from guests order by name";

#[test]
fn data_goes_back_with_the_version_and_forward_again() {
    let (site, database) = with_guests(Site::process());
    let data = ["--restore-data", "--yes", "--reason", "why"];
    site.refit(&[&["rollback", "--force"], data.as_slice()].concat()).expect(0);
    site.expect_page("one");
    assert_eq!(sql(&database, GUESTS), "ada");
    let rollback = site.newest();
    assert_eq!(rollback["rollback"]["restore"], site.show(2)["backup"]);
    assert!(rollback["backup"].is_string(), "what was there was backed up: {rollback:#}");
    sql(&database, "insert into guests values ('eve')");
    site.refit(&[&["rollback", "--undo"], data.as_slice()].concat()).expect(0);
    site.expect_page("two");
    assert_eq!(sql(&database, GUESTS), "ada bob");
    // Without being asked to, nothing is put back.
    site.refit(&["rollback", "--force", "--reason", "why"]).expect(0);
    assert_eq!(sql(&database, GUESTS), "ada bob");
}

#[test]
fn data_goes_forward_again_when_the_rollback_fails_or_is_killed() {
    let (mut site, database) = with_guests(Site::process());
    let back = ["rollback", "--force", "--restore-data", "--yes", "--reason", "why"];
    for (point, touched) in [
        ("step:backup:record", false),
        ("step:start:intent", false),
        ("step:start:effect", true),
        ("step:smoke:effect", true),
    ] {
        site = site.env("REFIT_FAULT", &format!("{point}=kill"));
        assert_eq!(site.refit(&back).code, -1, "{point}");
        assert_eq!(sql(&database, GUESTS), if touched { "ada" } else { "ada bob" }, "{point}");
        if touched {
            // Killed once more, when the data is forward again and nothing says so yet.
            site = site.env("REFIT_FAULT", "undo:start:effect=kill");
            assert_eq!(site.refit(&["serve"]).code, -1, "{point}");
        }
        site = site.env("REFIT_FAULT", "");
        site.serve();
        assert_eq!(site.settled()["status"], "failed", "{point}");
        assert_eq!(site.stop_daemon(), 0);
        assert_eq!(sql(&database, GUESTS), "ada bob", "{point}");
        site.expect_page("two");
        is_live(&site, 2);
    }
    let site = site.env("REFIT_FAULT", "step:smoke:effect=fail");
    site.refit(&back).expect(5);
    assert_eq!(sql(&database, GUESTS), "ada bob");
    site.expect_page("two");
    let log = site.log_of(&site.newest());
    assert_eq!(log.matches("put back SQLite database").count(), 2, "back, and forward again: {log}");
}

#[test]
fn a_damaged_or_missing_backup_is_found_before_anything_is_changed() {
    let (site, _) = with_guests(Site::process());
    let back = ["rollback", "--reason", "why", "--force", "--restore-data", "--yes", "--format", "json"];
    let set = site.path().join("backups").join(site.show(2)["backup"].as_str().unwrap());
    let preview = ["rollback", "--preview", "--restore-data", "--format", "json"];
    assert_eq!(site.refit(&preview).expect(0).json()["data"]["set"], site.show(2)["backup"]);
    // Where nobody can answer, nothing is put back unasked.
    let unasked = site.refit(&["rollback", "--reason", "why", "--force", "--restore-data"]).expect(64);
    assert!(unasked.stderr.contains("was not confirmed"), "{}", unasked.stderr);

    let dump = fs::read_dir(&set).unwrap().map(|e| e.unwrap().path()).find(|p| !p.ends_with("manifest.json")).unwrap();
    let whole = fs::read(&dump).unwrap();
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    fs::write(&dump, damaged).unwrap();
    let refused = site.refit(&back).expect(1);
    assert!(checks(&refused.json(), "error").join("\n").contains("another SHA-256"), "{}", refused.stdout);
    assert!(refused.stderr.contains("cannot be forced"), "{}", refused.stderr);
    fs::rename(&set, set.with_extension("away")).unwrap();
    let refused = site.refit(&back).expect(1);
    assert!(checks(&refused.json(), "error").join("\n").contains("cannot be put back"), "{}", refused.stdout);
    site.expect_page("two");
    assert_eq!(site.history().len(), 2);
}

#[test]
fn a_rollback_that_fails_is_stuck_and_what_was_live_is_live_again() {
    let service = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let check = format!("[[smoke.check]]\ntcp = \"{}\"\nretries = 0\n", service.local_addr().unwrap());
    let site = live(Site::process().with(&check), &["one"]);
    site.edit_config(&check, "");
    let site = live(site, &["two"]);
    drop(service);
    let ran = site.refit(&["rollback", "--reason", "why", "--force"]).expect(5);
    assert!(ran.stdout.contains("CRITICAL"), "{}", ran.stdout);
    assert!(ran.stdout.contains("deployment 2") && ran.stdout.contains("is live again"), "{}", ran.stdout);
    site.expect_page("two");
    is_live(&site, 2);
    let view = site.newest();
    assert_eq!((&view["status"], &view["failed_stage"]), (&json!("stuck"), &json!("smoke")));
    // What is asked for by a person goes on.
    let site = live(site, &["three"]);
    is_live(&site, 4);
}

#[test]
fn what_was_left_is_not_deployed_again_by_itself() {
    let mut site = live(Site::process(), &["one", "two"]);
    let left = site.show(2)["commit"].as_str().unwrap().to_owned();
    site.serve();
    site.refit(&["rollback", "--reason", "why", "--force"]).expect(0);
    site.webhook("d-1", &site.push_body("main", &left));
    // At its start a daemon asks the remote for what it missed.
    assert_eq!(site.stop_daemon(), 0);
    site.edit_config("reconcile = \"0s\"", "reconcile = \"1s\"");
    site.serve();
    site.webhook("d-2", &site.push_body("main", &left));
    site.version("three");
    let next = site.push("three");
    site.wait_for("the next push", |d| d["commit"] == *next && d["status"] == "succeeded");
    site.expect_page("three");
    let real = |d: &&Value| d["status"] != "skipped";
    let all: Vec<Value> = site.history().iter().filter(real).map(|d| d["commit"].clone()).collect();
    assert_eq!(all.len(), 4, "two, the rollback, and the next push: {all:?}");
    // The daemon rolls back just as well, and a person may ask for what was left.
    site.refit(&["rollback", "--reason", "again", "--force", "--detach"]).expect(0);
    site.wait_for("the rollback", |d| d["trigger"]["kind"] == "rollback" && d["status"] == "succeeded");
    site.expect_page("two");
}

#[test]
fn a_rollback_that_is_cancelled_in_the_middle_is_taken_back() {
    let site = live(Site::process(), &["one", "two"]);
    let pause = site.path().join("paused");
    let mut site = site.env("REFIT_FAULT", &format!("step:start:effect=pause:{}", pause.display()));
    site.serve();
    site.refit(&["rollback", "--reason", "why", "--force", "--detach"]).expect(0);
    poll(|| pause.exists().then_some(())).expect("it comes to the point");
    site.expect_page("one");
    site.refit(&["cancel", "3"]).expect(0);
    fs::remove_file(&pause).unwrap();
    let ended = site.settled();
    assert_eq!((&ended["status"], &ended["exit_code"]), (&json!("cancelled"), &json!(130)), "{ended:#}");
    site.expect_page("two");
    is_live(&site, 2);
}

#[test]
fn a_rollback_whose_process_is_killed_is_taken_back_and_can_be_asked_for_again() {
    let mut site = live(Site::process(), &["one", "two"]);
    for point in
        ["step:backup:effect", "step:tag:record", "step:start:intent", "step:start:effect", "step:smoke:intent"]
    {
        site = site.env("REFIT_FAULT", &format!("{point}=kill"));
        assert_eq!(site.refit(&["rollback", "--reason", "why", "--force"]).code, -1, "{point}");
        site = site.env("REFIT_FAULT", "");
        site.serve();
        let ended = site.settled();
        assert_eq!(ended["status"], "failed", "{point}: {ended:#}");
        assert_eq!(site.stop_daemon(), 0);
        site.expect_page("two");
        is_live(&site, 2);
    }
    site.refit(&["rollback", "--reason", "why", "--force"]).expect(0);
    site.expect_page("one");
    is_live(&site, 1);
}

#[test]
fn every_step_of_a_rollback_done_twice_is_the_same() {
    let steps = ["backup", "tag", "start", "smoke"].map(|stage| format!("step:{stage}:effect=twice"));
    let site = live(Site::process(), &["one", "two"]).env("REFIT_FAULT", &steps.join(","));
    site.refit(&["rollback", "--reason", "why", "--force"]).expect(0);
    site.expect_page("one");
    is_live(&site, 1);
}

/// The files below a directory, with their modes checked.
fn private_files(dir: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(dir), 0o700, "{}", dir.display());
    for entry in fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            names.extend(private_files(&path).into_iter().map(|inner| format!("{name}/{inner}")));
        } else {
            assert_eq!(mode(&path), 0o600, "{}", path.display());
            names.push(name);
        }
    }
    names.sort();
    names
}

#[test]
fn the_state_before_is_kept_and_goes_with_its_release() {
    let site = live(Site::process().env("TOKEN", "kept-secret").with("[rollback]\nkeep = 1"), &["one", "two"]);
    site.refit(&["rollback", "--reason", "why", "--force"]).expect(0);
    let kept = site.path().join(".refit/rollbacks").join(&site.app).join("production");
    let name = |id: i64| format!("refit-{}-production-{id}.json", site.app);
    let expected = |ids: [i64; 2]| {
        let mut all = vec!["config/0-pipeline.toml".to_owned(), "record.json".into(), "settings.json".into()];
        all.extend(ids.map(name));
        all.sort();
        all
    };
    assert_eq!(private_files(&kept.join("3")), expected([1, 2]));
    let record: Value = serde_json::from_slice(&fs::read(kept.join("3/record.json")).unwrap()).unwrap();
    assert_eq!(
        (&record["deployment"]["id"], &record["left"]["id"], &record["release"]),
        (&json!(3), &json!(2), &json!(2))
    );
    assert_eq!(record["deployment"]["rollback"]["reason"], "why");
    let config = fs::read(kept.join("3/config/0-pipeline.toml")).unwrap();
    assert_eq!(config, fs::read(site.config_file()).unwrap());

    // One that Refit does by itself keeps it too.
    site.write("run.sh", "python3 -m http.server --bind 127.0.0.1 --directory www/nowhere $PORT\n");
    site.push("never healthy");
    site.edit_config("deadline = \"15s\"", "deadline = \"1s\"");
    site.deploy(3);
    site.expect_page("one");
    assert_eq!(private_files(&kept.join("4")), expected([1, 4]));

    // Deployment 2 is retired by the next one, and what was kept about it goes.
    site.write("run.sh", "exec python3 -m http.server --bind 127.0.0.1 --directory www $PORT\n");
    site.edit_config("deadline = \"1s\"", "deadline = \"15s\"");
    let site = live(site, &["five", "six", "seven"]);
    poll(|| (!kept.join("3").exists() && !kept.join("4").exists()).then_some(())).expect("it goes with its release");
    drop(site);
}

#[test]
fn a_full_disk_stops_no_rollback() {
    let site = live(Site::process(), &["one", "two"]);
    site.edit_config("reconcile = \"0s\"", "reconcile = \"0s\"\nmin_free_space = \"8000t\"");
    site.version("three");
    site.push("three");
    site.deploy(69);
    site.refit(&["rollback", "--reason", "why", "--force"]).expect(0);
    site.expect_page("one");
    let log = site.log_of(&site.newest());
    assert!(log.contains("warning: only"), "{log}");
}
