//! tag: names the way back before anything moves, then the new artefact, and keeps the environment it will run with.
//!
//! `<app>:rollback` is what is live *now*; `<app>:latest` becomes the new artefact. An app with several environments has one pair
//! each: `rollback-dev`, `dev`; `production` keeps the plain names. What the tags pointed at before is in the recorded input, so undo
//! can put them back.

use serde::{Deserialize, Serialize};

use super::{Done, Progress, StageFailure, Step};
use crate::{model::EnvironmentKey, pipeline::kept};

#[derive(Debug, Serialize, Deserialize)]
pub struct Input {
    /// The new artefact's id.
    pub artefact: String,
    /// The live artefact's id.
    pub live: Option<String>,
    /// Where the tags pointed before.
    pub rollback_before: Option<String>,
    pub latest_before: Option<String>,
    /// The artefact is an earlier release's: a rollback.
    #[serde(default)]
    pub release: bool,
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
        release: progress.target.is_some(),
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
    if input.release && !runtime.has_artefact(&input.artefact).await? {
        step.job
            .log
            .line(format!("{} is gone: its instance, which is still here, comes back without it", input.artefact));
    } else {
        runtime.tag(&step.environment, &input.artefact, &latest).await?;
        tags.push(format!("{app}:{latest}"));
    }
    // A release that comes back has kept its settings.
    if !input.release {
        kept::write(&step.world, &step.environment, step.deployment).map_err(StageFailure::failed)?;
    }
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
    kept::remove(&step.world, &step.environment.key, step.deployment).map_err(StageFailure::failed)?;
    Ok(None)
}
