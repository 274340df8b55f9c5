//! Clearing a demo away: the daemon first, so that nothing new is made, then the gate and what else it made, then the directory.
//!
//! Everything is found by the record and by labels, never by memory, so a demo that was killed half way is cleared like one that
//! ended. Each part is tried even if an earlier one failed; the directory with the record goes only when nothing is left that
//! it is needed for.

use std::{fs, io, time::Duration};

use super::{daemon, scene::Scene};
use crate::{
    cli::error::{CliError, Result, exit},
    model::DeploymentId,
    runtime::{
        Runtime, RuntimeError,
        docker::{Cleared, Engine},
        process::ProcessRuntime,
    },
};

/// Further than the demo's own deployments, for those of somebody who played with `--keep`.
const DEPLOYMENTS: i64 = 100;

/// So often in a row nothing must be found, this far apart.
const QUIET_LOOKS: u32 = 4;
const LOOK_AGAIN: Duration = Duration::from_millis(300);

/// Removes everything; one sentence of what that was.
pub async fn all(scene: &Scene) -> Result<String> {
    let mut gone = Vec::new();
    if daemon::stop(scene).await {
        gone.push("the daemon".to_owned());
    }
    if daemon::stop_gate(scene).await {
        gone.push("the gate".to_owned());
    }
    if scene.record.on_docker {
        let cleared = containers(scene).await.map_err(|e| stuck(scene, &e))?;
        gone.push(counted(cleared.containers, "container"));
        gone.push(counted(cleared.images, "image") + " (steps of builds included)");
    } else {
        let count = processes(scene).await.map_err(|e| stuck(scene, &e))?;
        gone.push(counted(count, "supervised app"));
    }
    match fs::remove_dir_all(&scene.dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(CliError::io(format!("removing {}", scene.dir.display()), error));
        }
        _ => gone.push(scene.dir.display().to_string()),
    }
    Ok(gone.join(", "))
}

/// Clears until nothing new has come for a while: the engine tells nobody when it is done with the step of a build that was given
/// up, and makes an image of it then.
async fn containers(scene: &Scene) -> std::result::Result<Cleared, RuntimeError> {
    let engine = Engine::connect(scene.docker_host.as_deref())?;
    let mut all = Cleared::default();
    let mut quiet = 0;
    while quiet < QUIET_LOOKS {
        let cleared = engine.remove_app(&scene.record.app).await?;
        all.containers += cleared.containers;
        all.images += cleared.images;
        quiet = if cleared == Cleared::default() { quiet + 1 } else { 0 };
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(all)
}

async fn processes(scene: &Scene) -> std::result::Result<usize, RuntimeError> {
    let runtime = ProcessRuntime::new(scene.state_dir().join("process"), scene.program.clone());
    let key = scene.key().map_err(|_| RuntimeError::failed("clearing processes", "the app has no name"))?;
    for id in 1..=DEPLOYMENTS {
        runtime.sweep(&key, DeploymentId(id)).await?;
    }
    let instances = runtime.instances(&key).await?;
    for instance in &instances {
        runtime.remove(instance).await?;
    }
    Ok(instances.len())
}

fn stuck(scene: &Scene, error: &RuntimeError) -> CliError {
    CliError::Failed {
        message: format!("not everything could be removed: {error}"),
        hint: Some(format!("`refit demo --clean {}` tries again", scene.dir.display())),
        code: exit::UNAVAILABLE,
    }
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
