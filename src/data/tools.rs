//! Where a database's own programs run.
//!
//! | configured | programs run in |
//! |---|---|
//! | `container` | the database's container, over the exec API |
//! | `url`, `tools = "host"` | this host: those found on `PATH` |
//! | `url`, `tools = "<image>"` | a throw-away container of that image, in the host's network |

use super::{DataError, Reach};
use crate::{
    config::DatabaseTools,
    model::EnvironmentKey,
    runtime::{
        ContainerExec, Job, ScratchContainer, ScratchImage, ScratchNetwork, ScratchRun, ScratchSpec, host::HostExec,
    },
};

/// Of a container for clients alone, in bytes.
const MEMORY: u64 = 512 * 1024 * 1024;

/// A place that has the programs.
#[derive(Debug)]
pub(super) struct Tools<'a> {
    exec: Exec<'a>,
    container: String,
    /// Goes with the tools.
    scratch: Option<Box<dyn ScratchContainer>>,
}

#[derive(Debug)]
enum Exec<'a> {
    Containers(&'a dyn ContainerExec),
    Host(HostExec),
}

impl<'a> Tools<'a> {
    /// # Errors
    /// [`DataError::Dump`] that says what is out of reach.
    pub fn in_container(container: &str, reach: Reach<'a>) -> Result<Self, DataError> {
        Ok(Self::beside(reach.containers(container)?, container))
    }

    /// In a container that runs, and whose end is another's business.
    pub fn beside(exec: &'a dyn ContainerExec, container: &str) -> Self {
        Self { exec: Exec::Containers(exec), container: container.to_owned(), scratch: None }
    }

    /// In a throw-away container, which goes with these.
    pub fn of_scratch(exec: &'a dyn ContainerExec, scratch: Box<dyn ScratchContainer>) -> Self {
        let container = scratch.name().to_owned();
        Self { exec: Exec::Containers(exec), container, scratch: Some(scratch) }
    }

    /// For a server that is found by a URL. `purpose` is part of a container's name.
    ///
    /// # Errors
    /// [`DataError::Dump`] that says what is out of reach.
    pub async fn for_url(
        tools: &DatabaseTools,
        purpose: &str,
        key: &EnvironmentKey,
        reach: Reach<'a>,
    ) -> Result<Self, DataError> {
        let image = match tools {
            DatabaseTools::Host => {
                return Ok(Self { exec: Exec::Host(HostExec), container: "this host".to_owned(), scratch: None });
            }
            DatabaseTools::Image(image) => image,
        };
        let out_of_reach = || DataError::dump(format!("image `{image}` is out of reach: there is no Docker Engine"));
        let (scratch, exec) = reach.scratch.zip(reach.containers).ok_or_else(out_of_reach)?;
        let spec = ScratchSpec {
            key,
            purpose,
            image: ScratchImage::Named(image),
            run: ScratchRun::Commands,
            env: &[],
            user: None,
            mounts: &[],
            network: ScratchNetwork::Host,
            memory: MEMORY,
        };
        Ok(Self::of_scratch(exec, scratch.open(&spec).await?))
    }

    pub fn exec(&self) -> &dyn ContainerExec {
        match &self.exec {
            Exec::Containers(exec) => *exec,
            Exec::Host(exec) => exec,
        }
    }

    /// For [`Self::exec`], and for people.
    pub fn container(&self) -> &str {
        &self.container
    }

    pub fn scratch(&self) -> Option<&dyn ScratchContainer> {
        self.scratch.as_deref()
    }

    /// Removes what was made for them.
    pub async fn close(self, job: &Job) {
        if let Some(scratch) = self.scratch
            && let Err(error) = scratch.remove().await
        {
            job.log.line(format!("warning: {error}"));
        }
    }
}
