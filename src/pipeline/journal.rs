//! The journal: what happened to a deployment, and the one function that says what may happen next.
//!
//! A deployment is a saga. Every [`Event`] is committed to the registry before the world is touched (`StepStarted`,
//! `UndoStarted`) or right after (`StepSucceeded`, …). A [`Saga`] is the fold of a deployment's events through [`next`], which serves the
//! running pipeline and recovery alike: what it refuses cannot be recorded, so a bug in the runner ends as an error and not as a
//! journal that lies.
//!
//! The way forward is a small graph ([`prerequisites`]); the way back is the list of stages, backwards. A step that was
//! started and has no end when the way back begins (it failed, was cancelled, or the daemon died) is undone like one that
//! succeeded, because it may have half happened.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::model::{DeploymentId, Stage, StageStatus, Status};

/// Why the way forward ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The stage ran and said no.
    Failed,
    TimedOut,
    /// Docker, the remote or another thing that is needed is not there.
    Unavailable,
    Cancelled,
    /// The daemon died while the deployment ran.
    Interrupted,
    /// Approval was refused, or nobody gave it in time.
    Refused,
}

/// One line of a deployment's journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// It left the queue. `previous` is what was live then; a rollback goes to the release of `rollback_to`.
    Begun {
        previous: Option<DeploymentId>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rollback_to: Option<DeploymentId>,
    },
    /// Intent. `input` is what the step works from, enough to undo it without memory.
    StepStarted {
        stage: Stage,
        input: Value,
    },
    StepSucceeded {
        stage: Stage,
        output: Value,
    },
    /// It failed and the deployment goes on.
    StepWarned {
        stage: Stage,
        error: String,
        output: Value,
    },
    StepSkipped {
        stage: Stage,
        reason: String,
    },
    StepFailed {
        stage: Stage,
        kind: FailureKind,
        error: String,
        tail: Vec<String>,
    },
    /// Everything before migrate is done, and the environment asks for a person's word.
    ApprovalRequested {
        expires_at: Timestamp,
    },
    Approved {
        by: String,
    },
    /// Somebody said no, or (`expired`) nobody said anything in time.
    ApprovalRefused {
        by: String,
        reason: Option<String>,
        expired: bool,
    },
    CancelRequested {
        by: String,
    },
    /// Written by recovery: the process that ran the deployment is gone.
    Interrupted,
    UndoStarted {
        stage: Stage,
    },
    /// `summary` is for the report: what was undone, or what was knowingly left.
    UndoFinished {
        stage: Stage,
        summary: Option<String>,
    },
    UndoFailed {
        stage: Stage,
        error: String,
    },
    /// A rule said that there is nothing to deploy, a newer push took over, or it ran to an end.
    Ended {
        status: Status,
        reason: Option<String>,
    },
}

impl Event {
    pub fn stage(&self) -> Option<Stage> {
        match self {
            Self::StepStarted { stage, .. }
            | Self::StepSucceeded { stage, .. }
            | Self::StepWarned { stage, .. }
            | Self::StepSkipped { stage, .. }
            | Self::StepFailed { stage, .. }
            | Self::UndoStarted { stage }
            | Self::UndoFinished { stage, .. }
            | Self::UndoFailed { stage, .. } => Some(*stage),
            _ => None,
        }
    }
}

/// An event with its place in the journal. `seq` counts from 1 and, not the clock, gives the order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recorded {
    pub seq: i64,
    pub at: Timestamp,
    #[serde(flatten)]
    pub event: Event,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Queued,
    Forward,
    /// At least one undo was begun.
    Backward,
    Ended(Status),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Pending,
    Started,
    Succeeded,
    Warned,
    Skipped,
    Failed,
    Undoing,
    Undone,
    UndoFailed,
}

/// Where the approval of a deployment is. Without a gate it stays `NotAsked`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Approval {
    NotAsked,
    Waiting { expires_at: Timestamp },
    Given,
    Refused,
}

/// Where the way forward ended: the stage, if it was one, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    pub stage: Option<Stage>,
    pub kind: FailureKind,
}

/// A deployment's state: the fold of its events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saga {
    pub phase: Phase,
    pub previous: Option<DeploymentId>,
    /// The release that a rollback goes to.
    pub rollback_to: Option<DeploymentId>,
    pub approval: Approval,
    steps: BTreeMap<Stage, Step>,
    /// The first failure; later ones of parallel steps do not replace it.
    pub failure: Option<Failure>,
    /// Stages that were started, whatever became of them.
    pub touched: Vec<Stage>,
    /// How each stage ended on the way forward.
    ends: BTreeMap<Stage, Step>,
}

impl Default for Saga {
    fn default() -> Self {
        Self {
            phase: Phase::Queued,
            previous: None,
            rollback_to: None,
            approval: Approval::NotAsked,
            steps: BTreeMap::new(),
            failure: None,
            touched: Vec::new(),
            ends: BTreeMap::new(),
        }
    }
}

/// An event that cannot follow what was recorded before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the journal does not allow {event} here: {why}")]
pub struct IllegalTransition {
    pub event: String,
    pub why: String,
}

/// The stages that must have ended well before `stage` may start.
pub fn prerequisites(stage: Stage) -> &'static [Stage] {
    match stage {
        Stage::Pull => &[],
        Stage::Backup | Stage::Test | Stage::Build => &[Stage::Pull],
        Stage::Tag => &[Stage::Backup, Stage::Test, Stage::Build],
        Stage::Migrate => &[Stage::Tag],
        Stage::Start => &[Stage::Migrate],
        Stage::Smoke => &[Stage::Start],
    }
}

impl Saga {
    pub fn replay<'a>(events: impl IntoIterator<Item = &'a Event>) -> Result<Self, IllegalTransition> {
        events.into_iter().try_fold(Self::default(), |saga, event| next(&saga, event))
    }

    pub fn step(&self, stage: Stage) -> Step {
        self.steps.get(&stage).copied().unwrap_or(Step::Pending)
    }

    pub fn is_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended(_))
    }

    pub fn is_rollback(&self) -> bool {
        self.rollback_to.is_some()
    }

    /// Whether it waits for a person's word, and until when.
    pub fn awaits_approval(&self) -> Option<Timestamp> {
        match self.approval {
            Approval::Waiting { expires_at } if self.phase == Phase::Forward && self.failure.is_none() => {
                Some(expires_at)
            }
            _ => None,
        }
    }

    /// The state as people see it.
    pub fn status(&self) -> Status {
        match self.phase {
            Phase::Queued => Status::Queued,
            Phase::Forward | Phase::Backward if self.awaits_approval().is_some() => Status::AwaitingApproval,
            Phase::Forward | Phase::Backward => Status::Running,
            Phase::Ended(status) => status,
        }
    }

    /// Stages that may start now.
    pub fn ready(&self) -> Vec<Stage> {
        if self.phase != Phase::Forward || self.failure.is_some() || self.awaits_approval().is_some() {
            return Vec::new();
        }
        let ready = |stage: &Stage| self.step(*stage) == Step::Pending && self.done(prerequisites(*stage));
        Stage::ALL.iter().copied().filter(ready).collect()
    }

    /// The next stage to undo: the last one that left something behind. `None` when the way back is done.
    pub fn next_undo(&self) -> Option<Stage> {
        Stage::ALL.iter().rev().copied().find(|stage| self.needs_undo(*stage))
    }

    /// Whether some undo failed, so that only a person can go on.
    pub fn is_stuck(&self) -> bool {
        self.steps.values().any(|step| *step == Step::UndoFailed)
    }

    /// The stage as people see it. What undo took back shows as undone where users or tools could have seen it; a test that passed
    /// stays passed though its container is gone.
    pub fn stage_status(&self, stage: Stage) -> StageStatus {
        let visible = matches!(stage, Stage::Tag | Stage::Start);
        let step = match self.step(stage) {
            Step::Undone | Step::Undoing if !visible || self.failure.is_some_and(|f| f.stage == Some(stage)) => {
                self.ends.get(&stage).copied().unwrap_or(Step::Failed)
            }
            step => step,
        };
        match step {
            Step::Pending => StageStatus::Pending,
            Step::Started | Step::Undoing => StageStatus::Running,
            Step::Succeeded => StageStatus::Succeeded,
            Step::Warned => StageStatus::Warned,
            Step::Skipped => StageStatus::Skipped,
            Step::Failed => StageStatus::Failed,
            Step::Undone => StageStatus::Undone,
            Step::UndoFailed => StageStatus::UndoFailed,
        }
    }

    /// The end state that the journal calls for once nothing is left to do.
    pub fn verdict(&self) -> Status {
        let Some(failure) = self.failure else { return Status::Succeeded };
        if self.is_stuck() {
            Status::Stuck
        } else if failure.kind == FailureKind::Cancelled {
            Status::Cancelled
        } else if self.is_rollback() {
            // The version that somebody wanted to leave is live again: the way back itself is broken. One that was cut off by the
            // daemon's end can simply be asked for again.
            let tried = self.touched.contains(&Stage::Start) && failure.kind != FailureKind::Interrupted;
            if tried { Status::Stuck } else { Status::Failed }
        } else if self.touched.contains(&Stage::Start) && self.previous.is_some() {
            Status::RolledBack
        } else {
            Status::Failed
        }
    }

    fn done(&self, stages: &[Stage]) -> bool {
        stages.iter().all(|s| matches!(self.step(*s), Step::Succeeded | Step::Warned | Step::Skipped))
    }

    fn needs_undo(&self, stage: Stage) -> bool {
        matches!(self.step(stage), Step::Started | Step::Succeeded | Step::Warned | Step::Failed | Step::Undoing)
    }

    fn any(&self, wanted: Step) -> bool {
        self.steps.values().any(|step| *step == wanted)
    }
}

/// What a deployment becomes by an event, or why that event cannot be.
pub fn next(saga: &Saga, event: &Event) -> Result<Saga, IllegalTransition> {
    let refuse = |why: &str| Err(IllegalTransition { event: describe(event), why: why.to_owned() });
    let mut to = saga.clone();
    if saga.is_ended() {
        return refuse("the deployment has ended");
    }
    match event {
        Event::Begun { previous, rollback_to } => {
            if saga.phase != Phase::Queued {
                return refuse("it has already begun");
            }
            to.phase = Phase::Forward;
            to.previous = *previous;
            to.rollback_to = *rollback_to;
        }
        Event::StepStarted { stage, .. } => {
            if !saga.ready().contains(stage) {
                return refuse(
                    "its prerequisites are not done, it was started before, or a failure ended the way forward",
                );
            }
            to.steps.insert(*stage, Step::Started);
            to.touched.push(*stage);
        }
        Event::StepSkipped { stage, .. } => {
            if !saga.ready().contains(stage) {
                return refuse("only a stage that could start can be skipped");
            }
            to.steps.insert(*stage, Step::Skipped);
        }
        Event::StepSucceeded { stage, .. } | Event::StepWarned { stage, .. } | Event::StepFailed { stage, .. } => {
            if saga.step(*stage) != Step::Started || saga.phase != Phase::Forward {
                return refuse("the step is not running");
            }
            let (step, failure) = match event {
                Event::StepSucceeded { .. } => (Step::Succeeded, None),
                Event::StepWarned { .. } => (Step::Warned, None),
                Event::StepFailed { kind, .. } => (Step::Failed, Some(Failure { stage: Some(*stage), kind: *kind })),
                _ => return refuse("it is not the end of a step"),
            };
            to.steps.insert(*stage, step);
            to.ends.insert(*stage, step);
            to.failure = to.failure.or(failure);
        }
        Event::ApprovalRequested { expires_at } => {
            if saga.approval != Approval::NotAsked || !saga.ready().contains(&Stage::Migrate) {
                return refuse("approval is asked for once, when migrate could begin");
            }
            to.approval = Approval::Waiting { expires_at: *expires_at };
        }
        Event::Approved { .. } | Event::ApprovalRefused { .. } => {
            if saga.awaits_approval().is_none() {
                return refuse("nobody asked for approval");
            }
            if matches!(event, Event::Approved { .. }) {
                to.approval = Approval::Given;
            } else {
                to.approval = Approval::Refused;
                to.failure = Some(Failure { stage: None, kind: FailureKind::Refused });
            }
        }
        Event::CancelRequested { .. } => {
            if saga.phase == Phase::Backward {
                return refuse("it is already being undone");
            }
            to.failure = to.failure.or(Some(Failure { stage: None, kind: FailureKind::Cancelled }));
        }
        Event::Interrupted => {
            if saga.phase == Phase::Queued {
                return refuse("it has not begun");
            }
            let stage = Stage::ALL.iter().rev().copied().find(|s| saga.step(*s) == Step::Started);
            to.failure = to.failure.or(Some(Failure { stage, kind: FailureKind::Interrupted }));
            for (stage, step) in to.steps.iter_mut().filter(|(_, s)| **s == Step::Started) {
                *step = Step::Failed;
                to.ends.insert(*stage, Step::Failed);
            }
        }
        Event::UndoStarted { stage } => {
            if saga.failure.is_none() {
                return refuse("nothing failed");
            }
            if saga.any(Step::Started) {
                return refuse("a step is still running");
            }
            if saga.is_stuck() || saga.next_undo() != Some(*stage) {
                return refuse("undo goes backwards, one stage after the other, and stops where it fails");
            }
            to.phase = Phase::Backward;
            to.steps.insert(*stage, Step::Undoing);
        }
        Event::UndoFinished { stage, .. } | Event::UndoFailed { stage, .. } => {
            if saga.step(*stage) != Step::Undoing {
                return refuse("that undo was not begun");
            }
            let step = if matches!(event, Event::UndoFinished { .. }) { Step::Undone } else { Step::UndoFailed };
            to.steps.insert(*stage, step);
        }
        Event::Ended { status, .. } => {
            may_end(saga, *status).or_else(refuse)?;
            to.phase = Phase::Ended(*status);
        }
    }
    Ok(to)
}

/// Whether `status` is the end that the journal calls for.
fn may_end(saga: &Saga, status: Status) -> Result<Saga, &'static str> {
    let ok = match status {
        Status::Queued | Status::Running | Status::AwaitingApproval => return Err("that is not an end"),
        Status::Superseded => saga.phase == Phase::Queued,
        Status::Cancelled if saga.phase == Phase::Queued => true,
        // Rules are judged once the commit is known, before anything but pull was begun.
        Status::Skipped => {
            saga.phase == Phase::Queued
                || (saga.failure.is_none()
                    && saga.done(&[Stage::Pull])
                    && saga.touched.iter().all(|s| *s == Stage::Pull))
        }
        // Something that is needed is away before the first step: nothing was begun, nothing is to undo.
        Status::Failed if saga.phase == Phase::Forward && saga.touched.is_empty() => true,
        Status::Succeeded => saga.failure.is_none() && saga.done(Stage::ALL),
        Status::Stuck if saga.is_stuck() => true,
        Status::Failed | Status::RolledBack | Status::Cancelled | Status::Stuck => {
            saga.failure.is_some() && saga.next_undo().is_none() && saga.verdict() == status
        }
    };
    if ok { Ok(saga.clone()) } else { Err("the journal calls for another end") }
}

fn describe(event: &Event) -> String {
    let name = serde_json::to_value(event).ok().and_then(|v| v.get("event").and_then(Value::as_str).map(str::to_owned));
    let name = name.unwrap_or_default();
    match event.stage() {
        Some(stage) => format!("{name} of {stage}"),
        None => name,
    }
}

#[cfg(test)]
mod tests;
