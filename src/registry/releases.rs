//! Releases: deployments that were live and healthy, and which one is live now.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sqlx::{Row, Sqlite, Transaction, sqlite::SqliteRow};

use super::{Registry, Result, from_json, now_ms, parse, query, time, to_json};
use crate::{
    config::RuntimeKind,
    model::{CommitId, DeploymentId, EnvironmentKey},
    runtime::Instance,
};

/// What is needed to bring a version back without building it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    pub deployment: DeploymentId,
    pub key: EnvironmentKey,
    pub commit: CommitId,
    /// The artefact's id: a digest, or a release directory.
    pub artefact: String,
    pub artefact_name: String,
    pub runtime: RuntimeKind,
    pub instance: Instance,
    pub live_since: Timestamp,
}

impl Registry {
    pub async fn live(&self, key: &EnvironmentKey) -> Result<Option<Release>> {
        let row = sqlx::query(
            "SELECT r.* FROM live AS l JOIN releases AS r ON r.deployment = l.deployment
             WHERE l.app = ? AND l.environment = ?",
        )
        .bind(key.app.as_str())
        .bind(key.environment.as_str())
        .fetch_optional(&self.read)
        .await
        .map_err(query("read what is live"))?;
        row.as_ref().map(release_of).transpose()
    }

    /// What is live in every environment that ever had something live, configured or not.
    pub async fn all_live(&self) -> Result<Vec<Release>> {
        let rows = sqlx::query(
            "SELECT r.* FROM live AS l JOIN releases AS r ON r.deployment = l.deployment ORDER BY l.app, l.environment",
        )
        .fetch_all(&self.read)
        .await
        .map_err(query("read what is live"))?;
        rows.iter().map(release_of).collect()
    }

    /// A deployment's release, kept or retired.
    pub async fn release(&self, deployment: DeploymentId) -> Result<Option<Release>> {
        let row = sqlx::query("SELECT * FROM releases WHERE deployment = ?")
            .bind(deployment.0)
            .fetch_optional(&self.read)
            .await
            .map_err(query("read a release"))?;
        row.as_ref().map(release_of).transpose()
    }

    /// Releases whose instance and artefact are still kept, the newest first, the live one among them.
    pub async fn kept_releases(&self, key: &EnvironmentKey) -> Result<Vec<Release>> {
        let rows = sqlx::query(
            "SELECT * FROM releases WHERE app = ? AND environment = ? AND retired_at IS NULL ORDER BY deployment DESC",
        )
        .bind(key.app.as_str())
        .bind(key.environment.as_str())
        .fetch_all(&self.read)
        .await
        .map_err(query("read releases"))?;
        rows.iter().map(release_of).collect()
    }

    /// Every release that an environment ever had, the newest first, each with whether it is retired.
    pub async fn all_releases(&self, key: &EnvironmentKey) -> Result<Vec<(Release, bool)>> {
        let rows = sqlx::query(
            "SELECT *, retired_at IS NOT NULL AS retired FROM releases
             WHERE app = ? AND environment = ? ORDER BY deployment DESC",
        )
        .bind(key.app.as_str())
        .bind(key.environment.as_str())
        .fetch_all(&self.read)
        .await
        .map_err(query("read releases"))?;
        rows.iter().map(|row| Ok((release_of(row)?, row.get("retired")))).collect()
    }

    /// Whether anything but deployment `except` needs an artefact: a release of any environment, a deployment that has not ended, or
    /// one that is stuck and that a person is to look at.
    pub async fn artefact_in_use(&self, artefact: &str, except: Option<DeploymentId>) -> Result<bool> {
        sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM releases WHERE artefact = ?1 AND retired_at IS NULL AND deployment <> ?2)
                 OR EXISTS (SELECT 1 FROM deployments AS d WHERE image = ?1 AND id <> ?2 AND (finished_at IS NULL
                    OR status = 'stuck' AND NOT EXISTS (SELECT 1 FROM resolutions AS r WHERE r.deployment = d.id)))",
        )
        .bind(artefact)
        .bind(except.map_or(0, |id| id.0))
        .fetch_one(&self.read)
        .await
        .map_err(query("read releases"))
    }

    /// Notes that a release's instance and artefact are gone, `freed` bytes with them, at the end of deployment `by`.
    pub async fn retire(&self, deployment: DeploymentId, by: DeploymentId, freed: u64) -> Result<()> {
        sqlx::query("UPDATE releases SET retired_at = ?, retired_by = ?, freed = ? WHERE deployment = ?")
            .bind(now_ms())
            .bind(by.0)
            .bind(i64::try_from(freed).unwrap_or(i64::MAX))
            .bind(deployment.0)
            .execute(&self.write)
            .await
            .map_err(query("retire a release"))?;
        Ok(())
    }

    /// The releases that went at the end of a deployment, oldest first, and the bytes that gave back.
    pub async fn retired_by(&self, by: DeploymentId) -> Result<Vec<(DeploymentId, u64)>> {
        let rows = sqlx::query("SELECT deployment, freed FROM releases WHERE retired_by = ? ORDER BY deployment")
            .bind(by.0)
            .fetch_all(&self.read)
            .await
            .map_err(query("read releases"))?;
        let freed = |row: &SqliteRow| row.get::<Option<i64>, _>("freed").map_or(0, i64::unsigned_abs);
        Ok(rows.iter().map(|row| (DeploymentId(row.get("deployment")), freed(row))).collect())
    }
}

pub(super) async fn make_live(tx: &mut Transaction<'_, Sqlite>, release: &Release) -> Result<()> {
    sqlx::query(
        "INSERT INTO releases
            (deployment, app, environment, commit_id, artefact, artefact_name, runtime, instance, live_since)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
         -- A release that came back: its instance may have been made again.
         ON CONFLICT (deployment) DO UPDATE SET
            instance = excluded.instance, live_since = excluded.live_since,
            retired_at = NULL, retired_by = NULL, freed = NULL",
    )
    .bind(release.deployment.0)
    .bind(release.key.app.as_str())
    .bind(release.key.environment.as_str())
    .bind(release.commit.as_str())
    .bind(&release.artefact)
    .bind(&release.artefact_name)
    .bind(release.runtime.as_str())
    .bind(to_json("instance", &release.instance)?)
    .bind(release.live_since.as_millisecond())
    .execute(&mut **tx)
    .await
    .map_err(query("record a release"))?;
    sqlx::query(
        "INSERT INTO live (app, environment, deployment) VALUES (?, ?, ?)
         ON CONFLICT (app, environment) DO UPDATE SET deployment = excluded.deployment",
    )
    .bind(release.key.app.as_str())
    .bind(release.key.environment.as_str())
    .bind(release.deployment.0)
    .execute(&mut **tx)
    .await
    .map_err(query("record what is live"))?;
    Ok(())
}

pub(super) fn release_of(row: &SqliteRow) -> Result<Release> {
    Ok(Release {
        deployment: DeploymentId(row.get("deployment")),
        key: EnvironmentKey {
            app: parse("app", row.get("app"))?,
            environment: parse("environment", row.get("environment"))?,
        },
        commit: parse("commit", row.get("commit_id"))?,
        artefact: row.get("artefact"),
        artefact_name: row.get("artefact_name"),
        runtime: parse("runtime", row.get("runtime"))?,
        instance: from_json("instance", row.get("instance"))?,
        live_since: time(row.get("live_since")),
    })
}
