//! Sets put back: SQLite, and what needs no database server. PostgreSQL is in `restore/docker_postgres.rs`.

use std::os::unix::fs::MetadataExt;

use sqlx::{Connection, SqliteConnection, sqlite::SqliteConnectOptions};

use super::*;

mod docker_postgres;

pub(super) async fn put_back(
    environment: &Environment,
    set: &Path,
    exec: Option<&dyn ContainerExec>,
    job: &Job,
) -> Result<RestoreReport, DataError> {
    let request = RestoreRequest { environment, set, parts: &[] };
    restore_set(request, Reach { containers: exec, scratch: None }, job).await
}

/// Every file below, with its content, owner and mode.
fn world(dir: &Path) -> Vec<(PathBuf, Vec<u8>, u32, u32)> {
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|f| f.is_file());
    files.sort();
    let look = |file: PathBuf| {
        let found = file.metadata().unwrap();
        (file.clone(), std::fs::read(&file).unwrap(), found.uid(), found.mode())
    };
    files.into_iter().map(look).collect()
}

async fn connect(path: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(true).busy_timeout(LONG);
    SqliteConnection::connect_with(&options).await.unwrap()
}

async fn run(path: &Path, sql: &'static str) {
    let mut connection = connect(path).await;
    sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

async fn answer(path: &Path, sql: &'static str) -> String {
    let mut connection = connect(path).await;
    let answer = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    answer
}

const MADE: &str = "CREATE TABLE guests (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT);
    INSERT INTO guests (name) VALUES ('Ada'), ('Grace'), ('Linus'); PRAGMA user_version = 7";
const CHANGED: &str = "DELETE FROM guests WHERE name = 'Ada'; UPDATE guests SET name = 'X' WHERE name = 'Grace';
    INSERT INTO guests (name) VALUES ('Eve'); CREATE TABLE added (x); PRAGMA user_version = 8";
const PRINT: &str =
    "SELECT (SELECT group_concat(id || name) FROM guests) || (SELECT group_concat(name || seq) FROM sqlite_sequence)
    || (SELECT group_concat(name) FROM sqlite_master) || (SELECT user_version FROM pragma_user_version)";
const AS_MADE: &str = "1Ada,2Grace,3Linusguests3guests,sqlite_sequence7";

/// A database in its own directory, backed up by `backup`, and changed since.
struct Scene {
    dir: tempfile::TempDir,
    environment: Environment,
    set: PathBuf,
}

impl Scene {
    async fn new(wal: bool, compression: Compression) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let path = data.join("odd 'name' ü.db");
        if wal {
            run(&path, "PRAGMA journal_mode = wal").await;
        }
        run(&path, MADE).await;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::chown(&path, Some(1234), Some(2345)).unwrap();
        let source = Backup { compression, ..backup("app", BackupSource::Sqlite { path }) };
        let environment = environment(vec![source.clone()]);
        let report = take(dir.path(), vec![source], None, &job()).await.unwrap();
        let set = dir.path().join(report.set.unwrap());
        let scene = Self { dir, environment, set };
        run(&scene.path(), CHANGED).await;
        scene
    }

    fn path(&self) -> PathBuf {
        self.data().join("odd 'name' ü.db")
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    async fn put_back(&self) -> Result<RestoreReport, DataError> {
        put_back(&self.environment, &self.set, None, &job()).await
    }
}

#[tokio::test]
async fn a_database_is_again_what_it_was_and_twice_is_the_same() {
    for (wal, compression) in [(false, Compression::Gzip), (true, Compression::Zstd), (true, Compression::None)] {
        let scene = Scene::new(wal, compression).await;
        assert_ne!(answer(&scene.path(), PRINT).await, AS_MADE);
        let mut before = Vec::new();
        for _ in 0..2 {
            let report = scene.put_back().await.unwrap();
            assert_eq!((report.restored[0].tables, report.restored[0].note.as_deref()), (1, None));
            assert_eq!((report.skipped.as_slice(), report.absent.as_slice()), ([].as_slice(), [].as_slice()));
            let world = world(&scene.data());
            assert_eq!(world.len(), 1, "nothing else is left: {world:?}");
            let found = scene.path().metadata().unwrap();
            assert_eq!((found.uid(), found.gid(), found.mode() & 0o777), (1234, 2345, 0o640));
            assert!(before.is_empty() || before == world);
            before = world;
            assert_eq!(answer(&scene.path(), PRINT).await, AS_MADE);
            let mode = if wal { "wal" } else { "delete" };
            assert_eq!(answer(&scene.path(), "PRAGMA journal_mode").await, mode);
        }
    }
}

#[tokio::test]
async fn a_wal_that_a_killed_app_left_is_not_taken_for_the_new_databases() {
    let scene = Scene::new(true, Compression::Gzip).await;
    let crash = "import os, signal, sqlite3, sys\ndb = sqlite3.connect(sys.argv[1])\n\
                 db.executescript(\"INSERT INTO guests (name) VALUES ('only in the WAL')\")\n\
                 os.kill(os.getpid(), signal.SIGKILL)";
    Command::new("python3").arg("-c").arg(crash).arg(scene.path()).status().unwrap();
    let beside: Vec<_> = world(&scene.data()).into_iter().map(|(path, ..)| path).collect();
    assert_eq!(beside.len(), 3, "{beside:?}");
    scene.put_back().await.unwrap();
    assert_eq!(world(&scene.data()).len(), 1);
    assert_eq!(answer(&scene.path(), PRINT).await, AS_MADE);
}

#[tokio::test]
async fn damage_is_found_before_anything_is_touched() {
    let scene = Scene::new(false, Compression::Gzip).await;
    let before = world(&scene.data());
    let file = scene.set.join("app.db.gz");
    let good = std::fs::read(&file).unwrap();
    let refused = async |expected: &str| {
        let error = scene.put_back().await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(error.left_data_alone());
        assert_eq!(world(&scene.data()), before);
    };
    for at in [0, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&file, bad).unwrap();
        refused("has another SHA-256 than recorded").await;
    }
    std::fs::remove_file(&file).unwrap();
    refused("`app.db.gz` is missing").await;
    std::fs::write(&file, &good).unwrap();
    std::fs::rename(scene.set.join(MANIFEST), scene.dir.path().join(MANIFEST)).unwrap();
    refused("No such file").await;
}

/// Writes the manifest anew, as a forger would, who knows how its checksum is made.
pub(super) fn forge(set: &Path, change: impl FnOnce(&mut Manifest)) {
    let mut manifest = read_manifest(set).unwrap();
    change(&mut manifest);
    // The file's ending says it: it may be another file now.
    manifest.parts.iter_mut().for_each(|part| part.compression = None);
    std::fs::remove_file(set.join(MANIFEST)).unwrap();
    manifest.write(set).unwrap();
}

#[tokio::test]
async fn what_unpacks_to_another_size_or_is_no_database_is_not_put_back() {
    let scene = Scene::new(true, Compression::Gzip).await;
    let real = read_manifest(&scene.set).unwrap().parts[0].raw_bytes;
    let path = scene.path();
    let now = answer(&path, PRINT).await;
    let refused = async |expected: &str| {
        let error = scene.put_back().await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(expected) && text.ends_with("; no data was changed"), "{text}");
        assert!(text.starts_with("`app` was not put back into SQLite database "), "{text}");
        assert!(error.left_data_alone());
        assert_eq!((world(&scene.data()).len(), answer(&path, PRINT).await), (1, now.clone()));
    };
    forge(&scene.set, |m| m.parts[0].raw_bytes = real - 1);
    refused("unpacks to more than the ").await;
    forge(&scene.set, |m| m.parts[0].raw_bytes = real + 1);
    refused(&format!("unpacks to {real} bytes and should to {}", real + 1)).await;
    let rubbish = b"not compressed at all";
    std::fs::write(scene.set.join("app.db.gz"), rubbish).unwrap();
    forge(&scene.set, |m| {
        m.parts[0].bytes = rubbish.len() as u64;
        m.parts[0].sha256 = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(rubbish));
    });
    refused("cannot be unpacked").await;
    std::fs::rename(scene.set.join("app.db.gz"), scene.set.join("app.db")).unwrap();
    forge(&scene.set, |m| {
        "app.db".clone_into(&mut m.parts[0].file);
        m.parts[0].raw_bytes = rubbish.len() as u64;
    });
    refused("file is not a database").await;
}

#[tokio::test]
async fn a_database_in_use_is_refused_and_stays_as_it_is() {
    let scene = Scene::new(true, Compression::Gzip).await;
    let path = scene.path();
    let now = answer(&path, PRINT).await;
    let mut user = connect(&path).await;
    sqlx::raw_sql("SELECT count(*) FROM guests").execute(&mut user).await.unwrap();
    let error = scene.put_back().await.unwrap_err();
    assert!(error.to_string().contains("another process has it open: stop that and try again"), "{error}");
    sqlx::raw_sql("INSERT INTO guests (name) VALUES ('goes on'); DELETE FROM guests WHERE name = 'goes on'")
        .execute(&mut user)
        .await
        .unwrap();
    user.close().await.unwrap();
    assert_eq!(world(&scene.data()).len(), 1);
    assert_eq!(answer(&path, "PRAGMA journal_mode").await, "wal");
    let after = answer(&path, "SELECT group_concat(id || name) FROM guests").await;
    assert!(now.starts_with(&after), "{now} {after}");
    scene.put_back().await.unwrap();
}

#[tokio::test]
async fn one_part_that_fails_keeps_all_as_they_are() {
    let scene = Scene::new(true, Compression::Gzip).await;
    let second = scene.data().join("second.db");
    run(&second, MADE).await;
    let mut backups = scene.environment.backups.clone();
    backups.push(backup("second", BackupSource::Sqlite { path: second.clone() }));
    let report = take(scene.dir.path(), backups.clone(), None, &job()).await.unwrap();
    let set = scene.dir.path().join(report.set.unwrap());
    run(&second, CHANGED).await;
    run(&second, "PRAGMA journal_mode = wal").await;
    run(&scene.path(), "INSERT INTO guests (name) VALUES ('Mallory')").await;
    let all = environment(backups);
    let (one, two) = (answer(&scene.path(), PRINT).await, answer(&second, PRINT).await);
    forge(&set, |m| m.parts[1].raw_bytes += 1);
    let error = put_back(&all, &set, None, &job()).await.unwrap_err();
    assert!(error.to_string().starts_with("`second` was not put back"), "{error}");
    assert_eq!((answer(&scene.path(), PRINT).await, answer(&second, PRINT).await), (one, two));
    assert_eq!(answer(&scene.path(), "PRAGMA journal_mode").await, "wal");
    assert_eq!(world(&scene.data()).len(), 2);

    forge(&set, |m| m.parts[1].raw_bytes -= 1);
    let report = put_back(&all, &set, None, &job()).await.unwrap();
    assert_eq!(report.restored.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["app", "second"]);
    assert_eq!(answer(&second, PRINT).await, AS_MADE);
}

#[tokio::test]
async fn what_a_killed_restore_left_is_found_and_a_missing_or_damaged_database_comes_back() {
    let scene = Scene::new(false, Compression::Gzip).await;
    let left = scene.data().join(".odd 'name' ü.db.refit-restore");
    std::fs::write(&left, "half").unwrap();
    std::fs::write(format!("{}-journal", left.display()), "half").unwrap();
    scene.put_back().await.unwrap();
    assert_eq!(world(&scene.data()).len(), 1);
    std::fs::write(&left, "half").unwrap();
    assert_eq!(discard_restore_leftovers(&scene.environment).unwrap(), [left]);

    std::fs::remove_file(scene.path()).unwrap();
    scene.put_back().await.unwrap();
    assert_eq!(answer(&scene.path(), PRINT).await, AS_MADE);

    let rubbish = "once a database, now words ".repeat(400);
    std::fs::write(scene.path(), &rubbish).unwrap();
    std::fs::write(format!("{}-wal", scene.path().display()), "its WAL").unwrap();
    let report = scene.put_back().await.unwrap();
    let note = report.restored[0].note.as_deref().unwrap();
    assert!(note.starts_with("the old database could not be opened (file is not a database)"), "{note}");
    let aside = note.rsplit(" is kept as ").next().unwrap();
    assert_eq!(std::fs::read_to_string(aside).unwrap(), rubbish);
    assert_eq!(answer(&scene.path(), PRINT).await, AS_MADE);
}

#[tokio::test]
async fn a_link_is_followed() {
    let scene = Scene::new(false, Compression::Gzip).await;
    let real = scene.dir.path().join("real.db");
    std::fs::rename(scene.path(), &real).unwrap();
    std::os::unix::fs::symlink(&real, scene.path()).unwrap();
    scene.put_back().await.unwrap();
    assert!(scene.path().is_symlink() && !real.is_symlink());
    assert_eq!(answer(&real, PRINT).await, AS_MADE);
}

#[tokio::test]
async fn a_full_disk_or_a_cancelled_job_changes_nothing() {
    let disk = SmallDisk::mount();
    let path = disk.path().join("app.db");
    let dir = tempfile::tempdir().unwrap();
    run(&path, MADE).await;
    run(&path, "CREATE TABLE noise AS SELECT randomblob(600000) AS x").await;
    let source = backup("app", BackupSource::Sqlite { path: path.clone() });
    let report = take(dir.path(), vec![source.clone()], None, &job()).await.unwrap();
    let set = dir.path().join(report.set.unwrap());
    let before = world(disk.path());
    let environment = environment(vec![source]);
    let error = put_back(&environment, &set, None, &job()).await.unwrap_err();
    assert!(error.to_string().contains("no space left beside it for the unpacked "), "{error}");
    assert_eq!(world(disk.path()), before);

    let job = job();
    job.cancel.cancel();
    let error = put_back(&environment, &set, None, &job).await.unwrap_err();
    assert!(matches!(error, DataError::Cancelled), "{error}");
    assert_eq!(world(disk.path()), before);
}

#[tokio::test]
async fn only_parts_with_a_source_are_put_back_and_only_into_their_environment() {
    let scene = Scene::new(false, Compression::Gzip).await;
    let with = |backups| RestoreRequest {
        environment: Box::leak(Box::new(environment(backups))),
        set: &scene.set,
        parts: &[],
    };
    let app = scene.environment.backups[0].clone();
    let error = restore_set(with(Vec::new()), Reach::default(), &job()).await.unwrap_err();
    assert!(error.to_string().contains("it holds nothing that the configuration has a `[[backup]]`"), "{error}");

    let other_kind = backup("app", postgres_in("db", "x", PostgresFormat::Plain));
    let error = restore_set(with(vec![other_kind]), Reach::default(), &job()).await.unwrap_err();
    assert!(matches!(error, DataError::Unfit { .. }), "{error}");

    forge(&scene.set, |m| {
        let again = Part { name: "gone".to_owned(), ..m.parts[0].clone() };
        let same = Part { name: "same".to_owned(), ..m.parts[0].clone() };
        m.parts.extend([again, same]);
    });
    let same = Backup { name: "same".parse().unwrap(), ..app.clone() };
    let report = restore_set(with(vec![app, same, plain("new")]), Reach::default(), &job()).await.unwrap();
    assert_eq!(report.restored.len(), 1);
    let skipped: Vec<_> = report.skipped.iter().map(|s| (s.name.as_str(), s.why.as_str())).collect();
    let no_source = "the configuration has no `[[backup]]` named `gone`";
    assert_eq!(skipped, [("gone", no_source), ("same", "`app` is of the same database")]);
    assert_eq!(report.absent, ["new"]);

    forge(&scene.set, |m| m.environment = "staging".parse().unwrap());
    let error = scene.put_back().await.unwrap_err();
    assert!(error.to_string().ends_with("it is of guestbook/staging, not of guestbook/production"), "{error}");
}

#[tokio::test]
async fn a_set_is_found_by_its_name_and_nothing_else_is() {
    let scene = Scene::new(false, Compression::Gzip).await;
    let name = scene.set.file_name().unwrap().to_str().unwrap().to_owned();
    let find = |name: &str| which_set(scene.dir.path(), &key(), name);
    assert_eq!(find(&name).unwrap().path, scene.set);
    assert_eq!(find(&format!("guestbook/production/{name}")).unwrap().path, scene.set);
    let up = format!("../production/{name}");
    let other = format!("guestbook/staging/{name}");
    for bad in ["", ".", "..", "/etc", "../../../etc/passwd", "2026-11-21_10-15-30", &up, &other, &format!("{name}/")] {
        let error = find(bad).unwrap_err();
        assert!(matches!(&error, DataError::NoSet { known, .. } if *known == [name.clone()]), "{bad}: {error}");
        assert!(error.to_string().ends_with(&format!("there are {name}")), "{error}");
    }
    std::os::unix::fs::symlink(&scene.set, scene.set.with_file_name("2026-11-21_10-15-30")).unwrap();
    assert!(matches!(find("2026-11-21_10-15-30"), Err(DataError::NoSet { .. })), "a link is no set");
    std::fs::remove_file(scene.set.join(MANIFEST)).unwrap();
    assert!(find(&name).unwrap_err().to_string().contains("it has no manifest"));
}
