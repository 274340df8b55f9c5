//! What the store knows of one environment, read as of one moment: what may be in the world, and what has no business there.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::Row;

use super::{Registry, Release, Result, parse, query, releases::release_of};
use crate::model::{CommitId, DeploymentId, EnvironmentKey, Status};

/// A deployment that the store knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    pub status: Status,
    /// Not yet, or never, known: it ended before it was fetched.
    pub commit: Option<CommitId>,
}

/// An environment as the store sees it. The default is that of an empty store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    pub live: Option<Release>,
    /// Deployments whose release is kept, the live one among them.
    pub kept: BTreeSet<DeploymentId>,
    /// Every deployment of this environment.
    pub deployments: BTreeMap<DeploymentId, Known>,
    /// Artefacts that a release or an unfinished deployment of any environment needs.
    pub needed: BTreeSet<String>,
    /// A deployment of this app runs, in whichever environment: it may use an artefact that it has not noted yet.
    pub app_busy: bool,
    /// The deployment that ended `stuck`, that no success came after, and that nobody resolved.
    pub stuck: Option<DeploymentId>,
    /// That one was a rollback, which may have left data half restored.
    pub stuck_in_rollback: bool,
    /// The release that may run on beside the live one, its time not being over.
    pub warm: Option<DeploymentId>,
}

impl Standing {
    /// Whether a deployment of this environment runs.
    pub fn under_way(&self) -> bool {
        self.deployments.values().any(|known| known.status == Status::Running)
    }
}

impl Registry {
    pub async fn standing(&self, key: &EnvironmentKey) -> Result<Standing> {
        let failed = || query("read an environment");
        // One transaction is one moment: a deployment that ends meanwhile is not half ended here.
        let mut tx = self.read.begin().await.map_err(failed())?;
        let rows = sqlx::query(
            "SELECT r.*, EXISTS (SELECT 1 FROM live AS l WHERE l.deployment = r.deployment) AS is_live
             FROM releases AS r WHERE r.app = ? AND r.environment = ?
                AND (r.retired_at IS NULL OR EXISTS (SELECT 1 FROM live AS l WHERE l.deployment = r.deployment))",
        )
        .bind(key.app.as_str())
        .bind(key.environment.as_str())
        .fetch_all(&mut *tx)
        .await
        .map_err(failed())?;
        let mut standing = Standing::default();
        for row in &rows {
            let release = release_of(row)?;
            standing.kept.insert(release.deployment);
            if row.get("is_live") {
                standing.live = Some(release);
            }
        }
        let rows = sqlx::query("SELECT id, status, commit_id FROM deployments WHERE app = ? AND environment = ?")
            .bind(key.app.as_str())
            .bind(key.environment.as_str())
            .fetch_all(&mut *tx)
            .await
            .map_err(failed())?;
        for row in &rows {
            let commit = row.get::<Option<&str>, _>("commit_id").map(|c| parse("commit", c)).transpose()?;
            let known = Known { status: parse("status", row.get("status"))?, commit };
            standing.deployments.insert(DeploymentId(row.get("id")), known);
        }
        let needed: Vec<String> = sqlx::query_scalar(
            "SELECT artefact FROM releases WHERE retired_at IS NULL
             UNION SELECT image FROM deployments WHERE image IS NOT NULL AND finished_at IS NULL",
        )
        .fetch_all(&mut *tx)
        .await
        .map_err(failed())?;
        standing.needed = needed.into_iter().chain(standing.live.iter().map(|live| live.artefact.clone())).collect();
        standing.app_busy =
            sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM deployments WHERE app = ? AND status = 'running')")
                .bind(key.app.as_str())
                .fetch_one(&mut *tx)
                .await
                .map_err(failed())?;
        let stuck = sqlx::query(
            "SELECT id, json_extract(triggered, '$.kind') = 'rollback' AS in_rollback FROM deployments AS d
             WHERE app = ?1 AND environment = ?2 AND status = 'stuck' AND NOT EXISTS (
                SELECT 1 FROM deployments AS later
                WHERE later.app = ?1 AND later.environment = ?2 AND later.id > d.id AND later.status = 'succeeded')
                AND NOT EXISTS (SELECT 1 FROM resolutions AS r WHERE r.deployment = d.id)
             ORDER BY id DESC LIMIT 1",
        )
        .bind(key.app.as_str())
        .bind(key.environment.as_str())
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed())?;
        if let Some(row) = stuck {
            standing.stuck = Some(DeploymentId(row.get("id")));
            standing.stuck_in_rollback = row.get("in_rollback");
        }
        let warm = super::warm::read(&mut *tx, key).await?;
        standing.warm = warm.filter(super::Warm::is_in_time).map(|warm| warm.deployment);
        tx.commit().await.map_err(failed())?;
        Ok(standing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Done = std::result::Result<(), Box<dyn std::error::Error>>;

    fn key(environment: &str) -> EnvironmentKey {
        EnvironmentKey { app: "site".parse().unwrap(), environment: environment.parse().unwrap() }
    }

    struct Store {
        registry: Registry,
        _dir: tempfile::TempDir,
    }

    impl Store {
        async fn new() -> std::result::Result<Self, Box<dyn std::error::Error>> {
            let dir = tempfile::tempdir()?;
            let registry = Registry::open(&dir.path().join("refit.db")).await?;
            Ok(Self { registry, _dir: dir })
        }

        async fn deployment(&self, id: i64, environment: &str, kind: &str, status: &str) -> Done {
            let ended = !matches!(status, "queued" | "running");
            sqlx::query(
                "INSERT INTO deployments
                    (id, app, environment, commit_id, reference, triggered, status, queued_at, finished_at, image)
                 VALUES (?, 'site', ?, ?, 'refs/heads/main', json_object('kind', ?), ?, 0, ?, ?)",
            )
            .bind(id)
            .bind(environment)
            .bind(id.to_string().repeat(40))
            .bind(kind)
            .bind(status)
            .bind(ended.then_some(1))
            .bind(format!("sha256:{id}"))
            .execute(&self.registry.write)
            .await?;
            Ok(())
        }

        async fn release(&self, id: i64, environment: &str, retired: bool) -> Done {
            sqlx::query(
                "INSERT INTO releases (deployment, app, environment, commit_id, artefact, artefact_name, runtime, instance,
                    live_since, retired_at)
                 VALUES (?, 'site', ?, ?, ?, '', 'docker', json_object('id', '', 'name', '', 'deployment', ?), 0, ?)",
            )
            .bind(id)
            .bind(environment)
            .bind(id.to_string().repeat(40))
            .bind(format!("sha256:{id}"))
            .bind(id)
            .bind(retired.then_some(1))
            .execute(&self.registry.write)
            .await?;
            Ok(())
        }

        async fn make_live(&self, id: i64, environment: &str) -> Done {
            sqlx::query("INSERT OR REPLACE INTO live VALUES ('site', ?, ?)")
                .bind(environment)
                .bind(id)
                .execute(&self.registry.write)
                .await?;
            Ok(())
        }
    }

    #[tokio::test]
    async fn one_environment_with_what_others_need() -> Done {
        let store = Store::new().await?;
        assert_eq!(store.registry.standing(&key("production")).await?, Standing::default());
        for (id, environment, status) in [
            (1, "production", "succeeded"),
            (2, "production", "succeeded"),
            (3, "production", "failed"),
            (4, "dev", "succeeded"),
            (5, "dev", "running"),
            (6, "production", "queued"),
        ] {
            store.deployment(id, environment, "cli", status).await?;
        }
        for (id, environment, retired) in [(1, "production", true), (2, "production", false), (4, "dev", false)] {
            store.release(id, environment, retired).await?;
        }
        store.make_live(2, "production").await?;
        store.make_live(4, "dev").await?;
        let standing = store.registry.standing(&key("production")).await?;
        assert_eq!(standing.live.as_ref().map(|live| live.deployment), Some(DeploymentId(2)));
        assert_eq!(standing.kept, BTreeSet::from([DeploymentId(2)]));
        assert_eq!(standing.deployments.keys().map(|id| id.0).collect::<Vec<_>>(), [1, 2, 3, 6]);
        assert_eq!(standing.needed, ["sha256:2", "sha256:4", "sha256:5", "sha256:6"].map(str::to_owned).into());
        assert!(standing.app_busy && !standing.under_way(), "it is the other environment that works");
        assert!(store.registry.standing(&key("dev")).await?.under_way());
        // Whatever a row says: what is live is kept.
        store.make_live(1, "production").await?;
        let standing = store.registry.standing(&key("production")).await?;
        assert_eq!(standing.kept, BTreeSet::from([DeploymentId(1), DeploymentId(2)]));
        assert!(standing.needed.contains("sha256:1"));
        Ok(())
    }

    #[tokio::test]
    async fn only_the_newest_success_keeps_something_warm() -> Done {
        let store = Store::new().await?;
        let key = key("production");
        let smoke = async |id: i64, until: &str| {
            let instance = serde_json::json!({ "id": "c", "name": "n", "deployment": id - 1 });
            let warm =
                serde_json::json!({ "deployment": id - 1, "instance": instance, "runtime": "docker", "until": until });
            let output = if until.is_empty() { serde_json::json!({}) } else { serde_json::json!({ "warm": warm }) };
            let event = serde_json::json!({ "event": "step_succeeded", "stage": "smoke", "output": output });
            store.deployment(id, "production", "cli", "succeeded").await?;
            sqlx::query("INSERT INTO events VALUES (?, 7, 0, ?)")
                .bind(id)
                .bind(event.to_string())
                .execute(&store.registry.write)
                .await?;
            Ok::<_, Box<dyn std::error::Error>>(())
        };
        let seen = async || {
            let recorded = store.registry.warm(&key).await?.map(|warm| warm.deployment.0);
            let in_time = store.registry.standing(&key).await?.warm.map(|id| id.0);
            Ok::<_, Box<dyn std::error::Error>>((recorded, in_time))
        };
        assert_eq!(seen().await?, (None, None));
        smoke(2, "2199-01-01T00:00:00Z").await?;
        assert_eq!(seen().await?, (Some(1), Some(1)));
        // Neither what failed nor another environment changes that.
        store.deployment(3, "production", "cli", "rolled_back").await?;
        store.deployment(4, "dev", "cli", "succeeded").await?;
        assert_eq!(seen().await?, (Some(1), Some(1)));
        smoke(6, "2001-01-01T00:00:00Z").await?;
        assert_eq!(seen().await?, (Some(5), None), "its time is over");
        smoke(8, "").await?;
        assert_eq!(seen().await?, (None, None));
        Ok(())
    }

    #[tokio::test]
    async fn stuck_until_something_succeeds() -> Done {
        let store = Store::new().await?;
        let stuck = async || {
            let standing = store.registry.standing(&key("production")).await?;
            Ok::<_, Box<dyn std::error::Error>>((standing.stuck.map(|id| id.0), standing.stuck_in_rollback))
        };
        store.deployment(1, "production", "cli", "stuck").await?;
        assert_eq!(stuck().await?, (Some(1), false));
        store.deployment(2, "production", "cli", "failed").await?;
        store.deployment(3, "dev", "cli", "succeeded").await?;
        assert_eq!(stuck().await?, (Some(1), false), "neither a failure nor another environment mends it");
        store.deployment(4, "production", "rollback", "stuck").await?;
        assert_eq!(stuck().await?, (Some(4), true));
        store.deployment(5, "production", "cli", "succeeded").await?;
        assert_eq!(stuck().await?, (None, false));
        Ok(())
    }
}
