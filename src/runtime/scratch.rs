//! Throw-away containers: a server that a dump is tried in, a helper that sees a volume, tools that the host does not have.
//!
//! A scratch container has no published port, is never started again by the engine, and its memory is bounded. It goes with
//! [`ScratchContainer::remove`], or when it is dropped; what even that misses (Refit was killed) carries its role and whose it was, for
//! [`Scratch::sweep_scratch`]. One that was started has a process that ends by itself after [`LONGEST`] too.

use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Job, Result};
use crate::{model::EnvironmentKey, secret::Secret};

/// No scratch container runs for longer.
pub const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// A container to work in for a while.
#[derive(Debug, Clone)]
pub struct ScratchSpec<'a> {
    /// Whose it is: part of its name and its labels.
    pub key: &'a EnvironmentKey,
    /// For people: part of its name, `rehearse`. Lower case letters, digits and hyphens.
    pub purpose: &'a str,
    pub image: ScratchImage<'a>,
    pub run: ScratchRun<'a>,
    /// For its own process and for every command in it. Nothing of it is in a command line.
    pub env: &'a [(&'a str, &'a Secret)],
    /// A user of the image; the image's own where unset.
    pub user: Option<&'a str>,
    pub mounts: &'a [ScratchMount],
    pub network: ScratchNetwork<'a>,
    /// Bytes.
    pub memory: u64,
}

/// What a scratch container is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScratchImage<'a> {
    /// The very image that this container was made of.
    Of(&'a str),
    /// An image on this machine, by name or id. It is not pulled.
    Named(&'a str),
}

/// What runs in it, in place of the image's own command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScratchRun<'a> {
    /// It is made and never started: for what is in its mounts. Needs nothing of the image.
    Nothing,
    /// It waits for commands, `ContainerExec`; the image needs `/bin/sh` and `sleep`.
    Commands,
    /// A program and its arguments.
    Program(&'a [&'a str]),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScratchMount {
    /// A volume's name, or a directory of the host.
    pub source: String,
    /// Absolute, in the container.
    pub target: String,
    pub read_only: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScratchNetwork<'a> {
    /// No way in or out.
    None,
    /// The host's own: what the host reaches, it reaches.
    Host,
    /// The one that this container is in: it is reached as `localhost`.
    Of(&'a str),
    Named(&'a str),
}

/// Makes throw-away containers. Implemented by `docker::Engine`.
#[async_trait]
pub trait Scratch: Send + Sync + std::fmt::Debug {
    /// Makes one, and starts it unless nothing is to run in it.
    ///
    /// # Errors
    /// `Missing` for an image, a container or a network that is not there.
    async fn open(&self, spec: &ScratchSpec<'_>) -> Result<Box<dyn ScratchContainer>>;

    /// Removes what processes that are gone left of this environment. Their names.
    async fn sweep_scratch(&self, key: &EnvironmentKey) -> Result<Vec<String>>;
}

/// Dropping one removes it in the background.
#[async_trait]
pub trait ScratchContainer: Send + Sync + std::fmt::Debug {
    /// For `ContainerExec`.
    fn name(&self) -> &str;

    /// `None` while it runs; else its exit code and the last lines it printed.
    async fn ended(&self) -> Result<Option<(i64, Vec<String>)>>;

    /// Streams a directory of it, as a tar archive whose entries begin with the directory's own name. Whether it runs or not; a chunk at a
    /// time.
    async fn read_archive(&self, path: &str, sink: &mut (dyn AsyncWrite + Send + Unpin), job: &Job) -> Result<()>;

    /// Unpacks a tar archive into a directory of it. Whether it runs or not; a chunk at a time. If the source fails, what was unpacked by then
    /// is there.
    async fn write_archive(&self, path: &str, source: &mut (dyn AsyncRead + Send + Unpin), job: &Job) -> Result<()>;

    /// Removes it, with volumes that nobody named.
    async fn remove(self: Box<Self>) -> Result<()>;
}
