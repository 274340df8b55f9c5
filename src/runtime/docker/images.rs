//! Images by name and id.

use bollard::{
    Docker,
    models::ImageInspect,
    query_parameters::{ListContainersOptionsBuilder, RemoveImageOptionsBuilder, TagImageOptionsBuilder},
};
use sha2::{Digest, Sha256};
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
/// The bytes are those of the layers that went with it: layers that another image shares stay, and give nothing back.
pub(super) async fn remove(docker: &Docker, id: &str) -> Result<u64> {
    let operation = format!("remove image {id}");
    let Some(image) = found(&operation, answer(docker.inspect_image(id)).await)? else { return Ok(0) };
    let full_id = image.id.clone().unwrap_or_else(|| id.to_owned());
    if let Some(container) = user_of(docker, &full_id).await? {
        return Err(RuntimeError::failed(operation, format!("container {container} was made from it")));
    }
    let layers = Layers::of(docker, &image, &full_id).await;
    let app = image.config.and_then(|c| c.labels).and_then(|mut labels| labels.remove(label::APP));
    let ours = |name: &str| {
        let repository = name.rsplit_once(':').map_or(name, |(repository, _)| repository);
        app.as_deref().is_some_and(|app| repository == app || repository == format!("{app}-test"))
    };
    let names = image.repo_tags.unwrap_or_default();
    let mut deleted = Vec::new();
    for name in names.iter().filter(|name| ours(name)) {
        deleted.extend(remove_name(docker, name).await?);
    }
    if names.is_empty() {
        deleted = remove_name(docker, &full_id).await?;
    }
    Ok(layers.freed(&deleted))
}

/// What went with the name: ids of images, and of layers.
async fn remove_name(docker: &Docker, name: &str) -> Result<Vec<String>> {
    let options = RemoveImageOptionsBuilder::new().build();
    match answer(docker.remove_image(name, Some(options), None)).await {
        Ok(items) => Ok(items.into_iter().filter_map(|item| item.deleted).collect()),
        Err(error) if is_missing(&error) => Ok(Vec::new()),
        Err(error) => Err(failure(format!("remove image {name}"), error)),
    }
}

/// An image's layers as the engine's two views of them tell: their ids, and what they hold.
struct Layers {
    /// Chain ids (OCI image specification, "Layer ChainID"), by which the engine names the layers that it deletes.
    chain: Vec<String>,
    /// Sizes in bytes of those that hold something, the topmost first.
    sizes: Vec<u64>,
}

impl Layers {
    async fn of(docker: &Docker, image: &ImageInspect, id: &str) -> Self {
        let diffs = image.root_fs.as_ref().and_then(|fs| fs.layers.clone()).unwrap_or_default();
        let mut chain: Vec<String> = Vec::with_capacity(diffs.len());
        for diff in diffs {
            let next = match chain.last() {
                Some(parent) => format!("sha256:{}", hex::encode(Sha256::digest(format!("{parent} {diff}")))),
                None => diff,
            };
            chain.push(next);
        }
        // Only a number for the report depends on it.
        let history = answer(docker.image_history(id)).await.unwrap_or_default();
        let sizes = history.iter().filter_map(|step| u64::try_from(step.size).ok().filter(|size| *size > 0)).collect();
        Self { chain, sizes }
    }

    /// Bytes of the layers among `deleted`. Layers go from the top. Where some of the image's layers are empty the history does not tell
    /// which, so that many of the lowest that went are not counted: rather less than more.
    fn freed(&self, deleted: &[String]) -> u64 {
        let gone = self.chain.iter().filter(|layer| deleted.contains(layer)).count();
        let empty = self.chain.len().saturating_sub(self.sizes.len());
        self.sizes.iter().take(gone.saturating_sub(empty)).sum()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_layers_that_went_are_counted() {
        let name = |n: u32| format!("sha256:{n}");
        let all: Vec<String> = (0..4).map(name).collect();
        let layers = Layers { chain: all.clone(), sizes: vec![1, 10, 100, 1000] };
        assert_eq!(layers.freed(&[]), 0);
        assert_eq!(layers.freed(&["sha256:the-image".to_owned(), name(3)]), 1, "the topmost");
        assert_eq!(layers.freed(&all[1..]), 111);
        assert_eq!(layers.freed(&all), 1111);
        // One of the four is empty, nobody knows which.
        let layers = Layers { chain: all.clone(), sizes: vec![1, 10, 100] };
        assert_eq!((layers.freed(&all[2..]), layers.freed(&all)), (1, 111));
    }
}
