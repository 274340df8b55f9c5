//! A version that was replaced and goes on running for a while.
//!
//! There is no table of them: the deployment that replaced it has said so in what smoke recorded, and of an environment's deployments only the
//! newest that succeeded counts. So whoever reads after a crash knows as much as who wrote it. A record says until when, and not whether it
//! still runs: another deployment may have stopped it since.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sqlx::{Executor, Sqlite};

use super::{Registry, Result, from_json, query};
use crate::{
    config::RuntimeKind,
    model::{DeploymentId, EnvironmentKey},
    runtime::Instance,
};

/// As it stands in what smoke recorded, under `warm`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warm {
    pub deployment: DeploymentId,
    pub instance: Instance,
    pub runtime: RuntimeKind,
    /// Then it is to be stopped.
    pub until: Timestamp,
}

impl Warm {
    pub fn is_in_time(&self) -> bool {
        Timestamp::now() < self.until
    }
}

impl Registry {
    /// The version that an environment's newest success has kept warm, whether its time is over or not.
    pub async fn warm(&self, key: &EnvironmentKey) -> Result<Option<Warm>> {
        read(&self.read, key).await
    }
}

pub(super) async fn read<'e>(on: impl Executor<'e, Database = Sqlite>, key: &EnvironmentKey) -> Result<Option<Warm>> {
    let kept: Option<String> = sqlx::query_scalar(
        "SELECT json_extract(body, '$.output.warm') FROM events
         WHERE deployment = (SELECT id FROM deployments WHERE app = ? AND environment = ? AND status = 'succeeded'
                             ORDER BY id DESC LIMIT 1)
            AND json_extract(body, '$.stage') = 'smoke' AND json_extract(body, '$.output.warm') IS NOT NULL
         ORDER BY seq DESC LIMIT 1",
    )
    .bind(key.app.as_str())
    .bind(key.environment.as_str())
    .fetch_optional(on)
    .await
    .map_err(query("read what is kept warm"))?;
    kept.map(|kept| from_json("warm version", &kept)).transpose()
}
