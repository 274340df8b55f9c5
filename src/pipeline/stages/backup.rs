//! backup: a set of dumps before anything changes. Fails soft unless a part is `required`.
//!
//! For a rollback (and a restore) it is the stage that keeps the state before (`pipeline::state`), always; a set is taken only if data is put
//! back, and then all of it has to be there, because it is the way forward again; unless the person who asked knows that it is not.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Done, Progress, StageFailure, Step};
use crate::{
    data::{self, SetContext, SetRelease, SetRequest, VerifyReport},
    model::{CommitId, DeploymentId, EnvironmentKey, Stage, StageStatus, Status},
    pipeline::{
        World,
        journal::FailureKind,
        needed, rehearsed,
        state::{self, Before, Held},
    },
    registry::{Facts, Filter, Release},
};

/// Deployments that are looked through for the last schema version.
const LOOK_BACK: u32 = 300;

#[derive(Debug, Serialize, Deserialize)]
pub struct Input {
    pub commit: CommitId,
    /// Of a rollback: what it is about to leave.
    #[serde(default)]
    pub rollback: Option<Leaving>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Leaving {
    pub from: DeploymentId,
    /// What runs, and what is to run.
    pub instances: Vec<Held>,
    /// The set that is to be put back.
    pub restore: Option<String>,
    /// Go on without the data as it is now, where that cannot be backed up.
    #[serde(default)]
    pub without_backup: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Output {
    /// The set's directory, relative to the backups directory; `None` where every part failed.
    pub set: Option<String>,
    /// The parts that are in the set.
    pub parts: Vec<String>,
    /// Bytes on disk.
    pub bytes: u64,
    /// `part: error` of what is missing.
    pub failures: Vec<String>,
    /// What a part lacks that is there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Sets that retention removed.
    pub removed: Vec<String>,
    /// Of a rollback: where the state before is kept, relative to the state directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Of a rollback: none of the data existed, so there was nothing to keep.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub nothing_there: bool,
}

impl Output {
    fn warning(&self) -> Option<String> {
        let all: Vec<&str> = self.failures.iter().chain(&self.notes).map(String::as_str).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }
}

pub fn input(progress: &Progress) -> Result<Input, StageFailure> {
    let leaving = |from: &Release, target: &Release| {
        let held = |release: &Release| Held { instance: release.instance.clone(), runtime: release.runtime };
        // Where only data goes back, both are the same.
        let mut instances = vec![held(from)];
        instances.extend((target.instance != from.instance).then(|| held(target)));
        let (restore, without_backup) = (progress.restore.clone(), progress.without_backup);
        Leaving { from: from.deployment, instances, restore, without_backup }
    };
    let rollback = progress.previous.as_ref().zip(progress.target.as_ref()).map(|(from, target)| leaving(from, target));
    Ok(Input { commit: progress.commit()?, rollback })
}

pub async fn run(step: &Step, input: Input) -> Result<Done, StageFailure> {
    if let Some(leaving) = &input.rollback {
        return keep_state(step, &input.commit, leaving).await;
    }
    let output = take(step, &input.commit, "before a deployment", &[]).await?;
    let facts = Facts { backup: output.set.clone(), ..Facts::default() };
    Ok(Done { facts, warning: output.warning(), ..Done::new(&output)? })
}

async fn keep_state(step: &Step, commit: &CommitId, leaving: &Leaving) -> Result<Done, StageFailure> {
    let mut output = Output::default();
    if let Some(restore) = &leaving.restore {
        output = before_data_goes_back(step, commit, restore, leaving.without_backup).await?;
    }
    let before = Before {
        key: &step.environment.key,
        by: step.deployment,
        from: leaving.from,
        release: leaving.from,
        instances: &leaving.instances,
        backup: output.set.as_deref(),
    };
    let place = state::keep(&step.world, before, &step.job.log).await.map_err(StageFailure::failed)?;
    step.job.log.line(format!("the state before is kept in {place}"));
    output.state = Some(place);
    let facts = Facts { backup: output.set.clone(), ..Facts::default() };
    Ok(Done { facts, warning: output.warning(), ..Done::new(&output)? })
}

/// All of the data as it is now: the way forward again.
async fn before_data_goes_back(
    step: &Step,
    commit: &CommitId,
    restore: &str,
    without_backup: bool,
) -> Result<Output, StageFailure> {
    let reason = format!("before {restore} is put back");
    let present = data::present(&step.environment, step.world.runtimes.reach(), &step.job).await;
    if present.backups.is_empty() {
        return Ok(Output { nothing_there: !step.environment.backups.is_empty(), ..Output::default() });
    }
    let step = &Step { environment: Arc::new(present), ..step.clone() };
    let taken = take(step, commit, &reason, &[restore.to_owned()]).await;
    match taken {
        Ok(output) if output.set.is_some() && output.failures.is_empty() => Ok(output),
        Ok(output) if without_backup => Ok(output),
        Err(failure) if without_backup && failure.kind == FailureKind::Failed => {
            Ok(Output { failures: vec![failure.message], ..Output::default() })
        }
        Ok(output) => {
            let why = output.failures.join("; ");
            Err(StageFailure::failed(format!("the data as it is now could not be backed up: {why}")))
        }
        Err(failure) => Err(failure),
    }
}

/// How the world is, for a set to record. What cannot be read is left out: no reason not to take one.
pub async fn context(world: &World, key: &EnvironmentKey, deployment: Option<DeploymentId>) -> SetContext {
    let live = world.registry.live(key).await.ok().flatten();
    let mut context = SetContext {
        release: live.map(|live| SetRelease { deployment: live.deployment, commit: live.commit }),
        ..SetContext::default()
    };
    let filter = Filter {
        app: Some(key.app.to_string()),
        environment: Some(key.environment.to_string()),
        limit: Some(LOOK_BACK),
        ..Filter::default()
    };
    let history = world.registry.deployments(&filter).await.unwrap_or_default();
    context.by = history.iter().find(|d| Some(d.id) == deployment).and_then(|d| d.trigger.by.clone());
    for past in &history {
        // Data that was put back brought its schema with it.
        if past.status == Status::Succeeded && past.rollback.as_ref().is_some_and(|r| r.restore.is_some()) {
            break;
        }
        let Some(stage) = past.stages.iter().find(|stage| stage.name == Stage::Migrate) else { continue };
        let after = stage.output.as_ref().and_then(|output| output.get("after")).and_then(|v| v.as_str());
        match (stage.status, after) {
            (StageStatus::Pending | StageStatus::Skipped, _) => {}
            (StageStatus::Succeeded, None) => {}
            (_, after) => {
                context.schema = after.map(str::to_owned);
                break;
            }
        }
    }
    context
}

/// Takes a set and applies retention, which leaves the sets of `protect` alone, and those that something still needs. An error only
/// if a required part failed.
pub async fn take(step: &Step, commit: &CommitId, reason: &str, protect: &[String]) -> Result<Output, StageFailure> {
    let environment = &step.environment;
    let backups_dir = &step.world.config.server.backups_dir;
    let context = context(&step.world, &environment.key, Some(step.deployment)).await;
    let request = SetRequest {
        environment,
        parts: &[],
        deployment: Some(step.deployment),
        commit: Some(commit),
        reason,
        backups_dir,
        context: &context,
    };
    let report = data::create_set(request, step.world.runtimes.reach(), &step.job).await?;
    let failures: Vec<String> = report.failures.iter().map(|f| format!("{}: {}", f.name, f.error)).collect();
    if report.is_failure() {
        return Err(StageFailure::failed(format!("a required backup failed: {}", failures.join("; "))));
    }
    let mut failures = failures;
    let mut bad = false;
    if let Some(set) = &report.set {
        let problems = look_at(step, set).await?;
        bad = !problems.is_empty();
        failures.extend(problems);
    }
    let mut removed = Vec::new();
    if report.set.is_some() && !bad {
        // Old sets go only once a new one is there. What cannot be removed is no reason to stop.
        let mut protect = protect.to_owned();
        let needed = needed::sets(&step.world.registry, &step.world.config.server.state_dir, &environment.key).await;
        protect.extend(needed.map_err(StageFailure::failed)?.into_iter().map(|need| need.set));
        let (dir, environment) = (backups_dir.clone(), Arc::clone(environment));
        let pruned = super::blocking(move || {
            Ok(data::prune(&dir, &environment.key, &environment.backup_retention, jiff::Timestamp::now(), &protect)?)
        });
        match pruned.await {
            Ok(pruned) => removed = pruned.removed,
            Err(failure) => step.job.log.line(format!("old backups could not be removed: {}", failure.message)),
        }
    }
    Ok(Output {
        set: report.set,
        bytes: report.bytes,
        notes: report.parts.iter().filter_map(data::Part::warning).collect(),
        parts: report.parts.into_iter().map(|p| p.file).collect(),
        failures,
        removed,
        state: None,
        nothing_there: false,
    })
}

/// Verifies a new set as far as its configuration asks; what is wrong with it. An error if a required part is not good.
async fn look_at(step: &Step, set: &str) -> Result<Vec<String>, StageFailure> {
    let (environment, world) = (&step.environment, &step.world);
    let path = world.config.server.backups_dir.join(set);
    let looked = data::verify_new(environment, &path, world.runtimes.reach(), &step.job).await;
    let needed_is_bad = |report: &VerifyReport| {
        let bad = |name: &str| report.parts.iter().any(|part| part.name == name && !part.ok);
        !report.ok && environment.backups.iter().any(|backup| backup.required && bad(backup.name.as_str()))
    };
    let kept = match looked {
        Ok(Some(found)) => {
            let fails = needed_is_bad(&found);
            rehearsed::keep(world, &environment.key, &path, found, fails).await.map(Some)
        }
        looked => looked,
    };
    let found = match kept {
        Ok(found) => found,
        Err(error @ data::DataError::Cancelled) => return Err(error.into()),
        // What was found could not be kept: the set itself is there.
        Err(error) => {
            step.job.log.line(format!("warning: {error}"));
            return Ok(Vec::new());
        }
    };
    let Some(report) = found.filter(|report| !report.ok) else { return Ok(Vec::new()) };
    if needed_is_bad(&report) {
        return Err(StageFailure::failed(format!("a required backup is not good: {}", report.problems.join("; "))));
    }
    Ok(report.problems.iter().map(|problem| format!("backup {set} is not good: {problem}")).collect())
}

/// A complete set is kept, whatever becomes of the deployment; what a killed process left half written goes.
pub async fn undo(step: &Step) -> Result<Option<String>, StageFailure> {
    let backups_dir = step.world.config.server.backups_dir.clone();
    let key = step.environment.key.clone();
    super::blocking(move || Ok(data::discard_incomplete(&backups_dir, &key)?)).await?;
    Ok(None)
}
