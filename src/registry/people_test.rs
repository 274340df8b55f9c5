//! What people say, and what of it counts.

use super::{tests::*, *};
use crate::model::{ApprovalState, DeploymentId, Resolution, RollbackKind, Stage, Status};
use crate::pipeline::journal::{Event, FailureKind, Saga};

/// A deployment with a journal, and its end, if it has one.
async fn played(registry: &Registry, events: Vec<Event>, end: Option<Status>) -> Result<DeploymentId> {
    let id = registry.enqueue(&new_deployment('1')).await?;
    let (mut saga, mut seq) = (Saga::default(), 0);
    for event in events {
        let (to, recorded) = registry.append(id, &saga, seq, &event.into()).await?;
        (saga, seq) = (to, recorded.seq);
    }
    if let Some(status) = end {
        let end = End { failed_stage: None, error: Some("no".to_owned()), exit_code: 1, live: None };
        let event = Event::Ended { status, reason: None };
        let message = Some(NewMessage { kind: "end".to_owned(), body: serde_json::json!({ "version": 1 }) });
        registry.append(id, &saga, seq, &Entry { event, facts: Facts::default(), end: Some(end), message }).await?;
    }
    Ok(id)
}

/// Everything up to start, which is begun.
fn started(previous: Option<DeploymentId>) -> Vec<Event> {
    let mut events = vec![Event::Begun { previous, rollback_to: None }];
    events.extend(Stage::ALL[..6].iter().map(|stage| Event::StepSkipped { stage: *stage, reason: String::new() }));
    events.push(Event::StepStarted { stage: Stage::Start, input: serde_json::json!({}) });
    events
}

/// Its start failed, and so did, or did not, the way back.
fn back(previous: Option<DeploymentId>, works: bool) -> Vec<Event> {
    let stage = Stage::Start;
    let mut events = started(previous);
    events.push(Event::StepFailed { stage, kind: FailureKind::Failed, error: "no".to_owned(), tail: Vec::new() });
    events.push(Event::UndoStarted { stage });
    events.push(match works {
        true => Event::UndoFinished { stage, summary: None },
        false => Event::UndoFailed { stage, error: "no".to_owned() },
    });
    events
}

fn word(approved: bool, by: &str) -> Decision {
    let reason = (!approved).then(|| "not now".to_owned());
    Decision { approved, by: by.to_owned(), reason, at: time(1_795_000_000_000) }
}

#[tokio::test]
async fn the_first_word_counts_and_only_while_it_is_awaited() -> Done {
    let (_dir, registry) = registry().await?;
    let mut events = vec![Event::Begun { previous: None, rollback_to: None }];
    events.extend(Stage::ALL[..5].iter().map(|stage| Event::StepSkipped { stage: *stage, reason: String::new() }));
    let running = played(&registry, events.clone(), None).await?;
    assert_eq!(registry.decide(running, &word(true, "ada")).await?, None, "nobody asked");
    assert_eq!(registry.awaiting_approval(&key()).await?, None);
    let expires_at = time(1_796_000_000_000);
    events.push(Event::ApprovalRequested { expires_at });
    let waiting = played(&registry, events.clone(), None).await?;
    assert_eq!(registry.awaiting_approval(&key()).await?, Some(waiting));
    let view = registry.deployment(waiting).await?.unwrap();
    let asked = view.approval.unwrap();
    assert_eq!(
        (view.status, asked.state, asked.expires_at),
        (Status::AwaitingApproval, ApprovalState::Waiting, expires_at)
    );
    assert_eq!(registry.decide(waiting, &word(true, "ada")).await?, Some(word(true, "ada")));
    assert_eq!(registry.decide(waiting, &word(false, "eve")).await?, Some(word(true, "ada")), "it was said");
    // Said, and not heard yet by the process that runs it.
    assert_eq!(registry.deployment(waiting).await?.unwrap().approval.unwrap().by, None);
    let (saga, seq) = registry.saga(waiting).await?;
    registry.append(waiting, &saga, seq, &Event::Approved { by: "ada".to_owned() }.into()).await?;
    let heard = registry.deployment(waiting).await?.unwrap().approval.unwrap();
    assert_eq!(
        (heard.state, heard.by.as_deref(), heard.at),
        (ApprovalState::Approved, Some("ada"), Some(word(true, "ada").at))
    );
    assert_eq!(registry.awaiting_approval(&key()).await?, None);
    events.push(Event::CancelRequested { by: "ada".to_owned() });
    let cancelled = played(&registry, events, None).await?;
    assert_eq!(registry.deployment(cancelled).await?.unwrap().approval.unwrap().state, ApprovalState::Cancelled);
    Ok(())
}

#[tokio::test]
async fn who_has_looked_has_looked_at_all_before() -> Done {
    let (_dir, registry) = registry().await?;
    let environments = [key().environment];
    assert_eq!(registry.unresolved(&key()).await?, None);
    let older = played(&registry, back(None, false), Some(Status::Stuck)).await?;
    let newer = played(&registry, back(None, false), Some(Status::Stuck)).await?;
    let newest = played(&registry, back(None, false), Some(Status::Stuck)).await?;
    assert_eq!(registry.unresolved(&key()).await?, Some(newest));
    let looked = |by: &str| Resolution { by: by.to_owned(), reason: "mended".to_owned(), at: time(1_795_000_000_000) };
    registry.resolve(newer, &looked("ada")).await?;
    assert_eq!(registry.unresolved(&key()).await?, Some(newest));
    assert_eq!(registry.count_resolved(&key().app, &environments).await?, 2);
    assert_eq!(registry.deployment(older).await?.unwrap().resolved, Some(looked("ada")));
    assert_eq!(registry.resolve(newest, &looked("eve")).await?, looked("eve"));
    assert_eq!(registry.resolve(newest, &looked("ada")).await?, looked("eve"), "the first word counts");
    assert_eq!(registry.unresolved(&key()).await?, None);
    assert_eq!(registry.count_resolved(&key().app, &["dev".parse()?]).await?, 0);
    Ok(())
}

#[tokio::test]
async fn rollbacks_of_both_kinds_are_one_list() -> Done {
    let (_dir, registry) = registry().await?;
    let good = played(&registry, vec![], None).await?;
    let release = |deployment| {
        let instance = crate::runtime::Instance { id: "c".into(), name: "n".into(), deployment };
        let (artefact, artefact_name) = ("sha256:1".to_owned(), "guestbook:1".to_owned());
        let (runtime, live_since) = (crate::config::RuntimeKind::Docker, time(0));
        Release { deployment, key: key(), commit: commit('1'), artefact, artefact_name, runtime, instance, live_since }
    };
    let mut tx = registry.write.begin().await?;
    releases::make_live(&mut tx, &release(good)).await?;
    tx.commit().await?;
    let went_back = played(&registry, back(Some(good), true), Some(Status::RolledBack)).await?;
    let stuck = played(&registry, back(None, false), Some(Status::Stuck)).await?;
    // It failed before start: nothing came back.
    let (stage, kind) = (Stage::Pull, FailureKind::Failed);
    let failed = vec![
        Event::Begun { previous: Some(good), rollback_to: None },
        Event::StepStarted { stage, input: serde_json::json!({}) },
        Event::StepFailed { stage, kind, error: "no".to_owned(), tail: Vec::new() },
        Event::UndoStarted { stage },
        Event::UndoFinished { stage, summary: None },
    ];
    played(&registry, failed, Some(Status::Failed)).await?;
    let order = RollbackOrder {
        kind: RollbackKind::Specific,
        target: good,
        reason: "users complain".to_owned(),
        forced: true,
        backup: None,
        parts: Vec::new(),
        checks: serde_json::json!([]),
    };
    let by_hand = registry.enqueue(&NewDeployment { rollback: Some(order), ..new_deployment('1') }).await?;
    let message = registry.due_message().await?.unwrap();
    assert_eq!(message.deployment, Some(went_back));
    registry.message_sent(&message, None, None).await?;

    let all = registry.rollbacks(&Filter::default()).await?;
    let told: Vec<_> = all.iter().map(|e| (e.id, e.kind, e.status, e.from, e.to, e.notified_at.is_some())).collect();
    let expected = [
        (by_hand, RollbackKind::Specific, Status::Queued, None, Some(good), false),
        (stuck, RollbackKind::Automatic, Status::Stuck, Some(stuck), None, false),
        (went_back, RollbackKind::Automatic, Status::Succeeded, Some(went_back), Some(good), true),
    ];
    assert_eq!(told, expected);
    assert_eq!(all[0].reason.as_deref(), Some("users complain"));
    assert_eq!(all[2].reason.as_deref(), Some("no"));
    assert!(all[1..].iter().all(|e| e.started_at <= e.finished_at && e.started_at.is_some()));
    let only = async |filter| registry.rollbacks(&filter).await.map(|all| all.iter().map(|e| e.id).collect::<Vec<_>>());
    assert_eq!(only(Filter { status: Some(Status::Stuck), ..Filter::default() }).await?, [stuck]);
    assert_eq!(only(Filter { before: Some(stuck), limit: Some(5), ..Filter::default() }).await?, [went_back]);
    assert_eq!(only(Filter { environment: Some("dev".to_owned()), ..Filter::default() }).await?, []);
    assert_eq!(only(Filter { limit: Some(1), ..Filter::default() }).await?, [by_hand]);
    Ok(())
}
