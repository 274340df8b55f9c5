//! Appending to a deployment's journal. One event, and whatever it changes in other tables, is one transaction.

use std::collections::HashMap;

use jiff::Timestamp;
use sqlx::{Row, Sqlite, Transaction, sqlite::SqliteRow};

use super::{NewMessage, Registry, Release, Result, from_json, now_ms, query, time, to_json};
use crate::{
    model::{CommitId, DeploymentId, Stage, Status},
    pipeline::journal::{Event, Recorded, Saga, next},
};

/// What a deployment's row learns with an event; `None` leaves a column as it is.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    pub commit: Option<CommitId>,
    pub reference: Option<String>,
    pub subject: Option<String>,
    pub author: Option<String>,
    pub image: Option<String>,
    pub backup: Option<String>,
    pub log: Option<String>,
    /// Bytes that retention gave back.
    pub freed: Option<u64>,
}

/// How a deployment ended: goes with `Event::Ended`.
#[derive(Debug, Clone)]
pub struct End {
    pub failed_stage: Option<Stage>,
    pub error: Option<String>,
    pub exit_code: u8,
    /// It is live from this moment.
    pub live: Option<Release>,
}

/// One append.
#[derive(Debug)]
pub struct Entry {
    pub event: Event,
    pub facts: Facts,
    pub end: Option<End>,
    pub message: Option<NewMessage>,
}

impl From<Event> for Entry {
    fn from(event: Event) -> Self {
        Self { event, facts: Facts::default(), end: None, message: None }
    }
}

impl Registry {
    /// Checks the event against the journal, writes it, and returns the new state. `seq` of `saga` is the number of events so far:
    /// had somebody else written meanwhile, the primary key would refuse.
    pub async fn append(&self, id: DeploymentId, saga: &Saga, seq: i64, entry: &Entry) -> Result<(Saga, Recorded)> {
        let to = next(saga, &entry.event)?;
        let recorded = Recorded { seq: seq + 1, at: Timestamp::now(), event: entry.event.clone() };
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await.map_err(query("write the journal"))?;
        insert_event(&mut tx, id, &recorded).await?;
        update_row(&mut tx, id, entry, to.status()).await?;
        if let Some(release) = entry.end.as_ref().and_then(|end| end.live.as_ref()) {
            super::releases::make_live(&mut tx, release).await?;
        }
        if let Some(message) = &entry.message {
            super::outbox::insert(&mut tx, id, message).await?;
        }
        tx.commit().await.map_err(query("write the journal"))?;
        Ok((to, recorded))
    }

    /// A deployment's events after `seq`, in order.
    pub async fn events(&self, id: DeploymentId, after: i64) -> Result<Vec<Recorded>> {
        let rows = sqlx::query("SELECT seq, at, body FROM events WHERE deployment = ? AND seq > ? ORDER BY seq")
            .bind(id.0)
            .bind(after)
            .fetch_all(&self.read)
            .await
            .map_err(query("read the journal"))?;
        rows.iter().map(recorded).collect()
    }

    /// The events of many deployments by one query; those without events are missing.
    pub(super) async fn events_of(&self, ids: &[DeploymentId]) -> Result<HashMap<DeploymentId, Vec<Recorded>>> {
        let rows = sqlx::query(
            "SELECT deployment, seq, at, body FROM events
             WHERE deployment IN (SELECT value FROM json_each(?)) ORDER BY deployment, seq",
        )
        .bind(to_json("ids", &ids)?)
        .fetch_all(&self.read)
        .await
        .map_err(query("read the journal"))?;
        let mut events: HashMap<DeploymentId, Vec<Recorded>> = HashMap::with_capacity(ids.len());
        for row in &rows {
            events.entry(DeploymentId(row.get("deployment"))).or_default().push(recorded(row)?);
        }
        Ok(events)
    }

    /// A deployment's state and the number of its events.
    pub async fn saga(&self, id: DeploymentId) -> Result<(Saga, i64)> {
        let events = self.events(id, 0).await?;
        let saga = Saga::replay(events.iter().map(|r| &r.event))?;
        Ok((saga, events.last().map_or(0, |r| r.seq)))
    }
}

fn recorded(row: &SqliteRow) -> Result<Recorded> {
    let event = from_json("event", row.get("body"))?;
    Ok(Recorded { seq: row.get("seq"), at: time(row.get("at")), event })
}

pub(super) async fn insert_event(
    tx: &mut Transaction<'_, Sqlite>,
    id: DeploymentId,
    recorded: &Recorded,
) -> Result<()> {
    sqlx::query("INSERT INTO events (deployment, seq, at, body) VALUES (?, ?, ?, ?)")
        .bind(id.0)
        .bind(recorded.seq)
        .bind(recorded.at.as_millisecond())
        .bind(to_json("event", &recorded.event)?)
        .execute(&mut **tx)
        .await
        .map_err(query("write the journal"))?;
    Ok(())
}

async fn update_row(tx: &mut Transaction<'_, Sqlite>, id: DeploymentId, entry: &Entry, status: Status) -> Result<()> {
    let facts = &entry.facts;
    let previous = match &entry.event {
        Event::Begun { previous, .. } => *previous,
        _ => None,
    };
    let began = matches!(entry.event, Event::Begun { .. }).then(now_ms);
    let ended = matches!(entry.event, Event::Ended { .. }).then(now_ms);
    sqlx::query(
        "UPDATE deployments SET
            status = ?2, previous = coalesce(?3, previous),
            started_at = coalesce(?4, started_at), finished_at = coalesce(?5, finished_at),
            commit_id = coalesce(?6, commit_id), reference = coalesce(?7, reference),
            subject = coalesce(?8, subject), author = coalesce(?9, author),
            image = coalesce(?10, image), backup = coalesce(?11, backup), log = coalesce(?12, log),
            failed_stage = coalesce(?13, failed_stage), error = coalesce(?14, error), exit_code = coalesce(?15, exit_code),
            freed = coalesce(?16, freed)
         WHERE id = ?1",
    )
    .bind(id.0)
    .bind(status.as_str())
    .bind(previous.map(|p| p.0))
    .bind(began)
    .bind(ended)
    .bind(facts.commit.as_ref().map(CommitId::as_str))
    .bind(&facts.reference)
    .bind(&facts.subject)
    .bind(&facts.author)
    .bind(&facts.image)
    .bind(&facts.backup)
    .bind(&facts.log)
    .bind(entry.end.as_ref().and_then(|e| e.failed_stage).map(Stage::as_str))
    .bind(entry.end.as_ref().and_then(|e| e.error.clone()))
    .bind(entry.end.as_ref().map(|e| e.exit_code))
    .bind(facts.freed.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX)))
    .execute(&mut **tx)
    .await
    .map_err(query("write a deployment"))?;
    Ok(())
}
