//! `refit rollback`: from a request to a queued deployment that brings a release back.

use serde::{Deserialize, Serialize};

use super::{Control, ControlError, Result};
use crate::{
    model::{DeploymentId, RollbackKind, Trigger},
    registry::{NewDeployment, Release, RollbackOrder},
};

/// Which release is meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The newest one before the live one.
    Previous,
    Deployment(DeploymentId),
    /// A commit id, in full or its beginning.
    Commit(String),
    /// An artefact's name or its tag, such as `guestbook:0123456789`.
    Version(String),
    /// What was live before the last rollback.
    Undo,
}

/// A rollback that somebody asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RollbackRequest {
    pub app: Option<String>,
    pub environment: Option<String>,
    /// A service of the app; only the app itself in this version.
    pub service: Option<String>,
    pub target: Target,
    pub reason: String,
    /// Go on though a safety check says no.
    pub force: bool,
    pub restore_data: bool,
    pub trigger: Trigger,
    pub no_wait: bool,
}

impl Control {
    /// Queues a rollback.
    pub async fn rollback(&self, request: RollbackRequest) -> Result<DeploymentId> {
        let environment = self.environment(request.app.as_deref(), request.environment.as_deref())?;
        let registry = self.registry();
        let live = registry.live(&environment.key).await?;
        let live = live.ok_or_else(|| ControlError::usage("nothing is live", "`refit deploy`"))?;
        let kept = registry.kept_releases(&environment.key).await?;
        let wanted = |release: &&Release| match &request.target {
            Target::Previous => release.deployment < live.deployment,
            Target::Deployment(id) => release.deployment == *id,
            _ => false,
        };
        let target = kept.iter().find(wanted);
        let target = target.ok_or_else(|| ControlError::usage("there is no such release", "`refit history`"))?;
        let order = RollbackOrder {
            kind: if request.target == Target::Previous { RollbackKind::Previous } else { RollbackKind::Specific },
            target: target.deployment,
            reason: request.reason,
            forced: request.force,
            backup: None,
            checks: serde_json::json!([]),
        };
        let new = NewDeployment {
            key: environment.key.clone(),
            commit: Some(target.commit.clone()),
            reference: target.commit.to_string(),
            trigger: request.trigger,
            rollback: Some(order),
        };
        self.enqueue(new, request.no_wait).await
    }
}
