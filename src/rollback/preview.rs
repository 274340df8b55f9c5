//! What a rollback would change: commits, image, settings, migrations, data. Values of the environment never leave this file; their
//! names do.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Check, Plan, PlanError, look};
use crate::{
    config::Environment,
    data::{self, Part},
    git::{CommitInfo, GitError},
    log::printable,
    model::{CommitId, DeploymentId, EnvironmentKey, RollbackKind, Stage},
    pipeline::{World, kept},
    runtime::InstanceState,
};

/// Commits that are listed at most, of each side.
const LISTED: usize = 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preview {
    #[serde(flatten)]
    pub key: EnvironmentKey,
    pub kind: RollbackKind,
    /// What is live now, and what would be.
    pub from: Side,
    pub to: Side,
    pub commits: Commits,
    /// The old container stands: it is only started. Else it is made again from its image.
    pub instant: bool,
    /// Of the app's environment variables, secrets among them.
    pub environment: Vec<Change>,
    /// Other settings that differ, such as `start.health` or `smoke`.
    pub settings: Vec<String>,
    /// What migrations did since: it stays, unless data is put back.
    pub migrations: Vec<Migration>,
    /// `None`: data stays as it is.
    pub data: Option<DataChange>,
    pub checks: Vec<Check>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    pub deployment: DeploymentId,
    pub commit: CommitId,
    /// The artefact's name and id.
    pub version: String,
    pub image: String,
}

/// What is in one and not in the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commits {
    /// Those that go; the newest first, the first few of `left_count`.
    pub left: Vec<CommitLine>,
    pub left_count: usize,
    /// Those that come: where the target is not an ancestor.
    pub gained: Vec<CommitLine>,
    pub gained_count: usize,
    /// Why they are not known.
    pub unknown: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitLine {
    pub commit: CommitId,
    pub subject: String,
}

/// What becomes of an environment variable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", content = "name", rename_all = "lowercase")]
pub enum Change {
    Added(String),
    Removed(String),
    Changed(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Migration {
    pub deployment: DeploymentId,
    pub before: Option<String>,
    pub after: Option<String>,
}

/// The data that would be replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataChange {
    /// Relative to the backups directory.
    pub set: String,
    pub taken_at: Timestamp,
    /// Name and size before compression of each part.
    pub parts: BTreeMap<String, u64>,
}

pub(super) async fn of(world: &Arc<World>, environment: &Environment, plan: &Plan) -> Result<Preview, PlanError> {
    let settings = |deployment| kept::environment(world, environment, deployment).0;
    let (now, then) = (settings(plan.live.deployment), settings(plan.target.deployment));
    let runtime = world.runtimes.of(plan.target.runtime);
    let standing = runtime.inspect(&plan.target.instance).await?;
    let side = |release: &crate::registry::Release| Side {
        deployment: release.deployment,
        commit: release.commit.clone(),
        version: release.artefact_name.clone(),
        image: release.artefact.clone(),
    };
    Ok(Preview {
        key: environment.key.clone(),
        kind: plan.kind,
        from: side(&plan.live),
        to: side(&plan.target),
        commits: commits(world, environment, plan).await,
        instant: !matches!(standing, InstanceState::Missing | InstanceState::Created),
        environment: changes(&variables(&now), &variables(&then)),
        settings: other_settings(&now, &then),
        migrations: migrations(world, environment, plan).await?,
        data: data_change(world, plan.backup.clone()).await,
        checks: plan.checks.clone(),
    })
}

async fn commits(world: &World, environment: &Environment, plan: &Plan) -> Commits {
    let mirror = world.mirror_of(environment);
    let redactor = world.config.redactor.clone();
    let (live, target) = (plan.live.commit.clone(), plan.target.commit.clone());
    let read = tokio::task::spawn_blocking(move || {
        let line = |info: CommitInfo| CommitLine { subject: printable(&redactor.mask(&info.subject)), commit: info.id };
        let lines = |infos: Vec<_>| infos.into_iter().map(line).collect::<Vec<_>>();
        let (left_count, left) = mirror.commits_between(&target, &live, LISTED)?;
        let (gained_count, gained) = mirror.commits_between(&live, &target, LISTED)?;
        Ok::<_, GitError>(Commits { left: lines(left), left_count, gained: lines(gained), gained_count, unknown: None })
    });
    let why = match read.await {
        Ok(Ok(commits)) => return commits,
        Ok(Err(error)) => GitError::to_string(&error),
        Err(error) => error.to_string(),
    };
    Commits { left: Vec::new(), left_count: 0, gained: Vec::new(), gained_count: 0, unknown: Some(why) }
}

fn variables(environment: &Environment) -> BTreeMap<&str, &str> {
    let plain = environment.start.env.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let secret = environment.start.secrets.iter().map(|(name, value)| (name.as_str(), value.expose()));
    plain.chain(secret).collect()
}

/// By name: what the second has and the first has not, and so on.
fn changes(now: &BTreeMap<&str, &str>, then: &BTreeMap<&str, &str>) -> Vec<Change> {
    let mut names: Vec<&str> = now.keys().chain(then.keys()).copied().collect();
    names.sort_unstable();
    names.dedup();
    let change = |name: &str| match (now.get(name), then.get(name)) {
        (Some(_), None) => Some(Change::Removed(name.to_owned())),
        (None, Some(_)) => Some(Change::Added(name.to_owned())),
        (now, then) => (now != then).then(|| Change::Changed(name.to_owned())),
    };
    names.into_iter().filter_map(change).collect()
}

fn other_settings(now: &Environment, then: &Environment) -> Vec<String> {
    let fields = |environment: &Environment| {
        let value = serde_json::to_value(&environment.start).unwrap_or_default();
        value.as_object().cloned().unwrap_or_default()
    };
    let (start, started) = (fields(now), fields(then));
    // The variables are told apart, and the reason for a strategy is not a setting.
    let told = |name: &str| matches!(name, "env" | "strategy_reason");
    let differs = |name: &&String| !told(name) && start.get(*name) != started.get(*name);
    let mut all: Vec<String> = start.keys().filter(differs).map(|name| format!("start.{name}")).collect();
    let smoke = |environment: &Environment| serde_json::to_value(&environment.smoke).unwrap_or_default();
    for (name, differ) in
        [("smoke", smoke(now) != smoke(then)), ("port", now.port != then.port), ("bind", now.bind != then.bind)]
    {
        if differ {
            all.push(name.to_owned());
        }
    }
    all
}

async fn migrations(world: &World, environment: &Environment, plan: &Plan) -> Result<Vec<Migration>, PlanError> {
    let history = look::history(world, environment).await?;
    let of = |view: &crate::model::DeploymentView| {
        let stage = view.stages.iter().find(|stage| stage.name == Stage::Migrate)?;
        let output = stage.output.as_ref()?;
        let text = |name: &str| output.get(name)?.as_str().map(str::to_owned);
        output.get("after")?;
        Some(Migration { deployment: view.id, before: text("before"), after: text("after") })
    };
    let since = history.iter().filter(|view| view.id > plan.target.deployment);
    Ok(since.filter_map(of).filter(|m| m.before != m.after || m.after.is_none()).collect())
}

async fn data_change(world: &World, set: Option<String>) -> Option<DataChange> {
    let set = set?;
    let dir = world.config.server.backups_dir.join(&set);
    let manifest = tokio::task::spawn_blocking(move || data::read_manifest(&dir)).await.ok()?.ok()?;
    let size = |part: &Part| (part.name.clone(), part.raw_bytes);
    Some(DataChange { set, taken_at: manifest.created_at, parts: manifest.parts.iter().map(size).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_compared_by_value_and_told_by_name() {
        let now = BTreeMap::from([("A", "1"), ("B", "hush-now"), ("C", "3")]);
        let then = BTreeMap::from([("A", "1"), ("B", "hush-then"), ("D", "4")]);
        let all = changes(&now, &then);
        let expected = [Change::Changed("B".into()), Change::Removed("C".into()), Change::Added("D".into())];
        assert_eq!(all, expected);
        let text = serde_json::to_string(&all).unwrap();
        assert!(!text.contains("hush"), "{text}");
        assert!(text.contains(r#"{"change":"changed","name":"B"}"#), "{text}");
    }
}
