//! A person's word: on a deployment that waits for approval, and on one that is stuck.
//!
//! Both are rows that any process may write, lock or no lock: whichever process drives the deployment finds them.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Control, ControlError, Result, unknown};
use crate::{
    model::{DeploymentId, Resolution, Status},
    queue::Queue,
    registry::{Decision, Registry},
};

/// `refit approve` and `refit reject`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ApprovalRequest {
    pub approved: bool,
    pub by: String,
    /// Why not; for the record.
    pub reason: Option<String>,
}

/// `refit resolve`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ResolveRequest {
    pub by: String,
    /// What was found and done; for the record.
    pub reason: String,
}

impl Control {
    /// Says yes or no to a deployment that waits for it.
    pub async fn decide(&self, id: DeploymentId, request: ApprovalRequest) -> Result<()> {
        decide(self.registry(), id, request).await?;
        self.world.tick();
        Ok(())
    }

    /// Notes that a person has looked at a stuck deployment: automatic deployments of its environment go on, and the remote is asked
    /// for what was held back.
    pub async fn resolve(&self, id: DeploymentId, request: ResolveRequest) -> Result<()> {
        resolve(self.registry(), id, request).await?;
        self.world.tick();
        if let Some(view) = self.registry().deployment(id).await? {
            Queue::ask_remote(&self.queue, &view.app);
        }
        Ok(())
    }
}

/// [`Control::decide`] for a process that does not drive deployments.
pub async fn decide(registry: &Registry, id: DeploymentId, request: ApprovalRequest) -> Result<()> {
    let view = registry.deployment(id).await?.ok_or_else(|| unknown(id))?;
    let ApprovalRequest { approved, by, reason } = request;
    let reason = reason.map(|reason| reason.trim().to_owned()).filter(|reason| !reason.is_empty());
    if !approved && reason.is_none() {
        return Err(ControlError::usage("a reason is needed", "--reason \"why not\""));
    }
    let not_waiting = |status: Status| {
        let message =
            format!("deployment {id} does not wait for approval: it is {}", status.as_str().replace('_', " "));
        ControlError::usage(message, format!("`refit show {id}` tells more"))
    };
    let at = Timestamp::now();
    let written = match (view.status, &view.approval) {
        // Nobody was there to end it: the next process does.
        (Status::AwaitingApproval, Some(asked)) if at >= asked.expires_at => {
            let message = format!("the time for an answer to deployment {id} ended at {}", asked.expires_at);
            return Err(ControlError::usage(message, format!("it is undone; `refit rerun {id}` asks again")));
        }
        (Status::AwaitingApproval, _) => registry.decide(id, &Decision { approved, by, reason, at }).await?,
        _ => registry.decision(id).await?,
    };
    match written {
        // Said before in the same words: it may have been heard meanwhile.
        Some(written) if written.approved == approved && written.reason.is_some() >= !approved => Ok(()),
        Some(written) => {
            let said = if written.approved { "approved" } else { "rejected" };
            Err(ControlError::usage(
                format!("{} has {said} deployment {id} already", written.by),
                format!("`refit show {id}` tells what became of it"),
            ))
        }
        None => Err(not_waiting(registry.deployment(id).await?.map_or(view.status, |view| view.status))),
    }
}

/// [`Control::resolve`] for a process that does not drive deployments. What is written: the first word counts.
pub async fn resolve(registry: &Registry, id: DeploymentId, request: ResolveRequest) -> Result<Resolution> {
    let view = registry.deployment(id).await?.ok_or_else(|| unknown(id))?;
    if view.status != Status::Stuck {
        let message = format!("deployment {id} is not stuck: it is {}", view.status.as_str().replace('_', " "));
        return Err(ControlError::usage(message, "`refit history --status stuck` lists those that are"));
    }
    let reason = request.reason.trim().to_owned();
    if reason.is_empty() {
        return Err(ControlError::usage("a reason is needed", "--reason \"what you found and did\""));
    }
    let resolution = Resolution { by: request.by, reason, at: Timestamp::now() };
    Ok(registry.resolve(id, &resolution).await?)
}
