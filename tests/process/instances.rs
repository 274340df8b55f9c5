//! Instances: supervised, stopped, killed at every level.

use std::{
    os::unix::{fs::PermissionsExt, process::CommandExt},
    process::{Command, Stdio},
    time::Duration,
};

use refit::{
    runtime::{Instance, InstanceState, Runtime, SeenInstance},
    secret::Secret,
};

use crate::{
    fixture::{Fixture, alive, kill, runtime_in, until},
    ports::free_port,
};

const LONG: Duration = Duration::from_secs(30);

fn is_running(state: &InstanceState) -> bool {
    matches!(state, InstanceState::Running { .. })
}

fn exited(code: i64) -> InstanceState {
    InstanceState::Exited { code, out_of_memory: false }
}

#[tokio::test]
async fn every_step_of_the_life_of_an_instance_may_be_made_twice() {
    let mut fixture = Fixture::new("echo serving; exec busybox httpd -f -p $HOST:$PORT");
    fixture.environment.port = Some(free_port());
    fixture.secrets.insert("PASSWORD".to_owned(), Secret::new("hunter22"));
    let instance = fixture.prepared().await;
    assert_eq!(fixture.prepared().await, instance);
    assert_eq!(instance.name, "refit-guestbook-production-1");
    assert_eq!(fixture.inspect(&instance).await, InstanceState::Created);

    let runtime = &fixture.runtime;
    let mut pids = Vec::new();
    for _ in 0..2 {
        runtime.start(&instance).await.unwrap();
        pids.push(fixture.state(&instance, "/app/leader/pid"));
    }
    assert_eq!(pids[0], pids[1], "the second start changed nothing");
    let InstanceState::Running { address: Some(address), restarts: 0, health: None } = fixture.inspect(&instance).await
    else {
        panic!("{:?}", fixture.inspect(&instance).await)
    };
    until("it serves", || async { tokio::net::TcpStream::connect(address).await.is_ok() }).await;
    assert!(runtime.is_running(&instance.name).await.unwrap());
    until("its log is read", || async { runtime.tail(&instance, 5).await.unwrap() == ["serving"] }).await;
    let command = ["sh", "-c", "cat hello.txt; echo $PASSWORD; exit 4"].map(str::to_owned);
    let outcome = runtime.exec(&instance, &command, LONG).await.unwrap();
    assert_eq!((outcome.code, outcome.output), (4, vec!["hello".to_owned(), "hunter22".to_owned()]));
    assert_eq!(runtime.instances(&fixture.environment.key).await.unwrap(), std::slice::from_ref(&instance));
    let sight = async || runtime.sight(&fixture.environment.key).await.unwrap();
    let seen = |runs| SeenInstance { instance: instance.clone(), commit: None, runs };
    assert_eq!(sight().await.instances, [seen(true)]);
    let artefacts: Vec<_> = sight().await.artefacts.into_iter().map(|artefact| artefact.id).collect();
    assert_eq!(artefacts, std::slice::from_ref(&instance.id));

    for _ in 0..2 {
        runtime.stop(&instance, LONG).await.unwrap();
        assert_eq!(fixture.inspect(&instance).await, exited(143));
        assert_eq!(sight().await.instances, [seen(false)]);
        assert_eq!(fixture.marked(), Vec::<i64>::new());
    }
    assert!(runtime.exec(&instance, &command, LONG).await.is_err());
    assert!(!runtime.is_running(&instance.name).await.unwrap());
    runtime.start(&instance).await.unwrap();
    assert!(is_running(&fixture.inspect(&instance).await));

    for _ in 0..2 {
        runtime.remove(&instance).await.unwrap();
        assert_eq!(fixture.inspect(&instance).await, InstanceState::Missing);
        assert_eq!(fixture.marked(), Vec::<i64>::new());
    }
    runtime.stop(&instance, LONG).await.unwrap();
    assert!(runtime.start(&instance).await.is_err());
    assert_eq!(runtime.instances(&fixture.environment.key).await.unwrap(), []);
}

#[tokio::test]
async fn an_app_that_does_not_stay_up_is_restarted_and_counted() {
    let fixture = Fixture::new("echo boom; (sleep 1000 &); exit 3");
    let instance = fixture.started().await;
    until("it was restarted twice", || async {
        matches!(fixture.inspect(&instance).await, InstanceState::Restarting { restarts: 2.., code: 3 })
    })
    .await;
    let tail = fixture.runtime.tail(&instance, 100).await.unwrap();
    assert!(tail.iter().filter(|line| *line == "boom").count() >= 3, "{tail:?}");
    fixture.runtime.stop(&instance, LONG).await.unwrap();
    assert_eq!(fixture.marked(), Vec::<i64>::new(), "what it left behind is gone too");
    assert!(matches!(fixture.inspect(&instance).await, InstanceState::Exited { code: 3 | 143, .. }));
}

#[tokio::test]
async fn a_command_that_is_not_there_restarts_with_127_and_arguments_are_passed_whole() {
    let mut fixture = Fixture::new("");
    fixture.environment.start.command = Some(vec!["/no/such/program".to_owned(), "a b".to_owned()]);
    let instance = fixture.started().await;
    until("it failed", || async {
        matches!(fixture.inspect(&instance).await, InstanceState::Restarting { code: 127, .. })
    })
    .await;
    fixture.runtime.remove(&instance).await.unwrap();
    let script = "printf '<%s>\\n' \"$1\"; exec sleep 1000";
    fixture.environment.start.command = Some(["sh", "-c", script, "sh", "a b"].map(str::to_owned).to_vec());
    let instance = fixture.started().await;
    until("it printed", || async { fixture.runtime.tail(&instance, 1).await.unwrap() == ["<a b>"] }).await;
}

/// Plays both parts: run by itself it is the test, run with `REFIT_TEST_DAEMON` it is the daemon that is to be killed.
#[tokio::test]
async fn an_instance_outlives_the_daemon_that_started_it() {
    if let Some(dir) = std::env::var_os("REFIT_TEST_DAEMON") {
        let runtime = runtime_in(dir.as_ref());
        let name = "refit-guestbook-production-1".to_owned();
        let instance = Instance { id: String::new(), name, deployment: refit::model::DeploymentId(1) };
        runtime.start(&instance).await.unwrap();
        return std::future::pending().await;
    }
    let fixture = Fixture::new("exec sleep 1000");
    let instance = fixture.prepared().await;
    let mut daemon = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "instances::an_instance_outlives_the_daemon_that_started_it"])
        .env("REFIT_TEST_DAEMON", fixture.dir.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    until("it runs", || async { is_running(&fixture.inspect(&instance).await) }).await;
    daemon.kill().unwrap();
    daemon.wait().unwrap();

    let app = fixture.state(&instance, "/app/leader/pid");
    assert!(alive(app) && is_running(&fixture.inspect(&instance).await));
    fixture.runtime.start(&instance).await.unwrap();
    assert_eq!(fixture.state(&instance, "/app/leader/pid"), app, "a new daemon finds it running");
    // And it is still supervised.
    kill(app);
    until("it is up again", || async {
        matches!(fixture.inspect(&instance).await, InstanceState::Running { restarts: 1, .. })
    })
    .await;
    fixture.runtime.stop(&instance, LONG).await.unwrap();
    assert_eq!(fixture.marked(), Vec::<i64>::new());
}

#[tokio::test]
async fn a_killed_supervisor_leaves_nothing_that_start_or_stop_does_not_find() {
    // The leader goes with the supervisor's pipe at the latest; a child of it stays.
    let fixture = Fixture::new("sleep 1000 & sleep 1000");
    let instance = fixture.started().await;
    until("both are there", || async { fixture.marked().len() >= 3 }).await;
    let first = fixture.marked();
    kill(fixture.state(&instance, "/supervisor/pid"));
    until("it is gone", || async { !alive(fixture.state(&instance, "/supervisor/pid")) }).await;

    fixture.runtime.start(&instance).await.unwrap();
    assert!(first.iter().all(|pid| !alive(*pid)), "the old processes are gone before new ones begin");
    assert!(is_running(&fixture.inspect(&instance).await));
    until("both are there again", || async { fixture.marked().len() == first.len() }).await;

    // The leader killed as well: the group is known by what is left of it.
    kill(fixture.state(&instance, "/supervisor/pid"));
    kill(fixture.state(&instance, "/app/leader/pid"));
    fixture.runtime.stop(&instance, LONG).await.unwrap();
    assert_eq!(fixture.marked(), Vec::<i64>::new());
    assert!(matches!(fixture.inspect(&instance).await, InstanceState::Exited { .. }));
    fixture.runtime.start(&instance).await.unwrap();
    assert!(is_running(&fixture.inspect(&instance).await));
}

#[tokio::test]
async fn an_app_that_ignores_sigterm_is_killed_after_the_timeout() {
    let mut fixture = Fixture::new("trap '' TERM; echo ready; while :; do sleep 1; done");
    fixture.environment.start.stop_timeout = Duration::from_millis(300);
    for kill_supervisor in [false, true] {
        let instance = fixture.started().await;
        until("it is ready", || async { fixture.runtime.tail(&instance, 1).await.unwrap() == ["ready"] }).await;
        if kill_supervisor {
            kill(fixture.state(&instance, "/supervisor/pid"));
        }
        fixture.runtime.stop(&instance, Duration::from_millis(300)).await.unwrap();
        assert_eq!(fixture.inspect(&instance).await, exited(137));
        assert_eq!(fixture.marked(), Vec::<i64>::new());
        fixture.runtime.remove(&instance).await.unwrap();
    }
}

#[tokio::test]
async fn a_supervisor_that_hangs_is_killed() {
    let fixture = Fixture::new("exec sleep 1000");
    let instance = fixture.started().await;
    let supervisor = fixture.state(&instance, "/supervisor/pid");
    assert!(Command::new("kill").args(["-STOP", &supervisor.to_string()]).status().unwrap().success());
    fixture.runtime.remove(&instance).await.unwrap();
    assert!(!alive(supervisor));
    assert_eq!(fixture.marked(), Vec::<i64>::new());
}

#[tokio::test]
async fn a_pid_that_now_is_another_processes_is_left_alone() {
    let fixture = Fixture::new("exec sleep 1000");
    let instance = fixture.started().await;
    let dir = fixture.instance_dir(&instance);
    let real = std::fs::read_to_string(dir.join("state.json")).unwrap();
    fixture.runtime.stop(&instance, LONG).await.unwrap();

    let mut stranger = Command::new("sleep").arg("1000").process_group(0).spawn().unwrap();
    let pid = stranger.id();
    let mut forged: serde_json::Value = serde_json::from_str(&real).unwrap();
    for place in ["/supervisor/pid", "/app/leader/pid"] {
        *forged.pointer_mut(place).unwrap() = pid.into();
    }
    std::fs::write(dir.join("state.json"), forged.to_string()).unwrap();
    assert!(!is_running(&fixture.inspect(&instance).await));
    fixture.runtime.stop(&instance, Duration::ZERO).await.unwrap();
    std::fs::write(dir.join("state.json"), forged.to_string()).unwrap();
    fixture.runtime.start(&instance).await.unwrap();
    fixture.runtime.remove(&instance).await.unwrap();
    let survived = stranger.try_wait().unwrap().is_none();
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    assert!(survived);
}

#[tokio::test]
async fn only_one_supervisor_runs_however_often_it_is_started() {
    let fixture = Fixture::new("exec sleep 1000");
    let instance = fixture.prepared().await;
    let other = runtime_in(fixture.dir.path());
    let (a, b, c) = tokio::join!(fixture.runtime.start(&instance), other.start(&instance), other.start(&instance));
    assert!(a.is_ok() && b.is_ok() && c.is_ok(), "{a:?} {b:?} {c:?}");
    let by_hand = Command::new(env!("CARGO_BIN_EXE_refit"))
        .arg("supervise")
        .arg(fixture.instance_dir(&instance))
        .status()
        .unwrap();
    assert_eq!(by_hand.code(), Some(75));
    assert_eq!(fixture.marked(), [fixture.state(&instance, "/app/leader/pid")]);
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let mut fixture = Fixture::new("exec sleep 1000");
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = holder.local_addr().unwrap().port();
    fixture.environment.port = Some(port);
    let instance = fixture.prepared().await;
    let error = fixture.runtime.start(&instance).await.unwrap_err().to_string();
    assert!(error.contains(&format!("port {port} on 127.0.0.1")), "{error}");
    assert_eq!(fixture.inspect(&instance).await, InstanceState::Created);
    drop(holder);
    fixture.runtime.start(&instance).await.unwrap();
    assert!(is_running(&fixture.inspect(&instance).await));
}

#[tokio::test]
async fn logs_are_rotated_and_bounded() {
    let mut fixture = Fixture::new("seq 1 20000; echo the end >&2; exec sleep 1000");
    fixture.environment.start.log = refit::config::LogRotation { max_size: 20_000, max_file: 3 };
    let instance = fixture.started().await;
    until("all is written", || async { fixture.runtime.tail(&instance, 1).await.unwrap() == ["the end"] }).await;
    let mut names = Vec::new();
    for entry in std::fs::read_dir(fixture.instance_dir(&instance)).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if name.starts_with("app.log") {
            let found = entry.metadata().unwrap();
            assert!(found.len() <= 20_000, "{name}: {}", found.len());
            assert_eq!(found.permissions().mode() & 0o777, 0o600);
            names.push(name);
        }
    }
    names.sort();
    assert_eq!(names, ["app.log", "app.log.1", "app.log.2"]);
    let tail = fixture.runtime.tail(&instance, 3).await.unwrap();
    assert_eq!(tail, ["19999", "20000", "the end"]);
}

#[tokio::test]
async fn secrets_are_in_the_environment_and_nowhere_else_to_be_seen() {
    let mut fixture = Fixture::new("test -n \"$TOKEN\" && echo have it; exec sleep 1000");
    let secret = format!("s3cret-{}", fixture.mark);
    fixture.secrets.insert("TOKEN".to_owned(), Secret::new(&secret));
    let instance = fixture.started().await;
    until("it started", || async { fixture.runtime.tail(&instance, 1).await.unwrap() == ["have it"] }).await;
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&line).contains(&secret), "{}", entry.path().display());
    }
    for entry in std::fs::read_dir(fixture.instance_dir(&instance)).unwrap().flatten() {
        let holds = std::fs::read_to_string(entry.path()).unwrap().contains(&secret);
        assert_eq!(holds, entry.file_name() == "spec.json", "{}", entry.path().display());
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o077, 0, "{}", entry.path().display());
    }
    // The supervisor itself has none of it.
    let environ = std::fs::read(format!("/proc/{}/environ", fixture.state(&instance, "/supervisor/pid"))).unwrap();
    assert!(!String::from_utf8_lossy(&environ).contains(&secret));
}

#[tokio::test]
async fn what_cannot_be_honoured_safely_is_refused() {
    let mut fixture = Fixture::new("exec sleep 1000");
    let artefact = fixture.build(1, &crate::fixture::job()).await.unwrap().id;
    fixture.environment.start.user = Some("nobody".to_owned());
    assert!(fixture.prepare(1, &artefact).await.is_err_and(|e| e.to_string().contains("start.user")));
    fixture.environment.start.user = None;
    fixture.environment.start.command = None;
    assert!(fixture.prepare(1, &artefact).await.is_err_and(|e| e.to_string().contains("start.command")));
    fixture.environment.start.command = Some(vec!["true".to_owned()]);
    assert!(fixture.prepare(1, "guestbook/production/9-0123456789").await.is_err());
}
