//! Data put back by hand: queued under a release that is live, done here where there is none.

use super::{BackupRequest, Hands, RestoreWish, Restored, STOPPED, blocking};
use crate::{
    config::Environment,
    control::{Control, ControlError, Result},
    data::{self, RestoreRequest, SetState, SetSummary},
    model::{DeploymentId, Name, RollbackKind},
    registry::{NewDeployment, RollbackOrder},
};

/// The word for the newest set that can be used.
const LATEST: &str = "latest";

/// A set that was looked at and found whole.
struct Chosen {
    summary: SetSummary,
    /// Relative to the backups directory.
    whole: String,
}

impl Control {
    /// Queues the restore under what is live; `None` where nothing is.
    pub(super) async fn queue_restore(
        &self,
        environment: &Environment,
        wish: &RestoreWish,
        request: &BackupRequest,
    ) -> Result<Option<DeploymentId>> {
        let Some(live) = self.registry().live(&environment.key).await? else { return Ok(None) };
        let chosen = choose(self, environment, wish).await?;
        self.world.runtimes.of(live.runtime).check().await?;
        let order = RollbackOrder {
            kind: RollbackKind::Restore,
            target: live.deployment,
            reason: reason(wish),
            forced: wish.force,
            backup: Some(chosen.whole),
            parts: wish.parts.clone(),
            checks: serde_json::json!([]),
        };
        let new = NewDeployment {
            key: environment.key.clone(),
            commit: Some(live.commit.clone()),
            reference: live.commit.to_string(),
            trigger: request.trigger.clone(),
            rollback: Some(order),
        };
        self.enqueue(new, request.no_wait).await.map(Some)
    }
}

fn reason(wish: &RestoreWish) -> String {
    let given = wish.reason.as_deref().map(str::trim).filter(|reason| !reason.is_empty());
    given.unwrap_or("asked for by hand").to_owned()
}

impl Hands<'_> {
    /// The data as it is now is backed up, as far as there is any; then the set takes its place at once, or not at all.
    pub(super) async fn restore_here(&self, wish: &RestoreWish) -> Result<Restored> {
        let faults = &self.control.world.faults;
        let chosen = choose(self.control, &self.environment, wish).await?;
        let before = self.keep_what_is_there(wish, &chosen).await?;
        faults.reach("restore:backup").await;
        let report = self.put(&chosen.summary.path, &wish.parts).await?;
        faults.reach("restore:effect").await;
        let checks = self.check(&wish.parts, before.as_deref()).await?;
        Ok(Restored { report, before, checks })
    }

    /// Data that does not answer its `check` goes away again.
    async fn check(&self, parts: &[Name], before: Option<&str>) -> Result<Vec<String>> {
        let world = &self.control.world;
        let error = match data::check_data(&self.environment, parts, world.runtimes.reach(), &self.job).await {
            Ok(checks) => return Ok(checks),
            Err(error) => error,
        };
        let Some(before) = before else {
            return Err(ControlError::Failed {
                message: format!("the data was put in place, but {error}"),
                hint: Some(
                    "see whether this is the right backup; there was nothing before that could be put back".to_owned(),
                ),
                code: STOPPED,
            });
        };
        self.job.log.line(format!("{error}: putting back what was there before"));
        let back = self.put(&world.config.server.backups_dir.join(before), parts).await;
        let left = match back {
            Ok(_) => "the data is as it was before".to_owned(),
            Err(why) => format!("and what was there before could not be put back: {why}"),
        };
        Err(ControlError::Failed {
            message: format!("{error}; {left}"),
            hint: Some("`refit backup list` shows what else there is".to_owned()),
            code: STOPPED,
        })
    }

    async fn put(&self, set: &std::path::Path, parts: &[Name]) -> Result<data::RestoreReport> {
        let request = RestoreRequest { environment: &self.environment, set, parts };
        Ok(data::restore_set(request, self.control.world.runtimes.reach(), &self.job).await?)
    }

    async fn keep_what_is_there(&self, wish: &RestoreWish, chosen: &Chosen) -> Result<Option<String>> {
        let present = data::present(&self.environment, self.control.world.runtimes.reach(), &self.job).await;
        if present.backups.is_empty() {
            return Ok(None);
        }
        let report = self.take(&present, &[], &format!("before {} is restored", chosen.summary.name)).await?;
        if report.set.is_some() && report.failures.is_empty() || wish.force {
            return Ok(report.set);
        }
        let why: Vec<String> = report.failures.iter().map(|f| format!("`{}`: {}", f.name, f.error)).collect();
        Err(ControlError::Failed {
            message: format!(
                "the data as it is now could not be backed up, and nothing was changed: {}",
                why.join("; ")
            ),
            hint: Some("mend that, or, if there is nothing to lose, add --force".to_owned()),
            code: STOPPED,
        })
    }
}

/// Finds the set that is meant and verifies every checksum of it, before anything is queued or changed.
async fn choose(control: &Control, environment: &Environment, wish: &RestoreWish) -> Result<Chosen> {
    let (dir, key, name) = (control.config().server.backups_dir.clone(), environment.key.clone(), wish.set.clone());
    let summary = blocking(move || {
        let name = match name.as_str() {
            LATEST => {
                let newest = data::list(&dir, &key)?.into_iter().find(|set| set.state == SetState::Complete);
                newest.map_or(name, |set| set.name)
            }
            _ => name,
        };
        let set = data::which_set(&dir, &key, &name)?;
        data::verify_checksums(&set.path)?;
        Ok(set)
    })
    .await?;
    fits(environment, &summary, &wish.parts)?;
    let whole = format!("{}/{}/{}", environment.key.app, environment.key.environment, summary.name);
    Ok(Chosen { summary, whole })
}

/// What is wanted is in the set, and the configuration says where it goes.
fn fits(environment: &Environment, set: &SetSummary, parts: &[Name]) -> Result<()> {
    if let Some(unknown) = parts.iter().find(|part| !set.parts.iter().any(|held| held == part.as_str())) {
        return Err(ControlError::usage(
            format!("backup {} has no part `{unknown}`", set.name),
            format!("it has {}", set.parts.join(", ")),
        ));
    }
    let wanted = |name: &&String| parts.is_empty() || parts.iter().any(|part| part.as_str() == *name);
    let configured = |name: &String| environment.backups.iter().any(|backup| backup.name.as_str() == name);
    let homeless: Vec<&str> = set.parts.iter().filter(wanted).filter(|n| !configured(n)).map(String::as_str).collect();
    if homeless.is_empty() {
        return Ok(());
    }
    Err(ControlError::usage(
        format!("backup {} has {}, which no [[backup]] of {} names", set.name, homeless.join(", "), environment.key),
        "name the parts that you want with --part, or add the [[backup]] that says where this one goes",
    ))
}
