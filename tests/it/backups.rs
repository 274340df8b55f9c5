//! `refit backup`: by hand, with real databases, killed in the middle.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use serde_json::{Value, json};

use crate::{
    guestbook::setup::Database,
    rollback::{GUESTS, is_live, live, sql, with_guests},
    support::{Site, docker, poll, telegram::BotApi},
};

fn backups(site: &Site, args: &[&str]) -> Vec<Value> {
    let all = site.refit(&[&["backup", "list", "--format", "json"], args].concat()).expect(0).json();
    all.as_array().expect("an array").clone()
}

fn names(sets: &[Value]) -> Vec<String> {
    sets.iter().map(|set| set["name"].as_str().expect("a name").to_owned()).collect()
}

fn create(site: &Site) -> Value {
    site.refit(&["backup", "create", "--reason", "to try it", "--format", "json"]).expect(0).json()
}

#[test]
fn a_set_is_taken_listed_and_shown_and_says_who_and_why() {
    let (site, _) = with_guests(Site::process());
    let site = site.env("USER", "ada");
    let created = create(&site);
    let set = created["set"].as_str().unwrap().to_owned();
    let all = backups(&site, &[]);
    assert_eq!(all.len(), 3, "two deployments and this one: {all:#?}");
    let newest = &all[0];
    assert!(set.ends_with(newest["name"].as_str().unwrap()));
    assert_eq!((&newest["state"], &newest["parts"]), (&json!("complete"), &json!(["app"])));
    assert_eq!((&newest["reason"], &newest["deployment"]), (&json!("to try it"), &Value::Null));
    assert_eq!(newest["commit"], site.show(2)["commit"], "what is live");
    let commit = site.show(2)["commit"].as_str().unwrap()[..8].to_owned();
    assert_eq!(backups(&site, &["--commit", &commit]).len(), 2);
    assert_eq!(backups(&site, &["--older-than", "1h"]).len(), 0);
    assert_eq!(backups(&site, &["--newer-than", "1h", "--env", "production"]).len(), 3);
    let table = site.refit(&["backup", "list"]).expect(0).stdout;
    assert!(table.contains("KEPT FOR") && table.contains("newest good copy of `app`"), "{table}");
    assert!(table.contains("going back to deployment 1"), "the set of deployment 2: {table}");

    let shown = site.refit(&["backup", "show", &set, "--format", "json"]).expect(0).json();
    assert_eq!((&shown["manifest"]["by"], &shown["manifest"]["release"]["deployment"]), (&json!("ada"), &json!(2)));
    let page = site.refit(&["backup", "show", "latest"]).expect(0).stdout;
    assert!(page.contains("to try it") && page.contains("by hand, without refit"), "{page}");
    let place = site.path().join("backups").join(&set);
    for (path, mode) in [(place.clone(), 0o700), (place.join("manifest.json"), 0o600)] {
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode, "{}", path.display());
    }
}

#[test]
fn a_part_that_fails_is_exit_code_1_and_the_rest_is_there() {
    let (site, database) = with_guests(Site::process());
    let site = site.with("[[backup]]\nname = \"other\"\nkind = \"sqlite\"\npath = \"/nowhere/other.db\"\n");
    let part = site.refit(&["backup", "create"]).expect(1);
    assert!(part.stdout.contains("not all of it") && part.stdout.contains("other"), "{}", part.stdout);
    assert_eq!(backups(&site, &[])[0]["missing"], json!(["other"]));
    fs::rename(&database, database.with_extension("away")).unwrap();
    let none = site.refit(&["backup", "create", "--format", "json"]).expect(1).json();
    assert_eq!(none["set"], Value::Null);
    let empty = Site::process();
    let why = empty.refit(&["backup", "create"]).expect(64).stderr;
    assert!(why.contains("has no [[backup]]"), "{why}");
}

#[test]
fn names_that_are_no_sets_lead_nowhere() {
    let (site, _) = with_guests(Site::process());
    let outside = site.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("manifest.json"), "{}").unwrap();
    let before = names(&backups(&site, &[]));
    let whole = format!("{}/production/{}", site.app, before[0]);
    for hostile in [
        "../../../outside",
        "..",
        ".",
        "",
        "/etc/passwd",
        "2026-11-21_10-15-30/../../../../outside",
        "$(touch owned)",
        "-rf",
        "manifest.json",
        "2026-11-21_10-15-30\n",
        "\u{1b}[31mred",
        &format!("../production/{}", before[0]),
        &format!("{}/dev/{}", site.app, before[0]),
        &format!("{whole}/"),
        &format!("{whole}/manifest.json"),
    ] {
        for verb in [&["show"][..], &["restore", "--yes"], &["delete", "--yes"]] {
            let ran = site.refit(&[&["backup"], verb, &["--", hostile]].concat());
            assert_eq!(ran.code, 64, "{verb:?} {hostile:?}: {}", ran.stderr);
            assert!(!ran.stderr.contains('\u{1b}'), "{verb:?} {hostile:?}: {}", ran.stderr);
        }
    }
    assert!(outside.join("manifest.json").exists() && !site.path().join("owned").exists());
    assert_eq!(names(&backups(&site, &[])), before);
    site.refit(&["backup", "show", &whole]).expect(0);
    assert_eq!(site.history().len(), 2, "nothing was queued");
}

#[test]
fn what_is_needed_is_never_deleted_or_pruned() {
    let (site, database) = with_guests(Site::process());
    let all = names(&backups(&site, &[]));
    // Deployment 2's set is where `rollback --restore-data` to 1 goes, and the newest good copy of the database.
    let refused = site.refit(&["backup", "delete", &all[0], "--yes"]).expect(1).stderr;
    assert!(refused.contains("going back to deployment 1"), "{refused}");
    let unasked = site.refit(&["backup", "delete", &all[1]]).expect(64).stderr;
    assert!(unasked.contains("was not confirmed"), "{unasked}");
    // All or none.
    let refused = site.refit(&["backup", "delete", &all[1], &all[0], "--yes"]).expect(1).stderr;
    assert!(refused.contains("nothing was removed"), "{refused}");
    assert_eq!(names(&backups(&site, &[])), all);
    let gone = site.refit(&["backup", "delete", &all[1], "--yes", "--format", "json"]).expect(0).json();
    assert_eq!(gone["removed"], json!([all[1]]));

    // The last good copy stays though later sets lack the part.
    let last = create(&site)["set"].as_str().unwrap().to_owned();
    let path = site.path().join("other.db");
    sql(&path, "create table t(x)");
    let other = format!(
        "[[backup]]\nname = \"other\"\nkind = \"sqlite\"\npath = \"{}\"\nkeep = 1\nkeep_days = 0\n",
        path.display()
    );
    let site = site.with(&other);
    let own = format!("path = \"{}\"", database.display());
    site.edit_config(&own, &format!("{own}\nkeep = 1\nkeep_days = 0"));
    fs::rename(&database, database.with_extension("away")).unwrap();
    for _ in 0..3 {
        site.refit(&["backup", "create"]).expect(1);
    }
    let refused = site.refit(&["backup", "delete", &last, "--yes"]).expect(1).stderr;
    assert!(refused.contains("newest good copy of `app`"), "{refused}");
    let before = names(&backups(&site, &[]));
    let dry = site.refit(&["backup", "prune", "--dry-run", "--format", "json"]).expect(0).json();
    assert_eq!(names(&backups(&site, &[])), before, "nothing went");
    let removed = site.refit(&["backup", "prune", "--format", "json"]).expect(0).json();
    assert_eq!(dry, removed);
    let left = names(&backups(&site, &[]));
    assert_eq!(left.len(), 3, "the newest, the last good copy, and what deployment 1 needs: {left:?}");
    assert!(left.contains(&all[0]) && last.ends_with(&left[1]), "{left:?}");
    assert_eq!(
        site.refit(&["backup", "prune"]).expect(0).stdout.trim(),
        format!("nothing to remove in {}/production", site.app)
    );
}

#[test]
fn a_set_of_one_part_says_what_it_lacks_and_costs_that_no_copy() {
    let (site, database) = with_guests(Site::process());
    also(&site, &database, "keep = 1\nkeep_days = 0");
    let path = site.path().join("other.db");
    sql(&path, "create table t(x)");
    let place = path.display();
    let site =
        site.with(&format!("[[backup]]\nname = \"other\"\nkind = \"sqlite\"\npath = \"{place}\"\nrequired = true\n"));
    let whole = create(&site)["set"].as_str().unwrap().to_owned();
    // What is left out is not even looked at.
    fs::rename(&path, path.with_extension("away")).unwrap();
    let part = ["backup", "create", "--part", "app", "--format", "json"];
    for _ in 0..3 {
        let created = site.refit(&part).expect(0).json();
        assert_eq!((created["parts"].as_array().unwrap().len(), &created["failures"]), (1, &json!([])), "{created:#}");
    }
    let all = backups(&site, &[]);
    assert_eq!((&all[0]["parts"], &all[0]["missing"]), (&json!(["app"]), &json!(["other"])), "{all:#?}");
    assert!(names(&all).iter().any(|name| whole.ends_with(name)), "the only copy of `other` is kept: {all:#?}");
    let refused = site.refit(&["backup", "delete", &whole, "--yes"]).expect(1).stderr;
    assert!(refused.contains("newest good copy of `other`"), "{refused}");
    let page = site.refit(&["backup", "show", "latest"]).expect(0).stdout;
    assert!(page.contains("left out"), "{page}");
    let count = backups(&site, &[]).len();
    let unknown = site.refit(&["backup", "create", "--part", "app", "--part", "nothing"]).expect(64).stderr;
    assert!(unknown.contains("no [[backup]] named `nothing`") && unknown.contains("it has app, other"), "{unknown}");
    site.refit(&["backup", "create", "--part", "../app"]).expect(64);
    assert_eq!(backups(&site, &[]).len(), count, "nothing was taken");
}

#[test]
fn what_retention_removed_is_in_the_report() {
    let (site, database) = with_guests(Site::process());
    also(&site, &database, "keep = 1\nkeep_days = 0");
    for version in ["three", "four"] {
        site.version(version);
        site.push(version);
        site.deploy(0);
    }
    let gone = site.newest()["stages"][1]["output"]["removed"].as_array().unwrap().clone();
    let report = site.refit(&["report", "4"]).expect(0).stdout;
    let before = site.show(3)["stages"][1]["output"]["removed"].clone();
    let all: Vec<&Value> = before.as_array().unwrap().iter().chain(&gone).collect();
    assert!(!all.is_empty(), "the set of the first deployment, at least: no release goes back to it");
    for name in &gone {
        assert!(report.contains(name.as_str().unwrap()), "{name} in {report}");
    }
    let told = site.refit(&["report", "3"]).expect(0).stdout;
    assert!(before.as_array().unwrap().iter().all(|name| told.contains(name.as_str().unwrap())), "{told}");
}

#[test]
fn data_goes_back_under_the_live_version_and_is_told_as_a_restore() {
    let (site, database) = with_guests(Site::process());
    let set = create(&site)["set"].as_str().unwrap().to_owned();
    sql(&database, "insert into guests values ('eve')");
    let unasked = site.refit(&["backup", "restore", "latest"]).expect(64).stderr;
    assert!(unasked.contains("was not confirmed") && unasked.contains("--yes"), "{unasked}");
    assert_eq!(sql(&database, GUESTS), "ada bob eve");
    let ran = site.refit(&["backup", "restore", &set, "--yes", "--reason", "eve was a mistake"]).expect(0);
    assert!(ran.stdout.contains("was restored from") && !ran.stdout.contains("Eve was"), "{}", ran.stdout);
    assert_eq!(sql(&database, GUESTS), "ada bob");
    site.expect_page("two");
    is_live(&site, 2);
    let view = site.newest();
    assert_eq!((&view["status"], &view["trigger"]["kind"]), (&json!("succeeded"), &json!("restore")));
    assert_eq!((&view["rollback"]["kind"], &view["rollback"]["restore"]), (&json!("restore"), &json!(set)));
    for stage in ["pull", "test", "build", "tag", "migrate"] {
        let found = view["stages"].as_array().unwrap().iter().find(|s| s["name"] == stage).unwrap();
        assert_eq!(found["status"], "skipped", "{stage}");
    }
    let id = view["id"].to_string();
    for (told, words) in [
        (site.refit(&["show", &id]).expect(0).stdout, "was restored from"),
        (site.refit(&["report", &id]).expect(0).stdout, "restore the data of"),
        (site.refit(&["history", "--rollbacks"]).expect(0).stdout, "restore"),
        (site.refit(&["history"]).expect(0).stdout, "restore"),
    ] {
        assert!(told.contains(words) && !told.contains("rolled back"), "{words}: {told}");
    }
    // And what was there before can come back just as well.
    let before = view["backup"].as_str().unwrap().to_owned();
    site.refit(&["backup", "restore", &before, "--yes"]).expect(0);
    assert_eq!(sql(&database, GUESTS), "ada bob eve");
    // It is no rollback: there is nothing to undo, and a push goes on as ever.
    let none = site.refit(&["rollback", "--undo", "--reason", "why"]).expect(64).stderr;
    assert!(none.contains("no rollback that could be undone"), "{none}");
    let alone = site.refit(&["backup", "restore", &set, "--yes", "--detach"]).expect(69).stderr;
    assert!(alone.contains("--detach needs the daemon"), "{alone}");
    let site = live(site, &["three"]);
    // The daemon does it just as well.
    let mut site = site;
    site.serve();
    sql(&database, "delete from guests");
    site.refit(&["backup", "restore", &set, "--yes"]).expect(0);
    assert_eq!(sql(&database, GUESTS), "ada bob");
    site.expect_page("three");
    // Handed over, it returns before it is done.
    sql(&database, "delete from guests");
    let queued = site.refit(&["backup", "restore", &set, "--yes", "--detach", "--format", "json"]).expect(0).json();
    assert_eq!(site.settled()["id"], queued["id"]);
    assert_eq!(sql(&database, GUESTS), "ada bob");
    create(&site);
}

#[test]
fn a_restore_that_fails_or_is_killed_leaves_the_data_whole_and_the_app_live() {
    let (mut site, database) = with_guests(Site::process());
    let set = create(&site)["set"].as_str().unwrap().to_owned();
    sql(&database, "insert into guests values ('eve')");
    let back = ["backup", "restore", &set, "--yes"];
    for (point, touched) in [
        ("begun", false),
        ("step:backup:intent", false),
        ("step:backup:effect", false),
        ("step:backup:record", false),
        ("step:start:intent", false),
        ("step:start:effect", true),
        ("step:start:record", true),
        ("step:smoke:intent", true),
        ("step:smoke:effect", true),
    ] {
        site = site.env("REFIT_FAULT", &format!("{point}=kill"));
        assert_eq!(site.refit(&back).code, -1, "{point}");
        assert_eq!(sql(&database, GUESTS), if touched { "ada bob" } else { "ada bob eve" }, "{point}");
        if touched {
            site = site.env("REFIT_FAULT", "undo:start:effect=kill");
            assert_eq!(site.refit(&["serve"]).code, -1, "{point}");
        }
        site = site.env("REFIT_FAULT", "");
        site.serve();
        let ended = site.settled();
        let expected = if point.starts_with("step:start") || touched { "rolled_back" } else { "failed" };
        assert_eq!(ended["status"], expected, "{point}: {ended:#}");
        assert_eq!(site.stop_daemon(), 0);
        assert_eq!(sql(&database, GUESTS), "ada bob eve", "{point}");
        site.expect_page("two");
        is_live(&site, 2);
    }
    // After its last record it is done, whoever writes that.
    for point in ["step:smoke:record", "end:intent", "end:retired"] {
        site = site.env("REFIT_FAULT", &format!("{point}=kill"));
        assert_eq!(site.refit(&back).code, -1, "{point}");
        site = site.env("REFIT_FAULT", "");
        site.serve();
        assert_eq!(site.settled()["status"], "succeeded", "{point}");
        assert_eq!(site.stop_daemon(), 0);
        assert_eq!(sql(&database, GUESTS), "ada bob", "{point}");
        site.expect_page("two");
        is_live(&site, 2);
        sql(&database, "insert into guests values ('eve')");
    }
    let site = site.env("REFIT_FAULT", "step:smoke:effect=fail");
    let failed = site.refit(&back).expect(4);
    assert!(failed.stdout.contains("the data is as it was before"), "{}", failed.stdout);
    assert_eq!(sql(&database, GUESTS), "ada bob eve");
    site.expect_page("two");
}

#[test]
fn where_nothing_is_live_data_is_put_in_place_whole_or_not_at_all() {
    let (old, database) = with_guests(Site::process());
    let set = create(&old)["set"].as_str().unwrap().to_owned();
    // A new machine has the configuration and the sets, and nothing else.
    let (new, there) = (Site::process(), |site: &Site| site.path().join("app.db"));
    let table = format!("[[backup]]\nname = \"app\"\nkind = \"sqlite\"\npath = \"{}\"\n", there(&new).display());
    let mut new = new.with(&table);
    new.edit_config(&format!("name = \"{}\"", new.app.clone()), &format!("name = \"{}\"", old.app));
    copy(&old.path().join("backups"), &new.path().join("backups"));
    let ran = new.refit(&["backup", "restore", &set, "--yes"]).expect(0);
    assert!(ran.stdout.contains("was restored from") && ran.stdout.contains("refit deploy"), "{}", ran.stdout);
    assert!(ran.stdout.contains("nothing before that could be backed up"), "{}", ran.stdout);
    assert_eq!(sql(&there(&new), GUESTS), "ada bob");
    // What is there is backed up, and a kill leaves the old data or the new.
    sql(&there(&new), "insert into guests values ('eve')");
    for (point, expected) in [("restore:backup", "ada bob eve"), ("restore:effect", "ada bob")] {
        new = new.env("REFIT_FAULT", &format!("{point}=kill"));
        assert_eq!(new.refit(&["backup", "restore", &set, "--yes"]).code, -1, "{point}");
        assert_eq!(sql(&there(&new), GUESTS), expected, "{point}");
    }
    new = new.env("REFIT_FAULT", "");
    let restored = new.refit(&["backup", "restore", "latest", "--yes", "--format", "json"]).expect(0).json();
    assert_eq!(sql(&there(&new), GUESTS), "ada bob eve", "the newest is the one taken before the last restore");
    assert!(restored["before"].is_string(), "{restored:#}");
    // Data that cannot be backed up is not replaced unasked.
    fs::write(there(&new), "no database at all, but somebody's").unwrap();
    let refused = new.refit(&["backup", "restore", &set, "--yes"]).expect(1).stderr;
    assert!(refused.contains("nothing was changed") && refused.contains("--force"), "{refused}");
    assert_eq!(fs::read_to_string(there(&new)).unwrap(), "no database at all, but somebody's");
    new.refit(&["backup", "restore", &set, "--yes", "--force"]).expect(0);
    assert_eq!(sql(&there(&new), GUESTS), "ada bob");
    assert_eq!(sql(&database, GUESTS), "ada bob", "the old machine's is its own");
}

#[test]
fn data_that_is_gone_comes_back_under_the_live_version_unforced() {
    let (site, database) = with_guests(Site::process());
    let uploads = site.path().join("uploads");
    fs::create_dir(&uploads).unwrap();
    fs::write(uploads.join("a"), "kept").unwrap();
    let table = format!("[[backup]]\nname = \"uploads\"\nkind = \"files\"\npath = \"{}\"\n", uploads.display());
    let site = site.with(&table);
    let set = create(&site)["set"].as_str().unwrap().to_owned();
    let back = ["backup", "restore", &set, "--yes"];
    fs::remove_dir_all(&uploads).unwrap();
    site.refit(&back).expect(0);
    assert_eq!(
        (fs::read_to_string(uploads.join("a")).unwrap().as_str(), sql(&database, GUESTS).as_str()),
        ("kept", "ada bob")
    );
    fs::remove_dir_all(&uploads).unwrap();
    fs::remove_file(&database).unwrap();
    let ran = site.refit(&back).expect(0);
    assert!(!ran.stdout.contains("--force"), "{}", ran.stdout);
    assert_eq!((uploads.join("a").exists(), sql(&database, GUESTS).as_str()), (true, "ada bob"));
    // One that does not work: what was there before is put back, and what was not there before stays.
    let site = site.env("REFIT_FAULT", "step:smoke:effect=fail");
    for parts in [vec![], vec!["--part", "uploads"]] {
        fs::remove_dir_all(&uploads).unwrap();
        sql(&database, "insert into guests values ('eve')");
        site.refit(&[&back[..], &parts].concat()).expect(4);
        assert_eq!((uploads.join("a").exists(), sql(&database, GUESTS).as_str()), (true, "ada bob eve"), "{parts:?}");
        sql(&database, "delete from guests where name = 'eve'");
    }
    site.expect_page("two");
    is_live(&site, 2);
}

struct DoomedVolume(String);

impl Drop for DoomedVolume {
    fn drop(&mut self) {
        let _ = std::process::Command::new("docker").args(["volume", "rm", "--force", &self.0]).output();
    }
}

#[test]
fn docker_a_new_machine_gets_everything_back_unforced_and_the_daemon_sweeps() {
    let site = Site::process();
    let database = Database::start(&format!("{}-db", site.app));
    let volume = format!("{}-volume", site.app);
    let (uploads, local) = (site.path().join("uploads"), site.path().join("data/notes.db"));
    fs::create_dir(site.path().join("data")).unwrap();
    let mut site = site.with(&format!(
        "[[backup]]\nname = \"main\"\nkind = \"postgres\"\ncontainer = \"{}\"\ndatabase = \"guestbook\"\nuser = \"guestbook\"\n\
         [[backup]]\nname = \"uploads\"\nkind = \"files\"\npath = \"{}\"\n\
         [[backup]]\nname = \"held\"\nkind = \"volume\"\nvolume = \"{volume}\"\n\
         [[backup]]\nname = \"notes\"\nkind = \"sqlite\"\npath = \"{}\"\n",
        database.name,
        uploads.display(),
        local.display()
    ));
    database.psql("postgres", "ALTER ROLE guestbook CREATEDB");
    database.psql("guestbook", "SET ROLE guestbook; CREATE TABLE entries AS SELECT 1 AS id, 'a' AS author, 'b' AS message, now() AS created_at");
    let before = database.rows("guestbook");
    fs::create_dir(&uploads).unwrap();
    fs::write(uploads.join("a"), "kept").unwrap();
    let _goes = DoomedVolume(volume.clone());
    docker(&["volume", "create", &volume]);
    let run = |command: &str| {
        docker(&["run", "--rm", "--volume", &format!("{volume}:/v"), "refit-test/busybox:1", "sh", "-c", command])
    };
    run("echo kept > /v/a");
    sql(&local, "create table guests(name)");
    sql(&local, "insert into guests values ('ada')");
    create(&site);

    database.psql("postgres", "DROP DATABASE guestbook");
    docker(&["volume", "rm", &volume]);
    fs::remove_dir_all(&uploads).unwrap();
    fs::remove_dir_all(local.parent().unwrap()).unwrap();
    site.refit(&["backup", "verify", "latest"]).expect(0);
    let ran = site.refit(&["backup", "restore", "latest", "--yes"]).expect(0);
    assert!(ran.stdout.contains("nothing before that could be backed up"), "{}", ran.stdout);
    assert_eq!((database.rows("guestbook"), run("cat /v/a").trim()), (before.clone(), "kept"));
    assert_eq!(
        (fs::read_to_string(uploads.join("a")).unwrap().as_str(), sql(&local, GUESTS).as_str()),
        ("kept", "ada")
    );

    // Some of it is gone: the rest is backed up first.
    database.psql("postgres", "DROP DATABASE guestbook");
    let ran = site.refit(&["backup", "restore", "latest", "--yes", "--format", "json"]).expect(0).json();
    assert!(ran["before"].is_string(), "{ran:#}");
    assert_eq!(database.rows("guestbook"), before);

    // What restores and a rehearsal left that were killed.
    let set = site.path().join("backups").join(ran["before"].as_str().unwrap());
    let beside = site.path().join(".uploads.refit-restore");
    fs::create_dir(&beside).unwrap();
    fs::create_dir(set.join(".uploads.look")).unwrap();
    run("mkdir -p /v/.refit-restore/new && touch /v/.refit-restore/new/half");
    let labels = [
        format!("refit.app={}", site.app),
        "refit.environment=production".into(),
        "refit.role=scratch".into(),
        "refit.owner=1.1".into(),
    ];
    let labels: Vec<&str> = labels.iter().flat_map(|label| ["--label", label.as_str()]).collect();
    docker(&[&["create"], &labels[..], &["refit-test/busybox:1", "true"]].concat());
    let of_ours = || docker(&["ps", "-aq", "--filter", &format!("label=refit.app={}", site.app)]);
    assert_ne!(of_ours().trim(), "");
    site.serve();
    assert_eq!(docker(&["ps", "-aq", "--filter", &format!("label=refit.app={}", site.app)]).trim(), "");
    assert!(!beside.exists() && !set.join(".uploads.look").exists());
    assert_eq!(run("ls -A /v").trim(), "a");
    let log = site.daemon_log();
    assert!(log.contains("of a process that was killed: removed") && log.contains(&volume), "{log}");
}

/// Adds keys to the `[[backup]]` of [`with_guests`].
fn also(site: &Site, database: &Path, keys: &str) {
    let path = format!("path = \"{}\"", database.display());
    site.edit_config(&path, &format!("{path}\n{keys}"));
}

#[test]
fn a_flipped_byte_is_found_told_everywhere_and_keeps_an_older_set() {
    let (site, database) = with_guests(Site::process());
    let older = names(&backups(&site, &[]))[0].clone();
    let set = create(&site)["set"].as_str().unwrap().to_owned();
    let good = site.refit(&["backup", "verify", "--format", "json"]).expect(0).json();
    assert_eq!((&good["ok"], &good["depth"]), (&json!(true), &json!("catalogue")));
    let rehearsed = site.refit(&["backup", "verify", "latest", "--restore", "--format", "json"]).expect(0).json();
    assert_eq!(rehearsed["parts"][0]["tables"], json!([{ "name": "guests", "expected": 2, "found": 2 }]));
    let told = site.refit(&["status"]).expect(0).stdout;
    assert!(told.contains("was restored to try it"), "{told}");

    let dump = site.path().join("backups").join(&set).join("app.db.gz");
    let whole = fs::read(&dump).unwrap();
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    fs::write(&dump, &damaged).unwrap();
    let refused = site.refit(&["backup", "restore", &set, "--yes"]).expect(1).stderr;
    assert!(refused.contains("another SHA-256") && refused.contains("nothing was changed"), "{refused}");
    assert_eq!(site.history().len(), 2, "nothing was queued");
    let bad = site.refit(&["backup", "verify"]).expect(1).stdout;
    assert!(bad.contains("NOT good") && bad.contains("another SHA-256"), "{bad}");
    for told in [
        site.refit(&["status"]).expect(0).stdout,
        site.refit(&["backup", "list"]).expect(0).stdout,
        site.refit(&["backup", "show", &set]).expect(0).stdout,
        site.refit(&["doctor"]).expect(69).stdout,
    ] {
        assert!(told.contains("NOT good"), "{told}");
    }
    // The one before is the last good copy now.
    let refused = site.refit(&["backup", "delete", &older, "--yes"]).expect(1).stderr;
    assert!(refused.contains("newest good copy of `app`") || refused.contains("going back"), "{refused}");
    site.refit(&["backup", "delete", &set, "--yes"]).expect(0);
    assert_eq!(sql(&database, GUESTS), "ada bob");
}

#[test]
fn a_new_backup_is_looked_at_as_far_as_it_asks() {
    let (site, database) = with_guests(Site::process());
    also(&site, &database, "verify = \"restore\"\ncheck = \"SELECT count(*) FROM guests WHERE name = 'ada'\"");
    let site = live(site, &["three"]);
    let newest = backups(&site, &[])[0].clone();
    assert_eq!(
        (&newest["verified"]["depth"], &newest["verified"]["ok"]),
        (&json!("restore"), &json!(true)),
        "{newest:#}"
    );
    // What it holds is not what it should hold: a warning, or the end where it is required.
    sql(&database, "delete from guests");
    let site = live(site, &["four"]);
    let stage = site.newest()["stages"][1].clone();
    assert_eq!(stage["status"], "warned", "{stage:#}");
    assert!(stage["error"].as_str().unwrap().contains("is not good"), "{stage:#}");
    also(&site, &database, "required = true");
    site.version("five");
    site.push("five");
    let failed = site.deploy(1);
    assert!(failed["error"].as_str().unwrap().contains("a required backup is not good"), "{failed:#}");
    site.expect_page("four");
    assert_eq!(site.refit(&["backup", "create"]).code, 1);
}

#[test]
fn data_that_does_not_answer_its_check_goes_away_again() {
    let (site, database) = with_guests(Site::process());
    let empty = create(&site)["set"].as_str().unwrap().to_owned();
    also(&site, &database, "check = \"SELECT count(*) FROM guests WHERE name = 'eve'\"");
    sql(&database, "insert into guests values ('eve')");
    let failed = site.refit(&["backup", "restore", &empty, "--yes"]).expect(3).stdout;
    assert!(failed.contains("said no: 0") && failed.contains("the data is as it was before"), "{failed}");
    assert_eq!(sql(&database, GUESTS), "ada bob eve");
    site.expect_page("two");
    let good = create(&site)["set"].as_str().unwrap().to_owned();
    sql(&database, "delete from guests");
    site.refit(&["backup", "restore", &good, "--yes"]).expect(0);
    assert_eq!(sql(&database, GUESTS), "ada bob eve");
    assert!(site.log_of(&site.newest()).contains("the check of `app` passed: 1"));
}

#[test]
fn the_daemon_rehearses_the_newest_backup_by_itself() {
    let (site, _) = with_guests(Site::process());
    let mut site = site.with_environment("rehearse_backups = \"1s\"");
    site.serve();
    let seen = || {
        let status = site.refit(&["status", "--format", "json"]).expect(0).json();
        Some(status[0]["backups"]["verified"].clone()).filter(|look| look["depth"] == "restore" && look["ok"] == true)
    };
    let first = poll(seen).expect("a rehearsal");
    let again = poll(|| seen().filter(|look| look["at"] != first["at"])).expect("another one");
    assert_eq!(first["set"], again["set"]);
    // It gives way: deployments and backups by hand go on beside it.
    create(&site);
    site.version("three");
    site.push("three");
    site.deploy(0);
    site.expect_page("three");
}

#[test]
fn a_backup_that_fails_its_rehearsal_rings_once_also_after_a_kill_and_its_recovery_is_quiet() {
    let api = BotApi::start();
    let (site, database) = with_guests(Site::process());
    let mut site = site.with_telegram(&api).with_environment("rehearse_backups = \"1s\"");
    let set = create(&site)["set"].as_str().unwrap().to_owned();
    let name = set.rsplit('/').next().unwrap().to_owned();
    let dump = site.path().join("backups").join(&set).join("app.db.gz");
    let whole = fs::read(&dump).unwrap();
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    fs::write(&dump, &damaged).unwrap();
    // It is killed once the message is written, and before the result is kept.
    let kept = dump.with_file_name("verified.json");
    let before = fs::read(&kept).ok();
    site = site.env("REFIT_FAULT", "rehearsal:told=kill");
    assert_eq!(site.refit(&["serve"]).code, -1);
    assert_eq!(fs::read(&kept).ok(), before);
    site = site.env("REFIT_FAULT", "");
    site.serve();
    let rung = api.wait_for_rings(1);
    for part in [&format!("{}/production", site.app), "NOT good", &name, "another SHA-256", "refit backup create"] {
        assert!(rung[0].text.contains(part), "no `{part}` in {}", rung[0].text);
    }
    let look = || {
        let status = site.refit(&["status", "--format", "json"]).expect(0).json();
        Some(status[0]["backups"]["verified"].clone()).filter(|look| look["depth"] == "restore")
    };
    let first = poll(look).expect("a result");
    poll(|| look().filter(|again| again["at"] != first["at"])).expect("another one");
    fs::write(&dump, &whole).unwrap();
    api.wait_until("the all-clear", |api| api.accepted().iter().any(|message| message.text.contains("good again")));
    let quiet = api.accepted().into_iter().find(|message| message.text.contains("good again")).unwrap();
    assert!(quiet.silent && quiet.text.contains(&name), "{quiet:?}");
    assert_eq!(api.rung().len(), 1, "{:#?}", api.rung());
    // A set that fails as soon as it is made is told just as well.
    also(&site, &database, "verify = \"restore\"\ncheck = \"SELECT count(*) FROM guests WHERE name = 'eve'\"");
    assert_eq!(site.stop_daemon(), 0);
    site.refit(&["backup", "create"]).expect(1);
    let rung = api.wait_for_rings(2);
    assert!(rung[1].text.contains("its `check`"), "{}", rung[1].text);
}

#[test]
fn a_set_of_which_only_some_was_restored_is_no_all_clear() {
    let api = BotApi::start();
    let (site, database) = with_guests(Site::process());
    let other = site.path().join("other.db");
    sql(&other, "create table guests(name)");
    let path = other.display();
    let check = "SELECT count(*) FROM guests WHERE name = 'eve'";
    let part = format!("[[backup]]\nname = \"other\"\nkind = \"sqlite\"\npath = \"{path}\"\ncheck = \"{check}\"\n");
    let mut site = site.with(&part).with_telegram(&api).with_environment("rehearse_backups = \"1s\"");
    also(&site, &database, "verify = \"restore\"");
    create(&site);
    site.serve();
    let rung = api.wait_for_rings(1);
    assert!(rung[0].text.contains("`other`"), "{rung:#?}");
    assert_eq!(site.stop_daemon(), 0);
    // Of a new set `app` is restored, and is good; of `other` the checksum says nothing new.
    let created = create(&site);
    assert_eq!(created["verified"]["ok"], true, "{created:#}");
    assert_eq!(api.accepted().len(), 1, "{:#?}", api.accepted());
    // What it should hold is there: the next rehearsal of everything says so.
    sql(&other, "insert into guests values ('eve')");
    create(&site);
    site.serve();
    let all = api.wait_for(2);
    assert!(all[1].silent && all[1].text.contains("good again"), "{all:#?}");
}

#[test]
fn docker_a_set_goes_back_without_refit_by_the_commands_in_its_manifest() {
    let site = Site::process();
    let database = Database::start(&format!("{}-db", site.app));
    let local = site.path().join("notes.db");
    sql(&local, "create table guests(name)");
    sql(&local, "insert into guests values ('ada'), ('bob')");
    let part = |name: &str, format: &str, compression: &str| {
        format!(
            "[[backup]]\nname = \"{name}\"\nkind = \"postgres\"\ncontainer = \"{}\"\ndatabase = \"guestbook\"\nuser = \"guestbook\"\n\
             format = \"{format}\"\ncompression = \"{compression}\"\n",
            database.name
        )
    };
    let site = site.with(&format!(
        "{}{}{}[[backup]]\nname = \"notes\"\nkind = \"sqlite\"\npath = \"{}\"\n",
        part("plain", "plain", "gzip"),
        part("archive", "custom", "none"),
        part("packed", "custom", "zstd"),
        local.display()
    ));
    let tables = "CREATE TABLE entries (id serial PRIMARY KEY, author text, message text, created_at timestamptz DEFAULT now()); \
                  INSERT INTO entries (author, message) VALUES ('Bj\u{f6}rk', E'It''s a \\\\ $(test)\\n'), ('\u{1f389}', NULL)";
    database.psql("guestbook", &format!("SET ROLE guestbook; {tables}"));
    let before = database.rows("guestbook");
    let set = create(&site)["set"].as_str().unwrap().to_owned();
    let place = site.path().join("backups").join(&set);
    let page = site.refit(&["backup", "show", &set]).expect(0).stdout;
    let manifest: Value = serde_json::from_slice(&fs::read(place.join("manifest.json")).unwrap()).unwrap();
    for part in manifest["parts"].as_array().unwrap() {
        let (name, line) = (part["name"].as_str().unwrap(), part["restore"].as_str().unwrap());
        assert!(page.contains(line), "{line} in {page}");
        database.shell(
            &place,
            &format!("echo '{}  {}' | sha256sum -c", part["sha256"].as_str().unwrap(), part["file"].as_str().unwrap()),
        );
        if name == "notes" {
            let restored = site.path().join("restored.db");
            database.shell(&place, &line.replace("DATABASE", &restored.display().to_string()));
            assert_eq!(sql(&restored, GUESTS), "ada bob", "{line}");
        } else {
            database.create(name);
            database.shell(&place, &line.replace("EMPTY_DATABASE", name));
            assert_eq!(database.rows(name), before, "{line}");
        }
    }
    // Each of them can be put back into a server of its own, too.
    let looked = site.refit(&["backup", "verify", "--restore", "--format", "json"]).expect(0).json();
    assert_eq!(looked["parts"][0]["tables"][0]["found"], 2, "{looked:#}");
    let left = docker(&["ps", "-aq", "--filter", &format!("label=refit.app={}", site.app)]);
    assert_eq!(left.trim(), "", "nothing is left of it");
    // With Refit, on what is no new machine: one part, and what was there is backed up first.
    database.psql("guestbook", "DELETE FROM entries");
    let entries = "check = \"SELECT count(*) FROM entries\"";
    site.edit_config("format = \"plain\"", &format!("format = \"plain\"\n{entries}"));
    sql(&local, "delete from guests");
    let ran = site.refit(&["backup", "restore", &set, "--part", "plain", "--yes", "--format", "json"]).expect(0).json();
    assert_eq!(database.rows("guestbook"), before);
    assert_eq!(sql(&local, GUESTS), "", "another part was left alone");
    assert_eq!(ran["checks"], json!(["the check of `plain` passed: 2"]));
    assert!(ran["before"].is_string(), "{ran:#}");
    let unknown = site.refit(&["backup", "restore", &set, "--part", "nothing", "--yes"]).expect(64).stderr;
    assert!(unknown.contains("has no part `nothing`"), "{unknown}");
}

fn copy(from: &Path, to: &Path) {
    let ran = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp runs");
    assert!(ran.success());
}
