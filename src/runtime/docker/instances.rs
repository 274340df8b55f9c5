//! The life of an instance: a container that is made, started, stopped, started again, and in the end removed.
//!
//! An instance is addressed by its name, which is computed and belongs to one deployment. Its id would be that of the container as it was
//! first made, and one that somebody removed by hand is made again when a deployment goes back to it.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use bollard::{
    Docker,
    errors::Error,
    exec::StartExecResults,
    models::{
        ContainerInspectResponse, ContainerStateStatusEnum, ContainerUpdateBody, ExecConfig, HealthStatusEnum,
        NetworkConnectRequest, RestartPolicy, RestartPolicyNameEnum,
    },
    query_parameters::{
        CreateContainerOptionsBuilder, InspectContainerOptionsBuilder, ListContainersOptionsBuilder,
        LogsOptionsBuilder, RemoveContainerOptionsBuilder, StopContainerOptionsBuilder, WaitContainerOptionsBuilder,
    },
};
use futures_util::{StreamExt, future::try_join_all};

use super::{
    container_name,
    errors::{answer, failure, found, is_missing, status},
    lines::{Lines, Tail},
    spec::{self, PORT, ROLE_APP, SPEC},
};
use crate::{
    config::Start,
    log::TAIL_LINES,
    model::{DeploymentId, EnvironmentKey},
    runtime::{
        CandidateSpec, ExecOutcome, Instance, InstanceState, Lacking, Result, RuntimeError, instance_name, label,
    },
};

/// Beyond the time a container has to stop: the engine kills it and cleans up.
const STOP_SLACK: Duration = Duration::from_secs(60);

pub(super) async fn prepare(docker: &Docker, spec: &CandidateSpec<'_>) -> Result<Instance> {
    let key = &spec.environment.key;
    let networks = &spec.environment.start.networks;
    // The engine would find a missing network only at the start, when the old version is already stopped.
    try_join_all(networks.iter().map(|network| network_exists(docker, network))).await?;
    let name = instance_name(key, spec.deployment);
    let body = spec::instance(spec)?;
    let instance = |id| Instance { id, name: name.clone(), deployment: spec.deployment };
    if let Some(id) = create(docker, &name, &body).await? {
        connect(docker, key, &id, networks.iter().skip(1)).await?;
        return Ok(instance(id));
    }
    let operation = format!("look at container {name}");
    let existing = found(operation, answer(docker.inspect_container(&name, None)).await)?;
    let Some(existing) = existing else {
        return Err(RuntimeError::failed(format!("create container {name}"), "it is just being removed"));
    };
    let id = existing.id.clone().unwrap_or_else(|| name.clone());
    if label_of(&existing, SPEC) == body.labels.as_ref().and_then(|labels| labels.get(SPEC)).map(String::as_str) {
        let joined = existing.network_settings.and_then(|n| n.networks).unwrap_or_default();
        connect(docker, key, &id, networks.iter().filter(|n| !joined.contains_key(*n))).await?;
        return Ok(instance(id));
    }
    let ran = existing.state.and_then(|s| s.status) != Some(ContainerStateStatusEnum::CREATED);
    if ran {
        let why = format!(
            "a container of that name has run already and is not what this deployment makes; if it is no longer needed, \
             remove it with `docker rm -f {name}`"
        );
        return Err(RuntimeError::failed(format!("create container {name}"), why));
    }
    remove(docker, &id).await?;
    let id = create(docker, &name, &body).await?.ok_or_else(|| {
        RuntimeError::failed(format!("create container {name}"), "its name was taken at the same time")
    })?;
    connect(docker, key, &id, networks.iter().skip(1)).await?;
    Ok(instance(id))
}

async fn network_exists(docker: &Docker, network: &str) -> Result<()> {
    match answer(docker.inspect_network(network, None)).await {
        Ok(_) => Ok(()),
        Err(error) if is_missing(&error) => Err(RuntimeError::Missing { what: "network", name: network.to_owned() }),
        Err(error) => Err(failure(format!("look for network {network}"), error)),
    }
}

/// The new container's id; `None` where the name is taken.
pub(super) async fn create(
    docker: &Docker,
    name: &str,
    body: &bollard::models::ContainerCreateBody,
) -> Result<Option<String>> {
    let options = CreateContainerOptionsBuilder::new().name(name).build();
    match answer(docker.create_container(Some(options), body.clone())).await {
        Ok(created) => Ok(Some(created.id)),
        Err(error) if status(&error) == Some(409) => Ok(None),
        Err(error) => Err(failure(format!("create container {name}"), error)),
    }
}

/// Joins further networks: before Engine 25 only one can be given at creation.
pub(super) async fn connect<'n>(
    docker: &Docker,
    key: &EnvironmentKey,
    id: &str,
    networks: impl Iterator<Item = &'n String>,
) -> Result<()> {
    for network in networks {
        let request =
            NetworkConnectRequest { container: id.to_owned(), endpoint_config: Some(spec::endpoint(key, network)) };
        let joined = answer(docker.connect_network(network, request)).await;
        joined.map_err(|e| failure(format!("join network {network}"), e))?;
    }
    Ok(())
}

pub(super) async fn stop(docker: &Docker, instance: &Instance, timeout: Duration) -> Result<()> {
    let seconds = timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0);
    let options = StopContainerOptionsBuilder::new().t(i32::try_from(seconds).unwrap_or(i32::MAX)).build();
    let limit = timeout.saturating_add(STOP_SLACK);
    let docker = docker.clone().with_timeout(limit);
    let operation = format!("stop container {}", instance.name);
    found(operation, docker.stop_container(&instance.name, Some(options)).await).map(|_| ())
}

pub(super) async fn inspect(docker: &Docker, instance: &Instance) -> Result<InstanceState> {
    let operation = format!("look at container {}", instance.name);
    let inspected = found(operation, answer(docker.inspect_container(&instance.name, None)).await)?;
    Ok(inspected.map_or(InstanceState::Missing, |container| state(&container)))
}

/// What the container wrote into its own layer; the engine does not tell the size of its log.
pub(super) async fn size(docker: &Docker, instance: &Instance) -> Result<u64> {
    let operation = format!("ask for the size of container {}", instance.name);
    let options = InspectContainerOptionsBuilder::new().size(true).build();
    let inspected = found(operation, answer(docker.inspect_container(&instance.name, Some(options))).await)?;
    Ok(inspected.and_then(|c| c.size_rw).and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0))
}

pub(super) async fn keep_up(docker: &Docker, instance: &Instance, keep: bool) -> Result<()> {
    let name = if keep { RestartPolicyNameEnum::UNLESS_STOPPED } else { RestartPolicyNameEnum::NO };
    let policy = RestartPolicy { name: Some(name), maximum_retry_count: None };
    let body = ContainerUpdateBody { restart_policy: Some(policy), ..ContainerUpdateBody::default() };
    let updated = answer(docker.update_container(&instance.name, body)).await;
    updated.map(drop).map_err(|e| failure(format!("set the restarts of container {}", instance.name), e))
}

/// The engine tells of the next exit only, and answers then.
pub(super) async fn wait_exit(docker: &Docker, instance: &Instance) -> Result<Option<i64>> {
    let options = WaitContainerOptionsBuilder::new().condition("next-exit").build();
    match docker.wait_container(&instance.name, Some(options)).next().await {
        Some(Ok(exit)) => Ok(Some(exit.status_code)),
        // bollard makes an error of every exit code but zero.
        Some(Err(Error::DockerContainerWaitError { code, .. })) => Ok(Some(code)),
        // The engine went away: that says nothing of the container.
        None => Err(super::errors::unavailable("it ended its answer early")),
        Some(Err(error)) => Err(failure(format!("wait for the end of container {}", instance.name), error)),
    }
}

fn state(container: &ContainerInspectResponse) -> InstanceState {
    let Some(state) = &container.state else { return InstanceState::Missing };
    let restarts = container.restart_count.and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
    let code = state.exit_code.unwrap_or(0);
    match state.status {
        Some(ContainerStateStatusEnum::CREATED) => InstanceState::Created,
        Some(
            ContainerStateStatusEnum::RUNNING | ContainerStateStatusEnum::PAUSED | ContainerStateStatusEnum::STOPPING,
        ) => {
            let health = match state.health.as_ref().and_then(|h| h.status) {
                Some(HealthStatusEnum::HEALTHY) => Some(true),
                Some(HealthStatusEnum::UNHEALTHY) => Some(false),
                _ => None,
            };
            InstanceState::Running { address: address(container), restarts, health }
        }
        Some(ContainerStateStatusEnum::RESTARTING) => InstanceState::Restarting { restarts, code },
        Some(ContainerStateStatusEnum::REMOVING) => InstanceState::Missing,
        _ => InstanceState::Exited { code, out_of_memory: state.oom_killed.unwrap_or(false) },
    }
}

/// Where this host reaches the container's port: at its published port, else at its address in a network.
fn address(container: &ContainerInspectResponse) -> Option<SocketAddr> {
    let port: u16 = label_of(container, PORT)?.parse().ok()?;
    let network = container.network_settings.as_ref()?;
    let host = container.host_config.as_ref();
    if host.and_then(|h| h.network_mode.as_deref()) == Some("host") {
        return Some((Ipv4Addr::LOCALHOST, port).into());
    }
    let bindings = network.ports.as_ref().and_then(|ports| ports.get(&format!("{port}/tcp"))?.as_ref());
    let published = bindings.into_iter().flatten().find_map(|binding| {
        let port = binding.host_port.as_ref()?.parse().ok()?;
        let ip: IpAddr = binding.host_ip.as_deref().filter(|ip| !ip.is_empty()).unwrap_or("0.0.0.0").parse().ok()?;
        let ip = match ip {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => std::net::Ipv6Addr::LOCALHOST.into(),
            other => other,
        };
        Some(SocketAddr::new(ip, port))
    });
    published.or_else(|| {
        let mut own = network.networks.iter().flat_map(|networks| networks.values());
        let ip: IpAddr = own.find_map(|endpoint| endpoint.ip_address.as_deref()?.parse().ok())?;
        Some(SocketAddr::new(ip, port))
    })
}

fn label_of<'c>(container: &'c ContainerInspectResponse, name: &str) -> Option<&'c str> {
    container.config.as_ref()?.labels.as_ref()?.get(name).map(String::as_str)
}

pub(super) async fn tail(docker: &Docker, instance: &Instance, limit: usize) -> Result<Vec<String>> {
    let options = LogsOptionsBuilder::new().stdout(true).stderr(true).tail(&limit.to_string()).build();
    let read = async {
        let (mut out, mut err, mut tail) = (Lines::default(), Lines::default(), Tail::new(limit));
        let mut pieces = docker.logs(&instance.name, Some(options));
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            let lines = if matches!(piece, bollard::container::LogOutput::StdErr { .. }) { &mut err } else { &mut out };
            lines.push(&piece.into_bytes(), |line| tail.push(line));
        }
        out.finish(|line| tail.push(line));
        err.finish(|line| tail.push(line));
        Ok(tail.into_vec())
    };
    answer(read).await.map_err(|e| failure(format!("read the log of container {}", instance.name), e))
}

pub(super) async fn exec(
    docker: &Docker,
    instance: &Instance,
    command: &[String],
    limit: Duration,
) -> Result<ExecOutcome> {
    let operation = format!("run `{}` in container {}", command.join(" "), instance.name);
    let config = ExecConfig {
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        cmd: Some(command.to_vec()),
        ..ExecConfig::default()
    };
    let created = answer(docker.create_exec(&instance.name, config)).await;
    let id = created.map_err(|e| failure(&operation, e))?.id;
    match tokio::time::timeout(limit, follow_exec(docker, &id)).await {
        Ok(outcome) => outcome.map_err(|e| failure(operation, e)),
        Err(_) => {
            kill_exec(docker, &id).await;
            Err(RuntimeError::failed(operation, format!("it did not end within {limit:?}")))
        }
    }
}

async fn follow_exec(docker: &Docker, id: &str) -> std::result::Result<ExecOutcome, Error> {
    let (mut lines, mut tail) = (Lines::default(), Tail::new(TAIL_LINES));
    if let StartExecResults::Attached { mut output, .. } = docker.start_exec(id, None).await? {
        while let Some(piece) = output.next().await {
            lines.push(&piece?.into_bytes(), |line| tail.push(line));
        }
    }
    lines.finish(|line| tail.push(line));
    let code = docker.inspect_exec(id).await?.exit_code.unwrap_or(-1);
    Ok(ExecOutcome { code, output: tail.into_vec() })
}

/// Ends a command that is out of time, as far as that is possible: the engine has no call for it, but tells the process id on its
/// host. Where this is that host, a shell in the container is asked to kill the process (which needs no right but
/// Docker's); elsewhere, or without a shell, the command runs on, and ends with its container.
async fn kill_exec(docker: &Docker, exec: &str) {
    let Ok(inspected) = answer(docker.inspect_exec(exec)).await else { return };
    let Some(pid) = inspected.pid.filter(|_| inspected.running == Some(true)) else { return };
    let Some(container) = inspected.container_id.as_deref().filter(|id| !id.is_empty()) else { return };
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    if !read("cgroup").contains(container) {
        return;
    }
    let status = read("status");
    let inner = status.lines().find_map(|line| line.strip_prefix("NSpid:")?.split_whitespace().next_back());
    let Some(inner) = inner.and_then(|pid| pid.parse::<u32>().ok()) else { return };
    // The process leads a session and group of its own, so the group is what it started.
    let script = format!("kill -9 -{inner} || kill -9 {inner}");
    let config = ExecConfig {
        cmd: Some(vec!["/bin/sh".to_owned(), "-c".to_owned(), script]),
        user: Some("0".to_owned()),
        ..ExecConfig::default()
    };
    if let Ok(killer) = answer(docker.create_exec(container, config)).await {
        let detached = bollard::exec::StartExecOptions { detach: true, ..Default::default() };
        // Best effort by nature; the caller's error says that the command did not end.
        let _ = answer(docker.start_exec(&killer.id, Some(detached))).await;
    }
}

/// Removes a container, running or not, with its anonymous volumes; named ones stay.
pub(super) async fn remove(docker: &Docker, id: &str) -> Result<()> {
    let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
    match answer(docker.remove_container(id, Some(options))).await {
        Ok(()) => Ok(()),
        // 409: somebody else's removal of it is under way.
        Err(error) if matches!(status(&error), Some(404 | 409)) => Ok(()),
        Err(error) => Err(failure(format!("remove container {id}"), error)),
    }
}

pub(super) async fn all(docker: &Docker, key: &EnvironmentKey) -> Result<Vec<Instance>> {
    let wanted =
        [(label::APP, key.app.as_str()), (label::ENVIRONMENT, key.environment.as_str()), (label::ROLE, ROLE_APP)];
    let mut instances: Vec<Instance> = labelled(docker, &wanted)
        .await?
        .into_iter()
        .filter_map(|container| {
            let name = container_name(&container);
            let deployment = container.labels.as_ref()?.get(label::DEPLOYMENT)?.parse().ok()?;
            Some(Instance { id: container.id?, name, deployment: DeploymentId(deployment) })
        })
        .collect();
    instances.sort_by_key(|instance| instance.deployment);
    Ok(instances)
}

/// Every container, running or not, with these labels.
pub(super) async fn labelled(
    docker: &Docker,
    labels: &[(&str, &str)],
) -> Result<Vec<bollard::models::ContainerSummary>> {
    let wanted: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let options = ListContainersOptionsBuilder::new().all(true).filters(&HashMap::from([("label", wanted)])).build();
    answer(docker.list_containers(Some(options))).await.map_err(|e| failure("list containers", e))
}

/// What the engine says of it, whole.
pub(super) async fn definition(docker: &Docker, instance: &Instance) -> Result<Option<serde_json::Value>> {
    let operation = format!("look at container {}", instance.name);
    let inspected = found(&operation, answer(docker.inspect_container(&instance.name, None)).await)?;
    inspected.map(|c| serde_json::to_value(c).map_err(|e| RuntimeError::failed(operation, e))).transpose()
}

/// Networks, named volumes and directories of the host that `start` names and that are not there.
pub(super) async fn lacking(docker: &Docker, start: &Start) -> Result<Lacking> {
    let mut lacking = Lacking::default();
    for network in &start.networks {
        match network_exists(docker, network).await {
            Ok(()) => {}
            Err(RuntimeError::Missing { .. }) => lacking.networks.push(network.clone()),
            Err(error) => return Err(error),
        }
    }
    for volume in &start.volumes {
        let source = volume.split(':').next().unwrap_or_default();
        let there = if source.starts_with('/') {
            std::path::Path::new(source).exists()
        } else {
            let looked = answer(docker.inspect_volume(source)).await;
            found(format!("look for volume {source}"), looked)?.is_some()
        };
        if !there {
            lacking.places.push(source.to_owned());
        }
    }
    Ok(lacking)
}

pub(super) async fn is_running(docker: &Docker, name: &str) -> Result<bool> {
    let inspected = found(format!("look at container {name}"), answer(docker.inspect_container(name, None)).await)?;
    let state = inspected.and_then(|container| container.state);
    Ok(state.is_some_and(|s| s.status == Some(ContainerStateStatusEnum::RUNNING)))
}

/// The address of a running container that may not be ours: that of one of its networks, or this host's where it uses the host's own.
pub(super) async fn address_of(docker: &Docker, name: &str) -> Result<IpAddr> {
    let operation = format!("look at container {name}");
    let inspected = found(&operation, answer(docker.inspect_container(name, None)).await)?;
    let container =
        inspected.ok_or_else(|| RuntimeError::Missing { what: "container", name: name.to_owned() })?;
    let state = container.state.and_then(|state| state.status);
    if state != Some(ContainerStateStatusEnum::RUNNING) {
        return Err(RuntimeError::failed(operation, "it does not run: start it"));
    }
    let networks = container.network_settings.and_then(|network| network.networks).unwrap_or_default();
    if networks.contains_key("host") {
        return Ok(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    let mut addresses = networks.values().filter_map(|endpoint| endpoint.ip_address.as_deref()?.parse().ok());
    addresses.next().ok_or_else(|| RuntimeError::failed(operation, "it has no address: connect it to a network"))
}
