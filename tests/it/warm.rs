//! Versions that were replaced and run on for a while, so that going back to one starts nothing.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    gate::live,
    support::{Site, docker, http, load::Load, poll, processes_of},
};

/// A site behind the gate whose old versions are kept warm for so long. Its processes tell who they are.
fn warming(site: Site, how_long: &str) -> Site {
    site.edit_config("strategy = \"recreate\"\n", &format!("strategy = \"blue-green\"\nkeep_warm = \"{how_long}\"\n"));
    site
}

/// The same with processes, and a daemon that looks after them.
fn processes(how_long: &str) -> Site {
    let mut site = warming(Site::process(), how_long);
    site.write("run.sh", "echo $$ >www/pid\nexec python3 -m http.server --bind 127.0.0.1 --directory www $PORT\n");
    site.serve();
    site
}

/// The process that answers visitors.
#[track_caller]
fn who(site: &Site) -> u32 {
    let answer = http(site.port, "GET", "/pid", &[], b"").unwrap();
    answer.body.trim().parse().unwrap_or_else(|_| panic!("no process: {answer:?}"))
}

/// Whether it runs: its supervisor has not waited for it yet where it is only defunct.
fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with('Z'))
}

/// What `refit status` says is warm.
fn warm(site: &Site) -> Value {
    site.refit(&["status", "--format", "json"]).expect(0).json()[0]["warm"].clone()
}

fn until(warm: &Value) -> Timestamp {
    warm["until"].as_str().unwrap_or_else(|| panic!("nothing is warm: {warm}")).parse().unwrap()
}

#[track_caller]
fn back(site: &Site, target: &str) -> Value {
    site.refit(&["rollback", "--to", target, "--reason", "to try it", "--force"]).expect(0);
    site.newest()
}

#[track_caller]
fn nobody_saw(load: Load) {
    let failures = load.end().failures;
    assert_eq!(failures, [""; 0]);
}

fn supervisors(site: &Site) -> usize {
    processes_of(site.path(), "supervise").len()
}

#[test]
fn going_back_to_a_warm_version_starts_nothing() {
    let site = processes("10m");
    live(&site, &["one"]);
    let load = Load::on(site.port);
    let one = who(&site);
    live(&site, &["two"]);
    let two = who(&site);
    assert!(one != two && runs(one), "it is kept warm");
    let seen = warm(&site);
    assert_eq!(seen["deployment"], json!(1), "{seen}");
    assert!(until(&seen) > Timestamp::now());
    let page = site.refit(&["status"]).expect(0).stdout;
    assert!(page.contains("deployment 1 is kept warm until "), "{page}");
    let found = site.refit(&["doctor", "--format", "json"]).json();
    let leftovers = found.as_array().unwrap().iter().find(|f| f["check"].as_str().unwrap().starts_with("leftovers"));
    assert_eq!(leftovers.unwrap()["status"], json!("ok"), "{found:#}");

    // Back, and forward again.
    let ended = back(&site, "1");
    site.expect_page("one");
    assert_eq!(who(&site), one, "the same process");
    assert!(site.log_of(&ended).contains("was kept warm and runs"), "{}", site.log_of(&ended));
    assert!(runs(two));
    assert_eq!(warm(&site)["deployment"], json!(2));
    site.refit(&["rollback", "--undo", "--reason", "to try it"]).expect(0);
    assert_eq!((who(&site), runs(one)), (two, true));

    // The next deployment makes room, and keeps what it replaced.
    live(&site, &["three"]);
    assert_eq!((runs(one), runs(two), supervisors(&site)), (false, true, 2));
    assert_eq!(warm(&site)["deployment"], json!(2));
    // A way back that is not warm makes room as well.
    back(&site, "1");
    assert_eq!((runs(two), supervisors(&site)), (false, 2));
    assert_eq!(warm(&site)["deployment"], json!(5));
    nobody_saw(load);
}

#[test]
fn a_version_that_fails_has_made_room_first_and_is_not_kept() {
    let site = processes("10m");
    live(&site, &["one"]);
    let one = who(&site);
    live(&site, &["two"]);
    let two = who(&site);
    site.write("run.sh", "exit 1\n");
    site.push("dead");
    let ended = site.deploy(3);
    assert!(site.log_of(&ended).contains("stopping deployment 1, which was kept warm"), "{}", site.log_of(&ended));
    assert_eq!((runs(one), who(&site), supervisors(&site)), (false, two, 1));
    assert_eq!(warm(&site), Value::Null, "its time is not over, and it does not run");
}

#[test]
fn a_warm_version_is_stopped_when_its_time_is_over() {
    let site = processes("4s");
    live(&site, &["one"]);
    let one = who(&site);
    live(&site, &["two"]);
    poll(|| (!runs(one)).then_some(())).expect("it is stopped");
    let smoke = &site.show(2)["stages"].as_array().unwrap().iter().find(|s| s["name"] == "smoke").unwrap().clone();
    assert!(Timestamp::now() >= until(&smoke["output"]["warm"]), "not before: {smoke:#}");
    site.wait_for_log("its time is over");
    assert_eq!((warm(&site), supervisors(&site)), (Value::Null, 1));
    // From then on it is a release like any other.
    back(&site, "1");
    site.expect_page("one");
    assert_ne!(who(&site), one);
}

#[test]
fn a_daemon_that_was_killed_leaves_what_is_warm_to_the_next_one() {
    let mut site = processes("20s");
    live(&site, &["one"]);
    let one = who(&site);
    live(&site, &["two"]);
    let over = until(&warm(&site));
    site.kill_daemon();
    site.serve();
    assert!(runs(one) || Timestamp::now() >= over, "it is let be");
    poll(|| (!runs(one)).then_some(())).expect("the next one stops it");
    assert!(Timestamp::now() >= over, "when its time was over");

    // Over while no daemon was there.
    live(&site, &["three"]);
    let over = until(&warm(&site));
    site.kill_daemon();
    poll(|| (Timestamp::now() >= over).then_some(())).expect("time goes by");
    assert_eq!(supervisors(&site), 2);
    site.serve();
    poll(|| (supervisors(&site) == 1).then_some(())).expect("the next one stops it");
    site.expect_page("three");
}

#[test]
fn without_a_daemon_nothing_is_kept_warm() {
    let mut site = processes("10m");
    live(&site, &["one", "two"]);
    assert_eq!(supervisors(&site), 2);
    site.kill_daemon();
    // Whoever works in place tidies up first, and goes back like to any other release.
    back(&site, "1");
    site.expect_page("one");
    let ended = site.newest();
    let why = "deployment 2 is not kept warm: no daemon runs that would stop it";
    assert!(site.log_of(&ended).contains(why), "{}", site.log_of(&ended));
    assert_eq!((supervisors(&site), warm(&site)), (1, Value::Null));
}

/// A version that runs on must not do so on data that is exchanged under it.
#[test]
fn data_goes_back_with_nothing_that_runs_on_it() {
    let (dir, file) = (tempfile::tempdir().unwrap(), "guests.txt");
    let place = dir.path().join(file);
    std::fs::write(&place, "ada").unwrap();
    let table = format!("[[backup]]\nkind = \"files\"\npath = \"{}\"\n", dir.path().display());
    let mut site = warming(Site::process().with(&table), "10m");
    site.write("run.sh", "echo $$ >www/pid\nexec python3 -m http.server --bind 127.0.0.1 --directory www $PORT\n");
    site.serve();
    live(&site, &["one"]);
    let one = who(&site);
    live(&site, &["two"]);
    std::fs::write(&place, "ada bob").unwrap();
    assert!(runs(one));
    site.refit(&["rollback", "--force", "--restore-data", "--yes", "--reason", "why"]).expect(0);
    site.expect_page("one");
    assert_eq!(std::fs::read_to_string(&place).unwrap(), "ada");
    assert!(!runs(one) && who(&site) != one, "it was stopped, and began anew");
    assert_eq!((supervisors(&site), warm(&site)), (1, Value::Null));
}

/// What the engine knows of deployment `n`'s container: its process and since when, and whether the engine starts it again.
fn container(site: &Site, n: i64) -> (String, String) {
    let name = format!("refit-{}-production-{n}", site.app);
    let seen = docker(&[
        "inspect",
        "--format",
        "{{.State.Pid}} {{.State.StartedAt}}|{{.HostConfig.RestartPolicy.Name}}",
        &name,
    ]);
    let (process, policy) = seen.trim().split_once('|').unwrap();
    (process.to_owned(), policy.to_owned())
}

#[test]
fn docker_going_back_to_a_warm_container_starts_nothing() {
    let mut site = warming(Site::docker(), "10m");
    site.serve();
    live(&site, &["one"]);
    let load = Load::on(site.port);
    let (one, _) = container(&site, 1);
    live(&site, &["two"]);
    let (two, _) = container(&site, 2);
    assert_eq!(container(&site, 1), (one.clone(), "no".to_owned()), "it runs, and is not started again by itself");
    assert_eq!(container(&site, 2).1, "unless-stopped");
    back(&site, "1");
    site.expect_page("one");
    assert_eq!(container(&site, 1), (one.clone(), "unless-stopped".to_owned()));
    assert_eq!(container(&site, 2), (two, "no".to_owned()));
    nobody_saw(load);

    // A daemon that dies when it has just decided to keep it: it is live again, and nobody has stopped it.
    site.kill_daemon();
    site.set_env("REFIT_FAULT", "step:smoke:effect=kill");
    site.serve();
    site.version("three");
    site.push("three");
    site.refit(&["deploy", "--detach"]).expect(0);
    assert!(site.daemon_ends(), "{}", site.daemon_log());
    assert_eq!(container(&site, 1).1, "no");
    site.set_env("REFIT_FAULT", "");
    site.serve();
    assert_eq!(site.settled()["status"], json!("rolled_back"));
    site.expect_page("one");
    assert_eq!(container(&site, 1), (one, "unless-stopped".to_owned()));
    assert_eq!(site.containers(true).len(), 1);
}

/// The engine has started it again while it was live. That is no reason not to trust it when it comes back.
#[test]
fn docker_a_warm_container_that_had_ended_once_begins_anew() {
    let mut site = warming(Site::docker(), "10m");
    site.serve();
    live(&site, &["one"]);
    let (process, _) = container(&site, 1);
    let pid = process.split(' ').next().unwrap();
    assert!(std::process::Command::new("kill").args(["-9", pid]).status().unwrap().success());
    poll(|| (container(&site, 1).0 != process).then(|| site.page()).flatten()).expect("the engine starts it again");
    live(&site, &["two"]);
    let (warmed, _) = container(&site, 1);
    back(&site, "1");
    site.expect_page("one");
    assert_ne!(container(&site, 1).0, warmed);
    let name = format!("refit-{}-production-1", site.app);
    assert_eq!(docker(&["inspect", "--format", "{{.RestartCount}}", &name]).trim(), "0");
}
