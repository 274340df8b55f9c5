//! The outbox: messages are written with the state they report and stay until they were accepted.

use std::time::Duration;

use jiff::Timestamp;
use sqlx::{Row, Sqlite, Transaction};

use super::{NewMessage, Registry, Result, from_json, now_ms, query, time, to_json};
use crate::model::DeploymentId;

/// A message that waits to be sent.
#[derive(Debug, Clone)]
pub struct Message {
    pub id: i64,
    pub deployment: Option<DeploymentId>,
    pub kind: String,
    pub body: serde_json::Value,
    /// Failed attempts so far.
    pub attempts: u32,
    pub created_at: Timestamp,
}

pub(super) async fn insert(
    tx: &mut Transaction<'_, Sqlite>,
    deployment: DeploymentId,
    message: &NewMessage,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO outbox (deployment, kind, body, created_at, next_at) VALUES (?1, ?2, ?3, ?4, ?4)
         ON CONFLICT (deployment, kind) DO NOTHING",
    )
    .bind(deployment.0)
    .bind(&message.kind)
    .bind(to_json("message", &message.body)?)
    .bind(now_ms())
    .execute(&mut **tx)
    .await
    .map_err(query("write a message"))?;
    Ok(())
}

impl Registry {
    /// The oldest message that is due.
    pub async fn due_message(&self) -> Result<Option<Message>> {
        let row = sqlx::query(
            "SELECT id, deployment, kind, body, attempts, created_at FROM outbox
             WHERE sent_at IS NULL AND next_at <= ? ORDER BY id LIMIT 1",
        )
        .bind(now_ms())
        .fetch_optional(&self.read)
        .await
        .map_err(query("read the outbox"))?;
        row.map(|row| {
            Ok(Message {
                id: row.get("id"),
                deployment: row.get::<Option<i64>, _>("deployment").map(DeploymentId),
                kind: row.get("kind"),
                body: from_json("message", row.get("body"))?,
                attempts: row.get("attempts"),
                created_at: time(row.get("created_at")),
            })
        })
        .transpose()
    }

    /// How long until the next message is due; `None` with an empty outbox.
    pub async fn next_message_in(&self) -> Result<Option<Duration>> {
        let at: Option<i64> = sqlx::query_scalar("SELECT min(next_at) FROM outbox WHERE sent_at IS NULL")
            .fetch_one(&self.read)
            .await
            .map_err(query("read the outbox"))?;
        Ok(at.map(|at| Duration::from_millis(u64::try_from(at - now_ms()).unwrap_or(0))))
    }

    pub async fn message_sent(&self, id: i64) -> Result<()> {
        sqlx::query("UPDATE outbox SET sent_at = ?, error = NULL WHERE id = ?")
            .bind(now_ms())
            .bind(id)
            .execute(&self.write)
            .await
            .map_err(query("settle a message"))?;
        Ok(())
    }

    /// Notes a failed attempt; the message is due again after `wait`.
    pub async fn message_failed(&self, id: i64, error: &str, wait: Duration) -> Result<()> {
        let wait = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX / 4);
        sqlx::query("UPDATE outbox SET attempts = attempts + 1, error = ?, next_at = ? WHERE id = ?")
            .bind(error)
            .bind(now_ms() + wait)
            .bind(id)
            .execute(&self.write)
            .await
            .map_err(query("settle a message"))?;
        Ok(())
    }

    /// Messages that wait, and the last error of the oldest: for `doctor` and `status`.
    pub async fn outbox_backlog(&self) -> Result<(u64, Option<String>)> {
        let row = sqlx::query(
            "SELECT count(*) AS waiting,
                    (SELECT error FROM outbox WHERE sent_at IS NULL ORDER BY id LIMIT 1) AS error
             FROM outbox WHERE sent_at IS NULL",
        )
        .fetch_one(&self.read)
        .await
        .map_err(query("read the outbox"))?;
        let waiting: i64 = row.get("waiting");
        Ok((waiting.unsigned_abs(), row.get("error")))
    }
}
