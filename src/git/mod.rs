//! Fetching with the `git` program, reading with libgit2. (skeleton: signatures that other rooms rely on)

use std::path::{Path, PathBuf};

use bytes::Bytes;
use jiff::Timestamp;

use crate::{
    model::{Branch, CommitId},
    runtime::Job,
};

pub mod context;

#[derive(Debug, thiserror::Error)]
#[error("{operation}: {why}")]
pub struct GitError {
    pub operation: String,
    pub why: String,
    /// The remote or the program was the trouble (exit 69), not the request.
    pub unavailable: bool,
    pub cancelled: bool,
}

/// A bare mirror of one app's repository.
#[derive(Debug, Clone)]
pub struct Mirror {
    pub dir: PathBuf,
    pub remote: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitInfo {
    pub id: CommitId,
    pub subject: String,
    pub message: String,
    pub author: String,
    pub time: Timestamp,
}

impl Mirror {
    pub fn new(dir: impl Into<PathBuf>, remote: impl Into<String>) -> Self {
        Self { dir: dir.into(), remote: remote.into() }
    }
    /// Fetches one branch (forced pushes accepted); makes the mirror where it is missing. Returns the branch's tip, `None` where the remote has no such branch.
    pub async fn fetch_branch(
        &self,
        _branch: &Branch,
        _limit: std::time::Duration,
        _job: &Job,
    ) -> Result<Option<CommitId>, GitError> {
        todo!()
    }
    /// Fetches all branches and tags, for a deployment of anything by hand.
    pub async fn fetch_all(&self, _limit: std::time::Duration, _job: &Job) -> Result<(), GitError> {
        todo!()
    }
    /// What the remote's branch points at, without fetching.
    pub async fn remote_tip(
        &self,
        _branch: &Branch,
        _limit: std::time::Duration,
    ) -> Result<Option<CommitId>, GitError> {
        todo!()
    }
    /// A branch, tag, or (abbreviated) commit as a person writes it → commit. Remote branches first.
    pub fn resolve(&self, _reference: &str) -> Result<CommitId, GitError> {
        todo!()
    }
    pub fn has_commit(&self, _commit: &CommitId) -> bool {
        todo!()
    }
    pub fn commit(&self, _commit: &CommitId) -> Result<CommitInfo, GitError> {
        todo!()
    }
    /// Whether `ancestor` is `descendant` or one of its ancestors.
    pub fn is_ancestor(&self, _ancestor: &CommitId, _descendant: &CommitId) -> Result<bool, GitError> {
        todo!()
    }
    /// Paths that differ between two commits' trees, both names of a rename.
    pub fn changed_paths(&self, _from: &CommitId, _to: &CommitId) -> Result<Vec<String>, GitError> {
        todo!()
    }
    /// One file of a commit's tree; `None` where there is none. At most 4 MiB.
    pub fn read_file(&self, _commit: &CommitId, _path: &str) -> Result<Option<Vec<u8>>, GitError> {
        todo!()
    }
    /// Writes a commit's tree below `to`, which must be empty or absent. No hooks, filters or links out of the tree.
    pub fn export(&self, _commit: &CommitId, _to: &Path) -> Result<(), GitError> {
        todo!()
    }
}

/// A chunk of a tar stream.
pub type Chunk = std::io::Result<Bytes>;
