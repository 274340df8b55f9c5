//! Releases: a commit's tree and what the build made of it, in one directory.
//!
//! A release is built in a scratch directory and renamed into place when it is complete, with a manifest inside that says what it
//! was built from. What is in `releases/` is therefore whole. A release of the same tree, arguments and command is used
//! again, whatever its commit.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    oneoff::Scratch,
    place::{Place, ReleaseId, disk_usage, io_failed, make_dir, read_json, remove_all, write_json},
};
use crate::{
    config::Environment,
    git::{GitError, Mirror},
    model::{CommitId, DeploymentId, EnvironmentKey},
    runtime::{Artefact, BuildRequest, Job, Result, RuntimeError, SeenArtefact},
};

/// The manifest's name in the release's directory.
const MANIFEST: &str = ".refit-release.json";

/// Lines of a failed build in its error; the deployment's log has them all.
const QUOTED_LINES: usize = 10;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    version: u32,
    /// SHA-256 of tree, arguments and command.
    key: String,
    commit: CommitId,
    built_at: jiff::Timestamp,
}

pub(super) async fn build(place: &Place, request: &BuildRequest<'_>, job: &Job) -> Result<Artefact> {
    if let Some(target) = request.target {
        let why = format!("`{target}` is a target of a Dockerfile, which the process runtime does not build");
        return Err(RuntimeError::failed("build", why));
    }
    super::check_settings(request.environment)?;
    for line in super::not_enforced(request.environment) {
        job.log.line(line);
    }
    let id = ReleaseId::new(&request.environment.key, request.deployment, request.commit);
    let key = build_key(request.environment, &request.mirror.tree_id(request.commit).map_err(git_failed)?);
    if let Some(name) = find(place, &id, &key, request.environment.build.no_cache) {
        job.log.line(format!("release {name} has the same tree and arguments: used again"));
        let found = ReleaseId { name, ..id };
        return Ok(artefact(place, &found, true));
    }
    make(place, request, job, &id, key).await?;
    Ok(artefact(place, &id, false))
}

fn artefact(place: &Place, id: &ReleaseId, reused: bool) -> Artefact {
    Artefact { id: id.to_string(), name: place.release(id).display().to_string(), reused }
}

/// Each part goes in with its length, so that no two lists of parts read the same.
fn build_key(environment: &Environment, tree: &str) -> String {
    let build = &environment.build;
    let args = build.args.iter().flat_map(|(name, value)| [name.as_str(), value.as_str()]);
    let run = build.run.as_deref().unwrap_or_default();
    let mut hash = Sha256::new();
    for part in ["refit-release-1", tree, run].into_iter().chain(args) {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hex::encode(hash.finalize())
}

/// The release with this key: this deployment's own, else (unless `no_cache`) the newest one.
fn find(place: &Place, own: &ReleaseId, key: &str, no_cache: bool) -> Option<String> {
    let matches =
        |path: &Path| read_json::<Manifest>(&path.join(MANIFEST)).ok().flatten().filter(|manifest| manifest.key == key);
    if matches(&place.release(own)).is_some() {
        return Some(own.name.clone());
    }
    if no_cache {
        return None;
    }
    let entries = std::fs::read_dir(place.releases(&own.key)).ok()?;
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((matches(&entry.path())?.built_at, entry.file_name().into_string().ok()?))
        })
        .max()
        .map(|(_, name)| name)
}

async fn make(place: &Place, request: &BuildRequest<'_>, job: &Job, id: &ReleaseId, key: String) -> Result<()> {
    let scratch = Scratch::claim(place, &id.key, request.deployment, "build").await?;
    let made = fill(request, job, &scratch, key).await;
    let moved = match made {
        Ok(()) => put_in_place(place, &scratch.dir, id).await,
        Err(error) => Err(error),
    };
    scratch.release().await?;
    moved
}

async fn fill(request: &BuildRequest<'_>, job: &Job, scratch: &Scratch, key: String) -> Result<()> {
    export(request.mirror, request.commit, &scratch.dir).await?;
    let built_at = jiff::Timestamp::now();
    if let Some(run) = &request.environment.build.run {
        let program = scratch
            .program(run)
            .dir(&scratch.dir)
            .envs(&request.environment.build.args)
            .env("BUILD_DATE", format!("{built_at:.0}"))
            .env("VCS_REF", request.commit.as_str());
        let log = &job.log;
        let done = program.stream(super::NO_LIMIT, &job.cancel, |line| log.line(line)).await;
        let done = done.map_err(super::exec_failed("build"))?;
        if !done.success() {
            let tail = job.log.tail();
            let last = tail[tail.len().saturating_sub(QUOTED_LINES)..].join("\n");
            return Err(RuntimeError::failed("build", format!("the command ended with code {}:\n{last}", done.code)));
        }
    }
    let manifest = Manifest { version: 1, key, commit: request.commit.clone(), built_at };
    let path = scratch.dir.join(MANIFEST);
    // A tree may hold anything by that name, a link too.
    remove_all(&path).await?;
    write_json(&path, &manifest).map_err(io_failed("writing", &path))
}

async fn put_in_place(place: &Place, from: &Path, id: &ReleaseId) -> Result<()> {
    let release = place.release(id);
    // The same deployment, with other arguments: built once, never started.
    remove_all(&release).await?;
    make_dir(&place.releases(&id.key))?;
    std::fs::rename(from, &release).map_err(io_failed("moving the release to", &release))
}

/// Writes a commit's tree to a directory, away from the threads that wait for the network.
pub(super) async fn export(mirror: &Mirror, commit: &CommitId, to: &Path) -> Result<()> {
    let (mirror, commit, to) = (mirror.clone(), commit.clone(), to.to_owned());
    let exported = tokio::task::spawn_blocking(move || mirror.export(&commit, &to)).await;
    exported.map_err(|error| RuntimeError::failed("export", error))?.map_err(git_failed)
}

fn git_failed(error: GitError) -> RuntimeError {
    if error.cancelled() { RuntimeError::Cancelled } else { RuntimeError::failed(error.operation, error.why) }
}

/// Makes `tags/<tag>` a link to the release, replacing another link in one step.
pub(super) fn tag(place: &Place, environment: &Environment, artefact: &str, tag: &str) -> Result<()> {
    let link = place.tag(&environment.key, tag)?;
    let release = place.existing_release(artefact)?;
    let name = release.file_name().unwrap_or_default();
    make_dir(&place.tags(&environment.key))?;
    let temporary = link.with_file_name(format!(".{tag}.new"));
    let made = match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => std::os::unix::fs::symlink(Path::new("../releases").join(name), &temporary),
    };
    made.and_then(|()| std::fs::rename(&temporary, &link)).map_err(io_failed("making the tag", &link))
}

pub(super) fn tagged(place: &Place, environment: &Environment, tag: &str) -> Result<Option<String>> {
    let link = place.tag(&environment.key, tag)?;
    let target = match std::fs::read_link(&link) {
        Ok(target) => target,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_failed("reading the tag", &link)(error)),
    };
    let name = target.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let id = format!("{}/{name}", environment.key);
    Ok(place.existing_release(&id).is_ok().then_some(id))
}

pub(super) async fn untag(place: &Place, environment: &Environment, tag: &str) -> Result<()> {
    remove_all(&place.tag(&environment.key, tag)?).await
}

/// Every release of an environment.
pub(super) fn seen(place: &Place, key: &EnvironmentKey) -> Vec<SeenArtefact> {
    let Ok(entries) = std::fs::read_dir(place.releases(key)) else { return Vec::new() };
    let artefact = |name: String| {
        let deployment = DeploymentId(name.split_once('-')?.0.parse().ok()?);
        let id = ReleaseId { key: key.clone(), name };
        Some(SeenArtefact {
            name: place.release(&id).display().to_string(),
            id: id.to_string(),
            deployment,
            commit: None,
        })
    };
    entries.filter_map(|entry| artefact(entry.ok()?.file_name().into_string().ok()?)).collect()
}

/// Deletes a release; bytes given back. What no longer is there gives none.
pub(super) async fn remove(place: &Place, id: &str) -> Result<u64> {
    let Ok(path) = place.existing_release(id) else { return Ok(0) };
    let bytes = disk_usage(path.clone()).await;
    remove_all(&path).await?;
    Ok(bytes)
}
