//! Everything of an environment in two lists: its containers and its images.
//!
//! Labels of an image are inherited by every container and every image that somebody makes from it, so a label alone does not say
//! that Refit made a thing. A container is ours if it has a role, which only [`spec`](super::spec) gives; an image if it is
//! finished (it has a build key) and no name that is not ours is all it has.

use std::collections::HashMap;

use bollard::{
    Docker,
    models::{ContainerSummary, ContainerSummaryStateEnum, ImageSummary},
};

use super::{container_name, instances, leftovers, spec::ROLE_APP};
use crate::{
    model::{DeploymentId, EnvironmentKey},
    runtime::{Instance, Result, SeenArtefact, SeenHelper, SeenInstance, Sight, label},
};

/// Label of instances and images: the commit.
const REVISION: &str = "org.opencontainers.image.revision";

pub(super) async fn of(docker: &Docker, key: &EnvironmentKey) -> Result<Sight> {
    let wanted = [(label::APP, key.app.as_str()), (label::ENVIRONMENT, key.environment.as_str())];
    let mut sight = Sight::default();
    for container in instances::labelled(docker, &wanted).await? {
        take_container(&mut sight, container);
    }
    let mut labels: Vec<String> = wanted.iter().map(|(name, value)| format!("{name}={value}")).collect();
    labels.extend([label::DEPLOYMENT, label::BUILD_KEY].map(str::to_owned));
    let images = leftovers::list(docker, HashMap::from([("label", labels)])).await?;
    sight.artefacts = images.into_iter().filter_map(|image| artefact(key, image)).collect();
    Ok(sight)
}

fn take_container(sight: &mut Sight, container: ContainerSummary) {
    let name = container_name(&container);
    let labels = container.labels.unwrap_or_default();
    let (Some(id), Some(deployment), Some(role)) = (container.id, deployment(&labels), labels.get(label::ROLE)) else {
        return;
    };
    use ContainerSummaryStateEnum as State;
    if container.state == Some(State::REMOVING) {
        return;
    }
    if role != ROLE_APP {
        sight.helpers.push(SeenHelper { name, deployment });
        return;
    }
    let runs = matches!(container.state, Some(State::RUNNING | State::PAUSED | State::RESTARTING | State::STOPPING));
    let commit = labels.get(REVISION).cloned();
    sight.instances.push(SeenInstance { instance: Instance { id, name, deployment }, commit, runs });
}

fn artefact(key: &EnvironmentKey, image: ImageSummary) -> Option<SeenArtefact> {
    // Engines before 25 name what has no name so.
    let names: Vec<&String> = image.repo_tags.iter().filter(|name| *name != "<none>:<none>").collect();
    let ours = |name: &&&String| {
        let repository = name.rsplit_once(':').map_or(name.as_str(), |(repository, _)| repository);
        repository == key.app.as_str() || repository == format!("{}-test", key.app)
    };
    let name = match names.iter().find(ours) {
        Some(name) => (*name).clone(),
        None if names.is_empty() => image.id.clone(),
        None => return None,
    };
    let deployment = deployment(&image.labels)?;
    Some(SeenArtefact { id: image.id, name, deployment, commit: image.labels.get(REVISION).cloned() })
}

fn deployment(labels: &HashMap<String, String>) -> Option<DeploymentId> {
    labels.get(label::DEPLOYMENT)?.parse().ok().map(DeploymentId)
}
