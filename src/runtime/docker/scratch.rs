//! Throw-away containers of [`Scratch`].
//!
//! Each carries the role [`ROLE`] and the process that made it, as process id and start time ([`OWNER`]): a container whose process is
//! gone is nobody's. (On a remote engine that other hosts use too, their processes look gone; such an engine is not shared.) The time
//! that a container may run is part of its command where Refit makes that up, and the engine removes it when it has ended.

use std::{collections::HashMap, io, pin::pin};

use async_trait::async_trait;
use bollard::{
    Docker,
    models::{ContainerCreateBody, HostConfig, HostConfigLogConfig},
    query_parameters::{DownloadFromContainerOptionsBuilder, UploadToContainerOptionsBuilder},
};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt, stream};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
};

use super::{
    Engine, container_name,
    errors::{answer, failure, found},
    instances,
    spec::refuse_docker_socket,
};
use crate::{
    log::TAIL_LINES,
    model::{DeploymentId, EnvironmentKey},
    runtime::{
        Instance, InstanceState, Job, Result, RuntimeError, Scratch, ScratchContainer, ScratchImage, ScratchNetwork,
        ScratchRun, ScratchSpec, label, scratch::LONGEST,
    },
};

/// The value of [`label::ROLE`].
const ROLE: &str = "scratch";

/// Label: process id and start time of the Refit that made it.
const OWNER: &str = "refit.owner";

/// Bytes on the way to the engine.
const PIPE: usize = 64 * 1024;

#[async_trait]
impl Scratch for Engine {
    async fn open(&self, spec: &ScratchSpec<'_>) -> Result<Box<dyn ScratchContainer>> {
        let body = body(&self.docker, spec).await?;
        let mut random = [0; 6];
        let operation = "make a scratch container";
        getrandom::fill(&mut random).map_err(|e| RuntimeError::failed(operation, e))?;
        let name = format!("refit-{}-{}-{}-{}", spec.key.app, spec.key.environment, spec.purpose, hex::encode(random));
        let made = instances::create(&self.docker, &name, &body).await?;
        let id = made.ok_or_else(|| RuntimeError::failed(operation, "its name is taken"))?;
        let made = Made { docker: self.docker.clone(), id, name, gone: false };
        if spec.run != ScratchRun::Nothing {
            let started = answer(self.docker.start_container(&made.id, None)).await;
            started.map_err(|e| failure(format!("start container {}", made.name), e))?;
        }
        Ok(Box::new(made))
    }

    async fn sweep_scratch(&self, key: &EnvironmentKey) -> Result<Vec<String>> {
        let wanted =
            [(label::APP, key.app.as_str()), (label::ENVIRONMENT, key.environment.as_str()), (label::ROLE, ROLE)];
        let mut swept = Vec::new();
        for container in instances::labelled(&self.docker, &wanted).await? {
            let owner = container.labels.as_ref().and_then(|labels| labels.get(OWNER));
            if owner.is_some_and(|owner| lives(owner)) {
                continue;
            }
            if let Some(id) = &container.id {
                instances::remove(&self.docker, id).await?;
                swept.push(container_name(&container));
            }
        }
        Ok(swept)
    }
}

async fn body(docker: &Docker, spec: &ScratchSpec<'_>) -> Result<ContainerCreateBody> {
    let binds: Vec<String> = spec.mounts.iter().map(bind).collect();
    for mount in &binds {
        refuse_docker_socket(mount)?;
    }
    let seconds = LONGEST.as_secs().to_string();
    let entrypoint = match spec.run {
        ScratchRun::Nothing => vec!["refit-never-started"],
        ScratchRun::Commands => vec!["/bin/sh", "-c", "exec sleep \"$0\"", &seconds],
        ScratchRun::Program(words) => words.to_vec(),
    };
    let labels = [
        (label::APP, spec.key.app.to_string()),
        (label::ENVIRONMENT, spec.key.environment.to_string()),
        (label::ROLE, ROLE.to_owned()),
        (OWNER, owner(std::process::id()).unwrap_or_default()),
    ];
    Ok(ContainerCreateBody {
        image: Some(image(docker, spec.image).await?),
        entrypoint: Some(entrypoint.into_iter().map(str::to_owned).collect()),
        // Not the image's, which would follow the entrypoint.
        cmd: Some(Vec::new()),
        env: Some(spec.env.iter().map(|(name, value)| format!("{name}={}", value.expose())).collect()),
        user: spec.user.map(str::to_owned),
        labels: Some(labels.map(|(name, value)| (name.to_owned(), value)).into()),
        host_config: Some(HostConfig {
            binds: (!binds.is_empty()).then_some(binds),
            network_mode: Some(match spec.network {
                ScratchNetwork::None => "none".to_owned(),
                ScratchNetwork::Host => "host".to_owned(),
                ScratchNetwork::Of(container) => format!("container:{container}"),
                ScratchNetwork::Named(network) => network.to_owned(),
            }),
            memory: Some(i64::try_from(spec.memory).unwrap_or(i64::MAX)),
            init: Some(spec.run != ScratchRun::Nothing),
            security_opt: Some(vec!["no-new-privileges".to_owned()]),
            log_config: Some(HostConfigLogConfig {
                typ: Some("json-file".to_owned()),
                config: Some(HashMap::from([("max-size".to_owned(), "1m".to_owned())])),
            }),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    })
}

async fn image(docker: &Docker, image: ScratchImage<'_>) -> Result<String> {
    let container = match image {
        ScratchImage::Named(name) => return Ok(name.to_owned()),
        ScratchImage::Of(container) => container,
    };
    let operation = format!("look at container {container}");
    let inspected = found(operation.as_str(), answer(docker.inspect_container(container, None)).await)?;
    let missing = || RuntimeError::Missing { what: "container", name: container.to_owned() };
    let inspected = inspected.ok_or_else(missing)?;
    inspected.image.ok_or_else(|| RuntimeError::failed(operation, "the engine does not tell its image"))
}

fn bind(mount: &crate::runtime::ScratchMount) -> String {
    format!("{}:{}:{}", mount.source, mount.target, if mount.read_only { "ro" } else { "rw" })
}

/// Process id and start time (field 22 of `/proc/<pid>/stat`, the 20th after the name): no later process has both.
fn owner(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let started = stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?;
    Some(format!("{pid}.{started}"))
}

fn lives(label: &str) -> bool {
    let pid = label.split('.').next().and_then(|pid| pid.parse().ok());
    pid.and_then(owner).is_some_and(|owner| owner == label)
}

/// A request's body. One whose sender goes before it said that this is all fails, so that half an archive is not taken for a whole one.
fn pieces(out: mpsc::Receiver<Option<Bytes>>) -> impl Stream<Item = io::Result<Bytes>> {
    stream::unfold(Some(out), |out| async move {
        let mut out = out?;
        match out.recv().await {
            Some(Some(piece)) => Some((Ok(piece), Some(out))),
            Some(None) => None,
            None => Some((Err(io::Error::other("it was given up")), None)),
        }
    })
}

/// A container that goes when this does.
#[derive(Debug)]
struct Made {
    docker: Docker,
    id: String,
    name: String,
    gone: bool,
}

impl Drop for Made {
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if !self.gone {
            let (docker, id) = (self.docker.clone(), std::mem::take(&mut self.id));
            runtime.spawn(async move { instances::remove(&docker, &id).await });
        }
    }
}

impl Made {
    fn as_instance(&self) -> Instance {
        Instance { id: self.id.clone(), name: self.name.clone(), deployment: DeploymentId(0) }
    }

    async fn receive(&self, path: &str, sink: &mut (dyn AsyncWrite + Send + Unpin)) -> Result<()> {
        let operation = format!("read {path} of container {}", self.name);
        let options = DownloadFromContainerOptionsBuilder::new().path(path).build();
        let mut pieces = self.docker.download_from_container(&self.id, Some(options));
        let unwritten = |e| RuntimeError::failed(operation.as_str(), format!("its output was not written: {e}"));
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|e| failure(operation.as_str(), e))?;
            sink.write_all(&piece).await.map_err(unwritten)?;
        }
        sink.flush().await.map_err(unwritten)
    }

    async fn send(&self, path: &str, source: &mut (dyn AsyncRead + Send + Unpin)) -> Result<()> {
        let operation = format!("write {path} of container {}", self.name);
        let (into, out) = mpsc::channel(4);
        let options = UploadToContainerOptionsBuilder::new().path(path).build();
        // The answer's head comes after the last byte: the job's cancellation is the limit.
        let docker = self.docker.clone().with_timeout(LONGEST);
        let mut sending =
            pin!(docker.upload_to_container(&self.id, Some(options), bollard::body_try_stream(pieces(out))));
        let feeding = async {
            loop {
                let mut piece = BytesMut::with_capacity(PIPE);
                let end = source.read_buf(&mut piece).await? == 0;
                // An engine that takes no more says why itself.
                if into.send((!end).then(|| piece.freeze())).await.is_err() || end {
                    return Ok::<_, io::Error>(());
                }
            }
        };
        let sent = tokio::select! {
            fed = feeding => {
                fed.map_err(|e| RuntimeError::failed(operation.as_str(), format!("what it was to get could not be read: {e}")))?;
                sending.await
            }
            sent = &mut sending => sent,
        };
        sent.map_err(|e| failure(operation, e))
    }
}

#[async_trait]
impl ScratchContainer for Made {
    fn name(&self) -> &str {
        &self.name
    }

    async fn ended(&self) -> Result<Option<(i64, Vec<String>)>> {
        let instance = self.as_instance();
        match instances::inspect(&self.docker, &instance).await? {
            InstanceState::Created | InstanceState::Running { .. } | InstanceState::Restarting { .. } => Ok(None),
            InstanceState::Missing => Ok(Some((-1, vec!["somebody removed it".to_owned()]))),
            InstanceState::Exited { code, .. } => {
                Ok(Some((code, instances::tail(&self.docker, &instance, TAIL_LINES).await?)))
            }
        }
    }

    async fn read_archive(&self, path: &str, sink: &mut (dyn AsyncWrite + Send + Unpin), job: &Job) -> Result<()> {
        tokio::select! {
            biased;
            () = job.cancel.cancelled() => Err(RuntimeError::Cancelled),
            read = self.receive(path, sink) => read,
        }
    }

    async fn write_archive(&self, path: &str, source: &mut (dyn AsyncRead + Send + Unpin), job: &Job) -> Result<()> {
        tokio::select! {
            biased;
            () = job.cancel.cancelled() => Err(RuntimeError::Cancelled),
            sent = self.send(path, source) => sent,
        }
    }

    async fn remove(mut self: Box<Self>) -> Result<()> {
        instances::remove(&self.docker, &self.id).await?;
        self.gone = true;
        Ok(())
    }
}
