//! What a chat shows of a deployment: the messages that are edited as it goes on.

use jiff::Timestamp;
use sqlx::{Row, Sqlite, Transaction, sqlite::SqliteRow};

use super::{MessageKind, Registry, Result, now_ms, query, time};
use crate::model::DeploymentId;

/// A message that is edited while its deployment goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatMessage {
    pub deployment: DeploymentId,
    /// `Begun`, the live message, or `Approval`.
    pub kind: MessageKind,
    pub chat: i64,
    pub thread: Option<i32>,
    /// Its number in the chat.
    pub message: i32,
    /// Of what it shows.
    pub digest: String,
    pub shown_at: Timestamp,
    /// It does not show its last word yet.
    pub open: bool,
    /// Somebody deleted it, or it can no longer be edited.
    pub gone: bool,
}

impl Registry {
    /// Those that do not show their last word yet, by deployment.
    pub async fn open_chat_messages(&self) -> Result<Vec<ChatMessage>> {
        let rows = sqlx::query("SELECT * FROM chat_messages WHERE open = 1 ORDER BY deployment, kind")
            .fetch_all(&self.read)
            .await
            .map_err(query("read the chat's messages"))?;
        Ok(rows.iter().filter_map(chat_message).collect())
    }

    pub async fn chat_message(&self, id: DeploymentId, kind: MessageKind) -> Result<Option<ChatMessage>> {
        let row = sqlx::query("SELECT * FROM chat_messages WHERE deployment = ? AND kind = ?")
            .bind(id.0)
            .bind(kind.as_str())
            .fetch_optional(&self.read)
            .await
            .map_err(query("read the chat's messages"))?;
        Ok(row.as_ref().and_then(chat_message))
    }

    /// Notes what it shows now, and whether that was its last word.
    pub async fn chat_message_edited(&self, edited: &ChatMessage) -> Result<()> {
        sqlx::query(
            "UPDATE chat_messages SET digest = ?, shown_at = ?, open = ?, gone = ? WHERE deployment = ? AND kind = ?",
        )
        .bind(&edited.digest)
        .bind(now_ms())
        .bind(edited.open)
        .bind(edited.gone)
        .bind(edited.deployment.0)
        .bind(edited.kind.as_str())
        .execute(&self.write)
        .await
        .map_err(query("note the chat's messages"))?;
        Ok(())
    }
}

pub(super) async fn insert(tx: &mut Transaction<'_, Sqlite>, new: &ChatMessage) -> Result<()> {
    sqlx::query(
        "INSERT OR REPLACE INTO chat_messages
            (deployment, kind, chat, thread, message, digest, shown_at, open, gone)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(new.deployment.0)
    .bind(new.kind.as_str())
    .bind(new.chat)
    .bind(new.thread)
    .bind(new.message)
    .bind(&new.digest)
    .bind(new.shown_at.as_millisecond())
    .bind(new.open)
    .bind(new.gone)
    .execute(&mut **tx)
    .await
    .map_err(query("note the chat's messages"))?;
    Ok(())
}

/// `None`: of a kind that only a later version knows.
fn chat_message(row: &SqliteRow) -> Option<ChatMessage> {
    Some(ChatMessage {
        deployment: DeploymentId(row.get("deployment")),
        kind: MessageKind::read(row.get("kind"))?,
        chat: row.get("chat"),
        thread: row.get("thread"),
        message: row.get("message"),
        digest: row.get("digest"),
        shown_at: time(row.get("shown_at")),
        open: row.get("open"),
        gone: row.get("gone"),
    })
}
