//! What people decided about a deployment: a rollback that was asked for, an approval, a stuck deployment that was looked at.
//! Rows are written once; who came second is told what the first one said.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sqlx::{Row, Sqlite, Transaction};

use super::{Registry, Result, from_json, parse, query, time, to_json};
use crate::model::{DeploymentId, EnvironmentKey, Name, Resolution, RollbackKind};

/// What a rollback is to do: written with the deployment that does it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RollbackOrder {
    pub kind: RollbackKind,
    /// The release to go to.
    pub target: DeploymentId,
    pub reason: String,
    pub forced: bool,
    /// The backup set to put back, relative to the backups directory; data stays as it is where unset.
    pub backup: Option<String>,
    /// Only these parts of it; all where empty.
    #[serde(default)]
    pub parts: Vec<Name>,
    /// The safety checks as they were when it was asked for.
    pub checks: serde_json::Value,
}

/// A rollback that succeeded: from what was live to what is live since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastRollback {
    pub deployment: DeploymentId,
    pub from: Option<DeploymentId>,
    pub to: DeploymentId,
}

/// A person's word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    pub approved: bool,
    pub by: String,
    pub reason: Option<String>,
    pub at: Timestamp,
}

impl Registry {
    pub async fn rollback_order(&self, deployment: DeploymentId) -> Result<Option<RollbackOrder>> {
        let row = sqlx::query("SELECT * FROM rollbacks WHERE deployment = ?")
            .bind(deployment.0)
            .fetch_optional(&self.read)
            .await
            .map_err(query("read a rollback"))?;
        row.map(|row| {
            let (backup, parts) = read_data(row.get("backup"))?;
            Ok(RollbackOrder {
                kind: parse("kind of rollback", row.get("kind"))?,
                target: DeploymentId(row.get("target")),
                reason: row.get("reason"),
                forced: row.get("forced"),
                backup,
                parts,
                checks: from_json("safety checks", row.get("checks"))?,
            })
        })
        .transpose()
    }

    /// The newest rollback of an environment that succeeded. Putting data back under the live release is none: nothing was left.
    pub async fn last_rollback(&self, key: &EnvironmentKey) -> Result<Option<LastRollback>> {
        let row = sqlx::query(
            "SELECT d.id, d.previous, r.target FROM rollbacks AS r JOIN deployments AS d ON d.id = r.deployment
             WHERE d.app = ? AND d.environment = ? AND d.status = 'succeeded' AND r.kind <> 'restore' ORDER BY d.id DESC LIMIT 1",
        )
        .bind(key.app.as_str())
        .bind(key.environment.as_str())
        .fetch_optional(&self.read)
        .await
        .map_err(query("read rollbacks"))?;
        Ok(row.map(|row| LastRollback {
            deployment: DeploymentId(row.get("id")),
            from: row.get::<Option<i64>, _>("previous").map(DeploymentId),
            to: DeploymentId(row.get("target")),
        }))
    }

    /// Releases that a rollback which has not ended goes to: they must stay.
    pub async fn rollback_targets(&self, key: &EnvironmentKey) -> Result<Vec<DeploymentId>> {
        let ids: Vec<i64> = sqlx::query_scalar(
            "SELECT r.target FROM rollbacks AS r JOIN deployments AS d ON d.id = r.deployment
             WHERE d.app = ? AND d.environment = ? AND d.finished_at IS NULL",
        )
        .bind(key.app.as_str())
        .bind(key.environment.as_str())
        .fetch_all(&self.read)
        .await
        .map_err(query("read rollbacks"))?;
        Ok(ids.into_iter().map(DeploymentId).collect())
    }

    /// Releases that a person may need who looks at a stuck deployment: its own, the one that was live, and where a rollback went.
    pub async fn looked_at(&self, key: &EnvironmentKey) -> Result<Vec<DeploymentId>> {
        let rows = sqlx::query(
            "SELECT d.id, d.previous, r.target FROM deployments AS d LEFT JOIN rollbacks AS r ON r.deployment = d.id
             WHERE d.app = ? AND d.environment = ? AND d.status = 'stuck'
             AND NOT EXISTS (SELECT 1 FROM resolutions AS s WHERE s.deployment = d.id)",
        )
        .bind(key.app.as_str())
        .bind(key.environment.as_str())
        .fetch_all(&self.read)
        .await
        .map_err(query("read deployments"))?;
        let ids = rows.iter().flat_map(|row| {
            ["id", "previous", "target"].map(|column| row.get::<Option<i64>, _>(column).map(DeploymentId))
        });
        Ok(ids.flatten().collect())
    }

    /// Writes what was said to a deployment that waits for it; the first word counts and is what is returned. `None`: it does not wait
    /// (any more), and nothing was said before.
    pub async fn decide(&self, deployment: DeploymentId, decision: &Decision) -> Result<Option<Decision>> {
        // One statement: what is written here was said while it waited.
        sqlx::query(
            "INSERT INTO approvals (deployment, approved, by, reason, at)
             SELECT id, ?2, ?3, ?4, ?5 FROM deployments WHERE id = ?1 AND status = 'awaiting_approval'
             ON CONFLICT (deployment) DO NOTHING",
        )
        .bind(deployment.0)
        .bind(decision.approved)
        .bind(&decision.by)
        .bind(&decision.reason)
        .bind(decision.at.as_millisecond())
        .execute(&self.write)
        .await
        .map_err(query("write an approval"))?;
        self.decision(deployment).await
    }

    pub async fn decision(&self, deployment: DeploymentId) -> Result<Option<Decision>> {
        let row = sqlx::query("SELECT approved, by, reason, at FROM approvals WHERE deployment = ?")
            .bind(deployment.0)
            .fetch_optional(&self.read)
            .await
            .map_err(query("read an approval"))?;
        Ok(row.map(|row| Decision {
            approved: row.get("approved"),
            by: row.get("by"),
            reason: row.get("reason"),
            at: time(row.get("at")),
        }))
    }

    /// Writes that a stuck deployment was looked at, and with it the environment: older ones that nobody has looked at are resolved
    /// too. The first word counts and is what is returned.
    pub async fn resolve(&self, deployment: DeploymentId, resolution: &Resolution) -> Result<Resolution> {
        sqlx::query(
            "INSERT INTO resolutions (deployment, by, reason, at)
             SELECT d.id, ?2, ?3, ?4 FROM deployments AS d JOIN deployments AS named ON named.id = ?1
             WHERE d.app = named.app AND d.environment = named.environment AND d.id <= named.id AND d.status = 'stuck'
             ON CONFLICT (deployment) DO NOTHING",
        )
        .bind(deployment.0)
        .bind(&resolution.by)
        .bind(&resolution.reason)
        .bind(resolution.at.as_millisecond())
        .execute(&self.write)
        .await
        .map_err(query("resolve a deployment"))?;
        Ok(self.resolution(deployment).await?.unwrap_or_else(|| resolution.clone()))
    }

    pub async fn resolution(&self, deployment: DeploymentId) -> Result<Option<Resolution>> {
        let row = sqlx::query("SELECT by, reason, at FROM resolutions WHERE deployment = ?")
            .bind(deployment.0)
            .fetch_optional(&self.read)
            .await
            .map_err(query("read a resolution"))?;
        Ok(row.map(|row| Resolution { by: row.get("by"), reason: row.get("reason"), at: time(row.get("at")) }))
    }

    /// The newest stuck deployment of an environment that nobody has looked at: it stops automatic deployments.
    pub async fn unresolved(&self, key: &EnvironmentKey) -> Result<Option<DeploymentId>> {
        const UNRESOLVED: &str =
            "SELECT max(id) FROM deployments AS d WHERE app = ? AND environment = ? AND status = 'stuck'
             AND NOT EXISTS (SELECT 1 FROM resolutions AS r WHERE r.deployment = d.id)";
        self.one_of(key, UNRESOLVED).await
    }

    /// How many deployments of these environments of an app were resolved so far.
    pub async fn count_resolved(&self, app: &Name, environments: &[Name]) -> Result<i64> {
        sqlx::query_scalar(
            "SELECT count(*) FROM resolutions AS r JOIN deployments AS d ON d.id = r.deployment
             WHERE d.app = ? AND d.environment IN (SELECT value FROM json_each(?))",
        )
        .bind(app.as_str())
        .bind(to_json("names", &environments)?)
        .fetch_one(&self.read)
        .await
        .map_err(query("read resolutions"))
    }
}

/// Between a set and the names of its parts, in the column `backup`. Neither has this character.
const PARTS: char = '#';

/// What goes back, as the column `backup` has it: a set, and `#db,uploads` where only some of its parts do.
fn written_data(order: &RollbackOrder) -> Option<String> {
    let set = order.backup.as_ref()?;
    if order.parts.is_empty() {
        return Some(set.clone());
    }
    let parts: Vec<&str> = order.parts.iter().map(Name::as_str).collect();
    Some(format!("{set}{PARTS}{}", parts.join(",")))
}

pub(super) fn read_data(column: Option<String>) -> Result<(Option<String>, Vec<Name>)> {
    let Some(text) = column else { return Ok((None, Vec::new())) };
    match text.split_once(PARTS) {
        None => Ok((Some(text), Vec::new())),
        Some((set, parts)) => {
            let parts = parts.split(',').map(|part| parse("part of a backup", part)).collect::<Result<_>>()?;
            Ok((Some(set.to_owned()), parts))
        }
    }
}

pub(super) async fn insert_rollback(
    tx: &mut Transaction<'_, Sqlite>,
    deployment: i64,
    order: &RollbackOrder,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO rollbacks (deployment, kind, target, reason, forced, backup, checks) VALUES (?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(deployment)
    .bind(order.kind.as_str())
    .bind(order.target.0)
    .bind(&order.reason)
    .bind(order.forced)
    .bind(written_data(order))
    .bind(to_json("safety checks", &order.checks)?)
    .execute(&mut **tx)
    .await
    .map_err(query("write a rollback"))?;
    Ok(())
}
