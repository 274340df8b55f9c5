//! The outbox: messages are written with the state they report and stay until they were accepted.
//!
//! A row says only what its message is about ([`NewMessage::of`]); the words are found when it is sent. Before the request goes out the row is
//! marked (`sending_at`), and settled with the answer. So a row that is found marked by the next attempt went out before, and nobody knows
//! whether it arrived: a crash in between, or an answer that never came. [`Message::doubtful`] says so, and `doubts` counts how often such
//! a message went out again.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use sqlx::{Row, Sqlite, Transaction};

use super::{ChatMessage, Registry, Result, chat, from_json, now_ms, query, time, to_json};
use crate::model::DeploymentId;

/// What a message tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// A deployment left the queue.
    Begun,
    /// It waits for a person's word.
    Approval,
    End,
    /// The log of the stage that failed, where the message of the end had no room for it.
    Log,
}

impl MessageKind {
    const ALL: [Self; 4] = [Self::Begun, Self::Approval, Self::End, Self::Log];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Begun => "begun",
            Self::Approval => "approval",
            Self::End => "end",
            Self::Log => "log",
        }
    }

    pub(super) fn read(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

/// The version of a row's body.
const VERSION: u64 = 1;

/// A message for the outbox, written with the state it reports. `kind` is unique for a deployment.
#[derive(Debug, Clone)]
pub struct NewMessage {
    pub kind: String,
    pub body: Value,
}

impl NewMessage {
    pub fn of(kind: MessageKind) -> Self {
        Self { kind: kind.as_str().to_owned(), body: json!({ "version": VERSION }) }
    }
}

/// A message that waits to be sent.
#[derive(Debug, Clone)]
pub struct Message {
    pub id: i64,
    pub deployment: Option<DeploymentId>,
    pub kind: String,
    pub body: Value,
    /// Failed attempts so far.
    pub attempts: u32,
    /// It went out before, and whether it arrived is not known.
    pub doubtful: bool,
    pub created_at: Timestamp,
}

impl Message {
    /// What it tells of, and of which deployment; `None` where a newer version wrote it.
    pub fn about(&self) -> Option<(MessageKind, DeploymentId)> {
        let known = self.body.get("version").and_then(Value::as_u64) == Some(VERSION);
        MessageKind::read(&self.kind).filter(|_| known).zip(self.deployment)
    }
}

/// What became of all messages so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OutboxFigures {
    /// Ever written.
    pub due: u64,
    /// Accepted.
    pub sent: u64,
    /// Settled without being sent: out of date, or refused for a day.
    pub dropped: u64,
    pub waiting: u64,
    /// Times that a message went out again after an answer that was not heard.
    pub doubtful: u64,
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
            "SELECT id, deployment, kind, body, attempts, sending_at, created_at FROM outbox
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
                doubtful: row.get::<Option<i64>, _>("sending_at").is_some(),
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

    /// A request with the message goes out now.
    pub async fn message_sending(&self, id: i64) -> Result<()> {
        sqlx::query("UPDATE outbox SET doubts = doubts + (sending_at IS NOT NULL), sending_at = ? WHERE id = ?")
            .bind(now_ms())
            .bind(id)
            .execute(&self.write)
            .await
            .map_err(query("mark a message"))?;
        Ok(())
    }

    /// It was accepted: `shown` is what the chat shows of it from now on, `next` what is to be sent after it, all in one commit.
    pub async fn message_sent(
        &self,
        message: &Message,
        shown: Option<&ChatMessage>,
        next: Option<&NewMessage>,
    ) -> Result<()> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await.map_err(query("settle a message"))?;
        sqlx::query("UPDATE outbox SET sent_at = ?, sending_at = NULL, error = NULL WHERE id = ?")
            .bind(now_ms())
            .bind(message.id)
            .execute(&mut *tx)
            .await
            .map_err(query("settle a message"))?;
        if let Some(shown) = shown {
            chat::insert(&mut tx, shown).await?;
        }
        if let Some((next, deployment)) = next.zip(message.deployment) {
            insert(&mut tx, deployment, next).await?;
        }
        tx.commit().await.map_err(query("settle a message"))
    }

    /// There is nothing to say any more.
    pub async fn message_dropped(&self, id: i64) -> Result<()> {
        sqlx::query("UPDATE outbox SET sent_at = ?, dropped = 1, sending_at = NULL, error = NULL WHERE id = ?")
            .bind(now_ms())
            .bind(id)
            .execute(&self.write)
            .await
            .map_err(query("settle a message"))?;
        Ok(())
    }

    /// It is not its time yet.
    pub async fn message_waits(&self, id: i64, wait: Duration) -> Result<()> {
        sqlx::query("UPDATE outbox SET next_at = ? WHERE id = ?")
            .bind(now_ms().saturating_add(millis(wait)))
            .bind(id)
            .execute(&self.write)
            .await
            .map_err(query("put a message off"))?;
        Ok(())
    }

    /// Notes a failed attempt; the message is due again after `wait`. `unheard`: it may have arrived all the same.
    pub async fn message_failed(&self, id: i64, error: &str, wait: Duration, unheard: bool) -> Result<()> {
        sqlx::query(
            "UPDATE outbox SET attempts = attempts + 1, error = ?, next_at = ?,
                sending_at = CASE WHEN ? THEN sending_at END WHERE id = ?",
        )
        .bind(error)
        .bind(now_ms().saturating_add(millis(wait)))
        .bind(unheard)
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

    /// Nothing waits for its time any more.
    pub async fn messages_due_now(&self) -> Result<()> {
        sqlx::query("UPDATE outbox SET next_at = ?1 WHERE sent_at IS NULL AND next_at > ?1")
            .bind(now_ms())
            .execute(&self.write)
            .await
            .map_err(query("put messages on"))?;
        Ok(())
    }

    pub async fn outbox_figures(&self) -> Result<OutboxFigures> {
        let row = sqlx::query(
            "SELECT count(*) AS due, CAST(total(doubts) AS INTEGER) AS doubtful,
                count(*) FILTER (WHERE sent_at IS NOT NULL AND NOT dropped) AS sent,
                count(*) FILTER (WHERE dropped) AS dropped, count(*) FILTER (WHERE sent_at IS NULL) AS waiting
             FROM outbox",
        )
        .fetch_one(&self.read)
        .await
        .map_err(query("read the outbox"))?;
        let count = |column: &'static str| row.get::<i64, _>(column).unsigned_abs();
        Ok(OutboxFigures {
            due: count("due"),
            sent: count("sent"),
            dropped: count("dropped"),
            waiting: count("waiting"),
            doubtful: count("doubtful"),
        })
    }
}

fn millis(wait: Duration) -> i64 {
    i64::try_from(wait.as_millis()).unwrap_or(i64::MAX / 4)
}
