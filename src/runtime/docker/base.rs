//! An image from this host's own files, and an app cleared away whole: for what is made to be thrown away, such as a demo.
//!
//! A base image is imported as one layer, so no registry is asked. It carries the app's label, which every image that is built on it inherits,
//! nameless steps of a build included: that is how [`Engine::remove_app`] finds all of them.

use std::collections::HashMap;

use bollard::{
    body_full,
    query_parameters::{CreateImageOptionsBuilder, ListImagesOptionsBuilder, RemoveImageOptionsBuilder},
};
use bytes::Bytes;
use futures_util::TryStreamExt;

use super::{
    Engine, container_name,
    errors::{answer, failure, is_missing},
    instances,
};
use crate::{
    model::Name,
    runtime::{Result, RuntimeError, label},
};

/// An image goes once those that were built on it are gone; more builds than this on top of each other nobody makes.
const PASSES: usize = 20;

/// What [`Engine::remove_app`] removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cleared {
    pub containers: usize,
    pub images: usize,
}

impl Engine {
    /// Makes the image `<name>:1` of a tar archive that holds its root, labelled as `app`'s. Its programs are in `/bin`.
    pub async fn import_base(&self, name: &str, app: &Name, archive: Vec<u8>) -> Result<()> {
        let changes = vec!["ENV PATH=/bin".to_owned(), format!("LABEL {}={app}", label::APP)];
        let mut options = CreateImageOptionsBuilder::new().from_src("-").repo(name).tag("1").build();
        options.changes = changes;
        let import = self.docker.create_image(Some(options), Some(body_full(Bytes::from(archive))), None);
        let done = answer(import.try_for_each(async |_| Ok(()))).await;
        done.map_err(|e| failure(format!("import image {name}:1"), e))
    }

    /// Removes every container, running or not, and every image with the label of `app`, images that others were built on
    /// included. What is gone already is no error.
    pub async fn remove_app(&self, app: &Name) -> Result<Cleared> {
        let mut cleared = Cleared::default();
        for container in instances::labelled(&self.docker, &[(label::APP, app.as_str())]).await? {
            let id = container.id.clone().unwrap_or_else(|| container_name(&container));
            instances::remove(&self.docker, &id).await?;
            cleared.containers += 1;
        }
        let mut left = self.images_of(app).await?;
        cleared.images = left.len();
        for _ in 0..PASSES {
            if left.is_empty() {
                return Ok(cleared);
            }
            for id in &left {
                self.force_out(id).await?;
            }
            left = self.images_of(app).await?;
        }
        Err(RuntimeError::failed(format!("remove the images of {app}"), format!("{} are still in use", left.len())))
    }

    /// Ids of all images with the label of `app`, steps of builds included.
    async fn images_of(&self, app: &Name) -> Result<Vec<String>> {
        let labels = vec![format!("{}={app}", label::APP)];
        let filters = HashMap::from([("label", labels)]);
        let options = ListImagesOptionsBuilder::new().all(true).filters(&filters).build();
        let images = answer(self.docker.list_images(Some(options))).await.map_err(|e| failure("list images", e))?;
        Ok(images.into_iter().map(|image| image.id).collect())
    }

    /// Removes an image with all its names, unless another was built on it.
    async fn force_out(&self, id: &str) -> Result<()> {
        let options = RemoveImageOptionsBuilder::new().force(true).build();
        match answer(self.docker.remove_image(id, Some(options), None)).await {
            Ok(_) => Ok(()),
            // 409: another image was built on it, and goes first.
            Err(error) if is_missing(&error) || super::errors::status(&error) == Some(409) => Ok(()),
            Err(error) => Err(failure(format!("remove image {id}"), error)),
        }
    }
}
