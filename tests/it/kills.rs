//! SIGKILL and SIGTERM in the middle; two daemons on one state directory.

use crate::support::{Site, free_port};

/// The index of build, the last stage of the fan-out: everything up to it can run at the same time.
const FAN_OUT_END: usize = 3;

/// Longer than it takes to see that it bakes; the deployments that are to end have a short one.
const LONG_BAKE: &str = "bake = \"5m\"";

/// Kills the daemon while `stage` (its index) runs; after the restart the deployment has an end, and one version is live.
fn killed_during(stage: usize, name: &str, extra: &str, change: impl Fn(&Site)) {
    let quick = extra.replace(LONG_BAKE, "bake = \"0s\"");
    let mut site = Site::docker().with(&quick);
    site.push("good");
    site.deploy(0);
    if extra.contains(LONG_BAKE) {
        site.edit_config("bake = \"0s\"", LONG_BAKE);
    }
    change(&site);
    site.version("two");
    let commit = site.push("killed");
    site.serve();
    site.webhook("d-1", &site.push_body("main", &commit));
    // The stages beside it are done or not there (and have begun: a branch of the fan-out starts a moment after the other),
    // so that it is the one that was interrupted.
    site.wait_for(name, |d| {
        let over = |n: usize| matches!(d["stages"][n]["status"].as_str(), Some("succeeded" | "skipped"));
        d["stages"][stage]["status"] == "running" && (0..=FAN_OUT_END).all(|n| n == stage || over(n))
    });
    site.kill_daemon();
    if extra.contains(LONG_BAKE) {
        site.edit_config(LONG_BAKE, "bake = \"0s\"");
    }
    site.serve();
    let ended = site.settled();
    assert_eq!(ended["commit"], *commit);
    let status = ended["status"].as_str().unwrap().to_owned();
    let expected = if stage >= 6 { "rolled_back" } else { "failed" };
    assert_eq!(status, expected, "{ended:#}");
    assert!(ended["error"].as_str().is_some_and(|e| e.contains(&format!("stopped during {name}"))), "{ended:#}");
    site.expect_page("one");
    assert_eq!(site.containers(false).len(), 1, "no orphan: {:?}", site.containers(false));
    // A failed commit is not retried by itself; the next push deploys.
    for file in ["run.sh", "test.sh"] {
        let script = if file == "run.sh" { "exec httpd -f -p 8080 -h /app/www\n" } else { "true\n" };
        site.write(file, script);
    }
    site.write(
        "Dockerfile",
        "FROM refit-test/busybox:1 AS test\nCOPY . /app\nWORKDIR /app\nCMD [\"sh\", \"/app/run.sh\"]\n",
    );
    site.version("three");
    let next = site.push("next");
    site.webhook("d-2", &site.push_body("main", &next));
    site.wait_for("the next push", |d| d["commit"] == *next && d["status"] == "succeeded");
    site.expect_page("three");
}

#[test]
fn docker_killed_during_test() {
    let suite = "[[test]]\nname = \"unit\"\ntarget = \"test\"\nrun = \"sh test.sh\"";
    killed_during(2, "test", suite, |site| site.write("test.sh", "sleep 600\n"));
}

#[test]
fn docker_killed_during_build() {
    killed_during(3, "build", "", |site| {
        site.write(
            "Dockerfile",
            "FROM refit-test/busybox:1\nCOPY . /app\nRUN sleep 20\nCMD [\"sh\", \"/app/run.sh\"]\n",
        );
    });
}

#[test]
fn docker_killed_during_start() {
    killed_during(6, "start", "", |site| site.write("run.sh", "sleep 600\n"));
}

#[test]
fn docker_killed_during_smoke() {
    let bake = format!("[smoke]\n{LONG_BAKE}\n[[smoke.check]]\nhttp = \"/health\"\n");
    killed_during(7, "smoke", &bake, |_| ());
}

#[test]
fn a_delivery_that_was_accepted_survives_a_kill() {
    let mut site = Site::process();
    let commit = site.push("first");
    site.serve();
    assert_eq!(site.webhook("d-1", &site.push_body("main", &commit)).status, 202);
    site.kill_daemon();
    site.serve();
    // Begun and interrupted, or not begun and done: never lost.
    let ended = site.settled();
    assert_eq!(ended["commit"], *commit);
}

#[test]
fn sigterm_lets_a_running_deployment_finish() {
    let mut site = Site::process().with_held_build();
    site.push("first");
    site.hold();
    site.serve();
    site.refit(&["deploy", "--detach"]).expect(0);
    site.wait_for("the build", |d| d["stages"][3]["status"] == "running");
    site.signal("TERM");
    site.wait_for_log("stopping");
    site.let_go();
    assert_eq!(site.wait_for_the_daemons_end(), 0);
    let ended = site.newest();
    assert_eq!(ended["status"], "succeeded", "{ended:#}\n{}", site.daemon_log());
}

#[test]
fn a_second_sigterm_cancels_and_undoes() {
    let site = Site::process();
    site.push("good");
    site.deploy(0);
    let mut site = site.with("[build]\nrun = \"sleep 60\"");
    site.version("two");
    site.push("slow");
    site.serve();
    site.refit(&["deploy", "--detach"]).expect(0);
    site.wait_for("the build", |d| d["stages"][3]["status"] == "running");
    site.signal("TERM");
    site.wait_for_log("stopping");
    assert_eq!(site.stop_daemon(), 0);
    let ended = site.newest();
    assert_eq!(ended["status"], "cancelled", "{ended:#}");
    site.expect_page("one");
    // The store is whole: it opens, and the next deployment works.
    let site = site.with("");
    assert_eq!(site.refit(&["history"]).code, 0);
}

#[test]
fn docker_a_second_sigterm_during_start_brings_the_old_version_back() {
    let mut site = Site::docker();
    site.push("good");
    site.deploy(0);
    site.write("run.sh", "sleep 600\n");
    site.push("never healthy");
    site.serve();
    site.refit(&["deploy", "--detach"]).expect(0);
    // The old one is stopped already.
    site.wait_for("its start", |d| d["stages"][6]["status"] == "running" && site.page().is_none());
    site.signal("TERM");
    site.wait_for_log("stopping");
    assert_eq!(site.stop_daemon(), 0);
    let ended = site.newest();
    assert_eq!(ended["status"], "cancelled", "{ended:#}\n{}", site.daemon_log());
    site.expect_page("one");
    assert_eq!((site.containers(true).len(), site.containers(false).len()), (1, 1));
    // Nothing is left to recover, and the next one works.
    site.write("run.sh", "exec httpd -f -p 8080 -h /app/www\n");
    site.version("two");
    site.push("good again");
    site.deploy(0);
    site.expect_page("two");
    assert_eq!(site.history().len(), 3);
}

#[test]
fn what_waits_during_a_stop_is_deployed_by_the_next_start() {
    let mut site = Site::process().with_held_build();
    site.push("first");
    site.hold();
    site.serve();
    site.refit(&["deploy", "--detach"]).expect(0);
    site.wait_for("the build", |d| d["stages"][3]["status"] == "running");
    site.version("two");
    let second = site.push("second");
    assert_eq!(site.webhook("d-1", &site.push_body("main", &second)).status, 202);
    site.wait_for("its place in the queue", |d| d["commit"] == *second && d["status"] == "queued");
    site.signal("TERM");
    site.wait_for_log("stopping");
    site.let_go();
    assert_eq!(site.wait_for_the_daemons_end(), 0);
    assert_eq!(site.newest()["status"], "queued", "the first one ended, the second was not begun");
    site.expect_page("one");
    site.serve();
    site.wait_for("the second", |d| d["commit"] == *second && d["status"] == "succeeded");
    site.expect_page("two");
    assert_eq!(site.history().len(), 2);
}

#[test]
fn a_second_daemon_refuses_to_start() {
    let mut site = Site::process();
    site.push("first");
    site.serve();
    let second = site.refit(&["serve"]).expect(75);
    assert!(second.stderr.contains("already runs"), "{}", second.stderr);
    // With a port of its own it meets the lock.
    let text = std::fs::read_to_string(site.config_file()).unwrap();
    let elsewhere = text.replace(&format!("127.0.0.1:{}", site.http), &format!("127.0.0.1:{}", free_port()));
    std::fs::write(site.config_file(), elsewhere).unwrap();
    let second = site.refit(&["serve"]).expect(75);
    assert!(second.stderr.contains("another refit"), "{}", second.stderr);
    assert_eq!(site.stop_daemon(), 0);
}

#[test]
fn ctrl_c_in_place_cancels_and_undoes() {
    let site = Site::process();
    site.push("good");
    site.deploy(0);
    let site = site.with("[build]\nrun = \"sleep 60\"");
    site.version("two");
    site.push("slow");
    let child = site.refit_command(&["deploy"]).spawn().unwrap();
    site.wait_for("the build", |d| d["stages"][3]["status"] == "running");
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-s", "INT", &pid]).status().unwrap().success());
    let mut child = child;
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(site.newest()["status"], "cancelled");
    site.expect_page("one");
}
