//! Where things are below the root.
//!
//! ```text
//! <app>/<environment>/releases/7-0123456789/     an artefact; its id is `<app>/<environment>/7-0123456789`
//! <app>/<environment>/tags/rollback              a link to a release
//! <app>/<environment>/scratch/7-test-unit/       what a build or a one-off works in, and `….pid`, its process group
//! .instances/refit-<app>-<environment>-7/        an instance: spec, state, lock, logs
//! ```
//!
//! Ids and names come back from the journal and from people, so each is checked before it becomes a path.

use std::{
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    model::{CommitId, DeploymentId, EnvironmentKey},
    runtime::{Result, RuntimeError},
};

/// The paths below one root.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub root: PathBuf,
}

/// An artefact's id, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ReleaseId {
    pub key: EnvironmentKey,
    /// `<deployment>-<short commit>`.
    pub name: String,
}

impl ReleaseId {
    pub fn new(key: &EnvironmentKey, deployment: DeploymentId, commit: &CommitId) -> Self {
        Self { key: key.clone(), name: format!("{deployment}-{}", commit.short()) }
    }

    /// `None` for anything that this runtime did not name.
    pub fn parse(id: &str) -> Option<Self> {
        let mut parts = id.split('/');
        let key = EnvironmentKey { app: parts.next()?.parse().ok()?, environment: parts.next()?.parse().ok()? };
        let name = parts.next()?;
        let one_word = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        (one_word && !name.is_empty() && parts.next().is_none()).then(|| Self { key, name: name.to_owned() })
    }
}

impl std::fmt::Display for ReleaseId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.key, self.name)
    }
}

impl Place {
    fn environment(&self, key: &EnvironmentKey) -> PathBuf {
        self.root.join(key.app.as_str()).join(key.environment.as_str())
    }

    pub fn releases(&self, key: &EnvironmentKey) -> PathBuf {
        self.environment(key).join("releases")
    }

    pub fn scratch(&self, key: &EnvironmentKey) -> PathBuf {
        self.environment(key).join("scratch")
    }

    pub fn tags(&self, key: &EnvironmentKey) -> PathBuf {
        self.environment(key).join("tags")
    }

    pub fn release(&self, id: &ReleaseId) -> PathBuf {
        self.releases(&id.key).join(&id.name)
    }

    /// The directory of the release with this id, which must be there.
    pub fn existing_release(&self, id: &str) -> Result<PathBuf> {
        let path = ReleaseId::parse(id).map(|id| self.release(&id)).filter(|path| path.is_dir());
        path.ok_or_else(|| RuntimeError::Missing { what: "release", name: id.to_owned() })
    }

    pub fn tag(&self, key: &EnvironmentKey, tag: &str) -> Result<PathBuf> {
        Ok(self.tags(key).join(file_name("tag", tag)?))
    }

    pub fn instances(&self) -> PathBuf {
        // No app's name begins with a dot.
        self.root.join(".instances")
    }

    pub fn instance(&self, name: &str) -> Result<PathBuf> {
        Ok(self.instances().join(file_name("instance", name)?))
    }
}

/// A value that is to be one component of a path.
pub(super) fn file_name<'a>(what: &str, value: &'a str) -> Result<&'a str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if value.is_empty() || value.starts_with('.') || value.len() > 200 || !value.bytes().all(plain) {
        return Err(RuntimeError::failed(
            format!("{what} `{}`", value.escape_default()),
            "is not usable as a file name",
        ));
    }
    Ok(value)
}

/// Makes a directory and its parents, for the owner only: environments with secrets are kept below it.
pub(super) fn make_dir(path: &Path) -> Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_failed("making", path))
}

/// Shapes an input or output error: `failed to <verb> <path>`.
pub(super) fn io_failed<'a>(verb: &'a str, path: &'a Path) -> impl FnOnce(io::Error) -> RuntimeError + 'a {
    move |error| RuntimeError::failed(format!("{verb} {}", path.display()), error)
}

/// Replaces a JSON file as a whole, mode 0600, on disk before this returns. The temporary file's name is fixed, so that a crash leaves
/// at most one; a file has one writer at a time.
pub(super) fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let text = serde_json::to_vec_pretty(value)?;
    let mut file = std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
    file.write_all(&text)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}

/// `None` where there is no file.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match std::fs::read(path) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes a file, a link or a whole directory; what is gone is fine.
pub(super) async fn remove_all(path: &Path) -> Result<()> {
    let Ok(found) = tokio::fs::symlink_metadata(path).await else { return Ok(()) };
    let removed =
        if found.is_dir() { tokio::fs::remove_dir_all(path).await } else { tokio::fs::remove_file(path).await };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_failed("removing", path)(error)),
        _ => Ok(()),
    }
}

/// Bytes on disk of a directory and all below it, counted away from the threads that wait for the network; what cannot be read
/// counts as nothing.
pub(super) async fn disk_usage(root: PathBuf) -> u64 {
    let count = move || {
        let mut bytes = 0;
        let mut left = vec![root];
        while let Some(path) = left.pop() {
            let Ok(found) = path.symlink_metadata() else { continue };
            bytes += found.blocks() * 512;
            if found.is_dir()
                && let Ok(entries) = std::fs::read_dir(&path)
            {
                left.extend(entries.flatten().map(|entry| entry.path()));
            }
        }
        bytes
    };
    tokio::task::spawn_blocking(count).await.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_could_leave_the_root_are_refused() {
        for bad in ["", "a", "a/b", "a/b/", "a/b/..", "../b/1-c", "a/b/c/d", "/a/b", "a/b/1 2", "a//1-c"] {
            assert_eq!(ReleaseId::parse(bad), None, "{bad:?}");
        }
        let good = ReleaseId::parse("guestbook/production/7-0123456789");
        assert_eq!(good.map(|id| id.to_string()).as_deref(), Some("guestbook/production/7-0123456789"));
        for bad in ["", ".", "..", "a/b", ".hidden", "a\nb"] {
            assert!(file_name("tag", bad).is_err(), "{bad:?}");
        }
    }
}
