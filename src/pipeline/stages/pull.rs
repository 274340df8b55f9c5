//! pull: fetches with the `git` program and pins the commit. Everything after works from that commit.
//!
//! A push only says *that* the branch moved. What is deployed is the branch's tip as the configured repository tells it, so a
//! replayed, reordered or forged-by-mistake delivery can never bring an older version back, and a forced push back to an
//! older commit still works. A deployment that a person asked for is of exactly what was named.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Done, Progress, StageFailure, Step, blocking, within};
use crate::{
    git::{CommitInfo, Mirror},
    log::printable,
    model::{CommitId, TriggerKind},
    pipeline::journal::FailureKind,
    registry::Facts,
    runtime::Job,
    trigger::rules::{self, PushFacts, Verdict},
};

/// Between two attempts to reach the remote; doubled each time.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Beyond the limit that `git` has: for ending it. Its own words say more than those of a stage that took too long.
const SLACK: Duration = Duration::from_secs(15);

#[derive(Debug, Serialize, Deserialize)]
pub struct Input {
    pub reference: String,
    pub commit: Option<CommitId>,
    /// A person asked for exactly this.
    pub explicit: bool,
    /// The push replaced history.
    pub forced: bool,
    /// The commit that is live.
    pub live: Option<CommitId>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Output {
    pub commit: CommitId,
    pub subject: String,
    pub author: String,
    /// Why there is nothing to deploy; the deployment ends `skipped`.
    pub skip: Option<String>,
}

pub fn input(progress: &Progress) -> Input {
    Input {
        reference: progress.reference.clone(),
        commit: progress.requested.clone(),
        explicit: progress.explicit,
        forced: progress.forced,
        live: progress.previous.as_ref().map(|release| release.commit.clone()),
    }
}

pub async fn run(step: &Step, input: Input) -> Result<Done, StageFailure> {
    let mirror = step.world.mirror_of(&step.environment);
    let commit = fetch(step, &mirror, &input).await?;
    let info = {
        let (mirror, commit) = (mirror.clone(), commit.clone());
        blocking(move || Ok(mirror.commit(&commit)?)).await?
    };
    let redactor = step.job.log.redactor();
    let subject = printable(&redactor.mask(&info.subject));
    let author = printable(&redactor.mask(&info.author));
    step.job.log.line(format!("commit {} by {author}: {subject}", commit.as_str()));
    let skip = if input.explicit { None } else { why_skip(step, &mirror, &input, &info).await? };
    let facts = Facts {
        commit: Some(commit.clone()),
        subject: Some(subject.clone()),
        author: Some(author.clone()),
        ..Facts::default()
    };
    Ok(Done { facts, ..Done::new(&Output { commit, subject, author, skip })? })
}

/// Brings the mirror up to date and says which commit it is to be.
async fn fetch(step: &Step, mirror: &Mirror, input: &Input) -> Result<CommitId, StageFailure> {
    let environment = &step.environment;
    let by_branch = !input.explicit || input.reference == format!("refs/heads/{}", environment.branch);
    let wanted = input.commit.as_ref().filter(|_| input.explicit);
    let mut pause = RETRY_PAUSE;
    let mut attempt = 0;
    loop {
        let job = Job { log: step.job.log.clone(), cancel: step.job.cancel.clone() };
        let result = within(environment.pull.timeout + SLACK, "pull", &step.job.cancel, async |cancel| {
            let job = Job { cancel, ..job };
            if let Some(commit) = wanted
                && here(mirror, commit).await?
            {
                return Ok(commit.clone());
            }
            if by_branch && wanted.is_none() {
                let tip = mirror.fetch_branch(&environment.branch, environment.pull.timeout, &job).await?;
                return tip.ok_or_else(|| {
                    StageFailure::failed(format!(
                        "the repository has no branch `{}`: push it, or set `branch` of {}",
                        environment.branch, environment.key
                    ))
                });
            }
            mirror.fetch_all(environment.pull.timeout, &job).await?;
            let name = wanted.map_or(input.reference.as_str(), CommitId::as_str).to_owned();
            let mirror = mirror.clone();
            blocking(move || Ok(mirror.resolve(&name)?)).await
        })
        .await;
        match result {
            Err(failure)
                if attempt < environment.pull.retries
                    && matches!(failure.kind, FailureKind::Unavailable | FailureKind::TimedOut) =>
            {
                attempt += 1;
                step.job.log.line(format!("{}; attempt {attempt} of {}", failure.message, environment.pull.retries));
                tokio::select! {
                    () = tokio::time::sleep(pause) => pause *= 2,
                    () = step.job.cancel.cancelled() => return Err(StageFailure::cancelled()),
                }
            }
            other => return other,
        }
    }
}

async fn here(mirror: &Mirror, commit: &CommitId) -> Result<bool, StageFailure> {
    let (mirror, commit) = (mirror.clone(), commit.clone());
    blocking(move || Ok(mirror.has_commit(&commit))).await
}

/// The rules for pushes: see `trigger::rules`. The commit is the branch's tip.
async fn why_skip(
    step: &Step,
    mirror: &Mirror,
    input: &Input,
    info: &CommitInfo,
) -> Result<Option<String>, StageFailure> {
    let key = &step.environment.key;
    let earlier = step.world.registry.last_of_commit(key, &info.id, Some(step.deployment)).await;
    let earlier = earlier.map_err(|e| StageFailure::failed(e.to_string()))?;
    let earlier: Vec<_> = earlier.into_iter().map(|(_, status)| status).collect();
    let live = match &input.live {
        Some(live) if here(mirror, live).await? => Some(live.clone()),
        _ => None,
    };
    let (mirror, tip, forced) = (mirror.clone(), info.clone(), input.forced);
    let paths = step.environment.paths.clone();
    blocking(move || {
        let facts = PushFacts {
            trigger: TriggerKind::Reconcile,
            commit: &tip.id,
            tip: Some(&tip.id),
            live: live.as_ref(),
            on_branch: true,
            in_live: match &live {
                Some(live) => mirror.is_ancestor(&tip.id, live)?,
                None => false,
            },
            forced,
            earlier: &earlier,
        };
        if let Verdict::Ignore(why) = rules::judge_push(&facts) {
            return Ok(Some(why));
        }
        if let Some(marker) = rules::skip_marker(&tip.message) {
            return Ok(Some(format!("the commit message says {marker}")));
        }
        let Some(live) = live.filter(|_| paths.set.is_some()) else { return Ok(None) };
        let changed = mirror.changed_paths(&live, &tip.id)?;
        let matches = rules::paths_match(&paths, &changed);
        Ok((!matches).then(|| format!("none of the {} changed files is in `paths`", changed.len())))
    })
    .await
}
