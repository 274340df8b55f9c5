//! A look around before the first step: what would surely fail later, or fail half way, is found while nothing was begun.

use crate::{
    config::Environment,
    files,
    pipeline::{World, journal::FailureKind, stages::StageFailure},
};

/// Before a rollback: only what it cannot do without is an error. A full disk or a dependency that is away is a warning, because what
/// is live may be what filled the disk or broke the dependency.
pub async fn check_rollback(world: &World, environment: &Environment) -> Result<Option<String>, StageFailure> {
    world.runtime(environment).check().await?;
    Ok(check(world, environment).await.err().map(|failure| failure.message))
}

/// Free space, the runtime, and what the configuration `requires`. The first thing missing is the error.
pub async fn check(world: &World, environment: &Environment) -> Result<(), StageFailure> {
    let server = &world.config.server;
    for dir in [&server.state_dir, &server.backups_dir, &server.logs_dir] {
        let Ok(free) = files::free_space(dir) else { continue };
        if free < server.min_free_space {
            return Err(unavailable(format!(
                "only {} are free at {}, and server.min_free_space asks for {}: free some space (`refit doctor` shows what is where)",
                files::human_bytes(free),
                dir.display(),
                files::human_bytes(server.min_free_space),
            )));
        }
    }
    let runtime = world.runtime(environment);
    runtime.check().await?;
    for name in &environment.requires {
        if !is_running(world, environment, name).await? {
            return Err(unavailable(format!(
                "`{name}` is required by {} and does not run: start it, or take it out of `requires`",
                environment.key
            )));
        }
    }
    Ok(())
}

/// Whether something that the configuration names runs: in the environment's runtime, else as a container.
pub async fn is_running(world: &World, environment: &Environment, name: &str) -> crate::runtime::Result<bool> {
    match world.runtime(environment).is_running(name).await {
        Ok(false) => world.runtimes.docker.is_running(name).await,
        other => other,
    }
}

fn unavailable(message: String) -> StageFailure {
    StageFailure { kind: FailureKind::Unavailable, message }
}
