//! `refit rollback`: from a request to a queued deployment that brings a release back, and the preview of one.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Control, ControlError, Observer, Result};
use crate::{
    config::{Config, Environment},
    fault::Faults,
    model::{DeploymentId, EnvironmentKey, Trigger},
    pipeline::World,
    registry::{NewDeployment, RollbackOrder},
    rollback::{self, Plan, PlanError, Preview, Wanted},
};

pub use crate::rollback::Target;

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
    /// Judges and queues a rollback. Safety checks that say no are [`ControlError::Refused`]; what they said is kept with the order.
    pub async fn rollback(&self, request: RollbackRequest) -> Result<DeploymentId> {
        let environment = self.environment(request.app.as_deref(), request.environment.as_deref())?;
        known_service(&environment.key, request.service.as_deref())?;
        if request.reason.trim().is_empty() {
            return Err(ControlError::usage(
                "a rollback needs a reason",
                "--reason \"what is wrong with what is live\"",
            ));
        }
        let wanted = Wanted { target: request.target, restore_data: request.restore_data };
        let plan = rollback::plan(&self.world, &environment, &wanted).await?;
        refuse_what_is_unsafe(&plan, &environment, request.force)?;
        let order = RollbackOrder {
            kind: plan.kind,
            target: plan.target.deployment,
            reason: request.reason,
            forced: request.force,
            backup: plan.backup,
            parts: Vec::new(),
            checks: serde_json::to_value(&plan.checks).unwrap_or_default(),
        };
        let new = NewDeployment {
            key: environment.key.clone(),
            commit: Some(plan.target.commit.clone()),
            reference: plan.target.commit.to_string(),
            trigger: request.trigger,
            rollback: Some(order),
        };
        self.enqueue(new, request.no_wait).await
    }
}

impl Observer {
    /// What a rollback would change. Changes nothing itself, and needs no daemon.
    pub async fn preview(&self, key: &EnvironmentKey, wanted: &Wanted) -> Result<Preview> {
        let nothing = || ControlError::usage(format!("nothing was deployed yet in {key}"), "`refit deploy`");
        let registry = self.registry.clone().ok_or_else(nothing)?;
        let environment = self.config.by_key(key).ok_or_else(nothing)?;
        let config: Arc<Config> = Arc::clone(&self.config);
        let world = Arc::new(World::new(config, registry, self.runtimes.clone(), Faults::default()));
        let plan = rollback::plan(&world, environment, wanted).await?;
        Ok(plan.preview(&world, environment).await?)
    }
}

fn refuse_what_is_unsafe(plan: &Plan, environment: &Environment, force: bool) -> Result<()> {
    let errors = rollback::blocking(&plan.checks, force);
    if errors.is_empty() {
        return Ok(());
    }
    let why: Vec<&str> = errors.iter().map(|check| check.message.as_str()).collect();
    let hint = match errors.iter().all(|check| check.forcible) {
        true => "if you know better: --force",
        false => {
            "this cannot be forced: `refit rollback --preview` shows everything, `refit history` what else there is"
        }
    };
    Err(ControlError::Refused {
        message: format!(
            "{} was not rolled back to deployment {}, and nothing was changed: {}",
            environment.key,
            plan.target.deployment,
            why.join("; ")
        ),
        hint: Some(hint.to_owned()),
        checks: plan.checks.clone(),
    })
}

/// An app is one service for now: its own name is the one that is known.
fn known_service(key: &EnvironmentKey, service: Option<&str>) -> Result<()> {
    match service {
        Some(name) if name != key.app.as_str() => {
            let name: String = name.chars().take(80).flat_map(char::escape_default).collect();
            Err(ControlError::usage(
                format!("{key} has no service `{name}`"),
                format!("an app is one service, `{}`: leave --service out", key.app),
            ))
        }
        _ => Ok(()),
    }
}

impl From<PlanError> for ControlError {
    fn from(error: PlanError) -> Self {
        let message = error.to_string();
        match error {
            PlanError::NothingLive(_) => Self::usage(message, "`refit deploy` puts something live"),
            PlanError::NoTarget(_) => Self::usage(message, "name one with --to ID, --commit SHA or --version TAG"),
            PlanError::Runtime(error) => error.into(),
            PlanError::Registry(error) => error.into(),
        }
    }
}
