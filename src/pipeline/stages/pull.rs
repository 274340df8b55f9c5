//! pull: fetches with the `git` program and pins the commit. Everything after works from that commit.
//!
//! A push only says *that* the branch moved. What is deployed is the branch's tip as the configured repository tells it, so a
//! replayed, reordered or forged-by-mistake delivery can never bring an older version back, and a forced push back to an
//! older commit still works. A deployment that a person asked for is of exactly what was named.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Done, Progress, StageFailure, Step};
use crate::{
    git::{CommitInfo, GitError, GitErrorKind, Mirror},
    log::printable,
    model::{CommitId, TriggerKind},
    registry::Facts,
    trigger::rules::{self, PushFacts, Verdict},
};

/// Between two attempts to reach the remote; doubled each time.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

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
        in_background(move || mirror.commit(&commit)).await?
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

/// Brings the mirror up to date and says which commit it is to be. What a moment may mend is tried again.
async fn fetch(step: &Step, mirror: &Mirror, input: &Input) -> Result<CommitId, StageFailure> {
    let retries = step.environment.pull.retries;
    let mut pause = RETRY_PAUSE;
    let mut attempt = 0;
    loop {
        match fetch_once(step, mirror, input).await {
            Err(error) if attempt < retries && error.transient() => {
                attempt += 1;
                step.job.log.line(format!("{error}; trying again, {attempt} of {retries}"));
                tokio::select! {
                    () = tokio::time::sleep(pause) => pause *= 2,
                    () = step.job.cancel.cancelled() => return Err(StageFailure::cancelled()),
                }
            }
            other => return Ok(other?),
        }
    }
}

/// One attempt. The mirror keeps the time limit itself, and knows what did not answer.
async fn fetch_once(step: &Step, mirror: &Mirror, input: &Input) -> Result<CommitId, GitError> {
    let environment = &step.environment;
    let limit = environment.pull.timeout;
    let wanted = input.commit.as_ref().filter(|_| input.explicit);
    if let Some(commit) = wanted
        && here(mirror, commit).await
    {
        return Ok(commit.clone());
    }
    let by_branch = !input.explicit || input.reference == format!("refs/heads/{}", environment.branch);
    if by_branch && wanted.is_none() {
        let tip = mirror.fetch_branch(&environment.branch, limit, &step.job).await?;
        return tip.ok_or_else(|| {
            let why = format!("the repository has no such branch: push it, or set `branch` of {}", environment.key);
            GitError::new(GitErrorKind::Missing, format!("fetch branch `{}`", environment.branch), why)
        });
    }
    mirror.fetch_all(limit, &step.job).await?;
    let name = wanted.map_or(input.reference.as_str(), CommitId::as_str).to_owned();
    let mirror = mirror.clone();
    in_background(move || mirror.resolve(&name)).await
}

/// libgit2, off the async threads.
async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, GitError> + Send + 'static,
) -> Result<T, GitError> {
    let ended = |e| Err(GitError::new(GitErrorKind::Host, "read the repository", format!("it broke off: {e}")));
    tokio::task::spawn_blocking(work).await.unwrap_or_else(ended)
}

/// Whether the mirror has a commit; one that cannot be read is fetched.
async fn here(mirror: &Mirror, commit: &CommitId) -> bool {
    let (mirror, commit) = (mirror.clone(), commit.clone());
    in_background(move || Ok(mirror.has_commit(&commit))).await.unwrap_or(false)
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
        Some(live) if here(mirror, live).await => Some(live.clone()),
        _ => None,
    };
    let (mirror, tip, forced) = (mirror.clone(), info.clone(), input.forced);
    let paths = step.environment.paths.clone();
    in_background(move || {
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
    .map_err(StageFailure::from)
}
