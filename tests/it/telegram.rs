//! The report of a deployment, from the daemon to a stand-in for Telegram: what it says, that it comes once, and that nobody waits for
//! it. Threat 29, and threat 3 on its way through a whole deployment.

use std::fs;

use crate::support::{
    Site, poll,
    telegram::{BotApi, CHAT, Fault},
};

fn site(api: &BotApi) -> Site {
    Site::process().with_telegram(api).with("[[test]]\nname = \"unit\"\nrun = \"sh test.sh\"")
}

/// Pushes and announces it; returns the commit.
fn announce(site: &Site, delivery: &str, subject: &str) -> String {
    let commit = site.push(subject);
    assert_eq!(site.webhook(delivery, &site.push_body("main", &commit)).status, 202);
    site.wait_for("its deployment", |d| d["commit"] == *commit && d["finished_at"].is_string());
    commit
}

#[track_caller]
fn expect_all(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no `{part}` in:\n{text}");
    }
}

/// A second report to something that was reported would come before that of a later deployment: none does.
#[track_caller]
fn expect_no_more_than(api: &BotApi, site: &Site, reports: usize) {
    site.write("marker", &reports.to_string());
    let commit = announce(site, &format!("last-{reports}"), "the last one");
    let rung = api.wait_for_rings(reports + 1);
    assert_eq!(rung.len(), reports + 1, "{rung:#?}");
    expect_all(&api.whole(rung.last().unwrap()), &[&commit[..10]]);
}

#[test]
fn a_success_and_a_failure_are_each_reported_once() {
    let api = BotApi::start();
    let mut site = site(&api);
    site.serve();
    let first = announce(&site, "d-1", "Let guests sign");
    let success = api.wait_for_rings(1).remove(0);
    assert!(success.chat == CHAT && success.html, "{success:?}");
    let place = format!("{}/production", site.app);
    expect_all(
        &api.whole(&success),
        &["✅", &place, &first[..10], "Let guests sign", "Ada", "took", "deployed", "✓ smoke"],
    );

    site.write("test.sh", "for n in 1 2 3; do echo line $n of the tests; done; echo FAILED test_sign; exit 1\n");
    let second = announce(&site, "d-2", "Let guests sign twice");
    let failure = api.wait_for_rings(2).remove(1).text;
    expect_all(
        &failure,
        &["❌", &place, &second[..10], "Let guests sign twice", "main", "took", "failed in test", "exit code 1"],
    );
    expect_all(&failure, &["line 3 of the tests", "FAILED test_sign", "refit logs", "refit rerun", "as before"]);

    // Neither the daemon's end nor its next start says anything again.
    site.wait_for_settled_reports(2);
    site.kill_daemon();
    site.serve();
    site.write("test.sh", "true\n");
    expect_no_more_than(&api, &site, 2);
}

#[test]
fn a_version_that_was_taken_back_is_reported_with_what_is_live() {
    let api = BotApi::start();
    let mut site = site(&api);
    site.serve();
    announce(&site, "d-1", "good");
    site.write("www/health", "degraded");
    announce(&site, "d-2", "bad");
    let report = api.wait_for_rings(2).remove(1).text;
    expect_all(&report, &["↩️", "failed in smoke, rolled back", "does not contain `ok`", "deployment 1 again"]);
    site.expect_page("one");
}

#[test]
fn no_deployment_waits_for_telegram_and_the_report_comes_when_it_is_back() {
    let mut api = BotApi::start();
    let mut site = site(&api);
    site.serve();
    // First a server that takes the request and never answers, then none at all.
    api.faults([Fault::Silence]);
    let first = announce(&site, "d-1", "while it says nothing");
    api.wait_for_requests(1);
    site.version("two");
    let second = announce(&site, "d-2", "while it hangs");
    assert_eq!(api.accepted(), [], "both deployments ended before anything was sent");
    api.stop();
    site.version("three");
    let third = announce(&site, "d-3", "while it is away");
    site.expect_page("three");
    api.restart();
    let reports = api.wait_for_rings(3);
    for (report, commit) in reports.iter().zip([first, second, third]) {
        expect_all(&api.whole(report), &[&commit[..10], "deployed"]);
    }
    expect_no_more_than(&api, &site, 3);
}

#[test]
fn a_report_survives_the_daemon_that_wrote_it() {
    let mut api = BotApi::start();
    let mut site = site(&api);
    site.serve();
    api.stop();
    let commit = announce(&site, "d-1", "nobody was told");
    site.kill_daemon();
    api.restart();
    site.serve();
    expect_all(&api.whole(&api.wait_for_rings(1)[0]), &[&commit[..10], "nobody was told", "deployed"]);
    site.wait_for_settled_reports(1);
    site.kill_daemon();
    site.serve();
    expect_no_more_than(&api, &site, 1);
}

#[test]
fn a_command_without_a_daemon_reports_too() {
    let api = BotApi::start();
    let site = site(&api);
    let commit = site.push("by hand");
    site.deploy(0);
    assert_eq!(api.rung().len(), 1);
    expect_all(&api.whole(&api.rung()[0]), &[&commit[..10], "refit deploy", "deployed"]);
}

/// The live message, while a real deployment goes on.
#[test]
fn a_deployment_is_followed_in_one_message() {
    let api = BotApi::start();
    let mut site = site(&api).with_held_build();
    site.serve();
    site.hold();
    let commit = site.push("Let guests sign");
    assert_eq!(site.webhook("d-1", &site.push_body("main", &commit)).status, 202);
    let live = || api.accepted().first().cloned();
    let running = poll(|| live().filter(|live| live.text.contains("✓ test") && live.text.contains("… build")));
    let running = running.unwrap_or_else(|| panic!("{:#?}", api.moments()));
    assert!(running.silent && running.reply_to.is_none());
    expect_all(&running.text, &["⏳", "deploying", &commit[..10], "Let guests sign", " of 8", "· smoke"]);
    site.let_go();
    let bell = api.wait_for_rings(1).remove(0);
    assert_eq!(bell.reply_to, Some(running.id));
    expect_all(&live().unwrap().text, &["✅", "deployed", "✓ pull", "✓ smoke", "live: this version"]);
    assert_eq!(api.accepted().len(), 2, "{:#?}", api.accepted());
}

/// SIGKILL between the state and its message, between the message and its record, and in the middle of an edit. The Bot API has no key that would make sending
/// repeatable: only in the second case may people read something twice.
#[test]
#[expect(clippy::print_stdout, reason = "the figure is what this test is run for")]
fn a_kill_around_a_message_loses_nothing() {
    let (mut lost, mut double, mut due) = (0, 0, 0);
    for (fault, twice) in
        [("end:record", 0), ("report:end:intent", 0), ("report:end:effect", 1), ("report:edit:effect", 0)]
    {
        let api = BotApi::start();
        let mut site = site(&api).with_held_build().env("REFIT_FAULT", &format!("{fault}=kill"));
        // A deployment that is over at once is told by its end alone.
        let lasts = fault.contains("edit");
        if lasts {
            site.hold();
        }
        site.serve();
        let commit = site.push("good");
        assert_eq!(site.webhook("d-1", &site.push_body("main", &commit)).status, 202);
        assert!(site.daemon_ends(), "{fault}: {}", site.daemon_log());
        if lasts {
            site.let_go();
        }
        site.set_env("REFIT_FAULT", "");
        site.serve();
        site.wait_for_settled_reports(1);
        site.write("marker", fault);
        announce(&site, "d-2", "the last one");
        site.wait_for_settled_reports(2);
        let rung: Vec<String> = api.rung().iter().map(|ring| api.whole(ring)).collect();
        let told = |words: &str| rung.iter().filter(|text| text.contains(words)).count();
        (due, lost) = (due + 2, lost + usize::from(told("good") == 0) + usize::from(told("the last one") == 0));
        assert_eq!((told("good"), told("the last one")), (1 + twice, 1), "{fault}: {rung:#?}");
        double += told("good") - 1;
    }
    println!("killed around a message: {due} due, {lost} lost, {double} double");
    assert_eq!((lost, double), (0, 1));
}

/// Threat 3: what a commit says and who wrote it, through Git, the store, the log, the pusher's terminal, every command and Telegram.
#[test]
fn a_hostile_commit_is_inert_everywhere() {
    let api = BotApi::start();
    let mut site = site(&api);
    let owned = site.path().join("owned");
    let touch = format!("touch {}", owned.display());
    // What a report cuts off comes last.
    let subject = format!(
        "$({touch}) <script>alert(1)</script> &lt; *bold* \u{1b}[31mred\u{1b}[0m \u{1b}]0;title\u{7} \u{202e}desrever \
         `{touch}`; {touch} | </code></pre><b> _it_ [l](tg://user?id=1) %s ${{IFS}} {{{{7*7}}}}"
    );
    let author = format!("$({touch}) `{touch}` \u{1b}[2J*_[x](tg://x) & \u{9b}31m\u{202e}");
    site.refit(&["hook", "install"]).expect(0);
    site.serve();
    // The failing run quotes its log, which has the commit in it too.
    site.write("test.sh", "git log 2>/dev/null; echo '<b>from the log</b> \u{1b}[31m $(id)'; exit 1\n");
    let message = format!("{subject}\n\n{subject}\n$({touch})\n");
    site.git(&["add", "-A"]);
    site.git(&["-c", &format!("user.name={author}"), "commit", "-q", "-m", &message]);
    let commit = site.git(&["rev-parse", "HEAD"]);
    let pushed = site.try_git(&["push", "origin", "HEAD:main"]);
    assert_eq!(pushed.code, 0, "{pushed:?}");
    let failed = site.wait_for("the end", |d| d["commit"] == *commit && d["finished_at"].is_string());
    assert_eq!((&failed["status"], &failed["failed_stage"]), (&"failed".into(), &"test".into()), "{failed:#}");

    let report = api.wait_for_rings(1).remove(0);
    assert!(report.html, "its markup was read");
    expect_all(
        &report.text,
        &["<script>alert(1)</script>", &format!("$({touch})"), "*bold*", "&lt;", "<b>from the log</b>"],
    );
    assert!(!report.raw.contains("<script>") && !report.raw.contains("<b>from"), "{}", report.raw);

    let id = failed["id"].to_string();
    let live = api.whole(&report);
    let mut shown = vec![live, pushed.stderr, site.log_of(&failed), site.daemon_log()];
    for args in [
        &["show", &id][..],
        &["logs", &id],
        &["report", &id],
        &["report", &id, "--format", "markdown"],
        &["history"],
        &["status"],
        &["show", &id, "--format", "json"],
    ] {
        let ran = site.refit(args);
        assert_eq!(ran.code, 0, "{ran:?}");
        shown.extend([ran.stdout, ran.stderr]);
    }
    for text in &shown {
        let bad = text.chars().find(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t') || *c == '\u{202e}');
        assert_eq!(bad, None, "{text:?}");
    }
    assert!(shown.iter().filter(|text| text.contains("$(touch")).count() >= 5, "it was there to be seen");
    // A person may do it again, with every word of it in the way.
    site.refit(&["rerun", &id]).expect(1);
    assert!(!owned.exists(), "something of the commit was run");
    assert!(fs::read_dir(site.path()).unwrap().flatten().all(|e| e.file_name() != "owned"));
}
