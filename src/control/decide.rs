//! A person's word: on a deployment that waits for approval, and on one that is stuck.
//!
//! Both are rows that any process may write, lock or no lock: whichever process drives the deployment finds them.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Control, ControlError, Result, unknown};
use crate::{
    model::{DeploymentId, Status},
    registry::{Decision, Registry, Resolution},
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

    /// Notes that a person has looked at a stuck deployment: automatic deployments of its environment go on.
    pub async fn resolve(&self, id: DeploymentId, request: ResolveRequest) -> Result<()> {
        resolve(self.registry(), id, request).await?;
        self.world.tick();
        Ok(())
    }
}

/// [`Control::decide`] for a process that does not drive deployments.
pub async fn decide(registry: &Registry, id: DeploymentId, request: ApprovalRequest) -> Result<()> {
    let view = registry.deployment(id).await?.ok_or_else(|| unknown(id))?;
    if view.status != Status::AwaitingApproval {
        let message = format!("deployment {id} does not wait for approval: it is {}", view.status);
        return Err(ControlError::usage(message, format!("`refit show {id}` tells more")));
    }
    let ApprovalRequest { approved, by, reason } = request;
    let written = registry.decide(id, &Decision { approved, by, reason, at: Timestamp::now() }).await?;
    if written.approved == approved {
        return Ok(());
    }
    let said = if written.approved { "approved" } else { "rejected" };
    Err(ControlError::usage(
        format!("{} has {said} deployment {id} already", written.by),
        format!("`refit show {id}` tells what became of it"),
    ))
}

/// [`Control::resolve`] for a process that does not drive deployments.
pub async fn resolve(registry: &Registry, id: DeploymentId, request: ResolveRequest) -> Result<()> {
    let view = registry.deployment(id).await?.ok_or_else(|| unknown(id))?;
    if view.status != Status::Stuck {
        let message = format!("deployment {id} is not stuck: it is {}", view.status);
        return Err(ControlError::usage(message, "`refit history --status stuck` lists those that are"));
    }
    if request.reason.trim().is_empty() {
        return Err(ControlError::usage("a reason is needed", "--reason \"what you found and did\""));
    }
    let resolution = Resolution { by: request.by, reason: request.reason, at: Timestamp::now() };
    registry.resolve(id, &resolution).await?;
    Ok(())
}
