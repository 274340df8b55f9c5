//! Deployment rows, and the whole view of a deployment.

use jiff::Timestamp;
use sqlx::{QueryBuilder, Row, Sqlite, sqlite::SqliteRow};

use super::{
    Registry, Result, RollbackOrder, bot, damaged,
    decisions::{insert_rollback, read_data},
    from_json,
    journal::insert_event,
    now_ms, parse, query, time, to_json,
};
use crate::{
    model::{
        ApprovalState, ApprovalView, CommitId, DeploymentId, DeploymentView, EnvironmentKey, Resolution, RollbackView,
        Stage, StageStatus, StageView, Status, Trigger,
    },
    pipeline::journal::{Approval, Event, Recorded, Saga},
};

/// A deployment that enters the queue.
#[derive(Debug, Clone)]
pub struct NewDeployment {
    pub key: EnvironmentKey,
    /// `None`: the reference is resolved when it is fetched.
    pub commit: Option<CommitId>,
    pub reference: String,
    pub trigger: Trigger,
    /// It brings a release back, and builds nothing.
    pub rollback: Option<RollbackOrder>,
}

/// Which deployments to read; the newest first.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub app: Option<String>,
    pub environment: Option<String>,
    pub status: Option<Status>,
    pub commit: Option<CommitId>,
    pub since: Option<Timestamp>,
    /// Only ids below this one: the next page.
    pub before: Option<DeploymentId>,
    /// All where unset.
    pub limit: Option<u32>,
}

impl Registry {
    /// Adds a deployment to its environment's queue. Those that wait there already are superseded, in the same commit; but what a
    /// person asked for gives way only to what a person asks for: a push waits behind it. One that a button in a
    /// chat asked for is added once, however often its press is carried out.
    pub async fn enqueue(&self, new: &NewDeployment) -> Result<DeploymentId> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await.map_err(query("queue a deployment"))?;
        if let Some(known) = bot::ordered(&mut tx, &new.trigger).await? {
            return Ok(known);
        }
        let waiting = sqlx::query(
            "SELECT id, triggered FROM deployments WHERE app = ? AND environment = ? AND status = 'queued'",
        )
        .bind(new.key.app.as_str())
        .bind(new.key.environment.as_str())
        .fetch_all(&mut *tx)
        .await
        .map_err(query("queue a deployment"))?;
        let mut gives_way = Vec::new();
        for row in &waiting {
            let trigger: Trigger = from_json("trigger", row.get("triggered"))?;
            if new.trigger.kind.is_explicit() || !trigger.kind.is_explicit() {
                gives_way.push(row.get::<i64, _>("id"));
            }
        }
        let id: i64 = sqlx::query_scalar(
            "INSERT INTO deployments (app, environment, commit_id, reference, triggered, status, queued_at)
             VALUES (?, ?, ?, ?, ?, 'queued', ?) RETURNING id",
        )
        .bind(new.key.app.as_str())
        .bind(new.key.environment.as_str())
        .bind(new.commit.as_ref().map(CommitId::as_str))
        .bind(&new.reference)
        .bind(to_json("trigger", &new.trigger)?)
        .bind(now_ms())
        .fetch_one(&mut *tx)
        .await
        .map_err(query("queue a deployment"))?;
        bot::note_order(&mut tx, &new.trigger, id).await?;
        if let Some(order) = &new.rollback {
            insert_rollback(&mut tx, id, order).await?;
        }
        for old in gives_way {
            let reason = format!("deployment {id} is newer");
            let event = Event::Ended { status: Status::Superseded, reason: Some(reason.clone()) };
            let recorded = Recorded { seq: 1, at: Timestamp::now(), event };
            insert_event(&mut tx, DeploymentId(old), &recorded).await?;
            sqlx::query(
                "UPDATE deployments SET status = 'superseded', finished_at = ?, exit_code = 1, error = ? WHERE id = ?",
            )
            .bind(now_ms())
            .bind(reason)
            .bind(old)
            .execute(&mut *tx)
            .await
            .map_err(query("supersede a deployment"))?;
        }
        tx.commit().await.map_err(query("queue a deployment"))?;
        Ok(DeploymentId(id))
    }

    /// Deployments in a state that is no end, oldest first.
    pub async fn open_deployments(&self, status: Status) -> Result<Vec<(DeploymentId, EnvironmentKey)>> {
        let rows = sqlx::query("SELECT id, app, environment FROM deployments WHERE status = ? ORDER BY id")
            .bind(status.as_str())
            .fetch_all(&self.read)
            .await
            .map_err(query("read deployments"))?;
        rows.iter().map(|row| Ok((DeploymentId(row.get("id")), key_of(row)?))).collect()
    }

    /// At most one deployment: the answer of `question`, which takes an app and an environment.
    pub(super) async fn one_of(&self, key: &EnvironmentKey, question: &'static str) -> Result<Option<DeploymentId>> {
        let id: Option<i64> = sqlx::query_scalar(question)
            .bind(key.app.as_str())
            .bind(key.environment.as_str())
            .fetch_one(&self.read)
            .await
            .map_err(query("read deployments"))?;
        Ok(id.map(DeploymentId))
    }

    /// What an environment's queue has next: what a person asked for was there before the push that waits behind it.
    pub async fn next_queued(&self, key: &EnvironmentKey) -> Result<Option<DeploymentId>> {
        const QUEUED: &str = "SELECT min(id) FROM deployments
             WHERE app = ? AND environment = ? AND status = 'queued' AND finished_at IS NULL";
        self.one_of(key, QUEUED).await
    }

    /// The deployment of an environment that waits for a person's word.
    pub async fn awaiting_approval(&self, key: &EnvironmentKey) -> Result<Option<DeploymentId>> {
        const WAITING: &str = "SELECT min(id) FROM deployments
             WHERE app = ? AND environment = ? AND status = 'awaiting_approval' AND finished_at IS NULL";
        self.one_of(key, WAITING).await
    }

    /// The newest deployment of a commit in an environment that says something about it (superseded and skipped ones do not).
    pub async fn last_of_commit(
        &self,
        key: &EnvironmentKey,
        commit: &CommitId,
        except: Option<DeploymentId>,
    ) -> Result<Option<(DeploymentId, Status)>> {
        let row = sqlx::query(
            "SELECT id, status FROM deployments
             WHERE app = ? AND environment = ? AND commit_id = ? AND id <> ? AND status NOT IN ('superseded', 'skipped')
             ORDER BY id DESC LIMIT 1",
        )
        .bind(key.app.as_str())
        .bind(key.environment.as_str())
        .bind(commit.as_str())
        .bind(except.map_or(0, |id| id.0))
        .fetch_optional(&self.read)
        .await
        .map_err(query("read deployments"))?;
        row.map(|row| Ok((DeploymentId(row.get("id")), parse("status", row.get("status"))?))).transpose()
    }

    /// The newest deployment of an environment whose commit begins with these hexadecimal digits.
    pub async fn last_of_prefix(
        &self,
        key: &EnvironmentKey,
        digits: &str,
    ) -> Result<Option<(DeploymentId, CommitId, Status)>> {
        let row = sqlx::query(
            "SELECT id, commit_id, status FROM deployments
             WHERE app = ? AND environment = ? AND substr(commit_id, 1, ?) = ? ORDER BY id DESC LIMIT 1",
        )
        .bind(key.app.as_str())
        .bind(key.environment.as_str())
        .bind(i64::try_from(digits.len()).unwrap_or(i64::MAX))
        .bind(digits)
        .fetch_optional(&self.read)
        .await
        .map_err(query("read deployments"))?;
        row.map(|row| {
            let commit = parse("commit", row.get("commit_id"))?;
            Ok((DeploymentId(row.get("id")), commit, parse("status", row.get("status"))?))
        })
        .transpose()
    }

    pub async fn deployment(&self, id: DeploymentId) -> Result<Option<DeploymentView>> {
        let mut sql: QueryBuilder<Sqlite> = QueryBuilder::new(SELECT);
        sql.push(" WHERE d.id = ").push_bind(id.0);
        let row = sql.build().fetch_optional(&self.read).await.map_err(query("read a deployment"))?;
        match row {
            Some(row) => view(&row, &self.events(id, 0).await?).map(Some),
            None => Ok(None),
        }
    }

    pub async fn deployments(&self, filter: &Filter) -> Result<Vec<DeploymentView>> {
        let mut sql: QueryBuilder<Sqlite> = QueryBuilder::new(SELECT);
        filter.push_conditions(&mut sql, "d.");
        let rows = sql.build().fetch_all(&self.read).await.map_err(query("read deployments"))?;
        let ids: Vec<DeploymentId> = rows.iter().map(|row| DeploymentId(row.get("id"))).collect();
        let mut events = self.events_of(&ids).await?;
        rows.iter().zip(ids).map(|(row, id)| view(row, &events.remove(&id).unwrap_or_default())).collect()
    }
}

impl Filter {
    /// Its conditions, the order and the limit, on columns of a table of that prefix.
    pub(super) fn push_conditions(&self, sql: &mut QueryBuilder<Sqlite>, prefix: &str) {
        sql.push(" WHERE true");
        let mut text = |column: &str, value: Option<&str>| {
            if let Some(value) = value {
                sql.push(format!(" AND {prefix}{column} = ")).push_bind(value.to_owned());
            }
        };
        text("app", self.app.as_deref());
        text("environment", self.environment.as_deref());
        text("status", self.status.map(Status::as_str));
        text("commit_id", self.commit.as_ref().map(CommitId::as_str));
        if let Some(since) = self.since {
            sql.push(format!(" AND {prefix}queued_at >= ")).push_bind(since.as_millisecond());
        }
        if let Some(before) = self.before {
            sql.push(format!(" AND {prefix}id < ")).push_bind(before.0);
        }
        sql.push(format!(" ORDER BY {prefix}id DESC LIMIT ")).push_bind(self.limit.map_or(-1, i64::from));
    }
}

/// A row with what its journal tells.
fn view(row: &SqliteRow, events: &[Recorded]) -> Result<DeploymentView> {
    let id = DeploymentId(row.get("id"));
    let saga = Saga::replay(events.iter().map(|r| &r.event))?;
    let key = key_of(row)?;
    let started_at: Option<i64> = row.get("started_at");
    let finished_at: Option<i64> = row.get("finished_at");
    let optional = |column: &'static str| row.get::<Option<String>, _>(column);
    Ok(DeploymentView {
        id,
        app: key.app,
        environment: key.environment,
        commit: optional("commit_id").map(|c| parse("commit", &c)).transpose()?,
        reference: row.get("reference"),
        trigger: from_json::<Trigger>("trigger", row.get("triggered"))?,
        status: parse("status", row.get("status"))?,
        failed_stage: optional("failed_stage").map(|s| parse("stage", &s)).transpose()?,
        error: optional("error"),
        exit_code: row
            .get::<Option<i64>, _>("exit_code")
            .map(|code| u8::try_from(code).map_err(|e| damaged("exit code")(&e)))
            .transpose()?,
        queued_at: time(row.get("queued_at")),
        started_at: started_at.map(time),
        finished_at: finished_at.map(time),
        duration_ms: started_at.map(|from| (finished_at.unwrap_or_else(now_ms) - from).max(0)),
        stages: stage_views(&saga, events),
        image: optional("image"),
        previous: row.get::<Option<i64>, _>("previous").map(DeploymentId),
        backup: optional("backup"),
        live: row.get("live"),
        subject: optional("subject"),
        author: optional("author"),
        log: optional("log"),
        undone: undone(events),
        freed: row.get::<Option<i64>, _>("freed").map(i64::unsigned_abs),
        rollback: rollback_view(row)?,
        retired: from_json("retired releases", row.get("retired"))?,
        approval: approval(row, &saga, events),
        resolved: optional("resolved_by").map(|by| Resolution {
            by,
            reason: optional("resolved_reason").unwrap_or_default(),
            at: time(row.get::<Option<i64>, _>("resolved_at").unwrap_or_default()),
        }),
    })
}

const SELECT: &str = "SELECT d.*, EXISTS (SELECT 1 FROM live AS l WHERE l.deployment = d.id) AS live,
        a.by AS said_by, a.reason AS said_why, a.at AS said_at,
        s.by AS resolved_by, s.reason AS resolved_reason, s.at AS resolved_at,
        r.kind AS rollback_kind, r.target AS rollback_target, r.reason AS rollback_reason,
        r.forced AS rollback_forced, r.backup AS rollback_backup, r.checks AS rollback_checks,
        (SELECT json_group_array(gone.deployment) FROM releases AS gone WHERE gone.retired_by = d.id) AS retired
    FROM deployments AS d
        LEFT JOIN approvals AS a ON a.deployment = d.id LEFT JOIN resolutions AS s ON s.deployment = d.id
        LEFT JOIN rollbacks AS r ON r.deployment = d.id";

fn rollback_view(row: &SqliteRow) -> Result<Option<RollbackView>> {
    let Some(kind) = row.get::<Option<String>, _>("rollback_kind") else { return Ok(None) };
    let (restore, parts) = read_data(row.get("rollback_backup"))?;
    Ok(Some(RollbackView {
        kind: parse("kind of rollback", &kind)?,
        to: DeploymentId(row.get("rollback_target")),
        reason: row.get("rollback_reason"),
        forced: row.get("rollback_forced"),
        restore,
        parts,
        checks: from_json("safety checks", row.get("rollback_checks"))?,
    }))
}

/// What became of the request for approval is in the journal; who said it when, which may be long before a process could act on
/// it, in the row.
fn approval(row: &SqliteRow, saga: &Saga, events: &[Recorded]) -> Option<ApprovalView> {
    let (requested_at, expires_at) = events.iter().find_map(|r| match &r.event {
        Event::ApprovalRequested { expires_at } => Some((r.at, *expires_at)),
        _ => None,
    })?;
    let expired = events.iter().any(|r| matches!(r.event, Event::ApprovalRefused { expired: true, .. }));
    let state = match saga.approval {
        Approval::Given => ApprovalState::Approved,
        Approval::Refused if expired => ApprovalState::Expired,
        Approval::Refused => ApprovalState::Rejected,
        Approval::NotAsked | Approval::Waiting { .. } if saga.failure.is_some() => ApprovalState::Cancelled,
        Approval::NotAsked | Approval::Waiting { .. } => ApprovalState::Waiting,
    };
    let said = matches!(state, ApprovalState::Approved | ApprovalState::Rejected);
    Some(ApprovalView {
        state,
        by: row.get::<Option<String>, _>("said_by").filter(|_| said),
        reason: row.get::<Option<String>, _>("said_why").filter(|_| said),
        at: row.get::<Option<i64>, _>("said_at").filter(|_| said).map(time),
        requested_at,
        expires_at,
    })
}

pub(super) fn key_of(row: &SqliteRow) -> Result<EnvironmentKey> {
    Ok(EnvironmentKey {
        app: parse("app", row.get("app"))?,
        environment: parse("environment", row.get("environment"))?,
    })
}

/// The stages as people see them, folded from the events.
fn stage_views(saga: &Saga, events: &[Recorded]) -> Vec<StageView> {
    let fresh = |name: Stage| StageView {
        name,
        status: saga.stage_status(name),
        started_at: None,
        duration_ms: None,
        output: None,
        error: None,
    };
    let mut views: Vec<StageView> = Stage::ALL.iter().copied().map(fresh).collect();
    for recorded in events {
        let Some(view) = recorded.event.stage().and_then(|stage| views.iter_mut().find(|v| v.name == stage)) else {
            continue;
        };
        // The clock may have been set back meanwhile.
        let took = view.started_at.map(|from| (recorded.at.as_millisecond() - from.as_millisecond()).max(0));
        match &recorded.event {
            Event::StepStarted { .. } => view.started_at = Some(recorded.at),
            Event::StepSucceeded { output, .. } => {
                (view.duration_ms, view.output) = (took, Some(output.clone()));
            }
            Event::StepWarned { output, error, .. } => {
                (view.duration_ms, view.output, view.error) = (took, Some(output.clone()), Some(error.clone()));
            }
            Event::StepFailed { error, .. } => (view.duration_ms, view.error) = (took, Some(error.clone())),
            Event::StepSkipped { reason, .. } => view.output = Some(serde_json::json!({ "reason": reason })),
            Event::UndoFailed { error, .. } => view.error = Some(error.clone()),
            _ => {}
        }
    }
    // A stage that ran when the daemon died has no end of its own.
    for view in views.iter_mut().filter(|v| v.status == StageStatus::Failed && v.error.is_none()) {
        view.error = Some("the daemon was stopped while it ran".to_owned());
    }
    views
}

fn undone(events: &[Recorded]) -> Vec<String> {
    let line = |recorded: &Recorded| match &recorded.event {
        Event::UndoFinished { stage, summary: Some(summary) } => Some(format!("{stage}: {summary}")),
        Event::UndoFailed { stage, error } => Some(format!("{stage}: could not be undone: {error}")),
        _ => None,
    };
    events.iter().filter_map(line).collect()
}
