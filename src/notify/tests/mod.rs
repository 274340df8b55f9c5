//! Reports as people read them, and their way to a stand-in of the Bot API through every kind of trouble.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::json;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use self::telegram::{BotApi, CHAT, TOKEN};
use super::{Limits, Pacer, Post};
use crate::{
    config::{self, Config, RuntimeKind},
    model::{CommitId, DeploymentId, EnvironmentKey, Stage, Status, Trigger, TriggerKind},
    pipeline::{
        journal::{Event, FailureKind, Saga},
        outcome,
    },
    registry::{Decision, Entry, Facts, MessageKind, NewDeployment, NewMessage, Registry, Rehearsed, Release},
    runtime::Instance,
    test_ports as ports,
};

mod delivery;
mod figures;
mod live;
mod outages;
mod reports;
mod standin;
mod story;
#[expect(dead_code, unused_imports, reason = "the bot's tests, which share it, also speak and press buttons")]
#[path = "../../../tests/it/support/telegram/mod.rs"]
mod telegram;

/// Telegram's limits, a hundred times as fast.
const QUICK: Limits = Limits {
    gap: Duration::from_millis(10),
    edit_gap: Duration::from_millis(15),
    window: Duration::from_millis(600),
    ..Limits::TELEGRAM
};

type Done = Result<(), Box<dyn std::error::Error>>;

/// A registry and a configuration in a directory of their own.
struct Desk {
    dir: tempfile::TempDir,
    registry: Registry,
}

impl Desk {
    async fn new() -> Result<Self, Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        let registry = Registry::open(&dir.path().join("state/refit.db")).await?;
        Ok(Self { dir, registry })
    }

    fn config_with(&self, telegram: &str, token: &str) -> Arc<Config> {
        let text = format!(
            "[app]\nname = \"guestbook\"\nrepository = \"https://github.com/acme/guestbook.git\"\n\
             [environments.production]\nbranch = \"main\"\nport = 8000\n{telegram}"
        );
        let file = self.dir.path().join("pipeline.toml");
        std::fs::write(&file, text).unwrap();
        let env = |name: &str| (name == "TOKEN").then(|| token.to_owned());
        Arc::new(config::load(&file, &env).unwrap_or_else(|errors| panic!("{errors}")))
    }

    /// A configuration that reports to `api`, with more keys of `[telegram]`.
    fn config(&self, api: &BotApi, more: &str) -> Arc<Config> {
        self.config_for(&api.url(), TOKEN, more)
    }

    fn config_for(&self, url: &str, token: &str, more: &str) -> Arc<Config> {
        let chat = if more.contains("chat =") { String::new() } else { format!("chat = {CHAT}\n") };
        self.config_with(
            &format!("[telegram]\ntoken = {{ env = \"TOKEN\" }}\napi_url = \"{url}\"\n{chat}{more}"),
            token,
        )
    }

    async fn waiting(&self) -> (u64, Option<String>) {
        self.registry.outbox_backlog().await.unwrap()
    }

    /// Waits until nothing waits any more.
    async fn settled(&self) {
        let settled = async {
            while self.waiting().await.0 > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), settled).await.expect("the outbox empties");
    }

    /// Plays a deployment to its end, with a message in the outbox as the pipeline leaves it.
    async fn play(&self, play: Play) -> DeploymentId {
        let new = NewDeployment {
            key: key(),
            commit: Some(commit()),
            reference: play.reference,
            trigger: Trigger { kind: play.door, by: play.by, delivery: None, forced: false },
            rollback: None,
        };
        let id = self.registry.enqueue(&new).await.unwrap();
        let (mut saga, mut seq) = self.registry.saga(id).await.unwrap();
        let mut facts =
            Facts { subject: Some(play.subject), author: Some(play.author), backup: play.backup, ..Facts::default() };
        for event in play.events {
            let entry = Entry { facts: std::mem::take(&mut facts), ..event.into() };
            let (to, recorded) = self.registry.append(id, &saga, seq, &entry).await.unwrap();
            (saga, seq) = (to, recorded.seq);
        }
        let events = self.registry.events(id, 0).await.unwrap();
        let status = play.status.unwrap_or_else(|| saga.verdict());
        let mut end = outcome::end(status, &saga, &events);
        if status == Status::Succeeded {
            end.live = Some(release(id));
        }
        end.error = end.error.or(play.error);
        let event = Event::Ended { status, reason: end.error.clone() };
        let message = Some(NewMessage::of(MessageKind::End));
        let entry = Entry { event, facts, end: Some(end), message };
        self.registry.append(id, &saga, seq, &entry).await.unwrap();
        id
    }

    /// Begins a deployment, to be played step by step.
    async fn begin(&self, subject: &str, previous: Option<DeploymentId>) -> Playing<'_> {
        let new = NewDeployment {
            key: key(),
            commit: None,
            reference: "refs/heads/main".to_owned(),
            trigger: Trigger { kind: TriggerKind::Github, by: Some("ada".to_owned()), delivery: None, forced: false },
            rollback: None,
        };
        let id = self.registry.enqueue(&new).await.unwrap();
        let (saga, seq) = self.registry.saga(id).await.unwrap();
        let mut playing = Playing { desk: self, id, saga, seq };
        let facts = Facts { log: Some(format!("{id}.log")), ..Facts::default() };
        let event = Event::Begun { previous, rollback_to: None };
        playing.append(Entry { facts, message: Some(NewMessage::of(MessageKind::Begun)), ..event.into() }).await;
        playing.append(start(Stage::Pull).into()).await;
        let facts = Facts {
            commit: Some(commit()),
            subject: Some(subject.to_owned()),
            author: Some("Ada Lovelace".to_owned()),
            ..Facts::default()
        };
        let pulled = Event::StepSucceeded { stage: Stage::Pull, output: json!({}) };
        playing.append(Entry { facts, ..pulled.into() }).await;
        playing
    }

    /// What sending works with, at a pace for tests.
    fn post(&self, config: Arc<Config>) -> Post {
        Post { pacer: Pacer::new(QUICK), ..Post::new(self.registry.clone(), config) }
    }

    /// Starts the task of the daemon.
    fn run(&self, config: Arc<Config>) -> Running {
        self.run_post(self.post(config))
    }

    fn run_post(&self, post: Post) -> Running {
        let ticks = watch::Sender::new(0);
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(super::run(post, ticks.subscribe(), shutdown.clone()));
        Running { ticks, shutdown, task }
    }
}

/// A deployment that goes on step by step, with its messages in the outbox as the pipeline leaves them.
struct Playing<'a> {
    desk: &'a Desk,
    id: DeploymentId,
    saga: Saga,
    seq: i64,
}

impl Playing<'_> {
    async fn append(&mut self, entry: Entry) {
        let (saga, recorded) = self.desk.registry.append(self.id, &self.saga, self.seq, &entry).await.unwrap();
        (self.saga, self.seq) = (saga, recorded.seq);
    }

    async fn succeed(&mut self, stage: Stage) {
        self.append(start(stage).into()).await;
        self.append(Event::StepSucceeded { stage, output: json!({}) }.into()).await;
    }

    async fn undo(&mut self, stages: &[Stage]) {
        for event in undo(stages, &[]) {
            self.append(event.into()).await;
        }
    }

    async fn end(&mut self) {
        self.end_as(self.saga.verdict()).await;
    }

    async fn end_as(&mut self, status: Status) {
        let events = self.desk.registry.events(self.id, 0).await.unwrap();
        let mut end = outcome::end(status, &self.saga, &events);
        end.live = (status == Status::Succeeded).then(|| release(self.id));
        let event = Event::Ended { status, reason: end.error.clone() };
        let message = (status != Status::Skipped).then(|| NewMessage::of(MessageKind::End));
        self.append(Entry { event, facts: Facts::default(), end: Some(end), message }).await;
    }

    /// All that is left succeeds.
    async fn succeed_from(&mut self, stage: Stage) {
        for stage in Stage::ALL.iter().skip_while(|s| **s != stage) {
            self.succeed(*stage).await;
        }
        self.end().await;
    }

    /// The tests fail with these last lines.
    async fn fail_in_test(&mut self, tail: &[&str]) {
        self.append(start(Stage::Test).into()).await;
        self.append(fail(Stage::Test, "2 of 14 tests failed (exit code 1)", tail).into()).await;
        self.undo(&[Stage::Test, Stage::Pull]).await;
        self.end().await;
    }
}

/// The daemon's task at work.
struct Running {
    ticks: watch::Sender<u64>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    fn tick(&self) {
        self.ticks.send_modify(|n| *n += 1);
    }

    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(20), self.task).await.expect("it stops").expect("it did not panic");
    }

    /// What a SIGKILL leaves: nothing runs on, nothing is tidied.
    async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.is_err_and(|e| e.is_cancelled()));
    }
}

/// What a deployment goes through.
struct Play {
    events: Vec<Event>,
    /// The journal's verdict where unset.
    status: Option<Status>,
    error: Option<String>,
    door: TriggerKind,
    by: Option<String>,
    reference: String,
    subject: String,
    author: String,
    backup: Option<String>,
}

impl Play {
    fn new(events: Vec<Event>) -> Self {
        Self {
            events,
            status: None,
            error: None,
            door: TriggerKind::Github,
            by: Some("ada".to_owned()),
            reference: "refs/heads/main".to_owned(),
            subject: "Let guests sign twice".to_owned(),
            author: "Ada Lovelace".to_owned(),
            backup: None,
        }
    }

    fn succeeds() -> Self {
        let backup = Some("guestbook/production/2026-11-21_10-15-30".to_owned());
        Self { backup, ..Self::new(forward(None, &Stage::ALL[..8])) }
    }

    /// The tests fail; nothing was live before.
    fn fails() -> Self {
        let mut events = forward(None, &[Stage::Pull]);
        events.extend([
            start(Stage::Test),
            fail(
                Stage::Test,
                "2 of 14 tests failed (exit code 1)",
                &["FAILED test_sign.py::test_twice", "2 failed, 12 passed"],
            ),
        ]);
        events.extend(undo(&[Stage::Test, Stage::Pull], &[]));
        Self::new(events)
    }
}

fn key() -> EnvironmentKey {
    EnvironmentKey { app: "guestbook".parse().unwrap(), environment: "production".parse().unwrap() }
}

fn commit() -> CommitId {
    "0123456789abcdef0123456789abcdef01234567".parse().unwrap()
}

fn release(id: DeploymentId) -> Release {
    Release {
        deployment: id,
        key: key(),
        commit: commit(),
        artefact: "sha256:1".into(),
        artefact_name: "guestbook:0123456789".into(),
        runtime: RuntimeKind::Docker,
        instance: Instance { id: "c".into(), name: "n".into(), deployment: id },
        live_since: jiff::Timestamp::now(),
    }
}

fn start(stage: Stage) -> Event {
    Event::StepStarted { stage, input: json!({}) }
}

fn fail(stage: Stage, error: &str, tail: &[&str]) -> Event {
    let tail = tail.iter().map(|line| (*line).to_owned()).collect();
    Event::StepFailed { stage, kind: FailureKind::Failed, error: error.to_owned(), tail }
}

/// It begins, and these stages succeed.
fn forward(previous: Option<DeploymentId>, stages: &[Stage]) -> Vec<Event> {
    let mut events = vec![Event::Begun { previous, rollback_to: None }];
    for stage in stages {
        events.extend([start(*stage), Event::StepSucceeded { stage: *stage, output: json!({}) }]);
    }
    events
}

/// These stages are undone, in this order, with what there is to say of some.
fn undo(stages: &[Stage], summaries: &[(Stage, &str)]) -> Vec<Event> {
    let summary = |stage: Stage| summaries.iter().find(|(s, _)| *s == stage).map(|(_, text)| (*text).to_owned());
    let both = |stage: &Stage| {
        [Event::UndoStarted { stage: *stage }, Event::UndoFinished { stage: *stage, summary: summary(*stage) }]
    };
    stages.iter().flat_map(both).collect()
}

/// Everything that is logged while it lives, of every crate and level.
#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    fn begin() -> (Self, tracing::subscriber::DefaultGuard) {
        let captured = Self::default();
        let writer = captured.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        (captured, tracing::subscriber::set_default(subscriber))
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
