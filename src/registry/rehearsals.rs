//! What trying a backup out has shown, as far as people have to be told: a message about a set that is not good, once, and one that all is well
//! again. Which of them is news is read from the messages that were written before, in the transaction that writes the new one; so nothing is
//! told twice, whoever looks again after a crash.

use serde::{Deserialize, Serialize};

use super::{Message, Registry, Result, from_json, now_ms, query, to_json};
use crate::model::EnvironmentKey;

/// The kind of such a message. It is about no deployment.
const KIND: &str = "rehearsal";

/// The version of a row's body.
const VERSION: u64 = 1;

/// What was found of a set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rehearsed {
    version: u64,
    #[serde(flatten)]
    pub key: EnvironmentKey,
    /// The set's name.
    pub set: String,
    pub good: bool,
    /// For people: what is wrong, each with the part's name.
    pub problems: Vec<String>,
    /// A deployment fails because of it: its report rings, and once is enough.
    #[serde(default)]
    in_report: bool,
}

impl Rehearsed {
    pub fn new(key: EnvironmentKey, set: String, good: bool, problems: Vec<String>) -> Self {
        Self { version: VERSION, key, set, good, problems, in_report: false }
    }

    /// The same, told by the report of a deployment too, if `told`.
    pub fn in_report(self, told: bool) -> Self {
        Self { in_report: told, ..self }
    }

    /// Whether a person is to hear it.
    pub fn rings(&self) -> bool {
        !self.good && !self.in_report
    }
}

impl Message {
    /// What it tells of a backup; `None` where it is about something else, or a newer version wrote it.
    pub fn rehearsed(&self) -> Option<Rehearsed> {
        let about = self.kind == KIND && self.deployment.is_none();
        let read = about.then(|| serde_json::from_value::<Rehearsed>(self.body.clone()).ok())??;
        (read.version == VERSION).then_some(read)
    }
}

impl Registry {
    /// Writes a message if this is news: a set that is not good and was not the last one that was told of, or a good one after one that was not.
    /// Whether it wrote one.
    pub async fn rehearsed(&self, found: &Rehearsed) -> Result<bool> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await.map_err(query("write a message"))?;
        let last: Option<String> = sqlx::query_scalar(
            "SELECT body FROM outbox WHERE kind = ? AND json_extract(body, '$.app') = ?
                AND json_extract(body, '$.environment') = ? ORDER BY id DESC LIMIT 1",
        )
        .bind(KIND)
        .bind(found.key.app.as_str())
        .bind(found.key.environment.as_str())
        .fetch_optional(&mut *tx)
        .await
        .map_err(query("read the outbox"))?;
        let last: Option<Rehearsed> = last.map(|body| from_json("message", &body)).transpose()?;
        let bad_before = last.filter(|last| !last.good);
        let news = match found.good {
            true => bad_before.is_some(),
            false => bad_before.is_none_or(|before| before.set != found.set),
        };
        if news {
            sqlx::query("INSERT INTO outbox (kind, body, created_at, next_at) VALUES (?1, ?2, ?3, ?3)")
                .bind(KIND)
                .bind(to_json("message", found)?)
                .bind(now_ms())
                .execute(&mut *tx)
                .await
                .map_err(query("write a message"))?;
        }
        tx.commit().await.map_err(query("write a message"))?;
        Ok(news)
    }
}
