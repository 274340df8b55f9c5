//! The daemon's Unix socket, from the client's side: HTTP/1.1 with JSON, the same verbs as [`Control`](crate::control::Control). (skeleton)

use std::path::Path;

use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};

use crate::{
    control::{DeployRequest, RerunRequest, Result, Update},
    model::{DeploymentId, Name},
    registry::Outcome,
};

/// A daemon that answers on its socket.
#[derive(Debug, Clone)]
pub struct Daemon {}

/// What a post-receive hook saw.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PushRequest {
    pub app: Name,
    pub by: Option<String>,
    /// `old new ref` lines as Git gave them.
    pub lines: Vec<String>,
}

/// What became of one line.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PushOutcome {
    pub reference: String,
    /// Why the line is no push to a branch (a tag, a deletion, a bad name).
    pub ignored: Option<String>,
    pub outcomes: Vec<Outcome>,
}

impl Daemon {
    /// `None` where nobody listens: no socket, or one that a dead daemon left.
    pub async fn connect(_socket: &Path) -> Option<Self> {
        todo!()
    }
    pub async fn deploy(&self, _request: &DeployRequest) -> Result<DeploymentId> {
        todo!()
    }
    pub async fn rerun(&self, _request: &RerunRequest) -> Result<DeploymentId> {
        todo!()
    }
    pub async fn cancel(&self, _id: DeploymentId, _by: &str) -> Result<()> {
        todo!()
    }
    pub async fn push(&self, _request: &PushRequest) -> Result<Vec<PushOutcome>> {
        todo!()
    }
    pub fn follow(&self, _id: DeploymentId, _after: i64) -> BoxStream<'static, Result<Update>> {
        todo!()
    }
}
