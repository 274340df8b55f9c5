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

    /// Whether any environment still needs an artefact.
    pub async fn artefact_in_use(&self, artefact: &str) -> Result<bool> {
        sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM releases WHERE artefact = ? AND retired_at IS NULL)")
            .bind(artefact)
            .fetch_one(&self.read)
            .await
            .map_err(query("read releases"))
    }

    /// Notes that a release's instance and artefact are gone.
    pub async fn retire(&self, deployment: DeploymentId) -> Result<()> {
        sqlx::query("UPDATE releases SET retired_at = ? WHERE deployment = ?")
            .bind(now_ms())
            .bind(deployment.0)
            .execute(&self.write)
            .await
            .map_err(query("retire a release"))?;
        Ok(())
    }
}

pub(super) async fn make_live(tx: &mut Transaction<'_, Sqlite>, release: &Release) -> Result<()> {
    sqlx::query(
        "INSERT INTO releases
            (deployment, app, environment, commit_id, artefact, artefact_name, runtime, instance, live_since)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
         -- A release that came back: its instance may have been made again.
         ON CONFLICT (deployment) DO UPDATE SET
            instance = excluded.instance, live_since = excluded.live_since, retired_at = NULL",
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
