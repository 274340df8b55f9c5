use super::*;
use crate::{
    config::RuntimeKind,
    model::{CommitId, DeploymentId, EnvironmentKey, Stage, StageStatus, Status, Trigger, TriggerKind},
    pipeline::journal::{Event, FailureKind, Saga},
    runtime::Instance,
};

pub(super) type Done = std::result::Result<(), Box<dyn std::error::Error>>;

pub(super) async fn registry() -> std::result::Result<(tempfile::TempDir, Registry), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let registry = Registry::open(&dir.path().join("state/refit.db")).await?;
    Ok((dir, registry))
}

pub(super) fn key() -> EnvironmentKey {
    EnvironmentKey { app: "guestbook".parse().unwrap(), environment: "production".parse().unwrap() }
}

pub(super) fn commit(digit: char) -> CommitId {
    digit.to_string().repeat(40).parse().unwrap()
}

fn delivery(id: &str, digit: char) -> Delivery {
    Delivery {
        source: TriggerKind::Github,
        delivery: id.to_owned(),
        app: "guestbook".parse().unwrap(),
        branch: "main".parse().unwrap(),
        commit: commit(digit),
        pusher: Some("eve \"quote\" 🙂".to_owned()),
        forced: true,
    }
}

pub(super) fn new_deployment(digit: char) -> NewDeployment {
    NewDeployment {
        key: key(),
        commit: Some(commit(digit)),
        reference: "refs/heads/main".to_owned(),
        trigger: Trigger { kind: TriggerKind::Cli, by: None, delivery: None, forced: false },
        rollback: None,
    }
}

/// What a commit on a full disk does: SQLite has ended the transaction before anybody rolled it back.
#[tokio::test]
async fn a_transaction_that_sqlite_ended_by_itself_is_not_the_last() -> Done {
    let (_dir, registry) = registry().await?;
    let mut tx = registry.write.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::query("ROLLBACK").execute(&mut *tx).await?;
    drop(tx);
    registry.enqueue(&new_deployment('1')).await?;
    Ok(())
}

#[tokio::test]
async fn a_delivery_is_taken_once_whatever_the_batch() -> Done {
    let (_dir, registry) = registry().await?;
    let first = registry.accept(&[delivery("a", '1'), delivery("b", '2'), delivery("a", '1')]).await?;
    assert_eq!(first.iter().map(|r| r.duplicate).collect::<Vec<_>>(), [false, false, true]);
    assert_eq!(first[0].id, first[2].id);
    let again = registry.accept(&[delivery("b", '2'), delivery("c", '3')]).await?;
    assert_eq!(again.iter().map(|r| r.duplicate).collect::<Vec<_>>(), [true, false]);
    let mut other = delivery("d", '4');
    other.branch = "dev".parse().unwrap();
    registry.accept(&[other]).await?;
    let open = registry.newest_open_deliveries().await?;
    assert_eq!(open.iter().map(|d| d.delivery.delivery.as_str()).collect::<Vec<_>>(), ["c", "d"]);
    assert_eq!(open[0].delivery, delivery("c", '3'), "it comes back as it went in");

    let outcome = Outcome { environment: Some(key()), deployment: Some(DeploymentId(7)), ignored: None };
    let settled = registry.settle(&open[0], std::slice::from_ref(&outcome)).await?;
    assert_eq!(settled, 3, "it and the two older ones of its branch");
    assert_eq!(registry.outcome(open[0].id).await?, Some(vec![outcome]));
    let older = registry.outcome(first[0].id).await?.unwrap();
    assert_eq!(older[0].ignored, Some(format!("delivery {} is newer", open[0].id)));
    assert_eq!(registry.outcome(open[1].id).await?, None);
    assert_eq!(registry.newest_open_deliveries().await?.len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_push_waits_behind_what_a_person_asked_for() -> Done {
    let (_dir, registry) = registry().await?;
    let triggered = |kind, digit| {
        let new = new_deployment(digit);
        NewDeployment { trigger: Trigger { kind, ..new.trigger.clone() }, ..new }
    };
    let rollback = registry.enqueue(&triggered(TriggerKind::Rollback, '1')).await?;
    let push = registry.enqueue(&triggered(TriggerKind::Github, '2')).await?;
    let newer = registry.enqueue(&triggered(TriggerKind::Hook, '3')).await?;
    let status = async |id| registry.deployment(id).await.map(|view| view.unwrap().status);
    assert_eq!(status(rollback).await?, Status::Queued);
    assert_eq!(status(push).await?, Status::Superseded);
    assert_eq!(registry.next_queued(&key()).await?, Some(rollback), "it comes first");
    let last = registry.enqueue(&triggered(TriggerKind::Cli, '4')).await?;
    assert_eq!((status(rollback).await?, status(newer).await?), (Status::Superseded, Status::Superseded));
    assert_eq!(registry.next_queued(&key()).await?, Some(last));
    Ok(())
}

#[tokio::test]
async fn the_newest_waiting_deployment_wins() -> Done {
    let (_dir, registry) = registry().await?;
    let one = registry.enqueue(&new_deployment('1')).await?;
    let two = registry.enqueue(&new_deployment('2')).await?;
    assert_eq!(registry.next_queued(&key()).await?, Some(two));
    let old = registry.deployment(one).await?.unwrap();
    assert_eq!((old.status, old.exit_code), (Status::Superseded, Some(1)));
    assert!(registry.saga(one).await?.0.is_ended(), "its journal says so too");
    assert_eq!(registry.last_of_commit(&key(), &commit('1'), None).await?, None, "superseded says nothing of a commit");
    assert_eq!(registry.last_of_commit(&key(), &commit('2'), None).await?, Some((two, Status::Queued)));
    Ok(())
}

#[tokio::test]
async fn what_is_recorded_is_what_the_view_shows() -> Done {
    let (dir, registry) = registry().await?;
    let id = registry.enqueue(&new_deployment('1')).await?;
    let (mut saga, mut seq) = registry.saga(id).await?;
    let pull = Stage::Pull;
    let events = [
        Event::Begun { previous: None, rollback_to: None },
        Event::StepStarted { stage: pull, input: serde_json::json!({}) },
        Event::StepFailed { stage: pull, kind: FailureKind::Failed, error: "no".into(), tail: vec!["last".into()] },
        Event::UndoStarted { stage: pull },
        Event::UndoFinished { stage: pull, summary: Some("nothing".into()) },
    ];
    for event in events {
        let (to, recorded) = registry.append(id, &saga, seq, &event.into()).await?;
        (saga, seq) = (to, recorded.seq);
    }
    let illegal = registry.append(id, &saga, seq, &Event::Begun { previous: None, rollback_to: None }.into()).await;
    assert!(matches!(illegal, Err(RegistryError::Illegal(_))));
    let end = End { failed_stage: Some(pull), error: Some("no".into()), exit_code: 1, live: None };
    let event = Event::Ended { status: Status::Failed, reason: None };
    let message = Some(NewMessage::of(MessageKind::End));
    registry.append(id, &saga, seq, &Entry { event, facts: Facts::default(), end: Some(end), message }).await?;
    registry.close().await;

    // Another process, later.
    let registry = Registry::open(&dir.path().join("state/refit.db")).await?;
    let view = registry.deployment(id).await?.unwrap();
    assert_eq!((view.status, view.failed_stage, view.exit_code), (Status::Failed, Some(pull), Some(1)));
    assert_eq!(view.stages[0].status, StageStatus::Failed);
    assert_eq!(view.undone, ["pull: nothing"]);
    let message = registry.due_message().await?.unwrap();
    registry.message_failed(message.id, "down", Duration::from_secs(60), false).await?;
    assert!(registry.due_message().await?.is_none(), "not due for a minute");
    assert_eq!(registry.outbox_backlog().await?, (1, Some("down".to_owned())));
    registry.message_sent(&message, None, None).await?;
    assert_eq!(registry.next_message_in().await?, None);
    Ok(())
}

#[tokio::test]
async fn a_list_tells_of_each_what_it_tells_alone() -> Done {
    let (_dir, registry) = registry().await?;
    for n in 0..40 {
        let id = registry.enqueue(&new_deployment('1')).await?;
        if n % 3 == 0 {
            continue;
        }
        let events = [
            Event::Begun { previous: None, rollback_to: None },
            Event::StepStarted { stage: Stage::Pull, input: serde_json::json!({ "n": n }) },
            Event::StepSucceeded { stage: Stage::Pull, output: serde_json::json!({ "n": n }) },
        ];
        let (mut saga, mut seq) = (Saga::default(), 0);
        for event in events {
            let (to, recorded) = registry.append(id, &saga, seq, &event.into()).await?;
            (saga, seq) = (to, recorded.seq);
        }
    }
    let all = registry.deployments(&Filter::default()).await?;
    assert_eq!(all.len(), 40);
    assert!(all.windows(2).all(|pair| pair[0].id > pair[1].id), "the newest first");
    for mut view in all {
        let mut alone = registry.deployment(view.id).await?.unwrap();
        // While it runs its duration goes on between the two reads.
        (view.duration_ms, alone.duration_ms) = (None, None);
        assert_eq!(view, alone);
    }
    assert_eq!(registry.deployments(&Filter { limit: Some(3), ..Filter::default() }).await?.len(), 3);
    Ok(())
}

#[tokio::test]
async fn two_writers_of_one_journal_are_told_apart() -> Done {
    let (_dir, registry) = registry().await?;
    let id = registry.enqueue(&new_deployment('1')).await?;
    let begun = Event::Begun { previous: None, rollback_to: None }.into();
    registry.append(id, &Saga::default(), 0, &begun).await?;
    let second = registry.append(id, &Saga::default(), 0, &begun).await;
    assert!(matches!(second, Err(RegistryError::Query { .. })), "{second:?}");
    Ok(())
}

#[tokio::test]
async fn a_success_is_live_in_the_same_commit() -> Done {
    let (_dir, registry) = registry().await?;
    let id = registry.enqueue(&new_deployment('1')).await?;
    let (mut saga, mut seq) = (Saga::default(), 0);
    let mut events = vec![Event::Begun { previous: None, rollback_to: None }];
    for stage in Stage::ALL {
        events.push(Event::StepSkipped { stage: *stage, reason: String::new() });
    }
    for event in events {
        let (to, recorded) = registry.append(id, &saga, seq, &event.into()).await?;
        (saga, seq) = (to, recorded.seq);
    }
    let release = Release {
        deployment: id,
        key: key(),
        commit: commit('1'),
        artefact: "sha256:1".into(),
        artefact_name: "guestbook:1".into(),
        runtime: RuntimeKind::Docker,
        instance: Instance { id: "c".into(), name: "n".into(), deployment: id },
        live_since: time(now_ms()),
    };
    assert!(registry.live(&key()).await?.is_none());
    let end = End { failed_stage: None, error: None, exit_code: 0, live: Some(release.clone()) };
    let event = Event::Ended { status: Status::Succeeded, reason: None };
    registry.append(id, &saga, seq, &Entry { event, facts: Facts::default(), end: Some(end), message: None }).await?;
    assert_eq!(registry.live(&key()).await?, Some(release));
    assert!(registry.deployment(id).await?.unwrap().live);
    assert!(registry.artefact_in_use("sha256:1", None).await?);
    assert!(!registry.artefact_in_use("sha256:1", Some(id)).await?);
    let by = registry.enqueue(&new_deployment('2')).await?;
    registry.retire(id, by, 7).await?;
    assert!(!registry.artefact_in_use("sha256:1", None).await?);
    assert_eq!(registry.retired_by(by).await?, [(id, 7)]);
    assert_eq!(registry.deployment(by).await?.unwrap().retired, [id]);

    // A deployment that has not ended may have found it built, and brings it up in a moment.
    let facts = Facts { image: Some("sha256:1".into()), ..Facts::default() };
    let begun = Entry { facts, ..Event::Begun { previous: None, rollback_to: None }.into() };
    registry.append(by, &Saga::default(), 0, &begun).await?;
    assert!(registry.artefact_in_use("sha256:1", None).await?);
    assert!(!registry.artefact_in_use("sha256:1", Some(by)).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_new_file_can_be_opened_by_many_at_once() -> Done {
    // Each `open` has connections of its own, as another process would.
    for _ in 0..10 {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("state/refit.db");
        let opening: Vec<_> = (0..8)
            .map(|_| {
                let path = path.clone();
                tokio::spawn(async move { Registry::open(&path).await?.ping().await })
            })
            .collect();
        for opened in opening {
            opened.await??;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_backup_that_is_not_good_is_told_of_once_and_its_recovery_once() -> Done {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("state/refit.db");
    let found = |environment: &str, set: &str, good: bool| {
        let key = EnvironmentKey { app: "shop".parse().unwrap(), environment: environment.parse().unwrap() };
        Rehearsed::new(key, set.to_owned(), good, vec!["`shop`: restore: no".to_owned()])
    };
    for (environment, set, good, news) in [
        ("production", "a", true, false),
        ("production", "a", false, true),
        ("production", "a", false, false),
        ("dev", "a", false, true),
        ("production", "b", false, true),
        ("production", "b", false, false),
        ("production", "c", true, true),
        ("production", "c", true, false),
        ("dev", "a", false, false),
        ("production", "c", false, true),
    ] {
        // Each in a process of its own, as after a crash.
        let registry = Registry::open(&path).await?;
        assert_eq!(registry.rehearsed(&found(environment, set, good)).await?, news, "{environment} {set} {good}");
    }
    let registry = Registry::open(&path).await?;
    assert_eq!(registry.outbox_figures().await?.waiting, 5);
    let first = registry.due_message().await?.ok_or("no message")?;
    assert_eq!((first.rehearsed(), first.about()), (Some(found("production", "a", false)), None));
    Ok(())
}
