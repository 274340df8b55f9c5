//! Fetching, and repair of what killed fetches and bad disks leave.

use std::{
    fs::{self, File},
    path::Path,
    time::{Duration, SystemTime},
};

use super::{super::GitErrorKind, LONG, World, branch, job};

/// Every file below a directory.
fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found
}

fn make_old(path: &Path) {
    let hours_ago = SystemTime::now() - Duration::from_secs(7200);
    File::options().write(true).open(path).unwrap().set_modified(hours_ago).unwrap();
}

#[tokio::test]
async fn follows_a_branch_through_pushes_and_force_pushes() {
    let (world, job) = (World::new(), job());
    let (mirror, main) = (world.mirror(), branch("main"));
    let first = world.push("main", "a", "1");
    assert_eq!(mirror.fetch_branch(&main, LONG, &job).await, Ok(Some(first.clone())));
    assert_eq!(mirror.fetch_branch(&main, LONG, &job).await, Ok(Some(first.clone())), "nothing changed");
    let second = world.push("main", "a", "2");
    assert_eq!(mirror.fetch_branch(&main, LONG, &job).await, Ok(Some(second.clone())));
    world.git(&["reset", "-q", "--hard", first.as_str()]);
    let forced = world.push("main", "b", "3");
    assert_eq!(mirror.fetch_branch(&main, LONG, &job).await, Ok(Some(forced.clone())));
    assert_eq!(mirror.resolve("main"), Ok(forced));
    assert!(mirror.has_commit(&second), "what a forced push left behind stays readable");
}

#[tokio::test]
async fn a_deleted_branch_is_gone_here_too() {
    let (world, job) = (World::new(), job());
    let mirror = world.mirror();
    assert_eq!(mirror.fetch_branch(&branch("none"), LONG, &job).await, Ok(None), "an empty remote");
    world.push("main", "a", "1");
    world.push("gone", "a", "2");
    assert!(mirror.fetch_branch(&branch("gone"), LONG, &job).await.unwrap().is_some());
    world.git(&["push", "-q", "origin", ":gone"]);
    assert_eq!(mirror.fetch_branch(&branch("gone"), LONG, &job).await, Ok(None));
    assert_eq!(mirror.resolve("gone").unwrap_err().kind, GitErrorKind::Missing);
    assert_eq!(mirror.remote_tip(&branch("gone"), LONG).await, Ok(None));
}

#[tokio::test]
async fn a_branch_may_take_the_place_of_a_directory_of_branches() {
    let (world, job) = (World::new(), job());
    let mirror = world.mirror();
    world.push("a", "a", "1");
    mirror.fetch_branch(&branch("a"), LONG, &job).await.unwrap();
    world.git(&["push", "-q", "origin", ":a"]);
    let inner = world.push("a/b", "a", "2");
    // A lock on the way, to be cleared in the middle of the repair.
    File::create(mirror.dir.join("packed-refs.lock")).unwrap();
    make_old(&mirror.dir.join("packed-refs.lock"));
    assert_eq!(mirror.fetch_branch(&branch("a/b"), LONG, &job).await, Ok(Some(inner)));
    assert!(mirror.resolve("a").is_err());
}

#[tokio::test]
async fn locks_of_a_killed_fetch_are_cleared() {
    let (world, job) = (World::new(), job());
    let mirror = world.mirror();
    world.push("main", "a", "1");
    mirror.fetch_branch(&branch("main"), LONG, &job).await.unwrap();
    let tip = world.push("main", "a", "2");
    let lock = mirror.dir.join("refs/remotes/origin/main.lock");
    let partial = mirror.dir.join("objects/pack/tmp_pack_dead");
    for left in [&lock, &partial] {
        File::create(left).unwrap();
        make_old(left);
    }
    assert_eq!(mirror.fetch_branch(&branch("main"), LONG, &job).await, Ok(Some(tip)));
    assert!(!lock.exists() && !partial.exists());
}

#[tokio::test]
async fn a_lock_that_is_let_go_of_is_waited_for() {
    let (world, job) = (World::new(), job());
    let mirror = world.mirror();
    world.push("main", "a", "1");
    mirror.fetch_branch(&branch("main"), LONG, &job).await.unwrap();
    let tip = world.push("main", "a", "2");
    // Its time of change is in the future, so that it never looks old.
    let lock = mirror.dir.join("refs/remotes/origin/main.lock");
    let file = File::create(&lock).unwrap();
    file.set_modified(SystemTime::now() + Duration::from_secs(3600)).unwrap();
    let holder = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        fs::remove_file(lock)
    });
    assert_eq!(mirror.fetch_branch(&branch("main"), LONG, &job).await, Ok(Some(tip)));
    assert!(holder.await.unwrap().is_ok(), "the holder's lock was taken away from it");
}

#[tokio::test]
async fn a_damaged_mirror_is_made_anew() {
    let (world, job) = (World::new(), job());
    let (mirror, main) = (world.mirror(), branch("main"));
    let tip = world.push("main", "a", "1");
    let dir = mirror.dir.clone();
    let damages: [(&str, &dyn Fn()); 6] = [
        ("empty packs", &|| {
            for pack in files(&dir.join("objects/pack")) {
                fs::remove_file(&pack).unwrap();
                fs::write(&pack, "").unwrap();
            }
        }),
        ("no packs", &|| fs::remove_dir_all(dir.join("objects/pack")).unwrap()),
        ("no HEAD", &|| fs::remove_file(dir.join("HEAD")).unwrap()),
        ("a HEAD of nonsense", &|| fs::write(dir.join("HEAD"), "\0\0\0").unwrap()),
        ("a ref of zeros", &|| fs::write(dir.join("refs/remotes/origin/main"), "\0\0\0\0").unwrap()),
        ("a config of nonsense", &|| fs::write(dir.join("config"), "[[[").unwrap()),
    ];
    for (name, damage) in damages {
        assert_eq!(mirror.fetch_branch(&main, LONG, &job).await, Ok(Some(tip.clone())), "before {name}");
        damage();
        assert_eq!(mirror.fetch_branch(&main, LONG, &job).await, Ok(Some(tip.clone())), "after {name}");
        assert_eq!(mirror.read_file(&tip, "a"), Ok(Some(b"1".to_vec())), "after {name}");
    }
    assert!(!world.path("mirrors/app.git.new").exists());
}

#[tokio::test]
async fn damage_that_a_reader_finds_is_repaired_by_the_next_fetch() {
    let (world, job) = (World::new(), job());
    let (mirror, main) = (world.mirror(), branch("main"));
    let tip = world.push("main", "a", "precious");
    mirror.fetch_branch(&main, LONG, &job).await.unwrap();
    // Only the file's blob is lost, which no fetch looks at.
    for pack in files(&mirror.dir.join("objects/pack")) {
        if pack.extension().is_some_and(|e| e == "pack") {
            let moved = world.path("moved.pack");
            fs::rename(&pack, &moved).unwrap();
            let script = format!("git --git-dir={} unpack-objects -q < {}", mirror.dir.display(), moved.display());
            assert!(std::process::Command::new("sh").args(["-c", &script]).status().unwrap().success());
        }
        let _ = fs::remove_file(&pack);
    }
    let blob = world.git(&["rev-parse", "HEAD:a"]);
    fs::remove_file(mirror.dir.join("objects").join(&blob[..2]).join(&blob[2..])).unwrap();
    assert_eq!(mirror.fetch_branch(&main, LONG, &job).await, Ok(Some(tip.clone())));
    let error = mirror.export(&tip, &world.path("out")).unwrap_err();
    assert_eq!(error.kind, GitErrorKind::Damaged);
    assert!(!world.path("out").exists() && !world.path("out.partial").exists());
    assert_eq!(mirror.fetch_branch(&main, LONG, &job).await, Ok(Some(tip.clone())));
    mirror.export(&tip, &world.path("out")).unwrap();
    assert_eq!(fs::read(world.path("out/a")).unwrap(), b"precious");
}

#[tokio::test]
async fn a_directory_of_somebody_else_is_left_alone() {
    let (world, job) = (World::new(), job());
    let mirror = world.mirror();
    world.push("main", "a", "1");
    fs::create_dir_all(&mirror.dir).unwrap();
    fs::write(mirror.dir.join("thesis.txt"), "years").unwrap();
    let error = mirror.fetch_branch(&branch("main"), LONG, &job).await.unwrap_err();
    assert_eq!(error.kind, GitErrorKind::Host, "{error}");
    assert_eq!(fs::read_to_string(mirror.dir.join("thesis.txt")).unwrap(), "years");
}

#[tokio::test]
async fn another_remote_means_another_mirror() {
    let (one, two, job) = (World::new(), World::new(), job());
    one.push("main", "a", "1");
    let theirs = two.push("main", "a", "2");
    let mut mirror = one.mirror();
    mirror.fetch_branch(&branch("main"), LONG, &job).await.unwrap();
    one.push("left-over", "a", "3");
    mirror.fetch_branch(&branch("left-over"), LONG, &job).await.unwrap();
    mirror.remote = two.path("remote.git").display().to_string();
    assert_eq!(mirror.fetch_branch(&branch("main"), LONG, &job).await, Ok(Some(theirs)));
    assert!(mirror.resolve("left-over").is_err());
}

#[tokio::test]
async fn a_commit_is_fetched_though_no_branch_leads_to_it() {
    let (world, job) = (World::new(), job());
    let mirror = world.mirror();
    world.push("main", "a", "1");
    let forced_away = world.push("main", "a", "2");
    world.git(&["reset", "-q", "--hard", "HEAD~1"]);
    world.push("main", "a", "3");
    mirror.fetch_commit(&forced_away, LONG, &job).await.unwrap();
    assert_eq!(mirror.read_file(&forced_away, "a"), Ok(Some(b"2".to_vec())));
    let unknown = "0123456789012345678901234567890123456789".parse().unwrap();
    let error = mirror.fetch_commit(&unknown, LONG, &job).await.unwrap_err();
    assert_eq!(error.kind, GitErrorKind::Missing);
    assert!(error.why.contains("push a branch or tag"), "{error}");
    // With the commit here, the remote is not asked.
    fs::rename(world.path("remote.git"), world.path("away.git")).unwrap();
    mirror.fetch_commit(&forced_away, LONG, &job).await.unwrap();
}

#[tokio::test]
async fn several_fetches_at_once_take_turns() {
    let (world, job) = (World::new(), job());
    let mirror = world.mirror();
    let tip = world.push("main", "a", "1");
    let other = world.push("other", "a", "2");
    let (main_branch, other_branch) = (branch("main"), branch("other"));
    let (a, b, c) = tokio::join!(
        mirror.fetch_branch(&main_branch, LONG, &job),
        mirror.fetch_branch(&other_branch, LONG, &job),
        mirror.fetch_all(LONG, &job),
    );
    assert_eq!((a, b, c), (Ok(Some(tip)), Ok(Some(other)), Ok(())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reading_goes_on_while_packs_are_fetched_and_joined() {
    let (world, job) = (World::new(), job());
    let (mirror, main) = (world.mirror(), branch("main"));
    world.write("dir/keep", "the same");
    let first = world.push("main", "a", "0");
    mirror.fetch_branch(&main, LONG, &job).await.unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let reader = tokio::task::spawn_blocking({
        let (mirror, first, stop, out) = (mirror.clone(), first.clone(), stop.clone(), world.path("out"));
        move || {
            let mut rounds = 0;
            while !stop.is_cancelled() || rounds == 0 {
                mirror.export(&first, &out).unwrap();
                assert_eq!(fs::read_to_string(out.join("dir/keep")).unwrap(), "the same");
                fs::remove_dir_all(&out).unwrap();
                rounds += 1;
            }
        }
    });
    let mut commits = vec![first];
    for n in 1..60 {
        commits.push(world.push("main", "a", &n.to_string()));
        mirror.fetch_branch(&main, LONG, &job).await.unwrap();
    }
    stop.cancel();
    reader.await.unwrap();
    let packs = files(&mirror.dir.join("objects/pack")).iter().filter(|p| p.extension().unwrap() == "pack").count();
    assert!(packs <= 51, "{packs} packs");
    assert!(commits.iter().all(|c| mirror.has_commit(c)));
}
