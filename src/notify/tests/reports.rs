//! What people read.

use insta::assert_snapshot;
use proptest::prelude::*;

use super::{telegram::html, *};
use crate::{
    model::{ApprovalState, ApprovalView, DeploymentView, RollbackKind, RollbackView, StageStatus, StageView},
    notify::{Report, words::units},
    pipeline::journal::Recorded,
    redact::Redactor,
    secret::Secret,
};

/// The report of a play on a desk where `before` (if any) was live first, with times that are the same each day.
async fn report(before: bool, play: impl FnOnce(Option<DeploymentId>) -> Play) -> Report {
    let desk = Desk::new().await.unwrap();
    let config = desk.config_with("", "");
    let previous = if before { Some(desk.play(Play::succeeds()).await) } else { None };
    let id = desk.play(play(previous)).await;
    let mut view = desk.registry.deployment(id).await.unwrap().unwrap();
    view.duration_ms = view.duration_ms.map(|_| 83_456);
    for (stage, ms) in view.stages.iter_mut().zip([420, 1_300, 30_250, 8_000, 12, 640, 2_100, 10_400]) {
        stage.duration_ms = stage.duration_ms.map(|_| ms);
    }
    Report::of(&view, &desk.registry.events(id, 0).await.unwrap(), &config)
}

/// Both forms; the message must be one that Telegram takes, and read like its plain form.
fn both(report: &Report) -> String {
    let message = report.message();
    assert_eq!(html::visible(&message.html).as_deref(), Ok(message.plain.as_str()));
    format!("{}\n----\n{}\n----\n{}", report.line(), report.text(), message.html)
}

#[tokio::test]
async fn a_success() {
    assert_snapshot!(both(
        &report(true, |previous| Play { events: forward(previous, Stage::ALL), ..Play::succeeds() }).await
    ));
}

#[tokio::test]
async fn a_success_with_a_warning() {
    let play = |previous| {
        let mut events = forward(previous, &[Stage::Pull]);
        let (stage, error) = (Stage::Backup, "pg_dump: connection refused".to_owned());
        events.extend([start(stage), Event::StepWarned { stage, error, output: json!({}) }]);
        events.push(Event::StepSkipped { stage: Stage::Test, reason: "none is configured".to_owned() });
        events.extend(forward(None, &Stage::ALL[3..]).into_iter().skip(1));
        Play { by: None, door: TriggerKind::Cli, reference: "refs/tags/v1.2".to_owned(), ..Play::new(events) }
    };
    assert_snapshot!(both(&report(true, play).await));
}

#[tokio::test]
async fn a_failure_that_changed_nothing() {
    let play = |previous| {
        let mut play = Play::fails();
        play.events[0] = Event::Begun { previous, rollback_to: None };
        play
    };
    assert_snapshot!(both(&report(true, play).await));
}

#[tokio::test]
async fn a_failure_of_the_first_deployment() {
    let play = |_| {
        let mut events = forward(None, &Stage::ALL[..6]);
        events.extend([
            start(Stage::Start),
            fail(Stage::Start, "the container exited with code 3", &["no module named app"]),
        ]);
        let stages: Vec<Stage> = Stage::ALL[..7].iter().rev().copied().collect();
        events.extend(undo(&stages, &[(Stage::Start, "the candidate was removed")]));
        Play::new(events)
    };
    assert_snapshot!(both(&report(false, play).await));
}

#[tokio::test]
async fn a_failure_before_the_first_step() {
    let play = |previous| Play {
        status: Some(Status::Failed),
        error: Some("Docker is not available: cannot connect to /var/run/docker.sock".to_owned()),
        ..Play::new(vec![Event::Begun { previous, rollback_to: None }])
    };
    assert_snapshot!(both(&report(true, play).await));
}

/// Smoke fails; start brings the old version back.
fn goes_back(previous: Option<DeploymentId>) -> Vec<Event> {
    let mut events = forward(previous, &Stage::ALL[..7]);
    events.extend([start(Stage::Smoke), fail(Stage::Smoke, "GET /health: 500 instead of 200", &["GET /health: 500"])]);
    events.extend(undo(&[Stage::Smoke], &[]));
    events
}

#[tokio::test]
async fn a_rollback() {
    let play = |previous| {
        let mut events = goes_back(previous);
        let stages: Vec<Stage> = Stage::ALL[..7].iter().rev().copied().collect();
        let migrate = (Stage::Migrate, "the schema stays at version 7");
        events.extend(undo(&stages, &[(Stage::Start, "deployment 1 is live again"), migrate]));
        Play { backup: Some("guestbook/production/2026-11-21_10-15-30".to_owned()), ..Play::new(events) }
    };
    assert_snapshot!(both(&report(true, play).await));
}

#[tokio::test]
async fn one_that_is_stuck() {
    let play = |previous| {
        let mut events = goes_back(previous);
        let (stage, error) = (Stage::Start, "the old container is gone".to_owned());
        events.extend([Event::UndoStarted { stage }, Event::UndoFailed { stage, error }]);
        Play::new(events)
    };
    assert_snapshot!(both(&report(true, play).await));
}

#[tokio::test]
async fn a_rollback_that_failed() {
    let play = |previous: Option<DeploymentId>| {
        let mut events = goes_back(previous);
        events[0] = Event::Begun { previous, rollback_to: Some(DeploymentId(9)) };
        let stages: Vec<Stage> = Stage::ALL[..7].iter().rev().copied().collect();
        events.extend(undo(&stages, &[(Stage::Start, "deployment 1 is live again")]));
        Play { door: TriggerKind::Rollback, ..Play::new(events) }
    };
    assert_snapshot!(both(&report(true, play).await));
}

#[tokio::test]
async fn one_that_waits_for_approval_and_goes_on() {
    let desk = Desk::new().await.unwrap();
    let config = desk.config_with("", "");
    let new = NewDeployment {
        key: key(),
        commit: Some(commit()),
        reference: "refs/heads/main".to_owned(),
        trigger: Trigger { kind: TriggerKind::Hook, by: Some("ada".to_owned()), delivery: None, forced: false },
        rollback: None,
    };
    let id = desk.registry.enqueue(&new).await.unwrap();
    let (mut saga, mut seq) = desk.registry.saga(id).await.unwrap();
    let expires_at = "2026-11-22T10:15:30Z".parse().unwrap();
    let mut events = forward(None, &Stage::ALL[..5]);
    events.push(Event::ApprovalRequested { expires_at });
    for event in events {
        let (to, recorded) = desk.registry.append(id, &saga, seq, &event.into()).await.unwrap();
        (saga, seq) = (to, recorded.seq);
    }
    let now = async || {
        let mut view = desk.registry.deployment(id).await.unwrap().unwrap();
        view.stages.iter_mut().for_each(|stage| stage.duration_ms = stage.duration_ms.map(|_| 420));
        Report::of(&view, &desk.registry.events(id, 0).await.unwrap(), &config)
    };
    assert_snapshot!(both(&now().await));
    let yes = Decision { approved: true, by: "grace".to_owned(), reason: None, at: expires_at };
    desk.registry.decide(id, &yes).await.unwrap();
    desk.registry.append(id, &saga, seq, &Event::Approved { by: "grace".to_owned() }.into()).await.unwrap();
    assert_eq!(now().await.approval.as_deref(), Some("given by grace"));
}

#[tokio::test]
async fn a_cancellation() {
    let play = |previous| {
        let mut events = forward(previous, &[Stage::Pull]);
        let (stage, kind) = (Stage::Build, FailureKind::Cancelled);
        events.extend([
            start(stage),
            Event::CancelRequested { by: "ada".to_owned() },
            Event::StepFailed { stage, kind, error: "cancelled".to_owned(), tail: vec!["half built".to_owned()] },
        ]);
        events.extend(undo(&[stage, Stage::Pull], &[]));
        Play::new(events)
    };
    assert_snapshot!(both(&report(true, play).await));
}

#[tokio::test]
async fn one_that_was_superseded() {
    let play = |_| Play {
        status: Some(Status::Superseded),
        error: Some("deployment 3 is newer".to_owned()),
        ..Play::new(Vec::new())
    };
    assert_snapshot!(both(&report(true, play).await));
}

#[tokio::test]
async fn one_that_was_interrupted() {
    let play = |previous| {
        let mut events = forward(previous, &Stage::ALL[..6]);
        events.extend([start(Stage::Start), Event::Interrupted]);
        let stages: Vec<Stage> = Stage::ALL[..7].iter().rev().copied().collect();
        events.extend(undo(&stages, &[(Stage::Start, "deployment 1 is live again")]));
        Play { door: TriggerKind::Reconcile, by: None, ..Play::new(events) }
    };
    assert_snapshot!(both(&report(true, play).await));
}

/// Everything that comes from outside is hostile.
#[tokio::test]
async fn hostile_words_are_inert() {
    let play = |previous| {
        let mut events = forward(previous, &[Stage::Pull]);
        let error = "</code><a href=\"tg://user?id=1\">x</a> & \u{202e}gnp.exe\u{7}\n\u{1b}[31mred";
        let tail = ["</pre><b>", "&amp; &lt; < > \"", "\u{1b}]0;title\u{7}", "https://bob:hunter22@db.example/x"];
        events.extend([start(Stage::Test), fail(Stage::Test, error, &tail)]);
        events.extend(undo(&[Stage::Test, Stage::Pull], &[(Stage::Test, "<i>@all /start #x")]));
        Play {
            subject: "<script>alert(1)</script> & $(reboot) `x` *b* @everyone /delete 👩‍👩‍👧 \u{2067}rtl".to_owned(),
            author: "Eve <eve@example.org>\r\n\u{9b}31m".to_owned(),
            by: Some("<b>eve".to_owned()),
            reference: "refs/heads/a&b<c>".to_owned(),
            ..Play::new(events)
        }
    };
    let report = report(true, play).await;
    let message = report.message();
    assert!(!message.html.contains("hunter22") && !message.html.contains("<script"));
    for text in [report.text(), message.plain] {
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
        assert!(!text.contains(['\u{202e}', '\u{2067}']), "{text:?}");
    }
    assert_snapshot!(both(&report));
}

#[tokio::test]
async fn secrets_are_masked_wherever_they_stand() {
    let desk = Desk::new().await.unwrap();
    let mut play = Play::fails();
    play.subject = "use hunter22 as password".to_owned();
    play.author = "hunter22".to_owned();
    play.reference = "refs/heads/hunter22".to_owned();
    play.by = Some("hunter22".to_owned());
    play.backup = Some("a/hunter22".to_owned());
    let long = format!("{}hunter22", "x".repeat(395));
    play.events = forward(None, &[Stage::Pull]);
    play.events.extend([start(Stage::Test), fail(Stage::Test, "hunter22", &["hunter22", &long])]);
    play.events.extend(undo(&[Stage::Test, Stage::Pull], &[(Stage::Test, "hunter22")]));
    let id = desk.play(play).await;
    let view = desk.registry.deployment(id).await.unwrap().unwrap();
    let events = desk.registry.events(id, 0).await.unwrap();
    let report = Report::compose(&view, &events, &Redactor::new([&Secret::new("hunter22")]), None);
    let message = report.message();
    for text in [report.text(), report.line(), message.html, message.plain, format!("{report:?}")] {
        assert!(!text.contains("hunter"), "{text}");
    }
}

#[tokio::test]
async fn a_log_of_long_lines_is_shortened_and_nothing_else() {
    let play = |previous| {
        let lines: Vec<String> = (0..60).map(|n| format!("line {n} {}", "🦀<&".repeat(3_000))).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let mut events = forward(previous, &[Stage::Pull]);
        events.extend([start(Stage::Test), fail(Stage::Test, "2 failed", &lines)]);
        events.extend(undo(&[Stage::Test, Stage::Pull], &[]));
        Play::new(events)
    };
    let report = report(true, play).await;
    let message = report.message();
    assert_eq!(html::visible(&message.html).as_deref(), Ok(message.plain.as_str()));
    assert!((4000..=4096).contains(&units(&message.plain)), "{}", units(&message.plain));
    assert!(message.plain.contains("line 59 ") && !message.plain.contains("line 45 "), "the newest are kept");
    assert!(message.plain.ends_with("refit rerun 2 tries again"));
    assert_eq!(report.tail.len(), 15);
}

fn view(status: Status) -> DeploymentView {
    let stage = |name: Stage| StageView {
        name,
        status: StageStatus::Warned,
        started_at: None,
        duration_ms: Some(3_599_000),
        output: None,
        error: None,
    };
    DeploymentView {
        id: DeploymentId(i64::MAX),
        app: "a".repeat(40).parse().unwrap(),
        environment: "e".repeat(40).parse().unwrap(),
        commit: Some(commit()),
        reference: String::new(),
        trigger: Trigger { kind: TriggerKind::Reconcile, by: None, delivery: None, forced: true },
        status,
        failed_stage: Some(Stage::Migrate),
        error: None,
        exit_code: None,
        queued_at: jiff::Timestamp::UNIX_EPOCH,
        started_at: None,
        finished_at: None,
        duration_ms: Some(i64::MAX),
        stages: Stage::ALL.iter().copied().map(stage).collect(),
        image: None,
        previous: Some(DeploymentId(i64::MAX)),
        backup: None,
        live: false,
        subject: None,
        author: None,
        log: None,
        undone: Vec::new(),
        rollback: None,
        freed: Some(u64::MAX),
        retired: vec![DeploymentId(i64::MAX); 100],
        approval: Some(ApprovalView {
            state: ApprovalState::Approved,
            by: None,
            reason: None,
            at: None,
            requested_at: jiff::Timestamp::UNIX_EPOCH,
            expires_at: jiff::Timestamp::MAX,
        }),
        resolved: None,
    }
}

/// Any text of up to 10 kB: ordinary, of characters that take two units, or of markup.
fn words() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "\\PC{0,200}",
        (0_usize..2_500).prop_map(|n| "🏴".repeat(n)),
        (0_usize..10_000).prop_map(|n| "&".repeat(n)),
        "(<b>|</pre>|&amp;|\\n| |@all){0,300}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn telegram_takes_the_report_of_anything(
        status in proptest::sample::select(Status::ALL),
        words in proptest::collection::vec(words(), 7),
        undone in proptest::collection::vec(words(), 0..20),
        tail in proptest::collection::vec(words(), 0..20),
    ) {
        let mut view = view(status);
        view.subject = Some(words[0].clone());
        view.author = Some(words[1].clone());
        if let Some(approval) = &mut view.approval {
            approval.by = Some(words[1].clone());
        }
        view.reference = words[2].clone();
        view.trigger.by = Some(words[3].clone());
        view.error = Some(words[4].clone());
        view.backup = Some(words[5].clone());
        view.stages.iter_mut().for_each(|s| s.error = Some(words[6].clone()));
        view.rollback = (words[0].len() % 2 == 0).then(|| RollbackView {
            kind: RollbackKind::Specific,
            to: DeploymentId(i64::MAX),
            reason: words[1].clone(),
            forced: true,
            restore: Some(words[2].clone()),
            parts: Vec::new(),
            checks: serde_json::Value::Null,
        });
        view.undone = undone;
        let kind = FailureKind::Failed;
        let event = Event::StepFailed { stage: Stage::Migrate, kind, error: String::new(), tail };
        let at = jiff::Timestamp::UNIX_EPOCH;
        let events = [Event::Begun { previous: None, rollback_to: None }, event].map(|event| Recorded { seq: 1, at, event });
        let report = Report::compose(&view, &events, &Redactor::default(), Some("https://github.com/a/b"));
        let message = report.message();
        let visible = html::visible(&message.html);
        prop_assert_eq!(visible.as_deref(), Ok(message.plain.as_str()));
        prop_assert!(units(&message.plain) <= 4096, "{}", units(&message.plain));
        if let Some((last, _)) = report.next.last() {
            prop_assert!(message.plain.contains(last.as_str()), "what to do is never cut off");
        }
        for message in [report.card(true), report.bell(), report.answered(&view)] {
            let visible = html::visible(&message.html);
            prop_assert_eq!(visible.as_deref(), Ok(message.plain.as_str()));
            prop_assert!(units(&message.plain) <= 4096 && !message.plain.trim().is_empty(), "{}", message.plain);
        }
        for label in ["commit", "trigger", "stages", "live", "backup", "freed"] {
            let is_there = report.text().lines().any(|line| line.starts_with(&format!("  {label} ")));
            let in_message = message.plain.lines().any(|line| line.starts_with(&format!("{label} ")));
            prop_assert_eq!(is_there, in_message, "{} is not crowded out", label);
        }
    }
}
