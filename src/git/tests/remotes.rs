//! Remotes that are away, hang, or want a password: what is said, and that nothing asks or waits for ever.

use std::{
    io::{Read, Write},
    net::TcpListener,
    time::Duration,
};

use super::{
    super::{GitErrorKind, Mirror},
    LONG, World, branch, job,
};

/// Answers every request in the same way until the test ends; returns its URL.
fn answering(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    format!("http://{address}/acme/app.git")
}

async fn failure(remote: String) -> super::super::GitError {
    let world = World::new();
    let mirror = Mirror::new(world.path("mirrors/app.git"), remote);
    let asked = mirror.remote_tip(&branch("main"), LONG).await.unwrap_err();
    let fetched = mirror.fetch_branch(&branch("main"), LONG, &job()).await.unwrap_err();
    assert_eq!((asked.kind, &asked.why), (fetched.kind, &fetched.why));
    assert!(!mirror.dir.exists() && !world.path("mirrors/app.git.new").exists(), "a half-made mirror is left");
    fetched
}

#[tokio::test]
async fn asks_for_a_password() {
    let remote = answering(
        "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    );
    let error = failure(remote).await;
    assert_eq!(error.kind, GitErrorKind::Denied);
    assert!(error.why.contains("asks for a login") && error.why.contains("credential helper"), "{error}");
    assert!(error.unavailable() && !error.transient());
}

#[tokio::test]
async fn forbids_or_does_not_know_or_fails() {
    for (answer, kind) in [
        ("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", GitErrorKind::Denied),
        ("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", GitErrorKind::NoRepository),
        ("HTTP/1.1 503 Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", GitErrorKind::Unreachable),
        ("not HTTP at all\r\n\r\n", GitErrorKind::Unreachable),
    ] {
        let error = failure(answering(answer)).await;
        assert_eq!(error.kind, kind, "{answer}: {error}");
    }
}

#[tokio::test]
async fn is_not_there() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = failure(format!("http://127.0.0.1:{port}/x.git")).await;
    assert_eq!(error.kind, GitErrorKind::Unreachable, "{error}");
    assert!(error.transient());
    let world = World::new();
    let error = failure(world.path("nowhere.git").display().to_string()).await;
    assert_eq!(error.kind, GitErrorKind::NoRepository, "{error}");
    assert!(error.why.contains("nowhere.git"));
}

#[tokio::test]
async fn hangs() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let world = World::new();
    let remote = format!("http://{}/x.git", listener.local_addr().unwrap());
    let mirror = Mirror::new(world.path("mirrors/app.git"), remote);
    let limit = Duration::from_millis(400);
    let error = mirror.remote_tip(&branch("main"), limit).await.unwrap_err();
    assert_eq!(error.kind, GitErrorKind::TimedOut);
    let error = mirror.fetch_branch(&branch("main"), limit, &job()).await.unwrap_err();
    assert_eq!(error.kind, GitErrorKind::TimedOut);
    assert!(error.why.contains("within 400ms") && error.why.contains("pull.timeout"), "{error}");
    assert!(error.transient() && error.unavailable());
    assert!(!mirror.dir.exists());

    let job = job();
    let cancel = job.cancel.clone();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let remote = format!("http://{}/x.git", listener.local_addr().unwrap());
    let mirror = Mirror::new(world.path("mirrors/other.git"), remote);
    let fetching = tokio::spawn(async move { mirror.fetch_branch(&branch("main"), LONG, &job).await });
    // Cancelled once it is connected.
    let _connected = tokio::task::spawn_blocking(move || listener.accept().unwrap()).await.unwrap();
    cancel.cancel();
    let error = fetching.await.unwrap().unwrap_err();
    assert!(error.cancelled() && !error.unavailable(), "{error}");
}

#[tokio::test]
async fn belongs_to_another_user() {
    let world = World::new();
    world.push("main", "a", "1");
    // Git's own switch for tests of this; what it prints is what the room has to understand.
    let output = std::process::Command::new("git")
        .args(["--git-dir", "/dev/null", "ls-remote"])
        .arg(world.path("remote.git"))
        .env("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    let said: Vec<String> = String::from_utf8_lossy(&output.stderr).lines().map(str::to_owned).collect();
    match super::super::trouble::judge(&said, &world.path("m"), "/srv/x.git") {
        super::super::trouble::Trouble::Told(GitErrorKind::Denied, why) => {
            assert!(why.contains("safe.directory"), "{why}")
        }
        other => panic!("{other:?} from {said:?}"),
    }
}

#[tokio::test]
async fn tells_the_tips_of_several_branches_at_once() {
    let world = World::new();
    let main = world.push("main", "a", "1");
    let dev = world.push("dev", "a", "2");
    // A name that ends like the one that is asked for.
    world.push("x/refs/heads/main", "a", "3");
    let asked = [branch("main"), branch("dev"), branch("none")];
    let tips = world.mirror().remote_tips(&asked, LONG).await.unwrap();
    assert_eq!(tips.into_iter().collect::<Vec<_>>(), [(branch("dev"), dev.clone()), (branch("main"), main)]);
    let newer = world.push("dev", "a", "4");
    assert_eq!(world.mirror().remote_tip(&branch("dev"), LONG).await, Ok(Some(newer)));
    assert!(!world.mirror().dir.exists(), "asking makes no mirror");
}

#[tokio::test]
async fn sha256_repositories_are_named_as_such() {
    let world = World::new();
    let there = world.path("remote.git");
    std::fs::remove_dir_all(&there).unwrap();
    world.git_in(world.dir.path(), &["init", "-q", "--bare", "--object-format=sha256", "remote.git"]);
    world.git_in(world.dir.path(), &["init", "-q", "-b", "main", "--object-format=sha256", "new"]);
    let new = world.path("new");
    world.git_in(&new, &["commit", "-q", "--allow-empty", "-m", "x"]);
    world.git_in(&new, &["push", "-q", "../remote.git", "main"]);
    let error = world.mirror().fetch_branch(&branch("main"), LONG, &job()).await.unwrap_err();
    assert!(error.why.contains("SHA-256"), "{error}");
    assert_eq!(world.mirror().remote_tip(&branch("main"), LONG).await.unwrap_err().kind, GitErrorKind::Invalid);
}
