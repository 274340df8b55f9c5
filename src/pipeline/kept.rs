//! What a release keeps of its settings, so that going back to it runs the old version as it ran: `start` with its environment and
//! secrets, `smoke`, and the public address.
//!
//! One file a release, `<state>/releases/<app>/<environment>/<deployment>/environment.json`: mode 0600 in a 0700 directory, the only place where
//! secrets rest on disk. Written by the tag stage, removed with the release. A file of the first version has only environment and
//! secrets; everything else is then as configured now, but for the gate, which there was not.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{World, state};
use crate::{
    config::{Environment, Smoke, Start, Strategy},
    files,
    model::{DeploymentId, EnvironmentKey},
    secret::Secret,
};

const VERSION: u32 = 2;

const FILE: &str = "environment.json";

#[derive(Debug, Serialize, Deserialize)]
pub struct Kept {
    version: u32,
    pub env: BTreeMap<String, String>,
    secrets: BTreeMap<String, String>,
    /// Since version 2.
    #[serde(default)]
    settings: Option<Settings>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Settings {
    port: Option<u16>,
    bind: IpAddr,
    start: Start,
    smoke: Smoke,
}

impl Kept {
    fn of(environment: &Environment) -> Self {
        let start = &environment.start;
        Self {
            version: VERSION,
            env: start.env.clone(),
            secrets: start.secrets.iter().map(|(k, v)| (k.clone(), v.expose().to_owned())).collect(),
            settings: Some(Settings {
                port: environment.port,
                bind: environment.bind,
                start: start.clone(),
                smoke: environment.smoke.clone(),
            }),
        }
    }

    /// The names of the secrets, never their values.
    pub fn secret_names(&self) -> impl Iterator<Item = &str> {
        self.secrets.keys().map(String::as_str)
    }

    /// `today`, with everything that this release kept.
    pub fn applied_to(self, today: &Environment) -> Environment {
        let mut environment = today.clone();
        if let Some(settings) = self.settings {
            environment.port = settings.port;
            environment.bind = settings.bind;
            environment.start = settings.start;
            environment.smoke = settings.smoke;
        } else {
            // When that version wrote it there was no gate, whatever is chosen for the environment today.
            environment.start.strategy = Strategy::Recreate;
            environment.start.strategy_reason = None;
            environment.start.gate = None;
        }
        environment.start.env = self.env;
        environment.start.secrets = self.secrets.into_iter().map(|(k, v)| (k, Secret::new(v))).collect();
        environment
    }
}

/// Where a release keeps its settings.
pub fn dir(world: &World, key: &EnvironmentKey, deployment: DeploymentId) -> PathBuf {
    place(&world.config.server.state_dir, key, deployment)
}

fn place(state_dir: &Path, key: &EnvironmentKey, deployment: DeploymentId) -> PathBuf {
    let releases = state_dir.join("releases");
    releases.join(key.app.as_str()).join(key.environment.as_str()).join(deployment.to_string())
}

pub(super) fn file(world: &World, key: &EnvironmentKey, deployment: DeploymentId) -> PathBuf {
    dir(world, key, deployment).join(FILE)
}

/// Writes the settings of `environment` as those of `deployment`. The error is for people.
pub fn write(world: &World, environment: &Environment, deployment: DeploymentId) -> Result<(), String> {
    let path = file(world, &environment.key, deployment);
    let text = serde_json::to_vec(&Kept::of(environment)).map_err(std::io::Error::other);
    let written = text.and_then(|text| {
        files::make_private_dir(&dir(world, &environment.key, deployment))?;
        files::write_atomically(&path, &text, 0o600)
    });
    written.map_err(|e| format!("the release's settings could not be kept at {}: {e}", path.display()))
}

/// What a release kept; the error says why it cannot be read.
pub fn read(world: &World, key: &EnvironmentKey, deployment: DeploymentId) -> Result<Kept, String> {
    load(&file(world, key, deployment))
}

fn load(path: &Path) -> Result<Kept, String> {
    let text = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let kept: Kept = serde_json::from_slice(&text).map_err(|e| format!("{}: {e}", path.display()))?;
    if kept.version > VERSION {
        return Err(format!("{} was written by a newer version of refit", path.display()));
    }
    Ok(kept)
}

/// The environment as a release ran in it; as configured now, and why, where that cannot be read.
pub fn environment(world: &World, today: &Environment, deployment: DeploymentId) -> (Environment, Option<String>) {
    match read(world, &today.key, deployment) {
        Ok(kept) => (kept.applied_to(today), None),
        Err(why) => (today.clone(), Some(why)),
    }
}

/// Whether a release is served by the gate; as configured now, where what it kept cannot be read.
pub fn is_behind_gate(state_dir: &Path, today: &Environment, deployment: DeploymentId) -> bool {
    match load(&place(state_dir, &today.key, deployment).join(FILE)) {
        Ok(kept) => kept.settings.is_some_and(|settings| settings.start.gate.is_some()),
        Err(_) => today.start.gate.is_some(),
    }
}

/// Forgets what a release kept, and the states of rollbacks that are about it.
pub fn remove(world: &World, key: &EnvironmentKey, deployment: DeploymentId) -> Result<(), String> {
    state::forget(world, key, deployment)?;
    let dir = dir(world, key, deployment);
    match std::fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(format!("{}: {error}", dir.display())),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Today the environment is behind the gate, because that was chosen for it; the release owned its port.
    #[test]
    fn a_release_of_the_first_version_was_never_behind_the_gate() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pipeline.toml");
        let text = "[app]\nname = 'a'\nrepository = 'r'\n[environments.production]\nbranch = 'main'\nport = 8000\n";
        std::fs::write(&file, text).unwrap();
        let config = crate::config::load(&file, &|_| None).unwrap();
        let today = &config.apps[0].environments[0];
        assert!(today.start.side_by_side());
        let read = |text: &str| serde_json::from_str::<Kept>(text).unwrap().applied_to(today);
        let first = read(r#"{"env":{"A":"b"},"secrets":{},"version":1}"#);
        assert_eq!((first.start.strategy, first.start.gate), (Strategy::Recreate, None));
        assert_eq!((first.start.env["A"].as_str(), first.port), ("b", Some(8000)));
        let ours = read(&serde_json::to_string(&Kept::of(today)).unwrap());
        assert!(ours.start.side_by_side());

        let behind_gate = || is_behind_gate(dir.path(), today, DeploymentId(1));
        assert!(behind_gate(), "nothing is kept: as configured now");
        let release = place(dir.path(), &today.key, DeploymentId(1));
        std::fs::create_dir_all(&release).unwrap();
        std::fs::write(release.join(FILE), r#"{"env":{},"secrets":{},"version":1}"#).unwrap();
        assert!(!behind_gate());
        std::fs::write(release.join(FILE), serde_json::to_vec(&Kept::of(today)).unwrap()).unwrap();
        assert!(behind_gate());
    }
}
