//! One deployment in sentences: what happened, what is live, why, what was undone, what to do next.
//!
//! The end of `refit deploy`, `refit report` and the hook tell the same story, each at its own length. A [`Story`] is
//! read from the store once; everything after that is pure.

use serde::Serialize;

use super::style::{clip, took};
use crate::{
    model::{
        ApprovalState, CommitId, DeploymentId, DeploymentView, EnvironmentKey, Name, RollbackKind, RollbackView, Stage,
        StageStatus, Status, TriggerKind,
    },
    notify::{freed, reference},
    pipeline::outcome,
    registry::{Registry, Release, Result},
};

/// A deployment with what the sentences need beside it.
#[derive(Debug, Clone, Serialize)]
pub struct Story {
    pub deployment: DeploymentView,
    /// What users see now.
    pub live: Option<Live>,
    /// The last lines of the failed stage's log, masked.
    pub tail: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Live {
    pub deployment: DeploymentId,
    pub commit: CommitId,
    /// The artefact's name, such as `guestbook:0123456789`.
    pub version: String,
}

impl From<Release> for Live {
    fn from(release: Release) -> Self {
        Self { deployment: release.deployment, commit: release.commit, version: release.artefact_name }
    }
}

impl Story {
    pub async fn load(registry: &Registry, deployment: DeploymentView) -> Result<Self> {
        let key = EnvironmentKey { app: deployment.app.clone(), environment: deployment.environment.clone() };
        let live = registry.live(&key).await?.map(Live::from);
        let mut tail = outcome::failure_tail(&registry.events(deployment.id, 0).await?);
        // An error of several lines quotes the output that matters already.
        if deployment.error.as_deref().is_some_and(|error| error.lines().nth(1).is_some()) {
            tail.clear();
        }
        Ok(Self { deployment, live, tail })
    }

    fn environment(&self) -> String {
        format!("{}/{}", self.deployment.app, self.deployment.environment)
    }

    /// One sentence: what became of it.
    pub fn headline(&self) -> String {
        let (view, environment) = (&self.deployment, self.environment());
        let id = view.id;
        if view.rollback.is_some() {
            return self.rollback_headline();
        }
        let place = view.failed_stage.map(|stage| format!(" in {stage}")).unwrap_or_default();
        match view.status {
            Status::Queued => format!("deployment {id} of {environment} waits in the queue"),
            Status::Running => format!("deployment {id} of {environment} is running"),
            Status::AwaitingApproval => format!("deployment {id} of {environment} waits for approval"),
            Status::Succeeded if view.live => format!("deployment {id} of {environment} is live and healthy"),
            Status::Succeeded => format!("deployment {id} of {environment} succeeded"),
            Status::Failed => format!("deployment {id} of {environment} failed{place}"),
            Status::RolledBack => format!("deployment {id} of {environment} failed{place} and was rolled back"),
            Status::Stuck => {
                let critical = if view.resolved.is_some() { "" } else { "CRITICAL: " };
                if view.trigger.kind == TriggerKind::Rollback {
                    format!("{critical}rollback {id} of {environment} failed{place}: the way back itself is broken")
                } else {
                    format!("{critical}deployment {id} of {environment} failed{place} and could not be undone")
                }
            }
            Status::Superseded => format!("deployment {id} of {environment} made way for a newer one"),
            Status::Cancelled => format!("deployment {id} of {environment} was cancelled"),
            Status::Skipped => format!("deployment {id} of {environment} had nothing to deploy"),
        }
    }

    fn rollback_headline(&self) -> String {
        let (view, environment) = (&self.deployment, self.environment());
        let id = view.id;
        if let Some((set, rollback)) = view.rollback.as_ref().and_then(|r| Some((r.restored_set()?, r))) {
            return self.restore_headline(&restored(set, rollback));
        }
        let to = view.rollback.as_ref().map_or(id, |rollback| rollback.to);
        let place = view.failed_stage.map(|stage| format!(" in {stage}")).unwrap_or_default();
        match view.status {
            Status::Queued => format!("rollback {id} of {environment} to deployment {to} waits in the queue"),
            Status::Running | Status::AwaitingApproval => {
                format!("rollback {id} of {environment} to deployment {to} is running")
            }
            Status::Succeeded => format!("{environment} was rolled back to deployment {to}"),
            Status::Failed | Status::RolledBack => {
                format!(
                    "rollback {id} of {environment} to deployment {to} failed{place}, and nothing changed for users"
                )
            }
            Status::Stuck => {
                format!(
                    "CRITICAL: rollback {id} of {environment} to deployment {to} failed{place}, and a person is needed"
                )
            }
            Status::Superseded => format!("rollback {id} of {environment} made way for a newer deployment"),
            Status::Cancelled => format!("rollback {id} of {environment} was cancelled"),
            Status::Skipped => format!("rollback {id} of {environment} had nothing to do"),
        }
    }

    fn restore_headline(&self, from: &str) -> String {
        let (view, environment, id) = (&self.deployment, self.environment(), self.deployment.id);
        let place = view.failed_stage.map(|stage| format!(" in {stage}")).unwrap_or_default();
        match view.status {
            Status::Queued => format!("restore {id} of {environment} from {from} waits in the queue"),
            Status::Running | Status::AwaitingApproval => {
                format!("restore {id} of {environment} from {from} is running")
            }
            Status::Succeeded => format!("the data of {environment} was restored from {from}"),
            Status::Failed => {
                format!("restore {id} of {environment} from {from} failed{place}, and no data was changed")
            }
            Status::RolledBack => {
                format!("restore {id} of {environment} from {from} failed{place}, and the data is as it was before")
            }
            Status::Stuck => {
                let critical = if view.resolved.is_some() { "" } else { "CRITICAL: " };
                format!("{critical}restore {id} of {environment} from {from} failed{place}, and a person is needed")
            }
            Status::Superseded => format!("restore {id} of {environment} made way for a deployment"),
            Status::Cancelled => format!("restore {id} of {environment} was cancelled"),
            Status::Skipped => format!("restore {id} of {environment} had nothing to do"),
        }
    }

    /// `deployment 5 → deployment 3, put back the data of …: "reason"`; `None` for what is no rollback.
    pub fn rollback_line(&self) -> Option<String> {
        let rollback = self.deployment.rollback.as_ref()?;
        if let Some(set) = rollback.restored_set() {
            let forced = if rollback.forced { ", forced" } else { "" };
            return Some(format!("the data of {}{forced}, under deployment {}", restored(set, rollback), rollback.to));
        }
        let from = self.deployment.previous.map(|from| format!("deployment {from} → ")).unwrap_or_default();
        let kind = match rollback.kind {
            RollbackKind::Previous => "the release before",
            RollbackKind::Specific => "named",
            RollbackKind::Undo => "forward again",
            RollbackKind::Automatic => "automatic",
            RollbackKind::Restore => "data only",
        };
        let data = rollback.restore.as_ref().map(|set| format!(", with the data of {}", clip(set, 100)));
        let forced = if rollback.forced { ", forced" } else { "" };
        Some(format!("{from}deployment {} ({kind}{forced}){}", rollback.to, data.unwrap_or_default()))
    }

    /// What the order of [`rollback_line`](Self::rollback_line) is called.
    pub fn order(&self) -> &'static str {
        if self.is_restore() { "restore" } else { "rollback" }
    }

    /// Why somebody asked for the rollback.
    pub fn reason(&self) -> Option<String> {
        self.deployment.rollback.as_ref().map(|rollback| clip(&rollback.reason, 200))
    }

    /// One sentence: what users see now.
    pub fn live_now(&self) -> String {
        let view = &self.deployment;
        match &self.live {
            None if view.status == Status::Stuck => "nothing is known to be live".to_owned(),
            None if view.status.is_end() => "nothing is live: there is no earlier version to go back to".to_owned(),
            None => "nothing is live yet".to_owned(),
            Some(live) => {
                let version = format!("deployment {} ({})", live.deployment, live.commit.short());
                let target = view.rollback.as_ref().map(|rollback| rollback.to);
                if live.deployment == view.id {
                    format!("{} is live", live.commit.short())
                } else if view.status == Status::Succeeded && target == Some(live.deployment) {
                    format!("{version} is live again")
                } else if target.is_some() && view.status == Status::Stuck && !self.is_broken() {
                    format!("{version} is live again: the rollback was taken back")
                } else if view.status == Status::Stuck {
                    format!("{version} was live before; whether it still is must be looked at")
                } else if view.status == Status::RolledBack && view.previous == Some(live.deployment) {
                    format!("{version} is live again")
                } else if view.previous == Some(live.deployment) {
                    format!("{version} is still live")
                } else {
                    format!("{version} is live")
                }
            }
        }
    }

    /// Only data goes back.
    fn is_restore(&self) -> bool {
        self.deployment.rollback.as_ref().is_some_and(|rollback| rollback.restored_set().is_some())
    }

    /// Something could not be undone.
    fn is_broken(&self) -> bool {
        self.deployment.stages.iter().any(|stage| stage.status == StageStatus::UndoFailed)
    }

    /// What a person does now; `None` where nothing is to do.
    pub fn next_step(&self) -> Option<String> {
        let view = &self.deployment;
        let id = view.id;
        if view.rollback.is_some() {
            return self.after_rollback();
        }
        let again = format!("`refit rerun {id}`");
        let text = match view.status {
            Status::Queued | Status::Running => {
                format!("`refit logs -f {id}` watches it, `refit cancel {id}` stops it")
            }
            Status::AwaitingApproval => {
                format!("`refit approve {id}` lets it go on, `refit reject {id} --reason \"…\"` undoes it")
            }
            Status::Succeeded => return self.warning(),
            Status::Superseded | Status::Skipped => return None,
            Status::Cancelled => format!("{again} when you are ready"),
            Status::Stuck if view.resolved.is_some() => return None,
            Status::Stuck => after_stuck(view),
            _ if view.exit_code == Some(69) => format!("`refit doctor` says what is missing; then {again}"),
            Status::Failed | Status::RolledBack => match view.failed_stage {
                Some(Stage::Pull) => format!("`refit doctor` checks the access to the repository; then {again}"),
                Some(Stage::Backup) => format!("see that the database can be dumped (`refit doctor`); then {again}"),
                Some(Stage::Test) => "fix the tests, or the code, and push again".to_owned(),
                Some(Stage::Build) => "fix the build and push again".to_owned(),
                Some(Stage::Migrate) => {
                    "see what the migration did to the database, then fix it and push again".to_owned()
                }
                Some(Stage::Start) => {
                    format!(
                        "mend the cause (the app's last lines are in the log), and push again; or {again}, if it was this machine"
                    )
                }
                Some(Stage::Smoke) => {
                    "compare what the check expects with what the app answers, and push again".to_owned()
                }
                Some(Stage::Tag) | None => again,
            },
        };
        Some(text)
    }

    /// What was said where the deployment asked for approval.
    pub fn approval(&self) -> Option<String> {
        let approval = self.deployment.approval.as_ref()?;
        let until = approval.expires_at.strftime("%Y-%m-%d %H:%M:%S UTC");
        let by = approval.by.as_deref().map(|by| format!(" by {}", clip(by, 40))).unwrap_or_default();
        let at = approval.at.map(|at| format!(" at {}", at.strftime("%Y-%m-%d %H:%M:%S UTC"))).unwrap_or_default();
        let why = approval.reason.as_deref().map(|why| format!(": {}", clip(why, 200))).unwrap_or_default();
        Some(match approval.state {
            ApprovalState::Waiting => format!("awaited until {until}"),
            ApprovalState::Approved => format!("given{by}{at}{why}"),
            ApprovalState::Rejected => format!("refused{by}{at}{why}"),
            ApprovalState::Expired => format!("not given: nobody answered until {until}"),
            ApprovalState::Cancelled => "asked for, and cancelled before anybody answered".to_owned(),
        })
    }

    /// Who has looked at a stuck deployment, and what was found.
    pub fn resolved(&self) -> Option<String> {
        let resolved = self.deployment.resolved.as_ref()?;
        let at = resolved.at.strftime("%Y-%m-%d %H:%M:%S UTC");
        Some(format!("by {} at {at}: {}", clip(&resolved.by, 40), clip(&resolved.reason, 200)))
    }

    fn after_rollback(&self) -> Option<String> {
        let view = &self.deployment;
        let id = view.id;
        let text = match view.status {
            Status::Queued | Status::Running | Status::AwaitingApproval => {
                format!("`refit logs -f {id}` watches it, `refit cancel {id}` stops it")
            }
            Status::Succeeded if view.rollback.as_ref().is_some_and(|r| r.kind == RollbackKind::Undo) => {
                return self.warning();
            }
            Status::Succeeded if self.is_restore() => {
                let back = view.backup.as_ref().map(|set| {
                    format!("look at the app; `refit backup restore {set}` puts back what was there before")
                });
                return self.warning().or(back);
            }
            Status::Failed | Status::RolledBack | Status::Cancelled if self.is_restore() => {
                "`refit backup list` shows what else there is, `refit backup verify SET` whether it is whole".to_owned()
            }
            Status::Succeeded => {
                let forward = "mend the cause and push: a commit that was left is not deployed again by itself; \
                               `refit rollback --undo` goes forward again";
                self.warning().unwrap_or_else(|| forward.to_owned())
            }
            Status::Superseded | Status::Skipped => return None,
            Status::Stuck if view.resolved.is_some() => return None,
            Status::Stuck => after_stuck(view),
            _ if view.exit_code == Some(69) => "`refit doctor` says what is missing; then ask for it again".to_owned(),
            Status::Cancelled | Status::Failed | Status::RolledBack => {
                "`refit rollback --preview` shows what stands in the way; then ask for it again".to_owned()
            }
        };
        Some(text)
    }

    /// Stages that failed without ending the deployment.
    fn warning(&self) -> Option<String> {
        let warned: Vec<&str> = self
            .deployment
            .stages
            .iter()
            .filter(|s| s.status == StageStatus::Warned)
            .map(|s| s.name.as_str())
            .collect();
        (!warned.is_empty()).then(|| format!("look at {}: it failed, and the deployment went on", warned.join(" and ")))
    }

    /// The space that its end gave back, and which releases went for it.
    pub fn freed(&self) -> Option<String> {
        freed(&self.deployment)
    }

    /// `branch main`, `tag v1`, or what a person named.
    pub fn origin(&self) -> String {
        match reference(&self.deployment.reference) {
            ("ref", name) => clip(name, 100),
            (label, name) => format!("{label} {}", clip(name, 100)),
        }
    }

    /// `took 1m 05s`, or `running for 12.0s`.
    pub fn took(&self) -> Option<String> {
        let verb = if self.deployment.status.is_end() { "took" } else { "running for" };
        self.deployment.duration_ms.map(|ms| format!("{verb} {}", took(ms)))
    }

    /// `0123456789 "subject" by author`, as much as is known.
    pub fn commit_line(&self) -> String {
        let view = &self.deployment;
        let mut text = match &view.commit {
            Some(commit) => commit.short().to_owned(),
            None => "not known yet".to_owned(),
        };
        if let Some(subject) = &view.subject {
            text.push_str(&format!(" \"{}\"", clip(subject, 72)));
        }
        if let Some(author) = &view.author {
            text.push_str(&format!(" by {}", clip(author, 40)));
        }
        text
    }

    /// `a push to GitHub by ada`.
    pub fn asked(&self) -> String {
        use crate::model::TriggerKind as Kind;
        let trigger = &self.deployment.trigger;
        let how = match trigger.kind {
            Kind::Github => "a push to GitHub",
            Kind::Hook => "a push to this server",
            Kind::Cli => "`refit deploy`",
            Kind::Rerun => "`refit rerun`",
            Kind::Reconcile => "a push that was found on the remote",
            Kind::Telegram => "Telegram",
            Kind::Api => "the API",
            Kind::Rollback => "`refit rollback`",
            Kind::Restore => "`refit backup restore`",
        };
        match &trigger.by {
            Some(by) => format!("{how} by {}", clip(by, 40)),
            None => how.to_owned(),
        }
    }
}

/// `shop/production/2026-11-21_10-15-30 (only db)`.
fn restored(set: &str, rollback: &RollbackView) -> String {
    let parts: Vec<&str> = rollback.parts.iter().map(Name::as_str).collect();
    let only = if parts.is_empty() { String::new() } else { format!(" (only {})", parts.join(", ")) };
    format!("{}{only}", clip(set, 100))
}

fn after_stuck(view: &DeploymentView) -> String {
    let [one, two, three] = outcome::stuck_steps(view).map(|(command, what)| format!("`{command}` {what}"));
    format!("1. {one}; 2. {two}; 3. {three}")
}
