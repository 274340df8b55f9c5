//! What a button means: kept as JSON beside its token, so that a press is understood after a restart too.

use serde::{Deserialize, Serialize};

use super::command::Command;
use crate::{
    model::{DeploymentId, EnvironmentKey},
    notify::buttons::Action,
};

/// A button's meaning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Under a report: changes nothing, but asks.
    Ask(Action),
    /// The yes to a question.
    Do(Question),
    /// The no.
    No(Question),
    /// Which place a command was meant for.
    Choose { command: Command, key: EnvironmentKey },
}

/// What is asked, and where its buttons stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    #[serde(flatten)]
    pub deed: Deed,
    /// Under a report, whose own buttons come back after a no; else under a message of their own.
    pub under_report: bool,
}

/// What changes something, with all that was shown to the person who said yes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "deed", rename_all = "snake_case")]
pub enum Deed {
    Deploy {
        key: EnvironmentKey,
        reference: Option<String>,
    },
    Rerun {
        id: DeploymentId,
    },
    /// Only while `from` is still live: a preview of something else is no preview.
    Rollback {
        key: EnvironmentKey,
        from: DeploymentId,
        to: DeploymentId,
        reason: String,
        force: bool,
    },
    Cancel {
        id: DeploymentId,
    },
    Approve {
        id: DeploymentId,
    },
    Reject {
        id: DeploymentId,
        reason: String,
    },
}

impl Deed {
    /// In a few words: what is to be done.
    pub fn line(&self) -> String {
        match self {
            Self::Deploy { key, reference: None } => format!("deploy {key}"),
            Self::Deploy { key, reference: Some(reference) } => format!("deploy {reference} to {key}"),
            Self::Rerun { id } => format!("run deployment {id} again"),
            Self::Rollback { key, to, .. } => format!("roll {key} back to deployment {to}"),
            Self::Cancel { id } => format!("cancel deployment {id}"),
            Self::Approve { id } => format!("approve deployment {id}"),
            Self::Reject { id, .. } => format!("reject deployment {id}"),
        }
    }

    /// What stands on the button.
    pub fn yes(&self) -> String {
        match self {
            Self::Deploy { .. } => "✅ Yes, deploy".to_owned(),
            Self::Rerun { .. } => "✅ Yes, run it again".to_owned(),
            Self::Rollback { force: false, .. } => "↩️ Yes, roll back".to_owned(),
            Self::Rollback { force: true, .. } => "⚠️ Roll back in spite of that".to_owned(),
            Self::Cancel { .. } => "🚫 Yes, cancel it".to_owned(),
            Self::Approve { id } => format!("✅ Sure? Approve {id}"),
            Self::Reject { id, .. } => format!("✋ Sure? Reject {id}"),
        }
    }

    /// The deployment that the question is about.
    pub fn deployment(&self) -> Option<DeploymentId> {
        match self {
            Self::Deploy { .. } => None,
            Self::Rollback { from, .. } => Some(*from),
            Self::Rerun { id } | Self::Cancel { id } | Self::Approve { id } | Self::Reject { id, .. } => Some(*id),
        }
    }
}
