//! The state before a rollback, for a person: what was configured, what ran, and with which settings.
//!
//! One directory a rollback, `<state>/rollbacks/<app>/<environment>/<deployment>/`, 0700 with files of 0600, because settings and
//! definitions hold secrets:
//!
//! | file | what |
//! |---|---|
//! | `record.json` | the deployment that went back, and the deployment that it left, as JSON shows them |
//! | `settings.json` | the settings of the release that is left (see `kept`) |
//! | `<instance>.json` | what the runtime knows of each instance that is stopped or started |
//! | `config/…` | `pipeline.toml` and what it includes, as they are on disk |
//!
//! Going forward again (`refit rollback --undo`) does not need it: it goes to a release like any other. It is there for the case that the
//! release itself is what is damaged. It goes when the release goes that it is about ([`forget`]).

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{World, kept};
use crate::{
    config::RuntimeKind,
    files,
    log::StageLog,
    model::{DeploymentId, EnvironmentKey},
    runtime::Instance,
};

const VERSION: u32 = 1;
const RECORD: &str = "record.json";

/// An instance and where it runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Held {
    pub instance: Instance,
    pub runtime: RuntimeKind,
}

/// What is to be kept.
#[derive(Debug, Clone, Copy)]
pub struct Before<'a> {
    pub key: &'a EnvironmentKey,
    /// The deployment that goes back.
    pub by: DeploymentId,
    /// The deployment that is left.
    pub from: DeploymentId,
    /// The release with which all this goes.
    pub release: DeploymentId,
    pub instances: &'a [Held],
    /// The backup set that was taken for it.
    pub backup: Option<&'a str>,
}

#[derive(Debug, Deserialize)]
struct Record {
    release: DeploymentId,
    #[serde(default)]
    backup: Option<String>,
}

/// Keeps the state; the directory, relative to the state directory. May be done twice. What is not there any more is left out, and
/// said in the log; the error, for people, is of what could not be written or asked.
pub async fn keep(world: &World, before: Before<'_>, log: &StageLog) -> Result<String, String> {
    let relative = place(before.key).join(before.by.to_string());
    let dir = dir(world, before.key, before.by);
    let mut all: Vec<(PathBuf, Vec<u8>)> = vec![(RECORD.into(), pretty(&record(world, &before).await?)?)];
    for held in before.instances {
        let name = &held.instance.name;
        match world.runtimes.of(held.runtime).definition(&held.instance).await.map_err(|e| e.to_string())? {
            Some(definition) => all.push((format!("{name}.json").into(), pretty(&definition)?)),
            None => log.line(format!("{name} is not there: its definition is not kept")),
        }
    }
    let settings = (PathBuf::from("settings.json"), kept::file(world, before.key, before.from));
    let configuration = world.config.files.iter().enumerate().map(|(n, file)| {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        (Path::new("config").join(format!("{n}-{name}")), file.clone())
    });
    for (to, from) in std::iter::once(settings).chain(configuration) {
        match std::fs::read(&from) {
            Ok(text) => all.push((to, text)),
            Err(error) => log.line(format!("{} is not kept: {error}", from.display())),
        }
    }
    let write = || -> io::Result<()> {
        files::make_private_dir(&dir.join("config"))?;
        all.iter().try_for_each(|(name, text)| files::write_atomically(&dir.join(name), text, 0o600))
    };
    write().map_err(|e| format!("the state before the rollback could not be kept in {}: {e}", dir.display()))?;
    Ok(relative.display().to_string())
}

async fn record(world: &World, before: &Before<'_>) -> Result<Value, String> {
    let view = async |id| world.registry.deployment(id).await.map_err(|e| e.to_string());
    Ok(json!({
        "version": VERSION,
        "at": jiff::Timestamp::now(),
        "release": before.release,
        "deployment": view(before.by).await?,
        "left": view(before.from).await?,
        "backup": before.backup,
    }))
}

/// Forgets the states that are about a release which goes. The error is for people.
pub fn forget(world: &World, key: &EnvironmentKey, release: DeploymentId) -> Result<(), String> {
    let dir = world.config.server.state_dir.join(place(key));
    let Ok(entries) = std::fs::read_dir(&dir) else { return Ok(()) };
    for entry in entries.flatten() {
        let path = entry.path();
        let record =
            std::fs::read(path.join(RECORD)).ok().and_then(|text| serde_json::from_slice::<Record>(&text).ok());
        if record.is_some_and(|record| record.release == release) {
            std::fs::remove_dir_all(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        }
    }
    Ok(())
}

/// The backup sets that kept states name, each with the deployment that kept it. What cannot be read names none.
pub(super) fn backups(state_dir: &Path, key: &EnvironmentKey) -> Vec<(DeploymentId, String)> {
    let Ok(entries) = std::fs::read_dir(state_dir.join(place(key))) else { return Vec::new() };
    let read = |entry: std::fs::DirEntry| {
        let by = entry.file_name().to_str()?.parse().ok().map(DeploymentId)?;
        let record: Record = serde_json::from_slice(&std::fs::read(entry.path().join(RECORD)).ok()?).ok()?;
        Some((by, record.backup?))
    };
    let mut all: Vec<_> = entries.flatten().filter_map(read).collect();
    all.sort();
    all
}

/// Where a rollback's state is kept.
pub(super) fn dir(world: &World, key: &EnvironmentKey, by: DeploymentId) -> PathBuf {
    world.config.server.state_dir.join(place(key)).join(by.to_string())
}

fn place(key: &EnvironmentKey) -> PathBuf {
    Path::new("rollbacks").join(key.app.as_str()).join(key.environment.as_str())
}

fn pretty(value: &Value) -> Result<Vec<u8>, String> {
    serde_json::to_vec_pretty(value).map_err(|e| e.to_string())
}
