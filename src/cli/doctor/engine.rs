//! Docker, and the containers that the configuration names.

use std::collections::BTreeMap;

use super::Finding;
use crate::{
    config::{BackupSource, Config, RuntimeKind},
    runtime::{
        Runtime,
        docker::{DockerRuntime, Engine},
    },
};

pub async fn check(config: &Config, docker_host: Option<&str>) -> Vec<Finding> {
    let containers = containers(config);
    let builds = config.environments().any(|e| e.start.runtime == RuntimeKind::Docker);
    if !builds && containers.is_empty() {
        return vec![Finding::ok("docker", "not needed: no environment runs on it")];
    }
    let fix =
        "start it (`systemctl start docker`), and let this user use it (`usermod -aG docker USER`, then log in again)";
    let runtime = match Engine::connect(docker_host) {
        Ok(engine) => DockerRuntime::new(engine),
        Err(error) => return vec![Finding::fail("docker", error.to_string(), "check DOCKER_HOST")],
    };
    let info = match runtime.check().await {
        Ok(info) => info,
        Err(error) => return vec![Finding::fail("docker", error.to_string(), fix)],
    };
    let mut findings = vec![Finding::ok("docker", format!("{} {} ({})", info.kind, info.version, info.detail))];
    for (name, wanted_by) in containers {
        let check = format!("container {name}");
        findings.push(match runtime.is_running(&name).await {
            Ok(true) => Finding::ok(check, format!("runs, for {wanted_by}")),
            Ok(false) => Finding::fail(
                check,
                format!("does not run, and {wanted_by} needs it"),
                format!("`docker start {name}`"),
            ),
            Err(error) => Finding::fail(check, error.to_string(), fix),
        });
    }
    findings
}

/// Containers by name, and what needs each.
fn containers(config: &Config) -> BTreeMap<String, String> {
    let mut wanted: BTreeMap<String, String> = BTreeMap::new();
    let mut note = |name: &str, by: String| {
        wanted.entry(name.to_owned()).and_modify(|all| *all = format!("{all}, {by}")).or_insert(by);
    };
    for environment in config.environments() {
        for backup in &environment.backups {
            let container = match &backup.source {
                BackupSource::Postgres { container, .. } | BackupSource::Mysql { container, .. } => Some(container),
                BackupSource::Command(command) => command.container.as_ref(),
                _ => None,
            };
            if let Some(container) = container {
                note(container, format!("the backup {} of {}", backup.name, environment.key));
            }
        }
        for name in &environment.requires {
            note(name, environment.key.to_string());
        }
    }
    wanted
}
