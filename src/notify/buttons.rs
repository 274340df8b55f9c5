//! Which buttons a message about a deployment carries.
//!
//! A button here is a wish in words; what Telegram is given with it (an opaque token, good for one chat and a limited time) is made
//! when the message is sent, by [`Registry::offer`](crate::registry::Registry::offer). None of these buttons changes anything
//! by itself: what does is asked once more, by the bot (`telegram/`).

use serde::{Deserialize, Serialize};

use crate::model::{DeploymentView, Status};

/// What a person can wish of a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Approve,
    Reject,
    Cancel,
    Rerun,
    Rollback,
    Logs,
}

impl Action {
    /// What stands on the button.
    pub fn text(self) -> &'static str {
        match self {
            Self::Approve => "✅ Approve",
            Self::Reject => "✋ Reject",
            Self::Cancel => "🚫 Cancel",
            Self::Rerun => "🔁 Re-run",
            Self::Rollback => "↩️ Roll back",
            Self::Logs => "📄 Logs",
        }
    }
}

/// One button.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Button {
    pub text: String,
    pub action: Action,
}

/// Rows of buttons, from the top; empty where there is nothing to press.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keyboard(pub Vec<Vec<Button>>);

impl Keyboard {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn of(rows: &[&[Action]]) -> Self {
        let button = |action: &Action| Button { text: action.text().to_owned(), action: *action };
        Self(rows.iter().map(|row| row.iter().map(button).collect()).collect())
    }
}

/// A button as Telegram is given it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offered {
    pub text: String,
    /// `callback_data`: at most 64 bytes (Bot API, `InlineKeyboardButton`).
    pub data: String,
}

/// What can be done about a deployment as it is now.
pub fn keyboard_for(view: &DeploymentView) -> Keyboard {
    use Action::{Approve, Cancel, Logs, Reject, Rerun, Rollback};
    let rollback = view.rollback.is_some();
    match view.status {
        Status::AwaitingApproval => Keyboard::of(&[&[Approve, Reject], &[Logs]]),
        Status::Queued => Keyboard::of(&[&[Cancel]]),
        Status::Running => Keyboard::of(&[&[Cancel, Logs]]),
        // A rollback that failed is planned anew, and not repeated blindly.
        Status::Failed | Status::RolledBack | Status::Cancelled if !rollback => Keyboard::of(&[&[Rerun, Logs]]),
        Status::Succeeded if !rollback && view.live && view.previous.is_some() => Keyboard::of(&[&[Rollback, Logs]]),
        Status::Succeeded | Status::Failed | Status::RolledBack | Status::Cancelled | Status::Stuck => {
            Keyboard::of(&[&[Logs]])
        }
        Status::Superseded | Status::Skipped => Keyboard::default(),
    }
}
