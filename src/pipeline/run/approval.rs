//! The gate before migrate: asking for a person's word, and waiting for it.
//!
//! The word is a row of its own ([`Registry::decide`](crate::registry::Registry::decide)), which any process may write; the one that drives the deployment
//! finds it, and writes what follows from it into the journal. So a decision survives whichever process dies, and waiting costs nothing:
//! it can end with the daemon and go on with the next.

use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Runner, Way, receive};
use crate::{
    pipeline::journal::{Approval, Event},
    registry::{Entry, NewMessage, RegistryError},
};

/// Between two looks for a decision that another process may have written.
const LOOK: Duration = Duration::from_secs(1);

impl Runner {
    /// Whether migrate has to wait for a person's word. Going back is not for anybody to hold up.
    pub(super) fn asks_for_approval(&self) -> bool {
        self.environment.approval.is_some() && self.saga.approval == Approval::NotAsked && !self.saga.is_rollback()
    }

    pub(super) async fn request_approval(&mut self) -> Result<(), RegistryError> {
        let patience = self.environment.approval.unwrap_or_default();
        let expires_at = Timestamp::now().checked_add(patience).unwrap_or(Timestamp::MAX);
        let id = self.id;
        self.log.section("refit").line(format!("waits for approval: `refit approve {id}` or `refit reject {id}`"));
        let message = NewMessage { kind: "approval".to_owned(), body: serde_json::json!({ "version": 1 }) };
        let event = Event::ApprovalRequested { expires_at };
        self.record(Entry { message: Some(message), ..event.into() }).await?;
        self.reach("approval:record").await;
        Ok(())
    }

    /// Waits for the decision, the time limit or a cancellation, and records it; until `closing` at the longest.
    pub(super) async fn hear_approval(
        &mut self,
        expires_at: Timestamp,
        cancels: &mut mpsc::Receiver<String>,
        closing: &CancellationToken,
    ) -> Result<Way, RegistryError> {
        let mut ticks = self.world.ticks.subscribe();
        let event = loop {
            if let Some(decision) = self.world.registry.decision(self.id).await? {
                let by = decision.by;
                break match decision.approved {
                    true => Event::Approved { by },
                    false => Event::ApprovalRefused { by, reason: decision.reason, expired: false },
                };
            }
            if Timestamp::now() >= expires_at {
                break Event::ApprovalRefused { by: "nobody".to_owned(), reason: None, expired: true };
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                // The sender lives in `world`.
                _ = ticks.changed() => {}
                by = receive(cancels) => break Event::CancelRequested { by },
                () = closing.cancelled() => return Ok(Way::Waiting),
            }
        };
        self.log.section("refit").line(match &event {
            Event::Approved { by } => format!("approved by {by}"),
            Event::ApprovalRefused { expired: true, .. } => "nobody approved it in time".to_owned(),
            Event::ApprovalRefused { by, .. } => format!("rejected by {by}"),
            Event::CancelRequested { by } => format!("cancelled by {by}"),
            _ => String::new(),
        });
        self.record(event).await?;
        Ok(Way::Over)
    }
}
