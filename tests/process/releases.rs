//! Releases, tags and one-offs.

use std::process::{Command, Stdio};

use refit::{
    log::DeploymentLog,
    model::DeploymentId,
    redact::Redactor,
    runtime::{Job, Runtime, RuntimeError, SeenHelper},
    secret::Secret,
};
use tokio_util::sync::CancellationToken;

use crate::fixture::{Fixture, alive, job, runtime_in, until};

#[tokio::test]
async fn the_same_tree_arguments_and_command_are_built_once() {
    let mut fixture = Fixture::new("true");
    fixture.environment.build.run = Some("echo \"$EDITION $VCS_REF\" >built; date >>../../count".to_owned());
    fixture.environment.build.args.insert("EDITION".to_owned(), "full".to_owned());
    let count = || {
        let text = std::fs::read_to_string(fixture.environment_dir().join("count")).unwrap_or_default();
        text.lines().count()
    };
    let first = fixture.build(1, &job()).await.unwrap();
    assert!(!first.reused && fixture.runtime.has_artefact(&first.id).await.unwrap());
    let built = std::fs::read_to_string(format!("{}/built", first.name)).unwrap();
    assert_eq!(built, format!("full {}\n", fixture.commit));
    assert_eq!(std::fs::read_to_string(format!("{}/hello.txt", first.name)).unwrap(), "hello\n");
    assert!(fixture.build(1, &job()).await.unwrap().reused);
    let second = fixture.build(2, &job()).await.unwrap();
    assert!(second.reused && second.id == first.id);
    assert_eq!(count(), 1);

    fixture.environment.build.no_cache = true;
    let third = fixture.build(3, &job()).await.unwrap();
    assert!(!third.reused && third.id != first.id);
    fixture.environment.build.no_cache = false;
    fixture.environment.build.args.insert("EDITION".to_owned(), "small".to_owned());
    assert!(!fixture.build(4, &job()).await.unwrap().reused);
    fixture.commit(&[("hello.txt", "other\n")]);
    assert!(!fixture.build(5, &job()).await.unwrap().reused);

    assert!(fixture.runtime.remove_artefact(&first.id).await.unwrap() > 0);
    assert_eq!(fixture.runtime.remove_artefact(&first.id).await.unwrap(), 0);
    assert!(!fixture.runtime.has_artefact(&first.id).await.unwrap());
}

#[tokio::test]
async fn a_release_that_an_instance_uses_is_not_removed() {
    let fixture = Fixture::new("exec sleep 1000");
    let instance = fixture.prepared().await;
    let error = fixture.runtime.remove_artefact(&instance.id).await.unwrap_err().to_string();
    assert!(error.contains(&instance.name), "{error}");
    fixture.runtime.remove(&instance).await.unwrap();
    assert!(fixture.runtime.has_artefact(&instance.id).await.unwrap(), "removing an instance keeps the release");
    assert!(fixture.runtime.remove_artefact(&instance.id).await.unwrap() > 0);
}

#[tokio::test]
async fn a_build_that_fails_says_why_and_leaves_nothing() {
    let mut fixture = Fixture::new("true");
    fixture.environment.build.run = Some("echo compiling; echo 'no such symbol: hunter22' >&2; exit 7".to_owned());
    let redactor = Redactor::new([&Secret::new("hunter22")]);
    let job = Job { log: DeploymentLog::discard(redactor).section("build"), cancel: CancellationToken::new() };
    let error = fixture.build(1, &job).await.unwrap_err().to_string();
    assert!(error.contains("code 7") && error.contains("no such symbol: [masked]"), "{error}");
    assert!(!fixture.environment_dir().join("releases").exists());
    assert_eq!(std::fs::read_dir(fixture.environment_dir().join("scratch")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_cancelled_build_leaves_no_process() {
    let mut fixture = Fixture::new("true");
    let marked = format!("export MARK={}; (trap '' TERM; sleep 1000) & sleep 1000", fixture.mark);
    fixture.environment.build.run = Some(marked);
    let job = job();
    let cancel = async {
        until("it builds", || async { fixture.marked().len() >= 2 }).await;
        job.cancel.cancel();
    };
    let (result, ()) = tokio::join!(fixture.build(1, &job), cancel);
    assert!(matches!(result, Err(RuntimeError::Cancelled)), "{result:?}");
    assert_eq!(fixture.marked(), Vec::<i64>::new());
}

#[tokio::test]
async fn settings_without_effect_are_said_and_targets_refused() {
    let mut fixture = Fixture::new("true");
    fixture.environment.start.memory = Some(1 << 30);
    let job = job();
    fixture.build(1, &job).await.unwrap();
    assert!(job.log.tail().iter().any(|line| line.contains("does not enforce start.memory")));
    let (environment, commit, mirror) = (&fixture.environment, &fixture.commit, &fixture.mirror);
    let deployment = DeploymentId(1);
    let request = refit::runtime::BuildRequest { environment, deployment, commit, mirror, target: Some("test") };
    assert!(fixture.runtime.build(&request, &job).await.is_err());
}

#[tokio::test]
async fn a_tag_points_at_one_release_and_moves() {
    let mut fixture = Fixture::new("true");
    let first = fixture.build(1, &job()).await.unwrap().id;
    fixture.commit(&[("a", "b")]);
    let second = fixture.build(2, &job()).await.unwrap().id;
    let (runtime, environment) = (&fixture.runtime, &fixture.environment);
    assert_eq!(runtime.tagged(environment, "rollback").await.unwrap(), None);
    for id in [&first, &first, &second] {
        runtime.tag(environment, id, "rollback").await.unwrap();
        assert_eq!(runtime.tagged(environment, "rollback").await.unwrap().as_ref(), Some(id));
    }
    assert!(fixture.environment_dir().join("tags/rollback/a").is_file());
    runtime.remove_artefact(&second).await.unwrap();
    assert_eq!(runtime.tagged(environment, "rollback").await.unwrap(), None);
    for _ in 0..2 {
        runtime.untag(environment, "rollback").await.unwrap();
    }
    assert!(runtime.tag(environment, &first, "../up").await.is_err());
    assert!(runtime.tag(environment, &second, "gone").await.is_err());
}

#[tokio::test]
async fn a_test_runs_in_a_copy_that_is_thrown_away() {
    let mut fixture = Fixture::new("true");
    fixture.secrets.insert("TOKEN".to_owned(), Secret::new("hunter22"));
    let run = "cat hello.txt; echo version 5; echo noise >&2; pwd >where; echo \"$TOKEN\" >report; exit 9";
    let mut one_off = fixture.one_off("test-unit", run);
    one_off.collect = Some("report");
    let job = job();
    let result = fixture.runtime.run_once(&one_off, &job).await.unwrap();
    assert_eq!(result.code, 9);
    assert_eq!(result.stdout_tail, ["hello", "version 5"]);
    assert_eq!(result.collected.as_deref(), Some(&b"hunter22\n"[..]));
    assert!(job.log.tail().contains(&"noise".to_owned()));
    assert_eq!(std::fs::read_dir(fixture.environment_dir().join("scratch")).unwrap().count(), 0);
}

#[tokio::test]
async fn nothing_outside_the_directory_is_collected() {
    let fixture = Fixture::new("true");
    let run = "ln -s /etc/passwd link; mkfifo pipe; mkdir sub; echo x >sub/file; ln -s sub/file inside";
    for (path, expected) in [
        ("link", None),
        ("../../../../../../../../etc/passwd", None),
        ("/etc/passwd", None),
        ("pipe", None),
        ("sub", None),
        ("inside", Some(Some(b"x\n".to_vec()))),
        ("missing", Some(None)),
    ] {
        let mut one_off = fixture.one_off("test-unit", run);
        one_off.collect = Some(path);
        let collected = fixture.runtime.run_once(&one_off, &job()).await.ok().map(|result| result.collected);
        assert_eq!(collected, expected, "{path}");
    }
}

#[tokio::test]
async fn a_migration_runs_in_the_release() {
    let fixture = Fixture::new("true");
    let artefact = fixture.build(1, &job()).await.unwrap();
    let mut one_off = fixture.one_off("migrate", "test -f hello.txt && touch migrated");
    one_off.tree = None;
    one_off.artefact = &artefact.id;
    assert_eq!(fixture.runtime.run_once(&one_off, &job()).await.unwrap().code, 0);
    assert!(std::path::Path::new(&artefact.name).join("migrated").exists());
    one_off.artefact = "guestbook/production/7-0123456789";
    let missing = fixture.runtime.run_once(&one_off, &job()).await;
    assert!(matches!(missing, Err(RuntimeError::Missing { .. })), "{missing:?}");
}

/// Plays both parts: run by itself it is the test, run with `REFIT_TEST_DAEMON` it is the daemon that is to be killed.
#[tokio::test]
async fn what_a_killed_daemon_left_is_swept() {
    let fixture = Fixture::new("true");
    if let Some(dir) = std::env::var_os("REFIT_TEST_DAEMON") {
        let one_off = fixture.one_off("test-unit", "(trap '' TERM; sleep 1000) & touch started; sleep 1000");
        let result = runtime_in(dir.as_ref()).run_once(&one_off, &job()).await;
        panic!("it was not killed: {result:?}");
    }
    let mut daemon = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "releases::what_a_killed_daemon_left_is_swept"])
        .env("REFIT_TEST_DAEMON", fixture.dir.path())
        .env("TMPDIR", fixture.dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let scratch = fixture.environment_dir().join("scratch");
    until("it works", || async { scratch.join("1-test-unit/started").exists() }).await;
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    let record = std::fs::read_to_string(scratch.join("1-test-unit.pid")).unwrap();
    let pid = record.lines().nth(1).and_then(|stat| stat.split(' ').next()?.parse().ok()).unwrap();
    assert!(alive(pid), "it outlives the daemon");

    let (runtime, key) = (&fixture.runtime, &fixture.environment.key);
    assert_eq!(runtime.sweep(key, DeploymentId(2)).await.unwrap(), Vec::<String>::new());
    assert!(alive(pid), "another deployment's");
    let helper = SeenHelper { name: "1-test-unit".to_owned(), deployment: DeploymentId(1) };
    assert_eq!(runtime.sight(key).await.unwrap().helpers, [helper], "its directory and its record are one");
    assert_eq!(runtime.sweep(key, DeploymentId(1)).await.unwrap(), ["1-test-unit"]);
    assert!(!alive(pid));
    assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0);
    assert_eq!(runtime.sweep(key, DeploymentId(1)).await.unwrap(), Vec::<String>::new());
}
