//! Files that belong to nobody.

use std::{collections::BTreeSet, fs};

use refit::{
    model::{DeploymentView, Status, TriggerKind},
    registry::Release,
};

use super::{rig::Rig, world::files_below};

/// Everything in the state, backup, log and temporary directories that should not be there, and what should and is not.
pub fn strangers(rig: &Rig, kept: &[Release], all: &[DeploymentView]) -> Vec<String> {
    let mut found = Vec::new();
    let releases: BTreeSet<String> = kept
        .iter()
        .map(|r| format!("releases/{}/{}/{}/environment.json", r.key.app, r.key.environment, r.deployment))
        .collect();
    // The state before a rollback is kept, whoever asked for it.
    let went_back = |d: &&DeploymentView| {
        d.trigger.kind == TriggerKind::Rollback || matches!(d.status, Status::RolledBack | Status::Stuck)
    };
    let rollbacks = all.iter().filter(went_back);
    let before_rollbacks: Vec<String> =
        rollbacks.map(|d| format!("rollbacks/{}/{}/{}/", d.app, d.environment, d.id)).collect();
    let mirror_lock = format!("git/{}.git.lock", rig.key.app);
    let state = files_below(&rig.state);
    // What the last migration was about to do stays until the next one begins.
    let trails: Vec<&String> = state.iter().filter(|path| path.starts_with("migrations/")).collect();
    let trail_of = |d: &DeploymentView| format!("migrations/{}/{}/{}.json", d.app, d.environment, d.id);
    let trail = trails.first().filter(|path| trails.len() == 1 && all.iter().any(|d| trail_of(d) == ***path));
    for path in &state {
        let known = ["refit.db", "refit.db-wal", "refit.db-shm", "refit.sock", "refit.lock"].contains(&path.as_str());
        // The lock beside a mirror stays: fetches of all processes take turns by it.
        let git = path.starts_with("git/") && (!is_temporary(path) || *path == mirror_lock);
        // What the gate and a gate of its name keep.
        let gate = ["gate/gate.json", "gate/gate.lock", "gate/gate.log", "gate/gate.sock"].contains(&path.as_str());
        let before = before_rollbacks.iter().any(|dir| path.starts_with(dir)) && !is_temporary(path);
        if !known && !git && !gate && !before && !releases.contains(path) && trail != Some(&path) {
            found.push(format!("a file is left in the state directory: {path}"));
        }
    }
    for path in releases.iter().filter(|path| !state.contains(path)) {
        found.push(format!("what a kept release needs is gone: {path}"));
    }
    let sets = rig.backups.join(rig.key.app.as_str()).join(rig.key.environment.as_str());
    for set in fs::read_dir(&sets).into_iter().flatten().flatten() {
        let files = files_below(&set.path());
        if !files.iter().any(|name| name == "manifest.json") || files.iter().any(|name| is_temporary(name)) {
            found.push(format!("an incomplete backup is left: {:?} with {files:?}", set.file_name()));
        }
    }
    let logs: BTreeSet<&str> = all.iter().filter_map(|d| d.log.as_deref()).collect();
    for path in files_below(&rig.logs).iter().filter(|path| !logs.contains(path.as_str())) {
        found.push(format!("a log of no deployment is left: {path}"));
    }
    for path in files_below(&rig.site.path().join("tmp")) {
        found.push(format!("a temporary file is left: {path}"));
    }
    found
}

fn is_temporary(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    // The hooks that Git brings are `.sample`s; what it writes first is a lock or `tmp_…`.
    name.starts_with('.') || name.starts_with("tmp_") || [".lock", ".tmp", ".partial"].iter().any(|e| name.ends_with(e))
}
