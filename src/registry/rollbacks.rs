//! Rollbacks as a list: those that somebody asked for have a row of their own, those that Refit did by itself are told by the journal of
//! the deployment that failed.

use sqlx::{QueryBuilder, Row, Sqlite, sqlite::SqliteRow};

use super::{Filter, Registry, Result, deployments::key_of, from_json, parse, query, time};
use crate::model::{DeploymentId, RollbackEvent, RollbackKind, Status, Trigger};

/// One row a rollback. An automatic one is the undo of a deployment's start: from the deployment itself to what was live before.
const SELECT: &str = "
    SELECT * FROM (
        SELECT d.id, d.app, d.environment, r.kind, r.reason, d.triggered, d.status, d.previous AS from_id, r.target AS to_id,
            d.queued_at, d.commit_id, d.started_at AS began, d.finished_at AS ended,
            (SELECT sent_at FROM outbox AS o WHERE o.deployment = d.id AND o.kind = 'end') AS notified
        FROM rollbacks AS r JOIN deployments AS d ON d.id = r.deployment
        UNION ALL
        SELECT d.id, d.app, d.environment, 'automatic', d.error, NULL,
            CASE d.status WHEN 'rolled_back' THEN 'succeeded' ELSE d.status END, d.id, d.previous,
            d.queued_at, d.commit_id, min(e.at), max(e.at),
            (SELECT sent_at FROM outbox AS o WHERE o.deployment = d.id AND o.kind = 'end')
        FROM deployments AS d JOIN events AS e ON e.deployment = d.id
        WHERE d.status IN ('rolled_back', 'stuck') AND NOT EXISTS (SELECT 1 FROM rollbacks AS r WHERE r.deployment = d.id)
            AND e.body ->> 'stage' = 'start' AND e.body ->> 'event' IN ('undo_started', 'undo_finished', 'undo_failed')
        GROUP BY d.id
    )";

impl Registry {
    /// Rollbacks, the newest first, by one query. A filter's status is that of the rollback.
    pub async fn rollbacks(&self, filter: &Filter) -> Result<Vec<RollbackEvent>> {
        let mut sql: QueryBuilder<Sqlite> = QueryBuilder::new(SELECT);
        filter.push_conditions(&mut sql, "");
        let rows = sql.build().fetch_all(&self.read).await.map_err(query("read rollbacks"))?;
        rows.iter().map(event).collect()
    }
}

fn event(row: &SqliteRow) -> Result<RollbackEvent> {
    let key = key_of(row)?;
    let trigger =
        row.get::<Option<String>, _>("triggered").map(|text| from_json::<Trigger>("trigger", &text)).transpose()?;
    let at = |column: &'static str| row.get::<Option<i64>, _>(column).map(time);
    let deployment = |column: &'static str| row.get::<Option<i64>, _>(column).map(DeploymentId);
    Ok(RollbackEvent {
        id: DeploymentId(row.get("id")),
        app: key.app,
        environment: key.environment,
        kind: parse::<RollbackKind>("kind of rollback", row.get("kind"))?,
        status: parse::<Status>("status", row.get("status"))?,
        reason: row.get("reason"),
        by: trigger.and_then(|trigger| trigger.by),
        from: deployment("from_id"),
        to: deployment("to_id"),
        started_at: at("began"),
        finished_at: at("ended"),
        notified_at: at("notified"),
    })
}
