use proptest::prelude::*;
use serde_json::json;

use super::*;

mod legal;

fn begun() -> Event {
    Event::Begun { previous: Some(DeploymentId(1)), rollback_to: None }
}
fn started(stage: Stage) -> Event {
    Event::StepStarted { stage, input: json!({}) }
}
fn succeeded(stage: Stage) -> Event {
    Event::StepSucceeded { stage, output: json!({}) }
}
fn failed(stage: Stage) -> Event {
    Event::StepFailed { stage, kind: FailureKind::Failed, error: "no".to_owned(), tail: Vec::new() }
}
fn ended(status: Status) -> Event {
    Event::Ended { status, reason: None }
}

#[test]
fn a_good_deployment_ends_succeeded_and_nothing_else() -> Result<(), IllegalTransition> {
    let mut events = vec![begun()];
    for stage in Stage::ALL {
        events.extend([started(*stage), succeeded(*stage)]);
    }
    let saga = Saga::replay(&events)?;
    for status in Status::ALL {
        assert_eq!(next(&saga, &ended(*status)).is_ok(), *status == Status::Succeeded, "{status}");
    }
    Ok(())
}

#[test]
fn backup_test_and_build_overlap_and_tag_waits_for_all() -> Result<(), IllegalTransition> {
    let mut events = vec![begun(), started(Stage::Pull), succeeded(Stage::Pull)];
    assert_eq!(Saga::replay(&events)?.ready(), [Stage::Backup, Stage::Test, Stage::Build]);
    events.extend([started(Stage::Build), started(Stage::Test), started(Stage::Backup), succeeded(Stage::Build)]);
    events.extend([succeeded(Stage::Test)]);
    assert_eq!(Saga::replay(&events)?.ready(), []);
    events.push(succeeded(Stage::Backup));
    assert_eq!(Saga::replay(&events)?.ready(), [Stage::Tag]);
    Ok(())
}

#[test]
fn the_failed_step_is_undone_too_and_siblings_end_first() -> Result<(), IllegalTransition> {
    let mut events = vec![begun(), started(Stage::Pull), succeeded(Stage::Pull)];
    events.extend([started(Stage::Test), started(Stage::Build), failed(Stage::Test)]);
    let saga = Saga::replay(&events)?;
    assert!(next(&saga, &Event::UndoStarted { stage: Stage::Build }).is_err(), "build still runs");
    assert!(next(&saga, &started(Stage::Backup)).is_err(), "no new step after a failure");
    events.push(succeeded(Stage::Build));
    let saga = Saga::replay(&events)?;
    assert_eq!(saga.next_undo(), Some(Stage::Build));
    assert_eq!(saga.verdict(), Status::Failed);
    assert_eq!(saga.failure.and_then(|f| f.stage), Some(Stage::Test));
    Ok(())
}

/// Everything up to migrate, in a deployment that begins with `first`.
fn before_migrate(first: Event) -> Vec<Event> {
    let mut events = vec![first];
    for stage in [Stage::Pull, Stage::Backup, Stage::Test, Stage::Build, Stage::Tag] {
        events.extend([started(stage), succeeded(stage)]);
    }
    events
}

#[test]
fn nothing_begins_while_a_persons_word_is_awaited() -> Result<(), IllegalTransition> {
    let asked = Event::ApprovalRequested { expires_at: Timestamp::MAX };
    assert!(next(&Saga::replay(&[begun()])?, &asked).is_err(), "too early");
    let mut events = before_migrate(begun());
    events.push(asked.clone());
    let waiting = Saga::replay(&events)?;
    assert_eq!((waiting.status(), waiting.ready()), (Status::AwaitingApproval, Vec::new()));
    assert!(next(&waiting, &asked).is_err(), "only once");
    assert!(next(&waiting, &started(Stage::Migrate)).is_err());
    let approved = next(&waiting, &Event::Approved { by: "ada".to_owned() })?;
    assert_eq!((approved.status(), approved.ready()), (Status::Running, vec![Stage::Migrate]));
    let no = Event::ApprovalRefused { by: "ada".to_owned(), reason: None, expired: false };
    assert!(next(&approved, &no).is_err(), "the first word counts");
    let refused = next(&waiting, &no)?;
    assert_eq!((refused.next_undo(), refused.verdict()), (Some(Stage::Tag), Status::Failed));
    Ok(())
}

#[test]
fn a_rollback_that_did_not_work_needs_a_person_and_one_that_was_cut_off_does_not() -> Result<(), IllegalTransition> {
    let rollback = Event::Begun { previous: Some(DeploymentId(2)), rollback_to: Some(DeploymentId(1)) };
    let mut events = before_migrate(rollback);
    events.extend([started(Stage::Migrate), succeeded(Stage::Migrate)]);
    assert_eq!(next(&Saga::replay(&events)?, &Event::Interrupted)?.verdict(), Status::Failed);
    events.push(started(Stage::Start));
    let starting = Saga::replay(&events)?;
    assert_eq!(next(&starting, &Event::Interrupted)?.verdict(), Status::Failed);
    let cancelled = next(&starting, &Event::CancelRequested { by: "ada".to_owned() })?;
    assert_eq!(cancelled.verdict(), Status::Cancelled);
    let mut saga = next(&starting, &failed(Stage::Start))?;
    while let Some(stage) = saga.next_undo() {
        saga = next(&saga, &Event::UndoStarted { stage })?;
        saga = next(&saga, &Event::UndoFinished { stage, summary: None })?;
    }
    assert!(next(&saga, &ended(Status::Failed)).is_err());
    assert!(next(&saga, &ended(Status::Stuck)).is_ok());
    Ok(())
}

/// Any event, with every stage and status.
fn any_event() -> impl Strategy<Value = Event> {
    let stage = proptest::sample::select(Stage::ALL);
    let status = proptest::sample::select(Status::ALL);
    (0..16u8, stage, status).prop_map(|(kind, stage, status)| match kind {
        0 => begun(),
        12 => Event::Begun { previous: Some(DeploymentId(2)), rollback_to: Some(DeploymentId(1)) },
        13 => Event::ApprovalRequested { expires_at: Timestamp::MAX },
        14 => Event::Approved { by: String::new() },
        15 => Event::ApprovalRefused { by: String::new(), reason: None, expired: stage == Stage::Pull },
        1 | 2 => started(stage),
        3 | 4 => succeeded(stage),
        5 => failed(stage),
        6 => Event::StepSkipped { stage, reason: String::new() },
        7 => Event::CancelRequested { by: String::new() },
        8 => Event::Interrupted,
        9 => Event::UndoStarted { stage },
        10 => Event::UndoFinished { stage, summary: None },
        _ if stage == Stage::Smoke => Event::UndoFailed { stage, error: String::new() },
        _ => ended(status),
    })
}

proptest! {
    /// Legal events only ever lead to a named end that fits, and an illegal one changes nothing.
    #[test]
    fn no_sequence_reaches_an_end_that_does_not_fit(events in proptest::collection::vec(any_event(), 0..200)) {
        let mut saga = Saga::default();
        for event in &events {
            let before = saga.clone();
            match next(&saga, event) {
                Ok(to) => saga = to,
                Err(_) => prop_assert_eq!(&before, &saga),
            }
        }
        if let Phase::Ended(status) = saga.phase {
            prop_assert!(status.is_end());
            prop_assert!(saga.awaits_approval().is_none());
            prop_assert!(status != Status::RolledBack || !saga.is_rollback());
            prop_assert!(saga.ready().is_empty());
            if status == Status::Succeeded {
                prop_assert!(saga.failure.is_none());
                prop_assert!(Stage::ALL.iter().all(|s| matches!(saga.step(*s), Step::Succeeded | Step::Warned | Step::Skipped)));
            }
            if matches!(status, Status::Failed | Status::RolledBack) {
                prop_assert!(saga.next_undo().is_none());
            }
        }
    }

    /// Whatever happened, driving on from it (no new failures) ends.
    #[test]
    fn every_state_can_be_driven_to_an_end(events in proptest::collection::vec(any_event(), 0..100)) {
        let mut saga = Saga::default();
        for event in &events {
            if let Ok(to) = next(&saga, event) { saga = to; }
        }
        for _ in 0..100 {
            if saga.is_ended() { break; }
            let event = if saga.phase == Phase::Queued {
                begun()
            } else if let Some(stage) = Stage::ALL.iter().copied().find(|s| saga.step(*s) == Step::Undoing) {
                Event::UndoFinished { stage, summary: None }
            } else if saga.steps.values().any(|s| *s == Step::Started) {
                Event::Interrupted
            } else if saga.is_stuck() {
                ended(Status::Stuck)
            } else if saga.awaits_approval().is_some() {
                Event::Approved { by: String::new() }
            } else if saga.failure.is_some() {
                match saga.next_undo() {
                    Some(stage) => Event::UndoStarted { stage },
                    None => ended(saga.verdict()),
                }
            } else {
                match saga.ready().first() {
                    Some(stage) => started(*stage),
                    None => ended(saga.verdict()),
                }
            };
            let to = next(&saga, &event);
            prop_assert!(to.is_ok(), "{:?} refused from {:?}: {:?}", event, saga, to);
            if let Ok(to) = to { saga = to; }
        }
        prop_assert!(saga.is_ended(), "{saga:?}");
    }
}
