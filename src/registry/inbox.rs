//! Deliveries: written in batches, settled by the queue.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use sqlx::{Row, sqlite::SqliteRow};

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
    /// Writes a batch in one statement, which is one commit. Receipts come in the order of the batch. A delivery that is there already
    /// (same source, app and id, in the store or earlier in the batch) is told as a duplicate with the first one's id.
    pub async fn accept(&self, batch: &[Delivery]) -> Result<Vec<Receipt>> {
        let rows: Vec<_> = batch
            .iter()
            .map(|d| (d.source.as_str(), &d.delivery, &d.app, &d.branch, &d.commit, &d.pusher, d.forced))
            .collect();
        let inserted = sqlx::query(
            "INSERT INTO deliveries (source, delivery, app, branch, commit_id, pusher, forced, received_at)
             SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, ?2
             FROM json_each(?1) WHERE true ORDER BY key
             ON CONFLICT (source, app, delivery) DO NOTHING
             RETURNING id, source, app, delivery",
        )
        .bind(to_json("batch", &rows)?)
        .bind(now_ms())
        .fetch_all(&self.write)
        .await
        .map_err(query("write deliveries"))?;
        let mut new: HashMap<(String, String, String), i64> = HashMap::with_capacity(inserted.len());
        new.extend(
            inserted.iter().map(|row| ((row.get("source"), row.get("app"), row.get("delivery")), row.get("id"))),
        );
        let mut first = HashMap::new();
        let mut receipts = Vec::with_capacity(batch.len());
        for delivery in batch {
            let key = (delivery.source.as_str().to_owned(), delivery.app.to_string(), delivery.delivery.clone());
            let receipt = match (new.remove(&key), first.get(&key)) {
                (Some(id), _) => {
                    first.insert(key, id);
                    Receipt { id, duplicate: false }
                }
                (None, Some(id)) => Receipt { id: *id, duplicate: true },
                (None, None) => Receipt { id: self.delivery_id(delivery).await?, duplicate: true },
            };
            receipts.push(receipt);
        }
        Ok(receipts)
    }

    async fn delivery_id(&self, delivery: &Delivery) -> Result<i64> {
        sqlx::query_scalar("SELECT id FROM deliveries WHERE source = ? AND app = ? AND delivery = ?")
            .bind(delivery.source.as_str())
            .bind(delivery.app.as_str())
            .bind(&delivery.delivery)
            .fetch_one(&self.read)
            .await
            .map_err(query("read a delivery"))
    }

    /// The newest delivery of each app and branch that the queue has not settled, oldest first. (SQLite takes the other columns from the
    /// row that has the `max`.)
    pub async fn newest_open_deliveries(&self) -> Result<Vec<StoredDelivery>> {
        let rows = sqlx::query(
            "SELECT max(id) AS id, source, delivery, app, branch, commit_id, pusher, forced FROM deliveries
             WHERE outcome IS NULL GROUP BY app, branch ORDER BY 1",
        )
        .fetch_all(&self.read)
        .await
        .map_err(query("read deliveries"))?;
        rows.iter().map(stored).collect()
    }

    /// Every open delivery, oldest first: for tests that count rows.
    #[cfg(test)]
    pub async fn open_deliveries(&self, limit: u32) -> Result<Vec<StoredDelivery>> {
        let rows = sqlx::query("SELECT * FROM deliveries WHERE outcome IS NULL ORDER BY id LIMIT ?").bind(limit);
        let rows = rows.fetch_all(&self.read).await.map_err(query("read deliveries"))?;
        rows.iter().map(stored).collect()
    }

    /// Records what became of a delivery, and that it took the place of the older open ones of its app and branch. How many that
    /// settled.
    pub async fn settle(&self, newest: &StoredDelivery, outcomes: &[Outcome]) -> Result<u64> {
        let superseded = [Outcome {
            environment: None,
            deployment: None,
            ignored: Some(format!("delivery {} is newer", newest.id)),
        }];
        let done = sqlx::query(
            "UPDATE deliveries SET outcome = CASE id WHEN ?1 THEN ?2 ELSE ?3 END
             WHERE outcome IS NULL AND id <= ?1 AND app = ?4 AND branch = ?5",
        )
        .bind(newest.id)
        .bind(to_json("outcomes", &outcomes)?)
        .bind(to_json("outcomes", &superseded)?)
        .bind(newest.delivery.app.as_str())
        .bind(newest.delivery.branch.as_str())
        .execute(&self.write)
        .await
        .map_err(query("settle deliveries"))?;
        Ok(done.rows_affected())
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

fn stored(row: &SqliteRow) -> Result<StoredDelivery> {
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
}
