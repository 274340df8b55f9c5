//! One app's repository, seen from this host.
//!
//! The network is the `git` program's: it knows the owner's SSH keys and credential helpers, and it can be killed. What it
//! fetched is read with libgit2, in process, so that nothing which a repository contains is ever run: no hooks, no
//! filters, no work tree.
//!
//! A [`Mirror`] is a bare repository with a namespace of its own: the remote's branches are `refs/remotes/origin/*`, its
//! tags `refs/tags/*`, commits that were asked for by their id `refs/refit/commits/*`. Its contents can be fetched again at any
//! time, so repair is simple: a mirror that is half made, damaged, or of another remote is made anew beside the old one
//! and put in its place in one step ([`fetch`] tells how). Commits that a forced push left behind stay readable: nothing
//! is ever pruned.
//!
//! | file | what |
//! |---|---|
//! | `remote` | which addresses may be fetched from |
//! | `command` | how the `git` program is called: environment, settings, limits |
//! | `trouble` | what `git` said → what happened and what to do |
//! | `fetch` | fetching, asking the remote, repair |
//! | `read` | names → commits, ancestry, changes, single files |
//! | `export` | a commit's tree → a directory |
//!
//! Reading is synchronous (callers use `spawn_blocking`) and opens the repository each time, which costs a fraction of a
//! millisecond and always sees what the last fetch brought.

use std::path::PathBuf;

use bytes::Bytes;
use jiff::Timestamp;

use crate::model::CommitId;

mod command;
pub mod context;
mod export;
mod fetch;
mod read;
pub mod remote;
#[cfg(test)]
mod tests;
mod trouble;

/// What did not work, and why, fit for people: `why` ends with what to do where there is something to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{operation}: {why}")]
pub struct GitError {
    pub operation: String,
    pub why: String,
    pub kind: GitErrorKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GitErrorKind {
    Cancelled,
    /// The time ran out: the remote hangs, or the repository is too large for the limit.
    TimedOut,
    /// No connection, or it broke.
    Unreachable,
    /// The remote wants a login, refuses the one it got, or is not who it was.
    Denied,
    /// There is no repository at the remote's address, or none that may be seen.
    NoRepository,
    /// The repository has no such branch, tag, commit or file.
    Missing,
    /// What was asked for is not allowed or not clear.
    Invalid,
    /// The mirror cannot be read; the next fetch makes it anew.
    Damaged,
    /// This host: no `git`, a full disk, permissions.
    Host,
}

impl GitError {
    pub fn new(kind: GitErrorKind, operation: impl Into<String>, why: impl Into<String>) -> Self {
        Self { operation: operation.into(), why: why.into(), kind }
    }

    /// The remote or the program was the trouble (exit 69), not the request.
    pub fn unavailable(&self) -> bool {
        use GitErrorKind::{Denied, Host, NoRepository, TimedOut, Unreachable};
        matches!(self.kind, TimedOut | Unreachable | Denied | NoRepository | Host)
    }

    pub fn cancelled(&self) -> bool {
        self.kind == GitErrorKind::Cancelled
    }

    /// The same call may work a moment later.
    pub fn transient(&self) -> bool {
        matches!(self.kind, GitErrorKind::TimedOut | GitErrorKind::Unreachable)
    }
}

/// A bare mirror of one app's repository. Cheap to make: nothing is touched before the first fetch.
#[derive(Debug, Clone)]
pub struct Mirror {
    /// Belongs to Refit alone; made by the first fetch. Beside it appear `<dir>.lock` and, for moments, `<dir>.new`.
    pub dir: PathBuf,
    /// The configured repository, never one from a payload.
    pub remote: String,
}

/// A commit as reports show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitInfo {
    pub id: CommitId,
    /// The message's first paragraph on one line, without control characters, at most 300 characters.
    pub subject: String,
    /// As it was written, at most 64 KiB. May hold anything: mask and escape before showing.
    pub message: String,
    /// The author's name, without control characters, at most 100 characters.
    pub author: String,
    /// When it was committed.
    pub time: Timestamp,
}

impl Mirror {
    pub fn new(dir: impl Into<PathBuf>, remote: impl Into<String>) -> Self {
        Self { dir: dir.into(), remote: remote.into() }
    }
}

/// A chunk of a tar stream.
pub type Chunk = std::io::Result<Bytes>;
