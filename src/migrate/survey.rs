//! How a database stands beside the files of a commit: for those who only look.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Files, SessionError, State, files_of, look, place, plan_up};
use crate::{
    config::{Environment, MigrateWith, MigrationFiles},
    git::Mirror,
    model::CommitId,
    runtime::ContainerExec,
};

/// Files and table, at one moment.
#[derive(Debug, Clone)]
pub struct Survey {
    pub state: State,
    pub files: Files,
}

/// The SQL files that an environment migrates with, if it does.
pub fn configured(environment: &Environment) -> Option<&MigrationFiles> {
    match environment.migrate.as_ref().map(|migrate| &migrate.with) {
        Some(MigrateWith::Files(files)) => Some(files),
        _ => None,
    }
}

/// Looks, for at most `patience`.
pub async fn survey(
    environment: &Environment,
    files: &MigrationFiles,
    (mirror, commit): (Mirror, CommitId),
    containers: &dyn ContainerExec,
    patience: Duration,
) -> Result<Survey, SessionError> {
    let dir = files.dir.clone();
    let read = tokio::task::spawn_blocking(move || files_of(&mirror, &commit, &dir));
    let looked = async {
        let place = place(environment, files, containers).await?;
        let state = look(&place, &CancellationToken::new()).await?;
        let files = read.await.map_err(|e| SessionError::Unfit(e.to_string()))?.map_err(SessionError::Unfit)?;
        Ok(Survey { state, files })
    };
    let late = || SessionError::unreachable("the database", format!("it does not answer within {patience:?}"));
    tokio::time::timeout(patience, Box::pin(looked)).await.unwrap_or_else(|_| Err(late()))
}

impl Survey {
    /// What the database has and the commit does not, each as `7 (add mood)`.
    pub fn unknown(&self) -> Vec<String> {
        self.state.unknown_to(&self.files)
    }

    /// The number to go down to, for that to be so no more.
    pub fn known_below(&self) -> i64 {
        let unknown = self.state.applied.iter().map(|row| row.version).filter(|v| self.files.get(*v).is_none()).min();
        self.state.below(unknown.unwrap_or(i64::MAX))
    }

    /// What the commit needs and the database does not have.
    pub fn lacking(&self) -> Vec<String> {
        let pending = plan_up(&self.files, &self.state.applied, None, false).unwrap_or_default();
        pending.iter().map(|migration| migration.title()).collect()
    }
}
