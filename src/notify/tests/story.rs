//! What a chat shows over time, of whole deployments.

use insta::assert_snapshot;

use super::{
    telegram::{Accepted, Moment},
    *,
};
use crate::{
    log::DeploymentLog,
    notify::{courier::Courier, deliver_all},
    redact::Redactor,
};

const OPERATORS: &str = "operators = [10001]";

/// A chat that is brought up to date at each step, without a pace.
struct Chat {
    api: BotApi,
    courier: Courier,
}

impl Chat {
    fn new(desk: &Desk, more: &str) -> Self {
        let api = BotApi::start();
        let zero = Duration::ZERO;
        let limits = Limits { gap: zero, edit_gap: zero, window: zero, ..Limits::TELEGRAM };
        let config = desk.config(&api, more);
        let courier = Courier::new(Post { pacer: Pacer::new(limits), ..desk.post(config) });
        Self { api, courier }
    }

    async fn catch_up(&mut self) {
        deliver_all(&mut self.courier, &CancellationToken::new()).await.unwrap();
    }

    /// Every moment, in order.
    fn told(&self) -> String {
        self.api.moments().iter().map(told).collect::<Vec<_>>().join("\n")
    }
}

fn told(moment: &Moment) -> String {
    match moment {
        Moment::Sent(message) => {
            let silent = if message.silent { ", silently" } else { ", rings" };
            let answers = message.reply_to.map(|id| format!(", answers {id}")).unwrap_or_default();
            format!("──── {} sent{silent}{answers}\n{}", message.id, shown(message))
        }
        Moment::Edited(message) => format!("──── {} edited\n{}", message.id, shown(message)),
        Moment::Deleted(id) => format!("──── {id} deleted"),
    }
}

fn shown(message: &Accepted) -> String {
    let mut lines: Vec<String> = message.text.lines().map(timeless).collect();
    if let Some(file) = &message.file {
        lines.push(format!("[file {}, {} lines]", file.name, String::from_utf8_lossy(&file.content).lines().count()));
    }
    for row in &message.buttons {
        lines.push(row.iter().map(|(text, _)| format!("[{text}]")).collect::<Vec<_>>().join(" "));
    }
    lines.retain(|line| !line.is_empty());
    lines.join("\n")
}

/// A line with `T` for each time that it took.
fn timeless(line: &str) -> String {
    let mut words: Vec<&str> = line.split(' ').collect();
    let mut at = 1;
    while at < words.len() {
        let number = words[at - 1].bytes().all(|b| b.is_ascii_digit() || b == b'.');
        if number && ["ms", "s"].contains(&words[at]) {
            words[at - 1] = "T";
            words.remove(at);
        }
        at += 1;
    }
    words.join(" ")
}

#[tokio::test]
async fn a_good_deployment() {
    let desk = Desk::new().await.unwrap();
    let previous = desk.play(Play::succeeds()).await;
    let mut chat = Chat::new(&desk, OPERATORS);
    desk.registry.message_dropped(1).await.unwrap();
    let mut playing = desk.begin("Let guests sign <b>twice</b>", Some(previous)).await;
    chat.catch_up().await;
    playing.append(start(Stage::Backup).into()).await;
    playing.append(start(Stage::Test).into()).await;
    chat.catch_up().await;
    let (stage, error) = (Stage::Backup, "pg_dump: connection refused".to_owned());
    playing.append(Event::StepWarned { stage, error, output: json!({}) }.into()).await;
    playing.append(Event::StepSucceeded { stage: Stage::Test, output: json!({}) }.into()).await;
    playing.succeed(Stage::Build).await;
    playing.succeed(Stage::Tag).await;
    chat.catch_up().await;
    chat.catch_up().await;
    playing.append(Event::StepSkipped { stage: Stage::Migrate, reason: "none".to_owned() }.into()).await;
    playing.succeed_from(Stage::Start).await;
    chat.catch_up().await;
    assert_snapshot!(chat.told());
    assert!(chat.api.moments().iter().all(|m| !matches!(m, Moment::Sent(a) | Moment::Edited(a) if !a.html)));
}

#[tokio::test]
async fn a_bad_deployment() {
    let desk = Desk::new().await.unwrap();
    let previous = desk.play(Play::succeeds()).await;
    let mut chat = Chat::new(&desk, OPERATORS);
    desk.registry.message_dropped(1).await.unwrap();
    let mut playing = desk.begin("Sign in a loop", Some(previous)).await;
    chat.catch_up().await;
    let config = desk.config(&chat.api, OPERATORS);
    let path = config.server.logs_dir.join(format!("{}.log", playing.id));
    let log = DeploymentLog::open(&path, Redactor::default()).unwrap().stage(Stage::Test);
    (0..100).for_each(|n| log.line(format!("test {n} ran")));
    playing.append(start(Stage::Test).into()).await;
    let tail = log.tail();
    let tail: Vec<&str> = tail.iter().map(String::as_str).collect();
    playing.append(fail(Stage::Test, "2 of 14 tests failed (exit code 1)", &tail).into()).await;
    chat.catch_up().await;
    playing.undo(&[Stage::Test]).await;
    chat.catch_up().await;
    playing.undo(&[Stage::Pull]).await;
    playing.end().await;
    chat.catch_up().await;
    assert_snapshot!(chat.told());
    let file = chat.api.accepted().pop().unwrap().file.unwrap();
    let text = String::from_utf8(file.content).unwrap();
    assert!(text.contains("| test 0 ran") && text.contains("| test 99 ran"));
}

#[tokio::test]
async fn a_question_that_is_answered() {
    let desk = Desk::new().await.unwrap();
    let mut chat = Chat::new(&desk, OPERATORS);
    let mut playing = desk.begin("Let guests sign", None).await;
    for stage in &Stage::ALL[1..5] {
        playing.succeed(*stage).await;
    }
    chat.catch_up().await;
    let expires_at = "2026-11-22T10:15:30Z".parse().unwrap();
    let message = Some(NewMessage::of(MessageKind::Approval));
    playing.append(Entry { message, ..Event::ApprovalRequested { expires_at }.into() }).await;
    chat.catch_up().await;
    let yes = Decision { approved: true, by: "grace".to_owned(), reason: None, at: expires_at };
    desk.registry.decide(playing.id, &yes).await.unwrap();
    playing.append(Event::Approved { by: "grace".to_owned() }.into()).await;
    chat.catch_up().await;
    playing.succeed_from(Stage::Migrate).await;
    chat.catch_up().await;
    assert_snapshot!(chat.told());
}

#[tokio::test]
async fn a_rollback_that_failed() {
    let desk = Desk::new().await.unwrap();
    let previous = desk.play(Play::succeeds()).await;
    let mut chat = Chat::new(&desk, "");
    desk.registry.message_dropped(1).await.unwrap();
    let mut playing = desk.begin("Sign in a loop", Some(previous)).await;
    for stage in &Stage::ALL[1..6] {
        playing.succeed(*stage).await;
    }
    playing.append(start(Stage::Start).into()).await;
    playing.append(fail(Stage::Start, "never became healthy", &["listening on 8000"]).into()).await;
    playing.append(Event::UndoStarted { stage: Stage::Start }.into()).await;
    chat.catch_up().await;
    let error = "no such container".to_owned();
    playing.append(Event::UndoFailed { stage: Stage::Start, error }.into()).await;
    playing.end().await;
    chat.catch_up().await;
    assert_snapshot!(chat.told());
}

#[tokio::test]
async fn a_quiet_chat_is_told_of_a_success_without_a_sound_and_of_a_failure_with_one() {
    let desk = Desk::new().await.unwrap();
    let mut chat = Chat::new(&desk, "quiet = true");
    let mut good = desk.begin("good", None).await;
    chat.catch_up().await;
    good.succeed_from(Stage::Backup).await;
    chat.catch_up().await;
    // This one ends before anything of it could be told.
    desk.begin("quick", None).await.succeed_from(Stage::Backup).await;
    chat.catch_up().await;
    assert!(chat.api.rung().is_empty());
    let texts: Vec<String> = chat.api.accepted().into_iter().map(|a| a.text).collect();
    assert!(texts.len() == 2 && texts.iter().all(|text| text.starts_with("✅")), "{texts:?}");
    desk.begin("bad", None).await.fail_in_test(&["FAILED"]).await;
    chat.catch_up().await;
    assert_eq!(chat.api.rung().len(), 1);
    assert_eq!(desk.waiting().await, (0, None));
}

#[tokio::test]
async fn a_push_that_is_not_to_be_deployed_leaves_nothing() {
    let desk = Desk::new().await.unwrap();
    let mut chat = Chat::new(&desk, "");
    let mut playing = desk.begin("docs [skip ci]", None).await;
    chat.catch_up().await;
    playing.undo(&[]).await;
    playing.end_as(Status::Skipped).await;
    chat.catch_up().await;
    chat.catch_up().await;
    assert!(chat.api.accepted().is_empty());
    assert_eq!(chat.api.requests(), 2, "sent, and taken back");
}
