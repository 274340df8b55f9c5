//! One-off containers: a test suite, a migration.
//!
//! The container is made, filled with the commit's tree if asked, attached to, and only then started, so that its first line is not lost.
//! Whatever happens after it was made, it is removed before the call returns; if the call itself is dropped, its guard removes
//! it in the background, and what even that misses (the process was killed) carries labels for [`sweep`].

use bollard::{
    Docker,
    container::LogOutput,
    query_parameters::{
        AttachContainerOptionsBuilder, DownloadFromContainerOptionsBuilder, UploadToContainerOptionsBuilder,
    },
};
use futures_util::StreamExt;
use std::{io::Read, time::Duration};

use super::{
    container_name,
    errors::{answer, failure, is_missing},
    instances,
    lines::{Lines, Tail},
    spec::{self, ROLE_APP, TREE},
};
use crate::{
    git::context::tree_tar,
    log::TAIL_LINES,
    model::{DeploymentId, EnvironmentKey},
    runtime::{Job, OneOff, OneOffResult, Result, RuntimeError, instance_name, label},
};

/// The largest file that is brought back, in bytes.
const MAX_COLLECTED: u64 = 32 * 1024 * 1024;

/// The head of the answer to an upload comes after its last byte; the job's cancellation is the shorter limit.
const UPLOAD_LIMIT: Duration = Duration::from_secs(3600);

pub(super) async fn run(docker: &Docker, one_off: &OneOff<'_>, job: &Job) -> Result<OneOffResult> {
    if let Some(path) = one_off.collect
        && (path.starts_with('/') || path.split('/').any(|part| part == ".."))
    {
        return Err(RuntimeError::failed(format!("collect `{path}`"), "it must lie below the working directory"));
    }
    if job.cancel.is_cancelled() {
        return Err(RuntimeError::Cancelled);
    }
    let name = format!("{}-{}", instance_name(&one_off.environment.key, one_off.deployment), one_off.role);
    let container = Container::create(docker, &name, one_off).await?;
    let result = tokio::select! {
        biased;
        () = job.cancel.cancelled() => Err(RuntimeError::Cancelled),
        result = container.carry_out(one_off, job) => result,
    };
    let removed = container.remove().await;
    // A container that stays would only be in the way: its leftover is swept, the result counts.
    if let Err(error) = removed {
        job.log.line(format!("warning: {error}"));
    }
    result
}

/// A one-off's container, removed when this goes.
struct Container {
    docker: Docker,
    id: String,
    name: String,
    gone: bool,
}

impl Drop for Container {
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if !self.gone {
            let (docker, id) = (self.docker.clone(), std::mem::take(&mut self.id));
            runtime.spawn(async move { instances::remove(&docker, &id).await });
        }
    }
}

impl Container {
    /// Makes it. A leftover of an earlier try at the same deployment gives way.
    async fn create(docker: &Docker, name: &str, one_off: &OneOff<'_>) -> Result<Self> {
        let body = spec::one_off(one_off)?;
        let mut id = instances::create(docker, name, &body).await?;
        if id.is_none() {
            instances::remove(docker, name).await?;
            id = instances::create(docker, name, &body).await?;
        }
        let taken = || RuntimeError::failed(format!("create container {name}"), "its name is taken");
        Ok(Self { docker: docker.clone(), id: id.ok_or_else(taken)?, name: name.to_owned(), gone: false })
    }

    async fn remove(mut self) -> Result<()> {
        instances::remove(&self.docker, &self.id).await?;
        self.gone = true;
        Ok(())
    }

    async fn carry_out(&self, one_off: &OneOff<'_>, job: &Job) -> Result<OneOffResult> {
        let networks = one_off.networks.iter().skip(1);
        instances::connect(&self.docker, &one_off.environment.key, &self.id, networks).await?;
        if let Some((mirror, commit)) = one_off.tree {
            let tar = tree_tar(mirror, commit, TREE.trim_start_matches('/'));
            let options = UploadToContainerOptionsBuilder::new().path("/").build();
            let docker = self.docker.clone().with_timeout(UPLOAD_LIMIT);
            let sent = docker.upload_to_container(&self.id, Some(options), bollard::body_try_stream(tar)).await;
            sent.map_err(|e| failure(format!("copy the tree to container {}", self.name), e))?;
        }
        let stdout_tail = self.start_and_follow(job).await?;
        let code = self.exit_code().await?;
        let collected = match one_off.collect {
            Some(path) => self.collect(path, one_off.tree.is_some(), job).await?,
            None => None,
        };
        Ok(OneOffResult { code, stdout_tail, collected })
    }

    /// Runs it to the end of its output. The last lines of its standard output.
    async fn start_and_follow(&self, job: &Job) -> Result<Vec<String>> {
        let options = AttachContainerOptionsBuilder::new().stdout(true).stderr(true).stream(true).build();
        let attached = answer(self.docker.attach_container(&self.id, Some(options))).await;
        let mut output = attached.map_err(|e| failure(format!("attach to container {}", self.name), e))?.output;
        let started = answer(self.docker.start_container(&self.id, None)).await;
        started.map_err(|e| failure(format!("start container {}", self.name), e))?;
        let (mut out, mut err, mut tail) = (Lines::default(), Lines::default(), Tail::new(TAIL_LINES));
        let mut stdout_line = |line: &str| {
            job.log.line(line);
            tail.push(line);
        };
        while let Some(piece) = output.next().await {
            match piece.map_err(|e| failure(format!("follow container {}", self.name), e))? {
                LogOutput::StdErr { message } => err.push(&message, |line| job.log.line(line)),
                other => out.push(&other.into_bytes(), &mut stdout_line),
            }
        }
        out.finish(&mut stdout_line);
        err.finish(|line| job.log.line(line));
        Ok(tail.into_vec())
    }

    async fn exit_code(&self) -> Result<i64> {
        let ended = self.docker.wait_container(&self.id, None).next().await;
        match ended {
            Some(Ok(ended)) => Ok(ended.status_code),
            // bollard's way to tell any code but 0.
            Some(Err(bollard::errors::Error::DockerContainerWaitError { code, error })) if error.is_empty() => Ok(code),
            Some(Err(error)) => Err(failure(format!("wait for container {}", self.name), error)),
            None => Err(RuntimeError::failed(format!("wait for container {}", self.name), "the engine gave no answer")),
        }
    }

    async fn collect(&self, path: &str, in_tree: bool, job: &Job) -> Result<Option<Vec<u8>>> {
        let dir = if in_tree { TREE.to_owned() } else { self.working_dir().await? };
        let operation = format!("collect `{path}` from container {}", self.name);
        let options = DownloadFromContainerOptionsBuilder::new().path(&format!("{dir}/{path}")).build();
        let mut pieces = self.docker.download_from_container(&self.id, Some(options));
        let mut tar = Vec::new();
        // The archive's own blocks come on top of the file.
        let limit = MAX_COLLECTED + 64 * 1024;
        while let Some(piece) = pieces.next().await {
            match piece {
                Ok(piece) => tar.extend_from_slice(&piece),
                Err(error) if is_missing(&error) => return Ok(None),
                Err(error) => return Err(failure(operation, error)),
            }
            if tar.len() as u64 > limit {
                return Err(RuntimeError::failed(operation, "it is larger than 32 MiB"));
            }
        }
        let file = only_file(&tar).map_err(|e| RuntimeError::failed(operation, e))?;
        if file.is_none() {
            job.log.line(format!("warning: `{path}` is not a regular file and is not collected"));
        }
        Ok(file)
    }

    async fn working_dir(&self) -> Result<String> {
        let inspected = answer(self.docker.inspect_container(&self.id, None)).await;
        let inspected = inspected.map_err(|e| failure(format!("look at container {}", self.name), e))?;
        let dir = inspected.config.and_then(|c| c.working_dir).unwrap_or_default();
        Ok(dir.trim_end_matches('/').to_owned())
    }
}

/// The contents of an archive's first entry, where that is a file.
fn only_file(tar: &[u8]) -> std::io::Result<Option<Vec<u8>>> {
    let mut archive = tar::Archive::new(tar);
    let Some(entry) = archive.entries()?.next().transpose()? else { return Ok(None) };
    if !entry.header().entry_type().is_file() {
        return Ok(None);
    }
    let mut contents = Vec::new();
    entry.take(MAX_COLLECTED).read_to_end(&mut contents)?;
    Ok(Some(contents))
}

/// Removes every container of a deployment but its instance. Their names.
pub(super) async fn sweep(docker: &Docker, key: &EnvironmentKey, deployment: DeploymentId) -> Result<Vec<String>> {
    let id = deployment.to_string();
    let wanted =
        [(label::APP, key.app.as_str()), (label::ENVIRONMENT, key.environment.as_str()), (label::DEPLOYMENT, &id)];
    let mut swept = Vec::new();
    for container in instances::labelled(docker, &wanted).await? {
        let role = container.labels.as_ref().and_then(|labels| labels.get(label::ROLE)).map(String::as_str);
        // Without a role it is not one of ours: an image's labels are inherited by what others run from it.
        if role.is_none_or(|role| role == ROLE_APP) {
            continue;
        }
        if let Some(id) = &container.id {
            instances::remove(docker, id).await?;
            swept.push(container_name(&container));
        }
    }
    Ok(swept)
}
