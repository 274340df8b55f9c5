//! Images by name and id.

use bollard::{
    Docker,
    query_parameters::{ListContainersOptionsBuilder, RemoveImageOptionsBuilder, TagImageOptionsBuilder},
};
use std::collections::HashMap;

use super::errors::{answer, failure, found, is_missing};
use crate::{
    model::Name,
    runtime::{Result, RuntimeError, label},
};

/// The id that `image` (a name or an id) stands for.
pub(super) async fn id(docker: &Docker, image: &str) -> Result<Option<String>> {
    let operation = format!("look for image {image}");
    Ok(found(operation, answer(docker.inspect_image(image)).await)?.and_then(|i| i.id))
}

pub(super) async fn tag(docker: &Docker, image: &str, repository: &str, tag: &str) -> Result<()> {
    let options = TagImageOptionsBuilder::new().repo(repository).tag(tag).build();
    answer(docker.tag_image(image, Some(options)))
        .await
        .map_err(|e| failure(format!("tag image {repository}:{tag}"), e))
}

/// Removes a name, never an image: the last name of an image is replaced by one made of its id, because the engine would
/// remove the image with it.
pub(super) async fn untag(docker: &Docker, app: &Name, tag_name: &str) -> Result<()> {
    let name = format!("{app}:{tag_name}");
    let operation = format!("remove the name {name}");
    let Some(image) = found(&operation, answer(docker.inspect_image(&name)).await)? else { return Ok(()) };
    if image.repo_tags.unwrap_or_default().len() <= 1
        && let Some(id) = image.id
    {
        let digits = id.strip_prefix("sha256:").unwrap_or(&id);
        tag(docker, &id, app.as_str(), digits.get(..12).unwrap_or(digits)).await?;
    }
    remove_name(docker, &name).await.map(|_| ())
}

/// Removes an image with every name Refit gave it. Names that others gave it keep it, and a container that was made
/// from it, running or not, is an error that names the container.
///
/// The bytes are the image's size, which counts layers that other images share: the engine tells no better number.
pub(super) async fn remove(docker: &Docker, id: &str) -> Result<u64> {
    let operation = format!("remove image {id}");
    let Some(image) = found(&operation, answer(docker.inspect_image(id)).await)? else { return Ok(0) };
    let full_id = image.id.unwrap_or_else(|| id.to_owned());
    if let Some(container) = user_of(docker, &full_id).await? {
        return Err(RuntimeError::failed(operation, format!("container {container} was made from it")));
    }
    let app = image.config.and_then(|c| c.labels).and_then(|mut labels| labels.remove(label::APP));
    let ours = |name: &str| {
        let repository = name.rsplit_once(':').map_or(name, |(repository, _)| repository);
        app.as_deref().is_some_and(|app| repository == app || repository == format!("{app}-test"))
    };
    let names = image.repo_tags.unwrap_or_default();
    let mut deleted = false;
    for name in names.iter().filter(|name| ours(name)) {
        deleted |= remove_name(docker, name).await?;
    }
    if names.is_empty() {
        deleted = remove_name(docker, &full_id).await?;
    }
    Ok(if deleted { image.size.and_then(|s| u64::try_from(s).ok()).unwrap_or(0) } else { 0 })
}

/// Whether the image itself went with the name.
async fn remove_name(docker: &Docker, name: &str) -> Result<bool> {
    let options = RemoveImageOptionsBuilder::new().build();
    match answer(docker.remove_image(name, Some(options), None)).await {
        Ok(items) => Ok(items.iter().any(|item| item.deleted.is_some())),
        Err(error) if is_missing(&error) => Ok(false),
        Err(error) => Err(failure(format!("remove image {name}"), error)),
    }
}

/// A container that was made from exactly this image.
async fn user_of(docker: &Docker, id: &str) -> Result<Option<String>> {
    let filters = HashMap::from([("ancestor", vec![id])]);
    let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
    let containers = answer(docker.list_containers(Some(options))).await.map_err(|e| failure("list containers", e))?;
    let user = containers.into_iter().find(|c| c.image_id.as_deref() == Some(id));
    Ok(user.map(|c| super::container_name(&c)))
}
