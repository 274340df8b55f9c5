//! build: the artefact from the commit's tree. What is recorded is the runtime's [`Artefact`].

use serde::{Deserialize, Serialize};

use super::{Done, Progress, StageFailure, Step, within};
use crate::{
    model::CommitId,
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
    if let Some(artefact) = built.filter(|artefact| !artefact.reused) {
        let used = step.world.registry.artefact_in_use(&artefact.id).await;
        if !used.map_err(|e| StageFailure::failed(e.to_string()))?
            && let Err(error) = runtime.remove_artefact(&artefact.id).await
        {
            step.job.log.line(format!("{} is left: {error}", artefact.name));
        }
    }
    clear(step).await;
    Ok(None)
}

/// Clears away what builds left. What goes wrong is tried again after the next deployment.
pub(super) async fn clear(step: &Step) {
    let runtime = step.world.runtime(&step.environment);
    if let Err(error) = runtime.clear_leftovers(&step.environment.key).await {
        step.job.log.line(format!("warning: images are left: {error}"));
    }
}
