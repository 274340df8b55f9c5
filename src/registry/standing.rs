//! What the store knows of one environment, read as of one moment: what may be in the world, and what has no business there.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::Row;

use super::{Registry, Release, Result, parse, query, releases::release_of};
use crate::model::{CommitId, DeploymentId, EnvironmentKey, Status};

/// A deployment that the store knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    pub status: Status,
    /// Not yet, or never, known: it ended before it was fetched.
    pub commit: Option<CommitId>,
}

/// An environment as the store sees it. The default is that of an empty store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    pub live: Option<Release>,
    /// Deployments whose release is kept, the live one among them.
    pub kept: BTreeSet<DeploymentId>,
    /// Every deployment of this environment.
    pub deployments: BTreeMap<DeploymentId, Known>,
    /// Artefacts that a release or an unfinished deployment of any environment needs.
    pub needed: BTreeSet<String>,
    /// A deployment of this app runs, in whichever environment: it may use an artefact that it has not noted yet.
    pub app_busy: bool,
    /// The deployment that ended `stuck` and that no success came after.
    pub stuck: Option<DeploymentId>,
    /// That one was a rollback, which may have left data half restored.
    pub stuck_in_rollback: bool,
}

impl Standing {
    /// Whether a deployment of this environment runs.
    pub fn under_way(&self) -> bool {
        self.deployments.values().any(|known| known.status == Status::Running)
    }
}

impl Registry {
    pub async fn standing(&self, key: &EnvironmentKey) -> Result<Standing> {
        let failed = || query("read an environment");
        // One transaction is one moment: a deployment that ends meanwhile is not half ended here.
        let mut tx = self.read.begin().await.map_err(failed())?;
        let rows = sqlx::query(
            "SELECT r.*, EXISTS (SELECT 1 FROM live AS l WHERE l.deployment = r.deployment) AS is_live
             FROM releases AS r WHERE r.app = ? AND r.environment = ?
                AND (r.retired_at IS NULL OR EXISTS (SELECT 1 FROM live AS l WHERE l.deployment = r.deployment))",
        )
        .bind(key.app.as_str())
        .bind(key.environment.as_str())
        .fetch_all(&mut *tx)
        .await
        .map_err(failed())?;
        let mut standing = Standing::default();
        for row in &rows {
            let release = release_of(row)?;
            standing.kept.insert(release.deployment);
            if row.get("is_live") {
                standing.live = Some(release);
            }
        }
        let rows = sqlx::query("SELECT id, status, commit_id FROM deployments WHERE app = ? AND environment = ?")
            .bind(key.app.as_str())
            .bind(key.environment.as_str())
            .fetch_all(&mut *tx)
            .await
            .map_err(failed())?;
        for row in &rows {
            let commit = row.get::<Option<&str>, _>("commit_id").map(|c| parse("commit", c)).transpose()?;
            let known = Known { status: parse("status", row.get("status"))?, commit };
            standing.deployments.insert(DeploymentId(row.get("id")), known);
        }
        let needed: Vec<String> = sqlx::query_scalar(
            "SELECT artefact FROM releases WHERE retired_at IS NULL
             UNION SELECT image FROM deployments WHERE image IS NOT NULL AND finished_at IS NULL",
        )
        .fetch_all(&mut *tx)
        .await
        .map_err(failed())?;
        standing.needed = needed.into_iter().chain(standing.live.iter().map(|live| live.artefact.clone())).collect();
        standing.app_busy =
            sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM deployments WHERE app = ? AND status = 'running')")
                .bind(key.app.as_str())
                .fetch_one(&mut *tx)
                .await
                .map_err(failed())?;
        let stuck = sqlx::query(
            "SELECT id, json_extract(triggered, '$.kind') = 'rollback' AS in_rollback FROM deployments AS d
             WHERE app = ?1 AND environment = ?2 AND status = 'stuck' AND NOT EXISTS (
                SELECT 1 FROM deployments AS later
                WHERE later.app = ?1 AND later.environment = ?2 AND later.id > d.id AND later.status = 'succeeded')
             ORDER BY id DESC LIMIT 1",
        )
        .bind(key.app.as_str())
        .bind(key.environment.as_str())
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed())?;
        if let Some(row) = stuck {
            standing.stuck = Some(DeploymentId(row.get("id")));
            standing.stuck_in_rollback = row.get("in_rollback");
        }
        tx.commit().await.map_err(failed())?;
        Ok(standing)
    }
}
