//! Deliveries: written in batches, settled by the queue.

use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::Row;

use super::{Registry, Result, from_json, now_ms, parse, query, to_json};
use crate::model::{Branch, CommitId, DeploymentId, EnvironmentKey, Name, TriggerKind};

/// A push as a door hands it in: checked, and reduced to what the queue needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    pub source: TriggerKind,
    /// The Git host's id of this delivery; doors without one make one up that repeats for the same push.
    pub delivery: String,
    pub app: Name,
    pub branch: Branch,
    pub commit: CommitId,
    pub pusher: Option<String>,
    /// The push replaced history.
    pub forced: bool,
}

/// The answer to a delivery: on disk, now or before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    pub id: i64,
    /// The same delivery was here before; nothing was added.
    pub duplicate: bool,
}

/// What the queue made of a delivery for one environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    pub environment: Option<EnvironmentKey>,
    pub deployment: Option<DeploymentId>,
    /// Why there is no new deployment.
    pub ignored: Option<String>,
}

#[derive(Debug, Clone)]
pub struct StoredDelivery {
    pub id: i64,
    pub delivery: Delivery,
}

impl Registry {
    /// Writes a batch in one commit. Receipts come in the order of the batch. A delivery that is there already (same source,
    /// app and id, in the store or earlier in the batch) is told as a duplicate with the first one's id.
    pub async fn accept(&self, batch: &[Delivery]) -> Result<Vec<Receipt>> {
        let rows: Vec<_> = batch
            .iter()
            .map(|d| json!([d.source.as_str(), d.delivery, d.app, d.branch, d.commit, d.pusher, d.forced]))
            .collect();
        let rows = to_json("batch", &rows)?;
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await.map_err(query("write deliveries"))?;
        let before: i64 = sqlx::query_scalar("SELECT coalesce(max(id), 0) FROM deliveries")
            .fetch_one(&mut *tx)
            .await
            .map_err(query("write deliveries"))?;
        sqlx::query(
            "INSERT INTO deliveries (source, delivery, app, branch, commit_id, pusher, forced, received_at)
             SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, ?2
             FROM json_each(?1) WHERE true ORDER BY key
             ON CONFLICT (source, app, delivery) DO NOTHING",
        )
        .bind(&rows)
        .bind(now_ms())
        .execute(&mut *tx)
        .await
        .map_err(query("write deliveries"))?;
        let ids: Vec<i64> = sqlx::query_scalar(
            "SELECT d.id FROM json_each(?1) AS j JOIN deliveries AS d
             ON d.source = j.value ->> 0 AND d.app = j.value ->> 2 AND d.delivery = j.value ->> 1
             ORDER BY j.key",
        )
        .bind(&rows)
        .fetch_all(&mut *tx)
        .await
        .map_err(query("write deliveries"))?;
        tx.commit().await.map_err(query("write deliveries"))?;
        let mut seen = std::collections::HashSet::new();
        Ok(ids.into_iter().map(|id| Receipt { id, duplicate: id <= before || !seen.insert(id) }).collect())
    }

    /// Deliveries that the queue has not settled, oldest first.
    pub async fn open_deliveries(&self, limit: u32) -> Result<Vec<StoredDelivery>> {
        let rows = sqlx::query(
            "SELECT id, source, delivery, app, branch, commit_id, pusher, forced FROM deliveries
             WHERE outcome IS NULL ORDER BY id LIMIT ?",
        )
        .bind(limit)
        .fetch_all(&self.read)
        .await
        .map_err(query("read deliveries"))?;
        rows.iter()
            .map(|row| {
                let delivery = Delivery {
                    source: parse("source", row.get("source"))?,
                    delivery: row.get("delivery"),
                    app: parse("app", row.get("app"))?,
                    branch: parse("branch", row.get("branch"))?,
                    commit: parse("commit", row.get("commit_id"))?,
                    pusher: row.get("pusher"),
                    forced: row.get("forced"),
                };
                Ok(StoredDelivery { id: row.get("id"), delivery })
            })
            .collect()
    }

    /// Records what became of deliveries, all in one commit.
    pub async fn settle(&self, outcomes: &[(i64, Vec<Outcome>)]) -> Result<()> {
        let rows: Vec<_> = outcomes.iter().map(|(id, outcome)| json!([id, outcome])).collect();
        sqlx::query(
            "UPDATE deliveries SET outcome = j.value ->> 1 FROM json_each(?1) AS j WHERE deliveries.id = j.value ->> 0",
        )
        .bind(to_json("outcomes", &rows)?)
        .execute(&self.write)
        .await
        .map_err(query("settle deliveries"))?;
        Ok(())
    }

    /// What became of one delivery; `None` while the queue has not settled it (or there is none).
    pub async fn outcome(&self, delivery: i64) -> Result<Option<Vec<Outcome>>> {
        let text: Option<Option<String>> = sqlx::query_scalar("SELECT outcome FROM deliveries WHERE id = ?")
            .bind(delivery)
            .fetch_optional(&self.read)
            .await
            .map_err(query("read a delivery"))?;
        text.flatten().map(|text| from_json("outcome", &text)).transpose()
    }

    /// Forgets settled deliveries older than `days`, so that the inbox does not grow for ever. The number removed.
    pub async fn forget_deliveries(&self, days: u32) -> Result<u64> {
        let before = now_ms() - i64::from(days) * 86_400_000;
        let done = sqlx::query("DELETE FROM deliveries WHERE outcome IS NOT NULL AND received_at < ?")
            .bind(before)
            .execute(&self.write)
            .await
            .map_err(query("forget deliveries"))?;
        Ok(done.rows_affected())
    }
}
