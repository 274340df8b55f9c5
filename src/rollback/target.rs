//! Which release is meant: from a person's words and what the registry knows, without touching anything.

use serde::{Deserialize, Serialize};

use crate::{
    model::{CommitId, DeploymentId, EnvironmentKey, RollbackKind, Status},
    registry::{LastRollback, Release},
};

/// Fewer digits of a commit name too many.
const SHORTEST_COMMIT: usize = 4;

/// Which release is meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The newest one before the live one.
    Previous,
    Deployment(DeploymentId),
    /// A commit id, in full or its beginning.
    Commit(String),
    /// An artefact's name or its tag, such as `guestbook:0123456789`.
    Version(String),
    /// What was live before the last rollback.
    Undo,
}

impl Target {
    /// The digits of a commit as they are compared, or why they are none.
    pub fn digits(text: &str) -> Result<String, NoTarget> {
        let hex = text.bytes().all(|b| b.is_ascii_hexdigit());
        if hex && (SHORTEST_COMMIT..=40).contains(&text.len()) {
            return Ok(text.to_ascii_lowercase());
        }
        Err(NoTarget::new(format!(
            "`{}` is no commit: it is written with {SHORTEST_COMMIT} to 40 hexadecimal digits",
            shown(text)
        )))
    }
}

/// What the registry knows of an environment.
#[derive(Debug, Clone)]
pub struct Known<'a> {
    pub key: &'a EnvironmentKey,
    pub live: &'a Release,
    /// Every release that ever was, the newest first, each with whether it is retired.
    pub releases: &'a [(Release, bool)],
    /// The newest rollback that succeeded.
    pub last: Option<LastRollback>,
    /// The newest deployment that fits what was named, live at some time or never.
    pub attempt: Option<Attempt>,
}

/// A deployment that may never have been live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    pub id: DeploymentId,
    pub commit: Option<CommitId>,
    pub status: Status,
}

/// There is no release to go to: why, and what there is instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.text())]
pub struct NoTarget {
    pub why: String,
    /// A line for each release that could be named.
    pub choices: Vec<String>,
}

impl NoTarget {
    fn new(why: String) -> Self {
        Self { why, choices: Vec::new() }
    }

    fn text(&self) -> String {
        if self.choices.is_empty() {
            return self.why.clone();
        }
        format!("{}; what there is:\n  {}", self.why, self.choices.join("\n  "))
    }
}

/// The release that is meant, and what kind of rollback that is.
pub fn choose(target: &Target, known: &Known<'_>) -> Result<(Release, RollbackKind), NoTarget> {
    let (found, kind) = match target {
        Target::Previous => (previous(known)?, RollbackKind::Previous),
        Target::Undo => (before_last(known)?, RollbackKind::Undo),
        // Asked for by its number, what is live is started again, if it is in trouble: the checks see to that.
        Target::Deployment(id) if *id == known.live.deployment => (known.live, RollbackKind::Specific),
        Target::Deployment(id) => {
            let named = format!("deployment {id}");
            (pick(known, &named, |r| r.deployment == *id)?, RollbackKind::Specific)
        }
        Target::Commit(text) => {
            let digits = Target::digits(text)?;
            only_one_commit(known, &digits)?;
            let named = format!("commit {digits}");
            (pick(known, &named, |r| r.commit.as_str().starts_with(&digits))?, RollbackKind::Specific)
        }
        Target::Version(text) => {
            let named = format!("version `{}`", shown(text));
            (pick(known, &named, |r| is_version(r, text))?, RollbackKind::Specific)
        }
    };
    Ok((found.clone(), kind))
}

fn previous<'a>(known: &Known<'a>) -> Result<&'a Release, NoTarget> {
    let mut kept = known.releases.iter().filter(|(_, retired)| !retired).map(|(release, _)| release);
    kept.find(|release| release.deployment < known.live.deployment).ok_or_else(|| {
        let live = known.live.deployment;
        missing(known, format!("{} has no release before deployment {live}, which is live", known.key))
    })
}

fn before_last<'a>(known: &Known<'a>) -> Result<&'a Release, NoTarget> {
    let key = known.key;
    let Some(last) = known.last else {
        return Err(missing(known, format!("{key} has no rollback that could be undone")));
    };
    let live = known.live.deployment;
    if last.to != live {
        let why = format!(
            "the last rollback (deployment {}, to {}) is not what is live: deployment {live} took its place since; name the \
             release that you mean",
            last.deployment, last.to
        );
        return Err(missing(known, why));
    }
    match last.from {
        Some(from) => pick(known, &format!("deployment {from}"), |release| release.deployment == from),
        None => Err(missing(known, format!("nothing was live before the last rollback of {key}"))),
    }
}

/// The newest release that fits and can come back; else why none can.
fn pick<'a>(known: &Known<'a>, named: &str, fits: impl Fn(&Release) -> bool) -> Result<&'a Release, NoTarget> {
    let key = known.key;
    let fitting: Vec<_> = known.releases.iter().filter(|(release, _)| fits(release)).collect();
    let usable = fitting.iter().find(|(r, retired)| !retired && r.deployment != known.live.deployment);
    if let Some((release, _)) = usable {
        return Ok(release);
    }
    if fits(known.live) {
        return Err(missing(known, format!("{named} is what is live in {key}: there is nothing to go back to")));
    }
    if let Some((release, _)) = fitting.first() {
        let why = format!(
            "{named} was retired: the container and the image of deployment {} were given back (`rollback.keep`); `refit deploy \
             --commit {}` builds it again",
            release.deployment,
            release.commit.short()
        );
        return Err(missing(known, why));
    }
    let why = match &known.attempt {
        Some(attempt) => {
            format!("{named} was never live in {key}: deployment {} is {}", attempt.id, words(attempt.status))
        }
        None => format!("{key} has no {named}"),
    };
    Err(missing(known, why))
}

/// Digits that begin several commits are refused: a guess would be the wrong version half of the time.
fn only_one_commit(known: &Known<'_>, digits: &str) -> Result<(), NoTarget> {
    let mut commits: Vec<_> =
        known.releases.iter().map(|(r, _)| &r.commit).filter(|c| c.as_str().starts_with(digits)).collect();
    commits.sort();
    commits.dedup();
    if commits.len() < 2 {
        return Ok(());
    }
    let all: Vec<_> = commits.iter().map(|c| c.as_str().get(..16).unwrap_or_default()).collect();
    Err(NoTarget::new(format!("{} commits begin with {digits} ({}): write more digits", all.len(), all.join(", "))))
}

/// `guestbook:0123456789`, `0123456789`, the name of a release directory, or the artefact's id.
fn is_version(release: &Release, text: &str) -> bool {
    let name = release.artefact_name.as_str();
    let tag = name.rsplit_once(':').map(|(_, tag)| tag);
    let file = name.starts_with('/').then(|| name.rsplit('/').next()).flatten();
    name == text || tag == Some(text) || file == Some(text) || release.artefact == text
}

fn missing(known: &Known<'_>, why: String) -> NoTarget {
    let line = |release: &Release| {
        let live = if release.deployment == known.live.deployment { "live since" } else { "was live from" };
        let at = release.live_since.strftime("%Y-%m-%d %H:%M UTC");
        format!("{}  {}  {}  {live} {at}", release.deployment, release.commit.short(), release.artefact_name)
    };
    let kept = known.releases.iter().filter(|(_, retired)| !retired);
    NoTarget { why, choices: kept.map(|(release, _)| line(release)).collect() }
}

fn words(status: Status) -> String {
    status.as_str().replace('_', " ")
}

/// A person's words in a message: short, and harmless to a terminal.
fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_default).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::RuntimeKind, runtime::Instance};

    fn key() -> EnvironmentKey {
        EnvironmentKey { app: "shop".parse().unwrap(), environment: "production".parse().unwrap() }
    }

    fn release(id: i64, commit: &str) -> Release {
        let commit: CommitId = format!("{commit:0<40}").parse().unwrap();
        Release {
            deployment: DeploymentId(id),
            key: key(),
            artefact: format!("sha256:{id}"),
            artefact_name: format!("shop:{}", commit.short()),
            commit,
            runtime: RuntimeKind::Docker,
            instance: Instance { id: "c".into(), name: "n".into(), deployment: DeploymentId(id) },
            live_since: "2026-11-21T10:00:00Z".parse().unwrap(),
        }
    }

    /// 1 is retired, 2 to 5 are kept, 5 is live unless said otherwise.
    fn all() -> Vec<(Release, bool)> {
        let commits = [(5, "beef5"), (4, "abcd4"), (3, "abcd3"), (2, "feed2"), (1, "dead1")];
        commits.map(|(id, commit)| (release(id, commit), id == 1)).into()
    }

    fn chosen(target: Target, live: i64, last: Option<LastRollback>) -> Result<(i64, RollbackKind), String> {
        let (key, releases) = (key(), all());
        let live = releases.iter().find(|(r, _)| r.deployment.0 == live).unwrap().0.clone();
        let attempt = Some(Attempt { id: DeploymentId(9), commit: None, status: Status::RolledBack });
        let attempt = attempt.filter(|_| target == Target::Deployment(DeploymentId(9)));
        let known = Known { key: &key, live: &live, releases: &releases, last, attempt };
        choose(&target, &known).map(|(r, kind)| (r.deployment.0, kind)).map_err(|e| e.to_string())
    }

    fn rolled(from: i64, to: i64) -> Option<LastRollback> {
        Some(LastRollback { deployment: DeploymentId(6), from: Some(DeploymentId(from)), to: DeploymentId(to) })
    }

    #[test]
    fn the_one_before_what_is_live() {
        assert_eq!(chosen(Target::Previous, 5, None), Ok((4, RollbackKind::Previous)));
        assert_eq!(chosen(Target::Previous, 3, None), Ok((2, RollbackKind::Previous)), "after a rollback");
        let none = chosen(Target::Previous, 2, None).unwrap_err();
        assert!(none.contains("no release before deployment 2"), "{none}");
        assert!(none.contains("5  beef500000  shop:beef500000  was live from 2026-11-21 10:00 UTC"), "{none}");
        assert!(!none.contains("dead1"), "a retired one cannot be named: {none}");
    }

    #[test]
    fn one_that_is_named() {
        let found = |target| chosen(target, 5, None).map(|(id, _)| id);
        let commit = |text: &str| Target::Commit(text.to_owned());
        let version = |text: &str| Target::Version(text.to_owned());
        assert_eq!(found(Target::Deployment(DeploymentId(2))), Ok(2));
        assert_eq!(found(Target::Deployment(DeploymentId(5))), Ok(5), "what is live, to be started again");
        assert_eq!(found(commit("abcd3")), Ok(3));
        assert_eq!(found(commit(&format!("{:0<40}", "ABCD4"))), Ok(4));
        assert_eq!(found(version("shop:feed200000")), Ok(2));
        assert_eq!(found(version("feed200000")), Ok(2));
        for (target, why) in [
            (commit("abcd"), "2 commits begin with abcd"),
            (commit("dead1"), "was retired"),
            (commit("beef"), "is what is live"),
            (commit("0123"), "has no commit 0123"),
            (commit("abc"), "is no commit"),
            (commit("-abcd"), "is no commit"),
            (commit("--upload-pack=x"), "is no commit"),
            (commit("abcd\u{1b}[31m"), "is no commit"),
            (commit(&"a".repeat(41)), "is no commit"),
            (version("latest"), "has no version `latest`"),
            (Target::Deployment(DeploymentId(9)), "was never live in shop/production: deployment 9 is rolled back"),
            (Target::Deployment(DeploymentId(7)), "has no deployment 7"),
        ] {
            let error = found(target.clone()).unwrap_err();
            assert!(error.contains(why) && !error.contains('\u{1b}'), "{target:?}: {error}");
        }
    }

    #[test]
    fn forward_again() {
        assert_eq!(chosen(Target::Undo, 3, rolled(5, 3)), Ok((5, RollbackKind::Undo)));
        assert!(chosen(Target::Undo, 5, None).is_err_and(|e| e.contains("no rollback that could be undone")));
        let moved_on = chosen(Target::Undo, 5, rolled(4, 3)).unwrap_err();
        assert!(moved_on.contains("deployment 5 took its place since"), "{moved_on}");
        assert!(chosen(Target::Undo, 3, rolled(1, 3)).is_err_and(|e| e.contains("was retired")));
    }
}
