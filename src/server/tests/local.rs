//! The Unix socket and its client, and threat 22.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
};

use futures_util::StreamExt;
use serde_json::json;
use tempfile::TempDir;
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::fixture::*;
use crate::{
    cli::client::{Daemon, PushRequest},
    control::{
        ApprovalRequest, BackupRequest, BackupUpdate, BackupVerb, ControlError, DeployRequest, RerunRequest,
        ResolveRequest, Update,
    },
    model::{DeploymentId, DeploymentView},
    pipeline::journal::{Event, Recorded},
    registry::Delivery,
    server::socket::Socket,
};

struct Local {
    verbs: Arc<Recorder>,
    path: PathBuf,
    stop: CancellationToken,
    ended: JoinHandle<()>,
    _dir: TempDir,
}

impl Local {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/refit.sock");
        Self::start_at(dir, path).await
    }

    async fn start_at(dir: TempDir, path: PathBuf) -> Self {
        let verbs = Arc::new(recorder(dir.path()).await);
        let config = Arc::new(config(dir.path(), two_apps()));
        let stop = CancellationToken::new();
        let socket = Socket::bind(&path).unwrap();
        let ended = tokio::spawn(socket.serve(verbs.clone(), config, stop.clone()));
        Self { verbs, path, stop, ended, _dir: dir }
    }

    async fn daemon(&self) -> Daemon {
        Daemon::connect(&self.path).await.expect("the daemon listens")
    }

    async fn rows(&self) -> Vec<Delivery> {
        let rows = self.verbs.registry.open_deliveries(10_000).await.unwrap();
        rows.into_iter().map(|row| row.delivery).collect()
    }

    fn updates(&self) -> mpsc::Sender<crate::control::Result<Update>> {
        let (sender, receiver) = mpsc::channel(16);
        *self.verbs.updates.lock().unwrap() = Some(receiver);
        sender
    }
}

fn deploy(no_wait: bool) -> DeployRequest {
    let environment = Some("production".to_owned());
    DeployRequest { app: None, environment, reference: None, trigger: trigger(), no_wait }
}

fn event(seq: i64) -> Update {
    Update::Event(Recorded {
        seq,
        at: jiff::Timestamp::UNIX_EPOCH,
        event: Event::Begun { previous: None, rollback_to: None },
    })
}

fn end() -> Update {
    let view = json!({
        "id": 7, "app": "guestbook", "environment": "production", "ref": "refs/heads/main", "commit": COMMIT,
        "trigger": {"kind": "cli"}, "status": "succeeded", "exit_code": 0, "queued_at": "2026-01-02T03:04:05Z",
        "stages": [], "live": true, "undone": [],
    });
    let deployment: DeploymentView = serde_json::from_value(view).unwrap();
    Update::End { deployment: Box::new(deployment) }
}

#[tokio::test]
async fn every_verb_passes_and_errors_stay_what_they_were() {
    let local = Local::start().await;
    let daemon = local.daemon().await;
    assert_eq!(daemon.deploy(&deploy(false)).await.unwrap(), DeploymentId(41));
    let rerun =
        RerunRequest { id: Some(DeploymentId(3)), app: None, environment: None, trigger: trigger(), no_wait: false };
    assert_eq!(daemon.rerun(&rerun).await.unwrap(), DeploymentId(42));
    daemon.cancel(DeploymentId(41), "ada").await.unwrap();
    let no = ApprovalRequest { approved: false, by: "ada".to_owned(), reason: Some("not now".to_owned()) };
    daemon.decide(DeploymentId(42), &no).await.unwrap();
    let looked = ResolveRequest { by: "ada".to_owned(), reason: "mended".to_owned() };
    daemon.resolve(DeploymentId(40), &looked).await.unwrap();
    let asked = local.verbs.asked.lock().unwrap().clone();
    let expected = [
        "deploy Some(\"production\") Some(\"ada\")",
        "rerun Some(DeploymentId(3))",
        "cancel 41 by ada",
        "approval false of 42 by ada",
        "resolve 40: mended",
    ];
    assert_eq!(asked, expected);

    let busy = daemon.deploy(&deploy(true)).await.unwrap_err();
    assert!(matches!(busy, ControlError::Busy { .. }), "{busy:?}");
    assert_eq!((busy.to_string().as_str(), busy.hint(), busy.exit_code()), ("another one runs", Some("wait"), 75));
    let unknown = daemon.cancel(DeploymentId(404), "ada").await.unwrap_err();
    assert_eq!((unknown.to_string().as_str(), unknown.exit_code()), ("there is no deployment 404", 64));
}

#[tokio::test]
async fn a_push_is_received_line_by_line() {
    let local = Local::start().await;
    let lines = [
        format!("{BEFORE} {COMMIT} refs/heads/main"),
        format!("{ZEROS} {COMMIT} refs/heads/dev"),
        format!("{BEFORE} {COMMIT} refs/heads/feature"),
        format!("{BEFORE} {COMMIT} refs/tags/v1"),
        format!("{BEFORE} {ZEROS} refs/heads/main"),
        format!("{BEFORE} {COMMIT} refs/heads/main;touch${{IFS}}owned"),
        "nonsense".to_owned(),
    ];
    let request = PushRequest { app: name("guestbook"), by: Some("ada".to_owned()), lines: lines.to_vec() };
    let outcomes = local.daemon().await.push(&request).await.unwrap();
    assert_eq!(outcomes.len(), lines.len());
    assert!(outcomes[..2].iter().all(|o| o.ignored.is_none() && o.outcomes.len() == 1), "{outcomes:?}");
    assert!(outcomes[2].ignored.as_ref().unwrap().contains("no environment"), "{outcomes:?}");
    assert!(outcomes[2..].iter().all(|o| o.ignored.is_some() && o.outcomes.is_empty()), "{outcomes:?}");
    let rows = local.rows().await;
    assert_eq!(rows.len(), 2);
    assert!(rows.iter().all(|row| row.pusher.as_deref() == Some("ada") && row.commit.as_str() == COMMIT));

    assert_eq!(local.daemon().await.push(&request).await.unwrap(), outcomes, "again: the same outcomes");
    assert_eq!(local.rows().await.len(), 2, "and no new row");
    let request = PushRequest { app: name("nobody"), ..request };
    let error = local.daemon().await.push(&request).await.unwrap_err();
    assert!(matches!(error, ControlError::Usage { .. }) && error.hint().unwrap().contains("guestbook"), "{error:?}");
}

#[tokio::test]
async fn updates_come_as_they_happen_until_the_end() {
    let local = Local::start().await;
    let sender = local.updates();
    let mut followed = local.daemon().await.follow(DeploymentId(7), 0);
    for seq in 1..=3 {
        sender.send(Ok(event(seq))).await.unwrap();
        // Received before the next one is sent: nothing is held back.
        assert!(matches!(followed.next().await, Some(Ok(Update::Event(Recorded { seq: got, .. }))) if got == seq));
    }
    sender.send(Ok(end())).await.unwrap();
    assert!(matches!(followed.next().await, Some(Ok(Update::End { deployment })) if deployment.id == DeploymentId(7)));
    assert!(followed.next().await.is_none());

    let mut unknown = local.daemon().await.follow(DeploymentId(9), 0);
    assert!(matches!(unknown.next().await, Some(Err(ControlError::Usage { .. }))));
    assert!(unknown.next().await.is_none());
}

#[tokio::test]
async fn a_follower_that_leaves_ends_its_stream() {
    let local = Local::start().await;
    let sender = local.updates();
    let mut followed = local.daemon().await.follow(DeploymentId(7), 0);
    sender.send(Ok(event(1))).await.unwrap();
    assert!(followed.next().await.unwrap().is_ok());
    drop(followed);
    tokio::time::timeout(std::time::Duration::from_secs(60), sender.closed()).await.expect("nobody follows any more");
}

#[tokio::test]
async fn a_daemon_that_goes_away_is_told_as_such() {
    let local = Local::start().await;
    let sender = local.updates();
    let daemon = local.daemon().await;
    let mut followed = daemon.follow(DeploymentId(7), 0);
    sender.send(Ok(event(1))).await.unwrap();
    assert!(followed.next().await.unwrap().is_ok());
    local.stop.cancel();
    local.ended.await.unwrap();
    let error = followed.next().await.unwrap().unwrap_err();
    assert!(error.to_string().contains("the daemon went away"), "{error}");
    assert!(followed.next().await.is_none());
    assert!(!local.path.exists(), "the socket is taken away");
    assert!(Daemon::connect(&local.path).await.is_none());
    assert_eq!(daemon.deploy(&deploy(false)).await.unwrap_err().exit_code(), 69);
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state/refit.sock");
    drop(Socket::bind(&path).unwrap());
    assert!(path.exists() && Daemon::connect(&path).await.is_none(), "what a killed daemon leaves");
    let local = Local::start_at(dir, path.clone()).await;
    assert_eq!(Socket::bind(&path).unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
    local.daemon().await;
    let left: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|n| n.to_string_lossy().starts_with(".socket")), "{left:?}");
}

#[tokio::test]
async fn a_path_too_long_for_a_socket_works() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d".repeat(100)).join("e".repeat(100)).join("refit.sock");
    let local = Local::start_at(dir, path).await;
    assert_eq!(local.daemon().await.deploy(&deploy(false)).await.unwrap(), DeploymentId(41));
}

const NOBODY: u32 = 65534;

/// What a process of that user gets: `denied`, or the answer's beginning.
async fn as_user(id: u32, path: &Path) -> String {
    const PROGRAM: &str = r#"
        use Socket;
        $SIG{PIPE} = 'IGNORE';
        socket(my $s, AF_UNIX, SOCK_STREAM, 0) or die;
        if (!connect($s, pack_sockaddr_un($ARGV[0]))) { print $!{EACCES} ? "denied" : "other: $!"; exit }
        syswrite($s, "GET /v1/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        sysread($s, my $answer, 12);
        print "answer [$answer]";
    "#;
    let id = id.to_string();
    let output = tokio::process::Command::new("setpriv")
        .args(["--reuid", &id, "--regid", &id, "--clear-groups", "/usr/bin/perl", "-e", PROGRAM])
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn another_user_is_denied_by_the_modes_and_by_the_peers_id() {
    let local = Local::start().await;
    let dir = local.path.parent().unwrap();
    assert_eq!(fs::metadata(dir).unwrap().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(&local.path).unwrap().mode() & 0o777, 0o600);
    assert_eq!(as_user(0, &local.path).await, "answer [HTTP/1.1 200]");
    assert_eq!(as_user(NOBODY, &local.path).await, "denied");
    // Somebody opens everything: the kernel still says who it is.
    let open = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    open(dir.parent().unwrap(), 0o755);
    open(dir, 0o755);
    assert_eq!(as_user(NOBODY, &local.path).await, "denied", "the socket's own mode");
    open(&local.path, 0o666);
    assert_eq!(as_user(NOBODY, &local.path).await, "answer []");
    local.daemon().await.cancel(DeploymentId(1), "ada").await.unwrap();
}

#[tokio::test]
async fn work_on_backups_is_told_line_by_line_and_its_error_keeps_its_code() {
    let local = Local::start().await;
    let request = BackupRequest {
        app: None,
        environment: Some("production".to_owned()),
        trigger: trigger(),
        no_wait: false,
        verb: BackupVerb::Delete { sets: vec!["2026-11-21_10-15-30".to_owned()] },
    };
    let updates: Vec<_> = local.daemon().await.backup(request).collect().await;
    let [Ok(BackupUpdate::Said { text }), Err(error)] = &updates[..] else { panic!("{updates:?}") };
    assert_eq!((text.as_str(), error.to_string().as_str(), error.exit_code()), ("removing it", "it stays", 1));
    let asked = local.verbs.asked.lock().unwrap().join(" ");
    assert!(asked.contains("2026-11-21_10-15-30"), "{asked}");
    local.stop.cancel();
    local.ended.await.unwrap();
}
