//! What happens between queue, registry and pipeline when they meet in the wrong moment.

use futures_util::StreamExt;
use serde_json::{Value, json};

use super::*;
use crate::{
    config,
    model::{Stage, TriggerKind},
    pipeline::journal::{Event, Saga},
};

const APP: &str = "[server]\nreconcile = '0s'\n[app]\nname = 'site'\nrepository = 'nowhere.git'\n[pull]\nretries = 0\n\
                   [start]\nruntime = 'process'\ncommand = 'true'\n";
const PRODUCTION: &str = "[environments.production]\nbranch = 'main'\n";
const DEV: &str = "[environments.dev]\nbranch = 'dev'\n";

struct House {
    dir: tempfile::TempDir,
}

impl House {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn config(&self, environments: &str) -> Arc<Config> {
        let file = self.dir.path().join("pipeline.toml");
        std::fs::write(&file, format!("{APP}{environments}")).unwrap();
        Arc::new(config::load(&file, &|_| None).unwrap_or_else(|e| panic!("{e}")))
    }

    async fn start(&self, environments: &str) -> Result<Control> {
        let options =
            Options { docker_host: None, program: std::env::current_exe().unwrap(), faults: Faults::default() };
        Control::start_in_place(self.config(environments), options).await
    }

    async fn registry(&self) -> Registry {
        Registry::open(&self.config(PRODUCTION).server.registry()).await.unwrap()
    }
}

fn key() -> EnvironmentKey {
    EnvironmentKey { app: "site".parse().unwrap(), environment: "production".parse().unwrap() }
}

async fn queued(registry: &Registry) -> DeploymentId {
    let trigger = Trigger { kind: TriggerKind::Cli, by: None, delivery: None, forced: false };
    let new =
        NewDeployment { key: key(), commit: None, reference: "refs/heads/main".to_owned(), trigger, rollback: None };
    registry.enqueue(&new).await.unwrap()
}

/// Writes a journal, as a process that died there would have left it.
async fn written(registry: &Registry, events: Vec<Event>) -> DeploymentId {
    let id = queued(registry).await;
    let (mut saga, mut seq) = (Saga::default(), 0);
    for event in events {
        let (to, recorded) = registry.append(id, &saga, seq, &event.into()).await.unwrap();
        (saga, seq) = (to, recorded.seq);
    }
    id
}

fn pulled(output: Value) -> Vec<Event> {
    let stage = Stage::Pull;
    vec![
        Event::Begun { previous: None, rollback_to: None },
        Event::StepStarted {
            stage,
            input: json!({ "reference": "refs/heads/main", "explicit": false, "forced": false }),
        },
        Event::StepSucceeded { stage, output },
    ]
}

fn request() -> DeployRequest {
    let trigger = Trigger { kind: TriggerKind::Cli, by: None, delivery: None, forced: false };
    DeployRequest { app: None, environment: None, reference: None, trigger, no_wait: false }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_storm_of_requests_leaves_nothing_waiting() {
    let house = House::new();
    let control = house.start(PRODUCTION).await.unwrap();
    // Each takes the place of the one before, often in the moment in which that one is about to begin.
    let mut last = DeploymentId(0);
    for _ in 0..150 {
        last = control.deploy(request()).await.unwrap();
    }
    let followed = control.follow(last, 0).collect::<Vec<_>>();
    let updates = tokio::time::timeout(Duration::from_secs(60), followed).await.expect("the last one ends");
    assert!(matches!(updates.last(), Some(Ok(Update::End { deployment })) if deployment.status == Status::Failed));
    let all = control.registry().deployments(&Filter::default()).await.unwrap();
    assert_eq!(all.len(), 150);
    for deployment in all {
        assert!(matches!(deployment.status, Status::Failed | Status::Superseded), "{deployment:?}");
    }
    control.shutdown(Duration::ZERO).await;
    control.close().await;
}

#[tokio::test]
async fn what_waits_when_the_queue_closes_waits_for_the_next_start() {
    let house = House::new();
    let control = house.start(PRODUCTION).await.unwrap();
    control.queue.close();
    let id = control.deploy(request()).await.unwrap();
    control.shutdown(Duration::ZERO).await;
    assert_eq!(control.registry().deployment(id).await.unwrap().unwrap().status, Status::Queued);
    control.close().await;

    let control = house.start(PRODUCTION).await.unwrap();
    let updates = control.follow(id, 0).collect::<Vec<_>>().await;
    let Some(Ok(Update::End { deployment })) = updates.last() else { panic!("no end: {updates:?}") };
    assert_eq!(deployment.failed_stage, Some(Stage::Pull), "it was run: {deployment:?}");
    control.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn what_never_began_or_has_ended_is_left_alone_by_recovery() {
    let house = House::new();
    let control = house.start(DEV).await.unwrap();
    let superseded = queued(control.registry()).await;
    let waiting = queued(control.registry()).await;
    for (id, status) in [(superseded, Status::Superseded), (waiting, Status::Queued)] {
        for _ in 0..2 {
            let recovered = recover::recover_one(&control.world, id, key()).await.unwrap();
            assert_eq!(recovered.status, status);
        }
        assert_eq!(control.registry().deployment(id).await.unwrap().unwrap().status, status);
    }
    control.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn a_skip_that_was_found_before_a_crash_is_no_failure() {
    let house = House::new();
    let output = json!({ "commit": "1".repeat(40), "subject": "docs", "author": "Ada", "skip": "nothing in `paths`" });
    let registry = house.registry().await;
    let skipped = written(&registry, pulled(output.clone())).await;
    let mut cancelled = pulled(output);
    cancelled.insert(2, Event::CancelRequested { by: "ada".to_owned() });
    let cancelled = written(&registry, cancelled).await;
    registry.close().await;

    let control = house.start(PRODUCTION).await.unwrap();
    assert_eq!(end_of(&control, skipped).await, (Status::Skipped, Some("nothing in `paths`".to_owned())));
    assert_eq!(end_of(&control, cancelled).await, (Status::Cancelled, Some("cancelled by ada".to_owned())));
    control.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn one_whose_environment_is_gone_is_told_to_a_person_wherever_it_stopped() {
    let stuck = |stage| {
        let mut events = pulled(json!({ "commit": "1".repeat(40), "subject": "s", "author": "a" }));
        events.push(Event::Interrupted);
        events.push(Event::UndoStarted { stage });
        events.push(Event::UndoFailed { stage, error: "no".to_owned() });
        events
    };
    let house = House::new();
    let registry = house.registry().await;
    let all = [
        written(&registry, vec![Event::Begun { previous: None, rollback_to: None }]).await,
        written(&registry, pulled(json!({}))).await,
        written(&registry, stuck(Stage::Pull)).await,
    ];
    registry.close().await;
    let control = house.start(DEV).await.unwrap();
    let mut ends = Vec::new();
    for id in all {
        ends.push(end_of(&control, id).await.0);
    }
    assert_eq!(ends, [Status::Failed, Status::Stuck, Status::Stuck]);
    control.shutdown(Duration::ZERO).await;
}

async fn end_of(control: &Control, id: DeploymentId) -> (Status, Option<String>) {
    let view = control.registry().deployment(id).await.unwrap().unwrap();
    (view.status, view.error)
}

#[tokio::test]
async fn what_waits_for_a_word_is_left_waiting_until_somebody_or_nobody_can_answer() {
    let house = House::new();
    let registry = house.registry().await;
    let mut events = pulled(json!({ "commit": "1".repeat(40), "subject": "s", "author": "a" }));
    events.extend(Stage::ALL[1..5].iter().map(|stage| Event::StepSkipped { stage: *stage, reason: String::new() }));
    events.push(Event::ApprovalRequested { expires_at: Timestamp::MAX });
    let id = written(&registry, events.clone()).await;
    registry.close().await;

    let control = house.start(PRODUCTION).await.unwrap();
    // A store that could not be read for a while: the worker recovers what it drives.
    let recovered = recover::recover_one(&control.world, id, key()).await.unwrap();
    assert_eq!(recovered.status, Status::AwaitingApproval);
    let busy = control.deploy(DeployRequest { no_wait: true, ..request() }).await.unwrap_err();
    assert!(matches!(busy, ControlError::Busy { .. }) && busy.to_string().contains("waits for approval"), "{busy}");
    control.shutdown(Duration::from_secs(3600)).await;
    assert_eq!(end_of(&control, id).await.0, Status::AwaitingApproval, "the end of the process waits for nobody");
    control.close().await;

    let control = house.start(PRODUCTION).await.unwrap();
    let word = |approved, reason: Option<&str>| ApprovalRequest {
        approved,
        by: "ada".to_owned(),
        reason: reason.map(str::to_owned),
    };
    assert_eq!(control.decide(id, word(false, None)).await.unwrap_err().exit_code(), 64);
    control.decide(id, word(false, Some("not now"))).await.unwrap();
    control.decide(id, word(false, Some("not now"))).await.unwrap();
    let updates = control.follow(id, 0).collect::<Vec<_>>().await;
    assert!(matches!(updates.last(), Some(Ok(Update::End { .. }))), "{updates:?}");
    assert_eq!(end_of(&control, id).await, (Status::Failed, Some("rejected by ada: not now".to_owned())));
    assert_eq!(control.decide(id, word(true, None)).await.unwrap_err().exit_code(), 64);
    let never = control.deploy(request()).await.unwrap();
    assert_eq!(control.decide(never, word(true, None)).await.unwrap_err().exit_code(), 64);
    control.shutdown(Duration::ZERO).await;
    control.close().await;

    // Nobody would ever take it up.
    let registry = house.registry().await;
    let id = written(&registry, events).await;
    registry.close().await;
    let control = house.start(DEV).await.unwrap();
    assert_eq!(end_of(&control, id).await.0, Status::Stuck);
    control.shutdown(Duration::ZERO).await;
}
