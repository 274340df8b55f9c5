//! Pushes through the real doors: a signed webhook, a real `git push` through the installed hook, and asking the remote.

use std::thread;

use crate::support::{Site, WEBHOOK_SECRET, sign};

fn no_deployment(site: &Site) {
    assert_eq!(site.history().len(), 0, "{:#?}", site.history());
}

#[test]
fn docker_a_signed_push_is_deployed_and_a_replay_is_not() {
    let mut site = Site::docker();
    let first = site.push("first");
    site.serve();
    let body = site.push_body("main", &first);
    assert_eq!(site.webhook("d-1", &body).status, 202);
    let deployment = site.settled();
    assert_eq!((&deployment["status"], &deployment["commit"]), (&"succeeded".into(), &first.as_str().into()));
    assert_eq!((&deployment["trigger"]["kind"], &deployment["trigger"]["delivery"]), (&"github".into(), &"d-1".into()));
    site.expect_page("one");
    // The same delivery, then the same push under another id.
    assert_eq!(site.webhook("d-1", &body).status, 200);
    site.version("two");
    let second = site.push("second");
    assert_eq!(site.webhook("d-2", &site.push_body("main", &second)).status, 202);
    site.wait_for("the second", |d| d["commit"] == *second && d["status"] == "succeeded");
    assert_eq!(site.webhook("d-3", &body).status, 202);
    assert_eq!(site.webhook("d-4", &site.push_body("main", &second)).status, 202);
    // Something after it in the queue shows that the replays were settled.
    site.version("three");
    let third = site.push("third");
    assert_eq!(site.webhook("d-5", &site.push_body("main", &third)).status, 202);
    site.wait_for("the third", |d| d["commit"] == *third && d["status"] == "succeeded");
    assert_eq!(site.history().len(), 3, "one deployment a push: {:#?}", site.history());
    site.expect_page("three");
}

#[test]
fn a_forced_push_back_to_a_good_release_is_deployed() {
    let mut site = Site::process();
    let first = site.push("first");
    site.serve();
    site.webhook("d-1", &site.push_body("main", &first));
    site.settled();
    site.version("two");
    let second = site.push("second");
    site.webhook("d-2", &site.push_body("main", &second));
    site.wait_for("the second", |d| d["commit"] == *second && d["status"] == "succeeded");
    site.git(&["push", "-q", "--force", "origin", &format!("{first}:main")]);
    let body = site.push_body("main", &first).replace("\"forced\":false", "\"forced\":true");
    site.webhook("d-3", &body);
    site.wait_for("the first again", |d| d["commit"] == *first && d["status"] == "succeeded");
    site.expect_page("one");
}

#[test]
fn a_thousand_deliveries_are_one_deployment() {
    let mut site = Site::process();
    let commit = site.push("first");
    site.serve();
    let body = site.push_body("main", &commit);
    let accepted: usize = thread::scope(|scope| {
        let (site, body) = (&site, &body);
        let workers: Vec<_> = (0..20)
            .map(|_| scope.spawn(move || (0..50).filter(|_| site.webhook("the-same", body).status == 202).count()))
            .collect();
        workers.into_iter().map(|w| w.join().unwrap()).sum()
    });
    assert_eq!(accepted, 1, "one was new, 999 were known");
    assert_eq!(site.settled()["status"], "succeeded");
    assert_eq!(site.history().len(), 1);
}

#[test]
fn what_is_no_push_to_a_followed_branch_deploys_nothing() {
    let mut site = Site::process();
    let commit = site.push("first");
    site.serve();
    let zero = "0".repeat(40);
    let good = site.push_body("main", &commit);
    let owned = site.path().join("owned");
    let evil = format!("main;touch${{IFS}}{}", owned.display());
    let cases = [
        ("ping", "{\"zen\":\"x\"}".to_owned()),
        ("push", good.replace("refs/heads/main", "refs/tags/v1")),
        ("push", good.replace(&commit, &zero).replace("\"deleted\":false", "\"deleted\":true")),
        ("push", site.push_body("other", &commit)),
        ("push", site.push_body(&evil, &commit)),
        ("push", site.push_body("--upload-pack=touch", &commit)),
        ("star", good.clone()),
    ];
    for (n, (event, body)) in cases.iter().enumerate() {
        let answer = site.post(&format!("d-{n}"), event, &sign(WEBHOOK_SECRET, body), body);
        assert_eq!(answer.status, 200, "{event} {body}: {answer:?}");
        assert!(answer.body.contains("reason") || answer.body.contains("ignored"), "{answer:?}");
    }
    for bad in [&commit[..10], "-0000000000000000000000000000000000000000", "zzzz"] {
        let body = site.push_body("main", bad);
        let answer = site.post("d-bad", "push", &sign(WEBHOOK_SECRET, &body), &body);
        assert_eq!(answer.status, 400, "{bad}: {answer:?}");
    }
    no_deployment(&site);
    assert!(!owned.exists());
}

#[test]
fn a_bad_signature_leaves_no_trace() {
    let mut site = Site::process();
    let commit = site.push("first");
    site.serve();
    let body = site.push_body("main", &commit);
    let good = sign(WEBHOOK_SECRET, &body);
    let changed = body.replace("ada", "eve");
    for (signature, body) in [
        ("", &body),
        ("sha256=", &body),
        ("sha256=zz", &body),
        (&good.replace("sha256", "SHA256") as &str, &body),
        (&good.replace("sha256", "sha1") as &str, &body),
        (&good as &str, &changed),
        (&sign("another secret", &body) as &str, &body),
    ] {
        assert_eq!(site.post("d-1", "push", signature, body).status, 401, "{signature}");
    }
    assert_eq!(site.webhook("d-1", &body).status, 202, "the delivery's id was not used up");
    assert_eq!(site.settled()["status"], "succeeded");
}

#[test]
fn a_git_push_through_the_hook_shows_the_stages() {
    let mut site = Site::process();
    let installed = site.refit(&["hook", "install"]).expect(0);
    assert!(installed.stdout.contains("post-receive") || installed.stderr.contains("post-receive"), "{installed:?}");
    site.serve();
    let commit = site.commit("first");
    let pushed = std::process::Command::new("git")
        .current_dir(site.work())
        .env("HOME", site.home())
        .args(["push", "origin", "HEAD:main"])
        .output()
        .unwrap();
    let terminal = String::from_utf8_lossy(&pushed.stderr).into_owned();
    assert!(pushed.status.success(), "{terminal}");
    for stage in ["pull", "build", "start", "smoke"] {
        assert!(terminal.lines().any(|l| l.starts_with("remote:") && l.contains(stage)), "{stage}: {terminal}");
    }
    let deployment = site.settled();
    assert_eq!((&deployment["commit"], &deployment["trigger"]["kind"]), (&commit.as_str().into(), &"hook".into()));
    assert_eq!(deployment["status"], "succeeded");
    site.expect_page("one");
}

#[test]
fn a_push_while_the_daemon_is_away_is_found_later() {
    let mut site = Site::process();
    site.refit(&["hook", "install"]).expect(0);
    let commit = site.push("first");
    no_deployment(&site);
    let text = std::fs::read_to_string(site.config_file()).unwrap();
    std::fs::write(site.config_file(), text.replace("reconcile = \"0s\"", "reconcile = \"1h\"")).unwrap();
    site.serve();
    let deployment = site.wait_for("the push is found", |d| d["status"] == "succeeded");
    assert_eq!((&deployment["commit"], &deployment["trigger"]["kind"]), (&commit.as_str().into(), &"reconcile".into()));
    site.kill_daemon();
    // Found once: a restart asks again and finds nothing new.
    site.serve();
    site.version("two");
    let second = site.push("second");
    site.webhook("d-1", &site.push_body("main", &second));
    site.wait_for("the second", |d| d["commit"] == *second && d["status"] == "succeeded");
    assert_eq!(site.history().len(), 2);
}

#[test]
fn the_newest_waiting_push_wins() {
    let mut site = Site::process().with_held_build();
    let mut commits = vec![site.push("0")];
    site.hold();
    site.serve();
    site.webhook("d-0", &site.push_body("main", &commits[0]));
    site.wait_for("the build", |d| d["stages"][3]["status"] == "running");
    for n in 1..=3 {
        site.version(&n.to_string());
        commits.push(site.push(&n.to_string()));
        site.webhook(&format!("d-{n}"), &site.push_body("main", &commits[n]));
    }
    let last = commits.last().unwrap().clone();
    site.wait_for("its place in the queue", |d| d["commit"] == *last && d["status"] == "queued");
    site.let_go();
    site.wait_for("the last", |d| d["commit"] == *last && d["status"] == "succeeded");
    site.expect_page("3");
    let built = site.history().iter().filter(|d| d["status"] == "succeeded").count();
    assert_eq!(built, 2, "the first and the last: {:#?}", site.history());
}
