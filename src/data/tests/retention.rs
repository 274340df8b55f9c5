use super::*;

/// Makes sets by name; `parts` in each, `missing` recorded as failed.
fn make(dir: &Path, name: &str, parts: &[&str], missing: &[&str]) {
    let set = dir.join("guestbook/production").join(name);
    std::fs::create_dir_all(&set).unwrap();
    let part = |name: &str| {
        std::fs::write(set.join(name), "0123456789").unwrap();
        Part {
            name: name.to_owned(),
            kind: PartKind::Postgres,
            format: PartFormat::Plain,
            source: PartSource::default(),
            file: name.to_owned(),
            sha256: String::new(),
            bytes: 10,
            raw_bytes: 10,
            compression: None,
            tables: Vec::new(),
            tree: None,
            roles: None,
            tool: String::new(),
            server: None,
            restore: String::new(),
            duration_ms: 0,
        }
    };
    let failure = |name: &&str| PartFailure { name: (*name).to_owned(), error: String::new(), required: false };
    let report = BackupReport {
        parts: parts.iter().map(|n| part(n)).collect(),
        failures: missing.iter().map(failure).collect(),
        ..BackupReport::default()
    };
    let environment = environment(Vec::new());
    let context = SetContext::default();
    let request = SetRequest {
        environment: &environment,
        parts: &[],
        deployment: None,
        commit: None,
        reason: "test",
        backups_dir: dir,
        context: &context,
    };
    Manifest::new(&request, Timestamp::now(), &report).write(&set).unwrap();
}

fn left(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        set_dirs(dir).iter().map(|p| p.file_name().unwrap().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn now() -> Timestamp {
    "2026-11-21T12:00:00Z".parse().unwrap()
}

#[test]
fn a_set_goes_only_if_it_is_surplus_and_old() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["2026-11-01_00-00-00", "2026-11-02_00-00-00", "2026-11-20_00-00-00", "2026-11-21_00-00-00"];
    for name in names {
        make(dir.path(), name, &["db"], &[]);
    }
    let run = |keep, keep_days, protect: &[String]| {
        prune(dir.path(), &key(), &Retention { keep, keep_days }, now(), protect).unwrap()
    };
    assert_eq!(run(4, 1, &[]).removed, [""; 0], "not surplus");
    assert_eq!(run(0, 30, &[]).removed, [""; 0], "not old");
    let pruned = run(1, 7, &["guestbook/production/2026-11-02_00-00-00".to_owned()]);
    assert_eq!((pruned.removed, pruned.kept), (vec![names[0].to_owned()], 3));
    assert!(pruned.bytes > 10);
    assert_eq!(run(0, 0, &[names[1].to_owned()]).removed, [names[2]]);
    assert_eq!(run(0, 0, &[]).removed, [names[1]]);
    assert_eq!(left(dir.path()), [names[3]], "the newest stays, whatever the rule says");
}

#[test]
fn the_last_good_copy_of_a_part_stays() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), "2026-10-01_00-00-00", &["db", "files", "gone"], &[]);
    make(dir.path(), "2026-10-02_00-00-00", &["db", "files"], &[]);
    for day in 3..9 {
        make(dir.path(), &format!("2026-10-0{day}_00-00-00"), &["files"], &["db"]);
    }
    prune(dir.path(), &key(), &Retention { keep: 1, keep_days: 1 }, now(), &[]).unwrap();
    assert_eq!(left(dir.path()), ["2026-10-02_00-00-00", "2026-10-08_00-00-00"]);
}

#[test]
fn remains_go_after_a_day_and_strangers_stay() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("guestbook/production");
    make(dir.path(), "2026-10-01_00-00-00", &["db"], &[]);
    for name in ["2026-11-20_11-59-59", "2026-11-20_12-00-01", "2026-10-01_00-00-00.bak", "notes"] {
        std::fs::create_dir_all(home.join(name)).unwrap();
        std::fs::write(home.join(name).join("db.sql.gz"), "half").unwrap();
    }
    std::fs::create_dir(home.join("2026-09-01_00-00-00")).unwrap();
    std::fs::write(home.join("2026-09-01_00-00-00").join(MANIFEST), r#"{"version": 99}"#).unwrap();
    std::fs::write(home.join("2026-09-02_00-00-00"), "a file").unwrap();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("precious"), "x").unwrap();
    std::os::unix::fs::symlink(outside.path(), home.join("2026-09-03_00-00-00")).unwrap();
    // A link inside of what is removed is removed itself, not followed.
    std::os::unix::fs::symlink(outside.path(), home.join("2026-11-20_11-59-59").join("link")).unwrap();

    let states: Vec<_> = list(dir.path(), &key()).unwrap().into_iter().map(|s| (s.name, s.state)).collect();
    assert_eq!(states[0], ("2026-11-20_12-00-01".to_owned(), SetState::Incomplete));
    assert_eq!(states[2], ("2026-10-01_00-00-00".to_owned(), SetState::Complete));
    assert!(matches!(&states[3].1, SetState::Unreadable(why) if why.contains("version 99")), "{states:?}");
    assert_eq!(states.len(), 4);

    let pruned = prune(dir.path(), &key(), &Retention { keep: 0, keep_days: 0 }, now(), &[]).unwrap();
    assert_eq!((pruned.removed, pruned.kept), (vec!["2026-11-20_11-59-59".to_owned()], 3));
    assert_eq!(left(dir.path()).len(), 7);
    assert!(outside.path().join("precious").exists());
}

#[test]
fn no_backups_yet_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(list(dir.path(), &key()).unwrap(), []);
    let pruned = prune(dir.path(), &key(), &Retention { keep: 1, keep_days: 1 }, now(), &[]).unwrap();
    assert_eq!(pruned, Pruned::default());
}
