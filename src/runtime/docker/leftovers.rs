//! What builds leave behind, and what of it is worth keeping.
//!
//! The classic builder's cache is the images of its steps. Those below an image with a name stay; the end of another stage, or of a
//! build that failed, has no name, and nothing tells it from rubbish. So the ends of an environment's last build get one,
//! `<app>-cache:<environment>-<target>-<n>`, which moves on with each build: the next build finds every step that did not change,
//! also after a failure and when the image itself was removed.
//!
//! What has no name then, carries the app's label (each stage begins with it: see `dockerfile`), and is not a finished image (those
//! have a build key, and may belong to a release) is rubbish, and so are the images that tests ran in. [`clear`] removes them
//! while no build of the app is under way. Images that are not ours are never asked for; the engine removes an image
//! without a name only together with the last one that was built on it, as `docker rmi` does.

use std::collections::HashMap;

use bollard::{
    Docker,
    models::ImageSummary,
    query_parameters::{ListImagesOptionsBuilder, RemoveImageOptionsBuilder},
};

use super::{
    errors::{answer, failure, is_missing, status},
    images,
    trail::Builds,
};
use crate::{
    model::{DeploymentId, EnvironmentKey},
    runtime::{Result, label},
};

/// Names `images` as the ends of the last build of `target`. Names of an earlier build that had more go, if it is `whole`.
pub(super) async fn keep_cache(
    docker: &Docker,
    key: &EnvironmentKey,
    target: Option<&str>,
    images: &[String],
    whole: bool,
) -> Result<()> {
    let repository = format!("{}-cache", key.app);
    let name = |n: usize| match target {
        Some(target) => format!("{}-test-{target}-{n}", key.environment),
        None => format!("{}-app-{n}", key.environment),
    };
    for (n, image) in images.iter().enumerate() {
        images::tag(docker, image, &repository, &name(n)).await?;
    }
    let mut n = images.len();
    while whole && remove(docker, &format!("{repository}:{}", name(n))).await? {
        n += 1;
    }
    Ok(())
}

/// Removes what builds of this environment left and nothing needs, unless a build of the app is under way. Nameless images that
/// are finished are returned: the name of a commit moved on, or a build was cut off before it gave one.
pub(super) async fn clear(docker: &Docker, builds: &Builds, key: &EnvironmentKey) -> Result<Vec<String>> {
    let Some(_alone) = builds.clearing(&key.app) else { return Ok(Vec::new()) };
    let app = format!("{}={}", label::APP, key.app);
    let environment = format!("{}={}", label::ENVIRONMENT, key.environment);
    let tests = format!("{}-test", key.app);
    let filters = [("label", vec![app.clone(), environment]), ("reference", vec![tests.clone()])];
    for image in list(docker, HashMap::from(filters)).await? {
        for name in image.repo_tags.iter().filter(|name| name.rsplit_once(':').is_some_and(|(r, _)| r == tests)) {
            remove(docker, name).await?;
        }
    }
    let filters = [("label", vec![app]), ("dangling", vec!["true".to_owned()])];
    let mut finished = Vec::new();
    for image in list(docker, HashMap::from(filters)).await? {
        if !image.labels.contains_key(label::BUILD_KEY) {
            remove(docker, &image.id).await?;
        } else if image.labels.get(label::ENVIRONMENT).map(String::as_str) == Some(key.environment.as_str()) {
            finished.push(image.id);
        }
    }
    Ok(finished)
}

/// The app's image that a deployment built.
pub(super) async fn built_by(
    docker: &Docker,
    key: &EnvironmentKey,
    deployment: DeploymentId,
) -> Result<Option<String>> {
    let labels = vec![
        format!("{}={}", label::APP, key.app),
        format!("{}={}", label::ENVIRONMENT, key.environment),
        format!("{}={deployment}", label::DEPLOYMENT),
        label::BUILD_KEY.to_owned(),
    ];
    let filters = HashMap::from([("label", labels), ("reference", vec![key.app.to_string()])]);
    Ok(list(docker, filters).await?.into_iter().next().map(|image| image.id))
}

pub(super) async fn list(docker: &Docker, filters: HashMap<&str, Vec<String>>) -> Result<Vec<ImageSummary>> {
    let options = ListImagesOptionsBuilder::new().filters(&filters).build();
    answer(docker.list_images(Some(options))).await.map_err(|e| failure("list images", e))
}

/// Removes a name, or a nameless image. Whether it did: one that is gone, or used by a container, is let be.
async fn remove(docker: &Docker, image: &str) -> Result<bool> {
    let options = RemoveImageOptionsBuilder::new().build();
    match answer(docker.remove_image(image, Some(options), None)).await {
        Ok(_) => Ok(true),
        Err(error) if is_missing(&error) || status(&error) == Some(409) => Ok(false),
        Err(error) => Err(failure(format!("remove image {image}"), error)),
    }
}
