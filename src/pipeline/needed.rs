//! Which backup sets something still goes back to. Retention, `refit backup delete` and `prune` leave these alone.
//!
//! - The set that `refit rollback --restore-data` would put back for a release that is kept: the one that was taken by the first deployment
//!   that touched what the release had left: the one that replaced it, or one before that whose migration went through before it failed.
//! - What an order that has not ended is to put back, and what a deployment that has not ended took as its way back; the same of a stuck one
//!   that nobody has looked at.
//! - What the state that a rollback kept (`state`) names, as long as that is there.

use std::{collections::BTreeMap, path::Path};

use super::state;
use crate::{
    model::{DeploymentId, DeploymentView, EnvironmentKey, Stage, StageStatus, Status},
    registry::{Filter, Registry},
};

/// Deployments that are looked through.
const LOOK_BACK: u32 = 300;

/// A set, and why it stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// `<app>/<environment>/<set>`, as reports have it.
    pub set: String,
    /// For people: `going back to deployment 4`.
    pub why: String,
}

/// Everything that is needed in an environment, one line a set. The error is for people.
pub async fn sets(registry: &Registry, state_dir: &Path, key: &EnvironmentKey) -> Result<Vec<Need>, String> {
    let filter = Filter {
        app: Some(key.app.to_string()),
        environment: Some(key.environment.to_string()),
        limit: Some(LOOK_BACK),
        ..Filter::default()
    };
    let failed = |error: crate::registry::RegistryError| format!("what needs a backup is not known: {error}");
    let history = registry.deployments(&filter).await.map_err(failed)?;
    let live = registry.live(key).await.map_err(failed)?.map(|release| release.deployment);
    let mut kept: Vec<DeploymentId> =
        registry.kept_releases(key).await.map_err(failed)?.into_iter().map(|release| release.deployment).collect();
    kept.retain(|id| Some(*id) != live);
    Ok(collect(&history, &kept, state::backups(state_dir, key)))
}

/// The same, of what was read.
fn collect(history: &[DeploymentView], kept: &[DeploymentId], states: Vec<(DeploymentId, String)>) -> Vec<Need> {
    let mut needs: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut note = |set: &str, why: String| {
        let reasons = needs.entry(set.to_owned()).or_default();
        if !reasons.contains(&why) {
            reasons.push(why);
        }
    };
    for release in kept {
        if let Ok(set) = set_after(*release, history) {
            note(&set, format!("going back to deployment {release} with its data"));
        }
    }
    let open =
        |view: &&DeploymentView| !view.status.is_end() || view.status == Status::Stuck && view.resolved.is_none();
    for view in history.iter().filter(open) {
        let what = if view.status == Status::Stuck { "stuck" } else { "unfinished" };
        let restores = view.rollback.as_ref().and_then(|rollback| rollback.restore.as_ref());
        for set in restores.into_iter().chain(&view.backup) {
            note(set, format!("deployment {}, which is {what}", view.id));
        }
    }
    for (by, set) in states {
        note(&set, format!("the state that deployment {by} kept"));
    }
    needs.into_iter().map(|(set, why)| Need { set, why: why.join("; ") }).collect()
}

/// The set with the newest data that `target` left; the error says why there is none.
pub fn set_after(target: DeploymentId, history: &[DeploymentView]) -> Result<String, String> {
    let came_back = |d: &&DeploymentView| {
        d.status == Status::Succeeded && d.rollback.as_ref().is_some_and(|rollback| rollback.to == target)
    };
    let since = history.iter().filter(came_back).map(|d| d.id).max().unwrap_or(target);
    let mut after: Vec<_> = history.iter().filter(|d| d.previous == Some(target) && d.id > since).collect();
    after.sort_by_key(|d| d.id);
    let migrated = |d: &DeploymentView| {
        let stage = d.stages.iter().find(|stage| stage.name == Stage::Migrate);
        stage.is_some_and(|s| !matches!(s.status, StageStatus::Pending | StageStatus::Skipped))
    };
    let Some(replaced) = after.into_iter().find(|d| d.status == Status::Succeeded || migrated(d)) else {
        return Err(format!("what replaced deployment {target} is not known any more"));
    };
    replaced.backup.clone().ok_or_else(|| format!("deployment {}, which came after it, took no backup", replaced.id))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A deployment as JSON shows it, with what is said of it.
    fn view(id: i64, over: Value) -> DeploymentView {
        let mut all = json!({
            "id": id, "app": "shop", "environment": "production", "commit": null, "ref": "main",
            "trigger": { "kind": "cli", "by": null, "delivery": null }, "status": "succeeded", "failed_stage": null,
            "error": null, "exit_code": 0, "queued_at": "2026-11-21T10:00:00Z", "started_at": null, "finished_at": null,
            "duration_ms": null, "stages": [], "image": null, "previous": id - 1, "backup": format!("set-{id}"), "live": false,
            "subject": null, "author": null, "log": null, "undone": [],
        });
        let fields = over.as_object().cloned().unwrap_or_default();
        all.as_object_mut().unwrap().extend(fields);
        serde_json::from_value(all).unwrap()
    }

    fn told(history: &[DeploymentView], kept: &[i64], states: &[(i64, &str)]) -> Vec<String> {
        let kept: Vec<_> = kept.iter().map(|id| DeploymentId(*id)).collect();
        let states = states.iter().map(|(by, set)| (DeploymentId(*by), (*set).to_owned())).collect();
        collect(history, &kept, states).into_iter().map(|need| format!("{}: {}", need.set, need.why)).collect()
    }

    #[test]
    fn a_kept_release_needs_what_was_taken_when_it_was_replaced() {
        let history =
            [view(4, json!({})), view(3, json!({ "status": "failed" })), view(2, json!({})), view(1, json!({}))];
        // 3 failed and touched nothing: 4 has 2 as its previous one.
        let history = [view(4, json!({ "previous": 2 })), history[1].clone(), history[2].clone(), history[3].clone()];
        assert_eq!(
            told(&history, &[1, 2], &[]),
            ["set-2: going back to deployment 1 with its data", "set-4: going back to deployment 2 with its data"]
        );
        assert_eq!(told(&history, &[], &[]), [""; 0], "retired releases need nothing");
    }

    #[test]
    fn what_has_not_ended_and_what_is_stuck_needs_both_of_its_sets() {
        let rollback =
            json!({ "kind": "restore", "to": 1, "reason": "r", "forced": false, "restore": "old", "checks": [] });
        let running = view(2, json!({ "status": "running", "rollback": rollback, "backup": "fresh" }));
        assert_eq!(
            told(&[running], &[], &[(1, "old")]),
            [
                "fresh: deployment 2, which is unfinished",
                "old: deployment 2, which is unfinished; the state that deployment 1 kept",
            ]
        );
        let stuck = |resolved: Value| view(2, json!({ "status": "stuck", "backup": "fresh", "resolved": resolved }));
        assert_eq!(told(&[stuck(Value::Null)], &[], &[]), ["fresh: deployment 2, which is stuck"]);
        let looked_at = json!({ "by": "ada", "reason": "mended", "at": "2026-11-21T10:00:00Z" });
        assert_eq!(told(&[stuck(looked_at)], &[], &[]), [""; 0]);
    }

    #[test]
    fn data_that_was_restored_under_a_release_is_that_releases_data() {
        let restore =
            json!({ "kind": "restore", "to": 1, "reason": "r", "forced": false, "restore": "old", "checks": [] });
        let restored = view(2, json!({ "rollback": restore, "backup": "before-the-restore" }));
        let history = [view(3, json!({ "previous": 1 })), restored, view(1, json!({}))];
        assert_eq!(set_after(DeploymentId(1), &history), Ok("set-3".to_owned()));
    }
}
