//! What a migration is about to do, on disk before it does it.
//!
//! One small file a deployment, `<state>/migrations/<app>/<environment>/<deployment>.json`. It stays until the environment migrates again: undo may come
//! long after, and more than once.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{StageFailure, Step};
use crate::files;

#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(super) struct Trail {
    #[serde(skip)]
    path: PathBuf,
    /// The schema's version before, where it is known.
    pub before: Option<String>,
    /// The live version is about to be stopped.
    pub held: bool,
    /// The set that was taken after that.
    pub set: Option<String>,
    /// The command is about to run.
    pub began: bool,
    /// The numbers of the files, each before it was applied.
    pub begun: Vec<i64>,
    /// The set was put back.
    pub restored: bool,
    /// It was put back in part only: nothing may be started on that.
    pub torn: bool,
}

impl Trail {
    /// A new one, or what this deployment has left already: a step may be done twice. Those of earlier deployments are of no use any more: nothing of them is
    /// undone once another migrates.
    pub fn begin(step: &Step, before: Option<String>) -> Result<Self, StageFailure> {
        if let Some(begun) = Self::read(step)? {
            return Ok(begun);
        }
        let path = path(step);
        let dir = path.parent().unwrap_or(Path::new("."));
        for old in std::fs::read_dir(dir).into_iter().flatten().flatten().filter(|old| old.path() != path) {
            // Only tidiness.
            let _ = std::fs::remove_file(old.path());
        }
        files::make_private_dir(dir).map_err(|e| failed(dir, "made", &e))?;
        let mut trail = Self { path, before, ..Self::default() };
        trail.write(|_| ())?;
        Ok(trail)
    }

    /// `None`: nothing was begun.
    pub fn read(step: &Step) -> Result<Option<Self>, StageFailure> {
        let path = path(step);
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(|e| failed(&path, "read", &e))?,
        };
        let trail: Self = serde_json::from_slice(&text).map_err(|e| failed(&path, "read", &e))?;
        Ok(Some(Self { path, ..trail }))
    }

    /// Changes it, on disk too.
    pub fn write(&mut self, change: impl FnOnce(&mut Self)) -> Result<(), StageFailure> {
        change(self);
        let text = serde_json::to_vec(self).map_err(|e| failed(&self.path, "written", &e))?;
        files::write_atomically(&self.path, &text, 0o600).map_err(|e| failed(&self.path, "written", &e))
    }
}

fn path(step: &Step) -> PathBuf {
    let key = &step.environment.key;
    let dir = step.world.config.server.state_dir.join("migrations");
    dir.join(key.app.as_str()).join(key.environment.as_str()).join(format!("{}.json", step.deployment))
}

fn failed(path: &Path, what: &str, error: &dyn std::fmt::Display) -> StageFailure {
    StageFailure::failed(format!("{} cannot be {what}: {error}", path.display()))
}
