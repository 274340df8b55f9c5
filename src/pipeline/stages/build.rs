//! build: the artefact from the commit's tree. What is recorded is the runtime's [`Artefact`].

use serde::{Deserialize, Serialize};

use super::{Done, Progress, StageFailure, Step, within};
use crate::{
    config::Environment,
    model::{CommitId, DeploymentId},
    pipeline::World,
    registry::Facts,
    runtime::{Artefact, BuildRequest, Job},
};

#[derive(Debug, Serialize, Deserialize)]
pub struct Input {
    pub commit: CommitId,
}

pub fn input(progress: &Progress) -> Result<Input, StageFailure> {
    Ok(Input { commit: progress.commit()? })
}

pub async fn run(step: &Step, input: Input) -> Result<Done, StageFailure> {
    let environment = &step.environment;
    let mirror = step.world.mirror_of(environment);
    let artefact = within(environment.build.timeout, "the build", &step.job.cancel, async |cancel| {
        let job = Job { log: step.job.log.clone(), cancel };
        let request = BuildRequest {
            environment,
            deployment: step.deployment,
            commit: &input.commit,
            mirror: &mirror,
            target: None,
        };
        Ok(step.world.runtime(environment).build(&request, &job).await?)
    })
    .await?;
    step.job.log.line(format!(
        "{} {} ({})",
        if artefact.reused { "nothing changed: using" } else { "built" },
        artefact.name,
        artefact.id
    ));
    let facts = Facts { image: Some(artefact.id.clone()), ..Facts::default() };
    Ok(Done { facts, ..Done::new(&artefact)? })
}

/// Removes what this deployment built, unless a release uses it, and what the builder left. What cannot be removed now (in use by hand)
/// is left.
pub async fn undo(step: &Step, built: Option<Artefact>) -> Result<Option<String>, StageFailure> {
    let runtime = step.world.runtime(&step.environment);
    runtime.sweep(&step.environment.key, step.deployment).await?;
    let built = match built {
        Some(artefact) => Some(artefact.id).filter(|_| !artefact.reused),
        // It was cut off, perhaps in the moment when it was done.
        None => runtime.built_by(&step.environment.key, step.deployment).await?,
    };
    if let Some(id) = built
        && let Err(why) = remove_unused(&step.world, &step.environment, &id, Some(step.deployment)).await
    {
        step.job.log.line(format!("{id} is left: {why}"));
    }
    clear_step(step).await;
    Ok(None)
}

/// [`clear`]; what goes wrong is tried again after the next deployment.
pub(super) async fn clear_step(step: &Step) {
    if let Err(why) = clear(&step.world, &step.environment, Some(step.deployment)).await {
        step.job.log.line(format!("warning: images are left: {why}"));
    }
}

/// Clears away what builds and tests of the environment left; what deployment `undone` built is not needed by it.
pub async fn clear(world: &World, environment: &Environment, undone: Option<DeploymentId>) -> Result<(), String> {
    let runtime = world.runtime(environment);
    let mut done = Ok(());
    for id in runtime.clear_leftovers(&environment.key).await.map_err(|e| e.to_string())? {
        // One that cannot be removed is no reason to leave the others.
        done = remove_unused(world, environment, &id, undone).await.and(done);
    }
    done
}

async fn remove_unused(
    world: &World,
    environment: &Environment,
    id: &str,
    undone: Option<DeploymentId>,
) -> Result<(), String> {
    if !world.registry.artefact_in_use(id, undone).await.map_err(|e| e.to_string())? {
        world.runtime(environment).remove_artefact(id).await.map_err(|e| e.to_string())?;
    }
    Ok(())
}
