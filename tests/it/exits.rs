//! Every exit code of `refit deploy` that can occur so far, and that the live version is what the code says.

use std::process::Stdio;

use crate::support::{Site, docker};

#[test]
fn docker_exit_0_the_deployment_is_live_and_healthy() {
    let site = Site::docker();
    let commit = site.push("first");
    let deployment = site.deploy(0);
    assert_eq!(deployment["status"], "succeeded", "{deployment:#}");
    assert_eq!(deployment["commit"], commit);
    assert_eq!(deployment["live"], true);
    assert_eq!(deployment["exit_code"], 0);
    site.expect_page("one");

    site.version("two");
    site.push("second");
    let second = site.deploy(0);
    assert_eq!(second["previous"], deployment["id"]);
    assert_eq!(second["trigger"]["kind"], "cli");
    site.expect_page("two");
    assert_eq!(site.containers(true).len(), 1, "one runs");
    assert_eq!(site.containers(false).len(), 2, "the old one is kept, stopped");
}

#[test]
fn docker_exit_1_tests_failed_and_nothing_changed() {
    let site = Site::docker().with("[[test]]\nname = \"unit\"\ntarget = \"test\"\nrun = \"sh test.sh\"");
    site.push("good");
    let good = site.deploy(0);
    site.write("test.sh", "echo assertion 17 failed; exit 3\n");
    site.version("two");
    site.push("bad");
    let bad = site.deploy(1);
    assert_eq!((&bad["status"], &bad["failed_stage"]), (&"failed".into(), &"test".into()), "{bad:#}");
    assert!(bad["error"].as_str().is_some_and(|e| e.contains("exit code 3")), "{bad:#}");
    assert!(site.log_of(&bad).contains("assertion 17 failed"));
    site.expect_page("one");
    let good = site.show(good["id"].as_i64().unwrap());
    assert_eq!(good["live"], true);
    assert_eq!(site.containers(false).len(), 1, "no test container and no candidate is left");
}

#[test]
fn docker_exit_2_the_build_failed() {
    let site = Site::docker();
    site.push("good");
    site.deploy(0);
    site.write("Dockerfile", "FROM refit-test/busybox:1\nRUN echo compiling && false\n");
    site.push("bad");
    let bad = site.deploy(2);
    assert_eq!((&bad["status"], &bad["failed_stage"]), (&"failed".into(), &"build".into()), "{bad:#}");
    assert!(site.log_of(&bad).contains("compiling"), "the build's output is in the log");
    site.expect_page("one");
}

#[test]
fn docker_exit_3_the_new_version_did_not_start() {
    let site = Site::docker();
    site.push("good");
    let good = site.deploy(0);
    site.write("run.sh", "echo cannot find my database; exit 7\n");
    site.push("bad");
    let bad = site.deploy(3);
    assert_eq!((&bad["status"], &bad["failed_stage"]), (&"rolled_back".into(), &"start".into()), "{bad:#}");
    let undone = bad["undone"].to_string();
    assert!(undone.contains(&format!("deployment {} ", good["id"])) && undone.contains("is live again"), "{undone}");
    assert!(site.log_of(&bad).contains("cannot find my database"), "the app's last words are in the log");
    site.expect_page("one");
    assert_eq!(site.containers(true), site.containers(false), "the candidate is gone");
}

#[test]
fn docker_exit_3_the_migration_failed() {
    let site = Site::docker().with("[migrate]\nrun = \"sh migrate.sh\"\nversion = \"cat version\"");
    site.write("migrate.sh", "echo migrating\n");
    site.write("version", "0007\n");
    site.push("good");
    let good = site.deploy(0);
    let migrate = &good["stages"][5];
    assert_eq!(migrate["output"]["after"], "0007", "{migrate:#}");
    site.write("migrate.sh", "echo column exists already; exit 1\n");
    site.version("two");
    site.push("bad");
    let bad = site.deploy(3);
    assert_eq!((&bad["status"], &bad["failed_stage"]), (&"failed".into(), &"migrate".into()), "{bad:#}");
    assert!(bad["error"].as_str().is_some_and(|e| e.contains("still at 0007")), "{bad:#}");
    assert!(bad["undone"].to_string().contains("schema was not rolled back"), "it says what was left: {bad:#}");
    site.expect_page("one");
}

#[test]
fn docker_exit_4_smoke_failed_and_the_old_version_is_back() {
    let site = Site::docker();
    site.push("good");
    site.deploy(0);
    site.write("www/health", "degraded");
    site.version("two");
    site.push("bad");
    let bad = site.deploy(4);
    assert_eq!((&bad["status"], &bad["failed_stage"]), (&"rolled_back".into(), &"smoke".into()), "{bad:#}");
    assert!(bad["error"].as_str().is_some_and(|e| e.contains("does not contain `ok`")), "{bad:#}");
    site.expect_page("one");
}

#[test]
fn docker_exit_4_a_first_deployment_has_nothing_to_go_back_to() {
    let site = Site::docker();
    site.write("www/health", "degraded");
    site.push("bad");
    let bad = site.deploy(4);
    assert_eq!(bad["status"], "failed", "{bad:#}");
    assert!(bad["undone"].to_string().contains("nothing was live before"), "{bad:#}");
    assert_eq!(site.page(), None);
    assert_eq!(site.containers(false), [""; 0]);
}

#[test]
fn docker_exit_5_going_back_failed_and_a_person_is_needed() {
    let site = Site::docker();
    site.push("good");
    let good = site.deploy(0);
    site.version("two");
    site.push("bad");
    let name = site.containers(true).remove(0);
    let image = good["image"].as_str().unwrap().to_owned();
    let site = site.with("[smoke]\nbake = \"5m\"\ninterval = \"100ms\"\n[[smoke.check]]\nhttp = \"/health\"");
    let bad = std::thread::scope(|scope| {
        scope.spawn(|| {
            site.wait_for("its bake time", |d| d["stages"][7]["status"] == "running");
            // Somebody tidies up: the old version's container and image go. Then the new one fails.
            docker(&["rm", &name]);
            docker(&["rmi", "-f", &image]);
            docker(&["exec", &site.containers(true)[0], "rm", "/app/www/health"]);
        });
        site.deploy(5)
    });
    assert_eq!(bad["status"], "stuck", "{bad:#}");
    assert!(bad["error"].as_str().is_some_and(|e| e.contains("undoing start failed")), "{bad:#}");
}

#[test]
fn exit_64_wrong_usage() {
    let site = Site::process();
    site.push("first");
    assert_eq!(site.refit(&["deploy", "--no-such-flag"]).code, 64);
    assert_eq!(site.refit(&["no-such-command"]).code, 64);
    let ran = site.refit(&["deploy", "--env", "staging"]).expect(64);
    assert!(
        ran.stderr.contains("staging") && ran.stderr.contains("production"),
        "it lists what there is: {}",
        ran.stderr
    );
    let ran = site.refit(&["rerun", "4711"]).expect(64);
    assert!(ran.stderr.contains("4711"), "{}", ran.stderr);
    let ran = site.refit(&["deploy", "--ref=--upload-pack=x"]).expect(64);
    assert!(ran.stderr.contains("upload-pack"), "{}", ran.stderr);
}

#[test]
fn exit_69_the_remote_is_away() {
    let site = Site::process();
    site.push("first");
    std::fs::rename(site.origin(), site.path().join("elsewhere.git")).unwrap();
    let site = site.with("[pull]\nretries = 0");
    let deployment = site.deploy(69);
    assert_eq!((&deployment["status"], &deployment["failed_stage"]), (&"failed".into(), &"pull".into()));
}

#[test]
fn exit_75_another_deployment_runs() {
    let mut site = Site::process().with("[build]\nrun = \"sleep 30\"");
    site.push("slow");
    site.serve();
    site.refit(&["deploy", "--detach"]).expect(0);
    site.wait_for("a start", |d| d["status"] == "running");
    let ran = site.refit(&["deploy", "--no-wait"]).expect(75);
    assert!(ran.stderr.contains("is running"), "{}", ran.stderr);
    let id = site.newest()["id"].to_string();
    site.refit(&["cancel", &id]).expect(0);
    assert_eq!(site.settled()["status"], "cancelled");
}

#[test]
fn exit_78_the_configuration_is_wrong() {
    let site = Site::process().with("[smok]\nbake = \"1s\"");
    let ran = site.refit(&["deploy"]).expect(78);
    assert!(ran.stderr.contains("smok") && ran.stderr.contains("smoke"), "it names the nearest key: {}", ran.stderr);
}

#[test]
fn exit_130_cancelled_with_everything_undone() {
    let mut site = Site::docker();
    site.push("good");
    site.deploy(0);
    site.write("run.sh", "sleep 600\n");
    site.push("slow");
    site.serve();
    let mut follower = site.refit_command(&["deploy"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let running = site.wait_for("its start", |d| d["stages"][6]["status"] == "running");
    site.refit(&["cancel", &running["id"].to_string()]).expect(0);
    assert_eq!(follower.wait().unwrap().code(), Some(130));
    let ended = site.settled();
    assert_eq!((&ended["status"], &ended["exit_code"]), (&"cancelled".into(), &130.into()), "{ended:#}");
    site.expect_page("one");
    assert_eq!(site.containers(false).len(), 1);
}
