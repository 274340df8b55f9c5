//! Threat 31: candidates that misbehave. Each is caught, and the old version is never gone for good.

use serde_json::Value;

use crate::support::{Site, docker, poll};

/// Deploys a good version and then one whose `run.sh` is `script`; expects the old one to be back.
#[track_caller]
fn caught(script: &str, extra: &str, code: i32, error: &str) -> Value {
    let site = Site::docker().with(extra);
    site.push("good");
    site.deploy(0);
    site.write("run.sh", script);
    site.version("bad");
    site.push("bad");
    let bad = site.deploy(code);
    assert_eq!(bad["status"], "rolled_back", "{bad:#}");
    let told = bad["error"].as_str().unwrap_or_default().to_owned();
    assert!(told.contains(error), "{told}");
    site.expect_page("one");
    assert_eq!(site.containers(false).len(), 1, "the candidate is gone");
    bad
}

const QUICK: &str = "[start.health]\npath = \"/health\"\ninterval = \"50ms\"\ndeadline = \"6s\"\n";
const BAKE: &str = "[smoke]\nbake = \"15s\"\ninterval = \"200ms\"\n[[smoke.check]]\nhttp = \"/health\"\n";

#[test]
fn docker_never_healthy() {
    caught("mkdir /empty; exec httpd -f -p 8080 -h /empty\n", QUICK, 3, "404");
}

#[test]
fn docker_listens_on_the_wrong_port() {
    caught("exec httpd -f -p 9090 -h /app/www\n", QUICK, 3, "not healthy within");
}

#[test]
fn docker_dead_at_once() {
    let bad = caught("echo bad configuration; exit 78\n", QUICK, 3, "");
    let error = bad["error"].as_str().unwrap();
    assert!(error.contains("code 78") || error.contains("restart"), "{error}");
}

#[test]
fn docker_in_a_restart_loop_that_answers_in_between() {
    // Without a check, which may meet it while it is down and then says so.
    let bake = BAKE.split("[[").next().unwrap();
    caught("httpd -f -p 8080 -h /app/www & sleep 3; exit 1\n", bake, 4, "exited with code 1");
}

#[test]
fn docker_dead_after_four_seconds() {
    caught("httpd -f -p 8080 -h /app/www & sleep 4; exit 1\n", BAKE, 4, "");
}

#[test]
fn docker_dead_after_eleven_seconds() {
    caught("httpd -f -p 8080 -h /app/www & sleep 11; exit 1\n", BAKE, 4, "");
}

#[test]
fn docker_unhealthy_after_six_seconds() {
    caught("httpd -f -p 8080 -h /app/www & sleep 6; rm /app/www/health; wait\n", BAKE, 4, "404");
}

#[test]
fn docker_dead_after_six_seconds() {
    caught("httpd -f -p 8080 -h /app/www & sleep 6; exit 1\n", BAKE, 4, "");
}

#[test]
fn docker_never_healthy_and_ignores_sigterm() {
    caught("trap '' TERM; while true; do sleep 1; done\n", QUICK, 3, "not healthy within");
}

#[test]
fn docker_an_old_version_that_ignores_sigterm_is_killed_in_time() {
    let site = Site::docker();
    site.write("run.sh", "trap '' TERM; httpd -f -p 8080 -h /app/www & while true; do sleep 1; done\n");
    site.push("stubborn");
    site.deploy(0);
    site.version("two");
    site.push("next");
    site.deploy(0);
    site.expect_page("two");
    assert_eq!(site.containers(true).len(), 1);
}

/// The engine starts again what is live, and nothing that is only being judged: that would hold the port that the old version needs.
#[test]
fn docker_what_is_live_is_started_again_when_it_ends() {
    let mut site = Site::docker();
    let container = |n: i64| format!("refit-{}-production-{n}", site.app);
    let (first, second) = (container(1), container(2));
    let policy =
        |name: &str| docker(&["inspect", "--format", "{{.HostConfig.RestartPolicy.Name}}", name]).trim().to_owned();
    site.push("good");
    site.deploy(0);
    assert_eq!(policy(&first), "unless-stopped");
    let pause = site.path().join("paused");
    site = site.env("REFIT_FAULT", &format!("step:smoke:effect=pause:{}", pause.display()));
    site.version("two");
    site.push("two");
    site.serve();
    site.refit(&["deploy", "--detach"]).expect(0);
    poll(|| pause.exists().then_some(())).expect("it is judged");
    assert_eq!(policy(&second), "no");
    std::fs::remove_file(&pause).unwrap();
    assert_eq!(site.settled()["status"], "succeeded");
    assert_eq!((policy(&second), policy(&first)), ("unless-stopped".to_owned(), "unless-stopped".to_owned()));
    let app = docker(&["inspect", "--format", "{{.State.Pid}}", &second]);
    assert!(std::process::Command::new("kill").args(["-9", app.trim()]).status().unwrap().success());
    let restarts = || docker(&["inspect", "--format", "{{.RestartCount}}", &second]).trim().to_owned();
    poll(|| (restarts() == "1").then_some(())).expect("it is started again");
    poll(|| site.page()).expect("it answers");
    site.expect_page("two");
}

/// Going back to what is live, and failing at it, leaves what is live as it was made.
#[test]
fn docker_what_is_live_is_still_started_again_after_a_rollback_to_it_failed() {
    let mut site = Site::docker();
    site.push("good");
    site.deploy(0);
    let live = format!("refit-{}-production-1", site.app);
    let policy = || docker(&["inspect", "--format", "{{.HostConfig.RestartPolicy.Name}}", &live]).trim().to_owned();
    docker(&["stop", "-t", "0", &live]);
    site = site.env("REFIT_FAULT", "step:smoke:effect=fail");
    site.refit(&["rollback", "--to", "1", "--reason", "it is down"]).expect(5);
    assert_eq!(policy(), "unless-stopped");
    site.expect_page("one");
}
