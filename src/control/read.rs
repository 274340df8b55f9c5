//! Reading what happened, for doors that answer people: deployments, their logs, and what a rollback would change.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
    sync::Arc,
};

use super::{Control, ControlError, Result, unknown};
use crate::{
    config::Environment,
    model::{DeploymentId, DeploymentView, EnvironmentKey},
    notify::Report,
    registry::Filter,
    rollback::{Preview, Wanted},
};

/// A deployment's log as it stands, masked as it was written.
#[derive(Debug, Clone)]
pub struct LogText {
    pub text: Vec<u8>,
    /// It was longer: this is its end.
    pub cut: bool,
}

impl Control {
    pub async fn deployment(&self, id: DeploymentId) -> Result<DeploymentView> {
        self.registry().deployment(id).await?.ok_or_else(|| unknown(id))
    }

    /// The newest first.
    pub async fn deployments(&self, filter: &Filter) -> Result<Vec<DeploymentView>> {
        Ok(self.registry().deployments(filter).await?)
    }

    /// All that is to be said of a deployment.
    pub async fn report(&self, id: DeploymentId) -> Result<(DeploymentView, Report)> {
        let view = self.deployment(id).await?;
        let events = self.registry().events(id, 0).await?;
        let report = Report::of(&view, &events, self.config());
        Ok((view, report))
    }

    /// The environment that is meant by names that may be left out.
    pub fn find_environment(&self, app: Option<&str>, environment: Option<&str>) -> Result<Arc<Environment>> {
        self.environment(app, environment)
    }

    /// What a rollback would change. Changes nothing.
    pub async fn preview(&self, key: &EnvironmentKey, wanted: &Wanted) -> Result<Preview> {
        self.observer().preview(key, wanted).await
    }

    /// The log of a deployment, at most its last `limit` bytes.
    pub async fn log_text(&self, id: DeploymentId, limit: u64) -> Result<LogText> {
        let view = self.deployment(id).await?;
        let Some(log) = &view.log else {
            return Err(ControlError::usage(
                format!("deployment {id} has no log: it has not begun"),
                "try again later",
            ));
        };
        let path = self.config().server.logs_dir.join(log);
        let read = tokio::task::spawn_blocking(move || end_of(&path, limit)).await.map_err(io::Error::other);
        read.flatten().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ControlError::usage(
                format!("the log of deployment {id} is gone"),
                "logs are kept for `log_keep_days` in [server]",
            ),
            _ => ControlError::Unavailable { message: format!("the log of deployment {id}: {error}"), hint: None },
        })
    }
}

fn end_of(path: &Path, limit: u64) -> io::Result<LogText> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let cut = length > limit;
    if cut {
        file.seek(SeekFrom::Start(length - limit))?;
    }
    let mut text = Vec::new();
    file.take(limit).read_to_end(&mut text)?;
    Ok(LogText { text, cut })
}
