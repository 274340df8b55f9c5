//! `refit backup`: sets, what keeps them, and trying them out.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use serde_json::{Value, json};

use crate::{
    guestbook::setup::Database,
    rollback::{GUESTS, is_live, live, sql, with_guests},
    support::{Site, docker, poll, telegram::BotApi},
};

mod restores;

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
