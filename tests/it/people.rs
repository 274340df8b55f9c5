//! Where a person's word counts: the approval gate, and what happens after a deployment got stuck.

use std::{fs, io::Read, process::Stdio};

use serde_json::Value;

use crate::support::{
    Ran, Site, free_port, http, poll,
    telegram::{Accepted, BotApi},
};

fn gated() -> Site {
    Site::process().with_environment("approval = true").env("USER", "grace")
}

/// A site with a live version, and a gate from now on.
fn gated_after_the_first() -> Site {
    let site = Site::process().env("USER", "grace");
    site.push("good");
    site.deploy(0);
    site.with_environment("approval = true")
}

fn waits(deployment: &Value) -> bool {
    deployment["status"] == "awaiting_approval"
}

/// Pushes a version, announces it, and waits until it waits.
#[track_caller]
fn pushed_and_waiting(site: &Site, version: &str) -> (String, Value) {
    site.version(version);
    let commit = site.push(version);
    assert_eq!(site.webhook(&format!("d-{version}"), &site.push_body("main", &commit)).status, 202);
    let waiting = site.wait_for("the wait", |d| d["commit"] == *commit && waits(d));
    (commit, waiting)
}

fn id(deployment: &Value) -> i64 {
    deployment["id"].as_i64().expect("an id")
}

#[track_caller]
fn expect_all(message: &Accepted, parts: &[&str]) {
    for part in parts {
        assert!(message.text.contains(part), "no `{part}` in:\n{}", message.text);
    }
}

/// How often a deployment's log says something.
fn said(site: &Site, deployment: &Value, what: &str) -> usize {
    site.log_of(deployment).matches(what).count()
}

fn status_of(site: &Site) -> Value {
    site.refit(&["status", "--format", "json"]).expect(0).json()[0].clone()
}

// ---- the gate

#[test]
fn a_terminal_waits_for_a_word_from_another_one() {
    let api = BotApi::start();
    let site = gated().with_telegram(&api);
    let commit = site.push("good");
    let mut child = site.refit_command(&["deploy"]).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let waiting = site.wait_for("the wait", waits);
    assert_eq!(waiting["stages"][4]["status"], "succeeded", "{waiting:#}");
    assert_eq!(
        (&waiting["stages"][6]["status"], &waiting["approval"]["state"]),
        (&"pending".into(), &"waiting".into())
    );
    assert!(site.page().is_none(), "nothing is live before somebody said yes");
    // The question reaches people while it is one.
    let question = api.wait_for_rings(1).remove(0);
    expect_all(&question, &["⏳", "waits for approval before migrate", &commit[..10], "good", "until 20"]);
    expect_all(&question, &["refit approve 1", "refit reject 1 --reason"]);
    let shown = site.refit(&["status"]).expect(0).stdout;
    assert!(shown.contains("1 waits for approval") && shown.contains("`refit approve 1`"), "{shown}");
    assert_eq!(status_of(&site)["awaiting_approval"]["id"], 1);
    let approved = site.refit(&["approve", "1", "--reason", "looks fine"]).expect(0);
    assert!(approved.stdout.contains("in the terminal where it waits"), "{approved:?}");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let mut told = String::new();
    child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    assert!(told.contains("waits for approval until") && told.contains("`refit approve 1`"), "{told}");
    assert!(told.contains("another terminal") && told.contains("approved by grace"), "{told}");
    site.expect_page("one");
    let approval = &site.show(1)["approval"];
    assert_eq!((&approval["state"], &approval["by"]), (&"approved".into(), &"grace".into()), "{approval:#}");
    assert_eq!(approval["reason"], "looks fine");
    assert!(approval["at"].is_string() && approval["expires_at"].is_string());
    let shown = site.refit(&["show", "1"]).expect(0).stdout;
    assert!(shown.contains("given by grace at 20") && shown.contains("looks fine"), "{shown}");
    let reports = api.wait_for_rings(2);
    assert_eq!(reports.len(), 2, "{reports:#?}");
    let told = api.whole(&reports[1]);
    assert!(["✅", "deployed", "given by grace"].iter().all(|part| told.contains(part)), "{told}");
    let text = &api.wait_for_rings(2)[0].text;
    assert!(
        text.contains("approved by grace") && !text.contains("refit approve"),
        "the question is one no longer: {text}"
    );
    // Once said is said.
    assert!(site.refit(&["reject", "1", "--reason", "no"]).expect(64).stderr.contains("grace has approved"));
}

#[test]
fn ctrl_c_in_the_terminal_that_waits_cancels_and_undoes() {
    let site = gated_after_the_first();
    site.version("two");
    site.push("two");
    let mut child = site.refit_command(&["deploy"]).spawn().unwrap();
    site.wait_for("the wait", waits);
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-s", "INT", &pid]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let ended = site.newest();
    assert_eq!(
        (&ended["status"], &ended["approval"]["state"]),
        (&"cancelled".into(), &"cancelled".into()),
        "{ended:#}"
    );
    site.expect_page("one");
}

#[test]
fn a_no_undoes_and_is_not_tried_again_by_itself() {
    let mut site = gated_after_the_first();
    site.serve();
    let (commit, waiting) = pushed_and_waiting(&site, "two");
    let number = id(&waiting).to_string();
    let without = site.refit(&["reject", &number]);
    assert_eq!(without.code, 64, "{without:?}");
    assert!(site.refit(&["reject", &number, "--reason", " "]).expect(64).stderr.contains("a reason is needed"));
    site.refit(&["reject", &number, "--reason", "not before Monday"]).expect(0);
    let ended = site.settled();
    assert_eq!((&ended["status"], &ended["exit_code"]), (&"failed".into(), &1.into()), "{ended:#}");
    assert_eq!(ended["error"], "rejected by grace: not before Monday");
    assert_eq!((&ended["approval"]["state"], &ended["approval"]["by"]), (&"rejected".into(), &"grace".into()));
    assert_eq!(ended["stages"][4]["status"], "undone", "the tag: {ended:#}");
    site.expect_page("one");
    for args in [&["approve", &number][..], &["approve", "404"], &["approve", "1"]] {
        site.refit(args).expect(64);
    }
    assert_eq!(site.webhook("d-again", &site.push_body("main", &commit)).status, 202);
    // Settled before the next one: nothing came of it.
    let (_, next) = pushed_and_waiting(&site, "three");
    assert_eq!(id(&next), id(&waiting) + 1);
    site.refit(&["approve", &id(&next).to_string()]).expect(0);
    site.wait_for("its end", |d| d["status"] == "succeeded");
    site.expect_page("three");
}

#[test]
fn a_pusher_is_not_held_by_the_gate() {
    let mut site = gated_after_the_first();
    site.refit(&["hook", "install"]).expect(0);
    site.serve();
    site.version("two");
    site.commit("two");
    let pushed = site.try_git(&["push", "origin", "HEAD:main"]).expect(0);
    assert!(pushed.stderr.contains("waits for approval") && pushed.stderr.contains("refit approve 2"), "{pushed:?}");
    assert!(waits(&site.newest()), "{:#}", site.newest());
    site.refit(&["approve", "2"]).expect(0);
    assert_eq!(site.settled()["status"], "succeeded");
}

#[test]
fn what_waits_outlives_the_daemons_end_and_its_death() {
    let api = BotApi::start();
    let mut site = gated_after_the_first().with_telegram(&api);
    site.serve();
    let (_, waiting) = pushed_and_waiting(&site, "two");
    api.wait_for_rings(1);
    assert_eq!(site.stop_daemon(), 0);
    assert!(waits(&site.newest()), "SIGTERM leaves it waiting: {:#}", site.newest());
    site.serve();
    let log = |what: &str| said(&site, &site.newest(), what);
    poll(|| (!site.daemon_log().is_empty()).then_some(())).unwrap();
    assert_eq!(log("waits for approval"), 1, "asked once, whoever waits");
    site.kill_daemon();
    assert!(waits(&site.newest()), "SIGKILL too");
    // Nobody runs it now: the word waits in the store.
    let number = id(&waiting).to_string();
    let alone = site.refit(&["approve", &number]).expect(0);
    assert!(alone.stdout.contains("with the next `refit serve`"), "{alone:?}");
    assert!(waits(&site.newest()));
    assert_eq!(site.newest()["approval"]["state"], "waiting");
    site.serve();
    let ended = site.settled();
    assert_eq!(ended["status"], "succeeded", "{ended:#}\n{}", site.daemon_log());
    assert_eq!(ended["approval"]["by"], "grace");
    site.expect_page("two");
    let reports = api.wait_for_rings(2);
    assert_eq!(reports.len(), 2, "one question, one report: {reports:#?}");
}

#[test]
fn a_death_between_the_word_and_the_journal_loses_nothing() {
    let mut site = gated_after_the_first().env("REFIT_FAULT", "approval:decision=kill");
    site.serve();
    let (_, waiting) = pushed_and_waiting(&site, "two");
    // The daemon may die before it has answered: the row is what counts.
    site.refit(&["approve", &id(&waiting).to_string()]);
    let log = site.path().join("daemon.log");
    poll(|| fs::read_to_string(&log).unwrap().contains("approval:decision").then_some(())).expect("it found the row");
    site.kill_daemon();
    assert!(waits(&site.newest()));
    let mut site = site.env("REFIT_FAULT", "");
    site.serve();
    assert_eq!(site.settled()["status"], "succeeded", "{:#}", site.newest());
    site.expect_page("two");
}

#[test]
fn a_death_between_the_yes_and_migrate_is_undone() {
    let mut site = gated_after_the_first().env("REFIT_FAULT", "approval:heard=kill");
    site.serve();
    let (_, waiting) = pushed_and_waiting(&site, "two");
    site.refit(&["approve", &id(&waiting).to_string()]);
    site.wait_for("the yes", |d| d["approval"]["state"] == "approved");
    site.kill_daemon();
    let mut site = site.env("REFIT_FAULT", "");
    site.serve();
    let ended = site.settled();
    assert_eq!(ended["status"], "failed", "{ended:#}");
    assert!(ended["error"].as_str().unwrap().contains("the daemon was stopped"), "{ended:#}");
    site.expect_page("one");
}

#[test]
fn without_a_word_in_time_it_is_undone() {
    let site = gated_after_the_first().with_environment("approval_timeout = \"1s\"");
    site.version("two");
    site.push("two");
    let ended = site.deploy(1);
    assert_eq!((&ended["status"], &ended["approval"]["state"]), (&"failed".into(), &"expired".into()), "{ended:#}");
    assert_eq!(ended["error"], "nobody approved it in time");
    assert_eq!(ended["approval"]["by"], Value::Null);
    site.expect_page("one");
}

#[test]
fn time_that_runs_out_while_nobody_runs_it_has_run_out() {
    let mut site = gated_after_the_first().with_environment("approval_timeout = \"2s\"");
    site.serve();
    site.version("two");
    let commit = site.push("two");
    site.webhook("d-2", &site.push_body("main", &commit));
    site.wait_for("the wait", waits);
    site.kill_daemon();
    let expires: jiff::Timestamp = site.newest()["approval"]["expires_at"].as_str().unwrap().parse().unwrap();
    poll(|| (jiff::Timestamp::now() > expires).then_some(())).unwrap();
    let late = site.refit(&["approve", "2"]);
    assert_eq!((late.code, late.stderr.contains("the time for an answer")), (64, true), "{late:?}");
    site.serve();
    let ended = site.settled();
    assert_eq!((&ended["status"], &ended["approval"]["state"]), (&"failed".into(), &"expired".into()), "{ended:#}");
}

#[test]
fn a_newer_push_takes_the_place_of_what_waits() {
    let mut site = gated_after_the_first();
    site.serve();
    let (_, first) = pushed_and_waiting(&site, "two");
    let (_, second) = pushed_and_waiting(&site, "three");
    let first = site.show(id(&first));
    assert_eq!(first["status"], "cancelled", "{first:#}");
    assert!(first["error"].as_str().unwrap().contains(&format!("deployment {}, which is newer", id(&second))));
    site.refit(&["approve", &id(&first).to_string()]).expect(64);
    site.refit(&["approve", &id(&second).to_string()]).expect(0);
    assert_eq!(site.settled()["status"], "succeeded");
    site.expect_page("three");
}

#[test]
fn one_queued_just_before_the_wait_takes_its_place_too() {
    let pause = tempfile::tempdir().unwrap();
    let file = pause.path().join("pause");
    let mut site = gated_after_the_first().env("REFIT_FAULT", &format!("step:tag:record=pause:{}", file.display()));
    let go_on = || {
        poll(|| file.exists().then_some(())).expect("it pauses before it asks");
        fs::remove_file(&file).unwrap();
    };
    site.serve();
    site.version("two");
    let second = site.push("two");
    site.webhook("d-2", &site.push_body("main", &second));
    poll(|| file.exists().then_some(())).expect("it pauses before it asks");
    site.version("three");
    let third = site.push("three");
    site.webhook("d-3", &site.push_body("main", &third));
    site.wait_for("its place in the queue", |d| d["commit"] == *third && d["status"] == "queued");
    go_on();
    go_on();
    site.wait_for("the third", |d| d["commit"] == *third && waits(d));
    assert_eq!(site.history()[1]["status"], "cancelled", "{:#}", site.history()[1]);
}

#[test]
fn what_waits_holds_the_environment_and_nothing_else() {
    let dev = format!("[environments.dev]\nbranch = \"dev\"\nport = {}\nbind = \"127.0.0.1\"\n", free_port());
    let mut site = gated_after_the_first().with(&dev);
    site.serve();
    let (_, waiting) = pushed_and_waiting(&site, "two");
    let busy = site.refit(&["deploy", "--no-wait", "--env", "production"]).expect(75);
    assert!(busy.stderr.contains("waits for approval"), "{busy:?}");
    site.git(&["push", "-q", "origin", "HEAD:dev"]);
    site.refit(&["deploy", "--no-wait", "--env", "dev"]).expect(0);
    let number = id(&waiting).to_string();
    assert!(waits(&site.show(id(&waiting))));
    site.refit(&["cancel", &number]).expect(0);
    poll(|| (site.show(id(&waiting))["status"] == "cancelled").then_some(())).expect("it is cancelled");
    // A command in place does not stay for what waits elsewhere.
    pushed_and_waiting(&site, "three");
    assert_eq!(site.stop_daemon(), 0);
    site.refit(&["deploy", "--env", "dev"]).expect(0);
    assert!(waits(&site.history()[1]), "{:#}", site.history()[1]);
    site.expect_page("one");
}

#[test]
fn nobody_is_asked_about_a_rollback_and_what_waits_makes_way_for_it() {
    let site = Site::process().env("USER", "grace");
    site.push("good");
    site.deploy(0);
    site.version("two");
    site.push("two");
    site.deploy(0);
    let mut site = site.with_environment("approval = true");
    site.serve();
    let (_, waiting) = pushed_and_waiting(&site, "three");
    site.refit(&["rollback", "--force", "--reason", "orders fail"]).expect(0);
    site.expect_page("one");
    assert_eq!(site.show(id(&waiting))["status"], "cancelled");
    let rollback = site.newest();
    assert_eq!((&rollback["status"], &rollback["approval"]), (&"succeeded".into(), &Value::Null), "{rollback:#}");
    let listed = site.refit(&["history", "--rollbacks", "--format", "json"]).expect(0).json();
    let one = &listed[0];
    assert_eq!((&one["type"], &one["status"]), (&"previous".into(), &"succeeded".into()), "{listed:#}");
    assert_eq!((&one["from"], &one["to"], &one["reason"]), (&2.into(), &1.into(), &"orders fail".into()), "{listed:#}");
    assert_eq!(one["by"], "grace");
}

// ---- stuck

const BROKEN_UNDO: &str = "undo:start:effect=fail";

/// Deploys a good version, then a bad one whose way back fails; the daemon goes on. Deployment 2 is stuck.
fn stuck_site(api: &BotApi, fault: &str) -> Site {
    let site = Site::process().with_telegram(api).env("USER", "grace");
    site.push("good");
    site.deploy(0);
    let mut site = site.env("REFIT_FAULT", fault);
    site.serve();
    site.write("www/health", "degraded");
    let commit = announced(&site, "bad");
    site.wait_for("the bad one", |d| d["commit"] == *commit);
    site
}

/// Pushes and announces it.
fn announced(site: &Site, subject: &str) -> String {
    let commit = site.push(subject);
    assert_eq!(site.webhook(subject, &site.push_body("main", &commit)).status, 202);
    commit
}

/// A site again as it is without faults.
fn mended(mut site: Site) -> Site {
    site.kill_daemon();
    site.write("www/health", "ok");
    site.env("REFIT_FAULT", "")
}

#[test]
fn after_a_stuck_one_nothing_is_deployed_by_itself_until_a_person_has_looked() {
    let api = BotApi::start();
    let site = stuck_site(&api, BROKEN_UNDO);
    let stuck = site.settled();
    assert_eq!((&stuck["status"], &stuck["exit_code"]), (&"stuck".into(), &5.into()), "{stuck:#}");
    let report = api.wait_for_rings(2).remove(1);
    let place = format!("--app {} --env production", site.app);
    let steps = [
        "1. refit status",
        &format!("2. refit rollback --to 1 --force --reason \"…\" {place}"),
        "3. refit resolve 2 --reason",
    ];
    expect_all(&report, &["🆘", "CRITICAL"]);
    expect_all(&report, &steps);
    let told = site.refit(&["report", "2"]).expect(0).stdout;
    assert!(told.contains("`refit rollback --to 1 --force") && told.contains("`refit resolve 2"), "{told}");

    // Two doors, and the daemon that asks by itself: nothing is deployed.
    site.edit_config("reconcile = \"0s\"", "reconcile = \"1h\"");
    let mut site = mended(site);
    site.refit(&["hook", "install"]).expect(0);
    site.serve();
    site.version("three");
    site.commit("three");
    let pushed = site.try_git(&["push", "origin", "HEAD:main"]).expect(0);
    let held = pushed.stderr.replace("remote: ", "").split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(held.contains("not deployed: deployment 2 is stuck") && held.contains("refit resolve 2"), "{held}");
    site.kill_daemon();
    site.serve();
    let tip = site.git(&["rev-parse", "HEAD"]);
    let noted = format!("{tip}@main");
    poll(|| site.ignored_delivery(&noted)).expect("the reconciler found the tip, and it was held back");
    assert_eq!(site.history().len(), 2, "{:#}", site.newest());

    // It is told everywhere.
    assert_eq!(status_of(&site)["stuck"], 2);
    let shown = site.refit(&["status"]).expect(0).stdout;
    assert!(shown.contains("CRITICAL: deployment 2 is stuck") && shown.contains("refit resolve 2"), "{shown}");
    let doctor = site.refit(&["doctor"]);
    assert!(doctor.code == 69 && doctor.stdout.contains("deployment 2 could not be undone"), "{doctor:?}");
    let answer = http(site.http, "GET", "/_deploy/status", &[], b"").unwrap();
    assert_eq!(answer.json()["environments"][0]["stuck"], 2, "{answer:?}");
    assert_eq!(site.refit(&["resolve", "1", "--reason", "x"]).expect(64).stdout, "");
    assert_eq!(site.refit(&["resolve", "2"]).code, 64);

    // A word, and what was held back is deployed at once.
    let resolved = site.refit(&["resolve", "2", "--reason", "the old one ran all the time"]).expect(0);
    assert!(resolved.stdout.contains("the remote is asked"), "{resolved:?}");
    let ended = site.wait_for("the push that was held back", |d| d["commit"] == *tip && d["finished_at"].is_string());
    assert_eq!((&ended["status"], &ended["trigger"]["kind"]), (&"succeeded".into(), &"reconcile".into()), "{ended:#}");
    site.expect_page("three");
    let looked = site.show(2);
    assert_eq!((&looked["resolved"]["by"], &looked["status"]), (&"grace".into(), &"stuck".into()), "{looked:#}");
    assert_eq!(status_of(&site)["stuck"], Value::Null);
    assert!(site.refit(&["doctor"]).stdout.lines().all(|line| !line.contains("could not be undone")));
    let again = site.refit(&["resolve", "2", "--reason", "me too"]).expect(0);
    assert!(again.stdout.contains("was resolved before, by grace: the old one"), "{again:?}");
}

#[test]
fn what_waits_in_the_queue_behind_a_stuck_one_is_skipped_and_a_person_is_served() {
    let api = BotApi::start();
    let pause = tempfile::tempdir().unwrap();
    let file = pause.path().join("pause");
    let site = stuck_site(&api, &format!("{BROKEN_UNDO},step:smoke:intent=pause:{}", file.display()));
    poll(|| file.exists().then_some(())).expect("the bad one pauses");
    site.version("three");
    let third = announced(&site, "three");
    site.wait_for("its place in the queue", |d| d["commit"] == *third && d["status"] == "queued");
    fs::remove_file(&file).unwrap();
    let skipped = site.wait_for("the skip", |d| d["commit"] == *third && d["finished_at"].is_string());
    assert_eq!(skipped["status"], "skipped", "{skipped:#}");
    assert!(skipped["error"].as_str().unwrap().contains("deployment 2 is stuck"), "{skipped:#}");
    assert_eq!(site.show(2)["status"], "stuck");

    // A person who asks is served, and still has to say that it was looked at.
    let site = mended(site);
    site.push("mended");
    let ended = site.deploy(0);
    assert_eq!(ended["status"], "succeeded");
    assert_eq!(status_of(&site)["stuck"], 2);
    let resolved = site.refit(&["resolve", "2", "--reason", "deployed by hand"]).expect(0);
    assert!(resolved.stdout.contains("no daemon answers"), "{resolved:?}");
    assert_eq!(status_of(&site)["stuck"], Value::Null);
}

// ---- rollbacks as a list

#[test]
fn history_tells_what_came_back() {
    let api = BotApi::start();
    let site = stuck_site(&api, "");
    let rolled_back = site.settled();
    assert_eq!(rolled_back["status"], "rolled_back", "{rolled_back:#}");
    api.wait_for_rings(2);
    let list = |args: &[&str]| -> Ran { site.refit(&[&["history", "--rollbacks"], args].concat()).expect(0) };
    let told = poll(|| {
        let all = list(&["--format", "json"]).json();
        all[0]["notified_at"].is_string().then_some(all)
    });
    let all = told.expect("its report was sent, and that was noted");
    let one = &all[0];
    assert_eq!(all.as_array().unwrap().len(), 1, "{all:#}");
    assert_eq!(
        (&one["id"], &one["type"], &one["status"]),
        (&2.into(), &"automatic".into(), &"succeeded".into()),
        "{one:#}"
    );
    assert_eq!((&one["from"], &one["to"], &one["by"]), (&2.into(), &1.into(), &Value::Null), "{one:#}");
    assert!(one["reason"].as_str().unwrap().contains("does not contain"), "{one:#}");
    assert!(one["started_at"].as_str() < one["finished_at"].as_str() && one["started_at"].is_string(), "{one:#}");
    let shown = list(&[]).stdout;
    assert!(shown.contains("automatic") && shown.contains("refit"), "{shown}");
    for (args, found) in [
        (&["--status", "succeeded"][..], 1),
        (&["--status", "stuck"], 0),
        (&["--env", "production", "--since", "1h"], 1),
        (&["--since", "2999-01-01"], 0),
    ] {
        let all = list(&[args, &["--format", "json"]].concat()).json();
        assert_eq!(all.as_array().unwrap().len(), found, "{args:?}: {all:#}");
    }
    assert_eq!(list(&["--status", "stuck"]).stdout, "no rollbacks\n");
}
