//! Apps behind the gate: two versions side by side, the traffic moved between them, and nobody who asks sees any of it.

use serde_json::{Value, json};

use crate::support::{Site, load::Load, poll, processes_of};

/// The strategy of a site that is about something else.
const RECREATE: &str = "strategy = \"recreate\"\n";

/// A site whose app is behind the gate.
fn behind_gate(site: Site) -> Site {
    site.edit_config(RECREATE, "strategy = \"blue-green\"\n");
    site
}

/// A site whose versions replace each other, with requests held meanwhile.
fn holding(site: Site) -> Site {
    site.edit_config("[start]\n", "[start]\ngate = true\n");
    site
}

/// Deploys these versions.
pub fn live(site: &Site, versions: &[&str]) {
    for version in versions {
        site.version(version);
        site.push(version);
        site.deploy(0);
        site.expect_page(version);
    }
}

fn status(site: &Site) -> Value {
    site.refit(&["gate", "status", "--format", "json"]).expect(0).json()
}

/// The side that the gate gives requests to.
fn side(site: &Site) -> Value {
    status(site)["routes"][0]["live"]["id"].clone()
}

/// What is live, what has the traffic and what runs are one and the same.
#[track_caller]
fn is_live(site: &Site, id: i64) {
    assert_eq!(site.show(id)["live"], json!(true), "{:#}", site.show(id));
    assert_eq!(side(site), json!(id.to_string()), "{:#}", status(site));
    assert_eq!(processes_of(site.path(), "gate").len(), 1, "one gate");
}

#[track_caller]
fn nobody_saw(load: Load) -> u64 {
    let seen = load.end();
    assert!(
        seen.failures.is_empty(),
        "{} of {} failed: {:?}",
        seen.failures.len(),
        seen.answers,
        &seen.failures[..seen.failures.len().min(5)]
    );
    seen.answers
}

/// What `refit status` knows of the gate.
fn served(site: &Site) -> Value {
    site.refit(&["status", "--format", "json"]).expect(0).json()[0]["gate"].clone()
}

/// What doctor says of the gate: check and verdict.
fn told(site: &Site) -> Vec<(String, String)> {
    let found = site.refit(&["doctor", "--format", "json"]).json();
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let about = |f: &&Value| f["check"].as_str().is_some_and(|c| c.starts_with("gate"));
    found.as_array().unwrap().iter().filter(about).map(|f| (text(&f["check"]), text(&f["status"]))).collect()
}

fn versions_come_and_go_unseen(site: Site) {
    let site = behind_gate(site);
    live(&site, &["one"]);
    let load = Load::on(site.port);
    for (version, id) in [("two", 2), ("three", 3), ("four", 4)] {
        live(&site, &[version]);
        is_live(&site, id);
    }
    for (target, id, page) in [("3", 3, "three"), ("4", 4, "four"), ("1", 1, "one")] {
        site.refit(&["rollback", "--to", target, "--reason", "to try it", "--force"]).expect(0);
        is_live(&site, id);
        site.expect_page(page);
    }
    nobody_saw(load);
}

#[test]
fn versions_and_rollbacks_of_processes_come_and_go_unseen() {
    versions_come_and_go_unseen(Site::process());
}

#[test]
fn docker_versions_and_rollbacks_come_and_go_unseen() {
    versions_come_and_go_unseen(Site::docker());
}

#[test]
fn a_bad_version_never_gets_the_traffic() {
    let site = behind_gate(Site::process());
    live(&site, &["one"]);
    let load = Load::on(site.port);
    site.version("bad");
    site.write("www/health", "sick");
    site.push("bad");
    let ended = site.deploy(3);
    assert_eq!((&ended["status"], &ended["failed_stage"]), (&json!("rolled_back"), &json!("start")), "{ended:#}");
    is_live(&site, 1);
    let seen = load.seen();
    assert!(!seen.pages.contains_key("version bad"), "{seen:?}");
    nobody_saw(load);
}

/// What fails only when it has the traffic, fails in smoke, and the old version, which still runs, has the traffic again.
#[test]
fn a_version_that_fails_with_the_traffic_gives_it_back() {
    let check = "[smoke]\nbake = \"3s\"\ninterval = \"100ms\"\n[[smoke.check]]\nhttp = \"/\"\n";
    let site = behind_gate(Site::process().with(check));
    live(&site, &["one"]);
    let load = Load::on(site.port);
    // Its start page goes a moment after it has the traffic.
    let script = "(sleep 3; rm -r www) &\n\
                  exec python3 -m http.server --bind 127.0.0.1 --directory www $PORT\n";
    site.write("run.sh", script);
    site.version("sick");
    site.push("sick");
    let ended = site.deploy(4);
    assert_eq!((&ended["status"], &ended["failed_stage"]), (&json!("rolled_back"), &json!("smoke")), "{ended:#}");
    assert!(load.seen().pages.contains_key("version sick"), "it had the traffic for a while");
    is_live(&site, 1);
    site.expect_page("one");
    load.goes_on();
    let failures = load.end().failures;
    assert!(failures.iter().all(|failure| failure.contains("404")), "its own answers only: {failures:?}");
}

/// A process site whose bake compares error rates.
fn comparing() -> Site {
    behind_gate(Site::process().with("[smoke]\nbake = \"3s\"\ninterval = \"100ms\"\nmax_error_rate = \"10%\"\n"))
}

/// A version of which every `n`th start page is an error.
fn errs(site: &Site, version: &str, n: u32) {
    site.write("run.sh", "exec python3 errs.py $PORT\n");
    site.write(
        "errs.py",
        &format!(
            "import http.server, itertools, sys\n\
             count = itertools.count(1)\n\
             class Errs(http.server.SimpleHTTPRequestHandler):\n\
             \x20   def __init__(self, *args): super().__init__(*args, directory='www')\n\
             \x20   def do_GET(self):\n\
             \x20       if self.path == '/' and next(count) % {n} == 0: return self.send_error(500)\n\
             \x20       super().do_GET()\n\
             http.server.ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), Errs).serve_forever()\n"
        ),
    );
    site.version(version);
    site.push(version);
}

/// No check asks for what its visitors find.
#[test]
fn a_version_with_more_errors_than_the_one_before_is_taken_back() {
    let site = comparing();
    live(&site, &["one"]);
    let load = Load::on(site.port);
    errs(&site, "erring", 3);
    let ended = site.deploy(4);
    assert_eq!((&ended["status"], &ended["failed_stage"]), (&json!("rolled_back"), &json!("smoke")), "{ended:#}");
    let why = ended["error"].as_str().unwrap();
    assert!(why.contains("the one before had 0.0 % errors (0 of ") && why.contains("`max_error_rate`"), "{why}");
    is_live(&site, 1);
    site.expect_page("one");
    load.goes_on();
    let failures = load.end().failures;
    assert!(!failures.is_empty() && failures.iter().all(|failure| failure.contains("500")), "{failures:?}");
}

#[test]
fn a_version_with_as_many_errors_as_the_one_before_stays() {
    let site = comparing();
    errs(&site, "one", 3);
    site.deploy(0);
    let load = Load::on(site.port);
    errs(&site, "two", 3);
    let ended = site.deploy(0);
    is_live(&site, 2);
    let shown = site.show(2);
    let smoke = shown["stages"].as_array().unwrap().iter().find(|stage| stage["name"] == "smoke").unwrap();
    for side in ["old", "new"] {
        let seen = &smoke["output"]["errors"][side];
        assert!(seen["requests"].as_u64() >= Some(20) && seen["errors"].as_u64() > Some(0), "{side}: {shown:#}");
    }
    assert!(site.log_of(&ended).contains("the new version has "), "{shown:#}");
    drop(load);
}

#[test]
fn requests_wait_while_versions_replace_each_other() {
    let site = holding(Site::process());
    live(&site, &["one"]);
    let load = Load::on(site.port);
    for (version, id) in [("two", 2), ("three", 3)] {
        live(&site, &[version]);
        is_live(&site, id);
    }
    site.refit(&["rollback", "--reason", "to try it", "--force"]).expect(0);
    is_live(&site, 2);
    site.write("run.sh", "exit 1\n");
    site.push("dead");
    site.deploy(3);
    is_live(&site, 2);
    nobody_saw(load);
}

/// The port changes hands between the app itself and the gate, in deployments and rollbacks.
fn the_port_changes_hands(site: Site) {
    live(&site, &["one"]);
    assert_eq!(processes_of(site.path(), "gate"), [] as [u32; 0], "no gate before it is needed");
    let site = behind_gate(site);
    live(&site, &["two"]);
    is_live(&site, 2);
    site.write("run.sh", "exit 1\n");
    site.push("dead");
    site.deploy(3);
    is_live(&site, 2);
    site.refit(&["rollback", "--to", "1", "--reason", "to try it", "--force"]).expect(0);
    site.expect_page("one");
    assert_eq!(status(&site)["routes"], json!([]), "the app has its port itself");
    site.refit(&["rollback", "--undo", "--reason", "to try it", "--force"]).expect(0);
    site.expect_page("two");
    is_live(&site, 2);
}

#[test]
fn the_port_of_a_process_changes_hands() {
    the_port_changes_hands(Site::process());
}

#[test]
fn docker_the_port_changes_hands() {
    the_port_changes_hands(Site::docker());
}

/// Without a word about strategies: the update that brought the default takes the port over from the version that was live, and from then on
/// nobody sees a deployment.
#[test]
fn docker_an_app_without_files_of_its_own_gets_behind_the_gate_by_itself() {
    let site = Site::docker();
    live(&site, &["one"]);
    site.edit_config(RECREATE, "");
    live(&site, &["two"]);
    is_live(&site, 2);
    assert_eq!(site.containers(true).len(), 1, "the old version is stopped");
    let load = Load::on(site.port);
    live(&site, &["three"]);
    is_live(&site, 3);
    nobody_saw(load);
    let told = "strategy: blue-green (has a port, no volumes, and no database file)";
    assert!(site.log_of(&site.newest()).contains(told), "{}", site.log_of(&site.newest()));
    let checked = site.refit(&["check"]).expect(0);
    assert!(checked.stdout.contains(told), "{}", checked.stdout);
}

#[test]
fn docker_an_app_that_writes_to_a_volume_never_runs_twice() {
    let site = Site::docker();
    let data = site.path().join("data");
    std::fs::create_dir(&data).unwrap();
    site.edit_config(RECREATE, &format!("volumes = [\"{}:/data\"]\n", data.display()));
    // One that finds another one at work says so, and is not healthy.
    site.write(
        "run.sh",
        "[ -e /data/lock ] && { echo two at once; exit 1; }\n: >/data/lock\n\
         trap 'rm /data/lock; kill $!; exit 0' TERM\nhttpd -f -p 8080 -h /app/www &\nwait\n",
    );
    live(&site, &["one", "two"]);
    assert_eq!(processes_of(site.path(), "gate"), [] as [u32; 0], "the app has its port itself");
    let plan = site.refit(&["check", "--format", "json"]).expect(0).json();
    let environment = &plan["environments"][0];
    assert_eq!((&environment["strategy"], &environment["gate"]), (&json!("recreate"), &json!(false)));
    let why = environment["strategy_reason"].as_str().unwrap_or_default();
    assert!(why.contains("writes to the volume") && why.contains(&data.display().to_string()), "{why}");
}

#[test]
fn a_switch_that_fails_from_the_apps_own_port_gives_the_port_back() {
    let mut site = Site::process();
    live(&site, &["one"]);
    site = behind_gate(site);
    site.set_env("REFIT_FAULT", "step:start:effect=fail");
    site.version("two");
    site.push("two");
    site.deploy(3);
    site.expect_page("one");
    assert_eq!(status(&site)["routes"], json!([]));
}

/// A process that dies at any moment leaves a version with the traffic, and the next one puts the rest right.
#[test]
fn the_daemon_may_die_at_any_moment_and_nobody_sees() {
    let mut site = behind_gate(Site::process());
    live(&site, &["one"]);
    let load = Load::on(site.port);
    let mut live_now = (1, "one".to_owned());
    for (n, point) in [
        "step:start:intent",
        "step:start:effect",
        "step:start:record",
        "step:smoke:intent",
        "step:smoke:effect",
        "step:smoke:record",
        "end:intent",
        "end:record",
    ]
    .into_iter()
    .enumerate()
    {
        let version = format!("killed-{n}");
        site.version(&version);
        site.push(&version);
        site.set_env("REFIT_FAULT", &format!("{point}=kill"));
        assert_eq!(site.refit(&["deploy"]).code, -1, "killed at {point}");
        load.goes_on();
        site.set_env("REFIT_FAULT", "");
        // The next one recovers.
        site.serve();
        let ended = site.settled();
        match ended["status"].as_str() {
            Some("succeeded") => live_now = (ended["id"].as_i64().unwrap(), version),
            Some("rolled_back") => {}
            _ => panic!("{point}: {ended:#}"),
        }
        is_live(&site, live_now.0);
        site.expect_page(&live_now.1);
        site.kill_daemon();
    }
    assert!(live_now.0 > 1, "one of them was finished");
    nobody_saw(load);
}

#[test]
fn a_gate_that_is_gone_comes_back_and_serves_what_is_live() {
    let mut site = behind_gate(Site::process());
    live(&site, &["one", "two"]);
    site.serve();
    let gates = processes_of(site.path(), "gate");
    assert_eq!(gates.len(), 1);
    let killed = std::process::Command::new("kill").args(["-s", "KILL", &gates[0].to_string()]).status().unwrap();
    assert!(killed.success());
    poll(|| site.page()).expect("it is started again");
    site.expect_page("two");
    is_live(&site, 2);
    assert_ne!(processes_of(site.path(), "gate"), gates);
}

#[test]
fn status_and_doctor_tell_how_the_gate_serves_and_that_it_is_away() {
    let mut site = Site::process();
    live(&site, &["one"]);
    assert_eq!(served(&site), Value::Null, "the app has its port itself");
    assert_eq!(told(&site), [("gate".to_owned(), "ok".to_owned())]);
    site = behind_gate(site);
    live(&site, &["two"]);
    let name = format!("{}/production", site.app);
    let load = Load::on(site.port);
    let seen = served(&site);
    assert_eq!((&seen["state"], &seen["held"], &seen["detail"]), (&json!("serving"), &json!(0), &Value::Null));
    let side = &seen["live"];
    assert_eq!((&side["deployment"], &side["errors"]), (&json!("2"), &json!(0)), "{seen:#}");
    assert!(side["requests"].as_u64() >= Some(20) && side["p50_us"].as_u64() > Some(0), "{seen:#}");
    assert!(side["p99_us"].as_u64() >= side["p50_us"].as_u64() && side["in_flight"].is_u64(), "{seen:#}");
    let page = site.refit(&["status"]).expect(0).stdout;
    assert!(page.contains("gate: serving; deployment 2: ") && page.contains("0 errors, latency p50 "), "{page}");
    assert_eq!(told(&site), [("gate".to_owned(), "ok".to_owned()), (format!("gate {name}"), "ok".to_owned())]);
    site.refit(&["gate", "maintenance", &name, "on", "--message", "back soon"]).expect(0);
    let seen = served(&site);
    assert_eq!((&seen["state"], &seen["detail"]), (&json!("maintenance"), &json!("back soon")), "{seen:#}");
    assert_eq!(told(&site)[1].1, "warn");
    site.refit(&["gate", "maintenance", &name, "off"]).expect(0);
    drop(load);

    // Nobody puts it right without a daemon; and `status` still answers.
    for gate in processes_of(site.path(), "gate") {
        std::process::Command::new("kill").args(["-s", "KILL", &gate.to_string()]).status().unwrap();
    }
    poll(|| processes_of(site.path(), "gate").is_empty().then_some(())).expect("it ends");
    let seen = served(&site);
    assert_eq!((&seen["state"], &seen["live"]), (&json!("unreachable"), &Value::Null), "{seen:#}");
    assert!(seen["detail"].as_str().unwrap().contains("no gate answers"), "{seen:#}");
    assert!(site.refit(&["status"]).expect(0).stdout.contains("gate: unreachable: no gate answers"));
    assert_eq!(told(&site), [("gate".to_owned(), "fail".to_owned())]);

    site.serve();
    let answer = poll(|| {
        let answer = crate::support::http(site.http, "GET", "/_deploy/status", &[], b"").ok()?.json();
        (answer["environments"][0]["gate"]["state"] == json!("serving")).then_some(answer)
    });
    let answer = answer.expect("the daemon starts it, and tells the same over HTTP");
    assert_eq!(answer["environments"][0]["gate"]["live"]["deployment"], json!("2"), "{answer:#}");
}

/// A version that is still answering when another one gets the traffic is let finish.
#[test]
fn a_slow_answer_is_finished_before_the_old_version_goes() {
    let site = behind_gate(Site::process());
    site.write("run.sh", "exec python3 slow.py $PORT\n");
    site.write(
        "slow.py",
        "import http.server, sys, time\n\
         class Slow(http.server.SimpleHTTPRequestHandler):\n\
         \x20   def __init__(self, *args): super().__init__(*args, directory='www')\n\
         \x20   def do_GET(self):\n\
         \x20       if self.path == '/slow': time.sleep(5)\n\
         \x20       self.path = '/' if self.path == '/slow' else self.path\n\
         \x20       super().do_GET()\n\
         http.server.ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), Slow).serve_forever()\n",
    );
    live(&site, &["one"]);
    let port = site.port;
    let slow = std::thread::spawn(move || crate::support::http(port, "GET", "/slow", &[], b"").unwrap());
    poll(|| (status(&site)["routes"][0]["live"]["in_flight"]["requests"] == json!(1)).then_some(()))
        .expect("it is asked");
    live(&site, &["two"]);
    let answer = slow.join().unwrap();
    assert_eq!((answer.status, answer.body.trim()), (200, "version one"));
}

/// By the environment's name, as somebody asks for it who does not know what a route is.
#[test]
fn visitors_get_a_maintenance_page_until_it_is_over() {
    let site = Site::process();
    let on = ["maintenance", "on", "--message", "back at 14:00"];
    live(&site, &["one"]);
    let ran = site.refit(&on).expect(64);
    assert!(ran.stderr.contains("is not behind the gate") && ran.stderr.contains("blue-green"), "{}", ran.stderr);
    let site = behind_gate(site);
    let ran = site.refit(&on).expect(69);
    assert!(ran.stderr.contains("does not run") && ran.stderr.contains("refit deploy"), "{}", ran.stderr);
    live(&site, &["two"]);
    let ran = site.refit(&[&on[..], &["--environment", "production"]].concat()).expect(0);
    assert!(ran.stdout.contains("in maintenance") && ran.stdout.contains("back at 14:00"), "{}", ran.stdout);
    let page = || crate::support::http(site.port, "GET", "/", &[], b"").unwrap();
    let answer = page();
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains("back at 14:00") && !answer.body.contains("version two"), "{}", answer.body);
    let again = site.refit(&["maintenance", "on", "--format", "json"]).expect(0).json();
    assert_eq!(
        (&again["maintenance"], &again["state"], &again["message"], &again["environment"]),
        (&json!(true), &json!("maintenance"), &Value::Null, &json!("production")),
        "{again:#}"
    );
    // Deployments go on behind it, and so do ways back.
    site.version("three");
    site.push("three");
    site.deploy(0);
    site.write("run.sh", "exit 1\n");
    site.push("dead");
    site.deploy(3);
    assert_eq!(page().status, 503);
    let over = site.refit(&["maintenance", "off", "--format", "json"]).expect(0).json();
    assert_eq!((&over["maintenance"], &over["state"]), (&json!(false), &json!("serving")), "{over:#}");
    site.expect_page("three");
    is_live(&site, 3);
    assert!(site.refit(&["maintenance", "off"]).expect(0).stdout.contains("visitors get the app again"));
}

/// `refit` as it was before an update: the same program, but another file.
fn older(site: &Site, args: &[&str]) -> std::process::Command {
    let file = site.path().join("older-refit");
    if !file.exists() {
        std::fs::copy(env!("CARGO_BIN_EXE_refit"), &file).unwrap();
    }
    let usual = site.refit_command(args);
    let mut older = std::process::Command::new(file);
    older.current_dir(site.path()).args(usual.get_args()).env_clear().stdin(std::process::Stdio::null());
    older.envs(usual.get_envs().filter_map(|(name, value)| Some((name, value?))));
    older
}

/// A site whose live version is behind a gate of an older build.
fn before_an_update() -> Site {
    let site = behind_gate(Site::process());
    site.version("one");
    site.push("one");
    assert!(older(&site, &["deploy"]).status().unwrap().success());
    site.expect_page("one");
    site
}

#[test]
fn an_updated_daemon_replaces_the_gate_and_nobody_sees() {
    let mut site = before_an_update();
    let (before, load) = (status(&site), Load::on(site.port));
    assert_eq!(told(&site)[0], ("gate".to_owned(), "warn".to_owned()));
    site.serve();
    let after = status(&site);
    assert!(after["pid"] != before["pid"] && after["build"] != before["build"], "{before:#} {after:#}");
    assert_eq!(told(&site)[0], ("gate".to_owned(), "ok".to_owned()));
    site.wait_for_log("has taken its place");
    load.goes_on();
    poll(|| (status(&site)["predecessors"] == json!([])).then_some(())).expect("the old one finishes");
    live(&site, &["two"]);
    is_live(&site, 2);

    site.stop_daemon();
    site.serve();
    assert_eq!(status(&site)["pid"], after["pid"], "it is of this build");
    load.goes_on();
    nobody_saw(load);
}

/// As a unit of its own, for example.
#[test]
fn an_updated_daemon_leaves_a_gate_alone_that_it_did_not_start() {
    let mut site = before_an_update();
    let dir = site.path().join(".refit/gate").display().to_string();
    let mut unit = older(&site, &["gate", "--take-over", "--state-dir", &dir]).spawn().unwrap();
    let is_unit = || status(&site)["pid"] == json!(unit.id());
    poll(|| is_unit().then_some(())).expect("it takes over");
    let doctor = site.refit(&["doctor"]);
    assert!(doctor.stdout.contains("another build of refit") && doctor.stdout.contains("--take-over"), "{doctor:?}");
    site.serve();
    site.wait_for_log("was not started by the daemon");
    assert_eq!(status(&site)["pid"], json!(unit.id()));
    live(&site, &["two"]);
    is_live(&site, 2);
    assert_eq!(told(&site)[0].1, "warn");
    unit.kill().unwrap();
    unit.wait().unwrap();
}
