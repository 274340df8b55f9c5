//! What goes over the Unix socket besides the types of `control`: pushes, and errors that keep their kind.

use serde::{Deserialize, Serialize};
use warp::http::StatusCode;

use crate::{
    control::{BackupUpdate, ControlError, Update},
    model::{DeploymentId, Name},
    registry::Outcome,
    rollback::Check,
};

/// What a post-receive hook saw.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PushRequest {
    pub app: Name,
    pub by: Option<String>,
    /// `old new ref` lines as Git gave them.
    pub lines: Vec<String>,
}

/// What became of one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushOutcome {
    pub reference: String,
    /// Why the line is no push to a branch that is deployed (a tag, a deletion, a bad name, another branch).
    pub ignored: Option<String>,
    pub outcomes: Vec<Outcome>,
}

/// The answer to a deployment that was asked for.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Asked {
    pub id: DeploymentId,
}

/// The body of a request to cancel.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CancelRequest {
    pub by: String,
}

/// One line of work on backups.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum BackupLine {
    Error { error: WireError },
    Update(BackupUpdate),
}

/// One line of a followed deployment.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FollowLine {
    Error { error: WireError },
    Update(Update),
}

/// A [`ControlError`] on its way to another process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WireError {
    pub kind: WireKind,
    pub message: String,
    pub hint: Option<String>,
    pub exit_code: u8,
    /// What the safety checks of a rollback said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<Check>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WireKind {
    Usage,
    Busy,
    Unavailable,
    Refused,
    Failed,
}

impl WireError {
    pub fn status(&self) -> StatusCode {
        match self.kind {
            WireKind::Usage => StatusCode::BAD_REQUEST,
            WireKind::Busy => StatusCode::CONFLICT,
            WireKind::Refused => StatusCode::PRECONDITION_FAILED,
            WireKind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
            WireKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl From<&ControlError> for WireError {
    fn from(error: &ControlError) -> Self {
        let kind = match error {
            ControlError::Usage { .. } => WireKind::Usage,
            ControlError::Busy { .. } => WireKind::Busy,
            ControlError::Refused { .. } => WireKind::Refused,
            ControlError::Failed { .. } => WireKind::Failed,
            // The store's own errors have no other exit code, and their types do not travel.
            ControlError::Unavailable { .. } | ControlError::Registry(_) => WireKind::Unavailable,
        };
        let checks = match error {
            ControlError::Refused { checks, .. } => checks.clone(),
            _ => Vec::new(),
        };
        let hint = error.hint().map(str::to_owned);
        Self { kind, message: error.to_string(), hint, exit_code: error.exit_code(), checks }
    }
}

impl From<WireError> for ControlError {
    fn from(error: WireError) -> Self {
        let WireError { kind, message, hint, checks, exit_code } = error;
        match kind {
            WireKind::Usage => Self::Usage { message, hint },
            WireKind::Busy => Self::Busy { message, hint },
            WireKind::Refused => Self::Refused { message, hint, checks },
            WireKind::Failed => Self::Failed { message, hint, code: exit_code },
            WireKind::Unavailable => Self::Unavailable { message, hint },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::RegistryError;

    #[test]
    fn errors_keep_their_kind_text_and_exit_code() {
        let hint = || Some("wait".to_owned());
        for error in [
            ControlError::Usage { message: "no such app".into(), hint: hint() },
            ControlError::Busy { message: "held".into(), hint: None },
            ControlError::Refused { message: "it is healthy".into(), hint: hint(), checks: Vec::new() },
            ControlError::Failed { message: "the dump broke off".into(), hint: None, code: 5 },
            ControlError::Unavailable { message: "Docker is away".into(), hint: hint() },
            ControlError::Registry(RegistryError::Damaged { what: "status", why: "x".into() }),
        ] {
            let text = serde_json::to_string(&WireError::from(&error)).unwrap();
            let back = ControlError::from(serde_json::from_str::<WireError>(&text).unwrap());
            assert_eq!(back.to_string(), error.to_string());
            assert_eq!((back.exit_code(), back.hint()), (error.exit_code(), error.hint()), "{text}");
        }
    }
}
