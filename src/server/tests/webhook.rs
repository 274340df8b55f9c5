//! Threats 1, 5, 13, 15, 17, 19, 20, 21, and what the two reading routes say.

use hyper::Method;
use serde_json::{Value, json};

use super::fixture::*;

fn reason(body: &Value) -> String {
    assert_eq!(body["status"], "ignored", "{body}");
    body["reason"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_signed_push_is_on_disk_before_it_is_accepted() {
    let server = Running::start(two_apps()).await;
    let (status, body) = server.send(Hook::push("refs/heads/main").request()).await;
    assert_eq!((status, &body["status"]), (202, &json!("accepted")), "{body}");
    let rows = server.rows().await;
    assert_eq!(rows.len(), 1);
    assert_eq!((rows[0].app.as_str(), rows[0].branch.as_str()), ("guestbook", "main"));
    assert_eq!((rows[0].commit.as_str(), rows[0].pusher.as_deref()), (COMMIT, Some("ada")));
    assert!(!format!("{rows:?}").contains("evil.example"), "the payload's URLs go nowhere");

    let (status, body) = server.send(Hook::push("refs/heads/main").request()).await;
    assert_eq!((status, reason(&body).as_str()), (200, "already received"));
}

#[tokio::test]
async fn a_form_is_as_good_as_json() {
    let server = Running::start(two_apps()).await;
    let json = payload("Acme/GuestBook", "refs/heads/main", COMMIT).to_string();
    let escaped: String = json.bytes().map(|b| format!("%{b:02X}")).collect();
    let form = Hook {
        content_type: Some("application/x-www-form-urlencoded".to_owned()),
        ..Hook::new(SECRET, format!("payload={escaped}"))
    };
    assert_eq!(server.send(form.request()).await.0, 202);
    let text = Hook { content_type: Some("text/plain".to_owned()), ..Hook::push("refs/heads/main") };
    assert_eq!(server.send(text.request()).await.0, 415);
    let none = Hook { content_type: None, ..Hook::push("refs/heads/main") };
    assert_eq!(server.send(none.request()).await.0, 415);
}

#[tokio::test]
async fn without_a_good_signature_there_is_no_row() {
    let server = Running::start(two_apps()).await;
    let good = Hook::push("refs/heads/main");
    let signature = good.signature.clone().unwrap();
    let sha1 = format!("sha1={}", &signature["sha256=".len()..]);
    for bad in [
        None,
        Some(""),
        Some("sha256="),
        Some("sha256=zz"),
        Some(&signature["sha256=".len()..]),
        Some(&signature.replace("sha256=", "SHA256=")),
        Some(&sha1),
        Some(&signature[..signature.len() - 1]),
        Some(&sign("", &good.body)),
        Some(&sign("another", &good.body)),
        Some("sha256=\u{e9}"),
    ] {
        let (status, body) = server.send(good.clone().signature(bad).request()).await;
        assert_eq!(status, 401, "{bad:?}: {body}");
        assert!(body["error"].is_string() && !body.to_string().contains(SECRET), "{body}");
    }
    let mut changed = good.clone();
    *changed.body.last_mut().unwrap() = b' ';
    assert_eq!(server.send(changed.request()).await.0, 401);
    assert_eq!(server.send(request(Method::POST, "/hooks/github")).await.0, 401, "no credentials at all");
    assert_eq!(server.rows().await, []);
}

#[tokio::test]
async fn one_apps_secret_does_not_speak_for_another() {
    let mut apps = two_apps();
    apps.push(app("local", None, &["a secret of local"]));
    let server = Running::start(apps).await;
    let wiki = payload("acme/wiki", "refs/heads/main", COMMIT);
    for secret in [SECRET, "a secret of local"] {
        assert_eq!(server.send(Hook::new(secret, &wiki).request()).await.0, 401, "{secret}");
    }
    assert_eq!(server.rows().await, []);
    let unknown = payload("acme/unknown", "refs/heads/main", COMMIT);
    let (status, body) = server.send(Hook::new(SECRET, &unknown).request()).await;
    assert_eq!(status, 200);
    assert!(reason(&body).contains("repository"));
    assert_eq!(server.send(Hook::new("a secret of local", &unknown).request()).await.0, 202, "it takes any");
    assert_eq!(server.send(Hook::new(OTHER_SECRET, &wiki).request()).await.0, 202);
    let names: Vec<_> = server.rows().await.into_iter().map(|row| row.app.to_string()).collect();
    assert_eq!(names, ["local", "wiki"]);
}

#[tokio::test]
async fn secrets_rotate_and_may_be_shared() {
    let apps = vec![
        app("guestbook", Some("acme/guestbook"), &["old secret", "new secret"]),
        app("admin", Some("acme/guestbook"), &["new secret"]),
    ];
    let server = Running::start(apps).await;
    let push = payload("acme/guestbook", "refs/heads/main", COMMIT);
    assert_eq!(server.send(Hook::new("old secret", &push).delivery("1").request()).await.0, 202);
    assert_eq!(server.rows().await.len(), 1, "only the app that has it");
    assert_eq!(server.send(Hook::new("new secret", &push).delivery("2").request()).await.0, 202);
    assert_eq!(server.rows().await.len(), 3, "both apps of this repository");
}

#[tokio::test]
async fn what_calls_for_nothing_is_explained() {
    let server = Running::start(two_apps()).await;
    let of = |reference: &str, after: &str| Hook::new(SECRET, payload("acme/guestbook", reference, after));
    for (hook, why) in [
        (Hook::new(SECRET, json!({"zen": "Speak like a human.", "hook_id": 1})).event("ping"), "ping"),
        (Hook::new(SECRET, json!({"action": "opened"})).event("issues"), "issues"),
        (of("refs/tags/v1", COMMIT), "tag"),
        (of("refs/heads/main", ZEROS), "deleted"),
        (of("refs/heads/feature/x", COMMIT), "no environment"),
        (of("refs/heads/main;touch${IFS}owned", COMMIT), "branch"),
        (of("refs/heads/--upload-pack=touch owned", COMMIT), "branch"),
        (of("refs/pull/1/head", COMMIT), "branch"),
    ] {
        let (status, body) = server.send(hook.request()).await;
        assert_eq!(status, 200, "{body}");
        assert!(reason(&body).contains(why), "{body} does not say {why}");
    }
    assert_eq!(server.rows().await, []);
    assert!(!server.dir.path().join("owned").exists());
}

#[tokio::test]
async fn malformed_requests_are_told_so() {
    let server = Running::start(two_apps()).await;
    let deep = format!("{{\"a\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let twice = r#"{"ref":"refs/heads/main","ref":"refs/heads/dev"}"#;
    let short = payload("acme/guestbook", "refs/heads/main", "abc1234");
    for body in ["", "{", "[]", "null", "\u{0}", deep.as_str(), twice, &short.to_string()] {
        let (status, answer) = server.send(Hook::new(SECRET, body).request()).await;
        assert_eq!(status, 400, "{answer}");
        assert!(answer["error"].is_string() && answer.to_string().len() < 500, "{answer}");
    }
    let good = Hook::push("refs/heads/main");
    for bad in [
        Hook { event: None, ..good.clone() },
        Hook { delivery: None, ..good.clone() },
        good.clone().delivery(""),
        good.clone().delivery("../../etc"),
        good.delivery(&"a".repeat(1000)),
    ] {
        assert_eq!(server.send(bad.request()).await.0, 400);
    }
    assert_eq!(server.rows().await, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_same_delivery_a_thousand_times_is_one_row() {
    let server = Running::start(two_apps()).await;
    let hook = Hook::push("refs/heads/main");
    let answers = futures_util::future::join_all((0..20).map(|_| async {
        let mut statuses = Vec::new();
        for _ in 0..50 {
            statuses.push(server.send(hook.request()).await.0);
        }
        statuses
    }))
    .await;
    let statuses: Vec<u16> = answers.into_iter().flatten().collect();
    assert_eq!(statuses.iter().filter(|s| **s == 202).count(), 1);
    assert_eq!(statuses.iter().filter(|s| **s == 200).count(), 999);
    assert_eq!(server.rows().await.len(), 1);
}

#[tokio::test]
async fn routes_and_methods_are_these_and_no_others() {
    let server = Running::start(two_apps()).await;
    for (method, path, status) in [
        (Method::GET, "/hooks/github", 405),
        (Method::PUT, "/hooks/github", 405),
        (Method::POST, "/_deploy/health", 405),
        (Method::DELETE, "/_deploy/status", 405),
        (Method::HEAD, "/_deploy/status", 200),
        (Method::HEAD, "/_deploy/health", 200),
        (Method::GET, "/_deploy/health/", 200),
        (Method::GET, "/", 404),
        (Method::POST, "/v1/deployments", 404),
        (Method::POST, "/v1/push", 404),
        (Method::POST, "/api/v1/deployments", 404),
        (Method::GET, "/hooks/github/../../etc/passwd", 404),
    ] {
        let response = server.respond(request(method.clone(), path)).await;
        assert_eq!(response.status(), status, "{method} {path}");
        assert_eq!(response.headers()["x-content-type-options"], "nosniff");
        assert_eq!(response.headers()["content-type"], "application/json");
        assert_eq!(response.headers().contains_key("allow"), status == 405);
        assert_eq!(response.body().is_empty(), method == Method::HEAD);
    }
}

#[tokio::test]
async fn without_a_secret_there_is_no_webhook() {
    let server = Running::start(vec![app("guestbook", Some("acme/guestbook"), &[])]).await;
    let (status, body) = server.send(Hook::push("refs/heads/main").request()).await;
    assert_eq!(status, 404);
    assert!(body["hint"].as_str().unwrap().contains("webhooks.github"), "{body}");
}

#[tokio::test]
async fn status_and_health_show_the_state_and_no_secret() {
    let server = Running::start_with(two_apps(), limits(), |_, verbs| verbs.healthy = false).await;
    let (status, body) = server.get("/_deploy/status").await;
    assert_eq!(status, 200);
    let shown = &body["environments"][0];
    assert_eq!((&shown["app"], &shown["live"]["commit"]), (&json!("guestbook"), &json!(COMMIT)));
    assert!(!body.to_string().contains(SECRET) && body.to_string().contains("no access with"), "{body}");
    let (status, body) = server.get("/_deploy/health").await;
    assert_eq!((status, &body["status"]), (503, &json!("unavailable")));
    assert!(!body.to_string().contains(SECRET), "{body}");
}
