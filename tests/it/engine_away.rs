//! Threat 27: Docker down at the start, hung, and stopped in the middle. The engine of this machine is shared, so what is away is
//! the way to it: a socket of our own that leads to the real one, to nobody, or into silence.

use std::{os::unix::net::UnixListener, thread};

use crate::support::{Site, docker, http, poll, proxy::Proxy};

#[test]
fn docker_is_down_at_the_start() {
    let site = Site::docker().env("DOCKER_HOST", "unix:///nonexistent/docker.sock");
    site.push("first");
    let deployment = site.deploy(69);
    assert_eq!(deployment["status"], "failed");
    let error = deployment["error"].as_str().unwrap();
    assert!(error.to_lowercase().contains("docker"), "{error}");
    let doctor = site.refit(&["doctor"]);
    assert_eq!(doctor.code, 69, "{doctor:?}");
    assert!(doctor.stdout.to_lowercase().contains("docker"), "{doctor:?}");
}

#[test]
fn docker_is_down_at_the_daemons_start_and_comes_back() {
    let mut site = Site::docker();
    let proxy = Proxy::start(site.path().join("engine.sock"));
    proxy.cut();
    site = site.env("DOCKER_HOST", &proxy.host());
    let first = site.push("first");
    site.serve();
    let health = http(site.http, "GET", "/_deploy/health", &[], b"").unwrap();
    assert_eq!(health.status, 503, "{health:?}");
    assert!(health.json()["docker"].as_str().is_some_and(|why| why != "ok"), "{health:?}");
    assert_eq!(site.webhook("d-1", &site.push_body("main", &first)).status, 202, "pushes are taken all the same");
    let failed = site.settled();
    assert_eq!((&failed["status"], &failed["exit_code"]), (&"failed".into(), &69.into()), "{failed:#}");
    proxy.mend();
    site.refit(&["rerun"]).expect(0);
    site.expect_page("one");
    let health = http(site.http, "GET", "/_deploy/health", &[], b"").unwrap();
    assert_eq!(health.status, 200, "{health:?}");
}

#[test]
fn docker_comes_back_and_what_nobody_recorded_is_put_in_order() {
    let mut site = Site::docker();
    site.push("first");
    site.deploy(0);
    let name = site.containers(true).pop().unwrap();
    docker(&["stop", "--time", "1", &name]);
    let proxy = Proxy::start(site.path().join("engine.sock"));
    proxy.cut();
    site = site.env("DOCKER_HOST", &proxy.host());
    site.serve();
    assert!(site.daemon_log().contains("looked for again"), "{}", site.daemon_log());
    assert_eq!(site.page(), None);
    proxy.mend();
    poll(|| site.page()).expect("it is started");
    site.expect_page("one");
}

#[test]
fn docker_hangs_and_the_deployment_does_not() {
    let site = Site::docker();
    let silent = site.path().join("silent.sock");
    let listener = UnixListener::bind(&silent).unwrap();
    // Takes connections, reads nothing, answers nothing.
    let held = thread::spawn(move || listener.incoming().flatten().take(64).collect::<Vec<_>>());
    let site = site.env("DOCKER_HOST", &format!("unix://{}", silent.display()));
    site.push("first");
    let deployment = site.deploy(69);
    assert_eq!(deployment["status"], "failed", "{deployment:#}");
    drop(held);
}

#[test]
fn docker_goes_away_in_the_middle_and_comes_back() {
    let mut site = Site::docker();
    let proxy = Proxy::start(site.path().join("engine.sock"));
    site = site.env("DOCKER_HOST", &proxy.host());
    site.push("good");
    site.deploy(0);
    let good = site.containers(true);
    site.write("run.sh", "sleep 600\n");
    site.push("bad");
    site.serve();
    site.refit(&["deploy", "--detach"]).expect(0);
    // The new one runs, and nothing else: before that, another call may be cut, with another code to end with.
    site.wait_for("its start", |d| {
        let running = site.containers(true);
        d["stages"][6]["status"] == "running" && running.len() == 1 && running != good
    });
    proxy.cut();
    site.wait_for("the failure", |d| d["stages"][6]["status"] == "failed");
    assert_eq!(site.newest()["status"], "running", "it does not give up: the engine may only be restarting");
    proxy.mend();
    let ended = site.settled();
    assert_eq!((&ended["status"], &ended["exit_code"]), (&"rolled_back".into(), &3.into()), "{ended:#}");
    site.expect_page("one");
    assert_eq!(site.containers(true).len(), 1, "{:?}", site.containers(false));
    site.write("run.sh", "exec httpd -f -p 8080 -h /app/www\n");
    site.version("two");
    site.push("good again");
    site.refit(&["deploy"]).expect(0);
    site.expect_page("two");
}

/// An engine that hangs while the candidate is judged: the health deadline holds all the same. And one that goes on hanging while that is undone:
/// it is waited for, and the old version is back when the engine is.
#[test]
fn docker_hangs_in_the_middle_of_start_and_of_its_undo() {
    let mut site = Site::docker().with("[start.health]\npath = \"/health\"\ninterval = \"50ms\"\ndeadline = \"6s\"\n");
    let proxy = Proxy::start(site.path().join("engine.sock"));
    site = site.env("DOCKER_HOST", &proxy.host());
    site.push("good");
    site.deploy(0);
    site.write("run.sh", "sleep 600\n");
    site.push("never healthy");
    site.serve();
    site.refit(&["deploy", "--detach"]).expect(0);
    let candidate = [format!("refit-{}-production-2", site.app)];
    site.wait_for("its start", |d| d["stages"][6]["status"] == "running" && site.containers(true) == candidate);
    proxy.hang();
    // By the deadline, and not by the two minutes that a call may take.
    let failed = site.wait_for("the failure", |d| d["stages"][6]["error"].is_string());
    assert_eq!(failed["status"], "running", "{failed:#}");
    let error = failed["stages"][6]["error"].to_string();
    assert!(error.contains("nothing was heard of") || error.contains("not healthy within"), "{error}");
    assert_eq!(site.page(), None, "nothing can be started yet");
    proxy.mend();
    let ended = site.settled();
    assert_eq!((&ended["status"], &ended["exit_code"]), (&"rolled_back".into(), &3.into()), "{ended:#}");
    site.expect_page("one");
    assert_eq!(site.containers(false).len(), 1, "{:?}", site.containers(false));
}

/// One that hangs for a while when the old version is about to be started again.
#[test]
fn docker_hangs_in_the_undo_of_start() {
    let mut site = Site::docker();
    let proxy = Proxy::start(site.path().join("engine.sock"));
    let pause = site.path().join("paused");
    site = site.env("DOCKER_HOST", &proxy.host());
    site.push("good");
    site.deploy(0);
    site = site.env("REFIT_FAULT", &format!("undo:start:intent=pause:{}", pause.display()));
    site.write("run.sh", "exit 1\n");
    site.push("dies");
    site.serve();
    site.refit(&["deploy", "--detach"]).expect(0);
    poll(|| pause.exists().then_some(())).expect("it is to be undone");
    proxy.hang();
    std::fs::remove_file(&pause).unwrap();
    site.wait_for("the undo", |d| d["stages"][6]["status"] == "failed");
    assert_eq!(site.newest()["status"], "running");
    assert_eq!(site.page(), None, "nothing can be started yet");
    proxy.mend();
    let ended = site.settled();
    assert_eq!((&ended["status"], &ended["exit_code"]), (&"rolled_back".into(), &3.into()), "{ended:#}");
    site.expect_page("one");
    assert_eq!(site.containers(false).len(), 1, "{:?}", site.containers(false));
}
