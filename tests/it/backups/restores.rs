//! `refit backup restore`: with real databases, killed in the middle, on a new machine, and without Refit.

use super::*;

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
