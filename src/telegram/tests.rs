//! What is pure in this room: commands, updates, and that every answer fits.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    command::{Command, MENU, Misread, Named, parse},
    order::{Deed, Order, Question},
    update::{Incoming, Person, Place, read},
    words,
};
use crate::{
    config::{self, Config},
    model::{DeploymentId, EnvironmentKey, RollbackKind},
    notify::{buttons::Action, words::units},
    redact::Redactor,
    rollback::{Change, Check, CommitLine, Commits, Migration, Preview, Severity, Side},
};

fn house() -> (tempfile::TempDir, Arc<Config>) {
    let dir = tempfile::tempdir().unwrap();
    let app = |name: &str, environments: &[&str]| {
        let tables: String = environments.iter().map(|e| format!("[environments.{e}]\nbranch = 'main'\n")).collect();
        format!(
            "[app]\nname = '{name}'\nrepository = 'x.git'\n[start]\nruntime = 'process'\ncommand = 'true'\n{tables}"
        )
    };
    std::fs::write(dir.path().join("shop.toml"), app("shop", &["production"])).unwrap();
    let main = format!("include = ['shop.toml']\n{}", app("site", &["production", "dev"]));
    std::fs::write(dir.path().join("pipeline.toml"), main).unwrap();
    let config = config::load(&dir.path().join("pipeline.toml"), &|_| None).unwrap_or_else(|e| panic!("{e}"));
    (dir, Arc::new(config))
}

fn named(app: Option<&str>, environment: Option<&str>) -> Named {
    Named { app: app.map(str::to_owned), environment: environment.map(str::to_owned) }
}

#[test]
fn commands_are_read_as_they_are_meant() {
    let (_dir, config) = house();
    let id = DeploymentId;
    let said = |text: &str| parse(text, "refit_bot", &config);
    let deploy =
        |place, reference: Option<&str>| Ok(Command::Deploy { place, reference: reference.map(str::to_owned) });
    assert_eq!(said("/status"), Ok(Command::Status));
    assert_eq!(said("/Status@Refit_Bot"), Ok(Command::Status));
    assert_eq!(said("/start"), Ok(Command::Help));
    assert_eq!(said("/show #12"), Ok(Command::Show { id: id(12) }));
    assert_eq!(said("/logs"), Ok(Command::Logs { id: None }));
    assert_eq!(said("/deploy"), deploy(Named::default(), None));
    assert_eq!(said("/deploy  dev   feature/x"), deploy(named(None, Some("dev")), Some("feature/x")));
    assert_eq!(said("/deploy site/dev"), deploy(named(Some("site"), Some("dev")), None));
    assert_eq!(said("/deploy site dev v1"), deploy(named(Some("site"), Some("dev")), Some("v1")));
    assert_eq!(said("/deploy shop main"), deploy(named(Some("shop"), None), Some("main")));
    assert_eq!(said("/deploy nowhere/dev"), deploy(Named::default(), Some("nowhere/dev")), "a branch may be called so");
    let rollback = |place, to: Option<i64>, reason: &str| {
        Ok(Command::Rollback { place, to: to.map(DeploymentId), reason: reason.to_owned() })
    };
    assert_eq!(said("/rollback 7 it\nis  slow"), rollback(Named::default(), Some(7), "it is slow"));
    assert_eq!(said("/rollback shop 500s since 14:00"), rollback(named(Some("shop"), None), None, "500s since 14:00"));
    assert_eq!(said("/reject 3 not now"), Ok(Command::Reject { id: id(3), reason: "not now".to_owned() }));
    assert_eq!(said("/rerun"), Ok(Command::Rerun { id: None, place: Named::default() }));

    for not_ours in ["/status@other_bot", "/", "/@refit_bot x", "/weather", "/statusx"] {
        let read = said(not_ours);
        assert!(matches!(read, Err(Misread::NotForUs | Misread::Wrong { .. })), "{not_ours}: {read:?}");
    }
    for wrong in [
        "/show",
        "/show x",
        "/show 0",
        "/show -1",
        "/show 1 2",
        "/deploy a b",
        "/rollback",
        "/rollback 3",
        "/reject 3",
        "/cancel",
    ] {
        assert!(matches!(said(wrong), Err(Misread::Wrong { .. })), "{wrong}");
    }
    for (name, arguments, what) in MENU {
        assert!(name.len() <= 32 && format!("{arguments} — {what}").chars().count() <= 256, "setMyCommands");
        let needs = said(&format!("/{name} 1 reason"));
        assert!(!matches!(needs, Err(Misread::NotForUs)), "{name} is known: {needs:?}");
    }
}

fn update(kind: &str, extra: Value) -> Incoming {
    let mut content = json!({
        "message_id": 5, "date": 1_795_000_000, "text": "/status",
        "from": { "id": 7, "is_bot": false, "first_name": "Ada", "username": "ada" },
        "chat": { "id": -1_001_234_567_890_i64, "type": "supergroup", "title": "x" },
    });
    for (key, value) in extra.as_object().unwrap() {
        content[key] = value.clone();
    }
    read(&serde_json::from_str(&json!({ "update_id": 1, kind: content }).to_string()).unwrap())
}

#[test]
fn only_a_persons_own_fresh_words_are_commands() {
    let Incoming::Command { who, place, message, .. } = update("message", json!({})) else { panic!("a command") };
    assert_eq!((who, message), (Person { id: 7, name: "@ada".to_owned() }, 5));
    assert_eq!(place, Place { chat: -1_001_234_567_890, thread: None });
    let topic = update("message", json!({ "message_thread_id": 9, "is_topic_message": true }));
    assert!(matches!(topic, Incoming::Command { place: Place { thread: Some(9), .. }, .. }), "{topic:?}");
    let reply = update("message", json!({ "message_thread_id": 9 }));
    assert!(matches!(reply, Incoming::Command { place: Place { thread: None, .. }, .. }), "a reply is no topic");
    let user = json!({ "id": 8, "is_bot": true, "first_name": "b", "username": "b_bot" });
    for (kind, extra) in [
        ("edited_message", json!({ "edit_date": 1_795_000_001 })),
        ("channel_post", json!({})),
        ("message", json!({ "text": "status" })),
        ("message", json!({ "from": user })),
        ("message", json!({ "via_bot": user })),
        ("message", json!({ "sender_chat": { "id": -1_001_234_567_890_i64, "type": "supergroup", "title": "x" } })),
        ("message", json!({ "forward_origin": { "type": "hidden_user", "date": 1, "sender_user_name": "x" } })),
    ] {
        assert_eq!(update(kind, extra.clone()), Incoming::Nothing, "{kind} {extra}");
    }
    let Incoming::Command { who, .. } = update(
        "message",
        json!({ "from": { "id": 7, "is_bot": false, "first_name": "A\u{202e}b\u{1b}[31m", "last_name": "x".repeat(200) } }),
    ) else {
        panic!("a command")
    };
    assert!(who.name.chars().count() <= 60 && !who.name.contains(['\u{202e}', '\u{1b}']), "{who:?}");
    // Of a kind that is not known yet.
    let newer = json!({ "update_id": 1, "something_new": { "x": 1 } });
    assert_eq!(
        serde_json::from_value(newer).map(|update| read(&update)).unwrap_or(Incoming::Nothing),
        Incoming::Nothing
    );
}

#[test]
fn what_a_button_means_survives_being_written_down() {
    let key = EnvironmentKey { app: "site".parse().unwrap(), environment: "dev".parse().unwrap() };
    let (from, to) = (DeploymentId(2), DeploymentId(1));
    let deed = Deed::Rollback { key: key.clone(), from, to, reason: "x".to_owned(), force: true };
    for order in [
        Order::Ask(Action::Rollback),
        Order::Do(Question { deed, under_report: false }),
        Order::No(Question { deed: Deed::Approve { id: to }, under_report: true }),
        Order::Choose { command: Command::Deploy { place: Named::default(), reference: None }, key },
    ] {
        let text = serde_json::to_string(&order).unwrap();
        assert_eq!(serde_json::from_str::<Order>(&text).unwrap(), order, "{text}");
    }
    // As the registry writes what stands under a report.
    assert_eq!(serde_json::from_value::<Order>(json!({ "ask": "cancel" })).unwrap(), Order::Ask(Action::Cancel));
}

fn long_preview(word: &str) -> Preview {
    let side = |id, digit: &str| Side {
        deployment: DeploymentId(id),
        commit: digit.repeat(40).parse().unwrap(),
        version: word.to_owned(),
        image: word.to_owned(),
    };
    let line = CommitLine { commit: "3".repeat(40).parse().unwrap(), subject: word.to_owned() };
    let check = |severity| Check { name: "c".to_owned(), severity, message: word.to_owned(), forcible: true };
    let checks = [Severity::Error, Severity::Warning].map(|severity| vec![check(severity); 30]).concat();
    Preview {
        key: EnvironmentKey { app: "a".repeat(40).parse().unwrap(), environment: "b".repeat(40).parse().unwrap() },
        kind: RollbackKind::Previous,
        from: side(i64::MAX, "1"),
        to: side(i64::MAX - 1, "2"),
        commits: Commits {
            left: vec![line.clone(); 20],
            left_count: 5000,
            gained: vec![line; 20],
            gained_count: 5000,
            unknown: None,
        },
        instant: false,
        environment: vec![Change::Changed(word.to_owned()); 50],
        settings: vec![word.to_owned(); 50],
        migrations: vec![Migration { deployment: DeploymentId(1), before: None, after: None }; 50],
        data: None,
        checks,
    }
}

proptest! {
    #[test]
    fn the_longest_preview_fits_in_a_message(word in "\\PC{0,700}") {
        let preview = long_preview(&word);
        let errors: Vec<&str> = vec![word.as_str(); 30];
        let deed = Deed::Rollback {
            key: preview.key.clone(),
            from: preview.from.deployment,
            to: preview.to.deployment,
            reason: word.clone(),
            force: true,
        };
        let message = words::preview(&preview, &deed, &errors, &word, &Redactor::default());
        prop_assert!(units(&message.plain) <= 4096, "{}", units(&message.plain));
    }
}
