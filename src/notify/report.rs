//! What is said of a deployment, wherever it is said: composed once from the deployment and its journal.
//!
//! [`Report::compose`] is the only place where foreign words (a commit's subject, an error, a log line) come in: each is masked, made
//! printable and limited in length there, so that `render` only has to escape. Fields are kept apart as long as possible:
//! a later sender (mail, a webhook) can lay them out in its own way.

use super::{
    card::elapsed,
    words::{commit_url, duration, freed, log_line, one_line, reference},
};
use crate::{
    config::Config,
    model::{
        ApprovalState, DeploymentId, DeploymentView, Name, RollbackKind, RollbackView, Stage, StageStatus, StageView,
        Status, TriggerKind,
    },
    pipeline::{
        journal::{Event, Recorded},
        outcome,
    },
    redact::Redactor,
};

/// Log lines that a report quotes at most.
pub const QUOTED_LINES: usize = 15;

/// A quoted log line's greatest length, in UTF-16 units like all lengths here.
const LOG_LINE: usize = 400;
const SUBJECT: usize = 200;
const NAME: usize = 80;
const REFERENCE: usize = 120;
const ERROR: usize = 600;
const REMARK: usize = 150;

/// Undone steps and warnings that a report lists at most. With the lengths above, everything but the log fits in a message: a
/// property test says so.
const UNDONE: usize = 8;
const WARNINGS: usize = 3;

/// Parts of a backup that a report names.
const PARTS: usize = 5;

/// One deployment, in words.
#[derive(Debug, Clone)]
pub struct Report {
    pub id: DeploymentId,
    pub status: Status,
    /// `app/environment`.
    pub place: String,
    /// What happened: `failed in test, nothing changed for users`.
    pub summary: String,
    /// The commit's first digits, and its page on a known host.
    pub commit: Option<(String, Option<String>)>,
    pub subject: Option<String>,
    pub author: Option<String>,
    /// `branch`, `tag` or `ref`, and its name.
    pub reference: (&'static str, String),
    /// From where to where a rollback goes, and why.
    pub rollback: Option<(String, String)>,
    /// It is data that goes back, and no version.
    pub restores: bool,
    /// How it was asked for, and by whom.
    pub trigger: (&'static str, Option<String>),
    /// The push replaced history.
    pub forced: bool,
    pub took: Option<String>,
    /// Until when it waits for approval, or who gave it.
    pub approval: Option<String>,
    /// Who gave or refused it.
    pub answered_by: Option<String>,
    /// How long a running one has been at it.
    pub elapsed: Option<String>,
    /// The stages that were reached: `✓ pull 0.4 s`.
    pub stages: Vec<String>,
    /// How many of them are done, and how many run.
    pub done: usize,
    pub running: usize,
    /// Those that were not.
    pub ahead: Vec<Stage>,
    /// Something failed or was cancelled, and it is being undone.
    pub goes_back: bool,
    pub failed_stage: Option<Stage>,
    pub error: Option<String>,
    /// The daemon was stopped while it ran.
    pub interrupted: bool,
    /// Stages that failed without ending the deployment, and why.
    pub warnings: Vec<(Stage, String)>,
    /// What was undone and what could not be.
    pub undone: Vec<String>,
    /// What users see now.
    pub live: Option<String>,
    /// The backup set.
    pub backup: Option<String>,
    /// The space that retention gave back, and by what.
    pub freed: Option<String>,
    /// The last log lines of the stage that failed, oldest first.
    pub tail: Vec<String>,
    /// Commands to go on with, each with what it is for.
    pub next: Vec<(String, &'static str)>,
}

impl Report {
    /// The report of a deployment of this configuration.
    pub fn of(view: &DeploymentView, events: &[Recorded], config: &Config) -> Self {
        let repository = config.app(view.app.as_str()).map(|app| app.repository.as_str());
        Self::compose(view, events, &config.redactor, repository)
    }

    /// `events` is the whole journal; `repository` is where the commit came from, for a link.
    pub fn compose(view: &DeploymentView, events: &[Recorded], redactor: &Redactor, repository: Option<&str>) -> Self {
        let line = |text: &str, max| one_line(text, redactor, max);
        let some = |text: &Option<String>, max| text.as_deref().map(|t| line(t, max)).filter(|t| !t.is_empty());
        let story = Story::read(events);
        let (label, name) = reference(&view.reference);
        let tail = outcome::failure_tail(events);
        let quoted = tail.iter().skip(tail.len().saturating_sub(QUOTED_LINES));
        let warned = view.stages.iter().filter(|s| s.status == StageStatus::Warned);
        Self {
            id: view.id,
            status: view.status,
            place: format!("{}/{}", view.app, view.environment),
            summary: summary(view, &story),
            commit: view.commit.as_ref().map(|commit| {
                let url = repository.and_then(|repository| commit_url(repository, commit));
                (commit.short().to_owned(), url)
            }),
            subject: some(&view.subject, SUBJECT),
            author: some(&view.author, NAME),
            reference: (label, line(name, REFERENCE)),
            rollback: view.rollback.as_ref().map(|r| (way(view, r), line(&r.reason, SUBJECT))),
            restores: is_restore(view),
            trigger: (door(view.trigger.kind), some(&view.trigger.by, NAME)),
            // A hook cannot know, and says so of every push.
            forced: view.trigger.forced && view.trigger.kind == TriggerKind::Github,
            took: view.duration_ms.filter(|_| story.begun && view.status.is_end()).map(duration),
            approval: view.approval.as_ref().and_then(|approval| match (approval.state, &approval.by) {
                (ApprovalState::Waiting, _) => {
                    Some(format!("until {}", approval.expires_at.strftime("%Y-%m-%d %H:%M UTC")))
                }
                (ApprovalState::Approved, Some(by)) => Some(format!("given by {}", line(by, NAME))),
                // The reason tells of every other answer.
                _ => None,
            }),
            answered_by: view.approval.as_ref().and_then(|approval| some(&approval.by, NAME)),
            elapsed: view.duration_ms.filter(|_| view.status == Status::Running).map(elapsed),
            stages: view.stages.iter().filter_map(stage_line).collect(),
            done: view.stages.iter().filter(|s| !is_open(s)).count(),
            running: view.stages.iter().filter(|s| s.status == StageStatus::Running).count(),
            ahead: view.stages.iter().filter(|s| s.status == StageStatus::Pending).map(|s| s.name).collect(),
            goes_back: story.goes_back(),
            failed_stage: view.failed_stage,
            error: some(&view.error, ERROR),
            interrupted: story.interrupted,
            warnings: warned
                .take(WARNINGS)
                .map(|s| (s.name, line(s.error.as_deref().unwrap_or("it had a problem"), REMARK)))
                .collect(),
            undone: view.undone.iter().map(|u| line(u, REMARK)).filter(|u| !u.is_empty()).take(UNDONE).collect(),
            live: live(view, &story),
            backup: some(&view.backup, REFERENCE),
            freed: freed(view),
            tail: quoted.map(|l| log_line(l, redactor, LOG_LINE)).collect(),
            next: next_steps(view),
        }
    }

    /// The mark that a message begins with.
    pub fn mark(&self) -> &'static str {
        match self.status {
            Status::Succeeded => "✅",
            Status::Failed => "❌",
            Status::RolledBack => "↩️",
            Status::Stuck => "🆘",
            Status::Cancelled => "🚫",
            Status::Superseded | Status::Skipped => "⏭",
            Status::Queued | Status::Running | Status::AwaitingApproval => "⏳",
        }
    }
}

/// What the journal alone tells.
struct Story {
    begun: bool,
    /// The first stage that failed.
    failed: Option<Stage>,
    cancelled: bool,
    interrupted: bool,
    /// It ended by that, and not by a failure or a cancellation of its own before.
    only_interrupted: bool,
    migrate_touched: bool,
    start_touched: bool,
}

impl Story {
    fn read(events: &[Recorded]) -> Self {
        let any = |wanted: &dyn Fn(&Event) -> bool| events.iter().any(|r| wanted(&r.event));
        let touched = |stage: Stage| any(&|e| matches!(e, Event::StepStarted { stage: s, .. } if *s == stage));
        let interrupted = any(&|e| matches!(e, Event::Interrupted));
        let other_end = any(&|e| matches!(e, Event::StepFailed { .. } | Event::CancelRequested { .. }));
        Self {
            begun: any(&|e| matches!(e, Event::Begun { .. })),
            failed: events.iter().find_map(|r| match r.event {
                Event::StepFailed { stage, .. } => Some(stage),
                _ => None,
            }),
            cancelled: any(&|e| matches!(e, Event::CancelRequested { .. } | Event::ApprovalRefused { .. })),
            interrupted,
            only_interrupted: interrupted && !other_end,
            migrate_touched: touched(Stage::Migrate),
            start_touched: touched(Stage::Start),
        }
    }

    fn goes_back(&self) -> bool {
        self.failed.is_some() || self.cancelled || self.interrupted
    }

    /// What one does that has not ended.
    fn doing(&self, view: &DeploymentView) -> String {
        match (self.failed, &view.rollback) {
            _ if self.cancelled => "being cancelled".to_owned(),
            (Some(stage), _) => format!("failed in {stage}, going back"),
            _ if self.interrupted => "interrupted, going back".to_owned(),
            (None, Some(rollback)) => format!("rolling back to deployment {}", rollback.to),
            (None, None) => "deploying".to_owned(),
        }
    }
}

fn is_open(stage: &StageView) -> bool {
    matches!(stage.status, StageStatus::Pending | StageStatus::Running)
}

/// `deployment 5 → deployment 3`, and what goes with it.
fn way(view: &DeploymentView, rollback: &RollbackView) -> String {
    if let Some(set) = rollback.restored_set() {
        let parts: Vec<&str> = rollback.parts.iter().map(Name::as_str).take(PARTS).collect();
        let only = if parts.is_empty() { String::new() } else { format!(" (only {})", parts.join(", ")) };
        return format!("the data of {set}{only}, under deployment {}", rollback.to);
    }
    let from = view.previous.map(|from| format!("deployment {from} → ")).unwrap_or_default();
    let forced = if rollback.forced { ", forced" } else { "" };
    let data = if rollback.restore.is_some() { ", with its data" } else { "" };
    format!("{from}deployment {}{forced}{data}", rollback.to)
}

fn is_restore(view: &DeploymentView) -> bool {
    view.rollback.as_ref().is_some_and(|rollback| rollback.restored_set().is_some())
}

fn summary(view: &DeploymentView, story: &Story) -> String {
    let verb = if story.only_interrupted { "interrupted" } else { "failed" };
    let failed = match view.failed_stage {
        Some(stage) => format!("{verb} in {stage}"),
        None => verb.to_owned(),
    };
    match view.status {
        Status::Succeeded if is_restore(view) => "data restored from a backup".to_owned(),
        Status::Failed if is_restore(view) => format!("the restore {failed}, no data was changed"),
        Status::RolledBack if is_restore(view) => format!("the restore {failed}, the data is as it was before"),
        Status::Cancelled if is_restore(view) => "the restore was cancelled".to_owned(),
        Status::Stuck if is_restore(view) => format!("CRITICAL: the restore {failed}, a person is needed"),
        Status::Succeeded => match &view.rollback {
            Some(rollback) => format!("rolled back to deployment {}", rollback.to),
            None => "deployed".to_owned(),
        },
        Status::Failed if view.rollback.is_some() => format!("the rollback {failed}, nothing changed for users"),
        Status::Cancelled if view.rollback.is_some() => "the rollback was cancelled".to_owned(),
        Status::Failed if story.start_touched => format!("{failed}, and there is no version to go back to"),
        Status::Failed if story.migrate_touched => format!("{failed}, the version of the app did not change"),
        Status::Failed => format!("{failed}, nothing changed for users"),
        Status::RolledBack => format!("{failed}, rolled back"),
        Status::Stuck if view.trigger.kind == TriggerKind::Rollback => {
            format!("CRITICAL: the rollback {failed}, a person is needed")
        }
        Status::Stuck => format!("CRITICAL: {failed} and could not be undone, a person is needed"),
        Status::Cancelled => "cancelled".to_owned(),
        Status::Superseded => "superseded before it began".to_owned(),
        Status::Skipped => "skipped".to_owned(),
        Status::Queued => "waiting".to_owned(),
        Status::Running => story.doing(view),
        Status::AwaitingApproval => "waits for approval before migrate".to_owned(),
    }
}

/// What users see now; `None` where the deployment has nothing to say about that.
fn live(view: &DeploymentView, story: &Story) -> Option<String> {
    if !story.begun {
        return None;
    }
    let text = match (view.status, view.previous) {
        (Status::Succeeded, _) if view.live => "this version".to_owned(),
        (Status::Succeeded, _) if view.rollback.is_some() => {
            let to = view.rollback.as_ref().map_or(view.id, |rollback| rollback.to);
            format!("deployment {to} again")
        }
        (Status::Succeeded, _) => "a later deployment has taken its place since".to_owned(),
        (Status::Stuck, _) => "not known: `refit status` shows what runs".to_owned(),
        (Status::RolledBack, Some(id)) => format!("deployment {id} again"),
        (Status::Failed | Status::Cancelled, Some(id)) if story.start_touched => format!("deployment {id} again"),
        (Status::Failed | Status::Cancelled, Some(id)) => format!("deployment {id}, as before"),
        (Status::Failed | Status::Cancelled | Status::RolledBack, None) => "nothing".to_owned(),
        (Status::AwaitingApproval, Some(id)) => format!("deployment {id}, as before"),
        (Status::AwaitingApproval, None) => "nothing yet".to_owned(),
        (Status::Superseded | Status::Skipped | Status::Queued | Status::Running, _) => return None,
    };
    Some(text)
}

fn next_steps(view: &DeploymentView) -> Vec<(String, &'static str)> {
    let id = view.id;
    let logs = (format!("refit logs {id}"), "shows everything");
    let rerun = (format!("refit rerun {id}"), "tries again");
    match view.status {
        Status::Succeeded if is_restore(view) => {
            let back = |set| (format!("refit backup restore {set}"), "puts back what was there before");
            view.backup.as_ref().map(back).into_iter().collect()
        }
        Status::Failed | Status::RolledBack | Status::Cancelled if is_restore(view) => {
            vec![logs, ("refit backup list".to_owned(), "shows what else there is")]
        }
        Status::Succeeded if view.rollback.as_ref().is_some_and(|r| r.kind != RollbackKind::Undo) => {
            vec![("refit rollback --undo --reason \"…\"".to_owned(), "goes forward again")]
        }
        Status::Failed if view.rollback.is_some() => {
            vec![logs, ("refit rollback --preview".to_owned(), "shows what stands in the way")]
        }
        Status::Cancelled if view.rollback.is_some() => Vec::new(),
        Status::Failed | Status::RolledBack => vec![logs, rerun],
        Status::Cancelled => vec![rerun],
        Status::Stuck => outcome::stuck_steps(view).into(),
        Status::AwaitingApproval => vec![
            (format!("refit approve {id}"), "lets it go on"),
            (format!("refit reject {id} --reason \"…\""), "undoes it"),
        ],
        Status::Succeeded | Status::Superseded | Status::Skipped | Status::Queued | Status::Running => Vec::new(),
    }
}

fn stage_line(view: &StageView) -> Option<String> {
    let mark = match view.status {
        StageStatus::Pending => return None,
        StageStatus::Running => "…",
        StageStatus::Succeeded => "✓",
        StageStatus::Warned => "⚠",
        StageStatus::Failed => "✗",
        StageStatus::Skipped => "–",
        StageStatus::Undone => "↩",
        StageStatus::UndoFailed => "‼",
    };
    let took = view.duration_ms.map(|ms| format!(" {}", duration(ms))).unwrap_or_default();
    Some(format!("{mark} {}{took}", view.name))
}

fn door(kind: TriggerKind) -> &'static str {
    match kind {
        TriggerKind::Github => "a push on GitHub",
        TriggerKind::Hook => "git push",
        TriggerKind::Cli => "refit deploy",
        TriggerKind::Rerun => "refit rerun",
        TriggerKind::Reconcile => "a push that was found by asking the remote",
        TriggerKind::Telegram => "Telegram",
        TriggerKind::Api => "the API",
        TriggerKind::Rollback => "refit rollback",
        TriggerKind::Restore => "refit backup restore",
    }
}
