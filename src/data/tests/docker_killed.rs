//! Restores of directories and volumes whose process is killed: while the new content grows, when it is ready and nothing is exchanged yet, in the middle of the
//! exchange, and at moments that nobody chose. Then the daemon's look at what is left, and the restore once more. This test runs itself as
//! the process that is killed.

use std::{
    collections::BTreeMap,
    os::unix::process::ExitStatusExt,
    process::{Child, Stdio},
    time::Instant,
};

use super::{
    docker_mysql::mysql_in,
    postgres::{Container, engine},
    trees::{files, names, write},
    volumes::Volume,
    *,
};
use crate::config::BackupCommand;

/// In the environment of the process that is to be killed: a volume or a directory, and the set; then the parts.
const ROLE: &str = "REFIT_TEST_KILLED_TREES";

const THIS: &str =
    "data::tests::docker_killed::killed_at_any_moment_files_and_volumes_are_old_or_new_and_nothing_is_left";

const FILES: usize = 600;

type Content = BTreeMap<PathBuf, Vec<u8>>;

fn content(root: &Path) -> Content {
    let mut all = Content::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).unwrap().flatten() {
            let path = entry.path();
            if entry.file_type().unwrap().is_dir() {
                dirs.push(path);
            } else {
                all.insert(path.strip_prefix(root).unwrap().to_owned(), std::fs::read(&path).unwrap());
            }
        }
    }
    all
}

fn fill(root: &Path, word: &str, many: usize) {
    for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { std::fs::remove_dir_all(path).unwrap() } else { std::fs::remove_file(path).unwrap() }
    }
    (0..many).for_each(|n| write(&root.join(format!("{word}-{n}")), &format!("{word} {n}")));
    write(&root.join("deep/er/both"), word);
}

/// Is put back when all else is ready, and kills who does it.
fn deadly() -> Backup {
    let source = BackupCommand {
        dump: "echo nothing".to_owned(),
        restore: "kill -9 $PPID".to_owned(),
        rehearse: None,
        container: None,
        env: BTreeMap::new(),
        secrets: BTreeMap::new(),
    };
    backup("deadly", BackupSource::Command(Box::new(source)))
}

fn sources(place: &str) -> Environment {
    let tree = match place.starts_with('/') {
        true => files("uploads", Path::new(place), &[]),
        false => backup("uploads", BackupSource::Volume { volume: place.to_owned(), exclude: PathRules::default() }),
    };
    environment(vec![tree, deadly()])
}

async fn put_back(place: &str, set: &Path, parts: &[&str]) -> Result<RestoreReport, DataError> {
    let (environment, engine) = (sources(place), engine());
    let parts: Vec<_> = parts.iter().map(|part| part.parse().unwrap()).collect();
    let request = RestoreRequest { environment: &environment, set, parts: &parts };
    restore_set(request, Reach { containers: Some(&engine), scratch: Some(&engine) }, &job()).await
}

async fn be_killed(role: &str) {
    let words: Vec<&str> = role.split('|').collect();
    put_back(words[0], Path::new(words[1]), &words[2..]).await.unwrap();
}

async fn set_of(environment: &Environment, backups_dir: &Path) -> PathBuf {
    let (engine, context) = (engine(), SetContext::default());
    let reach = Reach { containers: Some(&engine), scratch: Some(&engine) };
    let request = SetRequest {
        environment,
        parts: &[],
        deployment: None,
        commit: None,
        reason: "test",
        backups_dir,
        context: &context,
    };
    let report = create_set(request, reach, &job()).await.unwrap();
    assert_eq!(report.failures, []);
    backups_dir.join(report.set.unwrap())
}

fn start(place: &str, set: &Path, parts: &[&str]) -> Child {
    let role = [&[place, set.to_str().unwrap()], parts].concat().join("|");
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", THIS])
        .env(ROLE, role)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// What was seen of a process that was killed as soon as `when` held, or ended before.
fn kill_when(mut child: Child, mut when: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.signal() == Some(9);
        }
        if when() {
            child.kill().unwrap();
            return child.wait().unwrap().signal() == Some(9);
        }
        assert!(begun.elapsed() < LONG, "it neither ends nor comes to the point");
        std::thread::sleep(Duration::from_micros(200));
    }
}

async fn sweep(environment: &Environment, backups: &Path) -> Vec<String> {
    let engine = engine();
    sweep_leftovers(environment, backups, Reach { containers: Some(&engine), scratch: Some(&engine) }, &job()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_files_and_volumes_are_old_or_new_and_nothing_is_left() {
    if let Ok(role) = std::env::var(ROLE) {
        return be_killed(&role).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let volume = Volume::make();
    let path = dir.path().join("data/uploads");
    let staged = |root: &Path| (root.parent().unwrap().join(".uploads.refit-restore"), root.join(".refit-restore"));
    for (place, root) in [(path.display().to_string(), path.clone()), (volume.0.clone(), volume.place())] {
        fill(&root, "new", FILES);
        let new = content(&root);
        let all = sources(&place);
        let set = set_of(&all, dir.path()).await;
        fill(&root, "old", 200);
        let old = content(&root);
        let (beside, within) = staged(&root);
        let grows = || names_of(&beside) > 100 || names_of(&within.join("new")) > 100;
        let moves = || within.join("out").exists() || within.join("in").exists();
        let begun = Instant::now();
        put_back(&place, &set, &["uploads"]).await.unwrap();
        let took = begun.elapsed();
        assert!(content(&root) == new, "{place}");

        let mut seen = Vec::new();
        for moment in 0..9_u32 {
            fill(&root, "old", 200);
            let killed = match moment {
                0 => kill_when(start(&place, &set, &["uploads"]), grows),
                1 => kill_when(start(&place, &set, &["uploads", "deadly"]), || false),
                2 | 3 => kill_when(start(&place, &set, &["uploads"]), moves),
                n => {
                    let begun = Instant::now();
                    kill_when(start(&place, &set, &["uploads"]), || begun.elapsed() > took * (n - 3) / 4)
                }
            };
            assert!(killed || moment > 1, "{place}: it was not killed at {moment}");
            // A user's app would see it like this; the daemon that starts next ends or removes it.
            sweep(&all, dir.path()).await;
            let after = content(&root);
            assert!(after == old || after == new, "{place}, killed at {moment}: {} files", after.len());
            assert!(moment > 1 || after == old, "{place}: nothing was exchanged yet at {moment}");
            assert!(!beside.exists() && !within.exists(), "{place}, killed at {moment}: something is left");
            seen.push(after == new);
            if moment < 4 {
                put_back(&place, &set, &["uploads"]).await.unwrap();
                assert!(content(&root) == new, "{place}: once more, after {moment}");
            }
        }
        assert!(seen.contains(&true) && seen.contains(&false), "{place}: {seen:?}");
    }
    assert_eq!(names(path.parent().unwrap()), ["uploads"]);
}

fn names_of(dir: &Path) -> usize {
    std::fs::read_dir(dir).map_or(0, Iterator::count)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_killed_processes_left_goes_and_what_is_in_use_stays() {
    let dir = tempfile::tempdir().unwrap();
    let db = Container::mariadb().await;
    db.sql("mysql", "CREATE DATABASE shop; CREATE DATABASE shop__refit_new; CREATE DATABASE other__refit_new");
    db.sql("shop", "CREATE TABLE t AS SELECT 1 AS x");
    let uploads = dir.path().join("uploads");
    write(&uploads.join("a"), "kept");
    write(&dir.path().join(".uploads.refit-restore/a"), "half");
    let volume = Volume::make();
    write(&volume.place().join("a"), "kept");
    write(&volume.place().join(".refit-restore/new/a"), "half");
    let key = key();
    let set = dir.path().join(format!("{}/{}/2026-02-03_04-05-06", key.app, key.environment));
    write(&set.join(".uploads.look/a"), "a copy");
    write(&set.join(".notes.db.look"), "a copy");
    write(&set.join("notes.db.gz"), "a part");
    let mut all = environment(vec![files("uploads", &uploads, &[]), volume.source(&[])]);
    all.backups[1].name = "volume".parse().unwrap();
    all.backups.push(backup("shop", mysql_in(&db.0, "shop")));
    all.backups.push(backup("away", mysql_in("refit-no-such-container", "shop")));

    // Of a process that is gone, of this one, and of somebody else's app.
    let mine = format!("refit-data-test-sweep-{}", std::process::id());
    let (app, environment) = (key.app.to_string(), key.environment.to_string());
    let start = std::fs::read_to_string("/proc/self/stat").unwrap();
    let start = start.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(19).unwrap().to_owned();
    let living = format!("{}.{start}", std::process::id());
    let label = |app: &str, owner: &str| {
        let labels = [("app", app), ("environment", environment.as_str()), ("role", "scratch"), ("owner", owner)];
        labels.map(|(name, value)| format!("--label=refit.{name}={value}"))
    };
    let made: Vec<String> = [(app.as_str(), "1.1"), (app.as_str(), living.as_str()), ("another-app", "1.1")]
        .iter()
        .enumerate()
        .map(|(n, (app, owner))| {
            let name = format!("{mine}-{n}");
            let out = Command::new("docker")
                .args(["create", "--name", &name])
                .args(label(app, owner))
                .args(["refit-test/busybox:1", "true"])
                .output()
                .unwrap();
            assert!(out.status.success(), "{out:?}");
            name
        })
        .collect();
    let exists = |name: &String| Command::new("docker").args(["inspect", name]).output().unwrap().status.success();

    let said = sweep(&all, dir.path()).await;
    let there: Vec<bool> = made.iter().map(exists).collect();
    Command::new("docker").args(["rm", "--force"]).args(&made).output().unwrap();
    assert_eq!(there, [false, true, true], "{said:#?}");
    assert_eq!(db.databases(), "other__refit_new,shop");
    assert_eq!(db.sql("shop", "SELECT COUNT(*) FROM t"), "1");
    assert_eq!((names(&uploads), names(&volume.place())), (vec!["a".to_owned()], vec!["a".to_owned()]));
    assert_eq!(names(&set), ["notes.db.gz"]);
    assert!(!dir.path().join(".uploads.refit-restore").exists());
    assert!(said.iter().any(|line| line.contains(&format!("removed container {mine}-0"))), "{said:#?}");
    assert!(said.iter().any(|line| line.contains("beside `shop`")), "{said:#?}");
    assert_eq!(sweep(&all, dir.path()).await, [""; 0], "there is nothing left to do");
}
