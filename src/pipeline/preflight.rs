//! A look around before the first step: what would surely fail later, or fail half way, is found while nothing was begun.

use crate::{
    config::Environment,
    files,
    pipeline::{World, journal::FailureKind, stages::StageFailure},
};

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
        let running = match runtime.is_running(name).await {
            Ok(false) => world.runtimes.docker.is_running(name).await,
            other => other,
        };
        if !running? {
            return Err(unavailable(format!(
                "`{name}` is required by {} and does not run: start it, or take it out of `requires`",
                environment.key
            )));
        }
    }
    Ok(())
}

fn unavailable(message: String) -> StageFailure {
    StageFailure { kind: FailureKind::Unavailable, message }
}
