//! What nobody recorded: made by hand behind Refit's back, found at the daemon's start and by `refit doctor`.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::support::{Site, docker, poll};

const BASE: &str = "refit-test/busybox:1";

fn name(site: &Site, deployment: i64) -> String {
    format!("refit-{}-production-{deployment}", site.app)
}

fn labels(site: &Site, deployment: i64, more: &[&str]) -> Vec<String> {
    let own = [
        format!("refit.app={}", site.app),
        "refit.environment=production".to_owned(),
        format!("refit.deployment={deployment}"),
    ];
    own.into_iter().chain(more.iter().map(|l| (*l).to_owned())).flat_map(|l| ["--label".to_owned(), l]).collect()
}

/// Runs a container as a deployment would have left it.
fn stray(site: &Site, deployment: i64, role: &str, suffix: &str) -> String {
    let name = name(site, deployment) + suffix;
    let labels = labels(site, deployment, &[&format!("refit.role={role}")]);
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    docker(&[&["run", "-d", "--init", "--name", &name], labels.as_slice(), &[BASE, "sleep", "1000"]].concat());
    name
}

/// Deployment 1 is live and deployment 2 failed, with nothing left of it.
fn one_good_one_bad(site: &Site) {
    site.push("good");
    site.deploy(0);
    site.write("run.sh", "exit 1\n");
    site.push("bad");
    assert_eq!(site.deploy(3)["id"], 2);
}

/// What doctor says of leftovers: detail and fix.
fn told(site: &Site) -> Vec<(String, String)> {
    let found = site.refit(&["doctor", "--format", "json"]).json();
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let about = |f: &&Value| f["check"].as_str().is_some_and(|c| c.starts_with("leftovers"));
    found.as_array().unwrap().iter().filter(about).map(|f| (text(&f["detail"]), text(&f["fix"]))).collect()
}

const NOTHING: [(String, String); 1] = [(String::new(), String::new())];

#[track_caller]
fn expect_nothing_left(site: &Site) {
    let [(none, no_fix)] = told(site).try_into().unwrap_or(NOTHING);
    assert_eq!((none.as_str(), no_fix.as_str()), ("none", ""), "{:?}", told(site));
}

#[test]
fn docker_containers_of_an_ended_deployment_go_and_unknown_ones_stay() {
    let mut site = Site::docker().with("[start.health]\npath = \"/health\"\ninterval = \"50ms\"\ndeadline = \"3s\"\n");
    one_good_one_bad(&site);
    expect_nothing_left(&site);
    let instance = stray(&site, 2, "app", "");
    let helper = stray(&site, 2, "migrate", "-migrate");
    let unknown = stray(&site, 77, "app", "");
    let unknown_helper = stray(&site, 77, "test-unit", "-test-unit");
    // Without a role it is only something that a person made from our image.
    let by_hand = format!("{}-by-hand", name(&site, 2));
    docker(&["run", "-d", "--name", &by_hand, "--label", &format!("refit.app={}", site.app), BASE, "sleep", "1000"]);

    let before = told(&site);
    let fix_of = |wanted: &str| before.iter().find(|(detail, _)| detail.contains(wanted)).map(|(_, fix)| fix.clone());
    assert!(fix_of(&format!("{instance} runs")).is_some_and(|fix| fix.contains("restart the daemon")), "{before:?}");
    assert!(fix_of(&helper).is_some(), "{before:?}");
    assert!(fix_of(&format!("{unknown} runs")).is_some_and(|fix| fix.contains(&format!("`docker rm -f {unknown}`"))));
    assert!(fix_of(&by_hand).is_none(), "{before:?}");
    assert!(site.containers(true).contains(&instance), "doctor only looks");

    site.serve();
    let mut left = vec![name(&site, 1), unknown.clone(), unknown_helper.clone(), by_hand];
    left.sort();
    assert_eq!(site.containers(false), left, "{}", site.daemon_log());
    site.expect_page("one");
    assert!(site.daemon_log().contains(&format!("{instance} runs")), "{}", site.daemon_log());
    let after: Vec<String> = told(&site).into_iter().map(|(detail, _)| detail).collect();
    assert_eq!(after.len(), 2, "{after:?}");
    assert!(after.iter().all(|detail| detail.contains(&unknown)), "{after:?}");
    // Once more: nothing else happens.
    assert_eq!(site.stop_daemon(), 0);
    site.serve();
    assert_eq!(site.containers(false), left);
}

#[test]
fn docker_a_live_container_that_was_stopped_is_started_at_the_daemons_start() {
    let mut site = Site::docker();
    site.push("good");
    site.deploy(0);
    docker(&["stop", "--time", "1", &name(&site, 1)]);
    assert_eq!(site.page(), None);
    let found = told(&site);
    assert!(found.len() == 1 && found[0].0.contains("does not run"), "{found:?}");
    site.serve();
    poll(|| site.page()).expect("it is back");
    site.expect_page("one");
    assert!(site.daemon_log().contains("is live: started"), "{}", site.daemon_log());
    expect_nothing_left(&site);
    // Whoever stops it while the daemon runs is left in peace, and a container that is gone is told.
    docker(&["rm", "-f", &name(&site, 1)]);
    let found = told(&site);
    assert!(found.len() == 1 && found[0].1.contains("`refit rerun 1`"), "{found:?}");
    site.refit(&["rerun", "1"]).expect(0);
    site.expect_page("one");
    expect_nothing_left(&site);
}

#[test]
fn docker_two_running_versions_become_one() {
    let mut site = Site::docker();
    site.push("first");
    site.deploy(0);
    site.version("two");
    site.push("second");
    site.deploy(0);
    // The old one in the place of the new one.
    docker(&["stop", "--time", "1", &name(&site, 2)]);
    docker(&["start", &name(&site, 1)]);
    site.serve();
    poll(|| site.page().filter(|page| page.contains("two"))).expect("the live version is back");
    assert_eq!(site.containers(true), [name(&site, 2)], "{}", site.daemon_log());
    assert_eq!(site.containers(false).len(), 2, "the way back is kept");
    assert_eq!(site.stop_daemon(), 0);
    // The old one beside the new one.
    docker(&["rm", "-f", &name(&site, 1)]);
    stray(&site, 1, "app", "");
    assert_eq!(site.containers(true).len(), 2);
    site.serve();
    assert_eq!(site.containers(true), [name(&site, 2)], "{}", site.daemon_log());
    assert_eq!(site.containers(false).len(), 2, "the way back is kept");
    site.expect_page("two");
}

#[test]
fn docker_a_command_without_a_daemon_puts_in_order_and_starts_nothing() {
    let site = Site::docker().with("[start.health]\npath = \"/health\"\ninterval = \"50ms\"\ndeadline = \"3s\"\n");
    one_good_one_bad(&site);
    docker(&["stop", "--time", "1", &name(&site, 1)]);
    let stray = stray(&site, 2, "app", "");
    docker(&["stop", "--time", "1", &stray]);
    // A deployment that never gets as far as what runs.
    site.write("Dockerfile", &format!("FROM {BASE}\nRUN false\n"));
    site.push("cannot be built");
    site.deploy(2);
    assert_eq!(site.containers(false), [name(&site, 1)]);
    assert_eq!(site.page(), None, "the daemon starts what is live");
}

#[test]
fn docker_an_image_that_no_release_needs_goes() {
    let mut site = Site::docker().with("[start.health]\npath = \"/health\"\ninterval = \"50ms\"\ndeadline = \"3s\"\n");
    one_good_one_bad(&site);
    let context = site.path().join("stray");
    fs::create_dir(&context).unwrap();
    fs::write(context.join("Dockerfile"), format!("FROM {BASE}\n")).unwrap();
    let build = |tag: &str, deployment: i64| {
        let labels = labels(&site, deployment, &["refit.build-key=none", &format!("made={tag}")]);
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        docker(&[&["build", "-q", "-t", tag], labels.as_slice(), &[&context.display().to_string()]].concat());
        tag.to_owned()
    };
    let stray = build(&format!("{}:stray", site.app), 2);
    let unknown = build(&format!("{}:unknown", site.app), 77);
    let foreign = build(&format!("other-{}:1", site.app), 2);
    let is_there = |image: &str| {
        let mut ask = Command::new("docker");
        ask.args(["image", "inspect", image]).stdout(Stdio::null()).stderr(Stdio::null());
        ask.status().unwrap().success()
    };
    let found = told(&site);
    assert!(found.iter().any(|(detail, _)| detail.contains(&stray)), "{found:?}");
    assert!(found.iter().any(|(_, fix)| fix.contains(&format!("`docker rmi {unknown}`"))), "{found:?}");
    assert!(!found.iter().any(|(detail, _)| detail.contains(&foreign)), "{found:?}");
    site.serve();
    assert!(!is_there(&stray), "{}", site.daemon_log());
    assert!(is_there(&unknown) && is_there(&foreign), "{}", site.daemon_log());
    assert!(is_there(&format!("{}:latest", site.app)));
    site.expect_page("one");
}

/// Copies an instance of the process runtime for another deployment, with something else to run, and has it supervised.
fn supervised_stray(site: &Site, deployment: i64) -> (std::process::Child, String) {
    let instances = site.path().join(".refit/process/.instances");
    let text = fs::read_to_string(instances.join(name(site, 1)).join("spec.json")).unwrap();
    let mut spec: Value = serde_json::from_str(&text).unwrap();
    spec["deployment"] = deployment.into();
    spec["command"] = serde_json::json!(["sleep", "1000"]);
    let dir = instances.join(name(site, deployment));
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("spec.json"), spec.to_string()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_refit"));
    let child = command.arg("supervise").arg(&dir).stdin(Stdio::null()).spawn().unwrap();
    let app = poll(|| {
        let state: Value = serde_json::from_slice(&fs::read(dir.join("state.json")).ok()?).ok()?;
        state["app"]["leader"]["pid"].as_i64()
    });
    (child, format!("/proc/{}", app.expect("it runs")))
}

#[test]
fn a_supervised_process_of_an_ended_deployment_is_ended_and_an_unknown_one_is_told() {
    let mut site = Site::process().with("[[test]]\nname = \"unit\"\nrun = \"sh test.sh\"");
    site.push("good");
    site.deploy(0);
    site.write("test.sh", "exit 1\n");
    site.push("bad");
    site.deploy(1);
    let (mut supervisor, app) = supervised_stray(&site, 2);
    let (mut unknown_supervisor, unknown_app) = supervised_stray(&site, 77);
    let process = site.path().join(".refit/process").join(&site.app).join("production");
    let scratch = process.join("scratch/2-test-unit");
    let unneeded = process.join("releases/2-0123456789");
    for dir in [&scratch, &unneeded] {
        fs::create_dir_all(dir).unwrap();
    }
    assert_eq!(told(&site).len(), 4, "{:?}", told(&site));
    site.serve();
    supervisor.wait().unwrap();
    let log = site.daemon_log();
    assert!(!Path::new(&app).exists() && !scratch.exists() && !unneeded.exists(), "{log}");
    assert!(!site.path().join(".refit/process/.instances").join(name(&site, 2)).exists(), "{log}");
    assert!(Path::new(&unknown_app).exists(), "{log}");
    site.expect_page("one");
    let found = told(&site);
    assert!(found.len() == 1 && found[0].0.contains(&name(&site, 77)), "{found:?}");
    // As doctor says.
    let ended = Command::new("kill").args(["-s", "TERM", &unknown_supervisor.id().to_string()]).status().unwrap();
    assert!(ended.success());
    unknown_supervisor.wait().unwrap();
    fs::remove_dir_all(site.path().join(".refit/process/.instances").join(name(&site, 77))).unwrap();
    expect_nothing_left(&site);
}

#[test]
fn doctor_makes_nothing_before_the_first_deployment() {
    let site = Site::process();
    expect_nothing_left(&site);
    let made = fs::read_dir(site.path().join(".refit")).map(|all| all.flatten().map(|e| e.file_name()).collect());
    let made: Vec<_> = made.unwrap_or_default();
    assert!(!made.iter().any(|name| name == "process" || name == "refit.db"), "{made:?}");
}

#[test]
fn a_lost_registry_leaves_everything_standing() {
    let mut site = Site::process();
    site.push("good");
    site.deploy(0);
    for file in ["refit.db", "refit.db-wal", "refit.db-shm"] {
        let _ = fs::remove_file(site.path().join(".refit").join(file));
    }
    let found = told(&site);
    assert_eq!(found.len(), 2, "the process and its release: {found:?}");
    site.serve();
    site.expect_page("one");
    assert_eq!(told(&site), found);
}
