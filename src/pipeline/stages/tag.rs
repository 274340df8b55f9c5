//! tag: names the way back before anything moves, then the new artefact, and keeps the environment it will run with.
//!
//! `<app>:rollback` is what is live *now*; `<app>:latest` becomes the new artefact. An app with several environments has one pair
//! each: `rollback-dev`, `dev`; `production` keeps the plain names. What the tags pointed at before is in the recorded input, so undo
//! can put them back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Done, Progress, StageFailure, Step};
use crate::{config::Environment, files, model::EnvironmentKey, secret::Secret};

#[derive(Debug, Serialize, Deserialize)]
pub struct Input {
    /// The new artefact's id.
    pub artefact: String,
    /// The live artefact's id.
    pub live: Option<String>,
    /// Where the tags pointed before.
    pub rollback_before: Option<String>,
    pub latest_before: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Output {
    /// The way back: the artefact that `<app>:rollback` names now.
    pub rollback: Option<String>,
    pub tags: Vec<String>,
}

/// The two tag names of an environment.
pub fn tag_names(key: &EnvironmentKey) -> (String, String) {
    match key.environment.as_str() {
        "production" => ("rollback".to_owned(), "latest".to_owned()),
        other => (format!("rollback-{other}"), other.to_owned()),
    }
}

pub async fn input(step: &Step, progress: &Progress) -> Result<Input, StageFailure> {
    let runtime = step.world.runtime(&step.environment);
    let (rollback, latest) = tag_names(&step.environment.key);
    Ok(Input {
        artefact: progress.artefact()?.id,
        live: progress.previous.as_ref().map(|release| release.artefact.clone()),
        rollback_before: runtime.tagged(&step.environment, &rollback).await?,
        latest_before: runtime.tagged(&step.environment, &latest).await?,
    })
}

pub async fn run(step: &Step, input: Input) -> Result<Done, StageFailure> {
    let runtime = step.world.runtime(&step.environment);
    let (rollback, latest) = tag_names(&step.environment.key);
    let app = &step.environment.key.app;
    let mut tags = Vec::new();
    let mut way_back = None;
    if let Some(live) = &input.live {
        // The first thing to be known before a version is replaced: that it can come back.
        if runtime.has_artefact(live).await? {
            runtime.tag(&step.environment, live, &rollback).await?;
            tags.push(format!("{app}:{rollback}"));
            way_back = Some(live.clone());
        } else {
            step.job.log.line(format!("the live artefact {live} is gone: only its instance is left as the way back"));
        }
    }
    runtime.tag(&step.environment, &input.artefact, &latest).await?;
    tags.push(format!("{app}:{latest}"));
    keep_environment(step)?;
    step.job.log.line(format!("tagged {}", tags.join(", ")));
    Done::new(&Output { rollback: way_back, tags })
}

/// Puts the tags back where they were.
pub async fn undo(step: &Step, input: Input) -> Result<Option<String>, StageFailure> {
    let runtime = step.world.runtime(&step.environment);
    let (rollback, latest) = tag_names(&step.environment.key);
    for (tag, before) in [(rollback, input.rollback_before), (latest, input.latest_before)] {
        match before {
            Some(before) if runtime.has_artefact(&before).await? => {
                runtime.tag(&step.environment, &before, &tag).await?;
            }
            _ => runtime.untag(&step.environment, &tag).await?,
        }
    }
    let dir = step.world.release_dir(&step.environment, step.deployment);
    match std::fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StageFailure::failed(format!("{} could not be removed: {error}", dir.display())))
        }
        _ => Ok(None),
    }
}

/// A release's environment as it was settled: plain values and secrets, so that going back runs the old version with what it ran
/// with. The only place where secrets rest on disk: a 0600 file in a 0700 directory.
#[derive(Debug, Serialize, Deserialize)]
struct KeptEnvironment {
    version: u32,
    env: BTreeMap<String, String>,
    secrets: BTreeMap<String, String>,
}

fn keep_environment(step: &Step) -> Result<(), StageFailure> {
    let start = &step.environment.start;
    let kept = KeptEnvironment {
        version: 1,
        env: start.env.clone(),
        secrets: start.secrets.iter().map(|(k, v)| (k.clone(), v.expose().to_owned())).collect(),
    };
    let dir = step.world.release_dir(&step.environment, step.deployment);
    let path = dir.join("environment.json");
    let text = super::json(&kept)?.to_string();
    files::make_private_dir(&dir).and_then(|()| files::write_atomically(&path, text.as_bytes(), 0o600)).map_err(|e| {
        StageFailure::failed(format!("the release's environment could not be kept at {}: {e}", path.display()))
    })
}

/// The environment with `start.env` and `start.secrets` as they were when `deployment` went live; as configured now where that is not known.
pub fn kept_environment(step: &Step, deployment: crate::model::DeploymentId) -> Environment {
    let mut environment = Environment::clone(&step.environment);
    let path = step.world.release_dir(&step.environment, deployment).join("environment.json");
    let kept = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice::<KeptEnvironment>(&text).ok());
    match kept {
        Some(kept) => {
            environment.start.env = kept.env;
            environment.start.secrets = kept.secrets.into_iter().map(|(k, v)| (k, Secret::new(v))).collect();
        }
        None => step.job.log.line(format!("{} cannot be read: using today's environment", path.display())),
    }
    environment
}
