//! What a container is made of: settings → the engine's create request, without talking to it.
//!
//! Each container carries, besides the labels that say whose it is, a hash of the whole request ([`SPEC`]): a container that is found
//! by its computed name is the wanted one exactly if the hashes are equal.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Component, Path, PathBuf},
};

use bollard::models::{
    ContainerCreateBody, EndpointSettings, HostConfig, HostConfigLogConfig, NetworkingConfig, PortBinding,
    RestartPolicy, RestartPolicyNameEnum,
};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{
    config::Environment,
    model::{DeploymentId, EnvironmentKey},
    runtime::{CandidateSpec, OneOff, Result, RuntimeError, label},
    secret::Secret,
};

/// Label: hash of the create request.
pub(super) const SPEC: &str = "refit.spec";

/// Label: the port inside the container.
pub(super) const PORT: &str = "refit.port";

/// The value of [`label::ROLE`] of an instance.
pub(super) const ROLE_APP: &str = "app";

/// Where a commit's tree is in a test's container.
pub(super) const TREE: &str = "/src";

/// Networks of the engine itself: containers there have no names for each other.
const BUILT_IN_NETWORKS: [&str; 3] = ["bridge", "host", "none"];

/// The create request of an instance.
pub(super) fn instance(spec: &CandidateSpec<'_>) -> Result<ContainerCreateBody> {
    let environment = spec.environment;
    let start = &environment.start;
    let port = start.container_port.or(environment.port);
    let mut host = host(environment, true, &start.networks)?;
    if let (Some(public), Some(inner)) = (environment.port, port) {
        let binding = PortBinding { host_ip: Some(environment.bind.to_string()), host_port: Some(public.to_string()) };
        host.port_bindings = Some(HashMap::from([(tcp(inner), Some(vec![binding]))]));
    }
    host.memory = start.memory.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
    // Whole billionths of a CPU; a configuration that names more than the host has is the engine's to refuse.
    #[expect(clippy::cast_possible_truncation, reason = "`as` saturates, and the engine refuses what is too much")]
    let nano_cpus = start.cpus.map(|cpus| (cpus * 1e9) as i64);
    host.nano_cpus = nano_cpus;
    host.init = Some(start.init);
    host.log_config = Some(HostConfigLogConfig {
        typ: Some("json-file".to_owned()),
        config: Some(HashMap::from([
            ("max-size".to_owned(), start.log.max_size.to_string()),
            ("max-file".to_owned(), start.log.max_file.to_string()),
        ])),
    });
    let restart = RestartPolicy { name: Some(RestartPolicyNameEnum::UNLESS_STOPPED), maximum_retry_count: None };
    host.restart_policy = Some(restart);
    let mut labels = labels(&environment.key, spec.deployment, ROLE_APP);
    labels.insert("org.opencontainers.image.revision".to_owned(), spec.commit.to_string());
    if let Some(port) = port {
        labels.insert(PORT.to_owned(), port.to_string());
    }
    let mut body = ContainerCreateBody {
        image: Some(spec.artefact.to_owned()),
        cmd: start.command.clone(),
        env: Some(env(spec.env, spec.secrets)),
        user: start.user.clone(),
        exposed_ports: port.map(|port| vec![tcp(port)]),
        host_config: Some(host),
        networking_config: first_endpoint(&environment.key, &start.networks),
        labels: Some(labels),
        ..ContainerCreateBody::default()
    };
    let hash = fingerprint(&body)?;
    body.labels.get_or_insert_default().insert(SPEC.to_owned(), hash);
    Ok(body)
}

/// The create request of a one-off: its output goes to whoever is attached and is not kept by the engine.
pub(super) fn one_off(one_off: &OneOff<'_>) -> Result<ContainerCreateBody> {
    let environment = one_off.environment;
    let mut host = host(environment, one_off.with_volumes, one_off.networks)?;
    host.init = Some(true);
    host.log_config = Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None });
    Ok(ContainerCreateBody {
        image: Some(one_off.artefact.to_owned()),
        entrypoint: Some(vec!["/bin/sh".to_owned(), "-c".to_owned()]),
        cmd: Some(vec![one_off.run.to_owned()]),
        env: Some(env(one_off.env, one_off.secrets)),
        // What writes to the app's volumes does it as the app's user.
        user: environment.start.user.clone().filter(|_| one_off.with_volumes),
        working_dir: one_off.tree.map(|_| TREE.to_owned()),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        host_config: Some(host),
        labels: Some(labels(&environment.key, one_off.deployment, one_off.role)),
        ..ContainerCreateBody::default()
    })
}

/// How a container is known in a network of its own: beside its name, which changes with each deployment, by
/// `<app>-<environment>`, which does not.
pub(super) fn endpoint(key: &EnvironmentKey, network: &str) -> EndpointSettings {
    let aliases = (!BUILT_IN_NETWORKS.contains(&network)).then(|| vec![format!("{}-{}", key.app, key.environment)]);
    EndpointSettings { aliases, ..EndpointSettings::default() }
}

fn first_endpoint(key: &EnvironmentKey, networks: &[String]) -> Option<NetworkingConfig> {
    let first = networks.first()?;
    let endpoints = HashMap::from([(first.clone(), endpoint(key, first))]);
    Some(NetworkingConfig { endpoints_config: Some(endpoints) })
}

fn host(environment: &Environment, with_volumes: bool, networks: &[String]) -> Result<HostConfig> {
    let volumes = if with_volumes { environment.start.volumes.as_slice() } else { &[] };
    for volume in volumes {
        refuse_docker_socket(volume)?;
    }
    Ok(HostConfig {
        binds: (!volumes.is_empty()).then(|| volumes.to_vec()),
        network_mode: networks.first().cloned(),
        ..HostConfig::default()
    })
}

/// With the engine's socket a container owns the host, so it is never mounted, nor a directory that holds it.
pub(super) fn refuse_docker_socket(volume: &str) -> Result<()> {
    let source = volume.split(':').next().unwrap_or_default();
    if !source.starts_with('/') {
        return Ok(());
    }
    let mut plain = PathBuf::new();
    for part in Path::new(source).components() {
        match part {
            Component::ParentDir => drop(plain.pop()),
            Component::CurDir => {}
            other => plain.push(other),
        }
    }
    let holds = ["/var/run/docker.sock", "/run/docker.sock"].iter().any(|socket| Path::new(socket).starts_with(&plain));
    if holds || plain.file_name().is_some_and(|name| name == "docker.sock") {
        let why = "it would give the app Docker's socket, and with it the whole host; mount a narrower directory";
        return Err(RuntimeError::failed(format!("mount volume {volume}"), why));
    }
    Ok(())
}

pub(super) fn labels(key: &EnvironmentKey, deployment: DeploymentId, role: &str) -> HashMap<String, String> {
    let labels = [
        (label::APP, key.app.to_string()),
        (label::ENVIRONMENT, key.environment.to_string()),
        (label::DEPLOYMENT, deployment.to_string()),
        (label::ROLE, role.to_owned()),
    ];
    labels.map(|(name, value)| (name.to_owned(), value)).into()
}

/// `NAME=value`, a secret before a plain value of the same name.
fn env(plain: &BTreeMap<String, String>, secrets: &BTreeMap<String, Secret>) -> Vec<String> {
    let plain = plain.iter().filter(|(name, _)| !secrets.contains_key(*name));
    let plain = plain.map(|(name, value)| format!("{name}={value}"));
    plain.chain(secrets.iter().map(|(name, value)| format!("{name}={}", value.expose()))).collect()
}

fn tcp(port: u16) -> String {
    format!("{port}/tcp")
}

fn fingerprint(body: &ContainerCreateBody) -> Result<String> {
    let value = serde_json::to_value(body).map_err(|e| RuntimeError::failed("describe the container", e))?;
    let mut text = String::new();
    canonical(&value, &mut text);
    Ok(hex::encode(Sha256::digest(text)))
}

/// JSON with sorted keys, whatever order the maps had.
fn canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            out.push('{');
            for (key, value) in map.iter().collect::<BTreeMap<_, _>>() {
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push(':');
                canonical(value, out);
                out.push(',');
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for item in items {
                canonical(item, out);
                out.push(',');
            }
            out.push(']');
        }
        plain => out.push_str(&plain.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_socket_is_never_mounted() {
        for bad in [
            "/var/run/docker.sock:/var/run/docker.sock",
            "/run/docker.sock:/x:ro",
            "/run:/host/run",
            "/:/host",
            "/var/lib/../run/./docker.sock:/d",
            "/srv/docker.sock:/d",
        ] {
            assert!(refuse_docker_socket(bad).is_err(), "{bad}");
        }
        for good in ["uploads:/app/uploads", "/srv/data:/data:ro", "/var/running:/x"] {
            assert!(refuse_docker_socket(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn a_secret_takes_the_place_of_a_plain_value() {
        let plain = BTreeMap::from([("A".to_owned(), "1".to_owned()), ("B".to_owned(), "2".to_owned())]);
        let secrets = BTreeMap::from([("B".to_owned(), Secret::new("s"))]);
        assert_eq!(env(&plain, &secrets), ["A=1", "B=s"]);
    }
}
