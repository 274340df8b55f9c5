//! What an end means: the exit code of the design (section 8), and the words for people.

use crate::{
    model::{DeploymentView, Stage, StageStatus, Status},
    pipeline::journal::{Event, FailureKind, Recorded, Saga},
    registry::End,
};

/// Exit codes of `refit deploy`. They are a contract: people's scripts depend on them.
pub mod exit {
    pub const DONE: u8 = 0;
    pub const STOPPED: u8 = 1;
    pub const BUILD: u8 = 2;
    pub const START: u8 = 3;
    pub const SMOKE: u8 = 4;
    pub const STUCK: u8 = 5;
    pub const UNAVAILABLE: u8 = 69;
    pub const CANCELLED: u8 = 130;
}

/// The exit code of a deployment that ends as `status` after what its journal says.
pub fn exit_code(status: Status, saga: &Saga) -> u8 {
    match status {
        Status::Succeeded => return exit::DONE,
        Status::Stuck => return exit::STUCK,
        Status::Cancelled => return exit::CANCELLED,
        Status::Superseded | Status::Skipped | Status::Queued | Status::Running | Status::AwaitingApproval => {
            return exit::STOPPED;
        }
        Status::Failed | Status::RolledBack => {}
    }
    let Some(failure) = saga.failure else { return exit::STOPPED };
    match (failure.stage, failure.kind) {
        (_, FailureKind::Unavailable) if !saga.touched.contains(&Stage::Start) => exit::UNAVAILABLE,
        (Some(Stage::Build), _) => exit::BUILD,
        (Some(Stage::Migrate | Stage::Start), _) => exit::START,
        (Some(Stage::Smoke), _) => exit::SMOKE,
        // Interrupted between two stages: what had been begun last says how far it was.
        (None, _) if saga.touched.contains(&Stage::Smoke) => exit::SMOKE,
        (None, _) if saga.touched.contains(&Stage::Start) => exit::START,
        _ => exit::STOPPED,
    }
}

/// The end of a deployment whose journal calls for `status`, without a release.
pub fn end(status: Status, saga: &Saga, events: &[Recorded]) -> End {
    End {
        failed_stage: saga.failure.and_then(|f| f.stage),
        error: error(saga, events),
        exit_code: exit_code(status, saga),
        live: None,
    }
}

/// The first failure's own words; an undo that failed comes after it.
fn error(saga: &Saga, events: &[Recorded]) -> Option<String> {
    let failure = saga.failure?;
    let first = match failure.kind {
        FailureKind::Interrupted => Some(match failure.stage {
            Some(stage) => format!("the daemon was stopped during {stage}"),
            None => "the daemon was stopped between two stages".to_owned(),
        }),
        FailureKind::Refused => events.iter().find_map(|r| match &r.event {
            Event::ApprovalRefused { expired: true, .. } => Some("nobody approved it in time".to_owned()),
            Event::ApprovalRefused { by, reason: Some(reason), .. } => Some(format!("rejected by {by}: {reason}")),
            Event::ApprovalRefused { by, .. } => Some(format!("rejected by {by}")),
            _ => None,
        }),
        FailureKind::Cancelled if failure.stage.is_none() => events.iter().find_map(|r| match &r.event {
            Event::CancelRequested { by } => Some(format!("cancelled by {by}")),
            _ => None,
        }),
        _ => events.iter().find_map(|r| match &r.event {
            Event::StepFailed { stage, error, .. } if failure.stage == Some(*stage) => Some(error.clone()),
            _ => None,
        }),
    };
    let undo = events.iter().find_map(|r| match &r.event {
        Event::UndoFailed { stage, error } => Some(format!("undoing {stage} failed: {error}")),
        _ => None,
    });
    match (first, undo) {
        (Some(first), Some(undo)) => Some(format!("{first}; then {undo}")),
        (first, undo) => first.or(undo),
    }
}

/// What a person does about a stuck deployment: three commands, in this order, each with what it is for.
pub fn stuck_steps(view: &DeploymentView) -> [(String, &'static str); 3] {
    let (id, app, environment) = (view.id, &view.app, &view.environment);
    // A rollback whose undo worked left the version running that somebody wanted to leave: bringing it back is no help.
    let undone = view.stages.iter().all(|stage| stage.status != StageStatus::UndoFailed);
    let good = view.previous.filter(|_| !view.trigger.kind.has_order() || !undone);
    let look = match good {
        Some(good) => (
            format!("refit rollback --to {good} --force --reason \"…\" --app {app} --env {environment}"),
            "brings what was live before back, if it is not",
        ),
        None => (format!("refit logs {id}"), "tells why"),
    };
    [
        ("refit status".to_owned(), "shows what runs now"),
        look,
        (format!("refit resolve {id} --reason \"…\""), "lets pushes through again"),
    ]
}

/// The last log lines of the stage that failed: for reports.
pub fn failure_tail(events: &[Recorded]) -> Vec<String> {
    let tail = |r: &Recorded| match &r.event {
        Event::StepFailed { tail, kind, .. } if *kind != FailureKind::Cancelled => Some(tail.clone()),
        _ => None,
    };
    events.iter().find_map(tail).unwrap_or_default()
}
