//! Going back by hand: which release is meant, whether it is safe to go there, and what that would change.
//!
//! Nothing here changes anything. [`plan`] looks and judges; `control` turns a plan into a deployment, which the pipeline carries out
//! like any other (`pipeline::stages` know what a rollback is). So everything that can be found out is found out before
//! anything is touched, and the preview and the real thing are told the same.
//!
//! | file | what |
//! |---|---|
//! | `target` | a person's words → a release: pure |
//! | `schema` | what migrations recorded → whether the schema is the same: pure |
//! | `checks` | what was found out → safety checks: pure |
//! | `look` | finding it out: Docker, disk, the live version's health |
//! | `data` | which backup set has the data as the release left it |
//! | `preview` | what would change, for people |

use std::sync::Arc;

use crate::{
    config::Environment,
    model::RollbackKind,
    pipeline::World,
    registry::{RegistryError, Release},
    runtime::RuntimeError,
};

mod checks;
mod data;
mod look;
mod preview;
mod schema;
mod target;

pub use checks::{Check, Severity, blocking};
pub use preview::{Change, CommitLine, Commits, DataChange, Migration, Preview, Side};
pub use schema::ahead as schema_ahead;
pub use target::{NoTarget, Target};

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub target: Target,
    /// Put the data back as well.
    pub restore_data: bool,
}

/// Where to, and what speaks against it.
#[derive(Debug, Clone)]
pub struct Plan {
    pub kind: RollbackKind,
    pub live: Release,
    pub target: Release,
    /// The backup set to put back, relative to the backups directory.
    pub backup: Option<String>,
    pub checks: Vec<Check>,
}

#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("nothing is live in {0}, so there is nothing to leave")]
    NothingLive(String),
    #[error(transparent)]
    NoTarget(#[from] NoTarget),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// Finds the release that is meant, and judges the way there. Changes nothing.
pub async fn plan(world: &Arc<World>, environment: &Environment, wanted: &Wanted) -> Result<Plan, PlanError> {
    let (live, target, kind) = find(world, environment, &wanted.target).await?;
    // An engine that is away is said once, and not by every check.
    world.runtimes.of(target.runtime).check().await?;
    let history = look::history(world, environment).await?;
    let data = data::look(world, environment, &target, wanted.restore_data, &history).await;
    let past = schema::past(&history);
    let facts = look::facts(world, environment, (&live, &target, kind), &past, data).await?;
    let backup = match &facts.data {
        checks::Data::Good { set, .. } => Some(set.clone()),
        _ => None,
    };
    let checks = checks::judge(&facts);
    drop(facts);
    Ok(Plan { kind, live, target, backup, checks })
}

async fn find(
    world: &World,
    environment: &Environment,
    wanted: &Target,
) -> Result<(Release, Release, RollbackKind), PlanError> {
    let (registry, key) = (&world.registry, &environment.key);
    let live = registry.live(key).await?.ok_or_else(|| PlanError::NothingLive(key.to_string()))?;
    let releases = registry.all_releases(key).await?;
    let attempt = match wanted {
        Target::Deployment(id) => registry.deployment(*id).await?.and_then(|view| {
            let ours = view.app == key.app && view.environment == key.environment;
            ours.then_some(target::Attempt { id: view.id, commit: view.commit, status: view.status })
        }),
        Target::Commit(text) => {
            let found = registry.last_of_prefix(key, &Target::digits(text)?).await?;
            found.map(|(id, commit, status)| target::Attempt { id, commit: Some(commit), status })
        }
        _ => None,
    };
    let known =
        target::Known { key, live: &live, releases: &releases, last: registry.last_rollback(key).await?, attempt };
    let (found, kind) = target::choose(wanted, &known)?;
    Ok((live, found, kind))
}

impl Plan {
    /// What would change, for people.
    pub async fn preview(&self, world: &Arc<World>, environment: &Environment) -> Result<Preview, PlanError> {
        preview::of(world, environment, self).await
    }
}
